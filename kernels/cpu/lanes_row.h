/* Row-wise micro-kernels written once on the 16-lane vector: activation quantiser, norm, silu,
 * rope, attention, reductions. Included after vec_*.h; num.h defines the arithmetic. */
#ifndef SLUICE_KERNELS_CPU_LANES_ROW_H
#define SLUICE_KERNELS_CPU_LANES_ROW_H

#include "cpu/isa.h"
#include "cpu/unroll.h"

#define TREE_VECTORS 4 /* of 16 columns that tree_sum takes at once */

/* Scale of a block: d, and *id = 1 / d (0 for a block that counts as zero); both NaN, with *id = 0,
 * when the block holds a NaN or an infinity. */
static inline float block_scale(struct v16 amax, struct v16 poison, float *id)
{
    *id = 0.0f;
    if (v_fold(poison) != 0.0f)
        return NAN;
    float d = v_fold_max(amax) / 127.0f;
    if (d < SL_TINY_D)
        return 0.0f;
    *id = 1.0f / d;
    return d;
}

static void quantize(const float *x, uint32_t k, int32_t offset, const struct sl_quant_row *out)
{
    struct v16 zero = v_set(0.0f);
    for (uint32_t b = 0; b < k / SL_QBLOCK; b++, x += SL_QBLOCK) {
        struct v16 lo = v_load(x), hi = v_load(x + 16);
        /* x * 0 is NaN exactly for NaN and infinity. */
        struct v16 poison = v_add(v_abs(v_mul(lo, zero)), v_abs(v_mul(hi, zero)));
        float id;
        float d = block_scale(v_max(v_abs(lo), v_abs(hi)), poison, &id);
        bool bad = d != d;
        int8_t *q = out->q + (size_t)b * out->mt * SL_QBLOCK;
        size_t at = (size_t)b * out->mt;
        int32_t sum = v_store_i8(q, bad ? zero : v_mul(lo, v_set(id))) +
                      v_store_i8(q + 16, bad ? zero : v_mul(hi, v_set(id)));
        out->d[at] = d;
        out->s[at] = d * (float)sum;
        out->corr[at] = -offset * sum;
    }
}

static void rms_norm(const float *x, const float *w, float eps, uint32_t dim, float *out)
{
    struct v16 acc = v_set(0.0f);
    uint32_t i = 0, whole = dim & ~15u;
    for (; i < whole; i += 16) {
        struct v16 v = v_load(x + i);
        acc = v_fma(v, v, acc);
    }
    if (i < dim) {
        struct v16 v = v_load_n(x + i, dim - i);
        acc = v_fma(v, v, acc);
    }
    struct v16 r = v_set(1.0f / sqrtf(v_fold(acc) / (float)dim + eps));
    for (i = 0; i < whole; i += 16)
        v_store(out + i, v_mul(v_mul(v_load(x + i), r), v_load(w + i)));
    if (i < dim)
        v_store_n(out + i, v_mul(v_mul(v_load_n(x + i, dim - i), r), v_load_n(w + i, dim - i)),
                  dim - i);
}

static inline struct v16 silu_times(struct v16 g, struct v16 u)
{
    return v_mul(v_div(g, v_add(v_set(1.0f), v_exp(v_neg(g)))), u);
}

static void silu_mul(const float *gate, const float *up, uint32_t dim, float *out)
{
    uint32_t i = 0;
    for (; i + 16 <= dim; i += 16)
        v_store(out + i, silu_times(v_load(gate + i), v_load(up + i)));
    if (i < dim)
        v_store_n(out + i, silu_times(v_load_n(gate + i, dim - i), v_load_n(up + i, dim - i)),
                  dim - i);
}

static void add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        v_store(x + i, v_add(v_load(x + i), v_load(y + i)));
    if (i < n)
        v_store_n(x + i, v_add(v_load_n(x + i, n - i), v_load_n(y + i, n - i)), n - i);
}

/* `nv` vectors of columns of tree_sum, n of them wanted: whole vectors but for the last ones. */
INLINE void tree_lanes(const struct sl_tree *tree, const float *parts, size_t plane,
                       const float *bias, bool accumulate, float *y, size_t n, const uint32_t nv)
{
    struct v16 sum[SL_SLICES_MAX][TREE_VECTORS];
    bool whole = n == (size_t)16 * nv;
    uint32_t p = 0;
    do {
        UNROLL for (uint32_t v = 0; v < nv; v++) sum[p][v] =
            whole ? v_load(parts + 16 * v) : v_load_n(parts + 16 * v, n);
        parts += plane;
    } while (++p < tree->n_parts);
    for (uint32_t a = 0; a + 1 < tree->n_parts; a++) {
        struct v16 *to = sum[tree->add[a].to], *from = sum[tree->add[a].from];
        UNROLL for (uint32_t v = 0; v < nv; v++) to[v] = v_add(to[v], from[v]);
    }
    UNROLL for (uint32_t v = 0; v < nv; v++)
    {
        struct v16 x = sum[0][v];
        if (bias)
            x = v_add(x, whole ? v_load(bias + 16 * v) : v_load_n(bias + 16 * v, n));
        if (accumulate)
            x = v_add(x, whole ? v_load(y + 16 * v) : v_load_n(y + 16 * v, n));
        if (whole)
            v_store(y + 16 * v, x);
        else
            v_store_n(y + 16 * v, x, n);
    }
}

