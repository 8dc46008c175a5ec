/* Tokenizer: cuts text at special tokens, then by the pre-tokenizer, then merges each piece. */
#include "tokenizer_priv.h"
#include "text_utf8.h"

#include <stdlib.h>
#include <string.h>

#define STOPS_MAX 64

/* ---- growable ids ---- */

void sl_tokens_push(struct sl_tokens *t, uint32_t id)
{
    if (t->failed)
        return;
    if (t->n == t->alloc) {
        size_t alloc = t->alloc ? t->alloc * 2 : 64;
        uint32_t *ids =
            alloc > SIZE_MAX / sizeof *ids ? NULL : realloc(t->ids, alloc * sizeof *ids);
        if (!ids) {
            t->failed = true;
            return;
        }
        t->ids = ids;
        t->alloc = alloc;
    }
    t->ids[t->n++] = id;
}

void sl_tokens_free(struct sl_tokens *t)
{
    free(t->ids);
    *t = (struct sl_tokens){0};
}

bool tokens_out_push(struct tokens_out *o, uint32_t id)
{
    if (o->tokens->n >= o->n_max)
        o->status = SL_TOO_LONG;
    else
        sl_tokens_push(o->tokens, id);
    if (o->tokens->failed)
        o->status = SL_NO_MEMORY;
    return o->status == SL_OK;
}

/* ---- opening ---- */

static enum sl_status read_id(const struct sl_gguf *g, const char *name, uint32_t n_vocab,
                              uint32_t *out, struct sl_err *err)
{
    *out = SL_NO_TOKEN;
    if (!sl_gguf_find(g, name))
        return SL_OK;
    uint32_t id;
    if (!sl_gguf_u32(g, name, &id) || id >= n_vocab)
        return sl_fail(err, SL_MODEL, "tokenizer: '%s' is not a token of the %u", name, n_vocab);
    *out = id;
    return SL_OK;
}

/* Names under which models' control tokens end a turn or a document, wherever a file forgets to
 * give their ids. */
static bool ends_generation(const struct vocab *v, uint32_t id)
{
    static const char *const names[] = {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endofturn|>",
        "<EOT>",
        "<|EOT|>",
        "<｜end▁of▁sentence｜>",
    };
    if (v->kind[id] != TOKEN_CONTROL)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (sl_str_eqz(vocab_bytes(v, id), names[i]))
            return true;
    return false;
}

static void add_stop(struct sl_tokenizer *t, uint32_t id)
{
    for (size_t i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id)
            return;
    if (id != SL_NO_TOKEN && t->n_stops < STOPS_MAX)
        t->stops[t->n_stops++] = id;
}

static enum sl_status read_ids(const struct sl_gguf *g, struct sl_tokenizer *t, struct sl_err *err)
{
    static const char *const names[] = {"tokenizer.ggml.eos_token_id",
                                        "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id"};
    uint32_t n = t->vocab.n, id;
    enum sl_status s = read_id(g, "tokenizer.ggml.bos_token_id", n, &t->bos, err);
    if (s || (s = read_id(g, names[0], n, &t->eos, err)))
        return s;
    if (!(t->stops = malloc(STOPS_MAX * sizeof *t->stops)))
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for stop ids");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if ((s = read_id(g, names[i], n, &id, err)))
            return s;
        add_stop(t, id);
    }
    for (uint32_t i = 0; i < n; i++)
        if (ends_generation(&t->vocab, i))
            add_stop(t, i);
    t->add_bos = t->pre.row->add_bos;
    if (sl_gguf_find(g, "tokenizer.ggml.add_bos_token") &&
        !sl_gguf_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos))
        return sl_fail(err, SL_MODEL, "tokenizer: 'tokenizer.ggml.add_bos_token' is not a bool");
    return SL_OK;
}

static enum sl_status read_template(const struct sl_gguf *g, struct sl_tokenizer *t,
                                    struct sl_err *err)
{
    struct sl_str text;
    if (!sl_gguf_str(g, "tokenizer.chat_template", &text))
        return SL_OK;
    if (!(t->template_text = malloc(text.len + 1)))
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for a template of %zu bytes",
                       text.len);
    if (text.len)
        memcpy(t->template_text, text.data, text.len);
    t->template_text[text.len] = 0;
    t->template_len = text.len;
    return SL_OK;
}

static enum sl_status open_memory(struct sl_tokenizer *t, struct sl_err *err)
{
    t->whole = calloc(t->vocab.n, sizeof *t->whole);
    return t->whole ? SL_OK : sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory");
}

