/* The serving side: one thread accepts, one thread for each connection asks the source for the next
 * row and sends it.
 *
 * On TCP a connection gets a thread once it has proved the key (secure_door.h). It is worth nothing
 * until it asked properly within HANDSHAKE_MS; there are at most
 * SL_LIMIT_bulk_connections of them, further ones are closed at once. A reader that takes nothing
 * for STALL_MS is dropped. */
#include "bulk/frame.h"
#include "bulk/link.h"
#include "comm/secure_door.h"

#include <sluice/base/limits.h>
#include <sluice/base/mem.h>
#include <sluice/base/time.h>
#include <sluice/transport/bus.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HANDSHAKE_MS 2000
#define STALL_MS     5000
#define KEEP_MS      200 /* a frame at least so often: silence means trouble */
#define BACKLOG      64
#define MAP_POLL_MS  5
#define ACCEPT_MS    1000 /* handshakes that stand still are looked at so often */

struct conn {
    struct sl_bulk_server *server;
    pthread_t thread;
    int fd;                  /* a unix socket, until the thread has taken it over */
    struct secure_link *tls; /* or a TCP link that has proved the key */
    uint32_t slot, generation;
    bool used;        /* the accepting thread's: not joined yet */
    atomic_bool done; /* the connection's thread is about to return */

    struct bulk_link link;
    struct bulk_window window; /* fd -1: rows go into the stream */
    uint32_t row_bytes;        /* of the part that was asked for */
    uint64_t heads;
    uint32_t n_sent, n_taken; /* rows, and how many of them the peer has taken out of the window */
};

struct sl_bulk_server {
    struct sl_bulk_server_config cfg;
    char address[SL_BULK_ADDRESS_MAX];
    struct sl_buf folder; /* ipc endpoint whose path is our unix socket */
    int unix_fd, wake_fd;
    struct secure_door *door; /* of TCP; NULL: none */
    struct secure_psk psk;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    struct conn conns[SL_LIMIT_bulk_connections];
    pthread_mutex_t lock; /* of stats */
    struct sl_bulk_stats stats;
};

/* --- one connection --------------------------------------------------------------------------- */

static uint64_t in_ms(uint32_t ms)
{
    return sl_now_ns() + ms * SL_MS_NS;
}

static enum sl_status send_frame(struct conn *c, struct bulk_frame *f, const void *payload,
                                 struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES];
    bool in_window = f->kind == BULK_ROW && c->window.fd >= 0;
    f->slot = c->slot;
    f->generation = c->generation;
    sl_bulk_frame_put(f, c->server->cfg.layout.class_hash, payload, header);
    return sl_bulk_write(&c->link, header, sizeof header, in_window ? NULL : payload,
                         in_window ? 0 : f->size, -1, in_ms(STALL_MS), err);
}

static enum sl_status hear_rest(struct conn *c, const uint8_t *header, const struct bulk_frame *f,
                                struct sl_bulk_ask *ask, struct sl_err *err)
{
    uint8_t payload[BULK_ASK_BYTES];
    const struct sl_bulk_layout *l = &c->server->cfg.layout;
    enum sl_status s = sl_bulk_read(&c->link, payload, sizeof payload, in_ms(HANDSHAKE_MS), err);
    if (s)
        return s;
    if (!sl_bulk_frame_proven(header, f, l->class_hash, payload))
        return sl_fail(err, SL_INVALID, "bulk: a question of another class, or damaged");
    s = sl_bulk_ask_get(payload, f->value, l, ask, err);
    if (s)
        return s;
    c->heads = sl_bulk_heads(&ask->part);
    c->row_bytes = sl_bulk_row_bytes(l, &ask->part);
    if (!f->page)
        return SL_OK;
    int fd = c->link.passed_fd;
    c->link.passed_fd = -1;
    if (fd < 0)
        return sl_fail(err, SL_INVALID, "bulk: shared memory was announced and did not come");
    return sl_bulk_window_map(&c->window, fd, f->page, c->row_bytes, err);
}

/* The question, and the shared memory that came along; or that for the map. */
static enum sl_status hear_ask(struct conn *c, struct sl_bulk_ask *ask, bool *wants_map,
                               struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES];
    struct bulk_frame f;
    enum sl_status s = sl_bulk_read(&c->link, header, sizeof header, in_ms(HANDSHAKE_MS), err);
    if (s || (s = sl_bulk_frame_get(header, sizeof header, 0, &f, err)))
        return s;
    *wants_map = f.kind == BULK_MAP;
    if (f.kind != BULK_MAP && f.kind != BULK_ASK)
        return sl_fail(err, SL_INVALID, "bulk: a connection begins with kind %d", (int)f.kind);
    if (f.kind == BULK_ASK)
        return hear_rest(c, header, &f, ask, err);
    if (f.size || !sl_bulk_frame_proven(header, &f, c->server->cfg.layout.class_hash, NULL))
        return sl_fail(err, SL_INVALID, "bulk: a question of another class, or damaged");
    return SL_OK;
}

