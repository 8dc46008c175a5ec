/* What the rest of the transport module needs from the loop beyond its public header. */
#ifndef SLUICE_LOOP_PRIV_H
#define SLUICE_LOOP_PRIV_H

#include <sluice/base/containers.h>
#include <sluice/transport/loop.h>
#include <uv.h>

uv_loop_t *sl_loop_uv(struct sl_loop *l);

/* Runs after the idle hooks, right before the loop blocks: bytes that the hooks queued still leave
 * in this round. `fn` returns true when it wants to be called again without blocking first. */
struct sl_flush {
    struct sl_list node;
    bool (*fn)(void *ctx);
    void *ctx;
};
void sl_loop_add_flush(struct sl_loop *l, struct sl_flush *f);
void sl_loop_remove_flush(struct sl_flush *f);

#endif
