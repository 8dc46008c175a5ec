/* What attention is tested on: a shape, and random queries, keys and values of one sequence. */
#ifndef SLUICE_TESTS_ATTN_INPUT_H
#define SLUICE_TESTS_ATTN_INPUT_H

#include "ops.h"

struct model {
    uint32_t n_heads, n_kv_heads, head_dim, page_size;
    enum sl_dtype type;
};

struct input {
    uint32_t n_pos, stride;
    float *q, *k, *v;
};

static inline struct input make_input(const struct model *m, uint32_t n_pos, uint32_t seed)
{
    struct input in = {.n_pos = n_pos, .stride = m->n_heads * m->head_dim + 4};
    in.q = random_floats((size_t)n_pos * in.stride, 3.0f, seed);
    in.k = random_floats((size_t)n_pos * in.stride, 2.0f, seed + 1);
    in.v = random_floats((size_t)n_pos * in.stride, 1.0f, seed + 2);
    return in;
}

static inline void free_input(struct input *in)
{
    free(in->q);
    free(in->k);
    free(in->v);
}

#endif
