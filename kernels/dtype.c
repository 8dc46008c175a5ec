/* Element formats: the table, and IEEE binary16 and bfloat16 conversions. */
#include <sluice/kernels/dtype.h>

#include <sluice/base/err.h>

#include "num.h"

static const struct sl_dtype_row rows[SL_N_DTYPE] = {
#define X(name, text, elems, bytes) {text, elems, bytes},
    SL_DTYPE_TABLE(X)
#undef X
};

const struct sl_dtype_row *sl_dtype_row(enum sl_dtype t)
{
    sl_assert((unsigned)t < SL_N_DTYPE);
    return &rows[t];
}

bool sl_dtype_parse(const char *text, enum sl_dtype *out)
{
    for (unsigned i = 0; i < SL_N_DTYPE; i++) {
        if (strcmp(rows[i].text, text) == 0) {
            *out = (enum sl_dtype)i;
            return true;
        }
    }
    return false;
}

size_t sl_dtype_bytes(enum sl_dtype t, size_t n)
{
    const struct sl_dtype_row *row = sl_dtype_row(t);
    sl_assert(n % row->block_elems == 0);
    return n / row->block_elems * row->block_bytes;
}

float sl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) /* as the hardware does, a NaN comes out quiet */
        return f32_from_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent == 0) {
        float v = (float)mantissa * 0x1p-24f;
        return sign ? -v : v;
    }
    return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t sl_f32_to_f16(float f)
{
    uint32_t u = f32_bits(f);
    uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x3ffu));
    if (u >= 0x477ff000u) /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) { /* subnormal: adding 2^-1 leaves the rounded count of 2^-24 below */
        uint32_t r = f32_bits(f32_from_bits(u) + 0.5f) - f32_bits(0.5f);
        return (uint16_t)(sign | r);
    }
    uint32_t odd = u >> 13 & 1;
    return (uint16_t)(sign | (u - 0x38000000u + 0xfffu + odd) >> 13);
}

float sl_bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

uint16_t sl_f32_to_bf16(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
