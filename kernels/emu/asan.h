/* What AddressSanitizer must be told of stacks that change and of memory that is not to be touched;
 * nothing in other builds. */
#ifndef SLUICE_KERNELS_EMU_ASAN_H
#define SLUICE_KERNELS_EMU_ASAN_H

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN_POISON(p, n)           __asan_poison_memory_region(p, n)
#define ASAN_UNPOISON(p, n)         __asan_unpoison_memory_region(p, n)
#define ASAN_LEAVE(fake, stack, n)  __sanitizer_start_switch_fiber(fake, stack, n)
#define ASAN_ARRIVE(fake, stack, n) __sanitizer_finish_switch_fiber(fake, stack, n)
#else
#define ASAN_POISON(p, n)           ((void)(p), (void)(n))
#define ASAN_UNPOISON(p, n)         ((void)(p), (void)(n))
#define ASAN_LEAVE(fake, stack, n)  ((void)(fake), (void)(stack), (void)(n))
#define ASAN_ARRIVE(fake, stack, n) ((void)(fake), (void)(stack), (void)(n))
#endif

#endif
