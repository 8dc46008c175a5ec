/* Event ids, going on after one, and the `sluice` object that lets anyone check an answer.
 *
 * A request without a seed gets one here, so that an event's id can carry it; prompt i of a batch
 * uses the drawn seed + i. A resumed stream sends exactly the events that were due after the named
 * one: no role chunk for a choice that showed something, no finish reason that was sent. What came
 * without an id (role chunk of a choice that showed nothing yet, usage, [DONE]) comes again. */
#include "call.h"

#include <sluice/base/time.h>
#include <string.h>

/* What decides how events look, and the prompts. */
static uint32_t shape_of(const struct call *c)
{
    const struct openai_req *q = &c->req;
    const struct gen_params *g = &q->gen;
    const uint32_t numbers[] = {
        q->is_chat,      q->n_prompts,    g->n,    g->sampling.want_logprob, g->sampling.n_logprobs,
        g->include_stop, g->keep_special, q->echo, q->return_token_ids,      g->n_stop};
    uint64_t h = sl_hash64(numbers, sizeof numbers, 0);
    for (uint32_t i = 0; i < g->n_stop; i++)
        h = sl_hash64(g->stop[i].data, g->stop[i].len, h);
    for (uint32_t i = 0; i < q->n_prompts; i++)
        h = sl_hash64(q->prompts[i].ids, q->prompts[i].n * sizeof *q->prompts[i].ids, h);
    return (uint32_t)(h ^ h >> 32);
}

static enum sl_status check_id(const struct call *c, const struct sl_event_id *id,
                               struct sl_err *err)
{
    const char *what = NULL;
    if (id->n_choices != c->n_choices)
        what = "number of choices";
    else if (id->shape != c->shape)
        what = "prompt, stop strings or logprobs";
    else if (c->req.gen.has_seed && id->seed != c->req.gen.sampling.seed)
        what = "seed";
    if (!what)
        return SL_OK;
    return sl_fail_param(err, SL_CONFLICT, "Last-Event-ID",
                         "Last-Event-ID is of another request: the %s differ", what);
}

enum sl_status openai_resume(struct call *c, struct sl_err *err)
{
    struct gen_params *g = &c->req.gen;
    struct sl_str text = sl_http_header(c->http, "last-event-id");
    struct sl_event_id id;
    c->with_ids = c->req.stream && c->n_choices <= SL_LIMIT_resume_choices;
    c->shape = shape_of(c);
    c->seed = g->has_seed ? g->sampling.seed : sl_entropy_u64() >> 1;
    if (!text.len)
        return SL_OK;
    if (!c->with_ids)
        return sl_fail_param(err, SL_INVALID, "Last-Event-ID",
                             "Last-Event-ID needs a stream of at most %d choices",
                             SL_LIMIT_resume_choices);
    c->shown = SL_ARENA_ARRAY(&c->mem, struct sl_event_choice, c->n_choices);
    if (!c->shown)
        return sl_fail(err, SL_NO_MEMORY, "no memory for %u choices", c->n_choices);
    enum sl_status s = sl_event_id_parse(text, &id, c->shown, c->n_choices, err);
    if (s || (s = check_id(c, &id, err)))
        return s;
    c->seed = id.seed;
    g->has_class = true;
    g->class_hash = c->class_hash = id.class_hash;
    return SL_OK;
}

/* The parameters of one prompt's generation. */
void openai_part_params(const struct call *c, uint32_t part, struct gen_params *out)
{
    *out = c->req.gen;
    out->prompt = c->req.prompts[part].ids;
    out->n_prompt = (uint32_t)c->req.prompts[part].n;
    out->sampling.seed = c->req.gen.has_seed ? c->seed : c->seed + part;
    out->has_seed = true;
    out->shown = c->shown ? c->shown + (size_t)part * out->n : NULL;
}

void openai_put_id(struct sl_buf *b, const struct call *c)
{
    struct sl_event_choice shown[SL_LIMIT_resume_choices];
    if (!c->with_ids)
        return;
    for (uint32_t i = 0; i < c->n_choices; i++)
        shown[i] = c->choices[i].shown;
    struct sl_event_id id = {
        .seed = c->seed, .class_hash = c->class_hash, .shape = c->shape, .n_choices = c->n_choices};
    sl_buf_puts(b, "id: ");
    sl_event_id_print(b, &id, shown);
    sl_buf_putc(b, '\n');
}

void openai_note_delta(struct call *c, struct choice *ch, const struct gen_delta *d)
{
    ch->reached = (struct sl_event_choice){.n_tokens = d->chain->n_tokens,
                                           .phase = d->last ? SL_EVENT_TEXT_DONE : SL_EVENT_RUNS};
    memcpy(ch->reached.link, d->chain->link, sizeof ch->reached.link);
    if (c->class_hash && c->class_hash != d->class_hash)
        c->with_ids = false; /* choices of two classes: no one router could go on with both */
    c->class_hash = d->class_hash;
}

/* --- the proof -------------------------------------------------------------------------------- */

static void put_ids(struct sl_buf *b, const uint32_t *ids, size_t n)
{
    sl_buf_putc(b, '[');
    for (size_t i = 0; i < n; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", ids[i]);
    sl_buf_putc(b, ']');
}

void out_proof_choice(struct sl_buf *b, uint32_t index, uint32_t prompt, const struct gen_end *e)
{
    struct sl_proof p = {.index = index,
                         .prompt = prompt,
                         .choice = e->choice,
                         .class_name = e->class_name,
                         .sampling = e->sampling,
                         .tokens = e->tokens,
                         .n_tokens = e->n_tokens,
                         .chain = e->chain};
    sl_proof_print(b, &p);
}

/* `,"sluice":{...}`: prompts, stop strings and, for each choice, all it was made from. */
void openai_put_proof(struct sl_buf *b, const struct call *c)
{
    const struct gen_params *g = &c->req.gen;
    if (!c->req.return_chain)
        return;
    sl_buf_puts(b, ",\"sluice\":{\"version\":1,\"stop\":[");
    for (uint32_t i = 0; i < g->n_stop; i++) {
        if (i)
            sl_buf_putc(b, ',');
        sl_buf_json_str(b, g->stop[i].data, g->stop[i].len);
    }
    sl_buf_printf(b, "],\"include_stop\":%s,\"skip_special\":%s,\"echo\":%s,\"prompts\":[",
                  g->include_stop ? "true" : "false", g->keep_special ? "false" : "true",
                  c->req.echo ? "true" : "false");
    for (uint32_t i = 0; i < c->req.n_prompts; i++) {
        if (i)
            sl_buf_putc(b, ',');
        put_ids(b, c->req.prompts[i].ids, c->req.prompts[i].n);
    }
    sl_buf_puts(b, "],\"choices\":[");
    for (uint32_t i = 0; i < c->n_choices; i++) {
        if (i)
            sl_buf_putc(b, ',');
        sl_buf_puts(b, c->choices[i].proof.len ? c->choices[i].proof.data : "null");
    }
    sl_buf_puts(b, "]}");
}
