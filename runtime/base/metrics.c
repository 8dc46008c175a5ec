/* Metrics registry and its text form (Prometheus exposition format, version 0.0.4). The list only
 * grows; its lock is taken to register and to print, never to update. */
#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <sluice/base/metrics.h>

#include "number.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

const double sl_buckets_ttft[] = {0.001, 0.0025, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08,
                                  0.1,   0.25,   0.5,   0.75, 1.0,   2.5,   5.0,   7.5,
                                  10.0,  20.0,   40.0,  80.0, 160.0, 640.0, 2560.0};
const uint32_t sl_n_buckets_ttft = sizeof sl_buckets_ttft / sizeof *sl_buckets_ttft;

const double sl_buckets_itl[] = {0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015,
                                 0.025,  0.05,  0.075, 0.1,   0.15,  0.2,   0.3,    0.4,  0.5,
                                 0.75,   1.0,   2.5,   5.0,   7.5,   10.0,  20.0,   40.0, 80.0};
const uint32_t sl_n_buckets_itl = sizeof sl_buckets_itl / sizeof *sl_buckets_itl;

const double sl_buckets_e2e[] = {0.01, 0.05, 0.1,   0.3,   0.5,   0.8,   1.0,    1.5,
                                 2.0,  2.5,  5.0,   10.0,  15.0,  20.0,  30.0,   40.0,
                                 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
const uint32_t sl_n_buckets_e2e = sizeof sl_buckets_e2e / sizeof *sl_buckets_e2e;

const double sl_buckets_tokens[] = {1,    2,    5,    10,    20,    50,    100,    200,    500,
                                    1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};
const uint32_t sl_n_buckets_tokens = sizeof sl_buckets_tokens / sizeof *sl_buckets_tokens;

#define BOUNDS_MAX 31

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the list */
static struct sl_metric *first;

static uint64_t to_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static double from_bits(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static void add_to(_Atomic uint64_t *cell, double by)
{
    uint64_t old = atomic_load_explicit(cell, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(cell, &old, to_bits(from_bits(old) + by),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

void sl_metric_register(struct sl_metric *m)
{
    sl_assert(m->name && m->n_bounds <= BOUNDS_MAX);
    pthread_mutex_lock(&lock);
    struct sl_metric **at = &first;
    while (*at && *at != m)
        at = &(*at)->next;
    if (!*at) {
        m->next = NULL;
        *at = m;
    }
    pthread_mutex_unlock(&lock);
}

/* A counter never falls: what would lower it, or make it NaN, is dropped. */
void sl_metric_add(struct sl_metric *m, double by)
{
    if (isnan(by) || (m->kind == SL_COUNTER && by < 0))
        return;
    add_to(&m->value_bits, by);
}

void sl_metric_set(struct sl_metric *m, double to)
{
    atomic_store_explicit(&m->value_bits, to_bits(to), memory_order_relaxed);
}

void sl_metric_observe(struct sl_metric *m, double value)
{
    if (isnan(value))
        return;
    uint32_t i = 0;
    while (i < m->n_bounds && value > m->bounds[i])
        i++;
    atomic_fetch_add_explicit(&m->buckets[i], 1, memory_order_relaxed);
    add_to(&m->sum_bits, value);
}

double sl_metric_value(const struct sl_metric *m)
{
    return from_bits(atomic_load_explicit(&m->value_bits, memory_order_relaxed));
}

static void put_value(struct sl_buf *out, double v)
{
    char text[NUMBER_TEXT_MAX];
    if (isnan(v))
        sl_buf_puts(out, "NaN");
    else if (isinf(v))
        sl_buf_puts(out, v > 0 ? "+Inf" : "-Inf");
    else
        sl_buf_append(out, text, number_f64(v, text));
}

/* {a,b,le="0.5"} out of the parts that are there; le NaN: no such part. */
static void put_labels(struct sl_buf *out, const char *common, const char *own, double le)
{
    const char *parts[2] = {common, own};
    char sep = '{';
    for (int i = 0; i < 2; i++) {
        if (!parts[i] || !*parts[i])
            continue;
        sl_buf_putc(out, sep);
        sl_buf_puts(out, parts[i]);
        sep = ',';
    }
    if (!isnan(le)) {
        sl_buf_putc(out, sep);
        sl_buf_puts(out, "le=\"");
        put_value(out, le);
        sl_buf_putc(out, '"');
        sep = ',';
    }
    if (sep == ',')
        sl_buf_putc(out, '}');
}

/* Buckets are read once, so the count is the last bucket whatever observers do meanwhile. */
static void print_histogram(struct sl_buf *out, const struct sl_metric *m, const char *labels)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i <= m->n_bounds; i++) {
        sum += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        sl_buf_printf(out, "%s_bucket", m->name);
        put_labels(out, labels, m->labels, i < m->n_bounds ? m->bounds[i] : (double)INFINITY);
        sl_buf_printf(out, " %llu\n", (unsigned long long)sum);
    }
    sl_buf_printf(out, "%s_sum", m->name);
    put_labels(out, labels, m->labels, (double)NAN);
    sl_buf_putc(out, ' ');
    put_value(out, from_bits(atomic_load_explicit(&m->sum_bits, memory_order_relaxed)));
    sl_buf_printf(out, "\n%s_count", m->name);
    put_labels(out, labels, m->labels, (double)NAN);
    sl_buf_printf(out, " %llu\n", (unsigned long long)sum);
}

static void print_one(struct sl_buf *out, const struct sl_metric *m, const char *labels)
{
    if (m->kind == SL_HISTOGRAM) {
        print_histogram(out, m, labels);
        return;
    }
    sl_buf_puts(out, m->name);
    put_labels(out, labels, m->labels, (double)NAN);
    sl_buf_putc(out, ' ');
    put_value(out, sl_metric_value(m));
    sl_buf_putc(out, '\n');
}

static void print_head(struct sl_buf *out, const struct sl_metric *m)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    sl_buf_printf(out, "# HELP %s ", m->name);
    for (const char *p = m->help ? m->help : ""; *p; p++) {
        if (*p == '\\')
            sl_buf_puts(out, "\\\\");
        else if (*p == '\n')
            sl_buf_puts(out, "\\n");
        else
            sl_buf_putc(out, *p);
    }
    sl_buf_printf(out, "\n# TYPE %s %s\n", m->name, kinds[m->kind]);
}

static bool is_first_of_name(const struct sl_metric *m)
{
    const struct sl_metric *p = first;
    while (p != m && strcmp(p->name, m->name) != 0)
        p = p->next;
    return p == m;
}

void sl_metrics_print(struct sl_buf *out, const char *labels)
{
    pthread_mutex_lock(&lock);
    for (const struct sl_metric *m = first; m; m = m->next) {
        if (!is_first_of_name(m))
            continue;
        print_head(out, m);
        for (const struct sl_metric *p = m; p; p = p->next)
            if (strcmp(p->name, m->name) == 0)
                print_one(out, p, labels);
    }
    pthread_mutex_unlock(&lock);
}
