/* The router: which worker computes which request. Pure, no clock, no I/O, no locks.
 *
 * Inputs are calls; outputs are actions taken one by one with sl_router_next_action. Every request
 * is owned by at most one (worker, epoch); output of an older epoch is refused. A request whose
 * worker is lost is sent again (the caller replays prompt and tokens) until `retries_max`; once
 * tokens were delivered, only to a worker of the same class.
 *
 * A worker gets at most max_seqs requests and a quarter of that in advance; the rest waits here, by
 * priority and then arrival, so that it is bound late to whichever worker is free first. A waiting
 * request that no registered worker could ever take fails with SL_PEER after SL_ROUTER_STRANDED_NS,
 * any request with SL_TIMEOUT at its deadline. */
#ifndef SLUICE_CONTROL_ROUTER_H
#define SLUICE_CONTROL_ROUTER_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_router;

#define SL_ROUTER_STRANDED_NS 60000000000ull

enum sl_route_policy { SL_ROUTE_LEAST_LOAD, SL_ROUTE_PREFIX_AFFINITY };

struct sl_router_config {
    uint32_t max_workers, max_requests; /* in flight or waiting */
    uint32_t queue_max;                 /* waiting for a worker at most */
    uint32_t page_size;                 /* granularity of prefix affinity */
    uint32_t retries_max;
    uint64_t heartbeat_timeout_ns;      /* a silent worker is lost; 0: never */
    uint64_t progress_timeout_ns;       /* so is one with work and no steps or output; 0: never */
    enum sl_route_policy policy;
};

struct sl_worker_load {
    uint32_t running, waiting;
    uint32_t pages_free, pages_total;
    uint64_t steps;
};
struct sl_worker_desc {
    uint64_t key;               /* caller's identity of the link, unique */
    uint64_t class_hash;        /* streams continue only within one class */
    uint32_t max_seqs, max_len;
    uint32_t queue_max;
};

struct sl_route_request {
    uint64_t id;
    const uint32_t *tokens;     /* read during the call: prefix affinity hashes full pages */
    uint32_t n_tokens;
    int32_t priority;
    uint64_t tenant;
    uint64_t salt;
    uint64_t deadline_ns;       /* 0: none */
    bool has_class;             /* only workers of class_hash may compute it */
    uint64_t class_hash;
    void *user;
};

enum sl_action_kind {
    SL_ACT_SEND,   /* submit id to the worker under epoch */
    SL_ACT_CANCEL, /* tell the worker to drop id of epoch */
    SL_ACT_FAIL    /* end the request towards the client with `status` */
};
struct sl_action {
    enum sl_action_kind kind;
    uint64_t worker_key;
    uint64_t id;
    uint32_t epoch;
    void *user; /* NULL for SL_ACT_CANCEL: the request may be gone */
    enum sl_status status;
};

struct sl_router_stats {
    uint32_t workers, ready_workers, inflight, waiting;
    uint64_t n_routed, n_retried, n_failed, n_fenced;
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
/* The link is gone. */
void sl_router_worker_down(struct sl_router *r, uint64_t key, uint64_t now_ns);
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
/* Tokens arrived. True: deliver them; false: fenced (stale epoch, unknown id, other worker). With
 * `ended` the request leaves the table. */
bool sl_router_output(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                      uint32_t n_tokens, bool ended, uint64_t now_ns);
/* A worker refused or failed one request: retried while `why` may be different elsewhere or later
 * (SL_QUEUE_FULL, SL_DRAINING, SL_LOADING, SL_NO_MEMORY, SL_PEER, SL_FAILED) and retries are left,
 * else failed with `why`. All but SL_FAILED also hold the worker back until its next load. */
void sl_router_refused(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                       enum sl_status why, uint64_t now_ns);

/* Timeouts; call at least at sl_router_next_deadline. */
void sl_router_tick(struct sl_router *r, uint64_t now_ns);
uint64_t sl_router_next_deadline(const struct sl_router *r);
/* All cancels come before failures, all failures before sends. Take them until false. */
bool sl_router_next_action(struct sl_router *r, struct sl_action *out);
void sl_router_stats(const struct sl_router *r, struct sl_router_stats *out);
enum sl_status sl_router_check(const struct sl_router *r, struct sl_err *err);

#endif
