/* Private to the worker: KV pages from and to other workers.
 *
 * As a source: a prefill-only request is submitted as an export, which waits under its ticket for
 * the bulk connection of the owner. As an owner: a request that names a source is held back while a
 * thread of its own fetches the pages; then it goes to the engine like any other, which computes
 * what did not come. Threads: everything here is the worker's, but for the fetching threads (they
 * touch their own fetch, the engine's import and the bulk channel) and the bulk server's (tickets).
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

/* What worker_kv.c keeps for a worker; zeros: pages stay where they are. */
struct worker_kv {
    struct sl_kv_layout layout;
    struct sl_bulk_layout bulk;
    uint64_t layout_hash; /* 0: off */
    uint8_t key[32];
    struct sl_bulk_server *server; /* NULL: it serves nobody */
    struct tickets *tickets;
    struct sl_queue *fetched; /* struct fetch, from their threads */
    uint32_t n_fetches;
    uint64_t n_pages_received, n_bad, n_fallbacks;
};

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

/* tickets.c: exports that wait for their readers. Calls from any thread. */
struct tickets *tickets_open(void);
void tickets_close(struct tickets *t); /* after the bulk server */
bool tickets_full(struct tickets *t);
void tickets_add(struct tickets *t, uint64_t ticket, struct sl_export *x, uint64_t until_ns);
void tickets_expire(struct tickets *t, uint64_t now_ns);
extern const struct sl_bulk_source_ops tickets_ops; /* ctx: the tickets */

#endif
