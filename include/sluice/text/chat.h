/* Chat templates: a Jinja subset that runs the template stored in a model file.
 *
 * The evaluator has no reflection, no I/O and no recursion on the C stack beyond template_depth;
 * steps, output bytes and depth are limited by sluice/base/limits.h. */
#ifndef SLUICE_TEXT_CHAT_H
#define SLUICE_TEXT_CHAT_H

#include <sluice/base/err.h>
#include <sluice/base/json.h>
#include <sluice/base/mem.h>
#include <sluice/text/tokenizer.h>

struct sl_template;

/* Parses once; immutable and shared afterwards. SL_MODEL with line and reason. */
enum sl_status sl_template_open(const char *source, size_t len, struct sl_template **out,
                                struct sl_err *err);
void sl_template_close(struct sl_template *t);

/* `vars` is a JSON object; its members are the template's globals: messages, add_generation_prompt,
 * bos_token, eos_token, tools, documents, and any chat_template_kwargs. There is no clock in here:
 * a template that calls strftime_now needs `__now`, an integer of Unix seconds (read as UTC).
 * SL_INVALID when the template raises (raise_exception) or a budget ends; out is then as before. */
enum sl_status sl_template_render(const struct sl_template *t, const struct sl_json *vars,
                                  struct sl_buf *out, struct sl_err *err);

/* Text of a caller must never become a special token, text of the template must. Wherever the
 * caller's text spells one, sl_chat_guard puts a breaker (the noncharacter U+FDD0) behind its first
 * character before the template runs; sl_chat_unguard takes the breakers out of what it rendered
 * and says where they stood, for sl_tokenize_guarded. */
void sl_chat_guard(const struct sl_tokenizer *t, struct sl_str text, struct sl_buf *out);
/* In place; *places [*n] lies in the arena. SL_NO_MEMORY. */
enum sl_status sl_chat_unguard(struct sl_buf *text, struct sl_arena *mem, size_t **places,
                               size_t *n, struct sl_err *err);

#endif
