/* Who may have touched what before whom. */
#include "emu/race.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emu/shadow.h"

enum { SITES_MAX = 4096, FINDINGS_MAX = 8 };
#define SHADOW_MAX ((size_t)1 << 30) /* bytes; more is dropped between launches */

/* A block that has begun. Times of events after which something is known to be over. */
struct watched {
    uint32_t begun, barrier;
    uint32_t warp[N_WARPS_MAX];               /* __syncwarp of all lanes */
    uint32_t named[N_WARPS_MAX][N_WARPS_MAX]; /* of [a]: what [b] did before is over */
    uint32_t any_named[N_WARPS_MAX];
    uint32_t (*lanes)[EMU_WARP][EMU_WARP]; /* per warp, as named, between lanes; NULL: never used */
    struct page *shared;                   /* [SHARED_PAGES]; NULL: never used */
};

enum kind { RACE, UNWRITTEN, IN_FLIGHT };

struct finding {
    enum kind kind;
    bool shared, write;
    uint64_t old, new;
    uint64_t old_block, new_block;
    uintptr_t at; /* address; offset if shared */
    bool old_write;
};

struct race {
    uint32_t now, launch; /* launch: when it began */
    struct watched blocks[EMU_RACE_SLOTS];
    struct shadow shadow;
    struct page *touched; /* in this launch, but for shared memory */
    struct {
        const void *pc;
        uint32_t launch, id;
    } places[2 * SITES_MAX]; /* open addressing */
    const void *sites[SITES_MAX];
    uint32_t n_sites;
    struct start {
        uint32_t time, slot;
        uint64_t block;
    } * starts; /* ascending */
    size_t n_starts, starts_max;
    struct finding findings[FINDINGS_MAX];
    uint32_t n_findings;
    struct race *next;
};

/* hooks.c has it */
extern const char emu_hooks_linked __attribute__((weak));

static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static struct race *idle;

/* ---- times ---- */

struct race *emu_race_begin(void)
{
    if (!&emu_hooks_linked)
        return NULL;
    pthread_mutex_lock(&idle_lock);
    struct race *r = idle;
    if (r)
        idle = r->next;
    pthread_mutex_unlock(&idle_lock);
    if (!r)
        r = calloc(1, sizeof *r);
    if (!r)
        abort();
    if (r->shadow.bytes > SHADOW_MAX)
        emu_shadow_drop(&r->shadow);
    r->launch = ++r->now;
    r->n_sites = 0;
    r->n_starts = 0;
    r->n_findings = 0;
    r->touched = NULL;
    return r;
}

void emu_race_block(struct worker *w)
{
    struct race *r = w->race;
    struct watched *b = &r->blocks[w->slot];
    b->begun = ++r->now;
    b->barrier = ++r->now;
    if (r->n_starts == r->starts_max) {
        r->starts_max = r->starts_max ? 2 * r->starts_max : 256;
        r->starts = realloc(r->starts, r->starts_max * sizeof *r->starts);
        if (!r->starts)
            abort();
    }
    r->starts[r->n_starts++] = (struct start){b->begun, w->slot, w->block};
}

void emu_race_barrier(struct worker *w)
{
    w->race->blocks[w->slot].barrier = ++w->race->now;
}

/* Everyone of `who` knows from now on what any of them knew, and that all they did is over. */
static void join(uint32_t known[][32], uint32_t who, uint32_t now)
{
    uint32_t all[32] = {0};
    for (uint32_t a = who; a; a &= a - 1)
        for (uint32_t i = 0; i < 32; i++)
            if (known[__builtin_ctz(a)][i] > all[i])
                all[i] = known[__builtin_ctz(a)][i];
    for (uint32_t a = who; a; a &= a - 1)
        all[__builtin_ctz(a)] = now;
    for (uint32_t a = who; a; a &= a - 1)
        memcpy(known[__builtin_ctz(a)], all, sizeof all);
}

void emu_race_warp(struct worker *w, uint32_t mask)
{
    struct watched *b = &w->race->blocks[w->slot];
    uint32_t warp = w->current / EMU_WARP, now = ++w->race->now;
    if (mask == ~0u) {
        b->warp[warp] = now;
        return;
    }
    if (!b->lanes) {
        b->lanes = calloc(N_WARPS_MAX, sizeof *b->lanes);
        if (!b->lanes)
            abort();
    }
    join(b->lanes[warp], mask, now);
}

