/* Intrusive containers: the caller owns the nodes, nothing here allocates (but the hash's bucket
 * array, given by the caller). SL_ENTRY(node, type, member) finds the object around a node. */
#ifndef SLUICE_BASE_CONTAINERS_H
#define SLUICE_BASE_CONTAINERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

/* Doubly linked ring; the head is a node. A node not on a list points to itself or is zeroed. */
struct sl_list {
    struct sl_list *next, *prev;
};
static inline void sl_list_init(struct sl_list *l)
{
    l->next = l->prev = l;
}
static inline bool sl_list_empty(const struct sl_list *l)
{
    return l->next == l;
}
static inline void sl_list_insert_after(struct sl_list *at, struct sl_list *n)
{
    n->prev = at;
    n->next = at->next;
    at->next->prev = n;
    at->next = n;
}
static inline void sl_list_push_front(struct sl_list *head, struct sl_list *n)
{
    sl_list_insert_after(head, n);
}
static inline void sl_list_push_back(struct sl_list *head, struct sl_list *n)
{
    sl_list_insert_after(head->prev, n);
}
/* Leaves n pointing to itself, so that removing twice is harmless. */
static inline void sl_list_remove(struct sl_list *n)
{
    if (!n->next)
        return;
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->next = n->prev = n;
}

/* Pairing heap, smallest first by `less`. Nodes may be removed from anywhere. */
struct sl_heap_node {
    struct sl_heap_node *child, *next, *prev;
};
typedef bool sl_heap_less(const struct sl_heap_node *a, const struct sl_heap_node *b);
struct sl_heap {
    struct sl_heap_node *root;
    sl_heap_less *less;
    size_t n;
};
void sl_heap_init(struct sl_heap *h, sl_heap_less *less);
void sl_heap_insert(struct sl_heap *h, struct sl_heap_node *n);
struct sl_heap_node *sl_heap_min(const struct sl_heap *h);
void sl_heap_remove(struct sl_heap *h, struct sl_heap_node *n);

/* Chained hash over caller-given buckets (a power of two, fixed for life). The caller computes the
 * 64-bit hash (sl_hash64) and compares keys itself while walking sl_hash_first/next. */
struct sl_hash_node {
    struct sl_hash_node *next;
    uint64_t hash;
};
struct sl_hash {
    struct sl_hash_node **buckets;
    size_t mask;
    size_t n;
};
void sl_hash_init(struct sl_hash *h, struct sl_hash_node **buckets, size_t n_buckets);
void sl_hash_insert(struct sl_hash *h, struct sl_hash_node *n, uint64_t hash);
struct sl_hash_node *sl_hash_first(const struct sl_hash *h, uint64_t hash);
struct sl_hash_node *sl_hash_next(const struct sl_hash_node *n); /* same 64-bit hash only */
void sl_hash_remove(struct sl_hash *h, struct sl_hash_node *n);

/* XXH3 of the bytes. */
uint64_t sl_hash64(const void *data, size_t len, uint64_t seed);

/* SHA-256 (OpenSSL). `out` 32 bytes; hex form 64 characters and a NUL. */
void sl_sha256(const void *data, size_t len, uint8_t out[32]);
void sl_hex(const uint8_t *data, size_t len, char *out);
/* Incremental; opaque; NULL when out of memory. */
struct sl_sha256_ctx;
struct sl_sha256_ctx *sl_sha256_new(void);
void sl_sha256_update(struct sl_sha256_ctx *c, const void *data, size_t len);
void sl_sha256_final(struct sl_sha256_ctx *c, uint8_t out[32]); /* frees c */
/* Constant-time equality. */
bool sl_equal_ct(const void *a, const void *b, size_t len);

#endif
