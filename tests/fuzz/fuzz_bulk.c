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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t keys[N_PAGES][32] = {{0}, {1}, {2}, {3}};
    const struct sl_bulk_layout layout = {1, 16, N_LAYERS, ROW};
    struct sl_bulk_ask ask = {.n_pages = N_PAGES}, got;
    struct bulk_intake in;
    uint32_t n_rows[N_PAGES] = {0};
    struct sl_err err;
    if (!sl_bulk_intake_open(&in, &ask, keys, N_LAYERS))
        return 0;
    while (size >= BULK_HEADER_BYTES) {
        struct bulk_frame f;
        if (sl_bulk_frame_get(data, size, ROW, &f, &err))
            break;
        if (f.size > 56 || f.page >= SL_LIMIT_bulk_pages || f.layer >= SL_LIMIT_model_layers)
            abort();
        const uint8_t *payload = data + BULK_HEADER_BYTES;
        if (f.size > size - BULK_HEADER_BYTES)
            break;
        (void)sl_bulk_frame_proven(data, &f, 1, payload);
        if (f.kind == BULK_ASK && !sl_bulk_ask_get(payload, f.value, &layout, &got, &err) &&
            (got.first >= got.n_pages || got.n_pages > SL_LIMIT_bulk_pages))
            abort();
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
