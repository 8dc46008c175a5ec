/* Routing by what there is to compute: the prompt's tokens that a worker is expected not to have
 * cached, behind those it has to compute already and beside the streams it runs.
 *
 * All in tokens. What is computed counts double, for this request's time and for the others': a
 * burst of one prefix rather waits for its first than computes it everywhere. A running stream
 * slows every step and counts as STREAM_TOKENS; pages that the prompt needs and the worker can only
 * get by evicting cost as many tokens again, since somebody will miss them. Urgent requests
 * (priority below 0) weigh the wait double, patient ones half; a worker of weight 2 seems half as
 * busy as it is.
 *
 * No herding: what a router knows is up to a report old, and others know the same. So the worker is
 * drawn: each step of `spread` tokens above the least cost halves its chance, up to SPREADS of
 * them. The spread grows with what the request itself costs, as that is what a second router would
 * add unseen. A cached prefix longer than that still decides alone. */
#include "router_priv.h"

enum { STREAM_TOKENS = 32, SPREADS = 4 };

static uint64_t cost_of(const struct sl_router *r, const struct req *q, const struct worker *w)
{
    uint64_t n_tokens = (uint64_t)q->n_tokens + q->n_delivered;
    uint64_t n_new = n_tokens - sl_expected_cached(r, q, w);
    uint64_t wait = w->n_new + w->foreign_tokens + sl_worker_requests(w) * STREAM_TOKENS;
    uint64_t free_tokens = (uint64_t)w->load.pages_free * r->page_size;
    uint64_t evicted = w->reported && n_new > free_tokens ? n_new - free_tokens : 0;
    wait = wait * 100 / w->desc.weight_percent;
    if (q->priority < 0)
        wait *= 2;
    else if (q->priority > 0)
        wait /= 2;
    return 2 * n_new + evicted + wait;
}

/* Chances of a worker `above` the least cost, out of 1 << SPREADS at it. */
static uint32_t chances(uint64_t above, uint64_t spread)
{
    uint64_t halvings = above / spread;
    return halvings < SPREADS ? 1u << (SPREADS - halvings) : above == 0;
}

static uint64_t least_cost(const struct sl_router *r, const struct req *q, uint64_t *spread)
{
    uint64_t least = UINT64_MAX, least_new = q->n_tokens;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        const struct worker *w = &r->workers[i];
        if (!sl_worker_takes(w, q))
            continue;
        uint64_t cost = cost_of(r, q, w), n_new = q->n_tokens - sl_expected_cached(r, q, w);
        least = cost < least ? cost : least;
        least_new = n_new < least_new ? n_new : least_new;
    }
    *spread = (2 * least_new + STREAM_TOKENS) / 4 + 1;
    return least;
}

struct worker *sl_kv_pick(struct sl_router *r, const struct req *q)
{
    uint64_t spread, least = least_cost(r, q, &spread);
    uint32_t total = 0;
    struct worker *picked = NULL;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        uint32_t n = sl_worker_takes(w, q) ? chances(cost_of(r, q, w) - least, spread) : 0;
        total += n;
        if (n && sl_rng_below(&r->rng, total) < n) /* each is kept with chance n / total */
            picked = w;
    }
    return picked;
}

static struct worker *pick(struct policy *p, struct sl_router *r, const struct req *q)
{
    (void)p;
    return sl_kv_pick(r, q);
}

static const struct policy_ops ops = {.wants_chain = true, .wants_index = true, .pick = pick};

struct policy *sl_policy_kv(void)
{
    static struct policy policy = {&ops};
    return &policy;
}
