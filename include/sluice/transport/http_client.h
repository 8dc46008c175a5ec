/* HTTP client (libcurl inside): one blocking exchange, for probes and the command line. */
#ifndef SLUICE_TRANSPORT_HTTP_CLIENT_H
#define SLUICE_TRANSPORT_HTTP_CLIENT_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>

/* The answer's body is appended to `out` (at most its cap), its code goes to *status. SL_PEER when
 * no answer came within timeout_ms. Only http and https; redirects are not followed. */
enum sl_status sl_http_get(const char *url, long timeout_ms, long *status, struct sl_buf *out,
                           struct sl_err *err);
enum sl_status sl_http_post(const char *url, const char *content_type, const char *body, size_t len,
                            long timeout_ms, long *status, struct sl_buf *out, struct sl_err *err);

#endif
