/* Subscriber of KV events: for each publisher a SUB and, where it replays, a DEALER.
 *
 * Sockets that may have something are "hot": told so by their edge-triggered descriptor in one
 * epoll set, or because a call on them may have used the edge up; cold again once one says
 * "nothing". */
#include <sluice/transport/kv_events.h>

#include "curve.h"
#include "kv_socket.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define FRAMES_MAX         4
#define EVENTS_AT_ONCE     64
#define DECODE_ARENA_BYTES ((size_t)32 << 20)

struct feed {
    uint64_t key; /* 0: free */
    void *zmq[2]; /* SUB, DEALER or NULL */
    bool hot[2];
};

struct sl_kv_sub {
    void *ctx;
    const char *curve_dir;
    struct curve *ring; /* NULL: no keys */
    int epoll_fd;
    struct feed *feeds;       /* [feeds_max] */
    uint32_t feeds_max, next; /* next: where the search for something hot begins */
    uint32_t n_hot;
    struct sl_arena arena;
};

static void set_hot(struct sl_kv_sub *s, struct feed *f, uint32_t side, bool hot)
{
    s->n_hot += hot && !f->hot[side];
    s->n_hot -= !hot && f->hot[side];
    f->hot[side] = hot;
}

/* --- open, close ------------------------------------------------------------------------------ */

enum sl_status sl_kv_sub_open(uint32_t feeds_max, const char *curve_dir, struct sl_kv_sub **out,
                              struct sl_err *err)
{
    *out = NULL;
    struct sl_kv_sub *s = calloc(1, sizeof *s);
    if (!s)
        return sl_fail(err, SL_NO_MEMORY, "kv events: no memory");
    s->feeds_max = feeds_max;
    s->curve_dir = curve_dir;
    s->curve_dir = curve_dir;
    sl_arena_init(&s->arena, DECODE_ARENA_BYTES);
    s->feeds = calloc(feeds_max, sizeof *s->feeds);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    enum sl_status status = SL_OK;
    if (!s->feeds || s->epoll_fd < 0)
        status = sl_fail(err, SL_NO_MEMORY, "kv events: no memory or descriptors");
    if (status == SL_OK && !(s->ctx = kv_context(err)))
        status = SL_FAILED;
    if (status == SL_OK && zmq_ctx_set(s->ctx, ZMQ_MAX_SOCKETS, (int)(2 * feeds_max + 8)))
        status = sl_fail(err, SL_FAILED, "kv events: %u sockets: %s", 2 * feeds_max,
                         zmq_strerror(errno));
    if (status == SL_OK && curve_dir)
        status = curve_open(s->ctx, curve_dir, &s->ring, err);
    if (status != SL_OK)
        sl_kv_sub_close(s);
    else
        *out = s;
    return status;
}

static void feed_close(struct sl_kv_sub *s, struct feed *f)
{
    for (uint32_t side = 0; side < 2; side++) {
        int fd;
        set_hot(s, f, side, false);
        if (!f->zmq[side])
            continue;
        if (!kv_socket_fd(f->zmq[side], &fd, NULL))
            epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        zmq_close(f->zmq[side]);
    }
    memset(f, 0, sizeof *f);
}

void sl_kv_sub_close(struct sl_kv_sub *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; s->feeds && i < s->feeds_max; i++)
        feed_close(s, &s->feeds[i]);
    curve_close(s->ring);
    if (s->ctx)
        zmq_ctx_term(s->ctx);
    if (s->epoll_fd >= 0)
        close(s->epoll_fd);
    sl_arena_free(&s->arena);
    free(s->feeds);
    free(s);
}

int sl_kv_sub_fd(const struct sl_kv_sub *s)
{
    return s->epoll_fd;
}

/* --- feeds ------------------------------------------------------------------------------------ */

static struct feed *find(const struct sl_kv_sub *s, uint64_t key)
{
    for (uint32_t i = 0; i < s->feeds_max; i++)
        if (s->feeds[i].key == key)
            return &s->feeds[i];
    return NULL;
}

static enum sl_status arm(struct sl_kv_sub *s, void *zmq, const char *endpoint, const char *key,
                          struct sl_err *err)
{
    if (!kv_is_curve(endpoint, s->curve_dir))
        return SL_OK;
    if (!key || !curve_allows(s->ring, key, SL_KEY_WORKER, NULL))
        return sl_fail(err, SL_CONFIG, "kv events: the key of '%s' is not an allowed worker's",
                       endpoint);
    return curve_arm_client(s->ring, zmq, key, err);
}

static enum sl_status join_side(struct sl_kv_sub *s, struct feed *f, uint32_t side,
                                const struct sl_kv_source *from, struct sl_err *err)
{
    const char *endpoint = side ? from->replay : from->endpoint;
    int fd;
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (uint64_t)(f - s->feeds) * 2 + side};
    enum sl_status status = kv_check_endpoint(endpoint, false, s->curve_dir, err);
    int hwm = side ? SL_LIMIT_kv_replay_batches + 1 : SL_LIMIT_bus_hwm_messages;
    if (status == SL_OK)
        status = kv_socket(s->ctx, side ? ZMQ_DEALER : ZMQ_SUB, hwm, &f->zmq[side], err);
    if (status == SL_OK)
        status = arm(s, f->zmq[side], endpoint, from->key, err);
    if (status != SL_OK)
        return status;
    const char *topic = from->topic ? from->topic : "";
    if (!side && zmq_setsockopt(f->zmq[0], ZMQ_SUBSCRIBE, topic, strlen(topic)))
        return sl_fail(err, SL_FAILED, "kv events: subscribe: %s", zmq_strerror(errno));
    kv_allow_ipv6(f->zmq[side], endpoint);
    if (zmq_connect(f->zmq[side], endpoint))
        return sl_fail(err, SL_CONFIG, "kv events: cannot connect to '%s': %s", endpoint,
                       zmq_strerror(errno));
    status = kv_socket_fd(f->zmq[side], &fd, err);
    if (status == SL_OK && epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        status = sl_fail(err, SL_FAILED, "kv events: cannot watch: %s", strerror(errno));
    set_hot(s, f, side, true); /* its first edge may be over */
    return status;
}

