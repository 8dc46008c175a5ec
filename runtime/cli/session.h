/* A model in this process: file, tokenizer, template and engine, for verbs that need no server. */
#ifndef SLUICE_CLI_SESSION_H
#define SLUICE_CLI_SESSION_H

#include "cli.h"
#include "engine_options.h"
#include <sluice/engine/engine.h>
#include <sluice/files/gguf.h>
#include <sluice/text/chat.h>
#include <sluice/text/tokenizer.h>

struct session {
    struct sl_gguf *gguf;
    struct sl_tokenizer *tokenizer;
    struct sl_template *template; /* NULL: the file has none, or one we cannot run */
    struct sl_engine *engine;
    char name[128]; /* the file's name without folder and .gguf */
    char sha256[65];
    struct sl_tokens tokens; /* of the latest request */
    struct session_ranks *ranks; /* NULL: a model of one rank */
};

/* Opens `operand` (NULL: the default model). `cfg`, made from `options`, says how; gguf, stop_ids,
 * weights_sha256 and the rendezvous are filled in. A progress line is drawn on a terminal. The
 * other ranks of a sharded model are started, waited for, and kept while the session lives. */
enum sl_status session_open(struct session *s, const char *operand,
                            const struct engine_options *options, struct sl_engine_config *cfg,
                            char *const *env, struct sl_err *err);
void session_close(struct session *s);

/* Runs one request to its end; `on_text` gets text as it is certain; the tokens stand in
 * s->tokens afterwards. */
struct session_result {
    const char *finish_reason;
    uint32_t n_tokens;
    uint64_t first_token_ns, total_ns;
};
enum sl_status session_generate(struct session *s, const struct sl_tokens *prompt,
                                const struct sl_sampling *sampling,
                                void (*on_text)(void *ctx, const char *text, size_t len), void *ctx,
                                struct session_result *out, struct sl_err *err);

#endif
