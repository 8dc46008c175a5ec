/* A worker's requests: from SUBMIT to the engine, from the engine's steps to one STEP per router.
 *
 * The engine knows requests by numbers of our own; a router knows them by (link, id). A request
 * that its router gave up becomes an orphan: cancelled, out of the table, its output dropped. */
#include "submit.h"
#include "worker.h"

#include <sluice/base/fault.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t key_hash(uint32_t link, uint64_t id)
{
    return sl_hash64(&id, sizeof id, link);
}

static struct request *find(const struct worker *w, uint32_t link, uint64_t id)
{
    struct sl_hash_node *n = sl_hash_first(&w->requests, key_hash(link, id));
    for (; n; n = sl_hash_next(n)) {
        struct request *r = SL_ENTRY(n, struct request, by_key);
        if (r->link == link && r->id == id)
            return r;
    }
    return NULL;
}

static void orphan(struct worker *w, struct request *r)
{
    sl_hash_remove(&w->requests, &r->by_key);
    sl_list_remove(&r->of_link);
    sl_list_push_back(&w->orphans, &r->of_link);
    r->orphan = true;
    if (r->fetch)
        worker_kv_stop(r); /* then it goes as it came */
    else
        sl_engine_cancel(w->engine, r->engine_id);
}

static void request_free(struct worker *w, struct request *r)
{
    if (!r->orphan)
        sl_hash_remove(&w->requests, &r->by_key);
    sl_list_remove(&r->of_link);
    w->n_requests--;
    free(r);
}

/* ---- in ---- */

/* An answer to a SUBMIT that the engine never saw. */
static void answer(struct worker *w, uint32_t link, const struct sl_msg_submit *m, enum sl_end end,
                   enum sl_status status, const char *why)
{
    struct sl_msg_out out = {.id = m->id,
                             .epoch = m->epoch,
                             .end = (uint32_t)end,
                             .status = status,
                             .message = sl_str_of(why)};
    struct sl_msg msg = {.kind = SL_MSG_STEP};
    msg.step.outs = &out;
    msg.step.n_outs = 1;
    worker_load(w, &msg.step.load, sl_now_ns());
    if (sl_bus_send(w->bus, link, &msg, NULL) != SL_OK)
        worker_link_broken(w, link);
}

static void read_request(struct worker *w, const struct sl_msg_submit *m, struct request *r,
                         struct sl_engine_request *q)
{
    memset(q, 0, sizeof *q);
    q->choice = m->choice;
    q->seq = (struct sl_sched_request){.id = r->engine_id,
                                       .tokens = m->tokens,
                                       .n_tokens = m->n_tokens,
                                       .n_prompt = m->n_prompt,
                                       .max_new = m->max_tokens,
                                       .priority = m->priority,
                                       .tenant = m->tenant,
                                       .no_prefix_cache = m->no_prefix_cache,
                                       .user = r};
    memcpy(q->seq.salt, m->salt, sizeof q->seq.salt);
    q->seq.deadline_ns = r->deadline_ns;
    submit_sampling(m, w->bias, &q->sampling);
}

/* Why this request cannot even be tried; SL_OK when it can. */
static enum sl_status reason_against(const struct worker *w, const struct sl_msg_submit *m,
                                     struct sl_err *err)
{
    uint32_t most = 2 * (w->info.max_seqs + w->info.queue_max);
    if (w->draining)
        return sl_fail(err, SL_DRAINING, "worker is draining");
    if (w->n_requests >= most)
        return sl_fail(err, SL_QUEUE_FULL, "worker has %u requests, at most %u", w->n_requests,
                       most);
    if (m->n_tokens - m->n_prompt >= m->max_tokens)
        return sl_fail_param(err, SL_INVALID, "max_tokens",
                             "%u tokens were generated before, at most %u are wanted",
                             m->n_tokens - m->n_prompt, m->max_tokens);
    return SL_OK;
}

/* To the engine, at once or when its pages have come from elsewhere. */
static enum sl_status give_out(struct worker *w, struct request *r, const struct sl_msg_submit *m,
                               struct sl_err *err)
{
    struct sl_engine_request q;
    read_request(w, m, r, &q);
    if (m->prefill_only)
        return worker_kv_prefill(w, &q, m->kv_ticket, err);
    return worker_kv_fetch(w, r, m) ? SL_OK : sl_engine_submit(w->engine, &q, err);
}

