/* Weights into the linear kernels' layouts (tile.cuh), at load: moves words, whichever rows a call
 * brings, and is bound by the copy to the device. */
#include "cuda/launch.h"

#include "cuda/dev.cuh"
#include "cuda/tile.cuh"

namespace {

constexpr uint32_t THREADS = 128;
constexpr uint32_t GRID_MAX = 1024; /* blocks: some times what fits a device; the rest in rounds */

uint32_t grid_of(size_t n_threads)
{
    size_t n = (n_threads + THREADS - 1) / THREADS;
    return n < GRID_MAX ? (uint32_t)n : GRID_MAX;
}

__device__ __forceinline__ size_t first_thread()
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ size_t thread_step()
{
    return (size_t)gridDim.x * blockDim.x;
}

struct pack_args {
    uint32_t n, k, row, n_rows;
    const uint8_t *src;
    size_t row_bytes;
    uint8_t *data;
};

/* Rows of this call, and zero rows past the weight's end, which come with its last row. */
__device__ __forceinline__ bool takes_row(const pack_args &a, uint32_t row)
{
    uint32_t end = a.row + a.n_rows;
    return row >= a.row && (row < end || end == a.n);
}

__device__ __forceinline__ uint32_t load_word(const uint8_t *p)
{
    const uint16_t *h = reinterpret_cast<const uint16_t *>(p);
    return h[0] | (uint32_t)h[1] << 16;
}

/* Word w of a row's block, 0 outside the weight. */
template <sl_dtype T>
__device__ __forceinline__ uint32_t source_word(const pack_args &a, uint32_t row, uint32_t block,
                                                uint32_t w)
{
    if (row >= a.n || block * tile_block(T) >= a.k)
        return 0;
    const uint8_t *p = a.src + (row - a.row) * a.row_bytes;
    if (T == SL_Q8_0)
        return load_word(p + (size_t)block * 34 + 2 + w * 4);
    if (T == SL_Q4_0)
        return load_word(p + (size_t)block * 18 + 2 + w * 4) ^ 0x88888888u;
    if (T == SL_Q4_1)
        return load_word(p + (size_t)block * 20 + 4 + w * 4);
    uint32_t i = block * 16 + w * 2;
    const uint16_t *h = reinterpret_cast<const uint16_t *>(p) + i;
    return (i < a.k ? h[0] : 0u) | (i + 1 < a.k ? (uint32_t)h[1] << 16 : 0u);
}

template <sl_dtype T>
__device__ __forceinline__ uint16_t source_scale(const pack_args &a, uint32_t row, uint32_t block,
                                                 uint32_t which)
{
    if (row >= a.n || block * 32 >= a.k)
        return 0;
    uint32_t bytes = T == SL_Q8_0 ? 34 : T == SL_Q4_0 ? 18 : 20;
    const uint8_t *p = a.src + (row - a.row) * a.row_bytes + (size_t)block * bytes + which * 2;
    return *reinterpret_cast<const uint16_t *>(p);
}

/* One warp a pair of blocks of 16 rows: lane 4g + t moves what it will load as a fragment. */
template <sl_dtype T> __global__ void pack_tiles(const pack_args a)
{
    uint32_t n_pairs = tile_pairs(T, a.k), tile0 = a.row / TILE_OUT, lane = threadIdx.x % 32;
    uint32_t n_tiles = tile_ceil(a.row + a.n_rows, TILE_OUT) - tile0;
    size_t end = (size_t)n_tiles * n_pairs;
    for (size_t i = first_thread() / 32; i < end; i += thread_step() / 32) {
        uint32_t tile = tile0 + (uint32_t)(i / n_pairs), pair = (uint32_t)(i % n_pairs);
        uint8_t *to = a.data + tile_pair_at(T, n_pairs, tile, pair);
        for (uint32_t half = 0; half < 4; half++) {
            uint32_t block = half / 2, t = lane % 4;
            uint32_t r = lane / 4 + half % 2 * (8 - MUTANT(PACK_ROWS));
            uint32_t row = tile * TILE_OUT + r;
            if (!takes_row(a, row))
                continue;
            for (uint32_t w = t; w < (tile_is_q4(T) ? 4u : 8u); w += 4)
                *reinterpret_cast<uint32_t *>(to + tile_word_at(T, r, block, w)) =
                    source_word<T>(a, row, pair * 2 + block, w);
            if constexpr (tile_is_quant(T))
                if (t < tile_scale_row(T) / 8)
                    *reinterpret_cast<uint16_t *>(to + tile_scale_at(T, r, block, t)) =
                        source_scale<T>(a, row, pair * 2 + block, t);
        }
    }
}

/* A thread four inputs of a row. */
__global__ void pack_f32(const pack_args a)
{
    uint32_t row_end = a.row + a.n_rows, groups = tile_ceil(a.k, 4);
    if (row_end == a.n)
        row_end = tile_ceil(a.n, TILE_OUT_F32) * TILE_OUT_F32;
    size_t end = (size_t)(row_end - a.row) * groups;
    for (size_t i = first_thread(); i < end; i += thread_step()) {
        uint32_t row = a.row + (uint32_t)(i / groups), k0 = (uint32_t)(i % groups) * 4;
        const float *from =
            reinterpret_cast<const float *>(a.src + (row - a.row) * a.row_bytes) + k0;
        float v[4];
        for (uint32_t j = 0; j < 4; j++)
            v[j] = row < a.n && k0 + j < a.k + MUTANT(PACK_TAIL) ? from[j] : 0.0f;
        *reinterpret_cast<float4 *>(a.data + tile_f32_at(a.k, row, k0)) =
            make_float4(v[0], v[1], v[2], v[3]);
    }
}

template <sl_dtype T> cudaError_t launch_pack(cudaStream_t s, const pack_args &a)
{
    size_t pairs = (size_t)(tile_ceil(a.row + a.n_rows, TILE_OUT) - a.row / TILE_OUT) *
                   tile_pairs(T, a.k);
    return KLAUNCH(pack_tiles<T>, dim3(grid_of(pairs * 32)), dim3(THREADS), 0, s, a);
}

} // namespace

size_t cuda_pack_bytes(enum sl_dtype dtype, uint32_t n, uint32_t k)
{
    if (dtype == SL_F32)
        return (size_t)tile_ceil(n, TILE_OUT_F32) * TILE_OUT_F32 * tile_ceil(k, 4) * 16;
    return tile_pair_at(dtype, tile_pairs(dtype, k), tile_ceil(n, TILE_OUT), 0);
}

cudaError_t cuda_pack(cudaStream_t s, enum sl_dtype dtype, uint32_t n, uint32_t k, uint32_t row,
                      uint32_t n_rows, const void *src, size_t row_bytes, void *data)
{
    pack_args a = {n, k, row, n_rows, (const uint8_t *)src, row_bytes, (uint8_t *)data};
    if (n_rows == 0)
        return cudaSuccess;
    switch (dtype) {
    case SL_F32:
        return KLAUNCH(pack_f32, dim3(grid_of((size_t)(n_rows + TILE_OUT_F32) * tile_ceil(k, 4))),
                       dim3(THREADS), 0, s, a);
    case SL_F16:
        return launch_pack<SL_F16>(s, a);
    case SL_BF16:
        return launch_pack<SL_BF16>(s, a);
    case SL_Q8_0:
        return launch_pack<SL_Q8_0>(s, a);
    case SL_Q4_0:
        return launch_pack<SL_Q4_0>(s, a);
    case SL_Q4_1:
        return launch_pack<SL_Q4_1>(s, a);
    default:
        return cudaErrorInvalidValue;
    }
}
