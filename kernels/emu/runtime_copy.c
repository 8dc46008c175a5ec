/* Copies, fills and launches: what is enqueued. Which of them wait for what follows "API
 * synchronization behavior" of the CUDA Runtime API. */
#include "emu/runtime.h"

#include <stdlib.h>
#include <string.h>

#define STAGED_MAX ((size_t)64 << 10) /* pageable bytes that a call takes with it */

enum side { SIDE_PAGEABLE, SIDE_PINNED, SIDE_DEVICE, SIDE_BAD };

static size_t span_bytes(const struct span *s)
{
    return s->rows ? (s->rows - 1) * s->pitch + s->width : 0;
}

static enum side side_of(struct call *c, const struct span *s)
{
    char text[160];
    const struct memory *m = memory_at((const void *)s->base);
    if (!m)
        return s->base ? SIDE_PAGEABLE : SIDE_BAD;
    if (m->freed) {
        memory_describe(m, text, sizeof text);
        report(c->device, "%s at %s:%d: uses %s after its free", call_name(c->id), SITE(c->site),
               text);
        return SIDE_BAD;
    }
    if (!memory_covers(m, (const void *)s->base, span_bytes(s)))
        return SIDE_BAD;
    return memory_is_device(m) ? SIDE_DEVICE : SIDE_PINNED;
}

static bool kind_fits(enum cudaMemcpyKind kind, enum side to, enum side from)
{
    static const struct {
        bool to_device, from_device;
    } of[] = {[cudaMemcpyHostToHost] = {false, false},
              [cudaMemcpyHostToDevice] = {true, false},
              [cudaMemcpyDeviceToHost] = {false, true},
              [cudaMemcpyDeviceToDevice] = {true, true}};
    if (kind == cudaMemcpyDefault)
        return true;
    return (unsigned)kind < cudaMemcpyDefault && of[kind].to_device == (to == SIDE_DEVICE) &&
           of[kind].from_device == (from == SIDE_DEVICE);
}

/* The source as it is now. */
static bool stage(struct work *w)
{
    const struct span *from = &w->copy.from;
    uint8_t *p = w->copy.staged = malloc(from->width * from->rows);
    for (size_t i = 0; p && i < from->rows; i++)
        memcpy(p + i * from->width, (const void *)(from->base + i * from->pitch), from->width);
    return p;
}

/* Until it has happened; the program may not rely on it. */
static void await_quietly(struct mark *m)
{
    mark_ref(m);
    mark_until_done(m);
    mark_unref(m);
}

/* `waits`: a call without Async in its name. */
static cudaError_t copy(struct call *c, struct CUstream_st *s, struct span to, struct span from,
                        enum cudaMemcpyKind kind, bool waits)
{
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (!to.width || !to.rows)
        return cudaSuccess;
    enum side a = side_of(c, &to), b = side_of(c, &from);
    if (a == SIDE_BAD || b == SIDE_BAD || !kind_fits(kind, a, b))
        return cudaErrorInvalidValue;
    bool pageable = a == SIDE_PAGEABLE || b == SIDE_PAGEABLE;
    if (s->capture && pageable)
        return capture_spoil(s);
    struct work w = {.kind = WORK_COPY,
                     .name = call_name(c->id),
                     .site = c->site,
                     .fail = c->late,
                     .copy = {.to = to, .from = from}};
    bool staged = b == SIDE_PAGEABLE && to.width * to.rows <= STAGED_MAX;
    if (staged && !stage(&w))
        return cudaErrorMemoryAllocation;
    if (!s->capture)
        check_host_sides(&w);
    struct device *d = s->device;
    cudaError_t error = stream_submit(s, &w);
    if (error || s->capture)
        return error;
    bool over = a == SIDE_PAGEABLE || (waits && !(a == SIDE_DEVICE && b != SIDE_PINNED));
    if (over)
        mark_wait(s->tail);
    else if (b == SIDE_PAGEABLE && !staged)
        await_quietly(s->tail);
    return over ? d->sticky : cudaSuccess;
}

static struct span row(const void *p, size_t n)
{
    return (struct span){(uintptr_t)p, n, n, 1};
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemcpy))
        return c.error;
    return call_end(&c, copy(&c, &c.device->legacy, row(to, n), row(from, n), kind, true));
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemcpyAsync))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    return call_end(&c, copy(&c, s, row(to, n), row(from, n), kind, false));
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemcpy2DAsync))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (width > to_pitch || width > from_pitch ||
        (height && (to_pitch > SIZE_MAX / height || from_pitch > SIZE_MAX / height)))
        return call_end(&c, cudaErrorInvalidPitchValue);
    struct span a = {(uintptr_t)to, width, to_pitch, height};
    struct span b = {(uintptr_t)from, width, from_pitch, height};
    return call_end(&c, copy(&c, s, a, b, kind, false));
}

static bool lies_on(const void *p, int device)
{
    const struct memory *m = memory_at(p);
    return m && m->device && m->device->index == device;
}

