/* The listening side: bind, accept, deadlines, drain and close.
 *
 * Accepting is done by hand rather than by uv_listen, so that it can pause: at http_connections, or
 * when descriptors run out. Waiting clients then stay in the kernel's queue, and nothing spins. */
#include "http_priv.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sluice/base/log.h>
#include <sluice/base/metrics.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG          4096
#define ACCEPTS_PER_TURN 64

struct http_tuning http_tuning_default(void)
{
    return (struct http_tuning){
        .header_ms = SL_LIMIT_http_header_ms,
        .body_grace_ms = SL_LIMIT_http_body_grace_ms,
        .body_rate = SL_LIMIT_http_body_rate,
        .idle_ms = SL_LIMIT_http_idle_ms,
        .write_stall_ms = SL_LIMIT_http_write_stall_ms,
        .linger_ms = 1000,
        .tick_ms = 100,
        .connections = SL_LIMIT_http_connections,
    };
}

static bool on_list(const struct sl_list *n)
{
    return n->next && n->next != n;
}

void http_server_mark_dirty(struct http_conn *c)
{
    if (!on_list(&c->dirty) && !c->closing)
        sl_list_push_back(&c->srv->dirty, &c->dirty);
}

/* A drained stream may fill again at once, so one connection can come up several times; the budget
 * keeps a fast reader from holding the loop. */
static bool flush_dirty(void *ctx)
{
    struct sl_http_server *s = ctx;
    uint64_t budget = (uint64_t)s->n_conns * 4 + 16;
    while (!sl_list_empty(&s->dirty) && budget--) {
        struct http_conn *c = SL_ENTRY(s->dirty.next, struct http_conn, dirty);
        sl_list_remove(&c->dirty);
        http_send_flush(c);
    }
    return !sl_list_empty(&s->dirty);
}

static uint64_t wait_ms(const struct sl_http_server *s, enum http_wait kind)
{
    const struct http_tuning *t = &s->tuning;
    const uint64_t ms[HTTP_N_WAITS] = {
        [HTTP_WAIT_HEAD] = t->header_ms,   [HTTP_WAIT_BODY] = t->body_grace_ms,
        [HTTP_WAIT_IDLE] = t->idle_ms,     [HTTP_WAIT_WRITE] = t->write_stall_ms,
        [HTTP_WAIT_LINGER] = t->linger_ms, [HTTP_WAIT_PEER] = t->tick_ms,
    };
    return ms[kind];
}

/* Readers that took something since the last tick start their time anew. */
static void note_progress(struct sl_http_server *s)
{
    struct sl_list *list = &s->waits[HTTP_WAIT_WRITE], moved;
    sl_list_init(&moved);
    for (struct sl_list *n = list->next, *next; n != list; n = next) {
        next = n->next;
        struct http_conn *c = SL_ENTRY(n, struct http_conn, wait);
        if (!http_send_progressed(c))
            continue;
        sl_list_remove(n);
        sl_list_push_back(&moved, n);
    }
    while (!sl_list_empty(&moved))
        http_conn_wait(SL_ENTRY(moved.next, struct http_conn, wait), HTTP_WAIT_WRITE);
}

static void expire(struct sl_http_server *s, enum http_wait kind, uint64_t now)
{
    struct sl_list *list = &s->waits[kind];
    uint64_t ms = wait_ms(s, kind);
    while (!sl_list_empty(list)) {
        struct http_conn *c = SL_ENTRY(list->next, struct http_conn, wait);
        if (now - c->since_ms < ms)
            return;
        http_conn_expired(c);
    }
}

static void accept_some(struct sl_http_server *s);

static void on_acceptable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    accept_some(poll->data);
}

static void accept_pause(struct sl_http_server *s)
{
    s->accept_paused = true;
    uv_poll_stop(&s->listener);
}

static void accept_resume(struct sl_http_server *s)
{
    if (!s->accept_paused || s->draining || s->n_conns >= s->tuning.connections)
        return;
    s->accept_paused = false;
    uv_poll_start(&s->listener, UV_READABLE, on_acceptable);
}

