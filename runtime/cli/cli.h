/* The command line: one file per verb. Every verb is `int sl_cli_VERB(argc, argv, env)`, argv[0]
 * being the verb, and returns the program's exit code. */
#ifndef SLUICE_CLI_H
#define SLUICE_CLI_H

#include <sluice/base/err.h>
#include <sluice/base/log.h>
#include <sluice/base/mem.h>
#include <sluice/base/options.h>
#include <stdbool.h>

int sl_cli_serve(int argc, char **argv, char *const *env);
int sl_cli_router(int argc, char **argv, char *const *env);
int sl_cli_worker(int argc, char **argv, char *const *env);
int sl_cli_chat(int argc, char **argv, char *const *env);
int sl_cli_complete(int argc, char **argv, char *const *env);
int sl_cli_bench(int argc, char **argv, char *const *env);
int sl_cli_audit(int argc, char **argv, char *const *env);
int sl_cli_inspect(int argc, char **argv, char *const *env);
int sl_cli_tokenize(int argc, char **argv, char *const *env);
int sl_cli_doctor(int argc, char **argv, char *const *env);
int sl_cli_plan(int argc, char **argv, char *const *env);
int sl_cli_health(int argc, char **argv, char *const *env);
int sl_cli_keygen(int argc, char **argv, char *const *env);
int sl_cli_ctl(int argc, char **argv, char *const *env);
int sl_cli_requantize(int argc, char **argv, char *const *env);
int sl_cli_pull(int argc, char **argv, char *const *env);
int sl_cli_requantize(int argc, char **argv, char *const *env); /* `bench requantize IN OUT` */
int sl_cli_bench_offline(int argc, char **argv, char *const *env);
int sl_cli_bench_ops(int argc, char **argv, char *const *env);
int sl_cli_bench_comm(int argc, char **argv, char *const *env);
int sl_cli_bench_script(int argc, char **argv, char *const *env);

/* What the manual page and the completion are made from; each stands in its verb's file. */
extern const struct sl_verb_doc sl_doc_serve, sl_doc_router, sl_doc_worker, sl_doc_complete,
    sl_doc_chat, sl_doc_plan, sl_doc_inspect, sl_doc_tokenize, sl_doc_doctor, sl_doc_health,
    sl_doc_ctl, sl_doc_audit, sl_doc_keygen;

/* A row of a verb's table: its field in struct `type`. */
#define CLI_OPTION_ROW(type, name_, kind_, field_, def_, min_, max_, choices_, meta_, help_)       \
    {.name = name_,                                                                                \
     .kind = kind_,                                                                                \
     .offset = offsetof(type, field_),                                                             \
     .def = def_,                                                                                  \
     .min = min_,                                                                                  \
     .max = max_,                                                                                  \
     .choices = choices_,                                                                          \
     .meta = meta_,                                                                                \
     .help = help_},

/* Draws how far loading is, on a terminal's one line. */
void sl_cli_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/* --log-format: NULL is the default, text on a terminal. */
enum sl_log_format sl_cli_log_format(const char *text);

/* Prints "sluice: MESSAGE" to stderr; returns the status's exit code. */
int sl_cli_fail(const struct sl_err *err);

/* Reads a verb's options as sl_options_read does. With --help prints help and sets *done; returns
 * the exit code to leave with when *done. */
int sl_cli_options(const char *verb, const char *operands_text, const struct sl_option *table,
                   size_t n_table, int argc, char **argv, char *const *env, struct sl_arena *arena,
                   void *out, const char **operands, size_t operands_max, size_t *n_operands,
                   bool *done);

/* Value of an environment variable, or NULL. */
const char *sl_cli_env(char *const *env, const char *name);

/* The program's own absolute path, so that a child finds it from wherever it runs. `exe` [PATH_MAX]
 */
enum sl_status sl_cli_self_path(char *exe, struct sl_err *err);
/* Where folders for sockets are made: $XDG_RUNTIME_DIR or /tmp. */
const char *sl_cli_run_dir(char *const *env);

/* model_store.c: the model file for an operand: a path as given, or for NULL the default model,
 * fetched once into the user's cache. `path` is NUL-terminated. */
enum sl_status sl_store_find(const char *operand, char *const *env, struct sl_buf *path,
                             struct sl_err *err);
/* SHA-256 of a model file as hex, remembered in the cache by (device, inode, size, mtime) so that
 * it is computed once. */
enum sl_status sl_store_sha256(const char *path, char *const *env, char hex[65],
                               struct sl_err *err);

#endif
