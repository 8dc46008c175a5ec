/* Request parsing: the strict scanner first, then llhttp over the same bytes; a request passes only
 * if both see it end at the same byte. The meaning of the framing fields is judged here (RFC 9112
 * sections 3 and 6, RFC 9110 sections 7.2 and 10.1.1). */
#include "parse.h"
#include <string.h>

#define KEEP_BYTES ((size_t)16384) /* larger buffers are given back between requests */

static enum http_parse_end refuse(struct http_parse *p, int http, const char *why)
{
    enum sl_status status = SL_INVALID;
    if (http == 413)
        status = SL_TOO_LARGE;
    if (http == 414 || http == 431)
        status = SL_HEADER_TOO_LARGE;
    if (http == 415)
        status = SL_MEDIA_TYPE;
    if (http == 503)
        status = SL_NO_MEMORY;
    p->http_status = http;
    sl_fail(&p->err, status, "http: %s", why);
    return HTTP_PARSE_BAD;
}

static int keep_target(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parse *p = ll->data;
    p->target = (struct sl_str){at, len};
    return 0;
}

static int keep_name(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parse *p = ll->data;
    if (p->head_done) /* trailers are checked and dropped */
        return 0;
    if (p->n_fields == SL_LIMIT_http_fields)
        return -1;
    p->fields[p->n_fields++] = (struct http_field){{at, len}, {at + len, 0}};
    return 0;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static struct sl_str trim(struct sl_str s)
{
    while (s.len && is_blank(s.data[0]))
        s = (struct sl_str){s.data + 1, s.len - 1};
    while (s.len && is_blank(s.data[s.len - 1]))
        s.len--;
    return s;
}

static int keep_value(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parse *p = ll->data;
    if (!p->head_done && p->n_fields)
        p->fields[p->n_fields - 1].value = trim((struct sl_str){at, len});
    return 0;
}

/* Upgrades are not spoken here: a server may ignore the field (RFC 9110 section 7.8). */
static int after_head(llhttp_t *ll)
{
    struct http_parse *p = ll->data;
    p->head_done = true;
    ll->upgrade = 0;
    return 0;
}

static int keep_body(llhttp_t *ll, const char *at, size_t len)
{
    struct http_parse *p = ll->data;
    sl_buf_append(&p->body, at, len);
    return p->body.failed ? -1 : 0;
}

static int after_message(llhttp_t *ll)
{
    struct http_parse *p = ll->data;
    p->ll_done = true;
    p->keep_alive = llhttp_should_keep_alive(ll) != 0;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = keep_target,
    .on_header_field = keep_name,
    .on_header_value = keep_value,
    .on_headers_complete = after_head,
    .on_body = keep_body,
    .on_message_complete = after_message,
};

static void buf_recycle(struct sl_buf *b)
{
    if (b->alloc > KEEP_BYTES)
        sl_buf_free(b);
    sl_buf_clear(b);
}

void http_parse_init(struct http_parse *p)
{
    memset(p, 0, sizeof(*p));
    p->head.cap_bytes = SL_LIMIT_http_header_bytes + 1;
    p->body.cap_bytes = SL_LIMIT_http_body_bytes + 1;
    http_parse_reset(p);
}

void http_parse_reset(struct http_parse *p)
{
    http_scan_init(&p->scan);
    llhttp_init(&p->ll, HTTP_REQUEST, &settings);
    p->ll.data = p;
    buf_recycle(&p->head);
    buf_recycle(&p->body);
    p->n_fields = 0;
    p->method = p->target = p->path = p->query = (struct sl_str){NULL, 0};
    p->body_len = 0;
    p->head_done = p->ll_done = p->started = false;
    p->chunked = p->expect_continue = p->keep_alive = false;
    p->http_status = 0;
}

void http_parse_free(struct http_parse *p)
{
    sl_buf_free(&p->head);
    sl_buf_free(&p->body);
}

/* Runs llhttp over bytes the scanner let pass; true if it took all of them. */
static bool ll_run(struct http_parse *p, const char *data, size_t len)
{
    llhttp_errno_t rc = llhttp_execute(&p->ll, data, len);
    if (rc == HPE_OK)
        return true;
    return rc == HPE_PAUSED && p->ll_done && llhttp_get_error_pos(&p->ll) == data + len;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

/* `z` is lower case. */
static bool equal_nocase(struct sl_str s, const char *z)
{
    size_t i = 0;
    for (; i < s.len && z[i]; i++)
        if (lower(s.data[i]) != z[i])
            return false;
    return i == s.len && !z[i];
}

static bool equal_nocase2(struct sl_str a, struct sl_str b)
{
    if (a.len != b.len)
        return false;
    for (size_t i = 0; i < a.len; i++)
        if (lower(a.data[i]) != lower(b.data[i]))
            return false;
    return true;
}

const struct http_field *http_parse_field(const struct http_parse *p, const char *lower_name)
{
    for (uint32_t i = 0; i < p->n_fields; i++)
        if (equal_nocase(p->fields[i].name, lower_name))
            return &p->fields[i];
    return NULL;
}

static uint32_t count_fields(const struct http_parse *p, const char *lower_name)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_fields; i++)
        n += equal_nocase(p->fields[i].name, lower_name);
    return n;
}

