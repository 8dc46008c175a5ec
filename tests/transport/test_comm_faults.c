/* Promise: whatever happens to a rank, every other one leaves its operation with a status that says
 * who is to blame, nothing is left open behind it, and whoever is no rank changes nothing.
 * Deadlines are a minute where a fault has to be noticed without them. */
#include "comm/comm_priv.h"
#include "comm_group.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <zmq.h>

#define FOREVER_MS 3600000 /* the test would be ended first: no deadline may do the noticing */

static const enum sl_comm_kind kinds[] = {SL_COMM_SHM, SL_COMM_TCP};

/* Shared between the processes of a test. */
struct board {
    _Atomic uint32_t go, n_lost;
    _Atomic uint32_t blamed[8], status[8];
};

static struct board *make_board(void)
{
    void *p =
        mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(p != MAP_FAILED, "mmap");
    return p;
}

/* All-gathers until one fails. */
static enum sl_status gather_until_failure(struct sl_comm *c, struct board *board,
                                           struct sl_err *err)
{
    static const size_t counts[8] = {100, 100, 100, 100, 100, 100, 100, 100};
    uint8_t mine[100] = {0}, all[800];
    enum sl_status s;
    while ((s = sl_comm_all_gather(c, mine, all, counts, err)) == SL_OK)
        if (board)
            board->go = 1;
    return s;
}

/* --- abort ---------------------------------------------------------------------------------------
 */

struct aborting {
    struct sl_comm *c;
    pthread_t id;
};

static void *abort_main(void *arg)
{
    struct aborting *a = arg;
    sl_comm_abort(a->c);
    sl_comm_abort(a->c);
    return NULL;
}

static void abort_rank(struct sl_comm *c, void *ctx)
{
    struct board *board = ctx;
    struct aborting a = {c, 0};
    struct sl_err e;
    uint8_t data[8];
    OK(sl_comm_barrier(c, err));
    board->go++;
    while (sl_comm_rank(c) == 1 && board->go < 3) /* or it would meet them in the barrier */
        usleep(1000);
    if (sl_comm_rank(c) == 1)
        REQUIRE(!pthread_create(&a.id, NULL, abort_main, &a), "thread");
    /* everybody waits for what nobody sends */
    enum sl_status s = sl_comm_recv(c, (sl_comm_rank(c) + 1) % 3, data, sizeof data, &e);
    REQUIRE(s == (sl_comm_rank(c) == 1 ? SL_CANCELLED : SL_PEER), "rank %u: %u %s", sl_comm_rank(c),
            s, e.msg);
    REQUIRE(sl_comm_barrier(c, &e) == s && sl_comm_send(c, 0, data, 1, &e) == s, "latched");
    bool ready;
    REQUIRE(sl_comm_poll(c, (sl_comm_rank(c) + 1) % 3, 1000, &ready, &e) == s, "latched");
    REQUIRE(sl_comm_blamed(c) == 3, "blamed %u", sl_comm_blamed(c));
    if (sl_comm_rank(c) == 1)
        pthread_join(a.id, NULL);
}

static void test_abort_ends_every_wait(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct board board = {0};
        struct group g = {.n = 3, .kind = kinds[k], .rank_main = abort_rank, .ctx = &board};
        group_run(&g);
    }
}

static void alone_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    struct sl_err e;
    OK(sl_comm_barrier(c, err));
    sl_comm_abort(c);
    REQUIRE(sl_comm_barrier(c, &e) == SL_CANCELLED, "%s", e.msg);
}

static void test_abort_works_alone(void **state)
{
    (void)state;
    struct group g = {.n = 1, .rank_main = alone_rank};
    group_run(&g);
}

/* --- lost processes ------------------------------------------------------------------------------
 */

static void survivor_rank(struct sl_comm *c, void *ctx)
{
    struct board *board = ctx;
    struct sl_err e;
    uint32_t r = sl_comm_rank(c);
    board->status[r] = gather_until_failure(c, board, &e);
    board->blamed[r] = sl_comm_blamed(c);
    board->n_lost++;
}

