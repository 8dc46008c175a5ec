/* A router node: opens its parts on one loop, watches them, drains and stops.
 *
 * Order of a round: descriptors and timers fire, then on_idle receives what the bus has left
 * (ZeroMQ's descriptor is edge-triggered), carries out the router's actions and frees what ended.
 */
#include "node.h"
#include "sites.h"

#include <signal.h>
#include <sluice/base/fault.h>
#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/transport/kv_events.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_MS_DEFAULT 30000
#define STOP_CHILDREN_MS 10000 /* for the step in flight and giving memory back */
#define STOP_AT_ONCE_MS  1000
#define RETRIES_MAX      3
#define RETRY_PERCENT    20

/* --- keys ------------------------------------------------------------------------------------- */

static enum sl_status add_key(struct node *n, struct sl_str key, struct sl_err *err)
{
    void *grown = realloc(n->keys, (n->n_keys + 1) * sizeof *n->keys);
    if (!grown)
        return sl_fail(err, SL_NO_MEMORY, "no memory for API keys");
    n->keys = grown;
    sl_sha256(key.data, key.len, n->keys[n->n_keys++]);
    return SL_OK;
}

static enum sl_status read_keys(struct node *n, struct sl_err *err)
{
    const char *path = n->cfg->api_key_file;
    if (!path)
        return SL_OK;
    FILE *f = fopen(path, "re");
    if (!f)
        return sl_fail_param(err, SL_CONFIG, "api-key-file", "API key file '%s' cannot be read",
                             path);
    char line[1024];
    enum sl_status s = SL_OK;
    while (!s && fgets(line, sizeof line, f)) {
        size_t len = strcspn(line, "\r\n");
        if (len && line[0] != '#')
            s = add_key(n, (struct sl_str){line, len}, err);
    }
    fclose(f);
    if (!s && !n->n_keys)
        s = sl_fail_param(err, SL_CONFIG, "api-key-file", "API key file '%s' holds no key", path);
    return s;
}

bool node_needs_key(const struct node *n)
{
    return n->n_keys > 0;
}

bool node_key_ok(const struct node *n, struct sl_str key)
{
    uint8_t sum[32];
    bool ok = false;
    sl_sha256(key.data, key.len, sum);
    for (uint32_t i = 0; i < n->n_keys; i++) /* all of them: time does not tell which */
        ok |= sl_equal_ct(sum, n->keys[i], sizeof sum);
    return ok;
}

/* --- what the doors ask ----------------------------------------------------------------------- */

bool node_has_model(const struct node *n)
{
    return n->tokenizer && n->model_name[0];
}

const struct sl_tokenizer *node_tokenizer(const struct node *n)
{
    return n->tokenizer;
}

const struct sl_template *node_template(const struct node *n)
{
    return n->template;
}

const char *node_model_name(const struct node *n)
{
    return n->model_name;
}

uint64_t node_model_created(const struct node *n)
{
    return n->model_created;
}

uint32_t node_max_len(const struct node *n)
{
    return n->max_len;
}

uint32_t node_n_vocab(const struct node *n)
{
    return n->n_vocab;
}

struct sl_loop *node_loop(struct node *n)
{
    return n->loop;
}

bool node_is_draining(const struct node *n)
{
    return n->draining;
}

static bool makes_progress(const struct peer *p, uint64_t now)
{
    uint64_t age_ms = p->load.last_step_age_ms;
    if (!p->joined || age_ms >= PROGRESS_TIMEOUT_MS)
        return false;
    if (p->load.reforming) /* it says why, and goes on in seconds */
        return age_ms * SL_MS_NS < SL_REFORM_NS;
    if (age_ms) /* a step is in progress, and was since that report */
        age_ms += (now - p->load_ns) / SL_MS_NS;
    return age_ms < PROGRESS_TIMEOUT_MS &&
           !sl_is_stalled(age_ms * SL_MS_NS, p->load.step_expected_ms * SL_MS_NS);
}

bool node_is_ready(const struct node *n, struct sl_err *why)
{
    if (n->draining) {
        sl_fail(why, SL_DRAINING, "the server is shutting down");
        return false;
    }
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next)
        if (makes_progress(SL_ENTRY(l, struct peer, link), sl_now_ns()))
            return true;
    if (node_has_model(n))
        sl_fail(why, SL_PEER, "no worker makes progress");
    else
        sl_fail(why, SL_LOADING, "the model is being loaded");
    return false;
}

