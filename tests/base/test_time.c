/* Promised: Philox4x32-10 gives the known answers of Random123, numbers are functions of their
 * arguments alone, streams are uniform and separate, clocks do not run backwards. */
#include <sluice/base/time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void philox_known_answers(void **state)
{
    static const struct {
        uint32_t key[2], ctr[4], out[4];
    } rows[] = {
        {{0, 0}, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0xa4093822, 0x299f31d0},
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t out[4];
        sl_philox(rows[i].key, rows[i].ctr, out);
        assert_memory_equal(out, rows[i].out, sizeof out);
    }
}

static void unit_is_a_function(void **state)
{
    (void)state;
    /* the zero key and counter of the vector above: its first word, 24 bits of it */
    assert_true(sl_random_unit(0, 0, 0, 0) == (float)(0x6627e8d5 >> 8) / 16777216.0f);
    float base = sl_random_unit(7, 1, 2, 3);
    assert_true(base == sl_random_unit(7, 1, 2, 3));
    assert_true(base != sl_random_unit(8, 1, 2, 3));
    assert_true(base != sl_random_unit(7 + ((uint64_t)1 << 32), 1, 2, 3));
    assert_true(base != sl_random_unit(7, 2, 2, 3));
    assert_true(base != sl_random_unit(7, 1, 3, 3));
    assert_true(base != sl_random_unit(7, 1, 2, 4));
    double sum = 0;
    for (uint32_t i = 0; i < 100000; i++) {
        float x = sl_random_unit(42, 0, i, 0);
        assert_true(x >= 0 && x < 1);
        sum += (double)x;
    }
    assert_true(sum > 49500 && sum < 50500);
}

static void below_is_uniform(void **state)
{
    static const uint32_t ns[] = {1, 2, 3, 7, 10, 1000};
    (void)state;
    for (size_t i = 0; i < sizeof ns / sizeof *ns; i++) {
        struct sl_rng r = {99, 0};
        uint32_t *count = calloc(ns[i], sizeof *count);
        uint32_t per = 2000;
        for (uint32_t k = 0; k < ns[i] * per; k++) {
            uint32_t x = sl_rng_below(&r, ns[i]);
            assert_true(x < ns[i]);
            count[x]++;
        }
        for (uint32_t k = 0; k < ns[i]; k++) /* five standard deviations */
            assert_in_range(count[k], per - 224, per + 224);
        free(count);
    }
    struct sl_rng r = {1, 0};
    for (int i = 0; i < 1000; i++)
        assert_true(sl_rng_below(&r, 0xffffffffu) < 0xffffffffu);
}

static void stream_replays(void **state)
{
    (void)state;
    struct sl_rng a = {5, 0}, b = {5, 3};
    for (int i = 0; i < 3; i++)
        sl_rng_u64(&a);
    for (int i = 0; i < 100; i++)
        assert_true(sl_rng_u64(&a) == sl_rng_u64(&b));
    for (int i = 0; i < 1000; i++) {
        double x = sl_rng_unit(&a);
        assert_true(x >= 0 && x < 1);
    }
}

static void clocks(void **state)
{
    (void)state;
    uint64_t before = sl_now_ns(), cpu = sl_thread_cpu_ns(), all = sl_process_cpu_ns();
    struct sl_rng r = {1, 0};
    for (int i = 0; i < 1000; i++)
        sl_rng_u64(&r);
    assert_true(sl_now_ns() >= before);
    assert_true(sl_thread_cpu_ns() >= cpu);
    assert_true(sl_process_cpu_ns() >= all);
    assert_true(sl_unix_ns() > 1600000000 * SL_S_NS);
    assert_true(sl_entropy_u64() != sl_entropy_u64());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(unit_is_a_function),
        cmocka_unit_test(below_is_uniform),
        cmocka_unit_test(stream_replays),
        cmocka_unit_test(clocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
