/* Typed reads of GGUF keys. Integers are taken from any integer type that holds the value: files
 * of different writers disagree on widths. */
#include "gguf_priv.h"

#include <string.h>

uint32_t sl_gguf_version(const struct sl_gguf *g)
{
    return g->version;
}

uint64_t sl_gguf_size(const struct sl_gguf *g)
{
    return g->size;
}

struct sl_str sl_gguf_meta(const struct sl_gguf *g)
{
    uint64_t n = g->data_start < g->size ? g->data_start : g->size;
    return (struct sl_str){(const char *)g->data, (size_t)n};
}

size_t sl_gguf_n_keys(const struct sl_gguf *g)
{
    return g->n_keys;
}

const struct sl_gguf_key *sl_gguf_key_at(const struct sl_gguf *g, size_t i)
{
    return i < g->n_keys ? &g->keys[i] : NULL;
}

size_t sl_gguf_n_tensors(const struct sl_gguf *g)
{
    return g->n_tensors;
}

const struct sl_gguf_tensor *sl_gguf_tensor_at(const struct sl_gguf *g, size_t i)
{
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

/* The integer at p; a u64 beyond INT64_MAX is reported by false. */
static bool int_at(enum sl_gguf_type type, const uint8_t *p, int64_t *out)
{
    switch (type) {
    case SL_GGUF_U8:
    case SL_GGUF_BOOL:
        *out = p[0];
        return true;
    case SL_GGUF_I8:
        *out = (int8_t)p[0];
        return true;
    case SL_GGUF_U16:
        *out = (uint16_t)(p[0] | p[1] << 8);
        return true;
    case SL_GGUF_I16:
        *out = (int16_t)(p[0] | p[1] << 8);
        return true;
    case SL_GGUF_U32:
        *out = gguf_le32(p);
        return true;
    case SL_GGUF_I32:
        *out = (int32_t)gguf_le32(p);
        return true;
    case SL_GGUF_U64:
    case SL_GGUF_I64:
        *out = (int64_t)gguf_le64(p);
        return type == SL_GGUF_I64 || *out >= 0;
    default:
        return false;
    }
}

static bool real_at(enum sl_gguf_type type, const uint8_t *p, float *out)
{
    if (type == SL_GGUF_F32) {
        uint32_t bits = gguf_le32(p);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    if (type == SL_GGUF_F64) {
        uint64_t bits = gguf_le64(p);
        double d;
        memcpy(&d, &bits, sizeof d);
        *out = (float)d;
        return true;
    }
    return false;
}

bool sl_gguf_u32(const struct sl_gguf *g, const char *name, uint32_t *out)
{
    const struct sl_gguf_key *k = sl_gguf_find(g, name);
    int64_t v;
    if (!k || k->type == SL_GGUF_BOOL || !int_at(k->type, k->data, &v) || v < 0 || v > UINT32_MAX)
        return false;
    *out = (uint32_t)v;
    return true;
}

bool sl_gguf_f32(const struct sl_gguf *g, const char *name, float *out)
{
    const struct sl_gguf_key *k = sl_gguf_find(g, name);
    return k && real_at(k->type, k->data, out);
}

bool sl_gguf_bool(const struct sl_gguf *g, const char *name, bool *out)
{
    const struct sl_gguf_key *k = sl_gguf_find(g, name);
    if (!k || k->type != SL_GGUF_BOOL)
        return false;
    *out = k->data[0] != 0;
    return true;
}

bool sl_gguf_str(const struct sl_gguf *g, const char *name, struct sl_str *out)
{
    const struct sl_gguf_key *k = sl_gguf_find(g, name);
    if (!k || k->type != SL_GGUF_STRING)
        return false;
    *out = sl_gguf_array_str(k, 0);
    return true;
}

struct sl_str sl_gguf_array_str(const struct sl_gguf_key *k, uint64_t i)
{
    if (k->elem != SL_GGUF_STRING || i >= k->n)
        return (struct sl_str){"", 0};
    const uint8_t *p = k->data + (k->str_at ? k->str_at[i] : 0);
    return (struct sl_str){(const char *)p + 8, (size_t)gguf_le64(p)};
}

float sl_gguf_array_f32(const struct sl_gguf_key *k, uint64_t i)
{
    float v = 0.0f;
    if (i < k->n)
        real_at(k->elem, k->data + i * gguf_scalar_bytes(k->elem), &v);
    return v;
}

int64_t sl_gguf_array_int(const struct sl_gguf_key *k, uint64_t i)
{
    int64_t v = 0;
    if (i >= k->n || !int_at(k->elem, k->data + i * gguf_scalar_bytes(k->elem), &v))
        return 0;
    return v;
}