void emu_race_named(struct worker *w, uint32_t warps)
{
    struct watched *b = &w->race->blocks[w->slot];
    uint32_t now = ++w->race->now;
    join(b->named, warps, now);
    for (uint32_t a = warps; a; a &= a - 1)
        b->any_named[__builtin_ctz(a)] = b->warp[__builtin_ctz(a)] = now;
}

/* ---- order ---- */

/* Whether all other lanes' accesses of `time` are known to be over. */
static bool knows_lanes(const struct watched *b, uint32_t lane, uint32_t time)
{
    for (uint32_t i = 0; i < EMU_WARP; i++)
        if (i != lane % EMU_WARP && b->lanes[lane / EMU_WARP][lane % EMU_WARP][i] <= time)
            return false;
    return true;
}

/* Whether the record's accesses are over for `lane` of the block in `slot`. */
static bool is_over(const struct watched *b, uint64_t rec, uint32_t slot, uint32_t lane)
{
    uint32_t time = REC_TIME(rec), many = REC_MANY(rec), other = REC_LANE(rec);
    if (REC_SLOT(rec) != slot || time < b->begun || many == MANY_IN_GRID)
        return false;
    if (time < b->barrier || (many == MANY_NOT && other == lane))
        return true;
    uint32_t mine = lane / EMU_WARP, theirs = other / EMU_WARP;
    if (many == MANY_IN_BLOCK) /* their warps are forgotten: rather miss a race than make one up */
        return time < b->any_named[mine];
    if (mine != theirs)
        return time < b->named[mine][theirs];
    if (time < b->warp[mine])
        return true;
    if (!b->lanes)
        return false;
    return many ? knows_lanes(b, lane, time)
                : time < b->lanes[mine][lane % EMU_WARP][other % EMU_WARP];
}

/* How many the record's accesses and one by `lane` are. */
static uint32_t how_many(const struct watched *b, uint64_t rec, uint32_t slot, uint32_t lane)
{
    if (REC_SLOT(rec) != slot || REC_TIME(rec) < b->begun)
        return MANY_IN_GRID;
    uint32_t many = REC_LANE(rec) / EMU_WARP == lane / EMU_WARP ? MANY_IN_WARP : MANY_IN_BLOCK;
    return REC_MANY(rec) > many ? REC_MANY(rec) : many;
}

/* ---- findings ---- */

static uint64_t block_of(const struct race *r, uint64_t rec)
{
    for (size_t i = r->n_starts; i-- > 0;)
        if (r->starts[i].slot == REC_SLOT(rec) && r->starts[i].time <= REC_TIME(rec))
            return r->starts[i].block;
    return 0;
}

static void find(struct race *r, const struct finding *f)
{
    for (uint32_t i = 0; i < r->n_findings; i++) {
        const struct finding *o = &r->findings[i];
        if (o->kind == f->kind && REC_SITE(o->new) == REC_SITE(f->new) &&
            REC_SITE(o->old) == REC_SITE(f->old))
            return;
    }
    if (r->n_findings == FINDINGS_MAX)
        return;
    struct finding *n = &r->findings[r->n_findings++];
    *n = *f;
    n->new_block = block_of(r, f->new);
    n->old_block = block_of(r, f->old);
}

/* Kept for the launch: where a record's access was made. */
static uint32_t site_of(struct race *r, const void *pc)
{
    size_t i = ((uintptr_t)pc * 0x9e3779b97f4a7c15ull) >> 51;
    while (r->places[i].launch == r->launch) {
        if (r->places[i].pc == pc)
            return r->places[i].id;
        i = (i + 1) % (2 * SITES_MAX);
    }
    if (r->n_sites == SITES_MAX)
        return SITES_MAX - 1;
    r->places[i].pc = r->sites[r->n_sites] = pc;
    r->places[i].launch = r->launch;
    return r->places[i].id = r->n_sites++;
}

/* ---- accesses ---- */

