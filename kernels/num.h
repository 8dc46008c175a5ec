/* The exact arithmetic of every op, in one place. The scalar form repeats this text; the SIMD forms
 * repeat the scalar form bit for bit; `ref` computes the same values in double.
 *
 * - Rounding is to nearest even, subnormals are kept; products and sums fuse only where `fma` is
 *   written. NaN payloads are not part of the promise.
 * - 16 lanes: a contiguous reduction keeps 16 partial sums, starting at +0, lane = index mod 16 (a
 *   last partial group is filled up with zeros), folded by halves: l[i] + l[i+8], then 4, 2, 1.
 * - Activations, per row and block of 32: d = amax / 127; d < 2^-100 counts as 0; id = d ? 1/d : 0;
 *   q = rne(x * id) in [-127, 127]; s = d * (float)sum(q). A NaN or infinity in the block makes d
 *   and s NaN and q 0, so that the whole row of outputs is NaN.
 * - Quantised linear: isum = sum of wq * q over the block in integers (wq signed: nibble - 8 for
 *   q4_0, nibble for q4_1); block after block, ascending, acc = fma(dw * d, (float)isum, acc) and
 *   for q4_1 then acc = fma(mw, s, acc). acc starts at +0 in each slice.
 * - Float linear: acc = fma(w, x, acc), k ascending, starting at +0 in each slice.
 * - Slices are added by the binary tree of op.h; then + bias, then + y.
 * - rms_norm: ss = 16-lane fma sum of x*x; r = 1 / sqrt(ss / dim + eps); out = (x * r) * w.
 * - rope: a' = fma(a, c, -(b * s)), b' = fma(b, c, a * s).
 * - silu_mul: (g / (1 + exp(-g))) * u, exp as in sl_exp_f32.
 * - Attention, per query row and segment of SL_ATTN_SEGMENT positions: score = scale * (16-lane fma
 *   sum of q*k); m = largest score; p = exp(score - m); l = 16-lane sum of p, lane = position mod
 *   16; o[d] = fma(p, v[d], o[d]), positions ascending, from +0. Segments merge in index order:
 *   m' = max; a = exp(m - m'), b = exp(m2 - m'); l = fma(l2, b, l * a); o = fma(o2, b, o * a).
 *   The result is o / l.
 * - int8 KV: per (head, token) d and q as for activations, over head_dim elements; value = q * d.
 * - logit_stats: log_sum = log(16-lane sum of exp(x - max)), log as in sl_log_f32.
 *
 * Any change to the bits above bumps SL_NUMERICS_REVISION. */
#ifndef SLUICE_KERNELS_NUM_H
#define SLUICE_KERNELS_NUM_H

#include <stdint.h>
#include <string.h>

#define SL_QBLOCK 32        /* elements of a block of activations, and of every block format */
#define SL_TINY_D 0x1p-100f /* a block scale below this is zero: 1/d stays finite */
#define SL_LANES  16

static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

#endif
