/* Opens and closes an engine, and its front: submit, cancel, poll. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SEQS_DEFAULT           64
#define QUEUE_DEFAULT          256
#define PAGE_DEFAULT           16
#define BATCH_TOKENS_DEFAULT   512
#define STEP_TARGET_MS_DEFAULT 200
#define KV_MEMORY_SHARE        4 /* at most a quarter of physical memory unless told otherwise */

static uint32_t or_default(uint32_t given, uint32_t def)
{
    return given ? given : def;
}

static uint64_t physical_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : (uint64_t)1 << 30;
}

enum sl_status sl_engine_open_backend(const struct sl_engine_config *cfg, struct sl_backend **out,
                                      struct sl_err *err)
{
    const char *name = cfg->backend ? cfg->backend : "cpu";
    if (!strcmp(name, "ref"))
        return sl_ref_open(out, err);
    if (strcmp(name, "cpu") != 0)
        return sl_fail_param(err, SL_UNSUPPORTED, "backend", "backend '%s' is not implemented",
                             name);
    struct sl_cpu_config cpu = {.isa = cfg->isa, .n_threads = or_default(cfg->n_threads, 1)};
    return sl_cpu_open(&cpu, out, err);
}

/* Limits that follow from the configuration and the model. */
static enum sl_status plan_limits(struct sl_engine *e, const struct sl_engine_config *cfg,
                                  const struct sl_model_config *m, struct sl_err *err)
{
    struct sl_engine_info *i = &e->info;
    i->max_seqs = or_default(cfg->max_seqs, SEQS_DEFAULT);
    i->queue_max = or_default(cfg->queue_max, QUEUE_DEFAULT);
    i->page_size = or_default(cfg->page_size, PAGE_DEFAULT);
    i->max_len = or_default(cfg->max_len, m->ctx_max);
    i->max_batch_tokens = or_default(cfg->max_batch_tokens, BATCH_TOKENS_DEFAULT);
    i->n_vocab = m->n_vocab;
    i->n_threads = e->backend->n_threads;
    if (i->max_len > m->ctx_max)
        return sl_fail_param(err, SL_USAGE, "max-model-len",
                             "max-model-len %u is longer than the model's context of %u",
                             i->max_len, m->ctx_max);
    if (SL_ATTN_SEGMENT % i->page_size)
        return sl_fail_param(err, SL_USAGE, "page-size", "page-size %u does not divide %d",
                             i->page_size, SL_ATTN_SEGMENT);
    if (i->max_batch_tokens < i->max_seqs)
        i->max_batch_tokens = i->max_seqs;
    return SL_OK;
}

/* As many pages as every sequence at full length could need, or as memory allows. */
static enum sl_status open_kv(struct sl_engine *e, const struct sl_engine_config *cfg,
                              const struct sl_model_config *m, struct sl_err *err)
{
    struct sl_engine_info *i = &e->info;
    uint64_t page_bytes = sl_model_kv_token_bytes(m, NULL, cfg->kv_dtype) * i->page_size;
    uint64_t seq_pages = (i->max_len + i->page_size - 1) / i->page_size;
    uint64_t pages = seq_pages * i->max_seqs;
    uint64_t room = cfg->kv_bytes ? cfg->kv_bytes : physical_bytes() / KV_MEMORY_SHARE;
    if (cfg->kv_bytes || pages > room / page_bytes)
        pages = room / page_bytes;
    if (pages > UINT32_MAX / 2)
        pages = UINT32_MAX / 2;
    if (pages < 2)
        return sl_fail_param(err, SL_NO_MEMORY, "kv-cache-memory-bytes",
                             "kv cache of %llu bytes holds fewer than 2 pages of %llu bytes",
                             (unsigned long long)room, (unsigned long long)page_bytes);
    i->n_pages = (uint32_t)pages;
    if (pages * i->page_size < i->max_len)
        i->max_len = (uint32_t)pages * i->page_size; /* no sequence can be longer than the pool */
    struct sl_kv_config kv = sl_model_kv_config(m, NULL, i->page_size, i->n_pages, cfg->kv_dtype);
    enum sl_status status = e->backend->ops->kv_open(e->backend, &kv, &e->kv, err);
    i->kv_bytes = e->kv.bytes;
    return status;
}

