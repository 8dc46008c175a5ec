/* The router: which worker computes which request. Pure, no clock, no I/O, no locks.
 *
 * Inputs are calls; outputs are actions taken one by one with sl_router_next_action. Every request
 * is owned by at most one (worker, epoch); output of an older epoch is refused. A request whose
 * worker is lost is sent again (the caller replays prompt and tokens) until `retries_max`. */
#ifndef SLUICE_CONTROL_ROUTER_H
#define SLUICE_CONTROL_ROUTER_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_router;

enum sl_route_policy { SL_ROUTE_LEAST_LOAD, SL_ROUTE_PREFIX_AFFINITY };

struct sl_router_config {
    uint32_t max_workers, max_requests; /* in flight or waiting */
    uint32_t queue_max;                 /* waiting for a worker at most */
    uint32_t page_size;                 /* granularity of prefix affinity */
    uint32_t retries_max;
    uint64_t heartbeat_timeout_ns;      /* a silent worker is lost */
    uint64_t progress_timeout_ns;       /* a worker with work whose step count stands still */
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
    void *user;
    enum sl_status status;
};

struct sl_router_stats {
    uint32_t workers, ready_workers, inflight, waiting;
    uint64_t n_routed, n_retried, n_failed, n_fenced;
};

enum sl_status sl_router_open(const struct sl_router_config *cfg, struct sl_router **out,
                              struct sl_err *err);
void sl_router_close(struct sl_router *r);

enum sl_status sl_router_worker_up(struct sl_router *r, const struct sl_worker_desc *w,
                                   uint64_t now_ns, struct sl_err *err);
void sl_router_worker_load(struct sl_router *r, uint64_t key, const struct sl_worker_load *load,
                           uint64_t now_ns);
void sl_router_worker_down(struct sl_router *r, uint64_t key, uint64_t now_ns);
/* No new work; what runs goes on. */
void sl_router_worker_drain(struct sl_router *r, uint64_t key);

/* SL_QUEUE_FULL when queue_max requests wait or max_requests are in flight; SL_LOADING when no
 * worker ever registered; SL_DRAINING after sl_router_drain. */
enum sl_status sl_router_submit(struct sl_router *r, const struct sl_route_request *q,
                                uint64_t now_ns, struct sl_err *err);
void sl_router_drain(struct sl_router *r); /* refuse new requests, finish the rest */
void sl_router_cancel(struct sl_router *r, uint64_t id, uint64_t now_ns);
/* Tokens arrived. True: deliver them; false: fenced (stale epoch, unknown id, other worker). With
 * `ended` the request leaves the table. */
bool sl_router_output(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                      uint32_t n_tokens, bool ended, uint64_t now_ns);
/* A worker refused or failed one request: retry elsewhere, or fail it. */
void sl_router_refused(struct sl_router *r, uint64_t worker_key, uint64_t id, uint32_t epoch,
                       enum sl_status why, uint64_t now_ns);

/* Timeouts; call at least at sl_router_next_deadline. */
void sl_router_tick(struct sl_router *r, uint64_t now_ns);
uint64_t sl_router_next_deadline(const struct sl_router *r);
bool sl_router_next_action(struct sl_router *r, struct sl_action *out);
void sl_router_stats(const struct sl_router *r, struct sl_router_stats *out);
enum sl_status sl_router_check(const struct sl_router *r, struct sl_err *err);

#endif
