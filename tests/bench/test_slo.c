/* Promised: goodput counts a request only within every bound asked for; an assertion is read as
 * written, names a figure that exists, and fails by SL_ASSERTION alone. */
#include "slo.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void bounds_are_parsed(void **state)
{
    static const struct {
        const char *text;
        bool ok, any;
        double ttft, tpot, e2el;
    } rows[] = {
        {NULL, true, false, INFINITY, INFINITY, INFINITY},
        {"", true, false, INFINITY, INFINITY, INFINITY},
        {"ttft:500", true, true, 500, INFINITY, INFINITY},
        {"ttft:500 tpot:50.5 e2el:3000", true, true, 500, 50.5, 3000},
        {"tpot:50,ttft:1e3", true, true, 1000, 50, INFINITY},
        {"ttft", false, false, 0, 0, 0},
        {"ttft:", false, false, 0, 0, 0},
        {"ttft:-1", false, false, 0, 0, 0},
        {"ttft:0", false, false, 0, 0, 0},
        {"ttft:5x", false, false, 0, 0, 0},
        {"itl:5", false, false, 0, 0, 0},
        {"ttft:nan", false, false, 0, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct bench_slo s;
        struct sl_err err = {0};
        enum sl_status status = bench_slo_parse(rows[i].text, &s, &err);
        assert_int_equal(status, rows[i].ok ? SL_OK : SL_USAGE);
        if (!rows[i].ok)
            continue;
        assert_int_equal(s.any, rows[i].any);
        assert_true(s.ttft_ms == rows[i].ttft && s.tpot_ms == rows[i].tpot &&
                    s.e2el_ms == rows[i].e2el);
    }
}

static void goodput_wants_every_bound(void **state)
{
    struct bench_slo s;
    struct sl_err err;
    (void)state;
    assert_int_equal(bench_slo_parse("ttft:100 tpot:10", &s, &err), SL_OK);
    assert_true(bench_slo_met(&s, 100, 10, 1e9));
    assert_false(bench_slo_met(&s, 100.01, 10, 0));
    assert_false(bench_slo_met(&s, 1, 10.01, 0));
}

static void assertions_are_checked(void **state)
{
    static const struct {
        const char *text;
        enum sl_status want;
    } rows[] = {
        {NULL, SL_OK},
        {"p99_ttft_ms<500", SL_OK},
        {"p99_ttft_ms < 500", SL_OK},
        {"p99_ttft_ms<120.5", SL_ASSERTION},
        {"p99_ttft_ms<=120.5", SL_OK},
        {"p99_ttft_ms>=120.5,failed==0", SL_OK},
        {"failed!=0", SL_ASSERTION},
        {"failed==0 p99_ttft_ms>1e3", SL_ASSERTION},
        {"p99.9_ttft_ms<130", SL_OK},
        {"p99_ttft<500", SL_USAGE},
        {"nope<1", SL_USAGE},
        {"failed", SL_USAGE},
        {"failed=0", SL_USAGE},
        {"failed<", SL_USAGE},
        {"failed<x", SL_USAGE},
        {"<5", SL_USAGE},
        {"failed<<5", SL_USAGE},
        {"failed<5ms", SL_USAGE},
    };
    struct bench_figures f = {0};
    (void)state;
    bench_figure_add(&f, 120.5, "p%g_%s_ms", 99.0, "ttft");
    bench_figure_add(&f, 125, "p%g_%s_ms", 99.9, "ttft");
    bench_figure_add(&f, 0, "failed");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_err err = {0};
        enum sl_status got = bench_assert(rows[i].text, &f, &err);
        if (got != rows[i].want)
            fail_msg("'%s': %d, wanted %d (%s)", rows[i].text, got, rows[i].want, err.msg);
        /* Without figures only the form counts. */
        got = bench_assert(rows[i].text, NULL, &err);
        assert_true(got == SL_OK || rows[i].want == SL_USAGE);
    }
    assert_int_equal(sl_status_row(SL_ASSERTION)->exit_code, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_are_parsed),
        cmocka_unit_test(goodput_wants_every_bound),
        cmocka_unit_test(assertions_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
