/* POST /tokenize and /detokenize, in vLLM's shape ({prompt|messages} -> {tokens}) and llama.cpp's
 * ({content} -> {tokens}); the key tells which. */
#include "call.h"

static enum sl_status check_object(const struct call *c, struct sl_err *err)
{
    if (sl_json_kind(c->json) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "the body must be a JSON object, not %s",
                       json_kind_name(c->json));
    return SL_OK;
}

static void put_ids(struct sl_buf *b, const struct sl_tokens *t)
{
    sl_buf_putc(b, '[');
    for (size_t i = 0; i < t->n; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", t->ids[i]);
    sl_buf_putc(b, ']');
}

static void put_strs(struct sl_buf *b, const struct sl_tokenizer *t, const struct sl_tokens *ids)
{
    sl_buf_puts(b, ",\"token_strs\":[");
    for (size_t i = 0; i < ids->n; i++) {
        if (i)
            sl_buf_putc(b, ',');
        out_token_text(b, t, ids->ids[i]);
    }
    sl_buf_putc(b, ']');
}

static enum sl_status tokens_of(struct call *c, bool *native, struct sl_tokens *out,
                                struct sl_err *err)
{
    const struct sl_json *o = c->json, *messages = field_get(o, "messages");
    struct sl_str text = {0};
    bool bos = true, generation = true, special = true, add_special = false;
    enum sl_status r;
    *native = field_get(o, "content") == NULL;
    if ((r = field_str(o, "model", &c->req.model, err)) || (r = openai_check_model(c, err)) ||
        (r = field_bool(o, "add_special_tokens", &bos, err)) ||
        (r = field_bool(o, "add_special", &add_special, err)) ||
        (r = field_bool(o, "parse_special", &special, err)) ||
        (r = field_bool(o, "add_generation_prompt", &generation, err)) ||
        (r = field_str(o, *native ? "prompt" : "content", &text, err)))
        return r;
    if (messages)
        return chat_tokens(c, messages, field_get(o, "chat_template_kwargs"), generation, false,
                           out, err);
    if (!text.data)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt or messages is required");
    unsigned flags =
        (special ? SL_TOK_SPECIAL : 0u) | ((*native ? bos : add_special) ? SL_TOK_ADD_BOS : 0u);
    return sl_tokenize(node_tokenizer(c->node), text.data, text.len, flags, SIZE_MAX, out, err);
}

static enum sl_status tokenize(struct call *c, struct sl_err *err)
{
    struct sl_tokens ids = {0};
    bool native = true, strs = false;
    enum sl_status r = check_object(c, err);
    if (!r && !(r = field_bool(c->json, "return_token_strs", &strs, err)))
        r = tokens_of(c, &native, &ids, err);
    if (!r) {
        struct sl_buf *b = &c->out;
        if (native)
            sl_buf_printf(b, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", ids.n,
                          node_max_len(c->node));
        else
            sl_buf_puts(b, "{\"tokens\":");
        put_ids(b, &ids);
        if (strs)
            put_strs(b, node_tokenizer(c->node), &ids);
        sl_buf_putc(b, '}');
    }
    sl_tokens_free(&ids);
    return r;
}

static enum sl_status detokenize(struct call *c, struct sl_err *err)
{
    enum sl_status r = check_object(c, err);
    if (r || (r = field_str(c->json, "model", &c->req.model, err)) ||
        (r = openai_check_model(c, err)))
        return r;
    const struct sl_json *tokens = field_get(c->json, "tokens");
    if (!tokens || sl_json_kind(tokens) != SL_JSON_ARRAY)
        return sl_fail_param(err, SL_INVALID, "tokens", "tokens must be an array of token ids");
    struct sl_detok d = {.skip_special = false};
    struct sl_buf text = {0};
    for (size_t i = 0; i < sl_json_len(tokens); i++) {
        const struct sl_json *x = sl_json_at(tokens, i);
        if (sl_json_kind(x) != SL_JSON_INT || sl_json_int(x) < 0 ||
            sl_json_int(x) >= node_n_vocab(c->node)) {
            sl_buf_free(&text);
            return sl_fail_param(err, SL_INVALID, "tokens",
                                 "tokens[%zu] must be a token id below %u", i,
                                 node_n_vocab(c->node));
        }
        sl_detok_push(&d, node_tokenizer(c->node), (uint32_t)sl_json_int(x), &text);
    }
    sl_detok_finish(&d, &text);
    sl_buf_puts(&c->out, "{\"prompt\":");
    sl_buf_json_str(&c->out, text.data ? text.data : "", text.len);
    sl_buf_puts(&c->out, ",\"content\":");
    sl_buf_json_str(&c->out, text.data ? text.data : "", text.len);
    sl_buf_putc(&c->out, '}');
    sl_buf_free(&text);
    return SL_OK;
}

static enum sl_status answer(struct call *c, struct sl_err *err)
{
    (void)err;
    call_answer(c, 200, "application/json", &c->out);
    return SL_OK;
}

const struct dialect dialect_tokenize = {.prepare = tokenize, .start = answer, .needs_model = true};
const struct dialect dialect_detokenize = {
    .prepare = detokenize, .start = answer, .needs_model = true};
