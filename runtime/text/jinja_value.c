/* Values of a template: making, comparing, walking. Equality and order are Python's. */
#include "jinja.h"

#include <math.h>
#include <string.h>

struct jj_value jj_undef(void)
{
    return (struct jj_value){.kind = JJ_UNDEF};
}

struct jj_value jj_none(void)
{
    return (struct jj_value){.kind = JJ_NONE};
}

struct jj_value jj_bool(bool b)
{
    return (struct jj_value){.kind = JJ_BOOL, .u.b = b};
}

struct jj_value jj_int(int64_t i)
{
    return (struct jj_value){.kind = JJ_INT, .u.i = i};
}

struct jj_value jj_float(double f)
{
    return (struct jj_value){.kind = JJ_FLOAT, .u.f = f};
}

struct jj_value jj_str(struct sl_str s)
{
    return (struct jj_value){.kind = JJ_STR, .u.s = s};
}

struct jj_value jj_strz(const char *z)
{
    return jj_str((struct sl_str){z, strlen(z)});
}

struct jj_value jj_copy(struct jj_ev *ev, const char *data, size_t len)
{
    char *s = jj_alloc(ev, len + 1, 1);
    if (!s)
        return jj_undef();
    if (len > 0)
        memcpy(s, data, len);
    return jj_str((struct sl_str){s, len});
}

/* A string that is built up step by step would cost its length at each step; so the newest joined
 * string keeps room behind it and grows in place. Older values that share its beginning keep their
 * own length and never see the rest. */
struct jj_value jj_join(struct jj_ev *ev, struct sl_str a, struct sl_str b)
{
    if (b.len == 0)
        return jj_str(a);
    if (a.len == 0)
        return jj_str(b);
    if (!jj_charge(ev, b.len))
        return jj_undef();
    bool grows =
        ev->tip && a.data == ev->tip && a.len == ev->tip_len && ev->tip_max - ev->tip_len >= b.len;
    if (!grows) {
        if (!jj_charge(ev, a.len))
            return jj_undef();
        size_t max = a.len + b.len + (a.len + b.len) / 4 + 32;
        char *s = jj_alloc(ev, max, 1);
        if (!s)
            return jj_undef();
        memcpy(s, a.data, a.len);
        ev->tip = s;
        ev->tip_len = a.len;
        ev->tip_max = max;
    }
    memcpy(ev->tip + ev->tip_len, b.data, b.len);
    ev->tip_len += b.len;
    return jj_str((struct sl_str){ev->tip, ev->tip_len});
}

struct jj_value jj_take(struct jj_ev *ev, struct sl_buf *b)
{
    struct jj_value v = jj_undef();
    if (b->failed)
        jj_fail(ev, "a text is longer than template_output_bytes %d",
                SL_LIMIT_template_output_bytes);
    else
        v = jj_copy(ev, b->data ? b->data : "", b->len);
    sl_buf_free(b);
    return v;
}

struct jj_value jj_list_new(struct jj_ev *ev, enum jj_kind kind, size_t room)
{
    struct jj_list *l = jj_alloc(ev, 1, sizeof *l);
    if (!l)
        return jj_undef();
    l->at = room ? jj_alloc(ev, room, sizeof *l->at) : NULL;
    l->max = l->at ? room : 0;
    return (struct jj_value){.kind = ev->failed ? JJ_UNDEF : kind, .u.list = l};
}

void jj_push(struct jj_ev *ev, struct jj_list *list, struct jj_value v)
{
    if (ev->failed || !jj_charge(ev, 0))
        return;
    if (list->n == list->max) {
        size_t max = list->max ? list->max * 2 : 8;
        struct jj_value *at = jj_alloc(ev, max, sizeof *at);
        if (!at)
            return;
        if (list->n > 0)
            memcpy(at, list->at, list->n * sizeof *at);
        list->at = at;
        list->max = max;
    }
    list->at[list->n++] = v;
}

struct jj_value jj_dict_new(struct jj_ev *ev, enum jj_kind kind)
{
    struct jj_dict *d = jj_alloc(ev, 1, sizeof *d);
    return d ? (struct jj_value){.kind = kind, .u.dict = d} : jj_undef();
}

