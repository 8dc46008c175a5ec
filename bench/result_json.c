/* The result file of a load test. */
#include "result.h"

#include <sluice/base/machine.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static void put_str(struct sl_buf *out, const char *z)
{
    if (z)
        sl_buf_json_str(out, z, strlen(z));
    else
        sl_buf_puts(out, "null");
}

static void put_key_str(struct sl_buf *out, const char *key, const char *z)
{
    sl_buf_printf(out, "\"%s\": ", key);
    put_str(out, z);
    sl_buf_puts(out, ",\n ");
}

static void put_real(struct sl_buf *out, double x)
{
    if (isfinite(x))
        sl_buf_printf(out, "%.9g", x);
    else
        sl_buf_puts(out, isinf(x) ? "\"inf\"" : "null"); /* vLLM writes an infinite rate so */
}

/* A list with one entry for each record. */
#define PUT_LIST(out, key, n, i, put)                                                              \
    do {                                                                                           \
        sl_buf_printf(out, "\"%s\": [", key);                                                      \
        for (size_t i = 0; i < (n); i++) {                                                         \
            sl_buf_puts(out, i > 0 ? ", " : "");                                                   \
            put;                                                                                   \
        }                                                                                          \
        sl_buf_puts(out, "],\n ");                                                                 \
    } while (0)

static void put_gaps(struct sl_buf *out, const struct bench_record *r)
{
    sl_buf_putc(out, '[');
    for (size_t k = 0; k < r->n_itl; k++) {
        sl_buf_puts(out, k > 0 ? ", " : "");
        put_real(out, r->itl_s[k]);
    }
    sl_buf_putc(out, ']');
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

static void put_records(struct sl_buf *out, const struct bench_record *r, size_t n)
{
    PUT_LIST(out, "input_lens", n, i, sl_buf_printf(out, "%zu", r[i].n_in));
    PUT_LIST(out, "output_lens", n, i, sl_buf_printf(out, "%zu", r[i].n_out));
    PUT_LIST(out, "ttfts", n, i,
             put_real(out, r[i].first_ns ? seconds(r[i].intended_ns, r[i].first_ns) : 0));
    PUT_LIST(out, "itls", n, i, put_gaps(out, &r[i]));
    PUT_LIST(out, "start_times", n, i, put_real(out, seconds(0, r[i].intended_ns)));
    PUT_LIST(out, "send_times", n, i, put_real(out, seconds(0, r[i].sent_ns)));
    PUT_LIST(out, "end_times", n, i, put_real(out, seconds(0, r[i].end_ns)));
    PUT_LIST(out, "generated_texts", n, i,
             sl_buf_json_str(out, r[i].text.data ? r[i].text.data : "", r[i].text.len));
    PUT_LIST(out, "http_statuses", n, i, sl_buf_printf(out, "%ld", r[i].http));
    PUT_LIST(out, "errors", n, i, put_str(out, r[i].error));
}

static void put_environment(struct sl_buf *out, const struct bench_description *d)
{
    char cpu[128];
    struct utsname u;
    sl_cpu_model_name(cpu, sizeof cpu);
    sl_buf_puts(out, "\"environment\": {\"cpu\": ");
    put_str(out, cpu);
    sl_buf_printf(out, ", \"cores\": %ld, \"version\": ", sysconf(_SC_NPROCESSORS_ONLN));
    put_str(out, SLUICE_VERSION);
    if (uname(&u) == 0) {
        sl_buf_puts(out, ", \"kernel\": ");
        put_str(out, u.release);
        sl_buf_puts(out, ", \"machine\": ");
        put_str(out, u.machine);
    }
    sl_buf_puts(out, ", \"compiler\": ");
    put_str(out, __VERSION__);
    sl_buf_puts(out, ", \"argv\": [");
    for (int i = 0; i < d->argc; i++) {
        sl_buf_puts(out, i > 0 ? ", " : "");
        put_str(out, d->argv[i]);
    }
    sl_buf_puts(out, "]}");
}

void bench_result_json(const struct bench_description *d, const struct bench_figures *f,
                       const struct bench_record *r, size_t n, struct sl_buf *out)
{
    char date[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm))
        strftime(date, sizeof date, "%Y%m%d-%H%M%S", &tm);
    sl_buf_puts(out, "{");
    put_key_str(out, "date", date);
    put_key_str(out, "backend", d->backend);
    put_key_str(out, "endpoint_type", d->backend);
    put_key_str(out, "endpoint", d->endpoint);
    put_key_str(out, "label", NULL);
    put_key_str(out, "model_id", d->model);
    put_key_str(out, "tokenizer_id", d->model);
    put_key_str(out, "dataset", d->dataset);
    sl_buf_printf(out, "\"num_prompts\": %zu,\n \"request_rate\": ", d->n);
    put_real(out, d->rate);
    sl_buf_puts(out, ",\n \"burstiness\": ");
    put_real(out, d->burstiness);
    sl_buf_printf(out, ",\n \"max_concurrency\": ");
    if (d->max_concurrency)
        sl_buf_printf(out, "%zu", d->max_concurrency);
    else
        sl_buf_puts(out, "null");
    sl_buf_printf(out, ",\n \"seed\": %llu,\n ", (unsigned long long)d->seed);
    sl_buf_puts(out, "\"latency_from\": \"intended send time\",\n ");
    for (size_t i = 0; i < f->n; i++) {
        bool flag = !strcmp(f->at[i].name, "degraded");
        sl_buf_printf(out, "\"%s\": ", f->at[i].name);
        if (flag)
            sl_buf_puts(out, f->at[i].value != 0 ? "true" : "false");
        else
            put_real(out, f->at[i].value);
        sl_buf_puts(out, ",\n ");
    }
    if (!bench_figure_find(f, "request_goodput", strlen("request_goodput")))
        sl_buf_puts(out, "\"request_goodput\": null,\n ");
    put_records(out, r, n);
    put_environment(out, d);
    sl_buf_puts(out, "}\n");
}
