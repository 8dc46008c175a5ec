/* Private to the engine: the object, its jobs and what the files of this folder share. */
#ifndef SLUICE_ENGINE_PRIVATE_H
#define SLUICE_ENGINE_PRIVATE_H

#include "group.h"

#include <sluice/base/containers.h>
#include <sluice/base/queue.h>
#include <sluice/control/kv_events.h>
#include <sluice/engine/engine.h>
#include <sluice/model/model.h>
#include <pthread.h>
#include <stdatomic.h>

#define STEPS_IN_FLIGHT   64 /* finished steps a slow consumer may leave untaken */
#define SL_CLASS_NAME_MAX 192
#define TRANSFERS_MAX     (8 * SL_LIMIT_bulk_connections) /* that a follower has open */
#define ENDED_PER_STEP    64 /* endings by cancel or deadline reported with one step */

/* One request while the engine has it. Made by the submitting thread in one allocation, then owned
 * by the engine thread. */
struct job {
    struct sl_list link;          /* in the engine's jobs once its thread has taken it */
    struct sl_engine_request req; /* arrays point behind the struct */
    struct sl_counts counts;      /* n_slots 0 when no penalty is on */
    uint32_t n_done;              /* tokens generated, earlier workers' included */
    bool reported_cached;
    struct sl_export *export; /* its pages are read while they are computed; else NULL */
};

enum cmd_kind {
    CMD_SUBMIT,
    CMD_CANCEL,
    CMD_PREEMPT,
    CMD_REGROUP,
    CMD_SHRINK,
    CMD_EXPORT_CLOSE,
    CMD_IMPORT_OPEN,
    CMD_IMPORT_SETTLE,
    CMD_IMPORT_CLOSE
};
struct cmd {
    enum cmd_kind kind;
    uint64_t id; /* SHRINK: tp << 32 | pp */
    struct job *job;
    void *transfer; /* struct sl_export or sl_import */
};

/* How many rows a step may have, from the speed of the steps before. */
struct pacer {
    uint32_t target_ms, rows_min, rows_max, fixed;
    double ns_per_row; /* moving average; 0: unknown */
    double small_ns;   /* the same of whole steps with few rows */
};
void sl_pacer_init(struct pacer *p, uint32_t target_ms, uint32_t rows_max, uint32_t fixed);
uint32_t sl_pacer_budget(const struct pacer *p);
void sl_pacer_observe(struct pacer *p, uint32_t rows, uint64_t ns);
/* How long a step of so many rows should take; 0 before any was measured. */
uint64_t sl_pacer_expect(const struct pacer *p, uint32_t rows);

/* What a step gives, in one run of memory so that it is read at once: per row the largest logit,
 * its index and the log of the sum, then the rows. */
struct logits {
    float *max, *log_sum; /* [n_rows] */
    uint32_t *argmax;
    float *rows; /* [n_rows, n_vocab] */
};
/* Both views of memory for n_rows rows; false when there is none. */
bool sl_logits_open(struct sl_backend *b, uint32_t n_rows, uint32_t n_vocab, struct logits *out,
                    struct logits *host);
void sl_logits_close(struct sl_backend *b, uint32_t n_rows, uint32_t n_vocab, struct logits *out,
                     struct logits *host);
/* The figures of the first n rows, and all of them to the host; waits for the step, whatever n. */
enum sl_status sl_logits_read(struct sl_backend *b, uint32_t n, uint32_t n_vocab,
                              const struct logits *out, const struct logits *host,
                              struct sl_err *err);

struct sl_engine {
    struct sl_engine_info info;
    char class_name[SL_CLASS_NAME_MAX];
    char isa_name[16];

    struct group *group; /* NULL: an engine of its own */
    struct sl_shard shard;
    const struct sl_gguf *gguf; /* of a group: it may be opened again */
    struct sl_model_config model_cfg;
    enum sl_dtype kv_dtype;
    uint32_t kv_dtype_row_bytes; /* K of one position and head, its scale included */

    struct sl_backend *backend;
    struct sl_model *model;
    struct sl_kv kv;
    struct sl_sched *sched;
    struct pacer pacer;
    struct sl_list jobs; /* every request the engine thread has taken */
    bool keeps_prefixes;
    struct sl_export **step_exports; /* [max_seqs] of the step in flight */
    uint32_t n_step_exports, step_rows;
    struct wire_export *wire_exports; /* [max_seqs] rank 0: those that other ranks know */
    uint32_t n_wire_exports;
    struct sl_list exports, imports;  /* all there are; the engine thread's */
    uint64_t n_transfers;             /* rank 0: ids given */
    uint64_t resize_to;               /* rank 0: tp << 32 | pp, once nobody reads or fills pages */
    uint64_t pending_step;            /* follower: computed, not known yet whether it ended well */
    struct wire_ended *ended_transfers; /* [TRANSFERS_MAX] follower: to be told */
    uint32_t n_ended;
    struct sl_queue *orders; /* follower: struct sl_order, to its owner */

