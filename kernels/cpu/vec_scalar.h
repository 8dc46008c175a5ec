/* Sixteen float32 lanes in plain C: the definition of what the SIMD vectors do. */
#ifndef SLUICE_KERNELS_CPU_VEC_SCALAR_H
#define SLUICE_KERNELS_CPU_VEC_SCALAR_H

#include <sluice/base/exact.h>
#include <sluice/kernels/dtype.h>

#include <math.h>

#include "num.h"

struct v16 {
    float f[16];
};

#define EACH_LANE for (int i = 0; i < 16; i++)

static inline struct v16 v_set(float x)
{
    struct v16 r;
    EACH_LANE r.f[i] = x;
    return r;
}

static inline struct v16 v_load(const float *p)
{
    struct v16 r;
    memcpy(r.f, p, sizeof r.f);
    return r;
}

/* n < 16 values, the other lanes +0. */
static inline struct v16 v_load_n(const float *p, size_t n)
{
    struct v16 r = v_set(0.0f);
    memcpy(r.f, p, n * sizeof *p);
    return r;
}

static inline void v_store(float *p, struct v16 v)
{
    memcpy(p, v.f, sizeof v.f);
}

static inline void v_store_n(float *p, struct v16 v, size_t n)
{
    memcpy(p, v.f, n * sizeof *p);
}

static inline struct v16 v_add(struct v16 a, struct v16 b)
{
    EACH_LANE a.f[i] = a.f[i] + b.f[i];
    return a;
}

static inline struct v16 v_sub(struct v16 a, struct v16 b)
{
    EACH_LANE a.f[i] = a.f[i] - b.f[i];
    return a;
}

static inline struct v16 v_mul(struct v16 a, struct v16 b)
{
    EACH_LANE a.f[i] = a.f[i] * b.f[i];
    return a;
}

static inline struct v16 v_div(struct v16 a, struct v16 b)
{
    EACH_LANE a.f[i] = a.f[i] / b.f[i];
    return a;
}

/* a * b + c */
static inline struct v16 v_fma(struct v16 a, struct v16 b, struct v16 c)
{
    EACH_LANE a.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
    return a;
}

/* b where a is not greater, also where either is NaN. */
static inline struct v16 v_max(struct v16 a, struct v16 b)
{
    EACH_LANE a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i];
    return a;
}

static inline struct v16 v_abs(struct v16 a)
{
    EACH_LANE a.f[i] = fabsf(a.f[i]);
    return a;
}

static inline struct v16 v_neg(struct v16 a)
{
    EACH_LANE a.f[i] = -a.f[i];
    return a;
}

static inline struct v16 v_exp(struct v16 a)
{
    EACH_LANE a.f[i] = sl_exp_f32(a.f[i]);
    return a;
}

static inline float v_fold(struct v16 a)
{
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.f[i] = a.f[i] + a.f[i + half];
    return a.f[0];
}

static inline float v_fold_max(struct v16 a)
{
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.f[i] = a.f[i] > a.f[i + half] ? a.f[i] : a.f[i + half];
    return a.f[0];
}

static inline struct v16 v_load_f16(const uint16_t *p)
{
    struct v16 r;
    EACH_LANE r.f[i] = sl_f16_to_f32(p[i]);
    return r;
}

static inline struct v16 v_load_bf16(const uint16_t *p)
{
    struct v16 r;
    EACH_LANE r.f[i] = sl_bf16_to_f32(p[i]);
    return r;
}

static inline struct v16 v_load_i8(const int8_t *p)
{
    struct v16 r;
    EACH_LANE r.f[i] = (float)p[i];
    return r;
}

static inline void v_store_f16(uint16_t *p, struct v16 v)
{
    EACH_LANE p[i] = sl_f32_to_f16(v.f[i]);
}

static inline void v_store_bf16(uint16_t *p, struct v16 v)
{
    EACH_LANE p[i] = sl_f32_to_bf16(v.f[i]);
}

/* Rounds to nearest even, clamps to +-127, stores; the sum of what was stored. */
static inline int32_t v_store_i8(int8_t *p, struct v16 v)
{
    int32_t sum = 0;
    EACH_LANE
    {
        float r = rintf(v.f[i]);
        r = r > 127.0f ? 127.0f : r < -127.0f ? -127.0f : r;
        p[i] = (int8_t)r;
        sum += p[i];
    }
    return sum;
}

/* Lane i: the folded 16-lane product of q with row i of 16 rows; dim is a multiple of 16. */
static inline struct v16 v_dot16(const float *q, const float *k, uint32_t dim)
{
    struct v16 r;
    EACH_LANE
    {
        struct v16 acc = v_set(0.0f);
        for (uint32_t d = 0; d < dim; d += 16)
            acc = v_fma(v_load(q + d), v_load(k + (size_t)i * dim + d), acc);
        r.f[i] = v_fold(acc);
    }
    return r;
}

#endif
