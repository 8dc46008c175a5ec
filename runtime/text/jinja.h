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

/* ---- values ---- */
enum jj_kind {
    JJ_UNDEF,
    JJ_NONE,
    JJ_BOOL,
    JJ_INT,
    JJ_FLOAT,
    JJ_STR,
    JJ_LIST,
    JJ_TUPLE,
    JJ_VIEW,
    JJ_GEN,
    JJ_RANGE,
    JJ_DICT,
    JJ_SPACE,
    JJ_MACRO,
    JJ_LOOP,
    JJ_FUNC,
    JJ_METHOD,
    JJ_ABSENT
};
struct jj_value {
    enum jj_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        struct sl_str s;
        struct jj_list *list; /* LIST, TUPLE, VIEW (of a dict), GEN (read once) */
        struct jj_range *range;
        struct jj_dict *dict; /* DICT, SPACE (a namespace) */
        struct jj_macro *macro;
        struct jj_loop *loop;
        struct jj_method *method;
        unsigned func;
    } u;
};
struct jj_list {
    struct jj_value *at;
    size_t n, max;
    size_t n_read;    /* of a GEN */
    const char *what; /* of a VIEW: "dict_keys" */
};
struct jj_range {
    int64_t start, step, n, stop;
};
struct jj_pair {
    struct jj_value key, value;
};
struct jj_dict { /* in order of insertion; small, so searched linearly and charged for it */
    struct jj_pair *at;
    size_t n, max;
};
struct jj_method {
    struct jj_value self;
    unsigned id;
};

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

/* jinja_value.c */
struct jj_value jj_undef(void);
struct jj_value jj_none(void);
struct jj_value jj_bool(bool b);
struct jj_value jj_int(int64_t i);
struct jj_value jj_float(double f);
struct jj_value jj_str(struct sl_str s);
struct jj_value jj_strz(const char *z);
struct jj_value jj_copy(struct jj_ev *ev, const char *data, size_t len); /* STR in the arena */
struct jj_value jj_join(struct jj_ev *ev, struct sl_str a, struct sl_str b);
struct jj_value jj_take(struct jj_ev *ev, struct sl_buf *b); /* copies to a STR and frees b */
struct jj_value jj_list_new(struct jj_ev *ev, enum jj_kind kind, size_t room);
void jj_push(struct jj_ev *ev, struct jj_list *list, struct jj_value v);
struct jj_value jj_dict_new(struct jj_ev *ev, enum jj_kind kind);
const struct jj_value *jj_dict_get(struct jj_ev *ev, const struct jj_dict *d, struct jj_value key);
const struct jj_value *jj_dict_getz(struct jj_ev *ev, const struct jj_dict *d, struct sl_str key);
void jj_dict_set(struct jj_ev *ev, struct jj_dict *d, struct jj_value key, struct jj_value value);
struct jj_value jj_from_json(struct jj_ev *ev, const struct sl_json *v);
bool jj_is_number(struct jj_value v); /* bool, int, float */
int64_t jj_as_int(struct jj_value v); /* of bool or int */
double jj_as_float(struct jj_value v);
bool jj_truth(struct jj_value v);
bool jj_equal(struct jj_ev *ev, struct jj_value a, struct jj_value b);
/* -1, 0, 1; fails for kinds without order. */
int jj_order(struct jj_ev *ev, struct jj_value a, struct jj_value b);
bool jj_contains(struct jj_ev *ev, struct jj_value where, struct jj_value what);
/* The number of elements, or -1 where len() fails. */
int64_t jj_len(struct jj_ev *ev, struct jj_value v);
const char *jj_kind_name(struct jj_value v);
struct jj_iter {
    struct jj_value src;
    size_t pos;
};
bool jj_iter_init(struct jj_ev *ev, struct jj_value v, struct jj_iter *it); /* fails: no iterable */
bool jj_iter_next(struct jj_ev *ev, struct jj_iter *it, struct jj_value *out);
struct jj_value jj_to_list(struct jj_ev *ev, struct jj_value v, enum jj_kind kind);

/* jinja_print.c: str(), repr() and JSON, as Python writes them. */
struct sl_str jj_text(struct jj_ev *ev, struct jj_value v);
struct jj_value jj_tojson(struct jj_ev *ev, struct jj_value v, const struct jj_value *arg);

/* jinja_str.c: strings are UTF-8, their units code points. */
size_t jj_utf8_len(struct sl_str s);
uint32_t jj_utf8_next(struct sl_str s, size_t *pos);
size_t jj_utf8_at(struct sl_str s, size_t index); /* byte offset of code point `index` */
void jj_utf8_put(struct sl_buf *b, uint32_t c);
bool jj_is_space(uint32_t c);
/* Adds the text of a string literal, read as Python's unicode-escape does. */
bool jj_unescape(struct sl_str quoted, struct sl_buf *out);
struct sl_str jj_strip(struct sl_str s, const struct sl_str *chars, bool left, bool right);
struct jj_value jj_case(struct jj_ev *ev, struct sl_str s, char how); /* u l c t(itle) j(inja) */
struct jj_value jj_replace(struct jj_ev *ev, struct sl_str s, struct sl_str old, struct sl_str by,
                           int64_t count);
bool jj_find(struct sl_str s, struct sl_str what, size_t from, size_t *at);
/* Lines as str.splitlines cuts them; *pos starts 0. */
bool jj_next_line(struct sl_str s, size_t *pos, struct sl_str *line);
unsigned jj_str_method(struct sl_str name); /* 0: none */
struct jj_value jj_call_str_method(struct jj_ev *ev, struct sl_str self, unsigned id,
                                   const struct jj_args *args);

/* jinja_access.c: attributes, subscripts, slices, methods, arithmetic. */
struct jj_value jj_getattr(struct jj_ev *ev, struct jj_value v, struct sl_str name);
struct jj_value jj_getitem(struct jj_ev *ev, struct jj_value v, struct jj_value key);
struct jj_value jj_slice(struct jj_ev *ev, struct jj_value v, const struct jj_value part[3]);
struct jj_value jj_call_method(struct jj_ev *ev, const struct jj_method *m,
                               const struct jj_args *args);
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
