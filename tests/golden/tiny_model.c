/* See tiny_model.h. The byte alphabet of the tokenizer is that of GPT-2 (Radford et al. 2019). */
#include "tiny_model.h"

#include <sluice/base/time.h>
#include <sluice/files/gguf.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pairs in order of rank; G stands for the letter that stands for a space. */
static const char *const merges[][2] = {
    {"G", "t"},  {"h", "e"},  {"i", "n"},   {"G", "a"},    {"o", "n"},  {"Gt", "he"}, {"e", "r"},
    {"r", "e"},  {"a", "t"},  {"e", "n"},   {"i", "s"},    {"o", "r"},  {"e", "s"},   {"a", "n"},
    {"G", "s"},  {"G", "w"},  {"l", "l"},   {"o", "u"},    {"in", "g"}, {"e", "d"},   {"G", "c"},
    {"G", "o"},  {"Ga", "n"}, {"i", "t"},   {"Gan", "d"},  {"G", "b"},  {"o", "w"},   {"G", "i"},
    {"G", "in"}, {"l", "o"},  {"he", "ll"}, {"hell", "o"},
};
#define N_MERGES (sizeof merges / sizeof *merges)

static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
#define N_SPECIALS (sizeof specials / sizeof *specials)
#define N_VOCAB    (256 + N_MERGES + N_SPECIALS)

static const char chat_template[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";

struct word {
    char z[32];
};

static bool is_plain(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* The letter of a byte: itself where it prints, otherwise U+0100 and up in order. */
static struct word byte_word(unsigned byte)
{
    unsigned code = byte;
    if (!is_plain(byte)) {
        code = 0x100;
        for (unsigned b = 0; b < byte; b++)
            code += !is_plain(b);
    }
    struct word w = {0};
    if (code < 0x80) {
        w.z[0] = (char)code;
    } else {
        w.z[0] = (char)(0xc0 | code >> 6);
        w.z[1] = (char)(0x80 | (code & 0x3f));
    }
    return w;
}

/* Writes a side of a merge with the letter for space in place of G. */
static void append_side(struct word *w, const char *side)
{
    size_t at = strlen(w->z);
    for (const char *c = side; *c; c++) {
        if (*c == 'G') {
            struct word space = byte_word(' ');
            w->z[at++] = space.z[0];
            w->z[at++] = space.z[1];
        } else {
            w->z[at++] = *c;
        }
    }
    w->z[at] = '\0';
}

static void put_tokenizer(struct sl_gguf_writer *w)
{
    static struct word words[N_VOCAB], pairs[N_MERGES];
    struct sl_str tokens[N_VOCAB], merge_strs[N_MERGES];
    int32_t types[N_VOCAB];
    for (unsigned i = 0; i < 256; i++)
        words[i] = byte_word(i);
    for (size_t i = 0; i < N_MERGES; i++) {
        words[256 + i] = pairs[i] = (struct word){0};
        append_side(&words[256 + i], merges[i][0]);
        append_side(&words[256 + i], merges[i][1]);
        append_side(&pairs[i], merges[i][0]);
        append_side(&pairs[i], " ");
        append_side(&pairs[i], merges[i][1]);
        merge_strs[i] = sl_str_of(pairs[i].z);
    }
    for (size_t i = 0; i < N_SPECIALS; i++)
        snprintf(words[256 + N_MERGES + i].z, sizeof words[0].z, "%s", specials[i]);
    for (size_t i = 0; i < N_VOCAB; i++) {
        tokens[i] = sl_str_of(words[i].z);
        types[i] = i < 256 + N_MERGES ? 1 : 3; /* normal, control */
    }
    sl_gguf_put_str(w, "tokenizer.ggml.model", SL_STR("gpt2"));
    sl_gguf_put_str(w, "tokenizer.ggml.pre", SL_STR("gpt-2"));
    sl_gguf_put_str_array(w, "tokenizer.ggml.tokens", tokens, N_VOCAB);
    sl_gguf_put_i32_array(w, "tokenizer.ggml.token_type", types, N_VOCAB);
    sl_gguf_put_str_array(w, "tokenizer.ggml.merges", merge_strs, N_MERGES);
    sl_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)(256 + N_MERGES));
    sl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)(N_VOCAB - 1));
    sl_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    sl_gguf_put_str(w, "tokenizer.chat_template", sl_str_of(chat_template));
}

