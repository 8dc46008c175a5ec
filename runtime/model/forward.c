/* One step of a decoder of the llama family: pre-norm blocks of grouped-query attention with rotary
 * positions (Su et al. 2021, Ainslie et al. 2023) and a gated SiLU feed-forward (Shazeer 2020).
 *
 * Every op works row by row, so the last layer may drop the rows nobody wants logits of as soon as
 * their K and V are written, a pipeline may take the rows in runs, and a tensor parallel group may
 * deal them out for its sums, without touching a bit of the others. The two linears that a group
 * cuts by their inputs give partial sums of subtrees; they are exchanged and the rest of the tree
 * is added up: everywhere for few rows, each rank some of the rows for many (cf. reduce-scatter and
 * all-gather, Thakur et al. 2005, without their freedom of order). */
#include "model_priv.h"

#include <string.h>

struct pass {
    struct sl_model *m;
    struct sl_kv *kv;
    const struct sl_model_step *step;
    const struct sl_exchange *x; /* NULL for a whole model */
    struct sl_err *err;
};

/* A run of the step's rows, and of the rows of logits that are among them: as the host has them,
 * and as ops take them, which may be some more. */
struct piece {
    struct sl_step_rows in, rows;
    uint32_t row, out; /* the first of each in the step */
};

static void progress(const struct pass *p)
{
    if (p->x && p->x->progress)
        p->x->progress(p->x->ctx);
}

static void group_run(struct sl_model *m, const struct group *g, const float *x, uint32_t x_stride,
                      uint32_t n_tok, bool accumulate, float *y)
{
    for (uint32_t i = 0; i < g->n; i++)
        m->b->ops->linear(m->b, &g->w[i], x, x_stride, n_tok, g->bias[i], accumulate, y + g->at[i],
                          g->n_out);
}

/* ---- x += w(in) over a tensor parallel group ---- */

/* Every rank gets all parts and adds them up. */
static enum sl_status sum_everywhere(const struct pass *p, const struct group *g,
                                     const struct group_sum *s, const float *in, uint32_t n,
                                     float *x)
{
    struct sl_model *m = p->m;
    const struct sl_backend_ops *ops = m->b->ops;
    uint32_t dim = m->cfg.dim;
    size_t plane = (size_t)n * dim, counts[SL_SLICES_MAX];
    float *mine = m->parts + s->first_part * plane;
    ops->linear_partial(m->b, g->w, in, g->w->k, n, mine);
    progress(p);
    for (uint32_t r = 0; r < m->shard.tp; r++)
        counts[r] = s->n_parts[r] * plane;
    enum sl_status status = p->x->all_gather(p->x->ctx, mine, m->parts, counts, p->err);
    if (!status)
        ops->tree_sum(m->b, &s->tree, m->parts, n, dim, g->bias[0], true, x, dim);
    return status;
}

/* Rows of n that rank r adds up. */
static struct sl_run rows_of(const struct sl_model *m, uint32_t n, uint32_t r)
{
    uint32_t first = (uint32_t)((uint64_t)n * r / m->shard.tp);
    return (struct sl_run){first, (uint32_t)((uint64_t)n * (r + 1) / m->shard.tp) - first};
}

/* Every rank gets the parts of some rows, adds them up and hands the sums round. */
static enum sl_status sum_by_rows(const struct pass *p, const struct group *g,
                                  const struct group_sum *s, const float *in, uint32_t n, float *x)
{
    struct sl_model *m = p->m;
    const struct sl_backend_ops *ops = m->b->ops;
    uint32_t dim = m->cfg.dim, tp = m->shard.tp, n_mine = s->n_parts[m->shard.tp_rank];
    struct sl_run own = rows_of(m, n, m->shard.tp_rank);
    size_t send[SL_SLICES_MAX], recv[SL_SLICES_MAX], sums[SL_SLICES_MAX];
    float *at = m->parts;
    for (uint32_t r = 0; r < tp; r++) {
        struct sl_run rows = rows_of(m, n, r);
        ops->linear_partial(m->b, g->w, in + (size_t)rows.first * g->w->k, g->w->k, rows.n, at);
        progress(p);
        send[r] = (size_t)n_mine * rows.n * dim;
        recv[r] = (size_t)s->n_parts[r] * own.n * dim;
        sums[r] = (size_t)rows.n * dim;
        at += send[r];
    }
    enum sl_status status = p->x->all_to_all(p->x->ctx, m->parts, send, at, recv, p->err);
    if (status)
        return status;
    float *x_own = x + (size_t)own.first * dim;
    ops->tree_sum(m->b, &s->tree, at, own.n, dim, g->bias[0], true, x_own, dim);
    return p->x->all_gather(p->x->ctx, x_own, x, sums, p->err);
}

