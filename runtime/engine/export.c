/* Pages on their way out: pinned by the engine's thread, read by others.
 *
 * The threads share, under the export's lock, how far the pages are: [0, n_final) are committed, of
 * [n_final, n_pinned) the step in flight has computed n_layers_done of the layers held here (where
 * the host computes; of a device it knows when the step is over). A pinned page that is full is
 * written by nobody, so its rows are read without the lock. An export has several owners (its job,
 * its reader, the other ranks); all let go on the engine's thread, the last one frees it. At a
 * follower rank 0's pins hold the pages, until this rank has said that its export is closed; a
 * step's pages become final there when rank 0 says that the step ended well. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/time.h>
#include <sluice/control/kv.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct sl_export_reader {
    struct sl_export *x;
    struct sl_kv_part part;
    uint16_t *n_sent;  /* [n_pages] rows handed out */
    uint32_t n_closed; /* pages handed out as final */
    uint8_t *row;      /* of a part of the heads held here; NULL: rows are read in place */
    void *copy;        /* of a row that a device has */
};

bool sl_engine_kv_layout(const struct sl_engine *e, struct sl_kv_layout *out)
{
    const struct sl_model_config *m = &e->model_cfg;
    if (!e->kv_dtype_row_bytes || !e->keeps_prefixes)
        return false;
    *out = (struct sl_kv_layout){.page_size = e->info.page_size,
                                 .n_layers = m->n_layers,
                                 .n_heads = m->n_kv_heads,
                                 .head_bytes = 2 * e->info.page_size * e->kv_dtype_row_bytes};
    return true;
}

uint32_t sl_engine_kv_parts(struct sl_engine *e, struct sl_kv_part *out)
{
    uint32_t tp = 1, pp = 1;
    if (e->group) {
        pthread_mutex_lock(&e->group->lock);
        tp = e->group->tp;
        pp = e->group->pp;
        pthread_mutex_unlock(&e->group->lock);
    }
    for (uint32_t r = 0; r < tp * pp; r++) {
        struct sl_shard s = sl_shard_of_rank(r, tp, pp);
        out[r] = sl_kv_part_of(e, &s);
    }
    return tp * pp;
}

struct sl_kv_part sl_engine_kv_part(struct sl_engine *e)
{
    struct sl_kv_part all[SL_LIMIT_ranks];
    sl_engine_kv_parts(e, all);
    return all[e->group ? e->group->rank : 0];
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
    free(x->t.note);
    free(x->keys);
    free(x->pages);
    free(x);
}

void sl_export_begin(struct sl_engine *e, struct sl_export *x)
{
    struct sl_kv_part part = sl_kv_part_of(e, &e->shard);
    sl_list_push_back(&e->exports, &x->t.link);
    if (memcmp(&part, &x->part, sizeof part) != 0) /* the group has shrunk meanwhile */
        sl_export_break(x, SL_PEER, true);
}

void sl_export_drop(struct sl_engine *e, struct sl_export *x)
{
    if (--x->n_owners)
        return;
    for (uint32_t i = 0; i < x->n_pinned && e->sched; i++)
        sl_sched_unpin(e->sched, x->pages[i]);
    sl_list_remove(&x->t.link);
    export_free(x);
}

void sl_export_closed(struct sl_engine *e, struct sl_export *x)
{
    for (uint32_t i = 0; i < e->n_step_exports && !e->sched; i++)
        if (e->step_exports[i] == x)
            e->step_exports[i] = NULL;
    if (!e->sched)
        sl_follow_ended(e, x->t.id, 0);
    sl_export_drop(e, x);
}

void sl_export_break(struct sl_export *x, enum sl_status why, bool for_good)
{
    pthread_mutex_lock(&x->lock);
    if (!x->ended)
        x->status = x->n_final == x->n_pages ? SL_OK : why;
    x->ended = true;
    x->broken |= for_good;
    pthread_cond_broadcast(&x->more);
    pthread_mutex_unlock(&x->lock);
}

bool sl_export_is_read(struct sl_export *x)
{
    pthread_mutex_lock(&x->lock);
    bool read = x->n_readers > 0;
    pthread_mutex_unlock(&x->lock);
    return read;
}

void sl_export_end(struct sl_engine *e, struct sl_export *x, enum sl_status status)
{
    sl_export_break(x, status ? status : SL_CANCELLED, false);
    sl_export_drop(e, x);
}

/* Of a sequence in a step: pages that were full before it are final. Under the lock. */
static void plan_final(struct sl_export *x, const struct sl_plan *plan, uint32_t s, uint32_t size)
{
    uint32_t was_full = plan->pos[plan->q_start[s]] / size;
    was_full = was_full < x->n_pinned ? was_full : x->n_pinned;
    if (was_full > x->n_final)
        x->n_final = was_full;
    x->n_layers_done = 0;
    pthread_cond_broadcast(&x->more);
}

/* Those that the step completes are to be: they are pinned. */
static void plan_one(struct sl_engine *e, const struct sl_plan *plan, uint32_t s,
                     struct sl_export *x)
{
    uint32_t size = e->info.page_size;
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
    plan_final(x, plan, s, size);
    pthread_mutex_unlock(&x->lock);
}

