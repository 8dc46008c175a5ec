/* Passes over a row of logits: plain C, and AVX2 with the same operations lane by lane. */
#include "sampler_row.h"

#include <sluice/base/exact.h>

#include <math.h>
#include <string.h>

static double fold(double lane[ROW_LANES])
{
    for (unsigned half = ROW_LANES / 2; half; half /= 2)
        for (unsigned i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

/* ---- plain ---- */

static bool plain_max(const float *x, uint32_t n, float *max)
{
    float best = -INFINITY;
    bool nan = false;
    for (uint32_t i = 0; i < n; i++) {
        nan |= x[i] != x[i];
        best = x[i] > best ? x[i] : best;
    }
    *max = best + 0.0f;
    return !nan;
}

/* Elements from, from + 1, ... of a row whose earlier ones are in lane already. */
static void weights_from(const float *x, uint32_t from, uint32_t n, float max, float temperature,
                         float *w, double lane[ROW_LANES])
{
    for (uint32_t i = from; i < n; i++) {
        w[i] = sl_exp_f32((x[i] - max) / temperature);
        lane[i % ROW_LANES] += (double)w[i];
    }
}

static double plain_weights(const float *x, uint32_t n, float max, float temperature, float *w)
{
    double lane[ROW_LANES] = {0};
    weights_from(x, 0, n, max, temperature, w, lane);
    return fold(lane);
}

static void count_from(const float *x, uint32_t from, uint32_t n, const float at[ROW_THRESHOLDS],
                       uint32_t count[ROW_THRESHOLDS])
{
    for (uint32_t i = from; i < n; i++)
        for (unsigned k = 0; k < ROW_THRESHOLDS; k++)
            count[k] += x[i] >= at[k];
}

static void plain_count(const float *x, uint32_t n, const float at[ROW_THRESHOLDS],
                        uint32_t count[ROW_THRESHOLDS])
{
    memset(count, 0, ROW_THRESHOLDS * sizeof *count);
    count_from(x, 0, n, at, count);
}

static uint32_t gather_from(const float *x, uint32_t from, uint32_t n, float at, struct cand *out,
                            uint32_t n_out)
{
    for (uint32_t i = from; i < n; i++)
        if (x[i] >= at)
            out[n_out++] = (struct cand){x[i] + 0.0f, i};
    return n_out;
}

static uint32_t plain_gather(const float *x, uint32_t n, float at, struct cand *out)
{
    return gather_from(x, 0, n, at, out, 0);
}

const struct row_ops row_ops_plain = {plain_max, plain_weights, plain_count, plain_gather};

/* ---- AVX2 ---- */
#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))

AVX2 static bool avx2_max(const float *x, uint32_t n, float *max)
{
    __m256 best[2] = {_mm256_set1_ps(-INFINITY), _mm256_set1_ps(-INFINITY)};
    __m256 nan = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; n - i >= 16; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
        best[0] = _mm256_max_ps(best[0], a);
        best[1] = _mm256_max_ps(best[1], b);
    }
    float lane[8], rest;
    _mm256_storeu_ps(lane, _mm256_max_ps(best[0], best[1]));
    bool good = plain_max(x + i, n - i, &rest) && !_mm256_movemask_ps(nan);
    for (unsigned k = 0; k < 8; k++)
        rest = lane[k] > rest ? lane[k] : rest;
    *max = rest + 0.0f;
    return good;
}

/* sl_exp_f32 for arguments that are neither NaN nor above 0; the sequence is in exact.h. */
AVX2 static inline __m256 exp_lanes(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(SL_EXP_MAGIC), one = _mm256_set1_ps(1.0f);
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
    __m256i bits =
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23));
    __m256 too_small = _mm256_cmp_ps(x, _mm256_set1_ps(SL_EXP_MIN), _CMP_LT_OQ);
    return _mm256_andnot_ps(too_small, _mm256_castsi256_ps(bits));
}

AVX2 static double avx2_weights(const float *x, uint32_t n, float max, float temperature, float *w)
{
    const __m256 m = _mm256_set1_ps(max), t = _mm256_set1_ps(temperature);
    __m256d sum[4];
    for (unsigned k = 0; k < 4; k++)
        sum[k] = _mm256_setzero_pd();
    uint32_t i = 0;
    for (; n - i >= ROW_LANES; i += ROW_LANES)
        for (unsigned half = 0; half < 2; half++) {
            __m256 v = _mm256_loadu_ps(x + i + 8 * half);
            v = exp_lanes(_mm256_div_ps(_mm256_sub_ps(v, m), t));
            _mm256_storeu_ps(w + i + 8 * half, v);
            __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
            __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
            sum[2 * half] = _mm256_add_pd(sum[2 * half], low);
            sum[2 * half + 1] = _mm256_add_pd(sum[2 * half + 1], high);
        }
    double lane[ROW_LANES];
    for (unsigned k = 0; k < 4; k++)
        _mm256_storeu_pd(lane + 4 * k, sum[k]);
    weights_from(x, i, n, max, temperature, w, lane);
    return fold(lane);
}

AVX2 static void avx2_count(const float *x, uint32_t n, const float at[ROW_THRESHOLDS],
                            uint32_t count[ROW_THRESHOLDS])
{
    __m256i sum[ROW_THRESHOLDS];
    __m256 limit[ROW_THRESHOLDS];
    for (unsigned k = 0; k < ROW_THRESHOLDS; k++) {
        sum[k] = _mm256_setzero_si256();
        limit[k] = _mm256_set1_ps(at[k]);
    }
    uint32_t i = 0;
    for (; n - i >= 8; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        for (unsigned k = 0; k < ROW_THRESHOLDS; k++) /* a true comparison is -1 */
            sum[k] = _mm256_sub_epi32(sum[k],
                                      _mm256_castps_si256(_mm256_cmp_ps(v, limit[k], _CMP_GE_OQ)));
    }
    for (unsigned k = 0; k < ROW_THRESHOLDS; k++) {
        uint32_t lane[8];
        _mm256_storeu_si256((__m256i *)(void *)lane, sum[k]);
        count[k] = 0;
        for (unsigned j = 0; j < 8; j++)
            count[k] += lane[j];
    }
    count_from(x, i, n, at, count);
}

AVX2 static uint32_t avx2_gather(const float *x, uint32_t n, float at, struct cand *out)
{
    const __m256 limit = _mm256_set1_ps(at);
    uint32_t n_out = 0, i = 0;
    for (; n - i >= 8; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, limit, _CMP_GE_OQ));
        for (; mask; mask &= mask - 1) {
            uint32_t id = i + (uint32_t)__builtin_ctz(mask);
            out[n_out++] = (struct cand){x[id] + 0.0f, id};
        }
    }
    return gather_from(x, i, n, at, out, n_out);
}

static const struct row_ops row_ops_avx2 = {avx2_max, avx2_weights, avx2_count, avx2_gather};

const struct row_ops *row_ops_best(void)
{
    bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has ? &row_ops_avx2 : &row_ops_plain;
}
#else
const struct row_ops *row_ops_best(void)
{
    return &row_ops_plain;
}
#endif
