/* Promised: every status has a full row and the field's numbers; messages are cleaned of control
 * bytes, never cut inside a UTF-8 sequence, and may quote the error they replace. */
#include <sluice/base/err.h>
#include <sluice/base/limits.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static void rows_are_full(void **state)
{
    (void)state;
    for (int s = 0; s < SL_N_STATUS; s++) {
        const struct sl_status_row *r = sl_status_row((enum sl_status)s);
        assert_true(r->name && *r->name && *r->text);
        assert_in_range(r->http, 200, 599);
        assert_in_range(r->grpc, 0, 16);
        assert_in_range(r->exit_code, 0, 9);
        assert_true(s == SL_OK || (*r->type && *r->code && r->exit_code));
    }
    assert_ptr_equal(sl_status_row((enum sl_status)999), sl_status_row(SL_FAILED));
    assert_ptr_equal(sl_status_row((enum sl_status) - 1), sl_status_row(SL_FAILED));
}

static void numbers_are_the_contract(void **state)
{
    static const struct {
        enum sl_status status;
        int http, grpc, exit_code;
    } want[] = {
        {SL_OK, 200, 0, 0},         {SL_USAGE, 400, 3, 2},           {SL_CONFIG, 500, 9, 3},
        {SL_MODEL, 500, 9, 4},      {SL_NO_MEMORY, 503, 8, 5},       {SL_PORT_IN_USE, 503, 14, 6},
        {SL_PEER, 503, 14, 7},      {SL_DRAIN_DEADLINE, 503, 14, 8}, {SL_ASSERTION, 500, 13, 9},
        {SL_QUEUE_FULL, 429, 8, 1}, {SL_NOT_FOUND, 404, 5, 1},       {SL_UNAUTHORIZED, 401, 16, 1},
        {SL_CANCELLED, 499, 1, 1},  {SL_UNSUPPORTED, 501, 12, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const struct sl_status_row *r = sl_status_row(want[i].status);
        assert_int_equal(r->http, want[i].http);
        assert_int_equal(r->grpc, want[i].grpc);
        assert_int_equal(r->exit_code, want[i].exit_code);
    }
}

static void messages(void **state)
{
    (void)state;
    struct sl_err e = {0};
    assert_int_equal(sl_fail(NULL, SL_INVALID, "%d", 1), SL_INVALID);
    assert_int_equal(sl_fail(&e, SL_MODEL, "tensor '%s'\n ends %d bytes\x1b[2J past", "a", 7),
                     SL_MODEL);
    assert_string_equal(e.msg, "tensor 'a'  ends 7 bytes [2J past");
    assert_string_equal(e.param, "");
    assert_int_equal(sl_fail_param(&e, SL_INVALID, "top_p", "top_p: %g", 2.0), SL_INVALID);
    assert_string_equal(e.param, "top_p");
    assert_int_equal(e.status, SL_INVALID);
    sl_fail(&e, SL_FAILED, "outer: %s", e.msg); /* wraps its own message */
    assert_string_equal(e.msg, "outer: top_p: 2");
    sl_fail_param(&e, SL_FAILED, NULL, "x");
    assert_string_equal(e.param, "");
}

static void cut_keeps_utf8_whole(void **state)
{
    (void)state;
    struct sl_err e;
    for (size_t pad = 0; pad < 8; pad++) {
        char text[600];
        memset(text, 'a', pad);
        for (size_t i = pad; i + 4 < sizeof text; i += 4)
            memcpy(text + i, "\xf0\x9f\x98\x80", 5);
        sl_fail(&e, SL_FAILED, "%s", text);
        size_t len = strlen(e.msg);
        assert_int_equal((len - pad) % 4, 0);
        assert_true(len > sizeof e.msg - 6);
    }
    sl_fail(&e, SL_FAILED, "h\xc3\xa9"); /* a whole sequence at the end stays */
    assert_string_equal(e.msg, "h\xc3\xa9");
}

static void assertion_stops(void **state)
{
    (void)state;
    int status = 0;
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        signal(SIGABRT, SIG_DFL);
        close(STDERR_FILENO);
        sl_assert(1 == 1);
        sl_assert(1 == 2);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void limits_are_rows(void **state)
{
    (void)state;
    assert_true(sl_n_limits > 30);
    for (size_t i = 0; i < sl_n_limits; i++) {
        assert_true(*sl_limits[i].name && *sl_limits[i].unit && *sl_limits[i].what);
        assert_true(sl_limits[i].value > 0);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(sl_limits[i].name, sl_limits[j].name);
    }
    assert_int_equal(SL_LIMIT_http_body_bytes, 8 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_full),   cmocka_unit_test(numbers_are_the_contract),
        cmocka_unit_test(messages),        cmocka_unit_test(cut_keeps_utf8_whole),
        cmocka_unit_test(limits_are_rows), cmocka_unit_test(assertion_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
