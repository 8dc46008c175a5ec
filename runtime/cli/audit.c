/* sluice audit FILE [MODEL]: did this model give this stored answer?
 *
 * Exit code 0: authentic; 1: not, and the first difference is named (also when the audit itself
 * fails); 2: the file is no stored answer; 4: it was computed in another class, by another model or
 * numerics, so that nothing can be said here. */
#include "audit_file.h"
#include "engine_options.h"
#include "session.h"

#include <sluice/base/containers.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX ((size_t)256 << 20)

struct audit_options {
    struct engine_options engine;
    const char *config;
    bool json;
};

#define ROW(...)        CLI_OPTION_ROW(struct audit_options, __VA_ARGS__)
#define ENGINE_ROW(...) ENGINE_OPTION_ROW(struct audit_options, engine, __VA_ARGS__)

static const struct sl_option audit_table[] = {
    ENGINE_OPTION_TABLE(ENGINE_ROW)
        ROW("json", SL_OPT_FLAG, json, "false", 0, 0, NULL, NULL, "print the verdict as JSON")
            ROW("config", SL_OPT_STRING, config, NULL, 0, 0, NULL, "FILE", "YAML file of options")};

/* The verdict on one choice, the text it shows included. */
struct finding {
    struct sl_audit_result result;
    const char *problem; /* NULL: authentic */
};

static enum sl_status read_all(const char *path, struct sl_buf *out, struct sl_err *err)
{
    FILE *f = strcmp(path, "-") != 0 ? fopen(path, "re") : stdin;
    char piece[65536];
    size_t n;
    if (!f)
        return sl_fail(err, SL_USAGE, "audit: %s cannot be read", path);
    out->cap_bytes = FILE_MAX;
    while ((n = fread(piece, 1, sizeof piece, f)) > 0)
        sl_buf_append(out, piece, n);
    bool failed = ferror(f) != 0;
    if (f != stdin)
        fclose(f);
    if (failed || out->failed || !out->len)
        return sl_fail(err, SL_USAGE, "audit: %s is empty, unreadable or larger than %zu bytes",
                       path, FILE_MAX);
    return SL_OK;
}

/* --- text ------------------------------------------------------------------------------------- */

/* The text of the tokens, cut by stop strings; *stopped when one was met. */
static void text_of(const struct sl_tokenizer *t, const struct audit_file *f,
                    const struct sl_audit_claim *c, struct sl_buf *out, bool *stopped)
{
    struct sl_detok detok = {.skip_special = f->skip_special};
    struct sl_stop stop;
    struct sl_buf piece = {0};
    bool met = false;
    sl_stop_init(&stop, f->stop, f->n_stop, f->include_stop);
    for (uint32_t i = 0; i < c->n_tokens && !met; i++) {
        sl_buf_clear(&piece);
        sl_detok_push(&detok, t, c->tokens[i], &piece);
        if (i + 1 < c->sampling.min_tokens)
            sl_buf_append(out, piece.data, piece.len);
        else
            met = sl_stop_push(&stop, piece.data, piece.len, out);
    }
    if (!met) {
        sl_buf_clear(&piece);
        sl_detok_finish(&detok, &piece);
        if (!sl_stop_push(&stop, piece.data, piece.len, out))
            sl_stop_finish(&stop, out);
    }
    *stopped = stop.hit >= 0;
    sl_buf_free(&piece);
    sl_stop_free(&stop);
}

static bool is_text(const struct audit_file *f, const struct sl_buf *shown,
                    const struct sl_buf *want)
{
    size_t from = f->echo && shown->len > want->len ? shown->len - want->len : 0;
    return shown->len - from == want->len &&
           (!want->len || !memcmp(shown->data + from, want->data, want->len));
}