static struct jj_pair *dict_find(struct jj_ev *ev, const struct jj_dict *d, struct jj_value key)
{
    if (!jj_charge(ev, d->n * 16))
        return NULL;
    for (size_t i = 0; i < d->n && !ev->failed; i++)
        if (jj_equal(ev, d->at[i].key, key))
            return &d->at[i];
    return NULL;
}

const struct jj_value *jj_dict_get(struct jj_ev *ev, const struct jj_dict *d, struct jj_value key)
{
    const struct jj_pair *p = dict_find(ev, d, key);
    return p ? &p->value : NULL;
}

const struct jj_value *jj_dict_getz(struct jj_ev *ev, const struct jj_dict *d, struct sl_str key)
{
    return jj_dict_get(ev, d, jj_str(key));
}

static void dict_add(struct jj_ev *ev, struct jj_dict *d, struct jj_value key,
                     struct jj_value value)
{
    if (d->n == d->max) {
        size_t max = d->max ? d->max * 2 : 4;
        struct jj_pair *at = jj_alloc(ev, max, sizeof *at);
        if (!at)
            return;
        if (d->n > 0)
            memcpy(at, d->at, d->n * sizeof *at);
        d->at = at;
        d->max = max;
    }
    d->at[d->n++] = (struct jj_pair){key, value};
}

void jj_dict_set(struct jj_ev *ev, struct jj_dict *d, struct jj_value key, struct jj_value value)
{
    if (key.kind >= JJ_LIST && key.kind != JJ_TUPLE) {
        jj_fail(ev, "a %s cannot be a key", jj_kind_name(key));
        return;
    }
    struct jj_pair *p = dict_find(ev, d, key);
    if (ev->failed)
        return;
    if (p)
        p->value = value;
    else
        dict_add(ev, d, key, value);
}

/* The document's depth is limited by its parser, so this recursion is. Strings are borrowed. */
struct jj_value jj_from_json(struct jj_ev *ev, const struct sl_json *v)
{
    switch (sl_json_kind(v)) {
    case SL_JSON_NULL:
        return jj_none();
    case SL_JSON_BOOL:
        return jj_bool(sl_json_bool(v));
    case SL_JSON_INT:
        return jj_int(sl_json_int(v));
    case SL_JSON_REAL:
        return jj_float(sl_json_real(v));
    case SL_JSON_STRING:
        return jj_str(sl_json_str(v));
    case SL_JSON_ARRAY: {
        struct jj_value list = jj_list_new(ev, JJ_LIST, sl_json_len(v));
        for (size_t i = 0; i < sl_json_len(v) && !ev->failed; i++)
            list.u.list->at[list.u.list->n++] = jj_from_json(ev, sl_json_at(v, i));
        return list;
    }
    case SL_JSON_OBJECT: {
        struct jj_value dict = jj_dict_new(ev, JJ_DICT);
        void *iter = NULL;
        struct sl_str key;
        const struct sl_json *member;
        while (!ev->failed && sl_json_next(v, &iter, &key, &member))
            dict_add(ev, dict.u.dict, jj_str(key), jj_from_json(ev, member));
        return dict;
    }
    }
    return jj_undef();
}

bool jj_is_number(struct jj_value v)
{
    return v.kind == JJ_BOOL || v.kind == JJ_INT || v.kind == JJ_FLOAT;
}

int64_t jj_as_int(struct jj_value v)
{
    return v.kind == JJ_BOOL ? v.u.b : v.u.i;
}

double jj_as_float(struct jj_value v)
{
    return v.kind == JJ_FLOAT ? v.u.f : (double)jj_as_int(v);
}

bool jj_truth(struct jj_value v)
{
    switch (v.kind) {
    case JJ_UNDEF:
    case JJ_NONE:
    case JJ_ABSENT:
        return false;
    case JJ_BOOL:
    case JJ_INT:
        return jj_as_int(v) != 0;
    case JJ_FLOAT:
        return v.u.f != 0;
    case JJ_STR:
        return v.u.s.len > 0;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
        return v.u.list->n > 0;
    case JJ_RANGE:
        return v.u.range->n > 0;
    case JJ_DICT:
        return v.u.dict->n > 0;
    default:
        return true;
    }
}

