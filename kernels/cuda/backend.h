/* The CUDA backend's own state, shared by its files.
 *
 * One stream carries everything the ops enqueue, in the order of their calls; a second one carries
 * KV pages in and out, for other threads. The host waits in `finish`, while loading, and for those
 * pages, nowhere else. The first error of the first stream is kept in `failed`; from then on no op
 * does anything, and `finish` tells it. */
#ifndef SLUICE_KERNELS_CUDA_BACKEND_H
#define SLUICE_KERNELS_CUDA_BACKEND_H

#include <sluice/kernels/cuda.h>

#include "cuda/count.h"
#include "cuda/launch.h"
#include "team.h"

#define PAD_MAX 31 /* rows that a step may have besides those of its sequences */

/* Host memory on its way to the device while weights are loaded, one piece after another. */
struct load_slot {
    uint8_t *pinned, *dev;
    cudaEvent_t done; /* the piece was repacked */
    bool in_flight;
};
#define N_LOAD_SLOTS 2

struct graph {
    uint64_t key[4];
    cudaGraphExec_t exec; /* NULL: free place */
    struct dev_counts launches;
};
#define GRAPHS_MAX 256

/* What the scratch of linear holds: rows of x as weights of `dtype` multiply them. A norm or a silu
 * puts its rows there on their way. Any other op may change x, so it lasts until the next one. */
struct act_rows {
    const float *x; /* NULL: nothing */
    uint32_t stride, n_tok, k;
    enum sl_dtype dtype;
};

/* The forms of activations that weights of k inputs want: bits 1 << cuda_form. */
struct act_forms {
    uint32_t k, forms;
};
#define ACT_FORMS_MAX 16

struct cuda_backend {
    struct sl_backend base;
    int device;
    struct sl_team *team;
    cudaStream_t stream, pages;
    struct sl_err failed; /* status SL_OK until something does */

    struct load_slot load[N_LOAD_SLOTS];
    uint32_t load_at;
    size_t load_bytes; /* of a slot; 0: there are none */

    struct sl_step_limits limits; /* zeros: not yet planned */
    void *act, *attn;             /* scratch of linear and attention */
    size_t act_bytes, attn_bytes;
    struct act_rows act_rows;
    struct act_forms forms[ACT_FORMS_MAX];
    uint32_t n_forms;
    uint32_t *staged;       /* device [stage_words] */
    uint32_t *stage_pinned; /* [limits.n_stages, stage_words] */
    size_t stage_words;
    uint32_t n_staged; /* since the last finish */

    struct graph *graphs; /* [GRAPHS_MAX] */
    uint32_t graph_at;    /* the next one to give up */
};

/* Block formats share the int8 form. */
static inline enum sl_dtype cuda_form(enum sl_dtype dtype)
{
    return sl_dtype_row(dtype)->block_elems > 1 ? SL_Q8_0 : dtype;
}

static inline struct cuda_backend *cuda_of(struct sl_backend *b)
{
    return (struct cuda_backend *)b;
}

/* ---- backend.c ---- */

/* Notes a failure of `what`; true when there is none, now or earlier. */
bool cuda_ok(struct cuda_backend *b, cudaError_t e, const char *what);
/* The same without noting it. */
enum sl_status cuda_status(int device, cudaError_t e, const char *what, struct sl_err *err);
/* Makes b's device the thread's, and forgets act_rows; false after a failure. First of everything
 * that uses it. */
bool cuda_enter(struct cuda_backend *b);
enum sl_status cuda_plugin_open(const struct sl_cuda_config *cfg, struct sl_backend **out,
                                struct sl_err *err);

/* ---- backend_memory.c ---- */

/* Waits for what is in flight, after a failure as well: it may use what is given back next. */
void cuda_settle(struct cuda_backend *b);
void cuda_op_memory(struct sl_backend *b, uint64_t *total_bytes, uint64_t *free_bytes);
void *cuda_op_alloc(struct sl_backend *b, size_t bytes);
void cuda_op_free(struct sl_backend *b, void *p, size_t bytes);
void *cuda_op_mirror(struct sl_backend *b, void *p, size_t bytes);
void cuda_op_mirror_free(struct sl_backend *b, void *mirror, void *p, size_t bytes);
void cuda_op_write(struct sl_backend *b, void *to, const void *host, size_t bytes);
void cuda_op_read(struct sl_backend *b, void *host, const void *from, size_t bytes);
enum sl_status cuda_op_finish(struct sl_backend *b, struct sl_err *err);
enum sl_status cuda_op_page_out(struct sl_backend *b, void *host, const void *page, size_t bytes,
                                struct sl_err *err);
