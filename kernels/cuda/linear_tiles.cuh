/* Products with weights of block formats, f16 and bf16, on tensor cores.
 *
 * A block has wn x ws warps: wn side by side over outputs, MT tiles of 16 each, and ws groups of
 * these over runs of slices of K. All share NT tiles of 8 rows of activations. A group copies its
 * next P pairs of blocks (tile.cuh) of weights and activations into one of 3 to 8 stages of
 * shared memory, asynchronously, all but one ahead; what it reads there is 16 bytes a lane without
 * bank conflicts. Few rows: MT = NT = 1, weights pass once and the bound is memory: 3 to 7 stages of
 * some 1.2 KB a warp are on their way (3.35 TB/s over 132 multiprocessors for 0.7 us want 18 KB on
 * each), and ws spreads long K over warps. Many rows: MT = 2, NT = 8, a
 * byte of weights meets 64 rows; the bound is float arithmetic: a product of 16 x 8 x 32 costs 12
 * warp instructions for its scales.
 *
 * The order of the sums is num.h's, whatever the shape of the launch: inside a block of K exact
 * integers, then one chain per slice, blocks ascending. A group owns whole subtrees of the slices'
 * tree: finished subtrees wait on a stack in shared memory, carried like a binary counter; the
 * groups' sums are added level by level. f16 and bf16: the chain is that of the tensor core's
 * accumulator, 16 inputs at a time, counted from the weight's first; where a slice ends inside
 * these, the others count as zeros.
 *
 * Integers become floats for free: the tensor core adds to the bits of 1.5 * 2^23 (q4_0, whose
 * quants are 16 times too large: 1.5 * 2^19), |sum| < 2^22, so that the result is a float's bits. */
#ifndef SLUICE_KERNELS_CUDA_LINEAR_TILES_CUH
#define SLUICE_KERNELS_CUDA_LINEAR_TILES_CUH

#include "cuda/linear.cuh"

#include "cuda/tile.cuh"
#include "num.h"

