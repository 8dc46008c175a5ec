/* Private to the engine: what its thread does for exports and imports. */
#ifndef SLUICE_ENGINE_TRANSFER_PRIVATE_H
#define SLUICE_ENGINE_TRANSFER_PRIVATE_H

#include <sluice/base/containers.h>
#include <sluice/engine/transfer.h>
#include <pthread.h>

struct job;
struct wire_export;
struct wire_ended;
struct wire_head;
struct wire_transfer;

/* Its part in the group's bookkeeping; the engine thread's alone. */
struct transfer {
    struct sl_list link; /* of the engine's exports or imports */
    uint64_t id;         /* unique at rank 0; 0: the other ranks do not know of it */
    uint64_t away;       /* rank 0: bit r: rank r has not closed its own */
    bool end_told;
    void *note; /* [n_note], rank 0's */
    uint32_t n_note;
};

struct sl_export {
    struct transfer t;
    struct sl_engine *e;
    struct sl_kv_part part;
    uint32_t n_pages;
    uint32_t n_owners;   /* job, reader, other ranks; a follower's: its reader */
    uint8_t (*keys)[32]; /* [n_pages] */

    pthread_mutex_t lock;
    pthread_cond_t more;
    uint32_t *pages;   /* [n_pages], the first n_pinned set */
    uint32_t n_pinned; /* rank 0: their pins are the export's until it is freed */
    uint32_t n_final, n_layers_done;
    bool ended;
    bool broken; /* ended, and what becomes final from now on is none of its pages */
    enum sl_status status;
    uint32_t n_readers; /* once it is broken no further one gets a row */
};

struct sl_import {
    struct transfer t;
    struct sl_engine *e;
    struct sl_kv_part part;
    uint32_t n_pages;
    uint8_t (*keys)[32]; /* [n_pages] */
    uint32_t *tokens;    /* [n_pages, page_size]; NULL at a follower */
    uint32_t n_complete; /* of the range, set at close */
    bool closed;         /* and only waits for the other ranks */
    atomic_bool stop;

    pthread_mutex_t lock;
    void *copy;  /* a row on its way to a device */
    bool failed; /* the device did not take one */
    pthread_cond_t answered;
    bool wants_pages; /* the second question */
    bool ready;       /* the last one was answered */
    bool broken;      /* the group was lost: nothing of it counts */
    uint32_t first, n_reserved;
    uint32_t n_settled; /* what all ranks that are done have */
    uint32_t n_away;    /* ranks that are not; a copy for the waiting thread */
    uint32_t *pages;    /* [n_pages], the first n_reserved set */
};

/* export.c and import.c. Commands of the inbox: all on the engine's thread, or after it has ended.
 */
void sl_export_begin(struct sl_engine *e, struct sl_export *x); /* before its job is submitted */
void sl_export_drop(struct sl_engine *e, struct sl_export *x);  /* one of its owners is done */
void sl_export_closed(struct sl_engine *e, struct sl_export *x);
void sl_export_break(struct sl_export *x, enum sl_status why, bool for_good);
bool sl_export_is_read(struct sl_export *x);
struct sl_export *sl_export_follow(struct sl_engine *e, const struct wire_head *h,
                                   const struct wire_transfer *t);
void sl_import_answer(struct sl_engine *e, struct sl_import *im);
void sl_import_settling(struct sl_engine *e, struct sl_import *im);
void sl_import_closed(struct sl_engine *e, struct sl_import *im);
void sl_import_break(struct sl_engine *e, struct sl_import *im); /* may free it */
void sl_import_rank_done(struct sl_engine *e, struct sl_import *im, uint32_t n_complete);
struct sl_import *sl_import_follow(struct sl_engine *e, const struct wire_head *h,
                                   const struct wire_transfer *t);

/* Around a step: pins pages that it completes, tells readers of each layer, makes them final. A
 * follower is told what rank 0 has pinned. */
void sl_exports_plan(struct sl_engine *e, const struct sl_plan *plan);
void sl_exports_follow(struct sl_engine *e, const struct sl_plan *plan,
                       const struct wire_export *of, uint32_t n);
void sl_exports_layer(void *engine, uint32_t layer, uint32_t n_rows);
void sl_exports_commit(struct sl_engine *e, enum sl_status status);
/* The job of the export ended. */
void sl_export_end(struct sl_engine *e, struct sl_export *x, enum sl_status status);

/* slice.c: heads of a row in the cache. Both sides contiguous; pure. */
void sl_kv_slice(const struct sl_kv_config *c, const void *row, uint32_t first, uint32_t n,
                 void *out);
void sl_kv_unslice(const struct sl_kv_config *c, void *row, uint32_t first, uint32_t n,
                   const void *in);
struct sl_kv_part sl_kv_part_of(const struct sl_engine *e, const struct sl_shard *s);
bool sl_kv_part_within(const struct sl_kv_part *p, const struct sl_kv_part *whole);

/* lead_transfers.c: rank 0. */
enum sl_status sl_lead_charter(struct sl_engine *e, struct sl_err *err);
void sl_lead_transfers(struct sl_engine *e); /* tells the others what they do not know yet */
bool sl_lead_import(struct sl_engine *e, struct sl_import *im);
void sl_lead_import_end(struct sl_engine *e, struct sl_import *im);
enum sl_status sl_lead_ended(struct sl_engine *e, uint32_t rank, const struct wire_ended *ended,
                             uint32_t n, struct sl_err *err);
int sl_lead_wait_ms(const struct sl_engine *e); /* how soon to ask again; -1: as ever */
/* The group was lost: nothing of it counts, and nobody else has pages any more. For good: nor does
 * what has not begun yet. */
void sl_transfers_lost(struct sl_engine *e, bool for_good);
bool sl_transfers_open(const struct sl_engine *e); /* somebody still reads or fills the cache */

/* follow_transfers.c: the others. */
enum sl_status sl_follow_transfer(struct sl_engine *e, const struct wire_head *h,
                                  struct sl_err *err);
void sl_follow_commands(struct sl_engine *e);
void sl_follow_ended(struct sl_engine *e, uint64_t id, uint32_t n_complete);
void sl_follow_lost(struct sl_engine *e); /* returns when all transfers are closed */
void sl_follow_close(struct sl_engine *e);

#endif
