/* A model sharded over ranks gives the bits of one engine: whatever runs beside a request, however
 * its prompt is cut, after preemption, and after a rank was lost in the middle of it. Every rank is
 * an engine of its own here, on threads of one process. */
#include "golden/tiny_model.h"

#include <sluice/base/containers.h>
#include <sluice/engine/engine.h>
#include <sluice/files/gguf.h>
#include <sluice/transport/bus.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* --- counting allocations --------------------------------------------------------------------- */

static _Atomic uint64_t n_allocs_in_step;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);

void *malloc(size_t n)
{
    n_allocs_in_step += sl_engine_in_step();
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t m)
{
    n_allocs_in_step += sl_engine_in_step();
    return __libc_calloc(n, m);
}
void *realloc(void *p, size_t n)
{
    n_allocs_in_step += sl_engine_in_step();
    return __libc_realloc(p, n);
}
#else
#define COUNTS_ALLOCATIONS 0
#endif

/* --- a rig ------------------------------------------------------------------------------------ */

enum { N_REQUESTS = 10, TOKENS_MAX = 40, RANKS_MAX = 6 };

struct answer {
    uint32_t tokens[TOKENS_MAX];
    float logprobs[TOKENS_MAX];
    uint32_t n;
    enum sl_end end;
    enum sl_status status;
};

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;
static struct answer expected[N_REQUESTS];

