/* What the emulated runtime reports that a device would not: each mistake is reported once,
 * whatever the order it happened to run in, and the same without the mistake is not. */
#include "runtime_test.h"

#include <stdlib.h>

enum { N = 256 };
static const size_t bytes = N * sizeof(float);

struct setup {
    cudaStream_t s, t;
    cudaEvent_t e;
    float *x, *y, *host;
};

static struct setup set_up(void)
{
    struct setup u;
    ok(cudaStreamCreateWithFlags(&u.s, cudaStreamNonBlocking));
    ok(cudaStreamCreateWithFlags(&u.t, cudaStreamNonBlocking));
    ok(cudaEventCreateWithFlags(&u.e, cudaEventDisableTiming));
    ok(cudaMalloc((void **)&u.x, bytes));
    ok(cudaMalloc((void **)&u.y, bytes));
    ok(cudaMallocHost((void **)&u.host, bytes));
    return u;
}

static void tear_down(struct setup *u)
{
    ok(cudaDeviceSynchronize());
    ok(cudaStreamDestroy(u->s));
    ok(cudaStreamDestroy(u->t));
    ok(cudaEventDestroy(u->e));
    ok(cudaFree(u->x));
    ok(cudaFree(u->y));
    ok(cudaFreeHost(u->host));
    assert_no_report();
}

enum order { NOTHING, EVENT, HOST };

/* Two operations of two streams on x; what lies between them. */
static void check_pair(bool second_writes, size_t from, size_t n, enum order order,
                       const char *report)
{
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        ok(cudaMemsetAsync(u.x, 0, bytes / 2, u.s));
        if (order == EVENT) {
            ok(cudaEventRecord(u.e, u.s));
            ok(cudaStreamWaitEvent(u.t, u.e, 0));
        }
        if (order == HOST)
            ok(cudaStreamSynchronize(u.s));
        if (second_writes)
            ok(cudaMemsetAsync((char *)u.x + from, 1, n, u.t));
        else
            ok(cudaMemcpyAsync(u.host, (char *)u.x + from, n, cudaMemcpyDeviceToHost, u.t));
        ok(cudaDeviceSynchronize());
        if (report)
            assert_reported(report);
        tear_down(&u);
    }
}

static void operations_without_an_order_are_reported(void **state)
{
    (void)state;
    for (int writes = 0; writes < 2; writes++) {
        check_pair(writes, 0, bytes, NOTHING, "nothing orders them");
        check_pair(writes, bytes / 2 - 1, 1, NOTHING, "nothing orders them");
        check_pair(writes, bytes / 2, bytes / 2, NOTHING, NULL); /* another half */
        check_pair(writes, 0, bytes, EVENT, NULL);
        check_pair(writes, 0, bytes, HOST, NULL);
    }
}

/* Columns of one matrix by two streams do not meet, though their ranges do. */
static void rows_are_compared_row_by_row(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        char *x = (char *)u.x;
        ok(cudaMemcpy2DAsync(x, 64, u.host, 32, 32, 8, cudaMemcpyHostToDevice, u.s));
        ok(cudaMemcpy2DAsync(x + 32, 64, u.host, 32, 32, 8, cudaMemcpyHostToDevice, u.t));
        ok(cudaDeviceSynchronize());
        assert_no_report();
        ok(cudaMemcpy2DAsync(x, 64, u.host, 32, 32, 8, cudaMemcpyHostToDevice, u.s));
        ok(cudaMemcpy2DAsync(x + 31, 64, u.host, 32, 32, 8, cudaMemcpyHostToDevice, u.t));
        ok(cudaDeviceSynchronize());
        assert_reported("nothing orders them");
        tear_down(&u);
    }
}

