/* The router's requests: open, submit, cancel, output, refusals, actions. */
#include "router_priv.h"

#include <stdlib.h>
#include <string.h>

/* --- open, close ------------------------------------------------------------------------------ */

static bool deadline_less(const struct sl_heap_node *a, const struct sl_heap_node *b)
{
    const struct req *x = SL_ENTRY(a, struct req, by_deadline);
    const struct req *y = SL_ENTRY(b, struct req, by_deadline);
    if (x->deadline_ns != y->deadline_ns)
        return x->deadline_ns < y->deadline_ns;
    return x->arrival < y->arrival;
}

static struct policy *open_policy(enum sl_route_policy policy)
{
    switch (policy) {
    case SL_ROUTE_PREFIX_AFFINITY:
        return sl_policy_prefix_affinity();
    case SL_ROUTE_KV:
        return sl_policy_kv();
    case SL_ROUTE_SESSION:
        return sl_policy_session();
    case SL_ROUTE_POWER_OF_TWO:
        return sl_policy_power_of_two();
    default:
        return sl_policy_least_load();
    }
}

static bool take_memory(struct sl_router *r)
{
    uint32_t n_buckets = 64;
    while (n_buckets < r->cfg.max_requests)
        n_buckets *= 2;
    r->workers = calloc(r->cfg.max_workers, sizeof *r->workers);
    r->reqs = calloc(r->cfg.max_requests, sizeof *r->reqs);
    r->cancels = calloc(3 * (size_t)r->cfg.max_requests, sizeof *r->cancels);
    r->buckets = calloc(n_buckets, sizeof(struct sl_hash_node *));
    r->n_leading = calloc(r->cfg.max_workers, sizeof *r->n_leading);
    r->policy = open_policy(r->cfg.policy);
    if (!r->workers || !r->reqs || !r->cancels || !r->buckets || !r->n_leading || !r->policy)
        return false;
    uint32_t keys_max = r->cfg.kv_keys_max ? r->cfg.kv_keys_max : KV_KEYS_DEFAULT;
    if ((r->policy->ops->wants_index &&
         sl_kv_index_open(r->cfg.max_workers, keys_max, &r->index, NULL)) ||
        (r->cfg.eject_slow && sl_eject_open(r->cfg.max_workers, &r->eject, NULL)))
        return false;
    sl_hash_init(&r->by_id, r->buckets, n_buckets);
    sl_heap_init(&r->deadlines, deadline_less);
    sl_list_init(&r->waiting);
    sl_list_init(&r->to_send);
    sl_list_init(&r->failing);
    sl_list_init(&r->free_reqs);
    for (uint32_t i = 0; i < r->cfg.max_requests; i++)
        sl_list_push_back(&r->free_reqs, &r->reqs[i].link);
    return true;
}

enum sl_status sl_router_open(const struct sl_router_config *cfg, struct sl_router **out,
                              struct sl_err *err)
{
    if (!cfg->max_workers || !cfg->max_requests || !cfg->page_size ||
        cfg->page_size > SL_KV_INDEX_PAGE_MAX || cfg->max_requests > 1u << 24 ||
        cfg->max_workers > 1u << 16)
        return sl_fail(err, SL_INVALID, "router: %u workers, %u requests, pages of %u",
                       cfg->max_workers, cfg->max_requests, cfg->page_size);
    struct sl_router *r = calloc(1, sizeof *r);
    if (!r)
        return sl_fail(err, SL_NO_MEMORY, "router: no memory");
    r->cfg = *cfg;
    r->page_size = cfg->page_size;
    r->rng.seed = cfg->seed;
    r->retry_milli = RETRY_MILLI_MAX;
    if (!take_memory(r)) {
        sl_router_close(r);
        return sl_fail(err, SL_NO_MEMORY, "router: no memory for %u requests", cfg->max_requests);
    }
    *out = r;
    return SL_OK;
}

void sl_router_close(struct sl_router *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; r->reqs && i < r->cfg.max_requests; i++)
        free(r->reqs[i].chain);
    if (r->policy && r->policy->ops->close)
        r->policy->ops->close(r->policy);
    sl_kv_index_close(r->index);
    sl_eject_close(r->eject);
    free(r->n_leading);
    free(r->workers);
    free(r->reqs);
    free(r->cancels);
    free(r->buckets);
    free(r);
}

/* --- submit, cancel --------------------------------------------------------------------------- */

static uint64_t id_hash(uint64_t id)
{
    return sl_hash64(&id, sizeof id, 0);
}

struct req *sl_req_find(const struct sl_router *r, uint64_t id)
{
    for (struct sl_hash_node *n = sl_hash_first(&r->by_id, id_hash(id)); n; n = sl_hash_next(n)) {
        struct req *q = SL_ENTRY(n, struct req, by_id);
        if (q->id == id)
            return q;
    }
    return NULL;
}

static uint32_t longest_context(const struct sl_router *r)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (r->workers[i].uid && r->workers[i].desc.max_len > longest)
            longest = r->workers[i].desc.max_len;
    return longest;
}

