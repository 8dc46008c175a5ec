/* Workers and sites as they register and report: what is refused, whose place a new one takes, how
 * weights, sizes and loads count. */
#include "router_fixture.h"

static void up_site(struct sl_router *r, uint64_t key, uint32_t max_seqs, uint32_t weight_percent)
{
    struct sl_worker_desc d = {
        .key = key, .max_seqs = max_seqs, .max_len = 100, .weight_percent = weight_percent};
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    check(r);
}

/* Of two sites of one size, the one that weighs three times as much gets three times as much. */
static void test_weights(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    uint32_t n[2] = {0};
    up_site(r, 0, 100, 100);
    up_site(r, 1, 100, 300);
    for (uint64_t id = 1; id <= 16; id++) {
        submit(r, id);
        n[next(r).worker_key]++;
    }
    assert_int_equal(n[0], 4);
    assert_int_equal(n[1], 12);
    sl_router_close(r);
}

static void test_what_registers(void **state)
{
    (void)state;
    static const struct {
        uint32_t max_seqs, max_len, weight_percent;
        enum sl_status status;
    } rows[] = {{0, 1, 0, SL_INVALID}, {1, 0, 0, SL_INVALID},    {0, 0, 0, SL_INVALID},
                {1, 1, 0, SL_OK},      {1u << 24, 1, 0, SL_OK},  {(1u << 24) + 1, 1, 0, SL_INVALID},
                {1, 1, 10000, SL_OK},  {1, 1, 10001, SL_INVALID}};
    struct sl_router *r = open_with(base);
    uint32_t n = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_worker_desc d = {.key = i,
                                   .max_seqs = rows[i].max_seqs,
                                   .max_len = rows[i].max_len,
                                   .weight_percent = rows[i].weight_percent};
        assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), rows[i].status);
        n += rows[i].status == SL_OK;
        assert_int_equal(stats(r).workers, n);
    }
    sl_router_close(r);
}

/* A lost worker leaves its place to one that comes, the one that was silent longest; the living do
 * not. What the one that left says is a stranger's. */
static void test_place_of_a_lost_one(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    struct sl_worker_desc d = {.max_seqs = 4, .max_len = 100};
    for (d.key = 1; d.key <= 4; d.key++)
        assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_OK);
    assert_int_equal(sl_router_worker_up(r, &d, 0, NULL), SL_QUEUE_FULL);
    load(r, 1, 0, 0, 600);
    load(r, 2, 0, 0, 500);
    load(r, 3, 0, 0, 1000);
    load(r, 4, 0, 0, 1000);
    sl_router_tick(r, 1600);
    assert_int_equal(stats(r).ready_workers, 2);
    assert_int_equal(sl_router_worker_up(r, &d, 1600, NULL), SL_OK); /* for 2 */
    check(r);
    load(r, 2, 0, 1, 1600);
    assert_int_equal(stats(r).ready_workers, 3);
    load(r, 1, 0, 1, 1600);
    assert_int_equal(stats(r).ready_workers, 4);
    d.key = 9;
    assert_int_equal(sl_router_worker_up(r, &d, 1600, NULL), SL_QUEUE_FULL);
    assert_int_equal(stats(r).workers, 4);
    sl_router_close(r);
}

/* What waits at a worker is load as well as what runs there. */
static void test_waiting_is_load(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    struct sl_worker_load l = {
        .running = 3, .waiting = 2, .pages_free = 1, .pages_total = 1, .steps = 1};
    up(r, 7, 8, 0);
    up(r, 8, 8, 0);
    sl_router_worker_load(r, 7, &l, 0); /* five of another router's */
    load(r, 8, 4, 1, 0);
    submit(r, 1);
    expect_send(r, 1, 8, 1);
    sl_router_close(r);
}

/* A site grows and shrinks by its reports; what it has stays with it. */
static void test_site_changes_size(void **state)
{
    (void)state;
    struct sl_router *r = open_with(base);
    struct sl_worker_load l = {.pages_free = 1, .pages_total = 1};
    up_site(r, 7, 1, 0);
    for (uint64_t id = 1; id <= 4; id++)
        submit(r, id);
    expect_send(r, 1, 7, 1);
    none(r);
    l.max_seqs = 3;
    sl_router_worker_load(r, 7, &l, 1);
    expect_send(r, 2, 7, 1);
    expect_send(r, 3, 7, 1);
    none(r);
    l.max_seqs = 1;
    sl_router_worker_load(r, 7, &l, 2);
    check(r);
    assert_true(output(r, 7, 1, 1, 1, true));
    assert_true(output(r, 7, 2, 1, 1, true));
    none(r);
    assert_true(output(r, 7, 3, 1, 1, true));
    expect_send(r, 4, 7, 1);
    static const uint32_t ignored[] = {0, (1u << 24) + 1, UINT32_MAX};
    for (uint64_t i = 0; i < 3; i++) {
        submit(r, 5 + i);
        l.max_seqs = ignored[i];
        sl_router_worker_load(r, 7, &l, 3);
        none(r);
    }
    l.max_seqs = 1u << 24;
    sl_router_worker_load(r, 8, &l, 4); /* a stranger */
    none(r);
    sl_router_worker_load(r, 7, &l, 4);
    for (uint64_t id = 5; id <= 7; id++)
        expect_send(r, id, 7, 1);
    sl_router_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_what_registers),
        cmocka_unit_test(test_place_of_a_lost_one),
        cmocka_unit_test(test_waiting_is_load),
        cmocka_unit_test(test_site_changes_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
