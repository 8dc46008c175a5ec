/* The router's workers: registration, load, loss, timeouts; figures and invariants. */
#include "router_priv.h"

static struct worker *find_worker(const struct sl_router *r, uint64_t key)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (r->workers[i].uid && r->workers[i].desc.key == key)
            return &r->workers[i];
    return NULL;
}

static void give_up_requests(struct sl_router *r, struct worker *w, bool tell_worker)
{
    struct sl_list *next;
    for (struct sl_list *l = w->reqs.next; l != &w->reqs; l = next) {
        next = l->next;
        sl_req_retry(r, SL_ENTRY(l, struct req, link), tell_worker, SL_PEER);
    }
}

static void remove_worker(struct sl_router *r, struct worker *w, bool tell_worker)
{
    give_up_requests(r, w, tell_worker);
    *w = (struct worker){0};
}

/* A free slot, else that of a worker that is lost and has not come back. */
static struct worker *worker_slot(struct sl_router *r)
{
    struct worker *lost = NULL;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (!w->uid)
            return w;
        if (w->lost && (!lost || w->seen_ns < lost->seen_ns))
            lost = w;
    }
    return lost;
}

enum sl_status sl_router_worker_up(struct sl_router *r, const struct sl_worker_desc *d,
                                   uint64_t now_ns, struct sl_err *err)
{
    if (!d->max_seqs || !d->max_len || d->max_seqs > 1u << 24)
        return sl_fail(err, SL_INVALID, "worker of %u sequences and %u positions", d->max_seqs,
                       d->max_len);
    struct worker *w = find_worker(r, d->key);
    if (w)
        remove_worker(r, w, true);
    w = worker_slot(r);
    if (!w)
        return sl_fail(err, SL_QUEUE_FULL, "%u workers are registered", r->cfg.max_workers);
    *w =
        (struct worker){.desc = *d, .uid = ++r->next_uid, .seen_ns = now_ns, .progress_ns = now_ns};
    sl_list_init(&w->reqs);
    if (r->n_stranded)
        sl_router_strand(r, now_ns);
    sl_router_dispatch(r, now_ns);
    return SL_OK;
}

/* Whether a report proves that a lost worker can be trusted with work again. */
static bool is_back(const struct worker *w)
{
    return !w->stuck || w->load.steps != w->stuck_steps || !(w->load.running + w->load.waiting);
}

void sl_router_worker_load(struct sl_router *r, uint64_t key, const struct sl_worker_load *load,
                           uint64_t now_ns)
{
    struct worker *w = find_worker(r, key);
    if (!w)
        return;
    if (load->steps != w->load.steps)
        w->progress_ns = now_ns;
    w->seen_ns = now_ns;
    w->load = *load;
    uint64_t all = (uint64_t)load->running + load->waiting;
    uint64_t foreign = all > w->n_sent ? all - w->n_sent : 0;
    w->foreign = foreign < UINT32_MAX ? (uint32_t)foreign : UINT32_MAX;
    w->blocked = false;
    if (w->lost && is_back(w)) {
        w->lost = w->stuck = false;
        w->progress_ns = now_ns;
        if (r->n_stranded)
            sl_router_strand(r, now_ns);
    }
    sl_router_dispatch(r, now_ns);
}

static void after_loss(struct sl_router *r, uint64_t now_ns)
{
    sl_router_dispatch(r, now_ns);
    sl_router_strand(r, now_ns);
}

void sl_router_worker_down(struct sl_router *r, uint64_t key, uint64_t now_ns)
{
    struct worker *w = find_worker(r, key);
    if (!w)
        return;
    remove_worker(r, w, false);
    after_loss(r, now_ns);
}

void sl_router_worker_drain(struct sl_router *r, uint64_t key)
{
    struct worker *w = find_worker(r, key);
    if (!w)
        return;
    w->draining = true;
    sl_worker_retract(r, w);
    after_loss(r, r->now_ns);
}

/* --- time ------------------------------------------------------------------------------------- */

static uint64_t add_ns(uint64_t a, uint64_t b)
{
    return a < UINT64_MAX - b ? a + b : UINT64_MAX;
}

static uint64_t silent_ns(const struct sl_router *r, const struct worker *w)
{
    return r->cfg.heartbeat_timeout_ns ? add_ns(w->seen_ns, r->cfg.heartbeat_timeout_ns)
                                       : UINT64_MAX;
}

static uint64_t stuck_ns(const struct sl_router *r, const struct worker *w)
{
    return r->cfg.progress_timeout_ns && w->n_sent
               ? add_ns(w->progress_ns, r->cfg.progress_timeout_ns)
               : UINT64_MAX;
}

static bool check_timeouts(struct sl_router *r, struct worker *w, uint64_t now_ns)
{
    bool silent = silent_ns(r, w) <= now_ns, stuck = stuck_ns(r, w) <= now_ns;
    if (!silent && !stuck)
        return false;
    w->lost = true;
    w->stuck = stuck;
    w->stuck_steps = w->load.steps;
    give_up_requests(r, w, true);
    return true;
}

