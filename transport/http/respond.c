/* Answers: head, body, chunks (RFC 9112 sections 4, 6 and 7). Everything is queued here and sent
 * at the end of the loop's round. */
#include "http_priv.h"
#include <string.h>

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {204, "No Content"},
    {206, "Partial Content"},
    {301, "Moved Permanently"},
    {302, "Found"},
    {304, "Not Modified"},
    {307, "Temporary Redirect"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {412, "Precondition Failed"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {416, "Range Not Satisfiable"},
    {417, "Expectation Failed"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {499, "Client Closed Request"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {502, "Bad Gateway"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
};

const char *sl_http_reason(int status)
{
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Status";
}

/* Digits of n in `base` without leading zeros. */
static void put_number(struct sl_buf *b, size_t n, unsigned base)
{
    char text[24];
    size_t at = sizeof(text);
    do {
        text[--at] = "0123456789abcdef"[n % base];
        n /= base;
    } while (n);
    sl_buf_append(b, text + at, sizeof(text) - at);
}

static void put_status(struct sl_buf *b, int status, const char *type)
{
    sl_buf_append(b, "HTTP/1.1 ", 9);
    put_number(b, (size_t)status, 10);
    sl_buf_putc(b, ' ');
    sl_buf_puts(b, sl_http_reason(status));
    if (type) {
        sl_buf_puts(b, "\r\nContent-Type: ");
        sl_buf_puts(b, type);
    }
    sl_buf_append(b, "\r\n", 2);
}

static void put_length(struct sl_buf *b, size_t len)
{
    sl_buf_puts(b, "Content-Length: ");
    put_number(b, len, 10);
    sl_buf_append(b, "\r\n", 2);
}

/* The end of the head. HTTP/1.0 closes unless told otherwise, HTTP/1.1 stays. */
static void put_end(struct http_conn *c, const char *headers)
{
    c->keep_alive = c->keep_alive && !c->srv->draining;
    if (headers)
        sl_buf_puts(&c->out, headers);
    if (!c->keep_alive)
        sl_buf_puts(&c->out, "Connection: close\r\n");
    else if (http_parse_is_http10(&c->req->parse))
        sl_buf_puts(&c->out, "Connection: keep-alive\r\n");
    sl_buf_append(&c->out, "\r\n", 2);
}

/* These never have a body, nor a length (RFC 9110 section 6.4.1). */
static bool bodiless(int status)
{
    return status == 204 || status == 304;
}

void sl_http_respond(struct sl_http_req *r, int status, const char *content_type,
                     const char *headers, const char *body, size_t len)
{
    struct http_conn *c = r->conn;
    sl_assert(!r->answering);
    r->answering = r->answered = true;
    put_status(&c->out, status, content_type);
    if (!bodiless(status))
        put_length(&c->out, len);
    put_end(c, headers);
    if (len && !bodiless(status) && !http_parse_is_head_method(&r->parse))
        sl_buf_append(&c->out, body, len);
    http_server_mark_dirty(c);
}

void sl_http_stream_begin(struct sl_http_req *r, int status, const char *content_type,
                          const char *headers)
{
    struct http_conn *c = r->conn;
    sl_assert(!r->answering);
    r->answering = true;
    r->no_body = http_parse_is_head_method(&r->parse) || bodiless(status);
    r->chunked = !http_parse_is_http10(&r->parse) && !bodiless(status);
    if (!r->chunked && !r->no_body)
        c->keep_alive = false; /* the close is the end mark */
    put_status(&c->out, status, content_type);
    if (r->chunked)
        sl_buf_puts(&c->out, "Transfer-Encoding: chunked\r\n");
    put_end(c, headers);
    http_server_mark_dirty(c);
}

bool sl_http_stream_write(struct sl_http_req *r, const char *data, size_t len)
{
    struct http_conn *c = r->conn;
    sl_assert(r->answering && !r->answered);
    if (len && !r->no_body) {
        if (r->chunked) {
            put_number(&c->out, len, 16);
            sl_buf_append(&c->out, "\r\n", 2);
        }
        sl_buf_append(&c->out, data, len);
        if (r->chunked)
            sl_buf_append(&c->out, "\r\n", 2);
        http_server_mark_dirty(c);
    }
    bool room = http_send_pending(c) <= SL_LIMIT_http_stream_buffer_bytes;
    r->full = r->full || !room;
    return room;
}

void sl_http_stream_end(struct sl_http_req *r)
{
    struct http_conn *c = r->conn;
    sl_assert(r->answering && !r->answered);
    r->answered = true;
    if (r->chunked && !r->no_body)
        sl_buf_append(&c->out, "0\r\n\r\n", 5);
    http_server_mark_dirty(c);
}

size_t sl_http_stream_pending(const struct sl_http_req *r)
{
    return http_send_pending(r->conn);
}

void http_respond_refusal(struct http_conn *c, int http_status, const char *type,
                          const struct sl_buf *body, bool no_body)
{
    put_status(&c->out, http_status, type);
    put_length(&c->out, body->len);
    put_end(c, NULL);
    if (body->len && !no_body)
        sl_buf_append(&c->out, body->data, body->len);
    http_server_mark_dirty(c);
}

struct sl_str sl_http_method(const struct sl_http_req *r)
{
    return r->parse.method;
}

struct sl_str sl_http_path(const struct sl_http_req *r)
{
    return r->parse.path;
}

struct sl_str sl_http_query(const struct sl_http_req *r)
{
    return r->parse.query;
}

struct sl_str sl_http_header(const struct sl_http_req *r, const char *lower_name)
{
    const struct http_field *f = http_parse_field(&r->parse, lower_name);
    return f ? f->value : (struct sl_str){NULL, 0};
}

struct sl_str sl_http_body(const struct sl_http_req *r)
{
    return (struct sl_str){r->parse.body.data, r->parse.body.len};
}

void sl_http_set_user(struct sl_http_req *r, void *user)
{
    r->user = user;
}

void *sl_http_user(const struct sl_http_req *r)
{
    return r->user;
}
