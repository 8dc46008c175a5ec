/* The reference backend's KV and attention. */
#ifndef SLUICE_KERNELS_REF_REF_H
#define SLUICE_KERNELS_REF_REF_H

#include <sluice/kernels/op.h>

enum sl_status sl_ref_kv_open(struct sl_backend *b, const struct sl_kv_config *cfg,
                              struct sl_kv *out, struct sl_err *err);
void sl_ref_kv_close(struct sl_backend *b, struct sl_kv *kv);
void sl_ref_kv_write(struct sl_backend *b, struct sl_kv *kv, uint32_t layer,
                     const struct sl_batch *batch, const float *k, const float *v, uint32_t stride);
void sl_ref_attention(struct sl_backend *b, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                      float *out);

#endif
