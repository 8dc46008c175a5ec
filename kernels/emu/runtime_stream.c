/* Streams and events: what orders operations. */
#include "emu/runtime.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- handles ---- */

struct CUstream_st *stream_of(struct device *current, cudaStream_t handle)
{
    if (!handle || handle == cudaStreamLegacy)
        return &current->legacy;
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        for (struct CUstream_st *s = rt.devices[i].streams; s; s = s->next)
            if (s == handle)
                return s;
    return NULL;
}

static bool is_legacy(const struct CUstream_st *s)
{
    return s == &s->device->legacy;
}

/* ---- submission ---- */

/* Its own last, and by the rules of the legacy stream those of others. */
struct mark **stream_order(struct CUstream_st *s, uint32_t *n, uint32_t more)
{
    struct device *d = s->device;
    uint32_t max = 2 + more; /* a place for each */
    for (struct CUstream_st *o = d->streams; o; o = o->next)
        max++;
    struct mark **deps = calloc(max, sizeof *deps);
    *n = 0;
    if (!deps)
        return NULL;
    deps[(*n)++] = s->tail;
    if (!is_legacy(s)) {
        if (!(s->flags & cudaStreamNonBlocking))
            deps[(*n)++] = d->legacy.tail;
        return deps;
    }
    for (struct CUstream_st *o = d->streams; o; o = o->next)
        if (!(o->flags & cudaStreamNonBlocking))
            deps[(*n)++] = o->tail;
    return deps;
}

cudaError_t stream_submit_after(struct CUstream_st *s, struct work *w, struct mark **more,
                                uint32_t n_more)
{
    uint32_t n;
    struct mark **deps = stream_order(s, &n, n_more);
    if (!deps) {
        work_free(w);
        return cudaErrorMemoryAllocation;
    }
    for (uint32_t i = 0; i < n_more; i++)
        deps[n++] = more[i];
    struct mark *m = op_submit(s->device, w, deps, n, s->slot);
    free(deps);
    if (!m)
        return cudaErrorMemoryAllocation;
    mark_unref(s->tail);
    s->tail = m;
    mark_hurry(s->device, m);
    return cudaSuccess;
}

cudaError_t stream_submit(struct CUstream_st *s, struct work *w)
{
    if (s->capture)
        return capture_add(s, w);
    cudaError_t error = is_legacy(s) ? capture_meets_legacy(s->device) : cudaSuccess;
    if (error) {
        work_free(w);
        return error;
    }
    return stream_submit_after(s, w, NULL, 0);
}

void stream_wait(struct CUstream_st *s)
{
    if (is_legacy(s)) /* those of others that its next operation would follow */
        for (struct CUstream_st *o = s->device->streams; o; o = o->next)
            if (!(o->flags & cudaStreamNonBlocking))
                mark_wait(o->tail);
    mark_wait(s->tail);
}

void device_drain(struct device *d)
{
    struct clock all = d->all;
    for (struct op *op = d->first; op; op = op->next)
        mark_demand(op->mark);
    while (d->first || d->running)
        pthread_cond_wait(&rt.changed, &rt.lock);
    clock_join(&rt.host, &all);
}

/* ---- streams ---- */

static cudaError_t create(enum call_id id, cudaStream_t *out, unsigned flags)
{
    struct call c;
    if (!call_begin(&c, id))
        return c.error;
    if (!out || flags > cudaStreamNonBlocking)
        return call_end(&c, cudaErrorInvalidValue);
    struct CUstream_st *s = calloc(1, sizeof *s);
    if (!s)
        return call_end(&c, cudaErrorMemoryAllocation);
    s->device = c.device;
    s->flags = flags;
    s->site = c.site;
    s->slot = slot_take();
    s->next = c.device->streams;
    c.device->streams = s;
    *out = s;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return create(CALL_cudaStreamCreate, stream, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    return create(CALL_cudaStreamCreateWithFlags, stream, flags);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority)
{
    (void)priority; /* all run alike here */
    return create(CALL_cudaStreamCreateWithPriority, stream, flags);
}

static void stream_free(struct CUstream_st *s)
{
    struct CUstream_st **at = &s->device->streams;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    capture_drop_stream(s);
    slot_give(s->slot);
    mark_unref(s->tail);
    free(s->front);
    free(s);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamDestroy))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s || is_legacy(s))
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (!mark_waited(s->tail))
        report(c.device,
               "cudaStreamDestroy at %s:%d: of a stream (made at %s:%d) whose work was "
               "not waited for",
               SITE(c.site), SITE(s->site));
    stream_free(s);
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamSynchronize))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    cudaError_t error = capture_spoil(s);
    if (error)
        return call_end(&c, error);
    struct device *d = s->device;
    stream_wait(s);
    return call_end(&c, d->sticky);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamQuery))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    cudaError_t error = capture_spoil(s);
    for (struct CUstream_st *o = s->device->streams; is_legacy(s) && o && !error; o = o->next)
        if (!(o->flags & cudaStreamNonBlocking))
            error = mark_query(s->device, o->tail);
    if (!error)
        error = mark_query(s->device, s->tail);
    return call_end(&c, error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaLaunchHostFunc))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (!fn)
        return call_end(&c, cudaErrorInvalidValue);
    struct work w = {.kind = WORK_HOST,
                     .name = "cudaLaunchHostFunc",
                     .site = c.site,
                     .fail = c.late,
                     .host = fn,
                     .user = user};
    return call_end(&c, stream_submit(s, &w));
}

/* ---- the end ---- */

uint32_t streams_close(struct device *d, void (*leak)(const char *))
{
    uint32_t n = 0;
    char text[200];
    for (; d->streams; n++) {
        snprintf(text, sizeof text, "stream made at %s:%d", SITE(d->streams->site));
        if (leak)
            leak(text);
        stream_free(d->streams);
    }
    for (; d->events; n++) {
        snprintf(text, sizeof text, "event made at %s:%d", SITE(d->events->site));
        if (leak)
            leak(text);
        event_free(d->events);
    }
    return n;
}

void device_close(struct device *d, void (*leak)(const char *))
{
    nccl_abandon(d);
    device_drain(d);
    streams_close(d, leak);
    memory_close(d, leak);
    d->stop = true;
    pthread_cond_broadcast(&rt.changed);
    if (d->has_thread) {
        pthread_mutex_unlock(&rt.lock);
        pthread_join(d->thread, NULL);
        pthread_mutex_lock(&rt.lock);
    }
    slot_give(d->legacy.slot);
    mark_unref(d->legacy.tail);
    *d = (struct device){.index = d->index, .file = -1};
}
