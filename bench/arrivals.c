/* Arrival processes of the load generator. */
#include "arrivals.h"

#include <math.h>

static double normal(struct sl_rng *rng)
{
    double u = 1 - sl_rng_unit(rng), v = sl_rng_unit(rng); /* u > 0 */
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

double bench_gamma(struct sl_rng *rng, double shape)
{
    if (shape < 1) { /* from shape + 1, Marsaglia and Tsang section 6 */
        double u = 1 - sl_rng_unit(rng);
        return bench_gamma(rng, shape + 1) * pow(u, 1 / shape);
    }
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(rng), v = 1 + c * x;
        if (v <= 0)
            continue;
        v = v * v * v;
        double u = 1 - sl_rng_unit(rng);
        if (log(u) < x * x / 2 + d - d * v + d * log(v))
            return d * v;
    }
}

void bench_arrivals(double *at_s, size_t n, double rate, double burstiness, uint64_t seed)
{
    struct sl_rng rng = {.seed = seed};
    double sum = 0;
    if (isinf(rate)) {
        for (size_t i = 0; i < n; i++)
            at_s[i] = 0;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        sum += isinf(burstiness) ? 1 / rate : bench_gamma(&rng, burstiness) / (rate * burstiness);
        at_s[i] = sum;
    }
    double scale = sum > 0 ? (double)n / rate / sum : 1;
    for (size_t i = 0; i < n; i++)
        at_s[i] *= scale;
}
