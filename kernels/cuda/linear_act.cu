/* Activations into the form that weights multiply (tile.cuh): alone, or on the way out of a norm or
 * a silu, which saves a launch and a reading. Four elements a thread, so that 8 lanes hold a block
 * of 32; the arithmetic is that of num.h. Bound by memory: 4 bytes an element in, about 1 or 2 out,
 * but for a norm's chain (rows.cu). */
#include "cuda/launch.h"

#include "cuda/rows.cuh"
#include "cuda/tile.cuh"
#include "num.h"

namespace {

constexpr uint32_t GRID_MAX = 1024; /* blocks: some times what fits a device; the rest in rounds */

__device__ __forceinline__ float larger(float a, float b)
{
    return a > b ? a : b;
}

/* Four elements of a block as bytes; *sum of them is the lane's. */
__device__ __forceinline__ uint32_t round_bytes(const float v[4], float id, int32_t *sum)
{
    uint32_t word = 0;
    *sum = 0;
    UNROLL
    for (int j = 0; j < 4; j++) {
        int32_t q = __float2int_rn(v[j] * id);
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        *sum += q;
        word |= ((uint32_t)q & 255) << 8 * j;
    }
    return word;
}

/* Elements [i, i + 4) of row `tok`, zeros past its end. Warps come whole; a lane beyond the last
 * pair of blocks stores nothing. */
__device__ __forceinline__ void store_int8(uint8_t *act, uint32_t n_pairs, uint32_t tok, uint32_t i,
                                           const float v[4])
{
    float amax = 0.0f, poison = 0.0f;
    UNROLL
    for (int j = 0; j < 4; j++) {
        amax = larger(fabsf(v[j]), amax);
        poison += v[j] * 0.0f; /* NaN exactly for NaN and infinity */
    }
    UNROLL
    for (int m = MUTANT(QUANT_BLOCK) ? 2 : 4; m; m /= 2) {
        amax = larger(amax, __shfl_xor_sync(FULL_WARP, amax, m));
        poison += __shfl_xor_sync(FULL_WARP, poison, m);
    }
    bool bad = poison != 0.0f;
    float d = bad ? MATH_NAN : amax / 127.0f, id = 0.0f;
    if (d < SL_TINY_D)
        d = 0.0f;
    else if (!bad)
        id = 1.0f / d;
    int32_t sum = 0;
    uint32_t word = bad ? 0 : round_bytes(v, id, &sum);
    UNROLL
    for (int m = 4; m; m /= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, m);
    uint32_t block = i / 32, lane = i % 32 / 4;
    if (block >= 2 * n_pairs)
        return;
    uint8_t *to = act + tile_act_pair_at(SL_Q8_0, n_pairs, tok / TILE_TOK, block / 2);
    *reinterpret_cast<uint32_t *>(to + tile_act_word_at(tok, block % 2, lane)) = word;
    if (lane < 2)
        *reinterpret_cast<float *>(to + tile_act_scale_at(tok, block % 2, lane)) =
            lane ? d * (float)sum : d;
}

template <sl_dtype T>
__device__ __forceinline__ void store_halves(uint8_t *act, uint32_t n_pairs, uint32_t tok,
                                             uint32_t i, const float v[4])
{
    uint32_t block = i / 16, w = i % 16 / 2;
    if (block >= 2 * n_pairs)
        return;
    uint8_t *to = act + tile_act_pair_at(T, n_pairs, tok / TILE_TOK, block / 2);
    UNROLL
    for (uint32_t j = 0; j < 2; j++) {
        uint32_t lo = T == SL_F16 ? dev_to_f16(v[2 * j]) : dev_to_bf16(v[2 * j]);
        uint32_t hi = T == SL_F16 ? dev_to_f16(v[2 * j + 1]) : dev_to_bf16(v[2 * j + 1]);
        *reinterpret_cast<uint32_t *>(to + tile_act_word_at(tok, block % 2, w + j)) = lo | hi << 16;
    }
}

/* T: of the weights; SL_Q8_0 stands for all block formats. */
template <sl_dtype T>
__device__ __forceinline__ void store_act(uint8_t *act, uint32_t n_pairs, uint32_t tok, uint32_t i,
                                          float4 x)
{
    const float v[4] = {x.x, x.y, x.z, x.w};
    if (tile_is_quant(T))
        store_int8(act, n_pairs, tok, i, v);
    else
        store_halves<T>(act, n_pairs, tok, i, v);
}

struct act_args {
    const float *x, *w;
    float *out;
    uint32_t x_stride, n_tok, k;
    float eps;
    uint8_t *act;
};

enum source { PLAIN, SILU };

__device__ __forceinline__ float4 load_some(const float *p, uint32_t i, uint32_t k)
{
    return i < k ? load_quad(p + i, min(k - i, (uint32_t)QUAD)) : make_float4(0, 0, 0, 0);
}

/* A warp 128 elements of a row. SILU: of [gate, up], also stored as floats. */
template <sl_dtype T, source S> __global__ void __launch_bounds__(BLOCK) fill_act(const act_args a)
{
    uint32_t n_pairs = tile_pairs(T, a.k), groups = tile_ceil(n_pairs * 2 * tile_block(T), 128);
    size_t first = (size_t)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32;
    size_t step = (size_t)gridDim.x * (BLOCK / 32), end = (size_t)a.n_tok * groups;
    for (size_t at = first; at < end; at += step) {
        uint32_t tok = (uint32_t)(at / groups);
        uint32_t i = (uint32_t)(at % groups) * 128 + threadIdx.x % 32 * 4;
        const float *row = a.x + (size_t)tok * a.x_stride;
        float4 v = load_some(row, i, a.k + MUTANT(ROUND_TAIL));
        if (S == SILU) {
            float4 u = load_some(row + a.k - MUTANT(SILU_ACT_UP), i, a.k);
            v = make_float4(silu_times(v.x, u.x), silu_times(v.y, u.y), silu_times(v.z, u.z),
                            silu_times(v.w, u.w));
            if (i < a.k)
                store_quad(a.out + (size_t)tok * a.k + i, min(a.k - i, (uint32_t)QUAD), v);
        }
        store_act<T>(a.act, n_pairs, tok, i, v);
    }
}

/* A block a row. */
template <sl_dtype T> __global__ void __launch_bounds__(BLOCK) norm_act(const act_args a)
{
    uint32_t n_pairs = tile_pairs(T, a.k), end = n_pairs * 2 * tile_block(T), tok = blockIdx.x;
    const float *row = a.x + (size_t)tok * a.k;
    float r = norm_scale(row, a.k, a.eps);
    for (uint32_t base = threadIdx.x / 32 * 128; base < end; base += BLOCK * QUAD) {
        uint32_t i = base + threadIdx.x % 32 * QUAD;
        float4 v = load_some(row, i, a.k), w = load_some(a.w, i, a.k);
        v = make_float4((v.x * r) * w.x, (v.y * r) * w.y, (v.z * r) * w.z, (v.w * r) * w.w);
        if (i < a.k)
            store_quad(a.out + (size_t)tok * a.k + i, min(a.k - i, (uint32_t)QUAD), v);
        else
            v = make_float4(0, 0, 0, 0); /* r may be NaN */
        store_act<T>(a.act, n_pairs, tok + MUTANT(NORM_ACT_ROW), i, v);
    }
}

template <source S> cudaError_t fill(cudaStream_t s, enum sl_dtype dtype, const act_args &a)
{
    if (a.n_tok == 0)
        return cudaSuccess;
    size_t elements = (size_t)tile_pairs(dtype, a.k) * 2 * tile_block(dtype);
    size_t warps = a.n_tok * ((elements + 127) / 128), n = (warps + BLOCK / 32 - 1) / (BLOCK / 32);
    dim3 grid(n < GRID_MAX ? (uint32_t)n : GRID_MAX);
    const char *name = S == SILU ? "silu_quantize" : "quantize";
    auto kernel = fill_act<SL_Q8_0, S>;
    if (dtype == SL_F16)
        kernel = fill_act<SL_F16, S>;
    else if (dtype == SL_BF16)
        kernel = fill_act<SL_BF16, S>;
    else if (!tile_is_quant(dtype))
        return cudaErrorInvalidValue;
    return KLAUNCH_AS(name, kernel, grid, dim3(BLOCK), 0, s, a);
}

} // namespace

