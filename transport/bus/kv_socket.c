/* Sockets of KV events: options, endpoints, frames. */
#include "kv_socket.h"

#include "bus_socket.h"

#include <sluice/base/limits.h>

#include <errno.h>
#include <string.h>

#define IDLE_S           2 /* then TCP asks whether the other side is there, */
#define IDLE_PROBES      3 /* so often, a second apart */
#define HANDSHAKE_MS     5000
#define RECONNECT_MS     50
#define RECONNECT_MAX_MS 500
#define BACKLOG          128

void *kv_context(struct sl_err *err)
{
    void *ctx = zmq_ctx_new();
    if (!ctx || zmq_ctx_set(ctx, ZMQ_IO_THREADS, 1) || zmq_ctx_set(ctx, ZMQ_BLOCKY, 0)) {
        sl_fail(err, SL_FAILED, "kv events: no context: %s", zmq_strerror(errno));
        if (ctx)
            zmq_ctx_term(ctx);
        return NULL;
    }
    return ctx;
}

enum sl_status kv_socket(void *ctx, int type, int hwm, void **out, struct sl_err *err)
{
    const struct {
        const char *name;
        int option, value;
    } rows[] = {
        {"LINGER", ZMQ_LINGER, 0},
        {"SNDHWM", ZMQ_SNDHWM, hwm},
        {"RCVHWM", ZMQ_RCVHWM, hwm},
        {"SNDTIMEO", ZMQ_SNDTIMEO, 0},
        {"RCVTIMEO", ZMQ_RCVTIMEO, 0},
        {"HEARTBEAT_IVL", ZMQ_HEARTBEAT_IVL, 0}, /* see bus_socket.c */
        {"TCP_KEEPALIVE", ZMQ_TCP_KEEPALIVE, 1},
        {"TCP_KEEPALIVE_IDLE", ZMQ_TCP_KEEPALIVE_IDLE, IDLE_S},
        {"TCP_KEEPALIVE_INTVL", ZMQ_TCP_KEEPALIVE_INTVL, 1},
        {"TCP_KEEPALIVE_CNT", ZMQ_TCP_KEEPALIVE_CNT, IDLE_PROBES},
        {"HANDSHAKE_IVL", ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS},
        {"RECONNECT_IVL", ZMQ_RECONNECT_IVL, RECONNECT_MS},
        {"RECONNECT_IVL_MAX", ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS},
        {"BACKLOG", ZMQ_BACKLOG, BACKLOG},
    };
    const int64_t most = SL_LIMIT_bus_message_bytes;
    void *zmq = zmq_socket(ctx, type);
    *out = zmq;
    if (!zmq)
        return sl_fail(err, SL_FAILED, "kv events: no socket: %s", zmq_strerror(errno));
    if (zmq_setsockopt(zmq, ZMQ_MAXMSGSIZE, &most, sizeof most))
        return sl_fail(err, SL_FAILED, "kv events: socket option MAXMSGSIZE: %s",
                       zmq_strerror(errno));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int got = 0;
        size_t size = sizeof got;
        if (zmq_setsockopt(zmq, rows[i].option, &rows[i].value, sizeof rows[i].value) ||
            zmq_getsockopt(zmq, rows[i].option, &got, &size) || got != rows[i].value)
            return sl_fail(err, SL_FAILED, "kv events: socket option %s is %d, wanted %d",
                           rows[i].name, got, rows[i].value);
    }
    return SL_OK;
}

enum sl_status kv_check_endpoint(const char *endpoint, bool bind, const char *curve_dir,
                                 struct sl_err *err)
{
    const struct sl_bus_config cfg = {
        .endpoints = &endpoint, .n_endpoints = 1, .is_router = bind, .curve_dir = curve_dir};
    return bus_check_config(&cfg, err);
}

bool kv_is_curve(const char *endpoint, const char *curve_dir)
{
    const struct sl_bus_config cfg = {.curve_dir = curve_dir};
    return bus_is_curve(&cfg, endpoint);
}

void kv_allow_ipv6(void *zmq, const char *endpoint)
{
    const int yes = 1; /* only where wanted: v4 addresses would be told in the v6 form */
    if (!strncmp(endpoint, "tcp://[", 7))
        zmq_setsockopt(zmq, ZMQ_IPV6, &yes, sizeof yes);
}

enum sl_status kv_socket_fd(void *zmq, int *fd, struct sl_err *err)
{
    size_t size = sizeof *fd;
    if (zmq_getsockopt(zmq, ZMQ_FD, fd, &size))
        return sl_fail(err, SL_FAILED, "kv events: no descriptor: %s", zmq_strerror(errno));
    return SL_OK;
}

void kv_put_seq(uint8_t out[KV_SEQ_BYTES], uint64_t seq)
{
    for (uint32_t i = 0; i < KV_SEQ_BYTES; i++)
        out[i] = (uint8_t)(seq >> 8 * (KV_SEQ_BYTES - 1 - i));
}

uint64_t kv_get_seq(const uint8_t in[KV_SEQ_BYTES])
{
    uint64_t seq = 0;
    for (uint32_t i = 0; i < KV_SEQ_BYTES; i++)
        seq = seq << 8 | in[i];
    return seq;
}

uint32_t kv_recv_frames(void *zmq, zmq_msg_t *frames, uint32_t max)
{
    bool more = true;
    uint32_t n = 0;
    for (; more; n++) {
        zmq_msg_t surplus, *f = n < max ? &frames[n] : &surplus;
        zmq_msg_init(f);
        if (zmq_msg_recv(f, zmq, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(f);
            break;
        }
        more = zmq_msg_more(f) != 0;
        if (n >= max)
            zmq_msg_close(f);
    }
    return n;
}

void kv_close_frames(zmq_msg_t *frames, uint32_t n_received, uint32_t max)
{
    for (uint32_t i = 0; i < n_received && i < max; i++)
        zmq_msg_close(&frames[i]);
}