static void put_config(struct sl_gguf_writer *w, const struct tiny_model *m, uint32_t head_dim)
{
    sl_gguf_put_str(w, "general.architecture", SL_STR("llama"));
    sl_gguf_put_str(w, "general.name", SL_STR("tiny random model"));
    sl_gguf_put_u32(w, "llama.block_count", m->n_layers);
    sl_gguf_put_u32(w, "llama.context_length", m->ctx);
    sl_gguf_put_u32(w, "llama.embedding_length", m->dim);
    sl_gguf_put_u32(w, "llama.feed_forward_length", m->ffn_dim);
    sl_gguf_put_u32(w, "llama.attention.head_count", m->n_heads);
    sl_gguf_put_u32(w, "llama.attention.head_count_kv", m->n_kv_heads);
    sl_gguf_put_u32(w, "llama.attention.key_length", head_dim);
    sl_gguf_put_u32(w, "llama.attention.value_length", head_dim);
    sl_gguf_put_u32(w, "llama.rope.dimension_count", head_dim);
    sl_gguf_put_f32(w, "llama.rope.freq_base", 10000.0f);
    sl_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    sl_gguf_put_u32(w, "llama.vocab_size", (uint32_t)N_VOCAB);
    if (m->rope_linear != 0.0f) {
        sl_gguf_put_str(w, "llama.rope.scaling.type", SL_STR("linear"));
        sl_gguf_put_f32(w, "llama.rope.scaling.factor", m->rope_linear);
    }
}

/* Tensors under way: their bytes live in the arena until the file is finished. */
struct maker {
    const struct tiny_model *m;
    struct sl_gguf_writer *w;
    struct sl_arena arena;
    struct sl_rng rng;
    bool failed;
};

static uint32_t type_number(enum sl_dtype t)
{
    switch (t) {
    case SL_F16:
        return 1;
    case SL_Q4_0:
        return 2;
    case SL_Q4_1:
        return 3;
    case SL_Q8_0:
        return 8;
    case SL_BF16:
        return 30;
    default:
        return 0;
    }
}

/* n values around `mean`, evenly spread with the given deviation. */
static float *draw(struct maker *k, size_t n, float mean, float deviation)
{
    float *p = SL_ARENA_ARRAY(&k->arena, float, n);
    if (!p) {
        k->failed = true;
        return NULL;
    }
    float half = deviation * sqrtf(3.0f);
    for (size_t i = 0; i < n; i++)
        p[i] = mean + half * (float)(2.0 * sl_rng_unit(&k->rng) - 1.0);
    return p;
}

static void put_f32s(struct maker *k, const char *name, uint32_t n, float mean, float deviation)
{
    float *p = draw(k, n, mean, deviation);
    uint64_t dims[] = {n};
    if (p)
        sl_gguf_put_tensor(k->w, name, 0, 1, dims, p, n * sizeof *p);
}

static void put_matrix(struct maker *k, const char *name, uint32_t cols, uint32_t rows,
                       const float *values)
{
    enum sl_dtype t = k->m->dtype;
    size_t row_bytes = sl_dtype_bytes(t, cols);
    uint8_t *out = sl_arena_alloc(&k->arena, row_bytes * rows, 32);
    if (!out || !values) {
        k->failed = true;
        return;
    }
    for (uint32_t i = 0; i < rows; i++)
        sl_quantize_row(t, values + (size_t)i * cols, out + i * row_bytes, cols);
    uint64_t dims[] = {cols, rows};
    sl_gguf_put_tensor(k->w, name, type_number(t), 2, dims, out, row_bytes * rows);
}

static void put_random(struct maker *k, const char *name, uint32_t cols, uint32_t rows)
{
    put_matrix(k, name, cols, rows, draw(k, (size_t)cols * rows, 0.0f, 1.0f / sqrtf((float)cols)));
}

