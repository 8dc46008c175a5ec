/* Every pair of accesses that nothing orders is told with both places, under every seed; what is
 * ordered is not. Kernels come in pairs, right and wrong. */
#include "report.h"

#include <vector>

#define FILE_NAME "test_race.cu"

/* ---- shared memory and barriers ---- */

template <bool RIGHT> __global__ void reverse(int *out)
{
    SHARED_ARRAY(int, s, 64);
    s[threadIdx.x] = (int)threadIdx.x; /* MARK reverse writes */
    if (RIGHT)
        __syncthreads();
    else
        __syncwarp();
    out[threadIdx.x] = s[63 - threadIdx.x]; /* MARK reverse reads */
}

/* Two rounds over one buffer: the second write must wait for the first's readers. */
template <bool RIGHT> __global__ void reuse(int *out)
{
    SHARED_ARRAY(int, s, 64);
    for (int i = 0; i < 2; i++) {
        s[threadIdx.x] = i; /* MARK reuse writes */
        __syncthreads();
        out[threadIdx.x] += s[63 - threadIdx.x]; /* MARK reuse reads */
        if (RIGHT)
            __syncthreads();
    }
}

/* ---- warps ---- */

template <bool RIGHT> __global__ void warp_reverse(int *out)
{
    SHARED_ARRAY(int, s, 64);
    unsigned i = threadIdx.x, base = i / 32 * 32;
    s[i] = (int)i; /* MARK warp_reverse writes */
    if (RIGHT)
        __syncwarp();
    else
        (void)__shfl_xor_sync(FULL_WARP, i, 1); /* orders no memory */
    out[i] = s[base + 31 - i % 32];             /* MARK warp_reverse reads */
}

/* Quarters of a warp that exchange among themselves; the wrong one reads a neighbour's. */
template <bool RIGHT> __global__ void quarter_reverse(int *out)
{
    SHARED_ARRAY(int, s, 32);
    unsigned i = threadIdx.x, base = i / 8 * 8;
    s[i] = (int)i; /* MARK quarter_reverse writes */
    __syncwarp(0xffu << base);
    unsigned from = RIGHT ? base : (base + 8) % 32;
    out[i] = s[from + 7 - i % 8]; /* MARK quarter_reverse reads */
}

/* Lane 8 learns of lane 0's write through lane 1, who met both. */
template <bool RIGHT> __global__ void relay(int *out)
{
    SHARED_ARRAY(int, s, 1);
    unsigned i = threadIdx.x;
    if (i == 0)
        s[0] = 1; /* MARK relay writes */
    if (i <= 1)
        __syncwarp(0x3);
    if (RIGHT && (i == 1 || i == 8))
        __syncwarp(0x102);
    if (i == 8)
        out[0] = s[0]; /* MARK relay reads */
}

/* ---- named barriers ---- */

/* Warps 0 and 1 exchange by barrier 1, 2 and 3 by barrier 2; the wrong one reads of the others. */
template <bool RIGHT> __global__ void groups(int *out)
{
    SHARED_ARRAY(int, s, 128);
    unsigned i = threadIdx.x, group = i / 64;
    s[i] = (int)i; /* MARK groups writes */
    dev_barrier(1 + group, 64);
    unsigned from = RIGHT ? group : 1 - group;
    out[i] = s[from * 64 + 63 - i % 64]; /* MARK groups reads */
}

/* ---- asynchronous copies ---- */

enum { NO_WAIT = 1, NO_BARRIER, WAIT_LATE, TOO_EARLY };

/* Two stages; each thread copies its own four bytes and reads a neighbour's. */
template <int WRONG> __global__ void stages(const int *in, int *out, int n)
{
    SHARED_ARRAY(int, s, 2 * 64);
    int t = (int)threadIdx.x;
    dev_copy4(&s[t], &in[t]); /* MARK stages first copy */
    dev_copy_commit();
    for (int i = 0; i < n; i++) {
        if (WRONG == TOO_EARLY && i + 1 < n) {
            dev_copy4(&s[(i + 1) % 2 * 64 + t], &in[(i + 1) * 64 + t]); /* MARK stages early copy */
            dev_copy_commit();
        }
        if (WRONG != NO_WAIT && WRONG != WAIT_LATE)
            dev_copy_wait<0>();
        if (WRONG != NO_BARRIER)
            __syncthreads();
        if (WRONG == WAIT_LATE)
            dev_copy_wait<0>();
        if (WRONG != TOO_EARLY && i + 1 < n) {
            dev_copy4(&s[(i + 1) % 2 * 64 + t], &in[(i + 1) * 64 + t]); /* MARK stages copy */
            dev_copy_commit();
        }
        out[i * 64 + t] = s[i % 2 * 64 + 63 - t]; /* MARK stages reads */
    }
}

/* ---- matrix loads ---- */

