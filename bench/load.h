/* The load itself: requests sent at their times, answers taken apart and timed. */
#ifndef SLUICE_BENCH_LOAD_H
#define SLUICE_BENCH_LOAD_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdint.h>

struct bench_request {
    const char *body;
    size_t body_len;
    double at_s; /* intended send time after the start */
    size_t n_in; /* what is counted where the server reports no usage */
    size_t n_out;
};

/* Times are nanoseconds after the start of the load; 0 where nothing came. Latency is counted from
 * intended_ns, so that a generator or server that falls behind cannot hide it. */
struct bench_record {
    uint64_t intended_ns, sent_ns, first_ns, last_ns, end_ns;
    size_t n_in, n_out, n_chunks;
    bool has_usage, ok, done;
    long http;
    char error[160];
    struct sl_buf text; /* what was generated */
    double *itl_s;      /* gaps between chunks with tokens; freed by bench_records_free */
    size_t n_itl, itl_max;
};
void bench_records_free(struct bench_record *r, size_t n);

struct bench_load {
    const char *url;
    const char *const *headers; /* NULL-ended */
    const struct bench_request *requests;
    size_t n;
    size_t max_concurrency; /* 0: none */
    bool closed_loop;       /* a request is intended when a slot is free for it */
    long timeout_ms;
    const char *label; /* of the progress bar on stderr; NULL: no bar */
};
/* Runs until every request has ended. SL_FAILED only when the client itself fails. */
enum sl_status bench_load_run(const struct bench_load *load, struct bench_record *records,
                              struct sl_err *err);

/* One event of a stream at now_ns. False: the stream reported an error (recorded). */
bool bench_record_event(struct bench_record *r, struct sl_str data, uint64_t now_ns);

#endif
