/* Opens and closes an engine, and its front: submit, cancel, poll. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/kernels/cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STEP_TARGET_MS_DEFAULT 200

static enum sl_status open_kv(struct sl_engine *e, const struct sl_engine_config *cfg,
                              const struct sl_model_config *m, struct sl_err *err)
{
    struct sl_kv_config kv =
        sl_model_kv_config(m, &e->shard, e->info.page_size, e->info.n_pages, cfg->kv_dtype);
    enum sl_status status = e->backend->ops->kv_open(e->backend, &kv, &e->kv, err);
    e->info.kv_bytes = e->kv.bytes;
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
                                .prefix_cache = cfg->prefix_cache,
                                .events = cfg->kv_events ? &e->events : NULL};
    enum sl_status status = cfg->kv_events ? sl_engine_events_open(e, err) : SL_OK;
    return status ? status : sl_sched_open(&s, &e->sched, err);
}

static bool open_buffers(struct sl_engine *e, const struct sl_engine_config *cfg)
{
    size_t rows = e->info.max_seqs;
    e->committed = calloc(rows, sizeof *e->committed);
    e->sampled = calloc(rows, sizeof *e->sampled);
    e->sample_status = calloc(rows, sizeof *e->sample_status);
    e->ended = calloc(rows, sizeof *e->ended);
    e->scratch = calloc(e->info.n_threads, sizeof(struct sl_sampler_scratch *));
    e->stop_ids = calloc(cfg->n_stop_ids + 1, sizeof *e->stop_ids);
    if (!e->committed || !e->sampled || !e->sample_status || !e->ended || !e->scratch ||
        !e->stop_ids ||
        !sl_logits_open(e->backend, e->info.max_seqs, e->info.n_vocab, &e->out, &e->host))
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

static bool open_transfers(struct sl_engine *e, bool follows)
{
    size_t rows = e->info.max_seqs;
    e->step_exports = calloc(rows, sizeof *e->step_exports);
    e->wire_exports = calloc(rows, sizeof *e->wire_exports);
    if (!follows)
        return e->step_exports && e->wire_exports;
    e->ended_transfers = calloc(TRANSFERS_MAX, sizeof *e->ended_transfers);
    e->orders = sl_queue_open(2 * TRANSFERS_MAX);
    e->inbox = sl_queue_open(2 * TRANSFERS_MAX);
    return e->step_exports && e->ended_transfers && e->orders && e->inbox;
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
    memcpy(e->isa_name, e->backend->arch, sizeof e->isa_name);
    e->info.class_name = e->class_name;
    e->info.isa = e->isa_name;
    e->info.backend = e->backend->ops->name;
}

static enum sl_status open_model(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    struct sl_model_options o = sl_engine_model_options(e);
    o.progress = cfg->progress;
    o.ctx = cfg->progress_ctx;
    return sl_model_open(cfg->gguf, e->backend, &o, &e->model, err);
}

/* Ranks fit together when all of this is equal. */
static uint64_t config_hash(const struct sl_engine *e, const struct wire_limits *l)
{
    uint64_t hash =
        sl_hash64(e->class_name, strlen(e->class_name), e->shard.tp * 65536u + e->shard.pp);
    return sl_hash64(l, sizeof *l, hash);
}

static const struct sl_comm_lane_ops *lane_of(void *symbol)
{
    sl_comm_lane_entry *entry;
    memcpy(&entry, &symbol, sizeof entry); /* C has no cast from data to functions */
    return entry();
}

static enum sl_status open_group(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    const struct sl_engine_info *i = &e->info;
    struct wire_limits l = {.max_seqs = i->max_seqs,
                            .max_rows = i->max_batch_tokens,
                            .max_len = i->max_len,
                            .n_vocab = i->n_vocab,
                            .n_pages = i->n_pages,
                            .page_size = i->page_size};
    if (e->shard.tp * e->shard.pp == 1)
        return SL_OK;
    enum sl_status s = sl_group_open(&cfg->place, &l, config_hash(e, &l), &e->group, err);
    if (s)
        return s;
    if ((s = sl_exchange_bind(e->group, e->backend, sl_model_exchange_floats(e->model), err)))
        return s;
    void *entry = sl_cuda_symbol(e->backend->ops->name, SL_COMM_LANE_ENTRY);
    if (entry)
        e->group->lane = lane_of(entry);
    e->gguf = cfg->gguf;
    if (cfg->n_charter) {
        if (!(e->group->charter = malloc(cfg->n_charter)))
            return sl_fail(err, SL_NO_MEMORY, "engine: no memory for a charter");
        memcpy(e->group->charter, cfg->charter, cfg->n_charter);
        e->group->n_charter = cfg->n_charter;
    }
    e->group->state.kv_room_bytes = sl_engine_kv_room(e);
    e->group->state.max_len = i->max_len;
    return SL_OK;
}

