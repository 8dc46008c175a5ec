/* What a warp does as one: matrix loads and products, reductions. The last lane to come computes
 * for all. Products are summed in double and rounded once, where a tensor core's order and rounding
 * are its own; integer products are exact on both. Fragment layouts: PTX ISA 9.0, section 9.7.15.5.
 */
#include <sluice/kernels/dtype.h>

#include <string.h>

#include "emu/block.h"
#include "emu/race.h"
#include "num.h"

struct ldmatrix {
    const void *row;
    uint32_t *r;
    int n;
    bool trans;
};
struct mma {
    void *d;
    const uint32_t *a, *b;
};

struct mma_tiles {
    void *d;
    const uint32_t *a, *b;
    int u, m, n;
    uint32_t cols;
    int32_t from;
    bool bf16;
};

struct shuffle {
    uint64_t in, out;
    int lane;
};
struct vote {
    uint32_t in, out;
};

emu_collective_fn emu_do_ldmatrix, emu_do_mma_bf16, emu_do_mma_f16, emu_do_mma_s8, emu_do_sum_f32,
    emu_do_sum_i32, emu_do_max_f32, emu_do_shuffle, emu_do_ballot, emu_do_mma_s8_tiles,
    emu_do_mma_16_tiles;

void emu_do_shuffle(void **lanes, uint32_t mask)
{
    for (uint32_t left = mask; left; left &= left - 1) {
        struct shuffle *s = lanes[__builtin_ctz(left)];
        const struct shuffle *from = lanes[s->lane];
        s->out = from ? from->in : ~0ull; /* undefined on a device */
    }
}

void emu_do_ballot(void **lanes, uint32_t mask)
{
    uint32_t bits = 0;
    for (uint32_t left = mask; left; left &= left - 1) {
        const struct vote *v = lanes[__builtin_ctz(left)];
        bits |= (uint32_t)(v->in != 0) << __builtin_ctz(left);
    }
    for (uint32_t left = mask; left; left &= left - 1)
        ((struct vote *)lanes[__builtin_ctz(left)])->out = bits;
}

/* The lane that names a row is the one that reads it. */
static void look_at_row(int i, const void *row)
{
    struct worker *w = emu_worker;
    uint32_t lane = w->current / EMU_WARP * EMU_WARP + (uint32_t)i;
    size_t at = (size_t)((uintptr_t)row - (uintptr_t)w->smem);
    if (at % 16 || at + 16 > w->smem_used || at > w->smem_used)
        emu_break_lane(lane, "ldmatrix: not a row of 16 bytes, aligned to that, in shared memory");
    if (w->race)
        emu_race_access(w, lane, row, 16, 0, w->lanes[lane].pc);
}

void emu_do_ldmatrix(void **lanes, uint32_t mask)
{
    (void)mask;
    const struct ldmatrix *first = lanes[0];
    for (int m = 0; m < first->n; m++) {
        uint16_t e[8][8];
        for (int i = 0; i < 8; i++) {
            const struct ldmatrix *l = lanes[8 * m + i];
            look_at_row(8 * m + i, l->row);
            memcpy(e[i], l->row, 16);
        }
        for (int i = 0; i < EMU_WARP; i++) {
            const struct ldmatrix *l = lanes[i];
            int row = i / 4, col = i % 4 * 2;
            uint32_t lo = first->trans ? e[col][row] : e[row][col];
            uint32_t hi = first->trans ? e[col + 1][row] : e[row][col + 1];
            l->r[m] = lo | hi << 16;
        }
    }
}

static inline double from_bf16(uint16_t h)
{
    return (double)f32_from_bits((uint32_t)h << 16);
}

/* The bits in a float's places are the number but for the exponent's offset, also of subnormals. */
static inline double from_f16(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    if (magnitude >= 0x7c00u << 13)
        return (double)f32_from_bits(magnitude | 0x7f800000u | sign);
    double v = (double)f32_from_bits(magnitude) * 0x1p112;
    return sign ? -v : v;
}

/* Elements of one register's half. */
static inline double element(uint32_t r, int half, bool bf16)
{
    uint16_t h = (uint16_t)(r >> 16 * half);
    return bf16 ? from_bf16(h) : from_f16(h);
}