struct access {
    struct race *race;
    const struct watched *block;
    uint64_t rec;
    uint32_t since; /* when the memory's records begin to count */
    uint32_t lane, slot;
    bool write, shared;
    uintptr_t at; /* of the page; of the array of all shared memory if shared */
};

static __attribute__((noinline)) void conflict(const struct access *a, uint64_t old, bool old_write,
                                               uintptr_t offset)
{
    struct finding f = {
        .kind = !old                ? UNWRITTEN
                : old & REC_PENDING ? IN_FLIGHT
                                    : RACE,
        .shared = a->shared,
        .write = a->write,
        .old = old,
        .new = a->rec,
        .old_write = old_write,
        .at = a->at + offset,
    };
    find(a->race, &f);
}

static bool is_harmless(const struct access *a, uint64_t old)
{
    return (old & a->rec & REC_ATOMIC) ||
           (!(old & REC_PENDING) && is_over(a->block, old, a->slot, a->lane));
}

/* A record of an access that does not conflict with the old one. */
static uint64_t merge(const struct access *a, uint64_t old)
{
    if (REC_TIME(old) < a->since || is_over(a->block, old, a->slot, a->lane))
        return a->rec;
    /* Of an atomic access and another by someone else, the other conflicts with more. */
    uint64_t kept = (old & REC_ATOMIC) ? a->rec : old;
    return rec_widen(kept, how_many(a->block, old, a->slot, a->lane));
}

static inline void read_cell(const struct access *a, struct cell *c, uintptr_t offset)
{
    if (c->read == a->rec)
        return;
    if (REC_TIME(c->write) < a->since) {
        if (a->shared)
            conflict(a, 0, true, offset);
    } else if (!is_harmless(a, c->write)) {
        conflict(a, c->write, true, offset);
    }
    c->read = merge(a, c->read);
}

static inline void write_cell(const struct access *a, struct cell *c, uintptr_t offset)
{
    if (c->write == a->rec)
        return;
    bool counts = REC_TIME(c->write) >= a->since;
    if (counts && !is_harmless(a, c->write))
        conflict(a, c->write, true, offset);
    if (REC_TIME(c->read) >= a->since) {
        if (!is_harmless(a, c->read))
            conflict(a, c->read, false, offset);
        else if (!(c->read & REC_ATOMIC) || !(a->rec & REC_ATOMIC))
            c->read = 0;
    }
    bool both_atomic = counts && (c->write & a->rec & REC_ATOMIC);
    c->write = both_atomic ? merge(a, c->write) : a->rec;
}

/* [lo, hi) of one page */
static void touch(struct access *a, struct page *p, uint32_t lo, uint32_t hi)
{
    if (!p->bytes && (lo | hi) % WORD)
        emu_page_split(&a->race->shadow, p);
    uint32_t step = p->bytes ? 1 : WORD;
    struct cell *c = &p->cells[lo / step];
    for (uint32_t i = lo; i < hi; i += step, c++) {
        if (a->write)
            write_cell(a, c, i);
        else
            read_cell(a, c, i);
    }
}

/* ---- memory that is the kernel's ---- */

static struct page *make_shared(void)
{
    size_t cells = (size_t)SHARED_PAGES * PAGE_BYTES * sizeof(struct cell);
    struct page *pages = calloc(SHARED_PAGES, sizeof *pages);
    uint8_t *all = mmap(NULL, cells, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!pages || all == MAP_FAILED)
        abort();
    for (size_t i = 0; i < SHARED_PAGES; i++) {
        pages[i].cells = (struct cell *)(void *)all + i * PAGE_BYTES;
        pages[i].has_room = true;
    }
    return pages;
}

static struct page *shared_page(struct watched *b, size_t at)
{
    if (!b->shared)
        b->shared = make_shared();
    struct page *p = &b->shared[at / PAGE_BYTES];
    if (p->since != b->begun) {
        p->since = b->begun;
        p->bytes = false;
    }
    return p;
}

static bool is_in_array(const struct worker *w, size_t at, size_t n)
{
    if (at + n <= w->launch->smem)
        return true;
    for (uint32_t i = 0; i < w->n_statics; i++)
        if (at >= w->statics[i].at && at + n <= w->statics[i].at + w->statics[i].bytes)
            return true;
    return false;
}

