/* Where secure links come in: a listening socket and the handshakes under way behind it.
 *
 * Squatters do not hinder: at most SECURE_DOOR_PENDING connections are in a handshake, each for
 * SECURE_DOOR_MS at most; when one more comes, the oldest that has not named a known key gives way.
 * A client that was turned away so connects again. Nothing blocks; one thread at a time.
 *
 *   poll(secure_door_fds) -> secure_door_take until it gives NULL -> a link per proved key */
#ifndef SLUICE_SECURE_DOOR_H
#define SLUICE_SECURE_DOOR_H

#include "secure_link.h"
#include <poll.h>

#define SECURE_DOOR_PENDING 64
#define SECURE_DOOR_FDS     (SECURE_DOOR_PENDING + 1)
#define SECURE_DOOR_MS      5000

struct secure_door;

/* Listens as secure_listen does. `find` is called within secure_door_take. */
enum sl_status secure_door_open(const char *host, secure_find_key *find, void *ctx,
                                struct secure_door **out, struct sl_err *err);
void secure_door_close(struct secure_door *d);
const char *secure_door_address(const struct secure_door *d);
/* Lets connections in and moves handshakes on; *out is a link that is ready, or NULL when there is
 * none now. Broken handshakes are counted and forgotten. SL_FAILED when the socket itself fails. */
enum sl_status secure_door_take(struct secure_door *d, struct secure_link **out,
                                struct sl_err *err);
/* What to poll until the next take; returns how many, at most SECURE_DOOR_FDS. */
size_t secure_door_fds(const struct secure_door *d, struct pollfd *out);
uint64_t secure_door_n_refused(const struct secure_door *d);

#endif
