/* The router: which worker computes which request. Pure, no clock, no I/O, no locks.
 *
 * Inputs are calls; outputs are actions taken one by one with sl_router_next_action. Every request
 * is owned by at most one (worker, epoch); output of an older epoch is refused. A request whose
 * worker is lost is sent again (the caller replays prompt and tokens) until `retries_max`; once
 * tokens were delivered, only to a worker of the same class.
 *
 * Two kinds of sending again are told apart. A move: the worker was lost, leaves, is slow, or the
 * link broke; it is bounded by the streams that worker had. A retry: a living worker failed the
 * request. Retries add load where there is too much of it, so they are limited to `retry_percent`
 * of the requests of late plus SL_ROUTER_RETRY_FLOOR a second, pool-wide; beyond that the request
 * fails with the worker's reason. Both count towards `retries_max` of a request but moves away from
 * a slow worker, of which a request has at most SL_ROUTER_SLOW_MOVES; the count starts anew once
 * SL_ROUTER_FORGIVE_TOKENS tokens came since, so that a long stream outlives any number of workers,
 * while a request that kills each one at once does not go on for ever. A loss does not count, or
 * stops counting, when the same instance of the worker is heard of: then it was the network's doing.
 *
 * A worker that is full, be it of other routers' requests, or still loading has refused nothing for
 * good: the request waits on, as one does for which no worker had room, and costs no retry. It gets
 * nothing more until its next report, so that its refusals are few.
 *
 * With `eject_slow` a worker much slower than the others gets no requests for a while (eject.h);
 * its streams move where that pays and others have room, and only if nobody else could take a
 * request does it get one still.
 *
 * Workers may do a part of the work. Streams are owned by decode workers and those that do both; a
 * prefill worker owns one only while there is no other that could. For a prompt with at least
 * prefill_min_tokens to compute, the owner gets a source beside it: a prefill worker (for a decode
 * worker also one that does both) that computes the pages of the prompt and hands them over. The
 * source chosen is the one soonest done with it. If it is lost, refuses or is too slow, the owner
 * computes the prompt: a request never waits for a source and never fails by one.
 *
 * A worker gets at most max_seqs requests and a quarter of that in advance; the rest waits here, by
 * priority and then arrival, so that it is bound late to whichever worker is free first. A waiting
 * request that no registered worker could ever take waits for one until its deadline, or without a
 * deadline fails with SL_PEER after SL_ROUTER_STRANDED_NS; any request fails with SL_TIMEOUT at its
 * deadline. */
#ifndef SLUICE_CONTROL_ROUTER_H
#define SLUICE_CONTROL_ROUTER_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_router;

#define SL_ROUTER_STRANDED_NS 60000000000ull

enum { SL_ROUTER_RETRY_FLOOR = 5, SL_ROUTER_SLOW_MOVES = 2, SL_ROUTER_FORGIVE_TOKENS = 16 };

/* Each in a file of its own, policy_*.c. */
enum sl_route_policy {
    SL_ROUTE_LEAST_LOAD,
    SL_ROUTE_PREFIX_AFFINITY, /* where this router sent the prefix before */
    SL_ROUTE_KV,              /* fewest tokens to compute, by what workers say they have cached */
    SL_ROUTE_SESSION,         /* all requests of a session to one worker; without one as KV */
    SL_ROUTE_POWER_OF_TWO     /* the less loaded of two drawn at random */
};

enum sl_worker_role { SL_ROLE_BOTH, SL_ROLE_PREFILL, SL_ROLE_DECODE };

struct sl_router_config {
    uint32_t max_workers, max_requests; /* in flight or waiting */
    uint32_t queue_max;                 /* waiting for a worker at most */
    uint32_t page_size;                 /* of prefixes, until a worker tells its own */
    uint32_t kv_keys_max;               /* pages whose whereabouts are known at most; 0: 65536 */
    uint32_t retries_max;
    uint32_t retry_percent;             /* 0: no budget */
    bool eject_slow;
    uint32_t prefill_min_tokens;        /* 0: no prompt is computed by another worker */
    uint64_t seed;                      /* of random choices; to differ between routers */
    uint64_t heartbeat_timeout_ns;      /* a silent worker is lost; 0: never */
    uint64_t progress_timeout_ns;       /* so is one with work and no steps or output; 0: never */
    enum sl_route_policy policy;
};

