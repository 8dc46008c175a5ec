/* sluice bench ops: what the exactness rule costs a sharded model.
 *
 * The ranks of one tensor parallel group run as threads of this process and exchange floats through
 * memory, so that nothing but the sums differs: forward passes with the fixed slices and their tree
 * (exact) alternate with passes in which each rank adds up its inputs in one chain (loose), which
 * is what a reduction without the rule would do. One thread computes for each rank. */
#include "cli.h"

#include <sluice/base/machine.h>
#include <sluice/base/time.h>
#include <sluice/files/gguf.h>
#include <sluice/kernels/op.h>
#include <sluice/model/model.h>

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RANKS_MAX 8u
#define KV_PAGE   32u
#define ROWS_MAX  256u

struct ops_options {
    const char *backend, *isa, *output, *config;
    int64_t tp, depth, repeat, max_cost;
};

#define ROW(...) CLI_OPTION_ROW(struct ops_options, __VA_ARGS__)
#define OPS_OPTION_TABLE(X)                                                                        \
    X("tensor-parallel-size", SL_OPT_INT, tp, "2", 1, RANKS_MAX, NULL, "N",                        \
      "ranks, a thread of this process each")                                                      \
    X("backend", SL_OPT_CHOICE, backend, "cpu", 0, 0, "cpu|cuda|cuda-emu", "NAME",                 \
      "what computes; so far the CPU alone")                                                       \
    X("isa", SL_OPT_CHOICE, isa, NULL, 0, 0, "scalar|avx2|avx512", "NAME",                         \
      "instruction set (default: the best)")                                                       \
    X("depth", SL_OPT_INT, depth, "256", 1, 4096, NULL, "N", "positions before a decoded one")     \
    X("repeat", SL_OPT_INT, repeat, "30", 1, 10000, NULL, "N", "pairs of steps for each size")     \
    X("max-cost", SL_OPT_INT, max_cost, NULL, 1, 1000, NULL, "PERCENT",                            \
      "end with status 9 when a size costs more CPU time")                                         \
    X("output", SL_OPT_STRING, output, NULL, 0, 0, NULL, "FILE",                                   \
      "where the JSON goes (default: standard output)")                                            \
    X("config", SL_OPT_STRING, config, NULL, 0, 0, NULL, "FILE", "YAML file of options")

static const struct sl_option table[] = {OPS_OPTION_TABLE(ROW)};

/* Sequences of a step and rows of each. */
static const struct step_size {
    const char *name;
    uint32_t n_seq, rows;
} sizes[] = {{"decode", 1, 1}, {"decode", 8, 1}, {"decode", 32, 1}, {"prefill", 1, ROWS_MAX}};
#define N_SIZES  (sizeof sizes / sizeof *sizes)
#define SEQS_MAX 32u

enum { EXACT, LOOSE, N_WAYS };

/* ---- ranks as threads ---- */

struct board {
    uint32_t n;
    atomic_uint n_here, n_meetings;
    const float *runs[RANKS_MAX];
    const size_t *counts[RANKS_MAX];
    atomic_bool failed;
    atomic_ulong n_floats; /* sent to other ranks */
    atomic_ulong wait_ns;  /* of CPU time spent waiting, by all ranks */
    atomic_ulong cpu_ns;   /* of all ranks, waiting included, in steps of the size being run */
};

/* One step: wall time, and CPU time of all ranks without waiting. */
struct sample {
    uint64_t wall_ns, cpu_ns;
};

struct ops_rank {
    struct board *board;
    uint32_t rank;
    const struct sl_gguf *gguf;
    const struct ops_options *o;
    struct sl_backend *b;
    struct sl_model *models[N_WAYS];
    struct sl_kv kv;
    float *logits;
    struct sample (*samples)[N_WAYS];  /* [N_SIZES * repeat], by rank 0 */
    unsigned long (*n_floats)[N_WAYS]; /* [N_SIZES], of one step */
    enum sl_status status;
    struct sl_err err;
    pthread_t thread;
};

