/* The sampler agrees in every draw with the plain statement of its rule (sampler_reference.h), also
 * with one computed in double wherever no border is near; draws follow the distribution; ties,
 * penalties, masks, logprobs and faulty rows are as the header says. */
#include "rig.h"
#include "sampler_reference.h"

#include <float.h>

static struct sl_sampled sample(const struct sl_sampling *p, const float *logits, uint32_t n,
                                uint32_t position, struct sl_sampler_scratch *s)
{
    struct sl_sampled out;
    float *row = malloc(n * sizeof *row);
    memcpy(row, logits, n * sizeof *row);
    float max = -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)(logits[i] - max));
    enum sl_status status =
        sl_sample(p, row, n, max, (float)log(sum), NULL, 0, position, 0, NULL, 0, s, &out);
    free(row);
    assert_int_equal(status, SL_OK);
    return out;
}

/* Logits of several shapes: bell curves, few values with many ties, steep, with -inf. */
static void random_row(struct sl_rng *r, float *x, uint32_t n)
{
    uint32_t shape = sl_rng_below(r, 5);
    double width = 0.2 + 6 * sl_rng_unit(r);
    for (uint32_t i = 0; i < n; i++) {
        double bell = -3;
        for (unsigned k = 0; k < 6; k++)
            bell += sl_rng_unit(r);
        x[i] = (float)(bell * width);
        if (shape == 1)
            x[i] = (float)sl_rng_below(r, 3);
        if (shape == 2)
            x[i] = (float)(-40 * sl_rng_unit(r));
        if (shape == 3 && sl_rng_below(r, 2))
            x[i] = -INFINITY;
        if (shape == 4 && sl_rng_below(r, 200) == 0)
            x[i] = (float)(12 + 4 * sl_rng_unit(r));
    }
    x[sl_rng_below(r, n)] = 1.5f; /* never all -inf */
}

static struct sl_sampling random_params(struct sl_rng *r, uint32_t n)
{
    struct sl_sampling p = sl_sampling_default();
    static const float temperatures[] = {0, 1e-30f, 0.01f, 0.7f, 1, 1, 1, 1.5f, 100};
    static const float shares[] = {1, 1, 0.9f, 0.5f, 0.999f, 1e-6f};
    static const float floors[] = {0, 0, 0, 0.05f, 0.5f, 1};
    p.temperature = temperatures[sl_rng_below(r, 9)];
    p.top_k = sl_rng_below(r, 3) ? 0 : (int32_t)sl_rng_below(r, n + 10);
    p.top_p = shares[sl_rng_below(r, 6)];
    p.typical_p = sl_rng_below(r, 3) ? 1 : shares[sl_rng_below(r, 6)];
    p.min_p = floors[sl_rng_below(r, 6)];
    p.seed = sl_rng_u64(r);
    return p;
}

static void compare_with_reference(uint64_t seed, uint32_t n, struct sl_sampler_scratch *s,
                                   float *x, unsigned *n_near)
{
    struct sl_rng r = {seed, 0};
    random_row(&r, x, n);
    struct sl_sampling p = random_params(&r, n);
    uint32_t position = sl_rng_below(&r, 5000);
    uint32_t got = sample(&p, x, n, position, s).token;
    float u = sl_random_unit(p.seed, 0, position, 0);
    struct reference exact = {.exact = true}, real = {.exact = false};
    uint32_t want = ref_choose(&exact, &p, x, n, u);
    if (got != want)
        fail_msg("seed %llu n %u: token %u, want %u (T %g k %d p %g typical %g min %g)",
                 (unsigned long long)seed, n, got, want, (double)p.temperature, p.top_k,
                 (double)p.top_p, (double)p.typical_p, (double)p.min_p);
    want = ref_choose(&real, &p, x, n, u);
    if (real.margin < 1e-5)
        ++*n_near;
    else if (got != want)
        fail_msg("seed %llu n %u: token %u, in double %u, margin %g", (unsigned long long)seed, n,
                 got, want, real.margin);
}

static void test_small_rows(void **state)
{
    (void)state;
    enum { N = 300, RUNS = 20000 };
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    float x[N];
    unsigned n_near = 0;
    for (uint64_t seed = 1; seed <= RUNS; seed++)
        compare_with_reference(seed, 1 + (uint32_t)(seed % N), s, x, &n_near);
    assert_true(n_near < RUNS / 4); /* otherwise nothing was compared in double */
    sl_sampler_scratch_free(s);
}

