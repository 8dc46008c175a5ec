/* A non-scalar instruction set is used only after it has computed scalar's bits here: some
 * milliseconds of every micro-kernel on a fixed set of numbers. */
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "num.h"

#define K     192
#define N     40 /* rows of the weight: the last group is partial with 16 and with 8 */
#define ROWS  9  /* one more than the widest tile */
#define PARTS 3  /* all slices, and two runs of them */

/* Numbers of mixed size and sign from a small congruential generator. */
static float next_value(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    int exponent = (int)(*state >> 8 & 7) - 4;
    float m = (float)(int32_t)*state * 0x1p-31f;
    return exponent >= 0 ? m * (float)(1 << exponent) : m / (float)(1 << -exponent);
}

static void fill(float *x, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = next_value(&seed);
}

struct check {
    float x[ROWS * K], w[N * K];
    float a[PARTS * ROWS * N], b[PARTS * ROWS * N];
    uint8_t raw[N * K * 4];
    uint8_t packed[(N + 16) * K * 4 + 1024];
    int8_t q[ROWS * K];
    float d[ROWS * K / SL_QBLOCK], s[ROWS * K / SL_QBLOCK];
    int32_t corr[ROWS * K / SL_QBLOCK];
};

static void linear_of(const struct sl_isa_ops *isa, struct check *c, enum sl_dtype type, float *y)
{
    static const uint32_t border[] = {0, 64, 96, K};
    static const struct sl_tree_node parts[] = {{0, 3}, {1, 2}, {2, 1}};
    bool quantised = sl_dtype_row(type)->block_elems > 1;
    uint32_t rows = quantised ? isa->q_rows : SL_FLOAT_ROWS;
    struct sl_weight_src src = {.dtype = type, .n = N, .k = K, .data = c->raw};
    struct sl_tile t = {.w = c->packed,
                        .group_bytes = sl_pack_group_bytes(type, K, rows),
                        .n_groups = (N + rows - 1) / rows,
                        .border = border,
                        .parts = parts,
                        .n_parts = PARTS,
                        .plane = (size_t)ROWS * N,
                        .q = c->q,
                        .d = c->d,
                        .s = c->s,
                        .corr = c->corr,
                        .x_stride = K,
                        .y_stride = N,
                        .n = N};
    memset(c->packed, 0, sizeof c->packed);
    for (uint32_t g = 0; g < t.n_groups; g++)
        sl_pack_group(&src, 1, g, rows, isa->q8_flip, c->packed + g * t.group_bytes);
    int32_t offset = type == SL_Q4_0 ? 8 : type == SL_Q8_0 ? isa->q8_flip : 0;
    for (uint32_t row = 0; row < ROWS; row += t.mt) {
        t.mt = min_u32(isa->tile_rows, ROWS - row);
        t.x = c->x + (size_t)row * K;
        t.y = y + (size_t)row * N;
        for (uint32_t m = 0; m < t.mt; m++) {
            struct sl_quant_row out = {c->q + m * SL_QBLOCK, c->d + m, c->s + m, c->corr + m, t.mt};
            isa->quantize(t.x + (size_t)m * K, K, offset, &out);
        }
        if (quantised)
            isa->linear_q(&t, type);
        else
            isa->linear_f(&t, type);
    }
}

static bool linear_agrees(const struct sl_isa_ops *isa, struct check *c)
{
    static const enum sl_dtype types[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        for (uint32_t r = 0; r < N; r++)
            sl_quantize_row(types[i], c->w + (size_t)r * K,
                            c->raw + r * sl_dtype_bytes(types[i], K), K);
        linear_of(&sl_isa_scalar, c, types[i], c->a);
        linear_of(isa, c, types[i], c->b);
        if (memcmp(c->a, c->b, sizeof c->a) != 0)
            return false;
    }
    return true;
}

/* Row ops one after the other into `out` (at least 8 * K floats). */
static void rows_of(const struct sl_isa_ops *isa, const struct check *c, float *out)
{
    static const enum sl_dtype kv[] = {SL_F32, SL_F16, SL_BF16, SL_I8};
    static const struct sl_tree tree = {4, {{0, 1}, {2, 3}, {0, 2}}};
    float page[K], scale = 0.0f, o2[64], ml[2] = {0.5f, 3.0f}, ml2[2] = {1.25f, 2.0f};
    memset(out, 0, 8 * K * sizeof *out);
    isa->rms_norm(c->x, c->w, 1e-5f, K - 3, out);
    isa->silu_mul(c->x, c->w, K - 5, out + K);
    memcpy(out + 2 * K, c->x, K * sizeof *out);
    isa->add(out + 2 * K, c->w, K - 1);
    isa->tree_sum(&tree, c->x, K, K - 1, c->w, true, out + 2 * K);
    isa->rope(SL_ROPE_NEOX, out + 2 * K, 72, c->x + K, c->w + K);
    isa->rope(SL_ROPE_INTERLEAVED, out + 2 * K + 72, 64, c->x + K, c->w + K);
    for (uint32_t i = 0; i < 4; i++) {
        isa->kv_store(kv[i], c->x + (size_t)i * K, 72, page, &scale);
        isa->kv_load(kv[i], page, scale, 72, out + 3 * K + (size_t)i * 80);
    }
    float *p = out + 5 * K;
    isa->scores(c->x, c->w, 64, 80, 0.3f, p);
    ml2[1] = isa->softmax(p, 77, &ml2[0]);
    memset(o2, 0, sizeof o2);
    isa->weigh(p, c->w, 64, 77, o2);
    memcpy(out + 6 * K, c->x, sizeof o2);
    isa->merge(ml, out + 6 * K, ml2, o2, 64);
    isa->finish(out + 6 * K, ml[1], 50, out + 7 * K);
    out[7 * K + 60] = isa->max(c->x, K - 2);
    out[7 * K + 61] = isa->exp_sum(c->x, K - 2, out[7 * K + 60]);
    out[7 * K + 62] = ml[0];
    out[7 * K + 63] = ml2[1];
}

static bool rows_agree(const struct sl_isa_ops *isa, const struct check *c)
{
    float a[8 * K], b[8 * K];
    rows_of(&sl_isa_scalar, c, a);
    rows_of(isa, c, b);
    return memcmp(a, b, sizeof a) == 0;
}

bool sl_isa_agrees(const struct sl_isa_ops *isa)
{
    struct check *c = calloc(1, sizeof *c);
    if (!c)
        return false;
    fill(c->x, ROWS * K, 1);
    fill(c->w, N * K, 2);
    bool agrees = rows_agree(isa, c) && linear_agrees(isa, c);
    free(c);
    return agrees;
}
