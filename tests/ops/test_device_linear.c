/* Promised: the CUDA linear gives the scalar CPU backend's bits for block formats and f32, whatever
 * the number of rows, the parts, the strides, the scheduling and the threads; f16 and bf16 agree
 * with exact sums within float32's error, and their bits too are the same for every number of rows.
 */
#include "device.h"

struct shape {
    uint32_t n, k, unit; /* unit 0: one slice; FINE: as many slices as there can be */
};
#define FINE 0x8000u

#ifdef DEVICE_WATCHED
#define STEP 3 /* of the row counts, every third */
#else
#define STEP 1
#endif

static const struct shape shapes[] = {
    {1, 32, 0},    {7, 64, 32},    {16, 96, 0},    {17, 160, 32},   {33, 576, 64},
    {40, 1536, 0}, {100, 672, 96}, {64, 1120, 32}, {48, 2048, 128},
};
static const enum sl_dtype types[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};

static struct sl_slices slices_of(struct shape s)
{
    if (s.unit != FINE)
        return s.unit ? sl_slices_cut(s.k, s.unit) : sl_slices_one(s.k);
    struct sl_slices out = {.n = SL_SLICES_MAX, .total = SL_SLICES_MAX};
    for (uint32_t i = 0; i <= out.n; i++)
        out.border[i] = i * (s.k / out.n);
    return out;
}

/* Kernels that are watched may touch nothing but what is shown to the device. */
static void show(const void *p, size_t bytes, const char *name)
{
    emu_memory_add(p, bytes, name);
}
static void hide(const void *p)
{
    if (p)
        emu_memory_remove(p);
}

struct problem {
    enum sl_dtype type;
    struct shape shape;
    struct sl_slices slices;
    uint8_t *raw, *packed;
    float *bias;
};

/* Packed in two calls that cut a tile in two, last rows first. */
static void pack(struct problem *p, int fill)
{
    struct shape s = p->shape;
    size_t row = sl_dtype_bytes(p->type, s.k), bytes = cuda_pack_bytes(p->type, s.n, s.k);
    uint32_t cut = s.n / 3;
    p->packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(p->packed, fill, bytes);
    show(p->packed, bytes, "packed weights");
    assert_int_equal(
        cuda_pack(NULL, p->type, s.n, s.k, cut, s.n - cut, p->raw + cut * row, row, p->packed),
        cudaSuccess);
    assert_int_equal(cuda_pack(NULL, p->type, s.n, s.k, 0, cut, p->raw, row, p->packed),
                     cudaSuccess);
}

static struct problem make_problem(enum sl_dtype type, struct shape s, uint32_t seed)
{
    struct problem p = {.type = type, .shape = s};
    p.slices = slices_of(s);
    float *w = random_floats((size_t)s.n * s.k, 0.1f, seed);
    p.raw = malloc(sl_dtype_bytes(type, (size_t)s.n * s.k));
    sl_quantize_row(type, w, p.raw, (size_t)s.n * s.k);
    show(p.raw, sl_dtype_bytes(type, (size_t)s.n * s.k), "weights");
    p.bias = random_floats(s.n, 1.0f, seed + 1);
    show(p.bias, s.n * sizeof *p.bias, "bias");
    free(w);
    pack(&p, 0xff);
    return p;
}

static void free_problem(struct problem *p)
{
    hide(p->raw);
    hide(p->packed);
    hide(p->bias);
    free(p->raw);
    free(p->packed);
    free(p->bias);
}

struct call {
    uint32_t n_tok, x_stride, y_stride;
    bool bias, accumulate;
};

/* x has n_tok rows, the last one without the rest of its stride. */
static void *quantized(const struct problem *p, const float *x, uint32_t x_stride, uint32_t n_tok)
{
    size_t bytes = cuda_act_bytes(p->type, n_tok, p->shape.k);
    void *act = aligned_alloc(64, (bytes + 64) / 64 * 64);
    memset(act, 0xff, bytes);
    show(x, ((size_t)(n_tok - 1) * x_stride + p->shape.k) * sizeof *x, "x");
    if (bytes)
        show(act, bytes, "activations");
    if (bytes)
        assert_int_equal(cuda_quantize(NULL, p->type, x, x_stride, n_tok, p->shape.k, act),
                         cudaSuccess);
    return act;
}

static void free_quantized(const float *x, void *act)
{
    hide(x);
    hide(act);
    free(act);
}

