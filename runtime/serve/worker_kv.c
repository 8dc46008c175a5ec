/* KV pages from and to other workers: what a worker announces, serves and fetches. */
#include "worker_kv.h"
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/queue.h>
#include <sluice/base/time.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS 2000 /* the engine's, about pages to be filled: it may be in a step */

/* A request held back while its pages come. */
struct fetch {
    struct worker *w;
    struct request *r;
    struct sl_msg_submit m; /* arrays and address point behind the struct */
    pthread_t thread;
    atomic_bool stop;
    struct sl_import *im;
    bool reserved;     /* with the first row */
    uint32_t end;      /* of the pages that found room */
    uint8_t *spare;    /* where the rows of the others go */
    uint32_t n_wanted; /* pages that were not here before */
    struct sl_bulk_fetched got;
    struct sl_err err;
};

/* ---- opening ---- */

static uint64_t hash_layout(const struct sl_bulk_layout *l)
{
    const uint64_t parts[] = {l->class_hash, l->page_size, l->n_layers, l->row_bytes};
    return sl_hash64(parts, sizeof parts, 0) | 1; /* 0 would mean none */
}

static bool is_wanted(const struct sl_worker_config *cfg, uint32_t *via)
{
    const char *how = cfg->kv_transfer ? cfg->kv_transfer : "auto";
    *via = SL_BULK_SHM | SL_BULK_TCP;
    if (!strcmp(how, "shm"))
        *via = SL_BULK_SHM;
    if (!strcmp(how, "tcp"))
        *via = SL_BULK_TCP;
    if (!strcmp(how, "auto"))
        return !cfg->supervisor_pid; /* `serve` has no workers of one part of the work */
    return strcmp(how, "off") != 0;
}

/* The address that faces the first router on TCP. Without one, workers are on this machine. */
static const char *host_for_tcp(const struct sl_worker_config *cfg, char room[64])
{
    if (cfg->kv_host)
        return cfg->kv_host;
    for (uint32_t i = 0; i < cfg->n_connect; i++)
        if (sl_bulk_local_address(cfg->connect[i], room, NULL) == SL_OK)
            return room;
    return NULL;
}

static enum sl_status open_server(struct worker *w, uint32_t via, struct sl_err *err)
{
    struct worker_kv *k = &w->kv;
    char host[64];
    struct sl_bulk_server_config cfg = {.via = via,
                                        .run_dir = w->cfg->run_dir ? w->cfg->run_dir : "/tmp",
                                        .layout = k->bulk,
                                        .ops = &tickets_ops};
    k->tickets = tickets_open();
    if (!k->tickets)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory for tickets");
    cfg.host = host_for_tcp(w->cfg, host);
    cfg.ctx = k->tickets;
    memcpy(cfg.key, k->key, sizeof cfg.key);
    return sl_bulk_server_open(&cfg, &k->server, err);
}

enum sl_status worker_kv_open(struct worker *w, struct sl_err *err)
{
    struct worker_kv *k = &w->kv;
    uint32_t via;
    if (!is_wanted(w->cfg, &via) || !sl_engine_kv_layout(w->engine, &k->layout))
        return SL_OK;
    k->bulk = (struct sl_bulk_layout){
        .class_hash = sl_hash64(w->info.class_name, strlen(w->info.class_name), 0),
        .page_size = k->layout.page_size,
        .n_layers = k->layout.n_layers,
        .row_bytes = k->layout.row_bytes};
    if (k->bulk.row_bytes > SL_LIMIT_bulk_row_bytes || k->bulk.n_layers > SL_LIMIT_model_layers)
        return SL_OK;
    for (size_t i = 0; i < sizeof k->key; i += 8) {
        uint64_t x = sl_entropy_u64();
        memcpy(k->key + i, &x, 8);
    }
    k->fetched = sl_queue_open(SL_LIMIT_bulk_connections);
    if (!k->fetched)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory to fetch pages");
    k->layout_hash = hash_layout(&k->bulk);
    bool serves = !w->cfg->role || strcmp(w->cfg->role, "decode") != 0;
    return serves ? open_server(w, via, err) : SL_OK;
}

/* ---- announcing ---- */

void worker_kv_hello(const struct worker *w, struct sl_msg_hello *out)
{
    out->kv_layout = w->kv.layout_hash;
    if (!w->kv.server)
        return;
    out->kv_address = sl_str_of(sl_bulk_server_address(w->kv.server));
    memcpy(out->kv_key, w->kv.key, sizeof out->kv_key);
}

void worker_kv_load(struct worker *w, struct sl_msg_load *out)
{
    struct sl_bulk_stats s = {0};
    if (w->kv.server)
        sl_bulk_server_stats(w->kv.server, &s);
    out->waiting += w->kv.n_fetches;
    out->kv_pages_sent = s.n_pages;
    out->kv_bytes_sent = s.n_bytes;
    out->kv_pages_received = w->kv.n_pages_received;
    out->kv_bad = w->kv.n_bad;
    out->kv_fallbacks = w->kv.n_fallbacks;
}

int worker_kv_fd(const struct worker *w)
{
    return w->kv.fetched ? sl_queue_fd(w->kv.fetched) : -1;
}

/* ---- serving ---- */

