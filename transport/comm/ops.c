/* Operations of a communicator: sets of messages that move side by side until all have arrived, or
 * the group fails. Which messages an operation is made of depends on its arguments alone, so both
 * ends agree; the head in front of each proves it.
 *
 * Deadlines. A peer that others wait for publishes the stamp of its last progress. One that is
 * itself waiting publishes the oldest stamp among those it waits for when that is newer than its
 * own, so that waiting for a slow rank is not taken for a hang; and it is given twice the time, so
 * that the rank nearest to a hung one is the one that names it. */
#include "comm_priv.h"

#include <sluice/base/fault.h>
#include <sluice/base/time.h>

#include <stdio.h>
#include <string.h>

enum op { OP_ALL_GATHER = 1, OP_GATHER, OP_ALL_TO_ALL, OP_BROADCAST, OP_BARRIER, OP_MESSAGE };

static const char *const op_names[] = {"",          "all_gather", "gather",   "all_to_all",
                                       "broadcast", "barrier",    "send/recv"};
#define OP_SHIFT 24

/* --- moving a set of messages ------------------------------------------------------------------
 */

static void add_xfer(struct sl_comm *c, enum op op, uint32_t peer, bool is_recv, const void *data,
                     size_t bytes)
{
    struct comm_xfer *x = &c->xfers[c->n_xfers++];
    uint32_t step = op == OP_MESSAGE ? 0 : c->n_collectives & ((1u << OP_SHIFT) - 1);
    struct wire_head head = {c->group, (uint32_t)op << OP_SHIFT | step, bytes};
    *x = (struct comm_xfer){.peer = c->map[peer],
                            .is_recv = is_recv,
                            .data = (uint8_t *)(uintptr_t)data,
                            .bytes = bytes};
    wire_head_encode(&head, x->head); /* when receiving: what is expected */
}

static void add_send(struct sl_comm *c, enum op op, uint32_t peer, const void *data, size_t bytes)
{
    add_xfer(c, op, peer, false, data, bytes);
}

static void add_recv(struct sl_comm *c, enum op op, uint32_t peer, void *data, size_t bytes)
{
    add_xfer(c, op, peer, true, data, bytes);
}

static void count(struct sl_comm *c, _Atomic uint64_t *(*which)(struct sl_comm *), uint64_t n)
{
    for (; c; c = c->parent)
        atomic_fetch_add_explicit(which(c), n, memory_order_relaxed);
}

static _Atomic uint64_t *n_ops_of(struct sl_comm *c)
{
    return &c->n_ops;
}

static _Atomic uint64_t *wait_of(struct sl_comm *c)
{
    return &c->wait_ns;
}

static _Atomic uint64_t *sent_of(struct sl_comm *c)
{
    return &c->bytes_sent;
}

static _Atomic uint64_t *received_of(struct sl_comm *c)
{
    return &c->bytes_received;
}

static const char *name_of(uint32_t op)
{
    op >>= OP_SHIFT;
    return op < sizeof op_names / sizeof *op_names && op ? op_names[op] : "?";
}

static enum sl_status check_head(const struct comm_xfer *x, const uint8_t got[WIRE_HEAD_BYTES],
                                 struct sl_err *err)
{
    struct wire_head want, is;
    if (!memcmp(x->head, got, WIRE_HEAD_BYTES))
        return SL_OK;
    wire_head_decode(x->head, &want);
    wire_head_decode(got, &is);
    return sl_fail(err, SL_FAILED,
                   "comm: rank %u is out of step: it sends %s number %u of %llu bytes in group "
                   "%08x, expected %s number %u of %llu in %08x",
                   x->peer, name_of(is.op), is.op & 0xffffff, (unsigned long long)is.bytes,
                   is.group, name_of(want.op), want.op & 0xffffff, (unsigned long long)want.bytes,
                   want.group);
}

