/* The configuration of a decoder from the keys of its GGUF file ("llama.block_count" and so on; the
 * GGUF page of the ggml project's documentation). A key that is there but of the wrong kind is an
 * error, never its default; a key that asks for what this decoder does not do is one too. */
#include "model_priv.h"

#include <sluice/base/limits.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Widths beyond any model that exists; keeps products of two of them inside 64 bits. */
#define WIDTH_MAX (1u << 24)

static const struct family families[] = {
    {"llama", SL_ROPE_INTERLEAVED},
};

const struct family *family_find(struct sl_str arch)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (sl_str_eqz(arch, families[i].arch))
            return &families[i];
    return NULL;
}

const char *family_names(void)
{
    return "llama";
}

/* Reads keys of one architecture; the first failure stays in status. */
struct reader {
    const struct sl_gguf *g;
    const char *arch;
    enum sl_status status;
    struct sl_err *err;
    char name[96]; /* of the key last asked for */
};

static const struct sl_gguf_key *find(struct reader *r, const char *suffix)
{
    snprintf(r->name, sizeof r->name, "%s.%s", r->arch, suffix);
    return sl_gguf_find(r->g, r->name);
}

static void read_u32(struct reader *r, const char *suffix, bool required, uint32_t *out)
{
    const struct sl_gguf_key *k = find(r, suffix);
    if (r->status || (!k && !required))
        return;
    if (!k)
        r->status = sl_fail(r->err, SL_MODEL, "model: key '%s' is missing", r->name);
    else if (!sl_gguf_u32(r->g, r->name, out))
        r->status =
            sl_fail(r->err, SL_MODEL, "model: key '%s' is not one integer of 32 bits", r->name);
}

static void read_f32(struct reader *r, const char *suffix, bool required, float *out)
{
    const struct sl_gguf_key *k = find(r, suffix);
    if (r->status || (!k && !required))
        return;
    if (!k)
        r->status = sl_fail(r->err, SL_MODEL, "model: key '%s' is missing", r->name);
    else if (!sl_gguf_f32(r->g, r->name, out) || !isfinite(*out))
        r->status = sl_fail(r->err, SL_MODEL, "model: key '%s' is not one finite number", r->name);
}

/* A width, count or length: [1, max]. */
static void check_range(struct reader *r, const char *what, uint64_t v, uint64_t max)
{
    if (!r->status && (v == 0 || v > max))
        r->status = sl_fail(r->err, SL_MODEL, "model: %s is %" PRIu64 ", must be 1 to %" PRIu64,
                            what, v, max);
}

static void read_heads(struct reader *r, struct sl_model_config *c)
{
    read_u32(r, "attention.head_count", true, &c->n_heads);
    c->n_kv_heads = c->n_heads;
    read_u32(r, "attention.head_count_kv", false, &c->n_kv_heads);
    check_range(r, "attention.head_count", c->n_heads, 65536);
    check_range(r, "attention.head_count_kv", c->n_kv_heads, 65536);
    if (r->status)
        return;
    if (c->n_heads % c->n_kv_heads != 0) {
        r->status =
            sl_fail(r->err, SL_MODEL, "model: %u heads are no multiple of %u key and value heads",
                    c->n_heads, c->n_kv_heads);
        return;
    }
    bool has_length = find(r, "attention.key_length") != NULL;
    if (!has_length && c->dim % c->n_heads != 0) {
        r->status = sl_fail(r->err, SL_MODEL, "model: width %u does not divide into %u heads",
                            c->dim, c->n_heads);
        return;
    }
    c->head_dim = c->dim / c->n_heads;
    read_u32(r, "attention.key_length", false, &c->head_dim);
    uint32_t v_dim = c->head_dim;
    read_u32(r, "attention.value_length", false, &v_dim);
    check_range(r, "attention.key_length", c->head_dim, 65536);
    if (!r->status && v_dim != c->head_dim)
        r->status = sl_fail(r->err, SL_MODEL,
                            "model: keys of %u and values of %u elements a head are not supported",
                            c->head_dim, v_dim);
    if (!r->status)
        check_range(r, "heads times head length", (uint64_t)c->n_heads * c->head_dim, WIDTH_MAX);
    c->attn_scale = r->status ? 0.0f : 1.0f / sqrtf((float)c->head_dim);
    read_f32(r, "attention.scale", false, &c->attn_scale);
}

static void read_scaling(struct reader *r, struct sl_model_config *c)
{
    float factor = 1.0f;
    read_f32(r, "rope.scale_linear", false, &factor); /* as older files say it */
    if (find(r, "rope.scaling.type")) {
        struct sl_str type = SL_STR("(not a string)");
        sl_gguf_str(r->g, r->name, &type);
        if (sl_str_eqz(type, "linear"))
            read_f32(r, "rope.scaling.factor", true, &factor);
        else if (!sl_str_eqz(type, "none") && !r->status)
            r->status = sl_fail(r->err, SL_MODEL,
                                "model: rope scaling '%s' is not supported (known: none, linear)",
                                show(type).z);
    } else {
        read_f32(r, "rope.scaling.factor", false, &factor);
    }
    if (!r->status && !(factor >= 1e-3f && factor <= 1e6f))
        r->status = sl_fail(r->err, SL_MODEL, "model: rope scaling factor %g is out of range",
                            (double)factor);
    c->rope_scale = 1.0 / (double)factor;
}

