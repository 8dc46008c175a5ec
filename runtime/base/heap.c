/* Pairing heap with removal from anywhere (Fredman, Sedgewick, Sleator, Tarjan, Algorithmica 1986).
 * A first child's `prev` is its parent, any other node's is its left sibling; the root's is NULL.
 */
#include <sluice/base/containers.h>

void sl_heap_init(struct sl_heap *h, sl_heap_less *less)
{
    *h = (struct sl_heap){.less = less};
}

/* Two trees become one: the larger root becomes the first child of the smaller. */
static struct sl_heap_node *meld(const struct sl_heap *h, struct sl_heap_node *a,
                                 struct sl_heap_node *b)
{
    if (!a)
        return b;
    if (!b)
        return a;
    if (h->less(b, a)) {
        struct sl_heap_node *t = a;
        a = b;
        b = t;
    }
    b->prev = a;
    b->next = a->child;
    if (b->next)
        b->next->prev = b;
    a->child = b;
    a->next = a->prev = NULL;
    return a;
}

/* Left to right in pairs, then right to left into one tree. */
static struct sl_heap_node *meld_children(const struct sl_heap *h, struct sl_heap_node *first)
{
    struct sl_heap_node *pairs = NULL; /* a stack through `next` */
    while (first) {
        struct sl_heap_node *a = first, *b = first->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b)
            b->next = b->prev = NULL;
        struct sl_heap_node *tree = meld(h, a, b);
        tree->next = pairs;
        pairs = tree;
    }
    struct sl_heap_node *root = NULL;
    while (pairs) {
        struct sl_heap_node *tree = pairs;
        pairs = tree->next;
        tree->next = NULL;
        root = meld(h, root, tree);
    }
    return root;
}

void sl_heap_insert(struct sl_heap *h, struct sl_heap_node *n)
{
    *n = (struct sl_heap_node){0};
    h->root = meld(h, h->root, n);
    h->n++;
}

struct sl_heap_node *sl_heap_min(const struct sl_heap *h)
{
    return h->root;
}

void sl_heap_remove(struct sl_heap *h, struct sl_heap_node *n)
{
    struct sl_heap_node *rest = meld_children(h, n->child);
    if (h->root == n) {
        h->root = rest;
    } else {
        if (n->prev->child == n)
            n->prev->child = n->next;
        else
            n->prev->next = n->next;
        if (n->next)
            n->next->prev = n->prev;
        h->root = meld(h, h->root, rest);
    }
    *n = (struct sl_heap_node){0};
    h->n--;
}
