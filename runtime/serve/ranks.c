/* The followers of a worker: started, watched and ended by rank 0's main thread.
 *
 * A follower that dies is started again after a delay that grows while the group does not form. One
 * that hangs cannot rejoin, so it is ended: at once when the engine blames it, and, should the
 * blame have been wrong, every member of the group that was lost when it has not formed again in
 * time.
 *
 * One that cannot be started often enough is done without: the engine is asked for a smaller group,
 * whose followers are others. Beside them all ranks of the full group are started now and then;
 * when they live and ask to join the engine takes them, and they are the followers again. Whatever
 * the engine's group is, we follow it: the layout changes there first. */
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
#define RESTARTS_DEFAULT 5
#define REJOIN_MS        2500      /* members of a lost group that live are back within it */
#define CLOSE_MS         1000      /* after SIGTERM */
#define SHRINK_MS        10000     /* for the engine to open a larger shard */
#define BACK_FIRST_MS    1000      /* from a smaller group to the first try of the full one */
#define BACK_MAX_MS      30000     /* twice as long each further time */
#define BACK_TRY_MS      600000ull /* to load and join */

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
    uint32_t n_ranks; /* as they are now */
    bool shrunk;      /* fewer than at first */
    bool shrinking;   /* the engine was asked for it */
    uint64_t shrink_ns;
    bool trying; /* those of `back` were started, at try_ns */
    uint64_t try_ns;
    uint64_t back_ns, back_wait_ns; /* shrunk: when the full group is tried; how long before that */
    /* What was chosen when memory was otherwise, as arguments; text "" while it is not known. */
    struct sizes {
        char text[4][24];
    } full, fewer;
    uint64_t n_formed;
    struct follower of[SL_LIMIT_ranks];   /* by rank; 0 is not used */
    struct follower back[SL_LIMIT_ranks]; /* shrunk: those of the full group */
};

/* ---- one follower ---- */

/* As one of the group as it is, or, `full`, as it was at first. */
static enum sl_status start(struct sl_ranks *r, uint32_t rank, bool full, struct follower *f,
                            struct sl_err *err)
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
    const struct sizes *sizes = r->shrunk && !full ? &r->fewer : &r->full;
    for (size_t i = 0; sizes->text[0][0] && i < sizeof names / sizeof *names; i++) {
        argv[k++] = names[i]; /* what is said last counts */
        argv[k++] = sizes->text[i];
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
    f->started_ns = sl_now_ns();
    return spawn_program(r->cfg.exe, argv, r->cfg.env, &f->pid, err);
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
        if (r->of[i].n_failures > r->cfg.restarts_max)
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
    if (!start(r, rank, false, f, &err))
        return;
    sl_log(SL_LOG_ERROR, "rank %u: %s", rank, err.msg);
    f->restart_ns = now + delay_ns(++f->n_failures);
}

static void reap_one(struct follower *f)
{
    if (f->pid && waitpid(f->pid, NULL, WNOHANG) == f->pid)
        f->pid = 0;
}

/* Sends them a signal, if any, and reaps; true while some are left. */
static bool end_all(struct follower f[SL_LIMIT_ranks], int signum)
{
    bool some = false;
    for (uint32_t i = 1; i < SL_LIMIT_ranks; i++) {
        reap_one(&f[i]);
        if (f[i].pid && signum)
            kill(f[i].pid, signum);
        some |= f[i].pid != 0;
    }
    return some;
}

/* The next smaller group: one rank less, then none but rank 0. */
static void ask_for_fewer(struct sl_ranks *r, struct sl_engine *e, const struct sl_engine_group *g)
{
    uint32_t tp = g->tp > 1 ? g->tp - 1 : 1, pp = g->tp > 1 ? g->pp : g->pp - 1;
    if (r->shrunk)
        tp = pp = 1;
    end_all(r->of, SIGKILL);
    r->shrinking = true;
    r->shrink_ns = sl_now_ns();
    sl_engine_shrink(e, tp, pp);
}

static enum sl_status wait_for_fewer(struct sl_ranks *r, uint64_t now, struct sl_err *err)
{
    end_all(r->of, 0);
    if (now - r->shrink_ns > SHRINK_MS * SL_MS_NS)
        return sl_fail(err, SL_PEER, "a rank does not come back, and fewer have no room");
    return SL_OK;
}

