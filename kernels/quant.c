/* Rows in the file's formats to float32 and back. Block layouts as in the GGUF format description
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and its block types: an F16 scale,
 * for q4_1 an F16 minimum, then the quants. */
#include <sluice/kernels/dtype.h>

#include <sluice/base/err.h>

#include <math.h>

#include "num.h"

static void store_u16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}

static void dequantize_block(enum sl_dtype t, const uint8_t *b, float *dst)
{
    float d = sl_f16_to_f32(load_u16(b));
    if (t == SL_Q8_0) {
        for (int i = 0; i < SL_QBLOCK; i++)
            dst[i] = d * (float)(int8_t)b[2 + i];
        return;
    }
    float m = t == SL_Q4_1 ? sl_f16_to_f32(load_u16(b + 2)) : 0.0f;
    const uint8_t *q = b + (t == SL_Q4_1 ? 4 : 2);
    for (int i = 0; i < SL_QBLOCK; i++) {
        int nibble = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
        dst[i] = t == SL_Q4_1 ? d * (float)nibble + m : d * (float)(nibble - 8);
    }
}

void sl_dequantize_row(enum sl_dtype t, const void *src, float *dst, size_t n)
{
    const struct sl_dtype_row *row = sl_dtype_row(t);
    const uint8_t *p = src;
    sl_assert(n % row->block_elems == 0);
    switch (t) {
    case SL_F32:
        memcpy(dst, src, n * sizeof *dst);
        return;
    case SL_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = sl_f16_to_f32(load_u16(p + 2 * i));
        return;
    case SL_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = sl_bf16_to_f32(load_u16(p + 2 * i));
        return;
    default:
        sl_assert(row->block_elems == SL_QBLOCK);
        for (size_t i = 0; i < n; i += SL_QBLOCK, p += row->block_bytes)
            dequantize_block(t, p, dst + i);
    }
}

static uint8_t nibble_of(float x, int offset)
{
    long q = lrintf(x) + offset;
    return (uint8_t)(q < 0 ? 0 : q > 15 ? 15 : q);
}

static void quantize_q8_0(const float *x, uint8_t *b)
{
    float amax = 0.0f;
    for (int i = 0; i < SL_QBLOCK; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float d = amax / 127.0f;
    float id = d >= SL_TINY_D ? 1.0f / d : 0.0f;
    store_u16(b, sl_f32_to_f16(d));
    for (int i = 0; i < SL_QBLOCK; i++)
        b[2 + i] = (uint8_t)(int8_t)lrintf(x[i] * id);
}

/* q4_0 maps the value of largest magnitude to -8, q4_1 the range [min, max] to 0..15. */
static void quantize_q4(enum sl_dtype t, const float *x, uint8_t *b)
{
    float lo = x[0], hi = x[0];
    for (int i = 1; i < SL_QBLOCK; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    bool affine = t == SL_Q4_1;
    float d = affine ? (hi - lo) / 15.0f : (-lo > hi ? lo : hi) / -8.0f;
    float id = fabsf(d) >= SL_TINY_D ? 1.0f / d : 0.0f;
    float base = affine ? lo : 0.0f;
    int offset = affine ? 0 : 8;
    store_u16(b, sl_f32_to_f16(d));
    if (affine)
        store_u16(b + 2, sl_f32_to_f16(lo));
    uint8_t *q = b + (affine ? 4 : 2);
    for (int i = 0; i < 16; i++)
        q[i] = (uint8_t)(nibble_of((x[i] - base) * id, offset) |
                         nibble_of((x[i + 16] - base) * id, offset) << 4);
}

void sl_quantize_row(enum sl_dtype t, const float *src, void *dst, size_t n)
{
    const struct sl_dtype_row *row = sl_dtype_row(t);
    uint8_t *p = dst;
    sl_assert(n % row->block_elems == 0);
    switch (t) {
    case SL_F32:
        memcpy(dst, src, n * sizeof *src);
        return;
    case SL_F16:
        for (size_t i = 0; i < n; i++)
            store_u16(p + 2 * i, sl_f32_to_f16(src[i]));
        return;
    case SL_BF16:
        for (size_t i = 0; i < n; i++)
            store_u16(p + 2 * i, sl_f32_to_bf16(src[i]));
        return;
    default:
        sl_assert(row->block_elems == SL_QBLOCK);
        for (size_t i = 0; i < n; i += SL_QBLOCK, p += row->block_bytes) {
            if (t == SL_Q8_0)
                quantize_q8_0(src + i, p);
            else
                quantize_q4(t, src + i, p);
        }
    }
}
