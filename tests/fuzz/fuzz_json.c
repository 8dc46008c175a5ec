/* Fuzz target: the body of an OpenAI request. Strict JSON, then every field through the same reader
 * that the server uses; what parses prints and parses again. */
#include "call.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the field readers ask of a node. */
uint32_t node_n_vocab(const struct node *n)
{
    (void)n;
    return 49152;
}

const char *node_model_name(const struct node *n)
{
    (void)n;
    return "m";
}

static void parse_request(struct sl_json *json, bool is_chat)
{
    struct sl_err err = {0};
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        abort();
    sl_arena_init(&c->mem, CALL_MEM_MAX);
    c->json = json;
    enum sl_status s = openai_parse(c, is_chat, &err);
    if (s && (!err.msg[0] || sl_status_row(s)->http < 400 || sl_status_row(s)->http >= 500))
        abort();
    if (!s && (c->req.gen.n < 1 || c->req.gen.n > SL_LIMIT_n_choices ||
               c->req.gen.n_stop > SL_LIMIT_stop_strings))
        abort();
    sl_arena_free(&c->mem);
    free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_json *json = NULL, *again = NULL;
    struct sl_err err = {0};
    struct sl_buf text = {0};
    if (sl_json_parse((const char *)data, size, &json, &err)) {
        if (!err.msg[0])
            abort();
        return 0;
    }
    sl_json_print(json, &text);
    if (sl_json_parse(text.data, text.len, &again, &err))
        abort();
    parse_request(json, true);
    parse_request(json, false);
    sl_json_free(json);
    sl_json_free(again);
    sl_buf_free(&text);
    return 0;
}
