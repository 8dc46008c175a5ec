/* Paged KV and causal attention over it. A task is one sequence, one KV head and some query rows
 * (token, head of the group); it walks the segments in index order, brings each one's K and V into
 * float32 scratch once and folds the segment's result into the rows' running state. */
#include <sluice/base/mem.h>

#include <string.h>

#include "check.h"
#include "cpu/cpu.h"
#include "num.h"

#define TILE          48 /* query rows of a task */
#define POS_BLOCK     32 /* positions that pass all rows while in L1 */
#define PARTIAL_BYTES ((size_t)1 << 20)

/* One thread's scratch, in floats. `dim` is padded to 16. */
struct attn_scratch {
    float *kv;       /* [POS_BLOCK, dim]: K or V of some positions */
    float *q;        /* [TILE, dim] */
    float *o, *o2;   /* [TILE, dim]: running, and this segment's */
    float *p;        /* [TILE, SL_ATTN_SEGMENT]: scores, then weights */
    float *ml, *ml2; /* [TILE, 2]: max and sum */
};

static uint32_t padded(uint32_t dim)
{
    return (dim + 15) & ~15u;
}

static size_t scratch_floats(uint32_t dim)
{
    size_t d = padded(dim);
    return POS_BLOCK * d + 3 * TILE * d + (size_t)TILE * SL_ATTN_SEGMENT + 4 * TILE;
}

static struct attn_scratch scratch_of(const struct cpu_backend *b, uint32_t thread, uint32_t dim)
{
    size_t d = padded(dim);
    struct attn_scratch s;
    s.kv = (float *)(void *)(b->attn.data + PARTIAL_BYTES + thread * b->attn_stride);
    s.q = s.kv + POS_BLOCK * d;
    s.o = s.q + TILE * d;
    s.o2 = s.o + TILE * d;
    s.p = s.o2 + TILE * d;
    s.ml = s.p + (size_t)TILE * SL_ATTN_SEGMENT;
    s.ml2 = s.ml + 2 * TILE;
    return s;
}

enum sl_status sl_cpu_kv_open(struct sl_backend *base, const struct sl_kv_config *cfg,
                              struct sl_kv *out, struct sl_err *err)
{
    struct cpu_backend *b = cpu_of(base);
    struct sl_kv kv;
    enum sl_status status = sl_kv_plan(cfg, 0, &kv, err);
    if (status != SL_OK)
        return status;
    size_t stride = (scratch_floats(cfg->head_dim) * sizeof(float) + 4095) / 4096 * 4096;
    if (stride > b->attn_stride) {
        status = sl_scratch_reserve(&b->attn, PARTIAL_BYTES + stride * base->n_threads, err);
        if (status != SL_OK)
            return status;
        b->attn_stride = stride;
    }
    kv.data = sl_pages_alloc(kv.bytes);
    if (!kv.data)
        return sl_fail(err, SL_NO_MEMORY, "kv: %zu bytes refused", kv.bytes);
    *out = kv;
    return SL_OK;
}

void sl_cpu_kv_close(struct sl_backend *b, struct sl_kv *kv)
{
    (void)b;
    if (kv->data)
        sl_pages_free(kv->data, kv->bytes);
    *kv = (struct sl_kv){0};
}

struct write_job {
    const struct sl_isa_ops *isa;
    struct sl_kv *kv;
    uint32_t layer;
    const struct sl_batch *batch;
    const float *src[2];
    uint32_t stride;
};

static void write_row(const struct write_job *j, uint32_t seq, uint32_t tok)
{
    const struct sl_kv_config *c = &j->kv->cfg;
    uint32_t pos = j->batch->pos[tok], slot = pos % c->page_size;
    uint32_t number = sl_batch_page(j->batch, seq, pos, c->page_size);
    uint8_t *page = sl_kv_page(j->kv, j->layer, number);
    for (uint32_t half = 0; half < 2; half++) {
        for (uint32_t h = 0; h < c->n_kv_heads; h++) {
            const float *x = j->src[half] + (size_t)tok * j->stride + (size_t)h * c->head_dim;
            float scale = 0.0f;
            j->isa->kv_store(c->dtype, x, c->head_dim, page + sl_kv_row_at(c, half, h, slot),
                             &scale);
            if (c->dtype == SL_I8)
                memcpy(page + sl_kv_scale_at(c, half, h, slot), &scale, sizeof scale);
        }
    }
}

