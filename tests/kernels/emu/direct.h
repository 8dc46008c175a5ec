/* Launches that run at once, on the caller's thread and without the runtime: for tests of the
 * emulator itself. Include in one file of a test. */
#ifndef SLUICE_TESTS_KERNELS_EMU_DIRECT_H
#define SLUICE_TESTS_KERNELS_EMU_DIRECT_H

#include "cuda/dev.cuh"

/* cmocka's headers know no C++ */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

static emu_options direct_options;
static char direct_report[2048];

extern "C" void dev_count_launch(const char *name)
{
    (void)name;
}

extern "C" cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                                   const void *args, size_t bytes, dim3 grid, dim3 block,
                                   size_t smem)
{
    (void)stream;
    (void)bytes;
    emu_launch l = {
        name, run, const_cast<void *>(args), {grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
        smem};
    direct_report[0] = 0;
    return emu_run(&l, &direct_options, direct_report, sizeof direct_report)
               ? cudaSuccess
               : cudaErrorLaunchFailure;
}

#endif
