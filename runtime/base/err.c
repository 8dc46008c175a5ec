/* Errors as values: the status table, messages into the caller's struct, and our own assertion. */
#include <sluice/base/err.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct sl_status_row rows[SL_N_STATUS] = {
#define X(name, text, http, grpc, exit_code, type, code)                                           \
    [SL_##name] = {#name, text, http, grpc, exit_code, type, code},
    SL_STATUS_TABLE(X)
#undef X
};

const struct sl_status_row *sl_status_row(enum sl_status status)
{
    unsigned i = (unsigned)status;
    return &rows[i < SL_N_STATUS ? i : SL_FAILED];
}

/* A message quotes foreign text: no line break or escape sequence may leave it, and where the
 * buffer cut a UTF-8 sequence in two, its first part goes too. */
static void clean_text(char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            s[i] = ' ';
    size_t tail = 0;
    while (tail < 3 && tail < n && ((unsigned char)s[n - 1 - tail] & 0xc0) == 0x80)
        tail++;
    if (tail >= n)
        return;
    unsigned char lead = (unsigned char)s[n - 1 - tail];
    size_t want = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    if (want > tail)
        s[n - 1 - tail] = 0;
}

static void fill(struct sl_err *err, enum sl_status status, const char *param, const char *fmt,
                 va_list args)
{
    err->status = status;
    snprintf(err->param, sizeof err->param, "%s", param);
    clean_text(err->param);
    /* The arguments may point into err->msg itself, when a message is wrapped in another. */
    char msg[sizeof err->msg];
    vsnprintf(msg, sizeof msg, fmt, args);
    clean_text(msg);
    memcpy(err->msg, msg, sizeof msg);
}

enum sl_status sl_fail(struct sl_err *err, enum sl_status status, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        fill(err, status, "", fmt, args);
        va_end(args);
    }
    return status;
}

enum sl_status sl_fail_param(struct sl_err *err, enum sl_status status, const char *param,
                             const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        fill(err, status, param ? param : "", fmt, args);
        va_end(args);
    }
    return status;
}

_Noreturn void sl_assert_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "sluice: assertion failed: %s, %s:%d\n", cond, file, line);
    abort();
}
