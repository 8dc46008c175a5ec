/* Which worker has which page of which prefix in its cache: a router's copy of many prefix indexes.
 *
 * A page is named by the first 8 bytes of its key (sl_prefix_key), which any router computes from
 * salt and tokens as the worker does. For each key two sets of workers: those that said they hold
 * it, and those guessed to, since a request with that prefix was sent there; a worker's own word
 * about a page replaces the guess. Bounded: the key unused for the longest gives way. Pure; a wrong
 * entry costs time, never an answer. */
#ifndef SLUICE_CONTROL_KV_INDEX_H
#define SLUICE_CONTROL_KV_INDEX_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_KV_INDEX_PAGE_MAX 256 /* tokens; a page divides an attention segment */

struct sl_kv_index;

/* Workers are slots 0 .. n_slots - 1. SL_INVALID for none of either, SL_NO_MEMORY. */
enum sl_status sl_kv_index_open(uint32_t n_slots, uint32_t keys_max, struct sl_kv_index **out,
                                struct sl_err *err);
void sl_kv_index_close(struct sl_kv_index *ix);

/* The name of a page with this key. */
uint64_t sl_kv_index_name(const uint8_t key[32]);
/* Names of the full pages of a prompt: chain[i] for tokens [0, (i + 1) * page_size). */
void sl_kv_index_chain(const uint8_t salt[32], const uint32_t *tokens, uint32_t page_size,
                       uint32_t n_pages, uint64_t *chain);

void sl_kv_index_stored(struct sl_kv_index *ix, uint32_t slot, uint64_t page);
void sl_kv_index_removed(struct sl_kv_index *ix, uint32_t slot, uint64_t page);
void sl_kv_index_guess(struct sl_kv_index *ix, uint32_t slot, uint64_t page);
/* Forgets what the worker said; `guesses` too: it is gone. */
void sl_kv_index_clear(struct sl_kv_index *ix, uint32_t slot, bool guesses);

/* n_leading[slot] = how many leading pages of the chain the worker has or is guessed to have.
 * Counts as use of what any worker has. */
void sl_kv_index_match(struct sl_kv_index *ix, const uint64_t *chain, uint32_t n_pages,
                       uint32_t *n_leading);

struct sl_kv_index_stats {
    uint32_t n_keys;
    uint64_t n_stored, n_evicted;
};
void sl_kv_index_stats(const struct sl_kv_index *ix, struct sl_kv_index_stats *out);
/* Pages this worker said it holds, as far as they are remembered. */
uint32_t sl_kv_index_held(const struct sl_kv_index *ix, uint32_t slot);
/* SL_FAILED with the first broken invariant. */
enum sl_status sl_kv_index_check(const struct sl_kv_index *ix, struct sl_err *err);

#endif