/* Rank 1 of three gets the signal in the middle of its operations. */
static void lose_one(enum sl_comm_kind kind, int signal, uint32_t op_timeout_ms)
{
    struct board *board = make_board();
    struct group g = {.n = 3,
                      .kind = kind,
                      .op_timeout_ms = op_timeout_ms,
                      .rank_main = survivor_rank,
                      .ctx = board};
    pid_t pids[3];
    int status;
    group_meet(&g);
    for (uint32_t r = 0; r < 3; r++)
        pids[r] = group_fork(&g, r);
    while (!board->go)
        usleep(1000);
    kill(pids[1], signal);
    group_reap(pids[0]);
    group_reap(pids[2]);
    REQUIRE(board->status[0] == SL_PEER && board->status[2] == SL_PEER, "%u %u", board->status[0],
            board->status[2]);
    REQUIRE(board->blamed[0] == 1 && board->blamed[2] == 1, "blamed %u %u", board->blamed[0],
            board->blamed[2]);
    kill(pids[1], SIGCONT);
    REQUIRE(waitpid(pids[1], &status, 0) == pids[1], "waitpid");
    if (signal == SIGSTOP) /* it wakes up and finds itself left behind */
        REQUIRE(WIFEXITED(status) && board->status[1] == SL_PEER, "%x", (unsigned)status);
    munmap(board, sizeof *board);
    sl_bus_ipc_remove(g.endpoint);
}

static void test_a_killed_rank_is_noticed(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++)
        lose_one(kinds[k], SIGKILL, FOREVER_MS);
}

static void test_a_stopped_rank_is_noticed(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++)
        lose_one(kinds[k], SIGSTOP, 1500);
}

/* A message that is larger than any buffer, to one who does not read. */
static void stuck_rank(struct sl_comm *c, void *ctx)
{
    struct board *board = ctx;
    struct sl_err e;
    size_t size = (size_t)64 << 20;
    uint8_t *big = calloc(1, size);
    OK(sl_comm_barrier(c, err));
    board->go = 1;
    if (sl_comm_rank(c) == 1)
        for (;;)
            pause();
    REQUIRE(big && sl_comm_send(c, 1, big, size, &e) == SL_PEER, "%s", e.msg);
    REQUIRE(sl_comm_blamed(c) == 1, "blamed %u", sl_comm_blamed(c));
    free(big);
}

static void test_a_peer_that_does_not_read_is_noticed(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct board *board = make_board();
        struct group g = {
            .n = 2, .kind = kinds[k], .op_timeout_ms = 500, .rank_main = stuck_rank, .ctx = board};
        group_meet(&g);
        pid_t sender = group_fork(&g, 0), other = group_fork(&g, 1);
        group_reap(sender);
        kill(other, SIGKILL);
        waitpid(other, NULL, 0);
        munmap(board, sizeof *board);
        sl_bus_ipc_remove(g.endpoint);
    }
}

/* Rank 1 computes for longer than an operation may take, but says so; rank 2 waits for it through
 * rank 0. */
static void slow_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    char word[2] = "a";
    uint32_t r = sl_comm_rank(c);
    OK(sl_comm_barrier(c, err));
    if (r == 1) {
        for (uint64_t end = sl_now_ns() + 5 * SL_S_NS; sl_now_ns() < end; usleep(10000))
            sl_comm_progress(c);
        OK(sl_comm_send(c, 0, word, 1, err));
    } else if (r == 0) {
        OK(sl_comm_recv(c, 1, word, 1, err));
        OK(sl_comm_send(c, 2, word, 1, err));
    } else {
        OK(sl_comm_recv(c, 0, word, 1, err));
    }
    OK(sl_comm_barrier(c, err));
}

static void test_a_slow_rank_is_not_lost(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 3, .kind = kinds[k], .op_timeout_ms = 2000, .rank_main = slow_rank};
        group_run(&g);
    }
}

/* --- leaks ---------------------------------------------------------------------------------------
 */

static size_t count_maps(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    char line[512];
    size_t n = 0;
    while (f && fgets(line, sizeof line, f))
        n += strstr(line, "sluice-comm") != NULL;
    if (f)
        fclose(f);
    return n;
}

