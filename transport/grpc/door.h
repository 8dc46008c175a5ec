/* Private: the door, its calls, and what its files share.
 *
 * One completion queue, one thread that turns it. A call is alive while anything refers to it: each
 * batch under way, the owner between notify and answer, the list of watchers. Batches that receive
 * are started on the door's thread only; those that send by whoever answers, one at a time
 * (watchers under the door's mutex). */
#ifndef SLUICE_TRANSPORT_GRPC_DOOR_H
#define SLUICE_TRANSPORT_GRPC_DOOR_H

#include "messages.h"

#include <grpc/grpc.h>
#include <pthread.h>
#include <sluice/base/containers.h>
#include <stdatomic.h>

/* What a batch's end calls. Set when the call is made and never again: the door's thread reads it
 * without a lock. */
struct call;
struct tag {
    void (*fn)(struct call *c, bool ok); /* drops the batch's reference by returning */
    struct call *call;
};

enum method_kind { METHOD_OWNERS, METHOD_CHECK, METHOD_WATCH };
struct method {
    const char *path;
    enum method_kind kind;
    enum sl_grpc_method number; /* of the owner's */
    bool open;                  /* without a key */
};

struct call {
    struct sl_grpc_call pub; /* first */
    struct sl_grpc_door *door;
    const struct method *method; /* NULL: unknown */
    grpc_call *core;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *received;
    struct sl_arena mem;
    atomic_uint refs;
    atomic_bool cancelled;
    bool notified, said_head;
    int close_cancelled;
    struct tag on_accepted, on_message, on_closed, on_sent;

    /* A watcher's; under the door's mutex. */
    struct sl_list link;
    bool watches, sending, knows; /* knows: the service is one of ours */
    enum grpc_serving told;
};

struct sl_grpc_door {
    struct sl_grpc_config cfg;
    grpc_server *server;
    grpc_completion_queue *queue;
    pthread_t thread;
    struct call *waiting; /* for the next request; the door's thread only */
    struct tag on_down;
    atomic_uint n_calls;

    pthread_mutex_t mutex; /* guards what follows, and that nothing is notified once stopping */
    pthread_cond_t went_down;
    bool stopping, serving, down;
    struct sl_list watchers;
};

/* call.c */
struct call *call_new(struct sl_grpc_door *d);
void call_ref(struct call *c);
void call_unref(struct call *c);
bool call_start(struct call *c, const grpc_op *ops, size_t n, struct tag *t);
/* The call has come: refuses it, or asks for its message. */
void call_begin(struct call *c);
/* What is given of: message, end with a status. A batch that cannot start belongs to a call that is
 * gone already. False then. */
bool call_send(struct call *c, const struct sl_str *message);
void call_end(struct call *c, const struct sl_str *message, int grpc_status, const char *text);
void call_fail(struct call *c, const struct sl_err *err);
bool call_cancelled(const struct sl_grpc_call *call);
void call_answer(struct sl_grpc_call *call, const struct sl_grpc_answer *a);
void call_release(struct sl_grpc_call *call);

/* health.c */
void health_check(struct call *c, struct sl_str service);
void health_watch(struct call *c, struct sl_str service);
void health_sent(struct call *c, bool ok);
void health_closed(struct call *c);
/* Under the mutex: tells every watcher what is so now, or sends it away when stopping. */
void health_tell_all(struct sl_grpc_door *d);

#endif
