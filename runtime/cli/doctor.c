/* sluice doctor: what this machine can do. Exit 0 whenever CPU serving works. */
#include "cli.h"

#include <sluice/base/machine.h>
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
        sl_buf_printf(&b, "],\"isa\":\"%s\",\"cpu_serving\":%s,\"gpus\":0}\n",
                      s ? "none" : sl_isa_name(cpu->isa), s ? "false" : "true");
    } else {
        sl_buf_printf(&b, "cpu      %s, %ld cores, %.1f GiB\nisas     ", name, cores,
                      (double)memory / (1 << 30));
        print_isas(&b, false);
        sl_buf_printf(&b, "\nin force %s\ngpu      none (this build serves on CPU)\n%s\n",
                      s ? "none" : sl_isa_name(cpu->isa),
                      s ? "CPU serving does not work here" : "CPU serving works here");
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
