/* Promise: an exchange between devices leaves exactly the bytes a plain model says, whatever the
 * sizes and however late the devices are; and when a rank dies, hangs, fails or aborts, every other
 * one gets an error in time, the same ever after, and its stream waits for nobody. */
#include "comm_group.h"

#include "emu/control.h"

#include <nccl.h>
#include <signal.h>
#include <sluice/transport/comm_device.h>
#include <stdatomic.h>
#include <time.h>

#define MEMORY  ((size_t)1 << 20)
#define DEVICES 4

const struct sl_comm_lane_ops *sl_comm_lane_plugin(void);

#define CUDA(call) REQUIRE((call) == cudaSuccess, "%s", cudaGetErrorString(cudaGetLastError()))

static const enum sl_comm_kind kinds[] = {SL_COMM_SHM, SL_COMM_TCP};

static void restart(uint64_t seed)
{
    struct emu_config c = emu_config_default();
    c.n_devices = DEVICES;
    c.memory = 16 << 20;
    c.seed = seed;
    emu_restart(&c, NULL);
}

/* ---- a rank's device ---- */

struct device {
    cudaStream_t stream;
    uint8_t *a, *b;           /* on the device */
    uint8_t *host_a, *host_b; /* pinned */
    struct sl_comm_device *lane;
};

static void take(struct device *d, uint32_t rank)
{
    *d = (struct device){0};
    CUDA(cudaSetDevice((int)(rank % DEVICES)));
    CUDA(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc((void **)&d->a, MEMORY));
    CUDA(cudaMalloc((void **)&d->b, MEMORY));
    CUDA(cudaMallocHost((void **)&d->host_a, MEMORY));
    CUDA(cudaMallocHost((void **)&d->host_b, MEMORY));
}

static struct sl_comm_device_config config_of(const struct device *d, uint32_t rank)
{
    return (struct sl_comm_device_config){.lane = sl_comm_lane_plugin(),
                                          .device = rank % DEVICES,
                                          .stream = d->stream,
                                          .interface = "lo"};
}

static void open_device(struct sl_comm *c, struct device *d)
{
    struct sl_err why;
    take(d, sl_comm_rank(c));
    struct sl_comm_device_config cfg = config_of(d, sl_comm_rank(c));
    OK(sl_comm_device_open(c, &cfg, &d->lane, &why, err));
    REQUIRE(d->lane && !why.status, "%s", why.msg);
}

/* The end of a rank that others may still wait for. */
static void leave(struct sl_comm *c)
{
    OK(sl_comm_barrier(c, err));
}

/* Also after a failure the stream comes to its end. */
static void close_device(struct device *d)
{
    sl_comm_device_close(d->lane);
    CUDA(cudaStreamSynchronize(d->stream));
    CUDA(cudaFree(d->a));
    CUDA(cudaFree(d->b));
    CUDA(cudaFreeHost(d->host_a));
    CUDA(cudaFreeHost(d->host_b));
    CUDA(cudaStreamDestroy(d->stream));
}

/* ---- random sequences ---- */

static void put(struct device *d, uint8_t *to, const uint8_t *host, size_t n)
{
    CUDA(cudaMemcpyAsync(to, host, n, cudaMemcpyHostToDevice, d->stream));
}

static void get(struct device *d, const uint8_t *from, size_t n)
{
    CUDA(cudaMemcpyAsync(d->host_b, from, n, cudaMemcpyDeviceToHost, d->stream));
    OK(sl_comm_device_settle(d->lane, err));
    CUDA(cudaStreamSynchronize(d->stream));
}

static void do_all_gather(struct sl_comm *c, struct device *d, struct sl_rng *rng, uint64_t step)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    size_t counts[SL_COMM_RANKS_MAX], at = 0, mine = 0;
    for (uint32_t r = 0; r < n; at += counts[r++]) {
        counts[r] = draw_size(rng, MEMORY / n);
        mine = r == self ? at : mine;
    }
    uint8_t *source = sl_rng_below(rng, 2) ? d->b + mine : d->a;
    fill(d->host_a, step, self, 99, counts[self]);
    put(d, source, d->host_a, counts[self]);
    OK(sl_comm_device_all_gather(d->lane, source, d->b, counts, err));
    get(d, d->b, at);
    at = 0;
    for (uint32_t r = 0; r < n; at += counts[r++])
        check(d->host_b + at, step, r, 99, counts[r]);
}

