/* Private to the worker: one rank's part of some pages, brought in from whoever has pieces of it,
 * all of them at the same time. */
#ifndef SLUICE_SERVE_HAUL_H
#define SLUICE_SERVE_HAUL_H

#include "worker_kv.h"

#include <pthread.h>

#define HAUL_NOTE_BYTES (40 + SL_BULK_RANKS_BYTES)

struct haul {
    /* given */
    struct sl_bulk_layout layout;
    struct sl_kv_part part; /* that this rank holds */
    struct sl_import *im;
    uint32_t n_pages;
    uint64_t ticket;
    uint8_t key[32];
    struct sl_bulk_rank ranks[SL_LIMIT_ranks]; /* of the other side, with their readers */
    uint32_t n_ranks;
    /* Called once, with the first row: the end of the pages that have room. NULL: all have. */
    uint32_t (*make_room)(void *ctx);
    void *ctx;

    /* its own */
    struct pull *pulls;
    pthread_mutex_t lock;
    bool made_room;
    uint32_t end;

    /* results */
    uint32_t n_complete, n_bad;
};

/* Blocks until all pages are there or no more will come; results as of sl_bulk_fetch. */
enum sl_status haul_run(struct haul *h, struct sl_err *err);
void haul_free(struct haul *h);

/* Ticket, key and ranks for the other ranks of our side; get refuses what put does not write. */
uint32_t haul_note_put(const struct haul *h, uint8_t out[HAUL_NOTE_BYTES]);
enum sl_status haul_note_get(struct haul *h, const uint8_t *note, uint32_t n, struct sl_err *err);

#endif
