/* Supervised workers: started with posix_spawn, restarted with a growing delay, stopped on exit. */
#include "node.h"
#include "spawn.h"

#include <signal.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define ARGS_MAX         96
#define RESTART_FIRST_MS 50
#define RESTART_MAX_MS   5000
#define FAILURES_MAX     5 /* in a row without registering: the node gives up */

static enum sl_status spawn_child(struct node *n, struct child *c, struct sl_err *err)
{
    const struct sl_node_config *cfg = n->cfg;
    const char *argv[ARGS_MAX + 10];
    char parent[16], turn[16];
    uint32_t index = (uint32_t)(c - n->children);
    struct sl_buf ranks = {0};
    uint32_t k = 0;
    if (cfg->n_worker_argv > ARGS_MAX)
        return sl_fail(err, SL_USAGE, "a worker takes at most %d arguments", ARGS_MAX);
    for (uint32_t i = 0; i < cfg->n_worker_argv; i++)
        argv[k++] = cfg->worker_argv[i];
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    argv[k++] = "--connect";
    argv[k++] = n->ipc.data;
    argv[k++] = "--supervised";
    argv[k++] = parent;
    if (cfg->n_ranks > 1) {
        node_ranks_endpoint(n, index, &ranks);
        argv[k++] = "--rendezvous";
        argv[k++] = ranks.data;
    }
    if (index > 0) {
        snprintf(turn, sizeof turn, "%u", index * (cfg->n_ranks ? cfg->n_ranks : 1));
        argv[k++] = "--device-turn";
        argv[k++] = turn;
    }
    argv[k] = NULL;
    c->registered = false;

    enum sl_status s = ranks.failed
                           ? sl_fail(err, SL_NO_MEMORY, "no memory for a worker's arguments")
                           : spawn_program(cfg->exe, argv, cfg->env, &c->pid, err);
    sl_buf_free(&ranks);
    return s;
}

enum sl_status node_children_start(struct node *n, struct sl_err *err)
{
    n->children = calloc(n->cfg->n_workers + 1, sizeof *n->children);
    if (!n->children)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %u workers", n->cfg->n_workers);
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < n->cfg->n_workers && !s; i++)
        s = spawn_child(n, &n->children[i], err);
    return s;
}

void node_child_registered(struct node *n, pid_t pid)
{
    for (uint32_t i = 0; n->children && i < n->cfg->n_workers; i++)
        if (n->children[i].pid == pid) {
            n->children[i].n_failures = 0;
            n->children[i].registered = true;
        }
}

static void child_ended(struct node *n, struct child *c, int wstatus)
{
    uint64_t now = sl_now_ns();
    struct peer *p = node_peer_by_pid(n, c->pid);
    pid_t pid = c->pid;
    c->pid = 0;
    if (p)
        node_peer_lost(n, p, now);
    if (n->stopping)
        return;
    int code = WIFEXITED(wstatus) ? WEXITSTATUS(wstatus) : 0;
    if (WIFSIGNALED(wstatus))
        sl_log(SL_LOG_WARN, "worker %ld was ended by signal %d; starting another", (long)pid,
               WTERMSIG(wstatus));
    else
        sl_log(SL_LOG_WARN, "worker %ld exited with code %d", (long)pid, code);
    c->n_failures++;
    /* One that has served may have said its BYE before: its device failed, another start may do. */
    if ((spawn_exit_is_final(code) && !p && !c->registered) || c->n_failures > FAILURES_MAX) {
        struct sl_err err;
        sl_fail(&err, spawn_exit_status(code), "worker exited with code %d", code);
        node_stop(n, err.status, &err);
        return;
    }
    uint64_t delay = RESTART_FIRST_MS;
    for (uint32_t i = 1; i < c->n_failures && delay < RESTART_MAX_MS; i++)
        delay *= 2;
    c->restart_ns = now + delay * SL_MS_NS;
}

void node_children_reap(struct node *n)
{
    for (uint32_t i = 0; n->children && i < n->cfg->n_workers; i++) {
        struct child *c = &n->children[i];
        int wstatus;
        if (c->pid && waitpid(c->pid, &wstatus, WNOHANG) == c->pid)
            child_ended(n, c, wstatus);
    }
}

void node_children_tick(struct node *n, uint64_t now)
{
    node_children_reap(n);
    for (uint32_t i = 0; n->children && i < n->cfg->n_workers && !n->stopping; i++) {
        struct child *c = &n->children[i];
        struct sl_err err;
        if (c->pid || now < c->restart_ns)
            continue;
        if (spawn_child(n, c, &err)) {
            sl_log(SL_LOG_ERROR, "%s", err.msg);
            c->restart_ns = now + RESTART_MAX_MS * SL_MS_NS;
        }
    }
}

bool node_children_stop(struct node *n, int signum)
{
    bool some = false;
    for (uint32_t i = 0; n->children && i < n->cfg->n_workers; i++) {
        if (!n->children[i].pid)
            continue;
        some = true;
        if (signum)
            kill(n->children[i].pid, signum);
    }
    return some;
}
