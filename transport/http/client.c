/* One blocking HTTP exchange over libcurl. */
#include <sluice/transport/http_client.h>

#include <curl/curl.h>

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct sl_buf *out = ctx;
    sl_buf_append(out, data, size * n);
    return out->failed ? 0 : size * n;
}

static enum sl_status exchange(CURL *c, const char *url, long timeout_ms, long *status,
                               struct sl_buf *out, struct sl_err *err)
{
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, timeout_ms);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, out);
    CURLcode rc = curl_easy_perform(c);
    if (rc != CURLE_OK)
        return sl_fail(err, SL_PEER, "%s: %s", url, curl_easy_strerror(rc));
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, status);
    return SL_OK;
}

enum sl_status sl_http_get(const char *url, long timeout_ms, long *status, struct sl_buf *out,
                           struct sl_err *err)
{
    CURL *c = curl_easy_init();
    if (!c)
        return sl_fail(err, SL_NO_MEMORY, "no memory for an HTTP client");
    enum sl_status s = exchange(c, url, timeout_ms, status, out, err);
    curl_easy_cleanup(c);
    return s;
}

enum sl_status sl_http_post(const char *url, const char *content_type, const char *body, size_t len,
                            long timeout_ms, long *status, struct sl_buf *out, struct sl_err *err)
{
    CURL *c = curl_easy_init();
    struct sl_buf type = {0};
    sl_buf_printf(&type, "Content-Type: %s", content_type);
    struct curl_slist *headers = type.data ? curl_slist_append(NULL, type.data) : NULL;
    enum sl_status s = sl_fail(err, SL_NO_MEMORY, "no memory for an HTTP client");
    if (c && headers) {
        curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
        s = exchange(c, url, timeout_ms, status, out, err);
    }
    curl_slist_free_all(headers);
    if (c)
        curl_easy_cleanup(c);
    sl_buf_free(&type);
    return s;
}
