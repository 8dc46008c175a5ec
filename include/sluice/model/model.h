/* A decoder: weights packed for one backend, and the forward pass of one step.
 *
 * Opened once, immutable afterwards. All memory the forward pass needs is taken at open; a forward
 * allocates nothing. Thread rule: forward is called by one thread at a time, the backend's. */
#ifndef SLUICE_MODEL_MODEL_H
#define SLUICE_MODEL_MODEL_H

#include <sluice/base/err.h>
#include <sluice/files/gguf.h>
#include <sluice/kernels/op.h>
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

/* Packs the weights and plans memory for steps of at most max_batch_tokens rows, positions below
 * max_positions and max_logit_rows rows of logits. `g` and `b` must outlive the model: the
 * embedding is read from the mapping. `progress` may be NULL. */
enum sl_status sl_model_open(const struct sl_gguf *g, struct sl_backend *b,
                             uint32_t max_batch_tokens, uint32_t max_positions,
                             uint32_t max_logit_rows, sl_model_progress *progress, void *ctx,
                             struct sl_model **out, struct sl_err *err);
void sl_model_close(struct sl_model *m);

const struct sl_model_config *sl_model_config(const struct sl_model *m);
uint64_t sl_model_weight_bytes(const struct sl_model *m);  /* packed, without the mapping */
uint64_t sl_model_scratch_bytes(const struct sl_model *m); /* activations and rope tables */

/* What the model adds to the exactness class; backend, KV dtype and the file's SHA-256 are known to
 * the caller. */
struct sl_model_class {
    uint32_t n_attn_slices; /* of the attention output projection */
    uint32_t n_ffn_slices;  /* of the down projection */
    uint32_t attn_segment;
    uint32_t numerics_revision;
};
struct sl_model_class sl_model_class(const struct sl_model *m);

/* The shape of a KV cache for this model, ready for the backend's kv_open. */
struct sl_kv_config sl_model_kv_config(const struct sl_model_config *c, uint32_t page_size,
                                       uint32_t n_pages, enum sl_dtype dtype);
/* KV bytes of one position over all layers. */
uint64_t sl_model_kv_token_bytes(const struct sl_model_config *c, enum sl_dtype dtype);

/* One step: writes K and V of every row of the batch into kv, and the logits of the rows
 * logit_rows[0..n_logit_rows) (indices into the batch) to logits [n_logit_rows, n_vocab]. With no
 * logit rows it only fills the cache. A row that went wrong (not finite) has NaN logits; the other
 * rows are not touched by it. SL_INVALID for a token id or position out of range, SL_FAILED for a
 * batch larger than planned; nothing was written then. */
enum sl_status sl_model_forward(struct sl_model *m, struct sl_kv *kv, const struct sl_batch *batch,
                                const uint32_t *tokens, const uint32_t *logit_rows,
                                uint32_t n_logit_rows, float *logits, struct sl_err *err);

#endif
