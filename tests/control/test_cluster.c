/* A cluster in one process under a virtual clock: the real router and real schedulers, a stand-in
 * for the model, links with delay, workers that crash, hang, fall silent, drain and come back.
 * Every stream ends once with exactly the tokens the model gives from its prompt, whichever workers
 * computed it, and in the end no worker holds a page or a sequence. */
#include "fake_engine.h"

#include <sluice/base/containers.h>
#include <sluice/control/router.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

enum { N_SEEDS = 300, N_REQS = 60, N_WORKERS = 4, LEN_MAX = 120, ROWS_MAX = 32, SEQS_MAX = 6 };
#define MS             1000000ull
#define HEARTBEAT_MS   100
#define TROUBLE_END_MS 3000 /* then the workers behave */

enum fate { UNBORN, LIVE, FINISHED, FAILED, CANCELLED, REFUSED };

struct stream {
    uint64_t id, salt, deadline_ns;
    uint32_t tokens[LEN_MAX], n, n_prompt, max_new;
    int32_t priority;
    enum fate fate;
};

/* A request at a worker, known to its scheduler by a number of the worker's own. */
struct job {
    struct sl_list link;
    struct stream *stream;
    uint64_t local_id;
    uint32_t epoch;
};

struct node {
    struct sl_sched *sched;
    struct fake_kv kv;
    struct sl_list jobs;
    const struct sl_plan *plan;
    uint64_t key, next_local, arrive_ns[2]; /* last arrival of each direction: links keep order */
    uint32_t generation;
    bool up, hung, silent;
};

enum kind {
    TO_WORKER_SUBMIT,
    TO_WORKER_CANCEL,
    TO_ROUTER_OUT,
    TO_ROUTER_LOAD,
    TO_ROUTER_DOWN,
    STEP_DONE,
    HEARTBEAT,
    TROUBLE,
    RESTART,
    RECOVER,
    CLIENT_SUBMIT,
    CLIENT_CANCEL
};

struct event {
    struct sl_heap_node node;
    uint64_t at_ns, serial;
    enum kind kind;
    uint32_t worker, generation;
    uint64_t key, id;
    uint32_t epoch, n, token;
    bool has_token, ended;
    enum sl_status refused;
    struct sl_worker_load load;
};

struct world {
    uint64_t seed, now_ns, next_key, next_serial;
    struct rng rng;
    struct sl_router *router;
    struct sl_heap events;
    struct node nodes[N_WORKERS];
    struct stream streams[N_REQS];
    uint32_t n_open; /* not yet ended */
};

static struct {
    uint64_t fates[REFUSED + 1], retried, fenced, ejected;
} reached;

#define MUST(w, cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            print_error("seed %llu: ", (unsigned long long)(w)->seed);                             \
            print_error(__VA_ARGS__);                                                              \
            fail_msg(" (%s)", #cond);                                                              \
        }                                                                                          \
    } while (0)

/* --- time and links --------------------------------------------------------------------------- */

static bool earlier(const struct sl_heap_node *a, const struct sl_heap_node *b)
{
    const struct event *x = SL_ENTRY(a, struct event, node), *y = SL_ENTRY(b, struct event, node);
    return x->at_ns != y->at_ns ? x->at_ns < y->at_ns : x->serial < y->serial;
}

static struct event *schedule(struct world *w, enum kind kind, uint64_t at_ns, uint32_t worker)
{
    struct event *e = calloc(1, sizeof *e);
    assert_non_null(e);
    e->kind = kind;
    e->at_ns = at_ns;
    e->serial = w->next_serial++;
    e->worker = worker;
    e->generation = w->nodes[worker].generation;
    e->key = w->nodes[worker].key;
    sl_heap_insert(&w->events, &e->node);
    return e;
}

static struct event *message(struct world *w, enum kind kind, uint32_t worker)
{
    struct node *n = &w->nodes[worker];
    uint64_t *last = &n->arrive_ns[kind >= TO_ROUTER_OUT];
    uint64_t at = w->now_ns + 1 + rng_below(&w->rng, rng_chance(&w->rng, 20) ? 40 * MS : MS);
    *last = at > *last ? at : *last;
    return schedule(w, kind, *last, worker);
}

