/* The device language of every kernel here: one source for nvcc and for the host's compiler.
 *
 * Kernels are written in CUDA C++ and this file's few extras; nothing else is allowed in them: no
 * cooperative groups, no libraries, no `extern __shared__`, no <<<>>>, no static __shared__. What
 * needs PTX is one inline function here, with its twin in the emulator. Fragment layouts: PTX ISA
 * 9.0, section 9.7.15.5 (mma.m16n8k16, mma.m16n8k32) and 9.7.15.5.16 (ldmatrix).
 *
 * Arithmetic of exact kernels is spelled with __fmaf_rn and plain operators; neither compiler
 * contracts. A thread's asynchronous copies are seen by the others of its block only after wait and
 * barrier. */
#ifndef SLUICE_KERNELS_CUDA_DEV_CUH
#define SLUICE_KERNELS_CUDA_DEV_CUH

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "cuda/mutant.h"

#define FULL_WARP 0xffffffffu

#ifdef __CUDACC__

#include <cuda_runtime.h>

/* In front of a loop: all of it, or n rounds at a time. */
#define UNROLL         _Pragma("unroll")
#define UNROLL_TEXT(x) _Pragma(#x)
#define UNROLL_BY(n)   UNROLL_TEXT(unroll n)

/* T *name: dynamic shared memory of the launch, aligned to 128 bytes. */
#define DYN_SHARED(T, name)                                                                        \
    extern __shared__ __align__(128) unsigned char dev_dynamic_shared[];                           \
    T *name = reinterpret_cast<T *>(dev_dynamic_shared)
/* T name[n] in shared memory; n is a constant. */
#define SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]

/* 16 bytes from global to shared memory; bytes beyond `n` (0 to 16) are zeroed. */
__device__ __forceinline__ void dev_copy16(void *to, const void *from, uint32_t n = 16)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(n)
                 : "memory");
}
__device__ __forceinline__ void dev_copy4(void *to, const void *from, uint32_t n = 4)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(at), "l"(from), "r"(n)
                 : "memory");
}
/* The same where `wanted`, without a branch; _near keeps the bytes in L1: for what other warps of
 * the multiprocessor read as well. */
__device__ __forceinline__ void dev_copy16_if(bool wanted, void *to, const void *from,
                                              uint32_t n = 16)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0;\n"
                 "@p cp.async.cg.shared.global [%0], [%1], 16, %2;}\n" ::"r"(at),
                 "l"(from), "r"(n), "r"((uint32_t)wanted)
                 : "memory");
}
__device__ __forceinline__ void dev_copy16_near_if(bool wanted, void *to, const void *from,
                                                   uint32_t n = 16)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0;\n"
                 "@p cp.async.ca.shared.global [%0], [%1], 16, %2;}\n" ::"r"(at),
                 "l"(from), "r"(n), "r"((uint32_t)wanted)
                 : "memory");
}
__device__ __forceinline__ void dev_copy_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/* Until at most N of the thread's groups are on their way. */
template <int N> __device__ __forceinline__ void dev_copy_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

/* A barrier of `n` of the block's threads, whole warps; id 1 to 15. */
__device__ __forceinline__ void dev_barrier(uint32_t id, uint32_t n)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(n) : "memory");
}

/* Four 8x8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8. */
__device__ __forceinline__ void dev_ldmatrix_x4(uint32_t r[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void dev_ldmatrix_x2(uint32_t r[2], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void dev_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* d[16 x 8] += a[16 x 16] * b[16 x 8], float32 sums. */
__device__ __forceinline__ void dev_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void dev_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* d[16 x 8] += a[16 x 32] * b[32 x 8] in int32. */
__device__ __forceinline__ void dev_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* d[16 x 8] = from + a[16 x 32] * b[32 x 8] in int32. */
__device__ __forceinline__ void dev_mma_s8_from(int32_t d[4], const uint32_t a[4],
                                                const uint32_t b[2], int32_t from)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(from));
}

/* Products of several tiles, one after the other; the emulator meets once for all of them. Columns
 * (8 per n) from `cols` on are undefined.
 * d[u][m][n] = from + a[u][m] * b[u][n] */
template <int U, int M, int N>
__device__ __forceinline__ void dev_mma_s8_tiles(int32_t (&d)[U][M][N][4],
                                                 const uint32_t (&a)[U][M][4],
                                                 const uint32_t (&b)[U][N][2], int32_t from,
                                                 uint32_t cols)
{
    (void)cols;
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int m = 0; m < M; m++)
                dev_mma_s8_from(d[u][m][n], a[u][m], b[u][n], from);
}
/* d[m][n] += a[m] * b[n]; elements of bf16, else f16 */
template <bool BF16, int M, int N>
__device__ __forceinline__ void dev_mma_16_tiles(float (&d)[M][N][4], const uint32_t (&a)[M][4],
                                                 const uint32_t (&b)[N][2], uint32_t cols)
{
    (void)cols;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < M; m++)
            if (BF16)
                dev_mma_bf16(d[m][n], a[m], b[n]);
            else
                dev_mma_f16(d[m][n], a[m], b[n]);
}

