/* Products with f32 weights, and the sum of partial products.
 *
 * f32: a lane owns an output and TOK rows; its chain takes one input after the other (num.h), so
 * there is nothing for tensor cores. A block's warps are groups over runs of slices as in linear.cu.
 * Weights come 16 bytes a lane, straight to registers, x by way of shared memory: one 16-byte
 * broadcast feeds four fma. Bound: weights once, for up to 8 rows.
 *
 * tree_sum: bound by reading the parts once; they wait in shared memory while the tree, which is
 * data, is walked. */
#include "cuda/linear.cuh"

#include "cuda/tile.cuh"

namespace {

constexpr uint32_t WARPS_MAX = 8, CHUNK = 32;

/* y = sum (+ bias) (+ y), in the order of op.h. */
__device__ __forceinline__ void store_sum(const linear_args &a, uint32_t part, uint32_t tok,
                                             uint32_t out, float sum)
{
    float *y = a.out + part * a.plane + (size_t)tok * a.out_stride + out;
    if (a.bias)
        sum = sum + a.bias[out];
    if (a.accumulate)
        sum = sum + *y;
    *y = sum;
}

struct f32_shape {
    uint32_t ws, group_slices, levels, tok_blocks;
};

/* Per warp: x [TOK][CHUNK], then sums [levels][TOK][32]. */
template <int TOK> size_t warp_floats(const f32_shape &s)
{
    return (size_t)TOK * CHUNK + (size_t)s.levels * TOK * 32;
}

template <int TOK> struct f32_chain {
    float acc[TOK];
    float *stack; /* the lane's, [levels][TOK] every 32 floats */
    uint32_t top, index;

    __device__ __forceinline__ void zero()
    {
        UNROLL
        for (int m = 0; m < TOK; m++)
            acc[m] = 0.0f;
    }
    __device__ __forceinline__ void push()
    {
        UNROLL
        for (int m = 0; m < TOK; m++)
            stack[(top * TOK + m) * 32] = acc[m];
        top++;
    }
    __device__ __forceinline__ void pop_add()
    {
        top--;
        UNROLL
        for (int m = 0; m < TOK; m++)
            acc[m] = stack[(top * TOK + m) * 32] + acc[m];
    }
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

/* Inputs [k0, k1) of the chunk that begins at kc. */
template <int TOK>
__device__ __forceinline__ void add_chunk(f32_chain<TOK> *c, const float *xs, const uint8_t *w,
                                          uint32_t kc, uint32_t k0, uint32_t k1)
{
    UNROLL_BY(4)
    for (uint32_t q = 0; q < CHUNK / 4; q++) {
        uint32_t k = kc + q * 4;
        if (k + 4 <= k0 || k >= k1)
            continue;
        float4 v = *reinterpret_cast<const float4 *>(w + (size_t)q * TILE_OUT_F32 * 16);
        float wv[4] = {v.x, v.y, v.z, v.w};
        UNROLL
        for (int m = 0; m < TOK; m++) {
            float4 u = *reinterpret_cast<const float4 *>(xs + m * CHUNK + q * 4);
            float xv[4] = {u.x, u.y, u.z, u.w};
            UNROLL
            for (uint32_t j = 0; j < 4; j++)
                if (k + j >= k0 && k + j < k1 - MUTANT(F32_BORDER))
                    c->acc[m] = __fmaf_rn(wv[j], xv[j], c->acc[m]);
        }
    }
}

/* Slices [first, end) of the part. */
template <int TOK>
__device__ __forceinline__ void add_slices(f32_chain<TOK> *c, const linear_args &a, float *xs,
                                           uint32_t tile, uint32_t tok0, uint32_t lane,
                                           const uint32_t *border, uint32_t first, uint32_t end)
{
    const float *x = static_cast<const float *>(a.x) + (size_t)tok0 * a.x_stride;
    uint32_t rows = min(a.n_tok - tok0, (uint32_t)TOK);
    for (uint32_t i = first; i < end; i++) {
        uint32_t k0 = border[i], k1 = border[i + 1];
        for (uint32_t kc = k0 / CHUNK * CHUNK; kc < k1; kc += CHUNK) {
            UNLESS(F32_REUSE_SYNC) __syncwarp();
            UNROLL
            for (int m = 0; m < TOK; m++)
                xs[m * CHUNK + lane] = m < (int)rows && kc + lane < a.k
                                           ? x[(size_t)m * a.x_stride + kc + lane]
                                           : 0.0f;
            UNLESS(F32_FILL_SYNC) __syncwarp();
            add_chunk(c, xs, a.w + tile_f32_at(a.k, tile * TILE_OUT_F32 + lane, kc), kc, k0, k1);
        }
        c->end_slice(i + 1 == end);
    }
}

template <int TOK>
__global__ void __launch_bounds__(WARPS_MAX * 32, 1)
    linear_lanes(const linear_args a, const f32_shape s) /* without the 1, sm_120 spills for more */
{
    DYN_SHARED(float, shared);
    const sl_tree_node part = a.node[blockIdx.y];
    uint32_t lane = threadIdx.x % 32, ws = threadIdx.x / 32, tile = blockIdx.x / s.tok_blocks;
    uint32_t tok0 = blockIdx.x % s.tok_blocks * TOK, out = tile * TILE_OUT_F32 + lane;
    uint32_t first = min(ws * s.group_slices, part.n), end = min(first + s.group_slices, part.n);
    uint32_t floats = TOK * CHUNK + s.levels * TOK * 32;
    f32_chain<TOK> c;
    c.stack = shared + ws * floats + TOK * CHUNK + lane;
    c.top = c.index = 0;
    c.zero();
    add_slices(&c, a, shared + ws * floats, tile, tok0, lane, a.border + part.first, first, end);
    if (s.ws > 1) {
        c.top = 0;
        if (first < end)
            c.push();
        UNLESS(F32_GROUPS_BARRIER) __syncthreads();
        if (ws > 0)
            return;
        uint32_t n_groups = tile_ceil(part.n, s.group_slices);
        UNROLL
        for (int m = 0; m < TOK; m++) {
            float *p = c.stack + m * 32; /* the lane's own in every group */
            for (uint32_t width = 1; width < n_groups; width *= 2)
                for (uint32_t i = 0; i + width < n_groups; i += 2 * width)
                    p[i * floats] = p[i * floats] + p[(i + width) * floats];
            c.acc[m] = *p;
        }
    }
    UNROLL
    for (int m = 0; m < TOK; m++)
        if (tok0 + m < a.n_tok && out < a.n)
            store_sum(a, blockIdx.y, tok0 + m, out, c.acc[m]);
}

template <int TOK>
cudaError_t run(const linear_call &l)
{
    f32_shape s = {1, 1, 0, tile_ceil(l.a.n_tok, TOK)};
    while (s.group_slices < l.n_slices)
        s.group_slices *= 2, s.levels++;
    for (; s.ws < WARPS_MAX && s.levels > 0; s.ws *= 2)
        s.group_slices /= 2, s.levels--;
    if (s.ws > 1 && s.levels == 0)
        s.levels = 1;
    uint32_t n_blocks = tile_ceil(l.a.n, TILE_OUT_F32);
    return KLAUNCH_AS("linear_f32", linear_lanes<TOK>, dim3(s.tok_blocks * n_blocks, l.n_parts),
                      dim3(s.ws * 32), s.ws * warp_floats<TOK>(s) * sizeof(float), l.stream, l.a, s);
}

struct tree_args {
    sl_tree tree;
    const float *parts, *bias;
    float *y;
    uint32_t n_tok, n, y_stride;
    bool accumulate;
};

constexpr uint32_t TREE_THREADS = 128;

/* A thread a sum. shared: [n_parts][TREE_THREADS] */
__global__ void tree_sum(const tree_args a)
{
    DYN_SHARED(float, shared);
    float *v = shared + threadIdx.x;
    size_t i = (size_t)blockIdx.x * TREE_THREADS + threadIdx.x, all = (size_t)a.n_tok * a.n;
    if (i >= all)
        return;
    for (uint32_t p = 0; p < a.tree.n_parts; p++)
        v[p * TREE_THREADS] = a.parts[p * all + i];
    for (uint32_t j = 0; j + 1 < a.tree.n_parts; j++) {
        float *to = v + a.tree.add[j].to * TREE_THREADS;
        *to = *to + v[a.tree.add[j].from * (TREE_THREADS - MUTANT(TREE_STRIDE))];
    }
    uint32_t col = (uint32_t)(i % a.n);
    float *y = a.y + i / a.n * a.y_stride + col, sum = *v;
    if (a.bias)
        sum = sum + a.bias[col];
    if (a.accumulate)
        sum = sum + *y;
    *y = sum;
}

} // namespace

cudaError_t linear_f32(const linear_call &l)
{
    return l.a.n_tok == 1 ? run<1>(l) : run<8>(l);
}

cudaError_t cuda_tree_sum(cudaStream_t s, const struct sl_tree *tree, const float *parts,
                          uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                          uint32_t y_stride)
{
    tree_args a = {*tree, parts, bias, y, n_tok, n, y_stride, accumulate};
    size_t n_blocks = ((size_t)n_tok * n + TREE_THREADS - 1) / TREE_THREADS;
    if (n_blocks == 0)
        return cudaSuccess;
    return KLAUNCH(tree_sum, dim3((uint32_t)n_blocks), dim3(TREE_THREADS),
                   tree->n_parts * TREE_THREADS * sizeof(float), s, a);
}
