/* Figures of a sample. */
#ifndef SLUICE_BENCH_STATS_H
#define SLUICE_BENCH_STATS_H

#include <stddef.h>

double bench_mean(const double *x, size_t n);
double bench_std(const double *x, size_t n); /* of the population, as numpy's default */
void bench_sort(double *x, size_t n);
/* The p-th percentile, p in [0, 100], of an ascending sample, linear between neighbours (numpy's
 * default, type 7 of Hyndman and Fan). 0 of an empty sample. */
double bench_percentile(const double *sorted, size_t n, double p);

#endif
