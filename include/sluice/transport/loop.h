/* The event loop of a node (libuv inside): descriptors, timers, signals, work handed to helpers.
 *
 * Thread rule: everything belongs to the loop's thread but sl_loop_post, which any thread may
 * call. ZeroMQ's edge-triggered descriptor is an ordinary watched fd here. */
#ifndef SLUICE_TRANSPORT_LOOP_H
#define SLUICE_TRANSPORT_LOOP_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_loop;
typedef void sl_loop_fn(void *ctx);

/* NULL when out of memory or descriptors. Sets SIGPIPE to ignored if it still has its default
 * action. */
struct sl_loop *sl_loop_open(void);
/* Work still with helpers is finished first (its `done` runs); what was posted but has not run is
 * dropped; watches, timers and signals that are left are freed. Servers are closed before. */
void sl_loop_close(struct sl_loop *l);
void sl_loop_run(struct sl_loop *l); /* until sl_loop_stop; a stop before the run counts */
void sl_loop_stop(struct sl_loop *l);

/* Readable watch; level-triggered. NULL on failure. */
struct sl_watch *sl_loop_watch_fd(struct sl_loop *l, int fd, sl_loop_fn *fn, void *ctx);
void sl_loop_unwatch(struct sl_watch *w);

/* One-shot timer, created stopped. */
struct sl_timer *sl_timer_new(struct sl_loop *l, sl_loop_fn *fn, void *ctx);
void sl_timer_start(struct sl_timer *t, uint64_t delay_ms);
void sl_timer_stop(struct sl_timer *t);
void sl_timer_free(struct sl_timer *t);

/* fn(ctx) with the signal blocked from its default action. */
struct sl_signal *sl_loop_on_signal(struct sl_loop *l, int signum, sl_loop_fn *fn, void *ctx);
void sl_signal_free(struct sl_signal *s);

/* Runs fn(ctx) on the loop's thread soon; from any thread. Order is kept per calling thread. False
 * when out of memory. */
bool sl_loop_post(struct sl_loop *l, sl_loop_fn *fn, void *ctx);
/* work(ctx) on a helper thread, then done(ctx) on the loop's thread. False when refused. */
bool sl_loop_work(struct sl_loop *l, sl_loop_fn *work, sl_loop_fn *done, void *ctx);
/* Called once before the loop blocks, after each round of callbacks: for flushing. HTTP
 * bytes queued in fn leave in the same round. False when out of memory. */
bool sl_loop_on_idle(struct sl_loop *l, sl_loop_fn *fn, void *ctx);

#endif
