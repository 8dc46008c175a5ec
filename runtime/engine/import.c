/* Pages on their way in: reserved by the engine's thread, filled by others, entered by the former.
 *
 * Questions (how many are cached; then: which pages to fill; then: whether the other ranks are
 * done) and the close travel through the engine's inbox in order, so a request submitted after the
 * close finds what came. Rank 0 keeps the pages of a closed import until every other rank has said
 * that it fills them no longer. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/time.h>
#include <sluice/control/kv.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void import_free(struct sl_import *im)
{
    sl_list_remove(&im->t.link);
    pthread_mutex_destroy(&im->lock);
    pthread_cond_destroy(&im->answered);
    free(im->t.note);
    free(im->keys);
    free(im->tokens);
    free(im->pages);
    free(im->copy);
    free(im);
}

/* --- the engine's thread ---------------------------------------------------------------------- */

static void reserve(struct sl_engine *e, struct sl_import *im)
{
    if (im->broken)
        return;
    im->n_reserved = sl_sched_reserve(e->sched, im->n_pages - im->first, im->pages);
    im->n_settled = im->n_reserved;
    if (!im->n_reserved || !e->group || sl_lead_import(e, im))
        return;
    while (im->n_reserved) /* nobody heard of them */
        sl_sched_unpin(e->sched, im->pages[--im->n_reserved]);
}

static void enter(struct sl_engine *e, struct sl_import *im)
{
    struct sl_kv_part part = sl_kv_part_of(e, &e->shard);
    sl_list_push_back(&e->imports, &im->t.link);
    im->broken = memcmp(&part, &im->part, sizeof part) != 0; /* the group has shrunk meanwhile */
    im->first =
        sl_sched_n_cached(e->sched, (const uint8_t(*)[32])im->keys, im->tokens, im->n_pages);
}

void sl_import_answer(struct sl_engine *e, struct sl_import *im)
{
    pthread_mutex_lock(&im->lock);
    bool wants_pages = im->wants_pages;
    pthread_mutex_unlock(&im->lock); /* until the answer the fields are ours */
    if (wants_pages)
        reserve(e, im);
    else
        enter(e, im);
    pthread_mutex_lock(&im->lock);
    im->ready = true;
    pthread_cond_signal(&im->answered);
    pthread_mutex_unlock(&im->lock);
}

void sl_import_settling(struct sl_engine *e, struct sl_import *im)
{
    if (im->t.away && im->n_complete < im->n_reserved)
        sl_lead_import_end(e, im);
}

static void finish(struct sl_engine *e, struct sl_import *im)
{
    uint32_t n = im->broken ? 0 : im->n_complete;
    for (uint32_t i = 0; i < im->n_reserved; i++) {
        uint32_t p = im->first + i;
        if (i < n)
            sl_sched_import(e->sched, im->pages[i], p ? im->keys[p - 1] : NULL, im->keys[p],
                            im->tokens + (size_t)p * e->info.page_size);
        else
            sl_sched_unpin(e->sched, im->pages[i]);
    }
    import_free(im);
}

void sl_import_closed(struct sl_engine *e, struct sl_import *im)
{
    if (!e->sched) {
        sl_follow_ended(e, im->t.id, im->n_complete);
        import_free(im);
        return;
    }
    im->closed = true;
    if (im->t.away) {
        im->n_complete = 0;
        sl_lead_import_end(e, im); /* may break it */
        return;
    }
    finish(e, im);
}

void sl_import_rank_done(struct sl_engine *e, struct sl_import *im, uint32_t n_complete)
{
    pthread_mutex_lock(&im->lock);
    im->n_settled = n_complete < im->n_settled ? n_complete : im->n_settled;
    im->n_away--;
    pthread_cond_signal(&im->answered);
    pthread_mutex_unlock(&im->lock);
    if (im->closed && !im->t.away)
        finish(e, im);
}

