/* Promised: arenas never hand out more than their cap, keep alignment and contents, and count the
 * same in every run; buffers stop at their cap for good; big pages are aligned and zeroed. */
#include <sluice/base/mem.h>
#include <sluice/base/time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    size_t r = 7;
    assert_false(sl_size_add(SIZE_MAX, 1, &r));
    assert_false(sl_size_mul(SIZE_MAX / 2 + 1, 2, &r));
    assert_int_equal(r, 7);
    assert_true(sl_size_add(SIZE_MAX - 1, 1, &r));
    assert_int_equal(r, SIZE_MAX);
    assert_true(sl_size_mul(1 << 20, 1 << 20, &r));
    assert_int_equal(r, (size_t)1 << 40);
}

static void arena_cap_is_exact(void **state)
{
    static const size_t caps[] = {1, 100, 4096, 16384, 16385, 100000, 1 << 20};
    (void)state;
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        struct sl_arena a;
        sl_arena_init(&a, caps[i]);
        assert_null(sl_arena_alloc(&a, caps[i] + 1, 1));
        assert_int_equal(a.used_bytes, 0);
        assert_non_null(sl_arena_alloc(&a, caps[i], 1));
        assert_null(sl_arena_alloc(&a, 1, 1));
        assert_int_equal(a.used_bytes, caps[i]);
        sl_arena_reset(&a);
        assert_int_equal(a.used_bytes, 0);
        assert_int_equal(a.high_bytes, caps[i]);
        assert_non_null(sl_arena_alloc(&a, caps[i], 1)); /* the kept chunk serves again */
        sl_arena_free(&a);
        sl_arena_free(&a);
    }
}

static void arena_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        struct sl_rng r = {seed, 0};
        struct sl_arena a;
        size_t cap = 1000 + sl_rng_below(&r, 300000), n = 0;
        struct {
            unsigned char *p;
            size_t size;
        } got[400];
        sl_arena_init(&a, cap);
        for (int i = 0; i < 400; i++) {
            size_t size = sl_rng_below(&r, i % 50 ? 300 : 20000);
            size_t align = (size_t)1 << sl_rng_below(&r, i % 20 ? 7 : 13);
            unsigned char *p = sl_arena_alloc(&a, size, align);
            assert_true(a.used_bytes <= cap && a.high_bytes <= cap);
            if (!p)
                continue;
            assert_int_equal((uintptr_t)p % align, 0);
            memset(p, i & 255, size);
            got[n].p = p;
            got[n++].size = size;
            if (size)
                p[0] = (unsigned char)n;
        }
        for (size_t i = 0; i < n; i++)
            if (got[i].size)
                assert_int_equal(got[i].p[0], (unsigned char)(i + 1));
        sl_arena_free(&a);
    }
}

static void arena_helpers(void **state)
{
    (void)state;
    struct sl_arena a;
    sl_arena_init(&a, 1 << 16);
    memset(sl_arena_alloc(&a, 1000, 1), 0xff, 1000);
    sl_arena_reset(&a);
    uint64_t *z = SL_ARENA_ARRAY(&a, uint64_t, 100);
    for (int i = 0; i < 100; i++)
        assert_int_equal(z[i], 0);
    assert_null(sl_arena_calloc(&a, SIZE_MAX / 2, 4));
    assert_null(sl_arena_strndup(&a, "x", SIZE_MAX));
    assert_string_equal(sl_arena_strndup(&a, "hello", 3), "hel");
    assert_string_equal(sl_arena_strndup(&a, NULL, 0), "");
    void *p = sl_arena_alloc(&a, 0, 8), *q = sl_arena_alloc(&a, 0, 8);
    assert_non_null(p);
    assert_ptr_not_equal(p, q);
    sl_arena_free(&a);
}

static void strings(void **state)
{
    (void)state;
    assert_true(sl_str_eqz(SL_STR("abc"), "abc"));
    assert_false(sl_str_eqz(SL_STR("abc"), "ab"));
    assert_true(sl_str_eq((struct sl_str){NULL, 0}, SL_STR("")));
    assert_false(sl_str_eq(SL_STR("a\0b"), SL_STR("a\0c")));
    assert_int_equal(sl_str_of(NULL).len, 0);
}

static void buf_is_sticky(void **state)
{
    (void)state;
    struct sl_buf b = {.cap_bytes = 10};
    sl_buf_puts(&b, "12345");
    assert_false(b.failed);
    sl_buf_puts(&b, "123456");
    assert_true(b.failed);
    sl_buf_putc(&b, 'x'); /* would fit, but the text has a hole by now */
    assert_int_equal(b.len, 5);
    assert_string_equal(b.data, "12345");
    sl_buf_clear(&b);
    assert_false(b.failed);
    assert_string_equal(b.data, "");
    sl_buf_printf(&b, "%s", "1234567890");
    assert_false(b.failed);
    assert_int_equal(b.len, 10);
    sl_buf_printf(&b, "%d", 1);
    assert_true(b.failed);
    sl_buf_free(&b);
    assert_int_equal(b.cap_bytes, 10);
    assert_null(b.data);
}

static void buf_grows(void **state)
{
    (void)state;
    struct sl_buf b = {0};
    char *want = malloc(200001);
    for (size_t i = 0; i < 200000; i++)
        want[i] = (char)('a' + i % 26);
    want[200000] = 0;
    for (size_t i = 0; i < 1000; i++)
        sl_buf_append(&b, want + i * 100, 100);
    sl_buf_printf(&b, "%s", want + 100000); /* longer than its stack buffer */
    assert_int_equal(b.len, 200000);
    assert_string_equal(b.data, want);
    assert_false(b.failed);
    sl_buf_append(&b, NULL, 0);
    sl_buf_append(&b, want, SIZE_MAX); /* refused before a byte is read */
    assert_true(b.failed);
    sl_buf_free(&b);
    free(want);
}

static void pages(void **state)
{
    static const size_t sizes[] = {1, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 7 << 20};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *p = sl_pages_alloc(sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % (sizes[i] >= 2 << 20 ? 2 << 20 : 4096), 0);
        assert_int_equal(p[0] | p[sizes[i] / 2] | p[sizes[i] - 1], 0);
        p[0] = p[sizes[i] - 1] = 1;
        sl_pages_free(p, sizes[i]);
    }
    assert_null(sl_pages_alloc(0));
    assert_null(sl_pages_alloc(SIZE_MAX));
    assert_null(sl_pages_alloc(SIZE_MAX - (1 << 20)));
    sl_pages_free(NULL, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_do_not_wrap), cmocka_unit_test(arena_cap_is_exact),
        cmocka_unit_test(arena_random),      cmocka_unit_test(arena_helpers),
        cmocka_unit_test(strings),           cmocka_unit_test(buf_is_sticky),
        cmocka_unit_test(buf_grows),         cmocka_unit_test(pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
