/* The followers of a worker: started, watched and ended by rank 0's main thread.
 *
 * A follower that dies is started again after a delay that grows while the group does not form. One
 * that hangs cannot rejoin, so it is ended: at once when the engine blames it, and, should the
 * blame have been wrong, every member of the group that was lost when it has not formed again in
 * time. */
#include "spawn.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/engine/engine.h>
#include <sluice/serve/ranks.h>
#include <sluice/transport/bus.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARGS_MAX         96
#define RESTART_FIRST_MS 20
#define RESTART_MAX_MS   2000
#define FAILURES_MAX     5     /* in a row without a group: it makes no sense */
#define REJOIN_MS        2500  /* members of a lost group that live are back within it */
#define CLOSE_MS         1000  /* after SIGTERM */
#define SHRINK_MS        10000 /* for the engine to open a larger shard */

struct follower {
    pid_t pid; /* 0: not running */
    uint64_t started_ns, restart_ns;
    uint32_t n_failures; /* in a row, without having been in a group */
    bool killed;         /* by us, and not yet reaped */
};

struct sl_ranks {
    struct sl_ranks_config cfg;
    struct sl_buf rendezvous;
    bool own_folder;
    uint32_t n_ranks;       /* as they are now */
    bool shrunk, shrinking; /* fewer than at first; the engine was asked for it */
    uint64_t shrink_ns;
    char extra[4][24]; /* values of what a smaller group adds to the arguments */
    uint64_t n_formed;
    struct follower of[SL_LIMIT_ranks]; /* by rank; 0 is not used */
};

/* ---- one follower ---- */

static enum sl_status start(struct sl_ranks *r, uint32_t rank, struct sl_err *err)
{
    static const char *const names[] = {"--tensor-parallel-size", "--pipeline-parallel-size",
                                        "--kv-cache-memory-bytes", "--max-model-len"};
    const char *argv[ARGS_MAX + 16];
    char number[16], parent[16];
    uint32_t k = 0;
    if (r->cfg.n_argv > ARGS_MAX)
        return sl_fail(err, SL_USAGE, "a worker takes at most %d arguments", ARGS_MAX);
    for (; k < r->cfg.n_argv; k++)
        argv[k] = r->cfg.argv[k];
    for (size_t i = 0; r->shrunk && i < sizeof names / sizeof *names; i++) {
        argv[k++] = names[i]; /* what is said last counts */
        argv[k++] = r->extra[i];
    }
    snprintf(number, sizeof number, "%u", rank);
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    argv[k++] = "--rank";
    argv[k++] = number;
    argv[k++] = "--rendezvous";
    argv[k++] = r->rendezvous.data;
    argv[k++] = "--supervised";
    argv[k++] = parent;
    argv[k] = NULL;
    r->of[rank].started_ns = sl_now_ns();
    return spawn_program(r->cfg.exe, argv, r->cfg.env, &r->of[rank].pid, err);
}

static uint64_t delay_ns(uint32_t n_failures)
{
    uint64_t ms = RESTART_FIRST_MS;
    for (uint32_t i = 1; i < n_failures && ms < RESTART_MAX_MS; i++)
        ms *= 2;
    return (ms < RESTART_MAX_MS ? ms : RESTART_MAX_MS) * SL_MS_NS;
}

static enum sl_status ended(struct sl_ranks *r, uint32_t rank, int wstatus, uint64_t now,
                            struct sl_err *err)
{
    struct follower *f = &r->of[rank];
    int code = WIFEXITED(wstatus) ? WEXITSTATUS(wstatus) : 0;
    if (WIFSIGNALED(wstatus))
        sl_log(SL_LOG_WARN, "rank %u, process %ld, was ended by signal %d", rank, (long)f->pid,
               WTERMSIG(wstatus));
    else
        sl_log(SL_LOG_WARN, "rank %u, process %ld, exited with code %d", rank, (long)f->pid, code);
    f->pid = 0;
    f->killed = false;
    f->n_failures++;
    f->restart_ns = now + delay_ns(f->n_failures);
    if (spawn_exit_is_final(code) && !r->n_formed)
        return sl_fail(err, spawn_exit_status(code), "rank %u exited with code %d", rank, code);
    return SL_OK;
}

