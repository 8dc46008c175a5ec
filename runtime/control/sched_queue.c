/* The waiting queue: priority, then fairness between tenants by tokens served, then arrival.
 *
 * Lanes lie in one list ordered by priority. Within the first priority the preempted go first, then
 * the lane whose tenant was served least. Every SL_SCHED_AGE_TURN-th admission belongs to the
 * oldest request of all once it has waited SL_SCHED_AGE_NS, so that no priority starves. */
#include "sched_priv.h"

#include <stdlib.h>

static uint64_t tenant_hash(uint64_t key)
{
    return sl_hash64(&key, sizeof key, 0);
}

bool sl_queue_init(struct sl_sched *s)
{
    uint32_t n_live = s->cfg.queue_max + s->cfg.max_seqs;
    uint32_t n_buckets = 64;
    s->tenants_max = n_live + 64; /* so that a new tenant always finds an idle one to replace */
    while (n_buckets < s->tenants_max)
        n_buckets *= 2;
    s->lane_mem = calloc(n_live, sizeof *s->lane_mem);
    s->tenant_mem = calloc(s->tenants_max, sizeof *s->tenant_mem);
    s->tenant_buckets = calloc(n_buckets, sizeof(struct sl_hash_node *));
    if (!s->lane_mem || !s->tenant_mem || !s->tenant_buckets)
        return false;
    sl_hash_init(&s->by_tenant, s->tenant_buckets, n_buckets);
    sl_list_init(&s->lanes);
    sl_list_init(&s->free_lanes);
    sl_list_init(&s->arrivals);
    sl_list_init(&s->idle_tenants);
    for (uint32_t i = 0; i < n_live; i++)
        sl_list_push_back(&s->free_lanes, &s->lane_mem[i].link);
    return true;
}

/* --- tenants ---------------------------------------------------------------------------------- */

static struct sl_tenant *tenant_new(struct sl_sched *s)
{
    if (s->n_tenants < s->tenants_max)
        return &s->tenant_mem[s->n_tenants++];
    sl_assert(!sl_list_empty(&s->idle_tenants));
    struct sl_tenant *t = SL_ENTRY(s->idle_tenants.next, struct sl_tenant, idle);
    sl_hash_remove(&s->by_tenant, &t->by_key);
    sl_list_remove(&t->idle);
    return t;
}

struct sl_tenant *sl_tenant_get(struct sl_sched *s, uint64_t key)
{
    uint64_t hash = tenant_hash(key);
    struct sl_hash_node *n = sl_hash_first(&s->by_tenant, hash);
    while (n && SL_ENTRY(n, struct sl_tenant, by_key)->key != key)
        n = sl_hash_next(n);
    struct sl_tenant *t = n ? SL_ENTRY(n, struct sl_tenant, by_key) : NULL;
    if (!t) {
        t = tenant_new(s);
        *t = (struct sl_tenant){.key = key};
        sl_hash_insert(&s->by_tenant, &t->by_key, hash);
    }
    sl_list_remove(&t->idle);
    t->n_live++;
    return t;
}

void sl_tenant_put(struct sl_sched *s, struct sl_tenant *t)
{
    if (--t->n_live == 0)
        sl_list_push_back(&s->idle_tenants, &t->idle);
}

/* What is computed again after a preemption was paid for already. */
void sl_tenant_charge(struct sl_seq *q, uint32_t n_positions)
{
    if (n_positions <= q->n_charged)
        return;
    q->tenant->served += n_positions - q->n_charged;
    q->n_charged = n_positions;
}

/* A tenant that waited for nothing must not cash in its absence. */
static void tenant_lift(struct sl_sched *s, struct sl_tenant *t)
{
    uint64_t least = UINT64_MAX;
    for (struct sl_list *l = s->lanes.next; l != &s->lanes; l = l->next) {
        const struct sl_tenant *other = SL_ENTRY(l, struct sl_lane, link)->tenant;
        if (other && other->served < least)
            least = other->served;
    }
    if (least == UINT64_MAX)
        least = s->served_floor;
    if (t->served < least)
        t->served = least;
}

/* --- lanes ------------------------------------------------------------------------------------ */

