/* Promise: under CURVE a link is made by an allowed key and by nothing else; a key that is removed
 * loses its link at once and one that is added gets one, without a restart; nobody takes another's
 * place; and a peer that only speaks TCP costs the others nothing. */
#include "bus_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "bus/curve.h"
#include "curve_fixture.h"

#include <poll.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <zmq.h>

#define PATIENCE_MS 20000 /* of a test that fails; one that passes never waits so long */

static struct sl_bus *open_keyed(bool is_router, const char *endpoint, const struct keys *k,
                                 const char *node)
{
    char dir[PATH_MAX];
    struct sl_bus_config cfg = {.endpoints = &endpoint,
                                .n_endpoints = 1,
                                .is_router = is_router,
                                .curve_dir = node ? key_dir(k, node, dir) : NULL};
    struct sl_bus *b;
    struct sl_err err;
    if (sl_bus_open(&cfg, &b, &err) != SL_OK)
        fail_msg("%s", err.msg);
    return b;
}

/* One look at each bus; messages are returned by kind in *m, from the first bus that has one. */
static int look_at(struct sl_bus *const *buses, int n, uint64_t *link, struct sl_msg *m)
{
    struct sl_err err;
    struct pollfd p[8];
    for (int i = 0; i < n; i++) {
        assert_int_equal(sl_bus_recv(buses[i], link, m, &err), SL_OK);
        if (m->kind != SL_MSG_NONE)
            return i;
        p[i] = (struct pollfd){.fd = sl_bus_fd(buses[i]), .events = POLLIN};
    }
    poll(p, (nfds_t)n, 20);
    return -1;
}

static bool time_is_up(uint64_t since_ns)
{
    return sl_now_ns() - since_ns > PATIENCE_MS * SL_MS_NS;
}

static const struct sl_msg load = {.kind = SL_MSG_LOAD}, ping = {.kind = SL_MSG_PING};

static struct sl_bus_stats stats_of(const struct sl_bus *b)
{
    struct sl_bus_stats s;
    sl_bus_stats(b, &s);
    return s;
}

/* The worker says its number until the router hears it; returns the link. */
static uint64_t meet(struct sl_bus *router, struct sl_bus *worker)
{
    static uint64_t number;
    struct sl_bus *both[] = {router, worker};
    struct sl_msg m, hi = {.kind = SL_MSG_CANCEL, .cancel = {.id = ++number}};
    struct sl_err err;
    uint64_t link, start = sl_now_ns();
    for (;;) {
        sl_bus_send(worker, 0, &hi, &err);
        if (look_at(both, 2, &link, &m) == 0 && m.kind == SL_MSG_CANCEL && m.cancel.id == number)
            return link;
        if (time_is_up(start))
            fail_msg("no link: %s", err.msg);
    }
}

/* Both are served until the router has counted; no message may come through. */
static void until_denied(struct sl_bus *router, struct sl_bus *stranger)
{
    struct sl_bus *both[] = {router, stranger};
    struct sl_msg m;
    uint64_t link, start = sl_now_ns();
    while (stats_of(router).n_denied + stats_of(router).n_handshakes_failed == 0) {
        sl_bus_send(stranger, 0, &load, NULL);
        assert_int_equal(look_at(both, 2, &link, &m), -1);
        assert_false(time_is_up(start));
    }
    assert_int_equal(stats_of(router).n_received, 0);
    assert_false(sl_bus_connected(stranger, 0));
}

static void good_key(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    struct sl_bus *worker = open_keyed(false, sl_bus_endpoint(router, 0), *state, "w");
    struct sl_bus *both[] = {router, worker};
    struct samples s;
    struct sl_msg m;
    uint64_t from, start = sl_now_ns(), link = meet(router, worker);
    samples_fill(&s);
    assert_int_equal(sl_bus_send(worker, 0, &s.m[0], NULL), SL_OK);
    while (look_at(both, 2, &from, &m) != 0 || m.kind != SL_MSG_HELLO)
        assert_false(time_is_up(start));
    for (int i = 1; i < N_SAMPLES; i++) /* all but HELLO, which routers never say */
        assert_int_equal(sl_bus_send(router, link, &s.m[i], NULL), SL_OK);
    for (int i = 1; i < N_SAMPLES;) {
        if (look_at(both, 2, &from, &m) == 1)
            assert_int_equal(m.kind, s.m[i++].kind);
        assert_false(time_is_up(start));
    }
    assert_true(stats_of(router).n_handshakes >= 1);
    assert_int_equal(stats_of(router).n_denied, 0);
    sl_bus_close(worker);
    sl_bus_close(router);
}

