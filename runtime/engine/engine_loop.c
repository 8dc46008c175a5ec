/* The engine thread: takes commands, runs steps, publishes their tokens.
 *
 * Between plan and commit nothing is allocated and no lock is taken but the queues'. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/fault.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

#define WITHOUT_GROUP_MS 20 /* then the rendezvous is tried again */

#define EVENTS_WAIT_MS 2

static _Thread_local bool in_step;

bool sl_engine_in_step(void)
{
    return in_step;
}

/* A step object to fill; waits for the consumer when all are out. NULL when stopping. */
static struct sl_engine_step *step_take(struct sl_engine *e)
{
    for (;;) {
        struct sl_engine_step *s = sl_queue_pop(e->free_steps);
        if (s) {
            s->n_outs = 0;
            return s;
        }
        if (atomic_load(&e->stopping))
            return NULL;
        sl_queue_wait(e->free_steps, 100);
    }
}

static void step_publish(struct sl_engine *e, struct sl_engine_step *s)
{
    s->done_ns = sl_now_ns();
    struct sl_queue *to = s->n_outs ? e->outbox : e->free_steps;
    bool pushed = sl_queue_push(to, s);
    sl_assert(pushed); /* both queues hold every step there is */
}

static void stats_publish(struct sl_engine *e, uint64_t step_ns)
{
    struct sl_sched_stats sched;
    sl_sched_stats(e->sched, &sched);
    pthread_mutex_lock(&e->stats_lock);
    e->stats.sched = sched;
    e->stats.last_progress_ns = sl_now_ns();
    e->stats.n_op_calls = e->backend->n_op_calls;
    e->stats.step_ns_sum += step_ns;
    pthread_mutex_unlock(&e->stats_lock);
}

/* The end of a job. */
static void job_done(struct sl_engine *e, struct job *j, enum sl_status status)
{
    if (j->export)
        sl_export_end(e, j->export, status);
    sl_job_free(j);
}

static void out_end(struct sl_engine *e, struct sl_engine_step *s, struct job *j, enum sl_end end,
                    enum sl_status status)
{
    struct sl_engine_out *o = &s->outs[s->n_outs++];
    *o = (struct sl_engine_out){
        .id = j->req.seq.id, .user = j->req.seq.user, .end = end, .status = status};
    job_done(e, j, status);
}

static void refuse(struct sl_engine *e, struct job *j, enum sl_status status)
{
    struct sl_engine_step *s = step_take(e);
    if (!s) {
        job_done(e, j, status);
        return;
    }
    out_end(e, s, j, SL_END_ERROR, status);
    step_publish(e, s);
}

static void command(struct sl_engine *e, struct cmd *c)
{
    if (c->kind == CMD_CANCEL)
        sl_sched_cancel(e->sched, c->id);
    if (c->kind == CMD_PREEMPT)
        sl_sched_force_preempt(e->sched, c->id);
    if (c->kind == CMD_REGROUP && e->group)
        sl_lead_regroup(e);
    if (c->kind == CMD_SHRINK && e->group && (c->id >> 32) * (uint32_t)c->id < e->group->n_ranks)
        e->resize_to = c->id;
    if (c->kind == CMD_SUBMIT) {
        struct sl_sched_request q = c->job->req.seq;
        q.user = c->job;
        sl_list_push_back(&e->jobs, &c->job->link);
        if (c->job->export)
            sl_export_begin(e, c->job->export);
        enum sl_status status = sl_sched_submit(e->sched, &q, sl_now_ns(), NULL);
        if (status)
            refuse(e, c->job, status);
    }
    if (c->kind == CMD_EXPORT_CLOSE)
        sl_export_closed(e, c->transfer);
    if (c->kind == CMD_IMPORT_OPEN)
        sl_import_answer(e, c->transfer);
    if (c->kind == CMD_IMPORT_SETTLE)
        sl_import_settling(e, c->transfer);
    if (c->kind == CMD_IMPORT_CLOSE)
        sl_import_closed(e, c->transfer);
    free(c);
}

