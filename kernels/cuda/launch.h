/* The kernels as C functions: what the backend (backend.c) calls, and what the .cu files define.
 *
 * All pointers are device memory unless said; everything is enqueued on `s` and nothing waits. A
 * returned error is the launch's; errors of the run come with the stream. Shapes and meanings are
 * those of the op table (sluice/kernels/op.h), the arithmetic is that of kernels/num.h bit for bit,
 * but for dense f16 and bf16 weights, whose products run on tensor cores. No result depends on
 * n_tok or on where the work is cut. */
#ifndef SLUICE_KERNELS_CUDA_LAUNCH_H
#define SLUICE_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* g++ calls a function named as a struct a shadow. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <sluice/kernels/dtype.h>
#pragma GCC diagnostic pop
#include <sluice/kernels/tree.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- linear.cu, linear_dense.cu ---- */

/* A weight in the layout of its kernel family, made by cuda_pack. Slices as in op.h. */
struct cuda_weight {
    enum sl_dtype dtype;
    uint32_t n, k;         /* outputs, inputs */
    const void *data;      /* device, cuda_pack_bytes */
    const uint32_t *border; /* device, [n_slices + 1] */
    uint32_t n_slices;
};
/* Subtrees whose sums are wanted: slices [first, first + n) each, counted from the weight's own
 * first. One that covers all for the whole linear. Device, [n_parts] */
struct cuda_parts {
    const struct sl_tree_node *node;
    uint32_t n;
};

size_t cuda_pack_bytes(enum sl_dtype dtype, uint32_t n, uint32_t k);
/* Rows [row, row + n_rows) of the weight from `src`, the file's block format, rows of row_bytes
 * each, in device memory. All rows of a weight are packed, in any order, before its first use; n is
 * the weight's. */
cudaError_t cuda_pack(cudaStream_t s, enum sl_dtype dtype, uint32_t n, uint32_t k, uint32_t row,
                      uint32_t n_rows, const void *src, size_t row_bytes, void *data);

/* Activations in the form that the kernels of a weight's format multiply (tile.cuh): int8 with
 * scales by block (num.h) for block formats, rounded to the weight's format for f16 and bf16.
 * Bytes of `act` for n_tok rows; 0 for f32, which reads x itself. */
size_t cuda_act_bytes(enum sl_dtype dtype, uint32_t n_tok, uint32_t k);
/* dtype: the weight's, not f32. act: device memory, 16-byte aligned. One `act` serves all weights
 * of one format and k. */
cudaError_t cuda_quantize(cudaStream_t s, enum sl_dtype dtype, const float *x, uint32_t x_stride,
                          uint32_t n_tok, uint32_t k, void *act);
/* cuda_rms_norm and cuda_silu_mul, whose rows become activations as well: one launch for two. */
cudaError_t cuda_norm_quantize(cudaStream_t s, enum sl_dtype dtype, const float *x, const float *w,
                               float eps, uint32_t n_tok, uint32_t dim, float *out, void *act);
cudaError_t cuda_silu_quantize(cudaStream_t s, enum sl_dtype dtype, const float *gu, uint32_t n_tok,
                               uint32_t dim, float *out, void *act);
/* out [parts->n, n_tok, w->n] of row stride out_stride and part stride `plane`, floats; bias [w->n]
 * or NULL; with accumulate the former out is added last. f32 weights read x, others `act`.
 * f16 and bf16: products come 16 inputs at a time, counted from the weight's first, so ranks agree
 * where slices' borders are multiples of 16; for f16, activations beyond 65504 are infinite. */
cudaError_t cuda_linear(cudaStream_t s, const struct cuda_weight *w, const float *x,
                        uint32_t x_stride, const void *act, uint32_t n_tok,
                        const struct cuda_parts *parts, const float *bias, bool accumulate,
                        float *out, uint32_t out_stride, size_t plane);
/* y [n_tok, n] = parts [tree->n_parts, n_tok, n] as op.h tells; tree: host memory, copied. */
cudaError_t cuda_tree_sum(cudaStream_t s, const struct sl_tree *tree, const float *parts,
                          uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                          uint32_t y_stride);

/* ---- rows.cu ---- */

/* table: the file's rows, device memory */
cudaError_t cuda_embed(cudaStream_t s, enum sl_dtype dtype, const void *table, uint32_t k,
                       const uint32_t *ids, uint32_t n_tok, float *out);
cudaError_t cuda_rms_norm(cudaStream_t s, const float *x, const float *w, float eps, uint32_t n_tok,
                          uint32_t dim, float *out);
/* neox: SL_ROPE_NEOX, else interleaved; cos, sin [n_pos, n_rot / 2] */
cudaError_t cuda_rope(cudaStream_t s, bool neox, uint32_t n_rot, const float *cos, const float *sin,
                      float *x, uint32_t stride, uint32_t n_heads, uint32_t head_dim,
                      const uint32_t *pos, uint32_t n_tok);