static enum sl_status step_send(struct comm_net *net, struct comm_xfer *x, bool *moved,
                                struct sl_err *err)
{
    size_t in_head = x->done < WIRE_HEAD_BYTES ? x->done : WIRE_HEAD_BYTES;
    size_t in_body = x->done - in_head, n = 0;
    const struct comm_part part[2] = {{x->head + in_head, WIRE_HEAD_BYTES - in_head},
                                      {x->data + in_body, x->bytes - in_body}};
    if (part[0].bytes + part[1].bytes) {
        enum sl_status s = net->ops->push(net, x->peer, part, &n, err);
        if (s)
            return s;
    }
    x->done += n;
    *moved |= n > 0;
    x->finished = x->done == WIRE_HEAD_BYTES + x->bytes && net->ops->flushed(net, x->peer);
    return SL_OK;
}

static enum sl_status step_recv(struct comm_net *net, struct comm_xfer *x, uint8_t *head,
                                bool *moved, struct sl_err *err)
{
    size_t n = 0;
    enum sl_status s = SL_OK;
    if (x->done < WIRE_HEAD_BYTES) {
        s = net->ops->pull(net, x->peer, head + x->done, WIRE_HEAD_BYTES - x->done, &n, err);
        if (s || !n)
            return s;
        *moved = true;
        x->done += n;
        if (x->done < WIRE_HEAD_BYTES)
            return SL_OK;
        if ((s = check_head(x, head, err)))
            return s;
    }
    size_t in_body = x->done - WIRE_HEAD_BYTES;
    if (x->bytes > in_body) {
        s = net->ops->pull(net, x->peer, x->data + in_body, x->bytes - in_body, &n, err);
        if (s)
            return s;
        x->done += n;
        *moved |= n > 0;
    }
    x->finished = x->done == WIRE_HEAD_BYTES + x->bytes;
    return SL_OK;
}

/* Moves every message once; *left counts those not finished. */
static enum sl_status step_all(struct sl_comm *c, uint8_t (*heads)[WIRE_HEAD_BYTES], bool *moved,
                               uint32_t *left, struct sl_err *err)
{
    struct comm_net *net = c->net;
    *moved = false;
    *left = 0;
    for (uint32_t i = 0; i < c->n_xfers; i++) {
        struct comm_xfer *x = &c->xfers[i];
        if (x->finished)
            continue;
        struct sl_err e;
        enum sl_status s =
            x->is_recv ? step_recv(net, x, heads[i], moved, &e) : step_send(net, x, moved, &e);
        if (s)
            return comm_net_fail(net, s, x->peer, e.msg, err);
        *left += !x->finished;
    }
    return SL_OK;
}

/* --- waiting, and giving up --------------------------------------------------------------------
 */

static enum sl_status give_up(struct comm_net *net, uint32_t peer, const struct comm_view *v,
                              uint64_t now, struct sl_err *err)
{
    char why[160];
    if (v->state == COMM_HERE)
        snprintf(why, sizeof why, "comm: rank %u made no progress for %llu ms", peer,
                 (unsigned long long)((now - v->progress_ns) / SL_MS_NS));
    else
        snprintf(why, sizeof why, "comm: rank %u %s", peer,
                 v->state == COMM_DEAD ? "is gone" : "has left the group");
    return comm_net_fail(net, SL_PEER, peer, why, err);
}

static bool is_overdue(const struct comm_net *net, const struct comm_view *v, uint64_t start_ns,
                       uint64_t now)
{
    uint64_t limit = (v->started ? net->op_timeout_ms : net->join_timeout_ms) * SL_MS_NS;
    bool waits = v->waiting_ns && now < v->waiting_ns + limit / 2;
    return now > v->progress_ns + limit * (waits ? 2 : 1) && now > start_ns + limit / 4;
}

