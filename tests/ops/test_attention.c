/* Promised: attention agrees with the reference, and a query's bits are the same decoded one by
 * one, in any chunks or as a whole, for every page size, KV format, head width and group, on every
 * instruction set and thread count; what lies behind the query or was never written never counts.
 */
#include "attn_input.h"
#include "ops.h"

static uint32_t n_pages(const struct model *m, uint32_t n_pos)
{
    return (n_pos + m->page_size - 1) / m->page_size;
}

/* Page i of sequence s: scrambled, disjoint, and not starting at 0. */
static void fill_pages(uint32_t *pages, uint32_t n, uint32_t total, uint32_t salt)
{
    for (uint32_t i = 0; i < n; i++)
        pages[i] = total - 1 - (i * 2 + salt);
}

struct run {
    struct sl_backend *b;
    struct sl_kv kv;
    uint32_t layer;
};

static struct run open_run(struct sl_backend *b, const struct model *m, uint32_t n_pos, bool poison)
{
    struct run r = {.b = b, .layer = 1};
    struct sl_err err;
    struct sl_kv_config cfg = {
        2, m->n_kv_heads, m->head_dim, m->page_size, 2 * n_pages(m, n_pos) + 3, m->type};
    assert_int_equal(b->ops->kv_open(b, &cfg, &r.kv, &err), SL_OK);
    if (poison) /* all ones are NaN in every float format, also as an int8 scale */
        memset(r.kv.data, 0xff, r.kv.bytes);
    return r;
}

/* Writes and attends positions [first, end) of both sequences in one batch; b may be NULL. */
static void step(struct run *r, const struct model *m, const struct input *a, uint32_t a_first,
                 uint32_t a_end, const struct input *b, uint32_t b_first, uint32_t b_end,
                 float *out_a, float *out_b)
{
    uint32_t na = a_end - a_first, nb = b ? b_end - b_first : 0, stride = a->stride;
    uint32_t pa = n_pages(m, a_end), pb = b ? n_pages(m, b_end) : 0, total = r->kv.cfg.n_pages;
    size_t width = (size_t)m->n_heads * m->head_dim, row = stride;
    uint32_t *pages = malloc((pa + pb) * sizeof *pages), *pos = malloc((na + nb) * sizeof *pos);
    float *x = malloc((size_t)3 * (na + nb) * row * sizeof *x), *q = x;
    float *k = q + (na + nb) * row, *v = k + (na + nb) * row;
    float *out = malloc((na + nb) * width * sizeof *out);
    fill_pages(pages, pa, total, 0);
    if (b)
        fill_pages(pages + pa, pb, total, 1);
    for (uint32_t i = 0; i < na + nb; i++) {
        const struct input *in = i < na ? a : b;
        pos[i] = i < na ? a_first + i : b_first + i - na;
        memcpy(q + i * row, in->q + pos[i] * row, row * sizeof *x);
        memcpy(k + i * row, in->k + pos[i] * row, row * sizeof *x);
        memcpy(v + i * row, in->v + pos[i] * row, row * sizeof *x);
    }
    const uint32_t q_start[3] = {0, na, na + nb}, page_start[3] = {0, pa, pa + pb};
    struct sl_batch batch = {.n_seq = b ? 2 : 1,
                             .n_tok = na + nb,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = pages};
    r->b->ops->kv_write(r->b, &r->kv, r->layer, &batch, k, v, stride);
    struct sl_attn how = {m->n_heads, 0, r->kv.cfg.n_kv_heads, stride, (uint32_t)width, 0.125f};
    r->b->ops->attention(r->b, &r->kv, r->layer, &batch, &how, q, out);
    memcpy(out_a, out, na * width * sizeof *out);
    if (b)
        memcpy(out_b, out + na * width, nb * width * sizeof *out);
    free(pages);
    free(pos);
    free(x);
    free(out);
}

/* All positions of one sequence in chunks of the given size. */
static float *attend(struct sl_backend *b, const struct model *m, const struct input *in,
                     uint32_t chunk, bool poison)
{
    size_t width = (size_t)m->n_heads * m->head_dim;
    float *out = malloc(in->n_pos * width * sizeof *out);
    struct run r = open_run(b, m, in->n_pos, poison);
    for (uint32_t i = 0; i < in->n_pos; i += chunk) {
        uint32_t end = i + chunk < in->n_pos ? i + chunk : in->n_pos;
        step(&r, m, in, i, end, NULL, 0, 0, out + i * width, NULL);
    }
    b->ops->kv_close(b, &r.kv);
    return out;
}

static const struct model models[] = {
    {9, 3, 64, 16, SL_F16},  {4, 4, 32, 32, SL_F32}, {8, 2, 128, 64, SL_BF16}, {6, 1, 80, 8, SL_I8},
    {2, 1, 40, 256, SL_F16}, {3, 3, 96, 128, SL_I8}, {52, 1, 32, 16, SL_F32},
};
#define N_MODELS (sizeof models / sizeof *models)