static enum sl_status open_sched(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    struct sl_sched_config s = {.max_seqs = e->info.max_seqs,
                                .max_batch_tokens = e->info.max_batch_tokens,
                                .max_len = e->info.max_len,
                                .n_pages = e->info.n_pages,
                                .page_size = e->info.page_size,
                                .queue_max = e->info.queue_max,
                                .prefix_cache = cfg->prefix_cache};
    return sl_sched_open(&s, &e->sched, err);
}

static bool open_buffers(struct sl_engine *e, const struct sl_engine_config *cfg)
{
    size_t rows = e->info.max_seqs;
    e->logits = sl_pages_alloc(rows * e->info.n_vocab * sizeof *e->logits);
    e->row_max = calloc(rows, sizeof *e->row_max);
    e->row_log_sum = calloc(rows, sizeof *e->row_log_sum);
    e->row_argmax = calloc(rows, sizeof *e->row_argmax);
    e->committed = calloc(rows, sizeof *e->committed);
    e->sampled = calloc(rows, sizeof *e->sampled);
    e->sample_status = calloc(rows, sizeof *e->sample_status);
    e->ended = calloc(rows, sizeof *e->ended);
    e->step_exports = calloc(rows, sizeof *e->step_exports);
    e->keeps_prefixes = cfg->prefix_cache;
    e->scratch = calloc(e->info.n_threads, sizeof(struct sl_sampler_scratch *));
    e->stop_ids = calloc(cfg->n_stop_ids + 1, sizeof *e->stop_ids);
    if (!e->logits || !e->row_max || !e->row_log_sum || !e->row_argmax || !e->committed ||
        !e->sampled || !e->sample_status || !e->step_exports || !e->ended || !e->scratch ||
        !e->stop_ids)
        return false;
    if (cfg->n_stop_ids)
        memcpy(e->stop_ids, cfg->stop_ids, cfg->n_stop_ids * sizeof *e->stop_ids);
    e->n_stop_ids = cfg->n_stop_ids;
    for (uint32_t i = 0; i < e->info.n_threads; i++)
        if (!(e->scratch[i] = sl_sampler_scratch_new(e->info.n_vocab)))
            return false;
    return true;
}

/* Cancels must always find room: submits take at most half of it. */
static size_t inbox_capacity(const struct sl_engine *e)
{
    return 4 * ((size_t)e->info.queue_max + e->info.max_seqs + SL_LIMIT_bulk_connections);
}

static bool open_queues(struct sl_engine *e)
{
    uint32_t outs = e->info.max_seqs > ENDED_PER_STEP ? e->info.max_seqs : ENDED_PER_STEP;
    e->inbox = sl_queue_open(inbox_capacity(e));
    e->outbox = sl_queue_open(STEPS_IN_FLIGHT);
    e->free_steps = sl_queue_open(STEPS_IN_FLIGHT);
    e->steps = calloc(STEPS_IN_FLIGHT, sizeof *e->steps);
    if (!e->inbox || !e->outbox || !e->free_steps || !e->steps)
        return false;
    for (uint32_t i = 0; i < STEPS_IN_FLIGHT; i++) {
        e->steps[i].outs = calloc(outs, sizeof *e->steps[i].outs);
        if (!e->steps[i].outs || !sl_queue_push(e->free_steps, &e->steps[i]))
            return false;
    }
    return true;
}

void sl_engine_name_class(char name[SL_CLASS_NAME_MAX], const struct sl_engine_config *cfg,
                          const struct sl_backend *b, const struct sl_model *m, const char *arch)
{
    struct sl_model_class c = sl_model_class(m);
    snprintf(name, SL_CLASS_NAME_MAX, "%s/%s/%.64s/kv-%s/s%u.%u/seg%u/r%u", b->ops->name, arch,
             cfg->weights_sha256 ? cfg->weights_sha256 : "unknown",
             sl_dtype_row(cfg->kv_dtype)->text, c.n_attn_slices, c.n_ffn_slices, c.attn_segment,
             c.numerics_revision);
}

static void name_parts(struct sl_engine *e, const struct sl_engine_config *cfg, const char *arch)
{
    sl_engine_name_class(e->class_name, cfg, e->backend, e->model, arch);
    snprintf(e->isa_name, sizeof e->isa_name, "%s", sl_isa_name(e->backend->isa));
    e->info.class_name = e->class_name;
    e->info.isa = e->isa_name;
    e->info.backend = e->backend->ops->name;
}

