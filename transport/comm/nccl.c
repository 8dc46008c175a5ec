/* A lane between devices over NCCL: see sluice/transport/comm_device.h. Part of the plug-ins, not
 * of the transport library: it is linked with the CUDA runtime.
 *
 * libnccl is opened at run time, since it is larger than everything else together and not wanted
 * where one device is enough; the emulated plug-in has its own within. The communicator is a
 * non-blocking one (NCCL User Guide, "Fault Tolerance"): every call returns at once, what it asked
 * for is enqueued when ncclCommGetAsyncError has said so, and ncclCommAbort ends what waits for
 * peers. Exchanges are groups of sends and receives, which take the sizes as they are; NCCL's
 * reductions, whose order of additions is its own, are never used.
 *
 * NCCL makes the links of a pair of ranks when they first speak, which takes long; so all pairs
 * speak once while the lane is opened, where deadlines are long. */
#include <nccl.h>
#include <sluice/transport/comm_device.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                                                               \
    X(ncclGetVersion)                                                                              \
    X(ncclGetUniqueId)                                                                             \
    X(ncclGetErrorString)                                                                          \
    X(ncclGetLastError)                                                                            \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommFinalize)                                                                            \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommAbort)                                                                               \
    X(ncclSend)                                                                                    \
    X(ncclRecv)                                                                                    \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)

static struct {
    bool there;
    char why[200];
#define MEMBER(f) __typeof__(&f) f;
    FUNCTIONS(MEMBER)
} nccl;

#define WARM_BYTES 16 /* a place each */

struct sl_comm_lane {
    uint32_t rank, n_ranks;
    int device;
    cudaStream_t stream;
    ncclComm_t comm; /* NULL: aborted */
    bool warm;       /* all pairs have been told to speak */
    uint8_t *places; /* device [n_ranks + 1] */
    uint64_t n_marked, n_passed;
    cudaEvent_t marks[SL_COMM_LANE_MARKS];
};

/* ---- the library ---- */

#ifdef SLUICE_CUDA_EMU

static void load(void)
{
#define TAKE(f) nccl.f = f;
    FUNCTIONS(TAKE)
    nccl.there = true;
}

#else

static void load(void)
{
    void *lib = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL), *at;
    const char *missing = lib ? NULL : dlerror();
#define TAKE(f)                                                                                    \
    at = lib ? dlsym(lib, #f) : NULL;                                                              \
    memcpy(&nccl.f, &at, sizeof at); /* C has no cast from data to functions */                    \
    if (lib && !at)                                                                                \
        missing = "too old: no " #f;
    FUNCTIONS(TAKE)
    nccl.there = !missing;
    if (missing)
        strncpy(nccl.why, missing, sizeof nccl.why - 1);
}

#endif

/* ---- errors ---- */

static enum sl_status status_of(ncclResult_t r)
{
    switch (r) {
    case ncclRemoteError:
    case ncclSystemError: /* mostly a connection's */
        return SL_PEER;
    case ncclUnhandledCudaError:
        return SL_NO_MEMORY;
    default:
        return SL_FAILED;
    }
}

static enum sl_status nccl_status(const struct sl_comm_lane *l, ncclResult_t r, const char *what,
                                  struct sl_err *err)
{
    if (r == ncclSuccess || r == ncclInProgress)
        return SL_OK;
    const char *last = nccl.ncclGetLastError(l ? l->comm : NULL);
    return sl_fail(err, status_of(r), "nccl: %s: %s%s%.120s", what, nccl.ncclGetErrorString(r),
                   last && *last ? ": " : "", last ? last : "");
}

static enum sl_status cuda_status(cudaError_t e, const char *what, struct sl_err *err)
{
    if (e == cudaSuccess)
        return SL_OK;
    return sl_fail(err, SL_NO_MEMORY, "nccl: %s: %s", what, cudaGetErrorString(e));
}

/* ---- opening ---- */

