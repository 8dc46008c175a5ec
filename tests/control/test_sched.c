/* The scheduler's rules one by one: what a step holds, who goes first, what the cache gives, who is
 * preempted, what ends when. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

enum { PAGE = 4, ROWS_MAX = 64, SEQS_MAX = 8 };

static const struct sl_sched_config base = {.max_seqs = SEQS_MAX,
                                            .max_batch_tokens = ROWS_MAX,
                                            .max_len = 256,
                                            .n_pages = 64,
                                            .page_size = PAGE,
                                            .queue_max = 200,
                                            .prefix_cache = true};

static struct sl_sched *open_with(struct sl_sched_config c)
{
    struct sl_sched *s = NULL;
    assert_int_equal(sl_sched_open(&c, &s, NULL), SL_OK);
    return s;
}

static void check(const struct sl_sched *s)
{
    struct sl_err err = {0};
    if (sl_sched_check(s, &err))
        fail_msg("%s", err.msg);
}

/* A prompt of n tokens that begins with `first`; the same first gives the same tokens. */
static struct sl_sched_request request(uint64_t id, uint32_t n, uint32_t first, uint32_t max_new)
{
    static uint32_t tokens[512];
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = first + i * 5;
    return (struct sl_sched_request){
        .id = id, .tokens = tokens, .n_tokens = n, .n_prompt = n, .max_new = max_new};
}

static void submit(struct sl_sched *s, const struct sl_sched_request *r)
{
    struct sl_err err = {0};
    if (sl_sched_submit(s, r, 0, &err))
        fail_msg("%s", err.msg);
    check(s);
}

static void submit_plain(struct sl_sched *s, uint64_t id, uint32_t n, uint32_t max_new)
{
    struct sl_sched_request r = request(id, n, (uint32_t)id * 1000, max_new);
    submit(s, &r);
}

/* Every logit row samples 1 and goes on. */
static void commit(struct sl_sched *s, uint64_t now_ns)
{
    struct sl_sampled_token out[SEQS_MAX];
    for (uint32_t i = 0; i < SEQS_MAX; i++)
        out[i] = (struct sl_sampled_token){1, SL_END_NONE};
    check(s);
    sl_sched_commit(s, out, now_ns);
    check(s);
}

static bool step(struct sl_sched *s, uint32_t budget)
{
    if (!sl_sched_plan(s, budget, 0))
        return false;
    commit(s, 0);
    return true;
}

/* Rows of `id` in the plan. */
static uint32_t rows_of(const struct sl_plan *p, uint64_t id)
{
    for (uint32_t i = 0; p && i < p->n_seq; i++)
        if (p->id[i] == id)
            return p->q_start[i + 1] - p->q_start[i];
    return 0;
}

static struct sl_sched_stats stats(const struct sl_sched *s)
{
    struct sl_sched_stats st;
    sl_sched_stats(s, &st);
    return st;
}

static void expect_ended(struct sl_sched *s, uint64_t id, enum sl_end end)
{
    struct sl_ended e;
    assert_true(sl_sched_next_ended(s, &e));
    assert_int_equal(e.id, id);
    assert_int_equal(e.end, end);
}

/* --- open and submit -------------------------------------------------------------------------- */

static void test_open_refuses(void **state)
{
    (void)state;
    struct sl_sched_config rows[6] = {base, base, base, base, base, base};
    rows[0].max_seqs = 0;
    rows[1].max_batch_tokens = 0;
    rows[2].max_len = 1;
    rows[3].n_pages = 0;
    rows[4].page_size = 0;
    rows[5].queue_max = 1u << 30;
    for (uint32_t i = 0; i < 6; i++) {
        struct sl_sched *s = NULL;
        struct sl_err err;
        assert_int_equal(sl_sched_open(&rows[i], &s, &err), SL_INVALID);
        assert_null(s);
    }
}

