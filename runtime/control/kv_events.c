/* The ring of KV events. */
#include <sluice/control/kv_events.h>

#include <sluice/base/mem.h>
#include <stdlib.h>
#include <string.h>

enum sl_status sl_kv_events_open(struct sl_kv_events *ev, uint32_t cap, uint32_t page_size,
                                 struct sl_err *err)
{
    size_t n_tokens;
    memset(ev, 0, sizeof *ev);
    if (cap < 2 || !page_size || !sl_size_mul(cap, page_size, &n_tokens))
        return sl_fail(err, SL_INVALID, "kv events: a ring of %u events of %u tokens", cap,
                       page_size);
    ev->cap = cap;
    ev->page_size = page_size;
    ev->items = calloc(cap, sizeof *ev->items);
    ev->tokens = calloc(n_tokens, sizeof *ev->tokens);
    if (ev->items && ev->tokens)
        return SL_OK;
    sl_kv_events_close(ev);
    return sl_fail(err, SL_NO_MEMORY, "kv events: no memory for %u events", cap);
}

void sl_kv_events_close(struct sl_kv_events *ev)
{
    free(ev->items);
    free(ev->tokens);
    memset(ev, 0, sizeof *ev);
}

static void put(struct sl_kv_events *ev, const struct sl_kv_event *e)
{
    uint32_t at = (uint32_t)(((uint64_t)ev->head + ev->n++) % ev->cap);
    uint32_t *tokens = ev->tokens + (size_t)at * ev->page_size;
    ev->items[at] = *e;
    ev->items[at].tokens = NULL;
    if (e->kind != SL_KV_STORED)
        return;
    memcpy(tokens, e->tokens, ev->page_size * sizeof *tokens);
    ev->items[at].tokens = tokens;
}

void sl_kv_events_restart(struct sl_kv_events *ev)
{
    static const struct sl_kv_event cleared = {.kind = SL_KV_CLEARED};
    ev->head = ev->n = 0;
    put(ev, &cleared);
}

void sl_kv_events_push(struct sl_kv_events *ev, const struct sl_kv_event *e)
{
    ev->n_pushed++;
    if (ev->n == ev->cap) {
        ev->n_overflows++;
        ev->overflowed = true;
        sl_kv_events_restart(ev);
    }
    put(ev, e);
}

bool sl_kv_events_pop(struct sl_kv_events *ev, struct sl_kv_event *out)
{
    if (!ev->n)
        return false;
    *out = ev->items[ev->head];
    ev->head = (ev->head + 1) % ev->cap;
    ev->n--;
    return true;
}