void node_print_ps(struct node *n, struct sl_buf *out)
{
    struct sl_router_stats s;
    sl_router_stats(n->router, &s);
    const char *site = n->cfg->site ? n->cfg->site : "";
    sl_buf_printf(out, "[{\"pid\":%ld,\"role\":\"router\",\"site\":", (long)getpid());
    sl_buf_json_str(out, site, strlen(site));
    sl_buf_printf(out,
                  ",\"rank\":0,\"tp\":1,\"pp\":1,"
                  "\"isa\":\"\",\"class\":\"\",\"threads\":1,\"max_batched_tokens\":0,"
                  "\"weight_bytes\":0,\"comm_bytes\":0,\"kv_pages_total\":0,\"kv_pages_free\":0,"
                  "\"running\":%u,\"waiting\":%u,\"steps\":0,\"kernels\":{}}",
                  s.inflight, s.waiting);
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next)
        node_ranks_print(SL_ENTRY(l, struct peer, link), out);
    sl_buf_putc(out, ']');
}

/* --- life ------------------------------------------------------------------------------------- */

void node_check_ready(struct node *n)
{
    struct sl_err why;
    if (n->ready_printed || !node_is_ready(n, &why))
        return;
    n->ready_printed = true;
    grpc_door_refresh(n->grpc);
    const char *host = n->cfg->host;
    bool v6 = strchr(host, ':') != NULL;
    fprintf(stderr, "sluice: ready in %.2f s, %s://%s%s%s:%u\n",
            (double)(sl_now_ns() - n->cfg->started_ns) / 1e9,
            n->cfg->tls_cert_file ? "https" : "http", v6 ? "[" : "", host, v6 ? "]" : "",
            gateway_port(n->gateway));
}

void node_stop(struct node *n, enum sl_status status, const struct sl_err *err)
{
    if (n->stopping)
        return;
    n->stopping = true;
    n->result = status;
    if (err)
        n->result_err = *err;
    sl_loop_stop(n->loop);
}

/* Requests not yet answered, at both doors. */
static uint32_t n_busy(const struct node *n)
{
    return gateway_busy(n->gateway) + grpc_door_busy(n->grpc);
}

void node_drain(struct node *n)
{
    if (n->draining)
        return;
    n->draining = true;
    uint64_t ms = n->cfg->drain_ms ? n->cfg->drain_ms : DRAIN_MS_DEFAULT;
    n->drain_until_ns = sl_now_ns() + ms * SL_MS_NS;
    sl_log(SL_LOG_INFO, "draining: %u requests in flight", n_busy(n));
    sl_router_drain(n->router);
    grpc_door_drain(n->grpc);
    gateway_drain(n->gateway);
}

static void on_term(void *ctx)
{
    struct node *n = ctx;
    if (n->draining) {
        struct sl_err err;
        sl_fail(&err, SL_DRAIN_DEADLINE, "stopped by a second signal");
        node_stop(n, n_busy(n) ? SL_DRAIN_DEADLINE : SL_OK, &err);
        return;
    }
    node_drain(n);
}

static void on_child(void *ctx)
{
    node_children_reap(ctx);
}

static void on_hup(void *ctx)
{
    struct node *n = ctx;
    sl_bus_reload_keys(n->bus);
    uplink_reload_keys(n->uplink);
}

static void drain_tick(struct node *n, uint64_t now)
{
    if (!n->draining || n->stopping)
        return;
    struct sl_err err;
    if (!n_busy(n) && sl_list_empty(&n->gens)) {
        node_stop(n, SL_OK, NULL);
    } else if (now >= n->drain_until_ns) {
        sl_fail(&err, SL_DRAIN_DEADLINE, "%u requests were cut off by the drain deadline",
                n_busy(n));
        gen_fail_all(n, &err);
        node_stop(n, SL_DRAIN_DEADLINE, &err);
    }
}

static void on_tick(void *ctx)
{
    struct node *n = ctx;
    node_bus_drain(n); /* after a long pause: what waits comes before any timeout */
    uint64_t now = sl_now_ns();
    sl_router_tick(n->router, now);
    node_bus_tick(n, now);
    uplink_tick(n->uplink, now);
    node_children_tick(n, now);
    drain_tick(n, now);
    if (!n->stopping)
        sl_timer_start(n->tick, NODE_TICK_MS);
}

static void on_bus(void *ctx)
{
    node_bus_drain(ctx);
}

static void on_kv(void *ctx)
{
    node_events_drain(ctx);
}

