/* Private to transport: CURVE for any ZeroMQ socket of a context, with its allow-list and the ZAP
 * handler that asks it (ZeroMQ RFC 26 and 27). sluice/transport/keys.h tells the folder's layout.
 *
 * One object per context: it owns inproc://zeromq.zap.01 there. A thread answers ZAP and follows
 * the folder; every function may be called from any thread. Order of closing: sockets, curve_close,
 * zmq_ctx_term. A CURVE server whose handler is gone lets nobody in.
 *
 * Example, rank 0 and rank 1 of a group:
 *     curve_open(ctx, dir, &c, err);
 *     curve_arm_server(c, zmq, SL_KEY_WORKER, err);          before zmq_bind
 *     curve_arm_client(c, zmq, server_key, err);             before zmq_connect
 * Options of a socket count for the binds and connects that follow, so one socket may have open and
 * CURVE endpoints. At a server zmq_msg_gets(msg, "User-Id") is the sender's public key (Z85). */
#ifndef SLUICE_BUS_CURVE_H
#define SLUICE_BUS_CURVE_H

#include "curve_keys.h"

#include <stdint.h>

struct curve;

/* SL_CONFIG names the file at fault: missing, readable by others, malformed. */
enum sl_status curve_open(void *ctx, const char *dir, struct curve **out, struct sl_err *err);
void curve_close(struct curve *c); /* NULL is fine */

/* For sockets that bind. `roles`: a mask of enum sl_key_role that may connect. */
enum sl_status curve_arm_server(struct curve *c, void *zmq, unsigned roles, struct sl_err *err);
/* For sockets that connect. `server_key`: the public key (Z85) expected there. */
enum sl_status curve_arm_client(struct curve *c, void *zmq, const char *server_key,
                                struct sl_err *err);

/* Own public key as of now. */
void curve_own_key(struct curve *c, char text[CURVE_TEXT_BYTES]);
/* Whether this key (Z85, as of User-Id; NULL is nobody) is allowed in one of these roles now; its
 * name goes to `name` unless that is NULL. */
bool curve_allows(struct curve *c, const char *key, unsigned roles, char name[SL_KEY_NAME_BYTES]);
/* The i-th allowed key of these roles in the order in which a node that connects tries them,
 * counted modulo their number: those whose name is `host` or its part before the first dot, then
 * our own (processes may share a folder), then the rest. False when there is none. */
bool curve_key_at(struct curve *c, unsigned roles, struct sl_str host, uint32_t i,
                  char text[CURVE_TEXT_BYTES]);

/* Read the folder again now; async-signal-safe. */
void curve_reload(struct curve *c);
/* Changes whenever the allow-list or the own key did. */
uint64_t curve_generation(const struct curve *c);

struct curve_stats {
    uint64_t n_accepted, n_denied; /* handshakes that came as far as their key */
    uint64_t n_reloads, n_keys;
};
void curve_stats(struct curve *c, struct curve_stats *out);

#endif
