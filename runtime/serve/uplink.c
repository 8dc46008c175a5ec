/* The uplink's links: greeting the routers above, their requests, the tokens up. */
#include "node.h"
#include "submit.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/control/sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOAD_INTERVAL_MS 100
#define LINK_SILENCE_MS  2000
#define RELAY_BUCKETS    4096
#define PENDING_MEM_MAX  ((size_t)64 << 20)
#define PENDING_BYTES    ((size_t)1 << 20) /* then a STEP is sent before the round ends */
#define UNBOUNDED_MAX    65536u            /* of what HELLO and LOAD sum up */

enum up_state {
    UP_DOWN,    /* no connection */
    UP_GREET,   /* connected; HELLO is due once there is something to offer */
    UP_STANDS,  /* HELLO is out */
    UP_SILENT,  /* nothing heard for too long; its requests were cancelled */
    UP_REFUSED, /* the router above does not want this site */
    UP_LEAVING  /* told to finish and leave */
};

struct up_link {
    enum up_state state;
    uint64_t n_connects, heard_ns, n_greetings;
    struct sl_list relays;
    struct sl_arena mem; /* of `outs` */
    struct sl_msg_out *outs;
    uint32_t n_outs, outs_max;
};

/* A request from above, until its gen is gone. */
struct relay {
    struct sl_hash_node by_key; /* hash of (link, id) */
    struct sl_list of_link;
    struct uplink *up;
    struct gen *gen;
    uint64_t id;
    uint32_t epoch, link;
};

/* What the site offers: its workers of one class, summed up. */
struct offer {
    const struct peer *first; /* NULL: nothing */
    uint32_t n_workers, threads, max_seqs, queue_max, max_len, max_batch_tokens;
    uint64_t weight_bytes;
    struct sl_msg_load load;
};

struct uplink {
    struct node *node;
    struct sl_bus *bus;
    struct sl_watch *watch;
    uint64_t instance, next_load_ns;
    uint8_t meta_sha256[32];
    bool meta_known;
    char class_name[256]; /* offered; empty: none yet */
    uint64_t class_hash;
    struct up_link *links; /* [cfg->n_connect] */
    struct sl_hash_node *buckets[RELAY_BUCKETS];
    struct sl_hash relays;
    struct sl_logit_bias bias[SL_LIMIT_logit_bias];
};

static uint32_t n_links(const struct uplink *u)
{
    return u->node->cfg->n_connect;
}

/* --- what there is to offer ------------------------------------------------------------------- */

static uint32_t clamp(uint64_t x)
{
    return x < UNBOUNDED_MAX ? (uint32_t)x : UNBOUNDED_MAX;
}

static void add_load(struct sl_msg_load *sum, const struct sl_msg_load *l, bool first)
{
    sum->running = clamp((uint64_t)sum->running + l->running);
    sum->waiting = clamp((uint64_t)sum->waiting + l->waiting);
    sum->pages_total += l->pages_total < UINT32_MAX / 2 - sum->pages_total ? l->pages_total : 0;
    sum->pages_free += l->pages_free;
    if (sum->pages_free > sum->pages_total)
        sum->pages_free = sum->pages_total;
    sum->steps += l->steps;
    sum->prefill_tokens += l->prefill_tokens;
    sum->decode_tokens += l->decode_tokens;
    sum->preempted += l->preempted;
    sum->prefix_queries += l->prefix_queries;
    sum->prefix_hits += l->prefix_hits;
    sum->op_calls += l->op_calls;
    if (first || l->last_step_age_ms < sum->last_step_age_ms)
        sum->last_step_age_ms = l->last_step_age_ms; /* it stands still when all of them do */
    if (l->step_expected_ms > sum->step_expected_ms)
        sum->step_expected_ms = l->step_expected_ms;
}

static bool is_offered(const struct uplink *u, const struct peer *p)
{
    return p->joined && !sl_str_eqz(p->hello.role, "prefill") &&
           sl_str_eqz(p->hello.class_name, u->class_name);
}

