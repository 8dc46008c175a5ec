/* A call of the gRPC door: accepted, checked, read, handed to the owner, answered.
 *
 * In the order of cheapness: room, method, key; only then is the message asked for, whose size the
 * core bounds. Compressed messages are refused: their size after inflation would not be bounded. */
#include "door.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "/inference.GRPCInferenceService/"
static const struct method methods[] = {
    {PREFIX "ModelInfer", METHOD_OWNERS, SL_GRPC_MODEL_INFER, false},
    {PREFIX "ModelReady", METHOD_OWNERS, SL_GRPC_MODEL_READY, false},
    {PREFIX "ModelMetadata", METHOD_OWNERS, SL_GRPC_MODEL_METADATA, false},
    {PREFIX "ServerMetadata", METHOD_OWNERS, SL_GRPC_SERVER_METADATA, false},
    {PREFIX "ServerLive", METHOD_OWNERS, SL_GRPC_SERVER_LIVE, true},
    {PREFIX "ServerReady", METHOD_OWNERS, SL_GRPC_SERVER_READY, true},
    {"/grpc.health.v1.Health/Check", METHOD_CHECK, 0, true},
    {"/grpc.health.v1.Health/Watch", METHOD_WATCH, 0, true},
};

/* --- life ------------------------------------------------------------------------------------- */

void call_ref(struct call *c)
{
    atomic_fetch_add(&c->refs, 1);
}

void call_unref(struct call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    atomic_fetch_sub(&c->door->n_calls, 1);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    if (c->received)
        grpc_byte_buffer_destroy(c->received);
    if (c->core)
        grpc_call_unref(c->core);
    sl_arena_free(&c->mem);
    free(c);
}

bool call_start(struct call *c, const grpc_op *ops, size_t n, struct tag *t)
{
    call_ref(c);
    if (grpc_call_start_batch(c->core, ops, n, t, NULL) == GRPC_CALL_OK)
        return true;
    call_unref(c);
    return false;
}

/* --- sending ---------------------------------------------------------------------------------- */

static void on_sent(struct call *c, bool ok)
{
    if (c->method && c->method->kind == METHOD_WATCH)
        health_sent(c, ok);
}

/* The core copies the status text and takes the message's slices as the batch starts. */
static bool send_batch(struct call *c, const struct sl_str *message, const int *status,
                       const char *text)
{
    grpc_op ops[3] = {0};
    size_t n = 0;
    grpc_byte_buffer *buffer = NULL;
    grpc_slice details = grpc_slice_from_copied_string(text);
    if (!c->said_head)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message) {
        grpc_slice bytes = grpc_slice_from_copied_buffer(message->data, message->len);
        buffer = grpc_raw_byte_buffer_create(&bytes, 1);
        grpc_slice_unref(bytes);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = buffer;
    }
    if (status) {
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = (grpc_status_code)*status;
        ops[n++].data.send_status_from_server.status_details = *text ? &details : NULL;
    }
    c->said_head = true;
    bool started = call_start(c, ops, n, &c->on_sent);
    if (buffer)
        grpc_byte_buffer_destroy(buffer);
    grpc_slice_unref(details);
    return started;
}

bool call_send(struct call *c, const struct sl_str *message)
{
    return send_batch(c, message, NULL, "");
}

void call_end(struct call *c, const struct sl_str *message, int grpc_status, const char *text)
{
    send_batch(c, message, &grpc_status, text);
}

void call_fail(struct call *c, const struct sl_err *err)
{
    call_end(c, NULL, sl_status_row(err->status)->grpc, err->msg);
}

/* --- the owner's side ------------------------------------------------------------------------- */

bool call_cancelled(const struct sl_grpc_call *call)
{
    return atomic_load(&((const struct call *)(const void *)call)->cancelled);
}

void call_release(struct sl_grpc_call *call)
{
    call_unref((struct call *)(void *)call);
}

