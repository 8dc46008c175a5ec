/* Membership: a worker counts from an accepted HELLO until it is lost, and nothing it sent before
 * it registered again counts. Each test says which. */
#include <sluice/control/membership.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#define MS 1000000ull

enum { ACTIONS_MAX = 128, META = 1000 };

struct fixture {
    struct sl_members *m;
    struct sl_member_action a[ACTIONS_MAX]; /* of the last take() */
    uint32_t n;
    int users[16];
    uint64_t now;
};

static void fixture_open(struct fixture *f, uint32_t max_members)
{
    struct sl_members_config c = {
        .max_members = max_members, .version_min = 2, .version_max = 3, .meta_bytes_max = 4096};
    memset(f, 0, sizeof *f);
    assert_int_equal(sl_members_open(&c, &f->m, NULL), SL_OK);
    f->now = 1000 * MS;
    sl_members_tick(f->m, f->now);
}

static void take(struct fixture *f)
{
    struct sl_err err = {0};
    f->n = 0;
    while (f->n < ACTIONS_MAX && sl_members_next_action(f->m, &f->a[f->n]))
        f->n++;
    assert_true(f->n < ACTIONS_MAX);
    if (sl_members_check(f->m, &err))
        fail_msg("%s", err.msg);
}

static const struct sl_member_action *action(const struct fixture *f,
                                             enum sl_member_action_kind kind, uint64_t key)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (f->a[i].kind == kind && f->a[i].key == key)
            return &f->a[i];
    return NULL;
}

static bool hello_as(struct fixture *f, uint64_t key, uint64_t instance, uint64_t greeting,
                     uint8_t model)
{
    struct sl_member_hello h = {.version = 2,
                                .instance = instance,
                                .greeting = greeting,
                                .meta_bytes = META,
                                .user = &f->users[key % 16]};
    memset(h.meta_sha256, model, sizeof h.meta_sha256);
    bool taken = sl_members_hello(f->m, key, &h, f->now);
    take(f);
    return taken;
}

static bool hello(struct fixture *f, uint64_t key)
{
    return hello_as(f, key, 0, 0, 7);
}

/* The model becomes known by way of this link. */
static void learn_model(struct fixture *f, uint64_t key)
{
    assert_true(hello(f, key));
    assert_non_null(action(f, SL_MEMBER_META_GET, key));
    assert_true(sl_members_meta(f->m, key, 0, META, f->now));
    take(f);
    assert_non_null(action(f, SL_MEMBER_OPEN, key));
    sl_members_model(f->m, key, SL_OK, f->now);
    take(f);
    assert_non_null(action(f, SL_MEMBER_JOIN, key));
}

static void pass(struct fixture *f, uint64_t ms)
{
    f->now += ms * MS;
    sl_members_tick(f->m, f->now);
    take(f);
}

static struct sl_members_stats stats(const struct fixture *f)
{
    struct sl_members_stats s;
    sl_members_stats(f->m, &s);
    return s;
}

/* Metadata is fetched piece by piece from one worker; both join when it is there, JOIN before
 * WELCOME, and their user pointers come back. */
static void test_joining(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    assert_true(hello(&f, 1));
    assert_int_equal(f.n, 1);
    const struct sl_member_action *a = action(&f, SL_MEMBER_META_GET, 1);
    assert_non_null(a);
    assert_int_equal(a->offset, 0);
    assert_true(hello(&f, 2));
    assert_int_equal(f.n, 0); /* one at a time */
    assert_true(sl_members_meta(f.m, 1, 0, 600, f.now));
    take(&f);
    a = action(&f, SL_MEMBER_META_GET, 1);
    assert_non_null(a);
    assert_int_equal(a->offset, 600);
    assert_true(sl_members_meta(f.m, 1, 600, 400, f.now));
    take(&f);
    assert_int_equal(f.n, 1);
    assert_non_null(action(&f, SL_MEMBER_OPEN, 1));
    assert_false(sl_members_has_model(f.m));
    sl_members_model(f.m, 1, SL_OK, f.now);
    take(&f);
    assert_true(sl_members_has_model(f.m));
    assert_int_equal(f.n, 4);
    assert_true(action(&f, SL_MEMBER_JOIN, 1) < action(&f, SL_MEMBER_WELCOME, 1));
    assert_ptr_equal(action(&f, SL_MEMBER_JOIN, 2)->user, &f.users[2]);
    assert_int_equal(action(&f, SL_MEMBER_WELCOME, 2)->status, SL_OK);
    assert_int_equal(stats(&f).joined, 2);
    assert_true(hello(&f, 3)); /* at once, now that the model is known */
    assert_non_null(action(&f, SL_MEMBER_JOIN, 3));
    sl_members_close(f.m);
}

