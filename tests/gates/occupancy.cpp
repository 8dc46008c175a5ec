/* Blocks per multiprocessor, by NVIDIA's own cuda_occupancy.h of the toolkit. Standard input: lines
 * of architecture (80), threads, registers, static and dynamic shared memory, barriers; standard
 * output: a line each of blocks, warps of the multiprocessor's most, what limits them. Or with
 * --devices: architecture and most shared memory of a block.
 *
 * Devices: CUDA C++ Programming Guide 13.0, table "Technical Specifications per Compute
 * Capability". */
#include <climits>
#include <cstdint> /* before the header, which does not ask for what it needs */
#include <cstdio>
#include <cstring>

#include <cuda_occupancy.h>

namespace
{

/* threads, shared memory in KiB: of a multiprocessor, of a block */
struct device {
    int arch, threads, shared_kib, block_kib;
} const devices[] = {{80, 2048, 164, 163}, {86, 1536, 100, 99},   {89, 1536, 100, 99},
                     {90, 2048, 228, 227}, {100, 2048, 228, 227}, {120, 1536, 100, 99}};

bool find(int arch, cudaOccDeviceProp *p)
{
    for (const device &d : devices) {
        if (d.arch != arch)
            continue;
        p->computeMajor = arch / 10;
        p->computeMinor = arch % 10;
        p->maxThreadsPerBlock = 1024;
        p->maxThreadsPerMultiprocessor = d.threads;
        p->regsPerBlock = p->regsPerMultiprocessor = 65536;
        p->warpSize = 32;
        p->sharedMemPerBlock = 48 << 10;
        p->sharedMemPerMultiprocessor = (size_t)d.shared_kib << 10;
        p->sharedMemPerBlockOptin = (size_t)d.block_kib << 10;
        p->reservedSharedMemPerBlock = 1 << 10;
        p->numSms = 1;
        return true;
    }
    return false;
}

const char *limit(unsigned factors)
{
    return factors & OCC_LIMIT_REGISTERS       ? "registers"
           : factors & OCC_LIMIT_SHARED_MEMORY ? "shared"
           : factors & OCC_LIMIT_WARPS         ? "warps"
           : factors & OCC_LIMIT_BLOCKS        ? "blocks"
                                               : "barriers";
}

} // namespace

int main(int argc, char **argv)
{
    if (argc == 2 && !std::strcmp(argv[1], "--devices")) {
        for (const device &d : devices)
            std::printf("%d %d\n", d.arch, d.block_kib << 10);
        return 0;
    }
    int arch, threads, registers, barriers;
    size_t fixed, dynamic;
    while (std::scanf("%d %d %d %zu %zu %d", &arch, &threads, &registers, &fixed, &dynamic,
                      &barriers) == 6) {
        cudaOccDeviceProp p;
        cudaOccFuncAttributes a;
        cudaOccDeviceState s;
        cudaOccResult r;
        if (!find(arch, &p))
            return 1;
        a.maxThreadsPerBlock = INT_MAX;
        a.numRegs = registers;
        a.sharedSizeBytes = fixed;
        a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        a.maxDynamicSharedSizeBytes = dynamic;
        a.numBlockBarriers = barriers;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, dynamic) !=
            CUDA_OCC_SUCCESS)
            return 1;
        int warps = r.activeBlocksPerMultiprocessor * ((threads + 31) / 32);
        std::printf("%d %d %d %s\n", r.activeBlocksPerMultiprocessor, warps,
                    p.maxThreadsPerMultiprocessor / 32, limit(r.limitingFactors));
    }
    return 0;
}
