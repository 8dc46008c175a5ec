/* Filters of sequences and mappings. Where Jinja returns a generator, so does this: it is true
 * whatever it holds, has no length and is read once. */
#include "jinja.h"

#include <string.h>

/* The item's attribute by a path such as "function.name" or "0.id"; absent: the item itself. */
static struct jj_value by_path(struct jj_ev *ev, struct jj_value item, struct jj_value path)
{
    if (path.kind == JJ_ABSENT || path.kind == JJ_NONE)
        return item;
    if (path.kind != JJ_STR)
        return jj_getitem(ev, item, path);
    struct sl_str s = path.u.s;
    for (size_t from = 0; from <= s.len && !ev->failed;) {
        size_t to = from;
        int64_t number = 0;
        bool digits = true, over = false;
        for (; to < s.len && s.data[to] != '.'; to++) {
            digits = digits && s.data[to] >= '0' && s.data[to] <= '9';
            over |= digits && (__builtin_mul_overflow(number, 10, &number) ||
                               __builtin_add_overflow(number, s.data[to] - '0', &number));
        }
        bool index = digits && to > from && !over;
        struct jj_value part = jj_str((struct sl_str){s.data + from, to - from});
        item = jj_getitem(ev, item, index ? jj_int(number) : part);
        from = to + 1;
    }
    return item;
}

static struct jj_value gen_new(struct jj_ev *ev)
{
    return jj_list_new(ev, JJ_GEN, 0);
}

static struct jj_value f_length(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_int(jj_len(ev, in));
}

static struct jj_value f_first(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)arg, (void)raw;
    struct jj_iter it;
    struct jj_value v;
    return jj_iter_init(ev, in, &it) && jj_iter_next(ev, &it, &v) ? v : jj_undef();
}

static struct jj_value f_last(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    (void)arg, (void)raw;
    if (in.kind == JJ_UNDEF)
        return in;
    if (in.kind == JJ_GEN) {
        jj_fail(ev, "last of a generator");
        return jj_undef();
    }
    if (in.kind == JJ_DICT)
        return in.u.dict->n > 0 ? in.u.dict->at[in.u.dict->n - 1].key : jj_undef();
    if (in.kind == JJ_VIEW)
        return in.u.list->n > 0 ? in.u.list->at[in.u.list->n - 1] : jj_undef();
    return jj_len(ev, in) > 0 ? jj_getitem(ev, in, jj_int(-1)) : jj_undef();
}

static struct jj_value f_join(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    (void)raw;
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_output_bytes};
    struct sl_str sep = arg[0].kind == JJ_ABSENT ? SL_STR("") : jj_text(ev, arg[0]);
    struct jj_iter it;
    struct jj_value v;
    bool first = true;
    if (!jj_iter_init(ev, in, &it))
        return jj_undef();
    while (!b.failed && jj_iter_next(ev, &it, &v)) {
        struct sl_str s = jj_text(ev, by_path(ev, v, arg[1]));
        if (!first)
            sl_buf_append(&b, sep.data, sep.len);
        sl_buf_append(&b, s.data, s.len);
        jj_charge(ev, s.len + sep.len);
        first = false;
    }
    return jj_take(ev, &b);
}

static struct jj_value f_list(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    (void)arg, (void)raw;
    return jj_to_list(ev, in, JJ_LIST);
}

static struct jj_value f_items(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               const struct jj_args *raw)
{
    (void)arg, (void)raw;
    struct jj_value out = gen_new(ev);
    if (in.kind == JJ_UNDEF)
        return out;
    if (in.kind != JJ_DICT) {
        jj_fail(ev, "items of a %s", jj_kind_name(in));
        return jj_undef();
    }
    for (size_t i = 0; i < in.u.dict->n && !ev->failed; i++) {
        struct jj_value pair = jj_list_new(ev, JJ_TUPLE, 2);
        if (ev->failed)
            break;
        jj_push(ev, pair.u.list, in.u.dict->at[i].key);
        jj_push(ev, pair.u.list, in.u.dict->at[i].value);
        jj_push(ev, out.u.list, pair);
    }
    return out;
}

static struct jj_value f_reverse(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                 const struct jj_args *raw)
{
    (void)arg, (void)raw;
    static const struct jj_value backwards[3] = {
        {.kind = JJ_NONE}, {.kind = JJ_NONE}, {.kind = JJ_INT, .u.i = -1}};
    if (in.kind == JJ_STR)
        return jj_slice(ev, in, backwards);
    struct jj_value all = jj_to_list(ev, in, JJ_GEN);
    if (ev->failed)
        return jj_undef();
    struct jj_list *l = all.u.list;
    for (size_t i = 0; i < l->n / 2; i++) {
        struct jj_value v = l->at[i];
        l->at[i] = l->at[l->n - 1 - i];
        l->at[l->n - 1 - i] = v;
    }
    if (in.kind == JJ_GEN)
        all.kind = JJ_LIST;
    return all;
}

/* ---- order ---- */

struct keyed {
    struct jj_value key, value;
};

