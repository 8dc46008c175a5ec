/* The engine: a thread that turns requests into tokens, step by step.
 *
 * plan (scheduler) -> ops (model) -> logits -> sample -> commit, then one event with the tokens of
 * all streams. Requests and cancels go in by a bounded queue, steps come out by another; both have
 * descriptors to poll. Between plan and commit a warm engine thread allocates nothing. The step's
 * prefill chunk is chosen from measured speed so that a step stays near step_target_ms; chunking
 * never changes an answer.
 *
 * Ranks. A model may be sharded over tp * pp engines, one a process: rank 0 has the scheduler and
 * sends each step's plan to the others, the followers, which compute their shards; logits come back
 * to rank 0. The engines find each other at a rendezvous after they were opened, and again whenever
 * a rank was lost: rank 0 then computes what ran once more, exactly, and its requests only wait. */
#ifndef SLUICE_ENGINE_ENGINE_H
#define SLUICE_ENGINE_ENGINE_H

#include <sluice/base/err.h>
#include <sluice/base/limits.h>
#include <sluice/control/sched.h>
#include <sluice/kernels/op.h>
#include <sluice/text/sampler.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_gguf;
struct sl_engine;
struct sl_export;

/* An engine's place in its group; zeros: an engine of its own. */
struct sl_engine_place {
    uint32_t rank, tp, pp;
    const char *rendezvous; /* as of sl_comm_config, with n_ranks > 1; copied */
    const char *host;       /* address that its TCP links listen on; NULL: 127.0.0.1; copied */
    const char *curve_dir;  /* keys for a rendezvous beyond loopback; copied */
    const char *interface;  /* as of sl_comm_device_config; copied */
    uint32_t op_timeout_ms; /* a rank without progress for so long is lost; 0: 1000 */
    uint32_t patience_ms;   /* without its group for so long it gives up; 0: for ever */
};

struct sl_engine_config {
    struct sl_engine_place place;
    const struct sl_gguf *gguf; /* outlives the engine */
    const char *backend;        /* "cpu", "ref", "cuda", "cuda-emu" */
    const char *cuda_plugin;    /* file of the last two; NULL: beside the program */
    bool device_given;
    uint32_t device;
    uint32_t device_turn; /* if not given: this plus the rank, of those the machine has */
    enum sl_isa isa;
    uint32_t n_threads;
    uint32_t max_seqs;         /* 0: 64 */
    uint32_t max_batch_tokens; /* 0: chosen by the model's size */
    uint32_t max_len;          /* 0: the model's context */
    uint64_t kv_bytes;         /* 0: chosen from max_seqs, max_len and free memory */
    enum sl_dtype kv_dtype;
    uint32_t page_size; /* 0: 16 */
    uint32_t queue_max; /* 0: 256 */
    bool prefix_cache;
    bool kv_events;             /* tell of its changes: sl_engine_take_kv_events */
    uint32_t step_target_ms;    /* 0: 200 */
    uint32_t fixed_chunk;       /* > 0: exactly this prefill budget (tests) */
    const char *weights_sha256; /* hex, part of the class; NULL: "unknown" */
    const uint32_t *stop_ids;   /* the tokenizer's end ids; copied */
    uint32_t n_stop_ids;
    const void *charter;          /* rank 0: for the owners of the other ranks; copied */
    uint32_t n_charter;
    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_ctx;
};

/* What one engine announces. Strings are the engine's. */
struct sl_engine_info {
    uint32_t max_seqs, max_batch_tokens, max_len, n_vocab, page_size, n_pages, n_threads, queue_max;
    uint64_t weight_bytes, kv_bytes;
    const char *isa, *backend, *class_name;
};

/* A request; the engine copies everything during submit. */
struct sl_engine_request {
    struct sl_sched_request seq; /* seq.user is kept and handed back */
    struct sl_sampling sampling;
    uint32_t choice;
    struct sl_export *export_to; /* set by sl_export_open, else NULL */
};

struct sl_engine_out {
    uint64_t id;
    void *user;
    bool has_token;
    struct sl_sampled token;
    enum sl_end end;
    enum sl_status status; /* with SL_END_ERROR */
    uint32_t n_cached;     /* set with the first token */
};
/* Counters readable at any time from any thread. */
struct sl_engine_stats {
    struct sl_sched_stats sched;
    uint64_t last_progress_ns; /* end of the last step, or now while idle */
    uint64_t step_expected_ns; /* how long the step in progress should take; 0: unknown */
    uint64_t n_op_calls;
    uint64_t step_ns_sum;
};
enum sl_group_state {
    SL_GROUP_FORMING, /* at first, and after a rank was lost; requests wait */
    SL_GROUP_UP,      /* an engine of its own from the first */
    SL_GROUP_ENDED    /* for good: `why` says it; SL_OK when rank 0 left on purpose. An engine of
                       * its own ends when its device has failed: SL_NO_MEMORY */
};
struct sl_engine_group {
    enum sl_group_state state;
    uint64_t since_ns; /* when it got into that state */
    uint64_t up_ns;    /* when it last came up */
    uint32_t blamed;   /* rank that the last loss is put down to, or n_ranks */
    uint32_t n_ranks, tp, pp;
    uint64_t n_formed;      /* how often it came together */
    uint64_t kv_room_bytes; /* kv_bytes that make a rank of this layout have the same pages */
    uint32_t max_len;
    struct sl_err why;
};
/* Launches of a device's kernel so far. */
struct sl_engine_kernel {
    char name[40]; /* as much of it as fits */
    uint64_t n;
};
/* One rank, as rank 0 last heard of it (several times a second, once when idle); pid 0: not yet. */
struct sl_engine_rank {
    uint32_t rank, pid, n_threads;
    uint64_t weight_bytes, kv_bytes;
    uint64_t comm_bytes; /* sent and received, of all groups so far */
    uint64_t n_steps, n_op_calls;
    char isa[16];
    uint32_t n_kernels; /* 0 where launches are not counted */
    struct sl_engine_kernel kernels[SL_LIMIT_kernels];
};
struct sl_engine_step {
    uint64_t step;
    uint64_t done_ns; /* when its tokens were there; a slow consumer sees them later */
    uint32_t n_outs;
    struct sl_engine_out *outs;
};