static void sum_up(const struct uplink *u, struct offer *o)
{
    const struct node *n = u->node;
    *o = (struct offer){.max_len = UINT32_MAX};
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        const struct peer *p = SL_ENTRY(l, struct peer, link);
        const struct sl_msg_hello *h = &p->hello;
        if (!is_offered(u, p))
            continue;
        add_load(&o->load, &p->load, !o->first);
        o->first = o->first ? o->first : p;
        o->n_workers++;
        o->threads += h->threads;
        o->max_seqs =
            clamp((uint64_t)o->max_seqs + (p->load.max_seqs ? p->load.max_seqs : h->max_seqs));
        o->queue_max = clamp((uint64_t)o->queue_max + h->queue_max);
        o->max_len = h->max_len < o->max_len ? h->max_len : o->max_len;
        o->max_batch_tokens =
            h->max_batch_tokens > o->max_batch_tokens ? h->max_batch_tokens : o->max_batch_tokens;
        o->weight_bytes += h->weight_bytes;
    }
    struct sl_router_stats r;
    sl_router_stats(n->router, &r);
    o->load.waiting = clamp((uint64_t)o->load.waiting + r.waiting);
    o->load.max_seqs = o->max_seqs;
}

/* Keeps its class while any worker of it is there; else takes that of the first worker. */
static void choose_class(struct uplink *u)
{
    const struct node *n = u->node;
    const struct peer *first = NULL;
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        const struct peer *p = SL_ENTRY(l, struct peer, link);
        if (is_offered(u, p))
            return;
        if (!first && p->joined && !sl_str_eqz(p->hello.role, "prefill"))
            first = p;
    }
    if (!first || first->hello.class_name.len >= sizeof u->class_name)
        return;
    struct sl_str name = first->hello.class_name;
    memcpy(u->class_name, name.data, name.len);
    u->class_name[name.len] = 0;
    u->class_hash = sl_hash64(name.data, name.len, 0);
}

/* --- requests --------------------------------------------------------------------------------- */

static uint64_t key_hash(uint32_t link, uint64_t id)
{
    return sl_hash64(&id, sizeof id, link);
}

static struct relay *find(const struct uplink *u, uint32_t link, uint64_t id)
{
    struct sl_hash_node *h = sl_hash_first(&u->relays, key_hash(link, id));
    for (; h; h = sl_hash_next(h)) {
        struct relay *r = SL_ENTRY(h, struct relay, by_key);
        if (r->link == link && r->id == id)
            return r;
    }
    return NULL;
}

static void relay_free(struct relay *r)
{
    sl_hash_remove(&r->up->relays, &r->by_key);
    sl_list_remove(&r->of_link);
    free(r);
}

static void relay_cancel(struct relay *r)
{
    gen_cancel(r->gen);
    relay_free(r);
}

static void cancel_link(struct uplink *u, uint32_t link)
{
    struct up_link *l = &u->links[link];
    while (!sl_list_empty(&l->relays))
        relay_cancel(SL_ENTRY(l->relays.next, struct relay, of_link));
    l->n_outs = 0;
    sl_arena_reset(&l->mem);
}

static void link_broken(struct uplink *u, uint32_t link)
{
    cancel_link(u, link);
    if (u->links[link].state != UP_REFUSED)
        u->links[link].state = UP_GREET;
}

/* --- tokens up -------------------------------------------------------------------------------- */

static void flush(struct uplink *u, uint32_t link)
{
    struct up_link *l = &u->links[link];
    struct offer o;
    struct sl_msg m = {.kind = SL_MSG_STEP};
    struct sl_err err;
    if (!l->n_outs)
        return;
    sum_up(u, &o);
    m.step.step = o.load.steps;
    m.step.outs = l->outs;
    m.step.n_outs = l->n_outs;
    m.step.load = o.load;
    enum sl_status s = sl_bus_send(u->bus, link, &m, &err);
    l->n_outs = 0;
    sl_arena_reset(&l->mem);
    if (s) {
        sl_log(SL_LOG_WARN, "tokens not delivered: %s", err.msg);
        link_broken(u, link);
    }
}

static const void *keep(struct sl_arena *a, const void *src, size_t n, size_t elem, bool *ok)
{
    void *dst = src && n ? sl_arena_calloc(a, n, elem) : NULL;
    if (dst)
        memcpy(dst, src, n * elem);
    *ok &= dst || !src || !n;
    return dst;
}

