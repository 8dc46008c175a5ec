/* Micro-kernels written once on the 16-lane vector; included by each instruction set's file, after
 * its vec_*.h and its `q_slice`. num.h defines the arithmetic. */
#ifndef SLUICE_KERNELS_CPU_LANES_H
#define SLUICE_KERNELS_CPU_LANES_H

#include "cpu/isa.h"
#include "cpu/unroll.h"

#define TREE_DEPTH 8 /* levels of 64 slices, and the one being filled */

/* Slices arrive in index order; the stack holds the sums of finished subtrees. Adding as a binary
 * counter carries gives the level-by-level tree of op.h. */
INLINE uint32_t tree_carry(float *stack, uint32_t top, uint32_t slice, uint32_t width)
{
    for (uint32_t bits = slice; bits & 1; bits >>= 1) {
        top--;
        float *a = stack + (size_t)(top - 1) * width, *b = a + width;
        for (uint32_t i = 0; i < width; i += 8)
            UNROLL for (uint32_t j = 0; j < 8; j++) a[i + j] = a[i + j] + b[i + j];
    }
    return top;
}

INLINE void tree_finish(float *stack, uint32_t top, uint32_t width)
{
    for (; top > 1; top--) {
        float *a = stack + (size_t)(top - 2) * width, *b = a + width;
        for (uint32_t i = 0; i < width; i++)
            a[i] = a[i] + b[i];
    }
}

/* Writes sums [mt, rows] of one group, `left` columns of it wanted. `plane` is where in y the part
 * begins. */
INLINE void store_group(const struct sl_tile *t, const float *sums, uint32_t rows, uint32_t column,
                        uint32_t mt, size_t plane)
{
    uint32_t left = t->n - column;
    float *part = t->y + plane + column;
    if (left >= rows && !t->bias && !t->accumulate) {
        for (uint32_t m = 0; m < mt; m++)
            memcpy(part + m * t->y_stride, sums + (size_t)m * rows, rows * sizeof *sums);
        return;
    }
    uint32_t n = left < rows ? left : rows;
    for (uint32_t m = 0; m < mt; m++) {
        float *y = part + m * t->y_stride;
        const float *a = sums + (size_t)m * rows;
        for (uint32_t i = 0; i < n; i++) {
            float v = t->bias ? a[i] + t->bias[column + i] : a[i];
            y[i] = t->accumulate ? v + y[i] : v;
        }
    }
}

/* ---- float weights: lanes over outputs, one chain per output and slice ---- */

INLINE struct v16 load_weights(const uint8_t *w, size_t i, enum sl_dtype type)
{
    if (type == SL_F32)
        return v_load((const float *)(const void *)w + i);
    if (type == SL_F16)
        return v_load_f16((const uint16_t *)(const void *)w + i);
    return v_load_bf16((const uint16_t *)(const void *)w + i);
}

/* `mt` rows times `ng` groups from input k0 to k1. out [ng][mt][16] */
INLINE void f_slice(const struct sl_tile *t, const uint8_t *w, uint32_t k0, uint32_t k1, float *out,
                    const uint32_t mt, const uint32_t ng, enum sl_dtype type)
{
    struct v16 acc[SL_TILE_MAX];
    UNROLL for (uint32_t i = 0; i < mt * ng; i++) acc[i] = v_set(0.0f);
    for (uint32_t k = k0; k < k1; k++) {
        UNROLL for (uint32_t g = 0; g < ng; g++)
        {
            struct v16 wv = load_weights(w + g * t->group_bytes, (size_t)k * SL_FLOAT_ROWS, type);
            UNROLL for (uint32_t m = 0; m < mt; m++) acc[g * mt + m] =
                v_fma(wv, v_set(t->x[m * t->x_stride + k]), acc[g * mt + m]);
        }
    }
    UNROLL for (uint32_t i = 0; i < mt * ng; i++) v_store(out + (size_t)16 * i, acc[i]);
}

