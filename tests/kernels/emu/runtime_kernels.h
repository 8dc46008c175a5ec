/* Kernels for the tests of the emulated runtime, as C functions. */
#ifndef SLUICE_TESTS_EMU_RUNTIME_KERNELS_H
#define SLUICE_TESTS_EMU_RUNTIME_KERNELS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y += a * x */
cudaError_t launch_add(cudaStream_t s, float *y, const float *x, float a, int n);
/* Breaks a rule of barriers. */
cudaError_t launch_diverge(cudaStream_t s, int *p);
/* Ends once the other has been launched with (other, mine). */
cudaError_t launch_meet(cudaStream_t s, uint32_t *mine, uint32_t *other, uint32_t value);
/* One block of so many threads and bytes of shared memory; not to be run. */
cudaError_t launch_big(cudaStream_t s, int *p, unsigned threads, size_t shared);
cudaError_t allow_shared(int bytes);

#ifdef __cplusplus
}
#endif
#endif
