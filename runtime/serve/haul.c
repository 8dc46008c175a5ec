/* Pieces of a rank's part of some pages, each over a connection of its own and from a thread of its
 * own. When one fails the others are given up: what all pieces have counts. */
#include "haul.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(HAUL_NOTE_BYTES <= SL_LIMIT_transfer_note_bytes, "a note carries a map");

struct pull {
    struct haul *of;
    struct sl_bulk_piece piece;
    struct sl_kv_part part; /* the same */
    pthread_t thread;
    bool started;
    uint8_t *row; /* of pages without room, and of some heads of ours on their way */
    struct sl_bulk_fetched got;
    enum sl_status status;
    struct sl_err err;
};

/* ---- rows ---- */

static uint32_t room(struct haul *h)
{
    pthread_mutex_lock(&h->lock);
    if (!h->made_room)
        h->end = h->make_room ? h->make_room(h->ctx) : h->n_pages;
    h->made_room = true;
    uint32_t end = h->end;
    pthread_mutex_unlock(&h->lock);
    return end;
}

static void *row_at(void *ctx, uint32_t page, uint32_t layer)
{
    struct pull *p = ctx;
    if (page >= room(p->of))
        return p->row;
    void *row = sl_import_row(p->of->im, page, layer, &p->part);
    return row ? row : p->row;
}

static void row_done(void *ctx, uint32_t page, uint32_t layer, const void *row)
{
    struct pull *p = ctx;
    if (row == p->row && page < room(p->of))
        sl_import_put(p->of->im, page, layer, &p->part, row);
}

/* ---- pulling ---- */

static void *pull_thread(void *arg)
{
    struct pull *p = arg;
    struct haul *h = p->of;
    const struct sl_bulk_rank *from = &h->ranks[p->piece.rank];
    struct sl_bulk_fetch f = {.address = from->address,
                              .layout = h->layout,
                              .keys = sl_import_keys(h->im),
                              .row_at = row_at,
                              .row_done = row_done,
                              .ctx = p,
                              .stop = sl_import_stop(h->im)};
    f.ask = (struct sl_bulk_ask){.ticket = h->ticket,
                                 .first = sl_import_first(h->im),
                                 .n_pages = h->n_pages,
                                 .part = p->piece.part,
                                 .n_readers = from->n_readers};
    memcpy(f.ask.last_key, f.keys[h->n_pages - 1], sizeof f.ask.last_key);
    memcpy(f.key, h->key, sizeof f.key);
    p->status = sl_bulk_fetch(&f, &p->got, &p->err);
    if (p->status)
        sl_import_give_up(h->im);
    return NULL;
}

static void open_pulls(struct haul *h, const struct sl_bulk_piece *pieces, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct pull *p = &h->pulls[i];
        const struct sl_bulk_part *b = &pieces[i].part;
        *p = (struct pull){.of = h, .piece = pieces[i], .status = SL_NO_MEMORY};
        p->part = (struct sl_kv_part){b->layer_first, b->n_layers, b->head_first, b->n_heads};
        p->row = malloc((size_t)b->n_heads * h->layout.head_bytes);
        sl_fail(&p->err, SL_NO_MEMORY, "no memory to fetch pages");
    }
}

/* The first on this thread. */
static void run_pulls(struct haul *h, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        struct pull *p = &h->pulls[i];
        p->started = p->row && pthread_create(&p->thread, NULL, pull_thread, p) == 0;
        if (!p->started)
            sl_import_give_up(h->im);
    }
    if (h->pulls[0].row)
        pull_thread(&h->pulls[0]);
    for (uint32_t i = 1; i < n; i++)
        if (h->pulls[i].started)
            pthread_join(h->pulls[i].thread, NULL);
}

/* What all pieces have; why, if that is not all: the reason of the one that began it. */
static enum sl_status sum_up(struct haul *h, uint32_t n, struct sl_err *err)
{
    uint32_t first = sl_import_first(h->im), most = h->end > first ? h->end - first : 0;
    const struct pull *why = NULL;
    h->n_complete = most;
    for (uint32_t i = 0; i < n; i++) {
        const struct pull *p = &h->pulls[i];
        h->n_complete = p->got.n_complete < h->n_complete ? p->got.n_complete : h->n_complete;
        h->n_bad += p->got.n_bad;
        if (p->status && (!why || why->status == SL_CANCELLED))
            why = p;
        free(p->row);
    }
    if (!why)
        return SL_OK;
    *err = why->err;
    return why->status;
}

enum sl_status haul_run(struct haul *h, struct sl_err *err)
{
    struct sl_bulk_piece pieces[SL_LIMIT_ranks];
    const struct sl_bulk_part mine = worker_kv_bulk_part(&h->part);
    uint32_t n = sl_bulk_cover(&mine, h->ranks, h->n_ranks, pieces, SL_LIMIT_ranks);
    if (!n)
        return sl_fail(err, SL_PEER, "nobody there has all that this rank needs");
    h->pulls = calloc(n, sizeof *h->pulls);
    if (!h->pulls)
        return sl_fail(err, SL_NO_MEMORY, "no memory to fetch pages");
    pthread_mutex_init(&h->lock, NULL);
    open_pulls(h, pieces, n);
    run_pulls(h, n);
    pthread_mutex_destroy(&h->lock);
    return sum_up(h, n, err);
}

void haul_free(struct haul *h)
{
    free(h->pulls);
    h->pulls = NULL;
}

/* ---- notes ---- */

uint32_t haul_note_put(const struct haul *h, uint8_t out[HAUL_NOTE_BYTES])
{
    memcpy(out, &h->ticket, 8);
    memcpy(out + 8, h->key, 32);
    return 40 + sl_bulk_ranks_put(h->ranks, h->n_ranks, out + 40);
}

enum sl_status haul_note_get(struct haul *h, const uint8_t *note, uint32_t n, struct sl_err *err)
{
    if (n < 40)
        return sl_fail(err, SL_INVALID, "a note of %u bytes", n);
    memcpy(&h->ticket, note, 8);
    memcpy(h->key, note + 8, 32);
    return sl_bulk_ranks_get(note + 40, n - 40, &h->layout, h->ranks, &h->n_ranks, err);
}
