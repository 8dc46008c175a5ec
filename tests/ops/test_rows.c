/* Promised: the row-wise ops agree with the reference closely, and every form gives scalar's bits
 * for any number of rows and any width. */
#include "ops.h"

#define ROWS 37
#define WIDE 3000 /* enough elements that rows are spread over the team */

static const uint32_t dims[] = {1, 15, 16, 17, 64, 576, WIDE};

struct rows_call {
    const float *x, *w;
    const uint32_t *ids;
    float *out;
    uint32_t dim;
};
typedef void op_fn(struct sl_backend *b, const struct rows_call *c);

static void call_norm(struct sl_backend *b, const struct rows_call *c)
{
    b->ops->rms_norm(b, c->x, c->w, 1e-5f, ROWS, c->dim, c->out);
}

static void call_norm_in_place(struct sl_backend *b, const struct rows_call *c)
{
    memcpy(c->out, c->x, (size_t)ROWS * c->dim * sizeof(float));
    b->ops->rms_norm(b, c->out, c->w, 1e-5f, ROWS, c->dim, c->out);
}

static void call_silu(struct sl_backend *b, const struct rows_call *c)
{
    b->ops->silu_mul(b, c->x, ROWS, c->dim, c->out);
}

static void call_add(struct sl_backend *b, const struct rows_call *c)
{
    memcpy(c->out, c->x, (size_t)ROWS * c->dim * sizeof(float));
    b->ops->add(b, c->out, c->x + (size_t)ROWS * c->dim, (size_t)ROWS * c->dim);
}

static void call_gather(struct sl_backend *b, const struct rows_call *c)
{
    b->ops->gather_rows(b, c->x, c->ids, ROWS, c->dim, c->out);
}

static void call_stats(struct sl_backend *b, const struct rows_call *c)
{
    uint32_t argmax[ROWS];
    b->ops->logit_stats(b, c->x, ROWS, c->dim, c->out, argmax, c->out + ROWS);
    for (int i = 0; i < ROWS; i++)
        c->out[2 * ROWS + i] = (float)argmax[i];
}

static const struct {
    const char *name;
    op_fn *fn;
    double tolerance; /* against the reference, of the largest value */
    uint32_t n_out;   /* values a row, 0: dim */
} ops[] = {
    {"rms_norm", call_norm, 1e-6, 0},     {"rms_norm in place", call_norm_in_place, 1e-6, 0},
    {"silu_mul", call_silu, 1e-6, 0},     {"add", call_add, 0.0, 0},
    {"gather_rows", call_gather, 0.0, 0}, {"logit_stats", call_stats, 1e-6, 3},
};

