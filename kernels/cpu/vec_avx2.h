/* Sixteen float32 lanes in two AVX registers; see vec_scalar.h for what each function does. */
#ifndef SLUICE_KERNELS_CPU_VEC_AVX2_H
#define SLUICE_KERNELS_CPU_VEC_AVX2_H

#include <sluice/base/exact.h>

#include <immintrin.h>
#include <math.h>

#include "num.h"

struct v16 {
    __m256 lo, hi;
};

static inline struct v16 v_of(__m256 lo, __m256 hi)
{
    return (struct v16){lo, hi};
}

static inline struct v16 v_set(float x)
{
    return v_of(_mm256_set1_ps(x), _mm256_set1_ps(x));
}

static inline struct v16 v_load(const float *p)
{
    return v_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}

static inline void v_store(float *p, struct v16 v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

static inline struct v16 v_load_n(const float *p, size_t n)
{
    float buf[16] = {0};
    memcpy(buf, p, n * sizeof *p);
    return v_load(buf);
}

static inline void v_store_n(float *p, struct v16 v, size_t n)
{
    float buf[16];
    v_store(buf, v);
    memcpy(p, buf, n * sizeof *p);
}

static inline struct v16 v_add(struct v16 a, struct v16 b)
{
    return v_of(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}

static inline struct v16 v_sub(struct v16 a, struct v16 b)
{
    return v_of(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}

static inline struct v16 v_mul(struct v16 a, struct v16 b)
{
    return v_of(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}

static inline struct v16 v_div(struct v16 a, struct v16 b)
{
    return v_of(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}

static inline struct v16 v_fma(struct v16 a, struct v16 b, struct v16 c)
{
    return v_of(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}

static inline struct v16 v_max(struct v16 a, struct v16 b)
{
    return v_of(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}

static inline struct v16 v_abs(struct v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return v_of(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}

static inline struct v16 v_neg(struct v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return v_of(_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi));
}

static inline __m256 exp_8(__m256 x)
{
    __m256 magic = _mm256_set1_ps(SL_EXP_MAGIC), one = _mm256_set1_ps(1.0f);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(SL_EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-SL_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-SL_EXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(SL_EXP_Q4);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SL_EXP_Q3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SL_EXP_Q2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SL_EXP_Q1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(SL_EXP_Q0));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    __m256i u =
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23));
    __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(SL_EXP_MIN), _CMP_LT_OQ);
    __m256 high = _mm256_cmp_ps(x, _mm256_set1_ps(SL_EXP_MAX), _CMP_GT_OQ);
    p = _mm256_andnot_ps(low, _mm256_castsi256_ps(u));
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), high);
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static inline struct v16 v_exp(struct v16 a)
{
    return v_of(exp_8(a.lo), exp_8(a.hi));
}

static inline float v_fold(struct v16 a)
{
    __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

static inline float v_fold_max(struct v16 a)
{
    __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

static inline struct v16 v_load_f16(const uint16_t *p)
{
    return v_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}

static inline __m256 load_bf16_8(const uint16_t *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

static inline struct v16 v_load_bf16(const uint16_t *p)
{
    return v_of(load_bf16_8(p), load_bf16_8(p + 8));
}

static inline struct v16 v_load_i8(const int8_t *p)
{
    __m128i q = _mm_loadu_si128((const __m128i *)p);
    return v_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8))));
}

static inline void v_store_f16(uint16_t *p, struct v16 v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT));
}

/* The rounded upper halves, in 32-bit lanes. */
static inline __m256i bf16_8(__m256 v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i high = _mm256_srli_epi32(u, 16);
    __m256i bias =
        _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, bias), 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

static inline void v_store_bf16(uint16_t *p, struct v16 v)
{
    __m256i packed = _mm256_packus_epi32(bf16_8(v.lo), bf16_8(v.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}

static inline __m256i round_i8(__m256 v)
{
    __m256i q = _mm256_cvtps_epi32(v);
    q = _mm256_min_epi32(q, _mm256_set1_epi32(127));
    return _mm256_max_epi32(q, _mm256_set1_epi32(-127));
}

static inline int32_t v_store_i8(int8_t *p, struct v16 v)
{
    __m256i a = round_i8(v.lo), b = round_i8(v.hi);
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, q);
    __m256i sum = _mm256_add_epi32(a, b);
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

static inline __m256 dot_lanes(const float *q, const float *k, uint32_t dim)
{
    struct v16 acc = v_set(0.0f);
    for (uint32_t d = 0; d < dim; d += 16)
        acc = v_fma(v_load(q + d), v_load(k + d), acc);
    return _mm256_add_ps(acc.lo, acc.hi);
}

/* Rows j and j + 4: after all folds they stand four lanes apart. */
static inline __m256 dot_pair(const float *q, const float *k, uint32_t dim)
{
    __m256 a = dot_lanes(q, k, dim), b = dot_lanes(q, k + (size_t)4 * dim, dim);
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

static inline __m256 fold_2(__m256 x, __m256 y)
{
    __m256d a = _mm256_castps_pd(x), b = _mm256_castps_pd(y);
    return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                         _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
}

static inline __m256 dot_8(const float *q, const float *k, uint32_t dim)
{
    size_t row = dim;
    __m256 x = fold_2(dot_pair(q, k, dim), dot_pair(q, k + row, dim));
    __m256 y = fold_2(dot_pair(q, k + 2 * row, dim), dot_pair(q, k + 3 * row, dim));
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}

static inline struct v16 v_dot16(const float *q, const float *k, uint32_t dim)
{
    return v_of(dot_8(q, k, dim), dot_8(q, k + (size_t)8 * dim, dim));
}

#endif
