/* Pages on their way in: reserved by the engine's thread, filled by another, entered by the former.
 *
 * Questions (how many are cached; then: which pages to fill) and the close travel through the
 * engine's inbox in order, so a request submitted after the close finds what came. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/time.h>
#include <sluice/control/kv.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct sl_import {
    struct sl_engine *e;
    uint32_t n_pages;
    uint8_t (*keys)[32]; /* [n_pages] */
    uint32_t *tokens;    /* [n_pages, page_size] */
    uint32_t n_complete; /* of the range, set at close */
    void *copy;          /* a row on its way to a device, and where it goes; NULL: none is */
    void *to;
    bool failed;

    pthread_mutex_t lock;
    pthread_cond_t answered;
    bool wants_pages; /* the second question */
    bool ready;       /* the last one was answered */
    uint32_t first, n_reserved;
    uint32_t *pages; /* [n_pages], the first n_reserved set */
};

static void import_free(struct sl_import *im)
{
    pthread_mutex_destroy(&im->lock);
    pthread_cond_destroy(&im->answered);
    free(im->keys);
    free(im->tokens);
    free(im->pages);
    free(im->copy);
    free(im);
}

/* --- the engine's thread ---------------------------------------------------------------------- */

void sl_import_answer(struct sl_engine *e, struct sl_import *im)
{
    pthread_mutex_lock(&im->lock);
    if (im->wants_pages)
        im->n_reserved = sl_sched_reserve(e->sched, im->n_pages - im->first, im->pages);
    else
        im->first =
            sl_sched_n_cached(e->sched, (const uint8_t(*)[32])im->keys, im->tokens, im->n_pages);
    im->ready = true;
    pthread_cond_signal(&im->answered);
    pthread_mutex_unlock(&im->lock);
}

void sl_import_finish(struct sl_engine *e, struct sl_import *im)
{
    for (uint32_t i = 0; i < im->n_reserved; i++) {
        uint32_t p = im->first + i;
        if (i < im->n_complete)
            sl_sched_import(e->sched, im->pages[i], p ? im->keys[p - 1] : NULL, im->keys[p],
                            im->tokens + (size_t)p * e->info.page_size);
        else
            sl_sched_unpin(e->sched, im->pages[i]);
    }
    import_free(im);
}

/* --- the filling thread ----------------------------------------------------------------------- */

static struct sl_import *import_new(struct sl_engine *e, const uint8_t salt[32],
                                    const uint32_t *tokens, uint32_t n_pages)
{
    size_t n_tokens = (size_t)n_pages * e->info.page_size;
    struct sl_import *im = calloc(1, sizeof *im);
    if (!im)
        return NULL;
    im->e = e;
    im->n_pages = n_pages;
    im->keys = calloc(n_pages, sizeof *im->keys);
    im->tokens = calloc(n_tokens, sizeof *im->tokens);
    im->pages = calloc(n_pages, sizeof *im->pages);
    if (sl_engine_on_device(e))
        im->copy = malloc(e->kv.page_bytes);
    pthread_mutex_init(&im->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&im->answered, &attr);
    pthread_condattr_destroy(&attr);
    if (!im->keys || !im->tokens || !im->pages || (sl_engine_on_device(e) && !im->copy) ||
        !sl_prefix_keys(e->info.page_size, salt, tokens, n_pages, im->keys)) {
        import_free(im);
        return NULL;
    }
    memcpy(im->tokens, tokens, n_tokens * sizeof *tokens);
    return im;
}

static bool wait_for_answer(struct sl_import *im, uint32_t wait_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)wait_ms * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&im->lock);
    while (!im->ready && pthread_cond_timedwait(&im->answered, &im->lock, &until) == 0)
        continue;
    bool ready = im->ready;
    pthread_mutex_unlock(&im->lock);
    return ready;
}

enum sl_status sl_import_open(struct sl_engine *e, const uint8_t salt[32], const uint32_t *tokens,
                              uint32_t n_pages, uint32_t wait_ms, struct sl_import **out,
                              struct sl_err *err)
{
    struct sl_kv_layout layout;
    if (!n_pages || !sl_engine_kv_layout(e, &layout))
        return sl_fail(err, SL_UNSUPPORTED, "engine: no pages can be brought in");
    struct sl_import *im = import_new(e, salt, tokens, n_pages);
    if (!im)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory to import %u pages", n_pages);
    sl_engine_tell(e, CMD_IMPORT_OPEN, im);
    if (!wait_for_answer(im, wait_ms)) {
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

uint32_t sl_import_reserve(struct sl_import *im, uint32_t wait_ms)
{
    pthread_mutex_lock(&im->lock);
    im->wants_pages = true;
    im->ready = false;
    pthread_mutex_unlock(&im->lock);
    sl_engine_tell(im->e, CMD_IMPORT_OPEN, im);
    return im->first + (wait_for_answer(im, wait_ms) ? im->n_reserved : 0);
}

const uint8_t (*sl_import_keys(const struct sl_import *im))[32]
{
    return (const uint8_t(*)[32])im->keys;
}

/* The row that was filled last, to the device. */
static void send_row(struct sl_import *im)
{
    struct sl_backend *b = im->e->backend;
    struct sl_err err;
    if (im->to && b->ops->page_in(b, im->to, im->copy, im->e->kv.page_bytes, &err))
        im->failed = true;
    im->to = NULL;
}

void *sl_import_row(struct sl_import *im, uint32_t page, uint32_t layer)
{
    sl_assert(page >= im->first && page - im->first < im->n_reserved);
    void *row = sl_engine_kv_row(im->e, im->pages[page - im->first], layer);
    if (!im->copy)
        return row;
    send_row(im);
    im->to = row;
    return im->copy;
}

void sl_import_close(struct sl_import *im, uint32_t n_complete)
{
    if (im->copy)
        send_row(im);
    im->n_complete = im->failed ? 0 : n_complete;
    sl_engine_tell(im->e, CMD_IMPORT_CLOSE, im);
}
