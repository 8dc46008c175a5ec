/* The engine computes each request as if it were alone: whatever runs beside it, however its prompt
 * is cut, after a preemption and when it is resumed elsewhere; and between plan and commit its
 * thread allocates nothing. */
#include "golden/tiny_model.h"

#include <sluice/base/containers.h>
#include <sluice/engine/engine.h>
#include <sluice/files/gguf.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

#define N_REQUESTS 12
#define TOKENS_MAX 40

struct answer {
    uint32_t tokens[TOKENS_MAX];
    float logprobs[TOKENS_MAX];
    uint32_t n;
    enum sl_end end;
    enum sl_status status;
};

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;

static int setup(void **state)
{
    (void)state;
    struct sl_err err;
    struct tiny_model m = tiny_model_default();
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
                                     .max_len = 512,
                                     .kv_dtype = SL_F16,
                                     .prefix_cache = true};
}

static struct sl_engine *open_engine(const struct sl_engine_config *cfg)
{
    struct sl_engine *e;
    struct sl_err err;
    if (sl_engine_open(cfg, &e, &err))
        fail_msg("%s", err.msg);
    return e;
}

/* Request i: its own prompt, every second one sampled, some with penalties. */
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

/* Takes outputs until `n` requests have ended; answers by id - 1. */
static void collect(struct sl_engine *e, struct answer *a, uint32_t n)
{
    while (n) {
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
            }
            if (o->end) {
                to->end = o->end;
                to->status = o->status;
                n--;
            }
        }
        sl_engine_release(e, s);
    }
}

static void run_all(struct sl_engine *e, struct answer *a, bool together, bool backwards)
{
    static uint32_t prompts[N_REQUESTS][128];
    memset(a, 0, N_REQUESTS * sizeof *a);
    for (uint32_t k = 0; k < N_REQUESTS; k++) {
        uint32_t i = backwards ? N_REQUESTS - 1 - k : k;
        struct sl_engine_request q = request(i, prompts[i]);
        submit(e, &q);
        if (!together)
            collect(e, a, 1);
    }
    if (together)
        collect(e, a, N_REQUESTS);
}

static struct answer expected[N_REQUESTS];

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

static void one_engine(struct sl_engine_config cfg, const char *why)
{
    struct answer a[N_REQUESTS];
    struct sl_engine *e = open_engine(&cfg);
    run_all(e, a, false, false);
    expect_same(a, why);
    run_all(e, a, true, false);
    expect_same(a, why);
    run_all(e, a, true, true);
    expect_same(a, why);
    sl_engine_close(e);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void answers_have_substance(void **state)
{
    (void)state;
    struct sl_engine_config cfg = config();
    cfg.isa = SL_ISA_SCALAR;
    cfg.prefix_cache = false;
    struct sl_engine *e = open_engine(&cfg);
    run_all(e, expected, false, false);
    sl_engine_close(e);
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(expected[i].n, 12 + i);
        assert_int_equal(expected[i].end, SL_END_LENGTH);
        distinct += expected[i].tokens[3] != expected[0].tokens[3];
    }
    assert_true(distinct > N_REQUESTS / 2);
}

static void batch_chunk_threads_isa_do_not_matter(void **state)
{
    (void)state;
    struct sl_engine_config cfg = config();
    one_engine(cfg, "default");
    cfg.n_threads = 3;
    one_engine(cfg, "3 threads");
    cfg.fixed_chunk = 7;
    one_engine(cfg, "chunks of 7");
    cfg.prefix_cache = false;
    cfg.page_size = 64;
    one_engine(cfg, "no prefix cache, pages of 64");
}

static void preemption_does_not_matter(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS];
    struct sl_engine_config cfg = config();
    struct sl_engine_info info;
    struct sl_engine_stats stats;
    struct sl_engine *e = open_engine(&cfg);
    sl_engine_info(e, &info);
    sl_engine_close(e);
    cfg.kv_bytes = info.kv_bytes / info.n_pages * 12; /* 192 positions: two requests or so */
    cfg.max_len = 144;
    cfg.page_size = 4; /* so that answers grow by several pages */
    e = open_engine(&cfg);
    run_all(e, a, true, false);
    expect_same(a, "few pages");
    sl_engine_stats(e, &stats);
    assert_true(stats.sched.n_preempted > 0);
    sl_engine_close(e);
}