static void test_large_rows(void **state)
{
    (void)state;
    enum { N = 50257, RUNS = 60 };
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    float *x = malloc(N * sizeof *x);
    unsigned n_near = 0;
    for (uint64_t seed = 1; seed <= RUNS; seed++)
        compare_with_reference(seed, N - (uint32_t)(seed % 16), s, x, &n_near);
    free(x);
    sl_sampler_scratch_free(s);
}

/* Pearson's chi-square over 20,000 draws; the limit is the 1 - 1e-6 quantile for 7 degrees. The
 * seeds are fixed, so it holds always or never. */
static void test_distribution(void **state)
{
    (void)state;
    enum { N = 8, DRAWS = 20000 };
    static const float x[N] = {0.5f, 2, -1, 1, 1, 0, -2, 1.5f};
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    for (unsigned row = 0; row < 4; row++) {
        struct sl_sampling p = sl_sampling_default();
        p.temperature = row == 1 ? 0.6f : row == 2 ? 3 : 1;
        double want[N], total = 0, chi = 0;
        unsigned count[N] = {0};
        for (unsigned i = 0; i < N; i++)
            total += want[i] = exp((double)x[i] / (double)p.temperature);
        for (unsigned k = 0; k < DRAWS; k++) {
            p.seed = row == 3 ? 77 : k; /* over seeds, or over positions of one seed */
            count[sample(&p, x, N, row == 3 ? k : 5, s).token]++;
        }
        for (unsigned i = 0; i < N; i++) {
            double e = want[i] / total * DRAWS;
            chi += ((double)count[i] - e) * ((double)count[i] - e) / e;
        }
        if (chi > 40.5)
            fail_msg("row %u: chi-square %g", row, chi);
    }
    sl_sampler_scratch_free(s);
}

static void test_edges(void **state)
{
    (void)state;
    enum { N = 40 };
    static float x[N];
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    for (uint64_t seed = 0; seed < 2000; seed++) {
        struct sl_rng r = {seed, 9};
        for (unsigned i = 0; i < N; i++)
            x[i] = (float)sl_rng_below(&r, 4);
        uint32_t best = 0;
        for (uint32_t i = 0; i < N; i++)
            best = x[i] > x[best] ? i : best;
        /* Each of these leaves only the best token, the lowest id of equal ones. */
        struct sl_sampling only[5];
        for (unsigned k = 0; k < 5; k++) {
            only[k] = sl_sampling_default();
            only[k].seed = seed;
        }
        only[0].temperature = 0;
        only[1].top_k = 1;
        only[2].top_p = 1e-9f;
        only[3].top_k = 5, only[3].top_p = 1e-9f;
        only[4].temperature = 0, only[4].top_k = 7, only[4].top_p = 0.5f, only[4].min_p = 0.3f;
        for (unsigned k = 0; k < 5; k++)
            assert_int_equal(sample(&only[k], x, N, 3, s).token, best);
        /* All ties of the maximum, and nothing else, pass min_p = 1. */
        struct sl_sampling ties = sl_sampling_default();
        ties.min_p = 1;
        ties.seed = seed;
        assert_true(x[sample(&ties, x, N, 3, s).token] == x[best]);
    }
    float one = -3;
    struct sl_sampling p = sl_sampling_default();
    assert_int_equal(sample(&p, &one, 1, 0, s).token, 0);
    p.top_p = 0.1f, p.typical_p = 0.1f, p.min_p = 1, p.top_k = 99;
    assert_int_equal(sample(&p, &one, 1, 0, s).token, 0);
    sl_sampler_scratch_free(s);
}

/* The same arguments give the same token; seed, choice and position each change the draw. */
static void test_keys_of_the_draw(void **state)
{
    (void)state;
    enum { N = 1000 };
    static float x[N], row[N];
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    struct sl_sampling p = sl_sampling_default();
    unsigned same[3] = {0};
    for (uint32_t k = 0; k < 200; k++) {
        uint32_t token[5];
        for (unsigned i = 0; i < 5; i++) {
            struct sl_sampled out;
            memcpy(row, x, sizeof row);
            p.seed = i == 2 ? k + 1000 : k;
            assert_int_equal(
                sl_sample(&p, row, N, 0, 0, NULL, i == 3, i == 4 ? 8 : 7, 0, NULL, 0, s, &out),
                SL_OK);
            token[i] = out.token;
        }
        assert_int_equal(token[0], token[1]);
        for (unsigned i = 0; i < 3; i++)
            same[i] += token[0] == token[2 + i];
    }
    for (unsigned i = 0; i < 3; i++)
        assert_true(same[i] < 10);
    sl_sampler_scratch_free(s);
}

