/* The bus object: one ROUTER or several DEALERs, a link table, one level-triggered descriptor.
 *
 * ZeroMQ's descriptors are edge-triggered, and any call on a socket may consume the edge. So they
 * sit in an epoll set together with an event descriptor of ours, which is raised whenever a socket
 * still reports input after a call, and lowered only once every socket has answered "nothing". */
#include "bus_socket.h"

#include <sluice/base/containers.h>
#include <sluice/base/fault.h>
#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>

#include <zmq.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define ROUTING_ID_MAX      255
#define DECODE_ARENA_BYTES  ((size_t)32 << 20)
#define SKIPPED_AT_ONCE_MAX 256 /* bad messages in a row before the caller gets the thread back */
#define ENDPOINTS_MAX       64
#define TIMER_MS            50 /* how often keys and connections are looked after */

/* A known peer of a router; link 0 marks a free slot. */
struct peer {
    uint64_t link, id_hash;
    struct sl_bus_order order;
    uint32_t version;  /* agreed on; 0 before its HELLO */
    uint64_t instance; /* of the process, as its HELLO said */
    uint32_t socket;
    int fd; /* of its connection under CURVE, as of its last message */
    uint8_t id_len;
    uint8_t id[ROUTING_ID_MAX];
    char key[CURVE_TEXT_BYTES]; /* "" on an open endpoint */
};

struct sl_bus {
    void *ctx;
    bool is_router;
    uint32_t version, version_min;
    struct bus_keys keys; /* ring NULL: open endpoints only */
    uint64_t keys_seen;   /* generation of the allow-list when links were last looked at */
    char own_key[CURVE_TEXT_BYTES];
    struct bus_socket *sockets; /* router: the open one, then the CURVE one, as far as needed */
    uint32_t n_sockets, next_socket; /* where the next receive begins, for fairness */
    char (*bound)[BUS_ENDPOINT_BYTES];
    uint32_t *bound_by; /* [n_bound] index of the socket */
    uint32_t n_bound;
    bool rebind;        /* CURVE endpoints wait to be bound under a new own key */
    struct peer *peers; /* [SL_LIMIT_workers], routers only */
    uint64_t next_link;
    int epoll_fd, event_fd, timer_fd; /* the timer only with keys */
    bool raised;                      /* event_fd is readable */
    struct sl_arena arena;
    struct sl_buf encoded;
    struct sl_bus_stats stats;
};

/* ---- the descriptor ---- */

static void raise_event(struct sl_bus *b)
{
    if (b->raised)
        return;
    b->raised = eventfd_write(b->event_fd, 1) == 0;
}

static void lower_event(struct sl_bus *b)
{
    eventfd_t n;
    if (b->raised)
        eventfd_read(b->event_fd, &n);
    b->raised = false;
}

/* After any call but a receive: input may have come in with no edge left to tell of it. */
static void look_again(struct sl_bus *b, void *zmq)
{
    int events = 0;
    size_t size = sizeof events;
    if (!zmq_getsockopt(zmq, ZMQ_EVENTS, &events, &size) && (events & ZMQ_POLLIN))
        raise_event(b);
}

static enum sl_status watch(struct sl_bus *b, void *zmq, struct sl_err *err)
{
    int fd = -1;
    size_t size = sizeof fd;
    struct epoll_event ev = {.events = EPOLLIN};
    if (zmq_getsockopt(zmq, ZMQ_FD, &fd, &size) || epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        return sl_fail(err, SL_FAILED, "bus: cannot watch a socket: %s", zmq_strerror(errno));
    return SL_OK;
}

/* ---- opening and closing ---- */

static enum sl_status open_descriptors(struct sl_bus *b, struct sl_err *err)
{
    b->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    b->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = {.events = EPOLLIN};
    if (b->epoll_fd < 0 || b->event_fd < 0 ||
        epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, b->event_fd, &ev))
        return sl_fail(err, SL_FAILED, "bus: no descriptors: %s", strerror(errno));
    return SL_OK;
}

