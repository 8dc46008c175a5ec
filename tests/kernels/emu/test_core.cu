/* The machine that runs blocks: indices, barriers, shared memory, atomics, and its rules.
 * Everything holds under every seed, number of OS threads and order of blocks. */
#include "orders.h"

#include "emu/asan.h"

#include <vector>

#define FILE_NAME "test_core.cu"

/* ---- where a thread is ---- */

__global__ void write_indices(unsigned *out)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned n = blockDim.x * blockDim.y * blockDim.z;
    out[block * n + thread] += 1 + block * n + thread;
}

static void every_thread_runs_once_and_knows_where_it_is(void **state)
{
    (void)state;
    dim3 grid(3, 2, 4), block(5, 3, 7);
    size_t n = 3 * 2 * 4 * 5 * 3 * 7;
    std::vector<unsigned> out(n);
    assert_ran(KLAUNCH(write_indices, grid, block, 0, nullptr, out.data()));
    for (size_t i = 0; i < n; i++)
        assert_int_equal(out[i], 1 + i);
}

struct arguments {
    char a;
    double b;
    int c[5];
};
__global__ void copy_arguments(arguments by_value, char c, const int *p, arguments *out, int *sum)
{
    if (threadIdx.x == 0) {
        *out = by_value;
        *sum = c + *p;
    }
}

static void arguments_come_by_value(void **state)
{
    (void)state;
    arguments in = {'x', 0.1, {1, 2, 3, 4, 5}}, out = {};
    int n = 30, sum = 0;
    assert_ran(KLAUNCH(copy_arguments, 1, 32, 0, nullptr, in, 'a', &n, &out, &sum));
    assert_int_equal(out.a, 'x');
    assert_true(out.b == 0.1 && out.c[4] == 5);
    assert_int_equal(sum, 'a' + 30);
}

/* ---- barriers ---- */

/* Each thread takes its right neighbour's value, round after round. */
__global__ void pass_round(int *out, int rounds)
{
    SHARED_ARRAY(int, now, 1024);
    unsigned i = threadIdx.x, n = blockDim.x;
    now[i] = (int)i;
    for (int r = 0; r < rounds; r++) {
        __syncthreads();
        int v = now[(i + 1) % n];
        __syncthreads();
        now[i] = v;
    }
    out[blockIdx.x * n + i] = now[i];
}

static void a_barrier_orders_what_is_before_and_after_it(void **state)
{
    (void)state;
    for (unsigned n : {1u, 31u, 32u, 33u, 200u, 1024u}) {
        std::vector<int> out(3 * n);
        assert_ran(KLAUNCH(pass_round, 3, n, 0, nullptr, out.data(), 5));
        for (unsigned i = 0; i < 3 * n; i++)
            assert_int_equal(out[i], (i % n + 5) % n);
    }
}

/* Two groups of two warps, which take a different number of rounds. */
__global__ void pass_in_groups(int *out)
{
    SHARED_ARRAY(int, now, 128);
    unsigned group = threadIdx.x / 64, i = threadIdx.x % 64;
    int *mine = now + 64 * group;
    mine[i] = (int)i;
    for (unsigned r = 0; r < 3 + 4 * group; r++) {
        dev_barrier(1 + group, 64);
        int v = mine[(i + 1) % 64];
        dev_barrier(1 + group, 64);
        mine[i] = v;
    }
    out[threadIdx.x] = mine[i];
}

static void named_barriers_are_for_their_warps(void **state)
{
    (void)state;
    std::vector<int> out(128);
    assert_ran(KLAUNCH(pass_in_groups, 1, 128, 0, nullptr, out.data()));
    for (unsigned i = 0; i < 128; i++)
        assert_int_equal(out[i], (i % 64 + (i < 64 ? 3 : 7)) % 64);
}

/* ---- shared memory ---- */

__global__ void use_arrays(unsigned *out, unsigned n)
{
    DYN_SHARED(unsigned, dynamic);
    SHARED_ARRAY(unsigned, a, 64);
    SHARED_ARRAY(uint8_t, b, 64);
    unsigned i = threadIdx.x;
    bool fresh = dynamic[i] == ~0u && a[i] == ~0u && b[i] == 0xff;
    __syncthreads();
    dynamic[i] = blockIdx.x;
    a[i] = i;
    b[i] = (uint8_t)(3 * i);
    __syncthreads();
    unsigned at = (i + 1) % 64;
    out[blockIdx.x * 64 + i] = fresh ? dynamic[at] * 10000 + a[at] * 100 + b[at] / 3 : 0;
    if (i == 0 && (uintptr_t)dynamic % 128 + (uintptr_t)a % 16 != 0)
        out[0] = 0;
    (void)n;
}

