/* Promised of attention's geometry: plans fit shared memory for every head size, every element of
 * the work has one thread, a warp's reads and writes of shared memory meet no bank twice, partial
 * results never share a place, and pages are read in whole sectors. */
#include "cuda/tile_attn.cuh"

/* cmocka's headers know no C++ */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
}

#include "figures.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <vector>

static const sl_dtype types[] = {SL_F32, SL_F16, SL_I8};

/* Most accesses of one bank in one phase of a warp's access of `bytes` a thread: a phase is as many
 * threads as move 128 bytes. One word that several read counts once. at(lane): its byte, or -1. */
static size_t conflicts(uint32_t bytes, const std::function<int64_t(uint32_t)> &at)
{
    size_t worst = 0;
    uint32_t lanes = bytes > 4 ? 128 / bytes : 32;
    for (uint32_t first = 0; first < 32; first += lanes) {
        std::map<uint32_t, std::set<int64_t>> banks;
        for (uint32_t lane = first; lane < first + lanes; lane++) {
            if (at(lane) < 0)
                continue;
            assert_int_equal(at(lane) % bytes, 0);
            for (uint32_t b = 0; b < bytes || b == 0; b += 4)
                banks[(uint32_t)(at(lane) + b) / 4 % 32].insert((at(lane) + b) / 4);
        }
        for (const auto &bank : banks)
            worst = std::max(worst, bank.second.size());
    }
    return worst;
}

static void short_plans_fit(void **state)
{
    (void)state;
    for (sl_dtype type : types)
        for (uint32_t dim = 1; dim <= 1024; dim++)
            for (uint32_t rows = 1; rows <= 16; rows++) {
                attn_short t = attn_plan_short(dim, attn_elem_bytes(type), rows);
                assert_true(t.smem <= ATTN_SMEM && t.chunk >= 1 && (t.chunk & (t.chunk - 1)) == 0);
                assert_true(t.rows >= 1 && t.rows <= rows + 1 && (t.rows == 1 || t.rows % 2 == 0));
                assert_true(t.rows <= ATTN_BLOCK / 16); /* softmax: a half-warp a row */
                assert_true(t.stride >= attn_padded(dim) * attn_elem_bytes(type));
                assert_true(t.stage_bytes % 16 == 0 && t.stages_at % 16 == 0 && t.stride % 16 == 0);
                assert_true(t.stage_bytes >= t.chunk * (t.stride + 4));
            }
}

static void long_plans_fit(void **state)
{
    (void)state;
    for (uint32_t dim = 1; dim <= ATTN_LONG_DIM; dim++) {
        attn_long t = attn_plan_long(dim);
        uint32_t padded = attn_padded(dim);
        assert_true(t.smem <= ATTN_SMEM && t.rows % 4 == 0 && t.chunk % 16 == 0);
        assert_int_equal(CUDA_ATTN_SEGMENT % t.chunk, 0);
        assert_true(t.kv_at % 4 == 0 && t.stride % 4 == 0);
        assert_true(padded / 4 * (t.rows / 4) <= ATTN_BLOCK); /* every output has a thread */
    }
}

static void every_score_and_output_has_one_thread(void **state)
{
    (void)state;
    for (sl_dtype type : types)
        for (uint32_t dim : {2u, 33u, 64u, 80u, 96u, 128u, 256u, 512u, 1024u})
            for (uint32_t rows : {1u, 3u, 4u, 8u}) {
                attn_short t = attn_plan_short(dim, attn_elem_bytes(type), rows);
                uint32_t padded = attn_padded(dim), n = std::min(rows, t.rows);
                std::vector<int> scores(t.chunk * (n + 1)), outputs(n * padded);
                for (uint32_t thread = 0; thread < ATTN_BLOCK; thread++) {
                    attn_part s = attn_score_part(thread, t.chunk);
                    for (uint32_t r = 2 * s.first; r < n; r += 2 * s.step) {
                        scores[r * t.chunk + s.i]++;
                        scores[(r + 1) * t.chunk + s.i]++;
                    }
                    attn_part w = attn_weigh_part(thread, padded);
                    for (uint32_t i = w.i; w.first < w.step && i < padded; i += 2 * ATTN_BLOCK)
                        for (uint32_t j = 0; w.first + j * w.step < n; j++) {
                            assert_true(j < 4); /* what it holds in registers */
                            outputs[(w.first + j * w.step) * padded + i]++;
                            outputs[(w.first + j * w.step) * padded + i + 1]++;
                        }
                }
                for (uint32_t i = 0; i < n * t.chunk; i++)
                    assert_int_equal(scores[i], 1);
                for (int count : outputs)
                    assert_int_equal(count, 1);
            }
}