static enum sl_status open_context(struct sl_bus *b, struct sl_err *err)
{
    b->ctx = zmq_ctx_new();
    if (!b->ctx || zmq_ctx_set(b->ctx, ZMQ_IO_THREADS, 1) || zmq_ctx_set(b->ctx, ZMQ_BLOCKY, 0) ||
        zmq_ctx_get(b->ctx, ZMQ_IO_THREADS) != 1 || zmq_ctx_get(b->ctx, ZMQ_BLOCKY) != 0)
        return sl_fail(err, SL_FAILED, "bus: no context: %s", zmq_strerror(errno));
    return SL_OK;
}

static enum sl_status open_keys(struct sl_bus *b, const struct sl_bus_config *cfg,
                                struct sl_err *err)
{
    struct epoll_event ev = {.events = EPOLLIN};
    struct itimerspec often = {.it_interval.tv_nsec = TIMER_MS * 1000000,
                               .it_value.tv_nsec = TIMER_MS * 1000000};
    if (!cfg->curve_dir)
        return SL_OK;
    enum sl_status s = curve_open(b->ctx, cfg->curve_dir, &b->keys.ring, err);
    if (s != SL_OK)
        return s;
    /* A router may register with another router, as the worker that its site is. */
    b->keys.peers = cfg->is_router ? SL_KEY_WORKER | SL_KEY_ROUTER : SL_KEY_ROUTER;
    curve_own_key(b->keys.ring, b->own_key);
    b->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (b->timer_fd < 0 || timerfd_settime(b->timer_fd, 0, &often, NULL) ||
        epoll_ctl(b->epoll_fd, EPOLL_CTL_ADD, b->timer_fd, &ev))
        return sl_fail(err, SL_FAILED, "bus: no timer: %s", strerror(errno));
    return SL_OK;
}

/* One socket for open endpoints and one for those under CURVE: they share no routing ids. */
static enum sl_status open_router_socket(struct sl_bus *b, const struct sl_bus_config *cfg,
                                         bool curve, struct sl_err *err)
{
    bool wanted = false;
    for (uint32_t i = 0; i < cfg->n_endpoints; i++)
        wanted |= bus_is_curve(cfg, cfg->endpoints[i]) == curve;
    if (!wanted)
        return SL_OK;
    uint32_t at = b->n_sockets++;
    struct bus_socket *socket = &b->sockets[at];
    enum sl_status s = bus_open_router(b->ctx, cfg, curve ? &b->keys : NULL, socket, err);
    for (uint32_t i = 0; i < cfg->n_endpoints && s == SL_OK; i++) {
        if (bus_is_curve(cfg, cfg->endpoints[i]) != curve)
            continue;
        s = bus_bind(socket, cfg->endpoints[i], b->bound[i], err);
        b->bound_by[i] = at;
    }
    if (s == SL_OK)
        s = watch(b, socket->zmq, err);
    return s == SL_OK && socket->monitor ? watch(b, socket->monitor, err) : s;
}

static enum sl_status open_as_router(struct sl_bus *b, const struct sl_bus_config *cfg,
                                     struct sl_err *err)
{
    b->peers = calloc(SL_LIMIT_workers, sizeof *b->peers);
    b->bound = calloc(cfg->n_endpoints, sizeof *b->bound);
    b->bound_by = calloc(cfg->n_endpoints, sizeof *b->bound_by);
    if (!b->peers || !b->bound || !b->bound_by)
        return sl_fail(err, SL_NO_MEMORY, "bus: no memory for the link table");
    b->n_bound = cfg->n_endpoints;
    enum sl_status s = open_router_socket(b, cfg, false, err);
    return s == SL_OK ? open_router_socket(b, cfg, true, err) : s;
}

