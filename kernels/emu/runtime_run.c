/* Operations of the emulated devices: their ends (marks), their order, and the thread of each
 * device that runs them one at a time. */
#include "emu/runtime.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LATE_NS ((uint64_t)EMU_LATE_MS * 1000000u)
#define POLL_NS 200000u
/* An eager operation that takes longer, or waits for other devices, runs on by itself. */
#define EAGER_NS 20000000u

static __thread bool in_host_function;

bool runtime_in_host_function(void)
{
    return in_host_function;
}

/* ---- clocks ---- */

uint32_t slot_take(void)
{
    for (uint32_t i = 0; i < SLOTS_MAX; i++)
        if (!rt.slot_taken[i]) {
            rt.slot_taken[i] = true;
            return i;
        }
    return NO_SLOT; /* beyond these, checks are blind */
}

void slot_give(uint32_t slot)
{
    if (slot < SLOTS_MAX)
        rt.slot_taken[slot] = false;
}

bool epoch_known(const struct clock *c, struct epoch e)
{
    return e.slot == NO_SLOT || e.at <= c->at[e.slot];
}

void clock_join(struct clock *c, const struct clock *more)
{
    for (uint32_t i = 0; i < SLOTS_MAX; i++)
        if (c->at[i] < more->at[i])
            c->at[i] = more->at[i];
}

/* ---- marks ---- */

struct mark *mark_ref(struct mark *m)
{
    if (m)
        m->refs++;
    return m;
}

void mark_unref(struct mark *m)
{
    if (m && --m->refs == 0)
        free(m);
}

bool mark_waited(const struct mark *m)
{
    return !m || epoch_known(&rt.host, m->epoch);
}

void mark_demand(struct mark *m)
{
    struct op *todo = m && m->op && !m->op->demanded ? m->op : NULL;
    if (!todo)
        return;
    todo->demanded = true;
    todo->next_demand = NULL;
    while (todo) {
        struct op *op = todo;
        todo = op->next_demand;
        for (uint32_t i = 0; i < op->n_deps; i++) {
            struct op *before = op->deps[i]->op;
            if (!before || before->demanded)
                continue;
            before->demanded = true;
            before->next_demand = todo;
            todo = before;
        }
    }
    pthread_cond_broadcast(&rt.changed);
}

static void wait_ns(uint64_t ns)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t at = (uint64_t)t.tv_nsec + ns;
    t.tv_sec += (time_t)(at / 1000000000u);
    t.tv_nsec = (long)(at % 1000000000u);
    pthread_cond_timedwait(&rt.changed, &rt.lock, &t);
}

void mark_until_done(struct mark *m)
{
    mark_demand(m);
    while (!m->done)
        pthread_cond_wait(&rt.changed, &rt.lock);
}

void mark_wait(struct mark *m)
{
    if (!m)
        return;
    mark_ref(m);
    mark_until_done(m);
    clock_join(&rt.host, &m->clock);
    mark_unref(m);
}

cudaError_t mark_query(struct device *d, struct mark *m)
{
    if (d->sticky)
        return d->sticky;
    if (m && !m->done) {
        mark_demand(m);
        return cudaErrorNotReady;
    }
    if (m)
        clock_join(&rt.host, &m->clock);
    return cudaSuccess;
}

/* ---- work ---- */

void *args_copy(const void *args, size_t bytes)
{
    void *p = aligned_alloc(16, bytes / 16 * 16 + 16);
    if (p)
        memcpy(p, args, bytes);
    return p;
}

void work_free(struct work *w)
{
    free(w->copy.staged);
    free(w->args);
    free(w->touched.of);
    w->touched.of = NULL;
    if (w->kind == WORK_POLL && w->user)
        w->poll->free(w->user);
    w->user = NULL;
    w->copy.staged = w->args = NULL;
}

bool work_clone(struct work *to, const struct work *from)
{
    *to = *from;
    to->copy.staged = NULL; /* of no captured work */
    to->touched = (struct touched){0};
    if (from->kind == WORK_POLL) {
        to->user = from->poll->clone(from->user);
        return to->user;
    }
    if (!from->args)
        return true;
    to->args = args_copy(from->args, from->args_bytes);
    return to->args;
}

