/* Bus messages to bytes and back, with protobuf-c over a capped arena.
 *
 * The size is bounded before parsing; everything the parser takes comes out of the arena, whose cap
 * bounds what a few bytes can claim; then the message is range-checked as a whole. Wire format:
 * the Protocol Buffers encoding page (protobuf.dev). */
#include "codec.h"

#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/base/mutant.h>
#include <sluice/transport/bus.h>

#include "bus.pb-c.h"

#include <stdalign.h>
#include <string.h>

/* Scratch of one encode: the most that 4096 streams need. */
#define ENCODE_SCRATCH_BYTES ((size_t)2 << 20)

#define HELLO_NUMBERS(X)                                                                           \
    X(version)                                                                                     \
    X(pid)                                                                                         \
    X(rank)                                                                                        \
    X(tp)                                                                                          \
    X(pp)                                                                                          \
    X(threads)                                                                                     \
    X(max_seqs)                                                                                    \
    X(max_len)                                                                                     \
    X(max_batch_tokens) X(n_vocab) X(page_size) X(queue_max) X(weight_bytes) X(meta_bytes)         \
        X(version_min) X(instance) X(greeting) X(kv_layout)
#define HELLO_TEXTS(X)                                                                             \
    X(model)                                                                                       \
    X(site)                                                                                        \
    X(role)                                                                                        \
    X(isa)                                                                                         \
    X(backend)                                                                                     \
    X(class_name) X(kv_address) X(events_endpoint) X(events_replay) X(events_topic) X(events_key)
#define LOAD_NUMBERS(X)                                                                            \
    X(running)                                                                                     \
    X(waiting)                                                                                     \
    X(pages_free)                                                                                  \
    X(pages_total)                                                                                 \
    X(steps)                                                                                       \
    X(prefill_tokens)                                                                              \
    X(decode_tokens)                                                                               \
    X(preempted)                                                                                   \
    X(prefix_queries)                                                                              \
    X(prefix_hits) X(last_step_age_ms) X(op_calls) X(step_expected_ms) X(kv_pages_sent)            \
        X(kv_pages_received) X(kv_bytes_sent) X(kv_bad) X(kv_fallbacks) X(max_seqs) X(busy_ns)     \
            X(pending_tokens) X(kv_batches)
#define RANK_NUMBERS(X)                                                                            \
    X(rank)                                                                                        \
    X(pid) X(threads) X(weight_bytes) X(kv_bytes) X(comm_bytes) X(steps) X(op_calls)
#define SUBMIT_NUMBERS(X)                                                                          \
    X(id)                                                                                          \
    X(epoch)                                                                                       \
    X(n_prompt)                                                                                    \
    X(choice)                                                                                      \
    X(priority)                                                                                    \
    X(tenant)                                                                                      \
    X(seed)                                                                                        \
    X(deadline_ms)                                                                                 \
    X(temperature)                                                                                 \
    X(top_p) X(min_p) X(typical_p) X(presence_penalty) X(frequency_penalty) X(repetition_penalty)  \
        X(top_k) X(n_logprobs) X(min_tokens) X(max_tokens) X(kv_ticket) X(hops)
#define SUBMIT_BOOLS(X) X(want_logprob) X(ignore_eos) X(no_prefix_cache) X(prefill_only)
#define OUT_NUMBERS(X)  X(id) X(epoch) X(n_top) X(end) X(status) X(n_cached) X(ordinal)

/* ---- bytes to message ---- */

struct decoder {
    ProtobufCAllocator alloc;
    struct sl_arena *arena;
    struct sl_err *err;
    bool full;     /* the arena's cap was reached */
    bool greeting; /* HELLO or WELCOME: a newer peer may say more than we know */
};

static void *decoder_alloc(void *data, size_t size)
{
    struct decoder *d = data;
    void *p = sl_arena_alloc(d->arena, size ? size : 1, alignof(max_align_t));
    if (!p)
        d->full = true;
    return p;
}

