/* Byte-pair merges by rank (Sennrich et al. 2016, on bytes as in GPT-2).
 *
 * A pre-token begins as one token per byte; of all neighbours that may merge, those of the lowest
 * rank do, the leftmost first, until none may. Short words search a row of ranks; long ones keep a
 * heap of (rank, place) over a linked list, so the time is O(n log n) however long the word is. */
#include "tokenizer_priv.h"

#include <sluice/base/limits.h>

#include <stdlib.h>
#include <string.h>

#define MERGES_KEY "tokenizer.ggml.merges"
#define MERGES_MAX (4 * SL_LIMIT_vocab_tokens)
#define SHORT_MAX  48 /* symbols up to which a row is quicker than a heap */
#define NO_RANK    UINT32_MAX

static uint32_t pair_slot(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio */
    return (uint32_t)(h >> 32) ^ (uint32_t)(h >> 13);
}

/* The slot of the pair, or the empty one where it would be. */
static inline struct merge *find_pair(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t i = pair_slot(left, right) & b->mask;
    while (b->slots[i].left != SL_NO_TOKEN &&
           (b->slots[i].left != left || b->slots[i].right != right))
        i = (i + 1) & b->mask;
    return &b->slots[i];
}

static enum sl_status read_merge(const struct vocab *v, struct sl_str text, uint32_t rank,
                                 char *bytes, struct merge *m, struct sl_err *err)
{
    const char *space = text.len > 1 ? memchr(text.data + 1, ' ', text.len - 1) : NULL;
    if (!space)
        return sl_fail(err, SL_MODEL, "tokenizer: merge %u is not a pair", rank);
    size_t cut = (size_t)(space - text.data);
    size_t n_left = vocab_unspell((struct sl_str){text.data, cut}, bytes);
    size_t n =
        n_left + vocab_unspell((struct sl_str){space + 1, text.len - cut - 1}, bytes + n_left);
    m->left = vocab_find(v, bytes, n_left);
    m->right = vocab_find(v, bytes + n_left, n - n_left);
    m->into = vocab_find(v, bytes, n);
    m->rank = rank;
    if (m->left == SL_NO_TOKEN || m->right == SL_NO_TOKEN || m->into == SL_NO_TOKEN)
        return sl_fail(err, SL_MODEL, "tokenizer: merge %u names a token not in the vocabulary",
                       rank);
    return SL_OK;
}

static enum sl_status read_merges(const struct sl_gguf_key *k, const struct vocab *v, struct bpe *b,
                                  struct sl_err *err)
{
    size_t longest = 0;
    for (uint64_t i = 0; i < k->n; i++) {
        size_t len = sl_gguf_array_str(k, i).len;
        longest = len > longest ? len : longest;
    }
    char *bytes = malloc(longest + 1);
    if (!bytes)
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for a merge of %zu bytes", longest);
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < k->n && !s; i++) {
        struct merge m;
        s = read_merge(v, sl_gguf_array_str(k, i), i, bytes, &m, err);
        if (s)
            break;
        struct merge *slot = find_pair(b, m.left, m.right);
        if (slot->left == SL_NO_TOKEN)
            *slot = m;
    }
    free(bytes);
    return s;
}

enum sl_status bpe_open(const struct sl_gguf *g, const struct vocab *v, struct bpe *b,
                        struct sl_err *err)
{
    *b = (struct bpe){0};
    const struct sl_gguf_key *k = sl_gguf_find(g, MERGES_KEY);
    if (!k || k->type != SL_GGUF_ARRAY || k->elem != SL_GGUF_STRING || k->n > MERGES_MAX)
        return sl_fail(err, SL_MODEL, "tokenizer: the file has no array of at most %d strings '%s'",
                       MERGES_MAX, MERGES_KEY);
    for (unsigned i = 0; i < 256; i++)
        b->byte_id[i] = vocab_find(v, &(const char){(char)i}, 1);
    uint32_t n_slots = 64;
    while (n_slots < 2 * k->n)
        n_slots *= 2;
    b->mask = n_slots - 1;
    b->slots = malloc(n_slots * sizeof *b->slots);
    if (!b->slots)
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for %llu merges",
                       (unsigned long long)k->n);
    memset(b->slots, 0xff, n_slots * sizeof *b->slots); /* SL_NO_TOKEN everywhere */
    return read_merges(k, v, b, err);
}

void bpe_close(struct bpe *b)
{
    free(b->slots);
    *b = (struct bpe){0};
}

/* One row per fact: id[i], and of the pair (i, i + 1) its rank and what it becomes. */
struct row {
    uint32_t id[SHORT_MAX + 1], rank[SHORT_MAX + 1], into[SHORT_MAX + 1];
};

static inline void row_look(const struct bpe *b, struct row *r, size_t i)
{
    const struct merge *m = find_pair(b, r->id[i], r->id[i + 1]);
    r->rank[i] = m->rank; /* NO_RANK in an empty slot */
    r->into[i] = m->into;
}