/* Metadata nobody asked for, out of order, empty or too long is not kept. */
static void test_wrong_metadata(void **state)
{
    static const struct {
        uint64_t key, offset, n;
    } rows[] = {{2, 0, 10},   {1, 10, 10},        {1, 0, 0},
                {1, 0, 1001}, {1, 0, UINT64_MAX}, {1, UINT64_MAX, 10}};
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    hello(&f, 1);
    hello(&f, 2);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_false(sl_members_meta(f.m, rows[i].key, rows[i].offset, rows[i].n, f.now));
    assert_true(sl_members_meta(f.m, 1, 0, 10, f.now));
    assert_false(sl_members_meta(f.m, 1, 0, 10, f.now)); /* twice */
    take(&f);
    assert_false(sl_members_meta(f.m, 1, 0, 10, f.now));
    sl_members_close(f.m);
}

/* A worker that is asked for metadata and leaves, says nothing or gives rubbish: the next is asked,
 * from the beginning. */
static void test_metadata_from_another(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    hello(&f, 1);
    hello(&f, 2);
    hello(&f, 3);
    assert_true(sl_members_meta(f.m, 1, 0, 10, f.now));
    take(&f);
    for (uint32_t i = 0; i < 10; i++) {
        for (uint64_t key = 1; key <= 3; key++)
            sl_members_heard(f.m, key, false, f.now);
        pass(&f, 100);
    }
    assert_non_null(action(&f, SL_MEMBER_META_GET, 2));
    assert_int_equal(action(&f, SL_MEMBER_META_GET, 2)->offset, 0);
    assert_false(sl_members_meta(f.m, 1, 10, 10, f.now));
    sl_members_leave(f.m, 2, SL_LOST_BYE);
    take(&f);
    assert_non_null(action(&f, SL_MEMBER_META_GET, 3));
    assert_true(sl_members_meta(f.m, 3, 0, META, f.now));
    take(&f);
    sl_members_model(f.m, 3, SL_MODEL, f.now);
    take(&f);
    assert_int_equal(action(&f, SL_MEMBER_LOST, 3)->why, SL_LOST_REFUSED);
    assert_int_equal(action(&f, SL_MEMBER_WELCOME, 3)->status, SL_MODEL);
    assert_non_null(action(&f, SL_MEMBER_META_GET, 1));
    sl_members_close(f.m);
}

/* Silence: 800 ms, found by the next tick; anything heard before that keeps the worker. */
static void test_silence(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    hello(&f, 2);
    for (uint32_t ms = 0; ms < 750; ms += 50) {
        pass(&f, 50);
        assert_null(action(&f, SL_MEMBER_LOST, 1));
        assert_true(sl_members_heard(f.m, 2, false, f.now));
    }
    pass(&f, 50);
    const struct sl_member_action *a = action(&f, SL_MEMBER_LOST, 1);
    assert_non_null(a);
    assert_int_equal(a->why, SL_LOST_SILENT);
    assert_true(a->joined);
    assert_ptr_equal(a->user, &f.users[1]);
    assert_null(action(&f, SL_MEMBER_LOST, 2));
    assert_int_equal(stats(&f).n_lost[SL_LOST_SILENT], 1);
    sl_members_close(f.m);
}

/* What a lost worker says does not count, and it is told so, until it registers again. */
static void test_fence(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    assert_true(hello_as(&f, 2, 77, 5, 7));
    sl_members_leave(f.m, 2, SL_LOST_GONE);
    take(&f);
    assert_false(sl_members_heard(f.m, 2, false, f.now));
    take(&f);
    assert_int_equal(f.n, 0);
    assert_false(sl_members_heard(f.m, 2, true, f.now));
    take(&f);
    assert_int_equal(action(&f, SL_MEMBER_WELCOME, 2)->status, SL_PEER);
    assert_null(action(&f, SL_MEMBER_WELCOME, 2)->user);
    assert_false(hello_as(&f, 3, 77, 5, 7)); /* was under way all the time */
    assert_int_equal(action(&f, SL_MEMBER_WELCOME, 3)->status, SL_PEER);
    assert_false(hello_as(&f, 3, 77, 4, 7));
    assert_true(hello_as(&f, 3, 77, 6, 7));
    assert_non_null(action(&f, SL_MEMBER_JOIN, 3));
    assert_int_equal(stats(&f).n_stale, 4);
    sl_members_close(f.m);
}

