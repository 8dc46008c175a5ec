/* Captures and graphs of the emulated runtime: what they compute, and the rules of capturing. */
#include "runtime_test.h"

enum { N = 300 };
static const size_t bytes = N * sizeof(float);

struct setup {
    cudaStream_t s, side;
    cudaEvent_t fork, join;
    float *x, *y, *z, *host;
};

static struct setup set_up(uint64_t seed)
{
    struct setup t;
    fresh(seed);
    ok(cudaStreamCreateWithFlags(&t.s, cudaStreamNonBlocking));
    ok(cudaStreamCreateWithFlags(&t.side, cudaStreamNonBlocking));
    ok(cudaEventCreateWithFlags(&t.fork, cudaEventDisableTiming));
    ok(cudaEventCreateWithFlags(&t.join, cudaEventDisableTiming));
    ok(cudaMalloc((void **)&t.x, bytes));
    ok(cudaMalloc((void **)&t.y, bytes));
    ok(cudaMalloc((void **)&t.z, bytes));
    ok(cudaMallocHost((void **)&t.host, bytes));
    return t;
}

static void tear_down(struct setup *t)
{
    ok(cudaStreamDestroy(t->s));
    ok(cudaStreamDestroy(t->side));
    ok(cudaEventDestroy(t->fork));
    ok(cudaEventDestroy(t->join));
    ok(cudaFree(t->x));
    ok(cudaFree(t->y));
    ok(cudaFree(t->z));
    ok(cudaFreeHost(t->host));
}

/* x = host; y = a * x and, beside it, z = x; y += z; host = y */
static cudaGraph_t capture(struct setup *t, float a, enum cudaStreamCaptureMode mode)
{
    cudaGraph_t g;
    ok(cudaStreamBeginCapture(t->s, mode));
    ok(cudaMemcpyAsync(t->x, t->host, bytes, cudaMemcpyHostToDevice, t->s));
    ok(cudaEventRecord(t->fork, t->s));
    ok(cudaStreamWaitEvent(t->side, t->fork, 0));
    ok(cudaMemsetAsync(t->y, 0, bytes, t->s));
    ok(launch_add(t->s, t->y, t->x, a, N));
    ok(cudaMemcpyAsync(t->z, t->x, bytes, cudaMemcpyDeviceToDevice, t->side));
    ok(cudaEventRecord(t->join, t->side));
    ok(cudaStreamWaitEvent(t->s, t->join, 0));
    ok(launch_add(t->s, t->y, t->z, 1, N));
    ok(cudaMemcpyAsync(t->host, t->y, bytes, cudaMemcpyDeviceToHost, t->s));
    ok(cudaStreamEndCapture(t->s, &g));
    return g;
}

static void run_and_check(struct setup *t, cudaGraphExec_t x, float from, float want)
{
    for (int i = 0; i < N; i++)
        t->host[i] = from;
    ok(cudaGraphLaunch(x, t->s));
    ok(cudaStreamSynchronize(t->s));
    for (int i = 0; i < N; i++)
        assert_true(t->host[i] == want);
}

static void a_graph_does_what_was_captured_as_often_as_launched(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 30; seed++) {
        struct setup t = set_up(seed);
        cudaGraph_t g = capture(&t, 2, cudaStreamCaptureModeGlobal);
        cudaGraphExec_t x;
        size_t n = 0;
        ok(cudaGraphGetNodes(g, NULL, &n));
        assert_int_equal(n, 6);
        cudaGraphNode_t nodes[6];
        enum cudaGraphNodeType type;
        ok(cudaGraphGetNodes(g, nodes, &n));
        ok(cudaGraphNodeGetType(nodes[2], &type));
        assert_int_equal(type, cudaGraphNodeTypeKernel);
        ok(cudaGraphInstantiate(&x, g, 0));
        ok(cudaGraphDestroy(g));
        run_and_check(&t, x, 1, 3);
        run_and_check(&t, x, 5, 15);
        for (int i = 0; i < N; i++)
            t.host[i] = 1;
        ok(cudaGraphLaunch(x, t.s)); /* host = 3 */
        ok(cudaGraphLaunch(x, t.s)); /* 9 */
        ok(cudaGraphLaunch(x, t.s)); /* 27 */
        ok(cudaStreamSynchronize(t.s));
        assert_true(t.host[0] == 27);
        ok(cudaGraphExecDestroy(x));
        tear_down(&t);
        assert_no_report();
    }
    assert_int_equal(fresh(0), 0);
}

