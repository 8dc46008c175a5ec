/* Links over TCP with TLS 1.3: one connection for every pair of ranks, the higher rank connects.
 *
 * Each pair has its own key, derived from the group's, and an identity that names both ends, so
 * that a connection cannot be taken for another. Messages travel as DATA frames; BEAT tells how far
 * a rank is, ALERT that the group has ended. A lock per link lets publish and alert come from any
 * thread; it is held for calls that do not block. */
#include "comm_priv.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FRAME_READY = 1, FRAME_DATA, FRAME_BEAT, FRAME_ALERT, FRAME_BYE };

#define SLICE_MS      20
#define NOTE_BYTES    8
#define BEATS_A_LIMIT 8 /* beats sent within an operation's limit */

struct tcp_link {
    struct secure_link *s; /* NULL: ourselves */
    pthread_mutex_t lock;
    enum comm_peer_state state;
    bool hung_up, started;
    bool data_in_front; /* nothing further can be read before it is pulled */
    uint64_t progress_ns, waiting_ns, told_ns;
    uint8_t note[NOTE_BYTES];
    size_t note_bytes;
};

struct tcp_net {
    struct comm_net base;
    struct tcp_link links[SL_COMM_RANKS_MAX];
    int bell; /* eventfd: wakes the thread of operations */
    uint64_t n_door_refused;
    _Atomic uint64_t progress_ns;
    _Atomic bool has_alert;
    struct wire_alert alert; /* set before has_alert, by the thread of operations */
};

static struct tcp_net *self(struct comm_net *net)
{
    return (struct tcp_net *)(void *)net;
}

/* --- frames; under the link's lock ---------------------------------------------------------------
 */

/* A connection that ended is no error of ours: the link is dead, and view says so. */
static enum sl_status settle(struct tcp_link *l, enum sl_status status)
{
    if (status != SL_PEER)
        return status;
    if (l->state == COMM_HERE)
        l->state = COMM_DEAD;
    return SL_OK;
}

static enum sl_status heed_note(struct tcp_net *t, struct tcp_link *l, uint8_t kind,
                                struct sl_err *err)
{
    uint64_t now = sl_now_ns();
    struct wire_beat beat;
    enum sl_status s;
    if (kind == FRAME_ALERT) {
        struct wire_alert a;
        if ((s = wire_alert_decode(l->note, l->note_bytes, t->base.n_ranks, &a, err)))
            return s;
        if (!atomic_load(&t->has_alert)) {
            t->alert = a;
            atomic_store(&t->has_alert, true);
        }
        return SL_OK;
    }
    if ((s = wire_beat_decode(l->note, l->note_bytes, &beat, err)))
        return s;
    uint64_t age = beat.age_ms * SL_MS_NS, progress = now > age ? now - age : 0;
    l->progress_ns = progress > l->progress_ns ? progress : l->progress_ns;
    l->waiting_ns = beat.waiting ? now : 0;
    l->started |= beat.started;
    return SL_OK;
}

/* A frame that is no data: read it whole, then act on it. */
static enum sl_status read_note(struct tcp_net *t, struct tcp_link *l, const struct secure_frame *f,
                                bool *again, struct sl_err *err)
{
    size_t got = 0;
    enum sl_status s = SL_OK;
    if (f->bytes > NOTE_BYTES - l->note_bytes)
        return sl_fail(err, SL_INVALID, "comm: a note of %u bytes", f->bytes);
    if (f->bytes)
        s = secure_link_pull(l->s, l->note + l->note_bytes, f->bytes, &got, err);
    l->note_bytes += got;
    *again = !s && got == f->bytes;
    if (!*again)
        return s;
    if (f->kind == FRAME_BYE)
        l->state = COMM_LEFT;
    else if (f->kind == FRAME_BEAT || f->kind == FRAME_ALERT)
        s = heed_note(t, l, f->kind, err);
    else
        s = sl_fail(err, SL_INVALID, "comm: a frame of kind %u", f->kind);
    l->note_bytes = 0;
    return s;
}

