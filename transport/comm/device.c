/* Lanes between devices: see sluice/transport/comm_device.h.
 *
 * The thread of operations is the one that sees failures: it never waits but by asking, and between
 * two questions looks at the latch, at the peers' lives and at their progress, as an operation of
 * the host does (ops.c). So an abort from another thread needs nothing more than the latch.
 *
 * Progress. A mark before an exchange is passed when this device has computed so far, the one after
 * it when the peers have, too. Passing any is progress of this rank. While the next one is of the
 * first kind the rank waits for nobody and says so; else it waits for all ranks of the lane, and
 * they are looked at. At most IN_FLIGHT exchanges are out: a device's queue that is full of work
 * behind a peer that is gone would hold the host in a launch, where it asks no questions. */
#include "comm_priv.h"

#include <sluice/base/time.h>
#include <sluice/transport/comm_device.h>

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IN_FLIGHT 16
#define SETUP_MS  30000 /* for links between devices to be made */
#define PART_MS   200   /* for the others to end in order with us */
#define NAMING_MS 100   /* for the host to see who is gone */
#define YIELDS    100
#define NAP_NS    100000

struct sl_comm_device {
    struct sl_comm *c;
    const struct sl_comm_lane_ops *ops;
    struct sl_comm_lane *lane;
    uint64_t n_marked, n_passed;
    uint64_t exchanges; /* bit i: the last mark whose number is i modulo 64 ends an exchange */
    bool ended;         /* aborted */
};
_Static_assert(SL_COMM_LANE_MARKS == 64, "a bit each");

static uint64_t bit_of(uint64_t mark)
{
    return (uint64_t)1 << mark % SL_COMM_LANE_MARKS;
}

/* ---- failing ---- */

static enum sl_status end(struct sl_comm_device *d, enum sl_status status)
{
    if (!d->ended && d->lane)
        d->ops->abort(d->lane);
    d->ended = true;
    return status;
}

/* The first rank of the net that is seen as gone: that ends the group, whatever we wait for. */
static uint32_t gone_rank(struct comm_net *net)
{
    struct comm_view v;
    net->ops->wait(net, 0, 0, sl_now_ns()); /* looks at lives */
    for (uint32_t p = 0; p < net->n_ranks; p++) {
        if (p == net->rank)
            continue;
        net->ops->view(net, p, &v);
        if (v.state != COMM_HERE)
            return p;
    }
    return net->n_ranks;
}

/* One that left because of a failure had told of it before: then that is the reason. */
static enum sl_status fail_gone(struct sl_comm_device *d, uint32_t gone, struct sl_err *err)
{
    enum sl_status s = comm_net_check(d->c->net, err);
    char why[64];
    if (s)
        return end(d, s);
    snprintf(why, sizeof why, "comm: rank %u is gone", gone);
    return end(d, comm_net_fail(d->c->net, SL_PEER, gone, why, err));
}

/* The lane said `why`. It does not say who is lost: the host may see that a little later. */
static enum sl_status fail(struct sl_comm_device *d, const struct sl_err *why, struct sl_err *err)
{
    struct comm_net *net = d->c->net;
    uint64_t until = sl_now_ns() + NAMING_MS * SL_MS_NS;
    uint32_t blamed = net->n_ranks;
    while (why->status == SL_PEER && blamed == net->n_ranks && sl_now_ns() < until) {
        blamed = gone_rank(net);
        enum sl_status s = comm_net_check(net, err); /* see fail_gone */
        if (s)
            return end(d, s);
        net->ops->wait(net, 0, 0, sl_now_ns() + NAP_NS);
    }
    return end(d, comm_net_fail(net, why->status, blamed, why->msg, err));
}

static enum sl_status check(struct sl_comm_device *d, struct sl_err *err)
{
    enum sl_status s = comm_net_check(d->c->net, err);
    return s ? end(d, s) : SL_OK;
}

/* ---- waiting ---- */

static uint64_t peers_of(const struct sl_comm *c)
{
    uint64_t bits = 0;
    for (uint32_t i = 0; i < c->n_ranks; i++)
        bits |= i == c->rank ? 0 : (uint64_t)1 << c->map[i];
    return bits;
}

/* Yields at first, while what is waited for may be a few kernels away. */
static void pause_for(struct comm_net *net, uint32_t *n)
{
    if (++*n < YIELDS)
        sched_yield();
    else
        net->ops->wait(net, 0, 0, sl_now_ns() + NAP_NS);
}

