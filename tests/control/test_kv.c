/* Pages are handed out once, come back when nobody uses them, and are found under the chain of
 * their tokens and in no other way. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static const uint8_t no_salt[32];

static void check(const struct sl_kv_pool *kv)
{
    struct sl_err err = {0};
    if (sl_kv_check(kv, &err))
        fail_msg("%s", err.msg);
}

static void test_open_refuses(void **state)
{
    (void)state;
    static const uint32_t rows[][2] = {{0, 4}, {4, 0}, {0, 0}, {4, UINT32_MAX / 4}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_kv_pool kv;
        struct sl_err err;
        assert_int_equal(sl_kv_open(&kv, rows[i][0], rows[i][1], true, &err), SL_INVALID);
    }
}

static void test_take_and_release(void **state)
{
    (void)state;
    struct sl_kv_pool kv;
    uint32_t page[4];
    assert_int_equal(sl_kv_open(&kv, 3, 2, false, NULL), SL_OK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(sl_kv_take(&kv, &page[i]));
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(page[i], page[j]);
        check(&kv);
    }
    assert_false(sl_kv_take(&kv, &page[3]));
    sl_kv_ref(&kv, page[1]);
    sl_kv_release(&kv, page[1]);
    assert_int_equal(sl_kv_available(&kv), 0);
    sl_kv_release(&kv, page[1]);
    assert_int_equal(sl_kv_available(&kv), 1);
    assert_true(sl_kv_take(&kv, &page[3]));
    assert_int_equal(page[3], page[1]);
    check(&kv);
    sl_kv_close(&kv);
}

/* The key is SHA-256(parent, tokens as little-endian words): FIPS 180-4, computed apart by Python's
 * hashlib. */
static void test_key(void **state)
{
    (void)state;
    struct sl_kv_pool kv;
    static const uint32_t tokens[4] = {1, 2, 3, 0x01020304};
    uint8_t key[32];
    char hex[65];
    assert_int_equal(sl_kv_open(&kv, 1, 4, true, NULL), SL_OK);
    sl_prefix_key(&kv, no_salt, tokens, key);
    sl_hex(key, 32, hex);
    assert_string_equal(hex, "f25263b3abf48cefd2167d03308323f9e7a957889fd4e219c1190d81296ebfe0");
    sl_prefix_key(&kv, key, tokens, key); /* in place */
    sl_hex(key, 32, hex);
    assert_string_equal(hex, "671950ae45e6c25aff38870f3e3328d4ae63f5489c412d9dc28ec4bc2d5746cd");
    sl_kv_close(&kv);
}

static void test_index(void **state)
{
    (void)state;
    struct sl_kv_pool kv;
    static const uint32_t a[2] = {1, 2}, b[2] = {1, 3};
    uint8_t key_a[32], key_b[32];
    uint32_t p, q, found;
    bool unused;
    assert_int_equal(sl_kv_open(&kv, 2, 2, true, NULL), SL_OK);
    sl_prefix_key(&kv, no_salt, a, key_a);
    sl_prefix_key(&kv, no_salt, b, key_b);
    assert_true(sl_kv_take(&kv, &p));
    assert_true(sl_kv_take(&kv, &q));
    assert_false(sl_prefix_find(&kv, key_a, a, &found));
    assert_true(sl_prefix_add(&kv, p, NULL, key_a, a));
    assert_false(sl_prefix_add(&kv, q, NULL, key_a, a)); /* taken: stays private */
    assert_false(sl_prefix_find(&kv, key_b, b, &found));
    assert_false(sl_prefix_find(&kv, key_a, b, &found)); /* the tokens are compared too */
    assert_true(sl_prefix_peek(&kv, key_a, a, &unused) && !unused);
    assert_true(sl_prefix_find(&kv, key_a, a, &found) && found == p);
    sl_kv_release(&kv, p);
    sl_kv_release(&kv, p);
    check(&kv);
    assert_true(sl_prefix_peek(&kv, key_a, a, &unused) && unused);
    assert_int_equal(sl_kv_available(&kv), 1); /* cached */
    assert_true(sl_kv_take(&kv, &found) && found == p);
    assert_false(sl_prefix_find(&kv, key_a, a, &found)); /* evicted */
    assert_true(sl_prefix_add(&kv, q, key_a, key_b, b));
    sl_prefix_reset(&kv);
    assert_false(sl_prefix_find(&kv, key_b, b, &found));
    sl_kv_release(&kv, q);
    sl_kv_release(&kv, p);
    check(&kv);
    assert_int_equal(kv.n_free, 2);
    sl_kv_close(&kv);
}

/* A million pages: chains of random length under random salts, each found again to its end and no
 * further, then evicted by others in the order of their use. */
static void test_million_pages(void **state)
{
    (void)state;
    enum { N_PAGES = 1000000, CHAINS_MAX = 8192, LENGTH = 256 };
    static uint32_t lengths[CHAINS_MAX];
    struct sl_kv_pool kv;
    struct rng rng;
    uint32_t n_chains = 0, n_used = 0, page, tokens[1];
    uint8_t key[32];
    assert_int_equal(sl_kv_open(&kv, N_PAGES, 1, true, NULL), SL_OK);
    for (; n_used + LENGTH <= N_PAGES; n_chains++) {
        lengths[n_chains] = 1 + mix64(n_chains) % LENGTH;
        rng.x = n_chains;
        memset(key, 0, sizeof key);
        key[0] = (uint8_t)n_chains, key[1] = (uint8_t)(n_chains >> 8);
        for (uint32_t i = 0; i < lengths[n_chains]; i++) {
            tokens[0] = rng_below(&rng, 3);
            sl_prefix_key(&kv, key, tokens, key);
            assert_true(sl_kv_take(&kv, &page));
            assert_true(sl_prefix_add(&kv, page, NULL, key, tokens));
            sl_kv_release(&kv, page);
        }
        n_used += lengths[n_chains];
    }
    check(&kv);
    assert_int_equal(kv.n_cached, n_used);
    for (uint32_t c = 0; c < n_chains; c++) {
        rng.x = c;
        memset(key, 0, sizeof key);
        key[0] = (uint8_t)c, key[1] = (uint8_t)(c >> 8);
        for (uint32_t i = 0; i <= lengths[c]; i++) {
            tokens[0] = rng_below(&rng, 3);
            sl_prefix_key(&kv, key, tokens, key);
            bool hit = sl_prefix_find(&kv, key, tokens, &page);
            if (hit != (i < lengths[c]))
                fail_msg("chain %u of %u pages: page %u %s", c, lengths[c], i,
                         hit ? "found" : "missing");
            if (hit)
                sl_kv_release(&kv, page);
        }
    }
    for (uint32_t i = 0; i < N_PAGES; i++)
        assert_true(sl_kv_take(&kv, &page));
    assert_false(sl_kv_take(&kv, &page));
    check(&kv);
    assert_int_equal(kv.n_evicted, n_used);
    assert_int_equal(kv.n_indexed, 0);
    sl_kv_close(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_refuses),  cmocka_unit_test(test_take_and_release),
        cmocka_unit_test(test_key),           cmocka_unit_test(test_index),
        cmocka_unit_test(test_million_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
