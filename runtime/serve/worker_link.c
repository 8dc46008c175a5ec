/* A worker's links: greeting routers, hearing them, heartbeats, metadata.
 *
 * HELLO goes out once per connection and again whenever the router asks or a message was lost; all
 * requests of the link are cancelled before, since the router will send them anew (or elsewhere)
 * under a higher epoch. */
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define LOAD_INTERVAL_MS 100
#define GREET_PAUSE_MS   20   /* between HELLOs: a link that loses much must not live on them */
#define LINK_SILENCE_MS  2000 /* routers ping ten times a second */
#define RECEIVED_AT_ONCE 1024 /* then the engine's steps get their turn */

/* 0 means unknown, which a short step is not. */
static uint64_t round_up_ms(uint64_t ns)
{
    return (ns + SL_MS_NS - 1) / SL_MS_NS;
}

void worker_load(struct worker *w, struct sl_msg_load *out, uint64_t now)
{
    struct sl_engine_stats s;
    sl_engine_stats(w->engine, &s);
    uint64_t since = s.last_progress_ns > w->busy_since_ns ? s.last_progress_ns : w->busy_since_ns;
    bool waits = w->n_requests > 0 && now > since;
    *out = (struct sl_msg_load){.running = s.sched.running,
                                .waiting = s.sched.waiting,
                                .pages_free = s.sched.pages_free,
                                .pages_total = s.sched.pages_total,
                                .steps = s.sched.n_steps,
                                .prefill_tokens = s.sched.n_prefill_tokens,
                                .decode_tokens = s.sched.n_decode_tokens,
                                .preempted = s.sched.n_preempted,
                                .prefix_queries = s.sched.prefix_queries,
                                .prefix_hits = s.sched.prefix_hits,
                                .last_step_age_ms = waits ? (now - since) / SL_MS_NS : 0,
                                .step_expected_ms = round_up_ms(s.step_expected_ns),
                                .op_calls = s.n_op_calls,
                                .busy_ns = s.step_ns_sum,
                                .pending_tokens = s.sched.pending_tokens,
                                .kv_batches = worker_events_batches(w),
                                .reforming = w->reforming};
    worker_kv_load(w, out);
}

/* ---- out ---- */

static struct sl_str or_empty(const char *z, const char *def)
{
    return sl_str_of(z ? z : def);
}

static void say_hello(struct worker *w, uint32_t i, uint64_t now)
{
    const struct sl_engine_info *e = &w->info;
    struct sl_msg m = {.kind = SL_MSG_HELLO};
    struct sl_engine_group g;
    sl_engine_group(w->engine, &g);
    struct sl_err err;
    m.hello = (struct sl_msg_hello){.version = SL_BUS_VERSION,
                                    .pid = (uint32_t)getpid(),
                                    .rank = 0,
                                    .tp = g.tp,
                                    .pp = g.pp,
                                    .threads = e->n_threads,
                                    .max_seqs = e->max_seqs,
                                    .max_len = e->max_len,
                                    .max_batch_tokens = e->max_batch_tokens,
                                    .n_vocab = e->n_vocab,
                                    .page_size = e->page_size,
                                    .queue_max = e->queue_max,
                                    .weight_bytes = e->weight_bytes,
                                    .meta_bytes = w->meta.len,
                                    .instance = w->instance,
                                    .greeting = ++w->links[i].n_greetings,
                                    .model = sl_str_of(w->model_name),
                                    .site = or_empty(w->cfg->site, ""),
                                    .role = or_empty(w->cfg->role, "both"),
                                    .isa = sl_str_of(e->isa),
                                    .backend = sl_str_of(e->backend),
                                    .class_name = sl_str_of(e->class_name)};
    memcpy(m.hello.meta_sha256, w->meta_sha256, sizeof m.hello.meta_sha256);
    worker_kv_hello(w, &m.hello);
    worker_load(w, &m.hello.load, now);
    worker_events_hello(w, i, &m.hello);
    enum sl_status s = sl_bus_send(w->bus, i, &m, &err);
    if (s == SL_INVALID)
        worker_stop(w, SL_CONFIG, &err); /* a name of ours that no router would take */
    if (s != SL_OK)
        return;
    w->links[i].state = LINK_UP;
    w->links[i].greeted_ns = now;
    w->links[i].heard_ns = now;
    w->next_ranks_ns = 0; /* this router has not heard of them */
}

static void send_loads(struct worker *w, uint64_t now)
{
    struct sl_msg m = {.kind = SL_MSG_LOAD};
    worker_load(w, &m.load, now);
    for (uint32_t i = 0; i < w->cfg->n_connect; i++)
        if (w->links[i].state == LINK_UP || w->links[i].state == LINK_SILENT)
            sl_bus_send(w->bus, i, &m, NULL); /* one of the next will arrive */
}

void worker_links_bye(struct worker *w)
{
    struct sl_msg m = {.kind = SL_MSG_BYE};
    for (uint32_t i = 0; i < w->cfg->n_connect; i++)
        if (w->links[i].state == LINK_UP || w->links[i].state == LINK_SILENT)
            sl_bus_send(w->bus, i, &m, NULL);
}

static void send_meta(struct worker *w, uint32_t link, const struct sl_msg_meta *ask)
{
    struct sl_msg m = {.kind = SL_MSG_META_CHUNK};
    if (memcmp(ask->sha256, w->meta_sha256, sizeof ask->sha256) != 0 || ask->offset > w->meta.len) {
        sl_log(SL_LOG_WARN, "router %u asks for metadata that is not ours", link);
        return;
    }
    size_t left = w->meta.len - (size_t)ask->offset;
    memcpy(m.meta.sha256, w->meta_sha256, sizeof m.meta.sha256);
    m.meta.offset = ask->offset;
    m.meta.bytes = (struct sl_str){w->meta.data + ask->offset,
                                   left < SL_BUS_META_CHUNK ? left : SL_BUS_META_CHUNK};
    if (sl_bus_send(w->bus, link, &m, NULL) != SL_OK)
        worker_link_broken(w, link);
}

