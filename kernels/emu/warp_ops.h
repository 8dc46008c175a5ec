/* The twins of cuda/dev.cuh's PTX, and how a kernel is launched here. */
#ifndef SLUICE_KERNELS_EMU_WARP_OPS_H
#define SLUICE_KERNELS_EMU_WARP_OPS_H

#include <cuda_runtime_api.h>

#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emu/emu.h"

extern "C" {
emu_collective_fn emu_do_ldmatrix, emu_do_mma_bf16, emu_do_mma_f16, emu_do_mma_s8, emu_do_sum_f32,
    emu_do_sum_i32, emu_do_max_f32, emu_do_mma_s8_tiles, emu_do_mma_16_tiles;
/* Lane contexts of these. */
struct emu_ldmatrix {
    const void *row;
    uint32_t *r;
    int n;      /* matrices */
    bool trans;
};
struct emu_mma {
    void *d; /* float or int32_t [4] */
    const uint32_t *a, *b;
};
/* u products of m x n tiles; d[u][m][n][4], a[u][m][4], b[u][n][2]; columns below `cols` count. */
struct emu_mma_tiles {
    void *d;
    const uint32_t *a, *b;
    int u, m, n;
    uint32_t cols;
    int32_t from;
    bool bf16;
};
uint16_t emu_to_f16(float f);
float emu_from_f16(uint16_t h);
uint16_t emu_to_bf16(float f);
/* Enqueues; `args` [bytes] is copied. Defined by the emulated runtime. */
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *), const void *args,
                        size_t bytes, dim3 grid, dim3 block, size_t smem);
}

/* Whose calls the detector knows by the address they return to: that of the kernel's line, also where
 * nothing else is inlined. */
#define EMU_IN_PLACE static inline __attribute__((always_inline))

#define dev_copy16(...) emu_copy<16>(EMU_HERE, __VA_ARGS__)
#define dev_copy4(...)  emu_copy<4>(EMU_HERE, __VA_ARGS__)
template <uint32_t N>
EMU_IN_PLACE void emu_copy(emu_site at, void *to, const void *from, uint32_t n = N)
{
    emu_copy_async(to, from, n, N - n, at);
}
static inline void emu_copy_if(emu_site at, bool wanted, void *to, const void *from,
                               uint32_t n = 16)
{
    if (wanted)
        emu_copy_async(to, from, n, 16 - n, at);
}
#define dev_copy16_if(...)      emu_copy_if(EMU_HERE, __VA_ARGS__)
#define dev_copy16_near_if(...) emu_copy_if(EMU_HERE, __VA_ARGS__)
static inline void dev_copy_commit() { emu_copy_commit(); }
template <int N> static inline void dev_copy_wait() { emu_copy_wait(N); }

#define dev_barrier(id, n) emu_named_barrier(id, n, EMU_HERE)

EMU_IN_PLACE void emu_ldm(uint32_t *r, const void *row, int n, bool trans, emu_site at)
{
    emu_ldmatrix s = {row, r, n, trans};
    emu_collective("ldmatrix", 0xffffffffu, emu_do_ldmatrix, &s, at);
}
#define dev_ldmatrix_x4(r, row)       emu_ldm(r, row, 4, false, EMU_HERE)
#define dev_ldmatrix_x2(r, row)       emu_ldm(r, row, 2, false, EMU_HERE)
#define dev_ldmatrix_x4_trans(r, row) emu_ldm(r, row, 4, true, EMU_HERE)

static inline void emu_mma_lane(const char *kind, emu_collective_fn *fn, void *d, const uint32_t *a,
                                const uint32_t *b, emu_site at)
{
    emu_mma s = {d, a, b};
    emu_collective(kind, 0xffffffffu, fn, &s, at);
}
#define dev_mma_bf16(d, a, b) emu_mma_lane("mma.bf16", emu_do_mma_bf16, d, a, b, EMU_HERE)
#define dev_mma_f16(d, a, b)  emu_mma_lane("mma.f16", emu_do_mma_f16, d, a, b, EMU_HERE)
#define dev_mma_s8(d, a, b)   emu_mma_lane("mma.s8", emu_do_mma_s8, d, a, b, EMU_HERE)