static enum sl_status open_parts(const struct sl_gguf *g, struct sl_tokenizer *t,
                                 struct sl_err *err)
{
    struct sl_str model = {"", 0}, pre = SL_STR("default");
    sl_gguf_str(g, "tokenizer.ggml.model", &model);
    if (!sl_str_eqz(model, "gpt2"))
        return sl_fail(err, SL_MODEL, "tokenizer: type '%.*s' is not supported, only 'gpt2' is",
                       (int)(model.len < 64 ? model.len : 64), model.data);
    sl_gguf_str(g, "tokenizer.ggml.pre", &pre);
    enum sl_status s = pre_open(pre, &t->pre, err);
    if (s || (s = vocab_open(g, &t->vocab, err)) || (s = bpe_open(g, &t->vocab, &t->bpe, err)) ||
        (s = open_memory(t, err)) || (s = specials_open(&t->vocab, true, &t->all, err)) ||
        (s = specials_open(&t->vocab, false, &t->user, err)) || (s = read_ids(g, t, err)))
        return s;
    return read_template(g, t, err);
}

enum sl_status sl_tokenizer_open(const struct sl_gguf *g, struct sl_tokenizer **out,
                                 struct sl_err *err)
{
    *out = NULL;
    struct sl_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory");
    enum sl_status s = open_parts(g, t, err);
    if (s) {
        sl_tokenizer_close(t);
        return s;
    }
    *out = t;
    return SL_OK;
}

void sl_tokenizer_close(struct sl_tokenizer *t)
{
    if (!t)
        return;
    pre_close(&t->pre);
    vocab_close(&t->vocab);
    bpe_close(&t->bpe);
    specials_close(&t->all);
    specials_close(&t->user);
    free(t->whole);
    free(t->template_text);
    free(t->stops);
    free(t);
}

/* ---- tokenising ---- */

struct job {
    const struct sl_tokenizer *t;
    const size_t *breaks; /* no special token is matched across these */
    size_t n_breaks;
    struct tokens_out out;
    struct bpe_scratch scratch;
    struct pre_run run;
};

/* A word that is a token stays whole if the pre-tokenizer says so, or if merging it has given that
 * token before. */
static bool add_word(void *ctx, const char *word, size_t len)
{
    struct job *j = ctx;
    const struct sl_tokenizer *t = j->t;
    uint32_t id = len <= t->vocab.longest ? vocab_find(&t->vocab, word, len) : SL_NO_TOKEN;
    if (id == SL_NO_TOKEN)
        return bpe_merge(&t->bpe, word, len, &j->scratch, &j->out);
    if (t->pre.row->whole_words || atomic_load_explicit(&t->whole[id], memory_order_relaxed))
        return tokens_out_push(&j->out, id);
    size_t n_before = j->out.tokens->n;
    if (!bpe_merge(&t->bpe, word, len, &j->scratch, &j->out))
        return false;
    if (j->out.tokens->n == n_before + 1 && j->out.tokens->ids[n_before] == id)
        atomic_store_explicit(&t->whole[id], 1, memory_order_relaxed);
    return true;
}

/* More tokens than fit, whatever the merges do? Known without merging, so that memory stays in
 * proportion to max_tokens and not to the text. */
static bool surely_too_long(const struct job *j, const char *text, size_t len)
{
    size_t room = j->out.n_max - j->out.tokens->n, fits, n = 0;
    if (!sl_size_mul(room, j->t->vocab.longest, &fits) || len <= fits)
        return false;
    for (size_t i = 0; i < len; i++)
        n += j->t->bpe.byte_id[(uint8_t)text[i]] != SL_NO_TOKEN;
    return n > fits;
}

static enum sl_status add_text(struct job *j, const char *text, size_t len, struct sl_err *err)
{
    char *normal = NULL;
    enum sl_status s = SL_OK;
    if (!len)
        return SL_OK;
    if (j->t->pre.row->nfc && (s = nfc_normalise(text, len, &normal, &len, err)))
        return s;
    if (normal)
        text = normal;
    if (surely_too_long(j, text, len))
        j->out.status = SL_TOO_LONG;
    else
        s = pre_cut(&j->t->pre, &j->run, text, len, add_word, j, err);
    free(normal);
    return s;
}

/* The first break behind `from`, or len; breaks before it are done with. */
static size_t next_break(struct job *j, size_t from, size_t len)
{
    while (j->n_breaks && *j->breaks <= from) {
        j->breaks++;
        j->n_breaks--;
    }
    return j->n_breaks && *j->breaks < len ? *j->breaks : len;
}

