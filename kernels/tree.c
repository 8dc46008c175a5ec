/* Which subtrees a run of slices holds, and in which order partial sums are added. */
#include <sluice/kernels/tree.h>

#include <sluice/base/err.h>
#include <stdbool.h>
#include <string.h>

#include "num.h"

uint32_t sl_tree_cut(uint32_t first, uint32_t n, uint32_t total, struct sl_tree_node *out)
{
    sl_assert(n <= total && first <= total - n && total <= SL_SLICES_MAX);
    uint32_t n_nodes = 0, end = first + n;
    for (uint32_t at = first; at < end; n_nodes++) {
        uint32_t width = 1; /* of the largest node that begins here and ends within */
        while (width < end - at && at % (2 * width) == 0 && min_u32(at + 2 * width, total) <= end)
            width *= 2;
        out[n_nodes] = (struct sl_tree_node){at, min_u32(width, end - at)};
        at += out[n_nodes].n;
    }
    return n_nodes;
}

/* Nodes count first; of equally many, the most equal runs. */
static uint32_t run_cost(uint32_t first, uint32_t n, uint32_t total)
{
    struct sl_tree_node nodes[SL_SLICES_MAX];
    return sl_tree_cut(first, n, total, nodes) << 16 | n * n;
}

void sl_tree_deal(uint32_t total, uint32_t n_ranks, uint32_t *first)
{
    sl_assert(n_ranks > 0 && n_ranks <= total && total <= SL_SLICES_MAX);
    /* cost[r][e] of r ranks having [0, e), and where the last of them begins */
    uint32_t cost[SL_SLICES_MAX + 1][SL_SLICES_MAX + 1];
    uint8_t from[SL_SLICES_MAX + 1][SL_SLICES_MAX + 1];
    uint32_t longest = (total + n_ranks - 1) / n_ranks;
    memset(cost, 0xff, sizeof cost);
    cost[0][0] = 0;
    for (uint32_t r = 1; r <= n_ranks; r++)
        for (uint32_t end = r; end <= total; end++)
            for (uint32_t n = 1; n <= min_u32(longest, end); n++) {
                uint32_t before = cost[r - 1][end - n];
                if (before == UINT32_MAX)
                    continue;
                uint32_t c = before + run_cost(end - n, n, total);
                if (c < cost[r][end]) {
                    cost[r][end] = c;
                    from[r][end] = (uint8_t)(end - n);
                }
            }
    first[n_ranks] = total;
    for (uint32_t r = n_ranks; r > 0; r--)
        first[r - 1] = from[r][first[r]];
}

/* True when b follows a and both are the children of one node. */
static bool are_siblings(struct sl_tree_node a, struct sl_tree_node b, uint32_t total)
{
    bool left = (a.n & (a.n - 1)) == 0 && a.first % (2 * a.n) == 0;
    return left && b.first + b.n == min_u32(b.first + a.n, total);
}

void sl_tree_plan(const uint32_t *first, uint32_t n_ranks, struct sl_tree *out)
{
    struct sl_tree_node nodes[SL_SLICES_MAX], stack[SL_SLICES_MAX];
    uint8_t part[SL_SLICES_MAX]; /* where the sum of a stacked node is */
    uint32_t top = 0, n_adds = 0, total = first[n_ranks];
    *out = (struct sl_tree){0};
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint32_t n = sl_tree_cut(first[r], first[r + 1] - first[r], total, nodes);
        for (uint32_t i = 0; i < n; i++) {
            stack[top] = nodes[i];
            part[top++] = (uint8_t)out->n_parts++;
            while (top > 1 && are_siblings(stack[top - 2], stack[top - 1], total)) {
                top--;
                stack[top - 1].n += stack[top].n;
                out->add[n_adds].to = part[top - 1];
                out->add[n_adds++].from = part[top];
            }
        }
    }
    sl_assert(top == 1 && n_adds + 1 == out->n_parts);
}
