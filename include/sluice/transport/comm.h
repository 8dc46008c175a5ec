/* A communicator: a group of ranks that exchange bytes in step.
 *
 * Every rank calls the same operations in the same order. A communicator only moves bytes; sums are
 * made in a fixed order by whoever receives them (sl_comm_reduce_tree for small host vectors, the
 * kernels' tree_sum for the model), so no reduction depends on timing or on the transport.
 *
 * No call blocks for ever. An operation fails with SL_PEER when a peer is gone, or made no progress
 * for `op_timeout_ms` (counted from its last progress, not from our own start, which gives it a
 * quarter of that time at least), with SL_CANCELLED after sl_comm_abort. Progress is an operation
 * or a piece of one done, sl_comm_progress, or sl_comm_poll; a rank that waits for a third is
 * judged by that one. Until a rank has finished its first operation it has `join_timeout_ms`
 * instead: it may still be loading. After the first failure every further operation of the
 * communicator and of its sub-groups fails at once with the same status: the group is done and has
 * to be opened anew. An argument that makes no sense is SL_INVALID and ends nothing; ranks out of
 * step (another operation, other sizes, another sub-group) are SL_FAILED and do. Thread rule:
 * operations from one thread at a time; abort, progress and stats from any.
 *
 * Rendezvous: rank 0 binds a ZeroMQ endpoint, the others connect. There they prove that they belong
 * to the same group (same `group` and `n_ranks`, equal `config_hash`) and learn each other's
 * address and a fresh random key of the group; on tcp this happens over CURVE unless the endpoint
 * is a loopback address. Links between ranks are shared memory on one machine (memfd, sealed,
 * passed by descriptor over an abstract unix socket of a random name to processes of the same user
 * that hold the key; nothing is left in any folder) or TCP with TLS 1.3, keyed with that key.
 * Backends are tables behind one interface: shm, tcp; NCCL comes beside them. */
#ifndef SLUICE_TRANSPORT_COMM_H
#define SLUICE_TRANSPORT_COMM_H

#include <sluice/base/err.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_COMM_RANKS_MAX 64

struct sl_comm;

enum sl_comm_kind {
    SL_COMM_AUTO, /* shm when all ranks of the group run on one machine, else tcp */
    SL_COMM_SHM,
    SL_COMM_TCP
};

struct sl_comm_config {
    uint32_t rank, n_ranks;
    const char *rendezvous; /* "ipc://PATH" or "tcp://HOST:PORT": bound by rank 0 */
    const char *curve_dir;  /* keys for a rendezvous beyond loopback; NULL: none */
    const char *group;      /* name of the group, at most 63 bytes */
    uint64_t config_hash;   /* of whatever must be equal on all ranks */
    enum sl_comm_kind kind;
    const char *host;          /* address that TCP links listen on; NULL: 127.0.0.1 */
    uint32_t join_timeout_ms;  /* for all ranks to come together; 0: 30000 */
    uint32_t op_timeout_ms;    /* a peer without progress for so long is lost; 0: 1000 */
    const _Atomic bool *stop; /* may be NULL: set elsewhere to give up joining */
    bool knows_misfits; /* rank 0: ranks that do not fit have come to be expected. They do not end
                           the meeting; those that count other ranks hear nothing and ask on */
};

/* Blocks until all ranks are there. SL_PEER when they are not within join_timeout_ms, SL_CONFIG for
 * ranks that do not fit together (the message says which rank and why), SL_CANCELLED by `stop`.
 * With n_ranks 1 nothing is opened and every operation is a copy. */
enum sl_status sl_comm_open(const struct sl_comm_config *cfg, struct sl_comm **out,
                            struct sl_err *err);
/* Never blocks on a peer. The others see this rank as gone. */
void sl_comm_close(struct sl_comm *c);

/* Rank 0 looks whether a group could come together, without forming it: it listens at the
 * rendezvous of cfg, which nobody has bound meanwhile, and notes who asks to join. What cfg points
 * to is borrowed. One thread; nothing blocks. SL_PORT_IN_USE, SL_CONFIG, SL_NO_MEMORY. */
struct sl_comm_lobby;
enum sl_status sl_comm_lobby_open(const struct sl_comm_config *cfg, struct sl_comm_lobby **out,
                                  struct sl_err *err);
