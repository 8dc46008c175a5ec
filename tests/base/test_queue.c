/* Promised: a queue keeps order, refuses at its capacity, loses and repeats nothing between
 * threads, and its descriptor is readable while anything is inside. */
#include <sluice/base/queue.h>

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#define N_PRODUCERS 4
#define N_EACH      20000

static void *item(uintptr_t i)
{
    return (void *)i;
}

static bool readable(struct sl_queue *q)
{
    struct pollfd p = {.fd = sl_queue_fd(q), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void order_and_capacity(void **state)
{
    (void)state;
    assert_null(sl_queue_open(0));
    assert_null(sl_queue_open(SIZE_MAX / 4));
    struct sl_queue *q = sl_queue_open(3);
    uintptr_t pushed = 0, popped = 0;
    assert_null(sl_queue_pop(q));
    for (int round = 0; round < 10; round++) { /* the ring wraps at every offset */
        while (sl_queue_push(q, item(pushed + 1)))
            pushed++;
        assert_int_equal(sl_queue_len(q), 3);
        assert_ptr_equal(sl_queue_pop(q), item(++popped));
        assert_ptr_equal(sl_queue_pop(q), item(++popped));
    }
    assert_ptr_equal(sl_queue_pop(q), item(++popped));
    assert_null(sl_queue_pop(q));
    assert_int_equal(popped, pushed);
    sl_queue_close(q);
    sl_queue_close(NULL);
}

static void event_follows_contents(void **state)
{
    (void)state;
    struct sl_queue *q = sl_queue_open(8);
    assert_false(readable(q));
    sl_queue_wait(q, 0);
    sl_queue_push(q, item(1));
    sl_queue_push(q, item(2));
    assert_true(readable(q));
    sl_queue_wait(q, -1);
    sl_queue_clear_event(q);
    assert_ptr_equal(sl_queue_pop(q), item(1));
    assert_true(readable(q)); /* one is left: a consumer that stops here is woken again */
    assert_ptr_equal(sl_queue_pop(q), item(2));
    assert_null(sl_queue_pop(q));
    assert_false(readable(q));
    sl_queue_push(q, item(3));
    assert_true(readable(q));
    assert_ptr_equal(sl_queue_pop(q), item(3));
    sl_queue_clear_event(q); /* empty without a failed pop: the event goes here */
    assert_false(readable(q));
    sl_queue_close(q);
}

struct producer {
    struct sl_queue *q;
    uintptr_t id;
};

static void *produce(void *arg)
{
    const struct producer *p = arg;
    for (uintptr_t i = 0; i < N_EACH; i++)
        while (!sl_queue_push(p->q, item((i * N_PRODUCERS + p->id) + 1)))
            sched_yield();
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    struct sl_queue *q = sl_queue_open(64);
    pthread_t thread[N_PRODUCERS];
    struct producer producers[N_PRODUCERS];
    uintptr_t next[N_PRODUCERS] = {0};
    size_t n = 0;
    for (uintptr_t i = 0; i < N_PRODUCERS; i++) {
        producers[i] = (struct producer){q, i};
        assert_int_equal(pthread_create(&thread[i], NULL, produce, &producers[i]), 0);
    }
    while (n < (size_t)N_PRODUCERS * N_EACH) {
        sl_queue_wait(q, -1); /* a lost wake-up would hang here */
        void *got;
        for (int burst = 0; burst < 7 && (got = sl_queue_pop(q)); burst++, n++) {
            uintptr_t v = (uintptr_t)got - 1;
            assert_int_equal(v / N_PRODUCERS, next[v % N_PRODUCERS]++);
        }
    }
    for (int i = 0; i < N_PRODUCERS; i++)
        pthread_join(thread[i], NULL);
    assert_null(sl_queue_pop(q));
    sl_queue_close(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_capacity),
        cmocka_unit_test(event_follows_contents),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