/* Launches of one graph follow each other, whatever their streams. */
static void launches_of_one_graph_do_not_overlap(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct setup t = set_up(seed);
        cudaGraph_t g = capture(&t, 2, cudaStreamCaptureModeGlobal);
        cudaGraphExec_t x;
        ok(cudaGraphInstantiate(&x, g, 0));
        ok(cudaGraphDestroy(g));
        for (int i = 0; i < N; i++)
            t.host[i] = 1;
        ok(cudaGraphLaunch(x, t.s));
        ok(cudaGraphLaunch(x, t.side));
        ok(cudaGraphLaunch(x, t.s));
        ok(cudaDeviceSynchronize());
        assert_true(t.host[N - 1] == 27);
        ok(cudaGraphExecDestroy(x));
        tear_down(&t);
        assert_no_report();
    }
}

static void an_update_changes_parameters_and_nothing_else(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup t = set_up(seed);
        cudaGraph_t g = capture(&t, 2, cudaStreamCaptureModeThreadLocal);
        cudaGraph_t h = capture(&t, 7, cudaStreamCaptureModeRelaxed), other;
        cudaGraphExec_t x;
        cudaGraphExecUpdateResultInfo info;
        ok(cudaGraphInstantiate(&x, g, 0));
        ok(cudaGraphUpload(x, t.s));
        run_and_check(&t, x, 1, 3);
        ok(cudaGraphExecUpdate(x, h, &info));
        run_and_check(&t, x, 1, 8);
        ok(cudaStreamBeginCapture(t.s, cudaStreamCaptureModeGlobal));
        ok(cudaMemsetAsync(t.x, 0, bytes, t.s));
        ok(cudaStreamEndCapture(t.s, &other));
        fails(cudaGraphExecUpdate(x, other, &info), cudaErrorGraphExecUpdateFailure);
        assert_int_equal(info.result, cudaGraphExecUpdateErrorTopologyChanged);
        run_and_check(&t, x, 1, 8);
        cudaGetLastError();
        ok(cudaGraphExecDestroy(x));
        ok(cudaGraphDestroy(g));
        ok(cudaGraphDestroy(h));
        ok(cudaGraphDestroy(other));
        fails(cudaGraphDestroy(other), cudaErrorInvalidValue);
        fails(cudaGraphLaunch(x, t.s), cudaErrorInvalidValue);
        tear_down(&t);
        assert_no_report();
    }
}

/* Nothing of a captured stream happens. */
static void capturing_runs_nothing(void **state)
{
    (void)state;
    struct setup t = set_up(1);
    for (int i = 0; i < N; i++)
        t.host[i] = 4;
    ok(cudaGraphDestroy(capture(&t, 2, cudaStreamCaptureModeGlobal)));
    ok(cudaDeviceSynchronize());
    assert_true(t.host[0] == 4);
    tear_down(&t);
}

/* ---- the rules ---- */

static enum cudaStreamCaptureStatus status_of(cudaStream_t s)
{
    enum cudaStreamCaptureStatus status;
    ok(cudaStreamIsCapturing(s, &status));
    return status;
}

