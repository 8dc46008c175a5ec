/* Stop strings: the result does not depend on where the text is split; the earliest end wins, then
 * the longest string; nothing is held back that can no longer be part of a stop string. */
#include "rig.h"

#include <sluice/base/time.h>

#define STRINGS_MAX 4

/* What is let through, stated plainly. */
static size_t brute_force(const struct sl_str *z, size_t n, bool include, const char *text,
                          size_t len, int *hit)
{
    for (size_t end = 1; end <= len; end++) {
        *hit = -1;
        for (size_t i = 0; i < n; i++)
            if (z[i].len && z[i].len <= end &&
                memcmp(text + end - z[i].len, z[i].data, z[i].len) == 0 &&
                (*hit < 0 || z[i].len > z[*hit].len))
                *hit = (int)i;
        if (*hit >= 0)
            return include ? end : end - z[*hit].len;
    }
    *hit = -1;
    return len;
}

/* Could text[from..len) be the beginning of a stop string? */
static bool may_begin(const struct sl_str *z, size_t n, const char *text, size_t from, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (z[i].len > len - from && memcmp(z[i].data, text + from, len - from) == 0)
            return true;
    return false;
}

static bool run(const struct sl_str *z, size_t n, bool include, const char *text, size_t len,
                uint64_t split_seed)
{
    struct sl_stop s;
    struct sl_buf out = {0};
    struct sl_rng r = {split_seed, 0};
    int want_hit;
    size_t want = brute_force(z, n, include, text, len, &want_hit);
    bool good = true, stopped = false;
    sl_stop_init(&s, z, n, include);
    for (size_t at = 0; at < len;) {
        size_t piece = split_seed ? sl_rng_below(&r, 5) : 1;
        piece = piece < len - at ? piece : len - at;
        stopped = sl_stop_push(&s, text + at, piece, &out);
        at += piece;
        if (!stopped) {
            good = good && out.len + s.held.len == at;
            good = good && (out.len == at || may_begin(z, n, text, out.len, at));
        }
    }
    sl_stop_finish(&s, &out);
    good = good && stopped == (want_hit >= 0) && s.hit == want_hit && out.len == want;
    good = good && (!want || memcmp(out.data, text, want) == 0);
    /* Over is over. */
    good = good && (!stopped || (sl_stop_push(&s, "more", 4, &out) && out.len == want));
    sl_stop_free(&s);
    sl_buf_free(&out);
    return good;
}

static void test_table(void **state)
{
    (void)state;
    static const struct {
        const char *text, *strings[STRINGS_MAX];
        const char *without, *with;
        int hit;
    } rows[] = {
        {"hello world", {"wor"}, "hello ", "hello wor", 0},
        {"hello world", {"xyz"}, "hello world", "hello world", -1},
        {"aaab", {"aab"}, "a", "aaab", 0},
        {"abcd", {"bcd", "bc"}, "a", "abc", 1}, /* earliest end */
        {"abcd", {"c", "abc"}, "", "abc", 1},   /* then the longest */
        {"\n\nUser:", {"\nUser:", "User:"}, "\n", "\n\nUser:", 0},
        {"ends with half of st", {"stop"}, "ends with half of st", "ends with half of st", -1},
        {"\xe2\x82\xac!", {"\xe2\x82\xac"}, "", "\xe2\x82\xac", 0},
        {"abc", {""}, "abc", "abc", -1}, /* an empty one never stops */
        {"", {"a"}, "", "", -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_str z[STRINGS_MAX];
        size_t n = 0;
        for (; n < STRINGS_MAX && rows[i].strings[n]; n++)
            z[n] = sl_str_of(rows[i].strings[n]);
        for (unsigned include = 0; include < 2; include++) {
            struct sl_stop s;
            struct sl_buf out = {0};
            sl_stop_init(&s, z, n, include);
            assert_int_equal(sl_stop_push(&s, rows[i].text, strlen(rows[i].text), &out),
                             rows[i].hit >= 0);
            sl_stop_finish(&s, &out);
            assert_int_equal(s.hit, rows[i].hit);
            const char *want = include ? rows[i].with : rows[i].without;
            assert_string_equal(out.data ? out.data : "", want);
            sl_stop_free(&s);
            sl_buf_free(&out);
            assert_true(run(z, n, include, rows[i].text, strlen(rows[i].text), 0));
        }
    }
}

static void test_against_brute_force(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20000; seed++) {
        struct sl_rng r = {seed, 0};
        char text[40], bytes[STRINGS_MAX][8];
        struct sl_str z[STRINGS_MAX];
        size_t n = sl_rng_below(&r, STRINGS_MAX + 1), len = sl_rng_below(&r, sizeof text);
        uint32_t letters = 1 + sl_rng_below(&r, 3);
        for (size_t i = 0; i < n; i++) {
            z[i] = (struct sl_str){bytes[i], sl_rng_below(&r, sizeof bytes[i])};
            for (size_t k = 0; k < z[i].len; k++)
                bytes[i][k] = (char)('a' + sl_rng_below(&r, letters));
            for (size_t k = 0; k < i; k++) /* equal strings: either index would do */
                z[i].len = sl_str_eq(z[i], z[k]) ? 0 : z[i].len;
        }
        for (size_t i = 0; i < len; i++)
            text[i] = (char)('a' + sl_rng_below(&r, letters));
        bool include = sl_rng_below(&r, 2);
        if (!run(z, n, include, text, len, 0) || !run(z, n, include, text, len, seed))
            fail_msg("seed %llu", (unsigned long long)seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_against_brute_force),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
