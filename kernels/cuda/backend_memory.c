/* The CUDA backend's memory: taking and giving back, copies, the one wait. */
#include <stdlib.h>
#include <string.h>

#include "cuda/backend.h"

void cuda_op_memory(struct sl_backend *base, uint64_t *total_bytes, uint64_t *free_bytes)
{
    struct cuda_backend *b = cuda_of(base);
    size_t n_free = 0, total = 0;
    if (cuda_enter(b))
        cuda_ok(b, cudaMemGetInfo(&n_free, &total), "cudaMemGetInfo");
    *total_bytes = total;
    *free_bytes = n_free;
}

/* No memory is no failure of the device: it can go on with what it has. */
enum sl_status cuda_take(struct cuda_backend *b, size_t bytes, void **out, struct sl_err *err)
{
    *out = NULL;
    if (!cuda_enter(b)) {
        *err = b->failed;
        return err->status;
    }
    cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return sl_fail(err, SL_NO_MEMORY, "cuda: device %d has no %zu bytes", b->device, bytes);
    }
    if (cuda_ok(b, e, "cudaMalloc"))
        return SL_OK;
    *err = b->failed;
    return err->status;
}

void cuda_settle(struct cuda_backend *b)
{
    cuda_enter(b);
    cuda_ok(b, cudaStreamSynchronize(b->stream), "cudaStreamSynchronize");
}

/* Waits for what is in flight. Graphs may point there. */
void cuda_give(struct cuda_backend *b, void *p)
{
    if (!p)
        return;
    cuda_settle(b);
    cuda_graphs_drop(b);
    cuda_ok(b, cudaFree(p), "cudaFree");
}

void *cuda_op_alloc(struct sl_backend *base, size_t bytes)
{
    struct cuda_backend *b = cuda_of(base);
    struct sl_err err;
    void *p;
    if (cuda_take(b, bytes, &p, &err))
        return NULL;
    if (cuda_ok(b, cudaMemsetAsync(p, 0, bytes, b->stream), "cudaMemsetAsync"))
        return p;
    cudaFree(p);
    return NULL;
}

void cuda_op_free(struct sl_backend *b, void *p, size_t bytes)
{
    (void)bytes;
    cuda_give(cuda_of(b), p);
}

void *cuda_op_mirror(struct sl_backend *base, void *p, size_t bytes)
{
    struct cuda_backend *b = cuda_of(base);
    void *host = NULL;
    (void)p;
    if (!cuda_enter(b))
        return NULL;
    if (cudaHostAlloc(&host, bytes ? bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    memset(host, 0, bytes);
    return host;
}

void cuda_op_mirror_free(struct sl_backend *base, void *mirror, void *p, size_t bytes)
{
    struct cuda_backend *b = cuda_of(base);
    (void)p;
    (void)bytes;
    if (!mirror)
        return;
    cuda_settle(b);
    cuda_ok(b, cudaFreeHost(mirror), "cudaFreeHost");
}

void cuda_op_write(struct sl_backend *base, void *to, const void *host, size_t bytes)
{
    struct cuda_backend *b = cuda_of(base);
    if (cuda_enter(b))
        cuda_ok(b, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, b->stream),
                "cudaMemcpyAsync to the device");
}

void cuda_op_read(struct sl_backend *base, void *host, const void *from, size_t bytes)
{
    struct cuda_backend *b = cuda_of(base);
    if (cuda_enter(b))
        cuda_ok(b, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, b->stream),
                "cudaMemcpyAsync to the host");
}

enum sl_status cuda_op_finish(struct sl_backend *base, struct sl_err *err)
{
    struct cuda_backend *b = cuda_of(base);
    b->n_staged = 0;
    if (cuda_enter(b) && cuda_ok(b, cudaStreamSynchronize(b->stream), "step"))
        return SL_OK;
    if (err)
        *err = b->failed;
    return b->failed.status;
}

/* From any thread: nothing of the backend is written. */
static enum sl_status copy_page(struct cuda_backend *b, void *to, const void *from, size_t bytes,
                                enum cudaMemcpyKind kind, struct sl_err *err)
{
    enum sl_status s = cuda_status(b->device, cudaSetDevice(b->device), "cudaSetDevice", err);
    if (!s)
        s = cuda_status(b->device, cudaMemcpyAsync(to, from, bytes, kind, b->pages),
                        "copy of a KV page", err);
    if (!s)
        s = cuda_status(b->device, cudaStreamSynchronize(b->pages), "copy of a KV page", err);
    return s;
}

enum sl_status cuda_op_page_out(struct sl_backend *b, void *host, const void *page, size_t bytes,
                                struct sl_err *err)
{
    return copy_page(cuda_of(b), host, page, bytes, cudaMemcpyDeviceToHost, err);
}

enum sl_status cuda_op_page_in(struct sl_backend *b, void *page, const void *host, size_t bytes,
                               struct sl_err *err)
{
    return copy_page(cuda_of(b), page, host, bytes, cudaMemcpyHostToDevice, err);
}