static void read_rope(struct reader *r, struct sl_model_config *c)
{
    float base = 10000.0f;
    read_f32(r, "rope.freq_base", false, &base);
    if (!r->status && !(base >= 1.0f && base <= 1e12f))
        r->status = sl_fail(r->err, SL_MODEL, "model: key '%s.rope.freq_base' is %g", r->arch,
                            (double)base);
    c->rope_base = (double)base;
    c->n_rot = c->head_dim;
    read_u32(r, "rope.dimension_count", false, &c->n_rot);
    if (!r->status && (c->n_rot == 0 || c->n_rot % 2 != 0 || c->n_rot > c->head_dim))
        r->status = sl_fail(r->err, SL_MODEL,
                            "model: %u rotated elements of a head of %u; must be even and within "
                            "the head",
                            c->n_rot, c->head_dim);
    read_scaling(r, c);
    c->rope_factors = sl_gguf_tensor(r->g, "rope_freqs.weight") != NULL;
}

/* Keys whose mere effect would change the answer, and the value at which they have none. */
static void refuse_others(struct reader *r, const struct sl_model_config *c)
{
    static const char *const zero[] = {
        "expert_count",          "expert_used_count",        "logit_scale",
        "attention.clamp_kqv",   "attention.max_alibi_bias", "final_logit_softcapping",
        "attn_logit_softcapping"};
    for (size_t i = 0; i < sizeof zero / sizeof *zero && !r->status; i++) {
        uint32_t u = 0;
        float f = 0.0f;
        if (!find(r, zero[i]))
            continue;
        bool known = sl_gguf_u32(r->g, r->name, &u) || sl_gguf_f32(r->g, r->name, &f);
        if (!known || u != 0 || f != 0.0f)
            r->status = sl_fail(r->err, SL_MODEL, "model: key '%s' is not supported", r->name);
    }
    uint32_t window = 0;
    read_u32(r, "attention.sliding_window", false, &window);
    if (!r->status && window != 0 && window < c->ctx_max)
        r->status = sl_fail(r->err, SL_MODEL,
                            "model: a sliding window of %u positions is not supported", window);
}

/* The vocabulary is as wide as the embedding table; other statements must fit into it. */
static void read_vocab(struct reader *r, struct sl_model_config *c)
{
    const struct sl_gguf_tensor *t = sl_gguf_tensor(r->g, "token_embd.weight");
    if (!t || t->n_dims != 2) {
        if (!r->status)
            r->status = sl_fail(r->err, SL_MODEL, "model: tensor 'token_embd.weight' is %s",
                                t ? "no matrix" : "missing");
        return;
    }
    check_range(r, "vocabulary", t->dims[1], SL_LIMIT_vocab_tokens);
    if (r->status)
        return;
    c->n_vocab = (uint32_t)t->dims[1];
    uint32_t said = c->n_vocab;
    read_u32(r, "vocab_size", false, &said);
    const struct sl_gguf_key *tokens = sl_gguf_find(r->g, "tokenizer.ggml.tokens");
    uint64_t n_tokens = tokens ? tokens->n : 0;
    if (!r->status && (said > c->n_vocab || n_tokens > c->n_vocab))
        r->status =
            sl_fail(r->err, SL_MODEL,
                    "model: vocab_size %u and %" PRIu64 " tokens, but the embedding has %u rows",
                    said, n_tokens, c->n_vocab);
}

static void read_keys(struct reader *r, struct sl_model_config *c)
{
    read_u32(r, "block_count", true, &c->n_layers);
    read_u32(r, "embedding_length", true, &c->dim);
    read_u32(r, "feed_forward_length", true, &c->ffn_dim);
    read_u32(r, "context_length", true, &c->ctx_max);
    read_f32(r, "attention.layer_norm_rms_epsilon", true, &c->rms_eps);
    check_range(r, "block_count", c->n_layers, SL_LIMIT_model_layers);
    check_range(r, "embedding_length", c->dim, WIDTH_MAX);
    check_range(r, "feed_forward_length", c->ffn_dim, WIDTH_MAX);
    check_range(r, "context_length", c->ctx_max, WIDTH_MAX);
    if (!r->status && !(c->rms_eps >= 0.0f && c->rms_eps < 1.0f))
        r->status =
            sl_fail(r->err, SL_MODEL, "model: layer_norm_rms_epsilon is %g", (double)c->rms_eps);
    if (!r->status)
        read_heads(r, c);
    if (!r->status)
        read_rope(r, c);
    if (!r->status)
        read_vocab(r, c);
    if (!r->status)
        refuse_others(r, c);
}

enum sl_status sl_model_read_config(const struct sl_gguf *g, struct sl_model_config *out,
                                    struct sl_err *err)
{
    struct sl_str arch;
    if (!sl_gguf_str(g, "general.architecture", &arch))
        return sl_fail(err, SL_MODEL, "model: key 'general.architecture' is missing");
    const struct family *family = family_find(arch);
    if (!family)
        return sl_fail(err, SL_MODEL, "unsupported architecture '%s' (known: %s)", show(arch).z,
                       family_names());
    struct sl_model_config c = {.rope_kind = family->rope_kind};
    snprintf(c.arch, sizeof c.arch, "%s", family->arch);
    struct reader r = {.g = g, .arch = family->arch, .err = err};
    read_keys(&r, &c);
    if (r.status)
        return r.status;
    c.tied_head = sl_gguf_tensor(g, "output.weight") == NULL;
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++)
        c.n_params += sl_gguf_tensor_at(g, i)->n_elems;
    struct tensor_map map;
    enum sl_status status = tensor_map_open(g, &c, &map, err);
    if (status)
        return status;
    tensor_map_close(&map);
    *out = c;
    return SL_OK;
}
