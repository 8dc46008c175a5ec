/* A request held back while its pages come: rank 0's part of that. The other ranks fill their parts
 * of the same pages (follower_kv.c); what all of them have counts. */
#include "haul.h"
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/queue.h>

#include <stdlib.h>
#include <string.h>

#define ANSWER_MS 2000 /* the engine's, about pages to be filled: it may be in a step */

struct fetch {
    struct worker *w;
    struct request *r;
    struct sl_msg_submit m; /* arrays and address point behind the struct */
    pthread_t thread;
    pthread_mutex_t lock;
    bool stop;            /* under the lock */
    struct sl_import *im; /* under the lock: NULL when there is none to be stopped */
    struct haul haul;
    uint32_t n_wanted;   /* pages that were not here before */
    uint32_t n_complete; /* of them, at all ranks */
    struct sl_err err;
};

/* ---- a fetch's thread ---- */

/* Pages are taken from the cache when rows begin to come, not while the source has yet to compute.
 */
static uint32_t make_room(void *ctx)
{
    struct fetch *f = ctx;
    uint8_t note[HAUL_NOTE_BYTES];
    uint32_t n = haul_note_put(&f->haul, note);
    return sl_import_reserve(f->haul.im, note, n, ANSWER_MS);
}

/* Whom each rank of ours will ask, so that those know how many will come. */
static enum sl_status count_readers(struct fetch *f, struct sl_err *err)
{
    struct sl_kv_part parts[SL_LIMIT_ranks];
    struct sl_bulk_piece pieces[SL_LIMIT_ranks];
    struct haul *h = &f->haul;
    uint32_t n_parts = sl_engine_kv_parts(f->w->engine, parts);
    for (uint32_t r = 0; r < n_parts; r++) {
        const struct sl_bulk_part mine = worker_kv_bulk_part(&parts[r]);
        uint32_t n = sl_bulk_cover(&mine, h->ranks, h->n_ranks, pieces, SL_LIMIT_ranks);
        if (!n)
            return sl_fail(err, SL_PEER, "nobody there has all that rank %u needs", r);
        for (uint32_t i = 0; i < n; i++)
            h->ranks[pieces[i].rank].n_readers++;
    }
    return SL_OK;
}

static enum sl_status bring_in(struct fetch *f, struct sl_err *err)
{
    struct haul *h = &f->haul;
    char address[SL_BULK_ADDRESS_MAX];
    memcpy(address, f->m.kv_address.data, f->m.kv_address.len); /* shorter: checked by the bus */
    address[f->m.kv_address.len] = '\0';
    struct sl_bulk_fetch ask = {
        .address = address, .layout = h->layout, .stop = sl_import_stop(h->im)};
    memcpy(ask.key, h->key, sizeof ask.key);
    enum sl_status s = sl_bulk_map(&ask, h->ranks, &h->n_ranks, err);
    for (uint32_t i = 0; i < h->n_ranks; i++)
        h->ranks[i].n_readers = 0;
    if (!s)
        s = count_readers(f, err);
    return s ? s : haul_run(h, err);
}

/* From now on it can be stopped; false when it was before. */
static bool hold(struct fetch *f, struct sl_import *im)
{
    pthread_mutex_lock(&f->lock);
    f->im = im;
    bool stop = f->stop;
    pthread_mutex_unlock(&f->lock);
    return !stop;
}

static enum sl_status bring_all(struct fetch *f, uint32_t n_pages)
{
    struct haul *h = &f->haul;
    *h = (struct haul){.layout = f->w->kv.bulk,
                       .part = sl_engine_kv_part(f->w->engine),
                       .im = h->im,
                       .n_pages = n_pages,
                       .ticket = f->m.kv_ticket,
                       .make_room = make_room,
                       .ctx = f};
    memcpy(h->key, f->m.kv_key, sizeof h->key);
    enum sl_status s =
        hold(f, h->im) ? bring_in(f, &f->err) : sl_fail(&f->err, SL_CANCELLED, "cancelled");
    f->n_complete = h->n_complete;
    if (h->made_room)
        f->n_complete = sl_import_settle(h->im, h->n_complete, SL_LIMIT_bulk_transfer_ms);
    if (!s && f->n_complete < h->n_complete)
        sl_fail(&f->err, SL_PEER, "another rank has not more");
    hold(f, NULL);
    return s;
}

