/* The scheduler of one worker: pure, no clock, no I/O, no locks.
 *
 * Continuous batching over paged KV: a request waits in a queue ordered by (priority, tenant
 * fairness, arrival), runs in chunks of its prompt and then a token a step, is preempted by
 * recompute when pages run out, and ends by the engine's word, a cancel or its deadline.
 * Usage each step: plan -> (engine computes, samples) -> commit. Time is an argument.
 *
 * Order. Decodes are served before prefills, in turn when the budget is below their number.
 * Waiting requests: lower priority first; within it the preempted, then the tenant served least,
 * then arrival. The first that does not fit holds back the rest. Nothing starves: once the oldest
 * waiting request has waited SL_SCHED_AGE_NS, every SL_SCHED_AGE_TURN-th admission at the latest is
 * its, so that a request with p older ones waiting is admitted after at most SL_SCHED_AGE_NS and
 * SL_SCHED_AGE_TURN * (p + 1) admissions. A request admitted so, or preempted SL_SCHED_SHIELD
 * times, is shielded: prefilled before every priority, preempted only for an older shielded one.
 *
 * The prefix cache serves full pages, at admission and at every later chunk, and never the last
 * token, whose logits are needed. A prompt waits a step where another one of the step completes the
 * very page it would go on with: of equal prompts that arrive together one is computed.
 *
 * Preemption takes the unshielded first, then the lowest priority, then the latest arrival, never
 * the only runner; so the first in rank always goes on and everything ends.
 *
 * Invariants (checked by sl_sched_check): every page is free, cached or referenced; a page that is
 * written has one owner; a sequence's full pages are in the prefix index only once computed. */
#ifndef SLUICE_CONTROL_SCHED_H
#define SLUICE_CONTROL_SCHED_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_kv_events;
struct sl_sched;

#define SL_SCHED_AGE_NS 30000000000ull
enum { SL_SCHED_AGE_TURN = 8, SL_SCHED_SHIELD = 4 };

struct sl_sched_config {
    uint32_t max_seqs;          /* running at once */
    uint32_t max_batch_tokens;  /* rows of one step at most */
    uint32_t max_len;           /* positions of one sequence at most */
    uint32_t n_pages, page_size;
    uint32_t queue_max;         /* waiting requests at most */
    bool prefix_cache;
    struct sl_kv_events *events; /* of the same page size; hears of the prefix index. NULL: none */
};

struct sl_sched_request {
    uint64_t id;                /* unique among live requests */
    const uint32_t *tokens;     /* prompt, then tokens generated elsewhere before; copied */
    uint32_t n_tokens;
    uint32_t n_prompt;          /* of them the prompt; n_tokens > n_prompt resumes a stream */
    uint32_t max_new;           /* generated tokens in all, earlier ones included; 0: as many as
                                   max_len and the pages allow */
    int32_t priority;           /* lower first */
    uint64_t tenant;            /* fairness between tenants by tokens served */
    uint8_t salt[32];           /* of the prefix cache: tenants never share pages */
    uint64_t deadline_ns;       /* 0: none */
    bool no_prefix_cache;
    bool prefill_only;          /* ends with SL_END_LENGTH once its tokens are computed, unsampled:
                                   its full pages are then in the prefix cache */
    void *user;                 /* handed back in plans and endings */
};

/* One step, borrowed until commit. Compressed rows as struct sl_batch of the op table. */
struct sl_plan {
    uint32_t n_seq, n_tok, n_logits;
    const uint32_t *tokens;     /* [n_tok] */
    const uint32_t *pos;        /* [n_tok] */
    const uint32_t *q_start;    /* [n_seq + 1] */
    const uint32_t *page_start; /* [n_seq + 1] */
    const uint32_t *pages;
    const uint64_t *id;         /* [n_seq] */
    void *const *user;          /* [n_seq] */
    const uint32_t *logit_row;  /* [n_logits] row of the batch to sample from */
    const uint32_t *logit_seq;  /* [n_logits] its sequence in this plan */
    uint64_t step;              /* counts from 1 */
};

enum sl_end {
    SL_END_NONE,
    SL_END_STOP,
    SL_END_LENGTH,
    SL_END_CANCELLED,
    SL_END_DEADLINE,
    SL_END_ERROR
};

/* What the engine sampled for logit row i. */
struct sl_sampled_token {
    uint32_t token;
    enum sl_end end; /* SL_END_NONE: goes on */
};

/* A sequence that left by deadline or cancel, or by max_new or max_len when the engine did not end
 * it (SL_END_LENGTH, also a prefill_only one that is done): reported once. */
struct sl_ended {
    uint64_t id;
    void *user;
    enum sl_end end;
};

