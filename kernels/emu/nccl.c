/* NCCL, emulated: operations are stream-ordered, never wait on the host, and move bytes through the
 * rings of a shared room (nccl_ring.h).
 *
 * As with the real one: a blocking communicator's init waits for all ranks, another's is asked
 * after by ncclCommGetAsyncError; of a non-blocking one, any call may answer ncclInProgress, and
 * what it asked for is on the stream only once ncclCommGetAsyncError has said ncclSuccess (drawn by
 * the seed); operations of one communicator run in the order of their calls; an abort ends those on
 * their way, whose results are lost; the death of a peer shows as ncclRemoteError, and nothing ends
 * before the abort. Beyond it: operations that do not match are reported. */
#include "emu/nccl_op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GROUP_MAX = 1024 };

static struct ncclComm *comms;

/* What a thread has asked for since ncclGroupStart; on the heap, since a plug-in's share of a
 * thread's own memory is small. */
struct group {
    uint32_t depth, n, n_opening;
    bool failed;
    struct {
        struct ncclComm *comm;
        cudaStream_t stream;
        struct transfer t;
    } of[GROUP_MAX];
    struct ncclComm *opening[NCCL_RANKS_MAX];
};
static __thread struct group *group;

/* ---- small things ---- */

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const texts[] = {
#define TEXT_OF(name, value, text) text,
        EMU_NCCL_RESULTS(TEXT_OF)
#undef TEXT_OF
    };
    return (unsigned)result < ncclNumResults ? texts[result] : "unknown result code";
}

struct ncclComm *nccl_comm_of(ncclComm_t handle)
{
    struct ncclComm *c = comms;
    while (c && c != handle)
        c = c->next;
    return c;
}

static ncclResult_t result_of_fault(cudaError_t error)
{
    int value = (int)error - EMU_NCCL_FAULT;
    return value >= 0 ? (ncclResult_t)value : ncclUnhandledCudaError;
}

/* Lock held. A thread's group is there while one of its calls is, or until its ncclGroupEnd. */
static bool group_open(void)
{
    if (!group)
        group = calloc(1, sizeof *group);
    return group;
}

static void group_close(void)
{
    free(group);
    group = NULL;
}

static ncclResult_t end(struct call *c, ncclResult_t result)
{
    if (group && !group->depth)
        group_close();
    call_end(c, cudaSuccess);
    return result;
}

/* Begins a call, with the lock: false, it returns *result. */
static bool begin(struct call *c, enum call_id id, ncclResult_t *result)
{
    *result = ncclSuccess;
    if (!call_begin_light(c, id)) {
        *result = result_of_fault(c->error);
        return false;
    }
    if (group_open())
        return true;
    *result = end(c, ncclSystemError);
    return false;
}

