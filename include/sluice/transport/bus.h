/* The bus: ZeroMQ links between routers and workers, protobuf messages of transport/bus/bus.proto.
 *
 * A router binds one ROUTER socket; a worker opens one DEALER per router. Messages are decoded into
 * a capped arena and range-checked before anyone sees them: no pointer, handle or length from the
 * wire is trusted. Links use ipc in a 0700 folder on one machine and tcp elsewhere; a non-loopback
 * tcp endpoint without CURVE keys is refused. With keys a link is one connection of one key, and
 * no peer names itself, so nobody can take over another's. One thread per bus object. */
#ifndef SLUICE_TRANSPORT_BUS_H
#define SLUICE_TRANSPORT_BUS_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stdint.h>

/* Two sides of a link agree on the highest version that both speak, HELLO by HELLO: a cluster is
 * upgraded process by process. sl_bus_send leaves out what the peer's version does not have and
 * refuses a message that it does not have at all. */
#define SL_BUS_VERSION     2
#define SL_BUS_VERSION_MIN 1
#define SL_BUS_META_CHUNK ((uint32_t)1 << 20)
#define SL_BUS_TOKENS_MAX ((uint32_t)1 << 20) /* of one SUBMIT, and of any length it names */

enum sl_msg_kind {
    SL_MSG_NONE,
    SL_MSG_HELLO,      /* worker -> router: who I am */
    SL_MSG_WELCOME,    /* router -> worker: accepted, or why not */
    SL_MSG_SUBMIT,     /* router -> worker */
    SL_MSG_CANCEL,     /* router -> worker */
    SL_MSG_STEP,       /* worker -> router: one engine step's tokens of all this router's streams */
    SL_MSG_META_GET,   /* router -> worker: a piece of the model's metadata */
    SL_MSG_META_CHUNK, /* worker -> router */
    SL_MSG_LOAD,       /* worker -> router: heartbeat and counters */
    SL_MSG_PING,       /* router -> worker: heartbeat */
    SL_MSG_DRAIN,      /* router -> worker: finish and leave */
    SL_MSG_BYE,        /* worker -> router: leaving on purpose */
    SL_MSG_RANKS       /* worker -> router: the processes behind a sharded worker, now and then */
};

struct sl_msg_load {
    uint32_t running, waiting, pages_free, pages_total;
    uint64_t steps, prefill_tokens, decode_tokens, preempted, prefix_queries, prefix_hits;
    uint64_t last_step_age_ms; /* since the engine last finished a step or was idle */
    uint64_t op_calls;
    uint64_t kv_pages_sent, kv_pages_received, kv_bytes_sent; /* by the bulk channel */
    uint64_t kv_bad;           /* rows and pages that came wrong */
    uint64_t kv_fallbacks;     /* requests whose pages did not all come: they were computed */
    uint64_t step_expected_ms; /* how long the step in progress should take; 0: unknown */
    uint32_t max_seqs; /* in place of the HELLO's from now on: a site's changes; 0: as it was */
    uint64_t busy_ns;          /* time that all steps so far took */
    uint64_t pending_tokens;   /* of prompts, not computed yet */
    uint64_t kv_batches;       /* of KV events published so far */
    bool reforming; /* a rank was lost: requests wait until the group stands again */
};
struct sl_msg_hello {
    uint32_t version, version_min; /* the bus sets them, and at a router `version` is what was agreed */
    uint32_t pid, rank, tp, pp, threads;
    uint32_t max_seqs, max_len, max_batch_tokens, n_vocab, page_size, queue_max;
    uint64_t weight_bytes;
    uint64_t meta_bytes;       /* size of the model's metadata */
    uint8_t meta_sha256[32];   /* of those bytes */
    uint64_t kv_layout;        /* workers of the same can exchange KV pages; 0: this one does not */
    uint8_t kv_key[32];        /* of its bulk channel (bulk.h); zeros without kv_address */
    uint64_t instance;         /* random number of the worker process; 0: it has none */
    uint64_t greeting;         /* counts this instance's HELLOs at this router: later is newer */
    struct sl_str model, site, role, isa, backend;
    struct sl_str class_name;  /* the exactness class as text */
    struct sl_str kv_address;  /* where it serves KV pages; empty: nowhere */
    /* Of its KV events; empty: none. */
    struct sl_str events_endpoint, events_replay, events_topic;
    struct sl_str events_key;      /* their public key (Z85) when under CURVE */
    struct sl_msg_load load;
};
struct sl_msg_welcome {
    uint32_t version;          /* of the link from now on; the bus sets it */
    uint32_t status;           /* enum sl_status */
    struct sl_str message;
};
struct sl_msg_bias {
    uint32_t token;
    float bias;
};
struct sl_msg_submit {
    uint64_t id;
    uint32_t epoch;
    uint32_t n_prompt;         /* of tokens; the rest were generated before */
    const uint32_t *tokens;
    uint32_t n_tokens;
    uint32_t choice;
    int32_t priority;
    uint64_t tenant, seed;
    uint8_t salt[32];
    uint64_t deadline_ms;      /* from now; 0: none */
    float temperature, top_p, min_p, typical_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    int32_t top_k;
    uint32_t n_logprobs, min_tokens, max_tokens;
    bool want_logprob, ignore_eos, no_prefix_cache;
    const struct sl_msg_bias *bias;
    uint32_t n_bias;
    const uint32_t *stop_ids;
    uint32_t n_stop_ids;
    bool prefill_only;         /* compute the prompt and keep its pages for the holder of the ticket;
                                  ends with end 2 and no tokens */
    uint64_t kv_ticket;        /* of the pages: kept, or to be fetched from kv_address */
    struct sl_str kv_address;  /* worker that computes the prompt's pages; empty: none does */
    uint8_t kv_key[32];        /* of its bulk channel; zeros without kv_address */
    uint32_t hops;             /* routers it passed before the sender */
};
struct sl_msg_cancel {
    uint64_t id;
    uint32_t epoch;
};
/* One stream's share of a step. */
struct sl_msg_out {
    uint64_t id;
    uint32_t epoch;
    const uint32_t *tokens;
    uint32_t n_tokens;
    const float *logprobs;     /* [n_tokens] or NULL */
    uint32_t n_top;            /* alternatives per token */
    const uint32_t *top_tokens; /* [n_tokens * n_top] */
    const float *top_logprobs;
    uint32_t end;              /* 0 goes on; 1 stop 2 length 3 cancelled 4 deadline 5 error */
    uint32_t status;           /* enum sl_status of an error */
    struct sl_str message;
    uint32_t n_cached;         /* prompt tokens found in the prefix cache; with the first token */
    uint32_t ordinal;          /* of its first token, else the next: 1 follows the prompt; 0: unsaid */
};
struct sl_msg_step {
    uint64_t step;
    const struct sl_msg_out *outs;
    uint32_t n_outs;
    struct sl_msg_load load;
};
struct sl_msg_meta {
    uint8_t sha256[32];
    uint64_t offset;
    struct sl_str bytes;       /* empty in META_GET */
};

