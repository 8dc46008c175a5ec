/* Generations: requests of a door as streams of the router. */
#include "node.h"

#include <sluice/base/limits.h>
#include <sluice/base/time.h>
#include <stdlib.h>
#include <string.h>

#define GEN_MEM_MAX ((size_t)64 << 20)

/* --- start ------------------------------------------------------------------------------------ */

static enum sl_status check_prompt(const struct node *n, const struct gen_params *p,
                                   struct sl_err *err)
{
    if (!p->n_prompt)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt must not be empty");
    if (p->n_prompt >= n->max_len)
        return sl_fail_param(err, SL_TOO_LONG, "prompt",
                             "the model's context is %u tokens; the prompt alone has %u",
                             n->max_len, p->n_prompt);
    for (uint32_t i = 0; i < p->n_prompt; i++)
        if (p->prompt[i] >= n->n_vocab)
            return sl_fail_param(err, SL_INVALID, "prompt",
                                 "token id %u is outside the vocabulary of %u", p->prompt[i],
                                 n->n_vocab);
    /* what another router let in ends at this site's length, as at a worker's */
    if (!p->relay && p->sampling.max_tokens > n->max_len - p->n_prompt)
        return sl_fail_param(err, SL_TOO_LONG, "max_tokens",
                             "the model's context is %u tokens; the prompt has %u and max_tokens "
                             "asks for %u more",
                             n->max_len, p->n_prompt, p->sampling.max_tokens);
    return SL_OK;
}

static enum sl_status check_stops(const struct gen_params *p, struct sl_err *err)
{
    if (p->n < 1 || p->n > SL_LIMIT_n_choices)
        return sl_fail_param(err, SL_INVALID, "n", "n must be in [1, %d], not %u",
                             SL_LIMIT_n_choices, p->n);
    if (p->n_stop > SL_LIMIT_stop_strings)
        return sl_fail_param(err, SL_INVALID, "stop", "at most %d stop strings, not %u",
                             SL_LIMIT_stop_strings, p->n_stop);
    for (uint32_t i = 0; i < p->n_stop; i++) {
        if (!p->stop[i].len)
            return sl_fail_param(err, SL_INVALID, "stop", "a stop string must not be empty");
        if (p->stop[i].len > SL_LIMIT_stop_string_bytes)
            return sl_fail_param(err, SL_INVALID, "stop",
                                 "a stop string of %zu bytes is longer than %d", p->stop[i].len,
                                 SL_LIMIT_stop_string_bytes);
    }
    return SL_OK;
}

static enum sl_status check(const struct node *n, const struct gen_params *p, struct sl_err *err)
{
    if (n->draining)
        return sl_fail(err, SL_DRAINING, "the server is shutting down");
    if (!node_has_model(n))
        return sl_fail(err, SL_LOADING, "the model is being loaded");
    enum sl_status s = check_prompt(n, p, err);
    if (s || (s = check_stops(p, err)))
        return s;
    struct sl_sampling sampling = p->sampling;
    if (!sampling.max_tokens)
        sampling.max_tokens = n->max_len - p->n_prompt;
    return sl_sampling_check(&sampling, n->n_vocab, err);
}

static void *copy(struct sl_arena *a, const void *src, size_t n, size_t elem)
{
    void *dst = sl_arena_calloc(a, n ? n : 1, elem);
    if (dst && n)
        memcpy(dst, src, n * elem);
    return dst;
}

static bool copy_params(struct gen *g, const struct gen_params *p)
{
    struct gen_params *q = &g->params;
    struct sl_arena *a = &g->mem;
    *q = *p;
    struct sl_str *stop = copy(a, p->stop, p->n_stop, sizeof *stop);
    q->sampling.bias = copy(a, p->sampling.bias, p->sampling.n_bias, sizeof *p->sampling.bias);
    q->sampling.stop_ids = copy(a, p->sampling.stop_ids, p->sampling.n_stop_ids, sizeof(uint32_t));
    q->prompt = NULL; /* lives in each stream's log */
    q->shown = NULL;  /* each stream has its own */
    q->relay = NULL;
    g->streams = SL_ARENA_ARRAY(a, struct stream, p->n);
    if (!stop || !q->sampling.bias || !q->sampling.stop_ids || !g->streams)
        return false;
    for (uint32_t i = 0; i < p->n_stop; i++) {
        stop[i].data = sl_arena_strndup(a, p->stop[i].data, p->stop[i].len);
        if (!stop[i].data)
            return false;
    }
    q->stop = stop;
    return true;
}