static struct jj_value fold_case(struct jj_ev *ev, struct jj_value v, bool keep)
{
    return v.kind == JJ_STR && !keep ? jj_case(ev, v.u.s, 'l') : v;
}

/* Several paths, "a,b", give a list of keys. */
static struct jj_value sort_key(struct jj_ev *ev, struct jj_value item, struct jj_value path,
                                bool keep_case)
{
    if (path.kind != JJ_STR || !memchr(path.u.s.data, ',', path.u.s.len))
        return fold_case(ev, by_path(ev, item, path), keep_case);
    struct jj_value keys = jj_list_new(ev, JJ_LIST, 2);
    struct sl_str s = path.u.s;
    for (size_t from = 0, to; from <= s.len && !ev->failed; from = to + 1) {
        if (!jj_find(s, SL_STR(","), from, &to))
            to = s.len;
        struct jj_value part = jj_str((struct sl_str){s.data + from, to - from});
        jj_push(ev, keys.u.list, fold_case(ev, by_path(ev, item, part), keep_case));
    }
    return keys;
}

/* Bottom-up merge sort, stable; reverse keeps equal elements in order, as sorted() does. */
static void sort_keyed(struct jj_ev *ev, struct keyed *a, size_t n, bool reverse)
{
    struct keyed *from = a, *to = jj_alloc(ev, n, sizeof *a);
    for (size_t width = 1; width < n && !ev->failed; width *= 2) {
        for (size_t lo = 0; lo < n && !ev->failed; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
            size_t i = lo, j = mid;
            for (size_t k = lo; k < hi; k++) {
                int order = i < mid && j < hi ? jj_order(ev, from[j].key, from[i].key) : 0;
                bool right = i == mid || (j < hi && (reverse ? order > 0 : order < 0));
                to[k] = right ? from[j++] : from[i++];
            }
        }
        struct keyed *swap = from;
        from = to;
        to = swap;
    }
    if (from != a && !ev->failed)
        memcpy(a, from, n * sizeof *a);
}

static struct jj_value sorted(struct jj_ev *ev, const struct jj_list *items,
                              const struct jj_list *keys, bool reverse)
{
    struct keyed *k = jj_alloc(ev, items->n, sizeof *k);
    struct jj_value out = jj_list_new(ev, JJ_LIST, items->n);
    if (ev->failed)
        return jj_undef();
    for (size_t i = 0; i < items->n; i++)
        k[i] = (struct keyed){keys->at[i], items->at[i]};
    sort_keyed(ev, k, items->n, reverse);
    for (size_t i = 0; i < items->n && !ev->failed; i++)
        jj_push(ev, out.u.list, k[i].value);
    return out;
}

static struct jj_value keys_of(struct jj_ev *ev, struct jj_value all, struct jj_value path,
                               bool keep_case)
{
    struct jj_value keys = jj_list_new(ev, JJ_LIST, all.u.list->n);
    for (size_t i = 0; i < all.u.list->n && !ev->failed; i++)
        jj_push(ev, keys.u.list, sort_key(ev, all.u.list->at[i], path, keep_case));
    return keys;
}

static struct jj_value f_sort(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                              const struct jj_args *raw)
{
    (void)raw; /* reverse case_sensitive attribute */
    struct jj_value all = jj_to_list(ev, in, JJ_LIST);
    if (ev->failed)
        return jj_undef();
    struct jj_value keys = keys_of(ev, all, arg[2], jj_truth(arg[1]));
    return ev->failed ? jj_undef() : sorted(ev, all.u.list, keys.u.list, jj_truth(arg[0]));
}

static struct jj_value f_dictsort(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                  const struct jj_args *raw)
{
    (void)raw; /* case_sensitive by reverse */
    bool by_value = arg[1].kind == JJ_STR && sl_str_eqz(arg[1].u.s, "value");
    if (in.kind != JJ_DICT) {
        jj_fail(ev, "dictsort of a %s", jj_kind_name(in));
        return jj_undef();
    }
    struct jj_value pairs = f_items(ev, in, NULL, NULL);
    if (ev->failed)
        return jj_undef();
    struct jj_value keys = keys_of(ev, pairs, jj_int(by_value), jj_truth(arg[0]));
    return ev->failed ? jj_undef() : sorted(ev, pairs.u.list, keys.u.list, jj_truth(arg[2]));
}

static struct jj_value extreme(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                               int wanted)
{
    struct jj_value best = jj_undef(), best_key = best, v;
    struct jj_iter it;
    bool first = true;
    if (!jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v)) { /* case_sensitive attribute */
        struct jj_value key = fold_case(ev, by_path(ev, v, arg[1]), jj_truth(arg[0]));
        if (first || jj_order(ev, key, best_key) == wanted) {
            best = v;
            best_key = key;
        }
        first = false;
    }
    return best;
}

static struct jj_value f_min(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)raw;
    return extreme(ev, in, arg, -1);
}

static struct jj_value f_max(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)raw;
    return extreme(ev, in, arg, 1);
}