/* Reads notes until data is in front or nothing is left. */
static enum sl_status service(struct tcp_net *t, struct tcp_link *l, struct sl_err *err)
{
    struct secure_frame f;
    bool again = l->state != COMM_DEAD;
    enum sl_status s = SL_OK;
    l->data_in_front = false;
    while (again && !s) {
        s = secure_link_front(l->s, &f, &again, err);
        if (s || !again)
            break;
        if (f.kind == FRAME_DATA && f.bytes) {
            l->data_in_front = true;
            break;
        }
        if (f.kind != FRAME_DATA)
            s = read_note(t, l, &f, &again, err);
    }
    return settle(l, s);
}

/* --- the backend's table -------------------------------------------------------------------------
 */

static enum sl_status push(struct comm_net *net, uint32_t peer, const struct comm_part part[2],
                           size_t *moved, struct sl_err *err)
{
    struct tcp_link *l = &self(net)->links[peer];
    const struct secure_span spans[2] = {{part[0].data, part[0].bytes},
                                         {part[1].data, part[1].bytes}};
    enum sl_status s = SL_OK;
    *moved = 0;
    pthread_mutex_lock(&l->lock);
    if (l->state == COMM_HERE)
        s = settle(l, secure_link_push(l->s, FRAME_DATA, spans, 2, moved, err));
    pthread_mutex_unlock(&l->lock);
    return s;
}

static bool flushed(struct comm_net *net, uint32_t peer)
{
    struct tcp_link *l = &self(net)->links[peer];
    struct sl_err err;
    bool done = false;
    pthread_mutex_lock(&l->lock);
    if (l->state == COMM_HERE)
        settle(l, secure_link_flush(l->s, &done, &err));
    pthread_mutex_unlock(&l->lock);
    return done;
}

