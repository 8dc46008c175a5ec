/* Inside the HTTP server: connections, requests, deadlines. One thread, the loop's. */
#ifndef SLUICE_HTTP_PRIV_H
#define SLUICE_HTTP_PRIV_H

#include "loop/loop_priv.h"
#include "parse.h"
#include <sluice/transport/http_server.h>

struct http_tls_ctx;
struct http_tls;

/* Deadlines and bounds of a server; tests scale them down. */
struct http_tuning {
    uint64_t header_ms, body_grace_ms, body_rate, idle_ms, write_stall_ms;
    uint64_t linger_ms; /* how long a refused client may go on sending before the close */
    uint64_t tick_ms;   /* deadlines are checked this often */
    uint32_t connections;
    int send_buffer_bytes; /* SO_SNDBUF; 0: the system's choice */
};

/* What a connection waits for. Every deadline of a kind is equally long, so that each kind is a
 * list in order of expiry. */
enum http_wait {
    HTTP_WAIT_HEAD,
    HTTP_WAIT_BODY,
    HTTP_WAIT_IDLE,
    HTTP_WAIT_WRITE,
    HTTP_WAIT_LINGER,
    HTTP_WAIT_PEER, /* reading is paused: is the peer still there? */
    HTTP_N_WAITS
};

enum http_conn_state {
    HTTP_CONN_READ,  /* idle, or a request is arriving */
    HTTP_CONN_BUSY,  /* the handler has the request */
    HTTP_CONN_LINGER /* the last answer is going out; input is thrown away until the peer closes */
};

struct sl_http_req {
    struct http_parse parse;
    struct http_conn *conn;
    struct sl_list spare; /* server's pool */
    void *user;
    bool answering; /* the head of the answer is queued */
    bool answered;  /* the whole answer is queued */
    bool chunked, no_body;
    bool full; /* sl_http_stream_write returned false; on_drain is owed */
};

struct http_conn {
    uv_tcp_t tcp;
    struct sl_http_server *srv;
    struct sl_list node;  /* server's connections */
    struct sl_list wait;  /* server's list of its kind of deadline */
    struct sl_list dirty; /* server's list of those with bytes to send */
    uint64_t since_ms;
    uint8_t waits_for; /* enum http_wait, HTTP_N_WAITS: nothing */
    uint8_t state;     /* enum http_conn_state */
    bool closing, reading, broken, shut, keep_alive;
    struct sl_http_req *req; /* being read, or the handler's */
    struct sl_buf pend;      /* input behind the request in progress */
    size_t pend_used;
    struct sl_buf out;  /* to send, in clear */
    struct sl_buf wire; /* handed to libuv, encrypted if TLS */
    uv_write_t write;
    bool writing;
    size_t write_left;    /* at the last look at the write queue */
    size_t body_mark;     /* body bytes at the start of the rate window */
    size_t linger_left;   /* bytes still thrown away before the close */
    struct http_tls *tls; /* NULL: plain */
};

struct sl_http_server {
    struct sl_loop *loop;
    struct sl_http_handler handler;
    struct http_tuning tuning;
    struct http_tls_ctx *tls;
    uint16_t port;
    int fd; /* listening; -1 when closed */
    uv_poll_t listener;
    uv_timer_t tick;
    struct sl_flush flush;
    struct sl_list conns, dirty, spare_reqs;
    struct sl_list waits[HTTP_N_WAITS];
    uint32_t n_conns, n_busy, n_spare;
    uint32_t n_handles; /* listener and tick: the server is freed with the last one */
    bool accept_paused, draining, closed;
    char input[65536]; /* shared by all reads: libuv fills and hands it over in one go */
    char clear[16384]; /* decrypted input */
};

/* server.c */
void http_server_tune(struct sl_http_server *s, const struct http_tuning *t);
struct http_tuning http_tuning_default(void);
void http_server_conn_gone(struct sl_http_server *s, struct http_conn *c);
void http_server_mark_dirty(struct http_conn *c);

/* conn.c */
bool http_conn_open(struct sl_http_server *s, int fd);         /* takes fd over on success */
void http_conn_wait(struct http_conn *c, enum http_wait kind); /* HTTP_N_WAITS: for nothing */
void http_conn_wait_busy(struct http_conn *c); /* the handler works, nothing is being written */
void http_conn_expired(struct http_conn *c);   /* its deadline passed */
void http_conn_drain(struct http_conn *c);
void http_conn_lost(struct http_conn *c, bool reset);
void http_conn_refuse(struct http_conn *c, int http_status, const struct sl_err *err);
void http_conn_answered(struct http_conn *c); /* the answer has left */
void http_conn_input(struct http_conn *c, const char *data, size_t len);

/* send.c */
void http_send_flush(struct http_conn *c);
bool http_send_progressed(struct http_conn *c); /* since the last call */
size_t http_send_pending(const struct http_conn *c);
void http_send_free(struct http_conn *c);

/* respond.c */
void http_respond_refusal(struct http_conn *c, int http_status, const char *type,
                          const struct sl_buf *body, bool no_body);

/* tls.c: OpenSSL over memory buffers; it never touches the socket. */
enum sl_status http_tls_ctx_open(const char *cert_file, const char *key_file,
                                 struct http_tls_ctx **out, struct sl_err *err);
void http_tls_ctx_free(struct http_tls_ctx *x);
struct http_tls *http_tls_new(struct http_tls_ctx *x);
void http_tls_free(struct http_tls *t);
bool http_tls_put(struct http_tls *t, const char *data, size_t len); /* bytes from the wire */
/* Clear bytes: > 0 their number, 0 none now, -1 the peer closed, -2 the connection is unusable. */
int http_tls_get(struct http_tls *t, char *buf, size_t len);
bool http_tls_seal(struct http_tls *t, struct sl_buf *clear); /* empties clear */
void http_tls_end(struct http_tls *t);                        /* queues close_notify */
/* Bytes for the wire, appended to out. */
bool http_tls_take(struct http_tls *t, struct sl_buf *out);
bool http_tls_has_output(const struct http_tls *t);

/* metrics.c */
extern struct sl_metric http_m_connections, http_m_requests, http_m_slow, http_m_bad;
void http_metrics_register(void);

#endif