/* What spoils a capture: the call fails, later work of the stream fails, and so does its end. */
static void check_spoilt(struct setup *t, cudaError_t got, cudaError_t want)
{
    cudaGraph_t g = (cudaGraph_t)(uintptr_t)t;
    fails(got, want);
    cudaGetLastError();
    assert_int_equal(status_of(t->s), cudaStreamCaptureStatusInvalidated);
    fails(cudaMemsetAsync(t->x, 0, bytes, t->s), cudaErrorStreamCaptureInvalidated);
    fails(cudaStreamEndCapture(t->s, &g), cudaErrorStreamCaptureInvalidated);
    assert_null(g);
    assert_int_equal(status_of(t->s), cudaStreamCaptureStatusNone);
    cudaGetLastError();
}

static void what_may_not_be_captured_spoils_the_capture(void **state)
{
    (void)state;
    struct setup t = set_up(0);
    const cudaError_t unsupported = cudaErrorStreamCaptureUnsupported;
    cudaStream_t blocking;
    float here[N];
    void *p;
    ok(cudaStreamCreate(&blocking));
    ok(cudaEventRecord(t.join, t.side));
    ok(cudaStreamSynchronize(t.side));
#define BEGIN(mode) ok(cudaStreamBeginCapture(t.s, cudaStreamCaptureMode##mode))
    BEGIN(Global);
    check_spoilt(&t, cudaMalloc(&p, 1), unsupported);
    BEGIN(ThreadLocal);
    check_spoilt(&t, cudaDeviceSynchronize(), unsupported);
    BEGIN(Relaxed);
    check_spoilt(&t, cudaStreamSynchronize(t.s), unsupported);
    BEGIN(Relaxed);
    check_spoilt(&t, cudaStreamQuery(t.s), unsupported);
    BEGIN(Global);
    check_spoilt(&t, cudaMemcpyAsync(t.x, here, bytes, cudaMemcpyHostToDevice, t.s), unsupported);
    BEGIN(Global);
    check_spoilt(&t, cudaStreamWaitEvent(t.s, t.join, 0), cudaErrorStreamCaptureIsolation);
    BEGIN(Relaxed);
    ok(cudaMalloc(&p, 1));
    ok(cudaFree(p));
    cudaGraph_t g;
    ok(cudaStreamEndCapture(t.s, &g));
    ok(cudaGraphDestroy(g));

    ok(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    fails(cudaMemsetAsync(t.x, 0, bytes, NULL), cudaErrorStreamCaptureImplicit);
    fails(cudaStreamEndCapture(blocking, &g), cudaErrorStreamCaptureInvalidated);

    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    ok(cudaThreadExchangeStreamCaptureMode(&mode));
    BEGIN(Global);
    ok(cudaMalloc(&p, 1));
    ok(cudaFree(p));
    ok(cudaStreamEndCapture(t.s, &g));
    ok(cudaGraphDestroy(g));
    ok(cudaThreadExchangeStreamCaptureMode(&mode));
    ok(cudaStreamDestroy(blocking));
    cudaGetLastError();
    tear_down(&t);
    assert_no_report();
}

static void forks_must_be_joined_and_captures_stay_apart(void **state)
{
    (void)state;
    struct setup t = set_up(0);
    cudaGraph_t g;
    BEGIN(Global);
    ok(cudaEventRecord(t.fork, t.s));
    ok(cudaStreamWaitEvent(t.side, t.fork, 0));
    assert_int_equal(status_of(t.side), cudaStreamCaptureStatusActive);
    ok(cudaMemsetAsync(t.x, 0, bytes, t.side));
    fails(cudaEventSynchronize(t.fork), cudaErrorStreamCaptureUnsupported);
    fails(cudaStreamEndCapture(t.s, &g), cudaErrorStreamCaptureInvalidated);

    BEGIN(Relaxed);
    ok(cudaEventRecord(t.fork, t.s));
    ok(cudaStreamWaitEvent(t.side, t.fork, 0));
    ok(cudaMemsetAsync(t.x, 0, bytes, t.side));
    fails(cudaEventQuery(t.fork), cudaErrorCapturedEvent);
    fails(cudaStreamEndCapture(t.s, &g), cudaErrorStreamCaptureUnjoined);
    assert_int_equal(status_of(t.side), cudaStreamCaptureStatusNone);
    fails(cudaStreamWaitEvent(t.s, t.fork, 0), cudaErrorCapturedEvent);

    BEGIN(Relaxed);
    ok(cudaEventRecord(t.fork, t.s));
    ok(cudaStreamWaitEvent(t.side, t.fork, 0));
    fails(cudaStreamEndCapture(t.side, &g), cudaErrorStreamCaptureUnmatched);
    fails(cudaStreamEndCapture(t.s, &g), cudaErrorStreamCaptureInvalidated);

    BEGIN(Relaxed);
    ok(cudaEventRecord(t.fork, t.s));
    ok(cudaStreamBeginCapture(t.side, cudaStreamCaptureModeRelaxed));
    fails(cudaStreamWaitEvent(t.side, t.fork, 0), cudaErrorStreamCaptureMerge);
    fails(cudaStreamEndCapture(t.side, &g), cudaErrorStreamCaptureInvalidated);
    fails(cudaStreamEndCapture(t.s, &g), cudaErrorStreamCaptureInvalidated);

    fails(cudaStreamEndCapture(t.s, &g), cudaErrorIllegalState);
    fails(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal),
          cudaErrorStreamCaptureUnsupported);
    fails(cudaStreamBeginCapture(t.s, (enum cudaStreamCaptureMode)5), cudaErrorInvalidValue);
    BEGIN(Relaxed);
    fails(cudaStreamBeginCapture(t.s, cudaStreamCaptureModeRelaxed), cudaErrorIllegalState);
    ok(cudaStreamEndCapture(t.s, &g));
    ok(cudaGraphDestroy(g));
    cudaGetLastError();
    ok(cudaEventRecord(t.fork, t.s));
    ok(cudaStreamSynchronize(t.s));
    tear_down(&t);
    assert_no_report();
}

