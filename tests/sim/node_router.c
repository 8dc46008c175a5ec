/* A router: the production router and membership behind links that follow runtime/serve/node_bus.c
 * and gen.c. */
#include "sim.h"

static uint64_t clock_of(const struct sim *s, const struct sim_router *r)
{
    return sim_clock(s, r->proc);
}

/* ---- the bus's link table ---- */

static struct rlink *find_link(struct sim_router *r, uint64_t key)
{
    for (uint32_t i = 0; key && i < LINKS_MAX; i++)
        if (r->links[i].key == key)
            return &r->links[i];
    return NULL;
}

static struct rlink *link_of(struct sim_router *r, uint32_t worker, uint32_t life)
{
    struct rlink *l = NULL;
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        if (r->links[i].key && r->links[i].worker == worker && r->links[i].life == life)
            return &r->links[i];
        if (!r->links[i].key)
            l = &r->links[i];
    }
    if (l)
        *l = (struct rlink){.key = ++r->next_key, .worker = worker, .life = life};
    return l;
}

static void drop_link(struct sim_router *r, uint64_t key)
{
    struct rlink *l = find_link(r, key);
    if (l)
        *l = (struct rlink){0};
}

static bool say(struct sim *s, struct sim_router *r, uint64_t key, struct sl_msg *m)
{
    struct rlink *l = find_link(r, key);
    if (!l)
        return false;
    if (s->mode != BARE)
        sl_bus_order_stamp(&l->order, m);
    if (!net_send(s, l->worker, r->index, DOWN, l->life, m)) {
        drop_link(r, key);
        return false;
    }
    if (s->mode != BARE)
        sl_bus_order_sent(&l->order, m);
    return true;
}

/* ---- membership's actions ---- */

static struct peer *find_peer(struct sim_router *r, uint64_t key)
{
    for (uint32_t i = 0; i < LINKS_MAX; i++)
        if (r->peers[i].used && r->peers[i].key == key)
            return &r->peers[i];
    return NULL;
}

static void router_load(struct sim *s, struct sim_router *r, uint64_t key,
                        const struct sl_msg_load *l)
{
    struct sl_worker_load load = {.running = l->running,
                                  .waiting = l->waiting,
                                  .pages_free = l->pages_free,
                                  .pages_total = l->pages_total,
                                  .steps = l->steps,
                                  .step_age_ns = l->last_step_age_ms * MS,
                                  .step_expected_ns = l->step_expected_ms * MS};
    sl_router_worker_load(r->router, key, &load, clock_of(s, r));
}

static void join(struct sim *s, struct sim_router *r, struct peer *p)
{
    struct sl_worker_desc d = {.key = p->key,
                               .class_hash = p->hello.pid >> 16,
                               .max_seqs = p->hello.max_seqs,
                               .max_len = p->hello.max_len,
                               .queue_max = p->hello.queue_max,
                               .page_size = p->hello.page_size,
                               .instance = p->hello.instance};
    struct sl_err err;
    if (sl_router_worker_up(r->router, &d, clock_of(s, r), &err)) {
        sl_members_refuse(r->members, p->key, err.status);
        return;
    }
    p->joined = true;
    router_load(s, r, p->key, &p->hello.load);
}

static void lost(struct sim *s, struct sim_router *r, const struct sl_member_action *a)
{
    struct peer *p = a->user;
    sim_trace(s, "r%u lost %llu why %d", r->index, (unsigned long long)a->key, (int)a->why);
    MUST(s, p->used && p->key == a->key, "router %u lost a peer it does not have", r->index);
    if (p->joined)
        sl_router_worker_down(r->router, p->key, sl_lost_lives(a->why), clock_of(s, r));
    *p = (struct peer){0};
    bool answered = a->why == SL_LOST_REFUSED || a->why == SL_LOST_GAP;
    if (!answered && !find_peer(r, a->key))
        drop_link(r, a->key);
}

static void welcome(struct sim *s, struct sim_router *r, const struct sl_member_action *a)
{
    struct sl_msg m = {.kind = SL_MSG_WELCOME};
    m.welcome = (struct sl_msg_welcome){SL_BUS_VERSION, a->status, SL_STR("")};
    say(s, r, a->key, &m);
    if (!a->user)
        drop_link(r, a->key);
}