template <bool RIGHT> __global__ void load_matrix(uint32_t *out)
{
    SHARED_ARRAY(uint16_t, s, 32 * 8);
    unsigned t = threadIdx.x;
    for (int i = 0; i < 8; i++)
        s[t * 8 + (unsigned)i] = (uint16_t)t; /* MARK load_matrix writes */
    if (RIGHT)
        __syncwarp();
    uint32_t r[4];
    dev_ldmatrix_x4(r, &s[(31 - t) * 8]); /* MARK load_matrix loads */
    out[t] = r[0];
}

/* ---- global memory ---- */

template <bool RIGHT> __global__ void count(unsigned *n)
{
    if (RIGHT)
        atomicAdd(n, 1u);
    else
        *n += 1; /* MARK count adds */
}

/* Each block writes its part; the wrong one also reads its neighbour's. */
template <bool RIGHT> __global__ void neighbours(int *x)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (RIGHT)
        x[i] = (int)i;
    else
        x[i] = x[(i + blockDim.x) % (gridDim.x * blockDim.x)]; /* MARK neighbours reads */
}

/* Bytes next to each other are not the same memory. */
template <bool RIGHT> __global__ void bytes(uint8_t *x)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    x[RIGHT ? i : i / 2] = (uint8_t)i; /* MARK bytes writes */
}

/* ---- memory that nobody wrote ---- */

template <bool RIGHT> __global__ void halo(int *out)
{
    SHARED_ARRAY(int, s, 65);
    s[threadIdx.x] = 1;
    if (RIGHT && threadIdx.x == 0)
        s[64] = 2;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x + 1]; /* MARK halo reads */
}

/* ---- the cases ---- */

static std::vector<int> inputs(64 * 8, 3), outputs(64 * 8);

struct pair {
    const char *name;
    const char *what, *mark, *other; /* of the wrong one's report */
    cudaError_t (*launch)(bool right);
};

#define LAUNCH(kernel, grid, block, ...)                                                           \
    [](bool right) {                                                                               \
        return right ? KLAUNCH(kernel<true>, grid, block, 0, nullptr, __VA_ARGS__)                 \
                     : KLAUNCH(kernel<false>, grid, block, 0, nullptr, __VA_ARGS__);               \
    }
#define STAGES(wrong)                                                                              \
    [](bool right) {                                                                               \
        return right                                                                               \
                   ? KLAUNCH(stages<0>, 1, 64, 0, nullptr, inputs.data(), outputs.data(), 8)       \
                   : KLAUNCH(stages<wrong>, 1, 64, 0, nullptr, inputs.data(), outputs.data(), 8);  \
    }

static const pair pairs[] = {
    {"reverse", "race", "reverse writes", "reverse reads", LAUNCH(reverse, 1, 64, outputs.data())},
    {"reuse", "race", "reuse writes", "reuse reads", LAUNCH(reuse, 1, 64, outputs.data())},
    {"warp_reverse", "race", "warp_reverse writes", "warp_reverse reads",
     LAUNCH(warp_reverse, 1, 64, outputs.data())},
    {"quarter_reverse", "race", "quarter_reverse writes", "quarter_reverse reads",
     LAUNCH(quarter_reverse, 1, 32, outputs.data())},
    {"relay", "race", "relay writes", "relay reads", LAUNCH(relay, 1, 32, outputs.data())},
    {"groups", "race", "groups writes", "groups reads", LAUNCH(groups, 1, 128, outputs.data())},
    {"no wait", "not waited for", "stages first copy", "stages reads", STAGES(NO_WAIT)},
    {"no barrier", "race", "stages copy", "stages reads", STAGES(NO_BARRIER)},
    {"wait behind barrier", "race", "stages copy", "stages reads", STAGES(WAIT_LATE)},
    {"copy too early", "race", "stages early copy", "stages reads", STAGES(TOO_EARLY)},
    {"load_matrix", "race", "load_matrix writes", "load_matrix loads",
     LAUNCH(load_matrix, 1, 32, (uint32_t *)outputs.data())},
    {"count", "race", "count adds", "count adds", LAUNCH(count, 4, 64, (unsigned *)outputs.data())},
    {"neighbours", "race", "neighbours reads", "neighbours reads",
     LAUNCH(neighbours, 2, 64, outputs.data())},
    {"bytes", "race", "bytes writes", "bytes writes",
     LAUNCH(bytes, 2, 64, (uint8_t *)outputs.data())},
    {"halo", "nobody has written", "halo reads", "halo reads", LAUNCH(halo, 1, 64, outputs.data())},
};

static void each_wrong_kernel_is_told_and_no_right_one(void **state)
{
    (void)state;
    for (const pair &p : pairs)
        for (unsigned seed = 0; seed < 6; seed++) {
            direct_options = {};
            direct_options.seed = seed;
            direct_options.n_threads = 2;
            if (p.launch(true) != cudaSuccess)
                fail_msg("%s, seed %u: right, but %s", p.name, seed, direct_report);
            if (p.launch(false) == cudaSuccess)
                fail_msg("%s, seed %u: wrong, but nothing is told", p.name, seed);
            assert_reported(p.what, FILE_NAME, p.mark);
            assert_reported(p.what, FILE_NAME, p.other);
        }
}