static size_t merge_short(const struct bpe *b, struct row *r, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++)
        row_look(b, r, i);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (r->rank[i] < r->rank[best])
                best = i;
        if (r->rank[best] == NO_RANK)
            break;
        r->id[best] = r->into[best];
        size_t tail = n - best - 2;
        memmove(r->id + best + 1, r->id + best + 2, tail * sizeof *r->id);
        memmove(r->rank + best + 1, r->rank + best + 2, tail * sizeof *r->rank);
        memmove(r->into + best + 1, r->into + best + 2, tail * sizeof *r->into);
        n--;
        if (best + 1 < n)
            row_look(b, r, best);
        if (best)
            row_look(b, r, best - 1);
    }
    return n;
}

/* A symbol of a long word. */
struct node {
    uint32_t id; /* SL_NO_TOKEN: merged away */
    uint32_t prev, next;
    uint32_t rank, into; /* of the pair with next */
};

#define NO_NODE UINT32_MAX

struct word {
    const struct bpe *b;
    struct node *nodes;
    uint64_t *heap; /* rank << 32 | node, smallest first; entries may be out of date */
    size_t n_heap;
};

static void heap_push(struct word *w, uint64_t key)
{
    size_t i = w->n_heap++;
    for (; i; i = (i - 1) / 2) {
        uint64_t parent = w->heap[(i - 1) / 2];
        if (parent <= key)
            break;
        w->heap[i] = parent;
    }
    w->heap[i] = key;
}

static uint64_t heap_pop(struct word *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child])
            child++;
        if (last <= w->heap[child])
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

static void node_look(struct word *w, uint32_t at)
{
    struct node *n = &w->nodes[at];
    n->rank = NO_RANK;
    if (n->next == NO_NODE)
        return;
    const struct merge *m = find_pair(w->b, n->id, w->nodes[n->next].id);
    n->rank = m->rank;
    n->into = m->into;
    if (n->rank != NO_RANK)
        heap_push(w, (uint64_t)n->rank << 32 | at);
}

static void merge_long(struct word *w)
{
    while (w->n_heap) {
        uint64_t key = heap_pop(w);
        uint32_t at = (uint32_t)key;
        struct node *n = &w->nodes[at];
        if (n->id == SL_NO_TOKEN || n->rank != (uint32_t)(key >> 32))
            continue; /* its pair has changed since */
        struct node *gone = &w->nodes[n->next];
        n->id = n->into;
        n->next = gone->next;
        gone->id = SL_NO_TOKEN;
        if (n->next != NO_NODE)
            w->nodes[n->next].prev = at;
        node_look(w, at);
        if (n->prev != NO_NODE)
            node_look(w, n->prev);
    }
}

/* Every merge takes one symbol away and pushes at most two pairs: 3 n entries are enough. */
static bool scratch_reserve(struct bpe_scratch *s, size_t n)
{
    if (n <= s->n_max)
        return true;
    size_t bytes;
    if (!sl_size_mul(n, sizeof(struct node) + 3 * sizeof(uint64_t), &bytes))
        return false;
    free(s->block);
    s->block = malloc(bytes);
    s->n_max = s->block ? n : 0;
    return s->block != NULL;
}

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->block);
    *s = (struct bpe_scratch){0};
}

static bool long_word(const struct bpe *b, const char *bytes, size_t len,
                      struct bpe_scratch *scratch, struct tokens_out *out)
{
    if (!scratch_reserve(scratch, len)) {
        out->status = SL_NO_MEMORY;
        return false;
    }
    struct word w = {.b = b, .heap = scratch->block};
    w.nodes = (struct node *)(void *)(w.heap + 3 * scratch->n_max);
    uint32_t n = 0;
    for (size_t i = 0; i < len; i++) {
        uint32_t id = b->byte_id[(uint8_t)bytes[i]];
        if (id == SL_NO_TOKEN)
            continue;
        w.nodes[n] = (struct node){.id = id, .prev = n ? n - 1 : NO_NODE, .next = n + 1};
        n++;
    }
    if (!n)
        return true;
    w.nodes[n - 1].next = NO_NODE;
    for (uint32_t i = 0; i < n; i++)
        node_look(&w, i);
    merge_long(&w);
    for (uint32_t i = 0; i != NO_NODE; i = w.nodes[i].next)
        if (!tokens_out_push(out, w.nodes[i].id))
            return false;
    return true;
}

/* Bytes that no token stands for are left out before merging, as the published tokenizers do. */
bool bpe_merge(const struct bpe *b, const char *word, size_t len, struct bpe_scratch *scratch,
               struct tokens_out *out)
{
    if (len > SHORT_MAX)
        return long_word(b, word, len, scratch, out);
    struct row r;
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        r.id[n] = b->byte_id[(uint8_t)word[i]];
        n += r.id[n] != SL_NO_TOKEN;
    }
    n = merge_short(b, &r, n);
    for (size_t i = 0; i < n; i++)
        if (!tokens_out_push(out, r.id[i]))
            return false;
    return true;
}
