/* Row-wise ops: embedding, norm, rotary, silu, sums, gathers, statistics of logits.
 *
 * All are bound by memory but for two chains: the 16 partial sums of a norm and of a log-sum-exp
 * are ordered, so 16 lanes add in the order of kernels/num.h what the rest of the block has loaded
 * or computed. At 4 clocks an addition that is n / 4 clocks a row: 0.6 us for a norm of 4096, 38 us
 * for 256k logits at 1.7 GHz. */
#include "cuda/launch.h"
#include "cuda/rows.cuh"

static uint32_t blocks_of(size_t n_threads)
{
    return (uint32_t)((n_threads + BLOCK - 1) / BLOCK);
}

/* Rows of n elements cut into quads, one a thread. */
struct quad {
    uint32_t row, i, n; /* elements [i, i + n) of the row */
};

__device__ static bool quad_of_thread(uint32_t n_rows, uint32_t n, quad *q)
{
    uint32_t per_row = (n + QUAD - 1) / QUAD;
    size_t at = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    q->row = (uint32_t)(at / per_row);
    q->i = (uint32_t)(at % per_row) * QUAD;
    q->n = min(n - q->i, (uint32_t)QUAD);
    return q->row < n_rows;
}

static uint32_t quad_blocks(uint32_t n_rows, uint32_t n)
{
    return blocks_of((size_t)n_rows * ((n + QUAD - 1) / QUAD));
}

/* ---- embedding ---- */

/* Blocks are even in bytes and so are rows: 16-bit loads are all that is sure to be aligned. */
__device__ static uint32_t load_pair(const uint8_t *p)
{
    const uint16_t *h = reinterpret_cast<const uint16_t *>(p);
    return (uint32_t)h[0] | (uint32_t)h[1] << 16;
}

__device__ static float quant_at(uint32_t four, uint32_t j, enum sl_dtype type, bool high)
{
    uint32_t byte = four >> 8 * j & 255u;
    if (type == SL_Q8_0)
        return (float)(int8_t)byte;
    int nibble = (int)(high ? byte >> 4 : byte & 15u);
    return (float)(type == SL_Q4_0 ? nibble - 8 : nibble);
}

/* Elements i to i + 3 of a row in blocks of 32. */
template <enum sl_dtype TYPE>
__device__ static float4 load_block_quad(const uint8_t *row, uint32_t i)
{
    const uint32_t bytes = TYPE == SL_Q8_0 ? 34 : TYPE == SL_Q4_0 ? 18 : 20;
    const uint8_t *b = row + (size_t)(i / 32) * bytes;
    const uint16_t *scales = reinterpret_cast<const uint16_t *>(b);
    float d = dev_from_f16(scales[0]), m = 0.0f;
    if (TYPE == SL_Q4_1)
        m = dev_from_f16(scales[1]);
    uint32_t at = i % 32;
    bool high = TYPE != SL_Q8_0 && at >= 16;
    uint32_t four = load_pair(b + (TYPE == SL_Q4_1 ? 4 : 2) + (high ? at - 16 : at));
    float v[QUAD];
    UNROLL
    for (uint32_t j = 0; j < QUAD; j++) {
        v[j] = d * quant_at(four, j, TYPE, high);
        if (TYPE == SL_Q4_1)
            v[j] = v[j] + m;
    }
    return make_float4(v[0], v[1], v[2], v[3]);
}

template <enum sl_dtype TYPE> __device__ static float element_at(const void *table, size_t i)
{
    if (TYPE == SL_F32)
        return static_cast<const float *>(table)[i];
    uint16_t h = static_cast<const uint16_t *>(table)[i];
    return TYPE == SL_F16 ? dev_from_f16(h) : dev_from_bf16(h);
}