const char *jj_kind_name(struct jj_value v)
{
    static const char *const names[] = {
        [JJ_UNDEF] = "undefined value",
        [JJ_NONE] = "none",
        [JJ_BOOL] = "boolean",
        [JJ_INT] = "integer",
        [JJ_FLOAT] = "float",
        [JJ_STR] = "string",
        [JJ_LIST] = "list",
        [JJ_TUPLE] = "tuple",
        [JJ_VIEW] = "dictionary view",
        [JJ_GEN] = "generator",
        [JJ_RANGE] = "range",
        [JJ_DICT] = "dictionary",
        [JJ_SPACE] = "namespace",
        [JJ_MACRO] = "macro",
        [JJ_LOOP] = "loop",
        [JJ_FUNC] = "function",
        [JJ_METHOD] = "method",
        [JJ_ABSENT] = "missing value",
    };
    return names[v.kind];
}

static bool is_seq(struct jj_value v)
{
    return v.kind == JJ_LIST || v.kind == JJ_TUPLE;
}

/* Entering one more level of a value that may nest without bound. */
static bool deeper(struct jj_ev *ev)
{
    if (ev->depth >= JJ_EVAL_DEPTH) {
        jj_fail(ev, "values nested too deep");
        return false;
    }
    ev->depth++;
    return true;
}

static bool dict_equal(struct jj_ev *ev, const struct jj_dict *a, const struct jj_dict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n && !ev->failed; i++) {
        const struct jj_value *v = jj_dict_get(ev, b, a->at[i].key);
        if (!v || !jj_equal(ev, a->at[i].value, *v))
            return false;
    }
    return !ev->failed;
}

static bool nested_equal(struct jj_ev *ev, struct jj_value a, struct jj_value b)
{
    bool same = true;
    if (!deeper(ev))
        return false;
    if (is_seq(a)) {
        same = a.u.list->n == b.u.list->n;
        for (size_t i = 0; same && i < a.u.list->n && !ev->failed; i++)
            same = jj_equal(ev, a.u.list->at[i], b.u.list->at[i]);
    } else {
        same = dict_equal(ev, a.u.dict, b.u.dict);
    }
    ev->depth--;
    return same && !ev->failed;
}

bool jj_equal(struct jj_ev *ev, struct jj_value a, struct jj_value b)
{
    if (jj_is_number(a) && jj_is_number(b)) {
        if (a.kind == JJ_FLOAT || b.kind == JJ_FLOAT)
            return jj_as_float(a) == jj_as_float(b);
        return jj_as_int(a) == jj_as_int(b);
    }
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case JJ_UNDEF:
    case JJ_NONE:
        return true;
    case JJ_STR:
        return a.u.s.len == b.u.s.len && jj_charge(ev, a.u.s.len) && sl_str_eq(a.u.s, b.u.s);
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT:
        return jj_charge(ev, 0) && nested_equal(ev, a, b);
    case JJ_RANGE:
        return a.u.range->n == b.u.range->n &&
               (a.u.range->n == 0 || (a.u.range->start == b.u.range->start &&
                                      (a.u.range->n == 1 || a.u.range->step == b.u.range->step)));
    case JJ_FUNC:
        return a.u.func == b.u.func;
    default:
        return a.u.list == b.u.list; /* identity */
    }
}

static int seq_order(struct jj_ev *ev, const struct jj_list *a, const struct jj_list *b)
{
    int order = 0;
    if (!deeper(ev))
        return 0;
    size_t i = 0;
    while (i < a->n && i < b->n && !ev->failed && jj_equal(ev, a->at[i], b->at[i]))
        i++;
    if (i < a->n && i < b->n && !ev->failed)
        order = jj_order(ev, a->at[i], b->at[i]);
    else
        order = a->n < b->n ? -1 : a->n > b->n;
    ev->depth--;
    return order;
}