static enum sl_status open_parts(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    struct sl_model_config m;
    enum sl_status status = sl_model_read_config(cfg->gguf, &m, err);
    if (status || (status = sl_engine_open_backend(cfg, &e->backend, err)) ||
        (status = plan_limits(e, cfg, &m, err)))
        return status;
    if ((status = open_kv(e, cfg, &m, err)) || (status = open_sched(e, cfg, err)))
        return status;
    struct sl_model_options options = {.max_batch_tokens = e->info.max_batch_tokens,
                                       .max_positions = e->info.max_len,
                                       .max_logit_rows = e->info.max_seqs,
                                       .progress = cfg->progress,
                                       .ctx = cfg->progress_ctx};
    status = sl_model_open(cfg->gguf, e->backend, &options, &e->model, err);
    if (status)
        return status;
    e->info.weight_bytes = sl_model_weight_bytes(e->model);
    if (e->backend->isa_fell_back)
        sl_log(SL_LOG_WARN, "an instruction set failed its self-check; %s is in force instead",
               sl_isa_name(e->backend->isa));
    name_parts(e, cfg, m.arch);
    sl_pacer_init(&e->pacer, or_default(cfg->step_target_ms, STEP_TARGET_MS_DEFAULT),
                  e->info.max_batch_tokens, cfg->fixed_chunk);
    if (!open_buffers(e, cfg) || !open_queues(e))
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory for %u sequences", e->info.max_seqs);
    return SL_OK;
}

enum sl_status sl_engine_open(const struct sl_engine_config *cfg, struct sl_engine **out,
                              struct sl_err *err)
{
    struct sl_engine *e = calloc(1, sizeof *e);
    if (!e)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory");
    pthread_mutex_init(&e->stats_lock, NULL);
    sl_list_init(&e->jobs);
    enum sl_status status = open_parts(e, cfg, err);
    if (status) {
        sl_engine_close(e);
        return status;
    }
    e->stats.last_progress_ns = sl_now_ns();
    sl_sched_stats(e->sched, &e->stats.sched);
    if (pthread_create(&e->thread, NULL, sl_engine_thread, e)) {
        sl_engine_close(e);
        return sl_fail(err, SL_NO_MEMORY, "engine: cannot start its thread");
    }
    e->thread_started = true;
    *out = e;
    return SL_OK;
}

static void drop_job(struct sl_engine *e, struct job *j)
{
    if (j && j->export)
        sl_export_end(e, j->export, SL_CANCELLED);
    sl_job_free(j);
}

/* Requests that no one will compute any more. */
static void drop_requests(struct sl_engine *e)
{
    struct cmd *c;
    while (e->inbox && (c = sl_queue_pop(e->inbox))) {
        if (c->kind == CMD_EXPORT_CLOSE)
            sl_export_drop(e, c->transfer);
        if (c->kind == CMD_IMPORT_CLOSE) /* its answer, if still inside, came before */
            sl_import_finish(e, c->transfer);
        drop_job(e, c->job);
        free(c);
    }
    while (e->jobs.next && !sl_list_empty(&e->jobs))
        drop_job(e, SL_ENTRY(e->jobs.next, struct job, link));
}

