/* Fuzz target: a plan as it comes from rank 0: a head, then as much body as the head says. What is
 * taken for a plan must be one that can be written again, to the same bytes. */
#include "plan_wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct wire_limits limits = {.max_seqs = 4,
                                              .max_rows = 16,
                                              .max_len = 64,
                                              .n_vocab = 100,
                                              .n_pages = 20,
                                              .page_size = 4};
    struct wire_head h, again;
    struct sl_plan p;
    size_t n;
    if (size < sizeof h)
        return 0;
    memcpy(&h, data, sizeof h);
    if (sl_wire_head_check(&h, &limits, &n, NULL) || h.kind != WIRE_PLAN)
        return 0;
    if (n > sl_wire_body_max(&limits))
        abort();
    if (n > size - sizeof h)
        return 0;
    uint32_t *body = malloc(n), *other = malloc(sl_wire_body_max(&limits));
    if (!body || !other)
        abort();
    memcpy(body, data + sizeof h, n);
    if (!sl_wire_plan_get(&h, &limits, body, &p, NULL) &&
        (sl_wire_plan_put(&p, &again, other) != n || memcmp(&h, &again, sizeof h) != 0 ||
         memcmp(body, other, n) != 0))
        abort();
    free(body);
    free(other);
    return 0;
}
