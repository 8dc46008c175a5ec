/* Metrics in Prometheus text format 0.0.4. Declared statically, registered once, updated without
 * locks (relaxed atomics), printed from any thread. */
#ifndef SLUICE_BASE_METRICS_H
#define SLUICE_BASE_METRICS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct sl_buf;

enum sl_metric_kind { SL_COUNTER, SL_GAUGE, SL_HISTOGRAM };

struct sl_metric {
    const char *name;   /* "sluice_time_to_first_token_seconds"; counters end in _total */
    const char *help;
    enum sl_metric_kind kind;
    const double *bounds; /* histogram upper bounds, ascending, without +Inf */
    uint32_t n_bounds;    /* <= 31 */
    const char *labels;   /* fixed labels without braces, e.g. finished_reason="stop", or NULL */
    /* state */
    _Atomic uint64_t value_bits;   /* double, counter or gauge */
    _Atomic uint64_t buckets[32];
    _Atomic uint64_t sum_bits;
    struct sl_metric *next;
};

/* Idempotent for the same object. Metrics of one name (differing in labels) are printed together
 * under one HELP and TYPE. */
void sl_metric_register(struct sl_metric *m);
void sl_metric_add(struct sl_metric *m, double by);
void sl_metric_set(struct sl_metric *m, double to);
void sl_metric_observe(struct sl_metric *m, double value);
double sl_metric_value(const struct sl_metric *m);

/* All registered metrics; `labels` (may be NULL) are put on every line, e.g. model_name="x". */
void sl_metrics_print(struct sl_buf *out, const char *labels);

/* Bucket bounds used across the field (vLLM's, with finer steps below 10 ms for ITL). */
extern const double sl_buckets_ttft[];
extern const uint32_t sl_n_buckets_ttft;
extern const double sl_buckets_itl[];
extern const uint32_t sl_n_buckets_itl;
extern const double sl_buckets_e2e[];
extern const uint32_t sl_n_buckets_e2e;
extern const double sl_buckets_tokens[];
extern const uint32_t sl_n_buckets_tokens;

#endif
