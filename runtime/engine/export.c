/* Pages on their way out: pinned by the engine's thread, read by another.
 *
 * The two threads share, under the export's lock, how far the pages are: [0, n_final) are
 * committed, of [n_final, n_pinned) the step in flight has computed n_layers layers (where the host
 * computes; of a device it knows when the step is over). A pinned page that is full is written by
 * nobody, so its rows are read without the lock. An export has two owners, its job and its reader;
 * both let go on the engine's thread, the last one frees it. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/time.h>
#include <sluice/control/kv.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct sl_export {
    struct sl_engine *e;
    uint32_t n_pages, n_layers;
    uint32_t n_owners;
    uint8_t (*keys)[32]; /* [n_pages] */

    pthread_mutex_t lock;
    pthread_cond_t more;
    uint32_t *pages;   /* [n_pages], the first n_pinned set */
    uint32_t n_pinned; /* their pins are the export's until it is freed */
    uint32_t n_final, n_layers_done;
    bool ended;
    enum sl_status status;

    /* the reader's */
    void *copy;        /* of a row that a device has */
    uint16_t *n_sent;  /* [n_pages] rows handed out */
    uint32_t n_closed; /* pages handed out as final */
};

bool sl_engine_kv_layout(const struct sl_engine *e, struct sl_kv_layout *out)
{
    if (!e->kv.data || !e->keeps_prefixes || e->group)
        return false;
    *out = (struct sl_kv_layout){.page_size = e->kv.cfg.page_size,
                                 .n_layers = e->kv.cfg.n_layers,
                                 .row_bytes = (uint32_t)e->kv.page_bytes};
    return true;
}

void *sl_engine_kv_row(const struct sl_engine *e, uint32_t page, uint32_t layer)
{
    return sl_kv_page_at(&e->kv, layer, page);
}

/* --- the engine's thread ---------------------------------------------------------------------- */

static void export_free(struct sl_export *x)
{
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->more);
    free(x->keys);
    free(x->pages);
    free(x->n_sent);
    free(x->copy);
    free(x);
}

void sl_export_drop(struct sl_engine *e, struct sl_export *x)
{
    if (--x->n_owners)
        return;
    for (uint32_t i = 0; i < x->n_pinned; i++)
        sl_sched_unpin(e->sched, x->pages[i]);
    export_free(x);
}

void sl_export_end(struct sl_engine *e, struct sl_export *x, enum sl_status status)
{
    pthread_mutex_lock(&x->lock);
    if (!x->ended)
        x->status = x->n_final == x->n_pages ? SL_OK : status ? status : SL_CANCELLED;
    x->ended = true;
    pthread_cond_signal(&x->more);
    pthread_mutex_unlock(&x->lock);
    sl_export_drop(e, x);
}

/* Pages that were full before the step are final, those it completes are to be. */
static void plan_one(struct sl_engine *e, const struct sl_plan *plan, uint32_t s,
                     struct sl_export *x)
{
    uint32_t size = e->info.page_size, start = plan->pos[plan->q_start[s]];
    uint32_t full = (plan->pos[plan->q_start[s + 1] - 1] + 1) / size;
    const uint32_t *pages = plan->pages + plan->page_start[s];
    full = full < x->n_pages ? full : x->n_pages;
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = x->n_pinned; i < full && !x->ended; i++) {
        if (sl_sched_pin(e->sched, pages[i])) {
            x->pages[x->n_pinned++] = pages[i];
        } else {
            x->ended = true;
            x->status = SL_NO_MEMORY;
        }
    }
    uint32_t was_full = start / size < x->n_pinned ? start / size : x->n_pinned;
    if (was_full > x->n_final)
        x->n_final = was_full;
    x->n_layers_done = 0;
    pthread_cond_signal(&x->more);
    pthread_mutex_unlock(&x->lock);
}

void sl_exports_plan(struct sl_engine *e, const struct sl_plan *plan)
{
    e->n_step_exports = 0;
    e->step_rows = plan->n_tok;
    for (uint32_t s = 0; s < plan->n_seq; s++) {
        const struct job *j = plan->user[s];
        if (!j->export)
            continue;
        plan_one(e, plan, s, j->export);
        e->step_exports[e->n_step_exports++] = j->export;
    }
}

void sl_exports_layer(void *engine, uint32_t layer, uint32_t n_rows)
{
    struct sl_engine *e = engine;
    if (n_rows < e->step_rows)
        return;
    for (uint32_t i = 0; i < e->n_step_exports; i++) {
        struct sl_export *x = e->step_exports[i];
        pthread_mutex_lock(&x->lock);
        x->n_layers_done = layer + 1;
        pthread_cond_signal(&x->more);
        pthread_mutex_unlock(&x->lock);
    }
}

void sl_exports_commit(struct sl_engine *e, enum sl_status status)
{
    for (uint32_t i = 0; i < e->n_step_exports; i++) {
        struct sl_export *x = e->step_exports[i];
        pthread_mutex_lock(&x->lock);
        if (status && !x->ended) {
            x->ended = true;
            x->status = status;
        }
        if (!status)
            x->n_final = x->n_pinned;
        x->n_layers_done = 0;
        pthread_cond_signal(&x->more);
        pthread_mutex_unlock(&x->lock);
    }
    e->n_step_exports = 0;
}

/* --- the reader ------------------------------------------------------------------------------- */

