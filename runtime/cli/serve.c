/* sluice serve and sluice router: a router node, with supervised workers on this machine or with
 * those of a cluster. */
#include "cli.h"
#include "engine_options.h"
#include "followers.h"

#include <limits.h>
#include <sluice/base/fault.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/serve/node.h>
#include <sluice/transport/bus.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BIND_MAX        31
#define WORKER_ARGS_MAX 64

struct serve_options {
    const char *host, *tls_cert, *tls_key, *api_key_file, *served_model_name, *policy, *log_format;
    const char *config, *bind, *connect, *curve_dir, *site, *site_weights, *inject;
    int64_t prefill_min_tokens, bus_version, port, grpc_port, queue, drain_timeout, workers;
    struct engine_options engine;
    struct kv_events_options kv;
};

#define ROW(...)        CLI_OPTION_ROW(struct serve_options, __VA_ARGS__)
#define ENGINE_ROW(...) ENGINE_OPTION_ROW(struct serve_options, engine, __VA_ARGS__)

/* What serve and router share. */
#define NODE_OPTION_TABLE(X)                                                                       \
    X("host", SL_OPT_STRING, host, "127.0.0.1", 0, 0, NULL, "ADDRESS", "address of the HTTP door") \
    X("port", SL_OPT_INT, port, "8080", 0, 65535, NULL, "N", "its port; 0: any free one")          \
    X("grpc-port", SL_OPT_INT, grpc_port, "0", 0, 65535, NULL, "N", "port of the gRPC door")       \
    X("ssl-certfile", SL_OPT_STRING, tls_cert, NULL, 0, 0, NULL, "FILE", "TLS certificate chain")  \
    X("ssl-keyfile", SL_OPT_STRING, tls_key, NULL, 0, 0, NULL, "FILE", "TLS private key")          \
    X("api-key-file", SL_OPT_STRING, api_key_file, NULL, 0, 0, NULL, "FILE",                       \
      "file of API keys, one a line")                                                              \
    X("served-model-name", SL_OPT_STRING, served_model_name, NULL, 0, 0, NULL, "NAME",             \
      "the model's name for clients (default: the file's name)")                                   \
    X("routing-policy", SL_OPT_CHOICE, policy, "kv", 0, 0,                                         \
      "kv|prefix-affinity|session|power-of-two|least-load", "NAME", "how a worker is chosen")      \
    X("max-num-queued-reqs", SL_OPT_INT, queue, NULL, 1, SL_LIMIT_queue_requests, NULL, "N",       \
      "requests that may wait before 429")                                                         \
    X("shutdown-timeout", SL_OPT_INT, drain_timeout, "30", 0, 86400, NULL, "SECONDS",              \
      "how long a drain may last")                                                                 \
    X("log-format", SL_OPT_CHOICE, log_format, NULL, 0, 0, "text|json", "FORMAT",                  \
      "of log lines (default: text on a terminal)")                                                \
    X("inject", SL_OPT_STRING, inject, NULL, 0, 0, NULL, "NAME=PROBABILITY[@MS][+SKIP][xMOST]", "")   \
    X("config", SL_OPT_STRING, config, NULL, 0, 0, NULL, "FILE", "YAML file of options")

#define CLUSTER_OPTION_TABLE(X)                                                                    \
    X("bind", SL_OPT_STRING, bind, NULL, 0, 0, NULL, "ENDPOINT[,...]",                             \
      "bus endpoints for workers, ipc://PATH or tcp://HOST:PORT")                                  \
    X("curve-dir", SL_OPT_STRING, curve_dir, NULL, 0, 0, NULL, "DIR",                              \
      "CURVE keys, needed beyond this machine")                                                    \
    X("bus-version", SL_OPT_INT, bus_version, NULL, 1, SL_BUS_VERSION, NULL, "N",                  \
      "speak no newer bus protocol (default: the newest)")                                         \
    X("prefill-min-tokens", SL_OPT_INT, prefill_min_tokens, "128", 0, 1048576, NULL, "N",          \
      "prompts with as many tokens to compute go to prefill workers; 0: none")                     \
    X("connect", SL_OPT_STRING, connect, NULL, 0, 0, NULL, "ENDPOINT[,...]",                       \
      "routers above, to which this one is a site: one big worker")                                \
    X("site", SL_OPT_STRING, site, NULL, 0, 0, NULL, "NAME", "where it stands")                    \
    X("site-weights", SL_OPT_STRING, site_weights, NULL, 0, 0, NULL, "NAME=X[,...]",               \
      "shares of the sites below beside others of their size (default: 1)")