static enum sl_status open_as_worker(struct sl_bus *b, const struct sl_bus_config *cfg,
                                     struct sl_err *err)
{
    enum sl_status s = SL_OK;
    b->n_sockets = cfg->n_endpoints;
    for (uint32_t i = 0; i < cfg->n_endpoints && s == SL_OK; i++) {
        s = bus_open_dealer(b->ctx, cfg, i, &b->keys, &b->sockets[i], err);
        if (s == SL_OK)
            s = watch(b, b->sockets[i].zmq, err);
        if (s == SL_OK)
            s = watch(b, b->sockets[i].monitor, err);
    }
    return s;
}

static enum sl_status open_all(struct sl_bus *b, const struct sl_bus_config *cfg,
                               struct sl_err *err)
{
    enum sl_status s = open_descriptors(b, err);
    if (s == SL_OK)
        s = open_context(b, err);
    if (s == SL_OK)
        s = open_keys(b, cfg, err);
    if (s != SL_OK)
        return s;
    b->sockets = calloc(cfg->n_endpoints + 1u, sizeof *b->sockets);
    if (!b->sockets)
        return sl_fail(err, SL_NO_MEMORY, "bus: no memory for %u sockets", cfg->n_endpoints);
    s = cfg->is_router ? open_as_router(b, cfg, err) : open_as_worker(b, cfg, err);
    raise_event(b); /* whatever happened meanwhile has spent its edge */
    return s;
}

enum sl_status sl_bus_open(const struct sl_bus_config *cfg, struct sl_bus **out, struct sl_err *err)
{
    *out = NULL;
    if (cfg->n_endpoints > ENDPOINTS_MAX)
        return sl_fail(err, SL_CONFIG, "bus: %u endpoints, at most %d", cfg->n_endpoints,
                       ENDPOINTS_MAX);
    enum sl_status s = bus_check_config(cfg, err);
    if (s != SL_OK)
        return s;
    struct sl_bus *b = calloc(1, sizeof *b);
    if (!b)
        return sl_fail(err, SL_NO_MEMORY, "bus: no memory");
    b->is_router = cfg->is_router;
    b->version = cfg->version ? cfg->version : SL_BUS_VERSION;
    b->version_min = SL_BUS_VERSION_MIN;
    b->epoll_fd = b->event_fd = b->timer_fd = -1;
    b->next_link = 1;
    b->encoded.cap_bytes = SL_LIMIT_bus_message_bytes + 1;
    sl_arena_init(&b->arena, DECODE_ARENA_BYTES);
    s = open_all(b, cfg, err);
    if (s != SL_OK)
        sl_bus_close(b);
    else
        *out = b;
    return s;
}

void sl_bus_close(struct sl_bus *b)
{
    if (!b)
        return;
    for (uint32_t i = 0; b->sockets && i < b->n_sockets; i++)
        bus_socket_close(&b->sockets[i]);
    curve_close(b->keys.ring);
    if (b->ctx)
        zmq_ctx_term(b->ctx);
    if (b->epoll_fd >= 0)
        close(b->epoll_fd);
    if (b->event_fd >= 0)
        close(b->event_fd);
    if (b->timer_fd >= 0)
        close(b->timer_fd);
    sl_arena_free(&b->arena);
    sl_buf_free(&b->encoded);
    free(b->peers);
    free(b->bound);
    free(b->bound_by);
    free(b->sockets);
    free(b);
}

int sl_bus_fd(const struct sl_bus *b)
{
    return b->epoll_fd;
}

const char *sl_bus_endpoint(const struct sl_bus *b, uint32_t i)
{
    return i < b->n_bound ? b->bound[i] : NULL;
}

/* ---- links of a router ---- */

static struct peer *peer_by_link(const struct sl_bus *b, uint64_t link)
{
    for (uint32_t i = 0; link != 0 && i < SL_LIMIT_workers; i++)
        if (b->peers[i].link == link)
            return &b->peers[i];
    return NULL;
}

