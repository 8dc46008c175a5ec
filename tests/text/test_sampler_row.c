/* The passes over a row give the same bits in plain C and in the machine's best instructions, for
 * every length and for every kind of number. */
#include "rig.h"

#include <sluice/base/exact.h>
#include <sluice/base/time.h>

#include <math.h>
#include <stdlib.h>

/* As in the module's private sampler_row.h. */
struct cand {
    float key;
    uint32_t id;
};
struct row_ops {
    bool (*max)(const float *x, uint32_t n, float *max);
    double (*weights)(const float *x, uint32_t n, float max, float temperature, float *w);
    void (*count)(const float *x, uint32_t n, const float at[8], uint32_t count[8]);
    uint32_t (*gather)(const float *x, uint32_t n, float at, struct cand *out);
};
extern const struct row_ops row_ops_plain;
const struct row_ops *row_ops_best(void);

enum { N = 4096 };

static void fill(struct sl_rng *r, float *x, uint32_t n)
{
    static const float odd[] = {0.0f, -0.0f, -INFINITY, 1e-45f, -1e-45f, 80, -80, -87, 88};
    for (uint32_t i = 0; i < n; i++)
        x[i] = sl_rng_below(r, 8) ? (float)(sl_rng_unit(r) * 120 - 90) : odd[sl_rng_below(r, 9)];
    x[sl_rng_below(r, n)] = 1.0f; /* never all -inf */
    if (n > 40 && n % 2) {        /* the borders of the exponential */
        static const float border[] = {-87.0f, -0x1.5c0002p+6f, -0x1.5bfffep+6f, -103.0f};
        for (uint32_t i = 0; i < 32; i++)
            x[i] = border[i % 4];
        for (uint32_t i = 32; i < n; i++)
            x[i] = x[i] > 0 ? 0 : x[i];
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    static float x[N], w[2][N];
    static struct cand c[2][N];
    const struct row_ops *ops[2] = {&row_ops_plain, row_ops_best()};
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct sl_rng r = {seed, 0};
        uint32_t n = seed < 70 ? (uint32_t)seed : 1 + sl_rng_below(&r, N);
        static const float temperatures[] = {1, 0.7f, 1e-38f, 1e-45f, 100, 3};
        float temperature = temperatures[sl_rng_below(&r, 6)], at[8], max[2];
        double sum[2];
        uint32_t count[2][8], n_cands[2];
        fill(&r, x, n);
        for (unsigned k = 0; k < 8; k++)
            at[k] = k ? x[sl_rng_below(&r, n)] : -INFINITY;
        for (unsigned k = 0; k < 2; k++) {
            assert_true(ops[k]->max(x, n, &max[k]));
            sum[k] = ops[k]->weights(x, n, max[k], temperature, w[k]);
            ops[k]->count(x, n, at, count[k]);
            n_cands[k] = ops[k]->gather(x, n, at[7], c[k]);
        }
        if (memcmp(&max[0], &max[1], sizeof *max) || memcmp(&sum[0], &sum[1], sizeof *sum) ||
            memcmp(w[0], w[1], n * sizeof *w[0]) || memcmp(count[0], count[1], sizeof *count) ||
            n_cands[0] != n_cands[1] || memcmp(c[0], c[1], n_cands[0] * sizeof *c[0]))
            fail_msg("seed %llu n %u", (unsigned long long)seed, n);
        assert_int_equal(count[0][0], n);
        assert_int_equal(count[0][7], n_cands[0]);
        for (uint32_t i = 0; i < n; i++)
            assert_true(w[0][i] == sl_exp_f32((x[i] - max[0]) / temperature));
    }
}

static void test_nan_anywhere(void **state)
{
    (void)state;
    const struct row_ops *ops[2] = {&row_ops_plain, row_ops_best()};
    for (uint32_t n = 1; n < 70; n++)
        for (uint32_t i = 0; i < n; i++)
            for (unsigned k = 0; k < 2; k++) {
                float x[70] = {0}, max;
                assert_true(ops[k]->max(x, n, &max));
                x[i] = NAN;
                assert_false(ops[k]->max(x, n, &max));
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_nan_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
