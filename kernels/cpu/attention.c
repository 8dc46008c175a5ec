/* Paged KV and causal attention over it. A task is one sequence, one KV head and some query rows
 * (token, head of the group); it walks the segments in index order, brings each one's K and V into
 * float32 scratch once and folds the segment's result into the rows' running state. */
#include <sluice/base/mem.h>

#include <string.h>

#include "check.h"
#include "cpu/cpu.h"
#include "num.h"

#define TILE      48 /* query rows of a task */
#define POS_BLOCK 32 /* positions that pass all rows while in L1 */

/* One thread's scratch, in floats. `dim` is padded to 16. */
struct attn_scratch {
    float *k, *v;    /* [SL_ATTN_SEGMENT, dim] */
    float *q;        /* [TILE, dim] */
    float *p;        /* [TILE, SL_ATTN_SEGMENT]: scores, then weights */
    float *o, *o2;   /* [TILE, dim]: running, and this segment's */
    float *ml, *ml2; /* [TILE, 2]: max and sum */
};

static uint32_t padded(uint32_t dim)
{
    return (dim + 15) & ~15u;
}

static size_t scratch_floats(uint32_t dim)
{
    size_t d = padded(dim);
    return 2 * SL_ATTN_SEGMENT * d + 3 * TILE * d + (size_t)TILE * SL_ATTN_SEGMENT + 4 * TILE;
}