static void decoder_free(void *data, void *pointer)
{
    (void)data; /* the arena is reset as a whole */
    (void)pointer;
}

static enum sl_status refuse(struct decoder *d, const char *field, const char *why)
{
    return sl_fail_param(d->err, SL_INVALID, field, "bus: %s %s", field, why);
}

static enum sl_status refuse_memory(struct decoder *d)
{
    return refuse(d, "size", "of the decoded message exceeds the arena's cap");
}

static struct sl_str str_of(ProtobufCBinaryData b)
{
    return (struct sl_str){(const char *)b.data, b.len};
}

static enum sl_status hash_of(struct decoder *d, const char *field, ProtobufCBinaryData b,
                              uint8_t out[32])
{
    if (b.len != 32)
        return refuse(d, field, "is not 32 bytes long");
    memcpy(out, b.data, 32);
    return SL_OK;
}

/* The key that goes with a bulk channel's address, and never without one. */
static enum sl_status kv_key_of(struct decoder *d, const char *field, struct sl_str address,
                                ProtobufCBinaryData b, uint8_t out[32])
{
    if (address.len)
        return hash_of(d, field, b, out);
    return b.len ? refuse(d, field, "comes without an address") : SL_OK;
}

/* Arrays of the wire have size_t counts; ours are 32 bits wide. */
static enum sl_status count_of(struct decoder *d, const char *field, size_t n, uint32_t *out)
{
    if (n > SL_BUS_TOKENS_MAX)
        return refuse(d, field, "has too many elements");
    *out = (uint32_t)n;
    return SL_OK;
}

static enum sl_status known(struct decoder *d, const char *field, const ProtobufCMessage *m)
{
    return m->n_unknown_fields && !d->greeting ? refuse(d, field, "has an unknown field") : SL_OK;
}

static enum sl_status load_of(struct decoder *d, const Sluice__Bus__Load *w,
                              struct sl_msg_load *out)
{
    if (!w)
        return refuse(d, "load", "is missing");
#define X(f) out->f = w->f;
    LOAD_NUMBERS(X)
#undef X
    out->reforming = w->reforming != 0;
    return known(d, "load", &w->base);
}

static enum sl_status hello_of(struct decoder *d, const Sluice__Bus__Hello *w,
                               struct sl_msg_hello *out)
{
#define X(f) out->f = w->f;
    HELLO_NUMBERS(X)
#undef X
#define X(f) out->f = str_of(w->f);
    HELLO_TEXTS(X)
#undef X
    enum sl_status s = hash_of(d, "hello.meta_sha256", w->meta_sha256, out->meta_sha256);
    if (s == SL_OK)
        s = kv_key_of(d, "hello.kv_key", out->kv_address, w->kv_key, out->kv_key);
    return s == SL_OK ? load_of(d, w->load, &out->load) : s;
}

static enum sl_status welcome_of(struct decoder *d, const Sluice__Bus__Welcome *w,
                                 struct sl_msg_welcome *out)
{
    out->version = w->version;
    out->status = w->status;
    out->message = str_of(w->message);
    return known(d, "welcome", &w->base);
}

static enum sl_status bias_of(struct decoder *d, const Sluice__Bus__Submit *w,
                              struct sl_msg_submit *out)
{
    if (w->n_bias_tokens != w->n_bias_values)
        return refuse(d, "submit.bias", "has arrays of unequal length");
    if (w->n_bias_tokens > SL_LIMIT_logit_bias)
        return refuse(d, "submit.bias", "has too many elements");
    struct sl_msg_bias *bias = SL_ARENA_ARRAY(d->arena, struct sl_msg_bias, w->n_bias_tokens + 1);
    if (!bias)
        return refuse_memory(d);
    for (size_t i = 0; i < w->n_bias_tokens; i++)
        bias[i] = (struct sl_msg_bias){w->bias_tokens[i], w->bias_values[i]};
    out->bias = bias;
    out->n_bias = (uint32_t)w->n_bias_tokens;
    return SL_OK;
}

