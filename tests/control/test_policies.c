/* Who gets a request under each policy; that routers which know the same do not all choose the same
 * worker; what becomes of slow workers; what the retry budget allows. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <sluice/control/router.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

enum { PAGE = 4 };
#define MS 1000000ull
#define S  1000000000ull

static struct sl_router *open_router(enum sl_route_policy policy, uint64_t seed)
{
    struct sl_router_config c = {.max_workers = 8,
                                 .max_requests = 1024,
                                 .queue_max = 512,
                                 .page_size = 16,
                                 .retries_max = 8,
                                 .seed = seed,
                                 .policy = policy};
    struct sl_router *r = NULL;
    assert_int_equal(sl_router_open(&c, &r, NULL), SL_OK);
    return r;
}

static void check(const struct sl_router *r)
{
    struct sl_err err = {0};
    if (sl_router_check(r, &err))
        fail_msg("%s", err.msg);
}

static void up(struct sl_router *r, uint64_t key, uint32_t max_seqs)
{
    struct sl_worker_desc d = {.key = key,
                               .max_seqs = max_seqs,
                               .max_len = 100000,
                               .queue_max = max_seqs,
                               .page_size = PAGE,
                               .instance = 1000 + key};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
}

struct seen {
    uint32_t running, waiting;
    uint64_t pending;
};

static void load(struct sl_router *r, uint64_t key, struct seen s)
{
    struct sl_worker_load l = {.running = s.running,
                               .waiting = s.waiting,
                               .pages_free = 10000,
                               .pages_total = 10000,
                               .pending_tokens = s.pending};
    sl_router_worker_load(r, key, &l, 0);
    check(r);
}

struct ask {
    uint32_t first, n; /* tokens first, first + 1, ... */
    int32_t priority;
    uint64_t session;
    uint8_t salt;
};

static uint64_t next_id;

/* The worker that gets the request; 0: it waits. */
static uint64_t route(struct sl_router *r, struct ask a)
{
    static uint32_t tokens[4096];
    struct sl_action act;
    for (uint32_t i = 0; i < a.n; i++)
        tokens[i] = a.first + i;
    struct sl_route_request q = {.id = ++next_id,
                                 .tokens = tokens,
                                 .n_tokens = a.n,
                                 .priority = a.priority,
                                 .session = a.session,
                                 .salt = {a.salt}};
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_OK);
    check(r);
    do
        if (!sl_router_next_action(r, &act))
            return 0;
    while (act.kind == SL_ACT_CANCEL);
    assert_int_equal(act.kind, SL_ACT_SEND);
    return act.worker_key;
}

/* Worker `key` says it has stored, or evicted, pages [from, to) of the prompt. */
static void say(struct sl_router *r, uint64_t key, struct ask a, uint32_t from, uint32_t to,
                bool stored)
{
    struct sl_kv_pool kv;
    uint8_t page_key[32] = {a.salt};
    uint32_t tokens[PAGE];
    assert_int_equal(sl_kv_open(&kv, 1, PAGE, true, NULL), SL_OK);
    for (uint32_t p = 0; p < to; p++) {
        for (uint32_t i = 0; i < PAGE; i++)
            tokens[i] = a.first + p * PAGE + i;
        sl_prefix_key(&kv, page_key, tokens, page_key);
        if (p >= from && stored)
            sl_router_kv_stored(r, key, page_key);
        if (p >= from && !stored)
            sl_router_kv_removed(r, key, page_key);
    }
    sl_kv_close(&kv);
}

/* --- kv --------------------------------------------------------------------------------------- */

/* A prompt of 401 tokens, 100 full pages. */
static const struct ask prompt = {.first = 5, .n = 401};