static bool outs_grow(struct up_link *l)
{
    if (l->n_outs < l->outs_max)
        return true;
    uint32_t max = l->outs_max ? l->outs_max * 2 : 64;
    struct sl_msg_out *outs = realloc(l->outs, max * sizeof *outs);
    if (!outs)
        return false;
    l->outs = outs;
    l->outs_max = max;
    return true;
}

/* What the worker's message holds dies with it: copied until the round's STEP is sent. */
static void send_up(struct uplink *u, uint32_t link, const struct sl_msg_out *o)
{
    struct up_link *l = &u->links[link];
    bool ok = outs_grow(l);
    if (ok) {
        struct sl_msg_out *m = &l->outs[l->n_outs];
        size_t n_top = (size_t)o->n_tokens * o->n_top;
        *m = *o;
        m->tokens = keep(&l->mem, o->tokens, o->n_tokens, sizeof *o->tokens, &ok);
        m->logprobs = keep(&l->mem, o->logprobs, o->n_tokens, sizeof *o->logprobs, &ok);
        m->top_tokens = keep(&l->mem, o->top_tokens, n_top, sizeof *o->top_tokens, &ok);
        m->top_logprobs = keep(&l->mem, o->top_logprobs, n_top, sizeof *o->top_logprobs, &ok);
        m->message.data = keep(&l->mem, o->message.data, o->message.len, 1, &ok);
    }
    if (!ok) {
        sl_log(SL_LOG_ERROR, "no memory for tokens on their way to %s",
               u->node->cfg->connect[link]);
        link_broken(u, link);
        return;
    }
    l->n_outs++;
    if (l->n_outs == SL_LIMIT_inflight_requests || l->mem.used_bytes > PENDING_BYTES)
        flush(u, link);
}

static void on_tokens(void *ctx, const struct sl_msg_out *o)
{
    struct relay *r = ctx;
    struct uplink *u = r->up;
    uint32_t link = r->link;
    struct sl_msg_out m = *o;
    m.id = r->id;
    m.epoch = r->epoch;
    if (o->end)
        relay_free(r);
    send_up(u, link, &m);
}

static void send_failure(struct uplink *u, uint32_t link, uint64_t id, uint32_t epoch,
                         const struct sl_err *err)
{
    struct sl_msg_out m = {.id = id,
                           .epoch = epoch,
                           .end = SL_END_ERROR,
                           .status = err->status ? err->status : SL_FAILED,
                           .message = sl_str_of(err->msg)};
    send_up(u, link, &m);
}

static void on_error(void *ctx, const struct sl_err *err, const struct gen_usage *usage)
{
    struct relay *r = ctx;
    struct uplink *u = r->up;
    uint32_t link = r->link, epoch = r->epoch;
    uint64_t id = r->id;
    (void)usage;
    relay_free(r);
    send_failure(u, link, id, epoch, err);
}

static const struct gen_ops relay_ops = {.on_error = on_error};

/* --- from above ------------------------------------------------------------------------------- */

static enum sl_status start(struct uplink *u, struct relay *r, const struct sl_msg_submit *m,
                            struct sl_err *err)
{
    struct gen_relay relay = {.generated = m->tokens + m->n_prompt,
                              .n_generated = m->n_tokens - m->n_prompt,
                              .choice = m->choice,
                              .hops = m->hops + 1,
                              .tenant = m->tenant,
                              .on_tokens = on_tokens};
    struct gen_params p = {.prompt = m->tokens,
                           .n_prompt = m->n_prompt,
                           .has_seed = true,
                           .n = 1,
                           .priority = m->priority,
                           .deadline_ms = m->deadline_ms,
                           .has_class = true,
                           .class_hash = u->class_hash,
                           .relay = &relay};
    if (m->hops >= SL_LIMIT_router_hops)
        return sl_fail(err, SL_CONFIG, "the request passed %u routers; do they form a ring?",
                       m->hops + 1);
    memcpy(relay.salt, m->salt, sizeof relay.salt);
    submit_sampling(m, u->bias, &p.sampling);
    return gen_start(u->node, &p, &relay_ops, r, &r->gen, err);
}

