/* Strict byte scanner of HTTP/1 requests (RFC 9112; field values RFC 9110 section 5.5).
 *
 * Stricter than the RFC where leniency is what request smuggling lives on: no bare CR or LF, no
 * obs-fold, no white space around chunk sizes, exactly one space in the request line. */
#include "scan.h"
#include <sluice/base/limits.h>
#include <string.h>

#define METHOD_MAX      64
#define EXT_BYTES_MAX   4096
#define SIZE_DIGITS_MAX 16

enum {
    START,
    START_LF,
    METHOD,
    TARGET,
    VERSION,
    LINE_LF,
    FIELD,
    NAME,
    VALUE,
    END_LF,
    BODY,
    SIZE,
    EXT,
    SIZE_LF,
    DATA,
    DATA_CR,
    DATA_LF,
    DONE
};

enum { C_TOKEN = 1, C_TARGET = 2, C_VALUE = 4 };

#define ALNUM (C_TOKEN | C_TARGET | C_VALUE)
#define MARK  (C_TARGET | C_VALUE) /* visible, but no token character */
#define OBS   C_VALUE

/* RFC 9110 tchar; visible ASCII but '#' in targets; field-vchar, SP and HTAB in values. */
static const uint8_t classes[256] = {
    ['\t'] = C_VALUE,
    [' '] = C_VALUE,
    ['!'] = ALNUM,
    ['"'] = MARK,
    ['#'] = C_TOKEN | C_VALUE,
    ['$' ... '\''] = ALNUM,
    ['('] = MARK,
    [')'] = MARK,
    ['*'] = ALNUM,
    ['+'] = ALNUM,
    [','] = MARK,
    ['-'] = ALNUM,
    ['.'] = ALNUM,
    ['/'] = MARK,
    ['0' ... '9'] = ALNUM,
    [':' ... '@'] = MARK,
    ['A' ... 'Z'] = ALNUM,
    ['[' ... ']'] = MARK,
    ['^' ... '`'] = ALNUM,
    ['a' ... 'z'] = ALNUM,
    ['{'] = MARK,
    ['|'] = ALNUM,
    ['}'] = MARK,
    ['~'] = ALNUM,
    [128 ... 255] = OBS,
};

static enum http_scan_end bad(struct http_scan *s, int status, const char *reason)
{
    s->status = status;
    s->reason = reason;
    return HTTP_SCAN_BAD;
}

void http_scan_init(struct http_scan *s)
{
    memset(s, 0, sizeof(*s));
}

void http_scan_expect_length(struct http_scan *s, uint64_t len)
{
    s->state = len ? BODY : DONE;
    s->left = len;
}

void http_scan_expect_chunks(struct http_scan *s)
{
    s->state = SIZE;
}

static bool in_head(const struct http_scan *s)
{
    return s->state < BODY;
}

/* Counts n bytes of the head or trailer. */
static enum http_scan_end count_head(struct http_scan *s, size_t n)
{
    s->line_bytes += (uint32_t)n; /* n <= 64 KiB a read, and the limits stop it soon after */
    s->head_bytes += (uint32_t)n;
    if (s->line_bytes > SL_LIMIT_http_line_bytes) {
        if (s->state == METHOD)
            return bad(s, 400, "the method is too long");
        if (s->state <= VERSION)
            return bad(s, 414, "the request line is longer than http_line_bytes");
        return bad(s, 431, "a header field is longer than http_line_bytes");
    }
    if (s->head_bytes > SL_LIMIT_http_header_bytes)
        return bad(s, 431, "the header is longer than http_header_bytes");
    return HTTP_SCAN_MORE;
}

static size_t span(const char *data, size_t len, uint8_t class)
{
    size_t n = 0;
    while (n < len && (classes[(uint8_t)data[n]] & class))
        n++;
    return n;
}

/* Bytes from here on that leave the state as it is. */
static size_t run_length(struct http_scan *s, const char *data, size_t len)
{
    switch (s->state) {
    case METHOD:
    case NAME:
        return span(data, len, C_TOKEN);
    case TARGET:
        return span(data, len, C_TARGET);
    case VALUE:
    case EXT:
        return span(data, len, C_VALUE);
    case BODY:
    case DATA:
        return s->left < len ? (size_t)s->left : len;
    default:
        return 0;
    }
}

/* Accounts for a run; may end the body. */
static enum http_scan_end pass_run(struct http_scan *s, size_t n)
{
    if (s->state == BODY || s->state == DATA) {
        s->left -= n;
        if (s->left)
            return HTTP_SCAN_MORE;
        bool was_body = s->state == BODY;
        s->state = was_body ? DONE : DATA_CR;
        return was_body ? HTTP_SCAN_DONE : HTTP_SCAN_MORE;
    }
    if (s->state == EXT) {
        s->ext_bytes += (uint32_t)n;
        return s->ext_bytes > EXT_BYTES_MAX ? bad(s, 400, "chunk extensions are too long")
                                            : HTTP_SCAN_MORE;
    }
    if (s->state == METHOD) {
        s->method_len += (uint32_t)n;
        if (s->method_len > METHOD_MAX)
            return bad(s, 400, "the method is too long");
    }
    return count_head(s, n);
}

static enum http_scan_end go(struct http_scan *s, uint8_t state)
{
    s->state = state;
    return HTTP_SCAN_MORE;
}