static void tree_sum(const struct sl_tree *tree, const float *parts, size_t plane, uint32_t n,
                     const float *bias, bool accumulate, float *y)
{
    uint32_t i = 0;
    for (; i + 16 * TREE_VECTORS <= n; i += 16 * TREE_VECTORS)
        tree_lanes(tree, parts + i, plane, bias ? bias + i : NULL, accumulate, y + i,
                   16 * TREE_VECTORS, TREE_VECTORS);
    for (; i < n; i += 16)
        tree_lanes(tree, parts + i, plane, bias ? bias + i : NULL, accumulate, y + i,
                   n - i < 16 ? n - i : 16, 1);
}

static void rope_neox(float *x, uint32_t half, const float *c, const float *s)
{
    for (uint32_t i = 0; i < half; i += 16) {
        size_t n = half - i < 16 ? half - i : 16;
        bool part = n < 16;
        float *pa = x + i, *pb = x + half + i;
        struct v16 a = part ? v_load_n(pa, n) : v_load(pa);
        struct v16 b = part ? v_load_n(pb, n) : v_load(pb);
        struct v16 cv = part ? v_load_n(c + i, n) : v_load(c + i);
        struct v16 sv = part ? v_load_n(s + i, n) : v_load(s + i);
        struct v16 a2 = v_fma(a, cv, v_neg(v_mul(b, sv)));
        struct v16 b2 = v_fma(b, cv, v_mul(a, sv));
        v_store_n(pa, a2, n);
        v_store_n(pb, b2, n);
    }
}

static void rope(enum sl_rope_kind kind, float *x, uint32_t n_rot, const float *c, const float *s)
{
    if (kind == SL_ROPE_NEOX) {
        rope_neox(x, n_rot / 2, c, s);
        return;
    }
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = fmaf(a, c[i], -(b * s[i]));
        x[2 * i + 1] = fmaf(b, c[i], a * s[i]);
    }
}

