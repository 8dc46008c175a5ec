/* Sockets that secure links run on: listening, connecting, and addresses as text. */
#include "secure_link.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 256

static bool is_wildcard(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

static enum sl_status describe(int fd, char address[SECURE_ADDRESS_BYTES], struct sl_err *err)
{
    struct sockaddr_storage a;
    socklen_t size = sizeof a;
    char host[64], port[8];
    if (getsockname(fd, (struct sockaddr *)&a, &size) ||
        getnameinfo((struct sockaddr *)&a, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV))
        return sl_fail(err, SL_FAILED, "link: a socket without an address");
    snprintf(address, SECURE_ADDRESS_BYTES, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return SL_OK;
}

static int try_listen(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && !bind(fd, a->ai_addr, a->ai_addrlen) && !listen(fd, BACKLOG))
        return fd;
    int why = errno;
    if (fd >= 0)
        close(fd);
    errno = why;
    return -1;
}

enum sl_status secure_listen(const char *host, int *fd, char address[SECURE_ADDRESS_BYTES],
                             struct sl_err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const char *name = host && host[0] ? host : "127.0.0.1";
    *fd = -1;
    int rc = getaddrinfo(name, "0", &hints, &found);
    if (rc)
        return sl_fail(err, SL_CONFIG, "link: host '%s': %s", name, gai_strerror(rc));
    if (is_wildcard(found->ai_addr)) {
        freeaddrinfo(found);
        return sl_fail(err, SL_CONFIG, "link: host '%s' is no address that others can reach", name);
    }
    *fd = try_listen(found);
    int why = errno;
    freeaddrinfo(found);
    if (*fd < 0)
        return sl_fail(err, SL_CONFIG, "link: cannot listen on '%s': %s", name, strerror(why));
    enum sl_status s = describe(*fd, address, err);
    if (s) {
        close(*fd);
        *fd = -1;
    }
    return s;
}

static bool is_port(const char *text)
{
    size_t n = strspn(text, "0123456789");
    return n > 0 && n <= 5 && !text[n] && atoi(text) > 0 && atoi(text) <= 65535;
}

/* "HOST:PORT" or "[HOST]:PORT", numbers only: no name service is asked on a peer's word. */
static struct addrinfo *parse(const char *address)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char host[SECURE_ADDRESS_BYTES];
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    if (n == 0 || n >= sizeof host || !is_port(colon + 1))
        return NULL;
    bool brackets = address[0] == '[' && address[n - 1] == ']' && n > 2;
    if (brackets) {
        address++;
        n -= 2;
    }
    memcpy(host, address, n);
    host[n] = '\0';
    return getaddrinfo(host, colon + 1, &hints, &found) ? NULL : found;
}

enum sl_status secure_connect(const char *address, int *fd, struct sl_err *err)
{
    struct addrinfo *a = parse(address);
    const int on = 1;
    *fd = -1;
    if (!a)
        return sl_fail(err, SL_INVALID, "link: '%s' is not HOST:PORT in numbers", address);
    *fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = *fd < 0 ? -1 : connect(*fd, a->ai_addr, a->ai_addrlen);
    int why = errno;
    freeaddrinfo(a);
    if (*fd >= 0)
        setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (rc == 0 || why == EINPROGRESS)
        return SL_OK;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return sl_fail(err, SL_PEER, "link: cannot connect to '%s': %s", address, strerror(why));
}
