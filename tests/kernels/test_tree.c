/* Promised: however the slices of a weight are dealt out in runs, the ranks' subtrees and the
 * program that adds them up make exactly the tree of op.h. Sums are stood for by a hash that is
 * neither associative nor commutative, so that every other tree shows. */
#include <sluice/kernels/tree.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static uint64_t leaf(uint32_t slice)
{
    return (slice + 1) * 0x9e3779b97f4a7c15u;
}

static uint64_t join(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (a >> 29)) * 0xbf58476d1ce4e5b9u + b;
    return (x ^ (x >> 32)) * 0x94d049bb133111ebu;
}

/* Level by level, as the text says it. */
static uint64_t level_by_level(uint32_t first, uint32_t n)
{
    uint64_t t[SL_SLICES_MAX];
    for (uint32_t i = 0; i < n; i++)
        t[i] = leaf(first + i);
    for (; n > 1; n = (n + 1) / 2)
        for (uint32_t i = 0; i < (n + 1) / 2; i++)
            t[i] = 2 * i + 1 < n ? join(t[2 * i], t[2 * i + 1]) : t[2 * i];
    return t[0];
}

/* The ranks' parts, then the program over them. */
static uint64_t by_parts(const uint32_t *first, uint32_t n_ranks)
{
    uint64_t part[SL_SLICES_MAX];
    uint32_t n = 0, total = first[n_ranks];
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct sl_tree_node nodes[SL_SLICES_MAX];
        uint32_t n_nodes = sl_tree_cut(first[r], first[r + 1] - first[r], total, nodes);
        for (uint32_t i = 0; i < n_nodes; i++)
            part[n++] = level_by_level(nodes[i].first, nodes[i].n);
    }
    struct sl_tree tree;
    sl_tree_plan(first, n_ranks, &tree);
    assert_int_equal(tree.n_parts, n);
    for (uint32_t i = 0; i + 1 < n; i++) {
        assert_true(tree.add[i].to < tree.add[i].from && tree.add[i].from < n);
        part[tree.add[i].to] = join(part[tree.add[i].to], part[tree.add[i].from]);
    }
    return part[0];
}

static void check(const uint32_t *first, uint32_t n_ranks)
{
    uint64_t want = level_by_level(0, first[n_ranks]);
    if (by_parts(first, n_ranks) != want)
        fail_msg("%u slices over %u ranks, rank 1 from %u", first[n_ranks], n_ranks, first[1]);
}

/* Every way to cut up to 14 slices into runs. */
static void all_cuts_of_few_slices(void **state)
{
    (void)state;
    for (uint32_t total = 1; total <= 14; total++) {
        for (uint32_t mask = 0; mask < 1u << (total - 1); mask++) {
            uint32_t first[SL_SLICES_MAX + 1] = {0}, n = 1;
            for (uint32_t i = 1; i < total; i++)
                if (mask >> (i - 1) & 1)
                    first[n++] = i;
            first[n] = total;
            check(first, n);
        }
    }
}

/* Every cut into three runs, equal shares at every degree, and random cuts. */
static void cuts_of_many_slices(void **state)
{
    (void)state;
    uint32_t seed = 1;
    for (uint32_t total = 1; total <= SL_SLICES_MAX; total++) {
        for (uint32_t a = 1; a < total; a++)
            for (uint32_t b = a + 1; b < total; b++)
                check((uint32_t[]){0, a, b, total}, 3);
        for (uint32_t n = 1; n <= total; n++) {
            uint32_t first[SL_SLICES_MAX + 1];
            for (uint32_t r = 0; r <= n; r++)
                first[r] = total * r / n;
            check(first, n);
        }
        for (int i = 0; i < 200; i++) {
            uint32_t first[SL_SLICES_MAX + 1] = {0}, n = 1;
            for (uint32_t s = 1; s < total; s++) {
                seed = seed * 1664525u + 1013904223u;
                if ((seed >> 16) % 5 == 0)
                    first[n++] = s;
            }
            first[n] = total;
            check(first, n);
        }
    }
}

/* The parts of a run follow each other, are nodes of the tree, and could not be fewer: no two
 * neighbours of them are the halves of a node. */
static void parts_are_the_largest_nodes(void **state)
{
    (void)state;
    for (uint32_t total = 1; total <= SL_SLICES_MAX; total++)
        for (uint32_t first = 0; first < total; first++)
            for (uint32_t n = 1; n <= total - first; n++) {
                struct sl_tree_node p[SL_SLICES_MAX];
                uint32_t n_parts = sl_tree_cut(first, n, total, p), at = first;
                for (uint32_t i = 0; i < n_parts; at += p[i++].n) {
                    uint32_t width = 1;
                    while (width < p[i].n)
                        width *= 2;
                    assert_int_equal(p[i].first, at);
                    assert_int_equal(at % width, 0);
                    assert_true(p[i].n == width || at + p[i].n == total);
                    uint32_t next = at + p[i].n;
                    bool halves = i + 1 < n_parts && p[i].n == width && at % (2 * width) == 0 &&
                                  (p[i + 1].n == width || next + p[i + 1].n == total) &&
                                  p[i + 1].n <= width;
                    assert_false(halves);
                }
                assert_int_equal(at, first + n);
                assert_true(n_parts <= 11);
            }
}

/* All slices, no rank without, none with more than its share rounded up; 16 slices over 3 ranks are
 * 5 nodes, where equal runs would be 7. */
static void slices_are_dealt_out_in_few_nodes(void **state)
{
    (void)state;
    struct sl_tree tree;
    uint32_t first[SL_SLICES_MAX + 1];
    for (uint32_t total = 1; total <= SL_SLICES_MAX; total += total < 20 ? 1 : 11)
        for (uint32_t n = 1; n <= total; n++) {
            uint32_t equal[SL_SLICES_MAX + 1];
            struct sl_tree plain;
            sl_tree_deal(total, n, first);
            assert_true(first[0] == 0 && first[n] == total);
            for (uint32_t r = 0; r < n; r++) {
                uint32_t run = first[r + 1] - first[r];
                assert_true(first[r] < first[r + 1] && run <= (total + n - 1) / n);
            }
            for (uint32_t r = 0; r <= n; r++)
                equal[r] = total * r / n;
            check(first, n);
            sl_tree_plan(first, n, &tree);
            sl_tree_plan(equal, n, &plain);
            assert_true(tree.n_parts <= plain.n_parts);
        }
    sl_tree_deal(16, 3, first);
    sl_tree_plan(first, 3, &tree);
    assert_int_equal(tree.n_parts, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_cuts_of_few_slices),
        cmocka_unit_test(cuts_of_many_slices),
        cmocka_unit_test(parts_are_the_largest_nodes),
        cmocka_unit_test(slices_are_dealt_out_in_few_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
