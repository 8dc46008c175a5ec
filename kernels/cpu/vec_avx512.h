/* Sixteen float32 lanes in one AVX-512 register; see vec_scalar.h for what each function does. */
#ifndef SLUICE_KERNELS_CPU_VEC_AVX512_H
#define SLUICE_KERNELS_CPU_VEC_AVX512_H

#include <sluice/base/exact.h>

#include <immintrin.h>
#include <math.h>

#include "num.h"

struct v16 {
    __m512 v;
};

static inline struct v16 v_of(__m512 v)
{
    return (struct v16){v};
}

static inline __mmask16 v_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline struct v16 v_set(float x)
{
    return v_of(_mm512_set1_ps(x));
}

static inline struct v16 v_load(const float *p)
{
    return v_of(_mm512_loadu_ps(p));
}

static inline struct v16 v_load_n(const float *p, size_t n)
{
    return v_of(_mm512_maskz_loadu_ps(v_mask(n), p));
}

static inline void v_store(float *p, struct v16 v)
{
    _mm512_storeu_ps(p, v.v);
}

static inline void v_store_n(float *p, struct v16 v, size_t n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), v.v);
}

static inline struct v16 v_add(struct v16 a, struct v16 b)
{
    return v_of(_mm512_add_ps(a.v, b.v));
}

static inline struct v16 v_sub(struct v16 a, struct v16 b)
{
    return v_of(_mm512_sub_ps(a.v, b.v));
}

static inline struct v16 v_mul(struct v16 a, struct v16 b)
{
    return v_of(_mm512_mul_ps(a.v, b.v));
}

static inline struct v16 v_div(struct v16 a, struct v16 b)
{
    return v_of(_mm512_div_ps(a.v, b.v));
}

static inline struct v16 v_fma(struct v16 a, struct v16 b, struct v16 c)
{
    return v_of(_mm512_fmadd_ps(a.v, b.v, c.v));
}

static inline struct v16 v_max(struct v16 a, struct v16 b)
{
    return v_of(_mm512_max_ps(a.v, b.v));
}

static inline struct v16 v_abs(struct v16 a)
{
    return v_of(_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v));
}

static inline struct v16 v_neg(struct v16 a)
{
    return v_of(_mm512_xor_ps(_mm512_set1_ps(-0.0f), a.v));
}

static inline struct v16 v_exp(struct v16 a)
{
    __m512 x = a.v;
    __m512 magic = _mm512_set1_ps(SL_EXP_MAGIC), one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(SL_EXP_LOG2E), magic);
    __m512 n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-SL_EXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-SL_EXP_LN2_LO), r);
    __m512 p = _mm512_set1_ps(SL_EXP_Q4);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(SL_EXP_Q3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(SL_EXP_Q2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(SL_EXP_Q1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(SL_EXP_Q0));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    __m512i u =
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23));
    __mmask16 low = _mm512_cmp_ps_mask(x, _mm512_set1_ps(SL_EXP_MIN), _CMP_LT_OQ);
    __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(SL_EXP_MAX), _CMP_GT_OQ);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    p = _mm512_mask_mov_ps(_mm512_castsi512_ps(u), low, _mm512_setzero_ps());
    p = _mm512_mask_mov_ps(p, high, _mm512_set1_ps(INFINITY));
    return v_of(_mm512_mask_mov_ps(p, nan, x));
}

static inline float v_fold(struct v16 a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

static inline float v_fold_max(struct v16 a)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}

static inline struct v16 v_load_f16(const uint16_t *p)
{
    return v_of(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)));
}

static inline struct v16 v_load_bf16(const uint16_t *p)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return v_of(_mm512_castsi512_ps(_mm512_slli_epi32(u, 16)));
}

static inline struct v16 v_load_i8(const int8_t *p)
{
    __m512i u = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    return v_of(_mm512_cvtepi32_ps(u));
}

static inline void v_store_f16(uint16_t *p, struct v16 v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}

static inline void v_store_bf16(uint16_t *p, struct v16 v)
{
    __m512i u = _mm512_castps_si512(v.v);
    __m512i high = _mm512_srli_epi32(u, 16);
    __m512i bias =
        _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(r));
}

static inline int32_t v_store_i8(int8_t *p, struct v16 v)
{
    __m512i q = _mm512_cvtps_epi32(v.v);
    q = _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(q));
    return _mm512_reduce_add_epi32(q);
}

/* [a: lanes i + (i + 8) | b: the same] */
static inline __m512 fold_8(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

static inline __m512 fold_4(__m512 ab, __m512 cd)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

static inline __m512 fold_2(__m512 x, __m512 y)
{
    __m512d a = _mm512_castps_pd(x), b = _mm512_castps_pd(y);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

static inline __m512 fold_1(__m512 x, __m512 y)
{
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd));
}

static inline __m512 dot_lanes(const float *q, const float *k, uint32_t dim)
{
    __m512 acc = _mm512_setzero_ps();
    for (uint32_t d = 0; d < dim; d += 16)
        acc = _mm512_fmadd_ps(_mm512_loadu_ps(q + d), _mm512_loadu_ps(k + d), acc);
    return acc;
}

/* Rows j, j + 4, j + 8, j + 12: after all folds they stand four lanes apart. */
static inline __m512 dot_four(const float *q, const float *k, uint32_t dim)
{
    size_t step = (size_t)4 * dim;
    __m512 ab = fold_8(dot_lanes(q, k, dim), dot_lanes(q, k + step, dim));
    __m512 cd = fold_8(dot_lanes(q, k + 2 * step, dim), dot_lanes(q, k + 3 * step, dim));
    return fold_4(ab, cd);
}

static inline struct v16 v_dot16(const float *q, const float *k, uint32_t dim)
{
    __m512 x = fold_2(dot_four(q, k, dim), dot_four(q, k + dim, dim));
    __m512 y = fold_2(dot_four(q, k + 2 * (size_t)dim, dim), dot_four(q, k + 3 * (size_t)dim, dim));
    return v_of(fold_1(x, y));
}

#endif
