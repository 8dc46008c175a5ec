/* The model's exchange over communicators: floats become bytes, stages become ranks.
 *
 * Tensor parallel operations run in the stage's own sub-group, pipeline transfers in the whole
 * group, between ranks of the same place within their stages. What a device holds moves on a lane
 * between devices, in the order of its ops; where there is none, through a buffer of the host's:
 * out with one copy and a wait, in with one copy. */
#include "group.h"

/* ---- a device's memory ---- */

/* The host's copy of what lies `at` floats into the buffer; `from` itself where the host computes.
 * The buffer is free then. */
static enum sl_status take(struct group *g, const float **from, size_t at, size_t n,
                           struct sl_err *err)
{
    struct sl_backend *b = g->backend;
    if (!b->on_device)
        return SL_OK;
    sl_assert(at <= g->n_bounce && n <= g->n_bounce - at);
    if (n)
        b->ops->read(b, g->bounce + at, *from, n * sizeof **from);
    *from = g->bounce + at;
    return b->ops->finish(b, err);
}

/* Where the host may put n floats for `to`. */
static float *place(struct group *g, float *to, size_t at, size_t n)
{
    if (!to || !g->backend->on_device)
        return to;
    sl_assert(at <= g->n_bounce && n <= g->n_bounce - at);
    return g->bounce + at;
}

static void give(struct group *g, float *to, const float *placed, size_t n)
{
    if (to)
        g->backend->ops->write(g->backend, to, placed, n * sizeof *to);
}

static size_t sum(const size_t *counts, uint32_t n)
{
    size_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        total += counts[i];
    return total;
}

/* ---- the exchange ---- */

static void bytes_of(const size_t *counts, uint32_t n, size_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = counts[i] * sizeof(float);
}

static enum sl_status all_gather(void *ctx, const float *mine, float *all, const size_t *counts,
                                 struct sl_err *err)
{
    struct group *g = ctx;
    size_t bytes[SL_LIMIT_ranks], total = sum(counts, g->tp);
    uint32_t me = g->rank % g->tp;
    bytes_of(counts, g->tp, bytes);
    if (g->stage_lane)
        return sl_comm_device_all_gather(g->stage_lane, mine, all, bytes, err);
    enum sl_status s = take(g, &mine, sum(counts, me), counts[me], err);
    float *placed = place(g, all, 0, total);
    if (!s)
        s = sl_comm_all_gather(g->stage, mine, placed, bytes, err);
    if (!s)
        give(g, all, placed, total);
    return s;
}

static enum sl_status all_to_all(void *ctx, const float *send, const size_t *send_counts,
                                 float *recv, const size_t *recv_counts, struct sl_err *err)
{
    struct group *g = ctx;
    size_t out[SL_LIMIT_ranks], in[SL_LIMIT_ranks];
    size_t n_out = sum(send_counts, g->tp), n_in = sum(recv_counts, g->tp);
    bytes_of(send_counts, g->tp, out);
    bytes_of(recv_counts, g->tp, in);
    if (g->stage_lane)
        return sl_comm_device_all_to_all(g->stage_lane, send, out, recv, in, err);
    enum sl_status s = take(g, &send, 0, n_out, err);
    float *placed = place(g, recv, n_out, n_in);
    if (!s)
        s = sl_comm_all_to_all(g->stage, send, out, placed, in, err);
    if (!s)
        give(g, recv, placed, n_in);
    return s;
}

static enum sl_status gather(void *ctx, const float *mine, float *all, const size_t *counts,
                             struct sl_err *err)
{
    struct group *g = ctx;
    size_t bytes[SL_LIMIT_ranks], total = sum(counts, g->tp);
    uint32_t me = g->rank % g->tp;
    bytes_of(counts, g->tp, bytes);
    if (g->stage_lane)
        return sl_comm_device_gather(g->stage_lane, 0, mine, all, bytes, err);
    enum sl_status s = take(g, &mine, all ? sum(counts, me) : 0, counts[me], err);
    float *placed = place(g, all, 0, total);
    if (!s)
        s = sl_comm_gather(g->stage, 0, mine, placed, bytes, err);
    if (!s)
        give(g, all, placed, total);
    return s;
}

static uint32_t rank_in(const struct group *g, uint32_t stage)
{
    return stage * g->tp + g->rank % g->tp;
}

static enum sl_status send_to(void *ctx, uint32_t stage, const float *data, size_t n,
                              struct sl_err *err)
{
    struct group *g = ctx;
    if (g->comm_lane)
        return sl_comm_device_send(g->comm_lane, rank_in(g, stage), data, n * sizeof *data, err);
    enum sl_status s = take(g, &data, 0, n, err);
    return s ? s : sl_comm_send(g->comm, rank_in(g, stage), data, n * sizeof *data, err);
}

static enum sl_status recv_from(void *ctx, uint32_t stage, float *data, size_t n,
                                struct sl_err *err)
{
    struct group *g = ctx;
    const float *none = data;
    if (g->comm_lane)
        return sl_comm_device_recv(g->comm_lane, rank_in(g, stage), data, n * sizeof *data, err);
    enum sl_status s = take(g, &none, 0, 0, err);
    float *placed = place(g, data, 0, n);
    if (!s)
        s = sl_comm_recv(g->comm, rank_in(g, stage), placed, n * sizeof *data, err);
    if (!s)
        give(g, data, placed, n);
    return s;
}

static void progress(void *ctx)
{
    struct group *g = ctx;
    sl_comm_progress(g->comm);
    if (g->stage_lane || g->comm_lane)
        sl_comm_device_progress(g->stage_lane ? g->stage_lane : g->comm_lane);
}

enum sl_status sl_exchange_settle(struct group *g, struct sl_err *err)
{
    enum sl_status s = g->stage_lane ? sl_comm_device_settle(g->stage_lane, err) : SL_OK;
    enum sl_status t = g->comm_lane ? sl_comm_device_settle(g->comm_lane, s ? NULL : err) : SL_OK;
    return s ? s : t; /* of both in any case: none may wait for a peer then */
}

void sl_exchange_unbind(struct group *g)
{
    if (g->bounce)
        g->backend->ops->mirror_free(g->backend, g->bounce, NULL, g->n_bounce * sizeof(float));
    g->bounce = NULL;
    g->n_bounce = 0;
}

enum sl_status sl_exchange_bind(struct group *g, struct sl_backend *b, size_t n_floats,
                                struct sl_err *err)
{
    sl_exchange_unbind(g);
    g->backend = b;
    if (b->on_device) {
        g->bounce = b->ops->mirror(b, NULL, n_floats * sizeof(float));
        if (!g->bounce)
            return sl_fail(err, SL_NO_MEMORY, "engine: no memory to exchange %zu floats", n_floats);
        g->n_bounce = n_floats;
    }
    g->exchange = (struct sl_exchange){.ctx = g,
                                       .all_gather = all_gather,
                                       .all_to_all = all_to_all,
                                       .gather = gather,
                                       .send = send_to,
                                       .recv = recv_from,
                                       .progress = progress};
    return SL_OK;
}