/* Waits until the peer has taken a row out of the full window. */
static enum sl_status wait_for_room(struct conn *c, struct sl_err *err)
{
    while (c->n_sent - c->n_taken >= c->window.n_slots) {
        uint8_t header[BULK_HEADER_BYTES];
        struct bulk_frame f;
        enum sl_status s = sl_bulk_read(&c->link, header, sizeof header, in_ms(STALL_MS), err);
        if (s || (s = sl_bulk_frame_get(header, sizeof header, 0, &f, err)))
            return s;
        if (f.kind != BULK_ACK || f.slot != c->slot || f.generation != c->generation ||
            f.seq - c->n_taken > c->n_sent - c->n_taken ||
            !sl_bulk_frame_proven(header, &f, c->server->cfg.layout.class_hash, NULL))
            return sl_fail(err, SL_INVALID, "bulk: not an acknowledgement");
        c->n_taken = f.seq;
    }
    return SL_OK;
}

static enum sl_status send_row(struct conn *c, const struct sl_bulk_unit *u, struct sl_err *err)
{
    uint32_t size = c->row_bytes;
    struct bulk_frame f = {.kind = BULK_ROW,
                           .page = u->page,
                           .layer = u->layer,
                           .size = size,
                           .seq = c->n_sent,
                           .value = c->heads};
    enum sl_status s = c->window.fd >= 0 ? wait_for_room(c, err) : SL_OK;
    if (s)
        return s;
    if (c->window.fd >= 0)
        memcpy(c->window.data + (size_t)(c->n_sent % c->window.n_slots) * size, u->row, size);
    s = send_frame(c, &f, u->row, err);
    c->n_sent++;
    return s;
}

static void count(struct sl_bulk_server *s, uint64_t pages, uint64_t bytes)
{
    pthread_mutex_lock(&s->lock);
    s->stats.n_pages += pages;
    s->stats.n_bytes += bytes;
    pthread_mutex_unlock(&s->lock);
}

static enum sl_status send_unit(struct conn *c, const struct sl_bulk_unit *u, struct sl_err *err)
{
    struct bulk_frame f = {.page = u->page};
    enum sl_status s;
    switch (u->kind) {
    case SL_BULK_ROW:
        s = send_row(c, u, err);
        if (s == SL_OK)
            count(c->server, 0, c->row_bytes);
        return s;
    case SL_BULK_PAGE:
        f.kind = BULK_PAGE;
        f.size = BULK_KEY_BYTES;
        s = send_frame(c, &f, u->key, err);
        if (s == SL_OK)
            count(c->server, 1, 0);
        return s;
    case SL_BULK_END:
        f.kind = BULK_END;
        f.page = 0;
        f.value = (uint64_t)u->status;
        return send_frame(c, &f, NULL, err);
    case SL_BULK_WAIT:
    default:
        f.kind = BULK_KEEP;
        f.page = 0;
        return send_frame(c, &f, NULL, err);
    }
}

/* Until the client hangs up: what it did not read yet would be lost with our end of the line. */
static void linger(struct conn *c)
{
    uint8_t unheard[BULK_HEADER_BYTES];
    uint64_t deadline = in_ms(HANDSHAKE_MS);
    while (sl_bulk_read(&c->link, unheard, sizeof unheard, deadline, NULL) == SL_OK)
        continue;
}

/* The source, with signs of life until it is there. NULL: END was sent, or nobody hears us. */
static void *find_source(struct conn *c, const struct sl_bulk_ask *ask, bool *accepted)
{
    const struct sl_bulk_server_config *cfg = &c->server->cfg;
    struct bulk_frame no = {.kind = BULK_END, .value = SL_NOT_FOUND};
    uint64_t until = in_ms(cfg->grace_ms);
    enum sl_status s = SL_OK;
    while (!s && !atomic_load(&c->server->stop)) {
        struct bulk_frame sign = {.kind = *accepted ? BULK_KEEP : BULK_ACCEPT};
        struct sl_err why = {0};
        void *source = cfg->ops->open(cfg->ctx, ask, &why);
        if (source)
            return source;
        if (why.status != SL_TIMEOUT || sl_now_ns() > until)
            break;
        s = send_frame(c, &sign, NULL, NULL);
        *accepted = true;
    }
    if (!s)
        send_frame(c, &no, NULL, NULL);
    return NULL;
}

