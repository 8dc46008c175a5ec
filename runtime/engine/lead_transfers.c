/* Rank 0's side of transfers in a group: tells the other ranks which pages are read or filled,
 * hears from them when they are done. On the engine's thread, between steps.
 *
 * A page goes back to the scheduler only when no rank reads or fills it: each rank's part is in the
 * mask `away` until it says so. When the group is lost the mask is cleared, as no rank joins again
 * before its transfers are closed. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/mem.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT_MS 5  /* a request waits for it */
#define EXPORT_MS 50 /* only pages do */
#define OWNER_MS  20 /* nobody can fetch before all have said where they serve */

static enum sl_status send_all(struct group *g, const struct wire_head *h,
                               const struct wire_transfer *t, struct sl_err *err)
{
    size_t bytes = sl_wire_transfer_put(h, t, g->body);
    enum sl_status s = SL_OK;
    for (uint32_t r = 1; r < g->n_ranks && !s; r++) {
        s = sl_comm_send(g->comm, r, h, sizeof *h, err);
        if (!s && bytes)
            s = sl_comm_send(g->comm, r, g->body, bytes, err);
    }
    return s;
}

static struct wire_head head_of(const struct group *g, enum wire_kind kind, uint64_t id)
{
    struct wire_head h = sl_wire_head(kind, id);
    h.done = g->done_step;
    return h;
}

/* What follows is told to everybody, or the group is lost. */
static bool tell(struct sl_engine *e, const struct wire_head *h, const struct wire_transfer *t)
{
    struct sl_err err;
    if (!send_all(e->group, h, t, &err))
        return true;
    sl_lead_lost(e, &err);
    return false;
}

static uint64_t all_others(const struct group *g)
{
    uint64_t all = g->n_ranks == 64 ? UINT64_MAX : (1ull << g->n_ranks) - 1;
    return all & ~1ull;
}

enum sl_status sl_lead_charter(struct sl_engine *e, struct sl_err *err)
{
    struct group *g = e->group;
    struct wire_head h = head_of(g, WIRE_CHARTER, 0);
    const struct wire_transfer t = {.note = g->charter};
    h.n_note = g->n_charter;
    return g->n_charter ? send_all(g, &h, &t, err) : SL_OK;
}

/* --- exports ---------------------------------------------------------------------------------- */

static bool begin_export(struct sl_engine *e, struct sl_export *x)
{
    struct group *g = e->group;
    const struct wire_transfer t = {.keys = (const uint8_t(*)[32])x->keys, .note = x->t.note};
    x->t.id = ++e->n_transfers;
    x->t.away = all_others(g);
    x->n_owners++;
    struct wire_head h = head_of(g, WIRE_EXPORT, x->t.id);
    h.n_pages = x->n_pages;
    h.n_note = x->t.n_note;
    return tell(e, &h, &t);
}

static bool end_export(struct sl_engine *e, struct sl_export *x)
{
    const struct wire_transfer t = {0};
    struct wire_head h = head_of(e->group, WIRE_END, x->t.id);
    x->t.end_told = true;
    return tell(e, &h, &t);
}

void sl_lead_transfers(struct sl_engine *e)
{
    bool up = e->group->n_ranks > 1;
    struct sl_list *next;
    for (struct sl_list *l = e->exports.next; l != &e->exports && up; l = next) {
        struct sl_export *x = SL_ENTRY(l, struct sl_export, t.link);
        next = l->next; /* a group that is lost now takes what only its ranks had with it */
        if (!x->t.id && !x->ended)
            up = begin_export(e, x);
        else if (x->t.away && x->ended && !x->t.end_told)
            up = end_export(e, x);
    }
}

static void export_back(struct sl_engine *e, struct sl_export *x, uint64_t ranks)
{
    bool was_away = x->t.away != 0;
    x->t.away &= ~ranks;
    if (was_away && !x->t.away)
        sl_export_drop(e, x);
}

/* --- imports ---------------------------------------------------------------------------------- */

bool sl_lead_import(struct sl_engine *e, struct sl_import *im)
{
    struct group *g = e->group;
    const struct wire_transfer t = {.pages = im->pages,
                                    .keys = (const uint8_t(*)[32])(im->keys + im->first),
                                    .note = im->t.note};
    if (g->n_ranks == 1)
        return true;
    if (!g->comm)
        return false;
    im->t.id = ++e->n_transfers;
    im->t.away = all_others(g);
    im->n_away = g->n_ranks - 1;
    struct wire_head h = head_of(g, WIRE_IMPORT, im->t.id);
    h.first = im->first;
    h.n_pages = im->n_reserved;
    h.n_note = im->t.n_note;
    return tell(e, &h, &t);
}

void sl_lead_import_end(struct sl_engine *e, struct sl_import *im)
{
    const struct wire_transfer t = {0};
    struct wire_head h = head_of(e->group, WIRE_END, im->t.id);
    if (im->t.end_told || !e->group->comm)
        return;
    im->t.end_told = true;
    tell(e, &h, &t);
}

