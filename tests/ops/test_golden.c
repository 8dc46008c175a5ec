/* Promised: the bits of the exact ops change only together with SL_NUMERICS_REVISION. One hash per
 * op over fixed inputs. If a hash fails and the change of bits is wanted, bump the revision
 * (workers announce it, so that streams are never continued across it) and write down the new
 * hashes. */
#include "ops.h"

enum { TOK = 3, DIM = 192, N_OUT = 40, HEADS = 6, KV_HEADS = 2, HEAD_DIM = 32, POS = 270 };

static uint64_t hash_of(const void *data, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hash_linear(struct sl_backend *b, enum sl_dtype type)
{
    float *w = random_floats(N_OUT * DIM, 0.1f, 1), *x = random_floats(TOK * DIM, 2.0f, 2);
    float y[TOK * N_OUT];
    uint8_t raw[N_OUT * DIM * 4];
    struct sl_slices slices = sl_slices_cut(DIM, 32);
    struct sl_weight packed;
    struct sl_err err;
    sl_quantize_row(type, w, raw, (size_t)N_OUT * DIM);
    struct sl_weight_src src = {type, N_OUT, DIM, raw, 0};
    assert_int_equal(b->ops->weight_pack(b, &src, 1, &slices, &packed, &err), SL_OK);
    b->ops->linear(b, &packed, x, DIM, TOK, NULL, false, y, N_OUT);
    b->ops->weight_free(b, &packed);
    free(w);
    free(x);
    return hash_of(y, sizeof y);
}

static uint64_t hash_attention(struct sl_backend *b, enum sl_dtype type)
{
    size_t width = (size_t)HEADS * HEAD_DIM, n = POS * width;
    float *q = random_floats(n, 3.0f, 3), *k = random_floats(n, 2.0f, 4);
    float *v = random_floats(n, 1.0f, 5), *out = malloc(n * sizeof *out);
    uint32_t pos[POS], pages[POS / 16 + 1];
    const uint32_t q_start[2] = {0, POS}, page_start[2] = {0, POS / 16 + 1};
    struct sl_kv_config cfg = {1, KV_HEADS, HEAD_DIM, 16, POS / 16 + 1, type};
    struct sl_kv kv;
    struct sl_err err;
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
    assert_int_equal(b->ops->kv_open(b, &cfg, &kv, &err), SL_OK);
    b->ops->kv_write(b, &kv, 0, &batch, k, v, (uint32_t)width);
    struct sl_attn a = {HEADS, 0, KV_HEADS, (uint32_t)width, (uint32_t)width, 0.2f};
    b->ops->attention(b, &kv, 0, &batch, &a, q, out);
    b->ops->kv_close(b, &kv);
    uint64_t h = hash_of(out, n * sizeof *out);
    free(q);
    free(k);
    free(v);
    free(out);
    return h;
}

static uint64_t hash_rows(struct sl_backend *b, enum sl_dtype unused)
{
    (void)unused;
    enum { HALF = HEAD_DIM / 2 };
    float *x = random_floats(TOK * DIM, 2.0f, 6), *w = random_floats(DIM, 1.0f, 7);
    float out[2 * TOK * DIM + 3 * TOK], c[64 * HALF], s[64 * HALF];
    uint32_t argmax[TOK];
    const uint32_t pos[TOK] = {0, 17, 63};
    sl_rope_table(HEAD_DIM, 0, 64, 100000.0, 1.0, NULL, c, s);
    struct sl_rope rope = {SL_ROPE_NEOX, HEAD_DIM, 64, c, s};
    b->ops->rms_norm(b, x, w, 1e-5f, TOK, DIM, out);
    b->ops->rope(b, &rope, x, DIM, DIM / HEAD_DIM, HEAD_DIM, pos, TOK);
    memcpy(out + TOK * DIM, x, TOK * DIM * sizeof *x);
    b->ops->silu_mul(b, out, TOK, DIM / 2, x);
    memcpy(out, x, TOK * DIM / 2 * sizeof *x);
    b->ops->logit_stats(b, out, TOK, DIM, out + 2 * TOK * DIM, argmax, out + 2 * TOK * DIM + TOK);
    for (int i = 0; i < TOK; i++)
        out[2 * TOK * DIM + 2 * TOK + i] = (float)argmax[i];
    free(x);
    free(w);
    return hash_of(out, sizeof out);
}

static const struct {
    const char *name;
    uint64_t (*fn)(struct sl_backend *b, enum sl_dtype type);
    enum sl_dtype type;
    uint64_t hash, own; /* scalar's; the device's where it has bits of its own */
} rows[] = {
    {"linear f32", hash_linear, SL_F32, 0x17151651f1b9857cu, 0},
    {"linear f16", hash_linear, SL_F16, 0xb4a0895458f70459u, 0xa24c4472fad96eeau},
    {"linear bf16", hash_linear, SL_BF16, 0xb9667db39458c965u, 0x53e51032695f00e6u},
    {"linear q8_0", hash_linear, SL_Q8_0, 0x5dc089d1f6f5ffb8u, 0},
    {"linear q4_0", hash_linear, SL_Q4_0, 0xd3cace46747475d7u, 0},
    {"linear q4_1", hash_linear, SL_Q4_1, 0x625c02da957d36f8u, 0},
    {"attention f16", hash_attention, SL_F16, 0x125ae48a01bb10f4u, 0},
    {"attention f32", hash_attention, SL_F32, 0xaf7d7688d784bb11u, 0},
    {"attention bf16", hash_attention, SL_BF16, 0xb43cb6dceca627cbu, 0},
    {"attention int8", hash_attention, SL_I8, 0x31c5a0e56d2a1f72u, 0},
    {"rows", hash_rows, SL_F32, 0x1983563a32328cddu, 0},
};

static void the_bits_are_those_of_the_revision(void **state)
{
    (void)state;
    assert_int_equal(SL_NUMERICS_REVISION, 1); /* the revision that the hashes belong to */
    static const struct form forms[] = {{SL_ISA_SCALAR, 1, 0}, {SL_ISA_SCALAR, 1, 1}};
    bool wrong = false;
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        struct sl_backend *b = open_form(&forms[f]);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            bool own = rows[i].own && has_own_bits(&forms[f], rows[i].type);
            uint64_t h = rows[i].fn(b, rows[i].type);
            bool same = h == (own ? rows[i].own : rows[i].hash);
            if (!same)
                print_message("%s: 0x%016llx\n", rows[i].name, (unsigned long long)h);
            wrong = wrong || !same;
        }
        b->ops->close(b);
    }
    assert_false(wrong);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bits_are_those_of_the_revision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