static struct cuda_weight weight_of(const struct problem *p)
{
    return (struct cuda_weight){.dtype = p->type,
                                .n = p->shape.n,
                                .k = p->shape.k,
                                .data = p->packed,
                                .border = p->slices.border,
                                .n_slices = p->slices.n};
}

static void launch(const struct problem *p, const struct call *c, const struct cuda_parts *parts,
                   const float *x, float *y, size_t plane)
{
    void *act = quantized(p, x, c->x_stride, c->n_tok);
    struct cuda_weight w = weight_of(p);
    show(w.border, (p->slices.n + 1) * sizeof *w.border, "borders");
    show(parts->node, parts->n * sizeof *parts->node, "parts");
    show(y, ((parts->n - 1) * plane + (size_t)c->n_tok * c->y_stride) * sizeof *y, "y");
    assert_int_equal(cuda_linear(NULL, &w, x, c->x_stride, act, c->n_tok, parts,
                                 c->bias ? p->bias : NULL, c->accumulate, y, c->y_stride, plane),
                     cudaSuccess);
    hide(w.border);
    hide(parts->node);
    hide(y);
    free_quantized(x, act);
}

static void run_cuda(const struct problem *p, const struct call *c, const float *x, float *y)
{
    struct sl_tree_node all = {0, p->slices.n};
    struct cuda_parts parts = {&all, 1};
    for (size_t i = 0; i < (size_t)c->n_tok * c->y_stride; i++)
        y[i] = 0.25f;
    launch(p, c, &parts, x, y, 0);
}

static void run_scalar(struct sl_backend *b, const struct problem *p, const struct call *c,
                       const float *x, float *y)
{
    struct sl_weight_src src = {p->type, p->shape.n, p->shape.k, p->raw, 0};
    struct sl_weight w;
    struct sl_err err;
    assert_int_equal(b->ops->weight_pack(b, &src, 1, &p->slices, &w, &err), SL_OK);
    for (size_t i = 0; i < (size_t)c->n_tok * c->y_stride; i++)
        y[i] = 0.25f;
    b->ops->linear(b, &w, x, c->x_stride, c->n_tok, c->bias ? p->bias : NULL, c->accumulate, y,
                   c->y_stride);
    b->ops->weight_free(b, &w);
}

static bool is_exact(enum sl_dtype t)
{
    return t != SL_F16 && t != SL_BF16;
}

static float rounded(enum sl_dtype t, float x)
{
    return t == SL_F16 ? sl_f16_to_f32(sl_f32_to_f16(x)) : sl_bf16_to_f32(sl_f32_to_bf16(x));
}

/* The sums of rounded activations in double. */
static void run_double(const struct problem *p, const struct call *c, const float *x, float *y)
{
    uint32_t n = p->shape.n, k = p->shape.k;
    float *w = malloc((size_t)n * k * sizeof *w);
    sl_dequantize_row(p->type, p->raw, w, (size_t)n * k);
    for (uint32_t t = 0; t < c->n_tok; t++)
        for (uint32_t i = 0; i < c->y_stride; i++) {
            double sum = 0.0;
            for (uint32_t j = 0; i < n && j < k; j++)
                sum += (double)w[(size_t)i * k + j] *
                       (double)rounded(p->type, x[(size_t)t * c->x_stride + j]);
            if (c->bias && i < n)
                sum += (double)p->bias[i];
            y[(size_t)t * c->y_stride + i] =
                i >= n ? 0.25f : (float)(c->accumulate ? sum + 0.25 : sum);
        }
    free(w);
}

static void check(struct sl_backend *scalar, const struct problem *p, const struct call *c,
                  const float *x)
{
    size_t all = (size_t)c->n_tok * c->y_stride;
    float *want = malloc(all * sizeof *want), *got = malloc(all * sizeof *got);
    run_cuda(p, c, x, got);
    if (is_exact(p->type)) {
        run_scalar(scalar, p, c, x, want);
        for (size_t i = 0; i < all; i++)
            if (memcmp(&want[i], &got[i], sizeof *got))
                fail_msg("%s %u x %u, %u rows, seed %llu: row %zu output %zu is %a, not %a",
                         sl_dtype_row(p->type)->text, p->shape.n, p->shape.k, c->n_tok,
                         (unsigned long long)device_options.seed, i / c->y_stride, i % c->y_stride,
                         (double)got[i], (double)want[i]);
    } else {
        run_double(p, c, x, want);
        double worst = worst_relative(want, got, all);
        if (worst > 2e-6)
            fail_msg("%s %u x %u, %u rows: off by %g", sl_dtype_row(p->type)->text, p->shape.n,
                     p->shape.k, c->n_tok, worst);
    }
    free(want);
    free(got);
}

