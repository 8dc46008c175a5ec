/* Log lines to stderr, one write(2) each. A call site is known by its format string's address; a
 * small table counts its lines, and what was held back is told by the next line let through. */
#include <sluice/base/log.h>
#include <sluice/base/mem.h>
#include <sluice/base/time.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_MAX 2048
#define N_SITES     128 /* a power of two */
#define N_PROBES    8

static const char *const level_names[] = {"debug", "info", "warn", "error"};

static struct {
    enum sl_log_level level;
    bool json;
    const char *component;
} settings = {.level = SL_LOG_INFO, .component = "sluice"};

struct site {
    const char *fmt;
    struct sl_log_rate rate;
};
static pthread_mutex_t sites_lock = PTHREAD_MUTEX_INITIALIZER; /* guards sites */
static struct site sites[N_SITES];

void sl_log_open(enum sl_log_format format, enum sl_log_level level, const char *component)
{
    settings.level = level;
    settings.json = format == SL_LOG_JSON || (format == SL_LOG_AUTO && !isatty(STDERR_FILENO));
    settings.component = component;
}

bool sl_log_is_json(void)
{
    return settings.json;
}

bool sl_log_rate_allow(struct sl_log_rate *r, uint64_t now_ns, uint64_t *n_held)
{
    *n_held = 0;
    if (r->n == 0 || now_ns - r->start_ns >= SL_S_NS) {
        *n_held = r->n > SL_LOG_PER_SECOND ? r->n - SL_LOG_PER_SECOND : 0;
        *r = (struct sl_log_rate){.start_ns = now_ns, .n = 1};
        return true;
    }
    r->n++;
    return r->n <= SL_LOG_PER_SECOND;
}

/* The site's slot; when its neighbourhood is full, the one whose window is oldest makes room. */
static struct site *find_site(const char *fmt)
{
    size_t at = ((uintptr_t)fmt * 0x9e3779b97f4a7c15u) >> 32;
    struct site *oldest = &sites[at & (N_SITES - 1)];
    for (size_t i = 0; i < N_PROBES; i++) {
        struct site *s = &sites[(at + i) & (N_SITES - 1)];
        if (s->fmt == fmt)
            return s;
        if (!s->fmt) {
            s->fmt = fmt;
            return s;
        }
        if (s->rate.start_ns < oldest->rate.start_ns)
            oldest = s;
    }
    *oldest = (struct site){.fmt = fmt};
    return oldest;
}

static bool site_may_log(const char *fmt, uint64_t *n_held)
{
    uint64_t now_ns = sl_now_ns();
    pthread_mutex_lock(&sites_lock);
    bool may = sl_log_rate_allow(&find_site(fmt)->rate, now_ns, n_held);
    pthread_mutex_unlock(&sites_lock);
    return may;
}

static void put_time(struct sl_buf *b)
{
    uint64_t unix_ns = sl_unix_ns();
    time_t s = (time_t)(unix_ns / SL_S_NS);
    struct tm t = {0};
    gmtime_r(&s, &t);
    sl_buf_printf(b, "%04d-%02d-%02dT%02d:%02d:%02d.%09uZ", t.tm_year + 1900, t.tm_mon + 1,
                  t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec, (unsigned)(unix_ns % SL_S_NS));
}

static void put_json(struct sl_buf *b, const char *level, const char *msg)
{
    sl_buf_puts(b, "{\"ts\":\"");
    put_time(b);
    sl_buf_printf(b, "\",\"level\":\"%s\",\"component\":", level);
    sl_buf_json_str(b, settings.component, strlen(settings.component));
    sl_buf_printf(b, ",\"pid\":%ld,\"msg\":", (long)getpid());
    sl_buf_json_str(b, msg, strlen(msg));
    sl_buf_puts(b, "}\n");
}

/* Control bytes become '?': foreign text must not move a terminal's cursor or forge a line. */
static void put_text(struct sl_buf *b, const char *level, const char *msg)
{
    put_time(b);
    sl_buf_printf(b, " %-5s %s: ", level, settings.component);
    for (const char *p = msg; *p; p++) {
        unsigned char c = (unsigned char)*p;
        sl_buf_putc(b, c < 0x20 || c == 0x7f ? '?' : *p);
    }
    sl_buf_putc(b, '\n');
}

void sl_log(enum sl_log_level level, const char *fmt, ...)
{
    uint64_t n_held = 0;
    if (level < settings.level || !site_may_log(fmt, &n_held))
        return;
    char msg[MESSAGE_MAX];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(msg, sizeof msg, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    size_t len = (size_t)n < sizeof msg ? (size_t)n : sizeof msg - 1;
    if (n_held)
        snprintf(msg + len, sizeof msg - len, " (%llu more like this were held back)",
                 (unsigned long long)n_held);
    struct sl_buf line = {.cap_bytes = 8 * MESSAGE_MAX};
    if (settings.json)
        put_json(&line, level_names[level], msg);
    else
        put_text(&line, level_names[level], msg);
    /* A log that cannot be written has nowhere to say so. */
    if (!line.failed && write(STDERR_FILENO, line.data, line.len) < 0)
        line.failed = true;
    sl_buf_free(&line);
}
