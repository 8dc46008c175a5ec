/* A slow worker is out within two seconds and back once it is fast again; a busy one, a pool that
 * is slow as a whole and a worker with larger steps are left alone; half of the pool always stays.
 */
#include "fake_engine.h"

#include <sluice/control/eject.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define MS 1000000ull
#define S  1000000000ull

static struct sl_eject *open_pool(uint32_t n)
{
    struct sl_eject *e = NULL;
    assert_int_equal(sl_eject_open(8, &e, NULL), SL_OK);
    for (uint32_t i = 0; i < n; i++)
        sl_eject_join(e, i, 0);
    return e;
}

/* Worker w's steps from *now on for `span`: each of `rows` rows takes `step`, reported as it ends.
 */
static uint64_t run(struct sl_eject *e, uint32_t w, uint64_t rows, uint64_t step, uint64_t from,
                    uint64_t span)
{
    uint64_t t = from;
    for (; t < from + span; t += step)
        sl_eject_steps(e, w, 1, rows, step, t + step);
    return t;
}

/* Firsts of worker w, each of `rows` tokens after `wait`, ten a second. */
static void firsts(struct sl_eject *e, uint32_t w, uint32_t rows, uint64_t wait, uint64_t from,
                   uint64_t span)
{
    for (uint64_t t = from; t < from + span; t += 100 * MS)
        sl_eject_first(e, w, rows, wait, t + wait);
}

static enum sl_eject_state state_of(const struct sl_eject *e, uint32_t w)
{
    return sl_eject_state(e, w);
}

/* Steps of 1, 5, 50 and 200 ms. Ten times slower is found within 2 s, also in a pool of two. */
static void test_slow_is_out_within_two_seconds(void **state)
{
    (void)state;
    static const uint64_t steps[] = {1 * MS, 5 * MS, 50 * MS, 200 * MS};
    for (size_t i = 0; i < 4; i++)
        for (uint32_t n = 2; n <= 4; n++) {
            struct sl_eject *e = open_pool(n);
            uint64_t found = 0;
            uint32_t out;
            for (uint32_t w = 0; w < n; w++)
                run(e, w, 4, steps[i], 0, 5 * S);
            assert_int_equal(sl_eject_count(e, &out), 0);
            for (uint64_t t = 5 * S; t < 7 * S && !found; t += 100 * MS) {
                /* the others as before; the last one's step in progress ages, then ends */
                for (uint32_t w = 0; w + 1 < n; w++)
                    run(e, w, 4, steps[i], t, 100 * MS);
                uint64_t slow = steps[i] * 10, done = (t - 5 * S) / slow * slow;
                if (slow <= 100 * MS)
                    run(e, n - 1, 4, slow, t, 100 * MS);
                else if ((t - 5 * S) % slow == 0 && t > 5 * S)
                    sl_eject_steps(e, n - 1, 1, 4, slow, t);
                else
                    sl_eject_age(e, n - 1, t - 5 * S - done, t);
                if (state_of(e, n - 1) == SL_EJECT_OUT)
                    found = t;
            }
            if (!found)
                fail_msg("steps of %u ms, %u workers", (unsigned)(steps[i] / MS), n);
            assert_int_equal(sl_eject_count(e, &out), 1);
            assert_int_equal(out, 1);
            sl_eject_close(e);
        }
}

/* A process that is stopped nine tenths of the time does thirty fast steps and one that lasts. */
static void test_stop_and_go_is_slow(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(4);
    for (uint32_t w = 0; w < 4; w++)
        run(e, w, 1, MS / 2, 0, S);
    uint64_t t = S;
    while (t < 3 * S && state_of(e, 3) == SL_EJECT_OK) {
        for (uint32_t i = 0; i < 15; i++)
            sl_eject_steps(e, 3, 1, 1, MS / 2, t += MS / 2);
        sl_eject_steps(e, 3, 1, 1, 90 * MS, t += 90 * MS);
    }
    assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
    sl_eject_close(e);
}

