/* A worker: the production scheduler behind links that follow runtime/serve/worker_link.c and
 * worker_request.c. */
#include "sim.h"

static uint64_t clock_of(const struct sim *s, const struct sim_worker *w)
{
    return sim_clock(s, w->proc);
}

/* ---- jobs ---- */

static struct job *job_of(struct sl_list *l)
{
    return SL_ENTRY(l, struct job, link);
}

static struct job *find_job(struct sim_worker *w, uint32_t router, uint64_t id)
{
    for (struct sl_list *l = w->jobs.next; l != &w->jobs; l = l->next)
        if (!job_of(l)->orphan && job_of(l)->router == router && job_of(l)->id == id)
            return job_of(l);
    return NULL;
}

static void job_free(struct sim_worker *w, struct job *j)
{
    sl_list_remove(&j->link);
    w->n_jobs--;
    free(j);
}

static void orphan(struct sim_worker *w, struct job *j)
{
    j->orphan = true;
    sl_sched_cancel(w->sched, j->local_id);
}

static void cancel_link(struct sim_worker *w, uint32_t router)
{
    for (struct sl_list *l = w->jobs.next; l != &w->jobs; l = l->next)
        if (!job_of(l)->orphan && job_of(l)->router == router)
            orphan(w, job_of(l));
}

/* ---- out ---- */

static void load(struct sim *s, struct sim_worker *w, struct sl_msg_load *out)
{
    struct sl_sched_stats st;
    sl_sched_stats(w->sched, &st);
    uint64_t age = w->plan ? clock_of(s, w) - w->step_start_ns : 0;
    *out = (struct sl_msg_load){.running = st.running,
                                .waiting = st.waiting,
                                .pages_free = st.pages_free,
                                .pages_total = st.pages_total,
                                .steps = st.n_steps,
                                .last_step_age_ms = age / MS,
                                .step_expected_ms = (w->step_expected_ns + MS - 1) / MS};
}

static bool say(struct sim *s, struct sim_worker *w, uint32_t r, struct sl_msg *m)
{
    struct link *l = &w->links[r];
    if (s->mode != BARE)
        sl_bus_order_stamp(&l->order, m);
    if (!net_send(s, w->index, r, UP, w->proc->life, m))
        return false;
    if (s->mode != BARE)
        sl_bus_order_sent(&l->order, m);
    return true;
}

static void link_broken(struct sim_worker *w, uint32_t r)
{
    cancel_link(w, r);
    w->links[r].state = LINK_GREET;
}

static void say_hello(struct sim *s, struct sim_worker *w, uint32_t r)
{
    struct link *l = &w->links[r];
    struct sl_msg m = {.kind = SL_MSG_HELLO};
    m.hello =
        (struct sl_msg_hello){.version = SL_BUS_VERSION,
                              .version_min = SL_BUS_VERSION_MIN,
                              .pid = w->index + 1,
                              .tp = 1,
                              .pp = 1,
                              .threads = 1,
                              .max_seqs = w->max_seqs,
                              .max_len = LEN_MAX,
                              .max_batch_tokens = ROWS_MAX,
                              .n_vocab = FAKE_VOCAB,
                              .page_size = PAGE_SIZE,
                              .queue_max = 4,
                              .meta_bytes = META_BYTES,
                              .instance = w->instance,
                              .greeting = ++l->n_greetings,
                              .model = SL_STR("m"),
                              .site = SL_STR(""),
                              .role = SL_STR("both"),
                              .isa = SL_STR("s"),
                              .backend = SL_STR("b"),
                              .class_name = w->class_hash == 7 ? SL_STR("seven") : SL_STR("eight")};
    memset(m.hello.meta_sha256, 9, sizeof m.hello.meta_sha256);
    load(s, w, &m.hello.load);
    if (!say(s, w, r, &m))
        return;
    l->state = LINK_UP;
    l->greeted_ns = clock_of(s, w);
    l->heard_ns = clock_of(s, w);
}

static void greet(struct sim *s, struct sim_worker *w)
{
    for (uint32_t r = 0; r < s->n_routers && !w->draining; r++)
        if (w->links[r].state == LINK_GREET &&
            clock_of(s, w) - w->links[r].greeted_ns >= GREET_PAUSE_NS)
            say_hello(s, w, r);
}

