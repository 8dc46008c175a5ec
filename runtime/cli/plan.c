/* `sluice plan MODEL`: what every rank of a model would hold, and whether this machine has room. */
#include "cli.h"
#include "engine_options.h"

#include <sluice/base/machine.h>
#include <sluice/engine/engine.h>
#include <sluice/files/gguf.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1024.0 * 1024.0)

struct plan_options {
    struct engine_options engine;
    bool json;
};

#define ROW(...) ENGINE_OPTION_ROW(struct plan_options, engine, __VA_ARGS__)
static const struct sl_option table[] = {{.name = "json",
                                          .kind = SL_OPT_FLAG,
                                          .offset = offsetof(struct plan_options, json),
                                          .help = "one JSON object instead of lines"},
                                         ENGINE_OPTION_TABLE(ROW)};

/* What there is, and what is wanted of it: on the host by all ranks, of devices, each of which has
 * one rank, by the largest. */
struct machine {
    uint64_t memory_bytes, available_bytes, wanted_bytes;
};

static uint64_t rank_bytes(const struct sl_engine_plan_rank *r)
{
    return r->weight_bytes + r->kv_bytes + r->scratch_bytes;
}

/* The mapped part of the file is one and the same for all processes of a machine. */
static uint64_t total_bytes(const struct sl_engine_plan *p)
{
    uint64_t sum = 0, mapped = 0;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const struct sl_engine_plan_rank *r = &p->ranks[i];
        sum += rank_bytes(r);
        mapped = r->mapped_bytes > mapped ? r->mapped_bytes : mapped;
    }
    return sum + mapped;
}

static struct machine machine_of(const struct sl_engine_plan *p)
{
    struct machine m = {.wanted_bytes = total_bytes(p)};
    sl_machine_memory(&m.memory_bytes, &m.available_bytes);
    if (!p->device_bytes)
        return m;
    m = (struct machine){p->device_bytes, p->device_free_bytes, 0};
    for (uint32_t i = 0; i < p->n_ranks; i++)
        if (rank_bytes(&p->ranks[i]) > m.wanted_bytes)
            m.wanted_bytes = rank_bytes(&p->ranks[i]);
    return m;
}

static unsigned long long num(uint64_t x)
{
    return x;
}

static void print_json(const char *path, const struct sl_engine_plan *p, const struct machine *m,
                       struct sl_buf *out)
{
    const struct sl_engine_info *i = &p->limits;
    sl_buf_puts(out, "{\"model\":");
    sl_buf_json_str(out, path, strlen(path));
    sl_buf_printf(out,
                  ",\"tensor_parallel_size\":%u,\"pipeline_parallel_size\":%u,"
                  "\"tensor_parallel_size_max\":%u,\"pipeline_parallel_size_max\":%u,"
                  "\"max_model_len\":%u,\"max_num_seqs\":%u,\"max_num_batched_tokens\":%u,"
                  "\"page_size\":%u,\"kv_pages\":%u,\"ranks\":[",
                  p->tp, p->pp, p->tp_max, p->pp_max, i->max_len, i->max_seqs, i->max_batch_tokens,
                  i->page_size, i->n_pages);
    for (uint32_t k = 0; k < p->n_ranks; k++) {
        const struct sl_engine_plan_rank *r = &p->ranks[k];
        sl_buf_printf(out,
                      "%s{\"rank\":%u,\"stage\":%u,\"layer_first\":%u,\"layers\":%u,\"heads\":%u,"
                      "\"kv_heads\":%u,\"weight_bytes\":%llu,\"mapped_bytes\":%llu,"
                      "\"kv_bytes\":%llu,\"scratch_bytes\":%llu,\"total_bytes\":%llu}",
                      k ? "," : "", r->rank, r->stage, r->layer_first, r->n_layers, r->n_heads,
                      r->n_kv_heads, num(r->weight_bytes), num(r->mapped_bytes), num(r->kv_bytes),
                      num(r->scratch_bytes),
                      num(r->weight_bytes + r->mapped_bytes + r->kv_bytes + r->scratch_bytes));
    }
    sl_buf_printf(out,
                  "],\"total_bytes\":%llu,\"on_device\":%s,\"memory_bytes\":%llu,"
                  "\"memory_available_bytes\":%llu,\"fits\":%s}\n",
                  num(total_bytes(p)), p->device_bytes ? "true" : "false", num(m->memory_bytes),
                  num(m->available_bytes),
                  m->wanted_bytes <= m->available_bytes ? "true" : "false");
}