namespace {

constexpr uint32_t WARPS_MAX = 8;

/* Shape of the launch beside the template's. */
struct shape {
    uint32_t wn, ws;
    uint32_t stages;       /* 3, 4 or 8 */
    uint32_t group_slices; /* of a group: a power of two */
    uint32_t levels;       /* sums a warp keeps in shared memory */
    uint32_t tok_blocks;   /* grid.x: token blocks inside, output blocks outside */
};

template <sl_dtype T, int MT, int NT, int P> struct tiles {
    static constexpr bool quant = tile_is_quant(T);
    static constexpr uint32_t w_bytes = P * tile_pair_bytes(T); /* of a tile's stage */
    static constexpr uint32_t x_bytes = P * tile_act_bytes(T);
    static constexpr uint32_t sums = MT * NT * 128; /* floats of a warp's fragments */

    static TILE_FN uint32_t stage_bytes(uint32_t wn)
    {
        return wn * MT * w_bytes + NT * x_bytes;
    }
    static size_t shared_bytes(const shape &s)
    {
        size_t ring = (size_t)s.ws * s.stages * stage_bytes(s.wn);
        return ring + (size_t)s.ws * s.wn * s.levels * sums * 4;
    }
};

/* What a warp knows of itself. */
struct place {
    uint32_t lane, wn, ws;
    uint32_t tile, tok0, cols;  /* first tile of the block, first row; rows that exist from there */
    uint32_t slice, slice_end;  /* of the group */
    uint32_t pair, pair_end;    /* that hold them */
};

/* Until the oldest of the stages on their way is there. */
__device__ __forceinline__ void wait_stage(uint32_t stages)
{
    if (stages == 8)
        dev_copy_wait<6>();
    else if (stages == 4)
        dev_copy_wait<2>();
    else
        dev_copy_wait<1>();
}

__device__ __forceinline__ void sync_group(uint32_t wn)
{
    if (wn == 1)
        __syncwarp();
    else
        __syncthreads();
}

/* Enqueues the group's stage that begins with `pair`; an empty one past the end. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void copy_stage(const linear_args &a, const shape &s, const place &at,
                                           uint32_t pair, uint8_t *stage)
{
    using K = tiles<T, MT, NT, P>;
    constexpr uint32_t PIECES = K::w_bytes / 16, ACT = tile_act_bytes(T) / 16;
    uint32_t n_pairs = tile_pairs(T, a.k), n_tiles = tile_ceil(a.n, TILE_OUT);
    uint32_t left = pair < at.pair_end ? at.pair_end - pair : 0;
    uint32_t first = at.wn * 32 + at.lane, step = s.wn * 32;
    for (uint32_t i = first; i < s.wn * MT * PIECES; i += step) {
        uint32_t tile = i / PIECES, piece = i % PIECES;
        if (piece < left * (tile_pair_bytes(T) / 16) && at.tile + tile < n_tiles)
            dev_copy16(stage + i * 16,
                       a.w + tile_pair_at(T, n_pairs, at.tile + tile, pair) + piece * 16);
    }
    stage += s.wn * MT * K::w_bytes;
    const uint8_t *x = static_cast<const uint8_t *>(a.x);
    for (uint32_t i = first; i < NT * P * ACT; i += step) {
        uint32_t nt = i / (P * ACT), piece = i % (P * ACT);
        if (piece / ACT < left && nt * TILE_TOK < at.cols &&
            tile_act_piece_used(piece % ACT, at.cols - nt * TILE_TOK))
            dev_copy16_near(stage + i * 16,
                            x + tile_act_pair_at(T, n_pairs, at.tok0 / TILE_TOK + nt, pair) +
                                piece * 16);
    }
    dev_copy_commit();
}

__device__ __forceinline__ uint4 shared16(const uint8_t *p)
{
    return *reinterpret_cast<const uint4 *>(p);
}

/* The fragments of both blocks of a pair. */
template <sl_dtype T>
__device__ __forceinline__ void load_weights(const uint8_t *pair, uint32_t lane, uint32_t r0[4],
                                             uint32_t r1[4])
{
    uint4 v = shared16(pair + tile_lane_at(lane, 0));
    if (tile_is_q4(T)) {
        uint32_t word[4] = {v.x, v.y, v.z, v.w};
        UNROLL
        for (int i = 0; i < 4; i++) {
            uint32_t lo = T == SL_Q4_0 ? word[i] << 4 & 0xf0f0f0f0u : word[i] & 0x0f0f0f0fu;
            uint32_t hi = T == SL_Q4_0 ? word[i] & 0xf0f0f0f0u : word[i] >> 4 & 0x0f0f0f0fu;
            uint32_t *r = i < 2 ? r0 : r1;
            r[i % 2] = lo;
            r[i % 2 + 2] = hi;
        }
        return;
    }
    r0[0] = v.x, r0[1] = v.y, r0[2] = v.z, r0[3] = v.w;
    v = shared16(pair + tile_lane_at(lane, 1));
    r1[0] = v.x, r1[1] = v.y, r1[2] = v.z, r1[3] = v.w;
}

__device__ __forceinline__ void load_acts(const uint8_t *pair, uint32_t lane, uint32_t r0[2],
                                          uint32_t r1[2])
{
    uint4 v = shared16(pair + tile_lane_at(lane, 0));
    r0[0] = v.x, r0[1] = v.y;
    r1[0] = v.z, r1[1] = v.w;
}

/* d (and m) of rows g and g + 8 in one block of a pair. */
template <sl_dtype T>
__device__ __forceinline__ void load_scales(const uint8_t *pair, uint32_t lane, int block,
                                            float d[2], float m[2])
{
    auto word = [&](uint32_t which) {
        return *reinterpret_cast<const uint32_t *>(pair +
                                                   tile_lane_scale_at(T, lane, block, which));
    };
    uint32_t v = word(0);
    d[0] = dev_from_f16((uint16_t)v);
    d[1] = dev_from_f16((uint16_t)(v >> 16));
    if (T != SL_Q4_1)
        return;
    v = word(1);
    m[0] = dev_from_f16((uint16_t)v);
    m[1] = dev_from_f16((uint16_t)(v >> 16));
}

/* The slices of one warp: the chain that grows, and the tree's finished parts. */
template <int MT, int NT> struct chain {
    float acc[MT][NT][4];
    float *stack; /* [levels][MT][NT][32][4], the warp's */
    uint32_t top, index, lane;

    __device__ __forceinline__ void zero()
    {
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
                for (int i = 0; i < 4; i++)
                    acc[m][n][i] = 0.0f;
    }
    __device__ __forceinline__ float4 *slot(uint32_t level, int m, int n)
    {
        return reinterpret_cast<float4 *>(stack) + ((level * MT + m) * NT + n) * 32 + lane;
    }
    __device__ __forceinline__ void push()
    {
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++) {
                const float *v = acc[m][n];
                *slot(top, m, n) = make_float4(v[0], v[1], v[2], v[3]);
            }
        top++;
    }
    __device__ __forceinline__ void pop_add()
    {
        top--;
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++) {
                float4 v = *slot(top, m, n);
                float *s = acc[m][n];
                s[0] = v.x + s[0], s[1] = v.y + s[1], s[2] = v.z + s[2], s[3] = v.w + s[3];
            }
    }
    /* A slice is complete; the last one leaves the sum of all in acc. */
    __device__ __forceinline__ void end_slice(bool last)
    {
        for (uint32_t bits = index; bits & 1; bits >>= 1)
            pop_add();
        index++;
        if (last) {
            while (top > 0)
                pop_add();
            return;
        }
        push();
        zero();
    }
};

