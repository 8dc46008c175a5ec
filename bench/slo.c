/* Goodput bounds and assertions over the figures of a run. */
#include "slo.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEPARATORS " ,\t\n"

enum sl_status bench_slo_parse(const char *text, struct bench_slo *out, struct sl_err *err)
{
    *out = (struct bench_slo){INFINITY, INFINITY, INFINITY, false};
    for (const char *p = text ? text : ""; *(p += strspn(p, SEPARATORS));) {
        static const char *const names[] = {"ttft:", "tpot:", "e2el:"};
        double *fields[] = {&out->ttft_ms, &out->tpot_ms, &out->e2el_ms};
        size_t k = 0;
        while (k < 3 && strncmp(p, names[k], 5) != 0)
            k++;
        char *end = NULL;
        double ms = k < 3 ? strtod(p + 5, &end) : 0;
        if (k == 3 || end == p + 5 || (*end && !strchr(SEPARATORS, *end)) || !(ms > 0))
            return sl_fail_param(err, SL_USAGE, "goodput",
                                 "--goodput: '%.40s' is not ttft:MS, tpot:MS or e2el:MS", p);
        *fields[k] = ms;
        out->any = true;
        p = end;
    }
    return SL_OK;
}

bool bench_slo_met(const struct bench_slo *s, double ttft_ms, double tpot_ms, double e2el_ms)
{
    return ttft_ms <= s->ttft_ms && tpot_ms <= s->tpot_ms && e2el_ms <= s->e2el_ms;
}

void bench_figure_add(struct bench_figures *f, double value, const char *fmt, ...)
{
    va_list ap;
    sl_assert(f->n < BENCH_FIGURES_MAX);
    struct bench_figure *x = &f->at[f->n++];
    va_start(ap, fmt);
    vsnprintf(x->name, sizeof x->name, fmt, ap);
    va_end(ap);
    x->value = value;
}

const struct bench_figure *bench_figure_find(const struct bench_figures *f, const char *name,
                                             size_t len)
{
    for (size_t i = 0; i < f->n; i++)
        if (strlen(f->at[i].name) == len && memcmp(f->at[i].name, name, len) == 0)
            return &f->at[i];
    return NULL;
}

static bool holds(double x, const char *op, double bound)
{
    if (op[0] == '=')
        return x == bound;
    if (op[0] == '!')
        return x != bound;
    if (op[0] == '<')
        return op[1] == '=' ? x <= bound : x < bound;
    return op[1] == '=' ? x >= bound : x > bound;
}

enum sl_status bench_assert(const char *text, const struct bench_figures *f, struct sl_err *err)
{
    for (const char *p = text ? text : ""; *(p += strspn(p, SEPARATORS));) {
        size_t name_len = strcspn(p, "<>=! ,");
        const char *op = p + name_len + strspn(p + name_len, " ");
        size_t op_len = strspn(op, "<>=!");
        bool known = (op_len == 1 && strchr("<>", *op)) ||
                     (op_len == 2 && op[1] == '=' && strchr("<>=!", *op));
        char *end = NULL;
        double bound = known ? strtod(op + op_len, &end) : 0;
        if (name_len == 0 || !known || end == op + op_len || (*end && !strchr(SEPARATORS, *end)))
            return sl_fail_param(err, SL_USAGE, "assert",
                                 "--assert: '%.60s' is not NAME<NUMBER (or <= > >= == !=)", p);
        if (f) {
            const struct bench_figure *x = bench_figure_find(f, p, name_len);
            if (!x)
                return sl_fail_param(err, SL_USAGE, "assert", "--assert: no figure named '%.*s'",
                                     name_len < 60 ? (int)name_len : 60, p);
            if (!holds(x->value, op, bound))
                return sl_fail(err, SL_ASSERTION, "assertion failed: %s is %g, wanted %.*s%g",
                               x->name, x->value, (int)op_len, op, bound);
        }
        p = end;
    }
    return SL_OK;
}