/* What the tokens cannot tell: the text shown, and the reason given for the end. */
static const char *check_shown(const struct sl_tokenizer *t, const struct audit_file *f,
                               const struct audit_choice *c, enum sl_end end)
{
    struct sl_buf want = {0};
    bool stopped;
    if (c->n_logprobs && c->n_logprobs != c->claim.n_tokens)
        return "there are not as many logprobs as tokens";
    text_of(t, f, &c->claim, &want, &stopped);
    bool same = is_text(f, &c->text, &want);
    sl_buf_free(&want);
    if (!same)
        return "the text is not that of the tokens";
    bool says_stop = sl_str_eqz(c->finish_reason, "stop");
    bool says_length = sl_str_eqz(c->finish_reason, "length");
    if ((says_stop && !stopped && end != SL_END_STOP) ||
        (says_length && (stopped || end == SL_END_STOP)))
        return "the finish reason is not that of the tokens";
    return NULL;
}

/* --- output ----------------------------------------------------------------------------------- */

static void put_tokens(struct sl_buf *b, const struct sl_audit_result *r)
{
    if (r->verdict != SL_AUDIT_TOKEN && r->verdict != SL_AUDIT_LOGPROB &&
        r->verdict != SL_AUDIT_AFTER_END)
        return;
    sl_buf_printf(b, ",\"position\":%u,\"claimed_token\":%u,\"computed_token\":%u", r->at,
                  r->claimed.token, r->computed.token);
    if (r->verdict != SL_AUDIT_LOGPROB)
        return;
    sl_buf_puts(b, ",\"claimed_logprob\":");
    sl_buf_json_f32(b, r->claimed.logprob);
    sl_buf_puts(b, ",\"computed_logprob\":");
    sl_buf_json_f32(b, r->computed.logprob);
}

static void print_json(const struct audit_file *f, const struct finding *found, const char *class)
{
    struct sl_buf b = {0};
    bool all = true;
    for (uint32_t i = 0; i < f->n_choices; i++)
        all &= !found[i].problem;
    sl_buf_printf(&b, "{\"authentic\":%s,\"class\":", all ? "true" : "false");
    sl_buf_json_str(&b, class, strlen(class));
    sl_buf_puts(&b, ",\"choices\":[");
    for (uint32_t i = 0; i < f->n_choices; i++) {
        const struct sl_audit_result *r = &found[i].result;
        char hex[2 * SL_CHAIN_BYTES + 1];
        sl_hex(r->chain, SL_CHAIN_BYTES, hex);
        sl_buf_printf(&b,
                      "%s{\"index\":%u,\"authentic\":%s,\"verdict\":\"%s\",\"tokens\":%u,"
                      "\"rows\":%u,\"chain\":\"%s\"",
                      i ? "," : "", i, found[i].problem ? "false" : "true",
                      found[i].problem ? found[i].problem : "authentic",
                      f->choices[i].claim.n_tokens, r->n_rows, hex);
        put_tokens(&b, r);
        sl_buf_putc(&b, '}');
    }
    sl_buf_puts(&b, "]}\n");
    fwrite(b.data, 1, b.len, stdout);
    sl_buf_free(&b);
}

static void print_text(const struct audit_file *f, const struct finding *found)
{
    for (uint32_t i = 0; i < f->n_choices; i++) {
        const struct sl_audit_result *r = &found[i].result;
        uint32_t n = f->choices[i].claim.n_tokens;
        if (!found[i].problem)
            printf("choice %u: authentic, %u tokens\n", i, n);
        else if (r->verdict == SL_AUDIT_TOKEN)
            printf("choice %u: not authentic: %s at token %u of %u: %u claimed, %u computed\n", i,
                   found[i].problem, r->at, n, r->claimed.token, r->computed.token);
        else if (r->verdict == SL_AUDIT_LOGPROB)
            printf("choice %u: not authentic: %s at token %u of %u: %.9g claimed, %.9g computed\n",
                   i, found[i].problem, r->at, n, (double)r->claimed.logprob,
                   (double)r->computed.logprob);
        else
            printf("choice %u: not authentic: %s\n", i, found[i].problem);
    }
}

/* --- the audit -------------------------------------------------------------------------------- */