/* Fast in its steps, but its first tokens come late: stopped between steps. Queues of some
 * milliseconds, longer prompts and good steps in between change nothing. */
static void test_late_first_tokens(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(4);
    for (uint32_t w = 0; w < 4; w++) {
        run(e, w, 1, MS / 2, 0, S);
        firsts(e, w, 20, 5 * MS, 0, S);
        firsts(e, w, 500, 100 * MS, S, S);
    }
    firsts(e, 3, 20, 22 * MS, 2 * S, S);   /* 17 ms more */
    firsts(e, 3, 500, 390 * MS, 3 * S, S); /* less than four times */
    firsts(e, 3, 100, 390 * MS, 4 * S, S); /* so few nobody knows, so many take 100 ms */
    assert_int_equal(state_of(e, 3), SL_EJECT_OK);
    for (uint64_t t = 5 * S; t < 7 * S; t += 200 * MS) {
        firsts(e, 3, 20, 45 * MS, t, 200 * MS);
        run(e, 3, 1, MS / 2, t, 200 * MS);
    }
    assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
    assert_false(sl_eject_worth_moving(e, 3, 100)); /* what runs there runs well */
    sl_eject_close(e);
}

static void test_left_alone(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(4);
    uint32_t out;
    /* nobody to compare with */
    run(e, 0, 4, 500 * MS, 0, 5 * S);
    /* all slow alike */
    for (uint32_t w = 1; w < 4; w++)
        run(e, w, 4, 500 * MS, 0, 5 * S);
    /* larger steps, and a size of its own below those of others: prefills of 512 rows */
    for (uint32_t w = 0; w < 3; w++)
        run(e, w, 16, 20 * MS, 5 * S, 60 * S);
    run(e, 3, 512, 200 * MS, 5 * S, 60 * S);
    run(e, 3, 2, 60 * MS, 65 * S, 5 * S);
    /* three times slower */
    run(e, 3, 16, 60 * MS, 70 * S, 10 * S);
    /* a stretch of 150 ms now and then */
    for (uint64_t t = 80 * S; t < 90 * S; t += S) {
        run(e, 2, 16, 150 * MS, t, 150 * MS);
        run(e, 2, 16, 20 * MS, t + 200 * MS, 800 * MS);
    }
    /* a step in progress no longer than others' */
    for (uint64_t t = 90 * S; t < 92 * S; t += 100 * MS)
        sl_eject_age(e, 1, 300 * MS, t);
    assert_int_equal(sl_eject_count(e, &out), 0);
    /* counters that jumped */
    sl_eject_steps(e, 1, 1, UINT64_MAX, UINT64_MAX, 93 * S);
    sl_eject_steps(e, 1, UINT64_MAX, 1, UINT64_MAX, 93 * S);
    sl_eject_steps(e, 7, 1, 1, S, 93 * S); /* not of the pool */
    assert_int_equal(sl_eject_count(e, &out), 0);
    sl_eject_close(e);
}

static void test_microseconds_do_not_matter(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(2);
    run(e, 0, 1, MS / 20, 0, S);
    run(e, 1, 1, MS * 9 / 10, 0, 2 * S); /* 18 times slower, and 0.85 ms */
    assert_int_equal(state_of(e, 1), SL_EJECT_OK);
    sl_eject_close(e);
}

/* All but one slow, one after the other: half of the pool stays. */
static void test_half_stays(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 8; n++) {
        struct sl_eject *e = open_pool(n);
        uint32_t out;
        for (uint32_t w = 0; w < n; w++)
            run(e, w, 4, 5 * MS, 0, 5 * S);
        for (uint32_t w = 1; w < n; w++)
            run(e, w, 4, 500 * MS, 5 * S, 3 * S);
        sl_eject_count(e, &out);
        assert_int_equal(out, n / 2);
        /* the pool shrinks: so does the number out */
        for (uint32_t w = 0; w < n; w++) {
            sl_eject_leave(e, w);
            sl_eject_count(e, &out);
            assert_true(out <= (n - w - 1) / 2);
        }
        sl_eject_close(e);
    }
}

