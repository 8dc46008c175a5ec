/* Private to the worker: the object and what its files share. */
#ifndef SLUICE_SERVE_WORKER_PRIVATE_H
#define SLUICE_SERVE_WORKER_PRIVATE_H

#include "worker_kv.h"
#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/serve/worker.h>
#include <sluice/transport/bus.h>

#define WORKER_BUCKETS 1024 /* of the request table, a power of two */

enum link_state {
    LINK_DOWN,   /* no connection */
    LINK_GREET,  /* connected, HELLO is due */
    LINK_UP,     /* HELLO is out: requests may come */
    LINK_SILENT, /* nothing heard for too long; its requests were cancelled */
    LINK_REFUSED /* the router does not want this worker */
};

/* One router. */
struct link {
    enum link_state state;
    uint64_t n_connects; /* of the bus, when we last looked */
    uint64_t heard_ns;
    uint64_t greeted_ns, n_greetings;
    struct sl_list requests;
    struct sl_err refusal;
};

/* A request of a router, until the engine reports its end. */
struct request {
    struct sl_hash_node by_key; /* hash of (link, id); not in the table once orphaned */
    struct sl_list of_link;
    uint64_t id, engine_id;
    uint32_t epoch, link;
    uint32_t n_generated; /* tokens after the prompt, those of other workers included */
    bool want_logprob;
    bool orphan;         /* nobody waits for its output any more */
    struct fetch *fetch; /* the engine gets it when its pages are there; NULL: it has it */
    bool cancelled;      /* while they came */
    uint64_t deadline_ns;
};

struct worker {
    const struct sl_worker_config *cfg;
    struct sl_gguf *gguf;
    struct sl_str meta;
    uint8_t meta_sha256[32];
    char model_name[128];
    struct sl_engine *engine;
    struct sl_engine_info info;
    struct sl_ranks *ranks; /* NULL: none of our own */
    bool formed, reforming; /* the group came up once; it is lost at present */
    uint64_t next_ranks_ns, n_formed;
    uint64_t alone_ns; /* when rank 0 was last told to go on alone */
    struct sl_bus *bus;
    struct worker_kv kv;
    struct worker_events *kv_events; /* NULL: no KV events */
    uint64_t instance; /* tells this process from all others */
    int signal_fd;     /* reads what the signal handler wrote */

    struct link *links; /* [cfg->n_connect] */
    struct sl_hash_node *buckets[WORKER_BUCKETS];
    struct sl_hash requests;
    struct sl_list orphans;
    uint32_t n_requests; /* orphans included: the engine still has them */
    uint64_t next_engine_id;
    uint64_t busy_since_ns; /* when n_requests last became more than 0 */
    uint64_t next_load_ns;

    /* One step on its way out: shares sorted by link; arrays grow to the largest step. */
    struct sl_msg_out *outs;
    uint32_t *tokens;
    float *logprobs;
    uint32_t *top_tokens; /* [outs_max][SL_LOGPROBS_MAX] */
    float *top_logprobs;
    uint32_t outs_max;
    struct sl_logit_bias bias[SL_LIMIT_logit_bias];

    bool draining, stopping;
    uint32_t n_terms; /* SIGTERMs that count */
    bool told;        /* the drain began with a router's DRAIN */
    uint64_t drain_until_ns;
    enum sl_status result;
    struct sl_err result_err;
};

/* worker.c */
void worker_drain(struct worker *w, const char *why);
void worker_stop(struct worker *w, enum sl_status status, const struct sl_err *err);

/* worker_link.c: what routers say, greetings and heartbeats. */
void worker_links_receive(struct worker *w);
void worker_links_tick(struct worker *w, uint64_t now_ns);
void worker_links_bye(struct worker *w);
void worker_load(struct worker *w, struct sl_msg_load *out, uint64_t now_ns);
/* A message could not be delivered: the router must start over with us. */
void worker_link_broken(struct worker *w, uint32_t link);

/* worker_ranks.c: the other processes of a sharded model. */
bool worker_is_follower(const struct worker *w);
enum sl_status worker_ranks_open(struct worker *w, struct sl_err *err);
/* Whether the group and the device stand; stops the worker when they will not any more. */
void worker_look_at_group(struct worker *w);
void worker_ranks_tick(struct worker *w, uint64_t now_ns);
void worker_ranks_say(struct worker *w, uint64_t now_ns);
void worker_ranks_close(struct worker *w);

/* worker_events.c: the events of the prefix cache. */
enum sl_status worker_events_open(struct worker *w, struct sl_err *err);
void worker_events_close(struct worker *w);
int worker_events_fd(const struct worker *w); /* -1: none */
void worker_events_run(struct worker *w);
/* What the router of a link is told of them. Strings are the worker's. */
void worker_events_hello(const struct worker *w, uint32_t link, struct sl_msg_hello *h);
uint64_t worker_events_batches(const struct worker *w);

/* worker_request.c: requests and the engine's steps. */
void worker_submit(struct worker *w, uint32_t link, const struct sl_msg_submit *m);
void worker_cancel(struct worker *w, uint32_t link, const struct sl_msg_cancel *m);
void worker_cancel_link(struct worker *w, uint32_t link); /* all of them, without an answer */
void worker_take_steps(struct worker *w);
/* The pages of a request came, or did not: now it is the engine's. */
void worker_fetched(struct worker *w, struct request *r, const struct sl_msg_submit *m);
void worker_fetches_stop(struct worker *w);
void worker_requests_close(struct worker *w);

#endif
