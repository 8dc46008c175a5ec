/* Filters of single values, argument binding, and the lookup of all filters by name. */
#include "jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The index of a name among the words of spec, or -1. */
static int spec_index(const char *spec, struct sl_str name)
{
    int i = 0;
    for (const char *w = spec; *w; i++) {
        size_t n = strcspn(w, " ");
        if (name.len == n && memcmp(name.data, w, n) == 0)
            return i;
        w += n + (w[n] == ' ');
    }
    return -1;
}

static size_t spec_count(const char *spec)
{
    size_t n = *spec != 0;
    for (; *spec; spec++)
        n += *spec == ' ';
    return n;
}

bool jj_bind(struct jj_ev *ev, const char *what, const char *spec, const struct jj_args *args,
             struct jj_value out[JJ_ARGS_MAX])
{
    size_t max = spec_count(spec);
    for (size_t i = 0; i < JJ_ARGS_MAX; i++)
        out[i] = (struct jj_value){.kind = JJ_ABSENT};
    if (args->n > max) {
        jj_fail(ev, "%s takes at most %zu arguments, not %zu", what, max, args->n);
        return false;
    }
    for (size_t i = 0; i < args->n; i++)
        out[i] = args->at[i];
    for (size_t i = 0; i < args->n_kw; i++) {
        struct sl_str name = args->kw[i].name;
        int at = spec_index(spec, name);
        if (at < 0 || out[at].kind != JJ_ABSENT) {
            jj_fail(ev, "%s: argument '%.*s' is unknown or given twice", what,
                    name.len < 40 ? (int)name.len : 40, name.data);
            return false;
        }
        out[at] = args->kw[i].value;
    }
    return true;
}

static struct sl_str text_of(struct jj_ev *ev, struct jj_value v, const char *absent)
{
    return v.kind == JJ_ABSENT ? sl_str_of(absent) : jj_text(ev, v);
}

static struct jj_value f_upper(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_case(ev, jj_text(ev, in), 'u');
}

static struct jj_value f_lower(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_case(ev, jj_text(ev, in), 'l');
}

static struct jj_value f_title(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_case(ev, jj_text(ev, in), 'j');
}

static struct jj_value f_capitalize(struct jj_ev *ev, struct jj_value in,
                                    const struct jj_value *arg, const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_case(ev, jj_text(ev, in), 'c');
}

static struct jj_value f_trim(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    (void)raw;
    struct sl_str s = jj_text(ev, in);
    if (arg[0].kind == JJ_ABSENT || arg[0].kind == JJ_NONE)
        return jj_charge(ev, s.len) ? jj_str(jj_strip(s, NULL, true, true)) : jj_undef();
    struct sl_str chars = jj_text(ev, arg[0]);
    if (!jj_charge(ev, s.len / 16 * chars.len))
        return jj_undef();
    return jj_str(jj_strip(s, &chars, true, true));
}

static struct jj_value f_replace(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                 const struct jj_args *raw)
{
    (void)raw;
    if (arg[0].kind == JJ_ABSENT || arg[1].kind == JJ_ABSENT) {
        jj_fail(ev, "replace wants two texts");
        return jj_undef();
    }
    int64_t count = arg[2].kind == JJ_INT ? arg[2].u.i : -1;
    return jj_replace(ev, jj_text(ev, in), jj_text(ev, arg[0]), jj_text(ev, arg[1]), count);
}

static struct jj_value f_string(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_str(jj_text(ev, in));
}

static struct jj_value f_safe(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    return f_string(ev, in, arg, raw);
}

static struct jj_value f_escape(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)arg, (void)raw;
    static const char *const entity[] = {"&&amp;", "<&lt;", ">&gt;", "'&#39;", "\"&#34;"};
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    struct sl_str s = jj_text(ev, in);
    for (size_t i = 0; i < s.len; i++) {
        size_t k = 0;
        while (k < 5 && entity[k][0] != s.data[i])
            k++;
        if (k < 5)
            sl_buf_puts(&b, entity[k] + 1);
        else
            sl_buf_putc(&b, s.data[i]);
    }
    jj_charge(ev, s.len);
    return jj_take(ev, &b);
}

static struct jj_value f_default(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                 const struct jj_args *raw)
{
    (void)ev, (void)raw;
    if (in.kind == JJ_UNDEF || (jj_truth(arg[1]) && !jj_truth(in)))
        return arg[0].kind == JJ_ABSENT ? jj_strz("") : arg[0];
    return in;
}

static struct jj_value f_tojson(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)raw;
    return jj_tojson(ev, in, arg);
}

