/* Promised: prompts follow from the seed alone and have the asked lengths; groups share prefixes; a
 * trace keeps its times and equal hash ids give equal text; a bad file is named with its line. */
#include "dataset.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static size_t count_words(struct sl_str s)
{
    size_t n = s.len > 0;
    for (size_t i = 0; i < s.len; i++)
        n += s.data[i] == ' ';
    return n;
}

static void made_up_prompts_have_their_lengths(void **state)
{
    struct bench_dataset_spec spec = {
        .name = "random", .n = 200, .input_len = 40, .output_len = 10, .prefix_len = 5, .seed = 3};
    (void)state;
    for (int varied = 0; varied < 2; varied++) {
        struct sl_arena a;
        struct bench_prompt *p, *q;
        struct sl_err err;
        size_t n, m;
        spec.range_ratio = varied ? 0.5 : 0;
        sl_arena_init(&a, 64 << 20);
        assert_int_equal(bench_dataset_make(&spec, &a, &p, &n, &err), SL_OK);
        assert_int_equal(bench_dataset_make(&spec, &a, &q, &m, &err), SL_OK);
        assert_int_equal(n, 200);
        bool differ = false;
        for (size_t i = 0; i < n; i++) {
            assert_true(sl_str_eq(p[i].text, q[i].text) && p[i].at_s < 0);
            assert_int_equal(count_words(p[i].text), p[i].n_in);
            assert_true(p[i].n_in >= (varied ? 25u : 45u) && p[i].n_in <= (varied ? 65u : 45u));
            assert_true(p[i].n_out >= (varied ? 5u : 10u) && p[i].n_out <= (varied ? 15u : 10u));
            differ |= i > 0 && !sl_str_eq(p[i].text, p[0].text);
        }
        assert_true(differ);
        sl_arena_free(&a);
    }
}

static void groups_share_prefixes_and_ids_stay_below(void **state)
{
    struct bench_dataset_spec spec = {.name = "prefix_repetition",
                                      .n = 100,
                                      .input_len = 8,
                                      .output_len = 1,
                                      .prefix_len = 16,
                                      .n_prefixes = 4,
                                      .ids = true,
                                      .vocab_size = 500,
                                      .seed = 1};
    struct sl_arena a;
    struct bench_prompt *p;
    struct sl_err err;
    size_t n, n_groups = 0;
    (void)state;
    sl_arena_init(&a, 64 << 20);
    assert_int_equal(bench_dataset_make(&spec, &a, &p, &n, &err), SL_OK);
    for (size_t i = 0; i < n; i++) {
        bool seen = false;
        assert_int_equal(p[i].n_in, 24);
        for (size_t k = 0; k < 24; k++)
            assert_true(p[i].ids[k] < 500);
        for (size_t k = 0; k < i && !seen; k++)
            seen = memcmp(p[i].ids, p[k].ids, 16 * sizeof *p[i].ids) == 0;
        n_groups += !seen;
    }
    assert_int_equal(n_groups, 4);
    sl_arena_free(&a);
}

static enum sl_status from_text(const char *name, const char *text, size_t n, struct sl_arena *a,
                                struct bench_prompt **p, size_t *n_out, struct sl_err *err)
{
    char path[] = "/tmp/sluice-dataset-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    struct bench_dataset_spec spec = {
        .name = name, .path = path, .n = n, .output_len = 9, .seed = 1};
    enum sl_status s = bench_dataset_make(&spec, a, p, n_out, err);
    unlink(path);
    return s;
}

static void files_are_read(void **state)
{
    struct sl_arena a;
    struct bench_prompt *p;
    struct sl_err err;
    size_t n;
    (void)state;
    sl_arena_init(&a, 64 << 20);
    assert_int_equal(from_text("custom",
                               "plain one\n\n{\"prompt\": \"j s\", \"output_tokens\": 3}\r\n", 5,
                               &a, &p, &n, &err),
                     SL_OK);
    assert_int_equal(n, 5); /* around again */
    assert_true(sl_str_eqz(p[0].text, "plain one") && p[0].n_out == 9);
    assert_true(sl_str_eqz(p[1].text, "j s") && p[1].n_out == 3);
    assert_true(sl_str_eqz(p[4].text, "plain one"));

    assert_int_equal(from_text("timed_trace",
                               "{\"timestamp\": 1000, \"input_length\": 600, \"output_length\": 5, "
                               "\"hash_ids\": [7, 8]}\n"
                               "{\"timestamp\": 3500, \"input_length\": 520, \"output_length\": 6, "
                               "\"hash_ids\": [7, 9]}\n",
                               9, &a, &p, &n, &err),
                     SL_OK);
    assert_int_equal(n, 2); /* a trace is not repeated */
    assert_true(p[0].at_s == 0 && p[1].at_s == 2.5 && p[1].n_out == 6);
    assert_int_equal(count_words(p[0].text), 600);
    size_t same = 0;
    while (same < p[1].text.len && p[0].text.data[same] == p[1].text.data[same])
        same++;
    assert_true(count_words((struct sl_str){p[0].text.data, same}) >= 512);
    assert_false(sl_str_eq(p[0].text, p[1].text));

    assert_int_equal(from_text("sharegpt",
                               "[{\"conversations\": [{\"from\": \"human\", \"value\": \"hi you\"},"
                               "{\"from\": \"gpt\", \"value\": \"x\"}]}, {\"conversations\": []}]",
                               1, &a, &p, &n, &err),
                     SL_OK);
    assert_true(n == 1 && sl_str_eqz(p[0].text, "hi you"));
    sl_arena_free(&a);
}

static void bad_files_are_named(void **state)
{
    static const struct {
        const char *name, *text, *why;
    } rows[] = {
        {"custom", "", "no request"},
        {"custom", "ok\n{\"prompt\": 1}\n", "line 2"},
        {"custom", "{bad\n", "line 1"},
        {"timed_trace", "{\"timestamp\": 0, \"input_length\": 5}\n", "line 1"},
        {"timed_trace", "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": -1}\n",
         "line 1"},
        {"timed_trace", "[1]\n", "line 1"},
        {"sharegpt", "{}", "no request"},
        {"sharegpt", "[1, {\"conversations\": 3}]", "no request"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_arena a;
        struct bench_prompt *p;
        struct sl_err err = {0};
        size_t n;
        sl_arena_init(&a, 1 << 20);
        assert_int_equal(from_text(rows[i].name, rows[i].text, 3, &a, &p, &n, &err), SL_CONFIG);
        if (!strstr(err.msg, rows[i].why))
            fail_msg("row %zu: '%s' does not say '%s'", i, err.msg, rows[i].why);
        sl_arena_free(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_up_prompts_have_their_lengths),
        cmocka_unit_test(groups_share_prefixes_and_ids_stay_below),
        cmocka_unit_test(files_are_read),
        cmocka_unit_test(bad_files_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
