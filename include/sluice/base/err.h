/* Errors are values: a status says what kind, a message says which thing and by how much.
 *
 * One table maps every status to its text, its HTTP status, its gRPC status, the program's exit
 * code and the `type` and `code` of an OpenAI error object. Nothing else in the tree maps them. */
#ifndef SLUICE_BASE_ERR_H
#define SLUICE_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/* X(name, text, http, grpc, exit, type, code) */
#define SL_STATUS_TABLE(X)                                                                         \
    X(OK, "ok", 200, 0, 0, "", "")                                                                 \
    X(FAILED, "failed", 500, 13, 1, "server_error", "internal_error")                              \
    X(USAGE, "usage", 400, 3, 2, "invalid_request_error", "usage")                                 \
    X(CONFIG, "bad configuration", 500, 9, 3, "server_error", "bad_config")                        \
    X(MODEL, "model missing, unsupported or corrupt", 500, 9, 4, "server_error", "bad_model")      \
    X(NO_MEMORY, "no device or memory", 503, 8, 5, "unavailable_error", "out_of_memory")           \
    X(PORT_IN_USE, "address in use", 503, 14, 6, "unavailable_error", "port_in_use")               \
    X(PEER, "peer failure", 503, 14, 7, "unavailable_error", "worker_lost")                        \
    X(DRAIN_DEADLINE, "drain deadline", 503, 14, 8, "unavailable_error", "draining")               \
    X(ASSERTION, "benchmark assertion", 500, 13, 9, "server_error", "assertion_failed")            \
    X(INVALID, "invalid value", 400, 3, 1, "invalid_request_error", "invalid_value")               \
    X(BAD_JSON, "invalid JSON", 400, 3, 1, "invalid_request_error", "invalid_json")                \
    X(TOO_LONG, "context length exceeded", 400, 3, 1, "invalid_request_error",                     \
      "context_length_exceeded")                                                                   \
    X(UNAUTHORIZED, "unauthorized", 401, 16, 1, "authentication_error", "invalid_api_key")         \
    X(NOT_FOUND, "not found", 404, 5, 1, "not_found_error", "not_found")                           \
    X(NO_MODEL, "unknown model", 404, 5, 1, "not_found_error", "model_not_found")                  \
    X(METHOD, "method not allowed", 405, 12, 1, "invalid_request_error", "method_not_allowed")     \
    X(TIMEOUT, "deadline exceeded", 408, 4, 1, "timeout_error", "deadline_exceeded")               \
    X(TOO_LARGE, "too large", 413, 8, 1, "invalid_request_error", "request_too_large")             \
    X(MEDIA_TYPE, "unsupported media type", 415, 3, 1, "invalid_request_error",                    \
      "unsupported_media_type")                                                                    \
    X(QUEUE_FULL, "queue full", 429, 8, 1, "rate_limit_error", "queue_full")                       \
    X(HEADER_TOO_LARGE, "request header too large", 431, 8, 1, "invalid_request_error",            \
      "header_too_large")                                                                          \
    X(CANCELLED, "cancelled", 499, 1, 1, "cancelled_error", "cancelled")                           \
    X(UNSUPPORTED, "not implemented", 501, 12, 1, "not_supported_error",                           \
      "unsupported_parameter")                                                                     \
    X(LOADING, "loading", 503, 14, 1, "unavailable_error", "model_loading")                        \
    X(DRAINING, "draining", 503, 14, 1, "unavailable_error", "draining")                           \
    X(CONFLICT, "conflict", 409, 10, 1, "conflict_error", "stream_mismatch")

enum sl_status {
#define X(name, ...) SL_##name,
    SL_STATUS_TABLE(X)
#undef X
        SL_N_STATUS
};

/* By value, on the caller's stack. `param` names the request field or option at fault, or is "". */
struct sl_err {
    enum sl_status status;
    char param[56];
    char msg[256];
};

struct sl_status_row {
    const char *name; /* "QUEUE_FULL" */
    const char *text;
    int http;
    int grpc;
    int exit_code;
    const char *type;
    const char *code;
};

/* The row of a status; an unknown number gives the row of SL_FAILED. */
const struct sl_status_row *sl_status_row(enum sl_status status);

/* Fills *err (which may be NULL) and returns `status`, so that `return sl_fail(err, ...)` works. A
 * message names the subject, the thing and both numbers; no pointer value, no secret, no newline. */
enum sl_status sl_fail(struct sl_err *err, enum sl_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for a named request field or option. */
enum sl_status sl_fail_param(struct sl_err *err, enum sl_status status, const char *param,
                             const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* For our own bugs only, on in every build; input must never reach one. Prints and aborts. */
#define sl_assert(cond) ((cond) ? (void)0 : sl_assert_failed(#cond, __FILE__, __LINE__))
_Noreturn void sl_assert_failed(const char *cond, const char *file, int line);

#endif
