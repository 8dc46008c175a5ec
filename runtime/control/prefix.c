/* The prefix index: full pages by the SHA-256 chain of their tokens (FIPS 180-4 for the hash).
 *
 * A chain key commits to every token before it and to the salt, so a page found under the right key
 * holds the right prefix; that its own tokens are compared too guards against our own mistakes. */
#include <sluice/control/kv.h>

#include <stdlib.h>
#include <string.h>

static uint64_t key_hash(const uint8_t key[32])
{
    uint64_t h;
    memcpy(&h, key, sizeof h); /* any 8 bytes of a SHA-256 are a good hash */
    return h;
}

static uint32_t *page_tokens(const struct sl_kv_pool *kv, uint32_t page)
{
    return kv->tokens + (size_t)page * kv->page_size;
}

void sl_prefix_key(const struct sl_kv_pool *kv, const uint8_t parent[32], const uint32_t *tokens,
                   uint8_t key[32])
{
    size_t token_bytes = kv->page_size * sizeof *tokens;
    memcpy(kv->hash_input, parent, 32);
    memcpy(kv->hash_input + 32, tokens, token_bytes);
    sl_sha256(kv->hash_input, 32 + token_bytes, key);
}

bool sl_prefix_keys(uint32_t page_size, const uint8_t salt[32], const uint32_t *tokens,
                    uint32_t n_pages, uint8_t (*keys)[32])
{
    struct sl_kv_pool hasher = {.page_size = page_size};
    hasher.hash_input = malloc(32 + (size_t)page_size * sizeof *tokens);
    if (!hasher.hash_input)
        return false;
    for (uint32_t i = 0; i < n_pages; i++)
        sl_prefix_key(&hasher, i ? keys[i - 1] : salt, tokens + (size_t)i * page_size, keys[i]);
    free(hasher.hash_input);
    return true;
}

static struct sl_kv_page *find(const struct sl_kv_pool *kv, const uint8_t key[32])
{
    struct sl_hash_node *n = sl_hash_first(&kv->index, key_hash(key));
    for (; n; n = sl_hash_next(n)) {
        struct sl_kv_page *p = SL_ENTRY(n, struct sl_kv_page, by_key);
        if (!memcmp(p->key, key, 32))
            return p;
    }
    return NULL;
}

static struct sl_kv_page *find_exact(const struct sl_kv_pool *kv, const uint8_t key[32],
                                     const uint32_t *tokens)
{
    if (!kv->tokens)
        return NULL;
    struct sl_kv_page *p = find(kv, key);
    if (!p || memcmp(page_tokens(kv, (uint32_t)(p - kv->pages)), tokens,
                     kv->page_size * sizeof *tokens) != 0)
        return NULL;
    return p;
}

bool sl_prefix_peek(const struct sl_kv_pool *kv, const uint8_t key[32], const uint32_t *tokens,
                    bool *unused)
{
    const struct sl_kv_page *p = find_exact(kv, key, tokens);
    if (!p)
        return false;
    *unused = !p->refs && !p->pins;
    return true;
}

bool sl_prefix_find(struct sl_kv_pool *kv, const uint8_t key[32], const uint32_t *tokens,
                    uint32_t *page)
{
    struct sl_kv_page *p = find_exact(kv, key, tokens);
    if (!p)
        return false;
    *page = (uint32_t)(p - kv->pages);
    sl_kv_ref(kv, *page);
    return true;
}

/* --- telling ---------------------------------------------------------------------------------- */

static void tell(struct sl_kv_pool *kv, struct sl_kv_page *p)
{
    struct sl_kv_event e = {.kind = SL_KV_STORED,
                            .has_parent = p->has_parent,
                            .tokens = page_tokens(kv, (uint32_t)(p - kv->pages))};
    memcpy(e.key, p->key, sizeof e.key);
    memcpy(e.parent, p->parent, sizeof e.parent);
    p->told = kv->round;
    sl_kv_events_push(kv->events, &e);
}

void sl_kv_retell(struct sl_kv_pool *kv)
{
    if (!kv->events)
        return;
    sl_kv_events_restart(kv->events);
    kv->events->overflowed = false;
    kv->round++;
    kv->tell_at = 0;
}

/* The first page of p's chain that this round has not told. */
static struct sl_kv_page *first_untold(const struct sl_kv_pool *kv, struct sl_kv_page *p)
{
    struct sl_kv_page *parent = p;
    while (p->has_parent && (parent = find(kv, p->parent)) && parent->told != kv->round)
        p = parent;
    return p;
}

bool sl_kv_tell(struct sl_kv_pool *kv, uint32_t most)
{
    if (!kv->events)
        return false;
    if (kv->events->overflowed)
        sl_kv_retell(kv);
    uint32_t room = sl_kv_events_room(kv->events);
    for (uint32_t left = most < room ? most : room; left && kv->tell_at < kv->n_pages;) {
        struct sl_kv_page *p = &kv->pages[kv->tell_at];
        if (!p->indexed || p->told == kv->round) {
            kv->tell_at++;
            continue;
        }
        tell(kv, first_untold(kv, p));
        left--;
    }
    return kv->tell_at < kv->n_pages;
}

bool sl_prefix_add(struct sl_kv_pool *kv, uint32_t page, const uint8_t *parent,
                   const uint8_t key[32], const uint32_t *tokens)
{
    struct sl_kv_page *p = &kv->pages[page];
    sl_assert((p->refs || p->pins) && !p->indexed);
    if (!kv->tokens || find(kv, key))
        return false;
    memcpy(p->key, key, 32);
    p->has_parent = parent != NULL;
    if (parent)
        memcpy(p->parent, parent, 32);
    memcpy(page_tokens(kv, page), tokens, kv->page_size * sizeof *tokens);
    sl_hash_insert(&kv->index, &p->by_key, key_hash(key));
    p->indexed = true;
    kv->n_indexed++;
    if (kv->events)
        tell(kv, p);
    return true;
}