enum sl_status cuda_op_page_in(struct sl_backend *b, void *page, const void *host, size_t bytes,
                               struct sl_err *err);
/* Device memory that only the backend knows. SL_NO_MEMORY. */
enum sl_status cuda_take(struct cuda_backend *b, size_t bytes, void **out, struct sl_err *err);
void cuda_give(struct cuda_backend *b, void *p);

/* ---- backend_weights.c ---- */
enum sl_status cuda_op_weight_pack(struct sl_backend *b, const struct sl_weight_src *src,
                                   uint32_t n_src, const struct sl_slices *slices,
                                   struct sl_weight *out, struct sl_err *err);
size_t cuda_op_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src, uint32_t n_src);
void cuda_op_weight_free(struct sl_backend *b, struct sl_weight *w);
enum sl_status cuda_op_kv_open(struct sl_backend *b, const struct sl_kv_config *cfg,
                               struct sl_kv *out, struct sl_err *err);
void cuda_op_kv_close(struct sl_backend *b, struct sl_kv *kv);
void cuda_load_close(struct cuda_backend *b);

/* A packed weight, behind struct sl_weight's data. */
struct cuda_packed {
    struct cuda_weight w;
    struct cuda_parts all, parts; /* the whole sum; the subtrees of its slices */
};

/* ---- backend_step.c ---- */
enum sl_status cuda_op_plan(struct sl_backend *b, const struct sl_step_limits *limits,
                            struct sl_err *err);
void cuda_op_stage(struct sl_backend *b, const struct sl_kv *kv, const struct sl_step_rows *in,
                   uint32_t n_pad, struct sl_step_rows *out);
void cuda_op_replay(struct sl_backend *b, const uint64_t key[4], void (*fn)(void *ctx), void *ctx);
size_t cuda_op_plan_bytes(struct sl_backend *b, const struct sl_step_limits *limits);
void cuda_plan_close(struct cuda_backend *b);
void cuda_graphs_drop(struct cuda_backend *b);

/* ---- backend_ops.c ---- */
void cuda_op_embed(struct sl_backend *base, const struct sl_weight_src *table, const uint32_t *ids,
                   uint32_t n_tok, float *out);
void cuda_op_rms_norm(struct sl_backend *base, const float *x, const float *w, float eps,
                      uint32_t n_tok, uint32_t dim, float *out);
void cuda_op_linear(struct sl_backend *base, const struct sl_weight *w, const float *x,
                    uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate, float *y,
                    uint32_t y_stride);
void cuda_op_linear_partial(struct sl_backend *base, const struct sl_weight *w, const float *x,
                            uint32_t x_stride, uint32_t n_tok, float *out);
void cuda_op_tree_sum(struct sl_backend *base, const struct sl_tree *tree, const float *parts,
                      uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                      uint32_t y_stride);
void cuda_op_rope(struct sl_backend *base, const struct sl_rope *rope, float *x, uint32_t stride,
                  uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok);
void cuda_op_kv_write(struct sl_backend *base, struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const float *k, const float *v,
                      uint32_t stride);
void cuda_op_rope_kv_write(struct sl_backend *base, const struct sl_rope *rope, struct sl_kv *kv,
                           uint32_t layer, const struct sl_batch *batch, const struct sl_qkv *x);
void cuda_op_attention(struct sl_backend *base, const struct sl_kv *kv, uint32_t layer,
                       const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                       float *out);
void cuda_op_silu_mul(struct sl_backend *base, const float *gu, uint32_t n_tok, uint32_t dim,
                      float *out);
void cuda_op_add(struct sl_backend *base, float *x, const float *y, size_t n);
void cuda_op_gather_rows(struct sl_backend *base, const float *x, const uint32_t *rows,
                         uint32_t n_rows, uint32_t dim, float *out);
void cuda_op_copy_rows(struct sl_backend *base, const float *from, uint32_t from_stride,
                       uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride);
void cuda_op_logit_stats(struct sl_backend *base, const float *logits, uint32_t n_rows, uint32_t n,
                         float *max, uint32_t *argmax, float *log_sum);

#endif
