/* The emulated runtime with kernels whose accesses are watched: launches without an order. */
#include "runtime_test.h"

enum { N = 256 };
static const size_t bytes = N * sizeof(float);

enum order { NOTHING, EVENT };

/* x and y on one device, two streams. The first kernel writes the first half of x, the second reads
 * n floats from `from` on. */
static void check_pair(int from, int n, enum order order, const char *report)
{
    EACH_SEED(seed)
    {
        cudaStream_t s, t;
        cudaEvent_t e;
        float *x, *y;
        ok(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
        ok(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
        ok(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        ok(cudaMalloc((void **)&x, bytes));
        ok(cudaMalloc((void **)&y, bytes));
        ok(cudaMemset(x, 0, bytes));
        ok(cudaMemset(y, 0, bytes));
        ok(cudaDeviceSynchronize());
        ok(launch_add(s, x, y, 1, N / 2));
        if (order == EVENT) {
            ok(cudaEventRecord(e, s));
            ok(cudaStreamWaitEvent(t, e, 0));
        }
        ok(launch_add(t, y + N / 2, x + from, 1, n));
        ok(cudaDeviceSynchronize());
        if (report)
            assert_reported(report);
        assert_no_report();
        ok(cudaStreamDestroy(s));
        ok(cudaStreamDestroy(t));
        ok(cudaEventDestroy(e));
        ok(cudaFree(x));
        ok(cudaFree(y));
    }
}

static void kernels_without_an_order_are_reported(void **state)
{
    (void)state;
    check_pair(N / 2 - 1, 2, NOTHING, "runtime_kernels.cu:"); /* where each was launched */
    check_pair(N / 2 - 1, 2, EVENT, NULL);
    check_pair(N / 2, N / 2, NOTHING, NULL); /* the other half */
}

/* A copy of what a kernel writes, from another stream. */
static void a_copy_and_a_kernel_too(void **state)
{
    (void)state;
    for (int ordered = 0; ordered < 2; ordered++)
        EACH_SEED(seed)
        {
            cudaStream_t s;
            float *x, *host;
            ok(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
            ok(cudaMalloc((void **)&x, bytes));
            ok(cudaMallocHost((void **)&host, bytes));
            ok(cudaMemset(x, 0, bytes));
            ok(cudaDeviceSynchronize());
            ok(launch_add(NULL, x, x, 1, N));
            ok(cudaMemcpyAsync(host, x, bytes, cudaMemcpyDeviceToHost, ordered ? NULL : s));
            ok(cudaDeviceSynchronize());
            if (!ordered)
                assert_reported("nothing orders them");
            assert_no_report();
            ok(cudaStreamDestroy(s));
            ok(cudaFree(x));
            ok(cudaFreeHost(host));
        }
}

/* Kernels of two devices that order themselves by flags are right. */
static void flags_between_devices_are_no_race(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        two_devices_meet();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_without_an_order_are_reported),
        cmocka_unit_test(a_copy_and_a_kernel_too),
        cmocka_unit_test(flags_between_devices_are_no_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