static void arrays_are_the_blocks_own_and_hold_no_zeros(void **state)
{
    (void)state;
    std::vector<unsigned> out(8 * 64);
    assert_ran(KLAUNCH(use_arrays, 8, 64, 64 * sizeof(unsigned), nullptr, out.data(), 0u));
    for (unsigned i = 1; i < 8 * 64; i++)
        assert_int_equal(out[i], i / 64 * 10000 + (i + 1) % 64 * 101);
}

/* ---- atomics ---- */

__global__ void count_all(unsigned *n, float *sum, unsigned *largest, uint64_t *wide)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(n, 1u);
    atomicAdd(sum, 0.5f);
    atomicMax(largest, i ^ 0x15u);
    atomicAdd(wide, (uint64_t)1 << 33);
}

static void atomics_hold_over_blocks_and_os_threads(void **state)
{
    (void)state;
    unsigned n = 0, largest = 0;
    float sum = 0.0f;
    uint64_t wide = 0;
    assert_ran(KLAUNCH(count_all, 16, 96, 0, nullptr, &n, &sum, &largest, &wide));
    assert_int_equal(n, 16 * 96);
    assert_true(sum == 8.0f * 96);
    assert_int_equal(largest, 16 * 96 - 1);
    assert_true(wide == (uint64_t)16 * 96 << 33);
}

/* The last block to come adds up what the others left. */
__global__ void last_adds(unsigned *parts, unsigned *n_come, unsigned *total)
{
    SHARED_ARRAY(unsigned, is_last, 1);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        *is_last = atomicAdd(n_come, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!*is_last || threadIdx.x != 0)
        return;
    for (unsigned i = 0; i < gridDim.x; i++)
        *total += parts[i];
}

static void the_last_block_finds_what_others_wrote(void **state)
{
    (void)state;
    unsigned parts[40] = {}, n = 0, total = 0;
    assert_ran(KLAUNCH(last_adds, 40, 64, 0, nullptr, parts, &n, &total));
    assert_int_equal(total, 40 * 41 / 2);
}

/* Every block waits for all: as where all are resident. */
__global__ void meet(unsigned *n_come, unsigned *out)
{
    if (threadIdx.x == 0) {
        atomicAdd(n_come, 1u);
        while (dev_load_acquire(n_come) < gridDim.x)
            dev_pause();
    }
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = *n_come;
}

static void blocks_may_wait_for_each_other(void **state)
{
    (void)state;
    unsigned n = 0;
    std::vector<unsigned> out(20 * 64);
    assert_ran(KLAUNCH(meet, 20, 64, 0, nullptr, &n, out.data()));
    for (unsigned v : out)
        assert_int_equal(v, 20);
}

/* ---- rules ---- */

__global__ void half_waits(int *out)
{
    if (threadIdx.x < 40)
        __syncthreads(); /* MARK half_waits */
    out[threadIdx.x] = 1;
}
__global__ void some_leave(int *out)
{
    if (threadIdx.x == 33)
        return;
    __syncthreads(); /* MARK some_leave */
    out[threadIdx.x] = 1;
}
__global__ void two_barriers(int *out)
{
    if (threadIdx.x < 32)
        __syncthreads(); /* MARK two_barriers */
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void two_kinds(int *out)
{
    int v = 1;
    if (threadIdx.x < 16)
        v = __shfl_sync(FULL_WARP, v, 0);
    else
        v = dev_warp_sum(v); /* MARK two_kinds */
    out[threadIdx.x] = v;
}
__global__ void other_masks(int *out)
{
    uint32_t mask = threadIdx.x < 16 ? 0xffffu : 0xff00u;
    out[threadIdx.x] = __shfl_sync(mask, 1, 8); /* MARK other_masks */
}
__global__ void half_shuffles(int *out)
{
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 0); /* MARK half_shuffles */
}
__global__ void bad_named(int *out)
{
    dev_barrier(1, 40); /* MARK bad_named */
    out[0] = 1;
}
__global__ void bad_copy(int *out)
{
    SHARED_ARRAY(int, s, 64);
    dev_copy16(s + 1, out); /* MARK bad_copy */
}
__global__ void copy_to_global(int *out)
{
    dev_copy16(out, out + 16); /* MARK copy_to_global */
}
__global__ void bad_row(int *out)
{
    SHARED_ARRAY(uint16_t, s, 512);
    uint32_t r[4];
    dev_ldmatrix_x4(r, s + threadIdx.x * 8 + 1); /* MARK bad_row */
    out[threadIdx.x] = (int)r[0];
}
__global__ void bad_load(int *out)
{
    uint4 v = dev_load16(out + 1); /* MARK bad_load */
    out[0] = (int)v.x;
}
__global__ void too_many_arrays(int *out)
{
    SHARED_ARRAY(int, s, 60000);
    out[0] = s[0];
}
#ifndef EMU_ASAN /* which tells of it in its own words */
/* Down to the stack's end and a little on. */
__attribute__((noinline)) static int fill_stack(uintptr_t end, volatile char *from)
{
    volatile char here[512];
    for (int i = 0; i < 512; i++)
        here[i] = from[i];
    return (uintptr_t)here > end ? fill_stack(end, here) + here[1] : here[0];
}
__global__ void deep(int *out)
{
    volatile char zeros[512] = {};
    if (threadIdx.x == 5)
        out[0] = fill_stack((uintptr_t)emu_where() - (64 << 10) + 200, zeros);
}
#endif

