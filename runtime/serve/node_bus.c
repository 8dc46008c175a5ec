/* The node's side of the bus: workers come and go, tokens arrive, the router's word is carried out,
 * and the model's metadata (tokenizer, template) is fetched once from a worker. */
#include "node.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct peer *find_peer(struct node *n, uint64_t key)
{
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        struct peer *p = SL_ENTRY(l, struct peer, link);
        if (p->key == key)
            return p;
    }
    return NULL;
}

struct peer *node_peer_by_pid(struct node *n, pid_t pid)
{
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        struct peer *p = SL_ENTRY(l, struct peer, link);
        if (p->hello.pid == (uint32_t)pid)
            return p;
    }
    return NULL;
}

static void peer_free(struct peer *p)
{
    sl_list_remove(&p->link);
    sl_buf_free(&p->strings);
    free(p);
}

static void welcome(struct node *n, uint64_t key, enum sl_status status, const char *text)
{
    struct sl_msg m = {.kind = SL_MSG_WELCOME};
    m.welcome.version = SL_BUS_VERSION;
    m.welcome.status = status;
    m.welcome.message = sl_str_of(text);
    sl_bus_send(n->bus, key, &m, NULL);
}

static void router_load(struct node *n, const struct peer *p, uint64_t now)
{
    struct sl_worker_load load = {.running = p->load.running,
                                  .waiting = p->load.waiting,
                                  .pages_free = p->load.pages_free,
                                  .pages_total = p->load.pages_total,
                                  .steps = p->load.steps};
    sl_router_worker_load(n->router, p->key, &load, now);
}

/* The worker serves the node's model: the router may use it. */
static void peer_join(struct node *n, struct peer *p, uint64_t now)
{
    struct sl_worker_desc d = {.key = p->key,
                               .class_hash =
                                   sl_hash64(p->hello.class_name.data, p->hello.class_name.len, 0),
                               .max_seqs = p->hello.max_seqs,
                               .max_len = p->hello.max_len,
                               .queue_max = p->hello.queue_max};
    struct sl_err err;
    if (sl_router_worker_up(n->router, &d, now, &err)) {
        welcome(n, p->key, err.status, err.msg);
        sl_log(SL_LOG_WARN, "worker %u refused: %s", p->hello.pid, err.msg);
        return;
    }
    p->joined = true;
    router_load(n, p, now);
    welcome(n, p->key, SL_OK, "");
    node_child_registered(n, (pid_t)p->hello.pid);
    sl_log(SL_LOG_INFO, "worker %u joined: %.*s, %u threads", p->hello.pid,
           (int)p->hello.class_name.len, p->hello.class_name.data, p->hello.threads);
}

/* --- the model's metadata --------------------------------------------------------------------- */

static void meta_ask(struct node *n)
{
    struct sl_msg m = {.kind = SL_MSG_META_GET};
    memcpy(m.meta.sha256, n->meta_sha256, 32);
    m.meta.offset = n->meta.len;
    if (sl_bus_send(n->bus, n->meta_link, &m, NULL))
        n->meta_link = 0;
}

/* Starts fetching from any worker that has metadata, when there is no model yet. */
static void meta_start(struct node *n)
{
    if (n->tokenizer || n->meta_link || sl_list_empty(&n->peers))
        return;
    struct peer *p = SL_ENTRY(n->peers.next, struct peer, link);
    n->meta_link = p->key;
    n->meta_bytes = p->hello.meta_bytes;
    memcpy(n->meta_sha256, p->hello.meta_sha256, 32);
    sl_buf_clear(&n->meta);
    n->meta.cap_bytes = (size_t)n->meta_bytes + 1;
    meta_ask(n);
}

static void name_model(struct node *n, const struct peer *p)
{
    if (n->cfg->served_model_name)
        snprintf(n->model_name, sizeof n->model_name, "%s", n->cfg->served_model_name);
    else
        snprintf(n->model_name, sizeof n->model_name, "%.*s", (int)p->hello.model.len,
                 p->hello.model.data);
    n->max_len = p->hello.max_len;
    n->n_vocab = p->hello.n_vocab;
    n->model_created = sl_unix_ns() / SL_S_NS;
}

