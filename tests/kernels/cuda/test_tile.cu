/* Promised of the linear kernels' layouts: every element has a place of its own and the places fill
 * the buffer; fragments are those of the PTX ISA; what a warp reads of shared memory meets no bank
 * twice, and what it reads and writes of global memory is whole sectors. */
#include "cuda/tile.cuh"

/* cmocka's headers know no C++ */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

#include "figures.h"

#include <algorithm>
#include <set>
#include <vector>

static const sl_dtype tiled[] = {SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};

/* Marks `n` bytes from `at`, which none may have had before. */
static void take(std::vector<bool> *bytes, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++) {
        assert_true(i < bytes->size());
        assert_false((*bytes)[i]);
        (*bytes)[i] = true;
    }
}

static void assert_full(const std::vector<bool> &bytes)
{
    assert_true(std::find(bytes.begin(), bytes.end(), false) == bytes.end());
}

static void weights_fill_their_buffer(void **state)
{
    (void)state;
    for (sl_dtype t : tiled)
        for (uint32_t n : {1u, 16u, 17u, 70u})
            for (uint32_t k : {32u, 64u, 96u, 320u}) {
                uint32_t n_pairs = tile_pairs(t, k), tiles = tile_ceil(n, TILE_OUT);
                std::vector<bool> bytes(tile_pair_at(t, n_pairs, tiles, 0));
                for (uint32_t row = 0; row < tiles * TILE_OUT; row++)
                    for (uint32_t block = 0; block < 2 * n_pairs; block++) {
                        size_t pair = tile_pair_at(t, n_pairs, row / TILE_OUT, block / 2);
                        uint32_t r = row % TILE_OUT, b = block % 2;
                        for (uint32_t w = 0; w < (tile_is_q4(t) ? 4u : 8u); w++)
                            take(&bytes, pair + tile_word_at(t, r, b, w), 4);
                        for (uint32_t i = 0; i < tile_scale_row(t) / 8; i++)
                            take(&bytes, pair + tile_scale_at(t, r, b, i), 2);
                    }
                assert_full(bytes);
            }
}

static void activations_fill_their_buffer(void **state)
{
    (void)state;
    for (sl_dtype t : tiled)
        for (uint32_t k : {32u, 96u, 320u}) {
            uint32_t n_pairs = tile_pairs(t, k), tiles = 3;
            std::vector<bool> bytes(tile_act_pair_at(t, n_pairs, tiles, 0));
            for (uint32_t row = 0; row < tiles * TILE_TOK; row++)
                for (uint32_t block = 0; block < 2 * n_pairs; block++) {
                    size_t pair = tile_act_pair_at(t, n_pairs, row / TILE_TOK, block / 2);
                    for (uint32_t w = 0; w < 8; w++)
                        take(&bytes, pair + tile_act_word_at(row, block % 2, w), 4);
                    for (uint32_t i = 0; i < (tile_is_quant(t) ? 2u : 0u); i++)
                        take(&bytes, pair + tile_act_scale_at(row, block % 2, i), 4);
                }
            assert_full(bytes);
        }
}

static void f32_weights_fill_their_buffer(void **state)
{
    (void)state;
    for (uint32_t n : {32u, 96u})
        for (uint32_t k : {4u, 20u, 64u}) {
            std::vector<bool> bytes((size_t)n * k * 4);
            for (uint32_t row = 0; row < n; row++)
                for (uint32_t i = 0; i < k; i++)
                    take(&bytes, tile_f32_at(k, row, i), 4);
            assert_full(bytes);
        }
}

/* Register i of lane 4g + t is word t + 4 (i / 2) of row g + 8 (i % 2); of activations word t + 4i
 * of row g. */
static void fragments_are_those_of_the_instruction(void **state)
{
    (void)state;
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t block = 0; block < 2; block++) {
            uint32_t g = lane / 4, t = lane % 4;
            for (uint32_t i = 0; i < 4; i++) {
                assert_int_equal(tile_word_at(SL_Q8_0, g + 8 * (i % 2), block, t + 4 * (i / 2)),
                                 tile_lane_at(lane, block) + 4 * i);
                /* a word of 8 nibbles is two registers */
                assert_int_equal(tile_word_at(SL_Q4_1, g + 8 * (i % 2), block, t),
                                 tile_lane_at(lane, 0) + 8 * block + 4 * (i % 2));
                assert_int_equal(tile_sum_row(lane, i), g + 8 * (i / 2));
                assert_int_equal(tile_sum_col(lane, i), 2 * t + i % 2);
            }
            for (uint32_t i = 0; i < 2; i++)
                assert_int_equal(tile_act_word_at(g, block, t + 4 * i),
                                 tile_lane_at(lane, 0) + 8 * block + 4 * i);
            for (sl_dtype q : {SL_Q8_0, SL_Q4_0, SL_Q4_1})
                for (uint32_t i = 0; i < tile_scale_row(q) / 8; i++) {
                    uint32_t at = tile_lane_scale_at(q, lane) + 8 * i + 4 * block;
                    assert_int_equal(tile_scale_at(q, g, block, i), at);
                    assert_int_equal(tile_scale_at(q, g + 8, block, i), at + 2);
                }
            for (uint32_t i = 0; i < 2; i++) {
                uint32_t at = tile_lane_act_scale_at(lane, block, i);
                assert_int_equal(tile_act_scale_at(2 * t, block, i), at);
                assert_int_equal(tile_act_scale_at(2 * t + 1, block, i), at + 4);
            }
        }
}