static void commands(struct sl_engine *e)
{
    struct cmd *c;
    while ((c = sl_queue_pop(e->inbox)))
        command(e, c);
}

/* Sequences that left by cancel or deadline. */
static void report_ended(struct sl_engine *e)
{
    struct sl_ended ended;
    struct sl_engine_step *s = NULL;
    while ((!s || s->n_outs < ENDED_PER_STEP) && sl_sched_next_ended(e->sched, &ended)) {
        struct job *j = ended.user;
        if (!s && !(s = step_take(e))) {
            job_done(e, j, SL_CANCELLED);
            return;
        }
        out_end(e, s, j, ended.end, SL_OK);
    }
    if (s)
        step_publish(e, s);
}

struct sampling_work {
    struct sl_engine *e;
    const struct sl_plan *plan;
};

/* Every n-th row is one helper's; each helper has its own scratch. */
static void sample_rows(void *ctx, uint32_t helper)
{
    const struct sampling_work *w = ctx;
    struct sl_engine *e = w->e;
    uint32_t n_vocab = e->info.n_vocab;
    for (uint32_t i = helper; i < w->plan->n_logits; i += e->info.n_threads) {
        struct job *j = w->plan->user[w->plan->logit_seq[i]];
        uint32_t position = w->plan->pos[w->plan->logit_row[i]] + 1;
        e->sample_status[i] =
            sl_sample(&j->req.sampling, e->host.rows + (size_t)i * n_vocab, n_vocab, e->host.max[i],
                      e->host.log_sum[i], &j->counts, j->req.choice, position, j->n_done,
                      e->stop_ids, e->n_stop_ids, e->scratch[helper], &e->sampled[i]);
    }
}

/* A fault: what a broken kernel would leave behind. */
static void spoil_logits(struct sl_engine *e, uint32_t row)
{
    size_t at = (size_t)row * e->info.n_vocab;
    for (uint32_t i = 0; i < e->info.n_vocab; i++)
        e->host.rows[at + i] = NAN;
    e->backend->ops->write(e->backend, e->out.rows + at, e->host.rows + at,
                           e->info.n_vocab * sizeof(float));
}

/* A fault: stands still with work at hand, until it is closed or the point's time is over. */
static void stand_still(struct sl_engine *e)
{
    uint64_t ms = sl_fault_ms(SL_FAULT_ENGINE_WEDGE);
    uint64_t until = ms ? sl_now_ns() + ms * SL_MS_NS : UINT64_MAX;
    struct timespec nap = {0, 1000 * 1000};
    while (!atomic_load(&e->stopping) && sl_now_ns() < until)
        nanosleep(&nap, NULL);
}

enum sl_status sl_engine_forward(struct sl_engine *e, const struct sl_plan *plan,
                                 struct sl_err *err)
{
    struct sl_batch batch = {.n_seq = plan->n_seq,
                             .n_tok = plan->n_tok,
                             .q_start = plan->q_start,
                             .pos = plan->pos,
                             .page_start = plan->page_start,
                             .pages = plan->pages};
    bool tells = e->n_step_exports && !e->backend->on_device;
    struct sl_model_step step = {.batch = &batch,
                                 .tokens = plan->tokens,
                                 .logit_rows = plan->logit_row,
                                 .n_logit_rows = plan->n_logits,
                                 .logits = e->out.rows,
                                 .on_layer = tells ? sl_exports_layer : NULL,
                                 .ctx = e};
    struct sl_exchange *x = e->group ? &e->group->exchange : NULL;
    enum sl_status s = sl_model_forward(e->model, &e->kv, &step, x, err);
    return s || !x ? s : sl_exchange_settle(e->group, err);
}