static void on_idle(void *ctx)
{
    struct node *n = ctx;
    sl_fault_delay(SL_FAULT_ROUTER_SLOW);
    node_bus_drain(n);
    uplink_pump(n->uplink);
    node_events_drain(n); /* asking for a replay may have consumed an edge, too */
    node_pump(n);
    node_bus_drain(n); /* sending may have consumed the descriptor's edge */
    gen_free_dead(n);
}

static enum sl_status open_bus(struct node *n, struct sl_err *err)
{
    const struct sl_node_config *cfg = n->cfg;
    const char *endpoints[32];
    uint32_t k = 0;
    enum sl_status s = SL_OK;
    if (cfg->n_workers) {
        s = sl_bus_ipc_make(cfg->run_dir, &n->ipc, err);
        endpoints[k++] = n->ipc.data;
    }
    if (!s && cfg->n_bind > 31)
        s = sl_fail_param(err, SL_USAGE, "bind", "at most 31 endpoints to bind, not %u",
                          cfg->n_bind);
    if (s)
        return s;
    for (uint32_t i = 0; i < cfg->n_bind; i++)
        endpoints[k++] = cfg->bind[i];
    struct sl_bus_config bus = {.endpoints = endpoints,
                                .n_endpoints = k,
                                .is_router = true,
                                .curve_dir = cfg->curve_dir,
                                .version = cfg->bus_version};
    return sl_bus_open(&bus, &n->bus, err);
}

