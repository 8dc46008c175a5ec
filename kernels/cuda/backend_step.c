/* A step: memory planned for the largest one, its arrays staged in one copy, graphs of those that
 * only decode.
 *
 * The arrays of a step lie one behind the other in an order and at places that follow from its
 * numbers of rows alone, so a recorded graph finds those of the next step where the last one's
 * were. Rows that fill a step up go to pages behind the cache's own, each to a position of its own,
 * where each reads what the ones before it wrote. */
#include <stdlib.h>
#include <string.h>

#include "cuda/backend.h"
#include "num.h"

/* ---- planning ---- */

static uint32_t round4(uint32_t n)
{
    return (n + 3) / 4 * 4; /* 16 bytes */
}

/* Words before the page numbers. */
static size_t fixed_words(uint32_t n_tok, uint32_t n_seq, uint32_t n_logit_rows)
{
    return 3 * (size_t)round4(n_tok) + 2 * (size_t)round4(n_seq + 1) + round4(n_logit_rows);
}

static size_t stage_words(const struct sl_step_limits *l)
{
    size_t page = l->page_size ? l->page_size : 1;
    size_t pages = l->n_seq * ((l->n_positions + page - 1) / page) + PAD_MAX;
    return fixed_words(l->n_tok, l->n_seq + PAD_MAX, l->n_logit_rows) + pages;
}

static size_t act_bytes(const struct sl_step_limits *l)
{
    size_t most = 0;
    for (int t = 0; t < SL_N_DTYPE; t++) {
        size_t n = l->k_max[t] ? cuda_act_bytes((enum sl_dtype)t, l->n_tok, l->k_max[t]) : 0;
        most = n > most ? n : most;
    }
    return most;
}

static size_t attn_bytes(const struct sl_step_limits *l)
{
    if (!l->n_heads || !l->n_positions)
        return 0;
    return cuda_attention_scratch(l->n_seq, l->n_tok, l->n_heads, l->head_dim, l->n_positions - 1);
}

size_t cuda_op_plan_bytes(struct sl_backend *b, const struct sl_step_limits *l)
{
    (void)b;
    return stage_words(l) * sizeof(uint32_t) + act_bytes(l) + attn_bytes(l);
}

static void widen(struct sl_step_limits *l, const struct sl_step_limits *by)
{
    const uint32_t *from = (const uint32_t *)(const void *)by;
    uint32_t *to = (uint32_t *)(void *)l, page = l->page_size;
    for (size_t i = 0; i < sizeof *l / sizeof *to; i++)
        to[i] = from[i] > to[i] ? from[i] : to[i];
    if (page && page < by->page_size)
        l->page_size = page;
    else
        l->page_size = by->page_size;
}
_Static_assert(sizeof(struct sl_step_limits) == (8 + SL_N_DTYPE) * sizeof(uint32_t),
               "only numbers");

static enum sl_status grow(struct cuda_backend *b, void **p, size_t *has, size_t want,
                           struct sl_err *err)
{
    if (want <= *has)
        return SL_OK;
    cuda_give(b, *p);
    *has = 0;
    enum sl_status s = cuda_take(b, want, p, err);
    if (!s)
        *has = want;
    return s;
}

static void stage_close(struct cuda_backend *b)
{
    cuda_give(b, b->staged);
    if (b->stage_pinned)
        cuda_ok(b, cudaFreeHost(b->stage_pinned), "cudaFreeHost");
    b->staged = b->stage_pinned = NULL;
    b->stage_words = 0;
}

static enum sl_status stage_open(struct cuda_backend *b, struct sl_err *err)
{
    size_t words = stage_words(&b->limits), bytes = words * sizeof *b->staged;
    void *p;
    stage_close(b);
    enum sl_status s = cuda_take(b, bytes, &p, err);
    b->staged = p;
    if (s)
        return s;
    b->stage_pinned = cuda_op_mirror(&b->base, NULL, bytes * b->limits.n_stages);
    if (!b->stage_pinned)
        return sl_fail(err, SL_NO_MEMORY, "cuda: no pinned memory for steps of %u rows",
                       b->limits.n_tok);
    b->stage_words = words;
    return SL_OK;
}

