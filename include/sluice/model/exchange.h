/* What a sharded forward pass asks of the other ranks. The model never sees a socket: whoever runs
 * it gives these functions, over a communicator or, in tests, over threads.
 *
 * Every rank of the group runs the same step and so makes the calls that concern it in the same
 * order. Counts are in floats and equal at both ends; all memory belongs to the backend and was
 * taken when the model was opened. After a call, ops find its result and may change its sources;
 * where they only enqueue, so may the call. Any status but SL_OK ends the forward pass with it;
 * what the caches and the logits hold then is undefined, and the other ranks have to be told by
 * other means (sl_comm_abort). */
#ifndef SLUICE_MODEL_EXCHANGE_H
#define SLUICE_MODEL_EXCHANGE_H

#include <sluice/base/err.h>
#include <stddef.h>
#include <stdint.h>

struct sl_exchange {
    void *ctx;

    /* ---- among the tp ranks of one stage; unused at tp 1 ---- */

    /* Rank r's run of counts[r] floats lands at the sum of the counts before it, at every rank.
     * mine lies in its place within all. counts [tp] */
    enum sl_status (*all_gather)(void *ctx, const float *mine, float *all, const size_t *counts,
                                 struct sl_err *err);
    /* send holds one run per rank, send_counts[r] floats for rank r; recv gets recv_counts[r]
     * floats of rank r, in rank order. Counts [tp]; mine for myself is copied like the others. */
    enum sl_status (*all_to_all)(void *ctx, const float *send, const size_t *send_counts,
                                 float *recv, const size_t *recv_counts, struct sl_err *err);
    /* As all_gather, to rank 0 of the stage alone; all is NULL elsewhere, where mine is in a place
     * of its own. */
    enum sl_status (*gather)(void *ctx, const float *mine, float *all, const size_t *counts,
                             struct sl_err *err);

    /* ---- with the rank of the same tp_rank in another stage; unused at pp 1 ---- */

    enum sl_status (*send)(void *ctx, uint32_t stage, const float *data, size_t n,
                           struct sl_err *err);
    enum sl_status (*recv)(void *ctx, uint32_t stage, float *data, size_t n, struct sl_err *err);

    /* Called several times a layer, so that a slow rank is told from a hung one. May be NULL. */
    void (*progress)(void *ctx);
};

#endif
