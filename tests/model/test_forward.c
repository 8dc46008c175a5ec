/* Promised: on small random models the forward pass agrees with the formulas in double (naive.h),
 * for every element type, with and without biases, separate head, rope scaling; its bits do not
 * depend on instruction set, threads, chunks or the sequences beside; a row with NaN spoils no
 * other; what cannot be computed is refused before anything is written. */
#include "naive.h"
#include "tiny_file.h"

#include <sluice/base/time.h>

#include <inttypes.h>

#define N_TOK 40u

static void draw_tokens(uint32_t *tokens, uint32_t n, uint64_t seed)
{
    struct sl_rng rng = {.seed = seed};
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = sl_rng_below(&rng, tiny_model_n_vocab());
}

/* Root mean square of the difference over that of the logits. */
static double distance(const float *got, const double *want, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(diff / norm);
}

static const struct rig_config usual = {.isa = SL_ISA_AUTO,
                                        .n_threads = 2,
                                        .max_batch = 64,
                                        .max_pos = 512,
                                        .max_rows = 64,
                                        .kv_dtype = SL_F32};

static void check_formula(const struct tiny_model *m, bool ref, double tolerance, const char *what)
{
    struct opened o;
    struct rig r;
    uint32_t tokens[N_TOK];
    struct rig_config c = usual;
    c.ref = ref;
    open_tiny(&o, m);
    rig_open(&r, o.g, &c);
    draw_tokens(tokens, N_TOK, m->seed);
    float *got = calloc((size_t)N_TOK * r.n_vocab, sizeof *got);
    assert_non_null(got);
    rig_run(&r, tokens, N_TOK, 16, 0, got);
    double *want = naive_run(o.g, sl_model_config(r.m), tokens, N_TOK);
    double d = distance(got, want, (size_t)N_TOK * r.n_vocab);
    print_message("%s: %s differs by %.2e\n", what, r.b->ops->name, d);
    if (!(d <= tolerance))
        fail_msg("%s: %s differs by %g, more than %g", what, r.b->ops->name, d, tolerance);
    free(got);
    free(want);
    rig_close(&r);
    close_tiny(&o);
}

static void agrees_with_the_formulas(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        enum sl_dtype dtype;
        uint32_t head_dim, n_kv_heads;
        bool tied, bias, factors;
        float linear;
        double tolerance; /* of the cpu: int8 activations beside quantised weights */
    } table[] = {
        {"f32", SL_F32, 0, 2, false, false, false, 0, 1e-5},
        {"f32, one kv head", SL_F32, 0, 1, false, false, false, 0, 1e-5},
        {"f32, a kv head each", SL_F32, 0, 4, false, false, false, 0, 1e-5},
        {"f32, biases", SL_F32, 0, 2, false, true, false, 0, 1e-5},
        {"f32, tied, factors", SL_F32, 0, 2, true, false, true, 0, 1e-5},
        {"f32, linear, heads of 32", SL_F32, 32, 2, false, false, false, 8.0f, 1e-5},
        {"f16", SL_F16, 0, 2, false, true, false, 0, 1e-5},
        {"bf16", SL_BF16, 0, 2, false, true, false, 0, 1e-5},
        {"q8_0", SL_Q8_0, 0, 2, false, true, false, 0, 2e-2},
        {"q4_0", SL_Q4_0, 0, 2, false, false, true, 0, 2e-2},
        {"q4_1", SL_Q4_1, 32, 2, false, false, false, 0, 2e-2},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct tiny_model m = tiny_model_default();
        m.seed = 100 + i;
        m.dtype = table[i].dtype;
        m.head_dim = table[i].head_dim;
        m.n_kv_heads = table[i].n_kv_heads;
        m.tied = table[i].tied;
        m.bias = table[i].bias;
        m.rope_factors = table[i].factors;
        m.rope_linear = table[i].linear;
        check_formula(&m, true, 1e-5, table[i].what);
        check_formula(&m, false, table[i].tolerance, table[i].what);
    }
}

