/* The linear op's driver: packs weights in parallel, quantises activations once per row, cuts the
 * work into tasks. Decode splits the outputs over the team, prefill rows and outputs. How the work
 * is cut never shows in the result: every output is one chain per slice, computed by one task. */
#include <sluice/base/mem.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "cpu/cpu.h"
#include "num.h"

#define CHUNK_BYTES     ((size_t)1 << 20) /* quantised activations alive at once, at most */
#define CHUNK_ROWS      512
#define TASK_ROWS       64                /* activation rows of a task: their quants stay in L2 */
#define TASK_MACS       ((size_t)1 << 19) /* of a task, about: some microseconds */
#define TASK_WEIGHTS    32768             /* bytes of weights of a decode task, about */
#define PACK_TASK_BYTES ((size_t)1 << 18)

enum sl_status sl_scratch_reserve(struct scratch *s, size_t bytes, struct sl_err *err)
{
    if (bytes <= s->bytes)
        return SL_OK;
    uint8_t *data = sl_pages_alloc(bytes);
    if (!data)
        return sl_fail(err, SL_NO_MEMORY, "cpu: %zu bytes of scratch refused", bytes);
    if (s->data)
        sl_pages_free(s->data, s->bytes);
    *s = (struct scratch){data, bytes};
    return SL_OK;
}

static bool is_quantised(enum sl_dtype type)
{
    return sl_dtype_row(type)->block_elems > 1;
}

static uint32_t group_rows(const struct cpu_backend *b, enum sl_dtype type)
{
    return is_quantised(type) ? b->isa->q_rows : SL_FLOAT_ROWS;
}

/* Activation rows per pass: bounded by the scratch, whole tiles. */
static uint32_t chunk_rows(const struct cpu_backend *b, uint32_t k)
{
    size_t rows = CHUNK_BYTES / k / b->isa->tile_rows * b->isa->tile_rows;
    return rows > CHUNK_ROWS          ? CHUNK_ROWS
           : rows < b->isa->tile_rows ? b->isa->tile_rows
                                      : (uint32_t)rows;
}

/* A quantised row: k quants, then per block d, s, corr. */
static size_t act_row_bytes(uint32_t k)
{
    return k + (size_t)(k / SL_QBLOCK) * 12;
}

struct pack_job {
    const struct sl_weight_src *src;
    uint32_t n_src, rows, n_groups, task_groups;
    uint8_t flip;
    size_t group_bytes;
    uint8_t *data;
};

static void pack_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct pack_job *j = ctx;
    uint32_t end = min_u32((task + 1) * j->task_groups, j->n_groups);
    for (uint32_t g = task * j->task_groups; g < end; g++)
        sl_pack_group(j->src, j->n_src, g, j->rows, j->flip, j->data + g * j->group_bytes);
}

enum sl_status sl_cpu_weight_pack(struct sl_backend *base, const struct sl_weight_src *src,
                                  uint32_t n_src, const struct sl_slices *slices,
                                  struct sl_weight *out, struct sl_err *err)
{
    struct cpu_backend *b = cpu_of(base);
    struct sl_weight w;
    enum sl_status status = sl_weight_check(src, n_src, slices, &w, err);
    if (status != SL_OK)
        return status;
    uint32_t rows = group_rows(b, src->dtype);
    struct pack_job job = {.src = src,
                           .n_src = n_src,
                           .rows = rows,
                           .n_groups = (w.n + rows - 1) / rows,
                           .flip = b->isa->q8_flip,
                           .group_bytes = sl_pack_group_bytes(src->dtype, src->k, rows)};
    if (!sl_size_mul(job.group_bytes, job.n_groups, &w.bytes))
        return sl_fail(err, SL_NO_MEMORY, "weight: %u rows of %u overflow", w.n, src->k);
    if (is_quantised(src->dtype)) {
        status = sl_scratch_reserve(&b->act, chunk_rows(b, src->k) * act_row_bytes(src->k), err);
        if (status != SL_OK)
            return status;
    }
    w.data = sl_slab_alloc(&b->slabs, w.bytes);
    if (!w.data)
        return sl_fail(err, SL_NO_MEMORY, "weight: %zu bytes refused", w.bytes);
    w.layout = rows | (uint32_t)job.flip << 8;
    job.data = w.data;
    job.task_groups = (uint32_t)(PACK_TASK_BYTES / job.group_bytes) + 1;
    sl_team_run(b->team, (job.n_groups + job.task_groups - 1) / job.task_groups, pack_task, &job);
    *out = w;
    return SL_OK;
}

