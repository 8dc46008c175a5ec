/* Attributes, subscripts, slices, methods and arithmetic of template values, as Python and Jinja's
 * environment have them. There is no reflection: a name that begins with "_" is only ever a key. */
#include "jinja.h"

#include <math.h>
#include <string.h>

/* Numbers of methods: those of strings are below 100 (jinja_str.c). */
enum {
    M_GET = 100,
    M_ITEMS,
    M_KEYS,
    M_VALUES,
    M_COPY,
    M_APPEND,
    M_INDEX,
    M_COUNT,
    M_CYCLE,
    M_CHANGED
};

static const struct {
    enum jj_kind kind;
    unsigned id;
    const char *name, *spec; /* NULL spec: any arguments */
} methods[] = {
    {JJ_DICT, M_GET, "get", "key default"}, {JJ_DICT, M_ITEMS, "items", ""},
    {JJ_DICT, M_KEYS, "keys", ""},          {JJ_DICT, M_VALUES, "values", ""},
    {JJ_DICT, M_COPY, "copy", ""},          {JJ_LIST, M_APPEND, "append", "object"},
    {JJ_LIST, M_INDEX, "index", "value"},   {JJ_LIST, M_COUNT, "count", "value"},
    {JJ_TUPLE, M_INDEX, "index", "value"},  {JJ_TUPLE, M_COUNT, "count", "value"},
    {JJ_LOOP, M_CYCLE, "cycle", NULL},      {JJ_LOOP, M_CHANGED, "changed", NULL},
};

static unsigned find_method(struct jj_value v, struct sl_str name)
{
    if (v.kind == JJ_STR)
        return jj_str_method(name);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (methods[i].kind == v.kind && sl_str_eqz(name, methods[i].name))
            return methods[i].id;
    return 0;
}

static struct jj_value bind_method(struct jj_ev *ev, struct jj_value self, unsigned id)
{
    struct jj_method *m = jj_alloc(ev, 1, sizeof *m);
    if (!m)
        return jj_undef();
    *m = (struct jj_method){.self = self, .id = id};
    return (struct jj_value){.kind = JJ_METHOD, .u.method = m};
}

static struct jj_value loop_attr(const struct jj_loop *l, struct sl_str name)
{
    const struct {
        const char *name;
        struct jj_value value;
    } attrs[] = {
        {"index", jj_int((int64_t)l->i + 1)},
        {"index0", jj_int((int64_t)l->i)},
        {"revindex", jj_int((int64_t)(l->n - l->i))},
        {"revindex0", jj_int((int64_t)(l->n - l->i) - 1)},
        {"first", jj_bool(l->i == 0)},
        {"last", jj_bool(l->i + 1 == l->n)},
        {"length", jj_int((int64_t)l->n)},
        {"previtem", l->previous},
        {"nextitem", l->next},
        {"depth", jj_int(1)},
        {"depth0", jj_int(0)},
    };
    for (size_t i = 0; i < sizeof attrs / sizeof *attrs; i++)
        if (sl_str_eqz(name, attrs[i].name))
            return attrs[i].value;
    return jj_undef();
}

static struct jj_value attribute(struct jj_ev *ev, struct jj_value v, struct sl_str name)
{
    unsigned id = find_method(v, name);
    if (id)
        return bind_method(ev, v, id);
    if (v.kind == JJ_LOOP)
        return loop_attr(v.u.loop, name);
    return jj_undef();
}

struct jj_value jj_getattr(struct jj_ev *ev, struct jj_value v, struct sl_str name)
{
    if (v.kind == JJ_UNDEF) {
        jj_fail(ev, "'%.*s' of an undefined value", name.len < 60 ? (int)name.len : 60, name.data);
        return jj_undef();
    }
    struct jj_value found = attribute(ev, v, name);
    if (found.kind != JJ_UNDEF)
        return found;
    if (v.kind == JJ_DICT || v.kind == JJ_SPACE) {
        const struct jj_value *key = jj_dict_getz(ev, v.u.dict, name);
        if (key)
            return *key;
    }
    if (name.len > 0 && name.data[0] == '_')
        jj_fail(ev, "attribute '%.*s' is not accessible", name.len < 60 ? (int)name.len : 60,
                name.data);
    return jj_undef();
}

static struct jj_value item_at(struct jj_ev *ev, struct jj_value v, int64_t i)
{
    int64_t n = jj_len(ev, v);
    i += i < 0 ? n : 0;
    if (ev->failed || i < 0 || i >= n)
        return jj_undef();
    if (v.kind == JJ_RANGE)
        return jj_int(v.u.range->start + i * v.u.range->step);
    if (v.kind != JJ_STR)
        return v.u.list->at[i];
    size_t from = jj_utf8_at(v.u.s, (size_t)i), to = from;
    jj_utf8_next(v.u.s, &to);
    return jj_str((struct sl_str){v.u.s.data + from, to - from});
}

