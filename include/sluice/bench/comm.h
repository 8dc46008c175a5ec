/* What operations between ranks cost, beside what the machine itself takes to move as many bytes:
 * every rank copying what it receives (memcpy) for shared memory, plain TCP over loopback in a ring
 * for TCP with TLS. Operation and yardstick take turns, so that both see the same machine. */
#ifndef SLUICE_BENCH_COMM_H
#define SLUICE_BENCH_COMM_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_BENCH_COMM_REPEAT_MAX 100

struct sl_bench_comm {
    uint32_t n_ranks;            /* threads of this process, 2 to SL_COMM_RANKS_MAX */
    bool shm, tcp;               /* which links */
    size_t min_bytes, max_bytes; /* sizes: times four from one to the other */
    uint32_t repeat;             /* samples of each */
    uint64_t sample_ns;          /* a sample takes about so long */
};

/* Appends a JSON member `"results":[...]`, one object per link, operation and size, and a line of
 * text for each to `lines`. SL_INVALID for sizes as above, otherwise the ranks' own errors. */
enum sl_status sl_bench_comm_run(const struct sl_bench_comm *b, struct sl_buf *json,
                                 struct sl_buf *lines, struct sl_err *err);

#endif