static void on_submit(struct uplink *u, uint32_t link, const struct sl_msg_submit *m)
{
    struct sl_err err = {0};
    struct relay *old = find(u, link, m->id), *r;
    if (old && m->epoch <= old->epoch)
        return; /* late or twice: the newer one runs */
    if (old)
        relay_cancel(old);
    if (u->links[link].state == UP_LEAVING) {
        sl_fail(&err, SL_DRAINING, "this site leaves");
        send_failure(u, link, m->id, m->epoch, &err);
        return;
    }
    r = calloc(1, sizeof *r);
    if (!r) {
        sl_fail(&err, SL_NO_MEMORY, "no memory for a request");
        send_failure(u, link, m->id, m->epoch, &err);
        return;
    }
    *r = (struct relay){.up = u, .id = m->id, .epoch = m->epoch, .link = link};
    if (start(u, r, m, &err)) {
        free(r);
        send_failure(u, link, m->id, m->epoch, &err);
        return;
    }
    sl_hash_insert(&u->relays, &r->by_key, key_hash(link, r->id));
    sl_list_push_back(&u->links[link].relays, &r->of_link);
}

static void on_meta_get(struct uplink *u, uint32_t link, const struct sl_msg_meta *ask)
{
    const struct sl_buf *meta = &u->node->meta;
    struct sl_msg m = {.kind = SL_MSG_META_CHUNK};
    if (memcmp(ask->sha256, u->meta_sha256, 32) != 0 || ask->offset > meta->len)
        return;
    size_t left = meta->len - (size_t)ask->offset;
    memcpy(m.meta.sha256, u->meta_sha256, 32);
    m.meta.offset = ask->offset;
    m.meta.bytes = (struct sl_str){meta->data + ask->offset,
                                   left < SL_BUS_META_CHUNK ? left : SL_BUS_META_CHUNK};
    if (sl_bus_send(u->bus, link, &m, NULL))
        link_broken(u, link);
}

static void on_welcome(struct uplink *u, uint32_t link, const struct sl_msg_welcome *m)
{
    struct up_link *l = &u->links[link];
    const char *where = u->node->cfg->connect[link];
    if (m->status == SL_OK) {
        sl_log(SL_LOG_INFO, "registered as a site with the router at %s", where);
    } else if (m->status == SL_PEER) { /* it does not know us: another one, or it forgot */
        link_broken(u, link);
    } else {
        sl_log(SL_LOG_ERROR, "the router at %s refuses this site: %.*s", where, (int)m->message.len,
               m->message.data);
        cancel_link(u, link);
        l->state = UP_REFUSED;
    }
}

static void on_drain(struct uplink *u, uint32_t link)
{
    struct up_link *l = &u->links[link];
    if (l->state != UP_STANDS)
        return;
    sl_log(SL_LOG_INFO, "the router at %s sends this site away", u->node->cfg->connect[link]);
    l->state = UP_LEAVING;
}

static void on_message(struct uplink *u, uint32_t link, const struct sl_msg *m)
{
    struct up_link *l = &u->links[link];
    l->heard_ns = sl_now_ns();
    if (m->gap && l->state == UP_STANDS) {
        sl_log(SL_LOG_WARN, "messages of the router at %s were lost", u->node->cfg->connect[link]);
        link_broken(u, link);
    }
    if (l->state == UP_SILENT)
        l->state = UP_GREET; /* back again, and its requests are gone */
    if (l->state != UP_STANDS && l->state != UP_LEAVING)
        return;
    if (m->kind == SL_MSG_SUBMIT)
        on_submit(u, link, &m->submit);
    else if (m->kind == SL_MSG_META_GET)
        on_meta_get(u, link, &m->meta);
    else if (m->kind == SL_MSG_WELCOME)
        on_welcome(u, link, &m->welcome);
    else if (m->kind == SL_MSG_DRAIN)
        on_drain(u, link);
    struct relay *r = m->kind == SL_MSG_CANCEL ? find(u, link, m->cancel.id) : NULL;
    if (r && r->epoch == m->cancel.epoch)
        relay_cancel(r);
}

