/* Promised: exactly RFC 8259 goes in, with one value per key, at most 64 levels, numbers that fit;
 * everything else is SL_BAD_JSON with the place of the fault. Printing keeps the document's order.
 */
#include <sluice/base/json.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct row {
    struct sl_str text;
    bool ok;
    const char *says; /* part of the message, or what the value prints as */
};
#define T(lit)                                                                                     \
    {                                                                                              \
        lit, sizeof(lit) - 1                                                                       \
    }

static const struct row rows[] = {
    {T("null"), true, "null"},
    {T("true"), true, "true"},
    {T(" false\n"), true, "false"},
    {T("0"), true, "0"},
    {T("-0"), true, "0"},
    {T("\t\r\n 12 \t\r\n"), true, "12"},
    {T("9223372036854775807"), true, "9223372036854775807"},
    {T("-9223372036854775808"), true, "-9223372036854775808"},
    {T("1.5"), true, "1.5"},
    {T("1.0"), true, "1.0"},
    {T("-0.0"), true, "-0.0"},
    {T("1e2"), true, "100.0"},
    {T("1E+2"), true, "100.0"},
    {T("1e-400"), true, "0.0"},
    {T("1e300"), true, "1e300"},
    {T("0.1"), true, "0.1"},
    {T("2.2250738585072014e-308"), true, "2.2250738585072014e-308"},
    {T("\"\""), true, "\"\""},
    {T("\"a\\/b\""), true, "\"a/b\""},
    {T("\"\\u00e9\""), true, "\"\xc3\xa9\""},
    {T("\"\\ud83d\\ude00\""), true, "\"\xf0\x9f\x98\x80\""},
    {T("\"\x7f\""), true, "\"\x7f\""},
    {T("\"\xe2\x80\xa8\""), true, "\"\xe2\x80\xa8\""},
    {T("[]"), true, "[]"},
    {T("{}"), true, "{}"},
    {T("[1,[2,{\"a\":null}]]"), true, "[1,[2,{\"a\":null}]]"},
    {T("{\"z\":1,\"a\":2,\"\":3}"), true, "{\"z\":1,\"a\":2,\"\":3}"},
    {T("{\"a\":{\"x\":1},\"b\":{\"x\":1}}"), true, "{\"a\":{\"x\":1},\"b\":{\"x\":1}}"},
    {T("[\"[[[[\",\"\\\"{\"]"), true, "[\"[[[[\",\"\\\"{\"]"},

    {T(""), false, "line 1, column 1: text ends too early"},
    {T("  \n "), false, "line 2"},
    {T("\xef\xbb\xbf{}"), false, "line 1, column 1: byte order mark"},
    {T("\xfe\xff\0{\0}"), false, "UTF-8"},
    {T("{\"a\":1,\"a\":2}"), false, "duplicate object key"},
    {T("{\"a\":1,\"\\u0061\":2}"), false, "duplicate object key"},
    {T("[{\"b\":{\"a\":1,\n\"a\":1}}]"), false, "line 2"},
    {T("NaN"), false, "syntax error"},
    {T("[nan]"), false, "syntax error"},
    {T("Infinity"), false, "syntax error"},
    {T("-Infinity"), false, "syntax error"},
    {T("True"), false, "syntax error"},
    {T("nul"), false, "line 1"},
    {T("9223372036854775808"), false, "number out of range"},
    {T("-9223372036854775809"), false, "number out of range"},
    {T("[1,\n 123456789012345678901234567890]"), false, "line 2"},
    {T("1e309"), false, "number out of range"},
    {T("-1e999999999"), false, "number out of range"},
    {T("01"), false, "line 1"},
    {T("-"), false, "line 1"},
    {T("+1"), false, "syntax error"},
    {T("1."), false, "line 1"},
    {T(".5"), false, "syntax error"},
    {T("1e"), false, "line 1"},
    {T("1e+"), false, "line 1"},
    {T("0x10"), false, "line 1"},
    {T("1 2"), false, "bytes after the end"},
    {T("{} x"), false, "bytes after the end"},
    {T("{}}"), false, "bytes after the end"},
    {T("{}\0"), false, "line 1"},
    {T("[1,]"), false, "line 1, column"},
    {T("[,1]"), false, "syntax error"},
    {T("{\"a\":1,}"), false, "syntax error"},
    {T("{\"a\"}"), false, "syntax error"},
    {T("{a:1}"), false, "syntax error"},
    {T("{'a':1}"), false, "syntax error"},
    {T("{1:1}"), false, "syntax error"},
    {T("[1"), false, "too early"},
    {T("{\"a\":"), false, "too early"},
    {T("]"), false, "syntax error"},
    {T("[}"), false, "syntax error"},
    {T("[1 /* c */]"), false, "syntax error"},
    {T("// c\n1"), false, "syntax error"},
    {T("\"a"), false, "too early"},
    {T("\"a\nb\""), false, "line 1"},
    {T("\"\t\""), false, "line 1"},
    {T("\"\\x41\""), false, "syntax error"},
    {T("\"\\u12\""), false, "syntax error"},
    {T("\"\\u0000\""), false, "NUL"},
    {T("{\"a\\u0000\":1}"), false, "NUL"},
    {T("\"a\0b\""), false, "line 1"},
    {T("\"\\ud800\""), false, "line 1"},
    {T("\"\\udc00\""), false, "line 1"},
    {T("\"\\ud800\\u0041\""), false, "line 1"},
    {T("\"\\ud800x\""), false, "line 1"},
    {T("\"\xff\""), false, "invalid UTF-8"},
    {T("\"\xc3\""), false, "invalid UTF-8"},
    {T("\"\xc0\xaf\""), false, "invalid UTF-8"},
    {T("\"\xe0\x80\xaf\""), false, "invalid UTF-8"},
    {T("\"\xed\xa0\x80\""), false, "invalid UTF-8"},
    {T("\"\xf4\x90\x80\x80\""), false, "invalid UTF-8"},
    {T("\"\xf8\x88\x80\x80\x80\""), false, "invalid UTF-8"},
    {T("\"\x80\""), false, "invalid UTF-8"},
};