enum sl_status sl_kv_sub_join(struct sl_kv_sub *s, uint64_t key, const struct sl_kv_source *from,
                              struct sl_err *err)
{
    struct feed *f = find(s, 0);
    if (!key || find(s, key))
        return sl_fail(err, SL_INVALID, "kv events: feed %llu is there already",
                       (unsigned long long)key);
    if (!f)
        return sl_fail(err, SL_QUEUE_FULL, "kv events: %u feeds are open", s->feeds_max);
    f->key = key;
    enum sl_status status = join_side(s, f, 0, from, err);
    if (status == SL_OK && from->replay)
        status = join_side(s, f, 1, from, err);
    if (status != SL_OK)
        feed_close(s, f);
    return status;
}

void sl_kv_sub_leave(struct sl_kv_sub *s, uint64_t key)
{
    struct feed *f = key ? find(s, key) : NULL;
    if (f)
        feed_close(s, f);
}

enum sl_status sl_kv_sub_replay(struct sl_kv_sub *s, uint64_t key, uint64_t first,
                                struct sl_err *err)
{
    struct feed *f = key ? find(s, key) : NULL;
    uint8_t seq[KV_SEQ_BYTES];
    if (!f || !f->zmq[1])
        return sl_fail(err, SL_PEER, "kv events: feed %llu cannot replay", (unsigned long long)key);
    kv_put_seq(seq, first);
    set_hot(s, f, 1, true);
    if (zmq_send(f->zmq[1], "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
        zmq_send(f->zmq[1], seq, sizeof seq, ZMQ_DONTWAIT) < 0)
        return sl_fail(err, SL_PEER, "kv events: feed %llu: %s", (unsigned long long)key,
                       zmq_strerror(errno));
    return SL_OK;
}

/* --- receiving -------------------------------------------------------------------------------- */

static void look_for_hot(struct sl_kv_sub *s)
{
    struct epoll_event ev[EVENTS_AT_ONCE];
    int n = epoll_wait(s->epoll_fd, ev, EVENTS_AT_ONCE, 0);
    for (int i = 0; i < n; i++) {
        struct feed *f = &s->feeds[ev[i].data.u64 / 2];
        if (f->key)
            set_hot(s, f, ev[i].data.u64 % 2, true);
    }
}

static bool is_seq(zmq_msg_t *m)
{
    return zmq_msg_size(m) == KV_SEQ_BYTES;
}

/* Frames of either side: topic, number, batch; replayed ones behind an empty frame, and without
 * topic in the older format. NULL: not so. */
static zmq_msg_t *seq_frame(zmq_msg_t *frames, uint32_t n, uint32_t side)
{
    if (!side)
        return n == 3 && is_seq(&frames[1]) ? &frames[1] : NULL;
    if (n < 3 || n > 4 || zmq_msg_size(&frames[0]))
        return NULL;
    return is_seq(&frames[n - 2]) ? &frames[n - 2] : NULL;
}

static void read_news(struct sl_kv_sub *s, zmq_msg_t *frames, uint32_t n, uint32_t side,
                      struct sl_kv_news *out)
{
    struct sl_err err;
    zmq_msg_t *seq = seq_frame(frames, n, side);
    out->kind = SL_KV_NEWS_BAD;
    if (!seq) {
        sl_log(SL_LOG_WARN, "kv events: message of %u frames refused", n);
        return;
    }
    zmq_msg_t *batch = seq + 1;
    out->seq = kv_get_seq(zmq_msg_data(seq));
    sl_arena_reset(&s->arena);
    if (side && out->seq == UINT64_MAX && !zmq_msg_size(batch))
        out->kind = SL_KV_NEWS_REPLAY_END;
    else if (sl_kv_batch_decode(zmq_msg_data(batch), zmq_msg_size(batch), &s->arena, &out->batch,
                                &err))
        sl_log(SL_LOG_WARN, "batch refused: %s", err.msg);
    else
        out->kind = side ? SL_KV_NEWS_REPLAYED : SL_KV_NEWS_BATCH;
}

static bool take(struct sl_kv_sub *s, struct feed *f, uint32_t side, struct sl_kv_news *out)
{
    zmq_msg_t frames[FRAMES_MAX];
    uint32_t n = kv_recv_frames(f->zmq[side], frames, FRAMES_MAX);
    if (!n) {
        set_hot(s, f, side, false);
        return false;
    }
    *out = (struct sl_kv_news){.key = f->key};
    read_news(s, frames, n, side, out);
    kv_close_frames(frames, n, FRAMES_MAX);
    return true;
}

bool sl_kv_sub_next(struct sl_kv_sub *s, struct sl_kv_news *out)
{
    if (!s->n_hot)
        look_for_hot(s);
    for (uint32_t i = 0; i < 2 * s->feeds_max && s->n_hot; i++) {
        uint32_t at = (s->next + i) % (2 * s->feeds_max), side = at % 2;
        struct feed *f = &s->feeds[at / 2];
        if (f->hot[side] && take(s, f, side, out)) {
            s->next = (at + 1) % (2 * s->feeds_max); /* everybody in turn */
            return true;
        }
    }
    return false;
}
