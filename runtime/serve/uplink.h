/* Uplink: this router as one big worker of the routers above it (a site of a federation).
 *
 * It speaks the worker's side of the bus: HELLO with the role "site" and the sum of its workers,
 * LOAD, META, STEP; SUBMIT and CANCEL come down. A request from above is a request of this node's
 * router, relayed token by token, and fails over among this site's workers without a word upwards.
 * Only workers of one class are offered. With none left it leaves (BYE), so that the routers above
 * move their streams at once, and registers again when one is back. A link that breaks takes its
 * requests with it. On the node's loop thread. */
#ifndef SLUICE_SERVE_UPLINK_H
#define SLUICE_SERVE_UPLINK_H

#include <sluice/base/err.h>
#include <stdint.h>

struct node;
struct uplink;

/* Connects to cfg->connect; *out is NULL without any. SL_CONFIG as sl_bus_open. */
enum sl_status uplink_open(struct node *n, struct uplink **out, struct sl_err *err);
void uplink_close(struct uplink *u); /* says BYE; its requests are cancelled */
/* What waits is received; what was relayed since is sent. NULL is nothing to do. */
void uplink_pump(struct uplink *u);
void uplink_reload_keys(struct uplink *u); /* on SIGHUP, as sl_bus_reload_keys */
void uplink_tick(struct uplink *u, uint64_t now_ns);

#endif
