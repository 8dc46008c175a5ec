/* Paged KV, and causal attention over it in two forms with the same bits (kernels/num.h).
 *
 * Short: sequences of few query tokens. A block takes one segment of one KV head and all query
 * heads of its group, so K and V are read once; pages come by cp.async in two stages. A thread of
 * the scores holds all 16 partial sums of one position, a thread of the output two elements of some
 * rows, walking the positions upwards: no shuffles but in the softmax. Bound by memory: 4 rows take
 * 4 fma an element of K or V, an H100's SM gets 7.5 elements of f16 a clock of its 32 possible.
 * A second kernel folds the segments in index order.
 *
 * Long: a block takes a tile of query rows through all segments, K and V as float32 in shared
 * memory. Bound by shared memory: 8 loads of 16 bytes for 64 fma.
 *
 * Grids depend on nothing that only the device knows: blocks without work leave at once. */
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/tile_attn.cuh"

enum { SEG = CUDA_ATTN_SEGMENT, BLOCK = ATTN_BLOCK };

struct attn_args {
    const uint8_t *layer;
    attn_pages g;
    const uint32_t *q_start, *pos, *page_start, *pages, *seq_of;
    uint32_t n_heads, group, kv_first, q_stride, out_stride;
    uint32_t n_seg;     /* of the longest sequence; 1: results go straight to `out` */
    uint32_t short_max; /* query tokens of a short sequence, at most */
    float scale;
    const float *q;
    float *out, *partial_ml, *partial_o;
};

/* ---- reading pages ---- */

__device__ static const uint8_t *page_of(const attn_args &a, uint32_t seq, uint32_t pos)
{
    uint32_t page = a.pages[a.page_start[seq] + (pos >> a.g.page_shift)];
    return a.layer + page * a.g.page_bytes;
}

/* Where a row is, and its int8 scale. */
struct kv_row {
    const uint8_t *data, *scale;
};

template <enum sl_dtype TYPE>
__device__ static kv_row row_of(const attn_args &a, uint32_t seq, uint32_t half, uint32_t head,
                                uint32_t pos)
{
    const uint8_t *page = page_of(a, seq, pos);
    uint32_t slot = pos & ((1u << a.g.page_shift) - 1);
    kv_row r;
    r.data = page + attn_row_at(&a.g, attn_elem_bytes(TYPE), half, head, slot);
    r.scale = TYPE == SL_I8 ? page + attn_scale_at(&a.g, half, head, slot) : nullptr;
    return r;
}

/* Scales of odd head sizes lie at any address. */
__device__ static float load_scale(const uint8_t *p)
{
    uint32_t u = 0;
    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        u |= (uint32_t)p[i] << 8 * i;
    return __uint_as_float(u);
}

template <enum sl_dtype TYPE>
__device__ static float element(const uint8_t *row, uint32_t d, float scale)
{
    if (TYPE == SL_F32)
        return reinterpret_cast<const float *>(row)[d];
    if (TYPE == SL_I8)
        return (float)reinterpret_cast<const int8_t *>(row)[d] * scale;
    uint16_t h = reinterpret_cast<const uint16_t *>(row)[d];
    return TYPE == SL_F16 ? dev_from_f16(h) : dev_from_bf16(h);
}

template <enum sl_dtype TYPE> __device__ static float half_word(uint32_t w, uint32_t high)
{
    uint16_t h = (uint16_t)(high ? w >> 16 : w & 0xffffu);
    return TYPE == SL_F16 ? dev_from_f16(h) : dev_from_bf16(h);
}

/* Elements [first, first + 4) of a row at 16 bytes, the group of 16 by loads of 16 bytes. */
template <enum sl_dtype TYPE>
__device__ static void load_group(const uint8_t *p, float scale, float out[16])
{
    const uint4 *from = reinterpret_cast<const uint4 *>(p);
    const uint32_t n = attn_elem_bytes(TYPE);
    UNROLL
    for (uint32_t i = 0; i < n; i++) {
        uint4 v = from[i];
        uint32_t w[4] = {v.x, v.y, v.z, v.w};
        UNROLL
        for (uint32_t j = 0; j < 16 / n; j++) {
            float *to = out + i * (16 / n) + j;
            if (TYPE == SL_F32)
                *to = __uint_as_float(w[j % 4]);
            else if (TYPE == SL_I8)
                *to = (float)(int8_t)(w[j / 4] >> 8 * (j % 4)) * scale;
            else
                *to = half_word<TYPE>(w[j / 2 % 4], j % 2);
        }
    }
}

