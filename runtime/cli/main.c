/* The program: finds the verb and runs it. */
#include "cli.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

struct verb {
    const char *name;
    int (*run)(int argc, char **argv, char *const *env);
    const char *help;
    const struct sl_verb_doc *doc; /* of its options */
};

static int help(int argc, char **argv, char *const *env);

static int version(int argc, char **argv, char *const *env)
{
    (void)argc, (void)argv, (void)env;
    puts("sluice " SLUICE_VERSION);
    return 0;
}

static const struct verb verbs[] = {
    {"serve", sl_cli_serve, "serve a model on this machine: router node and supervised workers",
     &sl_doc_serve},
    {"router", sl_cli_router, "a router node of a cluster", &sl_doc_router},
    {"worker", sl_cli_worker, "a worker of a cluster", &sl_doc_worker},
    {"chat", sl_cli_chat, "talk to a model in the terminal", &sl_doc_chat},
    {"complete", sl_cli_complete, "complete one prompt", &sl_doc_complete},
    {"audit", sl_cli_audit, "tell whether a model gave a stored answer", &sl_doc_audit},
    {"bench", sl_cli_bench, "load tests and benchmarks", NULL},
    {"inspect", sl_cli_inspect, "what is in a model file", &sl_doc_inspect},
    {"tokenize", sl_cli_tokenize, "tokens of a text", &sl_doc_tokenize},
    {"doctor", sl_cli_doctor, "what this machine can do", &sl_doc_doctor},
    {"plan", sl_cli_plan, "memory and sharding before loading", &sl_doc_plan},
    {"keygen", sl_cli_keygen, "CURVE keys for the links of a cluster", &sl_doc_keygen},
    {"health", sl_cli_health, "probe a running server", &sl_doc_health},
    {"ctl", sl_cli_ctl, "look at and drain a running cluster", &sl_doc_ctl},
    {"pull", sl_cli_pull, "fetch the default model and print its path", NULL},
    {"help", help, "this list", NULL},
    {"version", version, "the program's version", NULL},
};
#define N_VERBS (sizeof verbs / sizeof *verbs)

static int print_out(struct sl_buf *b)
{
    if (b->len)
        fwrite(b->data, 1, b->len, stdout);
    sl_buf_free(b);
    return 0;
}

/* help --man VERB: the manual page in roff; --completion: a script for bash; --limits: the table of
 * limits. */
static int print_docs(const char *what, const char *word)
{
    struct sl_verb_doc docs[N_VERBS];
    struct sl_buf b = {0};
    size_t n = 0;
    for (size_t i = 0; i < N_VERBS; i++) {
        if (!verbs[i].doc)
            continue;
        docs[n++] = *verbs[i].doc;
        if (!strcmp(what, "--man") && word && !strcmp(word, verbs[i].name)) {
            sl_options_man(verbs[i].doc, &b);
            return print_out(&b);
        }
    }
    if (!strcmp(what, "--completion")) {
        sl_options_complete(docs, n, &b);
        return print_out(&b);
    }
    if (!strcmp(what, "--limits")) {
        for (size_t i = 0; i < sl_n_limits; i++)
            sl_buf_printf(&b, "%-26s %10llu %-12s %s\n", sl_limits[i].name,
                          (unsigned long long)sl_limits[i].value, sl_limits[i].unit,
                          sl_limits[i].what);
        return print_out(&b);
    }
    fputs("sluice: usage: sluice help [--man VERB | --completion | --limits]\n", stderr);
    return sl_status_row(SL_USAGE)->exit_code;
}

static int help(int argc, char **argv, char *const *env)
{
    (void)env;
    if (argc > 1 && !strncmp(argv[1], "--", 2) && strcmp(argv[1], "--help") != 0)
        return print_docs(argv[1], argc > 2 ? argv[2] : NULL);
    puts("usage: sluice VERB [OPTIONS]\n");
    for (size_t i = 0; i < N_VERBS; i++)
        printf("  %-10s %s\n", verbs[i].name, verbs[i].help);
    puts("\n`sluice VERB --help` lists a verb's options; `sluice help --man VERB` prints its "
         "manual page,"
         "\n`sluice help --completion` the completion for bash, `sluice help --limits` every "
         "limit.");
    return 0;
}

static int unknown_verb(const char *word)
{
    const char *names[N_VERBS + 1] = {0};
    for (size_t i = 0; i < N_VERBS; i++)
        names[i] = verbs[i].name;
    const char *near = sl_suggest(word, names);
    if (near)
        fprintf(stderr, "sluice: unknown verb '%s'; did you mean '%s'?\n", word, near);
    else
        fprintf(stderr, "sluice: unknown verb '%s'; `sluice help` lists them\n", word);
    return sl_status_row(SL_USAGE)->exit_code;
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C");
    signal(SIGPIPE, SIG_IGN);
    const char *word = argc > 1 ? argv[1] : "help";
    if (!strcmp(word, "--help") || !strcmp(word, "-h"))
        word = "help";
    if (!strcmp(word, "--version"))
        word = "version";
    for (size_t i = 0; i < N_VERBS; i++)
        if (!strcmp(verbs[i].name, word))
            return verbs[i].run(argc > 1 ? argc - 1 : argc, argc > 1 ? argv + 1 : argv, environ);
    return unknown_verb(word);
}

int sl_cli_fail(const struct sl_err *err)
{
    fprintf(stderr, "sluice: %s\n", err->msg);
    return sl_status_row(err->status)->exit_code;
}

const char *sl_cli_env(char *const *env, const char *name)
{
    size_t len = strlen(name);
    for (; *env; env++)
        if (!strncmp(*env, name, len) && (*env)[len] == '=')
            return *env + len + 1;
    return NULL;
}

enum sl_status sl_cli_self_path(char *exe, struct sl_err *err)
{
    ssize_t n = readlink("/proc/self/exe", exe, PATH_MAX - 1);
    if (n <= 0)
        return sl_fail(err, SL_FAILED, "cannot tell the program's own path");
    exe[n] = 0;
    return SL_OK;
}

const char *sl_cli_run_dir(char *const *env)
{
    const char *dir = sl_cli_env(env, "XDG_RUNTIME_DIR");
    return dir && access(dir, W_OK) == 0 ? dir : "/tmp";
}

enum sl_log_format sl_cli_log_format(const char *text)
{
    if (!text)
        return SL_LOG_AUTO;
    return strcmp(text, "json") == 0 ? SL_LOG_JSON : SL_LOG_TEXT;
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
    return false;
}

int sl_cli_options(const char *verb, const char *operands_text, const struct sl_option *table,
                   size_t n_table, int argc, char **argv, char *const *env, struct sl_arena *arena,
                   void *out, const char **operands, size_t operands_max, size_t *n_operands,
                   bool *done)
{
    struct sl_err err;
    *done = true;
    if (wants_help(argc, argv)) {
        struct sl_buf text = {0};
        sl_options_help(table, n_table, &text);
        printf("usage: sluice %s %s[OPTIONS]\n\n%s", verb, operands_text,
               text.data ? text.data : "");
        sl_buf_free(&text);
        return 0;
    }
    if (sl_options_read(table, n_table, argc, argv, env, arena, out, operands, operands_max,
                        n_operands, &err))
        return sl_cli_fail(&err);
    *done = false;
    return 0;
}
