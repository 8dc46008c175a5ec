/* Capture: work given to a stream becomes nodes of a graph. Rules: CUDA C++ Programming Guide 13.0,
 * "Stream capture"; which calls are unsafe meanwhile: cudaThreadExchangeStreamCaptureMode. */
#include "emu/graph.h"

#include <stdlib.h>

struct capture {
    uint64_t id;
    struct CUgraph_st *graph;
    struct CUstream_st *origin;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    bool spoilt;
    struct capture *next;
};
static struct capture *captures;
static __thread enum cudaStreamCaptureMode thread_mode;

/* Calls that might wait for, or order themselves by, what is being captured. */
static const bool is_unsafe[CALL_MAX] = {
    [CALL_cudaMalloc] = true,
    [CALL_cudaFree] = true,
    [CALL_cudaMallocHost] = true,
    [CALL_cudaHostAlloc] = true,
    [CALL_cudaFreeHost] = true,
    [CALL_cudaHostRegister] = true,
    [CALL_cudaHostUnregister] = true,
    [CALL_cudaIpcGetMemHandle] = true,
    [CALL_cudaIpcOpenMemHandle] = true,
    [CALL_cudaIpcCloseMemHandle] = true,
    [CALL_cudaDeviceEnablePeerAccess] = true,
    [CALL_cudaDeviceDisablePeerAccess] = true,
    [CALL_cudaMemcpy] = true,
    [CALL_cudaMemcpyPeer] = true,
    [CALL_cudaMemset] = true,
    [CALL_cudaDeviceSynchronize] = true,
    [CALL_cudaEventQuery] = true,
    [CALL_cudaEventSynchronize] = true,
};

static struct capture *capture_by_id(uint64_t id)
{
    struct capture *c = captures;
    while (c && c->id != id)
        c = c->next;
    return c;
}

static struct node_set front_of(const struct CUstream_st *s)
{
    return (struct node_set){s->front, s->n_front};
}

static void set_front(struct CUstream_st *s, struct node_set front)
{
    s->front = front.of;
    s->n_front = front.n;
}

static bool join(struct CUstream_st *s, const struct node_set *more)
{
    struct node_set front = front_of(s);
    bool ok = node_set_join(&front, more);
    set_front(s, front);
    return ok;
}

static cudaError_t spoil(struct capture *c, cudaError_t error)
{
    c->spoilt = true;
    return error;
}

/* ---- what other files ask ---- */

cudaError_t capture_add(struct CUstream_st *s, struct work *w)
{
    struct capture *c = s->capture;
    if (c->spoilt) {
        work_free(w);
        return cudaErrorStreamCaptureInvalidated;
    }
    struct node_set front = front_of(s);
    uint32_t i = graph_add(c->graph, s->device, w, &front, s->strand);
    if (i == UINT32_MAX)
        return spoil(c, cudaErrorMemoryAllocation);
    struct node_set last = {NULL, 0};
    if (!node_set_assign(&last, &(struct node_set){&i, 1}))
        return spoil(c, cudaErrorMemoryAllocation);
    free(s->front);
    set_front(s, last);
    return cudaSuccess;
}

