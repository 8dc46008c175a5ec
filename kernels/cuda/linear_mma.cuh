/* From pairs of blocks in shared memory (tile.cuh) into a warp's chains: the products. */
#ifndef SLUICE_KERNELS_CUDA_LINEAR_MMA_CUH
#define SLUICE_KERNELS_CUDA_LINEAR_MMA_CUH

#include "cuda/linear_chain.cuh"
#include "cuda/tile.cuh"

namespace {

/* A stage as a lane sees it: what it reads of the first pair of the warp's first tile of weights and
 * of the first tile of activations; quants and scales. `cols` rows of activations exist; with one
 * tile only those were copied, and the lane's row may not be among them. */
template <sl_dtype T, int MT, int NT, int P> struct stage_view {
    const uint8_t *w, *w_scales, *x, *x_scales;
    uint32_t cols;
    bool exists;
    static constexpr uint32_t w_step = P * tile_pair_bytes(T), x_step = P * tile_act_bytes(T);

    static __device__ __forceinline__ uint32_t w_at(int m, uint32_t pair)
    {
        return (uint32_t)m * w_step + pair * tile_pair_bytes(T);
    }
    static __device__ __forceinline__ uint32_t x_at(int n, uint32_t pair)
    {
        return (uint32_t)n * x_step + pair * tile_act_bytes(T);
    }
};

/* Of a stage, where rows and tiles past the end were not copied; their products are dropped. */
template <class V> __device__ __forceinline__ V shared_at(const uint8_t *p)
{
    dev_unwritten_ok(p, sizeof(V));
    return *reinterpret_cast<const V *>(p);
}

/* Words of 8 nibbles of rows g and g + 8 to a fragment. */
template <sl_dtype T>
__device__ __forceinline__ void unpack_q4(uint32_t lo_row, uint32_t hi_row, uint32_t r[4])
{
    constexpr uint32_t LOW = 0x0f0f0f0fu, HIGH = 0xf0f0f0f0u;
    r[0] = T == SL_Q4_0 ? lo_row << 4 & HIGH : lo_row & LOW;
    r[1] = T == SL_Q4_0 ? hi_row << 4 & HIGH : hi_row & LOW;
    r[2] = T == SL_Q4_0 ? lo_row & HIGH : lo_row >> 4 & LOW;
    r[3] = T == SL_Q4_0 ? hi_row & HIGH : hi_row >> 4 & LOW;
}

/* The fragments of both blocks of a pair, from the lane's first piece of it. */
template <sl_dtype T>
__device__ __forceinline__ void load_weights(const uint8_t *pair, uint32_t r0[4], uint32_t r1[4])
{
    uint4 v = shared_at<uint4>(pair);
    if (tile_is_q4(T)) {
        unpack_q4<T>(v.x, v.y, r0);
        unpack_q4<T>(v.z, v.w, r1);
        return;
    }
    r0[0] = v.x, r0[1] = v.y, r0[2] = v.z, r0[3] = v.w;
    v = shared_at<uint4>(pair + tile_lane_at(0, 1));
    r1[0] = v.x, r1[1] = v.y, r1[2] = v.z, r1[3] = v.w;
}

/* exists: the lane's row; others were not copied. */
__device__ __forceinline__ void load_acts(const uint8_t *pair, bool exists, uint32_t r0[2],
                                          uint32_t r1[2])
{
    uint4 v = exists ? shared_at<uint4>(pair) : make_uint4(0, 0, 0, 0);
    r0[0] = v.x, r0[1] = v.y;
    r1[0] = v.z, r1[1] = v.w;
}

/* The same for one block, where it is data which. */
template <sl_dtype T>
__device__ __forceinline__ void load_weight_block(const uint8_t *pair, uint32_t block,
                                                  uint32_t r[4])
{
    if (tile_is_q4(T)) {
        uint2 v = shared_at<uint2>(pair + block * 8);
        unpack_q4<T>(v.x, v.y, r);
        return;
    }
    uint4 v = shared_at<uint4>(pair + tile_lane_at(0, block));
    r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
}

__device__ __forceinline__ void load_act_block(const uint8_t *pair, bool exists, uint32_t block,
                                               uint32_t r[2])
{
    uint2 v = exists ? shared_at<uint2>(pair + block * 8) : make_uint2(0, 0);
    r[0] = v.x, r[1] = v.y;
}

/* Scales of a pair: rows g and g + 8 in f16, d of both blocks, m of both. */
struct scales {
    uint32_t d[2], m[2];
};

template <sl_dtype T> __device__ __forceinline__ scales load_scales(const uint8_t *pair)
{
    scales s = {};
    if (T == SL_Q4_1) {
        uint4 v = shared_at<uint4>(pair);
        s.d[0] = v.x, s.d[1] = v.y, s.m[0] = v.z, s.m[1] = v.w;
    } else {
        uint2 v = shared_at<uint2>(pair);
        s.d[0] = v.x, s.d[1] = v.y;
    }
    return s;
}

__device__ __forceinline__ void from_halves(uint32_t v, float f[2])
{
    f[0] = dev_from_f16((uint16_t)v);
    f[1] = dev_from_f16((uint16_t)(v >> 16));
}

/* One block: acc = fma(dw * dx, isum, acc), then fma(mw, sx, acc). d, m: of its weights; x: where
 * the scales of its activations are. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void add_block(chain<MT, NT> *c, const stage_view<T, MT, NT, P> &v,
                                          const uint32_t (&d)[MT], const uint32_t (&m)[MT],
                                          const uint8_t *x, const int32_t (&isum)[MT][NT][4])
{
    constexpr float MAGIC = T == SL_Q4_0 ? 0x1.8p19f : 0x1.8p23f;
    float dw[MT][2], mw[MT][2];
    UNROLL
    for (int t = 0; t < MT; t++) {
        from_halves(d[t], dw[t]);
        from_halves(m[t], mw[t]);
    }
    UNROLL
    for (int n = 0; n < NT; n++) {
        float2 dx = shared_at<float2>(x + v.x_at(n, 0)), sx = dx;
        if (T == SL_Q4_1)
            sx = shared_at<float2>(x + v.x_at(n, 0) + tile_act_scale_at(0, 0, 1) -
                                   tile_act_scale_at(0, 0, 0));
        UNROLL
        for (int t = 0; t < MT; t++)
            UNROLL
            for (int i = 0; i < 4; i++) {
                float sum = __uint_as_float((uint32_t)isum[t][n][i]) - MAGIC;
                float *acc = &c->acc[t][n][i];
                *acc = __fmaf_rn(dw[t][i / 2] * (i % 2 ? dx.y : dx.x), sum, *acc);
                if (T == SL_Q4_1)
                    *acc = __fmaf_rn(mw[t][i / 2], i % 2 ? sx.y : sx.x, *acc);
            }
    }
}

/* Saves nothing but work: columns that do not exist are not stored. */
template <int NT> __device__ __forceinline__ bool has_columns(uint32_t lane, uint32_t cols)
{
    return NT > 1 || tile_sum_col(lane, 0) < cols;
}

template <sl_dtype T> constexpr int32_t MAGIC_BITS = T == SL_Q4_0 ? 0x49400000 : 0x4b400000;

/* All of a stage: U blocks at one meeting. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void quant_stage(chain<MT, NT> *c, const stage_view<T, MT, NT, P> &v)
{
    constexpr int U = MT * NT <= 2 ? 2 * P : 1; /* few products: more blocks at once */
    uint32_t ra[2 * P][MT][4], rb[2 * P][NT][2], d[2 * P][MT], m[2 * P][MT];
    UNROLL
    for (int p = 0; p < P; p++) {
        UNROLL
        for (int t = 0; t < MT; t++) {
            load_weights<T>(v.w + v.w_at(t, p), ra[2 * p][t], ra[2 * p + 1][t]);
            scales s = load_scales<T>(v.w_scales + v.w_at(t, p));
            d[2 * p][t] = s.d[0], d[2 * p + 1][t] = s.d[1];
            m[2 * p][t] = s.m[0], m[2 * p + 1][t] = s.m[1];
        }
        UNROLL
        for (int n = 0; n < NT; n++)
            load_acts(v.x + v.x_at(n, p), v.exists, rb[2 * p][n], rb[2 * p + 1][n]);
    }
    UNROLL
    for (int first = 0; first < 2 * P; first += U) {
        int32_t isum[U][MT][NT][4];
        dev_mma_s8_tiles(isum, reinterpret_cast<const uint32_t(&)[U][MT][4]>(ra[first]),
                         reinterpret_cast<const uint32_t(&)[U][NT][2]>(rb[first]), MAGIC_BITS<T>,
                         v.cols);
        if (has_columns<NT>(c->lane, v.cols))
            UNROLL
            for (int u = 0; u < U; u++)
                add_block(c, v, d[first + u], m[first + u],
                          v.x_scales + v.x_at(0, (first + u) / 2) +
                              tile_act_scale_at(0, (first + u) % 2, 0) - tile_act_scale_at(0, 0, 0),
                          isum[u]);
    }
}

