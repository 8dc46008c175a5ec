/* TLS 1.2 and 1.3 over memory buffers (OpenSSL): ciphertext in, clear text out, and back. */
#include "http_priv.h"
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

/* Output a peer provokes (alerts, key updates) without reading it. */
#define OUTPUT_MAX ((size_t)1 << 18)

struct http_tls_ctx {
    SSL_CTX *ssl;
};

struct http_tls {
    SSL *ssl;
    BIO *in, *out; /* owned by ssl */
    bool ended, broken;
};

/* http/1.1 is all we speak; a client that offers only others is told so (RFC 7301 section 3.2). */
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *outlen,
                           const unsigned char *in, unsigned inlen, void *arg)
{
    static const unsigned char ours[] = "\x08http/1.1";
    (void)ssl;
    (void)arg;
    unsigned char *pick;
    if (SSL_select_next_proto(&pick, outlen, ours, sizeof(ours) - 1, in, inlen) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = pick;
    return SSL_TLSEXT_ERR_OK;
}

static enum sl_status refuse_file(struct sl_err *err, const char *what, const char *file)
{
    const char *why = ERR_reason_error_string(ERR_peek_last_error());
    sl_fail(err, SL_CONFIG, "tls: cannot use %s '%s': %s", what, file, why ? why : "unknown error");
    ERR_clear_error();
    return SL_CONFIG;
}

static enum sl_status load_files(SSL_CTX *ssl, const char *cert, const char *key,
                                 struct sl_err *err)
{
    if (!cert || !key)
        return sl_fail(err, SL_CONFIG, "tls: certificate and key file are needed together");
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ssl, cert) != 1)
        return refuse_file(err, "certificate file", cert);
    if (SSL_CTX_use_PrivateKey_file(ssl, key, SSL_FILETYPE_PEM) != 1)
        return refuse_file(err, "key file", key);
    if (SSL_CTX_check_private_key(ssl) != 1)
        return refuse_file(err, "key file", key);
    return SL_OK;
}

enum sl_status http_tls_ctx_open(const char *cert_file, const char *key_file,
                                 struct http_tls_ctx **out, struct sl_err *err)
{
    struct http_tls_ctx *x = calloc(1, sizeof(*x));
    if (x)
        x->ssl = SSL_CTX_new(TLS_server_method());
    if (!x || !x->ssl) {
        free(x);
        return sl_fail(err, SL_NO_MEMORY, "tls: out of memory");
    }
    SSL_CTX_set_min_proto_version(x->ssl, TLS1_2_VERSION);
    SSL_CTX_set_options(x->ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                    SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(x->ssl, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(x->ssl, choose_protocol, NULL);
    enum sl_status st = load_files(x->ssl, cert_file, key_file, err);
    if (st != SL_OK) {
        http_tls_ctx_free(x);
        return st;
    }
    *out = x;
    return SL_OK;
}

void http_tls_ctx_free(struct http_tls_ctx *x)
{
    if (!x)
        return;
    SSL_CTX_free(x->ssl);
    free(x);
}

struct http_tls *http_tls_new(struct http_tls_ctx *x)
{
    struct http_tls *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->ssl = SSL_new(x->ssl);
    t->in = BIO_new(BIO_s_mem());
    t->out = BIO_new(BIO_s_mem());
    if (!t->ssl || !t->in || !t->out) {
        BIO_free(t->in);
        BIO_free(t->out);
        SSL_free(t->ssl);
        free(t);
        return NULL;
    }
    BIO_set_mem_eof_return(t->in, -1); /* empty means more to come */
    SSL_set_bio(t->ssl, t->in, t->out);
    SSL_set_accept_state(t->ssl);
    return t;
}

void http_tls_free(struct http_tls *t)
{
    if (!t)
        return;
    SSL_free(t->ssl);
    free(t);
}

bool http_tls_put(struct http_tls *t, const char *data, size_t len)
{
    return len <= INT_MAX && BIO_write(t->in, data, (int)len) == (int)len;
}

int http_tls_get(struct http_tls *t, char *buf, size_t len)
{
    if (t->broken)
        return -2;
    ERR_clear_error();
    int n = SSL_read(t->ssl, buf, len < INT_MAX ? (int)len : INT_MAX);
    if (n > 0)
        return n;
    switch (SSL_get_error(t->ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return BIO_ctrl_pending(t->out) > OUTPUT_MAX ? -2 : 0;
    case SSL_ERROR_ZERO_RETURN:
        return -1;
    default:
        t->broken = true;
        ERR_clear_error();
        return -2;
    }
}

bool http_tls_seal(struct http_tls *t, struct sl_buf *clear)
{
    size_t done = 0;
    if (t->broken) /* only an alert is left to send */
        clear->len = 0;
    while (done < clear->len) {
        size_t n = 0;
        ERR_clear_error();
        if (SSL_write_ex(t->ssl, clear->data + done, clear->len - done, &n) != 1) {
            t->broken = true;
            return false;
        }
        done += n;
    }
    clear->len = 0;
    return true;
}

void http_tls_end(struct http_tls *t)
{
    if (t->ended || t->broken || !SSL_is_init_finished(t->ssl))
        return;
    t->ended = true;
    ERR_clear_error();
    SSL_shutdown(t->ssl); /* queues the alert; the peer's own is not waited for */
}

bool http_tls_take(struct http_tls *t, struct sl_buf *out)
{
    char *data;
    long n = BIO_get_mem_data(t->out, &data);
    if (n > 0)
        sl_buf_append(out, data, (size_t)n);
    (void)BIO_reset(t->out);
    return !out->failed;
}

bool http_tls_has_output(const struct http_tls *t)
{
    return BIO_ctrl_pending(t->out) > 0;
}
