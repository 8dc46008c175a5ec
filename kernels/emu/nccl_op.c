/* Operations of the emulated NCCL on their way: a device's thread asks each, again and again, to
 * move what can be moved. */
#include "emu/nccl_op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_EVERY = 64 }; /* for peers that are gone */

const char *nccl_kind_name(enum op_kind kind)
{
    static const char *const names[] = {"", "ncclSend or ncclRecv", "ncclAllGather",
                                        "ncclBroadcast"};
    return (unsigned)kind <= OP_BROADCAST ? names[kind] : "another operation";
}

/* Bytes of [p, p + n) that went through now. */
static size_t move(struct nccl_op *op, const struct transfer *t, void *p, size_t n)
{
    struct ncclComm *c = op->comm;
    return t->send ? nccl_ring_put(c->room, c->rank, t->peer, p, n)
                   : nccl_ring_take(c->room, t->peer, c->rank, p, n);
}

static bool heads_match(struct nccl_op *op, const struct transfer *t)
{
    char text[200];
    if (t->send || (t->head.kind == (uint32_t)t->kind && t->head.bytes == t->n))
        return true;
    snprintf(text, sizeof text, "rank %u takes %zu bytes by %s, but rank %u gives %llu by %s",
             op->comm->rank, t->n, nccl_kind_name(t->kind), t->peer,
             (unsigned long long)t->head.bytes, nccl_kind_name((enum op_kind)t->head.kind));
    nccl_fail(op->comm, ncclInvalidUsage, text);
    report(op->comm->device, "nccl: %s", text);
    return false;
}

/* True once the transfer is over; *wrong if it never will be. */
static bool advance(struct nccl_op *op, struct transfer *t, bool *wrong)
{
    uint8_t *head = (uint8_t *)&t->head;
    if (t->head_done < sizeof t->head) {
        if (t->send)
            t->head = (struct head){.kind = (uint32_t)t->kind, .bytes = t->n};
        t->head_done += move(op, t, head + t->head_done, sizeof t->head - t->head_done);
        if (t->head_done < sizeof t->head)
            return false;
        if (!heads_match(op, t)) {
            *wrong = true;
            return false;
        }
    }
    t->done += move(op, t, t->p + t->done, t->n - t->done);
    return t->done == t->n;
}

static void look_for_peers(struct nccl_op *op)
{
    char text[64];
    if (op->n_looks++ % LOOK_EVERY)
        return;
    for (uint32_t i = 0; i < op->n_transfers; i++) {
        const struct transfer *t = &op->transfers[i];
        if (t->done == t->n || !nccl_room_lost(op->comm->room, t->peer))
            continue;
        snprintf(text, sizeof text, "the process of rank %u is gone", t->peer);
        nccl_fail(op->comm, ncclRemoteError, text);
    }
}

static cudaError_t op_poll(void *user)
{
    struct nccl_op *op = user;
    struct ncclComm *c = op->comm;
    bool wrong = false, over = true;
    if (!nccl_comm_of(c)) {
        report(NULL, "nccl: a graph launches %s of a communicator that is no more", op->name);
        return cudaErrorInvalidResourceHandle;
    }
    if (c->aborted)
        return cudaSuccess; /* as the kernel, which leaves */
    if (c->stuck || op->ticket != c->now)
        return cudaErrorNotReady;
    for (uint32_t i = 0; !op->copied && i < op->n_copies; i++)
        memmove(op->copies[i].to, op->copies[i].from, op->copies[i].n);
    op->copied = true;
    for (uint32_t i = 0; i < op->n_transfers; i++)
        over = advance(op, &op->transfers[i], &wrong) && over;
    if (wrong)
        return cudaErrorUnknown;
    if (over)
        return cudaSuccess;
    look_for_peers(op);
    return cudaErrorNotReady;
}

static void op_begin(void *user)
{
    struct nccl_op *op = user;
    if (!nccl_comm_of(op->comm))
        return;
    op->enqueued = true;
    op->ticket = op->comm->n_tickets++;
    op->comm->n_pending++;
}

void nccl_op_free(void *user)
{
    struct nccl_op *op = user;
    if (op->enqueued) {
        op->comm->now += op->ticket == op->comm->now;
        op->comm->n_pending--;
    }
    free(op->transfers);
    free(op->copies);
    free(op);
}

static void *op_clone(const void *user)
{
    const struct nccl_op *from = user;
    struct nccl_op *op = malloc(sizeof *op);
    if (!op)
        return NULL;
    *op = *from;
    op->transfers = args_copy(from->transfers, from->n_transfers * sizeof *op->transfers);
    op->copies = args_copy(from->copies, from->n_copies * sizeof *op->copies);
    op->enqueued = false;
    if (op->transfers && op->copies)
        return op;
    nccl_op_free(op);
    return NULL;
}

static bool op_access(const void *user, uint32_t i, struct span *span, bool *write)
{
    const struct nccl_op *op = user;
    if (i < op->n_transfers) {
        const struct transfer *t = &op->transfers[i];
        *span = (struct span){(uintptr_t)t->p, t->n, t->n, 1};
        *write = !t->send;
        return true;
    }
    uint32_t k = (i - op->n_transfers) / 2;
    if (k >= op->n_copies)
        return false;
    *write = (i - op->n_transfers) % 2;
    const struct copy *c = &op->copies[k];
    *span = (struct span){(uintptr_t)(*write ? c->to : c->from), c->n, c->n, 1};
    return true;
}

const struct emu_poll nccl_op_poll = {op_poll, op_begin, op_clone, nccl_op_free, op_access};