/* Whether every other rank, fitting cfg, has asked within the last SL_COMM_LOBBY_MS. */
#define SL_COMM_LOBBY_MS 2000
bool sl_comm_lobby_is_full(struct sl_comm_lobby *l, uint64_t now_ns);
/* The endpoint is free afterwards. NULL is fine. */
void sl_comm_lobby_close(struct sl_comm_lobby *l);
/* From any thread, any number of times: operations in flight and later ones fail. Peers learn of
 * it. */
void sl_comm_abort(struct sl_comm *c);

uint32_t sl_comm_rank(const struct sl_comm *c);
uint32_t sl_comm_n_ranks(const struct sl_comm *c);
enum sl_comm_kind sl_comm_kind(const struct sl_comm *c); /* in force, never AUTO */

/* A group of some of the ranks over the same links: `ranks` [n] ascending ranks of `parent`, this
 * one among them; all of them call it. Its ranks are the indices. Closed before the parent.
 * Operations of several groups keep one order between any two ranks: a rank does in all its groups
 * together what its peers expect in theirs (as one program run by all does). Abort, failure and
 * progress are those of the parent; what it moves counts in the parent's stats too. */
enum sl_status sl_comm_sub(struct sl_comm *parent, const uint32_t *ranks, uint32_t n,
                           struct sl_comm **out, struct sl_err *err);

/* Rank r's run of counts[r] bytes lands at the sum of the counts before it, at every rank.
 * counts [n_ranks], equal everywhere; mine may lie in its place within all. */
enum sl_status sl_comm_all_gather(struct sl_comm *c, const void *mine, void *all,
                                  const size_t *counts, struct sl_err *err);
/* The same, to `root` alone; all is NULL elsewhere. */
enum sl_status sl_comm_gather(struct sl_comm *c, uint32_t root, const void *mine, void *all,
                              const size_t *counts, struct sl_err *err);
/* send holds one run per rank, send_counts[r] bytes for rank r; recv gets recv_counts[r] bytes from
 * rank r, in rank order. recv_counts[r] is what rank r has as send_counts[self]. */
enum sl_status sl_comm_all_to_all(struct sl_comm *c, const void *send, const size_t *send_counts,
                                  void *recv, const size_t *recv_counts, struct sl_err *err);
enum sl_status sl_comm_broadcast(struct sl_comm *c, uint32_t root, void *data, size_t bytes,
                                 struct sl_err *err);
/* x [n] of every rank, added by the binary tree over ranks (level by level t[i] = t[2i] + t[2i+1],
 * an odd last one passes through), in place at every rank. The same bits on every backend. */
enum sl_status sl_comm_reduce_tree(struct sl_comm *c, float *x, size_t n, struct sl_err *err);
/* Point to point; messages between two ranks keep their order, sizes agree at both ends. send may
 * return before the peer has taken the bytes. */
enum sl_status sl_comm_send(struct sl_comm *c, uint32_t peer, const void *data, size_t bytes,
                            struct sl_err *err);
enum sl_status sl_comm_recv(struct sl_comm *c, uint32_t peer, void *data, size_t bytes,
                            struct sl_err *err);
enum sl_status sl_comm_barrier(struct sl_comm *c, struct sl_err *err);
/* Waits up to wait_ms for a message of `peer` without counting as a stalled operation: followers
 * wait for the next plan so. *ready false: nothing came. SL_PEER when the peer died meanwhile. */
enum sl_status sl_comm_poll(struct sl_comm *c, uint32_t peer, uint32_t wait_ms, bool *ready,
                            struct sl_err *err);

struct sl_comm_stats {
    uint64_t n_ops;
    uint64_t bytes_sent, bytes_received; /* payload, to and from other ranks */
    uint64_t wait_ns;                    /* spent waiting for peers */
};
void sl_comm_stats(const struct sl_comm *c, struct sl_comm_stats *out);
/* Bumped by long computations between operations, so that a slow rank is told from a hung one. */
void sl_comm_progress(struct sl_comm *c);
/* The rank that the first failure blames, or n_ranks when none (abort, timeout of several). */
uint32_t sl_comm_blamed(const struct sl_comm *c);

#endif
