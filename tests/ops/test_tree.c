/* Promised: the partial sums of ranks that own runs of slices, added by tree_sum, have the bits of
 * `linear` over the whole weight: for every format, cut, instruction set, with bias and y or
 * without. Ranks pack columns of the file's rows. */
#include "ops.h"

struct shape {
    uint32_t n, k, unit, n_tok, n_ranks;
};

static const struct shape shapes[] = {
    {17, 576, 64, 5, 2},   {40, 576, 64, 1, 3}, {33, 1536, 32, 9, 4}, {8, 352, 32, 4, 3},
    {100, 352, 32, 1, 11}, {7, 1536, 96, 3, 8}, {24, 64, 32, 2, 2},   {50, 160, 32, 17, 1},
};
static const enum sl_dtype types[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};

struct problem {
    enum sl_dtype type;
    const struct shape *s;
    struct sl_slices slices;
    uint8_t *raw;
    float *x, *bias;
};

static struct problem make_problem(enum sl_dtype type, const struct shape *s, uint32_t seed)
{
    size_t n = (size_t)s->n * s->k;
    struct problem p = {.type = type, .s = s, .slices = sl_slices_cut(s->k, s->unit)};
    float *w = random_floats(n, 0.1f, seed);
    p.raw = malloc(sl_dtype_bytes(type, n));
    sl_quantize_row(type, w, p.raw, n);
    p.x = random_floats((size_t)s->n_tok * (s->k + 3), 2.0f, seed + 1);
    p.bias = random_floats(s->n, 1.0f, seed + 2);
    free(w);
    return p;
}

static void free_problem(struct problem *p)
{
    free(p->raw);
    free(p->x);
    free(p->bias);
}

static void must_pack(struct sl_backend *b, const struct sl_weight_src *src,
                      const struct sl_slices *slices, struct sl_weight *w)
{
    struct sl_err err = {0};
    if (b->ops->weight_pack(b, src, 1, slices, w, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(w->bytes, b->ops->weight_bytes(b, src, 1));
}

static void run_whole(struct sl_backend *b, const struct problem *p, bool bias, bool add, float *y)
{
    struct sl_weight_src src = {p->type, p->s->n, p->s->k, p->raw, 0};
    struct sl_weight w;
    must_pack(b, &src, &p->slices, &w);
    b->ops->linear(b, &w, p->x, p->s->k + 3, p->s->n_tok, bias ? p->bias : NULL, add, y,
                   p->s->n + 1);
    b->ops->weight_free(b, &w);
}

static void run_ranks(struct sl_backend *b, const struct problem *p, bool bias, bool add, float *y)
{
    const struct shape *s = p->s;
    uint32_t first[SL_SLICES_MAX + 1] = {0};
    struct sl_tree tree;
    struct sl_tree_node nodes[SL_SLICES_MAX];
    for (uint32_t r = 0; r <= s->n_ranks; r++)
        first[r] = p->slices.n * r / s->n_ranks;
    sl_tree_plan(first, s->n_ranks, &tree);
    float *parts = malloc((size_t)tree.n_parts * s->n_tok * s->n * sizeof *parts), *at = parts;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        uint32_t n = first[r + 1] - first[r], k0 = p->slices.border[first[r]];
        struct sl_slices own = sl_slices_part(&p->slices, first[r], n);
        struct sl_weight_src src = {p->type, s->n, own.border[n],
                                    p->raw + sl_dtype_bytes(p->type, k0),
                                    sl_dtype_bytes(p->type, s->k)};
        struct sl_weight w;
        must_pack(b, &src, &own, &w);
        b->ops->linear_partial(b, &w, p->x + k0, s->k + 3, s->n_tok, at);
        b->ops->weight_free(b, &w);
        at += (size_t)sl_tree_cut(first[r], n, p->slices.n, nodes) * s->n_tok * s->n;
    }
    b->ops->tree_sum(b, &tree, parts, s->n_tok, s->n, bias ? p->bias : NULL, add, y, s->n + 1);
    free(parts);
}

/* y starts as 0.25 everywhere, so that accumulation and untouched columns show. */
static float *fresh(const struct shape *s)
{
    size_t n = (size_t)s->n_tok * (s->n + 1);
    float *y = malloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++)
        y[i] = 0.25f;
    return y;
}

