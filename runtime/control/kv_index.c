/* The router's copy of the workers' prefix indexes: a hash of page names, each with two bit sets of
 * workers, in order of use. */
#include <sluice/control/kv_index.h>

#include <sluice/base/containers.h>
#include <sluice/base/mem.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct sl_hash_node by_page;
    struct sl_list link; /* in use: by last use; else free */
    uint64_t page;
};

struct sl_kv_index {
    uint32_t n_slots, n_words, keys_max;
    struct sl_hash index;
    struct sl_hash_node **buckets;
    struct entry *entries;     /* [keys_max] */
    uint64_t *held, *guessed;  /* [keys_max, n_words] */
    uint64_t *alive;           /* [n_words] scratch of a match */
    uint32_t *n_held, *n_used; /* [n_slots] bits of each worker: said, and all */
    struct sl_list used, free; /* used: longest unused first */
    struct sl_kv_index_stats stats;
};

/* --- open, close ------------------------------------------------------------------------------ */

static bool take_memory(struct sl_kv_index *ix)
{
    size_t n_buckets = 1, n_bits;
    while (n_buckets < ix->keys_max)
        n_buckets *= 2;
    if (!sl_size_mul(ix->keys_max, ix->n_words, &n_bits))
        return false;
    ix->buckets = calloc(n_buckets, sizeof(struct sl_hash_node *));
    ix->entries = calloc(ix->keys_max, sizeof *ix->entries);
    ix->held = calloc(n_bits, sizeof *ix->held);
    ix->guessed = calloc(n_bits, sizeof *ix->guessed);
    ix->alive = calloc(ix->n_words, sizeof *ix->alive);
    ix->n_held = calloc(ix->n_slots, sizeof *ix->n_held);
    ix->n_used = calloc(ix->n_slots, sizeof *ix->n_used);
    if (!ix->buckets || !ix->entries || !ix->held || !ix->guessed || !ix->alive || !ix->n_held ||
        !ix->n_used)
        return false;
    sl_hash_init(&ix->index, ix->buckets, n_buckets);
    for (uint32_t i = 0; i < ix->keys_max; i++)
        sl_list_push_back(&ix->free, &ix->entries[i].link);
    return true;
}

enum sl_status sl_kv_index_open(uint32_t n_slots, uint32_t keys_max, struct sl_kv_index **out,
                                struct sl_err *err)
{
    if (!n_slots || !keys_max)
        return sl_fail(err, SL_INVALID, "kv index: %u workers, %u keys", n_slots, keys_max);
    struct sl_kv_index *ix = calloc(1, sizeof *ix);
    if (!ix)
        return sl_fail(err, SL_NO_MEMORY, "kv index: no memory");
    ix->n_slots = n_slots;
    ix->n_words = (n_slots + 63) / 64;
    ix->keys_max = keys_max;
    sl_list_init(&ix->used);
    sl_list_init(&ix->free);
    if (!take_memory(ix)) {
        sl_kv_index_close(ix);
        return sl_fail(err, SL_NO_MEMORY, "kv index: no memory for %u keys", keys_max);
    }
    *out = ix;
    return SL_OK;
}

void sl_kv_index_close(struct sl_kv_index *ix)
{
    if (!ix)
        return;
    free(ix->buckets);
    free(ix->entries);
    free(ix->held);
    free(ix->guessed);
    free(ix->alive);
    free(ix->n_held);
    free(ix->n_used);
    free(ix);
}

/* --- names ------------------------------------------------------------------------------------ */

uint64_t sl_kv_index_name(const uint8_t key[32])
{
    uint64_t name;
    memcpy(&name, key, sizeof name);
    return name;
}

void sl_kv_index_chain(const uint8_t salt[32], const uint32_t *tokens, uint32_t page_size,
                       uint32_t n_pages, uint64_t *chain)
{
    struct {
        uint8_t parent[32];
        uint32_t tokens[SL_KV_INDEX_PAGE_MAX];
    } input;
    sl_assert(page_size <= SL_KV_INDEX_PAGE_MAX);
    memcpy(input.parent, salt, sizeof input.parent);
    for (uint32_t i = 0; i < n_pages; i++) {
        memcpy(input.tokens, tokens + (size_t)i * page_size, page_size * sizeof *tokens);
        sl_sha256(&input, sizeof input.parent + page_size * sizeof *tokens, input.parent);
        chain[i] = sl_kv_index_name(input.parent);
    }
}

