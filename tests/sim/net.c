/* The network between workers and routers. */
#include "sim.h"

static struct wire *wire_of(struct sim *s, uint32_t w, uint32_t r)
{
    return &s->wires[w][r];
}

static uint64_t delay(struct sim *s)
{
    if (rng_chance(&s->rng, 50))
        return (1 + rng_below(&s->rng, 60)) * MS;
    return 20000 + rng_below(&s->rng, (uint32_t)MS / 2);
}

static void pump_at(struct sim *s, uint32_t w, uint32_t r, int dir, uint64_t at_ns)
{
    struct event *e = sim_schedule(s, EV_PUMP, at_ns);
    e->a = w;
    e->b = r;
    e->c = (uint32_t)dir;
}

static void connect_later(struct sim *s, uint32_t w, uint32_t r)
{
    struct event *e = sim_schedule(s, EV_CONNECT, s->now_ns + (20 + rng_below(&s->rng, 100)) * MS);
    e->a = w;
    e->b = r;
}

void net_open(struct sim *s)
{
    for (uint32_t w = 0; w < s->n_workers; w++)
        for (uint32_t r = 0; r < s->n_routers; r++)
            for (int dir = 0; dir < 2; dir++)
                wire_of(s, w, r)->tail[dir] = &wire_of(s, w, r)->head[dir];
}

static void drop_queue(struct sim *s, struct wire *x, int dir)
{
    while (x->head[dir]) {
        struct packet *p = x->head[dir];
        x->head[dir] = p->next;
        free(p);
        s->n_lost++;
    }
    x->tail[dir] = &x->head[dir];
}

void net_reset(struct sim *s, uint32_t w, uint32_t r)
{
    struct wire *x = wire_of(s, w, r);
    drop_queue(s, x, UP);
    drop_queue(s, x, DOWN);
    if (s->mode != ORDERED || !x->stands)
        return;
    x->stands = false;
    sim_trace(s, "reset w%u r%u", w, r);
    connect_later(s, w, r);
}

static bool is_blocked(const struct wire *x)
{
    return x->n_blocks[UP] || x->n_blocks[DOWN];
}

static bool both_alive(struct sim *s, uint32_t w, uint32_t r)
{
    return worker_proc(s, w)->alive && router_proc(s, r)->alive;
}

static void try_connect(struct sim *s, uint32_t w, uint32_t r)
{
    struct wire *x = wire_of(s, w, r);
    if (x->stands || !worker_proc(s, w)->alive)
        return; /* the worker's start tries again */
    if (!both_alive(s, w, r) || is_blocked(x) || !sim_is_awake(s, router_proc(s, r))) {
        connect_later(s, w, r);
        return;
    }
    x->stands = true;
    x->n_connects++;
    sim_trace(s, "connect w%u r%u", w, r);
}

/* Nothing comes through, or an end does not answer: 800 ms later the other gives up. */
static void watch_silence(struct sim *s, uint32_t w, uint32_t r)
{
    struct event *e = sim_schedule(s, EV_DEAD, s->now_ns + DEAD_NS);
    e->a = w;
    e->b = r;
    e->life = wire_of(s, w, r)->n_connects;
}

void net_block(struct sim *s, uint32_t w, uint32_t r, int dir, uint64_t until_ns)
{
    struct event *e = sim_schedule(s, EV_UNBLOCK, until_ns);
    e->a = w;
    e->b = r;
    e->c = (uint32_t)dir;
    wire_of(s, w, r)->n_blocks[dir]++;
    sim_trace(s, "block w%u r%u %d", w, r, dir);
    watch_silence(s, w, r);
}

static void unblock(struct sim *s, uint32_t w, uint32_t r, int dir)
{
    struct wire *x = wire_of(s, w, r);
    if (!x->n_blocks[dir])
        return; /* healed meanwhile */
    if (--x->n_blocks[dir] == 0 && x->head[dir])
        pump_at(s, w, r, dir, s->now_ns);
}