/* In order of k for each sum, whatever the width of the vectors. */
static inline __attribute__((always_inline)) void
add_products(double sum[16][8], const double a[16][16], const double b[16][8])
{
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 8; c++)
                sum[r][c] += a[r][k] * b[k][c];
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void
add_products_avx2(double sum[16][8], const double a[16][16], const double b[16][8])
{
    add_products(sum, a, b);
}
#endif

static void multiply_16(double sum[16][8], const double a[16][16], const double b[16][8])
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        add_products_avx2(sum, a, b);
        return;
    }
#endif
    add_products(sum, a, b);
}

static inline void mma_16(void **lanes, bool bf16)
{
    double a[16][16], b[16][8], sum[16][8];
    for (int lane = 0; lane < EMU_WARP; lane++) {
        const struct mma *l = lanes[lane];
        const float *d = l->d;
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 2; j++)
                a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + j] = element(l->a[i], j, bf16);
            sum[g + 8 * (i >> 1)][2 * t + (i & 1)] = (double)d[i];
        }
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                b[2 * t + 8 * i + j][g] = element(l->b[i], j, bf16);
    }
    multiply_16(sum, (const double(*)[16])a, (const double(*)[8])b);
    for (int lane = 0; lane < EMU_WARP; lane++) {
        float *d = ((const struct mma *)lanes[lane])->d;
        for (int i = 0; i < 4; i++)
            d[i] = (float)sum[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
    }
}

void emu_do_mma_bf16(void **lanes, uint32_t mask)
{
    (void)mask;
    mma_16(lanes, true);
}

void emu_do_mma_f16(void **lanes, uint32_t mask)
{
    (void)mask;
    mma_16(lanes, false);
}

void emu_do_mma_s8(void **lanes, uint32_t mask)
{
    (void)mask;
    int8_t a[16][32], b[8][32];
    for (int lane = 0; lane < EMU_WARP; lane++) {
        const struct mma *l = lanes[lane];
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            memcpy(&a[g + 8 * (i & 1)][4 * t + 16 * (i >> 1)], &l->a[i], 4);
        for (int i = 0; i < 2; i++)
            memcpy(&b[g][4 * t + 16 * i], &l->b[i], 4);
    }
    for (int lane = 0; lane < EMU_WARP; lane++) {
        const struct mma *l = lanes[lane];
        int32_t *d = l->d;
        for (int i = 0; i < 4; i++) {
            const int8_t *ra = a[lane / 4 + 8 * (i >> 1)], *rb = b[lane % 4 * 2 + (i & 1)];
            int32_t sum = 0;
            for (int k = 0; k < 32; k++)
                sum += ra[k] * rb[k];
            d[i] = (int32_t)((uint32_t)d[i] + (uint32_t)sum);
        }
    }
}

/* ---- several tiles at one meeting ---- */

enum { TILES_MAX = 8, POISON = 0x7fffffff };

static int32_t dot_32(const int16_t *a, const int16_t *b)
{
    int32_t sum = 0;
    for (int k = 0; k < 32; k++)
        sum += a[k] * b[k];
    return sum;
}

/* One tile: d of lane l, from a[16][32] and `cols` columns of b[8][32]. */
static void product_s8(void **lanes, int tile, const int16_t (*a)[32], const int16_t (*b)[32],
                       int cols, int32_t from)
{
    int32_t sum[8][16];
    for (int c = 0; c < cols; c++)
        for (int r = 0; r < 16; r++)
            sum[c][r] = from + dot_32(a[r], b[c]);
    for (int lane = 0; lane < EMU_WARP; lane++) {
        int32_t *d = (int32_t *)((const struct mma_tiles *)lanes[lane])->d + 4 * tile;
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            int c = 2 * t + (i & 1);
            d[i] = c < cols ? sum[c][g + 8 * (i >> 1)] : POISON;
        }
    }
}

static void widen(int16_t *to, uint32_t from)
{
    for (int i = 0; i < 4; i++)
        to[i] = (int8_t)(from >> 8 * i);
}

