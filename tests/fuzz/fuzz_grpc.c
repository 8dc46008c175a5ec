/* Fuzz target: a gRPC request's message. Memory stays capped, and what decodes points inside it. */
#include "grpc/messages.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t sum_of(struct sl_str s)
{
    size_t sum = 0;
    for (size_t i = 0; i < s.len; i++)
        sum += (uint8_t)s.data[i];
    return sum;
}

/* Touches every byte a caller may. */
static size_t read_all(const struct sl_grpc_request *q)
{
    size_t sum = sum_of(q->model) + sum_of(q->version) + sum_of(q->id);
    for (size_t i = 0; i < q->n_params; i++)
        sum += sum_of(q->params[i].name) +
               (q->params[i].kind == SL_GRPC_TEXT ? sum_of(q->params[i].s) : 0);
    for (size_t i = 0; i < q->n_inputs; i++) {
        const struct sl_grpc_tensor *t = &q->inputs[i];
        sum += sum_of(t->name) + sum_of(t->datatype);
        for (size_t k = 0; k < t->n_shape; k++)
            sum += (size_t)t->shape[k];
        for (size_t k = 0; k < t->n_bytes; k++)
            sum += sum_of(t->bytes[k]);
    }
    for (size_t i = 0; i < q->n_outputs; i++)
        sum += sum_of(q->outputs[i].name);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_arena mem;
    struct sl_err err;
    struct sl_str service;
    volatile size_t sum = 0;
    sl_arena_init(&mem, GRPC_CALL_MEM_MAX);
    for (int m = SL_GRPC_SERVER_LIVE; m <= SL_GRPC_MODEL_INFER; m++) {
        struct sl_grpc_request q = {0};
        enum sl_status s = grpc_decode((enum sl_grpc_method)m, data, size, &mem, &q, &err);
        if (s == SL_OK)
            sum = sum + read_all(&q);
        else if ((s != SL_INVALID && s != SL_TOO_LARGE) || !err.msg[0])
            abort();
    }
    if (grpc_decode_health(data, size, &mem, &service, &err) == SL_OK)
        sum = sum + sum_of(service);
    if (mem.high_bytes > GRPC_CALL_MEM_MAX)
        abort();
    sl_arena_free(&mem);
    return 0;
}
