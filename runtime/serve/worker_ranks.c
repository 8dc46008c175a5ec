/* A worker's ranks: rank 0 keeps its followers and tells routers of them; every other rank only
 * follows, without a bus, until rank 0 leaves or a signal says so.
 *
 * Ranks that somebody else started cannot be told to be fewer: where one is lost for long rank 0
 * computes all of it, and the others wait with the one that comes back. */
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <string.h>

#define RANKS_INTERVAL_MS 250

bool worker_is_follower(const struct worker *w)
{
    return w->cfg->engine.place.rank > 0;
}

/* Before the model is opened, so that all ranks load at the same time. */
enum sl_status worker_ranks_open(struct worker *w, struct sl_err *err)
{
    if (!w->cfg->followers.exe || worker_is_follower(w))
        return SL_OK;
    return sl_ranks_open(&w->cfg->followers, &w->ranks, err);
}

void worker_look_at_group(struct worker *w)
{
    struct sl_engine_group g;
    sl_engine_group(w->engine, &g);
    w->reforming = g.state == SL_GROUP_FORMING && g.n_formed;
    w->formed |= g.state == SL_GROUP_UP;
    if (g.n_formed != w->n_formed && g.n_ranks > 1)
        sl_log(SL_LOG_INFO, "rank %u: group of %u ranks is up: tensor parallel %u, pipeline %u",
               w->cfg->engine.place.rank, g.n_ranks, g.tp, g.pp);
    if (g.n_formed != w->n_formed)
        w->next_ranks_ns = 0; /* other processes than before */
    w->n_formed = g.n_formed;
    if (g.state == SL_GROUP_ENDED)
        worker_stop(w, g.why.status, &g.why);
}

static void go_on_alone(struct worker *w, uint64_t now)
{
    struct sl_engine_group g;
    sl_engine_group(w->engine, &g);
    uint64_t wait_ns = w->cfg->rank_return_ms * SL_MS_NS;
    uint64_t from = g.since_ns > w->alone_ns ? g.since_ns : w->alone_ns;
    if (!wait_ns || !w->reforming || g.n_ranks == 1 || now < from || now - from < wait_ns)
        return;
    sl_log(SL_LOG_WARN, "%u ranks did not come together again within %u ms", g.n_ranks,
           w->cfg->rank_return_ms);
    w->alone_ns = now;
    sl_engine_shrink(w->engine, 1, 1);
}

void worker_ranks_tick(struct worker *w, uint64_t now)
{
    struct sl_err err;
    worker_look_at_group(w);
    if (w->stopping || worker_is_follower(w))
        return;
    if (!w->ranks) {
        go_on_alone(w, now);
        return;
    }
    enum sl_status s = sl_ranks_tick(w->ranks, w->engine, now, &err);
    if (s)
        worker_stop(w, s, &err);
}

static void send_to(struct worker *w, const struct sl_msg *m)
{
    for (uint32_t i = 0; i < w->cfg->n_connect; i++)
        if (w->links[i].state == LINK_UP || w->links[i].state == LINK_SILENT)
            sl_bus_send(w->bus, i, m, NULL); /* the next one will arrive */
}

void worker_ranks_say(struct worker *w, uint64_t now)
{
    struct sl_engine_rank r[SL_LIMIT_ranks];
    struct sl_msg_rank out[SL_LIMIT_ranks];
    struct sl_msg_kernel kernels[SL_LIMIT_ranks][SL_LIMIT_kernels];
    struct sl_msg m = {.kind = SL_MSG_RANKS};
    if (now < w->next_ranks_ns)
        return;
    w->next_ranks_ns = now + RANKS_INTERVAL_MS * SL_MS_NS;
    struct sl_engine_group g;
    uint32_t n = sl_engine_ranks(w->engine, r);
    sl_engine_group(w->engine, &g);
    if (w->cfg->engine.place.tp * w->cfg->engine.place.pp < 2 && !r[0].n_kernels)
        return;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < r[i].n_kernels; k++)
            kernels[i][k] =
                (struct sl_msg_kernel){sl_str_of(r[i].kernels[k].name), r[i].kernels[k].n};
        out[i] = (struct sl_msg_rank){.rank = r[i].rank,
                                      .pid = r[i].pid,
                                      .threads = r[i].n_threads,
                                      .weight_bytes = r[i].weight_bytes,
                                      .kv_bytes = r[i].kv_bytes,
                                      .comm_bytes = r[i].comm_bytes,
                                      .steps = r[i].n_steps,
                                      .op_calls = r[i].n_op_calls,
                                      .isa = sl_str_of(r[i].isa),
                                      .kernels = kernels[i],
                                      .n_kernels = r[i].n_kernels};
    }
    m.ranks.ranks = out;
    m.ranks.n_ranks = n;
    m.ranks.tp = g.tp;
    m.ranks.pp = g.pp;
    send_to(w, &m);
}

void worker_ranks_close(struct worker *w)
{
    sl_ranks_close(w->ranks);
}