/* --- links ------------------------------------------------------------------------------------ */

static void say_hello(struct uplink *u, uint32_t link, const struct offer *o)
{
    const struct node *n = u->node;
    const struct sl_msg_hello *first = &o->first->hello;
    struct up_link *l = &u->links[link];
    struct sl_err err;
    struct sl_msg m = {.kind = SL_MSG_HELLO};
    m.hello = *first;
    m.hello.version = SL_BUS_VERSION;
    m.hello.kv_layout = 0; /* pages stay within the site */
    m.hello.kv_address = SL_STR("");
    memset(m.hello.kv_key, 0, sizeof m.hello.kv_key);
    m.hello.pid = (uint32_t)getpid();
    m.hello.rank = 0;
    m.hello.threads = o->threads < SL_LIMIT_threads ? o->threads : SL_LIMIT_threads;
    m.hello.max_seqs = o->max_seqs;
    m.hello.queue_max = o->queue_max;
    m.hello.max_len = o->max_len;
    m.hello.max_batch_tokens = o->max_batch_tokens;
    m.hello.weight_bytes = o->weight_bytes;
    m.hello.meta_bytes = n->meta.len;
    memcpy(m.hello.meta_sha256, u->meta_sha256, 32);
    m.hello.instance = u->instance;
    m.hello.greeting = ++l->n_greetings;
    m.hello.model = sl_str_of(n->model_name);
    m.hello.site = sl_str_of(n->cfg->site ? n->cfg->site : "");
    m.hello.role = SL_STR("site");
    m.hello.class_name = sl_str_of(u->class_name);
    m.hello.load = o->load;
    enum sl_status s = sl_bus_send(u->bus, link, &m, &err);
    if (s == SL_INVALID) {
        sl_log(SL_LOG_ERROR, "this site cannot register: %s", err.msg);
        l->state = UP_REFUSED;
    }
    if (s)
        return;
    l->state = UP_STANDS;
    l->heard_ns = sl_now_ns();
}

static void say(struct uplink *u, uint32_t link, enum sl_msg_kind kind)
{
    struct sl_msg m = {.kind = kind};
    sl_bus_send(u->bus, link, &m, NULL);
}

static void follow_connections(struct uplink *u)
{
    for (uint32_t i = 0; i < n_links(u); i++) {
        struct up_link *l = &u->links[i];
        uint64_t n = sl_bus_n_connects(u->bus, i);
        bool connected = sl_bus_connected(u->bus, i);
        if (n == l->n_connects && (connected || l->state == UP_DOWN))
            continue;
        if (l->state == UP_STANDS)
            sl_log(SL_LOG_WARN, "the router at %s is lost", u->node->cfg->connect[i]);
        cancel_link(u, i);
        l->n_connects = n;
        l->state = connected ? UP_GREET : UP_DOWN;
    }
}

/* Registers where it is due and there is something to offer; leaves where there is not. */
static void greet(struct uplink *u)
{
    struct offer o;
    choose_class(u);
    sum_up(u, &o);
    if (!o.first)
        for (uint32_t i = 0; i < n_links(u); i++) {
            struct up_link *l = &u->links[i];
            if (l->state != UP_STANDS)
                continue;
            sl_log(SL_LOG_WARN, "no worker is left to offer to %s", u->node->cfg->connect[i]);
            say(u, i, SL_MSG_BYE);
            cancel_link(u, i);
            l->state = UP_GREET;
        }
    if (!o.first || !node_has_model(u->node) || u->node->draining)
        return;
    if (!u->meta_known)
        sl_sha256(u->node->meta.data, u->node->meta.len, u->meta_sha256);
    u->meta_known = true; /* a router has one model all its life */
    for (uint32_t i = 0; i < n_links(u); i++)
        if (u->links[i].state == UP_GREET)
            say_hello(u, i, &o);
}

static bool greeting_is_due(const struct uplink *u)
{
    for (uint32_t i = 0; i < n_links(u); i++)
        if (u->links[i].state == UP_GREET)
            return true;
    return false;
}

