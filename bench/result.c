/* Figures of a load test. Names follow vLLM's benchmark: ttft time to first token, tpot time per
 * output token after the first, itl gap between chunks, e2el whole latency. */
#include "result.h"

#include "stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The run is degraded when the generator itself was late by more than this share of the median
 * time to first token (99th percentile of its lag). */
#define LAG_SHARE_MAX 0.05

enum sl_status bench_percentiles_parse(const char *text, struct bench_result_spec *out,
                                       struct sl_err *err)
{
    bool has_99 = false;
    out->n_percentiles = 0;
    for (const char *p = text; *(p += strspn(p, " ,"));) {
        char *end;
        double x = strtod(p, &end);
        if (end == p || !(x > 0) || !(x <= 100) || (*end && !strchr(" ,", *end)) ||
            out->n_percentiles == BENCH_PERCENTILES_MAX - 1)
            return sl_fail_param(err, SL_USAGE, "metric-percentiles",
                                 "--metric-percentiles: '%.40s' is not a list of at most %d "
                                 "numbers in (0, 100]",
                                 text, BENCH_PERCENTILES_MAX - 1);
        out->percentiles[out->n_percentiles++] = x;
        has_99 |= x == 99;
        p = end;
    }
    if (!has_99) /* always there: result files are compared by it */
        out->percentiles[out->n_percentiles++] = 99;
    return SL_OK;
}

static double ms(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* The last token's arrival, or, where none came, the end of the answer. */
static uint64_t finished_ns(const struct bench_record *r)
{
    return r->last_ns ? r->last_ns : r->end_ns;
}

static double ttft_ms(const struct bench_record *r)
{
    return ms(r->intended_ns, r->first_ns ? r->first_ns : r->end_ns);
}

static double e2el_ms(const struct bench_record *r)
{
    return ms(r->intended_ns, finished_ns(r));
}

static double tpot_ms(const struct bench_record *r)
{
    return r->n_out > 1 ? (e2el_ms(r) - ttft_ms(r)) / (double)(r->n_out - 1) : 0;
}

enum metric { TTFT, TPOT, ITL, E2EL, LAG, N_METRICS };
static const char *const metric_names[] = {"ttft", "tpot", "itl", "e2el", "dispatch_lag"};

/* The sample of a metric over the completed requests (lag: over all), ascending; NULL without
 * memory. */
static double *sample(enum metric metric, const struct bench_record *r, size_t n, size_t *count)
{
    size_t max = n;
    for (size_t i = 0; i < n && metric == ITL; i++)
        max += r[i].n_itl;
    double *x = malloc((max + 1) * sizeof *x);
    *count = 0;
    for (size_t i = 0; x && i < n; i++) {
        if (metric == LAG)
            x[(*count)++] = ms(r[i].intended_ns, r[i].sent_ns);
        if (!r[i].ok)
            continue;
        if (metric == TTFT)
            x[(*count)++] = ttft_ms(&r[i]);
        else if (metric == E2EL)
            x[(*count)++] = e2el_ms(&r[i]);
        else if (metric == TPOT && r[i].n_out > 1)
            x[(*count)++] = tpot_ms(&r[i]);
        for (size_t k = 0; k < r[i].n_itl && metric == ITL; k++)
            x[(*count)++] = r[i].itl_s[k] * 1e3;
    }
    if (x)
        bench_sort(x, *count);
    return x;
}

static bool metric_wanted(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; *(p += strspn(p, " ,")); p += strcspn(p, " ,"))
        if (strcspn(p, " ,") == n && memcmp(p, name, n) == 0)
            return true;
    return false;
}

static bool add_metric(const struct bench_result_spec *spec, enum metric m,
                       const struct bench_record *r, size_t n, struct bench_figures *out)
{
    const char *name = metric_names[m];
    size_t count;
    double *x = sample(m, r, n, &count);
    if (!x)
        return false;
    bench_figure_add(out, bench_mean(x, count), "mean_%s_ms", name);
    bench_figure_add(out, bench_percentile(x, count, 50), "median_%s_ms", name);
    bench_figure_add(out, bench_std(x, count), "std_%s_ms", name);
    if (m == LAG) {
        bench_figure_add(out, bench_percentile(x, count, 50), "p50_%s_ms", name);
        bench_figure_add(out, bench_percentile(x, count, 99), "p99_%s_ms", name);
    }
    for (size_t i = 0; i < spec->n_percentiles && m != LAG; i++)
        bench_figure_add(out, bench_percentile(x, count, spec->percentiles[i]), "p%g_%s_ms",
                         spec->percentiles[i], name);
    free(x);
    return true;
}