static void put_layer(struct maker *k, uint32_t l, uint32_t head_dim)
{
    const struct tiny_model *m = k->m;
    uint32_t q = m->n_heads * head_dim, kv = m->n_kv_heads * head_dim;
    const struct {
        const char *name;
        uint32_t cols, rows;
    } matrices[] = {
        {"attn_q", m->dim, q},
        {"attn_k", m->dim, kv},
        {"attn_v", m->dim, kv},
        {"attn_output", q, m->dim},
        {"ffn_gate", m->dim, m->ffn_dim},
        {"ffn_up", m->dim, m->ffn_dim},
        {"ffn_down", m->ffn_dim, m->dim},
    };
    char name[64];
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", l, matrices[i].name);
        put_random(k, name, matrices[i].cols, matrices[i].rows);
        if (m->bias && i < 4) {
            snprintf(name, sizeof name, "blk.%u.%s.bias", l, matrices[i].name);
            put_f32s(k, name, matrices[i].rows, 0.0f, 0.1f);
        }
    }
    snprintf(name, sizeof name, "blk.%u.attn_norm.weight", l);
    put_f32s(k, name, m->dim, 1.0f, 0.1f);
    snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", l);
    put_f32s(k, name, m->dim, 1.0f, 0.1f);
}

/* Rows of printable tokens are longer, so that what the model says is mostly printable. */
static void put_head(struct maker *k)
{
    uint32_t dim = k->m->dim;
    float *p = draw(k, N_VOCAB * (size_t)dim, 0.0f, 3.0f / sqrtf((float)dim));
    for (size_t i = 0; p && i < N_VOCAB; i++) {
        bool prints = (i >= 0x20 && i < 0x7f) || i >= 256;
        for (uint32_t j = 0; !prints && j < dim; j++)
            p[i * dim + j] *= 0.25f;
    }
    put_matrix(k, "output.weight", dim, (uint32_t)N_VOCAB, p);
}

static enum sl_status make(const struct tiny_model *m, struct maker *k, struct sl_err *err)
{
    uint32_t head_dim = m->head_dim ? m->head_dim : m->dim / m->n_heads;
    *k = (struct maker){.m = m, .w = sl_gguf_writer_new(), .rng = {.seed = m->seed}};
    sl_arena_init(&k->arena, (size_t)1 << 30);
    if (!k->w)
        return sl_fail(err, SL_NO_MEMORY, "tiny model: no memory");
    put_config(k->w, m, head_dim);
    put_tokenizer(k->w);
    put_matrix(k, "token_embd.weight", m->dim, (uint32_t)N_VOCAB,
               draw(k, N_VOCAB * (size_t)m->dim, 0.0f, 1.0f));
    for (uint32_t l = 0; l < m->n_layers; l++)
        put_layer(k, l, head_dim);
    put_f32s(k, "output_norm.weight", m->dim, 1.0f, 0.1f);
    if (!m->tied)
        put_head(k);
    if (m->rope_factors)
        put_f32s(k, "rope_freqs.weight", head_dim / 2, 4.0f, 1.0f);
    if (k->failed)
        return sl_fail(err, SL_NO_MEMORY, "tiny model: no memory");
    return SL_OK;
}

struct tiny_model tiny_model_default(void)
{
    return (struct tiny_model){.seed = 1,
                               .dtype = SL_Q8_0,
                               .dim = 64,
                               .n_heads = 4,
                               .n_kv_heads = 2,
                               .n_layers = 2,
                               .ffn_dim = 128,
                               .ctx = 2048};
}

struct tiny_model tiny_model_three(void)
{
    struct tiny_model m = tiny_model_default();
    m.dim = 96;
    m.n_heads = 6;
    m.n_kv_heads = 3;
    m.head_dim = 32;
    m.ffn_dim = 192;
    m.n_layers = 3;
    return m;
}

uint32_t tiny_model_n_vocab(void)
{
    return (uint32_t)N_VOCAB;
}

enum sl_status tiny_model_write(const struct tiny_model *m, const char *path, struct sl_err *err)
{
    struct maker k;
    enum sl_status status = make(m, &k, err);
    if (status)
        sl_gguf_writer_drop(k.w);
    else
        status = sl_gguf_writer_finish(k.w, path, err);
    sl_arena_free(&k.arena);
    return status;
}

enum sl_status tiny_model_buf(const struct tiny_model *m, struct sl_buf *out, struct sl_err *err)
{
    struct maker k;
    enum sl_status status = make(m, &k, err);
    if (status)
        sl_gguf_writer_drop(k.w);
    else
        status = sl_gguf_writer_finish_buf(k.w, out, err);
    sl_arena_free(&k.arena);
    return status;
}
