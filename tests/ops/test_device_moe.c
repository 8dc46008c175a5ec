/* Promised: routing picks the experts of largest logit with ties by the lower index, gates have the
 * bits of the sums as written in cuda/launch.h, groups keep the tokens' order, and combining adds
 * in the order of the choices. */
#include "device.h"

#include <sluice/base/exact.h>

enum { SEEDS = 4 };

static const struct {
    uint32_t n_experts, n_used, n_tok;
} shapes[] = {{8, 2, 13},   {64, 8, 9},   {1, 1, 3},  {16, 16, 4},
              {100, 6, 50}, {256, 8, 40}, {40, 32, 2}};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static bool comes_before(const float *x, uint32_t a, uint32_t b)
{
    if (isnan(x[a]) != isnan(x[b]))
        return isnan(x[b]);
    if (!isnan(x[a]) && x[a] != x[b])
        return x[a] > x[b];
    return a < b;
}

static float sum_of_16_lanes(const float *x, uint32_t n, float max)
{
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % 16] = lane[i % 16] + sl_exp_f32(x[i] - max);
    for (uint32_t half = 8; half; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            lane[i] = lane[i] + lane[i + half];
    return lane[0];
}

/* One token, as the header says. */
static void route(const struct cuda_moe *m, const float *x, uint32_t *experts, float *gates)
{
    float p[CUDA_EXPERTS_USED_MAX], used = 0.0f;
    for (uint32_t j = 0; j < m->n_used; j++) {
        uint32_t best = m->n_experts;
        for (uint32_t e = 0; e < m->n_experts; e++) {
            bool taken = false;
            for (uint32_t i = 0; i < j; i++)
                taken |= experts[i] == e;
            if (!taken && (best == m->n_experts || comes_before(x, e, best)))
                best = e;
        }
        experts[j] = best;
        p[j] = sl_exp_f32(x[best] - x[experts[0]]);
        used = used + p[j];
    }
    float all = sum_of_16_lanes(x, m->n_experts, x[experts[0]]);
    for (uint32_t j = 0; j < m->n_used; j++)
        gates[j] = m->of_used && !isnan(all) ? p[j] / used : p[j] / all;
}

static float *make_logits(size_t shape)
{
    size_t n = (size_t)shapes[shape].n_tok * shapes[shape].n_experts;
    float *x = random_floats(n, 4.0f, (uint32_t)shape);
    for (size_t i = 0; i < n; i += 3)
        x[i] = rintf(x[i]); /* ties */
    if (shapes[shape].n_tok > 3)
        x[3 * shapes[shape].n_experts] = NAN;
    return x;
}

static void routing_is_as_written(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * N_SHAPES; i++) {
        struct cuda_moe m = {shapes[i / 2].n_experts, shapes[i / 2].n_used, i % 2};
        uint32_t n_tok = shapes[i / 2].n_tok, n = n_tok * m.n_used;
        float *x = make_logits(i / 2), *want = malloc(n * sizeof *want);
        float *got = malloc(n * sizeof *got);
        uint32_t *want_e = malloc(n * sizeof *want_e), *got_e = malloc(n * sizeof *got_e);
        for (uint32_t t = 0; t < n_tok; t++)
            route(&m, x + (size_t)t * m.n_experts, want_e + t * m.n_used, want + t * m.n_used);
        device_options.seed = 1 + i % SEEDS;
        assert_launched(cuda_moe_route(NULL, &m, x, n_tok, got_e, got));
        assert_memory_equal(want_e, got_e, n * sizeof *want_e);
        for (uint32_t j = 0; j < n; j++)
            if (isnan(want[j]) ? !isnan(got[j]) : memcmp(&want[j], &got[j], sizeof *want) != 0)
                fail_msg("shape %zu, entry %u: %g, not %g", i, j, (double)got[j], (double)want[j]);
        free(x);
        free(want);
        free(got);
        free(want_e);
        free(got_e);
    }
}

static void groups_keep_the_tokens_order(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        struct cuda_moe m = {shapes[i].n_experts, shapes[i].n_used, false};
        uint32_t n_tok = 20 * shapes[i].n_tok, n = n_tok * m.n_used, at = 0;
        uint32_t *experts = malloc(4 * n * sizeof *experts), *entry = experts + n, *row = entry + n;
        uint32_t *start = malloc((m.n_experts + 1) * sizeof *start);
        for (uint32_t j = 0; j < n; j++)
            experts[j] = j * 2654435761u >> 7 & 1 ? 0 : j * 2654435761u % m.n_experts;
        device_options.seed = 1 + i % SEEDS;
        assert_launched(cuda_moe_group(NULL, &m, experts, n_tok, start, entry, row));
        for (uint32_t e = 0; e < m.n_experts; e++) {
            assert_int_equal(start[e], at);
            for (uint32_t j = 0; j < n; j++)
                if (experts[j] == e) {
                    assert_int_equal(entry[at], j);
                    assert_int_equal(row[j], at++);
                }
        }
        assert_int_equal(start[m.n_experts], n);
        free(experts);
        free(start);
    }
}

static void combining_adds_in_the_order_of_the_choices(void **state)
{
    (void)state;
    enum { TOK = 5, USED = 3, DIM = 300 };
    const struct cuda_moe m = {8, USED, false};
    float *y = random_floats(TOK * USED * DIM, 1.0f, 1),
          *gates = random_floats(TOK * USED, 1.0f, 2);
    float out[TOK * DIM];
    uint32_t row[TOK * USED];
    for (uint32_t i = 0; i < TOK * USED; i++)
        row[i] = i * 7 % (TOK * USED);
    assert_launched(cuda_moe_combine(NULL, &m, y, gates, row, TOK, DIM, out));
    for (uint32_t t = 0; t < TOK; t++)
        for (uint32_t d = 0; d < DIM; d++) {
            float want = 0.0f;
            for (uint32_t j = 0; j < USED; j++)
                want = fmaf(gates[t * USED + j], y[row[t * USED + j] * DIM + d], want);
            assert_same_bits(&want, &out[t * DIM + d], 1);
        }
    free(y);
    free(gates);
}

static void bad_shapes_are_refused(void **state)
{
    (void)state;
    static const struct cuda_moe bad[] = {{8, 9, false},
                                          {8, 0, false},
                                          {64, CUDA_EXPERTS_USED_MAX + 1, false},
                                          {CUDA_EXPERTS_MAX + 1, 2, false}};
    float x[8] = {0}, gates[8];
    uint32_t experts[8];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cuda_moe_route(NULL, &bad[i], x, 1, experts, gates),
                         cudaErrorInvalidValue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routing_is_as_written),
        cmocka_unit_test(groups_keep_the_tokens_order),
        cmocka_unit_test(combining_adds_in_the_order_of_the_choices),
        cmocka_unit_test(bad_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
