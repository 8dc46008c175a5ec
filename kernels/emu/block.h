/* What the files of the emulator share: a worker runs one block at a time, on one OS thread. */
#ifndef SLUICE_KERNELS_EMU_BLOCK_H
#define SLUICE_KERNELS_EMU_BLOCK_H

#include "emu/emu.h"

enum lane_state { LANE_READY, LANE_AT_BARRIER, LANE_AT_NAMED, LANE_AT_COLLECTIVE, LANE_LEFT };

struct lane_copy {
    void *to;
    const void *from;
    uint32_t n, n_zero, group;
    bool done; /* the bytes are there: an eager copy */
};

struct lane {
    void *sp, *fake; /* fake: AddressSanitizer's */
    enum lane_state state;
    struct emu_site at; /* unless LANE_READY */
    const char *kind;   /* LANE_AT_COLLECTIVE */
    const void *pc;     /* of the call */
    void *ctx;
    uint32_t mask, barrier;
    struct lane_copy *copies;
    uint32_t n_copies, copies_max, n_groups;
};

struct warp {
    uint32_t ready, waiting; /* lanes; waiting: at a collective */
};

enum { N_WARPS_MAX = EMU_BLOCK_MAX / EMU_WARP, STATIC_SHARED_MAX = 64, NAMED_MAX = 16 };

/* A stack is touched at its top only, where the lane's emu_index lies. Odd distances keep the
 * stacks of a warp out of the same cache sets. */
#define STACK_BYTES  ((size_t)64 << 10)
#define STACK_STRIDE (STACK_BYTES + 832)
/* Between two arrays in shared memory; belongs to none. */
#define SHARED_GAP  ((size_t)128)
#define SHARED_ROOM (EMU_SMEM_MAX + STATIC_SHARED_MAX * 2 * SHARED_GAP)

enum block_end { BLOCK_DONE, BLOCK_BROKEN, BLOCK_PAUSED };

struct race;

struct worker {
    const struct emu_launch *launch;
    const struct emu_options *options;
    struct race *race; /* NULL: accesses are not watched */
    uint8_t *stack;    /* of the current lane */
    uint8_t *smem;
    uint64_t rng;
    void *sched_sp, *sched_fake;
    const void *sched_stack; /* as AddressSanitizer knows it */
    size_t sched_stack_bytes;
    struct lane *lanes; /* [EMU_BLOCK_MAX] */
    struct warp warps[N_WARPS_MAX];
    uint8_t *stacks;
    uint32_t current, n_lanes, n_warps, n_left, n_at_barrier;
    uint32_t n_at_named[NAMED_MAX];
    uint64_t block; /* linear index */
    uint32_t slot;  /* among the blocks its OS thread has begun */
    size_t smem_used;
    struct shared_array {
        const void *key;
        size_t at, bytes;
    } statics[STATIC_SHARED_MAX];
    uint32_t n_statics;
    bool broken, paused;
    bool left_frames; /* a lane was abandoned, its stack is as it was */
    char report[512];
    struct worker *next;
};

/* The one whose block this OS thread runs now, else NULL. */
extern __thread struct worker *emu_worker __attribute__((tls_model("initial-exec")));

static inline struct lane *emu_lane(struct worker *w)
{
    return &w->lanes[w->current];
}

struct worker *emu_worker_take(void);
void emu_worker_give(struct worker *w);
struct emu_index emu_index_of(const struct worker *w, uint32_t lane);
void emu_shared_start(struct worker *w); /* the launch's own array, poisoned */
void emu_block_start(struct worker *w, uint64_t block);
/* Runs the block's threads until all have left, one breaks a rule, or one waits for memory. */
enum block_end emu_block_run(struct worker *w);
/* A break by an access of lane `lane`, which the current one may have done for it. */
void emu_break_access(uint32_t lane, const void *pc, const char *what) __attribute__((noreturn));

/* The same by what the lane's collective does. */
void emu_break_lane(uint32_t lane, const char *what) __attribute__((noreturn));

#endif
