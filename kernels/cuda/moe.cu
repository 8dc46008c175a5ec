/* Mixture of experts: which experts serve a token, with what weight, and the order in which a
 * grouped product takes the tokens. Small beside the products: every choice here is made for its
 * order to be fixed. */
#include "cuda/launch.h"
#include "cuda/math.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32 };

/* ---- routing: a token a warp ---- */

/* The smallest key of a warp, in every lane. */
__device__ static uint64_t warp_min(uint64_t key)
{
    UNROLL
    for (int x = 16; x; x /= 2) {
        uint64_t o = __shfl_xor_sync(FULL_WARP, key, x);
        key = o < key ? o : key;
    }
    return key;
}

/* The lane's smallest key above `after`, of elements lane, lane + 32, .. */
__device__ static uint64_t next_key(const float *x, uint32_t n, uint64_t after, bool first)
{
    uint64_t best = ~0ull;
    for (uint32_t i = threadIdx.x % 32; i < n - MUTANT(ROUTE_TAIL); i += 32) {
        uint64_t key = math_order_key(x[i], i);
        if ((first || key > after) && key < best)
            best = key;
    }
    return best;
}

/* 16-lane sum of exp(x - max), in every lane. */
__device__ static float exp_sum(const float *x, uint32_t n, float max)
{
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 16; i < n; i += 16)
        sum = sum + math_exp(x[i] - max);
    return math_fold_sum(sum);
}

/* Lane j ends up with the j-th expert. */
static __global__ void __launch_bounds__(BLOCK)
    moe_route(const float *logits, uint32_t n_tok, cuda_moe m, uint32_t *experts, float *gates)
{
    uint32_t tok = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (tok >= n_tok) /* the whole warp */
        return;
    const float *x = logits + (size_t)tok * m.n_experts;
    uint64_t key = 0;
    uint32_t mine = 0;
    float max = 0.0f, p = 0.0f, sum = 0.0f;
    for (uint32_t j = 0; j < m.n_used; j++) {
        key = warp_min(next_key(x, m.n_experts, key, j == 0));
        uint32_t e = (uint32_t)key;
        if (j == 0)
            max = x[e];
        float w = math_exp(x[e] - max);
        sum = sum + w;
        if (lane == j) {
            mine = e;
            p = w;
        }
    }
    float all = exp_sum(x, m.n_experts, max);
    if (lane >= m.n_used)
        return;
    /* A NaN that was not chosen counts, too. */
    float gate = m.of_used && all == all ? p / sum : p / all;
    experts[(size_t)tok * m.n_used + lane] = mine;
    gates[(size_t)tok * m.n_used + lane] = gate;
}

cudaError_t cuda_moe_route(cudaStream_t s, const struct cuda_moe *m, const float *logits,
                           uint32_t n_tok, uint32_t *experts, float *gates)
{
    if (m->n_used == 0 || m->n_used > CUDA_EXPERTS_USED_MAX || m->n_used > m->n_experts ||
        m->n_experts > CUDA_EXPERTS_MAX)
        return cudaErrorInvalidValue;
    if (n_tok == 0)
        return cudaSuccess;
    return KLAUNCH(moe_route, (n_tok + WARPS - 1) / WARPS, BLOCK, 0, s, logits, n_tok, *m, experts,
                   gates);
}

/* ---- grouping: an expert a block, which walks all entries in order ---- */

/* Of the block's threads below this one, and of all, how many have the flag. */
__device__ static uint32_t rank_of(bool flag, uint32_t *counts, uint32_t *total)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t votes = __ballot_sync(FULL_WARP, flag), rank = 0;
    if (lane == 0)
        counts[warp] = (uint32_t)__popc(votes);
    UNLESS(GROUP_COUNTS_BARRIER) __syncthreads();
    *total = 0;
    for (uint32_t i = 0; i < WARPS; i++) {
        rank += i < warp ? counts[i] : 0;
        *total += counts[i];
    }
    UNLESS(GROUP_REUSE_BARRIER) __syncthreads();
    return rank + (uint32_t)__popc(votes & ((1u << lane) - 1));
}

/* Entries of lower experts: where the block's expert begins. */
__device__ static uint32_t count_lower(const uint32_t *experts, uint32_t n, uint32_t expert,
                                       uint32_t *counts)
{
    uint32_t mine = 0, all = 0;
    for (uint32_t i = threadIdx.x; i < n; i += BLOCK)
        mine += experts[i] < expert + MUTANT(GROUP_LOWER);
    mine = (uint32_t)dev_warp_sum((int32_t)mine);
    if (threadIdx.x % 32 == 0)
        counts[threadIdx.x / 32] = mine;
    UNLESS(GROUP_LOWER_BARRIER) __syncthreads();
    for (uint32_t i = 0; i < WARPS; i++)
        all += counts[i];
    __syncthreads();
    return all;
}

static __global__ void __launch_bounds__(BLOCK)
    moe_group(const uint32_t *experts, uint32_t n, uint32_t *start, uint32_t *entry, uint32_t *row)
{
    SHARED_ARRAY(uint32_t, counts, WARPS);
    uint32_t expert = blockIdx.x, at = count_lower(experts, n, expert, counts);
    if (threadIdx.x == 0) {
        start[expert] = at;
        if (expert + 1 == gridDim.x)
            start[expert + 1] = n;
    }
    for (uint32_t first = 0; first < n; first += BLOCK) {
        uint32_t i = first + threadIdx.x, total;
        bool here = i < n && experts[i] == expert;
        uint32_t r = at + rank_of(here, counts, &total);
        if (here) {
            entry[r] = i;
            row[i] = r;
        }
        at += total;
    }
}

cudaError_t cuda_moe_group(cudaStream_t s, const struct cuda_moe *m, const uint32_t *experts,
                           uint32_t n_tok, uint32_t *start, uint32_t *entry, uint32_t *row)
{
    if (m->n_experts == 0 || m->n_experts > CUDA_EXPERTS_MAX)
        return cudaErrorInvalidValue;
    return KLAUNCH(moe_group, m->n_experts, BLOCK, 0, s, experts, n_tok * m->n_used, start, entry,
                   row);
}

/* ---- combining ---- */

static __global__ void moe_combine(const float *y, const float *gates, const uint32_t *row,
                                   uint32_t n_used, uint32_t dim, float *out)
{
    uint32_t tok = blockIdx.x, i = blockIdx.y * BLOCK + threadIdx.x;
    float sum = 0.0f;
    if (i >= dim + MUTANT(COMBINE_TAIL))
        return;
    for (uint32_t j = 0; j < n_used; j++) {
        size_t at = (size_t)tok * n_used + j;
        sum = __fmaf_rn(gates[at], y[(size_t)row[at] * dim + i], sum);
    }
    out[(size_t)tok * dim + i] = sum;
}

cudaError_t cuda_moe_combine(cudaStream_t s, const struct cuda_moe *m, const float *y,
                             const float *gates, const uint32_t *row, uint32_t n_tok, uint32_t dim,
                             float *out)
{
    if (n_tok == 0 || dim == 0)
        return cudaSuccess;
    return KLAUNCH(moe_combine, dim3(n_tok, (dim + BLOCK - 1) / BLOCK), BLOCK, 0, s, y, gates, row,
                   m->n_used, dim, out);
}
