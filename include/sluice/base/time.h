/* Clock and counter-based random numbers. Control code takes time as an argument and never calls
 * sl_now_ns itself. */
#ifndef SLUICE_BASE_TIME_H
#define SLUICE_BASE_TIME_H

#include <stdint.h>

#define SL_MS_NS ((uint64_t)1000000)
#define SL_S_NS ((uint64_t)1000000000)

uint64_t sl_now_ns(void);      /* CLOCK_MONOTONIC */
uint64_t sl_unix_ns(void);     /* CLOCK_REALTIME, for `created` fields and log lines only */
uint64_t sl_thread_cpu_ns(void);
uint64_t sl_process_cpu_ns(void);

/* Philox4x32-10 (Salmon et al., SC'11): 128 random bits as a pure function of key and counter. */
void sl_philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]);

/* A number in [0, 1) with 24 bits for (seed, choice, position, lane); what samplers draw from. */
float sl_random_unit(uint64_t seed, uint32_t choice, uint32_t position, uint32_t lane);

/* A sequential stream for tests, simulators and load generators. */
struct sl_rng {
    uint64_t seed;
    uint64_t n_drawn;
};
uint64_t sl_rng_u64(struct sl_rng *r);
uint32_t sl_rng_below(struct sl_rng *r, uint32_t n); /* uniform in [0, n), n > 0 */
double sl_rng_unit(struct sl_rng *r);                /* [0, 1) */

/* 64 unpredictable bits from the kernel: request ids and seeds. */
uint64_t sl_entropy_u64(void);

#endif
