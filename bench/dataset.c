/* Datasets of the load generator. Made-up prompts are runs of short common words, which most
 * vocabularies hold as one token each; the server's own count goes into the report. The trace
 * format is the Mooncake traces': JSON lines of timestamp (ms), input_length, output_length and
 * hash_ids, one id for each block of 512 tokens, so that equal ids give equal text. */
#include "dataset.h"

#include <sluice/base/json.h>
#include <sluice/base/time.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TRACE_BLOCK    512
#define FILE_BYTES_MAX ((size_t)2 << 30)

static const char *const words[] = {
    "the",   "of",    "and",   "to",   "in",    "is",    "was",  "for",   "on",    "that",  "with",
    "as",    "his",   "they",  "be",   "at",    "one",   "have", "this",  "from",  "or",    "had",
    "by",    "hot",   "but",   "some", "what",  "there", "we",   "can",   "out",   "other", "were",
    "all",   "your",  "when",  "up",   "use",   "word",  "how",  "said",  "an",    "each",  "she",
    "which", "do",    "their", "time", "if",    "will",  "way",  "about", "many",  "then",  "them",
    "would", "write", "like",  "so",   "these", "her",   "long", "make",  "thing",
};
#define N_WORDS ((uint32_t)(sizeof words / sizeof *words))

struct maker {
    const struct bench_dataset_spec *spec;
    struct sl_arena *arena;
    struct bench_prompt *at;
    size_t n, max;
    struct sl_buf text; /* of the prompt being made */
};

static struct bench_prompt *prompt_add(struct maker *m)
{
    if (m->n == m->max) {
        size_t max = m->max ? m->max * 2 : 256;
        struct bench_prompt *at = SL_ARENA_ARRAY(m->arena, struct bench_prompt, max);
        if (!at)
            return NULL;
        if (m->n > 0)
            memcpy(at, m->at, m->n * sizeof *at);
        m->at = at;
        m->max = max;
    }
    struct bench_prompt *p = &m->at[m->n++];
    *p = (struct bench_prompt){.at_s = -1};
    return p;
}

static void put_words(struct sl_buf *b, size_t n, uint64_t seed)
{
    struct sl_rng rng = {.seed = seed};
    for (size_t i = 0; i < n && !b->failed; i++) {
        if (b->len > 0)
            sl_buf_putc(b, ' ');
        sl_buf_puts(b, words[sl_rng_below(&rng, N_WORDS)]);
    }
}

static bool take_text(struct maker *m, struct bench_prompt *p)
{
    const char *s = m->text.failed
                        ? NULL
                        : sl_arena_strndup(m->arena, m->text.data ? m->text.data : "", m->text.len);
    p->text = (struct sl_str){s, m->text.len};
    sl_buf_clear(&m->text);
    return s != NULL;
}

/* n_shared ids or words from one seed, then n_own from another. */
static bool make_text(struct maker *m, struct bench_prompt *p, size_t n_shared,
                      uint64_t shared_seed, size_t n_own, uint64_t own_seed)
{
    p->n_in = n_shared + n_own;
    if (!m->spec->ids) {
        put_words(&m->text, n_shared, shared_seed);
        put_words(&m->text, n_own, own_seed);
        return take_text(m, p);
    }
    uint32_t *ids = SL_ARENA_ARRAY(m->arena, uint32_t, p->n_in);
    struct sl_rng shared = {.seed = shared_seed}, own = {.seed = own_seed};
    for (size_t i = 0; ids && i < p->n_in; i++)
        ids[i] = sl_rng_below(i < n_shared ? &shared : &own, (uint32_t)m->spec->vocab_size);
    p->ids = ids;
    return ids != NULL;
}

static size_t vary(struct sl_rng *rng, int64_t len, double ratio)
{
    double low = (double)len * (1 - ratio), high = (double)len * (1 + ratio);
    double x = low + sl_rng_unit(rng) * (high - low + 1);
    return x < 1 ? 1 : x > high && ratio > 0 ? (size_t)high : ratio > 0 ? (size_t)x : (size_t)len;
}

