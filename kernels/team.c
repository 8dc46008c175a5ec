/* Fork and join. One word tells everything: generation of the job, whether it is open, and how many
 * members are inside. A member enters by adding itself while the job is open; the caller closes the
 * job when no task is left and waits for those inside. */
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INSIDE_MASK 0xffffu
#define OPEN_BIT    0x10000u
#define GENERATION  0x20000u /* added per job; the upper 47 bits count jobs */
#define SPINS       2000     /* pauses of about 10 to 40 ns before sleeping */

struct member {
    struct sl_team *team;
    pthread_t thread;
    uint32_t index;
};

struct sl_team {
    uint32_t n_threads;
    uint32_t n_started;
    uint32_t spins;
    struct member *members;
    sl_task_fn *fn;
    void *ctx;
    uint32_t n_tasks;
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) _Atomic uint32_t next;
    _Alignas(64) _Atomic uint32_t n_sleeping;
    _Atomic bool caller_sleeps;
    _Atomic bool quit;
    pthread_mutex_t lock;
    pthread_cond_t job_cond, done_cond;
};

void sl_fp_mode_set(void)
{
#if defined(__x86_64__)
    const unsigned wanted = 0x1f80;
    if ((_mm_getcsr() & 0xffc0u) != wanted)
        _mm_setcsr(wanted);
#endif
}

static void relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#else
    sched_yield();
#endif
}

static void work(struct sl_team *t, uint32_t thread)
{
    for (;;) {
        uint32_t task = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (task >= t->n_tasks)
            return;
        t->fn(t->ctx, task, thread);
    }
}

/* Waits until the job is not the one of `seen`; false when the team closes. */
static bool wait_for_job(struct sl_team *t, uint64_t seen)
{
    for (uint32_t i = 0; i < t->spins; i++) {
        if (atomic_load(&t->state) / GENERATION != seen || atomic_load(&t->quit))
            return !atomic_load(&t->quit);
        relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->n_sleeping, 1);
    while (atomic_load(&t->state) / GENERATION == seen && !atomic_load(&t->quit))
        pthread_cond_wait(&t->job_cond, &t->lock);
    atomic_fetch_sub(&t->n_sleeping, 1);
    pthread_mutex_unlock(&t->lock);
    return !atomic_load(&t->quit);
}

static void leave(struct sl_team *t)
{
    uint64_t before = atomic_fetch_sub(&t->state, 1);
    if ((before & INSIDE_MASK) == 1 && atomic_load(&t->caller_sleeps)) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_signal(&t->done_cond);
        pthread_mutex_unlock(&t->lock);
    }
}

static void *member_main(void *arg)
{
    struct member *m = arg;
    struct sl_team *t = m->team;
    uint64_t seen = 0;
    sl_fp_mode_set();
    while (wait_for_job(t, seen)) {
        uint64_t s = atomic_load(&t->state);
        seen = s / GENERATION;
        while (s & OPEN_BIT && s / GENERATION == seen) {
            if (atomic_compare_exchange_weak(&t->state, &s, s + 1)) {
                work(t, m->index);
                leave(t);
                break;
            }
        }
    }
    return NULL;
}

/* Cores this process may use, at least 1. */
static uint32_t n_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

enum sl_status sl_team_open(uint32_t n_threads, struct sl_team **out, struct sl_err *err)
{
    *out = NULL;
    void *memory = NULL;
    if (n_threads == 0 || n_threads > INSIDE_MASK)
        return sl_fail(err, SL_USAGE, "team: %u threads", n_threads);
    if (posix_memalign(&memory, 64, sizeof(struct sl_team)) != 0)
        return sl_fail(err, SL_NO_MEMORY, "team: out of memory");
    struct sl_team *t = memory;
    *t = (struct sl_team){.n_threads = n_threads, .n_started = 1};
    t->spins = n_threads <= n_cores() ? SPINS : 0;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->job_cond, NULL);
    pthread_cond_init(&t->done_cond, NULL);
    t->members = calloc(n_threads, sizeof *t->members);
    for (; t->members && t->n_started < n_threads; t->n_started++) {
        struct member *m = &t->members[t->n_started];
        *m = (struct member){.team = t, .index = t->n_started};
        if (pthread_create(&m->thread, NULL, member_main, m) != 0)
            break;
    }
    if (t->n_started < n_threads) {
        uint32_t started = t->n_started;
        sl_team_close(t);
        return sl_fail(err, SL_NO_MEMORY, "team: only %u of %u threads started", started,
                       n_threads);
    }
    *out = t;
    return SL_OK;
}

void sl_team_close(struct sl_team *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->quit, true);
    pthread_cond_broadcast(&t->job_cond);
    pthread_mutex_unlock(&t->lock);
    for (uint32_t i = 1; i < t->n_started; i++)
        pthread_join(t->members[i].thread, NULL);
    pthread_cond_destroy(&t->job_cond);
    pthread_cond_destroy(&t->done_cond);
    pthread_mutex_destroy(&t->lock);
    free(t->members);
    free(t);
}

static void wait_for_members(struct sl_team *t)
{
    for (uint32_t i = 0; i < t->spins; i++) {
        if ((atomic_load(&t->state) & INSIDE_MASK) == 0)
            return;
        relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->caller_sleeps, true);
    while ((atomic_load(&t->state) & INSIDE_MASK) != 0)
        pthread_cond_wait(&t->done_cond, &t->lock);
    atomic_store(&t->caller_sleeps, false);
    pthread_mutex_unlock(&t->lock);
}

void sl_team_run(struct sl_team *t, uint32_t n_tasks, sl_task_fn *fn, void *ctx)
{
    if (n_tasks <= 1 || t->n_threads == 1) {
        for (uint32_t i = 0; i < n_tasks; i++)
            fn(ctx, i, 0);
        return;
    }
    t->fn = fn;
    t->ctx = ctx;
    t->n_tasks = n_tasks;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_fetch_add(&t->state, GENERATION + OPEN_BIT);
    if (atomic_load(&t->n_sleeping) > 0) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->job_cond);
        pthread_mutex_unlock(&t->lock);
    }
    work(t, 0);
    atomic_fetch_sub(&t->state, OPEN_BIT);
    wait_for_members(t);
}

struct each {
    void (*fn)(void *ctx, uint32_t i);
    void *ctx;
};

static void each_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct each *e = ctx;
    e->fn(e->ctx, task);
}

void sl_team_each(struct sl_team *t, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx)
{
    struct each e = {fn, ctx};
    sl_fp_mode_set();
    sl_team_run(t, n, each_task, &e);
}