/* --- workers ---------------------------------------------------------------------------------- */

static void node_open(struct world *w, uint32_t i)
{
    struct node *n = &w->nodes[i];
    struct sl_sched_config c = {.max_seqs = 1 + rng_below(&w->rng, SEQS_MAX),
                                .max_batch_tokens = 4 + rng_below(&w->rng, ROWS_MAX - 4),
                                .max_len = LEN_MAX,
                                .n_pages = 30 + rng_below(&w->rng, 30),
                                .page_size = 4,
                                .queue_max = 4,
                                .prefix_cache = true};
    struct sl_err err;
    *n = (struct node){.key = ++w->next_key, .generation = n->generation + 1, .up = true};
    sl_list_init(&n->jobs);
    MUST(w, !sl_sched_open(&c, &n->sched, &err), "%s", err.msg);
    fake_kv_open(&n->kv, c.n_pages, c.page_size);
    struct sl_worker_desc d = {.key = n->key,
                               .class_hash = 7,
                               .max_seqs = c.max_seqs,
                               .max_len = c.max_len,
                               .queue_max = c.queue_max};
    MUST(w, !sl_router_worker_up(w->router, &d, w->now_ns, &err), "%s", err.msg);
    schedule(w, HEARTBEAT, w->now_ns + 10 * MS, i);
}

static void job_free(struct job *j)
{
    sl_list_remove(&j->link);
    free(j);
}

static void node_close(struct node *n)
{
    while (!sl_list_empty(&n->jobs))
        job_free(SL_ENTRY(n->jobs.next, struct job, link));
    sl_sched_close(n->sched);
    fake_kv_close(&n->kv);
    n->up = false;
    n->plan = NULL;
    n->generation++;
}

static struct event *send_out(struct world *w, uint32_t i, const struct job *j)
{
    struct event *e = message(w, TO_ROUTER_OUT, i);
    e->id = j->stream->id;
    e->epoch = j->epoch;
    return e;
}

static void node_reap(struct world *w, uint32_t i)
{
    struct sl_ended ended;
    while (sl_sched_next_ended(w->nodes[i].sched, &ended)) {
        struct job *j = ended.user;
        if (ended.end != SL_END_CANCELLED)
            send_out(w, i, j)->ended = true;
        job_free(j);
    }
}

static void node_kick(struct world *w, uint32_t i)
{
    struct node *n = &w->nodes[i];
    struct sl_err err;
    if (n->plan || n->hung)
        return;
    n->plan = sl_sched_plan(n->sched, ROWS_MAX, w->now_ns);
    node_reap(w, i);
    MUST(w, !sl_sched_check(n->sched, &err), "%s", err.msg);
    if (n->plan)
        schedule(w, STEP_DONE, w->now_ns + MS / 4 * (1 + n->plan->n_tok / 4), i);
}

static void send_load(struct world *w, uint32_t i)
{
    struct sl_sched_stats st;
    sl_sched_stats(w->nodes[i].sched, &st);
    message(w, TO_ROUTER_LOAD, i)->load =
        (struct sl_worker_load){.running = st.running,
                                .waiting = st.waiting,
                                .pages_free = st.pages_free,
                                .pages_total = st.pages_total,
                                .steps = st.n_steps,
                                .rows = st.n_prefill_tokens + st.n_decode_tokens,
                                .busy_ns = st.n_steps * MS * (i == 1 && w->seed % 4 == 0 ? 40 : 1)};
}

static void on_step_done(struct world *w, uint32_t i)
{
    struct node *n = &w->nodes[i];
    const struct sl_plan *p = n->plan;
    struct sl_sampled_token out[SEQS_MAX];
    struct job *ended[SEQS_MAX];
    uint32_t logit = 0, n_ended = 0;
    if (n->hung)
        return; /* on_recover goes on */
    send_load(w, i);
    for (uint32_t s = 0; s < p->n_seq; s++) {
        struct job *j = p->user[s];
        uint32_t token = fake_compute(&n->kv, p, s, j->stream->salt, 0);
        if (logit == p->n_logits || p->logit_seq[logit] != s)
            continue;
        uint32_t have = p->pos[p->logit_row[logit]] + 2; /* with this token */
        bool last = have - j->stream->n_prompt == j->stream->max_new;
        struct event *e = send_out(w, i, j);
        e->has_token = true;
        e->token = token;
        e->n = have - 1; /* its index: the client checks that none is missing or repeated */
        e->ended = last;
        out[logit++] = (struct sl_sampled_token){token, last ? SL_END_LENGTH : SL_END_NONE};
        if (last)
            ended[n_ended++] = j;
    }
    n->plan = NULL;
    sl_sched_commit(n->sched, out, w->now_ns);
    while (n_ended)
        job_free(ended[--n_ended]);
    node_reap(w, i);
    node_kick(w, i);
}

