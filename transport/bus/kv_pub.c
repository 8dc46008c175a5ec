/* Publisher of KV events: PUB for all, ROUTER for those who missed some.
 *
 * A batch is one reference-counted message: however many subscribers it waits for and however often
 * it is replayed, its bytes exist once, and the kept ones are bounded by number and size. */
#include <sluice/transport/kv_events.h>

#include "curve.h"
#include "kv_socket.h"

#include <sluice/base/limits.h>
#include <sluice/base/log.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENDPOINTS_MAX    8
#define ENDPOINT_BYTES   256
#define REQUESTS_AT_ONCE 16
/* A whole replay, and as much again: the library gives room back in halves, long after the fact. */
#define REPLAY_HWM   (2 * (SL_LIMIT_kv_replay_batches + 1))
#define MEDIUM_BYTES 16

struct sl_kv_pub {
    void *ctx, *pub, *router; /* router NULL: no replay */
    struct curve *ring;       /* NULL: no keys */
    char key[CURVE_TEXT_BYTES];
    char topic[KV_TOPIC_BYTES], medium[MEDIUM_BYTES];
    enum sl_kv_format format;
    char bound[ENDPOINTS_MAX][ENDPOINT_BYTES], replay_bound[ENDPOINTS_MAX][ENDPOINT_BYTES];
    uint32_t n_bound, n_replay_bound;
    uint64_t next_seq;
    zmq_msg_t *kept; /* ring [SL_LIMIT_kv_replay_batches], the last n_kept numbers */
    uint32_t n_kept;
    size_t kept_bytes;
    struct sl_buf encoded;
};

/* --- open, close ------------------------------------------------------------------------------ */

static enum sl_status bind_one(void *zmq, const char *endpoint, char bound[ENDPOINT_BYTES],
                               struct sl_err *err)
{
    size_t size = ENDPOINT_BYTES;
    kv_allow_ipv6(zmq, endpoint);
    if (zmq_bind(zmq, endpoint))
        return sl_fail(err, errno == EADDRINUSE ? SL_PORT_IN_USE : SL_CONFIG,
                       "kv events: cannot bind '%s': %s", endpoint, zmq_strerror(errno));
    if (zmq_getsockopt(zmq, ZMQ_LAST_ENDPOINT, bound, &size))
        return sl_fail(err, SL_CONFIG, "kv events: endpoint '%s': %s", endpoint,
                       zmq_strerror(errno));
    return SL_OK;
}

/* Options count for the binds that follow: open endpoints first, then those under CURVE. */
static enum sl_status bind_all(struct sl_kv_pub *p, void *zmq, const char *const *endpoints,
                               uint32_t n, const char *curve_dir, char (*bound)[ENDPOINT_BYTES],
                               struct sl_err *err)
{
    enum sl_status s = SL_OK;
    if (n > ENDPOINTS_MAX)
        return sl_fail(err, SL_CONFIG, "kv events: %u endpoints, at most %d", n, ENDPOINTS_MAX);
    for (uint32_t i = 0; i < n && s == SL_OK; i++)
        s = kv_check_endpoint(endpoints[i], true, curve_dir, err);
    for (uint32_t i = 0; i < n && s == SL_OK; i++)
        if (!kv_is_curve(endpoints[i], curve_dir))
            s = bind_one(zmq, endpoints[i], bound[i], err);
    if (s == SL_OK && p->ring)
        s = curve_arm_server(p->ring, zmq, SL_KEY_ROUTER, err);
    for (uint32_t i = 0; i < n && s == SL_OK; i++)
        if (kv_is_curve(endpoints[i], curve_dir))
            s = bind_one(zmq, endpoints[i], bound[i], err);
    return s;
}

static enum sl_status open_keys(struct sl_kv_pub *p, const char *curve_dir, struct sl_err *err)
{
    if (!curve_dir)
        return SL_OK;
    enum sl_status s = curve_open(p->ctx, curve_dir, &p->ring, err);
    if (s == SL_OK)
        curve_own_key(p->ring, p->key);
    return s;
}

