/* Latency and bandwidth of operations between ranks; see sluice/bench/comm.h. Every rank is a
 * thread that runs the same list of cases; rank 0 keeps the time and says how often a case is run.
 */
#include <sluice/bench/comm.h>

#include "stats.h"

#include <sluice/base/time.h>
#include <sluice/transport/bus.h>
#include <sluice/transport/comm.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define JOIN_MS  60000
#define STALL_MS 60000
#define RUNS_MAX 100000

enum op { ALL_GATHER, ALL_TO_ALL, BROADCAST, REDUCE_TREE, SEND_RECV, BARRIER, N_OPS };
static const char *const op_names[] = {"all_gather",  "all_to_all", "broadcast",
                                       "reduce_tree", "send_recv",  "barrier"};

/* Shared by the ranks of one group. */
struct run {
    const struct sl_bench_comm *b;
    enum sl_comm_kind kind;
    const char *endpoint;
    int ring[SL_COMM_RANKS_MAX][2]; /* plain sockets: rank r sends on [r][0], r+1 reads [r][1] */
    struct sl_buf *json, *lines;
    bool any; /* a result was written before */
};

struct rank {
    struct run *run;
    uint32_t rank;
    struct sl_comm *comm;
    uint8_t *out, *in;
    pthread_t thread;
    enum sl_status status;
    struct sl_err err;
};

/* --- what is timed
 * -------------------------------------------------------------------------------- */

/* `bytes` is what lies at a rank afterwards. */
static enum sl_status do_op(struct rank *r, enum op op, size_t bytes)
{
    uint32_t n = r->run->b->n_ranks;
    size_t counts[SL_COMM_RANKS_MAX];
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < n; i++)
        counts[i] = bytes / n;
    switch (op) {
    case ALL_GATHER:
        return sl_comm_all_gather(r->comm, r->out, r->in, counts, &r->err);
    case ALL_TO_ALL:
        return sl_comm_all_to_all(r->comm, r->out, counts, r->in, counts, &r->err);
    case BROADCAST:
        return sl_comm_broadcast(r->comm, 0, r->in, bytes, &r->err);
    case REDUCE_TREE:
        return sl_comm_reduce_tree(r->comm, (float *)(void *)r->in, bytes / sizeof(float), &r->err);
    case SEND_RECV: /* there and back */
        if (r->rank == 0)
            s = sl_comm_send(r->comm, 1, r->out, bytes, &r->err);
        if (r->rank < 2 && !s)
            s = sl_comm_recv(r->comm, 1 - r->rank, r->in, bytes, &r->err);
        if (r->rank == 1 && !s)
            s = sl_comm_send(r->comm, 0, r->out, bytes, &r->err);
        return s;
    default:
        return sl_comm_barrier(r->comm, &r->err);
    }
}

/* Bytes that a rank receives from others in one operation. */
static size_t received(enum op op, size_t bytes, uint32_t n)
{
    size_t share = bytes / n;
    switch (op) {
    case ALL_GATHER:
    case ALL_TO_ALL:
        return share * (n - 1);
    case REDUCE_TREE:
        return bytes * (n - 1);
    case BARRIER:
        return 1;
    default:
        return bytes;
    }
}

static enum sl_status pass_on(struct rank *r, size_t bytes)
{
    int to = r->run->ring[r->rank][0];
    int from = r->run->ring[(r->rank + r->run->b->n_ranks - 1) % r->run->b->n_ranks][1];
    size_t sent = 0, got = 0, max = r->run->b->max_bytes;
    while (sent < bytes || got < bytes) {
        size_t at = sent % max, left = bytes - sent < max - at ? bytes - sent : max - at;
        ssize_t n = left ? send(to, r->out + at, left, MSG_NOSIGNAL) : 0;
        sent += n > 0 ? (size_t)n : 0;
        at = got % max, left = bytes - got < max - at ? bytes - got : max - at;
        ssize_t m = left ? recv(from, r->in + at, left, 0) : 0;
        got += m > 0 ? (size_t)m : 0;
        struct pollfd p[2] = {{sent < bytes ? to : -1, POLLOUT, 0},
                              {got < bytes ? from : -1, POLLIN, 0}};
        if (n <= 0 && m <= 0 && (sent < bytes || got < bytes) && poll(p, 2, STALL_MS) <= 0)
            return sl_fail(&r->err, SL_FAILED, "bench: the plain sockets stall");
    }
    return SL_OK;
}

static enum sl_status do_yardstick(struct rank *r, size_t bytes)
{
    size_t max = r->run->b->max_bytes;
    if (r->run->kind == SL_COMM_TCP)
        return pass_on(r, bytes);
    for (size_t at = 0; at < bytes; at += max)
        memcpy(r->in, r->out, bytes - at < max ? bytes - at : max);
    __asm__ volatile("" ::: "memory");
    return SL_OK;
}

/* --- timing
 * --------------------------------------------------------------------------------------- */

/* Wall time and, of all ranks together, processor time. */
struct sample {
    double us, cpu_us;
};

