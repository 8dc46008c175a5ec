/* The router's rules one by one: who gets a request, what happens when a worker is lost, refuses or
 * stands still, what waits and what fails. */
#include "router_fixture.h"

/* --- submit ----------------------------------------------------------------------------------- */

static void test_submit_refuses(void **state)
{
    (void)state;
    struct sl_router_config c = base;
    c.queue_max = 1;
    c.max_requests = 3;
    struct sl_router *r = open_with(c);
    assert_int_equal(try_submit(r, 1, 0, 0), SL_LOADING);
    up(r, 7, 1, 0);
    submit(r, 1);
    assert_int_equal(try_submit(r, 1, 0, 0), SL_INVALID); /* in use */
    submit(r, 2);                                         /* waits */
    assert_int_equal(try_submit(r, 3, 0, 0), SL_QUEUE_FULL);
    up(r, 8, 9, 0); /* 2 goes there */
    submit(r, 3);
    assert_int_equal(try_submit(r, 4, 0, 0), SL_QUEUE_FULL); /* the table is full */
    sl_router_cancel(r, 3, 0);
    struct sl_route_request q = {.id = 9, .tokens = (const uint32_t[100]){0}, .n_tokens = 100};
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_TOO_LONG);
    q.n_tokens = 0;
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_INVALID);
    sl_router_drain(r);
    assert_int_equal(try_submit(r, 5, 0, 0), SL_DRAINING);
    assert_int_equal(stats(r).inflight, 2); /* the rest goes on */
    sl_router_close(r);
}

/* A worker takes its sequences and a quarter in advance; the rest is bound when one is free, by
 * priority and arrival. */
static void test_late_binding(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    struct sl_worker_desc d = {.key = 7, .max_seqs = 2, .max_len = 100, .queue_max = 50};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    for (uint64_t id = 1; id <= 3; id++)
        submit(r, id);
    submit(r, 4);
    submit(r, 5);
    assert_int_equal(try_submit(r, 6, -1, 0), SL_OK);
    for (uint64_t id = 1; id <= 3; id++)
        expect_send(r, id, 7, 1);
    none(r);
    assert_int_equal(stats(r).waiting, 3);
    static const uint64_t order[] = {6, 4, 5};
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(output(r, 7, i + 1, 1, 1, true));
        expect_send(r, order[i], 7, 1);
        none(r);
    }
    sl_router_close(r);
}

/* --- policies --------------------------------------------------------------------------------- */

static void test_least_load(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 8, 0);
    up(r, 8, 4, 0);
    static const uint64_t order[] = {7, 8, 7, 8, 7, 7}; /* in proportion to their size */
    for (uint64_t id = 0; id < 6; id++) {
        submit(r, id);
        expect_send(r, id, order[id], 1);
    }
    load(r, 7, 9, 1, 0); /* four of ours and five of another router's */
    submit(r, 6);
    expect_send(r, 6, 8, 1);
    submit(r, 7);
    expect_send(r, 7, 8, 1);
    sl_router_close(r);
}

static uint64_t worker_of(struct sl_router *r, uint64_t id, uint32_t first, uint8_t salt)
{
    uint32_t tokens[20];
    for (uint32_t i = 0; i < 20; i++)
        tokens[i] = first + i;
    struct sl_route_request q = {.id = id, .tokens = tokens, .n_tokens = 20, .salt = {salt}};
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_OK);
    struct sl_action a = next(r);
    assert_int_equal(a.kind, SL_ACT_SEND);
    return a.worker_key;
}

/* The same prefix goes to the same worker until that has clearly more to do. */
static void test_prefix_affinity(void **state)
{
    (void)state;
    struct sl_router_config c = base;
    c.policy = SL_ROUTE_PREFIX_AFFINITY;
    struct sl_router *r = open_with(c);
    up(r, 7, 16, 0);
    up(r, 8, 16, 0);
    uint64_t home = worker_of(r, 0, 100, 0);
    uint64_t other = home == 7 ? 8 : 7;
    assert_int_equal(worker_of(r, 1, 900, 0), other);
    for (uint64_t id = 2; id < 8; id++) /* up to a quarter and two more than the other */
        assert_int_equal(worker_of(r, id, 100, 0), home);
    assert_int_equal(worker_of(r, 8, 100, 0), home);
    assert_int_equal(worker_of(r, 9, 100, 0), other);
    assert_int_equal(worker_of(r, 10, 100, 1), other); /* another salt: by load */
    sl_router_worker_down(r, home, false, 0);
    check(r);
    sl_router_close(r);
}

