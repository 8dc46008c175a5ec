/* A block's shared memory, and copies on their way to it. */
#include <stdlib.h>
#include <string.h>

#include "emu/asan.h"
#include "emu/block.h"
#include "emu/race.h"

enum { POISON = 0xff }; /* NaN as a float, and no index */

/* ---- shared memory ---- */

void emu_shared_start(struct worker *w)
{
    size_t bytes = w->launch->smem;
    w->n_statics = 0;
    w->smem_used = bytes;
    ASAN_UNPOISON(w->smem, bytes);
    memset(w->smem, POISON, bytes);
    ASAN_POISON(w->smem + bytes, SHARED_ROOM - bytes);
}

void *emu_shared_dynamic(void)
{
    return emu_worker->smem;
}

void *emu_shared_static(const void *key, size_t bytes)
{
    struct worker *w = emu_worker;
    size_t n_used = bytes + w->launch->smem;
    for (uint32_t i = 0; i < w->n_statics; i++) {
        if (w->statics[i].key == key)
            return w->smem + w->statics[i].at;
        n_used += w->statics[i].bytes;
    }
    if (w->n_statics == STATIC_SHARED_MAX || bytes > EMU_SMEM_MAX || n_used > EMU_SMEM_MAX)
        emu_break((struct emu_site){0}, "%zu bytes of shared memory", n_used);
    size_t at = (w->smem_used + 2 * SHARED_GAP - 1) / SHARED_GAP * SHARED_GAP;
    w->statics[w->n_statics++] = (struct shared_array){key, at, bytes};
    w->smem_used = at + bytes;
    ASAN_UNPOISON(w->smem + at, bytes);
    memset(w->smem + at, POISON, bytes);
    return w->smem + at;
}

/* ---- asynchronous copies ---- */

/* The sizes a copy may have, without a call that a sanitizer would look at. */
static void complete(struct lane_copy *c)
{
    uint8_t *to = c->to;
    const uint8_t *from = c->from;
    for (uint32_t i = 0; i < c->n; i++)
        to[i] = from[i];
    for (uint32_t i = 0; i < c->n_zero; i++)
        to[c->n + i] = 0;
    c->done = true;
}

static struct lane_copy *append(struct lane *l)
{
    if (l->n_copies == l->copies_max) {
        l->copies_max = l->copies_max ? 2 * l->copies_max : 32;
        l->copies = realloc(l->copies, l->copies_max * sizeof *l->copies);
        if (!l->copies)
            abort();
    }
    return &l->copies[l->n_copies++];
}

void emu_copy_async(void *to, const void *from, uint32_t n, uint32_t n_zero, struct emu_site at)
{
    struct worker *w = emu_worker;
    uintptr_t bytes = n + n_zero, offset = (uintptr_t)to - (uintptr_t)w->smem;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || (uintptr_t)to % bytes ||
        (n && (uintptr_t)from % bytes))
        emu_break(at, "cp.async of %u bytes from %p to %p", n + n_zero, from, to);
    if (offset >= w->smem_used || bytes > w->smem_used - offset)
        emu_break(at, "cp.async to %p, which is not the block's shared memory", to);
    struct lane *l = emu_lane(w);
    struct lane_copy *c = append(l);
    *c = (struct lane_copy){to, from, n, n_zero, l->n_groups, false};
    if (w->race)
        emu_race_copy(w, c, __builtin_return_address(0));
    if (w->options->seed & 1)
        complete(c);
}

void emu_copy_commit(void)
{
    emu_lane(emu_worker)->n_groups++;
}

void emu_copy_wait(uint32_t n_left)
{
    struct worker *w = emu_worker;
    struct lane *l = emu_lane(w);
    uint32_t n = 0, end = l->n_groups > n_left ? l->n_groups - n_left : 0;
    for (; n < l->n_copies && l->copies[n].group < end; n++) {
        if (!l->copies[n].done)
            complete(&l->copies[n]);
        if (w->race)
            emu_race_copied(w, &l->copies[n]);
    }
    l->n_copies -= n;
    if (n && l->n_copies)
        memmove(l->copies, l->copies + n, l->n_copies * sizeof *l->copies);
}