void sl_cpu_kv_write(struct sl_backend *base, struct sl_kv *kv, uint32_t layer,
                     const struct sl_batch *batch, const float *k, const float *v, uint32_t stride)
{
    struct cpu_backend *b = cpu_of(base);
    struct write_job job = {b->isa, kv, layer, batch, {k, v}, stride};
    sl_fp_mode_set();
    base->n_op_calls++;
    for (uint32_t s = 0; s < batch->n_seq; s++)
        for (uint32_t t = batch->q_start[s]; t < batch->q_start[s + 1]; t++)
            write_row(&job, s, t);
}

struct attn_job {
    struct cpu_backend *b;
    const struct sl_kv *kv;
    uint32_t layer;
    const struct sl_batch *batch;
    const struct sl_attn *a;
    const float *q;
    float *out;
    bool join_heads; /* there are threads enough for one task to take all KV heads */
};

/* What one task works on: query rows of one KV head, or of all when a sequence has few (then pages
 * are read in one stream). Rows r0.. of each head; row i of a head is token `first + i / group`. */
struct attn_tile {
    uint32_t seq, kv_head, n_kv_heads, first, r0, group, dim;
    uint32_t head_rows; /* rows of each KV head */
    uint32_t n_rows;    /* in all */
    struct attn_scratch s;
};

static uint32_t tile_token(const struct attn_tile *t, uint32_t r)
{
    return t->first + (t->r0 + r % t->head_rows) / t->group;
}

static uint32_t tile_head(const struct attn_tile *t, uint32_t r)
{
    return (t->kv_head + r / t->head_rows) * t->group + (t->r0 + r % t->head_rows) % t->group;
}

/* Positions of the segment from `base` that row r sees. */
static uint32_t visible(const struct attn_job *j, const struct attn_tile *t, uint32_t r,
                        uint32_t base)
{
    uint32_t pos = j->batch->pos[tile_token(t, r)];
    return pos < base ? 0 : min_u32(pos - base + 1, SL_ATTN_SEGMENT);
}

/* `run` rows that follow each other in one page. */
static void load_run(const struct attn_job *j, const uint8_t *row, const uint8_t *scales,
                     uint32_t run, float *dst)
{
    const struct sl_kv_config *c = &j->kv->cfg;
    size_t row_bytes = sl_dtype_bytes(c->dtype, c->head_dim);
    if (c->head_dim % SL_LANES == 0 && c->dtype != SL_I8) {
        j->b->isa->kv_load(c->dtype, row, 1.0f, c->head_dim * run, dst);
        return;
    }
    for (uint32_t r = 0; r < run; r++) {
        float scale = 1.0f;
        if (c->dtype == SL_I8)
            memcpy(&scale, scales + r * sizeof scale, sizeof scale);
        j->b->isa->kv_load(c->dtype, row + r * row_bytes, scale, c->head_dim,
                           dst + (size_t)r * padded(c->head_dim));
    }
}

/* Positions [first, first + n) of K or V to float32. */
static void load_half(const struct attn_job *j, const struct attn_tile *t, uint32_t half,
                      uint32_t head, uint32_t first, uint32_t n)
{
    const struct sl_kv_config *c = &j->kv->cfg;
    for (uint32_t i = 0; i < n;) {
        uint32_t pos = first + i, slot = pos % c->page_size;
        uint32_t run = min_u32(c->page_size - slot, n - i);
        uint32_t number = sl_batch_page(j->batch, t->seq, pos, c->page_size);
        const uint8_t *page = sl_kv_page(j->kv, j->layer, number);
        size_t at = sl_kv_row_at(c, half, head, slot);
        const uint8_t *scales = NULL;
        if (c->dtype == SL_I8)
            scales = page + sl_kv_scale_at(c, half, head, slot);
        load_run(j, page + at, scales, run, t->s.kv + (size_t)i * t->dim);
        i += run;
    }
}

