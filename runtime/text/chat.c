/* Chat templates: opening, rendering and the functions every template may call. */
#include <sluice/text/chat.h>

#include "jinja.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- names of a template ---- */

uint32_t jj_name_find(const struct sl_template *t, struct sl_str s)
{
    uint64_t hash = sl_hash64(s.data, s.len, 0);
    for (struct sl_hash_node *h = sl_hash_first(&t->names, hash); h; h = sl_hash_next(h)) {
        const struct jj_name *n = SL_ENTRY(h, struct jj_name, node);
        if (sl_str_eq(n->str, s))
            return n->id;
    }
    return UINT32_MAX;
}

uint32_t jj_name_intern(struct sl_template *t, struct sl_str s)
{
    uint32_t id = jj_name_find(t, s);
    if (id != UINT32_MAX)
        return id;
    struct jj_name *n = SL_ARENA_NEW(&t->mem, struct jj_name);
    if (!n)
        return UINT32_MAX;
    n->str = s;
    n->id = t->n_names++;
    sl_hash_insert(&t->names, &n->node, sl_hash64(s.data, s.len, 0));
    return n->id;
}

/* ---- global functions ---- */

enum { F_RANGE, F_DICT, F_NAMESPACE, F_RAISE, F_STRFTIME };
const char *const jj_funcs[] = {
    [F_RANGE] = "range",           [F_DICT] = "dict",
    [F_NAMESPACE] = "namespace",   [F_RAISE] = "raise_exception",
    [F_STRFTIME] = "strftime_now", NULL,
};

static struct jj_value call_range(struct jj_ev *ev, const struct jj_args *args)
{
    int64_t x[3] = {0, 0, 1}, span;
    bool ok = args->n >= 1 && args->n <= 3 && args->n_kw == 0;
    for (size_t i = 0; ok && i < args->n; i++) {
        ok = args->at[i].kind == JJ_INT || args->at[i].kind == JJ_BOOL;
        x[args->n == 1 ? 1 : i] = ok ? jj_as_int(args->at[i]) : 0;
    }
    if (!ok || x[2] == 0 || x[2] == INT64_MIN) {
        jj_fail(ev, "range wants one to three integers, the step not 0");
        return jj_undef();
    }
    int64_t n = 0, step = x[2] < 0 ? -x[2] : x[2];
    if (x[2] > 0 ? x[0] < x[1] : x[0] > x[1]) {
        bool over = x[2] > 0 ? __builtin_sub_overflow(x[1], x[0], &span)
                             : __builtin_sub_overflow(x[0], x[1], &span);
        n = over ? INT64_MAX : (span - 1) / step + 1;
    }
    if (n > JJ_RANGE_MAX) {
        jj_fail(ev, "range of more than %d numbers", JJ_RANGE_MAX);
        return jj_undef();
    }
    struct jj_range *r = jj_alloc(ev, 1, sizeof *r);
    if (!r)
        return jj_undef();
    *r = (struct jj_range){x[0], x[2], n, x[1]};
    return (struct jj_value){.kind = JJ_RANGE, .u.range = r};
}

static void add_pairs(struct jj_ev *ev, struct jj_dict *to, struct jj_value from)
{
    struct jj_iter it;
    struct jj_value v;
    if (from.kind == JJ_DICT || from.kind == JJ_SPACE) {
        for (size_t i = 0; i < from.u.dict->n && !ev->failed; i++)
            jj_dict_set(ev, to, from.u.dict->at[i].key, from.u.dict->at[i].value);
        return;
    }
    if (!jj_iter_init(ev, from, &it))
        return;
    while (jj_iter_next(ev, &it, &v)) {
        if ((v.kind != JJ_TUPLE && v.kind != JJ_LIST) || v.u.list->n != 2) {
            jj_fail(ev, "a dictionary is made of pairs");
            return;
        }
        jj_dict_set(ev, to, v.u.list->at[0], v.u.list->at[1]);
    }
}

static struct jj_value call_dict(struct jj_ev *ev, const struct jj_args *args, enum jj_kind kind)
{
    struct jj_value d = jj_dict_new(ev, kind);
    if (args->n > 1)
        jj_fail(ev, "dict and namespace want at most one positional argument");
    if (!ev->failed && args->n == 1)
        add_pairs(ev, d.u.dict, args->at[0]);
    for (size_t i = 0; i < args->n_kw && !ev->failed; i++)
        jj_dict_set(ev, d.u.dict, jj_str(args->kw[i].name), args->kw[i].value);
    return d;
}

