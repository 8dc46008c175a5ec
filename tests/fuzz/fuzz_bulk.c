/* The bulk channel's frames: whatever bytes come, a frame is either refused or within its bounds,
 * and a client's book never counts a page whose rows did not all come under its key. */
#include "bulk/frame.h"

#include <sluice/base/limits.h>
#include <stdlib.h>
#include <string.h>

enum { N_PAGES = 4, N_LAYERS = 2, ROW = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take(struct bulk_intake *in, uint32_t n_rows[N_PAGES], const struct bulk_frame *f,
                 const uint8_t *payload)
{
    if (f->kind == BULK_ROW && sl_bulk_intake_wants(in, f)) {
        sl_bulk_intake_row(in, f);
        n_rows[f->page]++;
    }
    if (f->kind == BULK_PAGE && sl_bulk_intake_page(in, f, payload) && n_rows[f->page] != N_LAYERS)
        abort();
}

/* What is taken for a map is written again to the same bytes, and covered without a head twice. */
static void map(const uint8_t *data, size_t size, const struct sl_bulk_layout *l)
{
    static struct sl_bulk_rank ranks[SL_LIMIT_ranks];
    static uint8_t again[SL_BULK_RANKS_BYTES];
    struct sl_bulk_piece pieces[8];
    const struct sl_bulk_part mine = {0, l->n_layers, 0, l->n_heads};
    uint32_t n;
    if (sl_bulk_ranks_get(data, size, l, ranks, &n, NULL))
        return;
    if (sl_bulk_ranks_put(ranks, n, again) != size || memcmp(again, data, size) != 0)
        abort();
    uint32_t k = sl_bulk_cover(&mine, ranks, n, pieces, 8), cells = 0;
    for (uint32_t i = 0; i < k; i++)
        cells += pieces[i].part.n_layers * pieces[i].part.n_heads;
    if (k && cells != l->n_layers * l->n_heads)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t keys[N_PAGES][32] = {{0}, {1}, {2}, {3}};
    const struct sl_bulk_layout layout = {1, 16, N_LAYERS, 1, ROW};
    struct sl_bulk_ask ask = {.n_pages = N_PAGES, .part = {0, N_LAYERS, 0, 1}}, got;
    struct bulk_intake in;
    uint32_t n_rows[N_PAGES] = {0};
    struct sl_err err;
    if (!sl_bulk_intake_open(&in, &ask, keys))
        return 0;
    while (size >= BULK_HEADER_BYTES) {
        struct bulk_frame f;
        if (sl_bulk_frame_get(data, size, ROW, &f, &err))
            break;
        if (f.size > SL_BULK_RANKS_BYTES || f.page >= SL_LIMIT_bulk_pages ||
            f.layer >= SL_LIMIT_model_layers)
            abort();
        const uint8_t *payload = data + BULK_HEADER_BYTES;
        if (f.size > size - BULK_HEADER_BYTES)
            break;
        (void)sl_bulk_frame_proven(data, &f, 1, payload);
        if (f.kind == BULK_ASK && !sl_bulk_ask_get(payload, f.value, &layout, &got, &err) &&
            (got.first >= got.n_pages || got.n_pages > SL_LIMIT_bulk_pages ||
             !sl_bulk_part_fits(&got.part, &layout)))
            abort();
        if (f.kind == BULK_MAP)
            map(payload, f.size, &layout);
        take(&in, n_rows, &f, payload);
        data += BULK_HEADER_BYTES + f.size;
        size -= BULK_HEADER_BYTES + f.size;
    }
    for (uint32_t i = 0; i < in.n_complete; i++)
        if (n_rows[i] != N_LAYERS)
            abort();
    sl_bulk_intake_close(&in);
    return 0;
}
