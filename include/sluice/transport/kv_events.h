/* KV events over ZeroMQ, in the format of vLLM (vllm/distributed/kv_events.py of release 0.33, read
 * there; the format before it as an option), so that any router that knows vLLM's knows ours.
 *
 * A publisher sends [topic, number (8 bytes, big-endian), batch] on PUB. On a ROUTER socket it
 * answers [empty, first number wanted] with all batches from there on that it still has, each as
 * [empty, topic, number, batch], and [empty, empty, -1, empty] at the end. A batch is MessagePack,
 * [seconds, [event ...], rank]; an event is a map with its name under "type". In the older format
 * an event is an array that begins with its name, and a replayed batch comes without topic.
 *
 * Endpoints obey the rules of the bus: ipc in a 0700 folder, loopback tcp; others need keys, and
 * with keys every tcp endpoint is under CURVE, for peers whose key is a router's in the publisher's
 * `allowed`. One thread per object. */
#ifndef SLUICE_TRANSPORT_KV_EVENTS_H
#define SLUICE_TRANSPORT_KV_EVENTS_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stdint.h>

enum sl_kv_format { SL_KV_VLLM, SL_KV_VLLM_ARRAY };

enum sl_kv_wire_kind { SL_KV_WIRE_STORED, SL_KV_WIRE_REMOVED, SL_KV_WIRE_CLEARED };

/* A run of pages; each is the child of the one before. */
struct sl_kv_wire_event {
    enum sl_kv_wire_kind kind;
    const uint8_t (*keys)[32];
    uint32_t n_keys;
    bool has_parent;        /* stored: of the first */
    uint8_t parent[32];
    const uint32_t *tokens; /* stored: [n_keys * page_size] */
    uint32_t page_size;
};
struct sl_kv_batch {
    double unix_seconds;
    uint32_t rank;          /* data-parallel */
    const struct sl_kv_wire_event *events;
    uint32_t n_events;
};

/* `medium`: where pages lie, "GPU" or "CPU". SL_INVALID for a batch beyond the bus's limits. */
enum sl_status sl_kv_batch_encode(const struct sl_kv_batch *b, enum sl_kv_format format,
                                  const char *medium, struct sl_buf *out, struct sl_err *err);
/* Either format. Strict: keys of 32 bytes, tokens for every page; fields that are not ours are
 * skipped. What it points to lives in the arena. Fuzzed. SL_INVALID. */
enum sl_status sl_kv_batch_decode(const void *data, size_t size, struct sl_arena *arena,
                                  struct sl_kv_batch *out, struct sl_err *err);

/* --- publisher -------------------------------------------------------------------------------- */

struct sl_kv_pub;
struct sl_kv_pub_config {
    const char *const *endpoints;        /* to bind */
    uint32_t n_endpoints;
    const char *const *replay_endpoints; /* to bind */
    uint32_t n_replay_endpoints;
    const char *topic;                   /* NULL: "" */
    enum sl_kv_format format;
    const char *medium;
    const char *curve_dir;               /* NULL: none */
};
enum sl_status sl_kv_pub_open(const struct sl_kv_pub_config *cfg, struct sl_kv_pub **out,
                              struct sl_err *err);
void sl_kv_pub_close(struct sl_kv_pub *p);
/* As bound, with the port chosen for "tcp://127.0.0.1:*". NULL past the end. */
const char *sl_kv_pub_endpoint(const struct sl_kv_pub *p, uint32_t i);
const char *sl_kv_pub_replay_endpoint(const struct sl_kv_pub *p, uint32_t i);
/* Sends it and keeps it for replay, as far as SL_LIMIT_kv_replay_batches and _bytes allow. */
enum sl_status sl_kv_pub_send(struct sl_kv_pub *p, const struct sl_kv_batch *b,
                              struct sl_err *err);
/* Public key (Z85) of its CURVE endpoints, "" without keys. */
const char *sl_kv_pub_key(const struct sl_kv_pub *p);
/* The number the next batch will have: how many were sent. */
uint64_t sl_kv_pub_next(const struct sl_kv_pub *p);
/* The oldest that can be replayed. */
uint64_t sl_kv_pub_oldest(const struct sl_kv_pub *p);
/* Answers requests for replay. True when one asked for batches that are gone: tell all again. Call
 * when sl_kv_pub_fd is readable, and now and then, as its descriptor is edge-triggered. */
bool sl_kv_pub_serve(struct sl_kv_pub *p);
int sl_kv_pub_fd(const struct sl_kv_pub *p);

/* --- subscriber ------------------------------------------------------------------------------- */

struct sl_kv_sub;
enum sl_status sl_kv_sub_open(uint32_t feeds_max, const char *curve_dir, struct sl_kv_sub **out,
                              struct sl_err *err);
void sl_kv_sub_close(struct sl_kv_sub *s);
/* Where a publisher is. */
struct sl_kv_source {
    const char *endpoint;
    const char *replay; /* NULL: it has none */
    const char *topic;
    const char *key;    /* public key of its CURVE endpoints, a worker's in our `allowed` */
};
/* Listens to a publisher, known as `key` from then on. SL_QUEUE_FULL when feeds_max are open,
 * SL_INVALID for a key in use, SL_CONFIG for an endpoint or a public key that may not be used. */
enum sl_status sl_kv_sub_join(struct sl_kv_sub *s, uint64_t key, const struct sl_kv_source *from,
                              struct sl_err *err);
void sl_kv_sub_leave(struct sl_kv_sub *s, uint64_t key);
/* Asks for the batches from `first` on. SL_PEER when it cannot be sent now. */
enum sl_status sl_kv_sub_replay(struct sl_kv_sub *s, uint64_t key, uint64_t first,
                                struct sl_err *err);

enum sl_kv_news_kind {
    SL_KV_NEWS_BATCH,      /* as published */
    SL_KV_NEWS_REPLAYED,   /* on request */
    SL_KV_NEWS_REPLAY_END, /* no batch */
    SL_KV_NEWS_BAD         /* refused and counted: its content is lost */
};
struct sl_kv_news {
    uint64_t key, seq;
    enum sl_kv_news_kind kind;
    struct sl_kv_batch batch; /* until the next call */
};
/* False when nothing waits. Take all after any other call: descriptors are edge-triggered. */
bool sl_kv_sub_next(struct sl_kv_sub *s, struct sl_kv_news *out);
int sl_kv_sub_fd(const struct sl_kv_sub *s);

#endif