static void do_gather(struct sl_comm *c, struct device *d, struct sl_rng *rng, uint64_t step)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c), root = sl_rng_below(rng, n);
    size_t counts[SL_COMM_RANKS_MAX], at = 0;
    for (uint32_t r = 0; r < n; at += counts[r++])
        counts[r] = draw_size(rng, MEMORY / n);
    fill(d->host_a, step, self, root, counts[self]);
    put(d, d->a, d->host_a, counts[self]);
    OK(sl_comm_device_gather(d->lane, root, d->a, self == root ? d->b : NULL, counts, err));
    get(d, d->b, at);
    at = 0;
    for (uint32_t r = 0; r < n && self == root; at += counts[r++])
        check(d->host_b + at, step, r, root, counts[r]);
}

static void do_all_to_all(struct sl_comm *c, struct device *d, struct sl_rng *rng, uint64_t step)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    size_t send[SL_COMM_RANKS_MAX] = {0}, recv[SL_COMM_RANKS_MAX] = {0}, at = 0;
    for (uint32_t from = 0; from < n; from++)
        for (uint32_t to = 0; to < n; to++) {
            size_t count = draw_size(rng, MEMORY / n);
            send[to] = from == self ? count : send[to];
            recv[from] = to == self ? count : recv[from];
        }
    for (uint32_t r = 0; r < n; at += send[r++])
        fill(d->host_a + at, step, self, r, send[r]);
    put(d, d->a, d->host_a, at);
    OK(sl_comm_device_all_to_all(d->lane, d->a, send, d->b, recv, err));
    at = 0;
    for (uint32_t r = 0; r < n; r++)
        at += recv[r];
    get(d, d->b, at);
    at = 0;
    for (uint32_t r = 0; r < n; at += recv[r++])
        check(d->host_b + at, step, r, self, recv[r]);
}

static void do_message(struct sl_comm *c, struct device *d, struct sl_rng *rng, uint64_t step)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    uint32_t from = sl_rng_below(rng, n), to = sl_rng_below(rng, n);
    size_t size = draw_size(rng, MEMORY);
    if (from == to)
        return;
    if (self == from) {
        fill(d->host_a, step, from, to, size);
        put(d, d->a, d->host_a, size);
        OK(sl_comm_device_send(d->lane, to, d->a, size, err));
        get(d, d->a, size);
    } else if (self == to) {
        OK(sl_comm_device_recv(d->lane, from, d->b, size, err));
        get(d, d->b, size);
        check(d->host_b, step, from, to, size);
    }
}

/* The host's own words between. */
static void do_host(struct sl_comm *c, struct device *d, struct sl_rng *rng, uint64_t step)
{
    (void)rng, (void)step;
    sl_comm_device_progress(d->lane);
    OK(sl_comm_barrier(c, err));
}

static void (*const actions[])(struct sl_comm *, struct device *, struct sl_rng *, uint64_t) = {
    do_all_gather, do_gather, do_all_to_all, do_message, do_host};

struct sequence {
    uint64_t seed;
    uint32_t n_steps;
};

static void run_sequence(struct sl_comm *c, struct device *d, uint64_t seed, uint32_t n_steps)
{
    struct sl_rng rng = {seed, 0};
    for (uint64_t step = 0; step < n_steps; step++)
        actions[sl_rng_below(&rng, sizeof actions / sizeof *actions)](c, d, &rng, step * 16 + seed);
}

static void sequence_rank(struct sl_comm *c, void *ctx)
{
    struct sequence *s = ctx;
    struct sl_comm_stats before, after;
    struct device d;
    open_device(c, &d);
    sl_comm_stats(c, &before);
    run_sequence(c, &d, s->seed, s->n_steps);
    sl_comm_stats(c, &after);
    REQUIRE(after.bytes_sent > before.bytes_sent && after.n_ops > before.n_ops, "stats");
    REQUIRE(sl_comm_blamed(c) == sl_comm_n_ranks(c), "blamed %u", sl_comm_blamed(c));
    leave(c);
    close_device(&d);
}

static void test_processes_agree_with_the_model(void **state)
{
    (void)state;
    struct sequence s = {1, 25};
    for (size_t k = 0; k < 2; k++, s.seed++) {
        struct group g = {.n = 3, .kind = kinds[k], .rank_main = sequence_rank, .ctx = &s};
        pid_t pids[3];
        setenv("SLUICE_CUDA_EMU_SEED", k ? "6" : "3", 1);
        group_meet(&g);
        for (uint32_t r = 0; r < g.n; r++)
            pids[r] = group_fork(&g, r);
        for (uint32_t r = 0; r < g.n; r++)
            group_reap(pids[r]);
        sl_bus_ipc_remove(g.endpoint);
    }
}