void sl_import_break(struct sl_engine *e, struct sl_import *im)
{
    atomic_store(&im->stop, true);
    im->t.away = 0;
    pthread_mutex_lock(&im->lock);
    im->broken = true;
    im->n_away = 0;
    pthread_cond_signal(&im->answered);
    pthread_mutex_unlock(&im->lock);
    if (im->closed)
        finish(e, im);
}

/* --- the filling thread ----------------------------------------------------------------------- */

static struct sl_import *import_new(struct sl_engine *e, uint32_t n_pages)
{
    struct sl_import *im = calloc(1, sizeof *im);
    if (!im)
        return NULL;
    im->e = e;
    im->n_pages = n_pages;
    im->part = sl_engine_kv_part(e);
    sl_list_init(&im->t.link);
    im->keys = calloc(n_pages, sizeof *im->keys);
    im->pages = calloc(n_pages, sizeof *im->pages);
    if (sl_engine_on_device(e))
        im->copy = malloc(e->kv.page_bytes);
    pthread_mutex_init(&im->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&im->answered, &attr);
    pthread_condattr_destroy(&attr);
    if (im->keys && im->pages && (im->copy || !sl_engine_on_device(e)))
        return im;
    import_free(im);
    return NULL;
}

struct sl_import *sl_import_follow(struct sl_engine *e, const struct wire_head *h,
                                   const struct wire_transfer *t)
{
    struct sl_import *im = import_new(e, h->first + h->n_pages);
    if (!im)
        return NULL;
    im->t.id = h->step;
    im->first = h->first;
    im->n_reserved = h->n_pages;
    memcpy(im->pages, t->pages, h->n_pages * sizeof *im->pages);
    memcpy(im->keys + h->first, t->keys, (size_t)h->n_pages * sizeof *im->keys);
    sl_list_push_back(&e->imports, &im->t.link);
    return im;
}

static struct sl_import *import_of(struct sl_engine *e, const uint8_t salt[32],
                                   const uint32_t *tokens, uint32_t n_pages)
{
    size_t n_tokens = (size_t)n_pages * e->info.page_size;
    struct sl_import *im = import_new(e, n_pages);
    if (!im)
        return NULL;
    im->tokens = calloc(n_tokens, sizeof *im->tokens);
    if (!im->tokens || !sl_prefix_keys(e->info.page_size, salt, tokens, n_pages, im->keys)) {
        import_free(im);
        return NULL;
    }
    memcpy(im->tokens, tokens, n_tokens * sizeof *tokens);
    return im;
}

static bool is_answered(const struct sl_import *im, bool by_all)
{
    return by_all ? im->n_away == 0 : im->ready;
}

static bool wait_for_answer(struct sl_import *im, bool by_all, uint32_t wait_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)wait_ms * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&im->lock);
    while (!is_answered(im, by_all) &&
           pthread_cond_timedwait(&im->answered, &im->lock, &until) == 0)
        continue;
    bool answered = is_answered(im, by_all);
    pthread_mutex_unlock(&im->lock);
    return answered;
}

enum sl_status sl_import_open(struct sl_engine *e, const uint8_t salt[32], const uint32_t *tokens,
                              uint32_t n_pages, uint32_t wait_ms, struct sl_import **out,
                              struct sl_err *err)
{
    struct sl_kv_layout layout;
    if (!n_pages || !sl_engine_kv_layout(e, &layout) || !e->sched)
        return sl_fail(err, SL_UNSUPPORTED, "engine: no pages can be brought in");
    struct sl_import *im = import_of(e, salt, tokens, n_pages);
    if (!im)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory to import %u pages", n_pages);
    sl_engine_tell(e, CMD_IMPORT_OPEN, im);
    if (!wait_for_answer(im, false, wait_ms)) {
        sl_import_close(im, 0);
        return sl_fail(err, SL_TIMEOUT, "engine: no answer about %u pages", n_pages);
    }
    *out = im;
    return SL_OK;
}

uint32_t sl_import_first(const struct sl_import *im)
{
    return im->first;
}

uint32_t sl_import_end(const struct sl_import *im)
{
    return im->first + im->n_reserved;
}