/* Until the lane is not busy. This rank is alive and says so; of the others it takes no less. */
static enum sl_status wait_call(struct sl_comm_device *d, uint32_t ms, struct sl_err *err)
{
    struct comm_net *net = d->c->net;
    uint64_t until = sl_now_ns() + ms * SL_MS_NS;
    uint32_t pauses = 0;
    struct sl_err why;
    for (bool busy = true; busy;) {
        enum sl_status s = check(d, err);
        if (s)
            return s;
        if (d->ops->busy(d->lane, &busy, &why))
            return fail(d, &why, err);
        if (!busy)
            break;
        net->ops->publish(net, sl_now_ns(), false);
        uint32_t gone = pauses > YIELDS ? gone_rank(net) : net->n_ranks;
        if (gone < net->n_ranks)
            return fail_gone(d, gone, err);
        if (sl_now_ns() > until) {
            sl_fail(&why, SL_PEER, "comm: %s: no link between devices within %u ms", d->ops->name,
                    ms);
            return fail(d, &why, err);
        }
        pause_for(net, &pauses);
    }
    return SL_OK;
}

/* Until the stream has passed the first n marks. */
static enum sl_status wait_marks(struct sl_comm_device *d, uint64_t n, struct sl_err *err)
{
    struct comm_net *net = d->c->net;
    struct comm_waiting w = {0};
    uint64_t start = sl_now_ns(), oldest, passed;
    uint32_t pauses = 0;
    for (;;) {
        struct sl_err why;
        enum sl_status s = check(d, err);
        if (s)
            return s;
        if (d->ops->passed(d->lane, &passed, &why))
            return fail(d, &why, err);
        if (passed > d->n_passed) {
            d->n_passed = passed;
            net->ops->publish(net, sl_now_ns(), false);
            w = (struct comm_waiting){0};
        }
        if (d->n_passed >= n)
            break;
        uint64_t now = sl_now_ns();
        w.start_ns = w.start_ns ? w.start_ns : now;
        w.from = d->exchanges & bit_of(d->n_passed) ? peers_of(d->c) : 0;
        if ((s = comm_look(net, &w, now, &oldest, err)))
            return end(d, s);
        if (w.from && !w.gone_before)
            net->ops->publish(net, oldest, true);
        uint32_t gone = !w.from && pauses > YIELDS ? gone_rank(net) : net->n_ranks;
        if (gone < net->n_ranks)
            return fail_gone(d, gone, err);
        pause_for(net, &pauses);
    }
    if (pauses)
        comm_count_wait(d->c, sl_now_ns() - start);
    return SL_OK;
}

/* ---- marks ---- */

/* The number of the first mark that IN_FLIGHT exchanges follow, or of the next one. */
static uint64_t must_pass(const struct sl_comm_device *d)
{
    uint64_t n = 0, i = d->n_marked;
    while (i > d->n_passed && n < IN_FLIGHT)
        n += (d->exchanges & bit_of(--i)) != 0;
    return n < IN_FLIGHT ? 0 : i + 1;
}

static enum sl_status mark(struct sl_comm_device *d, bool exchange, struct sl_err *err)
{
    struct sl_err why;
    enum sl_status s = SL_OK;
    if (d->n_marked - d->n_passed == SL_COMM_LANE_MARKS &&
        (s = wait_marks(d, d->n_passed + 1, err)))
        return s;
    if (d->ops->mark(d->lane, &why))
        return fail(d, &why, err);
    uint64_t bit = bit_of(d->n_marked++);
    d->exchanges = exchange ? d->exchanges | bit : d->exchanges & ~bit;
    return SL_OK;
}

void sl_comm_device_progress(struct sl_comm_device *d)
{
    if (d->ended || d->n_marked - d->n_passed >= SL_COMM_LANE_MARKS / 2)
        return;
    mark(d, false, NULL); /* a failure stays in the latch */
}

enum sl_status sl_comm_device_settle(struct sl_comm_device *d, struct sl_err *err)
{
    enum sl_status s = check(d, err);
    return s ? s : wait_marks(d, d->n_marked, err);
}

/* ---- exchanges ---- */

struct runs {
    struct sl_comm_lane_run of[SL_COMM_LANE_RUNS_MAX];
    uint32_t n;
};

static void add(struct runs *r, bool is_recv, uint32_t peer, const void *data, size_t bytes)
{
    if (bytes)
        r->of[r->n++] = (struct sl_comm_lane_run){
            .peer = peer, .is_recv = is_recv, .data = (void *)(uintptr_t)data, .bytes = bytes};
}

