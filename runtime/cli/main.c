/* The program: finds the verb and runs it. */
#include "cli.h"

#include <sluice/base/log.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

extern char **environ;

struct verb {
    const char *name;
    int (*run)(int argc, char **argv, char *const *env);
    const char *help;
};

static int not_implemented(int argc, char **argv, char *const *env)
{
    (void)argc, (void)env;
    fprintf(stderr, "sluice: %s is not implemented\n", argv[0]);
    return 1;
}

static int help(int argc, char **argv, char *const *env);

static int version(int argc, char **argv, char *const *env)
{
    (void)argc, (void)argv, (void)env;
    puts("sluice " SLUICE_VERSION);
    return 0;
}

static const struct verb verbs[] = {
    {"serve", sl_cli_serve, "serve a model on this machine: router node and supervised workers"},
    {"router", sl_cli_router, "a router node of a cluster"},
    {"worker", sl_cli_worker, "a worker of a cluster"},
    {"chat", sl_cli_chat, "talk to a model in the terminal"},
    {"complete", sl_cli_complete, "complete one prompt"},
    {"bench", sl_cli_bench, "load tests and benchmarks"},
    {"inspect", sl_cli_inspect, "what is in a model file"},
    {"tokenize", sl_cli_tokenize, "tokens of a text"},
    {"doctor", sl_cli_doctor, "what this machine can do"},
    {"plan", not_implemented, "memory and sharding before loading"},
    {"keygen", not_implemented, "CURVE keys for the links of a cluster"},
    {"health", sl_cli_health, "probe a running server"},
    {"ctl", sl_cli_ctl, "look at and drain a running cluster"},
    {"pull", sl_cli_pull, "fetch the default model and print its path"},
    {"help", help, "this list"},
    {"version", version, "the program's version"},
};
#define N_VERBS (sizeof verbs / sizeof *verbs)

static int help(int argc, char **argv, char *const *env)
{
    (void)argc, (void)argv, (void)env;
    puts("usage: sluice VERB [OPTIONS]\n");
    for (size_t i = 0; i < N_VERBS; i++)
        printf("  %-10s %s\n", verbs[i].name, verbs[i].help);
    puts("\n`sluice VERB --help` lists a verb's options.");
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
