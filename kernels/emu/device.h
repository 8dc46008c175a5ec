/* CUDA C++ as the host's compiler sees it: the built-in names of the language, on top of emu.h.
 * Included by cuda/dev.cuh only. Functions of one warp are collectives of named kinds; arithmetic
 * is the host's in the same order, so that exact kernels give a device's bits. */
#ifndef SLUICE_KERNELS_EMU_DEVICE_H
#define SLUICE_KERNELS_EMU_DEVICE_H

#include <math.h>
#include <string.h>

#include "emu/emu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)   __attribute__((aligned(n)))
#define __restrict__   __restrict
#define EMU_HERE       (emu_site{__FILE__, __LINE__})

#define threadIdx (emu_where()->thread)
#define blockIdx  (emu_where()->block)
#define blockDim  (emu_where()->block_dim)
#define gridDim   (emu_where()->grid_dim)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

#define __syncthreads() emu_barrier(EMU_HERE)
#define __syncwarp(...) emu_sync_warp(emu_mask(__VA_ARGS__), EMU_HERE)
static inline uint32_t emu_mask(uint32_t mask = 0xffffffffu) { return mask; }
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_block()  __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_system() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* ---- shuffles and votes ---- */

extern "C" emu_collective_fn emu_do_shuffle, emu_do_ballot;

struct emu_shuffle {
    uint64_t in, out;
    int lane; /* whose value */
};

template <class T>
static inline T emu_shuffle_from(uint32_t mask, T v, int lane, emu_site at)
{
    static_assert(sizeof(T) <= 8, "a register or two");
    emu_shuffle s = {0, 0, lane};
    memcpy(&s.in, &v, sizeof v);
    emu_collective("shfl", mask, emu_do_shuffle, &s, at);
    memcpy(&v, &s.out, sizeof v);
    return v;
}
static inline int emu_lane_id()
{
    const emu_index *i = emu_where();
    return (int)((i->thread.x + i->block_dim.x * (i->thread.y + i->block_dim.y * i->thread.z)) % 32);
}
#define __shfl_sync(mask, v, lane) emu_shuffle_from(mask, v, (int)(lane) & 31, EMU_HERE)
#define __shfl_xor_sync(mask, v, x) emu_shuffle_from(mask, v, emu_lane_id() ^ (int)(x), EMU_HERE)
#define __shfl_down_sync(mask, v, n)                                                               \
    emu_shuffle_from(mask, v, emu_lane_id() + (int)(n) < 32 ? emu_lane_id() + (int)(n)             \
                                                            : emu_lane_id(), EMU_HERE)
#define __shfl_up_sync(mask, v, n)                                                                 \
    emu_shuffle_from(mask, v, emu_lane_id() >= (int)(n) ? emu_lane_id() - (int)(n)                 \
                                                        : emu_lane_id(), EMU_HERE)

struct emu_vote {
    uint32_t in, out;
};
static inline uint32_t emu_ballot(uint32_t mask, bool v, emu_site at)
{
    emu_vote s = {v, 0};
    emu_collective("vote", mask, emu_do_ballot, &s, at);
    return s.out;
}
#define __ballot_sync(mask, v) emu_ballot(mask, (v) != 0, EMU_HERE)
#define __any_sync(mask, v)    (emu_ballot(mask, (v) != 0, EMU_HERE) != 0)
#define __all_sync(mask, v)    (emu_ballot(mask, (v) != 0, EMU_HERE) == (uint32_t)(mask))

/* ---- arithmetic ---- */

static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline int __float2int_rn(float f) { return (int)rintf(f); }
static inline float __int2float_rn(int i) { return (float)i; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

/* ---- atomics ---- */

template <class T, class U> static inline T atomicAdd(T *p, U v)
{
    return __atomic_fetch_add(p, (T)v, __ATOMIC_SEQ_CST);
}
static inline float atomicAdd(float *p, float v)
{
    unsigned *u = reinterpret_cast<unsigned *>(p), old = __atomic_load_n(u, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(u, &old, __float_as_uint(__uint_as_float(old) + v), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return __uint_as_float(old);
}
static inline unsigned atomicMax(unsigned *p, unsigned v)
{
    unsigned old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST,
                                                   __ATOMIC_SEQ_CST))
        ;
    return old;
}
template <class T> static inline T atomicCAS(T *p, T want, T v)
{
    __atomic_compare_exchange_n(p, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return want;
}
template <class T> static inline T atomicExch(T *p, T v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}

#endif
