/* A router node: HTTP gateway, router and bus on one loop; with `serve` also the supervisor of the
 * workers on this machine. */
#ifndef SLUICE_SERVE_NODE_H
#define SLUICE_SERVE_NODE_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_node_config {
    const char *host;
    uint16_t port;
    const char *tls_cert_file, *tls_key_file; /* NULL: plain HTTP */
    const char *api_key_file;                 /* one key a line; NULL: no keys */
    const char *served_model_name;            /* NULL: the worker's name for it */
    uint16_t grpc_port;                       /* 0: no gRPC door */

    const char *const *bind; /* bus endpoints to bind besides the local one */
    uint32_t n_bind;
    const char *curve_dir; /* keys for tcp endpoints; NULL: only ipc and loopback */
    uint32_t bus_version;  /* highest to speak; 0: the newest */
    /* Federation: routers above, to which this one is a worker (a site). */
    const char *const *connect;
    uint32_t n_connect;
    const char *site;         /* NULL: "" */
    const char *site_weights; /* "a=2,b=0.5": shares of the sites below; NULL: all alike */
    const char *run_dir; /* for the ipc folder, e.g. $XDG_RUNTIME_DIR or /tmp */

    /* Supervised workers: argv of one, without --connect and its endpoint, which are appended.
     * n_workers 0: a cluster's router. */
    const char *const *worker_argv;
    uint32_t n_worker_argv;
    uint32_t n_workers;
    uint32_t n_ranks; /* processes of each: a rendezvous is appended when above 1 */
    char *const *env;
    const char *exe; /* the program itself */

    const char *policy;  /* of routing, as --routing-policy names it; NULL: "kv" */
    uint32_t queue_max;  /* 0: the limit of the table */
    uint32_t prefill_min_tokens; /* prompts with as many to compute go to prefill workers; 0: none */
    uint32_t drain_ms;   /* 0: 30000 */
    uint64_t started_ns; /* when the program began, for the READY line */
};

/* Runs until a signal or a fatal failure of the workers. SL_OK after a clean drain,
 * SL_DRAIN_DEADLINE when work was cut off; SL_PORT_IN_USE, SL_CONFIG, SL_MODEL... at start. */
enum sl_status sl_node_run(const struct sl_node_config *cfg, struct sl_err *err);

#endif
