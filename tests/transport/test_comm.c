/* Promise: on every backend and at every number of ranks, an operation leaves exactly the bytes
 * that a plain model says, whatever the sizes, and the sum of a reduction has the same bits
 * everywhere. */
#include "comm_group.h"

#define MEMORY ((size_t)1 << 22)

static const uint32_t sizes[] = {1, 2, 3, 4, 8};
static const enum sl_comm_kind kinds[] = {SL_COMM_SHM, SL_COMM_TCP};

static uint64_t seed_of_run(void)
{
    const char *text = getenv("SLUICE_TEST_SEED");
    return text ? strtoull(text, NULL, 10) : 20260101;
}

/* --- random sequences ----------------------------------------------------------------------------
 */

struct memory {
    uint8_t *a, *b;
};

static void do_all_gather(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    size_t counts[SL_COMM_RANKS_MAX], at = 0, mine = 0;
    for (uint32_t r = 0; r < n; r++) {
        counts[r] = draw_size(rng, MEMORY / n);
        mine = r == self ? at : mine;
        at += counts[r];
    }
    bool in_place = sl_rng_below(rng, 2);
    uint8_t *source = in_place ? m->b + mine : m->a;
    fill(source, step, self, 99, counts[self]);
    OK(sl_comm_all_gather(c, source, m->b, counts, err));
    at = 0;
    for (uint32_t r = 0; r < n; at += counts[r++])
        check(m->b + at, step, r, 99, counts[r]);
}

static void do_gather(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c), root = sl_rng_below(rng, n);
    size_t counts[SL_COMM_RANKS_MAX], at = 0;
    for (uint32_t r = 0; r < n; r++)
        counts[r] = draw_size(rng, MEMORY / n);
    fill(m->a, step, self, root, counts[self]);
    OK(sl_comm_gather(c, root, m->a, self == root ? m->b : NULL, counts, err));
    for (uint32_t r = 0; r < n && self == root; at += counts[r++])
        check(m->b + at, step, r, root, counts[r]);
}

static void do_all_to_all(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
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
        fill(m->a + at, step, self, r, send[r]);
    OK(sl_comm_all_to_all(c, m->a, send, m->b, recv, err));
    at = 0;
    for (uint32_t r = 0; r < n; at += recv[r++])
        check(m->b + at, step, r, self, recv[r]);
}

static void do_broadcast(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    uint32_t root = sl_rng_below(rng, sl_comm_n_ranks(c));
    size_t n = draw_size(rng, MEMORY);
    if (sl_comm_rank(c) == root)
        fill(m->a, step, root, 98, n);
    OK(sl_comm_broadcast(c, root, m->a, n, err));
    check(m->a, step, root, 98, n);
}

static void do_message(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    uint32_t from = sl_rng_below(rng, n), to = sl_rng_below(rng, n), times = sl_rng_below(rng, 4);
    for (uint32_t i = 0; i < times && from != to; i++) {
        size_t size = draw_size(rng, MEMORY);
        if (self == from) {
            fill(m->a, step + i, from, to, size);
            OK(sl_comm_send(c, to, m->a, size, err));
        } else if (self == to) {
            OK(sl_comm_recv(c, from, m->b, size, err));
            check(m->b, step + i, from, to, size);
        }
    }
}

static float tree(const float *x, uint32_t n, size_t stride)
{
    float t[SL_COMM_RANKS_MAX];
    for (uint32_t i = 0; i < n; i++)
        t[i] = x[i * stride];
    for (; n > 1; n = (n + 1) / 2) {
        for (uint32_t i = 0; i < n / 2; i++)
            t[i] = t[2 * i] + t[2 * i + 1];
        if (n % 2)
            t[n / 2] = t[n - 1];
    }
    return t[0];
}

static float float_of(uint64_t step, uint32_t rank, size_t i)
{
    return (sl_random_unit(step, rank, (uint32_t)i, 0) - 0.5f) *
           (float)(1 << sl_rng_below(&(struct sl_rng){step + i, rank}, 20));
}

static void do_reduce(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    uint32_t n = sl_comm_n_ranks(c), self = sl_comm_rank(c);
    size_t size = sl_rng_below(rng, sl_rng_below(rng, 8) ? 300 : 9000);
    float *x = (float *)(void *)m->a, all[SL_COMM_RANKS_MAX];
    for (size_t i = 0; i < size; i++)
        x[i] = float_of(step, self, i);
    OK(sl_comm_reduce_tree(c, x, size, err));
    for (size_t i = 0; i < size; i++) {
        for (uint32_t r = 0; r < n; r++)
            all[r] = float_of(step, r, i);
        float want = tree(all, n, 1);
        REQUIRE(!memcmp(&want, &x[i], sizeof want), "step %llu, %zu of %zu: %a, expected %a",
                (unsigned long long)step, i, size, (double)x[i], (double)want);
    }
}

