/* The node's side of the bus, a shell around membership and router: messages become their inputs,
 * their actions become messages; the model's metadata (tokenizer, template) is opened once. */
#include "node.h"
#include "sites.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct peer *node_peer(struct node *n, uint64_t key)
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

struct sl_str node_class_of(struct node *n, uint64_t link)
{
    const struct peer *p = node_peer(n, link);
    return p ? p->hello.class_name : (struct sl_str){"", 0};
}

static void peer_free(struct peer *p)
{
    sl_list_remove(&p->link);
    sl_buf_free(&p->strings);
    free(p->ranks);
    free(p);
}

/* --- what membership decided ------------------------------------------------------------------ */

static const char *welcome_text(enum sl_status status)
{
    switch (status) {
    case SL_OK:
        return "";
    case SL_UNSUPPORTED:
        return "bus version differs";
    case SL_TOO_LARGE:
        return "model metadata is larger than the limit";
    case SL_MODEL:
        return "this router cannot serve that model";
    case SL_QUEUE_FULL:
        return "this router has no room for another worker";
    case SL_PEER:
        return "unknown link: register again";
    default:
        return sl_status_row(status)->text;
    }
}

static void welcome(struct node *n, const struct sl_member_action *a)
{
    struct sl_msg m = {.kind = SL_MSG_WELCOME};
    m.welcome.version = SL_BUS_VERSION;
    m.welcome.status = a->status;
    m.welcome.message = sl_str_of(welcome_text(a->status));
    sl_bus_send(n->bus, a->key, &m, NULL);
    if (!a->user)
        sl_bus_drop(n->bus, a->key); /* links are for members; its next word makes another */
}

static uint64_t ms_to_ns(uint64_t ms)
{
    return ms < UINT64_MAX / SL_MS_NS ? ms * SL_MS_NS : UINT64_MAX;
}

static void router_load(struct node *n, const struct peer *p, uint64_t now)
{
    struct sl_worker_load load = {.running = p->load.running,
                                  .waiting = p->load.waiting,
                                  .pages_free = p->load.pages_free,
                                  .pages_total = p->load.pages_total,
                                  .max_seqs = p->load.max_seqs,
                                  .steps = p->load.steps,
                                  .rows = p->load.prefill_tokens + p->load.decode_tokens,
                                  .busy_ns = p->load.busy_ns,
                                  .pending_tokens = p->load.pending_tokens,
                                  .step_age_ns = ms_to_ns(p->load.last_step_age_ms),
                                  .step_expected_ns = ms_to_ns(p->load.step_expected_ms),
                                  .reforming = p->load.reforming};
    sl_router_worker_load(n->router, p->key, &load, now);
}

static enum sl_worker_role role_of(struct sl_str word)
{
    if (sl_str_eqz(word, "prefill"))
        return SL_ROLE_PREFILL;
    return sl_str_eqz(word, "decode") ? SL_ROLE_DECODE : SL_ROLE_BOTH;
}

/* The worker serves the node's model: the router may use it. */
static void peer_join(struct node *n, struct peer *p, uint64_t now)
{
    struct sl_worker_desc d = {
        .key = p->key,
        .class_hash = sl_hash64(p->hello.class_name.data, p->hello.class_name.len, 0),
        .max_seqs = p->hello.max_seqs,
        .max_len = p->hello.max_len,
        .queue_max = p->hello.queue_max,
        .page_size = p->hello.page_size,
        .instance = p->hello.instance,
        .role = role_of(p->hello.role),
        .kv_layout = p->hello.kv_layout,
        .serves_kv = p->hello.kv_address.len > 0,
        .weight_percent = sites_weight_percent(n->cfg->site_weights, p->hello.site)};
    struct sl_err err;
    if (sl_router_worker_up(n->router, &d, now, &err)) {
        sl_log(SL_LOG_WARN, "worker %u refused: %s", p->hello.pid, err.msg);
        sl_members_refuse(n->members, p->key, err.status);
        return;
    }
    p->joined = true;
    node_events_join(n, p, now);
    router_load(n, p, now);
    node_child_registered(n, (pid_t)p->hello.pid);
    sl_log(SL_LOG_INFO, "worker %u joined: %.*s, %u threads", p->hello.pid,
           (int)p->hello.class_name.len, p->hello.class_name.data, p->hello.threads);
    node_check_ready(n);
}

