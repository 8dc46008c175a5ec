/* Element and block formats of tensors. Block layouts follow the GGUF (ggml) file format: 32
 * elements a block; F16 scales; Q4: low nibbles are elements 0..15, high nibbles 16..31. */
#ifndef SLUICE_KERNELS_DTYPE_H
#define SLUICE_KERNELS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* X(name, text, elements per block, bytes per block). Further formats are added here. */
#define SL_DTYPE_TABLE(X)                                                                          \
    X(F32, "f32", 1, 4)                                                                            \
    X(F16, "f16", 1, 2)                                                                            \
    X(BF16, "bf16", 1, 2)                                                                          \
    X(Q8_0, "q8_0", 32, 34)                                                                        \
    X(Q4_0, "q4_0", 32, 18)                                                                        \
    X(Q4_1, "q4_1", 32, 20)                                                                        \
    X(I8, "int8", 1, 1)

enum sl_dtype {
#define X(name, ...) SL_##name,
    SL_DTYPE_TABLE(X)
#undef X
        SL_N_DTYPE
};

struct sl_dtype_row {
    const char *text;
    uint32_t block_elems;
    uint32_t block_bytes;
};
const struct sl_dtype_row *sl_dtype_row(enum sl_dtype t);
bool sl_dtype_parse(const char *text, enum sl_dtype *out);

/* Bytes of `n` elements; n must be a multiple of the block. */
size_t sl_dtype_bytes(enum sl_dtype t, size_t n);

float sl_f16_to_f32(uint16_t h);
uint16_t sl_f32_to_f16(float f);   /* round to nearest even, subnormals kept */
float sl_bf16_to_f32(uint16_t h);
uint16_t sl_f32_to_bf16(float f);  /* round to nearest even, NaN stays NaN */

/* n elements of `t` (whole blocks) to float32: q4_1 is d*q + m with two roundings. */
void sl_dequantize_row(enum sl_dtype t, const void *src, float *dst, size_t n);
/* float32 to Q8_0, Q4_0, Q4_1, F16, BF16, F32 (round to nearest even): for tests and benchmarks
 * that make their own files. */
void sl_quantize_row(enum sl_dtype t, const float *src, void *dst, size_t n);

#endif