/* Most requests open at one time. */
static double peak_open(const struct bench_record *r, size_t n)
{
    double *starts = malloc((n + 1) * sizeof *starts), *ends = malloc((n + 1) * sizeof *ends);
    size_t open = 0, peak = 0;
    for (size_t i = 0; starts && ends && i < n; i++) {
        starts[i] = (double)r[i].sent_ns;
        ends[i] = (double)r[i].end_ns;
    }
    if (starts && ends) {
        bench_sort(starts, n);
        bench_sort(ends, n);
        for (size_t i = 0, k = 0; i < n; i++) {
            open++;
            for (; k < n && ends[k] <= starts[i]; k++)
                open--;
            peak = open > peak ? open : peak;
        }
    }
    free(starts);
    free(ends);
    return (double)peak;
}

/* Most tokens that arrived within one second of the run's clock, counted by chunks. */
static double peak_tokens_per_s(const struct bench_record *r, size_t n, double duration_s)
{
    size_t n_bins = (size_t)duration_s + 2;
    uint32_t *bins = calloc(n_bins, sizeof *bins), peak = 0;
    for (size_t i = 0; bins && i < n; i++) {
        double at = (double)r[i].first_ns / 1e9;
        for (size_t k = 0; k <= r[i].n_itl && r[i].first_ns; k++) {
            size_t bin = (size_t)at < n_bins ? (size_t)at : n_bins - 1;
            peak = ++bins[bin] > peak ? bins[bin] : peak;
            at += k < r[i].n_itl ? r[i].itl_s[k] : 0;
        }
    }
    free(bins);
    return peak;
}

struct totals {
    size_t completed, good, good_ttft, good_tpot, good_e2el;
    double in, out, duration_s;
};

static struct totals count_all(const struct bench_slo *slo, const struct bench_record *r, size_t n)
{
    struct totals t = {0};
    for (size_t i = 0; i < n; i++) {
        double end_s = (double)r[i].end_ns / 1e9;
        t.duration_s = end_s > t.duration_s ? end_s : t.duration_s;
        if (!r[i].ok)
            continue;
        double ttft = ttft_ms(&r[i]), tpot = tpot_ms(&r[i]), e2el = e2el_ms(&r[i]);
        t.completed++;
        t.in += (double)r[i].n_in;
        t.out += (double)r[i].n_out;
        t.good += bench_slo_met(slo, ttft, tpot, e2el);
        t.good_ttft += ttft <= slo->ttft_ms;
        t.good_tpot += tpot <= slo->tpot_ms;
        t.good_e2el += e2el <= slo->e2el_ms;
    }
    return t;
}

static void add_goodput(const struct bench_slo *slo, const struct totals *t, size_t n, double s,
                        struct bench_figures *out)
{
    double all = n > 0 ? (double)n : 1;
    bench_figure_add(out, (double)t->good / s, "request_goodput");
    bench_figure_add(out, (double)t->good / all, "slo_attainment");
    if (isfinite(slo->ttft_ms))
        bench_figure_add(out, (double)t->good_ttft / all, "slo_attainment_ttft");
    if (isfinite(slo->tpot_ms))
        bench_figure_add(out, (double)t->good_tpot / all, "slo_attainment_tpot");
    if (isfinite(slo->e2el_ms))
        bench_figure_add(out, (double)t->good_e2el / all, "slo_attainment_e2el");
}

static double find(const struct bench_figures *f, const char *name)
{
    const struct bench_figure *x = bench_figure_find(f, name, strlen(name));
    return x ? x->value : 0;
}