static enum sl_status sum_linear(const struct pass *p, const struct group *g,
                                 const struct group_sum *s, const float *in, uint32_t n, float *x)
{
    struct sl_model *m = p->m;
    enum sl_status status = SL_OK;
    if (m->shard.tp == 1)
        group_run(m, g, in, g->w->k, n, true, x);
    else if (s->scatters && n >= m->all_to_all_rows)
        status = sum_by_rows(p, g, s, in, n, x);
    else
        status = sum_everywhere(p, g, s, in, n, x);
    progress(p);
    return status;
}

/* ---- one layer ---- */

/* Rotates queries and keys, and stores keys and values. */
static void place(const struct pass *p, uint32_t l, const struct sl_batch *batch,
                  const struct sl_qkv *x)
{
    struct sl_model *m = p->m;
    const struct sl_backend_ops *ops = m->b->ops;
    uint32_t head_dim = m->cfg.head_dim, n_tok = batch->n_tok;
    if (ops->rope_kv_write) {
        ops->rope_kv_write(m->b, &m->rope, p->kv, l, batch, x);
        return;
    }
    ops->rope(m->b, &m->rope, x->q, x->stride, x->n_heads, head_dim, batch->pos, n_tok);
    ops->rope(m->b, &m->rope, x->k, x->stride, m->part.kv_heads.n, head_dim, batch->pos, n_tok);
    ops->kv_write(m->b, p->kv, l, batch, x->k, x->v, x->stride);
}

/* Q, K and V of every row into qkv, K and V into the cache. */
static void write_kv(const struct pass *p, uint32_t l, const struct piece *piece, const float *x)
{
    struct sl_model *m = p->m;
    const struct sl_model_config *c = &m->cfg;
    const struct sl_backend_ops *ops = m->b->ops;
    const struct layer *y = &m->layers[l];
    const struct sl_batch *batch = &piece->rows.batch;
    uint32_t n_tok = batch->n_tok, stride = y->qkv.n_out;
    float *k = m->qkv + (size_t)m->part.heads.n * c->head_dim;
    float *v = k + (size_t)m->part.kv_heads.n * c->head_dim;
    ops->rms_norm(m->b, x, y->attn_norm, c->rms_eps, n_tok, c->dim, m->h);
    group_run(m, &y->qkv, m->h, c->dim, n_tok, false, m->qkv);
    place(p, l, batch, &(struct sl_qkv){m->qkv, k, v, m->part.heads.n, stride});
    if (p->step->on_layer)
        p->step->on_layer(p->step->ctx, l, piece->row + piece->in.batch.n_tok);
    progress(p);
}

static void attend(const struct pass *p, uint32_t l, const struct piece *piece, float *out)
{
    struct sl_model *m = p->m;
    uint32_t head_dim = m->cfg.head_dim;
    for (uint32_t i = 0; i < m->n_attn_calls; i++) {
        const struct attn_call *call = &m->attn_calls[i];
        struct sl_attn a = {.n_heads = call->n_heads,
                            .kv_first = call->kv_first,
                            .n_kv_heads = call->n_kv_heads,
                            .q_stride = m->layers[l].qkv.n_out,
                            .out_stride = m->part.heads.n * head_dim,
                            .scale = m->cfg.attn_scale};
        size_t at = (size_t)call->head * head_dim;
        m->b->ops->attention(m->b, p->kv, l, &piece->rows.batch, &a, m->qkv + at, out + at);
    }
    progress(p);
}

