/* Promises: every malformed request is refused with the stated status, every good one is read to
 * the byte, and neither depends on how the bytes are cut into pieces. */
#include <http/parse.h>
#include <setjmp.h>
#include <sluice/base/time.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "http_bad_rows.h"

/* Feeds data in pieces that end at `cut` and at the end; returns the last word and bytes taken. */
static enum http_parse_end feed_cut(struct http_parse *p, const char *data, size_t len, size_t cut,
                                    size_t *taken)
{
    size_t at = 0;
    enum http_parse_end end = HTTP_PARSE_MORE;
    while (at < len && end != HTTP_PARSE_DONE && end != HTTP_PARSE_BAD) {
        size_t n = at < cut ? cut - at : len - at, used = 0;
        char *piece = malloc(n); /* of its own, so that the sanitizer sees a byte too many */
        memcpy(piece, data + at, n);
        end = http_parse_feed(p, piece, n, &used);
        free(piece);
        assert_true(used <= n);
        at += used;
        if (end == HTTP_PARSE_MORE)
            assert_int_equal(used, n);
    }
    *taken = at;
    return end;
}

static void test_bad_rows_split_everywhere(void **state)
{
    (void)state;
    struct http_parse *p = calloc(1, sizeof(*p));
    for (size_t i = 0; i < N_BAD_ROWS; i++) {
        const struct bad_row *row = &bad_rows[i];
        for (size_t cut = 0; cut <= row->len; cut++) {
            size_t taken;
            http_parse_init(p);
            enum http_parse_end end = feed_cut(p, row->bytes, row->len, cut, &taken);
            if (end != HTTP_PARSE_BAD || p->http_status != row->status)
                fail_msg("'%s' cut at %zu: end %d, status %d, want %d", row->name, cut, (int)end,
                         p->http_status, row->status);
            assert_true(p->err.status != SL_OK && p->err.msg[0]);
            http_parse_free(p);
        }
    }
    free(p);
}

struct good_row {
    const char *bytes;
    const char *method, *path, *query, *body;
    const char *header; /* value of X, or NULL */
    bool keep_alive;
};