static void test_submit_refuses(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_tokens, n_prompt, max_new;
        enum sl_status status;
    } rows[] = {
        {0, 0, 1, SL_INVALID},     {4, 0, 1, SL_INVALID},
        {4, 5, 1, SL_INVALID},     {6, 4, 2, SL_INVALID},
        {6, 4, 3, SL_OK},          {63, 63, 0, SL_OK},
        {64, 64, 0, SL_TOO_LONG},  {30, 30, 11, SL_OK},
        {30, 30, 12, SL_TOO_LONG}, {41, 41, 1, SL_TOO_LONG},
        {40, 40, 0, SL_OK},        {41, 41, 0, SL_TOO_LONG},
        {40, 40, 1, SL_OK},        {1, 1, UINT32_MAX, SL_TOO_LONG},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_sched_config c = base;
        c.max_len = 64;
        c.n_pages = rows[i].n_tokens > 41 ? 100 : 10; /* 10 pages hold 40 positions */
        struct sl_sched *s = open_with(c);
        struct sl_sched_request r = request(1, rows[i].n_tokens, 0, rows[i].max_new);
        r.n_prompt = rows[i].n_prompt;
        struct sl_err err;
        enum sl_status status = sl_sched_submit(s, &r, 0, &err);
        if (status != rows[i].status)
            fail_msg("row %zu: %d, not %d", i, status, rows[i].status);
        check(s);
        sl_sched_close(s);
    }
}

static void test_queue_and_ids(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.queue_max = 2;
    struct sl_sched *s = open_with(c);
    submit_plain(s, 1, 4, 4);
    struct sl_sched_request r = request(1, 4, 0, 4);
    assert_int_equal(sl_sched_submit(s, &r, 0, NULL), SL_INVALID);
    submit_plain(s, 2, 4, 4);
    r.id = 3;
    assert_int_equal(sl_sched_submit(s, &r, 0, NULL), SL_QUEUE_FULL);
    sl_sched_cancel(s, 1);
    assert_int_equal(sl_sched_submit(s, &r, 0, NULL), SL_QUEUE_FULL); /* 1 is not reported yet */
    expect_ended(s, 1, SL_END_CANCELLED);
    submit(s, &r);
    sl_sched_close(s);
}

/* --- rows ------------------------------------------------------------------------------------- */

/* Whatever the budget, the rows of a prompt come in order, once, and only its last has logits. */
static void test_chunks(void **state)
{
    (void)state;
    for (uint32_t budget = 1; budget <= 20; budget++) {
        struct sl_sched *s = open_with(base);
        struct sl_sched_request r = request(1, 17, 100, 5);
        submit(s, &r);
        for (uint32_t done = 0; done < 17;) {
            const struct sl_plan *p = sl_sched_plan(s, budget, 0);
            assert_int_equal(p->n_tok, 17 - done < budget ? 17 - done : budget);
            for (uint32_t i = 0; i < p->n_tok; i++) {
                assert_int_equal(p->pos[i], done + i);
                assert_int_equal(p->tokens[i], 100 + (done + i) * 5);
            }
            done += p->n_tok;
            assert_int_equal(p->page_start[1], (done + PAGE - 1) / PAGE);
            assert_int_equal(p->n_logits, done == 17);
            if (p->n_logits)
                assert_int_equal(p->logit_row[0], p->n_tok - 1);
            commit(s, 0);
        }
        sl_sched_close(s);
    }
}

static void test_decodes_before_prefills(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    submit_plain(s, 1, 4, 20);
    submit_plain(s, 2, 4, 20);
    step(s, 8); /* both decode now */
    submit_plain(s, 3, 40, 5);
    for (uint32_t i = 0; i < 3; i++) {
        const struct sl_plan *p = sl_sched_plan(s, 10, 0);
        assert_int_equal(p->n_tok, 10);
        assert_int_equal(rows_of(p, 1) + rows_of(p, 2), 2);
        assert_int_equal(rows_of(p, 3), 8);
        commit(s, 0);
    }
    sl_sched_close(s);
}

/* Five decodes and a budget of two: each gets two rows of five steps. */
static void test_budget_rotates(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    uint32_t rows[6] = {0};
    for (uint64_t id = 1; id <= 5; id++)
        submit_plain(s, id, 4, 50);
    step(s, 20);
    for (uint32_t i = 0; i < 10; i++) {
        const struct sl_plan *p = sl_sched_plan(s, 2, 0);
        assert_int_equal(p->n_tok, 2);
        for (uint64_t id = 1; id <= 5; id++)
            rows[id] += rows_of(p, id);
        commit(s, 0);
    }
    for (uint64_t id = 1; id <= 5; id++)
        assert_int_equal(rows[id], 4);
    sl_sched_close(s);
}

