/* What the files of the emulator share: a worker is an OS thread that runs one block at a time. */
#ifndef SLUICE_KERNELS_EMU_BLOCK_H
#define SLUICE_KERNELS_EMU_BLOCK_H

#include "emu/emu.h"

enum lane_state { LANE_READY, LANE_AT_BARRIER, LANE_AT_NAMED, LANE_AT_COLLECTIVE, LANE_LEFT };

struct lane_copy {
    void *to;
    const void *from;
    uint32_t n, n_zero, group;
};

struct lane {
    void *sp, *fake; /* fake: AddressSanitizer's */
    struct emu_index index;
    enum lane_state state;
    struct emu_site at; /* unless LANE_READY */
    const char *kind;   /* LANE_AT_COLLECTIVE */
    void *ctx;
    uint32_t mask, barrier;
    uint32_t warp_epoch; /* collectives and warp barriers it has passed: for race.c */
    struct lane_copy *copies;
    uint32_t n_copies, copies_max, n_groups;
};

struct warp {
    uint32_t ready, waiting; /* lanes; waiting: at a collective */
    uint32_t n;
};

enum { STATIC_SHARED_MAX = 64, NAMED_MAX = 16 };

struct worker {
    const struct emu_launch *launch;
    const struct emu_options *options;
    uint64_t rng;
    void *sched_sp, *sched_fake;
    const void *sched_stack; /* as AddressSanitizer knows it */
    size_t sched_stack_bytes;
    struct lane *lanes; /* [EMU_BLOCK_MAX] */
    struct warp warps[EMU_BLOCK_MAX / EMU_WARP];
    uint8_t *stacks;
    uint32_t current, n_lanes, n_warps, n_left, n_at_barrier;
    uint32_t n_at_named[NAMED_MAX];
    uint32_t epoch; /* barriers the block has passed */
    uint64_t block; /* linear index */
    uint8_t *smem;
    size_t smem_used;
    struct {
        const void *key;
        size_t at, bytes;
    } statics[STATIC_SHARED_MAX];
    uint32_t n_statics;
    bool broken, left_frames; /* left_frames: a lane was abandoned, its stack is as it was */
    char report[512];
    struct worker *next; /* idle ones */
};

/* Of the thread that runs a block now, else NULL. */
struct worker *emu_worker(void);
static inline struct lane *emu_lane(struct worker *w)
{
    return &w->lanes[w->current];
}

#endif
