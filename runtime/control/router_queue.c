/* Requests of the router on their way: waiting, given to a worker, failing, and the actions that
 * follow. The waiting are kept in order of priority and arrival. */
#include "router_priv.h"

#include <stdlib.h>

static bool req_before(const struct req *a, const struct req *b)
{
    if (a->priority != b->priority)
        return a->priority < b->priority;
    return a->arrival < b->arrival;
}

void sl_req_wait(struct sl_router *r, struct req *q)
{
    struct sl_list *at = r->waiting.prev;
    while (at != &r->waiting && req_before(q, SL_ENTRY(at, struct req, link)))
        at = at->prev;
    sl_list_insert_after(at, &q->link);
    q->state = REQ_WAITING;
    q->stranded_ns = 0;
    r->n_waiting++;
}

static void unwait(struct sl_router *r, struct req *q)
{
    sl_list_remove(&q->link);
    r->n_waiting--;
    r->n_stranded -= q->stranded_ns != 0;
    q->stranded_ns = 0;
}

void sl_push_cancel(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch)
{
    sl_assert(r->n_cancels < 3 * r->cfg.max_requests);
    uint32_t at = (r->cancel_head + r->n_cancels++) % (3 * r->cfg.max_requests);
    r->cancels[at] = (struct cancel){worker_key, id, epoch};
}

void sl_req_unassign(struct sl_router *r, struct req *q, bool tell_worker)
{
    struct worker *w = q->worker;
    bool sent = q->state == REQ_SENT;
    if (sent && tell_worker)
        sl_push_cancel(r, w->desc.key, q->id, q->epoch);
    sl_req_drop_source(r, q, true);
    sl_list_remove(&q->link);
    sl_list_remove(&q->send);
    sl_req_began(q);
    w->n_reqs--;
    w->n_sent -= sent;
    q->worker = NULL;
}

void sl_req_began(struct req *q)
{
    q->worker->n_new -= q->n_new;
    q->n_new = 0;
}

void sl_req_fail(struct sl_router *r, struct req *q, enum sl_status why)
{
    if (q->state == REQ_WAITING)
        unwait(r, q);
    else if (q->state == REQ_TO_SEND || q->state == REQ_SENT)
        sl_req_unassign(r, q, true);
    q->state = REQ_FAILING;
    q->status = why;
    sl_list_push_back(&r->failing, &q->link);
    if (q->deadline_ns)
        sl_heap_remove(&r->deadlines, &q->by_deadline);
    q->deadline_ns = 0;
    r->n_failed++;
}

void sl_req_free(struct sl_router *r, struct req *q)
{
    if (q->state == REQ_WAITING)
        unwait(r, q);
    sl_list_remove(&q->link);
    if (q->deadline_ns)
        sl_heap_remove(&r->deadlines, &q->by_deadline);
    sl_hash_remove(&r->by_id, &q->by_id);
    free(q->chain);
    q->chain = NULL;
    sl_list_push_front(&r->free_reqs, &q->link);
    r->n_reqs--;
}

static bool is_move(enum sl_status why)
{
    return why == SL_PEER || why == SL_DRAINING;
}

/* Whether the budget has a retry left, which is then spent. */
static bool spend_retry(struct sl_router *r)
{
    if (!r->cfg.retry_percent)
        return true;
    uint64_t since_ns = r->now_ns > r->retry_refill_ns ? r->now_ns - r->retry_refill_ns : 0;
    uint64_t since_ms = since_ns / SL_MS_NS;
    r->retry_refill_ns += since_ms * SL_MS_NS;
    if (since_ms > RETRY_MILLI_MAX)
        since_ms = RETRY_MILLI_MAX;
    r->retry_milli += since_ms * SL_ROUTER_RETRY_FLOOR;
    if (r->retry_milli > RETRY_MILLI_MAX)
        r->retry_milli = RETRY_MILLI_MAX;
    if (r->retry_milli < 1000) {
        r->n_retries_denied++;
        return false;
    }
    r->retry_milli -= 1000;
    return true;
}

