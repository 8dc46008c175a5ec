/* POST /v1/chat/completions: messages by the model's template; one prompt a request. */
#include "call.h"

static enum sl_status prepare(struct call *c, struct sl_err *err)
{
    enum sl_status r = openai_parse(c, true, err);
    if (r)
        return r;
    struct openai_req *q = &c->req;
    q->prompts = SL_ARENA_ARRAY(&c->mem, struct sl_tokens, 1);
    if (!q->prompts)
        return sl_fail(err, SL_NO_MEMORY, "no memory for the prompt");
    q->n_prompts = 1;
    return chat_tokens(c, q->messages, q->template_kwargs, q->add_generation_prompt,
                       q->continue_final_message, &q->prompts[0], err);
}

const struct dialect dialect_chat = {.prepare = prepare,
                                     .start = openai_start,
                                     .keep_alive = openai_keep_alive,
                                     .needs_model = true};