/* Tokens generated elsewhere are prompt here: computed, and only the last has logits. */
static void test_resumed(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    struct sl_sched_request r = request(1, 10, 0, 5);
    r.n_prompt = 7;
    submit(s, &r);
    const struct sl_plan *p = sl_sched_plan(s, 64, 0);
    assert_int_equal(p->n_tok, 10);
    assert_int_equal(p->n_logits, 1);
    commit(s, 0);
    assert_true(step(s, 64)); /* the fifth: max_new counts the earlier three */
    expect_ended(s, 1, SL_END_LENGTH);
    assert_true(sl_sched_idle(s));
    sl_sched_close(s);
}

/* --- prefix cache ----------------------------------------------------------------------------- */

/* What a second prompt finds of a first one of 16 tokens, by its length and what it shares. */
static void test_cache_hits(void **state)
{
    (void)state;
    static const struct {
        uint32_t n, first;
        uint8_t salt;
        bool first_no_cache, second_no_cache;
        uint32_t cached;
    } rows[] = {
        {16, 100, 0, false, false, 12}, /* the last token is always computed */
        {17, 100, 0, false, false, 16}, {15, 100, 0, false, false, 12},
        {5, 100, 0, false, false, 4},   {4, 100, 0, false, false, 0},
        {16, 101, 0, false, false, 0},  {16, 100, 1, false, false, 0},
        {16, 100, 0, true, false, 0},   {16, 100, 0, false, true, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_sched *s = open_with(base);
        struct sl_sched_request a = request(1, 16, 100, 2);
        a.no_prefix_cache = rows[i].first_no_cache;
        submit(s, &a);
        while (step(s, 64))
            ;
        struct sl_sched_request b = request(2, rows[i].n, rows[i].first, 2);
        b.salt[31] = rows[i].salt;
        b.no_prefix_cache = rows[i].second_no_cache;
        submit(s, &b);
        const struct sl_plan *p = sl_sched_plan(s, 64, 0);
        if (sl_sched_cached_tokens(s, 2) != rows[i].cached)
            fail_msg("row %zu: %u tokens cached", i, sl_sched_cached_tokens(s, 2));
        assert_int_equal(p->n_tok, rows[i].n - rows[i].cached);
        assert_int_equal(p->pos[0], rows[i].cached);
        assert_int_equal(stats(s).prefix_hits, rows[i].cached);
        assert_int_equal(p->n_logits, 1);
        commit(s, 0);
        sl_sched_close(s);
    }
}

/* Pages can be found only after the commit of the step that filled them; a prompt already begun
 * goes on from there. */
static void test_cache_after_commit(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    struct sl_sched_request a = request(1, 40, 100, 2), b = request(2, 40, 100, 2);
    a.priority = 1;
    submit(s, &a);
    submit(s, &b);
    const struct sl_plan *p = sl_sched_plan(s, 6, 0); /* 2 by priority: a page and a half */
    assert_int_equal(rows_of(p, 2), 6);
    commit(s, 0);
    p = sl_sched_plan(s, 40, 0);
    assert_int_equal(rows_of(p, 2), 34);
    assert_int_equal(rows_of(p, 1), 0); /* its second page is in the making */
    assert_int_equal(sl_sched_cached_tokens(s, 1), 4);
    commit(s, 0);
    p = sl_sched_plan(s, 46, 0);
    assert_int_equal(rows_of(p, 2), 1);
    assert_int_equal(rows_of(p, 1), 4); /* the last page */
    assert_int_equal(sl_sched_cached_tokens(s, 1), 36);
    commit(s, 0);
    sl_sched_close(s);
}

/* Of equal prompts that arrive together one is computed; the others take its pages a step later,
 * or compute theirs themselves when it failed. */
static void test_equal_prompts(void **state)
{
    (void)state;
    for (uint32_t fails = 0; fails < 2; fails++) {
        struct sl_sched *s = open_with(base);
        for (uint64_t id = 1; id <= 4; id++) {
            struct sl_sched_request r = request(id, 14, 100, 9);
            submit(s, &r);
        }
        assert_int_equal(sl_sched_plan(s, 64, 0)->n_tok, 14);
        struct sl_sampled_token out = {0, fails ? SL_END_ERROR : SL_END_NONE};
        sl_sched_commit(s, &out, 0);
        check(s);
        assert_int_equal(sl_sched_plan(s, 64, 0)->n_tok, fails ? 14 : 1 + 3 * 2);
        commit(s, 0);
        sl_sched_close(s);
    }
}

/* What a failed or cancelled step computed is never found. */
static void test_cache_not_after_failure(void **state)
{
    (void)state;
    for (uint32_t cancel = 0; cancel < 2; cancel++) {
        struct sl_sched *s = open_with(base);
        struct sl_sched_request a = request(1, 16, 100, 9), b = request(2, 16, 100, 9);
        submit(s, &a);
        sl_sched_plan(s, 64, 0);
        if (cancel)
            sl_sched_cancel(s, 1);
        struct sl_sampled_token out = {0, cancel ? SL_END_NONE : SL_END_ERROR};
        sl_sched_commit(s, &out, 0);
        check(s);
        if (cancel)
            expect_ended(s, 1, SL_END_CANCELLED);
        submit(s, &b);
        assert_int_equal(sl_sched_plan(s, 64, 0)->n_tok, 16);
        commit(s, 0);
        sl_sched_close(s);
    }
}

/* Cached pages count as free and are given up, least recently used first, when pages are needed. */
static void test_cache_eviction(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.n_pages = 8;
    struct sl_sched *s = open_with(c);
    struct sl_ended e;
    for (uint64_t id = 1; id <= 2; id++) { /* fill pages with 1, then 2: three full pages each */
        submit_plain(s, id, 12, 1);
        while (step(s, 64))
            ;
        assert_true(sl_sched_next_ended(s, &e));
    }
    assert_int_equal(stats(s).pages_free, 8);
    submit_plain(s, 3, 16, 1); /* four pages: two are free, two are taken from 1, its tail first */
    step(s, 64);
    assert_true(sl_sched_next_ended(s, &e));
    static const struct {
        uint64_t id;
        uint32_t n, cached;
    } rows[] = {{1, 5, 4}, {2, 13, 8}}; /* the first costs 2 its tail */
    for (uint32_t i = 0; i < 2; i++) {
        struct sl_sched_request r = request(10 + i, rows[i].n, (uint32_t)rows[i].id * 1000, 1);
        submit(s, &r);
        sl_sched_plan(s, 64, 0);
        assert_int_equal(sl_sched_cached_tokens(s, 10 + i), rows[i].cached);
        sl_sched_cancel(s, 10 + i);
        commit(s, 0);
        assert_true(sl_sched_next_ended(s, &e));
    }
    sl_sched_reset_cache(s);
    check(s);
    struct sl_sched_request r = request(20, 13, 2000, 1);
    submit(s, &r);
    assert_int_equal(sl_sched_plan(s, 64, 0)->n_tok, 13);
    sl_sched_close(s);
}

/* --- preemption ------------------------------------------------------------------------------- */

/* Who loses its pages when they run out: lowest priority, then latest arrival. */
static void test_victims(void **state)
{
    (void)state;
    static const struct {
        int32_t priority[3];
        uint64_t victim;
    } rows[] = {{{0, 0, 0}, 3}, {{0, 1, 0}, 2}, {{5, 1, 0}, 1}, {{1, 1, 0}, 2}, {{0, 0, 9}, 3}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_sched_config c = base;
        c.n_pages = 6;
        c.max_len = 24;
        c.prefix_cache = false;
        struct sl_sched *s = open_with(c);
        for (uint64_t id = 1; id <= 3; id++) {
            struct sl_sched_request r = request(id, 3, 0, 20);
            r.priority = rows[i].priority[id - 1];
            submit(s, &r);
        }
        uint32_t n = 0;
        while (!stats(s).n_preempted && n++ < 30) { /* all grow at the same pace */
            sl_sched_plan(s, 64, 0);
            if (!stats(s).n_preempted)
                commit(s, 0);
        }
        commit(s, 0);
        const struct sl_plan *next = sl_sched_plan(s, 64, 0);
        for (uint64_t id = 1; id <= 3; id++)
            if ((rows_of(next, id) == 0) != (id == rows[i].victim))
                fail_msg("row %zu: sequence %u has %u rows", i, (uint32_t)id, rows_of(next, id));
        commit(s, 0);
        sl_sched_close(s);
    }
}

/* Two sequences that together exceed the pool both finish, whatever caching and budget. */
static void test_two_exceed_the_pool(void **state)
{
    (void)state;
    for (uint32_t pages = 8; pages <= 16; pages++)
        for (uint32_t cache = 0; cache < 2; cache++)
            for (uint32_t budget = 1; budget < 64; budget = budget * 3 + 1) {
                struct sl_sched_config c = base;
                c.n_pages = pages;
                c.max_len = 32;
                c.prefix_cache = cache;
                struct sl_sched *s = open_with(c);
                submit_plain(s, 1, 8, 24);
                submit_plain(s, 2, 8, 24);
                uint32_t n = 0;
                while (step(s, budget))
                    assert_true(++n < 2000);
                expect_ended(s, 1, SL_END_LENGTH);
                expect_ended(s, 2, SL_END_LENGTH);
                assert_int_equal(stats(s).pages_free, pages);
                assert_true(pages >= 14 || budget < 16 || stats(s).n_preempted > 0);
                sl_sched_close(s);
            }
}

/* The hook: preempted at the next plan, computed again from its own cached pages. */
static void test_force_preempt(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    submit_plain(s, 1, 10, 20);
    step(s, 64);
    step(s, 64); /* 12 tokens, 11 computed: two full pages */
    sl_sched_force_preempt(s, 1);
    const struct sl_plan *p = sl_sched_plan(s, 64, 0);
    assert_int_equal(stats(s).n_preempted, 1);
    assert_int_equal(sl_sched_cached_tokens(s, 1), 8);
    assert_int_equal(p->n_tok, 4);
    assert_int_equal(p->n_logits, 1);
    commit(s, 0);
    sl_sched_close(s);
}

/* Preempted SL_SCHED_SHIELD times, the lowest priority keeps its pages and the others give way. */
static void test_shield(void **state)
{
    (void)state;
    for (uint32_t n_forced = 0; n_forced <= SL_SCHED_SHIELD; n_forced++) {
        struct sl_sched_config c = base;
        c.n_pages = 6;
        c.max_len = 24;
        c.prefix_cache = false;
        struct sl_sched *s = open_with(c);
        struct sl_sched_request r = request(1, 3, 0, 20);
        r.priority = 9;
        submit(s, &r);
        for (uint32_t i = 0; i < n_forced; i++) {
            sl_sched_force_preempt(s, 1);
            step(s, 64);
        }
        for (uint32_t i = n_forced; i < SL_SCHED_SHIELD; i++)
            step(s, 64);
        submit_plain(s, 2, 3, 20); /* arrived later, but first by priority */
        const struct sl_plan *p = sl_sched_plan(s, 64, 0);
        uint64_t n_before = stats(s).n_preempted;
        while (stats(s).n_preempted == n_before) {
            commit(s, 0);
            p = sl_sched_plan(s, 64, 0);
        }
        bool shielded = n_before >= SL_SCHED_SHIELD;
        assert_int_equal(rows_of(p, 1) != 0, shielded);
        assert_int_equal(rows_of(p, 2) != 0, !shielded);
        commit(s, 0);
        sl_sched_close(s);
    }
}

/* --- order ------------------------------------------------------------------------------------ */

/* With one place, the order in which requests run. */
static void test_order(void **state)
{
    (void)state;
    static const struct {
        int32_t priority;
        uint64_t tenant;
        uint32_t n;
    } queue[] = {{1, 1, 8}, {0, 1, 20}, {0, 1, 8}, {0, 2, 8}, {0, 2, 8}, {-1, 3, 4}, {0, 3, 4}};
    /* -1 first; then tenants by tokens served: 3 has 4, so 1 and 2 (nothing yet) go first */
    static const uint64_t order[] = {6, 2, 4, 7, 5, 3, 1};
    struct sl_sched_config c = base;
    c.max_seqs = 1;
    struct sl_sched *s = open_with(c);
    for (uint32_t i = 0; i < 7; i++) {
        struct sl_sched_request r = request(i + 1, queue[i].n, i * 1000, 1);
        r.priority = queue[i].priority;
        r.tenant = queue[i].tenant;
        submit(s, &r);
    }
    for (uint32_t i = 0; i < 7; i++) {
        const struct sl_plan *p = sl_sched_plan(s, 64, 0);
        assert_int_equal(p->id[0], order[i]);
        commit(s, 0);
    }
    sl_sched_close(s);
}

/* A tenant with a hundred requests does not hold back one with ten: while both wait, the tokens
 * served to them differ by one request at most. A third that comes late gets no arrears. */
static void test_fair_between_tenants(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.max_seqs = 1;
    struct sl_sched *s = open_with(c);
    uint32_t served[3] = {0}, waiting[3] = {100, 10, 0};
    for (uint64_t i = 0; i < 110; i++) {
        struct sl_sched_request r = request(i, 8, (uint32_t)i * 1000, 2);
        r.tenant = i >= 100;
        submit(s, &r);
    }
    const struct sl_plan *p;
    struct sl_ended e;
    for (uint32_t n = 0; (p = sl_sched_plan(s, 64, 0)); n++) {
        uint64_t id = p->id[0];
        uint32_t tenant = id >= 200 ? 2 : id >= 100;
        served[tenant] += p->n_tok;
        commit(s, 0);
        while (sl_sched_next_ended(s, &e))
            waiting[e.id >= 200 ? 2 : e.id >= 100]--;
        if (waiting[0] && waiting[1])
            assert_true(served[0] <= served[1] + 9 && served[1] <= served[0] + 9);
        if (n == 30) {
            for (uint64_t i = 200; i < 205; i++) {
                struct sl_sched_request r = request(i, 8, (uint32_t)i * 1000, 2);
                r.tenant = 2;
                submit(s, &r);
            }
            waiting[2] = 5;
            served[2] = served[1] < served[0] ? served[1] : served[0];
        }
        if (n > 30 && waiting[1] && waiting[2])
            assert_true(served[2] <= served[1] + 18 && served[1] <= served[2] + 18);
    }
    assert_int_equal(waiting[0] + waiting[1] + waiting[2], 0);
    sl_sched_close(s);
}

/* Under an endless stream of urgent work a request of the lowest priority is admitted after
 * SL_SCHED_AGE_NS and SL_SCHED_AGE_TURN * (p + 1) admissions, p older ones waiting. */
static void test_aging(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.max_seqs = 1;
    struct sl_sched *s = open_with(c);
    uint32_t done = 0, admissions = 0;
    uint64_t next = 100;
    struct sl_ended e;
    for (uint64_t id = 1; id <= 3; id++) {
        struct sl_sched_request r = request(id, 4, 0, 1);
        r.priority = 9;
        submit(s, &r);
    }
    for (uint64_t now = 0; done < 3; now += SL_SCHED_AGE_NS / 16) {
        struct sl_sched_request r = request(next, 4, 0, 1);
        while (next < 105 + now / (SL_SCHED_AGE_NS / 16)) {
            r.id = next++;
            assert_int_equal(sl_sched_submit(s, &r, now, NULL), SL_OK);
        }
        const struct sl_plan *p = sl_sched_plan(s, 64, now);
        admissions += now >= SL_SCHED_AGE_NS;
        assert_true(admissions <= SL_SCHED_AGE_TURN * 3);
        if (p->id[0] < 100) {
            assert_true(now >= SL_SCHED_AGE_NS);
            assert_int_equal(p->id[0], ++done); /* oldest first */
            assert_true(admissions <= SL_SCHED_AGE_TURN * done);
        }
        commit(s, now);
        while (sl_sched_next_ended(s, &e))
            ;
    }
    sl_sched_close(s);
}

/* Tenants by the thousand: the table recycles the idle ones. */
static void test_many_tenants(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.queue_max = 4;
    struct sl_sched *s = open_with(c);
    struct sl_ended e;
    for (uint64_t id = 0; id < 3000; id++) {
        struct sl_sched_request r = request(id, 4, 0, 1);
        r.tenant = id;
        submit(s, &r);
        assert_true(step(s, 64));
        while (sl_sched_next_ended(s, &e))
            ;
    }
    sl_sched_close(s);
}

/* --- endings ---------------------------------------------------------------------------------- */

static void test_cancel(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    sl_sched_cancel(s, 77); /* unknown: nothing */
    submit_plain(s, 1, 4, 9);
    sl_sched_cancel(s, 1); /* waiting: at once */
    expect_ended(s, 1, SL_END_CANCELLED);
    submit_plain(s, 2, 4, 9);
    step(s, 64);
    sl_sched_cancel(s, 2); /* running, no step in flight: at once */
    expect_ended(s, 2, SL_END_CANCELLED);
    assert_int_equal(stats(s).pages_free, 64);
    submit_plain(s, 3, 4, 9);
    submit_plain(s, 4, 4, 9);
    sl_sched_plan(s, 64, 0);
    sl_sched_cancel(s, 3); /* in flight: at commit */
    struct sl_ended e;
    assert_false(sl_sched_next_ended(s, &e));
    assert_int_equal(stats(s).pages_free, 62);
    commit(s, 0);
    expect_ended(s, 3, SL_END_CANCELLED);
    assert_int_equal(stats(s).pages_free, 63);
    sl_sched_plan(s, 64, 0);
    sl_sched_cancel(s, 4); /* the engine's own word comes first: not reported again */
    struct sl_sampled_token stop = {2, SL_END_STOP};
    sl_sched_commit(s, &stop, 0);
    assert_false(sl_sched_next_ended(s, &e));
    assert_true(sl_sched_idle(s));
    sl_sched_close(s);
}

static void test_deadlines(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.max_seqs = 1;
    struct sl_sched *s = open_with(c);
    static const uint64_t deadline_ns[] = {300, 0, 200, 100};
    for (uint64_t i = 0; i < 4; i++) {
        struct sl_sched_request r = request(i + 1, 4, 0, 50);
        r.deadline_ns = deadline_ns[i];
        submit(s, &r);
    }
    assert_int_equal(sl_sched_next_deadline(s), 100);
    assert_non_null(sl_sched_plan(s, 64, 99));
    commit(s, 100); /* 4 waits and leaves at the commit */
    expect_ended(s, 4, SL_END_DEADLINE);
    assert_non_null(sl_sched_plan(s, 64, 250)); /* 3 at the plan */
    expect_ended(s, 3, SL_END_DEADLINE);
    assert_int_equal(sl_sched_next_deadline(s), 300);
    commit(s, 1000); /* 1 runs */
    expect_ended(s, 1, SL_END_DEADLINE);
    assert_int_equal(sl_sched_next_deadline(s), UINT64_MAX);
    assert_int_equal(stats(s).pages_free, 64);
    const struct sl_plan *p = sl_sched_plan(s, 64, 1000);
    assert_int_equal(p->id[0], 2);
    commit(s, 1000);
    sl_sched_close(s);
}

/* A sequence the engine lets go on ends at max_new, max_len, or the pages there are. */
static void test_length(void **state)
{
    (void)state;
    static const struct {
        uint32_t max_new, max_len, n_pages, n_steps;
    } rows[] = {{5, 64, 64, 5}, {0, 12, 64, 8}, {50, 12, 64, 8}, {0, 64, 2, 5}, {1, 64, 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_sched_config c = base;
        c.max_len = rows[i].max_len;
        c.n_pages = rows[i].n_pages;
        struct sl_sched *s = open_with(c);
        submit_plain(s, 1, 4, rows[i].max_new);
        uint32_t n = 0;
        while (step(s, 64))
            n++;
        assert_int_equal(n, rows[i].n_steps);
        expect_ended(s, 1, SL_END_LENGTH);
        sl_sched_close(s);
    }
}

/* --- pages from and to elsewhere ---------------------------------------------------------------
 */

static void test_prefill_only(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    struct sl_sched_request r = request(1, 4 * PAGE + 1, 7, 1);
    r.prefill_only = true;
    submit(s, &r);
    for (uint32_t i = 0; i < 3; i++) { /* 17 rows by 6; none of them is sampled */
        const struct sl_plan *p = sl_sched_plan(s, 6, 0);
        assert_int_equal(rows_of(p, 1), i < 2 ? 6 : 5);
        assert_int_equal(p->n_logits, 0);
        commit(s, 0);
    }
    expect_ended(s, 1, SL_END_LENGTH);
    assert_true(sl_sched_idle(s));
    assert_int_equal(stats(s).pages_free, base.n_pages);
    struct sl_sched_request next = request(2, 4 * PAGE + 1, 7, 3);
    submit(s, &next);
    const struct sl_plan *p = sl_sched_plan(s, ROWS_MAX, 0);
    assert_int_equal(rows_of(p, 2), 1); /* the rest was cached */
    commit(s, 0);
    sl_sched_close(s);
}

/* A pinned page is handed to nobody, and half of all pages at most are pinned. */
static void test_pins(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.n_pages = 8;
    c.prefix_cache = false;
    struct sl_sched *s = open_with(c);
    submit_plain(s, 1, 6 * PAGE, 1);
    const struct sl_plan *p = sl_sched_plan(s, ROWS_MAX, 0);
    uint32_t pages[6], n = 0;
    for (uint32_t i = 0; i < 6; i++)
        n += sl_sched_pin(s, pages[i] = p->pages[i]);
    assert_int_equal(n, 4);
    commit(s, 0);
    expect_ended(s, 1, SL_END_LENGTH);
    assert_int_equal(stats(s).pages_held, 4);
    assert_int_equal(stats(s).pages_free, 4);
    submit_plain(s, 2, 4 * PAGE, 8);
    p = sl_sched_plan(s, ROWS_MAX, 0);
    assert_int_equal(p->page_start[1], 4);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t k = 0; k < 4; k++)
            assert_int_not_equal(p->pages[i], pages[k]);
    commit(s, 0);
    assert_null(sl_sched_plan(s, ROWS_MAX, 0)); /* alone, and the fifth page is held: it waits */
    check(s);
    sl_sched_unpin(s, pages[0]);
    assert_int_equal(rows_of(sl_sched_plan(s, ROWS_MAX, 0), 2), 1);
    commit(s, 0);
    for (uint32_t k = 1; k < 4; k++)
        sl_sched_unpin(s, pages[k]);
    check(s);
    assert_int_equal(stats(s).pages_held, 0);
    sl_sched_close(s);
}

/* A reservation leaves what running prompts were promised, and a page for each. */
static void test_reserve(void **state)
{
    (void)state;
    struct sl_sched_config c = base;
    c.n_pages = 20;
    struct sl_sched *s = open_with(c);
    uint32_t pages[20];
    submit_plain(s, 1, 8 * PAGE, 5); /* 8 pages, 2 of them in the first step */
    assert_non_null(sl_sched_plan(s, 2 * PAGE, 0));
    commit(s, 0);
    assert_int_equal(sl_sched_reserve(s, 20, pages), 10); /* half; 8 would be promised */
    check(s);
    assert_int_equal(sl_sched_reserve(s, 1, pages + 10), 0);
    for (uint32_t i = 0; i < 10; i++)
        sl_sched_unpin(s, pages[i]);
    submit_plain(s, 2, 9 * PAGE, 5);
    assert_non_null(sl_sched_plan(s, 7 * PAGE, 0)); /* both run: 17 pages and one for each */
    commit(s, 0);
    assert_int_equal(sl_sched_reserve(s, 20, pages), 1);
    sl_sched_unpin(s, pages[0]);
    check(s);
    sl_sched_close(s);
}

static void test_import(void **state)
{
    (void)state;
    struct sl_sched *s = open_with(base);
    struct sl_sched_request r = request(1, 3 * PAGE + 1, 7, 2);
    uint8_t keys[3][32];
    const uint8_t(*k)[32] = (const uint8_t(*)[32])keys;
    uint32_t pages[3];
    assert_true(sl_prefix_keys(PAGE, r.salt, r.tokens, 3, keys));
    assert_int_equal(sl_sched_n_cached(s, k, r.tokens, 3), 0);
    assert_int_equal(sl_sched_reserve(s, 3, pages), 3);
    for (uint32_t i = 0; i < 2; i++)
        assert_true(
            sl_sched_import(s, pages[i], i ? keys[i - 1] : NULL, keys[i], r.tokens + i * PAGE));
    sl_sched_unpin(s, pages[2]); /* did not come */
    check(s);
    assert_int_equal(sl_sched_n_cached(s, k, r.tokens, 3), 2);
    assert_int_equal(sl_sched_reserve(s, 1, pages), 1);
    assert_false(sl_sched_import(s, pages[0], NULL, keys[0], r.tokens)); /* there already */
    check(s);
    submit(s, &r);
    const struct sl_plan *p = sl_sched_plan(s, ROWS_MAX, 0);
    assert_int_equal(rows_of(p, 1), PAGE + 1);
    commit(s, 0);
    assert_int_equal(stats(s).pages_held, 0);
    sl_sched_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_only),
        cmocka_unit_test(test_pins),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_import),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_submit_refuses),
        cmocka_unit_test(test_queue_and_ids),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_decodes_before_prefills),
        cmocka_unit_test(test_budget_rotates),
        cmocka_unit_test(test_resumed),
        cmocka_unit_test(test_cache_hits),
        cmocka_unit_test(test_cache_after_commit),
        cmocka_unit_test(test_equal_prompts),
        cmocka_unit_test(test_cache_not_after_failure),
        cmocka_unit_test(test_cache_eviction),
        cmocka_unit_test(test_victims),
        cmocka_unit_test(test_two_exceed_the_pool),
        cmocka_unit_test(test_force_preempt),
        cmocka_unit_test(test_shield),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_fair_between_tenants),
        cmocka_unit_test(test_aging),
        cmocka_unit_test(test_many_tenants),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
