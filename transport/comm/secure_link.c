/* TLS 1.3 links with a shared key; see secure_link.h. */
#include "secure_link.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <limits.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECORD_BYTES          16384
#define SEALED_BYTES          (80 << 10)
#define READ_BYTES            (64 << 10)
#define RECORDS_BETWEEN_REKEY ((uint64_t)1 << 23)

struct secure_link {
    SSL_CTX *ctx;
    SSL *ssl;
    int fd;
    bool ready;            /* hands were shaken */
    short events;          /* the handshake's wish */
    secure_find_key *find; /* server */
    void *find_ctx;
    struct secure_psk psk; /* client: ours; server: the one offered */

    uint8_t out[RECORD_BYTES]; /* one frame on its way: OpenSSL wants the same bytes again */
    size_t out_bytes, out_done;
    uint8_t sealed[SEALED_BYTES]; /* records not yet sent: several go in one system call */
    size_t sealed_bytes, sealed_sent;
    bool broken;
    uint64_t n_records;

    uint8_t head[SECURE_FRAME_HEAD];
    size_t head_bytes;
    struct secure_frame front;
    bool have_front;
};

/* --- a socket as BIO: OpenSSL's own writes without MSG_NOSIGNAL --------------------------------
 */

/* Sends what the socket takes. */
static void send_sealed(struct secure_link *l)
{
    while (l->sealed_sent < l->sealed_bytes && !l->broken) {
        ssize_t n =
            send(l->fd, l->sealed + l->sealed_sent, l->sealed_bytes - l->sealed_sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        l->broken = n < 0 && errno != EINTR;
        l->sealed_sent += n > 0 ? (size_t)n : 0;
    }
    if (!l->broken)
        l->sealed_bytes = l->sealed_sent = 0;
}

static int bio_write(BIO *b, const char *data, int n)
{
    struct secure_link *l = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (n <= 0 || l->broken)
        return -1;
    if ((size_t)n > sizeof l->sealed - l->sealed_bytes)
        send_sealed(l);
    size_t room = sizeof l->sealed - l->sealed_bytes;
    size_t take = (size_t)n < room ? (size_t)n : room;
    if (!take) {
        if (!l->broken)
            BIO_set_retry_write(b);
        return -1;
    }
    memcpy(l->sealed + l->sealed_bytes, data, take);
    l->sealed_bytes += take;
    return (int)take;
}

static int bio_read(BIO *b, char *data, int n)
{
    struct secure_link *l = BIO_get_data(b);
    ssize_t got;
    BIO_clear_retry_flags(b);
    do
        got = recv(l->fd, data, (size_t)n, 0);
    while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_read(b);
    return (int)got;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    (void)b, (void)num, (void)ptr;
    return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_DUP;
}

static BIO_METHOD *method;
static int link_index = -1;

static void make_method(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "sluice socket");
    if (method) {
        BIO_meth_set_write(method, bio_write);
        BIO_meth_set_read(method, bio_read);
        BIO_meth_set_ctrl(method, bio_ctrl);
    }
    link_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

/* --- keys ------------------------------------------------------------------------------------- */

void secure_derive(const uint8_t key[SECURE_KEY_BYTES], const char *label,
                   uint8_t out[SECURE_KEY_BYTES])
{
    unsigned n = SECURE_KEY_BYTES;
    sl_assert(HMAC(EVP_sha256(), key, SECURE_KEY_BYTES, (const unsigned char *)label, strlen(label),
                   out, &n) &&
              n == SECURE_KEY_BYTES);
}

/* An external PSK takes the form of a session to resume. */
static SSL_SESSION *make_session(SSL *ssl, const struct secure_psk *psk)
{
    static const unsigned char aes_128_gcm_sha256[] = {0x13, 0x01};
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, aes_128_gcm_sha256);
    SSL_SESSION *s = SSL_SESSION_new();
    if (s && cipher && SSL_SESSION_set1_master_key(s, psk->key, sizeof psk->key) &&
        SSL_SESSION_set_cipher(s, cipher) && SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION))
        return s;
    SSL_SESSION_free(s);
    return NULL;
}

