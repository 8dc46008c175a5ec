/* Checks that every backend makes before it takes a weight, and the geometry of KV pages. */
#ifndef SLUICE_KERNELS_CHECK_H
#define SLUICE_KERNELS_CHECK_H

#include <sluice/kernels/op.h>

/* Sources of one format and k, slices that cover [0, k) on legal borders. Fills *out but for its
 * data. */
enum sl_status sl_weight_check(const struct sl_weight_src *src, uint32_t n_src,
                               const struct sl_slices *slices, struct sl_weight *out,
                               struct sl_err *err);

/* Checks cfg and fills *out but for `data`; each layer has n_extra pages beyond those of cfg. */
enum sl_status sl_kv_plan(const struct sl_kv_config *cfg, uint32_t n_extra, struct sl_kv *out,
                          struct sl_err *err);

/* Page `page` of `layer`. half: 0 is K, 1 is V. */
uint8_t *sl_kv_page(const struct sl_kv *kv, uint32_t layer, uint32_t page);
size_t sl_kv_row_at(const struct sl_kv_config *cfg, uint32_t half, uint32_t head, uint32_t slot);
size_t sl_kv_scale_at(const struct sl_kv_config *cfg, uint32_t half, uint32_t head, uint32_t slot);

/* The page and slot of position `pos` of sequence `seq`. */
uint32_t sl_batch_page(const struct sl_batch *b, uint32_t seq, uint32_t pos, uint32_t page_size);

#endif