void sl_router_tick(struct sl_router *r, uint64_t now_ns)
{
    bool any_lost = false;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (w->uid && !w->lost)
            any_lost |= check_timeouts(r, w, now_ns);
    }
    struct sl_heap_node *n;
    while ((n = sl_heap_min(&r->deadlines))) {
        struct req *q = SL_ENTRY(n, struct req, by_deadline);
        if (q->deadline_ns > now_ns)
            break;
        sl_req_fail(r, q, SL_TIMEOUT);
    }
    if (any_lost || r->n_waiting)
        after_loss(r, now_ns);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t sl_router_next_deadline(const struct sl_router *r)
{
    uint64_t first = UINT64_MAX;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        if (w->uid && !w->lost)
            first = earlier(first, earlier(silent_ns(r, w), stuck_ns(r, w)));
    }
    struct sl_heap_node *n = sl_heap_min(&r->deadlines);
    if (n)
        first = earlier(first, SL_ENTRY(n, struct req, by_deadline)->deadline_ns);
    if (!r->n_stranded)
        return first;
    for (struct sl_list *l = r->waiting.next; l != &r->waiting; l = l->next) {
        const struct req *q = SL_ENTRY(l, struct req, link);
        if (q->stranded_ns)
            first = earlier(first, add_ns(q->stranded_ns, SL_ROUTER_STRANDED_NS));
    }
    return first;
}

/* --- figures and invariants ------------------------------------------------------------------- */

void sl_router_stats(const struct sl_router *r, struct sl_router_stats *out)
{
    *out = (struct sl_router_stats){.waiting = r->n_waiting,
                                    .n_routed = r->n_routed,
                                    .n_retried = r->n_retried,
                                    .n_failed = r->n_failed,
                                    .n_fenced = r->n_fenced};
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        out->workers += w->uid != 0;
        out->ready_workers += w->uid && !w->lost && !w->draining;
        out->inflight += w->n_reqs;
    }
}

#define BROKEN(...) sl_fail(err, SL_FAILED, "router: " __VA_ARGS__)

static enum sl_status check_worker(const struct sl_router *r, const struct worker *w, uint32_t *n,
                                   struct sl_err *err)
{
    uint32_t n_reqs = 0, n_sent = 0;
    for (const struct sl_list *l = w->reqs.next; l != &w->reqs; l = l->next) {
        const struct req *q = SL_ENTRY(l, struct req, link);
        n_reqs++;
        n_sent += q->state == REQ_SENT;
        if (q->worker != w || (q->state != REQ_SENT && q->state != REQ_TO_SEND))
            return BROKEN("request %llu is with the wrong worker", (unsigned long long)q->id);
        if (q->has_class && q->class_hash != w->desc.class_hash)
            return BROKEN("request %llu left its class", (unsigned long long)q->id);
        if (q->n_retries > r->cfg.retries_max)
            return BROKEN("request %llu was retried %u times", (unsigned long long)q->id,
                          q->n_retries);
    }
    if (n_reqs != w->n_reqs || n_sent != w->n_sent || n_reqs > sl_worker_cap(w))
        return BROKEN("worker has %u requests, %u sent, counted %u and %u", w->n_reqs, w->n_sent,
                      n_reqs, n_sent);
    if (w->lost && n_reqs)
        return BROKEN("a lost worker has %u requests", n_reqs);
    *n += n_reqs;
    return SL_OK;
}

static enum sl_status check_waiting(const struct sl_router *r, uint32_t *n, struct sl_err *err)
{
    uint32_t n_waiting = 0, n_stranded = 0;
    const struct req *before = NULL;
    for (const struct sl_list *l = r->waiting.next; l != &r->waiting; l = l->next) {
        const struct req *q = SL_ENTRY(l, struct req, link);
        n_waiting++;
        n_stranded += q->stranded_ns != 0;
        if (q->state != REQ_WAITING || q->worker)
            return BROKEN("request %llu waits and has a worker", (unsigned long long)q->id);
        if (before && (before->priority > q->priority ||
                       (before->priority == q->priority && before->arrival >= q->arrival)))
            return BROKEN("request %llu waits out of order", (unsigned long long)q->id);
        for (uint32_t i = 0; i < r->cfg.max_workers; i++)
            if (sl_worker_takes(&r->workers[i], q))
                return BROKEN("request %llu waits beside a worker with room",
                              (unsigned long long)q->id);
        before = q;
    }
    if (n_waiting != r->n_waiting || n_stranded != r->n_stranded)
        return BROKEN("%u wait, %u stranded, counted %u and %u", r->n_waiting, r->n_stranded,
                      n_waiting, n_stranded);
    *n += n_waiting;
    return SL_OK;
}

enum sl_status sl_router_check(const struct sl_router *r, struct sl_err *err)
{
    uint32_t n = 0;
    enum sl_status status = check_waiting(r, &n, err);
    for (uint32_t i = 0; i < r->cfg.max_workers && !status; i++)
        if (r->workers[i].uid)
            status = check_worker(r, &r->workers[i], &n, err);
    if (status)
        return status;
    for (const struct sl_list *l = r->failing.next; l != &r->failing; l = l->next)
        n++;
    if (n != r->n_reqs || r->by_id.n != n)
        return BROKEN("%u requests, %zu ids, counted %u", r->n_reqs, r->by_id.n, n);
    if (r->n_cancels > r->cfg.max_requests)
        return BROKEN("%u cancels", r->n_cancels);
    return SL_OK;
}
