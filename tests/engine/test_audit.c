/* One prefill pass tells an answer of the engine from one that was changed: every token, logprob,
 * parameter and prompt token of it counts, and the first token that differs is named. */
#include "golden/tiny_model.h"

#include <sluice/engine/audit.h>
#include <sluice/files/gguf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define TOKENS_MAX 48
#define PROMPT_MAX 300

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;
static struct sl_audit *audit;

static const struct sl_logit_bias bias[] = {{40, 2.5f}, {41, -100}};
static const uint32_t stop_ids[] = {3, 44};

/* An answer with all it was made from. */
struct answer {
    uint32_t prompt[PROMPT_MAX], tokens[TOKENS_MAX + 1];
    struct sl_sampled logprobs[TOKENS_MAX + 1];
    struct sl_audit_claim claim;
};

static struct sl_engine_config config(void)
{
    return (struct sl_engine_config){.gguf = gguf,
                                     .backend = "cpu",
                                     .n_threads = 2,
                                     .max_seqs = 4,
                                     .max_len = 512,
                                     .kv_dtype = SL_F16,
                                     .prefix_cache = true,
                                     .weights_sha256 = "0123",
                                     .stop_ids = stop_ids,
                                     .n_stop_ids = 1};
}

static const struct row {
    const char *what;
    uint32_t n_prompt, choice;
    struct sl_sampling s;
} rows[] = {
    {"greedy",
     5,
     0,
     {.temperature = 0, .max_tokens = 20, .top_p = 1, .typical_p = 1, .repetition_penalty = 1}},
    {"sampled, long prompt",
     290,
     3,
     {.temperature = 1.1f,
      .top_p = 0.95f,
      .typical_p = 1,
      .repetition_penalty = 1,
      .max_tokens = 40,
      .seed = 99,
      .want_logprob = true,
      .n_logprobs = 3}},
    {"penalties",
     100,
     0,
     {.temperature = 0.8f,
      .top_k = 60,
      .top_p = 1,
      .typical_p = 1,
      .presence_penalty = 0.5f,
      .frequency_penalty = 0.3f,
      .repetition_penalty = 1.3f,
      .max_tokens = 48,
      .seed = 7,
      .want_logprob = true}},
    {"bias, min_tokens, stop id",
     17,
     1,
     {.temperature = 1,
      .top_p = 1,
      .typical_p = 0.9f,
      .min_p = 0.01f,
      .repetition_penalty = 1,
      .min_tokens = 10,
      .max_tokens = 48,
      .seed = 12,
      .bias = bias,
      .n_bias = 2,
      .stop_ids = stop_ids,
      .n_stop_ids = 2,
      .want_logprob = true}},
};
#define N_ROWS (sizeof rows / sizeof *rows)
static struct answer answers[N_ROWS];

static void generate(struct sl_engine *e, const struct row *row, struct answer *a)
{
    struct sl_engine_info info;
    struct sl_err err;
    struct sl_chain chain;
    sl_engine_info(e, &info);
    for (uint32_t i = 0; i < row->n_prompt; i++)
        a->prompt[i] = 5 + i * 31 % 190;
    struct sl_engine_request q = {.sampling = row->s, .choice = row->choice};
    q.seq.tokens = a->prompt;
    q.seq.n_tokens = q.seq.n_prompt = row->n_prompt;
    q.seq.max_new = row->s.max_tokens;
    if (sl_engine_submit(e, &q, &err))
        fail_msg("%s: %s", row->what, err.msg);
    sl_chain_start(&chain, sl_str_of(info.class_name), a->prompt, row->n_prompt, &row->s,
                   row->choice);
    uint32_t n = 0;
    for (bool ended = false; !ended;) {
        struct sl_engine_step *s = sl_engine_poll(e);
        if (!s) {
            sl_engine_wait(e, 1000);
            continue;
        }
        for (uint32_t i = 0; i < s->n_outs; i++) {
            a->logprobs[n] = s->outs[i].token;
            a->tokens[n++] = s->outs[i].token.token;
            sl_chain_add(&chain, s->outs[i].token.token);
            ended |= s->outs[i].end != SL_END_NONE;
        }
        sl_engine_release(e, s);
    }
    a->claim = (struct sl_audit_claim){.class_name = sl_str_of(sl_audit_class(audit)),
                                       .prompt = a->prompt,
                                       .tokens = a->tokens,
                                       .n_prompt = row->n_prompt,
                                       .n_tokens = n,
                                       .choice = row->choice,
                                       .sampling = row->s,
                                       .logprobs = row->s.want_logprob ? a->logprobs : NULL};
    memcpy(a->claim.chain, chain.link, sizeof chain.link);
    assert_string_equal(info.class_name, sl_audit_class(audit));
}

