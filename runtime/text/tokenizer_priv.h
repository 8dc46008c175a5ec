/* The tokenizer's inside: vocabulary and merges (bpe.c), special tokens (specials.c), the
 * pre-tokenizer (pretokenize.c) and normalisation (nfc.c). All of it is immutable once open. */
#ifndef SLUICE_TEXT_TOKENIZER_PRIV_H
#define SLUICE_TEXT_TOKENIZER_PRIV_H

#include <sluice/text/tokenizer.h>

#include <stdatomic.h>

/* tokenizer.ggml.token_type, the file's numbers. */
enum token_kind {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

/* Vocabulary: every token's bytes in one block. */
struct vocab {
    char *bytes;
    uint32_t *start; /* [n + 1] */
    uint8_t *kind;   /* [n], enum token_kind */
    uint64_t *slots; /* open addressing by the bytes: half the hash above id + 1; 0 empty */
    uint32_t mask;
    uint32_t n;
    uint32_t longest; /* bytes of the longest token */
};

static inline struct sl_str vocab_bytes(const struct vocab *v, uint32_t id)
{
    return (struct sl_str){v->bytes + v->start[id], v->start[id + 1] - v->start[id]};
}

/* Decodes the byte-level spelling ("Ġthe" is " the") of normal tokens. */
enum sl_status vocab_open(const struct sl_gguf *g, struct vocab *v, struct sl_err *err);
void vocab_close(struct vocab *v);
/* Normal and user-defined tokens only; SL_NO_TOKEN when there is none. */
uint32_t vocab_find(const struct vocab *v, const char *bytes, size_t len);
/* One spelled string to bytes; `out` has room for len. Returns the bytes written. */
size_t vocab_unspell(struct sl_str spelled, char *out);

/* A merge: the pair (left, right) becomes `into`; the lowest rank goes first. */
struct merge {
    uint32_t left, right; /* left is SL_NO_TOKEN in an empty slot */
    uint32_t rank, into;
};

struct bpe {
    struct merge *slots;
    uint32_t mask;
    uint32_t byte_id[256]; /* SL_NO_TOKEN: the vocabulary has no token for this byte */
};

enum sl_status bpe_open(const struct sl_gguf *g, const struct vocab *v, struct bpe *b,
                        struct sl_err *err);
void bpe_close(struct bpe *b);

/* Memory of the merges of one call to sl_tokenize; grows with the longest word. */
struct bpe_scratch {
    void *block;
    size_t n_max;
};
void bpe_scratch_free(struct bpe_scratch *s);

/* Appends the ids of one pre-token. False: out of memory or more than max_tokens. */
struct tokens_out {
    struct sl_tokens *tokens;
    size_t n_max; /* of tokens->n */
    enum sl_status status;
};
bool tokens_out_push(struct tokens_out *o, uint32_t id);
bool bpe_merge(const struct bpe *b, const char *word, size_t len, struct bpe_scratch *scratch,
               struct tokens_out *out);

/* Special tokens, sorted by their bytes, to be found in text. */
struct specials {
    uint32_t *ids;
    uint32_t first[257]; /* ids[first[b] .. first[b + 1]) begin with byte b */
};
enum sl_status specials_open(const struct vocab *v, bool with_control, struct specials *s,
                             struct sl_err *err);
void specials_close(struct specials *s);
/* The longest special token that `text` (not empty) begins with. */
uint32_t specials_match(const struct specials *s, const struct vocab *v, const char *text,
                        size_t len);
/* The first special token at or after `from`, the longest there is at its place. *at is len when
 * there is none. */
uint32_t specials_find(const struct specials *s, const struct vocab *v, const char *text,
                       size_t len, size_t from, size_t *at);

/* Pre-tokenizer: a row of the table, compiled. */
#define PRE_STAGES_MAX 6
struct pre_row {
    const char *name; /* tokenizer.ggml.pre */
    const char *stages[PRE_STAGES_MAX];
    bool nfc;         /* text is brought to Unicode normal form C first */
    bool whole_words; /* a pre-token that is a token stays whole, whatever the merges say */
    bool add_bos;     /* where the file does not say */
};
struct pre {
    const struct pre_row *row;
    void *code[PRE_STAGES_MAX]; /* pcre2_code, shared by all threads */
    size_t n_stages;
};
enum sl_status pre_open(struct sl_str name, struct pre *p, struct sl_err *err);
void pre_close(struct pre *p);

/* What one call needs to match; opened when the first text comes. */
struct pre_run {
    void *match_data, *match_context;
};
typedef bool pre_emit(void *ctx, const char *piece, size_t len);
/* Calls emit for every pre-token in order, until it returns false. */
enum sl_status pre_cut(const struct pre *p, struct pre_run *run, const char *text, size_t len,
                       pre_emit *emit, void *ctx, struct sl_err *err);
void pre_run_close(struct pre_run *run);

/* Normal form C of valid UTF-8 in linear time. *out is NULL when the text is in that form as far
 * as a quick look tells, otherwise malloc'ed, *out_len bytes. */
enum sl_status nfc_normalise(const char *text, size_t len, char **out, size_t *out_len,
                             struct sl_err *err);

struct sl_tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct specials all, user; /* control and user-defined; user-defined alone */
    struct pre pre;
    /* [n_vocab] 1: the merges are known to make this token of its own bytes. A memory of work done,
     * the same whoever writes it, so relaxed atomics are all it needs. */
    atomic_uchar *whole;
    char *template_text;
    size_t template_len;
    uint32_t bos, eos;
    bool add_bos;
    uint32_t *stops;
    size_t n_stops;
};

#endif
