/* What runs of the engine alone look like as JSON and as a line of text. */
#include <sluice/bench/offline.h>

#include "stats.h"
#include <inttypes.h>
#include <stdio.h>

#define SAMPLES_MAX 1000

static const char *const mode_names[] = {"prefill", "decode", "mixed"};

/* "pp512", "tg128", "pp200+tg64", and "@16" when more than one sequence runs. */
static void name_case(const struct sl_offline_case *c, char *out, size_t size)
{
    char at[16] = "";
    if (c->n_batch > 1)
        snprintf(at, sizeof at, "@%u", c->n_batch);
    if (c->mode == SL_OFFLINE_PREFILL)
        snprintf(out, size, "pp%u%s", c->n_prompt, at);
    else if (c->mode == SL_OFFLINE_DECODE)
        snprintf(out, size, "tg%u%s", c->n_gen, at);
    else
        snprintf(out, size, "pp%u+tg%u%s", c->n_prompt, c->n_gen, at);
}

enum figure { WALL_NS, CPU_NS, FIRST_NS, PREFILL_PER_S, DECODE_PER_S, TOKENS_PER_S };

static double rate(uint64_t tokens, double ns)
{
    return ns > 0 ? (double)tokens * 1e9 / ns : 0;
}

static double figure_of(const struct sl_offline_sample *s, enum figure f)
{
    double wall_ns = (double)s->wall_ns;
    switch (f) {
    case CPU_NS:
        return (double)s->cpu_ns;
    case FIRST_NS:
        return (double)s->first_ns;
    case PREFILL_PER_S:
        return rate(s->n_prefill, wall_ns);
    case DECODE_PER_S:
        return rate(s->n_decode, wall_ns);
    case TOKENS_PER_S:
        return rate(s->n_prefill + s->n_decode, wall_ns);
    case WALL_NS:
        break;
    }
    return wall_ns;
}

static double median(const struct sl_offline_sample *s, size_t n, enum figure f)
{
    double x[SAMPLES_MAX];
    n = n < SAMPLES_MAX ? n : SAMPLES_MAX;
    for (size_t i = 0; i < n; i++)
        x[i] = figure_of(&s[i], f);
    bench_sort(x, n);
    return bench_percentile(x, n, 50);
}

static void put_spread(const struct sl_offline_sample *s, size_t n, enum figure f, const char *unit,
                       struct sl_buf *out)
{
    double x[SAMPLES_MAX];
    n = n < SAMPLES_MAX ? n : SAMPLES_MAX;
    for (size_t i = 0; i < n; i++)
        x[i] = figure_of(&s[i], f);
    const char *format = f == TOKENS_PER_S ? "%s%.3f" : "%s%.0f";
    sl_buf_printf(out, ",\"avg_%s\":%.3f,\"stddev_%s\":%.3f,\"median_%s\":%.3f,\"samples_%s\":[",
                  unit, bench_mean(x, n), unit, bench_std(x, n), unit, median(s, n, f), unit);
    for (size_t i = 0; i < n; i++)
        sl_buf_printf(out, format, i ? "," : "", x[i]);
    sl_buf_putc(out, ']');
}

void sl_offline_json(const struct sl_offline_case *c, const struct sl_offline_sample *samples,
                     size_t n, struct sl_buf *out)
{
    char name[64];
    name_case(c, name, sizeof name);
    sl_buf_printf(out,
                  "{\"test\":\"%s\",\"mode\":\"%s\",\"n_prompt\":%u,\"n_gen\":%u,\"n_seqs\":%u,"
                  "\"n_prompts\":%u,\"n_prefill_tokens\":%" PRIu64 ",\"n_decode_tokens\":%" PRIu64,
                  name, mode_names[c->mode], c->n_prompt,
                  c->mode == SL_OFFLINE_PREFILL ? 0 : c->n_gen, c->n_batch, c->n_prompts,
                  samples[0].n_prefill, samples[0].n_decode);
    if (c->mode != SL_OFFLINE_DECODE)
        sl_buf_printf(out, ",\"prefill_tok_per_s\":%.3f", median(samples, n, PREFILL_PER_S));
    if (c->mode != SL_OFFLINE_PREFILL)
        sl_buf_printf(out, ",\"decode_tok_per_s\":%.3f", median(samples, n, DECODE_PER_S));
    sl_buf_printf(out, ",\"total_tok_per_s\":%.3f,\"n_steps\":%" PRIu64,
                  median(samples, n, TOKENS_PER_S), samples[0].n_steps);
    put_spread(samples, n, WALL_NS, "ns", out);
    put_spread(samples, n, TOKENS_PER_S, "ts", out);
    put_spread(samples, n, CPU_NS, "cpu_ns", out);
    put_spread(samples, n, FIRST_NS, "first_token_ns", out);
    sl_buf_putc(out, '}');
}

void sl_offline_line(const struct sl_offline_case *c, const struct sl_offline_sample *samples,
                     size_t n, struct sl_buf *out)
{
    char name[64];
    name_case(c, name, sizeof name);
    double wall = median(samples, n, WALL_NS), cpu = median(samples, n, CPU_NS);
    sl_buf_printf(out, "%-20s", name);
    if (c->mode != SL_OFFLINE_DECODE)
        sl_buf_printf(out, "  prefill %9.1f tok/s", median(samples, n, PREFILL_PER_S));
    if (c->mode != SL_OFFLINE_PREFILL)
        sl_buf_printf(out, "  output %9.1f tok/s", median(samples, n, DECODE_PER_S));
    sl_buf_printf(out, "  median %.1f ms of %zu, %.2f cpu s per s\n", wall / 1e6, n,
                  wall > 0 ? cpu / wall : 0);
}
