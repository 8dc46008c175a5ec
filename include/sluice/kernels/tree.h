/* The fixed tree that adds the slices of a linear, and what a group of ranks needs to walk it.
 *
 * A weight has S slices of K, fixed for the model. Their sums are added level by level: node (l, i)
 * covers slices [i * 2^l, min((i + 1) * 2^l, S)), node (l + 1, i) is node (l, 2i) + node (l, 2i +
 * 1), an odd last one passes through. A rank that owns a run of slices adds up every complete
 * subtree within it; the rest of the tree is walked over these partial sums of all ranks. So the
 * sum has the same bits however the slices are spread. Pure functions over indices. */
#ifndef SLUICE_KERNELS_TREE_H
#define SLUICE_KERNELS_TREE_H

#include <stdint.h>

#define SL_SLICES_MAX 64

/* Slices [first, first + n) of a weight: one node of its tree. */
struct sl_tree_node {
    uint32_t first, n;
};

/* The fewest nodes that cover [first, first + n) of `total` slices, ascending; their number. out
 * has room for SL_SLICES_MAX. */
uint32_t sl_tree_cut(uint32_t first, uint32_t n, uint32_t total, struct sl_tree_node *out);

/* Deals `total` slices out to n_ranks <= total: rank r gets [first[r], first[r + 1]), none more
 * than total / n_ranks rounded up, so that their nodes are as few as can be. first [n_ranks + 1] */
void sl_tree_deal(uint32_t total, uint32_t n_ranks, uint32_t *first);

/* The rest of the tree over the partial sums of all ranks: adds in order, part[to] += part[from];
 * the sum of all is then in part 0. Parts are numbered rank after rank, ascending in slices. */
struct sl_tree {
    uint32_t n_parts; /* there is one add less */
    struct {
        uint8_t to, from;
    } add[SL_SLICES_MAX];
};

/* Rank r owns slices [first[r], first[r + 1]), first[0] is 0 and first[n_ranks] all of them. */
void sl_tree_plan(const uint32_t *first, uint32_t n_ranks, struct sl_tree *out);

#endif