static void lose_peer(struct group *g, struct board *board)
{
    struct sl_comm *c;
    struct sl_err e;
    group_meet(g);
    pid_t pid = group_fork(g, 1);
    struct sl_comm_config cfg = group_config(g, 0);
    board->status[1] = SL_OK;
    OK(sl_comm_open(&cfg, &c, err));
    kill(pid, SIGKILL);
    REQUIRE(gather_until_failure(c, NULL, &e) == SL_PEER, "%s", e.msg);
    sl_comm_close(c);
    waitpid(pid, NULL, 0);
    sl_bus_ipc_remove(g->endpoint);
    *strrchr(g->endpoint, '/') = 0;
    REQUIRE(access(g->endpoint + strlen("ipc://"), F_OK), "%s is still there", g->endpoint);
}

static void test_a_hundred_lost_groups_leave_nothing(void **state)
{
    (void)state;
    struct board *board = make_board();
    struct group g = {
        .n = 2, .op_timeout_ms = FOREVER_MS, .rank_main = survivor_rank, .ctx = board};
    size_t fds = 0, files = 0;
    for (uint32_t round = 0; round <= 100; round++) {
        g.kind = kinds[round % 2];
        lose_peer(&g, board);
        if (round == 0) { /* what libraries open once stays open */
            fds = count_entries("/proc/self/fd", "");
            files = count_entries("/dev/shm", "sluice");
        }
    }
    assert_int_equal(count_entries("/proc/self/fd", ""), fds);
    assert_int_equal(count_entries("/dev/shm", "sluice"), files);
    assert_int_equal(count_maps(), 0);
    munmap(board, sizeof *board);
}

/* --- groups that do not fit ----------------------------------------------------------------------
 */

struct misfit {
    const char *words; /* in the message of both */
    struct sl_comm_config cfg;
    enum sl_status status;
    char msg[256];
};

static void *misfit_main(void *arg)
{
    struct misfit *m = arg;
    struct sl_comm *c = NULL;
    struct sl_err e = {0};
    m->status = sl_comm_open(&m->cfg, &c, &e);
    snprintf(m->msg, sizeof m->msg, "%s", e.msg);
    sl_comm_close(c);
    return NULL;
}

static void run_pair(struct misfit *a, struct misfit *b)
{
    pthread_t id;
    REQUIRE(!pthread_create(&id, NULL, misfit_main, b), "thread");
    misfit_main(a);
    pthread_join(id, NULL);
}

static void test_ranks_that_do_not_fit_say_so(void **state)
{
    (void)state;
    struct group g = {.n = 2};
    group_meet(&g);
    for (int row = 0; row < 4; row++) {
        static const char *const words[] = {"group 'other'", "counts 3 ranks", "configuration",
                                            "asks for tcp links"};
        struct misfit a = {.cfg = group_config(&g, 0)}, b = {.cfg = group_config(&g, 1)};
        if (row == 0)
            b.cfg.group = "other";
        else if (row == 1)
            b.cfg.n_ranks = 3;
        else if (row == 2)
            b.cfg.config_hash = 8;
        else
            b.cfg.kind = SL_COMM_TCP;
        run_pair(&a, &b);
        assert_int_equal(a.status, SL_CONFIG);
        assert_int_equal(b.status, SL_CONFIG);
        assert_non_null(strstr(a.msg, words[row]));
        assert_non_null(strstr(a.msg, "rank 1"));
        assert_string_equal(a.msg, b.msg);
    }
    sl_bus_ipc_remove(g.endpoint);
}

static void test_bad_configurations_are_refused(void **state)
{
    (void)state;
    struct group g = {.n = 2};
    group_meet(&g);
    for (int row = 0; row < 8; row++) {
        struct misfit a = {.cfg = group_config(&g, 0)};
        enum sl_status want = SL_CONFIG;
        if (row == 0)
            a.cfg.n_ranks = 0;
        else if (row == 1)
            a.cfg.n_ranks = SL_COMM_RANKS_MAX + 1;
        else if (row == 2)
            a.cfg.rank = 2;
        else if (row == 3)
            a.cfg.group =
                "a name of more than sixty-three bytes, which is the most that a name has";
        else if (row == 4)
            a.cfg.rendezvous = "tcp://192.0.2.1:5555";
        else if (row == 5)
            a.cfg.rendezvous = "ipc:///tmp/open-to-all";
        else if (row == 6)
            a.cfg.host = "0.0.0.0";
        else
            a.cfg.group = NULL;
        misfit_main(&a);
        assert_int_equal(a.status, want);
    }
    sl_bus_ipc_remove(g.endpoint);
}