/* --- the same bits --- */

static void the_same_bits(void **state)
{
    (void)state;
    static const enum sl_dtype dtypes[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};
    static const enum sl_dtype kv_dtypes[] = {SL_F32, SL_F16, SL_BF16, SL_I8};
    static const uint32_t chunks[] = {64, 1, 7, 33};
    enum { n_tok = 300 }; /* over a border of attention segments */
    uint32_t tokens[n_tok];
    draw_tokens(tokens, n_tok, 5);
    for (size_t d = 0; d < 6; d++) {
        struct tiny_model m = tiny_model_default();
        m.dtype = dtypes[d];
        m.bias = true;
        struct opened o;
        open_tiny(&o, &m);
        size_t n = (size_t)n_tok * tiny_model_n_vocab();
        float *first = calloc(n, sizeof *first), *other = calloc(n, sizeof *other);
        assert_true(first && other);
        bool have = false;
        for (int isa = SL_ISA_SCALAR; isa <= SL_ISA_AVX512; isa++)
            for (size_t c = 0; c < 4; c++) {
                if (!sl_cpu_has_isa((enum sl_isa)isa))
                    continue;
                struct rig_config config = usual;
                config.isa = (enum sl_isa)isa;
                config.n_threads = 1 + (uint32_t)(c & 1);
                config.kv_dtype = kv_dtypes[d % 4];
                struct rig r;
                rig_open(&r, o.g, &config);
                rig_run(&r, tokens, n_tok, chunks[c], 0, have ? other : first);
                if (have && memcmp(first, other, n * sizeof *first) != 0)
                    fail_msg("%s: %s, %u threads, chunks of %u: other bits",
                             sl_dtype_row(m.dtype)->text, sl_isa_name(config.isa), config.n_threads,
                             chunks[c]);
                have = true;
                rig_close(&r);
            }
        free(first);
        free(other);
        close_tiny(&o);
    }
}

/* Any rows in any order, and steps that want none. */
static void logits_of_chosen_rows(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct opened o;
    struct rig r;
    uint32_t tokens[8], pos[8], rows[4] = {6, 1, 6, 3}, q_start[2] = {0, 8};
    uint32_t page_start[2] = {0, 1};
    struct sl_err err = {0};
    open_tiny(&o, &m);
    rig_open(&r, o.g, &usual);
    size_t v = r.n_vocab;
    float *all = calloc(9 * v, sizeof *all), *some = calloc(4 * v, sizeof *some);
    assert_true(all && some);
    draw_tokens(tokens, 8, 11);
    rig_run(&r, tokens, 8, 8, 0, all);
    for (uint32_t i = 0; i < 8; i++)
        pos[i] = i;
    struct sl_batch b = {.n_seq = 1,
                         .n_tok = 8,
                         .q_start = q_start,
                         .pos = pos,
                         .page_start = page_start,
                         .pages = r.pages};
    rig_must(rig_forward(&r, &b, tokens, rows, 4, some, &err), &err);
    for (size_t i = 0; i < 4; i++)
        assert_memory_equal(some + i * v, all + rows[i] * v, v * sizeof *some);
    rig_close(&r);
    rig_open(&r, o.g, &usual);
    b.pages = r.pages;
    b.n_tok = q_start[1] = 7; /* fills the cache only; the step after it reads it */
    rig_must(rig_forward(&r, &b, tokens, NULL, 0, NULL, &err), &err);
    rig_chunk(&r, tokens, 7, 1, 7, some);
    assert_memory_equal(some, all + 7 * v, v * sizeof *some);
    free(all);
    free(some);
    rig_close(&r);
    close_tiny(&o);
}

/* --- ragged batches --- */

/* Three sequences side by side: [from, from + n) of each, on pages of their own. */
struct ragged {
    const uint32_t *tokens[3];
    uint32_t from[3], n[3];
};

