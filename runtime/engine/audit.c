/* The audit's pass: chunks of rows through the model, a sampled token per generated position. */
#include "engine.h"

#include <float.h>
#include <sluice/engine/audit.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_ROWS 128
#define PAGE_SIZE  16

struct sl_audit {
    struct sl_backend *backend;
    struct sl_model *model;
    struct sl_kv kv;
    uint32_t max_len, n_vocab;
    char class_name[SL_CLASS_NAME_MAX];
    uint32_t *stop_ids;
    uint32_t n_stop_ids;
    uint32_t *pages;         /* 0, 1, 2...: one sequence has them all */
    struct logits out, host; /* of CHUNK_ROWS rows */
    struct sl_sampler_scratch *scratch;
};

static enum sl_status open_kv(struct sl_audit *a, const struct sl_engine_config *cfg,
                              const struct sl_model_config *m, struct sl_err *err)
{
    uint32_t n_pages = (a->max_len + PAGE_SIZE - 1) / PAGE_SIZE;
    struct sl_kv_config kv = sl_model_kv_config(m, NULL, PAGE_SIZE, n_pages, cfg->kv_dtype);
    a->pages = calloc(n_pages, sizeof *a->pages);
    if (!a->pages)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory for %u pages", n_pages);
    for (uint32_t i = 0; i < n_pages; i++)
        a->pages[i] = i;
    return a->backend->ops->kv_open(a->backend, &kv, &a->kv, err);
}

static enum sl_status open_buffers(struct sl_audit *a, const struct sl_engine_config *cfg,
                                   struct sl_err *err)
{
    a->scratch = sl_sampler_scratch_new(a->n_vocab);
    a->stop_ids = calloc(cfg->n_stop_ids + 1u, sizeof *a->stop_ids);
    if (!sl_logits_open(a->backend, CHUNK_ROWS, a->n_vocab, &a->out, &a->host) || !a->scratch ||
        !a->stop_ids)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory for %d rows of %u logits", CHUNK_ROWS,
                       a->n_vocab);
    if (cfg->n_stop_ids)
        memcpy(a->stop_ids, cfg->stop_ids, cfg->n_stop_ids * sizeof *a->stop_ids);
    a->n_stop_ids = cfg->n_stop_ids;
    return SL_OK;
}

static enum sl_status open_parts(struct sl_audit *a, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    struct sl_model_config m;
    enum sl_status s = sl_model_read_config(cfg->gguf, &m, err);
    if (s)
        return s;
    if (a->max_len > m.ctx_max)
        return sl_fail(err, SL_TOO_LONG, "audit: %u tokens, the model's context has %u", a->max_len,
                       m.ctx_max);
    a->n_vocab = m.n_vocab;
    struct sl_model_options options = {.max_batch_tokens = CHUNK_ROWS,
                                       .max_positions = a->max_len,
                                       .max_logit_rows = CHUNK_ROWS,
                                       .progress = cfg->progress,
                                       .ctx = cfg->progress_ctx};
    if ((s = sl_engine_open_backend(cfg, &a->backend, err)) || (s = open_kv(a, cfg, &m, err)) ||
        (s = sl_model_open(cfg->gguf, a->backend, &options, &a->model, err)) ||
        (s = open_buffers(a, cfg, err)))
        return s;
    sl_engine_name_class(a->class_name, cfg, a->backend, a->model, m.arch);
    return SL_OK;
}

enum sl_status sl_audit_open(const struct sl_engine_config *cfg, uint32_t max_len,
                             struct sl_audit **out, struct sl_err *err)
{
    struct sl_audit *a = calloc(1, sizeof *a);
    if (!a)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory");
    a->max_len = max_len ? max_len : 1;
    enum sl_status s = open_parts(a, cfg, err);
    if (s)
        sl_audit_close(a);
    else
        *out = a;
    return s;
}

void sl_audit_close(struct sl_audit *a)
{
    if (!a)
        return;
    if (a->model)
        sl_model_close(a->model);
    if (a->kv.data)
        a->backend->ops->kv_close(a->backend, &a->kv);
    if (a->backend) {
        sl_logits_close(a->backend, CHUNK_ROWS, a->n_vocab, &a->out, &a->host);
        a->backend->ops->close(a->backend);
    }
    sl_sampler_scratch_free(a->scratch);
    free(a->pages);
    free(a->stop_ids);
    free(a);
}

const char *sl_audit_class(const struct sl_audit *a)
{
    return a->class_name;
}

/* --- the pass --------------------------------------------------------------------------------- */

struct pass {
    struct sl_audit *a;
    const struct sl_audit_claim *claim;
    struct job *job; /* penalties and ends, as the engine keeps them */
    struct sl_chain chain;
    struct sl_audit_result *out;
};

