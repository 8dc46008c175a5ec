/* The scheduler's side of KV transfers: pages pinned for readers and writers outside.
 *
 * Held pages are no sequence's, yet not to be had: at most half of all may be held at once, and a
 * reservation leaves what the running sequences were promised and one page for each to grow into.
 */
#include "sched_priv.h"

bool sl_sched_pin(struct sl_sched *s, uint32_t page)
{
    /* It is referenced now and may be held by nobody but us later: count it as held already. */
    if (s->n_pinned >= sl_held_max(s))
        return false;
    s->n_pinned++;
    sl_kv_pin(&s->kv, page);
    return true;
}

void sl_sched_unpin(struct sl_sched *s, uint32_t page)
{
    sl_assert(s->n_pinned);
    s->n_pinned--;
    sl_kv_unpin(&s->kv, page);
    s->blocked = NULL;
}

uint32_t sl_sched_reserve(struct sl_sched *s, uint32_t n, uint32_t *pages)
{
    uint64_t kept = (uint64_t)sl_sched_promised(s) + s->n_running;
    uint32_t got = 0;
    while (got < n && s->n_pinned < sl_held_max(s) && sl_kv_available(&s->kv) > kept &&
           sl_kv_take_held(&s->kv, &pages[got])) {
        s->n_pinned++;
        got++;
    }
    return got;
}

bool sl_sched_import(struct sl_sched *s, uint32_t page, const uint8_t *parent,
                     const uint8_t key[32], const uint32_t *tokens)
{
    bool added = sl_prefix_add(&s->kv, page, parent, key, tokens);
    sl_sched_unpin(s, page);
    return added;
}

uint32_t sl_sched_n_cached(struct sl_sched *s, const uint8_t (*keys)[32], const uint32_t *tokens,
                           uint32_t n_pages)
{
    uint32_t n = 0, page;
    while (n < n_pages &&
           sl_prefix_find(&s->kv, keys[n], tokens + (size_t)n * s->cfg.page_size, &page))
        n++;
    for (uint32_t i = n; i-- > 0;) /* the tail first, as sequences give them back */
        if (sl_prefix_find(&s->kv, keys[i], tokens + (size_t)i * s->cfg.page_size, &page)) {
            sl_kv_release(&s->kv, page);
            sl_kv_release(&s->kv, page);
        }
    return n;
}
