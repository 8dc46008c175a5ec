/* Borrowed strings and growable, capped byte buffers with a sticky failure. */
#include <sluice/base/mem.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sl_str sl_str_of(const char *z)
{
    return (struct sl_str){z, z ? strlen(z) : 0};
}

bool sl_str_eq(struct sl_str a, struct sl_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

bool sl_str_eqz(struct sl_str a, const char *z)
{
    return sl_str_eq(a, sl_str_of(z));
}

/* Room for `more` bytes and the NUL, or `failed`. */
static bool reserve(struct sl_buf *b, size_t more)
{
    if (b->failed)
        return false;
    size_t cap = b->cap_bytes ? b->cap_bytes : SL_BUF_DEFAULT_CAP;
    if (b->len > cap || more > cap - b->len) {
        b->failed = true;
        return false;
    }
    size_t need;
    if (!sl_size_add(b->len + more, 1, &need)) {
        b->failed = true;
        return false;
    }
    if (need <= b->alloc)
        return true;
    size_t grown = b->alloc < 128 ? 256 : b->alloc * 2;
    if (grown > cap)
        grown = cap + 1 ? cap + 1 : cap;
    if (grown < need)
        grown = need;
    char *data = realloc(b->data, grown);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->alloc = grown;
    return true;
}

void sl_buf_append(struct sl_buf *b, const void *data, size_t len)
{
    if (!reserve(b, len))
        return;
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = 0;
}

void sl_buf_puts(struct sl_buf *b, const char *z)
{
    sl_buf_append(b, z, strlen(z));
}

void sl_buf_putc(struct sl_buf *b, char c)
{
    sl_buf_append(b, &c, 1);
}

void sl_buf_printf(struct sl_buf *b, const char *fmt, ...)
{
    char small[256];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n < 0)
        b->failed = true;
    else if ((size_t)n < sizeof small)
        sl_buf_append(b, small, (size_t)n);
    else if (reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void sl_buf_clear(struct sl_buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = 0;
}

void sl_buf_free(struct sl_buf *b)
{
    free(b->data);
    *b = (struct sl_buf){.cap_bytes = b->cap_bytes};
}