/* One block of a pair: acc = fma(dw * dx, isum, acc), then fma(mw, sx, acc). */
template <sl_dtype T, int MT, int NT>
__device__ __forceinline__ void add_block(chain<MT, NT> *c, const int32_t (&isum)[MT][NT][4],
                                          const uint8_t *w, uint32_t w_step, const uint8_t *x,
                                          uint32_t x_step, int block, uint32_t cols)
{
    constexpr float MAGIC = T == SL_Q4_0 ? 0x1.8p19f : 0x1.8p23f;
    if (NT == 1 && tile_sum_col(c->lane, 0) >= cols)
        return; /* saves nothing but work for columns that are not there */
    float dw[MT][2], mw[MT][2];
    UNROLL
    for (int m = 0; m < MT; m++)
        load_scales<T>(w + m * w_step, c->lane, block, dw[m], mw[m]);
    UNROLL
    for (int n = 0; n < NT; n++) {
        auto scales = [&](uint32_t which) {
            return *reinterpret_cast<const float2 *>(
                x + n * x_step + tile_lane_act_scale_at(c->lane, block, which));
        };
        float2 dx = scales(0), sx = T == SL_Q4_1 ? scales(1) : dx;
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int i = 0; i < 4; i++) {
                float v = __uint_as_float((uint32_t)isum[m][n][i]) - MAGIC;
                float *acc = &c->acc[m][n][i];
                *acc = __fmaf_rn(dw[m][i / 2] * (i % 2 ? dx.y : dx.x), v, *acc);
                if (T == SL_Q4_1)
                    *acc = __fmaf_rn(mw[m][i / 2], i % 2 ? sx.y : sx.x, *acc);
            }
    }
}

/* Zeroes the elements of a 16-input fragment that lie outside [k0, k1), counted from its first. */
template <int NT>
__device__ __forceinline__ void mask_acts(uint32_t (&out)[NT][2], const uint32_t (&in)[NT][2],
                                          uint32_t lane, int k0, int k1)
{
    uint32_t mask[2];
    UNROLL
    for (int i = 0; i < 2; i++) {
        int k = (int)(lane % 4) * 2 + i * 8;
        mask[i] = (k >= k0 && k < k1 ? 0xffffu : 0u) | (k + 1 >= k0 && k + 1 < k1 ? ~0xffffu : 0u);
    }
    UNROLL
    for (int n = 0; n < NT; n++)
        for (int i = 0; i < 2; i++)
            out[n][i] = in[n][i] & mask[i];
}

/* The group's walk over its blocks: which slice a block belongs to. */
struct walk {
    const uint32_t *border; /* of slice 0 of the part */
    uint32_t slice, end;    /* now; the group's */
    uint32_t begin_k, end_k;
    __device__ __forceinline__ void enter()
    {
        begin_k = border[slice];
        end_k = border[slice + 1];
    }
};