static void answer(struct sim *s, struct sim_worker *w, uint32_t r, const struct sl_msg_submit *q,
                   enum sl_status status)
{
    struct sl_msg_out out = {.id = q->id,
                             .epoch = q->epoch,
                             .end = SL_END_ERROR,
                             .status = status,
                             .message = SL_STR("no")};
    struct sl_msg m = {.kind = SL_MSG_STEP};
    m.step.outs = &out;
    m.step.n_outs = 1;
    load(s, w, &m.step.load);
    if (!say(s, w, r, &m))
        link_broken(w, r);
}

/* All that one step has for one router. `token` [n] by job; NULL: ended without. */
struct share {
    struct job *job;
    bool has_token;
    uint32_t token;
    enum sl_end end;
};

static void send_shares(struct sim *s, struct sim_worker *w, const struct share *shares, uint32_t n)
{
    for (uint32_t r = 0; r < s->n_routers; r++) {
        struct sl_msg_out outs[2 * SEQS_MAX + 64];
        struct sl_msg m = {.kind = SL_MSG_STEP};
        uint32_t n_outs = 0;
        for (uint32_t i = 0; i < n; i++) {
            struct job *j = shares[i].job;
            if (j->orphan || j->router != r)
                continue;
            outs[n_outs++] = (struct sl_msg_out){.id = j->id,
                                                 .epoch = j->epoch,
                                                 .tokens = &shares[i].token,
                                                 .n_tokens = shares[i].has_token,
                                                 .end = shares[i].end,
                                                 .ordinal = j->n_generated + 1};
            j->n_generated += shares[i].has_token;
        }
        if (!n_outs)
            continue;
        m.step.outs = outs;
        m.step.n_outs = n_outs;
        load(s, w, &m.step.load);
        if (!say(s, w, r, &m))
            link_broken(w, r);
    }
}

static void report_ended(struct sim *s, struct sim_worker *w)
{
    struct sl_ended ended;
    while (sl_sched_next_ended(w->sched, &ended)) {
        struct share one = {.job = ended.user, .end = ended.end};
        send_shares(s, w, &one, 1);
        job_free(w, one.job);
    }
}

/* ---- steps ---- */

static uint64_t step_ns(const struct sl_plan *p)
{
    return MS / 2 + p->n_tok * (MS / 4);
}

static void kick(struct sim *s, struct sim_worker *w)
{
    if (w->plan)
        return;
    w->plan = sl_sched_plan(w->sched, ROWS_MAX, clock_of(s, w));
    report_ended(s, w);
    if (!w->plan)
        return;
    const char *wrong = fake_check_plan(&w->kv, w->plan, ROWS_MAX);
    MUST(s, !wrong, "worker %u: %s", w->index, wrong);
    uint64_t ns = step_ns(w->plan) * (s->now_ns < w->slow_until_ns ? 10 : 1);
    uint64_t start = s->now_ns > w->wedged_until_ns ? s->now_ns : w->wedged_until_ns;
    w->step_start_ns = clock_of(s, w);
    w->step_expected_ns = step_ns(w->plan);
    struct event *e = sim_schedule(s, EV_STEP_DONE, start + ns);
    e->a = w->index;
    e->life = w->proc->life;
}

void worker_step_done(struct sim *s, uint32_t index)
{
    struct sim_worker *w = &s->workers[index];
    const struct sl_plan *p = w->plan;
    struct sl_sampled_token out[SEQS_MAX];
    struct share shares[SEQS_MAX] = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_seq; i++) {
        struct job *j = p->user[i];
        uint32_t token = fake_compute(&w->kv, p, i, model_salt(j->salt, w->class_hash), 0);
        if (n == p->n_logits || p->logit_seq[n] != i)
            continue;
        uint32_t n_after = p->pos[p->logit_row[n]] + 2 - j->n_prompt;
        enum sl_end end = model_stops(token)      ? SL_END_STOP
                          : n_after == j->max_new ? SL_END_LENGTH
                                                  : SL_END_NONE;
        shares[n] = (struct share){j, true, token, end};
        out[n++] = (struct sl_sampled_token){token, end};
    }
    send_shares(s, w, shares, n);
    w->plan = NULL;
    sl_sched_commit(w->sched, out, clock_of(s, w));
    for (uint32_t i = 0; i < n; i++)
        if (shares[i].end)
            job_free(w, shares[i].job);
    report_ended(s, w);
    kick(s, w);
}