static void on_submit(struct world *w, const struct event *e)
{
    struct node *n = &w->nodes[e->worker];
    struct stream *q = &w->streams[e->id];
    struct job *j = calloc(1, sizeof *j);
    assert_non_null(j);
    *j = (struct job){.stream = q, .local_id = n->next_local++, .epoch = e->epoch};
    sl_list_push_back(&n->jobs, &j->link);
    struct sl_sched_request r = {.id = j->local_id,
                                 .tokens = q->tokens,
                                 .n_tokens = e->n,
                                 .n_prompt = q->n_prompt,
                                 .max_new = q->max_new,
                                 .priority = q->priority,
                                 .tenant = q->id % 3,
                                 .salt = {(uint8_t)q->salt},
                                 .deadline_ns = q->deadline_ns,
                                 .user = j};
    enum sl_status status = sl_sched_submit(n->sched, &r, w->now_ns, NULL);
    if (status) {
        send_out(w, e->worker, j)->refused = status;
        job_free(j);
    }
    node_kick(w, e->worker);
}

static void on_cancel(struct world *w, const struct event *e)
{
    struct node *n = &w->nodes[e->worker];
    for (struct sl_list *l = n->jobs.next; l != &n->jobs; l = l->next) {
        struct job *j = SL_ENTRY(l, struct job, link);
        if (j->stream->id != e->id || j->epoch != e->epoch)
            continue;
        sl_sched_cancel(n->sched, j->local_id);
        break;
    }
    node_reap(w, e->worker);
}

/* --- trouble ---------------------------------------------------------------------------------- */

static void on_trouble(struct world *w, uint32_t i)
{
    struct node *n = &w->nodes[i];
    uint32_t what = rng_below(&w->rng, 5);
    uint64_t until = w->now_ns + (1 + rng_below(&w->rng, 600)) * MS;
    if (w->now_ns > TROUBLE_END_MS * MS || !n->up || n->hung)
        return;
    if (what < 2) {
        if (what == 0) /* the link's end is noticed; else only the silence */
            message(w, TO_ROUTER_DOWN, i);
        node_close(n);
        schedule(w, RESTART, until, i);
    } else if (what == 2) {
        sl_router_worker_drain(w->router, n->key);
        schedule(w, TROUBLE, until, i); /* until it dies */
        return;
    } else {
        n->hung = true;
        n->silent = what == 3; /* else it still sends heartbeats */
        schedule(w, RECOVER, until, i);
    }
    schedule(w, TROUBLE, until + rng_below(&w->rng, 800) * MS, i);
}

static void on_recover(struct world *w, uint32_t i)
{
    struct node *n = &w->nodes[i];
    n->hung = n->silent = false;
    if (n->plan)
        schedule(w, STEP_DONE, w->now_ns + MS, i);
    else
        node_kick(w, i);
}

/* --- router and clients ----------------------------------------------------------------------- */

static void stream_end(struct world *w, struct stream *q, enum fate fate)
{
    MUST(w, q->fate == LIVE, "stream %llu ended twice", (unsigned long long)q->id);
    q->fate = fate;
    w->n_open--;
}

static void pump(struct world *w)
{
    struct sl_action a;
    while (sl_router_next_action(w->router, &a)) {
        if (a.kind == SL_ACT_FAIL) {
            stream_end(w, a.user, FAILED);
            continue;
        }
        for (uint32_t i = 0; i < N_WORKERS; i++) {
            if (w->nodes[i].key != a.worker_key)
                continue; /* what goes to a dead link is lost */
            struct event *e =
                message(w, a.kind == SL_ACT_SEND ? TO_WORKER_SUBMIT : TO_WORKER_CANCEL, i);
            e->id = a.id;
            e->epoch = a.epoch;
            e->n = w->streams[a.id].n;
        }
    }
}

