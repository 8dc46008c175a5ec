/* A server on a thread of its own and a blocking client, for the HTTP tests.
 *
 * Paths: /echo answers the body; /size/N and /stream/N answer N bytes of a pattern, the second as a
 * stream that honours back pressure; /hold answers only when fx_release is called. */
#ifndef SLUICE_TESTS_HTTP_FIXTURE_H
#define SLUICE_TESTS_HTTP_FIXTURE_H

#include <arpa/inet.h>
#include <errno.h>
#include <http/http_priv.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define PATTERN(i) ((char)('a' + (i) % 23))

struct fx {
    struct sl_loop *loop;
    struct sl_http_server *server;
    pthread_t thread;
    uint16_t port;
    sem_t held, closed, called, full;
    struct sl_http_req *hold; /* loop thread */
    atomic_int n_requests, n_sent_all, n_lost, n_drains;
    atomic_size_t n_written; /* bytes of streams */
};

struct stream {
    size_t at, n;
};

static inline void fx_stream_more(struct fx *f, struct sl_http_req *r)
{
    struct stream *s = sl_http_user(r);
    char block[1000];
    bool room = true;
    while (room && s->at < s->n) {
        size_t n = s->n - s->at < sizeof(block) ? s->n - s->at : sizeof(block);
        for (size_t i = 0; i < n; i++)
            block[i] = PATTERN(s->at + i);
        s->at += n;
        f->n_written += n;
        room = sl_http_stream_write(r, block, n);
    }
    if (s->at == s->n)
        sl_http_stream_end(r);
    else
        sem_post(&f->full);
}

static inline size_t fx_number(struct sl_str path, const char *prefix)
{
    char text[32] = {0};
    size_t skip = strlen(prefix);
    if (path.len <= skip || path.len - skip >= sizeof(text) || memcmp(path.data, prefix, skip) != 0)
        return SIZE_MAX;
    memcpy(text, path.data + skip, path.len - skip);
    return strtoul(text, NULL, 10);
}

static inline void fx_answer_size(struct sl_http_req *r, size_t n)
{
    char *body = malloc(n + 1);
    for (size_t i = 0; i < n; i++)
        body[i] = PATTERN(i);
    sl_http_respond(r, 200, "text/plain", "X-Test: 1\r\n", body, n);
    free(body);
}

static inline void fx_on_request(void *ctx, struct sl_http_req *r)
{
    struct fx *f = ctx;
    struct sl_str path = sl_http_path(r);
    size_t n;
    f->n_requests++;
    if (sl_str_eqz(path, "/hold")) {
        f->hold = r;
        sem_post(&f->held);
    } else if (sl_str_eqz(path, "/echo")) {
        struct sl_str body = sl_http_body(r);
        sl_http_respond(r, 200, "text/plain", NULL, body.data, body.len);
    } else if ((n = fx_number(path, "/size/")) != SIZE_MAX) {
        fx_answer_size(r, n);
    } else if ((n = fx_number(path, "/stream/")) != SIZE_MAX) {
        struct stream *s = calloc(1, sizeof(*s));
        s->n = n;
        sl_http_set_user(r, s);
        sl_http_stream_begin(r, 200, "text/event-stream", NULL);
        fx_stream_more(f, r);
    } else {
        sl_http_respond(r, 404, "text/plain", NULL, "none\n", 5);
    }
}

static inline void fx_on_close(void *ctx, struct sl_http_req *r, bool sent_all)
{
    struct fx *f = ctx;
    free(sl_http_user(r));
    if (f->hold == r)
        f->hold = NULL;
    (*(sent_all ? &f->n_sent_all : &f->n_lost))++;
    sem_post(&f->closed);
}

static inline void fx_on_drain(void *ctx, struct sl_http_req *r)
{
    struct fx *f = ctx;
    f->n_drains++;
    fx_stream_more(f, r);
}