static int setup(void **state)
{
    (void)state;
    struct sl_err err;
    struct tiny_model m = tiny_model_three();
    if (tiny_model_buf(&m, &model_bytes, &err) ||
        sl_gguf_parse(model_bytes.data, model_bytes.len, false, &gguf, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_gguf_close(gguf);
    sl_buf_free(&model_bytes);
    return 0;
}

static struct sl_engine_config config(void)
{
    return (struct sl_engine_config){.gguf = gguf,
                                     .backend = "cpu",
                                     .n_threads = 1,
                                     .max_seqs = 8,
                                     .max_len = 256,
                                     .kv_dtype = SL_F16,
                                     .prefix_cache = true};
}

/* Engines of one group; e[0] leads. */
struct rig {
    struct sl_engine_config cfg;
    uint32_t tp, pp;
    struct sl_buf rendezvous;
    struct sl_engine *e[RANKS_MAX];
};

static void open_rank(struct rig *r, uint32_t rank)
{
    struct sl_err err;
    struct sl_engine_config cfg = r->cfg;
    cfg.place = (struct sl_engine_place){.rank = rank,
                                         .tp = r->tp,
                                         .pp = r->pp,
                                         .rendezvous = r->rendezvous.data,
                                         .op_timeout_ms = 20000}; /* sanitizers are slow */
    if (sl_engine_open(&cfg, &r->e[rank], &err))
        fail_msg("rank %u: %s", rank, err.msg);
}

static void open_rig(struct rig *r, uint32_t tp, uint32_t pp, const struct sl_engine_config *cfg)
{
    struct sl_err err;
    *r = (struct rig){.cfg = *cfg, .tp = tp, .pp = pp};
    if (sl_bus_ipc_make("/tmp", &r->rendezvous, &err))
        fail_msg("%s", err.msg);
    for (uint32_t i = tp * pp; i-- > 0;)
        open_rank(r, i);
}

static void close_rig(struct rig *r)
{
    for (uint32_t i = 0; i < r->tp * r->pp; i++)
        if (r->e[i])
            sl_engine_close(r->e[i]);
    sl_bus_ipc_remove(r->rendezvous.data);
    sl_buf_free(&r->rendezvous);
}

/* Looks until it holds, for a minute at most. */
static struct sl_engine_group wait_state(struct sl_engine *e, enum sl_group_state state,
                                         uint64_t n_formed)
{
    struct sl_engine_group g;
    for (int i = 0; i < 60000; i++) {
        sl_engine_group(e, &g);
        if (g.state == state && g.n_formed >= n_formed)
            return g;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    fail_msg("state %d, formed %llu times: %s", g.state, (unsigned long long)g.n_formed, g.why.msg);
    return g;
}

/* Request i: its own prompt, some with a common beginning, every second one sampled. */
static struct sl_engine_request request(uint32_t i, uint32_t *prompt)
{
    uint32_t n = 5 + i * 13 % 90;
    for (uint32_t k = 0; k < n; k++)
        prompt[k] = (i % 3 ? i * 31 : 7) % 200 + k * 17 % 50;
    struct sl_engine_request q = {
        .seq = {.id = i + 1, .tokens = prompt, .n_tokens = n, .n_prompt = n, .tenant = i % 3}};
    q.sampling = sl_sampling_default();
    q.sampling.max_tokens = 12 + i;
    q.seq.max_new = q.sampling.max_tokens;
    q.sampling.want_logprob = true;
    q.sampling.ignore_eos = true;
    q.sampling.seed = 99 + i;
    q.sampling.temperature = i % 2 ? 0.0f : 1.1f;
    q.sampling.repetition_penalty = i % 4 ? 1.0f : 1.2f;
    return q;
}

static void submit(struct sl_engine *e, const struct sl_engine_request *q)
{
    struct sl_err err;
    if (sl_engine_submit(e, q, &err))
        fail_msg("request %llu: %s", (unsigned long long)q->seq.id, err.msg);
}

/* Takes outputs until `n` requests have ended or n_tokens came; answers by id - 1. Returns how many
 * have ended. */
static uint32_t collect(struct sl_engine *e, struct answer *a, uint32_t n, uint32_t n_tokens)
{
    uint32_t n_ended = 0;
    while (n_ended < n && n_tokens) {
        struct sl_engine_step *s = sl_engine_poll(e);
        if (!s) {
            sl_engine_wait(e, 1000);
            continue;
        }
        for (uint32_t i = 0; i < s->n_outs; i++) {
            const struct sl_engine_out *o = &s->outs[i];
            struct answer *to = &a[o->id - 1];
            if (o->has_token && to->n < TOKENS_MAX) {
                to->tokens[to->n] = o->token.token;
                to->logprobs[to->n++] = o->token.logprob;
                n_tokens -= n_tokens != 0;
            }
            if (o->end) {
                to->end = o->end;
                to->status = o->status;
                n_ended++;
            }
        }
        sl_engine_release(e, s);
    }
    return n_ended;
}

static void submit_all(struct sl_engine *e, struct answer *a)
{
    static uint32_t prompts[N_REQUESTS][128];
    memset(a, 0, N_REQUESTS * sizeof *a);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct sl_engine_request q = request(i, prompts[i]);
        submit(e, &q);
    }
}

static void expect_same(const struct answer *a, const char *why)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        bool same = a[i].n == expected[i].n && a[i].end == expected[i].end &&
                    !memcmp(a[i].tokens, expected[i].tokens, a[i].n * sizeof(uint32_t)) &&
                    !memcmp(a[i].logprobs, expected[i].logprobs, a[i].n * sizeof(float));
        if (!same)
            fail_msg("request %u differs: %s", i, why);
    }
}

