/* Candidates for sampling: the k largest logits of a row in a fixed order.
 *
 * One block a row. Elements have 64-bit keys that order them wholly (math_order_key). Digit by
 * digit from the top, the block counts the keys that share the digits found so far and finds the
 * digit that the k-th smallest key has, until so few keys are left below its bin's end that they
 * fit shared memory; those are sorted there. Which thread counts or stores first does not show:
 * sums of integers and the order of different keys do not depend on it. Two or three walks over the
 * row by one SM: about 10 us each for 256k logits (1 MB at 64 bytes a clock). */
#include "cuda/launch.h"
#include "cuda/math.cuh"

enum {
    BLOCK = 512,
    DIGIT = 11, /* bits */
    BINS = 1 << DIGIT,
    KEPT = 2 * CUDA_TOP_K_MAX, /* keys that are sorted, at most */
};

/* Of the keys that match what is known, bins [bin] up to and with `bin` hold at least the wanted.
 */
struct found {
    uint32_t bin, below, in; /* keys in smaller bins; keys in the bin */
};

/* Counts the keys whose bits from `shift` + DIGIT up are those of `known`, by their next digit. */
__device__ static void count_keys(const float *x, uint32_t n, uint64_t known, int shift, int digit,
                                  uint32_t *bins)
{
    for (uint32_t i = threadIdx.x; i < BINS; i += BLOCK)
        bins[i] = 0;
    UNLESS(TOPK_BINS_BARRIER) __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += BLOCK) {
        uint64_t key = math_order_key(x[i], i);
        /* Shifting by 64 is undefined: the first digit's known part is nothing. */
        if (shift + digit == 64 || key >> (shift + digit) == known >> (shift + digit))
            atomicAdd(&bins[(uint32_t)(key >> shift) & ((1u << digit) - 1)], 1u);
    }
    UNLESS(TOPK_COUNT_BARRIER) __syncthreads();
}

/* The bin of the key number `want` (from 1). Warp 0 finds its run of bins by sums of runs. */
__device__ static void find_bin(const uint32_t *bins, uint32_t want, found *out)
{
    const uint32_t run = BINS / 32, lane = threadIdx.x;
    if (threadIdx.x < 32) {
        uint32_t mine = 0;
        for (uint32_t i = 0; i < run; i++)
            mine += bins[lane * run + (i + lane) % run]; /* each lane in another bank */
        uint32_t up_to = mine;
        UNROLL
        for (uint32_t d = 1; d < 32; d *= 2) {
            uint32_t lower = __shfl_up_sync(FULL_WARP, up_to, d);
            up_to += lane >= d ? lower : 0;
        }
        uint32_t before = up_to - mine;
        if (before < want && want <= up_to) {
            uint32_t bin = lane * run;
            while (before + bins[bin] < want)
                before += bins[bin++];
            *out = {bin, before, bins[bin]};
        }
    }
    UNLESS(TOPK_FOUND_BARRIER) __syncthreads();
}

/* Ascending, n a power of two (Batcher 1968). */
__device__ static void sort_keys(uint64_t *keys, uint32_t n)
{
    for (uint32_t size = 2; size <= n; size *= 2)
        for (uint32_t step = size / 2; step; step /= 2) {
            for (uint32_t i = threadIdx.x; i < n / 2; i += BLOCK) {
                uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
                uint64_t lo = keys[a], hi = keys[b];
                if ((lo > hi) == ((a & size) == 0 || MUTANT(TOPK_ORDER))) {
                    keys[a] = hi;
                    keys[b] = lo;
                }
            }
            UNLESS(TOPK_SORT_BARRIER) __syncthreads();
        }
}

static __global__ void __launch_bounds__(BLOCK)
    top_k(const float *logits, uint32_t n, uint32_t k, float *values, uint32_t *ids)
{
    SHARED_ARRAY(uint32_t, bins, BINS);
    SHARED_ARRAY(uint64_t, keys, KEPT);
    SHARED_ARRAY(found, shared_found, 1);
    SHARED_ARRAY(uint32_t, n_kept, 1);
    const float *x = logits + (size_t)blockIdx.x * n;
    uint64_t limit = ~0ull; /* the last key that may be kept */
    uint32_t taken = 0, want = k;
    if (n > KEPT) {
        uint64_t known = 0;
        for (int shift = 64; shift > 0;) {
            int digit = min(shift, (int)DIGIT);
            shift -= digit;
            count_keys(x, n, known, shift, digit, bins);
            find_bin(bins, want, shared_found);
            known |= (uint64_t)shared_found->bin << shift;
            limit = known | ((1ull << shift) - 1);
            taken += shared_found->below;
            want -= shared_found->below;
            if (taken + shared_found->in <= KEPT)
                break;
        }
    }
    if (threadIdx.x == 0)
        *n_kept = 0;
    UNLESS(TOPK_KEPT_BARRIER) __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += BLOCK) {
        uint64_t key = math_order_key(x[i], i);
        if (key <= limit)
            keys[atomicAdd(n_kept, 1u)] = key;
    }
    __syncthreads();
    uint32_t sorted = 1;
    while (sorted < *n_kept)
        sorted *= 2;
    for (uint32_t i = *n_kept + threadIdx.x; i < sorted; i += BLOCK)
        keys[i] = ~0ull;
    __syncthreads();
    sort_keys(keys, sorted);
    for (uint32_t i = threadIdx.x; i < k; i += BLOCK) {
        uint32_t id = (uint32_t)keys[i];
        ids[(size_t)blockIdx.x * k + i] = id;
        values[(size_t)blockIdx.x * k + i] = x[id];
    }
}

cudaError_t cuda_top_k(cudaStream_t s, const float *logits, uint32_t n_rows, uint32_t n, uint32_t k,
                       float *values, uint32_t *ids)
{
    if (n_rows == 0 || k == 0)
        return cudaSuccess;
    if (k > n || k > CUDA_TOP_K_MAX)
        return cudaErrorInvalidValue;
    return KLAUNCH(top_k, n_rows, BLOCK, 0, s, logits, n, k, values, ids);
}
