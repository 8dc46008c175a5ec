/* AVX2 with FMA: 8 interleaved rows, 4 activation rows in registers.
 *
 * 4-bit quants are unsigned, so vpmaddubsw multiplies them with the activations as they are; a pair
 * is at most 2 * 15 * 127 = 3810, the 8 pairs a lane meets in a block stay below 32768 and are
 * added in int16, one vpmaddwd widens them per block. 8-bit quants are stored as w + 128 and go in
 * as two 4-bit halves, which is cheaper than widening every pair; corr takes the 128 out again. */
#define TILE_ROWS 4
#define Q_ROWS    8

#include "cpu/vec_avx2.h"

#include "cpu/lanes_row.h"

#include "cpu/unroll.h"

INLINE __m256i four_bytes(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Integer sums of one block of 4-bit quants with `mt` activation rows. */
INLINE void block_4(const uint8_t *w, const int8_t *q, const uint32_t mt, __m256i *isum)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i acc[TILE_ROWS];
    UNROLL for (uint32_t j = 0; j < 4; j++)
    {
        __m256i pair = _mm256_loadu_si256((const __m256i *)(w + (size_t)32 * j));
        __m256i a = _mm256_and_si256(pair, low);
        __m256i b = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        UNROLL for (uint32_t m = 0; m < mt; m++)
        {
            const int8_t *x = q + (size_t)32 * m + 4 * j;
            __m256i pa = _mm256_maddubs_epi16(a, four_bytes(x));
            __m256i pb = _mm256_maddubs_epi16(b, four_bytes(x + 16));
            pa = _mm256_add_epi16(pa, pb);
            acc[m] = j == 0 ? pa : _mm256_add_epi16(acc[m], pa);
            KEEP(acc[m]);
        }
    }
    UNROLL for (uint32_t m = 0; m < mt; m++) isum[m] = _mm256_madd_epi16(acc[m], ones);
}

INLINE void block_8(const uint8_t *w, const int8_t *q, const uint32_t mt, __m256i *isum)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i acc_lo[TILE_ROWS], acc_hi[TILE_ROWS];
    UNROLL for (uint32_t j = 0; j < 8; j++)
    {
        __m256i v = _mm256_loadu_si256((const __m256i *)(w + (size_t)32 * j));
        __m256i lo = _mm256_and_si256(v, low);
        __m256i hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        UNROLL for (uint32_t m = 0; m < mt; m++)
        {
            __m256i x = four_bytes(q + (size_t)32 * m + 4 * j);
            __m256i a = _mm256_maddubs_epi16(lo, x), b = _mm256_maddubs_epi16(hi, x);
            acc_lo[m] = j == 0 ? a : _mm256_add_epi16(acc_lo[m], a);
            acc_hi[m] = j == 0 ? b : _mm256_add_epi16(acc_hi[m], b);
            KEEP(acc_lo[m]);
            KEEP(acc_hi[m]);
        }
    }
    UNROLL for (uint32_t m = 0; m < mt; m++)
    {
        __m256i high = _mm256_slli_epi32(_mm256_madd_epi16(acc_hi[m], ones), 4);
        isum[m] = _mm256_add_epi32(_mm256_madd_epi16(acc_lo[m], ones), high);
    }
}

INLINE __m256 load_scales(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* One slice of one group, blocks [b0, b1). out [mt][Q_ROWS] */
INLINE void q_slice(const struct sl_tile *t, const uint8_t *w, uint32_t b0, uint32_t b1, float *out,
                    const uint32_t mt, const enum sl_dtype type)
{
    __m256 acc[TILE_ROWS];
    UNROLL for (uint32_t m = 0; m < mt; m++) acc[m] = _mm256_setzero_ps();
    for (uint32_t b = b0; b < b1; b++) {
        __m256i isum[TILE_ROWS];
        size_t at = (size_t)b * mt;
        const uint8_t *sc = w + sl_pack_scales_at(type, Q_ROWS, b);
        if (type == SL_Q8_0)
            block_8(w + sl_pack_quants_at(type, Q_ROWS, b), t->q + at * SL_QBLOCK, mt, isum);
        else
            block_4(w + sl_pack_quants_at(type, Q_ROWS, b), t->q + at * SL_QBLOCK, mt, isum);
        __m256 dw = load_scales(sc);
        UNROLL for (uint32_t m = 0; m < mt; m++)
        {
            if (type != SL_Q4_1)
                isum[m] = _mm256_add_epi32(isum[m], _mm256_set1_epi32(t->corr[at + m]));
            __m256 d = _mm256_mul_ps(dw, _mm256_set1_ps(t->d[at + m]));
            acc[m] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isum[m]), acc[m]);
        }
        if (type == SL_Q4_1) {
            __m256 mw = load_scales(sc + 2 * Q_ROWS);
            UNROLL for (uint32_t m = 0; m < mt; m++) acc[m] =
                _mm256_fmadd_ps(mw, _mm256_set1_ps(t->s[at + m]), acc[m]);
        }
    }
    UNROLL for (uint32_t m = 0; m < mt; m++) _mm256_storeu_ps(out + (size_t)Q_ROWS * m, acc[m]);
}

#include "cpu/lanes.h"

#define TABLE_NAME sl_isa_avx2
#define TABLE_ISA  SL_ISA_AVX2
#define TABLE_FLIP 0x80
#include "cpu/table.h"