/* Every follower's end is looked for by its own id: other children are not ours. */
static enum sl_status reap(struct sl_ranks *r, uint64_t now, bool *some, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    for (uint32_t i = 1; i < r->n_ranks && !s; i++) {
        int wstatus;
        if (r->of[i].n_failures > FAILURES_MAX)
            return sl_fail(err, SL_PEER, "rank %u ended %u times before its group formed", i,
                           r->of[i].n_failures);
        if (!r->of[i].pid || waitpid(r->of[i].pid, &wstatus, WNOHANG) != r->of[i].pid)
            continue;
        *some = true;
        s = ended(r, i, wstatus, now, err);
    }
    return s;
}

/* ---- all of them ---- */

static void end_member(struct sl_ranks *r, uint32_t rank, const struct sl_engine_group *g,
                       const char *why)
{
    struct follower *f = &r->of[rank];
    if (!f->pid || f->killed || f->started_ns > g->up_ns)
        return; /* it was not in the group that was lost */
    f->killed = true;
    sl_log(SL_LOG_WARN, "rank %u, process %ld, %s: it is ended", rank, (long)f->pid, why);
    kill(f->pid, SIGKILL);
}

static void end_hung(struct sl_ranks *r, const struct sl_engine_group *g, uint64_t now)
{
    if (g->state != SL_GROUP_FORMING || !g->n_formed)
        return;
    if (g->blamed && g->blamed < r->n_ranks)
        end_member(r, g->blamed, g, "made no progress");
    if (now > g->since_ns && now - g->since_ns > REJOIN_MS * SL_MS_NS)
        for (uint32_t i = 1; i < r->n_ranks; i++)
            end_member(r, i, g, "did not come back");
}

/* A process that cannot be started now may be later: it counts as one that ended at once. */
static void restart(struct sl_ranks *r, uint32_t rank, uint64_t now)
{
    struct follower *f = &r->of[rank];
    struct sl_err err;
    if (!start(r, rank, &err))
        return;
    sl_log(SL_LOG_ERROR, "rank %u: %s", rank, err.msg);
    f->restart_ns = now + delay_ns(++f->n_failures);
}

/* The next smaller group: one rank less, then none but rank 0. */
static void ask_for_fewer(struct sl_ranks *r, struct sl_engine *e, const struct sl_engine_group *g)
{
    uint32_t tp = g->tp > 1 ? g->tp - 1 : 1, pp = g->tp > 1 ? g->pp : g->pp - 1;
    if (r->shrunk)
        tp = pp = 1;
    for (uint32_t i = 1; i < r->n_ranks; i++)
        if (r->of[i].pid)
            kill(r->of[i].pid, SIGKILL);
    r->shrinking = true;
    r->shrink_ns = sl_now_ns();
    sl_engine_shrink(e, tp, pp);
}

/* Followers of the old layout are gone before those of the new one start. */
static enum sl_status shrink(struct sl_ranks *r, const struct sl_engine_group *g, uint64_t now,
                             struct sl_err *err)
{
    bool some = false;
    for (uint32_t i = 1; i < r->n_ranks; i++)
        if (r->of[i].pid && waitpid(r->of[i].pid, NULL, WNOHANG) == r->of[i].pid)
            r->of[i].pid = 0;
        else
            some |= r->of[i].pid != 0;
    if (g->n_ranks == r->n_ranks && now - r->shrink_ns > SHRINK_MS * SL_MS_NS)
        return sl_fail(err, SL_PEER, "a rank does not come back, and fewer have no room");
    if (some || g->n_ranks == r->n_ranks)
        return SL_OK;
    r->shrinking = false;
    r->shrunk = true;
    r->n_ranks = g->n_ranks;
    memset(r->of, 0, sizeof r->of);
    snprintf(r->extra[0], sizeof r->extra[0], "%u", g->tp);
    snprintf(r->extra[1], sizeof r->extra[1], "%u", g->pp);
    snprintf(r->extra[2], sizeof r->extra[2], "%llu", (unsigned long long)g->kv_room_bytes);
    snprintf(r->extra[3], sizeof r->extra[3], "%u", g->max_len);
    return SL_OK;
}

