/* How often each kernel was launched. A launch that a graph captures is not one yet: it is counted
 * into a tally of the capture, which is added at every launch of the graph. */
#ifndef SLUICE_KERNELS_CUDA_COUNT_H
#define SLUICE_KERNELS_CUDA_COUNT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { DEV_KERNELS_MAX = 128 };

struct dev_counts {
    uint32_t n;
    struct {
        const char *name; /* a literal */
        uint64_t n;
    } of[DEV_KERNELS_MAX];
};

/* One launch, by this thread; `name` is a literal. Thread-safe, as are all here. */
void dev_count_launch(const char *name);
/* From now on this thread's launches are counted into `tally` instead; NULL: no longer. */
void dev_count_into(struct dev_counts *tally);
void dev_count_add(const struct dev_counts *tally);
/* The process's counts so far. Kernels beyond DEV_KERNELS_MAX are not counted. */
void dev_count_read(struct dev_counts *out);

#ifdef __cplusplus
}
#endif
#endif