/* A stream that lost its worker: prompt and tokens so far go to another engine. */
static void a_resumed_stream_goes_on_exactly(void **state)
{
    (void)state;
    struct sl_engine_config cfg = config();
    struct sl_engine *e = open_engine(&cfg);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        uint32_t prompt[256];
        struct answer a[N_REQUESTS] = {0};
        struct sl_engine_request q = request(i, prompt);
        uint32_t before = 1 + i % 9;
        memcpy(prompt + q.seq.n_tokens, expected[i].tokens, before * sizeof(uint32_t));
        q.seq.n_tokens += before;
        submit(e, &q);
        collect(e, a, 1);
        assert_int_equal(a[i].n + before, expected[i].n);
        assert_memory_equal(a[i].tokens, expected[i].tokens + before, a[i].n * sizeof(uint32_t));
        assert_memory_equal(a[i].logprobs, expected[i].logprobs + before, a[i].n * sizeof(float));
    }
    sl_engine_close(e);
}

static void cancel_frees_everything(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS] = {0};
    static uint32_t prompts[N_REQUESTS][128];
    struct sl_engine_config cfg = config();
    struct sl_engine_stats stats;
    struct sl_engine *e = open_engine(&cfg);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct sl_engine_request q = request(i, prompts[i]);
        q.sampling.max_tokens = q.seq.max_new = 400;
        submit(e, &q);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        sl_engine_cancel(e, i + 1);
    collect(e, a, N_REQUESTS);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        assert_int_equal(a[i].end, SL_END_CANCELLED);
    do
        sl_engine_stats(e, &stats);
    while (stats.sched.running || stats.sched.waiting);
    assert_int_equal(stats.sched.pages_free, stats.sched.pages_total);
    sl_engine_close(e);
}

static void deadlines_end_a_request(void **state)
{
    (void)state;
    struct answer a[N_REQUESTS] = {0};
    uint32_t prompt[128];
    struct sl_engine_config cfg = config();
    struct sl_engine *e = open_engine(&cfg);
    struct sl_engine_request q = request(0, prompt);
    q.seq.deadline_ns = 1; /* long past */
    submit(e, &q);
    collect(e, a, 1);
    assert_int_equal(a[0].end, SL_END_DEADLINE);
    sl_engine_close(e);
}

static void bad_requests_are_refused(void **state)
{
    (void)state;
    uint32_t prompt[600] = {0};
    struct sl_engine_config cfg = config();
    struct sl_err err;
    struct sl_engine *e = open_engine(&cfg);
    struct sl_engine_request q = request(0, prompt);
    q.seq.n_tokens = q.seq.n_prompt = 0;
    assert_int_equal(sl_engine_submit(e, &q, &err), SL_INVALID);
    q.seq.n_tokens = q.seq.n_prompt = 512;
    assert_int_equal(sl_engine_submit(e, &q, &err), SL_TOO_LONG);
    q = request(0, prompt);
    prompt[2] = 1 << 30;
    assert_int_equal(sl_engine_submit(e, &q, &err), SL_INVALID);
    q = request(0, prompt);
    q.sampling.top_p = 0;
    assert_int_equal(sl_engine_submit(e, &q, &err), SL_INVALID);
    assert_string_equal(err.param, "top_p");
    sl_engine_close(e);
    cfg.backend = "abacus";
    assert_int_equal(sl_engine_open(&cfg, &e, &err), SL_UNSUPPORTED);
    cfg.backend = "cuda-emu";
    cfg.cuda_plugin = "/nonexistent.so";
    assert_int_equal(sl_engine_open(&cfg, &e, &err), SL_NO_MEMORY);
    assert_string_equal(err.param, "backend");
    cfg = config();
    cfg.page_size = 48;
    assert_int_equal(sl_engine_open(&cfg, &e, &err), SL_USAGE);
    cfg = config();
    cfg.kv_bytes = 1;
    assert_int_equal(sl_engine_open(&cfg, &e, &err), SL_NO_MEMORY);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    if (!COUNTS_ALLOCATIONS) {
        print_message("skipped: a sanitizer owns malloc\n");
        skip();
    }
    struct answer a[N_REQUESTS];
    struct sl_engine_config cfg = config();
    cfg.n_threads = 2;
    struct sl_engine *e = open_engine(&cfg);
    n_allocs_in_step = 0;
    run_all(e, a, true, false);
    assert_int_equal(n_allocs_in_step, 0);
    sl_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_have_substance),
        cmocka_unit_test(batch_chunk_threads_isa_do_not_matter),
        cmocka_unit_test(preemption_does_not_matter),
        cmocka_unit_test(a_resumed_stream_goes_on_exactly),
        cmocka_unit_test(cancel_frees_everything),
        cmocka_unit_test(deadlines_end_a_request),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