static uint32_t next_special(struct job *j, const struct specials *s, const char *text, size_t len,
                             size_t from, size_t *at)
{
    for (;;) {
        size_t end = next_break(j, from, len);
        uint32_t id = specials_find(s, &j->t->vocab, text, end, from, at);
        if (id != SL_NO_TOKEN || end == len)
            return id;
        from = end;
    }
}

static enum sl_status add_all(struct job *j, const char *text, size_t len, unsigned flags,
                              struct sl_err *err)
{
    const struct sl_tokenizer *t = j->t;
    const struct specials *specials = flags & SL_TOK_SPECIAL ? &t->all : &t->user;
    if ((flags & SL_TOK_ADD_BOS) && t->add_bos && t->bos != SL_NO_TOKEN)
        tokens_out_push(&j->out, t->bos);
    for (size_t from = 0; from < len && !j->out.status;) {
        size_t at;
        uint32_t id = next_special(j, specials, text, len, from, &at);
        enum sl_status s = add_text(j, text + from, at - from, err);
        if (s)
            return s;
        from = at;
        if (id != SL_NO_TOKEN && !j->out.status) {
            tokens_out_push(&j->out, id);
            from += vocab_bytes(&t->vocab, id).len;
        }
    }
    return SL_OK;
}

enum sl_status sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len,
                           unsigned flags, size_t max_tokens, struct sl_tokens *out,
                           struct sl_err *err)
{
    return sl_tokenize_guarded(t, text, len, flags, NULL, 0, max_tokens, out, err);
}

enum sl_status sl_tokenize_guarded(const struct sl_tokenizer *t, const char *text, size_t len,
                                   unsigned flags, const size_t *breaks, size_t n_breaks,
                                   size_t max_tokens, struct sl_tokens *out, struct sl_err *err)
{
    size_t n_before = out->n, bad = text_utf8_check(text, len);
    if (bad != len)
        return sl_fail(err, SL_INVALID, "text: invalid UTF-8 at byte %zu of %zu", bad, len);
    if (len >= UINT32_MAX)
        return sl_fail(err, SL_TOO_LONG, "text: %zu bytes are too many", len);
    struct job j = {
        .t = t, .breaks = breaks, .n_breaks = n_breaks, .out = {.tokens = out, .n_max = SIZE_MAX}};
    sl_size_add(n_before, max_tokens, &j.out.n_max);
    enum sl_status s = add_all(&j, text, len, flags, err);
    if (!s && j.out.status == SL_TOO_LONG)
        s = sl_fail(err, SL_TOO_LONG, "text: %zu bytes are more than %zu tokens", len, max_tokens);
    if (!s && j.out.status)
        s = sl_fail(err, SL_NO_MEMORY, "text: no memory to tokenize %zu bytes", len);
    if (s)
        out->n = n_before;
    bpe_scratch_free(&j.scratch);
    pre_run_close(&j.run);
    return s;
}

/* ---- facts ---- */

size_t sl_token_special_at(const struct sl_tokenizer *t, const char *text, size_t len)
{
    uint32_t id = len ? specials_match(&t->all, &t->vocab, text, len) : SL_NO_TOKEN;
    return id == SL_NO_TOKEN ? 0 : vocab_bytes(&t->vocab, id).len;
}

struct sl_str sl_token_bytes(const struct sl_tokenizer *t, uint32_t id)
{
    return id < t->vocab.n ? vocab_bytes(&t->vocab, id) : (struct sl_str){"", 0};
}

bool sl_token_is_special(const struct sl_tokenizer *t, uint32_t id)
{
    return id < t->vocab.n &&
           (t->vocab.kind[id] == TOKEN_CONTROL || t->vocab.kind[id] == TOKEN_USER);
}

uint32_t sl_tokenizer_n_vocab(const struct sl_tokenizer *t)
{
    return t->vocab.n;
}

uint32_t sl_tokenizer_bos(const struct sl_tokenizer *t)
{
    return t->bos;
}

uint32_t sl_tokenizer_eos(const struct sl_tokenizer *t)
{
    return t->eos;
}

const uint32_t *sl_tokenizer_stops(const struct sl_tokenizer *t, size_t *n)
{
    *n = t->n_stops;
    return t->stops;
}

struct sl_str sl_tokenizer_template(const struct sl_tokenizer *t)
{
    return t->template_text ? (struct sl_str){t->template_text, t->template_len}
                            : (struct sl_str){"", 0};
}