static void every_part_of_a_long_tile_has_one_thread(void **state)
{
    (void)state;
    for (uint32_t dim : {16u, 64u, 80u, 96u, 128u, 256u, 512u}) {
        attn_long t = attn_plan_long(dim);
        uint32_t padded = attn_padded(dim), across = t.chunk / 4;
        std::vector<int> scores(t.rows * t.chunk), outputs(t.rows * padded), kv(t.chunk * padded);
        for (uint32_t u = 0; u < across * (t.rows / 4); u++)
            for (uint32_t j = 0; j < 16; j++)
                scores[(attn_score_at(u, across).row + j / 4) * t.chunk +
                       attn_score_at(u, across).i + j % 4]++;
        for (uint32_t thread = 0; thread < ATTN_BLOCK; thread++)
            for (uint32_t j = 0; j < 16; j++)
                if (attn_weigh_at(thread, padded).row < t.rows)
                    outputs[(attn_weigh_at(thread, padded).row + j / 4) * padded +
                            attn_weigh_at(thread, padded).i + j % 4]++;
        for (uint32_t u = 0; u < padded / 16 * t.chunk; u++)
            for (uint32_t j = 0; j < 16; j++)
                kv[attn_load_at(u, t.chunk).row * padded + attn_load_at(u, t.chunk).i + j]++;
        for (const auto *counts : {&scores, &outputs, &kv})
            for (int count : *counts)
                assert_int_equal(count, 1);
    }
}

static void lanes_of_a_thread_lie_side_by_side(void **state)
{
    (void)state;
    std::set<uint32_t> words;
    for (uint32_t d = 0; d < 16; d++) {
        assert_int_equal(attn_lane_word(d) / 4, d % 4);
        words.insert(attn_lane_word(d));
    }
    assert_int_equal(words.size(), 16);
    assert_int_equal(*words.rbegin(), 15);
}

/* Where rows of the output are not whole warps, a warp reads the ends of two of them. */
static void short_reads_meet_no_bank_twice(void **state)
{
    (void)state;
    for (sl_dtype type : types)
        for (uint32_t dim : {32u, 64u, 80u, 96u, 128u, 256u}) {
            uint32_t elem = attn_elem_bytes(type), padded = attn_padded(dim);
            attn_short t = attn_plan_short(dim, elem, 4);
            for (uint32_t warp = 0; warp < ATTN_BLOCK && t.chunk >= 8; warp += 32) {
                auto k = [&](uint32_t l) {
                    return attn_score_part(warp + l, t.chunk).i * t.stride;
                };
                auto v = [&](uint32_t l) { return attn_weigh_part(warp + l, padded).i * elem; };
                assert_int_equal(figure("bank", "attention_short: keys", conflicts(16, k)), 1);
                assert_true(figure("bank", "attention_short: values", conflicts(2 * elem, v)) <=
                            (padded % 64 ? 2u : 1u));
            }
        }
}

static void long_reads_and_writes_meet_no_bank_twice(void **state)
{
    (void)state;
    for (uint32_t dim : {16u, 64u, 80u, 96u, 128u, 256u, 512u}) {
        attn_long t = attn_plan_long(dim);
        uint32_t padded = attn_padded(dim), across = t.chunk / 4, warp = 0;
        uint32_t last = across * (t.rows / 4) - 1; /* tile that idle threads repeat */
        auto tile = [&](uint32_t l) {
            return attn_score_at(std::min((warp + l) / 4, last), across);
        };
        auto k = [&](uint32_t l) { return (tile(l).i * t.stride + l % 4 * 4) * 4; };
        auto q = [&](uint32_t l) { return (tile(l).row * t.stride + l % 4 * 4) * 4; };
        auto score = [&](uint32_t l) { /* thread j writes four positions of row j */
                                       return ((tile(l).row + l % 4) * ATTN_P_STRIDE + tile(l).i) *
                                              4;
        };
        auto kv = [&](uint32_t l) {
            return (attn_load_at(warp + l, t.chunk).row * t.stride +
                    attn_load_at(warp + l, t.chunk).i) *
                   4;
        };
        auto v = [&](uint32_t l) { return attn_weigh_at(warp + l, padded).i * 4; };
        auto p = [&](uint32_t l) {
            uint32_t row = attn_weigh_at(warp + l, padded).row;
            return row < t.rows ? (int64_t)row * ATTN_P_STRIDE * 4 : -1;
        };
        for (; warp < ATTN_BLOCK; warp += 32) {
            assert_int_equal(figure("bank", "attention_long: keys", conflicts(16, k)), 1);
            assert_int_equal(figure("bank", "attention_long: queries", conflicts(16, q)), 1);
            assert_int_equal(
                figure("bank", "attention_long: scores, written", conflicts(16, score)), 1);
            assert_int_equal(figure("bank", "attention_long: rows, written", conflicts(16, kv)), 1);
            assert_true(figure("bank", "attention_long: values", conflicts(16, v)) <=
                        (padded % 32 ? 2u : 1u));
            assert_true(figure("bank", "attention_long: weights", conflicts(16, p)) <=
                        (padded % 32 ? 2u : 1u));
        }
    }
}

