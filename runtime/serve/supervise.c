/* Supervised workers: started with posix_spawn, restarted with a growing delay, stopped on exit. */
#include "node.h"

#include <errno.h>
#include <signal.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <spawn.h>
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
    const char *argv[ARGS_MAX + 6];
    char parent[16];
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
    argv[k] = NULL;

    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    sigdelset(&all, SIGPIPE);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int rc =
        posix_spawn(&c->pid, cfg->exe, NULL, &attr, (char *const *)(const void *)argv, cfg->env);
    posix_spawnattr_destroy(&attr);
    if (rc) {
        c->pid = 0;
        return sl_fail(err, SL_FAILED, "cannot start a worker: %s", strerror(rc));
    }
    return SL_OK;
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
        if (n->children[i].pid == pid)
            n->children[i].n_failures = 0;
}

/* An exit code that a restart cannot mend: usage, configuration, model, memory. */
static bool is_final(int code)
{
    return code >= 2 && code <= 5;
}

static enum sl_status status_of_exit(int code)
{
    for (int s = 1; s < SL_N_STATUS; s++)
        if (sl_status_row((enum sl_status)s)->exit_code == code)
            return (enum sl_status)s;
    return SL_FAILED;
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
    if ((is_final(code) && !p) || c->n_failures > FAILURES_MAX) {
        struct sl_err err;
        sl_fail(&err, status_of_exit(code), "worker exited with code %d", code);
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