static void unknown_key(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    struct sl_bus *stranger = open_keyed(false, sl_bus_endpoint(router, 0), *state, "x");
    until_denied(router, stranger);
    sl_bus_close(stranger);
    sl_bus_close(router);
}

static void no_key(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    struct sl_bus *stranger = open_keyed(false, sl_bus_endpoint(router, 0), *state, NULL);
    until_denied(router, stranger);
    sl_bus_close(stranger);
    sl_bus_close(router);
}

/* A worker does not speak to whoever cannot show an allowed router's key, however it is bound. */
static void a_worker_is_no_router(void **state)
{
    struct sl_bus *impostor = open_keyed(true, "tcp://127.0.0.1:*", *state, "v");
    struct sl_bus *worker = open_keyed(false, sl_bus_endpoint(impostor, 0), *state, "w");
    until_denied(impostor, worker);
    sl_bus_close(worker);
    sl_bus_close(impostor);
    struct sl_bus *open = open_keyed(true, "tcp://127.0.0.1:*", *state, NULL);
    worker = open_keyed(false, sl_bus_endpoint(open, 0), *state, "w");
    struct sl_bus *both[] = {open, worker};
    struct sl_msg m;
    uint64_t link, start = sl_now_ns();
    while (stats_of(worker).n_handshakes_failed == 0) {
        sl_bus_send(worker, 0, &load, NULL);
        assert_int_equal(look_at(both, 2, &link, &m), -1);
        assert_false(time_is_up(start));
    }
    assert_int_equal(stats_of(open).n_received, 0);
    sl_bus_close(worker);
    sl_bus_close(open);
}

static void removed_key(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    struct sl_bus *worker = open_keyed(false, sl_bus_endpoint(router, 0), *state, "w");
    struct sl_bus *other = open_keyed(false, sl_bus_endpoint(router, 0), *state, "v");
    struct sl_bus *all[] = {router, worker, other};
    struct sl_msg m;
    uint64_t from, link = meet(router, worker), kept = meet(router, other), start = sl_now_ns();
    keys_expel(*state, "r", "w");
    sl_bus_reload_keys(router);
    while (sl_bus_send(router, link, &ping, NULL) == SL_OK || sl_bus_connected(worker, 0)) {
        look_at(all, 3, &from, &m);
        assert_false(time_is_up(start));
    }
    assert_int_equal(stats_of(router).n_revoked, 1);
    /* It may knock as long as it likes: nothing of it is heard, the other is. */
    uint64_t denied = stats_of(router).n_denied, heard = 0;
    while (stats_of(router).n_denied < denied + 3 || heard < 10) {
        sl_bus_send(worker, 0, &load, NULL);
        sl_bus_send(other, 0, &load, NULL);
        if (look_at(all, 3, &from, &m) == 0) {
            assert_int_equal(from, kept);
            heard++;
        }
        assert_false(time_is_up(start));
    }
    /* Allowed again, it is let in again by the same process. */
    keys_admit(*state, "r", "w");
    sl_bus_reload_keys(router);
    sl_bus_close(other);
    assert_true(meet(router, worker) > link);
    sl_bus_close(worker);
    sl_bus_close(router);
}

/* ---- who may be whom ---- */

/* A bare DEALER under the key of a node, with an id of its own choice. */
static void *raw_peer(void *ctx, const struct keys *k, const char *node, const char *endpoint,
                      const char *id)
{
    struct curve_folder *own = calloc(1, sizeof *own), *router = calloc(1, sizeof *router);
    char dir[PATH_MAX];
    struct sl_err err;
    const int linger = 0;
    assert_true(own && router);
    assert_int_equal(curve_folder_read(key_dir(k, node, dir), true, own, &err), SL_OK);
    assert_int_equal(curve_folder_read(key_dir(k, "r", dir), true, router, &err), SL_OK);
    void *zmq = zmq_socket(ctx, ZMQ_DEALER);
    zmq_setsockopt(zmq, ZMQ_LINGER, &linger, sizeof linger);
    if (id)
        assert_int_equal(zmq_setsockopt(zmq, ZMQ_ROUTING_ID, id, strlen(id)), 0);
    assert_int_equal(zmq_setsockopt(zmq, ZMQ_CURVE_SERVERKEY, router->own_public, 41), 0);
    assert_int_equal(zmq_setsockopt(zmq, ZMQ_CURVE_PUBLICKEY, own->own_public, 41), 0);
    assert_int_equal(zmq_setsockopt(zmq, ZMQ_CURVE_SECRETKEY, own->own.text, 41), 0);
    assert_int_equal(zmq_connect(zmq, endpoint), 0);
    free(own);
    free(router);
    return zmq;
}