/* Tenants never share pages of the prefix cache, nor do different cache salts. */
static void derive_tenant(struct gen *g, const struct gen_params *p)
{
    struct sl_buf b = {0};
    if (p->relay) {
        g->tenant = p->relay->tenant;
        memcpy(g->salt, p->relay->salt, sizeof g->salt);
        return;
    }
    sl_buf_append(&b, p->tenant.data, p->tenant.len);
    sl_buf_putc(&b, 0);
    sl_buf_append(&b, p->cache_salt.data, p->cache_salt.len);
    sl_sha256(b.data, b.len, g->salt);
    sl_buf_free(&b);
    g->tenant = sl_hash64(p->tenant.data, p->tenant.len, 0);
    if (p->session.len)
        g->session = sl_hash64(p->session.data, p->session.len, g->tenant) | 1; /* 0 is none */
}

static bool open_streams(struct gen *g, const struct gen_params *p)
{
    struct node *n = g->node;
    for (uint32_t c = 0; c < p->n; c++) {
        struct stream *s = &g->streams[c];
        s->gen = g;
        s->choice = p->relay ? p->relay->choice : c;
        s->id = ++n->next_id;
        s->n_prompt = p->n_prompt;
        s->detok.skip_special = !p->keep_special;
        sl_stop_init(&s->stop, g->params.stop, p->n_stop, p->include_stop);
        if (p->shown)
            s->shown = p->shown[c];
        for (uint32_t i = 0; i < p->n_prompt; i++)
            sl_tokens_push(&s->log, p->prompt[i]);
        for (uint32_t i = 0; p->relay && i < p->relay->n_generated; i++)
            sl_tokens_push(&s->log, p->relay->generated[i]);
        if (s->log.failed)
            return false;
        sl_hash_insert(&n->streams, &s->by_id, sl_hash64(&s->id, sizeof s->id, 0));
        g->n_live++;
    }
    return true;
}

static void close_stream(struct stream *s)
{
    if (s->state == ENDED)
        return;
    struct gen *g = s->gen;
    if (s->state == LIVE)
        sl_router_cancel(g->node->router, s->id, sl_now_ns());
    sl_hash_remove(&g->node->streams, &s->by_id);
    s->state = ENDED;
    g->n_live--;
}

static void gen_bury(struct gen *g)
{
    if (g->dead)
        return;
    g->dead = true;
    for (uint32_t i = 0; g->streams && i < g->params.n; i++)
        if (g->streams[i].gen)
            close_stream(&g->streams[i]);
    sl_list_remove(&g->link);
    sl_list_push_back(&g->node->dead, &g->link);
}

static enum sl_status route(struct gen *g, struct sl_err *err)
{
    for (uint32_t c = 0; c < g->params.n; c++) {
        struct stream *s = &g->streams[c];
        struct sl_route_request q = {.id = s->id,
                                     .tokens = s->log.ids,
                                     .n_tokens = (uint32_t)s->log.n,
                                     .n_before = (uint32_t)s->log.n - s->n_prompt,
                                     .priority = g->params.priority,
                                     .tenant = g->tenant,
                                     .session = g->session,
                                     .deadline_ns = g->deadline_ns,
                                     .has_class = g->params.has_class,
                                     .class_hash = g->params.class_hash,
                                     .user = s};
        memcpy(&q.salt, g->salt, sizeof q.salt);
        enum sl_status status = sl_router_submit(g->node->router, &q, g->started_ns, err);
        if (status)
            return status;
    }
    return SL_OK;
}