bool http_parse_is_head_method(const struct http_parse *p)
{
    return sl_str_eqz(p->method, "HEAD");
}

bool http_parse_is_http10(const struct http_parse *p)
{
    return p->scan.minor == 0;
}

/* uri-host [":" port] of RFC 3986, without userinfo; a comma would be two fields joined. */
static bool host_ok(struct sl_str s)
{
    static const char marks[] = "-._~!$&'()*+;=:[]%";
    if (!s.len)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        char c = lower(s.data[i]);
        bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!alnum && !memchr(marks, c, sizeof(marks) - 1))
            return false;
    }
    return true;
}

/* Digits only; values past the type saturate. */
static bool read_length(struct sl_str s, uint64_t *out)
{
    uint64_t n = 0;
    if (!s.len)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] < '0' || s.data[i] > '9')
            return false;
        uint64_t digit = (uint64_t)(s.data[i] - '0');
        n = n > (UINT64_MAX - digit) / 10 ? UINT64_MAX : n * 10 + digit;
    }
    *out = n;
    return true;
}

static enum http_parse_end judge_host(struct http_parse *p)
{
    const struct http_field *host = http_parse_field(p, "host");
    if (!host && !http_parse_is_http10(p))
        return refuse(p, 400, "no Host field");
    if (host && count_fields(p, "host") > 1)
        return refuse(p, 400, "more than one Host field");
    if (host && !host_ok(host->value))
        return refuse(p, 400, "malformed Host field");
    return HTTP_PARSE_MORE;
}

/* absolute-form: the authority must be the one that Host names, then only the path counts. */
static enum http_parse_end judge_absolute(struct http_parse *p, size_t scheme_len)
{
    struct sl_str rest = {p->target.data + scheme_len, p->target.len - scheme_len};
    size_t n = 0;
    while (n < rest.len && rest.data[n] != '/' && rest.data[n] != '?')
        n++;
    const struct http_field *host = http_parse_field(p, "host");
    struct sl_str authority = {rest.data, n};
    if (!host_ok(authority) || (host && !equal_nocase2(authority, host->value)))
        return refuse(p, 400, "the target's authority is not the Host");
    p->path = (struct sl_str){rest.data + n, rest.len - n};
    return HTTP_PARSE_MORE;
}

static bool has_prefix_nocase(struct sl_str s, const char *z)
{
    size_t n = strlen(z);
    return s.len >= n && equal_nocase((struct sl_str){s.data, n}, z);
}

static enum http_parse_end judge_target(struct http_parse *p)
{
    enum http_parse_end end = HTTP_PARSE_MORE;
    p->path = p->target;
    if (has_prefix_nocase(p->target, "http://"))
        end = judge_absolute(p, 7);
    else if (has_prefix_nocase(p->target, "https://"))
        end = judge_absolute(p, 8);
    else if (sl_str_eqz(p->target, "*") && sl_str_eqz(p->method, "OPTIONS"))
        return end;
    else if (!p->target.len || p->target.data[0] != '/')
        return refuse(p, 400, "the request target is not a path");
    if (end != HTTP_PARSE_MORE)
        return end;
    const char *mark = p->path.len ? memchr(p->path.data, '?', p->path.len) : NULL;
    if (mark) {
        size_t n = (size_t)(mark - p->path.data);
        p->query = (struct sl_str){mark + 1, p->path.len - n - 1};
        p->path.len = n;
    }
    if (!p->path.len)
        p->path = SL_STR("/");
    return end;
}

