/* Exports that wait, by ticket, for the worker that is to read them, each of its ranks its part.
 * Who comes too early waits a little, as SUBMIT and reader travel on different links; who does not
 * come at all is forgotten. The first reader says how many there will be; after the last the export
 * is closed. */
#include "worker_kv.h"

#include <sluice/base/limits.h>
#include <sluice/base/time.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICKETS_MAX (4 * SL_LIMIT_bulk_connections)
#define WAIT_MS     200 /* for a ticket that is on its way; then the server gives a sign of life */

struct ticket {
    uint64_t number;
    struct sl_export *export; /* NULL: free place */
    uint64_t until_ns;
    uint32_t n_readers, n_begun, n_open; /* 0 readers: nobody has come yet */
};

/* One reader. */
struct source {
    struct ticket *ticket; /* its place stays as long as it has readers */
    struct sl_export_reader *reader;
};

struct tickets {
    pthread_mutex_t lock;
    pthread_cond_t added;
    tickets_map *map;
    void *map_ctx;
    char address[SL_BULK_ADDRESS_MAX]; /* "": not served yet */
    struct ticket all[TICKETS_MAX];
};

struct tickets *tickets_open(tickets_map *map, void *ctx)
{
    struct tickets *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->map = map;
    t->map_ctx = ctx;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->added, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

void tickets_serve_at(struct tickets *t, const char *address)
{
    pthread_mutex_lock(&t->lock);
    snprintf(t->address, sizeof t->address, "%s", address);
    pthread_mutex_unlock(&t->lock);
}

/* Under the lock. The export, when nobody reads it any more and nobody will. */
static struct sl_export *let_go(struct ticket *place)
{
    struct sl_export *x = place->export;
    if (!x || place->n_open || !place->n_readers || place->n_begun < place->n_readers)
        return NULL;
    place->export = NULL;
    return x;
}

static bool is_over(const struct ticket *place, uint64_t now_ns)
{
    return place->until_ns <= now_ns || (place->export && sl_export_is_lost(place->export));
}

void tickets_expire(struct tickets *t, uint64_t now_ns)
{
    for (uint32_t i = 0; i < TICKETS_MAX; i++) {
        struct ticket *place = &t->all[i];
        pthread_mutex_lock(&t->lock);
        if (is_over(place, now_ns)) /* who has come may finish, nobody else comes in */
            place->n_readers = place->n_begun = place->n_begun ? place->n_begun : 1;
        struct sl_export *x = let_go(place);
        pthread_mutex_unlock(&t->lock);
        if (x)
            sl_export_close(x); /* may wait for the engine: without the lock */
    }
}

void tickets_close(struct tickets *t)
{
    if (!t)
        return;
    tickets_expire(t, UINT64_MAX);
    pthread_cond_destroy(&t->added);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

static struct ticket *free_place(struct tickets *t)
{
    for (uint32_t i = 0; i < TICKETS_MAX; i++)
        if (!t->all[i].export)
            return &t->all[i];
    return NULL;
}

bool tickets_full(struct tickets *t)
{
    pthread_mutex_lock(&t->lock);
    bool full = !free_place(t);
    pthread_mutex_unlock(&t->lock);
    return full;
}

void tickets_add(struct tickets *t, uint64_t ticket, struct sl_export *x, uint64_t until_ns)
{
    pthread_mutex_lock(&t->lock);
    struct ticket *place = free_place(t);
    sl_assert(place); /* asked before by the one thread that adds */
    *place = (struct ticket){.number = ticket, .export = x, .until_ns = until_ns};
    pthread_cond_broadcast(&t->added);
    pthread_mutex_unlock(&t->lock);
}

/* --- the bulk server's source ----------------------------------------------------------------- */

static struct ticket *find(struct tickets *t, uint64_t number)
{
    for (uint32_t i = 0; i < TICKETS_MAX; i++)
        if (t->all[i].export && t->all[i].number == number)
            return &t->all[i];
    return NULL;
}

/* Under the lock. One more reader of a ticket, if all are of one mind about it. */
static struct source *begin(struct ticket *place, const struct sl_bulk_ask *ask, struct sl_err *err)
{
    struct sl_export *x = place->export;
    const struct sl_kv_part part = {ask->part.layer_first, ask->part.n_layers, ask->part.head_first,
                                    ask->part.n_heads};
    bool is_next = !place->n_readers ||
                   (place->n_readers == ask->n_readers && place->n_begun < place->n_readers);
    if (!is_next || ask->n_pages > sl_export_n_pages(x) ||
        memcmp(sl_export_key(x, ask->n_pages - 1), ask->last_key, 32) != 0) {
        sl_fail(err, SL_NOT_FOUND, "bulk: not what the ticket is for");
        return NULL;
    }
    struct source *s = calloc(1, sizeof *s);
    if (!s || sl_export_read(x, &part, ask->first, &s->reader, err)) {
        free(s);
        return NULL;
    }
    s->ticket = place;
    place->n_readers = ask->n_readers;
    place->n_begun++;
    place->n_open++;
    return s;
}

static void *source_open(void *ctx, const struct sl_bulk_ask *ask, struct sl_err *err)
{
    struct tickets *t = ctx;
    struct ticket *place;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + WAIT_MS * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&t->lock);
    while (!(place = find(t, ask->ticket)) &&
           pthread_cond_timedwait(&t->added, &t->lock, &until) == 0)
        continue;
    struct source *s = place ? begin(place, ask, err) : NULL;
    pthread_mutex_unlock(&t->lock);
    if (!place)
        sl_fail(err, SL_TIMEOUT, "bulk: unknown ticket");
    return s;
}

static void source_next(void *ctx, void *source, uint32_t wait_ms, struct sl_bulk_unit *out)
{
    static const enum sl_bulk_unit_kind kinds[] = {[SL_EXPORT_WAIT] = SL_BULK_WAIT,
                                                   [SL_EXPORT_ROW] = SL_BULK_ROW,
                                                   [SL_EXPORT_PAGE] = SL_BULK_PAGE,
                                                   [SL_EXPORT_END] = SL_BULK_END};
    const struct source *s = source;
    struct sl_export_unit u;
    (void)ctx;
    sl_export_next(s->reader, wait_ms, &u);
    *out = (struct sl_bulk_unit){
        .kind = kinds[u.kind], .page = u.page, .layer = u.layer, .row = u.row, .status = u.status};
    if (u.kind == SL_EXPORT_PAGE)
        memcpy(out->key, sl_export_key(s->ticket->export, u.page), sizeof out->key);
}

static void source_close(void *ctx, void *source)
{
    struct tickets *t = ctx;
    struct source *s = source;
    sl_export_read_end(s->reader);
    pthread_mutex_lock(&t->lock);
    s->ticket->n_open--;
    struct sl_export *x = let_go(s->ticket);
    pthread_mutex_unlock(&t->lock);
    free(s);
    if (x)
        sl_export_close(x);
}

static uint32_t source_map(void *ctx, struct sl_bulk_rank *out)
{
    struct tickets *t = ctx;
    char address[SL_BULK_ADDRESS_MAX];
    pthread_mutex_lock(&t->lock);
    memcpy(address, t->address, sizeof address);
    pthread_mutex_unlock(&t->lock);
    return t->map && address[0] ? t->map(t->map_ctx, address, out) : 0;
}

const struct sl_bulk_source_ops tickets_ops = {source_open, source_next, source_close, source_map};