/* Scores of the rows of KV head `h` of the tile with positions [p0, p0 + n) of the segment. */
static void score_block(const struct attn_job *j, const struct attn_tile *t, uint32_t h,
                        uint32_t base, uint32_t p0, uint32_t n)
{
    const struct attn_scratch *s = &t->s;
    uint32_t whole = (n + 15) & ~15u;
    load_half(j, t, 0, j->a->kv_first + t->kv_head + h, base + p0, n);
    memset(s->kv + (size_t)n * t->dim, 0, (size_t)(whole - n) * t->dim * sizeof(float));
    for (uint32_t r = h * t->head_rows; r < (h + 1) * t->head_rows; r++) {
        uint32_t seen = visible(j, t, r, base);
        if (seen > p0)
            j->b->isa->scores(s->q + (size_t)r * t->dim, s->kv, t->dim,
                              min_u32((seen - p0 + 15) & ~15u, whole), j->a->scale,
                              s->p + (size_t)r * SL_ATTN_SEGMENT + p0);
    }
}

static void weigh_block(const struct attn_job *j, const struct attn_tile *t, uint32_t h,
                        uint32_t base, uint32_t p0, uint32_t n)
{
    const struct attn_scratch *s = &t->s;
    load_half(j, t, 1, j->a->kv_first + t->kv_head + h, base + p0, n);
    for (uint32_t r = h * t->head_rows; r < (h + 1) * t->head_rows; r++) {
        uint32_t seen = visible(j, t, r, base);
        if (seen > p0)
            j->b->isa->weigh(s->p + (size_t)r * SL_ATTN_SEGMENT + p0, s->kv, t->dim,
                             min_u32(seen - p0, n), s->o2 + (size_t)r * t->dim);
    }
}

/* Each row's (max, sum, out) of one segment into ml2, o2. */
static void run_segment(const struct attn_job *j, const struct attn_tile *t, uint32_t base,
                        uint32_t n_pos)
{
    const struct attn_scratch *s = &t->s;
    uint32_t block = POS_BLOCK;
    if (t->n_kv_heads > 1 && j->kv->cfg.page_size <= 16)
        block = 16; /* a page after the other, all heads of it */
    for (uint32_t p0 = 0; p0 < n_pos; p0 += block)
        for (uint32_t h = 0; h < t->n_kv_heads; h++)
            score_block(j, t, h, base, p0, min_u32(n_pos - p0, block));
    memset(s->o2, 0, (size_t)t->n_rows * t->dim * sizeof(float));
    for (uint32_t r = 0; r < t->n_rows; r++) {
        uint32_t n = visible(j, t, r, base);
        if (n > 0)
            s->ml2[2 * r + 1] =
                j->b->isa->softmax(s->p + (size_t)r * SL_ATTN_SEGMENT, n, &s->ml2[2 * r]);
    }
    for (uint32_t p0 = 0; p0 < n_pos; p0 += block)
        for (uint32_t h = 0; h < t->n_kv_heads; h++)
            weigh_block(j, t, h, base, p0, min_u32(n_pos - p0, block));
}

static void fold_segment(const struct attn_job *j, const struct attn_tile *t, uint32_t base)
{
    const struct attn_scratch *s = &t->s;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        float *o = s->o + (size_t)r * t->dim, *o2 = s->o2 + (size_t)r * t->dim;
        if (base == 0) {
            memcpy(o, o2, t->dim * sizeof *o);
            memcpy(s->ml + 2 * r, s->ml2 + 2 * r, 2 * sizeof *o);
        } else if (visible(j, t, r, base) > 0) {
            j->b->isa->merge(s->ml + 2 * r, o, s->ml2 + 2 * r, o2, t->dim);
        }
    }
}

static void load_queries(const struct attn_job *j, const struct attn_tile *t)
{
    uint32_t head_dim = j->kv->cfg.head_dim;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        const float *q = j->q + (size_t)tile_token(t, r) * j->a->q_stride;
        j->b->isa->kv_load(SL_F32, q + (size_t)tile_head(t, r) * head_dim, 1.0f, head_dim,
                           t->s.q + (size_t)r * t->dim);
    }
}

