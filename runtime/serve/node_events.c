/* What the workers say of their prefix caches: one feed a worker, into the router's index.
 *
 * The feed decides (kv_feed.h), the subscriber carries (kv_events.h). Without a feed, or before its
 * first batch, the router knows only what it routed itself. */
#include "node.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/transport/kv_events.h>

#include <stdio.h>

#define NEWS_AT_ONCE 2048 /* then everything else gets its turn */

enum sl_status node_events_open(struct node *n, struct sl_err *err)
{
    return sl_kv_sub_open(SL_LIMIT_workers, n->cfg->curve_dir, &n->kv_sub, err);
}

void node_events_close(struct node *n)
{
    sl_kv_sub_close(n->kv_sub);
    n->kv_sub = NULL;
}

static const char *or_null(const char *z)
{
    return *z ? z : NULL;
}

void node_events_join(struct node *n, struct peer *p, uint64_t now)
{
    const struct sl_str *of[] = {&p->hello.events_endpoint, &p->hello.events_replay,
                                 &p->hello.events_topic, &p->hello.events_key};
    char text[4][512]; /* a HELLO's texts are shorter */
    struct sl_err err;
    for (uint32_t i = 0; i < 4; i++)
        snprintf(text[i], sizeof text[i], "%.*s", (int)of[i]->len, of[i]->data);
    if (!*text[0])
        return;
    struct sl_kv_source from = {text[0], or_null(text[1]), text[2], or_null(text[3])};
    if (sl_kv_sub_join(n->kv_sub, p->key, &from, &err)) {
        sl_log(SL_LOG_WARN, "worker %u: no KV events: %s", p->hello.pid, err.msg);
        return;
    }
    p->has_feed = true;
    sl_kv_feed_init(&p->feed, from.replay != NULL, now);
    sl_kv_feed_published(&p->feed, p->load.kv_batches, now);
}

void node_events_leave(struct node *n, struct peer *p)
{
    if (!p->has_feed)
        return;
    n->kv_gaps += p->feed.n_gaps;
    n->kv_forgotten += p->feed.n_forgotten;
    sl_kv_sub_leave(n->kv_sub, p->key);
    p->has_feed = false;
}

static void ask(struct node *n, struct peer *p, uint64_t now)
{
    if (sl_kv_feed_ask(&p->feed, now))
        sl_kv_sub_replay(n->kv_sub, p->key, p->feed.next, NULL); /* it asks again if this fails */
}

void node_events_load(struct node *n, struct peer *p, uint64_t now)
{
    if (!p->has_feed)
        return;
    sl_kv_feed_published(&p->feed, p->load.kv_batches, now);
    ask(n, p, now);
}

static void apply_event(struct node *n, const struct peer *p, const struct sl_kv_wire_event *e)
{
    n->kv_events++;
    if (e->kind == SL_KV_WIRE_CLEARED)
        sl_router_kv_cleared(n->router, p->key);
    for (uint32_t i = 0; i < e->n_keys; i++)
        if (e->kind == SL_KV_WIRE_STORED)
            sl_router_kv_stored(n->router, p->key, e->keys[i]);
        else
            sl_router_kv_removed(n->router, p->key, e->keys[i]);
}

static void apply(struct node *n, struct peer *p, const struct sl_kv_news *news, uint64_t now)
{
    bool replayed = news->kind == SL_KV_NEWS_REPLAYED;
    enum sl_kv_feed_word word = sl_kv_feed_batch(&p->feed, news->seq, replayed, now);
    if (word == SL_KV_FEED_DROP)
        return;
    if (word == SL_KV_FEED_FORGET)
        sl_router_kv_cleared(n->router, p->key);
    for (uint32_t i = 0; i < news->batch.n_events; i++)
        apply_event(n, p, &news->batch.events[i]);
}

void node_events_drain(struct node *n)
{
    struct sl_kv_news news;
    for (uint32_t i = 0; i < NEWS_AT_ONCE && sl_kv_sub_next(n->kv_sub, &news); i++) {
        struct peer *p = node_peer(n, news.key);
        uint64_t now = sl_now_ns();
        if (!p || !p->has_feed)
            continue;
        if (news.kind == SL_KV_NEWS_REPLAY_END)
            sl_kv_feed_replay_end(&p->feed, now);
        else if (news.kind == SL_KV_NEWS_BAD)
            n->kv_bad++; /* its number is missing now: a gap */
        else
            apply(n, p, &news, now);
        ask(n, p, now);
    }
}