static void act(struct sim *s, struct sim_router *r, const struct sl_member_action *a)
{
    struct sl_msg m = {.kind = SL_MSG_PING};
    if (a->kind == SL_MEMBER_LOST) {
        lost(s, r, a);
        return;
    }
    if (a->kind == SL_MEMBER_WELCOME) {
        welcome(s, r, a);
        return;
    }
    struct peer *p = a->user;
    MUST(s, p && p->used && p->key == a->key, "router %u acts for a stranger", r->index);
    if (a->kind == SL_MEMBER_JOIN) {
        join(s, r, p);
        return;
    }
    if (a->kind == SL_MEMBER_OPEN) {
        MUST(s, r->meta_len == META_BYTES, "router %u opens %u bytes", r->index, r->meta_len);
        sl_members_model(r->members, a->key, SL_OK, clock_of(s, r));
        return;
    }
    if (a->kind == SL_MEMBER_META_GET) {
        if (!a->offset)
            r->meta_len = 0;
        m.kind = SL_MSG_META_GET;
        memset(m.meta.sha256, 9, sizeof m.meta.sha256);
        m.meta.offset = a->offset;
    } else if (a->kind == SL_MEMBER_DRAIN) {
        m.kind = SL_MSG_DRAIN;
        if (p->joined)
            sl_router_worker_drain(r->router, a->key);
    }
    if (!say(s, r, a->key, &m))
        sl_members_leave(r->members, a->key, SL_LOST_GONE);
}

static void follow_members(struct sim *s, struct sim_router *r)
{
    struct sl_member_action a;
    while (sl_members_next_action(r->members, &a))
        act(s, r, &a);
}

/* ---- the router's actions ---- */

static void send_request(struct sim *s, struct sim_router *r, const struct sl_action *a)
{
    struct client *c = a->user;
    struct peer *p = find_peer(r, a->worker_key);
    struct rlink *l = find_link(r, a->worker_key);
    struct sl_msg m = {.kind = SL_MSG_SUBMIT};
    uint64_t now = s->now_ns;
    MUST(s, p && p->joined, "request %u is sent to a stranger", c->index);
    MUST(s, c->state == LIVE && c->id == a->id, "request %u is sent and is not live", c->index);
    MUST(s, a->epoch > c->owner_epoch, "request %u: epoch %u after %u", c->index, a->epoch,
         c->owner_epoch);
    m.submit = (struct sl_msg_submit){.id = a->id,
                                      .epoch = a->epoch,
                                      .n_prompt = c->n_prompt,
                                      .tokens = c->tokens,
                                      .n_tokens = c->n,
                                      .priority = c->priority,
                                      .tenant = c->index % 3,
                                      .max_tokens = c->max_new};
    m.submit.salt[0] = (uint8_t)c->salt;
    if (c->deadline_ns)
        m.submit.deadline_ms = c->deadline_ns > now ? (c->deadline_ns - now) / MS + 1 : 1;
    if (l) {
        c->owner = l->worker;
        c->owner_life = l->life;
    }
    c->owner_epoch = a->epoch;
    if (!say(s, r, a->worker_key, &m))
        sl_router_refused(r->router, a->worker_key, a->id, a->epoch, SL_PEER, clock_of(s, r));
}

static void pump(struct sim *s, struct sim_router *r)
{
    struct sl_action a;
    while (sl_router_next_action(r->router, &a)) {
        sim_trace(s, "r%u act %d id %llu epoch %u to %llu", r->index, (int)a.kind,
                  (unsigned long long)a.id, a.epoch, (unsigned long long)a.worker_key);
        struct sl_msg m = {.kind = SL_MSG_CANCEL};
        m.cancel = (struct sl_msg_cancel){a.id, a.epoch};
        if (a.kind == SL_ACT_SEND)
            send_request(s, r, &a);
        else if (a.kind == SL_ACT_CANCEL)
            say(s, r, a.worker_key, &m);
        else
            client_fail(s, a.user, a.status);
    }
}

/* ---- what workers say ---- */

static struct client *client_of(struct sim *s, struct sim_router *r, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_clients; i++) {
        struct client *c = &s->clients[i];
        if (c->state == LIVE && c->id == id && c->router == r->index &&
            c->router_life == r->proc->life)
            return c;
    }
    return NULL;
}

