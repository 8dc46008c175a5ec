/* The model's exchange over communicators: floats become bytes, stages become ranks.
 *
 * Tensor parallel operations run in the stage's own sub-group, pipeline transfers in the whole
 * group, between ranks of the same place within their stages. */
#include "group.h"

static void bytes_of(const size_t *counts, uint32_t n, size_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = counts[i] * sizeof(float);
}

static enum sl_status all_gather(void *ctx, const float *mine, float *all, const size_t *counts,
                                 struct sl_err *err)
{
    struct group *g = ctx;
    size_t bytes[SL_LIMIT_ranks];
    bytes_of(counts, g->tp, bytes);
    return sl_comm_all_gather(g->stage, mine, all, bytes, err);
}

static enum sl_status all_to_all(void *ctx, const float *send, const size_t *send_counts,
                                 float *recv, const size_t *recv_counts, struct sl_err *err)
{
    struct group *g = ctx;
    size_t out[SL_LIMIT_ranks], in[SL_LIMIT_ranks];
    bytes_of(send_counts, g->tp, out);
    bytes_of(recv_counts, g->tp, in);
    return sl_comm_all_to_all(g->stage, send, out, recv, in, err);
}

static enum sl_status gather(void *ctx, const float *mine, float *all, const size_t *counts,
                             struct sl_err *err)
{
    struct group *g = ctx;
    size_t bytes[SL_LIMIT_ranks];
    bytes_of(counts, g->tp, bytes);
    return sl_comm_gather(g->stage, 0, mine, all, bytes, err);
}

static uint32_t rank_in(const struct group *g, uint32_t stage)
{
    return stage * g->tp + g->rank % g->tp;
}

static enum sl_status send_to(void *ctx, uint32_t stage, const float *data, size_t n,
                              struct sl_err *err)
{
    struct group *g = ctx;
    return sl_comm_send(g->comm, rank_in(g, stage), data, n * sizeof *data, err);
}

static enum sl_status recv_from(void *ctx, uint32_t stage, float *data, size_t n,
                                struct sl_err *err)
{
    struct group *g = ctx;
    return sl_comm_recv(g->comm, rank_in(g, stage), data, n * sizeof *data, err);
}

static void progress(void *ctx)
{
    struct group *g = ctx;
    sl_comm_progress(g->comm);
}

void sl_exchange_bind(struct group *g)
{
    g->exchange = (struct sl_exchange){.ctx = g,
                                       .all_gather = all_gather,
                                       .all_to_all = all_to_all,
                                       .gather = gather,
                                       .send = send_to,
                                       .recv = recv_from,
                                       .progress = progress};
}
