/* sluice tokenize: the tokens of a text. */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize_options {
    const char *model, *text, *file;
    bool json, no_special, bos;
};

static const struct sl_option table[] = {
    {"model", SL_OPT_STRING, offsetof(struct tokenize_options, model), NULL, 0, 0, NULL, "FILE",
     "model file (default: the default model)"},
    {"text", SL_OPT_STRING, offsetof(struct tokenize_options, text), NULL, 0, 0, NULL, "TEXT",
     "the text (default: standard input)"},
    {"json", SL_OPT_FLAG, offsetof(struct tokenize_options, json), "false", 0, 0, NULL, NULL,
     "print JSON"},
    {"plain", SL_OPT_FLAG, offsetof(struct tokenize_options, no_special), "false", 0, 0, NULL, NULL,
     "special tokens in the text are ordinary text"},
    {"bos", SL_OPT_FLAG, offsetof(struct tokenize_options, bos), "false", 0, 0, NULL, NULL,
     "put BOS first if the model wants it"},
};

static void read_input(struct sl_buf *out)
{
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0)
        sl_buf_append(out, block, n);
}

static void print_tokens(const struct sl_tokenizer *t, const struct sl_tokens *ids, bool json)
{
    struct sl_buf b = {0};
    if (json)
        sl_buf_printf(&b, "{\"count\":%zu,\"tokens\":[", ids->n);
    for (size_t i = 0; i < ids->n; i++) {
        struct sl_str s = sl_token_bytes(t, ids->ids[i]);
        if (json) {
            sl_buf_printf(&b, i ? ",%u" : "%u", ids->ids[i]);
        } else {
            sl_buf_printf(&b, "%6u ", ids->ids[i]);
            sl_buf_json_str(&b, s.data, s.len);
            sl_buf_putc(&b, '\n');
        }
    }
    if (json)
        sl_buf_puts(&b, "]}\n");
    if (b.len)
        fwrite(b.data, 1, b.len, stdout);
    sl_buf_free(&b);
}

static enum sl_status tokenize(const struct tokenize_options *o, char *const *env,
                               struct sl_err *err)
{
    struct sl_buf path = {0}, input = {0};
    struct sl_gguf *g = NULL;
    struct sl_tokenizer *t = NULL;
    struct sl_tokens ids = {0};
    unsigned flags = (o->no_special ? 0u : SL_TOK_SPECIAL) | (o->bos ? SL_TOK_ADD_BOS : 0u);
    enum sl_status r;
    if ((r = sl_store_find(o->model, env, &path, err)) || (r = sl_gguf_open(path.data, &g, err)) ||
        (r = sl_tokenizer_open(g, &t, err)))
        goto out;
    if (o->text)
        sl_buf_puts(&input, o->text);
    else
        read_input(&input);
    r = sl_tokenize(t, input.data ? input.data : "", input.len, flags, SIZE_MAX, &ids, err);
    if (!r)
        print_tokens(t, &ids, o->json);
out:
    sl_tokens_free(&ids);
    if (t)
        sl_tokenizer_close(t);
    if (g)
        sl_gguf_close(g);
    sl_buf_free(&path);
    sl_buf_free(&input);
    return r;
}

const struct sl_verb_doc sl_doc_tokenize = {.verb = "tokenize",
                                            .operands = "",
                                            .summary = "tokens of a text",
                                            .table = table,
                                            .n_table = sizeof table / sizeof *table};

int sl_cli_tokenize(int argc, char **argv, char *const *env)
{
    struct tokenize_options o;
    struct sl_arena arena;
    struct sl_err err;
    size_t n;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("tokenize", "", table, sizeof table / sizeof *table, argc, argv, env,
                            &arena, &o, NULL, 0, &n, &done);
    if (!done && tokenize(&o, env, &err))
        rc = sl_cli_fail(&err);
    sl_arena_free(&arena);
    return rc;
}
