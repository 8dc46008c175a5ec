/* Which part of a model one rank holds.
 *
 * A group has tp * pp ranks: rank r is rank r % tp of the tensor parallel group of pipeline stage
 * r / tp. A stage holds a run of whole layers; the first one the embedding, the last one the output
 * norm and the head. Within a stage the slices of the attention output and of the down projection
 * (fixed for the model at any degree) are dealt out in runs, with them the query heads and the rows
 * of gate and up, and the rows of the head; a rank has every KV head that its query heads read.
 * Norms, biases of the sums and the residual stream are on all ranks of a stage. */
#ifndef SLUICE_MODEL_SHARD_H
#define SLUICE_MODEL_SHARD_H

#include <sluice/base/err.h>
#include <stdint.h>

struct sl_model_config;

/* A place in the group; zeros are the whole model, as is {0, 1, 0, 1}. */
struct sl_shard {
    uint32_t tp_rank, tp; /* within the stage */
    uint32_t pp_rank, pp; /* the stage */
};

static inline struct sl_shard sl_shard_of_rank(uint32_t rank, uint32_t tp, uint32_t pp)
{
    return (struct sl_shard){rank % tp, tp, rank / tp, pp};
}

/* The largest degrees that the model admits: slices that can be dealt out, layers. */
uint32_t sl_shard_tp_max(const struct sl_model_config *c);
uint32_t sl_shard_pp_max(const struct sl_model_config *c);

/* SL_CONFIG for a degree the model does not admit (the message says the largest), or a rank beyond
 * its degree. */
enum sl_status sl_shard_check(const struct sl_model_config *c, const struct sl_shard *s,
                              struct sl_err *err);

/* [first, first + n) of the model's layers, heads and so on. */
struct sl_run {
    uint32_t first, n;
};

/* What a rank holds; for a shard that sl_shard_check accepts. */
struct sl_shard_part {
    struct sl_run layers;
    struct sl_run o_slices, heads, kv_heads; /* of every layer */
    struct sl_run ffn_slices, ffn;
    struct sl_run vocab; /* rows of the head, in the last stage; of the embedding there are all */
};
struct sl_shard_part sl_shard_part(const struct sl_model_config *c, const struct sl_shard *s);

#endif
