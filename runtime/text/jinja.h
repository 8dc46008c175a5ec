/* Jinja subset, private parts: tokens, tree, values and the evaluator's state.
 *
 * The semantics are those of Jinja 3.1 as the "Template Designer Documentation" states them, with
 * trim_blocks and lstrip_blocks on. A source is lexed on demand, parsed once into an immutable tree
 * in the template's arena, and evaluated with all values in one capped arena per rendering.
 * Parsing nests at most SL_LIMIT_template_depth levels, chains of operators are lists and not
 * nests, evaluation nests at most JJ_EVAL_DEPTH levels; so the C stack is bounded. */
#ifndef SLUICE_TEXT_JINJA_H
#define SLUICE_TEXT_JINJA_H

#include <sluice/base/containers.h>
#include <sluice/base/err.h>
#include <sluice/base/json.h>
#include <sluice/base/limits.h>
#include <sluice/base/mem.h>

#include "jinja_value.h"

#define JJ_EVAL_DEPTH   512                /* nested evaluations over all open macro calls */
#define JJ_EVAL_BYTES   ((size_t)16 << 20) /* values of one rendering */
#define JJ_TREE_BYTES   ((size_t)96 << 20) /* tree of one template */
#define JJ_RANGE_MAX    100000             /* as Jinja's sandbox has it */
#define JJ_NAME_BUCKETS 1024
#define JJ_ARGS_MAX     8

/* ---- tokens ---- */
enum jj_tok {
    JJ_T_EOF,
    JJ_T_DATA,
    JJ_T_VAR_BEGIN,
    JJ_T_VAR_END,
    JJ_T_BLOCK_BEGIN,
    JJ_T_BLOCK_END,
    JJ_T_NAME,
    JJ_T_STRING,
    JJ_T_INT,
    JJ_T_FLOAT,
    JJ_T_OP
};
enum jj_op {
    JJ_NO_OP,
    JJ_ADD,
    JJ_SUB,
    JJ_MUL,
    JJ_DIV,
    JJ_FLOORDIV,
    JJ_MOD,
    JJ_POW,
    JJ_TILDE,
    JJ_EQ,
    JJ_NE,
    JJ_LT,
    JJ_LE,
    JJ_GT,
    JJ_GE,
    JJ_IN,
    JJ_NOT_IN,
    JJ_ASSIGN,
    JJ_DOT,
    JJ_COLON,
    JJ_PIPE,
    JJ_COMMA,
    JJ_SEMICOLON,
    JJ_LPAREN,
    JJ_RPAREN,
    JJ_LBRACKET,
    JJ_RBRACKET,
    JJ_LBRACE,
    JJ_RBRACE
};
struct jj_token {
    enum jj_tok type;
    enum jj_op op;
    uint32_t line;
    struct sl_str text; /* of a string: with its quotes */
};
struct jj_lex {
    const char *start, *p, *end;
    uint32_t line;
    char mode; /* 'd' data, 'v' in {{ }}, 'b' in {% %} */
    bool line_starting;
    struct jj_token held; /* the begin of a tag, after its data was handed out */
    bool has_held;
    size_t n_open;
    char open[SL_LIMIT_template_depth]; /* brackets the tag has open */
    const char *error;                  /* sticky */
};
void jj_lex_init(struct jj_lex *l, const char *source, size_t len);
struct jj_token jj_lex_next(struct jj_lex *l);

/* ---- tree ---- */
enum jj_type {
    JJ_N_TEXT,
    JJ_N_PRINT,
    JJ_N_IF,
    JJ_N_BRANCH,
    JJ_N_FOR,
    JJ_N_SET,
    JJ_N_SET_BLOCK,
    JJ_N_MACRO,
    JJ_N_CALL_BLOCK,
    JJ_N_FILTER_BLOCK,
    JJ_N_WITH,
    JJ_N_SCOPE,
    JJ_N_BREAK,
    JJ_N_CONTINUE,
    JJ_N_CONST,
    JJ_N_NAME,
    JJ_N_NSREF,
    JJ_N_LIST,
    JJ_N_TUPLE,
    JJ_N_DICT,
    JJ_N_PAIR,
    JJ_N_CHAIN,
    JJ_N_COMPARE,
    JJ_N_STEP,
    JJ_N_AND,
    JJ_N_OR,
    JJ_N_NOT,
    JJ_N_NEG,
    JJ_N_POS,
    JJ_N_CONCAT,
    JJ_N_COND,
    JJ_N_POSTFIX,
    JJ_N_ATTR,
    JJ_N_INDEX,
    JJ_N_SLICE,
    JJ_N_CALL,
    JJ_N_FILTER,
    JJ_N_TEST,
    JJ_N_KWARG
};
#define JJ_USES_VARARGS 1
#define JJ_USES_KWARGS  2
#define JJ_USES_CALLER  4
struct jj_node {
    enum jj_type type;
    enum jj_op op;
    uint32_t line;
    uint32_t name;         /* id of str, for names */
    unsigned flags;        /* MACRO: what its body uses; TEST: 1 = negated */
    struct sl_str str;     /* text, name, attribute, filter, test */
    struct jj_value value; /* CONST */
    struct jj_node *a, *b, *c, *d, *e;
    struct jj_node *next; /* in a list */
};
struct jj_name {
    struct sl_hash_node node;
    struct sl_str str;
    uint32_t id;
};
struct sl_template {
    struct sl_arena mem;
    struct sl_hash names;
    struct sl_hash_node *buckets[JJ_NAME_BUCKETS];
    uint32_t n_names;
    uint32_t id_loop, id_caller, id_varargs, id_kwargs;
    struct jj_node *body;
};
/* The id of a name, made if new; UINT32_MAX when memory ends. */
uint32_t jj_name_intern(struct sl_template *t, struct sl_str s);
/* UINT32_MAX when the template never mentions the name. */
uint32_t jj_name_find(const struct sl_template *t, struct sl_str s);
enum sl_status jj_parse(struct sl_template *t, const char *source, size_t len, struct sl_err *err);