static enum sl_status check_claim(const struct sl_audit *a, const struct sl_audit_claim *c,
                                  struct sl_err *err)
{
    if (!c->n_prompt || !c->n_tokens)
        return sl_fail(err, SL_INVALID, "audit: %u prompt and %u generated tokens", c->n_prompt,
                       c->n_tokens);
    if (c->n_prompt > a->max_len || c->n_tokens > a->max_len - c->n_prompt)
        return sl_fail(err, SL_TOO_LONG, "audit: %u and %u tokens, opened for %u", c->n_prompt,
                       c->n_tokens, a->max_len);
    for (uint32_t i = 0; i < c->n_prompt + c->n_tokens; i++) {
        uint32_t token = i < c->n_prompt ? c->prompt[i] : c->tokens[i - c->n_prompt];
        if (token >= a->n_vocab)
            return sl_fail(err, SL_INVALID, "audit: token id %u, the vocabulary has %u", token,
                           a->n_vocab);
    }
    return sl_sampling_check(&c->sampling, a->n_vocab, err);
}

static uint32_t token_at(const struct sl_audit_claim *c, uint32_t pos)
{
    return pos < c->n_prompt ? c->prompt[pos] : c->tokens[pos - c->n_prompt];
}

/* K and V of rows [from, from + n), and logits of those that a generated token follows. */
static enum sl_status forward(const struct pass *p, uint32_t from, uint32_t n, uint32_t *n_logits,
                              struct sl_err *err)
{
    uint32_t tokens[CHUNK_ROWS], pos[CHUNK_ROWS], rows[CHUNK_ROWS];
    uint32_t q_start[] = {0, n}, page_start[] = {0, (from + n + PAGE_SIZE - 1) / PAGE_SIZE};
    *n_logits = 0;
    for (uint32_t i = 0; i < n; i++) {
        pos[i] = from + i;
        tokens[i] = token_at(p->claim, pos[i]);
        if (pos[i] + 1 >= p->claim->n_prompt)
            rows[(*n_logits)++] = i;
    }
    struct sl_batch batch = {.n_seq = 1,
                             .n_tok = n,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = p->a->pages};
    p->out->n_rows += n;
    struct sl_model_step step = {.batch = &batch,
                                 .tokens = tokens,
                                 .logit_rows = rows,
                                 .n_logit_rows = *n_logits,
                                 .logits = p->a->out.rows};
    enum sl_status s = sl_model_forward(p->a->model, &p->a->kv, &step, NULL, err);
    if (s)
        return s;
    return sl_logits_read(p->a->backend, *n_logits, p->a->n_vocab, &p->a->out, &p->a->host, err);
}

/* Minus infinity travels as the least number there is. */
static bool same_logprob(float claimed, float computed)
{
    return claimed == (computed > -FLT_MAX ? computed : -FLT_MAX) || claimed == computed;
}

static bool same_top(const struct sl_token_prob *claimed, const struct sl_token_prob *computed)
{
    return same_logprob(claimed->logprob, computed->logprob) &&
           (claimed->token == SL_AUDIT_ANY_TOKEN || claimed->token == computed->token);
}

static bool same_tops(const struct sl_sampled *claimed, const struct sl_sampled *computed)
{
    bool same = claimed->n_top == computed->n_top;
    for (uint32_t k = 0; same && k < claimed->n_top; k++)
        same = same_top(&claimed->top[k], &computed->top[k]);
    return same;
}

/* The claimed ones are computed ones in the same order, of which some were left out: never the
 * first, whose text no other has shown before it. */
static bool some_of_tops(const struct sl_sampled *claimed, const struct sl_sampled *computed)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < computed->n_top && n < claimed->n_top; k++)
        if (same_top(&claimed->top[n], &computed->top[k]))
            n++;
        else if (!k)
            return false;
    return n == claimed->n_top && (n || !computed->n_top);
}

static bool same_logprobs(const struct sl_audit_claim *c, uint32_t i,
                          const struct sl_sampled *computed)
{
    const struct sl_sampled *claimed = &c->logprobs[i];
    return same_logprob(claimed->logprob, computed->logprob) &&
           (c->tops_by_text ? some_of_tops(claimed, computed) : same_tops(claimed, computed));
}