static enum sl_status make_random(struct maker *m, struct sl_err *err)
{
    const struct bench_dataset_spec *s = m->spec;
    struct sl_rng rng = {.seed = s->seed};
    bool groups = strcmp(s->name, "prefix_repetition") == 0;
    uint32_t n_groups = groups ? (uint32_t)s->n_prefixes : 1;
    for (size_t i = 0; i < s->n; i++) {
        uint64_t group = sl_rng_below(&rng, n_groups);
        size_t n_in = vary(&rng, s->input_len, s->range_ratio);
        uint64_t own = sl_rng_u64(&rng);
        struct bench_prompt *p = prompt_add(m);
        if (!p || !make_text(m, p, (size_t)s->prefix_len, s->seed + 0x5bd1e995 + group, n_in, own))
            return sl_fail(err, SL_NO_MEMORY, "bench: no memory for %zu prompts", s->n);
        p->n_out = vary(&rng, s->output_len, s->range_ratio);
    }
    return SL_OK;
}

/* ---- files ---- */

static enum sl_status read_file(const char *path, struct sl_buf *out, struct sl_err *err)
{
    char chunk[65536];
    FILE *f = path ? fopen(path, "rb") : NULL;
    out->cap_bytes = FILE_BYTES_MAX;
    if (!f)
        return sl_fail_param(err, SL_CONFIG, "dataset-path", "dataset %s: %s",
                             path ? path : "(no --dataset-path)", path ? strerror(errno) : "unset");
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        sl_buf_append(out, chunk, n);
    bool bad = ferror(f) || out->failed;
    fclose(f);
    return bad ? sl_fail(err, SL_CONFIG, "dataset %s: cannot be read whole", path) : SL_OK;
}

static bool next_line(const struct sl_buf *b, size_t *pos, struct sl_str *line)
{
    while (*pos < b->len) {
        const char *p = b->data + *pos, *end = memchr(p, '\n', b->len - *pos);
        size_t n = end ? (size_t)(end - p) : b->len - *pos;
        *pos += n + 1;
        n -= n > 0 && p[n - 1] == '\r';
        *line = (struct sl_str){p, n};
        if (n > 0)
            return true;
    }
    return false;
}

static int64_t int_of(const struct sl_json *v, const char *key, int64_t otherwise)
{
    const struct sl_json *x = sl_json_get(v, key);
    if (!x || (sl_json_kind(x) != SL_JSON_INT && sl_json_kind(x) != SL_JSON_REAL))
        return otherwise;
    return sl_json_kind(x) == SL_JSON_INT ? sl_json_int(x) : (int64_t)sl_json_real(x);
}

static bool add_trace(struct maker *m, const struct sl_json *line, double *first_ms)
{
    int64_t n_in = int_of(line, "input_length", -1), n_out = int_of(line, "output_length", -1);
    const struct sl_json *at = sl_json_get(line, "timestamp"), *ids = sl_json_get(line, "hash_ids");
    bool timed = at && (sl_json_kind(at) == SL_JSON_INT || sl_json_kind(at) == SL_JSON_REAL);
    if (!timed || n_in < 1 || n_out < 1 || n_in > 10000000 || n_out > 10000000)
        return false;
    struct bench_prompt *p = prompt_add(m);
    if (!p)
        return false;
    *first_ms = m->n == 1 ? sl_json_real(at) : *first_ms;
    p->at_s = (sl_json_real(at) - *first_ms) / 1000;
    p->n_out = (size_t)n_out;
    p->n_in = (size_t)n_in;
    size_t n_blocks = ids && sl_json_kind(ids) == SL_JSON_ARRAY ? sl_json_len(ids) : 0;
    size_t left = p->n_in;
    for (size_t i = 0; i < n_blocks && left > 0; i++) {
        const struct sl_json *id = sl_json_at(ids, i);
        size_t n = left < TRACE_BLOCK ? left : TRACE_BLOCK;
        uint64_t hash = sl_json_kind(id) == SL_JSON_INT ? (uint64_t)sl_json_int(id) : i;
        put_words(&m->text, n, m->spec->seed ^ (hash * 0x9e3779b97f4a7c15u));
        left -= n;
    }
    put_words(&m->text, left, m->spec->seed + m->n);
    return p->at_s >= 0 && take_text(m, p);
}

static bool add_text(struct maker *m, struct sl_str text, int64_t n_out)
{
    struct bench_prompt *p = prompt_add(m);
    if (!p || n_out < 1)
        return false;
    sl_buf_append(&m->text, text.data, text.len);
    p->n_out = (size_t)n_out;
    p->n_in = 1;
    for (size_t i = 0; i < text.len; i++)
        p->n_in += text.data[i] == ' ';
    return take_text(m, p);
}

