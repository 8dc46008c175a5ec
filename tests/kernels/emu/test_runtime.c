/* The emulated CUDA runtime: devices, memory, copies, streams, events, launches and their errors,
 * under every kind of seed. */
#include "runtime_test.h"

#include <stdlib.h>

#include "cuda/count.h"

enum { N = 1000 };
static const size_t bytes = N * sizeof(float);

struct buffers {
    float *x, *y, *host;
    cudaStream_t s;
};

static struct buffers open_buffers(void)
{
    struct buffers b;
    ok(cudaMalloc((void **)&b.x, bytes));
    ok(cudaMalloc((void **)&b.y, bytes));
    ok(cudaMallocHost((void **)&b.host, bytes));
    ok(cudaStreamCreateWithFlags(&b.s, cudaStreamNonBlocking));
    return b;
}

static void close_buffers(struct buffers *b)
{
    ok(cudaFree(b->x));
    ok(cudaFree(b->y));
    ok(cudaFreeHost(b->host));
    ok(cudaStreamDestroy(b->s));
}

/* ---- what works ---- */

static void a_stream_runs_its_work_in_order(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers();
        for (int i = 0; i < N; i++)
            b.host[i] = (float)i;
        ok(cudaMemcpyAsync(b.x, b.host, bytes, cudaMemcpyHostToDevice, b.s));
        ok(cudaMemsetAsync(b.y, 0, bytes, b.s));
        for (int k = 0; k < 9; k++)
            ok(launch_add(b.s, b.y, b.x, 2, N));
        ok(cudaMemcpyAsync(b.host, b.y, bytes, cudaMemcpyDeviceToHost, b.s));
        ok(cudaStreamSynchronize(b.s));
        for (int i = 0; i < N; i++)
            assert_true(b.host[i] == 18 * (float)i);
        close_buffers(&b);
        assert_no_report();
    }
    assert_int_equal(fresh(0), 0);
}

/* What late seeds are for: a result is not there before it was waited for. */
static void a_result_is_late_under_even_seeds(void **state)
{
    (void)state;
    int late = 0;
    for (uint64_t seed = 2; seed < 42; seed += 2) {
        fresh(seed);
        struct buffers b = open_buffers();
        b.host[0] = 0;
        ok(cudaMemsetAsync(b.x, 0, bytes, b.s));
        ok(cudaMemcpyAsync(b.host, b.x, bytes, cudaMemcpyDeviceToHost, b.s));
        late += b.host[0] != 0; /* NaN */
        ok(cudaStreamSynchronize(b.s));
        assert_true(b.host[0] == 0);
        close_buffers(&b);
    }
    assert_in_range(late, 3, 20); /* a slow machine lets EMU_LATE_MS pass */
}

static void an_event_orders_two_streams(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers(), c = open_buffers();
        cudaEvent_t e;
        ok(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        ok(cudaMemsetAsync(b.x, 0, bytes, b.s));
        ok(cudaEventRecord(e, b.s));
        ok(cudaStreamWaitEvent(c.s, e, 0));
        ok(cudaMemcpyAsync(c.host, b.x, bytes, cudaMemcpyDeviceToHost, c.s));
        ok(cudaStreamSynchronize(c.s));
        assert_true(c.host[N - 1] == 0);
        ok(cudaEventDestroy(e));
        close_buffers(&b);
        close_buffers(&c);
        assert_no_report();
    }
}

static void the_legacy_stream_waits_for_others_and_they_for_it(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        float *p, out[2] = {5, 5}, one = 1;
        cudaStream_t s, t;
        fresh(seed);
        ok(cudaMalloc((void **)&p, 2 * sizeof *p));
        ok(cudaStreamCreate(&s));
        ok(cudaStreamCreate(&t));
        ok(cudaMemsetAsync(p, 1, 2 * sizeof *p, s));
        ok(cudaMemset(p, 0, 2 * sizeof *p)); /* after s */
        ok(cudaMemcpy(p, &one, sizeof one, cudaMemcpyHostToDevice));
        ok(launch_add(t, p, p, 1, 2)); /* after the legacy stream */
        ok(cudaMemcpy(out, p, sizeof out, cudaMemcpyDeviceToHost));
        assert_true(out[0] == 2 && out[1] == 0);
        ok(cudaStreamDestroy(s));
        ok(cudaStreamDestroy(t));
        ok(cudaFree(p));
        assert_no_report();
    }
}