static void copy_rows(const struct span *to, const struct span *from, const void *staged)
{
    const uint8_t *src = staged;
    for (size_t i = 0; i < to->rows; i++) {
        const void *row = src ? src + i * to->width : (const void *)(from->base + i * from->pitch);
        memmove((void *)(to->base + i * to->pitch), row, to->width);
    }
}

/* As a device would call what a launch was stopped for. */
static cudaError_t error_of(const char *text)
{
    static const char *const illegal[] = {"illegal memory access", "in no allocation",
                                          "in freed memory", "before the end of its allocation"};
    for (size_t i = 0; i < sizeof illegal / sizeof *illegal; i++)
        if (strstr(text, illegal[i]))
            return cudaErrorIllegalAddress;
    return cudaErrorLaunchFailure;
}

static void note_touched(void *user, uintptr_t lo, uintptr_t hi, bool write)
{
    struct touched *t = user;
    if (t->n == t->max) {
        size_t max = t->max ? 2 * t->max : 16;
        void *more = realloc(t->of, max * sizeof *t->of);
        if (!more)
            return; /* blind to it */
        t->of = more;
        t->max = max;
    }
    t->of[t->n].lo = lo;
    t->of[t->n].hi = hi;
    t->of[t->n++].write = write;
}

static cudaError_t run_kernel(struct device *d, struct work *w)
{
    char text[1500];
    struct emu_options o = {.n_threads = rt.config.n_threads,
                            .one_order = !rt.config.seed,
                            .touched = note_touched,
                            .user = &w->touched};
    o.seed = rt.config.seed ? (draw_u64(&d->rng_run) & ~1ull) | (rt.config.seed & 1) : 1;
    w->launch.args = w->args;
    trap_install();
    pthread_mutex_unlock(&rt.lock);
    bool ok = emu_run(&w->launch, &o, text, sizeof text);
    pthread_mutex_lock(&rt.lock);
    if (ok)
        return cudaSuccess;
    report(d, "%s", text);
    return error_of(text);
}

/* Lock held before and after, not meanwhile. */
static cudaError_t work_run(struct device *d, struct work *w)
{
    if (w->fail)
        return w->fail;
    if (w->kind == WORK_KERNEL)
        return run_kernel(d, w);
    if (w->kind == WORK_EMPTY || w->kind == WORK_POLL)
        return cudaSuccess;
    check_source(d, w);
    pthread_mutex_unlock(&rt.lock);
    if (w->kind == WORK_COPY)
        copy_rows(&w->copy.to, &w->copy.from, w->copy.staged);
    if (w->kind == WORK_SET)
        for (size_t i = 0; i < w->copy.to.rows; i++)
            memset((void *)(w->copy.to.base + i * w->copy.to.pitch), w->value, w->copy.to.width);
    if (w->kind == WORK_HOST) {
        in_host_function = true;
        w->host(w->user);
        in_host_function = false;
    }
    pthread_mutex_lock(&rt.lock);
    return cudaSuccess;
}

/* ---- a device's thread ---- */

static bool is_ready(struct op *op)
{
    for (uint32_t i = 0; i < op->n_deps; i++)
        if (!op->deps[i]->done)
            return false;
    return true;
}

/* NULL: none may run now; then *wait is set to when to look again, or 0 for when told. */
static struct op *pick(struct device *d, uint64_t *wait)
{
    struct op *chosen = NULL;
    uint64_t now = emu_now_ns(), n = 0;
    *wait = 0;
    for (struct op *op = d->first; op; op = op->next) {
        if (!is_ready(op))
            continue;
        if (!op->demanded && !d->stop && now - op->born_ns < LATE_NS) {
            uint64_t left = LATE_NS - (now - op->born_ns);
            *wait = *wait && *wait < left ? *wait : left;
            continue;
        }
        if (op->work.kind == WORK_POLL && !op->work.fail && !d->sticky) {
            cudaError_t error = op->work.poll->poll(op->work.user);
            if (error == cudaErrorNotReady) {
                *wait = *wait && *wait < POLL_NS ? *wait : POLL_NS;
                continue;
            }
            op->work.fail = error;
        }
        if (!rt.config.seed)
            return op;
        if (draw_u64(&d->rng_run) % ++n == 0)
            chosen = op;
        if (op->work.kind == WORK_POLL) /* it has happened: no other may come before */
            return op;
    }
    return chosen;
}

