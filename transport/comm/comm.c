/* Opening and closing a communicator, and the latch of its first failure. */
#include "comm_priv.h"

#include <sluice/base/containers.h>
#include <sluice/base/time.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- the latch -------------------------------------------------------------------------------- */

void comm_net_init(struct comm_net *net, const struct comm_ops *ops, const struct comm_join *j)
{
    const struct sl_comm_config *cfg = j->cfg;
    net->ops = ops;
    net->kind = ops ? ops->kind : cfg->kind == SL_COMM_TCP ? SL_COMM_TCP : SL_COMM_SHM;
    net->rank = cfg->rank;
    net->n_ranks = cfg->n_ranks;
    net->op_timeout_ms = cfg->op_timeout_ms ? cfg->op_timeout_ms : COMM_OP_TIMEOUT_MS;
    net->join_timeout_ms = j->timeout_ms;
    net->blamed = cfg->n_ranks;
    pthread_mutex_init(&net->lock, NULL);
}

/* True for the one that came first. */
static bool latch(struct comm_net *net, enum sl_status status, uint32_t blamed, const char *why)
{
    pthread_mutex_lock(&net->lock);
    bool first = atomic_load(&net->failed) == SL_OK;
    if (first) {
        net->blamed = blamed;
        snprintf(net->why, sizeof net->why, "%s", why);
        atomic_store(&net->failed, (int)status);
    }
    pthread_mutex_unlock(&net->lock);
    return first;
}

static enum sl_status failure(struct comm_net *net, struct sl_err *err)
{
    pthread_mutex_lock(&net->lock);
    enum sl_status s = sl_fail(err, (enum sl_status)atomic_load(&net->failed), "%s", net->why);
    pthread_mutex_unlock(&net->lock);
    return s;
}

enum sl_status comm_net_fail(struct comm_net *net, enum sl_status status, uint32_t blamed,
                             const char *why, struct sl_err *err)
{
    struct wire_alert alert = {net->rank, blamed};
    if (latch(net, status, blamed, why) && net->ops)
        net->ops->alert(net, &alert);
    return failure(net, err);
}

/* A peer said that the group has ended. */
static void heed(struct comm_net *net, const struct wire_alert *a)
{
    char why[100];
    if (a->blamed < net->n_ranks)
        snprintf(why, sizeof why, "comm: rank %u lost rank %u", a->by, a->blamed);
    else
        snprintf(why, sizeof why, "comm: rank %u ended the group", a->by);
    /* Passed on: over TCP not everybody has heard it. */
    comm_net_fail(net, SL_PEER, a->blamed < net->n_ranks ? a->blamed : net->n_ranks, why, NULL);
}

enum sl_status comm_net_check(struct comm_net *net, struct sl_err *err)
{
    struct wire_alert alert;
    if (atomic_load(&net->failed) == SL_OK && net->ops && net->ops->alerted(net, &alert))
        heed(net, &alert);
    return atomic_load(&net->failed) == SL_OK ? SL_OK : failure(net, err);
}

void sl_comm_abort(struct sl_comm *c)
{
    comm_net_fail(c->net, SL_CANCELLED, c->net->n_ranks, "comm: aborted", NULL);
}

/* --- opening ---------------------------------------------------------------------------------- */

enum sl_status comm_join_check(struct comm_join *j, const char *what, struct sl_err *err)
{
    if (j->cfg->stop && *j->cfg->stop)
        return sl_fail(err, SL_CANCELLED, "comm: told to stop while waiting for %s", what);
    if (sl_now_ns() >= j->deadline_ns)
        return sl_fail(err, SL_PEER, "comm: rank %u of '%s': %s did not come within %u ms",
                       j->cfg->rank, j->cfg->group, what, j->timeout_ms);
    return rendezvous_hear(j, err);
}

static enum sl_status check_config(const struct sl_comm_config *cfg, struct sl_err *err)
{
    if (cfg->n_ranks == 0 || cfg->n_ranks > SL_COMM_RANKS_MAX || cfg->rank >= cfg->n_ranks)
        return sl_fail(err, SL_CONFIG, "comm: rank %u of %u, at most %d", cfg->rank, cfg->n_ranks,
                       SL_COMM_RANKS_MAX);
    if (cfg->n_ranks == 1)
        return SL_OK;
    if (!cfg->rendezvous || !cfg->group || !cfg->group[0])
        return sl_fail(err, SL_CONFIG, "comm: a group of %u needs a name and a rendezvous",
                       cfg->n_ranks);
    if (strlen(cfg->group) >= WIRE_GROUP_BYTES)
        return sl_fail(err, SL_CONFIG, "comm: group name of %zu bytes, at most %d",
                       strlen(cfg->group), WIRE_GROUP_BYTES - 1);
    for (const char *c = cfg->group; *c; c++)
        if (*c < ' ' || *c > '~')
            return sl_fail(err, SL_CONFIG, "comm: group name is not printable ASCII");
    return SL_OK;
}

static enum sl_status open_alone(const struct comm_join *j, struct comm_net **net,
                                 struct sl_err *err)
{
    *net = calloc(1, sizeof **net);
    if (!*net)
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory");
    comm_net_init(*net, NULL, j);
    return SL_OK;
}

