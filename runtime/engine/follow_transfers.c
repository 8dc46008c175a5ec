/* A follower's side of transfers: rank 0's word becomes an order for this rank's owner, and what
 * the owner has closed is told to rank 0 with the next figures.
 *
 * The inbox is emptied on the engine's thread alone, never between a step and rank 0's word about
 * it. After the group is lost this rank is of no group until the owner has closed all it was
 * ordered: what it still reads or fills is nobody else's till then. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool has_room(const struct sl_engine *e)
{
    uint32_t n = e->n_ended;
    for (const struct sl_list *l = e->exports.next; l != &e->exports; l = l->next)
        n++;
    for (const struct sl_list *l = e->imports.next; l != &e->imports; l = l->next)
        n++;
    return n < TRANSFERS_MAX;
}

static bool give_order(struct sl_engine *e, enum sl_order_kind kind, struct sl_export *x,
                       struct sl_import *im, const struct wire_head *h, const uint8_t *note)
{
    struct sl_order *o = malloc(sizeof *o + h->n_note);
    if (!o)
        return false;
    *o = (struct sl_order){.kind = kind, .x = x, .im = im, .n_note = h->n_note};
    if (h->n_note)
        memcpy(o->note, note, h->n_note);
    if (sl_queue_push(e->orders, o))
        return true;
    free(o);
    return false;
}

static enum sl_status begin(struct sl_engine *e, const struct wire_head *h,
                            const struct wire_transfer *t, struct sl_err *err)
{
    bool out = h->kind == WIRE_EXPORT;
    struct sl_export *x = out && has_room(e) ? sl_export_follow(e, h, t) : NULL;
    struct sl_import *im = !out && has_room(e) ? sl_import_follow(e, h, t) : NULL;
    if (!x && !im)
        return sl_fail(err, SL_PEER, "no room for a transfer of %u pages", h->n_pages);
    if (give_order(e, out ? SL_ORDER_EXPORT : SL_ORDER_IMPORT, x, im, h, t->note))
        return SL_OK;
    if (x)
        sl_export_closed(e, x);
    else
        sl_import_closed(e, im);
    return SL_OK;
}

/* Of a transfer that this rank has closed meanwhile nothing is left. */
static void end(struct sl_engine *e, uint64_t id)
{
    for (struct sl_list *l = e->exports.next; l != &e->exports; l = l->next) {
        struct sl_export *x = SL_ENTRY(l, struct sl_export, t.link);
        if (x->t.id == id)
            sl_export_break(x, SL_PEER, false);
    }
    for (struct sl_list *l = e->imports.next; l != &e->imports; l = l->next) {
        struct sl_import *im = SL_ENTRY(l, struct sl_import, t.link);
        if (im->t.id == id)
            sl_import_give_up(im);
    }
}

enum sl_status sl_follow_transfer(struct sl_engine *e, const struct wire_head *h,
                                  struct sl_err *err)
{
    struct wire_transfer t;
    enum sl_status s = sl_wire_transfer_get(h, &e->group->limits, e->group->body, &t, err);
    if (s)
        return s;
    if (h->kind == WIRE_END)
        end(e, h->step);
    else if (h->kind == WIRE_CHARTER)
        give_order(e, SL_ORDER_CHARTER, NULL, NULL, h, t.note);
    else
        return begin(e, h, &t, err);
    return SL_OK;
}

void sl_follow_commands(struct sl_engine *e)
{
    struct cmd *c;
    while ((c = sl_queue_pop(e->inbox))) {
        if (c->kind == CMD_EXPORT_CLOSE)
            sl_export_closed(e, c->transfer);
        if (c->kind == CMD_IMPORT_CLOSE)
            sl_import_closed(e, c->transfer);
        free(c);
    }
}

void sl_follow_ended(struct sl_engine *e, uint64_t id, uint32_t n_complete)
{
    if (e->n_ended < TRANSFERS_MAX)
        e->ended_transfers[e->n_ended++] = (struct wire_ended){.id = id, .n_complete = n_complete};
}

static void stop_all(struct sl_engine *e)
{
    e->n_step_exports = 0;
    e->pending_step = 0;
    for (struct sl_list *l = e->exports.next; l != &e->exports; l = l->next)
        sl_export_break(SL_ENTRY(l, struct sl_export, t.link), SL_PEER, true);
    for (struct sl_list *l = e->imports.next; l != &e->imports; l = l->next)
        sl_import_give_up(SL_ENTRY(l, struct sl_import, t.link));
}

void sl_follow_lost(struct sl_engine *e)
{
    const struct timespec nap = {0, 1000 * 1000};
    stop_all(e);
    sl_follow_commands(e);
    while (!(sl_list_empty(&e->exports) && sl_list_empty(&e->imports)) &&
           !atomic_load(&e->stopping)) {
        nanosleep(&nap, NULL);
        sl_follow_commands(e);
    }
    e->n_ended = 0;
}

/* What nobody took or closed before the engine was. */
void sl_follow_close(struct sl_engine *e)
{
    struct sl_order *o;
    if (!e->orders)
        return;
    while ((o = sl_queue_pop(e->orders)))
        free(o);
    while (!sl_list_empty(&e->exports))
        sl_export_closed(e, SL_ENTRY(e->exports.next, struct sl_export, t.link));
    while (!sl_list_empty(&e->imports))
        sl_import_closed(e, SL_ENTRY(e->imports.next, struct sl_import, t.link));
    sl_queue_close(e->orders);
}

/* --- the owner -------------------------------------------------------------------------------- */

struct sl_order *sl_engine_take_order(struct sl_engine *e)
{
    if (!e->orders)
        return NULL;
    sl_queue_clear_event(e->orders);
    return sl_queue_pop(e->orders);
}

int sl_engine_order_fd(struct sl_engine *e)
{
    return e->orders ? sl_queue_fd(e->orders) : -1;
}

void sl_engine_kv_say(struct sl_engine *e, const char *address, const struct sl_kv_figures *f)
{
    struct group *g = e->group;
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    struct wire_kv *kv = &g->kv[g->rank];
    *kv = (struct wire_kv){.bytes_sent = f->bytes_sent, .n_bad = f->n_bad, .said = 1};
    size_t len = strnlen(address, sizeof kv->address - 1);
    memcpy(kv->address, address, len);
    pthread_mutex_unlock(&g->lock);
}
