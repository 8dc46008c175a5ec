/* A group of ranks as threads of one process, exchanging floats through mailboxes in memory. */
#ifndef SLUICE_TESTS_RANKS_H
#define SLUICE_TESTS_RANKS_H

#include <sluice/model/exchange.h>
#include <sluice/model/shard.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define RANKS_MAX 24u

struct mail {
    struct mail *next;
    size_t n;
    float data[];
};

struct net {
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    struct mail *box[RANKS_MAX][RANKS_MAX]; /* [from][to], oldest first */
    bool broken;                            /* a rank gave up: everybody does */
    atomic_ulong n_floats;                  /* sent in all */
    atomic_ulong n_scatters;                /* all_to_all calls */
};

static inline void net_open(struct net *n)
{
    memset(n, 0, sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->arrived, NULL);
}

static inline void net_close(struct net *n)
{
    for (uint32_t i = 0; i < RANKS_MAX * RANKS_MAX; i++)
        for (struct mail *m = n->box[i / RANKS_MAX][i % RANKS_MAX], *next; m; m = next) {
            next = m->next;
            free(m);
        }
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->arrived);
}

static inline void net_break(struct net *n)
{
    pthread_mutex_lock(&n->lock);
    n->broken = true;
    pthread_cond_broadcast(&n->arrived);
    pthread_mutex_unlock(&n->lock);
}

/* One rank's end. */
struct rank_end {
    struct net *net;
    struct sl_shard shard;
    uint32_t fail_at; /* number of the call that fails, from 1; 0: none */
    uint32_t n_calls, n_progress;
};

static inline uint32_t rank_number(const struct rank_end *e, uint32_t tp_rank, uint32_t stage)
{
    return stage * e->shard.tp + tp_rank;
}

static inline void post(struct rank_end *e, uint32_t to, const float *data, size_t n)
{
    uint32_t from = rank_number(e, e->shard.tp_rank, e->shard.pp_rank);
    struct mail *m = malloc(sizeof *m + n * sizeof *data);
    m->next = NULL;
    m->n = n;
    memcpy(m->data, data, n * sizeof *data);
    pthread_mutex_lock(&e->net->lock);
    struct mail **last = &e->net->box[from][to];
    while (*last)
        last = &(*last)->next;
    *last = m;
    pthread_cond_broadcast(&e->net->arrived);
    pthread_mutex_unlock(&e->net->lock);
    e->net->n_floats += n;
}

static inline enum sl_status take(struct rank_end *e, uint32_t from, float *data, size_t n,
                                  struct sl_err *err)
{
    struct net *net = e->net;
    uint32_t to = rank_number(e, e->shard.tp_rank, e->shard.pp_rank);
    pthread_mutex_lock(&net->lock);
    while (!net->box[from][to] && !net->broken)
        pthread_cond_wait(&net->arrived, &net->lock);
    struct mail *m = net->broken ? NULL : net->box[from][to];
    if (m)
        net->box[from][to] = m->next;
    pthread_mutex_unlock(&net->lock);
    if (!m)
        return sl_fail(err, SL_PEER, "ranks: another rank gave up");
    enum sl_status status = SL_OK;
    if (m->n == n)
        memcpy(data, m->data, n * sizeof *data);
    else
        status = sl_fail(err, SL_FAILED, "ranks: %zu floats of rank %u to %u, not %zu", m->n, from,
                         to, n);
    free(m);
    return status;
}

static inline enum sl_status count_call(struct rank_end *e, struct sl_err *err)
{
    if (++e->n_calls == e->fail_at)
        return sl_fail(err, SL_CANCELLED, "ranks: call %u fails as told", e->n_calls);
    return SL_OK;
}

static inline enum sl_status ranks_all_to_all(void *ctx, const float *send, const size_t *n_send,
                                              float *recv, const size_t *n_recv, struct sl_err *err)
{
    struct rank_end *e = ctx;
    enum sl_status status = count_call(e, err);
    const float *own = send;
    e->net->n_scatters++;
    for (uint32_t r = 0; r < e->shard.tp; send += n_send[r++]) {
        if (r == e->shard.tp_rank)
            own = send;
        else
            post(e, rank_number(e, r, e->shard.pp_rank), send, n_send[r]);
    }
    for (uint32_t r = 0; r < e->shard.tp && !status; recv += n_recv[r++]) {
        if (r == e->shard.tp_rank)
            memcpy(recv, own, n_recv[r] * sizeof *recv);
        else
            status = take(e, rank_number(e, r, e->shard.pp_rank), recv, n_recv[r], err);
    }
    return status;
}

static inline enum sl_status ranks_gather_at(struct rank_end *e, bool here, bool everywhere,
                                             const float *mine, float *all, const size_t *n,
                                             struct sl_err *err)
{
    enum sl_status status = count_call(e, err);
    for (uint32_t r = 0; r < e->shard.tp; r++)
        if (r != e->shard.tp_rank && (everywhere || r == 0))
            post(e, rank_number(e, r, e->shard.pp_rank), mine, n[e->shard.tp_rank]);
    for (uint32_t r = 0; r < e->shard.tp && here && !status; all += n[r++]) {
        if (r != e->shard.tp_rank)
            status = take(e, rank_number(e, r, e->shard.pp_rank), all, n[r], err);
        else if (all != mine)
            status = sl_fail(err, SL_FAILED, "ranks: my part does not lie in its place");
    }
    return status;
}

static inline enum sl_status ranks_all_gather(void *ctx, const float *mine, float *all,
                                              const size_t *n, struct sl_err *err)
{
    return ranks_gather_at(ctx, true, true, mine, all, n, err);
}

static inline enum sl_status ranks_gather(void *ctx, const float *mine, float *all, const size_t *n,
                                          struct sl_err *err)
{
    struct rank_end *e = ctx;
    return ranks_gather_at(e, e->shard.tp_rank == 0, false, mine, all, n, err);
}

static inline enum sl_status ranks_send(void *ctx, uint32_t stage, const float *data, size_t n,
                                        struct sl_err *err)
{
    struct rank_end *e = ctx;
    enum sl_status status = count_call(e, err);
    if (!status)
        post(e, rank_number(e, e->shard.tp_rank, stage), data, n);
    return status;
}

static inline enum sl_status ranks_recv(void *ctx, uint32_t stage, float *data, size_t n,
                                        struct sl_err *err)
{
    struct rank_end *e = ctx;
    enum sl_status status = count_call(e, err);
    return status ? status : take(e, rank_number(e, e->shard.tp_rank, stage), data, n, err);
}

static inline void ranks_progress(void *ctx)
{
    struct rank_end *e = ctx;
    e->n_progress++;
}

static inline struct sl_exchange ranks_exchange(struct rank_end *e)
{
    return (struct sl_exchange){.ctx = e,
                                .all_gather = ranks_all_gather,
                                .all_to_all = ranks_all_to_all,
                                .gather = ranks_gather,
                                .send = ranks_send,
                                .recv = ranks_recv,
                                .progress = ranks_progress};
}

#endif
