/* Promised: the same seed gives the same arrivals; gaps sum to n/rate whatever was drawn; their
 * coefficient of variation is that of the gamma distribution asked for. */
#include "arrivals.h"
#include "stats.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N 20000

static void gaps_of(const double *at, double *gap)
{
    for (size_t i = 0; i < N; i++)
        gap[i] = at[i] - (i > 0 ? at[i - 1] : 0);
}

static void gaps_have_the_asked_shape(void **state)
{
    static const struct {
        double rate, burstiness;
    } rows[] = {{1, 1}, {50, 1}, {10, 0.25}, {10, 0.5}, {10, 4}, {1000, 100}, {0.01, 2}};
    double *at = calloc(N, sizeof *at), *gap = calloc(N, sizeof *gap);
    (void)state;
    assert_true(at && gap);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        for (uint64_t seed = 1; seed <= 3; seed++) {
            bench_arrivals(at, N, rows[k].rate, rows[k].burstiness, seed);
            gaps_of(at, gap);
            double total = N / rows[k].rate, cv = bench_std(gap, N) / bench_mean(gap, N);
            double want = 1 / sqrt(rows[k].burstiness);
            if (fabs(at[N - 1] - total) > 1e-9 * total || fabs(cv - want) > 0.05 * want)
                fail_msg("rate %g burstiness %g seed %d: sum %g of %g, cv %g of %g", rows[k].rate,
                         rows[k].burstiness, (int)seed, at[N - 1], total, cv, want);
            for (size_t i = 0; i < N; i++)
                assert_true(gap[i] >= 0);
        }
    }
    free(at);
    free(gap);
}

/* An exponential gap exceeds its mean with probability 1/e. */
static void burstiness_one_is_poisson(void **state)
{
    double *at = calloc(N, sizeof *at), *gap = calloc(N, sizeof *gap);
    size_t above = 0;
    (void)state;
    assert_true(at && gap);
    bench_arrivals(at, N, 20, 1, 7);
    gaps_of(at, gap);
    for (size_t i = 0; i < N; i++)
        above += gap[i] > 1.0 / 20;
    assert_true(fabs((double)above / N - exp(-1)) < 0.015);
    free(at);
    free(gap);
}

static void limits_are_exact(void **state)
{
    double at[5];
    (void)state;
    bench_arrivals(at, 5, INFINITY, 1, 1);
    for (size_t i = 0; i < 5; i++)
        assert_true(at[i] == 0);
    bench_arrivals(at, 5, 4, INFINITY, 1);
    for (size_t i = 0; i < 5; i++)
        assert_true(fabs(at[i] - 0.25 * (double)(i + 1)) < 1e-12);
    bench_arrivals(at, 1, 2, 1, 9);
    assert_true(fabs(at[0] - 0.5) < 1e-12);
}

static void seeds_decide(void **state)
{
    double a[64], b[64], c[64];
    (void)state;
    bench_arrivals(a, 64, 3, 0.7, 42);
    bench_arrivals(b, 64, 3, 0.7, 42);
    bench_arrivals(c, 64, 3, 0.7, 43);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gaps_have_the_asked_shape),
        cmocka_unit_test(burstiness_one_is_poisson),
        cmocka_unit_test(limits_are_exact),
        cmocka_unit_test(seeds_decide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
