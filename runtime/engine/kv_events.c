/* KV events on their way out: the scheduler's ring (engine thread) into one that any thread reads.
 *
 * The second ring may overflow when nobody reads; it then says "cleared", and the engine thread
 * tells every page again, as much at a time as there is room for. */
#include "engine.h"

#include <sluice/base/limits.h>

#include <string.h>

#define TOLD_AT_ONCE 512 /* pages told again between two steps */

enum sl_status sl_engine_events_open(struct sl_engine *e, struct sl_err *err)
{
    uint32_t cap = SL_LIMIT_kv_event_ring, page = e->info.page_size;
    enum sl_status status = sl_kv_events_open(&e->events, cap, page, err);
    return status ? status : sl_kv_events_open(&e->events_out, cap, page, err);
}

void sl_engine_events_close(struct sl_engine *e)
{
    sl_kv_events_close(&e->events);
    sl_kv_events_close(&e->events_out);
}

bool sl_engine_events_pass(struct sl_engine *e)
{
    struct sl_kv_event ev;
    if (!e->events.cap)
        return false;
    bool retell = atomic_exchange(&e->retell, false);
    pthread_mutex_lock(&e->events_lock);
    while (sl_kv_events_pop(&e->events, &ev))
        sl_kv_events_push(&e->events_out, &ev);
    retell |= e->events_out.overflowed;
    e->events_out.overflowed = false;
    uint32_t room = sl_kv_events_room(&e->events_out) / 2;
    pthread_mutex_unlock(&e->events_lock);
    if (retell)
        sl_sched_retell(e->sched);
    bool more = sl_sched_tell(e->sched, room < TOLD_AT_ONCE ? room : TOLD_AT_ONCE);
    return more || e->events.n;
}

uint32_t sl_engine_take_kv_events(struct sl_engine *e, struct sl_kv_event *out, uint32_t *tokens,
                                  uint32_t most)
{
    uint32_t n = 0, page = e->info.page_size;
    pthread_mutex_lock(&e->events_lock);
    for (; n < most && sl_kv_events_pop(&e->events_out, &out[n]); n++) {
        if (out[n].kind != SL_KV_STORED)
            continue;
        uint32_t *to = tokens + (size_t)n * page;
        memcpy(to, out[n].tokens, page * sizeof *to);
        out[n].tokens = to;
    }
    pthread_mutex_unlock(&e->events_lock);
    return n;
}

void sl_engine_retell_kv(struct sl_engine *e)
{
    atomic_store(&e->retell, true);
    sl_engine_cancel(e, UINT64_MAX); /* wakes the thread; no request has this id */
}