static enum sl_status check_request(const struct sl_router *r, const struct sl_route_request *q,
                                    struct sl_err *err)
{
    if (r->draining)
        return sl_fail(err, SL_DRAINING, "the router is draining");
    if (!r->next_uid)
        return sl_fail(err, SL_LOADING, "no worker has registered yet");
    if (!q->n_tokens)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt is empty");
    if (sl_req_find(r, q->id))
        return sl_fail(err, SL_INVALID, "request id %llu is in use", (unsigned long long)q->id);
    uint32_t longest = longest_context(r);
    if (longest && q->n_tokens >= longest)
        return sl_fail_param(err, SL_TOO_LONG, "prompt",
                             "%u tokens leave no room in a context of %u", q->n_tokens, longest);
    if (sl_list_empty(&r->free_reqs))
        return sl_fail(err, SL_QUEUE_FULL, "%u requests are in flight", r->n_reqs);
    return SL_OK;
}

/* Without memory the request is routed by load alone. */
static void name_pages(const struct sl_router *r, const struct sl_route_request *from,
                       struct req *q)
{
    uint32_t n = (from->n_tokens - 1) / r->page_size;
    n = n < ROUTE_CHAIN_MAX ? n : ROUTE_CHAIN_MAX;
    q->chain = n && r->policy->ops->wants_chain ? malloc(n * sizeof *q->chain) : NULL;
    if (!q->chain)
        return;
    sl_kv_index_chain(from->salt, from->tokens, r->page_size, n, q->chain);
    q->n_chain = n;
}

static struct req *req_new(struct sl_router *r, const struct sl_route_request *from)
{
    struct req *q = SL_ENTRY(r->free_reqs.next, struct req, link);
    sl_list_remove(&q->link);
    *q = (struct req){.id = from->id,
                      .deadline_ns = from->deadline_ns,
                      .arrival = r->next_arrival++,
                      .tenant = from->tenant,
                      .session = from->session,
                      .user = from->user,
                      .n_tokens = from->n_tokens,
                      .has_class = from->has_class,
                      .class_hash = from->class_hash,
                      .n_before = from->n_before,
                      .priority = from->priority};
    name_pages(r, from, q);
    sl_hash_insert(&r->by_id, &q->by_id, id_hash(q->id));
    if (q->deadline_ns)
        sl_heap_insert(&r->deadlines, &q->by_deadline);
    r->n_reqs++;
    return q;
}

enum sl_status sl_router_submit(struct sl_router *r, const struct sl_route_request *from,
                                uint64_t now_ns, struct sl_err *err)
{
    enum sl_status status = check_request(r, from, err);
    if (status)
        return status;
    struct req *q = req_new(r, from);
    uint64_t earned = r->retry_milli + r->cfg.retry_percent * 10u;
    r->retry_milli = earned < RETRY_MILLI_MAX ? earned : RETRY_MILLI_MAX;
    sl_req_wait(r, q);
    if (sl_req_assign(r, q, now_ns))
        return SL_OK;
    if (r->n_waiting <= r->cfg.queue_max) {
        sl_req_strand(r, q, now_ns);
        return SL_OK;
    }
    sl_req_free(r, q);
    return sl_fail(err, SL_QUEUE_FULL, "%u requests are waiting for a worker", r->n_waiting);
}

void sl_router_drain(struct sl_router *r)
{
    r->draining = true;
}

void sl_router_cancel(struct sl_router *r, uint64_t id, uint64_t now_ns)
{
    struct req *q = sl_req_find(r, id);
    if (!q)
        return;
    if (q->worker)
        sl_req_unassign(r, q, true);
    sl_req_free(r, q);
    sl_router_dispatch(r, now_ns);
}

/* --- what workers say about requests ---------------------------------------------------------- */

/* Nobody waits for it: the worker may drop it. Left out while many cancels are due; its next output
 * will ask again. */
static void drop_fenced(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch)
{
    r->n_fenced++;
    if (r->n_cancels < r->cfg.max_requests && sl_router_has_worker(r, worker_key))
        sl_push_cancel(r, worker_key, id, epoch);
}

/* The request if this worker owns it under this epoch. */
static struct req *owned(const struct sl_router *r, uint64_t worker_key, uint64_t id,
                         uint32_t epoch)
{
    struct req *q = sl_req_find(r, id);
    bool is = q && q->state == REQ_SENT && (q->epoch == epoch || SL_MUTANT(EPOCH_IGNORED)) &&
              q->worker->desc.key == worker_key;
    return is ? q : NULL;
}

/* Whether these tokens are the next ones. */
static bool is_next(struct sl_router *r, struct req *q, const struct sl_route_output *o)
{
    uint64_t next = (uint64_t)q->n_before + q->n_delivered + 1;
    if (!o->ordinal || o->ordinal == next)
        return true;
    if ((o->ordinal < next && SL_MUTANT(REPEATED_TAKEN)) ||
        (o->ordinal > next && SL_MUTANT(GAP_TAKEN)))
        return true;
    if (o->ordinal < next) {
        r->n_repeated++;
        return false;
    }
    r->n_gaps++;
    sl_req_retry(r, q, true, SL_PEER);
    return false;
}

