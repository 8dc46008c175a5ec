/* The hash chain of a generated sequence, and the id of a stream's event that carries it.
 *
 * Two servers that give the same answer give the same chain, and a chain differs from the first
 * token on that differs. It says "reproducible", not "signed": whoever can compute the answer can
 * compute its chain.
 *
 * All numbers little-endian, H = SHA-256:
 *     link[0]     = H("sluice-chain-1\0" H(class) H(prompt ids as u32[]) H(stop ids as u32[])
 *                     H(logit bias as {u32 token, f32 bias}[]) H(grammar; empty today)
 *                     f32 temperature top_p min_p typical_p presence frequency repetition
 *                     i32 top_k  u64 seed  u32 min_tokens max_tokens choice ignore_eos n_prompt)
 *     link[i + 1] = H(link[i] u32 token[i])
 * What does not decide about tokens is not in it: logprobs asked for, stop strings (they cut an
 * answer short), how text is shown. top_k below 1 counts as 0. */
#ifndef SLUICE_TEXT_CHAIN_H
#define SLUICE_TEXT_CHAIN_H

#include <sluice/base/err.h>
#include <sluice/base/json.h>
#include <sluice/base/mem.h>
#include <sluice/text/sampler.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_CHAIN_BYTES 32

/* By value; `link` after n_tokens tokens. */
struct sl_chain {
    uint8_t link[SL_CHAIN_BYTES];
    uint32_t n_tokens;
};
/* `class_name` as the engine announces it (sl_engine_info). */
void sl_chain_start(struct sl_chain *c, struct sl_str class_name, const uint32_t *prompt,
                    uint32_t n_prompt, const struct sl_sampling *s, uint32_t choice);
void sl_chain_add(struct sl_chain *c, uint32_t token);

/* --- event ids ---
 *
 * The `id:` of a server-sent event that shows text or an end: everything another router needs to
 * go on after that event, given the same request.
 *     1.SEED.CLASS.SHAPE.CHOICE[.CHOICE...]    all hex but the counts
 *     CHOICE = COUNT [f|e] - LINK              LINK: first 8 bytes of the chain; COUNT 0 has none
 * SEED: of the request, or the one the router drew. CLASS: sl_hash64 of the class name. SHAPE: a
 * hash of what decides how events look. COUNT: tokens whose text was shown, f: the text is
 * complete and the finish reason is due, e: that was sent too. */
#define SL_EVENT_LINK_BYTES 8

enum sl_event_phase { SL_EVENT_RUNS, SL_EVENT_TEXT_DONE, SL_EVENT_ENDED };
struct sl_event_choice {
    uint32_t n_tokens;
    enum sl_event_phase phase;
    uint8_t link[SL_EVENT_LINK_BYTES]; /* zero when n_tokens is 0 */
};
struct sl_event_id {
    uint64_t seed, class_hash;
    uint32_t shape;
    uint32_t n_choices;
};
void sl_event_id_print(struct sl_buf *b, const struct sl_event_id *id,
                       const struct sl_event_choice *choices);
/* Fills at most choices_max choices. SL_INVALID (param "Last-Event-ID") for anything that
 * sl_event_id_print would not have written. */
enum sl_status sl_event_id_parse(struct sl_str text, struct sl_event_id *id,
                                 struct sl_event_choice *choices, uint32_t choices_max,
                                 struct sl_err *err);

/* --- sampling parameters as JSON: the `sampling` object of a stored answer ---
 *
 * Every parameter under its request name but the seed, which belongs to a choice. Reading needs
 * every one of them; arrays live in the arena. SL_INVALID names the member. */
void sl_sampling_print(struct sl_buf *b, const struct sl_sampling *s);
enum sl_status sl_sampling_read(const struct sl_json *o, struct sl_arena *arena,
                                struct sl_sampling *out, struct sl_err *err);

/* One choice of a `sluice` object: all it was made from, and its chain. Borrowed. */
struct sl_proof {
    uint32_t index, prompt, choice; /* of the answer; of its prompts; of the prompt's choices */
    struct sl_str class_name;
    const struct sl_sampling *sampling;
    const uint32_t *tokens;
    uint32_t n_tokens;
    const struct sl_chain *chain; /* after the tokens */
};
void sl_proof_print(struct sl_buf *b, const struct sl_proof *p);

#endif
