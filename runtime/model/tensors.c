/* The tensors of a decoder: names, shapes, types. One table per layer and one for the rest; the
 * file must have exactly what the tables say, because a tensor nobody uses is a computation nobody
 * does. */
#include "model_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum width { W_NONE, W_DIM, W_Q, W_KV, W_FFN, W_VOCAB, W_ROT };

struct spec {
    const char *name;
    enum width k, n; /* dims[0] and dims[1]; n is W_NONE for vectors */
    bool optional;
};

static const struct spec model_specs[N_MODEL_SLOT] = {
    [T_EMBED] = {"token_embd.weight", W_DIM, W_VOCAB, false},
    [T_OUT_NORM] = {"output_norm.weight", W_DIM, W_NONE, false},
    [T_HEAD] = {"output.weight", W_DIM, W_VOCAB, true},
    [T_ROPE_FREQS] = {"rope_freqs.weight", W_ROT, W_NONE, true},
};

static const struct spec layer_specs[N_LAYER_SLOT] = {
    [T_ATTN_NORM] = {"attn_norm.weight", W_DIM, W_NONE, false},
    [T_Q] = {"attn_q.weight", W_DIM, W_Q, false},
    [T_K] = {"attn_k.weight", W_DIM, W_KV, false},
    [T_V] = {"attn_v.weight", W_DIM, W_KV, false},
    [T_O] = {"attn_output.weight", W_Q, W_DIM, false},
    [T_Q_BIAS] = {"attn_q.bias", W_Q, W_NONE, true},
    [T_K_BIAS] = {"attn_k.bias", W_KV, W_NONE, true},
    [T_V_BIAS] = {"attn_v.bias", W_KV, W_NONE, true},
    [T_O_BIAS] = {"attn_output.bias", W_DIM, W_NONE, true},
    [T_FFN_NORM] = {"ffn_norm.weight", W_DIM, W_NONE, false},
    [T_GATE] = {"ffn_gate.weight", W_DIM, W_FFN, false},
    [T_UP] = {"ffn_up.weight", W_DIM, W_FFN, false},
    [T_DOWN] = {"ffn_down.weight", W_FFN, W_DIM, false},
};

static const struct {
    uint32_t ggml_type;
    enum sl_dtype dtype;
} dtypes[] = {
    {0, SL_F32}, {1, SL_F16}, {2, SL_Q4_0}, {3, SL_Q4_1}, {8, SL_Q8_0}, {30, SL_BF16},
};

bool sl_model_dtype(uint32_t ggml_type, enum sl_dtype *out)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (dtypes[i].ggml_type == ggml_type) {
            *out = dtypes[i].dtype;
            return true;
        }
    return false;
}

uint32_t sl_model_ggml_type(enum sl_dtype dtype)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (dtypes[i].dtype == dtype)
            return dtypes[i].ggml_type;
    return UINT32_MAX;
}

static uint64_t width_of(const struct sl_model_config *c, enum width w)
{
    switch (w) {
    case W_NONE:
        return 1;
    case W_DIM:
        return c->dim;
    case W_Q:
        return q_dim(c);
    case W_KV:
        return kv_dim(c);
    case W_FFN:
        return c->ffn_dim;
    case W_VOCAB:
        return c->n_vocab;
    case W_ROT:
        return c->n_rot / 2;
    }
    return 0;
}

static enum sl_status check_tensor(const struct sl_gguf_tensor *t, const char *name,
                                   const struct spec *s, const struct sl_model_config *c,
                                   struct sl_err *err)
{
    uint64_t k = width_of(c, s->k), n = width_of(c, s->n);
    if (t->dims[0] != k || t->dims[1] != n || t->dims[2] != 1 || t->dims[3] != 1)
        return sl_fail(err, SL_MODEL,
                       "model: tensor '%s' is [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                       "], must be [%" PRIu64 ", %" PRIu64 "]",
                       name, t->dims[0], t->dims[1], t->dims[2], t->dims[3], k, n);
    enum sl_dtype dtype;
    if (!sl_model_dtype(t->ggml_type, &dtype))
        return sl_fail(err, SL_MODEL,
                       "model: tensor '%s' has type %s, which is not supported (known: F32, F16, "
                       "BF16, Q8_0, Q4_0, Q4_1)",
                       name, t->type_name);
    if (s->n == W_NONE && sl_dtype_row(dtype)->block_elems != 1)
        return sl_fail(err, SL_MODEL, "model: tensor '%s' is a vector of type %s", name,
                       t->type_name);
    return SL_OK;
}

/* Finds one tensor and notes in `used` that somebody wants it. */
static enum sl_status find_tensor(const struct sl_gguf *g, const char *name, const struct spec *s,
                                  const struct sl_model_config *c, bool *used,
                                  const struct sl_gguf_tensor **out, struct sl_err *err)
{
    const struct sl_gguf_tensor *t = sl_gguf_tensor(g, name);
    *out = t;
    if (!t && !s->optional)
        return sl_fail(err, SL_MODEL, "model: tensor '%s' is missing", name);
    if (!t)
        return SL_OK;
    used[t - sl_gguf_tensor_at(g, 0)] = true;
    return check_tensor(t, name, s, c, err);
}

static enum sl_status find_all(const struct sl_gguf *g, const struct sl_model_config *c, bool *used,
                               struct tensor_map *m, struct sl_err *err)
{
    enum sl_status status = SL_OK;
    for (size_t i = 0; i < N_MODEL_SLOT && !status; i++)
        status = find_tensor(g, model_specs[i].name, &model_specs[i], c, used, &m->model[i], err);
    for (uint32_t l = 0; l < c->n_layers && !status; l++)
        for (size_t i = 0; i < N_LAYER_SLOT && !status; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s", l, layer_specs[i].name);
            status = find_tensor(g, name, &layer_specs[i], c, used, &m->layers[l][i], err);
        }
    return status;
}

/* Derived data that some writers leave in and nobody needs. */
static bool is_harmless(struct sl_str name)
{
    return sl_str_eqz(name, "rope.freqs") ||
           (name.len > 13 && memcmp(name.data + name.len - 13, "attn_rot_embd", 13) == 0) ||
           (name.len > 20 && memcmp(name.data + name.len - 20, "attn_rot_embd.weight", 20) == 0);
}

static enum sl_status check_rest(const struct sl_gguf *g, const bool *used, const char *arch,
                                 struct sl_err *err)
{
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        struct sl_str name = sl_gguf_tensor_at(g, i)->name;
        if (!used[i] && !is_harmless(name))
            return sl_fail(err, SL_MODEL,
                           "model: tensor '%s' is not part of the architecture '%s' as known "
                           "here",
                           show(name).z, arch);
    }
    return SL_OK;
}

enum sl_status tensor_map_open(const struct sl_gguf *g, const struct sl_model_config *c,
                               struct tensor_map *out, struct sl_err *err)
{
    struct tensor_map m = {.layers = calloc(c->n_layers, sizeof *m.layers)};
    bool *used = calloc(sl_gguf_n_tensors(g) + 1, sizeof *used);
    enum sl_status status = SL_OK;
    if (!m.layers || !used)
        status =
            sl_fail(err, SL_NO_MEMORY, "model: no memory for the map of %u layers", c->n_layers);
    if (!status)
        status = find_all(g, c, used, &m, err);
    if (!status)
        status = check_rest(g, used, c->arch, err);
    free(used);
    if (status)
        tensor_map_close(&m);
    else
        *out = m;
    return status;
}

void tensor_map_close(struct tensor_map *m)
{
    free(m->layers);
    m->layers = NULL;
}
