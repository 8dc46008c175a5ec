/* Promised: events are the same however the bytes are cut, with any of the three line ends. */
#include "sse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

struct seen {
    struct sl_buf text;
    size_t n, stop_at;
};

static bool note(void *ctx, struct sl_str data)
{
    struct seen *s = ctx;
    sl_buf_putc(&s->text, '<');
    sl_buf_append(&s->text, data.data, data.len);
    sl_buf_putc(&s->text, '>');
    return ++s->n != s->stop_at;
}

static const struct {
    const char *stream, *events;
} rows[] = {
    {"data: a\n\ndata: b\n\n", "<a><b>"},
    {"data: a\r\n\r\ndata: b\r\n\r\n", "<a><b>"},
    {"data: a\r\rdata: b\r\r", "<a><b>"},
    {"data: one\ndata: two\n\n", "<one\ntwo>"},
    {"data: one\r\ndata: two\r\n\r\n", "<one\ntwo>"},
    {"data:no space\n\ndata:  two spaces\n\n", "<no space>< two spaces>"},
    {"data\n\n", "<>"},
    {"data:\n\n", "<>"},
    {": comment\n\nevent: x\nid: 7\nretry: 1\n\ndata: y\n\n", "<y>"},
    {"database: no\n\ndata: {\"a\": \"b\xc3\xa9\"}\n\n", "<{\"a\": \"b\xc3\xa9\"}>"},
    {"data: unfinished\n", ""},
    {"\n\n\ndata: [DONE]\n\n", "<[DONE]>"},
};

static void events_do_not_depend_on_cuts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t len = strlen(rows[i].stream);
        for (size_t cut = 0; cut <= len; cut++) {
            struct bench_sse sse = {0};
            struct seen seen = {0};
            assert_true(bench_sse_feed(&sse, rows[i].stream, cut, note, &seen));
            assert_true(bench_sse_feed(&sse, rows[i].stream + cut, len - cut, note, &seen));
            assert_string_equal(seen.text.data ? seen.text.data : "", rows[i].events);
            bench_sse_free(&sse);
            sl_buf_free(&seen.text);
        }
        struct bench_sse sse = {0};
        struct seen seen = {0};
        for (size_t k = 0; k < len; k++)
            assert_true(bench_sse_feed(&sse, rows[i].stream + k, 1, note, &seen));
        assert_string_equal(seen.text.data ? seen.text.data : "", rows[i].events);
        bench_sse_free(&sse);
        sl_buf_free(&seen.text);
    }
}

static void the_callback_can_stop(void **state)
{
    struct bench_sse sse = {0};
    struct seen seen = {.stop_at = 2};
    const char *z = "data: a\n\ndata: b\n\ndata: c\n\n";
    (void)state;
    assert_false(bench_sse_feed(&sse, z, strlen(z), note, &seen));
    assert_string_equal(seen.text.data, "<a><b>");
    bench_sse_free(&sse);
    sl_buf_free(&seen.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_do_not_depend_on_cuts),
        cmocka_unit_test(the_callback_can_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