static void do_barrier(struct sl_comm *c, struct sl_rng *rng, uint64_t step, struct memory *m)
{
    (void)rng, (void)step, (void)m;
    OK(sl_comm_barrier(c, err));
}

static void (*const actions[])(struct sl_comm *, struct sl_rng *, uint64_t, struct memory *) = {
    do_all_gather, do_gather, do_all_to_all, do_broadcast, do_message, do_reduce, do_barrier};

struct sequence {
    uint64_t seed;
    uint32_t n_steps;
};

static void run_sequence(struct sl_comm *c, uint64_t seed, uint32_t n_steps)
{
    struct sl_rng rng = {seed, 0};
    struct memory m = {malloc(MEMORY), malloc(MEMORY)};
    REQUIRE(m.a && m.b, "memory");
    for (uint64_t step = 0; step < n_steps; step++)
        actions[sl_rng_below(&rng, sizeof actions / sizeof *actions)](c, &rng, step * 16 + seed,
                                                                      &m);
    free(m.a);
    free(m.b);
}

static void sequence_rank(struct sl_comm *c, void *ctx)
{
    struct sequence *s = ctx;
    struct sl_comm_stats stats;
    run_sequence(c, s->seed, s->n_steps);
    sl_comm_stats(c, &stats);
    REQUIRE(sl_comm_n_ranks(c) == 1 ? stats.bytes_sent == 0 : stats.bytes_sent > 0, "%llu",
            (unsigned long long)stats.bytes_sent);
    REQUIRE(sl_comm_blamed(c) == sl_comm_n_ranks(c), "blamed %u", sl_comm_blamed(c));
}

static void test_random_sequences_match_the_model(void **state)
{
    (void)state;
    struct sequence s = {seed_of_run(), 60};
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct group g = {
                .n = sizes[i], .kind = kinds[k], .rank_main = sequence_rank, .ctx = &s};
            print_message("seed %llu, kind %u, %u ranks\n", (unsigned long long)s.seed, kinds[k],
                          g.n);
            group_run(&g);
            s.seed++;
        }
}

static void auto_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    REQUIRE(sl_comm_kind(c) == SL_COMM_SHM, "kind %u", sl_comm_kind(c));
    OK(sl_comm_barrier(c, err));
}

static void test_one_machine_shares_memory(void **state)
{
    (void)state;
    struct group g = {.n = 2, .kind = SL_COMM_AUTO, .rank_main = auto_rank};
    group_run(&g);
}

/* --- processes -----------------------------------------------------------------------------------
 */

static void test_processes_agree_with_the_model(void **state)
{
    (void)state;
    struct sequence s = {seed_of_run() + 100, 40};
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 3, .kind = kinds[k], .rank_main = sequence_rank, .ctx = &s};
        pid_t pids[3];
        group_meet(&g);
        for (uint32_t r = 0; r < g.n; r++)
            pids[r] = group_fork(&g, r);
        for (uint32_t r = 0; r < g.n; r++)
            group_reap(pids[r]);
        sl_bus_ipc_remove(g.endpoint);
    }
}

/* --- sub-groups ----------------------------------------------------------------------------------
 */

/* A grid of 2 x 2, as TP x PP uses it: rows, columns and the whole, in turns. */
static void grid_rank(struct sl_comm *c, void *ctx)
{
    struct sequence *s = ctx;
    uint32_t r = sl_comm_rank(c);
    const uint32_t row[2] = {r / 2 * 2, r / 2 * 2 + 1}, column[2] = {r % 2, r % 2 + 2};
    struct sl_comm *rows, *columns, *all;
    struct sl_comm_stats whole, part;
    OK(sl_comm_sub(c, row, 2, &rows, err));
    OK(sl_comm_sub(c, column, 2, &columns, err));
    OK(sl_comm_sub(c, (const uint32_t[]){0, 1, 2, 3}, 4, &all, err));
    REQUIRE(sl_comm_rank(rows) == r % 2 && sl_comm_rank(columns) == r / 2, "rank %u", r);
    for (uint64_t i = 0; i < 6; i++) {
        run_sequence(rows, s->seed + 10 * i + r / 2, s->n_steps);
        run_sequence(columns, s->seed + 1000 + 10 * i + r % 2, s->n_steps);
        run_sequence(i % 2 ? all : c, s->seed + 2000 + i, s->n_steps);
    }
    sl_comm_stats(c, &whole);
    sl_comm_stats(rows, &part);
    REQUIRE(whole.bytes_sent >= part.bytes_sent && part.n_ops > 0, "stats");
    sl_comm_close(rows);
    sl_comm_close(columns);
    sl_comm_close(all);
}

