/* Fuzz target: bytes of a bus message. What decodes must encode again; memory stays capped. */
#include <sluice/transport/bus.h>

#include <stdlib.h>

#define ARENA_BYTES ((size_t)8 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_arena arena;
    struct sl_msg m;
    struct sl_err err;
    struct sl_buf again = {0};
    sl_arena_init(&arena, ARENA_BYTES);
    enum sl_status status = sl_msg_decode(data, size, &arena, &m, &err);
    if (status == SL_OK && sl_msg_encode(&m, &again, &err) != SL_OK)
        abort();
    if (status != SL_OK && (status != SL_INVALID || !err.param[0]))
        abort();
    if (arena.high_bytes > ARENA_BYTES)
        abort();
    sl_buf_free(&again);
    sl_arena_free(&arena);
    return 0;
}
