/* Promised: what a stream carried is counted right (tokens, usage, errors), whatever its dialect;
 * against a server on loopback every request ends exactly once, late ones included, and latency is
 * counted from the intended time. */
#include "load.h"
#include "result.h"

#include <sluice/base/json.h>

#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MS ((uint64_t)1000000)

static void events_are_counted(void **state)
{
    static const struct {
        const char *data;
        bool go_on;
        size_t n_chunks; /* after it */
    } rows[] = {
        {"{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":"
         "null}]}",
         true, 0},
        {"{\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}", true, 1},
        {"{\"choices\":[{\"text\":\" you\",\"finish_reason\":null}],\"usage\":null}", true, 2},
        {"{\"choices\":[{\"text\":\"\",\"finish_reason\":null}]}", true, 3}, /* held back bytes */
        {"{\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}", true, 4},
        {"{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}", true, 5},
        {"{\"choices\":[{\"text\":\"end\",\"finish_reason\":\"stop\"}]}", true, 6},
        {"{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}", true, 6},
        {"{\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}", true, 6},
        {"{\"object\":\"ping\"}", true, 6},
        {"[1]", true, 6},
        {"[DONE]", true, 6},
        {"{\"error\":{\"message\":\"boom\"}}", false, 6},
    };
    struct bench_record *r = calloc(1, sizeof *r);
    (void)state;
    assert_non_null(r);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_str data = {rows[i].data, strlen(rows[i].data)};
        assert_int_equal(bench_record_event(r, data, (i + 1) * MS), rows[i].go_on);
        if (r->n_chunks != rows[i].n_chunks)
            fail_msg("%s: %zu chunks", rows[i].data, r->n_chunks);
    }
    assert_true(r->first_ns == 2 * MS && r->last_ns == 7 * MS && r->n_itl == 5);
    assert_true(r->itl_s[0] == 0.001 && r->n_in == 5 && r->n_out == 7 && r->done);
    assert_string_equal(r->text.data, "Hi youend");
    assert_non_null(strstr(r->error, "boom"));
    assert_false(bench_record_event(r, SL_STR("{not json"), MS));
    bench_records_free(r, 1);
}

/* ---- a server that says what it is told ---- */

struct server {
    int fd;
    const char *answer;
    size_t n_connections;
};

static void *serve(void *ctx)
{
    struct server *s = ctx;
    for (size_t i = 0; i < s->n_connections; i++) {
        char buf[65536];
        size_t len = 0;
        int c = accept(s->fd, NULL, NULL);
        if (c < 0)
            break;
        for (ssize_t n;
             len < sizeof buf - 1 && (n = read(c, buf + len, sizeof buf - 1 - len)) > 0;) {
            len += (size_t)n;
            buf[len] = 0;
            const char *end = strstr(buf, "\r\n\r\n");
            if (end && strchr(end, '}')) /* the whole JSON body of these tests */
                break;
        }
        for (const char *p = s->answer; *p; p++) /* byte by byte: cut anywhere */
            if (send(c, p, 1, MSG_NOSIGNAL) != 1)
                break;
        close(c);
    }
    return NULL;
}

static int listen_local(char *url, size_t size)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 64) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    snprintf(url, size, "http://127.0.0.1:%d/v1/completions", ntohs(a.sin_port));
    return fd;
}

#define HEAD  "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
#define TOKEN "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n"
#define USAGE "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9}}\n\n"
#define DONE  "data: [DONE]\n\n"

