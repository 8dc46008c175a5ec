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
    WIRE_STOP      /* rank 0 leaves for good */
};

struct wire_head {
    uint32_t magic, kind;
    uint64_t step;
    uint32_t n_seq, n_tok, n_logits, n_pages; /* of a plan; page table entries in all */
};

/* What one engine was opened with: equal on all ranks. */
struct wire_limits {
    uint32_t max_seqs, max_rows, max_len, n_vocab;
    uint32_t n_pages, page_size;
};

/* Bytes of the largest body that fits these limits; SIZE_MAX when that is not a size. */
size_t sl_wire_body_max(const struct wire_limits *l);
/* Writes the head and, into `body` of sl_wire_body_max bytes, the arrays; returns their bytes. */
size_t sl_wire_plan_put(const struct sl_plan *p, struct wire_head *head, uint32_t *body);
struct wire_head sl_wire_head(enum wire_kind kind, uint64_t step);

/* SL_INVALID for a head that no rank 0 with these limits writes; else the bytes that follow. */
enum sl_status sl_wire_head_check(const struct wire_head *h, const struct wire_limits *l,
                                  size_t *body_bytes, struct sl_err *err);
/* A plan over `body` (4-byte aligned, as many bytes as the head's check said): borrowed, without
 * ids and users. SL_INVALID for what the scheduler never plans. */
enum sl_status sl_wire_plan_get(const struct wire_head *h, const struct wire_limits *l,
                                const uint32_t *body, struct sl_plan *out, struct sl_err *err);

#endif
