/* KV pages out of one engine and into another: bitwise what the other would have computed.
 *
 * Out: a request that is only prefilled, and whose full pages can be read row by row (one row per
 * page and layer) as soon as the layer is computed, straight from the cache and from another
 * thread: the pages are pinned until the export is closed. A page is final only after the step that
 * completed it was committed. In: pages are reserved, filled by another thread straight in the
 * cache, and entered into the prefix index once they are known to be right; the request that is
 * submitted next finds them there and computes what is missing. Nobody sees a page before.
 *
 * Ranks. Each rank of a group holds its layers and KV heads of every page, under the same page
 * number. Rank 0 has the scheduler: opening an export or reserving for an import there makes an
 * export or import at every other rank, which its owner gets as an order, with a note of rank 0's
 * owner. Pages are given back only when every rank has closed its own, or the group is lost, and
 * then no rank joins a group again before its transfers are closed; so nobody reads or fills a page
 * that has become another's. Of an import that counts which every rank has; of one in a group that
 * was lost, nothing.
 *
 * Threads: open and close from any thread; one thread reads with a reader, or fills a row. Close
 * every reader, export and import before the engine. */
#ifndef SLUICE_ENGINE_TRANSFER_H
#define SLUICE_ENGINE_TRANSFER_H

#include <sluice/engine/engine.h>
#include <stdatomic.h>

/* The shape of the whole model's pages. */
struct sl_kv_layout {
    uint32_t page_size, n_layers, n_heads;
    uint32_t head_bytes; /* K and V of one head in one page and layer */
};
/* False when pages cannot leave or enter: there is no prefix cache. */
bool sl_engine_kv_layout(const struct sl_engine *e, struct sl_kv_layout *out);

/* Layers and KV heads, counted in the model. A row of a part is one layer of one page, packed as a
 * cache of these heads alone: K [n_heads, page_size, head_dim] (int8: and scales), then V. */
struct sl_kv_part {
    uint32_t layer_first, n_layers, head_first, n_heads;
};
/* What this engine holds, and what each rank of its group does, as the group is now; `out`
 * [SL_LIMIT_ranks], returns their number. From any thread. */
struct sl_kv_part sl_engine_kv_part(struct sl_engine *e);
uint32_t sl_engine_kv_parts(struct sl_engine *e, struct sl_kv_part *out);

/* --- out -------------------------------------------------------------------------------------- */

struct sl_export;
struct sl_export_reader;

/* Submits `r` to be computed up to its last full page and not sampled: it ends with SL_END_LENGTH
 * and without tokens. The note goes to the other ranks' owners. Fails as sl_engine_submit does, and
 * with SL_INVALID for less than a page. */
enum sl_status sl_export_open(struct sl_engine *e, const struct sl_engine_request *r,
                              const void *note, uint32_t n_note, struct sl_export **out,
                              struct sl_err *err);
/* Waits for room in the engine's inbox; the request itself goes on unless cancelled. */
void sl_export_close(struct sl_export *x);
uint32_t sl_export_n_pages(const struct sl_export *x);
/* The group was lost: no reader gets anything any more, and a follower's is to be closed soon, as its
 * rank is in no group before. */
bool sl_export_is_lost(struct sl_export *x);
/* Of page i; it commits to all pages before. */
const uint8_t *sl_export_key(const struct sl_export *x, uint32_t i);

/* Reads a part of the pages from `first` on. SL_INVALID for what this rank does not hold. Several
 * readers may read side by side. Close them before the export. */
enum sl_status sl_export_read(struct sl_export *x, const struct sl_kv_part *part, uint32_t first,
                              struct sl_export_reader **out, struct sl_err *err);
void sl_export_read_end(struct sl_export_reader *r);
enum sl_export_kind {
    SL_EXPORT_WAIT, /* nothing new within the time */
    SL_EXPORT_ROW,  /* `row` of page and layer, valid until the next call; layers of a page ascend */
    SL_EXPORT_PAGE, /* all rows of the page were handed out and are final */
    SL_EXPORT_END   /* every page was, or `status` says why no more will come */
};
struct sl_export_unit {
    enum sl_export_kind kind;
    uint32_t page, layer;
    const void *row;
    enum sl_status status;
};
void sl_export_next(struct sl_export_reader *r, uint32_t wait_ms, struct sl_export_unit *out);

