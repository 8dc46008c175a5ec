/* Sampling: from a row of logits to one token and its logprobs. A pure function of (logits, request
 * parameters, tokens so far, seed, choice, position): the same bits on every machine.
 *
 * Order: logit bias, penalties, (min_tokens masking), temperature, top-k, typical, top-p, min-p,
 * draw. temperature 0 is greedy. Ties are broken by the lower token id. Logprobs are of the raw
 * logits. */
#ifndef SLUICE_TEXT_SAMPLER_H
#define SLUICE_TEXT_SAMPLER_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_LOGPROBS_MAX 20

struct sl_logit_bias {
    uint32_t token;
    float bias; /* [-100, 100] */
};

/* One struct for every door: HTTP, gRPC, bus, command line. Zero is not a default: use
 * sl_sampling_default. Arrays are borrowed. */
struct sl_sampling {
    float temperature;         /* [0, 100] */
    int32_t top_k;             /* -1 or 0: off */
    float top_p;               /* (0, 1] */
    float min_p;               /* [0, 1] */
    float typical_p;           /* (0, 1]; 1: off */
    float presence_penalty;    /* [-2, 2], over generated tokens */
    float frequency_penalty;   /* [-2, 2], over generated tokens */
    float repetition_penalty;  /* (0, 100], over prompt and generated tokens */
    uint64_t seed;
    uint32_t n_logprobs;       /* alternatives wanted; 0 with want_logprob: the sampled one only */
    bool want_logprob;
    bool ignore_eos;
    uint32_t min_tokens, max_tokens;
    const struct sl_logit_bias *bias;
    uint32_t n_bias;
    const uint32_t *stop_ids;  /* besides the model's own */
    uint32_t n_stop_ids;
};
struct sl_sampling sl_sampling_default(void); /* temperature 1, top_p 1, max_tokens 16, rest off */
/* The one validator behind every door: SL_INVALID with `param` set. Ids are checked against the
 * width of the logits, n_vocab. */
enum sl_status sl_sampling_check(const struct sl_sampling *s, uint32_t n_vocab,
                                 struct sl_err *err);

struct sl_token_prob {
    uint32_t token;
    float logprob;
};
struct sl_sampled {
    uint32_t token;
    float logprob;                                 /* set when want_logprob */
    uint32_t n_top;
    struct sl_token_prob top[SL_LOGPROBS_MAX];     /* most likely first */
};

/* Token counts of one sequence, for penalties: open addressing over caller memory, so that the
 * engine allocates nothing per step. */
struct sl_counts {
    uint32_t *keys;    /* token + 1, 0 empty */
    uint32_t *n_out;   /* times generated; bit 31: seen in the prompt */
    uint32_t n_slots;  /* power of two >= 2 * distinct tokens */
};
void sl_counts_add_prompt(struct sl_counts *c, uint32_t token);
void sl_counts_add_output(struct sl_counts *c, uint32_t token);

/* Scratch of one sampling thread, sized for n_vocab at open. */
struct sl_sampler_scratch;
struct sl_sampler_scratch *sl_sampler_scratch_new(uint32_t n_vocab);
void sl_sampler_scratch_free(struct sl_sampler_scratch *s);

/* `logits` [n_vocab] is modified. `max` and `log_sum` of the raw row (logprob = x - max - log_sum).
 * `n_done` tokens have been generated so far; `position` keys the random number and is the index
 * of the new token in the sequence. `stops`: the model's own end ids, masked while
 * n_done < min_tokens or with ignore_eos. SL_FAILED for a row with NaN. Allocates nothing. */
enum sl_status sl_sample(const struct sl_sampling *p, float *logits, uint32_t n_vocab, float max,
                         float log_sum, const struct sl_counts *counts, uint32_t choice,
                         uint32_t position, uint32_t n_done, const uint32_t *stops,
                         uint32_t n_stops, struct sl_sampler_scratch *scratch,
                         struct sl_sampled *out);

#endif
