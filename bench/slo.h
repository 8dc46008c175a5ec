/* Service levels: what --goodput counts and what --assert demands. */
#ifndef SLUICE_BENCH_SLO_H
#define SLUICE_BENCH_SLO_H

#include <sluice/base/err.h>
#include <stddef.h>

/* Bounds of one request in milliseconds; infinite where not asked for. */
struct bench_slo {
    double ttft_ms, tpot_ms, e2el_ms;
    bool any;
};
/* "ttft:500 tpot:50 e2el:3000", separated by spaces or commas; NULL or "" asks for nothing. */
enum sl_status bench_slo_parse(const char *text, struct bench_slo *out, struct sl_err *err);
bool bench_slo_met(const struct bench_slo *s, double ttft_ms, double tpot_ms, double e2el_ms);

/* A named figure of a run. */
struct bench_figure {
    char name[40];
    double value;
};
#define BENCH_FIGURES_MAX 128
struct bench_figures {
    struct bench_figure at[BENCH_FIGURES_MAX];
    size_t n;
};
void bench_figure_add(struct bench_figures *f, double value, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const struct bench_figure *bench_figure_find(const struct bench_figures *f, const char *name,
                                             size_t len);

/* "p99_ttft_ms<500, failed==0": checks the form, and with figures each claim. SL_USAGE for a bad
 * form or an unknown figure, SL_ASSERTION for the first claim that does not hold. */
enum sl_status bench_assert(const char *text, const struct bench_figures *f, struct sl_err *err);

#endif
