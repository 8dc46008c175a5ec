/* The op table: everything the runtime asks of a device.
 *
 * A backend is memory plus ops in one const table. Activations are float32, row-major [n_tok, dim].
 * Ops are called from one thread (the engine's); a backend spreads the work over its own team.
 * Every op follows the exactness rule: the result for one row depends on that row and the weights
 * alone, never on the rows beside it, the thread count, the chunking or the ISA.
 *
 * What ops point to lies in the backend's memory. Where that is a device's (`on_device`), the host
 * neither reads nor writes it but by `write`, `read`, `page_in` and `page_out`, ops only enqueue,
 * in the order of their calls, and `finish` alone waits. Backends of the host compute at once on
 * the host's memory, and these calls cost nothing there. Ops return nothing: a device's first error
 * is kept, ops after it do nothing, and `finish` tells it. */
#ifndef SLUICE_KERNELS_OP_H
#define SLUICE_KERNELS_OP_H

#include <sluice/base/err.h>
#include <sluice/kernels/dtype.h>
#include <sluice/kernels/tree.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bumped whenever any exact op's bits change; part of the class that workers announce. */
#define SL_NUMERICS_REVISION 1
#define SL_ATTN_SEGMENT      256 /* absolute positions in one attention segment */

enum sl_isa { SL_ISA_AUTO, SL_ISA_SCALAR, SL_ISA_AVX2, SL_ISA_AVX512, SL_N_ISA };
const char *sl_isa_name(enum sl_isa isa);
bool sl_isa_parse(const char *text, enum sl_isa *out);

/* K cut into n slices at fixed borders (multiples of 32 for block formats); slice i covers
 * [border[i], border[i+1]). One chain per slice, slices combined by the binary tree of tree.h. A
 * rank's part of a weight has slices [first, first + n) of `total` and borders counted from its own
 * first input; total 0 means that these are all. */
struct sl_slices {
    uint32_t n;
    uint32_t first, total;
    uint32_t border[SL_SLICES_MAX + 1];
};
/* One slice: a column-parallel linear. */
struct sl_slices sl_slices_one(uint32_t k);
/* `k` cut on borders of `unit` elements (a head, or 32) into min(k / unit, 16) slices: slice i
 * covers units [i*U/S, (i+1)*U/S). */
struct sl_slices sl_slices_cut(uint32_t k, uint32_t unit);
/* Slices [first, first + n) of a whole. */
struct sl_slices sl_slices_part(const struct sl_slices *whole, uint32_t first, uint32_t n);

/* Where a weight comes from: rows [n, k], each row contiguous in the file's block format. Several
 * sources of one dtype and k are stacked by rows (fused QKV, gate+up). A part of a matrix is given
 * by its first element and the row length of the whole. */
struct sl_weight_src {
    enum sl_dtype dtype;
    uint32_t n, k;
    const void *data;
    size_t row_bytes; /* from row to row; 0: rows follow each other */
};
static inline size_t sl_weight_src_row_bytes(const struct sl_weight_src *s)
{
    return s->row_bytes ? s->row_bytes : sl_dtype_bytes(s->dtype, s->k);
}

/* A weight in the backend's own layout. Created by weight_pack, opaque to everyone else. */
struct sl_weight {
    enum sl_dtype dtype;
    uint32_t n, k; /* outputs, inputs */
    struct sl_slices slices;
    void *data; /* owned by the backend */
    size_t bytes;
    uint32_t layout; /* backend's private tag */
};

/* Paged KV of all layers. Within a page: [n_kv_head][page_size][head_dim] of K, then the same of V
 * (int8: with one float32 scale per (head, token) behind each half). */
struct sl_kv_config {
    uint32_t n_layers, n_kv_heads, head_dim;
    uint32_t page_size; /* positions a page; divides SL_ATTN_SEGMENT */
    uint32_t n_pages;
    enum sl_dtype dtype; /* F16, F32, BF16 or I8 */
};
struct sl_kv {
    struct sl_kv_config cfg;
    void *data;         /* page p of layer l begins at l * layer_bytes + p * page_bytes */
    size_t page_bytes;  /* of one page of one layer */
    size_t layer_bytes; /* n_pages of them, and what the backend adds for itself */
    size_t bytes;
};
static inline void *sl_kv_page_at(const struct sl_kv *kv, uint32_t layer, uint32_t page)
{
    return (uint8_t *)kv->data + layer * kv->layer_bytes + page * kv->page_bytes;
}

