/* The world of one seed: virtual time, faults, and what must hold. */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>

#define TROUBLE_FROM_NS (200 * MS)
#define TROUBLE_NS      (2800 * MS)
#define QUIET_NS        (15000 * MS) /* after the last request: everything is given back by then */
#define BARE_NS         (4000 * MS)
#define ARENA_BYTES     ((size_t)1 << 20)

void sim_break(struct sim *s, const char *fmt, ...)
{
    if (s->broken[0])
        return; /* what follows from it does not count */
    int at = snprintf(s->broken, sizeof s->broken, "at %.3f ms: ", (double)s->now_ns / 1e6);
    va_list args;
    va_start(args, fmt);
    vsnprintf(s->broken + at, sizeof s->broken - (size_t)at, fmt, args);
    va_end(args);
}

void sim_trace(struct sim *s, const char *fmt, ...)
{
    char line[200];
    va_list args;
    va_start(args, fmt);
    int n = snprintf(line, sizeof line, "%llu ", (unsigned long long)s->now_ns);
    n += vsnprintf(line + n, sizeof line - (size_t)n, fmt, args);
    va_end(args);
    size_t len = n < (int)sizeof line ? (size_t)n : sizeof line - 1;
    s->trace_hash = sl_hash64(line, len, s->trace_hash);
    if (!s->trace)
        return;
    sl_buf_append(s->trace, line, len);
    sl_buf_putc(s->trace, '\n');
}

static bool earlier(const struct sl_heap_node *a, const struct sl_heap_node *b)
{
    const struct event *x = SL_ENTRY(a, struct event, node), *y = SL_ENTRY(b, struct event, node);
    return x->at_ns != y->at_ns ? x->at_ns < y->at_ns : x->serial < y->serial;
}

struct event *sim_schedule(struct sim *s, enum event_kind kind, uint64_t at_ns)
{
    struct event *e = calloc(1, sizeof *e);
    if (!e)
        abort();
    e->kind = kind;
    e->at_ns = at_ns;
    e->serial = s->next_serial++;
    sl_heap_insert(&s->events, &e->node);
    return e;
}

uint64_t sim_clock(const struct sim *s, const struct proc *p)
{
    int64_t drift = (int64_t)s->now_ns / 1000000 * p->clock_drift_ppm;
    return (uint64_t)((int64_t)s->now_ns + drift + p->clock_offset_ns);
}

bool sim_is_awake(const struct sim *s, const struct proc *p)
{
    return p->paused_until_ns <= s->now_ns;
}

/* ---- faults ---- */

enum fault {
    CRASH_WORKER,
    CRASH_ROUTER,
    PAUSE_WORKER,
    PAUSE_ROUTER,
    WEDGE,
    SLOW,
    PARTITION,
    ONE_WAY,
    ISOLATE,
    SWIZZLE,
    RESET,
    DRAIN,
    CLOCK_STEP,
    N_FAULTS
};

static uint64_t up_to(struct sim *s, uint32_t least_ms, uint32_t most_ms)
{
    return (least_ms + rng_below(&s->rng, most_ms - least_ms)) * MS;
}

static void pause_node(struct sim *s, uint32_t node)
{
    struct proc *p = &s->procs[node];
    if (!p->alive)
        return;
    p->paused_until_ns = s->now_ns + up_to(s, 20, 1800);
    sim_schedule(s, EV_RESUME, p->paused_until_ns)->a = node;
    net_watch_node(s, p);
}

static void restart_later(struct sim *s, uint32_t node)
{
    sim_schedule(s, EV_RESTART, s->now_ns + up_to(s, 30, 700))->a = node;
}

static void swizzle(struct sim *s)
{
    for (uint32_t w = 0; w < s->n_workers; w++)
        for (uint32_t r = 0; r < s->n_routers; r++)
            if (rng_chance(&s->rng, 2)) {
                /* clogged one by one, unclogged in another order */
                struct event *e = sim_schedule(s, EV_FAULT, s->now_ns + up_to(s, 1, 300));
                e->a = PARTITION;
                e->b = w;
                e->c = r;
                e->life = 1; /* these two */
            }
}

static void block_both(struct sim *s, uint32_t w, uint32_t r)
{
    uint64_t until = s->now_ns + up_to(s, 20, 2500);
    net_block(s, w, r, UP, until);
    net_block(s, w, r, DOWN, until);
}

static void crash_worker(struct sim *s, uint32_t w)
{
    if (!worker_proc(s, w)->alive)
        return;
    worker_stop(s, w);
    restart_later(s, ROUTERS_MAX + w);
}

static void crash_router(struct sim *s, uint32_t r)
{
    if (!router_proc(s, r)->alive)
        return;
    router_stop(s, r);
    restart_later(s, r);
}

