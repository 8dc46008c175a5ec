/* Private: the router node's object and what its files share. All on the loop's thread. */
#ifndef SLUICE_SERVE_NODE_PRIVATE_H
#define SLUICE_SERVE_NODE_PRIVATE_H

#include "gateway.h"
#include "gen.h"
#include "grpc_door.h"
#include "uplink.h"
#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/control/membership.h>
#include <sluice/control/kv_feed.h>
#include <sluice/control/router.h>
#include <sluice/files/gguf.h>
#include <sluice/serve/node.h>
#include <sluice/transport/bus.h>
#include <sys/types.h>

#define NODE_TICK_MS        50
#define PROGRESS_TIMEOUT_MS 30000
#define STREAM_BUCKETS      8192

/* One process behind a worker. */
struct peer_rank {
    struct sl_msg_rank figures; /* isa points into `isa`; kernels to those below */
    char isa[64];
    struct sl_msg_kernel kernels[SL_LIMIT_kernels];
    char names[SL_LIMIT_kernels][64];
};

/* A member and what it last said; lives until membership calls it lost. */
struct peer {
    struct sl_list link;
    uint64_t key;              /* the bus's link number */
    bool joined;               /* known to the router */
    struct sl_msg_hello hello; /* strings point into `strings` */
    struct sl_buf strings;
    struct sl_msg_load load;
    struct peer_rank *ranks; /* [n_ranks] as last told; none for a worker of one process */
    uint32_t n_ranks;
    uint64_t load_ns; /* when it came */
    bool has_feed;    /* of KV events */
    struct sl_kv_feed feed;
};

/* A supervised worker process. */
struct child {
    pid_t pid;           /* 0: not running */
    uint64_t restart_ns; /* when to start it again */
    uint32_t n_failures; /* in a row, without having registered */
    bool registered;     /* since it was started */
};

/* One choice of one request. */
struct stream {
    struct sl_hash_node by_id;
    struct gen *gen;
    uint64_t id;
    uint32_t epoch, choice;
    struct sl_tokens log; /* prompt, then every token received */
    uint32_t n_prompt;
    uint32_t n_delivered;     /* of the generated ones */
    struct sl_sampled *probs; /* of undelivered tokens, when logprobs are wanted */
    uint32_t n_probs, probs_alloc;
    struct sl_detok detok;
    struct sl_stop stop;
    struct sl_chain chain;    /* after n_delivered tokens; starts with the first output */
    struct sl_str class_name; /* of the worker that gave it; empty before */
    uint64_t class_hash;
    struct sl_event_choice shown;       /* to be replayed silently; n_tokens 0: nothing (left) */
    enum { LIVE, ENDING, ENDED } state; /* ENDING: the worker is done, delivery is not */
    uint32_t end;                       /* the worker's word: 1 stop, 2 length */
};

struct gen {
    struct sl_list link; /* node->gens, or node->dead */
    struct node *node;
    const struct gen_ops *ops;
    void *ctx;
    struct gen_params params; /* pointers into `mem` */
    struct sl_arena mem;
    uint64_t tenant, session;
    uint8_t salt[32];
    uint64_t deadline_ns, started_ns, last_token_ns;
    struct stream *streams; /* [params.n] */
    uint32_t n_live;        /* streams not ENDED */
    struct gen_usage usage;
    uint32_t hops;                                            /* routers before this one */
    void (*on_tokens)(void *ctx, const struct sl_msg_out *o); /* a relay's; NULL: text is made */
    bool paused, dead, has_first;
};

struct node {
    const struct sl_node_config *cfg;
    struct sl_loop *loop;
    struct sl_bus *bus;
    struct sl_router *router;
    struct gateway *gateway;
    struct grpc_door *grpc; /* NULL: none asked for */
    struct uplink *uplink;  /* NULL: no router above */
    struct sl_watch *bus_watch, *kv_watch;
    struct sl_kv_sub *kv_sub;
    uint64_t kv_events, kv_bad, kv_gaps, kv_forgotten; /* gaps: of feeds that ended */
    struct sl_timer *tick;
    struct sl_signal *on_term, *on_int, *on_chld;
    struct sl_signal *on_hup; /* with keys only */
    struct sl_buf ipc;        /* the local endpoint */

