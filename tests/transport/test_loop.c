/* Promises: posted calls run on the loop's thread in the order of each caller; idle hooks run
 * before the loop blocks; watches are level-triggered; timers fire once; work's end comes back to
 * the loop; a loop closes with whatever is left open in it. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sluice/transport/loop.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

struct box {
    struct sl_loop *loop;
    struct sl_timer *timer;
    struct sl_watch *watch;
    pthread_t loop_thread;
    int fd;
    int n, n_idle, n_left;
    bool worked_elsewhere;
};

static void stop(void *ctx)
{
    struct box *b = ctx;
    b->n++;
    sl_loop_stop(b->loop);
}

enum { N_POSTERS = 4, N_POSTS = 5000 };

struct poster {
    struct box *box;
    pthread_t thread;
    int next;
    struct call {
        struct poster *from;
        int number;
    } calls[N_POSTS];
};

static void on_call(void *ctx)
{
    struct call *c = ctx;
    struct box *b = c->from->box;
    assert_true(pthread_equal(pthread_self(), b->loop_thread));
    assert_int_equal(c->number, c->from->next++);
    if (--b->n_left == 0)
        sl_loop_stop(b->loop);
}

static void *post_all(void *ctx)
{
    struct poster *p = ctx;
    for (int i = 0; i < N_POSTS; i++) {
        p->calls[i] = (struct call){p, i};
        if (!sl_loop_post(p->box->loop, on_call, &p->calls[i]))
            return p;
    }
    return NULL;
}

static void test_posts_keep_order(void **state)
{
    (void)state;
    static struct poster posters[N_POSTERS];
    struct box b = {.loop = sl_loop_open(), .loop_thread = pthread_self()};
    b.n_left = N_POSTERS * N_POSTS;
    for (int i = 0; i < N_POSTERS; i++) {
        posters[i].box = &b;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_all, &posters[i]), 0);
    }
    sl_loop_run(b.loop);
    for (int i = 0; i < N_POSTERS; i++) {
        void *failed;
        pthread_join(posters[i].thread, &failed);
        assert_null(failed);
        assert_int_equal(posters[i].next, N_POSTS);
    }
    sl_loop_close(b.loop);
}

static void post_again(void *ctx)
{
    struct box *b = ctx;
    if (++b->n < 100)
        sl_loop_post(b->loop, post_again, b);
    else
        sl_loop_stop(b->loop);
}

static void test_posts_from_posts(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open()};
    sl_loop_post(b.loop, post_again, &b);
    sl_loop_run(b.loop);
    assert_int_equal(b.n, 100);
    sl_loop_close(b.loop);
}

static void count_idle(void *ctx)
{
    struct box *b = ctx;
    b->n_idle++;
}

static void read_one(void *ctx)
{
    struct box *b = ctx;
    uint64_t value;
    assert_true(b->n_idle > b->n); /* a hook ran between this and the callback before */
    assert_int_equal(read(b->fd, &value, sizeof(value)), sizeof(value));
    if (++b->n == 5)
        sl_loop_stop(b->loop);
}

static void test_watch_is_level_triggered(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open(), .fd = eventfd(5, EFD_NONBLOCK | EFD_SEMAPHORE)};
    assert_true(sl_loop_on_idle(b.loop, count_idle, &b));
    b.watch = sl_loop_watch_fd(b.loop, b.fd, read_one, &b);
    assert_non_null(b.watch);
    sl_loop_run(b.loop); /* one write, five reads */
    assert_int_equal(b.n, 5);
    sl_loop_unwatch(b.watch);
    sl_loop_close(b.loop);
    close(b.fd);
}

static void test_timers(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open()}, never = {.loop = b.loop};
    struct sl_timer *a = sl_timer_new(b.loop, stop, &b);
    struct sl_timer *stopped = sl_timer_new(b.loop, stop, &never);
    sl_timer_start(stopped, 0);
    sl_timer_stop(stopped);
    for (int i = 1; i <= 3; i++) {
        sl_timer_start(a, 1);
        sl_timer_start(a, 2); /* moves it, does not add one */
        sl_loop_run(b.loop);
        assert_int_equal(b.n, i);
    }
    assert_int_equal(never.n, 0);
    sl_timer_free(a);
    sl_timer_free(NULL);
    sl_loop_close(b.loop); /* frees the other one */
}

static void test_signal(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open()};
    struct sl_signal *s = sl_loop_on_signal(b.loop, SIGUSR1, stop, &b);
    assert_non_null(s);
    raise(SIGUSR1);
    sl_loop_run(b.loop);
    assert_int_equal(b.n, 1);
    sl_signal_free(s);
    sl_loop_close(b.loop);
}

static void work(void *ctx)
{
    struct box *b = ctx;
    b->worked_elsewhere = !pthread_equal(pthread_self(), b->loop_thread);
}

static void work_done(void *ctx)
{
    struct box *b = ctx;
    assert_true(pthread_equal(pthread_self(), b->loop_thread));
    stop(b);
}

static void test_work(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open(), .loop_thread = pthread_self()};
    assert_true(sl_loop_work(b.loop, work, work_done, &b));
    sl_loop_run(b.loop);
    assert_int_equal(b.n, 1);
    assert_true(b.worked_elsewhere);
    assert_true(sl_loop_work(b.loop, work, work_done, &b)); /* finished by the close */
    sl_loop_close(b.loop);
    assert_int_equal(b.n, 2);
}

static void test_close_with_things_left(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open(), .fd = eventfd(0, EFD_NONBLOCK)};
    assert_non_null(sl_timer_new(b.loop, stop, &b));
    assert_non_null(sl_loop_watch_fd(b.loop, b.fd, stop, &b));
    assert_non_null(sl_loop_on_signal(b.loop, SIGUSR2, stop, &b));
    assert_true(sl_loop_on_idle(b.loop, count_idle, &b));
    sl_loop_close(b.loop);
    assert_int_equal(b.n, 0);
    close(b.fd);
}

static void test_stop_before_run(void **state)
{
    (void)state;
    struct box b = {.loop = sl_loop_open()};
    sl_loop_stop(b.loop);
    sl_loop_run(b.loop);
    sl_loop_close(b.loop);
}

static void test_gone_peer_is_no_signal(void **state)
{
    (void)state;
    struct sl_loop *l = sl_loop_open();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), -1); /* and the process is still here */
    close(ends[1]);
    sl_loop_close(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_posts_keep_order),
        cmocka_unit_test(test_posts_from_posts),
        cmocka_unit_test(test_watch_is_level_triggered),
        cmocka_unit_test(test_timers),
        cmocka_unit_test(test_signal),
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_close_with_things_left),
        cmocka_unit_test(test_stop_before_run),
        cmocka_unit_test(test_gone_peer_is_no_signal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
