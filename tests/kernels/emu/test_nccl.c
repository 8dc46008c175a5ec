/* The emulated NCCL: ranks as threads and as processes, what moves, in what order, and how it
 * ends. */
#include "runtime_test.h"

#include <nccl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { N = 40000, RANKS = 2 }; /* more than a ring holds */
static const size_t bytes = N * sizeof(float);

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* Until the communicator is at rest. */
static ncclResult_t settle(ncclComm_t comm)
{
    ncclResult_t r, state;
    while ((r = ncclCommGetAsyncError(comm, &state)) == ncclSuccess && state == ncclInProgress)
        nap();
    return r ? r : state;
}

#define STEP(call) error = error ? error : (int)(call)
/* A call of NCCL that may be in progress. */
#define NSTEP(call) error = error ? error : after(comm, call)

static int after(ncclComm_t comm, ncclResult_t r)
{
    return (int)(r == ncclInProgress ? settle(comm) : r);
}

struct rank {
    ncclUniqueId id;
    uint32_t rank;
    bool blocking;
    int error, line;
    float *host;
};

static int open_comm(struct rank *r, ncclComm_t *comm)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = r->blocking;
    ncclResult_t n = ncclCommInitRankConfig(comm, RANKS, r->id, (int)r->rank, &config);
    return n == ncclInProgress ? (int)settle(*comm) : (int)n;
}

/* Every operation, each after the one before: a sum over them tells a wrong order. */
static void *exchange(void *arg)
{
    struct rank *r = arg;
    ncclComm_t comm = NULL;
    cudaStream_t s = NULL;
    float *mine = NULL, *all = NULL;
    int error = (int)cudaSetDevice((int)r->rank), peer = !r->rank, n = -1;
    STEP(open_comm(r, &comm));
    STEP(ncclCommCount(comm, &n));
    STEP(n != RANKS);
    STEP(ncclCommUserRank(comm, &n));
    STEP(n != (int)r->rank);
    STEP(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    STEP(cudaMalloc((void **)&mine, bytes));
    STEP(cudaMalloc((void **)&all, RANKS * bytes));
    STEP(cudaMallocHost((void **)&r->host, RANKS * bytes));
    for (int i = 0; i < N && !error; i++)
        r->host[i] = (float)(i % 1000) + (float)r->rank;
    STEP(cudaMemcpyAsync(mine, r->host, bytes, cudaMemcpyHostToDevice, s));
    NSTEP(ncclAllGather(mine, all, N, ncclFloat32, comm, s)); /* i, i + 1 */
    STEP(launch_add(s, all, all + N, 1, N));                  /* 2 i + 1 on both */
    STEP(ncclGroupStart());
    STEP(ncclSend(all, N, ncclFloat32, peer, comm, s));
    STEP(ncclRecv(all + N, N, ncclFloat32, peer, comm, s));
    NSTEP(ncclGroupEnd());
    STEP(launch_add(s, all, all + N, 1, N)); /* 4 i + 2 */
    STEP(cudaMemsetAsync(mine, 0, bytes, s));
    NSTEP(ncclBroadcast(all, r->rank == 1 ? all + N : mine, N, ncclFloat32, 1, comm, s));
    if (r->rank == 0)
        STEP(launch_add(s, all, mine, 1, N)); /* 8 i + 4 */
    else
        STEP(launch_add(s, all, all + N, 1, N));
    STEP(cudaMemcpyAsync(r->host, all, bytes, cudaMemcpyDeviceToHost, s));
    STEP(cudaStreamSynchronize(s));
    NSTEP(ncclCommFinalize(comm));
    STEP(ncclCommDestroy(comm));
    for (int i = 0; i < N && !error; i++)
        error = r->host[i] == (float)(8 * (i % 1000) + 4) ? 0 : 1000 + i;
    STEP(cudaStreamDestroy(s));
    STEP(cudaFree(mine));
    STEP(cudaFree(all));
    STEP(cudaFreeHost(r->host));
    r->error = error;
    return NULL;
}

static void ranks_as_threads(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct rank r[RANKS] = {{.rank = 0}, {.rank = 1}};
        pthread_t threads[RANKS];
        struct emu_config c = test_config(seed);
        c.memory = 8 << 20;
        emu_restart(&c, NULL);
        ok((int)ncclGetUniqueId(&r[0].id));
        for (int i = 0; i < RANKS; i++) {
            r[i].id = r[0].id;
            r[i].blocking = seed / 2 % 2;
            assert_int_equal(pthread_create(&threads[i], NULL, exchange, &r[i]), 0);
        }
        for (int i = 0; i < RANKS; i++)
            pthread_join(threads[i], NULL);
        ok(r[0].error);
        ok(r[1].error);
        assert_no_report();
        assert_int_equal(emu_restart(&c, NULL), 0);
    }
}