struct sl_worker_load {
    uint32_t running, waiting;
    uint32_t max_seqs;        /* from now on: a site's workers come and go; 0: as registered */
    uint32_t pages_free, pages_total;
    uint64_t steps;
    uint64_t rows, busy_ns;   /* of all steps so far, and the time they took */
    uint64_t step_age_ns;     /* of the step in progress; 0: none */
    uint64_t step_expected_ns; /* what that step should take; 0: unknown */
    uint64_t pending_tokens;  /* of prompts, not computed yet */
    bool reforming;           /* a rank was lost: its group comes together again */
};
/* A step in progress took so long that the engine is taken for wedged: its streams move to workers
 * that could take them, and it gets nothing new until it moves again. With reports and ticks every
 * 100 and 50 ms that is noticed within a second where steps are short; on a slow machine steps may
 * take long, hence the factor. Of a step whose length nobody can expect only progress_timeout_ns
 * says so. */
#define SL_STALL_MIN_NS 800000000ull
/* A worker that says why it stands still, a lost rank, gets nothing new; its streams stay for so long,
 * since they go on there without being computed elsewhere. */
#define SL_REFORM_NS 5000000000ull
#define SL_STALL_FACTOR 10
static inline bool sl_is_stalled(uint64_t step_age_ns, uint64_t step_expected_ns)
{
    return step_expected_ns && step_age_ns > SL_STALL_MIN_NS &&
           step_age_ns / SL_STALL_FACTOR > step_expected_ns;
}

struct sl_worker_desc {
    uint64_t key;               /* caller's identity of the link, unique */
    uint64_t class_hash;        /* streams continue only within one class */
    uint32_t max_seqs, max_len;
    uint32_t queue_max;
    uint32_t page_size;         /* of its KV cache; 0: not told */
    enum sl_worker_role role;
    uint64_t kv_layout;         /* workers of the same can exchange KV pages; 0: with nobody */
    bool serves_kv;             /* can be a source */
    uint64_t instance;          /* the same at every router, of one life of the worker; 0: key */
    uint32_t weight_percent;    /* share beside others of its size, up to 10000; 0: 100 */
};

struct sl_route_request {
    uint64_t id;
    const uint32_t *tokens;     /* read during the call: prefix affinity hashes full pages */
    uint32_t n_tokens;
    uint32_t n_before;          /* of them generated before: a stream that goes on here */
    int32_t priority;
    uint64_t tenant;
    uint64_t session;           /* hash of a session's name; 0: none */
    uint8_t salt[32];           /* of the prefix cache */
    uint64_t deadline_ns;       /* 0: none */
    bool has_class;             /* only workers of class_hash may compute it */
    uint64_t class_hash;
    void *user;
};

enum sl_action_kind {
    SL_ACT_SEND,   /* submit id to the worker under epoch; with a source, its prompt to that */
    SL_ACT_CANCEL, /* tell the worker to drop id of epoch */
    SL_ACT_FAIL    /* end the request towards the client with `status` */
};
struct sl_action {
    enum sl_action_kind kind;
    uint64_t worker_key;
    uint64_t source_key; /* of SL_ACT_SEND; has_source */
    bool has_source;
    uint64_t id;
    uint32_t epoch;
    void *user; /* NULL for SL_ACT_CANCEL: the request may be gone */
    enum sl_status status;
};

struct sl_router_stats {
    uint32_t workers, ready_workers, inflight, waiting;
    uint32_t ejected;             /* slow workers left out or probed */
    uint32_t stalled;             /* workers whose engine does not move */
    uint64_t n_routed, n_retried, n_failed, n_fenced, n_repeated, n_gaps;
    uint64_t n_moved;             /* of n_retried those that are moves */
    uint64_t n_retries_denied;    /* by the budget */
    uint64_t n_ejected;
    uint64_t n_prefills;          /* prompts given to a source */
    uint64_t n_cached_expected;   /* tokens that were expected in the chosen workers' caches */
    uint32_t kv_keys;
};

