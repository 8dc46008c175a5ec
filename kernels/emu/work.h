/* What an operation does, whether it is enqueued or a node of a graph. */
#ifndef SLUICE_KERNELS_EMU_WORK_H
#define SLUICE_KERNELS_EMU_WORK_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emu/emu.h"

enum { USES_MAX = 64 };

/* Rows of bytes: [base + i * pitch, + width) for i < rows. */
struct span {
    uintptr_t base;
    size_t width, pitch, rows;
};

enum work_kind { WORK_EMPTY, WORK_COPY, WORK_SET, WORK_KERNEL, WORK_HOST, WORK_POLL };

/* What a WORK_POLL is; `user` belongs to the work. */
struct emu_poll {
    cudaError_t (*poll)(void *user); /* cudaErrorNotReady: is asked again */
    void (*begin)(void *user);       /* it has been enqueued */
    void *(*clone)(const void *user);
    void (*free)(void *user);
    /* The i-th range it touches; false: there are no more. */
    bool (*access)(const void *user, uint32_t i, struct span *span, bool *write);
};

struct work {
    enum work_kind kind;
    const char *name; /* of the call, or of the kernel */
    struct emu_site site;
    cudaError_t fail; /* injected */
    struct {
        struct span to, from;
        void *staged; /* owned: the source as it was */
        uint64_t sum; /* of a pinned source as it was, if has_sum */
        bool has_sum;
    } copy; /* of WORK_COPY; WORK_SET has `to` */
    uint8_t value;
    struct emu_launch launch;
    struct touched { /* by a watched kernel, owned */
        struct {
            uintptr_t lo, hi;
            bool write;
        } * of;
        size_t n, max;
    } touched;
    void *args; /* owned */
    size_t args_bytes;
    cudaHostFn_t host;
    const struct emu_poll *poll;
    void *user;
    struct memory *uses[USES_MAX];
    uint32_t n_uses;
};
void *args_copy(const void *args, size_t bytes);
void work_free(struct work *w);
bool work_clone(struct work *to, const struct work *from);

#endif