static enum http_scan_end step_version(struct http_scan *s, uint8_t c)
{
    static const char want[] = "HTTP/";
    uint8_t at = s->n_version++;
    if (at < 5)
        return c == (uint8_t)want[at] ? HTTP_SCAN_MORE : bad(s, 400, "malformed HTTP version");
    if (at == 6)
        return c == '.' ? HTTP_SCAN_MORE : bad(s, 400, "malformed HTTP version");
    if (at == 5 || at == 7) {
        if (c < '0' || c > '9')
            return bad(s, 400, "malformed HTTP version");
        *(at == 5 ? &s->major : &s->minor) = (uint8_t)(c - '0');
        return HTTP_SCAN_MORE;
    }
    if (c != '\r')
        return bad(s, 400, "malformed request line");
    if (s->major != 1 || s->minor > 1)
        return bad(s, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    return go(s, LINE_LF);
}

static enum http_scan_end step_request_line(struct http_scan *s, uint8_t c)
{
    switch (s->state) {
    case START:
        if (c == '\r' && !s->skipped_line)
            return go(s, START_LF);
        if (!(classes[c] & C_TOKEN))
            return bad(s, 400, "the request does not begin with a method");
        s->method_len = 1;
        return go(s, METHOD);
    case START_LF:
        s->skipped_line = true;
        return c == '\n' ? go(s, START) : bad(s, 400, "a CR without LF");
    case METHOD:
        s->n_version = 0;
        return c == ' ' ? go(s, TARGET) : bad(s, 400, "malformed method");
    default: /* TARGET */
        if (c == '#')
            return bad(s, 400, "a fragment in the request target");
        return c == ' ' ? go(s, VERSION) : bad(s, 400, "malformed request target");
    }
}

static enum http_scan_end step_field(struct http_scan *s, uint8_t c)
{
    switch (s->state) {
    case LINE_LF:
        s->line_bytes = 0;
        return c == '\n' ? go(s, FIELD) : bad(s, 400, "a CR without LF");
    case FIELD:
        if (c == '\r')
            return go(s, END_LF);
        if (c == ' ' || c == '\t')
            return bad(s, 400, "a folded header field");
        if (!(classes[c] & C_TOKEN))
            return bad(s, 400, "malformed header field name");
        if (++s->fields > SL_LIMIT_http_fields)
            return bad(s, 431, "more header fields than http_fields");
        return go(s, NAME);
    case NAME:
        if (c == ' ' || c == '\t')
            return bad(s, 400, "white space before the colon of a header field");
        return c == ':' ? go(s, VALUE) : bad(s, 400, "malformed header field name");
    case VALUE:
        if (c == '\n')
            return bad(s, 400, "a LF without CR");
        if (c == 0)
            return bad(s, 400, "a NUL byte in the header");
        return c == '\r' ? go(s, LINE_LF) : bad(s, 400, "a control byte in a header field");
    default: /* END_LF */
        if (c != '\n')
            return bad(s, 400, "a CR without LF");
        s->state = DONE;
        return s->in_trailer ? HTTP_SCAN_DONE : HTTP_SCAN_HEAD;
    }
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The size is complete. */
static enum http_scan_end begin_chunk(struct http_scan *s, uint8_t next)
{
    if (!s->n_digits)
        return bad(s, 400, "a chunk without size");
    if (s->left > SL_LIMIT_http_body_bytes - s->body_bytes)
        return bad(s, 413, "the body is longer than http_body_bytes");
    s->body_bytes += s->left;
    return go(s, next);
}

static enum http_scan_end step_size(struct http_scan *s, uint8_t c)
{
    int digit = hex_digit(c);
    if (digit >= 0) {
        if (s->n_digits++ == 0)
            s->left = 0;
        s->left = s->left << 4 | (uint64_t)digit;
        return s->n_digits > SIZE_DIGITS_MAX ? bad(s, 400, "a chunk size with too many digits")
                                             : HTTP_SCAN_MORE;
    }
    if (c == ';')
        return begin_chunk(s, EXT);
    return c == '\r' ? begin_chunk(s, SIZE_LF) : bad(s, 400, "malformed chunk size");
}

static enum http_scan_end step_chunk(struct http_scan *s, uint8_t c)
{
    switch (s->state) {
    case SIZE:
        return step_size(s, c);
    case EXT:
        return c == '\r' ? go(s, SIZE_LF) : bad(s, 400, "malformed chunk extension");
    case SIZE_LF:
        if (c != '\n')
            return bad(s, 400, "a CR without LF");
        s->n_digits = 0;
        s->line_bytes = 0;
        s->in_trailer = s->left == 0;
        return go(s, s->left ? DATA : FIELD);
    case DATA_CR:
        return c == '\r' ? go(s, DATA_LF) : bad(s, 400, "a chunk is longer than its size");
    case DATA_LF:
        return c == '\n' ? go(s, SIZE) : bad(s, 400, "a CR without LF");
    default: /* BODY, DATA and DONE take no single bytes */
        return bad(s, 400, "bytes after the end of the request");
    }
}

static enum http_scan_end step(struct http_scan *s, uint8_t c)
{
    if (!in_head(s))
        return step_chunk(s, c);
    if (s->state > START_LF) {
        enum http_scan_end end = count_head(s, 1);
        if (end != HTTP_SCAN_MORE)
            return end;
    }
    if (s->state == VERSION)
        return step_version(s, c);
    return s->state <= TARGET ? step_request_line(s, c) : step_field(s, c);
}

enum http_scan_end http_scan_feed(struct http_scan *s, const char *data, size_t len, size_t *used,
                                  size_t *skip)
{
    enum http_scan_end end = HTTP_SCAN_MORE;
    size_t i = 0;
    *skip = 0;
    while (i < len && end == HTTP_SCAN_MORE) {
        size_t n = run_length(s, data + i, len - i);
        i += n;
        if (n)
            end = pass_run(s, n);
        if (i < len && end == HTTP_SCAN_MORE)
            end = step(s, (uint8_t)data[i++]);
        if (s->state <= START_LF)
            *skip = i;
    }
    *used = i;
    return end;
}
