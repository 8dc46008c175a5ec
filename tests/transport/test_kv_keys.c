/* With keys, KV events leave the machine under CURVE for allowed routers alone; the ipc endpoint
 * beside stays open to who may enter its folder. */
#include <sluice/transport/kv_events.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "curve_fixture.h"

#include <poll.h>
#include <sluice/base/time.h>
#include <sluice/transport/bus.h>

#define PATIENCE_MS 20000

static struct sl_buf ipc;

static struct sl_kv_pub *open_pub(const struct keys *k)
{
    char dir[PATH_MAX], replay[256];
    struct sl_err err = {0};
    struct sl_kv_pub *p = NULL;
    sl_buf_clear(&ipc);
    assert_int_equal(sl_bus_ipc_make("/tmp", &ipc, &err), SL_OK);
    snprintf(replay, sizeof replay, "%s-replay", ipc.data);
    const char *tcp = "tcp://127.0.0.1:*";
    const char *endpoints[] = {tcp, ipc.data}, *replays[] = {tcp, replay};
    struct sl_kv_pub_config cfg = {.endpoints = endpoints,
                                   .n_endpoints = 2,
                                   .replay_endpoints = replays,
                                   .n_replay_endpoints = 2,
                                   .curve_dir = key_dir(k, "w", dir)};
    if (sl_kv_pub_open(&cfg, &p, &err))
        fail_msg("%s", err.msg);
    const struct sl_kv_batch b = {1, 0, NULL, 0};
    for (int i = 0; i < 3; i++)
        assert_int_equal(sl_kv_pub_send(p, &b, NULL), SL_OK);
    return p;
}

static void close_pub(struct sl_kv_pub *p)
{
    sl_kv_pub_close(p);
    sl_bus_ipc_remove(ipc.data);
    sl_buf_free(&ipc);
}

/* `node` NULL: without keys. */
static struct sl_kv_sub *open_sub(const struct keys *k, const char *node, char dir[PATH_MAX])
{
    struct sl_kv_sub *s = NULL;
    struct sl_err err = {0};
    if (sl_kv_sub_open(2, node ? key_dir(k, node, dir) : NULL, &s, &err))
        fail_msg("%s", err.msg);
    return s;
}

static struct sl_kv_source source(const struct sl_kv_pub *p, uint32_t i)
{
    return (struct sl_kv_source){sl_kv_pub_endpoint(p, i), sl_kv_pub_replay_endpoint(p, i), "",
                                 sl_kv_pub_key(p)};
}

/* Batches replayed to `s` until the end of it or `ms` passed. */
static int replayed(struct sl_kv_pub *p, struct sl_kv_sub *s, int ms)
{
    struct sl_kv_news n;
    int got = 0;
    uint64_t start = sl_now_ns();
    sl_kv_sub_replay(s, 1, 0, NULL);
    while (sl_now_ns() - start < (uint64_t)ms * SL_MS_NS) {
        sl_kv_pub_serve(p);
        if (!sl_kv_sub_next(s, &n)) {
            struct pollfd fd = {.fd = sl_kv_sub_fd(s), .events = POLLIN};
            poll(&fd, 1, 2);
            continue;
        }
        if (n.kind == SL_KV_NEWS_REPLAY_END)
            return got;
        got += n.kind == SL_KV_NEWS_REPLAYED;
    }
    return got;
}

static void test_allowed_router(void **state)
{
    const struct keys *k = *state;
    char dir[PATH_MAX];
    struct sl_kv_pub *p = open_pub(k);
    struct sl_kv_sub *r = open_sub(k, "r", dir);
    struct sl_kv_source from = source(p, 0);
    assert_int_equal(strlen(from.key), 40);
    assert_int_equal(sl_kv_sub_join(r, 1, &from, NULL), SL_OK);
    assert_int_equal(replayed(p, r, PATIENCE_MS), 3);
    sl_kv_sub_close(r);
    close_pub(p);
}

/* Who publishes is checked before anything is sent there. */
static void test_unknown_publisher(void **state)
{
    const struct keys *k = *state;
    char dir[PATH_MAX];
    struct sl_kv_pub *p = open_pub(k);
    struct sl_kv_sub *r = open_sub(k, "r", dir);
    struct sl_kv_source from = source(p, 0);
    const char *const bad[] = {NULL, "", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"};
    for (int i = 0; i < 3; i++) {
        from.key = bad[i];
        assert_int_equal(sl_kv_sub_join(r, 1, &from, NULL), SL_CONFIG);
    }
    sl_kv_sub_close(r);
    close_pub(p);
}

/* A stranger, a worker, and somebody without a key hear nothing. */
static void test_others_hear_nothing(void **state)
{
    const struct keys *k = *state;
    char dir[4][PATH_MAX];
    struct sl_kv_pub *p = open_pub(k);
    keys_admit(k, "x", "w"); /* x would listen to w */
    struct sl_kv_sub *r = open_sub(k, "r", dir[0]);
    struct sl_kv_sub *others[] = {open_sub(k, "x", dir[1]), open_sub(k, "v", dir[2]),
                                  open_sub(k, NULL, dir[3])};
    struct sl_kv_source from = source(p, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(sl_kv_sub_join(others[i], 1, &from, NULL), SL_OK);
        assert_int_equal(replayed(p, others[i], 300), 0);
    }
    assert_int_equal(sl_kv_sub_join(r, 1, &from, NULL), SL_OK);
    assert_int_equal(replayed(p, r, PATIENCE_MS), 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(replayed(p, others[i], 100), 0);
        sl_kv_sub_close(others[i]);
    }
    sl_kv_sub_close(r);
    close_pub(p);
}

static void test_ipc_beside(void **state)
{
    const struct keys *k = *state;
    char dir[PATH_MAX];
    struct sl_kv_pub *p = open_pub(k);
    const char *const nodes[] = {NULL, "r"};
    for (int i = 0; i < 2; i++) {
        struct sl_kv_sub *s = open_sub(k, nodes[i], dir);
        struct sl_kv_source from = source(p, 1);
        assert_int_equal(sl_kv_sub_join(s, 1, &from, NULL), SL_OK);
        assert_int_equal(replayed(p, s, PATIENCE_MS), 3);
        sl_kv_sub_close(s);
    }
    close_pub(p);
}

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, keys_set_up, keys_tear_down)

int main(void)
{
    (void)keys_expel;
    const struct CMUnitTest tests[] = {
        WITH_KEYS(test_allowed_router),
        WITH_KEYS(test_unknown_publisher),
        WITH_KEYS(test_others_hear_nothing),
        WITH_KEYS(test_ipc_beside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
