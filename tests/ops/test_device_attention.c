/* Promised: the device's paged attention and its writing of pages give the scalar backend's bits,
 * for every KV format, head width, group and page size, decoded one by one, in chunks or as a
 * whole, beside any neighbour and under any order of warps; what lies behind a query or was never
 * written does not count, and the launch does not depend on positions. */
#include "attn_input.h"
#include "device.h"

/* Watched, every access takes many times as long: fewer positions and seeds then. */
#ifdef DEVICE_WATCHED
enum { WATCHED = 1, SEEDS = 2 };
#else
enum { WATCHED = 0, SEEDS = 4 };
#endif

/* The last ones' rows are not whole units of 16 bytes, or too wide for tiles of query rows. */
static const struct model models[] = {
    {9, 3, 64, 16, SL_F16},  {2, 1, 32, 32, SL_F32},  {4, 1, 128, 64, SL_BF16},
    {3, 1, 80, 8, SL_I8},    {2, 1, 40, 256, SL_F16}, {3, 3, 96, 128, SL_I8},
    {20, 1, 32, 16, SL_F32}, {8, 1, 128, 16, SL_F16}, {4, 2, 256, 16, SL_BF16},
    {2, 1, 256, 32, SL_F32}, {4, 1, 64, 16, SL_I8},   {2, 1, 512, 16, SL_F16},
    {3, 3, 6, 1, SL_I8},     {2, 1, 18, 4, SL_F16},   {4, 2, 7, 2, SL_BF16},
    {2, 1, 30, 8, SL_F32},   {2, 1, 33, 1, SL_I8},    {2, 1, 528, 16, SL_F16},
    {2, 2, 1024, 4, SL_F32},
};
#define N_MODELS (sizeof models / sizeof *models)

/* A cache of two layers whose second one is used; `scalar` only lends its allocator. */
struct cache {
    struct sl_backend *scalar;
    struct sl_kv kv;
    bool on_device;
};

static struct cache open_cache(struct sl_backend *scalar, const struct model *m, uint32_t n_pages,
                               bool on_device)
{
    struct cache c = {.scalar = scalar, .on_device = on_device};
    struct sl_kv_config cfg = {2, m->n_kv_heads, m->head_dim, m->page_size, n_pages, m->type};
    struct sl_err err;
    assert_int_equal(scalar->ops->kv_open(scalar, &cfg, &c.kv, &err), SL_OK);
    memset(c.kv.data, 0xff, c.kv.bytes); /* NaN in every format: only what was written is read */
    return c;
}

/* Positions [first, end) of sequence `salt`, whose pages lie scrambled among the others'. */
struct part {
    const struct input *in;
    uint32_t salt, first, end;
};

enum { PARTS_MAX = 12 };

struct step {
    struct sl_batch batch;
    uint32_t q_start[PARTS_MAX + 1], page_start[PARTS_MAX + 1];
    uint32_t *pos, *pages, *seq_of, stride;
    float *q, *k, *v;
};

static uint32_t pages_of(uint32_t n_pos, uint32_t page_size)
{
    return (n_pos + page_size - 1) / page_size;
}

static struct step make_step(const struct cache *c, const struct part *parts, uint32_t n)
{
    struct step s = {.stride = parts[0].in->stride};
    uint32_t n_tok = 0, n_pages = 0, total = c->kv.cfg.n_pages, page_size = c->kv.cfg.page_size;
    size_t row = s.stride * sizeof(float);
    for (uint32_t i = 0; i < n; i++) {
        s.q_start[i] = n_tok;
        s.page_start[i] = n_pages;
        n_tok += parts[i].end - parts[i].first;
        n_pages += pages_of(parts[i].end, page_size);
    }
    s.q_start[n] = n_tok;
    s.page_start[n] = n_pages;
    s.pos = malloc(n_tok * sizeof *s.pos);
    s.seq_of = malloc(n_tok * sizeof *s.seq_of);
    s.pages = malloc(n_pages * sizeof *s.pages);
    s.q = malloc(3 * n_tok * row);
    s.k = s.q + (size_t)n_tok * s.stride;
    s.v = s.k + (size_t)n_tok * s.stride;
    for (uint32_t i = 0, t = 0; i < n; i++) {
        for (uint32_t p = 0; p < s.page_start[i + 1] - s.page_start[i]; p++)
            s.pages[s.page_start[i] + p] = total - 1 - (p * PARTS_MAX + parts[i].salt);
        for (uint32_t p = parts[i].first; p < parts[i].end; p++, t++) {
            s.pos[t] = p;
            s.seq_of[t] = i;
            memcpy(s.q + (size_t)t * s.stride, parts[i].in->q + (size_t)p * s.stride, row);
            memcpy(s.k + (size_t)t * s.stride, parts[i].in->k + (size_t)p * s.stride, row);
            memcpy(s.v + (size_t)t * s.stride, parts[i].in->v + (size_t)p * s.stride, row);
            s.batch.max_pos = p > s.batch.max_pos ? p : s.batch.max_pos;
        }
        uint32_t rows = parts[i].end - parts[i].first;
        s.batch.max_rows = rows > s.batch.max_rows ? rows : s.batch.max_rows;
    }
    s.batch.n_seq = n;
    s.batch.n_tok = n_tok;
    return s;
}