/* Who sent a message, as the library tells it. */
struct sender {
    uint32_t socket;
    const void *id;
    size_t id_len;
    const char *key; /* "" on an open endpoint, NULL when a CURVE peer shows none */
    int fd;
};

static struct peer *peer_by_id(const struct sl_bus *b, const struct sender *from, uint64_t hash)
{
    for (uint32_t i = 0; i < SL_LIMIT_workers; i++) {
        struct peer *p = &b->peers[i];
        if (p->link && p->id_hash == hash && p->socket == from->socket &&
            p->id_len == from->id_len && !memcmp(p->id, from->id, from->id_len))
            return p;
    }
    return NULL;
}

/* The peer that sent a good message, a new one if need be; NULL when the table is full. */
static struct peer *peer_of(struct sl_bus *b, const struct sender *from)
{
    uint64_t hash = sl_hash64(from->id, from->id_len, 0);
    struct peer *p = peer_by_id(b, from, hash);
    for (uint32_t i = 0; i < SL_LIMIT_workers && !p; i++)
        if (b->peers[i].link == 0)
            p = &b->peers[i];
    if (!p)
        return NULL;
    if (!p->link) {
        p->link = b->next_link++;
        p->id_hash = hash;
        p->socket = from->socket;
        p->id_len = (uint8_t)from->id_len;
        memcpy(p->id, from->id, from->id_len);
        snprintf(p->key, sizeof p->key, "%s", from->key);
    }
    p->fd = from->fd;
    return p;
}

/* Of a link that is there. */
static struct sl_bus_order *order_of(struct sl_bus *b, uint64_t link)
{
    return b->is_router ? &peer_by_link(b, link)->order : &b->sockets[link].order;
}

void sl_bus_drop(struct sl_bus *b, uint64_t link)
{
    struct peer *p = b->is_router ? peer_by_link(b, link) : NULL;
    if (p)
        memset(p, 0, sizeof *p);
}

uint64_t sl_bus_n_connects(const struct sl_bus *b, uint64_t link)
{
    return !b->is_router && link < b->n_sockets ? b->sockets[link].n_connects : 0;
}

bool sl_bus_connected(const struct sl_bus *b, uint64_t link)
{
    return !b->is_router && link < b->n_sockets && b->sockets[link].connected;
}

void sl_bus_reconnect(struct sl_bus *b, uint64_t link)
{
    struct sl_err err;
    if (b->is_router || link >= b->n_sockets)
        return;
    if (bus_reconnect(&b->sockets[link], &b->keys, &err))
        sl_log(SL_LOG_ERROR, "%s", err.msg);
    look_again(b, b->sockets[link].zmq);
}

void sl_bus_stats(const struct sl_bus *b, struct sl_bus_stats *out)
{
    struct curve_stats keys = {0};
    *out = b->stats;
    if (b->keys.ring)
        curve_stats(b->keys.ring, &keys);
    out->n_denied += keys.n_denied;
    out->n_key_reloads = keys.n_reloads;
    for (uint32_t i = 0; i < b->n_sockets; i++) {
        const struct bus_events *e = &b->sockets[i].events;
        out->n_handshakes += e->n_handshakes;
        out->n_handshakes_failed += e->n_handshakes_failed;
        out->n_broken += e->n_broken;
        out->n_cut += e->n_cut;
        out->n_connections += e->n_accepted - e->n_closed;
    }
}

/* ---- keys ---- */

void sl_bus_reload_keys(struct sl_bus *b)
{
    if (b->keys.ring)
        curve_reload(b->keys.ring);
}

static const char *endpoint_of(const struct sl_bus *b, uint32_t socket)
{
    for (uint32_t i = 0; i < b->n_bound; i++)
        if (b->bound_by[i] == socket)
            return b->bound[i];
    return "";
}