static enum sl_status time_runs(struct rank *r, enum op op, bool yardstick, size_t bytes,
                                uint32_t n_runs, struct sample *out)
{
    enum sl_status s = sl_comm_barrier(r->comm, &r->err);
    size_t moved = received(op, bytes, r->run->b->n_ranks);
    uint64_t start = sl_now_ns(), start_cpu = sl_process_cpu_ns();
    for (uint32_t i = 0; i < n_runs && !s; i++)
        s = yardstick ? do_yardstick(r, moved) : do_op(r, op, bytes);
    if (!s && op != BARRIER) /* until the last has got everything */
        s = sl_comm_barrier(r->comm, &r->err);
    out->us = (double)(sl_now_ns() - start) / n_runs / 1e3;
    out->cpu_us = (double)(sl_process_cpu_ns() - start_cpu) / n_runs / 1e3;
    return s;
}

/* So many that a sample takes sample_ns; rank 0 decides for all. */
static enum sl_status choose_runs(struct rank *r, enum op op, bool yardstick, size_t bytes,
                                  uint32_t *n_runs)
{
    double want_us = (double)r->run->b->sample_ns / 1e3;
    struct sample sample = {0};
    enum sl_status s = SL_OK;
    for (*n_runs = 1; !s; *n_runs *= 2) {
        s = time_runs(r, op, yardstick, bytes, *n_runs, &sample);
        uint8_t go = sample.us * *n_runs < want_us / 2 && *n_runs < RUNS_MAX;
        if (!s)
            s = sl_comm_broadcast(r->comm, 0, &go, 1, &r->err);
        if (!s && !go)
            break;
    }
    return s;
}

static struct sample median_of(const struct sample *x, uint32_t n)
{
    double us[SL_BENCH_COMM_REPEAT_MAX], cpu_us[SL_BENCH_COMM_REPEAT_MAX];
    for (uint32_t i = 0; i < n; i++) {
        us[i] = x[i].us;
        cpu_us[i] = x[i].cpu_us;
    }
    bench_sort(us, n);
    bench_sort(cpu_us, n);
    return (struct sample){bench_percentile(us, n, 50), bench_percentile(cpu_us, n, 50)};
}

static void put_result(struct rank *r, enum op op, size_t bytes, const struct sample *x,
                       const struct sample *yard)
{
    struct run *run = r->run;
    uint32_t n = run->b->repeat;
    const char *kind = run->kind == SL_COMM_SHM ? "shm" : "tcp";
    const char *yardstick = run->kind == SL_COMM_SHM ? "memcpy" : "plain_tcp";
    struct sample m = median_of(x, n), y = median_of(yard, n);
    double rate = op == BARRIER ? 0 : (double)received(op, bytes, run->b->n_ranks) / m.us / 1e3;
    bytes = op == BARRIER ? 0 : bytes;
    sl_buf_printf(run->json, "%s{\"transport\":\"%s\",\"op\":\"%s\",\"bytes\":%zu,\"samples_us\":[",
                  run->any ? "," : "", kind, op_names[op], bytes);
    run->any = true;
    for (uint32_t i = 0; i < n; i++)
        sl_buf_printf(run->json, "%s%.3f", i ? "," : "", x[i].us);
    sl_buf_printf(run->json,
                  "],\"median_us\":%.3f,\"median_cpu_us\":%.3f,\"received_gb_per_s\":%.4f,"
                  "\"yardstick\":\"%s\",\"yardstick_us\":%.3f,\"yardstick_cpu_us\":%.3f,"
                  "\"time_ratio\":%.3f,\"cpu_ratio\":%.3f}",
                  m.us, m.cpu_us, rate, yardstick, y.us, y.cpu_us, m.us / y.us,
                  m.cpu_us / y.cpu_us);
    sl_buf_printf(
        run->lines,
        "%s %-11s %9zu bytes %10.1f us %7.2f GB/s, %s: %.2f times the time, %.2f the cpu\n", kind,
        op_names[op], bytes, m.us, rate, yardstick, m.us / y.us, m.cpu_us / y.cpu_us);
}

/* send_recv goes there and back: half of it is one way, for rank 0 and for its yardstick alike. */
static enum sl_status run_case(struct rank *r, enum op op, size_t bytes)
{
    struct sample x[SL_BENCH_COMM_REPEAT_MAX] = {0}, yard[SL_BENCH_COMM_REPEAT_MAX] = {0};
    double ways = op == SEND_RECV ? 2 : 1;
    uint32_t n_runs, n_yard;
    enum sl_status s = choose_runs(r, op, true, bytes, &n_yard);
    if (!s)
        s = choose_runs(r, op, false, bytes, &n_runs);
    for (uint32_t i = 0; i < r->run->b->repeat && !s; i++) {
        s = time_runs(r, op, true, bytes, n_yard, &yard[i]);
        if (!s)
            s = time_runs(r, op, false, bytes, n_runs, &x[i]);
        x[i].us /= ways;
        x[i].cpu_us /= ways;
    }
    if (!s && r->rank == 0)
        put_result(r, op, bytes, x, yard);
    return s;
}