/* What it computed is somebody else's now. */
static void peer_lost(struct node *n, struct peer *p, const struct sl_member_action *a,
                      uint64_t now)
{
    static const char *const text[] = {[SL_LOST_BYE] = "leaves",
                                       [SL_LOST_SILENT] = "is silent",
                                       [SL_LOST_GONE] = "is gone",
                                       [SL_LOST_REPLACED] = "registers again",
                                       [SL_LOST_GAP] = "lost messages on the way",
                                       [SL_LOST_REFUSED] = "is refused"};
    sl_log(a->why == SL_LOST_BYE ? SL_LOG_INFO : SL_LOG_WARN, "worker %u %s", p->hello.pid,
           text[a->why]);
    node_events_leave(n, p);
    if (p->joined)
        sl_router_worker_down(n->router, p->key, sl_lost_lives(a->why), now);
    peer_free(p);
    /* these are answered, and the link goes with the answer */
    bool answered = a->why == SL_LOST_REFUSED || a->why == SL_LOST_GAP;
    if (!answered && !node_peer(n, a->key))
        sl_bus_drop(n->bus, a->key);
}

static void meta_ask(struct node *n, struct peer *p, uint64_t offset)
{
    struct sl_msg m = {.kind = SL_MSG_META_GET};
    if (!offset)
        sl_buf_clear(&n->meta);
    n->meta.cap_bytes = (size_t)p->hello.meta_bytes + 1;
    memcpy(m.meta.sha256, p->hello.meta_sha256, 32);
    m.meta.offset = offset;
    if (sl_bus_send(n->bus, p->key, &m, NULL))
        sl_members_leave(n->members, p->key, SL_LOST_GONE);
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

static enum sl_status open_model(struct node *n, const struct peer *p, struct sl_err *err)
{
    uint8_t sum[32];
    sl_sha256(n->meta.data, n->meta.len, sum);
    if (memcmp(sum, p->hello.meta_sha256, 32) != 0)
        return sl_fail(err, SL_MODEL, "model metadata does not match its announced SHA-256");
    enum sl_status s = sl_gguf_parse(n->meta.data, n->meta.len, true, &n->gguf, err);
    if (s || (s = sl_tokenizer_open(n->gguf, &n->tokenizer, err)))
        return s;
    struct sl_str source = sl_tokenizer_template(n->tokenizer);
    if (source.len && sl_template_open(source.data, source.len, &n->template, err))
        sl_log(SL_LOG_WARN, "chat template not usable: %s", err->msg);
    return SL_OK;
}

static void meta_done(struct node *n, struct peer *p, uint64_t now)
{
    struct sl_err err;
    enum sl_status s = open_model(n, p, &err);
    if (s) {
        sl_log(SL_LOG_ERROR, "worker %u: %s", p->hello.pid, err.msg);
        if (n->gguf)
            sl_gguf_close(n->gguf);
        n->gguf = NULL;
        if (n->cfg->n_workers)
            node_stop(n, s, &err);
    } else {
        name_model(n, p);
    }
    sl_members_model(n->members, p->key, s, now);
}

static void drain_peer(struct node *n, struct peer *p)
{
    struct sl_msg m = {.kind = SL_MSG_DRAIN};
    sl_bus_send(n->bus, p->key, &m, NULL);
    if (p->joined)
        sl_router_worker_drain(n->router, p->key);
}

static void ping_peer(struct node *n, struct peer *p)
{
    struct sl_msg m = {.kind = SL_MSG_PING};
    if (sl_bus_send(n->bus, p->key, &m, NULL)) /* the link is gone: no need to wait */
        sl_members_leave(n->members, p->key, SL_LOST_GONE);
}

/* Carries out what membership decided; after every input to it. */
static void follow_members(struct node *n, uint64_t now)
{
    struct sl_member_action a;
    while (sl_members_next_action(n->members, &a)) {
        if (a.kind == SL_MEMBER_LOST)
            peer_lost(n, a.user, &a, now);
        else if (a.kind == SL_MEMBER_WELCOME)
            welcome(n, &a);
        else if (a.kind == SL_MEMBER_JOIN)
            peer_join(n, a.user, now);
        else if (a.kind == SL_MEMBER_META_GET)
            meta_ask(n, a.user, a.offset);
        else if (a.kind == SL_MEMBER_OPEN)
            meta_done(n, a.user, now);
        else if (a.kind == SL_MEMBER_DRAIN)
            drain_peer(n, a.user);
        else
            ping_peer(n, a.user);
    }
}

/* --- what workers say ------------------------------------------------------------------------- */

/* The message's strings die with the next receive: keep copies, one behind the other. */
static bool keep_hello(struct peer *p, const struct sl_msg_hello *h)
{
    struct sl_str *of[] = {&p->hello.model,         &p->hello.site,
                           &p->hello.role,          &p->hello.isa,
                           &p->hello.backend,       &p->hello.class_name,
                           &p->hello.kv_address,    &p->hello.events_endpoint,
                           &p->hello.events_replay, &p->hello.events_topic,
                           &p->hello.events_key};
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

static void on_hello(struct node *n, uint64_t key, const struct sl_msg_hello *h, uint64_t now)
{
    struct peer *p = calloc(1, sizeof *p);
    if (!p)
        return; /* it will ask again */
    struct sl_member_hello m = {.version = h->version,
                                .instance = h->instance,
                                .greeting = h->greeting,
                                .meta_bytes = h->meta_bytes,
                                .user = p};
    memcpy(m.meta_sha256, h->meta_sha256, 32);
    p->key = key;
    p->load = h->load;
    p->load_ns = now;
    sl_list_init(&p->link);
    if (!keep_hello(p, h) || !sl_members_hello(n->members, key, &m, now)) {
        peer_free(p);
        p = NULL;
    }
    if (p)
        sl_list_push_back(&n->peers, &p->link);
    follow_members(n, now);
}

/* Its process ended. */
void node_peer_lost(struct node *n, struct peer *p, uint64_t now)
{
    sl_members_leave(n->members, p->key, SL_LOST_GONE);
    follow_members(n, now);
}

static void on_load(struct node *n, struct peer *p, const struct sl_msg_load *load, uint64_t now)
{
    p->load = *load;
    p->load_ns = now;
    if (p->joined)
        router_load(n, p, now);
    node_events_load(n, p, now);
}

static void on_meta(struct node *n, uint64_t key, const struct sl_msg_meta *m, uint64_t now)
{
    if (!sl_members_meta(n->members, key, m->offset, m->bytes.len, now))
        return;
    sl_buf_append(&n->meta, m->bytes.data, m->bytes.len);
    if (!n->meta.failed)
        return;
    struct sl_err err;
    sl_fail(&err, SL_NO_MEMORY, "no memory for %zu bytes of model metadata", n->meta.cap_bytes);
    node_stop(n, SL_NO_MEMORY, &err);
}

static void on_step(struct node *n, struct peer *p, const struct sl_msg_step *m, uint64_t now)
{
    uint64_t key = p->key;
    on_load(n, p, &m->load, now);
    for (uint32_t i = 0; i < m->n_outs; i++)
        gen_output(n, key, &m->outs[i], now);
}

static void dispatch(struct node *n, uint64_t key, const struct sl_msg *m, uint64_t now)
{
    if (m->kind == SL_MSG_HELLO) {
        on_hello(n, key, &m->hello, now);
        return;
    }
    if (m->gap) {
        sl_members_gap(n->members, key);
        follow_members(n, now);
        return;
    }
    struct peer *p = node_peer(n, key);
    bool asks = m->kind == SL_MSG_LOAD; /* the others come with no connection to speak of */
    if (!sl_members_heard(n->members, key, asks, now) || !p) {
        n->n_stale_outs += m->kind == SL_MSG_STEP ? m->step.n_outs : 0;
        follow_members(n, now);
        sl_bus_drop(n->bus, key);
        return;
    }
    switch (m->kind) {
    case SL_MSG_LOAD:
        on_load(n, p, &m->load, now);
        break;
    case SL_MSG_STEP:
        on_step(n, p, &m->step, now);
        break;
    case SL_MSG_RANKS:
        node_ranks_keep(p, &m->ranks);
        break;
    case SL_MSG_META_CHUNK:
        on_meta(n, key, &m->meta, now);
        break;
    case SL_MSG_BYE:
        sl_members_leave(n->members, key, SL_LOST_BYE);
        break;
    default:
        break; /* a router's own kinds, echoed: not for us */
    }
    follow_members(n, now);
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
        sl_fail(&err, status,
                "the worker that computed this request was lost, and no other of its "
                "class took it");
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

void node_bus_tick(struct node *n, uint64_t now)
{
    sl_members_tick(n->members, now);
    follow_members(n, now);
}

void node_bus_say_drain(struct node *n)
{
    sl_members_drain(n->members, 0);
    follow_members(n, sl_now_ns());
}

void node_bus_close(struct node *n)
{
    while (!sl_list_empty(&n->peers))
        peer_free(SL_ENTRY(n->peers.next, struct peer, link));
    if (n->bus)
        sl_bus_close(n->bus);
    node_ranks_remove(n);
    if (n->ipc.len)
        sl_bus_ipc_remove(n->ipc.data);
    sl_buf_free(&n->ipc);
    sl_buf_free(&n->meta);
}