enum sl_status sl_ranks_tick(struct sl_ranks *r, struct sl_engine *e, uint64_t now_ns,
                             struct sl_err *err)
{
    struct sl_engine_group g;
    bool some = false;
    sl_engine_group(e, &g);
    if (r->shrinking)
        return shrink(r, &g, now_ns, err);
    if (g.n_formed != r->n_formed) {
        r->n_formed = g.n_formed;
        for (uint32_t i = 1; i < r->n_ranks; i++)
            r->of[i].n_failures = 0;
    }
    enum sl_status s = reap(r, now_ns, &some, err);
    if (s == SL_PEER && r->n_formed && r->n_ranks > 1) {
        ask_for_fewer(r, e, &g);
        return SL_OK;
    }
    if (some)
        sl_engine_regroup(e);
    if (!some)
        end_hung(r, &g, now_ns);
    for (uint32_t i = 1; i < r->n_ranks && !s; i++)
        if (!r->of[i].pid && now_ns >= r->of[i].restart_ns)
            restart(r, i, now_ns);
    return s;
}

static enum sl_status name_rendezvous(struct sl_ranks *r, struct sl_err *err)
{
    if (!r->cfg.rendezvous) {
        r->own_folder = true;
        return sl_bus_ipc_make(r->cfg.run_dir, &r->rendezvous, err);
    }
    sl_buf_puts(&r->rendezvous, r->cfg.rendezvous);
    return r->rendezvous.failed ? sl_fail(err, SL_NO_MEMORY, "no memory for a rendezvous") : SL_OK;
}

enum sl_status sl_ranks_open(const struct sl_ranks_config *cfg, struct sl_ranks **out,
                             struct sl_err *err)
{
    if (cfg->n_ranks < 2 || cfg->n_ranks > SL_LIMIT_ranks)
        return sl_fail(err, SL_USAGE, "a group of %u ranks, at most %d", cfg->n_ranks,
                       SL_LIMIT_ranks);
    struct sl_ranks *r = calloc(1, sizeof *r);
    if (!r)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %u ranks", cfg->n_ranks);
    r->cfg = *cfg;
    r->n_ranks = cfg->n_ranks;
    enum sl_status s = name_rendezvous(r, err);
    for (uint32_t i = 1; i < cfg->n_ranks && !s; i++)
        s = start(r, i, err);
    if (s) {
        sl_ranks_close(r);
        return s;
    }
    *out = r;
    return SL_OK;
}

const char *sl_ranks_rendezvous(const struct sl_ranks *r)
{
    return r->rendezvous.data;
}

static bool signal_all(struct sl_ranks *r, int signum)
{
    bool some = false;
    for (uint32_t i = 1; i < r->n_ranks; i++) {
        struct follower *f = &r->of[i];
        int wstatus;
        if (f->pid && waitpid(f->pid, &wstatus, WNOHANG) == f->pid)
            f->pid = 0;
        if (!f->pid)
            continue;
        some = true;
        if (signum)
            kill(f->pid, signum);
    }
    return some;
}

void sl_ranks_close(struct sl_ranks *r)
{
    if (!r)
        return;
    const struct timespec pause = {0, 5 * 1000 * 1000};
    uint64_t until = sl_now_ns() + CLOSE_MS * SL_MS_NS;
    bool some = signal_all(r, SIGTERM);
    while (some && sl_now_ns() < until) {
        nanosleep(&pause, NULL);
        some = signal_all(r, 0);
    }
    if (some)
        signal_all(r, SIGKILL);
    for (uint32_t i = 1; i < r->n_ranks; i++)
        while (r->of[i].pid && waitpid(r->of[i].pid, NULL, 0) < 0 && errno == EINTR)
            ;
    if (r->own_folder && r->rendezvous.len)
        sl_bus_ipc_remove(r->rendezvous.data);
    sl_buf_free(&r->rendezvous);
    free(r);
}
