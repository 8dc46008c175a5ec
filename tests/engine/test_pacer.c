/* The pacer keeps a step near its target time, believes a slowdown at once, and never leaves its
 * bounds. */
#include "engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void budgets(void **state)
{
    (void)state;
    static const struct {
        uint32_t target_ms, rows_max, fixed, rows;
        uint64_t ns;
        uint32_t want;
    } t[] = {
        {200, 512, 0, 0, 0, 64},             /* nothing measured yet */
        {200, 512, 0, 64, 6400000, 512},     /* 0.1 ms a row: all there is room for */
        {200, 512, 0, 64, 64000000, 192},    /* 1 ms a row: 200 rows, in steps of 16 */
        {200, 512, 0, 64, 6400000000u, 16},  /* 100 ms a row: never less than 16 */
        {200, 8, 0, 0, 0, 8},                /* a small batch bounds it */
        {200, 512, 23, 64, 6400000000u, 23}, /* fixed by a test */
        {200, 512, 0, 8, 8000000000u, 64},   /* small steps say nothing */
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct pacer p;
        sl_pacer_init(&p, t[i].target_ms, t[i].rows_max, t[i].fixed);
        if (t[i].rows)
            sl_pacer_observe(&p, t[i].rows, t[i].ns);
        assert_int_equal(sl_pacer_budget(&p), t[i].want);
    }
}

static void slower_is_believed_at_once_faster_by_and_by(void **state)
{
    (void)state;
    struct pacer p;
    sl_pacer_init(&p, 200, 512, 0);
    sl_pacer_observe(&p, 100, 100 * 1000000);
    sl_pacer_observe(&p, 100, 200 * 1000000);
    assert_int_equal(sl_pacer_budget(&p), 96);
    sl_pacer_observe(&p, 100, 100 * 1000000);
    assert_in_range(sl_pacer_budget(&p), 97, 191);
}

/* Small steps are expected to take what small ones took, large ones by their rows. */
static void expected_time(void **state)
{
    (void)state;
    struct pacer p;
    sl_pacer_init(&p, 200, 512, 0);
    assert_int_equal(sl_pacer_expect(&p, 1), 0);
    sl_pacer_observe(&p, 1, 5000000);
    assert_int_equal(sl_pacer_expect(&p, 1), 5000000);
    assert_int_equal(sl_pacer_expect(&p, 500), 5000000);
    sl_pacer_observe(&p, 100, 100 * 1000000);
    assert_int_equal(sl_pacer_expect(&p, 1), 5000000);
    assert_int_equal(sl_pacer_expect(&p, 500), 500 * 1000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets),
        cmocka_unit_test(expected_time),
        cmocka_unit_test(slower_is_believed_at_once_faster_by_and_by),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