enum sl_status gen_start(struct node *n, const struct gen_params *p, const struct gen_ops *ops,
                         void *ctx, struct gen **out, struct sl_err *err)
{
    enum sl_status s = check(n, p, err);
    if (s)
        return s;
    struct gen *g = calloc(1, sizeof *g);
    if (!g)
        return sl_fail(err, SL_NO_MEMORY, "no memory for a request");
    g->node = n;
    g->ops = ops;
    g->ctx = ctx;
    g->started_ns = sl_now_ns();
    g->deadline_ns = p->deadline_ms ? g->started_ns + p->deadline_ms * SL_MS_NS : 0;
    g->usage.prompt_tokens = p->n_prompt;
    sl_list_push_back(&n->gens, &g->link);
    sl_arena_init(&g->mem, GEN_MEM_MAX);
    if (!copy_params(g, p) || !open_streams(g, p)) {
        gen_bury(g);
        return sl_fail(err, SL_NO_MEMORY, "no memory for a request of %u tokens", p->n_prompt);
    }
    derive_tenant(g, p);
    if (p->relay) {
        g->hops = p->relay->hops;
        g->on_tokens = p->relay->on_tokens;
    }
    if (!g->params.sampling.max_tokens)
        g->params.sampling.max_tokens = n->max_len - p->n_prompt;
    if (!p->has_seed)
        g->params.sampling.seed = sl_entropy_u64() >> 1;
    s = route(g, err);
    if (s) {
        gen_bury(g);
        return s;
    }
    *out = g;
    return SL_OK;
}

/* --- sending ---------------------------------------------------------------------------------- */

static void fill_sampling(struct sl_msg_submit *m, const struct sl_sampling *s)
{
    m->seed = s->seed;
    m->temperature = s->temperature;
    m->top_p = s->top_p;
    m->min_p = s->min_p;
    m->typical_p = s->typical_p;
    m->presence_penalty = s->presence_penalty;
    m->frequency_penalty = s->frequency_penalty;
    m->repetition_penalty = s->repetition_penalty;
    m->top_k = s->top_k;
    m->n_logprobs = s->n_logprobs;
    m->want_logprob = s->want_logprob;
    m->min_tokens = s->min_tokens;
    m->max_tokens = s->max_tokens;
    m->ignore_eos = s->ignore_eos;
    m->stop_ids = s->stop_ids;
    m->n_stop_ids = s->n_stop_ids;
}

/* The prompt goes to the source first, so that the owner, who hears of it next, finds its ticket
 * there. Without the source the owner computes the prompt. */
static void ask_source(struct node *n, const struct sl_action *a, struct sl_msg *m, uint64_t now)
{
    const struct peer *p = node_peer(n, a->source_key);
    struct sl_msg_submit *q = &m->submit;
    q->kv_ticket = sl_entropy_u64();
    q->prefill_only = true;
    bool sent = p && p->hello.kv_address.len && !sl_bus_send(n->bus, a->source_key, m, NULL);
    q->prefill_only = false;
    if (!sent) {
        sl_router_prefilled(n->router, a->source_key, q->id, q->epoch, SL_PEER, now);
        return;
    }
    q->kv_address = p->hello.kv_address;
    memcpy(q->kv_key, p->hello.kv_key, sizeof q->kv_key);
}

/* Carries out the router's word: prompt and every token so far go to the worker, so that a stream
 * that lost its worker goes on exactly where it was. */
