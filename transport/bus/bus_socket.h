/* ZeroMQ sockets of the bus: opening them, every option set and read back, endpoints checked. */
#ifndef SLUICE_BUS_SOCKET_H
#define SLUICE_BUS_SOCKET_H

#include <sluice/transport/bus.h>

/* A socket and, at a worker, the monitor that tells of its connection. */
struct bus_socket {
    void *zmq;
    void *monitor;       /* NULL at a router */
    uint64_t n_connects; /* handshakes completed */
    struct sl_bus_order order; /* of a worker's one link here */
    bool connected;
};

/* SL_CONFIG, SL_UNSUPPORTED: whether these endpoints may be used at all. */
enum sl_status bus_check_config(const struct sl_bus_config *cfg, struct sl_err *err);

#define BUS_ENDPOINT_BYTES 256

/* A ROUTER not yet bound; bus_bind writes the endpoint as bound. SL_PORT_IN_USE, SL_CONFIG. */
enum sl_status bus_open_router(void *ctx, const struct sl_bus_config *cfg, struct bus_socket *s,
                               struct sl_err *err);
enum sl_status bus_bind(struct bus_socket *s, const char *endpoint, char bound[BUS_ENDPOINT_BYTES],
                        struct sl_err *err);
/* A DEALER connected to endpoint `i`. */
enum sl_status bus_open_dealer(void *ctx, const struct sl_bus_config *cfg, uint32_t i,
                               struct bus_socket *s, struct sl_err *err);
void bus_socket_close(struct bus_socket *s);

/* Takes all waiting connection events. */
void bus_socket_read_monitor(struct bus_socket *s);

#endif