static enum sl_status start(struct worker *w, uint32_t link, const struct sl_msg_submit *m,
                            struct sl_err *err)
{
    enum sl_status s = reason_against(w, m, err);
    if (s != SL_OK)
        return s;
    struct request *r = sl_fault(SL_FAULT_REQUEST_MEMORY) ? NULL : calloc(1, sizeof *r);
    if (!r)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory for a request");
    r->id = m->id;
    r->epoch = m->epoch;
    r->link = link;
    r->n_generated = m->n_tokens - m->n_prompt;
    r->want_logprob = m->want_logprob;
    r->engine_id = w->next_engine_id++;
    r->deadline_ns = m->deadline_ms ? sl_now_ns() + m->deadline_ms * SL_MS_NS : 0;
    s = give_out(w, r, m, err);
    if (s != SL_OK) {
        free(r);
        return s;
    }
    sl_hash_insert(&w->requests, &r->by_key, key_hash(link, r->id));
    sl_list_push_back(&w->links[link].requests, &r->of_link);
    if (w->n_requests++ == 0)
        w->busy_since_ns = sl_now_ns();
    return SL_OK;
}

void worker_submit(struct worker *w, uint32_t link, const struct sl_msg_submit *m)
{
    struct request *old = find(w, link, m->id);
    struct sl_err err = {0};
    if (old && m->epoch <= old->epoch)
        return; /* late or twice: the newer one runs */
    if (old)
        orphan(w, old);
    enum sl_status s = start(w, link, m, &err);
    if (s != SL_OK)
        answer(w, link, m, SL_END_ERROR, s, err.msg);
}

void worker_cancel(struct worker *w, uint32_t link, const struct sl_msg_cancel *m)
{
    struct request *r = find(w, link, m->id);
    if (!r || r->epoch != m->epoch)
        return;
    if (r->fetch) {
        r->cancelled = true;
        worker_kv_stop(r);
    } else {
        sl_engine_cancel(w->engine, r->engine_id); /* the engine reports its end */
    }
}

void worker_fetched(struct worker *w, struct request *r, const struct sl_msg_submit *m)
{
    struct sl_engine_request q;
    struct sl_err err = {0};
    uint32_t link = r->link;
    enum sl_end end = SL_END_CANCELLED;
    enum sl_status s = SL_OK;
    if (!r->orphan && !r->cancelled) {
        read_request(w, m, r, &q);
        s = sl_engine_submit(w->engine, &q, &err);
        if (s == SL_OK)
            return;
        end = SL_END_ERROR;
    }
    bool heard = !r->orphan;
    request_free(w, r);
    if (heard)
        answer(w, link, m, end, s, err.msg);
}

static void stop_fetches(struct sl_list *all)
{
    for (struct sl_list *l = all->next; l != all; l = l->next) {
        struct request *r = SL_ENTRY(l, struct request, of_link);
        if (r->fetch)
            worker_kv_stop(r);
    }
}

void worker_fetches_stop(struct worker *w)
{
    for (uint32_t i = 0; w->links && i < w->cfg->n_connect; i++)
        stop_fetches(&w->links[i].requests);
    stop_fetches(&w->orphans);
}

void worker_cancel_link(struct worker *w, uint32_t link)
{
    struct sl_list *all = &w->links[link].requests;
    while (!sl_list_empty(all))
        orphan(w, SL_ENTRY(all->next, struct request, of_link));
}

/* ---- out ---- */

static bool grow(struct worker *w, uint32_t n)
{
    if (n <= w->outs_max)
        return true;
    void **arrays[] = {(void **)&w->outs, (void **)&w->tokens, (void **)&w->logprobs,
                       (void **)&w->top_tokens, (void **)&w->top_logprobs};
    const size_t sizes[] = {sizeof *w->outs, sizeof *w->tokens, sizeof *w->logprobs,
                            sizeof *w->top_tokens * SL_LOGPROBS_MAX,
                            sizeof *w->top_logprobs * SL_LOGPROBS_MAX};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        void *p = realloc(*arrays[i], n * sizes[i]);
        if (!p)
            return false;
        *arrays[i] = p;
    }
    w->outs_max = n;
    return true;
}

