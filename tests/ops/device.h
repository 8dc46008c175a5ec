/* The device's kernels (cuda/launch.h) without a runtime: launches run at once on the caller's
 * thread, host memory is device memory. What the kernels must give is in every case the scalar
 * backend's bits, under any order of warps. */
#ifndef TESTS_OPS_DEVICE_H
#define TESTS_OPS_DEVICE_H

#include "ops.h"

#include "cuda/launch.h"
#include "emu/emu.h"

static struct emu_options device_options = {.seed = 1, .n_threads = 1};
static uint32_t device_launches;
static char device_report[4096]; /* of the last launch that failed */
static bool device_quiet;
static int device_shared_max = 99 << 10;

void dev_count_launch(const char *name);
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem);

void dev_count_launch(const char *name)
{
    (void)name;
    device_launches++;
}

cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem)
{
    const struct emu_launch l = {
        name, run, (void *)(uintptr_t)args, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
        smem};
    (void)stream;
    (void)bytes;
    if (!emu_run(&l, &device_options, device_report, sizeof device_report)) {
        if (!device_quiet)
            print_error("seed %llu: %s\n", (unsigned long long)device_options.seed, device_report);
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

/* The runtime's calls that launching needs; parentheses keep emu_sites.h out. */
void emu_at(const char *file, int line);

void emu_at(const char *file, int line)
{
    (void)file;
    (void)line;
}

cudaError_t(cudaGetDevice)(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t(cudaDeviceGetAttribute)(int *value, enum cudaDeviceAttr attr, int device)
{
    *value = attr == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device_shared_max : 1;
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t(cudaFuncSetAttribute)(const void *func, enum cudaFuncAttribute attr, int value)
{
    bool fits =
        func && attr == cudaFuncAttributeMaxDynamicSharedMemorySize && value <= device_shared_max;
    return fits ? cudaSuccess : cudaErrorInvalidValue;
}

/* Odd seeds complete copies at once, even ones late. What nothing orders does not depend on the order
 * that was drawn: one of each. */
#ifdef DEVICE_WATCHED
#define SEEDS_OF(n) ((n) < 2 ? (n) : 2)
#else
#define SEEDS_OF(n) (n)
#endif
#define EACH_SEED(n)                                                                               \
    for (device_options.seed = 1; device_options.seed <= SEEDS_OF(n); device_options.seed++)

#define assert_launched(call) assert_int_equal((call), cudaSuccess)

#endif
