/* sluice complete and sluice chat: a model in this process, or a server named by --url. */
#include "engine_options.h"
#include "session.h"

#include <sluice/base/json.h>
#include <sluice/base/time.h>
#include <sluice/text/chain.h>
#include <sluice/transport/http_client.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct talk_options {
    struct engine_options engine;
    const char *prompt, *url, *system, *config;
    int64_t max_tokens, seed, top_k;
    double temperature, top_p;
    bool json;
};

#define ROW(...)        CLI_OPTION_ROW(struct talk_options, __VA_ARGS__)
#define ENGINE_ROW(...) ENGINE_OPTION_ROW(struct talk_options, engine, __VA_ARGS__)

#define TALK_OPTION_TABLE(X)                                                                       \
    X("url", SL_OPT_STRING, url, NULL, 0, 0, NULL, "URL",                                          \
      "a running server; without it a model is opened")                                            \
    X("temperature", SL_OPT_REAL, temperature, "1", 0, 100, NULL, "X", "0 is greedy")              \
    X("top-p", SL_OPT_REAL, top_p, "1", 0, 1, NULL, "X", "nucleus")                                \
    X("top-k", SL_OPT_INT, top_k, "0", -1, 2147483647, NULL, "N", "0: off")                        \
    X("seed", SL_OPT_INT, seed, "0", 0, 9e15, NULL, "N", "of the random numbers")                  \
    X("config", SL_OPT_STRING, config, NULL, 0, 0, NULL, "FILE", "YAML file of options")

static const struct sl_option complete_table[] = {
    TALK_OPTION_TABLE(ROW) ENGINE_OPTION_TABLE(ENGINE_ROW)
        ROW("prompt", SL_OPT_STRING, prompt, NULL, 0, 0, NULL, "TEXT", "the text to complete")
            ROW("max-tokens", SL_OPT_INT, max_tokens, "16", 1, 1048576, NULL, "N", "tokens at most")
                ROW("json", SL_OPT_FLAG, json, "false", 0, 0, NULL, NULL,
                    "print an OpenAI completion object")};
static const struct sl_option chat_table[] = {
    TALK_OPTION_TABLE(ROW) ENGINE_OPTION_TABLE(ENGINE_ROW)
        ROW("prompt", SL_OPT_STRING, prompt, NULL, 0, 0, NULL, "TEXT",
            "one message instead of a dialogue")
            ROW("system", SL_OPT_STRING, system, NULL, 0, 0, NULL, "TEXT", "the system message")
                ROW("max-tokens", SL_OPT_INT, max_tokens, "512", 1, 1048576, NULL, "N",
                    "tokens of an answer at most")};

static struct sl_sampling sampling_of(const struct talk_options *o)
{
    struct sl_sampling s = sl_sampling_default();
    s.temperature = (float)o->temperature;
    s.top_p = (float)o->top_p;
    s.top_k = (int32_t)o->top_k;
    s.seed = (uint64_t)o->seed;
    s.max_tokens = (uint32_t)o->max_tokens;
    return s;
}

static void keep_text(void *ctx, const char *text, size_t len)
{
    sl_buf_append(ctx, text, len);
}

static void print_text(void *ctx, const char *text, size_t len)
{
    if (ctx)
        sl_buf_append(ctx, text, len);
    fwrite(text, 1, len, stdout);
    fflush(stdout);
}

/* --- complete --------------------------------------------------------------------------------- */

