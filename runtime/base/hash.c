/* Chained hash over the caller's buckets, and the 64-bit hash that feeds it (XXH3). */
#include <sluice/base/containers.h>
#include <sluice/base/err.h>

#include <string.h>
#include <xxhash.h>

uint64_t sl_hash64(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

void sl_hash_init(struct sl_hash *h, struct sl_hash_node **buckets, size_t n_buckets)
{
    sl_assert(n_buckets && !(n_buckets & (n_buckets - 1)));
    memset(buckets, 0, n_buckets * sizeof *buckets);
    *h = (struct sl_hash){.buckets = buckets, .mask = n_buckets - 1};
}

void sl_hash_insert(struct sl_hash *h, struct sl_hash_node *n, uint64_t hash)
{
    struct sl_hash_node **bucket = &h->buckets[hash & h->mask];
    n->hash = hash;
    n->next = *bucket;
    *bucket = n;
    h->n++;
}

static struct sl_hash_node *skip_to(struct sl_hash_node *n, uint64_t hash)
{
    while (n && n->hash != hash)
        n = n->next;
    return n;
}

struct sl_hash_node *sl_hash_first(const struct sl_hash *h, uint64_t hash)
{
    return skip_to(h->buckets[hash & h->mask], hash);
}

struct sl_hash_node *sl_hash_next(const struct sl_hash_node *n)
{
    return skip_to(n->next, n->hash);
}

void sl_hash_remove(struct sl_hash *h, struct sl_hash_node *n)
{
    struct sl_hash_node **at = &h->buckets[n->hash & h->mask];
    while (*at && *at != n)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = n->next;
    n->next = NULL;
    h->n--;
}