static struct attn_scratch scratch_of(const struct cpu_backend *b, uint32_t thread, uint32_t dim)
{
    size_t d = padded(dim);
    struct attn_scratch s;
    s.k = (float *)(void *)(b->attn.data + thread * b->attn_stride);
    s.v = s.k + SL_ATTN_SEGMENT * d;
    s.q = s.v + SL_ATTN_SEGMENT * d;
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
    enum sl_status status = sl_kv_plan(cfg, &kv, err);
    if (status != SL_OK)
        return status;
    size_t stride = (scratch_floats(cfg->head_dim) * sizeof(float) + 4095) / 4096 * 4096;
    if (stride > b->attn_stride) {
        status = sl_scratch_reserve(&b->attn, stride * base->n_threads, err);
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
    const float *q;
    uint32_t q_stride, n_heads;
    float scale;
    float *out;
};

/* What one task works on. Row r of the tile is token `first + (r0 + r) / group`. */
struct attn_tile {
    uint32_t seq, kv_head, first, r0, n_rows, group, dim;
    struct attn_scratch s;
};

static uint32_t tile_token(const struct attn_tile *t, uint32_t r)
{
    return t->first + (t->r0 + r) / t->group;
}

static uint32_t tile_head(const struct attn_tile *t, uint32_t r)
{
    return t->kv_head * t->group + (t->r0 + r) % t->group;
}

/* Positions of the segment from `base` that row r sees. */
static uint32_t visible(const struct attn_job *j, const struct attn_tile *t, uint32_t r,
                        uint32_t base)
{
    uint32_t pos = j->batch->pos[tile_token(t, r)];
    return pos < base ? 0 : min_u32(pos - base + 1, SL_ATTN_SEGMENT);
}

static void load_half(const struct attn_job *j, const struct attn_tile *t, uint32_t half,
                      uint32_t base, uint32_t n, float *dst)
{
    const struct sl_kv_config *c = &j->kv->cfg;
    size_t elem = sl_dtype_row(c->dtype)->block_bytes;
    for (uint32_t i = 0; i < n;) {
        uint32_t pos = base + i, slot = pos % c->page_size;
        uint32_t run = min_u32(c->page_size - slot, n - i);
        uint32_t number = sl_batch_page(j->batch, t->seq, pos, c->page_size);
        const uint8_t *page = sl_kv_page(j->kv, j->layer, number);
        const uint8_t *row = page + sl_kv_row_at(c, half, t->kv_head, slot);
        for (uint32_t r = 0; r < run; r++, i++) {
            float scale = 1.0f;
            if (c->dtype == SL_I8)
                memcpy(&scale, page + sl_kv_scale_at(c, half, t->kv_head, slot + r), sizeof scale);
            j->b->isa->kv_load(c->dtype, row + r * elem * c->head_dim, scale, c->head_dim,
                               dst + (size_t)i * t->dim);
        }
    }
}

/* Each row's (max, sum, out) of one segment into ml2, o2. */
static void run_segment(const struct attn_job *j, const struct attn_tile *t, uint32_t base,
                        uint32_t n_pos)
{
    const struct sl_isa_ops *isa = j->b->isa;
    const struct attn_scratch *s = &t->s;
    for (uint32_t p0 = 0; p0 < n_pos; p0 += POS_BLOCK) {
        for (uint32_t r = 0; r < t->n_rows; r++) {
            uint32_t n = visible(j, t, r, base);
            if (n <= p0)
                continue;
            n = min_u32((n - p0 + 15) & ~15u, POS_BLOCK);
            isa->scores(s->q + (size_t)r * t->dim, s->k + (size_t)p0 * t->dim, t->dim, n, j->scale,
                        s->p + (size_t)r * SL_ATTN_SEGMENT + p0);
        }
    }
    memset(s->o2, 0, (size_t)t->n_rows * t->dim * sizeof(float));
    for (uint32_t r = 0; r < t->n_rows; r++) {
        uint32_t n = visible(j, t, r, base);
        if (n > 0)
            s->ml2[2 * r + 1] = isa->softmax(s->p + (size_t)r * SL_ATTN_SEGMENT, n, &s->ml2[2 * r]);
    }
    for (uint32_t p0 = 0; p0 < n_pos; p0 += POS_BLOCK) {
        for (uint32_t r = 0; r < t->n_rows; r++) {
            uint32_t n = visible(j, t, r, base);
            if (n > p0)
                isa->weigh(s->p + (size_t)r * SL_ATTN_SEGMENT + p0, s->v + (size_t)p0 * t->dim,
                           t->dim, min_u32(n - p0, POS_BLOCK), s->o2 + (size_t)r * t->dim);
        }
    }
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

static void run_tile(const struct attn_job *j, const struct attn_tile *t)
{
    const struct attn_scratch *s = &t->s;
    uint32_t head_dim = j->kv->cfg.head_dim;
    for (uint32_t r = 0; r < t->n_rows; r++) {
        const float *q = j->q + (size_t)tile_token(t, r) * j->q_stride;
        j->b->isa->kv_load(SL_F32, q + (size_t)tile_head(t, r) * head_dim, 1.0f, head_dim,
                           s->q + (size_t)r * t->dim);
    }
    uint32_t end = j->batch->pos[tile_token(t, t->n_rows - 1)] + 1;
    for (uint32_t base = 0; base < end; base += SL_ATTN_SEGMENT) {
        uint32_t n = min_u32(end - base, SL_ATTN_SEGMENT), whole = (n + 15) & ~15u;
        load_half(j, t, 0, base, n, s->k);
        load_half(j, t, 1, base, n, s->v);
        memset(s->k + (size_t)n * t->dim, 0, (size_t)(whole - n) * t->dim * sizeof(float));
        run_segment(j, t, base, n);
        fold_segment(j, t, base);
    }
    for (uint32_t r = 0; r < t->n_rows; r++) {
        size_t at = (size_t)tile_token(t, r) * j->n_heads + tile_head(t, r);
        j->b->isa->finish(s->o + (size_t)r * t->dim, s->ml[2 * r + 1], head_dim,
                          j->out + at * head_dim);
    }
}

/* Query rows of one (sequence, KV head). */
static uint32_t seq_rows(const struct attn_job *j, uint32_t seq)
{
    uint32_t group = j->n_heads / j->kv->cfg.n_kv_heads;
    return (j->batch->q_start[seq + 1] - j->batch->q_start[seq]) * group;
}

static uint32_t seq_tasks(const struct attn_job *j, uint32_t seq)
{
    return (seq_rows(j, seq) + TILE - 1) / TILE * j->kv->cfg.n_kv_heads;
}

static void attention_task(void *ctx, uint32_t task, uint32_t thread)
{
    const struct attn_job *j = ctx;
    uint32_t seq = 0;
    for (; task >= seq_tasks(j, seq); seq++)
        task -= seq_tasks(j, seq);
    uint32_t heads = j->kv->cfg.n_kv_heads;
    struct attn_tile t = {.seq = seq,
                          .kv_head = task % heads,
                          .first = j->batch->q_start[seq],
                          .r0 = task / heads * TILE,
                          .group = j->n_heads / heads,
                          .dim = padded(j->kv->cfg.head_dim),
                          .s = scratch_of(j->b, thread, j->kv->cfg.head_dim)};
    t.n_rows = min_u32(seq_rows(j, seq) - t.r0, TILE);
    run_tile(j, &t);
}

void sl_cpu_attention(struct sl_backend *base, const struct sl_kv *kv, uint32_t layer,
                      const struct sl_batch *batch, const float *q, uint32_t q_stride,
                      uint32_t n_heads, float scale, float *out)
{
    struct cpu_backend *b = cpu_of(base);
    struct attn_job job = {b, kv, layer, batch, q, q_stride, n_heads, scale, out};
    sl_fp_mode_set();
    base->n_op_calls++;
    uint32_t n_tasks = 0;
    for (uint32_t s = 0; s < batch->n_seq; s++)
        n_tasks += seq_tasks(&job, s);
    sl_team_run(b->team, n_tasks, attention_task, &job);
}