static enum sl_status open_sockets(struct sl_kv_pub *p, const struct sl_kv_pub_config *cfg,
                                   struct sl_err *err)
{
    const int mandatory = 1; /* else what a slow asker has no room for is lost silently */
    enum sl_status s = open_keys(p, cfg->curve_dir, err);
    if (s == SL_OK)
        s = kv_socket(p->ctx, ZMQ_PUB, SL_LIMIT_bus_hwm_messages, &p->pub, err);
    if (s == SL_OK)
        s = bind_all(p, p->pub, cfg->endpoints, cfg->n_endpoints, cfg->curve_dir, p->bound, err);
    if (s != SL_OK)
        return s;
    p->n_bound = cfg->n_endpoints;
    if (!cfg->n_replay_endpoints)
        return SL_OK;
    s = kv_socket(p->ctx, ZMQ_ROUTER, REPLAY_HWM, &p->router, err);
    if (s == SL_OK && zmq_setsockopt(p->router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory))
        s = sl_fail(err, SL_FAILED, "kv events: socket option ROUTER_MANDATORY: %s",
                    zmq_strerror(errno));
    if (s == SL_OK)
        s = bind_all(p, p->router, cfg->replay_endpoints, cfg->n_replay_endpoints, cfg->curve_dir,
                     p->replay_bound, err);
    if (s == SL_OK)
        p->n_replay_bound = cfg->n_replay_endpoints;
    return s;
}

enum sl_status sl_kv_pub_open(const struct sl_kv_pub_config *cfg, struct sl_kv_pub **out,
                              struct sl_err *err)
{
    const char *topic = cfg->topic ? cfg->topic : "";
    *out = NULL;
    if (strlen(topic) >= KV_TOPIC_BYTES)
        return sl_fail(err, SL_CONFIG, "kv events: topic of %zu bytes, at most %d", strlen(topic),
                       KV_TOPIC_BYTES - 1);
    struct sl_kv_pub *p = calloc(1, sizeof *p);
    if (!p)
        return sl_fail(err, SL_NO_MEMORY, "kv events: no memory");
    snprintf(p->topic, sizeof p->topic, "%s", topic);
    snprintf(p->medium, sizeof p->medium, "%s", cfg->medium ? cfg->medium : "CPU");
    p->format = cfg->format;
    p->encoded.cap_bytes = SL_LIMIT_bus_message_bytes + 1;
    p->kept = calloc(SL_LIMIT_kv_replay_batches, sizeof *p->kept);
    enum sl_status s = p->kept ? SL_OK : sl_fail(err, SL_NO_MEMORY, "kv events: no memory");
    if (s == SL_OK && !(p->ctx = kv_context(err)))
        s = SL_FAILED;
    if (s == SL_OK)
        s = open_sockets(p, cfg, err);
    if (s != SL_OK)
        sl_kv_pub_close(p);
    else
        *out = p;
    return s;
}

static zmq_msg_t *kept_at(struct sl_kv_pub *p, uint64_t seq)
{
    return &p->kept[seq % SL_LIMIT_kv_replay_batches];
}

static void drop_oldest(struct sl_kv_pub *p)
{
    zmq_msg_t *m = kept_at(p, p->next_seq - p->n_kept);
    p->kept_bytes -= zmq_msg_size(m);
    zmq_msg_close(m);
    p->n_kept--;
}

void sl_kv_pub_close(struct sl_kv_pub *p)
{
    if (!p)
        return;
    while (p->kept && p->n_kept)
        drop_oldest(p);
    if (p->pub)
        zmq_close(p->pub);
    if (p->router)
        zmq_close(p->router);
    curve_close(p->ring);
    if (p->ctx)
        zmq_ctx_term(p->ctx);
    sl_buf_free(&p->encoded);
    free(p->kept);
    free(p);
}

const char *sl_kv_pub_endpoint(const struct sl_kv_pub *p, uint32_t i)
{
    return i < p->n_bound ? p->bound[i] : NULL;
}

const char *sl_kv_pub_replay_endpoint(const struct sl_kv_pub *p, uint32_t i)
{
    return i < p->n_replay_bound ? p->replay_bound[i] : NULL;
}

const char *sl_kv_pub_key(const struct sl_kv_pub *p)
{
    return p->key;
}

uint64_t sl_kv_pub_next(const struct sl_kv_pub *p)
{
    return p->next_seq;
}

uint64_t sl_kv_pub_oldest(const struct sl_kv_pub *p)
{
    return p->next_seq - p->n_kept;
}

int sl_kv_pub_fd(const struct sl_kv_pub *p)
{
    int fd = -1;
    if (!p->router || kv_socket_fd(p->router, &fd, NULL))
        return -1;
    return fd;
}

