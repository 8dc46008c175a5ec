/* Promised: any bytes become a valid JSON string that reads back as the same text; any float32
 * becomes a JSON number that reads back as the same bits, and none is shorter. */
#include <sluice/base/json.h>
#include <sluice/base/time.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void strings(void **state)
{
    static const struct {
        struct sl_str in;
        const char *out;
    } rows[] = {
        {SL_STR(""), "\"\""},
        {SL_STR("plain"), "\"plain\""},
        {SL_STR("\"\\/"), "\"\\\"\\\\/\""},
        {SL_STR("\n\r\t\b\f"), "\"\\n\\r\\t\\b\\f\""},
        {SL_STR("a\0b"), "\"a\\u0000b\""},
        {SL_STR("\x01\x1f\x7f"), "\"\\u0001\\u001f\x7f\""},
        {SL_STR("h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"),
         "\"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\""},
        {SL_STR("\xff"), "\"\xef\xbf\xbd\""},
        {SL_STR("a\xc3"), "\"a\xef\xbf\xbd\""},
        {SL_STR("\xc0\xaf"), "\"\xef\xbf\xbd\xef\xbf\xbd\""},
        {SL_STR("\xe0\x80\x80"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {SL_STR("\xed\xa0\x80"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {SL_STR("\xf4\x90\x80\x80x"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx\""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf b = {0};
        sl_buf_json_str(&b, rows[i].in.data, rows[i].in.len);
        assert_string_equal(b.data, rows[i].out);
        sl_buf_free(&b);
    }
}

static void random_bytes_are_valid_json(void **state)
{
    (void)state;
    struct sl_rng r = {3, 0};
    for (int i = 0; i < 3000; i++) {
        char in[40];
        size_t len = sl_rng_below(&r, sizeof in);
        for (size_t k = 0; k < len; k++) /* few kinds of byte, so that sequences form */
            in[k] = "a\"\\\n\xe2\x82\xac\xf0\x9f\x98\x80\xed\xbf\xc3\x01"[sl_rng_below(&r, 15)];
        struct sl_buf b = {0};
        struct sl_json *v;
        struct sl_err err;
        sl_buf_json_str(&b, in, len);
        assert_int_equal(sl_json_parse(b.data, b.len, &v, &err), SL_OK);
        sl_json_free(v);
        sl_buf_free(&b);
    }
}

static float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static int significant_digits(const char *text)
{
    int n = 0, held = 0;
    for (const char *p = text; *p && *p != 'e'; p++) {
        if (*p == '0' && n)
            held++;
        else if (*p > '0' && *p <= '9') {
            n += held + 1;
            held = 0;
        }
    }
    return n ? n : 1;
}

/* Fewest digits of a correctly rounded decimal that reads back. */
static int fewest_digits(float x)
{
    char text[40];
    int n = 1;
    for (; n < 9; n++) {
        snprintf(text, sizeof text, "%.*e", n - 1, (double)x);
        if (strtof(text, NULL) == x)
            break;
    }
    return n;
}

static void check_float(float x)
{
    struct sl_buf b = {0};
    sl_buf_json_f32(&b, x);
    float back = strtof(b.data, NULL);
    if (memcmp(&back, &x, sizeof x) != 0)
        fail_msg("%.9g was written as %s", (double)x, b.data);
    /* integers below 1e9 are written out: 134217728, which is shorter than 1.3421773e8 */
    bool whole = fabsf(x) >= 1 && fabsf(x) < 1e9f && !strchr(b.data, '.');
    if (!whole && significant_digits(b.data) > fewest_digits(x))
        fail_msg("%.9g was written as %s, %d digits suffice", (double)x, b.data, fewest_digits(x));
    assert_true(b.len <= 16);
    sl_buf_free(&b);
}

static void floats_read_back(void **state)
{
    (void)state;
    struct sl_rng r = {11, 0};
    for (uint32_t e = 0; e < 255; e++) /* each power of two and its neighbours */
        for (uint32_t d = 0; d < 3; d++)
            if (e || d)
                check_float(from_bits((e << 23) + d - 1));
    for (int i = 0; i < 200000; i++) {
        float x = from_bits((uint32_t)sl_rng_u64(&r));
        if (isfinite(x))
            check_float(x);
        check_float(-(float)(sl_rng_unit(&r) * 25)); /* where logprobs lie */
        check_float((float)sl_rng_below(&r, 100000) / 1000.0f);
    }
    for (int e = -45; e <= 38; e++)
        check_float((float)pow(10, e));
}

static void float_texts(void **state)
{
    static const struct {
        float x;
        const char *text;
    } rows[] = {
        {0.0f, "0"},
        {-0.0f, "-0.0"},
        {1.0f, "1"},
        {-1.5f, "-1.5"},
        {0.1f, "0.1"},
        {100.0f, "100"},
        {1e9f, "1e9"},
        {1e-5f, "0.00001"},
        {1e-6f, "1e-6"},
        {3.4028235e38f, "3.4028235e38"},
        {1e-45f, "1e-45"},
        {16777216.0f, "16777216"},
        {-0.6931472f, "-0.6931472"},
        {9999999.0f, "9999999"},
        {0.3f, "0.3"},
        {1.0f / 3, "0.33333334"},
        {INFINITY, "null"},
        {-INFINITY, "null"},
        {NAN, "null"},
        {0x1p-96f, "1.2621775e-29"},
        {0x1p87f, "1.5474251e26"},
        {0x1p90f, "1.2379401e27"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf b = {0};
        sl_buf_json_f32(&b, rows[i].x);
        assert_string_equal(b.data, rows[i].text);
        sl_buf_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings),
        cmocka_unit_test(random_bytes_are_valid_json),
        cmocka_unit_test(floats_read_back),
        cmocka_unit_test(float_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