/* Links whose key is no longer allowed end here; their owner learns it at the next send. */
static void drop_denied(struct sl_bus *b)
{
    for (uint32_t i = 0; i < SL_LIMIT_workers; i++) {
        struct peer *p = &b->peers[i];
        if (!p->link || !p->key[0] || curve_allows(b->keys.ring, p->key, b->keys.peers, NULL))
            continue;
        sl_log(SL_LOG_WARN, "bus: link %llu is cut: its key was removed",
               (unsigned long long)p->link);
        bus_cut(p->fd, endpoint_of(b, p->socket));
        memset(p, 0, sizeof *p);
        b->stats.n_revoked++;
    }
}

/* A listener keeps the key it was bound with, and its connections die with it. */
static void bind_again(struct sl_bus *b)
{
    struct sl_err err;
    char bound[BUS_ENDPOINT_BYTES];
    for (uint32_t i = 0; i < b->n_bound; i++) {
        struct bus_socket *s = &b->sockets[b->bound_by[i]];
        if (!s->curve)
            continue;
        zmq_unbind(s->zmq, b->bound[i]); /* fails when a round before did it */
        if (curve_arm_server(b->keys.ring, s->zmq, b->keys.peers, &err) != SL_OK ||
            bus_bind(s, b->bound[i], bound, &err) != SL_OK) {
            sl_log(SL_LOG_WARN, "%s; trying again", err.msg);
            b->rebind = true; /* the old listener goes in its own time */
            return;
        }
        sl_log(SL_LOG_INFO, "bus: %s is bound under the new key", b->bound[i]);
    }
    b->rebind = false;
}

static void use_new_keys(struct sl_bus *b)
{
    char own[CURVE_TEXT_BYTES];
    curve_own_key(b->keys.ring, own);
    bool changed = strcmp(own, b->own_key) != 0;
    memcpy(b->own_key, own, sizeof own);
    if (b->is_router) {
        b->rebind |= changed;
        drop_denied(b);
        return;
    }
    for (uint32_t i = 0; i < b->n_sockets; i++) {
        struct bus_socket *s = &b->sockets[i];
        bool lost = s->curve && !curve_allows(b->keys.ring, s->server_key, b->keys.peers, NULL);
        if (lost || (s->curve && !s->connected))
            s->rekey_at_ns = sl_now_ns();
    }
}

/* What is due since the last look: new keys, connections to be made under another one. */
static void look_after_keys(struct sl_bus *b)
{
    uint64_t ticks, now = 0;
    if (!b->keys.ring)
        return;
    ssize_t n = read(b->timer_fd, &ticks, sizeof ticks);
    if (n > 0)
        now = sl_now_ns();
    uint64_t generation = curve_generation(b->keys.ring);
    if (generation != b->keys_seen) {
        b->keys_seen = generation;
        use_new_keys(b);
    }
    if (now && b->rebind)
        bind_again(b);
    for (uint32_t i = 0; now && i < b->n_sockets; i++)
        bus_tend(&b->sockets[i], &b->keys, now);
}

/* ---- receiving ---- */

/* What the wire gave: the sender's id (routers), the payload, and whether the frames were right. */
struct parcel {
    zmq_msg_t id, payload;
    uint32_t n_frames;
};

static void parcel_close(struct parcel *p)
{
    zmq_msg_close(&p->id);
    zmq_msg_close(&p->payload);
}

/* Reads every frame of the next message; surplus frames are counted and thrown away. False when
 * nothing waits. */
static bool parcel_read(struct parcel *p, void *zmq, bool is_router)
{
    zmq_msg_t *frames[2] = {is_router ? &p->id : &p->payload, &p->payload};
    uint32_t wanted = is_router ? 2 : 1;
    bool more = true;
    zmq_msg_t surplus;
    zmq_msg_init(&p->id);
    zmq_msg_init(&p->payload);
    zmq_msg_init(&surplus);
    for (p->n_frames = 0; more; p->n_frames++) {
        zmq_msg_t *f = p->n_frames < wanted ? frames[p->n_frames] : &surplus;
        if (zmq_msg_recv(f, zmq, ZMQ_DONTWAIT) < 0)
            break;
        more = zmq_msg_more(f) != 0;
    }
    zmq_msg_close(&surplus);
    return p->n_frames > 0;
}