/* --- entries ---------------------------------------------------------------------------------- */

static struct entry *find(const struct sl_kv_index *ix, uint64_t page)
{
    struct sl_hash_node *n = sl_hash_first(&ix->index, page); /* a name is a hash already */
    return n ? SL_ENTRY(n, struct entry, by_page) : NULL;
}

static uint64_t *held_of(const struct sl_kv_index *ix, const struct entry *e)
{
    return ix->held + (size_t)(e - ix->entries) * ix->n_words;
}

static uint64_t *guessed_of(const struct sl_kv_index *ix, const struct entry *e)
{
    return ix->guessed + (size_t)(e - ix->entries) * ix->n_words;
}

static bool bit(const uint64_t *set, uint32_t slot)
{
    return set[slot / 64] >> (slot % 64) & 1;
}

/* Sets or clears both bits of a worker and keeps the counts. */
static void put(struct sl_kv_index *ix, struct entry *e, uint32_t slot, bool is_held,
                bool is_guessed)
{
    uint64_t *held = held_of(ix, e), *guessed = guessed_of(ix, e);
    uint64_t mask = (uint64_t)1 << (slot % 64);
    ix->n_used[slot] -= bit(held, slot) || bit(guessed, slot);
    ix->n_held[slot] -= bit(held, slot);
    held[slot / 64] = is_held ? held[slot / 64] | mask : held[slot / 64] & ~mask;
    guessed[slot / 64] = is_guessed ? guessed[slot / 64] | mask : guessed[slot / 64] & ~mask;
    ix->n_used[slot] += is_held || is_guessed;
    ix->n_held[slot] += is_held;
}

static bool is_empty(const struct sl_kv_index *ix, const struct entry *e)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < ix->n_words; i++)
        any |= held_of(ix, e)[i] | guessed_of(ix, e)[i];
    return !any;
}

static void drop(struct sl_kv_index *ix, struct entry *e)
{
    for (uint32_t s = 0; s < ix->n_slots; s++)
        put(ix, e, s, false, false);
    sl_hash_remove(&ix->index, &e->by_page);
    sl_list_remove(&e->link);
    sl_list_push_front(&ix->free, &e->link);
    ix->stats.n_keys--;
}

static void touch(struct sl_kv_index *ix, struct entry *e)
{
    sl_list_remove(&e->link);
    sl_list_push_back(&ix->used, &e->link);
}

static struct entry *find_or_make(struct sl_kv_index *ix, uint64_t page)
{
    struct entry *e = find(ix, page);
    if (e) {
        touch(ix, e);
        return e;
    }
    if (sl_list_empty(&ix->free)) {
        drop(ix, SL_ENTRY(ix->used.next, struct entry, link));
        ix->stats.n_evicted++;
    }
    e = SL_ENTRY(ix->free.next, struct entry, link);
    e->page = page;
    sl_hash_insert(&ix->index, &e->by_page, page);
    touch(ix, e);
    ix->stats.n_keys++;
    return e;
}

/* --- what is said and guessed ----------------------------------------------------------------- */

void sl_kv_index_stored(struct sl_kv_index *ix, uint32_t slot, uint64_t page)
{
    put(ix, find_or_make(ix, page), slot, true, false);
    ix->stats.n_stored++;
}

void sl_kv_index_removed(struct sl_kv_index *ix, uint32_t slot, uint64_t page)
{
    struct entry *e = find(ix, page);
    if (!e)
        return;
    put(ix, e, slot, false, false);
    if (is_empty(ix, e))
        drop(ix, e);
}

void sl_kv_index_guess(struct sl_kv_index *ix, uint32_t slot, uint64_t page)
{
    struct entry *e = find_or_make(ix, page);
    if (!bit(held_of(ix, e), slot))
        put(ix, e, slot, false, true);
}

