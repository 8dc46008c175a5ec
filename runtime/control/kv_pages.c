/* The pool of KV pages: free, cached, referenced and held pages. */
#include <sluice/control/kv.h>

#include <sluice/base/mem.h>
#include <stdlib.h>
#include <string.h>

static bool take_index_memory(struct sl_kv_pool *kv)
{
    size_t n_buckets = 1, n_tokens;
    while (n_buckets < kv->n_pages)
        n_buckets *= 2;
    if (!sl_size_mul(kv->n_pages, kv->page_size, &n_tokens))
        return false;
    kv->tokens = calloc(n_tokens, sizeof *kv->tokens);
    kv->hash_input = calloc(kv->page_size + 8U, sizeof *kv->tokens);
    kv->buckets = calloc(n_buckets, sizeof(struct sl_hash_node *));
    if (!kv->tokens || !kv->hash_input || !kv->buckets)
        return false;
    sl_hash_init(&kv->index, kv->buckets, n_buckets);
    return true;
}

enum sl_status sl_kv_open(struct sl_kv_pool *kv, uint32_t n_pages, uint32_t page_size,
                          bool prefix_index, struct sl_err *err)
{
    memset(kv, 0, sizeof *kv);
    sl_list_init(&kv->free);
    sl_list_init(&kv->lru);
    if (!n_pages || !page_size || page_size > UINT32_MAX / 8)
        return sl_fail(err, SL_INVALID, "kv: %u pages of %u positions", n_pages, page_size);
    kv->n_pages = n_pages;
    kv->page_size = page_size;
    kv->pages = calloc(n_pages, sizeof *kv->pages);
    if (!kv->pages || (prefix_index && !take_index_memory(kv))) {
        sl_kv_close(kv);
        return sl_fail(err, SL_NO_MEMORY, "kv: no memory for the table of %u pages", n_pages);
    }
    for (uint32_t p = 0; p < n_pages; p++)
        sl_list_push_back(&kv->free, &kv->pages[p].link);
    kv->n_free = n_pages;
    kv->tell_at = n_pages;
    kv->round = 1;
    return SL_OK;
}

void sl_kv_close(struct sl_kv_pool *kv)
{
    free(kv->pages);
    free(kv->tokens);
    free(kv->hash_input);
    free(kv->buckets);
    memset(kv, 0, sizeof *kv);
}

static void unindex(struct sl_kv_pool *kv, struct sl_kv_page *p)
{
    struct sl_kv_event e = {.kind = SL_KV_REMOVED};
    memcpy(e.key, p->key, sizeof e.key);
    if (kv->events)
        sl_kv_events_push(kv->events, &e);
    sl_hash_remove(&kv->index, &p->by_key);
    p->indexed = false;
    kv->n_indexed--;
}

static struct sl_kv_page *evict(struct sl_kv_pool *kv)
{
    struct sl_kv_page *p = SL_ENTRY(kv->lru.next, struct sl_kv_page, link);
    unindex(kv, p);
    kv->n_cached--;
    kv->n_evicted++;
    return p;
}

bool sl_kv_take(struct sl_kv_pool *kv, uint32_t *page)
{
    struct sl_kv_page *p;
    if (kv->n_free) {
        p = SL_ENTRY(kv->free.next, struct sl_kv_page, link);
        kv->n_free--;
    } else if (kv->n_cached) {
        p = evict(kv);
    } else {
        return false;
    }
    sl_list_remove(&p->link);
    p->refs = 1;
    *page = (uint32_t)(p - kv->pages);
    return true;
}

void sl_kv_ref(struct sl_kv_pool *kv, uint32_t page)
{
    struct sl_kv_page *p = &kv->pages[page];
    sl_assert(p->refs || p->indexed);
    if (p->refs++)
        return;
    if (p->pins) {
        kv->n_held--;
        return;
    }
    sl_list_remove(&p->link);
    kv->n_cached--;
}

