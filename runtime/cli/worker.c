/* `sluice worker MODEL`: one engine offered to the routers of a cluster, or a child of `serve`. */
#include "cli.h"
#include "engine_options.h"
#include "followers.h"

#include <sluice/base/fault.h>
#include <sluice/base/log.h>
#include <sluice/serve/worker.h>
#include <sluice/transport/bus.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_MAX 32
#define ENV_MAX     4096
#define PATIENCE_MS 300000 /* a rank that a launcher started waits so long for the others */

struct worker_options {
    struct engine_options engine;
    const char *connect, *curve_dir, *role, *site, *served_model_name, *log_format, *config,
        *inject;
    struct kv_events_options kv;
    const char *rendezvous, *master_addr, *host_ip;
    int64_t rank, world_size, master_port, rank_return_ms;
    const char *kv_transfer, *kv_host;
    int64_t bus_version, supervised, shutdown_timeout;
};

#define AT(field)   .offset = offsetof(struct worker_options, field)
#define ROW(...)    ENGINE_OPTION_ROW(struct worker_options, engine, __VA_ARGS__)
#define KV_ROW(...) CLI_OPTION_ROW(struct worker_options, __VA_ARGS__)

static const struct sl_option table[] = {
    {.name = "connect",
     .kind = SL_OPT_STRING,
     AT(connect),
     .meta = "ENDPOINT[,...]",
     .help = "bus endpoints of the routers, tcp://HOST:PORT or ipc://PATH"},
    {.name = "curve-dir",
     .kind = SL_OPT_STRING,
     AT(curve_dir),
     .meta = "DIR",
     .help = "CURVE keys of the cluster, needed beyond this machine"},
    {.name = "bus-version",
     .kind = SL_OPT_INT,
     AT(bus_version),
     .min = 1,
     .max = SL_BUS_VERSION,
     .meta = "N",
     .help = "speak no newer bus protocol (default: the newest)"},
    {.name = "role",
     .kind = SL_OPT_CHOICE,
     AT(role),
     .def = "both",
     .choices = "both|prefill|decode",
     .meta = "ROLE",
     .help = "part of the work this worker takes"},
    {.name = "kv-transfer",
     .kind = SL_OPT_CHOICE,
     AT(kv_transfer),
     .def = "auto",
     .choices = "auto|shm|tcp|off",
     .meta = "HOW",
     .help = "how KV pages travel between prefill and decode workers (auto: shared memory on one "
             "machine, else TCP)"},
    {.name = "kv-host",
     .kind = SL_OPT_STRING,
     AT(kv_host),
     .meta = "ADDRESS",
     .help = "numeric address that KV pages are served on (default: the one facing the router)"},
    {.name = "site", .kind = SL_OPT_STRING, AT(site), .meta = "NAME", .help = "where it stands"},
    {.name = "served-model-name",
     .kind = SL_OPT_STRING,
     AT(served_model_name),
     .meta = "NAME",
     .help = "the model's name for clients (default: the file's name)"},
    {.name = "rank",
     .kind = SL_OPT_INT,
     AT(rank),
     .def = "-1",
     .min = -1,
     .max = SL_LIMIT_ranks - 1,
     .meta = "N",
     .help = "this process's rank of a sharded model; without one said here or by a launcher "
             "(torchrun, OpenMPI, Slurm, LeaderWorkerSet) it is rank 0 and starts the others"},
    {.name = "world-size",
     .kind = SL_OPT_INT,
     AT(world_size),
     .min = 1,
     .max = SL_LIMIT_ranks,
     .meta = "N",
     .help = "ranks in all: tensor-parallel-size x pipeline-parallel-size"},
    {.name = "master-addr",
     .kind = SL_OPT_STRING,
     AT(master_addr),
     .meta = "ADDRESS",
     .help = "where rank 0 is (default: the launcher's word, or this machine)"},
    {.name = "master-port",
     .kind = SL_OPT_INT,
     AT(master_port),
     .min = 1,
     .max = 65535,
     .meta = "N",
     .help = "port where the ranks meet (default: the launcher's word, or 29500)"},
    {.name = "rendezvous",
     .kind = SL_OPT_STRING,
     AT(rendezvous),
     .meta = "ENDPOINT",
     .help = "where the ranks meet, ipc://PATH or tcp://HOST:PORT, instead of address and port"},
    {.name = "host-ip",
     .kind = SL_OPT_STRING,
     AT(host_ip),
     .meta = "ADDRESS",
     .help = "this machine's address for links between ranks (default: 127.0.0.1)"},
    {.name = "rank-return-ms",
     .kind = SL_OPT_INT,
     AT(rank_return_ms),
     .def = "3000",
     .max = 3600000,
     .meta = "MS",
     .help =
         "a lost rank that a launcher started is waited for so long; then rank 0 goes on alone, "
         "where memory allows, until all are back (0: wait)"},
    {.name = "supervised",
     .kind = SL_OPT_INT,
     AT(supervised),
     .min = 1,
     .max = 4194304,
     .meta = "PID",
     .help = "started by `serve` with this process id: live and die with it"},
    {.name = "shutdown-timeout",
     .kind = SL_OPT_INT,
     AT(shutdown_timeout),
     .def = "30",
     .max = 86400,
     .meta = "SECONDS",
     .help = "how long a drain may last"},
    {.name = "log-format",
     .kind = SL_OPT_CHOICE,
     AT(log_format),
     .choices = "text|json",
     .meta = "FORMAT",
     .help = "of log lines (default: text on a terminal)"},
    {.name = "inject",
     .kind = SL_OPT_STRING,
     AT(inject),
     .meta = "NAME=PROBABILITY[@MS][+SKIP][xMOST]",
     .help = ""},
    {.name = "config",
     .kind = SL_OPT_STRING,
     AT(config),
     .meta = "FILE",
     .help = "YAML file of options"},
    ENGINE_OPTION_TABLE(ROW) KV_EVENTS_OPTION_TABLE(KV_ROW)};

