/* The router's workers: registration, load, loss, timeouts; figures and invariants. */
#include "router_priv.h"

static struct worker *find_worker(const struct sl_router *r, uint64_t key)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (r->workers[i].uid && r->workers[i].desc.key == key)
            return &r->workers[i];
    return NULL;
}

bool sl_router_has_worker(const struct sl_router *r, uint64_t key)
{
    return find_worker(r, key) != NULL;
}

static void give_up_requests(struct sl_router *r, struct worker *w, bool tell_worker, bool lives)
{
    struct sl_list *next;
    for (struct sl_list *l = w->reqs.next; l != &w->reqs; l = next) {
        next = l->next;
        struct req *q = SL_ENTRY(l, struct req, link);
        if (lives)
            sl_req_relink(r, q, tell_worker);
        else if (w->stuck)
            sl_req_retry(r, q, tell_worker, SL_PEER);
        else
            sl_req_lost(r, q, tell_worker);
    }
}

static uint32_t slot_of(const struct sl_router *r, const struct worker *w)
{
    return (uint32_t)(w - r->workers);
}

static void remove_worker(struct sl_router *r, struct worker *w, bool tell_worker, bool lives)
{
    give_up_requests(r, w, tell_worker, lives);
    sl_worker_drop_prefills(r, w, tell_worker);
    if (r->index)
        sl_kv_index_clear(r->index, slot_of(r, w), true);
    if (r->eject)
        sl_eject_leave(r->eject, slot_of(r, w));
    *w = (struct worker){0};
}

/* Chains are made of pages as large as the workers': the first of them decides. */
static void learn_page_size(struct sl_router *r, uint32_t page_size)
{
    bool any = false;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        any |= r->workers[i].uid != 0;
    if (!any && page_size && page_size <= SL_KV_INDEX_PAGE_MAX)
        r->page_size = page_size;
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
    if (!d->max_seqs || !d->max_len || d->max_seqs > 1u << 24 || d->weight_percent > 10000)
        return sl_fail(err, SL_INVALID, "worker of %u sequences and %u positions", d->max_seqs,
                       d->max_len);
    struct worker *w = find_worker(r, d->key);
    if (w)
        remove_worker(r, w, true, d->instance && d->instance == w->desc.instance);
    w = worker_slot(r);
    if (!w)
        return sl_fail(err, SL_QUEUE_FULL, "%u workers are registered", r->cfg.max_workers);
    if (w->uid)
        remove_worker(r, w, false, false);
    learn_page_size(r, d->page_size);
    *w =
        (struct worker){.desc = *d, .uid = ++r->next_uid, .seen_ns = now_ns, .progress_ns = now_ns};
    sl_list_init(&w->reqs);
    sl_list_init(&w->prefills);
    if (!w->desc.instance)
        w->desc.instance = d->key;
    if (!w->desc.weight_percent)
        w->desc.weight_percent = 100;
    w->cap_high = sl_worker_cap(w);
    sl_router_forgive(r, w->desc.instance);
    if (r->eject)
        sl_eject_join(r->eject, slot_of(r, w), now_ns);
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

/* --- slow workers ----------------------------------------------------------------------------- */

/* Requests that workers which are not slow could take at once. */
static uint32_t room_elsewhere(const struct sl_router *r)
{
    uint32_t room = 0;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        if (w->uid && !w->lost && !w->draining && !w->blocked && !w->stalled &&
            w->slow == SL_EJECT_OK && w->n_reqs < sl_worker_cap(w))
            room += sl_worker_cap(w) - w->n_reqs;
    }
    return room > r->n_waiting ? room - r->n_waiting : 0;
}

static bool suits_a_fast_one(const struct sl_router *r, const struct req *q)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_suits(&r->workers[i], q) && r->workers[i].slow == SL_EJECT_OK)
            return true;
    return false;
}

/* Its streams go on elsewhere, where that is sooner; the rest ends here. */
static void move_streams(struct sl_router *r, struct worker *w)
{
    uint32_t room = room_elsewhere(r);
    struct sl_list *next;
    for (struct sl_list *l = w->reqs.next; l != &w->reqs && room; l = next) {
        next = l->next;
        struct req *q = SL_ENTRY(l, struct req, link);
        uint64_t n_tokens = (uint64_t)q->n_tokens + q->n_delivered;
        if (q->n_moves >= SL_ROUTER_SLOW_MOVES || !suits_a_fast_one(r, q) ||
            !sl_eject_worth_moving(r->eject, slot_of(r, w), n_tokens))
            continue;
        sl_req_move(r, q);
        room--;
    }
}