/* --- publishing ------------------------------------------------------------------------------- */

static bool send_copy(void *zmq, zmq_msg_t *m, int flags)
{
    zmq_msg_t copy;
    zmq_msg_init(&copy);
    if (zmq_msg_copy(&copy, m) || zmq_msg_send(&copy, zmq, flags | ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&copy);
        return false;
    }
    return true;
}

static bool send_bytes(void *zmq, const void *data, size_t size, int flags)
{
    return zmq_send(zmq, data, size, flags | ZMQ_DONTWAIT) >= 0;
}

/* Room for one more of `bytes`: older ones go. */
static void make_room(struct sl_kv_pub *p, size_t bytes)
{
    while (p->n_kept && (p->n_kept == SL_LIMIT_kv_replay_batches ||
                         p->kept_bytes + bytes > SL_LIMIT_kv_replay_bytes))
        drop_oldest(p);
}

enum sl_status sl_kv_pub_send(struct sl_kv_pub *p, const struct sl_kv_batch *b, struct sl_err *err)
{
    uint8_t seq[KV_SEQ_BYTES];
    sl_buf_clear(&p->encoded);
    enum sl_status s = sl_kv_batch_encode(b, p->format, p->medium, &p->encoded, err);
    if (s != SL_OK)
        return s;
    make_room(p, p->encoded.len);
    zmq_msg_t *m = kept_at(p, p->next_seq);
    if (zmq_msg_init_size(m, p->encoded.len))
        return sl_fail(err, SL_NO_MEMORY, "kv events: no memory for a batch of %zu bytes",
                       p->encoded.len);
    memcpy(zmq_msg_data(m), p->encoded.data, p->encoded.len);
    kv_put_seq(seq, p->next_seq++);
    p->n_kept++;
    p->kept_bytes += p->encoded.len;
    /* A subscriber whose queue is full misses it, sees the gap and asks for a replay. */
    if (!send_bytes(p->pub, p->topic, strlen(p->topic), ZMQ_SNDMORE) ||
        !send_bytes(p->pub, seq, sizeof seq, ZMQ_SNDMORE) || !send_copy(p->pub, m, 0))
        return sl_fail(err, SL_FAILED, "kv events: send: %s", zmq_strerror(errno));
    return SL_OK;
}

/* --- replay ----------------------------------------------------------------------------------- */

static bool send_reply(struct sl_kv_pub *p, zmq_msg_t *id, bool end, uint64_t seq_number)
{
    uint8_t seq[KV_SEQ_BYTES];
    kv_put_seq(seq, seq_number);
    if (!send_copy(p->router, id, ZMQ_SNDMORE) || !send_bytes(p->router, "", 0, ZMQ_SNDMORE))
        return false;
    if (p->format == SL_KV_VLLM &&
        !send_bytes(p->router, p->topic, end ? 0 : strlen(p->topic), ZMQ_SNDMORE))
        return false;
    if (!send_bytes(p->router, seq, sizeof seq, ZMQ_SNDMORE))
        return false;
    return end ? send_bytes(p->router, "", 0, 0) : send_copy(p->router, kept_at(p, seq_number), 0);
}

/* True when what it asks for is gone. */
static bool answer(struct sl_kv_pub *p, zmq_msg_t *id, uint64_t first)
{
    uint64_t oldest = sl_kv_pub_oldest(p);
    for (uint64_t seq = first > oldest ? first : oldest; seq < p->next_seq; seq++)
        if (!send_reply(p, id, false, seq))
            return false; /* the asker reads too slowly, or is gone: it asks again */
    send_reply(p, id, true, UINT64_MAX);
    return first < oldest;
}

bool sl_kv_pub_serve(struct sl_kv_pub *p)
{
    bool gone = false;
    for (uint32_t i = 0; p->router && i < REQUESTS_AT_ONCE; i++) {
        zmq_msg_t frames[3];
        uint32_t n = kv_recv_frames(p->router, frames, 3);
        if (!n)
            break;
        if (n == 3 && !zmq_msg_size(&frames[1]) && zmq_msg_size(&frames[2]) == KV_SEQ_BYTES)
            gone |= answer(p, &frames[0], kv_get_seq(zmq_msg_data(&frames[2])));
        else
            sl_log(SL_LOG_WARN, "kv events: replay request of %u frames refused", n);
        kv_close_frames(frames, n, 3);
    }
    return gone;
}