static bool parcel_is_whole(const struct parcel *p, bool is_router)
{
    return p->n_frames == (is_router ? 2u : 1u) && zmq_msg_size(&p->id) <= ROUTING_ID_MAX;
}

/* The library's word on a CURVE peer; a message without a key never came through its handshake. */
static struct sender sender_of(const struct sl_bus *b, struct parcel *p, uint32_t socket)
{
    struct sender from = {.socket = socket,
                          .id = zmq_msg_data(&p->id),
                          .id_len = zmq_msg_size(&p->id),
                          .key = "",
                          .fd = -1};
    if (b->sockets[socket].curve) {
        from.key = zmq_msg_gets(&p->payload, "User-Id");
        from.fd = zmq_msg_get(&p->payload, ZMQ_SRCFD);
    }
    return from;
}

/* The link of a router's sender; 0 when it is not to be heard. A link belongs to one key for life,
 * and a key that was allowed at the handshake may be so no longer. */
static uint64_t link_of(struct sl_bus *b, struct parcel *parcel, uint32_t socket)
{
    struct sender from = sender_of(b, parcel, socket);
    struct peer *p = peer_by_id(b, &from, sl_hash64(from.id, from.id_len, 0));
    bool curve = b->sockets[socket].curve;
    bool same = from.key && (!p || !strcmp(p->key, from.key));
    if (curve && (!same || (!p && !curve_allows(b->keys.ring, from.key, b->keys.peers, NULL)))) {
        b->stats.n_denied++;
        sl_log(SL_LOG_WARN, "bus: message of a peer whose key is not allowed");
        bus_cut(from.fd, endpoint_of(b, socket));
        return 0;
    }
    p = peer_of(b, &from);
    bus_socket_heard(&b->sockets[socket], from.fd);
    if (p)
        return p->link;
    b->stats.n_refused++;
    sl_log(SL_LOG_WARN, "bus: peer refused, %d links are in use", SL_LIMIT_workers);
    return 0;
}

/* ---- versions ---- */

uint32_t sl_bus_link_version(const struct sl_bus *b, uint64_t link)
{
    const struct peer *p = b->is_router ? peer_by_link(b, link) : NULL;
    if (b->is_router)
        return p ? p->version : 0;
    return link < b->n_sockets ? b->sockets[link].version : 0;
}

/* The version to encode a message for; fills in the ones that it names. Before an agreement a
 * worker's heartbeat goes in the oldest form: a router of version 1 refuses our HELLO unseen, but
 * answers that. */
static uint32_t version_for(struct sl_bus *b, uint64_t link, struct sl_msg *m)
{
    uint32_t agreed = sl_bus_link_version(b, link);
    if (b->is_router) {
        m->tag = m->seq = 0;
        if (m->kind == SL_MSG_WELCOME)
            m->welcome.version = agreed ? agreed : b->version;
        return agreed ? agreed : b->version_min;
    }
    const struct bus_socket *s = &b->sockets[link];
    uint32_t offered = s->hello_version ? s->hello_version : b->version;
    m->tag = m->seq = 0;
    if (m->kind == SL_MSG_HELLO) {
        m->hello.version = offered;
        m->hello.version_min = b->version_min;
        return offered;
    }
    return agreed ? agreed : m->kind == SL_MSG_LOAD ? b->version_min : offered;
}

