/* Promise: routers and workers find each other over ipc and loopback tcp, every peer has its own
 * link, nothing that is not a message reaches the caller, and nobody who does not read holds
 * anybody else up. */
#include "bus_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#define PATIENCE_MS 20000 /* of a test that fails; one that passes never waits so long */

static struct sl_bus *open_bus(bool is_router, const char *endpoint)
{
    struct sl_bus_config cfg = {.endpoints = &endpoint, .n_endpoints = 1, .is_router = is_router};
    struct sl_bus *b;
    struct sl_err err;
    if (sl_bus_open(&cfg, &b, &err) != SL_OK)
        fail_msg("%s", err.msg);
    return b;
}

static enum sl_status open_status(bool is_router, const char *endpoint, const char *curve_dir,
                                  struct sl_err *err)
{
    struct sl_bus_config cfg = {
        .endpoints = &endpoint, .n_endpoints = 1, .is_router = is_router, .curve_dir = curve_dir};
    struct sl_bus *b = NULL;
    enum sl_status s = sl_bus_open(&cfg, &b, err);
    sl_bus_close(b);
    return s;
}

static void send_ok(struct sl_bus *b, uint64_t link, const struct sl_msg *m)
{
    struct sl_err err;
    if (sl_bus_send(b, link, m, &err) != SL_OK)
        fail_msg("%s", err.msg);
}

/* Sends as soon as there is a connection. */
static void send_soon(struct sl_bus *b, uint64_t link, const struct sl_msg *m)
{
    struct sl_msg ignored;
    struct sl_err err;
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS, from;
    while (sl_bus_send(b, link, m, &err) != SL_OK) {
        if (sl_now_ns() > until)
            fail_msg("%s", err.msg);
        struct pollfd p = {.fd = sl_bus_fd(b), .events = POLLIN};
        poll(&p, 1, 10);
        sl_bus_recv(b, &from, &ignored, &err);
        assert_int_equal(ignored.kind, SL_MSG_NONE);
    }
}

/* The next message, found only by the descriptor: a lost wake-up shows as a time-out. */
static uint64_t recv_msg(struct sl_bus *b, struct sl_msg *m)
{
    uint64_t link = 0, until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    struct sl_err err;
    for (;;) {
        assert_int_equal(sl_bus_recv(b, &link, m, &err), SL_OK);
        if (m->kind != SL_MSG_NONE)
            return link;
        struct pollfd p = {.fd = sl_bus_fd(b), .events = POLLIN};
        if (sl_now_ns() > until || poll(&p, 1, PATIENCE_MS) == 0)
            fail_msg("no message came");
    }
}

static void recv_none(struct sl_bus *b)
{
    struct sl_msg m;
    struct sl_err err;
    uint64_t link;
    assert_int_equal(sl_bus_recv(b, &link, &m, &err), SL_OK);
    assert_int_equal(m.kind, SL_MSG_NONE);
}

/* The news of a connection may come after the first message got through. */
static void until_connected(struct sl_bus *worker, uint64_t n_connects)
{
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    recv_none(worker);
    while (!sl_bus_connected(worker, 0) && sl_now_ns() < until) {
        struct pollfd p = {.fd = sl_bus_fd(worker), .events = POLLIN};
        poll(&p, 1, 100);
        recv_none(worker);
    }
    assert_true(sl_bus_connected(worker, 0));
    assert_int_equal(sl_bus_n_connects(worker, 0), n_connects);
}

struct fixture {
    struct sl_buf ipc;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct sl_err err;
    if (!f || sl_bus_ipc_make("/tmp", &f->ipc, &err) != SL_OK)
        return -1;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    sl_bus_ipc_remove(f->ipc.data);
    sl_buf_free(&f->ipc);
    free(f);
    return 0;
}

