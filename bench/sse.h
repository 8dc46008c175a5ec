/* Server-sent events out of bytes in any pieces (HTML Living Standard, section 9.2.6). */
#ifndef SLUICE_BENCH_SSE_H
#define SLUICE_BENCH_SSE_H

#include <sluice/base/mem.h>

/* One event's data, its lines joined by "\n". False stops the parsing. */
typedef bool bench_sse_fn(void *ctx, struct sl_str data);

/* Zero-initialise; free with bench_sse_free. */
struct bench_sse {
    struct sl_buf line, data;
    bool has_data, after_cr;
};
/* False when the callback said so or an event exceeds memory. */
bool bench_sse_feed(struct bench_sse *s, const char *bytes, size_t len, bench_sse_fn *fn,
                    void *ctx);
void bench_sse_free(struct bench_sse *s);

#endif