static void test_random_sequences_match_the_model(void **state)
{
    (void)state;
    struct sequence s = {100, 25};
    for (uint64_t seed = 0; seed < 8; seed++, s.seed++) {
        static const uint32_t sizes[] = {2, 3, 4, 6};
        struct group g = {
            .n = sizes[seed / 2], .kind = kinds[seed / 4], .rank_main = sequence_rank, .ctx = &s};
        restart(seed);
        group_run(&g);
        REQUIRE(emu_report_count() == 0, "%s", emu_report_text(0));
    }
}

/* ---- many on their way ---- */

enum { CHAIN = 150, CHAIN_BYTES = 4096 };

/* Round and round, each hop waiting for nothing but the stream. */
static void chain_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    size_t send[SL_COMM_RANKS_MAX] = {0}, recv[SL_COMM_RANKS_MAX] = {0};
    struct device d;
    open_device(c, &d);
    send[(self + 1) % n] = recv[(self + n - 1) % n] = CHAIN_BYTES;
    fill(d.host_a, 0, self, 0, CHAIN_BYTES);
    put(&d, d.a, d.host_a, CHAIN_BYTES);
    for (uint32_t i = 0; i < CHAIN; i++) {
        OK(sl_comm_device_all_to_all(d.lane, i % 2 ? d.b : d.a, send, i % 2 ? d.a : d.b, recv,
                                     err));
        for (uint32_t k = 0; k < i % 7; k++)
            sl_comm_device_progress(d.lane);
    }
    get(&d, d.a, CHAIN_BYTES);
    check(d.host_b, 0, (self + n - CHAIN % n) % n, 0, CHAIN_BYTES);
    leave(c);
    close_device(&d);
}

static void test_many_exchanges_keep_their_order(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 5; seed++) {
        struct group g = {
            .n = 2 + (uint32_t)seed / 3, .kind = SL_COMM_SHM, .rank_main = chain_rank};
        restart(seed);
        group_run(&g);
        REQUIRE(emu_report_count() == 0, "%s", emu_report_text(0));
    }
}

/* ---- sub-groups ---- */

/* A grid of 2 x 2: a lane for the rows, one for all, on one stream. */
static void grid_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    uint32_t r = sl_comm_rank(c);
    const uint32_t row[2] = {r / 2 * 2, r / 2 * 2 + 1};
    struct sl_comm *rows;
    struct sl_comm_stats whole, part;
    struct device d;
    open_device(c, &d);
    OK(sl_comm_sub(c, row, 2, &rows, err));
    struct sl_comm_device_config cfg = config_of(&d, r);
    struct sl_comm_device *all = d.lane, *mine;
    struct sl_err why;
    OK(sl_comm_device_open(rows, &cfg, &mine, &why, err));
    for (uint64_t i = 0; i < 4; i++) {
        d.lane = mine;
        run_sequence(rows, &d, 10 * i + r / 2, 6);
        d.lane = all;
        run_sequence(c, &d, 1000 + i, 6);
    }
    sl_comm_stats(c, &whole);
    sl_comm_stats(rows, &part);
    REQUIRE(whole.bytes_sent >= part.bytes_sent && part.bytes_sent > 0, "stats");
    leave(c);
    sl_comm_device_close(mine);
    close_device(&d);
    sl_comm_close(rows);
}

static void test_lanes_of_sub_groups_do_not_mix(void **state)
{
    (void)state;
    struct group g = {.n = 4, .kind = SL_COMM_SHM, .rank_main = grid_rank};
    restart(2);
    group_run(&g);
}

/* ---- who has none ---- */

static enum sl_status other_version(uint32_t *out, struct sl_err *err)
{
    (void)err;
    *out = 21805;
    return SL_OK;
}

static enum sl_status no_version(uint32_t *out, struct sl_err *err)
{
    *out = 1;
    return sl_fail(err, SL_UNSUPPORTED, "no library");
}

enum lack { NO_LANE, OLD_LANE, OTHER_ABI, OTHER_VERSION, NO_LIBRARY, NO_INTERFACE, N_LACKS };

