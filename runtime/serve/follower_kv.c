/* What a follower does for rank 0's transfers: serves its part of pages by the tickets that rank 0
 * names, and fills its part of pages that rank 0 has reserved. Rank 0's charter brings the key of
 * the servers, over the communicator of the group. */
#include "haul.h"
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/queue.h>
#include <sluice/base/time.h>

#include <stdlib.h>
#include <string.h>

/* Fills pages from a thread of its own. */
struct carrier {
    struct worker *w;
    pthread_t thread;
    struct haul haul;
    enum sl_status status;
    struct sl_err err;
    struct sl_order *order;
    pthread_mutex_t lock;
    struct sl_import *im; /* under the lock: NULL when it is closed */
};

enum sl_status follower_kv_open(struct worker *w, struct sl_err *err)
{
    if (!worker_kv_shape(w))
        return SL_OK;
    w->kv.fetched = sl_queue_open(SL_LIMIT_bulk_connections);
    return w->kv.fetched ? SL_OK : sl_fail(err, SL_NO_MEMORY, "worker: no memory to fetch pages");
}

int follower_kv_fd(const struct worker *w)
{
    return sl_engine_order_fd(w->engine);
}

/* ---- orders ---- */

static void say(struct worker *w)
{
    struct sl_bulk_stats s = {0};
    if (!w->kv.has_charter)
        return;
    if (w->kv.server)
        sl_bulk_server_stats(w->kv.server, &s);
    const struct sl_kv_figures f = {.bytes_sent = s.n_bytes, .n_bad = w->kv.n_bad};
    sl_engine_kv_say(w->engine, w->kv.server ? sl_bulk_server_address(w->kv.server) : "", &f);
}

/* A child of rank 0 is on its machine; any other rank faces it by its own address. */
static const char *host_of(const struct worker *w, const struct kv_charter *c, char room[64])
{
    const struct sl_engine_place *place = &w->cfg->engine.place;
    if (w->cfg->kv_host)
        return w->cfg->kv_host;
    if (w->cfg->supervisor_pid)
        return c->host[0] ? c->host : NULL;
    if (place->host)
        return place->host;
    return sl_bulk_local_address(place->rendezvous, room, NULL) == SL_OK ? room : NULL;
}

static void charter(struct worker *w, const struct sl_order *o)
{
    struct worker_kv *k = &w->kv;
    struct kv_charter c;
    struct sl_err err;
    char room[64];
    k->has_charter = true;
    if (o->n_note != sizeof c || !k->fetched)
        return;
    memcpy(&c, o->note, sizeof c);
    c.host[sizeof c.host - 1] = '\0';
    if (k->server && !memcmp(c.key, k->key, sizeof c.key))
        return; /* the same rank 0 as before */
    sl_bulk_server_close(k->server);
    k->server = NULL;
    memcpy(k->key, c.key, sizeof k->key);
    if (c.via &&
        worker_kv_serve(w, c.via & (SL_BULK_SHM | SL_BULK_TCP), host_of(w, &c, room), false, &err))
        sl_log(SL_LOG_WARN, "rank %u serves no KV pages: %s", w->cfg->engine.place.rank, err.msg);
    say(w);
}

static void export_pages(struct worker *w, struct sl_order *o)
{
    struct worker_kv *k = &w->kv;
    uint64_t ticket;
    if (o->n_note != sizeof ticket || !k->server || tickets_full(k->tickets)) {
        sl_export_close(o->x);
        return;
    }
    memcpy(&ticket, o->note, sizeof ticket);
    tickets_add(k->tickets, ticket, o->x, sl_now_ns() + SL_LIMIT_bulk_ticket_ms * SL_MS_NS);
}

static void *carry(void *arg)
{
    struct carrier *c = arg;
    struct haul *h = &c->haul;
    h->im = c->order->im;
    h->layout = c->w->kv.bulk;
    h->part = sl_engine_kv_part(c->w->engine);
    h->n_pages = sl_import_end(h->im);
    c->status = haul_note_get(h, c->order->note, c->order->n_note, &c->err);
    if (!c->status)
        c->status = haul_run(h, &c->err);
    pthread_mutex_lock(&c->lock);
    c->im = NULL;
    pthread_mutex_unlock(&c->lock);
    sl_import_close(h->im, h->n_complete);
    bool pushed = sl_queue_push(c->w->kv.fetched, c);
    sl_assert(pushed); /* there are no more carriers than places */
    return NULL;
}

static void keep(struct worker_kv *k, struct carrier *c)
{
    uint32_t i = 0;
    while (k->carriers[i])
        i++; /* there is one */
    k->carriers[i] = c;
    k->n_fetches++;
}

/* Takes over the order when it can. */
static bool import_pages(struct worker *w, struct sl_order *o)
{
    struct worker_kv *k = &w->kv;
    struct carrier *c =
        k->fetched && k->n_fetches < SL_LIMIT_bulk_connections ? calloc(1, sizeof *c) : NULL;
    if (c) {
        c->w = w;
        c->order = o;
        c->im = o->im;
        pthread_mutex_init(&c->lock, NULL);
        if (pthread_create(&c->thread, NULL, carry, c) == 0) {
            keep(k, c);
            return true;
        }
        pthread_mutex_destroy(&c->lock);
        free(c);
    }
    sl_import_close(o->im, 0);
    return false;
}

/* ---- running ---- */

static void end_carrier(struct worker *w, struct carrier *c)
{
    pthread_join(c->thread, NULL);
    for (uint32_t i = 0; i < SL_LIMIT_bulk_connections; i++)
        if (w->kv.carriers[i] == c)
            w->kv.carriers[i] = NULL;
    w->kv.n_fetches--;
    pthread_mutex_destroy(&c->lock);
    w->kv.n_bad += c->haul.n_bad;
    if (c->status)
        sl_log(SL_LOG_INFO, "rank %u: %u pages came: %s", w->cfg->engine.place.rank,
               c->haul.n_complete, c->err.msg);
    haul_free(&c->haul);
    free(c->order);
    free(c);
}

static void take_carriers(struct worker *w)
{
    struct carrier *c;
    while (w->kv.fetched && (c = sl_queue_pop(w->kv.fetched)))
        end_carrier(w, c);
}

void follower_kv_run(struct worker *w, uint64_t now_ns)
{
    struct sl_order *o;
    while ((o = sl_engine_take_order(w->engine))) {
        if (o->kind == SL_ORDER_IMPORT && import_pages(w, o))
            continue;
        if (o->kind == SL_ORDER_CHARTER)
            charter(w, o);
        if (o->kind == SL_ORDER_EXPORT)
            export_pages(w, o);
        free(o);
    }
    take_carriers(w);
    worker_kv_tick(w, now_ns);
    say(w);
}

static void give_up(struct carrier *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->im)
        sl_import_give_up(c->im);
    pthread_mutex_unlock(&c->lock);
}

void follower_kv_close(struct worker *w)
{
    struct sl_order *o;
    if (!w->engine)
        return;
    while ((o = sl_engine_take_order(w->engine))) {
        if (o->kind == SL_ORDER_EXPORT)
            sl_export_close(o->x);
        if (o->kind == SL_ORDER_IMPORT)
            sl_import_close(o->im, 0);
        free(o);
    }
    for (uint32_t i = 0; i < SL_LIMIT_bulk_connections; i++)
        if (w->kv.carriers[i])
            give_up(w->kv.carriers[i]);
    while (w->kv.n_fetches) {
        sl_queue_wait(w->kv.fetched, 100);
        take_carriers(w);
    }
}
