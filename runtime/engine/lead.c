/* Rank 0 of a group: sends plans, asks for figures, brings the group together again.
 *
 * Whatever goes wrong with another rank ends the collective for everybody; the engine thread then
 * makes the scheduler forget the KV cache and joins anew. Nothing here allocates in a step. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <string.h>
#include <unistd.h>

#define JOIN_MS   500 /* then commands get their turn */
#define STATUS_MS 250 /* between two rounds of figures while steps run */

/* ---- figures ---- */

static void note_self(struct sl_engine *e)
{
    struct group *g = e->group;
    struct sl_engine_rank r = {.rank = 0,
                               .pid = (uint32_t)getpid(),
                               .n_threads = e->info.n_threads,
                               .weight_bytes = e->info.weight_bytes,
                               .kv_bytes = e->info.kv_bytes,
                               .comm_bytes = sl_group_comm_bytes(g),
                               .n_op_calls = e->backend->n_op_calls};
    struct sl_sched_stats s;
    sl_sched_stats(e->sched, &s);
    r.n_steps = s.n_steps;
    memcpy(r.isa, e->isa_name, sizeof r.isa);
    r.n_kernels = sl_engine_kernels(e, r.kernels);
    pthread_mutex_lock(&g->lock);
    g->ranks[0] = r;
    pthread_mutex_unlock(&g->lock);
}

static enum sl_status note_rank(struct sl_engine *e, uint32_t rank, const struct wire_status *w,
                                struct sl_err *err)
{
    struct group *g = e->group;
    if (w->rank != rank || w->n_threads > SL_LIMIT_threads || w->n_kernels > SL_LIMIT_kernels)
        return sl_fail(err, SL_PEER, "rank %u tells of rank %u with %u threads, %llu kernels", rank,
                       w->rank, w->n_threads, (unsigned long long)w->n_kernels);
    struct sl_engine_rank r = {.rank = rank,
                               .pid = w->pid,
                               .n_threads = w->n_threads,
                               .weight_bytes = w->weight_bytes,
                               .kv_bytes = w->kv_bytes,
                               .comm_bytes = w->comm_bytes,
                               .n_steps = w->n_steps,
                               .n_op_calls = w->n_op_calls};
    memcpy(r.isa, w->isa, sizeof r.isa - 1);
    r.n_kernels = (uint32_t)w->n_kernels;
    memcpy(r.kernels, w->kernels, sizeof r.kernels);
    for (uint32_t i = 0; i < SL_LIMIT_kernels; i++)
        r.kernels[i].name[sizeof r.kernels[i].name - 1] = 0;
    pthread_mutex_lock(&g->lock);
    g->ranks[rank] = r;
    g->kv[rank] = w->kv;
    g->kv[rank].address[SL_KV_ADDRESS_MAX - 1] = '\0';
    pthread_mutex_unlock(&g->lock);
    return sl_lead_ended(e, rank, w->ended, w->n_ended, err);
}

static enum sl_status send_head(struct group *g, const struct wire_head *h, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    for (uint32_t r = 1; r < g->n_ranks && !s; r++)
        s = sl_comm_send(g->comm, r, h, sizeof *h, err);
    return s;
}

static enum sl_status ask_status(struct sl_engine *e, struct sl_err *err)
{
    struct group *g = e->group;
    struct wire_head h = sl_wire_head(WIRE_STATUS, 0);
    struct wire_status w;
    h.done = g->done_step;
    enum sl_status s = send_head(g, &h, err);
    for (uint32_t r = 1; r < g->n_ranks && !s; r++) {
        s = sl_comm_recv(g->comm, r, &w, sizeof w, err);
        if (!s)
            s = note_rank(e, r, &w, err);
    }
    note_self(e);
    g->status_ns = sl_now_ns();
    return s;
}

void sl_lead_between(struct sl_engine *e)
{
    struct sl_err err;
    int soon = sl_lead_wait_ms(e);
    uint64_t ms = soon >= 0 && soon < STATUS_MS ? (uint64_t)soon : STATUS_MS;
    if (sl_now_ns() - e->group->status_ns >= ms * SL_MS_NS && ask_status(e, &err))
        sl_lead_lost(e, &err);
    else
        sl_lead_transfers(e);
}

/* ---- steps ---- */