static enum sl_route_policy policy_named(const char *name)
{
    static const char *const names[] = {[SL_ROUTE_LEAST_LOAD] = "least-load",
                                        [SL_ROUTE_PREFIX_AFFINITY] = "prefix-affinity",
                                        [SL_ROUTE_KV] = "kv",
                                        [SL_ROUTE_SESSION] = "session",
                                        [SL_ROUTE_POWER_OF_TWO] = "power-of-two"};
    for (uint32_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return (enum sl_route_policy)i;
    return SL_ROUTE_KV;
}

static enum sl_status open_router(struct node *n, struct sl_err *err)
{
    struct sl_router_config r = {.max_workers = SL_LIMIT_workers,
                                 .max_requests = SL_LIMIT_inflight_requests,
                                 .queue_max = n->cfg->queue_max ? n->cfg->queue_max
                                                                : SL_LIMIT_queue_requests,
                                 .page_size = 16,
                                 .kv_keys_max = SL_LIMIT_kv_index_pages,
                                 .retries_max = RETRIES_MAX,
                                 .retry_percent = RETRY_PERCENT,
                                 .eject_slow = true,
                                 .seed = sl_entropy_u64() | 1,
                                 .prefill_min_tokens = n->cfg->prefill_min_tokens,
                                 .heartbeat_timeout_ns = 0, /* membership listens for silence */
                                 .progress_timeout_ns = PROGRESS_TIMEOUT_MS * SL_MS_NS,
                                 .policy = policy_named(n->cfg->policy)};
    struct sl_members_config members = {.max_members = SL_LIMIT_workers,
                                        .version_min = SL_BUS_VERSION_MIN,
                                        .version_max = SL_BUS_VERSION,
                                        .meta_bytes_max = SL_LIMIT_model_meta_bytes};
    enum sl_status s = sl_members_open(&members, &n->members, err);
    return s ? s : sl_router_open(&r, &n->router, err);
}

static enum sl_status open_gateway(struct node *n, struct sl_err *err)
{
    struct sl_http_config http = {.host = n->cfg->host,
                                  .port = n->cfg->port,
                                  .tls_cert_file = n->cfg->tls_cert_file,
                                  .tls_key_file = n->cfg->tls_key_file};
    return gateway_open(n, &http, &n->gateway, err);
}

static enum sl_status open_grpc(struct node *n, struct sl_err *err)
{
    struct sl_grpc_config grpc = {.host = n->cfg->host,
                                  .port = n->cfg->grpc_port,
                                  .tls_cert_file = n->cfg->tls_cert_file,
                                  .tls_key_file = n->cfg->tls_key_file};
    return grpc.port ? grpc_door_open(n, &grpc, &n->grpc, err) : SL_OK;
}

static enum sl_status open_watches(struct node *n, struct sl_err *err)
{
    n->bus_watch = sl_loop_watch_fd(n->loop, sl_bus_fd(n->bus), on_bus, n);
    n->kv_watch = sl_loop_watch_fd(n->loop, sl_kv_sub_fd(n->kv_sub), on_kv, n);
    n->tick = sl_timer_new(n->loop, on_tick, n);
    n->on_term = sl_loop_on_signal(n->loop, SIGTERM, on_term, n);
    n->on_int = sl_loop_on_signal(n->loop, SIGINT, on_term, n);
    n->on_chld = sl_loop_on_signal(n->loop, SIGCHLD, on_child, n);
    if (n->cfg->curve_dir && !(n->on_hup = sl_loop_on_signal(n->loop, SIGHUP, on_hup, n)))
        return sl_fail(err, SL_NO_MEMORY, "no memory or descriptors for the event loop");
    if (!n->bus_watch || !n->kv_watch || !n->tick || !n->on_term || !n->on_int || !n->on_chld)
        return sl_fail(err, SL_NO_MEMORY, "no memory or descriptors for the event loop");
    sl_loop_on_idle(n->loop, on_idle, n);
    sl_timer_start(n->tick, NODE_TICK_MS);
    return SL_OK;
}

/* The port first: a busy one is said before a worker is started. */
static enum sl_status open_parts(struct node *n, struct sl_err *err)
{
    n->loop = sl_loop_open();
    if (!n->loop)
        return sl_fail(err, SL_NO_MEMORY, "no memory or descriptors for the event loop");
    metrics_open();
    enum sl_status s = sites_check(n->cfg->site_weights, err);
    if (s || (s = read_keys(n, err)) || (s = open_router(n, err)) || (s = open_gateway(n, err)) ||
        (s = open_grpc(n, err)) || (s = open_bus(n, err)) || (s = node_events_open(n, err)) ||
        (s = open_watches(n, err)) || (s = uplink_open(n, &n->uplink, err)) ||
        (s = node_children_start(n, err)))
        return s;
    return SL_OK;
}

/* Workers drain on the supervisor's word; those that do not go are ended. */
static void stop_children(struct node *n)
{
    bool polite = n->result == SL_OK;
    if (polite && n->bus && n->cfg->n_workers) /* a cluster's workers stay for other routers */
        node_bus_say_drain(n);
    node_children_stop(n, SIGTERM);
    int limit_ms = polite ? STOP_CHILDREN_MS : STOP_AT_ONCE_MS;
    for (int ms = 0; ms < limit_ms; ms += 10) {
        node_children_reap(n);
        if (!node_children_stop(n, 0))
            return;
        struct timespec ten_ms = {0, 10 * 1000 * 1000};
        nanosleep(&ten_ms, NULL);
    }
    node_children_stop(n, SIGKILL);
    while (node_children_stop(n, 0)) {
        struct timespec ms = {0, 1000 * 1000};
        nanosleep(&ms, NULL);
        node_children_reap(n);
    }
}

static void close_parts(struct node *n)
{
    n->stopping = true;
    uplink_close(n->uplink);
    grpc_door_close(n->grpc);
    if (n->gateway)
        gateway_close(n->gateway);
    while (!sl_list_empty(&n->gens))
        gen_cancel(SL_ENTRY(n->gens.next, struct gen, link));
    gen_free_dead(n);
    stop_children(n);
    if (n->bus_watch)
        sl_loop_unwatch(n->bus_watch);
    if (n->kv_watch)
        sl_loop_unwatch(n->kv_watch);
    if (n->tick)
        sl_timer_free(n->tick);
    struct sl_signal *signals[] = {n->on_term, n->on_int, n->on_chld, n->on_hup};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (signals[i])
            sl_signal_free(signals[i]);
    node_events_close(n);
    node_bus_close(n);
    if (n->router)
        sl_router_close(n->router);
    sl_members_close(n->members);
    if (n->loop)
        sl_loop_close(n->loop); /* waits for helpers, which still read the tokenizer */
    if (n->template)
        sl_template_close(n->template);
    if (n->tokenizer)
        sl_tokenizer_close(n->tokenizer);
    if (n->gguf)
        sl_gguf_close(n->gguf);
    free(n->children);
    free(n->keys);
}

enum sl_status sl_node_run(const struct sl_node_config *cfg, struct sl_err *err)
{
    struct node *n = calloc(1, sizeof *n);
    if (!n)
        return sl_fail(err, SL_NO_MEMORY, "no memory for a node");
    n->cfg = cfg;
    sl_list_init(&n->peers);
    sl_list_init(&n->gens);
    sl_list_init(&n->dead);
    sl_hash_init(&n->streams, n->stream_buckets, STREAM_BUCKETS);
    enum sl_status s = open_parts(n, err);
    if (!s) {
        sl_loop_run(n->loop);
        s = n->result;
        if (s && err)
            *err = n->result_err;
    }
    n->result = s;
    close_parts(n);
    free(n);
    return s;
}