enum sl_status comm_look(struct comm_net *net, struct comm_waiting *w, uint64_t now,
                         uint64_t *oldest_ns, struct sl_err *err)
{
    uint32_t gone = net->n_ranks, late = net->n_ranks;
    struct comm_view v, gone_view = {0}, late_view = {0};
    *oldest_ns = now;
    for (uint32_t p = 0; p < net->n_ranks; p++) {
        if (!((w->from | w->to) >> p & 1))
            continue;
        net->ops->view(net, p, &v);
        if (v.progress_ns < *oldest_ns)
            *oldest_ns = v.progress_ns;
        if (v.state != COMM_HERE && gone == net->n_ranks) {
            gone = p;
            gone_view = v;
        } else if (is_overdue(net, &v, w->start_ns, now) &&
                   (late == net->n_ranks || v.progress_ns < late_view.progress_ns)) {
            late = p;
            late_view = v;
        }
    }
    if (gone < net->n_ranks && w->gone_before)
        return give_up(net, gone, &gone_view, now, err);
    w->gone_before = gone < net->n_ranks;
    return late < net->n_ranks ? give_up(net, late, &late_view, now, err) : SL_OK;
}

/* Nothing moved: waits a slice at most. What a peer that is gone had sent is taken before it counts
 * as lost, therefore the second look. */
static enum sl_status wait_some(struct sl_comm *c, struct comm_waiting *w, struct sl_err *err)
{
    struct comm_net *net = c->net;
    uint64_t now = sl_now_ns(), oldest;
    if (!w->start_ns)
        w->start_ns = now;
    w->from = w->to = 0;
    for (uint32_t i = 0; i < c->n_xfers; i++)
        if (!c->xfers[i].finished)
            *(c->xfers[i].is_recv ? &w->from : &w->to) |= (uint64_t)1 << c->xfers[i].peer;
    enum sl_status s = comm_look(net, w, now, &oldest, err);
    if (s)
        return s;
    if (w->gone_before)
        return SL_OK;
    net->ops->publish(net, oldest, true);
    net->ops->wait(net, w->from, w->to, now + COMM_SLICE_MS * SL_MS_NS);
    comm_count_wait(c, sl_now_ns() - now);
    return SL_OK;
}

static enum sl_status run(struct sl_comm *c, struct sl_err *err)
{
    struct comm_net *net = c->net;
    uint8_t heads[2 * SL_COMM_RANKS_MAX][WIRE_HEAD_BYTES];
    struct comm_waiting w = {0};
    uint32_t left = 0;
    bool moved;
    enum sl_status s;
    do {
        if ((s = comm_net_check(net, err)) || (s = step_all(c, heads, &moved, &left, err)))
            return s;
        if (moved) {
            net->ops->publish(net, sl_now_ns(), false);
            w = (struct comm_waiting){0};
        } else if (left && (s = wait_some(c, &w, err))) {
            return s;
        }
    } while (left);
    return SL_OK;
}

void comm_count(struct sl_comm *c, uint64_t sent, uint64_t received)
{
    count(c, sent_of, sent);
    count(c, received_of, received);
    count(c, n_ops_of, 1);
}

void comm_count_wait(struct sl_comm *c, uint64_t ns)
{
    count(c, wait_of, ns);
}

static void count_bytes(struct sl_comm *c)
{
    uint64_t sent = 0, received = 0;
    for (uint32_t i = 0; i < c->n_xfers; i++)
        *(c->xfers[i].is_recv ? &received : &sent) += c->xfers[i].bytes;
    comm_count(c, sent, received);
}

static enum sl_status begin(struct sl_comm *c, struct sl_err *err)
{
    sl_fault_delay(SL_FAULT_COMM_DELAY);
    c->n_xfers = 0;
    return comm_net_check(c->net, err);
}

static enum sl_status finish(struct sl_comm *c, bool collective, struct sl_err *err)
{
    enum sl_status s = c->n_xfers ? run(c, err) : SL_OK;
    if (s)
        return s;
    count_bytes(c);
    c->n_collectives += collective;
    if (c->net->ops) {
        atomic_store(&c->net->started, true);
        c->net->ops->publish(c->net, sl_now_ns(), false);
    }
    return SL_OK;
}

/* --- the operations ----------------------------------------------------------------------------
 */

static void copy_own(void *to, const void *from, size_t n)
{
    if (n && to != from)
        memmove(to, from, n);
}