static void strictness(void **state)
{
    (void)state;
    assert_true(sizeof rows / sizeof *rows >= 60);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        struct sl_err err = {0};
        struct sl_json *v = NULL;
        char *copy = malloc(r->text.len ? r->text.len : 1); /* no NUL behind it: overreads show */
        memcpy(copy, r->text.data, r->text.len);
        enum sl_status status = sl_json_parse(copy, r->text.len, &v, &err);
        free(copy);
        if (status != (r->ok ? SL_OK : SL_BAD_JSON))
            fail_msg("row %zu: '%s' gave status %d: %s", i, r->text.data, (int)status, err.msg);
        struct sl_buf text = {0};
        if (r->ok) {
            sl_json_print(v, &text);
            assert_string_equal(text.data, r->says);
        } else {
            assert_null(v);
            if (!strstr(err.msg, r->says) || !strstr(err.msg, "line ") ||
                !strstr(err.msg, "column "))
                fail_msg("row %zu: '%s' says: %s", i, r->text.data, err.msg);
        }
        sl_buf_free(&text);
        sl_json_free(v);
    }
}

static void depth(void **state)
{
    static const struct {
        size_t levels;
        bool ok;
    } cases[] = {{1, true}, {63, true}, {64, true}, {65, false}, {2049, false}, {1000000, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int objects = 0; objects < 2; objects++) {
            struct sl_buf b = {0};
            struct sl_err err;
            struct sl_json *v;
            for (size_t k = 0; k < cases[i].levels; k++)
                sl_buf_puts(&b, objects && k ? "{\"a\":" : "[");
            sl_buf_puts(&b, "1");
            for (size_t k = cases[i].levels; k-- > 0;)
                sl_buf_puts(&b, objects && k ? "}" : "]");
            enum sl_status status = sl_json_parse(b.data, b.len, &v, &err);
            assert_int_equal(status, cases[i].ok ? SL_OK : SL_BAD_JSON);
            assert_true(cases[i].ok || strstr(err.msg, "limit of 64 levels"));
            sl_json_free(v);
            sl_buf_free(&b);
        }
}

static void place_of_a_fault(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\"a\": 1,\n  \"b\": tru }", "JSON: line 2, column 11: syntax error"},
        {"[1,\n\n\"\xc3\xa9\" x]", "JSON: line 3, column 7: syntax error"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_err err;
        struct sl_json *v;
        assert_int_equal(sl_json_parse(cases[i].text, strlen(cases[i].text), &v, &err),
                         SL_BAD_JSON);
        assert_string_equal(err.msg, cases[i].says);
    }
    struct sl_json *v;
    assert_int_equal(sl_json_parse("[", 1, &v, NULL), SL_BAD_JSON); /* err may be NULL */
    assert_int_equal(sl_json_parse(NULL, 0, &v, NULL), SL_BAD_JSON);
}

