/* Incoming secure links; see secure_door.h. */
#include "secure_door.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct pending {
    struct secure_link *link;
    uint64_t since_ns;
};

struct secure_door {
    int fd;
    char address[SECURE_ADDRESS_BYTES];
    secure_find_key *find;
    void *ctx;
    struct pending pending[SECURE_DOOR_PENDING]; /* oldest first */
    size_t n_pending;
    uint64_t n_refused;
};

enum sl_status secure_door_open(const char *host, secure_find_key *find, void *ctx,
                                struct secure_door **out, struct sl_err *err)
{
    struct secure_door *d = calloc(1, sizeof *d);
    *out = NULL;
    if (!d)
        return sl_fail(err, SL_NO_MEMORY, "link: no memory");
    d->find = find;
    d->ctx = ctx;
    enum sl_status s = secure_listen(host, &d->fd, d->address, err);
    if (s) {
        free(d);
        return s;
    }
    *out = d;
    return SL_OK;
}

static void forget(struct secure_door *d, size_t i)
{
    d->n_pending--;
    memmove(&d->pending[i], &d->pending[i + 1], (d->n_pending - i) * sizeof *d->pending);
}

static void refuse(struct secure_door *d, size_t i)
{
    secure_link_free(d->pending[i].link);
    forget(d, i);
    d->n_refused++;
}

void secure_door_close(struct secure_door *d)
{
    if (!d)
        return;
    while (d->n_pending)
        refuse(d, d->n_pending - 1);
    close(d->fd);
    free(d);
}

const char *secure_door_address(const struct secure_door *d)
{
    return d->address;
}

uint64_t secure_door_n_refused(const struct secure_door *d)
{
    return d->n_refused;
}

static void make_room(struct secure_door *d)
{
    size_t i = 0;
    if (d->n_pending < SECURE_DOOR_PENDING)
        return;
    while (i < d->n_pending && secure_link_identity(d->pending[i].link)[0])
        i++;
    refuse(d, i < d->n_pending ? i : 0);
}

/* One step; true when the link is ready or was refused, so that `i` holds another now. */
static bool advance(struct secure_door *d, size_t i, struct secure_link **ready)
{
    struct sl_err err;
    struct pending *p = &d->pending[i];
    bool done;
    if (secure_link_handshake(p->link, &done, &err) ||
        (!done && sl_now_ns() - p->since_ns > SECURE_DOOR_MS * SL_MS_NS)) {
        refuse(d, i);
        return true;
    }
    if (done) {
        *ready = p->link;
        forget(d, i);
    }
    return done;
}

/* SL_OK with *in false: nobody waits. */
static enum sl_status let_in(struct secure_door *d, bool *in, struct sl_err *err)
{
    const int on = 1;
    struct secure_link *link;
    *in = false;
    int fd = accept4(d->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        bool passing = errno != EBADF && errno != EINVAL && errno != ENOTSOCK;
        return passing ? SL_OK
                       : sl_fail(err, SL_FAILED, "link: cannot accept: %s", strerror(errno));
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    make_room(d);
    enum sl_status s = secure_link_server(fd, d->find, d->ctx, &link, err);
    if (s)
        return s;
    d->pending[d->n_pending++] = (struct pending){link, sl_now_ns()};
    *in = true;
    return SL_OK;
}

enum sl_status secure_door_take(struct secure_door *d, struct secure_link **out, struct sl_err *err)
{
    bool in = true;
    *out = NULL;
    for (size_t i = 0; i < d->n_pending && !*out;)
        if (!advance(d, i, out))
            i++;
    /* A bounded number at a time: a flood must not keep the caller here. */
    for (int n = 0; n < SECURE_DOOR_PENDING && !*out && in; n++) {
        enum sl_status s = let_in(d, &in, err);
        if (s)
            return s;
        if (in)
            advance(d, d->n_pending - 1, out); /* who means it has spoken already */
    }
    return SL_OK;
}

size_t secure_door_fds(const struct secure_door *d, struct pollfd *out)
{
    out[0] = (struct pollfd){d->fd, POLLIN, 0};
    for (size_t i = 0; i < d->n_pending; i++)
        out[i + 1] = (struct pollfd){secure_link_fd(d->pending[i].link),
                                     secure_link_events(d->pending[i].link), 0};
    return d->n_pending + 1;
}