static enum sl_status send_all(struct conn *c, void *source, bool accepted, struct sl_err *err)
{
    const struct sl_bulk_source_ops *ops = c->server->cfg.ops;
    struct bulk_frame accept = {.kind = BULK_ACCEPT};
    struct sl_bulk_unit u = {.kind = SL_BULK_WAIT};
    enum sl_status s = accepted ? SL_OK : send_frame(c, &accept, NULL, err);
    while (!s && u.kind != SL_BULK_END && !atomic_load(&c->server->stop)) {
        ops->next(c->server->cfg.ctx, source, KEEP_MS, &u);
        s = send_unit(c, &u, err);
    }
    return u.kind == SL_BULK_END ? u.status : s; /* nobody may be left to hear of an end */
}

/* Who holds what, once all ranks have said where they are: that may take a moment after their group
 * is up. 0: it stays unknown. */
static uint32_t know_map(const struct sl_bulk_server *s, struct sl_bulk_rank *ranks)
{
    const struct timespec nap = {.tv_nsec = MAP_POLL_MS * (long)SL_MS_NS};
    uint64_t until = in_ms(s->cfg.grace_ms);
    uint32_t n = 0;
    while (s->cfg.ops->map && !(n = s->cfg.ops->map(s->cfg.ctx, ranks)) && sl_now_ns() < until &&
           !atomic_load(&s->stop))
        nanosleep(&nap, NULL);
    return n;
}

static enum sl_status answer_map(struct conn *c, struct sl_err *err)
{
    struct sl_bulk_rank ranks[SL_LIMIT_ranks];
    uint8_t payload[SL_BULK_RANKS_BYTES];
    struct bulk_frame f = {.kind = BULK_MAP};
    uint32_t n = know_map(c->server, ranks);
    if (n)
        f.size = sl_bulk_ranks_put(ranks, n, payload);
    else
        f = (struct bulk_frame){.kind = BULK_END, .value = SL_NOT_FOUND};
    enum sl_status s = send_frame(c, &f, payload, err);
    linger(c);
    return s;
}

static enum sl_status answer(struct conn *c, struct sl_err *err)
{
    struct sl_bulk_server *s = c->server;
    struct sl_bulk_ask ask;
    bool wants_map, accepted = false;
    enum sl_status status = hear_ask(c, &ask, &wants_map, err);
    if (status)
        return status;
    if (wants_map)
        return answer_map(c, err);
    void *source = find_source(c, &ask, &accepted);
    if (!source) {
        linger(c);
        return SL_NOT_FOUND;
    }
    status = send_all(c, source, accepted, err);
    s->cfg.ops->close(s->cfg.ctx, source);
    linger(c);
    pthread_mutex_lock(&s->lock);
    s->stats.n_broken += status != SL_OK;
    pthread_mutex_unlock(&s->lock);
    return SL_OK;
}

static void *connection(void *arg)
{
    struct conn *c = arg;
    struct sl_bulk_server *s = c->server;
    struct sl_err err;
    c->window = (struct bulk_window){.fd = -1};
    c->n_sent = c->n_taken = 0;
    enum sl_status status = sl_bulk_accept(c->fd, c->tls, &s->stop, &c->link, &err);
    if (status == SL_OK)
        status = answer(c, &err);
    pthread_mutex_lock(&s->lock);
    s->stats.n_refused += status != SL_OK;
    pthread_mutex_unlock(&s->lock);
    sl_bulk_link_close(&c->link);
    sl_bulk_window_close(&c->window);
    atomic_store(&c->done, true);
    return NULL;
}

/* --- accepting -------------------------------------------------------------------------------- */

static struct conn *free_conn(struct sl_bulk_server *s)
{
    for (uint32_t i = 0; i < SL_LIMIT_bulk_connections; i++) {
        struct conn *c = &s->conns[i];
        if (c->used && atomic_load(&c->done)) {
            pthread_join(c->thread, NULL);
            c->used = false;
        }
        if (!c->used)
            return c;
    }
    return NULL;
}

/* Takes over one of the two. */
static void start_connection(struct sl_bulk_server *s, int fd, struct secure_link *tls)
{
    struct conn *c = free_conn(s);
    if (c) {
        c->server = s;
        c->fd = fd;
        c->tls = tls;
        c->slot = (uint32_t)(c - s->conns);
        c->generation++;
        atomic_store(&c->done, false);
        c->used = pthread_create(&c->thread, NULL, connection, c) == 0;
    }
    if (c && c->used)
        return;
    if (fd >= 0)
        close(fd);
    secure_link_free(tls);
}

