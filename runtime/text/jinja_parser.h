/* The parser's state and the parts that expressions (jinja_expr.c) and statements (jinja_parse.c)
 * share.
 *
 * `bad` is sticky: the first error is kept, every later token reads as the end, and a tree with an
 * error is never evaluated, so nodes may then be NULL. */
#ifndef SLUICE_TEXT_JINJA_PARSER_H
#define SLUICE_TEXT_JINJA_PARSER_H

#include "jinja.h"

struct jj_parser {
    struct sl_template *t;
    struct jj_lex lex;
    struct jj_token cur, ahead;
    bool has_ahead, bad;
    unsigned depth, n_loops;
    unsigned uses; /* JJ_USES_* of the macro being parsed */
    char why[160];
    uint32_t why_line;
};

/* Keeps the first error; gives NULL. */
struct jj_node *jp_fail(struct jj_parser *p, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void jp_next(struct jj_parser *p);
bool jp_is_op(const struct jj_parser *p, enum jj_op op);
bool jp_is_name(const struct jj_parser *p, const char *z);
bool jp_skip_op(struct jj_parser *p, enum jj_op op); /* true and passed when it is next */
bool jp_skip_name(struct jj_parser *p, const char *z);
void jp_expect_op(struct jj_parser *p, enum jj_op op, const char *what);
struct sl_str jp_expect_name(struct jj_parser *p);
struct jj_node *jp_node(struct jj_parser *p, enum jj_type type);
/* One level deeper; the caller takes it back with p->depth--. */
bool jp_enter(struct jj_parser *p);
void jp_set_name(struct jj_parser *p, struct jj_node *n, struct sl_str s);
void jp_append(struct jj_node ***tail, struct jj_node *n);

enum jp_tuple_how { TUPLE_FULL, TUPLE_NO_COND, TUPLE_TARGET, TUPLE_TARGET_NS };
/* One expression, or a tuple where commas follow; a name `stop` ends it. */
struct jj_node *jp_tuple(struct jj_parser *p, enum jp_tuple_how how, const char *stop,
                         bool in_parens);
struct jj_node *jp_expr(struct jj_parser *p, bool with_cond);
/* `filter(args)|filter...` applied to n, the first name already next. */
struct jj_node *jp_filters(struct jj_parser *p, struct jj_node *n);

#endif
