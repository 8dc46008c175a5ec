/* Private to the gateway: one HTTP request on its way through an API dialect.
 *
 * A request is prepared (JSON parsed, template applied, text tokenised: touches nothing but the
 * call and the immutable model, so large bodies are prepared on a helper thread), then started on
 * the loop's thread. Errors of either become one OpenAI error object. */
#ifndef SLUICE_SERVE_CALL_H
#define SLUICE_SERVE_CALL_H

#include "gateway.h"
#include <sluice/base/containers.h>
#include <sluice/base/json.h>
#include <sluice/base/limits.h>

struct call;

struct dialect {
    /* Off the loop's thread if need be. */
    enum sl_status (*prepare)(struct call *c, struct sl_err *err);
    /* On the loop's thread, after a successful prepare. */
    enum sl_status (*start)(struct call *c, struct sl_err *err);
    /* Nothing was sent for a while on a stream. */
    void (*keep_alive)(struct call *c);
    bool needs_model;
};

/* What an OpenAI request asks, both endpoints. Pointers live in the call's arena or its JSON. */
struct openai_req {
    struct gen_params gen;
    struct sl_str model, request_id;
    struct sl_str user;
    bool stream, include_usage, echo, return_token_ids, return_chain, is_chat;
    bool add_generation_prompt, continue_final_message;
    bool add_special_tokens;
    bool chat_logprobs;
    int64_t completion_logprobs; /* -1: none */
    int64_t top_logprobs;        /* -1: not given */
    int64_t max_tokens;          /* -1: not given */
    const struct sl_json *prompt, *messages, *template_kwargs, *documents;
    uint32_t n_prompts;
    struct sl_tokens *prompts;  /* [n_prompts], freed with the call */
    struct sl_str *prompt_text; /* [n_prompts], for echo; of text prompts only */
};

/* What has come back for one choice. */
struct choice {
    struct sl_buf text;
    struct sl_buf logprobs; /* JSON array items so far (chat), or tokens (completions) */
    struct sl_buf logprobs_b, logprobs_c, logprobs_d; /* completions' parallel arrays */
    struct sl_buf token_ids;
    const char *finish_reason;
    struct sl_buf stop_reason; /* JSON, empty: null */
    uint32_t n_logprobs;
    size_t text_offset;
    bool said_role;
    struct sl_event_choice reached, shown; /* tokens taken in; tokens that events stand for */
    struct sl_buf proof;                   /* JSON of the sluice object, once it ended */
};

/* One prompt of a request. */
struct part {
    struct call *call;
    struct gen *gen;
    uint32_t index;
};

struct call {
    struct sl_list link; /* in the gateway's open calls */
    struct gateway *gateway;
    struct node *node;
    struct sl_http_req *http; /* NULL once closed */
    const struct dialect *dialect;
    struct sl_arena mem;
    struct sl_str body;
    struct sl_json *json;
    struct sl_err err;
    enum sl_status prepared;
    bool busy; /* a helper thread prepares it */

    struct openai_req req;
    char id[48];
    uint64_t created;
    struct part *parts;     /* [req.n_prompts] */
    struct choice *choices; /* [n_prompts * n] */
    uint32_t n_choices, n_parts_live;
    struct gen_usage usage;
    struct sl_buf out; /* answer or event under construction */
    uint64_t seed, class_hash;
    uint32_t shape;                /* of the event ids */
    struct sl_event_choice *shown; /* [n_choices] by Last-Event-ID, or NULL */
    bool with_ids;
    bool streaming; /* the head of the stream is out */
    bool answered;
    uint64_t sent_ns; /* last byte given to the stream */
};

#define CALL_MEM_MAX ((size_t)64 << 20)

/* gateway.c */
void call_answer(struct call *c, int status, const char *type, struct sl_buf *body);
void call_error(struct call *c, const struct sl_err *err);
void error_json(const struct sl_err *err, struct sl_buf *out);

/* fields.c: typed reads of JSON members. Absent or null: *out untouched and SL_OK. */
enum sl_status field_real(const struct sl_json *o, const char *name, double min, double max,
                          float *out, struct sl_err *err);
enum sl_status field_int(const struct sl_json *o, const char *name, int64_t min, int64_t max,
                         int64_t *out, struct sl_err *err);
enum sl_status field_bool(const struct sl_json *o, const char *name, bool *out, struct sl_err *err);
enum sl_status field_str(const struct sl_json *o, const char *name, struct sl_str *out,
                         struct sl_err *err);
/* NULL when absent or null. */
const struct sl_json *field_get(const struct sl_json *o, const char *name);
/* Errors of a tokeniser, which knows no fields, get the field's name; returns r. */
enum sl_status name_prompt(const char *field, enum sl_status r, struct sl_err *err);
const char *json_kind_name(const struct sl_json *v);

/* openai_params.c */
enum sl_status openai_parse(struct call *c, bool is_chat, struct sl_err *err);
enum sl_status openai_check_model(struct call *c, struct sl_err *err);
/* The sampling fields of a completion alone: another door's parameters as a JSON object. */
enum sl_status openai_parse_sampling(struct call *c, struct sl_err *err);

/* chat_prompt.c: the text of messages by the model's template, and its tokens. */
enum sl_status chat_tokens(struct call *c, const struct sl_json *messages,
                           const struct sl_json *kwargs, bool add_generation_prompt,
                           bool continue_final, struct sl_tokens *out, struct sl_err *err);

/* openai_out.c: pieces of answers and events. */
void out_usage(struct sl_buf *b, const struct gen_usage *u);
void out_chat_logprobs(struct sl_buf *items, const struct sl_tokenizer *t,
                       const struct sl_sampled *tokens, uint32_t n);
/* {text: logprob, ...} of the alternatives, likeliest first. */
void out_text_logprobs(struct sl_buf *b, const struct sl_tokenizer *t, const struct sl_sampled *s);
void out_token_text(struct sl_buf *b, const struct sl_tokenizer *t, uint32_t token);

/* openai_resume.c: event ids, going on after one, and what an answer was made from. */
enum sl_status openai_resume(struct call *c, struct sl_err *err); /* once n_choices is known */
void openai_part_params(const struct call *c, uint32_t part, struct gen_params *out);
void openai_note_delta(struct call *c, struct choice *ch, const struct gen_delta *d);
void openai_put_id(struct sl_buf *b, const struct call *c);
void openai_put_proof(struct sl_buf *b, const struct call *c);
void out_proof_choice(struct sl_buf *b, uint32_t index, uint32_t prompt, const struct gen_end *e);

/* openai_run.c: the life both generating endpoints share. */
enum sl_status openai_start(struct call *c, struct sl_err *err);
void openai_keep_alive(struct call *c);
void openai_closed(struct call *c);
void openai_drained(struct call *c);

extern const struct dialect dialect_completions, dialect_chat, dialect_tokenize, dialect_detokenize;

#endif