static enum sl_status lane_version(uint32_t *out, struct sl_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int version = 0;
    pthread_once(&once, load);
    if (!nccl.there)
        return sl_fail(err, SL_UNSUPPORTED, "nccl: %s", nccl.why);
    enum sl_status s = nccl_status(NULL, nccl.ncclGetVersion(&version), "ncclGetVersion", err);
    *out = (uint32_t)version;
    return s;
}

static enum sl_status lane_make_id(uint8_t id[SL_COMM_LANE_ID_BYTES], struct sl_err *err)
{
    ncclUniqueId made;
    _Static_assert(sizeof made == SL_COMM_LANE_ID_BYTES, "its whole");
    enum sl_status s = nccl_status(NULL, nccl.ncclGetUniqueId(&made), "ncclGetUniqueId", err);
    if (!s)
        memcpy(id, &made, sizeof made);
    return s;
}

static void lane_abort(struct sl_comm_lane *l)
{
    cudaSetDevice(l->device);
    if (l->comm)
        nccl.ncclCommAbort(l->comm);
    l->comm = NULL;
}

static void lane_close(struct sl_comm_lane *l)
{
    cudaSetDevice(l->device);
    if (l->comm)
        nccl.ncclCommDestroy(l->comm);
    cudaStreamSynchronize(l->stream); /* it waits for no peer any more: the marks come */
    for (uint32_t i = 0; i < SL_COMM_LANE_MARKS; i++)
        if (l->marks[i])
            cudaEventDestroy(l->marks[i]);
    if (l->places)
        cudaFree(l->places);
    free(l);
}

static enum sl_status take(struct sl_comm_lane *l, struct sl_err *err)
{
    size_t bytes = (l->n_ranks + 1) * WARM_BYTES;
    void *places = NULL;
    enum sl_status s = cuda_status(cudaSetDevice(l->device), "cudaSetDevice", err);
    if (!s)
        s = cuda_status(cudaMalloc(&places, bytes), "cudaMalloc", err);
    l->places = places;
    if (!s)
        s = cuda_status(cudaMemsetAsync(places, 0, bytes, l->stream), "cudaMemset", err);
    for (uint32_t i = 0; i < SL_COMM_LANE_MARKS && !s; i++)
        s = cuda_status(cudaEventCreateWithFlags(&l->marks[i], cudaEventDisableTiming),
                        "cudaEventCreate", err);
    return s;
}

static enum sl_status lane_open(const struct sl_comm_lane_config *cfg, struct sl_comm_lane **out,
                                struct sl_err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    *out = NULL;
    struct sl_comm_lane *l = calloc(1, sizeof *l);
    if (!l)
        return sl_fail(err, SL_NO_MEMORY, "nccl: no memory");
    l->rank = cfg->rank;
    l->n_ranks = cfg->n_ranks;
    l->device = (int)cfg->device;
    l->stream = cfg->stream;
    memcpy(&id, cfg->id, sizeof id);
    config.blocking = 0;
    enum sl_status s = take(l, err);
    if (!s)
        s = nccl_status(
            l, nccl.ncclCommInitRankConfig(&l->comm, (int)l->n_ranks, id, (int)l->rank, &config),
            "ncclCommInitRankConfig", err);
    if (s) {
        lane_abort(l);
        lane_close(l);
    } else {
        *out = l;
    }
    return s;
}

/* ---- operations ---- */

static enum sl_status lane_move(struct sl_comm_lane *l, const struct sl_comm_lane_run *runs,
                                uint32_t n, struct sl_err *err)
{
    enum sl_status s = cuda_status(cudaSetDevice(l->device), "cudaSetDevice", err);
    if (!s)
        s = nccl_status(l, nccl.ncclGroupStart(), "ncclGroupStart", err);
    if (s)
        return s;
    for (uint32_t i = 0; i < n && !s; i++) {
        const struct sl_comm_lane_run *r = &runs[i];
        if (r->is_recv)
            s = nccl_status(
                l, nccl.ncclRecv(r->data, r->bytes, ncclUint8, (int)r->peer, l->comm, l->stream),
                "ncclRecv", err);
        else
            s = nccl_status(
                l, nccl.ncclSend(r->data, r->bytes, ncclUint8, (int)r->peer, l->comm, l->stream),
                "ncclSend", err);
    }
    ncclResult_t ended = nccl.ncclGroupEnd(); /* also after a failure: the group is the thread's */
    return s ? s : nccl_status(l, ended, "ncclGroupEnd", err);
}