void sl_exports_plan(struct sl_engine *e, const struct sl_plan *plan)
{
    e->n_step_exports = e->n_wire_exports = 0;
    e->step_rows = plan->n_tok;
    for (uint32_t s = 0; s < plan->n_seq; s++) {
        const struct job *j = plan->user[s];
        struct sl_export *x = j->export;
        if (!x || x->broken) /* the pages it had are another sequence's */
            continue;
        plan_one(e, plan, s, x);
        e->step_exports[e->n_step_exports++] = x;
        if (x->t.id)
            e->wire_exports[e->n_wire_exports++] =
                (struct wire_export){.seq = s,
                                     .n_pinned = x->n_pinned,
                                     .id_low = (uint32_t)x->t.id,
                                     .id_high = (uint32_t)(x->t.id >> 32)};
    }
}

static void follow_one(struct sl_engine *e, const struct sl_plan *plan, const struct wire_export *w,
                       struct sl_export *x)
{
    const uint32_t *pages = plan->pages + plan->page_start[w->seq];
    pthread_mutex_lock(&x->lock);
    for (uint32_t i = x->n_pinned; i < w->n_pinned && i < x->n_pages; i++)
        x->pages[x->n_pinned++] = pages[i];
    plan_final(x, plan, w->seq, e->info.page_size);
    pthread_mutex_unlock(&x->lock);
}

void sl_exports_follow(struct sl_engine *e, const struct sl_plan *plan,
                       const struct wire_export *of, uint32_t n)
{
    e->n_step_exports = 0;
    e->step_rows = plan->n_tok;
    for (uint32_t i = 0; i < n; i++)
        for (struct sl_list *l = e->exports.next; l != &e->exports; l = l->next) {
            struct sl_export *x = SL_ENTRY(l, struct sl_export, t.link);
            if (x->t.id != (of[i].id_low | (uint64_t)of[i].id_high << 32) || x->broken)
                continue;
            follow_one(e, plan, &of[i], x);
            e->step_exports[e->n_step_exports++] = x;
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
        pthread_cond_broadcast(&x->more);
        pthread_mutex_unlock(&x->lock);
    }
}

void sl_exports_commit(struct sl_engine *e, enum sl_status status)
{
    for (uint32_t i = 0; i < e->n_step_exports; i++) {
        struct sl_export *x = e->step_exports[i];
        if (!x || x->broken)
            continue;
        pthread_mutex_lock(&x->lock);
        if (status && !x->ended) {
            x->ended = true;
            x->status = status;
        }
        if (!status)
            x->n_final = x->n_pinned;
        x->n_layers_done = 0;
        pthread_cond_broadcast(&x->more);
        pthread_mutex_unlock(&x->lock);
    }
    e->n_step_exports = 0;
}

/* --- the owner -------------------------------------------------------------------------------- */

static struct sl_export *export_new(struct sl_engine *e, uint32_t n_pages)
{
    struct sl_export *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->e = e;
    x->part = sl_engine_kv_part(e);
    x->n_pages = n_pages;
    x->n_owners = 2;
    sl_list_init(&x->t.link);
    x->keys = calloc(n_pages, sizeof *x->keys);
    x->pages = calloc(n_pages, sizeof *x->pages);
    pthread_mutex_init(&x->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&x->more, &attr);
    pthread_condattr_destroy(&attr);
    if (x->keys && x->pages)
        return x;
    export_free(x);
    return NULL;
}

struct sl_export *sl_export_follow(struct sl_engine *e, const struct wire_head *h,
                                   const struct wire_transfer *t)
{
    struct sl_export *x = export_new(e, h->n_pages);
    if (!x)
        return NULL;
    x->n_owners = 1;
    x->t.id = h->step;
    memcpy(x->keys, t->keys, (size_t)h->n_pages * sizeof *x->keys);
    sl_list_push_back(&e->exports, &x->t.link);
    return x;
}

static bool keep_note(struct sl_export *x, const void *note, uint32_t n)
{
    x->t.note = n ? malloc(n) : NULL;
    x->t.n_note = n;
    if (x->t.note)
        memcpy(x->t.note, note, n);
    return x->t.note || !n;
}

enum sl_status sl_export_open(struct sl_engine *e, const struct sl_engine_request *r,
                              const void *note, uint32_t n_note, struct sl_export **out,
                              struct sl_err *err)
{
    struct sl_kv_layout layout;
    struct sl_engine_request q = *r;
    if (!sl_engine_kv_layout(e, &layout) || n_note > SL_LIMIT_transfer_note_bytes)
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
    if (!keep_note(x, note, n_note) ||
        !sl_prefix_keys(layout.page_size, r->seq.salt, r->seq.tokens, n_pages, x->keys))
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

bool sl_export_is_lost(struct sl_export *x)
{
    pthread_mutex_lock(&x->lock);
    bool lost = x->broken;
    pthread_mutex_unlock(&x->lock);
    return lost;
}

const uint8_t *sl_export_key(const struct sl_export *x, uint32_t i)
{
    return x->keys[i];
}

/* --- a reader --------------------------------------------------------------------------------- */

void sl_export_read_end(struct sl_export_reader *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->x->lock);
    r->x->n_readers--;
    pthread_mutex_unlock(&r->x->lock);
    free(r->n_sent);
    free(r->row);
    free(r->copy);
    free(r);
}