/* ---- processes ---- */

static pid_t start_rank(const struct rank *r, const char *what, uint64_t seed)
{
    char text[2 * sizeof(ncclUniqueId) + 1], number[24];
    for (size_t i = 0; i < sizeof r->id; i++)
        snprintf(text + 2 * i, 3, "%02x", (unsigned char)r->id.internal[i]);
    snprintf(number, sizeof number, "%llu", (unsigned long long)seed);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test", what, text, number, (char *)NULL);
        _exit(9);
    }
    return pid;
}

static int be_rank_1(const char *what, const char *text, const char *seed)
{
    struct rank r = {.rank = 1};
    struct emu_config c = test_config(strtoull(seed, NULL, 10));
    c.memory = 8 << 20;
    emu_restart(&c, NULL);
    for (size_t i = 0; i < sizeof r.id; i++) {
        char two[3] = {text[2 * i], text[2 * i + 1], 0};
        r.id.internal[i] = (char)strtoul(two, NULL, 16);
    }
    if (!strcmp(what, "exchange")) {
        exchange(&r);
        return r.error || emu_report_count() ? 3 : 0;
    }
    ncclComm_t comm; /* comes, and is killed */
    cudaSetDevice(1);
    open_comm(&r, &comm);
    raise(SIGKILL);
    return 4;
}

static void ranks_as_processes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct rank r = {.rank = 0};
        struct emu_config c = test_config(seed);
        int status;
        c.memory = 8 << 20;
        emu_restart(&c, NULL);
        ok((int)ncclGetUniqueId(&r.id));
        pid_t pid = start_rank(&r, "exchange", seed);
        exchange(&r);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        ok(r.error);
        assert_int_equal(status, 0);
        assert_no_report();
    }
}

/* ---- ends ---- */

struct open {
    ncclComm_t comm[RANKS];
    cudaStream_t s[RANKS];
    float *p[RANKS];
};

/* Both ranks by one thread. */
static struct open open_both(uint64_t seed)
{
    struct open o;
    struct emu_config c = test_config(seed);
    c.memory = 8 << 20;
    emu_restart(&c, NULL);
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ok((int)ncclGetUniqueId(&id));
    for (int i = 0; i < RANKS; i++) {
        ok(cudaSetDevice(i));
        ok(cudaStreamCreateWithFlags(&o.s[i], cudaStreamNonBlocking));
        ok(cudaMalloc((void **)&o.p[i], bytes));
        ok(cudaMemsetAsync(o.p[i], i, bytes, o.s[i]));
        fails((int)ncclCommInitRankConfig(&o.comm[i], RANKS, id, i, &config), ncclInProgress);
    }
    ok((int)settle(o.comm[0]));
    ok((int)settle(o.comm[1]));
    return o;
}

static void an_init_is_in_progress_until_all_have_come(void **state)
{
    (void)state;
    ncclUniqueId id;
    ncclComm_t comm[RANKS];
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t error;
    fresh(0);
    config.blocking = 0;
    ok((int)ncclGetUniqueId(&id));
    for (int i = 0; i < RANKS; i++) {
        fails((int)ncclCommInitRankConfig(&comm[i], RANKS, id, i, &config), ncclInProgress);
        ok((int)ncclCommGetAsyncError(comm[0], &error));
        assert_int_equal(error, i ? ncclSuccess : ncclInProgress);
    }
    ok((int)ncclCommAbort(comm[0]));
    ok((int)ncclCommAbort(comm[1]));
}

