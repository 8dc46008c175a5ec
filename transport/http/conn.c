/* A connection: bytes in, one request at a time to the handler, deadlines.
 *
 * While the handler has a request the socket stays watched; what a pipelining client sends
 * meanwhile is kept up to PEND_MAX, beyond which reading pauses. A connection is freed only in its
 * close callback, so a pointer to it stays good through every callback. */
#include "http_priv.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sluice/base/metrics.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define PEND_MAX ((size_t)32768)
/* A refused client often sends its whole body before it reads. Closing on unread bytes would reset
 * the connection and may take the answer along, so this much is read and dropped first. */
#define LINGER_BYTES ((size_t)65536)
#define SPARE_REQS   256

static struct sl_http_req *req_take(struct http_conn *c)
{
    struct sl_http_server *s = c->srv;
    struct sl_http_req *r;
    if (sl_list_empty(&s->spare_reqs)) {
        r = calloc(1, sizeof(*r));
        if (!r)
            return NULL;
        http_parse_init(&r->parse);
    } else {
        r = SL_ENTRY(s->spare_reqs.next, struct sl_http_req, spare);
        sl_list_remove(&r->spare);
        s->n_spare--;
    }
    r->conn = c;
    r->user = NULL;
    r->answering = r->answered = r->chunked = r->no_body = r->full = false;
    return r;
}

static void req_give(struct http_conn *c)
{
    struct sl_http_server *s = c->srv;
    struct sl_http_req *r = c->req;
    c->req = NULL;
    if (!r)
        return;
    if (s->closed || s->n_spare == SPARE_REQS) {
        http_parse_free(&r->parse);
        free(r);
        return;
    }
    http_parse_reset(&r->parse);
    sl_list_push_front(&s->spare_reqs, &r->spare);
    s->n_spare++;
}

void http_conn_wait(struct http_conn *c, enum http_wait kind)
{
    sl_list_remove(&c->wait);
    c->waits_for = (uint8_t)kind;
    if (kind == HTTP_N_WAITS)
        return;
    sl_list_push_back(&c->srv->waits[kind], &c->wait);
    c->since_ms = uv_now(c->tcp.loop);
}

void http_conn_wait_busy(struct http_conn *c)
{
    http_conn_wait(c, c->reading ? HTTP_N_WAITS : HTTP_WAIT_PEER);
}

static void conn_free(uv_handle_t *tcp)
{
    struct http_conn *c = tcp->data;
    struct sl_http_server *s = c->srv;
    http_send_free(c);
    http_tls_free(c->tls);
    sl_buf_free(&c->pend);
    http_server_conn_gone(s, c);
    free(c);
}

/* The handler hears of the end before anything is freed. */
static void end_request(struct http_conn *c, bool sent_all)
{
    struct sl_http_server *s = c->srv;
    if (c->state == HTTP_CONN_BUSY && c->req) {
        s->n_busy--;
        c->state = HTTP_CONN_LINGER;
        s->handler.on_close(s->handler.ctx, c->req, sent_all);
    }
    req_give(c);
}

void http_conn_lost(struct http_conn *c, bool reset)
{
    if (c->closing)
        return;
    c->closing = true;
    http_conn_wait(c, HTTP_N_WAITS);
    sl_list_remove(&c->dirty);
    end_request(c, false);
    if (!reset || uv_tcp_close_reset(&c->tcp, conn_free))
        uv_close((uv_handle_t *)&c->tcp, conn_free);
}

static void linger(struct http_conn *c, size_t bytes)
{
    c->state = HTTP_CONN_LINGER;
    c->keep_alive = false;
    c->linger_left = bytes;
    sl_buf_free(&c->pend);
    c->pend_used = 0;
    http_conn_wait(c, HTTP_WAIT_LINGER);
}

void http_conn_refuse(struct http_conn *c, int http_status, const struct sl_err *err)
{
    struct sl_http_server *s = c->srv;
    struct sl_buf body = {.cap_bytes = 65536};
    const char *type = "application/json";
    if (s->handler.error_body) {
        s->handler.error_body(s->handler.ctx, err, &body);
    } else {
        type = "text/plain";
        sl_buf_printf(&body, "%s\n", err->msg);
    }
    bool no_body = c->req && http_parse_is_head_method(&c->req->parse);
    linger(c, http_status == 413 ? SL_LIMIT_http_body_bytes : LINGER_BYTES);
    http_respond_refusal(c, http_status, type, &body, no_body);
    sl_buf_free(&body);
    req_give(c);
}

static void resume_reading(struct http_conn *c);

/* Gives the complete request to the handler. */
static void hand_over(struct http_conn *c)
{
    struct sl_http_server *s = c->srv;
    c->state = HTTP_CONN_BUSY;
    c->keep_alive = c->req->parse.keep_alive;
    s->n_busy++;
    http_conn_wait_busy(c);
    sl_metric_add(&http_m_requests, 1);
    s->handler.on_request(s->handler.ctx, c->req);
}