/* The rest of a block over n rows: x += o(attn), then x += down(silu(gate) * up). */
static enum sl_status project(const struct pass *p, uint32_t l, const float *attn, float *x,
                              uint32_t n)
{
    struct sl_model *m = p->m;
    const struct sl_model_config *c = &m->cfg;
    const struct sl_backend_ops *ops = m->b->ops;
    const struct layer *y = &m->layers[l];
    enum sl_status status = sum_linear(p, &y->o, &m->o_sum, attn, n, x);
    if (status)
        return status;
    ops->rms_norm(m->b, x, y->ffn_norm, c->rms_eps, n, c->dim, m->h);
    group_run(m, &y->gate_up, m->h, c->dim, n, false, m->gate_up);
    ops->silu_mul(m->b, m->gate_up, n, m->part.ffn.n, m->act);
    progress(p);
    return sum_linear(p, &y->down, &m->down_sum, m->act, n, x);
}

/* The last layer, for the rows that go on to logits. */
static enum sl_status finish_rows(const struct pass *p, uint32_t l, const struct piece *piece)
{
    struct sl_model *m = p->m;
    const struct sl_backend_ops *ops = m->b->ops;
    uint32_t dim = m->cfg.dim, q = m->part.heads.n * m->cfg.head_dim, n = piece->rows.n_logit_rows;
    const uint32_t *rows = piece->rows.logit_rows;
    float *attn_rows = m->qkv; /* free again, and wide enough */
    float *x_rows = m->x_rows + (size_t)piece->out * dim;
    ops->gather_rows(m->b, m->attn, rows, n, q, attn_rows);
    ops->gather_rows(m->b, m->x, rows, n, dim, x_rows);
    return project(p, l, attn_rows, x_rows, n);
}

/* ---- the step ---- */

/* One run of rows through all layers of the stage. */
static enum sl_status run_piece(const struct pass *p, const struct piece *piece)
{
    struct sl_model *m = p->m;
    uint32_t n = piece->rows.batch.n_tok, stage = m->shard.pp_rank;
    size_t n_floats = (size_t)n * m->cfg.dim;
    float *x = m->x + (size_t)piece->row * m->cfg.dim;
    float *attn = m->attn + (size_t)piece->row * m->part.heads.n * m->cfg.head_dim;
    enum sl_status status = SL_OK;
    if (stage == 0)
        m->b->ops->embed(m->b, &m->embed, piece->rows.tokens, n, x);
    else
        status = p->x->recv(p->x->ctx, stage - 1, x, n_floats, p->err);
    for (uint32_t l = 0; l < m->part.layers.n && !status; l++) {
        bool last = m->has_head && l == m->part.layers.n - 1;
        write_kv(p, l, piece, x);
        if (last && piece->rows.n_logit_rows == 0)
            return SL_OK;
        attend(p, l, piece, attn);
        status = last ? finish_rows(p, l, piece) : project(p, l, attn, x, n);
    }
    if (!status && !m->has_head)
        status = p->x->send(p->x->ctx, stage + 1, x, n_floats, p->err);
    return status;
}

/* All columns of the last stage's logits to its rank 0, where the ranks' runs of columns are put
 * side by side. */
static enum sl_status gather_logits(const struct pass *p, float *to)
{
    struct sl_model *m = p->m;
    uint32_t n = p->step->n_logit_rows;
    size_t counts[SL_SLICES_MAX];
    for (uint32_t r = 0; r < m->shard.tp; r++)
        counts[r] = (size_t)n * shard_vocab(m, r).n;
    bool root = m->shard.tp_rank == 0;
    float *all = root ? m->all_logits : NULL, *mine = root ? m->all_logits : m->logits;
    group_run(m, &m->head, m->h, m->cfg.dim, n, false, mine);
    progress(p);
    enum sl_status status = p->x->gather(p->x->ctx, mine, all, counts, p->err);
    if (status || !root)
        return status;
    for (uint32_t r = 0; r < m->shard.tp; r++) {
        struct sl_run v = shard_vocab(m, r);
        m->b->ops->copy_rows(m->b, all, v.n, n, v.n, to + v.first, m->cfg.n_vocab);
        all += counts[r];
    }
    return SL_OK;
}

