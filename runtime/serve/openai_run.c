/* The life /v1/completions and /v1/chat/completions share: start the generations, gather or stream
 * what comes back, end.
 *
 * Choices are numbered prompt by prompt: index = prompt * n + choice. */
#include "call.h"

#include <sluice/base/time.h>
#include <stdlib.h>
#include <string.h>

static struct choice *choice_of(struct part *p, uint32_t i)
{
    return &p->call->choices[p->index * p->call->req.gen.n + i];
}

static uint32_t choice_index(const struct part *p, uint32_t i)
{
    return p->index * p->call->req.gen.n + i;
}

/* --- gathering -------------------------------------------------------------------------------- */

/* The four parallel arrays of a completion's logprobs. */
static void gather_completion_logprobs(struct call *c, struct choice *ch, const struct gen_delta *d)
{
    const struct sl_tokenizer *t = node_tokenizer(c->node);
    for (uint32_t i = 0; i < d->n_tokens; i++) {
        const struct sl_sampled *s = &d->tokens[i];
        const char *sep = ch->n_logprobs++ ? "," : "";
        sl_buf_puts(&ch->logprobs, sep);
        out_token_text(&ch->logprobs, t, s->token);
        sl_buf_puts(&ch->logprobs_b, sep);
        sl_buf_json_f32(&ch->logprobs_b, s->logprob);
        sl_buf_puts(&ch->logprobs_c, sep);
        out_text_logprobs(&ch->logprobs_c, t, s);
        sl_buf_printf(&ch->logprobs_d, "%s%zu", sep, ch->text_offset);
        ch->text_offset += sl_token_bytes(t, s->token).len;
    }
}

static void gather(struct part *p, const struct gen_delta *d)
{
    struct call *c = p->call;
    struct choice *ch = choice_of(p, d->choice);
    sl_buf_append(&ch->text, d->text.data, d->text.len);
    if (c->req.gen.sampling.want_logprob && c->req.is_chat)
        out_chat_logprobs(&ch->logprobs, node_tokenizer(c->node), d->tokens, d->n_tokens);
    if (c->req.gen.sampling.want_logprob && !c->req.is_chat)
        gather_completion_logprobs(c, ch, d);
    for (uint32_t i = 0; c->req.return_token_ids && i < d->n_tokens; i++)
        sl_buf_printf(&ch->token_ids, ch->token_ids.len ? ",%u" : "%u", d->tokens[i].token);
}

static void note_end(struct part *p, const struct gen_end *e)
{
    struct choice *ch = choice_of(p, e->choice);
    ch->finish_reason = e->finish_reason;
    ch->reached.phase = SL_EVENT_ENDED;
    if (p->call->req.return_chain)
        out_proof_choice(&ch->proof, choice_index(p, e->choice), p->index, e);
    if (e->stop)
        sl_buf_json_str(&ch->stop_reason, e->stop->data, e->stop->len);
    else if (e->stop_token != SL_NO_TOKEN)
        sl_buf_printf(&ch->stop_reason, "%u", e->stop_token);
}

/* --- writing ---------------------------------------------------------------------------------- */

static const char *buf_text(const struct sl_buf *b)
{
    return b->data && b->len ? b->data : "";
}

static void put_logprobs(struct sl_buf *b, const struct call *c, struct choice *ch)
{
    if (!c->req.gen.sampling.want_logprob) {
        sl_buf_puts(b, ",\"logprobs\":null");
    } else if (c->req.is_chat) {
        sl_buf_puts(b, ",\"logprobs\":{\"content\":[");
        sl_buf_puts(b, buf_text(&ch->logprobs));
        sl_buf_puts(b, "],\"refusal\":null}");
    } else {
        sl_buf_puts(b, ",\"logprobs\":{\"tokens\":[");
        sl_buf_puts(b, buf_text(&ch->logprobs));
        sl_buf_puts(b, "],\"token_logprobs\":[");
        sl_buf_puts(b, buf_text(&ch->logprobs_b));
        sl_buf_puts(b, "],\"top_logprobs\":[");
        sl_buf_puts(b, buf_text(&ch->logprobs_c));
        sl_buf_puts(b, "],\"text_offset\":[");
        sl_buf_puts(b, buf_text(&ch->logprobs_d));
        sl_buf_puts(b, "]}");
    }
}