static enum sl_status submit_of(struct decoder *d, const Sluice__Bus__Submit *w,
                                struct sl_msg_submit *out)
{
#define X(f) out->f = w->f;
    SUBMIT_NUMBERS(X)
#undef X
#define X(f) out->f = w->f != 0;
    SUBMIT_BOOLS(X)
#undef X
    out->tokens = w->tokens;
    out->stop_ids = w->stop_ids;
    enum sl_status s = known(d, "submit", &w->base);
    if (s == SL_OK)
        s = count_of(d, "submit.tokens", w->n_tokens, &out->n_tokens);
    if (s == SL_OK)
        s = count_of(d, "submit.stop_ids", w->n_stop_ids, &out->n_stop_ids);
    if (s == SL_OK)
        s = hash_of(d, "submit.salt", w->salt, out->salt);
    out->kv_address = str_of(w->kv_address);
    if (s == SL_OK)
        s = kv_key_of(d, "submit.kv_key", out->kv_address, w->kv_key, out->kv_key);
    return s == SL_OK ? bias_of(d, w, out) : s;
}

static enum sl_status out_of(struct decoder *d, const Sluice__Bus__Out *w, struct sl_msg_out *out)
{
#define X(f) out->f = w->f;
    OUT_NUMBERS(X)
#undef X
    out->message = str_of(w->message);
    out->tokens = w->tokens;
    out->logprobs = w->n_logprobs ? w->logprobs : NULL;
    out->top_tokens = w->top_tokens;
    out->top_logprobs = w->top_logprobs;
    enum sl_status s = known(d, "out", &w->base);
    if (s == SL_OK)
        s = count_of(d, "out.tokens", w->n_tokens, &out->n_tokens);
    if (s != SL_OK)
        return s;
    if (w->n_logprobs != 0 && w->n_logprobs != w->n_tokens)
        return refuse(d, "out.logprobs", "has another length than the tokens");
    uint64_t n_top = (uint64_t)out->n_tokens * out->n_top;
    if (w->n_top_tokens != n_top || w->n_top_logprobs != n_top)
        return refuse(d, "out.top_tokens", "has another length than n_top times the tokens");
    return SL_OK;
}

static enum sl_status step_of(struct decoder *d, const Sluice__Bus__Step *w,
                              struct sl_msg_step *out)
{
    out->step = w->step;
    if (w->n_outs > SL_LIMIT_inflight_requests)
        return refuse(d, "step.outs", "has too many elements");
    struct sl_msg_out *outs = SL_ARENA_ARRAY(d->arena, struct sl_msg_out, w->n_outs + 1);
    if (!outs)
        return refuse_memory(d);
    enum sl_status s = known(d, "step", &w->base);
    for (size_t i = 0; i < w->n_outs && s == SL_OK; i++)
        s = out_of(d, w->outs[i], &outs[i]);
    out->outs = outs;
    out->n_outs = (uint32_t)w->n_outs;
    return s == SL_OK ? load_of(d, w->load, &out->load) : s;
}

static enum sl_status kernels_of(struct decoder *d, const Sluice__Bus__Rank *w,
                                 struct sl_msg_rank *out)
{
    enum sl_status s = known(d, "rank", &w->base);
    if (s == SL_OK && w->n_kernels > SL_LIMIT_kernels)
        return refuse(d, "rank.kernels", "has too many elements");
    struct sl_msg_kernel *kernels =
        SL_ARENA_ARRAY(d->arena, struct sl_msg_kernel, w->n_kernels + 1);
    if (!kernels)
        return refuse_memory(d);
    for (size_t i = 0; i < w->n_kernels && s == SL_OK; i++) {
        const Sluice__Bus__Kernel *k = w->kernels[i];
        kernels[i] = (struct sl_msg_kernel){str_of(k->name), k->launches};
        s = known(d, "kernel", &k->base);
    }
    out->kernels = kernels;
    out->n_kernels = (uint32_t)w->n_kernels;
    return s;
}

