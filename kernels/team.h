/* A team of threads for fork and join: the caller works too, members wait for it.
 *
 * A member that the system does not run takes no tasks, so the caller never waits for one that has
 * not begun: it waits only for members inside a task. Idle members spin for some microseconds (not
 * at all when the process has fewer cores than threads), then sleep. */
#ifndef SLUICE_KERNELS_TEAM_H
#define SLUICE_KERNELS_TEAM_H

#include <sluice/base/err.h>
#include <stdint.h>

struct sl_team;
typedef void sl_task_fn(void *ctx, uint32_t task, uint32_t thread);

/* n_threads counts the caller. */
enum sl_status sl_team_open(uint32_t n_threads, struct sl_team **out, struct sl_err *err);
void sl_team_close(struct sl_team *t);

/* Calls fn(ctx, task, thread) for every task in [0, n_tasks), spread over the team, thread 0 being
 * the caller; returns when all are done. From one thread at a time; fn must not call it again. */
void sl_team_run(struct sl_team *t, uint32_t n_tasks, sl_task_fn *fn, void *ctx);

/* fn(ctx, i) for every i in [0, n), for work that need not know its thread; as sl_team_run, with
 * sl_fp_mode_set first. */
void sl_team_each(struct sl_team *t, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx);

/* Round to nearest, no flush to zero, all exceptions masked. */
void sl_fp_mode_set(void);

#endif
