/* ZeroMQ sockets of the bus. No default is relied on: every option that matters is set and, where
 * the library lets one, read back, because its defaults wait for ever, drop silently or have no
 * bound (zmq_setsockopt(3), version 4.3.4). */
#include "bus_socket.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>

#include <zmq.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define UNANSWERED_MS      2000 /* a TCP connection whose bytes nobody acknowledges is dead */
#define HANDSHAKE_MS       5000
#define CONNECT_MS         2000
#define RECONNECT_MS       50
#define RECONNECT_MAX_MS   500
#define KEEPALIVE_IDLE_S   30
#define KEEPALIVE_INTVL_S  10
#define KEEPALIVE_PROBES   3
#define BACKLOG            128
#define ROUTING_ID_BYTES   16
#define LINGER_AT_CLOSE_MS 100
#define SPOKE_FDS          65536 /* descriptors followed */

struct int_option {
    const char *name;
    int option, value;
    bool write_only; /* the library has no getter for it */
};

static enum sl_status set_int(void *zmq, const struct int_option *o, struct sl_err *err)
{
    int got = 0;
    size_t size = sizeof got;
    if (zmq_setsockopt(zmq, o->option, &o->value, sizeof o->value))
        return sl_fail(err, SL_FAILED, "bus: socket option %s cannot be set to %d: %s", o->name,
                       o->value, zmq_strerror(errno));
    if (o->write_only)
        return SL_OK;
    if (zmq_getsockopt(zmq, o->option, &got, &size) || got != o->value)
        return sl_fail(err, SL_FAILED, "bus: socket option %s is %d, wanted %d", o->name, got,
                       o->value);
    return SL_OK;
}

static enum sl_status set_message_max(void *zmq, struct sl_err *err)
{
    int64_t want = SL_LIMIT_bus_message_bytes, got = 0;
    size_t size = sizeof got;
    if (zmq_setsockopt(zmq, ZMQ_MAXMSGSIZE, &want, sizeof want) ||
        zmq_getsockopt(zmq, ZMQ_MAXMSGSIZE, &got, &size) || got != want)
        return sl_fail(err, SL_FAILED, "bus: socket option MAXMSGSIZE is %lld, wanted %lld",
                       (long long)got, (long long)want);
    return SL_OK;
}

/* Random, so that nobody can take over a link by guessing its name. */
static enum sl_status set_routing_id(void *zmq, struct sl_err *err)
{
    uint64_t half[2] = {sl_entropy_u64(), sl_entropy_u64()};
    uint8_t id[ROUTING_ID_BYTES], got[255];
    size_t size = sizeof got;
    memcpy(id, half, sizeof id);
    id[0] |= 1; /* a leading zero byte is the library's own */
    if (zmq_setsockopt(zmq, ZMQ_ROUTING_ID, id, sizeof id) ||
        zmq_getsockopt(zmq, ZMQ_ROUTING_ID, got, &size) || size != sizeof id ||
        memcmp(id, got, sizeof id) != 0)
        return sl_fail(err, SL_FAILED, "bus: socket option ROUTING_ID did not take");
    return SL_OK;
}

static bool any_ipv6(const struct sl_bus_config *cfg)
{
    for (uint32_t i = 0; i < cfg->n_endpoints; i++)
        if (!strncmp(cfg->endpoints[i], "tcp://[", 7))
            return true;
    return false;
}