static struct jj_value f_unique(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)raw; /* case_sensitive attribute */
    struct jj_value out = gen_new(ev), seen = jj_list_new(ev, JJ_LIST, 0), v;
    struct jj_iter it;
    if (!jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v)) {
        struct jj_value key = fold_case(ev, by_path(ev, v, arg[1]), jj_truth(arg[0]));
        if (jj_contains(ev, seen, key))
            continue;
        jj_push(ev, seen.u.list, key);
        jj_push(ev, out.u.list, v);
    }
    return out;
}

static struct jj_value f_sum(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)raw; /* attribute start */
    struct jj_value total = arg[1].kind == JJ_ABSENT ? jj_int(0) : arg[1], v;
    struct jj_iter it;
    if (total.kind == JJ_STR)
        jj_fail(ev, "sum of strings");
    if (ev->failed || !jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v))
        total = jj_arith(ev, JJ_ADD, total, by_path(ev, v, arg[0]));
    return total;
}

/* ---- map and its kin ---- */

static struct jj_value map_attribute(struct jj_ev *ev, struct jj_value in,
                                     const struct jj_args *raw)
{
    struct jj_value arg[JJ_ARGS_MAX], out = gen_new(ev), v;
    struct jj_iter it;
    if (!jj_bind(ev, "map", "attribute default", raw, arg) || !jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v)) {
        v = by_path(ev, v, arg[0]);
        bool fill = v.kind == JJ_UNDEF && arg[1].kind != JJ_ABSENT && arg[1].kind != JJ_NONE;
        jj_push(ev, out.u.list, fill ? arg[1] : v);
    }
    return out;
}

static struct jj_value f_map(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                             const struct jj_args *raw)
{
    (void)arg;
    struct jj_value out = gen_new(ev), v;
    struct jj_iter it;
    if (raw->n == 0)
        return map_attribute(ev, in, raw);
    struct jj_args rest = {raw->n - 1, raw->n_kw, raw->at + 1, raw->kw};
    if (raw->at[0].kind != JJ_STR) {
        jj_fail(ev, "map wants the name of a filter");
        return jj_undef();
    }
    if (!jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v))
        jj_push(ev, out.u.list, jj_filter(ev, raw->at[0].u.s, v, &rest));
    return out;
}

/* select, reject, selectattr, rejectattr. */
static struct jj_value choose(struct jj_ev *ev, struct jj_value in, const struct jj_args *raw,
                              bool by_attr, bool wanted)
{
    struct jj_value out = gen_new(ev), v;
    size_t skip = by_attr;
    struct jj_iter it;
    if (raw->n < skip || (raw->n > skip && raw->at[skip].kind != JJ_STR)) {
        jj_fail(ev, "select wants the name of a test");
        return jj_undef();
    }
    if (!jj_iter_init(ev, in, &it))
        return jj_undef();
    while (jj_iter_next(ev, &it, &v)) {
        struct jj_value x = by_attr ? by_path(ev, v, raw->at[0]) : v;
        bool yes = jj_truth(x);
        if (raw->n > skip) {
            struct jj_args rest = {raw->n - skip - 1, raw->n_kw, raw->at + skip + 1, raw->kw};
            yes = jj_test(ev, raw->at[skip].u.s, x, &rest);
        }
        if (yes == wanted)
            jj_push(ev, out.u.list, v);
    }
    return out;
}

static struct jj_value f_select(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)arg;
    return choose(ev, in, raw, false, true);
}

static struct jj_value f_reject(struct jj_ev *ev, struct jj_value in, const struct jj_value *arg,
                                const struct jj_args *raw)
{
    (void)arg;
    return choose(ev, in, raw, false, false);
}

static struct jj_value f_selectattr(struct jj_ev *ev, struct jj_value in,
                                    const struct jj_value *arg, const struct jj_args *raw)
{
    (void)arg;
    return choose(ev, in, raw, true, true);
}

static struct jj_value f_rejectattr(struct jj_ev *ev, struct jj_value in,
                                    const struct jj_value *arg, const struct jj_args *raw)
{
    (void)arg;
    return choose(ev, in, raw, true, false);
}

const struct jj_filter_row jj_list_filters[] = {
    {"length", f_length, ""},
    {"count", f_length, ""},
    {"first", f_first, ""},
    {"last", f_last, ""},
    {"join", f_join, "d attribute"},
    {"list", f_list, ""},
    {"items", f_items, ""},
    {"reverse", f_reverse, ""},
    {"sort", f_sort, "reverse case_sensitive attribute"},
    {"dictsort", f_dictsort, "case_sensitive by reverse"},
    {"min", f_min, "case_sensitive attribute"},
    {"max", f_max, "case_sensitive attribute"},
    {"unique", f_unique, "case_sensitive attribute"},
    {"sum", f_sum, "attribute start"},
    {"map", f_map, NULL},
    {"select", f_select, NULL},
    {"reject", f_reject, NULL},
    {"selectattr", f_selectattr, NULL},
    {"rejectattr", f_rejectattr, NULL},
    {NULL, NULL, NULL},
};
