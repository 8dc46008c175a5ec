/* A model file in words and in JSON. Strings come from the file and go to a terminal: nothing but
 * printable characters passes. */
#include "model_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define STRING_SHOWN_MAX 72u
#define ARRAY_SHOWN_MAX  8u
#define MIB(bytes)       ((double)(bytes) / (1024.0 * 1024.0))

static const char *const type_names[SL_GGUF_N_TYPE] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

/* A quoted, escaped string of at most len_max bytes without control characters of the C1 range,
 * which some terminals obey. */
static void put_quoted(struct sl_buf *out, struct sl_str s, size_t len_max)
{
    struct sl_buf clean = {0};
    size_t n = s.len < len_max ? s.len : len_max;
    while (n > 0 && n < s.len && ((unsigned char)s.data[n] & 0xc0) == 0x80)
        n--; /* not in the middle of a character */
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s.data[i];
        bool c1 = c == 0xc2 && i + 1 < s.len && (unsigned char)s.data[i + 1] < 0xa0;
        sl_buf_putc(&clean, c1 || c == 0x7f ? '?' : s.data[i]);
        i += c1;
    }
    sl_buf_json_str(out, clean.data ? clean.data : "", clean.len);
    sl_buf_free(&clean);
    if (n < s.len)
        sl_buf_printf(out, "... (%zu bytes)", s.len);
}

/* Element i of a key's value, as JSON. */
static void put_element(struct sl_buf *out, const struct sl_gguf_key *k, uint64_t i, size_t len_max)
{
    switch (k->elem) {
    case SL_GGUF_STRING:
        put_quoted(out, sl_gguf_array_str(k, i), len_max);
        break;
    case SL_GGUF_F32:
    case SL_GGUF_F64:
        sl_buf_json_f32(out, sl_gguf_array_f32(k, i));
        break;
    case SL_GGUF_BOOL:
        sl_buf_puts(out, sl_gguf_array_int(k, i) ? "true" : "false");
        break;
    case SL_GGUF_U64: {
        uint64_t v;
        memcpy(&v, k->data + i * sizeof v, sizeof v);
        sl_buf_printf(out, "%" PRIu64, v);
        break;
    }
    default:
        sl_buf_printf(out, "%" PRId64, sl_gguf_array_int(k, i));
    }
}

static void put_elements(struct sl_buf *out, const struct sl_gguf_key *k, size_t len_max)
{
    sl_buf_putc(out, '[');
    for (uint64_t i = 0; i < k->n; i++) {
        sl_buf_puts(out, i ? ", " : "");
        put_element(out, k, i, len_max);
    }
    sl_buf_putc(out, ']');
}

static void put_value(struct sl_buf *out, const struct sl_gguf_key *k, size_t len_max)
{
    if (k->type != SL_GGUF_ARRAY)
        put_element(out, k, 0, len_max);
    else if (k->n <= ARRAY_SHOWN_MAX)
        put_elements(out, k, len_max);
    else
        sl_buf_printf(out, "{\"array\": \"%s\", \"n\": %" PRIu64 "}", type_names[k->elem], k->n);
}

struct type_sum {
    const char *name;
    uint64_t n_tensors, n_bytes;
};

/* Tensors and bytes by type, in order of first appearance. */
static size_t sum_types(const struct sl_gguf *g, struct type_sum *sums, size_t sums_max)
{
    size_t n = 0;
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        size_t s = 0;
        while (s < n && strcmp(sums[s].name, t->type_name) != 0)
            s++;
        if (s == sums_max)
            continue;
        if (s == n)
            sums[n++] = (struct type_sum){.name = t->type_name};
        sums[s].n_tensors++;
        sums[s].n_bytes += t->n_bytes;
    }
    return n;
}

static uint64_t tensor_bytes(const struct sl_gguf *g)
{
    uint64_t n = 0;
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++)
        n += sl_gguf_tensor_at(g, i)->n_bytes;
    return n;
}

/* --- JSON --- */

