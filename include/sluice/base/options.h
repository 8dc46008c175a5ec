/* The option table: one row per option gives the flag, the environment variable, the YAML key,
 * help, the manual page and shell completion. Precedence: command line, environment, file, default.
 * An unknown flag or key is an error with a suggestion (smallest edit distance).
 *
 * Rows point into a caller-owned struct by offset, so a verb's options are a plain struct. */
#ifndef SLUICE_BASE_OPTIONS_H
#define SLUICE_BASE_OPTIONS_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdint.h>

enum sl_option_kind {
    SL_OPT_FLAG,   /* bool; --x, --no-x, --x=true|false */
    SL_OPT_INT,    /* int64_t within [min, max] */
    SL_OPT_BYTES,  /* int64_t within [min, max]; suffixes K M G T (1024) */
    SL_OPT_REAL,   /* double within [min, max] */
    SL_OPT_STRING, /* const char *, NULL when unset */
    SL_OPT_CHOICE  /* const char *, one of `choices` separated by '|' */
};

struct sl_option {
    const char *name;  /* "max-num-seqs": flag --max-num-seqs, SLUICE_MAX_NUM_SEQS, YAML max-num-seqs */
    enum sl_option_kind kind;
    size_t offset;     /* of the field in the verb's struct */
    const char *def;   /* default as text, NULL: unset (0, NULL) */
    double min, max;   /* INT, BYTES, REAL; both 0: unbounded. A default may lie outside */
    const char *choices;
    const char *meta;  /* "N", "FILE": for help */
    const char *help;  /* one line; "" hides the option from help, manual and completion */
};

/* Reads argv[1..] into `out`: first defaults, then the file named by --config or SLUICE_CONFIG (if
 * the table has a "config" row), then the environment, then the command line. The last of repeated
 * flags counts; an empty variable and a null in the file mean "not given"; "--" ends the options; a
 * lone "-" is an operand; a value that starts with "--" is written --x=VALUE. SLUICE_ variables of
 * no row are left alone, for they may belong to another verb. Operands are left in
 * operands[0..*n_operands). Strings are copied into the arena. SL_USAGE for the command line and
 * the environment, SL_CONFIG for the file (message with line). `env` is environ-shaped. */
enum sl_status sl_options_read(const struct sl_option *table, size_t n_table, int argc, char **argv,
                               char *const *env, struct sl_arena *arena, void *out,
                               const char **operands, size_t operands_max, size_t *n_operands,
                               struct sl_err *err);

void sl_options_help(const struct sl_option *table, size_t n_table, struct sl_buf *out);

/* The manual page (roff, man macros) of a verb, and bash completion for all of them. */
struct sl_verb_doc {
    const char *verb;     /* "serve" */
    const char *operands; /* "[MODEL]", or "" */
    const char *summary;  /* one line, without a full stop */
    const char *text;     /* paragraphs parted by empty lines, or NULL */
    const struct sl_option *table;
    size_t n_table;
};
void sl_options_man(const struct sl_verb_doc *doc, struct sl_buf *out);
void sl_options_complete(const struct sl_verb_doc *docs, size_t n_docs, struct sl_buf *out);

/* Nearest of `names` (NULL-ended) by edit distance, or NULL when nothing is near. */
const char *sl_suggest(const char *word, const char *const *names);

#endif