enum sl_status sl_router_open(const struct sl_router_config *cfg, struct sl_router **out,
                              struct sl_err *err);
void sl_router_close(struct sl_router *r);

/* A key already there counts as lost first, and its requests are sent again. SL_QUEUE_FULL when
 * max_workers are registered. */
enum sl_status sl_router_worker_up(struct sl_router *r, const struct sl_worker_desc *w,
                                   uint64_t now_ns, struct sl_err *err);
/* Also the heartbeat: a lost worker that reports again is taken back (one that stood still, once it
 * moved or is empty), and one that refused is asked again. Unknown keys are ignored. */
void sl_router_worker_load(struct sl_router *r, uint64_t key, const struct sl_worker_load *load,
                           uint64_t now_ns);
/* The link is gone, and with `lives` only that: the worker is known to be there. */
void sl_router_worker_down(struct sl_router *r, uint64_t key, bool lives, uint64_t now_ns);
/* What a worker says of its prefix cache, by its pages' keys. All unknown workers are ignored. */
void sl_router_kv_stored(struct sl_router *r, uint64_t worker_key, const uint8_t page_key[32]);
void sl_router_kv_removed(struct sl_router *r, uint64_t worker_key, const uint8_t page_key[32]);
void sl_router_kv_cleared(struct sl_router *r, uint64_t worker_key);
/* No new work; what runs goes on. */
void sl_router_worker_drain(struct sl_router *r, uint64_t key);

/* SL_QUEUE_FULL when queue_max requests wait or max_requests are in flight; SL_LOADING when no
 * worker ever registered; SL_DRAINING after sl_router_drain; SL_TOO_LONG when it fits no registered
 * worker; SL_INVALID for an id in use or an empty prompt. */
enum sl_status sl_router_submit(struct sl_router *r, const struct sl_route_request *q,
                                uint64_t now_ns, struct sl_err *err);
void sl_router_drain(struct sl_router *r); /* refuse new requests, finish the rest */
/* The client went away: no further action names the request but SL_ACT_CANCEL to its worker. */
void sl_router_cancel(struct sl_router *r, uint64_t id, uint64_t now_ns);
struct sl_route_output {
    uint64_t id;
    uint32_t epoch;
    uint32_t ordinal;           /* of the first token: 1 follows the prompt; 0: not told */
    uint32_t n_tokens;
    bool ended;                 /* the request leaves the table with it */
};
/* Tokens arrived. True: deliver them. False: fenced (stale epoch, unknown id, other worker), seen
 * before, or tokens before them are missing: then the request is sent again. A worker that computes
 * what nobody waits for is told to drop it. */
bool sl_router_output(struct sl_router *r, uint64_t worker_key, const struct sl_route_output *o,
                      uint64_t now_ns);
/* A worker refused or failed one request. SL_QUEUE_FULL and SL_LOADING: it waits for a worker again.
 * Retried while `why` may be different elsewhere or later (SL_DRAINING, SL_NO_MEMORY, SL_PEER,
 * SL_FAILED) and retries are left, else failed with `why`. All but SL_FAILED also hold the worker
 * back until its next load. */
void sl_router_refused(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                       enum sl_status why, uint64_t now_ns);

/* A worker is done with a prompt it computed for another, or will not do it (status). False when it
 * is not about this request and epoch, or from its owner: then it is an output. */
bool sl_router_prefilled(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                         enum sl_status status, uint64_t now_ns);

/* Timeouts; call at least at sl_router_next_deadline. */
void sl_router_tick(struct sl_router *r, uint64_t now_ns);
uint64_t sl_router_next_deadline(const struct sl_router *r);
/* All cancels come before failures, all failures before sends. Take them until false. */
bool sl_router_next_action(struct sl_router *r, struct sl_action *out);
void sl_router_stats(const struct sl_router *r, struct sl_router_stats *out);
enum sl_status sl_router_check(const struct sl_router *r, struct sl_err *err);

#endif