enum sl_status sl_comm_all_gather(struct sl_comm *c, const void *mine, void *all,
                                  const size_t *counts, struct sl_err *err)
{
    uint32_t n = c->n_ranks, self = c->rank;
    enum sl_status s = begin(c, err);
    if (s)
        return s;
    uint8_t *base = all;
    copy_own(base + comm_offset(counts, self), mine, counts[self]);
    for (uint32_t k = 1; k < n; k++) { /* each begins with its neighbour: no rank is stormed */
        uint32_t to = (self + k) % n, from = (self + n - k) % n;
        if (counts[self])
            add_send(c, OP_ALL_GATHER, to, mine, counts[self]);
        if (counts[from])
            add_recv(c, OP_ALL_GATHER, from, base + comm_offset(counts, from), counts[from]);
    }
    return finish(c, true, err);
}

enum sl_status sl_comm_gather(struct sl_comm *c, uint32_t root, const void *mine, void *all,
                              const size_t *counts, struct sl_err *err)
{
    enum sl_status s = begin(c, err);
    if (s)
        return s;
    if (root >= c->n_ranks)
        return sl_fail(err, SL_INVALID, "comm: gather to rank %u of %u", root, c->n_ranks);
    uint8_t *base = all;
    if (c->rank != root && counts[c->rank])
        add_send(c, OP_GATHER, root, mine, counts[c->rank]);
    if (c->rank == root)
        copy_own(base + comm_offset(counts, root), mine, counts[root]);
    for (uint32_t r = 0; r < c->n_ranks && c->rank == root; r++)
        if (r != root && counts[r])
            add_recv(c, OP_GATHER, r, base + comm_offset(counts, r), counts[r]);
    return finish(c, true, err);
}

enum sl_status sl_comm_all_to_all(struct sl_comm *c, const void *send, const size_t *send_counts,
                                  void *recv, const size_t *recv_counts, struct sl_err *err)
{
    uint32_t n = c->n_ranks, self = c->rank;
    const uint8_t *source = send;
    uint8_t *target = recv;
    enum sl_status s = begin(c, err);
    if (s)
        return s;
    if (send_counts[self] != recv_counts[self])
        return sl_fail(err, SL_INVALID, "comm: rank %u sends itself %zu bytes and awaits %zu", self,
                       send_counts[self], recv_counts[self]);
    copy_own(target + comm_offset(recv_counts, self), source + comm_offset(send_counts, self),
             send_counts[self]);
    for (uint32_t k = 1; k < n; k++) {
        uint32_t to = (self + k) % n, from = (self + n - k) % n;
        if (send_counts[to])
            add_send(c, OP_ALL_TO_ALL, to, source + comm_offset(send_counts, to), send_counts[to]);
        if (recv_counts[from])
            add_recv(c, OP_ALL_TO_ALL, from, target + comm_offset(recv_counts, from),
                     recv_counts[from]);
    }
    return finish(c, true, err);
}

enum sl_status sl_comm_broadcast(struct sl_comm *c, uint32_t root, void *data, size_t bytes,
                                 struct sl_err *err)
{
    enum sl_status s = begin(c, err);
    if (s)
        return s;
    if (root >= c->n_ranks)
        return sl_fail(err, SL_INVALID, "comm: broadcast from rank %u of %u", root, c->n_ranks);
    if (bytes && c->rank != root)
        add_recv(c, OP_BROADCAST, root, data, bytes);
    for (uint32_t k = 1; bytes && k < c->n_ranks && c->rank == root; k++)
        add_send(c, OP_BROADCAST, (root + k) % c->n_ranks, data, bytes);
    return finish(c, true, err);
}

/* t [n][width]: t[0] becomes the tree's sum. */
static void add_tree(float *t, uint32_t n, size_t width)
{
    for (; n > 1; n = n / 2 + n % 2) {
        for (uint32_t i = 0; i < n / 2; i++)
            for (size_t j = 0; j < width; j++)
                t[i * width + j] = t[2 * i * width + j] + t[(2 * i + 1) * width + j];
        if (n % 2)
            memmove(t + n / 2 * width, t + (n - 1) * width, width * sizeof *t);
    }
}