/* What a call that is in progress asked for is not on the stream yet. */
static void work_in_progress_is_not_on_the_stream(void **state)
{
    (void)state;
    int found = 0;
    for (uint64_t seed = 1; seed < 30; seed++) {
        struct open o = open_both(seed);
        ok(cudaDeviceSynchronize());
        ok(cudaSetDevice(0));
        ok(cudaDeviceSynchronize());
        ncclResult_t r = ncclRecv(o.p[0], N, ncclFloat, 1, o.comm[0], o.s[0]);
        found += r == ncclInProgress;
        fails(cudaStreamQuery(o.s[0]), r ? cudaSuccess : cudaErrorNotReady);
        ok((int)settle(o.comm[0]));
        fails(cudaStreamQuery(o.s[0]), cudaErrorNotReady);
        ok((int)ncclCommAbort(o.comm[0]));
        ok((int)ncclCommAbort(o.comm[1]));
        assert_no_report();
    }
    assert_in_range(found, 1, 28);
}

/* Of one communicator, also on two streams: by their calls. */
static void operations_keep_the_order_of_their_calls(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct open o = open_both(seed);
        cudaStream_t more[RANKS];
        for (int i = 0; i < RANKS; i++) {
            ok(cudaSetDevice(i));
            ok(cudaDeviceSynchronize());
            ok(cudaStreamCreateWithFlags(&more[i], cudaStreamNonBlocking));
        }
        for (int k = 0; k < 6; k++) {
            size_t n = (size_t)(N / 6 - k);
            float *from = o.p[0] + k * (N / 6), *to = o.p[1] + k * (N / 6);
            ok(after(o.comm[0],
                     ncclSend(from, n, ncclFloat, 1, o.comm[0], k % 2 ? more[0] : o.s[0])));
            ok(after(o.comm[1],
                     ncclRecv(to, n, ncclFloat, 0, o.comm[1], k % 3 ? more[1] : o.s[1])));
        }
        for (int i = 0; i < RANKS; i++) {
            ok(cudaSetDevice(i));
            ok(cudaDeviceSynchronize());
            ok((int)ncclCommDestroy(o.comm[i]));
        }
        assert_no_report();
    }
}

static void an_abort_ends_what_waits_for_a_peer(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        ok(after(o.comm[0], ncclRecv(o.p[0], N, ncclFloat, 1, o.comm[0], o.s[0])));
        fails(cudaStreamQuery(o.s[0]), cudaErrorNotReady);
        nap();
        fails(cudaStreamQuery(o.s[0]), cudaErrorNotReady);
        ok((int)settle(o.comm[0])); /* no error: nobody knows */
        ok((int)ncclCommAbort(o.comm[0]));
        ok(cudaStreamSynchronize(o.s[0]));
        fails((int)ncclCommAbort(o.comm[0]), ncclInvalidArgument);
        ok((int)ncclCommAbort(o.comm[1]));
        assert_no_report();
    }
}

static void a_dead_peer_is_a_remote_error(void **state)
{
    (void)state;
    fresh(0);
    struct rank r = {.rank = 0, .blocking = true};
    ncclComm_t comm;
    ncclResult_t error = ncclSuccess;
    float *p;
    int status;
    ok((int)ncclGetUniqueId(&r.id));
    pid_t pid = start_rank(&r, "die", 0);
    ok(open_comm(&r, &comm));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    ok(cudaMalloc((void **)&p, 8));
    ok((int)ncclRecv(p, 1, ncclFloat, 1, comm, NULL));
    while (!error)
        ok((int)ncclCommGetAsyncError(comm, &error));
    assert_int_equal(error, ncclRemoteError);
    assert_non_null(strstr(ncclGetLastError(comm), "rank 1 is gone"));
    fails(cudaStreamQuery(NULL), cudaErrorNotReady); /* until the abort */
    ok((int)ncclCommAbort(comm));
    ok(cudaDeviceSynchronize());
    ok(cudaFree(p));
}