static enum sl_status judge(const struct audit_file *f, struct sl_audit *a,
                            const struct sl_tokenizer *t, struct finding *found, struct sl_err *err)
{
    for (uint32_t i = 0; i < f->n_choices; i++) {
        const struct audit_choice *c = &f->choices[i];
        enum sl_status s = sl_audit_run(a, &c->claim, &found[i].result, err);
        if (s)
            return s;
        if (found[i].result.verdict == SL_AUDIT_OTHER_CLASS)
            return sl_fail(err, SL_MODEL, "audit: computed in class %.*s; this is class %s",
                           (int)(c->claim.class_name.len < 100 ? c->claim.class_name.len : 100),
                           c->claim.class_name.data, sl_audit_class(a));
        found[i].problem = found[i].result.verdict ? sl_audit_verdict_text(found[i].result.verdict)
                                                   : check_shown(t, f, c, found[i].result.end);
    }
    return SL_OK;
}

static enum sl_status audit(const struct audit_options *o, const struct audit_file *f,
                            const char *model, char *const *env, struct finding *found,
                            struct sl_err *err)
{
    struct sl_engine_config cfg;
    struct sl_buf path = {0};
    struct sl_gguf *gguf = NULL;
    struct sl_tokenizer *t = NULL;
    struct sl_audit *a = NULL;
    char sha256[65];
    size_t n_stops;
    enum sl_status s = engine_options_config(&o->engine, 1, &cfg, err);
    if (s || (s = sl_store_find(model, env, &path, err)) ||
        (s = sl_gguf_open(path.data, &gguf, err)) || (s = sl_tokenizer_open(gguf, &t, err)) ||
        (s = sl_store_sha256(path.data, env, sha256, err)))
        goto out;
    cfg.gguf = gguf;
    cfg.stop_ids = sl_tokenizer_stops(t, &n_stops);
    cfg.n_stop_ids = (uint32_t)n_stops;
    cfg.weights_sha256 = sha256;
    if (isatty(STDERR_FILENO))
        cfg.progress = sl_cli_progress;
    s = sl_audit_open(&cfg, f->longest, &a, err);
    if (!s)
        s = judge(f, a, t, found, err);
    if (!s && o->json)
        print_json(f, found, sl_audit_class(a));
    else if (!s)
        print_text(f, found);
out:
    sl_audit_close(a);
    if (t)
        sl_tokenizer_close(t);
    if (gguf)
        sl_gguf_close(gguf);
    sl_buf_free(&path);
    return s;
}

/* *authentic is set with SL_OK. */
static enum sl_status run(const struct audit_options *o, const char *path, const char *model,
                          char *const *env, bool *authentic, struct sl_err *err)
{
    struct audit_file f = {0};
    struct finding *found = NULL;
    struct sl_buf data = {0};
    enum sl_status s = read_all(path, &data, err);
    if (!s)
        s = audit_file_parse(data.data, data.len, &f, err);
    if (!s && !(found = calloc(f.n_choices, sizeof *found)))
        s = sl_fail(err, SL_NO_MEMORY, "audit: no memory for %u choices", f.n_choices);
    if (!s)
        s = audit(o, &f, model, env, found, err);
    *authentic = true;
    for (uint32_t i = 0; !s && i < f.n_choices; i++)
        *authentic &= !found[i].problem;
    free(found);
    audit_file_free(&f);
    sl_buf_free(&data);
    struct sl_err why = *err;
    return s == SL_BAD_JSON ? sl_fail(err, SL_USAGE, "audit: %.80s: %.150s", path, why.msg) : s;
}

const struct sl_verb_doc sl_doc_audit = {.verb = "audit",
                                         .operands = "FILE [MODEL]",
                                         .summary = "tell whether a model gave a stored answer",
                                         .table = audit_table,
                                         .n_table = sizeof audit_table / sizeof *audit_table};

int sl_cli_audit(int argc, char **argv, char *const *env)
{
    struct audit_options o = {0};
    struct sl_arena arena;
    struct sl_err err = {0};
    const char *operands[2] = {NULL, NULL};
    size_t n = 0;
    bool done, authentic = false;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("audit", "FILE [MODEL] ", audit_table,
                            sizeof audit_table / sizeof *audit_table, argc, argv, env, &arena, &o,
                            operands, 2, &n, &done);
    if (!done) {
        enum sl_status s = n ? run(&o, operands[0], operands[1], env, &authentic, &err)
                             : sl_fail(&err, SL_USAGE, "audit: the file is missing");
        rc = s ? sl_cli_fail(&err) : !authentic;
    }
    sl_arena_free(&arena);
    return rc;
}
