/* What was done to each byte: a record of the last write and one of the last reads.
 *
 * Memory is looked at in pages of 1024 bytes, which have a cell per four bytes until an access cuts
 * through one, then a cell per byte until the launch (of shared memory: the block) ends. Records of
 * former launches are told by their time and need no clearing. */
#ifndef SLUICE_KERNELS_EMU_SHADOW_H
#define SLUICE_KERNELS_EMU_SHADOW_H

#include "emu/race.h"

/* time 32 | lane 10 | slot 6 | many 2 | atomic 1 | pending 1 | site 12. Time 0: never. */
#define REC_TIME(r) ((uint32_t)((r) >> 32))
#define REC_LANE(r) ((uint32_t)((r) >> 22) & 1023)
#define REC_SLOT(r) ((uint32_t)((r) >> 16) & 63)
#define REC_MANY(r) ((uint32_t)((r) >> 14) & 3)
#define REC_SITE(r) ((uint32_t)(r)&4095)
#define REC_ATOMIC  (1ull << 13)
#define REC_PENDING (1ull << 12) /* an asynchronous copy that was not waited for */
/* Whose the record is: of its lane, or of several lanes of its warp, its block, the launch, of
 * which no order is known. */
enum { MANY_NOT, MANY_IN_WARP, MANY_IN_BLOCK, MANY_IN_GRID };

static inline uint64_t rec_make(uint32_t time, uint32_t lane, uint32_t slot, uint64_t flags,
                                uint32_t site)
{
    return (uint64_t)time << 32 | (uint64_t)lane << 22 | slot << 16 | flags | site;
}
static inline uint64_t rec_widen(uint64_t r, uint32_t many)
{
    return (r & ~(3ull << 14)) | (uint64_t)many << 14;
}

struct cell {
    uint64_t write, read;
};

enum { PAGE_BYTES = 1024, WORD = 4, SHARED_PAGES = (SHARED_ROOM + PAGE_BYTES - 1) / PAGE_BYTES };

struct page {
    uintptr_t base;
    uint32_t since;  /* older than this, it is as new */
    bool bytes;      /* a cell per byte */
    bool has_room;   /* for it */
    uint32_t lo, hi; /* offsets known to be the kernel's */
    struct cell *cells;
    struct page *next;
    struct page *next_touched; /* in this launch */
};

struct shadow {
    struct page *recent[4096];
    struct page *bucket[65536];
    size_t bytes;
};

/* The page of base, a multiple of PAGE_BYTES. */
struct page *emu_shadow_page(struct shadow *s, uintptr_t base);
void emu_shadow_drop(struct shadow *s);
/* Tells o->touched what was done to the pages since `launch`. */
void emu_tell_touched(const struct page *pages, uint32_t launch, const struct emu_options *o);
/* From here on, a cell per byte. */
void emu_page_split(struct shadow *s, struct page *p);

#endif