/* What stays here is copied, unless it is in its place. */
static void add_own(struct sl_comm_device *d, struct runs *r, const void *from, void *to, size_t n)
{
    if (from == to)
        return;
    add(r, false, d->c->rank, from, n);
    add(r, true, d->c->rank, to, n);
}

static enum sl_status move(struct sl_comm_device *d, const struct runs *r, struct sl_err *err)
{
    struct comm_net *net = d->c->net;
    uint64_t sent = 0, received = 0, first = must_pass(d);
    struct sl_err why;
    enum sl_status s = check(d, err);
    for (uint32_t i = 0; i < r->n; i++)
        if (r->of[i].peer != d->c->rank)
            *(r->of[i].is_recv ? &received : &sent) += r->of[i].bytes;
    if (!s && first > d->n_passed)
        s = wait_marks(d, first, err);
    if (!s && r->n) {
        s = mark(d, false, err);
        if (!s && d->ops->move(d->lane, r->of, r->n, &why))
            s = fail(d, &why, err);
        if (!s)
            s = wait_call(d, SETUP_MS, err);
        if (!s)
            s = mark(d, true, err);
    }
    if (s)
        return s;
    comm_count(d->c, sent, received);
    atomic_store(&net->started, true);
    return SL_OK;
}

enum sl_status sl_comm_device_all_gather(struct sl_comm_device *d, const void *mine, void *all,
                                         const size_t *counts, struct sl_err *err)
{
    uint32_t n = d->c->n_ranks, self = d->c->rank;
    struct runs r = {.n = 0};
    uint8_t *base = all;
    add_own(d, &r, mine, base + comm_offset(counts, self), counts[self]);
    for (uint32_t k = 1; k < n; k++) {
        uint32_t to = (self + k) % n, from = (self + n - k) % n;
        add(&r, false, to, mine, counts[self]);
        add(&r, true, from, base + comm_offset(counts, from), counts[from]);
    }
    return move(d, &r, err);
}

enum sl_status sl_comm_device_gather(struct sl_comm_device *d, uint32_t root, const void *mine,
                                     void *all, const size_t *counts, struct sl_err *err)
{
    uint32_t self = d->c->rank;
    struct runs r = {.n = 0};
    uint8_t *base = all;
    if (root >= d->c->n_ranks)
        return sl_fail(err, SL_INVALID, "comm: gather to rank %u of %u", root, d->c->n_ranks);
    if (self != root)
        add(&r, false, root, mine, counts[self]);
    for (uint32_t from = 0; self == root && from < d->c->n_ranks; from++) {
        uint8_t *to = base + comm_offset(counts, from);
        if (from == self)
            add_own(d, &r, mine, to, counts[self]);
        else
            add(&r, true, from, to, counts[from]);
    }
    return move(d, &r, err);
}

enum sl_status sl_comm_device_all_to_all(struct sl_comm_device *d, const void *send,
                                         const size_t *send_counts, void *recv,
                                         const size_t *recv_counts, struct sl_err *err)
{
    uint32_t n = d->c->n_ranks, self = d->c->rank;
    const uint8_t *source = send;
    uint8_t *target = recv;
    struct runs r = {.n = 0};
    if (send_counts[self] != recv_counts[self])
        return sl_fail(err, SL_INVALID, "comm: rank %u sends itself %zu bytes and awaits %zu", self,
                       send_counts[self], recv_counts[self]);
    add_own(d, &r, source + comm_offset(send_counts, self), target + comm_offset(recv_counts, self),
            send_counts[self]);
    for (uint32_t k = 1; k < n; k++) {
        uint32_t to = (self + k) % n, from = (self + n - k) % n;
        add(&r, false, to, source + comm_offset(send_counts, to), send_counts[to]);
        add(&r, true, from, target + comm_offset(recv_counts, from), recv_counts[from]);
    }
    return move(d, &r, err);
}

static enum sl_status message(struct sl_comm_device *d, bool is_recv, uint32_t peer,
                              const void *data, size_t bytes, struct sl_err *err)
{
    struct runs r = {.n = 0};
    if (peer >= d->c->n_ranks || peer == d->c->rank)
        return sl_fail(err, SL_INVALID, "comm: rank %u of %u speaks to rank %u", d->c->rank,
                       d->c->n_ranks, peer);
    add(&r, is_recv, peer, data, bytes);
    return move(d, &r, err);
}

enum sl_status sl_comm_device_send(struct sl_comm_device *d, uint32_t peer, const void *data,
                                   size_t bytes, struct sl_err *err)
{
    return message(d, false, peer, data, bytes, err);
}