static void run_ragged(struct rig *r, const struct ragged *x, float *logits)
{
    uint32_t q_start[4] = {0}, page_start[4] = {0}, pages[64], pos[64], tokens[64], rows[64];
    uint32_t n = 0, n_pages = 0;
    for (uint32_t s = 0; s < 3; s++) {
        for (uint32_t i = 0; i < x->n[s]; i++, n++) {
            pos[n] = x->from[s] + i;
            tokens[n] = x->tokens[s][x->from[s] + i];
            rows[n] = n;
        }
        for (uint32_t p = 0; p < (x->from[s] + x->n[s] + RIG_PAGE - 1) / RIG_PAGE; p++)
            pages[n_pages++] = p * 3 + s;
        q_start[s + 1] = n;
        page_start[s + 1] = n_pages;
    }
    struct sl_batch b = {.n_seq = 3,
                         .n_tok = n,
                         .q_start = q_start,
                         .pos = pos,
                         .page_start = page_start,
                         .pages = pages};
    struct sl_err err = {0};
    rig_must(rig_forward(r, &b, tokens, rows, n, logits, &err), &err);
}

static void neighbours_do_not_matter(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct opened o;
    struct rig r;
    uint32_t tokens[3][N_TOK];
    open_tiny(&o, &m);
    rig_open(&r, o.g, &usual);
    size_t v = r.n_vocab;
    float *alone = calloc(3 * N_TOK * v, sizeof *alone), *ragged = calloc(64 * v, sizeof *ragged);
    assert_true(alone && ragged);
    for (uint32_t s = 0; s < 3; s++) {
        draw_tokens(tokens[s], N_TOK, 70 + s);
        rig_run(&r, tokens[s], N_TOK, 64, 0, alone + s * N_TOK * v);
    }
    struct ragged steps[] = {
        {{tokens[0], tokens[1], tokens[2]}, {0, 0, 0}, {5, 30, 1}},
        {{tokens[0], tokens[1], tokens[2]}, {5, 30, 1}, {1, 1, 33}},
        {{tokens[0], tokens[1], tokens[2]}, {6, 31, 34}, {34, 9, 6}},
    };
    for (size_t i = 0; i < 3; i++) {
        run_ragged(&r, &steps[i], ragged);
        size_t row = 0;
        for (uint32_t s = 0; s < 3; s++)
            for (uint32_t k = 0; k < steps[i].n[s]; k++, row++)
                if (memcmp(ragged + row * v, alone + (s * N_TOK + steps[i].from[s] + k) * v,
                           v * sizeof *ragged) != 0)
                    fail_msg("step %zu, sequence %u, row %u: other bits", i, s, k);
    }
    free(alone);
    free(ragged);
    rig_close(&r);
    close_tiny(&o);
}

/* Token 7 gets an embedding of NaN, token 9 one of infinities. */
static void spoil(struct opened *o)
{
    const struct sl_gguf_tensor *t = sl_gguf_tensor(o->g, "token_embd.weight");
    float *rows = (float *)(uintptr_t)t->data;
    for (uint64_t i = 0; i < t->dims[0]; i++) {
        rows[7 * t->dims[0] + i] = NAN;
        rows[9 * t->dims[0] + i] = INFINITY;
    }
}

static void a_spoilt_row_stays_alone(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    m.dtype = SL_F32;
    struct opened o;
    struct rig r;
    open_tiny(&o, &m);
    spoil(&o);
    rig_open(&r, o.g, &usual);
    uint32_t good[4] = {1, 2, 3, 4}, nan_tokens[4] = {1, 7, 3, 4}, inf_tokens[4] = {1, 2, 9, 4};
    size_t v = r.n_vocab;
    float *alone = calloc(4 * v, sizeof *alone), *all = calloc(12 * v, sizeof *all);
    assert_true(alone && all);
    rig_run(&r, good, 4, 4, 0, alone);
    struct ragged x = {{nan_tokens, good, inf_tokens}, {0, 0, 0}, {4, 4, 4}};
    run_ragged(&r, &x, all);
    assert_memory_equal(all + 4 * v, alone, 4 * v * sizeof *alone);
    for (size_t row = 0; row < 12; row++) {
        float max, log_sum;
        uint32_t best;
        r.b->ops->logit_stats(r.b, all + row * v, 1, r.n_vocab, &max, &best, &log_sum);
        bool spoilt = (row >= 1 && row < 4) || row >= 10; /* what follows attends to it */
        if ((max != max) != spoilt)
            fail_msg("row %zu: maximum %g", row, (double)max);
    }
    free(alone);
    free(all);
    rig_close(&r);
    close_tiny(&o);
}

