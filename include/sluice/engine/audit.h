/* Audit: whether this model gave that answer. One prefill pass over prompt and answer with logits
 * at every generated position; each position is sampled with its own number, its own penalties and
 * compared; the hash chain is made again. Costs a prefill, not a generation.
 *
 * Because of the exactness rule the verdict is the same on any machine, layout and thread count of
 * the class. It says that the answer is reproducible from what is claimed, not who gave it. */
#ifndef SLUICE_ENGINE_AUDIT_H
#define SLUICE_ENGINE_AUDIT_H

#include <sluice/engine/engine.h>
#include <sluice/text/chain.h>

struct sl_audit;

/* As a claimed alternative's token: not said which (answers name alternatives by their text). */
#define SL_AUDIT_ANY_TOKEN UINT32_MAX

/* Opens the model of `cfg` (backend, isa, n_threads, kv_dtype, gguf, weights_sha256, stop_ids; the
 * rest does not matter) for sequences of at most max_len tokens. SL_TOO_LONG when that is more than
 * the model's context; SL_MODEL, SL_NO_MEMORY... */
enum sl_status sl_audit_open(const struct sl_engine_config *cfg, uint32_t max_len,
                             struct sl_audit **out, struct sl_err *err);
void sl_audit_close(struct sl_audit *a);
const char *sl_audit_class(const struct sl_audit *a);

/* Borrowed. `sampling` with the seed; its want_logprob and n_logprobs say what `logprobs` holds. */
struct sl_audit_claim {
    struct sl_str class_name;
    const uint32_t *prompt, *tokens;
    uint32_t n_prompt, n_tokens; /* at least 1 each */
    uint32_t choice;
    struct sl_sampling sampling;
    const struct sl_sampled *logprobs; /* [n_tokens], or NULL: not claimed */
    bool tops_by_text; /* of alternatives with the same text only the likeliest is in `top`, so
                        * that sampling.n_logprobs may be more than the longest list has */
    uint8_t chain[SL_CHAIN_BYTES];
};

enum sl_audit_verdict {
    SL_AUDIT_AUTHENTIC,
    SL_AUDIT_OTHER_CLASS, /* claimed for another class: nothing was computed */
    SL_AUDIT_TOKEN,       /* token `at` is another */
    SL_AUDIT_LOGPROB,     /* a logprob of token `at` is another */
    SL_AUDIT_AFTER_END,   /* the answer ended before token `at` */
    SL_AUDIT_CHAIN        /* all tokens agree, the chain does not: a parameter was changed */
};
struct sl_audit_result {
    enum sl_audit_verdict verdict;
    uint32_t at; /* first position that differs, in generated tokens from 0 */
    struct sl_sampled claimed, computed; /* there; claimed.logprob when logprobs are claimed */
    enum sl_end end; /* what the last token means: SL_END_NONE when a stop string or a
                      * context shorter than the model's must have ended the answer */
    uint8_t chain[SL_CHAIN_BYTES];
    uint32_t n_rows; /* computed */
};
/* SL_OK with a verdict; an error only when nothing could be said: SL_INVALID for ids or parameters
 * out of range, SL_TOO_LONG beyond max_len, SL_FAILED when the model gave NaN. */
enum sl_status sl_audit_run(struct sl_audit *a, const struct sl_audit_claim *claim,
                            struct sl_audit_result *out, struct sl_err *err);
const char *sl_audit_verdict_text(enum sl_audit_verdict v);

#endif