/* Every kind in both directions. */
static void exchange(const char *bind)
{
    struct samples s;
    samples_fill(&s);
    struct sl_bus *router = open_bus(true, bind);
    struct sl_bus *worker = open_bus(false, sl_bus_endpoint(router, 0));
    struct sl_msg m;
    send_soon(worker, 0, &s.m[0]);
    uint64_t link = recv_msg(router, &m);
    assert_int_equal(m.kind, SL_MSG_HELLO);
    assert_int_equal(m.hello.pid, s.m[0].hello.pid);
    assert_true(link != 0);
    until_connected(worker, 1);
    s.m[0].hello.greeting++; /* a HELLO counts once */
    for (int i = 0; i < N_SAMPLES; i++)
        send_ok(worker, 0, &s.m[i]);
    for (int i = 0; i < N_SAMPLES; i++) {
        assert_int_equal(recv_msg(router, &m), link);
        assert_int_equal(m.kind, s.m[i].kind);
    }
    for (int i = 1; i < N_SAMPLES; i++) /* all but HELLO, which routers never say */
        send_ok(router, link, &s.m[i]);
    for (int i = 1; i < N_SAMPLES; i++) {
        assert_int_equal(recv_msg(worker, &m), 0);
        assert_int_equal(m.kind, s.m[i].kind);
    }
    recv_none(router);
    struct sl_bus_stats stats;
    sl_bus_stats(router, &stats);
    assert_int_equal(stats.n_received, N_SAMPLES + 1);
    assert_int_equal(stats.n_sent, N_SAMPLES - 1);
    assert_int_equal(stats.n_malformed, 0);
    sl_bus_close(worker);
    sl_bus_close(router);
}

static void exchange_ipc(void **state)
{
    struct fixture *f = *state;
    exchange(f->ipc.data);
}

static void exchange_tcp(void **state)
{
    (void)state;
    exchange("tcp://127.0.0.1:*");
}

/* Each worker hears what was said to it and to nobody else. */
static void many_peers(void **state)
{
    enum { N = 40 };
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data), *workers[N];
    uint64_t links[N] = {0};
    struct samples s;
    struct sl_msg m;
    samples_fill(&s);
    for (uint32_t i = 0; i < N; i++) {
        workers[i] = open_bus(false, f->ipc.data);
        s.m[0].hello.pid = i;
        send_soon(workers[i], 0, &s.m[0]);
    }
    for (uint32_t i = 0; i < N; i++) {
        uint64_t link = recv_msg(router, &m);
        assert_true(m.hello.pid < N && links[m.hello.pid] == 0);
        links[m.hello.pid] = link;
    }
    for (uint32_t i = 0; i < N; i++) {
        struct sl_msg cancel = {.kind = SL_MSG_CANCEL, .cancel = {.id = i, .epoch = 1}};
        for (uint32_t k = 0; k < i; k++)
            assert_true(links[i] != links[k]);
        send_ok(router, links[i], &cancel);
    }
    for (uint32_t i = 0; i < N; i++) {
        recv_msg(workers[i], &m);
        assert_int_equal(m.cancel.id, i);
        recv_none(workers[i]);
        sl_bus_close(workers[i]);
    }
    sl_bus_close(router);
}

/* One worker, two routers: its links are the indices of its endpoints. */
static void two_routers(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *a = open_bus(true, f->ipc.data), *b = open_bus(true, "tcp://127.0.0.1:*");
    const char *endpoints[] = {f->ipc.data, sl_bus_endpoint(b, 0)};
    struct sl_bus_config cfg = {.endpoints = endpoints, .n_endpoints = 2};
    struct sl_bus *worker;
    struct sl_err err;
    struct sl_msg m, ping = {.kind = SL_MSG_PING}, load = {.kind = SL_MSG_LOAD};
    assert_int_equal(sl_bus_open(&cfg, &worker, &err), SL_OK);
    send_soon(worker, 0, &load);
    send_soon(worker, 1, &load);
    uint64_t link_a = recv_msg(a, &m), link_b = recv_msg(b, &m);
    send_ok(a, link_a, &ping);
    assert_int_equal(recv_msg(worker, &m), 0);
    send_ok(b, link_b, &ping);
    assert_int_equal(recv_msg(worker, &m), 1);
    assert_int_equal(sl_bus_send(worker, 2, &ping, &err), SL_PEER);
    sl_bus_close(worker);
    sl_bus_close(a);
    sl_bus_close(b);
}