/* Registering again, over the same link or another: the old registration is lost first. */
static void test_again(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 2);
    learn_model(&f, 1);
    assert_true(hello(&f, 1));
    assert_int_equal(f.a[0].kind, SL_MEMBER_LOST);
    assert_int_equal(f.a[0].why, SL_LOST_REPLACED);
    assert_non_null(action(&f, SL_MEMBER_JOIN, 1));
    assert_true(hello_as(&f, 2, 77, 1, 7));
    assert_true(hello_as(&f, 3, 77, 2, 7)); /* the same process */
    assert_int_equal(f.a[0].kind, SL_MEMBER_LOST);
    assert_int_equal(f.a[0].key, 2);
    assert_int_equal(stats(&f).members, 2);
    assert_false(hello_as(&f, 3, 77, 2, 7)); /* a HELLO that came twice changes nothing */
    assert_int_equal(f.n, 0);
    assert_int_equal(stats(&f).members, 2);
    sl_members_close(f.m);
}

/* Refused: wrong version, no or too much metadata, another model, no room. None becomes a member.
 */
static void test_refusals(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 2);
    learn_model(&f, 1);
    static const struct {
        uint32_t version;
        uint64_t meta_bytes;
        uint8_t model;
        enum sl_status why;
    } rows[] = {{1, META, 7, SL_UNSUPPORTED}, {4, META, 7, SL_UNSUPPORTED}, {3, 0, 7, SL_TOO_LARGE},
                {3, 4097, 7, SL_TOO_LARGE},   {3, META, 8, SL_MODEL},       {3, META, 7, SL_OK},
                {3, META, 7, SL_QUEUE_FULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_member_hello h = {.version = rows[i].version, .meta_bytes = rows[i].meta_bytes};
        memset(h.meta_sha256, rows[i].model, sizeof h.meta_sha256);
        assert_int_equal(sl_members_hello(f.m, 10 + i, &h, f.now), rows[i].why == SL_OK);
        take(&f);
        assert_int_equal(action(&f, SL_MEMBER_WELCOME, 10 + i)->status, rows[i].why);
    }
    assert_int_equal(stats(&f).members, 2);
    sl_members_refuse(f.m, 1, SL_QUEUE_FULL); /* the router's own word */
    take(&f);
    assert_int_equal(f.a[0].kind, SL_MEMBER_LOST);
    assert_false(f.a[0].joined);
    assert_int_equal(f.a[1].status, SL_QUEUE_FULL);
    sl_members_close(f.m);
}

/* A model that differs from the one that is served is refused once that is known. */
static void test_other_model_waits(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    hello(&f, 1);
    assert_true(hello_as(&f, 2, 0, 0, 9));
    assert_true(sl_members_meta(f.m, 1, 0, META, f.now));
    take(&f);
    sl_members_model(f.m, 1, SL_OK, f.now);
    take(&f);
    assert_int_equal(action(&f, SL_MEMBER_WELCOME, 2)->status, SL_MODEL);
    assert_int_equal(action(&f, SL_MEMBER_LOST, 2)->why, SL_LOST_REFUSED);
    assert_non_null(action(&f, SL_MEMBER_JOIN, 1));
    sl_members_close(f.m);
}

/* Pings go to every member, every 50 ms; DRAIN to one or to all. */
static void test_pings_and_drain(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    hello(&f, 2);
    pass(&f, 50);
    assert_int_equal(f.n, 2);
    assert_non_null(action(&f, SL_MEMBER_PING, 1));
    assert_non_null(action(&f, SL_MEMBER_PING, 2));
    pass(&f, 20);
    assert_int_equal(f.n, 0);
    pass(&f, 30);
    assert_int_equal(f.n, 2);
    sl_members_drain(f.m, 2);
    take(&f);
    assert_int_equal(f.n, 1);
    assert_non_null(action(&f, SL_MEMBER_DRAIN, 2));
    sl_members_drain(f.m, 0);
    take(&f);
    assert_int_equal(f.n, 2);
    sl_members_close(f.m);
}

/* After a pause of our own nobody is lost for what we did not hear in it; who stays silent is lost
 * as late as the pause was long. */
static void test_own_pause(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    pass(&f, 100);
    pass(&f, 5000);
    assert_null(action(&f, SL_MEMBER_LOST, 1));
    for (uint32_t ms = 0; ms < 650; ms += 50) {
        pass(&f, 50);
        assert_null(action(&f, SL_MEMBER_LOST, 1));
    }
    pass(&f, 50);
    assert_non_null(action(&f, SL_MEMBER_LOST, 1));
    sl_members_close(f.m);
}

/* Ticks that are just not far apart enough are no pause: silence counts. */
static void test_slow_ticks_are_no_pause(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    for (uint64_t ns = SL_MEMBER_PAUSE_NS; ns < SL_MEMBER_SILENCE_NS; ns += SL_MEMBER_PAUSE_NS) {
        pass(&f, SL_MEMBER_PAUSE_NS / MS);
        assert_null(action(&f, SL_MEMBER_LOST, 1));
    }
    pass(&f, SL_MEMBER_PAUSE_NS / MS);
    assert_non_null(action(&f, SL_MEMBER_LOST, 1));
    sl_members_close(f.m);
}