enum sl_status sl_export_read(struct sl_export *x, const struct sl_kv_part *part, uint32_t first,
                              struct sl_export_reader **out, struct sl_err *err)
{
    struct sl_kv_layout l;
    if (!sl_kv_part_within(part, &x->part) || first > x->n_pages || !sl_engine_kv_layout(x->e, &l))
        return sl_fail(err, SL_INVALID, "engine: layers %u + %u, heads %u + %u are not held here",
                       part->layer_first, part->n_layers, part->head_first, part->n_heads);
    bool some = part->n_heads != x->part.n_heads;
    struct sl_export_reader *r = calloc(1, sizeof *r);
    if (r) {
        pthread_mutex_lock(&x->lock);
        x->n_readers++;
        pthread_mutex_unlock(&x->lock);
        *r = (struct sl_export_reader){.x = x, .part = *part, .n_closed = first};
        r->n_sent = calloc(x->n_pages, sizeof *r->n_sent);
        r->row = some ? malloc((size_t)part->n_heads * l.head_bytes) : NULL;
        r->copy = sl_engine_on_device(x->e) ? malloc(x->e->kv.page_bytes) : NULL;
    }
    bool ok = r && r->n_sent && (r->row || !some) && (r->copy || !sl_engine_on_device(x->e));
    if (!ok) {
        sl_export_read_end(r);
        return sl_fail(err, SL_NO_MEMORY, "engine: no memory to read %u pages", x->n_pages);
    }
    *out = r;
    return SL_OK;
}

/* Under the lock. Layers of the part that the step in flight has computed. */
static uint32_t part_layers_done(const struct sl_export_reader *r)
{
    uint32_t before = r->part.layer_first - r->x->part.layer_first, n = r->x->n_layers_done;
    n = n > before ? n - before : 0;
    return n < r->part.n_layers ? n : r->part.n_layers;
}

/* Under the lock. Final pages one by one, then the layers that the step in flight has computed. */
static bool next_unit(struct sl_export_reader *r, struct sl_export_unit *out)
{
    const struct sl_export *x = r->x;
    uint32_t i = r->n_closed, n_layers = r->part.n_layers;
    *out = (struct sl_export_unit){.kind = SL_EXPORT_WAIT};
    if (i == x->n_pages || x->broken || (x->ended && i >= x->n_final)) {
        *out = (struct sl_export_unit){.kind = SL_EXPORT_END,
                                       .status = i == x->n_pages ? SL_OK
                                                 : x->status     ? x->status
                                                                 : SL_PEER};
        return true;
    }
    if (i < x->n_final && r->n_sent[i] == n_layers) {
        *out = (struct sl_export_unit){.kind = SL_EXPORT_PAGE, .page = i};
        r->n_closed++;
        return true;
    }
    uint32_t best = UINT32_MAX, least = i < x->n_final ? n_layers : part_layers_done(r);
    uint32_t end = i < x->n_final ? i + 1 : x->n_pinned;
    for (; i < end; i++)
        if (r->n_sent[i] < least) {
            least = r->n_sent[i];
            best = i;
        }
    if (best == UINT32_MAX)
        return false;
    uint32_t layer = r->part.layer_first + r->n_sent[best];
    *out = (struct sl_export_unit){.kind = SL_EXPORT_ROW, .page = best, .layer = layer};
    out->row = sl_engine_kv_row(x->e, x->pages[best], layer - x->part.layer_first);
    r->n_sent[best]++;
    return true;
}

/* A device's row comes as a copy, outside the lock: nobody writes it. */
static bool copy_row(struct sl_export_reader *r, struct sl_export_unit *out)
{
    struct sl_backend *b = r->x->e->backend;
    struct sl_err err;
    enum sl_status s = b->ops->page_out(b, r->copy, out->row, r->x->e->kv.page_bytes, &err);
    out->row = r->copy;
    if (s)
        *out = (struct sl_export_unit){.kind = SL_EXPORT_END, .status = s};
    return s == SL_OK;
}

void sl_export_next(struct sl_export_reader *r, uint32_t wait_ms, struct sl_export_unit *out)
{
    struct sl_export *x = r->x;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + (uint64_t)wait_ms * SL_MS_NS;
    until.tv_sec += (time_t)(ns / SL_S_NS);
    until.tv_nsec = (long)(ns % SL_S_NS);
    pthread_mutex_lock(&x->lock);
    while (!next_unit(r, out) && pthread_cond_timedwait(&x->more, &x->lock, &until) == 0)
        continue;
    pthread_mutex_unlock(&x->lock);
    if (out->kind != SL_EXPORT_ROW || (r->copy && !copy_row(r, out)) || !r->row)
        return;
    sl_kv_slice(&x->e->kv.cfg, out->row, r->part.head_first - x->part.head_first, r->part.n_heads,
                r->row);
    out->row = r->row;
}
