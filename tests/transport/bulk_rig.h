/* A source of pages behind a server, and a place for what is fetched from it: for tests of the bulk
 * channel. */
#ifndef TEST_BULK_RIG_H
#define TEST_BULK_RIG_H

#include "bulk/frame.h"
#include "bulk/link.h"

#include <sluice/base/containers.h>
#include <sluice/base/fault.h>
#include <sluice/base/limits.h>
#include <sluice/base/time.h>
#include <sluice/transport/bulk.h>

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum {
    N_PAGES = 7,
    N_LAYERS = 3,
    ROW = 4000,
    BIG_ROW = SL_LIMIT_bulk_window_bytes / 3,
    CHUNK = 3,
    TICKET = 77
};

static struct sl_bulk_layout layout = {
    .class_hash = 0x1234, .page_size = 16, .n_layers = N_LAYERS, .n_heads = 1, .head_bytes = ROW};

/* --- a source: pages in chunks, each layer by layer ------------------------------------------- */

struct source {
    uint8_t *rows; /* [N_PAGES, N_LAYERS, layout.head_bytes] */
    uint8_t keys[N_PAGES][32];
    uint32_t stall_at; /* pages after which nothing comes any more; N_PAGES: never */
    uint32_t n_waits;  /* WAITs before the first row */
    int block_ms;      /* before anything is said */
    uint32_t late;     /* asks before the ticket is known */
    struct sl_bulk_rank map[3];
    uint32_t n_map;
    uint32_t late_map; /* asks before the map is known */
    atomic_uint n_open, n_closed;
};
struct cursor {
    struct source *s;
    struct sl_bulk_part part;
    uint8_t *row;
    uint32_t first, page, layer, end, n_pages, n_waits; /* of the chunk */
    bool rows_done;
};

static inline size_t rows_bytes(void)
{
    return (size_t)N_PAGES * N_LAYERS * layout.n_heads * layout.head_bytes;
}

static inline size_t row_offset(uint32_t page, uint32_t layer)
{
    return ((size_t)page * N_LAYERS + layer) * layout.n_heads * layout.head_bytes;
}

static inline void source_fill(struct source *s, uint64_t seed)
{
    struct sl_rng rng = {.seed = seed};
    free(s->rows);
    memset(s, 0, sizeof *s);
    s->stall_at = N_PAGES;
    s->rows = malloc(rows_bytes());
    assert_non_null(s->rows);
    for (size_t i = 0; i < rows_bytes(); i += 8) {
        uint64_t x = sl_rng_u64(&rng);
        memcpy(s->rows + i, &x, rows_bytes() - i < 8 ? rows_bytes() - i : 8);
    }
    for (size_t i = 0; i < sizeof s->keys; i++)
        s->keys[i / 32][i % 32] = (uint8_t)sl_rng_u64(&rng);
}

static inline void *source_open(void *ctx, const struct sl_bulk_ask *ask, struct sl_err *err)
{
    struct source *s = ctx;
    if (s->late) {
        s->late--;
        poll(NULL, 0, 20);
        sl_fail(err, SL_TIMEOUT, "not yet");
        return NULL;
    }
    if (ask->ticket != TICKET || ask->n_pages > N_PAGES ||
        memcmp(ask->last_key, s->keys[ask->n_pages - 1], 32) != 0) {
        sl_fail(err, SL_NOT_FOUND, "no such ticket");
        return NULL;
    }
    struct cursor *c = calloc(1, sizeof *c);
    assert_non_null(c);
    *c = (struct cursor){.s = s, .first = ask->first, .n_pages = ask->n_pages};
    c->part = ask->part;
    c->row = malloc((size_t)layout.head_bytes * layout.n_heads);
    assert_non_null(c->row);
    c->layer = c->part.layer_first;
    c->page = c->first;
    c->end = c->first + CHUNK < c->n_pages ? c->first + CHUNK : c->n_pages;
    s->n_open++;
    return c;
}

