/* The cluster simulator: the production router, membership, scheduler, link numbering and codec
 * under a virtual clock, with a stand-in for the model, clients that check every token, and a
 * network that does what a seed says. One seed is one run, to the byte.
 *
 * Two networks. "ordered" is ZeroMQ over TCP: what is sent over a standing connection arrives once
 * and in order; when it breaks, what was under way is lost in both directions; both ends notice
 * when nothing came through for 800 ms. "hostile" keeps no promise: every message may be lost,
 * doubled, held back or have bits flipped.
 *
 * Checked after every event: the invariants of router, membership and scheduler; each delivered
 * token is the model's next one, from the worker that owns the request under its newest epoch; only
 * members get requests. In the end, after the network healed: everything ended, exactly or with a
 * typed error; what was asked after healing exactly; no worker holds a sequence or a page; every
 * router has every worker. */
#ifndef SL_TESTS_SIM_H
#define SL_TESTS_SIM_H

#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/base/mem.h>
#include <sluice/control/membership.h>
#include <sluice/control/router.h>
#include <sluice/transport/bus.h>

#include "control/fake_engine.h"

#define MS 1000000ull

enum {
    ROUTERS_MAX = 3,
    WORKERS_MAX = 4,
    CLIENTS_MAX = 32,
    LEN_MAX = 96,
    SEQS_MAX = 6,
    ROWS_MAX = 24,
    PAGE_SIZE = 4,
    LINKS_MAX = 32,
    META_BYTES = 10
};

#define TICK_NS        (50 * MS)
#define LOAD_NS        (100 * MS)
#define DEAD_NS        (800 * MS) /* ZMTP heartbeats give a connection up */
#define HEAL_NS        (3500 * MS)
#define END_NS         (16000 * MS) /* every request has ended long before */
#define GREET_PAUSE_NS (20 * MS)
#define LINK_QUIET_NS  (2000 * MS)

enum mode { ORDERED, HOSTILE, BARE };

enum event_kind {
    EV_TICK,      /* a node's timer */
    EV_PUMP,      /* ordered: the head of a queue is due */
    EV_PACKET,    /* hostile: one packet arrives */
    EV_CONNECT,   /* ordered: try to connect again */
    EV_DEAD,      /* ordered: nothing came through for long */
    EV_STEP_DONE, /* a worker's step */
    EV_CLIENT,    /* a client asks */
    EV_CANCEL,    /* or goes away */
    EV_FAULT,
    EV_UNBLOCK,
    EV_RESUME, /* a paused node goes on */
    EV_RESTART,
    EV_HEAL
};

struct packet {
    struct packet *next;
    uint64_t at_ns;
    uint32_t life; /* of the sender or the receiver that is a worker */
    uint32_t size;
    uint8_t bytes[];
};

struct event {
    struct sl_heap_node node;
    uint64_t at_ns, serial;
    enum event_kind kind;
    uint32_t a, b, c; /* node, or worker, router and direction */
    uint32_t life;
    struct packet *packet;
};

enum { UP, DOWN }; /* directions: to the router, to the worker */

/* Between one worker and one router. */
struct wire {
    bool stands;         /* ordered: a connection is there */
    uint32_t n_connects; /* of this life of the worker */
    uint32_t n_blocks[2];
    uint64_t last_at_ns[2];
    struct packet *head[2], **tail[2];
};

/* What every node has. Routers are nodes 0.., workers come behind them. */
struct proc {
    bool alive;
    uint32_t life; /* counts restarts */
    uint64_t paused_until_ns;
    int64_t clock_offset_ns, clock_drift_ppm;
};

enum link_state { LINK_DOWN, LINK_GREET, LINK_UP, LINK_SILENT, LINK_REFUSED };

struct link {
    enum link_state state;
    uint32_t n_connects;
    uint64_t heard_ns, greeted_ns, n_greetings;
    struct sl_bus_order order;
};

/* A request at a worker. */
struct job {
    struct sl_list link;
    uint32_t router, epoch, n_prompt, max_new, n_generated;
    uint64_t id, local_id, salt;
    bool orphan;
};

struct sim_worker {
    struct proc *proc;
    uint32_t index;
    uint64_t class_hash, instance, next_local, next_load_ns, step_start_ns, step_expected_ns;
    uint64_t wedged_until_ns, slow_until_ns;
    struct sl_sched *sched;
    struct fake_kv kv;
    struct sl_list jobs;
    const struct sl_plan *plan;
    struct link links[ROUTERS_MAX];
    uint32_t n_jobs, max_seqs;
    bool draining;
};

/* The router's bus table. */
struct rlink {
    uint64_t key; /* 0: free */
    uint32_t worker, life;
    struct sl_bus_order order;
};
struct peer {
    uint64_t key;
    struct sl_msg_hello hello; /* strings are not kept */
    bool used, joined;
};

struct sim_router {
    struct proc *proc;
    uint32_t index;
    struct sl_router *router;
    struct sl_members *members;
    struct rlink links[LINKS_MAX];
    struct peer peers[LINKS_MAX];
    uint64_t next_key, next_id;
    uint32_t meta_len;
    uint64_t greetings[WORKERS_MAX * 64]; /* [life * WORKERS_MAX + worker] last taken */
};