/* One line of `indent`: a newline before all but the first, the pad where wanted. */
static void put_line(struct sl_buf *b, struct sl_str line, struct sl_str pad, bool first,
                     bool blank)
{
    if (!first) {
        sl_buf_putc(b, '\n');
        if (blank || line.len > 0)
            sl_buf_append(b, pad.data, pad.len);
    }
    sl_buf_append(b, line.data, line.len);
}

static struct jj_value f_indent(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)raw;
    struct jj_value width = arg[0].kind == JJ_ABSENT ? jj_int(4) : arg[0];
    if (width.kind != JJ_STR)
        width = jj_arith(ev, JJ_MUL, jj_strz(" "), width);
    if (ev->failed || in.kind != JJ_STR) {
        jj_fail(ev, "indent wants a string");
        return jj_undef();
    }
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    struct jj_value text = jj_join(ev, in.u.s, SL_STR("\n"));
    struct sl_str line, pad = width.u.s;
    bool first = true;
    if (jj_truth(arg[1]))
        sl_buf_append(&b, pad.data, pad.len);
    for (size_t pos = 0; !ev->failed && !b.failed && jj_next_line(text.u.s, &pos, &line);) {
        put_line(&b, line, pad, first, jj_truth(arg[2]));
        first = false;
        jj_charge(ev, line.len);
    }
    return jj_take(ev, &b);
}

/* ---- numbers ---- */

/* float(text): the whole text but outer space. */
static bool read_float(struct sl_str s, double *out)
{
    char z[512], *end;
    s = jj_strip(s, NULL, true, true);
    size_t n = 0;
    for (size_t i = 0; i < s.len && n < sizeof z - 1; i++) {
        bool inner = i > 0 && i + 1 < s.len && s.data[i - 1] >= '0' && s.data[i - 1] <= '9' &&
                     s.data[i + 1] >= '0' && s.data[i + 1] <= '9';
        if (s.data[i] == '_' && inner)
            continue;
        if (!strchr("0123456789+-.eE", s.data[i]) || !s.data[i]) {
            /* only what float() takes besides digits: inf and nan */
            if (!strchr("infatyINFATY", s.data[i]) || !s.data[i])
                return false;
        }
        z[n++] = s.data[i];
    }
    z[n] = 0;
    if (n == 0 || n == sizeof z - 1)
        return false;
    *out = strtod(z, &end);
    return *end == 0;
}

static bool read_int(struct sl_str s, int base, int64_t *out)
{
    s = jj_strip(s, NULL, true, true);
    bool minus = s.len > 0 && s.data[0] == '-';
    size_t i = s.len > 0 && (s.data[0] == '-' || s.data[0] == '+');
    char letter = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : 0;
    if (letter && i + 1 < s.len && s.data[i] == '0' && (s.data[i + 1] | 0x20) == letter)
        i += 2;
    int64_t v = 0;
    bool any = false;
    for (; i < s.len; i++) {
        char c = s.data[i], low = (char)(c | 0x20);
        if (c == '_' && any && i + 1 < s.len && s.data[i + 1] != '_')
            continue;
        int d = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'z' ? low - 'a' + 10 : 99;
        if (d >= base || __builtin_mul_overflow(v, base, &v) ||
            __builtin_sub_overflow(v, d, &v)) /* downwards: the least number fits */
            return false;
        any = true;
    }
    if (!any || (!minus && v == INT64_MIN))
        return false;
    *out = minus ? v : -v;
    return true;
}

static struct jj_value int_of_float(double f, struct jj_value otherwise)
{
    if (!(f > -9.2e18 && f < 9.2e18))
        return otherwise;
    return jj_int((int64_t)f);
}

static struct jj_value f_int(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)raw;
    struct jj_value otherwise = arg[0].kind == JJ_ABSENT ? jj_int(0) : arg[0];
    int base = arg[1].kind == JJ_INT && arg[1].u.i >= 2 && arg[1].u.i <= 36 ? (int)arg[1].u.i : 10;
    int64_t i;
    double f;
    if (in.kind == JJ_UNDEF) {
        jj_fail(ev, "int of an undefined value");
        return jj_undef();
    }
    if (in.kind == JJ_INT || in.kind == JJ_BOOL)
        return jj_int(jj_as_int(in));
    if (in.kind == JJ_FLOAT)
        return int_of_float(in.u.f, otherwise);
    if (in.kind != JJ_STR)
        return otherwise;
    if (read_int(in.u.s, base, &i))
        return jj_int(i);
    return read_float(in.u.s, &f) ? int_of_float(f, otherwise) : otherwise;
}

static struct jj_value f_float(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)raw;
    double f;
    if (in.kind == JJ_UNDEF) {
        jj_fail(ev, "float of an undefined value");
        return jj_undef();
    }
    if (jj_is_number(in))
        return jj_float(jj_as_float(in));
    if (in.kind == JJ_STR && read_float(in.u.s, &f))
        return jj_float(f);
    return arg[0].kind == JJ_ABSENT ? jj_float(0) : arg[0];
}

