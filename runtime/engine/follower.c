/* A follower: every rank but 0. Waits for the next word of rank 0, computes its shard of the step,
 * waits again; while nothing comes it sleeps. When the group is lost it joins anew. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <string.h>
#include <unistd.h>

#define JOIN_MS 2000 /* between two looks at whether to stop */
#define POLL_MS 1000

static enum sl_status tell(struct sl_engine *e, struct sl_err *err)
{
    struct group *g = e->group;
    struct wire_status w = {.rank = g->rank,
                            .pid = (uint32_t)getpid(),
                            .n_threads = e->info.n_threads,
                            .weight_bytes = e->info.weight_bytes,
                            .kv_bytes = e->info.kv_bytes,
                            .comm_bytes = sl_group_comm_bytes(g),
                            .n_steps = g->n_steps,
                            .n_op_calls = e->backend->n_op_calls};
    memcpy(w.isa, e->isa_name, sizeof w.isa - 1);
    pthread_mutex_lock(&g->lock);
    w.kv = g->kv[g->rank];
    pthread_mutex_unlock(&g->lock);
    w.n_ended = e->n_ended < WIRE_ENDED_MAX ? e->n_ended : WIRE_ENDED_MAX;
    for (uint32_t i = 0; i < w.n_ended; i++)
        w.ended[i] = e->ended_transfers[--e->n_ended];
    w.n_kernels = sl_engine_kernels(e, w.kernels);
    return sl_comm_send(g->comm, 0, &w, sizeof w, err);
}

/* A step that its checks refuse was refused by every rank alike, before a byte was exchanged. Else
 * the group is lost, or the device. */
static enum sl_status compute(struct sl_engine *e, const struct wire_head *h, struct sl_err *err)
{
    struct group *g = e->group;
    struct sl_plan plan;
    const struct wire_export *exports;
    enum sl_status s = sl_wire_plan_get(h, &g->limits, g->body, &plan, &exports, err);
    if (s)
        return s;
    sl_exports_follow(e, &plan, exports, h->n_exports);
    s = sl_engine_forward(e, &plan, err);
    if (!s)
        s = e->backend->ops->finish(e->backend, err);
    g->n_steps += !s;
    e->pending_step = s ? 0 : plan.step;
    return sl_group_is_loss(s) || s == SL_NO_MEMORY ? s : SL_OK;
}

/* What became of the step before. Only then may an export leave, as the step has it in its hands.
 */
static void settle_step(struct sl_engine *e, const struct wire_head *h)
{
    bool well = e->pending_step && e->pending_step == h->done;
    sl_exports_commit(e, well ? SL_OK : SL_PEER);
    e->pending_step = 0;
    sl_follow_commands(e);
}

/* One word of rank 0 and what it asks for. */
static enum sl_status obey(struct sl_engine *e, bool *left, struct sl_err *err)
{
    struct group *g = e->group;
    struct wire_head h;
    size_t bytes;
    enum sl_status s = sl_comm_recv(g->comm, 0, &h, sizeof h, err);
    if (!s)
        s = sl_wire_head_check(&h, &g->limits, &bytes, err);
    if (s)
        return s;
    settle_step(e, &h);
    if (h.kind == WIRE_STOP) {
        *left = true;
        sl_comm_barrier(g->comm, NULL);
        return SL_OK;
    }
    if (h.kind == WIRE_STATUS)
        return tell(e, err);
    s = bytes ? sl_comm_recv(g->comm, 0, g->body, bytes, err) : SL_OK;
    if (!s && h.kind != WIRE_PLAN)
        return sl_follow_transfer(e, &h, err);
    return s ? s : compute(e, &h, err);
}

/* Until the group is lost (false) or rank 0 says goodbye (true). */
static bool follow(struct sl_engine *e, struct sl_err *err)
{
    struct group *g = e->group;
    bool left = false;
    while (!atomic_load(&e->stopping) && !left) {
        bool ready = false;
        enum sl_status s = sl_comm_poll(g->comm, 0, POLL_MS, &ready, err);
        if (!s && ready)
            s = obey(e, &left, err);
        if (s)
            return false;
    }
    return true;
}

void *sl_follower_thread(void *arg)
{
    struct sl_engine *e = arg;
    struct group *g = e->group;
    struct sl_err err;
    while (!atomic_load(&e->stopping)) {
        enum sl_status s = sl_group_join(g, JOIN_MS, &err);
        if (s == SL_PEER && g->state.state == SL_GROUP_FORMING)
            continue;
        if (s) {
            sl_log(SL_LOG_ERROR, "rank %u: %s", g->rank, err.msg);
            return NULL;
        }
        sl_log(SL_LOG_DEBUG, "rank %u of %u is in its group", g->rank, g->n_ranks);
        if (follow(e, &err)) {
            sl_group_end(g, SL_OK, NULL);
            return NULL;
        }
        if (err.status == SL_NO_MEMORY) {
            sl_log(SL_LOG_ERROR, "rank %u: %s", g->rank, err.msg);
            sl_group_end(g, err.status, &err);
            return NULL;
        }
        sl_log(SL_LOG_WARN, "rank %u lost its group: %s", g->rank, err.msg);
        sl_group_lost(g, &err);
        sl_follow_lost(e);
    }
    return NULL;
}