/* Shared memory serves 8 lanes of 16 bytes at a time, 16 of 8, 32 of 4; lanes that want one word get
 * it together. How many words of one bank a round wants, at most. */
template <class F> static size_t bank_degree(uint32_t bytes, F at)
{
    size_t worst = 0;
    uint32_t lanes = 128 / bytes;
    for (uint32_t first = 0; first < 32; first += lanes) {
        std::set<uint32_t> words[32];
        for (uint32_t lane = first; lane < first + lanes; lane++) {
            assert_int_equal(at(lane) % bytes, 0);
            for (uint32_t i = 0; i < bytes; i += 4)
                words[(at(lane) + i) / 4 % 32].insert((at(lane) + i) / 4);
        }
        for (const auto &bank : words)
            worst = std::max(worst, bank.size());
    }
    return worst;
}

static void no_bank_is_met_twice(void **state)
{
    (void)state;
    for (uint32_t block = 0; block < 2; block++) {
        auto pieces = [&](uint32_t l) { return tile_lane_at(l, block); };
        assert_int_equal(figure("bank", "linear_tiles: pieces", bank_degree(16, pieces)), 1);
        for (uint32_t which = 0; which < 2; which++) {
            for (sl_dtype t : {SL_Q8_0, SL_Q4_0, SL_Q4_1}) {
                auto scales = [&](uint32_t l) { return tile_lane_scale_at(t, l); };
                assert_int_equal(figure("bank", "linear_tiles: scales of weights",
                                        bank_degree(tile_scale_row(t), scales)),
                                 1);
            }
            auto scales = [&](uint32_t l) { return tile_lane_act_scale_at(l, block, which); };
            assert_int_equal(figure("bank", "linear_tiles: scales of rows", bank_degree(8, scales)),
                             1);
        }
    }
    assert_int_equal(bank_degree(4, [](uint32_t l) { return l * 64; }), 16); /* it can count */
}

/* Sectors of 32 bytes that a warp's request touches, and the fewest that hold as many bytes. */
template <class F> static void assert_whole_sectors(const char *what, uint32_t bytes, F at)
{
    std::set<size_t> sectors, seen;
    for (uint32_t lane = 0; lane < 32; lane++)
        for (uint32_t i = 0; i < bytes; i++) {
            sectors.insert((at(lane) + i) / 32);
            seen.insert(at(lane) + i);
        }
    size_t fewest = (seen.size() + 31) / 32;
    assert_int_equal(figure("sectors too many", what, sectors.size() - fewest), 0);
}

static void requests_are_whole_sectors(void **state)
{
    (void)state;
    for (sl_dtype t : tiled)
        for (uint32_t pair = 0; pair < 5; pair++) {
            size_t w = tile_pair_at(t, 5, 3, pair), x = tile_act_pair_at(t, 5, 2, pair);
            /* asynchronous copies: piece after piece, 16 bytes a lane */
            assert_whole_sectors("linear_tiles: weights", 16,
                                 [&](uint32_t l) { return w + l * 16; });
            assert_whole_sectors("linear_tiles: rows", 16, [&](uint32_t l) { return x + l * 16; });
        }
    /* f32 weights straight to registers, a lane an output */
    for (uint32_t i = 0; i < 64; i += 4)
        assert_whole_sectors("linear_lanes: weights", 16,
                             [&](uint32_t l) { return tile_f32_at(64, 32 + l, i); });
    /* sums: 4 rows of 8 floats */
    for (uint32_t i = 0; i < 4; i++)
        assert_whole_sectors("linear_tiles: sums", 4, [&](uint32_t l) {
            return ((size_t)tile_sum_col(l, i) * 576 + tile_sum_row(l, i)) * 4;
        });
}

/* Of an activation pair the pieces of the rows that exist, and no others, are copied. */
static void copied_pieces_hold_the_rows_that_exist(void **state)
{
    (void)state;
    for (uint32_t rows = 1; rows <= 8; rows++) {
        std::set<uint32_t> wanted;
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t block = 0; block < 2; block++) {
                for (uint32_t w = 0; w < 8; w++)
                    wanted.insert(tile_act_word_at(r, block, w) / 16);
                for (uint32_t i = 0; i < 2; i++)
                    wanted.insert(tile_act_scale_at(r, block, i) / 16);
            }
        for (uint32_t piece = 0; piece < 40; piece++)
            assert_int_equal(tile_act_piece_used(piece, rows), wanted.count(piece));
    }
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_fill_their_buffer),
        cmocka_unit_test(activations_fill_their_buffer),
        cmocka_unit_test(f32_weights_fill_their_buffer),
        cmocka_unit_test(fragments_are_those_of_the_instruction),
        cmocka_unit_test(no_bank_is_met_twice),
        cmocka_unit_test(requests_are_whole_sectors),
        cmocka_unit_test(copied_pieces_hold_the_rows_that_exist),
    };
    int rc = cmocka_run_group_tests(tests, nullptr, nullptr);
    figures_write(SL_FIGURES);
    return rc;
}
