/* A worker's KV events: from the engine to whoever listens.
 *
 * Routers on this machine listen at an ipc endpoint of the worker's own, others at the endpoint
 * that was asked for; HELLO tells each which. Somebody who asks for batches that are gone gets
 * everything anew, once per turn of the replay buffer: as long as that holds a "cleared" with all
 * that followed, it is enough for everybody. */
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/control/kv_events.h>
#include <sluice/transport/kv_events.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EVENTS_AT_ONCE  512
#define BATCHES_AT_ONCE 16 /* then the bus gets its turn */

struct worker_events {
    struct sl_kv_pub *pub;
    struct sl_buf folder; /* own: "ipc://FOLDER/bus", of which only the folder is used */
    char local[256], local_replay[256];
    bool is_local, is_asked; /* endpoints there are: local ones come first */
    bool retelling;          /* a "cleared" is on its way */
    bool has_cleared;
    uint64_t cleared_seq;
    struct sl_kv_event events[EVENTS_AT_ONCE];
    uint8_t keys[EVENTS_AT_ONCE][32];
    struct sl_kv_wire_event wire[EVENTS_AT_ONCE];
    uint32_t *tokens; /* [EVENTS_AT_ONCE, page_size] */
};

/* --- opening ---------------------------------------------------------------------------------- */

static bool is_ipc(const char *endpoint)
{
    return !strncmp(endpoint, "ipc://", 6);
}

static bool is_near(const char *endpoint)
{
    return is_ipc(endpoint) || !strncmp(endpoint, "tcp://127.", 10) ||
           !strncmp(endpoint, "tcp://[::1]", 11) || !strncmp(endpoint, "tcp://localhost:", 16);
}

static bool any_near(const struct sl_worker_config *cfg)
{
    for (uint32_t i = 0; i < cfg->n_connect; i++)
        if (is_near(cfg->connect[i]))
            return true;
    return false;
}

/* Endpoints in the supervisor's folder, which it removes, or in one of our own. */
static enum sl_status name_local(struct worker *w, struct worker_events *k, struct sl_err *err)
{
    const char *in = w->cfg->connect[0];
    if (!w->cfg->supervisor_pid || !is_ipc(in)) {
        enum sl_status s =
            sl_bus_ipc_make(w->cfg->run_dir ? w->cfg->run_dir : "/tmp", &k->folder, err);
        if (s != SL_OK)
            return s;
        in = k->folder.data;
    }
    int len = (int)(strrchr(in, '/') - in);
    snprintf(k->local, sizeof k->local, "%.*s/kv-%d", len, in, (int)getpid());
    snprintf(k->local_replay, sizeof k->local_replay, "%.*s/kvr-%d", len, in, (int)getpid());
    return SL_OK;
}

static enum sl_status open_pub(struct worker *w, struct worker_events *k, struct sl_err *err)
{
    const struct sl_worker_config *cfg = w->cfg;
    const char *endpoints[2], *replay[2];
    uint32_t n = 0, n_replay = 0;
    enum sl_status s = SL_OK;
    if ((k->is_local = any_near(cfg))) {
        s = name_local(w, k, err);
        endpoints[n++] = k->local;
        replay[n_replay++] = k->local_replay;
    }
    if ((k->is_asked = cfg->kv_events_endpoint != NULL))
        endpoints[n++] = cfg->kv_events_endpoint;
    if (cfg->kv_events_replay_endpoint)
        replay[n_replay++] = cfg->kv_events_replay_endpoint;
    struct sl_kv_pub_config pub = {.endpoints = endpoints,
                                   .n_endpoints = n,
                                   .replay_endpoints = replay,
                                   .n_replay_endpoints = n_replay,
                                   .topic = cfg->kv_events_topic,
                                   .format = cfg->kv_events_array ? SL_KV_VLLM_ARRAY : SL_KV_VLLM,
                                   .medium = strcmp(w->info.backend, "cuda") ? "CPU" : "GPU",
                                   .curve_dir = cfg->curve_dir};
    return s == SL_OK ? sl_kv_pub_open(&pub, &k->pub, err) : s;
}

enum sl_status worker_events_open(struct worker *w, struct sl_err *err)
{
    const struct sl_worker_config *cfg = w->cfg;
    bool asked = cfg->kv_events_endpoint || cfg->kv_events_replay_endpoint;
    if (!cfg->engine.kv_events || (!asked && !any_near(cfg)))
        return SL_OK;
    struct worker_events *k = w->kv_events = calloc(1, sizeof *k);
    if (k)
        k->tokens = calloc((size_t)EVENTS_AT_ONCE * w->info.page_size, sizeof *k->tokens);
    if (!k || !k->tokens)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory for KV events");
    enum sl_status s = open_pub(w, k, err);
    if (s == SL_OK || asked)
        return s;
    sl_log(SL_LOG_WARN, "no KV events for routers: %s", err->msg);
    worker_events_close(w);
    return SL_OK;
}