template <sl_dtype T, int MT, int NT>
__device__ __forceinline__ void quant_pair(chain<MT, NT> *c, walk *at, uint32_t pair,
                                           const uint8_t *w, uint32_t w_step, const uint8_t *x,
                                           uint32_t x_step, uint32_t cols,
                                           const int32_t (&isum)[2][MT][NT][4])
{
    UNROLL
    for (int u = 0; u < 2; u++) {
        uint32_t k = (pair * 2 + u) * 32;
        if (k < at->begin_k || at->slice == at->end)
            continue;
        add_block<T>(c, isum[u], w, w_step, x, x_step, u, cols);
        if (k + 32 == at->end_k) {
            c->end_slice(++at->slice == at->end);
            if (at->slice < at->end)
                at->enter();
        }
    }
}

template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void quant_stage(chain<MT, NT> *c, walk *at, uint32_t pair,
                                            const uint8_t *w, uint32_t w_step, const uint8_t *x,
                                            uint32_t x_step, uint32_t cols)
{
    constexpr uint32_t FROM = T == SL_Q4_0 ? 0x49400000 : 0x4b400000;
    uint32_t ra[2 * P][MT][4], rb[2 * P][NT][2];
    int32_t isum[2 * P][MT][NT][4];
    UNROLL
    for (int p = 0; p < P; p++) {
        UNROLL
        for (int m = 0; m < MT; m++)
            load_weights<T>(w + m * w_step + p * tile_pair_bytes(T), c->lane, ra[2 * p][m],
                            ra[2 * p + 1][m]);
        UNROLL
        for (int n = 0; n < NT; n++)
            load_acts(x + n * x_step + p * tile_act_bytes(T), c->lane, rb[2 * p][n],
                      rb[2 * p + 1][n]);
    }
    dev_mma_s8_tiles(isum, ra, rb, (int32_t)FROM, cols);
    UNROLL
    for (int p = 0; p < P; p++)
        quant_pair<T>(c, at, pair + p, w + p * tile_pair_bytes(T), w_step,
                      x + p * tile_act_bytes(T), x_step, cols,
                      reinterpret_cast<const int32_t(&)[2][MT][NT][4]>(isum[2 * p]));
}

template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void half_stage(chain<MT, NT> *c, walk *at, uint32_t pair,
                                           const uint8_t *w, uint32_t w_step, const uint8_t *x,
                                           uint32_t x_step, uint32_t cols)
{
    UNROLL
    for (int p = 0; p < P; p++) {
        uint32_t ra[2][MT][4], rb[2][NT][2], masked[NT][2];
        UNROLL
        for (int m = 0; m < MT; m++)
            load_weights<T>(w + m * w_step + p * tile_pair_bytes(T), c->lane, ra[0][m], ra[1][m]);
        UNROLL
        for (int n = 0; n < NT; n++)
            load_acts(x + n * x_step + p * tile_act_bytes(T), c->lane, rb[0][n], rb[1][n]);
        UNROLL
        for (int u = 0; u < 2; u++) {
            uint32_t k = ((pair + p) * 2 + u) * 16;
            while (at->slice < at->end && at->begin_k < k + 16) {
                if (k >= at->begin_k && k + 16 <= at->end_k) {
                    dev_mma_16_tiles<T == SL_BF16>(c->acc, ra[u], rb[u], cols);
                } else {
                    mask_acts(masked, rb[u], c->lane, (int)at->begin_k - (int)k,
                              (int)at->end_k - (int)k);
                    dev_mma_16_tiles<T == SL_BF16>(c->acc, ra[u], masked, cols);
                }
                if (at->end_k > k + 16)
                    break;
                c->end_slice(++at->slice == at->end);
                if (at->slice < at->end)
                    at->enter();
            }
        }
    }
}

/* Adds the groups' sums, which lie in slot 0 of their stacks, into group 0's acc. */
template <int MT, int NT>
__device__ __forceinline__ void add_groups(chain<MT, NT> *c, uint32_t n_groups, uint32_t step)
{
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) {
            float4 *p = c->slot(0, m, n); /* the lane's own in every group */
            for (uint32_t width = 1; width < n_groups; width *= 2)
                for (uint32_t i = 0; i + width < n_groups; i += 2 * width) {
                    float4 l = p[i * step], r = p[(i + width) * step];
                    p[i * step] = make_float4(l.x + r.x, l.y + r.y, l.z + r.z, l.w + r.w);
                }
            float4 v = *p;
            float *s = c->acc[m][n];
            s[0] = v.x, s[1] = v.y, s[2] = v.z, s[3] = v.w;
        }
}

