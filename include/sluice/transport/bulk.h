/* The bulk channel: KV pages from one worker to another, each proven before it counts.
 *
 * A worker that computes prompts for others serves pages; the worker that owns the stream fetches
 * them by a ticket, which both got from the router, and by the keys of the pages, which commit to
 * the whole prompt. A page travels as one row per layer, in the order in which the layers are
 * computed, so that a prompt's first layers are on their way while the last are still to come. Each
 * row carries a checksum over its bytes, its place and the exactness class; after the last row a
 * PAGE frame with the page's key says that the step which computed it ended well. Only then is the
 * page complete. Whatever goes wrong (death, silence, a flipped bit, another class, an unknown
 * ticket) ends the fetch with the pages complete so far: the caller computes the rest itself.
 *
 * A worker may be several ranks, each of which holds a part of every page: some layers, some KV heads
 * (the same head on several ranks, where there are more ranks than heads). Each rank serves its own
 * part and fetches its own part, from whoever of the other side has it: rank 0 of the serving side
 * tells by a MAP who holds what, sl_bulk_cover says what to ask of whom. Parts are made of whole
 * layers and whole heads, so a row of a part is cut out of, or put into, the rows of the cache.
 *
 * Links: on one machine a unix socket in a 0700 folder, with the rows in shared memory of the
 * fetching side (memfd, sealed against resizing); else TCP with TLS 1.3, where both ends prove the
 * server's key, which the router hands to the fetching side. Threads: fetch blocks its caller; a
 * server has one thread to accept and one for each connection. */
#ifndef SLUICE_TRANSPORT_BULK_H
#define SLUICE_TRANSPORT_BULK_H

#include <sluice/base/err.h>
#include <sluice/base/limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_BULK_ADDRESS_MAX 240

/* What both ends must agree on for a page of one to be a page of the other: the whole model's. */
struct sl_bulk_layout {
    uint64_t class_hash; /* of the exactness class as text */
    uint32_t page_size;  /* positions */
    uint32_t n_layers, n_heads;
    uint32_t head_bytes; /* K and V of one head in one page and layer */
};

/* Layers and KV heads, counted in the model. A row of it is, for one layer, what a cache of these
 * heads alone would hold: K of all its heads (and their scales), then V. */
struct sl_bulk_part {
    uint32_t layer_first, n_layers, head_first, n_heads;
};

/* One rank of the serving side. */
struct sl_bulk_rank {
    struct sl_bulk_part part;
    uint32_t n_readers; /* how many of the fetching side ask it; 0: not known */
    char address[SL_BULK_ADDRESS_MAX];
};
#define SL_BULK_RANKS_BYTES (4 + SL_LIMIT_ranks * (24 + SL_BULK_ADDRESS_MAX))
/* As bytes, at most SL_BULK_RANKS_BYTES; returns how many. */
uint32_t sl_bulk_ranks_put(const struct sl_bulk_rank *ranks, uint32_t n, uint8_t *out);
/* Of anybody's bytes: `out` [SL_LIMIT_ranks]. SL_INVALID unless every part lies within the layout
 * and every address is one. */
enum sl_status sl_bulk_ranks_get(const uint8_t *data, size_t size, const struct sl_bulk_layout *l,
                                 struct sl_bulk_rank *out, uint32_t *n, struct sl_err *err);

/* A part of `mine` that ranks[rank] holds. */
struct sl_bulk_piece {
    uint32_t rank;
    struct sl_bulk_part part;
};
/* Cuts `mine` into pieces that each lie within one rank's part, none of it twice. Returns how many,
 * 0 when something is held by nobody or there are more than `most`. Pure. */
uint32_t sl_bulk_cover(const struct sl_bulk_part *mine, const struct sl_bulk_rank *ranks,
                       uint32_t n_ranks, struct sl_bulk_piece *out, uint32_t most);

/* What a client wants: a part of pages [first, n_pages) of the prompt behind `ticket`. */
struct sl_bulk_ask {
    uint64_t ticket;
    uint32_t first, n_pages;
    uint8_t last_key[32]; /* key of page n_pages - 1 */
    struct sl_bulk_part part;
    uint32_t n_readers; /* that ask this server for this ticket, in all */
};

enum sl_bulk_unit_kind {
    SL_BULK_WAIT, /* nothing yet */
    SL_BULK_ROW,  /* row `layer` of `page`; rows of a page come in ascending order of layers, all
                     those of the part that was asked for */
    SL_BULK_PAGE, /* all rows of `page` went out and are final */
    SL_BULK_END   /* nothing more will come; `status` says why */
};
struct sl_bulk_unit {
    enum sl_bulk_unit_kind kind;
    uint32_t page, layer;
    const void *row;  /* [n_heads of the part, head_bytes], valid until the next call */
    uint8_t key[32];  /* of a PAGE */
    enum sl_status status;
};