template <int U, int M, int N>
static inline void emu_mma_s8_tiles(emu_site at, int32_t (&d)[U][M][N][4],
                                    const uint32_t (&a)[U][M][4], const uint32_t (&b)[U][N][2],
                                    int32_t from, uint32_t cols)
{
    emu_mma_tiles s = {d, a[0][0], b[0][0], U, M, N, cols, from, false};
    emu_collective("mma.s8.tiles", 0xffffffffu, emu_do_mma_s8_tiles, &s, at);
}
template <bool BF16, int M, int N>
static inline void dev_mma_16_tiles(float (&d)[M][N][4], const uint32_t (&a)[M][4],
                                    const uint32_t (&b)[N][2], uint32_t cols)
{
    emu_mma_tiles s = {d, a[0], b[0], 1, M, N, cols, 0, BF16};
    emu_collective("mma.16.tiles", 0xffffffffu, emu_do_mma_16_tiles, &s, EMU_HERE);
}
#define dev_mma_s8_tiles(...) emu_mma_s8_tiles(EMU_HERE, __VA_ARGS__)

static inline float emu_sum(float v, emu_site at)
{
    emu_collective("warp_sum", 0xffffffffu, emu_do_sum_f32, &v, at);
    return v;
}
static inline int32_t emu_sum(int32_t v, emu_site at)
{
    emu_collective("warp_sum", 0xffffffffu, emu_do_sum_i32, &v, at);
    return v;
}
static inline float emu_max(float v, emu_site at)
{
    emu_collective("warp_max", 0xffffffffu, emu_do_max_f32, &v, at);
    return v;
}
#define dev_warp_sum(v) emu_sum(v, EMU_HERE)
#define dev_warp_max(v) emu_max(v, EMU_HERE)

#define dev_load16(p) emu_load16(p, EMU_HERE)
EMU_IN_PLACE uint4 emu_load16(const void *p, emu_site at)
{
    if (reinterpret_cast<uintptr_t>(p) % 16)
        emu_break(at, "16 bytes read from %p", p);
    return *static_cast<const uint4 *>(p);
}
static inline uint32_t dev_load_acquire(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void dev_store_release(uint32_t *p, uint32_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
#ifdef EMU_WATCHED
#define dev_unwritten_ok(p, n) emu_unwritten_ok(p, n)
#else
#define dev_unwritten_ok(p, n) ((void)0)
#endif
static inline void dev_pause() { emu_pause(); }
static inline float dev_from_f16(uint16_t h) { return emu_from_f16(h); }
static inline uint16_t dev_to_f16(float f) { return emu_to_f16(f); }
static inline uint16_t dev_to_bf16(float f) { return emu_to_bf16(f); }

/* ---- launches ---- */

template <class... A> struct emu_call {
    void (*kernel)(A...);
    std::tuple<A...> args;
    /* The arguments are no memory of the kernel's: their loads are not watched. */
    template <size_t... I>
    static __attribute__((no_sanitize("thread"))) void run_with(emu_call *c,
                                                                std::index_sequence<I...>)
    {
        c->kernel(std::get<I>(c->args)...);
    }
    static __attribute__((no_sanitize("thread"))) void run(void *p)
    {
        run_with(static_cast<emu_call *>(p), std::index_sequence_for<A...>{});
    }
};

template <class... A>
static inline cudaError_t emu_launch_on(cudaStream_t stream, const char *name, void (*kernel)(A...),
                                        dim3 grid, dim3 block, size_t smem,
                                        std::type_identity_t<A>... args)
{
    static_assert((std::is_trivially_copyable_v<A> && ...), "arguments are bytes");
    /* No stray bytes between them: the runtime looks for addresses. */
    alignas(emu_call<A...>) unsigned char room[sizeof(emu_call<A...>)] = {};
    new (room) emu_call<A...>{kernel, std::tuple<A...>(args...)};
    return emu_enqueue(stream, name, emu_call<A...>::run, room, sizeof room, grid, block, smem);
}

#endif