/* One step's ragged batch, borrowed for the call. Sequence s owns rows [q_start[s], q_start[s+1])
 * of every activation, at ascending absolute `pos`; its pages are pages[page_start[s]..). */
struct sl_batch {
    uint32_t n_seq, n_tok;
    const uint32_t *q_start;    /* [n_seq + 1] */
    const uint32_t *pos;        /* [n_tok] */
    const uint32_t *page_start; /* [n_seq + 1] */
    const uint32_t *pages;      /* page numbers */
    /* Filled in by `stage` for ops that cannot look into the arrays above. */
    const uint32_t *seq_of;     /* [n_tok] */
    uint32_t max_pos, max_rows; /* largest position, most rows of one sequence; at least */
};

/* What the ops of one step read besides activations. */
struct sl_step_rows {
    struct sl_batch batch;
    const uint32_t *tokens;     /* [n_tok] */
    const uint32_t *logit_rows; /* [n_logit_rows], rows of activations */
    uint32_t n_logit_rows;
};

/* The largest steps there will be. Zeros where nothing of the kind comes. */
struct sl_step_limits {
    uint32_t n_tok, n_seq, n_logit_rows, n_positions;
    uint32_t page_size; /* of the cache, at least */
    uint32_t n_stages;  /* calls of `stage` between two of `finish` */
    uint32_t n_heads, head_dim;
    uint32_t k_max[SL_N_DTYPE]; /* inputs of the weights of each format */
};

/* How often a kernel was launched. */
struct sl_launches {
    const char *name; /* literal */
    uint64_t n;
};
#define SL_LAUNCHES_MAX 128 /* kernels of a backend, at most */

enum sl_rope_kind { SL_ROPE_INTERLEAVED, SL_ROPE_NEOX };
/* cos and sin, [n_pos][n_rot / 2] each, made by sl_rope_table from our own polynomials. */
struct sl_rope {
    enum sl_rope_kind kind;
    uint32_t n_rot, n_pos;
    const float *cos, *sin;
};

/* The heads of one attention call: query head h reads KV head
 * kv_first + h / (n_heads / n_kv_heads). Strides are from row to row, in floats. */
struct sl_attn {
    uint32_t n_heads, kv_first, n_kv_heads;
    uint32_t q_stride, out_stride;
    float scale; /* softmax of scale * q.k */
};

/* Q [n_tok, n_heads, head_dim], K and V [n_tok, n_kv_heads, head_dim] of a step, rows `stride`
 * apart.
 */
struct sl_qkv {
    float *q, *k, *v;
    uint32_t n_heads, stride;
};

struct sl_backend;

/* Shapes in brackets. `b` first everywhere. Pointers to activations never alias unless said. */
struct sl_backend_ops {
    const char *name; /* "cpu", "ref", "cuda", "cuda-emu" */
    void (*close)(struct sl_backend *b);

    /* ---- memory ---- */

    void (*memory)(struct sl_backend *b, uint64_t *total_bytes, uint64_t *free_bytes);
    void *(*alloc)(struct sl_backend *b, size_t bytes); /* zeroed, 64-byte aligned; NULL */
    void (*free)(struct sl_backend *b, void *p, size_t bytes);
    /* Host memory to fill or read `p` by: p itself where the host computes, else zeros. NULL. */
    void *(*mirror)(struct sl_backend *b, void *p, size_t bytes);
    void (*mirror_free)(struct sl_backend *b, void *mirror, void *p, size_t bytes);
    /* Copies in the order of the ops; the host's side is left alone until `finish`. From or to any
     * memory of the host, at full speed for mirrors; nothing to do where both are the same. */
    void (*write)(struct sl_backend *b, void *to, const void *host, size_t bytes);
    void (*read)(struct sl_backend *b, void *host, const void *from, size_t bytes);
    /* Waits for everything before it. SL_NO_MEMORY when the device has failed, now or earlier. */
    enum sl_status (*finish)(struct sl_backend *b, struct sl_err *err);
    /* A page of KV (sl_kv_page_at) that no op in flight touches, out and in, done on return. These
     * two from any thread. */
    enum sl_status (*page_out)(struct sl_backend *b, void *host, const void *page, size_t bytes,
                               struct sl_err *err);
    enum sl_status (*page_in)(struct sl_backend *b, void *page, const void *host, size_t bytes,
                              struct sl_err *err);

