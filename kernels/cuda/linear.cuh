/* What the linear kernels' files share. */
#ifndef SLUICE_KERNELS_CUDA_LINEAR_CUH
#define SLUICE_KERNELS_CUDA_LINEAR_CUH

#include "cuda/launch.h"

#include "cuda/dev.cuh"

/* One product, all in device memory but the struct itself. */
struct linear_args {
    const uint8_t *w;
    const void *x; /* the act, or floats */
    const uint32_t *border;
    const sl_tree_node *node;
    const float *bias;
    float *out;
    size_t plane;
    uint32_t n, k, n_tok, x_stride, out_stride;
    bool accumulate;
};

/* y = sum (+ bias) (+ y), in the order of op.h. */
__device__ __forceinline__ void linear_store(const linear_args &a, uint32_t part, uint32_t tok,
                                             uint32_t out, float sum)
{
    float *y = a.out + part * a.plane + (size_t)tok * a.out_stride + out;
    if (a.bias)
        sum = sum + a.bias[out];
    if (a.accumulate)
        sum = sum + *y;
    *y = sum;
}

/* A launch; by format. */
struct linear_call {
    linear_args a;
    cudaStream_t stream;
    uint32_t n_parts, n_slices;
};
cudaError_t linear_f32(const linear_call &l);
cudaError_t linear_f16(const linear_call &l);
cudaError_t linear_bf16(const linear_call &l);
cudaError_t linear_q8_0(const linear_call &l);
cudaError_t linear_q4_0(const linear_call &l);
cudaError_t linear_q4_1(const linear_call &l);

#endif