enum sl_status sl_engine_reopen(struct sl_engine *e, uint32_t tp, uint32_t pp, struct sl_err *err)
{
    const struct sl_shard before = e->shard;
    struct sl_model *model = NULL;
    struct sl_kv kv = {0};
    e->shard = sl_shard_of_rank(0, tp, pp);
    enum sl_status s = sl_engine_has_room(e, err);
    struct sl_model_options o = sl_engine_model_options(e);
    if (!s)
        s = sl_model_open(e->gguf, e->backend, &o, &model, err);
    if (!s) {
        struct sl_kv_config k = sl_model_kv_config(sl_model_config(model), &e->shard,
                                                   e->info.page_size, e->info.n_pages, e->kv_dtype);
        s = e->backend->ops->kv_open(e->backend, &k, &kv, err);
    }
    if (!s)
        s = sl_exchange_bind(e->group, e->backend, sl_model_exchange_floats(model), err);
    if (s) {
        if (kv.data)
            e->backend->ops->kv_close(e->backend, &kv);
        if (model)
            sl_model_close(model);
        e->shard = before;
        return s;
    }
    sl_model_close(e->model);
    e->backend->ops->kv_close(e->backend, &e->kv);
    e->model = model;
    e->kv = kv;
    pthread_mutex_lock(&e->stats_lock);
    e->info.weight_bytes = sl_model_weight_bytes(model);
    e->info.kv_bytes = kv.bytes;
    pthread_mutex_unlock(&e->stats_lock);
    sl_group_resize(e->group, tp, pp, sl_engine_kv_room(e), config_hash(e, &e->group->limits));
    return SL_OK;
}

bool sl_engine_follows(const struct sl_engine *e)
{
    return e->group && e->group->rank > 0;
}