static cudaError_t copy_peer(struct call *c, struct CUstream_st *s, void *to, int to_device,
                             const void *from, int from_device, size_t n)
{
    int max = (int)rt.config.n_devices;
    if (to_device < 0 || to_device >= max || from_device < 0 || from_device >= max)
        return cudaErrorInvalidDevice;
    if (!lies_on(to, to_device) || !lies_on(from, from_device))
        return cudaErrorInvalidValue;
    return copy(c, s, row(to, n), row(from, n), cudaMemcpyDeviceToDevice, false);
}

cudaError_t cudaMemcpyPeer(void *to, int to_device, const void *from, int from_device, size_t n)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemcpyPeer))
        return c.error;
    struct CUstream_st *s = &c.device->legacy;
    return call_end(&c, copy_peer(&c, s, to, to_device, from, from_device, n));
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t n, cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemcpyPeerAsync))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    return call_end(&c, copy_peer(&c, s, to, to_device, from, from_device, n));
}

static cudaError_t set(struct call *c, struct CUstream_st *s, void *p, int value, size_t n)
{
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (!n)
        return cudaSuccess;
    struct span to = row(p, n);
    enum side side = side_of(c, &to);
    if (side == SIDE_BAD || side == SIDE_PAGEABLE)
        return cudaErrorInvalidValue;
    struct work w = {.kind = WORK_SET,
                     .name = call_name(c->id),
                     .site = c->site,
                     .fail = c->late,
                     .copy = {.to = to},
                     .value = (uint8_t)value};
    return stream_submit(s, &w);
}

cudaError_t cudaMemset(void *p, int value, size_t n)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemset))
        return c.error;
    return call_end(&c, set(&c, &c.device->legacy, p, value, n));
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemsetAsync))
        return c.error;
    return call_end(&c, set(&c, stream_of(c.device, stream), p, value, n));
}

/* ---- launches ---- */

enum { FUNCTIONS_MAX = 512 };
#define SHARED_DEFAULT ((size_t)48 << 10)

static struct {
    const void *func;
    size_t shared_max;
} functions[FUNCTIONS_MAX];
static uint32_t n_functions;

static size_t shared_max_of(const void *func)
{
    for (uint32_t i = 0; i < n_functions; i++)
        if (functions[i].func == func)
            return functions[i].shared_max;
    return SHARED_DEFAULT;
}

cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaFuncSetAttribute))
        return c.error;
    if (!func)
        return call_end(&c, cudaErrorInvalidDeviceFunction);
    if (attr == cudaFuncAttributePreferredSharedMemoryCarveout)
        return call_end(&c, cudaSuccess);
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        (size_t)value > rt.config.shared_max)
        return call_end(&c, cudaErrorInvalidValue);
    uint32_t i = 0;
    while (i < n_functions && functions[i].func != func)
        i++;
    if (i == FUNCTIONS_MAX)
        return call_end(&c, cudaErrorMemoryAllocation);
    n_functions += i == n_functions;
    functions[i].func = func;
    functions[i].shared_max = (size_t)value;
    return call_end(&c, cudaSuccess);
}

static cudaError_t launch_check(const void *args, size_t bytes, dim3 g, dim3 b, size_t smem)
{
    const void *func = NULL;
    if (bytes >= sizeof func) /* emu_call begins with the kernel */
        memcpy(&func, args, sizeof func);
    if (!g.x || !g.y || !g.z || g.x > INT32_MAX || g.y > 65535 || g.z > 65535 || !b.x || !b.y ||
        !b.z || b.x > EMU_BLOCK_MAX || b.y > EMU_BLOCK_MAX || b.z > 64 ||
        (uint64_t)b.x * b.y * b.z > EMU_BLOCK_MAX)
        return cudaErrorInvalidConfiguration;
    return smem > shared_max_of(func) ? cudaErrorInvalidValue : cudaSuccess;
}

static cudaError_t enqueue(struct call *c, cudaStream_t stream, const char *name,
                           void (*run)(void *), const void *args, size_t bytes, dim3 g, dim3 b,
                           size_t smem)
{
    struct CUstream_st *s = stream_of(c->device, stream);
    if (!s || s->device != c->device)
        return cudaErrorInvalidResourceHandle;
    cudaError_t error = launch_check(args, bytes, g, b, smem);
    if (error)
        return error;
    struct work w = {.kind = WORK_KERNEL, .name = name, .site = c->site, .fail = c->late};
    w.args = args_copy(args, bytes);
    if (!w.args)
        return cudaErrorMemoryAllocation;
    w.args_bytes = bytes;
    w.launch = (struct emu_launch){
        .name = name, .run = run, .grid = {g.x, g.y, g.z}, .block = {b.x, b.y, b.z}, .smem = smem};
    return stream_submit(s, &w);
}

/* As on a device, where the launch returns nothing: what comes back is the thread's last error,
 * whichever call it was of. */
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem);
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem)
{
    struct call c;
    if (call_begin(&c, CALL_emu_enqueue))
        call_end(&c, enqueue(&c, stream, name, run, args, bytes, grid, block, smem));
    return last_error_take();
}
