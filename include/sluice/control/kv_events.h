/* What the prefix index of a worker gained and lost, in order, for routers that keep a copy of it.
 *
 * A bounded ring, owned by the caller. When it is full, all of it is dropped and "cleared" takes
 * its place; the pool then tells every page again (sl_kv_tell), parents before children. Events may
 * repeat what is known: applied in order to a set of keys they end with exactly the pages of the
 * index, once the ring is empty and the pool has nothing left to tell. Pure; one thread. */
#ifndef SLUICE_CONTROL_KV_EVENTS_H
#define SLUICE_CONTROL_KV_EVENTS_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

enum sl_kv_event_kind { SL_KV_STORED, SL_KV_REMOVED, SL_KV_CLEARED };

struct sl_kv_event {
    enum sl_kv_event_kind kind;
    bool has_parent;        /* SL_KV_STORED; false: the first page of a prompt */
    uint8_t key[32];        /* as of sl_prefix_key; none with SL_KV_CLEARED */
    uint8_t parent[32];
    const uint32_t *tokens; /* SL_KV_STORED: [page_size], the ring's own until the next push */
};

struct sl_kv_events {
    uint32_t cap, page_size;
    uint32_t head, n;
    bool overflowed;           /* set by the ring, lowered by whoever tells all pages again */
    uint64_t n_pushed, n_overflows;
    struct sl_kv_event *items; /* [cap] */
    uint32_t *tokens;          /* [cap, page_size] */
};

/* SL_INVALID for a ring of fewer than 2 events or an empty page, SL_NO_MEMORY. */
enum sl_status sl_kv_events_open(struct sl_kv_events *ev, uint32_t cap, uint32_t page_size,
                                 struct sl_err *err);
void sl_kv_events_close(struct sl_kv_events *ev);
/* Tokens are copied. */
void sl_kv_events_push(struct sl_kv_events *ev, const struct sl_kv_event *e);
/* The oldest; false when there is none. */
bool sl_kv_events_pop(struct sl_kv_events *ev, struct sl_kv_event *out);
/* Drops all of them and says "cleared": what follows builds on nothing. */
void sl_kv_events_restart(struct sl_kv_events *ev);
static inline uint32_t sl_kv_events_room(const struct sl_kv_events *ev)
{
    return ev->cap - ev->n;
}

#endif