/* Pageable memory: the call has taken a source with it, and has waited for a destination. */
static void pageable_memory_is_the_callers_again_after_the_call(void **state)
{
    (void)state;
    static float here[N], big[40000];
    for (uint64_t seed = 0; seed < 20; seed++) {
        fresh(seed);
        struct buffers b = open_buffers();
        float *large;
        ok(cudaMalloc((void **)&large, sizeof big));
        for (int i = 0; i < N; i++)
            here[i] = big[i] = (float)i;
        ok(cudaMemcpyAsync(large, big, sizeof big, cudaMemcpyHostToDevice, b.s));
        ok(cudaMemcpyAsync(b.x, here, bytes, cudaMemcpyHostToDevice, b.s));
        memset(here, 0, bytes);
        memset(big, 0, sizeof big);
        ok(cudaMemcpyAsync(here, b.x, bytes, cudaMemcpyDeviceToHost, b.s));
        assert_true(here[N - 1] == N - 1);
        ok(cudaMemcpyAsync(here, large, bytes, cudaMemcpyDeviceToHost, b.s));
        assert_true(here[N - 1] == N - 1);
        ok(cudaFree(large));
        close_buffers(&b);
        assert_no_report();
    }
}

static void queries_come_true(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers();
        cudaEvent_t e, f;
        ok(cudaEventCreate(&e));
        ok(cudaEventCreate(&f));
        ok(cudaEventQuery(e)); /* never recorded */
        ok(cudaEventRecord(e, b.s));
        ok(cudaMemsetAsync(b.x, 0, bytes, b.s));
        ok(cudaEventRecord(f, b.s));
        cudaError_t error;
        while ((error = cudaEventQuery(f)) == cudaErrorNotReady)
            fails(cudaGetLastError(), cudaErrorNotReady);
        ok(error);
        while ((error = cudaStreamQuery(b.s)) == cudaErrorNotReady)
            fails(cudaGetLastError(), cudaErrorNotReady);
        ok(error);
        float ms = -1;
        ok(cudaEventElapsedTime(&ms, e, f));
        assert_true(ms >= 0);
        ok(cudaEventDestroy(e));
        ok(cudaEventDestroy(f));
        close_buffers(&b);
        assert_no_report();
    }
}

static void set_flag(void *p)
{
    int n;
    fails(cudaGetDevice(&n), cudaSuccess);
    fails(cudaStreamSynchronize(NULL), cudaErrorNotPermitted);
    *(int *)p = 1;
}

static void host_functions_run_in_order(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers();
        int flag = 0;
        ok(cudaLaunchHostFunc(b.s, set_flag, &flag));
        ok(cudaStreamSynchronize(b.s));
        assert_int_equal(flag, 1);
        close_buffers(&b);
    }
}

static void rows_of_a_pitch_are_copied(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers();
        for (int i = 0; i < N; i++)
            b.host[i] = (float)i;
        ok(cudaMemsetAsync(b.x, 0, bytes, b.s));
        ok(cudaMemcpy2DAsync(b.x + 1, 40, b.host, 20, 12, 3, cudaMemcpyHostToDevice, b.s));
        ok(cudaMemcpyAsync(b.host, b.x, bytes, cudaMemcpyDeviceToHost, b.s));
        ok(cudaStreamSynchronize(b.s));
        static const float want[22] = {0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0,
                                       5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 10};
        assert_memory_equal(b.host, want, sizeof want);
        close_buffers(&b);
        assert_no_report();
    }
}

