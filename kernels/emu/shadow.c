/* Pages of records, by address. */
#include "emu/shadow.h"

#include <stdlib.h>
#include <string.h>

static void *must(void *p)
{
    if (!p)
        abort(); /* a tool for tests: nothing to give up in its place */
    return p;
}

struct page *emu_shadow_page(struct shadow *s, uintptr_t base)
{
    uintptr_t number = base / PAGE_BYTES;
    struct page **recent = &s->recent[number % 4096];
    if (*recent && (*recent)->base == base)
        return *recent;
    struct page **bucket = &s->bucket[(number * 0x9e3779b97f4a7c15ull) >> 48];
    struct page *p = *bucket;
    while (p && p->base != base)
        p = p->next;
    if (!p) {
        p = must(calloc(1, sizeof *p));
        p->base = base;
        p->cells = must(calloc(PAGE_BYTES / WORD, sizeof *p->cells));
        p->next = *bucket;
        *bucket = p;
        s->bytes += sizeof *p + PAGE_BYTES / WORD * sizeof *p->cells;
    }
    return *recent = p;
}

void emu_shadow_drop(struct shadow *s)
{
    for (size_t i = 0; i < 65536; i++)
        while (s->bucket[i]) {
            struct page *p = s->bucket[i];
            s->bucket[i] = p->next;
            free(p->cells);
            free(p);
        }
    memset(s->recent, 0, sizeof s->recent);
    s->bytes = 0;
}

void emu_page_split(struct shadow *s, struct page *p)
{
    if (!p->has_room) {
        p->cells = must(realloc(p->cells, PAGE_BYTES * sizeof *p->cells));
        p->has_room = true;
        s->bytes += (PAGE_BYTES - PAGE_BYTES / WORD) * sizeof *p->cells;
    }
    for (size_t i = PAGE_BYTES; i-- > 0;)
        p->cells[i] = p->cells[i / WORD];
    p->bytes = true;
}
