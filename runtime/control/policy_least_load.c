/* Routing by load: the worker with the fewest requests for its size; among equals the one with the
 * larger share of free pages, then the one not chosen for the longest time. */
#include "router_priv.h"

static int compare_ratio(uint64_t a, uint64_t a_max, uint64_t b, uint64_t b_max)
{
    uint64_t x = a * b_max, y = b * a_max;
    return (x > y) - (x < y);
}

bool sl_is_less_loaded(const struct worker *a, const struct worker *b)
{
    int load = compare_ratio(sl_worker_requests(a), sl_worker_size(a), sl_worker_requests(b),
                             sl_worker_size(b));
    if (load)
        return load < 0;
    int pages = compare_ratio(a->load.pages_free, a->load.pages_total, b->load.pages_free,
                              b->load.pages_total);
    if (pages)
        return pages > 0;
    return a->last_routed < b->last_routed;
}

struct worker *sl_least_loaded(struct sl_router *r, const struct req *q)
{
    struct worker *best = NULL;
    uint32_t n_equal = 0;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (!sl_worker_takes(w, q))
            continue;
        if (!best || sl_is_less_loaded(w, best)) {
            best = w;
            n_equal = 1;
        } else if (r->cfg.seed && !sl_is_less_loaded(best, w) &&
                   sl_rng_below(&r->rng, ++n_equal) == 0) {
            best = w; /* so that routers do not all begin with the same one */
        }
    }
    return best;
}

static struct worker *pick(struct policy *p, struct sl_router *r, const struct req *q)
{
    (void)p;
    return sl_least_loaded(r, q);
}

static const struct policy_ops ops = {.pick = pick};

struct policy *sl_policy_least_load(void)
{
    static struct policy policy = {&ops};
    return &policy;
}