static void free_step(struct step *s)
{
    free(s->pos);
    free(s->seq_of);
    free(s->pages);
    free(s->q);
}

static void run_on_device(const struct cache *c, const struct sl_batch *b, const struct sl_attn *a,
                          const struct step *s, float *out)
{
    const struct sl_kv_config *cfg = &c->kv.cfg;
    struct cuda_kv kv = {sl_kv_page_at(&c->kv, 1, 0),
                         c->kv.page_bytes,
                         cfg->n_kv_heads,
                         cfg->head_dim,
                         cfg->page_size,
                         cfg->dtype};
    struct cuda_batch batch = {b->n_seq, b->n_tok,  b->q_start, b->pos,     b->page_start,
                               b->pages, s->seq_of, b->max_pos, b->max_rows};
    struct cuda_attn how = {a->n_heads,  a->kv_first,   a->n_kv_heads,
                            a->q_stride, a->out_stride, a->scale};
    size_t bytes =
        cuda_attention_scratch(b->n_seq, b->n_tok, a->n_heads, cfg->head_dim, b->max_pos);
    void *scratch = malloc(bytes + 1);
    memset(scratch, 0xff, bytes);
    assert_launched(cuda_kv_write(NULL, &kv, &batch, s->k, s->v, s->stride));
    assert_launched(cuda_attention(NULL, &kv, &batch, &how, s->q, out, scratch));
    free(scratch);
}

/* Writes and attends the parts in one batch; out [rows, n_heads * head_dim]. */
static void attend(struct cache *c, const struct model *m, const struct part *parts, uint32_t n,
                   float *out)
{
    struct step s = make_step(c, parts, n);
    uint32_t width = m->n_heads * m->head_dim;
    struct sl_attn how = {m->n_heads, 0, m->n_kv_heads, s.stride, width, 0.125f};
    s.batch.q_start = s.q_start;
    s.batch.pos = s.pos;
    s.batch.page_start = s.page_start;
    s.batch.pages = s.pages;
    if (c->on_device) {
        run_on_device(c, &s.batch, &how, &s, out);
    } else {
        c->scalar->ops->kv_write(c->scalar, &c->kv, 1, &s.batch, s.k, s.v, s.stride);
        c->scalar->ops->attention(c->scalar, &c->kv, 1, &s.batch, &how, s.q, out);
    }
    free_step(&s);
}

/* One sequence in chunks; *c is opened here and left open. */
static float *attend_chunks(struct sl_backend *scalar, const struct model *m,
                            const struct input *in, uint32_t chunk, bool on_device, struct cache *c)
{
    size_t width = (size_t)m->n_heads * m->head_dim;
    float *out = malloc(in->n_pos * width * sizeof *out);
    *c = open_cache(scalar, m, PARTS_MAX * pages_of(in->n_pos, m->page_size) + 1, on_device);
    for (uint32_t i = 0; i < in->n_pos; i += chunk) {
        struct part p = {in, 3, i, i + chunk < in->n_pos ? i + chunk : in->n_pos};
        attend(c, m, &p, 1, out + i * width);
    }
    return out;
}

