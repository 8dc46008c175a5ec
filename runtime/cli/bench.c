/* sluice bench: load tests and benchmarks; each kind has its own options. */
#include "cli.h"

#include <sluice/bench/bench.h>

#include <stdio.h>
#include <string.h>

static int not_implemented(int argc, char **argv, char *const *env)
{
    (void)argc, (void)env;
    fprintf(stderr, "sluice: bench %s is not implemented\n", argv[0]);
    return 1;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, char *const *env);
} kinds[] = {
    {"requantize", sl_cli_requantize}, {"serve", sl_bench_serve},
    {"offline", sl_cli_bench_offline}, {"ops", sl_cli_bench_ops},
    {"comm", sl_cli_bench_comm},       {"scale", not_implemented},
    {"faults", sl_cli_bench_script},   {"compare", sl_cli_bench_script},
    {"report", not_implemented},
};
#define N_KINDS (sizeof kinds / sizeof *kinds)

int sl_cli_bench(int argc, char **argv, char *const *env)
{
    struct sl_err err;
    const char *names[N_KINDS + 1] = {0};
    for (size_t i = 0; i < N_KINDS; i++)
        names[i] = kinds[i].name;
    for (size_t i = 0; argc > 1 && i < N_KINDS; i++)
        if (!strcmp(argv[1], kinds[i].name))
            return kinds[i].run(argc - 1, argv + 1, env);
    const char *near = argc > 1 ? sl_suggest(argv[1], names) : NULL;
    if (near)
        sl_fail(&err, SL_USAGE, "bench: unknown kind '%s'; did you mean '%s'?", argv[1], near);
    else
        sl_fail(&err, SL_USAGE,
                "bench: say which: serve, offline, ops, comm, scale, faults, compare, "
                "report or requantize");
    return sl_cli_fail(&err);
}
