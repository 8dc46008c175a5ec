/* Fuzz target: a word of rank 0: a head, then as much body as the head says. What is taken for a
 * plan or a transfer must be one that can be written again, to the same bytes. */
#include "plan_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void plan(const struct wire_head *h, const struct wire_limits *l, const uint32_t *body,
                 uint32_t *other, size_t n)
{
    struct wire_head again;
    struct sl_plan p;
    const struct wire_export *x;
    if (sl_wire_plan_get(h, l, body, &p, &x, NULL))
        return;
    size_t bytes = sl_wire_plan_put(&p, x, h->n_exports, &again, other);
    again.done = h->done;
    if (bytes != n || memcmp(h, &again, sizeof again) != 0 || memcmp(body, other, n) != 0)
        abort();
    for (uint32_t i = 0; i < h->n_exports; i++)
        if (x[i].seq >= p.n_seq ||
            x[i].n_pinned > p.page_start[x[i].seq + 1] - p.page_start[x[i].seq])
            abort();
}

static void transfer(const struct wire_head *h, const struct wire_limits *l, const uint32_t *body,
                     uint32_t *other, size_t n)
{
    struct wire_transfer t;
    if (sl_wire_transfer_get(h, l, body, &t, NULL))
        return;
    if (sl_wire_transfer_put(h, &t, other) != n || (n && memcmp(body, other, n) != 0))
        abort();
    for (uint32_t i = 0; t.pages && i < h->n_pages; i++)
        if (t.pages[i] >= l->n_pages)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct wire_limits limits = {.max_seqs = 4,
                                              .max_rows = 16,
                                              .max_len = 64,
                                              .n_vocab = 100,
                                              .n_pages = 20,
                                              .page_size = 4};
    struct wire_head h;
    size_t n;
    if (size < sizeof h)
        return 0;
    memcpy(&h, data, sizeof h);
    if (sl_wire_head_check(&h, &limits, &n, NULL))
        return 0;
    if (n > sl_wire_body_max(&limits))
        abort();
    if (n > size - sizeof h)
        return 0;
    uint32_t *body = malloc(n + 1), *other = malloc(sl_wire_body_max(&limits));
    if (!body || !other)
        abort();
    memcpy(body, data + sizeof h, n);
    if (h.kind == WIRE_PLAN)
        plan(&h, &limits, body, other, n);
    else if (h.kind >= WIRE_EXPORT)
        transfer(&h, &limits, body, other, n);
    free(body);
    free(other);
    return 0;
}
