/* Jinja parser: tokens to a tree, by recursive descent over Jinja's grammar.
 *
 * `bad` is sticky: the first error is kept, every later token reads as the end, and a tree with an
 * error is never evaluated, so nodes may then be NULL. */
#include "jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct parser {
    struct sl_template *t;
    struct jj_lex lex;
    struct jj_token cur, ahead;
    bool has_ahead, bad;
    unsigned depth, n_loops;
    unsigned uses; /* JJ_USES_* of the macro being parsed */
    char why[160];
    uint32_t why_line;
};

static struct jj_node *parse_expr(struct parser *p, bool with_cond);
static struct jj_node *parse_unary(struct parser *p, bool with_filter);
static struct jj_node *parse_body(struct parser *p, const char *ends);

__attribute__((format(printf, 2, 3))) static struct jj_node *fail(struct parser *p, const char *fmt,
                                                                  ...)
{
    if (!p->bad) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(p->why, sizeof p->why, fmt, ap);
        va_end(ap);
        p->why_line = p->cur.line;
        p->bad = true;
    }
    p->cur = (struct jj_token){.type = JJ_T_EOF, .line = p->cur.line};
    return NULL;
}

static struct jj_token read_token(struct parser *p)
{
    struct jj_token t = jj_lex_next(&p->lex);
    if (p->lex.error && !p->bad) {
        p->cur.line = t.line;
        fail(p, "%s", p->lex.error);
    }
    return t;
}

static void next(struct parser *p)
{
    if (p->bad)
        return;
    struct jj_token t = p->has_ahead ? p->ahead : read_token(p);
    p->has_ahead = false;
    if (!p->bad)
        p->cur = t;
}

static const struct jj_token *look(struct parser *p)
{
    if (!p->has_ahead) {
        p->ahead = read_token(p);
        p->has_ahead = true;
    }
    return &p->ahead;
}

static bool is_op(const struct parser *p, enum jj_op op)
{
    return p->cur.type == JJ_T_OP && p->cur.op == op;
}

static bool is_name(const struct parser *p, const char *z)
{
    return p->cur.type == JJ_T_NAME && sl_str_eqz(p->cur.text, z);
}

static bool skip_op(struct parser *p, enum jj_op op)
{
    bool yes = is_op(p, op);
    if (yes)
        next(p);
    return yes;
}

static bool skip_name(struct parser *p, const char *z)
{
    bool yes = is_name(p, z);
    if (yes)
        next(p);
    return yes;
}

static void expect_op(struct parser *p, enum jj_op op, const char *what)
{
    if (!skip_op(p, op))
        fail(p, "expected '%s'", what);
}

static struct sl_str expect_name(struct parser *p)
{
    struct sl_str s = p->cur.text;
    if (p->cur.type != JJ_T_NAME) {
        fail(p, "expected a name");
        return (struct sl_str){"", 0};
    }
    next(p);
    return s;
}

static void expect_block_end(struct parser *p)
{
    if (p->cur.type != JJ_T_BLOCK_END)
        fail(p, "expected the end of the tag");
    else
        next(p);
}

static struct jj_node *node_new(struct parser *p, enum jj_type type)
{
    struct jj_node *n = p->bad ? NULL : SL_ARENA_NEW(&p->t->mem, struct jj_node);
    if (!n) {
        fail(p, "template too large");
        /* A spare node keeps the callers free of checks; it is never evaluated. */
        static _Thread_local struct jj_node spare;
        spare = (struct jj_node){.type = JJ_N_CONST};
        return &spare;
    }
    n->type = type;
    n->line = p->cur.line;
    return n;
}

static bool enter(struct parser *p)
{
    if (p->depth >= SL_LIMIT_template_depth) {
        fail(p, "nesting deeper than template_depth %d", SL_LIMIT_template_depth);
        return false;
    }
    p->depth++;
    return true;
}

static void set_name(struct parser *p, struct jj_node *n, struct sl_str s)
{
    n->str = s;
    n->name = jj_name_intern(p->t, s);
    if (n->name == UINT32_MAX)
        fail(p, "template too large");
    if (sl_str_eqz(s, "varargs"))
        p->uses |= JJ_USES_VARARGS;
    if (sl_str_eqz(s, "kwargs"))
        p->uses |= JJ_USES_KWARGS;
    if (sl_str_eqz(s, "caller"))
        p->uses |= JJ_USES_CALLER;
}

