/* Many HTTP exchanges at once in one thread (libcurl inside), bodies as they come: for the load
 * generator. Thread rule: a client and everything it calls belong to one thread. */
#ifndef SLUICE_TRANSPORT_HTTP_STREAM_H
#define SLUICE_TRANSPORT_HTTP_STREAM_H

#include <sluice/base/err.h>

struct sl_http_client;

struct sl_http_request {
    const char *url;  /* http or https; redirects are not followed */
    const char *body; /* NULL: GET; borrowed until on_done */
    size_t body_len;
    const char *const *headers; /* "Name: value", NULL-ended; copied */
    long timeout_ms;            /* of the whole exchange, 0: none */
    void *ctx;
    /* A piece of the answer's body; http is its status code. False ends the exchange. */
    bool (*on_bytes)(void *ctx, long http, const char *data, size_t len);
    /* Called exactly once; status is SL_PEER when no whole answer came, and why says more. */
    void (*on_done)(void *ctx, enum sl_status status, long http, const char *why);
};

/* NULL when out of memory. */
struct sl_http_client *sl_http_client_open(void);
/* What is still under way is dropped; its on_done is called with SL_CANCELLED. */
void sl_http_client_close(struct sl_http_client *c);
/* Sends as soon as the connection allows; callbacks come from sl_http_client_run only. */
enum sl_status sl_http_client_start(struct sl_http_client *c, const struct sl_http_request *r,
                                    struct sl_err *err);
/* Moves all exchanges on; waits at most wait_ms for something to happen (0: does not wait). */
enum sl_status sl_http_client_run(struct sl_http_client *c, int wait_ms, struct sl_err *err);

#endif