static void print_lines(const char *path, const struct sl_engine_plan *p, const struct machine *m,
                        struct sl_buf *out)
{
    const struct sl_engine_info *i = &p->limits;
    sl_buf_printf(out,
                  "%s\ntensor parallel %u (at most %u), pipeline parallel %u (at most %u)\n"
                  "%u sequences of %u positions, steps of %u rows, %u KV pages of %u positions\n\n"
                  "RANK STAGE  LAYERS  HEADS  KV HEADS  WEIGHTS MiB  FILE MiB    KV MiB  "
                  "SCRATCH MiB\n",
                  path, p->tp, p->tp_max, p->pp, p->pp_max, i->max_seqs, i->max_len,
                  i->max_batch_tokens, i->n_pages, i->page_size);
    for (uint32_t k = 0; k < p->n_ranks; k++) {
        const struct sl_engine_plan_rank *r = &p->ranks[k];
        sl_buf_printf(out, "%4u %5u %3u-%-3u %6u %9u %12.1f %9.1f %9.1f %12.1f\n", r->rank,
                      r->stage, r->layer_first, r->layer_first + r->n_layers - 1, r->n_heads,
                      r->n_kv_heads, (double)r->weight_bytes / MIB, (double)r->mapped_bytes / MIB,
                      (double)r->kv_bytes / MIB, (double)r->scratch_bytes / MIB);
    }
    sl_buf_printf(out, "\n%s: %.1f MiB; %s has %.1f MiB, %.1f MiB of it free: %s\n",
                  p->device_bytes ? "the largest rank" : "all ranks", (double)m->wanted_bytes / MIB,
                  p->device_bytes ? "a device" : "this machine", (double)m->memory_bytes / MIB,
                  (double)m->available_bytes / MIB,
                  m->wanted_bytes <= m->available_bytes ? "it fits" : "it does not fit");
}

static enum sl_status plan(const struct plan_options *o, const char *operand, char *const *env,
                           struct sl_buf *out, struct sl_err *err)
{
    struct sl_engine_plan *p = calloc(1, sizeof *p);
    struct sl_engine_config cfg;
    struct sl_buf path = {0};
    struct sl_gguf *g = NULL;
    enum sl_status s = p ? SL_OK : sl_fail(err, SL_NO_MEMORY, "no memory for a plan");
    if (s || (s = engine_options_config(&o->engine, 1, &cfg, err)) ||
        (s = sl_store_find(operand, env, &path, err)) || (s = sl_gguf_open(path.data, &g, err)))
        goto out;
    cfg.gguf = g;
    cfg.n_threads = 1; /* nothing is computed */
    if ((s = sl_engine_plan(&cfg, p, err)))
        goto out;
    struct machine m = machine_of(p);
    (o->json ? print_json : print_lines)(path.data, p, &m, out);
    if (out->failed)
        s = sl_fail(err, SL_NO_MEMORY, "no memory for a plan");
out:
    sl_gguf_close(g);
    sl_buf_free(&path);
    free(p);
    return s;
}

const struct sl_verb_doc sl_doc_plan = {.verb = "plan",
                                        .operands = "[MODEL]",
                                        .summary = "memory and sharding before loading",
                                        .table = table,
                                        .n_table = sizeof table / sizeof *table};

int sl_cli_plan(int argc, char **argv, char *const *env)
{
    struct plan_options o = {0};
    struct sl_arena arena;
    struct sl_buf out = {0};
    struct sl_err err;
    const char *operand = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("plan", "[MODEL] ", table, sizeof table / sizeof *table, argc, argv,
                            env, &arena, &o, &operand, 1, &n, &done);
    if (!done) {
        if (plan(&o, n ? operand : NULL, env, &out, &err))
            rc = sl_cli_fail(&err);
        else
            fwrite(out.data, 1, out.len, stdout);
    }
    sl_buf_free(&out);
    sl_arena_free(&arena);
    return rc;
}
