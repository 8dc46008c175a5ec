/* KV pages from and to other workers: what a worker announces, serves and fetches. */
#include "worker_kv.h"
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/queue.h>
#include <sluice/base/time.h>

#include <stdio.h>
#include <string.h>

#define GRACE_MS 500 /* SUBMIT and reader come by different links */

struct sl_bulk_part worker_kv_bulk_part(const struct sl_kv_part *p)
{
    return (struct sl_bulk_part){p->layer_first, p->n_layers, p->head_first, p->n_heads};
}

/* ---- opening ---- */

static uint64_t hash_layout(const struct sl_bulk_layout *l)
{
    const uint64_t parts[] = {l->class_hash, l->page_size, l->n_layers, l->n_heads, l->head_bytes};
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

static bool serves(const struct sl_worker_config *cfg)
{
    return !cfg->role || strcmp(cfg->role, "decode") != 0;
}

static uint32_t map(void *ctx, const char *address, struct sl_bulk_rank *out)
{
    struct worker *w = ctx;
    struct sl_kv_part parts[SL_LIMIT_ranks];
    uint32_t n = sl_engine_kv_parts(w->engine, parts);
    for (uint32_t r = 0; r < n; r++) {
        out[r] = (struct sl_bulk_rank){.part = worker_kv_bulk_part(&parts[r])};
        if (r)
            sl_engine_kv_address(w->engine, r, out[r].address);
        else
            snprintf(out[r].address, sizeof out[r].address, "%s", address);
        if (!out[r].address[0])
            return 0; /* it is not up, or did not say yet */
    }
    return n;
}

enum sl_status worker_kv_serve(struct worker *w, uint32_t via, const char *host, bool is_first,
                               struct sl_err *err)
{
    struct worker_kv *k = &w->kv;
    struct sl_bulk_server_config cfg = {.via = via,
                                        .run_dir = w->cfg->run_dir ? w->cfg->run_dir : "/tmp",
                                        .host = host,
                                        .layout = k->bulk,
                                        .grace_ms = is_first ? GRACE_MS : SL_LIMIT_bulk_grace_ms,
                                        .ops = &tickets_ops};
    if (!k->tickets)
        k->tickets = tickets_open(is_first ? map : NULL, w);
    if (!k->tickets)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory for tickets");
    cfg.ctx = k->tickets;
    memcpy(cfg.key, k->key, sizeof cfg.key);
    enum sl_status s = sl_bulk_server_open(&cfg, &k->server, err);
    if (!s)
        tickets_serve_at(k->tickets, sl_bulk_server_address(k->server));
    return s;
}

void worker_kv_charter(struct worker *w, struct kv_charter *out)
{
    uint32_t via;
    char room[64];
    *out = (struct kv_charter){0};
    if (!is_wanted(w->cfg, &via) || worker_is_follower(w))
        return;
    for (size_t i = 0; i < sizeof w->kv.key; i += 8) {
        uint64_t x = sl_entropy_u64();
        memcpy(w->kv.key + i, &x, 8);
    }
    const char *host = host_for_tcp(w->cfg, room);
    out->via = serves(w->cfg) ? via : 0;
    snprintf(out->host, sizeof out->host, "%s", host ? host : "");
    memcpy(out->key, w->kv.key, sizeof out->key);
}

/* What pages look like; false when they stay where they are. */
bool worker_kv_shape(struct worker *w)
{
    struct worker_kv *k = &w->kv;
    struct sl_kv_layout l;
    if (!sl_engine_kv_layout(w->engine, &l))
        return false;
    k->bulk = (struct sl_bulk_layout){
        .class_hash = sl_hash64(w->info.class_name, strlen(w->info.class_name), 0),
        .page_size = l.page_size,
        .n_layers = l.n_layers,
        .n_heads = l.n_heads,
        .head_bytes = l.head_bytes};
    return (uint64_t)l.head_bytes * l.n_heads <= SL_LIMIT_bulk_row_bytes &&
           l.n_layers <= SL_LIMIT_model_layers;
}

enum sl_status worker_kv_open(struct worker *w, struct sl_err *err)
{
    struct worker_kv *k = &w->kv;
    uint32_t via;
    char host[64];
    if (worker_is_follower(w))
        return follower_kv_open(w, err);
    if (!is_wanted(w->cfg, &via) || !worker_kv_shape(w))
        return SL_OK;
    k->fetched = sl_queue_open(SL_LIMIT_bulk_connections);
    if (!k->fetched)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory to fetch pages");
    k->layout_hash = hash_layout(&k->bulk);
    return serves(w->cfg) ? worker_kv_serve(w, via, host_for_tcp(w->cfg, host), true, err) : SL_OK;
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
    struct sl_kv_figures others; /* of the other ranks */
    if (w->kv.server)
        sl_bulk_server_stats(w->kv.server, &s);
    sl_engine_kv_figures(w->engine, &others);
    out->waiting += w->kv.n_fetches;
    out->kv_pages_sent = s.n_pages;
    out->kv_bytes_sent = s.n_bytes + others.bytes_sent;
    out->kv_pages_received = w->kv.n_pages_received;
    out->kv_bad = w->kv.n_bad + others.n_bad;
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
    enum sl_status s = sl_export_open(w->engine, q, &ticket, sizeof ticket, &x, err);
    if (s == SL_OK)
        tickets_add(k->tickets, ticket, x, sl_now_ns() + SL_LIMIT_bulk_ticket_ms * SL_MS_NS);
    return s;
}

void worker_kv_tick(struct worker *w, uint64_t now)
{
    if (w->kv.tickets)
        tickets_expire(w->kv.tickets, now);
}

/* ---- closing ---- */

void worker_kv_close(struct worker *w)
{
    struct worker_kv *k = &w->kv;
    if (worker_is_follower(w))
        follower_kv_close(w);
    else
        worker_fetches_end(w);
    if (k->fetched)
        sl_queue_close(k->fetched);
    sl_bulk_server_close(k->server);
    tickets_close(k->tickets);
    *k = (struct worker_kv){0};
}
