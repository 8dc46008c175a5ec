/* Strict byte scanner of one HTTP/1 request as it stands on the wire: request line, fields, body
 * or chunks, trailers. It decides only whether the bytes are well formed and where the message
 * ends; it looks at them before llhttp does, and both must agree. Works when split at any byte. */
#ifndef SLUICE_HTTP_SCAN_H
#define SLUICE_HTTP_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum http_scan_end {
    HTTP_SCAN_MORE, /* everything looked at, the message goes on */
    HTTP_SCAN_HEAD, /* the empty line after the fields was passed */
    HTTP_SCAN_DONE, /* the last byte of the message was passed */
    HTTP_SCAN_BAD   /* see status and reason */
};

struct http_scan {
    uint8_t state;
    uint8_t major, minor;
    uint8_t n_version; /* bytes of "HTTP/1.1" seen */
    uint8_t n_digits;  /* of a chunk size */
    bool skipped_line; /* one empty line before the request line is tolerated */
    bool in_trailer;
    uint32_t head_bytes, line_bytes, fields;
    uint32_t method_len; /* the method starts at the first byte that was not skipped */
    uint32_t ext_bytes;  /* chunk extensions of the whole message */
    uint64_t left;       /* bytes to come of the body or chunk */
    uint64_t body_bytes; /* announced so far */
    int status;          /* HTTP status of the refusal */
    const char *reason;
};

void http_scan_init(struct http_scan *s);

/* Looks at bytes up to the first end; *used says how many. `*skip` is how many of them came before
 * the request line and do not belong to it. */
enum http_scan_end http_scan_feed(struct http_scan *s, const char *data, size_t len, size_t *used,
                                  size_t *skip);

/* After HTTP_SCAN_HEAD: what follows. */
void http_scan_expect_length(struct http_scan *s, uint64_t len);
void http_scan_expect_chunks(struct http_scan *s);

#endif
