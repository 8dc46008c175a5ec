/* The same decoder once more, in double and without any of the product's ops: one sequence, no
 * cache, every formula as it is written. For small models. */
#ifndef SLUICE_TESTS_NAIVE_H
#define SLUICE_TESTS_NAIVE_H

#include <sluice/model/file.h>
#include <sluice/model/model.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct naive {
    const struct sl_gguf *g;
    struct sl_model_config c;
};

/* A tensor in float32; NULL when absent. */
static inline float *naive_tensor(const struct naive *v, const char *name)
{
    const struct sl_gguf_tensor *t = sl_gguf_tensor(v->g, name);
    enum sl_dtype dtype;
    if (!t || !sl_model_dtype(t->ggml_type, &dtype))
        return NULL;
    float *p = calloc(t->n_elems, sizeof *p);
    if (p)
        sl_dequantize_row(dtype, t->data, p, t->n_elems);
    return p;
}

static inline float *naive_layer_tensor(const struct naive *v, uint32_t l, const char *suffix)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", l, suffix);
    return naive_tensor(v, name);
}

/* y [n] (+)= W [n, k] x [k] + bias */
static inline void naive_linear(const float *w, const float *bias, const double *x, uint32_t k,
                                uint32_t n, bool add, double *y)
{
    for (uint32_t i = 0; i < n; i++) {
        double sum = bias ? (double)bias[i] : 0.0;
        for (uint32_t j = 0; j < k; j++)
            sum += (double)w[(size_t)i * k + j] * x[j];
        y[i] = add ? y[i] + sum : sum;
    }
}

static inline void naive_norm(const float *w, const double *x, uint32_t n, double eps, double *y)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / n + eps) * (double)w[i];
}

/* Rotates the pairs (2i, 2i + 1) of every head. */
static inline void naive_rope(const struct sl_model_config *c, const float *factors, uint32_t pos,
                              uint32_t n_heads, double *x)
{
    for (uint32_t h = 0; h < n_heads; h++)
        for (uint32_t i = 0; i < c->n_rot / 2; i++) {
            double f = pow(c->rope_base, -2.0 * i / c->n_rot) / (factors ? (double)factors[i] : 1);
            double angle = pos * c->rope_scale * f;
            double *p = x + (size_t)h * c->head_dim + 2 * i, a = p[0], b = p[1];
            p[0] = a * cos(angle) - b * sin(angle);
            p[1] = a * sin(angle) + b * cos(angle);
        }
}

/* One head over the keys 0..t. */
static inline void naive_head(const double *q, const double *k, const double *v, uint32_t stride,
                              uint32_t t, uint32_t d, double scale, double *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < d; i++)
        out[i] = 0;
    for (uint32_t s = 0; s <= t; s++) {
        double dot = 0;
        for (uint32_t i = 0; i < d; i++)
            dot += q[i] * k[(size_t)s * stride + i];
        double w = exp(dot * scale);
        sum += w;
        for (uint32_t i = 0; i < d; i++)
            out[i] += w * v[(size_t)s * stride + i];
    }
    for (uint32_t i = 0; i < d; i++)
        out[i] /= sum;
}

