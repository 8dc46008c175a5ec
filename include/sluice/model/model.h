/* A decoder, or one rank's shard of it: weights packed for one backend, and the forward pass of one
 * step.
 *
 * Opened once, immutable afterwards. All memory the forward pass needs is taken at open; a forward
 * allocates nothing. Logits have the same bits at every tensor and pipeline parallel degree. Thread
 * rule: forward is called by one thread at a time, the backend's. */
#ifndef SLUICE_MODEL_MODEL_H
#define SLUICE_MODEL_MODEL_H

#include <sluice/base/err.h>
#include <sluice/files/gguf.h>
#include <sluice/kernels/op.h>
#include <sluice/model/exchange.h>
#include <sluice/model/shard.h>
#include <stdbool.h>
#include <stdint.h>

/* What a model file says about its decoder, after every tensor's presence, type and dimensions
 * were checked against it. */
struct sl_model_config {
    char arch[32]; /* general.architecture, one row of the family table */
    uint32_t n_layers;
    uint32_t dim; /* width of the residual stream */
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t ffn_dim;
    uint32_t n_vocab; /* width of a row of logits */
    uint32_t ctx_max; /* positions the model was made for */
    float rms_eps;
    float attn_scale; /* softmax of attn_scale * q.k */
    enum sl_rope_kind rope_kind;
    uint32_t n_rot; /* of each head's elements, how many are rotated */
    double rope_base;
    double rope_scale; /* 1 / factor of linear scaling */
    bool rope_factors; /* rope_freqs.weight divides the frequencies (the scaling of llama 3) */
    bool tied_head;    /* the embedding table is the output head */
    uint64_t n_params; /* elements of all tensors */
};

/* SL_MODEL for an unknown architecture, a missing, superfluous or misshapen tensor, a type the
 * kernels cannot compute with, or a key that asks for something this decoder does not do. */
enum sl_status sl_model_read_config(const struct sl_gguf *g, struct sl_model_config *out,
                                    struct sl_err *err);

/* Called while weights are packed, from the opening thread. */
typedef void sl_model_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

struct sl_model;

/* How a model, or a rank's shard of it, is opened. */
struct sl_model_options {
    struct sl_shard shard;     /* zeros: the whole model */
    uint32_t max_batch_tokens; /* rows of a step, at most */
    uint32_t max_positions;    /* positions are below this */
    uint32_t max_logit_rows;
    uint32_t max_seqs;  /* of a step; 0: as many as rows */
    uint32_t page_size; /* of its cache, at least; 0: 16 */
    /* A pipeline takes a step in so many runs of rows at most, of at least so many rows each, so
     * that its stages work at the same time. 0: as many as stages, 16 rows. Equal on all ranks. */
    uint32_t micro_batches, micro_rows_min;
    /* Steps of so many rows and more send partial sums all to all instead of gathering them
     * everywhere, where that moves fewer bytes; the bits are the same. 0: 8 a rank, at least 32.
     * Equal on all ranks. */
    uint32_t all_to_all_rows;
    /* One chain per rank instead of the fixed slices: not exact across degrees and no class of its
     * own. The yardstick of the benchmark that measures what exactness costs. */
    bool loose_sums;
    sl_model_progress *progress; /* may be NULL */
    void *ctx;
};

/* Packs the weights and plans memory. `g` and `b` must outlive the model: where the host computes,
 * the embedding is read from the mapping. SL_CONFIG for a shard the model does not admit. */
enum sl_status sl_model_open(const struct sl_gguf *g, struct sl_backend *b,
                             const struct sl_model_options *o, struct sl_model **out,
                             struct sl_err *err);
void sl_model_close(struct sl_model *m);

const struct sl_model_config *sl_model_config(const struct sl_model *m); /* of the whole model */
const struct sl_shard *sl_model_shard(const struct sl_model *m);
uint64_t sl_model_weight_bytes(const struct sl_model *m);  /* packed, without the mapping */
/* Activations, rope tables and what the backend takes for steps. */
uint64_t sl_model_scratch_bytes(const struct sl_model *m);

/* The most floats that one call of the exchange sends and receives together. */
size_t sl_model_exchange_floats(const struct sl_model *m);

/* Bytes of one rank. */
struct sl_model_plan {
    struct sl_shard_part part;
    uint64_t weight_bytes;   /* what sl_model_weight_bytes will say, exactly */
    uint64_t scratch_bytes;  /* what sl_model_scratch_bytes will say, exactly */
    uint64_t mapped_bytes;   /* of the file, read while the model serves: the embedding */
    uint64_t kv_token_bytes; /* KV cache of one position */
};
/* Before loading: `g` may be opened without its data, `b` says how weights are packed. SL_CONFIG
 * for a shard the model does not admit. */
enum sl_status sl_model_plan(const struct sl_gguf *g, struct sl_backend *b,
                             const struct sl_model_options *o, enum sl_dtype kv_dtype,
                             struct sl_model_plan *out, struct sl_err *err);

/* What the model adds to the exactness class; backend, KV dtype and the file's SHA-256 are known to
 * the caller. The same for every shard. */
struct sl_model_class {
    uint32_t n_attn_slices; /* of the attention output projection; 0 with loose_sums */
    uint32_t n_ffn_slices;  /* of the down projection */
    uint32_t attn_segment;
    uint32_t numerics_revision;
};
struct sl_model_class sl_model_class(const struct sl_model *m);

/* The shape of a KV cache for this model or shard (NULL: the whole), ready for the backend's
 * kv_open: the layers and KV heads of the shard, numbered from 0. */
struct sl_kv_config sl_model_kv_config(const struct sl_model_config *c, const struct sl_shard *s,
                                       uint32_t page_size, uint32_t n_pages, enum sl_dtype dtype);
/* KV bytes of one position over all layers of the shard (NULL: the whole model). */
uint64_t sl_model_kv_token_bytes(const struct sl_model_config *c, const struct sl_shard *s,
                                 enum sl_dtype dtype);

/* One step. All ranks of a group are given the same one, each with pages of its own cache. Arrays
 * are the host's and may change when the call is over; logits are the backend's. */
struct sl_model_step {
    const struct sl_batch *batch;
    const uint32_t *tokens;     /* [n_tok] */
    const uint32_t *logit_rows; /* [n_logit_rows], rows of the batch that logits are wanted of */
    uint32_t n_logit_rows;      /* 0: the step only fills the cache */
    /* [n_logit_rows, n_vocab] at rank 0 of stage 0, with room for max_logit_rows on a device; not
     * looked at elsewhere */
    float *logits;
    /* Called when K and V of `layer` (of the shard, from 0) are written for the first n_rows rows
     * of the batch: all of them but for pipelines, which come back for the next run of rows. NULL:
     * nobody wants to know, as a device's backend cannot tell. */
    void (*on_layer)(void *ctx, uint32_t layer, uint32_t n_rows);
    void *ctx;
};

/* Writes K and V of every row of the batch into kv, and logits, at the latest when the backend's
 * `finish` has returned, which must be called before the next step. A row that went wrong (not
 * finite) has NaN logits; the other rows are not touched by it. SL_INVALID for a token id or
 * position out of range, SL_FAILED for a batch larger than planned; nothing was written or sent
 * then, on any rank. `x` is NULL for a whole model; what its functions return ends the step. */
enum sl_status sl_model_forward(struct sl_model *m, struct sl_kv *kv,
                                const struct sl_model_step *step, const struct sl_exchange *x,
                                struct sl_err *err);

#endif