static void put_finish(struct sl_buf *b, const struct call *c, struct choice *ch)
{
    sl_buf_puts(b, ",\"finish_reason\":");
    if (ch->finish_reason)
        sl_buf_json_str(b, ch->finish_reason, strlen(ch->finish_reason));
    else
        sl_buf_puts(b, "null");
    if (ch->finish_reason) {
        sl_buf_puts(b, ",\"stop_reason\":");
        sl_buf_puts(b, ch->stop_reason.len ? ch->stop_reason.data : "null");
    }
    if (c->req.return_token_ids) {
        sl_buf_puts(b, ",\"token_ids\":[");
        sl_buf_puts(b, buf_text(&ch->token_ids));
        sl_buf_putc(b, ']');
    }
}

static void put_head(struct sl_buf *b, const struct call *c, bool chunk)
{
    const char *object = !c->req.is_chat ? "text_completion"
                         : chunk         ? "chat.completion.chunk"
                                         : "chat.completion";
    sl_buf_printf(b, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%llu,\"model\":",
                  c->req.is_chat ? "chatcmpl" : "cmpl", c->id, object,
                  (unsigned long long)c->created);
    const char *model = node_model_name(c->node);
    sl_buf_json_str(b, model, strlen(model));
    sl_buf_puts(b, ",\"system_fingerprint\":\"sluice-" SLUICE_VERSION "\",\"choices\":[");
}

static void put_choice(struct sl_buf *b, const struct call *c, uint32_t i)
{
    struct choice *ch = &c->choices[i];
    sl_buf_printf(b, "%s{\"index\":%u,", i ? "," : "", i);
    if (c->req.is_chat) {
        sl_buf_puts(b, "\"message\":{\"role\":\"assistant\",\"content\":");
        sl_buf_json_str(b, ch->text.data ? ch->text.data : "", ch->text.len);
        sl_buf_puts(b, ",\"refusal\":null}");
    } else {
        sl_buf_puts(b, "\"text\":");
        sl_buf_json_str(b, ch->text.data ? ch->text.data : "", ch->text.len);
    }
    put_logprobs(b, c, ch);
    put_finish(b, c, ch);
    sl_buf_putc(b, '}');
}

static void put_prompt_ids(struct sl_buf *b, const struct call *c)
{
    if (!c->req.return_token_ids)
        return;
    sl_buf_puts(b, ",\"prompt_token_ids\":[");
    for (uint32_t p = 0; p < c->req.n_prompts; p++) {
        if (c->req.n_prompts > 1)
            sl_buf_puts(b, p ? ",[" : "[");
        for (size_t i = 0; i < c->req.prompts[p].n; i++)
            sl_buf_printf(b, i ? ",%u" : "%u", c->req.prompts[p].ids[i]);
        if (c->req.n_prompts > 1)
            sl_buf_putc(b, ']');
    }
    sl_buf_putc(b, ']');
}

static void answer_whole(struct call *c)
{
    struct sl_buf *b = &c->out;
    sl_buf_clear(b);
    put_head(b, c, false);
    for (uint32_t i = 0; i < c->n_choices; i++)
        put_choice(b, c, i);
    sl_buf_puts(b, "],\"usage\":");
    out_usage(b, &c->usage);
    put_prompt_ids(b, c);
    openai_put_proof(b, c);
    sl_buf_putc(b, '}');
    call_answer(c, 200, "application/json", b);
}

/* --- streaming -------------------------------------------------------------------------------- */

static void stream_head(struct call *c)
{
    if (c->streaming)
        return;
    c->streaming = true;
    struct sl_buf h = {0};
    sl_buf_printf(&h, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\nX-Request-Id: %s\r\n",
                  c->id);
    sl_http_stream_begin(c->http, 200, "text/event-stream; charset=utf-8", h.data);
    sl_buf_free(&h);
}

static void pause_all(struct call *c)
{
    for (uint32_t i = 0; i < c->req.n_prompts; i++)
        if (c->parts[i].gen)
            gen_pause(c->parts[i].gen);
}

static void send_event(struct call *c)
{
    sl_buf_puts(&c->out, "\n\n");
    stream_head(c);
    c->sent_ns = sl_now_ns();
    if (!sl_http_stream_write(c->http, c->out.data, c->out.len))
        pause_all(c);
}

/* Events before the last say that usage is not known yet, if it was asked for. */
static void close_event(struct call *c)
{
    sl_buf_puts(&c->out, c->req.include_usage ? "],\"usage\":null}" : "]}");
    send_event(c);
}

