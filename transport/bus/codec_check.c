/* Range check of bus messages: one validator for what is sent and for what is received.
 *
 * It knows the limits of the bus, not those of a model: token ids are checked against the widest
 * vocabulary here and against the engine's logits by the worker. */
#include "codec.h"

#include <sluice/base/limits.h>
#include <sluice/transport/bulk.h>

#include <inttypes.h>
#include <math.h>

#define DEADLINE_MS_MAX   ((uint64_t)7 * 24 * 3600 * 1000)
#define OUT_TOKENS_MAX    256u /* of one stream in one step */
#define SEQS_MAX          65536u
#define PAGES_MAX         ((uint64_t)1 << 31)
#define PAGE_SIZE_MAX     65536u
#define RANKS_MAX         65536u
#define N_END             6u /* bus.h: sl_msg_out.end */
#define NAME_BYTES_MAX    256u
#define WORD_BYTES_MAX    64u
#define MESSAGE_BYTES_MAX 255u

struct check {
    struct sl_err *err;
    bool bad; /* sticky: the first fault is the one reported */
};

static void refuse(struct check *c, const char *field, const char *why)
{
    if (c->bad)
        return;
    c->bad = true;
    sl_fail_param(c->err, SL_INVALID, field, "bus: %s %s", field, why);
}

static void range(struct check *c, const char *field, uint64_t v, uint64_t min, uint64_t max)
{
    if (c->bad || (v >= min && v <= max))
        return;
    c->bad = true;
    sl_fail_param(c->err, SL_INVALID, field,
                  "bus: %s is %" PRIu64 ", allowed are %" PRIu64 " to %" PRIu64, field, v, min,
                  max);
}

static void number(struct check *c, const char *field, float v)
{
    if (!isfinite(v))
        refuse(c, field, "is not a finite number");
}

/* Length of the UTF-8 sequence at s (RFC 3629: no overlong form, no surrogate), 0 when invalid. */
static size_t utf8_len(const uint8_t *s, size_t left)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    if (n == 1)
        return 1;
    uint32_t code = s[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (s[i] >> 6 != 2)
            return 0;
        code = code << 6 | (s[i] & 0x3fu);
    }
    bool ok = code >= least[n] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    return ok ? n : 0;
}

static void text(struct check *c, const char *field, struct sl_str s, size_t max)
{
    range(c, field, s.len, 0, max);
    for (size_t i = 0; i < s.len && !c->bad;) {
        size_t n = utf8_len((const uint8_t *)s.data + i, s.len - i);
        if (n == 0 || s.data[i] == '\0')
            refuse(c, field, "is not UTF-8 text");
        i += n;
    }
}

static void token_ids(struct check *c, const char *field, const uint32_t *ids, uint64_t n)
{
    for (uint64_t i = 0; i < n && !c->bad; i++)
        range(c, field, ids[i], 0, SL_LIMIT_vocab_tokens - 1);
}

static void numbers(struct check *c, const char *field, const float *v, uint64_t n)
{
    for (uint64_t i = 0; i < n && !c->bad; i++)
        number(c, field, v[i]);
}

static void check_load(struct check *c, const struct sl_msg_load *l)
{
    range(c, "load.running", l->running, 0, SEQS_MAX);
    range(c, "load.waiting", l->waiting, 0, SEQS_MAX);
    range(c, "load.max_seqs", l->max_seqs, 0, SEQS_MAX);
    range(c, "load.pages_total", l->pages_total, 0, PAGES_MAX);
    range(c, "load.pages_free", l->pages_free, 0, l->pages_total);
    range(c, "load.step_expected_ms", l->step_expected_ms, 0, DEADLINE_MS_MAX);
}