static void access_to_values(void **state)
{
    static const char text[] =
        "{\"i\":-3,\"r\":2.5,\"s\":\"hi\",\"t\":true,\"n\":null,\"a\":[1,2],\"o\":{\"k\":1}}";
    static const char *const keys[] = {"i", "r", "s", "t", "n", "a", "o"};
    static const enum sl_json_kind kinds[] = {SL_JSON_INT,   SL_JSON_REAL, SL_JSON_STRING,
                                              SL_JSON_BOOL,  SL_JSON_NULL, SL_JSON_ARRAY,
                                              SL_JSON_OBJECT};
    (void)state;
    struct sl_json *v;
    assert_int_equal(sl_json_parse(text, sizeof text - 1, &v, NULL), SL_OK);
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *value;
    size_t n = 0;
    while (sl_json_next(v, &iter, &key, &value)) {
        assert_true(sl_str_eqz(key, keys[n]));
        assert_int_equal(sl_json_kind(value), kinds[n++]);
    }
    assert_int_equal(n, 7);
    assert_int_equal(sl_json_len(v), 7);
    assert_int_equal(sl_json_int(sl_json_get(v, "i")), -3);
    assert_true(sl_json_real(sl_json_get(v, "i")) == -3.0);
    assert_true(sl_json_real(sl_json_get(v, "r")) == 2.5);
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(v, "s")), "hi"));
    assert_true(sl_json_bool(sl_json_get(v, "t")));
    assert_null(sl_json_get(v, "missing"));
    assert_non_null(sl_json_get(v, "n"));
    const struct sl_json *a = sl_json_get(v, "a");
    assert_int_equal(sl_json_len(a), 2);
    assert_int_equal(sl_json_int(sl_json_at(a, 1)), 2);
    assert_null(sl_json_at(a, 2));
    assert_null(sl_json_get(a, "k")); /* the wrong kind is absence, not a fault */
    assert_null(sl_json_at(v, 0));
    assert_int_equal(sl_json_len(sl_json_get(v, "s")), 0);
    assert_null(sl_json_str(a).data);
    sl_json_free(v);
    sl_json_free(NULL);
}

/* What a model wrote may hold NUL in strings; nothing else is more allowed. */
static void answers(void **state)
{
    static const char text[] = "{\"text\":\"a\\u0000b\\u0000\"}";
    (void)state;
    struct sl_json *v;
    struct sl_err err;
    struct sl_buf b = {0};
    assert_int_equal(sl_json_parse(text, sizeof text - 1, &v, &err), SL_BAD_JSON);
    assert_int_equal(sl_json_parse_answer(text, sizeof text - 1, &v, &err), SL_OK);
    struct sl_str s = sl_json_str(sl_json_get(v, "text"));
    assert_int_equal(s.len, 4);
    assert_memory_equal(s.data, "a\0b", 4);
    sl_json_print(v, &b);
    assert_string_equal(b.data, text);
    sl_buf_free(&b);
    sl_json_free(v);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_str t = rows[i].text;
        bool ok = rows[i].ok || sl_str_eqz(t, "\"\\u0000\"");
        if (sl_json_parse_answer(t.data, t.len, &v, &err) != (ok ? SL_OK : SL_BAD_JSON))
            fail_msg("row %zu: '%s'", i, t.data);
        sl_json_free(v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strictness),       cmocka_unit_test(depth),
        cmocka_unit_test(place_of_a_fault), cmocka_unit_test(access_to_values),
        cmocka_unit_test(answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