/* A worker that comes back is another link; the old one is gone and stays gone. */
static void links_are_never_reused(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data);
    struct sl_msg m, load = {.kind = SL_MSG_LOAD}, ping = {.kind = SL_MSG_PING};
    struct sl_err err;
    uint64_t last = 0;
    for (int i = 0; i < 4; i++) {
        struct sl_bus *worker = open_bus(false, f->ipc.data);
        send_soon(worker, 0, &load);
        uint64_t link = recv_msg(router, &m);
        assert_true(link > last);
        last = link;
        sl_bus_close(worker);
        uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
        while (sl_bus_send(router, link, &ping, &err) == SL_OK && sl_now_ns() < until) {
            struct pollfd p = {.fd = sl_bus_fd(router), .events = POLLIN};
            poll(&p, 1, 1);
            recv_none(router);
        }
        assert_int_equal(sl_bus_send(router, link, &ping, &err), SL_PEER);
    }
    sl_bus_close(router);
}

static void dropped_link_is_gone(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data), *worker = open_bus(false, f->ipc.data);
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    struct sl_err err;
    send_soon(worker, 0, &load);
    uint64_t first = recv_msg(router, &m);
    sl_bus_drop(router, first);
    assert_int_equal(sl_bus_send(router, first, &load, &err), SL_PEER);
    send_ok(worker, 0, &load);
    uint64_t second = recv_msg(router, &m);
    assert_true(second > first);
    send_ok(router, second, &load);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* A router that starts again at the same place: the worker sees that it is another connection. */
static void reconnect_is_seen(void **state)
{
    struct fixture *f = *state;
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    struct sl_bus *router = open_bus(true, f->ipc.data), *worker = open_bus(false, f->ipc.data);
    send_soon(worker, 0, &load);
    recv_msg(router, &m);
    until_connected(worker, 1);
    sl_bus_close(router);
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    while (sl_bus_connected(worker, 0) && sl_now_ns() < until) {
        struct pollfd p = {.fd = sl_bus_fd(worker), .events = POLLIN};
        poll(&p, 1, 100);
        recv_none(worker);
    }
    assert_false(sl_bus_connected(worker, 0));
    router = open_bus(true, f->ipc.data);
    until_connected(worker, 2); /* what is sent before may still go to the old connection */
    send_soon(worker, 0, &load);
    recv_msg(router, &m);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* A worker gives a connection up by itself: the router answers on the new one. */
static void reconnects_at_will(void **state)
{
    struct fixture *f = *state;
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    struct sl_bus *router = open_bus(true, f->ipc.data), *worker = open_bus(false, f->ipc.data);
    send_soon(worker, 0, &load);
    recv_msg(router, &m);
    until_connected(worker, 1);
    sl_bus_reconnect(worker, 0);
    assert_false(sl_bus_connected(worker, 0));
    until_connected(worker, 2);
    send_soon(worker, 0, &load);
    recv_msg(router, &m);
    sl_bus_reconnect(worker, 7); /* no such endpoint: nothing happens */
    sl_bus_reconnect(router, 0);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* ---- garbage ---- */

static void raw_send(void *zmq, const char *const *frames, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_true(zmq_send(zmq, frames[i], strlen(frames[i]), i + 1 < n ? ZMQ_SNDMORE : 0) >= 0);
}

static void garbage_frames(void **state)
{
    static const char *const frames[] = {"", "GET / HTTP/1.1\r\n\r\n", "\x0a\xff\xff\xff\xff\x0f",
                                         "\x0a", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"};
    enum { N_FRAMES = sizeof frames / sizeof *frames };
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data);
    struct sl_bus *worker = open_bus(false, f->ipc.data);
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    void *ctx = zmq_ctx_new(), *raw = zmq_socket(ctx, ZMQ_DEALER);
    const int linger = 0;
    zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_connect(raw, f->ipc.data), 0);
    for (size_t i = 0; i < N_FRAMES; i++)
        raw_send(raw, &frames[i], 1);
    raw_send(raw, frames, N_FRAMES); /* more frames than a message has */
    const char *good_alone[] = {"\x4a"};
    raw_send(raw, good_alone, 1);
    send_soon(worker, 0, &load);

    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS, link;
    struct sl_bus_stats stats = {0};
    struct sl_err err;
    uint32_t n_good = 0;
    while ((stats.n_malformed < N_FRAMES + 2 || n_good == 0) && sl_now_ns() < until) {
        struct pollfd p = {.fd = sl_bus_fd(router), .events = POLLIN};
        poll(&p, 1, PATIENCE_MS);
        assert_int_equal(sl_bus_recv(router, &link, &m, &err), SL_OK);
        n_good += m.kind == SL_MSG_LOAD;
        assert_true(m.kind == SL_MSG_LOAD || m.kind == SL_MSG_NONE);
        sl_bus_stats(router, &stats);
    }
    assert_int_equal(stats.n_malformed, N_FRAMES + 2);
    assert_int_equal(stats.n_received, 1);
    assert_int_equal(n_good, 1);
    zmq_close(raw);
    zmq_ctx_term(ctx);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* A thousand bad messages cost their sender nothing but leave the good one its place. */
static void flood_of_garbage(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data);
    struct sl_bus *worker = open_bus(false, f->ipc.data);
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    void *ctx = zmq_ctx_new(), *raw = zmq_socket(ctx, ZMQ_DEALER);
    const char *frame = "x";
    const int linger = 0;
    zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_connect(raw, f->ipc.data), 0);
    for (int i = 0; i < 1000; i++)
        raw_send(raw, &frame, 1);
    send_soon(worker, 0, &load);
    recv_msg(router, &m);
    assert_int_equal(m.kind, SL_MSG_LOAD);
    zmq_close(raw);
    zmq_ctx_term(ctx);
    sl_bus_close(worker);
    sl_bus_close(router);
}