template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void quant_block(chain<MT, NT> *c, const stage_view<T, MT, NT, P> &v,
                                            uint32_t block)
{
    uint32_t ra[1][MT][4], rb[1][NT][2], d[MT], m[MT], p = block / 2, b = block % 2;
    int32_t isum[1][MT][NT][4];
    UNROLL
    for (int t = 0; t < MT; t++) {
        load_weight_block<T>(v.w + v.w_at(t, p), b, ra[0][t]);
        scales s = load_scales<T>(v.w_scales + v.w_at(t, p));
        d[t] = b ? s.d[1] : s.d[0];
        m[t] = b ? s.m[1] : s.m[0];
    }
    UNROLL
    for (int n = 0; n < NT; n++)
        load_act_block(v.x + v.x_at(n, p), v.exists, b, rb[0][n]);
    dev_mma_s8_tiles(isum, ra, rb, MAGIC_BITS<T>, v.cols);
    if (has_columns<NT>(c->lane, v.cols))
        add_block(c, v, d, m,
                  v.x_scales + v.x_at(0, p) + tile_act_scale_at(0, b, 0) -
                      tile_act_scale_at(0, 0, 0),
                  isum[0]);
}

/* f16 and bf16: all of a stage. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void half_stage(chain<MT, NT> *c, const stage_view<T, MT, NT, P> &v)
{
    UNROLL
    for (int p = 0; p < P; p++) {
        uint32_t ra[2][MT][4], rb[2][NT][2];
        UNROLL
        for (int m = 0; m < MT; m++)
            load_weights<T>(v.w + v.w_at(m, p), ra[0][m], ra[1][m]);
        UNROLL
        for (int n = 0; n < NT; n++)
            load_acts(v.x + v.x_at(n, p), v.exists, rb[0][n], rb[1][n]);
        UNROLL
        for (int u = 0; u < 2; u++)
            dev_mma_16_tiles<T == SL_BF16>(c->acc, ra[u], rb[u], v.cols);
    }
}

/* Inputs [k0, k1) of a block of 16; the others count as zeros. */
template <sl_dtype T, int MT, int NT, int P>
__device__ __forceinline__ void half_block(chain<MT, NT> *c, const stage_view<T, MT, NT, P> &v,
                                           uint32_t block, uint32_t k0, uint32_t k1)
{
    uint32_t ra[MT][4], rb[NT][2];
    UNROLL
    for (int m = 0; m < MT; m++)
        load_weight_block<T>(v.w + v.w_at(m, block / 2), block % 2, ra[m]);
    UNROLL
    for (int n = 0; n < NT; n++) {
        load_act_block(v.x + v.x_at(n, block / 2), v.exists, block % 2, rb[n]);
        UNROLL
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t k = c->lane % 4 * 2 + i * 8;
            rb[n][i] &= (k >= k0 && k < k1 ? 0xffffu : 0u) |
                        (k + 1 >= k0 && k + 1 < k1 ? 0xffff0000u : 0u);
        }
    }
    dev_mma_16_tiles<T == SL_BF16>(c->acc, ra, rb, v.cols);
}

} // namespace

#endif
