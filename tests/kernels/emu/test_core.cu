/* The machine that runs blocks: indices, barriers, shared memory, and its rules. Everything holds
 * under every seed, number of OS threads and order of blocks. */
#include "report.h"

#include <vector>

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
    assert_int_equal(KLAUNCH(write_indices, grid, block, 0, nullptr, out.data()), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(out[i], 1 + i);
}

/* ---- barriers ---- */

/* Each thread adds its left neighbour's last value; without barriers, of another round. */
__global__ void pass_round(int *out, int rounds)
{
    SHARED_ARRAY(int, now, 256);
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
    for (unsigned n : {1u, 31u, 32u, 33u, 200u, 256u}) {
        std::vector<int> out(3 * n);
        assert_int_equal(KLAUNCH(pass_round, dim3(3), dim3(n), 0, nullptr, out.data(), 5),
                         cudaSuccess);
        for (unsigned i = 0; i < 3 * n; i++)
            assert_int_equal(out[i], (i % n + 5) % n);
    }
}

/* ---- rules ---- */

__global__ void half_waits(int *out)
{
    if (threadIdx.x < 40)
        __syncthreads(); /* MARK half_waits */
    out[threadIdx.x] = 1;
}

static void a_divergent_barrier_is_told_with_its_place(void **state)
{
    (void)state;
    std::vector<int> out(64);
    assert_int_equal(KLAUNCH(half_waits, dim3(2), dim3(64), 0, nullptr, out.data()),
                     cudaErrorLaunchFailure);
    assert_reported("divergent", "test_core.cu", "half_waits");
}

/* Each test once per seed and number of OS threads. */
static void under_every_order(void (*test)(void **), void **state)
{
    for (unsigned threads = 1; threads <= 3; threads += 2)
        for (unsigned seed = 1; seed <= 6; seed++) {
            direct_options = {};
            direct_options.seed = seed;
            direct_options.n_threads = threads;
            test(state);
        }
    direct_options = {};
    direct_options.one_order = true;
    test(state);
}

#define ORDERED(test)                                                                              \
    {                                                                                              \
#test, [](void **state) { under_every_order(test, state); }, nullptr, nullptr, nullptr     \
    }

int main()
{
    const CMUnitTest tests[] = {
        ORDERED(every_thread_runs_once_and_knows_where_it_is),
        ORDERED(a_barrier_orders_what_is_before_and_after_it),
        ORDERED(a_divergent_barrier_is_told_with_its_place),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
