/* What the files of the emulated NCCL share: a communicator, and an operation of it. */
#ifndef SLUICE_KERNELS_EMU_NCCL_OP_H
#define SLUICE_KERNELS_EMU_NCCL_OP_H

#include "emu/runtime.h"

#include <nccl.h>

#include "emu/nccl_ring.h"

enum op_kind { OP_SEND_RECV = 1, OP_ALL_GATHER, OP_BROADCAST };

/* Before the bytes of a message: what the sender takes it for. */
struct head {
    uint32_t kind, pad;
    uint64_t bytes;
};
struct transfer {
    bool send;
    uint32_t peer;
    enum op_kind kind;
    uint8_t *p;
    size_t n, done, head_done;
    struct head head;
};
struct copy {
    void *to;
    const void *from;
    size_t n;
};

/* One operation, or all of a group on one communicator. */
struct nccl_op {
    struct ncclComm *comm;
    struct transfer *transfers; /* owned */
    struct copy *copies;        /* owned: what a rank sends to itself */
    uint32_t n_transfers, n_copies;
    const char *name;
    uint64_t ticket; /* its turn, once enqueued */
    uint32_t n_looks;
    bool enqueued, copied;
};

struct ncclComm {
    struct nccl_room *room;
    struct device *device;
    uint32_t rank, n_ranks;
    bool blocking, ready, aborted, finalizing;
    uint32_t held; /* answers of ncclInProgress still to give */
    uint64_t n_tickets, now;
    uint32_t n_pending; /* operations enqueued and not over */
    ncclResult_t error;
    bool stuck; /* injected: nothing moves any more */
    struct nccl_op *held_op;
    struct CUstream_st *held_stream;
    struct emu_site held_site;
    char text[256];
    struct ncclComm *next;
};

/* NULL: it is no more, or never was. */
struct ncclComm *nccl_comm_of(ncclComm_t handle);
/* Notes the first error, and says why. Returns it. */
ncclResult_t nccl_fail(struct ncclComm *c, ncclResult_t why, const char *what);

const char *nccl_kind_name(enum op_kind kind);
void nccl_op_free(void *op);
extern const struct emu_poll nccl_op_poll;

#endif
