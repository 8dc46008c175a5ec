/* A worker: one model on one engine, offered to one or more routers over the bus.
 *
 * Two threads: the engine's, and this one, which owns the bus. So heartbeats go out and cancels
 * come in while a long step runs. Each engine step becomes one STEP message per router. Requests
 * are known by (link, id), so ids of different routers may collide; every output carries the epoch
 * of its SUBMIT. A router that is lost takes its requests with it.
 *
 * Signals (after the model is loaded; before, SIGTERM ends the process at once): SIGTERM drains,
 * a second one stops. A supervised worker ignores SIGINT and drains on its supervisor's word only
 * (DRAIN on the bus or SIGTERM from the supervisor, counted as one); it dies with its supervisor.
 * One worker per process.
 *
 * A model over several ranks: engine.place says which one this process is. Rank 0 is the worker;
 * with `followers` it starts and keeps the others. Every other rank has no bus and follows rank 0
 * until that leaves: SL_OK then, SL_PEER when it is gone for good. */
#ifndef SLUICE_SERVE_WORKER_H
#define SLUICE_SERVE_WORKER_H

#include <sluice/base/err.h>
#include <sluice/engine/engine.h>
#include <sluice/serve/ranks.h>
#include <stdint.h>

struct sl_worker_config {
    const char *model_path;          /* a GGUF file */
    const char *served_model_name;   /* NULL: the file's name without folder and .gguf */
    struct sl_engine_config engine;  /* gguf and stop_ids are filled in by the worker */
    struct sl_ranks_config followers; /* exe NULL: started by somebody else, or none */
    uint32_t rank_return_ms;         /* rank 0, of others that somebody else starts: how long a lost
                                        one is waited for until it is done without; 0: for ever */
    const char *const *connect;      /* routers' endpoints, ipc:// or tcp:// */
    uint32_t n_connect;
    const char *curve_dir;           /* NULL: only ipc and loopback */
    uint32_t bus_version;            /* highest to speak; 0: the newest */
    const char *role;                /* "both", "prefill", "decode"; NULL: both */
    const char *site;                /* NULL: "" */
    const char *kv_transfer;         /* KV pages between workers: "auto", "shm", "tcp", "off"; NULL:
                                        auto, which is both but for a supervised worker */
    const char *kv_host;             /* numeric address that pages are served on; NULL: the one
                                        that faces the first router */
    const char *run_dir;             /* for sockets of its own; NULL: /tmp */
    const char *kv_events_endpoint;  /* to bind for others than our routers; NULL: none */
    const char *kv_events_replay_endpoint;
    const char *kv_events_topic;     /* NULL: "" */
    bool kv_events_array;            /* the format of vLLM before 0.33 */
    int32_t supervisor_pid;          /* 0: started by hand */
    uint32_t drain_ms;               /* 0: 30000 */
};

/* Blocks until stopped. SL_OK after a drain, SL_DRAIN_DEADLINE when work was cut off, SL_PEER when
 * the supervisor is gone, the routers' reason when every one of them refused this worker; SL_MODEL,
 * SL_CONFIG, SL_NO_MEMORY... at start. */
enum sl_status sl_worker_run(const struct sl_worker_config *cfg, struct sl_err *err);

#endif
