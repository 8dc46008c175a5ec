/* Pre-tokenizers: where text may be cut before merging.
 *
 * Model files only name theirs; the patterns are those of the models' published tokenizer.json. A
 * row lists stages: each cuts every piece of the one before at its matches, and what lies between
 * matches is a piece too. A piece is all that its pattern sees (no look beyond its ends).
 *
 * Matching is by PCRE2's JIT where there is one. Match and heap limits are set; no pattern here
 * comes near them. A user's pattern never gets here. */
#include "tokenizer_priv.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MATCH_LIMIT   100000000u /* above the longest white space of a request body */
#define HEAP_LIMIT_KB 65536u

/* Unicode White_Space, which the published patterns' \s is; PCRE2's has U+180E besides. */
#define SPACE     "\\p{WSpace}"
#define NOT_SPACE "\\P{WSpace}"

/* tokenizer.json of openai-community/gpt2: ByteLevel with its built-in pattern. */
#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|" SPACE               \
    "+(?!" NOT_SPACE ")|" SPACE "+"

/* tokenizer.json of meta-llama/Meta-Llama-3-8B and Qwen/Qwen2-7B differ in the digits only. */
#define LLAMA3_BEFORE_DIGITS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA3_AFTER_DIGITS                                                                        \
    "| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACE "+(?!" NOT_SPACE ")|" SPACE \
    "+"

/* tokenizer.json of deepseek-ai/deepseek-llm-7b-base: letters that have case. */
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"
#define DEEPSEEK_MARKS                                                                             \
    "!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}"
#define DEEPSEEK_CJK "\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}"

static const struct pre_row rows[] = {
    /* tokenizer.json of HuggingFaceTB/SmolLM2: every digit alone, then ByteLevel */
    {"smollm", {"\\p{N}", GPT2}, false, false, false},
    {"gpt-2", {GPT2}, false, false, false},
    {"llama-bpe", {LLAMA3_BEFORE_DIGITS "\\p{N}{1,3}" LLAMA3_AFTER_DIGITS}, false, true, true},
    {"qwen2", {LLAMA3_BEFORE_DIGITS "\\p{N}" LLAMA3_AFTER_DIGITS}, true, false, false},
    /* "\s+$" there; the look behind only keeps every space of a run from trying again */
    {"deepseek-llm",
     {"[\\r\\n]", SPACE "?[" DEEPSEEK_LETTERS "]+", SPACE "?[" DEEPSEEK_MARKS "]+",
      "(?<!" SPACE ")" SPACE "+$", "[" DEEPSEEK_CJK "]+", "\\p{N}+"},
     false,
     false,
     true},
    /* no model's own: what writers of GGUF files mean by "default", or by no name at all */
    {"default",
     {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"},
     false,
     false,
     false},
};

static const struct pre_row *find_row(struct sl_str name)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (sl_str_eqz(name, rows[i].name))
            return &rows[i];
    return NULL;
}

enum sl_status pre_open(struct sl_str name, struct pre *p, struct sl_err *err)
{
    *p = (struct pre){.row = find_row(name)};
    if (!p->row)
        return sl_fail(err, SL_MODEL, "tokenizer: pre-tokenizer '%.*s' is not supported",
                       (int)(name.len < 64 ? name.len : 64), name.data);
    for (; p->n_stages < PRE_STAGES_MAX && p->row->stages[p->n_stages]; p->n_stages++) {
        int code = 0;
        PCRE2_SIZE at = 0;
        pcre2_code *c = pcre2_compile(
            (PCRE2_SPTR)p->row->stages[p->n_stages], PCRE2_ZERO_TERMINATED,
            PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
        if (!c)
            return sl_fail(err, SL_NO_MEMORY, "tokenizer: PCRE2 error %d at %zu of '%s' stage %zu",
                           code, at, p->row->name, p->n_stages);
        p->code[p->n_stages] = c;
        pcre2_jit_compile(c, PCRE2_JIT_COMPLETE); /* without it matching is only slower */
    }
    return SL_OK;
}

void pre_close(struct pre *p)
{
    for (size_t i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->code[i]);
    *p = (struct pre){0};
}

static bool run_open(struct pre_run *run)
{
    if (run->match_data)
        return true;
    run->match_data = pcre2_match_data_create(1, NULL);
    run->match_context = pcre2_match_context_create(NULL);
    if (!run->match_data || !run->match_context)
        return false;
    pcre2_set_match_limit(run->match_context, MATCH_LIMIT);
    pcre2_set_heap_limit(run->match_context, HEAP_LIMIT_KB);
    return true;
}

void pre_run_close(struct pre_run *run)
{
    pcre2_match_data_free(run->match_data);
    pcre2_match_context_free(run->match_context);
    *run = (struct pre_run){0};
}

struct cutter {
    const struct pre *p;
    struct pre_run *run;
    pre_emit *emit;
    void *ctx;
    int error; /* PCRE2's */
};

/* Recursion ends at the last of at most PRE_STAGES_MAX stages. False: stop. */
static bool cut_stage(struct cutter *c, size_t stage, const char *text, size_t len)
{
    if (!len)
        return true;
    if (stage == c->p->n_stages)
        return c->emit(c->ctx, text, len);
    pcre2_match_data *md = c->run->match_data;
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(md);
    for (size_t at = 0; at < len;) {
        int rc = pcre2_match(c->p->code[stage], (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK, md,
                             c->run->match_context);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
            c->error = rc;
            return false;
        }
        /* No pattern matches the empty string; were one to, the rest would be one piece. */
        size_t from = rc < 0 || span[1] <= at ? len : span[0];
        size_t to = from == len ? len : span[1];
        if (!cut_stage(c, stage + 1, text + at, from - at) ||
            !cut_stage(c, stage + 1, text + from, to - from))
            return false;
        at = to;
    }
    return true;
}

enum sl_status pre_cut(const struct pre *p, struct pre_run *run, const char *text, size_t len,
                       pre_emit *emit, void *ctx, struct sl_err *err)
{
    if (!run_open(run))
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for matching");
    struct cutter c = {p, run, emit, ctx, 0};
    cut_stage(&c, 0, text, len);
    if (c.error)
        return sl_fail(err, SL_INVALID, "tokenizer: cutting %zu bytes gave PCRE2 error %d", len,
                       c.error);
    return SL_OK;
}