static struct sl_export *export_new(struct sl_engine *e, uint32_t n_pages)
{
    struct sl_export *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->e = e;
    x->n_pages = n_pages;
    x->n_layers = e->kv.cfg.n_layers;
    x->n_owners = 2;
    x->keys = calloc(n_pages, sizeof *x->keys);
    x->pages = calloc(n_pages, sizeof *x->pages);
    x->n_sent = calloc(n_pages, sizeof *x->n_sent);
    if (sl_engine_on_device(e))
        x->copy = malloc(e->kv.page_bytes);
    pthread_mutex_init(&x->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&x->more, &attr);
    pthread_condattr_destroy(&attr);
    if (x->keys && x->pages && x->n_sent && (x->copy || !sl_engine_on_device(e)))
        return x;
    export_free(x);
    return NULL;
}

enum sl_status sl_export_open(struct sl_engine *e, const struct sl_engine_request *r,
                              struct sl_export **out, struct sl_err *err)
{
    struct sl_kv_layout layout;
    struct sl_engine_request q = *r;
    if (!sl_engine_kv_layout(e, &layout))
        return sl_fail(err, SL_UNSUPPORTED, "engine: its pages cannot leave");
    uint32_t n_pages = r->seq.n_tokens ? (r->seq.n_tokens - 1) / layout.page_size : 0;
    if (!n_pages || r->seq.no_prefix_cache)
        return sl_fail(err, SL_INVALID, "engine: %u tokens have no page to share", r->seq.n_tokens);
    struct sl_export *x = export_new(e, n_pages);
    if (!x)
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory to export %u pages", n_pages);
    /* One row more than the pages: the scheduler plans every sequence at least once, so that its
     * pages are seen even when the cache had them all. */
    q.seq.n_tokens = q.seq.n_prompt = n_pages * layout.page_size + 1;
    q.seq.max_new = 1;
    q.seq.prefill_only = true;
    q.export_to = x;
    enum sl_status s = SL_OK;
    if (!sl_prefix_keys(layout.page_size, r->seq.salt, r->seq.tokens, n_pages, x->keys))
        s = sl_fail(err, SL_NO_MEMORY, "engine: no memory for keys");
    if (s == SL_OK)
        s = sl_engine_submit(e, &q, err);
    if (s) {
        export_free(x);
        return s;
    }
    *out = x;
    return SL_OK;
}

void sl_export_close(struct sl_export *x)
{
    sl_engine_tell(x->e, CMD_EXPORT_CLOSE, x);
}

uint32_t sl_export_n_pages(const struct sl_export *x)
{
    return x->n_pages;
}

const uint8_t *sl_export_key(const struct sl_export *x, uint32_t i)
{
    return x->keys[i];
}

void sl_export_skip(struct sl_export *x, uint32_t first)
{
    for (uint32_t i = 0; i < first && i < x->n_pages; i++)
        x->n_sent[i] = (uint16_t)x->n_layers;
    x->n_closed = first < x->n_pages ? first : x->n_pages;
}

/* Under the lock. Final pages one by one, then the layers that the step in flight has computed. */
static bool next_unit(struct sl_export *x, struct sl_export_unit *out)
{
    uint32_t i = x->n_closed;
    *out = (struct sl_export_unit){.kind = SL_EXPORT_WAIT};
    if (i == x->n_pages || (x->ended && i >= x->n_final)) {
        *out = (struct sl_export_unit){.kind = SL_EXPORT_END,
                                       .status = i == x->n_pages ? SL_OK : x->status};
        return true;
    }
    if (i < x->n_final && x->n_sent[i] == x->n_layers) {
        *out = (struct sl_export_unit){.kind = SL_EXPORT_PAGE, .page = i};
        x->n_closed++;
        return true;
    }
    uint32_t best = UINT32_MAX, least = i < x->n_final ? x->n_layers : x->n_layers_done;
    uint32_t end = i < x->n_final ? i + 1 : x->n_pinned;
    for (; i < end; i++)
        if (x->n_sent[i] < least) {
            least = x->n_sent[i];
            best = i;
        }
    if (best == UINT32_MAX)
        return false;
    *out = (struct sl_export_unit){.kind = SL_EXPORT_ROW,
                                   .page = best,
                                   .layer = x->n_sent[best],
                                   .row = sl_engine_kv_row(x->e, x->pages[best], x->n_sent[best])};
    x->n_sent[best]++;
    return true;
}

/* A device's rows are handed out as copies, outside the lock: nobody writes them. */
static void copy_row(struct sl_export *x, struct sl_export_unit *out)
{
    struct sl_backend *b = x->e->backend;
    struct sl_err err;
    enum sl_status s = b->ops->page_out(b, x->copy, out->row, x->e->kv.page_bytes, &err);
    if (s)
        *out = (struct sl_export_unit){.kind = SL_EXPORT_END, .status = s};
    else
        out->row = x->copy;
}

void sl_export_next(struct sl_export *x, uint32_t wait_ms, struct sl_export_unit *out)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)wait_ms * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&x->lock);
    while (!next_unit(x, out) && pthread_cond_timedwait(&x->more, &x->lock, &until) == 0)
        continue;
    pthread_mutex_unlock(&x->lock);
    if (x->copy && out->kind == SL_EXPORT_ROW)
        copy_row(x, out);
}