static void raw_say(void *zmq, const struct sl_msg *m)
{
    struct sl_buf b = {0};
    struct sl_err err;
    assert_int_equal(sl_msg_encode(m, &b, &err), SL_OK);
    assert_true(zmq_send(zmq, b.data, b.len, 0) >= 0);
    sl_buf_free(&b);
}

static bool raw_hears(void *zmq)
{
    char bytes[256];
    return zmq_recv(zmq, bytes, sizeof bytes, ZMQ_DONTWAIT) >= 0;
}

/* One worker claims the name under which another is known: it is neither heard in its place nor
 * sent what is for it. */
static void stolen_name(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    void *ctx = zmq_ctx_new();
    void *victim = raw_peer(ctx, *state, "w", sl_bus_endpoint(router, 0), "name");
    struct sl_msg m = {.kind = SL_MSG_NONE}, cancel = {.kind = SL_MSG_CANCEL};
    uint64_t link = 0, from, start = sl_now_ns();
    raw_say(victim, &load);
    while (look_at(&router, 1, &link, &m) != 0)
        assert_false(time_is_up(start));
    void *thief = raw_peer(ctx, *state, "v", sl_bus_endpoint(router, 0), "name");
    raw_say(thief, &load);
    while (stats_of(router).n_handshakes < 2) {
        assert_int_equal(look_at(&router, 1, &from, &m), -1);
        assert_false(time_is_up(start));
    }
    for (uint32_t i = 0; i < 20; i++) {
        cancel.cancel.id = i;
        assert_int_equal(sl_bus_send(router, link, &cancel, NULL), SL_OK);
        raw_say(victim, &ping);
        while (look_at(&router, 1, &from, &m) != 0)
            assert_false(time_is_up(start));
        assert_int_equal(from, link);
        assert_int_equal(m.kind, SL_MSG_PING); /* the thief said LOAD */
        while (!raw_hears(victim))
            assert_false(time_is_up(start));
        assert_false(raw_hears(thief));
    }
    zmq_close(victim);
    zmq_close(thief);
    zmq_ctx_term(ctx);
    sl_bus_close(router);
}

/* One worker says that it is another's process: its greeting does not reach the caller. */
static void stolen_instance(void **state)
{
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", *state, "r");
    void *ctx = zmq_ctx_new();
    void *victim = raw_peer(ctx, *state, "w", sl_bus_endpoint(router, 0), NULL);
    void *again = raw_peer(ctx, *state, "w", sl_bus_endpoint(router, 0), NULL);
    void *thief = raw_peer(ctx, *state, "v", sl_bus_endpoint(router, 0), NULL);
    struct samples s;
    struct sl_msg m;
    uint64_t link, start = sl_now_ns();
    samples_fill(&s);
    s.m[0].hello.instance = 77;
    s.m[0].hello.greeting = s.m[0].tag = s.m[0].seq = 1;
    raw_say(victim, &s.m[0]);
    while (look_at(&router, 1, &link, &m) != 0)
        assert_false(time_is_up(start));
    raw_say(thief, &s.m[0]);
    while (stats_of(router).n_denied == 0) {
        assert_int_equal(look_at(&router, 1, &link, &m), -1);
        assert_false(time_is_up(start));
    }
    raw_say(again, &s.m[0]); /* the same key may: it has connected anew */
    while (look_at(&router, 1, &link, &m) != 0)
        assert_false(time_is_up(start));
    assert_int_equal(m.kind, SL_MSG_HELLO);
    zmq_close(victim);
    zmq_close(again);
    zmq_close(thief);
    zmq_ctx_term(ctx);
    sl_bus_close(router);
}