static struct jj_node *parse_string(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_CONST);
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_source_bytes + 1};
    while (p->cur.type == JJ_T_STRING) { /* adjacent strings are one */
        if (!jj_unescape(p->cur.text, &b))
            fail(p, "bad escape in a string");
        next(p);
    }
    char *s = sl_arena_strndup(&p->t->mem, b.data ? b.data : "", b.len);
    if (!s || b.failed)
        fail(p, "template too large");
    n->value = jj_str((struct sl_str){s, b.len});
    sl_buf_free(&b);
    return n;
}

static struct jj_node *parse_number(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_CONST);
    char z[64];
    size_t len = 0;
    for (size_t i = 0; i < p->cur.text.len; i++)
        if (p->cur.text.data[i] != '_' && len < sizeof z - 1)
            z[len++] = p->cur.text.data[i];
    z[len] = 0;
    if (len == sizeof z - 1)
        return fail(p, "number too long");
    if (p->cur.type == JJ_T_FLOAT) {
        n->value = jj_float(strtod(z, NULL));
    } else {
        int base = len < 2 || z[0] != '0' ? 10
                   : (z[1] | 0x20) == 'x' ? 16
                   : (z[1] | 0x20) == 'o' ? 8
                   : (z[1] | 0x20) == 'b' ? 2
                                          : 10;
        uint64_t v = 0;
        bool over = false;
        for (const char *q = base == 10 ? z : z + 2; *q; q++) {
            char c = (char)(*q | 0x20);
            uint64_t d = *q <= '9' ? (uint64_t)(*q - '0') : (uint64_t)(c - 'a' + 10);
            over |= __builtin_mul_overflow(v, (uint64_t)base, &v);
            over |= __builtin_add_overflow(v, d, &v);
        }
        if (over || v > INT64_MAX)
            return fail(p, "integer too large");
        n->value = jj_int((int64_t)v);
    }
    next(p);
    return n;
}

/* Lists of nodes keep their tail in a local. */
static void append(struct jj_node ***tail, struct jj_node *n)
{
    if (!n)
        return;
    **tail = n;
    *tail = &n->next;
}

static bool is_tuple_end(const struct parser *p, const char *stop)
{
    return p->cur.type == JJ_T_VAR_END || p->cur.type == JJ_T_BLOCK_END ||
           p->cur.type == JJ_T_EOF || is_op(p, JJ_RPAREN) || (stop && is_name(p, stop));
}

enum tuple_how { TUPLE_FULL, TUPLE_NO_COND, TUPLE_TARGET, TUPLE_TARGET_NS };
static struct jj_node *parse_primary(struct parser *p, bool with_namespace);

/* One expression, or a tuple where commas follow. */
static struct jj_node *parse_tuple(struct parser *p, enum tuple_how how, const char *stop,
                                   bool in_parens)
{
    struct jj_node *tuple = node_new(p, JJ_N_TUPLE), **tail = &tuple->a;
    size_t n = 0;
    bool commas = false;
    while (!p->bad) {
        if (n > 0)
            expect_op(p, JJ_COMMA, ",");
        if (is_tuple_end(p, stop))
            break;
        append(&tail, how >= TUPLE_TARGET ? parse_primary(p, how == TUPLE_TARGET_NS)
                                          : parse_expr(p, how == TUPLE_FULL));
        n++;
        if (!is_op(p, JJ_COMMA))
            break;
        commas = true;
    }
    if (p->bad)
        return tuple;
    if (!commas && n > 0)
        return tuple->a;
    if (n == 0 && !in_parens)
        fail(p, "expected an expression");
    return tuple;
}

static struct jj_node *parse_list(struct parser *p)
{
    struct jj_node *list = node_new(p, JJ_N_LIST), **tail = &list->a;
    next(p);
    while (!p->bad && !is_op(p, JJ_RBRACKET)) {
        if (list->a)
            expect_op(p, JJ_COMMA, ",");
        if (is_op(p, JJ_RBRACKET))
            break;
        append(&tail, parse_expr(p, true));
    }
    expect_op(p, JJ_RBRACKET, "]");
    return list;
}