static void every_request_ends_once(void **state)
{
    static const struct {
        const char *answer;
        bool ok;
        size_t n_out;
        const char *error;
    } rows[] = {
        {HEAD TOKEN TOKEN USAGE DONE, true, 9, ""},
        {HEAD ": keep-alive\n\n" TOKEN TOKEN TOKEN DONE, true, 3, ""},
        {HEAD TOKEN, false, 1, "without [DONE]"},
        {HEAD TOKEN "data: {\"error\": {\"message\": \"lost\"}}\n\n" DONE, false, 1, "lost"},
        {HEAD "data: {bad\n\n", false, 0, "not JSON"},
        {"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull",
         false, 0, "full"},
        {"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false, 0, "HTTP 503"},
        {"", false, 0, "no data"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t width = 0; width < 3; width++) { /* open loop, closed loop 1 and 2 */
            char url[80];
            struct server server = {listen_local(url, sizeof url), rows[i].answer, 4};
            pthread_t thread;
            assert_int_equal(pthread_create(&thread, NULL, serve, &server), 0);
            struct bench_request q[4];
            for (size_t k = 0; k < 4; k++)
                q[k] = (struct bench_request){"{}", 2, (double)k * 0.002, 1, 1};
            struct bench_record *r = calloc(4, sizeof *r);
            struct sl_err err = {0};
            const char *headers[] = {"Content-Type: application/json", NULL};
            struct bench_load load = {url, headers, q, 4, width, width > 0, 20000, NULL};
            assert_int_equal(bench_load_run(&load, r, &err), SL_OK);
            assert_int_equal(pthread_join(thread, NULL), 0);
            close(server.fd);
            for (size_t k = 0; k < 4; k++) {
                if (r[k].ok != rows[i].ok || r[k].n_out != rows[i].n_out ||
                    (rows[i].error[0] && !strstr(r[k].error, rows[i].error) &&
                     strcmp(rows[i].error, "no data") != 0))
                    fail_msg("row %zu width %zu: ok %d, %zu out, error '%s'", i, width, r[k].ok,
                             r[k].n_out, r[k].error);
                assert_true(r[k].sent_ns >= r[k].intended_ns && r[k].end_ns >= r[k].sent_ns);
                if (width == 0)
                    assert_true(r[k].intended_ns == k * 2 * MS);
            }
            bench_records_free(r, 4);
        }
    }
}

static void figures_follow_from_the_records(void **state)
{
    double gaps[3] = {0.010, 0.010, 0.010};
    struct bench_record r[3] = {
        {.intended_ns = 0,
         .sent_ns = 1 * MS,
         .first_ns = 100 * MS,
         .last_ns = 130 * MS,
         .end_ns = 131 * MS,
         .n_in = 10,
         .n_out = 4,
         .ok = true,
         .itl_s = gaps,
         .n_itl = 3},
        {.intended_ns = 50 * MS,
         .sent_ns = 100 * MS,
         .first_ns = 250 * MS,
         .last_ns = 250 * MS,
         .end_ns = 250 * MS,
         .n_in = 20,
         .n_out = 1,
         .ok = true},
        {.intended_ns = 60 * MS, .sent_ns = 60 * MS, .end_ns = 1000 * MS, .n_in = 5},
    };
    static const struct {
        const char *name;
        double want;
    } rows[] = {
        {"duration", 1},
        {"completed", 2},
        {"failed", 1},
        {"total_input_tokens", 30},
        {"total_output_tokens", 5},
        {"request_throughput", 2},
        {"output_throughput", 5},
        {"total_token_throughput", 35},
        {"mean_ttft_ms", 150},
        {"median_ttft_ms", 150},
        {"std_ttft_ms", 50},
        {"p99_ttft_ms", 199},
        {"mean_tpot_ms", 10},
        {"mean_itl_ms", 10},
        {"mean_e2el_ms", 165},
        {"p50_dispatch_lag_ms", 1},
        {"request_goodput", 1},
        {"slo_attainment_ttft", 1.0 / 3},
        {"max_concurrent_requests", 3},
        {"max_output_tokens_per_s", 5},
        {"degraded", 1},
    };
    struct bench_result_spec spec = {.metrics = "ttft,tpot,itl,e2el"};
    struct bench_figures f;
    struct sl_err err;
    (void)state;
    assert_int_equal(bench_percentiles_parse("50", &spec, &err), SL_OK);
    assert_int_equal(spec.n_percentiles, 2); /* 99 is always there */
    assert_int_equal(bench_slo_parse("ttft:150", &spec.slo, &err), SL_OK);
    assert_int_equal(bench_result_figures(&spec, r, 3, &f, &err), SL_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct bench_figure *x = bench_figure_find(&f, rows[i].name, strlen(rows[i].name));
        if (!x || x->value < rows[i].want - 1e-6 || x->value > rows[i].want + 1e-6)
            fail_msg("%s: %g, wanted %g", rows[i].name, x ? x->value : -1, rows[i].want);
    }
    static const char *const bad[] = {"0", "101", "x", "50,,y", "50 nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(bench_percentiles_parse(bad[i], &spec, &err), SL_USAGE);
}

/* The keys of vLLM 0.x's result file, by which other tools read ours. */
static void the_result_file_has_the_known_keys(void **state)
{
    static const char *const keys[] = {"date",
                                       "endpoint_type",
                                       "backend",
                                       "label",
                                       "model_id",
                                       "tokenizer_id",
                                       "num_prompts",
                                       "request_rate",
                                       "burstiness",
                                       "max_concurrency",
                                       "duration",
                                       "completed",
                                       "failed",
                                       "total_input_tokens",
                                       "total_output_tokens",
                                       "request_throughput",
                                       "request_goodput",
                                       "output_throughput",
                                       "total_token_throughput",
                                       "max_output_tokens_per_s",
                                       "max_concurrent_requests",
                                       "input_lens",
                                       "output_lens",
                                       "ttfts",
                                       "itls",
                                       "start_times",
                                       "generated_texts",
                                       "errors",
                                       "mean_ttft_ms",
                                       "median_ttft_ms",
                                       "std_ttft_ms",
                                       "p99_ttft_ms",
                                       "mean_tpot_ms",
                                       "median_tpot_ms",
                                       "std_tpot_ms",
                                       "p99_tpot_ms",
                                       "mean_itl_ms",
                                       "median_itl_ms",
                                       "std_itl_ms",
                                       "p99_itl_ms",
                                       "mean_e2el_ms",
                                       "median_e2el_ms",
                                       "std_e2el_ms",
                                       "p99_e2el_ms",
                                       "environment",
                                       "degraded",
                                       "p99_dispatch_lag_ms"};
    double gap = 0.5;
    char *argv[] = {"serve", "--model", "a \"b\""};
    struct bench_record r[2] = {
        {.intended_ns = 5 * MS,
         .sent_ns = 6 * MS,
         .first_ns = 7 * MS,
         .last_ns = 9 * MS,
         .end_ns = 9 * MS,
         .n_in = 1,
         .n_out = 2,
         .ok = true,
         .itl_s = &gap,
         .n_itl = 1},
        {.error = "it \"broke\" \xff"},
    };
    struct bench_description d = {
        "openai", "http://h/v1/completions", "a \"b\"", "random", INFINITY, 1, 2, 0, 7, 3, argv};
    struct bench_result_spec spec = {.metrics = "ttft,tpot,itl,e2el"};
    struct bench_figures f;
    struct sl_buf text = {0};
    struct sl_json *doc;
    struct sl_err err;
    (void)state;
    assert_int_equal(bench_percentiles_parse("99", &spec, &err), SL_OK);
    assert_int_equal(spec.n_percentiles, 1);
    assert_int_equal(bench_result_figures(&spec, r, 2, &f, &err), SL_OK);
    bench_result_json(&d, &f, r, 2, &text);
    if (sl_json_parse(text.data, text.len, &doc, &err) != SL_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!sl_json_get(doc, keys[i]))
            fail_msg("no key '%s'", keys[i]);
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(doc, "request_rate")), "inf"));
    assert_int_equal(sl_json_len(sl_json_get(doc, "itls")), 2);
    assert_int_equal(sl_json_len(sl_json_at(sl_json_get(doc, "itls"), 0)), 1);
    assert_true(sl_json_bool(sl_json_get(doc, "degraded"))); /* 1 ms late of 2 ms */
    sl_json_free(doc);
    sl_buf_clear(&text);
    bench_result_table(&d, &spec, &f, &text);
    assert_non_null(strstr(text.data, "DEGRADED"));
    sl_buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_are_counted),
        cmocka_unit_test(every_request_ends_once),
        cmocka_unit_test(figures_follow_from_the_records),
        cmocka_unit_test(the_result_file_has_the_known_keys),
    };
    signal(SIGPIPE, SIG_IGN); /* as the program does */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