static enum sl_status ranks_of(struct decoder *d, const Sluice__Bus__Ranks *w,
                               struct sl_msg_ranks *out)
{
    enum sl_status s = known(d, "ranks", &w->base);
    if (s == SL_OK && w->n_ranks > SL_LIMIT_ranks)
        return refuse(d, "ranks", "has too many elements");
    struct sl_msg_rank *ranks = SL_ARENA_ARRAY(d->arena, struct sl_msg_rank, w->n_ranks + 1);
    if (!ranks)
        return refuse_memory(d);
    for (size_t i = 0; i < w->n_ranks && s == SL_OK; i++) {
#define X(f) ranks[i].f = w->ranks[i]->f;
        RANK_NUMBERS(X)
#undef X
        ranks[i].isa = str_of(w->ranks[i]->isa);
        s = kernels_of(d, w->ranks[i], &ranks[i]);
    }
    out->ranks = ranks;
    out->n_ranks = (uint32_t)w->n_ranks;
    out->tp = w->tp;
    out->pp = w->pp;
    return s;
}

static enum sl_status meta_of(struct decoder *d, const Sluice__Bus__Meta *w,
                              struct sl_msg_meta *out)
{
    out->offset = w->offset;
    out->bytes = str_of(w->bytes);
    enum sl_status s = known(d, "meta", &w->base);
    return s == SL_OK ? hash_of(d, "meta.sha256", w->sha256, out->sha256) : s;
}

static enum sl_status cancel_of(struct decoder *d, const Sluice__Bus__Cancel *w,
                                struct sl_msg_cancel *out)
{
    out->id = w->id;
    out->epoch = w->epoch;
    return known(d, "cancel", &w->base);
}

static enum sl_status body_of(struct decoder *d, const Sluice__Bus__Envelope *e, struct sl_msg *out)
{
    switch (e->body_case) {
    case SLUICE__BUS__ENVELOPE__BODY_HELLO:
        out->kind = SL_MSG_HELLO;
        return hello_of(d, e->hello, &out->hello);
    case SLUICE__BUS__ENVELOPE__BODY_WELCOME:
        out->kind = SL_MSG_WELCOME;
        return welcome_of(d, e->welcome, &out->welcome);
    case SLUICE__BUS__ENVELOPE__BODY_SUBMIT:
        out->kind = SL_MSG_SUBMIT;
        return submit_of(d, e->submit, &out->submit);
    case SLUICE__BUS__ENVELOPE__BODY_CANCEL:
        out->kind = SL_MSG_CANCEL;
        return cancel_of(d, e->cancel, &out->cancel);
    case SLUICE__BUS__ENVELOPE__BODY_STEP:
        out->kind = SL_MSG_STEP;
        return step_of(d, e->step, &out->step);
    case SLUICE__BUS__ENVELOPE__BODY_META_GET:
        out->kind = SL_MSG_META_GET;
        return meta_of(d, e->meta_get, &out->meta);
    case SLUICE__BUS__ENVELOPE__BODY_META_CHUNK:
        out->kind = SL_MSG_META_CHUNK;
        return meta_of(d, e->meta_chunk, &out->meta);
    case SLUICE__BUS__ENVELOPE__BODY_LOAD:
        out->kind = SL_MSG_LOAD;
        return load_of(d, e->load, &out->load);
    case SLUICE__BUS__ENVELOPE__BODY_PING:
        out->kind = SL_MSG_PING;
        return known(d, "ping", &e->ping->base);
    case SLUICE__BUS__ENVELOPE__BODY_DRAIN:
        out->kind = SL_MSG_DRAIN;
        return known(d, "drain", &e->drain->base);
    case SLUICE__BUS__ENVELOPE__BODY_BYE:
        out->kind = SL_MSG_BYE;
        return known(d, "bye", &e->bye->base);
    case SLUICE__BUS__ENVELOPE__BODY_RANKS:
        out->kind = SL_MSG_RANKS;
        return ranks_of(d, e->ranks, &out->ranks);
    default:
        return refuse(d, "kind", "is unknown");
    }
}

