/* Jinja expressions: tokens to a tree, by recursive descent over Jinja's grammar. */
#include "jinja_parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct jj_node *parse_unary(struct jj_parser *p, bool with_filter);

__attribute__((format(printf, 2, 3))) struct jj_node *jp_fail(struct jj_parser *p, const char *fmt,
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

static struct jj_token read_token(struct jj_parser *p)
{
    struct jj_token t = jj_lex_next(&p->lex);
    if (p->lex.error && !p->bad) {
        p->cur.line = t.line;
        jp_fail(p, "%s", p->lex.error);
    }
    return t;
}

void jp_next(struct jj_parser *p)
{
    if (p->bad)
        return;
    struct jj_token t = p->has_ahead ? p->ahead : read_token(p);
    p->has_ahead = false;
    if (!p->bad)
        p->cur = t;
}

static const struct jj_token *jp_look(struct jj_parser *p)
{
    if (!p->has_ahead) {
        p->ahead = read_token(p);
        p->has_ahead = true;
    }
    return &p->ahead;
}

bool jp_is_op(const struct jj_parser *p, enum jj_op op)
{
    return p->cur.type == JJ_T_OP && p->cur.op == op;
}

bool jp_is_name(const struct jj_parser *p, const char *z)
{
    return p->cur.type == JJ_T_NAME && sl_str_eqz(p->cur.text, z);
}

bool jp_skip_op(struct jj_parser *p, enum jj_op op)
{
    bool yes = jp_is_op(p, op);
    if (yes)
        jp_next(p);
    return yes;
}

bool jp_skip_name(struct jj_parser *p, const char *z)
{
    bool yes = jp_is_name(p, z);
    if (yes)
        jp_next(p);
    return yes;
}

void jp_expect_op(struct jj_parser *p, enum jj_op op, const char *what)
{
    if (!jp_skip_op(p, op))
        jp_fail(p, "expected '%s'", what);
}

struct sl_str jp_expect_name(struct jj_parser *p)
{
    struct sl_str s = p->cur.text;
    if (p->cur.type != JJ_T_NAME) {
        jp_fail(p, "expected a name");
        return (struct sl_str){"", 0};
    }
    jp_next(p);
    return s;
}

struct jj_node *jp_node(struct jj_parser *p, enum jj_type type)
{
    struct jj_node *n = p->bad ? NULL : SL_ARENA_NEW(&p->t->mem, struct jj_node);
    if (!n) {
        jp_fail(p, "template too large");
        /* A spare node keeps the callers free of checks; it is never evaluated. */
        static _Thread_local struct jj_node spare;
        spare = (struct jj_node){.type = JJ_N_CONST};
        return &spare;
    }
    n->type = type;
    n->line = p->cur.line;
    return n;
}

bool jp_enter(struct jj_parser *p)
{
    if (p->depth >= SL_LIMIT_template_depth) {
        jp_fail(p, "nesting deeper than template_depth %d", SL_LIMIT_template_depth);
        return false;
    }
    p->depth++;
    return true;
}

void jp_set_name(struct jj_parser *p, struct jj_node *n, struct sl_str s)
{
    n->str = s;
    n->name = jj_name_intern(p->t, s);
    if (n->name == UINT32_MAX)
        jp_fail(p, "template too large");
    if (sl_str_eqz(s, "varargs"))
        p->uses |= JJ_USES_VARARGS;
    if (sl_str_eqz(s, "kwargs"))
        p->uses |= JJ_USES_KWARGS;
    if (sl_str_eqz(s, "caller"))
        p->uses |= JJ_USES_CALLER;
}

static struct jj_node *parse_string(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_CONST);
    struct sl_buf b = {.cap_bytes = SL_LIMIT_template_source_bytes + 1};
    while (p->cur.type == JJ_T_STRING) { /* adjacent strings are one */
        if (!jj_unescape(p->cur.text, &b))
            jp_fail(p, "bad escape in a string");
        jp_next(p);
    }
    char *s = sl_arena_strndup(&p->t->mem, b.data ? b.data : "", b.len);
    if (!s || b.failed)
        jp_fail(p, "template too large");
    n->value = jj_str((struct sl_str){s, b.len});
    sl_buf_free(&b);
    return n;
}

