/* Jinja evaluator: walks the tree of a template with the members of a JSON object as globals. */
#include "jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct jj_value eval(struct jj_ev *ev, const struct jj_node *n);
static void exec_list(struct jj_ev *ev, const struct jj_node *n);

void jj_fail(struct jj_ev *ev, const char *fmt, ...)
{
    char why[200];
    va_list ap;
    if (ev->failed)
        return;
    ev->failed = true;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    for (char *p = why; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    sl_fail(ev->err, SL_INVALID, "chat template line %u: %s", (unsigned)ev->line, why);
}

bool jj_charge(struct jj_ev *ev, size_t bytes)
{
    if (ev->failed)
        return false;
    ev->n_steps += 1 + bytes / 256;
    if (ev->n_steps > SL_LIMIT_template_steps)
        jj_fail(ev, "more than template_steps %d", SL_LIMIT_template_steps);
    return !ev->failed;
}

void *jj_alloc(struct jj_ev *ev, size_t n, size_t size)
{
    void *p = size == 1 ? sl_arena_alloc(&ev->mem, n + (n == 0), 1)
                        : sl_arena_calloc(&ev->mem, n + (n == 0), size);
    if (!p)
        jj_fail(ev, "its values take more than %zu MiB", JJ_EVAL_BYTES >> 20);
    return p;
}

void jj_emit(struct jj_ev *ev, struct sl_str s)
{
    if (ev->failed)
        return;
    if (s.len > SL_LIMIT_template_output_bytes - ev->n_out) {
        jj_fail(ev, "more output than template_output_bytes %d", SL_LIMIT_template_output_bytes);
        return;
    }
    sl_buf_append(ev->out, s.data, s.len);
    ev->n_out += s.len;
    if (ev->out->failed)
        jj_fail(ev, "no memory for the output");
}

static bool enter(struct jj_ev *ev)
{
    if (ev->depth >= JJ_EVAL_DEPTH) {
        jj_fail(ev, "evaluation nested deeper than %d", JJ_EVAL_DEPTH);
        return false;
    }
    ev->depth++;
    return true;
}

/* ---- scopes ---- */

static struct jj_scope *scope_new(struct jj_ev *ev, struct jj_scope *parent)
{
    struct jj_scope *s = jj_alloc(ev, 1, sizeof *s);
    if (s)
        s->parent = parent;
    return s;
}

static struct jj_value *scope_find(struct jj_ev *ev, uint32_t name)
{
    for (struct jj_scope *s = ev->scope; s; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (s->vars[i].name == name)
                return &s->vars[i].value;
    return &ev->globals[name];
}

static void scope_set(struct jj_ev *ev, uint32_t name, struct jj_value v)
{
    struct jj_scope *s = ev->scope;
    if (!s) {
        ev->globals[name] = v;
        return;
    }
    for (size_t i = 0; i < s->n; i++)
        if (s->vars[i].name == name) {
            s->vars[i].value = v;
            return;
        }
    if (s->n == s->max) {
        size_t max = s->max ? s->max * 2 : 4;
        struct jj_var *vars = jj_alloc(ev, max, sizeof *vars);
        if (!vars)
            return;
        if (s->n > 0)
            memcpy(vars, s->vars, s->n * sizeof *vars);
        s->vars = vars;
        s->max = max;
    }
    s->vars[s->n++] = (struct jj_var){name, v};
}

static void assign(struct jj_ev *ev, const struct jj_node *target, struct jj_value v);

static void assign_tuple(struct jj_ev *ev, const struct jj_node *target, struct jj_value v)
{
    struct jj_iter it;
    struct jj_value item;
    const struct jj_node *t = target->a;
    if (!jj_iter_init(ev, v, &it))
        return;
    for (; t && jj_iter_next(ev, &it, &item); t = t->next)
        assign(ev, t, item);
    if (!ev->failed && (t || jj_iter_next(ev, &it, &item)))
        jj_fail(ev, "the number of values and of names to unpack differ");
}

static void assign(struct jj_ev *ev, const struct jj_node *target, struct jj_value v)
{
    if (ev->failed)
        return;
    if (target->type == JJ_N_NAME) {
        scope_set(ev, target->name, v);
    } else if (target->type == JJ_N_NSREF) {
        struct jj_value space = *scope_find(ev, target->name);
        if (space.kind == JJ_SPACE)
            jj_dict_set(ev, space.u.dict, target->value, v);
        else
            jj_fail(ev, "attributes are set on namespaces only");
    } else {
        assign_tuple(ev, target, v);
    }
}

/* ---- output caught as a value ---- */

static void capture_begin(struct jj_ev *ev, struct sl_buf *b, struct sl_buf **outer)
{
    *b = (struct sl_buf){.cap_bytes = SL_LIMIT_template_output_bytes + 1};
    *outer = ev->out;
    ev->out = b;
}

static struct jj_value capture_end(struct jj_ev *ev, struct sl_buf *b, struct sl_buf *outer)
{
    ev->out = outer;
    ev->n_out -= b->len;
    return jj_take(ev, b);
}

/* ---- calls ---- */

static bool eval_args(struct jj_ev *ev, const struct jj_node *list, const struct jj_kwarg *extra,
                      struct jj_args *out)
{
    size_t n = 0, n_kw = extra != NULL;
    for (const struct jj_node *a = list; a; a = a->next)
        *(a->type == JJ_N_KWARG ? &n_kw : &n) += 1;
    struct jj_value *at = n ? jj_alloc(ev, n, sizeof *at) : NULL;
    struct jj_kwarg *kw = n_kw ? jj_alloc(ev, n_kw, sizeof *kw) : NULL;
    if (ev->failed)
        return false;
    *out = (struct jj_args){.at = at, .kw = kw};
    for (const struct jj_node *a = list; a && !ev->failed; a = a->next)
        if (a->type == JJ_N_KWARG)
            kw[out->n_kw++] = (struct jj_kwarg){a->str, eval(ev, a->a)};
        else
            at[out->n++] = eval(ev, a);
    if (extra)
        kw[out->n_kw++] = *extra;
    return !ev->failed;
}

static const struct jj_kwarg *find_kwarg(const struct jj_args *args, struct sl_str name)
{
    for (size_t i = 0; i < args->n_kw; i++)
        if (sl_str_eq(args->kw[i].name, name))
            return &args->kw[i];
    return NULL;
}

static bool has_param(const struct jj_node *macro, struct sl_str name)
{
    for (const struct jj_node *p = macro->a; p; p = p->next)
        if (sl_str_eq(p->str, name))
            return true;
    return false;
}

/* Arguments beyond the parameters: `varargs`, `kwargs` and `caller` if the body reads them. */
static void bind_rest(struct jj_ev *ev, const struct jj_node *m, const struct jj_args *args,
                      size_t n_params)
{
    struct jj_value rest = jj_list_new(ev, JJ_TUPLE, 0), named = jj_dict_new(ev, JJ_DICT);
    if (args->n > n_params && !(m->flags & JJ_USES_VARARGS))
        jj_fail(ev, "macro '%.*s' takes at most %zu arguments, not %zu",
                m->str.len < 40 ? (int)m->str.len : 40, m->str.data, n_params, args->n);
    for (size_t i = n_params; i < args->n && !ev->failed; i++)
        jj_push(ev, rest.u.list, args->at[i]);
    for (size_t i = 0; i < args->n_kw && !ev->failed; i++) {
        struct sl_str name = args->kw[i].name;
        if (has_param(m, name))
            continue;
        if ((m->flags & JJ_USES_CALLER) && sl_str_eqz(name, "caller"))
            scope_set(ev, ev->t->id_caller, args->kw[i].value);
        else if (m->flags & JJ_USES_KWARGS)
            jj_dict_set(ev, named.u.dict, jj_str(name), args->kw[i].value);
        else
            jj_fail(ev, "macro '%.*s' takes no argument '%.*s'",
                    m->str.len < 40 ? (int)m->str.len : 40, m->str.data,
                    name.len < 40 ? (int)name.len : 40, name.data);
    }
    if (m->flags & JJ_USES_VARARGS)
        scope_set(ev, ev->t->id_varargs, rest);
    if (m->flags & JJ_USES_KWARGS)
        scope_set(ev, ev->t->id_kwargs, named);
}

static void bind_params(struct jj_ev *ev, const struct jj_node *m, const struct jj_args *args)
{
    size_t i = 0;
    for (const struct jj_node *p = m->a; p && !ev->failed; p = p->next, i++) {
        const struct jj_kwarg *kw = find_kwarg(args, p->str);
        if (i < args->n && kw)
            jj_fail(ev, "argument '%.*s' given twice", p->str.len < 40 ? (int)p->str.len : 40,
                    p->str.data);
        scope_set(ev, p->name,
                  i < args->n ? args->at[i]
                  : kw        ? kw->value
                  : p->a      ? eval(ev, p->a)
                              : jj_undef());
    }
    if (!ev->failed)
        bind_rest(ev, m, args, i);
}

static struct jj_value call_macro(struct jj_ev *ev, const struct jj_macro *macro,
                                  const struct jj_args *args)
{
    struct jj_scope *outer_scope = ev->scope;
    struct sl_buf b, *outer;
    if (ev->n_macros >= SL_LIMIT_template_depth) {
        jj_fail(ev, "macro calls nested deeper than template_depth %d", SL_LIMIT_template_depth);
        return jj_undef();
    }
    ev->scope = scope_new(ev, macro->scope);
    if (ev->failed) {
        ev->scope = outer_scope;
        return jj_undef();
    }
    ev->n_macros++;
    bind_params(ev, macro->node, args);
    capture_begin(ev, &b, &outer);
    exec_list(ev, macro->node->b);
    struct jj_value text = capture_end(ev, &b, outer);
    ev->n_macros--;
    ev->scope = outer_scope;
    return text;
}

struct jj_value jj_call(struct jj_ev *ev, struct jj_value f, const struct jj_args *args)
{
    if (f.kind == JJ_MACRO)
        return call_macro(ev, f.u.macro, args);
    if (f.kind == JJ_METHOD)
        return jj_call_method(ev, f.u.method, args);
    if (f.kind == JJ_FUNC)
        return jj_call_func(ev, f.u.func, args);
    jj_fail(ev, "a %s cannot be called", jj_kind_name(f));
    return jj_undef();
}

/* ---- expressions ---- */

static struct jj_value eval_slice(struct jj_ev *ev, struct jj_value v, const struct jj_node *step)
{
    const struct jj_node *from[3] = {step->a, step->b, step->c};
    struct jj_value part[3];
    for (int i = 0; i < 3; i++)
        part[i] = from[i] ? eval(ev, from[i]) : jj_none();
    return ev->failed ? jj_undef() : jj_slice(ev, v, part);
}

static struct jj_value apply_step(struct jj_ev *ev, struct jj_value v, const struct jj_node *step,
                                  const struct jj_kwarg *extra)
{
    struct jj_args args;
    ev->line = step->line;
    switch (step->type) {
    case JJ_N_ATTR:
        return jj_getattr(ev, v, step->str);
    case JJ_N_INDEX: {
        struct jj_value key = eval(ev, step->a);
        return ev->failed ? jj_undef() : jj_getitem(ev, v, key);
    }
    case JJ_N_SLICE:
        return eval_slice(ev, v, step);
    case JJ_N_CALL:
        return eval_args(ev, step->a, extra, &args) ? jj_call(ev, v, &args) : jj_undef();
    case JJ_N_FILTER:
        return eval_args(ev, step->a, NULL, &args) ? jj_filter(ev, step->str, v, &args)
                                                   : jj_undef();
    default:
        if (!eval_args(ev, step->a, NULL, &args))
            return jj_undef();
        return jj_bool(jj_test(ev, step->str, v, &args) != (step->flags != 0));
    }
}

static struct jj_value apply_steps(struct jj_ev *ev, struct jj_value v, const struct jj_node *step,
                                   const struct jj_kwarg *extra)
{
    for (; step && jj_charge(ev, 0); step = step->next)
        v = apply_step(ev, v, step, step->next ? NULL : extra);
    return ev->failed ? jj_undef() : v;
}

static struct jj_value eval_items(struct jj_ev *ev, const struct jj_node *n, enum jj_kind kind)
{
    struct jj_value list = jj_list_new(ev, kind, 0);
    for (const struct jj_node *item = n->a; item && !ev->failed; item = item->next) {
        struct jj_value v = eval(ev, item);
        jj_push(ev, list.u.list, v);
    }
    return list;
}

static struct jj_value eval_dict(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value dict = jj_dict_new(ev, JJ_DICT);
    for (const struct jj_node *pair = n->a; pair && !ev->failed; pair = pair->next) {
        struct jj_value key = eval(ev, pair->a), value = eval(ev, pair->b);
        if (!ev->failed)
            jj_dict_set(ev, dict.u.dict, key, value);
    }
    return dict;
}

static bool compare(struct jj_ev *ev, enum jj_op op, struct jj_value a, struct jj_value b)
{
    switch (op) {
    case JJ_EQ:
        return jj_equal(ev, a, b);
    case JJ_NE:
        return !jj_equal(ev, a, b);
    case JJ_IN:
        return jj_contains(ev, b, a);
    case JJ_NOT_IN:
        return !jj_contains(ev, b, a);
    case JJ_LT:
        return jj_order(ev, a, b) < 0;
    case JJ_LE:
        return jj_order(ev, a, b) <= 0;
    case JJ_GT:
        return jj_order(ev, a, b) > 0;
    default:
        return jj_order(ev, a, b) >= 0;
    }
}

static struct jj_value eval_compare(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value left = eval(ev, n->a);
    bool holds = true;
    for (const struct jj_node *s = n->b; s && holds && !ev->failed; s = s->next) {
        struct jj_value right = eval(ev, s->a);
        holds = !ev->failed && compare(ev, s->op, left, right);
        left = right;
    }
    return jj_bool(holds);
}

static struct jj_value eval_chain(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value v = eval(ev, n->a);
    for (const struct jj_node *s = n->b; s && !ev->failed; s = s->next) {
        struct jj_value right = eval(ev, s->a);
        if (!ev->failed && jj_charge(ev, 0))
            v = jj_arith(ev, s->op, v, right);
    }
    return v;
}

static struct jj_value eval_concat(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value v = jj_str(jj_text(ev, eval(ev, n->a)));
    for (const struct jj_node *s = n->b; s && !ev->failed; s = s->next) {
        struct sl_str right = jj_text(ev, eval(ev, s->a));
        if (!ev->failed)
            v = jj_join(ev, v.u.s, right);
    }
    return v;
}

/* `and` stops at the first false operand, `or` at the first true one; the value is that operand. */
static struct jj_value eval_logic(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value v = eval(ev, n->a);
    for (const struct jj_node *s = n->b; s && !ev->failed; s = s->next) {
        if (jj_truth(v) == (n->type == JJ_N_OR))
            break;
        v = eval(ev, s->a);
    }
    return v;
}

static struct jj_value eval_sign(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value v = eval(ev, n->a);
    if (ev->failed)
        return v;
    if (n->type == JJ_N_NEG && v.kind == JJ_FLOAT)
        return jj_float(-v.u.f);
    return jj_arith(ev, n->type == JJ_N_NEG ? JJ_SUB : JJ_ADD, jj_int(0), v);
}

static struct jj_value eval_inner(struct jj_ev *ev, const struct jj_node *n)
{
    switch (n->type) {
    case JJ_N_NAME:
        return *scope_find(ev, n->name);
    case JJ_N_LIST:
        return eval_items(ev, n, JJ_LIST);
    case JJ_N_TUPLE:
        return eval_items(ev, n, JJ_TUPLE);
    case JJ_N_DICT:
        return eval_dict(ev, n);
    case JJ_N_CHAIN:
        return eval_chain(ev, n);
    case JJ_N_COMPARE:
        return eval_compare(ev, n);
    case JJ_N_AND:
    case JJ_N_OR:
        return eval_logic(ev, n);
    case JJ_N_NOT:
        return jj_bool(!jj_truth(eval(ev, n->a)));
    case JJ_N_NEG:
    case JJ_N_POS:
        return eval_sign(ev, n);
    case JJ_N_CONCAT:
        return eval_concat(ev, n);
    case JJ_N_COND:
        return jj_truth(eval(ev, n->a)) ? eval(ev, n->b) : n->c ? eval(ev, n->c) : jj_undef();
    case JJ_N_POSTFIX: {
        struct jj_value base = eval(ev, n->a);
        return apply_steps(ev, base, n->b, NULL);
    }
    default:
        return n->value;
    }
}

static struct jj_value eval(struct jj_ev *ev, const struct jj_node *n)
{
    if (!jj_charge(ev, 0) || !enter(ev))
        return jj_undef();
    ev->line = n->line;
    struct jj_value v = eval_inner(ev, n);
    ev->depth--;
    return ev->failed ? jj_undef() : v;
}

/* ---- statements ---- */

static void exec_if(struct jj_ev *ev, const struct jj_node *n)
{
    for (const struct jj_node *branch = n->a; branch; branch = branch->next) {
        bool yes = jj_truth(eval(ev, branch->a));
        if (ev->failed)
            return;
        if (yes) {
            exec_list(ev, branch->b);
            return;
        }
    }
    exec_list(ev, n->b);
}

/* The items a loop runs over: ranges stay lazy, a list is read as it is now. */
static struct jj_value loop_items(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value all = eval(ev, n->b);
    if (ev->failed)
        return jj_undef();
    if (!n->c) {
        if (all.kind == JJ_LIST || all.kind == JJ_TUPLE || all.kind == JJ_RANGE ||
            all.kind == JJ_VIEW)
            return all;
        return jj_to_list(ev, all, JJ_LIST);
    }
    struct jj_value kept = jj_list_new(ev, JJ_LIST, 0), v;
    struct jj_scope *outer = ev->scope;
    struct jj_iter it;
    ev->scope = scope_new(ev, outer);
    if (!ev->failed && jj_iter_init(ev, all, &it))
        while (jj_iter_next(ev, &it, &v)) {
            ev->scope->n = 0;
            assign(ev, n->a, v);
            if (!ev->failed && jj_truth(eval(ev, n->c)))
                jj_push(ev, kept.u.list, v);
        }
    ev->scope = outer;
    return kept;
}

static struct jj_value loop_item(struct jj_value items, const struct jj_list *list, size_t i)
{
    if (items.kind == JJ_RANGE)
        return jj_int(items.u.range->start + (int64_t)i * items.u.range->step);
    return list->at[i];
}

static void run_loop(struct jj_ev *ev, const struct jj_node *n, struct jj_value items, size_t count)
{
    struct jj_list now = items.kind == JJ_RANGE ? (struct jj_list){0} : *items.u.list;
    struct jj_loop *loop = jj_alloc(ev, 1, sizeof *loop);
    struct jj_scope *outer = ev->scope;
    ev->scope = scope_new(ev, outer);
    if (loop)
        loop->n = count;
    for (size_t i = 0; i < count && jj_charge(ev, 0); i++) {
        struct jj_value v = loop_item(items, &now, i);
        loop->i = i;
        loop->previous = i > 0 ? loop_item(items, &now, i - 1) : jj_undef();
        loop->next = i + 1 < count ? loop_item(items, &now, i + 1) : jj_undef();
        ev->scope->n = 0;
        scope_set(ev, ev->t->id_loop, (struct jj_value){.kind = JJ_LOOP, .u.loop = loop});
        assign(ev, n->a, v);
        exec_list(ev, n->d);
        bool stop = ev->signal == 'b';
        ev->signal = 0;
        if (stop)
            break;
    }
    ev->scope = outer;
}

static void exec_for(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value items = loop_items(ev, n);
    if (ev->failed)
        return;
    size_t count = items.kind == JJ_RANGE ? (size_t)items.u.range->n : items.u.list->n;
    if (count > 0) {
        run_loop(ev, n, items, count);
        return;
    }
    exec_list(ev, n->e);
}

/* Runs a body in a scope of its own; its output is a value when `caught` is wanted. */
static void exec_scope(struct jj_ev *ev, const struct jj_node *body, struct jj_value *caught)
{
    struct jj_scope *outer_scope = ev->scope;
    struct sl_buf b, *outer;
    ev->scope = scope_new(ev, outer_scope);
    if (!ev->failed && !caught)
        exec_list(ev, body);
    if (!ev->failed && caught) {
        capture_begin(ev, &b, &outer);
        exec_list(ev, body);
        *caught = capture_end(ev, &b, outer);
    }
    ev->scope = outer_scope;
}

static void exec_with(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_scope *outer = ev->scope, *inner = scope_new(ev, outer);
    for (const struct jj_node *set = n->a; set && !ev->failed; set = set->next) {
        struct jj_value v = eval(ev, set->b); /* in the outer scope */
        ev->scope = inner;
        assign(ev, set->a, v);
        ev->scope = outer;
    }
    ev->scope = inner;
    if (!ev->failed)
        exec_list(ev, n->b);
    ev->scope = outer;
}

static struct jj_value make_macro(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_macro *m = jj_alloc(ev, 1, sizeof *m);
    if (!m)
        return jj_undef();
    *m = (struct jj_macro){.node = n, .scope = ev->scope};
    return (struct jj_value){.kind = JJ_MACRO, .u.macro = m};
}

static struct jj_value eval_call_block(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_kwarg caller = {SL_STR("caller"), make_macro(ev, n->b)};
    struct jj_value base = eval(ev, n->a->a);
    return apply_steps(ev, base, n->a->b, &caller);
}

static void exec_caught(struct jj_ev *ev, const struct jj_node *n)
{
    struct jj_value text = jj_undef();
    exec_scope(ev, n->c, &text);
    if (!ev->failed && n->b)
        text = apply_steps(ev, text, n->b->b, NULL);
    if (ev->failed)
        return;
    if (n->type == JJ_N_SET_BLOCK)
        assign(ev, n->a, text);
    else
        jj_emit(ev, jj_text(ev, text));
}

static void exec(struct jj_ev *ev, const struct jj_node *n)
{
    ev->line = n->line;
    switch (n->type) {
    case JJ_N_TEXT:
        jj_emit(ev, n->str);
        break;
    case JJ_N_PRINT:
        jj_emit(ev, jj_text(ev, eval(ev, n->a)));
        break;
    case JJ_N_IF:
        exec_if(ev, n);
        break;
    case JJ_N_FOR:
        exec_for(ev, n);
        break;
    case JJ_N_SET:
        assign(ev, n->a, eval(ev, n->b));
        break;
    case JJ_N_SET_BLOCK:
    case JJ_N_FILTER_BLOCK:
        exec_caught(ev, n);
        break;
    case JJ_N_MACRO:
        scope_set(ev, n->name, make_macro(ev, n));
        break;
    case JJ_N_CALL_BLOCK:
        jj_emit(ev, jj_text(ev, eval_call_block(ev, n)));
        break;
    case JJ_N_WITH:
        exec_with(ev, n);
        break;
    case JJ_N_SCOPE:
        exec_scope(ev, n->a, NULL);
        break;
    default:
        ev->signal = n->type == JJ_N_BREAK ? 'b' : 'c';
    }
}

static void exec_list(struct jj_ev *ev, const struct jj_node *n)
{
    if (ev->failed || !enter(ev))
        return;
    for (; n && !ev->signal && jj_charge(ev, 0); n = n->next)
        exec(ev, n);
    ev->depth--;
}

/* ---- a rendering ---- */

static void set_globals(struct jj_ev *ev, const struct sl_json *vars)
{
    for (unsigned i = 0; jj_funcs[i]; i++) {
        uint32_t id = jj_name_find(ev->t, sl_str_of(jj_funcs[i]));
        if (id != UINT32_MAX)
            ev->globals[id] = (struct jj_value){.kind = JJ_FUNC, .u.func = i};
    }
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *v;
    while (!ev->failed && sl_json_next(vars, &iter, &key, &v)) {
        uint32_t id = jj_name_find(ev->t, key);
        if (id != UINT32_MAX)
            ev->globals[id] = jj_from_json(ev, v);
        if (sl_str_eqz(key, "__now") && sl_json_kind(v) == SL_JSON_INT) {
            ev->now_s = sl_json_int(v);
            ev->has_now = true;
        }
    }
}

enum sl_status jj_run(const struct sl_template *t, const struct sl_json *vars, struct sl_buf *out,
                      struct sl_err *err)
{
    size_t len = out->len;
    struct jj_ev ev = {.t = t, .err = err, .out = out};
    if (sl_json_kind(vars) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "chat template: its variables are not a JSON object");
    sl_arena_init(&ev.mem, JJ_EVAL_BYTES);
    ev.globals = jj_alloc(&ev, t->n_names, sizeof *ev.globals);
    if (!ev.failed)
        set_globals(&ev, vars);
    exec_list(&ev, t->body);
    sl_arena_free(&ev.mem);
    if (!ev.failed)
        return SL_OK;
    if (out->data) {
        out->len = len; /* nothing half-done is left behind */
        out->data[len] = 0;
    }
    return SL_INVALID;
}