/* n rows of logits at rank 0 of the last stage, and from there to rank 0 of the first. */
static enum sl_status finish_step(const struct pass *p, uint32_t n)
{
    struct sl_model *m = p->m;
    uint32_t last = m->shard.pp - 1;
    size_t n_logits = (size_t)n * m->cfg.n_vocab;
    enum sl_status status = SL_OK;
    if (n == 0)
        return SL_OK;
    if (m->has_head) {
        float *to = m->shard.pp > 1 ? m->out_logits : p->step->logits;
        m->b->ops->rms_norm(m->b, m->x_rows, m->out_norm, m->cfg.rms_eps, n, m->cfg.dim, m->h);
        if (m->shard.tp == 1)
            group_run(m, &m->head, m->h, m->cfg.dim, n, false, to);
        else
            status = gather_logits(p, to);
    }
    if (status || m->shard.pp == 1 || m->shard.tp_rank != 0)
        return status;
    if (m->has_head)
        return p->x->send(p->x->ctx, 0, m->out_logits, n_logits, p->err);
    if (m->shard.pp_rank == 0)
        return p->x->recv(p->x->ctx, last, p->step->logits, n_logits, p->err);
    return SL_OK;
}

static bool ascends(const uint32_t *rows, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++)
        if (rows[i] < rows[i - 1])
            return false;
    return true;
}

/* Runs of rows a pipeline takes the step in; the same at every rank. */
static uint32_t n_pieces(const struct sl_model *m, const struct sl_model_step *s)
{
    uint32_t n = s->batch->n_tok / m->micro_rows_min;
    bool cuts = m->shard.pp > 1 && s->batch->n_seq <= m->max_batch_tokens &&
                ascends(s->logit_rows, s->n_logit_rows);
    n = n < m->micro_batches ? n : m->micro_batches;
    return cuts && n > 0 ? n : 1;
}

/* Rows [row, end) of the step, which go on from `before`. */
static void cut_piece(const struct pass *p, uint32_t row, uint32_t end, struct piece *piece)
{
    const struct sl_batch *b = p->step->batch;
    uint32_t *q_start = p->m->q_start, first = 0, n = 0;
    while (b->q_start[first + 1] <= row)
        first++;
    for (q_start[0] = 0; first + n < b->n_seq && b->q_start[first + n] < end; n++) {
        uint32_t seq_end = b->q_start[first + n + 1];
        q_start[n + 1] = (seq_end < end ? seq_end : end) - row;
    }
    uint32_t out = piece->out + piece->in.n_logit_rows, out_end = out;
    while (out_end < p->step->n_logit_rows && p->step->logit_rows[out_end] < end)
        out_end++;
    *piece = (struct piece){.in = {.batch = {.n_seq = n,
                                             .n_tok = end - row,
                                             .q_start = q_start,
                                             .pos = b->pos + row,
                                             .page_start = b->page_start + first,
                                             .pages = b->pages},
                                   .tokens = p->step->tokens + row,
                                   .logit_rows = p->step->logit_rows + out,
                                   .n_logit_rows = out_end - out},
                            .row = row,
                            .out = out};
    p->m->b->ops->stage(p->m->b, p->kv, &piece->in, 0, &piece->rows);
}

static enum sl_status run_pieces(const struct pass *p, uint32_t n)
{
    struct piece piece = {.row = 0};
    enum sl_status status = SL_OK;
    for (uint32_t i = 0; i < n && !status; i++) {
        uint32_t row = (uint32_t)((uint64_t)p->step->batch->n_tok * i / n);
        uint32_t end = (uint32_t)((uint64_t)p->step->batch->n_tok * (i + 1) / n);
        cut_piece(p, row, end, &piece);
        status = run_piece(p, &piece);
    }
    return status ? status : finish_step(p, p->step->n_logit_rows);
}

/* ---- a step that only decodes: its ops depend on few numbers, so a device repeats them ---- */

static bool only_decodes(const struct pass *p)
{
    const struct sl_model_step *s = p->step;
    if (p->x || s->on_layer || s->batch->n_tok != s->batch->n_seq ||
        s->n_logit_rows != s->batch->n_tok)
        return false;
    for (uint32_t i = 0; i < s->n_logit_rows; i++)
        if (s->logit_rows[i] != i)
            return false;
    return true;
}

#define ROWS_DOUBLE_TO 32 /* then they grow by as many */

