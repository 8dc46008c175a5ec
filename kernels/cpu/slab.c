/* Slabs of weights: see cpu.h. */
#include <sluice/base/mem.h>

#include <stdlib.h>

#include "cpu/cpu.h"

#define SLAB_BYTES ((size_t)16 << 20)

static struct slab *slab_open(size_t bytes)
{
    struct slab *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->bytes = bytes > SLAB_BYTES ? bytes : SLAB_BYTES;
    s->data = sl_pages_alloc(s->bytes);
    if (!s->data) {
        free(s);
        return NULL;
    }
    return s;
}

void *sl_slab_alloc(struct slab **list, size_t bytes)
{
    size_t need = (bytes + 63) / 64 * 64;
    struct slab *s = *list;
    while (s && s->bytes - s->used < need)
        s = s->next;
    if (!s) {
        s = slab_open(need);
        if (!s)
            return NULL;
        s->next = *list;
        *list = s;
    }
    void *p = s->data + s->used;
    s->used += need;
    s->n_weights++;
    return p;
}

void sl_slab_free(struct slab **list, void *p)
{
    struct slab **at = list;
    while (*at && !((uint8_t *)p >= (*at)->data && (uint8_t *)p < (*at)->data + (*at)->bytes))
        at = &(*at)->next;
    struct slab *s = *at;
    if (!s || --s->n_weights > 0)
        return;
    *at = s->next;
    sl_pages_free(s->data, s->bytes);
    free(s);
}

void sl_slab_close(struct slab **list)
{
    while (*list) {
        struct slab *s = *list;
        *list = s->next;
        sl_pages_free(s->data, s->bytes);
        free(s);
    }
}