static struct jj_node *parse_dict(struct parser *p)
{
    struct jj_node *dict = node_new(p, JJ_N_DICT), **tail = &dict->a;
    next(p);
    while (!p->bad && !is_op(p, JJ_RBRACE)) {
        if (dict->a)
            expect_op(p, JJ_COMMA, ",");
        if (is_op(p, JJ_RBRACE))
            break;
        struct jj_node *pair = node_new(p, JJ_N_PAIR);
        pair->a = parse_expr(p, true);
        expect_op(p, JJ_COLON, ":");
        pair->b = parse_expr(p, true);
        append(&tail, p->bad ? NULL : pair);
    }
    expect_op(p, JJ_RBRACE, "}");
    return dict;
}

static struct jj_node *parse_name(struct parser *p, bool with_namespace)
{
    struct jj_node *n = node_new(p, JJ_N_CONST);
    struct sl_str s = p->cur.text;
    next(p);
    if (sl_str_eqz(s, "true") || sl_str_eqz(s, "True")) {
        n->value = jj_bool(true);
    } else if (sl_str_eqz(s, "false") || sl_str_eqz(s, "False")) {
        n->value = jj_bool(false);
    } else if (sl_str_eqz(s, "none") || sl_str_eqz(s, "None")) {
        n->value = jj_none();
    } else {
        n->type = JJ_N_NAME;
        set_name(p, n, s);
        if (with_namespace && skip_op(p, JJ_DOT)) {
            n->type = JJ_N_NSREF;
            n->value = jj_str(expect_name(p));
        }
    }
    return n;
}

static struct jj_node *parse_primary(struct parser *p, bool with_namespace)
{
    if (p->cur.type == JJ_T_NAME)
        return parse_name(p, with_namespace);
    if (p->cur.type == JJ_T_STRING)
        return parse_string(p);
    if (p->cur.type == JJ_T_INT || p->cur.type == JJ_T_FLOAT)
        return parse_number(p);
    if (!is_op(p, JJ_LPAREN) && !is_op(p, JJ_LBRACKET) && !is_op(p, JJ_LBRACE))
        return fail(p, "expected an expression");
    if (!enter(p))
        return NULL;
    struct jj_node *n;
    if (is_op(p, JJ_LBRACKET)) {
        n = parse_list(p);
    } else if (is_op(p, JJ_LBRACE)) {
        n = parse_dict(p);
    } else {
        next(p);
        n = parse_tuple(p, TUPLE_FULL, NULL, true);
        expect_op(p, JJ_RPAREN, ")");
    }
    p->depth--;
    return n;
}

/* The arguments of a call, as a list of expressions and KWARGs. */
static struct jj_node *parse_args(struct parser *p)
{
    struct jj_node *first = NULL, **tail = &first;
    bool named = false;
    expect_op(p, JJ_LPAREN, "(");
    while (!p->bad && !is_op(p, JJ_RPAREN)) {
        if (first)
            expect_op(p, JJ_COMMA, ",");
        if (is_op(p, JJ_RPAREN))
            break;
        if (is_op(p, JJ_MUL) || is_op(p, JJ_POW))
            return fail(p, "spread arguments are not supported");
        if (p->cur.type == JJ_T_NAME && look(p)->type == JJ_T_OP && look(p)->op == JJ_ASSIGN) {
            struct jj_node *kw = node_new(p, JJ_N_KWARG);
            kw->str = p->cur.text;
            next(p);
            next(p);
            kw->a = parse_expr(p, true);
            named = true;
            append(&tail, p->bad ? NULL : kw);
        } else if (named) {
            return fail(p, "positional argument after a named one");
        } else {
            append(&tail, parse_expr(p, true));
        }
    }
    expect_op(p, JJ_RPAREN, ")");
    return first;
}

static struct jj_node *parse_subscript(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_INDEX);
    struct jj_node *part[3] = {NULL, NULL, NULL};
    bool slice = false;
    if (!is_op(p, JJ_COLON))
        part[0] = parse_expr(p, true);
    for (int i = 1; i < 3 && skip_op(p, JJ_COLON); i++) {
        slice = true;
        if (!is_op(p, JJ_COLON) && !is_op(p, JJ_RBRACKET))
            part[i] = parse_expr(p, true);
    }
    n->a = part[0];
    if (slice) {
        n->type = JJ_N_SLICE;
        n->b = part[1];
        n->c = part[2];
    }
    expect_op(p, JJ_RBRACKET, "]");
    return n;
}