static uint32_t tile_end(const struct attn_job *j, const struct attn_tile *t)
{
    return j->batch->pos[tile_token(t, t->n_rows - 1)] + 1;
}

static void write_rows(const struct attn_job *j, const struct attn_tile *t)
{
    uint32_t head_dim = j->kv->cfg.head_dim;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        size_t at = (size_t)tile_token(t, r) * j->a->out_stride;
        at += (size_t)tile_head(t, r) * head_dim;
        j->b->isa->finish(t->s.o + (size_t)r * t->dim, t->s.ml[2 * r + 1], head_dim, j->out + at);
    }
}

static void run_tile(const struct attn_job *j, const struct attn_tile *t)
{
    uint32_t end = tile_end(j, t);
    load_queries(j, t);
    for (uint32_t base = 0; base < end; base += SL_ATTN_SEGMENT) {
        run_segment(j, t, base, min_u32(end - base, SL_ATTN_SEGMENT));
        fold_segment(j, t, base);
    }
    write_rows(j, t);
}

/* Query rows of one (sequence, KV head). */
static uint32_t seq_rows(const struct attn_job *j, uint32_t seq)
{
    uint32_t group = j->a->n_heads / j->a->n_kv_heads;
    return (j->batch->q_start[seq + 1] - j->batch->q_start[seq]) * group;
}

static uint32_t seq_segments(const struct attn_job *j, uint32_t seq)
{
    uint32_t end = j->batch->q_start[seq + 1];
    return end == j->batch->q_start[seq] ? 0 : j->batch->pos[end - 1] / SL_ATTN_SEGMENT + 1;
}

/* True when one tile takes the rows of all KV heads. */
static bool one_tile(const struct attn_job *j, uint32_t seq)
{
    return j->join_heads && (size_t)seq_rows(j, seq) * j->a->n_kv_heads <= TILE;
}

static uint32_t seq_tiles(const struct attn_job *j, uint32_t seq)
{
    if (one_tile(j, seq))
        return seq_rows(j, seq) > 0;
    return (seq_rows(j, seq) + TILE - 1) / TILE * j->a->n_kv_heads;
}

static struct attn_tile tile_of(const struct attn_job *j, uint32_t seq, uint32_t index,
                                uint32_t thread)
{
    uint32_t heads = j->a->n_kv_heads;
    struct attn_tile t = {.seq = seq,
                          .n_kv_heads = 1,
                          .first = j->batch->q_start[seq],
                          .group = j->a->n_heads / heads,
                          .dim = padded(j->kv->cfg.head_dim),
                          .s = scratch_of(j->b, thread, j->kv->cfg.head_dim)};
    if (one_tile(j, seq)) {
        t.n_kv_heads = heads;
    } else {
        t.kv_head = index % heads;
        t.r0 = index / heads * TILE;
    }
    t.head_rows = min_u32(seq_rows(j, seq) - t.r0, TILE);
    t.n_rows = t.head_rows * t.n_kv_heads;
    return t;
}

static void whole_task(void *ctx, uint32_t task, uint32_t thread)
{
    const struct attn_job *j = ctx;
    uint32_t seq = 0;
    for (; task >= seq_tiles(j, seq); seq++)
        task -= seq_tiles(j, seq);
    struct attn_tile t = tile_of(j, seq, task, thread);
    run_tile(j, &t);
}

/* ---- few rows, long contexts: one segment a task, folded afterwards in the same order ---- */

/* Where (max, sum, out) of a tile's rows in one segment lie: [n_rows][2 + dim]. */
static float *partial_of(const struct attn_job *j, uint32_t seq, uint32_t tile, uint32_t segment)
{
    size_t width = 2 + (size_t)padded(j->kv->cfg.head_dim), rows = 0;
    uint32_t heads = j->a->n_kv_heads;
    for (uint32_t s = 0; s < seq; s++)
        rows += (size_t)seq_rows(j, s) * heads * seq_segments(j, s);
    if (one_tile(j, seq)) {
        rows += (size_t)seq_rows(j, seq) * heads * segment;
    } else {
        uint32_t r0 = tile / heads * TILE, n_rows = min_u32(seq_rows(j, seq) - r0, TILE);
        size_t before = (size_t)r0 * heads + tile % heads * n_rows;
        rows += before * seq_segments(j, seq) + (size_t)n_rows * segment;
    }
    return (float *)(void *)j->b->attn.data + rows * width;
}