/* All ranks wait for each other; awake, since a sleep would cost more than what is measured. */
static void meet(struct board *b)
{
    unsigned meeting = b->n_meetings;
    if (atomic_fetch_add(&b->n_here, 1) + 1 == b->n) {
        b->n_here = 0;
        b->n_meetings++;
        return;
    }
    uint64_t start = sl_thread_cpu_ns();
    while (b->n_meetings == meeting)
        sched_yield();
    b->wait_ns += sl_thread_cpu_ns() - start;
}

/* Shows the others what I have, takes what `from` shows for me behind `skip` runs of theirs. */
static void show(struct ops_rank *r, const float *mine, const size_t *counts)
{
    r->board->runs[r->rank] = mine;
    r->board->counts[r->rank] = counts;
    meet(r->board);
}

static enum sl_status ops_gather(void *ctx, const float *mine, float *all, const size_t *counts,
                                 struct sl_err *err)
{
    struct ops_rank *r = ctx;
    (void)err;
    show(r, mine, counts);
    for (uint32_t o = 0; o < r->board->n && all; all += counts[o++])
        if (o != r->rank) {
            memcpy(all, r->board->runs[o], counts[o] * sizeof *all);
            r->board->n_floats += counts[o];
        }
    meet(r->board);
    return SL_OK;
}

static enum sl_status ops_all_to_all(void *ctx, const float *send, const size_t *send_counts,
                                     float *recv, const size_t *recv_counts, struct sl_err *err)
{
    struct ops_rank *r = ctx;
    (void)err;
    show(r, send, send_counts);
    for (uint32_t o = 0; o < r->board->n; recv += recv_counts[o++]) {
        const float *run = r->board->runs[o];
        for (uint32_t i = 0; i < r->rank; i++)
            run += r->board->counts[o][i];
        memcpy(recv, run, recv_counts[o] * sizeof *recv);
        if (o != r->rank)
            r->board->n_floats += recv_counts[o];
    }
    meet(r->board);
    return SL_OK;
}

/* ---- one rank ---- */

static enum sl_status open_rank(struct ops_rank *r)
{
    struct sl_cpu_config cpu = {.isa = SL_ISA_AUTO, .n_threads = 1};
    uint32_t seq_pages = ((uint32_t)r->o->depth + KV_PAGE) / KV_PAGE;
    uint32_t prompt_pages = ROWS_MAX / KV_PAGE;
    struct sl_model_options how = {.shard = {r->rank, r->board->n, 0, 1},
                                   .max_batch_tokens = ROWS_MAX,
                                   .max_positions = (uint32_t)r->o->depth + ROWS_MAX,
                                   .max_logit_rows = SEQS_MAX};
    if (r->o->isa && !sl_isa_parse(r->o->isa, &cpu.isa))
        return sl_fail(&r->err, SL_USAGE, "bench ops: unknown instruction set '%s'", r->o->isa);
    enum sl_status s = sl_cpu_open(&cpu, &r->b, &r->err);
    for (int way = 0; way < N_WAYS && !s; way++) {
        how.loose_sums = way == LOOSE;
        s = sl_model_open(r->gguf, r->b, &how, &r->models[way], &r->err);
    }
    if (s)
        return s;
    const struct sl_model_config *c = sl_model_config(r->models[EXACT]);
    struct sl_kv_config kv =
        sl_model_kv_config(c, &how.shard, KV_PAGE, SEQS_MAX * seq_pages + prompt_pages, SL_F16);
    r->logits = malloc((size_t)SEQS_MAX * c->n_vocab * sizeof *r->logits);
    if (!r->logits)
        return sl_fail(&r->err, SL_NO_MEMORY, "bench ops: no memory for logits");
    return r->b->ops->kv_open(r->b, &kv, &r->kv, &r->err);
}