static const struct sl_option serve_table[] = {
    NODE_OPTION_TABLE(ROW) ENGINE_OPTION_TABLE(ENGINE_ROW) KV_EVENTS_OPTION_TABLE(ROW) ROW(
        "workers", SL_OPT_INT, workers, "1", 1, 64, NULL, "N", "worker processes on this machine")};
static const struct sl_option router_table[] = {NODE_OPTION_TABLE(ROW) CLUSTER_OPTION_TABLE(ROW)};

/* Clients and peers are descriptors: as many as the system grants. */
static void raise_descriptors(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur == r.rlim_max)
        return;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r); /* without it the old limit holds */
}

static enum sl_status node_config(const struct serve_options *o, char *const *env,
                                  struct sl_node_config *cfg, struct sl_err *err)
{
    enum sl_status s = sl_faults_set(o->inject, err);
    if (s)
        return s;
    if (!o->tls_cert != !o->tls_key)
        return sl_fail_param(err, SL_USAGE, "ssl-keyfile",
                             "--ssl-certfile and --ssl-keyfile go together");
    raise_descriptors();
    *cfg = (struct sl_node_config){.host = o->host,
                                   .port = (uint16_t)o->port,
                                   .tls_cert_file = o->tls_cert,
                                   .tls_key_file = o->tls_key,
                                   .api_key_file = o->api_key_file,
                                   .served_model_name = o->served_model_name,
                                   .grpc_port = (uint16_t)o->grpc_port,
                                   .run_dir = sl_cli_run_dir(env),
                                   .env = env,
                                   .policy = o->policy,
                                   .queue_max = (uint32_t)o->queue,
                                   .prefill_min_tokens = (uint32_t)o->prefill_min_tokens,
                                   .drain_ms =
                                       (uint32_t)(o->drain_timeout ? o->drain_timeout * 1000 : 1),
                                   .started_ns = sl_now_ns()};
    return SL_OK;
}

/* Flags of KV events that are not the default. One endpoint serves one worker. */
static enum sl_status kv_events_args(const struct serve_options *o, const char **argv, uint32_t *n,
                                     struct sl_err *err)
{
    const struct kv_events_options *kv = &o->kv;
    const struct {
        const char *flag, *value;
    } rows[] = {{"--kv-events-endpoint", kv->endpoint},
                {"--kv-events-replay-endpoint", kv->replay_endpoint},
                {"--kv-events-topic", *kv->topic ? kv->topic : NULL},
                {"--kv-events-format", strcmp(kv->format, "vllm") ? kv->format : NULL}};
    if (o->workers > 1 && (kv->endpoint || kv->replay_endpoint))
        return sl_fail_param(err, SL_USAGE, "kv-events-endpoint",
                             "--kv-events-endpoint is for one worker, not for %d", (int)o->workers);
    if (!kv->enabled)
        argv[(*n)++] = "--no-kv-events";
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value) {
            argv[(*n)++] = rows[i].flag;
            argv[(*n)++] = rows[i].value;
        }
    return SL_OK;
}

static enum sl_status worker_args(const struct serve_options *o, const char *model,
                                  struct sl_arena *arena, const char **argv, uint32_t *n,
                                  struct sl_err *err)
{
    struct engine_options per_worker = o->engine;
    struct sl_engine_config cfg;
    enum sl_status s = engine_options_config(&o->engine, (uint32_t)o->workers, &cfg, err);
    if (s)
        return s;
    per_worker.threads = cfg.n_threads;
    argv[(*n)++] = "sluice";
    argv[(*n)++] = "worker";
    argv[(*n)++] = model;
    if (o->served_model_name) {
        argv[(*n)++] = "--served-model-name";
        argv[(*n)++] = o->served_model_name;
    }
    if (o->inject) {
        argv[(*n)++] = "--inject";
        argv[(*n)++] = o->inject;
    }
    if (o->log_format) {
        argv[(*n)++] = "--log-format";
        argv[(*n)++] = o->log_format;
    }
    s = kv_events_args(o, argv, n, err);
    return s ? s : engine_options_args(&per_worker, arena, argv, WORKER_ARGS_MAX, n, err);
}