static void on_out(struct world *w, const struct event *e)
{
    struct stream *q = &w->streams[e->id];
    if (e->refused) {
        sl_router_refused(w->router, e->key, e->id, e->epoch, e->refused, w->now_ns);
        return;
    }
    struct sl_route_output o = {.id = e->id,
                                .epoch = e->epoch,
                                .ordinal = e->has_token ? e->n - q->n_prompt + 1 : 0,
                                .n_tokens = e->has_token,
                                .ended = e->ended};
    if (!sl_router_output(w->router, e->key, &o, w->now_ns))
        return;
    if (e->has_token) {
        uint32_t right = fake_next(q->salt, q->tokens, q->n);
        MUST(w, e->n == q->n, "stream %llu: token %u after %u", (unsigned long long)q->id, e->n,
             q->n);
        MUST(w, e->token == right, "stream %llu: token %u is %u, not %u", (unsigned long long)q->id,
             q->n, e->token, right);
        q->tokens[q->n++] = e->token;
    }
    if (e->ended)
        stream_end(w, q, q->n - q->n_prompt == q->max_new ? FINISHED : FAILED);
}

static void on_client_submit(struct world *w, uint64_t id)
{
    struct stream *q = &w->streams[id];
    struct sl_route_request r = {.id = id,
                                 .tokens = q->tokens,
                                 .n_tokens = q->n,
                                 .priority = q->priority,
                                 .tenant = id % 3,
                                 .salt = {(uint8_t)q->salt},
                                 .deadline_ns = q->deadline_ns,
                                 .user = q};
    struct sl_err err;
    q->fate = LIVE;
    if (sl_router_submit(w->router, &r, w->now_ns, &err)) {
        MUST(w, err.status == SL_QUEUE_FULL, "%s", err.msg);
        stream_end(w, q, REFUSED);
    }
}

static void on_client_cancel(struct world *w, uint64_t id)
{
    if (w->streams[id].fate != LIVE)
        return;
    sl_router_cancel(w->router, id, w->now_ns);
    stream_end(w, &w->streams[id], CANCELLED);
}

static void draw_streams(struct world *w)
{
    for (uint32_t i = 0; i < N_REQS; i++) {
        struct stream *q = &w->streams[i];
        uint32_t shared = rng_below(&w->rng, 40);
        *q = (struct stream){.id = i,
                             .salt = rng_below(&w->rng, 2),
                             .n = 1 + rng_below(&w->rng, 50),
                             .max_new = 1 + rng_below(&w->rng, 50),
                             .priority = (int32_t)rng_below(&w->rng, 2)};
        q->n_prompt = q->n;
        for (uint32_t t = 0; t < q->n; t++)
            q->tokens[t] = t < shared ? t : rng_below(&w->rng, FAKE_VOCAB);
        uint64_t at = rng_below(&w->rng, TROUBLE_END_MS) * MS;
        if (rng_chance(&w->rng, 8))
            q->deadline_ns = at + (1 + rng_below(&w->rng, 500)) * MS;
        schedule(w, CLIENT_SUBMIT, at, 0)->id = i;
        if (rng_chance(&w->rng, 8))
            schedule(w, CLIENT_CANCEL, at + rng_below(&w->rng, 500) * MS, 0)->id = i;
    }
    w->n_open = N_REQS;
}

/* --- the loop --------------------------------------------------------------------------------- */

static void handle_worker(struct world *w, const struct event *e)
{
    struct node *n = &w->nodes[e->worker];
    if (e->kind == RESTART) {
        node_open(w, e->worker);
        return;
    }
    if (e->kind == TROUBLE) {
        on_trouble(w, e->worker);
        return;
    }
    if (!n->up || e->generation != n->generation)
        return;
    if (e->kind == TO_WORKER_SUBMIT) {
        on_submit(w, e);
    } else if (e->kind == TO_WORKER_CANCEL) {
        on_cancel(w, e);
    } else if (e->kind == STEP_DONE) {
        on_step_done(w, e->worker);
    } else if (e->kind == RECOVER) {
        on_recover(w, e->worker);
    } else {
        if (!n->silent)
            send_load(w, e->worker);
        schedule(w, HEARTBEAT, w->now_ns + 10 * MS, e->worker);
    }
}