enum sl_status sl_comm_reduce_tree(struct sl_comm *c, float *x, size_t n, struct sl_err *err)
{
    size_t counts[SL_COMM_RANKS_MAX];
    enum sl_status s = comm_net_check(c->net, err);
    for (size_t at = 0; at < n && !s && c->n_ranks > 1; at += COMM_TREE_FLOATS) {
        size_t width = n - at < COMM_TREE_FLOATS ? n - at : COMM_TREE_FLOATS;
        for (uint32_t r = 0; r < c->n_ranks; r++)
            counts[r] = width * sizeof *x;
        s = sl_comm_all_gather(c, x + at, c->tree, counts, err);
        if (s)
            break;
        add_tree(c->tree, c->n_ranks, width);
        memcpy(x + at, c->tree, width * sizeof *x);
    }
    return s;
}

static enum sl_status check_peer(const struct sl_comm *c, uint32_t peer, struct sl_err *err)
{
    if (peer >= c->n_ranks || peer == c->rank)
        return sl_fail(err, SL_INVALID, "comm: rank %u of %u speaks to rank %u", c->rank,
                       c->n_ranks, peer);
    return SL_OK;
}

enum sl_status sl_comm_send(struct sl_comm *c, uint32_t peer, const void *data, size_t bytes,
                            struct sl_err *err)
{
    enum sl_status s = begin(c, err);
    if (s || (s = check_peer(c, peer, err)))
        return s;
    add_send(c, OP_MESSAGE, peer, data, bytes);
    return finish(c, false, err);
}

enum sl_status sl_comm_recv(struct sl_comm *c, uint32_t peer, void *data, size_t bytes,
                            struct sl_err *err)
{
    enum sl_status s = begin(c, err);
    if (s || (s = check_peer(c, peer, err)))
        return s;
    add_recv(c, OP_MESSAGE, peer, data, bytes);
    return finish(c, false, err);
}

/* Dissemination (Hensgen, Finkel, Manber 1988): after round k a rank has heard of 2^(k+1) others.
 */
enum sl_status sl_comm_barrier(struct sl_comm *c, struct sl_err *err)
{
    uint32_t n = c->n_ranks;
    enum sl_status s = begin(c, err);
    for (uint32_t far = 1; far < n && !s; far *= 2) {
        c->n_xfers = 0;
        add_send(c, OP_BARRIER, (c->rank + far) % n, NULL, 0);
        add_recv(c, OP_BARRIER, (c->rank + n - far) % n, NULL, 0);
        s = run(c, err);
    }
    c->n_xfers = 0;
    return s ? s : finish(c, true, err);
}

enum sl_status sl_comm_poll(struct sl_comm *c, uint32_t peer, uint32_t wait_ms, bool *ready,
                            struct sl_err *err)
{
    struct comm_net *net = c->net;
    uint64_t start = sl_now_ns(), now = start, until = start + wait_ms * SL_MS_NS;
    bool gone = false;
    *ready = false;
    enum sl_status s = begin(c, err);
    if (s || (s = check_peer(c, peer, err)))
        return s;
    peer = c->map[peer];
    atomic_store(&net->started, true);
    for (;;) {
        struct comm_view v;
        net->ops->publish(net, now, false); /* at rest, not hung */
        *ready = net->ops->readable(net, peer);
        if (*ready || (s = comm_net_check(net, err)))
            return s;
        net->ops->view(net, peer, &v);
        if (v.state != COMM_HERE && gone)
            return give_up(net, peer, &v, now, err);
        gone = v.state != COMM_HERE; /* then once more: it may have sent something before */
        if (gone)
            continue;
        if (now >= until)
            return SL_OK;
        uint64_t slice = now + COMM_SLICE_MS * SL_MS_NS;
        net->ops->wait(net, (uint64_t)1 << peer, 0, slice < until ? slice : until);
        now = sl_now_ns();
    }
}