    /* ---- a step ---- */

    /* Takes the memory that steps up to `limits` need, or those of an earlier call; after the
     * weights are packed. */
    enum sl_status (*plan)(struct sl_backend *b, const struct sl_step_limits *limits,
                           struct sl_err *err);
    size_t (*plan_bytes)(struct sl_backend *b, const struct sl_step_limits *limits);
    /* The arrays of `in`, which are the host's, as ops take them, until the next call. With n_pad,
     * rows of sequences of their own are added up to n_pad, which write to pages of the backend's;
     * every sequence has one row then, and every row logits. */
    void (*stage)(struct sl_backend *b, const struct sl_kv *kv, const struct sl_step_rows *in,
                  uint32_t n_pad, struct sl_step_rows *out);
    /* Calls fn(ctx), which calls ops on staged arrays, with the same ones whenever `key` [4] is the
     * same and no memory was freed in between; or does again what it did then. */
    void (*replay)(struct sl_backend *b, const uint64_t key[4], void (*fn)(void *ctx), void *ctx);

    /* ---- weights and KV ---- */

    /* Repacks sources, which are the host's, into the backend's layout, in parallel; they are read
     * when it returns. */
    enum sl_status (*weight_pack)(struct sl_backend *b, const struct sl_weight_src *src,
                                  uint32_t n_src, const struct sl_slices *slices,
                                  struct sl_weight *out, struct sl_err *err);
    /* What `bytes` of that weight would be. The sources need no data. */
    size_t (*weight_bytes)(struct sl_backend *b, const struct sl_weight_src *src, uint32_t n_src);
    void (*weight_free)(struct sl_backend *b, struct sl_weight *w);

    enum sl_status (*kv_open)(struct sl_backend *b, const struct sl_kv_config *cfg,
                              struct sl_kv *out, struct sl_err *err);
    void (*kv_close)(struct sl_backend *b, struct sl_kv *kv);

    /* ---- ops ---- */

