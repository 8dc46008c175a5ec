/* Reads stored answers. A stream is a list of documents, a whole answer a list of one: texts and
 * logprobs of all are put together, choice by choice. */
#include "audit_file.h"

#include <sluice/base/limits.h>
#include <stdlib.h>
#include <string.h>

#define MEM_MAX     ((size_t)1 << 30)
#define CHOICES_MAX (SL_LIMIT_prompt_batch * SL_LIMIT_n_choices)

static enum sl_status bad(struct sl_err *err, const char *what)
{
    return sl_fail(err, SL_USAGE, "audit: %s", what);
}

static const struct sl_json *member(const struct sl_json *o, const char *name,
                                    enum sl_json_kind kind)
{
    const struct sl_json *v = o && sl_json_kind(o) == SL_JSON_OBJECT ? sl_json_get(o, name) : NULL;
    return v && sl_json_kind(v) == kind ? v : NULL;
}

static bool flag(const struct sl_json *o, const char *name)
{
    const struct sl_json *v = member(o, name, SL_JSON_BOOL);
    return v && sl_json_bool(v);
}

static struct sl_str string(const struct sl_json *o, const char *name)
{
    const struct sl_json *v = member(o, name, SL_JSON_STRING);
    return v ? sl_json_str(v) : (struct sl_str){"", 0};
}

static bool count(const struct sl_json *o, const char *name, uint32_t max, uint32_t *out)
{
    const struct sl_json *v = member(o, name, SL_JSON_INT);
    if (!v || sl_json_int(v) < 0 || sl_json_int(v) > max)
        return false;
    *out = (uint32_t)sl_json_int(v);
    return true;
}

/* --- documents -------------------------------------------------------------------------------- */

static enum sl_status add_doc(struct audit_file *f, struct sl_str text, struct sl_err *err)
{
    struct sl_json **docs = realloc(f->docs, (f->n_docs + 1) * sizeof(struct sl_json *));
    if (!docs)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory for %u events", f->n_docs + 1);
    f->docs = docs;
    enum sl_status s = sl_json_parse_answer(text.data, text.len, &docs[f->n_docs], err);
    f->n_docs += s == SL_OK;
    return s;
}

static enum sl_status read_events(struct audit_file *f, const char *data, size_t len,
                                  struct sl_err *err)
{
    enum sl_status s = SL_OK;
    for (const char *end = data + len; data < end && !s;) {
        const char *eol = memchr(data, '\n', (size_t)(end - data));
        size_t n = (size_t)((eol ? eol : end) - data);
        struct sl_str line = {data, n && data[n - 1] == '\r' ? n - 1 : n};
        data += n + (eol != NULL);
        if (line.len < 6 || memcmp(line.data, "data:", 5) != 0)
            continue;
        struct sl_str event = {line.data + 5, line.len - 5};
        if (event.data[0] == ' ')
            event = (struct sl_str){event.data + 1, event.len - 1};
        if (!sl_str_eqz(event, "[DONE]"))
            s = add_doc(f, event, err);
    }
    return s;
}

static const struct sl_json *answer_of(const struct sl_json *doc)
{
    const struct sl_json *inner = member(doc, "response", SL_JSON_OBJECT);
    return inner ? inner : doc;
}

/* --- the sluice object ------------------------------------------------------------------------ */

static bool read_ids(struct audit_file *f, const struct sl_json *list, const uint32_t **out,
                     uint32_t *n)
{
    size_t len = list && sl_json_kind(list) == SL_JSON_ARRAY ? sl_json_len(list) : 0;
    uint32_t *ids = SL_ARENA_ARRAY(&f->mem, uint32_t, len + 1);
    if (!len || len > UINT32_MAX / 4 || !ids)
        return false;
    for (size_t i = 0; i < len; i++) {
        const struct sl_json *v = sl_json_at(list, i);
        if (sl_json_kind(v) != SL_JSON_INT || sl_json_int(v) < 0 || sl_json_int(v) > UINT32_MAX)
            return false;
        ids[i] = (uint32_t)sl_json_int(v);
    }
    *out = ids;
    *n = (uint32_t)len;
    return true;
}

static bool read_hex(struct sl_str hex, uint8_t *out, size_t n)
{
    if (hex.len != 2 * n)
        return false;
    for (size_t i = 0; i < 2 * n; i++) {
        char c = hex.data[i];
        int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (v < 0)
            return false;
        out[i / 2] = (uint8_t)(out[i / 2] << 4 | v);
    }
    return true;
}