/* Generated token i against row `row` of the logits; true while all agrees. */
static bool agrees(struct pass *p, uint32_t i, const struct sl_sampled *computed)
{
    const struct sl_audit_claim *c = p->claim;
    struct sl_audit_result *out = p->out;
    if (out->end != SL_END_NONE)
        out->verdict = SL_AUDIT_AFTER_END;
    else if (computed->token != c->tokens[i])
        out->verdict = SL_AUDIT_TOKEN;
    else if (c->logprobs && !same_logprobs(c, i, computed))
        out->verdict = SL_AUDIT_LOGPROB;
    if (out->verdict == SL_AUDIT_AUTHENTIC)
        return true;
    out->at = i;
    out->computed = *computed;
    out->claimed = c->logprobs ? c->logprobs[i] : (struct sl_sampled){0};
    out->claimed.token = c->tokens[i];
    return false;
}

static enum sl_status sample_row(struct pass *p, uint32_t row, uint32_t i, struct sl_sampled *out,
                                 struct sl_err *err)
{
    const struct sl_audit *a = p->a;
    if (sl_sample(&p->claim->sampling, a->host.rows + (size_t)row * a->n_vocab, a->n_vocab,
                  a->host.max[row], a->host.log_sum[row], &p->job->counts, p->claim->choice,
                  p->claim->n_prompt + i, p->job->n_done, a->stop_ids, a->n_stop_ids, a->scratch,
                  out))
        return sl_fail(err, SL_FAILED, "audit: the model gave no numbers for token %u", i);
    return SL_OK;
}

/* The generated tokens that follow this chunk's rows; the first of them is number `first`. */
static enum sl_status compare(struct pass *p, uint32_t first, uint32_t n, struct sl_err *err)
{
    struct sl_audit *a = p->a;
    for (uint32_t row = 0; row < n; row++) {
        struct sl_sampled computed;
        uint32_t i = first + row, token = p->claim->tokens[i];
        enum sl_status s = sample_row(p, row, i, &computed, err);
        if (s)
            return s;
        if (!agrees(p, i, &computed))
            return SL_OK;
        sl_job_count(p->job, token);
        sl_chain_add(&p->chain, token);
        p->out->end = sl_job_end(p->job, a->stop_ids, a->n_stop_ids, token, p->claim->n_prompt + i,
                                 UINT32_MAX);
    }
    return SL_OK;
}

static enum sl_status run(struct pass *p, struct sl_err *err)
{
    const struct sl_audit_claim *c = p->claim;
    uint32_t n_rows = c->n_prompt + c->n_tokens - 1, n_seen = 0, n_logits;
    for (uint32_t from = 0; from < n_rows; from += CHUNK_ROWS) {
        uint32_t n = n_rows - from < CHUNK_ROWS ? n_rows - from : CHUNK_ROWS;
        enum sl_status s = forward(p, from, n, &n_logits, err);
        if (!s && n_logits)
            s = compare(p, n_seen, n_logits, err);
        if (s || p->out->verdict)
            return s;
        n_seen += n_logits;
    }
    return SL_OK;
}

enum sl_status sl_audit_run(struct sl_audit *a, const struct sl_audit_claim *c,
                            struct sl_audit_result *out, struct sl_err *err)
{
    *out = (struct sl_audit_result){.verdict = SL_AUDIT_AUTHENTIC};
    enum sl_status s = check_claim(a, c, err);
    if (s)
        return s;
    if (!sl_str_eqz(c->class_name, a->class_name)) {
        out->verdict = SL_AUDIT_OTHER_CLASS;
        return SL_OK;
    }
    struct sl_audit_claim claim = *c;
    if (c->tops_by_text && c->sampling.n_logprobs)
        claim.sampling.n_logprobs = SL_LOGPROBS_MAX; /* those left out came before the last */
    struct sl_engine_request q = {.sampling = c->sampling, .choice = c->choice};
    q.seq.tokens = c->prompt;
    q.seq.n_tokens = q.seq.n_prompt = c->n_prompt;
    if (q.sampling.max_tokens > c->n_tokens + 1) /* it sizes the table of counts */
        q.sampling.max_tokens = c->n_tokens + 1;
    struct pass p = {.a = a, .claim = &claim, .out = out, .job = sl_job_new(&q)};
    if (!p.job)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory for %u tokens", c->n_prompt);
    sl_chain_start(&p.chain, c->class_name, c->prompt, c->n_prompt, &c->sampling, c->choice);
    s = run(&p, err);
    memcpy(out->chain, p.chain.link, sizeof out->chain);
    if (!s && !out->verdict && memcmp(out->chain, c->chain, sizeof out->chain) != 0)
        out->verdict = SL_AUDIT_CHAIN;
    sl_job_free(p.job);
    return s;
}

const char *sl_audit_verdict_text(enum sl_audit_verdict v)
{
    static const char *const texts[] = {
        "authentic",         "computed in another class", "a token differs",
        "a logprob differs", "goes on after its end",     "the hash chain differs"};
    return v < sizeof texts / sizeof *texts ? texts[v] : "?";
}
