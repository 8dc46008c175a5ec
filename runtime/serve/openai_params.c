/* OpenAI request fields, with vLLM's common extensions: which are known, what they may hold.
 *
 * No field that would change the answer is ever ignored: those not built yet are refused by name,
 * unknown ones are refused with a suggestion. */
#include "call.h"

#include <sluice/base/options.h>
#include <stdlib.h>
#include <string.h>

/* Taken by this file. */
static const char *const known[] = {"model",
                                    "stream",
                                    "stream_options",
                                    "max_tokens",
                                    "n",
                                    "stop",
                                    "seed",
                                    "temperature",
                                    "top_p",
                                    "top_k",
                                    "min_p",
                                    "typical_p",
                                    "presence_penalty",
                                    "frequency_penalty",
                                    "repetition_penalty",
                                    "repeat_penalty",
                                    "logit_bias",
                                    "logprobs",
                                    "ignore_eos",
                                    "min_tokens",
                                    "stop_token_ids",
                                    "return_token_ids",
                                    "return_chain",
                                    "priority",
                                    "cache_salt",
                                    "include_stop_str_in_output",
                                    "skip_special_tokens",
                                    "request_id",
                                    "user",
                                    "session_id",
                                    "timeout_ms",
                                    NULL};
static const char *const known_chat[] = {"messages",
                                         "top_logprobs",
                                         "max_completion_tokens",
                                         "add_generation_prompt",
                                         "continue_final_message",
                                         "chat_template_kwargs",
                                         "documents",
                                         NULL};
static const char *const known_text[] = {"prompt", "echo", "add_special_tokens", NULL};

/* Of /v1/completions, not of sampling. */
static const char *const dialect_only[] = {
    "model",      "stream", "stream_options", "n", "logprobs", "prompt", "return_token_ids",
    "request_id", "echo",   "return_chain",   NULL};

/* Of no consequence for the answer. */
static const char *const harmless[] = {"metadata",
                                       "store",
                                       "service_tier",
                                       "safety_identifier",
                                       "prompt_cache_key",
                                       "prompt_cache_retention",
                                       "session_id",
                                       "verbosity",
                                       NULL};

/* The field's, but not built: refused unless their value asks for nothing. */
static const char *const unsupported[] = {"tools",
                                          "tool_choice",
                                          "parallel_tool_calls",
                                          "functions",
                                          "function_call",
                                          "response_format",
                                          "structured_outputs",
                                          "suffix",
                                          "best_of",
                                          "audio",
                                          "modalities",
                                          "prediction",
                                          "reasoning_effort",
                                          "web_search_options",
                                          "use_beam_search",
                                          "length_penalty",
                                          "prompt_logprobs",
                                          "allowed_token_ids",
                                          "bad_words",
                                          "truncate_prompt_tokens",
                                          "chat_template",
                                          "logits_processors",
                                          "kv_transfer_params",
                                          "prompt_embeds",
                                          "grammar",
                                          "json_schema",
                                          "guided_json",
                                          "guided_regex",
                                          "guided_choice",
                                          "guided_grammar",
                                          "guided_json_object",
                                          "guided_decoding_backend",
                                          "guided_whitespace_pattern",
                                          NULL};

static bool among(const char *const *names, struct sl_str key)
{
    for (; *names; names++)
        if (sl_str_eqz(key, *names))
            return true;
    return false;
}