static void on_out(struct sim *s, struct sim_router *r, struct peer *p, struct rlink *l,
                   const struct sl_msg_out *o)
{
    struct client *c = client_of(s, r, o->id);
    uint64_t now = clock_of(s, r);
    if (o->end == SL_END_ERROR && !o->n_tokens &&
        (o->status == SL_QUEUE_FULL || o->status == SL_DRAINING || o->status == SL_NO_MEMORY)) {
        sl_router_refused(r->router, p->key, o->id, o->epoch, (enum sl_status)o->status, now);
        return;
    }
    struct sl_route_output out = {.id = o->id,
                                  .epoch = o->epoch,
                                  .ordinal = o->ordinal,
                                  .n_tokens = o->n_tokens,
                                  .ended = o->end != SL_END_NONE};
    if (!sl_router_output(r->router, p->key, &out, now))
        return;
    MUST(s, c, "output of nobody's request %llu is taken", (unsigned long long)o->id);
    if (!c)
        return;
    MUST(s, o->epoch == c->owner_epoch && l->worker == c->owner && l->life == c->owner_life,
         "request %u: output of epoch %u of worker %u is taken, owner is %u under %u", c->index,
         o->epoch, l->worker, c->owner, c->owner_epoch);
    for (uint32_t i = 0; i < o->n_tokens; i++)
        client_token(s, c, o->tokens[i], p->hello.pid >> 16);
    if (o->end == SL_END_STOP || o->end == SL_END_LENGTH)
        client_end(s, c, true);
    else if (o->end)
        client_fail(s, c, o->end == SL_END_DEADLINE ? SL_TIMEOUT : SL_FAILED);
}

/* A registration is newer than all that this router took of that life of the worker. */
static void check_newer(struct sim *s, struct sim_router *r, const struct rlink *l,
                        uint64_t greeting)
{
    uint32_t at = (l->life * WORKERS_MAX + l->worker) % (WORKERS_MAX * 64);
    MUST(s, greeting > r->greetings[at], "router %u takes HELLO %llu of worker %u again after %llu",
         r->index, (unsigned long long)greeting, l->worker, (unsigned long long)r->greetings[at]);
    r->greetings[at] = greeting;
}

static void on_hello(struct sim *s, struct sim_router *r, uint64_t key,
                     const struct sl_msg_hello *h)
{
    struct peer *p = NULL;
    for (uint32_t i = 0; i < LINKS_MAX && !p; i++)
        if (!r->peers[i].used)
            p = &r->peers[i];
    if (!p)
        return;
    struct sl_member_hello m = {.version = h->version,
                                .instance = h->instance,
                                .greeting = h->greeting,
                                .meta_bytes = h->meta_bytes,
                                .user = p};
    memcpy(m.meta_sha256, h->meta_sha256, sizeof m.meta_sha256);
    *p = (struct peer){.key = key, .hello = *h, .used = true};
    p->hello.pid |= (h->class_name.data[0] == 's' ? 7u : 8u) << 16; /* the text dies */
    struct peer was = *p;
    p->used = false; /* not to be found while the old one goes */
    bool taken = sl_members_hello(r->members, key, &m, clock_of(s, r));
    if (taken) {
        *p = was;
        check_newer(s, r, find_link(r, key), h->greeting);
    }
    follow_members(s, r);
}

static void dispatch(struct sim *s, struct sim_router *r, struct rlink *l, const struct sl_msg *m)
{
    uint64_t key = l->key, now = clock_of(s, r);
    struct peer *p = find_peer(r, key);
    if (m->kind == SL_MSG_HELLO) {
        on_hello(s, r, key, &m->hello);
        return;
    }
    if (m->gap) {
        sl_members_gap(r->members, key);
        follow_members(s, r);
        return;
    }
    if (!sl_members_heard(r->members, key, m->kind == SL_MSG_LOAD, now) || !p) {
        follow_members(s, r);
        drop_link(r, key);
        return;
    }
    if (m->kind == SL_MSG_LOAD && p->joined)
        router_load(s, r, key, &m->load);
    if (m->kind == SL_MSG_STEP) {
        if (p->joined)
            router_load(s, r, key, &m->step.load);
        for (uint32_t i = 0; i < m->step.n_outs; i++)
            on_out(s, r, p, l, &m->step.outs[i]);
    }
    if (m->kind == SL_MSG_META_CHUNK &&
        sl_members_meta(r->members, key, m->meta.offset, m->meta.bytes.len, now))
        r->meta_len += (uint32_t)m->meta.bytes.len;
    if (m->kind == SL_MSG_BYE)
        sl_members_leave(r->members, key, SL_LOST_BYE);
    follow_members(s, r);
}

void router_hear(struct sim *s, uint32_t index, uint32_t w, uint32_t life, struct sl_msg *m)
{
    struct sim_router *r = &s->routers[index];
    struct rlink *l = link_of(r, w, life);
    if (!l || !sl_bus_order_heard(&l->order, m))
        return;
    dispatch(s, r, l, m);
    pump(s, r);
}