static void put_delta(struct sl_buf *b, const struct call *c, struct choice *ch, uint32_t index)
{
    sl_buf_printf(b, "{\"index\":%u,", index);
    if (!c->req.is_chat) {
        sl_buf_puts(b, "\"text\":");
        sl_buf_json_str(b, ch->text.data ? ch->text.data : "", ch->text.len);
    } else if (ch->text.len) {
        sl_buf_puts(b, "\"delta\":{\"content\":");
        sl_buf_json_str(b, ch->text.data, ch->text.len);
        sl_buf_putc(b, '}');
    } else {
        sl_buf_puts(b, "\"delta\":{}");
    }
    put_logprobs(b, c, ch);
    put_finish(b, c, ch);
    sl_buf_putc(b, '}');
}

static void send_role(struct call *c, struct choice *ch, uint32_t index)
{
    if (ch->said_role || !c->req.is_chat)
        return;
    ch->said_role = true;
    sl_buf_clear(&c->out);
    sl_buf_puts(&c->out, "data: ");
    put_head(&c->out, c, true);
    sl_buf_printf(&c->out,
                  "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                  "\"logprobs\":null,\"finish_reason\":null}",
                  index);
    close_event(c);
}

static void forget_sent(struct choice *ch)
{
    struct sl_buf *all[] = {&ch->text,       &ch->logprobs,   &ch->logprobs_b,
                            &ch->logprobs_c, &ch->logprobs_d, &ch->token_ids};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        sl_buf_clear(all[i]);
    ch->n_logprobs = 0;
}

/* What an earlier stream of this request has shown. */
static void pass_over(struct choice *ch)
{
    ch->said_role = true;
    ch->shown = ch->reached;
    forget_sent(ch);
}

/* Sends what was gathered, if it shows anything. */
static void send_choice(struct call *c, struct choice *ch, uint32_t index)
{
    if (!ch->text.len && !ch->logprobs.len && !ch->token_ids.len && !ch->finish_reason)
        return;
    send_role(c, ch, index);
    ch->shown = ch->reached;
    sl_buf_clear(&c->out);
    openai_put_id(&c->out, c);
    sl_buf_puts(&c->out, "data: ");
    put_head(&c->out, c, true);
    put_delta(&c->out, c, ch, index);
    close_event(c);
    forget_sent(ch);
}

static void end_stream(struct call *c)
{
    if (c->req.include_usage || c->req.return_chain) {
        sl_buf_clear(&c->out);
        sl_buf_puts(&c->out, "data: ");
        put_head(&c->out, c, true);
        sl_buf_puts(&c->out, "],\"usage\":");
        if (c->req.include_usage)
            out_usage(&c->out, &c->usage);
        else
            sl_buf_puts(&c->out, "null");
        openai_put_proof(&c->out, c);
        sl_buf_putc(&c->out, '}');
        send_event(c);
    }
    sl_buf_clear(&c->out);
    sl_buf_puts(&c->out, "data: [DONE]");
    send_event(c);
    c->answered = true;
    sl_http_stream_end(c->http);
}

/* --- the generations' words ------------------------------------------------------------------- */

static void on_delta(void *ctx, const struct gen_delta *d)
{
    struct part *p = ctx;
    struct choice *ch = choice_of(p, d->choice);
    gather(p, d);
    openai_note_delta(p->call, ch, d);
    if (d->replayed)
        pass_over(ch);
    else if (p->call->req.stream)
        send_choice(p->call, ch, choice_index(p, d->choice));
}

static void on_end(void *ctx, const struct gen_end *e)
{
    struct part *p = ctx;
    struct choice *ch = choice_of(p, e->choice);
    note_end(p, e);
    if (e->replayed)
        pass_over(ch);
    else if (p->call->req.stream)
        send_choice(p->call, ch, choice_index(p, e->choice));
}

static void add_usage(struct call *c, const struct gen_usage *u)
{
    c->usage.prompt_tokens += u->prompt_tokens;
    c->usage.completion_tokens += u->completion_tokens;
    c->usage.cached_tokens += u->cached_tokens;
}

static void on_done(void *ctx, const struct gen_usage *u)
{
    struct part *p = ctx;
    struct call *c = p->call;
    p->gen = NULL;
    add_usage(c, u);
    if (--c->n_parts_live)
        return;
    if (c->req.stream)
        end_stream(c);
    else
        answer_whole(c);
}

static void cancel_parts(struct call *c)
{
    for (uint32_t i = 0; c->parts && i < c->req.n_prompts; i++)
        if (c->parts[i].gen) {
            gen_cancel(c->parts[i].gen);
            c->parts[i].gen = NULL;
        }
}