struct sl_sched_stats {
    uint32_t running, waiting;
    uint32_t pages_total, pages_free; /* reclaimable cached pages count as free */
    uint32_t pages_held;              /* pinned by transfers, used by no sequence */
    uint64_t n_preempted, n_steps, n_prefill_tokens, n_decode_tokens;
    uint64_t prefix_queries, prefix_hits; /* in tokens */
    uint64_t pending_tokens;              /* of prompts, waiting or begun, not computed yet */
};

/* All memory is taken here, from malloc; NULL status SL_NO_MEMORY. */
enum sl_status sl_sched_open(const struct sl_sched_config *cfg, struct sl_sched **out,
                             struct sl_err *err);
void sl_sched_close(struct sl_sched *s);

/* SL_QUEUE_FULL (queue_max wait or ended unreported), SL_TOO_LONG (prompt + 1 > max_len, or with
 * max_new more pages than there are), SL_INVALID (empty prompt, id in use, nothing left to
 * generate), SL_NO_MEMORY. */
enum sl_status sl_sched_submit(struct sl_sched *s, const struct sl_sched_request *r,
                               uint64_t now_ns, struct sl_err *err);
/* Takes effect at once unless the sequence is in the step in flight: then at its commit. Unknown
 * ids are ignored. */
void sl_sched_cancel(struct sl_sched *s, uint64_t id);

/* Plans a step of at most min(budget, max_batch_tokens) rows; decodes go before prefill chunks.
 * NULL when there is nothing to do. Allocates nothing. */
const struct sl_plan *sl_sched_plan(struct sl_sched *s, uint32_t budget, uint64_t now_ns);
/* `sampled` [plan->n_logits]. Ends the step: appends tokens, frees pages of ended sequences. What
 * the step computed for a sequence that ends with SL_END_ERROR or was cancelled meanwhile never
 * enters the prefix index. */
void sl_sched_commit(struct sl_sched *s, const struct sl_sampled_token *sampled, uint64_t now_ns);
/* Sequences that ended without the engine's word, oldest first; false when none. */
bool sl_sched_next_ended(struct sl_sched *s, struct sl_ended *out);

/* Tokens of `id` found in the prefix cache when it was last admitted. */
uint32_t sl_sched_cached_tokens(const struct sl_sched *s, uint64_t id);
void sl_sched_stats(const struct sl_sched *s, struct sl_sched_stats *out);
bool sl_sched_idle(const struct sl_sched *s);
/* Earliest deadline among live sequences, or UINT64_MAX. */
uint64_t sl_sched_next_deadline(const struct sl_sched *s);
/* The KV cache is gone (a rank was lost): the step in flight, if any, is abandoned without tokens,
 * the prefix cache forgotten, and everything that ran waits again to be computed anew, in its old
 * rank. Sequences cancelled during that step end. No shield is earned by it. Allocates nothing. */
void sl_sched_forget_kv(struct sl_sched *s);

/* Transfers of KV pages between workers. A pinned page is neither written nor handed out again, so
 * its bits may be read (or, after a reserve, written) by another thread until it is unpinned. Pins
 * take pages from the sequences, which then wait for them: a pin must end within bounded time. */

/* Pins a page of the plan in flight. False when half of all pages are held already. */
bool sl_sched_pin(struct sl_sched *s, uint32_t page);
void sl_sched_unpin(struct sl_sched *s, uint32_t page);
/* Up to n pinned pages to be filled from outside: at most what half of all pages and the running
 * sequences leave. Each ends with sl_sched_import or sl_sched_unpin. */
uint32_t sl_sched_reserve(struct sl_sched *s, uint32_t n, uint32_t *pages);
/* Enters a reserved and now complete page into the prefix cache and unpins it; `parent`: key of the
 * page before, NULL at the first. False when the key is there already: the page is free again. */
bool sl_sched_import(struct sl_sched *s, uint32_t page, const uint8_t *parent,
                     const uint8_t key[32], const uint32_t *tokens);
/* Leading pages of these keys that the prefix cache has; they count as used just now. */
uint32_t sl_sched_n_cached(struct sl_sched *s, const uint8_t (*keys)[32], const uint32_t *tokens,
                           uint32_t n_pages);

/* Forgets the prefix cache (test and admin). */
void sl_sched_reset_cache(struct sl_sched *s);
/* The events' ring: tells every page of the prefix cache again, after "cleared"; sl_sched_tell goes
 * on with that by `most` events, also after the ring overflowed. True while something is left. */
void sl_sched_retell(struct sl_sched *s);
bool sl_sched_tell(struct sl_sched *s, uint32_t most);
/* Test hook: preempt the running sequence `id` at the next plan. */
void sl_sched_force_preempt(struct sl_sched *s, uint64_t id);

/* SL_FAILED with the first broken invariant: tests call it after every event. */
enum sl_status sl_sched_check(const struct sl_sched *s, struct sl_err *err);

#endif