/* Values that ask for what happens anyway. */
static bool asks_nothing(struct sl_str key, const struct sl_json *v)
{
    enum sl_json_kind kind = sl_json_kind(v);
    if (kind == SL_JSON_NULL)
        return true;
    if (sl_str_eqz(key, "response_format") && kind == SL_JSON_OBJECT) {
        const struct sl_json *type = sl_json_get(v, "type");
        return type && sl_json_kind(type) == SL_JSON_STRING &&
               sl_str_eqz(sl_json_str(type), "text");
    }
    if (sl_str_eqz(key, "tools") || sl_str_eqz(key, "functions"))
        return kind == SL_JSON_ARRAY && !sl_json_len(v);
    if (sl_str_eqz(key, "tool_choice"))
        return kind == SL_JSON_STRING && sl_str_eqz(sl_json_str(v), "none");
    if (sl_str_eqz(key, "best_of"))
        return kind == SL_JSON_INT && sl_json_int(v) == 1;
    if (sl_str_eqz(key, "use_beam_search"))
        return kind == SL_JSON_BOOL && !sl_json_bool(v);
    return sl_str_eqz(key, "parallel_tool_calls");
}

static enum sl_status refuse_unknown(struct sl_str key, bool is_chat, struct sl_err *err)
{
    char name[56];
    size_t len = key.len < sizeof name - 1 ? key.len : sizeof name - 1;
    memcpy(name, key.data, len);
    name[len] = 0;
    const char *near = sl_suggest(name, known);
    if (!near)
        near = sl_suggest(name, is_chat ? known_chat : known_text);
    if (near)
        return sl_fail_param(err, SL_INVALID, name, "unknown field '%s'; did you mean '%s'?", name,
                             near);
    return sl_fail_param(err, SL_INVALID, name, "unknown field '%s'", name);
}

static enum sl_status check_keys(const struct sl_json *o, bool is_chat, struct sl_err *err)
{
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *value;
    while (sl_json_next(o, &iter, &key, &value)) {
        if (among(known, key) || among(is_chat ? known_chat : known_text, key) ||
            among(harmless, key))
            continue;
        if (!among(unsupported, key))
            return refuse_unknown(key, is_chat, err);
        if (!asks_nothing(key, value)) {
            char name[56];
            size_t len = key.len < sizeof name - 1 ? key.len : sizeof name - 1;
            memcpy(name, key.data, len);
            name[len] = 0;
            sl_fail_param(err, SL_INVALID, name, "%s is not supported", name);
            return SL_INVALID;
        }
    }
    return SL_OK;
}

static enum sl_status read_sampling(const struct sl_json *o, struct sl_sampling *s,
                                    struct sl_err *err)
{
    int64_t top_k = s->top_k, min_tokens = 0;
    enum sl_status r;
    if ((r = field_real(o, "temperature", 0, 100, &s->temperature, err)) ||
        (r = field_real(o, "top_p", 0, 1, &s->top_p, err)) ||
        (r = field_real(o, "min_p", 0, 1, &s->min_p, err)) ||
        (r = field_real(o, "typical_p", 0, 1, &s->typical_p, err)) ||
        (r = field_real(o, "presence_penalty", -2, 2, &s->presence_penalty, err)) ||
        (r = field_real(o, "frequency_penalty", -2, 2, &s->frequency_penalty, err)) ||
        (r = field_real(o, "repeat_penalty", 0, 100, &s->repetition_penalty, err)) ||
        (r = field_real(o, "repetition_penalty", 0, 100, &s->repetition_penalty, err)) ||
        (r = field_int(o, "top_k", -1, INT32_MAX, &top_k, err)) ||
        (r = field_int(o, "min_tokens", 0, INT32_MAX, &min_tokens, err)) ||
        (r = field_bool(o, "ignore_eos", &s->ignore_eos, err)))
        return r;
    s->top_k = (int32_t)top_k;
    s->min_tokens = (uint32_t)min_tokens;
    return SL_OK;
}