/* Adds a step (attribute, call, filter..) to what is applied to `base`. */
static struct jj_node *add_step(struct parser *p, struct jj_node *base, struct jj_node *step)
{
    if (p->bad || !base)
        return base;
    struct jj_node *chain = base;
    if (base->type != JJ_N_POSTFIX) {
        chain = node_new(p, JJ_N_POSTFIX);
        chain->a = base;
    }
    if (chain->e)
        chain->e->next = step;
    else
        chain->b = step;
    chain->e = step;
    return chain;
}

static struct jj_node *parse_call(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_CALL);
    n->a = parse_args(p);
    return n;
}

static struct jj_node *parse_postfix(struct parser *p, struct jj_node *n)
{
    while (!p->bad) {
        if (is_op(p, JJ_LPAREN)) {
            n = add_step(p, n, parse_call(p));
        } else if (skip_op(p, JJ_LBRACKET)) {
            n = add_step(p, n, parse_subscript(p));
        } else if (skip_op(p, JJ_DOT)) {
            struct jj_node *step = node_new(p, JJ_N_ATTR);
            if (p->cur.type == JJ_T_INT) {
                step->type = JJ_N_INDEX;
                step->a = parse_number(p);
            } else {
                step->str = expect_name(p);
            }
            n = add_step(p, n, step);
        } else {
            break;
        }
    }
    return n;
}

/* The names and arguments of `filter(args)|filter...`, the first name already next. */
static struct jj_node *parse_filters(struct parser *p, struct jj_node *n)
{
    do {
        struct jj_node *step = node_new(p, JJ_N_FILTER);
        step->str = expect_name(p);
        if (is_op(p, JJ_LPAREN))
            step->a = parse_args(p);
        n = add_step(p, n, step);
    } while (!p->bad && skip_op(p, JJ_PIPE));
    return n;
}

static struct jj_node *parse_test(struct parser *p)
{
    struct jj_node *step = node_new(p, JJ_N_TEST);
    step->flags = skip_name(p, "not");
    step->str = expect_name(p);
    enum jj_tok t = p->cur.type;
    bool operand = t == JJ_T_NAME || t == JJ_T_STRING || t == JJ_T_INT || t == JJ_T_FLOAT ||
                   is_op(p, JJ_LBRACKET) || is_op(p, JJ_LBRACE);
    if (is_op(p, JJ_LPAREN)) {
        step->a = parse_args(p);
    } else if (operand && !is_name(p, "else") && !is_name(p, "or") && !is_name(p, "and")) {
        if (is_name(p, "is"))
            return fail(p, "tests cannot be chained");
        step->a = parse_postfix(p, parse_primary(p, false));
    }
    return step;
}

static struct jj_node *parse_filter_expr(struct parser *p, struct jj_node *n)
{
    while (!p->bad) {
        if (skip_op(p, JJ_PIPE))
            n = parse_filters(p, n);
        else if (skip_name(p, "is"))
            n = add_step(p, n, parse_test(p));
        else if (is_op(p, JJ_LPAREN))
            n = add_step(p, n, parse_call(p));
        else
            break;
    }
    return n;
}

static struct jj_node *parse_unary(struct parser *p, bool with_filter)
{
    struct jj_node *n;
    if (is_op(p, JJ_SUB) || is_op(p, JJ_ADD)) {
        if (!enter(p))
            return NULL;
        n = node_new(p, is_op(p, JJ_SUB) ? JJ_N_NEG : JJ_N_POS);
        next(p);
        n->a = parse_unary(p, false);
        p->depth--;
    } else {
        n = parse_primary(p, false);
    }
    n = parse_postfix(p, n);
    return with_filter ? parse_filter_expr(p, n) : n;
}

/* Binary operators, loosest first; each level is a list of (operator, operand) on one node. */
static struct jj_node *parse_level(struct parser *p, int level);

static bool level_has(const struct parser *p, int level)
{
    if (p->cur.type != JJ_T_OP)
        return false;
    enum jj_op op = p->cur.op;
    if (level == 0)
        return op == JJ_ADD || op == JJ_SUB;
    if (level == 1)
        return op == JJ_TILDE;
    if (level == 2)
        return op == JJ_MUL || op == JJ_DIV || op == JJ_FLOORDIV || op == JJ_MOD;
    return op == JJ_POW;
}