enum sl_status sl_comm_device_recv(struct sl_comm_device *d, uint32_t peer, void *data,
                                   size_t bytes, struct sl_err *err)
{
    return message(d, true, peer, data, bytes, err);
}

/* ---- opening ---- */

/* What a rank brings; version 0: nothing. */
struct offer {
    uint32_t abi, version;
};

static struct offer make_offer(const struct sl_comm *c, const struct sl_comm_device_config *cfg,
                               struct sl_err *why)
{
    struct offer o = {SL_COMM_LANE_ABI, 0};
    *why = (struct sl_err){.status = SL_OK};
    if (!cfg->lane)
        return o;
    if (cfg->lane->abi != SL_COMM_LANE_ABI)
        sl_fail(why, SL_UNSUPPORTED, "comm: %s is of version %u, wanted %d", cfg->lane->name,
                cfg->lane->abi, SL_COMM_LANE_ABI);
    else if (c->net->kind != SL_COMM_SHM && (!cfg->interface || !cfg->interface[0]))
        sl_fail(why, SL_CONFIG, "comm: %s between machines needs its interface named",
                cfg->lane->name);
    else if (cfg->lane->version(&o.version, why))
        o.version = 0;
    return o;
}

static enum sl_status agree(struct sl_comm *c, const struct sl_comm_device_config *cfg, bool *yes,
                            struct sl_err *why, struct sl_err *err)
{
    struct offer offers[SL_COMM_RANKS_MAX], *mine = &offers[c->rank];
    size_t counts[SL_COMM_RANKS_MAX];
    for (uint32_t i = 0; i < c->n_ranks; i++)
        counts[i] = sizeof *offers;
    *mine = make_offer(c, cfg, why);
    enum sl_status s = sl_comm_all_gather(c, mine, offers, counts, err);
    *yes = !s && mine->version;
    for (uint32_t i = 0; !s && i < c->n_ranks; i++)
        *yes = *yes && !memcmp(mine, &offers[i], sizeof *mine);
    return s;
}

/* Rank 0's id, at all. */
static enum sl_status share_id(struct sl_comm_device *d, struct sl_comm_lane_config *cfg,
                               struct sl_err *err)
{
    struct sl_err why;
    if (d->c->rank == 0 && d->ops->make_id(cfg->id, &why))
        return fail(d, &why, err);
    return sl_comm_broadcast(d->c, 0, cfg->id, sizeof cfg->id, err);
}

static enum sl_status open_lane(struct sl_comm_device *d, const struct sl_comm_device_config *cfg,
                                struct sl_err *err)
{
    struct sl_comm_lane_config lane = {
        .rank = d->c->rank, .n_ranks = d->c->n_ranks, .device = cfg->device, .stream = cfg->stream};
    struct sl_err why;
    enum sl_status s = share_id(d, &lane, err);
    if (s)
        return s;
    if (d->ops->open(&lane, &d->lane, &why))
        return fail(d, &why, err);
    if ((s = wait_call(d, SETUP_MS, err)))
        return s;
    return sl_comm_barrier(d->c, err);
}

enum sl_status sl_comm_device_open(struct sl_comm *c, const struct sl_comm_device_config *cfg,
                                   struct sl_comm_device **out, struct sl_err *why,
                                   struct sl_err *err)
{
    bool yes = false;
    *out = NULL;
    enum sl_status s = c->n_ranks > 1 ? agree(c, cfg, &yes, why, err)
                                      : sl_fail(err, SL_INVALID, "comm: a lane of one rank");
    if (s || !yes)
        return s;
    struct sl_comm_device *d = calloc(1, sizeof *d);
    if (!d)
        return comm_net_fail(c->net, SL_NO_MEMORY, c->net->n_ranks, "comm: no memory", err);
    d->c = c;
    d->ops = cfg->lane;
    if ((s = open_lane(d, cfg, err)))
        sl_comm_device_close(d);
    else
        *out = d;
    return s;
}

void sl_comm_device_close(struct sl_comm_device *d)
{
    if (!d)
        return;
    struct sl_err why;
    bool in_order = d->lane && !sl_comm_device_settle(d, NULL) && !d->ops->finish(d->lane, &why);
    uint64_t until = sl_now_ns() + PART_MS * SL_MS_NS;
    uint32_t pauses = 0;
    for (bool busy = in_order; busy && in_order;) {
        in_order = !d->ops->busy(d->lane, &busy, &why) && sl_now_ns() < until;
        if (busy && in_order)
            pause_for(d->c->net, &pauses);
    }
    if (!in_order)
        end(d, SL_OK);
    if (d->lane)
        d->ops->close(d->lane);
    free(d);
}
