/* The hash chain is what its header says (golden values from Python's hashlib over the documented
 * bytes), every parameter is in it, event ids read back as written and nothing else is an id. */
#include "rig.h"

#include <sluice/base/containers.h>
#include <sluice/text/chain.h>
#include <stdlib.h>

static const uint32_t prompt[] = {1, 2, 300}, stop_ids[] = {7};
static const struct sl_logit_bias bias[] = {{5, 1.5f}};
static const char class_name[] = "cpu/llama/abc/kv-f16/s2.4/seg256/r1";

static struct sl_sampling sampling(void)
{
    return (struct sl_sampling){.temperature = 0.7f,
                                .top_k = 40,
                                .top_p = 0.9f,
                                .min_p = 0.05f,
                                .typical_p = 1,
                                .presence_penalty = 0.5f,
                                .frequency_penalty = -0.5f,
                                .repetition_penalty = 1.1f,
                                .seed = 0xfedcba9876543210u,
                                .ignore_eos = true,
                                .min_tokens = 3,
                                .max_tokens = 20,
                                .bias = bias,
                                .n_bias = 1,
                                .stop_ids = stop_ids,
                                .n_stop_ids = 1};
}

static void start(struct sl_chain *c, const struct sl_sampling *s, uint32_t choice)
{
    sl_chain_start(c, sl_str_of(class_name), prompt, 3, s, choice);
}

static void assert_link(const struct sl_chain *c, const char *hex)
{
    char got[65];
    sl_hex(c->link, SL_CHAIN_BYTES, got);
    assert_string_equal(got, hex);
}

static void test_golden(void **state)
{
    (void)state;
    struct sl_sampling s = sampling();
    struct sl_chain c;
    start(&c, &s, 2);
    assert_link(&c, "aeec6e6f4a0efcf95689394b6bb107b648c54487a4a1a336668e1b8010661b14");
    sl_chain_add(&c, 9);
    sl_chain_add(&c, 300);
    sl_chain_add(&c, 0);
    assert_int_equal(c.n_tokens, 3);
    assert_link(&c, "af72504e1cce3c3465a8d8650359dd8bdfa9d55e09b9283d8d6e7de2c7c4f9f4");
}

/* Logprobs do not decide about tokens; everything else does. */
static void test_every_parameter_counts(void **state)
{
    (void)state;
    static const uint32_t other_stop[] = {8};
    static const struct sl_logit_bias other_bias[] = {{5, 1.25f}};
    struct sl_sampling base = sampling(), s[16];
    struct sl_chain want, got;
    size_t n = 0;
    for (size_t i = 0; i < 16; i++)
        s[i] = base;
    s[n++].temperature = 0.71f;
    s[n++].top_k = 41;
    s[n++].top_p = 0.91f;
    s[n++].min_p = 0;
    s[n++].typical_p = 0.5f;
    s[n++].presence_penalty = 0;
    s[n++].frequency_penalty = 0;
    s[n++].repetition_penalty = 1;
    s[n++].seed++;
    s[n++].ignore_eos = false;
    s[n++].min_tokens = 4;
    s[n++].max_tokens = 21;
    s[n++].bias = other_bias;
    s[n++].n_bias = 0;
    s[n++].stop_ids = other_stop;
    s[n++].n_stop_ids = 0;
    start(&want, &base, 2);
    for (size_t i = 0; i < n; i++) {
        start(&got, &s[i], 2);
        assert_memory_not_equal(got.link, want.link, SL_CHAIN_BYTES);
    }
    start(&got, &base, 3);
    assert_memory_not_equal(got.link, want.link, SL_CHAIN_BYTES);
    sl_chain_start(&got, SL_STR("another"), prompt, 3, &base, 2);
    assert_memory_not_equal(got.link, want.link, SL_CHAIN_BYTES);
    sl_chain_start(&got, sl_str_of(class_name), prompt, 2, &base, 2);
    assert_memory_not_equal(got.link, want.link, SL_CHAIN_BYTES);
    base.want_logprob = true;
    base.n_logprobs = 5;
    start(&got, &base, 2);
    assert_memory_equal(got.link, want.link, SL_CHAIN_BYTES);
}