/* Memory of one rank before loading. */
struct sl_engine_plan_rank {
    uint32_t rank, stage;
    uint32_t layer_first, n_layers, n_heads, n_kv_heads;
    uint64_t weight_bytes;  /* packed */
    uint64_t mapped_bytes;  /* of the file, read while serving; shared by processes of a machine */
    uint64_t kv_bytes;      /* all pages; touched as they are used */
    uint64_t scratch_bytes; /* activations, rope tables, logits */
};
struct sl_engine_plan {
    uint32_t tp, pp, n_ranks;
    uint32_t tp_max, pp_max;      /* degrees that the model admits */
    struct sl_engine_info limits; /* numbers only */
    uint64_t device_bytes, device_free_bytes; /* of one rank's device; 0 where the host computes */
    struct sl_engine_plan_rank ranks[SL_LIMIT_ranks];
};
/* What sl_engine_open would take at every rank of cfg->place.tp x pp. SL_CONFIG for degrees that
 * the model does not admit; tp_max and pp_max are filled in then as well. */
enum sl_status sl_engine_plan(const struct sl_engine_config *cfg, struct sl_engine_plan *out,
                              struct sl_err *err);

/* Loads the model, or its shard, and starts the thread; does not wait for other ranks. The engine
 * owns backend, model and KV. A follower takes no requests. */
enum sl_status sl_engine_open(const struct sl_engine_config *cfg, struct sl_engine **out,
                              struct sl_err *err);
/* Stops after the step in flight; outputs not yet taken are dropped. */
void sl_engine_close(struct sl_engine *e);
void sl_engine_info(struct sl_engine *e, struct sl_engine_info *out);

/* From any one thread. SL_QUEUE_FULL, SL_TOO_LONG, SL_INVALID; later failures arrive as outputs
 * with SL_END_ERROR. */
enum sl_status sl_engine_submit(struct sl_engine *e, const struct sl_engine_request *r,
                                struct sl_err *err);
void sl_engine_cancel(struct sl_engine *e, uint64_t id);

/* The next finished step or NULL; give it back with sl_engine_release. */
struct sl_engine_step *sl_engine_poll(struct sl_engine *e);
void sl_engine_release(struct sl_engine *e, struct sl_engine_step *s);
int sl_engine_fd(struct sl_engine *e);
void sl_engine_wait(struct sl_engine *e, int timeout_ms);
void sl_engine_clear_event(struct sl_engine *e);
void sl_engine_stats(struct sl_engine *e, struct sl_engine_stats *out);
/* From any thread. */
void sl_engine_group(struct sl_engine *e, struct sl_engine_group *out);
/* Rank 0: a rank is known to be gone; the group forms anew as soon as no step runs. */
void sl_engine_regroup(struct sl_engine *e);
/* Rank 0, when a lost rank does not come back: the model is opened again for fewer ranks and the
 * group forms anew with them. Takes effect on the engine's thread; the group's `tp` and `pp` tell,
 * or stay as they are when there is no memory for larger shards. The class stays the same. When all
 * ranks of the first layout ask to join again the engine goes back to it by itself. */
void sl_engine_shrink(struct sl_engine *e, uint32_t tp, uint32_t pp);
/* Rank 0: all ranks, itself included; `out` [SL_LIMIT_ranks]. Returns n_ranks. From any thread. */
uint32_t sl_engine_ranks(struct sl_engine *e, struct sl_engine_rank *out);
/* What the prefix cache gained and lost, oldest first, at most `most` of them; tokens
 * [most, page_size] holds what they point to. Those who do not read in time get "cleared" and
 * everything anew; sl_engine_retell_kv asks for that. From any thread. */
struct sl_kv_event;
uint32_t sl_engine_take_kv_events(struct sl_engine *e, struct sl_kv_event *out, uint32_t *tokens,
                                  uint32_t most);
void sl_engine_retell_kv(struct sl_engine *e);
/* Test hook: true on the engine's own thread between plan and commit. */
bool sl_engine_in_step(void);
/* Test hook: preempt this sequence at the next plan. */
void sl_engine_force_preempt(struct sl_engine *e, uint64_t id);

#endif