static enum sl_status read_stop(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, "stop");
    struct gen_params *p = &c->req.gen;
    if (!v)
        return SL_OK;
    bool one = sl_json_kind(v) == SL_JSON_STRING;
    if (!one && sl_json_kind(v) != SL_JSON_ARRAY)
        return sl_fail_param(err, SL_INVALID, "stop",
                             "stop must be a string or an array of strings, not %s",
                             json_kind_name(v));
    size_t n = one ? 1 : sl_json_len(v);
    if (n > SL_LIMIT_stop_strings)
        return sl_fail_param(err, SL_INVALID, "stop", "at most %d stop strings, not %zu",
                             SL_LIMIT_stop_strings, n);
    struct sl_str *stop = SL_ARENA_ARRAY(&c->mem, struct sl_str, n ? n : 1);
    if (!stop)
        return sl_fail(err, SL_NO_MEMORY, "no memory for stop strings");
    for (size_t i = 0; i < n; i++) {
        const struct sl_json *s = one ? v : sl_json_at(v, i);
        if (sl_json_kind(s) != SL_JSON_STRING)
            return sl_fail_param(err, SL_INVALID, "stop", "stop[%zu] must be a string, not %s", i,
                                 json_kind_name(s));
        stop[i] = sl_json_str(s);
    }
    p->stop = stop;
    p->n_stop = (uint32_t)n;
    return SL_OK;
}

static enum sl_status read_stop_ids(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, "stop_token_ids");
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_ARRAY)
        return sl_fail_param(err, SL_INVALID, "stop_token_ids",
                             "stop_token_ids must be an array, not %s", json_kind_name(v));
    size_t n = sl_json_len(v);
    if (n > SL_LIMIT_stop_token_ids)
        return sl_fail_param(err, SL_INVALID, "stop_token_ids",
                             "at most %d stop_token_ids, not %zu", SL_LIMIT_stop_token_ids, n);
    uint32_t *ids = SL_ARENA_ARRAY(&c->mem, uint32_t, n ? n : 1);
    for (size_t i = 0; ids && i < n; i++) {
        const struct sl_json *x = sl_json_at(v, i);
        if (sl_json_kind(x) != SL_JSON_INT || sl_json_int(x) < 0 ||
            sl_json_int(x) >= node_n_vocab(c->node))
            return sl_fail_param(err, SL_INVALID, "stop_token_ids",
                                 "stop_token_ids[%zu] must be a token id below %u", i,
                                 node_n_vocab(c->node));
        ids[i] = (uint32_t)sl_json_int(x);
    }
    c->req.gen.sampling.stop_ids = ids;
    c->req.gen.sampling.n_stop_ids = ids ? (uint32_t)n : 0;
    return ids ? SL_OK : sl_fail(err, SL_NO_MEMORY, "no memory for stop_token_ids");
}

/* {"50256": -100, ...}: keys are token ids in decimal. */
static enum sl_status read_bias(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, "logit_bias");
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_OBJECT)
        return sl_fail_param(err, SL_INVALID, "logit_bias", "logit_bias must be an object, not %s",
                             json_kind_name(v));
    size_t n = sl_json_len(v), k = 0;
    if (n > SL_LIMIT_logit_bias)
        return sl_fail_param(err, SL_INVALID, "logit_bias",
                             "at most %d logit_bias entries, not %zu", SL_LIMIT_logit_bias, n);
    struct sl_logit_bias *bias = SL_ARENA_ARRAY(&c->mem, struct sl_logit_bias, n ? n : 1);
    if (!bias)
        return sl_fail(err, SL_NO_MEMORY, "no memory for logit_bias");
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *x;
    while (sl_json_next(v, &iter, &key, &x)) {
        char text[12] = {0}, *end;
        if (key.len && key.len < sizeof text)
            memcpy(text, key.data, key.len);
        unsigned long id = strtoul(text, &end, 10);
        bool digits = text[0] >= '0' && text[0] <= '9' && !*end;
        if (!digits || id >= node_n_vocab(c->node))
            return sl_fail_param(
                err, SL_INVALID, "logit_bias", "logit_bias key '%.*s' must be a token id below %u",
                (int)(key.len < 32 ? key.len : 32), key.data, node_n_vocab(c->node));
        bool number = sl_json_kind(x) == SL_JSON_INT || sl_json_kind(x) == SL_JSON_REAL;
        if (!number || !(sl_json_real(x) >= -100 && sl_json_real(x) <= 100))
            return sl_fail_param(err, SL_INVALID, "logit_bias",
                                 "logit_bias of token %lu must be in [-100, 100]", id);
        bias[k++] = (struct sl_logit_bias){(uint32_t)id, (float)sl_json_real(x)};
    }
    c->req.gen.sampling.bias = bias;
    c->req.gen.sampling.n_bias = (uint32_t)k;
    return SL_OK;
}

