/* Stores keys and values at their positions in pages, and, in one with it, rotates keys and
 * queries. Bound by memory. */
#include "cuda/launch.h"
#include "cuda/math.cuh"
#include "cuda/tile_attn.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, QUAD = 4 };

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

/* One row by a warp to int8. value(i): element i, from the warp's source. Scales of odd head sizes
 * lie at any address. */
template <class VALUE>
__device__ static void store_int8(const write_args &a, const kv_dest &d, const VALUE &value)
{
    const uint32_t dim = a.g.head_dim, lane = threadIdx.x % 32, slot = slot_of(a, d.tok);
    uint8_t *page = page_of(a, d.tok);
    float amax = 0.0f, id;
    bool bad = false;
    for (uint32_t i = lane; i < dim; i += 32) {
        float v = __uint_as_float(__float_as_uint(value(i)) & 0x7fffffffu);
        amax = v > amax ? v : amax;
        bad |= !(v < MATH_INFINITY);
    }
    bad = __any_sync(FULL_WARP, bad);
    float scale = scale_of(dev_warp_max(amax), bad, &id);
    int8_t *to = reinterpret_cast<int8_t *>(page + attn_row_at(&a.g, 1, d.half, d.head, slot));
    for (uint32_t i = lane; i < dim - MUTANT(KV_INT8_TAIL); i += 32)
        to[i] = bad ? (int8_t)0 : (int8_t)max(-127, min(127, __float2int_rn(value(i) * id)));
    uint8_t *at = page + attn_scale_at(&a.g, d.half, d.head, slot);
    if (lane < sizeof scale - MUTANT(KV_INT8_SCALE))
        at[lane] = (uint8_t)(__float_as_uint(scale) >> 8 * lane);
}

/* A row a warp. */
static __global__ void kv_write_int8(write_args a)
{
    kv_dest d = dest_of(a, (size_t)blockIdx.x * WARPS + threadIdx.x / 32);
    if (d.tok >= a.n_tok)
        return;
    const float *x = source(a, d);
    store_int8(a, d, [&](uint32_t i) { return x[i]; });
}

static write_args args_of(const struct cuda_kv *kv, const struct cuda_batch *batch, const float *k,
                          const float *v, uint32_t stride)
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
    return a;
}

cudaError_t cuda_kv_write(cudaStream_t s, const struct cuda_kv *kv, const struct cuda_batch *batch,
                          const float *k, const float *v, uint32_t stride)
{
    write_args a = args_of(kv, batch, k, v, stride);
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
        grid = (uint32_t)((rows + WARPS - 1) / WARPS);
        return KLAUNCH(kv_write_int8, grid, BLOCK, 0, s, a);
    default:
        return cudaErrorInvalidValue;
    }
}

/* ---- with the rotation ---- */

/* Element i of a rotated row. */
__device__ static float rotated(const cuda_rotary &r, const float *x, size_t angle, uint32_t i)
{
    const uint32_t half = r.n_rot / 2;
    if (i >= 2 * half)
        return x[i];
    uint32_t pair = r.neox ? i % half : i / 2;
    bool second = r.neox ? i >= half : i % 2;
    float a = r.neox ? x[pair] : x[2 * pair], b = r.neox ? x[half + pair] : x[2 * pair + 1];
    size_t at = angle + pair + MUTANT(ROTATE_PAIR);
    float c = r.cos[at], s = r.sin[at];
    return second ? __fmaf_rn(b, c, a * s) : __fmaf_rn(a, c, -(b * s));
}

/* A warp's lanes have pairs of their own. */
__device__ static void rotate_row(const cuda_rotary &r, float *x, size_t angle)
{
    const uint32_t half = r.n_rot / 2;
    for (uint32_t i = threadIdx.x % 32; i < half; i += 32) {
        float *pa = r.neox ? x + i : x + 2 * i, *pb = r.neox ? x + half + i : pa + 1;
        float a = *pa, b = *pb, c = r.cos[angle + i], s = r.sin[angle + i];
        *pa = __fmaf_rn(a, c, -(b * s));
        *pb = __fmaf_rn(b, c, a * s);
    }
}

