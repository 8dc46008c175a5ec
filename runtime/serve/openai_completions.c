/* POST /v1/completions: prompts as text or token ids. Text may spell special tokens; ids are taken
 * as they are, without BOS. */
#include "call.h"

static enum sl_status read_ids(const struct call *c, const struct sl_json *ids,
                               struct sl_tokens *out, struct sl_err *err)
{
    for (size_t i = 0; i < sl_json_len(ids); i++) {
        const struct sl_json *x = sl_json_at(ids, i);
        if (sl_json_kind(x) != SL_JSON_INT || sl_json_int(x) < 0 ||
            sl_json_int(x) >= node_n_vocab(c->node))
            return sl_fail_param(err, SL_INVALID, "prompt",
                                 "prompt token %zu must be a token id below %u", i,
                                 node_n_vocab(c->node));
        sl_tokens_push(out, (uint32_t)sl_json_int(x));
    }
    return out->failed ? sl_fail(err, SL_NO_MEMORY, "no memory for the prompt") : SL_OK;
}

static enum sl_status read_prompt(struct call *c, const struct sl_json *v, uint32_t i,
                                  struct sl_err *err)
{
    struct sl_tokens *out = &c->req.prompts[i];
    if (sl_json_kind(v) == SL_JSON_ARRAY)
        return read_ids(c, v, out, err);
    if (sl_json_kind(v) != SL_JSON_STRING)
        return sl_fail_param(err, SL_INVALID, "prompt",
                             "prompt %u must be text or token ids, not %s", i, json_kind_name(v));
    struct sl_str text = sl_json_str(v);
    unsigned flags = SL_TOK_SPECIAL | (c->req.add_special_tokens ? SL_TOK_ADD_BOS : 0u);
    c->req.prompt_text[i] = text;
    return name_prompt("prompt",
                       sl_tokenize(node_tokenizer(c->node), text.data, text.len, flags,
                                   node_max_len(c->node), out, err),
                       err);
}

static bool is_list_of_prompts(const struct sl_json *v)
{
    if (sl_json_kind(v) != SL_JSON_ARRAY || !sl_json_len(v))
        return false;
    enum sl_json_kind first = sl_json_kind(sl_json_at(v, 0));
    return first == SL_JSON_STRING || first == SL_JSON_ARRAY;
}

static enum sl_status prepare(struct call *c, struct sl_err *err)
{
    enum sl_status r = openai_parse(c, false, err);
    if (r)
        return r;
    const struct sl_json *v = c->req.prompt;
    if (!v)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt is required");
    bool list = is_list_of_prompts(v);
    size_t n = list ? sl_json_len(v) : 1;
    if (n > SL_LIMIT_prompt_batch)
        return sl_fail_param(err, SL_INVALID, "prompt", "at most %d prompts, not %zu",
                             SL_LIMIT_prompt_batch, n);
    c->req.prompts = SL_ARENA_ARRAY(&c->mem, struct sl_tokens, n);
    c->req.prompt_text = SL_ARENA_ARRAY(&c->mem, struct sl_str, n);
    if (!c->req.prompts || !c->req.prompt_text)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %zu prompts", n);
    c->req.n_prompts = (uint32_t)n;
    for (uint32_t i = 0; i < n && !r; i++)
        r = read_prompt(c, list ? sl_json_at(v, i) : v, i, err);
    return r;
}

const struct dialect dialect_completions = {.prepare = prepare,
                                            .start = openai_start,
                                            .keep_alive = openai_keep_alive,
                                            .needs_model = true};