static struct jj_node *parse_number(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_CONST);
    char z[64];
    size_t len = 0;
    for (size_t i = 0; i < p->cur.text.len; i++)
        if (p->cur.text.data[i] != '_' && len < sizeof z - 1)
            z[len++] = p->cur.text.data[i];
    z[len] = 0;
    if (len == sizeof z - 1)
        return jp_fail(p, "number too long");
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
            return jp_fail(p, "integer too large");
        n->value = jj_int((int64_t)v);
    }
    jp_next(p);
    return n;
}

/* Lists of nodes keep their tail in a local. */
void jp_append(struct jj_node ***tail, struct jj_node *n)
{
    if (!n)
        return;
    **tail = n;
    *tail = &n->next;
}

static bool is_tuple_end(const struct jj_parser *p, const char *stop)
{
    return p->cur.type == JJ_T_VAR_END || p->cur.type == JJ_T_BLOCK_END ||
           p->cur.type == JJ_T_EOF || jp_is_op(p, JJ_RPAREN) || (stop && jp_is_name(p, stop));
}

static struct jj_node *parse_primary(struct jj_parser *p, bool with_namespace);

/* One expression, or a tuple where commas follow. */
struct jj_node *jp_tuple(struct jj_parser *p, enum jp_tuple_how how, const char *stop,
                         bool in_parens)
{
    struct jj_node *tuple = jp_node(p, JJ_N_TUPLE), **tail = &tuple->a;
    size_t n = 0;
    bool commas = false;
    while (!p->bad) {
        if (n > 0)
            jp_expect_op(p, JJ_COMMA, ",");
        if (is_tuple_end(p, stop))
            break;
        jp_append(&tail, how >= TUPLE_TARGET ? parse_primary(p, how == TUPLE_TARGET_NS)
                                             : jp_expr(p, how == TUPLE_FULL));
        n++;
        if (!jp_is_op(p, JJ_COMMA))
            break;
        commas = true;
    }
    if (p->bad)
        return tuple;
    if (!commas && n > 0)
        return tuple->a;
    if (n == 0 && !in_parens)
        jp_fail(p, "expected an expression");
    return tuple;
}

static struct jj_node *parse_list(struct jj_parser *p)
{
    struct jj_node *list = jp_node(p, JJ_N_LIST), **tail = &list->a;
    jp_next(p);
    while (!p->bad && !jp_is_op(p, JJ_RBRACKET)) {
        if (list->a)
            jp_expect_op(p, JJ_COMMA, ",");
        if (jp_is_op(p, JJ_RBRACKET))
            break;
        jp_append(&tail, jp_expr(p, true));
    }
    jp_expect_op(p, JJ_RBRACKET, "]");
    return list;
}

static struct jj_node *parse_dict(struct jj_parser *p)
{
    struct jj_node *dict = jp_node(p, JJ_N_DICT), **tail = &dict->a;
    jp_next(p);
    while (!p->bad && !jp_is_op(p, JJ_RBRACE)) {
        if (dict->a)
            jp_expect_op(p, JJ_COMMA, ",");
        if (jp_is_op(p, JJ_RBRACE))
            break;
        struct jj_node *pair = jp_node(p, JJ_N_PAIR);
        pair->a = jp_expr(p, true);
        jp_expect_op(p, JJ_COLON, ":");
        pair->b = jp_expr(p, true);
        jp_append(&tail, p->bad ? NULL : pair);
    }
    jp_expect_op(p, JJ_RBRACE, "}");
    return dict;
}