void gen_send(struct node *n, struct stream *s, const struct sl_action *a)
{
    struct gen *g = s->gen;
    struct sl_msg_bias bias[SL_LIMIT_logit_bias];
    uint64_t now = sl_now_ns();
    struct sl_msg m = {.kind = SL_MSG_SUBMIT};
    struct sl_msg_submit *q = &m.submit;
    for (uint32_t i = 0; i < g->params.sampling.n_bias; i++)
        bias[i] =
            (struct sl_msg_bias){g->params.sampling.bias[i].token, g->params.sampling.bias[i].bias};
    fill_sampling(q, &g->params.sampling);
    q->bias = bias;
    q->n_bias = g->params.sampling.n_bias;
    q->id = s->id;
    q->epoch = a->epoch;
    q->tokens = s->log.ids;
    q->n_tokens = (uint32_t)s->log.n;
    q->n_prompt = s->n_prompt;
    q->choice = s->choice;
    q->hops = g->hops;
    q->priority = g->params.priority;
    q->tenant = g->tenant;
    memcpy(q->salt, g->salt, sizeof q->salt);
    if (g->deadline_ns)
        q->deadline_ms = g->deadline_ns > now ? (g->deadline_ns - now) / SL_MS_NS + 1 : 1;
    s->epoch = a->epoch;
    if (a->has_source)
        ask_source(n, a, &m, now);
    if (sl_bus_send(n->bus, a->worker_key, &m, NULL))
        sl_router_refused(n->router, a->worker_key, s->id, a->epoch, SL_PEER, now);
}

/* --- receiving -------------------------------------------------------------------------------- */

static struct stream *find_stream(struct node *n, uint64_t id)
{
    uint64_t hash = sl_hash64(&id, sizeof id, 0);
    for (struct sl_hash_node *h = sl_hash_first(&n->streams, hash); h; h = sl_hash_next(h)) {
        struct stream *s = SL_ENTRY(h, struct stream, by_id);
        if (s->id == id)
            return s;
    }
    return NULL;
}

static bool keep_probs(struct stream *s, const struct sl_msg_out *o)
{
    uint32_t need = s->n_probs + o->n_tokens;
    if (need > s->probs_alloc) {
        uint32_t alloc = need * 2;
        struct sl_sampled *p = realloc(s->probs, alloc * sizeof *p);
        if (!p)
            return false;
        s->probs = p;
        s->probs_alloc = alloc;
    }
    uint32_t n_top = o->n_top < SL_LOGPROBS_MAX ? o->n_top : SL_LOGPROBS_MAX;
    for (uint32_t i = 0; i < o->n_tokens; i++) {
        struct sl_sampled *p = &s->probs[s->n_probs++];
        *p = (struct sl_sampled){.token = o->tokens[i], .n_top = n_top};
        p->logprob = o->logprobs ? o->logprobs[i] : 0;
        for (uint32_t k = 0; k < n_top; k++)
            p->top[k] = (struct sl_token_prob){o->top_tokens[i * o->n_top + k],
                                               o->top_logprobs[i * o->n_top + k]};
    }
    return true;
}

static void stream_finish(struct stream *s, const char *reason, uint32_t stop_token, bool replayed)
{
    struct gen *g = s->gen;
    int stop = s->stop.hit;
    struct gen_end end = {.choice = s->choice,
                          .finish_reason = reason,
                          .stop = stop >= 0 ? &g->params.stop[stop] : NULL,
                          .stop_token = stop_token,
                          .n_tokens = s->n_delivered,
                          .tokens = s->log.ids + s->n_prompt,
                          .replayed = replayed,
                          .chain = &s->chain,
                          .class_name = s->class_name,
                          .sampling = &g->params.sampling};
    close_stream(s);
    metrics_end(g, reason, sl_now_ns());
    g->ops->on_end(g->ctx, &end);
    if (g->dead || g->n_live)
        return;
    struct gen_usage usage = g->usage;
    const struct gen_ops *ops = g->ops;
    void *ctx = g->ctx;
    gen_bury(g);
    ops->on_done(ctx, &usage);
}

/* The end as the worker, or a stop string, made it. */
static void finish_as_met(struct stream *s, bool replayed)
{
    uint32_t last_token = s->log.ids[s->log.n - 1];
    if (s->stop.hit >= 0)
        stream_finish(s, "stop", SL_NO_TOKEN, replayed);
    else
        stream_finish(s, s->end == 2 ? "length" : "stop", s->end == 1 ? last_token : SL_NO_TOKEN,
                      replayed);
}

