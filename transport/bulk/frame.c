/* Frames of the bulk channel: pure parsing and writing, and a client's book of what has come. */
#include "bulk/frame.h"

#include <sluice/base/containers.h>
#include <sluice/base/fault.h>
#include <sluice/base/limits.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC   0x564b4c53u /* "SLKV" */
#define VERSION 2u

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static uint64_t checksum(const uint8_t header[BULK_HEADER_BYTES], uint64_t class_hash,
                         const void *payload, uint32_t size)
{
    return sl_hash64(size ? payload : "", size, sl_hash64(header, 40, class_hash));
}

void sl_bulk_frame_put(const struct bulk_frame *f, uint64_t class_hash, const void *payload,
                       uint8_t out[BULK_HEADER_BYTES])
{
    put32(out, MAGIC);
    out[4] = (uint8_t)f->kind;
    out[5] = VERSION;
    out[6] = out[7] = 0;
    put32(out + 8, f->slot);
    put32(out + 12, f->generation);
    put32(out + 16, f->page);
    put32(out + 20, f->layer);
    put32(out + 24, f->size);
    put32(out + 28, f->seq);
    put64(out + 32, f->value);
    put64(out + 40, checksum(out, class_hash, payload, f->size));
    if (f->kind == BULK_ROW && sl_fault(SL_FAULT_BULK_CORRUPT))
        out[40] ^= 1; /* the same to the receiver as a bit of the row */
}

static bool size_fits(enum bulk_kind kind, uint32_t size, uint32_t row_bytes)
{
    if (kind == BULK_ASK)
        return size == BULK_ASK_BYTES;
    if (kind == BULK_PAGE)
        return size == BULK_KEY_BYTES;
    if (kind == BULK_MAP)
        return size <= SL_BULK_RANKS_BYTES;
    if (kind != BULK_ROW)
        return size == 0;
    return row_bytes ? size == row_bytes : size && size <= SL_LIMIT_bulk_row_bytes;
}

enum sl_status sl_bulk_frame_get(const uint8_t *data, size_t size, uint32_t row_bytes,
                                 struct bulk_frame *out, struct sl_err *err)
{
    if (size < BULK_HEADER_BYTES)
        return sl_fail(err, SL_INVALID, "bulk: header of %zu bytes, not %d", size,
                       BULK_HEADER_BYTES);
    if (get32(data) != MAGIC || data[5] != VERSION || data[6] || data[7])
        return sl_fail(err, SL_INVALID, "bulk: not a frame of version %u", VERSION);
    if (data[4] < BULK_ASK || data[4] >= BULK_N_KIND)
        return sl_fail(err, SL_INVALID, "bulk: unknown kind %u", data[4]);
    *out = (struct bulk_frame){.kind = (enum bulk_kind)data[4],
                               .slot = get32(data + 8),
                               .generation = get32(data + 12),
                               .page = get32(data + 16),
                               .layer = get32(data + 20),
                               .size = get32(data + 24),
                               .seq = get32(data + 28),
                               .value = get64(data + 32),
                               .checksum = get64(data + 40)};
    if (!size_fits(out->kind, out->size, row_bytes))
        return sl_fail(err, SL_INVALID, "bulk: frame of kind %u with %u bytes", data[4], out->size);
    if (out->page >= SL_LIMIT_bulk_pages || out->layer >= SL_LIMIT_model_layers)
        return sl_fail(err, SL_INVALID, "bulk: page %u, layer %u", out->page, out->layer);
    return SL_OK;
}

bool sl_bulk_frame_proven(const uint8_t header[BULK_HEADER_BYTES], const struct bulk_frame *f,
                          uint64_t class_hash, const void *payload)
{
    return checksum(header, class_hash, payload, f->size) == f->checksum;
}

bool sl_bulk_part_fits(const struct sl_bulk_part *p, const struct sl_bulk_layout *l)
{
    return p->n_layers && p->layer_first < l->n_layers &&
           p->n_layers <= l->n_layers - p->layer_first && p->n_heads &&
           p->head_first < l->n_heads && p->n_heads <= l->n_heads - p->head_first;
}

uint32_t sl_bulk_row_bytes(const struct sl_bulk_layout *l, const struct sl_bulk_part *p)
{
    uint64_t bytes = (uint64_t)l->head_bytes * p->n_heads;
    return bytes <= SL_LIMIT_bulk_row_bytes ? (uint32_t)bytes : 0;
}

