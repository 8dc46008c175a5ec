/* An engine's side of its group of ranks: private to the engine. NULL in an engine of its own.
 *
 * The engine's thread is the only one that runs operations; `lock` guards what other threads read
 * or need to break a wait: the communicator's pointer, the state and the figures of the ranks. */
#ifndef SLUICE_ENGINE_GROUP_H
#define SLUICE_ENGINE_GROUP_H

#include "plan_wire.h"
#include <pthread.h>
#include <sluice/base/limits.h>
#include <sluice/engine/engine.h>
#include <sluice/engine/transfer.h>
#include <sluice/model/exchange.h>
#include <sluice/transport/comm_device.h>
#include <stdatomic.h>

_Static_assert(SL_LIMIT_ranks == SL_COMM_RANKS_MAX, "one limit");

/* Of a follower's transfers: where it serves its part, figures, and those that have ended. */
struct wire_kv {
    uint64_t bytes_sent, n_bad;
    uint64_t said; /* 0: its owner has not spoken yet */
    char address[SL_KV_ADDRESS_MAX];
};
enum { WIRE_ENDED_MAX = 8 };
struct wire_ended {
    uint64_t id;
    uint32_t n_complete, zero; /* pages of an import */
};

/* What a follower tells of itself; fixed size, as struct sl_engine_rank. */
struct wire_status {
    uint32_t rank, pid, n_threads, reserved;
    uint64_t weight_bytes, kv_bytes, comm_bytes, n_steps, n_op_calls;
    char isa[16];
    struct wire_kv kv;
    uint32_t n_ended, zero;
    struct wire_ended ended[WIRE_ENDED_MAX];
    uint64_t n_kernels;
    struct sl_engine_kernel kernels[SL_LIMIT_kernels];
};

struct group {
    uint32_t rank, n_ranks, tp, pp;
    char *rendezvous, *host, *curve_dir, *interface;
    uint32_t op_timeout_ms, patience_ms;
    struct wire_limits limits;
    uint64_t config_hash;

    struct sl_comm *comm;  /* NULL while forming */
    struct sl_comm *stage; /* the tp ranks of this stage; NULL at tp 1 */
    /* The same between devices, where all ranks have them; else both NULL. */
    struct sl_comm_device *comm_lane;    /* at pp > 1 */
    struct sl_comm_device *stage_lane;   /* at tp > 1 */
    const struct sl_comm_lane_ops *lane; /* NULL: none to be had */
    uint32_t lane_failures;              /* to open one, in a row */
    struct sl_exchange exchange;
    struct sl_backend *backend;
    float *bounce; /* [n_bounce] where a device's floats are on their way; else NULL */
    size_t n_bounce;

    uint32_t *body; /* a plan on its way */
    size_t body_max;
    uint64_t status_ns; /* rank 0: when the ranks were last asked for their figures */
    uint64_t n_steps;   /* follower: computed */
    uint64_t done_step; /* rank 0: the last that ended well */
    uint8_t *charter;   /* rank 0's, [n_charter] */
    uint32_t n_charter;
    uint64_t comm_bytes_before; /* of communicators that are closed */

    /* Of a group that has fewer ranks than at first: those that it waits for. */
    uint32_t full_tp, full_pp;
    uint64_t full_hash;
    struct sl_comm_lobby *lobby; /* NULL: nobody is looked for at present */
    uint64_t look_ns, wait_ns;   /* when to look again; how long from a loss of ranks on */
    uint64_t grown_ns;           /* when it was last full again; 0: never */

    _Atomic bool stop_joining; /* set by the closing thread */
    pthread_mutex_t lock;
    struct sl_engine_group state;
    struct sl_engine_rank ranks[SL_LIMIT_ranks];
    struct wire_kv kv[SL_LIMIT_ranks]; /* what ranks say of their transfers; own: to be said */
};

/* group.c. `hash` covers what must be equal on all ranks. */
enum sl_status sl_group_open(const struct sl_engine_place *place, const struct wire_limits *limits,
                             uint64_t hash, struct group **out, struct sl_err *err);
void sl_group_close(struct group *g);
/* Comes together with the others for at most wait_ms. SL_OK: up. SL_PEER: not yet. Otherwise the
 * state is ENDED. */
enum sl_status sl_group_join(struct group *g, uint32_t wait_ms, struct sl_err *err);
/* Leaves the collective after a failure: forming from now on. */
void sl_group_lost(struct group *g, const struct sl_err *why);
/* The same on purpose: nobody is to blame. */
void sl_group_part(struct group *g);
/* Rank 0: other ranks than before; it is forming then. */
void sl_group_resize(struct group *g, uint32_t tp, uint32_t pp, uint64_t kv_room, uint64_t hash);
/* Rank 0 of a shrunk group, between steps: whether all ranks of the full one are there again and
 * wait. Cheap; looks a few times a second. Nobody listens to them any more after true. */
bool sl_group_is_full_again(struct group *g, uint64_t now_ns);
/* Rank 0: the next look is in a while, longer each time that the full group did not last. */
void sl_group_look_later(struct group *g, uint64_t now_ns);
void sl_group_end(struct group *g, enum sl_status status, const struct sl_err *why);
/* From any thread: whatever waits in the communicator fails. */
void sl_group_break(struct group *g);
uint64_t sl_group_comm_bytes(const struct group *g);
/* Whether a status of the forward pass or of an operation means that the group is lost. */
bool sl_group_is_loss(enum sl_status status);

/* exchange.c: the model's exchange over the group's communicators, of at most n_floats at once. May
 * be called again for another model. Unbind while the backend is open. */
enum sl_status sl_exchange_bind(struct group *g, struct sl_backend *b, size_t n_floats,
                                struct sl_err *err);
void sl_exchange_unbind(struct group *g);
/* Between devices the exchange only enqueues: waits until all of it is done. Before anything else
 * waits for the device. */
enum sl_status sl_exchange_settle(struct group *g, struct sl_err *err);
/* lanes.c: of a group whose communicators are open. Without error where there are none. */
enum sl_status sl_lanes_open(struct group *g, struct sl_comm *comm, struct sl_comm *stage,
                             struct sl_err *err);
void sl_lanes_close(struct group *g);

#endif
