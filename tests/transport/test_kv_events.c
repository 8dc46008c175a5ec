/* What is published arrives, or is found missing and replayed; what is too old is said to be gone;
 * garbage on either socket is refused and harms nobody. */
#include <sluice/transport/kv_events.h>

#include <sluice/base/limits.h>
#include <sluice/base/time.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <zmq.h>

static struct sl_kv_pub *open_pub(enum sl_kv_format format, const char *topic)
{
    struct sl_kv_pub *p = NULL;
    struct sl_err err = {0};
    const char *any[] = {"tcp://127.0.0.1:*"};
    struct sl_kv_pub_config cfg = {.endpoints = any,
                                   .n_endpoints = 1,
                                   .replay_endpoints = any,
                                   .n_replay_endpoints = 1,
                                   .topic = topic,
                                   .format = format,
                                   .medium = "CPU"};
    if (sl_kv_pub_open(&cfg, &p, &err))
        fail_msg("%s", err.msg);
    return p;
}

static void publish(struct sl_kv_pub *p, uint32_t number)
{
    const uint8_t key[1][32] = {{(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16)}};
    const struct sl_kv_wire_event e = {.kind = SL_KV_WIRE_REMOVED, .keys = key, .n_keys = 1};
    const struct sl_kv_batch b = {number, 0, &e, 1};
    assert_int_equal(sl_kv_pub_next(p), number);
    assert_int_equal(sl_kv_pub_send(p, &b, NULL), SL_OK);
}

static struct sl_kv_sub *open_sub(const struct sl_kv_pub *p, uint64_t key, const char *topic)
{
    struct sl_kv_sub *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(sl_kv_sub_open(4, NULL, &s, &err), SL_OK);
    struct sl_kv_source from = {sl_kv_pub_endpoint(p, 0), sl_kv_pub_replay_endpoint(p, 0), topic,
                                NULL};
    if (sl_kv_sub_join(s, key, &from, &err))
        fail_msg("%s", err.msg);
    return s;
}

/* The next news, while `p` answers replays; *gone notes whether it had to say so. False: none came
 * within `ms`. */
static bool next(struct sl_kv_sub *s, struct sl_kv_pub *p, struct sl_kv_news *n, bool *gone, int ms)
{
    for (uint64_t end = sl_now_ns() + (uint64_t)ms * SL_MS_NS;;) {
        *gone |= p && sl_kv_pub_serve(p);
        if (sl_kv_sub_next(s, n))
            return true;
        if (sl_now_ns() > end)
            return false;
        struct pollfd fd = {.fd = sl_kv_sub_fd(s), .events = POLLIN};
        poll(&fd, 1, 1);
    }
}

/* Replays from `first` and expects exactly [from, to). */
static bool expect_replay(struct sl_kv_sub *s, struct sl_kv_pub *p, uint64_t first, uint64_t from,
                          uint64_t to)
{
    struct sl_kv_news n;
    bool gone = false;
    assert_int_equal(sl_kv_sub_replay(s, 7, first, NULL), SL_OK);
    for (uint64_t seq = from; seq <= to;) {
        assert_true(next(s, p, &n, &gone, 10000));
        if (n.kind == SL_KV_NEWS_BATCH)
            continue;
        assert_int_equal(n.key, 7);
        if (seq == to) {
            assert_int_equal(n.kind, SL_KV_NEWS_REPLAY_END);
            return gone;
        }
        assert_int_equal(n.kind, SL_KV_NEWS_REPLAYED);
        assert_int_equal(n.seq, seq);
        assert_int_equal(n.batch.n_events, 1);
        assert_int_equal(n.batch.events[0].keys[0][0], seq & 0xff);
        seq++;
    }
    return gone;
}

