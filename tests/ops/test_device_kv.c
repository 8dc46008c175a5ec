/* Promised: the device writes pages as the scalar backend does, bit for bit, alone or in one with
 * the rotation of queries and keys; bad numbers mark their row and no other. */
#include "device.h"

enum { TOK = 7, N_POS = 64, SEEDS = 2, HEADS = 4 };

static const struct shape {
    uint32_t n_kv_heads, head_dim, n_rot, page_size;
} shapes[] = {{2, 64, 64, 16}, {1, 128, 128, 32}, {3, 96, 32, 1},
              {1, 33, 24, 2},  {2, 6, 6, 4},      {1, 80, 0, 8}};
static const enum sl_dtype types[] = {SL_F32, SL_F16, SL_BF16, SL_I8};

/* Two sequences of TOK tokens in all, whose values hold what cannot be stored as it is. */
struct setup {
    struct sl_backend *scalar;
    struct sl_kv kv[2]; /* what is wanted, and what the device writes */
    struct sl_rope rope;
    struct sl_batch batch;
    uint32_t stride;
    float *qkv, *tables;
};

static const uint32_t q_start[] = {0, 5, TOK}, page_start[] = {0, 64, 128};
static const uint32_t pos[TOK] = {3, 4, 5, 6, 7, 30, 31}, seq_of[TOK] = {0, 0, 0, 0, 0, 1, 1};
static uint32_t pages[128];

static struct setup make_setup(const struct shape *s, enum sl_dtype type, bool neox)
{
    struct setup t = {.scalar = open_scalar()};
    struct sl_kv_config cfg = {1, s->n_kv_heads, s->head_dim, s->page_size, 128, type};
    struct sl_err err;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(t.scalar->ops->kv_open(t.scalar, &cfg, &t.kv[i], &err), SL_OK);
        memset(t.kv[i].data, 0xaa, t.kv[i].bytes);
    }
    for (uint32_t i = 0; i < 128; i++)
        pages[i] = 127 - i;
    t.tables = malloc((size_t)2 * N_POS * (s->n_rot / 2 + 1) * sizeof *t.tables);
    float *sines = t.tables + (size_t)N_POS * (s->n_rot / 2 + 1);
    sl_rope_table(s->n_rot, 0, N_POS, 10000.0, 1.0, NULL, t.tables, sines);
    t.rope = (struct sl_rope){neox ? SL_ROPE_NEOX : SL_ROPE_INTERLEAVED, s->n_rot, N_POS, t.tables,
                              sines};
    t.stride = (HEADS + 2 * s->n_kv_heads) * s->head_dim + 3;
    t.qkv = random_floats((size_t)TOK * t.stride, 3.0f, type);
    float *k = t.qkv + HEADS * s->head_dim;
    k[t.stride + 1] = 70000.0f; /* beyond f16 */
    k[2 * t.stride + 2] = INFINITY;
    k[3 * t.stride] = 1e-7f; /* subnormal in f16 */
    for (uint32_t i = 0; i < s->head_dim; i++)
        k[4 * t.stride + i] = 0x1p-120f; /* counts as zero in int8 */
    t.batch = (struct sl_batch){.n_seq = 2,
                                .n_tok = TOK,
                                .q_start = q_start,
                                .pos = pos,
                                .page_start = page_start,
                                .pages = pages,
                                .seq_of = seq_of,
                                .max_pos = 31,
                                .max_rows = 5};
    return t;
}

static void close_setup(struct setup *t)
{
    for (int i = 0; i < 2; i++)
        t->scalar->ops->kv_close(t->scalar, &t->kv[i]);
    t->scalar->ops->close(t->scalar);
    free(t->qkv);
    free(t->tables);
}

static void check(const struct shape *s, enum sl_dtype type, bool neox, bool fused)
{
    struct setup t = make_setup(s, type, neox);
    size_t n = (size_t)TOK * t.stride;
    uint32_t k_at = HEADS * s->head_dim, v_at = k_at + s->n_kv_heads * s->head_dim;
    struct sl_backend *b = t.scalar;
    float *got = malloc(n * sizeof *got), *before = malloc(n * sizeof *before);
    memcpy(got, t.qkv, n * sizeof *got);
    memcpy(before, t.qkv, n * sizeof *before);
    if (fused) {
        b->ops->rope(b, &t.rope, t.qkv, t.stride, HEADS, s->head_dim, pos, TOK);
        b->ops->rope(b, &t.rope, t.qkv + k_at, t.stride, s->n_kv_heads, s->head_dim, pos, TOK);
    }
    b->ops->kv_write(b, &t.kv[0], 0, &t.batch, t.qkv + k_at, t.qkv + v_at, t.stride);
    const struct cuda_kv kv = {t.kv[1].data, t.kv[1].page_bytes, s->n_kv_heads,
                               s->head_dim,  s->page_size,       type};
    const struct cuda_batch batch = {2, TOK, q_start, pos, page_start, pages, seq_of, 31, 5};
    const struct cuda_rotary rope = {neox, s->n_rot, t.rope.cos, t.rope.sin};
    if (fused)
        assert_launched(cuda_rope_kv_write(NULL, &rope, &kv, &batch, got, HEADS, got + k_at,
                                           got + v_at, t.stride));
    else
        assert_launched(cuda_kv_write(NULL, &kv, &batch, got + k_at, got + v_at, t.stride));
    if (memcmp(t.kv[0].data, t.kv[1].data, t.kv[0].bytes) != 0)
        fail_msg("heads of %u in %s, neox %d, fused %d: pages differ", s->head_dim,
                 sl_dtype_row(type)->text, neox, fused);
    for (uint32_t row = 0; row < TOK; row++) {
        size_t at = (size_t)row * t.stride;
        assert_same_bits(t.qkv + at, got + at, k_at);
        assert_same_bits(before + at + k_at, got + at + k_at, t.stride - k_at);
    }
    free(got);
    free(before);
    close_setup(&t);
}

static void pages_are_scalars(void **state)
{
    (void)state;
    EACH_SEED(SEEDS)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            check(&shapes[s], types[t], false, false);
}

static void rotating_on_the_way_gives_the_same(void **state)
{
    (void)state;
    EACH_SEED(SEEDS)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (int neox = 0; neox < 2; neox++)
                check(&shapes[s], types[t], neox, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_scalars),
        cmocka_unit_test(rotating_on_the_way_gives_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