/* The head is good and a body is to come. */
static void begin_body(struct http_conn *c, bool more_at_hand)
{
    c->body_mark = 0;
    http_conn_wait(c, HTTP_WAIT_BODY);
    if (!c->req->parse.expect_continue || more_at_hand)
        return;
    sl_buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    http_server_mark_dirty(c);
}

/* Parses until a request is complete or the bytes are used up; returns how many were taken. */
static size_t parse_some(struct http_conn *c, const char *data, size_t len)
{
    size_t at = 0;
    while (at < len && c->state == HTTP_CONN_READ && !c->closing) {
        if (!c->req) {
            c->req = req_take(c);
            if (!c->req) {
                http_conn_lost(c, true);
                return len;
            }
            if (c->waits_for != HTTP_WAIT_HEAD)
                http_conn_wait(c, HTTP_WAIT_HEAD);
        }
        size_t used = 0;
        enum http_parse_end end = http_parse_feed(&c->req->parse, data + at, len - at, &used);
        at += used;
        if (end == HTTP_PARSE_HEAD)
            begin_body(c, at < len);
        if (end == HTTP_PARSE_DONE)
            hand_over(c);
        if (end == HTTP_PARSE_BAD) {
            struct sl_err err = c->req->parse.err;
            sl_metric_add(&http_m_bad, 1);
            http_conn_refuse(c, c->req->parse.http_status, &err);
        }
    }
    return at;
}

static void pause_reading(struct http_conn *c)
{
    if (c->reading)
        uv_read_stop((uv_stream_t *)&c->tcp);
    c->reading = false;
}

/* Keeps what cannot be parsed before the answer is out. */
static void keep(struct http_conn *c, const char *data, size_t len)
{
    if (!len || c->closing)
        return;
    sl_buf_append(&c->pend, data, len);
    if (c->pend.failed)
        http_conn_lost(c, true);
    if (c->closing || c->pend.len - c->pend_used <= PEND_MAX)
        return;
    pause_reading(c);
    if (c->waits_for == HTTP_N_WAITS)
        http_conn_wait_busy(c);
}

static void drop(struct http_conn *c, size_t len)
{
    if (len >= c->linger_left && c->shut) {
        http_conn_lost(c, false);
        return;
    }
    c->linger_left -= len < c->linger_left ? len : c->linger_left;
    if (!c->linger_left)
        pause_reading(c); /* until the answer is out */
}

void http_conn_input(struct http_conn *c, const char *data, size_t len)
{
    if (c->closing || !len)
        return;
    if (c->state == HTTP_CONN_LINGER) {
        drop(c, len);
        return;
    }
    size_t used = c->pend.len == 0 ? parse_some(c, data, len) : 0;
    if (c->state != HTTP_CONN_LINGER)
        keep(c, data + used, len - used);
}

/* Goes on with input that waited behind the last request. */
static void pump(struct http_conn *c)
{
    while (c->state == HTTP_CONN_READ && !c->closing && c->pend_used < c->pend.len) {
        size_t used = parse_some(c, c->pend.data + c->pend_used, c->pend.len - c->pend_used);
        c->pend_used += used;
    }
    if (c->pend_used >= c->pend.len) {
        sl_buf_free(&c->pend);
        c->pend_used = 0;
    }
    if (!c->closing && c->pend.len - c->pend_used <= PEND_MAX)
        resume_reading(c);
}

static void half_close(struct http_conn *c)
{
    uv_os_fd_t fd;
    c->shut = true;
    if (uv_fileno((uv_handle_t *)&c->tcp, &fd) == 0)
        shutdown(fd, SHUT_WR);
    if (!c->linger_left)
        http_conn_lost(c, false);
}

void http_conn_answered(struct http_conn *c)
{
    if (c->state == HTTP_CONN_BUSY) {
        bool keep_open = c->keep_alive;
        end_request(c, true);
        if (c->closing)
            return;
        if (keep_open) {
            c->state = HTTP_CONN_READ;
            http_conn_wait(c, HTTP_WAIT_IDLE);
            pump(c);
            return;
        }
        linger(c, LINGER_BYTES);
        http_server_mark_dirty(c); /* close_notify */
        return;
    }
    if (c->state == HTTP_CONN_LINGER && !c->shut)
        half_close(c);
}

void http_conn_drain(struct http_conn *c)
{
    bool idle = c->state == HTTP_CONN_READ && (!c->req || !c->req->parse.started);
    if (idle && c->out.len == 0 && !c->writing)
        http_conn_lost(c, false);
}

static void timed_out(struct http_conn *c, const char *what)
{
    struct sl_err err;
    if (!c->req) { /* nothing of a request came: nothing to answer */
        http_conn_lost(c, false);
        return;
    }
    sl_metric_add(&http_m_slow, 1);
    sl_fail(&err, SL_TIMEOUT, "http: %s", what);
    http_conn_refuse(c, 408, &err);
}

