/* Fuzz target: bytes of a batch of KV events. What decodes must encode again and decode the same;
 * memory stays capped. */
#include <sluice/transport/kv_events.h>

#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES ((size_t)8 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void again(const struct sl_kv_batch *b)
{
    struct sl_arena arena;
    struct sl_kv_batch got;
    struct sl_err err;
    for (int format = SL_KV_VLLM; format <= SL_KV_VLLM_ARRAY; format++) {
        struct sl_buf out = {0};
        sl_arena_init(&arena, 4 * ARENA_BYTES);
        if (sl_kv_batch_encode(b, (enum sl_kv_format)format, "CPU", &out, &err) == SL_OK &&
            (sl_kv_batch_decode(out.data, out.len, &arena, &got, &err) ||
             got.n_events != b->n_events || got.rank != b->rank))
            abort();
        sl_buf_free(&out);
        sl_arena_free(&arena);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_arena arena;
    struct sl_kv_batch b;
    struct sl_err err;
    sl_arena_init(&arena, ARENA_BYTES);
    enum sl_status status = sl_kv_batch_decode(data, size, &arena, &b, &err);
    if (status == SL_OK)
        again(&b);
    else if (status != SL_INVALID || !err.param[0])
        abort();
    if (arena.high_bytes > ARENA_BYTES)
        abort();
    sl_arena_free(&arena);
    return 0;
}