static void test_kv_table(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        uint32_t pages[3]; /* that workers 1, 2, 3 said they have */
        struct seen seen[3];
        int32_t priority;
        uint64_t want;
    } rows[] = {
        {"the cached one", {0, 100, 0}, {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}}, 0, 2},
        {"the one with more", {40, 0, 90}, {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}}, 0, 3},
        {"the cached one though it runs some",
         {0, 100, 0},
         {{0, 0, 0}, {4, 0, 0}, {0, 0, 0}},
         0,
         2},
        {"not the cached one when it has more to compute than the prompt",
         {0, 0, 100},
         {{0, 0, 0}, {20, 20, 9999}, {20, 20, 9999}},
         0,
         1},
        {"no cache anywhere: the idle one", {0, 0, 0}, {{9, 0, 900}, {9, 0, 900}, {0, 0, 0}}, 0, 3},
        {"urgent: rather compute than wait",
         {100, 0, 0},
         {{4, 0, 300}, {20, 20, 9999}, {0, 0, 0}},
         -1,
         3},
        {"patient: rather wait than compute",
         {100, 0, 0},
         {{4, 0, 300}, {20, 20, 9999}, {0, 0, 0}},
         1,
         1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint64_t seed = 1; seed <= 6; seed++) {
            struct sl_router *r = open_router(SL_ROUTE_KV, seed);
            for (uint64_t k = 1; k <= 3; k++) {
                up(r, k, 64);
                load(r, k, rows[i].seen[k - 1]);
                say(r, k, prompt, 0, rows[i].pages[k - 1], true);
            }
            struct ask a = prompt;
            a.priority = rows[i].priority;
            uint64_t got = route(r, a);
            if (got != rows[i].want)
                fail_msg("%s: worker %u, seed %u", rows[i].what, (unsigned)got, (unsigned)seed);
            sl_router_close(r);
        }
}

/* Of sites that are as busy, the one that weighs more seems less so, the one that weighs less more.
 */
static void test_kv_weights(void **state)
{
    (void)state;
    static const struct {
        uint32_t weight_percent[2];
        uint64_t want;
    } rows[] = {{{0, 1000}, 2}, {{1000, 100}, 1}, {{20, 100}, 2}, {{0, 20}, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint64_t seed = 1; seed <= 6; seed++) {
            struct sl_router *r = open_router(SL_ROUTE_KV, seed);
            for (uint64_t k = 1; k <= 2; k++) {
                struct sl_worker_desc d = {.key = k,
                                           .max_seqs = 64,
                                           .max_len = 100000,
                                           .queue_max = 64,
                                           .page_size = PAGE,
                                           .weight_percent = rows[i].weight_percent[k - 1]};
                assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
                load(r, k, (struct seen){10, 0, 4000});
            }
            assert_int_equal(route(r, prompt), rows[i].want);
            sl_router_close(r);
        }
}

/* Events come and go; another salt is another prefix; a page of another size is never found. */
static void test_kv_events_decide(void **state)
{
    (void)state;
    struct sl_router *r = open_router(SL_ROUTE_KV, 3);
    struct sl_router_stats st;
    struct ask a = prompt;
    for (uint64_t k = 1; k <= 4; k++)
        up(r, k, 64);
    say(r, 3, a, 0, 100, true);
    assert_int_equal(route(r, a), 3);
    sl_router_stats(r, &st);
    assert_int_equal(st.n_cached_expected, 400);
    assert_int_equal(st.kv_keys, 100);
    sl_router_kv_cleared(r, 3);
    say(r, 4, a, 0, 100, true);
    sl_router_stats(r, &st);
    assert_int_equal(st.kv_keys, 100);
    assert_int_equal(route(r, a), 4);
    say(r, 4, a, 0, 1, false); /* without its head a prefix is worth nothing */
    say(r, 2, a, 0, 100, true);
    assert_int_equal(route(r, a), 2);
    sl_router_worker_down(r, 2, false, 0);
    sl_router_worker_down(r, 4, false, 0);
    sl_router_worker_down(r, 3, false, 0);
    sl_router_worker_down(r, 1, false, 0);
    sl_router_stats(r, &st);
    assert_int_equal(st.kv_keys, 0);
    sl_router_kv_stored(r, 77, (const uint8_t[32]){1}); /* nobody */
    sl_router_kv_removed(r, 77, (const uint8_t[32]){1});
    sl_router_kv_cleared(r, 77);
    check(r);
    sl_router_close(r);

    r = open_router(SL_ROUTE_KV, 3);
    for (uint64_t k = 1; k <= 4; k++)
        up(r, k, 64);
    a.salt = 1;
    say(r, 3, prompt, 0, 100, true);
    route(r, a);
    sl_router_stats(r, &st);
    assert_int_equal(st.n_cached_expected, 0);
    sl_router_close(r);
}

/* Until events come, a prefix goes where it went, and a burst of it does not scatter. */
static void test_kv_guesses(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct sl_router *r = open_router(SL_ROUTE_KV, seed);
        for (uint64_t k = 1; k <= 4; k++)
            up(r, k, 64);
        uint64_t home = route(r, prompt);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(route(r, prompt), home);
        sl_router_close(r);
    }
}

/* --- herding ---------------------------------------------------------------------------------- */

enum { ROUTERS = 8, WORKERS = 4, ROUNDS = 20 };