static void host_buffers_are_watched_too(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        ok(cudaMemsetAsync(u.x, 0, bytes, u.s));
        ok(cudaMemsetAsync(u.y, 0, bytes, u.t));
        ok(cudaMemcpyAsync(u.host, u.x, bytes, cudaMemcpyDeviceToHost, u.s));
        ok(cudaMemcpyAsync(u.host, u.y, bytes, cudaMemcpyDeviceToHost, u.t));
        ok(cudaDeviceSynchronize());
        assert_reported("pinned memory");
        tear_down(&u);
    }
}

static void a_source_the_host_changes_too_early_is_reported(void **state)
{
    (void)state;
    int found = 0;
    for (uint64_t seed = 2; seed < 42; seed += 2) {
        fresh(seed);
        struct setup u = set_up();
        memset(u.host, 0, bytes);
        ok(cudaMemcpyAsync(u.x, u.host, bytes, cudaMemcpyHostToDevice, u.s));
        u.host[7] = 5;
        ok(cudaStreamSynchronize(u.s));
        found += emu_report_count() == 1 && strstr(emu_report_text(0), "has written to its source");
        emu_reports_clear();
        tear_down(&u);
    }
    assert_in_range(found, 3, 20); /* a slow machine lets EMU_LATE_MS pass */
}

static void freeing_what_is_in_use_is_reported(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        float *p;
        void *q;
        ok(cudaMalloc((void **)&p, bytes));
        ok(cudaMemsetAsync(p, 0, bytes, u.s));
        ok(cudaFree(p));
        assert_reported("cudaFree at ");
        fails(cudaFree(p), cudaErrorInvalidValue);
        assert_reported("freed before");
        cudaGetLastError();

        ok(cudaMalloc((void **)&p, bytes));
        ok(cudaMemsetAsync(u.x, 0, bytes, u.s));
        ok(cudaMemsetAsync(p, 0, bytes, u.s));
        ok(launch_add(u.s, u.x, p, 1, N)); /* known by its arguments */
        ok(cudaFree(p));
        assert_reported("was not waited for");

        ok(cudaMallocHost(&q, bytes));
        ok(cudaMemcpyAsync(q, u.x, bytes, cudaMemcpyDeviceToHost, u.s));
        ok(cudaFreeHost(q));
        assert_reported("cudaFreeHost at ");

        q = malloc(4096);
        ok(cudaHostRegister(q, 4096, cudaHostRegisterDefault));
        fails(cudaHostRegister((char *)q + 5, 10, 0), cudaErrorHostMemoryAlreadyRegistered);
        ok(cudaMemcpyAsync(q, u.x, bytes, cudaMemcpyDeviceToHost, u.s));
        ok(cudaHostUnregister(q));
        assert_reported("cudaHostUnregister at ");
        free(q);
        tear_down(&u);
    }
}

static void freed_memory_is_known_where_it_is_used(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        float *p;
        ok(cudaMalloc((void **)&p, bytes));
        ok(cudaFree(p));
        fails(cudaMemsetAsync(p + 1, 0, 4, u.s), cudaErrorInvalidValue);
        assert_reported("test_runtime_checks.c");
        cudaGetLastError();
        cudaError_t error = launch_add(u.s, u.x, p, 1, N);
        assert_true(error == cudaSuccess || error == cudaErrorIllegalAddress);
        fails(cudaStreamSynchronize(u.s), cudaErrorIllegalAddress);
        assert_reported("add_to");
        ok(cudaDeviceReset());
        cudaGetLastError();
    }
}

static void memory_written_past_its_end_is_known_at_its_free(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        float *p;
        ok(cudaMalloc((void **)&p, 5 * sizeof *p));
        ok(cudaMemsetAsync(p, 0, 5 * sizeof *p, u.s));
        ok(cudaMemsetAsync(u.x, 0x3f, bytes, u.s));
        ok(launch_add(u.s, p, u.x, 1, 6));
        ok(cudaStreamSynchronize(u.s));
        ok(cudaFree(p));
        assert_reported("written past the end of 20 bytes of device memory");
        tear_down(&u);
    }
}

/* Beside its memory, a kernel hits a page nobody may touch: an illegal address of that launch,
 * which the process outlives. */