static enum sl_status set_options(void *zmq, const struct sl_bus_config *cfg, bool curve,
                                  struct sl_err *err)
{
    const struct int_option both[] = {
        {"LINGER", ZMQ_LINGER, 0, false},
        {"SNDHWM", ZMQ_SNDHWM, SL_LIMIT_bus_hwm_messages, false},
        {"RCVHWM", ZMQ_RCVHWM, SL_LIMIT_bus_hwm_messages, false},
        {"SNDTIMEO", ZMQ_SNDTIMEO, 0, false},
        {"RCVTIMEO", ZMQ_RCVTIMEO, 0, false},
        /* No heartbeats of the library: 4.3.4 aborts the process when one is due on a connection
         * that broke while its input was held back (stream_engine_base.cpp: !_io_error). Both sides
         * speak ten times a second anyway. */
        {"HEARTBEAT_IVL", ZMQ_HEARTBEAT_IVL, 0, false},
        {"TCP_MAXRT", ZMQ_TCP_MAXRT, UNANSWERED_MS, false},
        {"HANDSHAKE_IVL", ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS, false},
        {"IPV6", ZMQ_IPV6, any_ipv6(cfg), false},
        {"BACKLOG", ZMQ_BACKLOG, BACKLOG, false},
        {"CONNECT_TIMEOUT", ZMQ_CONNECT_TIMEOUT, CONNECT_MS, false},
        {"RECONNECT_IVL", ZMQ_RECONNECT_IVL, RECONNECT_MS, false},
        {"RECONNECT_IVL_MAX", ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS, false},
        {"TCP_KEEPALIVE", ZMQ_TCP_KEEPALIVE, 1, false},
        {"TCP_KEEPALIVE_IDLE", ZMQ_TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S, false},
        {"TCP_KEEPALIVE_INTVL", ZMQ_TCP_KEEPALIVE_INTVL, KEEPALIVE_INTVL_S, false},
        {"TCP_KEEPALIVE_CNT", ZMQ_TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES, false},
    };
    const struct int_option router[] = {
        {"ROUTER_MANDATORY", ZMQ_ROUTER_MANDATORY, 1, true}, /* else sends vanish silently */
        /* Open endpoints: else a reconnect under the same id is refused. Under CURVE no peer names
         * itself, so whoever claims the id of another is ignored. */
        {"ROUTER_HANDOVER", ZMQ_ROUTER_HANDOVER, !curve, true},
    };
    const struct int_option dealer[] = {
        {"IMMEDIATE", ZMQ_IMMEDIATE, 1, false}, /* else messages pile up for nobody */
    };
    enum sl_status s = set_message_max(zmq, err);
    for (size_t i = 0; i < sizeof both / sizeof *both && s == SL_OK; i++)
        s = set_int(zmq, &both[i], err);
    const struct int_option *rest = cfg->is_router ? router : dealer;
    size_t n = cfg->is_router ? sizeof router / sizeof *router : sizeof dealer / sizeof *dealer;
    for (size_t i = 0; i < n && s == SL_OK; i++)
        s = set_int(zmq, &rest[i], err);
    return s == SL_OK && !cfg->is_router && !curve ? set_routing_id(zmq, err) : s;
}