/* 2, 4, 8, ... 64 s; then back after good probes; a calm minute halves the next. */
static void test_readmission(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(4);
    for (uint32_t w = 0; w < 4; w++)
        run(e, w, 4, 10 * MS, 0, 5 * S);
    uint64_t t = run(e, 3, 4, 200 * MS, 5 * S, S);
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
        uint64_t until = sl_eject_next_deadline(e);
        uint64_t want = (2 * S) << (i < 5 ? i : 5);
        assert_true(until > t - S && until - t <= want && until - t > want - 2 * S);
        assert_false(sl_eject_tick(e, until - 1));
        assert_true(sl_eject_tick(e, until));
        assert_int_equal(state_of(e, 3), SL_EJECT_PROBE);
        t = run(e, 3, 1, 200 * MS, until, 600 * MS); /* still slow: out for longer */
    }
    t = sl_eject_next_deadline(e);
    sl_eject_tick(e, t);
    t = run(e, 3, 4, 10 * MS, t, 600 * MS);
    assert_int_equal(state_of(e, 3), SL_EJECT_PROBE); /* good steps are not enough */
    firsts(e, 3, 20, 5 * MS, t, 400 * MS);
    assert_int_equal(state_of(e, 3), SL_EJECT_PROBE);
    firsts(e, 3, 20, 5 * MS, t + 400 * MS, 300 * MS);
    t += 700 * MS;
    assert_int_equal(state_of(e, 3), SL_EJECT_OK);
    assert_true(sl_eject_next_deadline(e) == UINT64_MAX);
    t = run(e, 3, 4, 10 * MS, t, 6 * 61 * S); /* calm: all doublings are forgotten */
    run(e, 3, 4, 200 * MS, t, S);
    assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
    assert_true(sl_eject_next_deadline(e) < t + 3 * S);
    sl_eject_close(e);
}

/* Only a whole calm minute halves the next time out, and only once. */
static void test_calm(void **state)
{
    (void)state;
    static const struct {
        uint64_t calm_ms, out_ns;
    } rows[] = {{0, 64 * S}, {59500, 64 * S}, {61000, 32 * S}, {119500, 32 * S}, {122000, 16 * S}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        struct sl_eject *e = open_pool(4);
        for (uint32_t w = 0; w < 4; w++)
            run(e, w, 4, 10 * MS, 0, 5 * S);
        uint64_t t = run(e, 3, 4, 200 * MS, 5 * S, S);
        for (uint32_t i = 0; i < 5; i++) {
            uint64_t until = sl_eject_next_deadline(e);
            assert_true(sl_eject_tick(e, until));
            t = run(e, 3, 1, 200 * MS, until, 600 * MS);
        }
        t = sl_eject_next_deadline(e);
        assert_true(sl_eject_tick(e, t));
        firsts(e, 3, 20, 5 * MS, t, 2 * S);
        t += 2 * S;
        assert_int_equal(state_of(e, 3), SL_EJECT_OK);
        t = run(e, 3, 4, 10 * MS, t - S, rows[k].calm_ms * MS);
        run(e, 3, 4, 200 * MS, t, S);
        assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
        uint64_t until = sl_eject_next_deadline(e);
        if (until < t + rows[k].out_ns || until > t + rows[k].out_ns + S)
            fail_msg("after %u ms it is out for %u ms", (unsigned)rows[k].calm_ms,
                     (unsigned)((until - t) / MS));
        sl_eject_close(e);
    }
}

