/* Promise: under CURVE a link is made by an allowed key and by nothing else; a key that is removed
 * loses its link at once and one that is added gets one, without a restart; nobody takes another's
 * place; and a peer that only speaks TCP costs the others nothing. */
#include "bus_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "curve_fixture.h"

#include <sluice/base/log.h>

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

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, keys_set_up, keys_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_KEYS(good_key),    WITH_KEYS(unknown_key),           WITH_KEYS(no_key),
        WITH_KEYS(removed_key), WITH_KEYS(a_worker_is_no_router),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
