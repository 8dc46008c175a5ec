/* What no device tells of: memory freed while in use, and operations on one range that nothing
 * orders. */
#include "emu/runtime.h"

#include <stdlib.h>
#include <string.h>

enum { ACCESSES_MAX = 128, HASHED_MAX = 1 << 20 };

/* ---- frees ---- */

void check_unused(struct memory *m, const struct call *c)
{
    char text[160];
    bool known = true;
    for (uint32_t i = 0; i < m->n_users; i++)
        known = known && epoch_known(&rt.host, m->users[i]);
    if (known)
        return;
    memory_describe(m, text, sizeof text);
    report(c->device, "%s at %s:%d: of %s while work that uses it was not waited for",
           call_name(c->id), SITE(c->site), text);
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        if (rt.devices[i].open)
            device_drain(&rt.devices[i]);
}

/* ---- which memory ---- */

static cudaError_t use(struct device *d, struct work *w, const void *p)
{
    char text[160];
    struct memory *m = memory_at(p);
    if (!m)
        return cudaSuccess;
    if (m->freed) {
        memory_describe(m, text, sizeof text);
        report(d, "%s at %s:%d: uses %s after its free", w->name, SITE(w->site), text);
        return cudaErrorIllegalAddress;
    }
    for (uint32_t i = 0; i < w->n_uses; i++)
        if (w->uses[i] == m)
            return cudaSuccess;
    if (w->n_uses < USES_MAX)
        w->uses[w->n_uses++] = m;
    bool foreign = m->kind == MEMORY_DEVICE && m->device != d;
    if (w->kind == WORK_KERNEL && foreign && !(d->peers >> m->device->index & 1)) {
        memory_describe(m, text, sizeof text);
        report(d, "%s at %s:%d: device %d has no peer access to device %d's %s", w->name,
               SITE(w->site), d->index, m->device->index, text);
        return cudaErrorIllegalAddress;
    }
    return cudaSuccess;
}

cudaError_t work_find_uses(struct device *d, struct work *w)
{
    cudaError_t error = cudaSuccess, next;
    w->n_uses = 0;
    if (w->kind == WORK_COPY || w->kind == WORK_SET)
        error = use(d, w, (const void *)w->copy.to.base);
    struct span span;
    bool write;
    for (uint32_t i = 0; w->kind == WORK_POLL && w->poll->access(w->user, i, &span, &write); i++)
        if (span.width && (next = use(d, w, (void *)span.base)))
            error = next;
    if (w->kind == WORK_COPY && !w->copy.staged && (next = use(d, w, (void *)w->copy.from.base)))
        error = next;
    /* Words of the arguments that are addresses of memory: what a kernel gets by another pointer in
     * device memory is not seen. */
    for (size_t i = 0; w->kind == WORK_KERNEL && i + sizeof(void *) <= w->args_bytes;
         i += sizeof(void *)) {
        void *p;
        memcpy(&p, (const uint8_t *)w->args + i, sizeof p);
        if ((next = use(d, w, p)))
            error = next;
    }
    return error;
}

/* ---- races ---- */

static bool row_meets(uintptr_t at, size_t n, const struct span *s)
{
    size_t i = at > s->base && s->pitch ? (at - s->base) / s->pitch : 0;
    for (size_t end = i + 2; i < end && i < s->rows; i++) {
        uintptr_t row = s->base + i * s->pitch;
        if (at < row + s->width && row < at + n)
            return true;
    }
    return false;
}

static bool spans_meet(const struct span *a, const struct span *b)
{
    if (a->rows > b->rows) {
        const struct span *t = a;
        a = b;
        b = t;
    }
    for (size_t i = 0; i < a->rows; i++)
        if (row_meets(a->base + i * a->pitch, a->width, b))
            return true;
    return false;
}

static bool covers(const struct span *a, const struct span *b)
{
    uintptr_t end = b->base + (b->rows - 1) * b->pitch + b->width;
    return a->rows == 1 && a->base <= b->base && end <= a->base + a->width;
}

static bool unordered(const struct mark *a, const struct mark *b)
{
    return !epoch_known(&a->clock, b->epoch) && !epoch_known(&b->clock, a->epoch);
}

static void access_drop(struct memory *m, uint32_t i)
{
    mark_unref(m->accesses[i].mark);
    m->accesses[i] = m->accesses[--m->n_accesses];
}

void check_forget(struct memory *m)
{
    while (m->n_accesses)
        access_drop(m, 0);
    free(m->accesses);
    m->accesses = NULL;
    m->accesses_max = 0;
}

static void access_add(struct memory *m, struct access a)
{
    if (m->n_accesses == ACCESSES_MAX)
        access_drop(m, 0);
    if (m->n_accesses == m->accesses_max) {
        uint32_t max = m->accesses_max ? 2 * m->accesses_max : 4;
        struct access *more = realloc(m->accesses, max * sizeof *more);
        if (!more)
            return;
        m->accesses = more;
        m->accesses_max = max;
    }
    a.mark = mark_ref(a.mark);
    m->accesses[m->n_accesses++] = a;
}