static struct sl_lane *lane_get(struct sl_sched *s, int32_t priority, struct sl_tenant *tenant)
{
    struct sl_list *l = s->lanes.next;
    for (; l != &s->lanes; l = l->next) {
        struct sl_lane *lane = SL_ENTRY(l, struct sl_lane, link);
        if (lane->priority == priority && lane->tenant == tenant)
            return lane;
        if (lane->priority > priority || (lane->priority == priority && !tenant))
            break;
    }
    sl_assert(!sl_list_empty(&s->free_lanes)); /* one for every request that can wait */
    struct sl_lane *lane = SL_ENTRY(s->free_lanes.next, struct sl_lane, link);
    sl_list_remove(&lane->link);
    lane->priority = priority;
    lane->tenant = tenant;
    sl_list_init(&lane->seqs);
    sl_list_push_back(l, &lane->link); /* before l */
    return lane;
}

/* Behind everything that arrived earlier; found from the back for new requests. */
static void insert_by_arrival(struct sl_list *head, struct sl_list *node, size_t node_offset,
                              uint64_t arrival)
{
    struct sl_list *at = head->prev;
    while (at != head &&
           ((const struct sl_seq *)(const void *)((const char *)at - node_offset))->arrival >
               arrival)
        at = at->prev;
    sl_list_insert_after(at, node);
}

static void enqueue(struct sl_sched *s, struct sl_seq *q, struct sl_lane *lane)
{
    insert_by_arrival(&lane->seqs, &q->link, offsetof(struct sl_seq, link), q->arrival);
    insert_by_arrival(&s->arrivals, &q->by_arrival, offsetof(struct sl_seq, by_arrival),
                      q->arrival);
    q->lane = lane;
    q->state = SEQ_WAITING;
    s->n_waiting++;
    q->tenant->n_waiting++;
}

void sl_queue_add(struct sl_sched *s, struct sl_seq *q)
{
    if (!q->tenant->n_waiting)
        tenant_lift(s, q->tenant);
    enqueue(s, q, lane_get(s, q->priority, q->tenant));
}

void sl_queue_add_preempted(struct sl_sched *s, struct sl_seq *q)
{
    enqueue(s, q, lane_get(s, q->priority, NULL));
}

void sl_queue_remove(struct sl_sched *s, struct sl_seq *q)
{
    struct sl_lane *lane = q->lane;
    sl_list_remove(&q->link);
    sl_list_remove(&q->by_arrival);
    q->lane = NULL;
    s->n_waiting--;
    q->tenant->n_waiting--;
    if (s->blocked == q)
        s->blocked = NULL;
    if (sl_list_empty(&lane->seqs)) {
        sl_list_remove(&lane->link);
        sl_list_push_front(&s->free_lanes, &lane->link);
    }
}

/* --- the next --------------------------------------------------------------------------------- */

static struct sl_seq *lane_first(const struct sl_lane *lane)
{
    return SL_ENTRY(lane->seqs.next, struct sl_seq, link);
}

static bool lane_before(const struct sl_lane *a, const struct sl_lane *b)
{
    if (!a->tenant || !b->tenant)
        return !a->tenant && b->tenant;
    if (a->tenant->served != b->tenant->served)
        return a->tenant->served < b->tenant->served;
    return lane_first(a)->arrival < lane_first(b)->arrival;
}

struct sl_seq *sl_queue_next(const struct sl_sched *s, uint64_t now_ns, bool *aged)
{
    *aged = false;
    if (!s->n_waiting)
        return NULL;
    struct sl_seq *oldest = SL_ENTRY(s->arrivals.next, struct sl_seq, by_arrival);
    if (s->since_aged + 1 >= SL_SCHED_AGE_TURN && now_ns > oldest->submitted_ns &&
        now_ns - oldest->submitted_ns >= SL_SCHED_AGE_NS) {
        *aged = true;
        return oldest;
    }
    const struct sl_lane *best = SL_ENTRY(s->lanes.next, struct sl_lane, link);
    for (struct sl_list *l = best->link.next; l != &s->lanes; l = l->next) {
        const struct sl_lane *lane = SL_ENTRY(l, struct sl_lane, link);
        if (lane->priority != best->priority)
            break;
        if (lane_before(lane, best))
            best = lane;
    }
    return lane_first(best);
}

void sl_queue_admit(struct sl_sched *s, struct sl_seq *q, bool aged)
{
    sl_queue_remove(s, q);
    s->since_aged = aged ? 0 : s->since_aged + (s->since_aged < SL_SCHED_AGE_TURN);
    q->shielded |= aged;
    if (q->tenant->served > s->served_floor)
        s->served_floor = q->tenant->served;
}

bool sl_seq_before(const struct sl_seq *a, const struct sl_seq *b)
{
    if (a->shielded != b->shielded)
        return a->shielded;
    if (!a->shielded && a->priority != b->priority)
        return a->priority < b->priority;
    return a->arrival < b->arrival;
}