static void lacking_rank(struct sl_comm *c, void *ctx)
{
    enum lack lack = *(enum lack *)ctx;
    struct sl_comm_lane_ops ops = *sl_comm_lane_plugin();
    struct sl_comm_device *lane;
    struct sl_err why, e;
    struct device d;
    take(&d, sl_comm_rank(c));
    struct sl_comm_device_config cfg = config_of(&d, sl_comm_rank(c));
    bool mine = sl_comm_rank(c) == 1;
    if (mine) {
        ops.abi = lack == OTHER_ABI ? SL_COMM_LANE_ABI + 1 : ops.abi;
        ops.version = lack == OTHER_VERSION ? other_version
                      : lack == NO_LIBRARY  ? no_version
                                            : ops.version;
        cfg.lane = lack == NO_LANE ? NULL : &ops;
        cfg.interface = lack == NO_INTERFACE ? "" : "lo";
    }
    OK(sl_comm_device_open(c, &cfg, &lane, &why, err));
    bool told = mine && (lack == OTHER_ABI || lack == NO_LIBRARY || lack == NO_INTERFACE);
    if (lack == OLD_LANE) {
        REQUIRE(lane, "nothing lacks");
        REQUIRE(sl_comm_device_send(lane, sl_comm_rank(c), d.a, 1, &e) == SL_INVALID, "itself");
        REQUIRE(sl_comm_device_recv(lane, 2, d.a, 1, &e) == SL_INVALID, "no such rank");
        REQUIRE(sl_comm_device_gather(lane, 2, d.a, d.b, (size_t[]){1, 1}, &e) == SL_INVALID,
                "root");
    } else {
        REQUIRE(!lane && (why.status != SL_OK) == told, "lack %d: %s", (int)lack, why.msg);
    }
    OK(sl_comm_barrier(c, err)); /* the host's group goes on */
    d.lane = lane;
    close_device(&d);
}

static void test_all_or_none_have_a_lane(void **state)
{
    (void)state;
    for (enum lack lack = 0; lack < N_LACKS; lack++) {
        struct group g = {.n = 2, .kind = SL_COMM_TCP, .rank_main = lacking_rank, .ctx = &lack};
        restart(lack);
        group_run(&g);
    }
}

/* ---- failures ---- */

enum how { ABORT, HANG, ASYNC, REFUSED, N_HOWS };

struct fault {
    enum how how;
    _Atomic uint32_t n_ready;
    _Atomic bool over;
};

static void nap(uint32_t ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The next call of that name fails. */
static void fault_next(const char *call, ncclResult_t result, bool late)
{
    uint64_t n = 0;
    const char *name = "";
    for (uint32_t i = 0; name && strcmp(name, call); i++)
        name = emu_call_count(i, &n);
    REQUIRE(emu_fault(call, n + 1, (cudaError_t)(EMU_NCCL_FAULT + (int)result), late), "%s", call);
}

static void *abort_later(void *arg)
{
    nap(30);
    sl_comm_abort(arg);
    return NULL;
}

/* Rank 0 waits for what rank 1 does not send. */
static void faulty_rank(struct sl_comm *c, void *ctx)
{
    struct fault *f = ctx;
    const size_t counts[2] = {1000, 1000};
    uint32_t self = sl_comm_rank(c);
    struct sl_err e = {0}, again;
    pthread_t helper;
    struct device d;
    enum sl_status s, want = SL_PEER;
    open_device(c, &d);
    OK(sl_comm_device_all_gather(d.lane, d.a, d.b, counts, err));
    OK(sl_comm_device_settle(d.lane, err));
    leave(c);
    atomic_fetch_add(&f->n_ready, 1);
    while (atomic_load(&f->n_ready) < 2)
        nap(1);
    if (self == 0) {
        if (f->how == ABORT)
            REQUIRE(!pthread_create(&helper, NULL, abort_later, c), "thread");
        if (f->how == ASYNC || f->how == REFUSED)
            fault_next("ncclGroupEnd", f->how == ASYNC ? ncclRemoteError : ncclInternalError,
                       f->how == ASYNC);
        s = sl_comm_device_all_gather(d.lane, d.a, d.b, counts, &e);
        s = s ? s : sl_comm_device_settle(d.lane, &e);
        want = f->how == ABORT ? SL_CANCELLED : f->how == REFUSED ? SL_FAILED : SL_PEER;
        if (f->how == ABORT)
            pthread_join(helper, NULL);
        REQUIRE(f->how != HANG || sl_comm_blamed(c) == 1, "blamed %u", sl_comm_blamed(c));
        atomic_store(&f->over, true);
    } else {
        while (!atomic_load(&f->over))
            nap(1);
        do { /* the first may still find what rank 0 had sent */
            s = sl_comm_device_all_gather(d.lane, d.a, d.b, counts, &e);
            s = s ? s : sl_comm_device_settle(d.lane, &e);
        } while (!s);
    }
    REQUIRE(s == want, "how %d, rank %u: %u, expected %u: %s", (int)f->how, self, s, want, e.msg);
    CUDA(cudaStreamSynchronize(d.stream)); /* it waits for nobody */
    REQUIRE(sl_comm_device_send(d.lane, 1 - self, d.a, 1, &again) == want, "%s", again.msg);
    REQUIRE(!strcmp(again.msg, e.msg), "%s, then %s", e.msg, again.msg);
    REQUIRE(sl_comm_barrier(c, &again) == want, "the host's group ends with it: %s", again.msg);
    close_device(&d);
}

static void test_failures_end_both_groups(void **state)
{
    (void)state;
    for (enum how how = 0; how < N_HOWS; how++)
        for (uint64_t seed = 0; seed < 4; seed++) {
            struct fault f = {.how = how};
            struct group g = {.n = 2,
                              .kind = kinds[seed / 2],
                              .op_timeout_ms = how == HANG ? 300 : 0,
                              .rank_main = faulty_rank,
                              .ctx = &f};
            restart(seed);
            group_run(&g);
            emu_faults_clear();
        }
}

/* One cannot open its lane: nobody has one. */
static void unopened_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    struct sl_err why, e;
    struct device d;
    take(&d, sl_comm_rank(c));
    struct sl_comm_device_config cfg = config_of(&d, sl_comm_rank(c));
    REQUIRE(sl_comm_device_open(c, &cfg, &d.lane, &why, &e) != SL_OK, "opened");
    REQUIRE(!d.lane && e.msg[0], "no message");
    REQUIRE(sl_comm_barrier(c, &why) != SL_OK, "the group has ended");
    close_device(&d);
}

