/* Fuzz target: text through the default model's tokenizer and back. Valid text comes back byte for
 * byte, whatever the flags; other bytes are refused. (Its vocabulary lacks a few bytes, which are
 * left out: text with one of them is not compared.) */
#include <sluice/text/tokenizer.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sl_tokenizer *tokenizer(void)
{
    static struct sl_tokenizer *t;
    struct sl_gguf *g;
    struct sl_err err;
    if (t)
        return t;
    if (sl_gguf_open(SL_TESTS_DIR "/golden/smollm2-vocab.gguf", &g, &err) ||
        sl_tokenizer_open(g, &t, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    sl_gguf_close(g);
    return t;
}

static bool lacks_a_byte(const struct sl_tokenizer *t, const char *text, size_t size)
{
    static bool known[256];
    for (uint32_t i = 0; !known['a'] && i < sl_tokenizer_n_vocab(t); i++)
        if (!sl_token_is_special(t, i) && sl_token_bytes(t, i).len == 1)
            known[(uint8_t)sl_token_bytes(t, i).data[0]] = true;
    known['a'] = true;
    for (size_t i = 0; i < size; i++)
        if (!known[(uint8_t)text[i]])
            return true;
    return false;
}

static void back_again(const struct sl_tokenizer *t, const struct sl_tokens *ids, const char *text,
                       size_t size)
{
    struct sl_detok d = {.skip_special = false};
    struct sl_buf out = {0};
    for (size_t i = 0; i < ids->n; i++)
        sl_detok_push(&d, t, ids->ids[i], &out);
    sl_detok_finish(&d, &out);
    if (out.len != size || (size && memcmp(out.data, text, size) != 0))
        abort();
    sl_buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct sl_tokenizer *t = tokenizer();
    const char *text = size ? (const char *)data : "";
    for (unsigned flags = 0; flags < 2; flags++) {
        struct sl_tokens ids = {0};
        struct sl_err err = {0};
        size_t breaks[1] = {size / 2};
        enum sl_status s =
            sl_tokenize_guarded(t, text, size, flags, breaks, 1, SIZE_MAX, &ids, &err);
        if (!s && !lacks_a_byte(t, text, size))
            back_again(t, &ids, text, size);
        if (s && (s != SL_INVALID || !err.msg[0]))
            abort();
        sl_tokens_free(&ids);
    }
    return 0;
}
