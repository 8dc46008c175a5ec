/* Parts of the option reader shared by its files. */
#ifndef SLUICE_BASE_OPTIONS_PRIV_H
#define SLUICE_BASE_OPTIONS_PRIV_H

#include <sluice/base/options.h>

/* Checks `text` and stores it into the row's field of `out`. `where` names the source, such as
 * "--port" or "SLUICE_PORT". `ranged` is false for defaults, which may lie outside the range. */
struct option_source {
    enum sl_status status; /* of a failure */
    const char *where;
    bool ranged;
};
enum sl_status options_store(const struct sl_option *row, const char *text,
                             const struct option_source *source, struct sl_arena *arena, void *out,
                             struct sl_err *err);

/* The row of that name, or NULL. */
const struct sl_option *options_find(const struct sl_option *table, size_t n_table,
                                     struct sl_str name);

/* " (did you mean '--port'?)" or "", into `out`. `dashes` goes before the name. */
void options_hint(const struct sl_option *table, size_t n_table, const char *word,
                  const char *dashes, char *out, size_t out_size);

/* Reads a YAML file of scalars into `out`, one key a row. SL_CONFIG with the line on failure. */
enum sl_status options_read_file(const struct sl_option *table, size_t n_table, const char *path,
                                 struct sl_arena *arena, void *out, struct sl_err *err);

/* The text of SLUICE_NAME for a row into `name`. */
#define OPTIONS_VARIABLE_MAX 96
void options_variable(const struct sl_option *row, char name[OPTIONS_VARIABLE_MAX]);

#endif