    uint32_t *stop_ids;
    uint32_t n_stop_ids;
    struct logits out, host;             /* of a step: the backend's, and the host's view of it */
    struct sl_sampled_token *committed;  /* [max_seqs] */
    struct sl_sampled *sampled;          /* [max_seqs] */
    enum sl_status *sample_status;       /* [max_seqs] */
    struct job **ended;                  /* [max_seqs] freed after the commit */
    struct sl_sampler_scratch **scratch; /* [n_threads] */

    struct sl_queue *inbox;      /* struct cmd, to the engine thread */
    struct sl_queue *outbox;     /* struct sl_engine_step, to the consumer */
    struct sl_queue *free_steps; /* back again */
    struct sl_engine_step *steps;

    pthread_t thread;
    bool thread_started;
    _Atomic bool stopping;

    struct sl_kv_events events; /* of the scheduler, engine thread only; cap 0: nobody listens */
    pthread_mutex_t events_lock;
    struct sl_kv_events events_out; /* on their way to the consumer */
    _Atomic bool retell;

    pthread_mutex_t stats_lock;
    struct sl_err dead; /* why the device computes nothing any more; SL_OK while it does */
    struct sl_engine_stats stats; /* published by the engine thread after each step */
};

/* size.c */
struct sl_model_options sl_engine_model_options(const struct sl_engine *e);
uint64_t sl_engine_kv_room(const struct sl_engine *e);
/* Whether rank 0 of e->shard would find memory in place of what it has now. */
enum sl_status sl_engine_has_room(const struct sl_engine *e, struct sl_err *err);
/* Fills shard and info and opens the backend, nothing else. */
enum sl_status sl_engine_size(struct sl_engine *e, const struct sl_engine_config *cfg,
                              struct sl_model_config *m, struct sl_err *err);
/* size.c and engine.c: also what an audit opens. The class is what must be equal for two workers to
 * give the same bits. */
enum sl_status sl_engine_open_backend(const struct sl_engine_config *cfg, struct sl_backend **out,
                                      struct sl_err *err);
void sl_engine_name_class(char name[SL_CLASS_NAME_MAX], const struct sl_engine_config *cfg,
                          const struct sl_backend *b, const struct sl_model *m, const char *arch);

/* engine.c: whether this rank only follows. */
bool sl_engine_follows(const struct sl_engine *e);
/* engine.c: a command that must arrive: waits for room in the inbox. */
void sl_engine_tell(struct sl_engine *e, enum cmd_kind kind, void *transfer);

/* engine.c: launches by kernel, for figures; their number. */
uint32_t sl_engine_kernels(struct sl_engine *e, struct sl_engine_kernel out[SL_LIMIT_kernels]);

/* export.c: a row of the KV cache, in the backend's memory. */
void *sl_engine_kv_row(const struct sl_engine *e, uint32_t page, uint32_t layer);
static inline bool sl_engine_on_device(const struct sl_engine *e)
{
    return e->backend && e->backend->on_device;
}

/* engine.c: opens model and KV cache once more, for rank 0 of tp x pp; the old ones stay on
 * failure. */
enum sl_status sl_engine_reopen(struct sl_engine *e, uint32_t tp, uint32_t pp, struct sl_err *err);
/* kv_events.c: passing them on; true while some are left for the next time. */
enum sl_status sl_engine_events_open(struct sl_engine *e, struct sl_err *err);
void sl_engine_events_close(struct sl_engine *e);
bool sl_engine_events_pass(struct sl_engine *e);

/* engine_loop.c */
void *sl_engine_thread(void *arg);
enum sl_status sl_engine_forward(struct sl_engine *e, const struct sl_plan *plan,
                                 struct sl_err *err);

/* follower.c: the thread of every other rank. */
void *sl_follower_thread(void *arg);

/* lead.c: what rank 0 does for its group. On the engine's thread. */
enum sl_status sl_lead_plan(struct sl_engine *e, const struct sl_plan *plan, struct sl_err *err);
void sl_lead_lost(struct sl_engine *e, const struct sl_err *why); /* no step is in flight after */
void sl_lead_between(struct sl_engine *e); /* two steps: figures, transfers; may lose the group */
void sl_lead_idle(struct sl_engine *e);                           /* now and then without a step */
void sl_lead_resize(struct sl_engine *e); /* to e->resize_to, as soon as that is possible */
void sl_lead_regroup(struct sl_engine *e); /* a rank is gone */
bool sl_lead_ready(struct sl_engine *e);   /* the group is up, or was brought up now */
void sl_lead_leave(struct sl_engine *e);   /* says goodbye */

/* job.c: a copy of the request with everything it points to; NULL when out of memory. */
struct job *sl_job_new(const struct sl_engine_request *r);
void sl_job_free(struct job *j); /* its export, if any, was told before */
void sl_job_count(struct job *j, uint32_t token);
/* Whether the token that was just sampled, the n_done-th, ends the sequence. `position` is its
 * index in the sequence. */
enum sl_end sl_job_end(const struct job *j, const uint32_t *stops, uint32_t n_stops, uint32_t token,
                       uint32_t position, uint32_t max_len);

#endif