static enum sl_status open_model(struct node *n, struct sl_err *err)
{
    uint8_t sum[32];
    sl_sha256(n->meta.data, n->meta.len, sum);
    if (memcmp(sum, n->meta_sha256, 32) != 0)
        return sl_fail(err, SL_PEER, "model metadata does not match its announced SHA-256");
    enum sl_status s = sl_gguf_parse(n->meta.data, n->meta.len, true, &n->gguf, err);
    if (s || (s = sl_tokenizer_open(n->gguf, &n->tokenizer, err)))
        return s;
    struct sl_str source = sl_tokenizer_template(n->tokenizer);
    if (source.len && sl_template_open(source.data, source.len, &n->template, err))
        sl_log(SL_LOG_WARN, "chat template not usable: %s", err->msg);
    return SL_OK;
}

static void meta_done(struct node *n, struct peer *from, uint64_t now)
{
    struct sl_err err;
    n->meta_link = 0;
    enum sl_status s = open_model(n, &err);
    if (s) {
        sl_log(SL_LOG_ERROR, "worker %u: %s", from->hello.pid, err.msg);
        if (n->cfg->n_workers)
            node_stop(n, s, &err);
        welcome(n, from->key, s, err.msg);
        peer_free(from);
        return;
    }
    name_model(n, from);
    struct sl_list *next;
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = next) {
        next = l->next;
        struct peer *p = SL_ENTRY(l, struct peer, link);
        if (!memcmp(p->hello.meta_sha256, n->meta_sha256, 32))
            peer_join(n, p, now);
    }
    node_check_ready(n);
}

static void on_meta(struct node *n, struct peer *p, const struct sl_msg_meta *m, uint64_t now)
{
    if (p->key != n->meta_link || n->tokenizer || m->offset != n->meta.len ||
        m->bytes.len > n->meta_bytes - n->meta.len || !m->bytes.len)
        return;
    sl_buf_append(&n->meta, m->bytes.data, m->bytes.len);
    if (n->meta.failed) {
        struct sl_err err;
        sl_fail(&err, SL_NO_MEMORY, "no memory for %llu bytes of model metadata",
                (unsigned long long)n->meta_bytes);
        node_stop(n, SL_NO_MEMORY, &err);
    } else if (n->meta.len == n->meta_bytes) {
        meta_done(n, p, now);
    } else {
        meta_ask(n);
    }
}

/* --- workers ---------------------------------------------------------------------------------- */

/* The message's strings die with the next receive: keep copies, one behind the other. */
static bool keep_hello(struct peer *p, const struct sl_msg_hello *h)
{
    struct sl_str *of[] = {&p->hello.model, &p->hello.site,    &p->hello.role,
                           &p->hello.isa,   &p->hello.backend, &p->hello.class_name};
    p->hello = *h;
    sl_buf_clear(&p->strings);
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        sl_buf_append(&p->strings, of[i]->data, of[i]->len);
    if (p->strings.failed)
        return false;
    const char *at = p->strings.data;
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        of[i]->data = at;
        at += of[i]->len;
    }
    return true;
}

/* What it computed is somebody else's now; the link itself may stay. */
static void peer_forget(struct node *n, struct peer *p, uint64_t now)
{
    if (p->joined)
        sl_router_worker_down(n->router, p->key, now);
    if (n->meta_link == p->key)
        n->meta_link = 0;
    peer_free(p);
}

static void on_hello(struct node *n, uint64_t key, const struct sl_msg_hello *h, uint64_t now)
{
    if (h->version != SL_BUS_VERSION) {
        welcome(n, key, SL_UNSUPPORTED, "bus version differs");
        return;
    }
    if (!h->meta_bytes || h->meta_bytes > SL_LIMIT_model_meta_bytes) {
        welcome(n, key, SL_TOO_LARGE, "model metadata is larger than the limit");
        return;
    }
    if (n->tokenizer && memcmp(h->meta_sha256, n->meta_sha256, 32) != 0) {
        welcome(n, key, SL_MODEL, "this router serves another model");
        return;
    }
    struct peer *p = find_peer(n, key);
    if (p)
        peer_forget(n, p, now);
    p = calloc(1, sizeof *p);
    if (!p)
        return;
    p->key = key;
    p->seen_ns = now;
    p->load = h->load;
    sl_list_push_back(&n->peers, &p->link);
    if (!keep_hello(p, h)) {
        peer_free(p);
        return;
    }
    if (n->tokenizer) {
        peer_join(n, p, now);
        node_check_ready(n);
    } else {
        meta_start(n);
    }
}

void node_peer_lost(struct node *n, struct peer *p, uint64_t now)
{
    sl_bus_drop(n->bus, p->key);
    peer_forget(n, p, now);
    meta_start(n);
}

static void on_load(struct node *n, struct peer *p, const struct sl_msg_load *load, uint64_t now)
{
    p->load = *load;
    p->seen_ns = now;
    if (p->joined)
        router_load(n, p, now);
}