static struct jj_node *parse_level(struct parser *p, int level)
{
    struct jj_node *first = level == 4 ? parse_unary(p, true) : parse_level(p, level + 1);
    if (level == 4 || p->bad || !level_has(p, level))
        return first;
    struct jj_node *chain = node_new(p, level == 1 ? JJ_N_CONCAT : JJ_N_CHAIN);
    struct jj_node **tail = &chain->b;
    chain->a = first;
    while (!p->bad && level_has(p, level)) {
        struct jj_node *step = node_new(p, JJ_N_STEP);
        step->op = p->cur.op;
        next(p);
        step->a = parse_level(p, level + 1);
        append(&tail, p->bad ? NULL : step);
    }
    return chain;
}

static enum jj_op compare_op(struct parser *p)
{
    if (p->cur.type == JJ_T_OP && p->cur.op >= JJ_EQ && p->cur.op <= JJ_GE)
        return p->cur.op;
    if (is_name(p, "in"))
        return JJ_IN;
    if (is_name(p, "not") && look(p)->type == JJ_T_NAME && sl_str_eqz(look(p)->text, "in"))
        return JJ_NOT_IN;
    return JJ_NO_OP;
}

static struct jj_node *parse_compare(struct parser *p)
{
    struct jj_node *first = parse_level(p, 0);
    enum jj_op op = p->bad ? JJ_NO_OP : compare_op(p);
    if (op == JJ_NO_OP)
        return first;
    struct jj_node *cmp = node_new(p, JJ_N_COMPARE), **tail = &cmp->b;
    cmp->a = first;
    for (; !p->bad && op != JJ_NO_OP; op = p->bad ? JJ_NO_OP : compare_op(p)) {
        struct jj_node *step = node_new(p, JJ_N_STEP);
        step->op = op;
        next(p);
        if (op == JJ_NOT_IN)
            next(p);
        step->a = parse_level(p, 0);
        append(&tail, p->bad ? NULL : step);
    }
    return cmp;
}

static struct jj_node *parse_not(struct parser *p)
{
    if (!is_name(p, "not"))
        return parse_compare(p);
    if (!enter(p))
        return NULL;
    struct jj_node *n = node_new(p, JJ_N_NOT);
    next(p);
    n->a = parse_not(p);
    p->depth--;
    return n;
}

/* `x and y and z` or `x or y or z` as one node with its operands wrapped in STEPs. */
static struct jj_node *parse_logic(struct parser *p, bool is_or)
{
    struct jj_node *first = is_or ? parse_logic(p, false) : parse_not(p);
    const char *word = is_or ? "or" : "and";
    if (p->bad || !is_name(p, word))
        return first;
    struct jj_node *n = node_new(p, is_or ? JJ_N_OR : JJ_N_AND), **tail = &n->b;
    n->a = first;
    while (skip_name(p, word)) {
        struct jj_node *step = node_new(p, JJ_N_STEP);
        step->a = is_or ? parse_logic(p, false) : parse_not(p);
        append(&tail, p->bad ? NULL : step);
    }
    return n;
}

static struct jj_node *parse_expr(struct parser *p, bool with_cond)
{
    if (!enter(p))
        return NULL;
    unsigned depth = p->depth;
    struct jj_node *n = parse_logic(p, true);
    while (with_cond && !p->bad && skip_name(p, "if")) {
        struct jj_node *cond = node_new(p, JJ_N_COND);
        cond->b = n;
        cond->a = parse_logic(p, true);
        if (skip_name(p, "else"))
            cond->c = parse_expr(p, true);
        n = cond;
        if (!enter(p)) /* `a if b if c` nests to the left */
            return NULL;
    }
    p->depth = depth - 1;
    return n;
}

/* Statements. */

/* Names, namespace attributes and tuples of these; the parser's depth bounds the recursion. */
static bool is_assignable(const struct jj_node *n)
{
    if (n->type != JJ_N_TUPLE)
        return n->type == JJ_N_NAME || n->type == JJ_N_NSREF;
    for (const struct jj_node *item = n->a; item; item = item->next)
        if (!is_assignable(item))
            return false;
    return true;
}

static struct jj_node *assign_target(struct parser *p, bool with_namespace, const char *stop)
{
    enum tuple_how how = with_namespace ? TUPLE_TARGET_NS : TUPLE_TARGET;
    struct jj_node *n = parse_tuple(p, how, stop, false);
    if (p->bad || !is_assignable(n))
        return fail(p, "cannot assign to this");
    return n;
}