static struct jj_node *parse_name(struct jj_parser *p, bool with_namespace)
{
    struct jj_node *n = jp_node(p, JJ_N_CONST);
    struct sl_str s = p->cur.text;
    jp_next(p);
    if (sl_str_eqz(s, "true") || sl_str_eqz(s, "True")) {
        n->value = jj_bool(true);
    } else if (sl_str_eqz(s, "false") || sl_str_eqz(s, "False")) {
        n->value = jj_bool(false);
    } else if (sl_str_eqz(s, "none") || sl_str_eqz(s, "None")) {
        n->value = jj_none();
    } else {
        n->type = JJ_N_NAME;
        jp_set_name(p, n, s);
        if (with_namespace && jp_skip_op(p, JJ_DOT)) {
            n->type = JJ_N_NSREF;
            n->value = jj_str(jp_expect_name(p));
        }
    }
    return n;
}

static struct jj_node *parse_primary(struct jj_parser *p, bool with_namespace)
{
    if (p->cur.type == JJ_T_NAME)
        return parse_name(p, with_namespace);
    if (p->cur.type == JJ_T_STRING)
        return parse_string(p);
    if (p->cur.type == JJ_T_INT || p->cur.type == JJ_T_FLOAT)
        return parse_number(p);
    if (!jp_is_op(p, JJ_LPAREN) && !jp_is_op(p, JJ_LBRACKET) && !jp_is_op(p, JJ_LBRACE))
        return jp_fail(p, "expected an expression");
    if (!jp_enter(p))
        return NULL;
    struct jj_node *n;
    if (jp_is_op(p, JJ_LBRACKET)) {
        n = parse_list(p);
    } else if (jp_is_op(p, JJ_LBRACE)) {
        n = parse_dict(p);
    } else {
        jp_next(p);
        n = jp_tuple(p, TUPLE_FULL, NULL, true);
        jp_expect_op(p, JJ_RPAREN, ")");
    }
    p->depth--;
    return n;
}

/* The arguments of a call, as a list of expressions and KWARGs. */
static struct jj_node *parse_args(struct jj_parser *p)
{
    struct jj_node *first = NULL, **tail = &first;
    bool named = false;
    jp_expect_op(p, JJ_LPAREN, "(");
    while (!p->bad && !jp_is_op(p, JJ_RPAREN)) {
        if (first)
            jp_expect_op(p, JJ_COMMA, ",");
        if (jp_is_op(p, JJ_RPAREN))
            break;
        if (jp_is_op(p, JJ_MUL) || jp_is_op(p, JJ_POW))
            return jp_fail(p, "spread arguments are not supported");
        if (p->cur.type == JJ_T_NAME && jp_look(p)->type == JJ_T_OP &&
            jp_look(p)->op == JJ_ASSIGN) {
            struct jj_node *kw = jp_node(p, JJ_N_KWARG);
            kw->str = p->cur.text;
            jp_next(p);
            jp_next(p);
            kw->a = jp_expr(p, true);
            named = true;
            jp_append(&tail, p->bad ? NULL : kw);
        } else if (named) {
            return jp_fail(p, "positional argument after a named one");
        } else {
            jp_append(&tail, jp_expr(p, true));
        }
    }
    jp_expect_op(p, JJ_RPAREN, ")");
    return first;
}

static struct jj_node *parse_subscript(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_INDEX);
    struct jj_node *part[3] = {NULL, NULL, NULL};
    bool slice = false;
    if (!jp_is_op(p, JJ_COLON))
        part[0] = jp_expr(p, true);
    for (int i = 1; i < 3 && jp_skip_op(p, JJ_COLON); i++) {
        slice = true;
        if (!jp_is_op(p, JJ_COLON) && !jp_is_op(p, JJ_RBRACKET))
            part[i] = jp_expr(p, true);
    }
    n->a = part[0];
    if (slice) {
        n->type = JJ_N_SLICE;
        n->b = part[1];
        n->c = part[2];
    }
    jp_expect_op(p, JJ_RBRACKET, "]");
    return n;
}

