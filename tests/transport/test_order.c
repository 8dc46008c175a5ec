/* Numbers on a link: whatever a network drops, repeats or holds back, what is handed on is a part
 * of what was sent, in order, and every loss before it is told. */
#include <sluice/transport/bus.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static struct sl_msg send(struct sl_bus_order *from, enum sl_msg_kind kind, uint64_t greeting)
{
    struct sl_msg m = {.kind = kind};
    m.hello.greeting = greeting;
    sl_bus_order_stamp(from, &m);
    sl_bus_order_sent(from, &m);
    return m;
}

static void test_in_order(void **state)
{
    struct sl_bus_order worker = {0}, router = {0};
    (void)state;
    struct sl_msg hello = send(&worker, SL_MSG_HELLO, 1);
    assert_true(sl_bus_order_heard(&router, &hello));
    for (uint32_t i = 0; i < 5; i++) {
        struct sl_msg up = send(&worker, SL_MSG_LOAD, 0), down = send(&router, SL_MSG_PING, 0);
        assert_true(sl_bus_order_heard(&router, &up) && !up.gap);
        assert_true(sl_bus_order_heard(&worker, &down) && !down.gap);
        assert_int_equal(up.seq, i + 2); /* HELLO was the first */
        assert_int_equal(down.seq, i + 1);
    }
}

/* Repeated: dropped. Lost: the next one tells. Late: dropped. */
static void test_repeated_lost_late(void **state)
{
    struct sl_bus_order worker = {0}, router = {0};
    (void)state;
    struct sl_msg hello = send(&worker, SL_MSG_HELLO, 1);
    struct sl_msg a = send(&worker, SL_MSG_LOAD, 0), b = send(&worker, SL_MSG_LOAD, 0);
    struct sl_msg c = send(&worker, SL_MSG_LOAD, 0);
    assert_true(sl_bus_order_heard(&router, &hello));
    assert_false(sl_bus_order_heard(&router, &hello));
    assert_true(sl_bus_order_heard(&router, &a));
    assert_false(sl_bus_order_heard(&router, &a));
    assert_true(sl_bus_order_heard(&router, &c));
    assert_true(c.gap);
    assert_false(sl_bus_order_heard(&router, &b));
}

/* A newer HELLO starts over in both directions; what belongs to the older one is dropped. */
static void test_again(void **state)
{
    struct sl_bus_order worker = {0}, router = {0};
    (void)state;
    struct sl_msg first = send(&worker, SL_MSG_HELLO, 1), old = send(&worker, SL_MSG_STEP, 0);
    assert_true(sl_bus_order_heard(&router, &first));
    struct sl_msg submit = send(&router, SL_MSG_SUBMIT, 0);
    struct sl_msg second = send(&worker, SL_MSG_HELLO, 2), load = send(&worker, SL_MSG_LOAD, 0);
    assert_false(sl_bus_order_heard(&worker, &submit)); /* was under way */
    assert_true(sl_bus_order_heard(&router, &second));
    assert_false(sl_bus_order_heard(&router, &old));
    assert_false(sl_bus_order_heard(&router, &first));
    assert_true(sl_bus_order_heard(&router, &load) && !load.gap);
    struct sl_msg ping = send(&router, SL_MSG_PING, 0);
    assert_true(sl_bus_order_heard(&worker, &ping) && !ping.gap);
}

/* Without a HELLO nothing is numbered; whoever forgot its peer still hears it. */
static void test_strangers(void **state)
{
    struct sl_bus_order worker = {0}, router = {0};
    (void)state;
    struct sl_msg m = send(&router, SL_MSG_WELCOME, 0);
    assert_int_equal(m.seq, 0);
    assert_true(sl_bus_order_heard(&worker, &m));
    assert_true(sl_bus_order_heard(&worker, &m));
    send(&worker, SL_MSG_HELLO, 7);
    m = send(&worker, SL_MSG_LOAD, 0);
    assert_true(sl_bus_order_heard(&router, &m) && !m.gap);
    m = send(&router, SL_MSG_WELCOME, 0);
    assert_true(sl_bus_order_heard(&worker, &m));
    struct sl_msg forged = {.kind = SL_MSG_HELLO, .tag = 9, .seq = 1};
    forged.hello.greeting = 8;
    assert_false(sl_bus_order_heard(&router, &forged));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_order), cmocka_unit_test(test_repeated_lost_late),
        cmocka_unit_test(test_again), cmocka_unit_test(test_strangers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
