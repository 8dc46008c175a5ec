/* The device memory there is, and what was freed lately. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emu/race.h"

enum { FREED_MAX = 64, NAME_MAX_BYTES = 128 };

struct region {
    uintptr_t lo, hi;
    char name[NAME_MAX_BYTES];
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct region *regions; /* ascending */
static size_t n_regions, regions_max;
static struct region freed[FREED_MAX];
static size_t n_freed;
static bool ever;

/* The first that ends behind p. */
static size_t first_behind(uintptr_t p)
{
    size_t lo = 0, hi = n_regions;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (regions[mid].hi <= p)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

void emu_memory_add(const void *base, size_t bytes, const char *name)
{
    struct region r = {.lo = (uintptr_t)base, .hi = (uintptr_t)base + bytes};
    snprintf(r.name, sizeof r.name, "%s", name ? name : "");
    pthread_rwlock_wrlock(&lock);
    ever = true;
    if (n_regions == regions_max) {
        regions_max = regions_max ? 2 * regions_max : 64;
        regions = realloc(regions, regions_max * sizeof *regions);
        if (!regions)
            abort();
    }
    size_t at = first_behind(r.lo);
    memmove(regions + at + 1, regions + at, (n_regions - at) * sizeof *regions);
    regions[at] = r;
    n_regions++;
    pthread_rwlock_unlock(&lock);
}

void emu_memory_remove(const void *base)
{
    pthread_rwlock_wrlock(&lock);
    size_t at = first_behind((uintptr_t)base);
    if (at < n_regions && regions[at].lo == (uintptr_t)base) {
        freed[n_freed++ % FREED_MAX] = regions[at];
        n_regions--;
        memmove(regions + at, regions + at + 1, (n_regions - at) * sizeof *regions);
    }
    pthread_rwlock_unlock(&lock);
}

bool emu_region_find(const void *p, uintptr_t *lo, uintptr_t *hi)
{
    bool found = true;
    *lo = 0;
    *hi = UINTPTR_MAX;
    pthread_rwlock_rdlock(&lock);
    if (ever) {
        size_t at = first_behind((uintptr_t)p);
        found = at < n_regions && regions[at].lo <= (uintptr_t)p;
        *lo = found ? regions[at].lo : 0;
        *hi = found ? regions[at].hi : 0;
    }
    pthread_rwlock_unlock(&lock);
    return found;
}

const char *emu_region_freed(const void *p)
{
    static __thread char name[NAME_MAX_BYTES];
    bool found = false;
    pthread_rwlock_rdlock(&lock);
    for (size_t i = 0; i < FREED_MAX && i < n_freed && !found; i++) {
        const struct region *r = &freed[(n_freed - 1 - i) % FREED_MAX];
        found = r->lo <= (uintptr_t)p && (uintptr_t)p < r->hi;
        if (found)
            memcpy(name, r->name, sizeof name);
    }
    pthread_rwlock_unlock(&lock);
    return found ? name : NULL;
}