template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ place find_place(const linear_args &a, const shape &s,
                                            const sl_tree_node &part)
{
    place at;
    uint32_t warp = threadIdx.x / 32, n_block = blockIdx.x / s.tok_blocks;
    at.lane = threadIdx.x % 32;
    at.wn = warp % s.wn;
    at.ws = warp / s.wn;
    at.tile = n_block * s.wn * MT;
    at.tok0 = blockIdx.x % s.tok_blocks * (NT * TILE_TOK);
    at.cols = min(a.n_tok - at.tok0, NT * TILE_TOK);
    at.slice = min(at.ws * s.group_slices, part.n);
    at.slice_end = min(at.slice + s.group_slices, part.n);
    const uint32_t *border = a.border + part.first;
    at.pair = border[at.slice] / (2 * tile_block(T));
    at.pair_end = at.slice < at.slice_end ? tile_ceil(border[at.slice_end], 2 * tile_block(T))
                                          : at.pair;
    return at;
}

/* Stages that every group goes through: those of the one with the most pairs, where groups meet. */
template <sl_dtype T, int P>
__device__ __forceinline__ uint32_t count_stages(const linear_args &a, const shape &s,
                                                 const sl_tree_node &part, const place &at)
{
    uint32_t most = at.pair_end - at.pair;
    const uint32_t *border = a.border + part.first;
    for (uint32_t i = 0; s.wn > 1 && i < part.n; i += s.group_slices) {
        uint32_t end = min(i + s.group_slices, part.n);
        uint32_t pairs = tile_ceil(border[end], 2 * tile_block(T)) -
                         border[i] / (2 * tile_block(T));
        most = max(most, pairs);
    }
    return tile_ceil(most, P);
}

template <sl_dtype T, int MT, int NT, int P>
__global__ void __launch_bounds__(WARPS_MAX * 32, 1)
    linear_tiles(const linear_args a, const shape s)
{
    using K = tiles<T, MT, NT, P>;
    DYN_SHARED(uint8_t, shared);
    const sl_tree_node part = a.node[blockIdx.y];
    const place at = find_place<T, MT, NT, P>(a, s, part);
    uint32_t n_stages = count_stages<T, P>(a, s, part, at), stage_bytes = K::stage_bytes(s.wn);
    uint8_t *ring = shared + at.ws * s.stages * stage_bytes;
    float *stacks = reinterpret_cast<float *>(shared + s.ws * s.stages * stage_bytes);
    chain<MT, NT> c;
    c.stack = stacks + (at.ws * s.wn + at.wn) * s.levels * K::sums;
    c.top = c.index = 0;
    c.lane = at.lane;
    c.zero();
    walk walk = {a.border + part.first, at.slice, at.slice_end, 0, 0};
    if (at.slice < at.slice_end)
        walk.enter();

    for (uint32_t i = 0; i + 1 < s.stages; i++)
        copy_stage<T, MT, NT, P>(a, s, at, at.pair + i * P, ring + i * stage_bytes);
    uint32_t slot = 0;
    for (uint32_t i = 0; i < n_stages; i++) {
        wait_stage(s.stages);
        sync_group(s.wn); /* the stage has come, and the one before has been read by all */
        uint32_t before = (slot == 0 ? s.stages : slot) - 1, pair = at.pair + i * P;
        copy_stage<T, MT, NT, P>(a, s, at, pair + (s.stages - 1) * P,
                                 ring + before * stage_bytes);
        const uint8_t *w = ring + slot * stage_bytes, *x = w + s.wn * MT * K::w_bytes;
        w += at.wn * MT * K::w_bytes;
        if (pair < at.pair_end) {
            if (K::quant)
                quant_stage<T, MT, NT, P>(&c, &walk, pair, w, K::w_bytes, x, K::x_bytes, at.cols);
            else
                half_stage<T, MT, NT, P>(&c, &walk, pair, w, K::w_bytes, x, K::x_bytes, at.cols);
        }
        slot = slot + 1 == s.stages ? 0 : slot + 1;
    }

    if (s.ws > 1) {
        c.top = 0;
        if (at.slice < at.slice_end)
            c.push();
        __syncthreads();
        if (at.ws > 0)
            return;
        uint32_t n_groups = tile_ceil(part.n, s.group_slices);
        add_groups(&c, n_groups, s.wn * s.levels * (K::sums / 4));
    }
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
            for (int i = 0; i < 4; i++) {
                uint32_t tok = n * TILE_TOK + tile_sum_col(at.lane, i);
                uint32_t out = (at.tile + at.wn * MT + m) * TILE_OUT + tile_sum_row(at.lane, i);
                if (tok < at.cols && out < a.n)
                    linear_store(a, blockIdx.y, at.tok0 + tok, out, c.acc[m][n][i]);
            }
}

