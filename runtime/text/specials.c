/* Special tokens in running text: the leftmost, and at its place the longest.
 *
 * The tokens are sorted by their bytes; at a place in the text the range of those that still agree
 * is narrowed byte by byte. Only bytes that begin some token are looked at closely, and no token is
 * longer than SPECIAL_BYTES_MAX, so the time is linear in the text. */
#include "tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

#define SPECIAL_BYTES_MAX 256

static int compare_bytes(const void *a, const void *b, void *vocab)
{
    const struct vocab *v = vocab;
    uint32_t ia = *(const uint32_t *)a, ib = *(const uint32_t *)b;
    struct sl_str sa = vocab_bytes(v, ia), sb = vocab_bytes(v, ib);
    int c = memcmp(sa.data, sb.data, sa.len < sb.len ? sa.len : sb.len);
    if (c)
        return c;
    if (sa.len != sb.len)
        return sa.len < sb.len ? -1 : 1;
    return ia < ib ? -1 : ia > ib;
}

enum sl_status specials_open(const struct vocab *v, bool with_control, struct specials *s,
                             struct sl_err *err)
{
    uint32_t n = 0;
    s->ids = malloc(((size_t)v->n + 1) * sizeof *s->ids);
    if (!s->ids)
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for special tokens");
    for (uint32_t i = 0; i < v->n; i++) {
        if (v->kind[i] != TOKEN_USER && !(with_control && v->kind[i] == TOKEN_CONTROL))
            continue;
        size_t len = vocab_bytes(v, i).len;
        if (len > SPECIAL_BYTES_MAX)
            return sl_fail(err, SL_MODEL, "tokenizer: special token %u has %zu bytes, limit %d", i,
                           len, SPECIAL_BYTES_MAX);
        if (len)
            s->ids[n++] = i;
    }
    uint32_t *fitting = realloc(s->ids, ((size_t)n + 1) * sizeof *s->ids);
    s->ids = fitting ? fitting : s->ids;
    qsort_r(s->ids, n, sizeof *s->ids, compare_bytes, (void *)(uintptr_t)v);
    memset(s->first, 0, sizeof s->first);
    for (uint32_t i = 0; i < n; i++)
        s->first[(uint8_t)vocab_bytes(v, s->ids[i]).data[0] + 1]++;
    for (unsigned b = 0; b < 256; b++)
        s->first[b + 1] += s->first[b];
    return SL_OK;
}

void specials_close(struct specials *s)
{
    free(s->ids);
    s->ids = NULL;
}

/* First of ids[low, high) whose byte `depth` is at least `byte`; all agree in the bytes before and
 * are longer than depth. */
static uint32_t lower_bound(const struct specials *s, const struct vocab *v, uint32_t low,
                            uint32_t high, size_t depth, unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((uint8_t)vocab_bytes(v, s->ids[middle]).data[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t specials_match(const struct specials *s, const struct vocab *v, const char *text,
                        size_t len)
{
    uint8_t b = (uint8_t)text[0];
    uint32_t low = s->first[b], high = s->first[b + 1], found = SL_NO_TOKEN;
    for (size_t depth = 1; low < high; depth++) {
        /* A token that ends here sorts first in the range; equal ones follow it. */
        if (vocab_bytes(v, s->ids[low]).len == depth)
            found = s->ids[low];
        while (low < high && vocab_bytes(v, s->ids[low]).len == depth)
            low++;
        if (depth >= len)
            break;
        unsigned next = (uint8_t)text[depth];
        low = lower_bound(s, v, low, high, depth, next);
        high = lower_bound(s, v, low, high, depth, next + 1);
    }
    return found;
}

uint32_t specials_find(const struct specials *s, const struct vocab *v, const char *text,
                       size_t len, size_t from, size_t *at)
{
    if (s->first[256] == 0)
        from = len;
    for (size_t i = from; i < len; i++) {
        uint8_t b = (uint8_t)text[i];
        if (s->first[b] == s->first[b + 1])
            continue;
        uint32_t id = specials_match(s, v, text + i, len - i);
        if (id == SL_NO_TOKEN)
            continue;
        *at = i;
        return id;
    }
    *at = len;
    return SL_NO_TOKEN;
}
