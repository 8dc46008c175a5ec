/* Promised: the device's row-wise kernels give the scalar backend's bits for any number of rows and
 * any width, under any order of warps; bad numbers stay in their row. */
#include "device.h"

#define ROWS  5
#define SEEDS 4

static const uint32_t dims[] = {1, 15, 16, 17, 64, 100, 576, 2048, 4099, 9000};
#define N_DIMS (sizeof dims / sizeof *dims)

struct rows_call {
    const float *x, *w;
    const uint32_t *ids;
    float *out;
    uint32_t dim;
};
typedef void op_fn(struct sl_backend *b, const struct rows_call *c);

/* Every op on the CPU's backend, or, if b is NULL, on the device. */
static void call_norm(struct sl_backend *b, const struct rows_call *c)
{
    if (b)
        b->ops->rms_norm(b, c->x, c->w, 1e-5f, ROWS, c->dim, c->out);
    else
        assert_launched(cuda_rms_norm(NULL, c->x, c->w, 1e-5f, ROWS, c->dim, c->out));
}

static void call_norm_in_place(struct sl_backend *b, const struct rows_call *c)
{
    memcpy(c->out, c->x, (size_t)ROWS * c->dim * sizeof(float));
    if (b)
        b->ops->rms_norm(b, c->out, c->w, 1e-5f, ROWS, c->dim, c->out);
    else
        assert_launched(cuda_rms_norm(NULL, c->out, c->w, 1e-5f, ROWS, c->dim, c->out));
}

static void call_silu(struct sl_backend *b, const struct rows_call *c)
{
    if (b)
        b->ops->silu_mul(b, c->x, ROWS, c->dim, c->out);
    else
        assert_launched(cuda_silu_mul(NULL, c->x, ROWS, c->dim, c->out));
}

static void call_add(struct sl_backend *b, const struct rows_call *c)
{
    size_t n = (size_t)ROWS * c->dim;
    memcpy(c->out, c->x, n * sizeof(float));
    if (b)
        b->ops->add(b, c->out, c->x + n, n);
    else
        assert_launched(cuda_add(NULL, c->out, c->x + n, n));
}

static void call_gather(struct sl_backend *b, const struct rows_call *c)
{
    if (b)
        b->ops->gather_rows(b, c->x, c->ids, ROWS, c->dim, c->out);
    else
        assert_launched(cuda_gather_rows(NULL, c->x, c->ids, ROWS, c->dim, c->out));
}

static void call_stats(struct sl_backend *b, const struct rows_call *c)
{
    uint32_t argmax[ROWS];
    if (b)
        b->ops->logit_stats(b, c->x, ROWS, c->dim, c->out, argmax, c->out + ROWS);
    else
        assert_launched(cuda_logit_stats(NULL, c->x, ROWS, c->dim, c->out, argmax, c->out + ROWS));
    for (int i = 0; i < ROWS; i++)
        c->out[2 * ROWS + i] = (float)argmax[i];
}

static const struct {
    const char *name;
    op_fn *fn;
    uint32_t n_out; /* values a row, 0: dim */
} ops[] = {
    {"rms_norm", call_norm, 0},      {"rms_norm in place", call_norm_in_place, 0},
    {"silu_mul", call_silu, 0},      {"add", call_add, 0},
    {"gather_rows", call_gather, 0}, {"logit_stats", call_stats, 3},
};

static void check_op(struct sl_backend *scalar, size_t op, uint32_t dim)
{
    static const uint32_t ids[ROWS] = {3, 0, 4, 4, 1};
    size_t n = (size_t)ROWS * (ops[op].n_out ? ops[op].n_out : dim);
    float *x = random_floats((size_t)2 * ROWS * dim, 4.0f, dim), *w = random_floats(dim, 1.0f, 2);
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    struct rows_call c = {x, w, ids, want, dim};
    ops[op].fn(scalar, &c);
    c.out = got;
    EACH_SEED(SEEDS)
    {
        memset(got, 0xff, n * sizeof *got);
        ops[op].fn(NULL, &c);
        if (memcmp(want, got, n * sizeof *want) != 0)
            fail_msg("%s of %u, seed %llu: off by %g", ops[op].name, dim,
                     (unsigned long long)device_options.seed, worst_relative(want, got, n));
    }
    free(x);
    free(w);
    free(want);
    free(got);
}

static void row_ops_give_scalars_bits(void **state)
{
    (void)state;
    struct sl_backend *scalar = open_scalar();
    for (size_t op = 0; op < sizeof ops / sizeof *ops; op++)
        for (size_t d = 0; d < N_DIMS; d++)
            check_op(scalar, op, dims[d]);
    scalar->ops->close(scalar);
}