/* Two strands of one graph that write one range. */
static void a_missing_join_inside_a_graph_is_reported(void **state)
{
    (void)state;
    EACH_SEED(seed)
    {
        struct setup t = set_up(seed);
        cudaGraph_t g;
        cudaGraphExec_t x;
        BEGIN(Global);
        ok(cudaEventRecord(t.fork, t.s));
        ok(cudaStreamWaitEvent(t.side, t.fork, 0));
        ok(cudaMemsetAsync(t.x, 0, bytes, t.s));
        ok(cudaMemsetAsync(t.x, 1, bytes, t.side));
        ok(cudaEventRecord(t.join, t.side));
        ok(cudaStreamWaitEvent(t.s, t.join, 0));
        ok(cudaStreamEndCapture(t.s, &g));
        ok(cudaGraphInstantiate(&x, g, 0));
        ok(cudaGraphDestroy(g));
        ok(cudaGraphLaunch(x, t.s));
        ok(cudaStreamSynchronize(t.s));
        assert_reported("nothing orders them");
        ok(cudaGraphLaunch(x, t.s));
        fails(cudaGraphExecDestroy(x), cudaSuccess);
        ok(cudaStreamSynchronize(t.s));
        assert_int_equal(emu_report_count(), 2);
        emu_reports_clear();
        tear_down(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_graph_does_what_was_captured_as_often_as_launched),
        cmocka_unit_test(launches_of_one_graph_do_not_overlap),
        cmocka_unit_test(an_update_changes_parameters_and_nothing_else),
        cmocka_unit_test(capturing_runs_nothing),
        cmocka_unit_test(what_may_not_be_captured_spoils_the_capture),
        cmocka_unit_test(forks_must_be_joined_and_captures_stay_apart),
        cmocka_unit_test(a_missing_join_inside_a_graph_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