static inline void naive_attention(const struct naive *v, uint32_t l, const float *factors,
                                   uint32_t n, double *x)
{
    const struct sl_model_config *c = &v->c;
    uint32_t q_n = c->n_heads * c->head_dim, kv_n = c->n_kv_heads * c->head_dim;
    static const char *const names[] = {
        "attn_norm.weight", "attn_q.weight", "attn_q.bias",        "attn_k.weight",   "attn_k.bias",
        "attn_v.weight",    "attn_v.bias",   "attn_output.weight", "attn_output.bias"};
    float *w[9];
    for (int i = 0; i < 9; i++)
        w[i] = naive_layer_tensor(v, l, names[i]);
    double *k = calloc((size_t)n * kv_n, sizeof *k), *val = calloc((size_t)n * kv_n, sizeof *val);
    double *q = calloc(q_n, sizeof *q), *o = calloc(q_n, sizeof *o), *h = calloc(c->dim, sizeof *h);
    for (uint32_t t = 0; t < n; t++) {
        double *row = x + (size_t)t * c->dim, *kt = k + (size_t)t * kv_n;
        naive_norm(w[0], row, c->dim, (double)c->rms_eps, h);
        naive_linear(w[1], w[2], h, c->dim, q_n, false, q);
        naive_linear(w[3], w[4], h, c->dim, kv_n, false, kt);
        naive_linear(w[5], w[6], h, c->dim, kv_n, false, val + (size_t)t * kv_n);
        naive_rope(c, factors, t, c->n_heads, q);
        naive_rope(c, factors, t, c->n_kv_heads, kt);
        for (uint32_t i = 0; i < c->n_heads; i++) {
            uint32_t at = i / (c->n_heads / c->n_kv_heads) * c->head_dim;
            naive_head(q + (size_t)i * c->head_dim, k + at, val + at, kv_n, t, c->head_dim,
                       (double)c->attn_scale, o + (size_t)i * c->head_dim);
        }
        naive_linear(w[7], w[8], o, q_n, c->dim, true, row);
    }
    for (int i = 0; i < 9; i++)
        free(w[i]);
    free(k), free(val), free(q), free(o), free(h);
}

static inline void naive_ffn(const struct naive *v, uint32_t l, uint32_t n, double *x)
{
    const struct sl_model_config *c = &v->c;
    float *norm = naive_layer_tensor(v, l, "ffn_norm.weight");
    float *gate = naive_layer_tensor(v, l, "ffn_gate.weight");
    float *up = naive_layer_tensor(v, l, "ffn_up.weight");
    float *down = naive_layer_tensor(v, l, "ffn_down.weight");
    double *h = calloc(c->dim, sizeof *h), *a = calloc(c->ffn_dim, sizeof *a);
    double *b = calloc(c->ffn_dim, sizeof *b);
    for (uint32_t t = 0; t < n; t++) {
        naive_norm(norm, x + (size_t)t * c->dim, c->dim, (double)c->rms_eps, h);
        naive_linear(gate, NULL, h, c->dim, c->ffn_dim, false, a);
        naive_linear(up, NULL, h, c->dim, c->ffn_dim, false, b);
        for (uint32_t i = 0; i < c->ffn_dim; i++)
            a[i] = a[i] / (1 + exp(-a[i])) * b[i];
        naive_linear(down, NULL, a, c->ffn_dim, c->dim, true, x + (size_t)t * c->dim);
    }
    free(norm), free(gate), free(up), free(down), free(h), free(a), free(b);
}

/* Logits [n, n_vocab] of every position. */
static inline double *naive_run(const struct sl_gguf *g, const struct sl_model_config *cfg,
                                const uint32_t *tokens, uint32_t n)
{
    struct naive v = {.g = g, .c = *cfg};
    const struct sl_model_config *c = &v.c;
    float *embed = naive_tensor(&v, "token_embd.weight"), *head = naive_tensor(&v, "output.weight");
    float *norm = naive_tensor(&v, "output_norm.weight");
    float *factors = naive_tensor(&v, "rope_freqs.weight");
    double *x = calloc((size_t)n * c->dim, sizeof *x), *h = calloc(c->dim, sizeof *h);
    double *logits = calloc((size_t)n * c->n_vocab, sizeof *logits);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < c->dim; i++)
            x[(size_t)t * c->dim + i] = (double)embed[(size_t)tokens[t] * c->dim + i];
    for (uint32_t l = 0; l < c->n_layers; l++) {
        naive_attention(&v, l, factors, n, x);
        naive_ffn(&v, l, n, x);
    }
    for (uint32_t t = 0; t < n; t++) {
        naive_norm(norm, x + (size_t)t * c->dim, c->dim, (double)c->rms_eps, h);
        naive_linear(head ? head : embed, NULL, h, c->dim, c->n_vocab, false,
                     logits + (size_t)t * c->n_vocab);
    }
    free(embed), free(head), free(norm), free(factors), free(x), free(h);
    return logits;
}

#endif