static int tile_cols(const struct mma_tiles *s, int n)
{
    int left = (int)s->cols - 8 * n;
    return left < 0 ? 0 : left > 8 ? 8 : left;
}

void emu_do_mma_s8_tiles(void **lanes, uint32_t mask)
{
    (void)mask;
    const struct mma_tiles *s = lanes[0];
    int16_t a[TILES_MAX][16][32], b[8][32];
    for (int u = 0; u < s->u; u++) {
        for (int m = 0; m < s->m; m++)
            for (int lane = 0; lane < EMU_WARP; lane++) {
                const uint32_t *r = ((const struct mma_tiles *)lanes[lane])->a + 4 * (u * s->m + m);
                for (int i = 0; i < 4; i++)
                    widen(&a[m][lane / 4 + 8 * (i & 1)][lane % 4 * 4 + 16 * (i >> 1)], r[i]);
            }
        for (int n = 0; n < s->n; n++) {
            int cols = tile_cols(s, n);
            for (int lane = 0; lane < 4 * cols; lane++) {
                const uint32_t *r = ((const struct mma_tiles *)lanes[lane])->b + 2 * (u * s->n + n);
                for (int i = 0; i < 2; i++)
                    widen(&b[lane / 4][lane % 4 * 4 + 16 * i], r[i]);
            }
            for (int m = 0; m < s->m; m++)
                product_s8(lanes, (u * s->m + m) * s->n + n, (const int16_t(*)[32])a[m],
                           (const int16_t(*)[32])b, cols, s->from);
        }
    }
}

void emu_do_mma_16_tiles(void **lanes, uint32_t mask)
{
    const struct mma_tiles *s = lanes[0];
    for (int m = 0; m < s->m; m++)
        for (int n = 0; n < s->n; n++) {
            struct mma one[EMU_WARP];
            void *at[EMU_WARP];
            for (int lane = 0; lane < EMU_WARP; lane++) {
                const struct mma_tiles *l = lanes[lane];
                one[lane] =
                    (struct mma){(float *)l->d + 4 * (m * s->n + n), l->a + 4 * m, l->b + 2 * n};
                at[lane] = &one[lane];
            }
            if (tile_cols(s, n) > 0)
                (s->bf16 ? emu_do_mma_bf16 : emu_do_mma_f16)(at, mask);
        }
}

/* Five exchanges by xor, as dev_warp_sum does them. */
#define XOR_FOLD(type, lanes, op)                                                                  \
    type v[EMU_WARP], o[EMU_WARP];                                                                 \
    for (int i = 0; i < EMU_WARP; i++)                                                             \
        v[i] = *(type *)(lanes)[i];                                                                \
    for (int x = EMU_WARP / 2; x; x /= 2) {                                                        \
        for (int i = 0; i < EMU_WARP; i++)                                                         \
            o[i] = op(v[i], v[i ^ x]);                                                             \
        memcpy(v, o, sizeof v);                                                                    \
    }                                                                                              \
    for (int i = 0; i < EMU_WARP; i++)                                                             \
    *(type *)(lanes)[i] = v[i]

#define ADD(a, b)    ((a) + (b))
#define LARGER(a, b) ((b) > (a) ? (b) : (a))

void emu_do_sum_f32(void **lanes, uint32_t mask)
{
    (void)mask;
    XOR_FOLD(float, lanes, ADD);
}

void emu_do_sum_i32(void **lanes, uint32_t mask)
{
    (void)mask;
    XOR_FOLD(uint32_t, lanes, ADD);
}

void emu_do_max_f32(void **lanes, uint32_t mask)
{
    (void)mask;
    XOR_FOLD(float, lanes, LARGER);
}

uint16_t emu_to_f16(float f);
float emu_from_f16(uint16_t h);
uint16_t emu_to_bf16(float f);

uint16_t emu_to_f16(float f)
{
    return sl_f32_to_f16(f);
}

float emu_from_f16(uint16_t h)
{
    return sl_f16_to_f32(h);
}

uint16_t emu_to_bf16(float f)
{
    return sl_f32_to_bf16(f);
}