static void handle(struct world *w, const struct event *e)
{
    switch (e->kind) {
    case TO_ROUTER_OUT:
        on_out(w, e);
        break;
    case TO_ROUTER_LOAD:
        sl_router_worker_load(w->router, e->key, &e->load, w->now_ns);
        break;
    case TO_ROUTER_DOWN:
        sl_router_worker_down(w->router, e->key, false, w->now_ns);
        break;
    case CLIENT_SUBMIT:
        on_client_submit(w, e->id);
        break;
    case CLIENT_CANCEL:
        on_client_cancel(w, e->id);
        break;
    default:
        handle_worker(w, e);
    }
}

static bool all_idle(const struct world *w)
{
    for (uint32_t i = 0; i < N_WORKERS; i++)
        if (w->nodes[i].up && !sl_sched_idle(w->nodes[i].sched))
            return false;
    return !w->n_open;
}

static void run(struct world *w)
{
    struct sl_err err;
    while (!all_idle(w)) {
        struct event *e = SL_ENTRY(sl_heap_min(&w->events), struct event, node);
        uint64_t due = sl_router_next_deadline(w->router);
        if (due <= e->at_ns) {
            w->now_ns = due > w->now_ns ? due : w->now_ns;
            sl_router_tick(w->router, w->now_ns);
        } else {
            w->now_ns = e->at_ns;
            sl_heap_remove(&w->events, &e->node);
            handle(w, e);
            free(e);
        }
        pump(w);
        MUST(w, !sl_router_check(w->router, &err), "%s", err.msg);
        MUST(w, w->now_ns < 200000 * MS, "%u streams are still open", w->n_open);
    }
}

static void close_world(struct world *w)
{
    struct sl_heap_node *h;
    struct sl_router_stats st;
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        struct sl_sched_stats s;
        if (!w->nodes[i].up)
            continue;
        sl_sched_stats(w->nodes[i].sched, &s);
        MUST(w, s.pages_free == s.pages_total, "worker %u holds pages", i);
        MUST(w, sl_list_empty(&w->nodes[i].jobs), "worker %u holds jobs", i);
        node_close(&w->nodes[i]);
    }
    sl_router_stats(w->router, &st);
    reached.retried += st.n_retried;
    reached.fenced += st.n_fenced;
    reached.ejected += st.n_ejected;
    for (uint32_t i = 0; i < N_REQS; i++)
        reached.fates[w->streams[i].fate]++;
    while ((h = sl_heap_min(&w->events))) {
        sl_heap_remove(&w->events, h);
        free(SL_ENTRY(h, struct event, node));
    }
    sl_router_close(w->router);
}

static void run_seed(uint64_t seed)
{
    static struct world world;
    struct world *w = &world;
    struct sl_err err;
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.x = seed * 0x2545f4914f6cdd1dull;
    sl_heap_init(&w->events, earlier);
    struct sl_router_config c = {.max_workers = 2 * N_WORKERS,
                                 .max_requests = N_REQS,
                                 .queue_max = 30,
                                 .page_size = 4,
                                 .retries_max = 5,
                                 .heartbeat_timeout_ns = HEARTBEAT_MS * MS,
                                 .progress_timeout_ns = 200 * MS,
                                 .kv_keys_max = 64,
                                 .eject_slow = w->seed % 2 == 0,
                                 .seed = w->seed,
                                 .policy = draw_policy(&w->rng)};
    MUST(w, !sl_router_open(&c, &w->router, &err), "%s", err.msg);
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        node_open(w, i);
        schedule(w, TROUBLE, rng_below(&w->rng, 1000) * MS, i);
    }
    draw_streams(w);
    run(w);
    close_world(w);
}

static void test_streams_survive(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++)
        run_seed(seed);
    for (uint32_t fate = FINISHED; fate <= CANCELLED; fate++)
        assert_true(reached.fates[fate] > N_SEEDS / 2);
    assert_true(reached.retried > N_SEEDS && reached.fenced > N_SEEDS && reached.ejected > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streams_survive)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
