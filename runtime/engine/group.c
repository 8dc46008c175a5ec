/* A group of ranks: comes together at the rendezvous, falls apart, comes together again. */
#include "group.h"

#include <sluice/base/mem.h>
#include <sluice/base/time.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_NAME    "sluice"
#define LOOK_MS       100   /* between two looks into the lobby */
#define LOOK_FIRST_MS 500   /* from a loss of ranks to the first look, */
#define LOOK_MAX_MS   60000 /* twice as long each further time, */
#define LOOK_CALM_MS  60000 /* until the full group has stood for so long */

static bool copy(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return !from || *to;
}

static enum sl_status check_place(const struct sl_engine_place *p, struct sl_err *err)
{
    uint64_t n = (uint64_t)p->tp * p->pp;
    if (n > SL_LIMIT_ranks)
        return sl_fail_param(err, SL_USAGE, "tensor-parallel-size",
                             "tensor-parallel-size %u x pipeline-parallel-size %u is more than %d",
                             p->tp, p->pp, SL_LIMIT_ranks);
    if (p->rank >= n)
        return sl_fail_param(err, SL_USAGE, "rank", "rank %u of %llu", p->rank,
                             (unsigned long long)n);
    if (!p->rendezvous || !p->rendezvous[0])
        return sl_fail_param(err, SL_USAGE, "rendezvous", "rank %u of %llu has no rendezvous",
                             p->rank, (unsigned long long)n);
    return SL_OK;
}

enum sl_status sl_group_open(const struct sl_engine_place *place, const struct wire_limits *limits,
                             uint64_t hash, struct group **out, struct sl_err *err)
{
    enum sl_status s = check_place(place, err);
    struct group *g = s ? NULL : calloc(1, sizeof *g);
    if (s)
        return s;
    if (!g)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory for a group of ranks");
    g->rank = place->rank;
    g->tp = place->tp;
    g->pp = place->pp;
    g->n_ranks = place->tp * place->pp;
    g->full_tp = g->tp;
    g->full_pp = g->pp;
    g->full_hash = hash;
    g->op_timeout_ms = place->op_timeout_ms;
    g->patience_ms = place->patience_ms;
    g->limits = *limits;
    g->config_hash = hash;
    g->body_max = sl_wire_body_max(limits);
    g->state = (struct sl_engine_group){.state = SL_GROUP_FORMING,
                                        .since_ns = sl_now_ns(),
                                        .blamed = g->n_ranks,
                                        .n_ranks = g->n_ranks,
                                        .tp = g->tp,
                                        .pp = g->pp};
    for (uint32_t i = 0; i < g->n_ranks; i++)
        g->ranks[i].rank = i;
    pthread_mutex_init(&g->lock, NULL);
    if (g->body_max != SIZE_MAX)
        g->body = malloc(g->body_max);
    if (!g->body || !copy(&g->rendezvous, place->rendezvous) || !copy(&g->host, place->host) ||
        !copy(&g->curve_dir, place->curve_dir) || !copy(&g->interface, place->interface)) {
        sl_group_close(g);
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory for plans of %u rows",
                       limits->max_rows);
    }
    *out = g;
    return SL_OK;
}

/* --- the communicator ------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct sl_comm *c)
{
    struct sl_comm_stats s = {0};
    if (c)
        sl_comm_stats(c, &s);
    return s.bytes_sent + s.bytes_received;
}

uint64_t sl_group_comm_bytes(const struct group *g)
{
    return g->comm_bytes_before + bytes_of(g->comm); /* the stage counts there, too */
}

static void close_comms(struct group *g)
{
    g->comm_bytes_before = sl_group_comm_bytes(g);
    pthread_mutex_lock(&g->lock);
    struct sl_comm *comm = g->comm, *stage = g->stage;
    g->comm = g->stage = NULL;
    pthread_mutex_unlock(&g->lock);
    sl_lanes_close(g);
    if (stage)
        sl_comm_close(stage);
    if (comm)
        sl_comm_close(comm);
}

static void set_state(struct group *g, enum sl_group_state state, uint32_t blamed,
                      const struct sl_err *why)
{
    pthread_mutex_lock(&g->lock);
    g->state.state = state;
    g->state.since_ns = sl_now_ns();
    g->state.blamed = blamed;
    if (state == SL_GROUP_UP) {
        g->state.n_formed++;
        g->state.up_ns = g->state.since_ns;
    }
    if (why)
        g->state.why = *why;
    pthread_mutex_unlock(&g->lock);
}

/* The ranks of my stage, where there are several. */
static enum sl_status open_stage(struct group *g, struct sl_comm *comm, struct sl_comm **out,
                                 struct sl_err *err)
{
    uint32_t ranks[SL_LIMIT_ranks], first = g->rank / g->tp * g->tp;
    *out = NULL;
    if (g->tp == 1)
        return SL_OK;
    for (uint32_t i = 0; i < g->tp; i++)
        ranks[i] = first + i;
    return sl_comm_sub(comm, ranks, g->tp, out, err);
}

static bool out_of_patience(struct group *g)
{
    return g->patience_ms && sl_now_ns() - g->state.since_ns > g->patience_ms * SL_MS_NS;
}