static void check_access(struct device *d, struct memory *m, const struct span *span, bool write,
                         struct mark *mark, const struct work *w)
{
    char text[160];
    struct device *kernel_of = w->kind == WORK_KERNEL ? d : NULL;
    for (uint32_t i = m->n_accesses; i-- > 0;) {
        struct access *a = &m->accesses[i];
        if (a->mark == mark)
            continue;
        /* Kernels of two devices may order themselves by flags in memory. */
        if (kernel_of && a->kernel_of && kernel_of != a->kernel_of)
            continue;
        if (unordered(a->mark, mark)) {
            if (!(write || a->write) || !spans_meet(&a->span, span))
                continue;
            memory_describe(m, text, sizeof text);
            report(d, "%s at %s:%d %s and %s at %s:%d %s the same of %s: nothing orders them",
                   w->name, SITE(w->site), write ? "writes" : "reads", a->name, SITE(a->site),
                   a->write ? "writes" : "reads", text);
        } else if ((write || !a->write) && covers(span, &a->span)) {
            access_drop(m, i); /* who races with it races with this one too */
        }
    }
    access_add(m, (struct access){*span, write, kernel_of, mark, w->name, w->site});
}

static void check_poll(struct device *d, struct work *w, struct mark *mark)
{
    struct span span;
    bool write;
    for (uint32_t i = 0; w->poll->access(w->user, i, &span, &write); i++) {
        struct memory *m = memory_at((void *)span.base);
        if (span.width && m && !m->freed)
            check_access(d, m, &span, write, mark, w);
    }
}

static void check_kernel(struct device *d, struct work *w, struct mark *mark)
{
    for (size_t i = 0; i < w->touched.n; i++) {
        uintptr_t lo = w->touched.of[i].lo, n = w->touched.of[i].hi - lo;
        struct memory *m = memory_at((void *)lo);
        struct span span = {lo, n, n, 1};
        if (m && !m->freed)
            check_access(d, m, &span, w->touched.of[i].write, mark, w);
    }
}

void check_work(struct device *d, struct work *w, struct mark *mark)
{
    if (w->kind == WORK_KERNEL)
        check_kernel(d, w, mark);
    if (w->kind == WORK_POLL)
        check_poll(d, w, mark);
    if (w->kind != WORK_COPY && w->kind != WORK_SET)
        return;
    struct memory *to = memory_at((const void *)w->copy.to.base);
    struct memory *from =
        w->kind == WORK_COPY && !w->copy.staged ? memory_at((const void *)w->copy.from.base) : NULL;
    if (to && !to->freed)
        check_access(d, to, &w->copy.to, true, mark, w);
    if (from && !from->freed)
        check_access(d, from, &w->copy.from, false, mark, w);
}

/* ---- what the host does meanwhile ---- */

static bool work_uses(const struct work *w, const struct span *s, bool write_only)
{
    if (w->kind == WORK_HOST)
        return true; /* does with it what it likes */
    if (w->kind != WORK_COPY && w->kind != WORK_SET)
        return false;
    if (spans_meet(&w->copy.to, s))
        return true;
    return !write_only && w->kind == WORK_COPY && !w->copy.staged && spans_meet(&w->copy.from, s);
}

static bool is_used(const struct span *s, bool write_only)
{
    for (int i = 0; i < EMU_DEVICES_MAX; i++) {
        const struct device *d = &rt.devices[i];
        if (d->running && work_uses(&d->running->work, s, write_only))
            return true;
        for (const struct op *op = d->first; op; op = op->next)
            if (work_uses(&op->work, s, write_only))
                return true;
    }
    return false;
}

/* FNV-1a by words: Fowler, Noll, Vo. */
static uint64_t sum_of(const struct span *s)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < s->rows; i++) {
        const uint8_t *p = (const uint8_t *)(s->base + i * s->pitch);
        size_t k = 0;
        for (uint64_t v; k + sizeof v <= s->width; k += sizeof v) {
            memcpy(&v, p + k, sizeof v);
            h = (h ^ v) * 0x100000001b3ull;
        }
        for (; k < s->width; k++)
            h = (h ^ p[k]) * 0x100000001b3ull;
    }
    return h;
}

static bool is_pinned(const struct memory *m)
{
    return m && !m->freed && !m->mapped && !memory_is_device(m);
}

void check_host_sides(struct work *w)
{
    if (!rt.config.seed)
        return;
    const struct span *to = &w->copy.to, *from = &w->copy.from;
    if (is_pinned(memory_at((void *)to->base)) && !is_used(to, false))
        for (size_t i = 0; i < to->rows; i++)
            memset((void *)(to->base + i * to->pitch), 0xff, to->width);
    w->copy.has_sum = from->width * from->rows <= HASHED_MAX && !w->copy.staged &&
                      is_pinned(memory_at((void *)from->base)) && !is_used(from, true);
    if (w->copy.has_sum)
        w->copy.sum = sum_of(from);
}

void check_source(struct device *d, const struct work *w)
{
    if (w->kind != WORK_COPY || !w->copy.has_sum || sum_of(&w->copy.from) == w->copy.sum)
        return;
    report(d, "%s at %s:%d: the host has written to its source before it was waited for", w->name,
           SITE(w->site));
}
