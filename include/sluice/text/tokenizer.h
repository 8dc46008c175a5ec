/* Tokenizer: text to token ids and back. Immutable once open and shared without locks.
 *
 * Byte-level BPE from GGUF (tokenizer.ggml.model = "gpt2"): the text is cut at special tokens, then
 * by the pre-tokenizer's pattern (named in the file, stated in our table), then merged by rank. */
#ifndef SLUICE_TEXT_TOKENIZER_H
#define SLUICE_TEXT_TOKENIZER_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <sluice/files/gguf.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_tokenizer;

#define SL_NO_TOKEN UINT32_MAX

enum sl_tokenize_flags {
    SL_TOK_SPECIAL = 1, /* special tokens written in the text become their ids */
    SL_TOK_ADD_BOS = 2, /* prepend BOS if the file says add_bos_token */
};

/* Reads vocabulary, merges, token types, specials, pre-tokenizer name and chat template. The gguf
 * may be closed afterwards. SL_MODEL for unknown tokenizer types or pre-tokenizer names. */
enum sl_status sl_tokenizer_open(const struct sl_gguf *g, struct sl_tokenizer **out,
                                 struct sl_err *err);
void sl_tokenizer_close(struct sl_tokenizer *t);

/* Growable ids, same rules as sl_buf. */
struct sl_tokens {
    uint32_t *ids;
    size_t n, alloc;
    bool failed;
};
void sl_tokens_push(struct sl_tokens *t, uint32_t id);
void sl_tokens_free(struct sl_tokens *t);

/* Appends the ids of `text` (must be valid UTF-8, otherwise SL_INVALID). Time is O(n log n). Stops
 * with SL_TOO_LONG once more than max_tokens would be appended; on any error nothing is appended.
 * Detokenising gives the text back, except where the model's tokenizer loses something: bytes that
 * the vocabulary has no token for are left out (sl_token_bytes tells which; the default model lacks
 * 21, among them U+0004), and "qwen2" normalises to NFC. */
enum sl_status sl_tokenize(const struct sl_tokenizer *t, const char *text, size_t len,
                           unsigned flags, size_t max_tokens, struct sl_tokens *out,
                           struct sl_err *err);

/* The same, but no special token is matched across any of the places breaks[0..n_breaks) (byte
 * offsets, ascending): text of a caller inside a template's text. */
enum sl_status sl_tokenize_guarded(const struct sl_tokenizer *t, const char *text, size_t len,
                                   unsigned flags, const size_t *breaks, size_t n_breaks,
                                   size_t max_tokens, struct sl_tokens *out, struct sl_err *err);
/* Length of the longest special token spelled at the start of the text, or 0. */
size_t sl_token_special_at(const struct sl_tokenizer *t, const char *text, size_t len);

/* The bytes a token stands for (special tokens: their text). Borrowed. Empty for unused ids. */
struct sl_str sl_token_bytes(const struct sl_tokenizer *t, uint32_t id);
bool sl_token_is_special(const struct sl_tokenizer *t, uint32_t id); /* control or user-defined */
uint32_t sl_tokenizer_n_vocab(const struct sl_tokenizer *t);
uint32_t sl_tokenizer_bos(const struct sl_tokenizer *t); /* SL_NO_TOKEN when absent */
uint32_t sl_tokenizer_eos(const struct sl_tokenizer *t);
/* Ids that end generation: EOS, EOT, EOM and the like. */
const uint32_t *sl_tokenizer_stops(const struct sl_tokenizer *t, size_t *n);
/* The chat template stored in the file; empty when there is none. */
struct sl_str sl_tokenizer_template(const struct sl_tokenizer *t);

/* Incremental detokeniser of one stream: holds back bytes of an incomplete UTF-8 sequence (at most
 * 3); a byte that can never become valid is given out as U+FFFD at once. By value, no allocation. */
struct sl_detok {
    uint8_t held[4];
    uint8_t n_held;
    bool skip_special;
};
/* Appends what is certain to be text. */
void sl_detok_push(struct sl_detok *d, const struct sl_tokenizer *t, uint32_t id,
                   struct sl_buf *out);
/* The end of the stream: what is held becomes U+FFFD. */
void sl_detok_finish(struct sl_detok *d, struct sl_buf *out);

/* Stop strings across token borders. Text goes in as it is decoded; what can no longer be part of a
 * stop string comes out. Borrowed stop strings must outlive it. */
struct sl_stop {
    const struct sl_str *strings;
    size_t n_strings;
    struct sl_buf held;      /* a possible beginning of a stop string */
    bool include;            /* include_stop_str_in_output */
    int hit;                 /* index of the string that ended the stream, or -1 */
};
void sl_stop_init(struct sl_stop *s, const struct sl_str *strings, size_t n, bool include);
/* Appends released text to out; true when a stop string was met (earliest end; then the longest). */
bool sl_stop_push(struct sl_stop *s, const char *text, size_t len, struct sl_buf *out);
void sl_stop_finish(struct sl_stop *s, struct sl_buf *out); /* releases what is held */
void sl_stop_free(struct sl_stop *s);

#endif
