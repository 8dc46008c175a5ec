/* One HTTP/1 request as it is being read: bytes in, head and body out. Pure: no socket, no clock.
 * Every refusal carries the HTTP status of its answer; after one the connection must be closed. */
#ifndef SLUICE_HTTP_PARSE_H
#define SLUICE_HTTP_PARSE_H

#include "scan.h"
#include <llhttp.h>
#include <sluice/base/err.h>
#include <sluice/base/limits.h>
#include <sluice/base/mem.h>

enum http_parse_end {
    HTTP_PARSE_MORE, /* all bytes taken, more are needed */
    HTTP_PARSE_HEAD, /* the head is complete and good, a body follows: call again */
    HTTP_PARSE_DONE, /* the request is complete; bytes behind it were not taken */
    HTTP_PARSE_BAD   /* see http_status and err */
};

struct http_field {
    struct sl_str name, value; /* into the head; the value without white space around it */
};

struct http_parse {
    struct http_scan scan;
    llhttp_t ll;
    struct sl_buf head; /* from the method to the empty line */
    struct sl_buf body;
    struct http_field fields[SL_LIMIT_http_fields];
    uint32_t n_fields;
    struct sl_str method, target, path, query;
    uint64_t body_len; /* by Content-Length */
    bool head_done, ll_done, started;
    bool chunked, expect_continue, keep_alive;
    int http_status; /* of the refusal */
    struct sl_err err;
};

void http_parse_init(struct http_parse *p);
void http_parse_reset(struct http_parse *p); /* for the next request; keeps small buffers */
void http_parse_free(struct http_parse *p);

enum http_parse_end http_parse_feed(struct http_parse *p, const char *data, size_t len,
                                    size_t *used);

/* First field of that name (lower case), or NULL. */
const struct http_field *http_parse_field(const struct http_parse *p, const char *lower_name);
bool http_parse_is_head_method(const struct http_parse *p);
bool http_parse_is_http10(const struct http_parse *p);

#endif