static inline void fx_error_body(void *ctx, const struct sl_err *err, struct sl_buf *out)
{
    (void)ctx;
    sl_buf_puts(out, "{\"error\":");
    sl_buf_json_str(out, err->msg, strlen(err->msg));
    sl_buf_puts(out, "}");
}

static inline void *fx_main(void *ctx)
{
    struct fx *f = ctx;
    sl_loop_run(f->loop);
    sl_http_server_close(f->server);
    sl_loop_close(f->loop);
    return NULL;
}

/* `tuning` NULL: the product's. */
static inline void fx_open(struct fx *f, const struct http_tuning *tuning, const char *cert,
                           const char *key)
{
    memset(f, 0, sizeof(*f));
    sem_init(&f->held, 0, 0);
    sem_init(&f->closed, 0, 0);
    sem_init(&f->called, 0, 0);
    sem_init(&f->full, 0, 0);
    struct sl_http_config cfg = {"127.0.0.1", 0, cert, key};
    struct sl_http_handler h = {fx_on_request, fx_on_close, fx_on_drain, fx_error_body, f};
    struct sl_err err = {0};
    f->loop = sl_loop_open();
    assert_non_null(f->loop);
    if (sl_http_server_open(f->loop, &cfg, &h, &f->server, &err) != SL_OK)
        fail_msg("%s", err.msg);
    f->port = sl_http_server_port(f->server);
    if (tuning)
        http_server_tune(f->server, tuning);
    assert_int_equal(pthread_create(&f->thread, NULL, fx_main, f), 0);
}

static inline void fx_stop(void *ctx)
{
    struct fx *f = ctx;
    sl_loop_stop(f->loop);
}

static inline void fx_close(struct fx *f)
{
    sl_loop_post(f->loop, fx_stop, f);
    pthread_join(f->thread, NULL);
    sem_destroy(&f->held);
    sem_destroy(&f->closed);
    sem_destroy(&f->called);
    sem_destroy(&f->full);
}

/* Waits for an event of the server's thread; a hang fails the test. */
static inline void fx_wait(sem_t *s)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    while (sem_timedwait(s, &until))
        if (errno != EINTR)
            fail_msg("the awaited event did not come");
}

static inline void fx_called(void *ctx)
{
    struct fx *f = ctx;
    sem_post(&f->called);
}

/* Returns after the server's thread went twice around its loop: what was sent before is read. */
static inline void fx_barrier(struct fx *f)
{
    for (int i = 0; i < 2; i++) {
        sl_loop_post(f->loop, fx_called, f);
        fx_wait(&f->called);
    }
}

static inline void fx_do_release(void *ctx)
{
    struct fx *f = ctx;
    if (f->hold)
        sl_http_respond(f->hold, 200, "text/plain", NULL, "held", 4);
    sem_post(&f->called);
}

static inline void fx_release(struct fx *f)
{
    sl_loop_post(f->loop, fx_do_release, f);
    fx_wait(&f->called);
}

struct client {
    int fd;
    SSL *ssl;
    struct sl_buf in;
    size_t used;
};

struct reply {
    int status;
    bool close, chunked;
    char *body;
    size_t len;
};

static inline int client_socket(int receive_bytes)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {60, 0};
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (receive_bytes)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    return fd;
}

static inline void client_connect(struct client *c, int fd, uint16_t port)
{
    int on = 1;
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    *c = (struct client){.fd = fd};
    c->in.cap_bytes = (size_t)1 << 26;
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof(on));
}

static inline void client_open(struct client *c, const struct fx *f)
{
    client_connect(c, client_socket(0), f->port);
}

static inline void client_close(struct client *c)
{
    SSL_free(c->ssl);
    close(c->fd);
    sl_buf_free(&c->in);
}

/* Sends what the peer takes; a peer that closed early is fine, its answer is what counts. */
static inline void client_send(struct client *c, const char *data, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n;
        if (c->ssl)
            n = SSL_write(c->ssl, data + at, (int)(len - at));
        else
            n = send(c->fd, data + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        at += (size_t)n;
    }
}