/* ---- whose memory it is ---- */

static const int table[4] = {1, 2, 3, 4};
static int counters[4];

__global__ void use_module_data(int *out)
{
    out[threadIdx.x] = table[threadIdx.x % 4] + counters[threadIdx.x % 4];
}
__global__ void read_past(const int *in, int *out)
{
    out[threadIdx.x] = in[threadIdx.x + 1]; /* MARK read_past */
}
__global__ void write_before(int *out)
{
    out[-1 - (int)threadIdx.x] = 1; /* MARK write_before */
}
__global__ void straddle(const char *in, float *out)
{
    float f;
    memcpy(&f, in + 62 + 4 * threadIdx.x, sizeof f); /* MARK straddle */
    out[0] = f;
}
__global__ void copy_past(const int *in)
{
    SHARED_ARRAY(int, s, 64);
    dev_copy16(&s[0], in + 16); /* MARK copy_past */
    dev_copy_commit();
    dev_copy_wait<0>();
}
__global__ void shared_past(int *out, int n)
{
    SHARED_ARRAY(int, a, 32);
    SHARED_ARRAY(int, b, 32);
    a[threadIdx.x] = 1;
    b[threadIdx.x] = 2;
    if (threadIdx.x == 31)
        a[n] = 3; /* MARK shared_past */
    out[threadIdx.x] = b[threadIdx.x];
}
__global__ void misaligned(const char *in, int *out)
{
    out[0] = *reinterpret_cast<const int *>(in + 1); /* MARK misaligned */
}
__global__ void others_stack(int *out)
{
    SHARED_ARRAY(int *, at, 1);
    int mine[4] = {(int)threadIdx.x, 1, 2, 3};
    if (threadIdx.x == 0)
        *at = mine;
    __syncwarp();
    if (threadIdx.x == 1)
        out[0] = (*at)[out[1]]; /* MARK others_stack */
}

static int *memory, *more, *gone;

struct owner {
    const char *what, *mark; /* mark NULL: nothing is told */
    cudaError_t (*launch)();
};
static const owner owners[] = {
    {"", nullptr, [] { return KLAUNCH(use_module_data, 1, 16, 0, nullptr, memory); }},
    {"", nullptr, [] { return KLAUNCH(read_past, 1, 15, 0, nullptr, memory, more); }},
    {"in no allocation", "read_past",
     [] { return KLAUNCH(read_past, 1, 16, 0, nullptr, memory, more); }},
    {"in no allocation", "write_before", [] { return KLAUNCH(write_before, 1, 1, 0, 0, memory); }},
    {"2 before the end", "straddle",
     [] { return KLAUNCH(straddle, 1, 1, 0, nullptr, (const char *)memory, (float *)more); }},
    {"in no allocation", "copy_past", [] { return KLAUNCH(copy_past, 1, 1, 0, nullptr, memory); }},
    {"in freed memory: gone", "read_past",
     [] { return KLAUNCH(read_past, 1, 8, 0, nullptr, gone, more); }},
    {"", nullptr, [] { return KLAUNCH(shared_past, 1, 32, 0, nullptr, more, 31); }},
    {"outside its arrays", "shared_past",
     [] { return KLAUNCH(shared_past, 1, 32, 0, nullptr, more, 32); }},
    {"misaligned", "misaligned",
     [] { return KLAUNCH(misaligned, 1, 1, 0, nullptr, (const char *)memory, more); }},
    {"local memory", "others_stack", [] { return KLAUNCH(others_stack, 1, 32, 0, 0, more); }},
};

static void accesses_outside_of_the_kernels_memory_are_told(void **state)
{
    (void)state;
    std::vector<int> room(3 * 64); /* with what is nobody's between */
    memory = &room[16], more = &room[64], gone = &room[128];
    emu_memory_add(memory, 16 * sizeof(int), "memory");
    emu_memory_add(more, 32 * sizeof(int), "more");
    emu_memory_add(gone, 16 * sizeof(int), "gone");
    emu_memory_remove(gone);
    for (const owner &o : owners)
        for (unsigned seed = 0; seed < 4; seed++) {
            direct_options = {};
            direct_options.seed = seed;
            direct_report[0] = 0;
            bool ok = o.launch() == cudaSuccess;
            if (ok == (o.mark != nullptr))
                fail_msg("%s, seed %u: %s", o.mark ? o.mark : "right", seed, direct_report);
            if (o.mark)
                assert_reported(o.what, FILE_NAME, o.mark);
        }
    emu_memory_remove(memory);
    emu_memory_remove(more);
}

static void unwatched_launches_look_for_nothing(void **state)
{
    (void)state;
    direct_options = {};
    direct_options.unwatched = true;
    for (const pair &p : pairs)
        if (p.launch(false) != cudaSuccess)
            fail_msg("%s: %s", p.name, direct_report);
}

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(each_wrong_kernel_is_told_and_no_right_one),
        cmocka_unit_test(unwatched_launches_look_for_nothing),
        cmocka_unit_test(accesses_outside_of_the_kernels_memory_are_told),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