static int setup(void **state)
{
    (void)state;
    struct sl_err err = {0};
    struct sl_engine *e = NULL;
    struct tiny_model m = tiny_model_default();
    if (tiny_model_buf(&m, &model_bytes, &err) ||
        sl_gguf_parse(model_bytes.data, model_bytes.len, false, &gguf, &err))
        goto bad;
    struct sl_engine_config cfg = config(), one = config();
    one.n_threads = 1; /* another machine, so to speak */
    one.isa = SL_ISA_SCALAR;
    if (sl_engine_open(&cfg, &e, &err) || sl_audit_open(&one, 400, &audit, &err))
        goto bad;
    for (size_t i = 0; i < N_ROWS; i++)
        generate(e, &rows[i], &answers[i]);
    sl_engine_close(e);
    return 0;
bad:
    fprintf(stderr, "%s\n", err.msg);
    return -1;
}

static int teardown(void **state)
{
    (void)state;
    sl_audit_close(audit);
    sl_gguf_close(gguf);
    sl_buf_free(&model_bytes);
    return 0;
}

static struct sl_audit_result judge(const struct sl_audit_claim *c)
{
    struct sl_audit_result r;
    struct sl_err err;
    if (sl_audit_run(audit, c, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

static void expect(const struct sl_audit_claim *c, enum sl_audit_verdict want, const char *what)
{
    struct sl_audit_result r = judge(c);
    if (r.verdict != want)
        fail_msg("%s: %s", what, sl_audit_verdict_text(r.verdict));
}

static void what_the_engine_gave_is_authentic(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS; i++) {
        struct sl_audit_result r = judge(&answers[i].claim);
        if (r.verdict)
            fail_msg("%s: %s at %u", rows[i].what, sl_audit_verdict_text(r.verdict), r.at);
        assert_int_not_equal(r.end, SL_END_NONE);
        assert_int_equal(r.n_rows, answers[i].claim.n_prompt + answers[i].claim.n_tokens - 1);
        assert_true(answers[i].claim.n_tokens >= 10);
    }
}

/* Every token of every answer: the first one changed is the one named. */
static void a_changed_token_is_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS; i++) {
        struct answer *a = &answers[i];
        for (uint32_t k = 0; k < a->claim.n_tokens; k++) {
            uint32_t was = a->tokens[k], other = was ? was - 1 : 1;
            a->tokens[k] = other;
            struct sl_audit_result r = judge(&a->claim);
            a->tokens[k] = was;
            assert_int_equal(r.verdict, SL_AUDIT_TOKEN);
            assert_int_equal(r.at, k);
            assert_int_equal(r.claimed.token, other);
            assert_int_equal(r.computed.token, was);
        }
    }
}

static void a_changed_logprob_is_named(void **state)
{
    (void)state;
    struct answer *a = &answers[1];
    float was = a->logprobs[30].top[2].logprob;
    a->logprobs[30].top[2].logprob = was * 1.0000002f;
    struct sl_audit_result r = judge(&a->claim);
    a->logprobs[30].top[2].logprob = was;
    assert_int_equal(r.verdict, SL_AUDIT_LOGPROB);
    assert_int_equal(r.at, 30);
}