static const struct sl_event_choice choices[] = {
    {1, SL_EVENT_RUNS, {1, 2, 3, 4, 5, 6, 7, 255}},
    {0, SL_EVENT_RUNS, {0}},
    {123456, SL_EVENT_TEXT_DONE, {0}},
    {999999999, SL_EVENT_ENDED, {0xab, 0xcd}},
};
#define ID   "1.fedcba9876543210.0000000000000abc.00c0ffee"
#define GOOD ID ".1-01020304050607ff.0.123456f-0000000000000000.999999999e-abcd000000000000"

static enum sl_status parse(const char *text, size_t len, uint32_t max)
{
    struct sl_event_id id;
    struct sl_event_choice out[4];
    return sl_event_id_parse((struct sl_str){text, len}, &id, out, max, NULL);
}

static void test_ids_read_back(void **state)
{
    (void)state;
    struct sl_event_id id = {0xfedcba9876543210u, 0xabc, 0xc0ffee, 4}, back;
    struct sl_event_choice out[4];
    struct sl_buf b = {0};
    struct sl_err err;
    sl_event_id_print(&b, &id, choices);
    assert_string_equal(b.data, GOOD);
    assert_int_equal(sl_event_id_parse((struct sl_str){b.data, b.len}, &back, out, 4, &err), SL_OK);
    assert_memory_equal(&back, &id, sizeof id);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(out[i].n_tokens, choices[i].n_tokens);
        assert_int_equal(out[i].phase, choices[i].phase);
        assert_memory_equal(out[i].link, choices[i].link, SL_EVENT_LINK_BYTES);
    }
    sl_buf_free(&b);
}

static void test_nothing_else_is_an_id(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "1",
                                      "1.",
                                      ID,
                                      ID ".",
                                      ID ".1",
                                      ID ".0f",
                                      ID ".0-0123456789abcdef",
                                      ID ".01-0123456789abcdef",
                                      ID ".1-0123456789abcde",
                                      ID ".1-0123456789abcdefa",
                                      ID ".1-0123456789ABCDEF",
                                      ID ".1x-0123456789abcdef",
                                      ID ".-1",
                                      ID ".0 ",
                                      ID "..0",
                                      " " ID ".0",
                                      "2"
                                      ".0.0000000000000abc.00c0ffee.0",
                                      "1.00.0000000000000abc.00c0ffee.0",
                                      "1.0.abc.00c0ffee.0",
                                      "1.11112222333344445.0000000000000abc.00c0ffee.0",
                                      "1.0.0000000000000abc.c0ffee.0",
                                      ID ".1234567890-0123456789abcdef"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (parse(bad[i], strlen(bad[i]), 4) != SL_INVALID)
            fail_msg("'%s' was taken for an id", bad[i]);
    assert_int_equal(parse(ID ".0", strlen(ID ".0"), 4), SL_OK);
    assert_int_equal(parse(GOOD, strlen(GOOD), 3), SL_INVALID);
    for (size_t len = 0; len < strlen(GOOD); len++) { /* exact memory: a read past it is seen */
        char *copy = malloc(len + 1);
        memcpy(copy, GOOD, len);
        parse(copy, len, 4);
        free(copy);
    }
}

/* What is printed reads back as the same bits, so that the chain can be made again. */
static void test_sampling_reads_back(void **state)
{
    (void)state;
    struct sl_sampling s = sampling(), back;
    struct sl_buf b = {0};
    struct sl_json *json = NULL;
    struct sl_arena arena;
    struct sl_chain want, got;
    sl_arena_init(&arena, 1 << 16);
    sl_sampling_print(&b, &s);
    assert_int_equal(sl_json_parse(b.data, b.len, &json, NULL), SL_OK);
    assert_int_equal(sl_sampling_read(json, &arena, &back, NULL), SL_OK);
    back.seed = s.seed;
    start(&want, &s, 0);
    start(&got, &back, 0);
    assert_memory_equal(got.link, want.link, SL_CHAIN_BYTES);
    sl_json_free(json);
    static const char *const bad[] = {"{}", "[]", "{\"temperature\":\"1\"}"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(sl_json_parse(bad[i], strlen(bad[i]), &json, NULL), SL_OK);
        assert_int_equal(sl_sampling_read(json, &arena, &back, NULL), SL_INVALID);
        sl_json_free(json);
    }
    sl_arena_free(&arena);
    sl_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_every_parameter_counts),
        cmocka_unit_test(test_ids_read_back),
        cmocka_unit_test(test_nothing_else_is_an_id),
        cmocka_unit_test(test_sampling_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
