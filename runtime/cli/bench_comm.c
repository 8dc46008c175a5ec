/* sluice bench comm: what operations between ranks cost on this machine. */
#include "cli.h"

#include <sluice/base/machine.h>
#include <sluice/base/time.h>
#include <sluice/bench/comm.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct comm_options {
    const char *transport, *output, *config;
    int64_t ranks, min_bytes, max_bytes, repeat, sample_ms;
};

#define ROW(...) CLI_OPTION_ROW(struct comm_options, __VA_ARGS__)

#define COMM_OPTION_TABLE(X)                                                                       \
    X("ranks", SL_OPT_INT, ranks, "2", 2, 64, NULL, "N", "ranks of the group")                     \
    X("transport", SL_OPT_CHOICE, transport, "all", 0, 0, "all|shm|tcp", "KIND",                   \
      "links to measure: shared memory, TCP with TLS")                                             \
    X("min-bytes", SL_OPT_INT, min_bytes, "1024", 64, 1073741824, NULL, "N",                       \
      "smallest size: what lies at a rank afterwards")                                             \
    X("max-bytes", SL_OPT_INT, max_bytes, "16777216", 64, 1073741824, NULL, "N", "largest size")   \
    X("repeat", SL_OPT_INT, repeat, "5", 1, SL_BENCH_COMM_REPEAT_MAX, NULL, "N",                   \
      "samples of each case and of its yardstick, in turns")                                       \
    X("sample-ms", SL_OPT_INT, sample_ms, "20", 1, 10000, NULL, "MS", "length of a sample")        \
    X("output", SL_OPT_STRING, output, NULL, 0, 0, NULL, "FILE",                                   \
      "where the JSON goes (default: standard output)")                                            \
    X("config", SL_OPT_STRING, config, NULL, 0, 0, NULL, "FILE", "YAML file of options")

static const struct sl_option table[] = {COMM_OPTION_TABLE(ROW)};

static void put_head(const struct comm_options *o, struct sl_buf *b)
{
    char cpu[128];
    double load[3] = {0};
    sl_cpu_model_name(cpu, sizeof cpu);
    if (getloadavg(load, 3) != 3)
        load[0] = load[1] = load[2] = 0;
    sl_buf_puts(b,
                "{\"kind\":\"comm\",\"version\":\"" SLUICE_VERSION "\",\"environment\":{\"cpu\":");
    sl_buf_json_str(b, cpu, strlen(cpu));
    sl_buf_printf(b,
                  ",\"cores\":%ld,\"load_average\":[%.2f,%.2f,%.2f],\"unix_s\":%" PRIu64
                  "},\"options\":{\"ranks\":%" PRId64 ",\"repeat\":%" PRId64
                  ",\"sample_ms\":%" PRId64 "},",
                  sysconf(_SC_NPROCESSORS_ONLN), load[0], load[1], load[2], sl_unix_ns() / SL_S_NS,
                  o->ranks, o->repeat, o->sample_ms);
}

static enum sl_status write_out(const struct sl_buf *b, const char *path, struct sl_err *err)
{
    FILE *f = path ? fopen(path, "we") : stdout;
    if (!f)
        return sl_fail(err, SL_FAILED, "cannot write %s", path);
    bool bad = fwrite(b->data, 1, b->len, f) != b->len;
    bad |= (path ? fclose(f) : fflush(f)) != 0;
    return bad ? sl_fail(err, SL_FAILED, "cannot write %s", path ? path : "standard output")
               : SL_OK;
}

static enum sl_status measure(const struct comm_options *o, struct sl_err *err)
{
    const struct sl_bench_comm b = {.n_ranks = (uint32_t)o->ranks,
                                    .shm = strcmp(o->transport, "tcp") != 0,
                                    .tcp = strcmp(o->transport, "shm") != 0,
                                    .min_bytes = (size_t)o->min_bytes,
                                    .max_bytes = (size_t)o->max_bytes,
                                    .repeat = (uint32_t)o->repeat,
                                    .sample_ns = (uint64_t)o->sample_ms * SL_MS_NS};
    struct sl_buf json = {0}, lines = {0};
    if (o->max_bytes < o->min_bytes)
        return sl_fail_param(err, SL_USAGE, "max-bytes",
                             "--max-bytes %" PRId64 " is below --min-bytes %" PRId64, o->max_bytes,
                             o->min_bytes);
    put_head(o, &json);
    enum sl_status s = sl_bench_comm_run(&b, &json, &lines, err);
    sl_buf_puts(&json, "}\n");
    if (!s)
        s = json.failed || lines.failed ? sl_fail(err, SL_NO_MEMORY, "no memory for the result")
                                        : write_out(&json, o->output, err);
    if (!s)
        fputs(lines.data, stderr);
    sl_buf_free(&json);
    sl_buf_free(&lines);
    return s;
}

int sl_cli_bench_comm(int argc, char **argv, char *const *env)
{
    struct comm_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("bench comm", "", table, sizeof table / sizeof *table, argc, argv, env,
                            &arena, &o, NULL, 0, &n, &done);
    if (!done)
        rc = measure(&o, &err) ? sl_cli_fail(&err) : 0;
    sl_arena_free(&arena);
    return rc;
}