struct jj_value jj_getitem(struct jj_ev *ev, struct jj_value v, struct jj_value key)
{
    if (v.kind == JJ_UNDEF) {
        jj_fail(ev, "an item of an undefined value");
        return jj_undef();
    }
    if (v.kind == JJ_DICT) {
        const struct jj_value *item = jj_dict_get(ev, v.u.dict, key);
        if (item)
            return *item;
    }
    bool indexed =
        v.kind == JJ_LIST || v.kind == JJ_TUPLE || v.kind == JJ_RANGE || v.kind == JJ_STR;
    if (indexed && (key.kind == JJ_INT || key.kind == JJ_BOOL))
        return item_at(ev, v, jj_as_int(key));
    if (v.kind == JJ_SPACE && key.kind == JJ_STR) {
        const struct jj_value *item = jj_dict_get(ev, v.u.dict, key);
        return item ? *item : jj_undef();
    }
    return key.kind == JJ_STR ? attribute(ev, v, key.u.s) : jj_undef();
}

/* Python's slice.indices(): from, to and step for n elements. */
static bool slice_bounds(struct jj_ev *ev, const struct jj_value part[3], int64_t n, int64_t out[3])
{
    for (int i = 0; i < 3; i++)
        if (part[i].kind != JJ_NONE && part[i].kind != JJ_INT && part[i].kind != JJ_BOOL) {
            jj_fail(ev, "a slice wants integers, not a %s", jj_kind_name(part[i]));
            return false;
        }
    int64_t step = part[2].kind == JJ_NONE ? 1 : jj_as_int(part[2]);
    if (step == 0) {
        jj_fail(ev, "a slice with step 0");
        return false;
    }
    step = step > n + 1 ? n + 1 : step < -n - 1 ? -n - 1 : step;
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        if (part[i].kind == JJ_NONE) {
            out[i] = (i == 0) == (step > 0) ? low : high;
            continue;
        }
        int64_t x = jj_as_int(part[i]);
        x = x < -n ? -n - 1 : x;
        x += x < 0 ? n : 0;
        out[i] = x < low ? low : x > high ? high : x;
    }
    out[2] = step;
    return true;
}

struct jj_value jj_slice(struct jj_ev *ev, struct jj_value v, const struct jj_value part[3])
{
    int64_t b[3];
    if (v.kind == JJ_UNDEF) {
        jj_fail(ev, "a slice of an undefined value");
        return jj_undef();
    }
    if (v.kind != JJ_STR && v.kind != JJ_LIST && v.kind != JJ_TUPLE && v.kind != JJ_RANGE)
        return jj_undef();
    int64_t n = jj_len(ev, v);
    if (ev->failed || !slice_bounds(ev, part, n, b))
        return jj_undef();
    if (v.kind == JJ_STR && b[2] == 1) {
        size_t from = jj_utf8_at(v.u.s, (size_t)b[0]);
        size_t to = b[1] > b[0] ? jj_utf8_at(v.u.s, (size_t)b[1]) : from;
        return jj_str((struct sl_str){v.u.s.data + from, to - from});
    }
    struct jj_value all = v.kind == JJ_STR || v.kind == JJ_RANGE ? jj_to_list(ev, v, JJ_LIST) : v;
    struct jj_value out = jj_list_new(ev, v.kind == JJ_TUPLE ? JJ_TUPLE : JJ_LIST, 0);
    for (int64_t i = b[0]; !ev->failed && (b[2] > 0 ? i < b[1] : i > b[1]); i += b[2])
        jj_push(ev, out.u.list, all.u.list->at[i]);
    if (ev->failed || v.kind != JJ_STR)
        return out;
    struct sl_buf text = {.cap_bytes = SL_LIMIT_template_output_bytes};
    for (size_t i = 0; i < out.u.list->n; i++)
        sl_buf_append(&text, out.u.list->at[i].u.s.data, out.u.list->at[i].u.s.len);
    return jj_take(ev, &text);
}