static void test_a_lane_that_one_cannot_open_is_nobodys(void **state)
{
    (void)state;
    static const struct {
        const char *call;
        int error;
        bool late;
    } rows[] = {{"ncclGetUniqueId", EMU_NCCL_FAULT + ncclSystemError, false},
                {"ncclCommInitRankConfig", EMU_NCCL_FAULT + ncclInternalError, false},
                {"ncclCommGetAsyncError", EMU_NCCL_FAULT + ncclSystemError, true},
                {"ncclGroupEnd", EMU_NCCL_FAULT + ncclInvalidUsage, false},
                {"cudaEventCreateWithFlags", cudaErrorMemoryAllocation, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct group g = {.n = 2, .kind = SL_COMM_SHM, .rank_main = unopened_rank};
        restart(i);
        REQUIRE(emu_fault(rows[i].call, 1, (cudaError_t)rows[i].error, rows[i].late), "%zu", i);
        group_run(&g);
        emu_faults_clear();
    }
}

/* Ranks 0 and 2 exchange with 1 until it is killed. */
static void mortal_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    const size_t counts[3] = {5000, 100000, 10};
    enum sl_status s = SL_OK;
    struct sl_err e;
    struct device d;
    open_device(c, &d);
    for (uint32_t i = 0; !s; i++) {
        if (sl_comm_rank(c) == 1 && i == 20)
            raise(SIGKILL);
        s = sl_comm_device_all_gather(d.lane, d.a, d.b, counts, &e);
        if (!s && i % 3 == 0)
            s = sl_comm_device_settle(d.lane, &e);
    }
    REQUIRE(s == SL_PEER && sl_comm_blamed(c) == 1, "%u, %u: %s", s, sl_comm_blamed(c), e.msg);
    CUDA(cudaStreamSynchronize(d.stream));
    close_device(&d);
}

static void test_a_killed_process_is_named(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 3, .kind = kinds[k], .rank_main = mortal_rank};
        pid_t pids[3];
        int status;
        group_meet(&g);
        for (uint32_t r = 0; r < g.n; r++)
            pids[r] = group_fork(&g, r);
        REQUIRE(waitpid(pids[1], &status, 0) == pids[1] && WIFSIGNALED(status), "killed");
        group_reap(pids[0]);
        group_reap(pids[2]);
        sl_bus_ipc_remove(g.endpoint);
    }
}

int main(void)
{
    setenv("SLUICE_CUDA_EMU_DEVICES", "4", 1);
    setenv("SLUICE_CUDA_EMU_MEMORY", "16777216", 1);
    const struct CMUnitTest tests[] = {
        /* Processes are forked before this one has threads of the emulator. */
        cmocka_unit_test(test_processes_agree_with_the_model),
        cmocka_unit_test(test_a_killed_process_is_named),
        cmocka_unit_test(test_random_sequences_match_the_model),
        cmocka_unit_test(test_many_exchanges_keep_their_order),
        cmocka_unit_test(test_lanes_of_sub_groups_do_not_mix),
        cmocka_unit_test(test_all_or_none_have_a_lane),
        cmocka_unit_test(test_failures_end_both_groups),
        cmocka_unit_test(test_a_lane_that_one_cannot_open_is_nobodys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