void sl_kv_index_clear(struct sl_kv_index *ix, uint32_t slot, bool guesses)
{
    struct sl_list *next;
    if (!(guesses ? ix->n_used : ix->n_held)[slot])
        return;
    for (struct sl_list *l = ix->used.next; l != &ix->used; l = next) {
        struct entry *e = SL_ENTRY(l, struct entry, link);
        next = l->next;
        put(ix, e, slot, false, !guesses && bit(guessed_of(ix, e), slot));
        if (is_empty(ix, e))
            drop(ix, e);
    }
}

/* --- questions -------------------------------------------------------------------------------- */

/* Narrows `alive` to the workers that have this page too; those that drop out end at n_before. */
static bool narrow(struct sl_kv_index *ix, const struct entry *e, uint32_t n_before,
                   uint32_t *n_leading)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < ix->n_words; i++) {
        uint64_t has = e ? held_of(ix, e)[i] | guessed_of(ix, e)[i] : 0;
        for (uint64_t out = ix->alive[i] & ~has; out; out &= out - 1)
            n_leading[i * 64 + (uint32_t)__builtin_ctzll(out)] = n_before;
        any |= ix->alive[i] &= has;
    }
    return any != 0;
}

void sl_kv_index_match(struct sl_kv_index *ix, const uint64_t *chain, uint32_t n_pages,
                       uint32_t *n_leading)
{
    uint32_t i = 0;
    for (uint32_t w = 0; w < ix->n_words; w++) {
        uint32_t n = ix->n_slots - w * 64;
        ix->alive[w] = n >= 64 ? UINT64_MAX : ((uint64_t)1 << n) - 1;
    }
    while (i < n_pages && narrow(ix, find(ix, chain[i]), i, n_leading))
        i++;
    for (uint32_t w = 0; w < ix->n_words; w++)
        for (uint64_t in = ix->alive[w]; in; in &= in - 1)
            n_leading[w * 64 + (uint32_t)__builtin_ctzll(in)] = n_pages;
    while (i-- > 0) /* the head of a prefix is to stay longest */
        touch(ix, find(ix, chain[i]));
}

void sl_kv_index_stats(const struct sl_kv_index *ix, struct sl_kv_index_stats *out)
{
    *out = ix->stats;
}

uint32_t sl_kv_index_held(const struct sl_kv_index *ix, uint32_t slot)
{
    return ix->n_held[slot];
}

enum sl_status sl_kv_index_check(const struct sl_kv_index *ix, struct sl_err *err)
{
    uint32_t n_keys = 0, n_free = 0;
    uint64_t n_held = 0, n_used = 0, said_held = 0, said_used = 0;
    for (const struct sl_list *l = ix->free.next; l != &ix->free; l = l->next)
        n_free++;
    for (const struct sl_list *l = ix->used.next; l != &ix->used; l = l->next, n_keys++) {
        const struct entry *e = SL_ENTRY(l, struct entry, link);
        if (is_empty(ix, e) || find(ix, e->page) != e)
            return sl_fail(err, SL_FAILED, "kv index: page %016llx has no worker or is not found",
                           (unsigned long long)e->page);
        for (uint32_t s = 0; s < ix->n_slots; s++) {
            bool held = bit(held_of(ix, e), s), guessed = bit(guessed_of(ix, e), s);
            if (held && guessed)
                return sl_fail(err, SL_FAILED, "kv index: page %016llx is known and guessed",
                               (unsigned long long)e->page);
            n_held += held;
            n_used += held || guessed;
        }
    }
    for (uint32_t s = 0; s < ix->n_slots; s++) {
        said_held += ix->n_held[s];
        said_used += ix->n_used[s];
    }
    if (n_keys != ix->stats.n_keys || n_keys + n_free != ix->keys_max || n_keys != ix->index.n ||
        n_held != said_held || n_used != said_used)
        return sl_fail(err, SL_FAILED, "kv index: %u keys, %u free of %u, %llu held, %llu used",
                       n_keys, n_free, ix->keys_max, (unsigned long long)n_held,
                       (unsigned long long)n_used);
    return SL_OK;
}
