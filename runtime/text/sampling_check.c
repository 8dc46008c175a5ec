/* The one validator of sampling parameters, behind every door. */
#include <sluice/text/sampler.h>

#include <sluice/base/limits.h>

#include <math.h>

struct sl_sampling sl_sampling_default(void)
{
    return (struct sl_sampling){
        .temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .max_tokens = 16};
}

struct range {
    const char *name;
    float value, low, high;
    bool low_open; /* low itself is not allowed */
};

static enum sl_status check_range(const struct range *r, struct sl_err *err)
{
    /* Written so that a NaN fails. */
    bool above = r->low_open ? r->value > r->low : r->value >= r->low;
    if (above && r->value <= r->high)
        return SL_OK;
    return sl_fail_param(err, SL_INVALID, r->name, "%s must lie in %s%g, %g], got %g", r->name,
                         r->low_open ? "(" : "[", (double)r->low, (double)r->high,
                         (double)r->value);
}

static enum sl_status check_count(const char *name, uint64_t value, uint64_t most,
                                  struct sl_err *err)
{
    if (value <= most)
        return SL_OK;
    return sl_fail_param(err, SL_INVALID, name, "%s must be at most %llu, got %llu", name,
                         (unsigned long long)most, (unsigned long long)value);
}

static enum sl_status check_bias(const struct sl_sampling *s, uint32_t n_vocab, struct sl_err *err)
{
    enum sl_status bad = check_count("logit_bias", s->n_bias, SL_LIMIT_logit_bias, err);
    for (uint32_t i = 0; i < s->n_bias && !bad; i++) {
        const struct sl_logit_bias *b = &s->bias[i];
        const struct range r = {"logit_bias", b->bias, -100, 100, false};
        if (b->token >= n_vocab)
            return sl_fail_param(err, SL_INVALID, "logit_bias",
                                 "logit_bias names token %u, the vocabulary has %u", b->token,
                                 n_vocab);
        bad = check_range(&r, err);
    }
    return bad;
}

static enum sl_status check_stop_ids(const struct sl_sampling *s, uint32_t n_vocab,
                                     struct sl_err *err)
{
    enum sl_status bad = check_count("stop_token_ids", s->n_stop_ids, SL_LIMIT_stop_token_ids, err);
    for (uint32_t i = 0; i < s->n_stop_ids && !bad; i++)
        if (s->stop_ids[i] >= n_vocab)
            return sl_fail_param(err, SL_INVALID, "stop_token_ids",
                                 "stop_token_ids names token %u, the vocabulary has %u",
                                 s->stop_ids[i], n_vocab);
    return bad;
}

enum sl_status sl_sampling_check(const struct sl_sampling *s, uint32_t n_vocab, struct sl_err *err)
{
    const struct range ranges[] = {
        {"temperature", s->temperature, 0, 100, false},
        {"top_p", s->top_p, 0, 1, true},
        {"min_p", s->min_p, 0, 1, false},
        {"typical_p", s->typical_p, 0, 1, true},
        {"presence_penalty", s->presence_penalty, -2, 2, false},
        {"frequency_penalty", s->frequency_penalty, -2, 2, false},
        {"repetition_penalty", s->repetition_penalty, 0, 100, true},
    };
    enum sl_status bad = SL_OK;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges && !bad; i++)
        bad = check_range(&ranges[i], err);
    if (bad)
        return bad;
    if (s->top_k < -1)
        return sl_fail_param(err, SL_INVALID, "top_k", "top_k must be -1 or more, got %d",
                             s->top_k);
    if ((bad = check_count("top_logprobs", s->n_logprobs, SL_LOGPROBS_MAX, err)))
        return bad;
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        return sl_fail_param(err, SL_INVALID, "min_tokens",
                             "min_tokens must be at most max_tokens (%u), got %u", s->max_tokens,
                             s->min_tokens);
    if ((bad = check_bias(s, n_vocab, err)))
        return bad;
    return check_stop_ids(s, n_vocab, err);
}
