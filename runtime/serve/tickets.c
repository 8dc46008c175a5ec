/* Exports that wait, by ticket, for the worker that is to read them. Who comes too early waits a
 * little, as SUBMIT and reader travel on different links; who does not come at all is forgotten. */
#include "worker_kv.h"

#include <sluice/base/limits.h>
#include <sluice/base/time.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICKETS_MAX (4 * SL_LIMIT_bulk_connections)
#define GRACE_MS    500

struct ticket {
    uint64_t number;
    struct sl_export *export; /* NULL: free place */
    uint64_t until_ns;
};

struct tickets {
    pthread_mutex_t lock;
    pthread_cond_t added;
    struct ticket all[TICKETS_MAX];
};

struct tickets *tickets_open(void)
{
    struct tickets *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->added, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

void tickets_expire(struct tickets *t, uint64_t now_ns)
{
    for (uint32_t i = 0; i < TICKETS_MAX; i++) {
        pthread_mutex_lock(&t->lock);
        struct sl_export *x = t->all[i].until_ns <= now_ns ? t->all[i].export : NULL;
        if (x)
            t->all[i].export = NULL;
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
    *place = (struct ticket){ticket, x, until_ns};
    pthread_cond_broadcast(&t->added);
    pthread_mutex_unlock(&t->lock);
}

/* --- the bulk server's source ----------------------------------------------------------------- */

/* Under the lock. A ticket is good once. */
static struct sl_export *take(struct tickets *t, const struct sl_bulk_ask *ask)
{
    for (uint32_t i = 0; i < TICKETS_MAX; i++) {
        struct sl_export *x = t->all[i].export;
        if (!x || t->all[i].number != ask->ticket)
            continue;
        if (ask->n_pages > sl_export_n_pages(x) ||
            memcmp(sl_export_key(x, ask->n_pages - 1), ask->last_key, 32) != 0)
            return NULL;
        t->all[i].export = NULL;
        return x;
    }
    return NULL;
}

static void *source_open(void *ctx, const struct sl_bulk_ask *ask, struct sl_err *err)
{
    struct tickets *t = ctx;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + GRACE_MS * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&t->lock);
    struct sl_export *x = take(t, ask);
    while (!x && pthread_cond_timedwait(&t->added, &t->lock, &until) == 0)
        x = take(t, ask);
    pthread_mutex_unlock(&t->lock);
    if (x)
        sl_export_skip(x, ask->first);
    else
        sl_fail(err, SL_NOT_FOUND, "bulk: unknown ticket");
    return x;
}

static void source_next(void *ctx, void *source, uint32_t wait_ms, struct sl_bulk_unit *out)
{
    static const enum sl_bulk_unit_kind kinds[] = {[SL_EXPORT_WAIT] = SL_BULK_WAIT,
                                                   [SL_EXPORT_ROW] = SL_BULK_ROW,
                                                   [SL_EXPORT_PAGE] = SL_BULK_PAGE,
                                                   [SL_EXPORT_END] = SL_BULK_END};
    struct sl_export_unit u;
    (void)ctx;
    sl_export_next(source, wait_ms, &u);
    *out = (struct sl_bulk_unit){
        .kind = kinds[u.kind], .page = u.page, .layer = u.layer, .row = u.row, .status = u.status};
    if (u.kind == SL_EXPORT_PAGE)
        memcpy(out->key, sl_export_key(source, u.page), sizeof out->key);
}

static void source_close(void *ctx, void *source)
{
    (void)ctx;
    sl_export_close(source);
}

const struct sl_bulk_source_ops tickets_ops = {source_open, source_next, source_close};
