/* Routing by prefix: the worker that was given the longest part of this prompt before, unless it
 * has clearly more to do than the least loaded one.
 *
 * The index is a guess, never a promise: it remembers (page chain, worker) pairs as requests are
 * routed, bounded, least recently used first out. Pairs of a worker that left are never found
 * again, as its uid is not used twice. */
#include "router_priv.h"

#include <stdlib.h>

enum { N_PAIRS = 1 << 16 };

struct pair {
    struct sl_hash_node node;
    struct sl_list lru;
    uint64_t chain, uid;
};

struct affinity {
    struct policy policy;
    struct sl_hash index;
    struct sl_list lru; /* least recently used first */
    struct pair pairs[N_PAIRS];
    struct sl_hash_node *buckets[N_PAIRS];
};

static uint64_t pair_hash(uint64_t chain, uint64_t uid)
{
    return chain ^ (uid * 0x9e3779b97f4a7c15ull); /* chain is a hash already */
}

static struct pair *find(const struct affinity *a, uint64_t chain, uint64_t uid)
{
    struct sl_hash_node *n = sl_hash_first(&a->index, pair_hash(chain, uid));
    for (; n; n = sl_hash_next(n)) {
        struct pair *p = SL_ENTRY(n, struct pair, node);
        if (p->chain == chain && p->uid == uid)
            return p;
    }
    return NULL;
}

static uint32_t match_length(const struct affinity *a, const struct req *q, const struct worker *w)
{
    uint32_t n = 0;
    while (n < q->n_chain && find(a, q->chain[n], w->uid))
        n++;
    return n;
}

static struct worker *pick(struct policy *p, struct sl_router *r, const struct req *q)
{
    const struct affinity *a = (const struct affinity *)(const void *)p;
    struct worker *least = sl_least_loaded(r, q), *best = NULL;
    uint32_t longest = 0;
    for (uint32_t i = 0; least && q->n_chain && i < r->cfg.max_workers; i++) {
        struct worker *w = &r->workers[i];
        uint32_t n = sl_worker_takes(w, q) ? match_length(a, q, w) : 0;
        bool better =
            n > longest || (n && n == longest && sl_worker_requests(w) < sl_worker_requests(best));
        if (better) {
            best = w;
            longest = n;
        }
    }
    if (!best)
        return least;
    uint64_t bound = sl_worker_requests(least) + best->desc.max_seqs / 4 + 2;
    return sl_worker_requests(best) <= bound ? best : least;
}

static void remember(struct affinity *a, uint64_t chain, uint64_t uid)
{
    struct pair *p = find(a, chain, uid);
    if (!p) {
        p = SL_ENTRY(a->lru.next, struct pair, lru);
        if (p->uid)
            sl_hash_remove(&a->index, &p->node);
        p->chain = chain;
        p->uid = uid;
        sl_hash_insert(&a->index, &p->node, pair_hash(chain, uid));
    }
    sl_list_remove(&p->lru);
    sl_list_push_back(&a->lru, &p->lru);
}

static void routed(struct policy *p, const struct req *q, const struct worker *w)
{
    struct affinity *a = (struct affinity *)(void *)p;
    for (uint32_t i = q->n_chain; i-- > 0;) /* the head of a prefix is to stay longest */
        remember(a, q->chain[i], w->uid);
}

static void close_policy(struct policy *p)
{
    free(p);
}

static const struct policy_ops ops = {
    .wants_chain = true, .pick = pick, .routed = routed, .close = close_policy};

struct policy *sl_policy_prefix_affinity(void)
{
    struct affinity *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->policy.ops = &ops;
    sl_hash_init(&a->index, a->buckets, N_PAIRS);
    sl_list_init(&a->lru);
    for (uint32_t i = 0; i < N_PAIRS; i++)
        sl_list_push_back(&a->lru, &a->pairs[i].lru);
    return &a->policy;
}
