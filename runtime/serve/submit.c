/* Sampling parameters of a SUBMIT. */
#include "submit.h"

void submit_sampling(const struct sl_msg_submit *m, struct sl_logit_bias *bias,
                     struct sl_sampling *out)
{
    *out = (struct sl_sampling){.temperature = m->temperature,
                                .top_k = m->top_k,
                                .top_p = m->top_p,
                                .min_p = m->min_p,
                                .typical_p = m->typical_p,
                                .presence_penalty = m->presence_penalty,
                                .frequency_penalty = m->frequency_penalty,
                                .repetition_penalty = m->repetition_penalty,
                                .seed = m->seed,
                                .n_logprobs = m->n_logprobs,
                                .want_logprob = m->want_logprob,
                                .ignore_eos = m->ignore_eos,
                                .min_tokens = m->min_tokens,
                                .max_tokens = m->max_tokens,
                                .bias = bias,
                                .n_bias = m->n_bias,
                                .stop_ids = m->stop_ids,
                                .n_stop_ids = m->n_stop_ids};
    for (uint32_t i = 0; i < m->n_bias; i++)
        bias[i] = (struct sl_logit_bias){m->bias[i].token, m->bias[i].bias};
}
