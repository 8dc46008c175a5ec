/* Loading: weights stream from the file's mapping through pinned memory to the device, where they
 * are repacked, one piece while the next is copied; and KV caches. */
#include <sluice/base/mem.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "cuda/backend.h"
#include "num.h"

#define LOAD_BYTES     ((size_t)8 << 20)  /* of a piece, at most */
#define LOAD_BYTES_MIN ((size_t)64 << 10) /* of the memory for it */
#define COPY_TASK_ROWS 64

/* Behind the packed weight: where slices begin, then the node of all slices, then the nodes that
 * partial sums are of. */
#define BORDER_BYTES ((SL_SLICES_MAX + 1) * sizeof(uint32_t))
#define NODES_BYTES  ((SL_SLICES_MAX + 1) * sizeof(struct sl_tree_node))
#define TAIL_BYTES   1024
_Static_assert(BORDER_BYTES + 16 + NODES_BYTES <= TAIL_BYTES, "they fit");

static size_t tail_at(enum sl_dtype dtype, uint32_t n, uint32_t k)
{
    return (cuda_pack_bytes(dtype, n, k) + 255) / 256 * 256;
}

/* ---- pieces ---- */

static bool slot_open(struct cuda_backend *b, struct load_slot *s, size_t bytes)
{
    void *pinned = NULL, *dev = NULL;
    cuda_ok(b, cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    if (!b->failed.status)
        cuda_ok(b, cudaMalloc(&dev, bytes), "cudaMalloc");
    if (!b->failed.status)
        cuda_ok(b, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming), "cudaEventCreate");
    s->pinned = pinned;
    s->dev = dev;
    return !b->failed.status;
}

/* Slots for a weight whose sources have so many bytes. */
static bool load_open(struct cuda_backend *b, size_t bytes, struct sl_err *err)
{
    size_t want = LOAD_BYTES_MIN;
    while (want < bytes && want < LOAD_BYTES)
        want *= 2;
    if (want > b->load_bytes) {
        cuda_load_close(b);
        b->load_bytes = want;
        for (uint32_t i = 0; i < N_LOAD_SLOTS && cuda_enter(b); i++)
            slot_open(b, &b->load[i], want);
    }
    if (b->failed.status)
        *err = b->failed;
    return !b->failed.status;
}

void cuda_load_close(struct cuda_backend *b)
{
    if (b->load_bytes)
        cuda_settle(b);
    for (uint32_t i = 0; i < N_LOAD_SLOTS; i++) {
        struct load_slot *s = &b->load[i];
        if (s->done)
            cuda_ok(b, cudaEventDestroy(s->done), "cudaEventDestroy");
        if (s->dev)
            cuda_ok(b, cudaFree(s->dev), "cudaFree");
        if (s->pinned)
            cuda_ok(b, cudaFreeHost(s->pinned), "cudaFreeHost");
        *s = (struct load_slot){0};
    }
    b->load_bytes = 0;
}

struct gather_job {
    const struct sl_weight_src *src;
    uint32_t first, n;
    size_t row_bytes; /* packed together */
    uint8_t *to;
};

static void gather_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct gather_job *j = ctx;
    size_t stride = sl_weight_src_row_bytes(j->src);
    uint32_t end = min_u32((task + 1) * COPY_TASK_ROWS, j->n);
    const uint8_t *from = (const uint8_t *)j->src->data + j->first * stride;
    for (uint32_t r = task * COPY_TASK_ROWS; r < end; r++)
        memcpy(j->to + r * j->row_bytes, from + r * stride, j->row_bytes);
}

/* Rows [first, first + n) of a source become rows from `row` on of the weight. */
static bool load_piece(struct cuda_backend *b, const struct sl_weight_src *src, uint32_t first,
                       uint32_t n, const struct sl_weight *w, uint32_t row, void *data)
{
    struct load_slot *s = &b->load[b->load_at++ % N_LOAD_SLOTS];
    struct gather_job job = {src, first, n, sl_dtype_bytes(src->dtype, src->k), s->pinned};
    size_t bytes = n * job.row_bytes;
    if (s->in_flight && !cuda_ok(b, cudaEventSynchronize(s->done), "loading weights"))
        return false;
    sl_team_run(b->team, (n + COPY_TASK_ROWS - 1) / COPY_TASK_ROWS, gather_task, &job);
    s->in_flight =
        cuda_ok(b, cudaMemcpyAsync(s->dev, s->pinned, bytes, cudaMemcpyHostToDevice, b->stream),
                "cudaMemcpyAsync of weights") &&
        cuda_ok(b, cuda_pack(b->stream, w->dtype, w->n, w->k, row, n, s->dev, job.row_bytes, data),
                "cuda_pack") &&
        cuda_ok(b, cudaEventRecord(s->done, b->stream), "cudaEventRecord");
    return s->in_flight;
}

static bool load_rows(struct cuda_backend *b, const struct sl_weight_src *src, uint32_t n_src,
                      const struct sl_weight *w, void *data)
{
    size_t fit = b->load_bytes / sl_dtype_bytes(src->dtype, src->k);
    uint32_t step = fit > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)fit, row = 0;
    step = step > 16 ? step / 16 * 16 : step;
    for (uint32_t i = 0; i < n_src; i++)
        for (uint32_t first = 0; first < src[i].n; first += step) {
            uint32_t n = min_u32(step, src[i].n - first);
            if (!load_piece(b, &src[i], first, n, w, row, data))
                return false;
            row += n;
        }
    return true;
}

