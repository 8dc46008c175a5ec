/* Causal attention over pages, in two forms with the same bits (kernels/num.h).
 *
 * Here, sequences of few query tokens. A block takes one segment of one KV head and the query heads
 * of its group, so K and V are read once; pages come by cp.async in two stages. A thread of the
 * scores holds all 16 partial sums of one position, a thread of the output two elements of some
 * rows, walking the positions upwards: no shuffles but in the softmax. Bound by memory: 4 rows take
 * 4 fma an element of K or V, an H100's SM gets 7.5 elements of f16 a clock of its 32 possible.
 * A second kernel folds the segments in index order. Longer ones: attention_long.cu.
 *
 * Grids depend on nothing that only the device knows: blocks without work leave at once. */
#include "cuda/attn.cuh"

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
            load_scale(row_of<TYPE>(a, t.pages, half, head, pos + threadIdx.x).scale);
    if (a.g.aligned) {
        for (uint32_t u = threadIdx.x; u < n * units; u += BLOCK) {
            uint32_t i = u / units, j = u % units;
            const uint8_t *from = row_of<TYPE>(a, t.pages, half, head, pos + i).data;
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
        const uint8_t *from = row_of<TYPE>(a, t.pages, half, head, pos + i).data;
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
    const attn_part w = attn_score_part(threadIdx.x, g.chunk);
    const uint32_t i = w.i;
    const uint8_t *k = stage + i * g.stride;
    float k_scale = 1.0f;
    if (i >= n)
        return;
    if (TYPE == SL_I8)
        k_scale = reinterpret_cast<const float *>(stage + g.chunk * g.stride)[i];
    for (uint32_t r = 2 * w.first; r < n_rows; r += 2 * w.step) {
        float acc[2][16] = {}, kv[16];
        const float4 *q = reinterpret_cast<const float4 *>(s.q + r * padded);
        UNROLL_BY(1) /* more would take registers from other blocks */
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
                                  uint32_t padded, uint32_t n_rows, const attn_part &w, uint32_t p0,
                                  uint32_t n)
{
    const float *scales = reinterpret_cast<const float *>(stage + g.chunk * g.stride);
    const float *p = s.p + w.first * ATTN_P_STRIDE + p0;
    const uint8_t *v = stage + w.i * attn_elem_bytes(TYPE);
    uint32_t seen[4], all = n, p_step = w.step * ATTN_P_STRIDE;
    float2 acc[4];
    UNROLL
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t r = w.first + j * w.step;
        seen[j] = r < n_rows && s.seen[r] > p0 ? min(s.seen[r] - p0, n) : 0;
        acc[j] = make_float2(0.0f, 0.0f);
        if (seen[j] > 0) {
            acc[j] = *reinterpret_cast<float2 *>(s.o + r * padded + w.i);
            all = min(all, seen[j]);
        }
    }
    weigh_run<TYPE, true>(v, g.stride, scales, p, p_step, 0, all, seen, acc);
    weigh_run<TYPE, false>(v, g.stride, scales, p, p_step, all, n, seen, acc);
    UNROLL
    for (uint32_t j = 0; j < 4; j++)
        if (seen[j] > 0)
            *reinterpret_cast<float2 *>(s.o + (w.first + j * w.step) * padded + w.i) = acc[j];
}

template <enum sl_dtype TYPE>
__device__ static void weigh_rows(const attn_short &g, const short_smem &s, const uint8_t *stage,
                                  uint32_t padded, uint32_t n_rows, uint32_t p0, uint32_t n)
{
    attn_part w = attn_weigh_part(threadIdx.x, padded);
    if (w.first >= w.step)
        return;
    for (; w.i < padded; w.i += 2 * BLOCK)
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
    if (MUTANT(SHORT_CAUSAL) && threadIdx.x < t.n_rows)
        s.seen[threadIdx.x]++;
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
static __global__ void __launch_bounds__(BLOCK, 4)
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
            UNLESS(SHORT_WAIT) dev_copy_wait<1>();
        } else {
            dev_copy_wait<0>();
        }
        UNLESS(SHORT_STAGE_BARRIER) __syncthreads();
        if (c < n_chunks)
            score_rows<TYPE>(g, s, stage, padded, t.n_rows, n, a.scale, s.p + p0);
        else
            weigh_rows<TYPE>(g, s, stage, padded, t.n_rows, p0, n);
        UNLESS(SHORT_REUSE_BARRIER) __syncthreads();
        if (c + 1 == n_chunks) {
            uint32_t r = threadIdx.x / 16;
            bool is_row = r < t.n_rows;
            float m = 0.0f, l = softmax_row(s.p + r * ATTN_P_STRIDE, is_row ? s.seen[r] : 0, &m);
            if (is_row && threadIdx.x % 16 == 0) {
                s.max[r] = m;
                s.sum[r] = l;
            } /* the next turn's barrier comes before anyone reads these */
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
    uint32_t n_seg = a.pos[tok] / SEG + 1 - MUTANT(FOLD_LAST);
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
static cudaError_t launch(cudaStream_t s, const attn_args &a, const struct cuda_batch *batch,
                          uint32_t n_kv_heads)
{
    uint32_t n_tok = min(batch->max_rows, a.short_max), dim = a.g.head_dim;
    attn_short g = attn_plan_short(dim, attn_elem_bytes(TYPE), n_tok * a.group);
    uint32_t n_tiles = (n_tok * a.group + g.rows - 1) / g.rows;
    cudaError_t err = KLAUNCH_AS("attention_short", attention_short<TYPE>,
                                 dim3(a.n_seg, n_kv_heads * n_tiles, batch->n_seq), BLOCK, g.smem,
                                 s, a, g, n_tiles);
    if (err == cudaSuccess && a.n_seg > 1)
        err = KLAUNCH(attention_fold, dim3(batch->n_tok, (a.n_heads * dim + BLOCK - 1) / BLOCK),
                      BLOCK, 0, s, a);
    if (err != cudaSuccess || batch->max_rows <= a.short_max)
        return err;
    return attn_launch_long(s, TYPE, a, batch, n_kv_heads);
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
    if (a.n_seg > 1) { /* else there is no scratch, and no place in it to name */
        size_t slots = attn_slots(batch->n_seq, batch->n_tok, a.short_max);
        a.partial_ml = static_cast<float *>(scratch);
        a.partial_o = a.partial_ml + 2 * slots * a.n_heads * a.n_seg;
    }
    switch (kv->dtype) {
    case SL_F32:
        return launch<SL_F32>(s, a, batch, at->n_kv_heads);
    case SL_F16:
        return launch<SL_F16>(s, a, batch, at->n_kv_heads);
    case SL_BF16:
        return launch<SL_BF16>(s, a, batch, at->n_kv_heads);
    case SL_I8:
        return launch<SL_I8>(s, a, batch, at->n_kv_heads);
    default:
        return cudaErrorInvalidValue;
    }
}
