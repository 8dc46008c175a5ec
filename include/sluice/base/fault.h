/* Fault points: places in product code where a test can make a fault happen (FoundationDB calls
 * them BUGGIFY). Off unless the hidden option --inject turns some on; then seeded, so that the n-th
 * pass through a point decides the same every time. A point that is off costs one branch. */
#ifndef SLUICE_BASE_FAULT_H
#define SLUICE_BASE_FAULT_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

/* X(id, name, what happens) */
#define SL_FAULT_TABLE(X)                                                                          \
    X(ENGINE_SLOW, "engine.slow", "a step takes MS longer")                                        \
    X(ENGINE_WEDGE, "engine.wedge", "the engine stands still, for MS or for ever")                 \
    X(ENGINE_NAN, "engine.nan", "the logits of one sequence are not numbers")                      \
    X(ENGINE_FAIL, "engine.fail", "a step fails as a whole")                                       \
    X(REQUEST_MEMORY, "request.memory", "no memory for a request at the worker")                   \
    X(BUS_DROP, "bus.drop", "a bus message is lost on its way out")                                \
    X(BUS_CORRUPT, "bus.corrupt", "a bit of a bus message flips on its way out")                   \
    X(COMM_DELAY, "comm.delay", "an operation of the communicator begins MS later")                \
    X(BULK_CORRUPT, "bulk.corrupt", "a bit of a KV page flips on its way out")                     \
    X(ROUTER_SLOW, "router.slow", "a round of the router's loop takes MS longer")

enum sl_fault_point {
#define X(id, name, what) SL_FAULT_##id,
    SL_FAULT_TABLE(X)
#undef X
        SL_N_FAULTS
};

/* "NAME=PROBABILITY[@MS][+SKIP][xMOST],...[,seed=N]": each pass through the point after the first
 * SKIP makes the fault happen with this probability, MOST times at most. NULL or "" turns all off. Call before threads
 * start. SL_USAGE names what is wrong. */
enum sl_status sl_faults_set(const char *spec, struct sl_err *err);

extern bool sl_faults_on;
bool sl_fault_hit(enum sl_fault_point p); /* only through the two below */
void sl_fault_wait(enum sl_fault_point p);

/* Whether the fault happens at this pass. */
static inline bool sl_fault(enum sl_fault_point p)
{
    return __builtin_expect(sl_faults_on, false) && sl_fault_hit(p);
}
/* Where it happens, sleeps the MS of the point (100 when none were given). */
static inline void sl_fault_delay(enum sl_fault_point p)
{
    if (sl_fault(p))
        sl_fault_wait(p);
}
uint64_t sl_fault_ms(enum sl_fault_point p); /* as given; 0: none */
uint64_t sl_fault_count(enum sl_fault_point p); /* how often it has happened */

#endif