static void a_kernel_that_leaves_its_memory_is_stopped(void **state)
{
    (void)state;
    if (!emu_traps_faults())
        skip();
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        ok(cudaMemsetAsync(u.x, 0, bytes, u.s));
        ok(cudaMemsetAsync(u.y, 0, bytes, u.s));
        ok(cudaStreamSynchronize(u.s));
        cudaError_t error = launch_add(u.s, u.x, u.y, 1, N + 2000);
        assert_true(error == cudaSuccess || error == cudaErrorIllegalAddress);
        fails(cudaStreamSynchronize(u.s), cudaErrorIllegalAddress);
        assert_reported("runtime_kernels.cu");
        ok(cudaDeviceReset());
        cudaGetLastError();
    }
}

static void destroying_what_is_in_use_is_reported(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup u = set_up();
        cudaStream_t s;
        cudaEvent_t e;
        ok(cudaStreamCreate(&s));
        ok(cudaEventCreate(&e));
        ok(cudaMemsetAsync(u.x, 0, bytes, s));
        ok(cudaEventRecord(e, s));
        ok(cudaEventDestroy(e));
        assert_reported("cudaEventDestroy at ");
        ok(cudaStreamDestroy(s));
        assert_reported("cudaStreamDestroy at ");
        tear_down(&u);
    }
}

static int n_leaks;
static char leaks[8][200];
static void note_leak(const char *text)
{
    if (n_leaks < 8)
        snprintf(leaks[n_leaks], sizeof leaks[0], "%s", text);
    n_leaks++;
}

static void what_is_left_at_the_end_is_named(void **state)
{
    (void)state;
    fresh(3);
    struct setup u = set_up();
    cudaGraph_t g;
    cudaGraphExec_t x;
    ok(cudaStreamBeginCapture(u.s, cudaStreamCaptureModeGlobal));
    ok(cudaMemsetAsync(u.x, 0, bytes, u.s));
    ok(cudaStreamEndCapture(u.s, &g));
    ok(cudaGraphInstantiate(&x, g, 0));
    ok(cudaFree(u.y));
    n_leaks = 0;
    struct emu_config c = test_config(0);
    assert_int_equal(emu_restart(&c, note_leak), 7);
    assert_int_equal(n_leaks, 7);
    int named = 0;
    for (int i = 0; i < n_leaks; i++)
        named += strstr(leaks[i], "test_runtime_checks.c:") != NULL;
    assert_int_equal(named, 7);
    assert_int_equal(emu_restart(&c, note_leak), 0);
}

/* Without keep_reports, a report makes the device unusable: nobody passes over it. */
static void a_report_makes_the_device_bad(void **state)
{
    (void)state;
    struct emu_config c = test_config(0);
    c.keep_reports = false;
    emu_restart(&c, NULL);
    struct setup u = set_up();
    ok(cudaMemsetAsync(u.x, 0, bytes, u.s));
    ok(cudaEventRecord(u.e, u.s));
    print_message("(a report on stderr is wanted here)\n");
    ok(cudaEventDestroy(u.e));
    fails(cudaStreamSynchronize(u.s), cudaErrorUnknown);
    emu_restart(NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_without_an_order_are_reported),
        cmocka_unit_test(rows_are_compared_row_by_row),
        cmocka_unit_test(host_buffers_are_watched_too),
        cmocka_unit_test(a_source_the_host_changes_too_early_is_reported),
        cmocka_unit_test(freeing_what_is_in_use_is_reported),
        cmocka_unit_test(freed_memory_is_known_where_it_is_used),
        cmocka_unit_test(memory_written_past_its_end_is_known_at_its_free),
        cmocka_unit_test(a_kernel_that_leaves_its_memory_is_stopped),
        cmocka_unit_test(destroying_what_is_in_use_is_reported),
        cmocka_unit_test(what_is_left_at_the_end_is_named),
        cmocka_unit_test(a_report_makes_the_device_bad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
