/* Following one publisher of numbered batches: what to apply, when to ask for a replay, when all
 * that was learned must be forgotten. Pure; time is an argument.
 *
 * Batches count from 0. Whoever applies what it is told to, in order, has applied a prefix of what
 * was published, or everything from some batch on after a SL_KV_FEED_FORGET. Batches get lost
 * (a full queue, a late subscription): a gap shows with the next batch, or with the publisher's own
 * word of how many there are. Then a replay is asked for; without an answer for
 * SL_KV_FEED_PATIENCE_NS it is asked for again, and after SL_KV_FEED_TRIES the gap is given up
 * until the next batch, or for SL_KV_FEED_REST_NS. */
#ifndef SLUICE_CONTROL_KV_FEED_H
#define SLUICE_CONTROL_KV_FEED_H

#include <stdbool.h>
#include <stdint.h>

#define SL_KV_FEED_PATIENCE_NS 1000000000ull
#define SL_KV_FEED_BEHIND_NS   300000000ull /* the publisher's word may come before its batch */
#define SL_KV_FEED_REST_NS     30000000000ull
enum { SL_KV_FEED_TRIES = 3 };

struct sl_kv_feed {
    bool replays;          /* the publisher can */
    bool asking;           /* a replay is under way */
    bool sure;             /* the gap is one: no need to wait and see */
    uint64_t next;         /* batch to be applied next */
    uint64_t seen;         /* one past the last batch known to exist */
    uint64_t asked;        /* first batch of the last replay asked for */
    uint64_t since_ns;     /* last progress of the replay, or when it fell behind */
    uint32_t n_tries;      /* in a row without progress */
    uint64_t n_gaps, n_forgotten;
};

enum sl_kv_feed_word {
    SL_KV_FEED_DROP,   /* known already, or it comes again in the replay */
    SL_KV_FEED_APPLY,
    SL_KV_FEED_FORGET  /* what was learned, then apply */
};

/* At the start everything is asked for. */
void sl_kv_feed_init(struct sl_kv_feed *f, bool replays, uint64_t now_ns);
/* A batch came, as published or `replayed`. */
enum sl_kv_feed_word sl_kv_feed_batch(struct sl_kv_feed *f, uint64_t seq, bool replayed,
                                      uint64_t now_ns);
void sl_kv_feed_replay_end(struct sl_kv_feed *f, uint64_t now_ns);
/* The publisher says how many batches there are. */
void sl_kv_feed_published(struct sl_kv_feed *f, uint64_t n_batches, uint64_t now_ns);
/* True: ask for a replay from f->next now. Call after each of the above and now and then. */
bool sl_kv_feed_ask(struct sl_kv_feed *f, uint64_t now_ns);

#endif