static void access_shared(struct worker *w, struct access *a, size_t at, size_t n, const void *pc)
{
    struct watched *b = &w->race->blocks[w->slot];
    if (!is_in_array(w, at, n)) {
        char text[128];
        snprintf(text, sizeof text, "%s of %zu bytes at %zu of shared memory, outside its arrays",
                 a->write ? "write" : "read", n, at);
        emu_break_access(a->lane, pc, text);
    }
    a->since = b->begun;
    a->shared = true;
    while (n) {
        struct page *p = shared_page(b, at);
        size_t lo = at % PAGE_BYTES, hi = lo + n < PAGE_BYTES ? lo + n : PAGE_BYTES;
        a->at = at - lo;
        touch(a, p, (uint32_t)lo, (uint32_t)hi);
        at += hi - lo;
        n -= hi - lo;
    }
}

void emu_unwritten_ok(const void *p, size_t n)
{
    struct worker *w = emu_worker;
    size_t at = (size_t)((uintptr_t)p - (uintptr_t)w->smem);
    if (!w->race || at >= SHARED_ROOM || n > SHARED_ROOM - at)
        return;
    struct watched *b = &w->race->blocks[w->slot];
    for (size_t i = at; i < at + n; i++) {
        struct page *page = shared_page(b, i);
        uint64_t *rec = &page->cells[i % PAGE_BYTES / (page->bytes ? 1 : WORD)].write;
        if (REC_TIME(*rec) < b->begun) /* as if written in front of everything */
            *rec = rec_make(b->begun, 0, w->slot, 0, 0);
    }
}

/* All of [p, p + n) in one allocation; sets what of the page is too. */
static void check_region(struct access *a, struct page *page, const void *p, size_t n,
                         const void *pc)
{
    uintptr_t lo, hi, at = (uintptr_t)p;
    char text[256];
    const char *what = a->write ? "write" : "read";
    if (!emu_region_find(p, &lo, &hi) && !emu_data_find(p, pc, &lo, &hi)) {
        const char *freed = emu_region_freed(p);
        snprintf(text, sizeof text, "%s of %zu bytes at %p, %s%s", what, n, p,
                 freed ? "in freed memory: " : "in no allocation", freed ? freed : "");
        emu_break_access(a->lane, pc, text);
    }
    if (n > hi - at) {
        snprintf(text, sizeof text, "%s of %zu bytes at %p, %zu before the end of its allocation",
                 what, n, p, (size_t)(hi - at));
        emu_break_access(a->lane, pc, text);
    }
    page->lo = lo > page->base ? (uint32_t)(lo - page->base) : 0;
    page->hi = hi - page->base < PAGE_BYTES ? (uint32_t)(hi - page->base) : PAGE_BYTES;
}

static void access_global(struct access *a, const void *p, size_t n, const void *pc)
{
    struct race *r = a->race;
    uintptr_t at = (uintptr_t)p;
    a->since = r->launch;
    a->shared = false;
    while (n) {
        uint32_t lo = (uint32_t)(at % PAGE_BYTES);
        uint32_t hi = lo + n < PAGE_BYTES ? lo + (uint32_t)n : PAGE_BYTES;
        struct page *page = emu_shadow_page(&r->shadow, at - lo);
        if (page->since != r->launch) {
            page->since = r->launch;
            page->bytes = false;
            page->lo = page->hi = 0;
            page->next_touched = r->touched;
            r->touched = page;
        }
        if (lo < page->lo || hi > page->hi)
            check_region(a, page, (const void *)at, n, pc);
        a->at = page->base;
        touch(a, page, lo, hi);
        at += hi - lo;
        n -= hi - lo;
    }
}

static void access_memory(struct worker *w, uint32_t lane, const void *p, size_t n, unsigned how,
                          uint64_t flags, const void *pc)
{
    struct race *r = w->race;
    size_t at = (size_t)((uintptr_t)p - (uintptr_t)w->smem);
    struct access a = {.race = r, .block = &r->blocks[w->slot], .lane = lane, .slot = w->slot};
    a.write = how & ACCESS_WRITE;
    a.rec = rec_make(r->now, lane, w->slot, flags | (how & ACCESS_ATOMIC ? REC_ATOMIC : 0),
                     site_of(r, pc));
    if (at < SHARED_ROOM)
        access_shared(w, &a, at, n, pc);
    else
        access_global(&a, p, n, pc);
}