static void segment_task(void *ctx, uint32_t task, uint32_t thread)
{
    const struct attn_job *j = ctx;
    uint32_t seq = 0;
    for (; task >= seq_tiles(j, seq) * seq_segments(j, seq); seq++)
        task -= seq_tiles(j, seq) * seq_segments(j, seq);
    uint32_t segment = task % seq_segments(j, seq), index = task / seq_segments(j, seq);
    struct attn_tile t = tile_of(j, seq, index, thread);
    uint32_t base = segment * SL_ATTN_SEGMENT, end = tile_end(j, &t);
    if (base >= end)
        return;
    load_queries(j, &t);
    run_segment(j, &t, base, min_u32(end - base, SL_ATTN_SEGMENT));
    float *p = partial_of(j, seq, index, segment);
    for (uint32_t r = 0; r < t.n_rows; r++, p += 2 + t.dim) {
        memcpy(p, t.s.ml2 + 2 * r, 2 * sizeof *p);
        memcpy(p + 2, t.s.o2 + (size_t)r * t.dim, t.dim * sizeof *p);
    }
}

static void fold_partials(const struct attn_job *j, uint32_t seq, uint32_t index)
{
    struct attn_tile t = tile_of(j, seq, index, 0);
    uint32_t end = tile_end(j, &t);
    for (uint32_t base = 0; base < end; base += SL_ATTN_SEGMENT) {
        const float *p = partial_of(j, seq, index, base / SL_ATTN_SEGMENT);
        for (uint32_t r = 0; r < t.n_rows; r++, p += 2 + t.dim) {
            memcpy(t.s.ml2 + 2 * r, p, 2 * sizeof *p);
            memcpy(t.s.o2 + (size_t)r * t.dim, p + 2, t.dim * sizeof *p);
        }
        fold_segment(j, &t, base);
    }
    write_rows(j, &t);
}

/* True when whole tiles would leave threads idle and the partial results have room. */
static bool splits(const struct attn_job *j, uint32_t n_tiles, uint32_t *n_tasks)
{
    size_t floats = 0, width = 2 + (size_t)padded(j->kv->cfg.head_dim);
    *n_tasks = 0;
    for (uint32_t s = 0; s < j->batch->n_seq; s++) {
        floats += (size_t)seq_rows(j, s) * j->a->n_kv_heads * seq_segments(j, s) * width;
        *n_tasks += seq_tiles(j, s) * seq_segments(j, s);
    }
    uint32_t n_threads = j->b->base.n_threads;
    return n_threads > 1 && n_tiles<4 * n_threads && * n_tasks> n_tiles &&
           floats <= PARTIAL_BYTES / sizeof(float);
}

void sl_cpu_attention(struct sl_backend *base, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const struct sl_attn *a, const float *q,
                      float *out)
{
    struct cpu_backend *b = cpu_of(base);
    struct attn_job job = {b, kv, layer, batch, a, q, out, false};
    sl_fp_mode_set();
    base->n_op_calls++;
    uint32_t n_tiles = 0, n_tasks = 0;
    for (uint32_t s = 0; s < batch->n_seq; s++)
        n_tasks += seq_segments(&job, s);
    job.join_heads = n_tasks >= base->n_threads;
    for (uint32_t s = 0; s < batch->n_seq; s++)
        n_tiles += seq_tiles(&job, s);
    if (!splits(&job, n_tiles, &n_tasks)) {
        sl_team_run(b->team, n_tiles, whole_task, &job);
        return;
    }
    sl_team_run(b->team, n_tasks, segment_task, &job);
    for (uint32_t s = 0; s < batch->n_seq; s++)
        for (uint32_t i = 0; i < seq_tiles(&job, s); i++)
            fold_partials(&job, s, i);
}