enum client_state { UNBORN, ASKING, LIVE, DONE, FAILED, CANCELLED };

struct client {
    uint32_t index;
    enum client_state state;
    enum sl_status status; /* FAILED */
    bool strict;           /* asked after healing, without a deadline: must be done */
    uint32_t tokens[LEN_MAX], n, n_prompt, max_new;
    uint64_t salt, class_hash, deadline_ns, id;
    int32_t priority;
    uint32_t router, router_life, n_asked;
    uint32_t owner, owner_life, owner_epoch; /* by the last SEND of this router */
};

struct sim {
    uint64_t seed, now_ns, next_serial, next_instance, n_events, trace_hash;
    enum mode mode;
    bool healed;
    struct rng rng; /* the scenario */
    struct sl_heap events;
    uint32_t n_routers, n_workers, n_clients, n_open;
    uint32_t lose_1_in, double_1_in, delay_1_in, flip_1_in; /* hostile; 0: never */
    struct proc procs[ROUTERS_MAX + WORKERS_MAX];
    struct sim_router routers[ROUTERS_MAX];
    struct sim_worker workers[WORKERS_MAX];
    struct wire wires[WORKERS_MAX][ROUTERS_MAX];
    struct client clients[CLIENTS_MAX];
    struct sl_arena arena;
    struct sl_buf encoded;
    struct sl_buf *trace; /* NULL: only hashed */
    char broken[400];     /* the first broken invariant */
    uint64_t n_lost, n_doubled, n_flipped, n_flips_taken, n_delivered;
    uint64_t settled_ns;        /* after healing, when the last request of before ended */
    struct sl_router_stats sum; /* of closed routers */
};

/* sim.c */
void sim_break(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define MUST(s, cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond))                                                                               \
            sim_break(s, __VA_ARGS__);                                                             \
    } while (0)
void sim_trace(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
struct event *sim_schedule(struct sim *s, enum event_kind kind, uint64_t at_ns);
uint64_t sim_clock(const struct sim *s, const struct proc *p); /* as that node sees it */
bool sim_is_awake(const struct sim *s, const struct proc *p);
static inline struct proc *router_proc(struct sim *s, uint32_t r)
{
    return &s->procs[r];
}
static inline struct proc *worker_proc(struct sim *s, uint32_t w)
{
    return &s->procs[ROUTERS_MAX + w];
}
/* One seed; false when an invariant broke (s->broken). The trace is appended to `trace` if any. */
bool sim_run(struct sim *s, uint64_t seed, enum mode mode, struct sl_buf *trace);

/* net.c */
void net_open(struct sim *s);
/* False when the sender can see that nobody is there. `life` is the worker's that is meant. */
bool net_send(struct sim *s, uint32_t w, uint32_t r, int dir, uint32_t life,
              const struct sl_msg *m);
void net_event(struct sim *s, struct event *e);
void net_block(struct sim *s, uint32_t w, uint32_t r, int dir, uint64_t until_ns);
void net_reset(struct sim *s, uint32_t w, uint32_t r); /* the connection breaks */
void net_node_down(struct sim *s, const struct proc *p);
void net_node_up(struct sim *s, const struct proc *p);
void net_pump_node(struct sim *s, const struct proc *p);
void net_watch_node(struct sim *s, const struct proc *p); /* it is paused: peers may give it up */
void net_heal(struct sim *s);
void net_close(struct sim *s);

/* node_router.c, node_worker.c */
void router_start(struct sim *s, uint32_t r);
void router_stop(struct sim *s, uint32_t r);
void router_tick(struct sim *s, uint32_t r);
void router_hear(struct sim *s, uint32_t r, uint32_t w, uint32_t life, struct sl_msg *m);
void router_ask(struct sim *s, uint32_t r, struct client *c);
void router_cancel(struct sim *s, uint32_t r, struct client *c);
void router_drain_worker(struct sim *s, uint32_t r, uint32_t w);
void router_check(struct sim *s, uint32_t r);
void worker_start(struct sim *s, uint32_t w);
void worker_stop(struct sim *s, uint32_t w);
void worker_tick(struct sim *s, uint32_t w);
void worker_hear(struct sim *s, uint32_t w, uint32_t r, struct sl_msg *m);
void worker_step_done(struct sim *s, uint32_t w);
void worker_check(struct sim *s, uint32_t w);

/* client.c */
void client_draw(struct sim *s);
void client_ask(struct sim *s, struct client *c);
void client_token(struct sim *s, struct client *c, uint32_t token, uint64_t class_hash);
void client_end(struct sim *s, struct client *c, bool ended_well);
void client_fail(struct sim *s, struct client *c, enum sl_status status);
void client_router_lost(struct sim *s, uint32_t r);
bool model_ends(const struct client *c); /* after its last token */
uint64_t model_salt(uint64_t salt, uint64_t class_hash);
bool model_stops(uint32_t token);

#endif