static int tcp_connect(const char *endpoint)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    addr.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&addr, sizeof addr), 0);
    return fd;
}

/* Peers that do not speak the protocol at all, or stop in the middle of it. */
static void raw_tcp_peers(void **state)
{
    (void)state;
    static const struct sl_str said[] = {
        {"", 0},
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27},
        {"\xff", 1},
        {"\xff\0\0\0\0\0\0\0\1\x7f", 10},
        {"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL\0\0\0\0\0\0\0\0\0\0\0\0", 28},
    };
    enum { N = 50 };
    struct sl_bus *router = open_bus(true, "tcp://127.0.0.1:*");
    int fds[N];
    for (int i = 0; i < N; i++) {
        fds[i] = tcp_connect(sl_bus_endpoint(router, 0));
        assert_true(send(fds[i], said[i % 5].data, said[i % 5].len, MSG_NOSIGNAL) >= 0);
    }
    struct sl_bus *worker = open_bus(false, sl_bus_endpoint(router, 0));
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    send_soon(worker, 0, &load);
    uint64_t link = recv_msg(router, &m);
    assert_int_equal(m.kind, SL_MSG_LOAD);
    send_ok(router, link, &load);
    recv_msg(worker, &m);
    struct sl_bus_stats stats;
    sl_bus_stats(router, &stats);
    assert_int_equal(stats.n_received, 1);
    for (int i = 0; i < N; i++)
        close(fds[i]);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* ---- limits ---- */

/* A peer that never reads: the sender is told, never held up, and others are served. */
static void full_queue(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data);
    struct sl_bus *deaf = open_bus(false, f->ipc.data), *other = open_bus(false, f->ipc.data);
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    char *bytes = calloc(65536, 1);
    struct sl_err err = {0};
    send_soon(deaf, 0, &load);
    uint64_t deaf_link = recv_msg(router, &m);
    send_soon(other, 0, &load);
    uint64_t other_link = recv_msg(router, &m);
    m = (struct sl_msg){.kind = SL_MSG_META_CHUNK};
    m.meta.bytes = (struct sl_str){bytes, 16384};
    int n = 0;
    enum sl_status s = SL_OK;
    while (s == SL_OK && n < 100000) {
        s = sl_bus_send(router, deaf_link, &m, &err);
        n += s == SL_OK;
    }
    assert_int_equal(s, SL_PEER);
    assert_true(n >= SL_LIMIT_bus_hwm_messages);
    send_ok(router, other_link, &load);
    recv_msg(other, &m);
    assert_int_equal(m.kind, SL_MSG_LOAD);
    free(bytes);
    sl_bus_close(deaf);
    sl_bus_close(other);
    sl_bus_close(router);
}

