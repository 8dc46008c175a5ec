/* Sending: answers collect in `out` and leave once a loop round, first by a direct write, the rest
 * through libuv. At most one write is with libuv at a time. */
#include "http_priv.h"
#include <stdint.h>

#define KEEP_BYTES ((size_t)16384)

size_t http_send_pending(const struct http_conn *c)
{
    size_t in_flight =
        c->writing ? uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp) : 0;
    return c->out.len + in_flight;
}

bool http_send_progressed(struct http_conn *c)
{
    size_t left = uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp);
    bool moved = left != c->write_left;
    c->write_left = left;
    return moved;
}

void http_send_free(struct http_conn *c)
{
    sl_buf_free(&c->out);
    sl_buf_free(&c->wire);
}

static void buf_done(struct sl_buf *b)
{
    if (b->alloc > KEEP_BYTES)
        sl_buf_free(b);
    sl_buf_clear(b);
}

/* Everything queued has left. */
static void all_sent(struct http_conn *c)
{
    struct sl_http_server *s = c->srv;
    buf_done(&c->wire);
    buf_done(&c->out);
    if (c->state == HTTP_CONN_READ)
        return;
    if (c->state == HTTP_CONN_LINGER || c->req->answered) {
        http_send_free(c);
        http_conn_answered(c);
        return;
    }
    if (c->req->full) {
        c->req->full = false;
        s->handler.on_drain(s->handler.ctx, c->req);
    }
}

static void on_written(uv_write_t *w, int status)
{
    struct http_conn *c = w->data;
    if (c->closing)
        return;
    c->writing = false;
    if (status) {
        http_conn_lost(c, false);
        return;
    }
    buf_done(&c->wire);
    if (c->state == HTTP_CONN_BUSY)
        http_conn_wait_busy(c);
    http_send_flush(c);
}

/* Hands wire[sent..] to libuv. */
static void write_rest(struct http_conn *c, size_t sent)
{
    size_t left = c->wire.len - sent;
    uv_buf_t buf = uv_buf_init(c->wire.data + sent, (unsigned)left);
    c->write.data = c;
    c->write_left = SIZE_MAX;
    c->writing = true;
    if (c->state == HTTP_CONN_BUSY)
        http_conn_wait(c, HTTP_WAIT_WRITE);
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written)) {
        c->writing = false;
        http_conn_lost(c, false);
    }
}

/* Moves what is to be sent into wire; false if that failed. */
static bool load_wire(struct http_conn *c)
{
    if (c->out.failed)
        return false;
    if (!c->tls) {
        struct sl_buf spare = c->wire;
        c->wire = c->out;
        c->out = spare;
        return true;
    }
    if (!http_tls_seal(c->tls, &c->out))
        return false;
    if (c->state == HTTP_CONN_LINGER)
        http_tls_end(c->tls);
    return http_tls_take(c->tls, &c->wire);
}

void http_send_flush(struct http_conn *c)
{
    if (c->closing || c->writing)
        return;
    if (!load_wire(c)) {
        http_conn_lost(c, true);
        return;
    }
    size_t sent = 0;
    if (c->wire.len) {
        uv_buf_t buf = uv_buf_init(c->wire.data, (unsigned)c->wire.len);
        int n = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
        if (n < 0 && n != UV_EAGAIN) {
            http_conn_lost(c, false);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
    }
    if (sent < c->wire.len)
        write_rest(c, sent);
    else
        all_sent(c);
}