/* "127.0.0.0/8", "::1" in brackets, or "localhost". */
static bool is_loopback(const char *host, size_t len)
{
    char text[64];
    struct in_addr v4;
    struct in6_addr v6;
    if (len == 0 || len >= sizeof text)
        return false;
    memcpy(text, host, len);
    text[len] = '\0';
    if (!strcmp(text, "localhost"))
        return true;
    if (inet_pton(AF_INET, text, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (text[0] != '[' || text[len - 1] != ']')
        return false;
    text[len - 1] = '\0';
    return inet_pton(AF_INET6, text + 1, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

static enum sl_status check_tcp(const char *endpoint, bool has_keys, struct sl_err *err)
{
    const char *host = endpoint + strlen("tcp://");
    const char *colon = strrchr(host, ':');
    if (!colon || colon == host || !colon[1] || strchr(host, ';'))
        return sl_fail(err, SL_CONFIG, "bus: endpoint '%s' is not tcp://HOST:PORT", endpoint);
    if (!has_keys && !is_loopback(host, (size_t)(colon - host)))
        return sl_fail(err, SL_CONFIG,
                       "bus: endpoint '%s' is not on this machine's loopback; give keys with "
                       "--curve-dir",
                       endpoint);
    return SL_OK;
}

/* Whoever can reach the socket file can speak; the folder keeps others out. */
static enum sl_status check_ipc(const char *endpoint, bool is_router, struct sl_err *err)
{
    char folder[sizeof((struct sockaddr_un *)NULL)->sun_path];
    const char *path = endpoint + strlen("ipc://");
    const char *name = strrchr(path, '/');
    struct stat st;
    if (path[0] != '/' || name == path || !name[1] || strlen(path) >= sizeof folder)
        return sl_fail(err, SL_CONFIG,
                       "bus: endpoint '%s' is not ipc:///FOLDER/NAME of at most %zu bytes",
                       endpoint, sizeof folder - 1);
    if (!is_router)
        return SL_OK;
    memcpy(folder, path, (size_t)(name - path));
    folder[name - path] = '\0';
    if (lstat(folder, &st))
        return sl_fail(err, SL_CONFIG, "bus: folder of endpoint '%s': %s", endpoint,
                       strerror(errno));
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        return sl_fail(err, SL_CONFIG, "bus: folder '%s' has mode %03o, wanted 700 and to be ours",
                       folder, (unsigned)st.st_mode & 0777u);
    return SL_OK;
}

enum sl_status bus_check_config(const struct sl_bus_config *cfg, struct sl_err *err)
{
    if (cfg->n_endpoints == 0)
        return sl_fail(err, SL_CONFIG, "bus: no endpoint given");
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < cfg->n_endpoints && s == SL_OK; i++) {
        const char *e = cfg->endpoints[i];
        if (!strncmp(e, "tcp://", 6))
            s = check_tcp(e, cfg->curve_dir != NULL, err);
        else if (!strncmp(e, "ipc://", 6))
            s = check_ipc(e, cfg->is_router, err);
        else
            s = sl_fail(err, SL_CONFIG, "bus: endpoint '%s' is neither tcp:// nor ipc://", e);
    }
    return s;
}

bool bus_is_curve(const struct sl_bus_config *cfg, const char *endpoint)
{
    return cfg->curve_dir && !strncmp(endpoint, "tcp://", 6);
}

/* The library unlinks the socket file of an ipc endpoint before it binds, even a living one. */
static bool ipc_in_use(const char *endpoint)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (strncmp(endpoint, "ipc://", 6) != 0)
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    memcpy(addr.sun_path, endpoint + 6, strlen(endpoint + 6)); /* its length was checked */
    bool in_use = connect(fd, (const struct sockaddr *)&addr, sizeof addr) == 0 || errno == EAGAIN;
    close(fd);
    return in_use;
}

enum sl_status bus_bind(struct bus_socket *s, const char *endpoint, char bound[BUS_ENDPOINT_BYTES],
                        struct sl_err *err)
{
    size_t size = BUS_ENDPOINT_BYTES;
    if (ipc_in_use(endpoint))
        return sl_fail(err, SL_PORT_IN_USE, "bus: endpoint '%s' is in use", endpoint);
    if (zmq_bind(s->zmq, endpoint)) {
        enum sl_status why = errno == EADDRINUSE ? SL_PORT_IN_USE : SL_CONFIG;
        return sl_fail(err, why, "bus: cannot bind '%s': %s", endpoint, zmq_strerror(errno));
    }
    if (zmq_getsockopt(s->zmq, ZMQ_LAST_ENDPOINT, bound, &size))
        return sl_fail(err, SL_CONFIG, "bus: endpoint '%s': %s", endpoint, zmq_strerror(errno));
    return SL_OK;
}

/* The receiving end has no bound: a full queue would hold up the library's I/O thread. */
static enum sl_status open_monitor(void *ctx, const char *name, int events, struct bus_socket *s,
                                   struct sl_err *err)
{
    s->monitor = zmq_socket(ctx, ZMQ_PAIR);
    if (!s->monitor)
        return sl_fail(err, SL_FAILED, "bus: no socket: %s", zmq_strerror(errno));
    enum sl_status status =
        set_int(s->monitor, &(struct int_option){"LINGER", ZMQ_LINGER, 0, false}, err);
    if (status == SL_OK)
        status = set_int(s->monitor, &(struct int_option){"RCVHWM", ZMQ_RCVHWM, 0, false}, err);
    if (status == SL_OK &&
        (zmq_socket_monitor(s->zmq, name, events) || zmq_connect(s->monitor, name)))
        status = sl_fail(err, SL_FAILED, "bus: no monitor: %s", zmq_strerror(errno));
    return status;
}

#define HANDSHAKE_EVENTS                                                                           \
    (ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |                        \
     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |                       \
     ZMQ_EVENT_DISCONNECTED)

enum sl_status bus_open_router(void *ctx, const struct sl_bus_config *cfg,
                               const struct bus_keys *keys, struct bus_socket *s,
                               struct sl_err *err)
{
    s->zmq = zmq_socket(ctx, ZMQ_ROUTER);
    if (!s->zmq)
        return sl_fail(err, SL_FAILED, "bus: no socket: %s", zmq_strerror(errno));
    s->curve = keys != NULL;
    if (keys && !(s->spoke = calloc(SPOKE_FDS / 8, 1)))
        return sl_fail(err, SL_NO_MEMORY, "bus: no memory for a table of connections");
    enum sl_status status = set_options(s->zmq, cfg, s->curve, err);
    if (status == SL_OK && keys)
        status = curve_arm_server(keys->ring, s->zmq, keys->peers, err);
    if (status == SL_OK && keys)
        status = open_monitor(ctx, "inproc://monitor-router", HANDSHAKE_EVENTS | ZMQ_EVENT_ACCEPTED,
                              s, err);
    return status;
}

/* "HOST" of "tcp://HOST:PORT". */
static struct sl_str host_of(const char *endpoint)
{
    const char *host = endpoint + strlen("tcp://");
    const char *colon = strrchr(host, ':');
    return (struct sl_str){host, colon ? (size_t)(colon - host) : strlen(host)};
}

/* The key of the next connection, before it is made. */
static enum sl_status choose_key(struct bus_socket *s, const struct bus_keys *keys,
                                 struct sl_err *err)
{
    if (!curve_key_at(keys->ring, keys->peers, host_of(s->endpoint), s->key_index, s->server_key))
        return sl_fail(err, SL_CONFIG, "bus: no allowed key is one of a %s, for '%s'",
                       keys->peers & SL_KEY_ROUTER ? "router" : "worker", s->endpoint);
    return curve_arm_client(keys->ring, s->zmq, s->server_key, err);
}

enum sl_status bus_open_dealer(void *ctx, const struct sl_bus_config *cfg, uint32_t i,
                               const struct bus_keys *keys, struct bus_socket *s,
                               struct sl_err *err)
{
    char name[48];
    snprintf(name, sizeof name, "inproc://monitor-%u", i);
    s->zmq = zmq_socket(ctx, ZMQ_DEALER);
    if (!s->zmq)
        return sl_fail(err, SL_FAILED, "bus: no socket: %s", zmq_strerror(errno));
    s->endpoint = cfg->endpoints[i];
    s->curve = bus_is_curve(cfg, s->endpoint);
    enum sl_status status = set_options(s->zmq, cfg, s->curve, err);
    if (status == SL_OK)
        status = open_monitor(ctx, name, HANDSHAKE_EVENTS, s, err);
    if (status == SL_OK && s->curve)
        status = choose_key(s, keys, err);
    if (status == SL_OK && zmq_connect(s->zmq, s->endpoint))
        status = sl_fail(err, SL_CONFIG, "bus: cannot connect to '%s': %s", s->endpoint,
                         zmq_strerror(errno));
    return status;
}

void bus_socket_close(struct bus_socket *s)
{
    const int linger = LINGER_AT_CLOSE_MS;
    if (s->monitor) {
        zmq_socket_monitor(s->zmq, NULL, 0);
        zmq_close(s->monitor);
    }
    if (s->zmq) {
        zmq_setsockopt(s->zmq, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(s->zmq);
    }
    free(s->spoke);
    memset(s, 0, sizeof *s);
}

/* ---- events ---- */

static uint16_t port_of(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)(const void *)a)->sin_port);
    return a->ss_family == AF_INET6
               ? ntohs(((const struct sockaddr_in6 *)(const void *)a)->sin6_port)
               : 0;
}