static size_t size_of(ncclDataType_t type)
{
    static const uint8_t sizes[ncclNumTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return (unsigned)type < ncclNumTypes ? sizes[type] : 0;
}

ncclResult_t nccl_fail(struct ncclComm *c, ncclResult_t why, const char *what)
{
    if (!c->error)
        c->error = why;
    snprintf(c->text, sizeof c->text, "%s", what);
    return why;
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return comm ? comm->text : "";
}

ncclResult_t ncclGetVersion(int *version)
{
    struct call c;
    ncclResult_t r;
    if (!begin(&c, CALL_ncclGetVersion, &r))
        return r;
    if (version)
        *version = NCCL_VERSION_CODE;
    return end(&c, version ? ncclSuccess : ncclInvalidArgument);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    struct call c;
    ncclResult_t r;
    if (!begin(&c, CALL_ncclGetUniqueId, &r))
        return r;
    if (!id)
        return end(&c, ncclInvalidArgument);
    return end(&c, nccl_room_name(id) ? ncclSuccess : ncclSystemError);
}

/* ---- enqueuing ---- */

static ncclResult_t submit(struct nccl_op *op, struct CUstream_st *s, struct emu_site site)
{
    struct ncclComm *c = op->comm;
    struct work w = {
        .kind = WORK_POLL, .name = op->name, .site = site, .poll = &nccl_op_poll, .user = op};
    cudaError_t error = s->device->sticky;
    if (error)
        work_free(&w);
    else
        error = stream_submit(s, &w);
    return error ? nccl_fail(c, ncclUnhandledCudaError, cudaGetErrorString(error)) : ncclSuccess;
}

/* At once, or, of a communicator that need not, at a later ncclCommGetAsyncError. */
static ncclResult_t enqueue(struct call *call, struct nccl_op *op, struct CUstream_st *s)
{
    struct ncclComm *c = op->comm;
    if (c->blocking || !rt.config.seed || draw_u64(&c->device->rng_host) % 4)
        return submit(op, s, call->site);
    c->held_op = op;
    c->held_stream = s;
    c->held_site = call->site;
    c->held = 1 + (uint32_t)(draw_u64(&c->device->rng_host) % 3);
    return ncclInProgress;
}

static ncclResult_t check_comm(struct ncclComm *c)
{
    if (!c)
        return ncclInvalidArgument;
    if (c->error)
        return c->error;
    if (c->ready && !c->held && !c->finalizing && !c->aborted)
        return ncclSuccess;
    report(c->device, "nccl: a communicator is used while a call of it is in progress");
    return ncclInvalidUsage;
}

/* The group's transfers of one communicator become one operation; they are marked as taken. */
static struct nccl_op *gather(struct ncclComm *c, uint32_t first)
{
    struct nccl_op *op = calloc(1, sizeof *op);
    if (!op)
        return NULL;
    op->comm = c;
    op->transfers = calloc(group->n, sizeof *op->transfers);
    op->copies = calloc(group->n, sizeof *op->copies);
    op->name = nccl_kind_name(group->of[first].t.kind);
    for (uint32_t i = first; op->transfers && i < group->n; i++) {
        if (group->of[i].comm != c)
            continue;
        group->of[i].comm = NULL;
        op->transfers[op->n_transfers++] = group->of[i].t;
    }
    if (op->transfers && op->copies)
        return op;
    nccl_op_free(op);
    return NULL;
}

/* What the rank sends to itself is a copy: sends and receives to itself pair up in order. */
static bool pair_own(struct nccl_op *op)
{
    uint32_t n = 0, n_sends = 0, n_receives = 0;
    for (uint32_t i = 0; i < op->n_transfers; i++) {
        struct transfer t = op->transfers[i];
        if (t.peer != op->comm->rank) {
            op->transfers[n++] = t;
            continue;
        }
        struct copy *c = &op->copies[t.send ? n_sends++ : n_receives++];
        if (t.send)
            c->from = t.p;
        else
            c->to = t.p;
        if (c->from && c->to && c->n != t.n)
            return false;
        c->n = t.n;
    }
    op->n_transfers = n;
    op->n_copies = n_sends;
    return n_sends == n_receives;
}

static ncclResult_t launch_one(struct call *call, uint32_t first)
{
    struct ncclComm *c = group->of[first].comm;
    struct CUstream_st *s = stream_of(c->device, group->of[first].stream);
    ncclResult_t r = check_comm(c);
    for (uint32_t i = first; i < group->n && !r; i++)
        if (group->of[i].comm == c && group->of[i].stream != group->of[first].stream)
            r = nccl_fail(c, ncclInvalidUsage, "the emulator knows no group over several streams");
    if (!r && (!s || s->device != c->device))
        r = nccl_fail(c, ncclInvalidUsage, "the stream is not of the communicator's device");
    if (r) {
        for (uint32_t i = first; i < group->n; i++)
            if (group->of[i].comm == c)
                group->of[i].comm = NULL;
        return r;
    }
    struct nccl_op *op = gather(c, first);
    if (!op)
        return ncclSystemError;
    if (!pair_own(op)) {
        nccl_op_free(op);
        return nccl_fail(c, ncclInvalidUsage, "a rank's sends to itself do not match its receives");
    }
    if (call->late)
        c->stuck = true;
    if (call->late && result_of_fault(call->late) != ncclInProgress)
        nccl_fail(c, result_of_fault(call->late), "injected");
    return enqueue(call, op, s);
}

static ncclResult_t launch_group(struct call *call)
{
    ncclResult_t all = ncclSuccess;
    for (uint32_t i = 0; i < group->n; i++) {
        ncclResult_t r = group->of[i].comm ? launch_one(call, i) : ncclSuccess;
        all = !all || (all == ncclInProgress && r) ? r : all;
    }
    group->n = 0;
    return all;
}

static void nap(void)
{
    pthread_mutex_unlock(&rt.lock);
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    pthread_mutex_lock(&rt.lock);
}

static ncclResult_t wait_for_all(struct ncclComm *c)
{
    while (!nccl_room_full(c->room))
        nap();
    c->ready = true;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    struct call c;
    ncclResult_t r;
    if (!begin(&c, CALL_ncclGroupStart, &r))
        return r;
    group->depth++;
    return end(&c, ncclSuccess);
}

ncclResult_t ncclGroupEnd(void)
{
    struct call c;
    ncclResult_t r;
    if (!begin(&c, CALL_ncclGroupEnd, &r)) {
        group_close();
        return r;
    }
    if (!group->depth)
        return end(&c, ncclInvalidUsage);
    if (--group->depth)
        return end(&c, ncclSuccess);
    for (uint32_t i = 0; i < group->n_opening; i++)
        wait_for_all(group->opening[i]);
    group->n_opening = 0;
    bool failed = group->failed;
    group->failed = false;
    if (failed)
        group->n = 0;
    return end(&c, failed ? ncclInvalidArgument : launch_group(&c));
}

/* ---- operations ---- */

static ncclResult_t add(struct ncclComm *c, cudaStream_t s, struct transfer t)
{
    if (group->n == GROUP_MAX)
        return ncclInternalError;
    group->of[group->n].comm = c;
    group->of[group->n].stream = s;
    group->of[group->n++].t = t;
    return ncclSuccess;
}

/* After the transfers of a call were added: outside of a group, off they go. */
static ncclResult_t close_call(struct call *c, ncclResult_t r)
{
    if (r)
        group->failed = group->depth > 0;
    if (!group->depth && r)
        group->n = 0;
    if (group->depth || r)
        return end(c, r);
    return end(c, launch_group(c));
}

static bool is_usable(const void *p, size_t bytes)
{
    const struct memory *m = memory_at(p);
    return !bytes || (m && !m->freed && memory_covers(m, p, bytes));
}

static ncclResult_t check_args(struct ncclComm *c, const void *p, size_t count, ncclDataType_t type,
                               int peer)
{
    size_t size = size_of(type);
    if (!c || !size || count > SIZE_MAX / size || peer < 0 || (uint32_t)peer >= c->n_ranks)
        return ncclInvalidArgument;
    return is_usable(p, count * size) ? ncclSuccess : ncclInvalidArgument;
}

static struct transfer transfer(bool send, uint32_t peer, enum op_kind kind, const void *p,
                                size_t n)
{
    return (struct transfer){
        .send = send, .peer = peer, .kind = kind, .p = (void *)(uintptr_t)p, .n = n};
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclSend, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    r = check_args(c, from, count, type, peer);
    if (!r)
        r = add(c, stream,
                transfer(true, (uint32_t)peer, OP_SEND_RECV, from, count * size_of(type)));
    return close_call(&call, r);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclRecv, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    r = check_args(c, to, count, type, peer);
    if (!r)
        r = add(c, stream,
                transfer(false, (uint32_t)peer, OP_SEND_RECV, to, count * size_of(type)));
    return close_call(&call, r);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclAllGather, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    size_t n = count * size_of(type);
    r = check_args(c, from, count, type, 0);
    if (!r && (n > SIZE_MAX / c->n_ranks || !is_usable(to, n * c->n_ranks)))
        r = ncclInvalidArgument;
    for (uint32_t i = 0; !r && i < c->n_ranks; i++) {
        r = add(c, stream, transfer(true, i, OP_ALL_GATHER, from, n));
        if (!r)
            r = add(c, stream, transfer(false, i, OP_ALL_GATHER, (uint8_t *)to + i * n, n));
    }
    return close_call(&call, r);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclBroadcast, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    size_t n = count * size_of(type);
    r = check_args(c, to, count, type, root);
    bool is_root = !r && (uint32_t)root == c->rank;
    if (is_root && !is_usable(from, n))
        r = ncclInvalidArgument;
    for (uint32_t i = 0; !r && is_root && i < c->n_ranks; i++)
        r = add(c, stream, transfer(true, i, OP_BROADCAST, from, n));
    if (!r)
        r = add(c, stream, transfer(false, (uint32_t)root, OP_BROADCAST, to, n));
    return close_call(&call, r);
}

/* ---- communicators ---- */

static ncclResult_t open_comm(struct call *call, ncclComm_t *out, int n_ranks,
                              const ncclUniqueId *id, int rank, const ncclConfig_t *config)
{
    ncclResult_t r;
    if (!out || n_ranks < 1 || n_ranks > NCCL_RANKS_MAX || rank < 0 || rank >= n_ranks ||
        (config && (config->magic != 0xcafebeef || config->size != sizeof *config)))
        return ncclInvalidArgument;
    struct ncclComm *c = calloc(1, sizeof *c);
    if (!c)
        return ncclSystemError;
    c->room = nccl_room_enter(id, (uint32_t)rank, (uint32_t)n_ranks, &r);
    if (!c->room) {
        free(c);
        return r;
    }
    c->device = call->device;
    c->rank = (uint32_t)rank;
    c->n_ranks = (uint32_t)n_ranks;
    c->blocking = !config || config->blocking != 0;
    c->next = comms;
    comms = c;
    *out = c;
    if (!c->blocking)
        return ncclInProgress;
    if (!group->depth)
        return wait_for_all(c);
    if (group->n_opening < NCCL_RANKS_MAX)
        group->opening[group->n_opening++] = c;
    return ncclSuccess;
}

static ncclResult_t init(enum call_id id, ncclComm_t *comm, int n_ranks, const ncclUniqueId *name,
                         int rank, const ncclConfig_t *config)
{
    struct call c;
    if (!call_begin(&c, id))
        return result_of_fault(c.error);
    if (!group_open())
        return end(&c, ncclSystemError);
    return end(&c, open_comm(&c, comm, n_ranks, name, rank, config));
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank)
{
    return init(CALL_ncclCommInitRank, comm, n_ranks, &id, rank, NULL);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    return init(CALL_ncclCommInitRankConfig, comm, n_ranks, &id, rank, config);
}

/* What is still in progress, a step further. */
static ncclResult_t progress(struct ncclComm *c)
{
    if (c->error)
        return c->error;
    if (!c->ready && !nccl_room_full(c->room))
        return ncclInProgress;
    c->ready = true;
    if (c->held && --c->held)
        return ncclInProgress;
    if (c->held_op) {
        struct nccl_op *op = c->held_op;
        c->held_op = NULL;
        return submit(op, c->held_stream, c->held_site);
    }
    return c->finalizing && c->n_pending ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclCommGetAsyncError, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    if (!c || !error)
        return end(&call, ncclInvalidArgument);
    if (call.late)
        nccl_fail(c, result_of_fault(call.late), "injected");
    if (!c->error && c->device->sticky)
        nccl_fail(c, ncclUnhandledCudaError, cudaGetErrorString(c->device->sticky));
    *error = progress(c);
    return end(&call, ncclSuccess);
}

/* Until nothing of it is on its way. */
static void drain(struct ncclComm *c)
{
    if (c->held_op) {
        nccl_op_free(c->held_op);
        c->held_op = NULL;
    }
    while (c->n_pending && c->device->open) {
        for (struct op *op = c->device->first; op; op = op->next)
            if (op->work.kind == WORK_POLL)
                mark_demand(op->mark);
        pthread_cond_broadcast(&rt.changed);
        nap();
    }
}

static void close_comm(struct ncclComm *c)
{
    struct ncclComm **at = &comms;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    nccl_room_leave(c->room);
    free(c);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclCommFinalize, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    if (!c)
        return end(&call, ncclInvalidArgument);
    if (c->error)
        return end(&call, c->error);
    c->finalizing = true;
    if (!c->blocking)
        return end(&call, ncclInProgress);
    drain(c);
    return end(&call, ncclSuccess);
}

/* Of one with work on its way this waits, as the real one does, for ever if a peer does not come.
 */
ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclCommDestroy, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    if (!c)
        return end(&call, ncclInvalidArgument);
    if (c->error || c->device->sticky)
        c->aborted = true;
    drain(c);
    close_comm(c);
    return end(&call, ncclSuccess);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, CALL_ncclCommAbort, &r))
        return r;
    struct ncclComm *c = nccl_comm_of(comm);
    if (!c)
        return end(&call, ncclInvalidArgument);
    c->aborted = true;
    drain(c);
    close_comm(c);
    return end(&call, ncclSuccess);
}

static ncclResult_t tell(enum call_id id, ncclComm_t comm, int *out)
{
    struct call call;
    ncclResult_t r;
    if (!begin(&call, id, &r))
        return r;
    const struct ncclComm *c = nccl_comm_of(comm);
    if (!c || !out)
        return end(&call, ncclInvalidArgument);
    if (id == CALL_ncclCommCount)
        *out = (int)c->n_ranks;
    else
        *out = id == CALL_ncclCommUserRank ? (int)c->rank : c->device->index;
    return end(&call, ncclSuccess);
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
    return tell(CALL_ncclCommCount, comm, count);
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device)
{
    return tell(CALL_ncclCommCuDevice, comm, device);
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
    return tell(CALL_ncclCommUserRank, comm, rank);
}

void nccl_abandon(struct device *d)
{
    for (struct ncclComm *c = comms; c; c = c->next)
        c->aborted = c->aborted || c->device == d;
    pthread_cond_broadcast(&rt.changed);
}

uint32_t nccl_close(void (*leak)(const char *))
{
    uint32_t n = 0;
    for (; comms; n++) {
        if (leak)
            leak("communicator");
        comms->aborted = true;
        drain(comms);
        close_comm(comms);
    }
    return n;
}
