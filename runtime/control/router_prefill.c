/* Prompts computed by one worker for another: who computes them, and who still does.
 *
 * A request is owned by one worker from its first token to its last. Beside it, while the prompt is
 * being computed, it may have a source: a worker that computes the prompt's pages and hands them to
 * the owner. Losing the source costs nothing but its help, as the owner then computes the prompt,
 * so nothing here delays or fails a request. */
#include "router_priv.h"

#include <sluice/base/mem.h>

/* --- who may own ------------------------------------------------------------------------------ */

void sl_req_note_roles(const struct sl_router *r, struct req *q)
{
    q->takes_prefill = true;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        if (w->desc.role != SL_ROLE_PREFILL && sl_worker_could(w, q))
            q->takes_prefill = false;
    }
}

/* --- choosing a source ------------------------------------------------------------------------ */

static uint32_t known_tokens(const struct req *q)
{
    return q->n_tokens + q->n_delivered;
}

static bool can_help(const struct worker *w, const struct worker *owner, const struct req *q)
{
    bool helper = w->desc.role == SL_ROLE_PREFILL ||
                  (w->desc.role == SL_ROLE_BOTH && owner->desc.role == SL_ROLE_DECODE);
    return w != owner && helper && sl_worker_could(w, q) && !w->blocked && w->desc.serves_kv &&
           w->desc.kv_layout == owner->desc.kv_layout &&
           w->desc.class_hash == owner->desc.class_hash && w->slow != SL_EJECT_OUT &&
           w->n_prefills < sl_worker_cap(w);
}

/* Tokens before the pages are there: what it has to compute already, and what is new to it. */
static uint64_t help_cost(const struct sl_router *r, const struct req *q, const struct worker *w)
{
    uint64_t n_new = known_tokens(q) - sl_expected_cached(r, q, w);
    return n_new + w->prefill_tokens + w->n_new + w->foreign_tokens;
}

/* One that does nothing else goes before one that has streams to run. */
static bool better(const struct sl_router *r, const struct req *q, const struct worker *a,
                   const struct worker *b)
{
    if (a->desc.role != b->desc.role)
        return a->desc.role == SL_ROLE_PREFILL;
    uint64_t x = help_cost(r, q, a), y = help_cost(r, q, b);
    return x != y ? x < y : a->last_routed < b->last_routed;
}

static bool is_worth_it(const struct sl_router *r, const struct req *q, const struct worker *owner)
{
    uint32_t n_new = known_tokens(q) - sl_expected_cached(r, q, owner);
    return r->cfg.prefill_min_tokens && n_new >= r->cfg.prefill_min_tokens &&
           owner->desc.kv_layout && owner->desc.role != SL_ROLE_PREFILL;
}

void sl_req_find_source(struct sl_router *r, struct req *q)
{
    struct worker *best = NULL;
    if (!is_worth_it(r, q, q->worker))
        return;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (w->uid && can_help(w, q->worker, q) && (!best || better(r, q, w, best)))
            best = w;
    }
    if (!best)
        return;
    if (!best->n_prefills && !best->n_reqs)
        best->progress_ns = r->now_ns;
    q->source = best;
    q->n_prefill = known_tokens(q) - sl_expected_cached(r, q, best);
    sl_list_push_back(&best->prefills, &q->by_source);
    best->n_prefills++;
    best->prefill_tokens += q->n_prefill;
    best->last_routed = r->n_routed;
    r->n_prefills++;
    for (uint32_t i = r->index ? q->n_chain : 0; i-- > 0;)
        sl_kv_index_guess(r->index, (uint32_t)(best - r->workers), q->chain[i]);
}

/* --- losing it -------------------------------------------------------------------------------- */

void sl_req_drop_source(struct sl_router *r, struct req *q, bool tell)
{
    struct worker *w = q->source;
    if (!w)
        return;
    if (tell && q->state == REQ_SENT)
        sl_push_cancel(r, w->desc.key, q->id, q->epoch);
    sl_list_remove(&q->by_source);
    w->n_prefills--;
    w->prefill_tokens -= q->n_prefill;
    q->source = NULL;
    q->n_prefill = 0;
}

void sl_worker_drop_prefills(struct sl_router *r, struct worker *w, bool tell)
{
    while (!sl_list_empty(&w->prefills))
        sl_req_drop_source(r, SL_ENTRY(w->prefills.next, struct req, by_source), tell);
}

bool sl_router_prefilled(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                         enum sl_status status, uint64_t now_ns)
{
    struct req *q = sl_req_find(r, id);
    if (!q || q->epoch != epoch || q->state != REQ_SENT || q->worker->desc.key == worker_key)
        return false;
    struct worker *w = q->source;
    if (!w || w->desc.key != worker_key)
        return true; /* the owner went on without it */
    w->seen_ns = w->progress_ns = now_ns;
    w->blocked |= status == SL_QUEUE_FULL || status == SL_DRAINING || status == SL_LOADING;
    w->draining |= status == SL_DRAINING;
    sl_req_drop_source(r, q, false);
    return true;
}

enum sl_status sl_worker_check_prefills(const struct worker *w, struct sl_err *err)
{
    uint32_t n = 0;
    uint64_t n_tokens = 0;
    for (const struct sl_list *l = w->prefills.next; l != &w->prefills; l = l->next) {
        const struct req *q = SL_ENTRY(l, struct req, by_source);
        n++;
        n_tokens += q->n_prefill;
        if (q->source != w || q->worker == w || !q->worker ||
            (q->state != REQ_SENT && q->state != REQ_TO_SEND))
            return sl_fail(err, SL_FAILED, "router: request %llu has a wrong source",
                           (unsigned long long)q->id);
        if (q->worker->desc.kv_layout != w->desc.kv_layout)
            return sl_fail(err, SL_FAILED, "router: request %llu has a source of another layout",
                           (unsigned long long)q->id);
    }
    if (n != w->n_prefills || n_tokens != w->prefill_tokens || (w->lost && n))
        return sl_fail(err, SL_FAILED, "router: worker prefills %u, %llu tokens, counted %u, %llu",
                       w->n_prefills, (unsigned long long)w->prefill_tokens, n,
                       (unsigned long long)n_tokens);
    return SL_OK;
}
