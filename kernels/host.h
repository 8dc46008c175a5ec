/* The part of the op table that is about memory, for backends whose memory is the host's. */
#ifndef SLUICE_KERNELS_HOST_H
#define SLUICE_KERNELS_HOST_H

#include <sluice/kernels/op.h>

void sl_host_memory(struct sl_backend *b, uint64_t *total_bytes, uint64_t *free_bytes);
void *sl_host_mirror(struct sl_backend *b, void *p, size_t bytes);
void sl_host_mirror_free(struct sl_backend *b, void *mirror, void *p, size_t bytes);
void sl_host_write(struct sl_backend *b, void *to, const void *host, size_t bytes);
void sl_host_read(struct sl_backend *b, void *host, const void *from, size_t bytes);
enum sl_status sl_host_finish(struct sl_backend *b, struct sl_err *err);
enum sl_status sl_host_page_out(struct sl_backend *b, void *host, const void *page, size_t bytes,
                                struct sl_err *err);
enum sl_status sl_host_page_in(struct sl_backend *b, void *page, const void *host, size_t bytes,
                               struct sl_err *err);
enum sl_status sl_host_plan(struct sl_backend *b, const struct sl_step_limits *limits,
                            struct sl_err *err);
size_t sl_host_plan_bytes(struct sl_backend *b, const struct sl_step_limits *limits);
/* Adds no rows: nothing is gained by it here. */
void sl_host_stage(struct sl_backend *b, const struct sl_kv *kv, const struct sl_step_rows *in,
                   uint32_t n_pad, struct sl_step_rows *out);
void sl_host_replay(struct sl_backend *b, const uint64_t key[4], void (*fn)(void *ctx), void *ctx);

/* For the table's initialiser. */
#define SL_HOST_MEMORY_OPS                                                                         \
    .memory = sl_host_memory, .mirror = sl_host_mirror, .mirror_free = sl_host_mirror_free,        \
    .write = sl_host_write, .read = sl_host_read, .finish = sl_host_finish,                        \
    .page_out = sl_host_page_out, .page_in = sl_host_page_in, .plan = sl_host_plan,                \
    .plan_bytes = sl_host_plan_bytes, .stage = sl_host_stage, .replay = sl_host_replay

#endif
