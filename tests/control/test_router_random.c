/* Whatever workers and clients do: each request ends exactly once (by its worker, by a failure or
 * by a cancel), epochs only grow, a stream stays in its class, every delivered token follows the
 * one before, and the invariants hold after every event. */
#include "fake_engine.h"

#include <sluice/control/router.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

enum { N_SEEDS = 2500, N_EVENTS = 300, REQS_MAX = 300, WORKERS_MAX = 5, JOBS_MAX = 4096 };
#define HEARTBEAT_NS 1000u
#define PROGRESS_NS  2000u

enum fate { UNBORN, LIVE, FINISHED, FAILED, CANCELLED };

struct request {
    uint32_t n_delivered, n_wanted, epoch;
    uint64_t class_hash;
    uint64_t deadline_ns;
    enum fate fate;
};

/* One request at one worker under one epoch; it may go on after the router gave it up. */
struct job {
    uint64_t worker_key;
    uint32_t id, epoch, next; /* index of the token it computes next */
    bool over, cancelled;
    bool prefill; /* of the prompt only, for the owner */
};

struct worker_model {
    uint64_t key, class_hash, steps;
    bool up, drained, hung;
    enum sl_worker_role role;
    uint64_t kv_layout;
};

struct world {
    uint64_t seed, now_ns, next_key;
    struct rng rng;
    struct sl_router_config cfg;
    struct sl_router *r;
    struct worker_model workers[WORKERS_MAX];
    struct request reqs[REQS_MAX];
    struct job jobs[JOBS_MAX];
    uint32_t n_reqs, n_jobs, n_live;
    bool calm; /* the end: workers behave */
};

static struct {
    uint64_t fates[CANCELLED + 1], retried, fenced, prefills;
} reached;

#define MUST(w, cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            print_error("seed %llu: ", (unsigned long long)(w)->seed);                             \
            print_error(__VA_ARGS__);                                                              \
            fail_msg(" (%s)", #cond);                                                              \
        }                                                                                          \
    } while (0)

static void ends(struct world *w, uint32_t id, enum fate fate)
{
    MUST(w, w->reqs[id].fate == LIVE, "request %u ended twice", id);
    w->reqs[id].fate = fate;
    w->n_live--;
}

static struct worker_model *by_key(struct world *w, uint64_t key)
{
    for (uint32_t i = 0; i < WORKERS_MAX; i++)
        if (w->workers[i].up && w->workers[i].key == key)
            return &w->workers[i];
    return NULL;
}

static void on_prefill(struct world *w, const struct sl_action *a, const struct worker_model *owner)
{
    const struct worker_model *m = by_key(w, a->source_key);
    MUST(w, m && m != owner, "request %llu: no proper source", (unsigned long long)a->id);
    MUST(w,
         owner->role != SL_ROLE_PREFILL && m->role != SL_ROLE_DECODE &&
             m->class_hash == owner->class_hash && m->kv_layout == owner->kv_layout,
         "request %llu: a source that cannot help", (unsigned long long)a->id);
    MUST(w, w->n_jobs < JOBS_MAX, "too many jobs");
    w->jobs[w->n_jobs++] = (struct job){
        .worker_key = a->source_key, .id = (uint32_t)a->id, .epoch = a->epoch, .prefill = true};
    reached.prefills++;
}

static void on_send(struct world *w, const struct sl_action *a)
{
    struct request *q = a->user;
    struct worker_model *m = by_key(w, a->worker_key);
    MUST(w, q == &w->reqs[a->id] && q->fate == LIVE, "request %llu was sent after its end",
         (unsigned long long)a->id);
    MUST(w, a->epoch > q->epoch, "request %llu: epoch %u after %u", (unsigned long long)a->id,
         a->epoch, q->epoch);
    MUST(w, m && !m->drained, "request %llu was sent to a worker that left",
         (unsigned long long)a->id);
    MUST(w, !q->n_delivered || q->class_hash == m->class_hash, "request %llu left its class",
         (unsigned long long)a->id);
    q->epoch = a->epoch;
    if (rng_chance(&w->rng, 15) && !w->calm) {
        static const enum sl_status why[] = {SL_PEER,      SL_QUEUE_FULL, SL_DRAINING,
                                             SL_NO_MEMORY, SL_FAILED,     SL_INVALID};
        enum sl_status s = why[rng_below(&w->rng, 6)];
        m->drained |= s == SL_DRAINING;
        sl_router_refused(w->r, a->worker_key, a->id, a->epoch, s, w->now_ns);
        return;
    }
    if (a->has_source)
        on_prefill(w, a, m);
    MUST(w, w->n_jobs < JOBS_MAX, "too many jobs");
    w->jobs[w->n_jobs++] = (struct job){.worker_key = a->worker_key,
                                        .id = (uint32_t)a->id,
                                        .epoch = a->epoch,
                                        .next = q->n_delivered};
}

