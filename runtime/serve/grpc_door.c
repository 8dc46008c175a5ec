/* Loads the gRPC door and carries calls from its thread to the loop's.
 *
 * The module is looked for beside the program and in ../lib/sluice, never along a search path, and
 * stays loaded: the gRPC core does not survive being unloaded. */
#include "grpc_door.h"

#include <dlfcn.h>
#include <limits.h>
#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/queue.h>
#include <sluice/transport/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE    "libsluice_grpc.so"
#define HEALTH_MS 50

/* --- the module ------------------------------------------------------------------------------- */

static enum sl_status module_path(char path[PATH_MAX], struct sl_err *err)
{
    static const char *const places[] = {MODULE, "../lib/sluice/" MODULE};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    while (n > 0 && exe[n - 1] != '/')
        n--;
    for (size_t i = 0; n > 0 && i < 2; i++) {
        int len = snprintf(path, PATH_MAX, "%.*s%s", (int)n, exe, places[i]);
        if (len > 0 && len < PATH_MAX && access(path, R_OK) == 0)
            return SL_OK;
    }
    return sl_fail_param(err, SL_CONFIG, "grpc-port",
                         "--grpc-port needs " MODULE ", which is neither beside the program nor in "
                         "../lib/sluice");
}

static enum sl_status load(const struct sl_grpc_ops **out, struct sl_err *err)
{
    char path[PATH_MAX];
    enum sl_status s = module_path(path, err);
    if (s)
        return s;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        return sl_fail_param(err, SL_CONFIG, "grpc-port", "--grpc-port: %s", dlerror());
    const struct sl_grpc_ops *ops = dlsym(module, SL_GRPC_SYMBOL);
    if (!ops || ops->abi != SL_GRPC_ABI)
        return sl_fail_param(err, SL_CONFIG, "grpc-port", "--grpc-port: %s is of another version",
                             path);
    *out = ops;
    return SL_OK;
}

/* --- from the door's thread ------------------------------------------------------------------- */

/* Keys do not change while the node runs. */
static bool allow(void *ctx, struct sl_str authorization)
{
    static const char scheme[] = "bearer ";
    const struct grpc_door *g = ctx;
    size_t n = sizeof scheme - 1;
    if (!node_needs_key(g->node))
        return true;
    if (authorization.len <= n || strncasecmp(authorization.data, scheme, n) != 0)
        return false;
    return node_key_ok(g->node, (struct sl_str){authorization.data + n, authorization.len - n});
}

static void notify(void *ctx, struct sl_grpc_call *call)
{
    struct grpc_door *g = ctx;
    bool pushed = sl_queue_push(g->inbox, call);
    sl_assert(pushed); /* the door admits fewer calls than half the inbox holds */
}

static void log_core(const char *line)
{
    sl_log(SL_LOG_WARN, "grpc: %s", line);
}

/* --- on the loop ------------------------------------------------------------------------------ */

/* A call comes once when it is there, and once more when its client is gone. */
static void take(struct grpc_door *g, struct sl_grpc_call *call)
{
    if (!call->user) {
        kserve_start(g, call);
        return;
    }
    kserve_cancelled(call);
    g->ops->release(call);
}

static void on_inbox(void *ctx)
{
    struct grpc_door *g = ctx;
    struct sl_grpc_call *call;
    sl_queue_clear_event(g->inbox);
    while ((call = sl_queue_pop(g->inbox)))
        take(g, call);
}

void grpc_door_refresh(struct grpc_door *g)
{
    struct sl_err why;
    if (g)
        g->ops->set_serving(g->door, node_is_ready(g->node, &why));
}

static void on_timer(void *ctx)
{
    struct grpc_door *g = ctx;
    grpc_door_refresh(g);
    sl_timer_start(g->timer, HEALTH_MS);
}

static enum sl_status open_parts(struct grpc_door *g, const struct sl_grpc_config *cfg,
                                 struct sl_err *err)
{
    struct sl_loop *loop = node_loop(g->node);
    struct sl_grpc_config full = *cfg;
    full.ctx = g;
    full.allow = allow;
    full.notify = notify;
    full.log = log_core;
    enum sl_status s = load(&g->ops, err);
    if (s)
        return s;
    g->inbox = sl_queue_open((size_t)2 * SL_LIMIT_inflight_requests);
    g->watch = g->inbox ? sl_loop_watch_fd(loop, sl_queue_fd(g->inbox), on_inbox, g) : NULL;
    g->timer = sl_timer_new(loop, on_timer, g);
    if (!g->watch || !g->timer)
        return sl_fail(err, SL_NO_MEMORY, "no memory or descriptors for the gRPC door");
    return g->ops->open(&full, &g->door, err);
}

enum sl_status grpc_door_open(struct node *n, const struct sl_grpc_config *cfg,
                              struct grpc_door **out, struct sl_err *err)
{
    struct grpc_door *g = calloc(1, sizeof *g);
    if (!g)
        return sl_fail(err, SL_NO_MEMORY, "no memory for the gRPC door");
    g->node = n;
    sl_list_init(&g->asks);
    enum sl_status s = open_parts(g, cfg, err);
    if (s) {
        grpc_door_close(g);
        return s;
    }
    sl_timer_start(g->timer, HEALTH_MS);
    sl_log(SL_LOG_INFO, "gRPC on %s:%u", cfg->host, cfg->port);
    *out = g;
    return SL_OK;
}

/* Who watches is told before the first connection is turned away. */
void grpc_door_drain(struct grpc_door *g)
{
    if (g)
        g->ops->set_serving(g->door, false);
}

uint32_t grpc_door_busy(const struct grpc_door *g)
{
    uint32_t n = 0;
    for (const struct sl_list *l = g ? g->asks.next : NULL; l && l != &g->asks; l = l->next)
        n++;
    return n;
}

void grpc_door_close(struct grpc_door *g)
{
    if (!g)
        return;
    if (g->door) {
        g->ops->stop(g->door);
        on_inbox(g); /* the last that were notified */
        kserve_stop(g);
        g->ops->close(g->door);
    }
    if (g->watch)
        sl_loop_unwatch(g->watch);
    if (g->timer)
        sl_timer_free(g->timer);
    if (g->inbox)
        sl_queue_close(g->inbox);
    free(g);
}
