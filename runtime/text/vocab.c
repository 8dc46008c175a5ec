/* The vocabulary of a byte-level BPE: ids to bytes and bytes to ids.
 *
 * Token strings are spelled with one printable character per byte, as GPT-2's encoder does it
 * (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", its released
 * encoder): the printable bytes of Latin-1 stand for themselves, the other 68 for U+0100 and up in
 * order. Special tokens are spelled plainly. */
#include "tokenizer_priv.h"

#include <sluice/base/containers.h>
#include <sluice/base/limits.h>

#include <stdlib.h>
#include <string.h>

#define TOKENS_KEY "tokenizer.ggml.tokens"
#define TYPES_KEY  "tokenizer.ggml.token_type"

static bool is_plain_byte(unsigned b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

/* The byte that U+0100 + i stands for, i < 68: the unprintable ones in order. */
static int hidden_byte(unsigned i)
{
    if (i < 0x21)
        return (int)i;
    return i < 0x21 + 0x22 ? (int)(i - 0x21 + 0x7f) : 0xad;
}

/* The byte that the character at p stands for, and its length; -1 for any other character. */
static int spelled_byte(const uint8_t *p, size_t len, size_t *char_len)
{
    *char_len = 1;
    if (p[0] < 0x80)
        return is_plain_byte(p[0]) ? p[0] : -1;
    if (len < 2 || p[0] < 0xc2 || p[0] > 0xc5 || (p[1] & 0xc0) != 0x80)
        return -1;
    unsigned c = (unsigned)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    *char_len = 2;
    if (c < 0x100)
        return is_plain_byte(c) ? (int)c : -1;
    return c < 0x100 + 68 ? hidden_byte(c - 0x100) : -1;
}

/* Characters outside the spelling are kept as they are: files hold a few tokens added plainly. */
size_t vocab_unspell(struct sl_str spelled, char *out)
{
    size_t n = 0, char_len;
    for (size_t i = 0; i < spelled.len; i += char_len) {
        const uint8_t *p = (const uint8_t *)spelled.data + i;
        int b = spelled_byte(p, spelled.len - i, &char_len);
        if (b >= 0) {
            out[n++] = (char)b;
            continue;
        }
        memcpy(out + n, p, char_len);
        n += char_len;
    }
    return n;
}

/* The slot of these bytes, or the empty one where they would be; *tag is their half of the hash. */
static uint64_t *find_slot(const struct vocab *v, const char *bytes, size_t len, uint64_t *tag)
{
    uint64_t hash = sl_hash64(bytes, len, 0);
    uint32_t i = (uint32_t)hash & v->mask;
    *tag = hash >> 32 << 32;
    for (; v->slots[i]; i = (i + 1) & v->mask) {
        if (v->slots[i] >> 32 << 32 != *tag)
            continue;
        struct sl_str s = vocab_bytes(v, (uint32_t)v->slots[i] - 1);
        if (s.len == len && memcmp(s.data, bytes, len) == 0)
            break;
    }
    return &v->slots[i];
}

uint32_t vocab_find(const struct vocab *v, const char *bytes, size_t len)
{
    uint64_t tag;
    return (uint32_t)*find_slot(v, bytes, len, &tag) - 1; /* 0 - 1 is SL_NO_TOKEN */
}

/* The first of two equal tokens is found, the other can only be given. */
static void insert(struct vocab *v, uint32_t id)
{
    struct sl_str s = vocab_bytes(v, id);
    uint64_t tag, *slot = find_slot(v, s.data, s.len, &tag);
    if (s.len && !*slot)
        *slot = tag | (id + 1);
}

static enum sl_status read_kinds(const struct sl_gguf *g, struct vocab *v, struct sl_err *err)
{
    memset(v->kind, TOKEN_NORMAL, v->n);
    const struct sl_gguf_key *k = sl_gguf_find(g, TYPES_KEY);
    if (!k)
        return SL_OK;
    if (k->type != SL_GGUF_ARRAY || k->elem == SL_GGUF_STRING || k->n != v->n)
        return sl_fail(err, SL_MODEL, "tokenizer: %s has %llu entries for %u tokens", TYPES_KEY,
                       (unsigned long long)k->n, v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        int64_t kind = sl_gguf_array_int(k, i);
        if (kind < 0 || kind > TOKEN_BYTE)
            return sl_fail(err, SL_MODEL, "tokenizer: token %u has the unknown type %lld", i,
                           (long long)kind);
        v->kind[i] = (uint8_t)(kind ? kind : TOKEN_NORMAL);
    }
    return SL_OK;
}

static enum sl_status read_bytes(const struct sl_gguf_key *k, struct vocab *v, struct sl_err *err)
{
    size_t at = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        struct sl_str s = sl_gguf_array_str(k, i);
        v->start[i] = (uint32_t)at;
        if (v->kind[i] == TOKEN_UNUSED)
            continue;
        size_t n = s.len;
        if (v->kind[i] == TOKEN_NORMAL)
            n = vocab_unspell(s, v->bytes + at);
        else if (s.len)
            memcpy(v->bytes + at, s.data, s.len);
        if (n > v->longest)
            v->longest = (uint32_t)n;
        at += n;
    }
    v->start[v->n] = (uint32_t)at;
    if (!at)
        return sl_fail(err, SL_MODEL, "tokenizer: all %u tokens are empty", v->n);
    return SL_OK;
}

static enum sl_status allocate(const struct sl_gguf_key *k, struct vocab *v, struct sl_err *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t len = sl_gguf_array_str(k, i).len;
        if (len > SL_LIMIT_model_meta_bytes - total)
            return sl_fail(err, SL_MODEL, "tokenizer: the tokens take more than %d bytes",
                           SL_LIMIT_model_meta_bytes);
        total += len;
    }
    uint32_t n_slots = 64;
    while (n_slots < 2 * v->n)
        n_slots *= 2;
    v->mask = n_slots - 1;
    v->bytes = malloc(total + 1);
    v->start = malloc(((size_t)v->n + 1) * sizeof *v->start);
    v->kind = malloc(v->n);
    v->slots = calloc(n_slots, sizeof *v->slots);
    if (!v->bytes || !v->start || !v->kind || !v->slots)
        return sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for %u tokens", v->n);
    return SL_OK;
}

enum sl_status vocab_open(const struct sl_gguf *g, struct vocab *v, struct sl_err *err)
{
    *v = (struct vocab){0};
    const struct sl_gguf_key *k = sl_gguf_find(g, TOKENS_KEY);
    if (!k || k->type != SL_GGUF_ARRAY || k->elem != SL_GGUF_STRING)
        return sl_fail(err, SL_MODEL, "tokenizer: the file has no array of strings '%s'",
                       TOKENS_KEY);
    if (!k->n || k->n > SL_LIMIT_vocab_tokens)
        return sl_fail(err, SL_MODEL, "tokenizer: %llu tokens, the limit is %d",
                       (unsigned long long)k->n, SL_LIMIT_vocab_tokens);
    v->n = (uint32_t)k->n;
    enum sl_status s = allocate(k, v, err);
    if (s || (s = read_kinds(g, v, err)) || (s = read_bytes(k, v, err)))
        return s;
    for (uint32_t i = 0; i < v->n; i++)
        if (v->kind[i] == TOKEN_NORMAL)
            insert(v, i);
    for (uint32_t i = 0; i < v->n; i++)
        if (v->kind[i] == TOKEN_USER)
            insert(v, i);
    return SL_OK;
}

void vocab_close(struct vocab *v)
{
    free(v->bytes);
    free(v->start);
    free(v->kind);
    free(v->slots);
    *v = (struct vocab){0};
}
