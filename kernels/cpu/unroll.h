/* Full unrolling is what keeps an accumulator array in registers. */
#ifndef SLUICE_KERNELS_CPU_UNROLL_H
#define SLUICE_KERNELS_CPU_UNROLL_H

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Pins a vector at this point. Compilers regroup integer sums into trees, which costs more
 * registers than there are. */
#define KEEP(v) __asm__("" : "+x"(v))

#endif
