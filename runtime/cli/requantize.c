/* `requantize IN OUT`: the same model in another element type, for benchmarks. */
#include "cli.h"

#include <sluice/files/gguf.h>
#include <sluice/model/file.h>

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

struct requantize_options {
    const char *dtype, *embed_dtype;
};

static const struct sl_option table[] = {
    {.name = "dtype",
     .kind = SL_OPT_CHOICE,
     .offset = offsetof(struct requantize_options, dtype),
     .def = "q8_0",
     .choices = "f32|f16|bf16|q8_0|q4_0|q4_1",
     .help = "element type of the matrices"},
    {.name = "embed-dtype",
     .kind = SL_OPT_CHOICE,
     .offset = offsetof(struct requantize_options, embed_dtype),
     .choices = "f32|f16|bf16|q8_0|q4_0|q4_1",
     .help = "of embedding and head; as --dtype when not given"},
};

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    unsigned *shown = ctx, percent = total ? (unsigned)(done * 100 / total) : 100;
    if (percent != *shown)
        fprintf(stderr, "\rrequantize: %3u %%%s", percent, percent == 100 ? "\n" : "");
    *shown = percent;
}

static enum sl_status requantize(const char *in, const char *path,
                                 const struct requantize_options *o, struct sl_err *err)
{
    enum sl_dtype dtype, embed;
    const char *embed_text = o->embed_dtype ? o->embed_dtype : o->dtype;
    if (!sl_dtype_parse(o->dtype, &dtype) || !sl_dtype_parse(embed_text, &embed))
        return sl_fail(err, SL_USAGE, "requantize: unknown type");
    struct sl_gguf *g = NULL;
    enum sl_status status = sl_gguf_open(in, &g, err);
    unsigned shown = UINT32_MAX;
    if (!status)
        status = sl_model_requantize(g, path, dtype, embed,
                                     isatty(STDERR_FILENO) ? on_progress : NULL, &shown, err);
    sl_gguf_close(g);
    return status;
}

int sl_cli_requantize(int argc, char **argv, char *const *env)
{
    struct sl_arena arena;
    sl_arena_init(&arena, (size_t)1 << 20);
    struct requantize_options o = {0};
    const char *operands[2] = {NULL};
    size_t n_operands = 0;
    bool done = false;
    struct sl_err err = {0};
    int code = sl_cli_options("bench requantize", "IN OUT", table, sizeof table / sizeof *table,
                              argc, argv, env, &arena, &o, operands, 2, &n_operands, &done);
    if (!done && n_operands != 2) {
        sl_fail(&err, SL_USAGE, "requantize: needs an input and an output file");
        code = sl_cli_fail(&err);
    } else if (!done && requantize(operands[0], operands[1], &o, &err)) {
        code = sl_cli_fail(&err);
    }
    sl_arena_free(&arena);
    return code;
}
