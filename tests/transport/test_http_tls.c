/* Promises: over TLS everything is as over plain TCP: sizes, streams, refusals, leaving clients;
 * versions below 1.2 and unknown protocols are refused; unusable files are a configuration error.
 */
#include "http_fixture.h"
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>

static char cert_path[64], key_path[64];

static void write_pem(EVP_PKEY *key, X509 *cert)
{
    FILE *f = fopen(key_path, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
    fclose(f);
    f = fopen(cert_path, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_X509(f, cert), 1);
    fclose(f);
}

static int make_certificate(void **state)
{
    (void)state;
    snprintf(cert_path, sizeof(cert_path), "/tmp/sl_http_tls_%d.crt", (int)getpid());
    snprintf(key_path, sizeof(key_path), "/tmp/sl_http_tls_%d.key", (int)getpid());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    assert_true(key && cert);
    X509_set_version(cert, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME *name = X509_get_subject_name(cert);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1,
                               0);
    X509_set_issuer_name(cert, name);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    write_pem(key, cert);
    X509_free(cert);
    EVP_PKEY_free(key);
    return 0;
}

static int remove_certificate(void **state)
{
    (void)state;
    unlink(cert_path);
    unlink(key_path);
    return 0;
}

/* The client trusts the one certificate; `version` is the highest it offers. */
static SSL_CTX *client_context(int version)
{
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    assert_non_null(x);
    assert_int_equal(SSL_CTX_load_verify_locations(x, cert_path, NULL), 1);
    SSL_CTX_set_verify(x, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_security_level(x, 0);
    SSL_CTX_set_min_proto_version(x, TLS1_VERSION);
    SSL_CTX_set_max_proto_version(x, version);
    return x;
}

static bool tls_open(struct client *c, const struct fx *f, SSL_CTX *x, const char *alpn)
{
    client_open(c, f);
    c->ssl = SSL_new(x);
    SSL_set_fd(c->ssl, c->fd);
    if (alpn)
        SSL_set_alpn_protos(c->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    return SSL_connect(c->ssl) == 1;
}

static void get(struct client *c, const char *line, struct reply *r)
{
    client_puts(c, line);
    client_puts(c, " HTTP/1.1\r\nHost: a\r\n\r\n");
    if (!reply_read(c, r, true))
        fail_msg("no whole answer to %s", line);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    static const size_t sizes[] = {0, 1, 16383, 16384, 16385, 1048576};
    struct fx f;
    fx_open(&f, NULL, cert_path, key_path);
    for (int v = 0; v < 2; v++) {
        SSL_CTX *x = client_context(versions[v]);
        struct client c;
        struct reply r;
        assert_true(tls_open(&c, &f, x, "\x02h2\x08http/1.1"));
        assert_int_equal(SSL_version(c.ssl), versions[v]);
        for (int i = 0; i < 12; i++) {
            char line[64];
            snprintf(line, sizeof(line), "GET /%s/%zu", i & 1 ? "stream" : "size", sizes[i / 2]);
            get(&c, line, &r);
            check_pattern(&r, sizes[i / 2]);
            reply_free(&r);
        }
        client_puts(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for (int i = 0; i < 200; i++)
            client_puts(&c, "1\r\nz\r\n"); /* a record each */
        client_puts(&c, "0\r\n\r\n");
        assert_true(reply_read(&c, &r, true));
        assert_int_equal(r.len, 200);
        reply_free(&r);
        client_close(&c);
        SSL_CTX_free(x);
    }
    fx_close(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct fx f;
    struct client c;
    struct reply r;
    fx_open(&f, NULL, cert_path, key_path);
    SSL_CTX *x = client_context(TLS1_3_VERSION), *old = client_context(TLS1_1_VERSION);
    assert_false(tls_open(&c, &f, old, NULL)); /* TLS 1.1 */
    client_close(&c);
    assert_false(tls_open(&c, &f, x, "\x02h2")); /* a client that speaks only HTTP/2 */
    client_close(&c);
    client_open(&c, &f); /* plain HTTP */
    client_puts(&c, "GET /size/1 HTTP/1.1\r\nHost: a\r\n\r\n");
    while (client_fill(&c))
        ;
    assert_true(c.in.len < 16); /* an alert at most */
    client_close(&c);
    assert_true(tls_open(&c, &f, x, NULL));
    client_puts(&c, "GET / HTTP/1.1\r\nHost : a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(reply_read(&c, &r, true));
    assert_int_equal(r.status, 400);
    reply_free(&r);
    check_closed(&c);
    assert_true(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN); /* closed, not cut */
    client_close(&c);
    assert_int_equal(f.n_requests, 0);
    SSL_CTX_free(old);
    SSL_CTX_free(x);
    fx_close(&f);
}

static void test_leaving_is_noticed(void **state)
{
    (void)state;
    struct fx f;
    fx_open(&f, NULL, cert_path, key_path);
    SSL_CTX *x = client_context(TLS1_3_VERSION);
    for (int how = 0; how < 3; how++) {
        struct client c;
        assert_true(tls_open(&c, &f, x, NULL));
        client_puts(&c, how == 2 ? "GET /stream/100000000 HTTP/1.1\r\nHost: a\r\n\r\n"
                                 : "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
        fx_wait(how == 2 ? &f.full : &f.held);
        if (how == 1)
            SSL_shutdown(c.ssl); /* close_notify alone, the socket stays open */
        else
            client_close(&c);
        fx_wait(&f.closed);
        assert_int_equal(f.n_lost, how + 1);
        if (how == 1)
            client_close(&c);
    }
    SSL_CTX_free(x);
    fx_close(&f);
}

/* The handshake has the header's deadline. */
static void test_slow_handshake(void **state)
{
    (void)state;
    struct http_tuning t = http_tuning_default();
    t.tick_ms = 5;
    t.header_ms = 50;
    struct fx f;
    struct client c;
    fx_open(&f, &t, cert_path, key_path);
    client_open(&c, &f);
    client_send(&c, "\x16\x03\x01", 3);
    check_closed(&c);
    client_close(&c);
    fx_close(&f);
}

static void test_unusable_files(void **state)
{
    (void)state;
    struct sl_loop *loop = sl_loop_open();
    struct sl_http_handler h = {fx_on_request, fx_on_close, fx_on_drain, NULL, NULL};
    const char *const rows[][2] = {{"/nonexistent.crt", key_path},
                                   {cert_path, "/nonexistent.key"},
                                   {key_path, key_path},
                                   {cert_path, cert_path},
                                   {cert_path, NULL},
                                   {NULL, key_path}};
    for (int i = 0; i < 6; i++) {
        struct sl_http_config cfg = {"127.0.0.1", 0, rows[i][0], rows[i][1]};
        struct sl_http_server *s;
        struct sl_err err;
        assert_int_equal(sl_http_server_open(loop, &cfg, &h, &s, &err), SL_CONFIG);
        assert_non_null(strstr(err.msg, "tls: "));
        assert_null(s);
    }
    sl_loop_close(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_leaving_is_noticed), cmocka_unit_test(test_slow_handshake),
        cmocka_unit_test(test_unusable_files),
    };
    return cmocka_run_group_tests(tests, make_certificate, remove_certificate);
}
