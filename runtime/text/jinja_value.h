/* Values of a template and what can be done with them. They live in the arena of one rendering.
 * Functions that take the evaluator may fail: they then record why and give an undefined value. */
#ifndef SLUICE_TEXT_JINJA_VALUE_H
#define SLUICE_TEXT_JINJA_VALUE_H

#include <sluice/base/json.h>
#include <sluice/base/mem.h>

struct jj_ev;
struct jj_args;

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

/* jinja_access.c: attributes, subscripts, slices, methods. */
struct jj_value jj_getattr(struct jj_ev *ev, struct jj_value v, struct sl_str name);
struct jj_value jj_getitem(struct jj_ev *ev, struct jj_value v, struct jj_value key);
struct jj_value jj_slice(struct jj_ev *ev, struct jj_value v, const struct jj_value part[3]);
struct jj_value jj_call_method(struct jj_ev *ev, const struct jj_method *m,
                               const struct jj_args *args);

#endif