/* A kernel of a device's and how often it was launched. */
struct sl_msg_kernel {
    struct sl_str name;
    uint64_t launches;
};
/* One process of a worker group, the worker itself (rank 0) included. */
struct sl_msg_rank {
    uint32_t rank, pid, threads;
    uint64_t weight_bytes, kv_bytes; /* of its shard */
    uint64_t comm_bytes;             /* to and from other ranks */
    uint64_t steps, op_calls;
    struct sl_str isa;
    const struct sl_msg_kernel *kernels; /* none where launches are not counted */
    uint32_t n_kernels;
};
struct sl_msg_ranks {
    const struct sl_msg_rank *ranks;
    uint32_t n_ranks;
    uint32_t tp, pp; /* as they are now: a group may have shrunk since HELLO */
};

struct sl_msg {
    enum sl_msg_kind kind;
    bool gap;                  /* received, but others before it were lost: start the link over */
    uint64_t tag, seq;         /* of sl_bus_order; the bus sets and checks them */
    union {
        struct sl_msg_hello hello;
        struct sl_msg_welcome welcome;
        struct sl_msg_submit submit;
        struct sl_msg_cancel cancel;
        struct sl_msg_step step;
        struct sl_msg_meta meta;
        struct sl_msg_load load;
        struct sl_msg_ranks ranks;
    };
};

/* Pure codec, fuzzed: bytes to message and back. Decoded pointers live in the arena. SL_INVALID
 * names the field. The last bytes are a check of those before; only a message that is all of
 * version 1 may come without. */
enum sl_status sl_msg_decode(const void *data, size_t size, struct sl_arena *arena,
                             struct sl_msg *out, struct sl_err *err);
enum sl_status sl_msg_encode(const struct sl_msg *m, struct sl_buf *out, struct sl_err *err);
/* The same for a peer of another version, or as one: newer fields are left out, or refused.
 * SL_UNSUPPORTED for a message that version does not have. */
enum sl_status sl_msg_encode_for(const struct sl_msg *m, uint32_t version, struct sl_buf *out,
                                 struct sl_err *err);
enum sl_status sl_msg_decode_as(const void *data, size_t size, uint32_t version,
                                struct sl_arena *arena, struct sl_msg *out, struct sl_err *err);

/* Numbers on a link's messages. ZeroMQ keeps order and loses nothing while a connection stands; the
 * numbers make that an observation instead of a hope, and refuse frames that are sent again. A
 * HELLO opens a numbering for both directions: all messages carry its `greeting` as tag and count
 * from 1. What carries another tag or a number seen before is dropped; a number left out is a gap.
 * Number 0 is outside of it all: links without HELLO, peers of version 1. */
