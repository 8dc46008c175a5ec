/* Parser of server-sent events. Only data fields matter here; ids, names and comments pass. */
#include "sse.h"

#include <string.h>

static bool end_event(struct bench_sse *s, bench_sse_fn *fn, void *ctx)
{
    if (!s->has_data)
        return true;
    struct sl_str data = {s->data.data ? s->data.data : "", s->data.len};
    bool go_on = fn(ctx, data);
    sl_buf_clear(&s->data);
    s->has_data = false;
    return go_on;
}

static bool end_line(struct bench_sse *s, bench_sse_fn *fn, void *ctx)
{
    const char *p = s->line.data;
    size_t n = s->line.len;
    if (n == 0)
        return end_event(s, fn, ctx);
    if (n >= 4 && memcmp(p, "data", 4) == 0 && (n == 4 || p[4] == ':')) {
        size_t from = n > 5 && p[5] == ' ' ? 6 : n > 4 ? 5 : 4;
        if (s->has_data)
            sl_buf_putc(&s->data, '\n');
        sl_buf_append(&s->data, p + from, n - from);
        s->has_data = true;
    }
    sl_buf_clear(&s->line);
    return !s->data.failed;
}

bool bench_sse_feed(struct bench_sse *s, const char *bytes, size_t len, bench_sse_fn *fn, void *ctx)
{
    for (size_t i = 0; i < len;) {
        if (s->after_cr && bytes[i] == '\n') { /* the second half of a line end */
            s->after_cr = false;
            i++;
            continue;
        }
        size_t n = i;
        while (n < len && bytes[n] != '\n' && bytes[n] != '\r')
            n++;
        sl_buf_append(&s->line, bytes + i, n - i);
        s->after_cr = n < len && bytes[n] == '\r';
        if (s->line.failed || (n < len && !end_line(s, fn, ctx)))
            return false;
        i = n + 1;
    }
    return true;
}

void bench_sse_free(struct bench_sse *s)
{
    sl_buf_free(&s->line);
    sl_buf_free(&s->data);
}
