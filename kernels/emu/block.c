/* Runs the blocks of a launch: lanes hand over to each other, the scheduler draws warps. */
#include "emu/block.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emu/asan.h"
#include "emu/fiber.h"

/* A stack is touched at its top only. Odd distances keep the stacks of a warp out of the same cache
 * sets. */
#define STACK_BYTES  ((size_t)64 << 10)
#define STACK_STRIDE (STACK_BYTES + 832)
#define LANE_FRAMES  ((size_t)4 << 10) /* what a lane that ended may leave poisoned */
#define CANARY       0x5ca1ab1e0ddba11ull

static __thread struct worker *self;
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static struct worker *idle;

/* Not inlined: a fiber's code must not keep the address of a thread's variable. */
__attribute__((noinline)) struct worker *emu_worker(void)
{
    return self;
}

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

static uint8_t *stack_of(const struct worker *w, const struct lane *l)
{
    return w->stacks + (size_t)(l - w->lanes) * STACK_STRIDE;
}

/* From lane `from`, or the scheduler if NULL, to lane `to`, or the scheduler. `ends`: for good. */
static void switch_to(struct worker *w, struct lane *from, struct lane *to, bool ends)
{
    void **fake = from ? &from->fake : &w->sched_fake;
    if (to)
        ASAN_LEAVE(ends ? NULL : fake, stack_of(w, to), STACK_BYTES);
    else
        ASAN_LEAVE(ends ? NULL : fake, w->sched_stack, w->sched_stack_bytes);
    emu_fiber_switch(from ? &from->sp : &w->sched_sp, to ? to->sp : w->sched_sp);
    ASAN_ARRIVE(*fake, NULL, NULL);
}

