/* What comes after what in the emulated runtime.
 *
 * An operation has one mark: its end, on which others depend. Marks carry vector clocks (Mattern
 * 1989): one component, a slot, per stream and per strand of a graph; and the host as a whole knows
 * what was waited for. Two operations neither of which knows of the other have no order, whatever
 * this run did. The runtime's lock guards all of it. */
#ifndef SLUICE_KERNELS_EMU_ORDER_H
#define SLUICE_KERNELS_EMU_ORDER_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

struct device;

enum { SLOTS_MAX = 256, NO_SLOT = SLOTS_MAX };

struct clock {
    uint32_t at[SLOTS_MAX];
};
/* A point on one slot. */
struct epoch {
    uint32_t slot, at;
};

struct mark {
    uint32_t refs;
    bool done;
    struct op *op; /* NULL once done */
    uint64_t end_ns;
    struct epoch epoch;
    struct clock clock; /* what it comes after, itself included */
};

uint32_t slot_take(void);
void slot_give(uint32_t slot);
bool epoch_known(const struct clock *c, struct epoch e);
void clock_join(struct clock *c, const struct clock *more);

struct mark *mark_ref(struct mark *m);
void mark_unref(struct mark *m);
/* Waits until it is done, and then the host knows of it. */
void mark_wait(struct mark *m);
/* The same, but the host has no right to know. The caller holds a reference. */
void mark_until_done(struct mark *m);
void mark_demand(struct mark *m);
bool mark_waited(const struct mark *m);
/* cudaSuccess: over, and then the host knows of it; cudaErrorNotReady: now asked for. */
cudaError_t mark_query(struct device *d, struct mark *m);
/* What the seed makes of an operation that was just enqueued. */
void mark_hurry(struct device *d, struct mark *m);

#endif
