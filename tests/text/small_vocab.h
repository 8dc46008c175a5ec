/* A small vocabulary for tests: 256 byte tokens, some merges, some special tokens. */
#ifndef SLUICE_TESTS_TEXT_SMALL_VOCAB_H
#define SLUICE_TESTS_TEXT_SMALL_VOCAB_H

#include "rig.h"

#define SMALL_MAX 512

struct small_vocab {
    const char *model, *pre;     /* NULL: the key is left out */
    const char *const *merges;   /* pairs as spelled, NULL at the end */
    const char *const *specials; /* text; the first character: c control, u user, n normal */
    const char *skip_bytes;      /* bytes without a token */
    const char *extra_key;       /* a u32 key */
    uint32_t extra;
    int add_bos;           /* -1: left out */
    uint32_t n_types_less; /* a fault: the type array is that much too short */
};

/* The spelling of one byte, from GPT-2's table; returns the bytes written, at most 2. */
static inline size_t spell(unsigned byte, char *out)
{
    unsigned c = byte, n = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool plain = (b > 32 && b < 127) || (b > 160 && b != 173);
        if (b == byte)
            c = plain ? b : 256 + n;
        n += !plain;
    }
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

static inline void add_token(struct sl_str *tokens, int32_t *types, uint32_t *n, struct sl_str s,
                             int32_t type)
{
    assert_true(*n < SMALL_MAX);
    tokens[*n] = s;
    types[(*n)++] = type;
}

static inline enum sl_status open_small(const struct small_vocab *v, struct sl_tokenizer **out,
                                        struct sl_err *err)
{
    static char text[SMALL_MAX][128];
    struct sl_str tokens[SMALL_MAX], merges[SMALL_MAX];
    int32_t types[SMALL_MAX];
    uint32_t n = 0, n_merges = 0;
    for (unsigned b = 0; b < 256; b++) {
        if (v->skip_bytes && b && strchr(v->skip_bytes, (int)b))
            continue;
        size_t len = spell(b, text[n]);
        add_token(tokens, types, &n, (struct sl_str){text[n], len}, 1);
    }
    for (; v->merges && v->merges[n_merges]; n_merges++) {
        const char *m = v->merges[n_merges], *space = strchr(m, ' ');
        merges[n_merges] = sl_str_of(m);
        if (!space)
            continue;
        int len = snprintf(text[n], sizeof text[n], "%.*s%s", (int)(space - m), m, space + 1);
        add_token(tokens, types, &n, (struct sl_str){text[n], (size_t)len}, 1);
    }
    for (unsigned i = 0; v->specials && v->specials[i]; i++) {
        const char *s = v->specials[i];
        add_token(tokens, types, &n, sl_str_of(s + 1), *s == 'c' ? 3 : *s == 'u' ? 4 : 1);
    }
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    if (v->model)
        sl_gguf_put_str(w, "tokenizer.ggml.model", sl_str_of(v->model));
    if (v->pre)
        sl_gguf_put_str(w, "tokenizer.ggml.pre", sl_str_of(v->pre));
    if (v->extra_key)
        sl_gguf_put_u32(w, v->extra_key, v->extra);
    if (v->add_bos >= 0)
        sl_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    sl_gguf_put_str_array(w, "tokenizer.ggml.tokens", tokens, n);
    sl_gguf_put_i32_array(w, "tokenizer.ggml.token_type", types, n - v->n_types_less);
    sl_gguf_put_str_array(w, "tokenizer.ggml.merges", merges, n_merges);
    struct sl_buf buf = {0};
    struct sl_gguf *g = NULL;
    enum sl_status s = sl_gguf_writer_finish_buf(w, &buf, err);
    if (!s)
        s = sl_gguf_parse(buf.data, buf.len, true, &g, err);
    assert_int_equal(s, SL_OK);
    s = sl_tokenizer_open(g, out, err);
    sl_gguf_close(g); /* the tokenizer must not need either any more */
    memset(buf.data, 0xee, buf.len);
    sl_buf_free(&buf);
    return s;
}

#endif