static void what_does_not_match_is_reported(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        ok(after(o.comm[0], ncclSend(o.p[0], 7, ncclFloat, 1, o.comm[0], o.s[0])));
        ok(after(o.comm[1], ncclRecv(o.p[1], 8, ncclFloat, 0, o.comm[1], o.s[1])));
        fails(cudaStreamSynchronize(o.s[1]), cudaErrorUnknown);
        fails((int)settle(o.comm[1]), ncclInvalidUsage);
        assert_reported("rank 1 takes 32 bytes by ncclSend or ncclRecv, but rank 0 gives 28");
    }
}

static void operations_are_checked_for_order_too(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        cudaStream_t other;
        ok(cudaSetDevice(1));
        ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
        ok(after(o.comm[0], ncclSend(o.p[0], N, ncclFloat, 1, o.comm[0], o.s[0])));
        ok(after(o.comm[1], ncclRecv(o.p[1], N, ncclFloat, 0, o.comm[1], o.s[1])));
        ok(cudaStreamSynchronize(o.s[1]));
        assert_no_report();
        ok(after(o.comm[0], ncclSend(o.p[0], N, ncclFloat, 1, o.comm[0], o.s[0])));
        ok(after(o.comm[1], ncclRecv(o.p[1], N, ncclFloat, 0, o.comm[1], o.s[1])));
        ok(cudaMemsetAsync(o.p[1], 0, 4, other));
        ok(cudaDeviceSynchronize());
        assert_reported("nothing orders them");
    }
}

static void operations_are_captured(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        cudaGraphExec_t x[RANKS];
        for (int i = 0; i < RANKS; i++) {
            cudaGraph_t g;
            ok(cudaSetDevice(i));
            ok(cudaStreamBeginCapture(o.s[i], cudaStreamCaptureModeThreadLocal));
            ok(launch_add(o.s[i], o.p[i], o.p[i], 1, N));
            ok(after(o.comm[i], ncclBroadcast(o.p[i], o.p[i], N, ncclFloat, 0, o.comm[i], o.s[i])));
            ok(cudaStreamEndCapture(o.s[i], &g));
            ok(cudaGraphInstantiate(&x[i], g, 0));
            ok(cudaGraphDestroy(g));
        }
        ok(cudaSetDevice(0));
        ok(cudaMemsetAsync(o.p[0], 0x3f, bytes, o.s[0]));
        for (int k = 0; k < 3; k++)
            for (int i = 0; i < RANKS; i++) {
                ok(cudaSetDevice(i));
                ok(cudaGraphLaunch(x[i], o.s[i]));
            }
        float v[RANKS];
        for (int i = 0; i < RANKS; i++) {
            ok(cudaSetDevice(i));
            ok(cudaMemcpyAsync(&v[i], o.p[i] + N - 1, 4, cudaMemcpyDeviceToHost, o.s[i]));
            ok(cudaStreamSynchronize(o.s[i]));
            ok(cudaGraphExecDestroy(x[i]));
        }
        assert_true(v[0] == v[1] && v[0] > 5); /* eight times 0.747 */
        ok((int)ncclCommDestroy(o.comm[0]));
        ok((int)ncclCommDestroy(o.comm[1]));
        assert_no_report();
    }
}