static void rope_gives_scalars_bits(void **state)
{
    (void)state;
    enum { TOK = 11, HEADS = 3, N_POS = 64 };
    static const struct {
        uint32_t head_dim, n_rot;
    } rows[] = {{64, 64}, {80, 80}, {96, 32}, {128, 128}, {40, 24}, {2, 2}};
    struct sl_backend *scalar = open_scalar();
    float *cos_table = malloc((size_t)2 * N_POS * 64 * sizeof *cos_table);
    float *sin_table = cos_table + (size_t)N_POS * 64;
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 2; i++) {
        uint32_t dim = rows[i / 2].head_dim, n_rot = rows[i / 2].n_rot, pos[TOK];
        uint32_t stride = HEADS * dim + 8;
        size_t n = (size_t)TOK * stride;
        sl_rope_table(n_rot, 0, N_POS, 10000.0, 1.0, NULL, cos_table, sin_table);
        struct sl_rope rope = {i % 2 ? SL_ROPE_NEOX : SL_ROPE_INTERLEAVED, n_rot, N_POS, cos_table,
                               sin_table};
        for (uint32_t t = 0; t < TOK; t++)
            pos[t] = (t * 5 + 1) % N_POS;
        float *want = random_floats(n, 1.0f, 4), *got = random_floats(n, 1.0f, 4);
        scalar->ops->rope(scalar, &rope, want, stride, HEADS, dim, pos, TOK);
        assert_launched(cuda_rope(NULL, i % 2 == 1, n_rot, cos_table, sin_table, got, stride, HEADS,
                                  dim, pos, TOK));
        assert_same_bits(want, got, n);
        free(want);
        free(got);
    }
    free(cos_table);
    scalar->ops->close(scalar);
}

static void embed_reads_the_files_rows(void **state)
{
    (void)state;
    enum { N = 9, K = 96, TOK = 4 };
    const uint32_t ids[TOK] = {8, 0, 3, 8};
    float *w = random_floats(N * K, 1.0f, 1), want[K], out[TOK * K];
    uint8_t raw[N * K * 4];
    for (int t = 0; t < SL_I8; t++) {
        enum sl_dtype type = (enum sl_dtype)t;
        sl_quantize_row(type, w, raw, N * K);
        assert_launched(cuda_embed(NULL, type, raw, K, ids, TOK, out));
        for (int j = 0; j < TOK; j++) {
            sl_dequantize_row(type, raw + ids[j] * sl_dtype_bytes(type, K), want, K);
            assert_same_bits(want, out + j * K, K);
        }
    }
    /* Rows of an odd number of elements. */
    sl_quantize_row(SL_F16, w, raw, N * 7);
    assert_launched(cuda_embed(NULL, SL_F16, raw, 7, ids, TOK, out));
    for (int j = 0; j < TOK; j++) {
        sl_dequantize_row(SL_F16, raw + ids[j] * 14, want, 7);
        assert_same_bits(want, out + j * 7, 7);
    }
    free(w);
}

/* Ties, NaN, infinities and zeros of either sign: one odd row among others. */
static void stats_of_odd_rows_are_scalars(void **state)
{
    (void)state;
    enum { N = 5003, CASES = 9 };
    float *x = random_floats((size_t)CASES * N, 1.0f, 3), want[2][CASES], got[2][CASES];
    uint32_t want_at[CASES], got_at[CASES];
    struct sl_backend *scalar = open_scalar();
    x[17] = x[33] = x[4000] = 40.0f;
    x[N + 20] = NAN;
    x[N + 4020] = 90.0f;
    x[3 * N - 1] = 200.0f;
    x[3 * N + 7] = x[3 * N + 5000] = INFINITY;
    for (uint32_t i = 0; i < N; i++) {
        x[4 * N + i] = -INFINITY;
        x[5 * N + i] = NAN;
        x[6 * N + i] = i % 5 == 2 ? 0.0f : i % 5 == 4 ? -0.0f : -1.0f;
        x[7 * N + i] = i % 7 == 3 ? -0.0f : i % 7 == 6 ? 0.0f : -1.0f;
        x[8 * N + i] = i == N - 2 ? -0.0f : i == N - 1 ? 0.0f : -1.0f;
    }
    scalar->ops->logit_stats(scalar, x, CASES, N, want[0], want_at, want[1]);
    EACH_SEED(SEEDS)
    {
        assert_launched(cuda_logit_stats(NULL, x, CASES, N, got[0], got_at, got[1]));
        assert_memory_equal(want_at, got_at, sizeof want_at);
        for (int i = 0; i < 2 * CASES; i++) {
            float a = want[i / CASES][i % CASES], b = got[i / CASES][i % CASES];
            if (isnan(a) ? !isnan(b) : memcmp(&a, &b, sizeof a) != 0)
                fail_msg("case %d: %g and %g", i % CASES, (double)a, (double)b);
        }
    }
    free(x);
    scalar->ops->close(scalar);
}

static void nothing_to_do_launches_nothing(void **state)
{
    (void)state;
    float x[4] = {0};
    uint32_t before = device_launches, ids[1] = {0};
    assert_launched(cuda_embed(NULL, SL_F32, x, 4, ids, 0, x));
    assert_launched(cuda_rms_norm(NULL, x, x, 0.0f, 0, 4, x));
    assert_launched(cuda_rope(NULL, false, 4, x, x, x, 4, 1, 4, ids, 0));
    assert_launched(cuda_silu_mul(NULL, x, 0, 4, x));
    assert_launched(cuda_add(NULL, x, x, 0));
    assert_launched(cuda_gather_rows(NULL, x, ids, 0, 4, x));
    assert_launched(cuda_logit_stats(NULL, x, 0, 4, x, ids, x));
    assert_int_equal(device_launches, before);
    assert_int_equal(cuda_embed(NULL, SL_I8, x, 4, ids, 1, x), cudaErrorInvalidValue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_ops_give_scalars_bits),
        cmocka_unit_test(rope_gives_scalars_bits),
        cmocka_unit_test(embed_reads_the_files_rows),
        cmocka_unit_test(stats_of_odd_rows_are_scalars),
        cmocka_unit_test(nothing_to_do_launches_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