/* What one block tag with its body is, from the name on to its end tag inclusive. */
static struct jj_node *parse_for(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_FOR);
    n->a = assign_target(p, false, "in");
    if (!skip_name(p, "in"))
        return fail(p, "expected 'in'");
    n->b = parse_tuple(p, TUPLE_NO_COND, "recursive", false);
    if (skip_name(p, "if"))
        n->c = parse_expr(p, true);
    if (is_name(p, "recursive"))
        return fail(p, "recursive loops are not supported");
    expect_block_end(p);
    p->n_loops++;
    n->d = parse_body(p, "endfor else");
    p->n_loops--;
    if (skip_name(p, "else")) {
        expect_block_end(p);
        n->e = parse_body(p, "endfor");
    }
    next(p);
    return n;
}

static struct jj_node *parse_if(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_IF), **tail = &n->a;
    bool more = true;
    while (more && !p->bad) {
        struct jj_node *branch = node_new(p, JJ_N_BRANCH);
        branch->a = parse_tuple(p, TUPLE_NO_COND, NULL, false);
        expect_block_end(p);
        branch->b = parse_body(p, "elif else endif");
        append(&tail, p->bad ? NULL : branch);
        more = skip_name(p, "elif");
    }
    if (skip_name(p, "else")) {
        expect_block_end(p);
        n->b = parse_body(p, "endif");
    }
    next(p);
    return n;
}

static struct jj_node *parse_set(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_SET);
    n->a = assign_target(p, true, NULL);
    if (skip_op(p, JJ_ASSIGN)) {
        n->b = parse_tuple(p, TUPLE_FULL, NULL, false);
        return n;
    }
    n->type = JJ_N_SET_BLOCK;
    if (skip_op(p, JJ_PIPE))
        n->b = parse_filters(p, node_new(p, JJ_N_CONST));
    expect_block_end(p);
    n->c = parse_body(p, "endset");
    next(p);
    return n;
}

/* `(a, b=1)` of a macro or call tag. */
static struct jj_node *parse_params(struct parser *p)
{
    struct jj_node *first = NULL, **tail = &first;
    bool defaults = false;
    expect_op(p, JJ_LPAREN, "(");
    while (!p->bad && !is_op(p, JJ_RPAREN)) {
        if (first)
            expect_op(p, JJ_COMMA, ",");
        struct jj_node *param = node_new(p, JJ_N_NAME);
        set_name(p, param, expect_name(p));
        if (skip_op(p, JJ_ASSIGN)) {
            param->a = parse_expr(p, true);
            defaults = true;
        } else if (defaults) {
            return fail(p, "parameter without a default after one with a default");
        }
        append(&tail, p->bad ? NULL : param);
    }
    expect_op(p, JJ_RPAREN, ")");
    return first;
}

static void parse_macro_body(struct parser *p, struct jj_node *n, const char *end)
{
    unsigned outer_uses = p->uses, outer_loops = p->n_loops;
    p->uses = 0;
    p->n_loops = 0;
    expect_block_end(p);
    n->b = parse_body(p, end);
    n->flags = p->uses;
    p->uses = outer_uses;
    p->n_loops = outer_loops;
    next(p);
}

static struct jj_node *parse_macro(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_MACRO);
    set_name(p, n, expect_name(p));
    n->a = parse_params(p);
    parse_macro_body(p, n, "endmacro");
    return n;
}

static struct jj_node *parse_call_block(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_CALL_BLOCK);
    struct jj_node *macro = node_new(p, JJ_N_MACRO);
    macro->str = SL_STR("caller");
    if (is_op(p, JJ_LPAREN))
        macro->a = parse_params(p);
    n->a = parse_expr(p, true);
    n->b = macro;
    if (!p->bad && (n->a->type != JJ_N_POSTFIX || n->a->e->type != JJ_N_CALL))
        return fail(p, "expected a call");
    parse_macro_body(p, macro, "endcall");
    return n;
}

static struct jj_node *parse_filter_block(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_FILTER_BLOCK);
    n->b = parse_filters(p, node_new(p, JJ_N_CONST));
    expect_block_end(p);
    n->c = parse_body(p, "endfilter");
    next(p);
    return n;
}

