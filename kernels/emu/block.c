/* Runs the threads of one block: lanes hand over to each other, the scheduler draws warps. */
#include "emu/block.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emu/asan.h"
#include "emu/fiber.h"
#include "emu/race.h"

#define LANE_FRAMES ((size_t)4 << 10) /* what a lane that ended may leave poisoned */
#define CANARY      0x5ca1ab1e0ddba11ull
/* A block that only waits for memory lets other blocks run. */
#define PAUSES_MAX 64

__thread struct worker *emu_worker;

static uint64_t draw(struct worker *w)
{
    uint64_t x = w->rng += 0x9e3779b97f4a7c15ull; /* splitmix64, Steele et al. 2014 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint32_t below(struct worker *w, uint32_t n)
{
    return (uint32_t)(((draw(w) >> 32) * n) >> 32);
}

/* ---- handing over ---- */

/* From lane `from`, or the scheduler if NULL, to lane `to`, or the scheduler. `ends`: for good. */
static void switch_to(struct worker *w, struct lane *from, struct lane *to, bool ends)
{
    void **fake = from ? &from->fake : &w->sched_fake;
    if (to) {
        w->stack = w->stacks + (size_t)(to - w->lanes) * STACK_STRIDE;
        ASAN_LEAVE(ends ? NULL : fake, w->stack, STACK_BYTES);
    } else {
        ASAN_LEAVE(ends ? NULL : fake, w->sched_stack, w->sched_stack_bytes);
    }
    emu_fiber_switch(from ? &from->sp : &w->sched_sp, to ? to->sp : w->sched_sp);
    ASAN_ARRIVE(*fake, NULL, NULL);
}

/* The next ready lane of the warp, after the current one and around. */
static uint32_t next_lane(uint32_t ready, uint32_t current)
{
    uint32_t behind = ready & ~((2u << current % EMU_WARP) - 1);
    return current / EMU_WARP * EMU_WARP + (uint32_t)__builtin_ctz(behind ? behind : ready);
}

/* Leaves the current lane, which is not ready. */
static void hand_over(struct worker *w, bool ends)
{
    struct lane *from = emu_lane(w), *to = NULL;
    uint32_t ready = w->warps[w->current / EMU_WARP].ready;
    if (ready) {
        w->current = next_lane(ready, w->current);
        to = emu_lane(w);
    }
    switch_to(w, from, to, ends);
}

static void sleep_at(struct worker *w, enum lane_state state, struct emu_site at)
{
    struct lane *l = emu_lane(w);
    l->state = state;
    l->at = at;
    w->warps[w->current / EMU_WARP].ready &= ~(1u << w->current % EMU_WARP);
}

static void wake(struct worker *w, uint32_t lane)
{
    w->lanes[lane].state = LANE_READY;
    w->warps[lane / EMU_WARP].ready |= 1u << lane % EMU_WARP;
}

/* The first lane of a block comes from the scheduler, which learns its own stack by it. */
static void first_arrival(struct worker *w)
{
#ifdef EMU_ASAN
    const void *stack;
    size_t bytes;
    ASAN_ARRIVE(NULL, &stack, &bytes);
    if (!w->sched_stack) {
        w->sched_stack = stack;
        w->sched_stack_bytes = bytes;
    }
#else
    (void)w;
#endif
}

static void lane_main(void)
{
    struct worker *w = emu_worker;
    first_arrival(w);
    w->launch->run(w->launch->args);
    sleep_at(w, LANE_LEFT, (struct emu_site){0});
    w->n_left++;
    hand_over(w, true);
    abort();
}

void emu_pause(void)
{
    struct worker *w = emu_worker;
    w->paused = true;
    switch_to(w, emu_lane(w), NULL, false);
}

/* ---- breaking a rule ---- */

struct emu_index emu_index_of(const struct worker *w, uint32_t lane)
{
    struct emu_dim g = w->launch->grid, b = w->launch->block;
    return (struct emu_index){
        .thread = {lane % b.x, lane / b.x % b.y, lane / b.x / b.y},
        .block = {(unsigned)(w->block % g.x), (unsigned)(w->block / g.x % g.y),
                  (unsigned)(w->block / g.x / g.y)},
        .block_dim = b,
        .grid_dim = g,
    };
}

static void __attribute__((noreturn)) stop(struct worker *w)
{
    w->broken = true;
    switch_to(w, emu_lane(w), NULL, true);
    abort();
}

static size_t tell_who(struct worker *w, const char *place, uint32_t lane)
{
    struct emu_index i = emu_index_of(w, lane);
    int n = snprintf(w->report, sizeof w->report,
                     "%s: %s: block (%u,%u,%u) thread (%u,%u,%u): ", w->launch->name, place,
                     i.block.x, i.block.y, i.block.z, i.thread.x, i.thread.y, i.thread.z);
    return n > 0 && (size_t)n < sizeof w->report ? (size_t)n : 0;
}

void emu_break(struct emu_site at, const char *fmt, ...)
{
    struct worker *w = emu_worker;
    char place[256];
    snprintf(place, sizeof place, "%s:%d", at.file ? at.file : "?", at.line);
    size_t n = tell_who(w, place, w->current);
    va_list args;
    va_start(args, fmt);
    vsnprintf(w->report + n, sizeof w->report - n, fmt, args);
    va_end(args);
    stop(w);
}

void emu_break_access(uint32_t lane, const void *pc, const char *what)
{
    struct worker *w = emu_worker;
    char place[256];
    emu_pc_text(pc, place, sizeof place);
    size_t n = tell_who(w, place, lane);
    snprintf(w->report + n, sizeof w->report - n, "%s", what);
    stop(w);
}

void emu_break_lane(uint32_t lane, const char *what)
{
    struct worker *w = emu_worker;
    char place[256];
    snprintf(place, sizeof place, "%s:%d", w->lanes[lane].at.file, w->lanes[lane].at.line);
    size_t n = tell_who(w, place, lane);
    snprintf(w->report + n, sizeof w->report - n, "%s", what);
    stop(w);
}

/* ---- barriers ---- */

static void check_same_site(struct worker *w, enum lane_state state, uint32_t id,
                            struct emu_site at)
{
    for (uint32_t i = 0; i < w->n_lanes; i++) {
        const struct lane *l = &w->lanes[i];
        if (l->state == state && l->barrier == id &&
            (l->at.line != at.line || (l->at.file != at.file && strcmp(l->at.file, at.file))))
            emu_break(at, "divergent barrier: thread %u waits at %s:%d", i, l->at.file, l->at.line);
    }
}

void emu_barrier(struct emu_site at)
{
    struct worker *w = emu_worker;
    if (w->n_left)
        emu_break(at, "divergent barrier: %u threads have left the kernel", w->n_left);
    emu_lane(w)->barrier = 0;
    if (++w->n_at_barrier < w->n_lanes) {
        sleep_at(w, LANE_AT_BARRIER, at);
        hand_over(w, false);
        return;
    }
    check_same_site(w, LANE_AT_BARRIER, 0, at);
    w->n_at_barrier = 0;
    if (w->race)
        emu_race_barrier(w);
    for (uint32_t i = 0; i < w->n_lanes; i++)
        if (w->lanes[i].state == LANE_AT_BARRIER)
            wake(w, i);
    if (!w->options->one_order && (draw(w) & 1))
        switch_to(w, emu_lane(w), NULL, false);
}

void emu_named_barrier(uint32_t id, uint32_t n, struct emu_site at)
{
    struct worker *w = emu_worker;
    if (id == 0 || id >= NAMED_MAX || n == 0 || n % EMU_WARP || n > w->n_lanes)
        emu_break(at, "named barrier %u of %u threads", id, n);
    emu_lane(w)->barrier = id;
    if (++w->n_at_named[id] < n) {
        sleep_at(w, LANE_AT_NAMED, at);
        hand_over(w, false);
        return;
    }
    w->n_at_named[id] = 0;
    uint32_t warps = 1u << w->current / EMU_WARP;
    for (uint32_t i = 0; i < w->n_lanes; i++)
        if (w->lanes[i].state == LANE_AT_NAMED && w->lanes[i].barrier == id) {
            warps |= 1u << i / EMU_WARP;
            wake(w, i);
        }
    if (w->race)
        emu_race_named(w, warps);
}

/* ---- collectives ---- */

static void order_warp(void **lanes, uint32_t mask)
{
    (void)lanes;
    if (emu_worker->race)
        emu_race_warp(emu_worker, mask);
}

void emu_collective(const char *kind, uint32_t mask, emu_collective_fn *fn, void *ctx,
                    struct emu_site at)
{
    struct worker *w = emu_worker;
    uint32_t base = w->current / EMU_WARP * EMU_WARP, bit = 1u << w->current % EMU_WARP;
    struct warp *warp = &w->warps[base / EMU_WARP];
    struct lane *me = emu_lane(w);
    if (!(mask & bit))
        emu_break(at, "%s: lane %u is not in its mask %08x", kind, w->current % EMU_WARP, mask);
    me->kind = kind;
    me->mask = mask;
    me->ctx = ctx;
    me->pc = __builtin_return_address(0);
    me->at = at;
    if (((warp->waiting | bit) & mask) != mask) {
        warp->waiting |= bit;
        sleep_at(w, LANE_AT_COLLECTIVE, at);
        hand_over(w, false);
        return;
    }
    void *lanes[EMU_WARP] = {0};
    for (uint32_t left = mask; left; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(left);
        struct lane *l = &w->lanes[base + i];
        if (l->mask != mask || (l->kind != kind && strcmp(l->kind, kind)))
            emu_break(at, "divergent collective: %s of %08x, lane %u is at %s of %08x, %s:%d", kind,
                      mask, i, l->kind, l->mask, l->at.file, l->at.line);
        lanes[i] = l->ctx;
    }
    if (fn)
        fn(lanes, mask);
    warp->waiting &= ~mask;
    for (uint32_t left = mask & ~bit; left; left &= left - 1)
        wake(w, base + (uint32_t)__builtin_ctz(left));
}

void emu_sync_warp(uint32_t mask, struct emu_site at)
{
    emu_collective("syncwarp", mask, order_warp, NULL, at);
}

/* ---- one block ---- */

static struct emu_index *index_at(const struct worker *w, uint32_t lane)
{
    return (struct emu_index *)(void *)(w->stacks + lane * STACK_STRIDE + STACK_BYTES -
                                        sizeof(struct emu_index));
}

const struct emu_index *emu_where(void)
{
    return index_at(emu_worker, emu_worker->current);
}

static uint64_t *canary_of(const struct worker *w, uint32_t lane)
{
    return (uint64_t *)(void *)(w->stacks + lane * STACK_STRIDE);
}

static void start_lane(struct worker *w, uint32_t i)
{
    struct lane *l = &w->lanes[i];
    uint8_t *stack = w->stacks + i * STACK_STRIDE;
    size_t stale = w->left_frames ? STACK_BYTES : LANE_FRAMES;
    ASAN_UNPOISON(stack + STACK_BYTES - stale, stale);
    *l = (struct lane){.copies = l->copies, .copies_max = l->copies_max};
    *index_at(w, i) = emu_index_of(w, i);
    *canary_of(w, i) = CANARY;
    l->sp = emu_fiber_make(stack, STACK_BYTES - sizeof(struct emu_index), lane_main);
}

void emu_block_start(struct worker *w, uint64_t block)
{
    struct emu_dim b = w->launch->block;
    w->block = block;
    w->rng = w->options->seed * 0x2545f4914f6cdd1dull ^ block;
    w->n_lanes = b.x * b.y * b.z;
    w->n_warps = (w->n_lanes + EMU_WARP - 1) / EMU_WARP;
    w->n_left = w->n_at_barrier = 0;
    memset(w->n_at_named, 0, sizeof w->n_at_named);
    w->sched_stack = NULL;
    emu_shared_start(w);
    for (uint32_t i = 0; i < w->n_lanes; i++)
        start_lane(w, i);
    w->left_frames = false;
    for (uint32_t i = 0; i < w->n_warps; i++) {
        uint32_t n = w->n_lanes - i * EMU_WARP;
        w->warps[i] = (struct warp){.ready = n < EMU_WARP ? (1u << n) - 1 : ~0u};
    }
    if (w->race)
        emu_race_block(w);
}

static bool pick_warp(struct worker *w)
{
    uint32_t first = w->options->one_order ? 0 : below(w, w->n_warps);
    for (uint32_t i = 0; i < w->n_warps; i++) {
        uint32_t at = (first + i) % w->n_warps, ready = w->warps[at].ready;
        if (!ready)
            continue;
        uint32_t turn = w->options->one_order ? 0 : below(w, EMU_WARP);
        uint32_t ahead = ready & ~((1u << turn) - 1);
        w->current = at * EMU_WARP + (uint32_t)__builtin_ctz(ahead ? ahead : ready);
        return true;
    }
    return false;
}

static void tell_stuck(struct worker *w)
{
    static const char *const text[] = {"", "a barrier", "a named barrier", "a collective", ""};
    for (uint32_t i = 0; i < w->n_lanes; i++) {
        const struct lane *l = &w->lanes[i];
        if (l->state == LANE_READY || l->state == LANE_LEFT)
            continue;
        snprintf(w->report, sizeof w->report,
                 "%s: %s:%d: divergent: thread %u of block %llu waits at %s%s%s; %u of %u threads "
                 "have left the kernel",
                 w->launch->name, l->at.file, l->at.line, i, (unsigned long long)w->block,
                 text[l->state], l->state == LANE_AT_COLLECTIVE ? ", " : "",
                 l->state == LANE_AT_COLLECTIVE ? l->kind : "", w->n_left, w->n_lanes);
        break;
    }
    w->broken = true;
}

static void check_stacks(struct worker *w)
{
    for (uint32_t i = 0; i < w->n_lanes && !w->broken; i++)
        if (*canary_of(w, i) != CANARY) {
            snprintf(w->report, sizeof w->report,
                     "%s: thread %u has overrun its stack of %zu bytes", w->launch->name, i,
                     STACK_BYTES);
            w->broken = true;
        }
}

enum block_end emu_block_run(struct worker *w)
{
    uint32_t n_pauses = 0;
    struct worker *outer = emu_worker;
    emu_worker = w;
    while (w->n_left < w->n_lanes && !w->broken && n_pauses < PAUSES_MAX) {
        if (pick_warp(w))
            switch_to(w, NULL, emu_lane(w), false);
        else
            tell_stuck(w);
        n_pauses = w->paused ? n_pauses + 1 : 0;
        w->paused = false;
    }
    emu_worker = outer;
    if (w->n_left < w->n_lanes && !w->broken)
        return BLOCK_PAUSED;
    w->left_frames = w->broken;
    check_stacks(w);
    return w->broken ? BLOCK_BROKEN : BLOCK_DONE;
}

/* ---- workers ---- */

static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static struct worker *idle;

struct worker *emu_worker_take(void)
{
    pthread_mutex_lock(&idle_lock);
    struct worker *w = idle;
    if (w)
        idle = w->next;
    pthread_mutex_unlock(&idle_lock);
    if (w)
        return w;
    w = calloc(1, sizeof *w);
    void *stacks = mmap(NULL, STACK_STRIDE * EMU_BLOCK_MAX, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!w || stacks == MAP_FAILED)
        abort();
    w->stacks = stacks;
    w->lanes = calloc(EMU_BLOCK_MAX, sizeof *w->lanes);
    w->smem = aligned_alloc(1024, (SHARED_ROOM + 1023) / 1024 * 1024);
    if (!w->lanes || !w->smem)
        abort();
    return w;
}

void emu_worker_give(struct worker *w)
{
    pthread_mutex_lock(&idle_lock);
    w->next = idle;
    idle = w;
    pthread_mutex_unlock(&idle_lock);
}