/* --- loss ------------------------------------------------------------------------------------- */

/* A lost worker's requests go to another under the next epoch; its late words are refused. */
static void test_worker_down(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    assert_true(output(r, 7, 1, 1, 3, false));
    up(r, 8, 4, 0);
    sl_router_worker_down(r, 7, false, 0);
    expect_send(r, 1, 8, 2); /* no cancel: the link is gone */
    none(r);
    assert_false(output(r, 7, 1, 1, 1, false));
    assert_false(output(r, 8, 1, 1, 1, false));
    assert_false(output(r, 7, 1, 2, 1, false));
    assert_false(output(r, 8, 2, 2, 1, false));
    assert_int_equal(stats(r).n_fenced, 4);
    assert_true(output(r, 8, 1, 2, 1, true));
    assert_false(output(r, 8, 1, 2, 1, true));
    assert_int_equal(stats(r).inflight, 0);
    assert_int_equal(stats(r).n_retried, 1);
    sl_router_close(r);
}

static void test_retries_are_bounded(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base); /* two retries */
    up(r, 1, 4, 0);
    submit(r, 1);
    for (uint64_t key = 1; key <= 3; key++) {
        expect_send(r, 1, key, (uint32_t)key);
        up(r, key + 1, 4, 0);
        sl_router_worker_down(r, key, false, 0);
    }
    expect_fail(r, 1, SL_PEER);
    none(r);
    assert_int_equal(stats(r).n_failed, 1);
    sl_router_close(r);
}

/* With tokens delivered only the same class will do; without, any. */
static void test_class(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 111);
    submit(r, 1);
    submit(r, 2);
    expect_send(r, 1, 7, 1);
    expect_send(r, 2, 7, 1);
    assert_true(output(r, 7, 1, 1, 1, false));
    up(r, 8, 4, 222);
    sl_router_worker_down(r, 7, false, 5);
    expect_send(r, 2, 8, 2);
    none(r); /* 1 waits */
    assert_int_equal(sl_router_next_deadline(r), 1000);
    load(r, 8, 1, 5, SL_ROUTER_STRANDED_NS);
    sl_router_tick(r, SL_ROUTER_STRANDED_NS + 4);
    none(r);
    assert_int_equal(sl_router_next_deadline(r), SL_ROUTER_STRANDED_NS + 5);
    up(r, 9, 4, 111);
    expect_send(r, 1, 9, 2);
    sl_router_close(r);
}

/* A stream that goes on after another router's is bound to its class before any token. */
static void test_class_asked_for(void **state)
{
    (void)state;
    static const uint32_t tokens[3] = {1, 2, 3};
    struct sl_route_request q = {
        .id = 1, .tokens = tokens, .n_tokens = 3, .has_class = true, .class_hash = 222};
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 111);
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_OK);
    none(r);
    up(r, 8, 4, 222);
    expect_send(r, 1, 8, 1);
    sl_router_close(r);
}

/* A long stream may lose any number of workers, if each gave it some tokens. */
static void test_retries_are_forgiven(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base); /* two retries */
    up(r, 1, 4, 0);
    submit(r, 1);
    for (uint64_t key = 1; key <= 6; key++) {
        bool gives = key <= 4; /* the fifth loss is a first one again, the sixth the last */
        expect_send(r, 1, key, (uint32_t)key);
        up(r, key + 1, 4, 0);
        if (gives)
            assert_true(output(r, key, 1, (uint32_t)key, SL_ROUTER_FORGIVE_TOKENS, false));
        sl_router_worker_down(r, key, false, 0);
    }
    expect_fail(r, 1, SL_PEER);
    none(r);
    sl_router_close(r);
}

