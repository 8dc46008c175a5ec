/* Promise: every operation is measured over both links, with its yardstick, and the result is JSON.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <sluice/base/json.h>
#include <sluice/bench/comm.h>

static void test_results_are_complete(void **state)
{
    (void)state;
    const struct sl_bench_comm b = {.n_ranks = 3,
                                    .shm = true,
                                    .tcp = true,
                                    .min_bytes = 1024,
                                    .max_bytes = 4096,
                                    .repeat = 2,
                                    .sample_ns = 1000};
    struct sl_buf text = {0}, lines = {0};
    struct sl_err err;
    struct sl_json *root;
    sl_buf_puts(&text, "{");
    if (sl_bench_comm_run(&b, &text, &lines, &err))
        fail_msg("%s", err.msg);
    sl_buf_puts(&text, "}");
    if (sl_json_parse(text.data, text.len, &root, &err))
        fail_msg("%s", err.msg);
    const struct sl_json *results = sl_json_get(root, "results");
    assert_int_equal(sl_json_len(results), 2 * (5 * 2 + 1)); /* links, operations, sizes, barrier */
    for (size_t i = 0; i < sl_json_len(results); i++) {
        const struct sl_json *r = sl_json_at(results, i);
        const char *yardstick = i < 11 ? "memcpy" : "plain_tcp";
        assert_true(sl_str_eqz(sl_json_str(sl_json_get(r, "transport")), i < 11 ? "shm" : "tcp"));
        assert_true(sl_str_eqz(sl_json_str(sl_json_get(r, "yardstick")), yardstick));
        assert_int_equal(sl_json_len(sl_json_get(r, "samples_us")), 2);
        assert_true(sl_json_real(sl_json_get(r, "median_us")) > 0);
        assert_true(sl_json_real(sl_json_get(r, "yardstick_us")) > 0);
    }
    sl_json_free(root);
    sl_buf_free(&text);
    sl_buf_free(&lines);
}

static void test_sizes_are_checked(void **state)
{
    (void)state;
    static const struct sl_bench_comm bad[] = {
        {.n_ranks = 1, .min_bytes = 64, .max_bytes = 64, .repeat = 1},
        {.n_ranks = 65, .min_bytes = 64, .max_bytes = 64, .repeat = 1},
        {.n_ranks = 2, .min_bytes = 64, .max_bytes = 32, .repeat = 1},
        {.n_ranks = 2, .min_bytes = 1, .max_bytes = 32, .repeat = 1},
        {.n_ranks = 2, .min_bytes = 64, .max_bytes = 64, .repeat = 0},
        {.n_ranks = 2, .min_bytes = 64, .max_bytes = 64, .repeat = SL_BENCH_COMM_REPEAT_MAX + 1},
    };
    struct sl_buf text = {0}, lines = {0};
    struct sl_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(sl_bench_comm_run(&bad[i], &text, &lines, &err), SL_INVALID);
    assert_int_equal(text.len, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results_are_complete),
        cmocka_unit_test(test_sizes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