/* ---- rows of a tile ---- */

struct tile {
    uint32_t seq, head; /* KV head of the call */
    uint32_t first;     /* token of the sequence's first row */
    uint32_t r0, n_rows;
    uint32_t end; /* positions that the last row sees */
};

__device__ static uint32_t token_of(const attn_args &a, const tile &t, uint32_t r)
{
    return t.first + (t.r0 + r) / a.group;
}

__device__ static uint32_t head_of(const attn_args &a, const tile &t, uint32_t r)
{
    return t.head * a.group + (t.r0 + r) % a.group;
}

/* Positions of the segment from `base` that row r sees. */
__device__ static uint32_t seen_by(const attn_args &a, const tile &t, uint32_t r, uint32_t base)
{
    uint32_t pos = a.pos[token_of(a, t, r)];
    return pos < base ? 0 : min(pos - base + 1, (uint32_t)SEG);
}

/* False: no such tile, or the sequence is of the other form. */
__device__ static bool make_tile(const attn_args &a, uint32_t seq, uint32_t head, uint32_t r0,
                                 uint32_t rows, bool of_short, tile *t)
{
    uint32_t first = a.q_start[seq], n_tok = a.q_start[seq + 1] - first;
    if (n_tok * a.group <= r0 || (n_tok <= a.short_max) != of_short)
        return false;
    *t = {seq, head, first, r0, min(n_tok * a.group - r0, rows), 0};
    t->end = a.pos[token_of(a, *t, t->n_rows - 1)] + 1;
    return true;
}

/* p = exp(s - max) of a half-warp's row, n of them (0: none), in place; the sum and the maximum. */
__device__ static float softmax_row(float *s, uint32_t n, float *max)
{
    uint32_t lane = threadIdx.x % 16;
    float m = -MATH_INFINITY, sum = 0.0f;
    for (uint32_t i = lane; i < n; i += 16)
        m = s[i] > m ? s[i] : m;
    m = math_fold_max(m);
    for (uint32_t i = lane; i < n; i += 16) {
        float p = math_exp(s[i] - m);
        s[i] = p;
        sum = sum + p;
    }
    *max = m;
    return math_fold_sum(sum);
}

/* Factors that merge the next segment: of what is there, and of what comes. */
__device__ static void merge_factors(float *m, float m2, float *f, float *f2)
{
    float top = *m > m2 ? *m : m2;
    *f = math_exp(*m - top);
    *f2 = math_exp(m2 - top);
    *m = top;
}

/* ---- short ---- */

/* Shared memory of a block (attn_short). */
struct short_smem {
    float *q, *o, *p, *sum, *max;
    uint32_t *seen;
    uint8_t *stages;
};

__device__ static short_smem cut_smem(float *sm, const attn_short &g, uint32_t padded)
{
    uint32_t rows = (g.rows + 1) & ~1u;
    short_smem s;
    s.q = sm;
    s.o = s.q + rows * padded;
    s.p = s.o + rows * padded;
    s.max = s.p + rows * ATTN_P_STRIDE;
    s.sum = s.max + rows;
    s.seen = reinterpret_cast<uint32_t *>(s.sum + rows);
    s.stages = reinterpret_cast<uint8_t *>(sm) + g.stages_at;
    return s;
}