static void expect_idle(struct sl_engine *e)
{
    struct sl_engine_stats s;
    for (int i = 0; i < 60000; i++) {
        sl_engine_stats(e, &s);
        if (!s.sched.running && !s.sched.waiting && s.sched.pages_free == s.sched.pages_total)
            return;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    fail_msg("%u running, %u waiting, %u of %u pages free", s.sched.running, s.sched.waiting,
             s.sched.pages_free, s.sched.pages_total);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void one_engine(void **state)
{
    (void)state;
    struct sl_err err;
    struct sl_engine *e;
    struct sl_engine_config cfg = config();
    cfg.prefix_cache = false;
    if (sl_engine_open(&cfg, &e, &err))
        fail_msg("%s", err.msg);
    submit_all(e, expected);
    collect(e, expected, N_REQUESTS, UINT32_MAX);
    sl_engine_close(e);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_int_equal(expected[i].n, 12 + i);
}

static void layouts_do_not_matter(void **state)
{
    (void)state;
    static const struct {
        uint32_t tp, pp, chunk, page_size, n_threads;
        bool no_cache;
    } t[] = {{2, 1, 0, 16, 1, false}, {3, 1, 7, 16, 1, false}, {1, 2, 0, 64, 2, true},
             {1, 3, 5, 16, 1, false}, {2, 2, 0, 16, 1, false}, {3, 2, 11, 16, 1, true},
             {2, 3, 0, 8, 1, false}};
    struct answer a[N_REQUESTS];
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        char why[64];
        struct rig r;
        struct sl_engine_config cfg = config();
        cfg.fixed_chunk = t[i].chunk;
        cfg.page_size = t[i].page_size;
        cfg.n_threads = t[i].n_threads;
        cfg.prefix_cache = !t[i].no_cache;
        snprintf(why, sizeof why, "tp %u, pp %u", t[i].tp, t[i].pp);
        open_rig(&r, t[i].tp, t[i].pp, &cfg);
        for (int again = 0; again < 2; again++) { /* the second time from the prefix cache */
            submit_all(r.e[0], a);
            collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
            expect_same(a, why);
        }
        close_rig(&r);
    }
}

static void preemption_does_not_matter(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_plan *plan = malloc(sizeof *plan);
    struct sl_engine_stats stats;
    struct sl_err err;
    struct sl_engine_config cfg = config();
    cfg.max_len = 144;
    cfg.page_size = 4;
    cfg.place = (struct sl_engine_place){.tp = 2, .pp = 1};
    assert_non_null(plan);
    assert_int_equal(sl_engine_plan(&cfg, plan, &err), SL_OK);
    /* Two requests or so; rank 1 has two of three KV heads and so the larger pages. */
    uint64_t most = plan->ranks[0].kv_bytes > plan->ranks[1].kv_bytes ? plan->ranks[0].kv_bytes
                                                                      : plan->ranks[1].kv_bytes;
    cfg.kv_bytes = most / plan->limits.n_pages * 48;
    free(plan);
    open_rig(&r, 2, 1, &cfg);
    submit_all(r.e[0], a);
    collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
    expect_same(a, "few pages");
    sl_engine_stats(r.e[0], &stats);
    assert_true(stats.sched.n_preempted > 0);
    close_rig(&r);
}

static void cancels_free_pages(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_config cfg = config();
    open_rig(&r, 2, 1, &cfg);
    submit_all(r.e[0], a);
    uint32_t n = collect(r.e[0], a, N_REQUESTS, 20);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        sl_engine_cancel(r.e[0], i + 1);
    collect(r.e[0], a, N_REQUESTS - n, UINT32_MAX);
    expect_idle(r.e[0]);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (a[i].end == SL_END_CANCELLED)
            assert_memory_equal(a[i].tokens, expected[i].tokens, a[i].n * sizeof(uint32_t));
    submit_all(r.e[0], a);
    collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
    expect_same(a, "after cancels");
    close_rig(&r);
}

/* Each rank in turn goes away in the middle and comes back as another engine. */
static void a_lost_rank_is_only_a_pause(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_config cfg = config();
    cfg.fixed_chunk = 24;
    open_rig(&r, 2, 2, &cfg);
    for (uint32_t lost = 1; lost < 4; lost++) {
        submit_all(r.e[0], a);
        uint32_t n = collect(r.e[0], a, N_REQUESTS, lost == 1 ? 1 : 40 * lost);
        sl_engine_close(r.e[lost]);
        sl_engine_regroup(r.e[0]);
        open_rank(&r, lost);
        collect(r.e[0], a, N_REQUESTS - n, UINT32_MAX);
        expect_same(a, "after the loss of a rank");
        expect_idle(r.e[0]);
        wait_state(r.e[0], SL_GROUP_UP, lost + 1);
    }
    close_rig(&r);
}

/* Ranks that do not come back: the rest goes on with larger shards, then rank 0 alone. */
static void fewer_ranks_go_on(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_config cfg = config();
    open_rig(&r, 3, 1, &cfg);
    submit_all(r.e[0], a);
    uint32_t n = collect(r.e[0], a, N_REQUESTS, 30);
    for (uint32_t i = 1; i < 3; i++)
        sl_engine_close(r.e[i]);
    r.e[1] = r.e[2] = NULL;
    wait_state(r.e[0], SL_GROUP_FORMING, 1);
    sl_engine_shrink(r.e[0], 2, 1);
    struct sl_engine_group g = wait_state(r.e[0], SL_GROUP_FORMING, 1);
    while (g.tp != 2)
        g = wait_state(r.e[0], SL_GROUP_FORMING, 1);
    r.tp = 2;
    r.cfg.kv_bytes = g.kv_room_bytes; /* what its supervisor would tell it */
    r.cfg.max_len = g.max_len;
    open_rank(&r, 1);
    n += collect(r.e[0], a, N_REQUESTS - n, 60);
    assert_true(n < N_REQUESTS);
    sl_engine_close(r.e[1]);
    r.e[1] = NULL;
    wait_state(r.e[0], SL_GROUP_FORMING, 2);
    sl_engine_shrink(r.e[0], 1, 1);
    collect(r.e[0], a, N_REQUESTS - n, UINT32_MAX);
    expect_same(a, "with fewer ranks");
    expect_idle(r.e[0]);
    g = wait_state(r.e[0], SL_GROUP_UP, 3);
    assert_int_equal(g.n_ranks, 1);
    r.tp = 1;
    close_rig(&r);
}

/* They come back while rank 0 computes alone: it takes them in, whatever runs; twice. */
static void ranks_come_back(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_config cfg = config();
    open_rig(&r, 3, 1, &cfg);
    wait_state(r.e[0], SL_GROUP_UP, 1);
    for (uint32_t round = 0; round < 2; round++) {
        submit_all(r.e[0], a);
        uint32_t n = collect(r.e[0], a, N_REQUESTS, 30);
        sl_engine_close(r.e[1 + round]);
        sl_engine_regroup(r.e[0]);
        wait_state(r.e[0], SL_GROUP_FORMING, 1 + 2 * round);
        sl_engine_shrink(r.e[0], 1, 1);
        n += collect(r.e[0], a, N_REQUESTS - n, 60);
        assert_true(n < N_REQUESTS);
        struct sl_engine_group g = wait_state(r.e[0], SL_GROUP_UP, 2 + 2 * round);
        assert_int_equal(g.n_ranks, 1);
        collect(r.e[0], a, N_REQUESTS - n, UINT32_MAX);
        expect_same(a, "alone");
        open_rank(&r, 1 + round);
        for (int i = 0; g.n_formed < 3 + 2 * round && i < 10000; i++) { /* whenever they come */
            submit_all(r.e[0], a);
            collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
            expect_same(a, "while ranks come back");
            sl_engine_group(r.e[0], &g);
        }
        g = wait_state(r.e[0], SL_GROUP_UP, 3 + 2 * round);
        assert_int_equal(g.n_ranks, 3);
        submit_all(r.e[0], a);
        collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
        expect_same(a, "with all ranks again");
        expect_idle(r.e[0]);
    }
    close_rig(&r);
}

/* Requests that come while nobody is there wait. */
static void a_group_forms_late(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_group g;
    struct sl_engine_config cfg = config();
    struct sl_err err;
    r = (struct rig){.cfg = cfg, .tp = 2, .pp = 1};
    assert_int_equal(sl_bus_ipc_make("/tmp", &r.rendezvous, &err), SL_OK);
    open_rank(&r, 0);
    submit_all(r.e[0], a);
    sl_engine_cancel(r.e[0], 1);
    collect(r.e[0], a, 1, UINT32_MAX);
    assert_int_equal(a[0].end, SL_END_CANCELLED);
    sl_engine_group(r.e[0], &g);
    assert_int_equal(g.state, SL_GROUP_FORMING);
    open_rank(&r, 1);
    collect(r.e[0], a, N_REQUESTS - 1, UINT32_MAX);
    a[0] = expected[0];
    expect_same(a, "formed late");
    close_rig(&r);
}

static void figures_of_the_ranks(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_rank ranks[SL_LIMIT_ranks];
    struct sl_engine_plan *plan = malloc(sizeof *plan);
    struct sl_err err;
    struct sl_engine_config cfg = config();
    assert_non_null(plan);
    open_rig(&r, 3, 2, &cfg);
    submit_all(r.e[0], a);
    collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
    for (int i = 0; i < 60000; i++) { /* about once a second they are asked */
        assert_int_equal(sl_engine_ranks(r.e[0], ranks), 6);
        if (ranks[5].n_steps && ranks[0].n_steps)
            break;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    cfg.place = (struct sl_engine_place){.tp = 3, .pp = 2};
    assert_int_equal(sl_engine_plan(&cfg, plan, &err), SL_OK);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(ranks[i].rank, i);
        assert_true(ranks[i].pid && ranks[i].comm_bytes && ranks[i].n_op_calls);
        assert_int_equal(ranks[i].weight_bytes, plan->ranks[i].weight_bytes);
        assert_true(ranks[i].kv_bytes <= plan->ranks[i].kv_bytes + 4096 * 64);
    }
    free(plan);
    close_rig(&r);
}

/* Rank 0 is told that the ranks do not fit together, and does not wait for ever. */
static void unequal_ranks_are_refused(void **state)
{
    (void)state;
    struct rig r;
    struct sl_engine_config cfg = config();
    struct sl_err err;
    r = (struct rig){.cfg = cfg, .tp = 2, .pp = 1};
    assert_int_equal(sl_bus_ipc_make("/tmp", &r.rendezvous, &err), SL_OK);
    open_rank(&r, 0);
    r.cfg.max_seqs = 7;
    open_rank(&r, 1);
    struct sl_engine_group g = wait_state(r.e[0], SL_GROUP_ENDED, 0);
    assert_int_equal(g.why.status, SL_CONFIG);
    close_rig(&r);
}

static void followers_leave_with_rank_0(void **state)
{
    (void)state;
    struct rig r;
    struct sl_engine_config cfg = config();
    uint32_t prompt[128];
    struct sl_engine_request q = request(0, prompt);
    struct sl_err err;
    open_rig(&r, 2, 1, &cfg);
    wait_state(r.e[0], SL_GROUP_UP, 1);
    wait_state(r.e[1], SL_GROUP_UP, 1);
    assert_int_equal(sl_engine_submit(r.e[1], &q, &err), SL_UNSUPPORTED);
    sl_engine_close(r.e[0]);
    r.e[0] = NULL;
    assert_int_equal(wait_state(r.e[1], SL_GROUP_ENDED, 1).why.status, SL_OK);
    close_rig(&r);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    if (!COUNTS_ALLOCATIONS)
        skip();
    struct answer a[N_REQUESTS];
    struct rig r;
    struct sl_engine_config cfg = config();
    cfg.prefix_cache = false; /* the crypto library may take memory of its own for a page's key */
    open_rig(&r, 2, 2, &cfg);
    submit_all(r.e[0], a);
    collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
    n_allocs_in_step = 0; /* warm from here on */
    submit_all(r.e[0], a);
    collect(r.e[0], a, N_REQUESTS, UINT32_MAX);
    assert_int_equal(n_allocs_in_step, 0);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_engine),
        cmocka_unit_test(layouts_do_not_matter),
        cmocka_unit_test(preemption_does_not_matter),
        cmocka_unit_test(cancels_free_pages),
        cmocka_unit_test(a_lost_rank_is_only_a_pause),
        cmocka_unit_test(fewer_ranks_go_on),
        cmocka_unit_test(ranks_come_back),
        cmocka_unit_test(a_group_forms_late),
        cmocka_unit_test(figures_of_the_ranks),
        cmocka_unit_test(unequal_ranks_are_refused),
        cmocka_unit_test(followers_leave_with_rank_0),
        cmocka_unit_test(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
