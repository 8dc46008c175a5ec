/* Inside of a communicator: the net of links that it and its sub-groups share, and the table of a
 * backend.
 *
 * A backend gives every pair of ranks two byte streams (one each way) that move without blocking, a
 * way to wait for any of them, and a view of each peer's life. Everything else (heads, operations,
 * deadlines, the latch of the first failure) is written once, in ops.c and comm.c. Devices have
 * lanes beside it (device.c): they share the latch and the views, and bring their own collectives
 * (NCCL) instead of streams, which the host's words would have no use for.
 *
 * Thread rule: push, pull, readable, wait, view belong to the thread of operations; publish and
 * alert may come from any thread at the same time. */
#ifndef SLUICE_COMM_PRIV_H
#define SLUICE_COMM_PRIV_H

#include "secure_door.h"
#include "wire.h"

#include <pthread.h>
#include <sluice/transport/comm.h>
#include <stdatomic.h>

#define COMM_OP_TIMEOUT_MS   1000
#define COMM_JOIN_TIMEOUT_MS 30000
#define COMM_SLICE_MS        20 /* between looks at peers' lives while waiting */

struct comm_net;

enum comm_peer_state { COMM_HERE, COMM_LEFT, COMM_DEAD };

struct comm_view {
    enum comm_peer_state state;
    bool started;         /* it has finished an operation */
    uint64_t progress_ns; /* of our sl_now_ns: its last progress, as far as we know */
    uint64_t waiting_ns;  /* when it last said that it waits for others; 0: it does not */
};

struct comm_part {
    const void *data;
    size_t bytes;
};

struct comm_ops {
    enum sl_comm_kind kind;
    /* Moves what fits of head and body, in this order, towards `peer`. A lost peer is no error
     * here: nothing moves, and view tells. Errors mean that the stream cannot be trusted. */
    enum sl_status (*push)(struct comm_net *net, uint32_t peer, const struct comm_part part[2],
                           size_t *moved, struct sl_err *err);
    /* Whether all that was pushed has left this process's hands; tries to. */
    bool (*flushed)(struct comm_net *net, uint32_t peer);
    enum sl_status (*pull)(struct comm_net *net, uint32_t peer, void *data, size_t bytes,
                           size_t *moved, struct sl_err *err);
    bool (*readable)(struct comm_net *net, uint32_t peer);
    /* Until a stream from a rank of `from` or to a rank of `to` (bits) may move, an alert came or
     * until_ns passed; may return early. */
    void (*wait)(struct comm_net *net, uint64_t from, uint64_t to, uint64_t until_ns);
    void (*view)(struct comm_net *net, uint32_t peer, struct comm_view *out);
    /* Tells the peers how far this rank is. Cheap; called often. */
    void (*publish)(struct comm_net *net, uint64_t progress_ns, bool waiting);
    /* Tells the peers and a waiter of this rank that the group has ended. */
    void (*alert)(struct comm_net *net, const struct wire_alert *why);
    bool (*alerted)(struct comm_net *net, struct wire_alert *why); /* by a peer */
    void (*close)(struct comm_net *net);
};

/* First member of each backend's own net. */
struct comm_net {
    const struct comm_ops *ops; /* NULL: one rank alone */
    enum sl_comm_kind kind;
    uint32_t rank, n_ranks;
    uint32_t op_timeout_ms, join_timeout_ms;
    _Atomic bool started;
    _Atomic int failed; /* enum sl_status of the first failure; the rest is under the lock */
    pthread_mutex_t lock;
    uint32_t blamed;
    char why[200];
};

/* What opening goes through: the rendezvous fills `answer`, a backend makes its net from it. */
struct comm_join {
    const struct sl_comm_config *cfg;
    uint64_t deadline_ns;
    uint32_t timeout_ms;
    struct wire_answer answer;
    struct secure_door *door; /* TCP's; NULL when shared memory was asked for */
    int shm_fd;               /* rank 0: listens for the others; -1: none */
    struct rendezvous *rendezvous;
};
/* SL_OK while joining may go on; SL_CANCELLED, SL_PEER with `what` as the thing waited for. */
enum sl_status comm_join_check(struct comm_join *j, const char *what, struct sl_err *err);

