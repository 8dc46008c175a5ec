/* KV pages out of one engine and into another: bitwise what the other would have computed.
 *
 * Out: a request that is only prefilled, and whose full pages can be read row by row (one row per
 * page and layer) as soon as the layer is computed, straight from the cache and from another
 * thread: the pages are pinned until the export is closed. A page is final only after the step that
 * completed it was committed. In: pages are reserved, filled by another thread straight in the
 * cache, and entered into the prefix index once they are known to be right; the request that is
 * submitted next finds them there and computes what is missing. Nobody sees a page before.
 *
 * Threads: open and close from any thread; one thread reads or fills. Close every export and import
 * before the engine. */
#ifndef SLUICE_ENGINE_TRANSFER_H
#define SLUICE_ENGINE_TRANSFER_H

#include <sluice/engine/engine.h>

/* The shape of this engine's pages. */
struct sl_kv_layout {
    uint32_t page_size, n_layers;
    uint32_t row_bytes; /* of one page in one layer */
};
/* False when pages cannot leave or enter: there is no prefix cache, or this is one of several
 * ranks, each of which has a part of every page. */
bool sl_engine_kv_layout(const struct sl_engine *e, struct sl_kv_layout *out);

struct sl_export;

/* Submits `r` to be computed up to its last full page and not sampled: it ends with SL_END_LENGTH
 * and without tokens. Fails as sl_engine_submit does, and with SL_INVALID for less than a page. */
enum sl_status sl_export_open(struct sl_engine *e, const struct sl_engine_request *r,
                              struct sl_export **out, struct sl_err *err);
/* Waits for room in the engine's inbox; the request itself goes on unless cancelled. */
void sl_export_close(struct sl_export *x);
uint32_t sl_export_n_pages(const struct sl_export *x);
/* Of page i; it commits to all pages before. */
const uint8_t *sl_export_key(const struct sl_export *x, uint32_t i);
/* Pages before `first` are not wanted. Before the first sl_export_next. */
void sl_export_skip(struct sl_export *x, uint32_t first);

enum sl_export_kind {
    SL_EXPORT_WAIT, /* nothing new within the time */
    SL_EXPORT_ROW,  /* `row` of page and layer, valid until the next call; layers ascend */
    SL_EXPORT_PAGE, /* all rows of the page were handed out and are final */
    SL_EXPORT_END   /* every page was, or `status` says why no more will come */
};
struct sl_export_unit {
    enum sl_export_kind kind;
    uint32_t page, layer;
    const void *row;
    enum sl_status status;
};
void sl_export_next(struct sl_export *x, uint32_t wait_ms, struct sl_export_unit *out);

struct sl_import;

/* For the n_pages first full pages of `tokens`: asks the engine how many it has, and waits up to
 * wait_ms for its answer (it may be in a long step). SL_TIMEOUT, SL_NO_MEMORY. */
enum sl_status sl_import_open(struct sl_engine *e, const uint8_t salt[32], const uint32_t *tokens,
                              uint32_t n_pages, uint32_t wait_ms, struct sl_import **out,
                              struct sl_err *err);
/* Leading pages that are cached already: the others are to come. */
uint32_t sl_import_first(const struct sl_import *im);
/* Asks for pages to fill, once; to be called when something is there to be filled with, as nobody
 * else has them until then. Pages [first, returned) may be filled; there was no room for more. */
uint32_t sl_import_reserve(struct sl_import *im, uint32_t wait_ms);
const uint8_t (*sl_import_keys(const struct sl_import *im))[32]; /* [n_pages] */
/* Where the row of a page in that range goes; it is filled before the next call. */
void *sl_import_row(struct sl_import *im, uint32_t page, uint32_t layer);
/* The first n_complete pages from `first` on are right and enter the prefix index before any request
 * that is submitted after this call; the others are given back. */
void sl_import_close(struct sl_import *im, uint32_t n_complete);

#endif