static void close_rank(struct ops_rank *r)
{
    for (int way = 0; way < N_WAYS; way++)
        sl_model_close(r->models[way]);
    if (r->kv.data)
        r->b->ops->kv_close(r->b, &r->kv);
    if (r->b)
        r->b->ops->close(r->b);
    free(r->logits);
}

/* A step of the given size. Decoded rows stand behind `depth` positions of zeros in the cache. */
static enum sl_status run_size(struct ops_rank *r, const struct step_size *size, int way)
{
    uint32_t tokens[ROWS_MAX], pos[ROWS_MAX], rows[SEQS_MAX], q_start[SEQS_MAX + 1];
    uint32_t page_start[SEQS_MAX + 1], n_tok = size->n_seq * size->rows;
    uint32_t seq_pages =
        size->rows > 1 ? ROWS_MAX / KV_PAGE : ((uint32_t)r->o->depth + KV_PAGE) / KV_PAGE;
    uint32_t *pages = malloc((size_t)size->n_seq * seq_pages * sizeof *pages);
    if (!pages)
        return sl_fail(&r->err, SL_NO_MEMORY, "bench ops: no memory for pages");
    for (uint32_t i = 0; i < size->n_seq * seq_pages; i++)
        pages[i] = i;
    for (uint32_t i = 0; i <= size->n_seq; i++) {
        q_start[i] = i * size->rows;
        page_start[i] = i * seq_pages;
    }
    for (uint32_t i = 0; i < size->n_seq; i++)
        rows[i] = q_start[i + 1] - 1;
    for (uint32_t i = 0; i < n_tok; i++) {
        tokens[i] = (i * 7 + 1) % sl_model_config(r->models[way])->n_vocab;
        pos[i] = size->rows > 1 ? i : (uint32_t)r->o->depth;
    }
    struct sl_batch batch = {.n_seq = size->n_seq,
                             .n_tok = n_tok,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = pages};
    struct sl_model_step step = {.batch = &batch,
                                 .tokens = tokens,
                                 .logit_rows = rows,
                                 .n_logit_rows = size->n_seq,
                                 .logits = r->logits};
    struct sl_exchange x = {
        .ctx = r, .all_gather = ops_gather, .all_to_all = ops_all_to_all, .gather = ops_gather};
    enum sl_status s = sl_model_forward(r->models[way], &r->kv, &step, &x, &r->err);
    free(pages);
    return s;
}

/* One step between two meetings; what it took is known to rank 0. */
static enum sl_status take_step(struct ops_rank *r, size_t i, int way, struct sample *out)
{
    struct board *b = r->board;
    meet(b);
    uint64_t start = sl_now_ns(), cpu = sl_thread_cpu_ns();
    unsigned long floats = b->n_floats, waited = b->wait_ns, used = b->cpu_ns;
    meet(b); /* all have read the counters */
    enum sl_status s = run_size(r, &sizes[i], way);
    b->cpu_ns += sl_thread_cpu_ns() - cpu;
    meet(b);
    r->n_floats[i][way] = b->n_floats - floats;
    *out = (struct sample){sl_now_ns() - start, b->cpu_ns - used - (b->wait_ns - waited)};
    meet(b);
    return s;
}

/* Exact and loose steps take turns; which of a pair comes first alternates. Pair 0 is a warm-up. */
static enum sl_status run_sizes(struct ops_rank *r)
{
    enum sl_status s = SL_OK;
    for (size_t i = 0; i < N_SIZES; i++)
        for (int64_t pair = 0; pair <= r->o->repeat; pair++)
            for (int turn = 0; turn < N_WAYS && !s; turn++) {
                int way = (turn + (int)(pair % 2)) % N_WAYS;
                struct sample sample;
                s = take_step(r, i, way, &sample);
                if (r->rank == 0 && pair > 0)
                    r->samples[(int64_t)i * r->o->repeat + pair - 1][way] = sample;
            }
    return s;
}