/* Takes over the states of the watch. */
static void follow_eject(struct sl_router *r)
{
    for (uint32_t i = 0; r->eject && i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        enum sl_eject_state was = w->slow;
        w->slow = w->uid ? sl_eject_state(r->eject, i) : SL_EJECT_OK;
        if (w->slow == SL_EJECT_OUT && was != SL_EJECT_OUT && !w->lost)
            move_streams(r, w);
    }
}

static uint64_t since(uint64_t now, uint64_t before)
{
    return now > before ? now - before : 0;
}

/* Before w->load is replaced. */
static void watch_speed(struct sl_router *r, const struct worker *w,
                        const struct sl_worker_load *load, uint64_t now_ns)
{
    if (!r->eject || w->lost || !w->reported)
        return;
    uint32_t slot = slot_of(r, w);
    uint64_t n_steps = since(load->steps, w->load.steps);
    if (n_steps)
        sl_eject_steps(r->eject, slot, n_steps, since(load->rows, w->load.rows),
                       since(load->busy_ns, w->load.busy_ns), now_ns);
    else if (load->step_age_ns)
        sl_eject_age(r->eject, slot, load->step_age_ns, now_ns);
}

/* --- engines that stand still ----------------------------------------------------------------- */

static bool suits_a_moving_one(const struct sl_router *r, const struct req *q)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_suits(&r->workers[i], q) && !r->workers[i].stalled)
            return true;
    return false;
}

/* What nobody else could take stays: the engine may yet move. */
static void move_from_stalled(struct sl_router *r, struct worker *w)
{
    struct sl_list *next;
    for (struct sl_list *l = w->reqs.next; l != &w->reqs; l = next) {
        next = l->next;
        struct req *q = SL_ENTRY(l, struct req, link);
        if (suits_a_moving_one(r, q))
            sl_req_retry(r, q, true, SL_PEER);
    }
}

static void follow_stall(struct sl_router *r, struct worker *w)
{
    bool was = w->stalled && !w->reforming;
    w->reforming = w->load.reforming && w->load.step_age_ns < SL_REFORM_NS;
    w->stalled = w->load.reforming || sl_is_stalled(w->load.step_age_ns, w->load.step_expected_ns);
    if (w->stalled && !w->reforming && !was && !w->lost)
        move_from_stalled(r, w);
}

/* --- reports ---------------------------------------------------------------------------------- */

/* What others gave it: what it has beyond ours. */
static void count_foreign(struct worker *w)
{
    uint64_t foreign =
        since((uint64_t)w->load.running + w->load.waiting, (uint64_t)w->n_sent + w->n_prefills);
    w->foreign = foreign < UINT32_MAX ? (uint32_t)foreign : UINT32_MAX;
    w->foreign_tokens = since(w->load.pending_tokens, w->n_new + w->prefill_tokens);
}

void sl_router_worker_load(struct sl_router *r, uint64_t key, const struct sl_worker_load *load,
                           uint64_t now_ns)
{
    struct worker *w = find_worker(r, key);
    if (!w)
        return;
    watch_speed(r, w, load, now_ns);
    if (load->steps != w->load.steps)
        w->progress_ns = now_ns;
    w->seen_ns = now_ns;
    w->load = *load;
    w->reported = true;
    if (load->max_seqs && load->max_seqs <= 1u << 24)
        w->desc.max_seqs = load->max_seqs;
    if (sl_worker_cap(w) > w->cap_high)
        w->cap_high = sl_worker_cap(w);
    count_foreign(w);
    w->blocked &= SL_MUTANT(BLOCKED_FOREVER);
    if (w->lost && is_back(w)) {
        if (!w->stuck)
            sl_router_forgive(r, w->desc.instance);
        w->lost = w->stuck = false;
        w->progress_ns = now_ns;
        if (r->eject)
            sl_eject_join(r->eject, slot_of(r, w), now_ns);
        if (r->n_stranded)
            sl_router_strand(r, now_ns);
    }
    follow_eject(r);
    follow_stall(r, w);
    sl_router_dispatch(r, now_ns);
}

void sl_router_kv_stored(struct sl_router *r, uint64_t worker_key, const uint8_t page_key[32])
{
    const struct worker *w = find_worker(r, worker_key);
    if (w && r->index)
        sl_kv_index_stored(r->index, slot_of(r, w), sl_kv_index_name(page_key));
}

void sl_router_kv_removed(struct sl_router *r, uint64_t worker_key, const uint8_t page_key[32])
{
    const struct worker *w = find_worker(r, worker_key);
    if (w && r->index)
        sl_kv_index_removed(r->index, slot_of(r, w), sl_kv_index_name(page_key));
}