static void every_model_and_chunking_gives_scalars_bits(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {1000, 48, 9, 8, 3};
    struct sl_backend *scalar = open_scalar();
    for (size_t i = 0; i < N_MODELS; i++) {
        const struct model *m = &models[i];
        uint32_t n_pos = WATCHED ? (i == 1 ? 270 : 20) : i == 1 ? 530 : i < 4 ? 270 : 40;
        struct input in = make_input(m, n_pos, (uint32_t)i);
        size_t n = (size_t)n_pos * m->n_heads * m->head_dim;
        struct cache want_cache, got_cache;
        float *want = attend_chunks(scalar, m, &in, n_pos, false, &want_cache);
        EACH_SEED(SEEDS)
        {
            uint32_t chunk = chunks[(device_options.seed + i) % 5];
            float *got = attend_chunks(scalar, m, &in, chunk, true, &got_cache);
            if (memcmp(want_cache.kv.data, got_cache.kv.data, want_cache.kv.bytes) != 0)
                fail_msg("model %zu, chunks of %u: pages differ", i, chunk);
            if (memcmp(want, got, n * sizeof *want) != 0)
                fail_msg("model %zu, seed %llu, chunks of %u: off by %g", i,
                         (unsigned long long)device_options.seed, chunk,
                         worst_relative(want, got, n));
            free(got);
            scalar->ops->kv_close(scalar, &got_cache.kv);
        }
        free(want);
        scalar->ops->kv_close(scalar, &want_cache.kv);
        free_input(&in);
    }
    scalar->ops->close(scalar);
}

static void page_size_does_not_show(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 8, 16, 32, 64, 128, 256};
    struct sl_backend *scalar = open_scalar();
    struct model m = {3, 1, 32, 16, SL_F16};
    struct input in = make_input(&m, 300, 3);
    struct cache c;
    float *want = attend_chunks(scalar, &m, &in, 300, false, &c);
    scalar->ops->kv_close(scalar, &c.kv);
    for (size_t i = 0; i < (WATCHED ? 2 : sizeof sizes / sizeof *sizes); i++) {
        m.page_size = sizes[i];
        device_options.seed = 1 + i % SEEDS;
        float *got = attend_chunks(scalar, &m, &in, 64, true, &c);
        assert_same_bits(want, got, (size_t)300 * 3 * 32);
        free(got);
        scalar->ops->kv_close(scalar, &c.kv);
    }
    free(want);
    free_input(&in);
    scalar->ops->close(scalar);
}

/* Long prompts, drafts and single tokens in one batch: each as if it were alone. */
static void neighbours_in_the_batch_do_not_show(void **state)
{
    (void)state;
    static const uint32_t first[] = {0, 299, 0, 250, 255, 20, 290, 3},
                          end[] = {40, 300, 1, 258, 264, 42, 299, 4};
    enum { N = sizeof first / sizeof *first };
    struct sl_backend *scalar = open_scalar();
    for (size_t i = WATCHED; i < 4; i += 3) {
        const struct model *m = &models[i];
        size_t width = (size_t)m->n_heads * m->head_dim;
        struct cache c = open_cache(scalar, m, PARTS_MAX * pages_of(300, m->page_size) + 1, true);
        struct input in[N];
        struct part parts[N];
        float *want[N], *out = malloc((size_t)300 * N * width * sizeof *out), *at = out;
        for (uint32_t s = 0; s < N; s++) {
            struct cache alone;
            in[s] = make_input(m, 300, 10 * s);
            want[s] = attend_chunks(scalar, m, &in[s], 300, false, &alone);
            scalar->ops->kv_close(scalar, &alone.kv);
            parts[s] = (struct part){&in[s], s, 0, first[s]};
            if (first[s] > 0)
                attend(&c, m, &parts[s], 1, out);
            parts[s] = (struct part){&in[s], s, first[s], end[s]};
        }
        device_options.seed = 1 + i;
        attend(&c, m, parts, N, out);
        for (uint32_t s = 0; s < N; s++) {
            size_t n = (end[s] - first[s]) * width;
            if (memcmp(want[s] + first[s] * width, at, n * sizeof *at) != 0)
                fail_msg("model %zu, sequence %u of %d", i, s, N);
            at += n;
            free(want[s]);
            free_input(&in[s]);
        }
        free(out);
        scalar->ops->kv_close(scalar, &c.kv);
    }
    scalar->ops->close(scalar);
}

/* A later position with NaN in K and V must not reach an earlier query, however they are chunked.
 */