static void note_sizes(const struct sl_engine_group *g, struct sizes *out)
{
    snprintf(out->text[0], sizeof out->text[0], "%u", g->tp);
    snprintf(out->text[1], sizeof out->text[1], "%u", g->pp);
    snprintf(out->text[2], sizeof out->text[2], "%llu", (unsigned long long)g->kv_room_bytes);
    snprintf(out->text[3], sizeof out->text[3], "%u", g->max_len);
}

/* The engine has another layout than our followers. Those of the old one are gone before others
 * take their place. */
static void adopt(struct sl_ranks *r, const struct sl_engine_group *g, uint64_t now)
{
    if (end_all(r->of, SIGKILL))
        return;
    r->shrinking = false;
    r->shrunk = g->n_ranks < r->cfg.n_ranks;
    r->n_ranks = g->n_ranks;
    memset(r->of, 0, sizeof r->of);
    if (!r->shrunk) {
        memcpy(r->of, r->back, sizeof r->of);
        memset(r->back, 0, sizeof r->back);
        for (uint32_t i = 1; i < r->n_ranks; i++)
            r->of[i].started_ns = 0; /* as good as members: they joined once */
        r->trying = false;
        r->back_wait_ns = BACK_FIRST_MS * SL_MS_NS;
        return;
    }
    r->back_ns = now + r->back_wait_ns;
    note_sizes(g, &r->fewer);
}

static enum sl_status start_back(struct sl_ranks *r, struct sl_err *err)
{
    enum sl_status s = SL_OK;
    for (uint32_t i = 1; i < r->cfg.n_ranks && !s; i++)
        s = start(r, i, true, &r->back[i], err);
    return s;
}

/* All ranks of the full group, or none: some alone would keep their memory for nothing. */
static void tend_back(struct sl_ranks *r, uint64_t now)
{
    struct sl_err err;
    uint32_t n_alive = 0;
    end_all(r->back, 0);
    for (uint32_t i = 1; i < r->cfg.n_ranks; i++)
        n_alive += r->back[i].pid != 0;
    if (!n_alive && !r->trying && now >= r->back_ns) {
        r->trying = true;
        r->try_ns = now;
        if (!start_back(r, &err))
            return;
        sl_log(SL_LOG_ERROR, "the full group is not tried: %s", err.msg);
    }
    if (!r->trying || (n_alive == r->cfg.n_ranks - 1 && now - r->try_ns < BACK_TRY_MS * SL_MS_NS))
        return;
    r->trying = false;
    end_all(r->back, SIGKILL);
    r->back_ns = now + r->back_wait_ns;
    r->back_wait_ns *= 2;
    if (r->back_wait_ns > BACK_MAX_MS * SL_MS_NS)
        r->back_wait_ns = BACK_MAX_MS * SL_MS_NS;
}

enum sl_status sl_ranks_tick(struct sl_ranks *r, struct sl_engine *e, uint64_t now_ns,
                             struct sl_err *err)
{
    struct sl_engine_group g;
    bool some = false;
    sl_engine_group(e, &g);
    if (!r->full.text[0][0])
        note_sizes(&g, &r->full);
    if (r->shrinking && g.n_ranks == r->n_ranks)
        return wait_for_fewer(r, now_ns, err);
    if (g.n_ranks != r->n_ranks) {
        adopt(r, &g, now_ns);
        return SL_OK;
    }
    if (r->shrunk)
        tend_back(r, now_ns);
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
    r->back_wait_ns = BACK_FIRST_MS * SL_MS_NS;
    if (!r->cfg.restarts_max)
        r->cfg.restarts_max = RESTARTS_DEFAULT;
    enum sl_status s = name_rendezvous(r, err);
    for (uint32_t i = 1; i < cfg->n_ranks && !s; i++)
        s = start(r, i, false, &r->of[i], err);
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
    bool some = end_all(r->of, signum);
    return end_all(r->back, signum) || some;
}

static void wait_for_all(const struct follower f[SL_LIMIT_ranks])
{
    for (uint32_t i = 1; i < SL_LIMIT_ranks; i++)
        while (f[i].pid && waitpid(f[i].pid, NULL, 0) < 0 && errno == EINTR)
            ;
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
    wait_for_all(r->of);
    wait_for_all(r->back);
    if (r->own_folder && r->rendezvous.len)
        sl_bus_ipc_remove(r->rendezvous.data);
    sl_buf_free(&r->rendezvous);
    free(r);
}