static void *fetch_thread(void *arg)
{
    struct fetch *f = arg;
    uint32_t n_pages = (f->m.n_tokens - 1) / f->w->kv.bulk.page_size;
    f->n_wanted = n_pages;
    enum sl_status s = sl_import_open(f->w->engine, f->m.salt, f->m.tokens, n_pages, ANSWER_MS,
                                      &f->haul.im, &f->err);
    if (s == SL_OK) {
        struct sl_import *im = f->haul.im;
        f->n_wanted = n_pages - sl_import_first(im);
        if (f->n_wanted)
            s = bring_all(f, n_pages);
        sl_import_close(im, f->n_complete);
    }
    bool pushed = sl_queue_push(f->w->kv.fetched, f);
    sl_assert(pushed); /* there are no more fetches than places */
    return NULL;
}

/* ---- the worker's thread ---- */

/* The message dies with the next receive: a copy in one block. */
static struct fetch *fetch_new(const struct sl_msg_submit *m)
{
    size_t tokens = m->n_tokens * sizeof *m->tokens, bias = m->n_bias * sizeof *m->bias;
    size_t stops = m->n_stop_ids * sizeof *m->stop_ids;
    struct fetch *f = calloc(1, sizeof *f + bias + tokens + stops + m->kv_address.len);
    if (!f)
        return NULL;
    f->m = *m;
    char *at = (char *)(f + 1);
    const void *from[] = {m->bias, m->tokens, m->stop_ids, m->kv_address.data};
    const size_t size[] = {bias, tokens, stops, m->kv_address.len};
    const void *to[4];
    for (size_t i = 0; i < 4; i++) {
        if (size[i])
            memcpy(at, from[i], size[i]);
        to[i] = at;
        at += size[i];
    }
    f->m.bias = to[0];
    f->m.tokens = to[1];
    f->m.stop_ids = to[2];
    f->m.kv_address.data = to[3];
    return f;
}

static void fetch_free(struct fetch *f)
{
    pthread_mutex_destroy(&f->lock);
    haul_free(&f->haul);
    free(f);
}

bool worker_kv_fetch(struct worker *w, struct request *r, const struct sl_msg_submit *m)
{
    struct worker_kv *k = &w->kv;
    if (!m->kv_address.len || m->no_prefix_cache)
        return false;
    if (!k->layout_hash || m->n_tokens <= k->bulk.page_size ||
        k->n_fetches >= SL_LIMIT_bulk_connections) {
        k->n_fallbacks++;
        return false;
    }
    struct fetch *f = fetch_new(m);
    if (!f)
        return false;
    f->w = w;
    f->r = r;
    r->fetch = f;
    pthread_mutex_init(&f->lock, NULL);
    if (pthread_create(&f->thread, NULL, fetch_thread, f)) {
        r->fetch = NULL;
        fetch_free(f);
        k->n_fallbacks++;
        return false;
    }
    k->n_fetches++;
    return true;
}

void worker_kv_stop(struct request *r)
{
    struct fetch *f = r->fetch;
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    if (f->im)
        sl_import_give_up(f->im);
    pthread_mutex_unlock(&f->lock);
}

static void end_fetch(struct worker *w, struct fetch *f)
{
    struct worker_kv *k = &w->kv;
    pthread_join(f->thread, NULL);
    k->n_fetches--;
    k->n_pages_received += f->n_complete;
    k->n_bad += f->haul.n_bad;
    f->r->fetch = NULL;
}

void worker_kv_take(struct worker *w)
{
    struct worker_kv *k = &w->kv;
    struct fetch *f;
    if (!k->fetched)
        return;
    sl_queue_clear_event(k->fetched);
    while ((f = sl_queue_pop(k->fetched))) {
        end_fetch(w, f);
        if (f->n_complete < f->n_wanted && !f->stop) {
            k->n_fallbacks++;
            sl_log(SL_LOG_INFO, "%u of %u pages came: %s", f->n_complete, f->n_wanted,
                   f->err.status ? f->err.msg : "no room for more");
        }
        worker_fetched(w, f->r, &f->m);
        fetch_free(f);
    }
}

void worker_fetches_end(struct worker *w)
{
    struct worker_kv *k = &w->kv;
    worker_fetches_stop(w);
    while (k->n_fetches) {
        sl_queue_wait(k->fetched, 100);
        struct fetch *f = sl_queue_pop(k->fetched);
        if (!f)
            continue;
        end_fetch(w, f);
        fetch_free(f);
    }
}