static void unlink_op(struct device *d, struct op *gone)
{
    struct op **at = &d->first, *before = NULL;
    while (*at != gone) {
        before = *at;
        at = &(*at)->next;
    }
    *at = gone->next;
    if (d->last == gone)
        d->last = before;
}

static void complete(struct device *d, struct op *op, cudaError_t error)
{
    struct mark *m = op->mark;
    if (error)
        device_fail(d, error);
    else
        check_work(d, &op->work, m);
    m->done = true;
    m->op = NULL;
    m->end_ns = emu_now_ns();
    for (uint32_t i = 0; i < op->n_deps; i++)
        mark_unref(op->deps[i]);
    free(op->deps);
    work_free(&op->work);
    free(op);
    mark_unref(m);
    pthread_cond_broadcast(&rt.changed);
}

static void *device_main(void *arg)
{
    struct device *d = arg;
    pthread_mutex_lock(&rt.lock);
    while (!d->stop || d->first) {
        uint64_t wait;
        struct op *op = pick(d, &wait);
        if (!op) {
            if (wait)
                wait_ns(wait);
            else
                pthread_cond_wait(&rt.changed, &rt.lock);
            continue;
        }
        unlink_op(d, op);
        d->running = op;
        cudaError_t error = d->sticky ? d->sticky : work_run(d, &op->work);
        d->running = NULL;
        complete(d, op, error);
    }
    pthread_mutex_unlock(&rt.lock);
    return NULL;
}

/* ---- enqueuing ---- */

static bool start_thread(struct device *d)
{
    if (!d->has_thread)
        d->has_thread = !pthread_create(&d->thread, NULL, device_main, d);
    return d->has_thread;
}

static void append(struct device *d, struct op *op)
{
    if (d->last)
        d->last->next = op;
    else
        d->first = op;
    d->last = op;
}

/* Takes references of `deps` that are not done. */
static bool set_deps(struct op *op, struct mark **deps, uint32_t n)
{
    op->deps = calloc(n ? n : 1, sizeof *op->deps);
    if (!op->deps)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        if (!deps[i])
            continue;
        clock_join(&op->mark->clock, &deps[i]->clock);
        if (!deps[i]->done)
            op->deps[op->n_deps++] = mark_ref(deps[i]);
    }
    return true;
}

struct mark *op_submit(struct device *d, struct work *w, struct mark **deps, uint32_t n_deps,
                       uint32_t slot)
{
    struct op *op = calloc(1, sizeof *op);
    struct mark *m = calloc(1, sizeof *m);
    if (!op || !m || !start_thread(d)) {
        free(op);
        free(m);
        work_free(w);
        return NULL;
    }
    cudaError_t error = work_find_uses(d, w);
    if (error)
        w->fail = error;
    op->work = *w;
    op->device = d;
    op->mark = m;
    op->born_ns = emu_now_ns();
    *m =
        (struct mark){.refs = 2, .op = op, .clock = rt.host}; /* the operation's and the caller's */
    if (!set_deps(op, deps, n_deps)) {
        free(op);
        free(m);
        work_free(w);
        return NULL;
    }
    m->epoch = (struct epoch){slot, slot < SLOTS_MAX ? ++rt.slot_time[slot] : 0};
    if (slot < SLOTS_MAX)
        m->clock.at[slot] = m->epoch.at;
    for (uint32_t i = 0; i < w->n_uses; i++)
        memory_used_by(w->uses[i], m);
    clock_join(&d->all, &m->clock);
    if (w->kind == WORK_POLL)
        w->poll->begin(w->user);
    append(d, op);
    if (!rt.config.seed)
        mark_demand(m);
    return m;
}

void mark_hurry(struct device *d, struct mark *m)
{
    if (!rt.config.seed || draw_late(d))
        return;
    mark_ref(m);
    mark_demand(m);
    for (uint64_t end = emu_now_ns() + EAGER_NS; !m->done && emu_now_ns() < end;)
        wait_ns(EAGER_NS);
    mark_unref(m);
}