/* Read-only global memory. */
__device__ __forceinline__ uint4 dev_load16(const void *p)
{
    return __ldg(reinterpret_cast<const uint4 *>(p));
}
/* A flag that another device or process writes. */
__device__ __forceinline__ uint32_t dev_load_acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ void dev_store_release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void dev_pause()
{
    __nanosleep(20);
}

__device__ __forceinline__ float dev_from_f16(uint16_t h)
{
    float f;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(f) : "h"(h));
    return f;
}
__device__ __forceinline__ uint16_t dev_to_f16(float f)
{
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ uint16_t dev_to_bf16(float f)
{
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(h) : "f"(f));
    return h;
}

/* Over all lanes, each of which gets the result; the order is that of five exchanges by xor, 16 to
 * 1, so a float's sum has the same bits in every lane. */
__device__ __forceinline__ float dev_warp_sum(float v)
{
#pragma unroll
    for (int x = 16; x; x /= 2)
        v = v + __shfl_xor_sync(FULL_WARP, v, x);
    return v;
}
__device__ __forceinline__ int32_t dev_warp_sum(int32_t v)
{
#pragma unroll
    for (int x = 16; x; x /= 2)
        v = v + __shfl_xor_sync(FULL_WARP, v, x);
    return v;
}
__device__ __forceinline__ float dev_warp_max(float v)
{
#pragma unroll
    for (int x = 16; x; x /= 2) {
        float o = __shfl_xor_sync(FULL_WARP, v, x);
        v = o > v ? o : v;
    }
    return v;
}

/* [p, p + n) of shared memory is about to be read, and dropped where nobody has written it: tells the
 * emulator's detector. */
#define dev_unwritten_ok(p, n) ((void)0)

#define KLAUNCH_AS(name, kernel, grid, block, smem, stream, ...)                                   \
    (dev_count_launch(name), kernel<<<grid, block, smem, stream>>>(__VA_ARGS__), cudaGetLastError())

#else /* the host's compiler */

#include "emu/device.h"
#include "emu/warp_ops.h"

#define UNROLL
#define UNROLL_BY(n)

#define DYN_SHARED(T, name) T *name = reinterpret_cast<T *>(emu_shared_dynamic())
#define SHARED_ARRAY(T, name, n)                                                                   \
    static const char name##_key = 0;                                                              \
    T *name = reinterpret_cast<T *>(emu_shared_static(&name##_key, sizeof(T) * (n)))
#define KLAUNCH_AS(name, kernel, grid, block, smem, stream, ...)                                   \
    (dev_count_launch(name), emu_at(__FILE__, __LINE__),                                           \
     emu_launch_on(stream, name, kernel, grid, block, smem, ##__VA_ARGS__))

#endif

/* KLAUNCH(kernel, grid, block, shared bytes, stream, arguments...): a cudaError_t. Counted by the
 * kernel's name; _AS gives templates one. */
#define KLAUNCH(kernel, grid, block, smem, stream, ...)                                            \
    KLAUNCH_AS(#kernel, kernel, grid, block, smem, stream, ##__VA_ARGS__)

/* The dynamic shared memory that a block may have on the current device, in bytes. */
static inline cudaError_t dev_shared_max(size_t *bytes)
{
    int device = 0, value = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *bytes = (size_t)value;
    return e;
}
/* Before a launch that may want more than the 48 KiB every kernel has. */
template <class K> static inline cudaError_t dev_allow_shared(K *kernel, size_t bytes)
{
    if (bytes <= (size_t)48 << 10)
        return cudaSuccess;
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

__device__ __forceinline__ float dev_from_bf16(uint16_t h)
{
    return __uint_as_float((unsigned)h << 16);
}

/* For `ctl ps`: how often each kernel was launched. Thread-safe; `name` is a literal. */
extern "C" void dev_count_launch(const char *name);

#endif