size_t cuda_act_bytes(enum sl_dtype dtype, uint32_t n_tok, uint32_t k)
{
    if (dtype == SL_F32)
        return 0;
    return tile_act_pair_at(dtype, tile_pairs(dtype, k), tile_ceil(n_tok, TILE_TOK), 0);
}

cudaError_t cuda_quantize(cudaStream_t s, enum sl_dtype dtype, const float *x, uint32_t x_stride,
                          uint32_t n_tok, uint32_t k, void *act)
{
    act_args a = {x, nullptr, nullptr, x_stride, n_tok, k, 0.0f, static_cast<uint8_t *>(act)};
    return fill<PLAIN>(s, dtype, a);
}

cudaError_t cuda_silu_quantize(cudaStream_t s, enum sl_dtype dtype, const float *gu, uint32_t n_tok,
                               uint32_t dim, float *out, void *act)
{
    act_args a = {gu, nullptr, out, 2 * dim, n_tok, dim, 0.0f, static_cast<uint8_t *>(act)};
    return fill<SILU>(s, dtype, a);
}

cudaError_t cuda_norm_quantize(cudaStream_t s, enum sl_dtype dtype, const float *x, const float *w,
                               float eps, uint32_t n_tok, uint32_t dim, float *out, void *act)
{
    act_args a = {x, w, out, dim, n_tok, dim, eps, static_cast<uint8_t *>(act)};
    if (n_tok == 0)
        return cudaSuccess;
    auto kernel = norm_act<SL_Q8_0>;
    if (dtype == SL_F16)
        kernel = norm_act<SL_F16>;
    else if (dtype == SL_BF16)
        kernel = norm_act<SL_BF16>;
    else if (!tile_is_quant(dtype))
        return cudaErrorInvalidValue;
    return KLAUNCH_AS("norm_quantize", kernel, dim3(n_tok), dim3(BLOCK), 0, s, a);
}
