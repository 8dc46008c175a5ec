/* Unicode normal form C (UAX #15) on utf8proc's tables.
 *
 * utf8proc sorts combining marks by exchanging neighbours, which is quadratic in a long run of
 * marks; here each run is sorted by a stable merge of its classes, then utf8proc composes. */
#include "tokenizer_priv.h"

#include <sluice/base/limits.h>

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define EXPANSION_MAX 4 /* code points in the canonical decomposition of one */

struct points {
    int32_t *p; /* one more than n_max, for utf8proc's terminator */
    size_t n, n_max;
};

static int combining_class(int32_t c)
{
    return utf8proc_get_property(c)->combining_class;
}

/* Counting sort by class, which is 1..254: linear and stable. */
static void sort_marks(int32_t *run, size_t n, int32_t *spare)
{
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(run[i]) + 1]++;
    for (unsigned c = 0; c < 256; c++)
        start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++)
        spare[start[combining_class(run[i])]++] = run[i];
    memcpy(run, spare, n * sizeof *run);
}

/* Short runs, nearly all of them, are not worth a table of 256 classes. */
static void sort_few_marks(int32_t *run, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        int32_t c = run[i];
        int class = combining_class(c);
        size_t at = i;
        for (; at && combining_class(run[at - 1]) > class; at--)
            run[at] = run[at - 1];
        run[at] = c;
    }
}

static void sort_all_marks(struct points *d, int32_t *spare)
{
    for (size_t i = 0; i < d->n;) {
        size_t end = i;
        while (end < d->n && combining_class(d->p[end]))
            end++;
        if (end - i > 32)
            sort_marks(d->p + i, end - i, spare);
        else
            sort_few_marks(d->p + i, end - i);
        i = end + 1;
    }
}

static bool decompose(const char *text, size_t len, struct points *d)
{
    for (size_t i = 0; i < len;) {
        int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const uint8_t *)text + i, (utf8proc_ssize_t)(len - i), &c);
        if (used <= 0)
            return false;
        int boundary = 0;
        utf8proc_ssize_t got =
            utf8proc_decompose_char(c, d->p + d->n, (utf8proc_ssize_t)(d->n_max - d->n),
                                    UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        if (got < 0 || (size_t)got > d->n_max - d->n)
            return false;
        d->n += (size_t)got;
        i += (size_t)used;
    }
    return true;
}

/* U+0300 is the first code point that can be changed or can change another; its lead byte 0xcc. */
static bool is_surely_normal(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)text[i] >= 0xcc)
            return false;
    return true;
}

enum sl_status nfc_normalise(const char *text, size_t len, char **out, size_t *out_len,
                             struct sl_err *err)
{
    *out = NULL;
    if (is_surely_normal(text, len))
        return SL_OK;
    size_t n_points = 0;
    for (size_t i = 0; i < len; i++)
        n_points += ((uint8_t)text[i] & 0xc0) != 0x80;
    struct points d = {.n_max = n_points * EXPANSION_MAX};
    d.p = malloc((d.n_max + 1) * sizeof *d.p);
    int32_t *spare = malloc((d.n_max + 1) * sizeof *spare);
    enum sl_status s = SL_OK;
    if (!d.p || !spare) {
        s = sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory to normalise %zu bytes", len);
        goto out;
    }
    if (!decompose(text, len, &d)) {
        s = sl_fail(err, SL_INVALID, "tokenizer: the text cannot be normalised");
        goto out;
    }
    sort_all_marks(&d, spare);
    utf8proc_ssize_t n =
        utf8proc_normalize_utf32(d.p, (utf8proc_ssize_t)d.n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    char *bytes = (char *)spare; /* at most 4 bytes a code point */
    size_t n_bytes = 0;
    for (utf8proc_ssize_t i = 0; i < n; i++)
        n_bytes += (size_t)utf8proc_encode_char(d.p[i], (uint8_t *)bytes + n_bytes);
    *out = bytes;
    *out_len = n_bytes;
    spare = NULL;
out:
    free(d.p);
    free(spare);
    return s;
}
