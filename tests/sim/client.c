/* Clients: each knows the model and checks every token it is given. */
#include "sim.h"

/* Workers of two classes are two models, as far as a stream can tell. */
uint64_t model_salt(uint64_t salt, uint64_t class_hash)
{
    return salt * 1000 + class_hash;
}

bool model_stops(uint32_t token)
{
    return token == 13;
}

bool model_ends(const struct client *c)
{
    uint32_t n_new = c->n - c->n_prompt;
    return n_new && (n_new == c->max_new || model_stops(c->tokens[c->n - 1]));
}

static void ended(struct sim *s, struct client *c, enum client_state how)
{
    MUST(s, c->state == LIVE || c->state == ASKING, "request %u ended twice", c->index);
    c->state = how;
    s->n_open--;
    if (s->healed && !c->strict)
        s->settled_ns = s->now_ns - HEAL_NS;
    sim_trace(s, "request %u ends as %d with %u tokens", c->index, (int)how, c->n - c->n_prompt);
}

void client_token(struct sim *s, struct client *c, uint32_t token, uint64_t class_hash)
{
    if (!c->class_hash)
        c->class_hash = class_hash;
    uint32_t right = fake_next(model_salt(c->salt, c->class_hash), c->tokens, c->n);
    MUST(s, token == right, "request %u: token %u is %u, not %u", c->index, c->n - c->n_prompt,
         token, right);
    MUST(s, !model_ends(c), "request %u: a token after its end", c->index);
    if (c->n < LEN_MAX)
        c->tokens[c->n++] = token;
    s->n_delivered++;
}

void client_end(struct sim *s, struct client *c, bool ended_well)
{
    MUST(s, model_ends(c), "request %u ended after %u of %u tokens", c->index, c->n - c->n_prompt,
         c->max_new);
    ended(s, c, ended_well ? DONE : FAILED);
}

void client_fail(struct sim *s, struct client *c, enum sl_status status)
{
    c->status = status;
    bool late = status == SL_TIMEOUT;
    MUST(s, !c->strict || s->mode == BARE, "request %u, asked after healing, failed: %s", c->index,
         sl_status_row(status)->text);
    MUST(s, !late || c->deadline_ns, "request %u has no deadline and missed it", c->index);
    MUST(s, late || status == SL_PEER || status == SL_QUEUE_FULL || status == SL_DRAINING,
         "request %u failed: %s", c->index, sl_status_row(status)->text);
    ended(s, c, FAILED);
}

static void ask_later(struct sim *s, struct client *c)
{
    struct event *e = sim_schedule(s, EV_CLIENT, s->now_ns + (20 + rng_below(&s->rng, 150)) * MS);
    e->a = c->index;
}

void client_ask(struct sim *s, struct client *c)
{
    uint32_t r = rng_below(&s->rng, s->n_routers);
    if (c->state != UNBORN && c->state != ASKING)
        return;
    c->state = ASKING;
    c->n_asked++;
    if (c->deadline_ns && s->now_ns >= c->deadline_ns) {
        client_fail(s, c, SL_TIMEOUT);
        return;
    }
    if (router_proc(s, r)->alive && sim_is_awake(s, router_proc(s, r)))
        router_ask(s, r, c);
    if (c->state == ASKING)
        ask_later(s, c);
}

/* What it has it keeps; another router goes on with it. */
void client_router_lost(struct sim *s, uint32_t r)
{
    for (uint32_t i = 0; i < s->n_clients; i++) {
        struct client *c = &s->clients[i];
        if (c->state != LIVE || c->router != r)
            continue;
        c->state = ASKING;
        if (model_ends(c)) /* only the end was missing */
            client_end(s, c, true);
        else
            ask_later(s, c);
    }
}

static void draw_one(struct sim *s, uint32_t i, bool strict)
{
    struct client *c = &s->clients[i];
    uint32_t shared = rng_below(&s->rng, 40);
    uint64_t at = strict ? HEAL_NS + 1500 * MS + rng_below(&s->rng, 1000) * MS
                         : 100 * MS + rng_below(&s->rng, 3000) * MS;
    *c = (struct client){.index = i,
                         .strict = strict,
                         .salt = rng_below(&s->rng, 2),
                         .n = 1 + rng_below(&s->rng, 40),
                         .max_new = 1 + rng_below(&s->rng, 40),
                         .priority = (int32_t)rng_below(&s->rng, 2)};
    c->n_prompt = c->n;
    for (uint32_t t = 0; t < c->n; t++)
        c->tokens[t] = t < shared ? t : rng_below(&s->rng, FAKE_VOCAB);
    if (!strict && rng_chance(&s->rng, 8))
        c->deadline_ns = at + (1 + rng_below(&s->rng, 1500)) * MS;
    sim_schedule(s, EV_CLIENT, at)->a = i;
    if (!strict && rng_chance(&s->rng, 8))
        sim_schedule(s, EV_CANCEL, at + rng_below(&s->rng, 500) * MS)->a = i;
}

void client_draw(struct sim *s)
{
    uint32_t n_strict = 2 + rng_below(&s->rng, 3);
    s->n_clients = 6 + rng_below(&s->rng, 16) + n_strict;
    for (uint32_t i = 0; i < s->n_clients; i++)
        draw_one(s, i, i < n_strict);
    s->n_open = s->n_clients;
}