/* Starts to bring positions [pos, pos + n) of one half to a stage; rows are padded with zeros. */
template <enum sl_dtype TYPE>
__device__ static void stage_rows(const attn_args &a, const attn_short &g, const tile &t,
                                  uint32_t half, uint32_t pos, uint32_t n, uint8_t *stage)
{
    const uint32_t elem = attn_elem_bytes(TYPE), head = a.kv_first + t.head;
    uint32_t units = attn_padded(a.g.head_dim) * elem / 16, whole = a.g.head_dim * elem / 16;
    float *scales = reinterpret_cast<float *>(stage + g.chunk * g.stride);
    if (TYPE == SL_I8 && threadIdx.x < n)
        scales[threadIdx.x] =
            load_scale(row_of<TYPE>(a, t.seq, half, head, pos + threadIdx.x).scale);
    if (a.g.aligned) {
        for (uint32_t u = threadIdx.x; u < n * units; u += BLOCK) {
            uint32_t i = u / units, j = u % units;
            const uint8_t *from = row_of<TYPE>(a, t.seq, half, head, pos + i).data;
            if (j < whole)
                dev_copy16(stage + i * g.stride + 16 * j, from + 16 * j);
            else
                dev_copy16(stage + i * g.stride + 16 * j, from, 0);
        }
        return;
    }
    uint32_t bytes = units * 16, have = a.g.head_dim * elem;
    for (uint32_t u = threadIdx.x; u < n * bytes; u += BLOCK) {
        uint32_t i = u / bytes, j = u % bytes;
        const uint8_t *from = row_of<TYPE>(a, t.seq, half, head, pos + i).data;
        stage[i * g.stride + j] = j < have ? from[j] : (uint8_t)0;
    }
}

/* 16 partial sums of one thread, by halves. */
__device__ static float fold_lanes(float l[16])
{
    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        l[i] = l[i] + l[i + 8];
    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        l[i] = l[i] + l[i + 4];
    return (l[0] + l[2]) + (l[1] + l[3]);
}

/* Scores of n positions: a thread has one of them and every so many pairs of rows. */
template <enum sl_dtype TYPE>
__device__ static void score_rows(const attn_short &g, const short_smem &s, const uint8_t *stage,
                                  uint32_t padded, uint32_t n_rows, uint32_t n, float scale,
                                  float *p)
{
    uint32_t i = threadIdx.x % g.chunk, step = BLOCK / g.chunk;
    const uint8_t *k = stage + i * g.stride;
    float k_scale = 1.0f;
    if (i >= n)
        return;
    if (TYPE == SL_I8)
        k_scale = reinterpret_cast<const float *>(stage + g.chunk * g.stride)[i];
    for (uint32_t r = 2 * (threadIdx.x / g.chunk); r < n_rows; r += 2 * step) {
        float acc[2][16] = {}, kv[16];
        const float4 *q = reinterpret_cast<const float4 *>(s.q + r * padded);
        for (uint32_t d = 0; d < padded; d += 16) {
            load_group<TYPE>(k + d * attn_elem_bytes(TYPE), k_scale, kv);
            UNROLL
            for (uint32_t j = 0; j < 8; j++) {
                float4 v = q[(j / 4 * padded + d) / 4 + j % 4];
                float *to = acc[j / 4] + j % 4 * 4;
                const float *with = kv + j % 4 * 4;
                to[0] = __fmaf_rn(v.x, with[0], to[0]);
                to[1] = __fmaf_rn(v.y, with[1], to[1]);
                to[2] = __fmaf_rn(v.z, with[2], to[2]);
                to[3] = __fmaf_rn(v.w, with[3], to[3]);
            }
        }
        p[r * ATTN_P_STRIDE + i] = fold_lanes(acc[0]) * scale;
        p[(r + 1) * ATTN_P_STRIDE + i] = fold_lanes(acc[1]) * scale;
    }
}

template <enum sl_dtype TYPE>
__device__ static float2 load_two(const uint8_t *row, uint32_t d, float scale)
{
    if (TYPE == SL_F32)
        return reinterpret_cast<const float2 *>(row)[d / 2];
    if (TYPE == SL_I8) {
        uint16_t two = reinterpret_cast<const uint16_t *>(row)[d / 2];
        return make_float2((float)(int8_t)(two & 255) * scale, (float)(int8_t)(two >> 8) * scale);
    }
    uint32_t two = reinterpret_cast<const uint32_t *>(row)[d / 2];
    return make_float2(half_word<TYPE>(two, 0), half_word<TYPE>(two, 1));
}

/* What a thread weighs: two elements from d, of rows r, r + step, .. n_rows. */
struct weigh_part {
    uint32_t d, r, step;
};

__device__ static weigh_part weigh_part_of(uint32_t padded)
{
    uint32_t pairs = padded / 2;
    weigh_part w;
    w.step = pairs < BLOCK ? BLOCK / pairs : 1;
    w.d = threadIdx.x % pairs * 2;
    w.r = threadIdx.x / pairs;
    return w;
}

