/* What the text tests share: the committed vocabulary and comparing ids. */
#ifndef SLUICE_TESTS_TEXT_RIG_H
#define SLUICE_TESTS_TEXT_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/text/tokenizer.h>

#define VOCAB_FILE SL_TESTS_DIR "/golden/smollm2-vocab.gguf"

static inline struct sl_tokenizer *open_vocab(const char *path)
{
    struct sl_gguf *g = NULL;
    struct sl_tokenizer *t = NULL;
    struct sl_err err = {0};
    if (sl_gguf_open(path, &g, &err) || sl_tokenizer_open(g, &t, &err))
        fail_msg("%s", err.msg);
    sl_gguf_close(g);
    return t;
}

static inline bool same_ids(const struct sl_tokens *a, const uint32_t *b, size_t n)
{
    return a->n == n && (!n || memcmp(a->ids, b, n * sizeof *b) == 0);
}

static inline void print_ids(const char *what, const uint32_t *ids, size_t n)
{
    print_error("%s:", what);
    for (size_t i = 0; i < n; i++)
        print_error(" %u", ids[i]);
    print_error("\n");
}

#endif