static int use_session(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
                       SSL_SESSION **session)
{
    struct secure_link *l = SSL_get_ex_data(ssl, link_index);
    *session = NULL;
    if (md && EVP_MD_get_type(md) != NID_sha256)
        return 1; /* another hash is asked for: go on without, and fail */
    *id = (const unsigned char *)l->psk.identity;
    *id_len = strlen(l->psk.identity);
    *session = make_session(ssl, &l->psk);
    return *session != NULL;
}

static int find_session(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
    struct secure_link *l = SSL_get_ex_data(ssl, link_index);
    struct secure_psk psk = {0};
    *session = NULL;
    if (id_len == 0 || id_len >= sizeof psk.identity || memchr(id, 0, id_len))
        return 1;
    memcpy(psk.identity, id, id_len);
    if (!l->find(l->find_ctx, psk.identity, &psk))
        return 1; /* no such key: the handshake fails for want of a certificate */
    l->psk = psk;
    *session = make_session(ssl, &psk);
    OPENSSL_cleanse(psk.key, sizeof psk.key);
    return *session != NULL;
}

/* --- opening ---------------------------------------------------------------------------------- */

static bool set_up(struct secure_link *l)
{
    BIO *bio = BIO_new(method);
    l->ctx = SSL_CTX_new(l->find ? TLS_server_method() : TLS_client_method());
    if (!bio || !l->ctx || !SSL_CTX_set_min_proto_version(l->ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(l->ctx, "TLS_AES_128_GCM_SHA256") ||
        !SSL_CTX_set_num_tickets(l->ctx, 0)) {
        BIO_free(bio);
        return false;
    }
    SSL_CTX_set_session_cache_mode(l->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(l->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_read_ahead(l->ctx, 1);
    SSL_CTX_set_default_read_buffer_len(l->ctx, READ_BYTES);
    if (l->find) {
        SSL_CTX_set_psk_find_session_callback(l->ctx, find_session);
    } else {
        SSL_CTX_set_psk_use_session_callback(l->ctx, use_session);
        SSL_CTX_set_verify(l->ctx, SSL_VERIFY_PEER, NULL); /* no certificate is good enough */
    }
    l->ssl = SSL_new(l->ctx);
    if (!l->ssl || !SSL_set_ex_data(l->ssl, link_index, l)) {
        BIO_free(bio);
        return false;
    }
    BIO_set_data(bio, l);
    BIO_set_init(bio, 1);
    SSL_set_bio(l->ssl, bio, bio);
    if (l->find)
        SSL_set_accept_state(l->ssl);
    else
        SSL_set_connect_state(l->ssl);
    l->events = l->find ? POLLIN : POLLOUT;
    return true;
}

static enum sl_status link_new(int fd, const struct secure_psk *psk, secure_find_key *find,
                               void *ctx, struct secure_link **out, struct sl_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_method);
    struct secure_link *l = calloc(1, sizeof *l);
    *out = NULL;
    if (!l) {
        close(fd);
        return sl_fail(err, SL_NO_MEMORY, "link: no memory");
    }
    l->fd = fd;
    l->find = find;
    l->find_ctx = ctx;
    if (psk)
        l->psk = *psk;
    if (!method || !set_up(l)) {
        secure_link_free(l);
        ERR_clear_error();
        return sl_fail(err, SL_NO_MEMORY, "link: TLS cannot be set up");
    }
    *out = l;
    return SL_OK;
}

enum sl_status secure_link_client(int fd, const struct secure_psk *psk, struct secure_link **out,
                                  struct sl_err *err)
{
    return link_new(fd, psk, NULL, NULL, out, err);
}

enum sl_status secure_link_server(int fd, secure_find_key *find, void *ctx,
                                  struct secure_link **out, struct sl_err *err)
{
    return link_new(fd, NULL, find, ctx, out, err);
}

void secure_link_free(struct secure_link *l)
{
    if (!l)
        return;
    SSL_free(l->ssl);
    SSL_CTX_free(l->ctx);
    close(l->fd);
    OPENSSL_cleanse(l, sizeof *l);
    free(l);
}

void secure_link_end(struct secure_link *l)
{
    shutdown(l->fd, SHUT_WR);
}

/* --- moving bytes ----------------------------------------------------------------------------- */

/* After a call of OpenSSL that gave no bytes: SL_OK when it has to be tried again. */
static enum sl_status why(struct secure_link *l, int rc, struct sl_err *err)
{
    int kind = SSL_get_error(l->ssl, rc);
    unsigned long code = ERR_peek_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    l->events = kind == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE)
        return SL_OK;
    if (kind == SSL_ERROR_ZERO_RETURN || !text)
        return sl_fail(err, SL_PEER, "link: the peer closed the connection");
    return sl_fail(err, SL_PEER, "link: %s", text);
}

enum sl_status secure_link_handshake(struct secure_link *l, bool *done, struct sl_err *err)
{
    *done = l->ready;
    if (l->ready)
        return SL_OK;
    ERR_clear_error();
    int rc = SSL_do_handshake(l->ssl);
    send_sealed(l); /* also an alert that says why not */
    if (rc != 1)
        return why(l, rc, err);
    if (!SSL_session_reused(l->ssl)) /* only ever by our key */
        return sl_fail(err, SL_PEER, "link: the peer showed no key");
    *done = l->ready = true;
    return SL_OK;
}

const char *secure_link_identity(const struct secure_link *l)
{
    return l->psk.identity;
}

/* The frame in `out` becomes a record, unless `sealed` is full. */
static enum sl_status seal(struct secure_link *l, struct sl_err *err)
{
    if (!l->out_bytes)
        return SL_OK;
    ERR_clear_error();
    while (l->out_done < l->out_bytes) { /* once, unless the peer asked for short records */
        int rc = SSL_write(l->ssl, l->out + l->out_done, (int)(l->out_bytes - l->out_done));
        if (rc <= 0)
            return why(l, rc, err);
        l->out_done += (size_t)rc;
    }
    l->out_bytes = l->out_done = 0;
    if (++l->n_records % RECORDS_BETWEEN_REKEY == 0 &&
        !SSL_key_update(l->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
        return why(l, 0, err);
    return SL_OK;
}

enum sl_status secure_link_flush(struct secure_link *l, bool *flushed, struct sl_err *err)
{
    *flushed = false;
    send_sealed(l);
    enum sl_status s = seal(l, err);
    if (s)
        return s;
    send_sealed(l);
    if (l->broken)
        return sl_fail(err, SL_PEER, "link: the peer closed the connection");
    *flushed = !l->out_bytes && !l->sealed_bytes;
    return SL_OK;
}

static void put_head(uint8_t *head, uint8_t kind, size_t bytes)
{
    for (int i = 0; i < 4; i++)
        head[i] = (uint8_t)(bytes >> (8 * i));
    head[4] = kind;
    memset(head + 5, 0, 3);
}

/* Makes one frame of what is left of the spans behind `skip` bytes; returns its payload's size. */
static size_t fill(struct secure_link *l, uint8_t kind, const struct secure_span *spans,
                   size_t n_spans, size_t skip)
{
    size_t n = 0;
    for (size_t i = 0; i < n_spans && n < SECURE_FRAME_MAX; i++) {
        size_t jump = skip < spans[i].bytes ? skip : spans[i].bytes;
        size_t take = spans[i].bytes - jump;
        skip -= jump;
        take = take < SECURE_FRAME_MAX - n ? take : SECURE_FRAME_MAX - n;
        if (take)
            memcpy(l->out + SECURE_FRAME_HEAD + n, (const uint8_t *)spans[i].data + jump, take);
        n += take;
    }
    put_head(l->out, kind, n);
    l->out_bytes = SECURE_FRAME_HEAD + n;
    return n;
}

enum sl_status secure_link_push(struct secure_link *l, uint8_t kind,
                                const struct secure_span *spans, size_t n_spans, size_t *taken,
                                struct sl_err *err)
{
    size_t all = 0;
    bool flushed;
    *taken = 0;
    for (size_t i = 0; i < n_spans; i++)
        all += spans[i].bytes;
    while (*taken < all) {
        enum sl_status s = seal(l, err);
        if (s)
            return s;
        if (l->out_bytes)
            break;
        *taken += fill(l, kind, spans, n_spans, *taken);
    }
    return secure_link_flush(l, &flushed, err);
}

enum sl_status secure_link_note(struct secure_link *l, uint8_t kind, const void *data, size_t bytes,
                                bool *taken, struct sl_err *err)
{
    struct secure_span span = {data, bytes};
    bool flushed;
    sl_assert(bytes <= SECURE_FRAME_MAX);
    enum sl_status s = secure_link_flush(l, &flushed, err);
    *taken = !s && !l->out_bytes;
    if (!*taken)
        return s;
    fill(l, kind, &span, 1, 0);
    return secure_link_flush(l, &flushed, err);
}

enum sl_status secure_frame_decode(const uint8_t head[SECURE_FRAME_HEAD], struct secure_frame *out,
                                   struct sl_err *err)
{
    out->bytes = 0;
    for (int i = 0; i < 4; i++)
        out->bytes |= (uint32_t)head[i] << (8 * i);
    out->kind = head[4];
    if (out->bytes > SECURE_FRAME_MAX || head[5] || head[6] || head[7])
        return sl_fail(err, SL_INVALID, "link: a frame of %u bytes, at most %d", out->bytes,
                       SECURE_FRAME_MAX);
    return SL_OK;
}

static enum sl_status take_some(struct secure_link *l, void *data, size_t bytes, size_t *got,
                                struct sl_err *err)
{
    ERR_clear_error();
    *got = 0;
    int rc = SSL_read(l->ssl, data, bytes < INT_MAX ? (int)bytes : INT_MAX);
    if (rc <= 0)
        return why(l, rc, err);
    *got = (size_t)rc;
    return SL_OK;
}

enum sl_status secure_link_front(struct secure_link *l, struct secure_frame *front, bool *have,
                                 struct sl_err *err)
{
    *have = false;
    while (!l->have_front) {
        size_t got;
        enum sl_status s =
            take_some(l, l->head + l->head_bytes, sizeof l->head - l->head_bytes, &got, err);
        if (s || !got)
            return s;
        l->head_bytes += got;
        if (l->head_bytes < sizeof l->head)
            continue;
        l->head_bytes = 0;
        if ((s = secure_frame_decode(l->head, &l->front, err)))
            return s;
        l->have_front = true;
    }
    *have = true;
    *front = l->front;
    if (!front->bytes)
        l->have_front = false;
    return SL_OK;
}

enum sl_status secure_link_pull(struct secure_link *l, void *data, size_t bytes, size_t *got,
                                struct sl_err *err)
{
    *got = 0;
    if (!l->have_front || !bytes)
        return SL_OK;
    enum sl_status s =
        take_some(l, data, bytes < l->front.bytes ? bytes : l->front.bytes, got, err);
    l->front.bytes -= (uint32_t)*got;
    if (!l->front.bytes)
        l->have_front = false;
    return s;
}

int secure_link_fd(const struct secure_link *l)
{
    return l->fd;
}

short secure_link_events(const struct secure_link *l)
{
    short out = l->out_bytes || l->sealed_bytes ? POLLOUT : 0;
    return l->ready ? out : (short)(l->events | out);
}

bool secure_link_buffered(const struct secure_link *l)
{
    return SSL_has_pending(l->ssl);
}

bool secure_link_wait(const struct secure_link *l, short events, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = sl_now_ns();
        if (now >= deadline_ns)
            return false;
        uint64_t left_ms = (deadline_ns - now + SL_MS_NS - 1) / SL_MS_NS;
        struct pollfd p = {l->fd, (short)(events | secure_link_events(l)), 0};
        int rc = poll(&p, 1, left_ms < 1000 ? (int)left_ms : 1000);
        if (rc > 0 || (rc < 0 && errno != EINTR))
            return true;
    }
}
