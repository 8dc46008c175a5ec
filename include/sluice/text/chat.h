/* Chat templates: a Jinja subset that runs the template stored in a model file.
 *
 * The evaluator has no reflection, no I/O and no recursion on the C stack beyond template_depth;
 * steps, output bytes and depth are limited by sluice/base/limits.h. */
#ifndef SLUICE_TEXT_CHAT_H
#define SLUICE_TEXT_CHAT_H

#include <sluice/base/err.h>
#include <sluice/base/json.h>
#include <sluice/base/mem.h>

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

#endif