/* Adds n positions to the outputs of four rows' pair of elements, where the row sees them. */
template <enum sl_dtype TYPE, bool ALL>
__device__ static void weigh_run(const uint8_t *v, uint32_t stride, const float *scales,
                                 const float *p, uint32_t p_step, uint32_t first, uint32_t n,
                                 const uint32_t seen[4], float2 acc[4])
{
    UNROLL_BY(4)
    for (uint32_t i = first; i < n; i++) {
        float2 two = load_two<TYPE>(v + i * stride, 0, TYPE == SL_I8 ? scales[i] : 1.0f);
        UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            if (ALL ? seen[j] > 0 : i < seen[j]) {
                float w = p[j * p_step + i];
                acc[j].x = __fmaf_rn(w, two.x, acc[j].x);
                acc[j].y = __fmaf_rn(w, two.y, acc[j].y);
            }
        }
    }
}

/* Adds positions [p0, p0 + n) of the segment to the outputs of up to four rows. */
template <enum sl_dtype TYPE>
__device__ static void weigh_pair(const attn_short &g, const short_smem &s, const uint8_t *stage,
                                  uint32_t padded, uint32_t n_rows, const weigh_part &w,
                                  uint32_t p0, uint32_t n)
{
    const float *scales = reinterpret_cast<const float *>(stage + g.chunk * g.stride);
    const float *p = s.p + w.r * ATTN_P_STRIDE + p0;
    const uint8_t *v = stage + w.d * attn_elem_bytes(TYPE);
    uint32_t seen[4], all = n, p_step = w.step * ATTN_P_STRIDE;
    float2 acc[4];
    UNROLL
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t r = w.r + j * w.step;
        seen[j] = r < n_rows && s.seen[r] > p0 ? min(s.seen[r] - p0, n) : 0;
        acc[j] = make_float2(0.0f, 0.0f);
        if (seen[j] > 0) {
            acc[j] = *reinterpret_cast<float2 *>(s.o + r * padded + w.d);
            all = min(all, seen[j]);
        }
    }
    weigh_run<TYPE, true>(v, g.stride, scales, p, p_step, 0, all, seen, acc);
    weigh_run<TYPE, false>(v, g.stride, scales, p, p_step, all, n, seen, acc);
    UNROLL
    for (uint32_t j = 0; j < 4; j++)
        if (seen[j] > 0)
            *reinterpret_cast<float2 *>(s.o + (w.r + j * w.step) * padded + w.d) = acc[j];
}

template <enum sl_dtype TYPE>
__device__ static void weigh_rows(const attn_short &g, const short_smem &s, const uint8_t *stage,
                                  uint32_t padded, uint32_t n_rows, uint32_t p0, uint32_t n)
{
    weigh_part w = weigh_part_of(padded);
    if (w.r >= w.step)
        return;
    for (; w.d < padded; w.d += 2 * BLOCK)
        weigh_pair<TYPE>(g, s, stage, padded, n_rows, w, p0, n);
}

/* Rows' queries and positions seen; outputs start at +0. Rows up to the plan's are zeros. */
__device__ static void begin_rows(const attn_args &a, const attn_short &g, const tile &t,
                                  const short_smem &s, uint32_t padded, uint32_t base)
{
    uint32_t rows = (g.rows + 1) & ~1u;
    for (uint32_t u = threadIdx.x; u < rows * padded; u += BLOCK) {
        uint32_t r = u / padded, d = u % padded;
        float v = 0.0f;
        if (r < t.n_rows && d < a.g.head_dim)
            v = a.q[(size_t)token_of(a, t, r) * a.q_stride + head_of(a, t, r) * a.g.head_dim + d];
        s.q[u] = v;
        s.o[u] = 0.0f;
    }
    if (threadIdx.x < rows)
        s.seen[threadIdx.x] = threadIdx.x < t.n_rows ? seen_by(a, t, threadIdx.x, base) : 0;
}