static bool add_custom(struct maker *m, const struct sl_json *line)
{
    const struct sl_json *prompt = sl_json_get(line, "prompt");
    return prompt && sl_json_kind(prompt) == SL_JSON_STRING &&
           add_text(m, sl_json_str(prompt), int_of(line, "output_tokens", m->spec->output_len));
}

static enum sl_status read_lines(struct maker *m, const struct sl_buf *file, bool trace,
                                 struct sl_err *err)
{
    size_t pos = 0, n_line = 0;
    double first_ms = 0;
    struct sl_str line;
    while ((m->spec->n == 0 || m->n < m->spec->n) && next_line(file, &pos, &line)) {
        struct sl_json *v = NULL;
        n_line++;
        bool json = trace || line.data[0] == '{';
        if (json && sl_json_parse(line.data, line.len, &v, err) != SL_OK)
            return sl_fail(err, SL_CONFIG, "dataset %s: line %zu is not JSON", m->spec->path,
                           n_line);
        bool ok = !json   ? add_text(m, line, m->spec->output_len)
                  : trace ? sl_json_kind(v) == SL_JSON_OBJECT && add_trace(m, v, &first_ms)
                          : sl_json_kind(v) == SL_JSON_OBJECT && add_custom(m, v);
        sl_json_free(v);
        if (!ok)
            return sl_fail(err, SL_CONFIG, "dataset %s: line %zu has no usable request",
                           m->spec->path, n_line);
    }
    return SL_OK;
}

/* ShareGPT: an array of {"conversations": [{"from", "value"}..]}; the first turn is the prompt. */
static enum sl_status read_sharegpt(struct maker *m, const struct sl_buf *file, struct sl_err *err)
{
    struct sl_json *doc;
    if (sl_json_parse(file->data ? file->data : "", file->len, &doc, err) != SL_OK)
        return SL_CONFIG;
    size_t n = sl_json_kind(doc) == SL_JSON_ARRAY ? sl_json_len(doc) : 0;
    bool ok = true;
    for (size_t i = 0; ok && i < n && (m->spec->n == 0 || m->n < m->spec->n); i++) {
        const struct sl_json *item = sl_json_at(doc, i);
        const struct sl_json *turns =
            sl_json_kind(item) == SL_JSON_OBJECT ? sl_json_get(item, "conversations") : NULL;
        if (!turns || sl_json_kind(turns) != SL_JSON_ARRAY || sl_json_len(turns) < 2)
            continue;
        const struct sl_json *first = sl_json_at(turns, 0);
        const struct sl_json *text =
            sl_json_kind(first) == SL_JSON_OBJECT ? sl_json_get(first, "value") : NULL;
        if (text && sl_json_kind(text) == SL_JSON_STRING && sl_json_str(text).len > 0)
            ok = add_text(m, sl_json_str(text), m->spec->output_len);
    }
    sl_json_free(doc);
    return ok ? SL_OK : sl_fail(err, SL_NO_MEMORY, "bench: no memory for the dataset");
}

static enum sl_status make_from_file(struct maker *m, struct sl_err *err)
{
    struct sl_buf file = {0};
    bool trace = strcmp(m->spec->name, "timed_trace") == 0;
    enum sl_status s = read_file(m->spec->path, &file, err);
    if (s == SL_OK)
        s = strcmp(m->spec->name, "sharegpt") == 0 ? read_sharegpt(m, &file, err)
                                                   : read_lines(m, &file, trace, err);
    sl_buf_free(&file);
    if (s == SL_OK && m->n == 0)
        return sl_fail(err, SL_CONFIG, "dataset %s: no request in it", m->spec->path);
    for (size_t i = 0; s == SL_OK && !trace && m->n < m->spec->n; i++) { /* around again */
        struct bench_prompt *p = prompt_add(m);
        if (!p)
            return sl_fail(err, SL_NO_MEMORY, "bench: no memory for %zu prompts", m->spec->n);
        *p = m->at[i];
    }
    return s;
}

enum sl_status bench_dataset_make(const struct bench_dataset_spec *spec, struct sl_arena *arena,
                                  struct bench_prompt **out, size_t *n_out, struct sl_err *err)
{
    struct maker m = {.spec = spec, .arena = arena};
    bool made_up = !strcmp(spec->name, "random") || !strcmp(spec->name, "prefix_repetition");
    enum sl_status s = made_up ? make_random(&m, err) : make_from_file(&m, err);
    sl_buf_free(&m.text);
    *out = m.at;
    *n_out = m.n;
    return s;
}