void worker_events_close(struct worker *w)
{
    struct worker_events *k = w->kv_events;
    if (!k)
        return;
    sl_kv_pub_close(k->pub);
    if (k->folder.len)
        sl_bus_ipc_remove(k->folder.data);
    sl_buf_free(&k->folder);
    free(k->tokens);
    free(k);
    w->kv_events = NULL;
}

int worker_events_fd(const struct worker *w)
{
    return w->kv_events ? sl_kv_pub_fd(w->kv_events->pub) : -1; /* poll skips -1 */
}

static struct sl_str endpoint_or_none(const char *endpoint)
{
    bool wildcard = endpoint && !strncmp(endpoint, "tcp://0.0.0.0:", 14);
    return sl_str_of(endpoint && !wildcard ? endpoint : "");
}

void worker_events_hello(const struct worker *w, uint32_t link, struct sl_msg_hello *h)
{
    const struct worker_events *k = w->kv_events;
    if (!k)
        return;
    bool near = is_near(w->cfg->connect[link]);
    if (!near && !k->is_asked)
        return;
    uint32_t at = k->is_local && !near;
    h->events_endpoint = endpoint_or_none(sl_kv_pub_endpoint(k->pub, at));
    h->events_replay = endpoint_or_none(sl_kv_pub_replay_endpoint(k->pub, at));
    if (!is_ipc(h->events_endpoint.data))
        h->events_key = sl_str_of(sl_kv_pub_key(k->pub));
    h->events_topic = sl_str_of(w->cfg->kv_events_topic ? w->cfg->kv_events_topic : "");
}

uint64_t worker_events_batches(const struct worker *w)
{
    return w->kv_events ? sl_kv_pub_next(w->kv_events->pub) : 0;
}

/* --- publishing ------------------------------------------------------------------------------- */

/* Event i continues the run that ends with event i - 1. */
static bool continues(const struct worker_events *k, uint32_t i)
{
    const struct sl_kv_event *a = &k->events[i - 1], *b = &k->events[i];
    if (a->kind != b->kind)
        return false;
    return b->kind == SL_KV_REMOVED ||
           (b->kind == SL_KV_STORED && b->has_parent && !memcmp(b->parent, a->key, 32));
}

/* Runs of events become events of several pages. */
static uint32_t to_wire(struct worker_events *k, uint32_t n, uint32_t page_size)
{
    static const enum sl_kv_wire_kind kinds[] = {[SL_KV_STORED] = SL_KV_WIRE_STORED,
                                                 [SL_KV_REMOVED] = SL_KV_WIRE_REMOVED,
                                                 [SL_KV_CLEARED] = SL_KV_WIRE_CLEARED};
    uint32_t n_wire = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_kv_event *e = &k->events[i];
        memcpy(k->keys[i], e->key, 32);
        if (i && continues(k, i)) {
            k->wire[n_wire - 1].n_keys++;
            continue;
        }
        struct sl_kv_wire_event *to = &k->wire[n_wire++];
        *to = (struct sl_kv_wire_event){.kind = kinds[e->kind],
                                        .keys = (const uint8_t(*)[32]) & k->keys[i],
                                        .n_keys = e->kind != SL_KV_CLEARED,
                                        .has_parent = e->has_parent};
        if (e->kind != SL_KV_STORED)
            continue;
        memcpy(to->parent, e->parent, 32);
        to->tokens = e->tokens;
        to->page_size = page_size;
    }
    return n_wire;
}

static void note_cleared(struct worker_events *k, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (k->events[i].kind == SL_KV_CLEARED) {
            k->has_cleared = true;
            k->retelling = false;
            k->cleared_seq = sl_kv_pub_next(k->pub);
        }
}

/* False when there was nothing. */
static bool publish(struct worker *w)
{
    struct worker_events *k = w->kv_events;
    struct sl_err err;
    uint32_t n = sl_engine_take_kv_events(w->engine, k->events, k->tokens, EVENTS_AT_ONCE);
    if (!n)
        return false;
    note_cleared(k, n);
    struct sl_kv_batch b = {.unix_seconds = (double)sl_unix_ns() / 1e9, .events = k->wire};
    b.n_events = to_wire(k, n, w->info.page_size);
    if (sl_kv_pub_send(k->pub, &b, &err))
        sl_log(SL_LOG_WARN, "KV events not published: %s", err.msg);
    return true;
}

void worker_events_run(struct worker *w)
{
    struct worker_events *k = w->kv_events;
    if (!k)
        return;
    for (uint32_t i = 0; i < BATCHES_AT_ONCE && publish(w); i++)
        ;
    bool gone = sl_kv_pub_serve(k->pub);
    bool suffices = k->has_cleared && k->cleared_seq >= sl_kv_pub_oldest(k->pub);
    if (!gone || suffices || k->retelling)
        return;
    k->retelling = true;
    sl_engine_retell_kv(w->engine);
}