static enum sl_status read_claim(struct audit_file *f, const struct sl_json *o,
                                 const struct sl_json *prompts, struct sl_audit_claim *c,
                                 struct sl_err *err)
{
    const struct sl_json *seed = member(o, "seed", SL_JSON_INT);
    uint32_t prompt;
    enum sl_status s =
        sl_sampling_read(member(o, "sampling", SL_JSON_OBJECT), &f->mem, &c->sampling, err);
    if (s)
        return sl_fail(err, SL_USAGE, "audit: sluice.choices: %s", err->param);
    if (!seed || !count(o, "choice", SL_LIMIT_n_choices, &c->choice) ||
        !count(o, "prompt", CHOICES_MAX, &prompt) || prompt >= sl_json_len(prompts) ||
        !read_ids(f, sl_json_at(prompts, prompt), &c->prompt, &c->n_prompt) ||
        !read_ids(f, member(o, "tokens", SL_JSON_ARRAY), &c->tokens, &c->n_tokens) ||
        !read_hex(string(o, "chain"), c->chain, sizeof c->chain))
        return bad(err, "a choice of the sluice object is incomplete");
    c->class_name = string(o, "class");
    c->sampling.seed = (uint64_t)sl_json_int(seed);
    if (c->n_prompt + c->n_tokens > f->longest)
        f->longest = c->n_prompt + c->n_tokens;
    return SL_OK;
}

static enum sl_status read_stop(struct audit_file *f, const struct sl_json *list,
                                struct sl_err *err)
{
    size_t n = list ? sl_json_len(list) : 0;
    struct sl_str *stop = SL_ARENA_ARRAY(&f->mem, struct sl_str, n + 1);
    if (!list || n > SL_LIMIT_stop_strings || !stop)
        return bad(err, "sluice.stop is missing or too long");
    for (size_t i = 0; i < n; i++) {
        if (sl_json_kind(sl_json_at(list, i)) != SL_JSON_STRING)
            return bad(err, "sluice.stop holds something else than strings");
        stop[i] = sl_json_str(sl_json_at(list, i));
    }
    f->stop = stop;
    f->n_stop = (uint32_t)n;
    return SL_OK;
}

static enum sl_status read_sluice(struct audit_file *f, const struct sl_json *o, struct sl_err *err)
{
    const struct sl_json *prompts = member(o, "prompts", SL_JSON_ARRAY);
    const struct sl_json *choices = member(o, "choices", SL_JSON_ARRAY);
    uint32_t version;
    if (!count(o, "version", 1, &version) || version != 1)
        return bad(err, "the sluice object is of another version");
    if (!prompts || !choices || !sl_json_len(choices) || sl_json_len(choices) > CHOICES_MAX)
        return bad(err, "the sluice object has no prompts or no choices");
    f->include_stop = flag(o, "include_stop");
    f->skip_special = flag(o, "skip_special");
    f->echo = flag(o, "echo");
    f->choices = SL_ARENA_ARRAY(&f->mem, struct audit_choice, sl_json_len(choices));
    enum sl_status s = read_stop(f, member(o, "stop", SL_JSON_ARRAY), err);
    if (!f->choices)
        return sl_fail(err, SL_NO_MEMORY, "audit: no memory for the choices");
    for (size_t i = 0; i < sl_json_len(choices) && !s; i++) {
        s = read_claim(f, sl_json_at(choices, i), prompts, &f->choices[i].claim, err);
        f->n_choices += s == SL_OK;
    }
    return s;
}

/* --- what was shown --------------------------------------------------------------------------- */

static float number_of(const struct sl_json *v)
{
    bool is = v && (sl_json_kind(v) == SL_JSON_INT || sl_json_kind(v) == SL_JSON_REAL);
    return is ? (float)sl_json_real(v) : 1; /* no logprob is positive: it will not agree */
}

/* Room for every token's logprobs, taken with the first; NULL when there are more than tokens. */
static struct sl_sampled *next_logprobs(struct audit_file *f, struct audit_choice *c)
{
    uint32_t at = c->n_logprobs++;
    if (!c->claim.logprobs)
        c->claim.logprobs = SL_ARENA_ARRAY(&f->mem, struct sl_sampled, c->claim.n_tokens);
    if (!c->claim.logprobs || at >= c->claim.n_tokens)
        return NULL;
    return (struct sl_sampled *)&c->claim.logprobs[at];
}

static void add_top(struct sl_sampled *p, float logprob)
{
    if (p->n_top < SL_LOGPROBS_MAX)
        p->top[p->n_top++] = (struct sl_token_prob){SL_AUDIT_ANY_TOKEN, logprob};
}