INLINE void f_groups(const struct sl_tile *t, uint32_t first, const struct sl_tree_node *part,
                     size_t plane, const uint32_t mt, const uint32_t ng, enum sl_dtype type)
{
    float stack[TREE_DEPTH * SL_TILE_MAX * SL_FLOAT_ROWS];
    const uint8_t *w = t->w + first * t->group_bytes;
    const uint32_t width = ng * mt * SL_FLOAT_ROWS;
    const uint32_t *border = t->border + part->first;
    uint32_t top = 0;
    for (uint32_t i = 0; i < part->n; i++) {
        f_slice(t, w, border[i], border[i + 1], stack + (size_t)top * width, mt, ng, type);
        top = tree_carry(stack, top + 1, i, width);
    }
    tree_finish(stack, top, width);
    for (uint32_t g = 0; g < ng; g++)
        store_group(t, stack + (size_t)g * mt * SL_FLOAT_ROWS, SL_FLOAT_ROWS,
                    (first + g) * SL_FLOAT_ROWS, mt, plane);
}

INLINE void f_parts(const struct sl_tile *t, uint32_t first, const uint32_t mt, const uint32_t ng,
                    enum sl_dtype type)
{
    for (uint32_t p = 0; p < t->n_parts; p++)
        f_groups(t, first, &t->parts[p], p * t->plane, mt, ng, type);
}

INLINE void f_type(const struct sl_tile *t, enum sl_dtype type)
{
    uint32_t g = 0;
    if (t->mt == 1) {
        for (; g + 4 <= t->n_groups; g += 4)
            f_parts(t, g, 1, 4, type);
    }
    for (; g < t->n_groups; g++) {
        switch (t->mt) {
        case 1:
            f_parts(t, g, 1, 1, type);
            break;
        case 2:
            f_parts(t, g, 2, 1, type);
            break;
        case 3:
            f_parts(t, g, 3, 1, type);
            break;
        case 4:
            f_parts(t, g, 4, 1, type);
            break;
#if TILE_ROWS > 4
        case 5:
            f_parts(t, g, 5, 1, type);
            break;
        case 6:
            f_parts(t, g, 6, 1, type);
            break;
        case 7:
            f_parts(t, g, 7, 1, type);
            break;
        default:
            f_parts(t, g, 8, 1, type);
            break;
#endif
        }
    }
}

static void linear_f(const struct sl_tile *t, enum sl_dtype type)
{
    if (type == SL_F32)
        f_type(t, SL_F32);
    else if (type == SL_F16)
        f_type(t, SL_F16);
    else
        f_type(t, SL_BF16);
}

/* ---- quantised weights: the walk over groups and slices; q_slice is the file's own ---- */

INLINE void q_part(const struct sl_tile *t, uint32_t group, const struct sl_tree_node *part,
                   size_t plane, const uint32_t mt, const enum sl_dtype type)
{
    float stack[TREE_DEPTH * SL_TILE_MAX * Q_ROWS];
    const uint8_t *w = t->w + group * t->group_bytes;
    const uint32_t width = mt * Q_ROWS;
    const uint32_t *border = t->border + part->first;
    uint32_t top = 0;
    for (uint32_t i = 0; i < part->n; i++) {
        q_slice(t, w, border[i] / SL_QBLOCK, border[i + 1] / SL_QBLOCK, stack + (size_t)top * width,
                mt, type);
        top = tree_carry(stack, top + 1, i, width);
    }
    tree_finish(stack, top, width);
    store_group(t, stack, Q_ROWS, group * Q_ROWS, mt, plane);
}

INLINE void q_group(const struct sl_tile *t, uint32_t group, const uint32_t mt,
                    const enum sl_dtype type)
{
    for (uint32_t p = 0; p < t->n_parts; p++)
        q_part(t, group, &t->parts[p], p * t->plane, mt, type);
}

INLINE void q_type(const struct sl_tile *t, const enum sl_dtype type)
{
    for (uint32_t g = 0; g < t->n_groups; g++) {
        switch (t->mt) {
        case 1:
            q_group(t, g, 1, type);
            break;
        case 2:
            q_group(t, g, 2, type);
            break;
        case 3:
            q_group(t, g, 3, type);
            break;
        case 4:
            q_group(t, g, 4, type);
            break;
#if TILE_ROWS > 4
        case 5:
            q_group(t, g, 5, type);
            break;
        case 6:
            q_group(t, g, 6, type);
            break;
        case 7:
            q_group(t, g, 7, type);
            break;
        default:
            q_group(t, g, 8, type);
            break;
#endif
        }
    }
}

static void linear_q(const struct sl_tile *t, enum sl_dtype type)
{
    if (type == SL_Q4_1)
        q_type(t, SL_Q4_1);
    else if (type == SL_Q4_0)
        q_type(t, SL_Q4_0);
    else
        q_type(t, SL_Q8_0);
}

#endif
