/* Promised: one whole line a call, JSON or text, foreign bytes harmless, levels obeyed, floods from
 * one call site held back and counted while other sites are heard. */
#include <sluice/base/json.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

static int real_stderr, captured;
static char text[1 << 17];

static void capture(void)
{
    captured = memfd_create("log", 0);
    assert_true(captured >= 0);
    fcntl(captured, F_SETFL, O_APPEND);
    real_stderr = dup(STDERR_FILENO);
    dup2(captured, STDERR_FILENO);
}

/* What was written since capture(), as a string. */
static const char *release(void)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    ssize_t n = pread(captured, text, sizeof text - 1, 0);
    close(captured);
    assert_true(n >= 0);
    text[n] = 0;
    return text;
}

static void json_lines(void **state)
{
    (void)state;
    capture();
    sl_log_open(SL_LOG_JSON, SL_LOG_INFO, "router");
    sl_log(SL_LOG_DEBUG, "unheard");
    sl_log(SL_LOG_WARN, "a \"%s\" at\n%d\xff", "quote", 7);
    const char *line = release();
    assert_true(sl_log_is_json());
    const char *end = strchr(line, '\n');
    assert_non_null(end);
    assert_string_equal(end + 1, "");
    struct sl_json *v;
    struct sl_err err;
    assert_int_equal(sl_json_parse(line, (size_t)(end - line), &v, &err), SL_OK);
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(v, "level")), "warn"));
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(v, "component")), "router"));
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(v, "msg")), "a \"quote\" at\n7\xef\xbf\xbd"));
    assert_int_equal(sl_json_int(sl_json_get(v, "pid")), getpid());
    struct sl_str ts = sl_json_str(sl_json_get(v, "ts"));
    assert_int_equal(ts.len, strlen("2026-01-02T03:04:05.123456789Z"));
    assert_true(ts.data[10] == 'T' && ts.data[19] == '.' && ts.data[29] == 'Z');
    sl_json_free(v);
}

static void text_lines(void **state)
{
    (void)state;
    capture();
    sl_log_open(SL_LOG_TEXT, SL_LOG_DEBUG, "worker");
    sl_log(SL_LOG_DEBUG, "%s", "one\n2026 error forged\x1b[2J");
    const char *line = release();
    assert_false(sl_log_is_json());
    assert_non_null(strstr(line, " debug worker: one?2026 error forged?[2J\n"));
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    capture();
    sl_log_open(SL_LOG_AUTO, SL_LOG_INFO, "worker"); /* stderr is a file here */
    release();
    assert_true(sl_log_is_json());
}

static void long_message_is_cut(void **state)
{
    (void)state;
    char *big = malloc(100001);
    memset(big, '\x01', 100000); /* six bytes each once escaped */
    big[100000] = 0;
    capture();
    sl_log_open(SL_LOG_JSON, SL_LOG_INFO, "x");
    sl_log(SL_LOG_INFO, "big %s", big);
    const char *line = release();
    struct sl_json *v;
    assert_int_equal(sl_json_parse(line, strlen(line), &v, NULL), SL_OK);
    assert_int_equal(sl_json_str(sl_json_get(v, "msg")).len, 2047);
    sl_json_free(v);
    free(big);
}

static void limiter(void **state)
{
    (void)state;
    struct sl_log_rate r = {0};
    uint64_t held = 99, t = 5;
    for (int i = 0; i < SL_LOG_PER_SECOND; i++) {
        assert_true(sl_log_rate_allow(&r, t + (uint64_t)i, &held));
        assert_int_equal(held, 0);
    }
    for (int i = 0; i < 123; i++)
        assert_false(sl_log_rate_allow(&r, t + SL_S_NS - 1, &held));
    assert_true(sl_log_rate_allow(&r, t + SL_S_NS, &held));
    assert_int_equal(held, 123);
    assert_true(sl_log_rate_allow(&r, t + SL_S_NS, &held));
    assert_int_equal(held, 0);
    assert_true(sl_log_rate_allow(&r, t + 9 * SL_S_NS, &held));
    assert_int_equal(held, 0);
}

static void *flood(void *arg)
{
    for (int i = 0; i < 2000; i++)
        sl_log(SL_LOG_INFO, "flood %d of %s", i, (const char *)arg);
    sl_log(SL_LOG_INFO, "quiet site %s", (const char *)arg);
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    capture();
    sl_log_open(SL_LOG_JSON, SL_LOG_INFO, "x");
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, flood, "thread"), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    const char *p = release();
    size_t n_flood = 0, n_quiet = 0;
    for (const char *end; (end = strchr(p, '\n')); p = end + 1) {
        struct sl_json *v; /* each line is whole, whatever the others did */
        assert_int_equal(sl_json_parse(p, (size_t)(end - p), &v, NULL), SL_OK);
        struct sl_str msg = sl_json_str(sl_json_get(v, "msg"));
        n_flood += msg.data[0] == 'f';
        n_quiet += msg.data[0] == 'q';
        sl_json_free(v);
    }
    assert_string_equal(p, "");
    assert_int_equal(n_quiet, 4);
    assert_true(n_flood >= SL_LOG_PER_SECOND && n_flood < 8000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_lines),
        cmocka_unit_test(text_lines),
        cmocka_unit_test(long_message_is_cut),
        cmocka_unit_test(limiter),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
