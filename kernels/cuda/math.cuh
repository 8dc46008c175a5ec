/* Exact arithmetic that kernels share: the sequences of sl_exp_f32 and sl_log_f32
 * (runtime/base/exact.c), and the 16-lane reductions of kernels/num.h by half-warps. */
#ifndef SLUICE_KERNELS_CUDA_MATH_CUH
#define SLUICE_KERNELS_CUDA_MATH_CUH

#include <sluice/base/exact.h>

#include "cuda/dev.cuh"

#define MATH_NAN      __uint_as_float(0x7fc00000u)
#define MATH_INFINITY __uint_as_float(0x7f800000u)

/* sl_exp_f32 */
__device__ __forceinline__ float math_exp(float x)
{
    float t = __fmaf_rn(x, SL_EXP_LOG2E, SL_EXP_MAGIC);
    float n = t - SL_EXP_MAGIC;
    float r = __fmaf_rn(n, -SL_EXP_LN2_LO, __fmaf_rn(n, -SL_EXP_LN2_HI, x));
    float p = __fmaf_rn(SL_EXP_Q4, r, SL_EXP_Q3);
    p = __fmaf_rn(p, r, SL_EXP_Q2);
    p = __fmaf_rn(p, r, SL_EXP_Q1);
    p = __fmaf_rn(p, r, SL_EXP_Q0);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
    p = x < SL_EXP_MIN ? 0.0f : p;
    p = x > SL_EXP_MAX ? MATH_INFINITY : p;
    return x == x ? p : x;
}

__device__ __forceinline__ uint64_t math_bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

__device__ __forceinline__ double math_double(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* sl_log_f32: the logarithm in double, rounded once. A float is never subnormal as a double. */
__device__ inline float math_log(float x)
{
    if (!(x > 0.0f))
        return x == 0.0f ? -MATH_INFINITY : MATH_NAN;
    if (x == MATH_INFINITY)
        return x;
    uint64_t u = math_bits((double)x);
    int exponent = (int)(u >> 52) - 1023;
    double m = math_double((u & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    if (m >= 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        exponent++;
    }
    double e = (double)exponent, f = m - 1.0;
    double s = f / (m + 1.0), z = s * s;
    double p = 2.0 / 25.0;
    UNROLL_BY(1)
    for (double k = 23.0; k >= 3.0; k -= 2.0)
        p = fma(p, z, 2.0 / k);
    p = p * z;
    double tail = fma(e, 0x1.abc9e3b39803fp-56, s * (p - f));
    return (float)fma(e, 0x1.62e42fefa39efp-1, f + tail);
}

/* Folds 16 partial sums, lane = index mod 16, by halves: each half-warp for itself. */
__device__ __forceinline__ float math_fold_sum(float v)
{
    UNROLL
    for (int x = 8; x; x /= 2)
        v = v + __shfl_xor_sync(FULL_WARP, v, x);
    return v;
}

/* The larger of 16 lanes, NaN in none of them. */
__device__ __forceinline__ float math_fold_max(float v)
{
    UNROLL
    for (int x = 8; x; x /= 2) {
        float o = __shfl_xor_sync(FULL_WARP, v, x);
        v = v > o ? v : o;
    }
    return v;
}

/* Keys that ascend as (value descending, index ascending): zeros of both signs are one value, NaN
 * comes after all. No two elements of a row have the same key. */
__device__ __forceinline__ uint64_t math_order_key(float v, uint32_t index)
{
    uint32_t u = __float_as_uint(v == 0.0f ? 0.0f : v);
    uint32_t key = u & 0x80000000u ? u : 0x7fffffffu - u;
    return (uint64_t)(v == v ? key : 0xffffffffu) << 32 | index;
}

#endif