static const struct rule {
    const char *what, *mark;
    cudaError_t (*launch)(int *out);
} rules[] = {
#define RULE(what, kernel, n)                                                                      \
    {                                                                                              \
        what, #kernel, [](int *out) { return KLAUNCH(kernel, 2, n, 0, 0, out); }                   \
    }
    RULE("divergent", half_waits, 64),
    RULE("divergent", some_leave, 64),
    RULE("divergent barrier", two_barriers, 64),
    RULE("divergent collective", two_kinds, 32),
    RULE("not in its mask", other_masks, 32),
    RULE("divergent", half_shuffles, 32),
    RULE("named barrier", bad_named, 64),
    RULE("cp.async", bad_copy, 32),
    RULE("not the block's shared memory", copy_to_global, 32),
    RULE("ldmatrix", bad_row, 32),
    RULE("16 bytes read", bad_load, 32),
};

static void broken_rules_are_told_with_their_place(void **state)
{
    (void)state;
    for (const rule &r : rules) {
        alignas(16) int out[64];
        assert_int_equal(r.launch(out), cudaErrorLaunchFailure);
        if (!is_reported(r.what, FILE_NAME, r.mark) && strcmp(r.mark, "two_barriers") &&
            strcmp(r.mark, "two_kinds"))
            fail_msg("no '%s' at %s in: %s", r.what, r.mark, direct_report);
        assert_non_null(strstr(direct_report, r.what));
        /* And the machine goes on. */
        arguments_come_by_value(state);
    }
}

#ifndef EMU_ASAN
static void a_stack_overrun_is_told(void **state)
{
    (void)state;
    int out[1];
    assert_int_equal(KLAUNCH(deep, 1, 32, 0, nullptr, out), cudaErrorLaunchFailure);
    assert_non_null(strstr(direct_report, "overrun its stack"));
}
#endif

static void launches_beyond_the_limits_are_refused(void **state)
{
    (void)state;
    static const struct {
        dim3 grid, block;
        size_t smem;
    } bad[] = {
        {dim3(0), dim3(32), 0},      {dim3(1, 65536), dim3(32), 0}, {dim3(1), dim3(0), 0},
        {dim3(1), dim3(1025), 0},    {dim3(1), dim3(32, 33), 0},    {dim3(1), dim3(1, 1, 65), 0},
        {dim3(1), dim3(32), 232449},
    };
    int out[64] = {};
    for (const auto &b : bad) {
        assert_int_equal(KLAUNCH(half_waits, b.grid, b.block, b.smem, nullptr, out),
                         cudaErrorLaunchFailure);
        assert_non_null(strstr(direct_report, "no launch"));
    }
    assert_int_equal(KLAUNCH(too_many_arrays, 1, 32, 0, nullptr, out), cudaErrorLaunchFailure);
    assert_non_null(strstr(direct_report, "bytes of shared memory"));
    assert_int_equal(out[0], 0);
}

int main()
{
    const CMUnitTest tests[] = {
        ORDERED(every_thread_runs_once_and_knows_where_it_is),
        ORDERED(arguments_come_by_value),
        ORDERED(a_barrier_orders_what_is_before_and_after_it),
        ORDERED(named_barriers_are_for_their_warps),
        ORDERED(arrays_are_the_blocks_own_and_hold_no_zeros),
        ORDERED(atomics_hold_over_blocks_and_os_threads),
        ORDERED(the_last_block_finds_what_others_wrote),
        ORDERED(blocks_may_wait_for_each_other),
        ORDERED(broken_rules_are_told_with_their_place),
#ifndef EMU_ASAN
        ORDERED(a_stack_overrun_is_told),
#endif
        ORDERED(launches_beyond_the_limits_are_refused),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