static const struct good_row good_rows[] = {
    {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", "", "", NULL, true},
    {"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", "", "", NULL, true},
    {"GET / HTTP/1.0\r\n\r\n", "GET", "/", "", "", NULL, false},
    {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET", "/", "", "", NULL, true},
    {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET", "/", "", "", NULL, false},
    {"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", "GET", "/", "", "", NULL, false},
    {"GET /a/b?c=d?e HTTP/1.1\r\nHost: a:80\r\n\r\n", "GET", "/a/b", "c=d?e", "", NULL, true},
    {"GET //v1/%2f HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "GET", "//v1/%2f", "", "", NULL, true},
    {"GET http://A/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/x", "y", "", NULL, true},
    {"GET HTTP://a?y HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", "y", "", NULL, true},
    {"GET https://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/", "", "", NULL, true},
    {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS", "*", "", "", NULL, true},
    {"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", "FROB", "/", "", "", NULL, true},
    {"CONNECT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "CONNECT", "/", "", "x", NULL,
     true},
    {"GET / HTTP/1.1\r\nHost: a\r\nX: \t v w\xe9 \t\r\n\r\n", "GET", "/", "", "", "v w\xe9", true},
    {"GET / HTTP/1.1\r\nHost: a\r\nx:\r\nX: 2\r\n\r\n", "GET", "/", "", "", "", true},
    {"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "GET", "/", "", "",
     NULL, true},
    {POST "Content-Length: 0\r\n\r\n", "POST", "/", "", "", NULL, true},
    {POST "Content-Length: 003\r\n\r\nabc", "POST", "/", "", "abc", NULL, true},
    {POST "content-length:3\r\nContent-Encoding: identity\r\n\r\nabc", "POST", "/", "", "abc", NULL,
     true},
    {POST "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc", "POST", "/", "", "abc", NULL,
     true},
    {POST "Upgrade: x\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nab", "POST", "/", "", "ab",
     NULL, true},
    {CHUNKED "0\r\n\r\n", "POST", "/", "", "", NULL, true},
    {CHUNKED "3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n", "POST", "/", "", "abc0123456789", NULL,
     true},
    {CHUNKED "3;c=\"d e\"\r\nabc\r\n0;x\r\nX: trailer\r\nY: 2\r\n\r\n", "POST", "/", "", "abc",
     NULL, true},
    {POST "Transfer-Encoding:\tChunked \r\n\r\n1\r\na\r\n0\r\n\r\n", "POST", "/", "", "a", NULL,
     true},
};

static void check_str(struct sl_str got, const char *want)
{
    if (!sl_str_eqz(got, want))
        fail_msg("got '%.*s', want '%s'", (int)got.len, got.data ? got.data : "", want);
}

static void check_good(struct http_parse *p, const struct good_row *row, size_t cut)
{
    static const char tail[] = "GET /next HTTP/1.1\r\n"; /* a pipelined request is not touched */
    size_t len = strlen(row->bytes), taken;
    char *all = malloc(len + sizeof(tail));
    memcpy(all, row->bytes, len);
    memcpy(all + len, tail, sizeof(tail));
    enum http_parse_end end = feed_cut(p, all, len + sizeof(tail) - 1, cut, &taken);
    free(all);
    if (end != HTTP_PARSE_DONE || taken != len)
        fail_msg("'%s' cut at %zu: end %d, took %zu of %zu: %s", row->bytes, cut, (int)end, taken,
                 len, p->err.msg);
    check_str(p->method, row->method);
    check_str(p->path, row->path);
    check_str(p->query, row->query);
    check_str((struct sl_str){p->body.data, p->body.len}, row->body);
    const struct http_field *x = http_parse_field(p, "x");
    assert_int_equal(x != NULL, row->header != NULL);
    if (x)
        check_str(x->value, row->header);
    assert_int_equal(p->keep_alive, row->keep_alive);
}

static void test_good_rows_split_everywhere(void **state)
{
    (void)state;
    struct http_parse *p = calloc(1, sizeof(*p));
    http_parse_init(p);
    for (size_t i = 0; i < sizeof(good_rows) / sizeof(good_rows[0]); i++)
        for (size_t cut = 0; cut <= strlen(good_rows[i].bytes); cut++) {
            http_parse_reset(p);
            check_good(p, &good_rows[i], cut);
        }
    http_parse_free(p);
    free(p);
}

/* A head built of `prefix`, n_fill times `fill`, `suffix`, fed whole and in pieces of `step`. */
static int refusal_of(const char *prefix, char fill, size_t n_fill, const char *suffix, size_t step)
{
    size_t a = strlen(prefix), b = strlen(suffix), len = a + n_fill + b;
    char *all = malloc(len);
    memcpy(all, prefix, a);
    memset(all + a, fill, n_fill);
    memcpy(all + a + n_fill, suffix, b);
    struct http_parse *p = calloc(1, sizeof(*p));
    http_parse_init(p);
    enum http_parse_end end = HTTP_PARSE_MORE;
    for (size_t at = 0, used; at < len && end <= HTTP_PARSE_HEAD; at += used)
        end = http_parse_feed(p, all + at, len - at < step ? len - at : step, &used);
    int status = end == HTTP_PARSE_BAD ? p->http_status : end == HTTP_PARSE_DONE ? 200 : 0;
    http_parse_free(p);
    free(p);
    free(all);
    return status;
}

static void test_line_limits(void **state)
{
    (void)state;
    static const struct {
        const char *prefix;
        char fill;
        size_t n;
        const char *suffix;
        int status;
    } rows[] = {
        {"GET /", 'a', 8170, " HTTP/1.1\r\nHost: a\r\n\r\n", 200},
        {"GET /", 'a', 8192, " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
        {"GET /", 'a', 8187, " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
        {"GET /", 'a', 1 << 20, "", 414},
        {"", 'A', 1 << 20, "", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: ", 'a', 8180, "\r\n\r\n", 200},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: ", 'a', 8190, "\r\n\r\n", 431},
        {"GET / HTTP/1.1\r\nHost: a\r\n", 'N', 8193, ": x\r\n\r\n", 431},
        {CHUNKED "1;", 'e', 4096, "\r\na\r\n0\r\n\r\n", 200},
        {CHUNKED "1;", 'e', 4097, "\r\na\r\n0\r\n\r\n", 400},
        {CHUNKED "0\r\nX: ", 't', 8193, "\r\n\r\n", 431},
        {CHUNKED "", '0', 16, "\r\n\r\n", 200},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (size_t step = 1; step <= 1 << 21; step = step * 7 + 1) {
            int got = refusal_of(rows[i].prefix, rows[i].fill, rows[i].n, rows[i].suffix, step);
            if (got != rows[i].status)
                fail_msg("row %zu, pieces of %zu: %d, want %d", i, step, got, rows[i].status);
        }
}

/* n fields "Xi: value" of `value_len` bytes. */
static int refusal_of_fields(size_t n, size_t value_len, size_t step)
{
    struct sl_buf b = {.cap_bytes = 1 << 24};
    sl_buf_puts(&b, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (size_t i = 0; i < n; i++) {
        sl_buf_printf(&b, "X%zu: ", i);
        for (size_t k = 0; k < value_len; k++)
            sl_buf_putc(&b, 'v');
        sl_buf_puts(&b, "\r\n");
    }
    sl_buf_puts(&b, "\r\n");
    struct http_parse *p = calloc(1, sizeof(*p));
    http_parse_init(p);
    enum http_parse_end end = HTTP_PARSE_MORE;
    for (size_t at = 0, used; at < b.len && end == HTTP_PARSE_MORE; at += used)
        end = http_parse_feed(p, b.data + at, b.len - at < step ? b.len - at : step, &used);
    int status = end == HTTP_PARSE_BAD ? p->http_status : 200;
    assert_true(p->head.len <= SL_LIMIT_http_header_bytes + step);
    http_parse_free(p);
    free(p);
    sl_buf_free(&b);
    return status;
}

static void test_header_limits(void **state)
{
    (void)state;
    static const size_t steps[] = {1, 13, 65536};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(refusal_of_fields(99, 1, steps[i]), 200); /* and Host: 100 */
        assert_int_equal(refusal_of_fields(100, 1, steps[i]), 431);
        assert_int_equal(refusal_of_fields(90, 350, steps[i]), 200);
        assert_int_equal(refusal_of_fields(90, 400, steps[i]), 431);
        assert_int_equal(refusal_of_fields(100000, 1, steps[i]), 431);
    }
}

static void test_body_of_one_byte_chunks(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    struct http_parse *p = calloc(1, sizeof(*p));
    http_parse_init(p);
    size_t used;
    assert_int_equal(http_parse_feed(p, CHUNKED, sizeof(CHUNKED) - 1, &used), HTTP_PARSE_HEAD);
    struct sl_buf wire = {.cap_bytes = 1 << 24};
    for (size_t i = 0; i < N; i++) {
        sl_buf_puts(&wire, "1\r\n");
        sl_buf_putc(&wire, (char)i);
        sl_buf_puts(&wire, "\r\n");
    }
    sl_buf_puts(&wire, "0\r\n\r\n");
    enum http_parse_end end = HTTP_PARSE_MORE;
    for (size_t at = 0; at < wire.len; at += used) {
        size_t n = wire.len - at < 65536 ? wire.len - at : 65536;
        end = http_parse_feed(p, wire.data + at, n, &used);
        assert_true(end == HTTP_PARSE_MORE || (end == HTTP_PARSE_DONE && at + used == wire.len));
    }
    assert_int_equal(end, HTTP_PARSE_DONE);
    assert_int_equal(p->body.len, N);
    for (size_t i = 0; i < N; i++)
        assert_int_equal((char)i, p->body.data[i]);
    assert_true(p->head.len < 256); /* chunk framing is not kept */
    sl_buf_free(&wire);
    http_parse_free(p);
    free(p);
}

static void test_largest_body(void **state)
{
    (void)state;
    static char block[65536];
    struct http_parse *p = calloc(1, sizeof(*p));
    http_parse_init(p);
    static const char head[] = POST "Content-Length: 8388608\r\n\r\n";
    size_t used, sent = 0;
    assert_int_equal(http_parse_feed(p, head, sizeof(head) - 1, &used), HTTP_PARSE_HEAD);
    enum http_parse_end end = HTTP_PARSE_MORE;
    for (; end == HTTP_PARSE_MORE; sent += used)
        end = http_parse_feed(p, block, sizeof(block), &used);
    assert_int_equal(end, HTTP_PARSE_DONE);
    assert_int_equal(sent, SL_LIMIT_http_body_bytes);
    assert_int_equal(p->body.len, SL_LIMIT_http_body_bytes);
    http_parse_free(p);
    free(p);
}

/* Random edits of good requests: whole and in random pieces, the verdict is the same. */
static void test_mutations_agree(void **state)
{
    (void)state;
    struct sl_rng rng = {.seed = 20240611};
    struct http_parse *p = calloc(2, sizeof(*p));
    for (int round = 0; round < 20000; round++) {
        const struct good_row *row =
            &good_rows[sl_rng_below(&rng, sizeof(good_rows) / sizeof(good_rows[0]))];
        char text[512];
        size_t len = strlen(row->bytes), taken[2];
        memcpy(text, row->bytes, len);
        for (uint32_t n = sl_rng_below(&rng, 3); n; n--)
            text[sl_rng_below(&rng, (uint32_t)len)] =
                "\r\n\t :;,0a\x00\xff#/?"[sl_rng_below(&rng, 14)];
        enum http_parse_end ends[2];
        for (int k = 0; k < 2; k++) {
            http_parse_init(&p[k]);
            size_t cut = k ? sl_rng_below(&rng, (uint32_t)len + 1) : len;
            ends[k] = feed_cut(&p[k], text, len, cut, &taken[k]);
        }
        bool same = ends[0] == ends[1] && p[0].http_status == p[1].http_status;
        if (ends[0] == HTTP_PARSE_DONE)
            same = same && taken[0] == taken[1] && p[0].body.len == p[1].body.len;
        if (!same)
            fail_msg("seed %llu, round %d: %d/%d", (unsigned long long)rng.seed, round,
                     p[0].http_status, p[1].http_status);
        http_parse_free(&p[0]);
        http_parse_free(&p[1]);
    }
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_rows_split_everywhere),
        cmocka_unit_test(test_good_rows_split_everywhere),
        cmocka_unit_test(test_line_limits),
        cmocka_unit_test(test_header_limits),
        cmocka_unit_test(test_body_of_one_byte_chunks),
        cmocka_unit_test(test_largest_body),
        cmocka_unit_test(test_mutations_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