static void the_future_does_not_leak_back(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {40, 8, 1};
    struct sl_backend *scalar = open_scalar();
    for (size_t i = 0; i < 4; i++) {
        const struct model *m = &models[i];
        size_t width = (size_t)m->n_heads * m->head_dim;
        struct input in = make_input(m, 40, 1);
        struct cache c;
        float *want = attend_chunks(scalar, m, &in, 40, false, &c);
        scalar->ops->kv_close(scalar, &c.kv);
        for (uint32_t j = 0; j < m->n_kv_heads * m->head_dim; j++) {
            in.k[(size_t)25 * in.stride + j] = NAN;
            in.v[(size_t)25 * in.stride + j] = j % 2 ? INFINITY : NAN;
        }
        for (size_t n = 0; n < sizeof chunks / sizeof *chunks; n++) {
            float *got = attend_chunks(scalar, m, &in, chunks[n], true, &c);
            assert_same_bits(want, got, 25 * width);
            for (size_t j = 25 * width; j < 40 * width; j++)
                assert_true(isnan(got[j]));
            free(got);
            scalar->ops->kv_close(scalar, &c.kv);
        }
        free(want);
        free_input(&in);
    }
    scalar->ops->close(scalar);
}

/* A rank's share: heads that begin in the middle of the pages' KV heads. */
static void heads_of_a_share_are_those_of_the_whole(void **state)
{
    (void)state;
    const struct model m = {12, 4, 64, 16, SL_F16};
    enum { POS = 300, SHARE = 2, FIRST = 1, DIM = 64 };
    struct sl_backend *scalar = open_scalar();
    struct input in = make_input(&m, POS, 1);
    struct cache c;
    float *want = attend_chunks(scalar, &m, &in, POS, false, &c);
    for (uint32_t rows = 1; rows <= 20; rows += 19) {
        struct part p = {&in, 3, POS - rows, POS};
        struct step s = make_step(&c, &p, 1);
        float *out = malloc((size_t)rows * SHARE * 3 * DIM * sizeof *out);
        struct sl_attn how = {SHARE * 3, FIRST, SHARE, s.stride, SHARE * 3 * DIM, 0.125f};
        float *q = s.q;
        s.batch.q_start = s.q_start;
        s.batch.pos = s.pos;
        s.batch.page_start = s.page_start;
        s.batch.pages = s.pages;
        s.q += FIRST * 3 * DIM;
        run_on_device(&c, &s.batch, &how, &s, out);
        for (uint32_t r = 0; r < rows; r++)
            assert_same_bits(want + ((size_t)(POS - rows + r) * 12 + FIRST * 3) * DIM,
                             out + (size_t)r * SHARE * 3 * DIM, SHARE * 3 * DIM);
        s.q = q;
        free(out);
        free_step(&s);
    }
    free(want);
    scalar->ops->kv_close(scalar, &c.kv);
    free_input(&in);
    scalar->ops->close(scalar);
}

/* A captured graph runs at larger limits than its batch needs. */
static void larger_limits_give_the_same_bits(void **state)
{
    (void)state;
    const struct model *m = &models[0];
    struct sl_backend *scalar = open_scalar();
    struct input in = make_input(m, 280, 1);
    size_t width = (size_t)m->n_heads * m->head_dim;
    struct cache c;
    float *want = attend_chunks(scalar, m, &in, 280, false, &c), *out = malloc(width * sizeof *out);
    for (uint32_t pos = 100; pos < 280; pos += 179) {
        struct part p = {&in, 3, pos, pos + 1};
        struct step s = make_step(&c, &p, 1);
        struct sl_attn how = {m->n_heads, 0, m->n_kv_heads, s.stride, (uint32_t)width, 0.125f};
        s.batch.q_start = s.q_start;
        s.batch.pos = s.pos;
        s.batch.page_start = s.page_start;
        s.batch.pages = s.pages;
        s.batch.max_pos = 2000;
        s.batch.max_rows = 40;
        run_on_device(&c, &s.batch, &how, &s, out);
        assert_same_bits(want + pos * width, out, width);
        free_step(&s);
    }
    free(out);
    free(want);
    scalar->ops->kv_close(scalar, &c.kv);
    free_input(&in);
    scalar->ops->close(scalar);
}

int main(void)
{
    _Static_assert(CUDA_ATTN_SEGMENT == SL_ATTN_SEGMENT, "one number in two headers");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_and_chunking_gives_scalars_bits),
        cmocka_unit_test(page_size_does_not_show),
        cmocka_unit_test(neighbours_in_the_batch_do_not_show),
        cmocka_unit_test(the_future_does_not_leak_back),
        cmocka_unit_test(heads_of_a_share_are_those_of_the_whole),
        cmocka_unit_test(larger_limits_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