int jj_order(struct jj_ev *ev, struct jj_value a, struct jj_value b)
{
    if (!jj_charge(ev, 0))
        return 0;
    if (jj_is_number(a) && jj_is_number(b)) {
        if (a.kind == JJ_FLOAT || b.kind == JJ_FLOAT) {
            double x = jj_as_float(a), y = jj_as_float(b);
            return x < y ? -1 : x > y;
        }
        int64_t x = jj_as_int(a), y = jj_as_int(b);
        return x < y ? -1 : x > y;
    }
    if (a.kind == JJ_STR && b.kind == JJ_STR) {
        size_t n = a.u.s.len < b.u.s.len ? a.u.s.len : b.u.s.len;
        if (!jj_charge(ev, n))
            return 0;
        int c = n > 0 ? memcmp(a.u.s.data, b.u.s.data, n) : 0; /* order of code points too */
        return c < 0 ? -1 : c > 0 ? 1 : a.u.s.len < b.u.s.len ? -1 : a.u.s.len > b.u.s.len;
    }
    if (is_seq(a) && a.kind == b.kind)
        return seq_order(ev, a.u.list, b.u.list);
    jj_fail(ev, "no order between a %s and a %s", jj_kind_name(a), jj_kind_name(b));
    return 0;
}

bool jj_contains(struct jj_ev *ev, struct jj_value where, struct jj_value what)
{
    if (where.kind == JJ_STR) {
        size_t at;
        if (what.kind != JJ_STR) {
            jj_fail(ev, "a %s cannot be in a string", jj_kind_name(what));
            return false;
        }
        return jj_charge(ev, where.u.s.len) && jj_find(where.u.s, what.u.s, 0, &at);
    }
    if (where.kind == JJ_DICT)
        return jj_dict_get(ev, where.u.dict, what) != NULL;
    struct jj_iter it;
    struct jj_value v;
    if (!jj_iter_init(ev, where, &it))
        return false;
    while (jj_iter_next(ev, &it, &v))
        if (jj_equal(ev, v, what))
            return !ev->failed;
    return false;
}

int64_t jj_len(struct jj_ev *ev, struct jj_value v)
{
    switch (v.kind) {
    case JJ_UNDEF:
        return 0;
    case JJ_STR:
        return jj_charge(ev, v.u.s.len) ? (int64_t)jj_utf8_len(v.u.s) : -1;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
        return (int64_t)v.u.list->n;
    case JJ_RANGE:
        return v.u.range->n;
    case JJ_DICT:
        return (int64_t)v.u.dict->n;
    case JJ_LOOP:
        return (int64_t)v.u.loop->n;
    default:
        jj_fail(ev, "a %s has no length", jj_kind_name(v));
        return -1;
    }
}

bool jj_iter_init(struct jj_ev *ev, struct jj_value v, struct jj_iter *it)
{
    *it = (struct jj_iter){.src = v};
    switch (v.kind) {
    case JJ_UNDEF:
    case JJ_STR:
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
    case JJ_GEN:
    case JJ_RANGE:
    case JJ_DICT:
        return true;
    default:
        jj_fail(ev, "a %s cannot be iterated", jj_kind_name(v));
        return false;
    }
}

static bool iter_take(struct jj_iter *it, struct jj_value *out)
{
    struct jj_value v = it->src;
    switch (v.kind) {
    case JJ_STR: {
        size_t from = it->pos;
        if (from >= v.u.s.len)
            return false;
        jj_utf8_next(v.u.s, &it->pos);
        *out = jj_str((struct sl_str){v.u.s.data + from, it->pos - from});
        return true;
    }
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_VIEW:
        if (it->pos >= v.u.list->n)
            return false;
        *out = v.u.list->at[it->pos++];
        return true;
    case JJ_GEN: /* what was read stays read, whoever reads */
        if (v.u.list->n_read >= v.u.list->n)
            return false;
        *out = v.u.list->at[v.u.list->n_read++];
        return true;
    case JJ_RANGE:
        if ((int64_t)it->pos >= v.u.range->n)
            return false;
        *out = jj_int(v.u.range->start + (int64_t)it->pos++ * v.u.range->step);
        return true;
    case JJ_DICT:
        if (it->pos >= v.u.dict->n)
            return false;
        *out = v.u.dict->at[it->pos++].key;
        return true;
    default:
        return false;
    }
}

bool jj_iter_next(struct jj_ev *ev, struct jj_iter *it, struct jj_value *out)
{
    return jj_charge(ev, 0) && iter_take(it, out);
}

struct jj_value jj_to_list(struct jj_ev *ev, struct jj_value v, enum jj_kind kind)
{
    struct jj_value list = jj_list_new(ev, kind, 0), item;
    struct jj_iter it;
    if (ev->failed || !jj_iter_init(ev, v, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &item))
        jj_push(ev, list.u.list, item);
    return ev->failed ? jj_undef() : list;
}
