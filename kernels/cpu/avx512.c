/* AVX-512 with VNNI: 16 interleaved rows, 8 activation rows in registers, vpdpbusd.
 *
 * vpdpbusd multiplies unsigned with signed bytes: 4-bit quants are unsigned already, 8-bit ones are
 * stored with the sign bit flipped (w + 128). The sum starts at corr = -offset * sum(q), which
 * undoes the offset exactly. */
#define TILE_ROWS 8
#define Q_ROWS    16

#include "cpu/vec_avx512.h"

#include "cpu/lanes_row.h"

#include "cpu/unroll.h"

INLINE __m512i four_bytes(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE void block_4(const uint8_t *w, const int8_t *q, const uint32_t mt, __m512i *isum)
{
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (uint32_t j = 0; j < 4; j++)
    {
        __m512i pair = _mm512_loadu_si512(w + (size_t)64 * j);
        __m512i a = _mm512_and_si512(pair, low);
        __m512i b = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
        UNROLL for (uint32_t m = 0; m < mt; m++)
        {
            const int8_t *x = q + (size_t)32 * m + 4 * j;
            isum[m] = _mm512_dpbusd_epi32(isum[m], a, four_bytes(x));
            isum[m] = _mm512_dpbusd_epi32(isum[m], b, four_bytes(x + 16));
        }
    }
}

INLINE void block_8(const uint8_t *w, const int8_t *q, const uint32_t mt, __m512i *isum)
{
    UNROLL for (uint32_t j = 0; j < 8; j++)
    {
        __m512i a = _mm512_loadu_si512(w + (size_t)64 * j);
        UNROLL for (uint32_t m = 0; m < mt; m++) isum[m] =
            _mm512_dpbusd_epi32(isum[m], a, four_bytes(q + (size_t)32 * m + 4 * j));
    }
}

INLINE __m512 load_scales(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* One slice of one group, blocks [b0, b1). out [mt][Q_ROWS] */
INLINE void q_slice(const struct sl_tile *t, const uint8_t *w, uint32_t b0, uint32_t b1, float *out,
                    const uint32_t mt, const enum sl_dtype type)
{
    __m512 acc[TILE_ROWS];
    UNROLL for (uint32_t m = 0; m < mt; m++) acc[m] = _mm512_setzero_ps();
    for (uint32_t b = b0; b < b1; b++) {
        __m512i isum[TILE_ROWS];
        size_t at = (size_t)b * mt;
        const uint8_t *sc = w + sl_pack_scales_at(type, Q_ROWS, b);
        UNROLL for (uint32_t m = 0; m < mt; m++) isum[m] =
            type == SL_Q4_1 ? _mm512_setzero_si512() : _mm512_set1_epi32(t->corr[at + m]);
        if (type == SL_Q8_0)
            block_8(w + sl_pack_quants_at(type, Q_ROWS, b), t->q + at * SL_QBLOCK, mt, isum);
        else
            block_4(w + sl_pack_quants_at(type, Q_ROWS, b), t->q + at * SL_QBLOCK, mt, isum);
        __m512 dw = load_scales(sc);
        UNROLL for (uint32_t m = 0; m < mt; m++)
        {
            __m512 d = _mm512_mul_ps(dw, _mm512_set1_ps(t->d[at + m]));
            acc[m] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum[m]), acc[m]);
        }
        if (type == SL_Q4_1) {
            __m512 mw = load_scales(sc + 2 * Q_ROWS);
            UNROLL for (uint32_t m = 0; m < mt; m++) acc[m] =
                _mm512_fmadd_ps(mw, _mm512_set1_ps(t->s[at + m]), acc[m]);
        }
    }
    UNROLL for (uint32_t m = 0; m < mt; m++) _mm512_storeu_ps(out + (size_t)Q_ROWS * m, acc[m]);
}

#include "cpu/lanes.h"

#define TABLE_NAME sl_isa_avx512
#define TABLE_ISA  SL_ISA_AVX512
#define TABLE_FLIP 0x80
#include "cpu/table.h"
