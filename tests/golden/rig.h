/* A model with backend and KV cache, for tests that run one: opens, runs one sequence in chunks,
 * closes. Failures end the test. */
#ifndef SLUICE_TESTS_RIG_H
#define SLUICE_TESTS_RIG_H

#include <sluice/model/model.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define RIG_PAGE 32u

struct rig_config {
    bool ref;                  /* the reference backend instead of the cpu one */
    struct sl_backend *device; /* or this one, which the rig closes */
    enum sl_isa isa;
    uint32_t n_threads;
    uint32_t max_batch, max_pos, max_rows;
    enum sl_dtype kv_dtype;
    struct sl_shard shard;       /* zeros: the whole model */
    const struct sl_exchange *x; /* of a shard */
};

struct rig {
    struct sl_backend *b;
    struct sl_backend *host; /* for what tests compute from logits; b unless that is a device's */
    float *logits;           /* [max_rows, n_vocab] of a device, else NULL */
    size_t logits_bytes;
    struct sl_model *m;
    struct sl_kv kv;
    uint32_t *pages; /* of the sequence rig_run runs: all of them, last first */
    uint32_t max_batch, n_vocab;
    const struct sl_exchange *x;
};

static inline void rig_must(enum sl_status status, const struct sl_err *err)
{
    if (status)
        fail_msg("%s", err->msg);
}

static inline void rig_open(struct rig *r, const struct sl_gguf *g, const struct rig_config *c)
{
    struct sl_err err = {0};
    *r = (struct rig){.max_batch = c->max_batch, .x = c->x};
    struct sl_cpu_config cpu = {.isa = c->isa, .n_threads = c->n_threads};
    rig_must(c->ref ? sl_ref_open(&r->host, &err) : sl_cpu_open(&cpu, &r->host, &err), &err);
    r->b = c->device ? c->device : r->host;
    struct sl_model_options o = {.shard = c->shard,
                                 .max_batch_tokens = c->max_batch,
                                 .max_positions = c->max_pos,
                                 .max_logit_rows = c->max_rows};
    rig_must(sl_model_open(g, r->b, &o, &r->m, &err), &err);
    uint32_t n_pages = (c->max_pos + RIG_PAGE - 1) / RIG_PAGE;
    struct sl_kv_config kc =
        sl_model_kv_config(sl_model_config(r->m), &c->shard, RIG_PAGE, n_pages, c->kv_dtype);
    rig_must(r->b->ops->kv_open(r->b, &kc, &r->kv, &err), &err);
    r->pages = calloc(n_pages, sizeof *r->pages);
    assert_non_null(r->pages);
    for (uint32_t i = 0; i < n_pages; i++)
        r->pages[i] = n_pages - 1 - i;
    r->n_vocab = sl_model_config(r->m)->n_vocab;
    if (r->b->on_device) {
        r->logits_bytes = (size_t)c->max_rows * r->n_vocab * sizeof *r->logits;
        r->logits = r->b->ops->alloc(r->b, r->logits_bytes);
        assert_non_null(r->logits);
    }
}

static inline void rig_close(struct rig *r)
{
    sl_model_close(r->m);
    r->b->ops->kv_close(r->b, &r->kv);
    if (r->logits)
        r->b->ops->free(r->b, r->logits, r->logits_bytes);
    if (r->b != r->host)
        r->b->ops->close(r->b);
    r->host->ops->close(r->host);
    free(r->pages);
}

static inline enum sl_status rig_forward(struct rig *r, const struct sl_batch *batch,
                                         const uint32_t *tokens, const uint32_t *rows,
                                         uint32_t n_rows, float *logits, struct sl_err *err)
{
    struct sl_model_step step = {.batch = batch,
                                 .tokens = tokens,
                                 .logit_rows = rows,
                                 .n_logit_rows = n_rows,
                                 .logits = r->logits ? r->logits : logits};
    enum sl_status s = sl_model_forward(r->m, &r->kv, &step, r->x, err);
    if (!s && r->logits && n_rows)
        r->b->ops->read(r->b, logits, r->logits, (size_t)n_rows * r->n_vocab * sizeof *logits);
    return s ? s : r->b->ops->finish(r->b, err);
}

/* Rows [from, from + n) of the sequence; logits of those at and after first_row go to `logits`,
 * whose row 0 is first_row. */
static inline void rig_chunk(struct rig *r, const uint32_t *tokens, uint32_t from, uint32_t n,
                             uint32_t first_row, float *logits)
{
    uint32_t q_start[2] = {0, n}, page_start[2] = {0, (from + n + RIG_PAGE - 1) / RIG_PAGE};
    uint32_t *pos = calloc(n, sizeof *pos), *rows = calloc(n, sizeof *rows), n_rows = 0;
    assert_true(pos && rows);
    for (uint32_t i = 0; i < n; i++) {
        pos[i] = from + i;
        if (from + i >= first_row)
            rows[n_rows++] = i;
    }
    struct sl_batch batch = {.n_seq = 1,
                             .n_tok = n,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = r->pages};
    size_t at = from > first_row ? from - first_row : 0;
    struct sl_err err = {0};
    rig_must(rig_forward(r, &batch, tokens + from, rows, n_rows,
                         n_rows ? logits + at * r->n_vocab : NULL, &err),
             &err);
    free(pos);
    free(rows);
}

/* A whole sequence from position 0, `chunk` rows a step. */
static inline void rig_run(struct rig *r, const uint32_t *tokens, uint32_t n, uint32_t chunk,
                           uint32_t first_row, float *logits)
{
    for (uint32_t from = 0; from < n; from += chunk)
        rig_chunk(r, tokens, from, n - from < chunk ? n - from : chunk, first_row, logits);
}

#endif