static void fault(struct sim *s, const struct event *e)
{
    uint32_t w = e->life ? e->b : rng_below(&s->rng, s->n_workers);
    uint32_t r = e->life ? e->c : rng_below(&s->rng, s->n_routers);
    struct sim_worker *worker = &s->workers[w];
    if (s->healed)
        return;
    sim_trace(s, "fault %u w%u r%u", e->a, w, r);
    switch ((enum fault)e->a) {
    case CRASH_WORKER:
        crash_worker(s, w);
        break;
    case CRASH_ROUTER:
        crash_router(s, r);
        break;
    case PAUSE_WORKER:
        pause_node(s, ROUTERS_MAX + w);
        break;
    case PAUSE_ROUTER:
        pause_node(s, r);
        break;
    case WEDGE:
        worker->wedged_until_ns = s->now_ns + up_to(s, 200, 3000);
        break;
    case SLOW:
        worker->slow_until_ns = s->now_ns + up_to(s, 200, 2000);
        break;
    case PARTITION:
        block_both(s, w, r);
        break;
    case ONE_WAY:
        net_block(s, w, r, rng_chance(&s->rng, 2) ? UP : DOWN, s->now_ns + up_to(s, 20, 2500));
        break;
    case ISOLATE:
        for (uint32_t i = 0; i < s->n_routers; i++)
            block_both(s, w, i);
        break;
    case SWIZZLE:
        swizzle(s);
        break;
    case RESET:
        net_reset(s, w, r);
        break;
    case DRAIN:
        if (router_proc(s, r)->alive && sim_is_awake(s, router_proc(s, r)))
            router_drain_worker(s, r, w);
        break;
    case CLOCK_STEP:
        s->procs[rng_chance(&s->rng, 2) ? ROUTERS_MAX + w : r].clock_offset_ns +=
            (int64_t)up_to(s, 1, 3000);
        break;
    case N_FAULTS:
        break;
    }
}

static void draw_faults(struct sim *s)
{
    uint32_t n = rng_below(&s->rng, 10);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = TROUBLE_FROM_NS + rng_below(&s->rng, (uint32_t)(TROUBLE_NS / MS)) * MS;
        sim_schedule(s, EV_FAULT, at)->a = rng_below(&s->rng, N_FAULTS);
    }
    if (s->mode == ORDERED)
        return;
    uint32_t *rates[] = {&s->lose_1_in, &s->double_1_in, &s->delay_1_in, &s->flip_1_in};
    for (uint32_t i = 0; i < 4; i++)
        *rates[i] = rng_chance(&s->rng, 3) ? 0 : 20 + rng_below(&s->rng, 300);
}

/* ---- events ---- */

static void tick(struct sim *s, const struct event *e)
{
    const struct proc *p = &s->procs[e->a];
    if (!p->alive || p->life != e->life)
        return;
    struct event *again = sim_schedule(s, EV_TICK, s->now_ns + TICK_NS);
    again->a = e->a;
    again->life = e->life;
    if (e->a < ROUTERS_MAX)
        router_tick(s, e->a);
    else
        worker_tick(s, e->a - ROUTERS_MAX);
}

static void restart(struct sim *s, uint32_t node)
{
    if (s->procs[node].alive)
        return;
    sim_trace(s, "restart %u", node);
    if (node < ROUTERS_MAX)
        router_start(s, node);
    else
        worker_start(s, node - ROUTERS_MAX);
}

static void cancel(struct sim *s, struct client *c)
{
    if (c->state == LIVE && router_proc(s, c->router)->alive &&
        sim_is_awake(s, router_proc(s, c->router))) {
        c->state = CANCELLED;
        s->n_open--;
        router_cancel(s, c->router, c);
    }
}

/* An event of a node that is paused waits until the node goes on. */
static bool put_off(struct sim *s, const struct event *e)
{
    uint32_t node = e->kind == EV_STEP_DONE ? ROUTERS_MAX + e->a : e->a;
    if ((e->kind != EV_TICK && e->kind != EV_STEP_DONE) || sim_is_awake(s, &s->procs[node]))
        return false;
    struct event *again = sim_schedule(s, e->kind, s->procs[node].paused_until_ns);
    again->a = e->a;
    again->life = e->life;
    return true;
}

static void handle(struct sim *s, struct event *e)
{
    if (put_off(s, e))
        return;
    switch (e->kind) {
    case EV_TICK:
        tick(s, e);
        break;
    case EV_STEP_DONE:
        if (worker_proc(s, e->a)->alive && worker_proc(s, e->a)->life == e->life)
            worker_step_done(s, e->a);
        break;
    case EV_CLIENT:
        client_ask(s, &s->clients[e->a]);
        break;
    case EV_CANCEL:
        cancel(s, &s->clients[e->a]);
        break;
    case EV_FAULT:
        fault(s, e);
        break;
    case EV_RESUME:
        net_pump_node(s, &s->procs[e->a]);
        break;
    case EV_RESTART:
        restart(s, e->a);
        break;
    case EV_HEAL:
        s->healed = true;
        net_heal(s);
        sim_trace(s, "heal");
        break;
    default:
        net_event(s, e);
    }
}

