/* Which subtrees a run of slices holds, and in which order partial sums are added. */
#include <sluice/kernels/tree.h>

#include <sluice/base/err.h>
#include <stdbool.h>

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