static void read_chat_logprobs(struct audit_file *f, struct audit_choice *c,
                               const struct sl_json *items)
{
    for (size_t i = 0; i < sl_json_len(items); i++) {
        const struct sl_json *item = sl_json_at(items, i);
        const struct sl_json *top = member(item, "top_logprobs", SL_JSON_ARRAY);
        struct sl_sampled *p = next_logprobs(f, c);
        if (!p || sl_json_kind(item) != SL_JSON_OBJECT)
            continue;
        p->logprob = number_of(sl_json_get(item, "logprob"));
        for (size_t k = 0; top && k < sl_json_len(top); k++) {
            const struct sl_json *t = sl_json_at(top, k);
            bool is = sl_json_kind(t) == SL_JSON_OBJECT;
            add_top(p, number_of(is ? sl_json_get(t, "logprob") : NULL));
        }
    }
}

static void read_text_logprobs(struct audit_file *f, struct audit_choice *c,
                               const struct sl_json *o)
{
    const struct sl_json *own = member(o, "token_logprobs", SL_JSON_ARRAY);
    const struct sl_json *tops = member(o, "top_logprobs", SL_JSON_ARRAY);
    c->claim.tops_by_text = true;
    for (size_t i = 0; own && i < sl_json_len(own); i++) {
        struct sl_sampled *p = next_logprobs(f, c);
        const struct sl_json *top = tops && i < sl_json_len(tops) ? sl_json_at(tops, i) : NULL;
        void *iter = NULL;
        struct sl_str key;
        const struct sl_json *v;
        if (!p)
            continue;
        p->logprob = number_of(sl_json_at(own, i));
        while (top && sl_json_kind(top) == SL_JSON_OBJECT && sl_json_next(top, &iter, &key, &v))
            add_top(p, number_of(v));
    }
}

static void read_shown(struct audit_file *f, const struct sl_json *o, struct audit_choice *c)
{
    const struct sl_json *holder = member(o, "message", SL_JSON_OBJECT);
    if (!holder)
        holder = member(o, "delta", SL_JSON_OBJECT);
    struct sl_str text = holder ? string(holder, "content") : string(o, "text");
    const struct sl_json *probs = member(o, "logprobs", SL_JSON_OBJECT);
    const struct sl_json *items = member(probs, "content", SL_JSON_ARRAY);
    sl_buf_append(&c->text, text.data, text.len);
    if (items)
        read_chat_logprobs(f, c, items);
    else if (probs)
        read_text_logprobs(f, c, probs);
    struct sl_str reason = string(o, "finish_reason");
    if (reason.len)
        c->finish_reason = reason;
}

/* How many alternatives were asked for: as many as the longest list has. */
static uint32_t longest_top(const struct sl_audit_claim *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; c->logprobs && i < c->n_tokens; i++)
        if (c->logprobs[i].n_top > n)
            n = c->logprobs[i].n_top;
    return n;
}

static void read_choices(struct audit_file *f)
{
    for (uint32_t d = 0; d < f->n_docs; d++) {
        const struct sl_json *list = member(answer_of(f->docs[d]), "choices", SL_JSON_ARRAY);
        for (size_t i = 0; list && i < sl_json_len(list); i++) {
            uint32_t index;
            if (count(sl_json_at(list, i), "index", f->n_choices - 1, &index))
                read_shown(f, sl_json_at(list, i), &f->choices[index]);
        }
    }
    for (uint32_t i = 0; i < f->n_choices; i++) {
        struct sl_audit_claim *c = &f->choices[i].claim;
        c->sampling.want_logprob = c->logprobs != NULL;
        c->sampling.n_logprobs = longest_top(c);
    }
}

enum sl_status audit_file_parse(const char *data, size_t len, struct audit_file *f,
                                struct sl_err *err)
{
    *f = (struct audit_file){0};
    sl_arena_init(&f->mem, MEM_MAX);
    size_t skip = 0;
    while (skip < len && memchr(" \t\r\n", data[skip], 4))
        skip++;
    bool whole = skip < len && data[skip] == '{';
    enum sl_status s =
        whole ? add_doc(f, (struct sl_str){data, len}, err) : read_events(f, data, len, err);
    const struct sl_json *o = NULL;
    for (uint32_t i = 0; i < f->n_docs && !o; i++)
        o = member(answer_of(f->docs[i]), "sluice", SL_JSON_OBJECT);
    if (!s && !o)
        s = bad(err, "the file holds no `sluice` object; ask with \"return_chain\": true");
    if (!s)
        s = read_sluice(f, o, err);
    if (!s)
        read_choices(f);
    return s;
}

void audit_file_free(struct audit_file *f)
{
    for (uint32_t i = 0; i < f->n_choices; i++)
        sl_buf_free(&f->choices[i].text);
    for (uint32_t i = 0; i < f->n_docs; i++)
        sl_json_free(f->docs[i]);
    free(f->docs);
    sl_arena_free(&f->mem);
}