static void launches_are_counted_by_kernel(void **state)
{
    (void)state;
    static struct dev_counts before, after, tally;
    fresh(0);
    struct buffers b = open_buffers();
    ok(cudaMemset(b.x, 0, bytes));
    ok(cudaMemset(b.y, 0, bytes));
    ok(cudaDeviceSynchronize());
    ok(launch_add(b.s, b.y, b.x, 1, N));
    dev_count_read(&before);
    ok(launch_add(b.s, b.y, b.x, 1, N));
    dev_count_into(&tally);
    ok(launch_add(b.s, b.y, b.x, 1, N));
    dev_count_into(NULL);
    dev_count_read(&after);
    assert_string_equal(after.of[0].name, "add_to");
    assert_int_equal(after.of[0].n, before.of[0].n + 1);
    assert_int_equal(tally.of[0].n, 1);
    dev_count_add(&tally);
    dev_count_add(&tally);
    dev_count_read(&after);
    assert_int_equal(after.of[0].n, before.of[0].n + 3);
    ok(cudaStreamSynchronize(b.s));
    close_buffers(&b);
}

/* ---- errors ---- */

static void devices_that_are_not_there(void **state)
{
    (void)state;
    struct emu_config c = test_config(0);
    int n = 77;
    c.n_devices = 0;
    emu_restart(&c, NULL);
    fails(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    void *p;
    fails(cudaMalloc(&p, 1), cudaErrorNoDevice);
    c.no_driver = true;
    emu_restart(&c, NULL);
    fails(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
    assert_int_equal(n, 77); /* untouched, as by the real one */
    fails(cudaSetDevice(0), cudaErrorInsufficientDriver);
    fresh(0);
    ok(cudaGetDeviceCount(&n));
    assert_int_equal(n, 2);
    fails(cudaSetDevice(2), cudaErrorInvalidDevice);
    fails(cudaSetDevice(-1), cudaErrorInvalidDevice);
    struct cudaDeviceProp prop;
    ok(cudaGetDeviceProperties(&prop, 1));
    int v = 0;
    ok(cudaDeviceGetAttribute(&v, cudaDevAttrMultiProcessorCount, 1));
    assert_int_equal(v, prop.multiProcessorCount);
    assert_int_equal(prop.totalGlobalMem, 1 << 20);
    fails(cudaDeviceGetAttribute(&v, (enum cudaDeviceAttr)9999, 1), cudaErrorInvalidValue);
}

static void memory_runs_out(void **state)
{
    (void)state;
    fresh(0);
    void *p, *q;
    size_t n_free, total;
    ok(cudaMalloc(&p, (1 << 20) - 256));
    ok(cudaMemGetInfo(&n_free, &total));
    assert_int_equal(n_free, 256);
    fails(cudaMalloc(&q, 257), cudaErrorMemoryAllocation);
    fails(cudaMalloc(&q, SIZE_MAX - 5), cudaErrorMemoryAllocation);
    fails(cudaGetLastError(), cudaErrorMemoryAllocation);
    ok(cudaGetLastError());
    ok(cudaMalloc(&q, 256));
    ok(cudaFree(p));
    ok(cudaFree(q));
    ok(cudaMemGetInfo(&n_free, &total));
    assert_int_equal(n_free, total);
    ok(cudaMalloc(&p, 0));
    assert_null(p);
    ok(cudaFree(NULL));
}

static void bad_arguments_are_refused(void **state)
{
    (void)state;
    fresh(0);
    struct buffers b = open_buffers();
    float here[4];
    cudaStream_t no = (cudaStream_t)(uintptr_t)&b;
    fails(cudaMemcpyAsync(b.x, here, bytes, cudaMemcpyHostToDevice, no),
          cudaErrorInvalidResourceHandle);
    fails(cudaMemcpyAsync(b.x, b.host, bytes + 1, cudaMemcpyHostToDevice, b.s),
          cudaErrorInvalidValue);
    fails(cudaMemcpyAsync(b.x, b.host, bytes, cudaMemcpyDeviceToHost, b.s), cudaErrorInvalidValue);
    fails(cudaMemcpyAsync(b.x, b.host, bytes, (enum cudaMemcpyKind)7, b.s), cudaErrorInvalidValue);
    fails(cudaMemcpy2DAsync(b.x, 8, b.y, 8, 9, 1, cudaMemcpyDefault, b.s),
          cudaErrorInvalidPitchValue);
    fails(cudaMemset(here, 0, 4), cudaErrorInvalidValue);
    fails(cudaFree(here), cudaErrorInvalidValue);
    fails(cudaFree(b.x + 1), cudaErrorInvalidValue);
    fails(cudaFree(b.host), cudaErrorInvalidValue);
    fails(cudaFreeHost(b.x), cudaErrorInvalidValue);
    fails(cudaMalloc(NULL, 5), cudaErrorInvalidValue);
    fails(cudaStreamCreateWithFlags(&no, 2), cudaErrorInvalidValue);
    fails(cudaStreamSynchronize(no), cudaErrorInvalidResourceHandle);
    fails(cudaStreamDestroy(NULL), cudaErrorInvalidResourceHandle);
    fails(cudaEventRecord((cudaEvent_t)(uintptr_t)here, b.s), cudaErrorInvalidResourceHandle);
    fails(cudaHostUnregister(here), cudaErrorHostMemoryNotRegistered);
    cudaGetLastError();
    fails(launch_big(b.s, (int *)b.x, 2048, 0), cudaErrorInvalidConfiguration);
    fails(launch_big(b.s, (int *)b.x, 0, 0), cudaErrorInvalidConfiguration);
    fails(launch_big(b.s, (int *)b.x, 32, (48 << 10) + 1), cudaErrorInvalidValue);
    fails(allow_shared((99 << 10) + 1), cudaErrorInvalidValue);
    cudaGetLastError();
    ok(cudaSetDevice(1));
    fails(launch_add(b.s, b.x, b.y, 1, 1), cudaErrorInvalidResourceHandle);
    ok(cudaSetDevice(0));
    close_buffers(&b);
    fails(cudaStreamSynchronize(b.s), cudaErrorInvalidResourceHandle);
    assert_no_report();
}

/* As on a device: a launch answers with the thread's last error, whoever made it. */
static void a_launch_shows_an_error_nobody_took(void **state)
{
    (void)state;
    fresh(0);
    struct buffers b = open_buffers();
    ok(cudaMemset(b.x, 0, bytes));
    ok(cudaMemset(b.y, 0, bytes));
    ok(cudaDeviceSynchronize());
    fails(cudaSetDevice(9), cudaErrorInvalidDevice);
    fails(launch_add(b.s, b.x, b.y, 1, 1), cudaErrorInvalidDevice);
    ok(launch_add(b.s, b.x, b.y, 1, 1));
    ok(cudaStreamSynchronize(b.s));
    close_buffers(&b);
}

static void a_broken_kernel_makes_the_device_bad_until_its_reset(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct buffers b = open_buffers();
        cudaError_t error = launch_diverge(b.s, (int *)b.x);
        assert_true(error == cudaSuccess || error == cudaErrorLaunchFailure);
        fails(cudaStreamSynchronize(b.s), cudaErrorLaunchFailure);
        fails(cudaGetLastError(), cudaErrorLaunchFailure);
        fails(cudaGetLastError(), cudaErrorLaunchFailure); /* sticky */
        fails(cudaMalloc((void **)&b.y, 1), cudaErrorLaunchFailure);
        fails(cudaFree(b.x), cudaErrorLaunchFailure);
        fails(launch_add(b.s, b.x, b.y, 1, 1), cudaErrorLaunchFailure);
        ok(cudaSetDevice(1)); /* another is well */
        ok(cudaDeviceSynchronize());
        fails(cudaSetDevice(0), cudaErrorLaunchFailure);
        ok(cudaDeviceReset());
        cudaGetLastError();
        ok(cudaMalloc((void **)&b.x, bytes));
        ok(cudaFree(b.x));
        assert_reported("diverge");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_runs_its_work_in_order),
        cmocka_unit_test(a_result_is_late_under_even_seeds),
        cmocka_unit_test(an_event_orders_two_streams),
        cmocka_unit_test(the_legacy_stream_waits_for_others_and_they_for_it),
        cmocka_unit_test(pageable_memory_is_the_callers_again_after_the_call),
        cmocka_unit_test(queries_come_true),
        cmocka_unit_test(host_functions_run_in_order),
        cmocka_unit_test(rows_of_a_pitch_are_copied),
        cmocka_unit_test(launches_are_counted_by_kernel),
        cmocka_unit_test(devices_that_are_not_there),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(a_launch_shows_an_error_nobody_took),
        cmocka_unit_test(a_broken_kernel_makes_the_device_bad_until_its_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