static enum sl_status read_stream_options(struct call *c, const struct sl_json *o,
                                          struct sl_err *err)
{
    const struct sl_json *v = field_get(o, "stream_options");
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_OBJECT)
        return sl_fail_param(err, SL_INVALID, "stream_options",
                             "stream_options must be an object, not %s", json_kind_name(v));
    if (!c->req.stream)
        return sl_fail_param(err, SL_INVALID, "stream_options",
                             "stream_options is only allowed with stream");
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *x;
    while (sl_json_next(v, &iter, &key, &x))
        if (!sl_str_eqz(key, "include_usage") && !sl_str_eqz(key, "include_obfuscation"))
            return sl_fail_param(err, SL_INVALID, "stream_options",
                                 "stream_options.%.*s is not supported",
                                 (int)(key.len < 40 ? key.len : 40), key.data);
    return field_bool(v, "include_usage", &c->req.include_usage, err);
}

static enum sl_status read_logprobs(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    struct openai_req *q = &c->req;
    struct sl_sampling *s = &q->gen.sampling;
    enum sl_status r;
    if (!q->is_chat) {
        r = field_int(o, "logprobs", 0, SL_LIMIT_top_logprobs, &q->completion_logprobs, err);
        s->want_logprob = q->completion_logprobs >= 0;
        s->n_logprobs = s->want_logprob ? (uint32_t)q->completion_logprobs : 0;
        return r;
    }
    if ((r = field_bool(o, "logprobs", &q->chat_logprobs, err)) ||
        (r = field_int(o, "top_logprobs", 0, SL_LIMIT_top_logprobs, &q->top_logprobs, err)))
        return r;
    if (q->top_logprobs > 0 && !q->chat_logprobs)
        return sl_fail_param(err, SL_INVALID, "top_logprobs",
                             "top_logprobs is only allowed with logprobs");
    s->want_logprob = q->chat_logprobs;
    s->n_logprobs = q->chat_logprobs && q->top_logprobs > 0 ? (uint32_t)q->top_logprobs : 0;
    return SL_OK;
}

static enum sl_status read_counts(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    struct openai_req *q = &c->req;
    int64_t n = 1, seed = 0, priority = 0, timeout_ms = 0;
    enum sl_status r;
    if ((r = field_int(o, "n", 1, SL_LIMIT_n_choices, &n, err)) ||
        (r = field_int(o, "seed", INT64_MIN, INT64_MAX, &seed, err)) ||
        (r = field_int(o, "priority", INT32_MIN, INT32_MAX, &priority, err)) ||
        (r = field_int(o, "timeout_ms", 1, 86400000, &timeout_ms, err)) ||
        (r = field_int(o, "max_tokens", 1, INT32_MAX, &q->max_tokens, err)))
        return r;
    if (q->is_chat &&
        (r = field_int(o, "max_completion_tokens", 1, INT32_MAX, &q->max_tokens, err)))
        return r;
    q->gen.n = (uint32_t)n;
    q->gen.has_seed = field_get(o, "seed") != NULL;
    q->gen.sampling.seed = (uint64_t)seed;
    q->gen.priority = (int32_t)priority;
    q->gen.deadline_ms = (uint64_t)timeout_ms;
    q->gen.sampling.max_tokens = q->max_tokens >= 0 ? (uint32_t)q->max_tokens : q->is_chat ? 0 : 16;
    return SL_OK;
}

