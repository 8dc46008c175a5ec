/* Known bugs, to prove that the simulator finds them: tests/sim builds the pure parts once more with
 * SL_MUTANTS and switches one on at a time. In every other build SL_MUTANT is false and costs
 * nothing. X(id, what is wrong) */
#ifndef SLUICE_BASE_MUTANT_H
#define SLUICE_BASE_MUTANT_H

#include <stdbool.h>

#define SL_MUTANT_TABLE(X)                                                                         \
    X(EPOCH_IGNORED, "output of an older epoch is taken")                                          \
    X(EPOCH_STAYS, "a request is sent again under its old epoch")                                  \
    X(LOSS_IGNORED, "a lost worker's requests are not sent again")                                 \
    X(CLASS_IGNORED, "a stream goes on at a worker of another class")                              \
    X(REPEATED_TAKEN, "tokens that come twice are delivered twice")                                \
    X(GAP_TAKEN, "tokens behind missing ones are delivered")                                       \
    X(LINK_GAP_IGNORED, "messages lost on a link are not noticed")                                 \
    X(FRAME_UNCHECKED, "a flipped bit that still parses is believed")                              \
    X(BLOCKED_FOREVER, "a worker that was busy once gets nothing more")                            \
    X(PLACE_UNUSED, "the place of a request that ended is given to nobody")                        \
    X(SILENCE_IGNORED, "a silent worker is kept")                                                  \
    X(STALE_HELLO, "a HELLO that was under way while its worker was lost registers it")            \
    X(RESUME_FORGETS, "a stream that goes on begins after its prompt again")                       \
    X(PAGE_LEAKED, "a cancelled sequence keeps a page")                                            \
    X(PAGE_FREED_TWICE, "a page that gave way to an equal one is used on")                         \
    X(SALT_IGNORED, "tenants share the pages of the prefix cache")

#ifdef SL_MUTANTS
enum sl_mutant {
    SL_MUTANT_NONE,
#define X(id, what) SL_MUTANT_##id,
    SL_MUTANT_TABLE(X)
#undef X
        SL_N_MUTANTS
};
extern enum sl_mutant sl_mutant; /* of tests/sim */
#define SL_MUTANT(id) (sl_mutant == SL_MUTANT_##id)
#else
#define SL_MUTANT(id) false
#endif

#endif