static void dispatch(struct node *n, uint64_t key, const struct sl_msg *m, uint64_t now)
{
    if (m->kind == SL_MSG_HELLO) {
        on_hello(n, key, &m->hello, now);
        return;
    }
    struct peer *p = find_peer(n, key);
    if (!p) {
        if (m->kind == SL_MSG_LOAD)
            welcome(n, key, SL_PEER, "unknown link: register again");
        return;
    }
    switch (m->kind) {
    case SL_MSG_LOAD:
        on_load(n, p, &m->load, now);
        break;
    case SL_MSG_STEP:
        on_load(n, p, &m->step.load, now);
        for (uint32_t i = 0; i < m->step.n_outs; i++)
            gen_output(n, key, &m->step.outs[i], now);
        break;
    case SL_MSG_META_CHUNK:
        on_meta(n, p, &m->meta, now);
        break;
    case SL_MSG_BYE:
        sl_log(SL_LOG_INFO, "worker %u leaves", p->hello.pid);
        node_peer_lost(n, p, now);
        break;
    default:
        break; /* a router's own kinds, echoed: not for us */
    }
}

void node_bus_drain(struct node *n)
{
    struct sl_err err;
    struct sl_msg m;
    uint64_t key;
    while (!sl_bus_recv(n->bus, &key, &m, &err) && m.kind != SL_MSG_NONE)
        dispatch(n, key, &m, sl_now_ns());
}

static void cancel_at(struct node *n, const struct sl_action *a)
{
    struct sl_msg m = {.kind = SL_MSG_CANCEL};
    m.cancel.id = a->id;
    m.cancel.epoch = a->epoch;
    sl_bus_send(n->bus, a->worker_key, &m, NULL);
}

static void fail_stream(struct stream *s, enum sl_status status)
{
    struct sl_err err;
    if (status == SL_TIMEOUT)
        sl_fail(&err, status, "the request's deadline passed");
    else if (status == SL_PEER)
        sl_fail(&err, status, "the worker that computed this request was lost");
    else
        sl_fail(&err, status, "the request could not be computed: %s", sl_status_row(status)->text);
    gen_fail(s->gen, &err);
}

void node_pump(struct node *n)
{
    struct sl_action a;
    while (sl_router_next_action(n->router, &a)) {
        if (a.kind == SL_ACT_SEND)
            gen_send(n, a.user, &a);
        else if (a.kind == SL_ACT_CANCEL)
            cancel_at(n, &a);
        else
            fail_stream(a.user, a.status);
    }
}

/* Workers that never joined are forgotten when they fall silent; the router watches the others and
 * the peer goes with its next silence here. */
static void drop_silent(struct node *n, uint64_t now)
{
    struct sl_list *next;
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = next) {
        next = l->next;
        struct peer *p = SL_ENTRY(l, struct peer, link);
        if (now - p->seen_ns <= HEARTBEAT_TIMEOUT_MS * SL_MS_NS)
            continue;
        sl_log(SL_LOG_WARN, "worker %u is silent for %d ms", p->hello.pid, HEARTBEAT_TIMEOUT_MS);
        node_peer_lost(n, p, now);
        return; /* the list changed; the next tick goes on */
    }
}

void node_bus_tick(struct node *n, uint64_t now)
{
    drop_silent(n, now);
    if (now - n->ping_ns < NODE_PING_MS * SL_MS_NS)
        return;
    n->ping_ns = now;
    struct sl_msg m = {.kind = SL_MSG_PING};
    struct sl_list *next;
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = next) {
        next = l->next;
        struct peer *p = SL_ENTRY(l, struct peer, link);
        if (sl_bus_send(n->bus, p->key, &m, NULL)) { /* the link is gone: no need to wait */
            sl_log(SL_LOG_WARN, "worker %u is gone", p->hello.pid);
            node_peer_lost(n, p, now);
            return;
        }
    }
}

void node_bus_say_drain(struct node *n)
{
    struct sl_msg m = {.kind = SL_MSG_DRAIN};
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next)
        sl_bus_send(n->bus, SL_ENTRY(l, struct peer, link)->key, &m, NULL);
}

void node_bus_close(struct node *n)
{
    while (!sl_list_empty(&n->peers))
        peer_free(SL_ENTRY(n->peers.next, struct peer, link));
    if (n->bus)
        sl_bus_close(n->bus);
    if (n->ipc.len)
        sl_bus_ipc_remove(n->ipc.data);
    sl_buf_free(&n->ipc);
    sl_buf_free(&n->meta);
}
