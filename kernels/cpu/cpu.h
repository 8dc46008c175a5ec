/* The CPU backend's own state, shared by its files. */
#ifndef SLUICE_KERNELS_CPU_CPU_H
#define SLUICE_KERNELS_CPU_CPU_H

#include <sluice/kernels/op.h>

#include "cpu/isa.h"
#include "team.h"

/* Grows only while weights or KV are opened, so that a warm step allocates nothing. */
struct scratch {
    uint8_t *data;
    size_t bytes;
};

/* Memory that weights share, so that small ones lie on huge pages too. Filled from the front; given
 * back when its last weight is freed. */
struct slab {
    struct slab *next;
    uint8_t *data;
    size_t bytes, used;
    uint32_t n_weights;
};

struct cpu_backend {
    struct sl_backend base;
    const struct sl_isa_ops *isa;
    struct sl_team *team;
    struct slab *slabs;  /* newest first */
    struct scratch act;  /* quantised activations of one chunk of rows */
    struct scratch attn; /* per thread: see attention.c */
    size_t attn_stride;  /* bytes of one thread's part */
};

static inline struct cpu_backend *cpu_of(struct sl_backend *b)
{
    return (struct cpu_backend *)b;
}

enum sl_status sl_scratch_reserve(struct scratch *s, size_t bytes, struct sl_err *err);

/* slab.c: NULL when the system refuses. */
void *sl_slab_alloc(struct slab **list, size_t bytes);
void sl_slab_free(struct slab **list, void *p);
void sl_slab_close(struct slab **list);

/* linear.c */
enum sl_status sl_cpu_weight_pack(struct sl_backend *b, const struct sl_weight_src *src,
                                  uint32_t n_src, const struct sl_slices *slices,
                                  struct sl_weight *out, struct sl_err *err);
size_t sl_cpu_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src, uint32_t n_src);
void sl_cpu_weight_free(struct sl_backend *b, struct sl_weight *w);
void sl_cpu_linear(struct sl_backend *b, const struct sl_weight *w, const float *x,
                   uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate, float *y,
                   uint32_t y_stride);
void sl_cpu_linear_partial(struct sl_backend *b, const struct sl_weight *w, const float *x,
                           uint32_t x_stride, uint32_t n_tok, float *out);

/* pack.c: rows [16 or 8] of a group. `group` counts from 0; src rows are stacked. */
size_t sl_pack_group_bytes(enum sl_dtype type, uint32_t k, uint32_t rows);
void sl_pack_group(const struct sl_weight_src *src, uint32_t n_src, uint32_t group, uint32_t rows,
                   uint8_t q8_flip, uint8_t *dst);

/* attention.c */
enum sl_status sl_cpu_kv_open(struct sl_backend *b, const struct sl_kv_config *cfg,
                              struct sl_kv *out, struct sl_err *err);
void sl_cpu_kv_close(struct sl_backend *b, struct sl_kv *kv);
void sl_cpu_kv_write(struct sl_backend *b, struct sl_kv *kv, uint32_t layer,
                     const struct sl_batch *batch, const float *k, const float *v, uint32_t stride);
void sl_cpu_attention(struct sl_backend *b, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                      float *out);

/* selfcheck.c: true when `isa` gives scalar's bits on a small set of ops. */
bool sl_isa_agrees(const struct sl_isa_ops *isa);

#endif