static enum sl_status compute(struct sl_engine *e, const struct sl_plan *plan, struct sl_err *err)
{
    sl_fault_delay(SL_FAULT_ENGINE_SLOW);
    if (sl_fault(SL_FAULT_ENGINE_FAIL))
        return sl_fail(err, SL_FAILED, "a fault was asked for");
    enum sl_status status = e->group ? sl_lead_plan(e, plan, err) : SL_OK;
    if (!status)
        status = sl_engine_forward(e, plan, err);
    if (!status && plan->n_logits && sl_fault(SL_FAULT_ENGINE_NAN))
        spoil_logits(e, plan->n_logits / 2);
    if (!status)
        status =
            sl_logits_read(e->backend, plan->n_logits, e->info.n_vocab, &e->out, &e->host, err);
    if (status) {
        sl_log(SL_LOG_ERROR, "step %llu failed: %s", (unsigned long long)plan->step, err->msg);
        return status;
    }
    if (!plan->n_logits)
        return SL_OK;
    struct sampling_work work = {e, plan};
    e->backend->ops->parallel(e->backend, e->info.n_threads, sample_rows, &work);
    return SL_OK;
}

/* Row i of the plan becomes one output and one line of the commit. */
static void settle(struct sl_engine *e, const struct sl_plan *plan, uint32_t i,
                   enum sl_status status, struct sl_engine_step *s)
{
    struct job *j = plan->user[plan->logit_seq[i]];
    struct sl_engine_out *o = &s->outs[s->n_outs++];
    *o = (struct sl_engine_out){.id = j->req.seq.id, .user = j->req.seq.user};
    if (!j->reported_cached) {
        o->n_cached = sl_sched_cached_tokens(e->sched, j->req.seq.id);
        j->reported_cached = true;
    }
    if (status || e->sample_status[i]) {
        o->end = SL_END_ERROR;
        o->status = status ? status : e->sample_status[i];
        e->committed[i] = (struct sl_sampled_token){0, SL_END_ERROR};
        return;
    }
    uint32_t token = e->sampled[i].token;
    sl_job_count(j, token);
    o->has_token = true;
    o->token = e->sampled[i];
    o->end = sl_job_end(j, e->stop_ids, e->n_stop_ids, token, plan->pos[plan->logit_row[i]] + 1,
                        e->info.max_len);
    e->committed[i] = (struct sl_sampled_token){token, o->end};
}

/* Jobs that end with this step; they are freed after the commit. */
static uint32_t collect_ended(struct sl_engine *e, const struct sl_plan *plan,
                              const struct sl_engine_step *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_logits; i++)
        if (s->outs[i].end)
            e->ended[n++] = plan->user[plan->logit_seq[i]];
    return n;
}

/* A step that failed as a whole: sequences still in their prompt have no row to carry the error,
 * so they are dropped; the others end with the error. */
static void drop_prefills(struct sl_engine *e, const struct sl_plan *plan)
{
    for (uint32_t s = 0; s < plan->n_seq; s++) {
        bool has_row = false;
        for (uint32_t i = 0; i < plan->n_logits; i++)
            has_row |= plan->logit_seq[i] == s;
        if (!has_row)
            sl_sched_cancel(e->sched, plan->id[s]);
    }
}

static void expect_step(struct sl_engine *e, uint32_t rows)
{
    uint64_t ns = sl_pacer_expect(&e->pacer, rows);
    pthread_mutex_lock(&e->stats_lock);
    e->stats.step_expected_ns = ns;
    pthread_mutex_unlock(&e->stats_lock);
}

/* ---- after the device has failed ---- */

/* Nothing it computed counts; whoever looks at the group learns of it before the outputs that say
 * so, and may let others compute the requests. */
static void note_death(struct sl_engine *e, const struct sl_err *why)
{
    pthread_mutex_lock(&e->stats_lock);
    e->dead = *why;
    pthread_mutex_unlock(&e->stats_lock);
    if (e->group)
        sl_group_end(e->group, why->status, why);
}