    struct sl_members *members; /* decides; `peers` is what there is to show of each */
    struct sl_list peers;
    struct child *children; /* [cfg->n_workers] */

    /* The model, from a worker's metadata. */
    struct sl_buf meta;
    struct sl_gguf *gguf;
    struct sl_tokenizer *tokenizer;
    struct sl_template *template;
    char model_name[128];
    uint64_t model_created;
    uint32_t max_len, n_vocab;

    struct sl_list gens, dead;
    struct sl_hash_node *stream_buckets[STREAM_BUCKETS];
    struct sl_hash streams;
    uint64_t next_id;
    uint64_t n_stale_outs; /* of workers that were given up, late: refused before the router */

    uint8_t (*keys)[32]; /* SHA-256 of the API keys */
    uint32_t n_keys;

    bool ready_printed, draining, stopping;
    uint64_t drain_until_ns;
    enum sl_status result;
    struct sl_err result_err;
};

/* node.c */
void node_stop(struct node *n, enum sl_status status, const struct sl_err *err);
void node_check_ready(struct node *n);

/* node_bus.c: the bus, the router's actions, the model's metadata. */
void node_bus_drain(struct node *n); /* receive all that waits */
void node_bus_tick(struct node *n, uint64_t now_ns);
void node_pump(struct node *n); /* carry out the router's actions */
void node_peer_lost(struct node *n, struct peer *p, uint64_t now_ns);
struct peer *node_peer(struct node *n, uint64_t key); /* NULL: none of that link */
struct peer *node_peer_by_pid(struct node *n, pid_t pid);
void node_bus_say_drain(struct node *n);
/* The exactness class of a link's worker; empty when unknown. */
struct sl_str node_class_of(struct node *n, uint64_t link);
void node_bus_close(struct node *n);

/* node_ranks.c: the processes behind a worker. */
void node_ranks_keep(struct peer *p, const struct sl_msg_ranks *m);
void node_ranks_print(const struct peer *p, struct sl_buf *out);
/* Where the ranks of child i meet: beside the bus's local endpoint, in its 0700 folder. */
void node_ranks_endpoint(const struct node *n, uint32_t i, struct sl_buf *out);
void node_ranks_remove(const struct node *n); /* what killed workers left there */

/* node_events.c: the workers' KV events. */
enum sl_status node_events_open(struct node *n, struct sl_err *err);
void node_events_close(struct node *n);
void node_events_join(struct node *n, struct peer *p, uint64_t now_ns);
void node_events_leave(struct node *n, struct peer *p);
void node_events_load(struct node *n, struct peer *p, uint64_t now_ns); /* its load was renewed */
void node_events_drain(struct node *n);

/* supervise.c */
enum sl_status node_children_start(struct node *n, struct sl_err *err);
void node_children_reap(struct node *n);
void node_children_tick(struct node *n, uint64_t now_ns);
bool node_children_stop(struct node *n, int signum); /* true while some still run */
void node_child_registered(struct node *n, pid_t pid);

/* gen.c */
void gen_output(struct node *n, uint64_t link, const struct sl_msg_out *out, uint64_t now_ns);
void gen_send(struct node *n, struct stream *s, const struct sl_action *a);
void gen_fail(struct gen *g, const struct sl_err *err);
void gen_free_dead(struct node *n);
void gen_fail_all(struct node *n, const struct sl_err *err);

/* bus_metrics.c */
void bus_metrics_open(void);
void bus_metrics_set(const struct sl_bus *bus);

/* node_metrics.c */
void metrics_open(void);
void metrics_first_token(struct gen *g, uint64_t now_ns);
void metrics_next_tokens(struct gen *g, uint32_t n_tokens, uint64_t now_ns);
void metrics_end(struct gen *g, const char *reason, uint64_t now_ns);

#endif