/* `,"sluice":{...}`: what `sluice audit` needs, as a server gives it with return_chain. */
static void put_proof(struct sl_buf *b, const struct session *s, const struct sl_tokens *prompt,
                      const struct sl_sampling *sampling)
{
    struct sl_engine_info info;
    struct sl_chain chain;
    sl_engine_info(s->engine, &info);
    struct sl_str class_name = sl_str_of(info.class_name);
    sl_chain_start(&chain, class_name, prompt->ids, (uint32_t)prompt->n, sampling, 0);
    for (size_t i = 0; i < s->tokens.n; i++)
        sl_chain_add(&chain, s->tokens.ids[i]);
    struct sl_proof p = {.class_name = class_name,
                         .sampling = sampling,
                         .tokens = s->tokens.ids,
                         .n_tokens = (uint32_t)s->tokens.n,
                         .chain = &chain};
    sl_buf_puts(b, ",\"sluice\":{\"version\":1,\"stop\":[],\"include_stop\":false,"
                   "\"skip_special\":true,\"echo\":false,\"prompts\":[[");
    for (size_t i = 0; i < prompt->n; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", prompt->ids[i]);
    sl_buf_puts(b, "]],\"choices\":[");
    sl_proof_print(b, &p);
    sl_buf_puts(b, "]}");
}

static void print_completion(const struct session *s, const struct sl_buf *text,
                             const struct sl_tokens *prompt, const struct sl_sampling *sampling,
                             const struct session_result *r)
{
    struct sl_buf b = {0};
    size_t n_prompt = prompt->n;
    sl_buf_printf(&b,
                  "{\"id\":\"cmpl-%016llx\",\"object\":\"text_completion\",\"created\":%llu,"
                  "\"model\":",
                  (unsigned long long)sl_entropy_u64(),
                  (unsigned long long)(sl_unix_ns() / SL_S_NS));
    sl_buf_json_str(&b, s->name, strlen(s->name));
    sl_buf_puts(&b, ",\"choices\":[{\"index\":0,\"text\":");
    sl_buf_json_str(&b, text->data ? text->data : "", text->len);
    sl_buf_printf(&b,
                  ",\"logprobs\":null,\"finish_reason\":\"%s\"}],\"usage\":{\"prompt_tokens\":%zu,"
                  "\"completion_tokens\":%u,\"total_tokens\":%zu}",
                  r->finish_reason, n_prompt, r->n_tokens, n_prompt + r->n_tokens);
    put_proof(&b, s, prompt, sampling);
    sl_buf_puts(&b, "}\n");
    fwrite(b.data, 1, b.len, stdout);
    sl_buf_free(&b);
}

static enum sl_status complete_here(const struct talk_options *o, const char *operand,
                                    char *const *env, struct sl_err *err)
{
    struct sl_engine_config cfg;
    struct session s = {0};
    struct session_result r;
    struct sl_tokens prompt = {0};
    struct sl_buf text = {0};
    struct sl_sampling sampling = sampling_of(o);
    enum sl_status st = engine_options_config(&o->engine, 1, &cfg, err);
    if (st || (st = session_open(&s, operand, &o->engine, &cfg, env, err)))
        return st;
    st = sl_tokenize(s.tokenizer, o->prompt, strlen(o->prompt), SL_TOK_SPECIAL | SL_TOK_ADD_BOS,
                     SIZE_MAX, &prompt, err);
    if (!st)
        st = session_generate(&s, &prompt, &sampling, o->json ? keep_text : print_text,
                              o->json ? &text : NULL, &r, err);
    if (!st && o->json)
        print_completion(&s, &text, &prompt, &sampling, &r);
    else if (!st)
        putchar('\n');
    sl_buf_free(&text);
    sl_tokens_free(&prompt);
    session_close(&s);
    return st;
}

static void put_sampling(struct sl_buf *b, const struct talk_options *o)
{
    sl_buf_printf(b,
                  ",\"max_tokens\":%lld,\"temperature\":%g,\"top_p\":%g,\"top_k\":%lld,"
                  "\"seed\":%lld",
                  (long long)o->max_tokens, o->temperature, o->top_p, (long long)o->top_k,
                  (long long)o->seed);
}

/* POSTs to the server; the answer's JSON, or its error's message. */
static enum sl_status ask_server(const char *base, const char *path, const struct sl_buf *body,
                                 struct sl_buf *answer, struct sl_json **json, struct sl_err *err)
{
    struct sl_buf url = {0};
    long status = 0;
    sl_buf_printf(&url, "%s%s", base, path);
    enum sl_status s = sl_http_post(url.data, "application/json", body->data, body->len, 600000,
                                    &status, answer, err);
    sl_buf_free(&url);
    if (s || (s = sl_json_parse_answer(answer->data ? answer->data : "", answer->len, json, err)))
        return s;
    if (status == 200)
        return SL_OK;
    const struct sl_json *e = sl_json_get(*json, "error"),
                         *m = e ? sl_json_get(e, "message") : NULL;
    struct sl_str text = m && sl_json_kind(m) == SL_JSON_STRING ? sl_json_str(m) : SL_STR("?");
    return sl_fail(err, SL_FAILED, "server answered %ld: %.*s", status,
                   (int)(text.len < 160 ? text.len : 160), text.data);
}

static enum sl_status complete_there(const struct talk_options *o, struct sl_err *err)
{
    struct sl_buf body = {0}, answer = {0};
    struct sl_json *json = NULL;
    sl_buf_puts(&body, "{\"prompt\":");
    sl_buf_json_str(&body, o->prompt, strlen(o->prompt));
    put_sampling(&body, o);
    sl_buf_putc(&body, '}');
    enum sl_status s = ask_server(o->url, "/v1/completions", &body, &answer, &json, err);
    const struct sl_json *choices = s ? NULL : sl_json_get(json, "choices");
    const struct sl_json *c =
        choices && sl_json_kind(choices) == SL_JSON_ARRAY && sl_json_len(choices)
            ? sl_json_get(sl_json_at(choices, 0), "text")
            : NULL;
    if (!s && o->json)
        printf("%s\n", answer.data);
    else if (!s && c && sl_json_kind(c) == SL_JSON_STRING) {
        print_text(NULL, sl_json_str(c).data, sl_json_str(c).len); /* a NUL of it, too */
        putchar('\n');
    } else if (!s)
        s = sl_fail(err, SL_PEER, "the server's answer holds no text");
    sl_json_free(json);
    sl_buf_free(&body);
    sl_buf_free(&answer);
    return s;
}

/* --- chat ------------------------------------------------------------------------------------- */

/* A model may write the byte 0, and a terminal send it; no request may hold it. */
static void put_without_nul(struct sl_buf *out, const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i])
            sl_buf_putc(out, text[i]);
        else
            sl_buf_puts(out, "\xef\xbf\xbd"); /* U+FFFD */
}

