/* Several devices: in one process by peer access, in several by IPC; threads; and faults at every
 * call. */
#include "runtime_test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 100 };
static const size_t bytes = N * sizeof(float);

/* ---- peers ---- */

static void a_device_reaches_another_by_peer_access_only(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        float *a, *b, out = 0;
        int can = -1;
        ok(cudaMalloc((void **)&a, bytes));
        ok(cudaMemset(a, 0, bytes));
        ok(cudaDeviceSynchronize());
        ok(cudaSetDevice(1));
        ok(cudaMalloc((void **)&b, bytes));
        ok(cudaMemset(b, 0, bytes));
        ok(cudaDeviceSynchronize());
        ok(cudaDeviceCanAccessPeer(&can, 1, 0));
        assert_int_equal(can, 1);
        fails(cudaDeviceEnablePeerAccess(1, 0), cudaErrorInvalidDevice);
        fails(cudaDeviceDisablePeerAccess(0), cudaErrorPeerAccessNotEnabled);
        ok(cudaDeviceEnablePeerAccess(0, 0));
        fails(cudaDeviceEnablePeerAccess(0, 0), cudaErrorPeerAccessAlreadyEnabled);
        cudaGetLastError();
        ok(launch_add(NULL, a, b, 1, N));
        ok(cudaMemcpyPeer(b, 1, a, 0, bytes));
        ok(cudaMemcpy(&out, b, sizeof out, cudaMemcpyDeviceToHost));
        assert_true(out == 0);
        fails(cudaMemcpyPeer(b, 0, a, 1, bytes), cudaErrorInvalidValue);
        ok(cudaDeviceDisablePeerAccess(0));
        ok(cudaDeviceSynchronize());
        cudaGetLastError();
        assert_no_report();
        cudaError_t error = launch_add(NULL, a, b, 1, N);
        assert_true(error == cudaSuccess || error == cudaErrorIllegalAddress);
        fails(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
        assert_reported("has no peer access");
        cudaGetLastError();
        ok(cudaDeviceReset());
        ok(cudaSetDevice(0));
        ok(cudaFree(a));
        cudaGetLastError();
    }
}

static void devices_without_peers(void **state)
{
    (void)state;
    struct emu_config c = test_config(0);
    int can;
    c.no_peers = true;
    emu_restart(&c, NULL);
    ok(cudaDeviceCanAccessPeer(&can, 0, 1));
    assert_int_equal(can, 0);
    fails(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessUnsupported);
}

/* ---- threads ---- */

struct half {
    int device;
    uint32_t **flags; /* [2], of both */
    pthread_barrier_t *both;
    cudaError_t error;
};

#define STEP(call) error = error ? error : (call)

static void *meet_other(void *arg)
{
    struct half *h = arg;
    cudaStream_t s = NULL;
    int me = h->device;
    cudaError_t error = cudaSetDevice(me);
    STEP(cudaMalloc((void **)&h->flags[me], 4));
    STEP(cudaMemset(h->flags[me], 0, 4));
    STEP(cudaDeviceEnablePeerAccess(!me, 0));
    STEP(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    STEP(cudaDeviceSynchronize());
    pthread_barrier_wait(h->both);
    for (uint32_t k = 1; k < 20; k++) {
        STEP(launch_meet(s, h->flags[me], h->flags[!me], k));
        STEP(cudaStreamSynchronize(s));
    }
    pthread_barrier_wait(h->both);
    STEP(cudaStreamDestroy(s));
    STEP(cudaFree(h->flags[me]));
    h->error = error;
    return NULL;
}

/* Kernels of two devices that wait for each other, each device driven by its thread. */
static void two_threads_drive_two_devices(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        pthread_barrier_t both;
        pthread_t threads[2];
        pthread_barrier_init(&both, NULL, 2);
        uint32_t *flags[2];
        struct half halves[2] = {{0, flags, &both, cudaErrorUnknown},
                                 {1, flags, &both, cudaErrorUnknown}};
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, meet_other, &halves[i]), 0);
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        ok(halves[0].error);
        ok(halves[1].error);
        pthread_barrier_destroy(&both);
        assert_no_report();
    }
}

/* The same by one thread: a launch that waits for another does not hold the caller. */
static void one_thread_drives_two_devices(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 3; seed++) {
        fresh(seed);
        two_devices_meet();
    }
}

