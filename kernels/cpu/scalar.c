/* The scalar form of every micro-kernel: runs anywhere, and defines the bits of the others. */
#define TILE_ROWS 4
#define Q_ROWS    8

#include "cpu/vec_scalar.h"

#include "cpu/lanes_row.h"

static int32_t block_dot(const uint8_t *quants, uint32_t row, const int8_t *q, enum sl_dtype type)
{
    int32_t sum = 0;
    for (uint32_t i = 0; i < SL_QBLOCK; i++) {
        if (type == SL_Q8_0) {
            int8_t w = (int8_t)quants[(i / 4 * Q_ROWS + row) * 4 + i % 4];
            sum += w * q[i];
        } else {
            uint8_t pair = quants[(i % 16 / 4 * Q_ROWS + row) * 4 + i % 4];
            sum += (i < 16 ? pair & 15 : pair >> 4) * q[i];
        }
    }
    return sum;
}

/* One slice of one group, blocks [b0, b1). out [mt][Q_ROWS] */
static void q_slice(const struct sl_tile *t, const uint8_t *w, uint32_t b0, uint32_t b1, float *out,
                    uint32_t mt, enum sl_dtype type)
{
    for (uint32_t i = 0; i < mt * Q_ROWS; i++) {
        uint32_t m = i / Q_ROWS, row = i % Q_ROWS;
        float acc = 0.0f;
        for (uint32_t b = b0; b < b1; b++) {
            size_t at = (size_t)b * mt + m;
            const uint8_t *sc = w + sl_pack_scales_at(type, Q_ROWS, b);
            int32_t isum =
                block_dot(w + sl_pack_quants_at(type, Q_ROWS, b), row, t->q + at * SL_QBLOCK, type);
            float d = sl_f16_to_f32(load_u16(sc + 2 * row)) * t->d[at];
            acc = fmaf(d, (float)(isum + t->corr[at]), acc);
            if (type == SL_Q4_1)
                acc = fmaf(sl_f16_to_f32(load_u16(sc + 2 * (Q_ROWS + row))), t->s[at], acc);
        }
        out[i] = acc;
    }
}

#include "cpu/lanes.h"

#define TABLE_NAME sl_isa_scalar
#define TABLE_ISA  SL_ISA_SCALAR
#define TABLE_FLIP 0
#include "cpu/table.h"