/* Adds a step (attribute, call, filter..) to what is applied to `base`. */
static struct jj_node *add_step(struct jj_parser *p, struct jj_node *base, struct jj_node *step)
{
    if (p->bad || !base)
        return base;
    struct jj_node *chain = base;
    if (base->type != JJ_N_POSTFIX) {
        chain = jp_node(p, JJ_N_POSTFIX);
        chain->a = base;
    }
    if (chain->e)
        chain->e->next = step;
    else
        chain->b = step;
    chain->e = step;
    return chain;
}

static struct jj_node *parse_call(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_CALL);
    n->a = parse_args(p);
    return n;
}

static struct jj_node *parse_postfix(struct jj_parser *p, struct jj_node *n)
{
    while (!p->bad) {
        if (jp_is_op(p, JJ_LPAREN)) {
            n = add_step(p, n, parse_call(p));
        } else if (jp_skip_op(p, JJ_LBRACKET)) {
            n = add_step(p, n, parse_subscript(p));
        } else if (jp_skip_op(p, JJ_DOT)) {
            struct jj_node *step = jp_node(p, JJ_N_ATTR);
            if (p->cur.type == JJ_T_INT) {
                step->type = JJ_N_INDEX;
                step->a = parse_number(p);
            } else {
                step->str = jp_expect_name(p);
            }
            n = add_step(p, n, step);
        } else {
            break;
        }
    }
    return n;
}

/* The names and arguments of `filter(args)|filter...`, the first name already next. */
struct jj_node *jp_filters(struct jj_parser *p, struct jj_node *n)
{
    do {
        struct jj_node *step = jp_node(p, JJ_N_FILTER);
        step->str = jp_expect_name(p);
        if (jp_is_op(p, JJ_LPAREN))
            step->a = parse_args(p);
        n = add_step(p, n, step);
    } while (!p->bad && jp_skip_op(p, JJ_PIPE));
    return n;
}

static struct jj_node *parse_test(struct jj_parser *p)
{
    struct jj_node *step = jp_node(p, JJ_N_TEST);
    step->flags = jp_skip_name(p, "not");
    step->str = jp_expect_name(p);
    enum jj_tok t = p->cur.type;
    bool operand = t == JJ_T_NAME || t == JJ_T_STRING || t == JJ_T_INT || t == JJ_T_FLOAT ||
                   jp_is_op(p, JJ_LBRACKET) || jp_is_op(p, JJ_LBRACE);
    if (jp_is_op(p, JJ_LPAREN)) {
        step->a = parse_args(p);
    } else if (operand && !jp_is_name(p, "else") && !jp_is_name(p, "or") && !jp_is_name(p, "and")) {
        if (jp_is_name(p, "is"))
            return jp_fail(p, "tests cannot be chained");
        step->a = parse_postfix(p, parse_primary(p, false));
    }
    return step;
}

static struct jj_node *parse_filter_expr(struct jj_parser *p, struct jj_node *n)
{
    while (!p->bad) {
        if (jp_skip_op(p, JJ_PIPE))
            n = jp_filters(p, n);
        else if (jp_skip_name(p, "is"))
            n = add_step(p, n, parse_test(p));
        else if (jp_is_op(p, JJ_LPAREN))
            n = add_step(p, n, parse_call(p));
        else
            break;
    }
    return n;
}

static struct jj_node *parse_unary(struct jj_parser *p, bool with_filter)
{
    struct jj_node *n;
    if (jp_is_op(p, JJ_SUB) || jp_is_op(p, JJ_ADD)) {
        if (!jp_enter(p))
            return NULL;
        n = jp_node(p, jp_is_op(p, JJ_SUB) ? JJ_N_NEG : JJ_N_POS);
        jp_next(p);
        n->a = parse_unary(p, false);
        p->depth--;
    } else {
        n = parse_primary(p, false);
    }
    n = parse_postfix(p, n);
    return with_filter ? parse_filter_expr(p, n) : n;
}

/* Binary operators, loosest first; each level is a list of (operator, operand) on one node. */
static struct jj_node *parse_level(struct jj_parser *p, int level);

