/* Connections of the bulk channel: sockets that are waited for in short slices, so that a stop from
 * another thread is seen soon. */
#include "bulk/link.h"

#include <sluice/base/time.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SLICE_MS 50

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
        struct pollfd p = {.fd = l->fd, .events = events};
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
    if (strlen(path) >= sizeof to.sun_path)
        return -1;
    strcpy(to.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0 && same_user(fd))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* "HOST:PORT" with a numeric host, an IPv6 one in brackets. */
static bool parse_tcp(const char *text, struct sockaddr_storage *out, socklen_t *len)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    char *end;
    size_t n = colon ? (size_t)(colon - text) : 0;
    long port = colon ? strtol(colon + 1, &end, 10) : 0;
    if (!n || n >= sizeof host || port < 1 || port > 65535 || *end)
        return false;
    bool v6 = text[0] == '[' && text[n - 1] == ']';
    memcpy(host, text + v6, n - 2 * v6);
    host[n - 2 * v6] = '\0';
    memset(out, 0, sizeof *out);
    struct sockaddr_in *in4 = (struct sockaddr_in *)(void *)out;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)(void *)out;
    if (v6) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
        *len = sizeof *in6;
        return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1;
    }
    in4->sin_family = AF_INET;
    in4->sin_port = htons((uint16_t)port);
    *len = sizeof *in4;
    return inet_pton(AF_INET, host, &in4->sin_addr) == 1;
}

static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static enum sl_status connect_tcp(const char *text, struct bulk_link *l, uint64_t deadline_ns,
                                  struct sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t len, fault_len = sizeof(int);
    int fault = 0;
    if (!parse_tcp(text, &to, &len))
        return sl_fail(err, SL_INVALID, "bulk: address '%s' is not HOST:PORT", text);
    l->fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return sl_fail(err, SL_NO_MEMORY, "bulk: no socket: %s", strerror(errno));
    no_delay(l->fd);
    if (connect(l->fd, (struct sockaddr *)&to, len) == 0)
        return SL_OK;
    if (errno != EINPROGRESS)
        return sl_fail(err, SL_PEER, "bulk: %s: %s", text, strerror(errno));
    enum sl_status s = wait_for(l, POLLOUT, deadline_ns, err);
    if (s)
        return s;
    if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &fault, &fault_len) || fault)
        return sl_fail(err, SL_PEER, "bulk: %s: %s", text, strerror(fault));
    return SL_OK;
}

enum sl_status sl_bulk_connect(const char *address, const uint8_t key[32], const atomic_bool *stop,
                               uint64_t deadline_ns, struct bulk_link *out, struct sl_err *err)
{
    char part[SL_BULK_ADDRESS_MAX];
    *out = link_of(-1, true, stop);
    (void)key;
    if (part_of(address, "shm:", part, sizeof part) && (out->fd = connect_unix(part)) >= 0)
        return SL_OK;
    out->is_unix = false;
    if (!part_of(address, "tcp:", part, sizeof part))
        return sl_fail(err, SL_PEER, "bulk: nobody is at '%s'", address);
    enum sl_status s = connect_tcp(part, out, deadline_ns, err);
    if (s)
        sl_bulk_link_close(out);
    return s;
}

enum sl_status sl_bulk_accept(int fd, bool is_unix, const uint8_t key[32], const atomic_bool *stop,
                              uint64_t deadline_ns, struct bulk_link *out, struct sl_err *err)
{
    *out = link_of(fd, is_unix, stop);
    (void)key;
    (void)deadline_ns;
    if (is_unix && !same_user(fd)) {
        sl_bulk_link_close(out);
        return sl_fail(err, SL_UNAUTHORIZED, "bulk: a peer of another user");
    }
    if (!is_unix)
        no_delay(fd);
    return SL_OK;
}

void sl_bulk_link_close(struct bulk_link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    if (l->passed_fd >= 0)
        close(l->passed_fd);
    l->fd = l->passed_fd = -1;
}

/* --- bytes ------------------------------------------------------------------------------------ */

/* Bytes of a unix link may come with a descriptor; more than one is not for us. */
static ssize_t receive(struct bulk_link *l, void *data, size_t size)
{
    if (!l->is_unix)
        return recv(l->fd, data, size, 0);
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

enum sl_status sl_bulk_read(struct bulk_link *l, void *data, size_t size, uint64_t deadline_ns,
                            struct sl_err *err)
{
    uint8_t *at = data;
    while (size) {
        ssize_t n = receive(l, at, size);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
            continue;
        }
        if (n == 0 || !try_again())
            return gone(err);
        enum sl_status s = wait_for(l, POLLIN, deadline_ns, err);
        if (s)
            return s;
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

enum sl_status sl_bulk_write(struct bulk_link *l, const void *head, size_t head_size,
                             const void *body, size_t body_size, int pass_fd, uint64_t deadline_ns,
                             struct sl_err *err)
{
    struct iovec parts[2] = {{(void *)head, head_size}, {(void *)body, body_size}};
    if (!body)
        parts[1] = (struct iovec){(void *)head, 0};
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
