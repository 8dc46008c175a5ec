/* The micro-kernels of one instruction set, behind one table; num.h defines their arithmetic.
 *
 * scalar.c, avx2.c and avx512.c each bring a 16-lane vector (vec_*.h) and the inner loop of the
 * quantised linear; everything else is written once, on that vector, in lanes.h. */
#ifndef SLUICE_KERNELS_CPU_ISA_H
#define SLUICE_KERNELS_CPU_ISA_H

#include <sluice/kernels/op.h>

#define SL_TILE_MAX 8 /* activation rows of one tile, at most */
#define SL_FLOAT_ROWS                                                                              \
    16 /* interleaved rows of F32, F16 and BF16 weights, every instruction set                     \
        */
#define SL_ROWS_MAX 16

/* A tile of `mt` activation rows times `n_groups` adjacent groups of interleaved weight rows.
 * Quantised activations are laid out [block][mt]: 32 bytes of q, one d, s and corr each. */
struct sl_tile {
    const uint8_t *w; /* first group */
    size_t group_bytes;
    uint32_t n_groups;
    const uint32_t *border;           /* of the slices */
    const struct sl_tree_node *parts; /* slices to add up, each run for itself: [n_parts] */
    uint32_t n_parts;
    size_t plane; /* from one part of y to the next */
    uint32_t mt;
    const int8_t *q;
    const float *d;
    const float *s;      /* d * sum(q) */
    const int32_t *corr; /* -offset * sum(q): undoes the offset of the stored quants */
    const float *x;      /* float formats: [mt, k] with row stride x_stride */
    size_t x_stride;
    float *y; /* column of the first group in the tile's first row */
    size_t y_stride;
    uint32_t n;        /* columns left from y on: the last group may be partial */
    const float *bias; /* of those columns, or NULL */
    bool accumulate;
};

/* Where one quantised row goes inside its tile: block b lies `mt` rows behind block b - 1. */
struct sl_quant_row {
    int8_t *q;
    float *d, *s;
    int32_t *corr;
    uint32_t mt;
};

/* Blocks lie in pairs: the scales of both, then the quants of both. So a group is one straight
 * stream for the prefetchers, and its vectors are aligned. An odd last block is padded to a pair.
 */
static inline size_t sl_pack_scale_bytes(enum sl_dtype type, uint32_t rows)
{
    return (size_t)rows * (type == SL_Q4_1 ? 4 : 2);
}

static inline size_t sl_pack_quant_bytes(enum sl_dtype type, uint32_t rows)
{
    return (size_t)rows * (type == SL_Q8_0 ? 32 : 16);
}

static inline size_t sl_pack_scales_at(enum sl_dtype type, uint32_t rows, uint32_t block)
{
    size_t scales = sl_pack_scale_bytes(type, rows), quants = sl_pack_quant_bytes(type, rows);
    return block / 2 * 2 * (scales + quants) + block % 2 * scales;
}

static inline size_t sl_pack_quants_at(enum sl_dtype type, uint32_t rows, uint32_t block)
{
    size_t scales = sl_pack_scale_bytes(type, rows), quants = sl_pack_quant_bytes(type, rows);
    return block / 2 * 2 * (scales + quants) + 2 * scales + block % 2 * quants;
}

struct sl_isa_ops {
    enum sl_isa isa;
    uint32_t q_rows;    /* interleaved rows of quantised weights */
    uint32_t tile_rows; /* activation rows of a tile */
    uint8_t q8_flip;    /* xor of stored q8_0 bytes: 0x80 makes them unsigned, offset 128 */
    void (*linear_q)(const struct sl_tile *t, enum sl_dtype type);
    void (*linear_f)(const struct sl_tile *t, enum sl_dtype type);
    void (*quantize)(const float *x, uint32_t k, int32_t offset, const struct sl_quant_row *out);

    void (*rms_norm)(const float *x, const float *w, float eps, uint32_t dim, float *out);
    void (*silu_mul)(const float *gate, const float *up, uint32_t dim, float *out);
    void (*add)(float *x, const float *y, size_t n);
    /* One row: y [n] = the parts [n], `plane` floats apart, added as `tree` tells (+ bias) (+ y).
     */
    void (*tree_sum)(const struct sl_tree *tree, const float *parts, size_t plane, uint32_t n,
                     const float *bias, bool accumulate, float *y);
    void (*rope)(enum sl_rope_kind kind, float *x, uint32_t n_rot, const float *c, const float *s);
    /* Largest of n values (NaN never wins), and the 16-lane sum of exp(x - max). */
    float (*max)(const float *x, size_t n);
    float (*exp_sum)(const float *x, size_t n, float max);

    /* One row of dim elements to and from KV storage; float rows are padded with zeros to a
     * multiple of 16. */
    void (*kv_store)(enum sl_dtype type, const float *src, uint32_t dim, void *dst, float *scale);
    void (*kv_load)(enum sl_dtype type, const void *src, float scale, uint32_t dim, float *dst);
    /* out[i] = scale * q.k[i] for n rows of k (a multiple of 16), `dim` padded to 16. */
    void (*scores)(const float *q, const float *k, uint32_t dim, uint32_t n, float scale,
                   float *out);
    /* In place p = exp(s - max), padded with zeros to a multiple of 16; the sum, *max. n >= 1 */
    float (*softmax)(float *s, uint32_t n, float *max);
    /* out[d] = fma(p[i], v[i, d], out[d]), i ascending. */
    void (*weigh)(const float *p, const float *v, uint32_t dim, uint32_t n, float *out);
    /* (m, l, o) absorbs the next segment's (m2, l2, o2). */
    void (*merge)(float *ml, float *o, const float *ml2, const float *o2, uint32_t dim);
    void (*finish)(const float *o, float l, uint32_t dim, float *out);
};

extern const struct sl_isa_ops sl_isa_scalar;
#if defined(__x86_64__)
extern const struct sl_isa_ops sl_isa_avx2;
extern const struct sl_isa_ops sl_isa_avx512;
#endif

/* The table of an instruction set, or NULL where this machine cannot run it. */
const struct sl_isa_ops *sl_isa_find(enum sl_isa isa);

#endif
