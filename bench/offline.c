/* Runs random prompts through an engine and takes the time. */
#include <sluice/bench/offline.h>

#include <sluice/base/time.h>
#include <sluice/engine/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 1000

struct offline_run {
    struct sl_engine *e;
    const struct sl_offline_case *c;
    struct sl_rng rng;
    uint32_t n_vocab, max_new;
    uint32_t *prompt; /* [n_prompt] */
    bool *started;    /* [n_prompts] */
    uint32_t n_submitted, n_started, n_ended;
    uint64_t n_tokens;
    uint64_t start_ns, start_cpu_ns; /* of the timed part */
    uint64_t n_tokens_at_start;
    struct sl_offline_sample *out;
};

static enum sl_status check(const struct sl_offline_case *c, struct sl_err *err)
{
    if (!c->n_prompt || !c->n_batch || c->n_prompts < c->n_batch)
        return sl_fail(err, SL_INVALID, "offline: %u prompts of %u tokens cannot run %u at once",
                       c->n_prompts, c->n_prompt, c->n_batch);
    if (c->mode != SL_OFFLINE_PREFILL && !c->n_gen)
        return sl_fail(err, SL_INVALID, "offline: nothing to generate");
    if (c->mode == SL_OFFLINE_DECODE && c->n_prompts != c->n_batch)
        return sl_fail(err, SL_INVALID, "offline: decode runs all %u prompts at once, not %u",
                       c->n_prompts, c->n_batch);
    return SL_OK;
}

/* In DECODE the first token of a sequence belongs to its prefill. */
static uint32_t new_tokens(const struct sl_offline_case *c)
{
    if (c->mode == SL_OFFLINE_PREFILL)
        return 1;
    return c->mode == SL_OFFLINE_DECODE ? c->n_gen + 1 : c->n_gen;
}

static enum sl_status submit_next(struct offline_run *r, struct sl_err *err)
{
    for (uint32_t i = 0; i < r->c->n_prompt; i++)
        r->prompt[i] = sl_rng_below(&r->rng, r->n_vocab);
    struct sl_engine_request q = {.seq = {.id = (uint64_t)r->n_submitted + 1,
                                          .tokens = r->prompt,
                                          .n_tokens = r->c->n_prompt,
                                          .n_prompt = r->c->n_prompt,
                                          .max_new = r->max_new},
                                  .sampling = sl_sampling_default()};
    q.sampling.temperature = 0;
    q.sampling.ignore_eos = true;
    q.sampling.max_tokens = r->max_new;
    r->n_submitted++;
    return sl_engine_submit(r->e, &q, err);
}

/* The engine's own time of a step counts, for it may be steps ahead of this thread. */
static void start_clock(struct offline_run *r, uint64_t now_ns)
{
    r->start_ns = now_ns;
    r->start_cpu_ns = sl_process_cpu_ns();
    r->n_tokens_at_start = r->n_tokens;
}

static enum sl_status take(struct offline_run *r, const struct sl_engine_out *o, struct sl_err *err)
{
    if (o->end == SL_END_ERROR || !o->has_token)
        return sl_fail(err, o->status ? o->status : SL_FAILED,
                       "offline: sequence %llu could not be computed", (unsigned long long)o->id);
    bool *started = &r->started[o->id - 1];
    r->n_started += !*started;
    *started = true;
    r->n_tokens++;
    r->n_ended += o->end != SL_END_NONE;
    return SL_OK;
}

/* Takes one step's tokens and keeps n_batch sequences in flight. */
static enum sl_status take_step(struct offline_run *r, const struct sl_engine_step *step,
                                struct sl_err *err)
{
    bool all_started = r->n_started == r->c->n_prompts;
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < step->n_outs && !s; i++)
        s = take(r, &step->outs[i], err);
    r->out->n_steps++;
    if (!s && !all_started && r->n_started == r->c->n_prompts) {
        r->out->first_ns = step->done_ns - r->start_ns;
        if (r->c->mode == SL_OFFLINE_DECODE)
            start_clock(r, step->done_ns);
    }
    r->out->wall_ns = step->done_ns - r->start_ns;
    return s;
}

static enum sl_status feed(struct offline_run *r, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    while (!s && r->n_submitted < r->c->n_prompts && r->n_submitted - r->n_ended < r->c->n_batch)
        s = submit_next(r, err);
    return s;
}

/* A run that failed must not leave its sequences to the next one. */
static void abandon(struct offline_run *r)
{
    for (uint32_t id = 1; id <= r->n_submitted; id++)
        sl_engine_cancel(r->e, id);
}

static enum sl_status drive(struct offline_run *r, struct sl_err *err)
{
    start_clock(r, sl_now_ns());
    enum sl_status s = feed(r, err);
    while (!s && r->n_ended < r->c->n_prompts) {
        struct sl_engine_step *step = sl_engine_poll(r->e);
        if (!step) {
            sl_engine_wait(r->e, WAIT_MS);
            continue;
        }
        s = take_step(r, step, err);
        sl_engine_release(r->e, step);
        if (!s)
            s = feed(r, err);
    }
    if (s) {
        abandon(r);
        return s;
    }
    r->out->cpu_ns = sl_process_cpu_ns() - r->start_cpu_ns;
    if (r->c->mode != SL_OFFLINE_DECODE)
        r->out->n_prefill = (uint64_t)r->c->n_prompt * r->c->n_prompts;
    if (r->c->mode != SL_OFFLINE_PREFILL)
        r->out->n_decode = r->n_tokens - r->n_tokens_at_start;
    return SL_OK;
}

enum sl_status sl_offline_run(struct sl_engine *e, const struct sl_offline_case *c, uint64_t run,
                              struct sl_offline_sample *out, struct sl_err *err)
{
    enum sl_status s = check(c, err);
    if (s)
        return s;
    struct sl_engine_info info;
    sl_engine_info(e, &info);
    *out = (struct sl_offline_sample){0};
    struct offline_run r = {.e = e,
                            .c = c,
                            .rng = {.seed = c->seed * 1000003 + run},
                            .n_vocab = info.n_vocab,
                            .max_new = new_tokens(c),
                            .prompt = calloc(c->n_prompt, sizeof(uint32_t)),
                            .started = calloc(c->n_prompts, sizeof(bool)),
                            .out = out};
    s = r.prompt && r.started ? drive(&r, err)
                              : sl_fail(err, SL_NO_MEMORY, "offline: no memory for a prompt");
    free(r.prompt);
    free(r.started);
    return s;
}