/* Who was heard while we were late to tick is forgiven no more than there is: it was here then. */
static void test_heard_in_a_pause(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    learn_model(&f, 1);
    f.now += 4000 * MS;
    assert_true(sl_members_heard(f.m, 1, false, f.now));
    pass(&f, 1000);
    for (uint32_t ms = 0; ms < 750; ms += 50) {
        pass(&f, 50);
        assert_null(action(&f, SL_MEMBER_LOST, 1));
    }
    pass(&f, 50);
    assert_non_null(action(&f, SL_MEMBER_LOST, 1));
    sl_members_close(f.m);
}

static void hear_all(struct fixture *f)
{
    for (uint64_t key = 1; key <= 2; key++)
        assert_true(sl_members_heard(f->m, key, false, f->now));
}

/* Metadata is waited for so long and no longer, our own pauses not counted; once it is there, time
 * takes nothing away. */
static void test_metadata_in_time(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 4);
    hello(&f, 1);
    hello(&f, 2);
    uint64_t end = f.now + SL_MEMBER_META_NS;
    while (f.now + 50 * MS < end) {
        pass(&f, 50);
        hear_all(&f);
        assert_null(action(&f, SL_MEMBER_META_GET, 2));
    }
    pass(&f, 5000);
    assert_null(action(&f, SL_MEMBER_META_GET, 2));
    hear_all(&f);
    for (end = f.now + SL_MEMBER_META_NS; f.now < end; hear_all(&f))
        pass(&f, 50);
    assert_non_null(action(&f, SL_MEMBER_META_GET, 2));
    assert_true(sl_members_meta(f.m, 2, 0, META, f.now));
    take(&f);
    sl_members_model(f.m, 2, SL_OK, f.now);
    take(&f);
    for (end = f.now + 2 * SL_MEMBER_META_NS; f.now < end; hear_all(&f)) {
        pass(&f, 50);
        assert_true(sl_members_has_model(f.m));
        assert_null(action(&f, SL_MEMBER_META_GET, 1));
    }
    sl_members_close(f.m);
}

/* A reading older than the last one, by however much, is none. */
static void test_old_reading(void **state)
{
    struct fixture f;
    (void)state;
    static const uint64_t back_ms[] = {1, 100, 900};
    for (size_t i = 0; i < sizeof back_ms / sizeof *back_ms; i++) {
        fixture_open(&f, 4);
        learn_model(&f, 1);
        pass(&f, 50);
        for (uint32_t ms = 50; ms < 750; ms += 50) {
            pass(&f, 50);
            sl_members_tick(f.m, f.now - back_ms[i] * MS);
            take(&f);
            assert_int_equal(f.n, 0);
        }
        pass(&f, 50);
        assert_non_null(action(&f, SL_MEMBER_LOST, 1));
        sl_members_close(f.m);
    }
}

/* Strangers cannot fill anything: answers are bounded, members never exceed the limit. */
static void test_many_strangers(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, 2);
    for (uint64_t key = 1; key <= 100000; key++)
        sl_members_heard(f.m, key, true, f.now);
    for (uint32_t n = 0; n < 200; n++) {
        struct sl_member_action a;
        if (!sl_members_next_action(f.m, &a))
            break;
        assert_int_equal(a.kind, SL_MEMBER_WELCOME);
        assert_true(n < 199);
    }
    for (uint64_t key = 1; key <= 1000; key++) {
        struct sl_member_hello h = {.version = 2, .meta_bytes = 1};
        bool taken = sl_members_hello(f.m, key, &h, f.now);
        assert_int_equal(taken, key <= 2);
    }
    take(&f);
    assert_int_equal(stats(&f).members, 2);
    sl_members_close(f.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_joining),
                                       cmocka_unit_test(test_wrong_metadata),
                                       cmocka_unit_test(test_metadata_from_another),
                                       cmocka_unit_test(test_silence),
                                       cmocka_unit_test(test_fence),
                                       cmocka_unit_test(test_again),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_other_model_waits),
                                       cmocka_unit_test(test_pings_and_drain),
                                       cmocka_unit_test(test_own_pause),
                                       cmocka_unit_test(test_slow_ticks_are_no_pause),
                                       cmocka_unit_test(test_heard_in_a_pause),
                                       cmocka_unit_test(test_metadata_in_time),
                                       cmocka_unit_test(test_old_reading),
                                       cmocka_unit_test(test_many_strangers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
