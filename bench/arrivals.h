/* When requests are to be sent: arrival processes with a seed. */
#ifndef SLUICE_BENCH_ARRIVALS_H
#define SLUICE_BENCH_ARRIVALS_H

#include <sluice/base/time.h>
#include <stddef.h>

/* A number of the gamma distribution with mean shape (scale 1), by Marsaglia and Tsang (2000). */
double bench_gamma(struct sl_rng *rng, double shape);

/* Fills at_s[0..n) with ascending send times in seconds, the first one delay after 0. Gaps are
 * gamma distributed with shape `burstiness` and mean 1/rate: 1 is a Poisson process, less is
 * burstier, infinity is constant. As vLLM's benchmark does, the gaps are rescaled so that their sum
 * is exactly n/rate, whatever was drawn. An infinite rate gives zeros. */
void bench_arrivals(double *at_s, size_t n, double rate, double burstiness, uint64_t seed);

#endif
