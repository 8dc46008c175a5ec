/* Whatever a lossy link drops, late subscription or bounded replay buffer loses, the follower's
 * state ends as the publisher's, after every batch it applied a state the publisher once had since
 * the last "cleared", and it asks for replays a bounded number of times. */
#include "fake_engine.h"

#include <sluice/control/kv_feed.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define MS 1000000ull

static struct sl_kv_feed new_feed(bool replays)
{
    struct sl_kv_feed f;
    sl_kv_feed_init(&f, replays, 0);
    return f;
}

static void test_in_order(void **state)
{
    (void)state;
    struct sl_kv_feed f = new_feed(true);
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(sl_kv_feed_batch(&f, i, false, i), SL_KV_FEED_APPLY);
        assert_false(sl_kv_feed_ask(&f, i));
        assert_int_equal(sl_kv_feed_batch(&f, i, true, i), SL_KV_FEED_DROP);
    }
    sl_kv_feed_published(&f, 10, 10);
    assert_false(sl_kv_feed_ask(&f, 1000 * MS));
    assert_int_equal(sl_kv_feed_batch(&f, UINT64_MAX, false, 0), SL_KV_FEED_DROP);
    assert_int_equal(f.n_gaps, 0);
}

/* A gap is asked for at once, once; what comes meanwhile comes again. */
static void test_gap(void **state)
{
    (void)state;
    struct sl_kv_feed f = new_feed(true);
    sl_kv_feed_batch(&f, 0, false, 0);
    assert_int_equal(sl_kv_feed_batch(&f, 3, false, 1), SL_KV_FEED_DROP);
    assert_true(sl_kv_feed_ask(&f, 1));
    assert_int_equal(f.next, 1);
    assert_false(sl_kv_feed_ask(&f, 2));
    assert_int_equal(sl_kv_feed_batch(&f, 1, true, 2), SL_KV_FEED_APPLY);
    assert_int_equal(sl_kv_feed_batch(&f, 4, false, 2), SL_KV_FEED_DROP);
    assert_int_equal(sl_kv_feed_batch(&f, 2, true, 2), SL_KV_FEED_APPLY);
    assert_int_equal(sl_kv_feed_batch(&f, 3, true, 2), SL_KV_FEED_APPLY);
    sl_kv_feed_replay_end(&f, 3);
    assert_true(sl_kv_feed_ask(&f, 3)); /* for 4 */
    assert_int_equal(sl_kv_feed_batch(&f, 4, true, 4), SL_KV_FEED_APPLY);
    sl_kv_feed_replay_end(&f, 4);
    assert_false(sl_kv_feed_ask(&f, 5000 * MS));
    assert_int_equal(f.n_gaps, 1);
    assert_int_equal(f.n_forgotten, 0);
}

/* The publisher's word alone: asked for at once in the beginning, later only after a while. */
static void test_published(void **state)
{
    (void)state;
    struct sl_kv_feed f = new_feed(true);
    assert_false(sl_kv_feed_ask(&f, 0));
    sl_kv_feed_published(&f, 2, 0);
    assert_true(sl_kv_feed_ask(&f, 0));
    sl_kv_feed_batch(&f, 0, true, 1);
    sl_kv_feed_batch(&f, 1, true, 1);
    sl_kv_feed_replay_end(&f, 1);
    sl_kv_feed_published(&f, 3, 1);
    assert_false(sl_kv_feed_ask(&f, SL_KV_FEED_BEHIND_NS));
    assert_true(sl_kv_feed_ask(&f, 1 + SL_KV_FEED_BEHIND_NS));
}

/* Older batches are gone: forget, go on from the first there is. */
static void test_gone(void **state)
{
    (void)state;
    struct sl_kv_feed f = new_feed(true);
    sl_kv_feed_published(&f, 100, 0);
    assert_true(sl_kv_feed_ask(&f, 0));
    assert_int_equal(sl_kv_feed_batch(&f, 90, true, 0), SL_KV_FEED_FORGET);
    assert_int_equal(sl_kv_feed_batch(&f, 91, true, 0), SL_KV_FEED_APPLY);
    f = new_feed(false);
    assert_int_equal(sl_kv_feed_batch(&f, 0, false, 0), SL_KV_FEED_APPLY);
    assert_int_equal(sl_kv_feed_batch(&f, 2, false, 0), SL_KV_FEED_FORGET);
    assert_false(sl_kv_feed_ask(&f, 9000 * MS)); /* it could not answer */
}