static enum http_parse_end judge_framing(struct http_parse *p)
{
    const struct http_field *te = http_parse_field(p, "transfer-encoding");
    const struct http_field *cl = http_parse_field(p, "content-length");
    if (te && cl)
        return refuse(p, 400, "both Content-Length and Transfer-Encoding");
    if (te && (count_fields(p, "transfer-encoding") > 1 || !equal_nocase(te->value, "chunked")))
        return refuse(p, 400, "a Transfer-Encoding other than chunked");
    if (te && http_parse_is_http10(p))
        return refuse(p, 400, "Transfer-Encoding in HTTP/1.0");
    if (cl && count_fields(p, "content-length") > 1)
        return refuse(p, 400, "more than one Content-Length");
    if (cl && !read_length(cl->value, &p->body_len))
        return refuse(p, 400, "malformed Content-Length");
    p->chunked = te != NULL;
    return HTTP_PARSE_MORE;
}

static enum http_parse_end judge_body(struct http_parse *p)
{
    const struct http_field *coding = http_parse_field(p, "content-encoding");
    const struct http_field *expect = http_parse_field(p, "expect");
    if (p->body_len > SL_LIMIT_http_body_bytes)
        return refuse(p, 413, "the body is longer than http_body_bytes");
    if (coding &&
        !(count_fields(p, "content-encoding") == 1 && equal_nocase(coding->value, "identity")))
        return refuse(p, 415, "a Content-Encoding is not accepted");
    if (!expect || http_parse_is_http10(p))
        return HTTP_PARSE_MORE;
    if (count_fields(p, "expect") > 1 || !equal_nocase(expect->value, "100-continue"))
        return refuse(p, 417, "an Expect other than 100-continue");
    p->expect_continue = true;
    return HTTP_PARSE_MORE;
}

/* llhttp knows a closed list of methods; ours is the handler's. So llhttp is told GET, and the
 * method is kept from the head itself. */
static bool ll_run_head(struct http_parse *p)
{
    size_t n = p->scan.method_len;
    p->method = (struct sl_str){p->head.data, n};
    return ll_run(p, "GET", 3) && ll_run(p, p->head.data + n, p->head.len - n);
}

static enum http_parse_end finish_head(struct http_parse *p)
{
    static enum http_parse_end (*const judges[])(struct http_parse *) = {judge_framing, judge_host,
                                                                         judge_target, judge_body};
    bool agreed = ll_run_head(p);
    for (size_t i = 0; i < sizeof(judges) / sizeof(judges[0]); i++) {
        enum http_parse_end end = judges[i](p);
        if (end != HTTP_PARSE_MORE)
            return end;
    }
    bool has_body = p->chunked || p->body_len;
    if (!agreed || !p->head_done || p->ll_done == has_body)
        return refuse(p, 400, "malformed header");
    if (!has_body)
        return HTTP_PARSE_DONE;
    if (p->chunked)
        http_scan_expect_chunks(&p->scan);
    else
        http_scan_expect_length(&p->scan, p->body_len);
    return HTTP_PARSE_HEAD;
}

static enum http_parse_end feed_head(struct http_parse *p, const char *data, size_t len,
                                     size_t *used)
{
    size_t skip;
    enum http_scan_end end = http_scan_feed(&p->scan, data, len, used, &skip);
    if (end == HTTP_SCAN_BAD)
        return refuse(p, p->scan.status, p->scan.reason);
    sl_buf_append(&p->head, data + skip, *used - skip);
    p->started |= *used > 0;
    if (p->head.failed)
        return refuse(p, 503, "out of memory");
    return end == HTTP_SCAN_HEAD ? finish_head(p) : HTTP_PARSE_MORE;
}

static enum http_parse_end feed_body(struct http_parse *p, const char *data, size_t len,
                                     size_t *used)
{
    size_t skip;
    enum http_scan_end end = http_scan_feed(&p->scan, data, len, used, &skip);
    if (end == HTTP_SCAN_BAD)
        return refuse(p, p->scan.status, p->scan.reason);
    bool agreed = ll_run(p, data, *used);
    if (p->body.failed)
        return refuse(p, 503, "out of memory");
    if (!agreed || p->ll_done != (end == HTTP_SCAN_DONE))
        return refuse(p, 400, "malformed body");
    return p->ll_done ? HTTP_PARSE_DONE : HTTP_PARSE_MORE;
}

enum http_parse_end http_parse_feed(struct http_parse *p, const char *data, size_t len,
                                    size_t *used)
{
    return p->head_done ? feed_body(p, data, len, used) : feed_head(p, data, len, used);
}
