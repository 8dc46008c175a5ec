/* Bump memory with a cap. Chunks start at a page border, so an offset alone decides the padding and
 * used_bytes is the same in every run. */
#include <sluice/base/err.h>
#include <sluice/base/mem.h>

#include <stdlib.h>
#include <string.h>

#define CHUNK_ALIGN ((size_t)4096)
#define CHUNK_FIRST ((size_t)16 << 10)
#define CHUNK_MAX   ((size_t)8 << 20)

/* Lies after its payload, so that the payload keeps the page border. */
struct sl_arena_chunk {
    struct sl_arena_chunk *next;
    char *data;
    size_t size, used;
};

void sl_arena_init(struct sl_arena *a, size_t cap_bytes)
{
    *a = (struct sl_arena){.cap_bytes = cap_bytes};
}

static size_t chunks_bytes(const struct sl_arena *a)
{
    size_t sum = 0;
    for (const struct sl_arena_chunk *c = a->chunks; c; c = c->next)
        sum += c->size;
    return sum;
}

static struct sl_arena_chunk *chunk_new(size_t size)
{
    size_t head = 0, all = 0;
    if (!sl_size_add(size, _Alignof(struct sl_arena_chunk) - 1, &head))
        return NULL;
    head &= ~(_Alignof(struct sl_arena_chunk) - 1);
    if (!sl_size_add(head, sizeof(struct sl_arena_chunk), &all))
        return NULL;
    void *data = NULL;
    if (posix_memalign(&data, CHUNK_ALIGN, all))
        return NULL;
    struct sl_arena_chunk *c = (struct sl_arena_chunk *)(void *)((char *)data + head);
    *c = (struct sl_arena_chunk){.data = data, .size = size};
    return c;
}

/* A chunk with room for `size`, put first unless the first one has more room left. */
static struct sl_arena_chunk *add_chunk(struct sl_arena *a, size_t size)
{
    size_t held = chunks_bytes(a);
    size_t left = a->cap_bytes > held ? a->cap_bytes - held : 0;
    if (size > left)
        return NULL;
    size_t want = held < CHUNK_FIRST ? CHUNK_FIRST : held < CHUNK_MAX ? held : CHUNK_MAX;
    if (want < size)
        want = size;
    if (want > left)
        want = left;
    struct sl_arena_chunk *c = chunk_new(want);
    if (!c)
        return NULL;
    struct sl_arena_chunk *first = a->chunks;
    if (first && first->size - first->used > c->size - size) {
        c->next = first->next;
        first->next = c;
    } else {
        c->next = first;
        a->chunks = c;
    }
    return c;
}

static size_t padding_at(size_t offset, size_t align)
{
    return (align - (offset & (align - 1))) & (align - 1);
}

void *sl_arena_alloc(struct sl_arena *a, size_t size, size_t align)
{
    sl_assert(align && align <= CHUNK_ALIGN && !(align & (align - 1)));
    if (!size)
        size = 1; /* distinct, non-NULL pointers for empty objects */
    struct sl_arena_chunk *c = a->chunks;
    size_t pad = c ? padding_at(c->used, align) : 0;
    if (!c || pad > c->size - c->used || size > c->size - c->used - pad) {
        c = add_chunk(a, size);
        pad = 0;
    }
    if (!c)
        return NULL;
    void *p = c->data + c->used + pad;
    c->used += pad + size;
    a->used_bytes += pad + size;
    if (a->used_bytes > a->high_bytes)
        a->high_bytes = a->used_bytes;
    return p;
}

void *sl_arena_calloc(struct sl_arena *a, size_t n, size_t elem_size)
{
    size_t size;
    if (!sl_size_mul(n, elem_size, &size))
        return NULL;
    void *p = sl_arena_alloc(a, size, _Alignof(max_align_t));
    if (p)
        memset(p, 0, size);
    return p;
}

char *sl_arena_strndup(struct sl_arena *a, const char *s, size_t len)
{
    size_t size;
    if (!sl_size_add(len, 1, &size))
        return NULL;
    char *p = sl_arena_alloc(a, size, 1);
    if (!p)
        return NULL;
    if (len)
        memcpy(p, s, len);
    p[len] = 0;
    return p;
}

static void free_all_but(struct sl_arena *a, struct sl_arena_chunk *keep)
{
    struct sl_arena_chunk *c = a->chunks;
    while (c) {
        struct sl_arena_chunk *next = c->next;
        if (c != keep)
            free(c->data);
        c = next;
    }
    a->chunks = keep;
    if (keep) {
        keep->next = NULL;
        keep->used = 0;
    }
    a->used_bytes = 0;
}

void sl_arena_reset(struct sl_arena *a)
{
    struct sl_arena_chunk *keep = a->chunks;
    for (struct sl_arena_chunk *c = a->chunks; c; c = c->next)
        if (c->size > keep->size)
            keep = c;
    free_all_but(a, keep);
}

void sl_arena_free(struct sl_arena *a)
{
    free_all_but(a, NULL);
}
