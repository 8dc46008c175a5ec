/* Tests: what may stand after `is`. */
#include "jinja.h"

#include <string.h>
#include <utf8proc.h>

enum test {
    T_DEFINED,
    T_UNDEFINED,
    T_NONE,
    T_STRING,
    T_NUMBER,
    T_INTEGER,
    T_FLOAT,
    T_MAPPING,
    T_ITERABLE,
    T_SEQUENCE,
    T_BOOLEAN,
    T_TRUE,
    T_FALSE,
    T_CALLABLE,
    T_LOWER,
    T_UPPER,
    T_ODD,
    T_EVEN, /* from here on with one argument */
    T_DIVISIBLE,
    T_IN,
    T_EQ,
    T_NE,
    T_LT,
    T_LE,
    T_GT,
    T_GE,
    T_SAME
};

static const struct {
    const char *name;
    enum test test;
} tests[] = {
    {"defined", T_DEFINED},
    {"undefined", T_UNDEFINED},
    {"none", T_NONE},
    {"string", T_STRING},
    {"number", T_NUMBER},
    {"integer", T_INTEGER},
    {"float", T_FLOAT},
    {"mapping", T_MAPPING},
    {"iterable", T_ITERABLE},
    {"sequence", T_SEQUENCE},
    {"boolean", T_BOOLEAN},
    {"true", T_TRUE},
    {"false", T_FALSE},
    {"callable", T_CALLABLE},
    {"lower", T_LOWER},
    {"upper", T_UPPER},
    {"odd", T_ODD},
    {"even", T_EVEN},
    {"divisibleby", T_DIVISIBLE},
    {"in", T_IN},
    {"eq", T_EQ},
    {"equalto", T_EQ},
    {"==", T_EQ},
    {"ne", T_NE},
    {"!=", T_NE},
    {"lt", T_LT},
    {"lessthan", T_LT},
    {"<", T_LT},
    {"le", T_LE},
    {"<=", T_LE},
    {"gt", T_GT},
    {"greaterthan", T_GT},
    {">", T_GT},
    {"ge", T_GE},
    {">=", T_GE},
    {"sameas", T_SAME},
};

static bool remainder_is(struct jj_ev *ev, struct jj_value v, struct jj_value by, int64_t rest)
{
    struct jj_value m = jj_arith(ev, JJ_MOD, v, by);
    return !ev->failed && jj_equal(ev, m, jj_int(rest));
}

static bool is_same(struct jj_ev *ev, struct jj_value a, struct jj_value b)
{
    return a.kind == b.kind && (a.kind <= JJ_STR ? jj_equal(ev, a, b) : a.u.list == b.u.list);
}

static bool test_two(struct jj_ev *ev, enum test t, struct jj_value a, struct jj_value b)
{
    switch (t) {
    case T_DIVISIBLE:
        return remainder_is(ev, a, b, 0);
    case T_IN:
        return jj_contains(ev, b, a);
    case T_EQ:
        return jj_equal(ev, a, b);
    case T_NE:
        return !jj_equal(ev, a, b);
    case T_LT:
        return jj_order(ev, a, b) < 0;
    case T_LE:
        return jj_order(ev, a, b) <= 0;
    case T_GT:
        return jj_order(ev, a, b) > 0;
    case T_GE:
        return jj_order(ev, a, b) >= 0;
    default:
        return is_same(ev, a, b);
    }
}

static bool is_case(struct jj_ev *ev, struct jj_value v, bool upper)
{
    struct sl_str s = jj_text(ev, v);
    bool cased = false;
    for (size_t pos = 0; pos < s.len;) {
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)jj_utf8_next(s, &pos));
        cased |= k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL;
        if (k == UTF8PROC_CATEGORY_LT || k == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU))
            return false;
    }
    return cased;
}

static bool test_one(struct jj_ev *ev, enum test t, struct jj_value v)
{
    bool list = v.kind == JJ_LIST || v.kind == JJ_TUPLE || v.kind == JJ_STR || v.kind == JJ_DICT ||
                v.kind == JJ_RANGE || v.kind == JJ_UNDEF;
    switch (t) {
    case T_DEFINED:
        return v.kind != JJ_UNDEF;
    case T_UNDEFINED:
        return v.kind == JJ_UNDEF;
    case T_NONE:
        return v.kind == JJ_NONE;
    case T_STRING:
        return v.kind == JJ_STR;
    case T_NUMBER:
        return jj_is_number(v);
    case T_INTEGER:
        return v.kind == JJ_INT;
    case T_FLOAT:
        return v.kind == JJ_FLOAT;
    case T_MAPPING:
        return v.kind == JJ_DICT;
    case T_ITERABLE:
        return list || v.kind == JJ_GEN || v.kind == JJ_VIEW || v.kind == JJ_LOOP;
    case T_SEQUENCE:
        return list;
    case T_BOOLEAN:
        return v.kind == JJ_BOOL;
    case T_TRUE:
        return v.kind == JJ_BOOL && v.u.b;
    case T_FALSE:
        return v.kind == JJ_BOOL && !v.u.b;
    case T_CALLABLE:
        return v.kind == JJ_MACRO || v.kind == JJ_FUNC || v.kind == JJ_METHOD || v.kind == JJ_UNDEF;
    case T_LOWER:
    case T_UPPER:
        return is_case(ev, v, t == T_UPPER);
    default:
        return remainder_is(ev, v, jj_int(2), t == T_ODD);
    }
}

bool jj_test(struct jj_ev *ev, struct sl_str name, struct jj_value v, const struct jj_args *args)
{
    size_t i = 0, n = sizeof tests / sizeof *tests;
    while (i < n && !sl_str_eqz(name, tests[i].name))
        i++;
    if (i == n) {
        jj_fail(ev, "no test named '%.*s'", name.len < 40 ? (int)name.len : 40, name.data);
        return false;
    }
    bool two = tests[i].test >= T_DIVISIBLE;
    if (args->n != two || args->n_kw > 0) {
        jj_fail(ev, "the test %s wants %s argument", tests[i].name, two ? "one" : "no");
        return false;
    }
    if (!jj_charge(ev, 0))
        return false;
    return two ? test_two(ev, tests[i].test, v, args->at[0]) : test_one(ev, tests[i].test, v);
}