static void on_tick(uv_timer_t *tick)
{
    struct sl_http_server *s = tick->data;
    uint64_t now = uv_now(tick->loop);
    note_progress(s);
    for (int kind = 0; kind < HTTP_N_WAITS; kind++)
        expire(s, (enum http_wait)kind, now);
    accept_resume(s);
    if (s->n_conns == 0 && !s->accept_paused)
        uv_timer_stop(tick);
}

static void tick_start(struct sl_http_server *s)
{
    if (!uv_is_active((uv_handle_t *)&s->tick))
        uv_timer_start(&s->tick, on_tick, s->tuning.tick_ms, s->tuning.tick_ms);
}

/* True while another connection may be there. */
static bool accept_one(struct sl_http_server *s)
{
    int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        if (!http_conn_open(s, fd))
            close(fd);
        return true;
    }
    if (errno == EAGAIN)
        return false;
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        sl_log(SL_LOG_WARN, "http: accept is paused: %s", strerror(errno));
        accept_pause(s); /* until a connection closes or the next tick */
        return false;
    }
    return true; /* that client is gone already */
}

static void accept_some(struct sl_http_server *s)
{
    tick_start(s);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        if (s->n_conns >= s->tuning.connections) {
            accept_pause(s);
            return;
        }
        if (!accept_one(s))
            return;
    }
}

static void server_free(struct sl_http_server *s)
{
    while (!sl_list_empty(&s->spare_reqs)) {
        struct sl_http_req *r = SL_ENTRY(s->spare_reqs.next, struct sl_http_req, spare);
        sl_list_remove(&r->spare);
        http_parse_free(&r->parse);
        free(r);
    }
    http_tls_ctx_free(s->tls);
    free(s);
}

static void maybe_free(struct sl_http_server *s)
{
    if (s->closed && s->n_conns == 0 && s->n_handles == 0)
        server_free(s);
}

void http_server_conn_gone(struct sl_http_server *s, struct http_conn *c)
{
    sl_list_remove(&c->node);
    s->n_conns--;
    sl_metric_add(&http_m_connections, -1);
    accept_resume(s);
    maybe_free(s);
}

static enum sl_status bind_failed(int e, const struct sl_http_config *cfg, struct sl_err *err)
{
    if (e == EADDRINUSE)
        return sl_fail(err, SL_PORT_IN_USE, "http: %s:%u is already in use", cfg->host,
                       (unsigned)cfg->port);
    return sl_fail(err, SL_CONFIG, "http: cannot listen on %s:%u: %s", cfg->host,
                   (unsigned)cfg->port, strerror(e));
}

/* A listening descriptor, or -errno. No SO_REUSEPORT: a second server must fail, not share. */
static int listen_on(const struct addrinfo *a)
{
    int on = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int e = errno;
    close(fd);
    return -e;
}

/* IPv4 first: a name that has both would otherwise listen where few clients look. */
static int resolve(const char *host, const char *port, struct addrinfo **list)
{
    struct addrinfo hints = {
        .ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    if (getaddrinfo(host, port, &hints, list) == 0)
        return 0;
    hints.ai_family = AF_UNSPEC;
    return getaddrinfo(host, port, &hints, list);
}

static enum sl_status open_listener(const struct sl_http_config *cfg, int *fd, struct sl_err *err)
{
    struct addrinfo *list = NULL;
    char port[8];
    if (!cfg->host)
        return sl_fail(err, SL_CONFIG, "http: no host to listen on");
    snprintf(port, sizeof(port), "%u", (unsigned)cfg->port);
    int rc = resolve(cfg->host, port, &list);
    if (rc)
        return sl_fail(err, SL_CONFIG, "http: host '%s' is unknown: %s", cfg->host,
                       gai_strerror(rc));
    int got = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && got == -EADDRNOTAVAIL; a = a->ai_next)
        got = listen_on(a); /* a busy port is an error, not a reason to try the next address */
    freeaddrinfo(list);
    if (got < 0)
        return bind_failed(-got, cfg, err);
    *fd = got;
    return SL_OK;
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);
    if (getsockname(fd, (struct sockaddr *)&a, &len))
        return 0;
    if (a.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&a)->sin6_port);
    return ntohs(((struct sockaddr_in *)&a)->sin_port);
}

