/* Events: points of streams that others wait for. */
#include "emu/runtime.h"

#include <stdlib.h>

static cudaError_t create(enum call_id id, cudaEvent_t *out, unsigned flags)
{
    struct call c;
    if (!call_begin(&c, id))
        return c.error;
    if (!out || (flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming)))
        return call_end(&c, cudaErrorInvalidValue);
    struct CUevent_st *e = calloc(1, sizeof *e);
    if (!e)
        return call_end(&c, cudaErrorMemoryAllocation);
    e->device = c.device;
    e->flags = flags;
    e->site = c.site;
    e->next = c.device->events;
    c.device->events = e;
    *out = e;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return create(CALL_cudaEventCreate, event, 0);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    return create(CALL_cudaEventCreateWithFlags, event, flags);
}

struct CUevent_st *event_of(cudaEvent_t handle)
{
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        for (struct CUevent_st *e = rt.devices[i].events; e; e = e->next)
            if (e == handle)
                return e;
    return NULL;
}

void event_free(struct CUevent_st *e)
{
    struct CUevent_st **at = &e->device->events;
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    mark_unref(e->mark);
    free(e->front);
    free(e);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaEventDestroy))
        return c.error;
    struct CUevent_st *e = event_of(event);
    if (!e)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (!mark_waited(e->mark))
        report(c.device,
               "cudaEventDestroy at %s:%d: the event made at %s:%d is not known to have "
               "happened",
               SITE(c.site), SITE(e->site));
    event_free(e);
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaEventRecord))
        return c.error;
    struct CUevent_st *e = event_of(event);
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!e || !s || e->device != s->device)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (s->capture)
        return call_end(&c, capture_record(s, e));
    struct work w = {.kind = WORK_EMPTY, .name = "cudaEventRecord", .site = c.site, .fail = c.late};
    cudaError_t error = stream_submit(s, &w);
    if (error)
        return call_end(&c, error);
    mark_unref(e->mark);
    e->mark = mark_ref(s->tail);
    e->captured = 0;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamWaitEvent))
        return c.error;
    struct CUevent_st *e = event_of(event);
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!e || !s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (flags)
        return call_end(&c, cudaErrorInvalidValue);
    if (s->capture || e->captured)
        return call_end(&c, capture_wait(s, e));
    struct work w = {
        .kind = WORK_EMPTY, .name = "cudaStreamWaitEvent", .site = c.site, .fail = c.late};
    return call_end(&c, e->mark ? stream_submit_after(s, &w, &e->mark, 1) : cudaSuccess);
}

/* The event that a host asks about, which a graph's is not to be asked. */
static cudaError_t host_event(cudaEvent_t event, struct CUevent_st **out)
{
    *out = event_of(event);
    if (!*out)
        return cudaErrorInvalidResourceHandle;
    return (*out)->captured ? cudaErrorCapturedEvent : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaEventSynchronize))
        return c.error;
    struct CUevent_st *e;
    cudaError_t status = host_event(event, &e);
    if (status)
        return call_end(&c, status);
    struct device *d = e->device;
    mark_wait(e->mark);
    return call_end(&c, d->sticky);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaEventQuery))
        return c.error;
    struct CUevent_st *e;
    cudaError_t status = host_event(event, &e);
    if (status)
        return call_end(&c, status);
    return call_end(&c, mark_query(e->device, e->mark));
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaEventElapsedTime))
        return c.error;
    struct CUevent_st *a = event_of(start), *b = event_of(end);
    if (!ms)
        return call_end(&c, cudaErrorInvalidValue);
    if (!a || !b || a->device != b->device || !a->mark || !b->mark ||
        ((a->flags | b->flags) & cudaEventDisableTiming))
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (!a->mark->done || !b->mark->done)
        return call_end(&c, cudaErrorNotReady);
    *ms = (float)((double)b->mark->end_ns - (double)a->mark->end_ns) * 1e-6f;
    return call_end(&c, cudaSuccess);
}
