/* `sluice inspect MODEL`: what is in a model file. */
#include "cli.h"

#include <sluice/files/gguf.h>
#include <sluice/model/file.h>

#include <stddef.h>
#include <stdio.h>

struct inspect_options {
    bool json, all;
};

static const struct sl_option table[] = {
    {.name = "json",
     .kind = SL_OPT_FLAG,
     .offset = offsetof(struct inspect_options, json),
     .help = "one JSON object instead of lines"},
    {.name = "all",
     .kind = SL_OPT_FLAG,
     .offset = offsetof(struct inspect_options, all),
     .help = "every tensor, and strings in full"},
};

static enum sl_status inspect(const char *operand, const struct inspect_options *o,
                              char *const *env, struct sl_buf *out, struct sl_err *err)
{
    struct sl_buf path = {0};
    struct sl_gguf *g = NULL;
    enum sl_status status = sl_store_find(operand, env, &path, err);
    if (!status)
        status = sl_gguf_open(path.data, &g, err);
    if (!status)
        sl_model_describe(
            g, &(struct sl_model_describe){.path = path.data, .json = o->json, .all = o->all}, out);
    if (!status && out->failed)
        status = sl_fail(err, SL_NO_MEMORY, "inspect: the description is too large");
    sl_gguf_close(g);
    sl_buf_free(&path);
    return status;
}

const struct sl_verb_doc sl_doc_inspect = {.verb = "inspect",
                                           .operands = "[MODEL]",
                                           .summary = "what is in a model file",
                                           .table = table,
                                           .n_table = sizeof table / sizeof *table};

int sl_cli_inspect(int argc, char **argv, char *const *env)
{
    struct sl_arena arena;
    sl_arena_init(&arena, (size_t)1 << 20);
    struct inspect_options o = {0};
    const char *operands[1] = {NULL};
    size_t n_operands = 0;
    bool done = false;
    int code = sl_cli_options("inspect", "[MODEL]", table, sizeof table / sizeof *table, argc, argv,
                              env, &arena, &o, operands, 1, &n_operands, &done);
    if (!done) {
        struct sl_buf out = {0};
        struct sl_err err = {0};
        if (inspect(n_operands ? operands[0] : NULL, &o, env, &out, &err))
            code = sl_cli_fail(&err);
        else if (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0)
            code = 1;
        sl_buf_free(&out);
    }
    sl_arena_free(&arena);
    return code;
}