static void refuses_what_was_not_planned(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct opened o;
    struct rig r;
    struct rig_config c = usual;
    c.max_batch = 4;
    c.max_rows = 2;
    c.max_pos = 64;
    open_tiny(&o, &m);
    rig_open(&r, o.g, &c);
    uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8}, pos[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint32_t rows[8] = {0, 1, 2, 3, 4, 5, 6, 7}, pages[2] = {0, 1};
    uint32_t q_start[2] = {0, 2}, page_start[2] = {0, 2};
    float *logits = calloc(8u * r.n_vocab, sizeof *logits);
    assert_non_null(logits);
    struct sl_batch b = {.n_seq = 1,
                         .n_tok = 2,
                         .q_start = q_start,
                         .pos = pos,
                         .page_start = page_start,
                         .pages = pages};
    struct sl_err err = {0};
    tokens[1] = r.n_vocab;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 2, logits, &err), SL_INVALID);
    assert_non_null(strstr(err.msg, "token 291, the vocabulary has 291"));
    tokens[1] = 2;
    pos[1] = 64;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 2, logits, &err), SL_INVALID);
    assert_non_null(strstr(err.msg, "position 64, planned for 64"));
    pos[1] = 1;
    rows[1] = 2;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 2, logits, &err), SL_FAILED);
    rows[1] = 1;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 3, logits, &err), SL_FAILED);
    q_start[1] = b.n_tok = 5;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 1, logits, &err), SL_FAILED);
    for (size_t i = 0; i < 8u * r.n_vocab; i++)
        assert_true(logits[i] == 0.0f);
    q_start[1] = b.n_tok = 0;
    assert_int_equal(rig_forward(&r, &b, tokens, rows, 0, logits, &err), SL_OK);
    free(logits);
    rig_close(&r);
    close_tiny(&o);
}

/* --- opening and converting --- */

struct progress {
    uint64_t last, total;
    uint32_t n;
};

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct progress *p = ctx;
    assert_true(done > p->last && done <= total);
    assert_true(p->n == 0 || total == p->total);
    *p = (struct progress){done, total, p->n + 1};
}

static void opening_reports_progress_and_class(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct opened o;
    open_tiny(&o, &m);
    struct sl_backend *b = NULL;
    struct sl_model *model = NULL;
    struct sl_err err = {0};
    struct sl_cpu_config cpu = {.isa = SL_ISA_AUTO, .n_threads = 2};
    struct progress p = {0};
    rig_must(sl_cpu_open(&cpu, &b, &err), &err);
    struct sl_model_options how = {.max_batch_tokens = 8,
                                   .max_positions = 64,
                                   .max_logit_rows = 8,
                                   .progress = on_progress,
                                   .ctx = &p};
    rig_must(sl_model_open(o.g, b, &how, &model, &err), &err);
    assert_true(p.n > 2 && p.last == p.total && p.total > 0);
    struct sl_model_class c = sl_model_class(model);
    assert_int_equal(c.n_attn_slices, 2); /* heads of 16 in blocks of 32 */
    assert_int_equal(c.n_ffn_slices, 4);
    assert_int_equal(c.attn_segment, 256);
    assert_int_equal(c.numerics_revision, SL_NUMERICS_REVISION);
    assert_true(sl_model_weight_bytes(model) > p.total / 2);
    assert_true(sl_model_scratch_bytes(model) > 0);
    sl_model_close(model);
    b->ops->close(b);
    close_tiny(&o);
}

