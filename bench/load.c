/* The load loop. One thread: it sends what is due, waits for bytes until the next request is due,
 * and stamps each event of a stream as it arrives. */
#include "load.h"

#include "sse.h"

#include <sluice/base/json.h>
#include <sluice/base/time.h>
#include <sluice/transport/http_stream.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct run {
    const struct bench_load *load;
    struct sl_http_client *client;
    struct stream *streams;
    uint64_t start_ns, bar_ns;
    size_t n_sent, n_done, n_open;
};

struct stream {
    struct run *run;
    struct bench_record *record;
    struct bench_sse sse;
    size_t n_error;
};

void bench_records_free(struct bench_record *r, size_t n)
{
    for (size_t i = 0; r && i < n; i++) {
        free(r[i].itl_s);
        sl_buf_free(&r[i].text);
    }
    free(r);
}

static void set_error(struct bench_record *r, struct sl_str text)
{
    size_t n = text.len < sizeof r->error - 1 ? text.len : sizeof r->error - 1;
    if (r->error[0])
        return;
    for (size_t i = 0; i < n; i++)
        r->error[i] = (char)((unsigned char)text.data[i] < 0x20 ? ' ' : text.data[i]);
    r->error[n] = 0;
}

static const struct sl_json *member(const struct sl_json *v, const char *key,
                                    enum sl_json_kind kind)
{
    const struct sl_json *m = v && sl_json_kind(v) == SL_JSON_OBJECT ? sl_json_get(v, key) : NULL;
    return m && sl_json_kind(m) == kind ? m : NULL;
}

static bool has_text(const struct sl_json *v, const char *key)
{
    const struct sl_json *s = member(v, key, SL_JSON_STRING);
    return s && sl_json_str(s).len > 0;
}

/* Does this choice carry a token? Text does; so does an event without text in the middle of a
 * stream (a token whose bytes are held back), but neither a chat stream's opening role nor the
 * closing finish_reason. */
static bool carries_token(const struct sl_json *choice)
{
    const struct sl_json *delta = member(choice, "delta", SL_JSON_OBJECT);
    const struct sl_json *from = delta ? delta : choice;
    const struct sl_json *calls = member(delta, "tool_calls", SL_JSON_ARRAY);
    if (has_text(from, "text") || has_text(from, "content") ||
        has_text(from, "reasoning_content") || has_text(from, "reasoning") ||
        (calls && sl_json_len(calls) > 0))
        return true;
    return !member(choice, "finish_reason", SL_JSON_STRING) &&
           !member(delta, "role", SL_JSON_STRING);
}

static void keep_text(struct bench_record *r, const struct sl_json *choice)
{
    const struct sl_json *delta = member(choice, "delta", SL_JSON_OBJECT);
    const struct sl_json *text =
        delta ? member(delta, "content", SL_JSON_STRING) : member(choice, "text", SL_JSON_STRING);
    if (text)
        sl_buf_append(&r->text, sl_json_str(text).data, sl_json_str(text).len);
}

static void note_token(struct bench_record *r, uint64_t now_ns)
{
    r->n_chunks++;
    if (!r->first_ns) {
        r->first_ns = r->last_ns = now_ns;
        return;
    }
    if (r->n_itl == r->itl_max) {
        size_t max = r->itl_max ? r->itl_max * 2 : 64;
        double *more = realloc(r->itl_s, max * sizeof *more);
        if (!more)
            return;
        r->itl_s = more;
        r->itl_max = max;
    }
    r->itl_s[r->n_itl++] = (double)(now_ns - r->last_ns) / 1e9;
    r->last_ns = now_ns;
}

static void note_usage(struct bench_record *r, const struct sl_json *usage)
{
    const struct sl_json *in = member(usage, "prompt_tokens", SL_JSON_INT);
    const struct sl_json *out = member(usage, "completion_tokens", SL_JSON_INT);
    if (in && sl_json_int(in) >= 0)
        r->n_in = (size_t)sl_json_int(in);
    if (out && sl_json_int(out) >= 0) {
        r->n_out = (size_t)sl_json_int(out);
        r->has_usage = true;
    }
}

bool bench_record_event(struct bench_record *r, struct sl_str data, uint64_t now_ns)
{
    struct sl_json *v;
    struct sl_err err;
    if (sl_str_eqz(data, "[DONE]")) {
        r->done = true;
        return true;
    }
    if (sl_json_parse_answer(data.data, data.len, &v, &err) != SL_OK) {
        set_error(r, SL_STR("an event of the stream is not JSON"));
        return false;
    }
    const struct sl_json *choices = member(v, "choices", SL_JSON_ARRAY);
    const struct sl_json *error =
        sl_json_kind(v) == SL_JSON_OBJECT ? sl_json_get(v, "error") : NULL;
    const struct sl_json *choice =
        choices && sl_json_len(choices) > 0 ? sl_json_at(choices, 0) : NULL;
    bool failed = error && sl_json_kind(error) != SL_JSON_NULL;
    if (failed)
        set_error(r, data);
    else if (choice && carries_token(choice))
        note_token(r, now_ns);
    if (choice)
        keep_text(r, choice);
    note_usage(r, member(v, "usage", SL_JSON_OBJECT));
    sl_json_free(v);
    return !failed;
}

