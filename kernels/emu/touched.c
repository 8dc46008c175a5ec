/* What a watched launch read and wrote outside of shared memory, as ranges: for checks of the order
 * of whole launches. Atomic accesses are left out: they may be what orders two devices. */
#include <stdlib.h>

#include "emu/race.h"
#include "emu/shadow.h"

enum { RANGES_MAX = 1 << 16 };

struct range {
    uintptr_t lo, hi;
};
struct ranges {
    struct range *of;
    size_t n, max;
};

static void add(struct ranges *r, uintptr_t lo, uintptr_t hi)
{
    if (r->n && r->of[r->n - 1].hi == lo) {
        r->of[r->n - 1].hi = hi;
        return;
    }
    if (r->n == RANGES_MAX)
        return; /* blind to the rest */
    if (r->n == r->max) {
        r->max = r->max ? 2 * r->max : 256;
        r->of = realloc(r->of, r->max * sizeof *r->of);
        if (!r->of)
            abort(); /* a tool for tests */
    }
    r->of[r->n++] = (struct range){lo, hi};
}

static int by_address(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

static void tell(struct ranges *r, const struct emu_options *o, bool write)
{
    if (r->n)
        qsort(r->of, r->n, sizeof *r->of, by_address);
    for (size_t i = 0, next; i < r->n; i = next) {
        uintptr_t hi = r->of[i].hi;
        for (next = i + 1; next < r->n && r->of[next].lo == hi; next++)
            hi = r->of[next].hi;
        o->touched(o->user, r->of[i].lo, hi, write);
    }
    free(r->of);
}

static bool counts(uint64_t rec, uint32_t launch)
{
    return REC_TIME(rec) >= launch && !(rec & REC_ATOMIC);
}

void emu_tell_touched(const struct page *pages, uint32_t launch, const struct emu_options *o)
{
    struct ranges reads = {0}, writes = {0};
    for (const struct page *p = pages; p; p = p->next_touched) {
        uint32_t step = p->bytes ? 1 : WORD;
        for (uint32_t i = 0; i < PAGE_BYTES; i += step) {
            const struct cell *c = &p->cells[i / step];
            if (counts(c->write, launch))
                add(&writes, p->base + i, p->base + i + step);
            else if (counts(c->read, launch))
                add(&reads, p->base + i, p->base + i + step);
        }
    }
    tell(&reads, o, false);
    tell(&writes, o, true);
}
