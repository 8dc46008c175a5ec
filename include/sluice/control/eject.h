/* Slow workers: found by comparing what their steps take with what the same steps take elsewhere,
 * and how long requests wait there for a first token (time lost between steps shows only so), left
 * out for a while, tried again with one request at a time. Pure; time is an argument.
 *
 * Steps are compared by size: a step of 300 rows takes longer than one of 3 on any machine, so
 * every worker has an average per power of two of rows, and its reference is the median of the
 * others at that size, or at the next larger size that any of them knows: never too strict. One
 * observation is the mean over a window of SL_EJECT_WINDOW_NS, or the age of a step in progress. A
 * worker is slow when SL_EJECT_EVIDENCE observations in a row over at least SL_EJECT_SUSTAIN_NS
 * were beyond SL_EJECT_FACTOR times the reference (and SL_EJECT_SLACK_NS: less is not worth it).
 *
 * At most half of the pool is out at a time. Out for 2 s, doubled with each time in a row up to 64
 * s, then probed: SL_EJECT_PROBES good ones of first tokens bring it back, a slow stretch throws it out
 * again; a minute without trouble takes one doubling back. After Envoy's outlier detection. */
#ifndef SLUICE_CONTROL_EJECT_H
#define SLUICE_CONTROL_EJECT_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_EJECT_WINDOW_NS  100000000ull
#define SL_EJECT_SUSTAIN_NS 200000000ull
#define SL_EJECT_SLACK_NS   1000000ull
#define SL_EJECT_FIRST_SLACK_NS 20000000ull /* of first tokens, which queues delay too */
#define SL_EJECT_BASE_NS    2000000000ull
#define SL_EJECT_CALM_NS    60000000000ull
enum { SL_EJECT_FACTOR = 4, SL_EJECT_EVIDENCE = 3, SL_EJECT_PROBES = 3, SL_EJECT_DOUBLINGS = 5 };

struct sl_eject;

enum sl_eject_state {
    SL_EJECT_OK,
    SL_EJECT_OUT,  /* gets nothing */
    SL_EJECT_PROBE /* gets one request at a time */
};

/* Workers are slots 0 .. n_slots - 1. */
enum sl_status sl_eject_open(uint32_t n_slots, struct sl_eject **out, struct sl_err *err);
void sl_eject_close(struct sl_eject *e);

/* In the pool from now on, with no history; out of it. */
void sl_eject_join(struct sl_eject *e, uint32_t slot, uint64_t now_ns);
void sl_eject_leave(struct sl_eject *e, uint32_t slot);

/* It did n_steps steps with n_rows rows in busy_ns. True when that changed any worker's state. */
bool sl_eject_steps(struct sl_eject *e, uint32_t slot, uint64_t n_steps, uint64_t n_rows,
                    uint64_t busy_ns, uint64_t now_ns);
/* A request with n_tokens to compute had its first token after wait_ns. */
bool sl_eject_first(struct sl_eject *e, uint32_t slot, uint32_t n_tokens, uint64_t wait_ns,
                    uint64_t now_ns);
/* The step it has begun is this old. */
bool sl_eject_age(struct sl_eject *e, uint32_t slot, uint64_t age_ns, uint64_t now_ns);
/* Time alone: who is out comes to be probed. */
bool sl_eject_tick(struct sl_eject *e, uint64_t now_ns);
uint64_t sl_eject_next_deadline(const struct sl_eject *e);

enum sl_eject_state sl_eject_state(const struct sl_eject *e, uint32_t slot);
/* Whether a stream of n_tokens tokens known so far is better computed anew elsewhere than waited
 * for here: the pool's prefill of them takes less than what SL_EJECT_WORTH_TOKENS tokens lose. */
enum { SL_EJECT_WORTH_TOKENS = 16 };
bool sl_eject_worth_moving(const struct sl_eject *e, uint32_t slot, uint64_t n_tokens);
/* Ejections so far, and workers not OK now. */
uint64_t sl_eject_count(const struct sl_eject *e, uint32_t *n_out);

#endif
