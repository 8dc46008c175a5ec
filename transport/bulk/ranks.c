/* Who holds what of a page: the list of a worker's ranks as bytes, and how a part of one side is
 * put together from the parts of the other. Pure. */
#include "bulk/frame.h"

#include <string.h>

#define ENTRY_BYTES 24 /* before the address */

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* --- as bytes --------------------------------------------------------------------------------- */

uint32_t sl_bulk_ranks_put(const struct sl_bulk_rank *ranks, uint32_t n, uint8_t *out)
{
    uint8_t *at = out + 4;
    sl_assert(n <= SL_LIMIT_ranks);
    put32(out, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_bulk_rank *r = &ranks[i];
        uint32_t len = (uint32_t)strnlen(r->address, sizeof r->address - 1);
        const uint32_t words[] = {r->part.layer_first, r->part.n_layers, r->part.head_first,
                                  r->part.n_heads,     r->n_readers,     len};
        for (size_t k = 0; k < sizeof words / sizeof *words; k++)
            put32(at + 4 * k, words[k]);
        memcpy(at + ENTRY_BYTES, r->address, len);
        at += ENTRY_BYTES + len;
    }
    return (uint32_t)(at - out);
}

/* One entry; its bytes, or 0 when it is none. */
static size_t get_rank(const uint8_t *at, size_t left, const struct sl_bulk_layout *l,
                       struct sl_bulk_rank *out)
{
    if (left < ENTRY_BYTES)
        return 0;
    *out = (struct sl_bulk_rank){.part = {get32(at), get32(at + 4), get32(at + 8), get32(at + 12)},
                                 .n_readers = get32(at + 16)};
    uint32_t len = get32(at + 20);
    if (!len || len >= sizeof out->address || len > left - ENTRY_BYTES ||
        memchr(at + ENTRY_BYTES, 0, len) || !sl_bulk_part_fits(&out->part, l) ||
        out->n_readers > SL_LIMIT_ranks)
        return 0;
    memcpy(out->address, at + ENTRY_BYTES, len);
    return ENTRY_BYTES + len;
}

enum sl_status sl_bulk_ranks_get(const uint8_t *data, size_t size, const struct sl_bulk_layout *l,
                                 struct sl_bulk_rank *out, uint32_t *n, struct sl_err *err)
{
    *n = 0;
    uint32_t count = size >= 4 ? get32(data) : 0;
    if (!count || count > SL_LIMIT_ranks)
        return sl_fail(err, SL_INVALID, "bulk: a map of %u ranks in %zu bytes", count, size);
    size_t at = 4;
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = get_rank(data + at, size - at, l, &out[i]);
        if (!bytes)
            return sl_fail(err, SL_INVALID, "bulk: rank %u of a map makes no sense", i);
        at += bytes;
    }
    if (at != size)
        return sl_fail(err, SL_INVALID, "bulk: %zu bytes behind a map", size - at);
    *n = count;
    return SL_OK;
}

/* --- covering --------------------------------------------------------------------------------- */

static bool has_layer(const struct sl_bulk_part *p, uint32_t layer)
{
    return layer >= p->layer_first && layer - p->layer_first < p->n_layers;
}

/* The first layer after `layer` where what some rank holds ends. */
static uint32_t layers_end(const struct sl_bulk_rank *ranks, uint32_t n, uint32_t layer,
                           uint32_t end)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_bulk_part *p = &ranks[i].part;
        uint32_t first = p->layer_first, last = first + p->n_layers;
        if (has_layer(p, layer) && last < end)
            end = last;
        if (first > layer && first < end)
            end = first;
    }
    return end;
}

/* Who has this layer's head and most of those behind it; n when nobody has. */
static uint32_t best_rank(const struct sl_bulk_rank *ranks, uint32_t n, uint32_t layer,
                          uint32_t head)
{
    uint32_t best = n, reach = head;
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_bulk_part *p = &ranks[i].part;
        if (has_layer(p, layer) && p->head_first <= head && p->head_first + p->n_heads > reach) {
            best = i;
            reach = p->head_first + p->n_heads;
        }
    }
    return best;
}

uint32_t sl_bulk_cover(const struct sl_bulk_part *mine, const struct sl_bulk_rank *ranks,
                       uint32_t n_ranks, struct sl_bulk_piece *out, uint32_t most)
{
    uint32_t layers = mine->layer_first + mine->n_layers, heads = mine->head_first + mine->n_heads;
    uint32_t n = 0;
    for (uint32_t layer = mine->layer_first; layer < layers;) {
        uint32_t end = layers_end(ranks, n_ranks, layer, layers);
        for (uint32_t head = mine->head_first; head < heads;) {
            uint32_t r = best_rank(ranks, n_ranks, layer, head);
            if (r == n_ranks || n == most)
                return 0;
            uint32_t last = ranks[r].part.head_first + ranks[r].part.n_heads;
            last = last < heads ? last : heads;
            out[n++] = (struct sl_bulk_piece){r, {layer, end - layer, head, last - head}};
            head = last;
        }
        layer = end;
    }
    return n;
}