static void every_shape_gives_scalars_bits(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {1, 2, 3, 8, 9, 16, 33, 64, 65};
    enum { N_TOKENS = sizeof tokens / sizeof *tokens };
    struct sl_backend *scalar = open_scalar();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct problem p = make_problem(types[t], shapes[i], (uint32_t)i + 1);
            uint32_t n = shapes[i].n, k = shapes[i].k;
            for (size_t m = i % STEP; m < N_TOKENS; m += STEP) {
                struct call c = {tokens[m], k + 5, n + 1, (i + m) % 2 == 0, (i + m) % 3 == 0};
                float *x = random_floats((size_t)c.n_tok * c.x_stride, 2.0f, (uint32_t)(i + m));
                device_options.seed = (i + m + t) % 4 + 1;
                device_options.n_threads = (uint32_t)m % 3 + 1;
                device_shared_max = (m + t) % 2 ? 99 << 10 : 227 << 10; /* sm_86 and sm_90 */
                check(scalar, &p, &c, x);
                free(x);
            }
            free_problem(&p);
        }
    scalar->ops->close(scalar);
}

static void a_row_alone_has_the_bits_it_has_among_others(void **state)
{
    (void)state;
    enum { N = 40, K = 576, M = 130 };
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct problem p = make_problem(types[t], (struct shape){N, K, 64}, 5);
        struct call all = {M, K, N, true, false};
        float *x = random_floats((size_t)M * K, 2.0f, 6), *want = malloc(M * N * sizeof *want);
        float *y = malloc(M * N * sizeof *y);
        device_options.seed = 1;
        run_cuda(&p, &all, x, want);
        static const uint32_t from[] = {0, 1, 7, 8, 63, 64, 65, 129};
        for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
            struct call some = all;
            some.n_tok = i % 3 == 0 ? 1 : M - from[i] < 12 ? M - from[i] : 12 + (uint32_t)i;
            some.n_tok = some.n_tok > M - from[i] ? M - from[i] : some.n_tok;
            device_options.seed = i % 4 + 1;
            run_cuda(&p, &some, x + (size_t)from[i] * K, y);
            assert_same_bits(y, want + (size_t)from[i] * N, (size_t)some.n_tok * N);
        }
        free(x);
        free(y);
        free(want);
        free_problem(&p);
    }
}

/* Every run of 1 to 7 slices of 11 as a rank's weight: the parts are the CPU's. */
static void parts_are_the_cpus(void **state)
{
    (void)state;
    enum { N = 20, UNIT = 32, S = 11 };
    struct sl_backend *scalar = open_scalar();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        if (!is_exact(types[t]))
            continue;
        struct problem whole = make_problem(types[t], (struct shape){N, S * UNIT, UNIT}, 3);
        size_t row = sl_dtype_bytes(types[t], S * UNIT), unit = sl_dtype_bytes(types[t], UNIT);
        for (uint32_t first = 0; first < S; first++)
            for (uint32_t n = 1; n <= S - first && n < 8; n += 1 + first % 2) {
                uint32_t m = (first * 5 + n * 3) % 12 + 1, k = n * UNIT;
                struct sl_slices s = sl_slices_part(&whole.slices, first, n);
                struct sl_weight_src src = {types[t], N, k, whole.raw + first * unit, row};
                struct sl_weight w;
                struct sl_err err;
                assert_int_equal(scalar->ops->weight_pack(scalar, &src, 1, &s, &w, &err), SL_OK);
                struct sl_tree_node node[SL_SLICES_MAX];
                struct cuda_parts parts = {node, sl_tree_cut(first, n, S, node)};
                for (uint32_t i = 0; i < parts.n; i++)
                    node[i].first -= first;
                size_t all = (size_t)parts.n * m * N;
                float *x = random_floats((size_t)m * k, 2.0f, n);
                float *want = malloc(all * sizeof *want), *got = malloc(all * sizeof *got);
                scalar->ops->linear_partial(scalar, &w, x, k, m, want);
                struct problem p = {types[t], {N, k, UNIT}, s, NULL, NULL, NULL};
                p.packed = aligned_alloc(64, (cuda_pack_bytes(p.type, N, k) + 63) / 64 * 64);
                show(p.packed, cuda_pack_bytes(p.type, N, k), "packed weights");
                assert_int_equal(cuda_pack(NULL, p.type, N, k, 0, N, src.data, row, p.packed), 0);
                struct call c = {m, k, N, false, false};
                device_options.seed = (first + n) % 4 + 1;
                launch(&p, &c, &parts, x, got, (size_t)m * N);
                assert_same_bits(got, want, all);
                scalar->ops->weight_free(scalar, &w);
                free_problem(&p);
                free(x);
                free(want);
                free(got);
            }
        free_problem(&whole);
    }
    scalar->ops->close(scalar);
}