/* The dialogue so far as the members of a JSON array. With a tokenizer, for a template here, the
 * text is guarded; a server guards what it gets itself. */
static void add_message(struct sl_buf *messages, const struct session *s, const char *role,
                        const char *text, size_t len)
{
    struct sl_buf clean = {0}, guarded = {0};
    put_without_nul(&clean, text, len);
    if (s)
        sl_chat_guard(s->tokenizer, (struct sl_str){clean.data, clean.len}, &guarded);
    const struct sl_buf *content = s ? &guarded : &clean;
    sl_buf_printf(messages, "%s{\"role\":\"%s\",\"content\":", messages->len ? "," : "", role);
    sl_buf_json_str(messages, content->data ? content->data : "", content->len);
    sl_buf_putc(messages, '}');
    sl_buf_free(&clean);
    sl_buf_free(&guarded);
}

static enum sl_status render(const struct session *s, const struct sl_buf *messages,
                             struct sl_tokens *out, struct sl_err *err)
{
    struct sl_buf vars = {0}, text = {0};
    struct sl_json *json = NULL;
    if (!s->template)
        return sl_fail(err, SL_MODEL, "the model has no usable chat template; use complete");
    sl_buf_printf(
        &vars, "{\"messages\":[%s],\"add_generation_prompt\":true,\"bos_token\":", messages->data);
    uint32_t bos = sl_tokenizer_bos(s->tokenizer), eos = sl_tokenizer_eos(s->tokenizer);
    struct sl_str b = bos == SL_NO_TOKEN ? SL_STR("") : sl_token_bytes(s->tokenizer, bos);
    struct sl_str e = eos == SL_NO_TOKEN ? SL_STR("") : sl_token_bytes(s->tokenizer, eos);
    sl_buf_json_str(&vars, b.data, b.len);
    sl_buf_puts(&vars, ",\"eos_token\":");
    sl_buf_json_str(&vars, e.data, e.len);
    sl_buf_printf(&vars, ",\"tools\":null,\"documents\":null,\"__now\":%llu}",
                  (unsigned long long)(sl_unix_ns() / SL_S_NS));
    enum sl_status st = sl_json_parse(vars.data, vars.len, &json, err);
    if (!st)
        st = sl_template_render(s->template, json, &text, err);
    struct sl_arena mem;
    size_t *places, n_places;
    sl_arena_init(&mem, (size_t)64 << 20);
    if (!st)
        st = sl_chat_unguard(&text, &mem, &places, &n_places, err);
    if (!st)
        st = sl_tokenize_guarded(s->tokenizer, text.data ? text.data : "", text.len, SL_TOK_SPECIAL,
                                 places, n_places, SIZE_MAX, out, err);
    sl_arena_free(&mem);
    if (json)
        sl_json_free(json);
    sl_buf_free(&vars);
    sl_buf_free(&text);
    return st;
}

static enum sl_status answer_here(struct session *s, const struct talk_options *o,
                                  struct sl_buf *messages, struct sl_err *err)
{
    struct sl_tokens prompt = {0};
    struct sl_buf text = {0};
    struct session_result r;
    struct sl_sampling sampling = sampling_of(o);
    enum sl_status st = render(s, messages, &prompt, err);
    if (!st)
        st = session_generate(s, &prompt, &sampling, print_text, &text, &r, err);
    putchar('\n');
    add_message(messages, s, "assistant", text.data ? text.data : "", text.len);
    sl_tokens_free(&prompt);
    sl_buf_free(&text);
    return st;
}

