/* Routing by session: all requests of one go to the same worker, at every router alike and without
 * a table, by the highest hash of (session, worker): Thaler and Ravishankar, "Using Name-Based
 * Mappings to Increase Hit Rates" (1998). A worker that comes or goes moves only its own share.
 *
 * Loads are bounded (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads",
 * 2018): one with more than 5/4 of the average and two more is passed over for the next in order. A
 * request without a session is routed by cache and load. */
#include "router_priv.h"

static uint64_t rank_of(const struct req *q, const struct worker *w)
{
    const uint64_t pair[2] = {q->session, w->desc.instance};
    return sl_hash64(pair, sizeof pair, 0);
}

/* Requests a worker may have and still be given more, for an average of sum / n. */
static uint64_t bound_of(const struct sl_router *r, const struct req *q)
{
    uint64_t sum = 0, n = 0;
    for (uint32_t i = 0; i < r->cfg.max_workers; i++)
        if (sl_worker_suits(&r->workers[i], q)) {
            sum += sl_worker_requests(&r->workers[i]);
            n++;
        }
    return n ? sum * 5 / (n * 4) + 2 : 0;
}

static struct worker *pick(struct policy *p, struct sl_router *r, const struct req *q)
{
    (void)p;
    if (!q->session)
        return sl_kv_pick(r, q);
    struct worker *best = NULL;
    uint64_t bound = bound_of(r, q);
    for (uint32_t i = 0; i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        if (sl_worker_takes(w, q) && sl_worker_requests(w) <= bound &&
            (!best || rank_of(q, w) > rank_of(q, best)))
            best = w;
    }
    return best ? best : sl_least_loaded(r, q);
}

static const struct policy_ops ops = {.wants_chain = true, .wants_index = true, .pick = pick};

struct policy *sl_policy_session(void)
{
    static struct policy policy = {&ops};
    return &policy;
}