static void test_penalties_bias_and_masks(void **state)
{
    (void)state;
    enum { N = 6 };
    /* Greedy over small tables: which token wins tells what was done to the logits. */
    static const struct {
        const char *what;
        float x[N];
        uint32_t prompt[3], n_prompt, out[6], n_out;
        float repetition, frequency, presence;
        struct sl_logit_bias bias[2];
        uint32_t n_bias, min_tokens, stop, own_stop;
        bool ignore_eos;
        uint32_t want;
    } rows[] = {
        {"nothing", {1, 5, 2, 0, 4, 3}, {1}, 1, {1}, 1, 1, 0, 0, {{0}}, 0, 0, 1, 1, false, 1},
        {"presence", {1, 5, 2, 0, 4, 3}, {0}, 0, {1, 1}, 2, 1, 0, 1.5f, {{0}}, 0, 0, 9, 9, 0, 4},
        {"presence counts once",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {1, 1},
         2,
         1,
         0,
         0.9f,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         1},
        {"not over the prompt",
         {1, 5, 2, 0, 4, 3},
         {1},
         1,
         {0},
         0,
         1,
         2,
         2,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         1},
        {"frequency",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {1, 1, 1, 4},
         4,
         1,
         0.6f,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"negative frequency",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {4, 4},
         2,
         1,
         -0.6f,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"repetition, prompt",
         {1, 5, 2, 0, 4, 3},
         {1},
         1,
         {0},
         0,
         1.5f,
         0,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"repetition, output",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {1},
         1,
         1.5f,
         0,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"repetition of negatives",
         {-9, -1, -1.5f, -9, -9, -9},
         {1},
         1,
         {0},
         0,
         2,
         0,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         2},
        {"repetition below 1",
         {1, 5, 2, 0, 4, 3},
         {4},
         1,
         {0},
         0,
         0.5f,
         0,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"a huge quotient",
         {1, 5, 2, 0, 4, 3},
         {4},
         1,
         {0},
         0,
         1e-38f,
         0,
         0,
         {{0}},
         0,
         0,
         9,
         9,
         0,
         4},
        {"bias",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {0},
         0,
         1,
         0,
         0,
         {{3, 100}, {1, -100}},
         2,
         0,
         9,
         9,
         0,
         3},
        {"bias before repetition",
         {1, 5, 2, 0, 4, 3},
         {3},
         1,
         {0},
         0,
         2,
         0,
         0,
         {{3, 9}},
         1,
         0,
         9,
         9,
         0,
         1},
        {"min_tokens", {1, 5, 2, 0, 4, 3}, {0}, 0, {0}, 0, 1, 0, 0, {{0}}, 0, 3, 1, 4, 0, 5},
        {"min_tokens reached",
         {1, 5, 2, 0, 4, 3},
         {0},
         0,
         {0},
         0,
         1,
         0,
         0,
         {{0}},
         0,
         2,
         1,
         4,
         0,
         1},
        {"ignore_eos", {1, 5, 2, 0, 4, 3}, {0}, 0, {0}, 0, 1, 0, 0, {{0}}, 0, 0, 1, 4, true, 4},
    };
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t keys[16] = {0}, counts[16] = {0};
        struct sl_counts c = {keys, counts, 16};
        for (uint32_t k = 0; k < rows[i].n_prompt; k++)
            sl_counts_add_prompt(&c, rows[i].prompt[k]);
        for (uint32_t k = 0; k < rows[i].n_out; k++)
            sl_counts_add_output(&c, rows[i].out[k]);
        struct sl_sampling p = sl_sampling_default();
        p.temperature = 0;
        p.repetition_penalty = rows[i].repetition;
        p.frequency_penalty = rows[i].frequency;
        p.presence_penalty = rows[i].presence;
        p.bias = rows[i].bias;
        p.n_bias = rows[i].n_bias;
        p.min_tokens = rows[i].min_tokens;
        p.ignore_eos = rows[i].ignore_eos;
        p.stop_ids = &rows[i].own_stop;
        p.n_stop_ids = 1;
        p.want_logprob = true;
        p.n_logprobs = 2;
        float x[N];
        memcpy(x, rows[i].x, sizeof x);
        struct sl_sampled out;
        assert_int_equal(sl_sample(&p, x, N, 5, 0.25f, &c, 0, 0, 2, &rows[i].stop, 1, s, &out),
                         SL_OK);
        if (out.token != rows[i].want)
            fail_msg("%s: token %u, want %u", rows[i].what, out.token, rows[i].want);
        /* Logprobs are of the raw row, whatever was done to it. */
        assert_true(out.logprob == rows[i].x[out.token] - 5 - 0.25f);
        assert_int_equal(out.n_top, 2);
        assert_true(out.top[0].logprob >= out.top[1].logprob);
        assert_true(out.top[0].logprob == rows[i].x[out.top[0].token] - 5 - 0.25f);
    }
    sl_sampler_scratch_free(s);
}