    /* out[t, :] = row ids[t] of the table, in its file layout. table [n, k]; out [n_tok, k] */
    void (*embed)(struct sl_backend *b, const struct sl_weight_src *table, const uint32_t *ids,
                  uint32_t n_tok, float *out);
    /* out = x / sqrt(mean(x^2) + eps) * w. x, out [n_tok, dim], may alias; w [dim] */
    void (*rms_norm)(struct sl_backend *b, const float *x, const float *w, float eps,
                     uint32_t n_tok, uint32_t dim, float *out);
    /* y[t, n] = sum_k x[t, k] * w[n, k] (+ bias[n] if bias) (+ y[t, n] if accumulate, added last).
     * x [n_tok, w->k] with row stride x_stride, y [n_tok, w->n] with row stride y_stride. w has all
     * its slices. */
    void (*linear)(struct sl_backend *b, const struct sl_weight *w, const float *x,
                   uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate, float *y,
                   uint32_t y_stride);
    /* Sums of the subtrees that w's slices hold (sl_tree_cut): out [n_parts, n_tok, w->n]. */
    void (*linear_partial)(struct sl_backend *b, const struct sl_weight *w, const float *x,
                           uint32_t x_stride, uint32_t n_tok, float *out);
    /* The rest of `linear` over the partial sums of all ranks: y [n_tok, n] = parts [tree->n_parts,
     * n_tok, n] added as `tree` tells (+ bias) (+ y). The bits are those of `linear`. */
    void (*tree_sum)(struct sl_backend *b, const struct sl_tree *tree, const float *parts,
                     uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                     uint32_t y_stride);
    /* In place on x [n_tok, n_heads, head_dim] with row stride `stride`. pos [n_tok] */
    void (*rope)(struct sl_backend *b, const struct sl_rope *rope, float *x, uint32_t stride,
                 uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok);
    /* Stores k, v [n_tok, n_kv_heads, head_dim] (row stride `stride`) at their positions. */
    void (*kv_write)(struct sl_backend *b, struct sl_kv *kv, uint32_t layer,
                     const struct sl_batch *batch, const float *k, const float *v, uint32_t stride);
    /* `rope` of q and k and `kv_write` of k and v, in one; k itself may stay as it was. NULL: call
     * those. */
    void (*rope_kv_write)(struct sl_backend *b, const struct sl_rope *rope, struct sl_kv *kv,
                          uint32_t layer, const struct sl_batch *batch, const struct sl_qkv *x);
    /* Causal attention over positions 0..pos[t]. q, out [n_tok, a->n_heads, head_dim] */
    void (*attention)(struct sl_backend *b, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                      float *out);
    /* out[t, i] = silu(gu[t, i]) * gu[t, dim + i]. gu [n_tok, 2 * dim], out [n_tok, dim] */
    void (*silu_mul)(struct sl_backend *b, const float *gu, uint32_t n_tok, uint32_t dim,
                     float *out);
    /* x += y, n floats */
    void (*add)(struct sl_backend *b, float *x, const float *y, size_t n);
    /* Copies rows: out[i, :] = x[rows[i], :]. */
    void (*gather_rows)(struct sl_backend *b, const float *x, const uint32_t *rows, uint32_t n_rows,
                        uint32_t dim, float *out);
    /* to[i, :] = from[i, :], n floats each. */
    void (*copy_rows)(struct sl_backend *b, const float *from, uint32_t from_stride,
                      uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride);
    /* Per row of logits [n_rows, n]: the maximum, the lowest index that has it, and
     * log(sum(exp(x - max))) by the exact 16-lane reduction. A row with NaN gives max = NaN. */
    void (*logit_stats)(struct sl_backend *b, const float *logits, uint32_t n_rows, uint32_t n,
                        float *max, uint32_t *argmax, float *log_sum);
    /* Runs fn(ctx, i, n) for i in [0, n) spread over the team: for the host's work on the host's
     * memory, when loading and sampling. */
    void (*parallel)(struct sl_backend *b, uint32_t n, void (*fn)(void *ctx, uint32_t i),
                     void *ctx);
    /* The process's launches so far, by kernel: at most SL_LAUNCHES_MAX. From any thread. NULL: not
     * counted. */
    uint32_t (*launches)(struct sl_backend *b, struct sl_launches *out);
};

/* Base of every backend: embedded first. */
struct sl_backend {
    const struct sl_backend_ops *ops;
    bool on_device;     /* its memory is not the host's */
    enum sl_isa isa;    /* in force, on the host */
    char arch[16];      /* what computes: the isa's name, "sm_90", "emulated" */
    uint32_t device;    /* its number, and the stream that ops are enqueued on: what others */
    void *stream;       /* enqueue there keeps its place among them. NULL on the host */
    bool isa_fell_back; /* a better one failed its self-check against scalar: worth a warning */
    uint32_t n_threads;
    uint64_t n_op_calls; /* for `ctl ps` */
};

struct sl_cpu_config {
    enum sl_isa isa;    /* SL_ISA_AUTO: the best that passes the self-check against scalar */
    uint32_t n_threads; /* >= 1, the caller's thread included */
};
/* Fails with SL_USAGE when a named ISA is not to be had on this machine. */
enum sl_status sl_cpu_open(const struct sl_cpu_config *cfg, struct sl_backend **out,
                           struct sl_err *err);
/* Naive truth: accumulates in double, one thread, compared by tolerance. */
enum sl_status sl_ref_open(struct sl_backend **out, struct sl_err *err);

/* Which ISAs this machine can run, best last; true if `isa` is among them. */
bool sl_cpu_has_isa(enum sl_isa isa);

/* Fills cos, sin [n_pos][n_rot / 2]: angle = pos * scale * freq(i) * mscale-free;
 * freq(i) = base^(-2i / n_rot) / factor[i] (factors may be NULL). Own polynomials in double. */
void sl_rope_table(uint32_t n_rot, uint32_t first_pos, uint32_t n_pos, double base, double scale,
                   const float *factors, float *cos_out, float *sin_out);

#endif
