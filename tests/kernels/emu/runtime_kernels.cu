/* Kernels for the tests of the emulated runtime. */
#include "cuda/dev.cuh"
#include "runtime_kernels.h"

__global__ void add_to(float *y, const float *x, float a, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        y[i] = __fmaf_rn(a, x[i], y[i]);
}

__global__ void diverge(int *p)
{
    if (threadIdx.x < 7)
        __syncthreads();
    p[threadIdx.x] = 1;
}

/* Tells the other and waits for it. */
__global__ void meet(uint32_t *mine, uint32_t *other, uint32_t value)
{
    if (threadIdx.x)
        return;
    dev_store_release(other, value);
    while (dev_load_acquire(mine) < value) /* the other may be ahead */
        dev_pause();
}

extern "C" {
cudaError_t launch_add(cudaStream_t s, float *y, const float *x, float a, int n)
{
    return KLAUNCH(add_to, dim3((unsigned)(n + 63) / 64), dim3(64), 0, s, y, x, a, n);
}

cudaError_t launch_diverge(cudaStream_t s, int *p)
{
    return KLAUNCH(diverge, dim3(1), dim3(32), 0, s, p);
}

cudaError_t launch_meet(cudaStream_t s, uint32_t *mine, uint32_t *other, uint32_t value)
{
    return KLAUNCH(meet, dim3(1), dim3(32), 0, s, mine, other, value);
}

cudaError_t launch_big(cudaStream_t s, int *p, unsigned threads, size_t shared)
{
    return KLAUNCH(diverge, dim3(1), dim3(threads), shared, s, p);
}

cudaError_t allow_shared(int bytes)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(diverge),
                                cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
}