/* The check is the last field: two bytes of field number and type, eight of XXH3 in wire order. */
#define CHECK_BYTES 10

static const uint8_t check_key[2] = {(29 << 3 & 0x7f) | 0x80 | 1, 29 >> 4};

static void write_check(uint8_t at[CHECK_BYTES], const void *data, size_t size)
{
    uint64_t sum = sl_hash64(data, size, 0);
    memcpy(at, check_key, sizeof check_key);
    for (size_t i = 0; i < 8; i++)
        at[2 + i] = (uint8_t)(sum >> 8 * i);
}

static bool check_fits(const Sluice__Bus__Envelope *e, const uint8_t *data, size_t size)
{
    uint8_t right[CHECK_BYTES];
    if (!e->check || SL_MUTANT(FRAME_UNCHECKED))
        return true;
    if (size < CHECK_BYTES)
        return false;
    write_check(right, data, size - CHECK_BYTES);
    return !memcmp(right, data + size - CHECK_BYTES, CHECK_BYTES);
}

enum sl_status sl_msg_decode(const void *data, size_t size, struct sl_arena *arena,
                             struct sl_msg *out, struct sl_err *err)
{
    return sl_msg_decode_as(data, size, SL_BUS_VERSION, arena, out, err);
}

enum sl_status sl_msg_decode_as(const void *data, size_t size, uint32_t version,
                                struct sl_arena *arena, struct sl_msg *out, struct sl_err *err)
{
    struct decoder d = {
        .alloc = {.alloc = decoder_alloc, .free = decoder_free}, .arena = arena, .err = err};
    d.alloc.allocator_data = &d;
    memset(out, 0, sizeof *out);
    if (size == 0 || size > SL_LIMIT_bus_message_bytes)
        return sl_fail_param(err, SL_INVALID, "size", "bus: message of %zu bytes, at most %d", size,
                             SL_LIMIT_bus_message_bytes);
    Sluice__Bus__Envelope *e = sluice__bus__envelope__unpack(&d.alloc, size, data);
    if (!e && d.full)
        return refuse_memory(&d);
    if (!e)
        return refuse(&d, "message", "is not in the bus's format");
    if (!check_fits(e, data, size))
        return refuse(&d, "check", "does not fit the bytes before it");
    if (!e->check && !sl_wire_is_old(&e->base))
        return refuse(&d, "check", "is missing");
    d.greeting = e->check && version > 1 &&
                 (e->body_case == SLUICE__BUS__ENVELOPE__BODY_HELLO ||
                  e->body_case == SLUICE__BUS__ENVELOPE__BODY_WELCOME);
    if (version < 2 && !sl_wire_is_old(&e->base))
        return refuse(&d, "message", "has an unknown field");
    enum sl_status s = known(&d, "message", &e->base);
    if (s == SL_OK)
        s = body_of(&d, e, out);
    out->tag = e->tag;
    out->seq = e->seq;
    if (s == SL_OK)
        s = sl_msg_check(out, err);
    if (s != SL_OK)
        memset(out, 0, sizeof *out); /* nothing half-checked leaves */
    return s;
}

/* ---- message to bytes ---- */

static ProtobufCBinaryData bin_of(struct sl_str s)
{
    return (ProtobufCBinaryData){.len = s.len, .data = (uint8_t *)s.data};
}

static ProtobufCBinaryData bin_hash(const uint8_t hash[32])
{
    return (ProtobufCBinaryData){.len = 32, .data = (uint8_t *)hash};
}

/* A protobuf-c buffer that appends to ours. */
struct sink {
    ProtobufCBuffer base;
    struct sl_buf *out;
};