static void start(struct sl_http_server *s)
{
    uv_loop_t *uv = sl_loop_uv(s->loop);
    s->port = bound_port(s->fd);
    uv_timer_init(uv, &s->tick);
    s->listener.data = s;
    s->tick.data = s;
    s->n_handles = 2;
    s->flush = (struct sl_flush){.fn = flush_dirty, .ctx = s};
    sl_loop_add_flush(s->loop, &s->flush);
    uv_poll_start(&s->listener, UV_READABLE, on_acceptable);
}

static struct sl_http_server *server_new(struct sl_loop *loop, const struct sl_http_handler *h)
{
    struct sl_http_server *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    s->loop = loop;
    s->handler = *h;
    s->tuning = http_tuning_default();
    s->fd = -1;
    sl_list_init(&s->conns);
    sl_list_init(&s->dirty);
    sl_list_init(&s->spare_reqs);
    for (int i = 0; i < HTTP_N_WAITS; i++)
        sl_list_init(&s->waits[i]);
    return s;
}

enum sl_status sl_http_server_open(struct sl_loop *loop, const struct sl_http_config *cfg,
                                   const struct sl_http_handler *handler,
                                   struct sl_http_server **out, struct sl_err *err)
{
    *out = NULL;
    http_metrics_register();
    struct sl_http_server *s = server_new(loop, handler);
    if (!s)
        return sl_fail(err, SL_NO_MEMORY, "http: out of memory");
    enum sl_status st = SL_OK;
    if (cfg->tls_cert_file || cfg->tls_key_file)
        st = http_tls_ctx_open(cfg->tls_cert_file, cfg->tls_key_file, &s->tls, err);
    if (st == SL_OK)
        st = open_listener(cfg, &s->fd, err);
    if (st == SL_OK && uv_poll_init(sl_loop_uv(loop), &s->listener, s->fd)) {
        close(s->fd);
        st = sl_fail(err, SL_FAILED, "http: cannot watch the listening socket");
    }
    if (st != SL_OK) {
        server_free(s);
        return st;
    }
    start(s);
    *out = s;
    return SL_OK;
}

void http_server_tune(struct sl_http_server *s, const struct http_tuning *t)
{
    s->tuning = *t;
}

uint16_t sl_http_server_port(const struct sl_http_server *s)
{
    return s->port;
}

uint32_t sl_http_server_busy(const struct sl_http_server *s)
{
    return s->n_busy;
}

static void handle_gone(uv_handle_t *h)
{
    struct sl_http_server *s = h->data;
    s->n_handles--;
    maybe_free(s);
}

static void stop_accepting(struct sl_http_server *s)
{
    if (s->fd < 0)
        return;
    uv_close((uv_handle_t *)&s->listener, handle_gone);
    close(s->fd);
    s->fd = -1;
}

void sl_http_server_drain(struct sl_http_server *s)
{
    s->draining = true;
    stop_accepting(s);
    for (struct sl_list *n = s->conns.next, *next; n != &s->conns; n = next) {
        next = n->next; /* connections leave the list only in their close callback */
        http_conn_drain(SL_ENTRY(n, struct http_conn, node));
    }
}

void sl_http_server_close(struct sl_http_server *s)
{
    if (!s)
        return;
    s->draining = s->closed = true;
    sl_loop_remove_flush(&s->flush);
    stop_accepting(s);
    for (struct sl_list *n = s->conns.next, *next; n != &s->conns; n = next) {
        next = n->next;
        http_conn_lost(SL_ENTRY(n, struct http_conn, node), false);
    }
    uv_close((uv_handle_t *)&s->tick, handle_gone);
}
