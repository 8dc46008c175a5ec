/* Jinja statements: the tags of a template and their bodies. */
#include "jinja_parser.h"

#include <string.h>

static struct jj_node *parse_body(struct jj_parser *p, const char *ends);

static void expect_block_end(struct jj_parser *p)
{
    if (p->cur.type != JJ_T_BLOCK_END)
        jp_fail(p, "expected the end of the tag");
    else
        jp_next(p);
}

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

static struct jj_node *assign_target(struct jj_parser *p, bool with_namespace, const char *stop)
{
    enum jp_tuple_how how = with_namespace ? TUPLE_TARGET_NS : TUPLE_TARGET;
    struct jj_node *n = jp_tuple(p, how, stop, false);
    if (p->bad || !is_assignable(n))
        return jp_fail(p, "cannot assign to this");
    return n;
}

/* What one block tag with its body is, from the name on to its end tag inclusive. */
static struct jj_node *parse_for(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_FOR);
    n->a = assign_target(p, false, "in");
    if (!jp_skip_name(p, "in"))
        return jp_fail(p, "expected 'in'");
    n->b = jp_tuple(p, TUPLE_NO_COND, "recursive", false);
    if (jp_skip_name(p, "if"))
        n->c = jp_expr(p, true);
    if (jp_is_name(p, "recursive"))
        return jp_fail(p, "recursive loops are not supported");
    expect_block_end(p);
    p->n_loops++;
    n->d = parse_body(p, "endfor else");
    p->n_loops--;
    if (jp_skip_name(p, "else")) {
        expect_block_end(p);
        n->e = parse_body(p, "endfor");
    }
    jp_next(p);
    return n;
}

static struct jj_node *parse_if(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_IF), **tail = &n->a;
    bool more = true;
    while (more && !p->bad) {
        struct jj_node *branch = jp_node(p, JJ_N_BRANCH);
        branch->a = jp_tuple(p, TUPLE_NO_COND, NULL, false);
        expect_block_end(p);
        branch->b = parse_body(p, "elif else endif");
        jp_append(&tail, p->bad ? NULL : branch);
        more = jp_skip_name(p, "elif");
    }
    if (jp_skip_name(p, "else")) {
        expect_block_end(p);
        n->b = parse_body(p, "endif");
    }
    jp_next(p);
    return n;
}

static struct jj_node *parse_set(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_SET);
    n->a = assign_target(p, true, NULL);
    if (jp_skip_op(p, JJ_ASSIGN)) {
        n->b = jp_tuple(p, TUPLE_FULL, NULL, false);
        return n;
    }
    n->type = JJ_N_SET_BLOCK;
    if (jp_skip_op(p, JJ_PIPE))
        n->b = jp_filters(p, jp_node(p, JJ_N_CONST));
    expect_block_end(p);
    n->c = parse_body(p, "endset");
    jp_next(p);
    return n;
}

/* `(a, b=1)` of a macro or call tag. */
static struct jj_node *parse_params(struct jj_parser *p)
{
    struct jj_node *first = NULL, **tail = &first;
    bool defaults = false;
    jp_expect_op(p, JJ_LPAREN, "(");
    while (!p->bad && !jp_is_op(p, JJ_RPAREN)) {
        if (first)
            jp_expect_op(p, JJ_COMMA, ",");
        struct jj_node *param = jp_node(p, JJ_N_NAME);
        jp_set_name(p, param, jp_expect_name(p));
        if (jp_skip_op(p, JJ_ASSIGN)) {
            param->a = jp_expr(p, true);
            defaults = true;
        } else if (defaults) {
            return jp_fail(p, "parameter without a default after one with a default");
        }
        jp_append(&tail, p->bad ? NULL : param);
    }
    jp_expect_op(p, JJ_RPAREN, ")");
    return first;
}

static void parse_macro_body(struct jj_parser *p, struct jj_node *n, const char *end)
{
    unsigned outer_uses = p->uses, outer_loops = p->n_loops;
    p->uses = 0;
    p->n_loops = 0;
    expect_block_end(p);
    n->b = parse_body(p, end);
    n->flags = p->uses;
    p->uses = outer_uses;
    p->n_loops = outer_loops;
    jp_next(p);
}

static struct jj_node *parse_macro(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_MACRO);
    jp_set_name(p, n, jp_expect_name(p));
    n->a = parse_params(p);
    parse_macro_body(p, n, "endmacro");
    return n;
}

static struct jj_node *parse_call_block(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_CALL_BLOCK);
    struct jj_node *macro = jp_node(p, JJ_N_MACRO);
    macro->str = SL_STR("caller");
    if (jp_is_op(p, JJ_LPAREN))
        macro->a = parse_params(p);
    n->a = jp_expr(p, true);
    n->b = macro;
    if (!p->bad && (n->a->type != JJ_N_POSTFIX || n->a->e->type != JJ_N_CALL))
        return jp_fail(p, "expected a call");
    parse_macro_body(p, macro, "endcall");
    return n;
}