/* Nobody answers: a few tries, then it goes on without, and tries again at the next gap. A word of
 * batches that do not exist costs no more. */
static void test_no_answer(void **state)
{
    (void)state;
    struct sl_kv_feed f = new_feed(true);
    uint32_t n_asked = 0;
    sl_kv_feed_batch(&f, 5, false, 0);
    for (uint64_t t = 0; t < 30000 * MS; t += 10 * MS)
        n_asked += sl_kv_feed_ask(&f, t);
    assert_int_equal(n_asked, SL_KV_FEED_TRIES);
    assert_int_equal(sl_kv_feed_batch(&f, 6, false, 0), SL_KV_FEED_FORGET);
    assert_int_equal(sl_kv_feed_batch(&f, 9, false, 0), SL_KV_FEED_DROP);
    assert_true(sl_kv_feed_ask(&f, 30000 * MS));

    f = new_feed(true);
    sl_kv_feed_published(&f, UINT64_MAX, 0);
    n_asked = 0;
    for (uint64_t t = 0; t < 60000 * MS; t += 10 * MS)
        if (sl_kv_feed_ask(&f, t)) {
            n_asked++;
            sl_kv_feed_replay_end(&f, t);
        }
    assert_in_range(n_asked, 1, 3 * SL_KV_FEED_TRIES);
}

/* The publisher's state is the number of its last batch since a "cleared" every 50; both channels
 * lose, delay and repeat. */
static void random_run(uint64_t seed)
{
    enum { N = 400, KEPT = 30 };
    struct rng rng = {seed};
    struct sl_kv_feed f = new_feed(true);
    uint64_t published = 0, now = 0, replay_at = 0, replay_end = 0, lost_from = 0;
    uint32_t n_asked = 0;
    bool replaying = false;
    uint64_t live[8];
    uint32_t n_live = 0;
    for (uint32_t i = 0; i < 20000 && (published < N || f.next < published); i++) {
        now += rng_below(&rng, 40) * MS;
        uint32_t what = rng_below(&rng, 10);
        if (what < 3 && published < N) {
            if (n_live < 8 && rng_below(&rng, 5))
                live[n_live++] = published;
            published++;
        } else if (what < 6 && n_live) {
            enum sl_kv_feed_word w = sl_kv_feed_batch(&f, live[0], false, now);
            if (w == SL_KV_FEED_FORGET)
                lost_from = live[0];
            assert_true(w == SL_KV_FEED_DROP || f.next == live[0] + 1);
            n_live--;
            for (uint32_t k = 0; k < n_live; k++)
                live[k] = live[k + 1];
        } else if (what < 9 && replaying) {
            if (replay_at == replay_end) {
                sl_kv_feed_replay_end(&f, now);
                replaying = false;
            } else {
                if (sl_kv_feed_batch(&f, replay_at, true, now) == SL_KV_FEED_FORGET)
                    lost_from = replay_at;
                replay_at++;
            }
        } else {
            sl_kv_feed_published(&f, published, now);
        }
        if (sl_kv_feed_ask(&f, now)) {
            uint64_t oldest = published > KEPT ? published - KEPT : 0;
            replay_at = f.next > oldest ? f.next : oldest;
            replay_end = published;
            replaying = rng_below(&rng, 8) != 0; /* or the request is lost */
            n_asked++;
        }
    }
    if (f.next != published)
        fail_msg("seed %u: at %u of %u", (unsigned)seed, (unsigned)f.next, (unsigned)published);
    assert_true(lost_from <= published && n_asked < N);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++)
        random_run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_order),  cmocka_unit_test(test_gap),
        cmocka_unit_test(test_published), cmocka_unit_test(test_gone),
        cmocka_unit_test(test_no_answer), cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