/* Where a server's pages come from; called on the threads of its connections. */
struct sl_bulk_source_ops {
    /* NULL: no such ticket, or not these pages; with SL_TIMEOUT (after a little while) it may yet
     * come and is asked for again, for grace_ms in all. */
    void *(*open)(void *ctx, const struct sl_bulk_ask *ask, struct sl_err *err);
    /* The next thing to send; waits up to wait_ms for it. */
    void (*next)(void *ctx, void *source, uint32_t wait_ms, struct sl_bulk_unit *out);
    void (*close)(void *ctx, void *source);
    /* Who holds what: fills `out` [SL_LIMIT_ranks]; 0: not known (yet), and asked for again, for
     * grace_ms in all. */
    uint32_t (*map)(void *ctx, struct sl_bulk_rank *out);
};

enum sl_bulk_via { SL_BULK_SHM = 1, SL_BULK_TCP = 2 };

struct sl_bulk_server_config {
    uint32_t via;          /* SL_BULK_SHM | SL_BULK_TCP */
    const char *run_dir;   /* where the 0700 folder of the unix socket is made */
    const char *host;      /* numeric address for TCP; NULL: 127.0.0.1 */
    uint8_t key[32];       /* of the TCP links */
    struct sl_bulk_layout layout;
    uint32_t grace_ms;     /* for a ticket or map that is not known yet; 0: none */
    const struct sl_bulk_source_ops *ops;
    void *ctx;
};

struct sl_bulk_stats {
    uint64_t n_pages, n_bytes; /* sent */
    uint64_t n_unproved; /* TCP connections that did not prove the key */
    uint64_t n_refused;        /* connections without a proper question */
    uint64_t n_broken;         /* transfers that ended before their end */
};

struct sl_bulk_server;

enum sl_status sl_bulk_server_open(const struct sl_bulk_server_config *cfg,
                                   struct sl_bulk_server **out, struct sl_err *err);
/* Cuts what is under way. */
void sl_bulk_server_close(struct sl_bulk_server *s);
/* The numeric address of this machine that faces a bus endpoint "tcp://HOST:PORT"; nothing is sent.
 * SL_INVALID for another kind of endpoint, SL_PEER when the host is not known. */
enum sl_status sl_bulk_local_address(const char *endpoint, char out[64], struct sl_err *err);
/* For sl_bulk_fetch: "shm:PATH,tcp:HOST:PORT" or one of them. The server's. */
const char *sl_bulk_server_address(const struct sl_bulk_server *s);
void sl_bulk_server_stats(struct sl_bulk_server *s, struct sl_bulk_stats *out);

struct sl_bulk_fetch {
    const char *address;
    uint8_t key[32];
    struct sl_bulk_layout layout;
    struct sl_bulk_ask ask;
    const uint8_t (*keys)[32]; /* [ask.n_pages] */
    /* Where a row of pages [first, n_pages) goes: written before it is proven. NULL gives up. */
    void *(*row_at)(void *ctx, uint32_t page, uint32_t layer);
    /* It was proven. May be NULL. */
    void (*row_done)(void *ctx, uint32_t page, uint32_t layer, const void *row);
    void *ctx;
    uint32_t silence_ms;       /* without a frame; 0: the limit of the table */
    uint32_t total_ms;         /* 0: the limit of the table */
    const atomic_bool *stop;   /* may be NULL: set from elsewhere to give up */
};
struct sl_bulk_fetched {
    uint32_t n_complete; /* pages first .. first + n_complete - 1 */
    uint64_t n_bytes;
    uint32_t n_bad;      /* frames whose checksum or key did not match */
    enum sl_bulk_via via;
};

/* Asks rank 0 of a worker for its ranks: address, key, layout and stop of `f` count. `out`
 * [SL_LIMIT_ranks]. Blocks; errors as sl_bulk_fetch. */
enum sl_status sl_bulk_map(const struct sl_bulk_fetch *f, struct sl_bulk_rank *out, uint32_t *n,
                           struct sl_err *err);
/* Blocks. SL_OK when every page came; else why not, with *out telling what did: SL_PEER (gone,
 * silent, or breaks the protocol), SL_TIMEOUT, SL_CANCELLED, SL_FAILED (a bad checksum), or the
 * server's reason. */
enum sl_status sl_bulk_fetch(const struct sl_bulk_fetch *f, struct sl_bulk_fetched *out,
                             struct sl_err *err);

#endif