/* Rows of a page follow each other, so a warp that copies 16 bytes a thread takes whole sectors
 * wherever its rows do. */
static void pages_are_read_in_whole_sectors(void **state)
{
    (void)state;
    for (sl_dtype type : types)
        for (uint32_t dim : {64u, 128u, 256u}) {
            cuda_kv kv = {nullptr, 1 << 20, 2, dim, 16, type};
            attn_pages g = attn_pages_of(&kv);
            uint32_t units = dim * attn_elem_bytes(type) / 16;
            assert_true(g.aligned);
            for (uint32_t first = 0; first < 16 * units; first += 32) {
                std::set<size_t> sectors;
                for (uint32_t u = first; u < first + 32; u++)
                    sectors.insert((attn_row_at(&g, attn_elem_bytes(type), 1, 1, u / units % 16) +
                                    u % units * 16) /
                                   32);
                assert_int_equal(
                    figure("sectors too many", "attention: pages", sectors.size() - 16), 0);
            }
        }
}

static void rows_and_scales_of_a_page_do_not_overlap(void **state)
{
    (void)state;
    for (sl_dtype type : types)
        for (uint32_t dim : {1u, 33u, 64u})
            for (uint32_t page_size : {1u, 16u}) {
                cuda_kv kv = {nullptr, 0, 3, dim, page_size, type};
                attn_pages g = attn_pages_of(&kv);
                uint32_t elem = attn_elem_bytes(type);
                std::vector<int> bytes(2 * g.half_bytes);
                for (uint32_t row = 0; row < 2 * 3 * page_size; row++) {
                    uint32_t half = row % 2, head = row / 2 % 3, slot = row / 6;
                    for (uint32_t i = 0; i < dim * elem; i++)
                        bytes[attn_row_at(&g, elem, half, head, slot) + i]++;
                    for (uint32_t i = 0; type == SL_I8 && i < 4; i++)
                        bytes[attn_scale_at(&g, half, head, slot) + i]++;
                }
                for (int count : bytes)
                    assert_int_equal(count, 1);
            }
}

static void slots_are_never_shared(void **state)
{
    (void)state;
    uint64_t s = 1;
    for (int round = 0; round < 2000; round++) {
        std::set<uint32_t> slots;
        uint32_t n_seq = 1 + (uint32_t)(s >> 33) % 20, row = 0, taken = 0;
        std::vector<uint32_t> rows(n_seq);
        for (uint32_t &n : rows) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            n = (uint32_t)(s >> 40) % (s >> 62 ? 10 : 40); /* none, too */
        }
        uint32_t n_tok = 0;
        for (uint32_t n : rows)
            n_tok += n;
        for (uint32_t seq = 0; seq < n_seq; row += rows[seq++])
            for (uint32_t r = 0; rows[seq] <= ATTN_SHORT && r < rows[seq]; r++, taken++) {
                uint32_t slot = attn_slot(seq, row, ATTN_SHORT) + r;
                assert_true(slot < attn_slots(n_seq, n_tok, ATTN_SHORT));
                slots.insert(slot);
            }
        assert_int_equal(slots.size(), taken);
    }
}

int main(void)
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(short_plans_fit),
        cmocka_unit_test(long_plans_fit),
        cmocka_unit_test(every_score_and_output_has_one_thread),
        cmocka_unit_test(every_part_of_a_long_tile_has_one_thread),
        cmocka_unit_test(lanes_of_a_thread_lie_side_by_side),
        cmocka_unit_test(short_reads_meet_no_bank_twice),
        cmocka_unit_test(long_reads_and_writes_meet_no_bank_twice),
        cmocka_unit_test(pages_are_read_in_whole_sectors),
        cmocka_unit_test(rows_and_scales_of_a_page_do_not_overlap),
        cmocka_unit_test(slots_are_never_shared),
    };
    int rc = cmocka_run_group_tests(tests, nullptr, nullptr);
    figures_write(SL_FIGURES);
    return rc;
}