static void on_action(struct world *w, const struct sl_action *a)
{
    if (a->kind == SL_ACT_SEND) {
        on_send(w, a);
    } else if (a->kind == SL_ACT_FAIL) {
        MUST(w,
             a->status == SL_TIMEOUT || a->status == SL_PEER || a->status == SL_INVALID ||
                 a->status == SL_QUEUE_FULL || a->status == SL_DRAINING ||
                 a->status == SL_NO_MEMORY || a->status == SL_FAILED,
             "failure with status %d", a->status);
        MUST(w, a->status != SL_TIMEOUT || w->reqs[a->id].deadline_ns <= w->now_ns, "early");
        ends(w, (uint32_t)a->id, FAILED);
    } else {
        for (uint32_t i = 0; i < w->n_jobs; i++)
            if (w->jobs[i].id == a->id && w->jobs[i].epoch == a->epoch &&
                w->jobs[i].worker_key == a->worker_key)
                w->jobs[i].cancelled = true;
    }
}

static void take_actions(struct world *w, uint32_t most)
{
    struct sl_action a;
    while (most-- && sl_router_next_action(w->r, &a))
        on_action(w, &a);
}

static void event_submit(struct world *w)
{
    if (w->n_reqs == REQS_MAX)
        return;
    uint32_t id = w->n_reqs, tokens[40];
    struct request *q = &w->reqs[id];
    struct sl_route_request from = {.id = id,
                                    .tokens = tokens,
                                    .n_tokens = 1 + rng_below(&w->rng, 40),
                                    .priority = (int32_t)rng_below(&w->rng, 3),
                                    .tenant = rng_below(&w->rng, 3),
                                    .user = q};
    for (uint32_t i = 0; i < from.n_tokens; i++)
        tokens[i] = i < 24 ? rng_below(&w->rng, 2) : i;
    if (rng_chance(&w->rng, 4))
        from.deadline_ns = w->now_ns + 1 + rng_below(&w->rng, 6000);
    struct sl_err err;
    enum sl_status s = sl_router_submit(w->r, &from, w->now_ns, &err);
    if (s) {
        MUST(w, s == SL_QUEUE_FULL || s == SL_LOADING, "submit: %s", err.msg);
        return;
    }
    *q = (struct request){
        .n_wanted = 1 + rng_below(&w->rng, 6), .fate = LIVE, .deadline_ns = from.deadline_ns};
    w->n_reqs++;
    w->n_live++;
}

/* Any job may speak, also one that was cancelled or belongs to a worker given up. */
static void speak(struct world *w, struct job *j)
{
    struct request *q = &w->reqs[j->id];
    struct worker_model *m = by_key(w, j->worker_key);
    if (j->over || !m || m->hung)
        return;
    if (j->prefill) {
        static const enum sl_status said[] = {SL_OK, SL_OK, SL_FAILED, SL_QUEUE_FULL, SL_DRAINING};
        sl_router_prefilled(w->r, j->worker_key, j->id, j->epoch,
                            said[w->calm ? 0 : rng_below(&w->rng, 5)], w->now_ns);
        j->over = true;
        m->steps++;
        return;
    }
    uint32_t n = rng_below(&w->rng, 3);
    n = n < q->n_wanted - j->next ? n : q->n_wanted - j->next;
    bool ended = j->next + n == q->n_wanted;
    m->steps++;
    struct sl_route_output o = {
        .id = j->id, .epoch = j->epoch, .ordinal = j->next + 1, .n_tokens = n, .ended = ended};
    if (sl_router_output(w->r, j->worker_key, &o, w->now_ns)) {
        MUST(w, q->fate == LIVE && j->epoch == q->epoch, "request %u: stale output taken", j->id);
        MUST(w, j->next == q->n_delivered, "request %u: token %u after %u", j->id, j->next,
             q->n_delivered);
        if (n && !q->n_delivered)
            q->class_hash = m->class_hash;
        q->n_delivered += n;
        if (ended)
            ends(w, j->id, FINISHED);
    }
    j->next += n;
    j->over = ended;
}

