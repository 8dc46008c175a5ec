/* Switching between stacks. A fiber never returns from its entry. */
#ifndef SLUICE_KERNELS_EMU_FIBER_H
#define SLUICE_KERNELS_EMU_FIBER_H

#include <stddef.h>

/* A stack pointer at rest. Prepares [stack, stack + bytes) so that the first switch to the result
 * calls entry(). The caller's memory, 16-byte aligned. */
void *emu_fiber_make(void *stack, size_t bytes, void (*entry)(void));
/* Leaves the current stack, whose place goes to *from, for `to`. */
void emu_fiber_switch(void **from, void *to);

#endif