static struct jj_value f_abs(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)arg, (void)raw;
    if (in.kind == JJ_FLOAT)
        return jj_float(fabs(in.u.f));
    if (!jj_is_number(in) || jj_as_int(in) == INT64_MIN) {
        jj_fail(ev, "abs wants a number");
        return jj_undef();
    }
    int64_t i = jj_as_int(in);
    return jj_int(i < 0 ? -i : i);
}

/* round(): to even on a tie, exact because printf rounds the exact binary value. */
static struct jj_value round_to(double f, int64_t precision)
{
    char z[400];
    if (!isfinite(f) || precision > 300)
        return jj_float(f);
    if (precision >= 0) {
        snprintf(z, sizeof z, "%.*f", (int)precision, f);
        return jj_float(strtod(z, NULL));
    }
    double unit = pow(10, (double)-precision);
    return jj_float(isfinite(unit) ? nearbyint(f / unit) * unit : 0);
}

static struct jj_value round_int(int64_t i, int64_t precision)
{
    int64_t unit = 1;
    for (; precision < 0; precision++)
        if (__builtin_mul_overflow(unit, 10, &unit))
            return jj_int(0);
    int64_t q = i / unit, rest = i % unit, half = unit / 2;
    int64_t away = rest < 0 ? -rest : rest;
    if (unit > 1 && (away > half || (away == half && q % 2 != 0)))
        q += i < 0 ? -1 : 1;
    return jj_int(q * unit);
}

static struct jj_value f_round(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)raw;
    int64_t precision = arg[0].kind == JJ_INT ? arg[0].u.i : 0;
    struct sl_str method = text_of(ev, arg[1], "common");
    bool up = sl_str_eqz(method, "ceil"), down = sl_str_eqz(method, "floor");
    if (!jj_is_number(in) || precision > 400 || precision < -400 ||
        (!up && !down && !sl_str_eqz(method, "common"))) {
        jj_fail(ev, "round wants a number, a precision and common, ceil or floor");
        return jj_undef();
    }
    if (!up && !down && in.kind != JJ_FLOAT)
        return precision >= 0 ? jj_int(jj_as_int(in)) : round_int(jj_as_int(in), precision);
    if (!up && !down)
        return round_to(in.u.f, precision);
    double unit = pow(10, (double)precision), f = jj_as_float(in) * unit;
    return jj_float((up ? ceil(f) : floor(f)) / unit);
}

static const struct jj_filter_row value_filters[] = {
    {"upper", f_upper, ""},
    {"lower", f_lower, ""},
    {"title", f_title, ""},
    {"capitalize", f_capitalize, ""},
    {"trim", f_trim, "chars"},
    {"replace", f_replace, "old new count"},
    {"string", f_string, ""},
    {"safe", f_safe, ""},
    {"escape", f_escape, ""},
    {"e", f_escape, ""},
    {"default", f_default, "default_value boolean"},
    {"d", f_default, "default_value boolean"},
    {"tojson", f_tojson, "ensure_ascii indent separators sort_keys"},
    {"indent", f_indent, "width first blank"},
    {"int", f_int, "default base"},
    {"float", f_float, "default"},
    {"abs", f_abs, ""},
    {"round", f_round, "precision method"},
    {NULL, NULL, NULL},
};

static const struct jj_filter_row *find_filter(struct sl_str name)
{
    for (const struct jj_filter_row *r = value_filters; r->name; r++)
        if (sl_str_eqz(name, r->name))
            return r;
    for (const struct jj_filter_row *r = jj_list_filters; r->name; r++)
        if (sl_str_eqz(name, r->name))
            return r;
    return NULL;
}

struct jj_value jj_filter(struct jj_ev *ev, struct sl_str name, struct jj_value in,
                          const struct jj_args *args)
{
    struct jj_value arg[JJ_ARGS_MAX];
    const struct jj_filter_row *row = find_filter(name);
    if (!row) {
        jj_fail(ev, "no filter named '%.*s'", name.len < 40 ? (int)name.len : 40, name.data);
        return jj_undef();
    }
    if (ev->failed || !jj_charge(ev, 0))
        return jj_undef();
    if (row->spec && !jj_bind(ev, row->name, row->spec, args, arg))
        return jj_undef();
    /* A filter may run others (map), which may run others. */
    if (ev->depth >= JJ_EVAL_DEPTH) {
        jj_fail(ev, "filters nested too deep");
        return jj_undef();
    }
    ev->depth++;
    struct jj_value out = row->fn(ev, in, arg, args);
    ev->depth--;
    return ev->failed ? jj_undef() : out;
}
