/* Private: what the publisher and the subscriber of KV events share. */
#ifndef SLUICE_BUS_KV_SOCKET_H
#define SLUICE_BUS_KV_SOCKET_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>
#include <zmq.h>

#define KV_TOPIC_BYTES 128
#define KV_SEQ_BYTES   8

/* A context with one I/O thread; NULL and *err. */
void *kv_context(struct sl_err *err);
/* A socket with every option set that matters; `hwm` messages on either side at most. */
enum sl_status kv_socket(void *ctx, int type, int hwm, void **out, struct sl_err *err);
/* Whether the endpoint may be bound, or connected to, by the rules of the bus. */
enum sl_status kv_check_endpoint(const char *endpoint, bool bind, const char *curve_dir,
                                 struct sl_err *err);
/* tcp is spoken to under CURVE when there are keys. */
bool kv_is_curve(const char *endpoint, const char *curve_dir);
/* Before a bind or connect. */
void kv_allow_ipv6(void *zmq, const char *endpoint);
/* Its descriptor, edge-triggered. */
enum sl_status kv_socket_fd(void *zmq, int *fd, struct sl_err *err);

void kv_put_seq(uint8_t out[KV_SEQ_BYTES], uint64_t seq);
uint64_t kv_get_seq(const uint8_t in[KV_SEQ_BYTES]);

/* Up to `max` frames of the next message; surplus ones are read and dropped. Returns how many the
 * message had, 0 when none waits. The caller closes min(max, count) frames. */
uint32_t kv_recv_frames(void *zmq, zmq_msg_t *frames, uint32_t max);
void kv_close_frames(zmq_msg_t *frames, uint32_t n_received, uint32_t max);

#endif