static void check_op(struct sl_backend *a, struct sl_backend *b, size_t op, uint32_t dim,
                     bool exact)
{
    uint32_t ids[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        ids[i] = (i * 7 + 3) % ROWS;
    size_t n = (size_t)ROWS * (ops[op].n_out ? ops[op].n_out : dim);
    struct rows_call c = {random_floats((size_t)2 * ROWS * dim, 4.0f, dim),
                          random_floats(dim, 1.0f, 2), ids, NULL, dim};
    float *x = calloc(n, sizeof *x), *y = calloc(n, sizeof *y);
    c.out = x;
    ops[op].fn(a, &c);
    c.out = y;
    ops[op].fn(b, &c);
    if (exact ? memcmp(x, y, n * sizeof *x) != 0 : worst_relative(x, y, n) > ops[op].tolerance)
        fail_msg("%s of %u differs by %g", ops[op].name, dim, worst_relative(x, y, n));
    free((void *)(uintptr_t)c.x);
    free((void *)(uintptr_t)c.w);
    free(x);
    free(y);
}

static void row_ops_agree(void **state)
{
    (void)state;
    struct sl_backend *ref = open_ref(), *scalar = open_scalar();
    for (size_t op = 0; op < sizeof ops / sizeof *ops; op++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            check_op(ref, scalar, op, dims[d], false);
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        for (size_t op = 0; form && op < sizeof ops / sizeof *ops; op++)
            for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
                check_op(scalar, form, op, dims[d], true);
        if (form)
            form->ops->close(form);
    }
    ref->ops->close(ref);
    scalar->ops->close(scalar);
}

static void rope_agrees(void **state)
{
    (void)state;
    enum { TOK = 40, HEADS = 3, N_POS = 64 };
    static const struct {
        uint32_t head_dim, n_rot;
    } rows[] = {{64, 64}, {80, 80}, {96, 32}, {128, 128}, {40, 24}};
    struct sl_backend *ref = open_ref(), *scalar = open_scalar();
    float *cs = malloc((size_t)2 * N_POS * 64 * sizeof *cs);
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        for (size_t i = 0; form && i < sizeof rows / sizeof *rows * 2; i++) {
            uint32_t dim = rows[i / 2].head_dim, stride = HEADS * dim + 8, pos[TOK];
            float *sin_table = cs + (size_t)N_POS * 64;
            sl_rope_table(rows[i / 2].n_rot, 0, N_POS, 10000.0, 1.0, NULL, cs, sin_table);
            struct sl_rope rope = {i % 2 ? SL_ROPE_NEOX : SL_ROPE_INTERLEAVED, rows[i / 2].n_rot,
                                   N_POS, cs, sin_table};
            for (uint32_t t = 0; t < TOK; t++)
                pos[t] = (t * 5 + 1) % N_POS;
            float *a = random_floats((size_t)TOK * stride, 1.0f, 4);
            float *b = random_floats((size_t)TOK * stride, 1.0f, 4);
            float *c = random_floats((size_t)TOK * stride, 1.0f, 4);
            ref->ops->rope(ref, &rope, a, stride, HEADS, dim, pos, TOK);
            scalar->ops->rope(scalar, &rope, b, stride, HEADS, dim, pos, TOK);
            form->ops->rope(form, &rope, c, stride, HEADS, dim, pos, TOK);
            assert_true(worst_relative(a, b, (size_t)TOK * stride) < 1e-6);
            assert_same_bits(b, c, (size_t)TOK * stride);
            free(a);
            free(b);
            free(c);
        }
        if (form)
            form->ops->close(form);
    }
    free(cs);
    ref->ops->close(ref);
    scalar->ops->close(scalar);
}

static void embed_reads_the_files_rows(void **state)
{
    (void)state;
    enum { N = 9, K = 64, TOK = 4 };
    const uint32_t ids[TOK] = {8, 0, 3, 8};
    float *w = random_floats(N * K, 1.0f, 1), want[K], out[TOK * K];
    uint8_t raw[N * K * 4];
    struct sl_backend *backends[2] = {open_ref(), open_scalar()};
    for (int t = 0; t < SL_I8; t++) {
        enum sl_dtype type = (enum sl_dtype)t;
        sl_quantize_row(type, w, raw, N * K);
        struct sl_weight_src table = {type, N, K, raw, 0};
        for (int i = 0; i < 2; i++) {
            backends[i]->ops->embed(backends[i], &table, ids, TOK, out);
            for (int j = 0; j < TOK; j++) {
                sl_dequantize_row(type, raw + ids[j] * sl_dtype_bytes(type, K), want, K);
                assert_same_bits(want, out + j * K, K);
            }
        }
    }
    free(w);
    backends[0]->ops->close(backends[0]);
    backends[1]->ops->close(backends[1]);
}

static void stats_name_the_lowest_index_and_tell_nan(void **state)
{
    (void)state;
    enum { N = 50 };
    struct sl_backend *form;
    for (size_t f = 0; f <= N_FORMS; f++) {
        form = f < N_FORMS ? open_form(&exact_forms[f]) : open_ref();
        if (!form)
            continue;
        float x[3 * N], max[3], log_sum[3];
        uint32_t argmax[3];
        for (int i = 0; i < 3 * N; i++)
            x[i] = -1.0f;
        x[17] = x[33] = 4.0f; /* a tie */
        x[N + 20] = NAN;
        x[N + 21] = 9.0f;
        x[3 * N - 1] = 200.0f; /* all other weights vanish */
        form->ops->logit_stats(form, x, 3, N, max, argmax, log_sum);
        assert_true(max[0] == 4.0f && argmax[0] == 17);
        assert_true(isnan(max[1]));
        assert_true(max[2] == 200.0f && argmax[2] == N - 1 && log_sum[2] == 0.0f);
        form->ops->close(form);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_ops_agree),
        cmocka_unit_test(rope_agrees),
        cmocka_unit_test(embed_reads_the_files_rows),
        cmocka_unit_test(stats_name_the_lowest_index_and_tell_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