static void test_sub_groups_do_not_mix(void **state)
{
    (void)state;
    struct sequence s = {seed_of_run() + 200, 8};
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 4, .kind = kinds[k], .rank_main = grid_rank, .ctx = &s};
        group_run(&g);
    }
}

static void bad_sub_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    static const struct {
        uint32_t ranks[3], n;
    } bad[] = {{{0}, 0}, {{0, 2}, 2}, {{1, 0}, 2}, {{0, 0}, 2}, {{0, 1, 1}, 3}, {{5}, 1}};
    struct sl_comm *sub;
    struct sl_err e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        REQUIRE(sl_comm_sub(c, bad[i].ranks, bad[i].n, &sub, &e) == SL_INVALID && !sub, "row %zu",
                i);
    const uint32_t other = 1 - sl_comm_rank(c);
    REQUIRE(sl_comm_sub(c, &other, 1, &sub, &e) == SL_INVALID, "not a member");
    REQUIRE(sl_comm_send(c, 2, "x", 1, &e) == SL_INVALID, "no such rank");
    REQUIRE(sl_comm_broadcast(c, 2, &sub, 1, &e) == SL_INVALID, "no such root");
    OK(sl_comm_barrier(c, err)); /* a bad argument does not end the group */
}

static void test_bad_arguments_are_refused(void **state)
{
    (void)state;
    struct group g = {.n = 2, .kind = SL_COMM_SHM, .rank_main = bad_sub_rank};
    group_run(&g);
}

/* --- poll ----------------------------------------------------------------------------------------
 */

static void poll_rank(struct sl_comm *c, void *ctx)
{
    (void)ctx;
    bool ready;
    char word[4] = "abc";
    OK(sl_comm_barrier(c, err));
    if (sl_comm_rank(c) == 1) {
        OK(sl_comm_poll(c, 0, 0, &ready, err));
        OK(sl_comm_poll(c, 0, 5, &ready, err));
        REQUIRE(!ready, "nothing was sent yet");
        OK(sl_comm_send(c, 0, word, 4, err));
        while (!ready)
            OK(sl_comm_poll(c, 0, 100, &ready, err));
        OK(sl_comm_recv(c, 0, word, 4, err));
        OK(sl_comm_send(c, 0, word, 0, err));
        return;
    }
    OK(sl_comm_recv(c, 1, word, 4, err));
    OK(sl_comm_send(c, 1, word, 4, err));
    OK(sl_comm_recv(c, 1, word, 0, err));
}

static void test_poll_tells_of_a_message(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 2, .kind = kinds[k], .rank_main = poll_rank};
        group_run(&g);
    }
}

/* A message that was sent before its sender left still arrives. */
static void leave_rank(struct sl_comm *c, void *ctx)
{
    static uint8_t big[200000];
    (void)ctx;
    OK(sl_comm_barrier(c, err));
    if (sl_comm_rank(c) == 0) {
        OK(sl_comm_send(c, 1, "bye", 4, err));
        return;
    }
    struct sl_err e;
    enum sl_status s;
    char word[4];
    bool ready;
    OK(sl_comm_recv(c, 0, word, 4, err));
    while ((s = sl_comm_poll(c, 0, 1000, &ready, &e)) == SL_OK)
        ;
    REQUIRE(s == SL_PEER && sl_comm_blamed(c) == 0, "%u: %s", s, e.msg);
    REQUIRE(sl_comm_send(c, 0, big, sizeof big, &e) == SL_PEER, "%s", e.msg);
}

static void test_what_was_sent_before_leaving_arrives(void **state)
{
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct group g = {.n = 2, .kind = kinds[k], .rank_main = leave_rank};
        group_run(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_processes_agree_with_the_model),
        cmocka_unit_test(test_random_sequences_match_the_model),
        cmocka_unit_test(test_one_machine_shares_memory),
        cmocka_unit_test(test_sub_groups_do_not_mix),
        cmocka_unit_test(test_bad_arguments_are_refused),
        cmocka_unit_test(test_poll_tells_of_a_message),
        cmocka_unit_test(test_what_was_sent_before_leaving_arrives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
