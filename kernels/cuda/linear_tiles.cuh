/* Products with weights of block formats, f16 and bf16, on tensor cores.
 *
 * A block has wn x ws warps: wn side by side over outputs, MT tiles of 16 each, and ws groups of
 * these over runs of slices of K. All share NT tiles of 8 rows of activations. A group copies its
 * next P pairs of blocks (tile.cuh) of weights and activations into one of 3 to 8 stages of
 * shared memory, asynchronously, all but one ahead; what it reads there is 16 bytes a lane without
 * bank conflicts. Few rows: MT = NT = 1, weights pass once and the bound is memory: 3 to 7 stages of
 * some 1.2 KB a warp are on their way (3.35 TB/s over 132 multiprocessors for 0.7 us want 18 KB on
 * each), and ws spreads long K over warps. Many rows: MT = 2, NT = 8, a byte of weights meets 64
 * rows; the bound is float arithmetic: a product of 16 x 8 x 32 costs 12 warp instructions for its
 * scales.
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

#include "cuda/linear_mma.cuh"

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
    using view = stage_view<T, MT, NT, P>;
    static constexpr uint32_t sums = MT * NT * 128; /* floats of a warp's fragments */
    /* 16-byte pieces of a tile's stage, and how many a lane copies */
    static constexpr uint32_t w_pieces = view::w_step / 16, x_pieces = view::x_step / 16;
    static constexpr uint32_t w_rounds = (w_pieces + 31) / 32, x_rounds = (x_pieces + 31) / 32;

    static TILE_FN uint32_t stage_bytes(uint32_t wn)
    {
        return wn * MT * view::w_step + NT * view::x_step;
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
    uint32_t tile;             /* the warp's first */
    uint32_t tok0, cols;       /* first row; rows that exist from there */
    uint32_t slice, slice_end; /* of the group, in the part */
    uint32_t pair, pair_end;   /* that hold them */
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

/* What a warp copies: its own tiles of weights, and of the group's tiles of activations every
 * wn-th. Both are straight streams, a lane's pieces 512 bytes apart. */
template <sl_dtype T, int MT, int NT, int P> struct source {
    using K = tiles<T, MT, NT, P>;
    const uint8_t *w, *x; /* the lane's first piece of the next stage */
    size_t w_tile, x_tile;
    uint32_t n_tiles; /* of weights, at most MT; zeros for others, as for rows past the last tile */
    uint32_t left;    /* pairs */
    uint32_t used;    /* NT 1: rounds in which the lane's piece of activations is of use */

    __device__ __forceinline__ void begin(const linear_args &a, const place &at)
    {
        uint32_t n_pairs = tile_pairs(T, a.k), all = tile_ceil(a.n, TILE_OUT);
        w = a.w + tile_pair_at(T, n_pairs, at.tile, at.pair) + at.lane * 16;
        x = static_cast<const uint8_t *>(a.x) +
            tile_act_pair_at(T, n_pairs, at.tok0 / TILE_TOK, at.pair) + at.lane * 16;
        w_tile = tile_pair_at(T, n_pairs, 1, 0);
        x_tile = tile_act_pair_at(T, n_pairs, 1, 0) - 16 * MUTANT(TILES_STRIDE);
        n_tiles = at.tile < all ? min(all - at.tile, (uint32_t)MT) : 0;
        left = at.pair_end - at.pair;
        used = 0; /* with one tile there is one warp beside it */
        UNROLL
        for (uint32_t r = 0; r < K::x_rounds; r++)
            used |= (uint32_t)tile_act_piece_used(
                        (at.lane + r * 32) % (tile_act_bytes(T) / 16), at.cols)
                    << r;
    }
    /* Enqueues the next stage, maybe an empty one. */
    __device__ __forceinline__ void copy(const place &at, uint32_t wn, uint8_t *stage)
    {
        uint32_t n = min(left, (uint32_t)P), lane = at.lane;
        uint32_t w_end = n * (tile_pair_bytes(T) / 16), x_end = n * (tile_act_bytes(T) / 16);
        uint8_t *to = stage + at.wn * MT * K::view::w_step + lane * 16;
        UNROLL
        for (uint32_t m = 0; m < MT; m++)
            UNROLL
            for (uint32_t r = 0; r < K::w_rounds; r++)
                dev_copy16_if(lane + r * 32 < w_end, to + m * K::view::w_step + r * 512,
                              w + m * w_tile + r * 512, m < n_tiles ? 16 : 0);
        to = stage + wn * MT * K::view::w_step + lane * 16;
        if (NT == 1) {
            UNROLL
            for (uint32_t r = 0; r < K::x_rounds; r++)
                dev_copy16_near_if((used >> r & 1) && lane + r * 32 < x_end, to + r * 512,
                                   x + r * 512);
        } else {
            for (uint32_t t = at.wn; t < NT; t += wn)
                UNROLL
                for (uint32_t r = 0; r < K::x_rounds; r++)
                    dev_copy16_near_if(lane + r * 32 < x_end, to + t * K::view::x_step + r * 512,
                                       x + t * x_tile + r * 512,
                                       t * TILE_TOK < at.cols ? 16 : 0);
        }
        dev_copy_commit();
        left -= n;
        w += K::view::w_step;
        x += K::view::x_step;
    }
};

/* The group's slices, one after the other. */
struct walk {
    const uint32_t *border; /* of the part's first slice */
    uint32_t slice, end;    /* now; the group's */
    uint32_t k0, k1;        /* of `slice`; after the last, nothing comes up to them */

    __device__ __forceinline__ void begin(const uint32_t *borders, uint32_t first, uint32_t last)
    {
        border = borders;
        slice = first;
        end = last;
        enter();
    }
    __device__ __forceinline__ void enter()
    {
        k0 = slice < end ? border[slice] : UINT32_MAX;
        k1 = slice < end ? border[slice + 1] : UINT32_MAX;
    }
};

/* A stage whose first input is `k`: all of it if one slice holds it, else block after block. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void run_stage(chain<MT, NT> *c, walk *at,
                                          const stage_view<T, MT, NT, P> &v, uint32_t k)
{
    constexpr uint32_t E = tile_block(T);
    uint32_t block = 0;
    while (block < 2 * P) {
        uint32_t begin = k + block * E, end = begin + E;
        if (block == 0 && at->k0 <= k && k + 2 * P * E <= at->k1) {
            end = k + 2 * P * E;
            if (tile_is_quant(T))
                quant_stage(c, v);
            else
                half_stage(c, v);
        } else if (end > at->k0) {
            if (tile_is_quant(T))
                quant_block(c, v, block);
            else
                half_block(c, v, block, at->k0 > begin ? at->k0 - begin : 0, at->k1 - begin);
        }
        bool ends = at->k1 <= end, again = at->k1 < end; /* the next slice begins in this block */
        if (ends) {
            at->slice++;
            c->end_slice(at->slice == at->end);
            at->enter();
            again = again && at->slice < at->end;
        }
        block = again ? block : (end - k) / E;
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
    at.tile = (n_block * s.wn + at.wn) * MT;
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

/* What the warp has, to memory: sum (+ bias) (+ y), in the order of op.h. */
template <int MT, int NT>
__device__ __forceinline__ void store_sums(chain<MT, NT> *c, const linear_args &a, const place &at)
{
    float *out = a.out + blockIdx.y * a.plane + (size_t)at.tok0 * a.out_stride;
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            uint32_t i = (at.tile + m) * TILE_OUT + tile_sum_row(at.lane, half * 2);
            if (i >= a.n)
                continue;
            float bias = a.bias ? a.bias[i] : 0.0f;
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
                for (int j = 0; j < 2; j++) {
                    uint32_t tok = n * TILE_TOK + tile_sum_col(at.lane, j);
                    float sum = c->acc[m][n][half * 2 + j], *y = out + (size_t)tok * a.out_stride + i;
                    if (tok >= at.cols + MUTANT(TILES_COLUMNS))
                        continue;
                    if (a.bias)
                        sum = sum + bias;
                    *y = a.accumulate ? sum + *y : sum;
                }
        }
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
    uint32_t ring_bytes = s.stages * stage_bytes;
    uint8_t *ring = shared + at.ws * ring_bytes;
    float *stacks = reinterpret_cast<float *>(shared + s.ws * ring_bytes);
    chain<MT, NT> c;
    c.begin(stacks + (at.ws * s.wn + at.wn) * s.levels * K::sums, at.lane);
    walk walk;
    walk.begin(a.border + part.first, at.slice, at.slice_end);
    source<T, MT, NT, P> from;
    from.begin(a, at);

    for (uint32_t i = 0; i + 1 < s.stages; i++)
        from.copy(at, s.wn, ring + i * stage_bytes);
    uint8_t *now = ring, *before = ring + ring_bytes - stage_bytes;
    for (uint32_t i = 0; i < n_stages; i++) {
        UNLESS(TILES_WAIT) wait_stage(s.stages);
        UNLESS(TILES_SYNC) sync_group(s.wn);
        /* The stage has come, and the one before has been read by all. */
        from.copy(at, s.wn, before);
        uint32_t pair = at.pair + i * P;
        if (pair < at.pair_end) {
            const uint8_t *w = now + at.wn * MT * K::view::w_step;
            const uint8_t *x = now + s.wn * MT * K::view::w_step;
            const stage_view<T, MT, NT, P> v = {w + tile_lane_at(at.lane, 0),
                                                w + tile_lane_scale_at(T, at.lane),
                                                x + tile_lane_at(at.lane, 0),
                                                x + tile_lane_act_scale_at(at.lane, 0, 0),
                                                at.cols, NT > 1 || at.lane / 4 < at.cols};
            run_stage(&c, &walk, v, pair * 2 * tile_block(T));
        }
        before = now;
        now = now + stage_bytes == ring + ring_bytes ? ring : now + stage_bytes;
    }

    if (s.ws > 1) {
        c.top = 0;
        if (at.slice < at.slice_end)
            c.push();
        UNLESS(TILES_GROUPS_BARRIER) __syncthreads();
        if (at.ws > 0)
            return;
        c.add_groups(tile_ceil(part.n, s.group_slices), s.wn * s.levels * (K::sums / 4));
    }
    store_sums(&c, a, at);
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

/* The shape that suits the number of rows; it does not show in the result. As many warps side by
 * side as leave a block for each of a large device's multiprocessors; the others take slices. */
template <sl_dtype T> cudaError_t run_type(const linear_call &l, const char *few, const char *many)
{
    constexpr uint32_t PROCESSORS = 128;
    uint32_t n_tok = l.a.n_tok;
    if (n_tok <= 8)
        return run<T, 1, 1, 2>(l, few, 1, WARPS_MAX);
    uint32_t tiles = tile_ceil(l.a.n, 2 * TILE_OUT) * tile_ceil(n_tok, 64), wn = 4;
    while (wn > 1 && tiles / wn < PROCESSORS)
        wn /= 2;
    if (n_tok <= 16)
        return run<T, 2, 2, 1>(l, few, wn, WARPS_MAX / wn);
    if (n_tok <= 32)
        return run<T, 2, 4, 1>(l, few, wn, WARPS_MAX / wn);
    return run<T, 2, 8, 1>(l, many, wn, 4 / wn);
}

} // namespace

#endif
