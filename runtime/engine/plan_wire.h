/* A step's plan as bytes, from rank 0 to the others: private to the engine.
 *
 * A head of fixed size, then (for a plan) its arrays as 32-bit numbers one behind the other. The
 * byte order is the machine's: ranks of a group share one architecture, and the magic number says
 * so. A receiver believes nothing: sizes are bounded by what both sides planned at open before the
 * body is taken, every number is range-checked before the model sees it. */
#ifndef SLUICE_ENGINE_PLAN_WIRE_H
#define SLUICE_ENGINE_PLAN_WIRE_H

#include <sluice/base/err.h>
#include <sluice/control/sched.h>
#include <stdint.h>

enum wire_kind {
    WIRE_PLAN = 1, /* compute this step */
    WIRE_STATUS,   /* answer with a struct wire_status */
    WIRE_STOP,     /* rank 0 leaves for good */
    WIRE_EXPORT,   /* pages of a prompt will be read: their keys */
    WIRE_IMPORT,   /* these pages are to be filled: numbers and keys */
    WIRE_END,      /* of that transfer nothing more comes, or is wanted */
    WIRE_CHARTER   /* what rank 0's owner has to say to the others' */
};

struct wire_head {
    uint32_t magic, kind;
    uint64_t step; /* of a plan; of the others: the transfer */
    uint64_t done; /* the last step that ended well at rank 0 */
    uint32_t n_seq, n_tok, n_logits,
        n_pages;            /* of a plan: page table entries; of a transfer: pages */
    uint32_t n_exports;     /* of a plan */
    uint32_t first, n_note; /* of a transfer: page before those, bytes */
    uint32_t zero;
};

/* A sequence of a plan whose pages are read: so many of them are full after the step. */
struct wire_export {
    uint32_t seq, n_pinned, id_low, id_high;
};

/* What one engine was opened with: equal on all ranks. */
struct wire_limits {
    uint32_t max_seqs, max_rows, max_len, n_vocab;
    uint32_t n_pages, page_size;
};

/* Bytes of the largest body that fits these limits; SIZE_MAX when that is not a size. */
size_t sl_wire_body_max(const struct wire_limits *l);
/* Writes the head and, into `body` of sl_wire_body_max bytes, the arrays; returns their bytes. */
size_t sl_wire_plan_put(const struct sl_plan *p, const struct wire_export *exports,
                        uint32_t n_exports, struct wire_head *head, uint32_t *body);
struct wire_head sl_wire_head(enum wire_kind kind, uint64_t step);

/* SL_INVALID for a head that no rank 0 with these limits writes; else the bytes that follow. */
enum sl_status sl_wire_head_check(const struct wire_head *h, const struct wire_limits *l,
                                  size_t *body_bytes, struct sl_err *err);
/* A plan over `body` (4-byte aligned, as many bytes as the head's check said): borrowed, without
 * ids and users, and its h->n_exports exports. SL_INVALID for what the scheduler never plans. */
enum sl_status sl_wire_plan_get(const struct wire_head *h, const struct wire_limits *l,
                                const uint32_t *body, struct sl_plan *out,
                                const struct wire_export **exports, struct sl_err *err);

/* EXPORT, IMPORT and CHARTER. All borrowed; what a kind has not is NULL. */
struct wire_transfer {
    const uint32_t *pages;     /* [n_pages], of an import */
    const uint8_t (*keys)[32]; /* [n_pages] */
    const uint8_t *note;       /* [n_note] */
};
/* The head is filled but for its sizes of other kinds; returns the bytes of the body. */
size_t sl_wire_transfer_put(const struct wire_head *h, const struct wire_transfer *t,
                            uint32_t *body);
enum sl_status sl_wire_transfer_get(const struct wire_head *h, const struct wire_limits *l,
                                    const uint32_t *body, struct wire_transfer *out,
                                    struct sl_err *err);

#endif
