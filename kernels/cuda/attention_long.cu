/* Attention of long prompts: a block takes a tile of query rows through all segments, K and V as
 * float32 in shared memory. The 16 partial sums of a score lie in four threads, which share a tile
 * of 4 rows x 4 positions; a thread of the output has 4 rows x 4 elements. Bound by shared memory:
 * 8 loads of 16 bytes for 64 fma. */
#include "cuda/attn.cuh"

/* Shared memory of a block (attn_long). f, f2: what a merge multiplies by. */
struct long_smem {
    float *q, *p, *kv, *max, *sum, *f, *f2;
    uint32_t *seen;
};

__device__ static long_smem cut_smem(float *sm, const attn_long &g)
{
    long_smem s;
    s.q = sm;
    s.p = sm + g.rows * g.stride;
    s.kv = sm + g.kv_at;
    s.max = sm + g.words_at;
    s.sum = s.max + g.rows;
    s.f = s.sum + g.rows;
    s.f2 = s.f + g.rows;
    s.seen = reinterpret_cast<uint32_t *>(s.f2 + g.rows);
    return s;
}

/* A group of 16 elements to shared memory: lanes j, j + 4, j + 8, j + 12 side by side, or as is. */
__device__ static void store_group(float *to, const float v[16], bool by_lane)
{
    float4 *f = reinterpret_cast<float4 *>(to);
    UNROLL
    for (uint32_t j = 0; j < 4; j++)
        f[j] = by_lane ? make_float4(v[j], v[j + 4], v[j + 8], v[j + 12])
                       : make_float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]);
}

/* Positions [pos, pos + n) of one half as float32, then zeros up to a multiple of 4. */
template <enum sl_dtype TYPE>
__device__ static void load_rows(const attn_args &a, const attn_long &g, const tile &t,
                                 uint32_t half, uint32_t pos, uint32_t n, float *kv)
{
    const uint32_t elem = attn_elem_bytes(TYPE), n4 = (n + 3) & ~3u, dim = a.g.head_dim;
    for (uint32_t u = threadIdx.x; u < attn_padded(dim) / 16 * g.chunk; u += BLOCK) {
        uint32_t i = attn_load_at(u, g.chunk).row, d = attn_load_at(u, g.chunk).i;
        float v[16] = {};
        if (i >= n4)
            continue;
        if (i < n) {
            kv_row r = row_of<TYPE>(a, t.pages, half, a.kv_first + t.head, pos + i);
            float scale = TYPE == SL_I8 ? load_scale(r.scale) : 1.0f;
            if (a.g.aligned && d + 16 <= dim) {
                load_group<TYPE>(r.data + d * elem, scale, v);
            } else {
                UNROLL
                for (uint32_t j = 0; j < 16; j++)
                    v[j] = d + j < dim ? element<TYPE>(r.data, d + j, scale) : 0.0f;
            }
        }
        store_group(kv + i * g.stride + d, v, half == 0);
    }
}

/* Four lanes' part of 4 rows x 4 positions. */
__device__ static void score_tile(const float *q, const float *k, uint32_t stride, uint32_t padded,
                                  float acc[4][4][4])
{
    for (uint32_t d = 0; d < padded; d += 16) {
        float4 kv[4];
        UNROLL
        for (uint32_t i = 0; i < 4; i++)
            kv[i] = *reinterpret_cast<const float4 *>(k + i * stride + d);
        UNROLL
        for (uint32_t r = 0; r < 4; r++) {
            float4 v = *reinterpret_cast<const float4 *>(q + r * stride + d);
            UNROLL
            for (uint32_t i = 0; i < 4; i++) {
                float *to = acc[r][i];
                to[0] = __fmaf_rn(v.x, kv[i].x, to[0]);
                to[1] = __fmaf_rn(v.y, kv[i].y, to[1]);
                to[2] = __fmaf_rn(v.z, kv[i].z, to[2]);
                to[3] = __fmaf_rn(v.w, kv[i].w, to[3]);
            }
        }
    }
}

/* Folds the lanes of four threads; thread j gets row j's four positions. By halves: lanes 8 and
 * then 4 apart are the thread's own, those 2 and 1 apart its neighbours', and of two rows each
 * thread sends the one that it does not keep. */
__device__ static float4 fold_tile(const float acc[4][4][4], uint32_t j)
{
    float two[2][4], one[4];
    UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        float v[4];
        UNROLL
        for (uint32_t r = 0; r < 4; r++)
            v[r] = (acc[r][i][0] + acc[r][i][2]) + (acc[r][i][1] + acc[r][i][3]);
        UNROLL
        for (uint32_t r = 0; r < 2; r++) {
            float mine = j & 2 ? v[r + 2] : v[r], send = j & 2 ? v[r] : v[r + 2];
            two[r][i] = mine + __shfl_xor_sync(FULL_WARP, send, 2);
        }
        float mine = j & 1 ? two[1][i] : two[0][i], send = j & 1 ? two[0][i] : two[1][i];
        one[i] = mine + __shfl_xor_sync(FULL_WARP, send, 1);
    }
    return make_float4(one[0], one[1], one[2], one[3]);
}