/* Rows of a step that n sequences are part of, as are some fewer. */
static uint32_t rows_bucket(uint32_t n, uint32_t most)
{
    uint32_t b = 1;
    while (b < n)
        b += b < ROWS_DOUBLE_TO ? b : ROWS_DOUBLE_TO;
    return b < most ? b : most;
}

/* The same of positions, in segments. */
static uint32_t positions_bucket(uint32_t n, uint32_t most)
{
    uint32_t b = SL_ATTN_SEGMENT;
    while (b < n && b < most)
        b *= 2;
    return b < most ? b : most;
}

struct decode {
    const struct pass *p;
    const struct piece *piece;
};

static void decode_ops(void *ctx)
{
    const struct decode *d = ctx;
    run_piece(d->p, d->piece); /* no other rank: nothing to fail */
    finish_step(d->p, d->piece->rows.n_logit_rows);
}

static void decode(const struct pass *p, struct piece *piece)
{
    struct sl_model *m = p->m;
    uint32_t most =
        m->max_batch_tokens < m->max_logit_rows ? m->max_batch_tokens : m->max_logit_rows;
    uint32_t n = rows_bucket(piece->in.batch.n_tok, most);
    m->b->ops->stage(m->b, p->kv, &piece->in, n, &piece->rows);
    struct sl_batch *b = &piece->rows.batch;
    b->max_pos = positions_bucket(b->max_pos + 1, m->max_positions) - 1;
    const uint64_t key[4] = {(uint64_t)b->n_tok << 32 | b->max_pos, (uintptr_t)m, (uintptr_t)p->kv,
                             (uintptr_t)p->step->logits};
    struct decode d = {p, piece};
    m->b->ops->replay(m->b, key, decode_ops, &d);
}

static enum sl_status run_step(const struct pass *p)
{
    const struct sl_model_step *s = p->step;
    uint32_t n = n_pieces(p->m, s);
    struct piece piece = {.in = {.batch = *s->batch,
                                 .tokens = s->tokens,
                                 .logit_rows = s->logit_rows,
                                 .n_logit_rows = s->n_logit_rows}};
    if (n > 1)
        return run_pieces(p, n);
    if (only_decodes(p)) {
        decode(p, &piece);
        return SL_OK;
    }
    p->m->b->ops->stage(p->m->b, p->kv, &piece.in, 0, &piece.rows);
    enum sl_status status = run_piece(p, &piece);
    return status ? status : finish_step(p, s->n_logit_rows);
}

static enum sl_status check_step(const struct sl_model *m, const struct sl_model_step *s,
                                 struct sl_err *err)
{
    const struct sl_batch *batch = s->batch;
    if (batch->n_tok > m->max_batch_tokens || s->n_logit_rows > m->max_logit_rows)
        return sl_fail(err, SL_FAILED,
                       "model: step of %u rows and %u rows of logits, planned for %u and %u",
                       batch->n_tok, s->n_logit_rows, m->max_batch_tokens, m->max_logit_rows);
    for (uint32_t i = 0; i < batch->n_tok; i++) {
        if (s->tokens[i] >= m->cfg.n_vocab)
            return sl_fail(err, SL_INVALID, "model: token %u, the vocabulary has %u", s->tokens[i],
                           m->cfg.n_vocab);
        if (batch->pos[i] >= m->max_positions)
            return sl_fail(err, SL_INVALID, "model: position %u, planned for %u", batch->pos[i],
                           m->max_positions);
    }
    for (uint32_t i = 0; i < s->n_logit_rows; i++)
        if (s->logit_rows[i] >= batch->n_tok)
            return sl_fail(err, SL_FAILED, "model: logits of row %u in a step of %u",
                           s->logit_rows[i], batch->n_tok);
    return SL_OK;
}

enum sl_status sl_model_forward(struct sl_model *m, struct sl_kv *kv,
                                const struct sl_model_step *step, const struct sl_exchange *x,
                                struct sl_err *err)
{
    sl_assert(x || (m->shard.tp == 1 && m->shard.pp == 1));
    enum sl_status status = check_step(m, step, err);
    if (status || step->batch->n_tok == 0)
        return status;
    struct pass p = {m, kv, step, x, err};
    return run_step(&p);
}