enum sl_status cuda_op_plan(struct sl_backend *base, const struct sl_step_limits *limits,
                            struct sl_err *err)
{
    struct cuda_backend *b = cuda_of(base);
    uint32_t n_stages = b->limits.n_stages;
    cuda_load_close(b);
    widen(&b->limits, limits);
    enum sl_status s = SL_OK;
    if (stage_words(&b->limits) > b->stage_words || b->limits.n_stages > n_stages)
        s = stage_open(b, err);
    if (!s)
        s = grow(b, &b->act, &b->act_bytes, act_bytes(&b->limits), err);
    if (!s)
        s = grow(b, &b->attn, &b->attn_bytes, attn_bytes(&b->limits), err);
    return s ? s : cuda_op_finish(base, err); /* the weights have come */
}

void cuda_plan_close(struct cuda_backend *b)
{
    stage_close(b);
    cuda_give(b, b->act);
    cuda_give(b, b->attn);
    cuda_graphs_drop(b);
}

/* ---- staging ---- */

/* The arrays of one step, at the same places on both sides. */
struct places {
    uint32_t *tokens, *pos, *seq_of, *q_start, *page_start, *logit_rows, *pages;
};

static struct places places_of(uint32_t *at, uint32_t n_tok, uint32_t n_seq, uint32_t n_logit_rows)
{
    struct places p = {.tokens = at};
    p.pos = p.tokens + round4(n_tok);
    p.seq_of = p.pos + round4(n_tok);
    p.q_start = p.seq_of + round4(n_tok);
    p.page_start = p.q_start + round4(n_seq + 1);
    p.logit_rows = p.page_start + round4(n_seq + 1);
    p.pages = p.logit_rows + round4(n_logit_rows);
    return p;
}

static void copy_or_zero(uint32_t *to, const uint32_t *from, uint32_t n)
{
    if (from)
        memcpy(to, from, n * sizeof *to);
    else
        memset(to, 0, n * sizeof *to);
}

/* What the caller gave. */
static void fill(const struct sl_step_rows *in, const struct places *p, struct sl_batch *out)
{
    const struct sl_batch *b = &in->batch;
    uint32_t first_page = b->n_seq ? b->page_start[0] : 0;
    copy_or_zero(p->tokens, in->tokens, b->n_tok);
    copy_or_zero(p->pos, b->pos, b->n_tok);
    copy_or_zero(p->q_start, b->q_start, b->n_seq + 1);
    copy_or_zero(p->logit_rows, in->logit_rows, in->n_logit_rows);
    for (uint32_t s = 0; s <= b->n_seq; s++)
        p->page_start[s] = b->page_start[s] - first_page;
    copy_or_zero(p->pages, b->pages + first_page, p->page_start[b->n_seq]);
    for (uint32_t s = 0; s < b->n_seq; s++) {
        uint32_t rows = b->q_start[s + 1] - b->q_start[s];
        out->max_rows = rows > out->max_rows ? rows : out->max_rows;
        for (uint32_t t = b->q_start[s]; t < b->q_start[s + 1]; t++)
            p->seq_of[t] = s;
    }
    for (uint32_t t = 0; t < b->n_tok; t++)
        out->max_pos = b->pos[t] > out->max_pos ? b->pos[t] : out->max_pos;
}

/* Rows [n, n_pad), each a sequence of its own. */
static void pad(const struct sl_kv *kv, uint32_t n, uint32_t n_pad, const struct places *p)
{
    for (uint32_t i = n; i < n_pad; i++) {
        uint32_t at = i - n, n_pages = p->page_start[i];
        p->tokens[i] = 0;
        p->pos[i] = at % kv->cfg.page_size;
        p->seq_of[i] = p->logit_rows[i] = i;
        p->q_start[i + 1] = i + 1;
        p->pages[n_pages] = kv->cfg.n_pages + at / kv->cfg.page_size;
        p->page_start[i + 1] = n_pages + 1;
    }
}

static bool fits(struct cuda_backend *b, size_t words)
{
    if (words <= b->stage_words && b->n_staged < b->limits.n_stages)
        return true;
    if (!b->failed.status)
        sl_fail(&b->failed, SL_NO_MEMORY, "cuda: a step of %zu words, planned for %zu", words,
                b->stage_words);
    return false;
}