/* To the cached or free ones: nobody has it any more. */
static void put_back(struct sl_kv_pool *kv, struct sl_kv_page *p)
{
    if (p->indexed) {
        sl_list_push_back(&kv->lru, &p->link);
        kv->n_cached++;
    } else {
        sl_list_push_front(&kv->free, &p->link); /* warm in the caches of the machine */
        kv->n_free++;
    }
}

void sl_kv_release(struct sl_kv_pool *kv, uint32_t page)
{
    struct sl_kv_page *p = &kv->pages[page];
    sl_assert(p->refs);
    if (--p->refs)
        return;
    if (p->pins)
        kv->n_held++;
    else
        put_back(kv, p);
}

void sl_kv_pin(struct sl_kv_pool *kv, uint32_t page)
{
    struct sl_kv_page *p = &kv->pages[page];
    sl_assert(p->refs || p->pins);
    p->pins++;
}

void sl_kv_unpin(struct sl_kv_pool *kv, uint32_t page)
{
    struct sl_kv_page *p = &kv->pages[page];
    sl_assert(p->pins);
    if (--p->pins || p->refs)
        return;
    kv->n_held--;
    put_back(kv, p);
}

bool sl_kv_take_held(struct sl_kv_pool *kv, uint32_t *page)
{
    if (!sl_kv_take(kv, page))
        return false;
    sl_kv_pin(kv, *page);
    sl_kv_release(kv, *page);
    return true;
}

void sl_prefix_reset(struct sl_kv_pool *kv)
{
    for (uint32_t i = 0; i < kv->n_pages && kv->n_indexed; i++) {
        struct sl_kv_page *p = &kv->pages[i];
        if (!p->indexed)
            continue;
        unindex(kv, p);
        if (p->refs || p->pins)
            continue;
        sl_list_remove(&p->link);
        sl_list_push_back(&kv->free, &p->link);
        kv->n_cached--;
        kv->n_free++;
    }
    sl_kv_retell(kv); /* "cleared", and nothing to tell after it */
}

static uint32_t count_list(const struct sl_list *head, uint32_t most)
{
    uint32_t n = 0;
    for (const struct sl_list *l = head->next; l != head && n <= most; l = l->next)
        n++;
    return n;
}

enum sl_status sl_kv_check(const struct sl_kv_pool *kv, struct sl_err *err)
{
    uint32_t n_free = 0, n_cached = 0, n_indexed = 0, n_held = 0;
    for (uint32_t i = 0; i < kv->n_pages; i++) {
        const struct sl_kv_page *p = &kv->pages[i];
        bool in_use = p->refs || p->pins;
        n_free += !in_use && !p->indexed;
        n_cached += !in_use && p->indexed;
        n_held += !p->refs && p->pins;
        n_indexed += p->indexed;
        bool listed = p->link.next && p->link.next != &p->link;
        if (listed == in_use)
            return sl_fail(err, SL_FAILED,
                           "kv: page %u has %u references, %u pins and is %s a list", i, p->refs,
                           p->pins, listed ? "on" : "off");
    }
    if (n_held != kv->n_held)
        return sl_fail(err, SL_FAILED, "kv: %u pages held, counted %u", kv->n_held, n_held);
    if (n_free != kv->n_free || n_cached != kv->n_cached || n_indexed != kv->n_indexed)
        return sl_fail(err, SL_FAILED, "kv: %u free, %u cached, %u indexed, counted %u, %u, %u",
                       kv->n_free, kv->n_cached, kv->n_indexed, n_free, n_cached, n_indexed);
    if (count_list(&kv->free, n_free) != n_free || count_list(&kv->lru, n_cached) != n_cached)
        return sl_fail(err, SL_FAILED, "kv: lists do not hold %u free and %u cached pages", n_free,
                       n_cached);
    if (kv->tokens && kv->index.n != n_indexed)
        return sl_fail(err, SL_FAILED, "kv: index of %zu entries for %u pages", kv->index.n,
                       n_indexed);
    return SL_OK;
}