static void *rank_thread(void *ctx)
{
    struct ops_rank *r = ctx;
    r->status = open_rank(r);
    if (r->status)
        r->board->failed = true;
    meet(r->board);
    if (!r->board->failed)
        r->status = run_sizes(r);
    close_rank(r);
    return NULL;
}

/* ---- the measurement ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
    qsort(x, n, sizeof *x, compare_doubles);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static double median_of(const struct ops_rank *r, size_t i, int way, bool cpu)
{
    size_t n = (size_t)r->o->repeat;
    double *x = malloc(n * sizeof *x), m = 0;
    for (size_t k = 0; k < n && x; k++) {
        struct sample s = r->samples[i * n + k][way];
        x[k] = (double)(cpu ? s.cpu_ns : s.wall_ns);
    }
    m = x ? median(x, n) : 0;
    free(x);
    return m;
}

static double percent_more(const double ns[N_WAYS])
{
    return ns[LOOSE] > 0 ? (ns[EXACT] / ns[LOOSE] - 1) * 100 : 0;
}

/* Returns percent of CPU time, which a busy machine spoils less than wall time. */
static double put_size(const struct ops_rank *r, size_t i, struct sl_buf *json)
{
    double wall[N_WAYS], cpu[N_WAYS];
    for (int way = 0; way < N_WAYS; way++) {
        wall[way] = median_of(r, i, way, false);
        cpu[way] = median_of(r, i, way, true);
    }
    fprintf(stderr,
            "%-8s %3u x %-3u  exact %8.3f ms, loose %8.3f ms: %+5.1f %%, CPU time %+5.1f %%\n",
            sizes[i].name, sizes[i].n_seq, sizes[i].rows, wall[EXACT] / 1e6, wall[LOOSE] / 1e6,
            percent_more(wall), percent_more(cpu));
    sl_buf_printf(json,
                  "%s{\"step\":\"%s\",\"n_seq\":%u,\"rows\":%u,\"exact_ns\":%.0f,\"loose_ns\":%.0f,"
                  "\"cost_percent\":%.2f,\"exact_cpu_ns\":%.0f,\"loose_cpu_ns\":%.0f,"
                  "\"cost_cpu_percent\":%.2f,\"exact_floats\":%lu,\"loose_floats\":%lu}",
                  i ? "," : "", sizes[i].name, sizes[i].n_seq, sizes[i].rows, wall[EXACT],
                  wall[LOOSE], percent_more(wall), cpu[EXACT], cpu[LOOSE], percent_more(cpu),
                  r->n_floats[i][EXACT], r->n_floats[i][LOOSE]);
    return percent_more(cpu);
}

static double put_report(const struct ops_rank *r, struct sl_buf *json)
{
    char cpu[128];
    double load[3] = {0}, worst = -100;
    sl_cpu_model_name(cpu, sizeof cpu);
    if (getloadavg(load, 3) != 3)
        load[0] = 0;
    sl_buf_puts(json,
                "{\"kind\":\"ops\",\"version\":\"" SLUICE_VERSION "\",\"environment\":{\"cpu\":");
    sl_buf_json_str(json, cpu, strlen(cpu));
    sl_buf_printf(json,
                  ",\"cores\":%ld,\"load_average\":%.2f,\"unix_s\":%" PRIu64
                  "},\"tensor_parallel_size\":%" PRId64 ",\"depth\":%" PRId64 ",\"repeat\":%" PRId64
                  ",\"cost_of_exact_sums\":[",
                  sysconf(_SC_NPROCESSORS_ONLN), load[0], sl_unix_ns() / SL_S_NS, r->o->tp,
                  r->o->depth, r->o->repeat);
    for (size_t i = 0; i < N_SIZES; i++) {
        double cost = put_size(r, i, json);
        worst = cost > worst ? cost : worst;
    }
    sl_buf_puts(json, "]}\n");
    return worst;
}