/* Tells a worker why there is no link, naming both sides. */
static void refuse_version(struct sl_bus *b, uint64_t link, uint32_t min, uint32_t max)
{
    char text[160];
    struct sl_msg m = {.kind = SL_MSG_WELCOME, .welcome = {.status = SL_UNSUPPORTED}};
    snprintf(text, sizeof text, "the router speaks bus versions %u to %u, the worker %u to %u",
             b->version_min, b->version, min, max);
    sl_log(SL_LOG_WARN, "bus: worker refused: %s", text);
    m.welcome.message = sl_str_of(text);
    b->stats.n_refused++;
    sl_bus_send(b, link, &m, NULL);
    sl_bus_drop(b, link);
}

/* An instance that registers again loses its old link, so it must not be somebody else's to say. */
static bool is_anothers(const struct sl_bus *b, const struct peer *p, uint64_t instance)
{
    for (uint32_t i = 0; instance && i < SL_LIMIT_workers; i++) {
        const struct peer *q = &b->peers[i];
        if (q != p && q->link && q->instance == instance && strcmp(q->key, p->key) != 0)
            return true;
    }
    return false;
}

static bool agree_at_router(struct sl_bus *b, uint64_t link, struct sl_msg_hello *h)
{
    struct peer *p = peer_by_link(b, link);
    if (is_anothers(b, p, h->instance)) {
        b->stats.n_denied++;
        sl_log(SL_LOG_WARN, "bus: link %llu says that it is another key's process",
               (unsigned long long)link);
        return false;
    }
    uint32_t min = h->version_min ? h->version_min : h->version;
    uint32_t both = h->version < b->version ? h->version : b->version;
    if (both < min || both < b->version_min) {
        refuse_version(b, link, min, h->version);
        return false;
    }
    h->version = both;
    p->version = both;
    p->instance = h->instance;
    return true;
}

/* A router of version 1 knows of no other and answers the heartbeat of whom it does not know. */
static void agree_at_worker(struct sl_bus *b, struct bus_socket *s, struct sl_msg_welcome *w)
{
    static const char why[] = "its bus version is older or newer than any that this worker speaks";
    bool ours = w->version >= b->version_min && w->version <= b->version;
    if (w->status == SL_OK && ours)
        s->version = w->version;
    else if (w->status == SL_OK || (w->status == SL_PEER && w->version < b->version_min))
        *w = (struct sl_msg_welcome){w->version, SL_UNSUPPORTED, SL_STR(why)};
    else if (w->status == SL_PEER) {
        s->version = 0;
        s->hello_version = ours ? w->version : b->version;
    }
}

/* HELLO and WELCOME settle the link's version; false when that was all there was to it. */
static bool agree(struct sl_bus *b, uint64_t link, struct sl_msg *m)
{
    if (b->is_router && m->kind == SL_MSG_HELLO)
        return agree_at_router(b, link, &m->hello);
    if (!b->is_router && m->kind == SL_MSG_WELCOME)
        agree_at_worker(b, &b->sockets[link], &m->welcome);
    return true;
}

/* True when the parcel is a message for the caller. */
static bool accept(struct sl_bus *b, struct parcel *p, uint32_t socket, uint64_t *link,
                   struct sl_msg *out)
{
    struct sl_err err;
    size_t size = zmq_msg_size(&p->payload);
    b->stats.bytes_received += size;
    sl_arena_reset(&b->arena);
    enum sl_status s =
        parcel_is_whole(p, b->is_router)
            ? sl_msg_decode_as(zmq_msg_data(&p->payload), size, b->version, &b->arena, out, &err)
            : sl_fail(&err, SL_INVALID, "bus: message of %u frames", p->n_frames);
    if (s != SL_OK) {
        b->stats.n_malformed++;
        sl_log(SL_LOG_WARN, "message refused: %s", err.msg);
        return false;
    }
    *link = b->is_router ? link_of(b, p, socket) : socket;
    if (b->is_router && *link == 0)
        return false;
    if (!agree(b, *link, out))
        return false;
    if (!sl_bus_order_heard(order_of(b, *link), out)) {
        b->stats.n_repeated++;
        return false;
    }
    b->stats.n_gaps += out->gap;
    b->stats.n_received++;
    return true;
}

