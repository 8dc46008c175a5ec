/* The validator: every bound of every parameter, NaN and infinities, ids against the vocabulary;
 * the error names the parameter. */
#include "rig.h"

#include <sluice/base/limits.h>
#include <sluice/text/sampler.h>

#include <math.h>

#define N_VOCAB 1000

static void expect(const struct sl_sampling *s, const char *param)
{
    struct sl_err err = {0};
    enum sl_status status = sl_sampling_check(s, N_VOCAB, &err);
    if (param ? status != SL_INVALID || strcmp(err.param, param) != 0 : status != SL_OK)
        fail_msg("want '%s', got %d '%s': %s", param ? param : "ok", status, err.param, err.msg);
    if (param)
        assert_non_null(strstr(err.msg, param));
}

static void test_floats(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t at;
        float bad[6], good[4];
    } rows[] = {
        {"temperature",
         offsetof(struct sl_sampling, temperature),
         {-0.001f, 100.001f, NAN, INFINITY, -INFINITY, -1},
         {0, 1e-30f, 1, 100}},
        {"top_p",
         offsetof(struct sl_sampling, top_p),
         {0, 1.0001f, NAN, INFINITY, -INFINITY, -0.5f},
         {1e-30f, 0.5f, 0.9f, 1}},
        {"min_p",
         offsetof(struct sl_sampling, min_p),
         {-1e-30f, 1.0001f, NAN, INFINITY, -INFINITY, -1},
         {0, 1e-30f, 0.5f, 1}},
        {"typical_p",
         offsetof(struct sl_sampling, typical_p),
         {0, 1.0001f, NAN, INFINITY, -INFINITY, -1},
         {1e-30f, 0.5f, 0.9f, 1}},
        {"presence_penalty",
         offsetof(struct sl_sampling, presence_penalty),
         {-2.001f, 2.001f, NAN, INFINITY, -INFINITY, 3},
         {-2, 0, 1, 2}},
        {"frequency_penalty",
         offsetof(struct sl_sampling, frequency_penalty),
         {-2.001f, 2.001f, NAN, INFINITY, -INFINITY, 3},
         {-2, 0, 1, 2}},
        {"repetition_penalty",
         offsetof(struct sl_sampling, repetition_penalty),
         {0, 100.001f, NAN, INFINITY, -INFINITY, -1},
         {1e-30f, 1, 2, 100}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t k = 0; k < 6; k++) {
            struct sl_sampling s = sl_sampling_default();
            memcpy((char *)&s + rows[i].at, &rows[i].bad[k], sizeof(float));
            expect(&s, rows[i].name);
        }
        for (size_t k = 0; k < 4; k++) {
            struct sl_sampling s = sl_sampling_default();
            memcpy((char *)&s + rows[i].at, &rows[i].good[k], sizeof(float));
            expect(&s, NULL);
        }
    }
}

static void test_integers(void **state)
{
    (void)state;
    static const struct {
        int32_t top_k;
        uint32_t n_logprobs, min_tokens, max_tokens;
        const char *param;
    } rows[] = {
        {0, 0, 0, 16, NULL},
        {-1, 20, 16, 16, NULL},
        {INT32_MAX, 0, 0, UINT32_MAX, NULL},
        {1, 0, 5, 0, NULL}, /* no limit of tokens */
        {-2, 0, 0, 16, "top_k"},
        {INT32_MIN, 0, 0, 16, "top_k"},
        {0, 21, 0, 16, "top_logprobs"},
        {0, UINT32_MAX, 0, 16, "top_logprobs"},
        {0, 0, 17, 16, "min_tokens"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_sampling s = sl_sampling_default();
        s.top_k = rows[i].top_k;
        s.n_logprobs = rows[i].n_logprobs;
        s.min_tokens = rows[i].min_tokens;
        s.max_tokens = rows[i].max_tokens;
        expect(&s, rows[i].param);
    }
}

static void test_arrays(void **state)
{
    (void)state;
    static const struct {
        struct sl_logit_bias bias;
        const char *param;
    } rows[] = {
        {{0, 100}, NULL},
        {{N_VOCAB - 1, -100}, NULL},
        {{N_VOCAB, 0}, "logit_bias"},
        {{UINT32_MAX, 0}, "logit_bias"},
        {{5, 100.01f}, "logit_bias"},
        {{5, -100.01f}, "logit_bias"},
        {{5, NAN}, "logit_bias"},
        {{5, INFINITY}, "logit_bias"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_logit_bias two[2] = {{1, 1}, rows[i].bias};
        struct sl_sampling s = sl_sampling_default();
        s.bias = two;
        s.n_bias = 2;
        expect(&s, rows[i].param);
    }
    static struct sl_logit_bias many[SL_LIMIT_logit_bias + 1];
    static uint32_t ids[SL_LIMIT_stop_token_ids + 1];
    struct sl_sampling s = sl_sampling_default();
    s.bias = many;
    s.n_bias = SL_LIMIT_logit_bias;
    s.stop_ids = ids;
    s.n_stop_ids = SL_LIMIT_stop_token_ids;
    expect(&s, NULL);
    s.n_bias++;
    expect(&s, "logit_bias");
    s.n_bias = 0;
    s.n_stop_ids++;
    expect(&s, "stop_token_ids");
    s.n_stop_ids = 2;
    ids[1] = N_VOCAB;
    expect(&s, "stop_token_ids");
    ids[1] = N_VOCAB - 1;
    expect(&s, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floats),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
