/* Workers of one part of the work: which prompts go to a prefill worker beside the owner of the
 * stream, and what is left when workers of one kind are missing or lost. */
#include "router_fixture.h"

static void up_as(struct sl_router *r, uint64_t key, enum sl_worker_role role, uint64_t kv_layout)
{
    struct sl_worker_desc d = {.key = key,
                               .class_hash = 9,
                               .max_seqs = 2,
                               .max_len = 100,
                               .queue_max = 0,
                               .role = role,
                               .kv_layout = kv_layout,
                               .serves_kv = role != SL_ROLE_DECODE};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    check(r);
}

/* The owner and the source (0: none) of the next request sent. */
static void expect_pair(struct sl_router *r, uint64_t id, uint64_t owner, uint64_t source)
{
    struct sl_action a = next(r);
    assert_int_equal(a.kind, SL_ACT_SEND);
    assert_int_equal(a.id, id);
    assert_int_equal(a.worker_key, owner);
    assert_int_equal(a.has_source, source != 0);
    assert_int_equal(a.source_key, source);
}

static struct sl_router *open_roles(uint32_t prefill_min_tokens)
{
    struct sl_router_config c = base;
    c.prefill_min_tokens = prefill_min_tokens;
    return open_with(c);
}

static void test_prompts_go_to_a_prefill_worker(void **state)
{
    (void)state;
    struct sl_router *r = open_roles(8);
    up_as(r, 1, SL_ROLE_PREFILL, 5);
    up_as(r, 2, SL_ROLE_DECODE, 5);
    submit(r, 10);
    expect_pair(r, 10, 2, 1);
    assert_true(sl_router_prefilled(r, 1, 10, 1, SL_OK, 1));
    check(r);
    assert_true(sl_router_prefilled(r, 1, 10, 1, SL_OK, 1));  /* twice: the owner went on */
    assert_false(sl_router_prefilled(r, 2, 10, 1, SL_OK, 1)); /* the owner's word is an output */
    assert_false(sl_router_prefilled(r, 1, 10, 2, SL_OK, 1));
    assert_false(output(r, 1, 10, 1, 1, false)); /* the source delivers nothing */
    assert_true(output(r, 2, 10, 1, 1, true));
    struct sl_action a = next(r);
    assert_true(a.kind == SL_ACT_CANCEL && a.worker_key == 1); /* what it went on with */
    none(r);
    check(r);
    sl_router_close(r);
}