/* After the head is out an error can only be an event. */
static void on_error(void *ctx, const struct sl_err *err, const struct gen_usage *u)
{
    struct part *p = ctx;
    struct call *c = p->call;
    p->gen = NULL;
    add_usage(c, u);
    cancel_parts(c);
    if (!c->streaming) {
        call_error(c, err);
        return;
    }
    sl_buf_clear(&c->out);
    sl_buf_puts(&c->out, "data: ");
    error_json(err, &c->out);
    send_event(c);
    sl_buf_clear(&c->out);
    sl_buf_puts(&c->out, "data: [DONE]");
    send_event(c);
    c->answered = true;
    sl_http_stream_end(c->http);
}

/* The field names the session, else the header, else whoever the user is. */
static void name_session(struct call *c)
{
    struct openai_req *q = &c->req;
    if (!q->gen.session.len)
        q->gen.session = sl_http_header(c->http, "x-session-id");
    if (!q->gen.session.len)
        q->gen.session = q->user;
}

static const struct gen_ops part_ops = {on_delta, on_end, on_done, on_error};

/* echo: the prompt's text comes first. */
static void seed_echo(struct call *c)
{
    for (uint32_t p = 0; c->req.echo && p < c->req.n_prompts; p++) {
        struct sl_detok d = {.skip_special = false};
        struct sl_buf text = {0};
        for (size_t i = 0; i < c->req.prompts[p].n; i++)
            sl_detok_push(&d, node_tokenizer(c->node), c->req.prompts[p].ids[i], &text);
        sl_detok_finish(&d, &text);
        struct sl_str s = {text.data ? text.data : "", text.len};
        if (c->req.prompt_text[p].data)
            s = c->req.prompt_text[p];
        for (uint32_t i = 0; i < c->req.gen.n; i++) {
            struct choice *ch = &c->choices[p * c->req.gen.n + i];
            sl_buf_append(&ch->text, s.data, s.len);
            ch->text_offset = s.len;
        }
        sl_buf_free(&text);
    }
}

enum sl_status openai_start(struct call *c, struct sl_err *err)
{
    struct openai_req *q = &c->req;
    c->n_choices = q->n_prompts * q->gen.n;
    c->parts = SL_ARENA_ARRAY(&c->mem, struct part, q->n_prompts);
    c->choices = SL_ARENA_ARRAY(&c->mem, struct choice, c->n_choices);
    if (!c->parts || !c->choices)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %u choices", c->n_choices);
    enum sl_status r = openai_resume(c, err);
    if (r)
        return r;
    seed_echo(c);
    q->gen.tenant = q->user;
    name_session(c);
    for (uint32_t i = 0; i < q->n_prompts; i++) {
        struct part *p = &c->parts[i];
        struct gen_params params;
        *p = (struct part){.call = c, .index = i};
        openai_part_params(c, i, &params);
        r = gen_start(c->node, &params, &part_ops, p, &p->gen, err);
        if (r) {
            cancel_parts(c);
            return r;
        }
        c->n_parts_live++;
    }
    c->sent_ns = sl_now_ns();
    return SL_OK;
}

void openai_keep_alive(struct call *c)
{
    if (!c->req.stream || c->answered || !c->http)
        return;
    stream_head(c);
    c->sent_ns = sl_now_ns();
    sl_http_stream_write(c->http, ": keep-alive\n\n", 14);
}

void openai_drained(struct call *c)
{
    for (uint32_t i = 0; c->parts && i < c->req.n_prompts && !c->answered; i++)
        if (c->parts[i].gen)
            gen_resume(c->parts[i].gen);
}

void openai_closed(struct call *c)
{
    cancel_parts(c);
    for (uint32_t i = 0; c->choices && i < c->n_choices; i++) {
        forget_sent(&c->choices[i]);
        struct sl_buf *all[] = {&c->choices[i].text,        &c->choices[i].logprobs,
                                &c->choices[i].logprobs_b,  &c->choices[i].logprobs_c,
                                &c->choices[i].logprobs_d,  &c->choices[i].token_ids,
                                &c->choices[i].stop_reason, &c->choices[i].proof};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            sl_buf_free(all[k]);
    }
    for (uint32_t i = 0; c->req.prompts && i < c->req.n_prompts; i++)
        sl_tokens_free(&c->req.prompts[i]);
}