/* Lists by text leave out alternatives, but never the first, and keep order and values. */
static void lists_by_text_may_be_shorter(void **state)
{
    (void)state;
    struct answer *a = &answers[1]; /* 3 alternatives */
    struct sl_sampled some[TOKENS_MAX];
    struct sl_audit_claim c = a->claim;
    memcpy(some, a->logprobs, sizeof some);
    c.logprobs = some;
    for (uint32_t i = 0; i < c.n_tokens; i++) { /* the second of them is left out everywhere */
        some[i].top[1] = some[i].top[2];
        some[i].n_top = 2;
        some[i].top[0].token = some[i].top[1].token = SL_AUDIT_ANY_TOKEN;
    }
    c.sampling.n_logprobs = 2;
    expect(&c, SL_AUDIT_LOGPROB, "shorter lists of a claim by token");
    c.tops_by_text = true;
    expect(&c, SL_AUDIT_AUTHENTIC, "shorter lists");
    for (uint32_t n = 0; n < 4; n++) {
        struct sl_sampled was = some[20], *s = &some[20];
        if (n == 0)
            s->top[1].logprob *= 1.0000002f; /* another value */
        else if (n == 1)
            s->top[0] = a->logprobs[20].top[1]; /* without the first */
        else if (n == 2)
            s->top[1] = s->top[0], s->top[0] = was.top[1]; /* another order */
        else
            s->n_top = 0;
        struct sl_audit_result r = judge(&c);
        *s = was;
        assert_int_equal(r.verdict, SL_AUDIT_LOGPROB);
        assert_int_equal(r.at, 20);
    }
}

/* A parameter that did not matter for these tokens is still seen by the chain. */
static void changed_parameters_are_seen(void **state)
{
    (void)state;
    struct sl_audit_claim greedy = answers[0].claim, c = greedy;
    c.sampling.seed++;
    expect(&c, SL_AUDIT_CHAIN, "seed of a greedy answer");
    c = greedy;
    c.sampling.ignore_eos = true;
    expect(&c, SL_AUDIT_CHAIN, "ignore_eos");
    c = greedy;
    c.sampling.max_tokens += 1000000000;
    expect(&c, SL_AUDIT_CHAIN, "max_tokens");
    c = greedy;
    c.choice++;
    expect(&c, SL_AUDIT_CHAIN, "choice");
    c = greedy;
    c.chain[31] ^= 1;
    expect(&c, SL_AUDIT_CHAIN, "the chain itself");
    c = greedy;
    c.n_tokens--;
    expect(&c, SL_AUDIT_CHAIN, "a token less");
    c = greedy;
    c.sampling.max_tokens = 12;
    expect(&c, SL_AUDIT_AFTER_END, "more tokens than max_tokens");

    struct sl_audit_claim sampled = answers[1].claim;
    c = sampled;
    c.sampling.seed++;
    expect(&c, SL_AUDIT_TOKEN, "seed");
    c = sampled;
    c.sampling.temperature = 3;
    expect(&c, SL_AUDIT_TOKEN, "temperature");
    c = sampled;
    c.choice++;
    expect(&c, SL_AUDIT_TOKEN, "choice");
    c = sampled;
    c.class_name = SL_STR("cpu/llama/another");
    expect(&c, SL_AUDIT_OTHER_CLASS, "class");
}

static void a_changed_prompt_is_seen(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS; i++) {
        struct answer *a = &answers[i];
        a->prompt[1] ^= 1;
        enum sl_audit_verdict v = judge(&a->claim).verdict;
        a->prompt[1] ^= 1;
        assert_int_not_equal(v, SL_AUDIT_AUTHENTIC);
    }
}

/* What is out of range is an error of the claim, never a crash. */
static void claims_out_of_range_are_refused(void **state)
{
    (void)state;
    struct sl_audit_claim base = answers[0].claim, c;
    struct sl_audit_result r;
    struct sl_err err;
    uint32_t wild[] = {UINT32_MAX, 1};
    c = base, c.n_tokens = 0;
    assert_int_equal(sl_audit_run(audit, &c, &r, &err), SL_INVALID);
    c = base, c.prompt = wild, c.n_prompt = 2;
    assert_int_equal(sl_audit_run(audit, &c, &r, &err), SL_INVALID);
    c = base, c.n_tokens = UINT32_MAX;
    assert_int_equal(sl_audit_run(audit, &c, &r, &err), SL_TOO_LONG);
    c = base, c.sampling.top_p = 7;
    assert_int_equal(sl_audit_run(audit, &c, &r, &err), SL_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_the_engine_gave_is_authentic),
        cmocka_unit_test(a_changed_token_is_named),
        cmocka_unit_test(a_changed_logprob_is_named),
        cmocka_unit_test(lists_by_text_may_be_shorter),
        cmocka_unit_test(changed_parameters_are_seen),
        cmocka_unit_test(a_changed_prompt_is_seen),
        cmocka_unit_test(claims_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
