/* Benchmarks, as the command line calls them: argv[0] is the kind's name; the result is the
 * program's exit code (0, 1 run-time failure, 2 usage, 7 no server, 9 an assertion failed). They
 * print their tables to stdout and progress to stderr. */
#ifndef SLUICE_BENCH_BENCH_H
#define SLUICE_BENCH_BENCH_H

/* `bench serve`: a load test of any server with the OpenAI API. */
int sl_bench_serve(int argc, char **argv, char *const *env);

#endif