static struct jj_node *parse_filter_block(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_FILTER_BLOCK);
    n->b = jp_filters(p, jp_node(p, JJ_N_CONST));
    expect_block_end(p);
    n->c = parse_body(p, "endfilter");
    jp_next(p);
    return n;
}

static struct jj_node *parse_with(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_WITH), **tail = &n->a;
    while (!p->bad && p->cur.type != JJ_T_BLOCK_END) {
        if (n->a)
            jp_expect_op(p, JJ_COMMA, ",");
        struct jj_node *set = jp_node(p, JJ_N_SET);
        set->a = jp_node(p, JJ_N_NAME);
        jp_set_name(p, set->a, jp_expect_name(p));
        jp_expect_op(p, JJ_ASSIGN, "=");
        set->b = jp_expr(p, true);
        jp_append(&tail, p->bad ? NULL : set);
    }
    expect_block_end(p);
    n->b = parse_body(p, "endwith");
    jp_next(p);
    return n;
}

static struct jj_node *parse_generation(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_SCOPE);
    expect_block_end(p);
    n->a = parse_body(p, "endgeneration");
    jp_next(p);
    return n;
}

static struct jj_node *parse_jump(struct jj_parser *p, enum jj_type type)
{
    if (p->n_loops == 0)
        return jp_fail(p, "break or continue outside a loop");
    return jp_node(p, type);
}

static struct jj_node *parse_break(struct jj_parser *p)
{
    return parse_jump(p, JJ_N_BREAK);
}

static struct jj_node *parse_continue(struct jj_parser *p)
{
    return parse_jump(p, JJ_N_CONTINUE);
}

static const struct {
    const char *name;
    struct jj_node *(*parse)(struct jj_parser *p);
} statements[] = {
    {"for", parse_for},         {"if", parse_if},
    {"set", parse_set},         {"macro", parse_macro},
    {"call", parse_call_block}, {"filter", parse_filter_block},
    {"with", parse_with},       {"generation", parse_generation},
    {"break", parse_break},     {"continue", parse_continue},
};

static struct jj_node *parse_statement(struct jj_parser *p)
{
    struct sl_str name = jp_expect_name(p);
    for (size_t i = 0; !p->bad && i < sizeof statements / sizeof *statements; i++)
        if (sl_str_eqz(name, statements[i].name)) {
            struct jj_node *n = statements[i].parse(p);
            expect_block_end(p);
            return p->bad ? NULL : n;
        }
    return jp_fail(p, "unknown tag '%.*s'", name.len < 40 ? (int)name.len : 40, name.data);
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

static struct jj_node *parse_print(struct jj_parser *p)
{
    struct jj_node *n = jp_node(p, JJ_N_PRINT);
    jp_next(p);
    n->a = jp_tuple(p, TUPLE_FULL, NULL, false);
    if (p->cur.type != JJ_T_VAR_END)
        return jp_fail(p, "expected the end of the expression");
    jp_next(p);
    return n;
}

/* Statements up to a block tag named in `ends` (its name is then the current token), or, where
 * ends is "", up to the end of the source. */
static struct jj_node *parse_body(struct jj_parser *p, const char *ends)
{
    struct jj_node *first = NULL, **tail = &first;
    if (!jp_enter(p))
        return NULL;
    while (!p->bad && p->cur.type != JJ_T_EOF) {
        if (p->cur.type == JJ_T_DATA) {
            struct jj_node *n = jp_node(p, JJ_N_TEXT);
            n->str = p->cur.text;
            jp_next(p);
            jp_append(&tail, p->bad ? NULL : n);
        } else if (p->cur.type == JJ_T_VAR_BEGIN) {
            jp_append(&tail, parse_print(p));
        } else {
            jp_next(p);
            if (p->cur.type == JJ_T_NAME && is_one_of(p->cur.text, ends))
                break;
            jp_append(&tail, parse_statement(p));
        }
    }
    if (!p->bad && p->cur.type == JJ_T_EOF && *ends)
        jp_fail(p, "the source ends inside a block that '%s' ends", ends);
    p->depth--;
    return first;
}

enum sl_status jj_parse(struct sl_template *t, const char *source, size_t len, struct sl_err *err)
{
    struct jj_parser p = {.t = t};
    jj_lex_init(&p.lex, source, len);
    jp_next(&p);
    t->body = parse_body(&p, "");
    if (p.bad)
        return sl_fail(err, SL_MODEL, "chat template line %u: %s", (unsigned)p.why_line, p.why);
    return SL_OK;
}
