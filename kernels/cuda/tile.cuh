/* Where a byte of weights, activations and sums lies: the geometry of the linear kernels, as pure
 * functions that tests enumerate.
 *
 * A warp multiplies tiles of 16 outputs with 8 rows of activations, a block of 32 bytes of K at a
 * time: 32 elements of block formats (their blocks), 16 of f16 and bf16. Fragments of
 * mma.m16n8k32.s8 and mma.m16n8k16 hold the same bytes in the same lanes (PTX ISA 9.0, sections
 * 9.7.15.5.8 and 9.7.15.5.9): lane 4g + t has words t and t + 4 of a row's 8 words, rows g and g + 8
 * of the weights, row g of the activations. Blocks lie in pairs so that a lane reads 16 bytes:
 *
 * - weights, [tile of 16 outputs][pair]: q4: 32 lanes x 2 blocks x rows g, g + 8, one word each,
 *   whose low nibbles are the element's word t and whose high ones are word t + 4, as in the file
 *   (q4_0: nibble xor 8, so that it is signed); others: 2 blocks x 32 lanes x the fragment's 4
 *   words. Then for each g scales in f16: d of block 0, rows g and g + 8, d of block 1, for q4_1
 *   then m alike.
 * - activations, [tile of 8 rows][pair]: 32 lanes x 2 blocks x words t, t + 4. Block formats: then d
 *   for each t: block 0, rows 2t and 2t + 1, block 1; then s alike (num.h).
 * - f32 weights, [tile of 32 outputs][4 inputs]: one output a lane, 16 bytes each.
 *
 * A last odd block is filled up with zeros, rows past the end too. */
#ifndef SLUICE_KERNELS_CUDA_TILE_CUH
#define SLUICE_KERNELS_CUDA_TILE_CUH

#include "cuda/dev.cuh"
#include "cuda/launch.h"

#define TILE_FN __host__ __device__ __forceinline__ constexpr

constexpr uint32_t TILE_OUT = 16;     /* outputs of a tile */
constexpr uint32_t TILE_TOK = 8;      /* rows of activations of a tile */
constexpr uint32_t TILE_OUT_F32 = 32; /* outputs of a tile of f32 weights */

TILE_FN uint32_t tile_ceil(uint32_t n, uint32_t of)
{
    return n / of + (n % of != 0);
}
TILE_FN bool tile_is_q4(sl_dtype t)
{
    return t == SL_Q4_0 || t == SL_Q4_1;
}
TILE_FN bool tile_is_quant(sl_dtype t)
{
    return t == SL_Q8_0 || tile_is_q4(t);
}
/* Elements of a block. */
TILE_FN uint32_t tile_block(sl_dtype t)
{
    return tile_is_quant(t) ? 32 : 16;
}
TILE_FN uint32_t tile_pairs(sl_dtype t, uint32_t k)
{
    return tile_ceil(k, 2 * tile_block(t));
}

/* ---- weights ---- */

TILE_FN uint32_t tile_quant_bytes(sl_dtype t)
{
    return tile_is_q4(t) ? 512 : 1024;
}
/* Of the 8 rows g of a pair: 8 or 16 bytes. */
TILE_FN uint32_t tile_scale_row(sl_dtype t)
{
    return t == SL_Q4_1 ? 16 : tile_is_quant(t) ? 8 : 0;
}
TILE_FN uint32_t tile_pair_bytes(sl_dtype t)
{
    return tile_quant_bytes(t) + 8 * tile_scale_row(t);
}
TILE_FN size_t tile_pair_at(sl_dtype t, uint32_t n_pairs, uint32_t tile, uint32_t pair)
{
    return ((size_t)tile * n_pairs + pair) * tile_pair_bytes(t);
}
/* In the pair: word w (of 4 in q4, else of 8) of `row` in block 0 or 1. */
TILE_FN uint32_t tile_word_at(sl_dtype t, uint32_t row, uint32_t block, uint32_t w)
{
    uint32_t lane = row % 8 * 4 + w % 4;
    return tile_is_q4(t) ? lane * 16 + block * 8 + row / 8 * 4
                         : block * 512 + lane * 16 + w / 4 * 8 + row / 8 * 4;
}
/* In the pair: scale 0 (d) or 1 (m). */
TILE_FN uint32_t tile_scale_at(sl_dtype t, uint32_t row, uint32_t block, uint32_t which)
{
    return tile_quant_bytes(t) + row % 8 * tile_scale_row(t) + which * 8 + block * 4 + row / 8 * 2;
}
TILE_FN size_t tile_f32_at(uint32_t k, uint32_t row, uint32_t i)
{
    size_t group = (size_t)(row / TILE_OUT_F32) * tile_ceil(k, 4) + i / 4;
    return (group * TILE_OUT_F32 + row % TILE_OUT_F32) * 16 + i % 4 * 4;
}

/* ---- activations ---- */

TILE_FN uint32_t tile_act_bytes(sl_dtype t)
{
    return tile_is_quant(t) ? 640 : 512;
}
TILE_FN size_t tile_act_pair_at(sl_dtype t, uint32_t n_pairs, uint32_t tile, uint32_t pair)
{
    return ((size_t)tile * n_pairs + pair) * tile_act_bytes(t);
}
/* In the pair: word w of 8. */
TILE_FN uint32_t tile_act_word_at(uint32_t row, uint32_t block, uint32_t w)
{
    return (row % 8 * 4 + w % 4) * 16 + block * 8 + w / 4 * 4;
}
/* In the pair: scale 0 (d) or 1 (s). */
TILE_FN uint32_t tile_act_scale_at(uint32_t row, uint32_t block, uint32_t which)
{
    return 512 + which * 64 + row % 8 / 2 * 16 + block * 8 + row % 2 * 4;
}
/* Does the 16-byte piece of an activation pair belong to a row below `rows` (1 to 8), or to all? */
TILE_FN bool tile_act_piece_used(uint32_t piece, uint32_t rows)
{
    return piece >= 32 ? piece % 4 * 2 < rows : piece / 4 < rows;
}

/* ---- what a lane reads of a pair in shared memory ---- */

/* 16 bytes: both blocks of activations or q4 weights, or block 0 or 1 of other weights. */
TILE_FN uint32_t tile_lane_at(uint32_t lane, uint32_t block)
{
    return block * 512 + lane * 16;
}
/* d of rows g and g + 8, both blocks, and for q4_1 m: all of tile_scale_row. */
TILE_FN uint32_t tile_lane_scale_at(sl_dtype t, uint32_t lane)
{
    return tile_scale_at(t, lane / 4, 0, 0);
}
/* 8 bytes: d (0) or s (1) of rows 2t and 2t + 1. */
TILE_FN uint32_t tile_lane_act_scale_at(uint32_t lane, uint32_t block, uint32_t which)
{
    return tile_act_scale_at(lane % 4 * 2, block, which);
}

/* ---- sums: the fragment of d ---- */

TILE_FN uint32_t tile_sum_row(uint32_t lane, uint32_t i)
{
    return lane / 4 + i / 2 * 8;
}
TILE_FN uint32_t tile_sum_col(uint32_t lane, uint32_t i)
{
    return lane % 4 * 2 + i % 2;
}

#endif
