/* Fault points: off by default, each pass decided by seed, point and number, spec strictly read. */
#include <sluice/base/fault.h>
#include <sluice/base/time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void test_off(void **state)
{
    (void)state;
    assert_int_equal(sl_faults_set(NULL, NULL), SL_OK);
    for (uint32_t i = 0; i < 1000; i++)
        for (uint32_t p = 0; p < SL_N_FAULTS; p++)
            assert_false(sl_fault((enum sl_fault_point)p));
}

static uint32_t draw(const char *spec, uint64_t bits[4])
{
    uint32_t n = 0;
    memset(bits, 0, 4 * sizeof *bits);
    assert_int_equal(sl_faults_set(spec, NULL), SL_OK);
    for (uint32_t i = 0; i < 256; i++) {
        bool hit = sl_fault(SL_FAULT_BUS_DROP);
        n += hit;
        bits[i / 64] |= (uint64_t)hit << i % 64;
        assert_false(sl_fault(SL_FAULT_ENGINE_SLOW)); /* not named: off */
    }
    assert_int_equal(sl_fault_count(SL_FAULT_BUS_DROP), n);
    return n;
}

static void test_seeded(void **state)
{
    uint64_t a[4], b[4], c[4];
    (void)state;
    assert_in_range(draw("bus.drop=0.25,seed=7", a), 32, 96);
    draw("seed=7,bus.drop=0.25", b);
    draw("bus.drop=0.25,seed=8", c);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    assert_int_equal(draw("bus.drop=1+250", a), 6);
    assert_int_equal(draw("bus.drop=1+250x2", a), 2);
    assert_int_equal(draw("bus.drop=0", a), 0);
}

static void test_delay(void **state)
{
    (void)state;
    assert_int_equal(sl_faults_set("router.slow=1@3+1", NULL), SL_OK);
    sl_fault_delay(SL_FAULT_ROUTER_SLOW);
    uint64_t start = sl_now_ns();
    sl_fault_delay(SL_FAULT_ROUTER_SLOW);
    assert_true(sl_now_ns() - start >= 3 * SL_MS_NS);
    assert_int_equal(sl_fault_ms(SL_FAULT_ROUTER_SLOW), 3);
}

static void test_bad_specs(void **state)
{
    static const char *const rows[] = {
        "engine.slow",      "engine.slow=",     "engine.slow=x",    "engine.slow=1.5",
        "engine.slow=-1",   "engine.slow=nan",  "engine.slo=1",     "=1",
        "engine.slow=1@",   "engine.slow=1@x",  "engine.slow=1@1x", "engine.slow=1+",
        "engine.slow=1+-1", "engine.slow=1@-1", "bus.drop=1x",      "seed=",
        "seed=x",           "seed=-1",          "bus.drop=1,wrong"};
    struct sl_err err;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (sl_faults_set(rows[i], &err) != SL_USAGE)
            fail_msg("'%s' is taken", rows[i]);
        assert_string_equal(err.param, "inject");
        assert_false(sl_fault(SL_FAULT_BUS_DROP)); /* nothing of a bad spec counts */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_off), cmocka_unit_test(test_seeded),
                                       cmocka_unit_test(test_delay),
                                       cmocka_unit_test(test_bad_specs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