static void test_publish_and_replay(void **state)
{
    (void)state;
    for (int format = SL_KV_VLLM; format <= SL_KV_VLLM_ARRAY; format++) {
        struct sl_kv_pub *p = open_pub((enum sl_kv_format)format, "kv");
        struct sl_kv_sub *s = open_sub(p, 7, "kv"), *other = open_sub(p, 8, "else");
        struct sl_kv_news n;
        bool gone = false;
        uint32_t sent = 0;
        for (; sent < 10; sent++)
            publish(p, sent);
        assert_false(expect_replay(s, p, 0, 0, 10));
        assert_false(expect_replay(s, p, 4, 4, 10));
        assert_false(expect_replay(s, p, 10, 10, 10)); /* nothing yet, no gap */
        assert_false(expect_replay(s, p, UINT64_MAX, 10, 10));
        /* The subscription is on its way: publish until one arrives, then all of them do. */
        while (!next(s, p, &n, &gone, 20))
            publish(p, sent++);
        uint64_t first = n.seq;
        assert_int_equal(n.kind, SL_KV_NEWS_BATCH);
        for (uint32_t i = 0; i < 100; i++)
            publish(p, sent++);
        for (uint64_t seq = first + 1; seq < sent; seq++) {
            assert_true(next(s, p, &n, &gone, 10000));
            assert_int_equal(n.kind, SL_KV_NEWS_BATCH);
            assert_int_equal(n.seq, seq);
        }
        assert_false(next(other, NULL, &n, &gone, 20)); /* another topic */
        sl_kv_sub_leave(s, 7);
        assert_int_equal(sl_kv_sub_replay(s, 7, 0, NULL), SL_PEER);
        assert_false(sl_kv_sub_next(s, &n));
        sl_kv_sub_close(s);
        sl_kv_sub_close(other);
        sl_kv_pub_close(p);
    }
}

/* More than is kept: the publisher is told that somebody asked for what is gone. */
static void test_bounded(void **state)
{
    (void)state;
    struct sl_kv_pub *p = open_pub(SL_KV_VLLM, "");
    struct sl_kv_sub *s = open_sub(p, 7, "");
    uint32_t n = SL_LIMIT_kv_replay_batches + 50;
    for (uint32_t i = 0; i < n; i++)
        publish(p, i);
    assert_true(expect_replay(s, p, 0, 50, n));
    assert_false(expect_replay(s, p, 50, 50, n));
    sl_kv_sub_close(s);
    sl_kv_pub_close(p);

    /* by bytes too */
    static uint32_t tokens[512 * 1024];
    static uint8_t keys[1][32];
    const struct sl_kv_wire_event e = {.kind = SL_KV_WIRE_STORED,
                                       .keys = (const uint8_t(*)[32])keys,
                                       .n_keys = 1,
                                       .tokens = tokens,
                                       .page_size = 65536};
    const struct sl_kv_batch b = {1, 0, &e, 1};
    for (uint32_t i = 0; i < 65536; i++)
        tokens[i] = UINT32_MAX;
    p = open_pub(SL_KV_VLLM, "");
    uint32_t kept = SL_LIMIT_kv_replay_bytes / (5 * 65536);
    for (uint32_t i = 0; i < kept + 10; i++)
        assert_int_equal(sl_kv_pub_send(p, &b, NULL), SL_OK);
    s = open_sub(p, 7, "nothing");
    struct sl_kv_news news;
    bool gone = false;
    uint32_t n_replayed = 0;
    assert_int_equal(sl_kv_sub_replay(s, 7, 0, NULL), SL_OK);
    while (next(s, p, &news, &gone, 10000) && news.kind == SL_KV_NEWS_REPLAYED)
        n_replayed++;
    assert_int_equal(news.kind, SL_KV_NEWS_REPLAY_END);
    assert_true(gone);
    assert_in_range(n_replayed, kept - 2, kept);
    sl_kv_sub_close(s);
    sl_kv_pub_close(p);
}

static void test_endpoints_are_checked(void **state)
{
    (void)state;
    static const char *const bad[] = {"tcp://0.0.0.0:0", "tcp://*:5557", "tcp://10.0.0.1:5557",
                                      "inproc://x",      "udp://1:1",    "ipc:///tmp/kv-open"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_kv_pub_config cfg = {.endpoints = &bad[i], .n_endpoints = 1};
        struct sl_kv_pub *p = NULL;
        struct sl_err err = {0};
        if (sl_kv_pub_open(&cfg, &p, &err) != SL_CONFIG || p)
            fail_msg("%s: %s", bad[i], err.msg);
    }
    struct sl_kv_sub *s = NULL;
    struct sl_err err;
    assert_int_equal(sl_kv_sub_open(1, NULL, &s, &err), SL_OK);
    const struct sl_kv_source far = {.endpoint = bad[2]}, near = {.endpoint = "tcp://127.0.0.1:1"};
    assert_int_equal(sl_kv_sub_join(s, 1, &far, &err), SL_CONFIG);
    assert_int_equal(sl_kv_sub_join(s, 0, &near, &err), SL_INVALID);
    assert_int_equal(sl_kv_sub_join(s, 1, &near, &err), SL_OK);
    assert_int_equal(sl_kv_sub_join(s, 1, &near, &err), SL_INVALID);
    assert_int_equal(sl_kv_sub_join(s, 2, &near, &err), SL_QUEUE_FULL);
    assert_int_equal(sl_kv_sub_replay(s, 1, 0, &err), SL_PEER); /* it has no such socket */
    sl_kv_sub_close(s);
}