static void ranks_have_the_bits_of_the_whole(void **state)
{
    (void)state;
    struct sl_backend *scalar = open_scalar();
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        for (size_t i = 0; form && i < sizeof shapes / sizeof *shapes; i++) {
            for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
                struct problem p = make_problem(types[t], &shapes[i], (uint32_t)i + 1);
                bool bias = (i + t) % 2 == 0, add = (i + t) % 3 == 0;
                float *a = fresh(p.s), *b = fresh(p.s);
                run_whole(has_own_bits(&exact_forms[f], types[t]) ? form : scalar, &p, bias, add,
                          a);
                run_ranks(form, &p, bias, add, b);
                if (memcmp(a, b, (size_t)p.s->n_tok * (p.s->n + 1) * sizeof *a) != 0)
                    fail_msg("%s, %s, shape %zu", sl_isa_name(exact_forms[f].isa),
                             sl_dtype_row(types[t])->text, i);
                free(a);
                free(b);
                free_problem(&p);
            }
        }
        if (form)
            form->ops->close(form);
    }
    scalar->ops->close(scalar);
}

static void the_reference_agrees(void **state)
{
    (void)state;
    struct sl_backend *ref = open_ref();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            struct problem p = make_problem(types[t], &shapes[i], (uint32_t)i + 1);
            float *a = fresh(p.s), *b = fresh(p.s);
            run_whole(ref, &p, true, true, a);
            run_ranks(ref, &p, true, true, b);
            assert_true(worst_relative(a, b, (size_t)p.s->n_tok * (p.s->n + 1)) < 1e-6);
            free(a);
            free(b);
            free_problem(&p);
        }
    }
    ref->ops->close(ref);
}

/* Query heads that share a KV head with another rank's, or have several of their own: the same bits
 * as among all heads. */
static void heads_attend_alone_as_among_all(void **state)
{
    (void)state;
    enum { HEADS = 9, KV = 3, DIM = 48, POS = 300, WIDTH = HEADS * DIM, KV_WIDTH = KV * DIM };
    static const struct {
        uint32_t head, n_heads, kv_first, n_kv;
    } cuts[] = {{0, 9, 0, 3}, {0, 3, 0, 1}, {3, 1, 1, 1}, {4, 2, 1, 1}, {3, 6, 1, 2}, {8, 1, 2, 1}};
    uint32_t pos[POS], pages[POS / 16 + 1];
    const uint32_t q_start[2] = {0, POS}, page_start[2] = {0, POS / 16 + 1};
    for (uint32_t i = 0; i < POS; i++)
        pos[i] = i;
    for (uint32_t i = 0; i < POS / 16 + 1; i++)
        pages[i] = POS / 16 - i;
    struct sl_batch batch = {.n_seq = 1,
                             .n_tok = POS,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = pages};
    struct sl_kv_config cfg = {1, KV, DIM, 16, POS / 16 + 1, SL_F16};
    float *q = random_floats(POS * WIDTH, 3.0f, 3), *k = random_floats(POS * KV_WIDTH, 2.0f, 4);
    float *v = random_floats(POS * KV_WIDTH, 1.0f, 5);
    float *want = malloc(POS * WIDTH * sizeof *want), *got = malloc(POS * WIDTH * sizeof *got);
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *b = open_form(&exact_forms[f]);
        struct sl_kv kv;
        struct sl_err err;
        if (!b)
            continue;
        assert_int_equal(b->ops->kv_open(b, &cfg, &kv, &err), SL_OK);
        b->ops->kv_write(b, &kv, 0, &batch, k, v, KV_WIDTH);
        for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
            size_t at = (size_t)cuts[c].head * DIM, n = (size_t)cuts[c].n_heads * DIM;
            struct sl_attn a = {
                cuts[c].n_heads, cuts[c].kv_first, cuts[c].n_kv, WIDTH, WIDTH, 0.2f};
            b->ops->attention(b, &kv, 0, &batch, &a, q + at, (c == 0 ? want : got) + at);
            for (uint32_t t = 0; t < POS && c > 0; t++)
                assert_same_bits(got + t * WIDTH + at, want + t * WIDTH + at, n);
        }
        b->ops->kv_close(b, &kv);
        b->ops->close(b);
    }
    free(q);
    free(k);
    free(v);
    free(want);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_have_the_bits_of_the_whole),
        cmocka_unit_test(the_reference_agrees),
        cmocka_unit_test(heads_attend_alone_as_among_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