/* ---- evaluation ---- */
struct jj_var {
    uint32_t name;
    struct jj_value value;
};
struct jj_scope { /* NULL parent: the globals */
    struct jj_scope *parent;
    struct jj_var *vars;
    size_t n, max;
};
struct jj_macro {
    const struct jj_node *node;
    struct jj_scope *scope; /* where it was defined */
};
struct jj_loop {
    size_t i, n;
    struct jj_value previous, next;
    struct jj_value changed; /* last arguments of loop.changed */
};
struct jj_ev {
    const struct sl_template *t;
    struct sl_arena mem;
    struct sl_err *err;
    bool failed;
    uint64_t n_steps;
    size_t n_out; /* bytes in all open buffers */
    unsigned depth, n_macros;
    uint32_t line; /* of the node being evaluated */
    int signal;    /* 0, 'b' break, 'c' continue */
    struct sl_buf *out;
    struct jj_scope *scope;
    struct jj_value *globals; /* by name id */
    char *tip;                /* the newest joined string may grow in place */
    size_t tip_len, tip_max;
    int64_t now_s;
    bool has_now;
};
struct jj_kwarg {
    struct sl_str name;
    struct jj_value value;
};
struct jj_args {
    size_t n, n_kw;
    const struct jj_value *at;
    const struct jj_kwarg *kw;
};

/* Records the first failure with the line; the rest of the evaluation then unwinds. */
void jj_fail(struct jj_ev *ev, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Counts work; `bytes` is what is about to be read or written. False when a budget ended. */
bool jj_charge(struct jj_ev *ev, size_t bytes);
void *jj_alloc(struct jj_ev *ev, size_t n, size_t size); /* zeroed; NULL after jj_fail */
void jj_emit(struct jj_ev *ev, struct sl_str s);
enum sl_status jj_run(const struct sl_template *t, const struct sl_json *vars, struct sl_buf *out,
                      struct sl_err *err);
struct jj_value jj_call(struct jj_ev *ev, struct jj_value f, const struct jj_args *args);
struct jj_value jj_call_func(struct jj_ev *ev, unsigned func, const struct jj_args *args);
extern const char *const jj_funcs[]; /* global functions, NULL-ended; a JJ_FUNC is an index */
/* Spreads arguments over the names of `spec` ("width first blank"); what is not given is
 * JJ_ABSENT. False (and failed) for one too many or an unknown name. */
bool jj_bind(struct jj_ev *ev, const char *what, const char *spec, const struct jj_args *args,
             struct jj_value out[JJ_ARGS_MAX]);

/* Arithmetic as Python does it (jinja_access.c). */
struct jj_value jj_arith(struct jj_ev *ev, enum jj_op op, struct jj_value a, struct jj_value b);

/* jinja_filters.c, jinja_lists.c, jinja_tests.c */
struct jj_value jj_filter(struct jj_ev *ev, struct sl_str name, struct jj_value in,
                          const struct jj_args *args);
typedef struct jj_value jj_filter_fn(struct jj_ev *ev, struct jj_value in,
                                     const struct jj_value *arg, const struct jj_args *raw);
struct jj_filter_row {
    const char *name;
    jj_filter_fn *fn;
    const char *spec; /* NULL: takes the raw arguments */
};
extern const struct jj_filter_row jj_list_filters[]; /* ends with a NULL name */
bool jj_test(struct jj_ev *ev, struct sl_str name, struct jj_value v, const struct jj_args *args);

#endif
