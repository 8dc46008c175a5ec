/* Shared memory between ranks: its layout, and how it is handed out at opening (shm_share.c). */
#ifndef SLUICE_COMM_SHM_H
#define SLUICE_COMM_SHM_H

#include "comm_priv.h"

#define SHM_LINE 128 /* bytes: two cache lines, for the prefetcher fetches them in pairs */

/* What everybody may look at; written by the rank it belongs to, but for `bell` and `asleep`. */
struct shm_rank {
    _Atomic uint64_t progress_ns, waiting_ns;
    _Atomic uint32_t started, left;
    _Alignas(SHM_LINE) _Atomic uint32_t bell; /* futex: rung for a rank that is asleep */
    _Atomic uint32_t asleep;
};

/* Bytes from one rank to another: both counters only grow; head - tail bytes wait. */
struct shm_ring {
    _Alignas(SHM_LINE) _Atomic uint64_t head; /* the sender's */
    _Alignas(SHM_LINE) _Atomic uint64_t tail; /* the receiver's */
};

/* The start of the mapping; behind it shm_rank [n], shm_ring [n][n], bytes [n][n][ring_bytes]. */
struct shm_top {
    _Alignas(SHM_LINE) _Atomic uint64_t alert; /* 0, or ALERT_SET | by << 32 | blamed */
};
#define SHM_ALERT_SET ((uint64_t)1 << 63)

/* Bytes of a ring for n ranks: about the second-level cache shared among a rank's rings. */
size_t shm_ring_bytes(uint32_t n_ranks);
size_t shm_map_bytes(uint32_t n_ranks);

struct shm_net {
    struct comm_net base;
    struct shm_top *top;
    struct shm_rank *ranks;
    struct shm_ring *rings;
    uint8_t *bytes;
    size_t ring_bytes, map_bytes;
    uint64_t head[SL_COMM_RANKS_MAX], tail[SL_COMM_RANKS_MAX]; /* our ends, to and from each */
    int life[SL_COMM_RANKS_MAX]; /* readable once that rank's process has ended; -1: none */
    int own_life;                /* kept open as long as we live; -1: none needed */
    bool dead[SL_COMM_RANKS_MAX];
    uint32_t n_spins;
};

/* shm_share.c: fills *memory with the mapping's descriptor, and net->life. */
enum sl_status shm_share(struct comm_join *j, struct shm_net *net, int *memory, struct sl_err *err);

#endif
