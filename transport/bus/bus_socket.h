/* ZeroMQ sockets of the bus: opening them, every option set and read back, endpoints checked. */
#ifndef SLUICE_BUS_SOCKET_H
#define SLUICE_BUS_SOCKET_H

#include "curve.h"

#include <sluice/transport/bus.h>

/* What connections did, told by the socket's monitor. */
struct bus_events {
    uint64_t n_accepted, n_closed; /* connections, each counted once in both */
    uint64_t n_handshakes;         /* completed */
    uint64_t n_handshakes_failed;  /* connections that ended before they became a link */
    uint64_t n_broken;             /* frames altered or replayed under CURVE: connection closed */
    uint64_t n_cut;                /* connections over the limit */
};

/* A socket and the monitor that tells of its connections (none at a router's open socket). */
struct bus_socket {
    void *zmq;
    void *monitor;
    const char *endpoint; /* workers: the caller's; NULL at a router */
    bool curve;
    bool connected;
    uint64_t n_connects;       /* handshakes completed */
    struct sl_bus_order order; /* of a worker's one link here */
    uint32_t version;          /* agreed on for that link; 0: nothing yet */
    uint32_t hello_version;    /* to offer; 0: our highest */
    struct bus_events events;
    uint8_t *spoke; /* routers under CURVE: a bit per descriptor that a message came from */

    /* Workers under CURVE: which of the allowed routers' keys is tried now. */
    uint32_t key_index;
    char server_key[CURVE_TEXT_BYTES];
    bool next_key;        /* the handshake failed: another key is due */
    uint64_t rekey_at_ns; /* 0: nothing is due */
    uint32_t n_failed;    /* handshakes in a row */
};

/* Keys for a socket: who may connect to one that binds, whose key one that connects expects. */
struct bus_keys {
    struct curve *ring;
    unsigned peers; /* mask of enum sl_key_role */
};

/* SL_CONFIG: whether these endpoints may be used at all. */
enum sl_status bus_check_config(const struct sl_bus_config *cfg, struct sl_err *err);
/* Whether an endpoint is spoken to under CURVE: with keys every tcp endpoint is. */
bool bus_is_curve(const struct sl_bus_config *cfg, const char *endpoint);

#define BUS_ENDPOINT_BYTES 256

/* A ROUTER not yet bound, open or (with keys that are not NULL) under CURVE; bus_bind writes the
 * endpoint as bound. SL_PORT_IN_USE, SL_CONFIG. */
enum sl_status bus_open_router(void *ctx, const struct sl_bus_config *cfg,
                               const struct bus_keys *keys, struct bus_socket *s,
                               struct sl_err *err);
enum sl_status bus_bind(struct bus_socket *s, const char *endpoint, char bound[BUS_ENDPOINT_BYTES],
                        struct sl_err *err);
/* A DEALER connected to endpoint `i`; `keys` may be NULL when no endpoint needs them. */
enum sl_status bus_open_dealer(void *ctx, const struct sl_bus_config *cfg, uint32_t i,
                               const struct bus_keys *keys, struct bus_socket *s,
                               struct sl_err *err);
/* Takes waiting events and, for a DEALER under CURVE, connects anew with the next allowed key when
 * one is due. To be called every 50 ms or so. */
void bus_tend(struct bus_socket *s, const struct bus_keys *keys, uint64_t now_ns);
/* A DEALER's connection is given up and made anew, at once. */
enum sl_status bus_reconnect(struct bus_socket *s, const struct bus_keys *keys, struct sl_err *err);
void bus_socket_close(struct bus_socket *s);

/* Takes all waiting connection events. */
void bus_socket_read_monitor(struct bus_socket *s);
/* A message came through this connection. */
void bus_socket_heard(struct bus_socket *s, int fd);
/* Ends the connection behind a descriptor that ZeroMQ named, if it still is one of `endpoint` (as
 * bound): the number may have passed to another file meanwhile. */
void bus_cut(int fd, const char *endpoint);

#endif