static enum sl_status read_switches(struct call *c, const struct sl_json *o, struct sl_err *err)
{
    struct openai_req *q = &c->req;
    bool skip_special = true;
    enum sl_status r;
    if ((r = field_bool(o, "stream", &q->stream, err)) ||
        (r = field_bool(o, "return_token_ids", &q->return_token_ids, err)) ||
        (r = field_bool(o, "return_chain", &q->return_chain, err)) ||
        (r = field_bool(o, "include_stop_str_in_output", &q->gen.include_stop, err)) ||
        (r = field_bool(o, "skip_special_tokens", &skip_special, err)) ||
        (r = field_str(o, "model", &q->model, err)) || (r = field_str(o, "user", &q->user, err)) ||
        (r = field_str(o, "request_id", &q->request_id, err)) ||
        (r = field_str(o, "session_id", &q->gen.session, err)) ||
        (r = field_str(o, "cache_salt", &q->gen.cache_salt, err)))
        return r;
    q->gen.keep_special = !skip_special;
    if (field_get(o, "cache_salt") && (!q->gen.cache_salt.len || q->gen.cache_salt.len > 1024))
        return sl_fail_param(err, SL_INVALID, "cache_salt", "cache_salt must have 1 to 1024 bytes");
    if (!q->is_chat) {
        if ((r = field_bool(o, "add_special_tokens", &q->add_special_tokens, err)))
            return r;
        return field_bool(o, "echo", &q->echo, err);
    }
    if ((r = field_bool(o, "add_generation_prompt", &q->add_generation_prompt, err)))
        return r;
    return field_bool(o, "continue_final_message", &q->continue_final_message, err);
}

enum sl_status openai_check_model(struct call *c, struct sl_err *err)
{
    struct sl_str m = c->req.model;
    if (!m.len || sl_str_eqz(m, node_model_name(c->node)))
        return SL_OK;
    sl_fail_param(err, SL_NO_MODEL, "model",
                  "the model '%.*s' does not exist; this server has '%s'",
                  (int)(m.len < 64 ? m.len : 64), m.data, node_model_name(c->node));
    return SL_NO_MODEL;
}

enum sl_status openai_parse(struct call *c, bool is_chat, struct sl_err *err)
{
    const struct sl_json *o = c->json;
    struct openai_req *q = &c->req;
    *q = (struct openai_req){.is_chat = is_chat,
                             .completion_logprobs = -1,
                             .top_logprobs = -1,
                             .max_tokens = -1,
                             .add_generation_prompt = true,
                             .add_special_tokens = true};
    q->gen.sampling = sl_sampling_default();
    if (sl_json_kind(o) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "the body must be a JSON object, not %s",
                       json_kind_name(o));
    enum sl_status r;
    if ((r = check_keys(o, is_chat, err)) || (r = read_switches(c, o, err)) ||
        (r = openai_check_model(c, err)) || (r = read_counts(c, o, err)) ||
        (r = read_sampling(o, &q->gen.sampling, err)) || (r = read_stop(c, o, err)) ||
        (r = read_stop_ids(c, o, err)) || (r = read_bias(c, o, err)) ||
        (r = read_stream_options(c, o, err)) || (r = read_logprobs(c, o, err)))
        return r;
    q->prompt = field_get(o, "prompt");
    q->messages = field_get(o, "messages");
    q->template_kwargs = field_get(o, "chat_template_kwargs");
    q->documents = field_get(o, "documents");
    return SL_OK;
}

enum sl_status openai_parse_sampling(struct call *c, struct sl_err *err)
{
    for (const char *const *name = dialect_only; *name; name++)
        if (sl_json_get(c->json, *name))
            return sl_fail_param(err, SL_INVALID, *name, "%s is not supported here", *name);
    return openai_parse(c, false, err);
}