static struct sl_comm_config comm_config(const struct group *g)
{
    return (struct sl_comm_config){.rank = g->rank,
                                   .n_ranks = g->n_ranks,
                                   .rendezvous = g->rendezvous,
                                   .curve_dir = g->curve_dir,
                                   .group = GROUP_NAME,
                                   .config_hash = g->config_hash,
                                   .kind = SL_COMM_AUTO,
                                   .host = g->host,
                                   .op_timeout_ms = g->op_timeout_ms,
                                   .stop = &g->stop_joining,
                                   .knows_misfits = g->state.n_formed > 0};
}

enum sl_status sl_group_join(struct group *g, uint32_t wait_ms, struct sl_err *err)
{
    struct sl_comm_config cfg = comm_config(g);
    cfg.join_timeout_ms = wait_ms;
    sl_comm_lobby_close(g->lobby); /* the endpoint is for those who join now */
    g->lobby = NULL;
    struct sl_comm *comm = NULL, *stage = NULL;
    enum sl_status s = sl_comm_open(&cfg, &comm, err);
    if (!s && !(s = open_stage(g, comm, &stage, err)))
        s = sl_lanes_open(g, comm, stage, err);
    if (s) {
        sl_comm_close(stage);
        sl_comm_close(comm);
    } else {
        pthread_mutex_lock(&g->lock);
        g->comm = comm;
        g->stage = stage;
        pthread_mutex_unlock(&g->lock);
        set_state(g, SL_GROUP_UP, g->n_ranks, NULL);
        return SL_OK;
    }
    bool may_pass = sl_group_is_loss(s);
    if (g->state.n_formed) /* a stranger, or a port not yet free: ours may still come */
        may_pass |= s == SL_CONFIG || s == SL_PORT_IN_USE;
    if (may_pass && !out_of_patience(g))
        return SL_PEER;
    set_state(g, SL_GROUP_ENDED, g->n_ranks, err);
    return s;
}

void sl_group_lost(struct group *g, const struct sl_err *why)
{
    uint32_t blamed = g->comm ? sl_comm_blamed(g->comm) : g->n_ranks;
    if (g->comm)
        sl_comm_abort(g->comm);
    close_comms(g);
    set_state(g, SL_GROUP_FORMING, blamed, why);
}

void sl_group_part(struct group *g)
{
    close_comms(g);
    set_state(g, SL_GROUP_FORMING, g->n_ranks, NULL);
}

void sl_group_resize(struct group *g, uint32_t tp, uint32_t pp, uint64_t kv_room, uint64_t hash)
{
    close_comms(g);
    pthread_mutex_lock(&g->lock);
    g->tp = g->state.tp = tp;
    g->pp = g->state.pp = pp;
    g->n_ranks = g->state.n_ranks = tp * pp;
    g->state.state = SL_GROUP_FORMING;
    g->state.since_ns = sl_now_ns();
    g->state.blamed = g->n_ranks;
    g->state.kv_room_bytes = kv_room;
    g->config_hash = hash;
    memset(g->ranks, 0, sizeof g->ranks);
    memset(g->kv, 0, sizeof g->kv);
    for (uint32_t i = 0; i < g->n_ranks; i++)
        g->ranks[i].rank = i;
    pthread_mutex_unlock(&g->lock);
}

/* --- growing again ---------------------------------------------------------------------------- */

void sl_group_look_later(struct group *g, uint64_t now_ns)
{
    bool calm = !g->grown_ns || now_ns - g->grown_ns > LOOK_CALM_MS * SL_MS_NS;
    uint64_t ms = calm ? LOOK_FIRST_MS : 2 * g->wait_ns / SL_MS_NS;
    g->wait_ns = (ms < LOOK_MAX_MS ? ms : LOOK_MAX_MS) * SL_MS_NS;
    g->look_ns = now_ns + g->wait_ns;
}

bool sl_group_is_full_again(struct group *g, uint64_t now_ns)
{
    if (g->n_ranks == g->full_tp * g->full_pp || now_ns < g->look_ns)
        return false;
    g->look_ns = now_ns + LOOK_MS * SL_MS_NS;
    struct sl_comm_config cfg = comm_config(g);
    cfg.n_ranks = g->full_tp * g->full_pp;
    cfg.config_hash = g->full_hash;
    if (!g->lobby && sl_comm_lobby_open(&cfg, &g->lobby, NULL))
        return false; /* the endpoint may be free later */
    if (!sl_comm_lobby_is_full(g->lobby, now_ns))
        return false;
    sl_comm_lobby_close(g->lobby);
    g->lobby = NULL;
    g->grown_ns = now_ns;
    return true;
}

void sl_group_end(struct group *g, enum sl_status status, const struct sl_err *why)
{
    struct sl_err none = {.status = status};
    close_comms(g);
    set_state(g, SL_GROUP_ENDED, g->n_ranks, why ? why : &none);
}

void sl_group_break(struct group *g)
{
    g->stop_joining = true;
    pthread_mutex_lock(&g->lock);
    if (g->comm)
        sl_comm_abort(g->comm);
    pthread_mutex_unlock(&g->lock);
}

bool sl_group_is_loss(enum sl_status status)
{
    return status == SL_PEER || status == SL_CANCELLED || status == SL_TIMEOUT;
}

void sl_group_close(struct group *g)
{
    if (!g)
        return;
    close_comms(g);
    sl_comm_lobby_close(g->lobby);
    pthread_mutex_destroy(&g->lock);
    free(g->rendezvous);
    free(g->host);
    free(g->curve_dir);
    free(g->interface);
    free(g->body);
    free(g->charter);
    free(g);
}