static struct jj_value dict_view(struct jj_ev *ev, const struct jj_dict *d, unsigned id)
{
    struct jj_value view = jj_list_new(ev, JJ_VIEW, d->n);
    if (ev->failed)
        return jj_undef();
    view.u.list->what = id == M_ITEMS ? "dict_items" : id == M_KEYS ? "dict_keys" : "dict_values";
    for (size_t i = 0; i < d->n && !ev->failed; i++) {
        struct jj_value v = id == M_KEYS ? d->at[i].key : d->at[i].value;
        if (id == M_ITEMS) {
            v = jj_list_new(ev, JJ_TUPLE, 2);
            if (ev->failed)
                break;
            jj_push(ev, v.u.list, d->at[i].key);
            jj_push(ev, v.u.list, d->at[i].value);
        }
        jj_push(ev, view.u.list, v);
    }
    return view;
}

static struct jj_value dict_copy(struct jj_ev *ev, const struct jj_dict *d)
{
    struct jj_value copy = jj_dict_new(ev, JJ_DICT);
    for (size_t i = 0; i < d->n && !ev->failed; i++)
        jj_dict_set(ev, copy.u.dict, d->at[i].key, d->at[i].value);
    return copy;
}

static struct jj_value list_search(struct jj_ev *ev, const struct jj_list *l, struct jj_value what,
                                   unsigned id)
{
    int64_t n = 0;
    for (size_t i = 0; i < l->n && jj_charge(ev, 0); i++) {
        if (!jj_equal(ev, l->at[i], what))
            continue;
        if (id == M_INDEX)
            return jj_int((int64_t)i);
        n++;
    }
    if (id == M_INDEX)
        jj_fail(ev, "index: the value is not in the list");
    return jj_int(n);
}

static struct jj_value loop_changed(struct jj_ev *ev, struct jj_loop *l, const struct jj_args *args)
{
    struct jj_value now = jj_list_new(ev, JJ_TUPLE, args->n);
    for (size_t i = 0; i < args->n && !ev->failed; i++)
        jj_push(ev, now.u.list, args->at[i]);
    bool same = !ev->failed && l->changed.kind == JJ_TUPLE && jj_equal(ev, now, l->changed);
    l->changed = now;
    return jj_bool(!same);
}

static struct jj_value loop_cycle(struct jj_ev *ev, const struct jj_loop *l,
                                  const struct jj_args *args)
{
    if (args->n == 0) {
        jj_fail(ev, "cycle wants something to cycle over");
        return jj_undef();
    }
    return args->at[l->i % args->n];
}

struct jj_value jj_call_method(struct jj_ev *ev, const struct jj_method *m,
                               const struct jj_args *args)
{
    struct jj_value arg[JJ_ARGS_MAX], self = m->self;
    if (self.kind == JJ_STR)
        return jj_call_str_method(ev, self.u.s, m->id, args);
    if (self.kind == JJ_LOOP)
        return m->id == M_CYCLE ? loop_cycle(ev, self.u.loop, args)
                                : loop_changed(ev, self.u.loop, args);
    size_t row = 0;
    while (methods[row].id != m->id)
        row++;
    if (!jj_bind(ev, methods[row].name, methods[row].spec, args, arg))
        return jj_undef();
    if (*methods[row].spec && arg[0].kind == JJ_ABSENT) {
        jj_fail(ev, "%s wants an argument", methods[row].name);
        return jj_undef();
    }
    switch (m->id) {
    case M_GET: {
        const struct jj_value *v = jj_dict_get(ev, self.u.dict, arg[0]);
        return v ? *v : arg[1].kind == JJ_ABSENT ? jj_none() : arg[1];
    }
    case M_COPY:
        return dict_copy(ev, self.u.dict);
    case M_APPEND:
        jj_push(ev, self.u.list, arg[0]);
        return jj_none();
    case M_INDEX:
    case M_COUNT:
        return list_search(ev, self.u.list, arg[0], m->id);
    default:
        return dict_view(ev, self.u.dict, m->id);
    }
}

/* Arithmetic. */

static struct jj_value too_large(struct jj_ev *ev)
{
    jj_fail(ev, "an integer is too large");
    return jj_undef();
}

static struct jj_value by_zero(struct jj_ev *ev)
{
    jj_fail(ev, "division by zero");
    return jj_undef();
}

static struct jj_value int_pow(struct jj_ev *ev, int64_t base, int64_t exponent)
{
    int64_t r = 1;
    if (exponent < 0)
        return base == 0 ? by_zero(ev) : jj_float(pow((double)base, (double)exponent));
    if (base == 0 || base == 1 || base == -1)
        return jj_int(exponent == 0 ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base);
    for (; exponent > 0; exponent--) /* leaves at the latest after 63 rounds */
        if (__builtin_mul_overflow(r, base, &r))
            return too_large(ev);
    return jj_int(r);
}