static uint64_t since_start(const struct run *run)
{
    return sl_now_ns() - run->start_ns;
}

static bool on_event(void *ctx, struct sl_str data)
{
    struct stream *s = ctx;
    return bench_record_event(s->record, data, since_start(s->run));
}

static bool on_bytes(void *ctx, long http, const char *data, size_t len)
{
    struct stream *s = ctx;
    if (http == 200)
        return bench_sse_feed(&s->sse, data, len, on_event, s);
    size_t room = sizeof s->record->error - 1 - s->n_error;
    size_t n = len < room ? len : room;
    memcpy(s->record->error + s->n_error, data, n);
    s->n_error += n;
    return true;
}

static void on_done(void *ctx, enum sl_status status, long http, const char *why)
{
    struct stream *s = ctx;
    struct bench_record *r = s->record;
    r->end_ns = since_start(s->run);
    r->http = http;
    if (status != SL_OK)
        set_error(r, sl_str_of(why));
    else if (http == 200 && !r->done)
        set_error(r, SL_STR("the stream ended without [DONE]"));
    if (!r->has_usage)
        r->n_out = r->n_chunks;
    r->ok = status == SL_OK && http == 200 && r->done && !r->error[0];
    if (!r->ok && !r->error[0])
        snprintf(r->error, sizeof r->error, "HTTP %ld", http);
    bench_sse_free(&s->sse);
    s->run->n_open--;
    s->run->n_done++;
}

static enum sl_status send_next(struct run *run, struct bench_record *records, struct sl_err *err)
{
    const struct bench_load *load = run->load;
    const struct bench_request *q = &load->requests[run->n_sent];
    struct bench_record *r = &records[run->n_sent];
    struct stream *s = &run->streams[run->n_sent];
    *s = (struct stream){.run = run, .record = r};
    r->n_in = q->n_in;
    r->sent_ns = since_start(run);
    r->intended_ns = load->closed_loop ? r->sent_ns : (uint64_t)(q->at_s * 1e9);
    struct sl_http_request http = {.url = load->url,
                                   .body = q->body,
                                   .body_len = q->body_len,
                                   .headers = load->headers,
                                   .timeout_ms = load->timeout_ms,
                                   .ctx = s,
                                   .on_bytes = on_bytes,
                                   .on_done = on_done};
    run->n_sent++;
    run->n_open++;
    return sl_http_client_start(run->client, &http, err);
}

/* Nanoseconds until the next request may go; UINT64_MAX when only an answer can let it. */
static uint64_t until_next(const struct run *run)
{
    const struct bench_load *load = run->load;
    if (run->n_sent == load->n || (load->max_concurrency && run->n_open >= load->max_concurrency))
        return UINT64_MAX;
    uint64_t due = load->closed_loop ? 0 : (uint64_t)(load->requests[run->n_sent].at_s * 1e9);
    uint64_t now = since_start(run);
    return due > now ? due - now : 0;
}

static void show_bar(struct run *run, bool last)
{
    char bar[33];
    uint64_t now = sl_now_ns();
    if (!run->load->label || (!last && now - run->bar_ns < 200 * SL_MS_NS))
        return;
    run->bar_ns = now;
    size_t full = run->n_done * 32 / run->load->n;
    memset(bar, '.', 32);
    memset(bar, '#', full);
    bar[32] = 0;
    fprintf(stderr, "\r%s [%s] %zu/%zu, %zu open, %.1f s%s", run->load->label, bar, run->n_done,
            run->load->n, run->n_open, (double)since_start(run) / 1e9, last ? "\n" : "");
    fflush(stderr);
}

static enum sl_status loop(struct run *run, struct bench_record *records, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    while (s == SL_OK && run->n_done < run->load->n) {
        uint64_t wait = until_next(run);
        if (wait == 0) {
            s = send_next(run, records, err);
            wait = until_next(run); /* a burst goes out whole, but answers are read between */
        }
        /* Whole milliseconds are waited for; the last fraction is polled away, for punctuality. */
        uint64_t wait_ms = wait / SL_MS_NS < 100 ? wait / SL_MS_NS : 100;
        if (s == SL_OK)
            s = sl_http_client_run(run->client, (int)wait_ms, err);
        show_bar(run, false);
    }
    return s;
}

enum sl_status bench_load_run(const struct bench_load *load, struct bench_record *records,
                              struct sl_err *err)
{
    struct run run = {.load = load, .client = sl_http_client_open()};
    run.streams = calloc(load->n, sizeof *run.streams);
    enum sl_status s = sl_fail(err, SL_NO_MEMORY, "bench: no memory for %zu requests", load->n);
    if (run.client && run.streams) {
        run.start_ns = sl_now_ns();
        s = loop(&run, records, err);
        show_bar(&run, true);
    }
    sl_http_client_close(run.client);
    free(run.streams);
    return s;
}
