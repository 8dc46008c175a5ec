/* grpc.health.v1 (grpc/grpc doc/health-checking.md): Check answers once, Watch tells each change.
 *
 * A watcher has one message under way at most; what changed meanwhile is told when that is out, so
 * a slow one sees the newest state and never a backlog. */
#include "door.h"

static bool is_ours(struct sl_str service)
{
    return !service.len || sl_str_eqz(service, "inference.GRPCInferenceService");
}

static enum grpc_serving now_is(const struct sl_grpc_door *d)
{
    return d->serving ? GRPC_SERVING : GRPC_NOT_SERVING;
}

void health_check(struct call *c, struct sl_str service)
{
    struct sl_str bytes;
    if (!is_ours(service)) {
        call_end(c, NULL, GRPC_STATUS_NOT_FOUND, "there is no such service here");
        return;
    }
    pthread_mutex_lock(&c->door->mutex);
    enum grpc_serving s = now_is(c->door);
    pthread_mutex_unlock(&c->door->mutex);
    if (grpc_encode_health(s, &c->mem, &bytes))
        call_end(c, &bytes, GRPC_STATUS_OK, "");
    else
        call_end(c, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for the answer");
}

/* Off the list; the list's reference goes with it. */
static void forget(struct call *c)
{
    sl_list_remove(&c->link);
    c->watches = false;
    call_unref(c);
}

static void tell(struct call *c)
{
    struct sl_grpc_door *d = c->door;
    struct sl_str bytes;
    enum grpc_serving s = c->knows ? now_is(d) : GRPC_SERVICE_UNKNOWN;
    if (c->sending)
        return;
    if (d->stopping) {
        call_end(c, NULL, GRPC_STATUS_UNAVAILABLE, "the server is shutting down");
        forget(c);
        return;
    }
    if (s == c->told)
        return;
    sl_arena_reset(&c->mem);
    c->told = s;
    c->sending = grpc_encode_health(s, &c->mem, &bytes) && call_send(c, &bytes);
}

void health_watch(struct call *c, struct sl_str service)
{
    struct sl_grpc_door *d = c->door;
    c->knows = is_ours(service);
    pthread_mutex_lock(&d->mutex);
    call_ref(c);
    c->watches = true;
    sl_list_push_back(&d->watchers, &c->link);
    tell(c);
    pthread_mutex_unlock(&d->mutex);
}

void health_sent(struct call *c, bool ok)
{
    pthread_mutex_lock(&c->door->mutex);
    c->sending = false;
    if (ok && c->watches)
        tell(c);
    pthread_mutex_unlock(&c->door->mutex);
}

void health_closed(struct call *c)
{
    pthread_mutex_lock(&c->door->mutex);
    if (c->watches)
        forget(c);
    pthread_mutex_unlock(&c->door->mutex);
}

void health_tell_all(struct sl_grpc_door *d)
{
    for (struct sl_list *l = d->watchers.next, *next; l != &d->watchers; l = next) {
        next = l->next;
        tell(SL_ENTRY(l, struct call, link));
    }
}
