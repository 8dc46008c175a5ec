/* A launch: its blocks over OS threads, which wait for the next one.
 *
 * An OS thread begins a further block where those it has begun only wait for memory, so that blocks
 * may wait for each other as they may where all fit on a device. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "emu/block.h"
#include "emu/race.h"

enum { POOL_MAX = 63, BEGUN_MAX = EMU_RACE_SLOTS };

struct run {
    const struct emu_launch *launch;
    const struct emu_options *options;
    struct race *race;
    uint64_t n_blocks, first;
    atomic_uint_fast64_t next;
    atomic_bool broken;
    /* under pool.lock */
    uint32_t wanted, helping; /* OS threads */
    char *report;
    size_t report_max;
    struct run *after;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct run *runs; /* that want help */
    uint32_t n_threads, n_idle;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0};

/* ---- one OS thread's blocks ---- */

struct begun {
    struct worker *workers[BEGUN_MAX];
    uint32_t n;
    uint64_t slots; /* taken */
};

static bool begin_block(struct run *r, struct begun *b)
{
    if (b->n == BEGUN_MAX)
        return false;
    uint64_t i = atomic_fetch_add(&r->next, 1);
    if (i >= r->n_blocks)
        return false;
    struct worker *w = emu_worker_take();
    w->launch = r->launch;
    w->options = r->options;
    w->race = r->race;
    w->broken = w->paused = false;
    w->slot = (uint32_t)__builtin_ctzll(~b->slots);
    b->slots |= 1ull << w->slot;
    emu_block_start(w, (i + r->first) % r->n_blocks);
    b->workers[b->n++] = w;
    return true;
}

static void end_block(struct begun *b, uint32_t i)
{
    struct worker *w = b->workers[i];
    b->slots &= ~(1ull << w->slot);
    b->workers[i] = b->workers[--b->n];
    emu_worker_give(w);
}

static void tell_broken(struct run *r, const struct worker *w)
{
    pthread_mutex_lock(&pool.lock);
    if (!atomic_exchange(&r->broken, true))
        snprintf(r->report, r->report_max, "%s", w->report);
    pthread_mutex_unlock(&pool.lock);
}

static void run_blocks(struct run *r)
{
    struct begun b = {.n = 0};
    uint32_t turn = 0, n_paused = 0;
    while (!atomic_load(&r->broken)) {
        if (n_paused >= b.n) {
            bool begun = begin_block(r, &b);
            if (!begun && b.n == 0)
                break;
            if (!begun) /* all wait for another OS thread, or another process */
                sched_yield();
            n_paused = 0;
        }
        turn = n_paused ? (turn + 1) % b.n : b.n - 1;
        enum block_end end = emu_block_run(b.workers[turn]);
        if (end == BLOCK_BROKEN)
            tell_broken(r, b.workers[turn]);
        n_paused = end == BLOCK_PAUSED ? n_paused + 1 : 0;
        if (end != BLOCK_PAUSED)
            end_block(&b, turn);
    }
    while (b.n) {
        b.workers[b.n - 1]->left_frames = true;
        end_block(&b, b.n - 1);
    }
}

/* ---- OS threads ---- */

static void *pool_main(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct run *r = pool.runs;
        if (!r) {
            pool.n_idle++;
            pthread_cond_wait(&pool.work, &pool.lock);
            pool.n_idle--;
            continue;
        }
        if (--r->wanted == 0)
            pool.runs = r->after;
        r->helping++;
        pthread_mutex_unlock(&pool.lock);
        run_blocks(r);
        pthread_mutex_lock(&pool.lock);
        if (--r->helping == 0)
            pthread_cond_broadcast(&pool.done);
    }
    return NULL;
}

/* Without further threads, the caller does all. */
static void ask_for_help(struct run *r, uint32_t n)
{
    pthread_mutex_lock(&pool.lock);
    r->wanted = n;
    r->after = pool.runs;
    pool.runs = r;
    while (pool.n_threads < POOL_MAX && pool.n_idle < n) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_main, NULL))
            break;
        pthread_detach(thread);
        pool.n_threads++;
        n--;
    }
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
}

static void end_help(struct run *r)
{
    pthread_mutex_lock(&pool.lock);
    for (struct run **at = &pool.runs; *at; at = &(*at)->after)
        if (*at == r) {
            *at = r->after;
            break;
        }
    while (r->helping)
        pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
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
    r.n_blocks = (uint64_t)l->grid.x * l->grid.y * l->grid.z;
    r.first = o->one_order ? 0 : o->seed % r.n_blocks;
    r.race = o->unwatched ? NULL : emu_race_begin();
    uint64_t n = r.race || o->n_threads < 1 ? 1 : o->n_threads;
    n = n < r.n_blocks ? n : r.n_blocks;
    if (n > 1)
        ask_for_help(&r, (uint32_t)(n - 1));
    run_blocks(&r);
    if (n > 1)
        end_help(&r);
    bool ok = !atomic_load(&r.broken);
    if (r.race)
        ok = emu_race_end(r.race, l, o, ok, report, report_max) && ok;
    return ok;
}