/* ---- processes ---- */

static void give(int fd, const void *p, size_t n)
{
    assert_int_equal(write(fd, p, n), n);
}

static void take(int fd, void *p, size_t n)
{
    assert_int_equal(read(fd, p, n), n);
}

/* The exporter: a process of its own, since a runtime does not live through a fork. */
static void export_memory(int in, int out)
{
    cudaIpcMemHandle_t handle;
    float *p, v;
    char go;
    if (cudaMalloc((void **)&p, bytes) || cudaIpcGetMemHandle(&handle, p) ||
        cudaMemset(p, 0, bytes) || cudaDeviceSynchronize())
        _exit(3);
    give(out, &handle, sizeof handle);
    take(in, &go, 1); /* the other has written */
    if (cudaMemcpy(&v, p + N - 1, sizeof v, cudaMemcpyDeviceToHost) || cudaFree(p))
        _exit(4);
    give(out, &v, sizeof v);
    take(in, &go, 1);
    _exit(0);
}

struct child {
    pid_t pid;
    int in, out;
};

static struct child start_exporter(void)
{
    int to[2], from[2];
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    struct child c = {.in = from[0], .out = to[1]};
    char in[16], out[16];
    snprintf(in, sizeof in, "%d", to[0]);
    snprintf(out, sizeof out, "%d", from[1]);
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0) {
        execl("/proc/self/exe", "test", "export", in, out, (char *)NULL);
        _exit(9);
    }
    close(to[0]);
    close(from[1]);
    return c;
}

static void memory_of_another_process_is_one_memory(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct child c = start_exporter();
        cudaIpcMemHandle_t handle, bad;
        float *p, *again, *one, v;
        take(c.in, &handle, sizeof handle);
        ok(cudaIpcOpenMemHandle((void **)&p, handle, cudaIpcMemLazyEnablePeerAccess));
        ok(cudaIpcOpenMemHandle((void **)&again, handle, cudaIpcMemLazyEnablePeerAccess));
        assert_ptr_equal(p, again);
        ok(cudaMalloc((void **)&one, bytes));
        float ones[N];
        for (int i = 0; i < N; i++)
            ones[i] = 1;
        ok(cudaMemcpy(one, ones, bytes, cudaMemcpyHostToDevice));
        ok(launch_add(NULL, p, one, 7, N));
        ok(cudaDeviceSynchronize());
        give(c.out, "g", 1);
        take(c.in, &v, sizeof v);
        assert_true(v == 7);
        ok(cudaIpcCloseMemHandle(again));
        ok(cudaIpcCloseMemHandle(p));
        fails(cudaIpcCloseMemHandle(p), cudaErrorInvalidValue);
        fails(cudaFree(p), cudaErrorInvalidValue);
        assert_reported("freed before");
        give(c.out, "g", 1);
        int status;
        assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
        assert_int_equal(status, 0);
        close(c.in);
        close(c.out);

        /* gone, or never there, or ours */
        const unsigned lazy = cudaIpcMemLazyEnablePeerAccess;
        fails(cudaIpcOpenMemHandle((void **)&p, handle, lazy), cudaErrorMapBufferObjectFailed);
        fails(cudaIpcOpenMemHandle((void **)&p, handle, 0), cudaErrorInvalidValue);
        memset(&bad, 0, sizeof bad);
        fails(cudaIpcOpenMemHandle((void **)&p, bad, lazy), cudaErrorInvalidResourceHandle);
        ok(cudaIpcGetMemHandle(&bad, one));
        fails(cudaIpcOpenMemHandle((void **)&p, bad, lazy), cudaErrorDeviceUninitialized);
        fails(cudaIpcGetMemHandle(&bad, one + 1), cudaErrorInvalidValue);
        ok(cudaFree(one));
        fails(cudaIpcGetMemHandle(&bad, one), cudaErrorInvalidValue);
        cudaGetLastError();
        assert_no_report();
    }
}

/* A handle with any of its bits changed is refused, or opens nothing beyond the file, which is a
 * page. When the process began is in bytes 16 to 23: another one of that number is not meant. */