/* One peer more than the table holds is refused, until another leaves. */
static void link_table_is_bounded(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *router = open_bus(true, f->ipc.data), *worker;
    struct sl_msg m, load = {.kind = SL_MSG_LOAD};
    struct samples s;
    struct sl_buf bytes = {0};
    struct sl_err err;
    void *ctx = zmq_ctx_new(), *raw[SL_LIMIT_workers];
    const int linger = 0;
    uint64_t first = 0;
    samples_fill(&s);
    assert_int_equal(sl_msg_encode(&load, &bytes, &err), SL_OK);
    for (int i = 0; i < SL_LIMIT_workers; i++) {
        raw[i] = zmq_socket(ctx, ZMQ_DEALER);
        zmq_setsockopt(raw[i], ZMQ_LINGER, &linger, sizeof linger);
        assert_int_equal(zmq_connect(raw[i], f->ipc.data), 0);
        assert_true(zmq_send(raw[i], bytes.data, bytes.len, 0) >= 0);
        uint64_t link = recv_msg(router, &m);
        first = first ? first : link;
    }
    worker = open_bus(false, f->ipc.data);
    send_soon(worker, 0, &load);
    struct sl_bus_stats stats = {0};
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    while (stats.n_refused == 0 && sl_now_ns() < until) {
        struct pollfd p = {.fd = sl_bus_fd(router), .events = POLLIN};
        poll(&p, 1, PATIENCE_MS);
        recv_none(router);
        sl_bus_stats(router, &stats);
    }
    assert_int_equal(stats.n_refused, 1);
    sl_bus_drop(router, first);
    send_ok(worker, 0, &load);
    assert_true(recv_msg(router, &m) > first + SL_LIMIT_workers - 1);
    for (int i = 0; i < SL_LIMIT_workers; i++)
        zmq_close(raw[i]);
    zmq_ctx_term(ctx);
    sl_buf_free(&bytes);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* ---- endpoints ---- */

static void endpoints(void **state)
{
    (void)state;
    static const struct {
        const char *endpoint;
        enum sl_status router, worker;
    } rows[] = {
        {"tcp://127.0.0.1:*", SL_OK, SL_CONFIG},
        {"tcp://127.0.0.1:9", SL_NO_MEMORY, SL_OK}, /* router: not tried */
        {"tcp://localhost:9", SL_NO_MEMORY, SL_OK},
        {"tcp://0.0.0.0:*", SL_CONFIG, SL_CONFIG},
        {"tcp://*:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://10.1.2.3:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://[::]:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://[2001:db8::1]:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://128.0.0.1:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://127.0.0.1.example:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://10.1.2.3:0;127.0.0.1:5555", SL_CONFIG, SL_CONFIG},
        {"tcp://127.0.0.1", SL_CONFIG, SL_CONFIG},
        {"tcp://", SL_CONFIG, SL_CONFIG},
        {"udp://127.0.0.1:5555", SL_CONFIG, SL_CONFIG},
        {"inproc://x", SL_CONFIG, SL_CONFIG},
        {"ipc://@abstract", SL_CONFIG, SL_CONFIG},
        {"ipc://relative/name", SL_CONFIG, SL_CONFIG},
        {"ipc:///tmp/name", SL_CONFIG, SL_OK}, /* everybody may enter that folder */
        {"ipc:///nowhere/at/all", SL_CONFIG, SL_OK},
        {"", SL_CONFIG, SL_CONFIG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_err err = {0};
        enum sl_status s = SL_NO_MEMORY;
        if (rows[i].router != SL_NO_MEMORY)
            s = open_status(true, rows[i].endpoint, NULL, &err);
        if (s != rows[i].router)
            fail_msg("router at '%s': %d, %s", rows[i].endpoint, (int)s, err.msg);
        s = open_status(false, rows[i].endpoint, NULL, &err);
        if (s != rows[i].worker)
            fail_msg("worker at '%s': %d, %s", rows[i].endpoint, (int)s, err.msg);
    }
}

static void keys_are_asked_for(void **state)
{
    (void)state;
    struct sl_err err = {0};
    assert_int_equal(open_status(true, "tcp://0.0.0.0:5555", NULL, &err), SL_CONFIG);
    assert_non_null(strstr(err.msg, "--curve-dir"));
    assert_int_equal(open_status(true, "tcp://127.0.0.1:*", "/nowhere/keys", &err), SL_CONFIG);
    assert_non_null(strstr(err.msg, "/nowhere/keys"));
}

static void endpoint_in_use(void **state)
{
    struct fixture *f = *state;
    struct sl_bus *tcp = open_bus(true, "tcp://127.0.0.1:*"), *ipc = open_bus(true, f->ipc.data);
    struct sl_err err = {0};
    assert_int_equal(open_status(true, sl_bus_endpoint(tcp, 0), NULL, &err), SL_PORT_IN_USE);
    assert_int_equal(open_status(true, f->ipc.data, NULL, &err), SL_PORT_IN_USE);
    sl_bus_close(tcp);
    sl_bus_close(ipc);
    ipc = open_bus(true, f->ipc.data); /* a socket file without a listener is no obstacle */
    sl_bus_close(ipc);
}

static void ipc_folder(void **state)
{
    (void)state;
    struct sl_buf a = {0}, b = {0};
    struct sl_err err;
    struct stat st;
    char folder[108];
    assert_int_equal(sl_bus_ipc_make("/tmp", &a, &err), SL_OK);
    assert_int_equal(sl_bus_ipc_make("/tmp", &b, &err), SL_OK);
    assert_string_not_equal(a.data, b.data);
    snprintf(folder, sizeof folder, "%s", a.data + strlen("ipc://"));
    *strrchr(folder, '/') = '\0';
    assert_int_equal(stat(folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    sl_bus_close(open_bus(true, a.data));
    sl_bus_ipc_remove(a.data);
    assert_int_equal(stat(folder, &st), -1);
    sl_bus_ipc_remove(a.data); /* twice does no harm, nor does what is not ours */
    sl_bus_ipc_remove("ipc:///tmp/bus");
    sl_bus_ipc_remove("tcp://127.0.0.1:1");
    sl_bus_ipc_remove(b.data);
    sl_buf_clear(&a);
    assert_int_equal(sl_bus_ipc_make("/nowhere", &a, &err), SL_CONFIG);
    char deep[200];
    memset(deep, 'x', sizeof deep);
    deep[0] = '/';
    deep[sizeof deep - 1] = '\0';
    sl_buf_clear(&a);
    assert_int_equal(sl_bus_ipc_make(deep, &a, &err), SL_CONFIG);
    sl_buf_free(&a);
    sl_buf_free(&b);
}

#define WITH_IPC(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_IPC(exchange_ipc),
        cmocka_unit_test(exchange_tcp),
        WITH_IPC(many_peers),
        WITH_IPC(two_routers),
        WITH_IPC(links_are_never_reused),
        WITH_IPC(dropped_link_is_gone),
        WITH_IPC(reconnect_is_seen),
        WITH_IPC(reconnects_at_will),
        WITH_IPC(garbage_frames),
        WITH_IPC(flood_of_garbage),
        cmocka_unit_test(raw_tcp_peers),
        WITH_IPC(full_queue),
        WITH_IPC(link_table_is_bounded),
        cmocka_unit_test(endpoints),
        cmocka_unit_test(keys_are_asked_for),
        WITH_IPC(endpoint_in_use),
        cmocka_unit_test(ipc_folder),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