void net_heal(struct sim *s)
{
    s->lose_1_in = s->double_1_in = s->delay_1_in = s->flip_1_in = 0;
    for (uint32_t w = 0; w < s->n_workers; w++)
        for (uint32_t r = 0; r < s->n_routers; r++)
            for (int dir = 0; dir < 2; dir++)
                while (wire_of(s, w, r)->n_blocks[dir])
                    unblock(s, w, r, dir);
}

static void each_wire(struct sim *s, const struct proc *p,
                      void (*do_it)(struct sim *s, uint32_t w, uint32_t r))
{
    for (uint32_t w = 0; w < s->n_workers; w++)
        for (uint32_t r = 0; r < s->n_routers; r++)
            if (p == worker_proc(s, w) || p == router_proc(s, r))
                do_it(s, w, r);
}

void net_node_down(struct sim *s, const struct proc *p)
{
    each_wire(s, p, net_reset);
}

/* A worker's sockets are new: counts begin at 0, and it connects at once. */
static void worker_up(struct sim *s, uint32_t w, uint32_t r)
{
    struct wire *x = wire_of(s, w, r);
    x->n_connects = 0;
    x->stands = false;
    if (s->mode == ORDERED)
        try_connect(s, w, r);
}

void net_node_up(struct sim *s, const struct proc *p)
{
    if (p >= s->procs + ROUTERS_MAX)
        each_wire(s, p, worker_up);
}

static void pump_wire(struct sim *s, uint32_t w, uint32_t r)
{
    pump_at(s, w, r, UP, s->now_ns);
    pump_at(s, w, r, DOWN, s->now_ns);
}

void net_pump_node(struct sim *s, const struct proc *p)
{
    each_wire(s, p, pump_wire);
}

void net_watch_node(struct sim *s, const struct proc *p)
{
    each_wire(s, p, watch_silence);
}

void net_close(struct sim *s)
{
    for (uint32_t w = 0; w < s->n_workers; w++)
        for (uint32_t r = 0; r < s->n_routers; r++)
            for (int dir = 0; dir < 2; dir++)
                drop_queue(s, wire_of(s, w, r), dir);
}

/* ---- sending ---- */

static struct packet *packet_new(struct sim *s, uint32_t life)
{
    struct packet *p = malloc(sizeof *p + s->encoded.len);
    if (!p)
        abort();
    *p = (struct packet){.life = life, .size = (uint32_t)s->encoded.len};
    memcpy(p->bytes, s->encoded.data, s->encoded.len);
    return p;
}

static void flip_bits(struct sim *s, struct packet *p)
{
    for (uint32_t n = 1 + rng_below(&s->rng, 3); n > 0; n--)
        p->bytes[rng_below(&s->rng, p->size)] ^= (uint8_t)(1u << rng_below(&s->rng, 8));
    s->n_flipped++;
}

static bool happens(struct sim *s, uint32_t one_in)
{
    return one_in && rng_chance(&s->rng, one_in);
}

static void send_hostile(struct sim *s, uint32_t w, uint32_t r, int dir, uint32_t life)
{
    struct wire *x = wire_of(s, w, r);
    uint32_t copies = happens(s, s->double_1_in) ? 2 : 1;
    if (happens(s, s->lose_1_in)) {
        s->n_lost++;
        return;
    }
    s->n_doubled += copies - 1;
    for (; copies > 0; copies--) {
        uint64_t at = s->now_ns + delay(s);
        if (happens(s, s->delay_1_in)) /* others overtake it */
            at += rng_below(&s->rng, 400) * MS;
        else
            at = x->last_at_ns[dir] = at > x->last_at_ns[dir] ? at : x->last_at_ns[dir];
        struct event *e = sim_schedule(s, EV_PACKET, at);
        e->a = w;
        e->b = r;
        e->c = (uint32_t)dir;
        e->packet = packet_new(s, life);
        if (happens(s, s->flip_1_in))
            flip_bits(s, e->packet);
    }
}

