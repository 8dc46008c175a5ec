/* Promised: the printed text is Prometheus 0.0.4, metrics of one name stand together, updates from
 * many threads are all counted, a counter never falls. */
#include <sluice/base/mem.h>
#include <sluice/base/metrics.h>

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static const double bounds[] = {0.1, 1, 2.5};
static struct sl_metric stop = {.name = "sluice_requests_total",
                                .help = "Requests, by how they\nended \\ why.",
                                .kind = SL_COUNTER,
                                .labels = "finished_reason=\"stop\""};
static struct sl_metric running = {.name = "sluice_running", .help = "Now.", .kind = SL_GAUGE};
static struct sl_metric length = {.name = "sluice_requests_total",
                                  .help = "Requests.",
                                  .kind = SL_COUNTER,
                                  .labels = "finished_reason=\"length\""};
static struct sl_metric wait = {.name = "sluice_wait_seconds",
                                .help = "Waiting.",
                                .kind = SL_HISTOGRAM,
                                .bounds = bounds,
                                .n_bounds = 3};

static void expect_text(const char *labels, const char *want)
{
    struct sl_buf b = {0};
    sl_metrics_print(&b, labels);
    assert_false(b.failed);
    assert_string_equal(b.data, want);
    sl_buf_free(&b);
}

static void text_format(void **state)
{
    (void)state;
    struct sl_metric *all[] = {&stop, &running, &length, &wait, &stop, &running};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        sl_metric_register(all[i]);
    sl_metric_add(&stop, 2);
    sl_metric_add(&stop, -5);
    sl_metric_add(&stop, (double)NAN);
    sl_metric_add(&length, 0.5);
    sl_metric_set(&running, 7);
    sl_metric_add(&running, -10);
    sl_metric_observe(&wait, 0.1); /* a bound belongs to its bucket */
    sl_metric_observe(&wait, 0.5);
    sl_metric_observe(&wait, 3);
    sl_metric_observe(&wait, (double)NAN);
    assert_true(sl_metric_value(&stop) == 2.0);
    expect_text(NULL, "# HELP sluice_requests_total Requests, by how they\\nended \\\\ why.\n"
                      "# TYPE sluice_requests_total counter\n"
                      "sluice_requests_total{finished_reason=\"stop\"} 2.0\n"
                      "sluice_requests_total{finished_reason=\"length\"} 0.5\n"
                      "# HELP sluice_running Now.\n"
                      "# TYPE sluice_running gauge\n"
                      "sluice_running -3.0\n"
                      "# HELP sluice_wait_seconds Waiting.\n"
                      "# TYPE sluice_wait_seconds histogram\n"
                      "sluice_wait_seconds_bucket{le=\"0.1\"} 1\n"
                      "sluice_wait_seconds_bucket{le=\"1.0\"} 2\n"
                      "sluice_wait_seconds_bucket{le=\"2.5\"} 2\n"
                      "sluice_wait_seconds_bucket{le=\"+Inf\"} 3\n"
                      "sluice_wait_seconds_sum 3.6\n"
                      "sluice_wait_seconds_count 3\n");
    sl_metric_set(&running, (double)INFINITY);
    struct sl_buf b = {0};
    sl_metrics_print(&b, "model_name=\"m\"");
    assert_non_null(strstr(b.data, "\nsluice_running{model_name=\"m\"} +Inf\n"));
    assert_non_null(strstr(
        b.data, "\nsluice_requests_total{model_name=\"m\",finished_reason=\"length\"} 0.5\n"));
    assert_non_null(
        strstr(b.data, "\nsluice_wait_seconds_bucket{model_name=\"m\",le=\"+Inf\"} 3\n"));
    sl_buf_free(&b);
}

static struct sl_metric shared = {.name = "sluice_shared_total", .help = "", .kind = SL_COUNTER};
static struct sl_metric spread = {
    .name = "sluice_spread", .help = "", .kind = SL_HISTOGRAM, .bounds = bounds, .n_bounds = 3};

static void *update(void *arg)
{
    (void)arg;
    sl_metric_register(&shared);
    sl_metric_register(&spread);
    for (int i = 0; i < 20000; i++) {
        sl_metric_add(&shared, 1);
        sl_metric_observe(&spread, (double)(i % 4));
    }
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, update, NULL), 0);
    for (int i = 0; i < 20; i++) {
        struct sl_buf b = {0};
        sl_metrics_print(&b, NULL);
        sl_buf_free(&b);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    assert_true(sl_metric_value(&shared) == 80000.0);
    struct sl_buf b = {0};
    sl_metrics_print(&b, NULL);
    assert_non_null(strstr(b.data, "sluice_spread_bucket{le=\"0.1\"} 20000\n"));
    assert_non_null(strstr(b.data, "sluice_spread_sum 120000.0\nsluice_spread_count 80000\n"));
    sl_buf_free(&b);
}

static void bounds_ascend(void **state)
{
    const struct {
        const double *bounds;
        uint32_t n;
    } sets[] = {{sl_buckets_ttft, sl_n_buckets_ttft},
                {sl_buckets_itl, sl_n_buckets_itl},
                {sl_buckets_e2e, sl_n_buckets_e2e},
                {sl_buckets_tokens, sl_n_buckets_tokens}};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        assert_in_range(sets[i].n, 8, 31);
        for (uint32_t k = 1; k < sets[i].n; k++)
            assert_true(sets[i].bounds[k] > sets[i].bounds[k - 1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_format),
        cmocka_unit_test(threads),
        cmocka_unit_test(bounds_ascend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