static struct jj_value call_raise(struct jj_ev *ev, const struct jj_args *args)
{
    struct sl_str why = args->n > 0 ? jj_text(ev, args->at[0]) : SL_STR("raised");
    jj_fail(ev, "%.*s", why.len < 180 ? (int)why.len : 180, why.data);
    return jj_undef();
}

/* The library has no clock: the caller gives `__now`, Unix seconds, read as UTC. */
static struct jj_value call_strftime(struct jj_ev *ev, const struct jj_args *args)
{
    char format[128], text[256];
    time_t now = (time_t)ev->now_s;
    struct tm tm;
    if (!ev->has_now || !gmtime_r(&now, &tm)) {
        jj_fail(ev, "strftime_now without the variable __now");
        return jj_undef();
    }
    if (args->n != 1 || args->at[0].kind != JJ_STR || args->at[0].u.s.len >= sizeof format) {
        jj_fail(ev, "strftime_now wants a format of less than %zu bytes", sizeof format);
        return jj_undef();
    }
    memcpy(format, args->at[0].u.s.data, args->at[0].u.s.len);
    format[args->at[0].u.s.len] = 0;
    text[0] = 0;
    size_t n = strftime(text, sizeof text, format, &tm);
    return jj_copy(ev, text, n);
}

struct jj_value jj_call_func(struct jj_ev *ev, unsigned func, const struct jj_args *args)
{
    switch (func) {
    case F_RANGE:
        return call_range(ev, args);
    case F_DICT:
        return call_dict(ev, args, JJ_DICT);
    case F_NAMESPACE:
        return call_dict(ev, args, JJ_SPACE);
    case F_RAISE:
        return call_raise(ev, args);
    default:
        return call_strftime(ev, args);
    }
}

/* ---- the public face ---- */

/* A copy with every line end as "\n", less the one that may end the source. */
static char *normalise(struct sl_arena *mem, const char *source, size_t len, size_t *out_len)
{
    char *s = sl_arena_alloc(mem, len + 1, 1);
    size_t n = 0;
    for (size_t i = 0; s && i < len; i++) {
        if (source[i] == '\r') {
            s[n++] = '\n';
            i += i + 1 < len && source[i + 1] == '\n';
        } else {
            s[n++] = source[i];
        }
    }
    *out_len = n > 0 && s[n - 1] == '\n' ? n - 1 : n;
    return s;
}

static bool is_text(const char *s, size_t len)
{
    for (size_t pos = 0; pos < len;) {
        size_t from = pos;
        uint32_t c = jj_utf8_next((struct sl_str){s, len}, &pos);
        if (c == 0 || (c == 0xfffd && memcmp(s + from, "\xef\xbf\xbd", pos - from) != 0))
            return false;
    }
    return true;
}

static bool intern_specials(struct sl_template *t)
{
    t->id_loop = jj_name_intern(t, SL_STR("loop"));
    t->id_caller = jj_name_intern(t, SL_STR("caller"));
    t->id_varargs = jj_name_intern(t, SL_STR("varargs"));
    t->id_kwargs = jj_name_intern(t, SL_STR("kwargs"));
    return t->id_kwargs != UINT32_MAX;
}

enum sl_status sl_template_open(const char *source, size_t len, struct sl_template **out,
                                struct sl_err *err)
{
    *out = NULL;
    if (len > SL_LIMIT_template_source_bytes)
        return sl_fail(err, SL_MODEL, "chat template: %zu bytes, template_source_bytes is %d", len,
                       SL_LIMIT_template_source_bytes);
    if (!is_text(source, len))
        return sl_fail(err, SL_MODEL, "chat template: the source is not UTF-8 text");
    struct sl_template *t = calloc(1, sizeof *t);
    if (!t)
        return sl_fail(err, SL_NO_MEMORY, "chat template: no memory");
    sl_arena_init(&t->mem, JJ_TREE_BYTES);
    sl_hash_init(&t->names, t->buckets, JJ_NAME_BUCKETS);
    size_t n;
    char *s = normalise(&t->mem, source, len, &n);
    enum sl_status status = SL_OK;
    if (!s || !intern_specials(t))
        status = sl_fail(err, SL_NO_MEMORY, "chat template: no memory");
    else
        status = jj_parse(t, s, n, err);
    if (status != SL_OK) {
        sl_template_close(t);
        return status;
    }
    *out = t;
    return SL_OK;
}

void sl_template_close(struct sl_template *t)
{
    if (!t)
        return;
    sl_arena_free(&t->mem);
    free(t);
}

enum sl_status sl_template_render(const struct sl_template *t, const struct sl_json *vars,
                                  struct sl_buf *out, struct sl_err *err)
{
    return jj_run(t, vars, out, err);
}