enum sl_status bench_result_figures(const struct bench_result_spec *spec,
                                    const struct bench_record *r, size_t n,
                                    struct bench_figures *out, struct sl_err *err)
{
    struct totals t = count_all(&spec->slo, r, n);
    double s = t.duration_s > 0 ? t.duration_s : 1;
    out->n = 0;
    bench_figure_add(out, t.duration_s, "duration");
    bench_figure_add(out, (double)t.completed, "completed");
    bench_figure_add(out, (double)(n - t.completed), "failed");
    bench_figure_add(out, t.in, "total_input_tokens");
    bench_figure_add(out, t.out, "total_output_tokens");
    bench_figure_add(out, (double)t.completed / s, "request_throughput");
    bench_figure_add(out, t.out / s, "output_throughput");
    bench_figure_add(out, (t.in + t.out) / s, "total_token_throughput");
    bench_figure_add(out, peak_tokens_per_s(r, n, t.duration_s), "max_output_tokens_per_s");
    bench_figure_add(out, peak_open(r, n), "max_concurrent_requests");
    if (spec->slo.any)
        add_goodput(&spec->slo, &t, n, s, out);
    for (enum metric m = TTFT; m < N_METRICS; m++)
        if ((m == LAG || metric_wanted(spec->metrics, metric_names[m])) &&
            !add_metric(spec, m, r, n, out))
            return sl_fail(err, SL_NO_MEMORY, "bench: no memory for the figures");
    size_t count;
    double *ttft = sample(TTFT, r, n, &count);
    double limit = ttft ? LAG_SHARE_MAX * bench_percentile(ttft, count, 50) : 0;
    free(ttft);
    bench_figure_add(out, t.completed > 0 && find(out, "p99_dispatch_lag_ms") > limit, "degraded");
    return SL_OK;
}

/* ---- the table ---- */

static void put_line(struct sl_buf *out, const char *label, double x, int decimals)
{
    sl_buf_printf(out, "%-40s %12.*f\n", label, decimals, x);
}

static void put_metric(const struct bench_result_spec *spec, const struct bench_figures *f,
                       const char *name, const char *title, struct sl_buf *out)
{
    static const char *const kinds[] = {"mean", "median", "std"};
    char key[48], label[64];
    sl_buf_printf(out, "---- %s ----\n", title);
    for (size_t i = 0; i < 3 + spec->n_percentiles; i++) {
        if (i < 3)
            snprintf(key, sizeof key, "%s_%s_ms", kinds[i], name);
        else
            snprintf(key, sizeof key, "p%g_%s_ms", spec->percentiles[i - 3], name);
        snprintf(label, sizeof label, "%.*s (ms)", (int)strcspn(key, "_"), key);
        put_line(out, label, find(f, key), 2);
    }
}

void bench_result_table(const struct bench_description *d, const struct bench_result_spec *spec,
                        const struct bench_figures *f, struct sl_buf *out)
{
    static const char *const titles[] = {"time to first token", "time per output token",
                                         "inter-token latency", "end-to-end latency"};
    sl_buf_printf(out, "==== %s, %s, %zu requests ====\n", d->model, d->dataset, d->n);
    put_line(out, "completed", find(f, "completed"), 0);
    put_line(out, "failed", find(f, "failed"), 0);
    put_line(out, "duration (s)", find(f, "duration"), 2);
    put_line(out, "input tokens", find(f, "total_input_tokens"), 0);
    put_line(out, "output tokens", find(f, "total_output_tokens"), 0);
    put_line(out, "request throughput (req/s)", find(f, "request_throughput"), 2);
    if (spec->slo.any)
        put_line(out, "request goodput (req/s)", find(f, "request_goodput"), 2);
    put_line(out, "output throughput (tok/s)", find(f, "output_throughput"), 2);
    put_line(out, "peak output (tok/s)", find(f, "max_output_tokens_per_s"), 0);
    put_line(out, "peak concurrent requests", find(f, "max_concurrent_requests"), 0);
    put_line(out, "total throughput (tok/s)", find(f, "total_token_throughput"), 2);
    for (enum metric m = TTFT; m < LAG; m++)
        if (metric_wanted(spec->metrics, metric_names[m]))
            put_metric(spec, f, metric_names[m], titles[m], out);
    put_line(out, "dispatch lag p50 (ms)", find(f, "p50_dispatch_lag_ms"), 3);
    put_line(out, "dispatch lag p99 (ms)", find(f, "p99_dispatch_lag_ms"), 3);
    if (find(f, "degraded") != 0)
        sl_buf_puts(out, "DEGRADED: the generator was late by more than 5 % of the median TTFT\n");
}