static enum sl_status write_json(const struct ops_options *o, const struct sl_buf *json,
                                 struct sl_err *err)
{
    FILE *f = o->output ? fopen(o->output, "w") : stdout;
    bool ok = f && !json->failed && fwrite(json->data, 1, json->len, f) == json->len;
    if (f && o->output)
        ok = fclose(f) == 0 && ok;
    return ok ? SL_OK
              : sl_fail(err, SL_FAILED, "bench ops: cannot write %s",
                        o->output ? o->output : "the result");
}

static enum sl_status run_ranks(struct ops_rank *ranks, struct board *board, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    uint32_t n = 0;
    for (; n < board->n && !s; n++)
        if (pthread_create(&ranks[n].thread, NULL, rank_thread, &ranks[n]))
            s = sl_fail(err, SL_NO_MEMORY, "bench ops: cannot start %u threads", board->n);
    if (s) { /* those that wait for the missing ones would wait for ever */
        sl_cli_fail(err);
        _exit(sl_status_row(s)->exit_code);
    }
    for (uint32_t r = 0; r < n; r++)
        pthread_join(ranks[r].thread, NULL);
    for (uint32_t r = 0; r < n && !s; r++)
        if (ranks[r].status) {
            *err = ranks[r].err;
            s = ranks[r].status;
        }
    return s;
}

/* A device's ranks would have to exchange device memory, and an emulated one's times are those of
 * its emulation. */
static enum sl_status check_backend(const char *name, struct sl_err *err)
{
    if (!strcmp(name, "cpu"))
        return SL_OK;
    return sl_fail_param(
        err, SL_USAGE, "backend", "bench ops: not implemented for backend %s: %s", name,
        !strcmp(name, "cuda-emu") ? "an emulated device's times say nothing of a real one's"
                                  : "only the CPU's sums are measured");
}

static enum sl_status bench_ops(const struct ops_options *o, const char *operand, char *const *env,
                                struct sl_err *err)
{
    struct sl_buf path = {0}, json = {0};
    struct sl_gguf *g = NULL;
    struct board board = {.n = (uint32_t)o->tp};
    struct ops_rank ranks[RANKS_MAX];
    unsigned long n_floats[RANKS_MAX][N_SIZES][N_WAYS];
    struct sample(*samples)[N_WAYS] = calloc(N_SIZES * (size_t)o->repeat, sizeof *samples);
    double worst = 0;
    enum sl_status s = samples ? SL_OK : sl_fail(err, SL_NO_MEMORY, "bench ops: no memory");
    if (!s)
        s = check_backend(o->backend, err);
    if (!s)
        s = sl_store_find(operand, env, &path, err);
    if (!s)
        s = sl_gguf_open(path.data, &g, err);
    for (uint32_t r = 0; r < board.n; r++)
        ranks[r] = (struct ops_rank){.board = &board,
                                     .rank = r,
                                     .gguf = g,
                                     .o = o,
                                     .samples = samples,
                                     .n_floats = n_floats[r]};
    if (!s)
        s = run_ranks(ranks, &board, err);
    if (!s) {
        worst = put_report(&ranks[0], &json);
        s = write_json(o, &json, err);
    }
    if (!s && o->max_cost && worst > (double)o->max_cost)
        s = sl_fail(err, SL_ASSERTION,
                    "bench ops: exact sums cost %.1f %% of CPU time, more than %" PRId64, worst,
                    o->max_cost);
    sl_gguf_close(g);
    sl_buf_free(&path);
    sl_buf_free(&json);
    free(samples);
    return s;
}

int sl_cli_bench_ops(int argc, char **argv, char *const *env)
{
    struct ops_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    const char *operand = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("bench ops", "[MODEL] ", table, sizeof table / sizeof *table, argc,
                            argv, env, &arena, &o, &operand, 1, &n, &done);
    if (!done)
        rc = bench_ops(&o, n ? operand : NULL, env, &err) ? sl_cli_fail(&err) : 0;
    sl_arena_free(&arena);
    return rc;
}