/* Scores of positions [p0, p0 + n) of the segment; n rounded up to 4. */
__device__ static void score_chunk(const attn_long &g, const long_smem &s, uint32_t padded,
                                   uint32_t p0, uint32_t n, float scale)
{
    uint32_t across = (n + 3) / 4, n_tiles = across * (g.rows / 4), j = threadIdx.x % 4;
    /* Whole warps run together: quads beyond the last tile repeat it. */
    for (uint32_t u = threadIdx.x / 4; u < ((n_tiles + 7) & ~7u); u += BLOCK / 4) {
        const attn_at at = attn_score_at(min(u, n_tiles - 1), across);
        const uint32_t i = at.i, r = at.row;
        float acc[4][4][4] = {};
        score_tile(s.q + r * g.stride + 4 * j, s.kv + i * g.stride + 4 * j, g.stride, padded, acc);
        float4 v = fold_tile(acc, j);
        if (u < n_tiles)
            *reinterpret_cast<float4 *>(s.p + (r + j) * ATTN_P_STRIDE + p0 + i) =
                make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
    }
}

/* Every row's weights, and what merging the segment takes. Half-warps, a row each. */
__device__ static void softmax_rows(const attn_long &g, const tile &t, const long_smem &s,
                                    uint32_t base)
{
    for (uint32_t r = threadIdx.x / 16; r < ((g.rows + 7) & ~7u); r += BLOCK / 16) {
        uint32_t n = r < t.n_rows ? s.seen[r] : 0;
        float m2 = 0.0f, l2 = softmax_row(s.p + r * ATTN_P_STRIDE, n, &m2);
        if (n == 0 || threadIdx.x % 16 != 0)
            continue;
        if (base == 0) {
            s.max[r] = m2;
            s.sum[r] = l2;
        } else {
            float m = s.max[r], f, f2;
            merge_factors(&m, m2, &f, &f2);
            s.max[r] = m;
            s.sum[r] = __fmaf_rn(l2, f2, s.sum[r] * f);
            s.f[r] = f;
            s.f2[r] = f2;
        }
    }
}

__device__ static float at4(const float4 &v, uint32_t i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Adds positions [p0, p0 + n) to acc [row][element]; n rounded up to 4. */
__device__ static void weigh_chunk(const attn_long &g, const long_smem &s, const attn_at &w,
                                   uint32_t p0, uint32_t n, float acc[4][4])
{
    uint32_t seen[4], all = n;
    UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        uint32_t at = s.seen[w.row + r];
        seen[r] = at > p0 ? at - p0 : 0;
        all = min(all, seen[r]);
    }
    for (uint32_t i = 0; i < n; i += 4) {
        float4 p[4];
        UNROLL
        for (uint32_t r = 0; r < 4; r++)
            p[r] = *reinterpret_cast<const float4 *>(s.p + (w.row + r) * ATTN_P_STRIDE + p0 + i);
        UNROLL
        for (uint32_t k = 0; k < 4; k++) {
            float4 v = *reinterpret_cast<const float4 *>(s.kv + (i + k) * g.stride + w.i);
            UNROLL
            for (uint32_t r = 0; r < 4; r++) {
                if (i + 4 > all && i + k >= seen[r])
                    continue;
                float x = at4(p[r], k);
                acc[r][0] = __fmaf_rn(x, v.x, acc[r][0]);
                acc[r][1] = __fmaf_rn(x, v.y, acc[r][1]);
                acc[r][2] = __fmaf_rn(x, v.z, acc[r][2]);
                acc[r][3] = __fmaf_rn(x, v.w, acc[r][3]);
            }
        }
    }
}

/* Folds the segment into the rows' running results, which live in `out`, the thread's own. */
__device__ static void merge_quad(const attn_args &a, const tile &t, const long_smem &s,
                                  const attn_at &w, uint32_t base, const float acc[4][4])
{
    UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        uint32_t row = w.row + r;
        if (row >= t.n_rows || s.seen[row] == 0)
            continue;
        float *o =
            a.out + (size_t)token_of(a, t, row) * a.out_stride + head_of(a, t, row) * a.g.head_dim;
        UNROLL
        for (uint32_t e = 0; e < 4; e++)
            if (w.i + e < a.g.head_dim)
                o[w.i + e] =
                    base == 0 ? acc[r][e] : __fmaf_rn(acc[r][e], s.f2[row], o[w.i + e] * s.f[row]);
    }
}