static enum sl_status open_parts(struct sl_engine *e, const struct sl_engine_config *cfg,
                                 struct sl_err *err)
{
    struct sl_model_config m;
    enum sl_status status = sl_engine_size(e, cfg, &m, err);
    if (status || (status = open_kv(e, cfg, &m, err)) || (status = open_model(e, cfg, err)))
        return status;
    e->info.weight_bytes = sl_model_weight_bytes(e->model);
    if (e->backend->isa_fell_back)
        sl_log(SL_LOG_WARN, "an instruction set failed its self-check; %s is in force instead",
               sl_isa_name(e->backend->isa));
    name_parts(e, cfg, m.arch);
    e->model_cfg = m;
    e->kv_dtype = cfg->kv_dtype;
    e->kv_dtype_row_bytes = (uint32_t)sl_dtype_bytes(e->kv_dtype, m.head_dim) +
                            (e->kv_dtype == SL_I8 ? (uint32_t)sizeof(float) : 0);
    e->keeps_prefixes = cfg->prefix_cache;
    if ((status = open_group(e, cfg, err)))
        return status;
    if (!open_transfers(e, sl_engine_follows(e)))
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory for transfers");
    if (sl_engine_follows(e))
        return SL_OK;
    if ((status = open_sched(e, cfg, err)))
        return status;
    sl_pacer_init(&e->pacer, cfg->step_target_ms ? cfg->step_target_ms : STEP_TARGET_MS_DEFAULT,
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
    pthread_mutex_init(&e->events_lock, NULL);
    sl_list_init(&e->jobs);
    sl_list_init(&e->exports);
    sl_list_init(&e->imports);
    enum sl_status status = open_parts(e, cfg, err);
    if (status) {
        sl_engine_close(e);
        return status;
    }
    e->stats.last_progress_ns = sl_now_ns();
    if (e->sched)
        sl_sched_stats(e->sched, &e->stats.sched);
    if (pthread_create(&e->thread, NULL,
                       sl_engine_follows(e) ? sl_follower_thread : sl_engine_thread, e)) {
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
    if (e->sched)
        sl_transfers_lost(e, true);
    while (e->inbox && (c = sl_queue_pop(e->inbox))) {
        if (c->kind == CMD_EXPORT_CLOSE)
            sl_export_closed(e, c->transfer);
        if (c->kind == CMD_IMPORT_CLOSE) /* its answer, if still inside, came before */
            sl_import_closed(e, c->transfer);
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
    sl_logits_close(e->backend, e->info.max_seqs, e->info.n_vocab, &e->out, &e->host);
    void *all[] = {e->committed, e->sampled, e->ended,        e->sample_status, e->scratch,
                   e->stop_ids,  e->steps,   e->step_exports, e->wire_exports,  e->ended_transfers};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

void sl_engine_close(struct sl_engine *e)
{
    if (!e)
        return;
    if (e->thread_started) {
        atomic_store(&e->stopping, true);
        if (sl_engine_follows(e))
            sl_group_break(e->group);
        else
            sl_engine_cancel(e, UINT64_MAX); /* wakes the thread; no request has this id */
        if (e->group)
            e->group->stop_joining = true;
        pthread_join(e->thread, NULL);
    }
    drop_requests(e);
    sl_follow_close(e);
    close_buffers(e);
    struct sl_queue *queues[] = {e->inbox, e->outbox, e->free_steps};
    for (size_t i = 0; i < 3; i++)
        if (queues[i])
            sl_queue_close(queues[i]);
    if (e->group)
        sl_exchange_unbind(e->group);
    sl_group_close(e->group);
    if (e->sched)
        sl_sched_close(e->sched);
    if (e->model)
        sl_model_close(e->model);
    if (e->kv.data)
        e->backend->ops->kv_close(e->backend, &e->kv);
    if (e->backend)
        e->backend->ops->close(e->backend);
    sl_engine_events_close(e);
    pthread_mutex_destroy(&e->events_lock);
    pthread_mutex_destroy(&e->stats_lock);
    free(e);
}

void sl_engine_info(struct sl_engine *e, struct sl_engine_info *out)
{
    pthread_mutex_lock(&e->stats_lock);
    *out = e->info;
    pthread_mutex_unlock(&e->stats_lock);
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
    if (sl_engine_follows(e))
        return sl_fail(err, SL_UNSUPPORTED, "rank %u takes no requests", e->group->rank);
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

void sl_engine_group(struct sl_engine *e, struct sl_engine_group *out)
{
    *out = (struct sl_engine_group){
        .state = SL_GROUP_UP, .blamed = 1, .n_ranks = 1, .tp = 1, .pp = 1, .n_formed = 1};
    if (e->group) {
        pthread_mutex_lock(&e->group->lock);
        *out = e->group->state;
        pthread_mutex_unlock(&e->group->lock);
    }
    pthread_mutex_lock(&e->stats_lock);
    if (e->dead.status) {
        out->state = SL_GROUP_ENDED;
        out->why = e->dead;
    }
    pthread_mutex_unlock(&e->stats_lock);
}

void sl_engine_regroup(struct sl_engine *e)
{
    send_command(e, CMD_REGROUP, 0, NULL);
}

void sl_engine_shrink(struct sl_engine *e, uint32_t tp, uint32_t pp)
{
    send_command(e, CMD_SHRINK, (uint64_t)tp << 32 | pp, NULL);
}

uint32_t sl_engine_kernels(struct sl_engine *e, struct sl_engine_kernel out[SL_LIMIT_kernels])
{
    struct sl_launches all[SL_LAUNCHES_MAX];
    uint32_t n = e->backend->ops->launches ? e->backend->ops->launches(e->backend, all) : 0;
    n = n < SL_LIMIT_kernels ? n : SL_LIMIT_kernels;
    for (uint32_t i = 0; i < n; i++) {
        snprintf(out[i].name, sizeof out[i].name, "%s", all[i].name);
        out[i].n = all[i].n;
    }
    return n;
}

uint32_t sl_engine_ranks(struct sl_engine *e, struct sl_engine_rank *out)
{
    if (e->group) {
        pthread_mutex_lock(&e->group->lock);
        memcpy(out, e->group->ranks, e->group->n_ranks * sizeof *out);
        pthread_mutex_unlock(&e->group->lock);
        return e->group->n_ranks;
    }
    struct sl_engine_stats s;
    sl_engine_stats(e, &s);
    out[0] = (struct sl_engine_rank){.pid = (uint32_t)getpid(),
                                     .n_threads = e->info.n_threads,
                                     .weight_bytes = e->info.weight_bytes,
                                     .kv_bytes = e->info.kv_bytes,
                                     .n_steps = s.sched.n_steps,
                                     .n_op_calls = s.n_op_calls};
    memcpy(out[0].isa, e->isa_name, sizeof out[0].isa);
    out[0].n_kernels = sl_engine_kernels(e, out[0].kernels);
    return 1;
}
