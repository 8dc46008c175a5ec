/* Which address of this machine another one would reach: what the kernel would send from. */
#include <sluice/transport/bulk.h>

#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SCHEME "tcp://"

static enum sl_status split(const char *endpoint, char host[256], const char **port,
                            struct sl_err *err)
{
    bool is_tcp = strncmp(endpoint, SCHEME, strlen(SCHEME)) == 0;
    const char *at = is_tcp ? endpoint + strlen(SCHEME) : "", *colon = strrchr(at, ':');
    size_t n = colon ? (size_t)(colon - at) : 0;
    if (!n || n >= 256)
        return sl_fail(err, SL_INVALID, "bulk: '%s' is not tcp://HOST:PORT", endpoint);
    bool v6 = at[0] == '[' && at[n - 1] == ']';
    snprintf(host, 256, "%.*s", (int)(n - (v6 ? 2u : 0u)), at + v6);
    *port = colon + 1;
    return SL_OK;
}

/* A datagram socket that is connected but never used. */
static bool address_towards(const struct addrinfo *to, char out[64])
{
    struct sockaddr_storage mine;
    socklen_t len = sizeof mine;
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, to->ai_addr, to->ai_addrlen) == 0 &&
              getsockname(fd, (struct sockaddr *)&mine, &len) == 0 &&
              getnameinfo((struct sockaddr *)&mine, len, out, 64, NULL, 0, NI_NUMERICHOST) == 0;
    if (fd >= 0)
        close(fd);
    return ok && !strchr(out, '%'); /* a link-local one means nothing elsewhere */
}

enum sl_status sl_bulk_local_address(const char *endpoint, char out[64], struct sl_err *err)
{
    char host[256];
    const char *port = NULL;
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICSERV}, *all = NULL;
    enum sl_status s = split(endpoint, host, &port, err);
    if (s)
        return s;
    bool found = false;
    if (getaddrinfo(host, port, &hints, &all) == 0)
        for (const struct addrinfo *a = all; a && !found; a = a->ai_next)
            found = address_towards(a, out);
    if (all)
        freeaddrinfo(all);
    return found ? SL_OK : sl_fail(err, SL_PEER, "bulk: no way to '%s'", host);
}
