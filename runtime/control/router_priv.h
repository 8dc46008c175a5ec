/* What the files of the router and its policies share. */
#ifndef SL_CONTROL_ROUTER_PRIV_H
#define SL_CONTROL_ROUTER_PRIV_H

#include <sluice/base/containers.h>
#include <sluice/base/mutant.h>
#include <sluice/base/time.h>
#include <sluice/control/eject.h>
#include <sluice/control/kv_index.h>
#include <sluice/control/router.h>

enum {
    ROUTE_CHAIN_MAX = 512, /* pages of a prompt that policies look at */
    SUSPECTS_MAX = 4       /* losses of a request that can still be forgiven */
};

struct worker {
    struct sl_worker_desc desc;
    struct sl_worker_load load;
    struct sl_list reqs;     /* owned by it, sent or about to be */
    struct sl_list prefills; /* requests whose prompt it computes for their owner */
    uint32_t n_prefills;
    uint64_t prefill_tokens; /* of those prompts, as expected */
    uint64_t uid;            /* 0: free slot; never used twice */
    uint64_t seen_ns, progress_ns, stuck_steps, last_routed;
    uint32_t n_reqs, n_sent;
    uint32_t cap_high;       /* the largest sl_worker_cap it had */
    uint32_t foreign;        /* requests of others, by its last report */
    uint64_t n_new;          /* tokens our requests are expected to wait for there */
    uint64_t foreign_tokens; /* the same of others' requests, by its last report */
    bool reported;           /* since it came up */
    bool lost, stuck, stalled, draining;
    bool reforming; /* and so stalled, but it keeps what it has */
    enum sl_eject_state slow;
    bool blocked; /* refused: nothing more until it reports */
};

enum req_state { REQ_WAITING, REQ_TO_SEND, REQ_SENT, REQ_FAILING };

struct req {
    struct sl_list link; /* waiting, its worker's, failing or free */
    struct sl_list send; /* while REQ_TO_SEND */
    struct sl_hash_node by_id;
    struct sl_heap_node by_deadline; /* when it has one */
    uint64_t id, deadline_ns, arrival, tenant;
    void *user;
    struct worker *worker;
    struct worker *source;    /* computes its prompt for `worker`; NULL: nobody does */
    struct sl_list by_source; /* of the source's prefills */
    uint32_t n_prefill;       /* tokens, its share of the source's */
    uint64_t class_hash;      /* counts once has_class */
    uint64_t avoid;           /* uid of a worker that failed it, asked last */
    uint64_t stranded_ns;     /* since when no worker could ever take it; 0: one could */
    uint64_t session;
    uint64_t sent_ns; /* when its worker got it; 0: its first token there has come */
    uint64_t *chain;  /* [n_chain] names of its full pages (kv_index.h) */
    uint32_t n_chain, n_tokens, n_before, n_delivered, epoch, n_retries, n_moves;
    uint64_t suspects[SUSPECTS_MAX]; /* instances it was lost with of late and that may be dead */
    uint32_t n_suspects;
    uint32_t n_at_move; /* tokens delivered in all, when it was last sent again */
    uint32_t n_new;     /* its share of its worker's n_new; 0 once tokens came */
    bool takes_prefill; /* no worker could ever own it but those that only prefill */
    bool takes_slow;    /* no worker that is not slow could ever take it */
    int32_t priority;
    bool has_class; /* asked for, or tokens came from it */
    enum req_state state;
    enum sl_status status; /* REQ_FAILING */
};

/* A policy chooses among the workers for which sl_worker_takes holds. One file, one table, one
 * constructor each. */
struct policy {
    const struct policy_ops *ops;
};
struct policy_ops {
    bool wants_chain;
    bool wants_index; /* r->index: what workers and routing say of caches */
    struct worker *(*pick)(struct policy *p, struct sl_router *r, const struct req *q);
    void (*routed)(struct policy *p, const struct req *q, const struct worker *w); /* may be NULL */
    void (*close)(struct policy *p); /* NULL for a policy that holds nothing */
};
struct policy *sl_policy_least_load(void);
struct policy *sl_policy_prefix_affinity(void);
struct policy *sl_policy_kv(void);
struct policy *sl_policy_session(void);
struct policy *sl_policy_power_of_two(void);
struct worker *sl_least_loaded(struct sl_router *r, const struct req *q);
bool sl_is_less_loaded(const struct worker *a, const struct worker *b);
/* By expected cached tokens and load; see policy_kv.c. */
struct worker *sl_kv_pick(struct sl_router *r, const struct req *q);
/* Leading tokens of the request that w is expected to have cached, after a match of its chain. */
uint32_t sl_expected_cached(const struct sl_router *r, const struct req *q, const struct worker *w);

#define KV_KEYS_DEFAULT 65536
#define RETRY_MILLI_MAX 50000 /* retries that may come at once, in thousandths */

struct cancel {
    uint64_t worker_key, id;
    uint32_t epoch;
};