bool net_send(struct sim *s, uint32_t w, uint32_t r, int dir, uint32_t life, const struct sl_msg *m)
{
    struct wire *x = wire_of(s, w, r);
    struct sl_err err = {0};
    if (s->mode == ORDERED && (!x->stands || life != worker_proc(s, w)->life))
        return false;
    sl_buf_clear(&s->encoded);
    MUST(s, !sl_msg_encode(m, &s->encoded, &err), "message not encoded: %s", err.msg);
    sim_trace(s, "send w%u r%u %c kind %d tag %llu seq %llu", w, r, dir == UP ? '^' : 'v',
              (int)m->kind, (unsigned long long)m->tag, (unsigned long long)m->seq);
    if (s->mode != ORDERED) {
        send_hostile(s, w, r, dir, life);
        return true;
    }
    struct packet *p = packet_new(s, life);
    uint64_t at = s->now_ns + delay(s);
    x->last_at_ns[dir] = p->at_ns = at > x->last_at_ns[dir] ? at : x->last_at_ns[dir];
    *x->tail[dir] = p;
    x->tail[dir] = &p->next;
    pump_at(s, w, r, dir, p->at_ns);
    return true;
}

/* ---- arriving ---- */

static void arrive(struct sim *s, uint32_t w, uint32_t r, int dir, const struct packet *p)
{
    struct sl_msg m;
    struct sl_err err;
    const struct proc *to = dir == UP ? router_proc(s, r) : worker_proc(s, w);
    if (!to->alive || (dir == DOWN && p->life != to->life))
        return; /* whoever it was for is gone */
    sl_arena_reset(&s->arena);
    if (sl_msg_decode(p->bytes, p->size, &s->arena, &m, &err))
        return; /* counted as malformed */
    sim_trace(s, "hear w%u r%u %c kind %d seq %llu", w, r, dir == UP ? '^' : 'v', (int)m.kind,
              (unsigned long long)m.seq);
    if (dir == UP)
        router_hear(s, r, w, p->life, &m);
    else
        worker_hear(s, w, r, &m);
}

static void pump(struct sim *s, uint32_t w, uint32_t r, int dir)
{
    struct wire *x = wire_of(s, w, r);
    const struct proc *to = dir == UP ? router_proc(s, r) : worker_proc(s, w);
    if (x->n_blocks[dir] || !sim_is_awake(s, to))
        return;
    struct packet *p = x->head[dir];
    if (!p || p->at_ns > s->now_ns)
        return;
    x->head[dir] = p->next;
    if (!x->head[dir])
        x->tail[dir] = &x->head[dir];
    if (x->head[dir])
        pump_at(s, w, r, dir, x->head[dir]->at_ns > s->now_ns ? x->head[dir]->at_ns : s->now_ns);
    arrive(s, w, r, dir, p);
    free(p);
}

static void packet_arrives(struct sim *s, struct event *e)
{
    int dir = (int)e->c;
    const struct proc *to = dir == UP ? router_proc(s, e->b) : worker_proc(s, e->a);
    struct packet *p = e->packet;
    if (to->alive && !sim_is_awake(s, to)) { /* it waits in a buffer */
        struct event *again = sim_schedule(s, EV_PACKET, to->paused_until_ns);
        again->a = e->a;
        again->b = e->b;
        again->c = e->c;
        again->packet = p;
        return;
    }
    if (!wire_of(s, e->a, e->b)->n_blocks[dir])
        arrive(s, e->a, e->b, dir, p);
    free(p);
}

static void dead(struct sim *s, const struct event *e)
{
    struct wire *x = wire_of(s, e->a, e->b);
    bool quiet = is_blocked(x) || !sim_is_awake(s, worker_proc(s, e->a)) ||
                 !sim_is_awake(s, router_proc(s, e->b));
    if (s->mode == ORDERED && x->stands && x->n_connects == e->life && quiet)
        net_reset(s, e->a, e->b);
}

void net_event(struct sim *s, struct event *e)
{
    if (e->kind == EV_PUMP)
        pump(s, e->a, e->b, (int)e->c);
    else if (e->kind == EV_PACKET)
        packet_arrives(s, e);
    else if (e->kind == EV_CONNECT)
        try_connect(s, e->a, e->b);
    else if (e->kind == EV_DEAD)
        dead(s, e);
    else
        unblock(s, e->a, e->b, (int)e->c);
}
