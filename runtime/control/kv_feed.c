/* Following a publisher of numbered batches. */
#include <sluice/control/kv_feed.h>

void sl_kv_feed_init(struct sl_kv_feed *f, bool replays, uint64_t now_ns)
{
    *f = (struct sl_kv_feed){.replays = replays, .sure = true, .since_ns = now_ns};
}

static bool is_behind(const struct sl_kv_feed *f)
{
    return f->next < f->seen;
}

static bool has_given_up(const struct sl_kv_feed *f)
{
    return !f->replays || f->n_tries > SL_KV_FEED_TRIES;
}

static enum sl_kv_feed_word apply(struct sl_kv_feed *f, uint64_t seq, uint64_t now_ns)
{
    bool lost = seq != f->next;
    f->next = seq + 1;
    f->since_ns = now_ns;
    f->sure = f->sure && is_behind(f);
    f->n_forgotten += lost;
    return lost ? SL_KV_FEED_FORGET : SL_KV_FEED_APPLY;
}

enum sl_kv_feed_word sl_kv_feed_batch(struct sl_kv_feed *f, uint64_t seq, bool replayed,
                                      uint64_t now_ns)
{
    if (seq == UINT64_MAX || seq < f->next)
        return SL_KV_FEED_DROP;
    if (seq >= f->seen)
        f->seen = seq + 1;
    if (seq == f->next || replayed) /* a replay that begins late: the publisher has no more */
        return apply(f, seq, now_ns);
    f->n_gaps += !f->sure && !f->asking;
    if (!has_given_up(f)) {
        f->sure = true;
        return SL_KV_FEED_DROP;
    }
    f->n_tries = 0;
    return apply(f, seq, now_ns);
}

void sl_kv_feed_replay_end(struct sl_kv_feed *f, uint64_t now_ns)
{
    if (!f->asking)
        return;
    bool progress = f->next != f->asked;
    f->asking = false;
    f->since_ns = now_ns;
    f->sure = progress && is_behind(f); /* more came meanwhile */
    if (progress)
        f->n_tries = 0;
    else if (has_given_up(f))
        f->seen = f->next; /* there is no more, whatever was said */
}

void sl_kv_feed_published(struct sl_kv_feed *f, uint64_t n_batches, uint64_t now_ns)
{
    if (n_batches <= f->seen)
        return;
    if (!is_behind(f))
        f->since_ns = now_ns;
    f->seen = n_batches;
}

bool sl_kv_feed_ask(struct sl_kv_feed *f, uint64_t now_ns)
{
    uint64_t waited = now_ns > f->since_ns ? now_ns - f->since_ns : 0;
    uint64_t patience = f->asking ? SL_KV_FEED_PATIENCE_NS : f->sure ? 0 : SL_KV_FEED_BEHIND_NS;
    if (f->n_tries > SL_KV_FEED_TRIES && waited >= SL_KV_FEED_REST_NS)
        f->n_tries = 0;
    if (!is_behind(f) || waited < patience || has_given_up(f))
        return false;
    f->asking = ++f->n_tries <= SL_KV_FEED_TRIES;
    f->asked = f->next;
    f->since_ns = now_ns;
    return f->asking;
}