static void event_output(struct world *w)
{
    if (w->n_jobs)
        speak(w, &w->jobs[w->n_jobs - 1 - rng_below(&w->rng, w->n_jobs < 30 ? w->n_jobs : 30)]);
}

static void event_load(struct world *w, struct worker_model *m)
{
    if (!m->up)
        return;
    m->steps += !m->hung;
    struct sl_worker_load load = {
        .running = 1, .pages_free = 5, .pages_total = 10, .steps = m->steps, .rows = m->steps * 3};
    load.busy_ns = m->steps * 2000000 * (m->key % 4 == 0 ? 50 : 1);
    load.step_age_ns = m->hung ? 3000000000ull : 0;
    sl_router_worker_load(w->r, m->key, &load, w->now_ns);
}

static void event_worker(struct world *w)
{
    struct worker_model *m = &w->workers[rng_below(&w->rng, WORKERS_MAX)];
    uint32_t what = rng_below(&w->rng, 10);
    if (!m->up) {
        *m = (struct worker_model){.key = ++w->next_key,
                                   .class_hash = rng_below(&w->rng, 2),
                                   .up = true,
                                   .role = rng_below(&w->rng, 3),
                                   .kv_layout = !rng_chance(&w->rng, 5)};
        struct sl_worker_desc d = {.key = m->key,
                                   .class_hash = m->class_hash,
                                   .max_seqs = 1 + rng_below(&w->rng, 6),
                                   .max_len = 1000,
                                   .queue_max = rng_below(&w->rng, 3),
                                   .role = m->role,
                                   .kv_layout = m->kv_layout,
                                   .serves_kv = !rng_chance(&w->rng, 5)};
        struct sl_err err;
        MUST(w, !sl_router_worker_up(w->r, &d, w->now_ns, &err), "%s", err.msg);
    } else if (what < 3) {
        m->up = false;
        sl_router_worker_down(w->r, m->key, false, w->now_ns);
    } else if (what == 3) {
        m->drained = true;
        sl_router_worker_drain(w->r, m->key);
    } else if (what == 4) {
        m->hung = !m->hung;
    } else {
        event_load(w, m);
    }
}

static void event_cancel(struct world *w)
{
    if (!w->n_live)
        return;
    uint32_t i = rng_below(&w->rng, w->n_reqs);
    while (w->reqs[i].fate != LIVE)
        i = (i + 1) % w->n_reqs;
    sl_router_cancel(w->r, i, w->now_ns);
    ends(w, i, CANCELLED);
}

static void check(struct world *w)
{
    struct sl_err err = {0};
    struct sl_router_stats st;
    MUST(w, sl_router_check(w->r, &err) == SL_OK, "%s", err.msg);
    sl_router_stats(w->r, &st);
    MUST(w, st.inflight + st.waiting <= w->n_live, "%u in flight, %u wait, %u live", st.inflight,
         st.waiting, w->n_live);
}

/* With all actions taken: who still computes is the owner or was told to stop. */
static void check_told(struct world *w)
{
    for (uint32_t i = 0; i < w->n_jobs; i++) {
        const struct job *j = &w->jobs[i];
        const struct request *q = &w->reqs[j->id];
        MUST(w,
             j->over || j->cancelled || !by_key(w, j->worker_key) ||
                 (q->fate == LIVE && q->epoch == j->epoch),
             "request %u of epoch %u goes on unknown", j->id, j->epoch);
    }
}

static void event_tick(struct world *w)
{
    sl_router_tick(w->r, w->now_ns);
    MUST(w, sl_router_next_deadline(w->r) > w->now_ns, "a deadline was left");
    take_actions(w, UINT32_MAX);
    for (uint32_t i = 0; i < w->n_reqs; i++)
        MUST(w,
             w->reqs[i].fate != LIVE || !w->reqs[i].deadline_ns ||
                 w->reqs[i].deadline_ns > w->now_ns,
             "request %u outlived its deadline", i);
    check_told(w);
}

