/* Log lines: text on a terminal, JSON otherwise. Thread-safe, one write(2) a line, to stderr.
 * Repeated lines from one call site are rate limited (10 a second, then counted). */
#ifndef SLUICE_BASE_LOG_H
#define SLUICE_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum sl_log_level { SL_LOG_DEBUG, SL_LOG_INFO, SL_LOG_WARN, SL_LOG_ERROR };
enum sl_log_format { SL_LOG_AUTO, SL_LOG_TEXT, SL_LOG_JSON };

/* Process-wide, called once before threads start. `component` must outlive the process. */
void sl_log_open(enum sl_log_format format, enum sl_log_level level, const char *component);

/* JSON keys: ts (RFC 3339, ns), level, component, pid, msg. Never hand it a secret or a prompt. */
void sl_log(enum sl_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool sl_log_is_json(void);

/* The limiter of one call site, time as an argument. Zeroed at first; *n_held is how many lines
 * were held back since the last one let through, told once a new second begins. */
#define SL_LOG_PER_SECOND 10
struct sl_log_rate {
    uint64_t start_ns, n;
};
bool sl_log_rate_allow(struct sl_log_rate *r, uint64_t now_ns, uint64_t *n_held);

#endif