/* ---- clients and time ---- */

void router_ask(struct sim *s, uint32_t index, struct client *c)
{
    struct sim_router *r = &s->routers[index];
    uint64_t now = clock_of(s, r);
    struct sl_err err;
    c->id = ++r->next_id;
    c->router = index;
    c->router_life = r->proc->life;
    c->owner_epoch = 0;
    c->state = LIVE;
    struct sl_route_request q = {.id = c->id,
                                 .tokens = c->tokens,
                                 .n_tokens = c->n,
                                 .n_before = c->n - c->n_prompt,
                                 .priority = c->priority,
                                 .tenant = c->index % 3,
                                 .has_class = c->class_hash != 0,
                                 .class_hash = c->class_hash,
                                 .user = c};
    q.salt[0] = (uint8_t)c->salt;
    if (c->deadline_ns)
        q.deadline_ns = c->deadline_ns > s->now_ns ? now + (c->deadline_ns - s->now_ns) : 1;
    if (!sl_members_has_model(r->members) || sl_router_submit(r->router, &q, now, &err))
        c->state = ASKING;
    pump(s, r);
}

void router_cancel(struct sim *s, uint32_t index, struct client *c)
{
    struct sim_router *r = &s->routers[index];
    sl_router_cancel(r->router, c->id, clock_of(s, r));
    pump(s, r);
}

void router_drain_worker(struct sim *s, uint32_t index, uint32_t w)
{
    struct sim_router *r = &s->routers[index];
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        struct rlink *l = find_link(r, r->peers[i].used ? r->peers[i].key : 0);
        if (l && l->worker == w)
            sl_members_drain(r->members, l->key);
    }
    follow_members(s, r);
    pump(s, r);
}

void router_tick(struct sim *s, uint32_t index)
{
    struct sim_router *r = &s->routers[index];
    uint64_t now = clock_of(s, r);
    sl_router_tick(r->router, now);
    sl_members_tick(r->members, now);
    follow_members(s, r);
    pump(s, r);
}

void router_start(struct sim *s, uint32_t index)
{
    struct sim_router *r = &s->routers[index];
    struct sl_err err;
    struct sl_router_config c = {
        .max_workers = 2 * WORKERS_MAX,
        .max_requests = CLIENTS_MAX,
        .queue_max = CLIENTS_MAX,
        .page_size = PAGE_SIZE,
        .kv_keys_max = 256,
        .retries_max = s->mode == ORDERED ? 5 : 1000,
        .seed = rng_next(&s->rng),
        .progress_timeout_ns = 2500 * MS,
        .eject_slow = rng_chance(&s->rng, 2),
        .policy = (enum sl_route_policy)rng_below(&s->rng, SL_ROUTE_POWER_OF_TWO + 1)};
    struct sl_members_config m = {.max_members = 2 * WORKERS_MAX,
                                  .version_min = SL_BUS_VERSION_MIN,
                                  .version_max = SL_BUS_VERSION,
                                  .meta_bytes_max = META_BYTES};
    *r = (struct sim_router){.proc = router_proc(s, index), .index = index};
    MUST(s, !sl_router_open(&c, &r->router, &err), "%s", err.msg);
    MUST(s, !sl_members_open(&m, &r->members, &err), "%s", err.msg);
    r->proc->alive = true;
    r->proc->life++;
    r->proc->paused_until_ns = 0;
    struct event *e = sim_schedule(s, EV_TICK, s->now_ns);
    e->a = index;
    e->life = r->proc->life;
    net_node_up(s, r->proc);
}

void router_stop(struct sim *s, uint32_t index)
{
    struct sim_router *r = &s->routers[index];
    struct sl_router_stats st;
    if (!r->proc || !r->proc->alive)
        return;
    sl_router_stats(r->router, &st);
    s->sum.n_retried += st.n_retried;
    s->sum.n_fenced += st.n_fenced;
    s->sum.n_repeated += st.n_repeated;
    s->sum.n_gaps += st.n_gaps;
    sl_router_close(r->router);
    sl_members_close(r->members);
    r->proc->alive = false;
    net_node_down(s, r->proc);
    client_router_lost(s, index);
}

void router_check(struct sim *s, uint32_t index)
{
    struct sim_router *r = &s->routers[index];
    struct sl_err err = {0};
    if (!r->proc->alive)
        return;
    MUST(s, !sl_router_check(r->router, &err), "router %u: %s", index, err.msg);
    MUST(s, !sl_members_check(r->members, &err), "router %u: %s", index, err.msg);
}
