/* Weights into interleaved rows: a group of `rows` rows side by side, so that one load feeds that
 * many outputs.
 *
 * Block formats: pairs of blocks as isa.h tells. Quants of a block are vectors of one dword (4
 * bytes of the file's block) per row, in the order of the block; scales of a block are `rows` F16
 * d, then for q4_1 `rows` F16 m. Float formats: [k][rows]. Rows past the end are zeros. */
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "num.h"

size_t sl_pack_group_bytes(enum sl_dtype type, uint32_t k, uint32_t rows)
{
    if (sl_dtype_row(type)->block_elems == 1)
        return (sl_dtype_bytes(type, k) * rows + 63) / 64 * 64;
    uint32_t n_blocks = (k / SL_QBLOCK + 1) / 2 * 2;
    return (sl_pack_scales_at(type, rows, n_blocks) + 63) / 64 * 64;
}

static const uint8_t *row_of(const struct sl_weight_src *src, uint32_t n_src, uint32_t row)
{
    for (uint32_t i = 0; i < n_src; i++) {
        if (row < src[i].n)
            return (const uint8_t *)src[i].data + row * sl_weight_src_row_bytes(&src[i]);
        row -= src[i].n;
    }
    return NULL;
}

static void pack_blocks(const uint8_t *const *row, const struct sl_weight_src *src, uint32_t rows,
                        uint32_t flip, uint8_t *dst)
{
    const enum sl_dtype type = src->dtype;
    size_t head = sl_pack_scale_bytes(type, 1), body = sl_pack_quant_bytes(type, 1);
    for (uint32_t i = 0; i < src->k / SL_QBLOCK; i++) {
        uint8_t *scales = dst + sl_pack_scales_at(type, rows, i);
        uint8_t *quants = dst + sl_pack_quants_at(type, rows, i);
        for (uint32_t r = 0; r < rows && row[r]; r++) {
            const uint8_t *b = row[r] + i * (head + body);
            for (size_t h = 0; h < head; h += 2)
                memcpy(scales + h * rows + (size_t)2 * r, b + h, 2);
            for (size_t j = 0; j < body; j += 4) {
                uint32_t dword;
                memcpy(&dword, b + head + j, 4);
                dword ^= flip;
                memcpy(quants + j * rows + (size_t)4 * r, &dword, 4);
            }
        }
    }
}

static void pack_floats(const uint8_t *const *row, uint32_t k, size_t elem, uint32_t rows,
                        uint8_t *dst)
{
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t r = 0; r < rows && row[r]; r++)
            memcpy(dst + ((size_t)i * rows + r) * elem, row[r] + i * elem, elem);
}

void sl_pack_group(const struct sl_weight_src *src, uint32_t n_src, uint32_t group, uint32_t rows,
                   uint8_t q8_flip, uint8_t *dst)
{
    const uint8_t *row[SL_ROWS_MAX];
    for (uint32_t r = 0; r < rows; r++)
        row[r] = row_of(src, n_src, group * rows + r);
    const struct sl_dtype_row *format = sl_dtype_row(src->dtype);
    if (format->block_elems == 1)
        pack_floats(row, src->k, format->block_bytes, rows, dst);
    else
        pack_blocks(row, src, rows, src->dtype == SL_Q8_0 ? q8_flip * 0x01010101u : 0, dst);
}