cudaError_t capture_forbids(struct call *call)
{
    bool forbids = false;
    for (struct capture *c = captures; c && is_unsafe[call->id]; c = c->next) {
        bool mine = pthread_equal(c->thread, pthread_self());
        bool met = c->mode == cudaStreamCaptureModeGlobal ||
                   (c->mode == cudaStreamCaptureModeThreadLocal && mine);
        if (!met || thread_mode == cudaStreamCaptureModeRelaxed ||
            (thread_mode == cudaStreamCaptureModeThreadLocal && !mine))
            continue;
        c->spoilt = forbids = true;
    }
    return forbids ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t capture_spoil(struct CUstream_st *s)
{
    return s->capture ? spoil(s->capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t capture_meets_legacy(struct device *d)
{
    cudaError_t error = cudaSuccess;
    for (struct CUstream_st *s = d->streams; s; s = s->next)
        if (s->capture && !(s->flags & cudaStreamNonBlocking))
            error = spoil(s->capture, cudaErrorStreamCaptureImplicit);
    return error;
}

cudaError_t capture_record(struct CUstream_st *s, struct CUevent_st *e)
{
    if (s->capture->spoilt)
        return cudaErrorStreamCaptureInvalidated;
    struct node_set to = {e->front, e->n_front}, from = front_of(s);
    bool ok = node_set_assign(&to, &from);
    e->front = to.of;
    e->n_front = to.n;
    e->captured = s->capture->id;
    return ok ? cudaSuccess : spoil(s->capture, cudaErrorMemoryAllocation);
}

cudaError_t capture_wait(struct CUstream_st *s, struct CUevent_st *e)
{
    struct capture *to = s->capture, *from = e->captured ? capture_by_id(e->captured) : NULL;
    if (e->captured && !from)
        return cudaErrorCapturedEvent; /* its capture is over */
    if (to && to->spoilt)
        return cudaErrorStreamCaptureInvalidated;
    if (!from) /* never recorded, or before and outside */
        return e->mark ? spoil(to, cudaErrorStreamCaptureIsolation) : cudaSuccess;
    if (s == &s->device->legacy)
        return spoil(from, cudaErrorStreamCaptureImplicit);
    if (to && to != from) {
        spoil(from, cudaSuccess);
        return spoil(to, cudaErrorStreamCaptureMerge);
    }
    if (!to) {
        s->capture = from;
        s->strand = from->graph->n_strands++;
    }
    struct node_set more = {e->front, e->n_front};
    return join(s, &more) ? cudaSuccess : spoil(from, cudaErrorMemoryAllocation);
}

/* ---- begin and end ---- */

static void leave(struct CUstream_st *s)
{
    free(s->front);
    set_front(s, (struct node_set){NULL, 0});
    s->capture = NULL;
}

static void capture_free(struct capture *c)
{
    struct capture **at = &captures;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        for (struct CUstream_st *s = rt.devices[i].streams; s; s = s->next)
            if (s->capture == c)
                leave(s);
    if (c->graph)
        graph_free(c->graph);
    free(c);
}

void capture_drop_stream(struct CUstream_st *s)
{
    struct capture *c = s->capture;
    if (!c)
        return;
    leave(s);
    if (c->origin == s)
        capture_free(c);
    else
        c->spoilt = true;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamBeginCapture))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (s == &c.device->legacy)
        return call_end(&c, cudaErrorStreamCaptureUnsupported);
    if ((unsigned)mode > cudaStreamCaptureModeRelaxed)
        return call_end(&c, cudaErrorInvalidValue);
    if (s->capture)
        return call_end(&c, cudaErrorIllegalState);
    struct capture *n = calloc(1, sizeof *n);
    struct CUgraph_st *g = graph_new(c.site);
    if (!n || !g) {
        free(n);
        free(g);
        return call_end(&c, cudaErrorMemoryAllocation);
    }
    *n = (struct capture){.id = ++rt.serial,
                          .graph = g,
                          .origin = s,
                          .mode = mode,
                          .thread = pthread_self(),
                          .next = captures};
    captures = n;
    g->n_strands = 1;
    s->capture = n;
    s->strand = 0;
    return call_end(&c, cudaSuccess);
}

/* Do all nodes come before the origin's next? */
static bool is_joined(const struct capture *c)
{
    const struct CUgraph_st *g = c->graph;
    bool *seen = calloc(g->n ? g->n : 1, sizeof *seen), all = true;
    if (!seen)
        return false;
    for (uint32_t i = 0; i < c->origin->n_front; i++)
        seen[c->origin->front[i]] = true;
    for (uint32_t i = g->n; i-- > 0;) {
        all = all && seen[i];
        for (uint32_t k = 0; seen[i] && k < g->nodes[i]->before.n; k++)
            seen[g->nodes[i]->before.of[k]] = true;
    }
    free(seen);
    return all;
}

/* An end that fails is an end. */
static cudaError_t end_badly(cudaStream_t stream, cudaError_t error)
{
    pthread_mutex_lock(&rt.lock);
    for (struct capture *c = captures; c; c = c->next)
        if (c->origin == stream) {
            capture_free(c);
            break;
        }
    pthread_mutex_unlock(&rt.lock);
    return error;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamEndCapture))
        return end_badly(stream, c.error);
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s || !graph)
        return call_end(&c, s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    struct capture *of = s->capture;
    if (!of)
        return call_end(&c, cudaErrorIllegalState);
    if (of->origin != s)
        return call_end(&c, spoil(of, cudaErrorStreamCaptureUnmatched));
    if (of->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(of->thread, pthread_self()))
        return call_end(&c, spoil(of, cudaErrorStreamCaptureWrongThread));
    cudaError_t error = cudaSuccess;
    if (of->spoilt)
        error = cudaErrorStreamCaptureInvalidated;
    else if (!is_joined(of))
        error = cudaErrorStreamCaptureUnjoined;
    *graph = NULL;
    if (!error) {
        *graph = of->graph;
        graph_publish(of->graph);
        of->graph = NULL;
    }
    capture_free(of);
    return call_end(&c, error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaStreamIsCapturing))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s || !status)
        return call_end(&c, s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle);
    if (s == &c.device->legacy) {
        *status = cudaStreamCaptureStatusNone;
        return call_end(&c, capture_meets_legacy(c.device));
    }
    *status = !s->capture          ? cudaStreamCaptureStatusNone
              : s->capture->spoilt ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaThreadExchangeStreamCaptureMode))
        return c.error;
    if (!mode || (unsigned)*mode > cudaStreamCaptureModeRelaxed)
        return call_end(&c, cudaErrorInvalidValue);
    enum cudaStreamCaptureMode was = thread_mode;
    thread_mode = *mode;
    *mode = was;
    return call_end(&c, cudaSuccess);
}