static void check(struct sim *s)
{
    for (uint32_t r = 0; r < s->n_routers; r++)
        router_check(s, r);
    for (uint32_t w = 0; w < s->n_workers; w++)
        worker_check(s, w);
}

/* ---- the end ---- */

/* NULL when everything was given back, else what was not. */
static const char *left_over(struct sim *s)
{
    for (uint32_t w = 0; w < s->n_workers; w++) {
        struct sl_sched_stats st;
        if (!worker_proc(s, w)->alive)
            return "a worker is down";
        sl_sched_stats(s->workers[w].sched, &st);
        if (s->workers[w].n_jobs || !sl_sched_idle(s->workers[w].sched))
            return "a worker has requests";
        if (st.pages_free != st.pages_total)
            return "a worker holds pages";
    }
    for (uint32_t r = 0; r < s->n_routers; r++) {
        struct sl_router_stats st;
        struct sl_members_stats m;
        if (!router_proc(s, r)->alive)
            return "a router is down";
        sl_router_stats(s->routers[r].router, &st);
        sl_members_stats(s->routers[r].members, &m);
        if (st.inflight || st.waiting)
            return "a router has requests";
        if (m.joined != s->n_workers || st.ready_workers != s->n_workers)
            return "a router has not every worker";
    }
    return NULL;
}

static void run(struct sim *s)
{
    uint64_t over_ns = 0;
    while (!s->broken[0]) {
        struct sl_heap_node *h = sl_heap_min(&s->events);
        struct event *e = SL_ENTRY(h, struct event, node);
        s->now_ns = e->at_ns > s->now_ns ? e->at_ns : s->now_ns;
        sl_heap_remove(&s->events, h);
        handle(s, e);
        free(e);
        s->n_events++;
        check(s);
        if (s->mode == BARE && s->now_ns > HEAL_NS + BARE_NS)
            break;
        MUST(s, s->n_open == 0 || s->now_ns < END_NS, "%u requests never end", s->n_open);
        if (s->n_open || !s->healed)
            continue;
        const char *left = left_over(s);
        if (!left)
            break;
        over_ns = over_ns ? over_ns : s->now_ns;
        MUST(s, s->now_ns - over_ns < QUIET_NS, "%s after all requests have ended", left);
    }
}

static void open_world(struct sim *s)
{
    sl_heap_init(&s->events, earlier);
    sl_arena_init(&s->arena, ARENA_BYTES);
    s->rng.x = s->seed * 0x2545f4914f6cdd1dull + (uint64_t)s->mode;
    s->n_routers = 1 + rng_below(&s->rng, ROUTERS_MAX);
    s->n_workers = 1 + rng_below(&s->rng, WORKERS_MAX);
    net_open(s);
    for (uint32_t i = 0; i < ROUTERS_MAX + WORKERS_MAX; i++) {
        s->procs[i].clock_offset_ns = (int64_t)(rng_next(&s->rng) >> 20);
        s->procs[i].clock_drift_ppm = (int64_t)rng_below(&s->rng, 40000) - 20000;
    }
    for (uint32_t r = 0; r < s->n_routers; r++)
        router_start(s, r);
    for (uint32_t w = 0; w < s->n_workers; w++) {
        s->workers[w].class_hash = w && rng_chance(&s->rng, 8) ? 8 : 7;
        worker_start(s, w);
    }
    client_draw(s);
    draw_faults(s);
    sim_schedule(s, EV_HEAL, HEAL_NS);
}

static void close_world(struct sim *s)
{
    struct sl_heap_node *h;
    s->n_clients = 0; /* nobody hears of what stops now */
    for (uint32_t w = 0; w < s->n_workers; w++)
        worker_stop(s, w);
    for (uint32_t r = 0; r < s->n_routers; r++)
        router_stop(s, r);
    net_close(s);
    while ((h = sl_heap_min(&s->events))) {
        struct event *e = SL_ENTRY(h, struct event, node);
        sl_heap_remove(&s->events, h);
        if (e->kind == EV_PACKET)
            free(e->packet);
        free(e);
    }
    sl_arena_free(&s->arena);
    sl_buf_free(&s->encoded);
}

bool sim_run(struct sim *s, uint64_t seed, enum mode mode, struct sl_buf *trace)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->mode = mode;
    s->trace = trace;
    open_world(s);
    run(s);
    sim_trace(s, "end %s", s->broken);
    s->trace = NULL; /* the closing is not part of the run */
    uint64_t hash = s->trace_hash;
    close_world(s);
    s->trace_hash = hash;
    return !s->broken[0];
}