/* A bus with an open and a keyed endpoint: the same name on both is two links. */
static void two_name_spaces(void **state)
{
    struct sl_buf ipc = {0};
    struct sl_err err;
    char dir[PATH_MAX];
    assert_int_equal(sl_bus_ipc_make("/tmp", &ipc, &err), SL_OK);
    const char *endpoints[] = {ipc.data, "tcp://127.0.0.1:*"};
    struct sl_bus_config cfg = {.endpoints = endpoints,
                                .n_endpoints = 2,
                                .is_router = true,
                                .curve_dir = key_dir(*state, "r", dir)};
    struct sl_bus *router;
    assert_int_equal(sl_bus_open(&cfg, &router, &err), SL_OK);
    void *ctx = zmq_ctx_new(), *local = zmq_socket(ctx, ZMQ_DEALER);
    const int linger = 0;
    zmq_setsockopt(local, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(local, ZMQ_ROUTING_ID, "name", 4);
    assert_int_equal(zmq_connect(local, ipc.data), 0);
    void *far = raw_peer(ctx, *state, "w", sl_bus_endpoint(router, 1), "name");
    struct sl_msg m;
    uint64_t links[2] = {0}, from, start = sl_now_ns();
    raw_say(local, &load);
    raw_say(far, &ping);
    for (int n = 0; n < 2;) {
        if (look_at(&router, 1, &from, &m) == 0)
            links[m.kind == SL_MSG_PING] = from, n++;
        assert_false(time_is_up(start));
    }
    assert_true(links[0] && links[1] && links[0] != links[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(sl_bus_send(router, links[i], &ping, NULL), SL_OK);
        while (!raw_hears(i ? far : local))
            assert_false(time_is_up(start));
        assert_false(raw_hears(i ? local : far));
    }
    zmq_close(local);
    zmq_close(far);
    zmq_ctx_term(ctx);
    sl_bus_close(router);
    sl_bus_ipc_remove(ipc.data);
    sl_buf_free(&ipc);
}

/* ---- any socket of a context ---- */

/* Whether a REQ with this client key, or with none, gets through to a REP armed for `roles`. */
static bool passes(const struct keys *k, unsigned roles, const char *client)
{
    void *ctx = zmq_ctx_new(), *rep = zmq_socket(ctx, ZMQ_REP);
    const int linger = 0;
    struct curve *ring;
    struct sl_err err;
    char dir[PATH_MAX], endpoint[128], bytes[8];
    size_t size = sizeof endpoint;
    assert_int_equal(curve_open(ctx, key_dir(k, "r", dir), &ring, &err), SL_OK);
    assert_int_equal(curve_arm_server(ring, rep, roles, &err), SL_OK);
    assert_int_equal(zmq_bind(rep, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(rep, ZMQ_LAST_ENDPOINT, endpoint, &size), 0);
    void *peer_ctx = zmq_ctx_new(), *peer;
    if (client) {
        peer = raw_peer(peer_ctx, k, client, endpoint, NULL);
    } else {
        peer = zmq_socket(peer_ctx, ZMQ_DEALER);
        zmq_setsockopt(peer, ZMQ_LINGER, &linger, sizeof linger);
        zmq_connect(peer, endpoint);
    }
    zmq_send(peer, "", 0, ZMQ_SNDMORE);
    zmq_send(peer, "hi", 2, 0);
    struct curve_stats stats = {0};
    uint64_t start = sl_now_ns();
    int got = -1;
    while (got < 0 && stats.n_denied == 0 && sl_now_ns() - start < 2000 * SL_MS_NS) {
        got = zmq_recv(rep, bytes, sizeof bytes, ZMQ_DONTWAIT);
        curve_stats(ring, &stats);
        zmq_pollitem_t item = {.socket = rep, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 10);
        if (!client && sl_now_ns() - start > 300 * SL_MS_NS)
            break; /* another mechanism ends before any key is looked at */
    }
    zmq_close(peer);
    zmq_ctx_term(peer_ctx);
    zmq_setsockopt(rep, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(rep);
    curve_close(ring);
    zmq_ctx_term(ctx);
    return got >= 0;
}

static void roles(void **state)
{
    assert_true(passes(*state, SL_KEY_WORKER, "w"));
    assert_true(passes(*state, SL_KEY_ROUTER, "r"));
    assert_true(passes(*state, SL_KEY_ROUTER | SL_KEY_WORKER, "v"));
    assert_false(passes(*state, SL_KEY_ROUTER, "w"));
    assert_false(passes(*state, SL_KEY_WORKER, "r"));
    assert_false(passes(*state, 0, "w"));
    assert_false(passes(*state, SL_KEY_ROUTER | SL_KEY_WORKER, "x"));
    assert_false(passes(*state, SL_KEY_ROUTER | SL_KEY_WORKER, NULL));
}

/* A node that connects tries the key named like the host, its own, then the others. */
static void order_of_keys(void **state)
{
    void *ctx = zmq_ctx_new();
    struct curve *ring;
    struct sl_err err;
    char dir[PATH_MAX], own[CURVE_TEXT_BYTES], a[CURVE_TEXT_BYTES], b[CURVE_TEXT_BYTES];
    assert_int_equal(curve_open(ctx, key_dir(*state, "w", dir), &ring, &err), SL_OK);
    curve_own_key(ring, own);
    assert_true(curve_key_at(ring, SL_KEY_WORKER, SL_STR("10.0.0.1"), 0, a));
    assert_string_equal(a, own);
    assert_true(curve_key_at(ring, SL_KEY_WORKER, SL_STR("v.svc.local"), 0, a));
    assert_true(curve_key_at(ring, SL_KEY_WORKER, SL_STR("v.svc.local"), 1, b));
    assert_string_not_equal(a, own);
    assert_string_equal(b, own);
    assert_true(curve_key_at(ring, SL_KEY_WORKER, SL_STR("v.svc.local"), 2, b));
    assert_string_equal(a, b);
    assert_true(curve_allows(ring, a, SL_KEY_WORKER, dir));
    assert_string_equal(dir, "v");
    assert_false(curve_allows(ring, a, SL_KEY_ROUTER, NULL));
    assert_false(curve_allows(ring, NULL, SL_KEY_WORKER, NULL));
    assert_false(curve_allows(ring, "short", SL_KEY_WORKER, NULL));
    assert_false(curve_key_at(ring, 0, SL_STR("v"), 0, a));
    curve_close(ring);
    zmq_ctx_term(ctx);
}

/* ---- own keys that change ---- */

static void own_key_changes(void **state)
{
    const struct keys *k = *state;
    struct sl_bus *router = open_keyed(true, "tcp://127.0.0.1:*", k, "r");
    struct sl_bus *worker = open_keyed(false, sl_bus_endpoint(router, 0), k, "w");
    struct sl_bus *both[] = {router, worker};
    char dir[PATH_MAX], from[PATH_MAX], to[PATH_MAX];
    struct sl_err err;
    struct sl_msg m;
    uint64_t peer, start = sl_now_ns();
    meet(router, worker);
    struct sl_keys_request next = {
        .dir = key_dir(k, "r", dir), .name = "r", .role = SL_KEY_ROUTER, .next = true};
    assert_int_equal(sl_keys_make(&next, &err), SL_OK);
    assert_int_equal(sl_keys_make(&next, &err), SL_CONFIG); /* not without `force` */
    snprintf(from, sizeof from, "%s/r/next.pub", k->root);
    snprintf(to, sizeof to, "%s/w/allowed/r.next.pub", k->root);
    assert_int_equal(link(from, to), 0);
    sl_bus_reload_keys(worker);
    assert_int_equal(sl_keys_promote(dir, &err), SL_OK);
    sl_bus_reload_keys(router);
    uint64_t n = sl_bus_n_connects(worker, 0);
    while (sl_bus_n_connects(worker, 0) == n) {
        look_at(both, 2, &peer, &m);
        assert_false(time_is_up(start));
    }
    keys_expel(k, "w", "r"); /* the old key is not needed any more */
    sl_bus_reload_keys(worker);
    meet(router, worker);
    assert_int_equal(sl_keys_promote(dir, &err), SL_CONFIG); /* there is no next one */
    sl_bus_close(worker);
    sl_bus_close(router);
}

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, keys_set_up, keys_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_KEYS(good_key),        WITH_KEYS(unknown_key),           WITH_KEYS(no_key),
        WITH_KEYS(removed_key),     WITH_KEYS(a_worker_is_no_router), WITH_KEYS(stolen_name),
        WITH_KEYS(stolen_instance), WITH_KEYS(two_name_spaces),       WITH_KEYS(roles),
        WITH_KEYS(order_of_keys),   WITH_KEYS(own_key_changes),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