static void check_hello(struct check *c, const struct sl_msg_hello *h)
{
    range(c, "hello.version_min", h->version_min, 0, h->version);
    range(c, "hello.rank", h->rank, 0, RANKS_MAX);
    range(c, "hello.tp", h->tp, 1, RANKS_MAX);
    range(c, "hello.pp", h->pp, 1, RANKS_MAX);
    range(c, "hello.threads", h->threads, 1, SL_LIMIT_threads);
    range(c, "hello.max_seqs", h->max_seqs, 1, SEQS_MAX);
    range(c, "hello.max_len", h->max_len, 1, UINT32_MAX);
    range(c, "hello.max_batch_tokens", h->max_batch_tokens, 1, SL_BUS_TOKENS_MAX);
    range(c, "hello.n_vocab", h->n_vocab, 1, SL_LIMIT_vocab_tokens);
    range(c, "hello.page_size", h->page_size, 1, PAGE_SIZE_MAX);
    range(c, "hello.queue_max", h->queue_max, 1, SEQS_MAX);
    range(c, "hello.meta_bytes", h->meta_bytes, 1, SL_LIMIT_model_meta_bytes);
    text(c, "hello.model", h->model, NAME_BYTES_MAX);
    text(c, "hello.site", h->site, WORD_BYTES_MAX);
    text(c, "hello.role", h->role, WORD_BYTES_MAX);
    text(c, "hello.isa", h->isa, WORD_BYTES_MAX);
    text(c, "hello.backend", h->backend, WORD_BYTES_MAX);
    text(c, "hello.class_name", h->class_name, NAME_BYTES_MAX);
    text(c, "hello.kv_address", h->kv_address, SL_BULK_ADDRESS_MAX - 1);
    text(c, "hello.events_endpoint", h->events_endpoint, NAME_BYTES_MAX);
    text(c, "hello.events_replay", h->events_replay, NAME_BYTES_MAX);
    text(c, "hello.events_topic", h->events_topic, NAME_BYTES_MAX);
    text(c, "hello.events_key", h->events_key, WORD_BYTES_MAX);
    check_load(c, &h->load);
}

static void check_welcome(struct check *c, const struct sl_msg_welcome *w)
{
    range(c, "welcome.status", w->status, 0, SL_N_STATUS - 1);
    text(c, "welcome.message", w->message, MESSAGE_BYTES_MAX);
}

static void check_submit(struct check *c, const struct sl_msg_submit *s)
{
    range(c, "submit.tokens", s->n_tokens, 1, SL_BUS_TOKENS_MAX);
    range(c, "submit.n_prompt", s->n_prompt, 1, s->n_tokens);
    token_ids(c, "submit.tokens", s->tokens, s->n_tokens);
    range(c, "submit.choice", s->choice, 0,
          (uint64_t)SL_LIMIT_n_choices * SL_LIMIT_prompt_batch - 1);
    range(c, "submit.deadline_ms", s->deadline_ms, 0, DEADLINE_MS_MAX);
    number(c, "submit.temperature", s->temperature);
    number(c, "submit.top_p", s->top_p);
    number(c, "submit.min_p", s->min_p);
    number(c, "submit.typical_p", s->typical_p);
    number(c, "submit.presence_penalty", s->presence_penalty);
    number(c, "submit.frequency_penalty", s->frequency_penalty);
    number(c, "submit.repetition_penalty", s->repetition_penalty);
    range(c, "submit.n_logprobs", s->n_logprobs, 0, SL_LIMIT_top_logprobs);
    text(c, "submit.kv_address", s->kv_address, SL_BULK_ADDRESS_MAX - 1);
    if (s->prefill_only && s->kv_address.len)
        refuse(c, "submit.kv_address", "does not go with prefill_only");
    range(c, "submit.hops", s->hops, 0, SL_LIMIT_router_hops);
    range(c, "submit.bias", s->n_bias, 0, SL_LIMIT_logit_bias);
    for (uint32_t i = 0; i < s->n_bias && !c->bad; i++) {
        range(c, "submit.bias", s->bias[i].token, 0, SL_LIMIT_vocab_tokens - 1);
        number(c, "submit.bias", s->bias[i].bias);
    }
    range(c, "submit.stop_ids", s->n_stop_ids, 0, SL_LIMIT_stop_token_ids);
    if (!c->bad)
        token_ids(c, "submit.stop_ids", s->stop_ids, s->n_stop_ids);
}