enum sl_status worker_kv_prefill(struct worker *w, const struct sl_engine_request *q,
                                 uint64_t ticket, struct sl_err *err)
{
    struct worker_kv *k = &w->kv;
    struct sl_export *x;
    if (!k->server)
        return sl_fail(err, SL_UNSUPPORTED, "this worker serves no pages");
    if (tickets_full(k->tickets)) /* only this thread adds */
        return sl_fail(err, SL_QUEUE_FULL, "too many prompts wait to be fetched");
    enum sl_status s = sl_export_open(w->engine, q, &x, err);
    if (s == SL_OK)
        tickets_add(k->tickets, ticket, x, sl_now_ns() + SL_LIMIT_bulk_ticket_ms * SL_MS_NS);
    return s;
}

void worker_kv_tick(struct worker *w, uint64_t now)
{
    if (w->kv.tickets)
        tickets_expire(w->kv.tickets, now);
}

/* ---- fetching ---- */

/* Pages are taken from the cache when rows begin to come, not while the source has yet to compute.
 */
static void *row_at(void *ctx, uint32_t page, uint32_t layer)
{
    struct fetch *f = ctx;
    if (!f->reserved)
        f->end = sl_import_reserve(f->im, ANSWER_MS);
    f->reserved = true;
    return page < f->end ? sl_import_row(f->im, page, layer) : f->spare;
}

static enum sl_status bring_in(struct fetch *f, struct sl_err *err)
{
    const struct worker_kv *k = &f->w->kv;
    struct sl_bulk_fetch ask = {.layout = k->bulk,
                                .keys = sl_import_keys(f->im),
                                .row_at = row_at,
                                .ctx = f,
                                .stop = &f->stop};
    char address[SL_BULK_ADDRESS_MAX];
    uint32_t n_pages = (f->m.n_tokens - 1) / k->layout.page_size;
    memcpy(address, f->m.kv_address.data, f->m.kv_address.len); /* shorter: checked by the bus */
    address[f->m.kv_address.len] = '\0';
    memcpy(ask.key, f->m.kv_key, sizeof ask.key);
    ask.address = address;
    ask.ask = (struct sl_bulk_ask){
        .ticket = f->m.kv_ticket, .first = sl_import_first(f->im), .n_pages = n_pages};
    memcpy(ask.ask.last_key, ask.keys[n_pages - 1], 32);
    f->spare = malloc(k->bulk.row_bytes);
    if (!f->spare)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory to fetch pages");
    enum sl_status s = sl_bulk_fetch(&ask, &f->got, err);
    uint32_t room = f->end > ask.ask.first ? f->end - ask.ask.first : 0;
    if (f->got.n_complete > room)
        f->got.n_complete = room;
    free(f->spare);
    return s;
}

static void *fetch_thread(void *arg)
{
    struct fetch *f = arg;
    uint32_t n_pages = (f->m.n_tokens - 1) / f->w->kv.layout.page_size;
    f->n_wanted = n_pages;
    enum sl_status s =
        sl_import_open(f->w->engine, f->m.salt, f->m.tokens, n_pages, ANSWER_MS, &f->im, &f->err);
    if (s == SL_OK) {
        f->n_wanted = n_pages - sl_import_first(f->im);
        if (f->n_wanted)
            s = bring_in(f, &f->err);
        sl_import_close(f->im, f->got.n_complete);
    }
    if (s == SL_OK)
        f->err.status = SL_OK;
    bool pushed = sl_queue_push(f->w->kv.fetched, f);
    sl_assert(pushed); /* there are no more fetches than places */
    return NULL;
}

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

bool worker_kv_fetch(struct worker *w, struct request *r, const struct sl_msg_submit *m)
{
    struct worker_kv *k = &w->kv;
    if (!m->kv_address.len || m->no_prefix_cache)
        return false;
    if (!k->layout_hash || m->n_tokens <= k->layout.page_size ||
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
    if (pthread_create(&f->thread, NULL, fetch_thread, f)) {
        r->fetch = NULL;
        free(f);
        k->n_fallbacks++;
        return false;
    }
    k->n_fetches++;
    return true;
}

void worker_kv_stop(struct request *r)
{
    atomic_store(&r->fetch->stop, true);
}

static void end_fetch(struct worker *w, struct fetch *f)
{
    struct worker_kv *k = &w->kv;
    pthread_join(f->thread, NULL);
    k->n_fetches--;
    k->n_pages_received += f->got.n_complete;
    k->n_bad += f->got.n_bad;
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
        if (f->got.n_complete < f->n_wanted && !atomic_load(&f->stop)) {
            k->n_fallbacks++;
            sl_log(SL_LOG_INFO, "%u of %u pages came: %s", f->got.n_complete, f->n_wanted,
                   f->err.status ? f->err.msg : "no room for more");
        }
        worker_fetched(w, f->r, &f->m);
        free(f);
    }
}

void worker_kv_close(struct worker *w)
{
    struct worker_kv *k = &w->kv;
    worker_fetches_stop(w);
    while (k->n_fetches) {
        sl_queue_wait(k->fetched, 100);
        struct fetch *f = sl_queue_pop(k->fetched);
        if (!f)
            continue;
        end_fetch(w, f);
        free(f);
    }
    if (k->fetched)
        sl_queue_close(k->fetched);
    sl_bulk_server_close(k->server);
    tickets_close(k->tickets);
    *k = (struct worker_kv){0};
}