/* Most requests that one of 4 workers got when each of 8 routers, all with the same picture of the
 * workers, routes one new prompt; averaged over rounds with other seeds. */
static double most_at_one(enum sl_route_policy policy, struct seen first)
{
    double sum = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t got[WORKERS + 1] = {0}, most = 0;
        for (uint32_t i = 0; i < ROUTERS; i++) {
            struct sl_router *r = open_router(policy, round * ROUTERS + i);
            for (uint64_t k = 1; k <= WORKERS; k++) {
                up(r, k, 64);
                load(r, k, k == 1 ? first : (struct seen){2, 0, 100});
            }
            struct ask a = {.first = round * 10000 + i * 1000, .n = 401};
            got[route(r, a)]++;
            sl_router_close(r);
        }
        for (uint32_t k = 1; k <= WORKERS; k++)
            most = got[k] > most ? got[k] : most;
        sum += most;
    }
    return sum / ROUNDS;
}

/* 8 balls in 4 bins at random have 3.8 in the fullest on average; all in one are 8. */
static void test_no_herding(void **state)
{
    (void)state;
    const struct seen same = {2, 0, 100}, idler = {1, 0, 80};
    double kv = most_at_one(SL_ROUTE_KV, same), kv_idler = most_at_one(SL_ROUTE_KV, idler);
    double p2c = most_at_one(SL_ROUTE_POWER_OF_TWO, same);
    double p2c_idler = most_at_one(SL_ROUTE_POWER_OF_TWO, idler);
    double least = most_at_one(SL_ROUTE_LEAST_LOAD, same);
    print_message("fullest of 4 workers by 8 routers: kv %.2f, one a little idler %.2f; power of "
                  "two %.2f, %.2f; least load %.2f\n",
                  kv, kv_idler, p2c, p2c_idler, least);
    assert_true(kv < 4.3 && kv_idler < 4.8);
    assert_true(p2c < 4.3 && p2c_idler < 5.3);
    assert_true(least < 4.3);
}

/* --- session, power of two, least load -------------------------------------------------------- */

/* The same worker at every router, whatever it knows of load within bounds; the loss of a worker
 * moves that worker's sessions only. */
static void test_session(void **state)
{
    (void)state;
    enum { N = 64 };
    uint64_t home[N], count[WORKERS + 1] = {0};
    struct sl_router *a = open_router(SL_ROUTE_SESSION, 1), *b = open_router(SL_ROUTE_SESSION, 2);
    for (uint64_t k = 1; k <= WORKERS; k++) {
        up(a, k, 1000);
        up(b, WORKERS + 1 - k, 1000);
    }
    for (uint64_t s = 0; s < N; s++) {
        struct ask q = {.first = 1, .n = 40, .session = 1 + s * 7919};
        home[s] = route(a, q);
        count[home[s]]++;
        q.first = 999;
        assert_int_equal(route(b, q), home[s]);
        sl_router_cancel(a, next_id - 1, 0); /* loads stay even: no bound is met */
        sl_router_cancel(b, next_id, 0);
    }
    for (uint64_t k = 1; k <= WORKERS; k++)
        assert_true(count[k] > N / 16);
    sl_router_worker_down(a, 2, false, 0);
    for (uint64_t s = 0; s < N; s++) {
        struct ask q = {.first = 1, .n = 40, .session = 1 + s * 7919};
        uint64_t now = route(a, q);
        assert_true(home[s] == 2 ? now != 2 : now == home[s]);
        sl_router_cancel(a, next_id, 0);
    }
    sl_router_close(a);
    sl_router_close(b);
}

/* One session that asks for everything spreads before its home has much more than the others. */
static void test_session_is_bounded(void **state)
{
    (void)state;
    struct sl_router *r = open_router(SL_ROUTE_SESSION, 1);
    uint32_t count[WORKERS + 1] = {0};
    for (uint64_t k = 1; k <= WORKERS; k++)
        up(r, k, 1000);
    for (uint32_t i = 0; i < 100; i++)
        count[route(r, (struct ask){.first = 1, .n = 40, .session = 5})]++;
    for (uint64_t k = 1; k <= WORKERS; k++)
        assert_in_range(count[k], 1, 25 * 5 / 4 + 3);
    sl_router_close(r);
}