/* Whoever could take a request ends its being stranded, though it has no room yet. */
static void test_no_longer_stranded(void **state)
{
    (void)state;
    struct sl_router *r = open_with(patient);
    up(r, 7, 1, 0);
    sl_router_worker_down(r, 7, false, 0);
    submit(r, 1);
    submit(r, 2);
    sl_router_tick(r, 1);
    uint64_t due = sl_router_next_deadline(r);
    assert_true(due < UINT64_MAX);
    up(r, 8, 1, 0);
    expect_send(r, 1, 8, 1);
    assert_int_equal(sl_router_next_deadline(r), UINT64_MAX);
    sl_router_tick(r, due);
    none(r);
    assert_true(output(r, 8, 1, 1, 1, true));
    expect_send(r, 2, 8, 1);
    sl_router_close(r);
}

static void test_stranded(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    sl_router_worker_down(r, 7, false, 0);
    assert_int_equal(try_submit(r, 1, 0, 0), SL_OK);
    assert_int_equal(try_submit(r, 2, 0, 50), SL_OK);
    assert_int_equal(sl_router_next_deadline(r), 50);
    sl_router_tick(r, 50);
    expect_fail(r, 2, SL_TIMEOUT);
    uint64_t due = sl_router_next_deadline(r);
    assert_true(due >= SL_ROUTER_STRANDED_NS && due <= SL_ROUTER_STRANDED_NS + 50);
    sl_router_tick(r, due - 1);
    none(r);
    sl_router_tick(r, due);
    expect_fail(r, 1, SL_PEER);
    assert_int_equal(sl_router_next_deadline(r), UINT64_MAX);
    sl_router_close(r);
}

/* With a deadline a request waits until then, however long no worker could take it: also one that
 * has delivered tokens and finds only workers of another class. The first that fits gets it. */
static void test_waits_within_its_deadline(void **state)
{
    (void)state;
    const uint64_t deadline = 5 * SL_ROUTER_STRANDED_NS;
    struct sl_router *r = open_with(patient);
    up(r, 7, 4, 0);
    for (uint64_t id = 1; id <= 3; id++)
        assert_int_equal(try_submit(r, id, 0, id == 3 ? 0 : deadline), SL_OK);
    for (uint64_t id = 1; id <= 3; id++) {
        expect_send(r, id, 7, 1);
        assert_true(output(r, 7, id, 1, 2, false));
    }
    sl_router_worker_down(r, 7, false, 1000);
    up(r, 8, 4, 1); /* another class */
    none(r);
    uint64_t due = sl_router_next_deadline(r);
    assert_in_range(due, SL_ROUTER_STRANDED_NS, SL_ROUTER_STRANDED_NS + 1000);
    sl_router_tick(r, due);
    expect_fail(r, 3, SL_PEER); /* it has no deadline */
    none(r);
    assert_true(sl_router_next_deadline(r) > due);
    sl_router_tick(r, 2 * SL_ROUTER_STRANDED_NS);
    none(r);
    sl_router_cancel(r, 2, 0);
    struct sl_worker_desc d = {.key = 9, .max_seqs = 4, .max_len = 100};
    assert_int_equal(sl_router_worker_up(r, &d, 2 * SL_ROUTER_STRANDED_NS, NULL), SL_OK);
    expect_send(r, 1, 9, 2);
    sl_router_worker_down(r, 9, false, 2 * SL_ROUTER_STRANDED_NS);
    sl_router_tick(r, deadline);
    expect_fail(r, 1, SL_TIMEOUT);
    none(r);
    sl_router_close(r);
}

static void report(struct sl_router *r, uint64_t key, uint64_t steps, uint64_t age_ns,
                   uint64_t expected_ns)
{
    struct sl_worker_load l = {.running = 1,
                               .pages_free = 1,
                               .pages_total = 1,
                               .steps = steps,
                               .step_age_ns = age_ns,
                               .step_expected_ns = expected_ns};
    sl_router_worker_load(r, key, &l, 0);
    check(r);
}

/* A worker whose group of ranks forms anew gets nothing new and keeps what it has, for five
 * seconds. */