static enum sl_status run_cases(struct rank *r)
{
    const struct sl_bench_comm *b = r->run->b;
    enum sl_status s = SL_OK;
    for (int op = 0; op < BARRIER && !s; op++)
        for (size_t bytes = b->min_bytes; bytes <= b->max_bytes && !s; bytes *= 4)
            s = run_case(r, (enum op)op, bytes);
    return s ? s : run_case(r, BARRIER, b->min_bytes);
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    const struct sl_bench_comm *b = r->run->b;
    const struct sl_comm_config cfg = {.rank = r->rank,
                                       .n_ranks = b->n_ranks,
                                       .rendezvous = r->run->endpoint,
                                       .group = "bench",
                                       .kind = r->run->kind,
                                       .join_timeout_ms = JOIN_MS,
                                       .op_timeout_ms = STALL_MS};
    r->out = calloc(1, b->max_bytes);
    r->in = calloc(1, b->max_bytes);
    r->status = r->out && r->in ? sl_comm_open(&cfg, &r->comm, &r->err)
                                : sl_fail(&r->err, SL_NO_MEMORY, "bench: no memory");
    if (!r->status) {
        memset(r->out, 1, b->max_bytes); /* pages of its own, before the clock runs */
        memset(r->in, 2, b->max_bytes);
        r->status = run_cases(r);
    }
    sl_comm_close(r->comm);
    free(r->out);
    free(r->in);
    return NULL;
}

/* --- the plain sockets
 * ---------------------------------------------------------------------------- */

static bool plain_pair(int out[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof a;
    const int on = 1;
    int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    out[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = door >= 0 && out[0] >= 0 && !bind(door, (struct sockaddr *)&a, sizeof a) &&
                !listen(door, 1) && !getsockname(door, (struct sockaddr *)&a, &size) &&
                !connect(out[0], (struct sockaddr *)&a, size);
    out[1] = good ? accept4(door, NULL, NULL, SOCK_CLOEXEC) : -1;
    for (int i = 0; i < 2 && out[i] >= 0; i++) {
        setsockopt(out[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(out[i], F_SETFL, O_NONBLOCK);
    }
    if (door >= 0)
        close(door);
    return good && out[1] >= 0;
}

static enum sl_status run_kind(struct run *run, struct sl_err *err)
{
    struct rank ranks[SL_COMM_RANKS_MAX] = {0};
    uint32_t n = run->b->n_ranks, n_threads = 0;
    enum sl_status s = SL_OK;
    memset(run->ring, -1, sizeof run->ring);
    for (uint32_t i = 0; i < n && !s && run->kind == SL_COMM_TCP; i++)
        if (!plain_pair(run->ring[i]))
            s = sl_fail(err, SL_FAILED, "bench: no loopback sockets: %s", strerror(errno));
    for (; n_threads < n && !s; n_threads++) {
        struct rank *r = &ranks[n_threads];
        *r = (struct rank){.run = run, .rank = n_threads};
        if (pthread_create(&r->thread, NULL, rank_main, r))
            s = sl_fail(err, SL_NO_MEMORY, "bench: no thread for rank %u", n_threads);
        if (s)
            break;
    }
    for (uint32_t i = 0; i < n_threads; i++)
        pthread_join(ranks[i].thread, NULL);
    for (uint32_t i = 0; i < n_threads && !s; i++)
        if (ranks[i].status)
            s = sl_fail(err, ranks[i].status, "%s", ranks[i].err.msg);
    for (uint32_t i = 0; i < n; i++)
        for (int k = 0; k < 2; k++)
            if (run->ring[i][k] >= 0)
                close(run->ring[i][k]);
    return s;
}

enum sl_status sl_bench_comm_run(const struct sl_bench_comm *b, struct sl_buf *json,
                                 struct sl_buf *lines, struct sl_err *err)
{
    struct sl_buf endpoint = {0};
    struct run run = {.b = b, .json = json, .lines = lines};
    if (b->n_ranks < 2 || b->n_ranks > SL_COMM_RANKS_MAX || !b->repeat ||
        b->repeat > SL_BENCH_COMM_REPEAT_MAX || b->min_bytes < b->n_ranks ||
        b->max_bytes < b->min_bytes)
        return sl_fail(err, SL_INVALID, "bench: %u ranks, %u samples, %zu to %zu bytes", b->n_ranks,
                       b->repeat, b->min_bytes, b->max_bytes);
    enum sl_status s = sl_bus_ipc_make("/tmp", &endpoint, err);
    if (s)
        goto out;
    run.endpoint = endpoint.data;
    sl_buf_puts(json, "\"results\":[");
    for (int kind = SL_COMM_SHM; kind <= SL_COMM_TCP && !s; kind++) {
        run.kind = (enum sl_comm_kind)kind;
        if (kind == SL_COMM_SHM ? b->shm : b->tcp)
            s = run_kind(&run, err);
    }
    sl_buf_puts(json, "]");
    sl_bus_ipc_remove(endpoint.data);
out:
    sl_buf_free(&endpoint);
    return s;
}