static void no_handle_is_believed(void **state)
{
    (void)state;
    fresh(0);
    struct child c = start_exporter();
    cudaIpcMemHandle_t handle;
    take(c.in, &handle, sizeof handle);
    for (size_t i = 0; i < sizeof handle; i++)
        for (int bit = 0; bit < 8; bit++) {
            cudaIpcMemHandle_t h = handle;
            void *p = NULL;
            h.reserved[i] = (char)(h.reserved[i] ^ 1 << bit);
            char byte;
            cudaError_t e = cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess);
            if (e)
                continue;
            assert_false(i >= 16 && i < 24);
            fails(cudaMemcpy(&byte, (char *)p + 4096, 1, cudaMemcpyDeviceToHost),
                  cudaErrorInvalidValue);
            ok(cudaIpcCloseMemHandle(p));
        }
    cudaGetLastError();
    give(c.out, "g", 1);
    float v;
    take(c.in, &v, sizeof v);
    give(c.out, "g", 1);
    int status;
    assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
    assert_int_equal(status, 0);
    close(c.in);
    close(c.out);
}

/* ---- faults ---- */

/* A little of everything; the first error, if any. Nothing of it crashes after an error. */
static cudaError_t do_a_little(float *result)
{
    float *x = NULL, *host = NULL;
    cudaStream_t s = NULL;
    cudaEvent_t e = NULL;
    cudaGraph_t g = NULL;
    cudaGraphExec_t exec = NULL;
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    STEP(cudaMalloc((void **)&x, bytes));
    STEP(cudaMallocHost((void **)&host, bytes));
    STEP(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    STEP(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    for (int i = 0; i < N && !error; i++)
        host[i] = 1;
    STEP(cudaMemcpyAsync(x, host, bytes, cudaMemcpyHostToDevice, s));
    STEP(launch_add(s, x, x, 1, N));
    STEP(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    STEP(launch_add(s, x, x, 1, N));
    STEP(cudaStreamEndCapture(s, &g));
    STEP(cudaGraphInstantiate(&exec, g, 0));
    STEP(cudaGraphLaunch(exec, s));
    STEP(cudaMemcpyAsync(host, x, bytes, cudaMemcpyDeviceToHost, s));
    STEP(cudaEventRecord(e, s));
    STEP(cudaEventSynchronize(e));
    STEP(cudaStreamSynchronize(s));
    *result = error ? 0 : host[N - 1];
    return error;
}

static void every_call_can_fail_and_says_so(void **state)
{
    (void)state;
    static uint64_t counts[256];
    float result;
    uint32_t n_calls = 0, n_faults = 0;
    fresh(0);
    ok(do_a_little(&result));
    assert_true(result == 4);
    while (emu_call_count(n_calls, &counts[n_calls]))
        n_calls++;
    for (uint64_t seed = 0; seed < 3; seed++)
        for (uint32_t i = 0; i < n_calls; i++)
            for (uint64_t nth = 1; nth <= counts[i]; nth++)
                for (int sticky = 0; sticky < 2; sticky++) {
                    uint64_t n;
                    const char *name = emu_call_count(i, &n);
                    if (!strncmp(name, "cudaSetDevice", 13))
                        continue; /* fresh() needs it */
                    cudaError_t want =
                        sticky ? cudaErrorECCUncorrectable : cudaErrorMemoryAllocation;
                    fresh(seed);
                    assert_true(emu_fault(name, nth, want, false));
                    cudaError_t error = do_a_little(&result);
                    if (error != want)
                        print_error("seed %d %s %d\n", (int)seed, name, (int)nth);
                    fails(error, want);
                    emu_faults_clear();
                    cudaGetLastError();
                    size_t n_free, total;
                    fails(cudaMemGetInfo(&n_free, &total), sticky ? want : cudaSuccess);
                    n_faults++;
                }
    assert_in_range(n_faults, 90, 200);
}

static void work_can_fail_when_the_device_gets_there(void **state)
{
    (void)state;
    static const char *const names[] = {"cudaMemcpyAsync", "emu_enqueue", "cudaGraphLaunch",
                                        "cudaEventRecord"};
    EACH_SEED(seed)
    {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            float result;
            fresh(seed);
            assert_true(emu_fault(names[i], 1, cudaErrorLaunchFailure, true));
            fails(do_a_little(&result), cudaErrorLaunchFailure);
            fails(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
        }
    }
}

/* For sweeps over whole programs. */
static void a_process_writes_its_counts_at_exit(void **state)
{
    (void)state;
    char path[] = "/tmp/sluice-emu-counts-XXXXXX", file[64], line[256];
    int fd = mkstemp(path), status, found = 0;
    assert_true(fd >= 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("SLUICE_CUDA_EMU_COUNTS", path, 1);
        setenv("SLUICE_CUDA_EMU_FAULT", "cudaMalloc:2:cudaErrorMemoryAllocation", 1);
        execl("/proc/self/exe", "test", "leak", (char *)NULL);
        _exit(9);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    snprintf(file, sizeof file, "%s.%d", path, (int)pid);
    FILE *f = fopen(file, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        found += !strcmp(line, "cudaMalloc 2\n") || !strncmp(line, "left 77 bytes", 13);
    fclose(f);
    assert_int_equal(found, 2);
    unlink(file);
    unlink(path);
    close(fd);
}

static int leak(void)
{
    void *p;
    if (cudaMalloc(&p, 77))
        return 3;
    return cudaMalloc(&p, 77) == cudaErrorMemoryAllocation ? 0 : 4;
}

/* Nothing runs in another way than the environment asked for. */
static void a_wrong_environment_leaves_no_driver(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {{"SLUICE_CUDA_EMU_SEED", "-1"},
                                           {"SLUICE_CUDA_EMU_SEED", "99999999999999999999"},
                                           {"SLUICE_CUDA_EMU_DEVICES", "17"},
                                           {"SLUICE_CUDA_EMU_MEMORY", "1g"},
                                           {"SLUICE_CUDA_EMU_FAULT", "cudaMalloc:0:cudaErrorECC"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            setenv(wrong[i][0], wrong[i][1], 1);
            execl("/proc/self/exe", "test", "count", (char *)NULL);
            _exit(9);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
}

static int count(void)
{
    int n = -1;
    return cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == -1 ? 0 : 5;
}

static void what_a_reset_finds_is_reported(void **state)
{
    (void)state;
    fresh(0);
    void *p;
    ok(cudaMalloc(&p, 5));
    ok(cudaDeviceReset());
    assert_reported("not freed before: 5 bytes of device memory");
}

static void faults_are_read_from_text(void **state)
{
    (void)state;
    fresh(0);
    void *p;
    assert_true(emu_fault_parse("cudaMalloc:2:cudaErrorMemoryAllocation,"
                                "cudaMemsetAsync:1:cudaErrorECCUncorrectable:late"));
    ok(cudaMalloc(&p, 5));
    fails(cudaMalloc(&p, 5), cudaErrorMemoryAllocation);
    ok(cudaMalloc(&p, 5));
    ok(cudaMemsetAsync(p, 0, 5, NULL));
    fails(cudaDeviceSynchronize(), cudaErrorECCUncorrectable);
    static const char *const bad[] = {"cudaMalloc",
                                      "cudaMalloc:1",
                                      "cudaMalloc:x:cudaErrorUnknown",
                                      "cudaMalloc:0:cudaErrorUnknown",
                                      "cudaNone:1:cudaErrorUnknown",
                                      "cudaMalloc:1:cudaErrorNone",
                                      "cudaMalloc:1:cudaSuccess",
                                      "cudaMalloc:1:cudaErrorUnknown:soon"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(emu_fault_parse(bad[i]));
    fresh(0);
}

int main(int argc, char **argv)
{
    if (argc == 2)
        return strcmp(argv[1], "leak") ? count() : leak();
    if (argc == 4)
        export_memory(atoi(argv[2]), atoi(argv[3]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_reaches_another_by_peer_access_only),
        cmocka_unit_test(devices_without_peers),
        cmocka_unit_test(two_threads_drive_two_devices),
        cmocka_unit_test(one_thread_drives_two_devices),
        cmocka_unit_test(memory_of_another_process_is_one_memory),
        cmocka_unit_test(no_handle_is_believed),
        cmocka_unit_test(every_call_can_fail_and_says_so),
        cmocka_unit_test(work_can_fail_when_the_device_gets_there),
        cmocka_unit_test(faults_are_read_from_text),
        cmocka_unit_test(a_process_writes_its_counts_at_exit),
        cmocka_unit_test(a_wrong_environment_leaves_no_driver),
        cmocka_unit_test(what_a_reset_finds_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