/* The next message of any socket, beginning after the one that was served last. */
static bool next_parcel(struct sl_bus *b, struct parcel *p, uint32_t *socket)
{
    for (uint32_t i = 0; i < b->n_sockets; i++) {
        *socket = (b->next_socket + i) % b->n_sockets;
        if (parcel_read(p, b->sockets[*socket].zmq, b->is_router)) {
            b->next_socket = (*socket + 1) % b->n_sockets;
            return true;
        }
        parcel_close(p);
    }
    return false;
}

enum sl_status sl_bus_recv(struct sl_bus *b, uint64_t *link, struct sl_msg *out, struct sl_err *err)
{
    struct parcel parcel;
    uint32_t socket;
    (void)err;
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < b->n_sockets; i++)
        bus_socket_read_monitor(&b->sockets[i]);
    look_after_keys(b);
    for (uint32_t skipped = 0; skipped < SKIPPED_AT_ONCE_MAX; skipped++) {
        if (!next_parcel(b, &parcel, &socket)) {
            lower_event(b);
            return SL_OK;
        }
        bool good = accept(b, &parcel, socket, link, out);
        parcel_close(&parcel);
        if (good)
            break;
        memset(out, 0, sizeof *out);
    }
    raise_event(b); /* there may be more */
    return SL_OK;
}

/* ---- sending ---- */

static enum sl_status send_failed(struct sl_bus *b, uint64_t link, int why, struct sl_err *err)
{
    if (why == EHOSTUNREACH) {
        sl_bus_drop(b, link);
        return sl_fail(err, SL_PEER, "bus: link %llu is gone", (unsigned long long)link);
    }
    if (why == EAGAIN)
        return sl_fail(err, SL_PEER, "bus: link %llu is not connected or has %d messages waiting",
                       (unsigned long long)link, SL_LIMIT_bus_hwm_messages);
    return sl_fail(err, SL_FAILED, "bus: send: %s", zmq_strerror(why));
}

static int send_to_peer(struct sl_bus *b, const struct peer *p)
{
    void *zmq = b->sockets[p->socket].zmq;
    if (zmq_send(zmq, p->id, p->id_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return -1;
    return zmq_send(zmq, b->encoded.data, b->encoded.len, ZMQ_DONTWAIT);
}

enum sl_status sl_bus_send(struct sl_bus *b, uint64_t link, const struct sl_msg *m,
                           struct sl_err *err)
{
    const struct peer *peer = b->is_router ? peer_by_link(b, link) : NULL;
    if (b->is_router ? !peer : link >= b->n_sockets)
        return send_failed(b, link, EHOSTUNREACH, err);
    struct sl_msg stamped = *m;
    struct sl_bus_order *order = order_of(b, link);
    uint32_t version = version_for(b, link, &stamped);
    if (version > 1)
        sl_bus_order_stamp(order, &stamped);
    sl_buf_clear(&b->encoded);
    enum sl_status s = sl_msg_encode_for(&stamped, version, &b->encoded, err);
    if (s != SL_OK)
        return s;
    if (sl_fault(SL_FAULT_BUS_DROP)) { /* as far as the sender knows, it has left */
        sl_bus_order_sent(order, &stamped);
        return SL_OK;
    }
    if (sl_fault(SL_FAULT_BUS_CORRUPT))
        b->encoded.data[b->encoded.len / 2] ^= 4;
    void *zmq = b->sockets[b->is_router ? peer->socket : link].zmq;
    int rc = b->is_router ? send_to_peer(b, peer)
                          : zmq_send(zmq, b->encoded.data, b->encoded.len, ZMQ_DONTWAIT);
    int why = errno;
    look_again(b, zmq);
    if (rc < 0)
        return send_failed(b, link, why, err);
    sl_bus_order_sent(order, &stamped);
    b->stats.n_sent++;
    b->stats.bytes_sent += b->encoded.len;
    return SL_OK;
}
