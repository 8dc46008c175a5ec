/* Messages to prompt tokens by the model's own chat template; what the caller wrote is guarded, so
 * that it never becomes a special token (chat.h). */
#include "call.h"

#include <stdlib.h>
#include <string.h>

static void put_guarded(struct sl_buf *out, const struct sl_tokenizer *t, struct sl_str s)
{
    struct sl_buf text = {0};
    sl_chat_guard(t, s, &text);
    sl_buf_json_str(out, text.data ? text.data : "", text.len);
    out->failed |= text.failed;
    sl_buf_free(&text);
}

/* A value as JSON with every string guarded. Depth is bounded by the JSON parser. */
static void put_value(struct sl_buf *out, const struct sl_tokenizer *t, const struct sl_json *v)
{
    enum sl_json_kind kind = sl_json_kind(v);
    if (kind == SL_JSON_STRING) {
        put_guarded(out, t, sl_json_str(v));
    } else if (kind == SL_JSON_ARRAY) {
        sl_buf_putc(out, '[');
        for (size_t i = 0; i < sl_json_len(v); i++) {
            if (i)
                sl_buf_putc(out, ',');
            put_value(out, t, sl_json_at(v, i));
        }
        sl_buf_putc(out, ']');
    } else if (kind == SL_JSON_OBJECT) {
        void *iter = NULL;
        struct sl_str key;
        const struct sl_json *x;
        bool first = true;
        sl_buf_putc(out, '{');
        while (sl_json_next(v, &iter, &key, &x)) {
            if (!first)
                sl_buf_putc(out, ',');
            first = false;
            put_guarded(out, t, key);
            sl_buf_putc(out, ':');
            put_value(out, t, x);
        }
        sl_buf_putc(out, '}');
    } else {
        sl_json_print(v, out);
    }
}

/* A string, or an array of {"type":"text","text":...} joined by newlines. */
static enum sl_status put_content(struct sl_buf *out, const struct sl_tokenizer *t,
                                  const struct sl_json *v, size_t i, struct sl_err *err)
{
    struct sl_buf text = {0};
    if (!v || sl_json_kind(v) == SL_JSON_STRING) {
        put_guarded(out, t, v ? sl_json_str(v) : SL_STR(""));
        return SL_OK;
    }
    if (sl_json_kind(v) != SL_JSON_ARRAY)
        return sl_fail_param(err, SL_INVALID, "messages",
                             "messages[%zu].content must be a string or an array, not %s", i,
                             json_kind_name(v));
    for (size_t k = 0; k < sl_json_len(v); k++) {
        const struct sl_json *part = sl_json_at(v, k), *type = NULL, *s = NULL;
        if (sl_json_kind(part) == SL_JSON_OBJECT) {
            type = sl_json_get(part, "type");
            s = sl_json_get(part, "text");
        }
        if (!type || sl_json_kind(type) != SL_JSON_STRING ||
            !sl_str_eqz(sl_json_str(type), "text") || !s || sl_json_kind(s) != SL_JSON_STRING) {
            sl_buf_free(&text);
            return sl_fail_param(err, SL_INVALID, "messages",
                                 "messages[%zu].content[%zu] must be a text part", i, k);
        }
        if (k)
            sl_buf_putc(&text, '\n');
        sl_buf_append(&text, sl_json_str(s).data, sl_json_str(s).len);
    }
    put_guarded(out, t, (struct sl_str){text.data ? text.data : "", text.len});
    sl_buf_free(&text);
    return SL_OK;
}

static bool known_role(struct sl_str role)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (sl_str_eqz(role, roles[i]))
            return true;
    return false;
}

static enum sl_status put_message(struct sl_buf *out, const struct sl_tokenizer *t,
                                  const struct sl_json *m, size_t i, struct sl_err *err)
{
    if (sl_json_kind(m) != SL_JSON_OBJECT)
        return sl_fail_param(err, SL_INVALID, "messages", "messages[%zu] must be an object, not %s",
                             i, json_kind_name(m));
    const struct sl_json *role = field_get(m, "role"), *content = field_get(m, "content");
    if (!role || sl_json_kind(role) != SL_JSON_STRING)
        return sl_fail_param(err, SL_INVALID, "messages", "messages[%zu].role must be a string", i);
    struct sl_str name = sl_json_str(role);
    if (sl_str_eqz(name, "developer"))
        name = SL_STR("system");
    if (!known_role(name))
        return sl_fail_param(err, SL_INVALID, "messages",
                             "messages[%zu].role must be system, developer, user, assistant or "
                             "tool, not '%.*s'",
                             i, (int)(name.len < 32 ? name.len : 32), name.data);
    if (!content && !field_get(m, "tool_calls"))
        return sl_fail_param(err, SL_INVALID, "messages", "messages[%zu].content is missing", i);
    sl_buf_puts(out, "{\"role\":");
    sl_buf_json_str(out, name.data, name.len);
    sl_buf_puts(out, ",\"content\":");
    enum sl_status r = put_content(out, t, content, i, err);
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *x;
    while (!r && sl_json_next(m, &iter, &key, &x)) {
        if (sl_str_eqz(key, "role") || sl_str_eqz(key, "content") ||
            sl_json_kind(x) == SL_JSON_NULL)
            continue;
        sl_buf_putc(out, ',');
        put_guarded(out, t, key);
        sl_buf_putc(out, ':');
        put_value(out, t, x);
    }
    sl_buf_putc(out, '}');
    return r;
}