template <enum sl_dtype TYPE>
static __global__ void embed(const void *table, uint32_t k, const uint32_t *ids, uint32_t n_tok,
                             float *out)
{
    quad q;
    if (!quad_of_thread(n_tok, k, &q))
        return;
    size_t row = ids[q.row] + MUTANT(EMBED_ROW);
    float4 v;
    if (TYPE == SL_Q8_0 || TYPE == SL_Q4_0 || TYPE == SL_Q4_1) {
        const size_t bytes = TYPE == SL_Q8_0 ? 34 : TYPE == SL_Q4_0 ? 18 : 20;
        size_t at = row * (k / 32 + MUTANT(EMBED_STRIDE)) * bytes;
        v = load_block_quad<TYPE>(static_cast<const uint8_t *>(table) + at, q.i);
    } else {
        size_t at = row * k + q.i;
        v.x = element_at<TYPE>(table, at);
        v.y = q.n > 1 ? element_at<TYPE>(table, at + 1) : 0.0f;
        v.z = q.n > 2 ? element_at<TYPE>(table, at + 2) : 0.0f;
        v.w = q.n > 3 ? element_at<TYPE>(table, at + 3) : 0.0f;
    }
    store_quad(out + (size_t)q.row * k + q.i, q.n, v);
}

cudaError_t cuda_embed(cudaStream_t s, enum sl_dtype dtype, const void *table, uint32_t k,
                       const uint32_t *ids, uint32_t n_tok, float *out)
{
    if (n_tok == 0 || k == 0)
        return cudaSuccess;
    uint32_t grid = quad_blocks(n_tok, k);
    switch (dtype) {
    case SL_F32:
        return KLAUNCH_AS("embed", embed<SL_F32>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    case SL_F16:
        return KLAUNCH_AS("embed", embed<SL_F16>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    case SL_BF16:
        return KLAUNCH_AS("embed", embed<SL_BF16>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    case SL_Q8_0:
        return KLAUNCH_AS("embed", embed<SL_Q8_0>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    case SL_Q4_0:
        return KLAUNCH_AS("embed", embed<SL_Q4_0>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    case SL_Q4_1:
        return KLAUNCH_AS("embed", embed<SL_Q4_1>, grid, BLOCK, 0, s, table, k, ids, n_tok, out);
    default:
        return cudaErrorInvalidValue;
    }
}

/* ---- norm ---- */

static __global__ void __launch_bounds__(BLOCK)
    rms_norm(const float *x, const float *w, float eps, uint32_t dim, float *out)
{
    const float *row = x + (size_t)blockIdx.x * dim;
    float *to = out + (size_t)blockIdx.x * dim;
    float r = norm_scale(row, dim, eps);
    for (uint32_t i = threadIdx.x * QUAD; i < dim; i += BLOCK * QUAD) {
        uint32_t n = min(dim - i, (uint32_t)QUAD);
        float4 a = load_quad(row + i, n), b = load_quad(w + i, n);
        store_quad(to + i, n,
                   make_float4((a.x * r) * b.x, (a.y * r) * b.y, (a.z * r) * b.z, (a.w * r) * b.w));
    }
}

cudaError_t cuda_rms_norm(cudaStream_t s, const float *x, const float *w, float eps, uint32_t n_tok,
                          uint32_t dim, float *out)
{
    if (n_tok == 0 || dim == 0)
        return cudaSuccess;
    return KLAUNCH(rms_norm, n_tok, BLOCK, 0, s, x, w, eps, dim, out);
}

/* ---- rotary ---- */

/* The two elements of pair i of a head. */
__device__ static void rotate(float *a, float *b, float c, float s)
{
    float x = *a, y = *b;
    *a = __fmaf_rn(x, c, -(y * s));
    *b = __fmaf_rn(y, c, x * s);
}

/* A pair a thread. */
static __global__ void rope(bool neox, uint32_t half, const float *cos, const float *sin, float *x,
                            uint32_t stride, uint32_t n_heads, uint32_t head_dim,
                            const uint32_t *pos, uint32_t n_tok)
{
    size_t at = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    uint32_t i = (uint32_t)(at % half);
    size_t head = at / half;
    uint32_t tok = (uint32_t)(head / n_heads);
    if (tok >= n_tok + MUTANT(ROPE_TOKENS))
        return;
    float *row = x + (size_t)tok * stride + head % n_heads * head_dim;
    size_t angle = (size_t)pos[tok] * (half + MUTANT(ROPE_STRIDE)) + i;
    if (neox)
        rotate(row + i, row + half + i, cos[angle], sin[angle]);
    else
        rotate(row + 2 * i, row + 2 * i + 1, cos[angle], sin[angle]);
}

cudaError_t cuda_rope(cudaStream_t s, bool neox, uint32_t n_rot, const float *cos, const float *sin,
                      float *x, uint32_t stride, uint32_t n_heads, uint32_t head_dim,
                      const uint32_t *pos, uint32_t n_tok)
{
    uint32_t half = n_rot / 2;
    if (n_tok == 0 || half == 0 || n_heads == 0)
        return cudaSuccess;
    return KLAUNCH(rope, blocks_of((size_t)n_tok * n_heads * half), BLOCK, 0, s, neox, half, cos,
                   sin, x, stride, n_heads, head_dim, pos, n_tok);
}

/* ---- elementwise ---- */

static __global__ void silu_mul(const float *gu, uint32_t n_tok, uint32_t dim, float *out)
{
    quad q;
    if (!quad_of_thread(n_tok, dim, &q))
        return;
    const float *gate = gu + (size_t)q.row * 2 * dim + q.i;
    float4 g = load_quad(gate, q.n), u = load_quad(gate + dim - MUTANT(SILU_UP), q.n);
    store_quad(out + (size_t)q.row * dim + q.i, q.n,
               make_float4(silu_times(g.x, u.x), silu_times(g.y, u.y), silu_times(g.z, u.z),
                           silu_times(g.w, u.w)));
}

cudaError_t cuda_silu_mul(cudaStream_t s, const float *gu, uint32_t n_tok, uint32_t dim, float *out)
{
    if (n_tok == 0 || dim == 0)
        return cudaSuccess;
    return KLAUNCH(silu_mul, quad_blocks(n_tok, dim), BLOCK, 0, s, gu, n_tok, dim, out);
}

static __global__ void add(float *x, const float *y, size_t n)
{
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * QUAD;
    if (i >= n)
        return;
    uint32_t left = n - i < QUAD && !MUTANT(ADD_TAIL) ? (uint32_t)(n - i) : (uint32_t)QUAD;
    float4 a = load_quad(x + i, left), b = load_quad(y + i, left);
    store_quad(x + i, left, make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w));
}

cudaError_t cuda_add(cudaStream_t s, float *x, const float *y, size_t n)
{
    if (n == 0)
        return cudaSuccess;
    return KLAUNCH(add, blocks_of((n + QUAD - 1) / QUAD), BLOCK, 0, s, x, y, n);
}

static __global__ void gather_rows(const float *x, const uint32_t *rows, uint32_t n_rows,
                                   uint32_t dim, float *out)
{
    quad q;
    if (!quad_of_thread(n_rows, dim, &q))
        return;
    store_quad(out + (size_t)q.row * dim + q.i, q.n,
               load_quad(x + (size_t)rows[q.row] * (dim + MUTANT(GATHER_STRIDE)) + q.i, q.n));
}

cudaError_t cuda_gather_rows(cudaStream_t s, const float *x, const uint32_t *rows, uint32_t n_rows,
                             uint32_t dim, float *out)
{
    if (n_rows == 0 || dim == 0)
        return cudaSuccess;
    return KLAUNCH(gather_rows, quad_blocks(n_rows, dim), BLOCK, 0, s, x, rows, n_rows, dim, out);
}

/* ---- statistics of logits ---- */

enum { HALVES = BLOCK / 16, STATS_TILE = 2048 };

/* The row's maximum, with the scalar form's choice among +0 and -0: 16 lanes keep the earliest of
 * equals, folding takes the upper of equals, the partial last group comes after. NaN never wins. */
__device__ static float row_max(const float *x, uint32_t n, float *lanes)
{
    uint32_t n_groups = n / 16, half = threadIdx.x / 16, lane = threadIdx.x % 16;
    uint32_t first = (uint32_t)((uint64_t)n_groups * half / HALVES);
    uint32_t end = (uint32_t)((uint64_t)n_groups * (half + 1) / HALVES);
    float m = -MATH_INFINITY;
    UNROLL_BY(4)
    for (uint32_t g = first; g < end; g++) {
        float v = x[(size_t)g * 16 + lane];
        m = v > m ? v : m;
    }
    lanes[threadIdx.x] = m;
    UNLESS(STATS_LANES_BARRIER) __syncthreads();
    if (threadIdx.x < 32) {
        m = lanes[lane];
        for (uint32_t h = 1; h < HALVES; h++)
            m = lanes[16 * h + lane] > m ? lanes[16 * h + lane] : m;
        UNROLL
        for (int i = 8; i; i /= 2) { /* lane 0's result is the fold's */
            float o = __shfl_xor_sync(FULL_WARP, m, i);
            m = m > o ? m : o;
        }
        for (uint32_t i = n_groups * 16; i < n - MUTANT(STATS_TAIL); i++)
            m = x[i] > m ? x[i] : m;
        UNLESS(STATS_LANES_SYNC) __syncwarp();
        if (threadIdx.x == 0)
            lanes[0] = m;
    }
    UNLESS(STATS_MAX_BARRIER) __syncthreads();
    m = lanes[0];
    UNLESS(STATS_RETURN_BARRIER) __syncthreads();
    return m;
}

/* What a thread has seen of its row's elements. */
struct seen {
    uint32_t at; /* lowest index of the maximum */
    bool nan;
};

/* exp(x - max) of elements [first, first + STATS_TILE), +0 behind the row's end, by warps 1 up. */
__device__ static void fill_exps(const float *x, uint32_t n, uint32_t first, float max, float *tile,
                                 seen *my)
{
    for (uint32_t i = threadIdx.x - 32; i < STATS_TILE; i += BLOCK - 32) {
        uint32_t at = first + i;
        if (at >= n) {
            tile[i] = 0.0f;
            continue;
        }
        float v = x[at];
        tile[i] = math_exp(v - max);
        my->nan |= v != v;
        if (v == max)
            my->at = min(my->at, at);
    }
}

/* One row a block: warp 0 adds in order what the others have computed for it. */
static __global__ void __launch_bounds__(BLOCK)
    logit_stats(const float *logits, uint32_t n, float *max, uint32_t *argmax, float *log_sum)
{
    SHARED_ARRAY(float, tiles, 2 * STATS_TILE);
    SHARED_ARRAY(seen, found, BLOCK);
    const float *x = logits + (size_t)blockIdx.x * n;
    float m = row_max(x, n, tiles), sum = 0.0f;
    seen my = {n - 1, false};
    for (uint32_t first = 0, turn = 0; first < n; first += STATS_TILE, turn ^= 1) {
        float *tile = tiles + turn * STATS_TILE;
        if (threadIdx.x >= 32)
            fill_exps(x, n, first, m, tile, &my);
        /* The other tile is filled while this one is added up. */
        UNLESS(STATS_TILE_BARRIER) __syncthreads();
        uint32_t end = min(n - first, (uint32_t)STATS_TILE);
        if (threadIdx.x < 16) {
            UNROLL_BY(8)
            for (uint32_t i = threadIdx.x; i < end; i += 16)
                sum = sum + tile[i];
        }
    }
    found[threadIdx.x] = my;
    UNLESS(STATS_FOUND_BARRIER) __syncthreads();
    if (threadIdx.x >= 32)
        return;
    sum = math_fold_sum(sum);
    for (uint32_t i = threadIdx.x; i < BLOCK; i += 32) {
        my.at = min(my.at, found[i].at);
        my.nan |= found[i].nan;
    }
    UNROLL
    for (int i = 16; i; i /= 2)
        my.at = min(my.at, __shfl_xor_sync(FULL_WARP, my.at, i));
    bool nan = __any_sync(FULL_WARP, my.nan);
    if (threadIdx.x == 0) {
        max[blockIdx.x] = nan ? MATH_NAN : m;
        argmax[blockIdx.x] = nan ? 0 : my.at;
        log_sum[blockIdx.x] = math_log(sum);
    }
}

cudaError_t cuda_logit_stats(cudaStream_t s, const float *logits, uint32_t n_rows, uint32_t n,
                             float *max, uint32_t *argmax, float *log_sum)
{
    if (n_rows == 0 || n == 0)
        return cudaSuccess;
    return KLAUNCH(logit_stats, n_rows, BLOCK, 0, s, logits, n, max, argmax, log_sum);
}