static void sink_append(ProtobufCBuffer *b, size_t len, const uint8_t *data)
{
    sl_buf_append(((struct sink *)(void *)b)->out, data, len);
}

static enum sl_status pack(Sluice__Bus__Envelope *e, uint32_t version, struct sl_buf *out,
                           struct sl_err *err)
{
    bool checked = version > 1;
    if (!checked && !sl_wire_strip(&e->base))
        return sl_fail(err, SL_UNSUPPORTED, "bus: the peer's version %u has no such message",
                       version);
    size_t size = sluice__bus__envelope__get_packed_size(e) + (checked ? CHECK_BYTES : 0);
    if (size > SL_LIMIT_bus_message_bytes)
        return sl_fail(err, SL_TOO_LARGE, "bus: message of %zu bytes, at most %d", size,
                       SL_LIMIT_bus_message_bytes);
    struct sink sink = {.base = {.append = sink_append}, .out = out};
    uint8_t check[CHECK_BYTES];
    size_t at = out->len;
    sluice__bus__envelope__pack_to_buffer(e, &sink.base);
    if (!out->failed && checked)
        write_check(check, out->data + at, out->len - at);
    if (!out->failed && checked)
        sl_buf_append(out, check, sizeof check);
    return out->failed
               ? sl_fail(err, SL_NO_MEMORY, "bus: no memory for a message of %zu bytes", size)
               : SL_OK;
}

static void put_load(Sluice__Bus__Load *w, const struct sl_msg_load *l)
{
    sluice__bus__load__init(w);
#define X(f) w->f = l->f;
    LOAD_NUMBERS(X)
#undef X
    w->reforming = l->reforming;
}

static void put_hello(Sluice__Bus__Hello *w, Sluice__Bus__Load *load, const struct sl_msg_hello *h)
{
    sluice__bus__hello__init(w);
#define X(f) w->f = h->f;
    HELLO_NUMBERS(X)
#undef X
#define X(f) w->f = bin_of(h->f);
    HELLO_TEXTS(X)
#undef X
    w->meta_sha256 = bin_hash(h->meta_sha256);
    if (h->kv_address.len)
        w->kv_key = bin_hash(h->kv_key);
    put_load(load, &h->load);
    w->load = load;
}

static void put_welcome(Sluice__Bus__Welcome *w, const struct sl_msg_welcome *m)
{
    sluice__bus__welcome__init(w);
    w->version = m->version;
    w->status = m->status;
    w->message = bin_of(m->message);
}

static bool put_submit(Sluice__Bus__Submit *w, const struct sl_msg_submit *m,
                       struct sl_arena *scratch)
{
    uint32_t *tokens = SL_ARENA_ARRAY(scratch, uint32_t, m->n_bias + 1u);
    float *values = SL_ARENA_ARRAY(scratch, float, m->n_bias + 1u);
    if (!tokens || !values)
        return false;
    for (uint32_t i = 0; i < m->n_bias; i++) {
        tokens[i] = m->bias[i].token;
        values[i] = m->bias[i].bias;
    }
    sluice__bus__submit__init(w);
#define X(f) w->f = m->f;
    SUBMIT_NUMBERS(X)
    SUBMIT_BOOLS(X)
#undef X
    w->tokens = (uint32_t *)m->tokens;
    w->n_tokens = m->n_tokens;
    w->salt = bin_hash(m->salt);
    w->kv_address = bin_of(m->kv_address);
    if (m->kv_address.len)
        w->kv_key = bin_hash(m->kv_key);
    w->bias_tokens = tokens;
    w->bias_values = values;
    w->n_bias_tokens = w->n_bias_values = m->n_bias;
    w->stop_ids = (uint32_t *)m->stop_ids;
    w->n_stop_ids = m->n_stop_ids;
    return true;
}