static enum sl_status serve(const struct serve_options *o, const char *operand, char *const *env,
                            struct sl_arena *arena, struct sl_err *err)
{
    const char *argv[WORKER_ARGS_MAX];
    char exe[PATH_MAX];
    uint32_t n = 0;
    struct sl_buf path = {0};
    struct sl_node_config cfg;
    enum sl_status s;
    if ((s = node_config(o, env, &cfg, err)) || (s = sl_cli_self_path(exe, err)) ||
        (s = sl_store_find(operand, env, &path, err)) ||
        (s = worker_args(o, path.data, arena, argv, &n, err)))
        goto out;
    cfg.exe = exe;
    cfg.worker_argv = argv;
    cfg.n_worker_argv = n;
    cfg.n_workers = (uint32_t)o->workers;
    cfg.n_ranks = engine_options_ranks(&o->engine);
    s = sl_node_run(&cfg, err);
out:
    sl_buf_free(&path);
    return s;
}

/* Cuts "a,b,c" in a copy; *n is 0 for NULL. */
static enum sl_status endpoints(const char *option, const char *text, struct sl_arena *arena,
                                const char *out[BIND_MAX], uint32_t *n, struct sl_err *err)
{
    char *copy = text ? sl_arena_strndup(arena, text, strlen(text)) : NULL, *rest = NULL;
    *n = 0;
    for (char *e = copy ? strtok_r(copy, ",", &rest) : NULL; e; e = strtok_r(NULL, ",", &rest)) {
        if (*n == BIND_MAX)
            return sl_fail_param(err, SL_USAGE, option, "--%s: at most %d endpoints", option,
                                 BIND_MAX);
        out[(*n)++] = e;
    }
    return SL_OK;
}

static enum sl_status router(const struct serve_options *o, char *const *env,
                             struct sl_arena *arena, struct sl_err *err)
{
    const char *bind[BIND_MAX], *connect[BIND_MAX];
    struct sl_node_config cfg;
    enum sl_status s = node_config(o, env, &cfg, err);
    if (s || (s = endpoints("bind", o->bind, arena, bind, &cfg.n_bind, err)) ||
        (s = endpoints("connect", o->connect, arena, connect, &cfg.n_connect, err)))
        return s;
    if (!cfg.n_bind)
        return sl_fail_param(err, SL_USAGE, "bind", "--bind is missing: an endpoint for workers");
    cfg.bind = bind;
    cfg.connect = connect;
    cfg.curve_dir = o->curve_dir;
    cfg.bus_version = (uint32_t)o->bus_version;
    cfg.site = o->site;
    cfg.site_weights = o->site_weights;
    return sl_node_run(&cfg, err);
}

const struct sl_verb_doc sl_doc_serve = {.verb = "serve",
                                         .operands = "[MODEL]",
                                         .summary = "serve a model on this machine",
                                         .table = serve_table,
                                         .n_table = sizeof serve_table / sizeof *serve_table};

int sl_cli_serve(int argc, char **argv, char *const *env)
{
    struct serve_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    const char *operand = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc =
        sl_cli_options("serve", "[MODEL] ", serve_table, sizeof serve_table / sizeof *serve_table,
                       argc, argv, env, &arena, &o, &operand, 1, &n, &done);
    if (!done) {
        sl_log_open(sl_cli_log_format(o.log_format), SL_LOG_INFO, "router");
        if (serve(&o, n ? operand : NULL, env, &arena, &err))
            rc = sl_cli_fail(&err);
    }
    sl_arena_free(&arena);
    return rc;
}

const struct sl_verb_doc sl_doc_router = {.verb = "router",
                                          .operands = "--bind ENDPOINT",
                                          .summary = "a router node of a cluster",
                                          .table = router_table,
                                          .n_table = sizeof router_table / sizeof *router_table};

int sl_cli_router(int argc, char **argv, char *const *env)
{
    struct serve_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("router", "--bind ENDPOINT ", router_table,
                            sizeof router_table / sizeof *router_table, argc, argv, env, &arena, &o,
                            NULL, 0, &n, &done);
    if (!done) {
        sl_log_open(sl_cli_log_format(o.log_format), SL_LOG_INFO, "router");
        if (router(&o, env, &arena, &err))
            rc = sl_cli_fail(&err);
    }
    sl_arena_free(&arena);
    return rc;
}