/* Leaves the current lane, which is not ready. */
static void hand_over(struct worker *w, bool ends)
{
    struct lane *from = emu_lane(w), *to = NULL;
    const struct warp *warp = &w->warps[w->current / EMU_WARP];
    if (warp->ready) {
        w->current = w->current / EMU_WARP * EMU_WARP + (uint32_t)__builtin_ctz(warp->ready);
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
    struct worker *w = self;
    first_arrival(w);
    w->launch->run(w->launch->args);
    w = self;
    sleep_at(w, LANE_LEFT, (struct emu_site){0});
    w->n_left++;
    hand_over(w, true);
    abort();
}

void emu_pause(void)
{
    struct worker *w = self;
    sched_yield();
    switch_to(w, emu_lane(w), NULL, false);
}

void emu_break(struct emu_site at, const char *fmt, ...)
{
    struct worker *w = self;
    const struct emu_index *i = &emu_lane(w)->index;
    va_list args;
    va_start(args, fmt);
    int n = snprintf(w->report, sizeof w->report, "%s: %s:%d: block (%u,%u,%u) thread (%u,%u,%u): ",
                     w->launch->name, at.file ? at.file : "?", at.line, i->block.x, i->block.y,
                     i->block.z, i->thread.x, i->thread.y, i->thread.z);
    if (n > 0 && (size_t)n < sizeof w->report)
        vsnprintf(w->report + n, sizeof w->report - (size_t)n, fmt, args);
    va_end(args);
    w->broken = true;
    switch_to(w, emu_lane(w), NULL, true);
    abort();
}

/* ---- barriers ---- */

static void check_same_site(struct worker *w, enum lane_state state, uint32_t id,
                            struct emu_site at)
{
    for (uint32_t i = 0; i < w->n_lanes; i++) {
        const struct lane *l = &w->lanes[i];
        if (l->state == state && l->barrier == id &&
            (l->at.line != at.line || strcmp(l->at.file, at.file)))
            emu_break(at, "divergent barrier: thread %u waits at %s:%d", i, l->at.file,
                      l->at.line);
    }
}

void emu_barrier(struct emu_site at)
{
    struct worker *w = self;
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
    w->epoch++;
    for (uint32_t i = 0; i < w->n_lanes; i++)
        if (w->lanes[i].state == LANE_AT_BARRIER)
            wake(w, i);
    if (!w->options->one_order && (draw(w) & 1))
        switch_to(w, emu_lane(w), NULL, false);
}

void emu_named_barrier(uint32_t id, uint32_t n, struct emu_site at)
{
    struct worker *w = self;
    if (id == 0 || id >= NAMED_MAX || n == 0 || n % EMU_WARP || n > w->n_lanes)
        emu_break(at, "named barrier %u of %u threads", id, n);
    emu_lane(w)->barrier = id;
    if (++w->n_at_named[id] < n) {
        sleep_at(w, LANE_AT_NAMED, at);
        hand_over(w, false);
        return;
    }
    w->n_at_named[id] = 0;
    w->epoch++; /* orders more than it should: race.c is blind to races between the groups here */
    for (uint32_t i = 0; i < w->n_lanes; i++)
        if (w->lanes[i].state == LANE_AT_NAMED && w->lanes[i].barrier == id)
            wake(w, i);
}

/* ---- collectives ---- */

void emu_collective(const char *kind, uint32_t mask, emu_collective_fn *fn, void *ctx,
                    struct emu_site at)
{
    struct worker *w = self;
    uint32_t base = w->current / EMU_WARP * EMU_WARP, bit = 1u << w->current % EMU_WARP;
    struct warp *warp = &w->warps[base / EMU_WARP];
    struct lane *me = emu_lane(w);
    if (!(mask & bit))
        emu_break(at, "%s: lane %u is not in its mask %08x", kind, w->current % EMU_WARP, mask);
    me->kind = kind;
    me->mask = mask;
    me->ctx = ctx;
    me->warp_epoch++;
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
        if (l->mask != mask || strcmp(l->kind, kind))
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

/* ---- memory ---- */

const struct emu_index *emu_where(void)
{
    return &emu_lane(self)->index;
}

void *emu_shared_dynamic(void)
{
    return self->smem;
}

void *emu_shared_static(const void *key, size_t bytes)
{
    struct worker *w = self;
    for (uint32_t i = 0; i < w->n_statics; i++)
        if (w->statics[i].key == key)
            return w->smem + w->statics[i].at;
    size_t at = (w->smem_used + 127) / 128 * 128;
    if (w->n_statics == STATIC_SHARED_MAX || at > EMU_SMEM_MAX || bytes > EMU_SMEM_MAX - at)
        emu_break((struct emu_site){0}, "%zu bytes of static shared memory beyond %zu", bytes, at);
    w->statics[w->n_statics].key = key;
    w->statics[w->n_statics].at = at;
    w->statics[w->n_statics++].bytes = bytes;
    w->smem_used = at + bytes;
    ASAN_UNPOISON(w->smem + at, bytes);
    memset(w->smem + at, 0xff, bytes);
    return w->smem + at;
}

static void complete(const struct lane_copy *c)
{
    memcpy(c->to, c->from, c->n);
    memset((uint8_t *)c->to + c->n, 0, c->n_zero);
}

void emu_copy_async(void *to, const void *from, uint32_t n, uint32_t n_zero, struct emu_site at)
{
    struct worker *w = self;
    struct lane *l = emu_lane(w);
    uintptr_t align = n + n_zero;
    if ((align != 4 && align != 8 && align != 16) || (uintptr_t)to % align ||
        (n && (uintptr_t)from % align))
        emu_break(at, "cp.async of %u bytes from %p to %p", n + n_zero, from, to);
    struct lane_copy c = {to, from, n, n_zero, l->n_groups};
    if (w->options->seed & 1) {
        complete(&c);
        return;
    }
    if (l->n_copies == l->copies_max) {
        l->copies_max = l->copies_max ? 2 * l->copies_max : 32;
        l->copies = realloc(l->copies, l->copies_max * sizeof *l->copies);
        if (!l->copies)
            abort();
    }
    l->copies[l->n_copies++] = c;
}

void emu_copy_commit(void)
{
    emu_lane(self)->n_groups++;
}

void emu_copy_wait(uint32_t n_left)
{
    struct lane *l = emu_lane(self);
    uint32_t n = 0, end = l->n_groups > n_left ? l->n_groups - n_left : 0;
    while (n < l->n_copies && l->copies[n].group < end)
        complete(&l->copies[n++]);
    l->n_copies -= n;
    memmove(l->copies, l->copies + n, l->n_copies * sizeof *l->copies);
}

/* ---- one block ---- */

static uint64_t *canary_of(const struct worker *w, uint32_t lane)
{
    return (uint64_t *)(void *)(w->stacks + lane * STACK_STRIDE);
}

static void start_block(struct worker *w, uint64_t block)
{
    const struct emu_launch *l = w->launch;
    struct emu_dim g = l->grid, b = l->block;
    w->block = block;
    w->n_lanes = b.x * b.y * b.z;
    w->n_warps = (w->n_lanes + EMU_WARP - 1) / EMU_WARP;
    w->n_left = w->n_at_barrier = w->epoch = w->n_statics = 0;
    memset(w->n_at_named, 0, sizeof w->n_at_named);
    w->smem_used = l->smem;
    w->sched_stack = NULL;
    ASAN_UNPOISON(w->smem, l->smem);
    memset(w->smem, 0xff, l->smem);
    ASAN_POISON(w->smem + l->smem, EMU_SMEM_MAX - l->smem);
    for (uint32_t i = 0; i < w->n_lanes; i++) {
        struct lane *n = &w->lanes[i];
        *n = (struct lane){.copies = n->copies, .copies_max = n->copies_max};
        n->index.thread = (struct emu_dim){i % b.x, i / b.x % b.y, i / b.x / b.y};
        n->index.block = (struct emu_dim){(unsigned)(block % g.x), (unsigned)(block / g.x % g.y),
                                          (unsigned)(block / g.x / g.y)};
        n->index.block_dim = b;
        n->index.grid_dim = g;
        ASAN_UNPOISON(stack_of(w, n) + (w->left_frames ? 0 : STACK_BYTES - LANE_FRAMES),
                      w->left_frames ? STACK_BYTES : LANE_FRAMES);
        *canary_of(w, i) = CANARY;
        n->sp = emu_fiber_make(w->stacks + i * STACK_STRIDE, STACK_BYTES, lane_main);
    }
    w->left_frames = false;
    for (uint32_t i = 0; i < w->n_warps; i++) {
        uint32_t n = w->n_lanes - i * EMU_WARP;
        w->warps[i] = (struct warp){.n = n < EMU_WARP ? n : EMU_WARP};
        w->warps[i].ready = n < EMU_WARP ? (1u << n) - 1 : ~0u;
    }
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
                 text[l->state], l->kind ? ", " : "", l->kind ? l->kind : "", w->n_left,
                 w->n_lanes);
        break;
    }
    w->broken = true;
}