/* Cuts "a,b,c" in place. */
static enum sl_status split_connect(char *text, const char **out, uint32_t *n, struct sl_err *err)
{
    char *rest = NULL;
    *n = 0;
    for (char *e = text ? strtok_r(text, ",", &rest) : NULL; e; e = strtok_r(NULL, ",", &rest)) {
        if (*n == CONNECT_MAX)
            return sl_fail_param(err, SL_USAGE, "connect", "--connect: at most %d endpoints",
                                 CONNECT_MAX);
        out[(*n)++] = e;
    }
    if (*n == 0)
        return sl_fail_param(err, SL_USAGE, "connect",
                             "--connect is missing: the endpoint of a router");
    return SL_OK;
}

/* Which rank this is, and the others when they are its own. A child is told by its parent alone. */
static enum sl_status find_place(const struct worker_options *o, const char *model,
                                 char *const *env, struct sl_arena *arena,
                                 struct sl_rank_place *place, struct followers *room,
                                 struct sl_worker_config *cfg, struct sl_err *err)
{
    const struct sl_rank_options r = {.rank = o->rank,
                                      .world_size = o->world_size,
                                      .rendezvous = o->rendezvous,
                                      .master_addr = o->master_addr,
                                      .master_port = o->master_port};
    uint32_t n = engine_options_ranks(&o->engine);
    enum sl_status s = sl_rank_discover(&r, o->supervised ? NULL : env, n, place, err);
    if (s || n == 1)
        return s;
    cfg->engine.place.rank = place->rank;
    cfg->engine.place.rendezvous = place->rendezvous;
    cfg->engine.place.host = o->host_ip;
    cfg->engine.place.curve_dir = o->curve_dir;
    cfg->engine.place.interface = place->interface;
    if (place->given) {
        sl_log(SL_LOG_INFO, "rank %u of %u by %s, meeting at %s", place->rank, n, place->source,
               place->rendezvous);
        cfg->engine.place.patience_ms = o->supervised ? 0 : PATIENCE_MS;
        return SL_OK;
    }
    s = followers_config(&o->engine, model, o->log_format, env, arena, room, &cfg->followers, err);
    if (place->rendezvous[0])
        cfg->followers.rendezvous = place->rendezvous;
    return s;
}