size_t sl_cpu_weight_bytes(struct sl_backend *b, const struct sl_weight_src *src, uint32_t n_src)
{
    uint32_t rows = group_rows(cpu_of(b), src->dtype);
    size_t n = 0;
    for (uint32_t i = 0; i < n_src; i++)
        n += src[i].n;
    return (n + rows - 1) / rows * sl_pack_group_bytes(src->dtype, src->k, rows);
}

void sl_cpu_weight_free(struct sl_backend *b, struct sl_weight *w)
{
    if (w->data)
        sl_slab_free(&cpu_of(b)->slabs, w->data);
    *w = (struct sl_weight){0};
}

struct linear_job {
    struct cpu_backend *b;
    const struct sl_weight *w;
    const float *x;
    size_t x_stride;
    uint32_t n_rows; /* of this chunk */
    const float *bias;
    bool accumulate;
    float *y;
    size_t y_stride;
    const struct sl_tree_node *parts; /* subtrees to add up, relative to w's slices */
    uint32_t n_parts;
    size_t plane;            /* from one part of y to the next, in floats */
    uint32_t rows, n_groups; /* of a group; groups in all */
    size_t group_bytes;
    uint32_t task_groups, task_rows, n_group_tasks;
};

/* The chunk's quantised activations: q, then d, s and corr; tile after tile. */
struct act_view {
    int8_t *q;
    float *d, *s;
    int32_t *corr;
};

static struct act_view act_view(const struct linear_job *j)
{
    uint8_t *p = j->b->act.data;
    size_t n = j->n_rows, k = j->w->k, blocks = k / SL_QBLOCK;
    struct act_view v = {.q = (int8_t *)p};
    v.d = (float *)(void *)(p + n * k);
    v.s = v.d + n * blocks;
    v.corr = (int32_t *)(void *)(v.s + n * blocks);
    return v;
}

static int32_t quant_offset(const struct linear_job *j)
{
    return j->w->dtype == SL_Q4_0 ? 8 : j->w->dtype == SL_Q8_0 ? j->b->isa->q8_flip : 0;
}

static void quantize_row(const struct linear_job *j, uint32_t row)
{
    struct act_view v = act_view(j);
    uint32_t tile_rows = j->b->isa->tile_rows, first = row / tile_rows * tile_rows;
    uint32_t mt = min_u32(tile_rows, j->n_rows - first), m = row - first;
    size_t k = j->w->k, at = first * (k / SL_QBLOCK) + m;
    struct sl_quant_row out = {.q = v.q + first * k + (size_t)m * SL_QBLOCK,
                               .d = v.d + at,
                               .s = v.s + at,
                               .corr = v.corr + at,
                               .mt = mt};
    j->b->isa->quantize(j->x + row * j->x_stride, (uint32_t)k, quant_offset(j), &out);
}

#define QUANTIZE_TASK_ROWS 16

static void quantize_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct linear_job *j = ctx;
    uint32_t end = min_u32((task + 1) * QUANTIZE_TASK_ROWS, j->n_rows);
    for (uint32_t row = task * QUANTIZE_TASK_ROWS; row < end; row++)
        quantize_row(j, row);
}

/* One tile of activation rows times groups [g0, g1). */
static void run_tile(const struct linear_job *j, uint32_t row, uint32_t g0, uint32_t g1)
{
    const struct sl_weight *w = j->w;
    uint32_t column = g0 * j->rows;
    struct sl_tile t = {.w = (const uint8_t *)w->data + g0 * j->group_bytes,
                        .group_bytes = j->group_bytes,
                        .n_groups = g1 - g0,
                        .border = w->slices.border,
                        .parts = j->parts,
                        .n_parts = j->n_parts,
                        .plane = j->plane,
                        .mt = min_u32(j->b->isa->tile_rows, j->n_rows - row),
                        .x = j->x + row * j->x_stride,
                        .x_stride = j->x_stride,
                        .y = j->y + row * j->y_stride + column,
                        .y_stride = j->y_stride,
                        .n = min_u32(g1 * j->rows, w->n) - column,
                        .bias = j->bias ? j->bias + column : NULL,
                        .accumulate = j->accumulate};
    if (!is_quantised(w->dtype)) {
        j->b->isa->linear_f(&t, w->dtype);
        return;
    }
    struct act_view v = act_view(j);
    size_t at = (size_t)row * (w->k / SL_QBLOCK);
    t.q = v.q + (size_t)row * w->k;
    t.d = v.d + at;
    t.s = v.s + at;
    t.corr = v.corr + at;
    j->b->isa->linear_q(&t, w->dtype);
}

