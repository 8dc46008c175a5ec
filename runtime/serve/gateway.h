/* The HTTP gateway: routes requests to API dialects. One file per dialect; see gen.h for what is
 * behind them. */
#ifndef SLUICE_SERVE_GATEWAY_H
#define SLUICE_SERVE_GATEWAY_H

#include "gen.h"
#include <sluice/transport/http_server.h>

struct gateway;

/* Starts answering on the node's loop. /health works at once, the rest says 503 until a model is
 * there. */
enum sl_status gateway_open(struct node *n, const struct sl_http_config *cfg, struct gateway **out,
                            struct sl_err *err);
uint16_t gateway_port(const struct gateway *g);
void gateway_drain(struct gateway *g);
uint32_t gateway_busy(const struct gateway *g); /* requests not yet answered */
void gateway_close(struct gateway *g);

#endif
