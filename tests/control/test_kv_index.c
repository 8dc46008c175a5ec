/* The router's copy of the workers' prefix indexes answers as a naive table of (worker, page) pairs
 * does, whatever the workers say and in whatever order, and never outgrows its bound. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <sluice/control/kv_index.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static struct sl_kv_index *open_index(uint32_t n_slots, uint32_t keys_max)
{
    struct sl_kv_index *ix = NULL;
    assert_int_equal(sl_kv_index_open(n_slots, keys_max, &ix, NULL), SL_OK);
    return ix;
}

static void check(const struct sl_kv_index *ix)
{
    struct sl_err err = {0};
    if (sl_kv_index_check(ix, &err))
        fail_msg("%s", err.msg);
}

static void test_open_refuses(void **state)
{
    (void)state;
    struct sl_kv_index *ix;
    assert_int_equal(sl_kv_index_open(0, 4, &ix, NULL), SL_INVALID);
    assert_int_equal(sl_kv_index_open(4, 0, &ix, NULL), SL_INVALID);
}

/* A router names pages from salt and tokens as a worker's pool does. */
static void test_names_are_the_workers_keys(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 4, 16, 256};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct sl_kv_pool kv;
        uint32_t tokens[3 * 256];
        uint64_t chain[3];
        uint8_t salt[32] = {5, 6, 7}, key[32];
        for (uint32_t i = 0; i < 3 * 256; i++)
            tokens[i] = i * 7919;
        assert_int_equal(sl_kv_open(&kv, 4, sizes[s], true, NULL), SL_OK);
        sl_kv_index_chain(salt, tokens, sizes[s], 3, chain);
        memcpy(key, salt, 32);
        for (uint32_t i = 0; i < 3; i++) {
            sl_prefix_key(&kv, key, tokens + (size_t)i * sizes[s], key);
            assert_true(chain[i] == sl_kv_index_name(key));
        }
        salt[0]++;
        uint64_t other[3];
        sl_kv_index_chain(salt, tokens, sizes[s], 3, other);
        assert_true(chain[0] != other[0]);
        sl_kv_close(&kv);
    }
}

/* A worker's own word replaces the guess, a loss takes both. */
static void test_guesses(void **state)
{
    (void)state;
    struct sl_kv_index *ix = open_index(3, 8);
    const uint64_t chain[3] = {10, 20, 30};
    uint32_t n[3];
    for (uint32_t i = 0; i < 3; i++)
        sl_kv_index_guess(ix, 1, chain[i]);
    sl_kv_index_stored(ix, 2, 10);
    sl_kv_index_match(ix, chain, 3, n);
    assert_int_equal(n[0], 0);
    assert_int_equal(n[1], 3);
    assert_int_equal(n[2], 1);
    sl_kv_index_removed(ix, 1, 20); /* it says that it has it no longer */
    sl_kv_index_stored(ix, 1, 10);
    sl_kv_index_match(ix, chain, 3, n);
    assert_int_equal(n[1], 1);
    assert_int_equal(sl_kv_index_held(ix, 1), 1);
    sl_kv_index_guess(ix, 1, 10); /* known already */
    sl_kv_index_clear(ix, 1, false);
    sl_kv_index_match(ix, chain, 3, n);
    assert_int_equal(n[1], 0); /* its first page went with its word */
    sl_kv_index_guess(ix, 1, 10);
    sl_kv_index_match(ix, (const uint64_t[]){10, 30}, 2, n);
    assert_int_equal(n[1], 2); /* the guess of page 30 stood */
    sl_kv_index_clear(ix, 1, true);
    sl_kv_index_match(ix, (const uint64_t[]){10, 30}, 2, n);
    assert_int_equal(n[1], 0);
    assert_int_equal(n[2], 1);
    check(ix);
    sl_kv_index_close(ix);
}

/* What is used stays, and of a prefix the head. */
static void test_bound(void **state)
{
    (void)state;
    struct sl_kv_index *ix = open_index(1, 4);
    struct sl_kv_index_stats st;
    const uint64_t chain[3] = {1, 2, 3};
    uint32_t n;
    for (uint32_t i = 0; i < 3; i++)
        sl_kv_index_stored(ix, 0, chain[i]);
    for (uint64_t page = 100; page < 110; page++) {
        sl_kv_index_match(ix, chain, 3, &n);
        assert_int_equal(n, 3);
        sl_kv_index_stored(ix, 0, page);
        check(ix);
    }
    sl_kv_index_stored(ix, 0, 200);
    sl_kv_index_match(ix, chain, 3, &n);
    assert_int_equal(n, 2); /* the tail went first */
    sl_kv_index_stats(ix, &st);
    assert_int_equal(st.n_keys, 4);
    assert_int_equal(st.n_evicted, 10);
    sl_kv_index_close(ix);
}

enum { SLOTS = 70, PAGES = 40 };

static void random_run(uint64_t seed)
{
    static enum { NOT, GUESSED, HELD } has[SLOTS][PAGES];
    struct rng rng = {seed};
    struct sl_kv_index *ix = open_index(SLOTS, PAGES);
    memset(has, 0, sizeof has);
    for (uint32_t i = 0; i < 3000; i++) {
        uint32_t s = rng_below(&rng, SLOTS), p = rng_below(&rng, PAGES), what = rng_below(&rng, 40);
        if (what < 16) {
            sl_kv_index_stored(ix, s, p + 1);
            has[s][p] = HELD;
        } else if (what < 24) {
            sl_kv_index_removed(ix, s, p + 1);
            has[s][p] = NOT;
        } else if (what < 36) {
            sl_kv_index_guess(ix, s, p + 1);
            has[s][p] = has[s][p] == HELD ? HELD : GUESSED;
        } else {
            bool guesses = what == 39;
            sl_kv_index_clear(ix, s, guesses);
            for (uint32_t k = 0; k < PAGES; k++)
                has[s][k] = has[s][k] == GUESSED && !guesses ? GUESSED : NOT;
        }
        if (i % 50)
            continue;
        check(ix);
        uint64_t chain[6];
        uint32_t n[SLOTS], n_pages = rng_below(&rng, 7);
        for (uint32_t k = 0; k < n_pages; k++)
            chain[k] = 1 + rng_below(&rng, PAGES);
        sl_kv_index_match(ix, chain, n_pages, n);
        for (uint32_t w = 0; w < SLOTS; w++) {
            uint32_t want = 0;
            while (want < n_pages && has[w][chain[want] - 1] != NOT)
                want++;
            if (n[w] != want)
                fail_msg("seed %u: worker %u has %u pages, said %u", (unsigned)seed, w, want, n[w]);
        }
    }
    sl_kv_index_close(ix);
}

static void test_as_a_naive_table(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++)
        random_run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_refuses),     cmocka_unit_test(test_names_are_the_workers_keys),
        cmocka_unit_test(test_guesses),          cmocka_unit_test(test_bound),
        cmocka_unit_test(test_as_a_naive_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