/* Counters that jumped, by a clock or a new process, say nothing of speed. */
static void test_counters_that_jumped(void **state)
{
    (void)state;
    static const uint64_t bad[][3] = {
        {0, 40, 20 * S},                       /* no step, and time */
        {10, 9, 20 * S},                       /* fewer rows than steps */
        {1, (uint64_t)UINT32_MAX + 1, 20 * S}, /* more rows than any step has */
        {1, 4, 3600 * S + 1},                  /* more than an hour */
        {1, 4, UINT64_MAX},
        {UINT64_MAX, UINT64_MAX, 20 * S}};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        struct sl_eject *e = open_pool(4);
        for (uint32_t w = 0; w < 4; w++)
            run(e, w, 4, 10 * MS, 0, 5 * S);
        for (uint32_t i = 0; i < 100; i++)
            assert_false(sl_eject_steps(e, 3, bad[k][0], bad[k][1], bad[k][2], (5 + i) * S));
        assert_int_equal(state_of(e, 3), SL_EJECT_OK);
        run(e, 3, 4, 200 * MS, 105 * S, S); /* what makes sense counts as before */
        assert_int_equal(state_of(e, 3), SL_EJECT_OUT);
        sl_eject_close(e);
    }
}

static void test_worth_moving(void **state)
{
    (void)state;
    struct sl_eject *e = open_pool(3);
    assert_false(sl_eject_worth_moving(e, 2, 1)); /* nothing is known */
    for (uint32_t w = 0; w < 3; w++) {
        run(e, w, 1, 5 * MS, 0, S);
        run(e, w, 256, 256 * MS, S, 10 * S); /* 1 ms a row */
    }
    assert_false(sl_eject_worth_moving(e, 2, 1)); /* not slower */
    run(e, 2, 1, 100 * MS, 20 * S, 10 * S);
    assert_true(sl_eject_worth_moving(e, 2, 1000)); /* 16 tokens lose 1.5 s */
    assert_false(sl_eject_worth_moving(e, 2, 2000));
    assert_false(sl_eject_worth_moving(e, 2, UINT64_MAX));
    sl_eject_close(e);
}

/* Whatever is said, at most half is out and what is due is due. */
static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct rng rng = {seed};
        struct sl_eject *e = open_pool(8);
        uint32_t n_joined = 8, out;
        bool joined[8];
        for (uint32_t i = 0; i < 8; i++)
            joined[i] = true;
        for (uint64_t t = 0; t < 200 * S; t += 37 * MS) {
            uint32_t w = rng_below(&rng, 8), what = rng_below(&rng, 100);
            if (what == 0 && joined[w])
                sl_eject_leave(e, w);
            else if (what == 1)
                sl_eject_join(e, w, t);
            else if (what < 20)
                sl_eject_first(e, w, rng_below(&rng, 300), (uint64_t)rng_below(&rng, 300) * MS, t);
            else if (what < 30)
                sl_eject_age(e, w, rng_below(&rng, 4) * S, t);
            else
                sl_eject_steps(e, w, 1 + rng_below(&rng, 3), 3 + rng_below(&rng, 300),
                               (uint64_t)rng_below(&rng, 20) * rng_below(&rng, 20) * MS, t);
            n_joined += what == 1 && !joined[w];
            n_joined -= what == 0 && joined[w];
            joined[w] = (joined[w] && what != 0) || what == 1;
            sl_eject_tick(e, t);
            sl_eject_count(e, &out);
            if (out > n_joined / 2 || sl_eject_next_deadline(e) <= t)
                fail_msg("seed %u: %u of %u are out", (unsigned)seed, out, n_joined);
        }
        sl_eject_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_is_out_within_two_seconds),
        cmocka_unit_test(test_stop_and_go_is_slow),
        cmocka_unit_test(test_late_first_tokens),
        cmocka_unit_test(test_left_alone),
        cmocka_unit_test(test_microseconds_do_not_matter),
        cmocka_unit_test(test_half_stays),
        cmocka_unit_test(test_readmission),
        cmocka_unit_test(test_calm),
        cmocka_unit_test(test_counters_that_jumped),
        cmocka_unit_test(test_worth_moving),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