/* rendezvous.c: comes to know all ranks. Rank 0 keeps the socket open until rendezvous_close, so
 * that an answer on its way arrives. */
enum sl_status rendezvous_meet(struct comm_join *j, struct sl_err *err);
void rendezvous_close(struct comm_join *j);
/* Equal for processes that can share memory. It is handed over an abstract socket, thus: the same
 * kernel and network namespace, and the same user, since nobody else is let in. */
void rendezvous_machine(uint8_t out[WIRE_KEY_BYTES]);
/* While links are made: SL_PEER when a rank was started again, or when rank 0 has given up; rank 0
 * tells the others so. */
enum sl_status rendezvous_hear(struct comm_join *j, struct sl_err *err);
void rendezvous_refuse(struct comm_join *j, const struct sl_err *why);

/* shm.c: rank 0's socket for handing out the memory, named in answer.shm_name; then the net. */
enum sl_status shm_listen(struct comm_join *j, struct sl_err *err);
enum sl_status shm_net_open(struct comm_join *j, struct comm_net **out, struct sl_err *err);
/* tcp.c */
enum sl_status tcp_door_open(struct comm_join *j, struct sl_err *err);
enum sl_status tcp_net_open(struct comm_join *j, struct comm_net **out, struct sl_err *err);

void comm_net_init(struct comm_net *net, const struct comm_ops *ops, const struct comm_join *j);
/* Latches the first failure, tells the peers and returns the status in force with its message. */
enum sl_status comm_net_fail(struct comm_net *net, enum sl_status status, uint32_t blamed,
                             const char *why, struct sl_err *err);
/* SL_OK, or the failure that ended the group. */
enum sl_status comm_net_check(struct comm_net *net, struct sl_err *err);

/* One message under way, either direction. */
struct comm_xfer {
    uint32_t peer; /* of the net */
    bool is_recv, finished;
    uint8_t head[WIRE_HEAD_BYTES];
    uint8_t *data;      /* read only when sending */
    size_t bytes, done; /* done counts the head too */
};

struct sl_comm {
    struct comm_net *net;
    struct sl_comm *parent; /* NULL: this one owns the net */
    uint32_t rank, n_ranks;
    uint32_t map[SL_COMM_RANKS_MAX]; /* rank here to rank of the net */
    uint32_t group;                  /* names it in heads */
    uint32_t n_collectives;
    uint32_t n_xfers;
    struct comm_xfer xfers[2 * SL_COMM_RANKS_MAX];
    float *tree; /* [n_ranks][COMM_TREE_FLOATS] */
    _Atomic uint64_t n_ops, bytes_sent, bytes_received, wait_ns;
};
#define COMM_TREE_FLOATS 16384

/* ops.c: waiting for ranks of the net, given as bits. */
struct comm_waiting {
    uint64_t start_ns;
    uint64_t from, to;
    bool gone_before; /* somebody was already gone before the last, fruitless step */
};
/* Looks at the lives of those waited for and ends the group when one is lost; *oldest_ns becomes
 * the oldest progress among them. */
enum sl_status comm_look(struct comm_net *net, struct comm_waiting *w, uint64_t now,
                         uint64_t *oldest_ns, struct sl_err *err);
/* Where a rank's part begins among those of all. */
static inline size_t comm_offset(const size_t *counts, uint32_t rank)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < rank; i++)
        sum += counts[i];
    return sum;
}
/* An operation that is done, and time spent waiting, counted here and in the parents. */
void comm_count(struct sl_comm *c, uint64_t sent, uint64_t received);
void comm_count_wait(struct sl_comm *c, uint64_t ns);

#endif
