/* The less loaded of two workers drawn at random: nearly as even as asking all of them, and routers
 * that see the same state do not all choose the same worker (Mitzenmacher, "The Power of Two
 * Choices in Randomized Load Balancing", 2001). */
#include "router_priv.h"

static struct worker *nth_that_takes(struct sl_router *r, const struct req *q, uint32_t n)
{
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_takes(&r->workers[i], q) && n-- == 0)
            return &r->workers[i];
    return NULL;
}

static struct worker *pick(struct policy *p, struct sl_router *r, const struct req *q)
{
    uint32_t n = 0;
    (void)p;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        n += sl_worker_takes(&r->workers[i], q);
    if (n < 2)
        return nth_that_takes(r, q, 0);
    uint32_t first = sl_rng_below(&r->rng, n), second = sl_rng_below(&r->rng, n - 1);
    struct worker *a = nth_that_takes(r, q, first);
    struct worker *b = nth_that_takes(r, q, second + (second >= first));
    return sl_is_less_loaded(b, a) ? b : a;
}

static const struct policy_ops ops = {.pick = pick};

struct policy *sl_policy_power_of_two(void)
{
    static struct policy policy = {&ops};
    return &policy;
}
