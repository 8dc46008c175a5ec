/* Promised: the linear op agrees with the reference within what quantised activations cost, and its
 * bits depend on the row and the weights alone: not on the instruction set, the thread count, the
 * rows beside it, strides, or how sources are stacked. */
#include "ops.h"

struct shape {
    uint32_t n, k, unit; /* unit 0: one slice */
};

static const struct shape shapes[] = {
    {1, 32, 0},     {7, 64, 32},  {8, 96, 0},      {16, 160, 32},  {17, 576, 64},
    {33, 1536, 96}, {40, 576, 0}, {100, 1120, 32}, {64, 2048, 64}, {35, 672, 96},
};
static const enum sl_dtype types[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};

struct problem {
    enum sl_dtype type;
    struct shape shape;
    struct sl_slices slices;
    uint8_t *raw;
    float *bias;
};

static struct problem make_problem(enum sl_dtype type, struct shape s, uint32_t seed)
{
    struct problem p = {.type = type, .shape = s};
    p.slices = s.unit ? sl_slices_cut(s.k, s.unit) : sl_slices_one(s.k);
    float *w = random_floats((size_t)s.n * s.k, 0.1f, seed);
    p.raw = malloc(sl_dtype_bytes(type, (size_t)s.n * s.k));
    sl_quantize_row(type, w, p.raw, (size_t)s.n * s.k);
    p.bias = random_floats(s.n, 1.0f, seed + 1);
    free(w);
    return p;
}

static void free_problem(struct problem *p)
{
    free(p->raw);
    free(p->bias);
}

struct call {
    uint32_t n_tok, x_stride, y_stride;
    bool bias, accumulate, split; /* split: the rows come as two sources */
};

/* y starts as 0.25 everywhere, so that accumulation and untouched columns show. */
static void run(struct sl_backend *b, const struct problem *p, const struct call *c, const float *x,
                float *y)
{
    const struct shape *s = &p->shape;
    uint32_t first = c->split ? s->n / 2 : s->n;
    struct sl_weight_src src[2] = {
        {p->type, first, s->k, p->raw, 0},
        {p->type, s->n - first, s->k, p->raw + sl_dtype_bytes(p->type, (size_t)first * s->k), 0},
    };
    struct sl_weight w;
    struct sl_err err;
    assert_int_equal(b->ops->weight_pack(b, src, c->split ? 2 : 1, &p->slices, &w, &err), SL_OK);
    for (size_t i = 0; i < (size_t)c->n_tok * c->y_stride; i++)
        y[i] = 0.25f;
    b->ops->linear(b, &w, x, c->x_stride, c->n_tok, c->bias ? p->bias : NULL, c->accumulate, y,
                   c->y_stride);
    b->ops->weight_free(b, &w);
}

static void scalar_agrees_with_the_reference(void **state)
{
    (void)state;
    struct sl_backend *ref = open_ref(), *scalar = open_scalar();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        bool quantised = sl_dtype_row(types[t])->block_elems > 1;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct problem p = make_problem(types[t], shapes[i], (uint32_t)i + 1);
            uint32_t n = shapes[i].n, k = shapes[i].k;
            struct call c = {5, k + 3, n + 2, i % 2 == 0, i % 3 == 0, false};
            float *x = random_floats((size_t)5 * (k + 3), 2.0f, 9);
            float *a = malloc((size_t)5 * (n + 2) * sizeof *a);
            float *b = malloc((size_t)5 * (n + 2) * sizeof *b);
            run(ref, &p, &c, x, a);
            run(scalar, &p, &c, x, b);
            double worst = worst_relative(a, b, (size_t)5 * (n + 2));
            if (worst > (quantised ? 2e-2 : 2e-6))
                fail_msg("%s %u x %u: off by %g", sl_dtype_row(types[t])->text, n, k, worst);
            free(x);
            free(a);
            free(b);
            free_problem(&p);
        }
    }
    ref->ops->close(ref);
    scalar->ops->close(scalar);
}

/* Against the same sum in exact integers and doubles over the quantised activations: shows an
 * error of the kernel that the tolerance above would hide. */
static void quantised_sums_are_those_of_the_quantised_row(void **state)
{
    (void)state;
    struct sl_backend *ref = open_ref(), *scalar = open_scalar();
    for (size_t t = 3; t < sizeof types / sizeof *types; t++) {
        struct problem p = make_problem(types[t], (struct shape){24, 576, 64}, 3);
        struct call c = {1, 576, 24, false, false, false};
        float *x = random_floats(576, 2.0f, 11), *xq = malloc(576 * sizeof *xq), a[24], b[24];
        for (uint32_t i = 0; i < 576; i += 32) {
            float amax = 0.0f;
            for (uint32_t j = 0; j < 32; j++)
                amax = fmaxf(amax, fabsf(x[i + j]));
            float d = amax / 127.0f, id = 1.0f / d;
            for (uint32_t j = 0; j < 32; j++)
                xq[i + j] = d * rintf(x[i + j] * id);
        }
        run(ref, &p, &c, xq, a);
        run(scalar, &p, &c, x, b);
        assert_true(worst_relative(a, b, 24) < 2e-6);
        free(x);
        free(xq);
        free_problem(&p);
    }
    ref->ops->close(ref);
    scalar->ops->close(scalar);
}