static bool level_has(const struct jj_parser *p, int level)
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

static struct jj_node *parse_level(struct jj_parser *p, int level)
{
    struct jj_node *first = level == 4 ? parse_unary(p, true) : parse_level(p, level + 1);
    if (level == 4 || p->bad || !level_has(p, level))
        return first;
    struct jj_node *chain = jp_node(p, level == 1 ? JJ_N_CONCAT : JJ_N_CHAIN);
    struct jj_node **tail = &chain->b;
    chain->a = first;
    while (!p->bad && level_has(p, level)) {
        struct jj_node *step = jp_node(p, JJ_N_STEP);
        step->op = p->cur.op;
        jp_next(p);
        step->a = parse_level(p, level + 1);
        jp_append(&tail, p->bad ? NULL : step);
    }
    return chain;
}

static enum jj_op compare_op(struct jj_parser *p)
{
    if (p->cur.type == JJ_T_OP && p->cur.op >= JJ_EQ && p->cur.op <= JJ_GE)
        return p->cur.op;
    if (jp_is_name(p, "in"))
        return JJ_IN;
    if (jp_is_name(p, "not") && jp_look(p)->type == JJ_T_NAME && sl_str_eqz(jp_look(p)->text, "in"))
        return JJ_NOT_IN;
    return JJ_NO_OP;
}

static struct jj_node *parse_compare(struct jj_parser *p)
{
    struct jj_node *first = parse_level(p, 0);
    enum jj_op op = p->bad ? JJ_NO_OP : compare_op(p);
    if (op == JJ_NO_OP)
        return first;
    struct jj_node *cmp = jp_node(p, JJ_N_COMPARE), **tail = &cmp->b;
    cmp->a = first;
    for (; !p->bad && op != JJ_NO_OP; op = p->bad ? JJ_NO_OP : compare_op(p)) {
        struct jj_node *step = jp_node(p, JJ_N_STEP);
        step->op = op;
        jp_next(p);
        if (op == JJ_NOT_IN)
            jp_next(p);
        step->a = parse_level(p, 0);
        jp_append(&tail, p->bad ? NULL : step);
    }
    return cmp;
}

static struct jj_node *parse_not(struct jj_parser *p)
{
    if (!jp_is_name(p, "not"))
        return parse_compare(p);
    if (!jp_enter(p))
        return NULL;
    struct jj_node *n = jp_node(p, JJ_N_NOT);
    jp_next(p);
    n->a = parse_not(p);
    p->depth--;
    return n;
}

/* `x and y and z` or `x or y or z` as one node with its operands wrapped in STEPs. */
static struct jj_node *parse_logic(struct jj_parser *p, bool is_or)
{
    struct jj_node *first = is_or ? parse_logic(p, false) : parse_not(p);
    const char *word = is_or ? "or" : "and";
    if (p->bad || !jp_is_name(p, word))
        return first;
    struct jj_node *n = jp_node(p, is_or ? JJ_N_OR : JJ_N_AND), **tail = &n->b;
    n->a = first;
    while (jp_skip_name(p, word)) {
        struct jj_node *step = jp_node(p, JJ_N_STEP);
        step->a = is_or ? parse_logic(p, false) : parse_not(p);
        jp_append(&tail, p->bad ? NULL : step);
    }
    return n;
}

struct jj_node *jp_expr(struct jj_parser *p, bool with_cond)
{
    if (!jp_enter(p))
        return NULL;
    unsigned depth = p->depth;
    struct jj_node *n = parse_logic(p, true);
    while (with_cond && !p->bad && jp_skip_name(p, "if")) {
        struct jj_node *cond = jp_node(p, JJ_N_COND);
        cond->b = n;
        cond->a = parse_logic(p, true);
        if (jp_skip_name(p, "else"))
            cond->c = jp_expr(p, true);
        n = cond;
        if (!jp_enter(p)) /* `a if b if c` nests to the left */
            return NULL;
    }
    p->depth = depth - 1;
    return n;
}
