/* A model in this process, run request by request. */
#include "session.h"
#include "followers.h"
#include "session_ranks.h"

#include <sluice/base/time.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void sl_cli_progress(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    if (total)
        fprintf(stderr, "\rloading %3u %%%s", (unsigned)(100 * done / total),
                done == total ? "\r             \r" : "");
}

static void name_of(const char *path, char *out, size_t size)
{
    const char *base = strrchr(path, '/');
    snprintf(out, size, "%s", base ? base + 1 : path);
    char *end = strstr(out, ".gguf");
    if (end && !end[5])
        *end = 0;
}

enum sl_status session_open(struct session *s, const char *operand,
                            const struct engine_options *options, struct sl_engine_config *cfg,
                            char *const *env, struct sl_err *err)
{
    *s = (struct session){0};
    struct sl_buf path = {0};
    enum sl_status r = sl_store_find(operand, env, &path, err);
    if (!r)
        r = sl_gguf_open(path.data, &s->gguf, err);
    if (!r)
        r = sl_tokenizer_open(s->gguf, &s->tokenizer, err);
    if (!r)
        r = sl_store_sha256(path.data, env, s->sha256, err);
    if (r)
        goto out;
    name_of(path.data, s->name, sizeof s->name);
    struct sl_str source = sl_tokenizer_template(s->tokenizer);
    if (source.len && sl_template_open(source.data, source.len, &s->template, NULL))
        s->template = NULL;
    size_t n_stops;
    cfg->gguf = s->gguf;
    cfg->stop_ids = sl_tokenizer_stops(s->tokenizer, &n_stops);
    cfg->n_stop_ids = (uint32_t)n_stops;
    cfg->weights_sha256 = s->sha256;
    if (isatty(2))
        cfg->progress = sl_cli_progress;
    if (engine_options_ranks(options) > 1)
        r = session_ranks_open(s, options, path.data, cfg, env, err);
    if (!r)
        r = sl_engine_open(cfg, &s->engine, err);
    if (!r && s->ranks)
        r = session_ranks_wait(s, err);
out:
    sl_buf_free(&path);
    if (r)
        session_close(s);
    return r;
}

void session_close(struct session *s)
{
    session_ranks_stop(s);
    if (s->engine)
        sl_engine_close(s->engine);
    session_ranks_close(s);
    if (s->template)
        sl_template_close(s->template);
    if (s->tokenizer)
        sl_tokenizer_close(s->tokenizer);
    if (s->gguf)
        sl_gguf_close(s->gguf);
    sl_tokens_free(&s->tokens);
    *s = (struct session){0};
}

static const char *reason_of(enum sl_end end)
{
    return end == SL_END_LENGTH ? "length" : end == SL_END_STOP ? "stop" : "error";
}

/* Takes one output; true at the end of the request. */
static bool take(struct session *s, const struct sl_engine_out *o, struct sl_detok *detok,
                 struct sl_buf *text, struct session_result *out, uint64_t start)
{
    if (o->has_token) {
        if (!out->n_tokens++)
            out->first_token_ns = sl_now_ns() - start;
        sl_tokens_push(&s->tokens, o->token.token);
        sl_detok_push(detok, s->tokenizer, o->token.token, text);
    }
    if (!o->end)
        return false;
    sl_detok_finish(detok, text);
    out->finish_reason = reason_of(o->end);
    return true;
}

enum sl_status session_generate(struct session *s, const struct sl_tokens *prompt,
                                const struct sl_sampling *sampling,
                                void (*on_text)(void *ctx, const char *text, size_t len), void *ctx,
                                struct session_result *out, struct sl_err *err)
{
    static uint64_t next_id;
    struct sl_engine_request q = {.seq = {.id = ++next_id,
                                          .tokens = prompt->ids,
                                          .n_tokens = (uint32_t)prompt->n,
                                          .n_prompt = (uint32_t)prompt->n,
                                          .max_new = sampling->max_tokens},
                                  .sampling = *sampling};
    uint64_t start = sl_now_ns();
    *out = (struct session_result){.finish_reason = "error"};
    s->tokens.n = 0;
    enum sl_status r = sl_engine_submit(s->engine, &q, err);
    if (r)
        return r;
    struct sl_detok detok = {.skip_special = true};
    struct sl_buf text = {0};
    for (bool ended = false; !ended && !r;) {
        struct sl_engine_step *step = sl_engine_poll(s->engine);
        if (!step) {
            sl_engine_wait(s->engine, 1000);
            continue;
        }
        for (uint32_t i = 0; i < step->n_outs && !ended; i++) {
            ended = take(s, &step->outs[i], &detok, &text, out, start);
            if (step->outs[i].end == SL_END_ERROR)
                r = sl_fail(err, step->outs[i].status, "the request could not be computed: %s",
                            sl_status_row(step->outs[i].status)->text);
        }
        sl_engine_release(s->engine, step);
        if (text.len && on_text)
            on_text(ctx, text.data, text.len);
        sl_buf_clear(&text);
    }
    sl_buf_free(&text);
    out->total_ns = sl_now_ns() - start;
    return r;
}