static void bad_use_is_refused(void **state)
{
    (void)state;
    struct open o = open_both(0);
    float here[4];
    ncclUniqueId id;
    ncclComm_t comm;
    int v;
    ok((int)ncclGetVersion(&v));
    assert_int_equal(v, 22809);
    assert_string_equal(ncclGetErrorString(ncclSuccess), "no error");
    fails((int)ncclSend(o.p[0], 1, ncclFloat, 2, o.comm[0], o.s[0]), ncclInvalidArgument);
    fails((int)ncclSend(o.p[0], 1, ncclNumTypes, 1, o.comm[0], o.s[0]), ncclInvalidArgument);
    fails((int)ncclSend(o.p[0], N + 1, ncclFloat, 1, o.comm[0], o.s[0]), ncclInvalidArgument);
    fails((int)ncclSend(here, 1, ncclFloat, 1, o.comm[0], o.s[0]), ncclInvalidArgument);
    fails((int)ncclAllGather(o.p[0], o.p[0], N, ncclFloat, o.comm[0], o.s[0]), ncclInvalidArgument);
    fails((int)ncclGroupEnd(), ncclInvalidUsage);
    memset(&id, 7, sizeof id);
    fails((int)ncclCommInitRank(&comm, 1, id, 0), ncclSystemError);
    ok((int)ncclGetUniqueId(&id));
    fails((int)ncclCommInitRank(&comm, 2, id, 2), ncclInvalidArgument);
    ok((int)ncclCommInitRank(&comm, 1, id, 0));
    fails((int)ncclCommInitRank(&comm, 1, id, 0), ncclInvalidUsage); /* taken */
    ok((int)ncclCommDestroy(comm));
    fails((int)ncclCommDestroy(comm), ncclInvalidArgument);
    fails((int)ncclCommFinalize(o.comm[0]), ncclInProgress);
    ok((int)settle(o.comm[0]));
    assert_no_report();
    fails((int)ncclSend(o.p[0], 1, ncclFloat, 1, o.comm[0], o.s[0]), ncclInvalidUsage);
    assert_reported("in progress");
}

static void faults_of_nccl(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        ncclResult_t error = ncclSuccess;
        assert_true(emu_fault_parse("ncclSend:1:ncclSystemError,ncclSend:2:cudaErrorNotSupported,"
                                    "ncclSend:3:ncclRemoteError:late"));
        assert_false(emu_fault_parse("cudaMalloc:1:ncclRemoteError"));
        fails((int)ncclSend(o.p[0], 1, ncclFloat, 1, o.comm[0], o.s[0]), ncclSystemError);
        fails((int)ncclSend(o.p[0], 1, ncclFloat, 1, o.comm[0], o.s[0]), ncclUnhandledCudaError);
        ncclSend(o.p[0], 1, ncclFloat, 1, o.comm[0], o.s[0]);
        ok((int)ncclCommGetAsyncError(o.comm[0], &error));
        assert_int_equal(error, ncclRemoteError);
    }
}

static void a_hang_is_silent_until_the_abort(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct open o = open_both(seed);
        assert_true(emu_fault_parse("ncclSend:1:ncclInProgress:late"));
        ok(after(o.comm[0], ncclSend(o.p[0], 1, ncclFloat, 1, o.comm[0], o.s[0])));
        ok((int)settle(o.comm[0]));
        for (int i = 0; i < 5; i++, nap())
            fails(cudaStreamQuery(o.s[0]), cudaErrorNotReady);
        ok((int)ncclCommAbort(o.comm[0]));
        ok(cudaStreamSynchronize(o.s[0]));
    }
}

int main(int argc, char **argv)
{
    if (argc == 4)
        return be_rank_1(argv[1], argv[2], argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_as_threads),
        cmocka_unit_test(ranks_as_processes),
        cmocka_unit_test(an_init_is_in_progress_until_all_have_come),
        cmocka_unit_test(work_in_progress_is_not_on_the_stream),
        cmocka_unit_test(operations_keep_the_order_of_their_calls),
        cmocka_unit_test(an_abort_ends_what_waits_for_a_peer),
        cmocka_unit_test(a_dead_peer_is_a_remote_error),
        cmocka_unit_test(what_does_not_match_is_reported),
        cmocka_unit_test(operations_are_checked_for_order_too),
        cmocka_unit_test(operations_are_captured),
        cmocka_unit_test(bad_use_is_refused),
        cmocka_unit_test(faults_of_nccl),
        cmocka_unit_test(a_hang_is_silent_until_the_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
