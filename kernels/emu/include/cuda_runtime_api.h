/* The part of the CUDA runtime API that the emulator has, for builds without the toolkit: same
 * names, values and meaning (CUDA Runtime API 13.0). */
#ifndef SLUICE_KERNELS_EMU_CUDA_RUNTIME_API_H
#define SLUICE_KERNELS_EMU_CUDA_RUNTIME_API_H

#include <stddef.h>

#ifdef __cplusplus
struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int a = 1, unsigned int b = 1, unsigned int c = 1) : x(a), y(b), z(c) {}
};
extern "C" {
#else
struct dim3 {
    unsigned int x, y, z;
};
typedef struct dim3 dim3;
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
} cudaError_t;

typedef struct CUstream_st *cudaStream_t;

#ifdef __cplusplus
}
#endif
#endif