/* The duplicate pins what the number stands for now, so that it can be looked at and ended without
 * a race; at worst another connection to our own port is made anew. */
void bus_cut(int fd, const char *endpoint)
{
    struct sockaddr_storage here;
    socklen_t size = sizeof here;
    const char *colon = strrchr(endpoint, ':');
    int own = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (own < 0)
        return;
    if (colon && getsockname(own, (struct sockaddr *)&here, &size) == 0 && port_of(&here) != 0 &&
        port_of(&here) == strtoul(colon + 1, NULL, 10))
        shutdown(own, SHUT_RDWR);
    close(own);
}

/* One event: a frame of u16 number and u32 value, then a frame with the address. */
static bool read_event(void *monitor, uint16_t *event, uint32_t *value, char address[256])
{
    uint8_t number[6];
    int n = zmq_recv(monitor, number, sizeof number, ZMQ_DONTWAIT);
    if (n < 0)
        return false;
    int len = zmq_recv(monitor, address, 255, ZMQ_DONTWAIT);
    address[len < 0 ? 0 : len < 255 ? len : 255] = '\0';
    *event = 0;
    *value = 0;
    if (n == (int)sizeof number) {
        memcpy(event, number, sizeof *event);
        memcpy(value, number + 2, sizeof *value);
    }
    return true;
}