/* Text of one token; true when a stop string ended the stream with it. */
static bool decode_token(struct stream *s, uint32_t token, struct sl_buf *piece,
                         struct sl_buf *text)
{
    struct gen *g = s->gen;
    sl_buf_clear(piece);
    sl_detok_push(&s->detok, g->node->tokenizer, token, piece);
    if (!g->params.n_stop || s->n_delivered < g->params.sampling.min_tokens) {
        sl_buf_append(text, piece->data, piece->len);
        return false;
    }
    return sl_stop_push(&s->stop, piece->data, piece->len, text);
}

static void flush_text(struct stream *s, struct sl_buf *piece, struct sl_buf *text)
{
    sl_buf_clear(piece);
    sl_detok_finish(&s->detok, piece);
    if (s->gen->params.n_stop && sl_stop_push(&s->stop, piece->data, piece->len, text))
        return;
    if (!s->gen->params.n_stop)
        sl_buf_append(text, piece->data, piece->len);
    else
        sl_stop_finish(&s->stop, text);
}

/* Decodes tokens up to the n-th generated one; true when a stop string ended the stream. */
static bool decode_to(struct stream *s, uint32_t n, struct sl_buf *text)
{
    struct sl_buf piece = {0};
    bool stopped = false;
    while (!stopped && s->n_delivered < n) {
        uint32_t token = s->log.ids[s->n_prompt + s->n_delivered++];
        sl_chain_add(&s->chain, token);
        stopped = decode_token(s, token, &piece, text);
    }
    sl_buf_free(&piece);
    return stopped;
}

/* Hands out the text and the tokens from the first-th to the last delivered one. */
static void hand_out(struct stream *s, uint32_t first, const struct sl_buf *text, bool last,
                     bool replayed)
{
    struct gen *g = s->gen;
    uint32_t n = s->n_delivered - first;
    struct sl_sampled plain[16], *tokens = s->probs;
    struct sl_sampled *many = NULL;
    if (!g->params.sampling.want_logprob) {
        tokens = n <= 16 ? plain : (many = calloc(n, sizeof *many));
        for (uint32_t i = 0; tokens && i < n; i++)
            tokens[i] = (struct sl_sampled){.token = s->log.ids[s->n_prompt + first + i]};
    }
    struct gen_delta d = {.choice = s->choice,
                          .text = {text->data ? text->data : "", text->len},
                          .tokens = tokens,
                          .n_tokens = tokens ? n : 0,
                          .replayed = replayed,
                          .last = last,
                          .chain = &s->chain,
                          .class_hash = s->class_hash};
    g->usage.completion_tokens += n;
    if (n || text->len)
        g->ops->on_delta(g->ctx, &d);
    free(many);
    if (s->n_probs > n) /* tokens that came with the last ones replayed */
        memmove(s->probs, s->probs + n, (s->n_probs - n) * sizeof *s->probs);
    s->n_probs -= s->n_probs < n ? s->n_probs : n;
}

static void fail_replay(struct stream *s)
{
    struct sl_err err;
    sl_fail_param(&err, SL_CONFLICT, "Last-Event-ID",
                  "choice %u cannot go on: its first %u tokens are not those shown before",
                  s->choice, s->shown.n_tokens);
    gen_fail(s->gen, &err);
}

/* What was shown before the client came back: nothing until all of it is here, then at once and
 * silently. True when there may be more to show. */