static enum sl_status answer_there(const struct talk_options *o, struct sl_buf *messages,
                                   struct sl_err *err)
{
    struct sl_buf body = {0}, answer = {0};
    struct sl_json *json = NULL;
    sl_buf_printf(&body, "{\"messages\":[%s]", messages->data);
    put_sampling(&body, o);
    sl_buf_putc(&body, '}');
    enum sl_status s = ask_server(o->url, "/v1/chat/completions", &body, &answer, &json, err);
    const struct sl_json *choices = s ? NULL : sl_json_get(json, "choices"), *m = NULL, *c = NULL;
    if (choices && sl_json_kind(choices) == SL_JSON_ARRAY && sl_json_len(choices))
        m = sl_json_get(sl_json_at(choices, 0), "message");
    c = m ? sl_json_get(m, "content") : NULL;
    if (c && sl_json_kind(c) == SL_JSON_STRING) {
        print_text(NULL, sl_json_str(c).data, sl_json_str(c).len);
        putchar('\n');
        add_message(messages, NULL, "assistant", sl_json_str(c).data, sl_json_str(c).len);
    }
    sl_json_free(json);
    sl_buf_free(&body);
    sl_buf_free(&answer);
    return s;
}

static enum sl_status dialogue(struct session *s, const struct talk_options *o, struct sl_err *err)
{
    struct sl_buf messages = {0};
    char *line = NULL;
    size_t size = 0;
    enum sl_status st = SL_OK;
    if (o->system)
        add_message(&messages, s, "system", o->system, strlen(o->system));
    while (!st) {
        if (o->prompt) {
            add_message(&messages, s, "user", o->prompt, strlen(o->prompt));
        } else {
            if (isatty(0))
                fputs("> ", stderr);
            ssize_t n = getline(&line, &size, stdin);
            if (n < 0)
                break;
            if (n && line[n - 1] == '\n')
                n--;
            if (!n)
                continue;
            add_message(&messages, s, "user", line, (size_t)n);
        }
        st = s ? answer_here(s, o, &messages, err) : answer_there(o, &messages, err);
        if (o->prompt)
            break;
    }
    free(line);
    sl_buf_free(&messages);
    return st;
}

static enum sl_status chat_here(const struct talk_options *o, const char *operand, char *const *env,
                                struct sl_err *err)
{
    struct sl_engine_config cfg;
    struct session s = {0};
    enum sl_status st = engine_options_config(&o->engine, 1, &cfg, err);
    if (st || (st = session_open(&s, operand, &o->engine, &cfg, env, err)))
        return st;
    st = dialogue(&s, o, err);
    session_close(&s);
    return st;
}

/* --- verbs ------------------------------------------------------------------------------------ */

const struct sl_verb_doc sl_doc_complete = {.verb = "complete",
                                            .operands = "[MODEL]",
                                            .summary = "complete one prompt",
                                            .table = complete_table,
                                            .n_table =
                                                sizeof complete_table / sizeof *complete_table};

int sl_cli_complete(int argc, char **argv, char *const *env)
{
    struct talk_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    const char *operand = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("complete", "[MODEL] ", complete_table,
                            sizeof complete_table / sizeof *complete_table, argc, argv, env, &arena,
                            &o, &operand, 1, &n, &done);
    if (!done) {
        enum sl_status s;
        if (!o.prompt)
            s = sl_fail_param(&err, SL_USAGE, "prompt", "--prompt is missing");
        else if (o.url)
            s = complete_there(&o, &err);
        else
            s = complete_here(&o, n ? operand : NULL, env, &err);
        rc = s ? sl_cli_fail(&err) : 0;
    }
    sl_arena_free(&arena);
    return rc;
}

const struct sl_verb_doc sl_doc_chat = {.verb = "chat",
                                        .operands = "[MODEL]",
                                        .summary = "talk to a model in the terminal",
                                        .table = chat_table,
                                        .n_table = sizeof chat_table / sizeof *chat_table};

int sl_cli_chat(int argc, char **argv, char *const *env)
{
    struct talk_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    const char *operand = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("chat", "[MODEL] ", chat_table, sizeof chat_table / sizeof *chat_table,
                            argc, argv, env, &arena, &o, &operand, 1, &n, &done);
    if (!done) {
        enum sl_status s =
            o.url ? dialogue(NULL, &o, &err) : chat_here(&o, n ? operand : NULL, env, &err);
        rc = s ? sl_cli_fail(&err) : 0;
    }
    sl_arena_free(&arena);
    return rc;
}