static enum sl_status run(const struct worker_options *o, const char *operand, char *const *env,
                          struct sl_arena *arena, struct sl_err *err)
{
    const char *endpoints[CONNECT_MAX];
    struct sl_worker_config cfg = {.connect = endpoints,
                                   .served_model_name = o->served_model_name,
                                   .curve_dir = o->curve_dir,
                                   .bus_version = (uint32_t)o->bus_version,
                                   .role = o->role,
                                   .site = o->site,
                                   .kv_transfer = o->kv_transfer,
                                   .kv_host = o->kv_host,
                                   .run_dir = sl_cli_run_dir(env),
                                   .kv_events_endpoint = o->kv.endpoint,
                                   .kv_events_replay_endpoint = o->kv.replay_endpoint,
                                   .kv_events_topic = o->kv.topic,
                                   .kv_events_array = !strcmp(o->kv.format, "vllm-array"),
                                   .rank_return_ms = (uint32_t)o->rank_return_ms,
                                   .supervisor_pid = (int32_t)o->supervised,
                                   .drain_ms = (uint32_t)o->shutdown_timeout * 1000};
    if (!cfg.drain_ms)
        cfg.drain_ms = 1; /* 0 would mean the default */
    char *connect = o->connect ? sl_arena_strndup(arena, o->connect, strlen(o->connect)) : NULL;
    struct sl_buf path = {0};
    char sha256[65];
    struct sl_rank_place place;
    struct followers room;
    enum sl_status s = sl_faults_set(o->inject, err);
    if (s == SL_OK)
        s = engine_options_config(&o->engine, 1, &cfg.engine, err);
    if (s == SL_OK)
        s = sl_store_find(operand, env, &path, err);
    if (s == SL_OK)
        s = find_place(o, path.data, env, arena, &place, &room, &cfg, err);
    if (s == SL_OK && cfg.engine.place.rank == 0)
        s = split_connect(connect, endpoints, &cfg.n_connect, err);
    if (s == SL_OK)
        s = sl_store_sha256(path.data, env, sha256, err);
    if (s == SL_OK) {
        cfg.model_path = path.data;
        cfg.engine.weights_sha256 = sha256;
        cfg.engine.kv_events = o->kv.enabled;
        if (!o->supervised && isatty(STDERR_FILENO))
            cfg.engine.progress = sl_cli_progress;
        s = sl_worker_run(&cfg, err);
    }
    sl_buf_free(&path);
    return s;
}

/* A child of `serve` gets its options as flags; the file that SLUICE_CONFIG names is its parent's
 * and holds keys that are none of a worker's. */
static char *const *own_env(int argc, char **argv, char *const *env, char **room)
{
    size_t n = 0;
    bool supervised = false;
    for (int i = 1; i < argc; i++)
        supervised |= strcmp(argv[i], "--supervised") == 0;
    for (; supervised && *env && n < ENV_MAX - 1; env++)
        if (strncmp(*env, "SLUICE_CONFIG=", strlen("SLUICE_CONFIG=")) != 0)
            room[n++] = *env;
    room[n] = NULL;
    return supervised ? room : env;
}

const struct sl_verb_doc sl_doc_worker = {.verb = "worker",
                                          .operands = "[MODEL] --connect ENDPOINT",
                                          .summary = "a worker of a cluster",
                                          .table = table,
                                          .n_table = sizeof table / sizeof *table};

int sl_cli_worker(int argc, char **argv, char *const *env)
{
    static char *room[ENV_MAX];
    struct sl_arena arena;
    sl_arena_init(&arena, (size_t)1 << 20);
    struct worker_options o = {0};
    const char *operands[1] = {NULL};
    size_t n_operands = 0;
    bool done = false;
    char *const *own = own_env(argc, argv, env, room);
    int code =
        sl_cli_options("worker", "[MODEL] --connect ENDPOINT ", table, sizeof table / sizeof *table,
                       argc, argv, own, &arena, &o, operands, 1, &n_operands, &done);
    if (!done) {
        struct sl_err err = {0};
        bool quiet = o.supervised && o.rank > 0; /* rank 0 tells what its followers do */
        sl_log_open(sl_cli_log_format(o.log_format), quiet ? SL_LOG_WARN : SL_LOG_INFO, "worker");
        if (run(&o, n_operands ? operands[0] : NULL, own, &arena, &err) != SL_OK)
            code = sl_cli_fail(&err);
    }
    sl_arena_free(&arena);
    return code;
}
