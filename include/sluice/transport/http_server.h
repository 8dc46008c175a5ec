/* HTTP/1.1 server (RFC 9110, RFC 9112): strict parsing, limits and deadlines of
 * sluice/base/limits.h, optional TLS. Lives on one loop's thread.
 *
 * A handler gets whole requests. It answers once with sl_http_respond, or streams: begin, write...,
 * end. Between request and answer the connection stays watched, so a client that goes away is
 * noticed at once (on_close). Every request that was handed to the handler ends with exactly one
 * on_close call, after the last byte was sent or the client was lost; the request object dies
 * after it.
 *
 * A FIN while the answer is not complete counts as gone: a client that half-closes after its
 * request is answered only if the handler answered within on_request. Pipelined requests are
 * answered in order, one at a time; 32 KiB of them are kept while one is in progress, then reading
 * pauses and a lost peer is noticed by looking at the socket ten times a second (not at all while
 * its FIN stands behind bytes that were not read).
 *
 * What a handler queues is sent at the end of the loop's round, in one write. on_request and
 * on_drain may be called from there. No callback is made while the handler is inside a function of
 * this header, but for on_close in sl_http_server_close; that one must not be called from a
 * callback of the server.
 *
 * A request that breaks the framing rules, passes a limit or misses a deadline never reaches the
 * handler: the server answers (400, 408, 413, 414, 415, 417, 431, 505) with `Connection: close`,
 * looks at nothing behind it, and closes. `err->status` of error_body is the nearest of
 * SL_STATUS_TABLE; the status line may be finer (414, 417, 505). */
#ifndef SLUICE_TRANSPORT_HTTP_SERVER_H
#define SLUICE_TRANSPORT_HTTP_SERVER_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <sluice/transport/loop.h>
#include <stdint.h>

struct sl_http_server;
struct sl_http_req;

struct sl_http_handler {
    /* The request is complete, body included. Must answer, now or later. */
    void (*on_request)(void *ctx, struct sl_http_req *req);
    /* `sent_all` false: the client went away or was cut off before the answer was out. */
    void (*on_close)(void *ctx, struct sl_http_req *req, bool sent_all);
    /* A stream that was full (sl_http_stream_write returned false) has room again. */
    void (*on_drain)(void *ctx, struct sl_http_req *req);
    /* Body of the error answers that the server itself sends (bad framing, limits, deadlines). */
    void (*error_body)(void *ctx, const struct sl_err *err, struct sl_buf *out); /* or NULL: text */
    void *ctx;
};

struct sl_http_config {
    const char *host;
    uint16_t port;                            /* 0: any; see sl_http_server_port */
    const char *tls_cert_file, *tls_key_file; /* NULL: plain */
};

/* SL_PORT_IN_USE, SL_CONFIG. */
enum sl_status sl_http_server_open(struct sl_loop *loop, const struct sl_http_config *cfg,
                                   const struct sl_http_handler *handler,
                                   struct sl_http_server **out, struct sl_err *err);
uint16_t sl_http_server_port(const struct sl_http_server *s);
/* Stops accepting; idle connections are closed, busy ones end with `Connection: close`. */
void sl_http_server_drain(struct sl_http_server *s);
uint32_t sl_http_server_busy(const struct sl_http_server *s); /* requests not yet closed */
void sl_http_server_close(struct sl_http_server *s);          /* at once; on_close is called */

/* Borrowed until on_close. The path is the raw origin-form path without the query; of an absolute
 * form the path alone; `*` for OPTIONS *. The method is any token, not only known ones. */
struct sl_str sl_http_method(const struct sl_http_req *r);
struct sl_str sl_http_path(const struct sl_http_req *r);
struct sl_str sl_http_query(const struct sl_http_req *r);
/* First field of that name (lower case), or {NULL, 0}. */
struct sl_str sl_http_header(const struct sl_http_req *r, const char *lower_name);
struct sl_str sl_http_body(const struct sl_http_req *r);
void sl_http_set_user(struct sl_http_req *r, void *user);
void *sl_http_user(const struct sl_http_req *r);

/* `headers`: extra lines "Name: value\r\n...", or NULL. HEAD sends no body. */
void sl_http_respond(struct sl_http_req *r, int status, const char *content_type,
                     const char *headers, const char *body, size_t len);
/* Chunked answer. */
void sl_http_stream_begin(struct sl_http_req *r, int status, const char *content_type,
                          const char *headers);
/* Queues bytes (copied). False once more than http_stream_buffer_bytes wait to be sent: stop
 * until on_drain. Bytes given are always accepted. */
bool sl_http_stream_write(struct sl_http_req *r, const char *data, size_t len);
void sl_http_stream_end(struct sl_http_req *r);
size_t sl_http_stream_pending(const struct sl_http_req *r);

/* "OK", "Too Many Requests", ... */
const char *sl_http_reason(int status);

#endif
