/* Generation: what every door (HTTP dialects, KServe over gRPC) asks of the router node.
 *
 * A door parses its own format into gen_params and gets text back through callbacks, all on the
 * node's loop thread. Routing, retries, detokenising, stop strings, seeds, usage and admission are
 * behind this line; nothing of HTTP or gRPC is. */
#ifndef SLUICE_SERVE_GEN_H
#define SLUICE_SERVE_GEN_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <sluice/text/chain.h>
#include <sluice/text/chat.h>
#include <sluice/text/sampler.h>
#include <sluice/text/tokenizer.h>
#include <stdbool.h>
#include <stdint.h>

struct node;
struct gen;
struct sl_msg_out;

/* Everything is copied by gen_start. */
struct gen_params {
    const uint32_t *prompt;
    uint32_t n_prompt;
    struct sl_sampling sampling; /* max_tokens 0: to the end of the context */
    bool has_seed;               /* otherwise the node draws one */
    uint32_t n;                  /* choices, 1..SL_LIMIT_n_choices */
    const struct sl_str *stop;   /* stop strings */
    uint32_t n_stop;
    bool include_stop; /* the stop string stays in the text */
    bool keep_special; /* special tokens show in the text */
    int32_t priority;
    struct sl_str tenant; /* API key hash or user: fairness and cache salt; may be empty */
    struct sl_str cache_salt;
    struct sl_str session; /* requests of one session may be kept at one worker; may be empty */
    uint64_t deadline_ms; /* from now; 0: none */
    /* Going on after an event: what was shown of each choice [n], and the class it came from. The
     * tokens are computed again, compared with the link and handed out once as `replayed`. NULL: a
     * new generation. */
    const struct sl_event_choice *shown;
    bool has_class; /* only workers of class_hash may compute it */
    uint64_t class_hash;
    const struct gen_relay *relay; /* NULL: a request of a door */
};

/* A stream of a router above this one: tokens in, tokens out, no text. n is 1, and the parameters
 * of text do not count. */
struct gen_relay {
    const uint32_t *generated; /* earlier tokens, after the prompt */
    uint32_t n_generated;
    uint32_t choice, hops;
    uint64_t tenant;  /* as the other router made them of a request's names */
    uint8_t salt[32]; /* of the prefix cache */
    /* Instead of the other callbacks but on_error. With an end the gen is gone. */
    void (*on_tokens)(void *ctx, const struct sl_msg_out *o);
};

/* What came since the last call for this choice. Borrowed during the call. */
struct gen_delta {
    uint32_t choice;
    struct sl_str text;              /* valid UTF-8; may be empty */
    const struct sl_sampled *tokens; /* the tokens behind it, also those whose text is held back */
    uint32_t n_tokens;
    bool replayed; /* shown before: not to be shown again */
    bool last;     /* the text is complete */
    const struct sl_chain *chain; /* after these tokens */
    uint64_t class_hash;          /* of the workers that may compute this choice */
};
struct gen_end {
    uint32_t choice;
    const char *finish_reason; /* "stop" or "length" */
    const struct sl_str *stop; /* the stop string that was met, or NULL */
    uint32_t stop_token;       /* the token that ended it, or SL_NO_TOKEN */
    uint32_t n_tokens;         /* completion tokens of this choice */
    const uint32_t *tokens;    /* [n_tokens] */
    bool replayed;             /* this end was shown before */
    const struct sl_chain *chain;
    struct sl_str class_name;
    const struct sl_sampling *sampling; /* in force, with the seed */
};
struct gen_usage {
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
};

/* With `shown`, on_error gets SL_CONFLICT when the tokens are not those that were shown.
 *
 * For each choice: deltas, then one on_end; after the last choice's end on_done. on_error instead
 * of what is left. After on_done or on_error the gen is gone. No callback runs inside gen_start. */
struct gen_ops {
    void (*on_delta)(void *ctx, const struct gen_delta *d);
    void (*on_end)(void *ctx, const struct gen_end *e);
    void (*on_done)(void *ctx, const struct gen_usage *u);
    void (*on_error)(void *ctx, const struct sl_err *err, const struct gen_usage *u);
};

/* SL_QUEUE_FULL, SL_LOADING, SL_DRAINING, SL_TOO_LONG, SL_INVALID (the one validator: ranges of
 * sampling, ids, n, stops; err->param names the OpenAI field). */
enum sl_status gen_start(struct node *n, const struct gen_params *p, const struct gen_ops *ops,
                         void *ctx, struct gen **out, struct sl_err *err);
/* The client is gone: no further callback; the gen is gone. */
void gen_cancel(struct gen *g);
/* Back-pressure of one slow reader: nothing is delivered until gen_resume; only ids are kept. */
void gen_pause(struct gen *g);
void gen_resume(struct gen *g);
struct gen_usage gen_usage(const struct gen *g);

/* The model being served; valid (non-NULL tokenizer) once node_has_model. */
bool node_has_model(const struct node *n);
const struct sl_tokenizer *node_tokenizer(const struct node *n);
const struct sl_template *node_template(const struct node *n); /* NULL: the file has none */
const char *node_model_name(const struct node *n);
uint64_t node_model_created(const struct node *n); /* Unix seconds */
uint32_t node_max_len(const struct node *n);
uint32_t node_n_vocab(const struct node *n);
/* Ready: some worker is registered, fresh, and made progress recently or is idle. */
bool node_is_ready(const struct node *n, struct sl_err *why);
bool node_is_draining(const struct node *n);
struct sl_loop *node_loop(struct node *n);
/* The list of `sluice ctl ps --json`, one object a process. */
void node_print_ps(struct node *n, struct sl_buf *out);
/* Asks for a drain, as SIGTERM does. */
void node_drain(struct node *n);
/* Refreshes gauges (running, waiting, KV use, ...) before /metrics is printed. */
void node_refresh_metrics(struct node *n);
/* True when `key` (from Authorization: Bearer) may use the API; constant time. */
bool node_key_ok(const struct node *n, struct sl_str key);
bool node_needs_key(const struct node *n);

#endif