void sl_router_kv_cleared(struct sl_router *r, uint64_t worker_key)
{
    const struct worker *w = find_worker(r, worker_key);
    if (w && r->index)
        sl_kv_index_clear(r->index, slot_of(r, w), false);
}

static void after_loss(struct sl_router *r, uint64_t now_ns)
{
    follow_eject(r);
    sl_router_dispatch(r, now_ns);
    sl_router_strand(r, now_ns);
}

void sl_router_worker_down(struct sl_router *r, uint64_t key, bool lives, uint64_t now_ns)
{
    struct worker *w = find_worker(r, key);
    if (!w || SL_MUTANT(LOSS_IGNORED))
        return;
    remove_worker(r, w, false, lives);
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
    return r->cfg.progress_timeout_ns && (w->n_sent || w->n_prefills)
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
    if (r->eject)
        sl_eject_leave(r->eject, slot_of(r, w));
    give_up_requests(r, w, true, false);
    sl_worker_drop_prefills(r, w, true);
    return true;
}

void sl_router_tick(struct sl_router *r, uint64_t now_ns)
{
    bool any_change = r->eject && sl_eject_tick(r->eject, now_ns);
    r->now_ns = now_ns;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (w->uid && !w->lost)
            any_change |= check_timeouts(r, w, now_ns);
        if (w->uid && w->stalled && !w->reforming && !w->lost &&
            w->n_reqs) /* somebody may have come meanwhile */
            move_from_stalled(r, w);
    }
    struct sl_heap_node *n;
    while ((n = sl_heap_min(&r->deadlines))) {
        struct req *q = SL_ENTRY(n, struct req, by_deadline);
        if (q->deadline_ns > now_ns)
            break;
        sl_req_fail(r, q, SL_TIMEOUT);
    }
    if (any_change || r->n_waiting)
        after_loss(r, now_ns);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

uint64_t sl_router_next_deadline(const struct sl_router *r)
{
    uint64_t first = r->eject ? sl_eject_next_deadline(r->eject) : UINT64_MAX;
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
        if (q->stranded_ns && !q->deadline_ns)
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
                                    .n_fenced = r->n_fenced,
                                    .n_moved = r->n_moved,
                                    .n_repeated = r->n_repeated,
                                    .n_gaps = r->n_gaps,
                                    .n_prefills = r->n_prefills,
                                    .n_retries_denied = r->n_retries_denied,
                                    .n_cached_expected = r->n_cached_expected};
    struct sl_kv_index_stats kv = {0};
    if (r->index)
        sl_kv_index_stats(r->index, &kv);
    out->kv_keys = kv.n_keys;
    if (r->eject)
        out->n_ejected = sl_eject_count(r->eject, &out->ejected);
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        out->workers += w->uid != 0;
        out->ready_workers += w->uid && !w->lost && !w->draining;
        out->inflight += w->n_reqs;
        out->stalled += w->stalled;
    }
}

#define BROKEN(...) sl_fail(err, SL_FAILED, "router: " __VA_ARGS__)

static enum sl_status check_worker(const struct sl_router *r, const struct worker *w, uint32_t *n,
                                   struct sl_err *err)
{
    uint32_t n_reqs = 0, n_sent = 0;
    uint64_t n_new = 0;
    for (const struct sl_list *l = w->reqs.next; l != &w->reqs; l = l->next) {
        const struct req *q = SL_ENTRY(l, struct req, link);
        n_reqs++;
        n_sent += q->state == REQ_SENT;
        n_new += q->n_new;
        if (q->worker != w || (q->state != REQ_SENT && q->state != REQ_TO_SEND))
            return BROKEN("request %llu is with the wrong worker", (unsigned long long)q->id);
        if (q->has_class && q->class_hash != w->desc.class_hash)
            return BROKEN("request %llu left its class", (unsigned long long)q->id);
        if (q->n_retries > r->cfg.retries_max || q->n_suspects > q->n_retries)
            return BROKEN("request %llu was retried %u times", (unsigned long long)q->id,
                          q->n_retries);
    }
    if (n_reqs != w->n_reqs || n_sent != w->n_sent || n_reqs > w->cap_high)
        return BROKEN("worker has %u requests, %u sent, counted %u and %u", w->n_reqs, w->n_sent,
                      n_reqs, n_sent);
    if (n_new != w->n_new)
        return BROKEN("worker has %llu tokens to compute, counted %llu",
                      (unsigned long long)w->n_new, (unsigned long long)n_new);
    if (w->lost && n_reqs)
        return BROKEN("a lost worker has %u requests", n_reqs);
    *n += n_reqs;
    return sl_worker_check_prefills(w, err);
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
    if (r->n_cancels > 3 * r->cfg.max_requests)
        return BROKEN("%u cancels", r->n_cancels);
    return SL_OK;
}