void sl_req_retry(struct sl_router *r, struct req *q, bool tell_worker, enum sl_status why)
{
    bool counts = q->state == REQ_SENT; /* else the worker never heard of it */
    bool move = is_move(why);
    sl_req_unassign(r, q, tell_worker);
    sl_req_wait(r, q);
    if (q->n_delivered - q->n_at_move >= SL_ROUTER_FORGIVE_TOKENS)
        q->n_retries = q->n_suspects = 0;
    q->n_at_move = q->n_delivered;
    if (counts && (q->n_retries >= r->cfg.retries_max || (!move && !spend_retry(r)))) {
        sl_req_fail(r, q, why);
        return;
    }
    q->n_retries += counts;
    r->n_retried += counts;
    r->n_moved += counts && move;
}

/* The loss of a worker that lives was none of the request's doing. */
static void forgive(struct req *q, uint64_t instance)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->n_suspects; i++)
        if (q->suspects[i] != instance)
            q->suspects[n++] = q->suspects[i];
    q->n_retries -= q->n_suspects - n;
    q->n_suspects = n;
}

void sl_req_lost(struct sl_router *r, struct req *q, bool tell_worker)
{
    bool counts = q->state == REQ_SENT;
    uint64_t instance = q->worker->desc.instance;
    sl_req_retry(r, q, tell_worker, SL_PEER);
    if (counts && q->state == REQ_WAITING && q->n_suspects < SUSPECTS_MAX)
        q->suspects[q->n_suspects++] = instance;
}

void sl_req_relink(struct sl_router *r, struct req *q, bool tell_worker)
{
    bool counts = q->state == REQ_SENT;
    sl_req_unassign(r, q, tell_worker);
    sl_req_wait(r, q);
    r->n_retried += counts;
    r->n_moved += counts;
}

void sl_router_forgive(struct sl_router *r, uint64_t instance)
{
    for (struct sl_list *l = r->waiting.next; l != &r->waiting; l = l->next)
        forgive(SL_ENTRY(l, struct req, link), instance);
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        for (struct sl_list *l = w->uid ? w->reqs.next : &w->reqs; l != &w->reqs; l = l->next)
            forgive(SL_ENTRY(l, struct req, link), instance);
    }
}

void sl_req_put_back(struct sl_router *r, struct req *q)
{
    sl_req_unassign(r, q, false);
    sl_req_wait(r, q);
}

void sl_req_move(struct sl_router *r, struct req *q)
{
    sl_req_unassign(r, q, true);
    sl_req_wait(r, q);
    q->n_moves++;
    r->n_retried++;
    r->n_moved++;
}

void sl_worker_retract(struct sl_router *r, struct worker *w)
{
    struct sl_list *next;
    for (struct sl_list *l = w->reqs.next; l != &w->reqs; l = next) {
        next = l->next;
        struct req *q = SL_ENTRY(l, struct req, link);
        if (q->state == REQ_TO_SEND)
            sl_req_retry(r, q, false, SL_PEER);
    }
}

/* --- giving out ------------------------------------------------------------------------------- */

/* Slow workers are for those whom nobody else could ever serve. */
static bool needs_slow(const struct sl_router *r, const struct req *q)
{
    for (uint32_t i = 0; r->eject && i < r->cfg.max_workers; i++)
        if (sl_worker_suits(&r->workers[i], q) && r->workers[i].slow != SL_EJECT_OUT)
            return false;
    return r->eject != NULL;
}

/* Cheaper than a policy's choice: most of what waits finds nobody. Better the worker that failed it
 * again than none. */
static bool anyone_takes(const struct sl_router *r, struct req *q)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_takes(&r->workers[i], q))
            return true;
    uint64_t avoid = q->avoid;
    if (!avoid)
        return false;
    q->avoid = 0;
    if (anyone_takes(r, q))
        return true;
    q->avoid = avoid;
    return false;
}