/* So many outputs that warps stand side by side, in groups whose slices are unlike in length. */
static void warps_side_by_side_keep_step(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {9, 17, 33, 130};
    enum { N = 8200, K = 160 };
    struct sl_backend *scalar = open_scalar();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct problem p = make_problem(types[t], (struct shape){N, K, 32}, 7);
        for (size_t m = t % STEP; m < 4; m += STEP) {
            struct call c = {tokens[m], K, N, false, m == 1};
            float *x = random_floats((size_t)c.n_tok * K, 2.0f, 8);
            device_options.seed = (m + t) % 4 + 1;
            check(scalar, &p, &c, x);
            free(x);
        }
        free_problem(&p);
    }
    scalar->ops->close(scalar);
}

/* What was in the buffer before does not stay, be it padding. */
static void packing_fills_the_buffer(void **state)
{
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct problem p = make_problem(types[t], (struct shape){37, 96, 0}, 2);
        size_t bytes = cuda_pack_bytes(types[t], 37, 96);
        uint8_t *first = malloc(bytes);
        memcpy(first, p.packed, bytes);
        hide(p.packed);
        free(p.packed);
        pack(&p, 0x5a);
        assert_memory_equal(first, p.packed, bytes);
        free(first);
        free_problem(&p);
    }
}

/* Row 1 holds a NaN, row 2 an infinity, row 3 zeros, row 4 numbers too small to scale, row 5 the
 * greatest finite ones. */
static void sick_rows_stay_alone(void **state)
{
    (void)state;
    enum { N = 20, K = 96, M = 6 };
    struct sl_backend *scalar = open_scalar();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct problem p = make_problem(types[t], (struct shape){N, K, 32}, 5);
        struct call c = {M, K, N, false, false};
        float *x = random_floats((size_t)M * K, 2.0f, 6), y[M * N], z[M * N];
        x[K + 40] = NAN;
        x[2 * K + 40] = -INFINITY;
        for (int i = 0; i < K; i++) {
            x[3 * K + i] = 0.0f;
            x[4 * K + i] = i % 2 ? 1e-42f : -1e-38f;
            x[5 * K + i] *= 1e37f;
        }
        run_cuda(&p, &c, x, y);
        run_scalar(scalar, &p, &c, x, z);
        for (int i = 0; i < N; i++) {
            assert_true(isfinite(y[i]));
            assert_true(isnan(y[N + i]));
            assert_true(!isfinite(y[2 * N + i]));
            assert_true(y[3 * N + i] == 0.0f);
            assert_true(fabsf(y[4 * N + i]) < 1e-35f);
        }
        if (is_exact(types[t])) {
            assert_same_bits(y, z, N);
            assert_same_bits(y + 3 * N, z + 3 * N, 3 * N);
        }
        free(x);
        free_problem(&p);
    }
    scalar->ops->close(scalar);
}

/* Float weights of any K and borders anywhere. */
static void float_weights_need_no_blocks(void **state)
{
    (void)state;
    static const enum sl_dtype floats[] = {SL_F32, SL_F16, SL_BF16};
    struct sl_backend *scalar = open_scalar();
    for (size_t t = 0; t < 3; t++)
        for (uint32_t k = 1; k < 100; k += 7) {
            struct problem p = make_problem(floats[t], (struct shape){19, k, k > 20 ? 5 : 0}, k);
            struct call c = {k % 11 + 1, k + 1, 19, true, true};
            float *x = random_floats((size_t)c.n_tok * c.x_stride, 2.0f, k);
            device_options.seed = k % 4 + 1;
            check(scalar, &p, &c, x);
            free(x);
            free_problem(&p);
        }
    scalar->ops->close(scalar);
}

enum fused { NORM, SILU };