/* ---- in ---- */

static enum sl_status start_job(struct sim *s, struct sim_worker *w, uint32_t r,
                                const struct sl_msg_submit *m)
{
    if (w->draining)
        return SL_DRAINING;
    if (w->n_jobs >= 2 * (w->max_seqs + 4))
        return SL_QUEUE_FULL;
    struct job *j = calloc(1, sizeof *j);
    if (!j)
        abort();
    *j = (struct job){.router = r,
                      .epoch = m->epoch,
                      .n_prompt = m->n_prompt,
                      .max_new = m->max_tokens,
                      .n_generated = m->n_tokens - m->n_prompt,
                      .id = m->id,
                      .local_id = ++w->next_local,
                      .salt = m->salt[0]};
    struct sl_sched_request q = {.id = j->local_id,
                                 .tokens = m->tokens,
                                 .n_tokens = m->n_tokens,
                                 .n_prompt = m->n_prompt,
                                 .max_new = m->max_tokens,
                                 .priority = m->priority,
                                 .tenant = m->tenant,
                                 .user = j};
    memcpy(q.salt, m->salt, sizeof q.salt);
    if (m->deadline_ms)
        q.deadline_ns = clock_of(s, w) + m->deadline_ms * MS;
    enum sl_status status = sl_sched_submit(w->sched, &q, clock_of(s, w), NULL);
    if (status) {
        free(j);
        return status;
    }
    sl_list_push_back(&w->jobs, &j->link);
    w->n_jobs++;
    return SL_OK;
}

static void on_submit(struct sim *s, struct sim_worker *w, uint32_t r,
                      const struct sl_msg_submit *m)
{
    struct job *old = find_job(w, r, m->id);
    if (old && m->epoch <= old->epoch)
        return;
    if (old)
        orphan(w, old);
    enum sl_status status = start_job(s, w, r, m);
    if (status)
        answer(s, w, r, m, status);
    report_ended(s, w);
    kick(s, w);
}

static void on_cancel(struct sim *s, struct sim_worker *w, uint32_t r,
                      const struct sl_msg_cancel *m)
{
    struct job *j = find_job(w, r, m->id);
    if (j && j->epoch == m->epoch)
        sl_sched_cancel(w->sched, j->local_id);
    report_ended(s, w);
}

static void on_meta_get(struct sim *s, struct sim_worker *w, uint32_t r,
                        const struct sl_msg_meta *ask)
{
    static const char bytes[META_BYTES + 1] = "metadata!!";
    struct sl_msg m = {.kind = SL_MSG_META_CHUNK, .meta = *ask};
    if (ask->offset > META_BYTES)
        return;
    uint64_t left = META_BYTES - ask->offset;
    m.meta.bytes = (struct sl_str){bytes + ask->offset, left < 4 ? left : 4};
    if (!say(s, w, r, &m))
        link_broken(w, r);
}

static void follow_connection(struct sim *s, struct sim_worker *w, uint32_t r)
{
    struct link *l = &w->links[r];
    const struct wire *x = &s->wires[w->index][r];
    bool stands = s->mode != ORDERED || x->stands;
    uint32_t n = s->mode != ORDERED ? 1 : x->n_connects;
    if (n == l->n_connects && (stands || l->state == LINK_DOWN))
        return;
    cancel_link(w, r);
    l->n_connects = n;
    l->state = stands ? LINK_GREET : LINK_DOWN;
}

static void dispatch(struct sim *s, struct sim_worker *w, uint32_t r, const struct sl_msg *m)
{
    if (m->kind == SL_MSG_SUBMIT)
        on_submit(s, w, r, &m->submit);
    else if (m->kind == SL_MSG_CANCEL)
        on_cancel(s, w, r, &m->cancel);
    else if (m->kind == SL_MSG_META_GET)
        on_meta_get(s, w, r, &m->meta);
    else if (m->kind == SL_MSG_DRAIN)
        w->draining = true;
    else if (m->kind == SL_MSG_WELCOME && m->welcome.status == SL_PEER)
        link_broken(w, r);
    else if (m->kind == SL_MSG_WELCOME && m->welcome.status != SL_OK)
        w->links[r].state = LINK_REFUSED;
}

