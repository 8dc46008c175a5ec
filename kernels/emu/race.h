/* Accesses of a launch that nothing orders, by records per byte of shared and global memory.
 *
 * Kernels compiled with -fsanitize=thread report their accesses to hooks of our own (hooks.c) in
 * place of ThreadSanitizer's library. Two accesses race if one writes, not both are atomic, and
 * neither a barrier of the block, nor a __syncwarp of both lanes, nor a named barrier of both warps
 * lies between; accesses of two blocks of a launch are never ordered. Shuffles, votes and matrix
 * instructions order nothing (CUDA C++ Programming Guide 13.0, warp shuffle functions: "do not
 * imply a memory barrier"). An asynchronous copy writes from its start until its thread has waited
 * for it.
 *
 * Time is a number of the launch, raised by each of those events: since one OS thread runs all
 * blocks, an access is before an event exactly if its time is smaller. The idea of keeping one
 * epoch instead of a clock per thread is FastTrack's (Flanagan and Freund, PLDI 2009). */
#ifndef SLUICE_KERNELS_EMU_RACE_H
#define SLUICE_KERNELS_EMU_RACE_H

#include "emu/block.h"

enum { EMU_RACE_SLOTS = 64 }; /* blocks of one launch at a time */

enum { ACCESS_WRITE = 1, ACCESS_ATOMIC = 2 };

/* NULL where no hooks are linked: nothing is watched then. */
struct race *emu_race_begin(void);
/* True: no race. Else says so in `report`, behind what it has if the launch broke (!ok). */
bool emu_race_end(struct race *r, const struct emu_launch *l, const struct emu_options *o, bool ok,
                  char *report, size_t max);

void emu_race_block(struct worker *w);
void emu_race_barrier(struct worker *w);
void emu_race_warp(struct worker *w, uint32_t mask);
void emu_race_named(struct worker *w, uint32_t warps);
void emu_race_copy(struct worker *w, const struct lane_copy *c, const void *pc);
void emu_race_copied(struct worker *w, const struct lane_copy *c);
/* [p, p + n) by a lane of the current block; pc is where its call returns to. Ends the launch if
 * the memory is not the kernel's to touch. */
void emu_race_access(struct worker *w, uint32_t lane, const void *p, size_t n, unsigned how,
                     const void *pc);

/* The allocation that p is in, as [lo, hi), or false. With none added ever, everything. */
bool emu_region_find(const void *p, uintptr_t *lo, uintptr_t *hi);
/* The same for the data of the module that the code at pc belongs to. */
bool emu_data_find(const void *p, const void *pc, uintptr_t *lo, uintptr_t *hi);
/* The name of what was freed lately at p, or NULL. */
const char *emu_region_freed(const void *p);

/* "file:line" of a call that returns to pc; of the kernel's source where it is inlined there. */
void emu_pc_text(const void *pc, char *text, size_t max);

#endif
