/* Connections of the bulk channel: unix sockets, and secure links on TCP, whose frames carry our
 * bytes as one stream. Both are waited for in short slices, so that a stop from another thread is
 * seen soon. */
#include "bulk/link.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SLICE_MS 50
#define IDENTITY "bulk"
#define STREAM   1 /* kind of all our frames on a secure link */

static bool stopped(const struct bulk_link *l)
{
    return l->stop && atomic_load(l->stop);
}

/* Until `events` or the end of patience. */
static enum sl_status wait_for(const struct bulk_link *l, short events, uint64_t deadline_ns,
                               struct sl_err *err)
{
    for (;;) {
        uint64_t now = sl_now_ns();
        if (stopped(l))
            return sl_fail(err, SL_CANCELLED, "bulk: stopped");
        if (now >= deadline_ns)
            return sl_fail(err, SL_TIMEOUT, "bulk: the peer is silent");
        uint64_t left_ms = (deadline_ns - now) / SL_MS_NS + 1;
        struct pollfd p = {.fd = l->tls ? secure_link_fd(l->tls) : l->fd, .events = events};
        if (l->tls)
            p.events = (short)(events | secure_link_events(l->tls));
        if (poll(&p, 1, left_ms < SLICE_MS ? (int)left_ms : SLICE_MS) > 0)
            return SL_OK;
    }
}

static enum sl_status gone(struct sl_err *err)
{
    return sl_fail(err, SL_PEER, "bulk: the peer is gone");
}

/* --- opening ---------------------------------------------------------------------------------- */

static struct bulk_link link_of(int fd, bool is_unix, const atomic_bool *stop)
{
    return (struct bulk_link){.fd = fd, .is_unix = is_unix, .passed_fd = -1, .stop = stop};
}

/* Whether the other end of a unix socket runs as the same user. */
static bool same_user(int fd)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.uid == geteuid();
}

/* The part of an address after `scheme`, up to the next comma. */
static bool part_of(const char *address, const char *scheme, char *out, size_t room)
{
    const char *at = strstr(address, scheme);
    if (!at || (at != address && at[-1] != ','))
        return false;
    at += strlen(scheme);
    size_t len = strcspn(at, ",");
    if (!len || len >= room)
        return false;
    memcpy(out, at, len);
    out[len] = '\0';
    return true;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len >= sizeof to.sun_path)
        return -1;
    memcpy(to.sun_path, path, len);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && same_user(fd))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

struct secure_psk sl_bulk_psk(const uint8_t key[32])
{
    struct secure_psk psk = {.identity = IDENTITY};
    secure_derive(key, "sluice bulk 1", psk.key);
    return psk;
}

static enum sl_status connect_tcp(const char *address, const uint8_t key[32], struct bulk_link *l,
                                  uint64_t deadline_ns, struct sl_err *err)
{
    struct secure_psk psk = sl_bulk_psk(key);
    bool done = false;
    int fd;
    enum sl_status s = secure_connect(address, &fd, err);
    if (s == SL_OK)
        s = secure_link_client(fd, &psk, &l->tls, err);
    while (s == SL_OK && (s = secure_link_handshake(l->tls, &done, err)) == SL_OK && !done)
        s = wait_for(l, 0, deadline_ns, err);
    return s;
}

enum sl_status sl_bulk_connect(const char *address, const uint8_t key[32], const atomic_bool *stop,
                               uint64_t deadline_ns, struct bulk_link *out, struct sl_err *err)
{
    char part[SL_BULK_ADDRESS_MAX];
    *out = link_of(-1, true, stop);
    if (part_of(address, "shm:", part, sizeof part) && (out->fd = connect_unix(part)) >= 0)
        return SL_OK;
    out->is_unix = false;
    if (!part_of(address, "tcp:", part, sizeof part))
        return sl_fail(err, SL_PEER, "bulk: nobody is at '%s'", address);
    enum sl_status s = connect_tcp(part, key, out, deadline_ns, err);
    if (s)
        sl_bulk_link_close(out);
    return s;
}

enum sl_status sl_bulk_accept(int fd, struct secure_link *tls, const atomic_bool *stop,
                              struct bulk_link *out, struct sl_err *err)
{
    *out = link_of(fd, tls == NULL, stop);
    out->tls = tls;
    if (tls || same_user(fd))
        return SL_OK;
    sl_bulk_link_close(out);
    return sl_fail(err, SL_UNAUTHORIZED, "bulk: a peer of another user");
}

