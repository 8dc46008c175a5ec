/* Private to the worker: KV pages from and to other workers.
 *
 * As a source: a prefill-only request is submitted as an export, which waits under its ticket for
 * the bulk connection of the owner. As an owner: a request that names a source is held back while a
 * thread of its own fetches the pages; then it goes to the engine like any other, which computes
 * what did not come. A worker of several ranks does so at each of them for its part of the pages:
 * the other ranks open a bulk server of their own with the key that rank 0 gives them over the
 * group's communicator, and do what rank 0's transfers order. Threads: everything here is the
 * worker's, but for the fetching threads (they touch their own fetch, the engine's import and the
 * bulk channel) and the bulk server's (tickets).
 */
#ifndef SLUICE_SERVE_WORKER_KV_H
#define SLUICE_SERVE_WORKER_KV_H

#include <sluice/engine/transfer.h>
#include <sluice/transport/bulk.h>
#include <sluice/transport/bus.h>

struct worker;
struct request;
struct fetch;
struct tickets;
struct carrier;

/* What worker_kv.c keeps for a worker; zeros: pages stay where they are. */
struct worker_kv {
    struct sl_bulk_layout bulk;
    uint64_t layout_hash;          /* 0: off; workers of the same can exchange pages */
    uint8_t key[32];               /* of all ranks' servers */
    struct sl_bulk_server *server; /* NULL: it serves nobody */
    struct tickets *tickets;
    struct sl_queue *fetched; /* struct fetch (followers: struct carrier), from their threads */
    uint32_t n_fetches;
    struct carrier *carriers[SL_LIMIT_bulk_connections]; /* of a follower */
    bool has_charter;                                    /* of rank 0: a follower */
    uint64_t n_pages_received, n_bad, n_fallbacks;
};

/* Rank 0's word to the other ranks of its group. */
struct kv_charter {
    uint32_t via; /* 0: they serve nobody */
    uint32_t zero;
    uint8_t key[32];
    char host[64]; /* that rank 0 serves on, for ranks on its machine; "": loopback */
};

/* Before the engine is opened: makes the key. */
void worker_kv_charter(struct worker *w, struct kv_charter *out);
enum sl_status worker_kv_open(struct worker *w, struct sl_err *err);
void worker_kv_close(struct worker *w); /* before the engine */
void worker_kv_hello(const struct worker *w, struct sl_msg_hello *out);
void worker_kv_load(struct worker *w, struct sl_msg_load *out);
int worker_kv_fd(const struct worker *w); /* -1: nothing to wait for */
void worker_kv_tick(struct worker *w, uint64_t now_ns);

/* A prefill-only request. */
enum sl_status worker_kv_prefill(struct worker *w, const struct sl_engine_request *q,
                                 uint64_t ticket, struct sl_err *err);
/* Begins to fetch for a request. False: nothing to fetch or no room to; it is computed as it is. */
bool worker_kv_fetch(struct worker *w, struct request *r, const struct sl_msg_submit *m);
void worker_kv_stop(struct request *r); /* its fetch ends soon */
/* Calls worker_fetched for each fetch that has ended. */
void worker_kv_take(struct worker *w);

/* worker_fetch.c: all of them, at the end. */
void worker_fetches_end(struct worker *w);

/* worker_kv.c, for followers too. */
struct sl_bulk_part worker_kv_bulk_part(const struct sl_kv_part *p);
bool worker_kv_shape(struct worker *w);
enum sl_status worker_kv_serve(struct worker *w, uint32_t via, const char *host, bool is_first,
                               struct sl_err *err);

/* follower_kv.c: what a follower does for rank 0's transfers. */
enum sl_status follower_kv_open(struct worker *w, struct sl_err *err);
void follower_kv_close(struct worker *w);
void follower_kv_run(struct worker *w, uint64_t now_ns);
int follower_kv_fd(const struct worker *w); /* an order is there, or -1 */

/* tickets.c: exports that wait for their readers. Calls from any thread. */
/* Who of our group has what, rank 0 being served at `address`; on a thread of the bulk server. */
typedef uint32_t tickets_map(void *ctx, const char *address, struct sl_bulk_rank *out);
struct tickets *tickets_open(tickets_map *map, void *ctx); /* map NULL: not to be asked here */
void tickets_serve_at(struct tickets *t, const char *address);
void tickets_close(struct tickets *t); /* after the bulk server */
bool tickets_full(struct tickets *t);
void tickets_add(struct tickets *t, uint64_t ticket, struct sl_export *x, uint64_t until_ns);
void tickets_expire(struct tickets *t, uint64_t now_ns);
extern const struct sl_bulk_source_ops tickets_ops; /* ctx: the tickets */

#endif