static void event(struct world *w)
{
    uint32_t what = rng_below(&w->rng, 100);
    w->now_ns += rng_below(&w->rng, 120);
    if (what < 20)
        event_submit(w);
    else if (what < 24)
        event_cancel(w);
    else if (what < 34)
        event_worker(w);
    else if (what < 45)
        take_actions(w, rng_below(&w->rng, 4));
    else if (what < 50)
        event_tick(w);
    else if (what < 60)
        event_load(w, &w->workers[rng_below(&w->rng, WORKERS_MAX)]);
    else if (what < 75)
        take_actions(w, UINT32_MAX);
    else
        event_output(w);
}

/* One good worker of each class, and time: then everything must end. */
static void run_dry(struct world *w)
{
    struct sl_err err;
    w->calm = true;
    for (uint32_t i = 0; i < WORKERS_MAX; i++)
        if (w->workers[i].up)
            sl_router_worker_down(w->r, w->workers[i].key, false, w->now_ns);
    for (uint32_t i = 0; i < WORKERS_MAX; i++)
        w->workers[i] =
            (struct worker_model){.key = ++w->next_key, .class_hash = i % 2, .up = i < 2};
    for (uint32_t i = 0; i < 2; i++) {
        struct sl_worker_desc d = {.key = w->workers[i].key,
                                   .class_hash = i,
                                   .max_seqs = 2,
                                   .max_len = 1000,
                                   .queue_max = 1};
        MUST(w, !sl_router_worker_up(w->r, &d, w->now_ns, &err), "%s", err.msg);
    }
    for (uint32_t round = 0; w->n_live; round++) {
        MUST(w, round < 3000, "%u live after %u rounds", w->n_live, round);
        take_actions(w, UINT32_MAX);
        for (uint32_t i = w->n_jobs > 40 ? w->n_jobs - 40 : 0; i < w->n_jobs; i++)
            if (!w->jobs[i].cancelled)
                speak(w, &w->jobs[i]);
        event_load(w, &w->workers[0]);
        event_load(w, &w->workers[1]);
        check(w);
        w->now_ns += 10;
        sl_router_tick(w->r, w->now_ns);
    }
}

static void run_seed(uint64_t seed)
{
    static struct world world;
    struct world *w = &world;
    struct sl_err err;
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.x = seed * 0x2545f4914f6cdd1dull;
    w->cfg = (struct sl_router_config){.max_workers = WORKERS_MAX,
                                       .max_requests = 4 + rng_below(&w->rng, 60),
                                       .queue_max = rng_below(&w->rng, 40),
                                       .page_size = 4,
                                       .retries_max = rng_below(&w->rng, 4),
                                       .heartbeat_timeout_ns = HEARTBEAT_NS,
                                       .progress_timeout_ns = PROGRESS_NS,
                                       .kv_keys_max = 16,
                                       .eject_slow = rng_chance(&w->rng, 2),
                                       .seed = w->seed,
                                       .prefill_min_tokens = rng_below(&w->rng, 9),
                                       .policy = draw_policy(&w->rng)};
    MUST(w, !sl_router_open(&w->cfg, &w->r, &err), "%s", err.msg);
    for (uint32_t i = 0; i < N_EVENTS; i++) {
        event(w);
        check(w);
    }
    run_dry(w);
    struct sl_router_stats st;
    sl_router_stats(w->r, &st);
    MUST(w, !st.inflight && !st.waiting, "%u in flight, %u wait", st.inflight, st.waiting);
    reached.retried += st.n_retried;
    reached.fenced += st.n_fenced;
    for (uint32_t i = 0; i < w->n_reqs; i++) {
        MUST(w, w->reqs[i].fate > LIVE, "request %u was lost", i);
        reached.fates[w->reqs[i].fate]++;
    }
    sl_router_close(w->r);
}

static void test_seeds(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++)
        run_seed(seed);
    for (uint32_t fate = FINISHED; fate <= CANCELLED; fate++)
        assert_true(reached.fates[fate] > N_SEEDS / 10);
    assert_true(reached.retried > N_SEEDS && reached.fenced > N_SEEDS);
    assert_true(reached.prefills > N_SEEDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