static void put_part(uint8_t *out, const struct sl_bulk_part *p)
{
    put32(out, p->layer_first);
    put32(out + 4, p->n_layers);
    put32(out + 8, p->head_first);
    put32(out + 12, p->n_heads);
}

static struct sl_bulk_part get_part(const uint8_t *in)
{
    return (struct sl_bulk_part){get32(in), get32(in + 4), get32(in + 8), get32(in + 12)};
}

void sl_bulk_ask_put(const struct sl_bulk_ask *ask, const struct sl_bulk_layout *layout,
                     uint8_t out[BULK_ASK_BYTES])
{
    put32(out, ask->first);
    put32(out + 4, ask->n_pages);
    put32(out + 8, layout->page_size);
    put32(out + 12, layout->n_layers);
    put32(out + 16, layout->n_heads);
    put32(out + 20, layout->head_bytes);
    memcpy(out + 24, ask->last_key, 32);
    put_part(out + 56, &ask->part);
    put32(out + 72, ask->n_readers);
    put32(out + 76, 0);
}

enum sl_status sl_bulk_ask_get(const uint8_t in[BULK_ASK_BYTES], uint64_t ticket,
                               const struct sl_bulk_layout *mine, struct sl_bulk_ask *out,
                               struct sl_err *err)
{
    *out = (struct sl_bulk_ask){.ticket = ticket,
                                .first = get32(in),
                                .n_pages = get32(in + 4),
                                .part = get_part(in + 56),
                                .n_readers = get32(in + 72)};
    memcpy(out->last_key, in + 24, 32);
    if (get32(in + 8) != mine->page_size || get32(in + 12) != mine->n_layers ||
        get32(in + 16) != mine->n_heads || get32(in + 20) != mine->head_bytes || get32(in + 76))
        return sl_fail(err, SL_INVALID, "bulk: pages of %u positions, %u layers, %u heads of %u",
                       get32(in + 8), get32(in + 12), get32(in + 16), get32(in + 20));
    if (out->n_pages > SL_LIMIT_bulk_pages || out->first >= out->n_pages)
        return sl_fail(err, SL_INVALID, "bulk: pages %u to %u asked for, at most %d", out->first,
                       out->n_pages, SL_LIMIT_bulk_pages);
    if (!sl_bulk_part_fits(&out->part, mine) || !sl_bulk_row_bytes(mine, &out->part) ||
        !out->n_readers || out->n_readers > SL_LIMIT_ranks)
        return sl_fail(err, SL_INVALID, "bulk: layers %u + %u, heads %u + %u asked for by %u",
                       out->part.layer_first, out->part.n_layers, out->part.head_first,
                       out->part.n_heads, out->n_readers);
    return SL_OK;
}

bool sl_bulk_intake_open(struct bulk_intake *in, const struct sl_bulk_ask *ask,
                         const uint8_t (*keys)[32])
{
    *in = (struct bulk_intake){.ask = *ask, .keys = keys};
    in->n_rows = calloc(ask->n_pages - ask->first, sizeof *in->n_rows);
    return in->n_rows != NULL;
}

void sl_bulk_intake_close(struct bulk_intake *in)
{
    free(in->n_rows);
    in->n_rows = NULL;
}

static bool is_ours(const struct bulk_intake *in, const struct bulk_frame *f)
{
    return f->page >= in->ask.first && f->page < in->ask.n_pages;
}

bool sl_bulk_intake_wants(const struct bulk_intake *in, const struct bulk_frame *f)
{
    const struct sl_bulk_part *p = &in->ask.part;
    return is_ours(in, f) && f->layer >= p->layer_first &&
           f->layer - p->layer_first < p->n_layers && f->value == sl_bulk_heads(p) &&
           in->n_rows[f->page - in->ask.first] == f->layer - p->layer_first;
}

void sl_bulk_intake_row(struct bulk_intake *in, const struct bulk_frame *f)
{
    in->n_rows[f->page - in->ask.first]++;
}

bool sl_bulk_intake_page(struct bulk_intake *in, const struct bulk_frame *f, const uint8_t key[32])
{
    if (!is_ours(in, f) || in->n_rows[f->page - in->ask.first] != in->ask.part.n_layers ||
        memcmp(key, in->keys[f->page], 32) != 0)
        return false;
    in->n_rows[f->page - in->ask.first]++;
    uint32_t n = in->ask.n_pages - in->ask.first;
    while (in->n_complete < n && in->n_rows[in->n_complete] > in->ask.part.n_layers)
        in->n_complete++;
    return true;
}