static void json_config(struct sl_buf *out, const struct sl_model_config *c)
{
    sl_buf_printf(out,
                  "{\"n_layers\": %u, \"dim\": %u, \"n_heads\": %u, \"n_kv_heads\": %u, "
                  "\"head_dim\": %u, \"ffn_dim\": %u, \"n_vocab\": %u, \"ctx_max\": %u, ",
                  c->n_layers, c->dim, c->n_heads, c->n_kv_heads, c->head_dim, c->ffn_dim,
                  c->n_vocab, c->ctx_max);
    sl_buf_puts(out, "\"rms_eps\": ");
    sl_buf_json_f32(out, c->rms_eps);
    sl_buf_puts(out, ", \"rope_base\": ");
    sl_buf_json_f32(out, (float)c->rope_base);
    sl_buf_puts(out, ", \"rope_scale\": ");
    sl_buf_json_f32(out, (float)c->rope_scale);
    sl_buf_printf(out,
                  ", \"n_rot\": %u, \"rope_factors\": %s, \"tied_head\": %s, "
                  "\"n_params\": %" PRIu64 "}",
                  c->n_rot, c->rope_factors ? "true" : "false", c->tied_head ? "true" : "false",
                  c->n_params);
}

static void json_memory(struct sl_buf *out, const struct sl_gguf *g,
                        const struct sl_model_config *c)
{
    uint64_t kv = sl_model_kv_token_bytes(c, NULL, SL_F16);
    sl_buf_printf(out,
                  "{\"weight_bytes\": %" PRIu64 ", \"kv_dtype\": \"f16\", \"kv_bytes_per_token\": "
                  "%" PRIu64 ", \"kv_bytes_full_context\": %" PRIu64 "}",
                  tensor_bytes(g), kv, kv * c->ctx_max);
}

static void json_keys(struct sl_buf *out, const struct sl_gguf *g)
{
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        sl_buf_puts(out, i ? ",\n    " : "\n    ");
        put_quoted(out, k->name, SIZE_MAX);
        sl_buf_puts(out, ": ");
        put_value(out, k, SIZE_MAX);
    }
}

static void json_tensors(struct sl_buf *out, const struct sl_gguf *g)
{
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        sl_buf_puts(out, i ? ",\n    {\"name\": " : "\n    {\"name\": ");
        put_quoted(out, t->name, SIZE_MAX);
        sl_buf_printf(out, ", \"type\": \"%s\", \"dims\": [", t->type_name);
        for (uint32_t d = 0; d < t->n_dims; d++)
            sl_buf_printf(out, "%s%" PRIu64, d ? ", " : "", t->dims[d]);
        sl_buf_printf(out, "], \"offset\": %" PRIu64 ", \"bytes\": %" PRIu64 "}", t->offset,
                      t->n_bytes);
    }
}

static void describe_json(const struct sl_gguf *g, const char *path,
                          const struct sl_model_config *c, const char *reason, struct sl_buf *out)
{
    struct type_sum sums[64];
    size_t n = sum_types(g, sums, 64);
    sl_buf_puts(out, "{\n  \"path\": ");
    sl_buf_json_str(out, path, strlen(path));
    sl_buf_printf(out, ",\n  \"bytes\": %" PRIu64 ",\n  \"gguf_version\": %u,\n  \"supported\": %s",
                  sl_gguf_size(g), sl_gguf_version(g), c ? "true" : "false");
    if (c) {
        sl_buf_puts(out, ",\n  \"config\": ");
        json_config(out, c);
        sl_buf_puts(out, ",\n  \"memory\": ");
        json_memory(out, g, c);
    } else {
        sl_buf_puts(out, ",\n  \"reason\": ");
        put_quoted(out, sl_str_of(reason), SIZE_MAX);
    }
    sl_buf_puts(out, ",\n  \"types\": [");
    for (size_t i = 0; i < n; i++)
        sl_buf_printf(out, "%s{\"type\": \"%s\", \"tensors\": %" PRIu64 ", \"bytes\": %" PRIu64 "}",
                      i ? ", " : "", sums[i].name, sums[i].n_tensors, sums[i].n_bytes);
    sl_buf_puts(out, "],\n  \"keys\": {");
    json_keys(out, g);
    sl_buf_puts(out, "\n  },\n  \"tensors\": [");
    json_tensors(out, g);
    sl_buf_puts(out, "\n  ]\n}\n");
}