void sl_bulk_link_close(struct bulk_link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    if (l->passed_fd >= 0)
        close(l->passed_fd);
    secure_link_free(l->tls);
    l->tls = NULL;
    l->fd = l->passed_fd = -1;
}

/* --- bytes ------------------------------------------------------------------------------------ */

/* Bytes of a unix link may come with a descriptor; more than one is not for us. */
static ssize_t receive(struct bulk_link *l, void *data, size_t size)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {data, size};
    struct msghdr m = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.room,
                       .msg_controllen = sizeof control.room};
    ssize_t n = recvmsg(l->fd, &m, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(int))) {
        int fd;
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
        if (l->passed_fd >= 0)
            close(l->passed_fd);
        l->passed_fd = fd;
    }
    return n;
}

static bool try_again(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* What is there now of the next frame's bytes; *got 0: nothing. */
static enum sl_status pull(struct bulk_link *l, void *data, size_t size, size_t *got,
                           struct sl_err *err)
{
    struct secure_frame front;
    bool have;
    *got = 0;
    enum sl_status s = secure_link_front(l->tls, &front, &have, err);
    if (s || !have)
        return s;
    if (front.kind != STREAM || !front.bytes)
        return sl_fail(err, SL_PEER, "bulk: a record of kind %u", front.kind);
    return secure_link_pull(l->tls, data, size, got, err);
}

static enum sl_status read_some(struct bulk_link *l, void *data, size_t size, size_t *got,
                                struct sl_err *err)
{
    if (l->tls)
        return pull(l, data, size, got, err);
    ssize_t n = receive(l, data, size);
    *got = n > 0 ? (size_t)n : 0;
    return n > 0 || (n < 0 && try_again()) ? SL_OK : gone(err);
}

enum sl_status sl_bulk_read(struct bulk_link *l, void *data, size_t size, uint64_t deadline_ns,
                            struct sl_err *err)
{
    uint8_t *at = data;
    while (size) {
        size_t got;
        enum sl_status s = read_some(l, at, size, &got, err);
        if (s == SL_OK && !got)
            s = wait_for(l, POLLIN, deadline_ns, err);
        if (s)
            return s;
        at += got;
        size -= got;
    }
    return SL_OK;
}

static ssize_t transmit(const struct bulk_link *l, struct iovec parts[2], int pass_fd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
    if (pass_fd >= 0) {
        m.msg_control = control.room;
        m.msg_controllen = sizeof control.room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &pass_fd, sizeof pass_fd);
    }
    return sendmsg(l->fd, &m, MSG_NOSIGNAL);
}

static void advance(struct iovec parts[2], size_t n)
{
    for (int i = 0; i < 2; i++) {
        size_t k = n < parts[i].iov_len ? n : parts[i].iov_len;
        parts[i].iov_base = (uint8_t *)parts[i].iov_base + k;
        parts[i].iov_len -= k;
        n -= k;
    }
}

static enum sl_status write_tls(struct bulk_link *l, struct iovec parts[2], uint64_t deadline_ns,
                                struct sl_err *err)
{
    bool flushed = false;
    while (parts[0].iov_len + parts[1].iov_len || !flushed) {
        const struct secure_span spans[2] = {{parts[0].iov_base, parts[0].iov_len},
                                             {parts[1].iov_base, parts[1].iov_len}};
        size_t taken;
        enum sl_status s = secure_link_push(l->tls, STREAM, spans, 2, &taken, err);
        if (s == SL_OK)
            s = secure_link_flush(l->tls, &flushed, err);
        if (s)
            return s;
        advance(parts, taken);
        if (!flushed && (s = wait_for(l, POLLOUT, deadline_ns, err)))
            return s;
    }
    return SL_OK;
}

enum sl_status sl_bulk_write(struct bulk_link *l, const void *head, size_t head_size,
                             const void *body, size_t body_size, int pass_fd, uint64_t deadline_ns,
                             struct sl_err *err)
{
    struct iovec parts[2] = {{(void *)head, head_size},
                             {(void *)(body ? body : head), body ? body_size : 0}};
    if (l->tls)
        return write_tls(l, parts, deadline_ns, err);
    while (parts[0].iov_len + parts[1].iov_len) {
        ssize_t n = transmit(l, parts, pass_fd);
        if (n > 0) {
            advance(parts, (size_t)n);
            pass_fd = -1; /* went with the first byte */
            continue;
        }
        if (n == 0 || !try_again())
            return gone(err);
        enum sl_status s = wait_for(l, POLLOUT, deadline_ns, err);
        if (s)
            return s;
    }
    return SL_OK;
}