static void test_counts(void **state)
{
    (void)state;
    enum { SLOTS = 64 };
    uint32_t keys[SLOTS] = {0}, n[SLOTS] = {0}, want[1000] = {0};
    struct sl_counts c = {keys, n, SLOTS};
    struct sl_rng r = {3, 0};
    for (unsigned i = 0; i < 500; i++) {
        uint32_t token = sl_rng_below(&r, 32) * 31; /* at most half full, many collisions */
        if (sl_rng_below(&r, 4) == 0) {
            sl_counts_add_prompt(&c, token);
            want[token] |= 0x80000000u;
        } else {
            sl_counts_add_output(&c, token);
            want[token]++;
        }
    }
    unsigned seen = 0;
    for (unsigned i = 0; i < SLOTS; i++)
        if (keys[i]) {
            assert_int_equal(n[i], want[keys[i] - 1]);
            want[keys[i] - 1] = 0;
            seen++;
        }
    assert_true(seen > 20);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(want[i], 0);
}

static void test_top_logprobs(void **state)
{
    (void)state;
    enum { N = 5000 };
    static float x[N], row[N];
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct sl_rng r = {seed, 0};
        random_row(&r, x, N);
        memcpy(row, x, sizeof row);
        struct sl_sampling p = random_params(&r, N);
        struct sl_logit_bias bias = {7, 50};
        p.bias = &bias;
        p.n_bias = 1;
        p.want_logprob = true;
        p.n_logprobs = (uint32_t)(seed % 21);
        struct sl_sampled out;
        assert_int_equal(sl_sample(&p, row, N, 2.5f, 3, NULL, 0, 1, 0, NULL, 0, s, &out), SL_OK);
        assert_int_equal(out.n_top, p.n_logprobs);
        for (uint32_t k = 0; k < out.n_top; k++) {
            uint32_t id = out.top[k].token, above = 0;
            for (uint32_t i = 0; i < N; i++)
                above += x[i] > x[id] || (x[i] == x[id] && i < id);
            if (above != k)
                fail_msg("seed %llu: token %u is number %u, not %u", (unsigned long long)seed, id,
                         above, k);
            assert_true(out.top[k].logprob == x[id] - 2.5f - 3);
        }
        assert_true(out.logprob == x[out.token] - 2.5f - 3);
    }
    sl_sampler_scratch_free(s);
}

static void test_faulty_rows(void **state)
{
    (void)state;
    enum { N = 37 };
    struct sl_sampler_scratch *s = sl_sampler_scratch_new(N);
    for (unsigned i = 0; i < N; i++)
        for (unsigned k = 0; k < 4; k++) {
            float x[N] = {0};
            x[i] = k % 2 ? INFINITY : NAN;
            struct sl_sampling p = sl_sampling_default();
            struct sl_sampled out;
            p.temperature = k < 2 ? 0 : 1;
            assert_int_equal(sl_sample(&p, x, N, 0, 0, NULL, 0, 0, 0, NULL, 0, s, &out), SL_FAILED);
        }
    /* Nothing left: all -inf, or all that was left is masked. */
    float x[2] = {-INFINITY, -INFINITY};
    struct sl_sampling p = sl_sampling_default();
    struct sl_sampled out;
    assert_int_equal(sl_sample(&p, x, 2, 0, 0, NULL, 0, 0, 0, NULL, 0, s, &out), SL_FAILED);
    x[1] = 1;
    p.ignore_eos = true;
    const uint32_t stops[] = {1, 99};
    assert_int_equal(sl_sample(&p, x, 2, 0, 0, NULL, 0, 0, 0, stops, 2, s, &out), SL_FAILED);
    sl_sampler_scratch_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_rows),       cmocka_unit_test(test_large_rows),
        cmocka_unit_test(test_distribution),     cmocka_unit_test(test_edges),
        cmocka_unit_test(test_keys_of_the_draw), cmocka_unit_test(test_penalties_bias_and_masks),
        cmocka_unit_test(test_counts),           cmocka_unit_test(test_top_logprobs),
        cmocka_unit_test(test_faulty_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