static void take_unix(struct sl_bulk_server *s)
{
    int fd = accept4(s->unix_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        start_connection(s, fd, NULL);
}

static void take_tcp(struct sl_bulk_server *s)
{
    struct secure_link *tls;
    while (s->door && secure_door_take(s->door, &tls, NULL) == SL_OK && tls)
        start_connection(s, -1, tls);
    uint64_t refused = s->door ? secure_door_n_refused(s->door) : 0;
    pthread_mutex_lock(&s->lock);
    s->stats.n_unproved = refused;
    pthread_mutex_unlock(&s->lock);
}

static void *accepting(void *arg)
{
    struct sl_bulk_server *s = arg;
    struct pollfd fds[2 + SECURE_DOOR_FDS] = {{.fd = s->wake_fd, .events = POLLIN},
                                              {.fd = s->unix_fd, .events = POLLIN}};
    while (!atomic_load(&s->stop)) {
        size_t n = 2 + (s->door ? secure_door_fds(s->door, fds + 2) : 0);
        poll(fds, (nfds_t)n, ACCEPT_MS);
        if (fds[1].revents)
            take_unix(s);
        take_tcp(s);
    }
    return NULL;
}

/* --- opening ---------------------------------------------------------------------------------- */

static enum sl_status listen_unix(struct sl_bulk_server *s, struct sl_err *err)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    enum sl_status status = sl_bus_ipc_make(s->cfg.run_dir, &s->folder, err);
    if (status)
        return status;
    const char *path = s->folder.data + strlen("ipc://");
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path); /* ipc_make saw to its length */
    s->unix_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->unix_fd < 0 || bind(s->unix_fd, (struct sockaddr *)&at, sizeof at) ||
        listen(s->unix_fd, BACKLOG))
        return sl_fail(err, SL_CONFIG, "bulk: cannot listen at %s: %s", path, strerror(errno));
    snprintf(s->address, sizeof s->address, "shm:%s", path);
    return SL_OK;
}

static bool find_key(void *ctx, const char *identity, struct secure_psk *out)
{
    const struct sl_bulk_server *s = ctx;
    *out = s->psk;
    return strcmp(identity, s->psk.identity) == 0;
}

static enum sl_status listen_tcp(struct sl_bulk_server *s, struct sl_err *err)
{
    s->psk = sl_bulk_psk(s->cfg.key);
    enum sl_status status = secure_door_open(s->cfg.host, find_key, s, &s->door, err);
    if (status)
        return status;
    size_t used = strlen(s->address);
    snprintf(s->address + used, sizeof s->address - used, "%stcp:%s", used ? "," : "",
             secure_door_address(s->door));
    return SL_OK;
}

static enum sl_status open_parts(struct sl_bulk_server *s, struct sl_err *err)
{
    const struct sl_bulk_layout *l = &s->cfg.layout;
    enum sl_status status = SL_OK;
    if (!l->head_bytes || !l->n_heads || l->head_bytes > SL_LIMIT_bulk_row_bytes || !l->n_layers ||
        l->n_layers > SL_LIMIT_model_layers)
        return sl_fail(err, SL_UNSUPPORTED, "bulk: %u layers of %u heads of %u bytes", l->n_layers,
                       l->n_heads, l->head_bytes);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake_fd < 0)
        return sl_fail(err, SL_NO_MEMORY, "bulk: no descriptor");
    if (s->cfg.via & SL_BULK_SHM)
        status = listen_unix(s, err);
    if (!status && (s->cfg.via & SL_BULK_TCP))
        status = listen_tcp(s, err);
    if (status)
        return status;
    s->started = pthread_create(&s->thread, NULL, accepting, s) == 0;
    return s->started ? SL_OK : sl_fail(err, SL_NO_MEMORY, "bulk: cannot start a thread");
}

enum sl_status sl_bulk_server_open(const struct sl_bulk_server_config *cfg,
                                   struct sl_bulk_server **out, struct sl_err *err)
{
    struct sl_bulk_server *s = calloc(1, sizeof *s);
    if (!s)
        return sl_fail(err, SL_NO_MEMORY, "bulk: no memory");
    s->cfg = *cfg;
    s->unix_fd = s->wake_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    enum sl_status status = open_parts(s, err);
    if (status) {
        sl_bulk_server_close(s);
        return status;
    }
    *out = s;
    return SL_OK;
}

void sl_bulk_server_close(struct sl_bulk_server *s)
{
    if (!s)
        return;
    atomic_store(&s->stop, true);
    if (s->started) {
        eventfd_write(s->wake_fd, 1);
        pthread_join(s->thread, NULL);
    }
    for (uint32_t i = 0; i < SL_LIMIT_bulk_connections; i++)
        if (s->conns[i].used)
            pthread_join(s->conns[i].thread, NULL);
    secure_door_close(s->door);
    const int fds[] = {s->unix_fd, s->wake_fd};
    for (size_t i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (s->folder.len)
        sl_bus_ipc_remove(s->folder.data);
    sl_buf_free(&s->folder);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

const char *sl_bulk_server_address(const struct sl_bulk_server *s)
{
    return s->address;
}

void sl_bulk_server_stats(struct sl_bulk_server *s, struct sl_bulk_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    pthread_mutex_unlock(&s->lock);
}
