/* The followers of a session, watched by a thread of their own while the session computes. */
#ifndef SLUICE_CLI_SESSION_RANKS_H
#define SLUICE_CLI_SESSION_RANKS_H

#include "session.h"

/* Starts them and names the rendezvous in `cfg`. */
enum sl_status session_ranks_open(struct session *s, const struct engine_options *options,
                                  const char *model, struct sl_engine_config *cfg, char *const *env,
                                  struct sl_err *err);
/* Until the group stands; from then on the thread watches. */
enum sl_status session_ranks_wait(struct session *s, struct sl_err *err);
void session_ranks_stop(struct session *s);  /* the watching; before the engine closes */
void session_ranks_close(struct session *s); /* ends the followers; after it */

#endif