void uplink_pump(struct uplink *u)
{
    struct sl_err err;
    struct sl_msg m;
    uint64_t link;
    while (u && !sl_bus_recv(u->bus, &link, &m, &err)) {
        follow_connections(u);
        if (m.kind == SL_MSG_NONE)
            break;
        on_message(u, (uint32_t)link, &m);
    }
    for (uint32_t i = 0; u && i < n_links(u); i++)
        flush(u, i);
}

static void tick_link(struct uplink *u, uint32_t i, uint64_t now)
{
    struct up_link *l = &u->links[i];
    if (l->state == UP_LEAVING && sl_list_empty(&l->relays)) {
        say(u, i, SL_MSG_BYE);
        l->state = UP_REFUSED;
    }
    if (l->state != UP_STANDS || now < l->heard_ns ||
        now - l->heard_ns < LINK_SILENCE_MS * SL_MS_NS)
        return;
    sl_log(SL_LOG_WARN, "the router at %s is silent", u->node->cfg->connect[i]);
    cancel_link(u, i);
    l->state = UP_SILENT;
    sl_bus_reconnect(u->bus, i);
}

void uplink_tick(struct uplink *u, uint64_t now)
{
    struct offer o;
    struct sl_msg m = {.kind = SL_MSG_LOAD};
    if (!u)
        return;
    for (uint32_t i = 0; i < n_links(u); i++)
        tick_link(u, i, now);
    sum_up(u, &o);
    if (!o.first || greeting_is_due(u))
        greet(u);
    if (now < u->next_load_ns)
        return;
    u->next_load_ns = now + LOAD_INTERVAL_MS * SL_MS_NS;
    m.load = o.load;
    for (uint32_t i = 0; i < n_links(u); i++)
        if (u->links[i].state >= UP_STANDS && u->links[i].state != UP_REFUSED)
            sl_bus_send(u->bus, i, &m, NULL); /* one of the next will arrive */
}

void uplink_reload_keys(struct uplink *u)
{
    if (u)
        sl_bus_reload_keys(u->bus);
}

/* --- life ------------------------------------------------------------------------------------- */

static void on_readable(void *ctx)
{
    uplink_pump(ctx);
}

enum sl_status uplink_open(struct node *n, struct uplink **out, struct sl_err *err)
{
    const struct sl_node_config *cfg = n->cfg;
    *out = NULL;
    if (!cfg->n_connect)
        return SL_OK;
    struct uplink *u = calloc(1, sizeof *u);
    if (!u)
        return sl_fail(err, SL_NO_MEMORY, "no memory for an uplink");
    struct sl_bus_config bus = {.endpoints = cfg->connect,
                                .n_endpoints = cfg->n_connect,
                                .is_router = false,
                                .curve_dir = cfg->curve_dir,
                                .version = cfg->bus_version};
    *out = u;
    u->node = n;
    u->instance = sl_entropy_u64() | 1;
    sl_hash_init(&u->relays, u->buckets, RELAY_BUCKETS);
    u->links = calloc(cfg->n_connect, sizeof *u->links);
    if (!u->links)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %u links", cfg->n_connect);
    for (uint32_t i = 0; i < cfg->n_connect; i++) {
        sl_list_init(&u->links[i].relays);
        sl_arena_init(&u->links[i].mem, PENDING_MEM_MAX);
    }
    enum sl_status s = sl_bus_open(&bus, &u->bus, err);
    if (s)
        return s;
    u->watch = sl_loop_watch_fd(n->loop, sl_bus_fd(u->bus), on_readable, u);
    return u->watch ? SL_OK : sl_fail(err, SL_NO_MEMORY, "no descriptor for the uplink");
}

void uplink_close(struct uplink *u)
{
    if (!u)
        return;
    if (u->watch)
        sl_loop_unwatch(u->watch);
    for (uint32_t i = 0; u->links && i < n_links(u); i++) {
        struct up_link *l = &u->links[i];
        if (u->bus && (l->state == UP_STANDS || l->state == UP_LEAVING))
            say(u, i, SL_MSG_BYE);
        cancel_link(u, i);
        sl_arena_free(&l->mem);
        free(l->outs);
    }
    if (u->bus)
        sl_bus_close(u->bus);
    free(u->links);
    free(u);
}