/* Both outputs of a fused kernel, or of the two it stands for; act [act_bytes] begins as 0x5a. */
static void make_act(enum fused op, bool fused, enum sl_dtype type, uint32_t m, uint32_t k,
                     const float *x, const float *w, float *y, void *act)
{
    size_t bytes = cuda_act_bytes(type, m, k);
    memset(act, 0x5a, bytes);
    show(x, (size_t)m * k * (op == SILU ? 2 : 1) * sizeof *x, "x");
    show(w, k * sizeof *w, "norm");
    show(y, (size_t)m * k * sizeof *y, "y");
    show(act, bytes, "activations");
    if (fused && op == NORM)
        assert_launched(cuda_norm_quantize(NULL, type, x, w, 1e-5f, m, k, y, act));
    else if (fused)
        assert_launched(cuda_silu_quantize(NULL, type, x, m, k, y, act));
    else if (op == NORM)
        assert_launched(cuda_rms_norm(NULL, x, w, 1e-5f, m, k, y));
    else
        assert_launched(cuda_silu_mul(NULL, x, m, k, y));
    if (!fused)
        assert_launched(cuda_quantize(NULL, type, y, k, m, k, act));
    hide(x);
    hide(w);
    hide(y);
    hide(act);
}

static void fused_kernels_do_what_two_do(void **state)
{
    (void)state;
    static const uint32_t widths[] = {32, 96, 576, 1000, 5000}, rows[] = {1, 3, 9};
    for (size_t t = 1; t < sizeof types / sizeof *types; t++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
            for (enum fused op = NORM; op <= SILU; op++) {
                uint32_t k = widths[i], m = rows[(i + t) % 3];
                if (is_exact(types[t]))
                    k = k / 32 * 32;
                float *x = random_floats((size_t)m * k * 2, 2.0f, k),
                      *w = random_floats(k, 1.0f, 3);
                float *y = random_floats((size_t)m * k, 1.0f, 1),
                      *z = random_floats((size_t)m * k, 1.0f, 2);
                size_t bytes = cuda_act_bytes(types[t], m, k);
                void *a = aligned_alloc(64, (bytes + 63) / 64 * 64);
                void *b = aligned_alloc(64, (bytes + 63) / 64 * 64);
                if (i == 1)
                    x[k / 2] = NAN;
                device_options.seed = (i + t) % 4 + 1;
                make_act(op, true, types[t], m, k, x, w, y, a);
                make_act(op, false, types[t], m, k, x, w, z, b);
                assert_same_bits(y, z, (size_t)m * k);
                assert_memory_equal(a, b, bytes);
                free(x);
                free(w);
                free(y);
                free(z);
                free(a);
                free(b);
            }
}

static void partial_sums_add_up_as_on_the_cpu(void **state)
{
    (void)state;
    enum { N = 37, M = 5 };
    struct sl_backend *scalar = open_scalar();
    for (uint32_t ranks = 1; ranks <= 9; ranks += 2) {
        uint32_t first[SL_SLICES_MAX + 1];
        struct sl_tree tree;
        sl_tree_deal(16, ranks, first);
        sl_tree_plan(first, ranks, &tree);
        float *parts = random_floats((size_t)tree.n_parts * M * N, 1.0f, ranks);
        float *bias = random_floats(N, 1.0f, 2), a[M * (N + 3)], b[M * (N + 3)];
        for (int i = 0; i < M * (N + 3); i++)
            a[i] = b[i] = 0.5f;
        bool add = ranks % 3 == 0;
        device_options.seed = ranks % 4 + 1;
        show(parts, (size_t)tree.n_parts * M * N * sizeof *parts, "parts");
        show(bias, N * sizeof *bias, "bias");
        show(b, sizeof b, "y");
        scalar->ops->tree_sum(scalar, &tree, parts, M, N, ranks % 2 ? bias : NULL, add, a, N + 3);
        assert_int_equal(
            cuda_tree_sum(NULL, &tree, parts, M, N, ranks % 2 ? bias : NULL, add, b, N + 3),
            cudaSuccess);
        hide(parts);
        hide(bias);
        hide(b);
        assert_same_bits(a, b, (size_t)M * (N + 3));
        free(parts);
        free(bias);
    }
    scalar->ops->close(scalar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_gives_scalars_bits),
        cmocka_unit_test(a_row_alone_has_the_bits_it_has_among_others),
        cmocka_unit_test(parts_are_the_cpus),
        cmocka_unit_test(warps_side_by_side_keep_step),
        cmocka_unit_test(packing_fills_the_buffer),
        cmocka_unit_test(sick_rows_stay_alone),
        cmocka_unit_test(float_weights_need_no_blocks),
        cmocka_unit_test(fused_kernels_do_what_two_do),
        cmocka_unit_test(partial_sums_add_up_as_on_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