static void test_power_of_two(void **state)
{
    (void)state;
    struct sl_router *r = open_router(SL_ROUTE_POWER_OF_TWO, 1);
    uint32_t count[WORKERS + 1] = {0};
    up(r, 1, 100);
    assert_int_equal(route(r, (struct ask){.first = 1, .n = 9}), 1);
    for (uint64_t k = 2; k <= WORKERS; k++)
        up(r, k, 100);
    for (uint32_t i = 0; i < 200; i++)
        count[route(r, (struct ask){.first = 1, .n = 9})]++;
    for (uint64_t k = 1; k <= WORKERS; k++)
        assert_in_range(count[k], 46, 54);
    /* The busiest of all is never the less loaded of two. */
    load(r, 3, (struct seen){90, 0, 0});
    for (uint32_t i = 0; i < 20; i++)
        assert_int_not_equal(route(r, (struct ask){.first = 1, .n = 9}), 3);
    sl_router_close(r);
}

/* --- slow workers ----------------------------------------------------------------------------- */

struct pool {
    struct sl_router *r;
    uint64_t now, steps[WORKERS + 1], rows[WORKERS + 1], busy[WORKERS + 1];
};

static void pool_open(struct pool *p, uint32_t max_seqs)
{
    struct sl_router_config c = {.max_workers = 8,
                                 .max_requests = 1024,
                                 .queue_max = 512,
                                 .page_size = PAGE,
                                 .retries_max = 1,
                                 .eject_slow = true,
                                 .seed = 1,
                                 .policy = SL_ROUTE_KV};
    memset(p, 0, sizeof *p);
    assert_int_equal(sl_router_open(&c, &p->r, NULL), SL_OK);
    for (uint64_t k = 1; k <= WORKERS; k++)
        up(p->r, k, max_seqs);
}

/* Everybody steps for `ms`, worker `slow` with steps of 10 times the length. */
static void pool_run(struct pool *p, uint64_t ms, uint64_t slow)
{
    for (uint64_t end = p->now + ms * MS; p->now < end;) {
        p->now += 50 * MS;
        for (uint64_t k = 1; k <= WORKERS; k++) {
            uint64_t step = k == slow ? 50 * MS : 5 * MS;
            p->steps[k] += 50 * MS / step;
            p->rows[k] += 50 * MS / step;
            p->busy[k] += 50 * MS;
            struct sl_worker_load l = {.pages_free = 1000,
                                       .pages_total = 1000,
                                       .steps = p->steps[k],
                                       .rows = p->rows[k],
                                       .busy_ns = p->busy[k]};
            sl_router_worker_load(p->r, k, &l, p->now);
        }
        sl_router_tick(p->r, p->now);
        check(p->r);
    }
}

/* Its streams move, exactly once each and not as retries; it gets nothing, then a single request.
 */
static void test_slow_worker(void **state)
{
    (void)state;
    struct pool p;
    struct sl_router_stats st;
    struct sl_action a;
    pool_open(&p, 8);
    pool_run(&p, 1000, 0);
    uint32_t at_slow = 0, n_cancels = 0, n_sends = 0;
    for (uint32_t i = 0; i < 20; i++)
        at_slow += route(p.r, (struct ask){.first = i * 1000, .n = 40}) == 2;
    assert_true(at_slow > 0);
    pool_run(&p, 1500, 2);
    sl_router_stats(p.r, &st);
    assert_int_equal(st.n_ejected, 1);
    assert_int_equal(st.ejected, 1);
    while (sl_router_next_action(p.r, &a)) {
        n_cancels += a.kind == SL_ACT_CANCEL && a.worker_key == 2;
        n_sends += a.kind == SL_ACT_SEND;
        assert_int_not_equal(a.kind, SL_ACT_FAIL);
        assert_false(a.kind == SL_ACT_SEND && a.worker_key == 2);
    }
    assert_int_equal(n_cancels, at_slow);
    assert_int_equal(n_sends, at_slow);
    assert_int_equal(st.n_moved, at_slow);
    for (uint32_t i = 0; i < 10; i++) { /* what has no room waits, rather than go there */
        assert_int_not_equal(route(p.r, (struct ask){.first = i * 900, .n = 40}), 2);
        check(p.r);
    }
    pool_run(&p, 2000, 0); /* out for 2 s, then probed by one of those that wait, or the next */
    for (uint32_t i = 0; i < 30; i++)
        route(p.r, (struct ask){.first = i * 800, .n = 40});
    uint32_t probes = 0;
    while (sl_router_next_action(p.r, &a))
        probes += a.kind == SL_ACT_SEND && a.worker_key == 2;
    assert_true(probes <= 1);
    sl_router_stats(p.r, &st);
    assert_int_equal(st.ejected, 1); /* until first tokens have come in time */
    sl_router_close(p.r);
}

