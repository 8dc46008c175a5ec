/* What a load test found: figures, JSON and the table. */
#ifndef SLUICE_BENCH_RESULT_H
#define SLUICE_BENCH_RESULT_H

#include "load.h"
#include "slo.h"

#define BENCH_PERCENTILES_MAX 16

struct bench_result_spec {
    double percentiles[BENCH_PERCENTILES_MAX];
    size_t n_percentiles;
    const char *metrics; /* "ttft,tpot,itl,e2el" */
    struct bench_slo slo;
};

/* "50,90,99.9" */
enum sl_status bench_percentiles_parse(const char *text, struct bench_result_spec *out,
                                       struct sl_err *err);

/* All figures of the records. SL_NO_MEMORY. */
enum sl_status bench_result_figures(const struct bench_result_spec *spec,
                                    const struct bench_record *r, size_t n,
                                    struct bench_figures *out, struct sl_err *err);

struct bench_description { /* what the JSON says beside figures */
    const char *backend, *endpoint, *model, *dataset;
    double rate, burstiness;
    size_t n, max_concurrency;
    uint64_t seed;
    int argc;
    char **argv;
};
/* One JSON object; its keys include those of vLLM's `bench serve` result file. */
void bench_result_json(const struct bench_description *d, const struct bench_figures *f,
                       const struct bench_record *r, size_t n, struct sl_buf *out);
void bench_result_table(const struct bench_description *d, const struct bench_result_spec *spec,
                        const struct bench_figures *f, struct sl_buf *out);

#endif