/* --- in --------------------------------------------------------------------------------------- */

struct sl_import;

/* For the n_pages first full pages of `tokens`: asks the engine how many it has, and waits up to
 * wait_ms for its answer (it may be in a long step). SL_TIMEOUT, SL_NO_MEMORY. */
enum sl_status sl_import_open(struct sl_engine *e, const uint8_t salt[32], const uint32_t *tokens,
                              uint32_t n_pages, uint32_t wait_ms, struct sl_import **out,
                              struct sl_err *err);
/* Leading pages that are cached already: the others are to come. */
uint32_t sl_import_first(const struct sl_import *im);
/* Asks for pages to fill, once; to be called when something is there to be filled with, as nobody
 * else has them until then. Pages [first, returned) may be filled; there was no room for more. The
 * note goes to the other ranks' owners, who are to fill their parts of them. */
uint32_t sl_import_reserve(struct sl_import *im, const void *note, uint32_t n_note,
                           uint32_t wait_ms);
/* Of a follower's import: what it was opened with. */
uint32_t sl_import_end(const struct sl_import *im);
const uint8_t (*sl_import_keys(const struct sl_import *im))[32]; /* [n_pages] from page 0 on */
/* Where the row of a page in that range goes, when the host computes and the part has all heads that
 * this rank holds; else NULL: to be given to sl_import_put. */
void *sl_import_row(const struct sl_import *im, uint32_t page, uint32_t layer,
                    const struct sl_kv_part *part);
void sl_import_put(struct sl_import *im, uint32_t page, uint32_t layer,
                   const struct sl_kv_part *part, const void *row);
/* Set when there is no sense in going on: by the next, or because the group was lost. */
const atomic_bool *sl_import_stop(const struct sl_import *im);
void sl_import_give_up(struct sl_import *im);
/* Rank 0: this rank has the first n_complete pages from `first` on. Waits for the others to be done
 * and says how many all of them have; 0 when they are not done in time. */
uint32_t sl_import_settle(struct sl_import *im, uint32_t n_complete, uint32_t wait_ms);
/* The first n_complete pages from `first` on are right and enter the prefix index before any request
 * that is submitted after this call; the others are given back. At a follower: what this rank has. */
void sl_import_close(struct sl_import *im, uint32_t n_complete);

/* --- followers -------------------------------------------------------------------------------- */

enum sl_order_kind {
    SL_ORDER_CHARTER, /* once per group: what rank 0's owner gave as its charter */
    SL_ORDER_EXPORT,  /* `x`, to be closed */
    SL_ORDER_IMPORT   /* `im`, to be closed: its pages are reserved */
};
struct sl_order {
    enum sl_order_kind kind;
    struct sl_export *x;
    struct sl_import *im;
    uint32_t n_note;
    uint8_t note[];
};
/* A follower's owner: the next one, to be freed with free(), or NULL. It must be looked for now and
 * then, as long as the engine is open. */
struct sl_order *sl_engine_take_order(struct sl_engine *e);
int sl_engine_order_fd(struct sl_engine *e);

#define SL_KV_ADDRESS_MAX 240
/* What a follower's owner tells that of rank 0: where it serves its part, and figures so far. */
struct sl_kv_figures {
    uint64_t bytes_sent, n_bad;
};
void sl_engine_kv_say(struct sl_engine *e, const char *address, const struct sl_kv_figures *f);
/* Rank 0: that, of one rank ("": not known yet), and the sum over all followers. */
void sl_engine_kv_address(struct sl_engine *e, uint32_t rank, char out[SL_KV_ADDRESS_MAX]);
void sl_engine_kv_figures(struct sl_engine *e, struct sl_kv_figures *out);

#endif