struct sl_bus_order {
    uint64_t tag, n_sent, n_heard;
};
void sl_bus_order_stamp(const struct sl_bus_order *o, struct sl_msg *m);      /* before sending */
void sl_bus_order_sent(struct sl_bus_order *o, const struct sl_msg *stamped); /* it has left */
bool sl_bus_order_heard(struct sl_bus_order *o, struct sl_msg *m);            /* false: drop it */

struct sl_bus;
struct sl_bus_config {
    const char *const *endpoints; /* router: to bind; worker: to connect */
    uint32_t n_endpoints;
    bool is_router;
    const char *curve_dir;        /* keys (sluice/transport/keys.h): tcp endpoints are spoken to under
                                     CURVE; NULL: none, then only ipc and loopback tcp */
    uint32_t version;             /* highest to speak, as an older program would; 0: SL_BUS_VERSION */
};
/* Opens sockets, sets every option explicitly and reads each back. SL_PORT_IN_USE, SL_CONFIG (also
 * for an ipc endpoint outside a folder that only its owner may enter). */
enum sl_status sl_bus_open(const struct sl_bus_config *cfg, struct sl_bus **out,
                           struct sl_err *err);
/* What was sent has 100 ms to leave. */
void sl_bus_close(struct sl_bus *b);
/* One descriptor for all sockets, level-triggered: readable while something may wait, whatever
 * calls came between (ZeroMQ's own descriptors are edge-triggered and are consumed by sends; the
 * bus looks after that). It rests again once sl_bus_recv has answered NONE. */
int sl_bus_fd(const struct sl_bus *b);
/* Router: the endpoint as bound, with the port chosen for "tcp://127.0.0.1:*". */
const char *sl_bus_endpoint(const struct sl_bus *b, uint32_t i);

/* `link`: at a router a number for the peer (never reused); at a worker the index of the endpoint.
 * Returns SL_MSG_NONE in *out when nothing waits. Malformed messages are counted, logged and
 * skipped; they never reach the caller. The message lives until the next call. A router gets a
 * link for every peer that sent one good message, at most `workers` at a time; the messages of
 * further peers are counted as refused. */
enum sl_status sl_bus_recv(struct sl_bus *b, uint64_t *link, struct sl_msg *out,
                           struct sl_err *err);
/* Never blocks: SL_PEER when the link is gone or its queue is full. A link found gone is forgotten,
 * so a router that PINGs its links learns of a closed connection at the next PING. */
enum sl_status sl_bus_send(struct sl_bus *b, uint64_t link, const struct sl_msg *m,
                           struct sl_err *err);
/* Router: forgets a link; later messages of that peer make a new one. */
void sl_bus_drop(struct sl_bus *b, uint64_t link);
/* Worker: how many connections the endpoint has had, and whether one stands now. A changed count
 * means that another router may answer there, and that messages of either side may have been lost:
 * say HELLO again. Current after sl_bus_recv. */
uint64_t sl_bus_n_connects(const struct sl_bus *b, uint64_t link);
bool sl_bus_connected(const struct sl_bus *b, uint64_t link);
/* Worker: gives the connection up and makes it anew. For an endpoint that fell silent: a damaged
 * length may keep a connection waiting for bytes that never come. */
void sl_bus_reconnect(struct sl_bus *b, uint64_t link);

/* What was agreed on; 0: nothing yet. Features of later versions ask before they are used. */
uint32_t sl_bus_link_version(const struct sl_bus *b, uint64_t link);

/* Reads the key folder again now; async-signal-safe. It is followed without that, too. */
void sl_bus_reload_keys(struct sl_bus *b);

struct sl_bus_stats {
    uint64_t n_sent, n_received, n_malformed, n_refused, n_repeated, n_gaps;
    uint64_t bytes_sent, bytes_received;
    /* CURVE endpoints. */
    uint64_t n_denied;            /* peers and messages without an allowed key */
    uint64_t n_revoked;           /* links cut because their key was removed */
    uint64_t n_broken;            /* frames altered or replayed: their connection was closed */
    uint64_t n_handshakes, n_handshakes_failed;
    uint64_t n_connections, n_cut; /* open now at a router; ended for being too many */
    uint64_t n_key_reloads;
};
void sl_bus_stats(const struct sl_bus *b, struct sl_bus_stats *out);

/* An ipc endpoint "ipc://.../<name>" in a fresh 0700 folder below $XDG_RUNTIME_DIR or /tmp (given
 * as `base_dir`); the folder is removed by sl_bus_ipc_remove. */
enum sl_status sl_bus_ipc_make(const char *base_dir, struct sl_buf *endpoint, struct sl_err *err);
void sl_bus_ipc_remove(const char *endpoint);

#endif
