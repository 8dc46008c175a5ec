/* The detokeniser gives the same text however its bytes are split into tokens, holds back at most
 * three bytes, never gives out half a character, and replaces what is not UTF-8 as the Unicode
 * Standard recommends. */
#include "small_vocab.h"

#include <sluice/base/time.h>

static struct sl_tokenizer *bytes_vocab(void)
{
    static const char *const specials[] = {"c<s>", "u<think>", "n\xe2\x82\xac", NULL};
    struct small_vocab v = {.model = "gpt2", .pre = "gpt-2", .add_bos = -1, .specials = specials};
    struct sl_tokenizer *t = NULL;
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    return t;
}

#define FFFD "\xef\xbf\xbd"

static const struct {
    const char *bytes, *text;
} rows[] = {
    {"", ""},
    {"abc", "abc"},
    {"\xc3\xa9", "\xc3\xa9"},
    {"\xe2\x82\xac"
     "x",
     "\xe2\x82\xac"
     "x"},
    {"\xf0\x9f\x99\x82", "\xf0\x9f\x99\x82"},
    {"\x80", FFFD},
    {"\xff\xfe", FFFD FFFD},
    {"\xc3", FFFD},
    {"\xc3(", FFFD "("},
    {"\xe2\x82(", FFFD "("},
    {"\xe2(\xac", FFFD "(" FFFD},
    {"\xf0\x9f\x99", FFFD},
    {"\xf0\x9f\x99\xc3\xa9", FFFD "\xc3\xa9"},
    {"\xc0\xaf", FFFD FFFD},
    {"\xe0\x80\xaf", FFFD FFFD FFFD},
    {"\xed\xa0\x80", FFFD FFFD FFFD},
    {"\xf4\x90\x80\x80", FFFD FFFD FFFD FFFD},
    {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    /* the Standard's own example, table 3-8 */
    {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
     "a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d"},
};

static void test_rows(void **state)
{
    (void)state;
    struct sl_tokenizer *t = bytes_vocab();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_detok d = {0};
        struct sl_buf out = {0};
        for (const char *p = rows[i].bytes; *p; p++) {
            size_t n_before = out.len;
            sl_detok_push(&d, t, (uint8_t)*p, &out);
            assert_true(d.n_held <= 3);
            assert_true(out.len == n_before || (out.data[n_before] & 0xc0) != 0x80);
        }
        sl_detok_finish(&d, &out);
        if (!sl_str_eqz((struct sl_str){out.data ? out.data : "", out.len}, rows[i].text))
            fail_msg("row %zu: got '%.*s'", i, (int)out.len, out.data);
        sl_buf_free(&out);
    }
    sl_tokenizer_close(t);
}

/* A token of several bytes, and special tokens, between the bytes of others. */
static void test_specials(void **state)
{
    (void)state;
    enum { S = 256, THINK, EURO };
    static const struct {
        uint32_t ids[6];
        size_t n;
        bool skip;
        const char *text;
    } cases[] = {
        {{'a', S, 'b', THINK}, 4, false, "a<s>b<think>"},
        {{'a', S, 'b', THINK}, 4, true, "ab<think>"},
        {{0xc3, S, 0xa9}, 3, false, FFFD "<s>" FFFD},
        {{0xc3, S, 0xa9}, 3, true, "\xc3\xa9"},
        {{0xe2, EURO, 0x82}, 3, true, FFFD "\xe2\x82\xac" FFFD},
        {{'a', 99999, SL_NO_TOKEN, 'b'}, 4, true, "ab"}, /* ids that no token has */
    };
    struct sl_tokenizer *t = bytes_vocab();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_detok d = {.skip_special = cases[i].skip};
        struct sl_buf out = {0};
        for (size_t k = 0; k < cases[i].n; k++)
            sl_detok_push(&d, t, cases[i].ids[k], &out);
        sl_detok_finish(&d, &out);
        assert_string_equal(out.data, cases[i].text);
        sl_buf_free(&out);
    }
    sl_tokenizer_close(t);
}

/* Random bytes as single tokens and as whole-character tokens give one text. */
static void test_any_split(void **state)
{
    (void)state;
    struct sl_tokenizer *t = bytes_vocab();
    for (uint64_t seed = 0; seed < 500; seed++) {
        struct sl_rng r = {seed, 0};
        struct sl_detok one = {0}, two = {0};
        struct sl_buf a = {0}, b = {0};
        for (unsigned i = 0; i < 60; i++) {
            bool euro = sl_rng_below(&r, 3) == 0;
            uint32_t byte = sl_rng_below(&r, 2) ? 0x80 + sl_rng_below(&r, 128) : 0x20;
            static const uint8_t bytes[] = {0xe2, 0x82, 0xac};
            sl_detok_push(&one, t, euro ? 258 : byte, &a);
            for (unsigned k = 0; k < (euro ? 3 : 1); k++)
                sl_detok_push(&two, t, euro ? bytes[k] : byte, &b);
        }
        sl_detok_finish(&one, &a);
        sl_detok_finish(&two, &b);
        if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
            fail_msg("seed %llu", (unsigned long long)seed);
        sl_buf_free(&a);
        sl_buf_free(&b);
    }
    sl_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_any_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