/* A logprob of minus infinity is not a number the bus carries. */
static float finite_logprob(float x)
{
    return isfinite(x) ? x : -FLT_MAX;
}

/* Share `at` of the message from one output of the engine. */
static void write_out(struct worker *w, uint32_t at, struct request *r,
                      const struct sl_engine_out *o)
{
    struct sl_msg_out *m = &w->outs[at];
    *m = (struct sl_msg_out){.id = r->id,
                             .epoch = r->epoch,
                             .end = o->end,
                             .n_cached = o->n_cached,
                             .ordinal = r->n_generated + 1};
    if (o->end == SL_END_ERROR) {
        m->status = o->status != SL_OK ? o->status : SL_FAILED;
        m->message = sl_str_of(sl_status_row(m->status)->text);
    }
    if (!o->has_token)
        return;
    uint32_t *top_tokens = &w->top_tokens[(size_t)at * SL_LOGPROBS_MAX];
    float *top_logprobs = &w->top_logprobs[(size_t)at * SL_LOGPROBS_MAX];
    w->tokens[at] = o->token.token;
    w->logprobs[at] = finite_logprob(o->token.logprob);
    for (uint32_t i = 0; i < o->token.n_top; i++) {
        top_tokens[i] = o->token.top[i].token;
        top_logprobs[i] = finite_logprob(o->token.top[i].logprob);
    }
    m->tokens = &w->tokens[at];
    m->n_tokens = 1;
    r->n_generated++;
    m->logprobs = r->want_logprob ? &w->logprobs[at] : NULL;
    m->n_top = o->token.n_top;
    m->top_tokens = top_tokens;
    m->top_logprobs = top_logprobs;
}

/* All of one router's shares of the step, in one message. */
static void send_share(struct worker *w, uint32_t link, const struct sl_engine_step *s)
{
    uint32_t n = 0;
    struct sl_msg msg = {.kind = SL_MSG_STEP};
    struct sl_err err;
    for (uint32_t i = 0; i < s->n_outs; i++) {
        struct request *r = s->outs[i].user;
        if (!r->orphan && r->link == link)
            write_out(w, n++, r, &s->outs[i]);
    }
    if (n == 0)
        return;
    msg.step.step = s->step;
    msg.step.outs = w->outs;
    msg.step.n_outs = n;
    worker_load(w, &msg.step.load, sl_now_ns());
    if (sl_bus_send(w->bus, link, &msg, &err) != SL_OK) {
        sl_log(SL_LOG_WARN, "tokens not delivered: %s", err.msg);
        worker_link_broken(w, link);
    }
}

static void take_step(struct worker *w, const struct sl_engine_step *s)
{
    if (!grow(w, s->n_outs)) {
        struct sl_err err;
        sl_fail(&err, SL_NO_MEMORY, "worker: no memory for a step of %u outputs", s->n_outs);
        worker_stop(w, SL_NO_MEMORY, &err);
        return;
    }
    for (uint32_t link = 0; link < w->cfg->n_connect && s->n_outs > 0; link++)
        send_share(w, link, s);
    for (uint32_t i = 0; i < s->n_outs; i++)
        if (s->outs[i].end != SL_END_NONE)
            request_free(w, s->outs[i].user);
}

void worker_take_steps(struct worker *w)
{
    struct sl_engine_step *s;
    sl_engine_clear_event(w->engine);
    while (!w->stopping && (s = sl_engine_poll(w->engine))) {
        worker_look_at_group(w); /* of requests that a device has failed others get word: BYE */
        if (!w->stopping)
            take_step(w, s);
        sl_engine_release(w->engine, s);
    }
}

void worker_requests_close(struct worker *w)
{
    for (uint32_t i = 0; w->links && i < w->cfg->n_connect; i++)
        while (!sl_list_empty(&w->links[i].requests))
            request_free(w, SL_ENTRY(w->links[i].requests.next, struct request, of_link));
    while (!sl_list_empty(&w->orphans))
        request_free(w, SL_ENTRY(w->orphans.next, struct request, of_link));
    free(w->outs);
    free(w->tokens);
    free(w->logprobs);
    free(w->top_tokens);
    free(w->top_logprobs);
}
