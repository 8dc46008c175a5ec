/* Values as text: Python's str() and repr(), and JSON as json.dumps writes it with the settings
 * that chat templates expect (non-ASCII kept, keys in order, ", " and ": "). */
#include "jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* repr() of a float: the fewest digits that read back, exponents from 1e16 and below 1e-4. */
static void put_float(struct sl_buf *b, double f, bool json)
{
    char z[40];
    int digits = 1;
    if (isnan(f) || isinf(f)) {
        const char *inf = json ? "Infinity" : "inf";
        sl_buf_printf(b, "%s%s", !isnan(f) && f < 0 ? "-" : "",
                      isnan(f) ? (json ? "NaN" : "nan") : inf);
        return;
    }
    do
        snprintf(z, sizeof z, "%.*e", digits - 1, f);
    while (digits++ < 17 && strtod(z, NULL) != f);
    int exponent = atoi(strchr(z, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        char *e = strchr(z, 'e');
        sl_buf_printf(b, "%.*se%c%02d", (int)(e - z), z, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals = digits - 2 - exponent; /* digits is one past the count that read back */
    sl_buf_printf(b, "%.*f", decimals > 1 ? decimals : 1, f);
}

/* What Python calls printable: no control, format, surrogate, private, unassigned or separator. */
static bool is_printable(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

static void put_repr_str(struct sl_buf *b, struct sl_str s)
{
    bool single = s.len > 0 && memchr(s.data, '\'', s.len);
    char quote = single && !memchr(s.data, '"', s.len) ? '"' : '\'';
    sl_buf_putc(b, quote);
    for (size_t pos = 0; pos < s.len;) {
        size_t from = pos;
        uint32_t c = jj_utf8_next(s, &pos);
        if (c == (uint32_t)quote || c == '\\')
            sl_buf_printf(b, "\\%c", (int)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            sl_buf_puts(b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (is_printable(c))
            sl_buf_append(b, s.data + from, pos - from);
        else
            sl_buf_printf(b,
                          c < 0x100     ? "\\x%02x"
                          : c < 0x10000 ? "\\u%04x"
                                        : "\\U%08x",
                          (unsigned)c);
    }
    sl_buf_putc(b, quote);
}

static void put_repr(struct jj_ev *ev, struct sl_buf *b, struct jj_value v);

static void put_items(struct jj_ev *ev, struct sl_buf *b, const struct jj_list *l)
{
    for (size_t i = 0; i < l->n && !ev->failed && !b->failed; i++) {
        if (i > 0)
            sl_buf_puts(b, ", ");
        put_repr(ev, b, l->at[i]);
    }
}

static void put_dict(struct jj_ev *ev, struct sl_buf *b, const struct jj_dict *d)
{
    sl_buf_putc(b, '{');
    for (size_t i = 0; i < d->n && !ev->failed && !b->failed; i++) {
        if (i > 0)
            sl_buf_puts(b, ", ");
        put_repr(ev, b, d->at[i].key);
        sl_buf_puts(b, ": ");
        put_repr(ev, b, d->at[i].value);
    }
    sl_buf_putc(b, '}');
}

static void put_range(struct sl_buf *b, const struct jj_range *r)
{
    sl_buf_printf(b, "range(%" PRId64 ", %" PRId64, r->start, r->stop);
    if (r->step != 1)
        sl_buf_printf(b, ", %" PRId64, r->step);
    sl_buf_putc(b, ')');
}

static void put_nested(struct jj_ev *ev, struct sl_buf *b, struct jj_value v)
{
    if (ev->depth >= JJ_EVAL_DEPTH) {
        jj_fail(ev, "values nested too deep");
        return;
    }
    ev->depth++;
    switch (v.kind) {
    case JJ_LIST:
        sl_buf_putc(b, '[');
        put_items(ev, b, v.u.list);
        sl_buf_putc(b, ']');
        break;
    case JJ_TUPLE:
        sl_buf_putc(b, '(');
        put_items(ev, b, v.u.list);
        sl_buf_puts(b, v.u.list->n == 1 ? ",)" : ")");
        break;
    case JJ_VIEW:
        sl_buf_printf(b, "%s([", v.u.list->what);
        put_items(ev, b, v.u.list);
        sl_buf_puts(b, "])");
        break;
    case JJ_SPACE:
        sl_buf_puts(b, "<Namespace ");
        put_dict(ev, b, v.u.dict);
        sl_buf_putc(b, '>');
        break;
    default:
        put_dict(ev, b, v.u.dict);
    }
    ev->depth--;
}

static void put_repr(struct jj_ev *ev, struct sl_buf *b, struct jj_value v)
{
    if (!jj_charge(ev, v.kind == JJ_STR ? v.u.s.len : 0))
        return;
    switch (v.kind) {
    case JJ_UNDEF:
    case JJ_ABSENT:
        sl_buf_puts(b, "Undefined");
        break;
    case JJ_NONE:
        sl_buf_puts(b, "None");
        break;
    case JJ_BOOL:
        sl_buf_puts(b, v.u.b ? "True" : "False");
        break;
    case JJ_INT:
        sl_buf_printf(b, "%" PRId64, v.u.i);
        break;
    case JJ_FLOAT:
        put_float(b, v.u.f, false);
        break;
    case JJ_STR:
        put_repr_str(b, v.u.s);
        break;
    case JJ_RANGE:
        put_range(b, v.u.range);
        break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
    case JJ_DICT:
    case JJ_SPACE:
        put_nested(ev, b, v);
        break;
    case JJ_MACRO:
        sl_buf_puts(b, "<Macro ");
        put_repr_str(b, v.u.macro->node->str);
        sl_buf_putc(b, '>');
        break;
    case JJ_LOOP:
        sl_buf_printf(b, "<LoopContext %zu/%zu>", v.u.loop->i + 1, v.u.loop->n);
        break;
    default: /* Python shows an address here */
        sl_buf_printf(b, "<%s object>", jj_kind_name(v));
    }
}

struct sl_str jj_text(struct jj_ev *ev, struct jj_value v)
{
    if (v.kind == JJ_STR)
        return v.u.s;
    if (v.kind == JJ_UNDEF)
        return (struct sl_str){"", 0};
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    put_repr(ev, &b, v);
    struct jj_value s = jj_take(ev, &b);
    return s.kind == JJ_STR ? s.u.s : (struct sl_str){"", 0};
}

/* JSON. */

struct json_out {
    struct sl_buf b;
    bool ascii, sort;
    bool pretty;
    struct sl_str indent, comma, colon;
    size_t level;
};

static void put_json_str(struct json_out *o, struct sl_str s)
{
    static const char plain[] = "\"\"\\\\\nn\rr\tt\bb\ff";
    sl_buf_putc(&o->b, '"');
    for (size_t pos = 0; pos < s.len;) {
        size_t from = pos;
        uint32_t c = jj_utf8_next(s, &pos);
        const char *q = plain;
        while (*q && (uint32_t)*q != c)
            q += 2;
        if (*q)
            sl_buf_printf(&o->b, "\\%c", q[1]);
        else if (c >= 0x10000 && o->ascii)
            sl_buf_printf(&o->b, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                          0xdc00 + ((c - 0x10000) & 0x3ff));
        else if (c < 0x20 || (c > 0x7e && o->ascii))
            sl_buf_printf(&o->b, "\\u%04x", (unsigned)c);
        else
            sl_buf_append(&o->b, s.data + from, pos - from);
    }
    sl_buf_putc(&o->b, '"');
}

static void put_json(struct jj_ev *ev, struct json_out *o, struct jj_value v);

static void put_break(struct json_out *o)
{
    if (!o->pretty)
        return;
    sl_buf_putc(&o->b, '\n');
    for (size_t i = 0; i < o->level && !o->b.failed; i++)
        sl_buf_append(&o->b, o->indent.data, o->indent.len);
}

static void put_separator(struct json_out *o, size_t i)
{
    if (i > 0)
        sl_buf_append(&o->b, o->comma.data, o->comma.len);
    put_break(o);
}

static void put_json_list(struct jj_ev *ev, struct json_out *o, const struct jj_list *l)
{
    sl_buf_putc(&o->b, '[');
    o->level++;
    for (size_t i = 0; i < l->n && !ev->failed && !o->b.failed; i++) {
        put_separator(o, i);
        put_json(ev, o, l->at[i]);
    }
    o->level--;
    if (l->n > 0)
        put_break(o);
    sl_buf_putc(&o->b, ']');
}

static void put_json_key(struct jj_ev *ev, struct json_out *o, struct jj_value key)
{
    if (key.kind == JJ_STR) {
        put_json_str(o, key.u.s);
    } else if (key.kind == JJ_NONE || jj_is_number(key)) {
        sl_buf_putc(&o->b, '"');
        put_json(ev, o, key);
        sl_buf_putc(&o->b, '"');
    } else {
        jj_fail(ev, "tojson: a %s cannot be a key", jj_kind_name(key));
    }
}

static void put_json_dict(struct jj_ev *ev, struct json_out *o, const struct jj_dict *d)
{
    struct jj_value keys = jj_list_new(ev, JJ_LIST, d->n);
    for (size_t i = 0; i < d->n && !ev->failed; i++)
        jj_push(ev, keys.u.list, d->at[i].key);
    if (o->sort && !ev->failed) {
        const struct jj_kwarg exact = {SL_STR("case_sensitive"), jj_bool(true)};
        const struct jj_args args = {.n_kw = 1, .kw = &exact};
        keys = jj_filter(ev, SL_STR("sort"), keys, &args);
    }
    sl_buf_putc(&o->b, '{');
    o->level++;
    for (size_t i = 0; i < d->n && !ev->failed && !o->b.failed; i++) {
        struct jj_value key = keys.u.list->at[i];
        const struct jj_value *v = o->sort ? jj_dict_get(ev, d, key) : &d->at[i].value;
        put_separator(o, i);
        put_json_key(ev, o, key);
        sl_buf_append(&o->b, o->colon.data, o->colon.len);
        if (v && !ev->failed)
            put_json(ev, o, *v);
    }
    o->level--;
    if (d->n > 0)
        put_break(o);
    sl_buf_putc(&o->b, '}');
}

static void put_json_nested(struct jj_ev *ev, struct json_out *o, struct jj_value v)
{
    if (ev->depth >= JJ_EVAL_DEPTH) {
        jj_fail(ev, "values nested too deep");
        return;
    }
    ev->depth++;
    if (v.kind == JJ_DICT)
        put_json_dict(ev, o, v.u.dict);
    else
        put_json_list(ev, o, v.u.list);
    ev->depth--;
}

static void put_json(struct jj_ev *ev, struct json_out *o, struct jj_value v)
{
    if (!jj_charge(ev, v.kind == JJ_STR ? v.u.s.len : 0))
        return;
    switch (v.kind) {
    case JJ_NONE:
        sl_buf_puts(&o->b, "null");
        break;
    case JJ_BOOL:
        sl_buf_puts(&o->b, v.u.b ? "true" : "false");
        break;
    case JJ_INT:
        sl_buf_printf(&o->b, "%" PRId64, v.u.i);
        break;
    case JJ_FLOAT:
        put_float(&o->b, v.u.f, true);
        break;
    case JJ_STR:
        put_json_str(o, v.u.s);
        break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT:
        put_json_nested(ev, o, v);
        break;
    default:
        jj_fail(ev, "tojson: a %s has no JSON form", jj_kind_name(v));
    }
}

/* arg: ensure_ascii, indent, separators, sort_keys. */
struct jj_value jj_tojson(struct jj_ev *ev, struct jj_value v, const struct jj_value *arg)
{
    struct json_out o = {.b.cap_bytes = SL_LIMIT_template_output_bytes,
                         .ascii = jj_truth(arg[0]),
                         .sort = jj_truth(arg[3]),
                         .comma = SL_STR(", "),
                         .colon = SL_STR(": ")};
    if (arg[1].kind == JJ_INT || arg[1].kind == JJ_BOOL) {
        struct jj_value pad = jj_arith(ev, JJ_MUL, jj_strz(" "), jj_int(jj_as_int(arg[1])));
        o.pretty = true;
        o.indent = pad.kind == JJ_STR ? pad.u.s : (struct sl_str){"", 0};
    } else if (arg[1].kind == JJ_STR) {
        o.pretty = true;
        o.indent = arg[1].u.s;
    }
    if (o.pretty)
        o.comma = SL_STR(",");
    if (arg[2].kind == JJ_TUPLE || arg[2].kind == JJ_LIST) {
        const struct jj_list *s = arg[2].u.list;
        if (s->n != 2 || s->at[0].kind != JJ_STR || s->at[1].kind != JJ_STR) {
            jj_fail(ev, "tojson: separators are two strings");
            return jj_undef();
        }
        o.comma = s->at[0].u.s;
        o.colon = s->at[1].u.s;
    }
    put_json(ev, &o, v);
    return jj_take(ev, &o.b);
}