static void test_a_missing_rank_is_named(void **state)
{
    (void)state;
    struct group g = {.n = 3};
    group_meet(&g);
    struct misfit a = {.cfg = group_config(&g, 0)}, b = {.cfg = group_config(&g, 1)};
    a.cfg.join_timeout_ms = 300;
    run_pair(&a, &b);
    assert_int_equal(a.status, SL_PEER);
    assert_int_equal(b.status, SL_PEER);
    assert_true(strstr(a.msg, "rank 2") || strstr(a.msg, "rank 1"));
    _Atomic bool stop = true;
    a.cfg.stop = &stop;
    misfit_main(&a);
    assert_int_equal(a.status, SL_CANCELLED);
    b.cfg.stop = &stop;
    misfit_main(&b);
    assert_int_equal(b.status, SL_CANCELLED);
    sl_bus_ipc_remove(g.endpoint);
}

/* Rank 2 joins and is killed before it makes its links; then it is started again. */
static void test_a_rank_started_anew_while_joining_ends_the_attempt(void **state)
{
    (void)state;
    struct group g = {.n = 3, .kind = SL_COMM_TCP};
    group_meet(&g);
    struct misfit m[3];
    pthread_t ids[2];
    struct wire_join join = {.rank = 2,
                             .n_ranks = 3,
                             .config_hash = 7,
                             .nonce = 1,
                             .kind = SL_COMM_TCP,
                             .group = "test",
                             .address = "127.0.0.1:9"};
    uint8_t data[WIRE_ANSWER_MAX];
    int linger = 0, patience = PATIENT_MS;
    void *zmq = zmq_ctx_new(), *dealer = zmq_socket(zmq, ZMQ_DEALER);
    rendezvous_machine(join.machine);
    for (uint32_t r = 0; r < 3; r++)
        m[r] = (struct misfit){.cfg = group_config(&g, r)};
    for (uint32_t r = 0; r < 2; r++)
        REQUIRE(!pthread_create(&ids[r], NULL, misfit_main, &m[r]), "thread");
    zmq_setsockopt(dealer, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(dealer, ZMQ_RCVTIMEO, &patience, sizeof patience);
    zmq_connect(dealer, g.endpoint);
    zmq_send(dealer, data, wire_join_encode(&join, data), 0);
    assert_true(zmq_recv(dealer, data, sizeof data, 0) > 0);
    zmq_close(dealer);
    zmq_ctx_term(zmq);
    misfit_main(&m[2]);
    for (uint32_t r = 0; r < 2; r++)
        pthread_join(ids[r], NULL);
    for (uint32_t r = 0; r < 3; r++) {
        assert_int_equal(m[r].status, SL_PEER);
        assert_string_equal(m[r].msg, "comm: rank 2 was started again while joining");
    }
    sl_bus_ipc_remove(g.endpoint);
}

/* --- out of step ---------------------------------------------------------------------------------
 */

static void unequal_rank(struct sl_comm *c, void *ctx)
{
    struct board *board = ctx;
    uint8_t data[64] = {0};
    struct sl_err e;
    uint32_t r = sl_comm_rank(c);
    OK(sl_comm_barrier(c, err));
    size_t counts[2] = {10 + r, 20};
    enum sl_status s = sl_comm_all_gather(c, data + 32, data, counts, &e);
    board->status[r] = s;
    /* rank 0 got the 20 bytes that it awaits and may not know yet */
    REQUIRE(r == 1 ? s == SL_FAILED : s == SL_OK || s == SL_PEER, "rank %u: %u %s", r, s, e.msg);
    if (r == 1)
        REQUIRE(strstr(e.msg, "rank 0 is out of step"), "%s", e.msg);
    board->n_lost++;
    while (board->n_lost < 2)
        usleep(1000);
}

static void test_unequal_sizes_are_found(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct board *board = make_board();
        struct group g = {.n = 2,
                          .kind = kinds[k],
                          .op_timeout_ms = 2000,
                          .rank_main = unequal_rank,
                          .ctx = board};
        group_run(&g);
        assert_int_equal(board->status[1], SL_FAILED);
        munmap(board, sizeof *board);
    }
}