static void check_stacks(struct worker *w)
{
    for (uint32_t i = 0; i < w->n_lanes && !w->broken; i++)
        if (*canary_of(w, i) != CANARY) {
            snprintf(w->report, sizeof w->report, "%s: thread %u has overrun its stack of %zu bytes",
                     w->launch->name, i, STACK_BYTES);
            w->broken = true;
        }
}

static void run_block(struct worker *w, uint64_t block)
{
    start_block(w, block);
    while (w->n_left < w->n_lanes && !w->broken) {
        if (pick_warp(w))
            switch_to(w, NULL, emu_lane(w), false);
        else
            tell_stuck(w);
    }
    w->left_frames = w->broken;
    check_stacks(w);
}

/* ---- one launch ---- */

struct run {
    const struct emu_launch *launch;
    const struct emu_options *options;
    uint64_t n_blocks, first;
    atomic_uint_fast64_t next;
    atomic_bool broken;
    pthread_mutex_t lock;
    char *report;
    size_t report_max;
};

static struct worker *worker_take(void)
{
    pthread_mutex_lock(&idle_lock);
    struct worker *w = idle;
    if (w)
        idle = w->next;
    pthread_mutex_unlock(&idle_lock);
    if (w)
        return w;
    w = calloc(1, sizeof *w);
    size_t bytes = STACK_STRIDE * EMU_BLOCK_MAX;
    void *stacks = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!w || stacks == MAP_FAILED)
        abort();
    w->stacks = stacks;
    w->lanes = calloc(EMU_BLOCK_MAX, sizeof *w->lanes);
    w->smem = aligned_alloc(1024, (EMU_SMEM_MAX + 1023) / 1024 * 1024);
    if (!w->lanes || !w->smem)
        abort();
    return w;
}

static void worker_give(struct worker *w)
{
    pthread_mutex_lock(&idle_lock);
    w->next = idle;
    idle = w;
    pthread_mutex_unlock(&idle_lock);
}

static void *run_blocks(void *arg)
{
    struct run *r = arg;
    struct worker *w = worker_take(), *outer = self;
    w->launch = r->launch;
    w->options = r->options;
    w->broken = false;
    self = w;
    for (;;) {
        uint64_t i = atomic_fetch_add(&r->next, 1);
        if (i >= r->n_blocks || atomic_load(&r->broken))
            break;
        uint64_t block = (i + r->first) % r->n_blocks;
        w->rng = r->options->seed * 0x2545f4914f6cdd1dull ^ block;
        run_block(w, block);
        if (w->broken)
            break;
    }
    if (w->broken) {
        pthread_mutex_lock(&r->lock);
        if (!atomic_exchange(&r->broken, true))
            snprintf(r->report, r->report_max, "%s", w->report);
        pthread_mutex_unlock(&r->lock);
    }
    self = outer;
    worker_give(w);
    return NULL;
}

static bool is_launchable(const struct emu_launch *l, char *report, size_t max)
{
    struct emu_dim g = l->grid, b = l->block;
    bool block_ok = b.x && b.y && b.z && b.x <= 1024 && b.y <= 1024 && b.z <= 64 &&
                    (uint64_t)b.x * b.y * b.z <= EMU_BLOCK_MAX;
    bool grid_ok = g.x && g.y && g.z && g.x <= INT32_MAX && g.y <= 65535 && g.z <= 65535;
    if (block_ok && grid_ok && l->smem <= EMU_SMEM_MAX)
        return true;
    snprintf(report, max, "%s: no launch of (%u,%u,%u) blocks of (%u,%u,%u) with %zu bytes",
             l->name, g.x, g.y, g.z, b.x, b.y, b.z, l->smem);
    return false;
}

bool emu_run(const struct emu_launch *l, const struct emu_options *o, char *report,
             size_t report_max)
{
    if (!is_launchable(l, report, report_max))
        return false;
    struct run r = {.launch = l, .options = o, .report = report, .report_max = report_max};
    pthread_mutex_init(&r.lock, NULL);
    r.n_blocks = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
    r.first = o->one_order ? 0 : o->seed % r.n_blocks;
    uint32_t n = o->n_threads > 1 ? o->n_threads : 1, n_more = 0;
    if (n > r.n_blocks)
        n = (uint32_t)r.n_blocks;
    pthread_t threads[64];
    while (n_more + 1 < n && n_more < 64 &&
           !pthread_create(&threads[n_more], NULL, run_blocks, &r))
        n_more++;
    run_blocks(&r);
    for (uint32_t i = 0; i < n_more; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&r.lock);
    return !atomic_load(&r.broken);
}