/* Requests of any shape at the replay socket, then a good one. */
static void test_bad_requests(void **state)
{
    (void)state;
    struct sl_kv_pub *p = open_pub(SL_KV_VLLM, "");
    void *ctx = zmq_ctx_new(), *d = zmq_socket(ctx, ZMQ_DEALER);
    int linger = 0, timeout = 10000;
    zmq_setsockopt(d, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(d, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    assert_int_equal(zmq_connect(d, sl_kv_pub_replay_endpoint(p, 0)), 0);
    publish(p, 0);
    for (uint32_t i = 0; i < 20; i++) {
        uint8_t bytes[64] = {0};
        for (uint32_t k = 0; k < i % 6; k++)
            zmq_send(d, bytes, k % 3 ? (i * 3) % 64 : 0, ZMQ_SNDMORE);
        zmq_send(d, bytes, 7, 0);
    }
    uint8_t first[8] = {0}, got[8];
    zmq_send(d, "", 0, ZMQ_SNDMORE);
    zmq_send(d, first, 8, 0);
    struct pollfd fd = {.fd = sl_kv_pub_fd(p), .events = POLLIN};
    for (uint32_t i = 0; i < 50; i++) {
        poll(&fd, 1, 20);
        assert_false(sl_kv_pub_serve(p));
    }
    assert_int_equal(zmq_recv(d, got, 8, 0), 0); /* empty, topic, number, batch */
    assert_int_equal(zmq_recv(d, got, 8, 0), 0);
    assert_int_equal(zmq_recv(d, got, 8, 0), 8);
    assert_memory_equal(got, first, 8);
    zmq_close(d);
    zmq_ctx_term(ctx);
    sl_kv_pub_close(p);
}

/* A publisher that sends anything: bad messages are told apart and the next good one arrives. */
static void test_bad_publisher(void **state)
{
    (void)state;
    char endpoint[256];
    size_t size = sizeof endpoint;
    void *ctx = zmq_ctx_new(), *pub = zmq_socket(ctx, ZMQ_PUB);
    int linger = 0;
    zmq_setsockopt(pub, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_bind(pub, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(pub, ZMQ_LAST_ENDPOINT, endpoint, &size);
    struct sl_kv_sub *s = NULL;
    assert_int_equal(sl_kv_sub_open(1, NULL, &s, NULL), SL_OK);
    const struct sl_kv_source from = {.endpoint = endpoint, .topic = "t"};
    assert_int_equal(sl_kv_sub_join(s, 7, &from, NULL), SL_OK);
    struct sl_kv_news n;
    bool gone = false, good = false;
    uint32_t n_bad = 0;
    const uint8_t empty_batch[] = {0x92, 0, 0x90};
    for (uint32_t i = 0; i < 2000 && !(good && n_bad > 10); i++) {
        zmq_send(pub, "t", 1, i % 4 ? ZMQ_SNDMORE : 0);
        if (i % 4) {
            zmq_send(pub, "12345678", i % 3 ? 8 : 5, ZMQ_SNDMORE);
            zmq_send(pub, empty_batch, 3 - (i % 4 == 2), i % 4 == 3 ? ZMQ_SNDMORE : 0);
            if (i % 4 == 3)
                zmq_send(pub, "more", 4, 0);
        }
        if (!next(s, NULL, &n, &gone, 5))
            continue;
        good |= n.kind == SL_KV_NEWS_BATCH && n.batch.n_events == 0;
        n_bad += n.kind == SL_KV_NEWS_BAD;
    }
    assert_true(good && n_bad > 10);
    sl_kv_sub_close(s);
    zmq_close(pub);
    zmq_ctx_term(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_publish_and_replay),    cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_endpoints_are_checked), cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_bad_publisher),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
