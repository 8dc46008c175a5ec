/* KV pages of one worker: a pool with reference counts and the prefix index over full pages.
 *
 * A page is free, cached (in the index, nobody uses it), referenced, or held: pinned from outside
 * the sequences (its bits are on their way to or from another worker) and otherwise unused. A
 * pinned page is handed to nobody until its pins are gone, so its bits stay as they are. Only a
 * page that one sequence alone references and that is not in the index may be written; a page in
 * the index is read-only until evicted. As only full pages are shared, nothing is ever copied on
 * write. The key of page i is SHA-256(key of page i - 1, tokens of page i) with a salt before page
 * 0, so a key names the whole prefix; a hit compares the page's tokens as well. Cached pages are
 * evicted least recently used first. Pure: no clock, no I/O, no locks; all memory is taken at open.
 * */
#ifndef SLUICE_CONTROL_KV_H
#define SLUICE_CONTROL_KV_H

#include <sluice/base/containers.h>
#include <sluice/base/err.h>
#include <sluice/control/kv_events.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_kv_page {
    struct sl_list link;        /* free pages, or cached pages in LRU order, or on no list */
    struct sl_hash_node by_key; /* while indexed */
    uint8_t key[32];
    uint8_t parent[32]; /* key of the page before, while indexed and has_parent */
    uint32_t refs; /* by sequences */
    uint32_t pins; /* by transfers */
    uint32_t told; /* round of sl_kv_tell in which it was last told */
    bool indexed, has_parent;
};

struct sl_kv_pool {
    uint32_t n_pages, page_size;
    uint32_t n_free, n_cached; /* referenced or held: the rest */
    uint32_t n_held;
    uint32_t n_indexed;
    uint64_t n_evicted;
    struct sl_kv_page *pages;  /* [n_pages] */
    uint32_t *tokens;          /* [n_pages, page_size], set while indexed; NULL: no index */
    uint8_t *hash_input;       /* [32 + 4 * page_size] scratch of sl_prefix_key */
    struct sl_hash_node **buckets;
    struct sl_hash index;
    struct sl_list free, lru; /* least recently used first */
    struct sl_kv_events *events; /* told of every change of the index; NULL: nobody listens */
    uint32_t round, tell_at;     /* of telling all pages again; tell_at n_pages: done */
};

/* SL_INVALID for no pages or an empty page, SL_NO_MEMORY. */
enum sl_status sl_kv_open(struct sl_kv_pool *kv, uint32_t n_pages, uint32_t page_size,
                          bool prefix_index, struct sl_err *err);
void sl_kv_close(struct sl_kv_pool *kv);

/* Pages that sl_kv_take can still hand out. */
static inline uint32_t sl_kv_available(const struct sl_kv_pool *kv)
{
    return kv->n_free + kv->n_cached;
}
/* A page nobody uses, referenced once: a free one, else the longest unused cached one. False when
 * every page is referenced. */
bool sl_kv_take(struct sl_kv_pool *kv, uint32_t *page);
void sl_kv_ref(struct sl_kv_pool *kv, uint32_t page);
/* Drops one reference; an indexed page stays cached, any other is free. Release the pages of a
 * sequence last first, so that the tail of a prefix is evicted before its head. */
void sl_kv_release(struct sl_kv_pool *kv, uint32_t page);

/* Keeps a referenced or held page from being handed out, however its references change. */
void sl_kv_pin(struct sl_kv_pool *kv, uint32_t page);
void sl_kv_unpin(struct sl_kv_pool *kv, uint32_t page);
/* A page nobody uses, pinned once: held. False when every page is referenced or held. */
bool sl_kv_take_held(struct sl_kv_pool *kv, uint32_t *page);

/* Key of a full page after `parent` (the salt before the first page); `key` may be `parent`. */
void sl_prefix_key(const struct sl_kv_pool *kv, const uint8_t parent[32], const uint32_t *tokens,
                   uint8_t key[32]);
/* The keys of the first n_pages pages of `tokens`, from any thread. False when out of memory. */
bool sl_prefix_keys(uint32_t page_size, const uint8_t salt[32], const uint32_t *tokens,
                    uint32_t n_pages, uint8_t (*keys)[32]);
/* The page with this key and these tokens, with a reference added. */
bool sl_prefix_find(struct sl_kv_pool *kv, const uint8_t key[32], const uint32_t *tokens,
                    uint32_t *page);
/* Whether sl_prefix_find would hit; *unused: it would turn a cached page into a referenced one. */
bool sl_prefix_peek(const struct sl_kv_pool *kv, const uint8_t key[32], const uint32_t *tokens,
                    bool *unused);
/* Enters a computed page that is referenced or held; `parent` is the key of the page before, NULL
 * at the first. False when the key is taken: the page stays private. */
bool sl_prefix_add(struct sl_kv_pool *kv, uint32_t page, const uint8_t *parent,
                   const uint8_t key[32], const uint32_t *tokens);
/* Empties the index. Cached pages become free; referenced and held ones stay with who has them. */
void sl_prefix_reset(struct sl_kv_pool *kv);

/* Begins to tell all indexed pages again, after "cleared". */
void sl_kv_retell(struct sl_kv_pool *kv);
/* Goes on with it, also when the ring of events has overflowed, by at most `most` events and never
 * more than the ring has room for. True while something is left to tell. */
bool sl_kv_tell(struct sl_kv_pool *kv, uint32_t most);

/* SL_FAILED with the first broken invariant. O(n_pages). */
enum sl_status sl_kv_check(const struct sl_kv_pool *kv, struct sl_err *err);

#endif
