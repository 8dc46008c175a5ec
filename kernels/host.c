#include "host.h"

#include <sluice/base/machine.h>

#include <string.h>

void sl_host_memory(struct sl_backend *b, uint64_t *total_bytes, uint64_t *free_bytes)
{
    (void)b;
    sl_machine_memory(total_bytes, free_bytes);
}

void *sl_host_mirror(struct sl_backend *b, void *p, size_t bytes)
{
    (void)b;
    (void)bytes;
    return p;
}

void sl_host_mirror_free(struct sl_backend *b, void *mirror, void *p, size_t bytes)
{
    (void)b;
    (void)mirror;
    (void)p;
    (void)bytes;
}

void sl_host_write(struct sl_backend *b, void *to, const void *host, size_t bytes)
{
    (void)b;
    if (to != host)
        memcpy(to, host, bytes);
}

void sl_host_read(struct sl_backend *b, void *host, const void *from, size_t bytes)
{
    (void)b;
    if (host != from)
        memcpy(host, from, bytes);
}

enum sl_status sl_host_finish(struct sl_backend *b, struct sl_err *err)
{
    (void)b;
    (void)err;
    return SL_OK;
}

enum sl_status sl_host_page_out(struct sl_backend *b, void *host, const void *page, size_t bytes,
                                struct sl_err *err)
{
    (void)err;
    sl_host_read(b, host, page, bytes);
    return SL_OK;
}

enum sl_status sl_host_page_in(struct sl_backend *b, void *page, const void *host, size_t bytes,
                               struct sl_err *err)
{
    (void)err;
    sl_host_write(b, page, host, bytes);
    return SL_OK;
}

enum sl_status sl_host_plan(struct sl_backend *b, const struct sl_step_limits *limits,
                            struct sl_err *err)
{
    (void)b;
    (void)limits;
    (void)err;
    return SL_OK;
}

size_t sl_host_plan_bytes(struct sl_backend *b, const struct sl_step_limits *limits)
{
    (void)b;
    (void)limits;
    return 0;
}

void sl_host_stage(struct sl_backend *b, const struct sl_kv *kv, const struct sl_step_rows *in,
                   uint32_t n_pad, struct sl_step_rows *out)
{
    (void)b;
    (void)kv;
    (void)n_pad;
    *out = *in;
}

void sl_host_replay(struct sl_backend *b, const uint64_t key[4], void (*fn)(void *ctx), void *ctx)
{
    (void)b;
    (void)key;
    fn(ctx);
}