struct sl_router {
    struct sl_router_config cfg;
    struct policy *policy;
    struct worker *workers; /* [max_workers] */
    struct req *reqs;       /* [max_requests] */
    struct sl_hash by_id;
    struct sl_heap deadlines;
    struct sl_list free_reqs, waiting, to_send, failing;
    /* Ring [3 * max_requests]: owner and source of each request, since sends come last, and as
     * many for what is computed in vain. */
    struct cancel *cancels;
    uint32_t cancel_head, n_cancels;
    uint32_t n_waiting, n_reqs, n_stranded;
    uint64_t now_ns; /* of the last call that told the time */
    uint64_t next_uid, next_arrival, n_routed, n_retried, n_failed, n_fenced;
    uint64_t n_repeated, n_gaps;
    uint64_t n_moved, n_retries_denied, n_cached_expected, n_prefills;
    uint32_t page_size;        /* of the workers' KV caches: of a chain's links */
    struct sl_kv_index *index; /* slot i: workers[i]; NULL: the policy needs none */
    uint32_t *n_leading;       /* [max_workers] of the last match */
    struct sl_eject *eject;    /* NULL: slow workers are not watched */
    uint64_t retry_milli;      /* retries the budget has left, in thousandths */
    uint64_t retry_refill_ns;  /* when time last added to it */
    struct sl_rng rng;
    bool draining;
    struct sl_hash_node **buckets;
};

/* Requests it has, as far as known: ours and those of other routers. */
static inline uint64_t sl_worker_requests(const struct worker *w)
{
    return (uint64_t)w->n_reqs + w->foreign;
}

/* Its size to policies: what it runs at once, weighed. */
static inline uint64_t sl_worker_size(const struct worker *w)
{
    return (uint64_t)w->desc.max_seqs * w->desc.weight_percent;
}

/* Requests this router gives it at most: what it runs at once, and a few for it to go on with. */
static inline uint32_t sl_worker_cap(const struct worker *w)
{
    uint32_t extra = w->desc.max_seqs / 4 + 1;
    return w->desc.max_seqs + (extra < w->desc.queue_max ? extra : w->desc.queue_max);
}

/* Whether it could compute the request, busy or not, and whatever its role. */
static inline bool sl_worker_could(const struct worker *w, const struct req *q)
{
    return w->uid && !w->lost && !w->draining &&
           (!q->has_class || w->desc.class_hash == q->class_hash || SL_MUTANT(CLASS_IGNORED)) &&
           (uint64_t)q->n_tokens + q->n_delivered < w->desc.max_len;
}

/* Whether it may own the request: whoever only prefills does when nobody else could. */
static inline bool sl_worker_suits(const struct worker *w, const struct req *q)
{
    return sl_worker_could(w, q) && (w->desc.role != SL_ROLE_PREFILL || q->takes_prefill);
}

/* Whether it is too slow for this request now. A probed worker gets one at a time. */
static inline bool sl_worker_is_out(const struct worker *w, const struct req *q)
{
    return !q->takes_slow &&
           (w->slow == SL_EJECT_OUT || (w->slow == SL_EJECT_PROBE && w->n_reqs > 0));
}

static inline bool sl_worker_takes(const struct worker *w, const struct req *q)
{
    return sl_worker_suits(w, q) && !w->blocked && !w->stalled && w->n_reqs < sl_worker_cap(w) &&
           q->avoid != w->uid && !sl_worker_is_out(w, q);
}

/* router.c */
struct req *sl_req_find(const struct sl_router *r, uint64_t id);

/* router_prefill.c: sources of prompts. */
void sl_req_note_roles(const struct sl_router *r, struct req *q);
void sl_req_find_source(struct sl_router *r, struct req *q); /* q has its owner */
void sl_req_drop_source(struct sl_router *r, struct req *q, bool tell);
void sl_worker_drop_prefills(struct sl_router *r, struct worker *w, bool tell);
enum sl_status sl_worker_check_prefills(const struct worker *w, struct sl_err *err);

/* router_queue.c: requests between the queue, the workers and the actions. */
void sl_req_wait(struct sl_router *r, struct req *q);
void sl_req_unassign(struct sl_router *r, struct req *q, bool tell_worker);
void sl_push_cancel(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch);
void sl_req_fail(struct sl_router *r, struct req *q, enum sl_status why);
void sl_req_free(struct sl_router *r, struct req *q);
/* After its worker lost or refused it: waits again, or fails with `why`, which also tells a move
 * from a retry (router.h). */
void sl_req_retry(struct sl_router *r, struct req *q, bool tell_worker, enum sl_status why);
/* Its worker may be dead: that counts until the same instance is heard of again. */
void sl_req_lost(struct sl_router *r, struct req *q, bool tell_worker);
/* Its worker lives, but what it was sent is lost with the link: no loss to count. */
void sl_req_relink(struct sl_router *r, struct req *q, bool tell_worker);
void sl_router_forgive(struct sl_router *r, uint64_t instance);
/* Back to the waiting, at no cost. */
void sl_req_put_back(struct sl_router *r, struct req *q);
/* Away from a worker that is slow. */
void sl_req_move(struct sl_router *r, struct req *q);
/* Its worker has begun to answer: its prompt is computed. */
void sl_req_began(struct req *q);
bool sl_router_has_worker(const struct sl_router *r, uint64_t key);
/* Takes back what the worker was chosen for but not sent yet. */
void sl_worker_retract(struct sl_router *r, struct worker *w);
bool sl_req_assign(struct sl_router *r, struct req *q, uint64_t now_ns);
void sl_router_dispatch(struct sl_router *r, uint64_t now_ns);
/* Notes whether any worker could take this waiting request (all of them); fails what is stranded
 * too long. */
void sl_req_strand(struct sl_router *r, struct req *q, uint64_t now_ns);
void sl_router_strand(struct sl_router *r, uint64_t now_ns);

#endif