/* Which connections of a router became a link: the events of a handshake do not name theirs. */
static void mark(struct bus_socket *s, int fd, bool spoke)
{
    if (!s->spoke || fd < 0 || fd >= SPOKE_FDS)
        return;
    uint8_t bit = (uint8_t)(1u << fd % 8);
    s->spoke[fd / 8] = (uint8_t)(spoke ? s->spoke[fd / 8] | bit : s->spoke[fd / 8] & ~bit);
}

static bool has_spoken(const struct bus_socket *s, int fd)
{
    return s->spoke && fd >= 0 && fd < SPOKE_FDS && (s->spoke[fd / 8] >> fd % 8 & 1);
}

void bus_socket_heard(struct bus_socket *s, int fd)
{
    mark(s, fd, true);
}

static void count_event(struct bus_socket *s, uint16_t event, uint32_t value, const char *address)
{
    struct bus_events *e = &s->events;
    switch (event) {
    case ZMQ_EVENT_ACCEPTED:
        e->n_accepted++;
        mark(s, (int)value, false);
        if (e->n_accepted - e->n_closed > SL_LIMIT_bus_connections) {
            e->n_cut++;
            bus_cut((int)value, address);
        }
        break;
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        e->n_handshakes++;
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        if (value == ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC ||
            value == ZMQ_PROTOCOL_ERROR_ZMTP_INVALID_SEQUENCE)
            e->n_broken++;
        break;
    case ZMQ_EVENT_DISCONNECTED:
        e->n_closed++;
        e->n_handshakes_failed += s->endpoint ? !s->connected : !has_spoken(s, (int)value);
        break;
    default:
        break;
    }
}

/* A worker's connection under CURVE went down: when it never stood, the key is the wrong one. */
static void plan_rekey(struct bus_socket *s)
{
    uint64_t wait_ms = RECONNECT_MS;
    for (uint32_t i = 0; i < s->n_failed && wait_ms < RECONNECT_MAX_MS; i++)
        wait_ms *= 2;
    if (s->connected)
        return;                          /* the library connects again by itself */
    zmq_disconnect(s->zmq, s->endpoint); /* here it must not: the same key would fail again */
    s->n_failed++;
    s->next_key = true;
    s->rekey_at_ns = sl_now_ns() + wait_ms * SL_MS_NS;
}

static void follow(struct bus_socket *s, uint16_t event)
{
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        s->n_connects++;
        s->version = s->hello_version = 0; /* another program may answer there now */
        s->n_failed = 0;
        s->rekey_at_ns = 0;
        s->next_key = false;
        s->connected = true;
    }
    bool say = (s->n_failed & (s->n_failed - 1)) == 0; /* ever more seldom */
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH && say)
        sl_log(SL_LOG_ERROR, "the router at %s does not allow our key", s->endpoint);
    if (event == ZMQ_EVENT_DISCONNECTED) {
        if (s->curve)
            plan_rekey(s);
        s->connected = false;
    }
}

void bus_socket_read_monitor(struct bus_socket *s)
{
    uint16_t event;
    uint32_t value;
    char address[256];
    while (s->monitor && read_event(s->monitor, &event, &value, address)) {
        count_event(s, event, value, address);
        if (s->endpoint)
            follow(s, event);
    }
}

/* Under CURVE with the key of the same place, or after a failed handshake with the next. */
enum sl_status bus_reconnect(struct bus_socket *s, const struct bus_keys *keys, struct sl_err *err)
{
    s->key_index += s->next_key;
    zmq_disconnect(s->zmq, s->endpoint); /* fails when there was no connection */
    bus_socket_read_monitor(s);
    s->connected = false;
    s->next_key = false;
    s->rekey_at_ns = 0;
    enum sl_status status = s->curve ? choose_key(s, keys, err) : SL_OK;
    if (status == SL_OK && zmq_connect(s->zmq, s->endpoint))
        status = sl_fail(err, SL_CONFIG, "bus: cannot connect to '%s': %s", s->endpoint,
                         zmq_strerror(errno));
    return status;
}

void bus_tend(struct bus_socket *s, const struct bus_keys *keys, uint64_t now)
{
    struct sl_err err;
    bus_socket_read_monitor(s);
    if (!s->endpoint || !s->curve || !s->rekey_at_ns || now < s->rekey_at_ns)
        return;
    if (bus_reconnect(s, keys, &err) == SL_OK)
        return;
    sl_log(SL_LOG_ERROR, "%s", err.msg);
    s->rekey_at_ns = now + RECONNECT_MAX_MS * SL_MS_NS;
}