static bool replay(struct stream *s)
{
    const struct sl_event_choice shown = s->shown;
    uint32_t n_out = (uint32_t)s->log.n - s->n_prompt;
    if (n_out < shown.n_tokens) {
        if (s->state == ENDING)
            fail_replay(s);
        return false;
    }
    struct sl_buf text = {0}, piece = {0};
    bool stopped = decode_to(s, shown.n_tokens, &text);
    bool text_done = shown.phase != SL_EVENT_RUNS;
    bool all = s->n_delivered == shown.n_tokens &&
               memcmp(s->chain.link, shown.link, sizeof shown.link) == 0;
    bool at_end = stopped || (s->state == ENDING && n_out == shown.n_tokens);
    bool same = all && (text_done ? at_end : !stopped);
    if (same && text_done && !stopped)
        flush_text(s, &piece, &text);
    if (same) {
        s->shown.n_tokens = 0;
        hand_out(s, 0, &text, text_done, true);
    } else {
        fail_replay(s);
    }
    sl_buf_free(&text);
    sl_buf_free(&piece);
    if (!same || s->gen->dead)
        return false;
    if (text_done)
        finish_as_met(s, shown.phase == SL_EVENT_ENDED);
    return !text_done;
}

/* Hands out everything received and not yet delivered. */
static void deliver(struct stream *s)
{
    struct gen *g = s->gen;
    if (s->shown.n_tokens && !replay(s))
        return;
    struct sl_buf text = {0}, piece = {0};
    uint32_t first = s->n_delivered, n_out = (uint32_t)s->log.n - s->n_prompt;
    bool stopped = decode_to(s, n_out, &text);
    bool last = stopped || s->state == ENDING;
    if (s->state == ENDING && !stopped)
        flush_text(s, &piece, &text);
    hand_out(s, first, &text, last, false);
    sl_buf_free(&text);
    sl_buf_free(&piece);
    if (!g->dead && last)
        finish_as_met(s, false);
}

static void fail_out(struct stream *s, const struct sl_msg_out *o)
{
    struct sl_err err;
    if (o->end == 3)
        sl_fail(&err, SL_CANCELLED, "the worker dropped the request");
    else if (o->end == 4)
        sl_fail(&err, SL_TIMEOUT, "the request's deadline passed");
    else
        sl_fail(&err, o->status < SL_N_STATUS && o->status ? (enum sl_status)o->status : SL_FAILED,
                "%.*s", o->message.len ? (int)o->message.len : 21,
                o->message.len ? o->message.data : "the worker gave it up");
    gen_fail(s->gen, &err);
}

static void count_tokens(struct gen *g, const struct sl_msg_out *o, uint64_t now)
{
    if (!o->n_tokens)
        return;
    if (!g->has_first) {
        g->usage.cached_tokens = o->n_cached;
        metrics_first_token(g, now);
    } else {
        metrics_next_tokens(g, o->n_tokens, now);
    }
    g->has_first = true;
    g->last_token_ns = now;
}

/* To the router above, which keeps the text. */
static void pass_on(struct stream *s, const struct sl_msg_out *o, uint64_t now)
{
    static const char *const reasons[] = {"", "stop", "length", "abort", "error", "error"};
    struct gen *g = s->gen;
    void *ctx = g->ctx;
    void (*on_tokens)(void *, const struct sl_msg_out *) = g->on_tokens;
    for (uint32_t i = 0; i < o->n_tokens; i++)
        sl_tokens_push(&s->log, o->tokens[i]);
    if (s->log.failed) {
        struct sl_err err;
        sl_fail(&err, SL_NO_MEMORY, "no memory for a stream's tokens");
        gen_fail(g, &err);
        return;
    }
    count_tokens(g, o, now);
    if (o->end) {
        s->state = ENDING; /* the router's table has it no more */
        metrics_end(g, reasons[o->end < 6 ? o->end : 5], now);
        gen_bury(g);
    }
    on_tokens(ctx, o);
}

/* The first output says which class the stream is of; the chain starts with it. */
static bool start_chain(struct stream *s, uint64_t link)
{
    struct gen *g = s->gen;
    struct sl_str name = node_class_of(g->node, link);
    s->class_name = (struct sl_str){sl_arena_strndup(&g->mem, name.data, name.len), name.len};
    s->class_hash = sl_hash64(name.data, name.len, 0);
    sl_chain_start(&s->chain, name, s->log.ids, s->n_prompt, &g->params.sampling, s->choice);
    return s->class_name.data != NULL;
}