static void end_jobs(struct sl_engine *e)
{
    while (!sl_list_empty(&e->jobs)) {
        struct sl_engine_step *s = step_take(e);
        if (!s)
            return; /* stopping: they are dropped */
        while (!sl_list_empty(&e->jobs) && s->n_outs < ENDED_PER_STEP)
            out_end(e, s, SL_ENTRY(e->jobs.next, struct job, link), SL_END_ERROR, e->dead.status);
        step_publish(e, s);
    }
}

/* Refuses what comes, until the engine is closed. */
static void stay_dead(struct sl_engine *e)
{
    end_jobs(e);
    while (!atomic_load(&e->stopping)) {
        sl_queue_wait(e->inbox, 100);
        commands(e);
        end_jobs(e);
    }
}

static void run_step(struct sl_engine *e, const struct sl_plan *plan, struct sl_engine_step *s)
{
    uint64_t start = sl_now_ns();
    uint32_t rows = plan->n_tok;
    s->step = plan->step;
    in_step = true;
    struct sl_err err;
    sl_exports_plan(e, plan);
    enum sl_status status = compute(e, plan, &err);
    if (e->group && sl_group_is_loss(status)) { /* not the requests' fault: they wait */
        in_step = false;
        sl_lead_lost(e, &err);
        step_publish(e, s);
        return;
    }
    if (status == SL_NO_MEMORY)
        note_death(e, &err);
    for (uint32_t i = 0; i < plan->n_logits; i++)
        settle(e, plan, i, status, s);
    if (status)
        drop_prefills(e, plan);
    uint32_t n_ended = collect_ended(e, plan, s);
    sl_sched_commit(e->sched, e->committed, sl_now_ns());
    sl_exports_commit(e, status);
    if (e->group && !status)
        e->group->done_step = plan->step;
    in_step = false;
    for (uint32_t i = 0; i < n_ended; i++)
        job_done(e, e->ended[i], SL_FAILED);

    uint64_t ns = sl_now_ns() - start;
    sl_pacer_observe(&e->pacer, rows, ns);
    stats_publish(e, ns);
    step_publish(e, s);
}

/* Nothing to compute: sleep until a command or the next deadline. */
static void idle(struct sl_engine *e)
{
    if (e->group)
        sl_lead_idle(e);
    stats_publish(e, 0);
    uint64_t deadline = sl_sched_next_deadline(e->sched), now = sl_now_ns();
    int ms = 1000;
    if (deadline <= now)
        ms = 0;
    else if ((deadline - now) / SL_MS_NS < (uint64_t)ms)
        ms = (int)((deadline - now) / SL_MS_NS) + 1;
    int soon = e->group ? sl_lead_wait_ms(e) : -1;
    if (soon >= 0 && ms > soon)
        ms = soon;
    if (sl_engine_events_pass(e) && ms > EVENTS_WAIT_MS)
        ms = EVENTS_WAIT_MS; /* until there is room for the rest */
    sl_queue_wait(e->inbox, ms);
}

void *sl_engine_thread(void *arg)
{
    struct sl_engine *e = arg;
    while (!atomic_load(&e->stopping)) {
        commands(e);
        if (e->resize_to)
            sl_lead_resize(e);
        if (e->group && !sl_lead_ready(e)) {
            report_ended(e);
            sl_queue_wait(e->inbox, WITHOUT_GROUP_MS);
            continue;
        }
        if (e->group)
            sl_lead_between(e);
        if (e->group && !e->group->comm)
            continue;
        const struct sl_plan *plan =
            sl_sched_plan(e->sched, sl_pacer_budget(&e->pacer), sl_now_ns());
        report_ended(e);
        if (!plan) {
            idle(e);
            continue;
        }
        struct sl_engine_step *s = step_take(e);
        if (!s)
            break;
        expect_step(e, plan->n_tok);
        if (sl_fault(SL_FAULT_ENGINE_WEDGE))
            stand_still(e);
        run_step(e, plan, s);
        sl_engine_events_pass(e);
        if (e->dead.status)
            stay_dead(e);
    }
    if (e->group)
        sl_lead_leave(e);
    return NULL;
}