static enum sl_status pull(struct comm_net *net, uint32_t peer, void *data, size_t bytes,
                           size_t *moved, struct sl_err *err)
{
    struct tcp_net *t = self(net);
    struct tcp_link *l = &t->links[peer];
    size_t got = 1;
    *moved = 0;
    pthread_mutex_lock(&l->lock);
    enum sl_status s = service(t, l, err);
    while (!s && l->data_in_front && *moved < bytes && got) {
        s = settle(l, secure_link_pull(l->s, (uint8_t *)data + *moved, bytes - *moved, &got, err));
        *moved += got;
        if (!s && got)
            s = service(t, l, err);
    }
    if (*moved) {
        l->progress_ns = sl_now_ns();
        l->started = true;
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

static bool readable(struct comm_net *net, uint32_t peer)
{
    struct tcp_net *t = self(net);
    struct tcp_link *l = &t->links[peer];
    struct sl_err err;
    pthread_mutex_lock(&l->lock);
    if (service(t, l, &err)) /* bytes that are no frames */
        l->state = COMM_DEAD;
    bool yes = l->data_in_front;
    pthread_mutex_unlock(&l->lock);
    return yes;
}

static struct pollfd poll_entry(struct tcp_net *t, struct tcp_link *l, bool from, bool to)
{
    struct pollfd p = {l->s ? secure_link_fd(l->s) : -1, 0, 0};
    struct sl_err err;
    pthread_mutex_lock(&l->lock);
    if (l->s && !from && !l->data_in_front && secure_link_buffered(l->s) && service(t, l, &err))
        l->state = COMM_DEAD;
    if (l->state != COMM_HERE || (l->hung_up && !from && !to))
        p.fd = -1;
    else
        p.events = (short)((from || !l->data_in_front ? POLLIN : 0) | (to ? POLLOUT : 0) |
                           (l->hung_up ? 0 : POLLRDHUP));
    pthread_mutex_unlock(&l->lock);
    return p;
}

static void wait_for(struct comm_net *net, uint64_t from, uint64_t to, uint64_t until_ns)
{
    struct tcp_net *t = self(net);
    struct pollfd fds[SL_COMM_RANKS_MAX + 1];
    uint32_t n = net->n_ranks;
    uint64_t now = sl_now_ns(), count;
    struct sl_err err;
    for (uint32_t p = 0; p < n; p++)
        fds[p] = poll_entry(t, &t->links[p], from >> p & 1, to >> p & 1);
    fds[n] = (struct pollfd){t->bell, POLLIN, 0};
    int left_ms = until_ns > now ? (int)((until_ns - now + SL_MS_NS - 1) / SL_MS_NS) : 0;
    if (poll(fds, n + 1, left_ms) <= 0)
        return;
    if (fds[n].revents && read(t->bell, &count, sizeof count) < 0)
        return;
    for (uint32_t p = 0; p < n; p++) {
        struct tcp_link *l = &t->links[p];
        if (!fds[p].revents)
            continue;
        pthread_mutex_lock(&l->lock);
        if (!l->data_in_front && service(t, l, &err))
            l->state = COMM_DEAD;
        if (fds[p].revents & (POLLRDHUP | POLLHUP | POLLERR))
            l->hung_up = true;
        if (fds[p].revents & POLLERR)
            l->state = l->state == COMM_HERE && !l->data_in_front ? COMM_DEAD : l->state;
        pthread_mutex_unlock(&l->lock);
    }
}

static void view(struct comm_net *net, uint32_t peer, struct comm_view *out)
{
    struct tcp_link *l = &self(net)->links[peer];
    pthread_mutex_lock(&l->lock);
    *out = (struct comm_view){l->state, l->started, l->progress_ns, l->waiting_ns};
    pthread_mutex_unlock(&l->lock);
}

/* The last progress is remembered, so that one who only waits does not claim any. */
static uint64_t raise_progress(struct tcp_net *t, uint64_t progress_ns)
{
    uint64_t old = atomic_load(&t->progress_ns);
    while (old < progress_ns && !atomic_compare_exchange_weak(&t->progress_ns, &old, progress_ns))
        ;
    return old > progress_ns ? old : progress_ns;
}

static void publish(struct comm_net *net, uint64_t progress_ns, bool waiting)
{
    struct tcp_net *t = self(net);
    uint64_t now = sl_now_ns(), last = raise_progress(t, progress_ns);
    uint64_t every = net->op_timeout_ms * SL_MS_NS / BEATS_A_LIMIT;
    struct wire_beat beat = {.age_ms = now > last ? (uint32_t)((now - last) / SL_MS_NS) : 0,
                             .waiting = waiting,
                             .started = atomic_load(&net->started)};
    uint8_t note[WIRE_BEAT_BYTES];
    wire_beat_encode(&beat, note);
    for (uint32_t p = 0; p < net->n_ranks; p++) {
        struct tcp_link *l = &t->links[p];
        struct sl_err err;
        bool taken;
        if (!l->s)
            continue;
        pthread_mutex_lock(&l->lock);
        if (l->state == COMM_HERE && now - l->told_ns >= every) {
            l->told_ns = now;
            settle(l, secure_link_note(l->s, FRAME_BEAT, note, sizeof note, &taken, &err));
        }
        pthread_mutex_unlock(&l->lock);
    }
}

static void alert(struct comm_net *net, const struct wire_alert *why)
{
    struct tcp_net *t = self(net);
    const uint64_t one = 1;
    uint8_t note[WIRE_ALERT_BYTES];
    wire_alert_encode(why, note);
    for (uint32_t p = 0; p < net->n_ranks; p++) {
        struct tcp_link *l = &t->links[p];
        struct sl_err err;
        bool taken;
        if (!l->s)
            continue;
        pthread_mutex_lock(&l->lock);
        if (l->state == COMM_HERE)
            settle(l, secure_link_note(l->s, FRAME_ALERT, note, sizeof note, &taken, &err));
        secure_link_end(l->s); /* the end is seen even where the note found no room */
        pthread_mutex_unlock(&l->lock);
    }
    ssize_t n = write(t->bell, &one, sizeof one);
    (void)n; /* full: it rings already */
}

static bool alerted(struct comm_net *net, struct wire_alert *why)
{
    struct tcp_net *t = self(net);
    if (!atomic_load(&t->has_alert))
        return false;
    *why = t->alert;
    return true;
}

/* Reads what is there before closing: unread bytes would turn the end into a reset, which may throw
 * away what we sent. */
static void part(struct tcp_link *l)
{
    uint8_t unread[4096];
    struct sl_err err;
    bool taken;
    if (l->state == COMM_HERE)
        secure_link_note(l->s, FRAME_BYE, NULL, 0, &taken, &err);
    secure_link_end(l->s);
    for (int i = 0; i < 256; i++)
        if (recv(secure_link_fd(l->s), unread, sizeof unread, MSG_DONTWAIT) <= 0)
            break;
    secure_link_free(l->s);
}

static void tcp_close(struct comm_net *net)
{
    struct tcp_net *t = self(net);
    for (uint32_t p = 0; p < net->n_ranks; p++) {
        if (t->links[p].s)
            part(&t->links[p]);
        pthread_mutex_destroy(&t->links[p].lock);
    }
    close(t->bell);
    free(t);
}

static const struct comm_ops tcp_ops = {.kind = SL_COMM_TCP,
                                        .push = push,
                                        .flushed = flushed,
                                        .pull = pull,
                                        .readable = readable,
                                        .wait = wait_for,
                                        .view = view,
                                        .publish = publish,
                                        .alert = alert,
                                        .alerted = alerted,
                                        .close = tcp_close};

/* --- opening -------------------------------------------------------------------------------------
 */

/* The key between two ranks; `high` is the one that connects. */
static void pair_key(const struct comm_join *j, uint32_t high, uint32_t low, struct secure_psk *out)
{
    snprintf(out->identity, sizeof out->identity, "sluice-comm %u>%u", high, low);
    secure_derive(j->answer.key, out->identity, out->key);
}

/* The ranks above ours may come in. Returns n_ranks for an identity that is none of theirs. */
static uint32_t rank_of(const struct comm_join *j, const char *identity)
{
    char name[SECURE_IDENTITY_BYTES];
    for (uint32_t p = j->cfg->rank + 1; p < j->cfg->n_ranks; p++) {
        snprintf(name, sizeof name, "sluice-comm %u>%u", p, j->cfg->rank);
        if (!strcmp(name, identity))
            return p;
    }
    return j->cfg->n_ranks;
}

static bool find_key(void *ctx, const char *identity, struct secure_psk *out)
{
    const struct comm_join *j = ctx;
    uint32_t peer = j->answer.n_ranks ? rank_of(j, identity) : j->cfg->n_ranks;
    if (peer == j->cfg->n_ranks)
        return false;
    pair_key(j, peer, j->cfg->rank, out);
    return true;
}

enum sl_status tcp_door_open(struct comm_join *j, struct sl_err *err)
{
    return secure_door_open(j->cfg->host, find_key, j, &j->door, err);
}

/* A connection of ours to a lower rank, until that one has said READY. */
struct dialing {
    struct secure_link *link;
    uint64_t again_ns;
    bool shaken;
};

static void retry(struct dialing *d)
{
    secure_link_free(d->link);
    d->link = NULL;
    d->shaken = false;
    d->again_ns = sl_now_ns() + SLICE_MS * SL_MS_NS;
}

/* Starts or goes on; *ready: the link stands. A connection that breaks is made again. */
static enum sl_status dial(const struct comm_join *j, struct dialing *d, uint32_t peer, bool *ready,
                           struct sl_err *err)
{
    struct secure_psk psk = {0};
    struct secure_frame f;
    struct sl_err why;
    int fd;
    *ready = false;
    if (!d->link) {
        if (sl_now_ns() < d->again_ns)
            return SL_OK;
        enum sl_status s = secure_connect(j->answer.address[peer], &fd, &why);
        if (s == SL_PEER)
            d->again_ns = sl_now_ns() + SLICE_MS * SL_MS_NS;
        if (s)
            return s == SL_PEER ? SL_OK : sl_fail(err, SL_CONFIG, "%s", why.msg);
        pair_key(j, j->cfg->rank, peer, &psk);
        s = secure_link_client(fd, &psk, &d->link, err);
        explicit_bzero(&psk, sizeof psk);
        if (s)
            return s;
    }
    if (secure_link_handshake(d->link, &d->shaken, &why) ||
        (d->shaken && secure_link_front(d->link, &f, ready, &why)) ||
        (*ready && f.kind != FRAME_READY)) {
        *ready = false;
        retry(d);
    }
    return SL_OK;
}

/* Takes the links of higher ranks in and tells them so. */
static enum sl_status receive(struct comm_join *j, struct tcp_net *t, uint32_t *missing,
                              struct sl_err *err)
{
    struct secure_link *link;
    struct sl_err why;
    bool taken = false;
    for (;;) {
        enum sl_status s = secure_door_take(j->door, &link, err);
        if (s || !link)
            return s;
        uint32_t peer = rank_of(j, secure_link_identity(link));
        if (peer == j->cfg->n_ranks || secure_link_note(link, FRAME_READY, NULL, 0, &taken, &why)) {
            secure_link_free(link);
            continue;
        }
        if (t->links[peer].s) /* it did not hear us, and comes again */
            secure_link_free(t->links[peer].s);
        else
            --*missing;
        t->links[peer].s = link;
    }
}

static size_t fill_fds(const struct comm_join *j, const struct dialing *d, struct pollfd *out)
{
    size_t n = secure_door_fds(j->door, out);
    for (uint32_t p = 0; p < j->cfg->rank; p++)
        if (d[p].link)
            out[n++] = (struct pollfd){secure_link_fd(d[p].link),
                                       d[p].shaken ? POLLIN : secure_link_events(d[p].link), 0};
    return n;
}

static enum sl_status join_links(struct comm_join *j, struct tcp_net *t, struct dialing *d,
                                 struct sl_err *err)
{
    uint32_t missing = j->cfg->n_ranks - 1;
    struct pollfd fds[SECURE_DOOR_FDS + SL_COMM_RANKS_MAX];
    for (;;) {
        enum sl_status s = comm_join_check(j, "a link of every rank", err);
        for (uint32_t p = 0; p < j->cfg->rank && !s; p++) {
            bool ready = false;
            if (!t->links[p].s)
                s = dial(j, &d[p], p, &ready, err);
            if (ready) {
                t->links[p].s = d[p].link;
                d[p].link = NULL;
                missing--;
            }
        }
        if (!s)
            s = receive(j, t, &missing, err);
        if (s || !missing)
            return s;
        poll(fds, fill_fds(j, d, fds), SLICE_MS);
    }
}

enum sl_status tcp_net_open(struct comm_join *j, struct comm_net **out, struct sl_err *err)
{
    struct dialing d[SL_COMM_RANKS_MAX] = {0};
    struct tcp_net *t = calloc(1, sizeof *t);
    if (!t)
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory");
    for (uint32_t p = 0; p < j->cfg->n_ranks; p++)
        pthread_mutex_init(&t->links[p].lock, NULL);
    t->base.n_ranks = j->cfg->n_ranks;
    t->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum sl_status s = t->bell < 0
                           ? sl_fail(err, SL_FAILED, "comm: no eventfd: %s", strerror(errno))
                           : join_links(j, t, d, err);
    for (uint32_t p = 0; p < j->cfg->n_ranks; p++)
        secure_link_free(d[p].link);
    if (s) {
        tcp_close(&t->base);
        return s;
    }
    comm_net_init(&t->base, &tcp_ops, j);
    for (uint32_t p = 0; p < j->cfg->n_ranks; p++)
        t->links[p].progress_ns = t->links[p].told_ns = sl_now_ns();
    *out = &t->base;
    return SL_OK;
}