/* The segment's results, or the call's when there is one segment. */
__device__ static void end_rows(const attn_args &a, const tile &t, const short_smem &s,
                                uint32_t padded, uint32_t seg)
{
    uint32_t dim = a.g.head_dim, slot = attn_slot(t.seq, t.first, a.short_max) - t.first;
    for (uint32_t u = threadIdx.x; u < t.n_rows * dim; u += BLOCK) {
        uint32_t r = u / dim, d = u % dim, tok = token_of(a, t, r), head = head_of(a, t, r);
        float v = s.o[r * padded + d];
        size_t at = attn_partial(slot + tok, head, a.n_heads, seg, a.n_seg);
        if (a.n_seg == 1) {
            a.out[(size_t)tok * a.out_stride + head * dim + d] = v / s.sum[r];
        } else if (s.seen[r] > 0) {
            a.partial_o[at * dim + d] = v;
            if (d == 0) {
                a.partial_ml[2 * at] = s.max[r];
                a.partial_ml[2 * at + 1] = s.sum[r];
            }
        }
    }
}

/* blockIdx: segment, tile of rows and KV head, sequence. */
template <enum sl_dtype TYPE>
static __global__ void __launch_bounds__(BLOCK)
    attention_short(attn_args a, attn_short g, uint32_t n_tiles)
{
    DYN_SHARED(float, sm);
    tile t;
    uint32_t seg = blockIdx.x, base = seg * SEG;
    if (!make_tile(a, blockIdx.z, blockIdx.y / n_tiles, blockIdx.y % n_tiles * g.rows, g.rows, true,
                   &t) ||
        t.end <= base)
        return;
    const uint32_t padded = attn_padded(a.g.head_dim), n_pos = min(t.end - base, (uint32_t)SEG);
    const uint32_t n_chunks = (n_pos + g.chunk - 1) / g.chunk;
    const short_smem s = cut_smem(sm, g, padded);
    stage_rows<TYPE>(a, g, t, 0, base, min(n_pos, g.chunk), s.stages);
    dev_copy_commit();
    begin_rows(a, g, t, s, padded, base);
    for (uint32_t c = 0; c < 2 * n_chunks; c++) {
        uint32_t p0 = (c < n_chunks ? c : c - n_chunks) * g.chunk, n = min(n_pos - p0, g.chunk);
        const uint8_t *stage = s.stages + (c & 1) * g.stage_bytes;
        if (c + 1 < 2 * n_chunks) {
            uint32_t half = c + 1 >= n_chunks, next = (half ? c + 1 - n_chunks : c + 1) * g.chunk;
            stage_rows<TYPE>(a, g, t, half, base + next, min(n_pos - next, g.chunk),
                             s.stages + (~c & 1) * g.stage_bytes);
            dev_copy_commit();
            dev_copy_wait<1>();
        } else {
            dev_copy_wait<0>();
        }
        __syncthreads();
        if (c < n_chunks)
            score_rows<TYPE>(g, s, stage, padded, t.n_rows, n, a.scale, s.p + p0);
        else
            weigh_rows<TYPE>(g, s, stage, padded, t.n_rows, p0, n);
        __syncthreads();
        if (c + 1 == n_chunks) {
            uint32_t r = threadIdx.x / 16;
            bool is_row = r < t.n_rows;
            float m = 0.0f, l = softmax_row(s.p + r * ATTN_P_STRIDE, is_row ? s.seen[r] : 0, &m);
            if (is_row && threadIdx.x % 16 == 0) {
                s.max[r] = m;
                s.sum[r] = l;
            }
            __syncthreads();
        }
    }
    end_rows(a, t, s, padded, seg);
}

/* Folds the segments of short sequences: one element of one row a thread. */
static __global__ void __launch_bounds__(BLOCK) attention_fold(attn_args a)
{
    uint32_t tok = blockIdx.x, seq = a.seq_of[tok], first = a.q_start[seq], dim = a.g.head_dim;
    uint32_t u = blockIdx.y * BLOCK + threadIdx.x, head = u / dim, d = u % dim;
    if (a.q_start[seq + 1] - first > a.short_max || head >= a.n_heads)
        return;
    uint32_t slot = attn_slot(seq, first, a.short_max) + tok - first;
    size_t at = attn_partial(slot, head, a.n_heads, 0, a.n_seg);
    uint32_t n_seg = a.pos[tok] / SEG + 1;
    float m = a.partial_ml[2 * at], l = a.partial_ml[2 * at + 1], o = a.partial_o[at * dim + d];
    for (uint32_t i = 1; i < n_seg; i++) {
        float f, f2;
        at++;
        merge_factors(&m, a.partial_ml[2 * at], &f, &f2);
        l = __fmaf_rn(a.partial_ml[2 * at + 1], f2, l * f);
        o = __fmaf_rn(a.partial_o[at * dim + d], f2, o * f);
    }
    a.out[(size_t)tok * a.out_stride + u] = o / l;
}

