/* Promised: list, heap and hash hold what a plain array would, under random operations; SHA-256
 * gives the published digests. */
#include <sluice/base/containers.h>
#include <sluice/base/time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define N_ITEMS 300

struct item {
    struct sl_heap_node heap;
    struct sl_hash_node hash;
    struct sl_list list;
    uint64_t key;
    bool in;
};

static void list_order(void **state)
{
    (void)state;
    struct sl_list head;
    struct item it[4] = {0};
    sl_list_init(&head);
    assert_true(sl_list_empty(&head));
    sl_list_push_back(&head, &it[1].list);
    sl_list_push_back(&head, &it[2].list);
    sl_list_push_front(&head, &it[0].list);
    sl_list_insert_after(&it[2].list, &it[3].list);
    int i = 0;
    for (struct sl_list *n = head.next; n != &head; n = n->next)
        assert_ptr_equal(SL_ENTRY(n, struct item, list), &it[i++]);
    assert_int_equal(i, 4);
    sl_list_remove(&it[1].list);
    sl_list_remove(&it[1].list);
    assert_ptr_equal(it[0].list.next, &it[2].list);
    struct sl_list zeroed = {0};
    sl_list_remove(&zeroed);
}

static bool item_less(const struct sl_heap_node *a, const struct sl_heap_node *b)
{
    return SL_ENTRY(a, const struct item, heap)->key < SL_ENTRY(b, const struct item, heap)->key;
}

static const struct item *smallest(const struct item *items)
{
    const struct item *best = NULL;
    for (int i = 0; i < N_ITEMS; i++)
        if (items[i].in && (!best || items[i].key < best->key))
            best = &items[i];
    return best;
}

static void heap_against_array(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        struct sl_rng r = {seed, 0};
        struct sl_heap h;
        static struct item items[N_ITEMS];
        size_t n = 0;
        memset(items, 0, sizeof items);
        sl_heap_init(&h, item_less);
        for (int step = 0; step < 3000; step++) {
            struct item *it = &items[sl_rng_below(&r, N_ITEMS)];
            if (step % 3 == 0 && h.root)
                it = SL_ENTRY(sl_heap_min(&h), struct item, heap);
            if (it->in) {
                sl_heap_remove(&h, &it->heap);
                n--;
            } else {
                it->key = sl_rng_below(&r, 50); /* many equal keys */
                sl_heap_insert(&h, &it->heap);
                n++;
            }
            it->in = !it->in;
            assert_int_equal(h.n, n);
            const struct item *want = smallest(items);
            assert_true(!want == !sl_heap_min(&h));
            if (want)
                assert_int_equal(SL_ENTRY(sl_heap_min(&h), struct item, heap)->key, want->key);
        }
        uint64_t last = 0;
        while (sl_heap_min(&h)) {
            struct item *it = SL_ENTRY(sl_heap_min(&h), struct item, heap);
            assert_true(it->key >= last);
            last = it->key;
            sl_heap_remove(&h, &it->heap);
            n--;
        }
        assert_int_equal(n, 0);
    }
}

static void hash_against_array(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        struct sl_rng r = {seed, 0};
        struct sl_hash_node *buckets[16];
        struct sl_hash h;
        static struct item items[N_ITEMS];
        memset(items, 0, sizeof items);
        memset(buckets, 0xff, sizeof buckets);
        sl_hash_init(&h, buckets, 16);
        for (int step = 0; step < 2000; step++) {
            struct item *it = &items[sl_rng_below(&r, N_ITEMS)];
            if (it->in) {
                sl_hash_remove(&h, &it->hash);
            } else {
                it->key = sl_rng_below(&r, 40); /* the whole 64-bit hash is shared by some */
                sl_hash_insert(&h, &it->hash, it->key);
            }
            it->in = !it->in;
            uint64_t key = sl_rng_below(&r, 42);
            size_t want = 0, got = 0;
            for (int i = 0; i < N_ITEMS; i++)
                want += items[i].in && items[i].key == key;
            for (struct sl_hash_node *n = sl_hash_first(&h, key); n; n = sl_hash_next(n)) {
                assert_true(SL_ENTRY(n, struct item, hash)->in);
                assert_int_equal(SL_ENTRY(n, struct item, hash)->key, key);
                got++;
            }
            assert_int_equal(got, want);
        }
        size_t n_in = 0;
        for (int i = 0; i < N_ITEMS; i++)
            n_in += items[i].in;
        assert_int_equal(h.n, n_in);
        for (int i = 0; i < N_ITEMS; i++)
            if (!items[i].in) {
                items[i].hash.hash = items[i].key;
                sl_hash_remove(&h, &items[i].hash); /* absent: harmless */
            }
        assert_int_equal(h.n, n_in);
    }
}

static void hash64_is_xxh3(void **state)
{
    (void)state;
    assert_true(sl_hash64("", 0, 0) == 0x2d06800538d394c2u); /* XXH3's published empty hash */
    assert_true(sl_hash64("abc", 3, 0) != sl_hash64("abc", 3, 1));
    assert_true(sl_hash64("abc", 3, 0) != sl_hash64("abd", 3, 0));
}

/* FIPS 180-2, appendix B, and the empty message. */
static void sha256_vectors(void **state)
{
    static const struct {
        const char *text, *hex;
    } rows[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t out[32];
        char hex[65];
        size_t len = strlen(rows[i].text);
        sl_sha256(rows[i].text, len, out);
        sl_hex(out, 32, hex);
        assert_string_equal(hex, rows[i].hex);
        struct sl_sha256_ctx *c = sl_sha256_new();
        sl_sha256_update(c, rows[i].text, len / 2);
        sl_sha256_update(c, rows[i].text + len / 2, len - len / 2);
        sl_sha256_final(c, out);
        sl_hex(out, 32, hex);
        assert_string_equal(hex, rows[i].hex);
    }
}

static void equality(void **state)
{
    (void)state;
    assert_true(sl_equal_ct("abcd", "abcx", 3));
    assert_false(sl_equal_ct("abcd", "abcx", 4));
    assert_true(sl_equal_ct("", "", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_order),         cmocka_unit_test(heap_against_array),
        cmocka_unit_test(hash_against_array), cmocka_unit_test(hash64_is_xxh3),
        cmocka_unit_test(sha256_vectors),     cmocka_unit_test(equality),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
