/* Promises: deadlines cut slow clients and no others, a client that leaves is noticed while its
 * request waits, a slow reader holds back only itself and little memory, caps pause and recover,
 * drain and close end every request with exactly one on_close. Deadlines are scaled down; nothing
 * here sleeps, every wait is for an event. */
#include "http_fixture.h"
#include <sluice/base/metrics.h>
#include <sys/resource.h>
#include <sys/time.h>

#define HOLD "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"

static struct http_tuning quick(void)
{
    struct http_tuning t = http_tuning_default();
    t.tick_ms = 5;
    return t;
}

static void expect_status(struct client *c, int status)
{
    struct reply r;
    if (!reply_read(c, &r, true))
        fail_msg("no answer, want %d", status);
    assert_int_equal(r.status, status);
    assert_true(r.close);
    reply_free(&r);
    check_closed(c);
}

static void test_slow_header(void **state)
{
    (void)state;
    static const char *const starts[] = {"G", "GET / HTTP/1.1\r\nHost:", "\r", "GET /\r"};
    struct http_tuning t = quick();
    t.header_ms = 300; /* longer than a busy machine takes from connect to send */
    struct fx f;
    fx_open(&f, &t, NULL, NULL);
    double slow = sl_metric_value(&http_m_slow);
    for (int i = 0; i < 4; i++) {
        struct client c;
        client_open(&c, &f);
        client_puts(&c, starts[i]);
        expect_status(&c, i == 3 ? 400 : 408); /* the last is HTTP/0.9 */
        client_close(&c);
    }
    assert_true(sl_metric_value(&http_m_slow) == slow + 3);
    struct client c;
    client_open(&c, &f); /* says nothing: closed without an answer */
    check_closed(&c);
    client_close(&c);
    fx_close(&f);
}

/* One byte at a time does not win more time: the deadline is for the whole header. */
static void test_trickled_header(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    t.header_ms = 300;
    struct fx f;
    struct client c;
    fx_open(&f, &t, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "GET / HTTP/1.1\r\n");
    struct timeval brief = {0, 10000};
    setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &brief, sizeof(brief));
    char block[512];
    ssize_t n = -1;
    for (int i = 0; i < 1000 && n < 0; i++) { /* each turn: one more byte, 10 ms for an answer */
        client_puts(&c, "X");
        n = recv(c.fd, block, sizeof(block), 0);
    }
    assert_true(n > 12);
    assert_memory_equal(block, "HTTP/1.1 408", 12);
    client_close(&c);
    fx_close(&f);
}

static void test_slow_body(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    t.body_grace_ms = 50;
    struct fx f;
    fx_open(&f, &t, NULL, NULL);
    static const char *const starts[] = {
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    };
    for (int i = 0; i < 2; i++) {
        struct client c;
        client_open(&c, &f);
        client_puts(&c, starts[i]);
        expect_status(&c, 408);
        client_close(&c);
    }
    assert_int_equal(f.n_requests, 0);
    fx_close(&f);
}

static void test_idle_is_closed(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    t.idle_ms = 50;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, &t, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, "GET /size/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(reply_read(&c, &r, true));
    reply_free(&r);
    check_closed(&c);
    client_close(&c);
    fx_close(&f);
}

static void do_shorten(void *ctx)
{
    struct fx *f = ctx;
    struct http_tuning t = quick();
    t.idle_ms = t.header_ms = t.write_stall_ms = 20;
    http_server_tune(f->server, &t);
    sem_post(&f->called);
}

/* A request that is with its handler has no deadline here: that is the handler's business. */
static void test_waiting_is_not_idle(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    struct fx f;
    struct client c, idle;
    struct reply r;
    fx_open(&f, &t, NULL, NULL);
    client_open(&c, &f);
    client_puts(&c, HOLD);
    fx_wait(&f.held);
    sl_loop_post(f.loop, do_shorten, &f);
    fx_wait(&f.called);
    for (int i = 0; i < 3; i++) { /* three idle clients time out one after the other meanwhile */
        client_open(&idle, &f);
        check_closed(&idle);
        client_close(&idle);
    }
    fx_release(&f);
    assert_true(reply_read(&c, &r, true));
    assert_string_equal(r.body, "held");
    reply_free(&r);
    client_close(&c);
    fx_close(&f);
}

enum leave { LEAVE_FIN, LEAVE_RST, LEAVE_HALF, LEAVE_AFTER_PIPELINE, N_LEAVES };