void call_answer(struct sl_grpc_call *call, const struct sl_grpc_answer *a)
{
    struct call *c = (struct call *)(void *)call;
    const struct sl_grpc_request *q = &call->request;
    struct sl_str bytes;
    if (a->status)
        call_end(c, NULL, sl_status_row(a->status)->grpc, a->message);
    else if (grpc_encode(q->method, q->is_raw, a, &c->mem, &bytes))
        call_end(c, &bytes, GRPC_STATUS_OK, "");
    else
        call_end(c, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for the answer");
    call_unref(c);
}

/* The second notify, of a call that is cancelled, may come at any time after the first. */
static void notify(struct call *c)
{
    struct sl_grpc_door *d = c->door;
    pthread_mutex_lock(&d->mutex);
    bool stopping = d->stopping;
    if (!stopping) {
        call_ref(c);
        c->notified = true;
        d->cfg.notify(d->cfg.ctx, &c->pub);
    }
    pthread_mutex_unlock(&d->mutex);
    if (stopping && !c->notified)
        call_end(c, NULL, GRPC_STATUS_UNAVAILABLE, "the server is shutting down");
}

/* --- receiving -------------------------------------------------------------------------------- */

static uint64_t deadline_ms(const struct call *c)
{
    gpr_timespec end = gpr_convert_clock_type(c->details.deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(end, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0)
        return 0;
    int32_t ms = gpr_time_to_millis(gpr_time_sub(end, gpr_now(GPR_CLOCK_MONOTONIC)));
    return ms > 0 ? (uint64_t)ms : 1;
}

static void dispatch(struct call *c, const void *data, size_t size)
{
    struct sl_err err;
    struct sl_str service;
    if (c->method->kind == METHOD_OWNERS) {
        if (grpc_decode(c->method->number, data, size, &c->mem, &c->pub.request, &err)) {
            call_fail(c, &err);
            return;
        }
        c->pub.request.deadline_ms = deadline_ms(c);
        notify(c);
        return;
    }
    if (grpc_decode_health(data, size, &c->mem, &service, &err))
        call_fail(c, &err);
    else if (c->method->kind == METHOD_CHECK)
        health_check(c, service);
    else
        health_watch(c, service);
}

/* Without success the core has ended the call itself: cancelled, or the message was too large. */
static void on_message(struct call *c, bool ok)
{
    grpc_byte_buffer_reader reader;
    if (!ok || atomic_load(&c->cancelled))
        return;
    if (!c->received) {
        call_end(c, NULL, GRPC_STATUS_INVALID_ARGUMENT, "the request has no message");
        return;
    }
    if (c->received->data.raw.compression != GRPC_COMPRESS_NONE) {
        call_end(c, NULL, GRPC_STATUS_UNIMPLEMENTED, "compressed messages are not supported");
        return;
    }
    if (!grpc_byte_buffer_reader_init(&reader, c->received)) {
        call_end(c, NULL, GRPC_STATUS_INTERNAL, "the message cannot be read");
        return;
    }
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    dispatch(c, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
    grpc_slice_unref(all);
}

/* Comes once for every call, at its end. */
static void on_closed(struct call *c, bool ok)
{
    (void)ok; /* always */
    if (c->close_cancelled) {
        atomic_store(&c->cancelled, true);
        if (c->notified)
            notify(c);
    }
    if (c->method && c->method->kind == METHOD_WATCH)
        health_closed(c);
}

static const struct method *find_method(const struct call *c)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (grpc_slice_str_cmp(c->details.method, methods[i].path) == 0)
            return &methods[i];
    return NULL;
}

static struct sl_str authorization(const struct call *c)
{
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, "authorization") == 0)
            return (struct sl_str){(const char *)GRPC_SLICE_START_PTR(m->value),
                                   GRPC_SLICE_LENGTH(m->value)};
    }
    return (struct sl_str){"", 0};
}

struct call *call_new(struct sl_grpc_door *d)
{
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->door = d;
    c->on_message = (struct tag){on_message, c};
    c->on_closed = (struct tag){on_closed, c};
    c->on_sent = (struct tag){on_sent, c};
    atomic_init(&c->refs, 1);
    atomic_init(&c->cancelled, false);
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    sl_arena_init(&c->mem, GRPC_CALL_MEM_MAX);
    atomic_fetch_add(&d->n_calls, 1);
    return c;
}

void call_begin(struct call *c)
{
    struct sl_grpc_door *d = c->door;
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &c->close_cancelled;
    if (!call_start(c, &op, 1, &c->on_closed))
        return;
    c->method = find_method(c);
    bool open = c->method && c->method->open;
    if (!open && !d->cfg.allow(d->cfg.ctx, authorization(c))) {
        call_end(c, NULL, GRPC_STATUS_UNAUTHENTICATED, "a valid API key is required");
    } else if (!c->method) {
        call_end(c, NULL, GRPC_STATUS_UNIMPLEMENTED, "the method is not implemented");
    } else if (atomic_load(&d->n_calls) > SL_LIMIT_inflight_requests) {
        call_end(c, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many calls are in flight");
    } else {
        op = (grpc_op){.op = GRPC_OP_RECV_MESSAGE};
        op.data.recv_message.recv_message = &c->received;
        call_start(c, &op, 1, &c->on_message);
    }
}
