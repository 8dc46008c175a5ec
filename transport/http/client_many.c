/* Many HTTP exchanges at once over curl's multi interface. */
#include <sluice/base/containers.h>
#include <sluice/transport/http_stream.h>

#include <curl/curl.h>
#include <stdlib.h>

#define CONNECTIONS_MAX 16384L

struct exchange {
    struct sl_list node;
    struct sl_http_request r;
    CURL *easy;
    struct curl_slist *headers;
};

struct sl_http_client {
    CURLM *multi;
    struct sl_list exchanges;
};

struct sl_http_client *sl_http_client_open(void)
{
    struct sl_http_client *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    sl_list_init(&c->exchanges);
    c->multi = curl_multi_init();
    if (!c->multi) {
        free(c);
        return NULL;
    }
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, CONNECTIONS_MAX);
    curl_multi_setopt(c->multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
    return c;
}

static void exchange_free(struct sl_http_client *c, struct exchange *x)
{
    sl_list_remove(&x->node);
    if (x->easy) {
        curl_multi_remove_handle(c->multi, x->easy);
        curl_easy_cleanup(x->easy);
    }
    curl_slist_free_all(x->headers);
    free(x);
}

void sl_http_client_close(struct sl_http_client *c)
{
    if (!c)
        return;
    while (!sl_list_empty(&c->exchanges)) {
        struct exchange *x = SL_ENTRY(c->exchanges.next, struct exchange, node);
        struct sl_http_request r = x->r;
        exchange_free(c, x);
        r.on_done(r.ctx, SL_CANCELLED, 0, "dropped");
    }
    curl_multi_cleanup(c->multi);
    free(c);
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct exchange *x = ctx;
    long http = 0;
    curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &http);
    return x->r.on_bytes(x->r.ctx, http, data, size * n) ? size * n : 0;
}

static bool add_header(struct exchange *x, const char *header)
{
    struct curl_slist *more = curl_slist_append(x->headers, header);
    if (!more)
        return false;
    x->headers = more;
    return true;
}

static bool exchange_set(struct exchange *x)
{
    CURL *e = x->easy;
    bool ok = add_header(x, "Expect:"); /* no pause before a large body */
    for (const char *const *h = x->r.headers; h && *h; h++)
        ok = ok && add_header(x, *h);
    curl_easy_setopt(e, CURLOPT_URL, x->r.url);
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e, CURLOPT_PROXY, "");
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, x->r.timeout_ms);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, x->headers);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(e, CURLOPT_PRIVATE, x);
    if (x->r.body) {
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)x->r.body_len);
        curl_easy_setopt(e, CURLOPT_POSTFIELDS, x->r.body);
    }
    return ok;
}

enum sl_status sl_http_client_start(struct sl_http_client *c, const struct sl_http_request *r,
                                    struct sl_err *err)
{
    struct exchange *x = calloc(1, sizeof *x);
    if (!x)
        return sl_fail(err, SL_NO_MEMORY, "no memory for an HTTP request");
    x->r = *r;
    x->easy = curl_easy_init();
    sl_list_push_back(&c->exchanges, &x->node);
    if (!x->easy || !exchange_set(x) || curl_multi_add_handle(c->multi, x->easy) != CURLM_OK) {
        exchange_free(c, x);
        return sl_fail(err, SL_NO_MEMORY, "no memory for an HTTP request");
    }
    return SL_OK;
}

static void finish(struct sl_http_client *c, const CURLMsg *m)
{
    struct exchange *x = NULL;
    long http = 0;
    CURLcode rc = m->data.result;
    curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&x);
    curl_easy_getinfo(m->easy_handle, CURLINFO_RESPONSE_CODE, &http);
    struct sl_http_request r = x->r;
    exchange_free(c, x);
    r.on_done(r.ctx, rc == CURLE_OK ? SL_OK : SL_PEER, http,
              rc == CURLE_OK ? "" : curl_easy_strerror(rc));
}

enum sl_status sl_http_client_run(struct sl_http_client *c, int wait_ms, struct sl_err *err)
{
    int n_running = 0, n_left = 0;
    CURLMcode rc = wait_ms > 0 ? curl_multi_poll(c->multi, NULL, 0, wait_ms, NULL) : CURLM_OK;
    if (rc == CURLM_OK)
        rc = curl_multi_perform(c->multi, &n_running);
    for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &n_left));)
        if (m->msg == CURLMSG_DONE)
            finish(c, m);
    if (rc != CURLM_OK)
        return sl_fail(err, SL_FAILED, "http client: %s", curl_multi_strerror(rc));
    return SL_OK;
}
