/* A request as the engine keeps it: one allocation, made by the submitting thread. */
#include "engine.h"

#include <sluice/base/mem.h>
#include <stdlib.h>
#include <string.h>

static bool wants_counts(const struct sl_sampling *s)
{
    return s->presence_penalty != 0 || s->frequency_penalty != 0 || s->repetition_penalty != 1;
}

/* Slots of the count table: a power of two, twice as many as tokens there can ever be. */
static uint32_t count_slots(const struct sl_engine_request *r)
{
    if (!wants_counts(&r->sampling))
        return 0;
    uint64_t need = ((uint64_t)r->seq.n_tokens + r->sampling.max_tokens) * 2;
    uint64_t slots = 64;
    while (slots < need)
        slots *= 2;
    return slots <= UINT32_MAX / 2 ? (uint32_t)slots : 0;
}

static void count_given(struct job *j)
{
    if (!j->counts.n_slots)
        return;
    const struct sl_sched_request *q = &j->req.seq;
    for (uint32_t i = 0; i < q->n_tokens; i++) {
        if (i < q->n_prompt)
            sl_counts_add_prompt(&j->counts, q->tokens[i]);
        else
            sl_counts_add_output(&j->counts, q->tokens[i]);
    }
}

struct job *sl_job_new(const struct sl_engine_request *r)
{
    uint32_t slots = count_slots(r);
    size_t words = (size_t)r->seq.n_tokens + r->sampling.n_stop_ids + (size_t)slots * 2;
    struct job *j = calloc(1, sizeof *j + words * sizeof(uint32_t) +
                                  r->sampling.n_bias * sizeof(struct sl_logit_bias));
    if (!j)
        return NULL;
    j->req = *r;
    j->export = r->export_to;
    struct sl_logit_bias *bias = (struct sl_logit_bias *)(void *)(j + 1);
    uint32_t *at = (uint32_t *)(void *)(bias + r->sampling.n_bias);
    if (r->sampling.n_bias)
        memcpy(bias, r->sampling.bias, r->sampling.n_bias * sizeof *bias);
    j->req.sampling.bias = bias;

    memcpy(at, r->seq.tokens, r->seq.n_tokens * sizeof *at);
    j->req.seq.tokens = at;
    at += r->seq.n_tokens;
    if (r->sampling.n_stop_ids)
        memcpy(at, r->sampling.stop_ids, r->sampling.n_stop_ids * sizeof *at);
    j->req.sampling.stop_ids = at;
    at += r->sampling.n_stop_ids;
    j->counts = (struct sl_counts){.keys = at, .n_out = at + slots, .n_slots = slots};
    j->n_done = r->seq.n_tokens - r->seq.n_prompt;
    count_given(j);
    return j;
}

void sl_job_free(struct job *j)
{
    if (!j)
        return;
    sl_list_remove(&j->link);
    free(j);
}

void sl_job_count(struct job *j, uint32_t token)
{
    j->n_done++;
    if (j->counts.n_slots)
        sl_counts_add_output(&j->counts, token);
}

static bool among(const uint32_t *ids, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

enum sl_end sl_job_end(const struct job *j, const uint32_t *stops, uint32_t n_stops, uint32_t token,
                       uint32_t position, uint32_t max_len)
{
    const struct sl_sampling *s = &j->req.sampling;
    bool stop = among(s->stop_ids, s->n_stop_ids, token) ||
                (!s->ignore_eos && among(stops, n_stops, token));
    if (stop && j->n_done >= s->min_tokens)
        return SL_END_STOP;
    if (j->n_done >= s->max_tokens || position + 1 >= max_len)
        return SL_END_LENGTH;
    return SL_END_NONE;
}