static enum sl_status warm_up(struct sl_comm_lane *l, struct sl_err *err)
{
    struct sl_comm_lane_run runs[SL_COMM_LANE_RUNS_MAX];
    uint32_t n = 0;
    for (uint32_t r = 0; r < l->n_ranks; r++) {
        if (r == l->rank)
            continue;
        runs[n++] = (struct sl_comm_lane_run){
            .peer = r, .data = l->places + l->n_ranks * WARM_BYTES, .bytes = WARM_BYTES};
        runs[n++] = (struct sl_comm_lane_run){
            .peer = r, .is_recv = true, .data = l->places + r * WARM_BYTES, .bytes = WARM_BYTES};
    }
    l->warm = true;
    return lane_move(l, runs, n, err);
}

static enum sl_status lane_busy(struct sl_comm_lane *l, bool *busy, struct sl_err *err)
{
    ncclResult_t state = ncclSuccess, r = nccl.ncclCommGetAsyncError(l->comm, &state);
    enum sl_status s = nccl_status(l, r ? r : state, "ncclCommGetAsyncError", err);
    *busy = state == ncclInProgress || !l->warm;
    if (!s && state == ncclSuccess && !l->warm)
        s = warm_up(l, err);
    return s;
}

static enum sl_status lane_mark(struct sl_comm_lane *l, struct sl_err *err)
{
    cudaEvent_t e = l->marks[l->n_marked % SL_COMM_LANE_MARKS];
    enum sl_status s = cuda_status(cudaEventRecord(e, l->stream), "cudaEventRecord", err);
    l->n_marked += !s;
    return s;
}

/* A failure of NCCL's shows here, too: between two marks it may be the only thing to be seen. */
static enum sl_status lane_passed(struct sl_comm_lane *l, uint64_t *n, struct sl_err *err)
{
    ncclResult_t state = ncclSuccess, r = nccl.ncclCommGetAsyncError(l->comm, &state);
    enum sl_status s = nccl_status(l, r ? r : state, "ncclCommGetAsyncError", err);
    cudaError_t e = cudaSuccess;
    while (l->n_passed < l->n_marked && e == cudaSuccess) {
        e = cudaEventQuery(l->marks[l->n_passed % SL_COMM_LANE_MARKS]);
        l->n_passed += e == cudaSuccess;
    }
    *n = l->n_passed;
    if (e == cudaErrorNotReady)
        cudaGetLastError(); /* it is no error, but remembered as one */
    else if (!s)
        s = cuda_status(e, "a step", err);
    return s;
}

static enum sl_status lane_finish(struct sl_comm_lane *l, struct sl_err *err)
{
    return nccl_status(l, nccl.ncclCommFinalize(l->comm), "ncclCommFinalize", err);
}

__attribute__((visibility("default"))) sl_comm_lane_entry sl_comm_lane_plugin;

const struct sl_comm_lane_ops *sl_comm_lane_plugin(void)
{
    static const struct sl_comm_lane_ops ops = {.abi = SL_COMM_LANE_ABI,
                                                .name = "nccl",
                                                .version = lane_version,
                                                .make_id = lane_make_id,
                                                .open = lane_open,
                                                .busy = lane_busy,
                                                .move = lane_move,
                                                .mark = lane_mark,
                                                .passed = lane_passed,
                                                .finish = lane_finish,
                                                .abort = lane_abort,
                                                .close = lane_close};
    return &ops;
}
