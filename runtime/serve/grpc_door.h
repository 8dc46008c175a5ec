/* Private: the gRPC door as the node has it. The module with gRPC in it is loaded here; kserve.c
 * gives its calls their meaning. All on the loop's thread. */
#ifndef SLUICE_SERVE_GRPC_DOOR_H
#define SLUICE_SERVE_GRPC_DOOR_H

#include "gen.h"
#include <sluice/base/containers.h>
#include <sluice/transport/grpc.h>

struct grpc_door {
    struct node *node;
    const struct sl_grpc_ops *ops;
    struct sl_grpc_door *door;
    struct sl_queue *inbox; /* calls from the door's thread */
    struct sl_watch *watch;
    struct sl_timer *timer;
    struct sl_list asks; /* generations under way, or being prepared */
};

/* Loads the module and listens: SL_CONFIG without a fitting module, SL_PORT_IN_USE. The rest of
 * cfg (what the door calls) is filled in. */
enum sl_status grpc_door_open(struct node *n, const struct sl_grpc_config *cfg,
                              struct grpc_door **out, struct sl_err *err);
void grpc_door_refresh(struct grpc_door *g); /* health; NULL: nothing to do, in all of these */
void grpc_door_drain(struct grpc_door *g);
uint32_t grpc_door_busy(const struct grpc_door *g);
void grpc_door_close(struct grpc_door *g);

/* kserve.c: answers at once or when a generation ends; its client is gone; the door closes. */
void kserve_start(struct grpc_door *g, struct sl_grpc_call *call);
void kserve_cancelled(struct sl_grpc_call *call);
void kserve_stop(struct grpc_door *g);

#endif
