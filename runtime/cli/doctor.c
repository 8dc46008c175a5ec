/* sluice doctor: what this machine can do. Exit 0 whenever CPU serving works. */
#include "cli.h"

#include <sluice/base/machine.h>
#include <sluice/kernels/cuda.h>
#include <sluice/kernels/op.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct doctor_options {
    bool json;
};

static const struct sl_option table[] = {
    {"json", SL_OPT_FLAG, offsetof(struct doctor_options, json), "false", 0, 0, NULL, NULL,
     "print JSON"},
};

static void print_isas(struct sl_buf *b, bool json)
{
    bool first = true;
    for (int i = SL_ISA_SCALAR; i < SL_N_ISA; i++) {
        if (!sl_cpu_has_isa((enum sl_isa)i))
            continue;
        sl_buf_puts(b, first ? "" : json ? "," : " ");
        sl_buf_printf(b, json ? "\"%s\"" : "%s", sl_isa_name((enum sl_isa)i));
        first = false;
    }
}

/* ---- devices ---- */

static const char *const plugins[] = {"cuda", "cuda-emu"};
#define N_PLUGINS   (sizeof plugins / sizeof *plugins)
#define DEVICES_MAX 32

/* A plug-in and its devices, or why there are none. */
struct devices {
    struct sl_cuda_device at[DEVICES_MAX];
    uint32_t n;
    bool loaded;
    struct sl_err why;
};

static void look(const char *backend, struct devices *d)
{
    const struct sl_cuda_plugin *p;
    uint32_t n = 0;
    *d = (struct devices){0};
    if (sl_cuda_load(backend, NULL, &p, &d->why))
        return;
    d->loaded = true;
    if (p->count(&n, &d->why))
        return;
    for (uint32_t i = 0; i < n && d->n < DEVICES_MAX; i++)
        if (!p->describe(i, &d->at[d->n], &d->why))
            d->n++;
}

static void json_devices(const char *backend, const struct devices *d, struct sl_buf *b)
{
    sl_buf_printf(b, "{\"backend\":\"%s\",\"plugin\":%s,\"devices\":[", backend,
                  d->loaded ? "true" : "false");
    for (uint32_t i = 0; i < d->n; i++) {
        const struct sl_cuda_device *x = &d->at[i];
        sl_buf_puts(b, i ? ",{\"name\":" : "{\"name\":");
        sl_buf_json_str(b, x->name, strlen(x->name));
        sl_buf_printf(b, ",\"arch\":\"%s\",\"memory_bytes\":%llu,\"memory_free_bytes\":%llu}",
                      x->arch, (unsigned long long)x->total_bytes,
                      (unsigned long long)x->free_bytes);
    }
    sl_buf_puts(b, "],\"problem\":");
    sl_buf_json_str(b, d->why.msg, strlen(d->why.msg));
    sl_buf_puts(b, "}");
}

static void print_devices(const char *backend, const struct devices *d, struct sl_buf *b)
{
    if (!d->n)
        sl_buf_printf(b, "%-8s none: %s\n", backend, d->why.msg);
    for (uint32_t i = 0; i < d->n; i++)
        sl_buf_printf(b, "%-8s device %u: %s, %s, %.1f GiB, %.1f GiB of it free\n", backend, i,
                      d->at[i].name, d->at[i].arch, (double)d->at[i].total_bytes / (1 << 30),
                      (double)d->at[i].free_bytes / (1 << 30));
}

static void list_devices(bool json, struct sl_buf *b)
{
    struct devices d[N_PLUGINS];
    for (size_t i = 0; i < N_PLUGINS; i++)
        look(plugins[i], &d[i]);
    if (json)
        sl_buf_printf(b, ",\"gpus\":%u,\"backends\":[", d[0].n);
    for (size_t i = 0; i < N_PLUGINS; i++) {
        if (json)
            sl_buf_puts(b, i ? "," : "");
        (json ? json_devices : print_devices)(plugins[i], &d[i], b);
    }
    if (json)
        sl_buf_puts(b, "]");
}

static int examine(bool json)
{
    struct sl_backend *cpu = NULL;
    struct sl_err err;
    struct sl_cpu_config cfg = {.isa = SL_ISA_AUTO, .n_threads = 1};
    enum sl_status s = sl_cpu_open(&cfg, &cpu, &err);
    long cores = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);
    unsigned long long memory =
        (unsigned long long)pages * (unsigned long long)sysconf(_SC_PAGESIZE);
    char name[128];
    struct sl_buf b = {0};
    sl_cpu_model_name(name, sizeof name);
    if (json) {
        sl_buf_puts(&b, "{\"version\":\"" SLUICE_VERSION "\",\"cpu\":");
        sl_buf_json_str(&b, name, strlen(name));
        sl_buf_printf(&b, ",\"cores\":%ld,\"memory_bytes\":%llu,\"isas\":[", cores, memory);
        print_isas(&b, true);
        sl_buf_printf(&b, "],\"isa\":\"%s\",\"cpu_serving\":%s", s ? "none" : sl_isa_name(cpu->isa),
                      s ? "false" : "true");
        list_devices(true, &b);
        sl_buf_puts(&b, "}\n");
    } else {
        sl_buf_printf(&b, "cpu      %s, %ld cores, %.1f GiB\nisas     ", name, cores,
                      (double)memory / (1 << 30));
        print_isas(&b, false);
        sl_buf_printf(&b, "\nin force %s\n", s ? "none" : sl_isa_name(cpu->isa));
        list_devices(false, &b);
        sl_buf_puts(&b, s ? "CPU serving does not work here\n" : "CPU serving works here\n");
    }
    fwrite(b.data, 1, b.len, stdout);
    sl_buf_free(&b);
    if (cpu)
        cpu->ops->close(cpu);
    return s ? sl_cli_fail(&err) : 0;
}

const struct sl_verb_doc sl_doc_doctor = {.verb = "doctor",
                                          .operands = "",
                                          .summary = "what this machine can do",
                                          .table = table,
                                          .n_table = sizeof table / sizeof *table};

int sl_cli_doctor(int argc, char **argv, char *const *env)
{
    struct doctor_options o;
    struct sl_arena arena;
    size_t n;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("doctor", "", table, sizeof table / sizeof *table, argc, argv, env,
                            &arena, &o, NULL, 0, &n, &done);
    if (!done)
        rc = examine(o.json);
    sl_arena_free(&arena);
    return rc;
}
