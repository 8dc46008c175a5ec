/* Stop strings across token borders.
 *
 * Text is appended to what is held; every new end is compared with every stop string (their number
 * and length are limited, so this is linear in the text); then all is released but the longest end
 * of the text that begins a stop string. */
#include "tokenizer_priv.h"

#include <string.h>

void sl_stop_init(struct sl_stop *s, const struct sl_str *strings, size_t n, bool include)
{
    *s = (struct sl_stop){.strings = strings, .n_strings = n, .include = include, .hit = -1};
}

void sl_stop_free(struct sl_stop *s)
{
    sl_buf_free(&s->held);
}

static bool ends_with(const char *text, size_t len, struct sl_str suffix)
{
    return suffix.len && suffix.len <= len && text[len - 1] == suffix.data[suffix.len - 1] &&
           memcmp(text + len - suffix.len, suffix.data, suffix.len) == 0;
}

/* The longest stop string that ends at `len`, or -1. */
static int longest_at(const struct sl_stop *s, size_t len)
{
    int best = -1;
    for (size_t i = 0; i < s->n_strings; i++)
        if (ends_with(s->held.data, len, s->strings[i]) &&
            (best < 0 || s->strings[i].len > s->strings[best].len))
            best = (int)i;
    return best;
}

/* Bytes at the end of what is held that a stop string may begin with. */
static size_t undecided(const struct sl_stop *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->n_strings; i++) {
        struct sl_str z = s->strings[i];
        size_t n = z.len ? z.len - 1 : 0;
        n = n < s->held.len ? n : s->held.len;
        while (n > most && memcmp(s->held.data + s->held.len - n, z.data, n) != 0)
            n--;
        most = n > most ? n : most;
    }
    return most;
}

static void release(struct sl_stop *s, size_t n, struct sl_buf *out)
{
    sl_buf_append(out, s->held.data, n);
    memmove(s->held.data, s->held.data + n, s->held.len - n);
    s->held.len -= n;
}

bool sl_stop_push(struct sl_stop *s, const char *text, size_t len, struct sl_buf *out)
{
    if (s->hit >= 0)
        return true;
    if (!len)
        return false;
    size_t n_old = s->held.len;
    sl_buf_append(&s->held, text, len);
    if (s->held.failed) {
        out->failed = true; /* the reader of `out` is the one who looks */
        return false;
    }
    for (size_t end = n_old + 1; end <= s->held.len; end++) {
        s->hit = longest_at(s, end);
        if (s->hit < 0)
            continue;
        size_t n = s->include ? end : end - s->strings[s->hit].len;
        sl_buf_append(out, s->held.data, n);
        sl_buf_clear(&s->held);
        return true;
    }
    release(s, s->held.len - undecided(s), out);
    return false;
}

void sl_stop_finish(struct sl_stop *s, struct sl_buf *out)
{
    if (s->hit < 0 && s->held.len)
        release(s, s->held.len, out);
}