static void scalar_agrees_with_the_reference(void **state)
{
    (void)state;
    struct sl_backend *ref = open_ref(), *scalar = open_scalar();
    for (size_t i = 0; i < N_MODELS; i++) {
        uint32_t n_pos = i == 0 ? 270 : 70;
        struct input in = make_input(&models[i], n_pos, (uint32_t)i);
        float *a = attend(ref, &models[i], &in, n_pos, false);
        float *b = attend(scalar, &models[i], &in, n_pos, false);
        size_t n = (size_t)n_pos * models[i].n_heads * models[i].head_dim;
        double worst = worst_relative(a, b, n);
        if (worst > 3e-6)
            fail_msg("model %zu: off by %g", i, worst);
        free(a);
        free(b);
        free_input(&in);
    }
    ref->ops->close(ref);
    scalar->ops->close(scalar);
}

static void every_form_and_chunking_gives_the_same_bits(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1, 7, 48, 256, 1000};
    struct sl_backend *scalar = open_scalar();
    for (size_t i = 0; i < N_MODELS; i++) {
        uint32_t n_pos = i == 0 ? 530 : 270;
        struct input in = make_input(&models[i], n_pos, (uint32_t)i);
        size_t n = (size_t)n_pos * models[i].n_heads * models[i].head_dim;
        float *want = attend(scalar, &models[i], &in, n_pos, false);
        for (size_t f = 0; f < N_FORMS; f++) {
            struct sl_backend *form = open_form(&exact_forms[f]);
            if (!form)
                continue;
            for (size_t c = f; c < f + 2; c++) {
                /* Poisoned pages: only what was written may be read. */
                float *got = attend(form, &models[i], &in, chunks[c % 5], true);
                if (memcmp(want, got, n * sizeof *want) != 0)
                    fail_msg("model %zu, %s, %u threads, chunks of %u", i, sl_isa_name(form->isa),
                             form->n_threads, chunks[c % 5]);
                free(got);
            }
            form->ops->close(form);
        }
        free(want);
        free_input(&in);
    }
    scalar->ops->close(scalar);
}

/* The page size is storage only: the same bits for every one of them. */
static void page_size_does_not_show(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 8, 16, 32, 64, 128, 256};
    struct sl_backend *b = open_scalar();
    struct model m = {3, 1, 32, 16, SL_F16};
    struct input in = make_input(&m, 300, 3);
    float *want = attend(b, &m, &in, 300, false);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        m.page_size = sizes[i];
        float *got = attend(b, &m, &in, 64, true);
        assert_same_bits(want, got, (size_t)300 * 3 * 32);
        free(got);
    }
    free(want);
    free_input(&in);
    b->ops->close(b);
}

static void a_neighbour_in_the_batch_does_not_show(void **state)
{
    (void)state;
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        if (!form)
            continue;
        const struct model *m = &models[0];
        size_t width = (size_t)m->n_heads * m->head_dim;
        struct input a = make_input(m, 300, 1), b = make_input(m, 290, 5);
        float *want_a = attend(form, m, &a, 300, false), *want_b = attend(form, m, &b, 290, false);
        float *out_a = malloc(300 * width * sizeof *out_a);
        float *out_b = malloc(290 * width * sizeof *out_b);
        struct run r = open_run(form, m, 300, true);
        /* b's prompt beside a's, then one token of a beside a long chunk of b. */
        step(&r, m, &a, 0, 299, &b, 0, 10, out_a, out_b);
        step(&r, m, &a, 299, 300, &b, 10, 290, out_a + 299 * width, out_b + 10 * width);
        assert_same_bits(want_a, out_a, 300 * width);
        assert_same_bits(want_b, out_b, 290 * width);
        form->ops->kv_close(form, &r.kv);
        free(want_a);
        free(want_b);
        free(out_a);
        free(out_b);
        free_input(&a);
        free_input(&b);
        form->ops->close(form);
    }
}

/* A later position with NaN in K and V must not reach an earlier query, however they are chunked.
 */
static void the_future_does_not_leak_back(void **state)
{
    (void)state;
    for (size_t f = 0; f < N_FORMS; f++) {
        struct sl_backend *form = open_form(&exact_forms[f]);
        if (!form)
            continue;
        for (size_t i = 0; i < 4; i++) {
            const struct model *m = &models[i];
            size_t width = (size_t)m->n_heads * m->head_dim;
            struct input in = make_input(m, 40, 1);
            float *want = attend(form, m, &in, 40, false);
            for (uint32_t j = 0; j < m->n_kv_heads * m->head_dim; j++) {
                in.k[(size_t)25 * in.stride + j] = NAN;
                in.v[(size_t)25 * in.stride + j] = NAN;
            }
            float *got = attend(form, m, &in, 40, false);
            assert_same_bits(want, got, 25 * width);
            for (size_t j = 25 * width; j < 40 * width; j++)
                assert_true(isnan(got[j]));
            free(want);
            free(got);
            free_input(&in);
        }
        form->ops->close(form);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalar_agrees_with_the_reference),
        cmocka_unit_test(every_form_and_chunking_gives_the_same_bits),
        cmocka_unit_test(page_size_does_not_show),
        cmocka_unit_test(a_neighbour_in_the_batch_does_not_show),
        cmocka_unit_test(the_future_does_not_leak_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