/* The first tokens under this worker: its prompt is computed. One whose pages came from elsewhere
 * says little about this worker's speed. */
static void first_token(struct sl_router *r, struct req *q, uint64_t now_ns)
{
    if (r->eject && q->sent_ns && !q->source && now_ns > q->sent_ns)
        sl_eject_first(r->eject, (uint32_t)(q->worker - r->workers), q->n_new, now_ns - q->sent_ns,
                       now_ns);
    q->sent_ns = 0;
    sl_req_began(q);
}

bool sl_router_output(struct sl_router *r, uint64_t worker_key, const struct sl_route_output *o,
                      uint64_t now_ns)
{
    struct req *q = owned(r, worker_key, o->id, o->epoch);
    if (!q) {
        if (!o->ended)
            drop_fenced(r, worker_key, o->id, o->epoch);
        else
            r->n_fenced++;
        return false;
    }
    struct worker *w = q->worker;
    w->seen_ns = w->progress_ns = now_ns;
    if (!is_next(r, q, o)) {
        sl_router_dispatch(r, now_ns);
        return false;
    }
    if (o->n_tokens) {
        first_token(r, q, now_ns);
        sl_req_drop_source(r, q, true); /* it has all it needs */
    }
    if (o->n_tokens && !q->has_class)
        q->class_hash = w->desc.class_hash;
    q->has_class |= o->n_tokens > 0;
    q->n_delivered += o->n_tokens;
    if (!o->ended)
        return true;
    sl_req_unassign(r, q, false);
    sl_req_free(r, q);
    if (!SL_MUTANT(PLACE_UNUSED))
        sl_router_dispatch(r, now_ns);
    return true;
}

static bool is_retryable(enum sl_status why)
{
    return why == SL_QUEUE_FULL || why == SL_DRAINING || why == SL_LOADING || why == SL_NO_MEMORY ||
           why == SL_PEER || why == SL_FAILED;
}

/* Full of others' requests, or not ready yet: to be waited for, as if it had no room. */
static bool is_busy(enum sl_status why)
{
    return why == SL_QUEUE_FULL || why == SL_LOADING;
}

void sl_router_refused(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                       enum sl_status why, uint64_t now_ns)
{
    struct req *q = owned(r, worker_key, id, epoch);
    if (!q) {
        r->n_fenced++;
        return;
    }
    struct worker *w = q->worker;
    w->progress_ns = now_ns;
    if (!is_retryable(why)) {
        sl_req_put_back(r, q);
        sl_req_fail(r, q, why);
    } else {
        w->blocked |= why != SL_FAILED;
        w->draining |= why == SL_DRAINING;
        q->avoid = w->uid;
        if (is_busy(why))
            sl_req_put_back(r, q);
        else
            sl_req_retry(r, q, false, why);
        if (w->blocked)
            sl_worker_retract(r, w);
    }
    sl_router_dispatch(r, now_ns);
    sl_router_strand(r, now_ns);
}

/* --- actions ---------------------------------------------------------------------------------- */

static void take_cancel(struct sl_router *r, struct sl_action *out)
{
    const struct cancel *c = &r->cancels[r->cancel_head];
    *out = (struct sl_action){
        .kind = SL_ACT_CANCEL, .worker_key = c->worker_key, .id = c->id, .epoch = c->epoch};
    r->cancel_head = (r->cancel_head + 1) % (3 * r->cfg.max_requests);
    r->n_cancels--;
}

static void take_failure(struct sl_router *r, struct sl_action *out)
{
    struct req *q = SL_ENTRY(r->failing.next, struct req, link);
    *out = (struct sl_action){
        .kind = SL_ACT_FAIL, .id = q->id, .epoch = q->epoch, .user = q->user, .status = q->status};
    sl_req_free(r, q);
}

static void take_send(struct sl_router *r, struct sl_action *out)
{
    struct req *q = SL_ENTRY(r->to_send.next, struct req, send);
    sl_list_remove(&q->send);
    q->state = REQ_SENT;
    q->worker->n_sent++;
    *out = (struct sl_action){.kind = SL_ACT_SEND,
                              .worker_key = q->worker->desc.key,
                              .source_key = q->source ? q->source->desc.key : 0,
                              .has_source = q->source != NULL,
                              .id = q->id,
                              .epoch = q->epoch,
                              .user = q->user};
}

bool sl_router_next_action(struct sl_router *r, struct sl_action *out)
{
    if (r->n_cancels)
        take_cancel(r, out);
    else if (!sl_list_empty(&r->failing))
        take_failure(r, out);
    else if (!sl_list_empty(&r->to_send))
        take_send(r, out);
    else
        return false;
    return true;
}
