/* What the files of the scheduler share. A sequence is one allocation, made at submit; it is
 * waiting (in a lane and in the arrival order), running (a prefill or a decode) or ended. */
#ifndef SL_CONTROL_SCHED_PRIV_H
#define SL_CONTROL_SCHED_PRIV_H

#include <sluice/base/containers.h>
#include <sluice/control/kv.h>
#include <sluice/control/sched.h>

/* Tokens served to one tenant: Sheng et al., "Fairness in Serving Large Language Models" (OSDI
 * 2024), virtual token counter. Without live requests it may be recycled, longest idle first. */
struct sl_tenant {
    struct sl_hash_node by_key;
    struct sl_list idle;
    uint64_t key;
    uint64_t served;
    uint32_t n_live, n_waiting;
};

/* Waiting requests of one tenant at one priority, oldest first; tenant NULL: the preempted ones of
 * that priority, which go before all tenants. */
struct sl_lane {
    struct sl_list link;
    struct sl_list seqs;
    struct sl_tenant *tenant;
    int32_t priority;
};

enum seq_state { SEQ_WAITING, SEQ_PREFILL, SEQ_DECODE, SEQ_ENDED };

struct sl_seq {
    struct sl_list link;       /* its lane, prefills, decodes or the ended */
    struct sl_list by_arrival; /* while waiting */
    struct sl_hash_node by_id;
    struct sl_heap_node by_deadline; /* when it has one */
    struct sl_lane *lane;            /* while waiting */
    struct sl_tenant *tenant;
    void *user;
    uint64_t id, arrival, submitted_ns, deadline_ns;
    int32_t priority;
    enum seq_state state;
    enum sl_end end;
    bool caching;      /* reads and feeds the prefix index */
    bool in_step;      /* part of the plan in flight */
    bool cancelled;    /* while in the step: leaves at its commit */
    bool forced;       /* to be preempted at the next plan */
    bool prefill_only; /* leaves when its tokens are computed, unsampled */
    bool shielded;     /* goes before every priority, preempted last: see sched.h */
    uint32_t n_tokens, n_prompt, n_max; /* known; of them prompt; tokens at most */
    uint32_t n_computed;                /* positions in the KV pages */
    uint32_t n_charged;                 /* positions its tenant paid for */
    uint32_t n_pages, n_indexed, n_keys;
    uint32_t n_cached; /* tokens found in the prefix index since admission */
    uint32_t n_preempted;
    uint32_t want; /* rows in the step being planned or in flight */
    uint32_t *tokens, *pages;
    uint8_t (*keys)[32]; /* chain keys of full pages */
    uint8_t salt[32];
};

struct sl_sched {
    struct sl_sched_config cfg;
    struct sl_kv_pool kv;
    struct sl_hash by_id;
    struct sl_heap deadlines;
    uint64_t next_arrival;

    struct sl_list lanes; /* by priority, the lane of the preempted first */
    struct sl_list free_lanes;
    struct sl_list arrivals; /* waiting, oldest first */
    uint32_t n_waiting, n_ended, since_aged;
    struct sl_hash by_tenant;
    struct sl_list idle_tenants; /* longest idle first */
    uint32_t n_tenants, tenants_max;
    uint64_t served_floor; /* counter of the tenant admitted last */

    struct sl_list prefills; /* in order of rank */
    struct sl_list decodes;  /* longest not served first */
    struct sl_list ended;
    uint32_t n_running, n_forced;
    uint32_t n_pinned;            /* pins of transfers, on pages used or held */
    const struct sl_seq *blocked; /* did not fit at the last plan, with as many pages available */
    uint32_t blocked_available;

    struct sl_plan plan;
    bool in_flight;
    uint32_t rows_left, rows_planned;
    struct sl_seq **step_seqs; /* [max_seqs] */
    struct sl_sched_stats stats;

    /* memory */
    struct sl_lane *lane_mem;
    struct sl_tenant *tenant_mem;
    struct sl_hash_node **id_buckets, **tenant_buckets;
    uint32_t *tokens, *pos, *q_start, *page_start, *pages, *logit_row, *logit_seq;
    uint64_t *ids;
    void **users;
};

/* Pages that transfers may hold at once. */
static inline uint32_t sl_held_max(const struct sl_sched *s)
{
    return s->cfg.n_pages / 2;
}

static inline uint32_t sl_pages_for(const struct sl_sched *s, uint32_t n_positions)
{
    return n_positions / s->cfg.page_size + (n_positions % s->cfg.page_size != 0);
}

/* sched_queue.c: who is next. */
bool sl_queue_init(struct sl_sched *s);
struct sl_tenant *sl_tenant_get(struct sl_sched *s, uint64_t key);
void sl_tenant_put(struct sl_sched *s, struct sl_tenant *t);
void sl_tenant_charge(struct sl_seq *q, uint32_t n_positions);
void sl_queue_add(struct sl_sched *s, struct sl_seq *q);
void sl_queue_add_preempted(struct sl_sched *s, struct sl_seq *q);
void sl_queue_remove(struct sl_sched *s, struct sl_seq *q);
/* The next to admit, or NULL. *aged: it has the turn of the oldest. */
struct sl_seq *sl_queue_next(const struct sl_sched *s, uint64_t now_ns, bool *aged);
/* Takes it from the queue for admission. */
void sl_queue_admit(struct sl_sched *s, struct sl_seq *q, bool aged);
/* Rank among the running: true when a is served before b and preempted after it. */
bool sl_seq_before(const struct sl_seq *a, const struct sl_seq *b);

/* sched_plan.c: back to the queue with everything known so far to be computed again. */
void sl_seq_requeue(struct sl_sched *s, struct sl_seq *q);
/* sched_plan.c: pages the running prompts still have to take. */
uint32_t sl_sched_promised(const struct sl_sched *s);

/* sched.c */
struct sl_seq *sl_sched_find(const struct sl_sched *s, uint64_t id);
void sl_seq_release_pages(struct sl_sched *s, struct sl_seq *q);
void sl_sched_expire(struct sl_sched *s, uint64_t now_ns);

#endif
