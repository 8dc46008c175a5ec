/* A group that is looked for without forming, and one that forms though others of its kind are
 * about: what happens when ranks were lost, a smaller group runs, and the lost ones come back. */
#include "comm_group.h"

enum { LOOKS = 60000 }; /* a millisecond each */

struct asker {
    struct sl_comm_config cfg;
    pthread_t id;
    _Atomic bool stop;
    enum sl_status status;
    struct sl_comm *comm;
    char msg[256];
};

static void *ask(void *arg)
{
    struct asker *a = arg;
    struct sl_err err = {0};
    a->cfg.stop = &a->stop;
    a->status = sl_comm_open(&a->cfg, &a->comm, &err);
    snprintf(a->msg, sizeof a->msg, "%s", err.msg);
    return NULL;
}

static void start(struct asker *a, const struct group *g, uint32_t rank)
{
    a->cfg = group_config(g, rank);
    REQUIRE(!pthread_create(&a->id, NULL, ask, a), "thread");
}

static void end(struct asker *a)
{
    a->stop = true;
    pthread_join(a->id, NULL);
    sl_comm_close(a->comm);
}

static bool fills(struct sl_comm_lobby *l, int looks)
{
    for (int i = 0; i < looks; i++) {
        if (sl_comm_lobby_is_full(l, sl_now_ns()))
            return true;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return false;
}

static void test_fills(void **state)
{
    (void)state;
    struct group g = {.n = 3};
    struct sl_comm_lobby *l;
    struct asker a[2] = {0};
    group_meet(&g);
    struct sl_comm_config cfg = group_config(&g, 0);
    OK(sl_comm_lobby_open(&cfg, &l, err));
    assert_false(sl_comm_lobby_is_full(l, sl_now_ns()));
    start(&a[0], &g, 1);
    assert_false(fills(l, 500)); /* one of two */
    start(&a[1], &g, 2);
    assert_true(fills(l, LOOKS));
    sl_comm_lobby_close(l);
    struct sl_comm *c; /* now for real, at the same place */
    OK(sl_comm_open(&cfg, &c, err));
    end(&a[0]);
    end(&a[1]);
    assert_int_equal(a[0].status, SL_OK);
    assert_int_equal(a[1].status, SL_OK);
    sl_comm_close(c);
    sl_bus_ipc_remove(g.endpoint);
}

/* Who asked long ago may be gone. */
static void test_forgets(void **state)
{
    (void)state;
    struct group g = {.n = 2};
    struct sl_comm_lobby *l;
    struct asker a = {0};
    group_meet(&g);
    struct sl_comm_config cfg = group_config(&g, 0);
    OK(sl_comm_lobby_open(&cfg, &l, err));
    start(&a, &g, 1);
    assert_true(fills(l, LOOKS));
    end(&a);
    bool full = true; /* what is still on its way counts when it comes */
    uint64_t at = sl_now_ns();
    for (int i = 0; full && i < LOOKS; i++, at += SL_COMM_LOBBY_MS * SL_MS_NS + 1) {
        full = sl_comm_lobby_is_full(l, at);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    assert_false(full);
    sl_comm_lobby_close(l);
    sl_bus_ipc_remove(g.endpoint);
}

static void test_others_do_not_count(void **state)
{
    (void)state;
    struct group g = {.n = 2};
    group_meet(&g);
    for (int row = 0; row < 3; row++) {
        struct sl_comm_config cfg = group_config(&g, 0);
        struct sl_comm_lobby *l;
        struct asker a = {0};
        struct group other = g;
        OK(sl_comm_lobby_open(&cfg, &l, err));
        other.n = row == 0 ? 3 : 2;
        a.cfg = group_config(&other, 1);
        if (row == 1)
            a.cfg.config_hash = 8;
        if (row == 2)
            a.cfg.group = "other";
        REQUIRE(!pthread_create(&a.id, NULL, ask, &a), "thread");
        assert_false(fills(l, 500));
        end(&a);
        assert_int_equal(a.status, SL_CANCELLED); /* it was not told anything */
        sl_comm_lobby_close(l);
    }
    sl_bus_ipc_remove(g.endpoint);
}

/* Of three that are no part of it, those of a larger group wait, the others hear why. */
static void test_forms_among_others(void **state)
{
    (void)state;
    struct group g = {.n = 2}, larger = {.n = 3};
    struct asker fits = {0}, larger_1 = {0}, larger_2 = {0}, stranger = {0};
    struct sl_comm *c;
    group_meet(&g);
    memcpy(larger.endpoint, g.endpoint, sizeof g.endpoint);
    struct sl_comm_config cfg = group_config(&g, 0);
    cfg.knows_misfits = true;
    stranger.cfg = group_config(&g, 1);
    stranger.cfg.config_hash = 8;
    start(&larger_1, &larger, 1);
    start(&larger_2, &larger, 2);
    REQUIRE(!pthread_create(&stranger.id, NULL, ask, &stranger), "thread");

    struct asker zero = {.cfg = cfg};
    REQUIRE(!pthread_create(&zero.id, NULL, ask, &zero), "thread");
    pthread_join(stranger.id, NULL);
    assert_int_equal(stranger.status, SL_CONFIG);
    assert_non_null(strstr(stranger.msg, "configuration"));
    start(&fits, &g, 1);
    pthread_join(zero.id, NULL);
    assert_int_equal(zero.status, SL_OK);
    end(&fits);
    assert_int_equal(fits.status, SL_OK);
    sl_comm_close(zero.comm);

    cfg = group_config(&larger, 0); /* and those that wait find theirs */
    OK(sl_comm_open(&cfg, &c, err));
    pthread_join(larger_1.id, NULL);
    pthread_join(larger_2.id, NULL);
    assert_int_equal(larger_1.status, SL_OK);
    assert_int_equal(larger_2.status, SL_OK);
    sl_comm_close(larger_1.comm);
    sl_comm_close(larger_2.comm);
    sl_comm_close(c);
    sl_bus_ipc_remove(g.endpoint);
}

static void test_refused(void **state)
{
    (void)state;
    struct group g = {.n = 2};
    struct sl_comm_lobby *l, *second;
    group_meet(&g);
    struct sl_comm_config cfg = group_config(&g, 0);
    OK(sl_comm_lobby_open(&cfg, &l, err));
    struct sl_comm_config bad[3] = {cfg, cfg, cfg};
    bad[0].rank = 1;
    bad[1].n_ranks = 1;
    bad[2].n_ranks = SL_COMM_RANKS_MAX + 1;
    for (int i = 0; i < 3; i++)
        assert_int_equal(sl_comm_lobby_open(&bad[i], &second, NULL), SL_CONFIG);
    assert_null(second);
    sl_comm_lobby_close(l);
    sl_comm_lobby_close(NULL);
    sl_bus_ipc_remove(g.endpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fills),
        cmocka_unit_test(test_forgets),
        cmocka_unit_test(test_others_do_not_count),
        cmocka_unit_test(test_forms_among_others),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