uint32_t sl_import_reserve(struct sl_import *im, const void *note, uint32_t n_note,
                           uint32_t wait_ms)
{
    im->t.note = n_note ? malloc(n_note) : NULL;
    if (n_note > SL_LIMIT_transfer_note_bytes || (n_note && !im->t.note))
        return im->first;
    if (n_note)
        memcpy(im->t.note, note, n_note);
    im->t.n_note = n_note;
    pthread_mutex_lock(&im->lock);
    im->wants_pages = true;
    im->ready = false;
    pthread_mutex_unlock(&im->lock);
    sl_engine_tell(im->e, CMD_IMPORT_OPEN, im);
    return im->first + (wait_for_answer(im, false, wait_ms) ? im->n_reserved : 0);
}

const uint8_t (*sl_import_keys(const struct sl_import *im))[32]
{
    return (const uint8_t(*)[32])im->keys;
}

static uint8_t *row_of(const struct sl_import *im, uint32_t page, uint32_t layer,
                       const struct sl_kv_part *part)
{
    sl_assert(page >= im->first && page - im->first < im->n_reserved);
    sl_assert(sl_kv_part_within(part, &im->part) && layer >= part->layer_first &&
              layer - part->layer_first < part->n_layers);
    return sl_engine_kv_row(im->e, im->pages[page - im->first], layer - im->part.layer_first);
}

void *sl_import_row(const struct sl_import *im, uint32_t page, uint32_t layer,
                    const struct sl_kv_part *part)
{
    bool direct = part->n_heads == im->part.n_heads && !sl_engine_on_device(im->e);
    return direct ? row_of(im, page, layer, part) : NULL;
}

/* Heads of a device's row go in with those that are there. */
static enum sl_status put_on_device(struct sl_import *im, void *to, const struct sl_kv_part *part,
                                    const void *row)
{
    struct sl_backend *b = im->e->backend;
    size_t bytes = im->e->kv.page_bytes;
    struct sl_err err;
    enum sl_status s = b->ops->page_out(b, im->copy, to, bytes, &err);
    sl_kv_unslice(&im->e->kv.cfg, im->copy, part->head_first - im->part.head_first, part->n_heads,
                  row);
    return s ? s : b->ops->page_in(b, to, im->copy, bytes, &err);
}

void sl_import_put(struct sl_import *im, uint32_t page, uint32_t layer,
                   const struct sl_kv_part *part, const void *row)
{
    uint8_t *to = row_of(im, page, layer, part);
    if (!im->copy) {
        sl_kv_unslice(&im->e->kv.cfg, to, part->head_first - im->part.head_first, part->n_heads,
                      row);
        return;
    }
    pthread_mutex_lock(&im->lock);
    im->failed |= put_on_device(im, to, part, row) != SL_OK;
    pthread_mutex_unlock(&im->lock);
}

static bool has_failed(struct sl_import *im)
{
    pthread_mutex_lock(&im->lock);
    bool failed = im->failed;
    pthread_mutex_unlock(&im->lock);
    return failed;
}

const atomic_bool *sl_import_stop(const struct sl_import *im)
{
    return &im->stop;
}

void sl_import_give_up(struct sl_import *im)
{
    atomic_store(&im->stop, true);
}

uint32_t sl_import_settle(struct sl_import *im, uint32_t n_complete, uint32_t wait_ms)
{
    if (has_failed(im))
        n_complete = 0;
    im->n_complete = n_complete;
    if (!im->e->group)
        return n_complete;
    sl_engine_tell(im->e, CMD_IMPORT_SETTLE, im);
    bool all = wait_for_answer(im, true, wait_ms);
    pthread_mutex_lock(&im->lock);
    uint32_t n = all && !im->broken ? im->n_settled : 0;
    pthread_mutex_unlock(&im->lock);
    return n_complete < n ? n_complete : n;
}

void sl_import_close(struct sl_import *im, uint32_t n_complete)
{
    im->n_complete = has_failed(im) ? 0 : n_complete;
    sl_engine_tell(im->e, CMD_IMPORT_CLOSE, im);
}