/* ---- long ---- */

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

/* Positions [pos, pos + n) of one half as float32, then zeros up to a multiple of 4. Threads run
 * over positions first, so that 8 of them store to 8 rows. */
template <enum sl_dtype TYPE>
__device__ static void load_rows(const attn_args &a, const attn_long &g, const tile &t,
                                 uint32_t half, uint32_t pos, uint32_t n, float *kv)
{
    const uint32_t elem = attn_elem_bytes(TYPE), n4 = (n + 3) & ~3u, dim = a.g.head_dim;
    for (uint32_t u = threadIdx.x; u < attn_padded(dim) / 16 * g.chunk; u += BLOCK) {
        uint32_t i = u % g.chunk, d = u / g.chunk * 16;
        float v[16] = {};
        if (i >= n4)
            continue;
        if (i < n) {
            kv_row r = row_of<TYPE>(a, t.seq, half, a.kv_first + t.head, pos + i);
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
        uint32_t at = min(u, n_tiles - 1), i = at % across * 4, r = at / across * 4;
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

/* What a thread weighs: elements d to d + 3 of rows r to r + 3; none where r is beyond the tile. */
struct weigh_quad {
    uint32_t d, r;
};

__device__ static float at4(const float4 &v, uint32_t i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Adds positions [p0, p0 + n) to acc [row][element]; n rounded up to 4. */
__device__ static void weigh_chunk(const attn_long &g, const long_smem &s, const weigh_quad &w,
                                   uint32_t p0, uint32_t n, float acc[4][4])
{
    uint32_t seen[4], all = n;
    UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        uint32_t at = s.seen[w.r + r];
        seen[r] = at > p0 ? at - p0 : 0;
        all = min(all, seen[r]);
    }
    for (uint32_t i = 0; i < n; i += 4) {
        float4 p[4];
        UNROLL
        for (uint32_t r = 0; r < 4; r++)
            p[r] = *reinterpret_cast<const float4 *>(s.p + (w.r + r) * ATTN_P_STRIDE + p0 + i);
        UNROLL
        for (uint32_t k = 0; k < 4; k++) {
            float4 v = *reinterpret_cast<const float4 *>(s.kv + (i + k) * g.stride + w.d);
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
                                  const weigh_quad &w, uint32_t base, const float acc[4][4])
{
    UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        uint32_t row = w.r + r;
        if (row >= t.n_rows || s.seen[row] == 0)
            continue;
        float *o =
            a.out + (size_t)token_of(a, t, row) * a.out_stride + head_of(a, t, row) * a.g.head_dim;
        UNROLL
        for (uint32_t e = 0; e < 4; e++)
            if (w.d + e < a.g.head_dim)
                o[w.d + e] =
                    base == 0 ? acc[r][e] : __fmaf_rn(acc[r][e], s.f2[row], o[w.d + e] * s.f[row]);
    }
}

__device__ static void finish_quad(const attn_args &a, const tile &t, const long_smem &s,
                                   const weigh_quad &w)
{
    for (uint32_t row = w.r; row < min(w.r + 4, t.n_rows); row++) {
        float *o =
            a.out + (size_t)token_of(a, t, row) * a.out_stride + head_of(a, t, row) * a.g.head_dim;
        for (uint32_t d = w.d; d < min(w.d + 4, a.g.head_dim); d++)
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
static __global__ void __launch_bounds__(BLOCK) attention_long(attn_args a, attn_long g)
{
    DYN_SHARED(float, sm);
    tile t;
    if (!make_tile(a, blockIdx.z, blockIdx.y, (gridDim.x - 1 - blockIdx.x) * g.rows, g.rows, false,
                   &t))
        return;
    const uint32_t padded = attn_padded(a.g.head_dim);
    const long_smem s = cut_smem(sm, g);
    const weigh_quad w = {threadIdx.x % (padded / 4) * 4, threadIdx.x / (padded / 4) * 4};
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
            __syncthreads();
            score_chunk(g, s, padded, p0, n, a.scale);
            __syncthreads();
        }
        softmax_rows(g, t, s, base);
        for (uint32_t p0 = 0; p0 < n_pos; p0 += g.chunk) {
            uint32_t n = min(n_pos - p0, g.chunk);
            load_rows<TYPE>(a, g, t, 1, base + p0, n, s.kv);
            __syncthreads();
            if (w.r < g.rows)
                weigh_chunk(g, s, w, p0, n, acc);
            __syncthreads();
        }
        if (w.r < g.rows)
            merge_quad(a, t, s, w, base, acc);
        __syncthreads();
    }
    if (w.r < g.rows)
        finish_quad(a, t, s, w);
}

/* ---- launches ---- */

/* All sequences are short where heads are too wide for the other form. */
static uint32_t short_max(uint32_t head_dim)
{
    return attn_padded(head_dim) > ATTN_LONG_DIM ? UINT32_MAX >> 1 : (uint32_t)ATTN_SHORT;
}

size_t cuda_attention_scratch(uint32_t n_seq, uint32_t n_tok, uint32_t n_heads, uint32_t head_dim,
                              uint32_t max_pos)
{
    uint32_t n_seg = max_pos / SEG + 1;
    if (n_seg == 1)
        return 0;
    return attn_slots(n_seq, n_tok, short_max(head_dim)) * n_heads * n_seg *
           (2 + (size_t)head_dim) * sizeof(float);
}

template <enum sl_dtype TYPE>
static cudaError_t launch_attention(cudaStream_t s, const attn_args &a,
                                    const struct cuda_batch *batch, uint32_t n_kv_heads)
{
    uint32_t short_tok = min(batch->max_rows, a.short_max), dim = a.g.head_dim;
    attn_short g = attn_plan_short(dim, attn_elem_bytes(TYPE), short_tok * a.group);
    uint32_t n_tiles = (short_tok * a.group + g.rows - 1) / g.rows;
    cudaError_t err =
        KLAUNCH(attention_short<TYPE>, dim3(a.n_seg, n_kv_heads * n_tiles, batch->n_seq), BLOCK,
                g.smem, s, a, g, n_tiles);
    if (err == cudaSuccess && a.n_seg > 1)
        err = KLAUNCH(attention_fold, dim3(batch->n_tok, (a.n_heads * dim + BLOCK - 1) / BLOCK),
                      BLOCK, 0, s, a);
    if (err != cudaSuccess || batch->max_rows <= a.short_max)
        return err;
    attn_long l = attn_plan_long(dim);
    n_tiles = (batch->max_rows * a.group + l.rows - 1) / l.rows;
    return KLAUNCH(attention_long<TYPE>, dim3(n_tiles, n_kv_heads, batch->n_seq), BLOCK, l.smem, s,
                   a, l);
}

cudaError_t cuda_attention(cudaStream_t s, const struct cuda_kv *kv, const struct cuda_batch *batch,
                           const struct cuda_attn *at, const float *q, float *out, void *scratch)
{
    if (batch->n_tok == 0)
        return cudaSuccess;
    attn_args a = {};
    a.layer = static_cast<const uint8_t *>(kv->layer);
    a.g = attn_pages_of(kv);
    a.q_start = batch->q_start;
    a.pos = batch->pos;
    a.page_start = batch->page_start;
    a.pages = batch->pages;
    a.seq_of = batch->seq_of;
    a.n_heads = at->n_heads;
    a.group = at->n_heads / at->n_kv_heads;
    a.kv_first = at->kv_first;
    a.q_stride = at->q_stride;
    a.out_stride = at->out_stride;
    a.n_seg = batch->max_pos / SEG + 1;
    a.short_max = short_max(kv->head_dim);
    a.scale = at->scale;
    a.q = q;
    a.out = out;
    a.partial_ml = static_cast<float *>(scratch);
    size_t slots = attn_slots(batch->n_seq, batch->n_tok, a.short_max);
    a.partial_o = a.partial_ml + 2 * slots * a.n_heads * a.n_seg;
    switch (kv->dtype) {
    case SL_F32:
        return launch_attention<SL_F32>(s, a, batch, at->n_kv_heads);
    case SL_F16:
        return launch_attention<SL_F16>(s, a, batch, at->n_kv_heads);
    case SL_BF16:
        return launch_attention<SL_BF16>(s, a, batch, at->n_kv_heads);
    case SL_I8:
        return launch_attention<SL_I8>(s, a, batch, at->n_kv_heads);
    default:
        return cudaErrorInvalidValue;
    }
}