static enum sl_status put_messages(struct sl_buf *out, const struct sl_tokenizer *t,
                                   const struct sl_json *messages, struct sl_err *err)
{
    if (!messages || sl_json_kind(messages) != SL_JSON_ARRAY || !sl_json_len(messages))
        return sl_fail_param(err, SL_INVALID, "messages", "messages must be a non-empty array");
    if (sl_json_len(messages) > SL_LIMIT_messages)
        return sl_fail_param(err, SL_INVALID, "messages", "at most %d messages, not %zu",
                             SL_LIMIT_messages, sl_json_len(messages));
    sl_buf_puts(out, "\"messages\":[");
    for (size_t i = 0; i < sl_json_len(messages); i++) {
        if (i)
            sl_buf_putc(out, ',');
        enum sl_status r = put_message(out, t, sl_json_at(messages, i), i, err);
        if (r)
            return r;
    }
    sl_buf_putc(out, ']');
    return SL_OK;
}

static void put_token(struct sl_buf *out, const char *name, const struct sl_tokenizer *t,
                      uint32_t id)
{
    struct sl_str s = id == SL_NO_TOKEN ? SL_STR("") : sl_token_bytes(t, id);
    sl_buf_printf(out, ",\"%s\":", name);
    sl_buf_json_str(out, s.data, s.len);
}

/* The template's globals as one JSON object. */
static enum sl_status put_vars(struct sl_buf *out, const struct call *c,
                               const struct sl_json *messages, const struct sl_json *kwargs,
                               bool add_generation_prompt, struct sl_err *err)
{
    static const char *const own[] = {"messages",  "add_generation_prompt",
                                      "bos_token", "eos_token",
                                      "tools",     "documents",
                                      "__now",     NULL};
    const struct sl_tokenizer *t = node_tokenizer(c->node);
    sl_buf_putc(out, '{');
    enum sl_status r = put_messages(out, t, messages, err);
    if (r)
        return r;
    sl_buf_printf(out, ",\"add_generation_prompt\":%s", add_generation_prompt ? "true" : "false");
    put_token(out, "bos_token", t, sl_tokenizer_bos(t));
    put_token(out, "eos_token", t, sl_tokenizer_eos(t));
    sl_buf_printf(out,
                  ",\"__now\":%llu,\"tools\":null,\"documents\":", (unsigned long long)c->created);
    if (c->req.documents)
        put_value(out, t, c->req.documents);
    else
        sl_buf_puts(out, "null");
    if (kwargs && sl_json_kind(kwargs) != SL_JSON_OBJECT)
        return sl_fail_param(err, SL_INVALID, "chat_template_kwargs",
                             "chat_template_kwargs must be an object, not %s",
                             json_kind_name(kwargs));
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *x;
    while (kwargs && sl_json_next(kwargs, &iter, &key, &x)) {
        for (size_t i = 0; own[i]; i++)
            if (sl_str_eqz(key, own[i]))
                return sl_fail_param(err, SL_INVALID, "chat_template_kwargs",
                                     "chat_template_kwargs must not set %s", own[i]);
        sl_buf_putc(out, ',');
        sl_buf_json_str(out, key.data, key.len);
        sl_buf_putc(out, ':');
        put_value(out, t, x);
    }
    sl_buf_putc(out, '}');
    return out->failed ? sl_fail(err, SL_NO_MEMORY, "no memory for the messages") : SL_OK;
}

/* The text ends with the last message's content, so that the model goes on with it. */
static enum sl_status cut_after_final(struct sl_buf *text, const struct sl_json *messages,
                                      struct sl_err *err)
{
    const struct sl_json *last = sl_json_at(messages, sl_json_len(messages) - 1);
    const struct sl_json *content = field_get(last, "content");
    struct sl_str s =
        content && sl_json_kind(content) == SL_JSON_STRING ? sl_json_str(content) : SL_STR("");
    while (s.len && strchr(" \t\r\n", s.data[s.len - 1]))
        s.len--;
    for (size_t i = text->len; s.len && i >= s.len; i--)
        if (!memcmp(text->data + i - s.len, s.data, s.len)) {
            text->len = i;
            return SL_OK;
        }
    return sl_fail_param(err, SL_INVALID, "continue_final_message",
                         "the template does not show the final message as it was given");
}

enum sl_status chat_tokens(struct call *c, const struct sl_json *messages,
                           const struct sl_json *kwargs, bool add_generation_prompt,
                           bool continue_final, struct sl_tokens *out, struct sl_err *err)
{
    const struct sl_template *tmpl = node_template(c->node);
    struct sl_buf vars = {0}, text = {.cap_bytes = SL_LIMIT_template_output_bytes};
    struct sl_json *json = NULL;
    size_t *places, n_places;
    enum sl_status r;
    if (!tmpl)
        return sl_fail(err, SL_INVALID,
                       "the model has no usable chat template; use "
                       "/v1/completions");
    if (continue_final && add_generation_prompt)
        return sl_fail_param(err, SL_INVALID, "continue_final_message",
                             "continue_final_message needs add_generation_prompt false");
    if ((r = put_vars(&vars, c, messages, kwargs, add_generation_prompt, err)) ||
        (r = sl_json_parse(vars.data, vars.len, &json, err)) ||
        (r = sl_template_render(tmpl, json, &text, err)) ||
        (r = sl_chat_unguard(&text, &c->mem, &places, &n_places, err)) ||
        (continue_final && (r = cut_after_final(&text, messages, err))))
        goto out;
    r = name_prompt("messages",
                    sl_tokenize_guarded(node_tokenizer(c->node), text.data ? text.data : "",
                                        text.len, SL_TOK_SPECIAL, places, n_places,
                                        node_max_len(c->node), out, err),
                    err);
out:
    if (json)
        sl_json_free(json);
    sl_buf_free(&vars);
    sl_buf_free(&text);
    return r;
}