/* ---- in ---- */

void worker_link_broken(struct worker *w, uint32_t link)
{
    worker_cancel_link(w, link);
    w->links[link].state = LINK_GREET;
}

/* Every router has said no: there is nothing to stay for. */
static void leave_if_unwanted(struct worker *w)
{
    for (uint32_t i = 0; i < w->cfg->n_connect; i++)
        if (w->links[i].state != LINK_REFUSED)
            return;
    worker_stop(w, w->links[0].refusal.status, &w->links[0].refusal);
}

static void on_welcome(struct worker *w, uint32_t link, const struct sl_msg_welcome *m)
{
    struct link *l = &w->links[link];
    if (m->status == SL_PEER) { /* the router does not know us: it is another one, or forgot */
        worker_link_broken(w, link);
        return;
    }
    if (m->status == SL_OK) {
        sl_log(SL_LOG_INFO, "registered with the router at %s", w->cfg->connect[link]);
        return;
    }
    sl_fail(&l->refusal, (enum sl_status)m->status, "router at %s refuses this worker: %.*s",
            w->cfg->connect[link], (int)m->message.len, m->message.data);
    sl_log(SL_LOG_ERROR, "%s", l->refusal.msg);
    worker_cancel_link(w, link);
    l->state = LINK_REFUSED;
    leave_if_unwanted(w);
}

static void dispatch(struct worker *w, uint32_t link, const struct sl_msg *m)
{
    switch (m->kind) {
    case SL_MSG_WELCOME:
        on_welcome(w, link, &m->welcome);
        break;
    case SL_MSG_SUBMIT:
        worker_submit(w, link, &m->submit);
        break;
    case SL_MSG_CANCEL:
        worker_cancel(w, link, &m->cancel);
        break;
    case SL_MSG_META_GET:
        send_meta(w, link, &m->meta);
        break;
    case SL_MSG_DRAIN:
        w->told = true;
        worker_drain(w, "a router's word");
        break;
    default:
        break; /* PING was heard, which is all it is for; a worker's own kinds are not for us */
    }
}

/* What the connection did meanwhile comes first: a message of a new router must not be taken for
 * one of the old. */
static void follow_connections(struct worker *w)
{
    for (uint32_t i = 0; i < w->cfg->n_connect; i++) {
        struct link *l = &w->links[i];
        uint64_t n = sl_bus_n_connects(w->bus, i);
        bool connected = sl_bus_connected(w->bus, i);
        if (n == l->n_connects && (connected || l->state == LINK_DOWN))
            continue;
        if (l->state == LINK_UP)
            sl_log(SL_LOG_WARN, "router at %s is lost", w->cfg->connect[i]);
        worker_cancel_link(w, i);
        l->n_connects = n;
        l->state = connected ? LINK_GREET : LINK_DOWN;
    }
}

static void hear(struct worker *w, uint32_t link, const struct sl_msg *m)
{
    struct link *l = &w->links[link];
    l->heard_ns = sl_now_ns();
    if (m->gap && l->state == LINK_UP) {
        sl_log(SL_LOG_WARN, "messages of the router at %s were lost", w->cfg->connect[link]);
        worker_link_broken(w, link);
    }
    if (l->state == LINK_SILENT)
        l->state = LINK_GREET; /* back again, and its requests are gone */
    if (l->state == LINK_UP || m->kind == SL_MSG_DRAIN)
        dispatch(w, link, m);
}

static void greet(struct worker *w)
{
    uint64_t now = sl_now_ns();
    for (uint32_t i = 0; i < w->cfg->n_connect && !w->draining && w->formed; i++)
        if (w->links[i].state == LINK_GREET &&
            now - w->links[i].greeted_ns >= GREET_PAUSE_MS * SL_MS_NS)
            say_hello(w, i, now);
}

void worker_links_receive(struct worker *w)
{
    struct sl_msg m;
    struct sl_err err;
    uint64_t link;
    for (uint32_t n = 0; n < RECEIVED_AT_ONCE && !w->stopping; n++) {
        enum sl_status s = sl_bus_recv(w->bus, &link, &m, &err);
        follow_connections(w);
        if (s != SL_OK)
            worker_stop(w, s, &err);
        if (s != SL_OK || m.kind == SL_MSG_NONE)
            break;
        hear(w, (uint32_t)link, &m);
    }
    greet(w);
}

void worker_links_tick(struct worker *w, uint64_t now)
{
    for (uint32_t i = 0; i < w->cfg->n_connect; i++) {
        struct link *l = &w->links[i];
        if (l->state != LINK_UP || now < l->heard_ns ||
            now - l->heard_ns < LINK_SILENCE_MS * SL_MS_NS)
            continue;
        sl_log(SL_LOG_WARN, "router at %s is silent for %" PRIu64 " ms", w->cfg->connect[i],
               (now - l->heard_ns) / SL_MS_NS);
        worker_cancel_link(w, i);
        l->state = LINK_SILENT;
        sl_bus_reconnect(w->bus, i);
    }
    greet(w);
    if (now < w->next_load_ns)
        return;
    send_loads(w, now);
    worker_ranks_say(w, now);
    w->next_load_ns = now + LOAD_INTERVAL_MS * SL_MS_NS;
}
