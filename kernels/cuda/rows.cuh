/* What kernels over rows share: four elements a thread, a norm's scale, silu. */
#ifndef SLUICE_KERNELS_CUDA_ROWS_CUH
#define SLUICE_KERNELS_CUDA_ROWS_CUH

#include "cuda/math.cuh"

enum { BLOCK = 256, QUAD = 4 };

__host__ __device__ static inline bool is_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

__device__ static inline float4 load_quad(const float *p, uint32_t n)
{
    if (n == QUAD && is_aligned(p))
        return *reinterpret_cast<const float4 *>(p);
    float4 v = make_float4(p[0], 0.0f, 0.0f, 0.0f);
    v.y = n > 1 ? p[1] : 0.0f;
    v.z = n > 2 ? p[2] : 0.0f;
    v.w = n > 3 ? p[3] : 0.0f;
    return v;
}

__device__ static inline void store_quad(float *p, uint32_t n, float4 v)
{
    if (n == QUAD && is_aligned(p)) {
        *reinterpret_cast<float4 *>(p) = v;
        return;
    }
    p[0] = v.x;
    if (n > 1)
        p[1] = v.y;
    if (n > 2)
        p[2] = v.z;
    if (n > 3)
        p[3] = v.w;
}

enum { NORM_TILE = 4096 };

/* Lane's own chain over [first, n) of the tile, whose groups of 16 lie one behind the other. */
__device__ static inline float square_chain(const float *tile, uint32_t lane, uint32_t n, float acc)
{
    uint32_t i = lane;
    UNROLL_BY(8)
    for (; i < n; i += 16)
        acc = __fmaf_rn(tile[i], tile[i], acc);
    return acc;
}

/* 1 / sqrt(mean of squares + eps) of a row, to all BLOCK threads of the block that come together. */
__device__ static inline float norm_scale(const float *row, uint32_t dim, float eps)
{
    SHARED_ARRAY(float, tile, NORM_TILE);
    SHARED_ARRAY(float, shared_r, 1);
    float acc = 0.0f;
    for (uint32_t first = 0; first < dim; first += NORM_TILE) {
        uint32_t n = min(dim - first, (uint32_t)NORM_TILE);
        for (uint32_t i = threadIdx.x * QUAD; i < n; i += BLOCK * QUAD)
            store_quad(tile + i, QUAD, load_quad(row + first + i, min(n - i, (uint32_t)QUAD)));
        UNLESS(NORM_FILL_BARRIER) __syncthreads();
        if (threadIdx.x < 16)
            acc = square_chain(tile, threadIdx.x, n - MUTANT(NORM_TAIL), acc);
        UNLESS(NORM_REUSE_BARRIER) __syncthreads();
    }
    if (threadIdx.x < 32) {
        float ss = math_fold_sum(acc);
        if (threadIdx.x == 0)
            *shared_r = 1.0f / __fsqrt_rn(ss / (float)dim + eps);
    }
    UNLESS(NORM_SCALE_BARRIER) __syncthreads();
    return *shared_r;
}

__device__ static inline float silu_times(float g, float u)
{
    return g / (1.0f + math_exp(-g)) * u;
}

#endif