static struct jj_value int_arith(struct jj_ev *ev, enum jj_op op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool over = false;
    if (b == 0 && (op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD))
        return by_zero(ev);
    switch (op) {
    case JJ_ADD:
        over = __builtin_add_overflow(a, b, &r);
        break;
    case JJ_SUB:
        over = __builtin_sub_overflow(a, b, &r);
        break;
    case JJ_MUL:
        over = __builtin_mul_overflow(a, b, &r);
        break;
    case JJ_DIV:
        return jj_float((double)a / (double)b);
    case JJ_FLOORDIV:
        over = b == -1 && a == INT64_MIN;
        r = over ? 0 : a / b - (a % b != 0 && (a % b < 0) != (b < 0));
        break;
    case JJ_MOD:
        r = b == -1 ? 0 : a % b;
        r += r != 0 && (r < 0) != (b < 0) ? b : 0;
        break;
    default:
        return int_pow(ev, a, b);
    }
    return over ? too_large(ev) : jj_int(r);
}

static struct jj_value float_arith(struct jj_ev *ev, enum jj_op op, double a, double b)
{
    if (b == 0 && (op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD))
        return by_zero(ev);
    double m, d;
    switch (op) {
    case JJ_ADD:
        return jj_float(a + b);
    case JJ_SUB:
        return jj_float(a - b);
    case JJ_MUL:
        return jj_float(a * b);
    case JJ_DIV:
        return jj_float(a / b);
    case JJ_POW:
        d = pow(a, b);
        if ((a == 0 && b < 0) || (isinf(d) && isfinite(a) && isfinite(b)) || isnan(d)) {
            jj_fail(ev, "a power outside the floats");
            return jj_undef();
        }
        return jj_float(d);
    default:
        m = fmod(a, b);
        d = (a - m) / b;
        if (m != 0 && (b < 0) != (m < 0)) {
            m += b;
            d -= 1;
        } else if (m == 0) {
            m = copysign(0, b);
        }
        if (op == JJ_MOD)
            return jj_float(m);
        if (d == 0)
            return jj_float(copysign(0, a / b));
        return jj_float(floor(d) + (d - floor(d) > 0.5));
    }
}

static struct jj_value repeat(struct jj_ev *ev, struct jj_value v, int64_t times)
{
    if (v.kind == JJ_STR) {
        struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
        for (; times > 0 && v.u.s.len > 0 && !b.failed && jj_charge(ev, v.u.s.len); times--)
            sl_buf_append(&b, v.u.s.data, v.u.s.len);
        return jj_take(ev, &b);
    }
    struct jj_value out = jj_list_new(ev, v.kind, 0);
    for (; times > 0 && v.u.list->n > 0 && !ev->failed; times--)
        for (size_t i = 0; i < v.u.list->n && !ev->failed; i++)
            jj_push(ev, out.u.list, v.u.list->at[i]);
    return out;
}

static struct jj_value concat(struct jj_ev *ev, const struct jj_list *a, const struct jj_list *b,
                              enum jj_kind kind)
{
    struct jj_value out = jj_list_new(ev, kind, a->n + b->n);
    for (size_t i = 0; i < a->n && !ev->failed; i++)
        jj_push(ev, out.u.list, a->at[i]);
    for (size_t i = 0; i < b->n && !ev->failed; i++)
        jj_push(ev, out.u.list, b->at[i]);
    return out;
}

static bool is_countable(struct jj_value v)
{
    return v.kind == JJ_INT || v.kind == JJ_BOOL;
}

static bool is_repeatable(struct jj_value v)
{
    return v.kind == JJ_STR || v.kind == JJ_LIST || v.kind == JJ_TUPLE;
}

struct jj_value jj_arith(struct jj_ev *ev, enum jj_op op, struct jj_value a, struct jj_value b)
{
    if (is_countable(a) && is_countable(b))
        return int_arith(ev, op, jj_as_int(a), jj_as_int(b));
    if (jj_is_number(a) && jj_is_number(b))
        return float_arith(ev, op, jj_as_float(a), jj_as_float(b));
    if (op == JJ_ADD && a.kind == JJ_STR && b.kind == JJ_STR)
        return jj_join(ev, a.u.s, b.u.s);
    if (op == JJ_ADD && a.kind == b.kind && (a.kind == JJ_LIST || a.kind == JJ_TUPLE))
        return concat(ev, a.u.list, b.u.list, a.kind);
    if (op == JJ_MUL && is_repeatable(a) && is_countable(b))
        return repeat(ev, a, jj_as_int(b));
    if (op == JJ_MUL && is_countable(a) && is_repeatable(b))
        return repeat(ev, b, jj_as_int(a));
    jj_fail(ev, "a %s and a %s do not go with this operator", jj_kind_name(a), jj_kind_name(b));
    return jj_undef();
}