static struct worker *pick(struct sl_router *r, struct req *q)
{
    sl_req_note_roles(r, q);
    q->takes_slow = needs_slow(r, q);
    if (!anyone_takes(r, q))
        return NULL;
    if (r->index && q->n_chain)
        sl_kv_index_match(r->index, q->chain, q->n_chain, r->n_leading);
    return r->policy->ops->pick(r->policy, r, q);
}

uint32_t sl_expected_cached(const struct sl_router *r, const struct req *q, const struct worker *w)
{
    if (!r->index || !q->n_chain)
        return 0;
    uint64_t n = (uint64_t)r->n_leading[w - r->workers] * r->page_size;
    return n < q->n_tokens ? (uint32_t)n : q->n_tokens;
}

/* What the worker will have to compute, and will then have cached. */
static void note_expected(struct sl_router *r, struct req *q, struct worker *w)
{
    uint32_t cached = sl_expected_cached(r, q, w);
    q->n_new = q->n_tokens + q->n_delivered - cached;
    if (q->source) /* the last page's tokens, when all goes well */
        q->n_new = q->n_new < r->page_size ? q->n_new : r->page_size;
    w->n_new += q->n_new;
    r->n_cached_expected += cached;
    for (uint32_t i = r->index ? q->n_chain : 0; i-- > 0;)
        sl_kv_index_guess(r->index, (uint32_t)(w - r->workers), q->chain[i]);
}

bool sl_req_assign(struct sl_router *r, struct req *q, uint64_t now_ns)
{
    struct worker *w = pick(r, q);
    if (!w)
        return false;
    unwait(r, q);
    if (!w->n_reqs)
        w->progress_ns = now_ns; /* it had nothing to make progress with */
    q->state = REQ_TO_SEND;
    q->worker = w;
    q->epoch += !SL_MUTANT(EPOCH_STAYS) || !q->epoch;
    sl_list_push_back(&w->reqs, &q->link);
    sl_list_push_back(&r->to_send, &q->send);
    w->n_reqs++;
    w->last_routed = ++r->n_routed;
    sl_req_find_source(r, q);
    note_expected(r, q, w);
    q->sent_ns = now_ns;
    if (r->policy->ops->routed)
        r->policy->ops->routed(r->policy, q, w);
    return true;
}

static bool any_room(const struct sl_router *r)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        if (w->uid && !w->lost && !w->draining && !w->blocked && !w->stalled &&
            w->n_reqs < sl_worker_cap(w))
            return true;
    }
    return false;
}

void sl_router_dispatch(struct sl_router *r, uint64_t now_ns)
{
    r->now_ns = now_ns;
    struct sl_list *l = r->waiting.next, *next;
    bool assigned = true; /* rooms changed: look again */
    for (; l != &r->waiting; l = next) {
        if (assigned && !any_room(r))
            return;
        next = l->next;
        assigned = sl_req_assign(r, SL_ENTRY(l, struct req, link), now_ns);
    }
}

static bool suits_any(const struct sl_router *r, struct req *q)
{
    sl_req_note_roles(r, q);
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_suits(&r->workers[i], q))
            return true;
    return false;
}

void sl_req_strand(struct sl_router *r, struct req *q, uint64_t now_ns)
{
    bool was = q->stranded_ns != 0, is = !suits_any(r, q);
    if (is && was && !q->deadline_ns && now_ns >= q->stranded_ns + SL_ROUTER_STRANDED_NS) {
        sl_req_fail(r, q, SL_PEER);
        return;
    }
    if (is == was)
        return;
    q->stranded_ns = is ? now_ns + !now_ns : 0;
    r->n_stranded += is;
    r->n_stranded -= was;
}

void sl_router_strand(struct sl_router *r, uint64_t now_ns)
{
    struct sl_list *next;
    for (struct sl_list *l = r->waiting.next; l != &r->waiting; l = next) {
        next = l->next;
        sl_req_strand(r, SL_ENTRY(l, struct req, link), now_ns);
    }
}