static void check_out(struct check *c, const struct sl_msg_out *o)
{
    range(c, "out.tokens", o->n_tokens, 0, OUT_TOKENS_MAX);
    range(c, "out.n_top", o->n_top, 0, SL_LIMIT_top_logprobs);
    range(c, "out.end", o->end, 0, N_END - 1);
    range(c, "out.status", o->status, 0, SL_N_STATUS - 1);
    range(c, "out.n_cached", o->n_cached, 0, SL_BUS_TOKENS_MAX);
    range(c, "out.ordinal", o->ordinal, 0, SL_BUS_TOKENS_MAX);
    if ((o->end == N_END - 1) != (o->status != SL_OK))
        refuse(c, "out.status", "and the kind of end contradict each other");
    if (o->n_top > 0 && !(o->top_tokens && o->top_logprobs) && o->n_tokens > 0)
        refuse(c, "out.n_top", "has no alternatives");
    text(c, "out.message", o->message, MESSAGE_BYTES_MAX);
    if (c->bad)
        return;
    uint64_t n_top = (uint64_t)o->n_tokens * o->n_top;
    token_ids(c, "out.tokens", o->tokens, o->n_tokens);
    if (o->logprobs)
        numbers(c, "out.logprobs", o->logprobs, o->n_tokens);
    token_ids(c, "out.top_tokens", o->top_tokens, n_top);
    numbers(c, "out.top_logprobs", o->top_logprobs, n_top);
}

static void check_step(struct check *c, const struct sl_msg_step *s)
{
    range(c, "step.outs", s->n_outs, 0, SL_LIMIT_inflight_requests);
    for (uint32_t i = 0; i < s->n_outs && !c->bad; i++)
        check_out(c, &s->outs[i]);
    check_load(c, &s->load);
}

static void check_kernels(struct check *c, const struct sl_msg_rank *r)
{
    range(c, "rank.kernels", r->n_kernels, 0, SL_LIMIT_kernels);
    for (uint32_t i = 0; i < r->n_kernels && !c->bad; i++)
        text(c, "kernel.name", r->kernels[i].name, WORD_BYTES_MAX);
}

static void check_ranks(struct check *c, const struct sl_msg_ranks *m)
{
    range(c, "ranks", m->n_ranks, 0, SL_LIMIT_ranks);
    range(c, "ranks.tp", m->tp, 1, SL_LIMIT_ranks);
    range(c, "ranks.pp", m->pp, 1, SL_LIMIT_ranks);
    for (uint32_t i = 0; i < m->n_ranks && !c->bad; i++) {
        const struct sl_msg_rank *r = &m->ranks[i];
        range(c, "rank.rank", r->rank, 0, SL_LIMIT_ranks - 1);
        range(c, "rank.threads", r->threads, 0, SL_LIMIT_threads);
        text(c, "rank.isa", r->isa, WORD_BYTES_MAX);
        check_kernels(c, r);
    }
}

static void check_meta(struct check *c, const struct sl_msg_meta *m, size_t bytes_max)
{
    range(c, "meta.bytes", m->bytes.len, 0, bytes_max);
    range(c, "meta.offset", m->offset, 0, SL_LIMIT_model_meta_bytes - m->bytes.len);
}

enum sl_status sl_msg_check(const struct sl_msg *m, struct sl_err *err)
{
    struct check c = {.err = err, .bad = false};
    switch (m->kind) {
    case SL_MSG_HELLO:
        check_hello(&c, &m->hello);
        break;
    case SL_MSG_WELCOME:
        check_welcome(&c, &m->welcome);
        break;
    case SL_MSG_SUBMIT:
        check_submit(&c, &m->submit);
        break;
    case SL_MSG_STEP:
        check_step(&c, &m->step);
        break;
    case SL_MSG_META_GET:
        check_meta(&c, &m->meta, 0);
        break;
    case SL_MSG_META_CHUNK:
        check_meta(&c, &m->meta, SL_BUS_META_CHUNK);
        break;
    case SL_MSG_LOAD:
        check_load(&c, &m->load);
        break;
    case SL_MSG_RANKS:
        check_ranks(&c, &m->ranks);
        break;
    case SL_MSG_CANCEL:
    case SL_MSG_PING:
    case SL_MSG_DRAIN:
    case SL_MSG_BYE:
        break;
    case SL_MSG_NONE:
    default:
        refuse(&c, "kind", "is unknown");
    }
    return c.bad ? SL_INVALID : SL_OK;
}
