/* CUDA blocks on the CPU: every thread of a block is a fiber, blocks spread over OS threads.
 *
 * A fiber runs until it reaches a barrier or a warp collective and then hands over: to a lane of its
 * own warp if one is ready, else to the scheduler, which draws the next warp from the seed. So warps
 * run ahead of each other as far as the program lets them, which shows most missing barriers as
 * wrong numbers; what numbers do not show, the race detector does (race.h). Asynchronous copies
 * complete at once under odd seeds and as late as allowed under even ones. A launch that breaks a
 * rule of the machine ends with a report that names file and line. Source: CUDA C++ Programming
 * Guide 13.0, PTX ISA 9.0. */
#ifndef SLUICE_KERNELS_EMU_EMU_H
#define SLUICE_KERNELS_EMU_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emu_dim {
    unsigned x, y, z;
};

enum { EMU_WARP = 32, EMU_BLOCK_MAX = 1024, EMU_SMEM_MAX = 232448 };

/* What a block may ask for beyond these is refused by the launch. */
struct emu_launch {
    const char *name;
    void (*run)(void *args); /* one thread's work */
    void *args;
    struct emu_dim grid, block;
    size_t smem; /* dynamic shared memory, bytes */
};

struct emu_options {
    uint64_t seed;      /* of scheduling; odd: eager copies, even: late ones */
    uint32_t n_threads; /* OS threads; 0: one */
    bool one_order;     /* blocks and warps in ascending order: fastest, finds least */
    bool unwatched;     /* no races are looked for, even where kernels are compiled for it */
    /* Of a watched launch, if not NULL: what it touched but for shared memory and atomically. */
    void (*touched)(void *user, uintptr_t lo, uintptr_t hi, bool write);
    void *user;
};

/* Where in the source a thread waits. */
struct emu_site {
    const char *file;
    int line;
};

/* False: the launch broke a rule; `report` [report_max] says which and where, races one a line.
 * Blocks that ran before have had their effect. Watched launches use the caller's thread only. */
bool emu_run(const struct emu_launch *l, const struct emu_options *o, char *report,
             size_t report_max);

/* What kernels may touch besides their own data: accesses of watched kernels elsewhere end the
 * launch. Nothing is checked as long as no memory was ever added. `name` is copied. */
void emu_memory_add(const void *base, size_t bytes, const char *name);
void emu_memory_remove(const void *base);

/* ---- for code that runs in a fiber ---- */

struct emu_index {
    struct emu_dim thread, block, block_dim, grid_dim;
};
/* One answer for all of a kernel's run. Lies on the thread's stack. */
const struct emu_index *emu_where(void) __attribute__((const));

void emu_barrier(struct emu_site at);
/* Named barrier: `n` threads of the block, a multiple of 32. */
void emu_named_barrier(uint32_t id, uint32_t n, struct emu_site at);

/* Runs fn(ctx of every lane in mask, indexed by lane; others NULL) once all lanes of the mask have
 * come with the same kind. The context lives in the lane's frame. */
typedef void emu_collective_fn(void **lanes, uint32_t mask);
void emu_collective(const char *kind, uint32_t mask, emu_collective_fn *fn, void *lane,
                    struct emu_site at);

/* Orders the memory accesses of a warp's lanes; other collectives do not. */
void emu_sync_warp(uint32_t mask, struct emu_site at);

void *emu_shared_dynamic(void);
/* The same memory for all threads of a block that call from one place (`key`). Poisoned. */
void *emu_shared_static(const void *key, size_t bytes);

/* The detector of races does not mind if nobody has written these bytes of shared memory. */
void emu_unwritten_ok(const void *p, size_t n);

void emu_copy_async(void *to, const void *from, uint32_t n, uint32_t n_zero, struct emu_site at);
void emu_copy_commit(void);
void emu_copy_wait(uint32_t n_left);

/* Lets other threads of the block, and other processes, run: for loops that wait for memory. */
void emu_pause(void);
/* Ends the launch with a report. */
void emu_break(struct emu_site at, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));

#ifdef __cplusplus
}
#endif
#endif