static void put_out(Sluice__Bus__Out *w, const struct sl_msg_out *m)
{
    size_t n_top = (size_t)m->n_tokens * m->n_top;
    sluice__bus__out__init(w);
#define X(f) w->f = m->f;
    OUT_NUMBERS(X)
#undef X
    w->message = bin_of(m->message);
    w->tokens = (uint32_t *)m->tokens;
    w->n_tokens = m->n_tokens;
    w->logprobs = (float *)m->logprobs;
    w->n_logprobs = m->logprobs ? m->n_tokens : 0;
    w->top_tokens = (uint32_t *)m->top_tokens;
    w->top_logprobs = (float *)m->top_logprobs;
    w->n_top_tokens = w->n_top_logprobs = n_top;
}

static bool put_step(Sluice__Bus__Step *w, Sluice__Bus__Load *load, const struct sl_msg_step *m,
                     struct sl_arena *scratch)
{
    Sluice__Bus__Out *outs = SL_ARENA_ARRAY(scratch, Sluice__Bus__Out, m->n_outs + 1u);
    Sluice__Bus__Out **list = SL_ARENA_ARRAY(scratch, Sluice__Bus__Out *, m->n_outs + 1u);
    if (!outs || !list)
        return false;
    for (uint32_t i = 0; i < m->n_outs; i++) {
        put_out(&outs[i], &m->outs[i]);
        list[i] = &outs[i];
    }
    sluice__bus__step__init(w);
    w->step = m->step;
    w->outs = list;
    w->n_outs = m->n_outs;
    put_load(load, &m->load);
    w->load = load;
    return true;
}

static bool put_kernels(Sluice__Bus__Rank *w, const struct sl_msg_rank *m, struct sl_arena *scratch)
{
    Sluice__Bus__Kernel *kernels = SL_ARENA_ARRAY(scratch, Sluice__Bus__Kernel, m->n_kernels + 1u);
    Sluice__Bus__Kernel **list = SL_ARENA_ARRAY(scratch, Sluice__Bus__Kernel *, m->n_kernels + 1u);
    if (!kernels || !list)
        return false;
    for (uint32_t i = 0; i < m->n_kernels; i++) {
        sluice__bus__kernel__init(&kernels[i]);
        kernels[i].name = bin_of(m->kernels[i].name);
        kernels[i].launches = m->kernels[i].launches;
        list[i] = &kernels[i];
    }
    w->kernels = list;
    w->n_kernels = m->n_kernels;
    return true;
}

static bool put_ranks(Sluice__Bus__Ranks *w, const struct sl_msg_ranks *m, struct sl_arena *scratch)
{
    Sluice__Bus__Rank *ranks = SL_ARENA_ARRAY(scratch, Sluice__Bus__Rank, m->n_ranks + 1u);
    Sluice__Bus__Rank **list = SL_ARENA_ARRAY(scratch, Sluice__Bus__Rank *, m->n_ranks + 1u);
    if (!ranks || !list)
        return false;
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        sluice__bus__rank__init(&ranks[i]);
#define X(f) ranks[i].f = m->ranks[i].f;
        RANK_NUMBERS(X)
#undef X
        ranks[i].isa = bin_of(m->ranks[i].isa);
        if (!put_kernels(&ranks[i], &m->ranks[i], scratch))
            return false;
        list[i] = &ranks[i];
    }
    sluice__bus__ranks__init(w);
    w->ranks = list;
    w->n_ranks = m->n_ranks;
    w->tp = m->tp;
    w->pp = m->pp;
    return true;
}

static void put_meta(Sluice__Bus__Meta *w, const struct sl_msg_meta *m)
{
    sluice__bus__meta__init(w);
    w->sha256 = bin_hash(m->sha256);
    w->offset = m->offset;
    w->bytes = bin_of(m->bytes);
}