static void close_buffers(struct sl_engine *e)
{
    for (uint32_t i = 0; e->scratch && i < e->info.n_threads; i++)
        sl_sampler_scratch_free(e->scratch[i]);
    for (uint32_t i = 0; e->steps && i < STEPS_IN_FLIGHT; i++)
        free(e->steps[i].outs);
    sl_pages_free(e->logits, (size_t)e->info.max_seqs * e->info.n_vocab * sizeof *e->logits);
    void *all[] = {e->row_max,  e->row_log_sum, e->row_argmax,    e->committed,
                   e->sampled,  e->ended,       e->sample_status, e->scratch,
                   e->stop_ids, e->steps,       e->step_exports};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

void sl_engine_close(struct sl_engine *e)
{
    if (!e)
        return;
    if (e->thread_started) {
        atomic_store(&e->stopping, true);
        sl_engine_cancel(e, UINT64_MAX); /* wakes the thread; no request has this id */
        pthread_join(e->thread, NULL);
    }
    drop_requests(e);
    close_buffers(e);
    struct sl_queue *queues[] = {e->inbox, e->outbox, e->free_steps};
    for (size_t i = 0; i < 3; i++)
        if (queues[i])
            sl_queue_close(queues[i]);
    if (e->sched)
        sl_sched_close(e->sched);
    if (e->model)
        sl_model_close(e->model);
    if (e->kv.data)
        e->backend->ops->kv_close(e->backend, &e->kv);
    if (e->backend)
        e->backend->ops->close(e->backend);
    pthread_mutex_destroy(&e->stats_lock);
    free(e);
}

void sl_engine_info(const struct sl_engine *e, struct sl_engine_info *out)
{
    *out = e->info;
}

static enum sl_status send_command(struct sl_engine *e, enum cmd_kind kind, uint64_t id,
                                   struct job *job)
{
    struct cmd *c = malloc(sizeof *c);
    if (!c)
        return SL_NO_MEMORY;
    *c = (struct cmd){.kind = kind, .id = id, .job = job};
    if (sl_queue_push(e->inbox, c))
        return SL_OK;
    free(c);
    return SL_QUEUE_FULL;
}

void sl_engine_tell(struct sl_engine *e, enum cmd_kind kind, void *transfer)
{
    const struct timespec nap = {0, 1000 * 1000};
    struct cmd *c;
    while (!(c = malloc(sizeof *c)))
        nanosleep(&nap, NULL);
    *c = (struct cmd){.kind = kind, .transfer = transfer};
    while (!sl_queue_push(e->inbox, c))
        nanosleep(&nap, NULL);
}

static enum sl_status check_request(const struct sl_engine *e, const struct sl_engine_request *r,
                                    struct sl_err *err)
{
    const struct sl_sched_request *q = &r->seq;
    if (!q->n_prompt || q->n_prompt > q->n_tokens)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt is empty");
    if (q->n_tokens >= e->info.max_len)
        return sl_fail_param(err, SL_TOO_LONG, "prompt",
                             "prompt of %u tokens leaves no room in a context of %u", q->n_tokens,
                             e->info.max_len);
    for (uint32_t i = 0; i < q->n_tokens; i++)
        if (q->tokens[i] >= e->info.n_vocab)
            return sl_fail_param(err, SL_INVALID, "prompt",
                                 "token id %u is outside the vocabulary of %u", q->tokens[i],
                                 e->info.n_vocab);
    return sl_sampling_check(&r->sampling, e->info.n_vocab, err);
}

enum sl_status sl_engine_submit(struct sl_engine *e, const struct sl_engine_request *r,
                                struct sl_err *err)
{
    enum sl_status status = check_request(e, r, err);
    if (status)
        return status;
    if (sl_queue_len(e->inbox) >= inbox_capacity(e) / 2)
        return sl_fail(err, SL_QUEUE_FULL, "engine: %zu commands are waiting",
                       inbox_capacity(e) / 2);
    struct job *j = sl_job_new(r);
    if (!j)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory for a request of %u tokens",
                       r->seq.n_tokens);
    status = send_command(e, CMD_SUBMIT, r->seq.id, j);
    if (!status)
        return SL_OK;
    sl_job_free(j);
    return sl_fail(err, status, "engine: no room for a further request");
}

void sl_engine_cancel(struct sl_engine *e, uint64_t id)
{
    send_command(e, CMD_CANCEL, id, NULL);
}

void sl_engine_force_preempt(struct sl_engine *e, uint64_t id)
{
    send_command(e, CMD_PREEMPT, id, NULL);
}

struct sl_engine_step *sl_engine_poll(struct sl_engine *e)
{
    return sl_queue_pop(e->outbox);
}

void sl_engine_release(struct sl_engine *e, struct sl_engine_step *s)
{
    bool pushed = sl_queue_push(e->free_steps, s);
    sl_assert(pushed);
}

int sl_engine_fd(struct sl_engine *e)
{
    return sl_queue_fd(e->outbox);
}

void sl_engine_wait(struct sl_engine *e, int timeout_ms)
{
    sl_queue_wait(e->outbox, timeout_ms);
}

void sl_engine_clear_event(struct sl_engine *e)
{
    sl_queue_clear_event(e->outbox);
}

void sl_engine_stats(struct sl_engine *e, struct sl_engine_stats *out)
{
    pthread_mutex_lock(&e->stats_lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->stats_lock);
}