__device__ static void finish_quad(const attn_args &a, const tile &t, const long_smem &s,
                                   const attn_at &w)
{
    for (uint32_t row = w.row; row < min(w.row + 4, t.n_rows); row++) {
        float *o =
            a.out + (size_t)token_of(a, t, row) * a.out_stride + head_of(a, t, row) * a.g.head_dim;
        for (uint32_t d = w.i; d < min(w.i + 4, a.g.head_dim); d++)
            o[d] = o[d] / s.sum[row];
    }
}

__device__ static void load_queries(const attn_args &a, const attn_long &g, const tile &t,
                                    uint32_t padded, float *q)
{
    for (uint32_t u = threadIdx.x; u < g.rows * padded; u += BLOCK) {
        uint32_t r = u / padded, d = u % padded;
        float v = 0.0f;
        if (r < t.n_rows && d < a.g.head_dim)
            v = a.q[(size_t)token_of(a, t, r) * a.q_stride + head_of(a, t, r) * a.g.head_dim + d];
        q[r * g.stride + (d & ~15u) + attn_lane_word(d % 16)] = v;
    }
}

/* blockIdx: tile of rows (the last, which has most to do, first), KV head, sequence. */
template <enum sl_dtype TYPE>
static __global__ void __launch_bounds__(BLOCK, 4) attention_long(attn_args a, attn_long g)
{
    DYN_SHARED(float, sm);
    tile t;
    if (!make_tile(a, blockIdx.z, blockIdx.y, (gridDim.x - 1 - blockIdx.x) * g.rows, g.rows, false,
                   &t))
        return;
    const uint32_t padded = attn_padded(a.g.head_dim);
    const long_smem s = cut_smem(sm, g);
    const attn_at w = attn_weigh_at(threadIdx.x, padded);
    load_queries(a, g, t, padded, s.q);
    for (uint32_t base = 0; base < t.end; base += SEG) {
        uint32_t n_pos = min(t.end - base, (uint32_t)SEG);
        float acc[4][4] = {};
        /* Rows that are not there see what the last one sees. */
        if (threadIdx.x < g.rows)
            s.seen[threadIdx.x] = seen_by(a, t, min(threadIdx.x, t.n_rows - 1), base);
        for (uint32_t p0 = 0; p0 < n_pos; p0 += g.chunk) {
            uint32_t n = min(n_pos - p0, g.chunk);
            load_rows<TYPE>(a, g, t, 0, base + p0, n, s.kv);
            UNLESS(LONG_KEYS_BARRIER) __syncthreads();
            score_chunk(g, s, padded, p0, n, a.scale);
            UNLESS(LONG_SCORES_BARRIER) __syncthreads();
        }
        softmax_rows(g, t, s, base);
        for (uint32_t p0 = 0; p0 < n_pos; p0 += g.chunk) {
            uint32_t n = min(n_pos - p0, g.chunk);
            load_rows<TYPE>(a, g, t, 1, base + p0, n, s.kv);
            UNLESS(LONG_VALUES_BARRIER) __syncthreads();
            if (w.row < g.rows)
                weigh_chunk(g, s, w, p0, n, acc);
            UNLESS(LONG_WEIGH_BARRIER) __syncthreads();
        }
        if (w.row < g.rows)
            merge_quad(a, t, s, w, base, acc);
        UNLESS(LONG_SEEN_BARRIER) __syncthreads();
    }
    if (w.row < g.rows)
        finish_quad(a, t, s, w);
}

template <enum sl_dtype TYPE>
static cudaError_t launch(cudaStream_t s, const attn_args &a, const struct cuda_batch *batch,
                          uint32_t n_kv_heads)
{
    attn_long g = attn_plan_long(a.g.head_dim);
    uint32_t n_tiles = (batch->max_rows * a.group + g.rows - 1) / g.rows;
    return KLAUNCH_AS("attention_long", attention_long<TYPE>,
                      dim3(n_tiles, n_kv_heads, batch->n_seq), BLOCK, g.smem, s, a, g);
}

cudaError_t attn_launch_long(cudaStream_t s, enum sl_dtype dtype, const attn_args &a,
                             const struct cuda_batch *batch, uint32_t n_kv_heads)
{
    switch (dtype) {
    case SL_F32:
        return launch<SL_F32>(s, a, batch, n_kv_heads);
    case SL_F16:
        return launch<SL_F16>(s, a, batch, n_kv_heads);
    case SL_BF16:
        return launch<SL_BF16>(s, a, batch, n_kv_heads);
    case SL_I8:
        return launch<SL_I8>(s, a, batch, n_kv_heads);
    default:
        return cudaErrorInvalidValue;
    }
}