static struct jj_node *parse_with(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_WITH), **tail = &n->a;
    while (!p->bad && p->cur.type != JJ_T_BLOCK_END) {
        if (n->a)
            expect_op(p, JJ_COMMA, ",");
        struct jj_node *set = node_new(p, JJ_N_SET);
        set->a = node_new(p, JJ_N_NAME);
        set_name(p, set->a, expect_name(p));
        expect_op(p, JJ_ASSIGN, "=");
        set->b = parse_expr(p, true);
        append(&tail, p->bad ? NULL : set);
    }
    expect_block_end(p);
    n->b = parse_body(p, "endwith");
    next(p);
    return n;
}

static struct jj_node *parse_generation(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_SCOPE);
    expect_block_end(p);
    n->a = parse_body(p, "endgeneration");
    next(p);
    return n;
}

static struct jj_node *parse_jump(struct parser *p, enum jj_type type)
{
    if (p->n_loops == 0)
        return fail(p, "break or continue outside a loop");
    return node_new(p, type);
}

static struct jj_node *parse_break(struct parser *p)
{
    return parse_jump(p, JJ_N_BREAK);
}

static struct jj_node *parse_continue(struct parser *p)
{
    return parse_jump(p, JJ_N_CONTINUE);
}

static const struct {
    const char *name;
    struct jj_node *(*parse)(struct parser *p);
} statements[] = {
    {"for", parse_for},         {"if", parse_if},
    {"set", parse_set},         {"macro", parse_macro},
    {"call", parse_call_block}, {"filter", parse_filter_block},
    {"with", parse_with},       {"generation", parse_generation},
    {"break", parse_break},     {"continue", parse_continue},
};

static struct jj_node *parse_statement(struct parser *p)
{
    struct sl_str name = expect_name(p);
    for (size_t i = 0; !p->bad && i < sizeof statements / sizeof *statements; i++)
        if (sl_str_eqz(name, statements[i].name)) {
            struct jj_node *n = statements[i].parse(p);
            expect_block_end(p);
            return p->bad ? NULL : n;
        }
    return fail(p, "unknown tag '%.*s'", name.len < 40 ? (int)name.len : 40, name.data);
}

static bool is_one_of(struct sl_str s, const char *words)
{
    for (const char *w = words; *w;) {
        size_t n = strcspn(w, " ");
        if (s.len == n && memcmp(s.data, w, n) == 0)
            return true;
        w += n + (w[n] == ' ');
    }
    return false;
}

static struct jj_node *parse_print(struct parser *p)
{
    struct jj_node *n = node_new(p, JJ_N_PRINT);
    next(p);
    n->a = parse_tuple(p, TUPLE_FULL, NULL, false);
    if (p->cur.type != JJ_T_VAR_END)
        return fail(p, "expected the end of the expression");
    next(p);
    return n;
}

/* Statements up to a block tag named in `ends` (its name is then the current token), or, where
 * ends is "", up to the end of the source. */
static struct jj_node *parse_body(struct parser *p, const char *ends)
{
    struct jj_node *first = NULL, **tail = &first;
    if (!enter(p))
        return NULL;
    while (!p->bad && p->cur.type != JJ_T_EOF) {
        if (p->cur.type == JJ_T_DATA) {
            struct jj_node *n = node_new(p, JJ_N_TEXT);
            n->str = p->cur.text;
            next(p);
            append(&tail, p->bad ? NULL : n);
        } else if (p->cur.type == JJ_T_VAR_BEGIN) {
            append(&tail, parse_print(p));
        } else {
            next(p);
            if (p->cur.type == JJ_T_NAME && is_one_of(p->cur.text, ends))
                break;
            append(&tail, parse_statement(p));
        }
    }
    if (!p->bad && p->cur.type == JJ_T_EOF && *ends)
        fail(p, "the source ends inside a block that '%s' ends", ends);
    p->depth--;
    return first;
}

enum sl_status jj_parse(struct sl_template *t, const char *source, size_t len, struct sl_err *err)
{
    struct parser p = {.t = t};
    jj_lex_init(&p.lex, source, len);
    next(&p);
    t->body = parse_body(&p, "");
    if (p.bad)
        return sl_fail(err, SL_MODEL, "chat template line %u: %s", (unsigned)p.why_line, p.why);
    return SL_OK;
}
