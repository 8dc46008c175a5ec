/* What the ranks of an emulated NCCL communicator share: a memfd that the unique id names, with one
 * ring of bytes per ordered pair of ranks. Ranks are threads or processes of one machine. */
#ifndef SLUICE_KERNELS_EMU_NCCL_RING_H
#define SLUICE_KERNELS_EMU_NCCL_RING_H

#include <nccl.h>
#include <stdbool.h>
#include <stdint.h>

enum { NCCL_RANKS_MAX = 64 };

struct nccl_room;

/* An id for a new room, whose file stays open in this process. */
bool nccl_room_name(ncclUniqueId *id);
/* The room of an id, or NULL; nothing in the id is believed. Takes the rank's place in it: *result
 * says why not. */
struct nccl_room *nccl_room_enter(const ncclUniqueId *id, uint32_t rank, uint32_t n_ranks,
                                  ncclResult_t *result);
void nccl_room_leave(struct nccl_room *r);
/* Have all ranks come? */
bool nccl_room_full(const struct nccl_room *r);
/* Is the process of the rank, once it has come, gone? */
bool nccl_room_lost(const struct nccl_room *r, uint32_t rank);

/* Bytes that fit now, up to n, are written to or taken from the ring of a pair; how many. */
size_t nccl_ring_put(struct nccl_room *r, uint32_t from, uint32_t to, const void *p, size_t n);
size_t nccl_ring_take(struct nccl_room *r, uint32_t from, uint32_t to, void *p, size_t n);

#endif
