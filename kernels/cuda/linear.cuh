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
