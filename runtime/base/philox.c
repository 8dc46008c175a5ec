/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11)
 * and the streams built on it. A number is a pure function of key and counter, so any worker draws
 * the same one at the same place. */
#include <sluice/base/err.h>
#include <sluice/base/time.h>

#define N_ROUNDS 10

void sl_philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    for (int i = 0; i < N_ROUNDS; i++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0;
        uint64_t p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u; /* golden ratio */
        k1 += 0xbb67ae85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The last counter word keeps the streams apart: samplers use 0, sequential streams 1. */
float sl_random_unit(uint64_t seed, uint32_t choice, uint32_t position, uint32_t lane)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t ctr[4] = {position, choice, lane, 0};
    uint32_t out[4];
    sl_philox(key, ctr, out);
    return (float)(out[0] >> 8) * 0x1p-24f;
}

uint64_t sl_rng_u64(struct sl_rng *r)
{
    const uint32_t key[2] = {(uint32_t)r->seed, (uint32_t)(r->seed >> 32)};
    const uint32_t ctr[4] = {(uint32_t)r->n_drawn, (uint32_t)(r->n_drawn >> 32), 0, 1};
    uint32_t out[4];
    sl_philox(key, ctr, out);
    r->n_drawn++;
    return (uint64_t)out[1] << 32 | out[0];
}

/* Lemire, "Fast random integer generation in an interval" (2019): a draw in the short first
 * stretch is thrown away, so that every result has the same number of preimages. */
uint32_t sl_rng_below(struct sl_rng *r, uint32_t n)
{
    sl_assert(n);
    uint32_t reject_below = (0u - n) % n;
    uint64_t wide;
    do
        wide = (uint64_t)(uint32_t)sl_rng_u64(r) * n;
    while ((uint32_t)wide < reject_below);
    return (uint32_t)(wide >> 32);
}

double sl_rng_unit(struct sl_rng *r)
{
    return (double)(sl_rng_u64(r) >> 11) * 0x1p-53;
}