static enum sl_status open_net(struct comm_join *j, struct comm_net **net, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    if (j->cfg->n_ranks == 1)
        return open_alone(j, net, err);
    if (j->cfg->kind != SL_COMM_SHM)
        s = tcp_door_open(j, err);
    if (!s)
        s = rendezvous_meet(j, err);
    if (!s && j->answer.kind == SL_COMM_SHM)
        s = shm_net_open(j, net, err);
    else if (!s)
        s = tcp_net_open(j, net, err);
    if (s)
        rendezvous_refuse(j, err);
    rendezvous_close(j);
    secure_door_close(j->door);
    if (j->shm_fd >= 0)
        close(j->shm_fd);
    explicit_bzero(j->answer.key, sizeof j->answer.key);
    return s;
}

static void net_close(struct comm_net *net)
{
    pthread_mutex_destroy(&net->lock);
    if (net->ops)
        net->ops->close(net);
    else
        free(net);
}

/* The handle around a net; on failure the net is left alone. */
static enum sl_status make_comm(struct comm_net *net, uint32_t rank, uint32_t n,
                                struct sl_comm **out, struct sl_err *err)
{
    struct sl_comm *c = calloc(1, sizeof *c);
    float *tree = n > 1 ? calloc((size_t)n * COMM_TREE_FLOATS, sizeof *tree) : NULL;
    if (!c || (n > 1 && !tree)) {
        free(c);
        free(tree);
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory for a group of %u", n);
    }
    c->net = net;
    c->rank = rank;
    c->n_ranks = n;
    c->tree = tree;
    *out = c;
    return SL_OK;
}

enum sl_status sl_comm_open(const struct sl_comm_config *cfg, struct sl_comm **out,
                            struct sl_err *err)
{
    struct comm_net *net = NULL;
    struct comm_join *j = calloc(1, sizeof *j);
    struct sl_err unwanted;
    *out = NULL;
    err = err ? err : &unwanted; /* it is told to the others */
    enum sl_status s = j ? check_config(cfg, err) : sl_fail(err, SL_NO_MEMORY, "comm: no memory");
    if (s)
        goto out;
    j->cfg = cfg;
    j->shm_fd = -1;
    j->timeout_ms = cfg->join_timeout_ms ? cfg->join_timeout_ms : COMM_JOIN_TIMEOUT_MS;
    j->deadline_ns = sl_now_ns() + j->timeout_ms * SL_MS_NS;
    if ((s = open_net(j, &net, err)))
        goto out;
    if ((s = make_comm(net, cfg->rank, cfg->n_ranks, out, err))) {
        net_close(net);
        goto out;
    }
    for (uint32_t i = 0; i < cfg->n_ranks; i++)
        (*out)->map[i] = i;
out:
    free(j);
    return s;
}

void sl_comm_close(struct sl_comm *c)
{
    if (!c)
        return;
    if (!c->parent)
        net_close(c->net);
    free(c->tree);
    free(c);
}

enum sl_status sl_comm_sub(struct sl_comm *parent, const uint32_t *ranks, uint32_t n,
                           struct sl_comm **out, struct sl_err *err)
{
    uint32_t mine = n;
    *out = NULL;
    if (n == 0 || n > parent->n_ranks)
        return sl_fail(err, SL_INVALID, "comm: a sub-group of %u out of %u ranks", n,
                       parent->n_ranks);
    for (uint32_t i = 0; i < n; i++) {
        if (ranks[i] >= parent->n_ranks || (i && ranks[i] <= ranks[i - 1]))
            return sl_fail(err, SL_INVALID, "comm: sub-group's rank %u is %u, of %u ascending", i,
                           ranks[i], parent->n_ranks);
        if (ranks[i] == parent->rank)
            mine = i;
    }
    if (mine == n)
        return sl_fail(err, SL_INVALID, "comm: rank %u is not in the sub-group", parent->rank);
    enum sl_status s = make_comm(parent->net, mine, n, out, err);
    if (s)
        return s;
    for (uint32_t i = 0; i < n; i++)
        (*out)->map[i] = parent->map[ranks[i]];
    (*out)->parent = parent;
    (*out)->group = (uint32_t)sl_hash64((*out)->map, n * sizeof *ranks, 1) | 1;
    return SL_OK;
}

/* --- looking at it ---------------------------------------------------------------------------- */

uint32_t sl_comm_rank(const struct sl_comm *c)
{
    return c->rank;
}

uint32_t sl_comm_n_ranks(const struct sl_comm *c)
{
    return c->n_ranks;
}

enum sl_comm_kind sl_comm_kind(const struct sl_comm *c)
{
    return c->net->kind;
}

void sl_comm_stats(const struct sl_comm *c, struct sl_comm_stats *out)
{
    out->n_ops = atomic_load(&c->n_ops);
    out->bytes_sent = atomic_load(&c->bytes_sent);
    out->bytes_received = atomic_load(&c->bytes_received);
    out->wait_ns = atomic_load(&c->wait_ns);
}

void sl_comm_progress(struct sl_comm *c)
{
    if (c->net->ops && atomic_load(&c->net->failed) == SL_OK)
        c->net->ops->publish(c->net, sl_now_ns(), false);
}

uint32_t sl_comm_blamed(const struct sl_comm *c)
{
    pthread_mutex_lock(&c->net->lock);
    uint32_t blamed = c->net->blamed;
    pthread_mutex_unlock(&c->net->lock);
    for (uint32_t i = 0; i < c->n_ranks; i++)
        if (c->map[i] == blamed)
            return i;
    return c->n_ranks;
}