/* One row by a warp; two elements a lane where they are whole words. */
template <enum sl_dtype TYPE, class VALUE>
__device__ static void store_row(const write_args &a, const kv_dest &d, const VALUE &value)
{
    const uint32_t dim = a.g.head_dim, lane = threadIdx.x % 32;
    uint8_t *row = page_of(a, d.tok) +
                   attn_row_at(&a.g, attn_elem_bytes(TYPE), d.half, d.head, slot_of(a, d.tok));
    if (TYPE == SL_F32) {
        for (uint32_t i = lane; i < dim; i += 32)
            reinterpret_cast<float *>(row)[i] = value(i);
    } else if (dim % 2 == 0) {
        for (uint32_t i = lane; i < dim / 2; i += 32)
            reinterpret_cast<uint32_t *>(row)[i] =
                to_half<TYPE>(value(2 * i)) | (uint32_t)to_half<TYPE>(value(2 * i + 1)) << 16;
    } else {
        for (uint32_t i = lane; i < dim; i += 32)
            reinterpret_cast<uint16_t *>(row)[i] = to_half<TYPE>(value(i));
    }
}

/* A row a warp: of each token the query heads, then K's and V's. */
template <enum sl_dtype TYPE>
static __global__ void __launch_bounds__(BLOCK)
    rope_kv_write(write_args a, cuda_rotary r, float *q, uint32_t n_heads)
{
    const uint32_t rows = n_heads + 2 * a.g.n_kv_heads;
    size_t at = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    uint32_t tok = (uint32_t)(at / rows), head = (uint32_t)(at % rows);
    if (tok >= a.n_tok + MUTANT(ROTATE_TOKENS))
        return;
    size_t angle = (size_t)a.pos[tok] * (r.n_rot / 2);
    if (head < n_heads) {
        rotate_row(r, q + (size_t)tok * a.stride + head * a.g.head_dim, angle);
        return;
    }
    kv_dest d = {tok, (head - n_heads) / a.g.n_kv_heads, (head - n_heads) % a.g.n_kv_heads};
    const float *x = source(a, d);
    auto value = [&](uint32_t i) { return d.half ? x[i] : rotated(r, x, angle, i); };
    if (TYPE == SL_I8)
        store_int8(a, d, value);
    else
        store_row<TYPE>(a, d, value);
}

cudaError_t cuda_rope_kv_write(cudaStream_t s, const struct cuda_rotary *rope,
                               const struct cuda_kv *kv, const struct cuda_batch *batch, float *q,
                               uint32_t n_heads, const float *k, const float *v, uint32_t stride)
{
    write_args a = args_of(kv, batch, k, v, stride);
    size_t rows = (size_t)a.n_tok * (n_heads + 2 * a.g.n_kv_heads);
    uint32_t grid = (uint32_t)((rows + WARPS - 1) / WARPS);
    if (rows == 0)
        return cudaSuccess;
    switch (kv->dtype) {
    case SL_F32:
        return KLAUNCH_AS("rope_kv_write", rope_kv_write<SL_F32>, grid, BLOCK, 0, s, a, *rope, q,
                          n_heads);
    case SL_F16:
        return KLAUNCH_AS("rope_kv_write", rope_kv_write<SL_F16>, grid, BLOCK, 0, s, a, *rope, q,
                          n_heads);
    case SL_BF16:
        return KLAUNCH_AS("rope_kv_write", rope_kv_write<SL_BF16>, grid, BLOCK, 0, s, a, *rope, q,
                          n_heads);
    case SL_I8:
        return KLAUNCH_AS("rope_kv_write", rope_kv_write<SL_I8>, grid, BLOCK, 0, s, a, *rope, q,
                          n_heads);
    default:
        return cudaErrorInvalidValue;
    }
}
