/* Stores keys and values at their positions in pages. Bound by memory. */
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/tile_attn.cuh"

enum { BLOCK = 256, QUAD = 4 };

struct write_args {
    uint8_t *layer;
    attn_pages g;
    const uint32_t *pos, *page_start, *pages, *seq_of;
    const float *k, *v;
    uint32_t stride, n_tok;
};

/* One row of a token: half 0 is K. */
struct kv_dest {
    uint32_t tok, half, head;
};

/* Index over [n_tok][2][n_kv_heads]. */
__device__ static kv_dest dest_of(const write_args &a, size_t row)
{
    kv_dest d;
    d.head = (uint32_t)(row % a.g.n_kv_heads);
    row /= a.g.n_kv_heads;
    d.half = (uint32_t)(row % 2);
    d.tok = (uint32_t)(row / 2);
    return d;
}

__device__ static const float *source(const write_args &a, const kv_dest &d)
{
    const float *x = d.half ? a.v : a.k;
    return x + (size_t)d.tok * a.stride + d.head * a.g.head_dim;
}

__device__ static uint8_t *page_of(const write_args &a, uint32_t tok)
{
    uint32_t page = a.pages[a.page_start[a.seq_of[tok]] + (a.pos[tok] >> a.g.page_shift)];
    return a.layer + page * a.g.page_bytes;
}

__device__ static uint32_t slot_of(const write_args &a, uint32_t tok)
{
    return (a.pos[tok] + MUTANT(KV_SLOT)) & ((1u << a.g.page_shift) - 1);
}

template <enum sl_dtype TYPE> __device__ static uint16_t to_half(float x)
{
    return TYPE == SL_F16 ? dev_to_f16(x) : dev_to_bf16(x);
}

/* Four elements of a row a thread. */
template <enum sl_dtype TYPE> static __global__ void kv_write(write_args a)
{
    const uint32_t dim = a.g.head_dim, quads = (dim + QUAD - 1) / QUAD;
    size_t at = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    uint32_t i = (uint32_t)(at % quads) * QUAD;
    kv_dest d = dest_of(a, at / quads);
    if (d.tok >= a.n_tok + MUTANT(KV_TOKENS))
        return;
    const float *x = source(a, d) + i;
    uint8_t *row = page_of(a, d.tok) +
                   attn_row_at(&a.g, attn_elem_bytes(TYPE), d.half, d.head, slot_of(a, d.tok));
    if (TYPE == SL_F32) {
        float *to = reinterpret_cast<float *>(row) + i;
        for (uint32_t j = 0; j < min(dim - i, (uint32_t)QUAD); j++)
            to[j] = x[j];
        return;
    }
    uint16_t *to = reinterpret_cast<uint16_t *>(row) + i;
    if (dim % QUAD == 0) { /* rows are whole units of 8 bytes, and so are pages */
        *reinterpret_cast<uint2 *>(to) =
            make_uint2(to_half<TYPE>(x[0]) | (uint32_t)to_half<TYPE>(x[1]) << 16,
                       to_half<TYPE>(x[2]) | (uint32_t)to_half<TYPE>(x[3]) << 16);
        return;
    }
    for (uint32_t j = 0; j < min(dim - i, (uint32_t)QUAD); j++)
        to[j] = to_half<TYPE>(x[j]);
}

/* d and 1 / d of a block of values, of which `amax` is the largest; NaN and 0 if one is not finite.
 */
__device__ static float scale_of(float amax, bool bad, float *id)
{
    *id = 0.0f;
    if (bad)
        return MATH_NAN;
    float d = amax / 127.0f;
    if (d < 0x1p-100f)
        return 0.0f;
    *id = 1.0f / d;
    return d;
}

/* A row a warp. Scales of odd head sizes lie at any address. */
static __global__ void kv_write_int8(write_args a)
{
    const uint32_t dim = a.g.head_dim, lane = threadIdx.x % 32;
    kv_dest d = dest_of(a, (size_t)blockIdx.x * (BLOCK / 32) + threadIdx.x / 32);
    if (d.tok >= a.n_tok)
        return;
    const float *x = source(a, d);
    uint8_t *page = page_of(a, d.tok);
    uint32_t slot = slot_of(a, d.tok);
    float amax = 0.0f, id;
    bool bad = false;
    for (uint32_t i = lane; i < dim; i += 32) {
        float v = __uint_as_float(__float_as_uint(x[i]) & 0x7fffffffu);
        amax = v > amax ? v : amax;
        bad |= !(v < MATH_INFINITY);
    }
    bad = __any_sync(FULL_WARP, bad);
    float scale = scale_of(dev_warp_max(amax), bad, &id);
    int8_t *to = reinterpret_cast<int8_t *>(page + attn_row_at(&a.g, 1, d.half, d.head, slot));
    for (uint32_t i = lane; i < dim - MUTANT(KV_INT8_TAIL); i += 32)
        to[i] = bad ? (int8_t)0 : (int8_t)max(-127, min(127, __float2int_rn(x[i] * id)));
    uint8_t *at = page + attn_scale_at(&a.g, d.half, d.head, slot);
    if (lane < sizeof scale - MUTANT(KV_INT8_SCALE))
        at[lane] = (uint8_t)(__float_as_uint(scale) >> 8 * lane);
}

cudaError_t cuda_kv_write(cudaStream_t s, const struct cuda_kv *kv, const struct cuda_batch *batch,
                          const float *k, const float *v, uint32_t stride)
{
    write_args a = {};
    a.layer = static_cast<uint8_t *>(kv->layer);
    a.g = attn_pages_of(kv);
    a.pos = batch->pos;
    a.page_start = batch->page_start;
    a.pages = batch->pages;
    a.seq_of = batch->seq_of;
    a.k = k;
    a.v = v;
    a.stride = stride;
    a.n_tok = batch->n_tok;
    size_t rows = (size_t)a.n_tok * 2 * a.g.n_kv_heads;
    size_t quads = rows * ((a.g.head_dim + QUAD - 1) / QUAD);
    uint32_t grid = (uint32_t)((quads + BLOCK - 1) / BLOCK);
    if (rows == 0)
        return cudaSuccess;
    switch (kv->dtype) {
    case SL_F32:
        return KLAUNCH_AS("kv_write", kv_write<SL_F32>, grid, BLOCK, 0, s, a);
    case SL_F16:
        return KLAUNCH_AS("kv_write", kv_write<SL_F16>, grid, BLOCK, 0, s, a);
    case SL_BF16:
        return KLAUNCH_AS("kv_write", kv_write<SL_BF16>, grid, BLOCK, 0, s, a);
    case SL_I8:
        grid = (uint32_t)((rows + BLOCK / 32 - 1) / (BLOCK / 32));
        return KLAUNCH(kv_write_int8, grid, BLOCK, 0, s, a);
    default:
        return cudaErrorInvalidValue;
    }
}
