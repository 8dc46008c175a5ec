/* Small random models of the llama family: complete files with tokenizer and chat template that
 * open in milliseconds, for tests of everything above the kernels. The same options give the same
 * bytes. */
#ifndef SLUICE_TESTS_TINY_MODEL_H
#define SLUICE_TESTS_TINY_MODEL_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <sluice/kernels/dtype.h>
#include <stdbool.h>
#include <stdint.h>

struct tiny_model {
    uint64_t seed;
    enum sl_dtype dtype; /* of matrices */
    uint32_t dim, n_heads, n_kv_heads, n_layers, ffn_dim, ctx;
    uint32_t head_dim; /* 0: dim / n_heads */
    bool tied;         /* no output.weight; such a model mostly repeats its last token */
    bool bias;         /* attention biases */
    bool rope_factors; /* rope_freqs.weight */
    float rope_linear; /* factor of linear rope scaling; 0: none */
};

/* Seed 1, q8_0, 64 wide, 4 heads on 2, 2 layers, ffn 128, 2048 positions, own head. */
struct tiny_model tiny_model_default(void);

/* 96 wide, 6 heads on 3, 3 layers, ffn 192: degrees 1, 2 (unevenly: both ranks have the middle KV
 * head) and 3, and as many stages. */
struct tiny_model tiny_model_three(void);

/* 256 bytes, merges, then <|endoftext|>, <|im_start|>, <|im_end|> (the end of a turn). */
uint32_t tiny_model_n_vocab(void);

enum sl_status tiny_model_write(const struct tiny_model *m, const char *path, struct sl_err *err);
enum sl_status tiny_model_buf(const struct tiny_model *m, struct sl_buf *out, struct sl_err *err);

#endif
