/* Promises: over real sockets, one answer per good request in order, one refusal and a close for a
 * bad one whatever follows it, and answers of every size and kind arrive whole. */
#include "http_fixture.h"
#include "http_bad_rows.h"
#include <sluice/base/metrics.h>

static void check_refused(struct fx *f, const struct bad_row *row, size_t cut)
{
    struct client c;
    struct reply r;
    client_open(&c, f);
    client_send(&c, row->bytes, cut);
    if (cut < row->len) {
        fx_barrier(f);
        client_send(&c, row->bytes + cut, row->len - cut);
    }
    bool got = reply_read(&c, &r, true);
    if (!got || r.status != row->status || !r.close)
        fail_msg("'%s' cut at %zu: status %d, close %d, want %d", row->name, cut, r.status, r.close,
                 row->status);
    assert_non_null(strstr(r.body, "{\"error\":\"http: "));
    reply_free(&r);
    check_closed(&c);
    client_close(&c);
}

static void test_bad_rows(void **state)
{
    (void)state;
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    for (size_t i = 0; i < N_BAD_ROWS; i++)
        for (size_t cut = 1; cut <= bad_rows[i].len; cut++)
            check_refused(&f, &bad_rows[i], cut);
    check_alive(&f);
    assert_int_equal(f.n_requests, 1); /* the one of check_alive */
    fx_close(&f);
}

/* What stands behind a request whose end two readers could see differently is never served. */
static void test_smuggling(void **state)
{
    (void)state;
#define NEXT "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"
    static const char *const rows[] = {
        POST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
        POST "Transfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n" NEXT,
        POST "Content-Length: 0\r\nContent-Length: 30\r\n\r\n" NEXT,
        POST "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT,
        POST "Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" NEXT,
        POST "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" NEXT,
        POST "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" NEXT,
        CHUNKED "1\r\na0\r\n\r\n" NEXT,
        CHUNKED "0\n\n" NEXT,
    };
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct client c;
        struct reply r;
        client_open(&c, &f);
        client_puts(&c, rows[i]);
        assert_true(reply_read(&c, &r, true));
        assert_int_equal(r.status, 400);
        reply_free(&r);
        check_closed(&c);
        client_close(&c);
    }
    assert_int_equal(f.n_requests, 0);
    fx_close(&f);
}

static void get(struct client *c, const char *line, struct reply *r, bool has_body)
{
    client_puts(c, line);
    client_puts(c, "Host: a\r\n\r\n");
    if (!reply_read(c, r, has_body))
        fail_msg("no whole answer to %s", line);
}

static void test_sizes(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,     1,     999,   1000,   1001,   16384,
                                   65535, 65536, 65537, 300000, 1048576};
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        for (int kind = 0; kind < 4; kind++) {
            char line[80];
            const char *path = kind & 1 ? "stream" : "size";
            snprintf(line, sizeof(line), "%s /%s/%zu HTTP/1.1\r\n", kind & 2 ? "HEAD" : "GET", path,
                     sizes[i]);
            get(&c, line, &r, !(kind & 2));
            assert_int_equal(r.status, 200);
            assert_int_equal(r.chunked, kind & 1);
            check_pattern(&r, kind & 2 ? 0 : sizes[i]);
            assert_false(r.close);
            reply_free(&r);
        }
    client_close(&c);
    fx_close(&f);
}

static void test_http10(void **state)
{
    (void)state;
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    static const char *const lines[] = {
        "GET /size/5000 HTTP/1.0\r\n", "GET /stream/200000 HTTP/1.0\r\nConnection: keep-alive\r\n"};
    static const size_t sizes[] = {5000, 200000};
    for (int i = 0; i < 2; i++) {
        struct client c;
        struct reply r;
        client_open(&c, &f);
        get(&c, lines[i], &r, true);
        assert_false(r.chunked);
        assert_true(r.close);
        check_pattern(&r, sizes[i]);
        reply_free(&r);
        check_closed(&c);
        client_close(&c);
    }
    struct client c;
    struct reply r;
    client_open(&c, &f);
    for (int i = 0; i < 2; i++) {
        get(&c, "GET /size/10 HTTP/1.0\r\nConnection: keep-alive\r\n", &r, true);
        assert_false(r.close);
        reply_free(&r);
    }
    client_close(&c);
    fx_close(&f);
}

/* The first request is held while many arrive behind it, more than is kept in memory. */
static void test_pipeline(void **state)
{
    (void)state;
    enum { N = 3000 };
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    for (int i = 0; i < N; i++) {
        char text[160];
        int body = snprintf(text, sizeof(text), "number %d", i);
        snprintf(text, sizeof(text),
                 "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nnumber %d", body, i);
        client_puts(&c, text);
    }
    fx_wait(&f.held);
    fx_barrier(&f);
    assert_int_equal(f.n_requests, 1);
    fx_release(&f);
    assert_true(reply_read(&c, &r, true));
    assert_string_equal(r.body, "held");
    reply_free(&r);
    for (int i = 0; i < N; i++) {
        char want[32];
        snprintf(want, sizeof(want), "number %d", i);
        assert_true(reply_read(&c, &r, true));
        assert_string_equal(r.body, want);
        reply_free(&r);
    }
    client_close(&c);
    fx_close(&f);
}