void worker_hear(struct sim *s, uint32_t index, uint32_t r, struct sl_msg *m)
{
    struct sim_worker *w = &s->workers[index];
    struct link *l = &w->links[r];
    follow_connection(s, w, r);
    if (!sl_bus_order_heard(&l->order, m))
        return;
    l->heard_ns = clock_of(s, w);
    if (m->gap && l->state == LINK_UP)
        link_broken(w, r);
    if (l->state == LINK_SILENT)
        l->state = LINK_GREET;
    if (l->state == LINK_UP || m->kind == SL_MSG_DRAIN)
        dispatch(s, w, r, m);
    report_ended(s, w);
    greet(s, w);
}

/* ---- life ---- */

static void check_drain(struct sim *s, struct sim_worker *w)
{
    if (!w->draining || w->n_jobs)
        return;
    struct sl_msg m = {.kind = SL_MSG_BYE};
    for (uint32_t r = 0; r < s->n_routers; r++)
        if (w->links[r].state == LINK_UP || w->links[r].state == LINK_SILENT)
            say(s, w, r, &m);
    uint32_t index = w->index;
    worker_stop(s, index);
    struct event *e = sim_schedule(s, EV_RESTART, s->now_ns + 100 * MS);
    e->a = ROUTERS_MAX + index;
}

void worker_tick(struct sim *s, uint32_t index)
{
    struct sim_worker *w = &s->workers[index];
    uint64_t now = clock_of(s, w);
    for (uint32_t r = 0; r < s->n_routers; r++) {
        struct link *l = &w->links[r];
        follow_connection(s, w, r);
        if (l->state != LINK_UP || now < l->heard_ns || now - l->heard_ns < LINK_QUIET_NS)
            continue;
        cancel_link(w, r);
        l->state = LINK_SILENT;
    }
    report_ended(s, w);
    greet(s, w);
    if (now >= w->next_load_ns) {
        for (uint32_t r = 0; r < s->n_routers; r++) {
            struct sl_msg m = {.kind = SL_MSG_LOAD};
            load(s, w, &m.load);
            if (w->links[r].state == LINK_UP || w->links[r].state == LINK_SILENT)
                say(s, w, r, &m);
        }
        w->next_load_ns = now + LOAD_NS;
    }
    kick(s, w); /* deadlines of what waits */
    check_drain(s, w);
}

void worker_start(struct sim *s, uint32_t index)
{
    struct sim_worker *w = &s->workers[index];
    uint64_t class_hash = w->class_hash;
    struct sl_err err;
    struct sl_sched_config c = {.max_seqs = 1 + rng_below(&s->rng, SEQS_MAX),
                                .max_batch_tokens = 4 + rng_below(&s->rng, ROWS_MAX - 4),
                                .max_len = LEN_MAX,
                                .n_pages = 30 + rng_below(&s->rng, 30),
                                .page_size = PAGE_SIZE,
                                .queue_max = 4,
                                .prefix_cache = true};
    *w = (struct sim_worker){.proc = worker_proc(s, index),
                             .index = index,
                             .class_hash = class_hash,
                             .max_seqs = c.max_seqs,
                             .instance = ++s->next_instance};
    sl_list_init(&w->jobs);
    MUST(s, !sl_sched_open(&c, &w->sched, &err), "%s", err.msg);
    fake_kv_open(&w->kv, c.n_pages, c.page_size);
    w->proc->alive = true;
    w->proc->life++;
    w->proc->paused_until_ns = 0;
    struct event *e = sim_schedule(s, EV_TICK, s->now_ns + rng_below(&s->rng, 50) * MS);
    e->a = ROUTERS_MAX + index;
    e->life = w->proc->life;
    net_node_up(s, w->proc);
}

void worker_stop(struct sim *s, uint32_t index)
{
    struct sim_worker *w = &s->workers[index];
    if (!w->proc || !w->proc->alive)
        return;
    while (!sl_list_empty(&w->jobs))
        job_free(w, job_of(w->jobs.next));
    sl_sched_close(w->sched);
    fake_kv_close(&w->kv);
    w->plan = NULL;
    w->proc->alive = false;
    net_node_down(s, w->proc);
}

void worker_check(struct sim *s, uint32_t index)
{
    struct sl_err err = {0};
    struct sim_worker *w = &s->workers[index];
    if (w->proc->alive)
        MUST(s, !sl_sched_check(w->sched, &err), "worker %u: %s", index, err.msg);
}