/* Few rows: each weight is read once. Many: one group stays in L1 while the rows pass by. */
static void linear_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct linear_job *j = ctx;
    uint32_t g0 = task % j->n_group_tasks * j->task_groups;
    uint32_t g1 = min_u32(g0 + j->task_groups, j->n_groups);
    uint32_t row0 = task / j->n_group_tasks * j->task_rows;
    uint32_t row1 = min_u32(row0 + j->task_rows, j->n_rows), step = j->b->isa->tile_rows;
    if (row1 - row0 <= step) {
        run_tile(j, row0, g0, g1);
        return;
    }
    for (uint32_t g = g0; g < g1; g++)
        for (uint32_t row = row0; row < row1; row += step)
            run_tile(j, row, g, g + 1);
}

/* Tasks small enough to share fairly, large enough to be worth handing over. */
static uint32_t plan_tasks(struct linear_job *j)
{
    j->task_rows = j->n_rows <= TASK_ROWS ? j->n_rows : TASK_ROWS;
    size_t macs = (size_t)j->rows * j->w->k * j->task_rows;
    size_t groups = TASK_MACS / macs, stream = TASK_WEIGHTS / j->group_bytes;
    if (groups > stream)
        groups = stream;
    if (j->b->base.n_threads == 1 || groups > j->n_groups)
        groups = j->n_groups;
    groups = groups < 1 ? 1 : groups;
    if (j->n_rows == 1 && !is_quantised(j->w->dtype))
        groups = (groups + 3) / 4 * 4; /* the kernel takes four at once */
    j->task_groups = (uint32_t)groups;
    j->n_group_tasks = (j->n_groups + j->task_groups - 1) / j->task_groups;
    return j->n_group_tasks * ((j->n_rows + j->task_rows - 1) / j->task_rows);
}

static void run_chunk(struct linear_job *j)
{
    if (is_quantised(j->w->dtype)) {
        uint32_t n = (j->n_rows + QUANTIZE_TASK_ROWS - 1) / QUANTIZE_TASK_ROWS;
        sl_team_run(j->b->team, n, quantize_task, j);
    }
    sl_team_run(j->b->team, plan_tasks(j), linear_task, j);
}

/* Fills in what follows from the weight, and goes through the rows. */
static void run_rows(struct linear_job *j, const float *x, uint32_t n_tok, float *y)
{
    const struct sl_weight *w = j->w;
    sl_fp_mode_set();
    j->b->base.n_op_calls++;
    j->rows = group_rows(j->b, w->dtype);
    j->n_groups = (w->n + j->rows - 1) / j->rows;
    j->group_bytes = sl_pack_group_bytes(w->dtype, w->k, j->rows);
    uint32_t step = chunk_rows(j->b, w->k);
    for (uint32_t row = 0; row < n_tok; row += step) {
        j->n_rows = min_u32(step, n_tok - row);
        j->x = x + (size_t)row * j->x_stride;
        j->y = y + (size_t)row * j->y_stride;
        run_chunk(j);
    }
}

void sl_cpu_linear(struct sl_backend *base, const struct sl_weight *w, const float *x,
                   uint32_t x_stride, uint32_t n_tok, const float *bias, bool accumulate, float *y,
                   uint32_t y_stride)
{
    sl_assert(w->slices.n == w->slices.total);
    const struct sl_tree_node all = {0, w->slices.n};
    struct linear_job job = {.b = cpu_of(base),
                             .w = w,
                             .x_stride = x_stride,
                             .bias = bias,
                             .accumulate = accumulate,
                             .y_stride = y_stride,
                             .parts = &all,
                             .n_parts = 1};
    run_rows(&job, x, n_tok, y);
}

void sl_cpu_linear_partial(struct sl_backend *base, const struct sl_weight *w, const float *x,
                           uint32_t x_stride, uint32_t n_tok, float *out)
{
    const struct sl_slices *s = &w->slices;
    struct sl_tree_node parts[SL_SLICES_MAX];
    struct linear_job job = {.b = cpu_of(base),
                             .w = w,
                             .x_stride = x_stride,
                             .y_stride = w->n,
                             .parts = parts,
                             .n_parts = sl_tree_cut(s->first, s->n, s->total, parts),
                             .plane = (size_t)n_tok * w->n};
    for (uint32_t p = 0; p < job.n_parts; p++)
        parts[p].first -= s->first;
    run_rows(&job, x, n_tok, out);
}