static void test_connection_close(void **state)
{
    (void)state;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "GET /size/9 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" NEXT);
    assert_true(reply_read(&c, &r, true));
    assert_true(r.close);
    check_pattern(&r, 9);
    reply_free(&r);
    check_closed(&c);
    client_close(&c);
    assert_int_equal(f.n_requests, 1);
    fx_close(&f);
}

static void test_expect_continue(void **state)
{
    (void)state;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                    "Content-Length: 4\r\n\r\n");
    assert_true(reply_read(&c, &r, false));
    assert_int_equal(r.status, 100);
    client_puts(&c, "body");
    assert_true(reply_read(&c, &r, true));
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "body");
    reply_free(&r);
    client_puts(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                    "Content-Length: 8388609\r\n\r\n");
    assert_true(reply_read(&c, &r, true)); /* the refusal comes instead of the 100 */
    assert_int_equal(r.status, 413);
    reply_free(&r);
    check_closed(&c);
    client_close(&c);
    fx_close(&f);
}

/* A client that sends all of a body that is too large before it reads still gets the 413. */
static void test_too_large_body_sent_whole(void **state)
{
    (void)state;
    enum { N = 8 << 20 };
    struct http_tuning t = http_tuning_default();
    t.linger_ms = 60000; /* however slow this machine is */
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, &t, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8388609\r\n\r\n");
    char *body = calloc(1, N);
    client_send(&c, body, N);
    free(body);
    assert_true(reply_read(&c, &r, true));
    assert_int_equal(r.status, 413);
    reply_free(&r);
    client_close(&c);
    assert_int_equal(f.n_requests, 0);
    fx_close(&f);
}

static void test_large_bodies(void **state)
{
    (void)state;
    enum { N = 8 << 20 };
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    char *body = malloc(N);
    for (size_t i = 0; i < N; i++)
        body[i] = PATTERN(i);
    client_puts(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n");
    client_send(&c, body, N);
    free(body);
    assert_true(reply_read(&c, &r, true));
    check_pattern(&r, N);
    reply_free(&r);
    client_close(&c);
    fx_close(&f);
}

static void test_many_at_once(void **state)
{
    (void)state;
    enum { N = 200 };
    static struct client c[N];
    struct fx f;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N && round == 0; i++)
            client_open(&c[i], &f);
        for (int i = 0; i < N; i++)
            client_puts(&c[i], round == 1 ? "GET /stream/5000 HTTP/1.1\r\nHost: a\r\n\r\n"
                                          : "GET /size/5000 HTTP/1.1\r\nHost: a\r\n\r\n");
        for (int i = N - 1; i >= 0; i--) {
            assert_true(reply_read(&c[i], &r, true));
            check_pattern(&r, 5000);
            reply_free(&r);
        }
    }
    for (int i = 0; i < N; i++)
        fx_wait(&f.closed);
    assert_true(sl_metric_value(&http_m_connections) >= N);
    for (int i = 0; i < N; i++)
        client_close(&c[i]);
    fx_close(&f);
    assert_true(sl_metric_value(&http_m_connections) == 0);
}

static void test_unknown_path_and_method(void **state)
{
    (void)state;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c, &f);
    get(&c, "FROB /nothing HTTP/1.1\r\n", &r, true);
    assert_int_equal(r.status, 404); /* the handler's own answer */
    reply_free(&r);
    client_close(&c);
    fx_close(&f);
}

static void test_port_in_use(void **state)
{
    (void)state;
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    struct sl_loop *loop = sl_loop_open();
    struct sl_http_handler h = {fx_on_request, fx_on_close, fx_on_drain, NULL, NULL};
    struct sl_http_config cfg = {"127.0.0.1", f.port, NULL, NULL};
    struct sl_http_server *s;
    struct sl_err err;
    assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_PORT_IN_USE);
    assert_non_null(strstr(err.msg, "already in use"));
    cfg.host = "localhost";
    assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_PORT_IN_USE);
    cfg.host = NULL; /* never all interfaces by default */
    assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_CONFIG);
    cfg.host = "192.0.2.1"; /* documentation range: never ours */
    assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_CONFIG);
    cfg.host = "not a host";
    assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_CONFIG);
    sl_loop_close(loop);
    fx_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_rows),
        cmocka_unit_test(test_smuggling),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_http10),
        cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_connection_close),
        cmocka_unit_test(test_expect_continue),
        cmocka_unit_test(test_too_large_body_sent_whole),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_unknown_path_and_method),
        cmocka_unit_test(test_port_in_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