static void check_body_rate(struct http_conn *c)
{
    size_t now = c->req->parse.body.len;
    uint64_t want = c->srv->tuning.body_rate * c->srv->tuning.body_grace_ms / 1000;
    if (now - c->body_mark < want) {
        timed_out(c, "the request body came slower than http_body_rate");
        return;
    }
    c->body_mark = now;
    http_conn_wait(c, HTTP_WAIT_BODY);
}

/* While reading is paused libuv does not see a FIN or RST; the kernel's state tells. */
static void check_peer(struct http_conn *c)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);
    uv_os_fd_t fd;
    if (uv_fileno((uv_handle_t *)&c->tcp, &fd) ||
        getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) || info.tcpi_state != TCP_ESTABLISHED) {
        http_conn_lost(c, false);
        return;
    }
    http_conn_wait_busy(c);
}

void http_conn_expired(struct http_conn *c)
{
    switch (c->waits_for) {
    case HTTP_WAIT_HEAD:
        timed_out(c, "the request header took longer than http_header_ms");
        return;
    case HTTP_WAIT_BODY:
        check_body_rate(c);
        return;
    case HTTP_WAIT_WRITE:
        sl_metric_add(&http_m_slow, 1);
        http_conn_lost(c, true); /* a reset frees what the kernel still holds */
        return;
    case HTTP_WAIT_PEER:
        check_peer(c);
        return;
    default: /* idle, linger */
        http_conn_lost(c, false);
    }
}

static void give_input(uv_handle_t *tcp, size_t hint, uv_buf_t *buf)
{
    struct http_conn *c = tcp->data;
    (void)hint;
    *buf = uv_buf_init(c->srv->input, sizeof(c->srv->input));
}

/* The peer is gone, or at least done sending. An answer that is complete still gets one chance to
 * leave: clients that half-close after the request are answered if the answer was at hand. */
static void input_ended(struct http_conn *c)
{
    if (c->closing)
        return;
    if (c->state == HTTP_CONN_LINGER && !c->shut) {
        c->linger_left = 0;
        pause_reading(c);
        return;
    }
    if (c->state == HTTP_CONN_BUSY && c->req->answered)
        http_send_flush(c);
    if (!c->closing)
        http_conn_lost(c, false);
}

static void tls_input(struct http_conn *c, const char *data, size_t len)
{
    struct sl_http_server *s = c->srv;
    if (!http_tls_put(c->tls, data, len)) {
        http_conn_lost(c, true);
        return;
    }
    int n = 0;
    while (!c->closing && (n = http_tls_get(c->tls, s->clear, sizeof(s->clear))) > 0)
        http_conn_input(c, s->clear, (size_t)n);
    if (c->closing)
        return;
    if (http_tls_has_output(c->tls))
        http_server_mark_dirty(c);
    if (n == -1)
        input_ended(c);
    if (n == -2) {
        http_send_flush(c); /* the alert */
        if (!c->closing)
            http_conn_lost(c, false);
    }
}

static void on_read(uv_stream_t *tcp, ssize_t n, const uv_buf_t *buf)
{
    struct http_conn *c = tcp->data;
    if (c->closing || n == 0)
        return;
    if (n < 0)
        input_ended(c);
    else if (c->tls)
        tls_input(c, buf->base, (size_t)n);
    else
        http_conn_input(c, buf->base, (size_t)n);
}

static void resume_reading(struct http_conn *c)
{
    if (!c->reading && !c->closing && !uv_read_start((uv_stream_t *)&c->tcp, give_input, on_read))
        c->reading = true;
}

/* TCP_NOTSENT_LOWAT keeps a slow reader's backlog in our bounded buffer instead of the kernel's
 * megabytes. */
static void set_options(const struct sl_http_server *s, int fd)
{
    int on = 1, unsent = SL_LIMIT_http_stream_buffer_bytes, size = s->tuning.send_buffer_bytes;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
    if (size)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

bool http_conn_open(struct sl_http_server *s, int fd)
{
    struct http_conn *c = calloc(1, sizeof(*c));
    if (!c)
        return false;
    if (s->tls && !(c->tls = http_tls_new(s->tls))) {
        free(c);
        return false;
    }
    c->srv = s;
    c->out.cap_bytes = c->wire.cap_bytes = (size_t)1 << 30;
    c->pend.cap_bytes = (size_t)1 << 20;
    c->waits_for = HTTP_N_WAITS;
    set_options(s, fd);
    uv_tcp_init(sl_loop_uv(s->loop), &c->tcp);
    c->tcp.data = c;
    s->n_conns++;
    sl_list_push_back(&s->conns, &c->node);
    sl_metric_add(&http_m_connections, 1);
    if (uv_tcp_open(&c->tcp, fd)) {
        http_conn_lost(c, false);
        return false;
    }
    http_conn_wait(c, HTTP_WAIT_HEAD);
    resume_reading(c);
    return true;
}
