/* What both forms of attention share: reading pages, rows of a tile, softmax, merging segments. */
#ifndef SLUICE_KERNELS_CUDA_ATTN_CUH
#define SLUICE_KERNELS_CUDA_ATTN_CUH

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

/* Where a row of a sequence is, and its int8 scale. */
struct kv_row {
    const uint8_t *data, *scale;
};

template <enum sl_dtype TYPE>
__device__ static inline kv_row row_of(const attn_args &a, const uint32_t *pages, uint32_t half,
                                       uint32_t head, uint32_t pos)
{
    const uint8_t *page = a.layer + pages[pos >> a.g.page_shift] * a.g.page_bytes;
    uint32_t slot = pos & ((1u << a.g.page_shift) - 1);
    kv_row r;
    r.data = page + attn_row_at(&a.g, attn_elem_bytes(TYPE), half, head, slot);
    r.scale = TYPE == SL_I8 ? page + attn_scale_at(&a.g, half, head, slot) : nullptr;
    return r;
}

/* Scales of odd head sizes lie at any address. */
__device__ static inline float load_scale(const uint8_t *p)
{
    uint32_t u = 0;
    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        u |= (uint32_t)p[i] << 8 * i;
    return __uint_as_float(u);
}

template <enum sl_dtype TYPE>
__device__ static inline float element(const uint8_t *row, uint32_t d, float scale)
{
    if (TYPE == SL_F32)
        return reinterpret_cast<const float *>(row)[d];
    if (TYPE == SL_I8)
        return (float)reinterpret_cast<const int8_t *>(row)[d] * scale;
    uint16_t h = reinterpret_cast<const uint16_t *>(row)[d];
    return TYPE == SL_F16 ? dev_from_f16(h) : dev_from_bf16(h);
}

template <enum sl_dtype TYPE> __device__ static inline float half_word(uint32_t w, uint32_t high)
{
    uint16_t h = (uint16_t)(high ? w >> 16 : w & 0xffffu);
    return TYPE == SL_F16 ? dev_from_f16(h) : dev_from_bf16(h);
}

/* 16 elements by loads of 16 bytes. */
template <enum sl_dtype TYPE>
__device__ static inline void load_group(const uint8_t *p, float scale, float out[16])
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
    const uint32_t *pages; /* of the sequence */
    uint32_t seq, head;    /* KV head of the call */
    uint32_t first;        /* token of the sequence's first row */
    uint32_t r0, n_rows;
    uint32_t end; /* positions that the last row sees */
};

__device__ static inline uint32_t token_of(const attn_args &a, const tile &t, uint32_t r)
{
    return t.first + (t.r0 + r) / a.group;
}

__device__ static inline uint32_t head_of(const attn_args &a, const tile &t, uint32_t r)
{
    return t.head * a.group + (t.r0 + r) % a.group;
}

/* Positions of the segment from `base` that row r sees. */
__device__ static inline uint32_t seen_by(const attn_args &a, const tile &t, uint32_t r,
                                          uint32_t base)
{
    uint32_t pos = a.pos[token_of(a, t, r)];
    return pos < base ? 0 : min(pos - base + 1, (uint32_t)SEG);
}

/* False: no such tile, or the sequence is of the other form. */
__device__ static inline bool make_tile(const attn_args &a, uint32_t seq, uint32_t head,
                                        uint32_t r0, uint32_t rows, bool of_short, tile *t)
{
    uint32_t first = a.q_start[seq], n_tok = a.q_start[seq + 1] - first;
    if (n_tok * a.group <= r0 || (n_tok <= a.short_max) != of_short)
        return false;
    *t = {a.pages + a.page_start[seq], seq, head, first, r0, min(n_tok * a.group - r0, rows), 0};
    t->end = a.pos[token_of(a, *t, t->n_rows - 1)] + 1;
    return true;
}

/* p = exp(s - max) of a half-warp's row, n of them (0: none), in place; the sum and the maximum. */
__device__ static inline float softmax_row(float *s, uint32_t n, float *max)
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
__device__ static inline void merge_factors(float *m, float m2, float *f, float *f2)
{
    float top = *m > m2 ? *m : m2;
    *f = math_exp(*m - top);
    *f2 = math_exp(m2 - top);
    *m = top;
}

/* attention_long.cu: the sequences that are not short. */
cudaError_t attn_launch_long(cudaStream_t s, enum sl_dtype dtype, const attn_args &a,
                             const struct cuda_batch *batch, uint32_t n_kv_heads);

#endif