static void leave(struct client *c, enum leave how)
{
    struct linger reset = {1, 0};
    if (how == LEAVE_RST)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    if (how == LEAVE_HALF)
        shutdown(c->fd, SHUT_WR);
    if (how == LEAVE_AFTER_PIPELINE) { /* so much that reading is paused */
        char *junk = malloc(90000);
        memset(junk, 'A', 90000);
        client_send(c, junk, 90000);
        free(junk);
    }
    if (how != LEAVE_HALF)
        client_close(c);
}

static void test_leaving_is_noticed(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    struct fx f;
    fx_open(&f, &t, NULL, NULL);
    int n = 0;
    for (int round = 0; round < 25; round++)
        for (int how = 0; how < N_LEAVES; how++) {
            struct client c;
            client_open(&c, &f);
            client_puts(&c, HOLD);
            fx_wait(&f.held);
            leave(&c, (enum leave)how);
            fx_wait(&f.closed);
            assert_int_equal(f.n_lost, ++n);
            if (how == LEAVE_HALF)
                client_close(&c);
        }
    assert_int_equal(f.n_sent_all, 0);
    check_alive(&f);
    fx_close(&f);
}

/* Leaving while the request still arrives, or in the middle of a stream. */
static void test_leaving_in_other_phases(void **state)
{
    (void)state;
    static const char *const parts[] = {
        "", "GET", "GET / HTTP/1.1\r\nHost",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"};
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        for (int how = 0; how < 2; how++) {
            struct client c;
            client_open(&c, &f);
            client_puts(&c, parts[i]);
            fx_barrier(&f);
            leave(&c, (enum leave)how);
        }
    fx_barrier(&f);
    assert_int_equal(f.n_requests, 0);
    for (int how = 0; how < 2; how++) {
        struct client c;
        client_open(&c, &f);
        client_puts(&c, "GET /stream/100000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        fx_wait(&f.full);
        leave(&c, (enum leave)how);
        fx_wait(&f.closed);
        assert_int_equal(f.n_lost, how + 1);
    }
    fx_close(&f);
}

/* A half-closing client is answered when the answer is at hand at once. */
static void test_half_close_after_request(void **state)
{
    (void)state;
    struct fx f;
    fx_open(&f, NULL, NULL, NULL);
    for (int i = 0; i < 20; i++) {
        struct client c;
        struct reply r;
        client_open(&c, &f);
        client_puts(&c, i & 1 ? "GET /size/100 HTTP/1.1\r\nHost: a\r\n\r\n" : "bad\r\n\r\n");
        shutdown(c.fd, SHUT_WR);
        assert_true(reply_read(&c, &r, true));
        assert_int_equal(r.status, i & 1 ? 200 : 400);
        reply_free(&r);
        check_closed(&c);
        client_close(&c);
    }
    fx_close(&f);
}

static void test_slow_reader_holds_back_itself(void **state)
{
    (void)state;
    enum { N = 4000000 };
    struct http_tuning t = quick();
    t.send_buffer_bytes = 16384;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, &t, NULL, NULL);
    client_connect(&c, client_socket(8192), f.port);
    char line[80];
    snprintf(line, sizeof(line), "GET /stream/%d HTTP/1.1\r\nHost: a\r\n\r\n", N);
    client_puts(&c, line);
    fx_wait(&f.full);
    fx_barrier(&f);
    size_t kept = f.n_written;
    assert_true(kept < 1000000); /* our buffer and the two sockets' */
    for (int i = 0; i < 10; i++)
        check_alive(&f);
    fx_barrier(&f);
    assert_true(f.n_written == kept);
    int wide = 1 << 20; /* a window of 8 KiB would take minutes */
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &wide, sizeof(wide));
    assert_true(reply_read(&c, &r, true)); /* now it reads, and gets all */
    check_pattern(&r, N);
    assert_true(f.n_drains > 0);
    reply_free(&r);
    client_close(&c);
    fx_close(&f);
}