enum sl_status sl_lead_plan(struct sl_engine *e, const struct sl_plan *p, struct sl_err *err)
{
    struct group *g = e->group;
    struct wire_head h;
    enum sl_status s = SL_OK;
    size_t bytes = sl_wire_plan_put(p, e->wire_exports, e->n_wire_exports, &h, g->body);
    h.done = g->done_step;
    for (uint32_t r = 1; r < g->n_ranks && !s; r++) {
        s = sl_comm_send(g->comm, r, &h, sizeof h, err);
        if (!s)
            s = sl_comm_send(g->comm, r, g->body, bytes, err);
    }
    return s;
}

void sl_lead_lost(struct sl_engine *e, const struct sl_err *why)
{
    sl_group_lost(e->group, why);
    sl_transfers_lost(e, false);
    sl_sched_forget_kv(e->sched);
    sl_log(SL_LOG_WARN, "group of %u ranks is lost (%s, rank %u blamed); it forms again",
           e->group->n_ranks, why->msg, e->group->state.blamed);
}

void sl_lead_regroup(struct sl_engine *e)
{
    struct sl_err err;
    bool ready;
    if (!e->group->comm)
        return;
    for (uint32_t r = 1; r < e->group->n_ranks; r++)
        if (sl_comm_poll(e->group->comm, r, 0, &ready, &err)) {
            sl_lead_lost(e, &err);
            return;
        }
}

/* The cache is another one then, so who still reads or fills the old one is waited for: it was told
 * to stop. */
void sl_lead_resize(struct sl_engine *e)
{
    struct sl_err err;
    struct group *g = e->group;
    uint32_t was_tp = g->tp, was_pp = g->pp, tp = (uint32_t)(e->resize_to >> 32),
             pp = (uint32_t)e->resize_to;
    bool grows = tp * pp > g->n_ranks;
    if (g->comm || tp * pp == g->n_ranks) {
        e->resize_to = 0; /* it came together meanwhile */
        return;
    }
    sl_transfers_lost(e, true);
    if (sl_transfers_open(e))
        return;
    e->resize_to = 0;
    if (sl_engine_reopen(e, tp, pp, &err))
        sl_log(SL_LOG_ERROR, "no %s group: %s", grows ? "larger" : "smaller", err.msg);
    else
        sl_log(SL_LOG_WARN, "group %s from %u x %u to %u x %u ranks", grows ? "grows" : "shrinks",
               was_tp, was_pp, tp, pp);
    if (g->n_ranks < g->full_tp * g->full_pp)
        sl_group_look_later(g, sl_now_ns());
}

/* The lost ranks are back and wait: streams pause until the full group has formed. */
static void grow(struct sl_engine *e)
{
    struct group *g = e->group;
    sl_group_part(g); /* loading takes a while; routers are told meanwhile */
    sl_transfers_lost(e, true);
    sl_sched_forget_kv(e->sched);
    e->resize_to = (uint64_t)g->full_tp << 32 | g->full_pp;
    sl_lead_resize(e);
}

void sl_lead_idle(struct sl_engine *e)
{
    struct sl_err err;
    if (ask_status(e, &err))
        sl_lead_lost(e, &err);
}

bool sl_lead_ready(struct sl_engine *e)
{
    struct group *g = e->group;
    struct sl_err err;
    if (g->comm && sl_group_is_full_again(g, sl_now_ns()))
        grow(e);
    if (g->comm)
        return true;
    if (e->resize_to)
        return false;
    if (g->state.state == SL_GROUP_ENDED || atomic_load(&e->stopping))
        return false;
    enum sl_status s = sl_group_join(g, JOIN_MS, &err);
    if (s && s != SL_PEER)
        sl_log(SL_LOG_ERROR, "%s", err.msg);
    if (s)
        return false;
    if (sl_lead_charter(e, &err) || ask_status(e, &err)) {
        sl_lead_lost(e, &err);
        return false;
    }
    sl_log(SL_LOG_DEBUG, "group of %u ranks is up: tensor parallel %u, pipeline parallel %u",
           g->n_ranks, g->tp, g->pp);
    return true;
}

void sl_lead_leave(struct sl_engine *e)
{
    struct wire_head h = sl_wire_head(WIRE_STOP, 0);
    if (e->group->comm && !send_head(e->group, &h, NULL))
        sl_comm_barrier(e->group->comm, NULL); /* it was read */
}