/* A slow worker is better than none. */
static void test_slow_is_better_than_none(void **state)
{
    (void)state;
    struct pool p;
    pool_open(&p, 8);
    pool_run(&p, 1000, 0);
    pool_run(&p, 1500, 2);
    for (uint64_t k = 1; k <= WORKERS; k++)
        if (k != 2)
            sl_router_worker_drain(p.r, k);
    assert_int_equal(route(p.r, (struct ask){.first = 1, .n = 40}), 2);
    sl_router_close(p.r);
}

/* --- retry budget ----------------------------------------------------------------------------- */

/* Refusals without end: the budget lets 50 through at once, then a fifth of the requests and 5 a
 * second. A lost worker's streams move all the same. */
static void test_retry_budget(void **state)
{
    (void)state;
    struct sl_router_config c = {.max_workers = 4,
                                 .max_requests = 1024,
                                 .queue_max = 512,
                                 .page_size = PAGE,
                                 .retries_max = 3,
                                 .retry_percent = 20,
                                 .seed = 1,
                                 .policy = SL_ROUTE_LEAST_LOAD};
    struct sl_router *r = NULL;
    struct sl_router_stats st;
    struct sl_action a;
    assert_int_equal(sl_router_open(&c, &r, NULL), SL_OK);
    up(r, 1, 1000);
    up(r, 2, 1000);
    for (uint32_t i = 0; i < 500; i++) { /* time stands still at 0 */
        uint64_t at = route(r, (struct ask){.first = 1, .n = 9});
        sl_router_refused(r, at, next_id, 1, SL_FAILED, 0);
        check(r);
        if (!sl_router_next_action(r, &a))
            fail_msg("request %u neither failed nor went on", i);
        if (a.kind == SL_ACT_SEND) {
            struct sl_route_output o = {.id = a.id, .epoch = a.epoch, .n_tokens = 1, .ended = true};
            sl_router_output(r, a.worker_key, &o, 0);
        } else
            assert_int_equal(a.status, SL_FAILED);
    }
    sl_router_stats(r, &st);
    assert_in_range(st.n_retried, 50 + 80, 50 + 101);
    assert_int_equal(st.n_retried + st.n_retries_denied, 500);
    assert_int_equal(st.n_failed, st.n_retries_denied);

    /* 64 streams of a lost worker, with the budget spent */
    uint64_t denied = st.n_retries_denied;
    sl_router_worker_down(r, 2, false, 0);
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(route(r, (struct ask){.first = 1, .n = 9}), 1);
    up(r, 3, 1000);
    sl_router_worker_down(r, 1, false, 0);
    for (uint32_t i = 0; i < 64; i++) {
        assert_true(sl_router_next_action(r, &a));
        assert_int_equal(a.kind, SL_ACT_SEND);
        assert_int_equal(a.worker_key, 3);
    }
    sl_router_stats(r, &st);
    assert_int_equal(st.n_moved, 64);
    assert_int_equal(st.n_retries_denied, denied);

    /* ten seconds bring the floor */
    uint64_t before = st.n_retried;
    sl_router_tick(r, 10 * S);
    up(r, 4, 1000);
    for (uint32_t i = 0; i < 100; i++) {
        struct sl_route_request q = {
            .id = ++next_id, .tokens = (const uint32_t[]){1, 2}, .n_tokens = 2};
        assert_int_equal(sl_router_submit(r, &q, 10 * S, NULL), SL_OK);
        assert_true(sl_router_next_action(r, &a));
        sl_router_refused(r, a.worker_key, a.id, a.epoch, SL_NO_MEMORY, 10 * S);
        while (sl_router_next_action(r, &a))
            ;
        sl_router_worker_load(r, 3, &(struct sl_worker_load){0}, 10 * S);
        sl_router_worker_load(r, 4, &(struct sl_worker_load){0}, 10 * S);
    }
    sl_router_stats(r, &st);
    assert_in_range(st.n_retried - before, 50, 50 + 21);
    sl_router_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_table),           cmocka_unit_test(test_kv_weights),
        cmocka_unit_test(test_kv_events_decide),   cmocka_unit_test(test_kv_guesses),
        cmocka_unit_test(test_no_herding),         cmocka_unit_test(test_session),
        cmocka_unit_test(test_session_is_bounded), cmocka_unit_test(test_power_of_two),
        cmocka_unit_test(test_slow_worker),        cmocka_unit_test(test_slow_is_better_than_none),
        cmocka_unit_test(test_retry_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