uint32_t log2_up(uint32_t n)
{
    uint32_t bits = 0;
    while (1u << bits < n)
        bits++;
    return bits;
}

/* Groups over slices while `wanted` allows, a power of two; the rest waits on the stack. */
shape plan(uint32_t n_slices, uint32_t wn, uint32_t ws_wanted, uint32_t tok_blocks)
{
    shape s = {wn, 1, 4, 1u << log2_up(n_slices), 0, tok_blocks};
    while (s.ws * 2 <= ws_wanted && s.group_slices > 1) {
        s.ws *= 2;
        s.group_slices /= 2;
    }
    s.levels = log2_up(s.group_slices);
    if (s.ws > 1 && s.levels == 0)
        s.levels = 1;
    if (s.ws * s.wn == 1)
        s.stages = 8; /* few warps: each has more on its way */
    return s;
}

template <sl_dtype T, int MT, int NT, int P>
cudaError_t run(const linear_call &l, const char *name, uint32_t wn, uint32_t ws)
{
    using K = tiles<T, MT, NT, P>;
    uint32_t tok_blocks = tile_ceil(l.a.n_tok, NT * TILE_TOK);
    size_t limit;
    cudaError_t e = dev_shared_max(&limit);
    if (e != cudaSuccess)
        return e;
    shape s = plan(l.n_slices, wn, ws, tok_blocks);
    while (K::shared_bytes(s) > limit) {
        if (s.stages > 3)
            s.stages = s.stages == 8 ? 4 : 3;
        else if (s.ws > 1)
            s = plan(l.n_slices, s.wn, s.ws / 2, tok_blocks);
        else if (s.wn > 1)
            s = plan(l.n_slices, s.wn / 2, 1, tok_blocks);
        else
            return cudaErrorInvalidConfiguration;
    }
    uint32_t n_blocks = tile_ceil(l.a.n, s.wn * MT * TILE_OUT);
    auto kernel = linear_tiles<T, MT, NT, P>;
    e = dev_allow_shared(kernel, K::shared_bytes(s));
    if (e != cudaSuccess)
        return e;
    return KLAUNCH_AS(name, kernel, dim3(tok_blocks * n_blocks, l.n_parts),
                      dim3(s.wn * s.ws * 32), K::shared_bytes(s), l.stream, l.a, s);
}

/* The shape that suits the number of rows; it does not show in the result. */
template <sl_dtype T> cudaError_t run_type(const linear_call &l, const char *few, const char *many)
{
    uint32_t n_tok = l.a.n_tok, tiles32 = tile_ceil(l.a.n, 32);
    if (n_tok <= 8)
        return run<T, 1, 1, 2>(l, few, 1, WARPS_MAX);
    uint32_t wn = tiles32 >= 512 ? 4 : tiles32 >= 128 ? 2 : 1;
    if (n_tok <= 16)
        return run<T, 2, 2, 1>(l, few, wn, WARPS_MAX / wn);
    if (n_tok <= 32)
        return run<T, 2, 4, 1>(l, few, wn, WARPS_MAX / wn / 2);
    return run<T, 2, 8, 1>(l, many, 4, 1);
}

} // namespace

#endif