/* Room for whichever body a message has. */
struct wire {
    Sluice__Bus__Envelope envelope;
    Sluice__Bus__Load load;
    union {
        Sluice__Bus__Hello hello;
        Sluice__Bus__Welcome welcome;
        Sluice__Bus__Submit submit;
        Sluice__Bus__Cancel cancel;
        Sluice__Bus__Step step;
        Sluice__Bus__Meta meta;
        Sluice__Bus__Ranks ranks;
        Sluice__Bus__Empty empty;
    };
};

static void put_empty(struct wire *w, Sluice__Bus__Envelope__BodyCase body)
{
    sluice__bus__empty__init(&w->empty);
    w->envelope.body_case = body;
    w->envelope.ping = &w->empty; /* the oneof's members share one pointer */
}

/* False when the scratch memory does not suffice. */
static bool put_body(struct wire *w, const struct sl_msg *m, struct sl_arena *scratch)
{
    Sluice__Bus__Envelope *e = &w->envelope;
    sluice__bus__envelope__init(e);
    switch (m->kind) {
    case SL_MSG_HELLO:
        put_hello(&w->hello, &w->load, &m->hello);
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_HELLO;
        e->hello = &w->hello;
        return true;
    case SL_MSG_WELCOME:
        put_welcome(&w->welcome, &m->welcome);
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_WELCOME;
        e->welcome = &w->welcome;
        return true;
    case SL_MSG_SUBMIT:
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_SUBMIT;
        e->submit = &w->submit;
        return put_submit(&w->submit, &m->submit, scratch);
    case SL_MSG_CANCEL:
        sluice__bus__cancel__init(&w->cancel);
        w->cancel.id = m->cancel.id;
        w->cancel.epoch = m->cancel.epoch;
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_CANCEL;
        e->cancel = &w->cancel;
        return true;
    case SL_MSG_STEP:
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_STEP;
        e->step = &w->step;
        return put_step(&w->step, &w->load, &m->step, scratch);
    case SL_MSG_META_GET:
    case SL_MSG_META_CHUNK:
        put_meta(&w->meta, &m->meta);
        e->body_case = m->kind == SL_MSG_META_GET ? SLUICE__BUS__ENVELOPE__BODY_META_GET
                                                  : SLUICE__BUS__ENVELOPE__BODY_META_CHUNK;
        e->meta_get = &w->meta;
        return true;
    case SL_MSG_LOAD:
        put_load(&w->load, &m->load);
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_LOAD;
        e->load = &w->load;
        return true;
    case SL_MSG_PING:
        put_empty(w, SLUICE__BUS__ENVELOPE__BODY_PING);
        return true;
    case SL_MSG_DRAIN:
        put_empty(w, SLUICE__BUS__ENVELOPE__BODY_DRAIN);
        return true;
    case SL_MSG_BYE:
        put_empty(w, SLUICE__BUS__ENVELOPE__BODY_BYE);
        return true;
    case SL_MSG_RANKS:
        e->body_case = SLUICE__BUS__ENVELOPE__BODY_RANKS;
        e->ranks = &w->ranks;
        return put_ranks(&w->ranks, &m->ranks, scratch);
    case SL_MSG_NONE:
        break;
    }
    return false;
}

enum sl_status sl_msg_encode(const struct sl_msg *m, struct sl_buf *out, struct sl_err *err)
{
    return sl_msg_encode_for(m, SL_BUS_VERSION, out, err);
}

enum sl_status sl_msg_encode_for(const struct sl_msg *m, uint32_t version, struct sl_buf *out,
                                 struct sl_err *err)
{
    enum sl_status s = sl_msg_check(m, err);
    if (s != SL_OK)
        return s;
    struct sl_arena scratch;
    struct wire w;
    sl_arena_init(&scratch, ENCODE_SCRATCH_BYTES);
    bool fits = put_body(&w, m, &scratch);
    w.envelope.tag = m->tag;
    w.envelope.seq = m->seq;
    s = fits ? pack(&w.envelope, version, out, err)
             : sl_fail(err, SL_NO_MEMORY, "bus: no memory to encode");
    sl_arena_free(&scratch);
    return s;
}