static void test_reforming(void **state)
{
    (void)state;
    struct sl_router *r = open_with(patient);
    struct sl_worker_load l = {.running = 1,
                               .steps = 1,
                               .step_age_ns = 900000000,
                               .step_expected_ns = 1,
                               .reforming = true};
    up(r, 7, 4, 0);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    up(r, 8, 4, 0);
    sl_router_worker_load(r, 7, &l, 0);
    sl_router_tick(r, 0);
    none(r);
    submit(r, 2);
    expect_send(r, 2, 8, 1);
    submit(r, 3);
    expect_send(r, 3, 8, 1);
    l.step_age_ns = SL_REFORM_NS - 1;
    sl_router_worker_load(r, 7, &l, 0);
    none(r);
    l.step_age_ns = SL_REFORM_NS;
    sl_router_worker_load(r, 7, &l, 0);
    expect_cancel(r, 1, 7, 1);
    expect_send(r, 1, 8, 2);
    report(r, 7, 2, 0, 1);
    submit(r, 4);
    expect_send(r, 4, 7, 1);
    none(r);
    sl_router_close(r);
}

/* A step that takes ten times as long as it should, and 800 ms: its streams move to whoever could
 * take them, and it gets no new ones until it moves. What nobody could take stays. */
static void test_stalled(void **state)
{
    static const struct {
        uint64_t age_ns, expected_ns;
        bool stalled;
    } rows[] = {{700000000, 10000000, false},
                {900000000, 10000000, true},
                {900000000, 100000000, false},
                {1200000000, 100000000, true},
                {900000000, 0, false},
                {UINT64_MAX, 0, false},
                {UINT64_MAX, 7000000000, true},
                {UINT64_MAX, UINT64_MAX, false},
                {70000000000, 7000000000, false},
                {80000000000, 7000000000, true}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(sl_is_stalled(rows[i].age_ns, rows[i].expected_ns), rows[i].stalled);

    struct sl_router *r = open_with(patient);
    up(r, 7, 4, 0);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    report(r, 7, 1, 900000000, 1);
    assert_int_equal(stats(r).stalled, 1);
    none(r); /* nobody else is there */
    submit(r, 2);
    none(r);
    up(r, 8, 4, 0);
    expect_send(r, 2, 8, 1);
    sl_router_tick(r, 0);
    expect_cancel(r, 1, 7, 1);
    expect_send(r, 1, 8, 2);
    assert_false(output(r, 7, 1, 1, 1, true)); /* it wakes up late */
    submit(r, 3);
    expect_send(r, 3, 8, 1);
    report(r, 8, 1, 900000000, 1); /* both: then they keep what they have */
    sl_router_tick(r, 0);
    none(r);
    report(r, 7, 2, 0, 1);
    sl_router_tick(r, 0);
    expect_cancel(r, 2, 8, 1);
    expect_cancel(r, 1, 8, 2);
    expect_cancel(r, 3, 8, 1);
    for (uint64_t id = 1; id <= 3; id++) /* in the order in which they came */
        expect_send(r, id, 7, id == 1 ? 3 : 2);
    sl_router_close(r);
}

/* Silence and standing still: the worker loses its requests and is told, in case it lives. */
static void test_timeouts(void **state)
{
    (void)state;
    static const struct {
        uint64_t loads[4]; /* times of reports, 0 ends */
        bool moves;        /* with new steps each time */
        uint64_t lost_ns;
    } rows[] = {
        {{0}, false, 1000},
        {{900, 0}, false, 1900},
        {{900, 1800, 2700, 0}, false, 3000}, /* alive, but no step since the start */
        {{900, 1800, 2700, 0}, true, 3700},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_router *r = open_with(base);
        up(r, 7, 4, 0);
        submit(r, 1);
        expect_send(r, 1, 7, 1);
        for (uint32_t n = 0; n < 4 && rows[i].loads[n]; n++)
            load(r, 7, 1, rows[i].moves ? n + 1 : 0, rows[i].loads[n]);
        assert_int_equal(sl_router_next_deadline(r), rows[i].lost_ns);
        sl_router_tick(r, rows[i].lost_ns - 1);
        none(r);
        assert_int_equal(stats(r).ready_workers, 1);
        sl_router_tick(r, rows[i].lost_ns);
        expect_cancel(r, 1, 7, 1);
        none(r);
        assert_int_equal(stats(r).ready_workers, 0);
        assert_int_equal(stats(r).waiting, 1);
        up(r, 8, 4, 0);
        expect_send(r, 1, 8, 2);
        sl_router_close(r);
    }
}

/* A silent worker is back when it speaks; one that stood still when it moved or is empty. */
static void test_comes_back(void **state)
{
    (void)state;
    static const struct {
        bool stuck;
        uint32_t running;
        uint64_t steps;
        bool back;
    } rows[] = {{false, 1, 5, true}, {true, 1, 5, false}, {true, 1, 6, true}, {true, 0, 5, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_router *r = open_with(base);
        up(r, 7, 4, 0);
        load(r, 7, 0, 5, 0);
        submit(r, 1);
        expect_send(r, 1, 7, 1);
        uint64_t now = 1000;
        for (; rows[i].stuck && now < 3000; now += 1000)
            load(r, 7, 1, 5, now);
        if (rows[i].stuck)
            load(r, 7, 1, 5, now = 3000);
        sl_router_tick(r, now);
        expect_cancel(r, 1, 7, 1);
        assert_int_equal(stats(r).ready_workers, 0);
        load(r, 7, rows[i].running, rows[i].steps, now + 1);
        assert_int_equal(stats(r).ready_workers, rows[i].back);
        if (rows[i].back)
            expect_send(r, 1, 7, 2);
        none(r);
        sl_router_close(r);
    }
}

/* --- refusals, cancels, deadlines ------------------------------------------------------------- */

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        enum sl_status why;
        bool retried, held_back; /* the worker, until its next load */
    } rows[] = {{SL_QUEUE_FULL, true, true}, {SL_PEER, true, true},
                {SL_NO_MEMORY, true, true},  {SL_LOADING, true, true},
                {SL_FAILED, true, false},    {SL_INVALID, false, false},
                {SL_TOO_LONG, false, false}, {SL_UNSUPPORTED, false, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_router *r = open_with(base);
        up(r, 7, 4, 0);
        submit(r, 1);
        expect_send(r, 1, 7, 1);
        up(r, 8, 1, 0);
        sl_router_refused(r, 8, 1, 1, rows[i].why, 0); /* not its request */
        sl_router_refused(r, 7, 1, 1, rows[i].why, 0);
        if (rows[i].retried)
            expect_send(r, 1, 8, 2); /* elsewhere */
        else
            expect_fail(r, 1, rows[i].why);
        none(r);
        if (rows[i].retried) {
            submit(r, 2); /* 8 is full */
            if (rows[i].held_back) {
                none(r);
                load(r, 7, 0, 1, 1);
            }
            expect_send(r, 2, 7, 1);
        }
        none(r);
        sl_router_close(r);
    }
}

/* The only worker fails a request: tried again there, and failed with its reason in the end. */
static void test_refused_by_the_only(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    submit(r, 1);
    for (uint32_t epoch = 1; epoch <= 3; epoch++) {
        expect_send(r, 1, 7, epoch);
        sl_router_refused(r, 7, 1, epoch, SL_FAILED, 0);
    }
    expect_fail(r, 1, SL_FAILED);
    sl_router_close(r);
}

/* A worker that others fill refuses again and again: the request waits, it does not fail. */
static void test_refused_for_being_full(void **state)
{
    (void)state;
    static const enum sl_status why[] = {SL_QUEUE_FULL, SL_LOADING};
    for (size_t i = 0; i < 2; i++) {
        struct sl_router_config cfg = patient;
        cfg.retry_percent = 1;
        struct sl_router *r = open_with(cfg);
        up(r, 7, 1, 0);
        submit(r, 1);
        for (uint32_t epoch = 1; epoch <= 200; epoch++) {
            expect_send(r, 1, 7, epoch);
            sl_router_refused(r, 7, 1, epoch, why[i], 0);
            none(r); /* held back */
            load(r, 7, 1, epoch, epoch);
        }
        expect_send(r, 1, 7, 201);
        assert_int_equal(stats(r).n_retried, 0);
        assert_int_equal(stats(r).n_retries_denied, 0);
        assert_true(output(r, 7, 1, 201, 1, true));
        sl_router_close(r);
    }
}

static void up_instance(struct sl_router *r, uint64_t key, uint64_t instance)
{
    struct sl_worker_desc d = {.key = key, .max_seqs = 4, .max_len = 100, .instance = instance};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    check(r);
}

/* Losing a worker that lives is the network's doing, however often; one that died may have died of
 * the request. */
static void test_losses_of_the_living(void **state)
{
    (void)state;
    struct sl_router *r = open_with(patient);
    up_instance(r, 7, 70);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    for (uint32_t i = 1; i <= 20; i++) { /* its link breaks, and it registers under another key */
        sl_router_worker_down(r, 6 + i, false, 0);
        none(r);
        up_instance(r, 7 + i, 70);
        expect_send(r, 1, 7 + i, 1 + i);
    }
    up_instance(r, 27, 70); /* again before its loss was seen */
    expect_cancel(r, 1, 27, 21);
    expect_send(r, 1, 27, 22);
    sl_router_worker_down(r, 27, false, 0);
    up_instance(r, 28, 71);
    expect_send(r, 1, 28, 23);
    sl_router_worker_down(r, 28, false, 0);
    up_instance(r, 29, 72);
    expect_send(r, 1, 29, 24);
    up_instance(r, 30, 71); /* it was not the second's end */
    sl_router_worker_down(r, 29, false, 0);
    expect_send(r, 1, 30, 25);
    sl_router_worker_down(r, 30, false, 0);
    expect_fail(r, 1, SL_PEER);
    sl_router_close(r);
}

/* A link known to be all that was lost costs nothing, though nobody is heard of meanwhile. */
static void test_new_links(void **state)
{
    (void)state;
    struct sl_router *r = open_with(patient);
    for (uint64_t key = 1; key <= 4; key++)
        up_instance(r, key, 10 * key);
    submit(r, 1);
    for (uint32_t i = 1; i <= 4; i++) {
        struct sl_action a = next(r);
        assert_int_equal(a.kind, SL_ACT_SEND);
        sl_router_worker_down(r, a.worker_key, true, 0);
    }
    up_instance(r, 5, 50);
    expect_send(r, 1, 5, 5);
    up_instance(r, 5, 50); /* under the same key */
    expect_cancel(r, 1, 5, 5);
    expect_send(r, 1, 5, 6);
    sl_router_worker_down(r, 5, false, 0);
    up_instance(r, 5, 51);
    expect_send(r, 1, 5, 7);
    sl_router_worker_down(r, 5, false, 0);
    up_instance(r, 5, 52);
    expect_send(r, 1, 5, 8); /* two deaths are allowed */
    sl_router_worker_down(r, 5, false, 0);
    expect_fail(r, 1, SL_PEER);
    assert_int_equal(stats(r).n_moved, 7);
    sl_router_close(r);
}

/* Nor is silence a death, once it ends. */
static void test_silence_of_the_living(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    submit(r, 1);
    for (uint32_t i = 1; i <= 20; i++) {
        expect_send(r, 1, 7, i);
        sl_router_tick(r, 2000ull * i);
        expect_cancel(r, 1, 7, i);
        none(r);
        load(r, 7, 1, i, 2000ull * i + 1);
    }
    expect_send(r, 1, 7, 21);
    sl_router_close(r);
}

/* Tokens are taken once each and in order: those seen before are dropped, and where some are
 * missing the request is sent again. Counting begins behind the tokens it was submitted with. */
static void test_ordinals(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    static const uint32_t tokens[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    struct sl_route_request q = {.id = 1, .tokens = tokens, .n_tokens = 10, .n_before = 4};
    up(r, 7, 4, 0);
    assert_int_equal(sl_router_submit(r, &q, 0, NULL), SL_OK);
    expect_send(r, 1, 7, 1);
    assert_true(output_at(r, 7, 1, 1, 5, 2, false));
    assert_false(output_at(r, 7, 1, 1, 5, 2, false));
    assert_false(output_at(r, 7, 1, 1, 1, 1, false));
    assert_true(output_at(r, 7, 1, 1, 7, 1, false));
    none(r);
    assert_int_equal(stats(r).n_repeated, 2);
    assert_false(output_at(r, 7, 1, 1, 9, 1, true));
    expect_cancel(r, 1, 7, 1);
    expect_send(r, 1, 7, 2);
    assert_int_equal(stats(r).n_gaps, 1);
    assert_false(output_at(r, 7, 1, 1, 8, 1, false)); /* the missing one, too late */
    expect_cancel(r, 1, 7, 1);
    assert_true(output_at(r, 7, 1, 2, 8, 1, true));
    none(r);
    sl_router_close(r);
}

static void test_cancel(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    sl_router_cancel(r, 5, 0);
    up(r, 7, 1, 0);
    submit(r, 1);
    submit(r, 2);
    submit(r, 3);
    sl_router_cancel(r, 2, 0); /* waiting: silently */
    sl_router_cancel(r, 1, 0); /* not sent yet: silently, and 3 takes its place */
    expect_send(r, 3, 7, 1);
    none(r);
    sl_router_cancel(r, 3, 0);
    expect_cancel(r, 3, 7, 1);
    none(r);
    assert_false(output(r, 7, 3, 1, 1, false));
    expect_cancel(r, 3, 7, 1); /* it goes on: said again */
    assert_int_equal(try_submit(r, 4, 0, 10), SL_OK);
    sl_router_tick(r, 10);
    sl_router_cancel(r, 4, 10); /* its failure is not reported any more */
    none(r);
    sl_router_close(r);
}

static void test_deadlines(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 1, 0);
    assert_int_equal(try_submit(r, 1, 0, 200), SL_OK);
    assert_int_equal(try_submit(r, 2, 0, 100), SL_OK);
    expect_send(r, 1, 7, 1);
    assert_int_equal(sl_router_next_deadline(r), 100);
    sl_router_tick(r, 100);
    expect_fail(r, 2, SL_TIMEOUT);
    sl_router_tick(r, 199);
    none(r);
    sl_router_tick(r, 200);
    expect_cancel(r, 1, 7, 1);
    expect_fail(r, 1, SL_TIMEOUT);
    assert_int_equal(sl_router_next_deadline(r), 1000);
    sl_router_close(r);
}

/* A draining worker keeps what it has and gets nothing more, not even what was chosen for it. */
static void test_worker_drain(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    submit(r, 2);
    sl_router_worker_drain(r, 7);
    none(r);
    assert_true(output(r, 7, 1, 1, 1, true));
    up(r, 8, 4, 0);
    expect_send(r, 2, 8, 2);
    assert_int_equal(stats(r).ready_workers, 1);
    sl_router_close(r);
}

/* A worker that registers anew under its key starts empty: its requests are sent again. */
static void test_registers_again(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    up(r, 7, 4, 0);
    submit(r, 1);
    expect_send(r, 1, 7, 1);
    up(r, 7, 4, 0);
    expect_cancel(r, 1, 7, 1);
    expect_send(r, 1, 7, 2);
    assert_int_equal(stats(r).workers, 1);
    for (uint64_t key = 8; key <= 10; key++)
        up(r, key, 4, 0);
    struct sl_worker_desc d = {.key = 11, .max_seqs = 1, .max_len = 9};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_QUEUE_FULL);
    sl_router_tick(r, 1000); /* all are silent: a place is free again */
    assert_int_equal(sl_router_worker_up(r, &d, 1000, NULL), SL_OK);
    check(r);
    sl_router_close(r);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_submit_refuses),
        cmocka_unit_test(test_late_binding),
        cmocka_unit_test(test_least_load),
        cmocka_unit_test(test_prefix_affinity),
        cmocka_unit_test(test_worker_down),
        cmocka_unit_test(test_retries_are_bounded),
        cmocka_unit_test(test_class),
        cmocka_unit_test(test_stranded),
        cmocka_unit_test(test_waits_within_its_deadline),
        cmocka_unit_test(test_stalled),
        cmocka_unit_test(test_reforming),
        cmocka_unit_test(test_class_asked_for),
        cmocka_unit_test(test_retries_are_forgiven),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_comes_back),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_refused_by_the_only),
        cmocka_unit_test(test_refused_for_being_full),
        cmocka_unit_test(test_losses_of_the_living),
        cmocka_unit_test(test_new_links),
        cmocka_unit_test(test_silence_of_the_living),
        cmocka_unit_test(test_ordinals),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_worker_drain),
        cmocka_unit_test(test_no_longer_stranded),
        cmocka_unit_test(test_registers_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