/* --- lines --- */

static void text_config(struct sl_buf *out, const struct sl_gguf *g,
                        const struct sl_model_config *c)
{
    uint64_t kv = sl_model_kv_token_bytes(c, NULL, SL_F16);
    sl_buf_printf(out, "decoder     %s, %.1f M parameters, %u layers, width %u, ffn %u\n", c->arch,
                  (double)c->n_params / 1e6, c->n_layers, c->dim, c->ffn_dim);
    sl_buf_printf(out, "attention   %u heads of %u, %u for keys and values\n", c->n_heads,
                  c->head_dim, c->n_kv_heads);
    sl_buf_printf(out, "positions   %u, rope base %g, scale %g%s\n", c->ctx_max, c->rope_base,
                  c->rope_scale, c->rope_factors ? ", with factors" : "");
    sl_buf_printf(out, "vocabulary  %u, %s head\n", c->n_vocab, c->tied_head ? "tied" : "own");
    sl_buf_printf(out,
                  "memory      weights %.1f MiB, KV (f16) %" PRIu64
                  " bytes a token, %.1f MiB for %u positions\n",
                  MIB(tensor_bytes(g)), kv, MIB(kv * c->ctx_max), c->ctx_max);
}

static void text_tensors(struct sl_buf *out, const struct sl_gguf *g)
{
    sl_buf_puts(out, "tensors\n");
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        sl_buf_puts(out, "  ");
        put_quoted(out, t->name, STRING_SHOWN_MAX);
        sl_buf_printf(out, " %s [", t->type_name);
        for (uint32_t d = 0; d < t->n_dims; d++)
            sl_buf_printf(out, "%s%" PRIu64, d ? ", " : "", t->dims[d]);
        sl_buf_printf(out, "] %" PRIu64 " bytes\n", t->n_bytes);
    }
}

static void describe_text(const struct sl_gguf *g, const struct sl_model_describe *how,
                          const struct sl_model_config *c, const char *reason, struct sl_buf *out)
{
    struct type_sum sums[64];
    size_t n = sum_types(g, sums, 64);
    sl_buf_printf(out, "file        %s\n", how->path);
    sl_buf_printf(out, "format      GGUF %u, %.1f MiB, %zu keys, %zu tensors\n", sl_gguf_version(g),
                  MIB(sl_gguf_size(g)), sl_gguf_n_keys(g), sl_gguf_n_tensors(g));
    if (c)
        text_config(out, g, c);
    else
        sl_buf_printf(out, "unsupported %s\n", reason);
    for (size_t i = 0; i < n; i++)
        sl_buf_printf(out, "%s%s: %" PRIu64 " tensors, %.1f MiB\n",
                      i ? "            " : "types       ", sums[i].name, sums[i].n_tensors,
                      MIB(sums[i].n_bytes));
    sl_buf_puts(out, "keys\n");
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        sl_buf_puts(out, "  ");
        put_quoted(out, k->name, STRING_SHOWN_MAX);
        sl_buf_puts(out, " = ");
        put_value(out, k, how->all ? SIZE_MAX : STRING_SHOWN_MAX);
        sl_buf_putc(out, '\n');
    }
    if (how->all)
        text_tensors(out, g);
}

void sl_model_describe(const struct sl_gguf *g, const struct sl_model_describe *how,
                       struct sl_buf *out)
{
    struct sl_model_config config;
    struct sl_err err = {0};
    bool supported = sl_model_read_config(g, &config, &err) == SL_OK;
    const struct sl_model_config *c = supported ? &config : NULL;
    if (how->json)
        describe_json(g, how->path, c, err.msg, out);
    else
        describe_text(g, how, c, err.msg, out);
}