static enum sl_status prefill_status(const struct sl_msg_out *o)
{
    return o->end == 2 ? SL_OK : o->status ? (enum sl_status)o->status : SL_CANCELLED;
}

void gen_output(struct node *n, uint64_t link, const struct sl_msg_out *o, uint64_t now)
{
    struct stream *s = find_stream(n, o->id);
    if (o->end && !o->n_tokens &&
        sl_router_prefilled(n->router, link, o->id, o->epoch, prefill_status(o), now))
        return;
    bool refused = o->end == 5 && !o->n_tokens &&
                   (o->status == SL_QUEUE_FULL || o->status == SL_DRAINING ||
                    o->status == SL_NO_MEMORY || o->status == SL_PEER || o->status == SL_LOADING);
    if (refused) {
        sl_router_refused(n->router, link, o->id, o->epoch, (enum sl_status)o->status, now);
        return;
    }
    struct sl_route_output out = {.id = o->id,
                                  .epoch = o->epoch,
                                  .ordinal = o->ordinal,
                                  .n_tokens = o->n_tokens,
                                  .ended = o->end != 0};
    if (!sl_router_output(n->router, link, &out, now) || !s)
        return;
    struct gen *g = s->gen;
    if (g->on_tokens) {
        pass_on(s, o, now);
        return;
    }
    bool kept = !o->n_tokens || s->class_name.data || start_chain(s, link);
    for (uint32_t i = 0; i < o->n_tokens; i++)
        sl_tokens_push(&s->log, o->tokens[i]);
    kept = kept && (!g->params.sampling.want_logprob || keep_probs(s, o));
    if (s->log.failed || !kept) {
        struct sl_err err;
        sl_fail(&err, SL_NO_MEMORY, "no memory for a stream's tokens");
        gen_fail(g, &err);
        return;
    }
    count_tokens(g, o, now);
    if (o->end) {
        s->end = o->end;
        s->state = ENDING;
    }
    if (o->end >= 3) {
        fail_out(s, o);
        return;
    }
    if (!g->paused)
        deliver(s);
}

/* --- ends ------------------------------------------------------------------------------------- */

void gen_fail(struct gen *g, const struct sl_err *err)
{
    if (g->dead)
        return;
    struct gen_usage usage = g->usage;
    gen_bury(g);
    metrics_end(g, "error", sl_now_ns());
    g->ops->on_error(g->ctx, err, &usage);
}

void gen_fail_all(struct node *n, const struct sl_err *err)
{
    while (!sl_list_empty(&n->gens))
        gen_fail(SL_ENTRY(n->gens.next, struct gen, link), err);
}

void gen_cancel(struct gen *g)
{
    if (g->dead)
        return;
    metrics_end(g, "abort", sl_now_ns());
    gen_bury(g);
}

void gen_pause(struct gen *g)
{
    g->paused = true;
}

void gen_resume(struct gen *g)
{
    g->paused = false;
    for (uint32_t i = 0; i < g->params.n && !g->dead && !g->paused; i++) {
        struct stream *s = &g->streams[i];
        uint32_t n_out = (uint32_t)s->log.n - s->n_prompt;
        if (s->state != ENDED && (s->state == ENDING || s->n_delivered < n_out))
            deliver(s);
    }
}

struct gen_usage gen_usage(const struct gen *g)
{
    return g->usage;
}

/* Memory of ended generations goes when no callback of theirs can be on the stack. */
void gen_free_dead(struct node *n)
{
    while (!sl_list_empty(&n->dead)) {
        struct gen *g = SL_ENTRY(n->dead.next, struct gen, link);
        sl_list_remove(&g->link);
        for (uint32_t i = 0; g->streams && i < g->params.n; i++) {
            sl_tokens_free(&g->streams[i].log);
            sl_stop_free(&g->streams[i].stop);
            free(g->streams[i].probs);
        }
        sl_arena_free(&g->mem);
        free(g);
    }
}