/* ---- weights ---- */

/* Slices and their subtrees to the device, in one copy. */
static bool write_tail(struct cuda_backend *b, const struct sl_weight *w, uint8_t *data,
                       struct cuda_packed *out)
{
    const struct sl_slices *s = &w->slices;
    uint8_t tail[TAIL_BYTES] = {0}, *dev = data + tail_at(w->dtype, w->n, w->k);
    struct sl_tree_node nodes[SL_SLICES_MAX + 1] = {{0, s->n}};
    uint32_t n_parts = sl_tree_cut(s->first, s->n, s->total, nodes + 1);
    for (uint32_t i = 0; i < n_parts; i++)
        nodes[1 + i].first -= s->first;
    size_t nodes_at = (BORDER_BYTES + 15) / 16 * 16;
    memcpy(tail, s->border, (s->n + 1) * sizeof *s->border);
    memcpy(tail + nodes_at, nodes, (1 + n_parts) * sizeof *nodes);
    const struct sl_tree_node *node = (const void *)(dev + nodes_at);
    *out = (struct cuda_packed){.w = {.dtype = w->dtype,
                                      .n = w->n,
                                      .k = w->k,
                                      .data = data,
                                      .border = (const uint32_t *)(const void *)dev,
                                      .n_slices = s->n},
                                .all = {node, 1},
                                .parts = {node + 1, n_parts}};
    /* From pageable memory, which is read before the call returns. */
    return cuda_ok(b, cudaMemcpyAsync(dev, tail, sizeof tail, cudaMemcpyHostToDevice, b->stream),
                   "cudaMemcpyAsync of slices");
}

/* So that norms know what their rows are for. */
static void note_form(struct cuda_backend *b, const struct sl_weight *w)
{
    uint32_t i = 0;
    while (i < b->n_forms && b->forms[i].k != w->k)
        i++;
    if (i == ACT_FORMS_MAX)
        return;
    b->n_forms += i == b->n_forms;
    b->forms[i].k = w->k;
    b->forms[i].forms |= 1u << cuda_form(w->dtype);
}

enum sl_status cuda_op_weight_pack(struct sl_backend *base, const struct sl_weight_src *src,
                                   uint32_t n_src, const struct sl_slices *slices,
                                   struct sl_weight *out, struct sl_err *err)
{
    struct cuda_backend *b = cuda_of(base);
    struct sl_weight w;
    void *data;
    enum sl_status s = sl_weight_check(src, n_src, slices, &w, err);
    if (!s && sl_dtype_bytes(src->dtype, src->k) > LOAD_BYTES)
        s = sl_fail(err, SL_UNSUPPORTED, "weight: rows of %u inputs, at most %zu bytes fit", src->k,
                    LOAD_BYTES);
    if (s)
        return s;
    w.bytes = cuda_op_weight_bytes(base, src, n_src);
    struct cuda_packed *p = calloc(1, sizeof *p);
    if (!p)
        return sl_fail(err, SL_NO_MEMORY, "weight: no memory");
    if (!load_open(b, (size_t)w.n * sl_dtype_bytes(w.dtype, w.k), err) ||
        cuda_take(b, w.bytes, &data, err)) {
        free(p);
        return SL_NO_MEMORY;
    }
    if (!write_tail(b, &w, data, p) || !load_rows(b, src, n_src, &w, data)) {
        *err = b->failed;
        cuda_settle(b);
        cudaFree(data);
        free(p);
        return err->status;
    }
    note_form(b, &w);
    w.data = p;
    *out = w;
    return SL_OK;
}

size_t cuda_op_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src, uint32_t n_src)
{
    (void)b;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_src; i++)
        n += src[i].n;
    return tail_at(src->dtype, n, src->k) + TAIL_BYTES;
}

void cuda_op_weight_free(struct sl_backend *b, struct sl_weight *w)
{
    struct cuda_packed *p = w->data;
    if (p) {
        cuda_give(cuda_of(b), (void *)(uintptr_t)p->w.data);
        free(p);
    }
    *w = (struct sl_weight){0};
}

/* ---- KV ---- */

/* Not zeroed: nothing reads a position before it was written. */
enum sl_status cuda_op_kv_open(struct sl_backend *base, const struct sl_kv_config *cfg,
                               struct sl_kv *out, struct sl_err *err)
{
    struct cuda_backend *b = cuda_of(base);
    struct sl_kv kv;
    uint32_t size = cfg->page_size ? cfg->page_size : 1;
    enum sl_status s = sl_kv_plan(cfg, (PAD_MAX + size - 1) / size, &kv, err);
    if (s || (s = cuda_take(b, kv.bytes, &kv.data, err)))
        return s;
    *out = kv;
    return SL_OK;
}

void cuda_op_kv_close(struct sl_backend *b, struct sl_kv *kv)
{
    cuda_give(cuda_of(b), kv->data);
    *kv = (struct sl_kv){0};
}