/* The distance of a file's model from the formulas. */
static double file_distance(const struct sl_gguf *g)
{
    struct rig r;
    uint32_t tokens[N_TOK];
    draw_tokens(tokens, N_TOK, 8);
    rig_open(&r, g, &usual);
    float *got = calloc((size_t)N_TOK * r.n_vocab, sizeof *got);
    assert_non_null(got);
    rig_run(&r, tokens, N_TOK, 64, 0, got);
    double *want = naive_run(g, sl_model_config(r.m), tokens, N_TOK);
    double d = distance(got, want, (size_t)N_TOK * r.n_vocab);
    free(got);
    free(want);
    rig_close(&r);
    return d;
}

/* V of another type than Q and K: three weights write side by side, each with its bias. */
static void mixed_types_lie_side_by_side(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    m.dtype = SL_F32;
    m.bias = true;
    struct opened o;
    open_tiny(&o, &m);
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    uint16_t half[2][2 * 16 * 64];
    uint32_t n_half = 0;
    for (size_t i = 0; i < sl_gguf_n_keys(o.g); i++)
        sl_gguf_put_key(w, sl_gguf_key_at(o.g, i));
    for (size_t i = 0; i < sl_gguf_n_tensors(o.g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(o.g, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        if (strstr(name, "attn_v.weight")) {
            assert_true(n_half < 2 && t->n_elems * 2 == sizeof half[0]);
            sl_quantize_row(SL_F16, t->data, half[n_half], (size_t)t->n_elems);
            sl_gguf_put_tensor(w, name, sl_model_ggml_type(SL_F16), t->n_dims, t->dims,
                               half[n_half++], t->n_elems * 2);
        } else {
            sl_gguf_put_tensor(w, name, t->ggml_type, t->n_dims, t->dims, t->data, t->n_bytes);
        }
    }
    struct sl_buf mixed = {0};
    struct sl_err err = {0};
    struct sl_gguf *g = NULL;
    rig_must(sl_gguf_writer_finish_buf(w, &mixed, &err), &err);
    rig_must(sl_gguf_parse(mixed.data, mixed.len, false, &g, &err), &err);
    assert_int_equal(n_half, 2);
    assert_true(file_distance(g) < 1e-5);
    sl_gguf_close(g);
    sl_buf_free(&mixed);
    close_tiny(&o);
}

static void a_converted_file_still_computes(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    m.dtype = SL_F32;
    struct opened o;
    open_tiny(&o, &m);
    char path[64];
    struct sl_err err = {0};
    snprintf(path, sizeof path, "/tmp/sluice-forward-%016" PRIx64, sl_entropy_u64());
    /* The head stays float32 and the other matrices become q8_0. */
    rig_must(sl_model_requantize(o.g, path, SL_Q8_0, SL_F32, NULL, NULL, &err), &err);
    close_tiny(&o);
    struct sl_gguf *g = NULL;
    rig_must(sl_gguf_open(path, &g, &err), &err);
    assert_string_equal(sl_gguf_tensor(g, "output.weight")->type_name, "F32");
    assert_string_equal(sl_gguf_tensor(g, "blk.0.attn_q.weight")->type_name, "Q8_0");
    assert_string_equal(sl_gguf_tensor(g, "blk.0.attn_norm.weight")->type_name, "F32");
    assert_non_null(sl_gguf_find(g, "tokenizer.ggml.merges"));
    assert_true(file_distance(g) < 2e-2);
    sl_gguf_close(g);
    remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_formulas),
        cmocka_unit_test(the_same_bits),
        cmocka_unit_test(logits_of_chosen_rows),
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(a_spoilt_row_stays_alone),
        cmocka_unit_test(refuses_what_was_not_planned),
        cmocka_unit_test(opening_reports_progress_and_class),
        cmocka_unit_test(mixed_types_lie_side_by_side),
        cmocka_unit_test(a_converted_file_still_computes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