static float max_of(const float *x, size_t n)
{
    struct v16 m = v_set(-INFINITY);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        m = v_max(v_load(x + i), m);
    float best = v_fold_max(m);
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static float exp_sum(const float *x, size_t n, float max)
{
    struct v16 sum = v_set(0.0f), mv = v_set(max);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum = v_add(sum, v_exp(v_sub(v_load(x + i), mv)));
    if (i < n) {
        float tail[16];
        for (size_t j = 0; j < 16; j++)
            tail[j] = i + j < n ? x[i + j] : -INFINITY;
        sum = v_add(sum, v_exp(v_sub(v_load(tail), mv)));
    }
    return v_fold(sum);
}

static float kv_store_i8(const float *src, uint32_t dim, int8_t *dst)
{
    struct v16 amax = v_set(0.0f), poison = v_set(0.0f), zero = v_set(0.0f);
    for (uint32_t i = 0; i < dim; i += 16) {
        struct v16 v = dim - i < 16 ? v_load_n(src + i, dim - i) : v_load(src + i);
        amax = v_max(v_abs(v), amax);
        poison = v_add(v_abs(v_mul(v, zero)), poison);
    }
    float id;
    float d = block_scale(amax, poison, &id);
    for (uint32_t i = 0; i < dim; i += 16) {
        struct v16 v = dim - i < 16 ? v_load_n(src + i, dim - i) : v_load(src + i);
        int8_t q[16];
        v_store_i8(q, d != d ? zero : v_mul(v, v_set(id)));
        memcpy(dst + i, q, dim - i < 16 ? dim - i : 16);
    }
    return d;
}

static void kv_store(enum sl_dtype type, const float *src, uint32_t dim, void *dst, float *scale)
{
    if (type == SL_F32) {
        memcpy(dst, src, dim * sizeof *src);
        return;
    }
    if (type == SL_I8) {
        *scale = kv_store_i8(src, dim, dst);
        return;
    }
    uint16_t *out = dst;
    for (uint32_t i = 0; i < dim; i += 16) {
        uint32_t n = dim - i < 16 ? dim - i : 16;
        struct v16 v = n < 16 ? v_load_n(src + i, n) : v_load(src + i);
        uint16_t h[16];
        if (type == SL_F16)
            v_store_f16(h, v);
        else
            v_store_bf16(h, v);
        memcpy(out + i, h, n * sizeof *h);
    }
}

static inline struct v16 kv_lanes(enum sl_dtype type, const void *p, struct v16 scale)
{
    if (type == SL_F16)
        return v_load_f16(p);
    if (type == SL_BF16)
        return v_load_bf16(p);
    if (type == SL_I8)
        return v_mul(v_load_i8(p), scale);
    return v_load(p);
}

static void kv_load(enum sl_dtype type, const void *src, float scale, uint32_t dim, float *dst)
{
    const uint8_t *p = src;
    uint32_t bytes = sl_dtype_row(type)->block_bytes, i = 0;
    struct v16 sv = v_set(scale);
    for (; i + 16 <= dim; i += 16)
        v_store(dst + i, kv_lanes(type, p + (size_t)i * bytes, sv));
    if (i < dim) {
        uint8_t tail[64] = {0};
        memcpy(tail, p + (size_t)i * bytes, (size_t)(dim - i) * bytes);
        v_store(dst + i, kv_lanes(type, tail, sv));
        for (uint32_t j = dim; j < i + 16; j++)
            dst[j] = 0.0f;
    }
}

static void scores(const float *q, const float *k, uint32_t dim, uint32_t n, float scale,
                   float *out)
{
    struct v16 sv = v_set(scale);
    if (dim == 64) { /* the common head: unrolled by the compiler */
        for (uint32_t i = 0; i < n; i += 16)
            v_store(out + i, v_mul(v_dot16(q, k + (size_t)i * 64, 64), sv));
        return;
    }
    for (uint32_t i = 0; i < n; i += 16)
        v_store(out + i, v_mul(v_dot16(q, k + (size_t)i * dim, dim), sv));
}

static float softmax(float *s, uint32_t n, float *max)
{
    uint32_t padded = (n + 15) & ~15u;
    for (uint32_t i = n; i < padded; i++)
        s[i] = -INFINITY;
    float m = max_of(s, padded);
    struct v16 sum = v_set(0.0f), mv = v_set(m);
    for (uint32_t i = 0; i < padded; i += 16) {
        struct v16 p = v_exp(v_sub(v_load(s + i), mv));
        v_store(s + i, p);
        sum = v_add(sum, p);
    }
    *max = m;
    return v_fold(sum);
}

/* `dim` in chunks of up to 64 so that the accumulators stay in registers. */
static inline void weigh_chunk(const float *p, const float *v, uint32_t dim, uint32_t n, float *out,
                               const uint32_t n_vec)
{
    struct v16 acc[4];
    for (uint32_t j = 0; j < n_vec; j++)
        acc[j] = v_load(out + 16 * j);
    for (uint32_t i = 0; i < n; i++) {
        struct v16 pv = v_set(p[i]);
        for (uint32_t j = 0; j < n_vec; j++)
            acc[j] = v_fma(pv, v_load(v + (size_t)i * dim + 16 * j), acc[j]);
    }
    for (uint32_t j = 0; j < n_vec; j++)
        v_store(out + 16 * j, acc[j]);
}

static void weigh(const float *p, const float *v, uint32_t dim, uint32_t n, float *out)
{
    uint32_t d = 0;
    for (; d + 64 <= dim; d += 64)
        weigh_chunk(p, v + d, dim, n, out + d, 4);
    for (; d + 32 <= dim; d += 32)
        weigh_chunk(p, v + d, dim, n, out + d, 2);
    for (; d < dim; d += 16)
        weigh_chunk(p, v + d, dim, n, out + d, 1);
}

static void merge(float *ml, float *o, const float *ml2, const float *o2, uint32_t dim)
{
    float m = ml[0] > ml2[0] ? ml[0] : ml2[0];
    float a = sl_exp_f32(ml[0] - m), b = sl_exp_f32(ml2[0] - m);
    ml[0] = m;
    ml[1] = fmaf(ml2[1], b, ml[1] * a);
    struct v16 av = v_set(a), bv = v_set(b);
    for (uint32_t d = 0; d < dim; d += 16)
        v_store(o + d, v_fma(v_load(o2 + d), bv, v_mul(v_load(o + d), av)));
}

static void finish(const float *o, float l, uint32_t dim, float *out)
{
    struct v16 lv = v_set(l);
    uint32_t d = 0;
    for (; d + 16 <= dim; d += 16)
        v_store(out + d, v_div(v_load(o + d), lv));
    if (d < dim)
        v_store_n(out + d, v_div(v_load(o + d), lv), dim - d);
}

#endif