static inline void client_puts(struct client *c, const char *text)
{
    client_send(c, text, strlen(text));
}

/* False at the end of the stream. */
static inline bool client_fill(struct client *c)
{
    char block[16384];
    ssize_t n =
        c->ssl ? SSL_read(c->ssl, block, sizeof(block)) : recv(c->fd, block, sizeof(block), 0);
    if (n < 0 && !c->ssl && errno == EAGAIN)
        fail_msg("the server does not answer");
    if (n > 0)
        sl_buf_append(&c->in, block, (size_t)n);
    return n > 0;
}

static inline bool client_need(struct client *c, size_t n)
{
    while (c->in.len - c->used < n)
        if (!client_fill(c))
            return false;
    return true;
}

/* A line without its CRLF, NUL-terminated in place. */
static inline char *client_line(struct client *c)
{
    for (;;) {
        char *at = c->in.data ? c->in.data + c->used : NULL;
        char *end = at ? memmem(at, c->in.len - c->used, "\r\n", 2) : NULL;
        if (end) {
            *end = 0;
            c->used += (size_t)(end - at) + 2;
            return at;
        }
        if (!client_fill(c))
            return NULL;
    }
}

static inline void reply_add(struct reply *r, struct client *c, size_t n)
{
    r->body = realloc(r->body, r->len + n + 1);
    memcpy(r->body + r->len, c->in.data + c->used, n);
    r->len += n;
    r->body[r->len] = 0;
    c->used += n;
}

static inline bool reply_read_chunks(struct client *c, struct reply *r)
{
    for (;;) {
        char *line = client_line(c);
        if (!line)
            return false;
        size_t n = strtoul(line, NULL, 16);
        if (!client_need(c, n + 2))
            return false;
        reply_add(r, c, n);
        c->used += 2;
        if (!n)
            return true;
    }
}

/* False when the stream ends before a whole reply. `has_body` false: the answer of a HEAD. */
static inline bool reply_read(struct client *c, struct reply *r, bool has_body)
{
    memset(r, 0, sizeof(*r));
    size_t length = SIZE_MAX;
    char *line = client_line(c);
    if (!line || strncmp(line, "HTTP/1.1 ", 9) != 0)
        return false;
    r->status = atoi(line + 9);
    while ((line = client_line(c)) && *line) {
        if (!strncasecmp(line, "Content-Length: ", 16))
            length = strtoul(line + 16, NULL, 10);
        r->close |= !strcasecmp(line, "Connection: close");
        r->chunked |= !strcasecmp(line, "Transfer-Encoding: chunked");
    }
    if (!line)
        return false;
    if (!has_body || r->status < 200)
        return true;
    if (r->chunked)
        return reply_read_chunks(c, r);
    if (length == SIZE_MAX) { /* until the close */
        while (client_fill(c))
            ;
        reply_add(r, c, c->in.len - c->used);
        return true;
    }
    if (!client_need(c, length))
        return false;
    reply_add(r, c, length);
    return true;
}

static inline void reply_free(struct reply *r)
{
    free(r->body);
    r->body = NULL;
}

static inline void check_pattern(const struct reply *r, size_t n)
{
    assert_int_equal(r->len, n);
    for (size_t i = 0; i < n; i++)
        if (r->body[i] != PATTERN(i))
            fail_msg("byte %zu of %zu is wrong", i, n);
}

/* Nothing more comes and the server closes. */
static inline void check_closed(struct client *c)
{
    while (client_fill(c))
        ;
    if (c->in.len != c->used)
        fail_msg("bytes behind the last answer: %.200s", c->in.data + c->used);
}

/* A fresh client gets its answer. */
static inline void check_alive(const struct fx *f)
{
    struct client c;
    struct reply r;
    client_open(&c, f);
    client_puts(&c, "GET /size/3 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(reply_read(&c, &r, true));
    assert_int_equal(r.status, 200);
    check_pattern(&r, 3);
    reply_free(&r);
    client_close(&c);
}

#endif