static void every_form_gives_scalars_bits(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 7, 8, 9, 19};
    struct sl_backend *scalar = open_scalar();
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        if (!form)
            continue;
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
                uint32_t n = shapes[i].n, k = shapes[i].k;
                uint32_t m = tokens[(i + t + f) % (sizeof tokens / sizeof *tokens)];
                struct problem p = make_problem(types[t], shapes[i], (uint32_t)i + 1);
                struct call c = {m, k + 5, n + 1, i % 2 == 0, i % 3 == 0, n > 1 && i % 2 == 1};
                float *x = random_floats((size_t)m * (k + 5), 2.0f, (uint32_t)i);
                float *a = malloc((size_t)m * (n + 1) * sizeof *a);
                float *b = malloc((size_t)m * (n + 1) * sizeof *b);
                run(scalar, &p, &c, x, a);
                run(form, &p, &c, x, b);
                if (has_own_bits(&exact_forms[f], types[t]))
                    assert_true(worst_relative(a, b, (size_t)m * (n + 1)) < OWN_BITS_TOLERANCE);
                else
                    assert_same_bits(a, b, (size_t)m * (n + 1));
                free(x);
                free(a);
                free(b);
                free_problem(&p);
            }
        }
        form->ops->close(form);
    }
    scalar->ops->close(scalar);
}

static void a_row_alone_has_the_bits_it_has_among_600(void **state)
{
    (void)state;
    enum { N = 50, K = 576, M = 600 };
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        if (!form)
            continue;
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            struct problem p = make_problem(types[t], (struct shape){N, K, 64}, 5);
            struct call all = {M, K, N, true, false, false}, one = all;
            float *x = random_floats((size_t)M * K, 2.0f, 6), y[N];
            float *want = malloc((size_t)M * N * sizeof *want);
            run(form, &p, &all, x, want);
            for (uint32_t row = 0; row < M; row += row < 20 ? 1 : 97) {
                one.n_tok = 1;
                run(form, &p, &one, x + (size_t)row * K, y);
                assert_same_bits(y, want + (size_t)row * N, N);
            }
            free(x);
            free(want);
            free_problem(&p);
        }
        form->ops->close(form);
    }
}

/* Row 1 holds a NaN, row 2 an infinity, row 3 zeros, row 4 numbers too small to scale, row 5 the
 * greatest finite ones (which f16 has no room for). */
static void sick_rows_stay_alone(void **state)
{
    (void)state;
    enum { N = 20, K = 96, M = 6 };
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]), *scalar = open_scalar();
        for (size_t t = 0; form && t < sizeof types / sizeof *types; t++) {
            struct problem p = make_problem(types[t], (struct shape){N, K, 32}, 5);
            struct call c = {M, K, N, false, false, false};
            float *x = random_floats((size_t)M * K, 2.0f, 6), y[M * N], z[M * N];
            x[K + 40] = NAN;
            x[2 * K + 40] = -INFINITY;
            for (int i = 0; i < K; i++) {
                x[3 * K + i] = 0.0f;
                x[4 * K + i] = i % 2 ? 1e-42f : -1e-38f;
                x[5 * K + i] *= 1e37f;
            }
            run(form, &p, &c, x, y);
            run(scalar, &p, &c, x, z);
            for (int i = 0; i < N; i++) {
                assert_true(isfinite(y[i]));
                assert_true(isnan(y[N + i]));
                assert_true(!isfinite(y[2 * N + i]));
                assert_true(y[3 * N + i] == 0.0f);
                assert_true(fabsf(y[4 * N + i]) < 1e-35f);
            }
            if (!has_own_bits(&exact_forms[f], types[t])) {
                assert_same_bits(y, z, N);
                assert_same_bits(y + 3 * N, z + 3 * N, 3 * N);
            }
            free(x);
            free_problem(&p);
        }
        if (form)
            form->ops->close(form);
        scalar->ops->close(scalar);
    }
}

/* The order of the slices' tree, from sums of single slices computed as weights of their own. */
static void slices_add_up_as_a_binary_tree(void **state)
{
    (void)state;
    enum { N = 16, UNIT = 32 };
    struct sl_backend *scalar = open_scalar();
    for (uint32_t n_slices = 1; n_slices <= 13; n_slices++) {
        uint32_t k = n_slices * UNIT;
        struct problem p = make_problem(SL_F32, (struct shape){N, k, UNIT}, n_slices);
        struct call c = {1, k, N, false, false, false};
        float *x = random_floats(k, 2.0f, 6), y[N], t[16][N];
        assert_int_equal(p.slices.n, n_slices);
        run(scalar, &p, &c, x, y);
        for (uint32_t i = 0; i < n_slices; i++) {
            float *w = malloc((size_t)N * UNIT * sizeof *w);
            for (uint32_t r = 0; r < N; r++)
                memcpy(w + r * UNIT, (float *)(void *)p.raw + r * k + i * UNIT,
                       (size_t)UNIT * sizeof *w);
            struct problem part = {SL_F32, {N, UNIT, 0}, sl_slices_one(UNIT), (uint8_t *)w, NULL};
            struct call d = {1, UNIT, N, false, false, false};
            run(scalar, &part, &d, x + i * UNIT, t[i]);
            free(w);
        }
        for (uint32_t n = n_slices; n > 1; n = (n + 1) / 2)
            for (uint32_t i = 0; i < (n + 1) / 2; i++)
                for (uint32_t j = 0; j < N; j++)
                    t[i][j] = 2 * i + 1 < n ? t[2 * i][j] + t[2 * i + 1][j] : t[2 * i][j];
        assert_same_bits(y, t[0], N);
        free(x);
        free_problem(&p);
    }
    scalar->ops->close(scalar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalar_agrees_with_the_reference),
        cmocka_unit_test(quantised_sums_are_those_of_the_quantised_row),
        cmocka_unit_test(every_form_gives_scalars_bits),
        cmocka_unit_test(a_row_alone_has_the_bits_it_has_among_600),
        cmocka_unit_test(sick_rows_stay_alone),
        cmocka_unit_test(slices_add_up_as_a_binary_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