void cuda_op_stage(struct sl_backend *base, const struct sl_kv *kv, const struct sl_step_rows *in,
                   uint32_t n_pad, struct sl_step_rows *out)
{
    struct cuda_backend *b = cuda_of(base);
    uint32_t n = in->batch.n_tok, add = n_pad > n && n_pad - n <= PAD_MAX ? n_pad - n : 0;
    uint32_t n_tok = n + add, n_seq = in->batch.n_seq + add, n_rows = in->n_logit_rows + add;
    uint32_t n_pages = in->batch.page_start[in->batch.n_seq] - in->batch.page_start[0] + add;
    size_t words = fixed_words(n_tok, n_seq, n_rows) + n_pages;
    *out = *in;
    if (!cuda_enter(b) || !fits(b, words))
        return;
    uint32_t *pinned = b->stage_pinned + b->n_staged++ * b->stage_words;
    struct places host = places_of(pinned, n_tok, n_seq, n_rows);
    struct places dev = places_of(b->staged, n_tok, n_seq, n_rows);
    struct sl_batch batch = {.n_seq = n_seq,
                             .n_tok = n_tok,
                             .q_start = dev.q_start,
                             .pos = dev.pos,
                             .page_start = dev.page_start,
                             .pages = dev.pages,
                             .seq_of = dev.seq_of};
    fill(in, &host, &batch);
    if (add)
        pad(kv, n, n_tok, &host);
    cuda_ok(b,
            cudaMemcpyAsync(b->staged, pinned, words * sizeof *pinned, cudaMemcpyHostToDevice,
                            b->stream),
            "cudaMemcpyAsync of a step");
    *out = (struct sl_step_rows){
        .batch = batch, .tokens = dev.tokens, .logit_rows = dev.logit_rows, .n_logit_rows = n_rows};
}

/* ---- graphs ---- */

static void graph_close(struct cuda_backend *b, struct graph *g)
{
    if (g->exec)
        cuda_ok(b, cudaGraphExecDestroy(g->exec), "cudaGraphExecDestroy");
    g->exec = NULL;
}

void cuda_graphs_drop(struct cuda_backend *b)
{
    for (uint32_t i = 0; i < GRAPHS_MAX; i++)
        graph_close(b, &b->graphs[i]);
}

static struct graph *find_graph(struct cuda_backend *b, const uint64_t key[4])
{
    for (uint32_t i = 0; i < GRAPHS_MAX; i++)
        if (b->graphs[i].exec && !memcmp(b->graphs[i].key, key, sizeof b->graphs[i].key))
            return &b->graphs[i];
    return NULL;
}

/* Records what fn enqueues; NULL after a failure. */
static struct graph *record(struct cuda_backend *b, const uint64_t key[4], void (*fn)(void *ctx),
                            void *ctx)
{
    struct graph *g = &b->graphs[b->graph_at++ % GRAPHS_MAX];
    cudaGraph_t recorded = NULL;
    graph_close(b, g);
    if (!cuda_ok(b, cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture"))
        return NULL;
    g->launches.n = 0;
    dev_count_into(&g->launches);
    fn(ctx);
    dev_count_into(NULL);
    cudaError_t e = cudaStreamEndCapture(b->stream, &recorded); /* also after a failed op */
    if (cuda_ok(b, e, "cudaStreamEndCapture"))
        cuda_ok(b, cudaGraphInstantiate(&g->exec, recorded, 0), "cudaGraphInstantiate");
    if (recorded)
        cuda_ok(b, cudaGraphDestroy(recorded), "cudaGraphDestroy");
    memcpy(g->key, key, sizeof g->key);
    return b->failed.status ? NULL : g;
}

void cuda_op_replay(struct sl_backend *base, const uint64_t key[4], void (*fn)(void *ctx),
                    void *ctx)
{
    struct cuda_backend *b = cuda_of(base);
    if (!cuda_enter(b))
        return;
    struct graph *g = find_graph(b, key);
    if (!g)
        g = record(b, key, fn, ctx);
    if (g && cuda_ok(b, cudaGraphLaunch(g->exec, b->stream), "cudaGraphLaunch"))
        dev_count_add(&g->launches);
}
