/* What the router's tests share: configurations, workers, requests, and the actions one expects. */
#ifndef SLUICE_TESTS_ROUTER_FIXTURE_H
#define SLUICE_TESTS_ROUTER_FIXTURE_H

#include <sluice/control/router.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static const struct sl_router_config base = {.max_workers = 4,
                                             .max_requests = 32,
                                             .queue_max = 16,
                                             .page_size = 4,
                                             .retries_max = 2,
                                             .heartbeat_timeout_ns = 1000,
                                             .progress_timeout_ns = 3000,
                                             .policy = SL_ROUTE_LEAST_LOAD};

/* Nobody is lost for being silent. */
static const struct sl_router_config patient = {.max_workers = 4,
                                                .max_requests = 32,
                                                .queue_max = 16,
                                                .page_size = 4,
                                                .retries_max = 2,
                                                .policy = SL_ROUTE_LEAST_LOAD};

static inline struct sl_router *open_with(struct sl_router_config c)
{
    struct sl_router *r = NULL;
    assert_int_equal(sl_router_open(&c, &r, NULL), SL_OK);
    return r;
}

static inline void check(const struct sl_router *r)
{
    struct sl_err err = {0};
    if (sl_router_check(r, &err))
        fail_msg("%s", err.msg);
}

static inline void up(struct sl_router *r, uint64_t key, uint32_t max_seqs, uint64_t class_hash)
{
    struct sl_worker_desc d = {
        .key = key, .class_hash = class_hash, .max_seqs = max_seqs, .max_len = 100, .queue_max = 0};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    check(r);
}

static inline void load(struct sl_router *r, uint64_t key, uint32_t running, uint64_t steps,
                        uint64_t now)
{
    struct sl_worker_load l = {
        .running = running, .pages_free = 1, .pages_total = 1, .steps = steps};
    sl_router_worker_load(r, key, &l, now);
    check(r);
}

static inline bool output_at(struct sl_router *r, uint64_t key, uint64_t id, uint32_t epoch,
                             uint32_t ordinal, uint32_t n_tokens, bool ended)
{
    struct sl_route_output o = {
        .id = id, .epoch = epoch, .ordinal = ordinal, .n_tokens = n_tokens, .ended = ended};
    return sl_router_output(r, key, &o, 0);
}

static inline bool output(struct sl_router *r, uint64_t key, uint64_t id, uint32_t epoch,
                          uint32_t n_tokens, bool ended)
{
    return output_at(r, key, id, epoch, 0, n_tokens, ended);
}

static inline enum sl_status try_submit(struct sl_router *r, uint64_t id, int32_t priority,
                                        uint64_t deadline_ns)
{
    static const uint32_t tokens[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    struct sl_route_request q = {.id = id,
                                 .tokens = tokens,
                                 .n_tokens = 10,
                                 .priority = priority,
                                 .deadline_ns = deadline_ns};
    enum sl_status status = sl_router_submit(r, &q, 0, NULL);
    check(r);
    return status;
}

static inline void submit(struct sl_router *r, uint64_t id)
{
    assert_int_equal(try_submit(r, id, 0, 0), SL_OK);
}

static inline struct sl_action next(struct sl_router *r)
{
    struct sl_action a;
    if (!sl_router_next_action(r, &a))
        fail_msg("no action");
    check(r);
    return a;
}

static inline void none(struct sl_router *r)
{
    struct sl_action a;
    if (sl_router_next_action(r, &a))
        fail_msg("action %d for request %u", a.kind, (unsigned)a.id);
}

static inline void expect_send(struct sl_router *r, uint64_t id, uint64_t worker, uint32_t epoch)
{
    struct sl_action a = next(r);
    assert_int_equal(a.kind, SL_ACT_SEND);
    assert_int_equal(a.id, id);
    assert_int_equal(a.worker_key, worker);
    assert_int_equal(a.epoch, epoch);
}

static inline void expect_cancel(struct sl_router *r, uint64_t id, uint64_t worker, uint32_t epoch)
{
    struct sl_action a = next(r);
    assert_int_equal(a.kind, SL_ACT_CANCEL);
    assert_int_equal(a.id, id);
    assert_int_equal(a.worker_key, worker);
    assert_int_equal(a.epoch, epoch);
    assert_null(a.user);
}

static inline void expect_fail(struct sl_router *r, uint64_t id, enum sl_status status)
{
    struct sl_action a = next(r);
    assert_int_equal(a.kind, SL_ACT_FAIL);
    assert_int_equal(a.id, id);
    assert_int_equal(a.status, status);
}

static inline struct sl_router_stats stats(const struct sl_router *r)
{
    struct sl_router_stats st;
    sl_router_stats(r, &st);
    return st;
}

#endif