/* --- strangers -----------------------------------------------------------------------------------
 */

/* Connections to every TCP listener of this process, n of each kind: silent, and with garbage. */
static size_t squat(int *out, size_t max)
{
    size_t n = 0;
    uint8_t garbage[300];
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = byte_of(5, 0, 0, i);
    for (int fd = 0; fd < 256; fd++) {
        struct sockaddr_storage a;
        socklen_t size = sizeof a, int_size = sizeof(int);
        int listens = 0;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &int_size) || !listens ||
            getsockname(fd, (struct sockaddr *)&a, &size))
            continue;
        int type = a.ss_family == AF_UNIX ? SOCK_STREAM : 0;
        for (size_t i = 0; i < 100 && n < max; i++) {
            int s = socket(a.ss_family, type ? type : SOCK_STREAM, 0);
            if (connect(s, (struct sockaddr *)&a, size)) {
                close(s);
                break;
            }
            if (i % 2)
                send(s, garbage, 1 + 3 * i, MSG_NOSIGNAL);
            out[n++] = s;
        }
    }
    return n;
}

/* Messages that are no JOIN. */
static void babble(void *dealer)
{
    for (size_t n = 0; n < 600; n += 7) {
        uint8_t data[600];
        for (size_t i = 0; i < n; i++)
            data[i] = byte_of(n, 0, 0, i);
        memcpy(data, "SLJ1", 4);
        zmq_send(dealer, data, n, n % 2 ? ZMQ_SNDMORE : 0);
    }
    zmq_send(dealer, "", 0, 0);
}

static void *open_main(void *arg)
{
    return group_thread_main(arg);
}

static void stranger_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    for (int i = 0; i < 20; i++)
        OK(sl_comm_barrier(c, err));
}

static void test_strangers_change_nothing(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 3, .kind = kinds[k], .rank_main = stranger_rank};
        struct group_thread t[3];
        int fds[900];
        size_t n_fds;
        int linger = 0;
        void *zmq = zmq_ctx_new(), *dealer = zmq_socket(zmq, ZMQ_DEALER);
        group_meet(&g);
        for (uint32_t r = 0; r < 2; r++) {
            t[r] = (struct group_thread){&g, r, 0};
            pthread_create(&t[r].id, NULL, open_main, &t[r]);
        }
        zmq_setsockopt(dealer, ZMQ_LINGER, &linger, sizeof linger);
        zmq_connect(dealer, g.endpoint);
        babble(dealer);
        while ((n_fds = squat(fds, 900)) == 0)
            usleep(1000);
        t[2] = (struct group_thread){&g, 2, 0};
        pthread_create(&t[2].id, NULL, open_main, &t[2]);
        for (uint32_t r = 0; r < 3; r++)
            pthread_join(t[r].id, NULL);
        for (size_t i = 0; i < n_fds; i++)
            close(fds[i]);
        zmq_close(dealer);
        zmq_ctx_term(zmq);
        sl_bus_ipc_remove(g.endpoint);
    }
}

int main(void)
{
    /* those that fork come first: later ones start threads */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_hundred_lost_groups_leave_nothing),
        cmocka_unit_test(test_a_killed_rank_is_noticed),
        cmocka_unit_test(test_a_stopped_rank_is_noticed),
        cmocka_unit_test(test_a_peer_that_does_not_read_is_noticed),
        cmocka_unit_test(test_abort_ends_every_wait),
        cmocka_unit_test(test_abort_works_alone),
        cmocka_unit_test(test_a_slow_rank_is_not_lost),
        cmocka_unit_test(test_ranks_that_do_not_fit_say_so),
        cmocka_unit_test(test_bad_configurations_are_refused),
        cmocka_unit_test(test_a_missing_rank_is_named),
        cmocka_unit_test(test_a_rank_started_anew_while_joining_ends_the_attempt),
        cmocka_unit_test(test_unequal_sizes_are_found),
        cmocka_unit_test(test_strangers_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