void emu_race_access(struct worker *w, uint32_t lane, const void *p, size_t n, unsigned how,
                     const void *pc)
{
    const uint8_t *stacks_end = w->stacks + STACK_STRIDE * EMU_BLOCK_MAX;
    if ((const uint8_t *)p >= w->stacks && (const uint8_t *)p < stacks_end)
        emu_break_access(lane, pc, "access to another thread's local memory");
    access_memory(w, lane, p, n, how, 0, pc);
}

/* ---- asynchronous copies ---- */

void emu_race_copy(struct worker *w, const struct lane_copy *c, const void *pc)
{
    if (c->n)
        emu_race_access(w, w->current, c->from, c->n, 0, pc);
    access_memory(w, w->current, c->to, c->n + c->n_zero, ACCESS_WRITE, REC_PENDING, pc);
}

void emu_race_copied(struct worker *w, const struct lane_copy *c)
{
    const struct watched *b = &w->race->blocks[w->slot];
    size_t at = (size_t)((uintptr_t)c->to - (uintptr_t)w->smem), n = c->n + c->n_zero;
    struct page *p = &b->shared[at / PAGE_BYTES]; /* at is a multiple of n */
    uint32_t step = p->bytes ? 1 : WORD;
    for (size_t i = 0; i < n; i += step) {
        uint64_t *rec = &p->cells[(at % PAGE_BYTES + i) / step].write;
        if ((*rec & REC_PENDING) && REC_LANE(*rec) == w->current && REC_TIME(*rec) >= b->begun)
            *rec = (uint64_t)w->race->now << 32 | ((uint32_t)*rec & ~REC_PENDING);
    }
}

/* ---- what is told ---- */

static size_t tell(const struct race *r, const struct emu_launch *l, const struct finding *f,
                   char *text, size_t max)
{
    char new_at[160], old_at[160];
    emu_pc_text(r->sites[REC_SITE(f->new)], new_at, sizeof new_at);
    emu_pc_text(r->sites[REC_SITE(f->old)], old_at, sizeof old_at);
    const char *space = f->shared ? "shared memory at " : "", *verb = f->write ? "writes" : "reads";
    unsigned long long block = f->new_block, old_block = f->old_block;
    int n;
    if (f->kind == UNWRITTEN)
        n = snprintf(text, max,
                     "%s: %s: thread %u of block %llu reads shared memory at %zu, which "
                     "nobody has written\n",
                     l->name, new_at, REC_LANE(f->new), block, f->at);
    else
        n = snprintf(text, max,
                     "%s: %s: %s: thread %u of block %llu %s %s%#zx, which thread %u of "
                     "block %llu %s at %s\n",
                     l->name, new_at, f->kind == RACE ? "race" : "copy not waited for",
                     REC_LANE(f->new), block, verb, space, f->at, REC_LANE(f->old), old_block,
                     f->kind == IN_FLIGHT ? "copies to"
                     : f->old_write       ? "wrote"
                                          : "read",
                     old_at);
    return n > 0 && (size_t)n < max ? (size_t)n : 0;
}

bool emu_race_end(struct race *r, const struct emu_launch *l, const struct emu_options *o, bool ok,
                  char *report, size_t max)
{
    size_t at = 0;
    if (o->touched)
        emu_tell_touched(r->touched, r->launch, o);
    if (!ok) {
        at = strnlen(report, max);
        if (at + 2 < max && r->n_findings)
            report[at++] = '\n';
    }
    for (uint32_t i = 0; i < r->n_findings && at < max; i++)
        at += tell(r, l, &r->findings[i], report + at, max - at);
    ok = r->n_findings == 0;
    pthread_mutex_lock(&idle_lock);
    r->next = idle;
    idle = r;
    pthread_mutex_unlock(&idle_lock);
    return ok;
}