static inline void source_next(void *ctx, void *source, uint32_t wait_ms, struct sl_bulk_unit *u)
{
    struct source *s = ctx;
    struct cursor *c = source;
    *u = (struct sl_bulk_unit){.kind = SL_BULK_WAIT};
    if (s->block_ms)
        poll(NULL, 0, s->block_ms);
    if (c->n_waits++ < s->n_waits)
        return;
    if (c->first == c->n_pages) {
        u->kind = SL_BULK_END;
    } else if (c->first >= s->stall_at) {
        poll(NULL, 0, (int)wait_ms);
    } else if (!c->rows_done) {
        u->kind = SL_BULK_ROW;
        u->page = c->page;
        u->layer = c->layer;
        memcpy(c->row,
               s->rows + row_offset(c->page, c->layer) + c->part.head_first * layout.head_bytes,
               c->part.n_heads * layout.head_bytes);
        u->row = c->row;
        if (++c->page == c->end) {
            c->page = c->first;
            c->rows_done = ++c->layer == c->part.layer_first + c->part.n_layers;
        }
    } else {
        u->kind = SL_BULK_PAGE;
        u->page = c->first;
        memcpy(u->key, s->keys[c->first], 32);
        if (++c->first == c->end) {
            c->end = c->first + CHUNK < c->n_pages ? c->first + CHUNK : c->n_pages;
            c->page = c->first;
            c->layer = c->part.layer_first;
            c->rows_done = false;
        }
    }
}

static inline void source_close(void *ctx, void *source)
{
    struct source *s = ctx;
    free(((struct cursor *)source)->row);
    free(source);
    s->n_closed++;
}

static inline uint32_t source_map(void *ctx, struct sl_bulk_rank *out)
{
    struct source *s = ctx;
    if (s->late_map) {
        s->late_map--;
        return 0;
    }
    memcpy(out, s->map, s->n_map * sizeof *out);
    return s->n_map;
}

static const struct sl_bulk_source_ops source_ops = {source_open, source_next, source_close,
                                                     source_map};

/* --- a rig ------------------------------------------------------------------------------------ */

struct sink {
    uint8_t *rows; /* as a source's */
};

static inline void *sink_at(void *ctx, uint32_t page, uint32_t layer)
{
    struct sink *s = ctx;
    assert_true(page < N_PAGES && layer < N_LAYERS);
    return s->rows + row_offset(page, layer);
}

static struct source src;
static struct sink sink;
enum { N_VIAS = 2 };
#define VIA(i) ((i) ? SL_BULK_TCP : SL_BULK_SHM)

static inline struct sl_bulk_server *serve_with(uint32_t via, const char *key, uint32_t grace_ms)
{
    struct sl_bulk_server_config cfg = {.via = via,
                                        .run_dir = "/tmp",
                                        .layout = layout,
                                        .grace_ms = grace_ms,
                                        .ops = &source_ops,
                                        .ctx = &src};
    struct sl_bulk_server *s;
    struct sl_err err;
    memcpy(cfg.key, key, strlen(key));
    if (sl_bulk_server_open(&cfg, &s, &err))
        fail_msg("%s", err.msg);
    return s;
}

static inline struct sl_bulk_server *serve(uint32_t via, const char *key)
{
    return serve_with(via, key, 20000);
}

static inline struct sl_bulk_fetch fetch_of(const char *address, uint32_t first, uint32_t n_pages)
{
    struct sl_bulk_fetch f = {.address = address,
                              .key = "key",
                              .layout = layout,
                              .ask = {.ticket = TICKET,
                                      .first = first,
                                      .n_pages = n_pages,
                                      .part = {0, N_LAYERS, 0, 1},
                                      .n_readers = 1},
                              .keys = (const uint8_t(*)[32])src.keys,
                              .row_at = sink_at,
                              .ctx = &sink,
                              .silence_ms = 20000};
    memcpy(f.ask.last_key, src.keys[n_pages - 1], 32);
    return f;
}

/* Complete pages hold what was sent. */
static inline void check_pages(const struct sl_bulk_fetch *f, const struct sl_bulk_fetched *got)
{
    assert_true(f->ask.first + got->n_complete <= f->ask.n_pages);
    size_t at = row_offset(f->ask.first, 0), page = row_offset(1, 0);
    assert_memory_equal(sink.rows + at, src.rows + at, got->n_complete * page);
}

static inline enum sl_status run_fetch(const struct sl_bulk_fetch *f, struct sl_bulk_fetched *got,
                                       struct sl_err *err)
{
    sink.rows = malloc(rows_bytes());
    assert_non_null(sink.rows);
    memset(sink.rows, 0xdb, rows_bytes());
    enum sl_status s = sl_bulk_fetch(f, got, err);
    check_pages(f, got);
    free(sink.rows);
    return s;
}

#endif
