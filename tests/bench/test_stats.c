/* Promised: percentiles are numpy's (linear), and so are mean and deviation. */
#include "stats.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void percentiles_are_linear(void **state)
{
    static const struct {
        double x[5];
        size_t n;
        double p, want; /* numpy.percentile(x[:n], p) */
    } rows[] = {
        {{0}, 0, 50, 0},
        {{7}, 1, 99, 7},
        {{1, 2}, 2, 50, 1.5},
        {{1, 2, 3, 4}, 4, 50, 2.5},
        {{1, 2, 3, 4}, 4, 25, 1.75},
        {{1, 2, 3, 4, 10}, 5, 90, 7.6},
        {{1, 2, 3, 4, 10}, 5, 99, 9.76},
        {{1, 2, 3, 4, 10}, 5, 100, 10},
        {{-1, 0, 5}, 3, 75, 2.5},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double got = bench_percentile(rows[i].x, rows[i].n, rows[i].p);
        if (fabs(got - rows[i].want) > 1e-12)
            fail_msg("row %zu: %.15g, wanted %.15g", i, got, rows[i].want);
    }
}

static void mean_and_deviation(void **state)
{
    double x[] = {4, 2, 4, 5, 4, 5, 7, 9};
    (void)state;
    assert_true(bench_mean(x, 8) == 5 && bench_std(x, 8) == 2);
    assert_true(bench_mean(x, 0) == 0 && bench_std(x, 0) == 0);
    bench_sort(x, 8);
    for (size_t i = 1; i < 8; i++)
        assert_true(x[i - 1] <= x[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_linear),
        cmocka_unit_test(mean_and_deviation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