cudaError_t cuda_silu_mul(cudaStream_t s, const float *gu, uint32_t n_tok, uint32_t dim,
                          float *out);
cudaError_t cuda_add(cudaStream_t s, float *x, const float *y, size_t n);
cudaError_t cuda_gather_rows(cudaStream_t s, const float *x, const uint32_t *rows, uint32_t n_rows,
                             uint32_t dim, float *out);
cudaError_t cuda_logit_stats(cudaStream_t s, const float *logits, uint32_t n_rows, uint32_t n,
                             float *max, uint32_t *argmax, float *log_sum);

/* ---- sample.cu ---- */

#define CUDA_TOP_K_MAX 1024
/* The k largest logits of each row, largest first, ties by the lower index; NaN comes last.
 * values, ids [n_rows, k]; k is at most n. */
cudaError_t cuda_top_k(cudaStream_t s, const float *logits, uint32_t n_rows, uint32_t n, uint32_t k,
                       float *values, uint32_t *ids);

/* ---- moe.cu ---- */

#define CUDA_EXPERTS_MAX 1024
#define CUDA_EXPERTS_USED_MAX 32
/* What a mixture of experts does with a batch. Entry t * n_used + j is token t's j-th expert. */
struct cuda_moe {
    uint32_t n_experts, n_used; /* n_used of n_experts serve a token */
    bool of_used; /* gates are shares of the sum over the used experts, not over all */
};
/* The n_used experts of largest logit of each token, largest first, ties by the lower index, and
 * their gates. p = exp(x - max) as in sl_exp_f32; all: gate = p / 16-lane sum of p over the experts;
 * of_used: gate = p / sum of the used p in their order. NaN among a token's logits makes its gates
 * NaN. logits [n_tok, n_experts]; experts, gates [n_tok, n_used] */
cudaError_t cuda_moe_route(cudaStream_t s, const struct cuda_moe *m, const float *logits,
                           uint32_t n_tok, uint32_t *experts, float *gates);
/* Groups the entries by expert, in each by token: expert e has rows [start[e], start[e + 1]) of the
 * grouped batch, row r is entry entry[r], and entry i lies in row row[i]. start [n_experts + 1];
 * entry, row [n_tok * n_used]. Experts are below n_experts. */
cudaError_t cuda_moe_group(cudaStream_t s, const struct cuda_moe *m, const uint32_t *experts,
                           uint32_t n_tok, uint32_t *start, uint32_t *entry, uint32_t *row);
/* out[t] = sum over j, ascending, of gates[t, j] * y[row of (t, j)]: fma from +0. y [entries, dim] */
cudaError_t cuda_moe_combine(cudaStream_t s, const struct cuda_moe *m, const float *y,
                             const float *gates, const uint32_t *row, uint32_t n_tok, uint32_t dim,
                             float *out);

/* ---- attention.cu ---- */

#define CUDA_ATTN_SEGMENT 256 /* SL_ATTN_SEGMENT, whose header is C only */

/* sl_batch in device memory, and what the host knows of it. */
struct cuda_batch {
    uint32_t n_seq, n_tok;
    const uint32_t *q_start, *pos, *page_start, *pages;
    const uint32_t *seq_of; /* [n_tok] */
    uint32_t max_pos;       /* largest position, at least */
    uint32_t max_rows;      /* most rows of one sequence */
};
/* One layer's pages: [n_pages][page_bytes], the layout of sl_kv_row_at and sl_kv_scale_at. */
struct cuda_kv {
    void *layer;
    size_t page_bytes;
    uint32_t n_kv_heads, head_dim, page_size;
    enum sl_dtype dtype;
};
struct cuda_attn {
    uint32_t n_heads, kv_first, n_kv_heads, q_stride, out_stride;
    float scale;
};
cudaError_t cuda_kv_write(cudaStream_t s, const struct cuda_kv *kv, const struct cuda_batch *batch,
                          const float *k, const float *v, uint32_t stride);
/* Both in one: rotates the n_heads heads of q in place, and stores k, rotated on the way, and v. All
 * three have the row stride; k stays as it was. */
struct cuda_rotary {
    bool neox;
    uint32_t n_rot;
    const float *cos, *sin; /* [n_pos, n_rot / 2] */
};
cudaError_t cuda_rope_kv_write(cudaStream_t s, const struct cuda_rotary *rope,
                               const struct cuda_kv *kv, const struct cuda_batch *batch, float *q,
                               uint32_t n_heads, const float *k, const float *v, uint32_t stride);
/* Scratch for the segments' (max, sum, out), in bytes: for a batch of that many sequences and rows
 * up to max_pos, and for every smaller one. */
size_t cuda_attention_scratch(uint32_t n_seq, uint32_t n_tok, uint32_t n_heads, uint32_t head_dim,
                              uint32_t max_pos);
cudaError_t cuda_attention(cudaStream_t s, const struct cuda_kv *kv, const struct cuda_batch *batch,
                           const struct cuda_attn *a, const float *q, float *out, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
