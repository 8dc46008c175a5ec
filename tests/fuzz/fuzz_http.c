/* Fuzz target of the HTTP request parser: a stream of requests, whole and cut in two, must be read
 * the same way (which of two faults is named first may depend on the cut), and what is handed out
 * must lie within what was read. The first two bytes say where the cut is. */
#include <http/parse.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct result {
    enum http_parse_end end;
    size_t taken, n_done, body_bytes, n_fields;
};

static void check_inside(const struct http_parse *p, struct sl_str s)
{
    uintptr_t at = (uintptr_t)s.data, from = (uintptr_t)p->head.data;
    if (s.len)
        sl_assert(at >= from && s.len <= p->head.len && at - from <= p->head.len - s.len);
}

static void check_done(const struct http_parse *p)
{
    sl_assert(p->method.len > 0 && p->path.len > 0);
    sl_assert(p->n_fields <= SL_LIMIT_http_fields && p->body.len <= SL_LIMIT_http_body_bytes);
    sl_assert(p->head.len <= SL_LIMIT_http_header_bytes + 1);
    check_inside(p, p->method);
    check_inside(p, p->query);
    if (p->path.len > 1) /* a lone "/" may stand for an empty path */
        check_inside(p, p->path);
    for (uint32_t i = 0; i < p->n_fields; i++) {
        check_inside(p, p->fields[i].name);
        check_inside(p, p->fields[i].value);
    }
}

/* One piece; requests that end inside it are counted and the next begins. */
static void feed(struct http_parse *p, struct result *r, const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size && r->end != HTTP_PARSE_BAD;) {
        size_t used = 0;
        r->end = http_parse_feed(p, (const char *)data + at, size - at, &used);
        sl_assert(used <= size - at);
        at += used;
        r->taken += used;
        if (r->end == HTTP_PARSE_BAD)
            sl_assert(p->http_status >= 400 && p->http_status < 600 && p->err.status != SL_OK);
        if (r->end != HTTP_PARSE_DONE)
            continue;
        check_done(p);
        r->n_done++;
        r->n_fields += p->n_fields;
        r->body_bytes += p->body.len;
        http_parse_reset(p);
    }
}

static struct result run(const uint8_t *data, size_t size, size_t cut)
{
    struct result r = {0};
    struct http_parse *p = malloc(sizeof(*p));
    if (!p)
        abort();
    http_parse_init(p);
    feed(p, &r, data, cut);
    feed(p, &r, data + cut, size - cut);
    http_parse_free(p);
    free(p);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t cut = (size_t)data[0] << 8 | data[1];
    data += 2;
    size -= 2;
    struct result a = run(data, size, size);
    struct result b = run(data, size, size ? cut % size : 0);
    sl_assert(a.n_done == b.n_done);
    sl_assert(a.body_bytes == b.body_bytes && a.n_fields == b.n_fields);
    sl_assert((a.end == HTTP_PARSE_BAD) == (b.end == HTTP_PARSE_BAD));
    return 0;
}