static void test_reader_without_progress_is_cut(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    t.send_buffer_bytes = 16384;
    t.write_stall_ms = 60;
    struct fx f;
    struct client c;
    fx_open(&f, &t, NULL, NULL);
    client_connect(&c, client_socket(8192), f.port);
    client_puts(&c, "GET /stream/100000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    double slow = sl_metric_value(&http_m_slow);
    fx_wait(&f.closed);
    assert_int_equal(f.n_lost, 1);
    assert_true(sl_metric_value(&http_m_slow) == slow + 1);
    client_close(&c);
    fx_close(&f);
}

static void test_connection_cap_pauses_accept(void **state)
{
    (void)state;
    struct http_tuning t = quick();
    t.connections = 2;
    struct fx f;
    struct client c[3];
    struct reply r;
    fx_open(&f, &t, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        client_open(&c[i], &f);
        client_puts(&c[i], "GET /size/1 HTTP/1.1\r\nHost: a\r\n\r\n");
        if (i < 2) {
            assert_true(reply_read(&c[i], &r, true));
            reply_free(&r);
        }
    }
    fx_barrier(&f);
    assert_int_equal(f.n_requests, 2); /* the third waits in the kernel's queue */
    client_close(&c[0]);
    assert_true(reply_read(&c[2], &r, true));
    reply_free(&r);
    client_close(&c[1]);
    client_close(&c[2]);
    fx_close(&f);
}

static void test_descriptors_run_out(void **state)
{
    (void)state;
    enum { N = 4 };
    struct http_tuning t = quick();
    struct fx f;
    struct client c[N];
    struct reply r;
    struct rlimit was, low;
    fx_open(&f, &t, NULL, NULL);
    int fds[N], last = 0;
    for (int i = 0; i < N; i++)
        last = fds[i] = client_socket(0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
    low = was;
    low.rlim_cur = (rlim_t)last + 1;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int i = 0; i < N; i++) {
        client_connect(&c[i], fds[i], f.port);
        client_puts(&c[i], "GET /size/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    fx_barrier(&f); /* the loop still turns */
    assert_int_equal(f.n_requests, 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
    for (int i = 0; i < N; i++) {
        assert_true(reply_read(&c[i], &r, true));
        reply_free(&r);
        client_close(&c[i]);
    }
    fx_close(&f);
}

static void do_drain(void *ctx)
{
    struct fx *f = ctx;
    sl_http_server_drain(f->server);
    sem_post(&f->called);
}

static void test_drain(void **state)
{
    (void)state;
    struct fx f;
    struct client idle, half, busy;
    struct reply r;
    fx_open(&f, NULL, NULL, NULL);
    client_open(&idle, &f);
    client_puts(&idle, "GET /size/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(reply_read(&idle, &r, true));
    reply_free(&r);
    client_open(&half, &f);
    client_puts(&half, "GET /size/2 HTTP/1.1\r\n");
    client_open(&busy, &f);
    client_puts(&busy, HOLD);
    fx_wait(&f.held);
    fx_barrier(&f);
    sl_loop_post(f.loop, do_drain, &f);
    fx_wait(&f.called);
    check_closed(&idle);
    client_puts(&half, "Host: a\r\n\r\n");
    assert_true(reply_read(&half, &r, true));
    assert_int_equal(r.status, 200);
    assert_true(r.close);
    reply_free(&r);
    fx_release(&f);
    assert_true(reply_read(&busy, &r, true));
    assert_string_equal(r.body, "held");
    assert_true(r.close);
    reply_free(&r);
    check_closed(&busy);
    int fd = client_socket(0);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(f.port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), -1);
    close(fd);
    client_close(&idle);
    client_close(&half);
    client_close(&busy);
    fx_close(&f);
}

static void test_close_ends_held_requests(void **state)
{
    (void)state;
    struct fx f;
    struct client c[2];
    fx_open(&f, NULL, NULL, NULL);
    client_open(&c[0], &f);
    client_puts(&c[0], HOLD);
    fx_wait(&f.held);
    client_open(&c[1], &f);
    client_puts(&c[1], "GET /stream/100000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    fx_wait(&f.full);
    fx_close(&f);
    assert_int_equal(f.n_lost, 2);
    client_close(&c[0]);
    client_close(&c[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_header),
        cmocka_unit_test(test_trickled_header),
        cmocka_unit_test(test_slow_body),
        cmocka_unit_test(test_idle_is_closed),
        cmocka_unit_test(test_waiting_is_not_idle),
        cmocka_unit_test(test_leaving_is_noticed),
        cmocka_unit_test(test_leaving_in_other_phases),
        cmocka_unit_test(test_half_close_after_request),
        cmocka_unit_test(test_slow_reader_holds_back_itself),
        cmocka_unit_test(test_reader_without_progress_is_cut),
        cmocka_unit_test(test_connection_cap_pauses_accept),
        cmocka_unit_test(test_descriptors_run_out),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_close_ends_held_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