static void test_no_source(void **state)
{
    (void)state;
    static const struct {
        const char *why;
        uint32_t min_tokens;
        enum sl_worker_role owner, helper;
        uint64_t owner_layout, helper_layout;
    } rows[] = {
        {"off", 0, SL_ROLE_DECODE, SL_ROLE_PREFILL, 5, 5},
        {"short", 11, SL_ROLE_DECODE, SL_ROLE_PREFILL, 5, 5},
        {"another layout", 8, SL_ROLE_DECODE, SL_ROLE_PREFILL, 5, 6},
        {"no layout", 8, SL_ROLE_DECODE, SL_ROLE_PREFILL, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_router *r = open_roles(rows[i].min_tokens);
        up_as(r, 1, rows[i].helper, rows[i].helper_layout);
        up_as(r, 2, rows[i].owner, rows[i].owner_layout);
        submit(r, 10);
        struct sl_action a = next(r);
        if (a.worker_key != 2 || a.has_source)
            fail_msg("%s: worker %u, source %u", rows[i].why, (unsigned)a.worker_key, a.has_source);
        sl_router_close(r);
    }
}

/* Whoever is there does all the work. */
static void test_roles_alone(void **state)
{
    (void)state;
    for (int role = SL_ROLE_BOTH; role <= SL_ROLE_DECODE; role++) {
        struct sl_router *r = open_roles(8);
        up_as(r, 1, (enum sl_worker_role)role, 5);
        submit(r, 10);
        expect_pair(r, 10, 1, 0);
        sl_router_close(r);
    }
    struct sl_router *r = open_roles(8); /* both kinds that own: the one that does both helps */
    up_as(r, 1, SL_ROLE_BOTH, 5);
    up_as(r, 2, SL_ROLE_DECODE, 5);
    submit(r, 10);
    submit(r, 11);
    struct sl_action a = next(r), b = next(r);
    if (a.worker_key == 1) {
        struct sl_action c = a;
        a = b;
        b = c;
    }
    assert_true(a.worker_key == 2 && a.has_source && a.source_key == 1);
    assert_true(b.worker_key == 1 && !b.has_source);
    sl_router_close(r);
}

/* A prefill worker owns a stream only while no other could. */
static void test_prefill_owns_at_need(void **state)
{
    (void)state;
    struct sl_router *r = open_roles(8);
    up_as(r, 1, SL_ROLE_PREFILL, 5);
    up_as(r, 2, SL_ROLE_DECODE, 5);
    for (uint64_t id = 10; id < 12; id++) {
        submit(r, id);
        expect_pair(r, id, 2, 1);
    }
    submit(r, 12);
    none(r); /* waits for the decode worker, which is full */
    sl_router_worker_down(r, 2, false, 1);
    check(r);
    for (int i = 0; i < 2; i++) { /* no decode worker is left; the source of both was told */
        struct sl_action a = next(r);
        assert_int_equal(a.kind, SL_ACT_CANCEL);
        assert_int_equal(a.worker_key, 1);
    }
    expect_pair(r, 10, 1, 0);
    expect_pair(r, 11, 1, 0);
    sl_router_close(r);
}

static void test_a_lost_source_costs_nothing(void **state)
{
    (void)state;
    struct sl_router *r = open_roles(8);
    up_as(r, 1, SL_ROLE_PREFILL, 5);
    up_as(r, 2, SL_ROLE_DECODE, 5);
    submit(r, 10);
    expect_pair(r, 10, 2, 1);
    submit(r, 11);
    sl_router_worker_down(r, 1, false, 1); /* 11 is not sent yet */
    check(r);
    expect_pair(r, 11, 2, 0);
    none(r);
    assert_true(output(r, 2, 10, 1, 1, false));
    assert_true(output(r, 2, 11, 1, 1, false));
    sl_router_close(r);
}

static void test_sources_are_told(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        struct sl_router *r = open_roles(8);
        up_as(r, 1, SL_ROLE_PREFILL, 5);
        up_as(r, 2, SL_ROLE_DECODE, 5);
        submit(r, 10);
        expect_pair(r, 10, 2, 1);
        if (how == 0)
            sl_router_cancel(r, 10, 1);
        else if (how == 1) /* the owner began without waiting for the source */
            assert_true(output(r, 2, 10, 1, 1, false));
        else
            sl_router_refused(r, 2, 10, 1, SL_FAILED, 1);
        check(r);
        bool source_told = false, owner_told = false;
        struct sl_action a;
        while (sl_router_next_action(r, &a) && a.kind == SL_ACT_CANCEL) {
            source_told |= a.worker_key == 1;
            owner_told |= a.worker_key == 2;
        }
        assert_true(source_told && owner_told == (how == 0));
        sl_router_close(r);
    }
}

/* Two prompts, two prefill workers; one that refuses is not asked again until it reports. */
static void test_sources_share_the_work(void **state)
{
    (void)state;
    struct sl_router *r = open_roles(8);
    up_as(r, 1, SL_ROLE_PREFILL, 5);
    up_as(r, 2, SL_ROLE_DECODE, 5);
    up_as(r, 3, SL_ROLE_PREFILL, 5);
    submit(r, 10);
    struct sl_action a = next(r);
    submit(r, 11);
    struct sl_action b = next(r);
    assert_true(a.has_source && b.has_source && a.source_key != b.source_key);
    assert_true(sl_router_prefilled(r, a.source_key, 10, 1, SL_QUEUE_FULL, 1));
    assert_true(output(r, 2, 10, 1, 1, true));
    submit(r, 12);
    expect_pair(r, 12, 2, b.source_key);
    sl_router_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_go_to_a_prefill_worker),
        cmocka_unit_test(test_no_source),
        cmocka_unit_test(test_roles_alone),
        cmocka_unit_test(test_prefill_owns_at_need),
        cmocka_unit_test(test_a_lost_source_costs_nothing),
        cmocka_unit_test(test_sources_are_told),
        cmocka_unit_test(test_sources_share_the_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