/* --- both ------------------------------------------------------------------------------------- */

static struct sl_export *find_export(struct sl_engine *e, uint64_t id)
{
    for (struct sl_list *l = e->exports.next; l != &e->exports; l = l->next) {
        struct sl_export *x = SL_ENTRY(l, struct sl_export, t.link);
        if (x->t.id == id)
            return x;
    }
    return NULL;
}

static struct sl_import *find_import(struct sl_engine *e, uint64_t id)
{
    for (struct sl_list *l = e->imports.next; l != &e->imports; l = l->next) {
        struct sl_import *im = SL_ENTRY(l, struct sl_import, t.link);
        if (im->t.id == id)
            return im;
    }
    return NULL;
}

static enum sl_status one_ended(struct sl_engine *e, uint32_t rank, const struct wire_ended *w,
                                struct sl_err *err)
{
    uint64_t bit = 1ull << rank;
    struct sl_export *x = w->id ? find_export(e, w->id) : NULL;
    struct sl_import *im = w->id ? find_import(e, w->id) : NULL;
    if (x && (x->t.away & bit)) {
        export_back(e, x, bit);
        return SL_OK;
    }
    if (!im || !(im->t.away & bit) || w->n_complete > im->n_reserved)
        return sl_fail(err, SL_PEER, "rank %u ended transfer %llu with %u pages", rank,
                       (unsigned long long)w->id, w->n_complete);
    im->t.away &= ~bit;
    sl_import_rank_done(e, im, w->n_complete);
    return SL_OK;
}

enum sl_status sl_lead_ended(struct sl_engine *e, uint32_t rank, const struct wire_ended *ended,
                             uint32_t n, struct sl_err *err)
{
    if (n > WIRE_ENDED_MAX)
        return sl_fail(err, SL_PEER, "rank %u ended %u transfers at once", rank, n);
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < n && !s; i++)
        s = one_ended(e, rank, &ended[i], err);
    return s;
}

/* Whether an owner has heard the charter and not answered. Only this thread writes what is read. */
static bool is_waited_for(const struct group *g)
{
    for (uint32_t r = 1; r < g->n_ranks && g->n_charter && g->comm; r++)
        if (!g->kv[r].said)
            return true;
    return false;
}

int sl_lead_wait_ms(const struct sl_engine *e)
{
    for (const struct sl_list *l = e->imports.next; l != &e->imports; l = l->next)
        if (SL_ENTRY(l, struct sl_import, t.link)->t.away)
            return IMPORT_MS;
    for (const struct sl_list *l = e->exports.next; l != &e->exports; l = l->next)
        if (SL_ENTRY(l, struct sl_export, t.link)->t.away)
            return EXPORT_MS;
    return is_waited_for(e->group) ? OWNER_MS : -1;
}

void sl_transfers_lost(struct sl_engine *e, bool for_good)
{
    for (struct sl_list *l = e->exports.next, *next; l != &e->exports; l = next) {
        struct sl_export *x = SL_ENTRY(l, struct sl_export, t.link);
        next = l->next;
        if (!x->t.id && !for_good)
            continue; /* none of its pages was computed yet */
        sl_export_break(x, SL_PEER, true);
        export_back(e, x, UINT64_MAX);
    }
    for (struct sl_list *l = e->imports.next, *next; l != &e->imports; l = next) {
        next = l->next;
        sl_import_break(e, SL_ENTRY(l, struct sl_import, t.link));
    }
}

bool sl_transfers_open(const struct sl_engine *e)
{
    for (const struct sl_list *l = e->exports.next; l != &e->exports; l = l->next)
        if (sl_export_is_read(SL_ENTRY(l, struct sl_export, t.link)))
            return true;
    return !sl_list_empty(&e->imports);
}

/* --- what ranks say --------------------------------------------------------------------------- */

void sl_engine_kv_address(struct sl_engine *e, uint32_t rank, char out[SL_KV_ADDRESS_MAX])
{
    out[0] = '\0';
    if (!e->group || rank >= SL_LIMIT_ranks)
        return;
    pthread_mutex_lock(&e->group->lock);
    memcpy(out, e->group->kv[rank].address, SL_KV_ADDRESS_MAX);
    pthread_mutex_unlock(&e->group->lock);
}

void sl_engine_kv_figures(struct sl_engine *e, struct sl_kv_figures *out)
{
    *out = (struct sl_kv_figures){0};
    if (!e->group)
        return;
    pthread_mutex_lock(&e->group->lock);
    for (uint32_t r = 1; r < e->group->n_ranks; r++) {
        out->bytes_sent += e->group->kv[r].bytes_sent;
        out->n_bad += e->group->kv[r].n_bad;
    }
    pthread_mutex_unlock(&e->group->lock);
}
