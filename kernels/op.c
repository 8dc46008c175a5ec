/* What all backends share: names, slices, shape checks, KV geometry, rotary tables. */
#include <sluice/kernels/op.h>

#include <sluice/base/exact.h>
#include <sluice/base/mem.h>

#include <string.h>

#include "check.h"
#include "num.h"

static const char *const isa_names[SL_N_ISA] = {"auto", "scalar", "avx2", "avx512"};

const char *sl_isa_name(enum sl_isa isa)
{
    return (unsigned)isa < SL_N_ISA ? isa_names[isa] : "unknown";
}

bool sl_isa_parse(const char *text, enum sl_isa *out)
{
    for (unsigned i = 0; i < SL_N_ISA; i++) {
        if (strcmp(isa_names[i], text) == 0) {
            *out = (enum sl_isa)i;
            return true;
        }
    }
    return false;
}

struct sl_slices sl_slices_one(uint32_t k)
{
    struct sl_slices s = {.n = 1, .total = 1};
    s.border[1] = k;
    return s;
}

struct sl_slices sl_slices_cut(uint32_t k, uint32_t unit)
{
    sl_assert(unit > 0);
    uint32_t n_units = k / unit;
    if (n_units < 2)
        return sl_slices_one(k);
    struct sl_slices s = {.n = min_u32(n_units, 16)};
    s.total = s.n;
    for (uint32_t i = 0; i < s.n; i++)
        s.border[i] = (uint32_t)((uint64_t)i * n_units / s.n) * unit;
    s.border[s.n] = k;
    return s;
}

struct sl_slices sl_slices_part(const struct sl_slices *whole, uint32_t first, uint32_t n)
{
    sl_assert(first <= whole->n && n <= whole->n - first);
    struct sl_slices s = {.n = n, .first = whole->first + first, .total = whole->total};
    for (uint32_t i = 0; i <= n; i++)
        s.border[i] = whole->border[first + i] - whole->border[first];
    return s;
}

static enum sl_status check_slices(const struct sl_slices *s, uint32_t k, uint32_t block,
                                   struct sl_err *err)
{
    if (s->n < 1 || s->n > SL_SLICES_MAX)
        return sl_fail(err, SL_INVALID, "weight: %u slices, from 1 to %d are possible", s->n,
                       SL_SLICES_MAX);
    if (s->total != 0 &&
        (s->total > SL_SLICES_MAX || s->n > s->total || s->first > s->total - s->n))
        return sl_fail(err, SL_INVALID, "weight: slices from %u to %u of %u", s->first,
                       s->first + s->n, s->total);
    if (s->border[0] != 0 || s->border[s->n] != k)
        return sl_fail(err, SL_INVALID, "weight: slices cover [%u, %u) of %u inputs", s->border[0],
                       s->border[s->n], k);
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->border[i] >= s->border[i + 1] || s->border[i] % block != 0)
            return sl_fail(err, SL_INVALID,
                           "weight: slice %u begins at %u and ends at %u, blocks "
                           "have %u",
                           i, s->border[i], s->border[i + 1], block);
    }
    return SL_OK;
}

enum sl_status sl_weight_check(const struct sl_weight_src *src, uint32_t n_src,
                               const struct sl_slices *slices, struct sl_weight *out,
                               struct sl_err *err)
{
    uint32_t n = 0;
    if (n_src == 0)
        return sl_fail(err, SL_INVALID, "weight: no sources");
    if ((unsigned)src->dtype >= SL_N_DTYPE || src->dtype == SL_I8)
        return sl_fail(err, SL_UNSUPPORTED, "weight: format %u cannot be multiplied",
                       (unsigned)src->dtype);
    uint32_t block = sl_dtype_row(src->dtype)->block_elems;
    if (src->k == 0 || src->k % block != 0)
        return sl_fail(err, SL_INVALID, "weight: %u inputs are no whole blocks of %u", src->k,
                       block);
    for (uint32_t i = 0; i < n_src; i++) {
        if (src[i].dtype != src->dtype || src[i].k != src->k)
            return sl_fail(err, SL_INVALID,
                           "weight: source %u is %s with %u inputs, source 0 %s "
                           "with %u",
                           i, sl_dtype_row(src[i].dtype)->text, src[i].k,
                           sl_dtype_row(src->dtype)->text, src->k);
        if (src[i].n == 0 || __builtin_add_overflow(n, src[i].n, &n) || n > 1u << 30)
            return sl_fail(err, SL_INVALID, "weight: source %u has %u rows", i, src[i].n);
    }
    enum sl_status status = check_slices(slices, src->k, block, err);
    if (status != SL_OK)
        return status;
    *out = (struct sl_weight){.dtype = src->dtype, .n = n, .k = src->k, .slices = *slices};
    if (out->slices.total == 0) {
        out->slices.first = 0;
        out->slices.total = slices->n;
    }
    return SL_OK;
}

static size_t kv_half_bytes(const struct sl_kv_config *c)
{
    size_t rows = (size_t)c->n_kv_heads * c->page_size;
    return rows * (sl_dtype_bytes(c->dtype, c->head_dim) + (c->dtype == SL_I8 ? sizeof(float) : 0));
}

enum sl_status sl_kv_plan(const struct sl_kv_config *cfg, uint32_t n_extra, struct sl_kv *out,
                          struct sl_err *err)
{
    bool type_ok = cfg->dtype == SL_F16 || cfg->dtype == SL_F32 || cfg->dtype == SL_BF16 ||
                   cfg->dtype == SL_I8;
    if (!type_ok)
        return sl_fail(err, SL_UNSUPPORTED, "kv: format %u, wanted f16, f32, bf16 or int8",
                       (unsigned)cfg->dtype);
    if (cfg->page_size == 0 || SL_ATTN_SEGMENT % cfg->page_size != 0)
        return sl_fail(err, SL_INVALID, "kv: page size %u does not divide %d", cfg->page_size,
                       SL_ATTN_SEGMENT);
    if (cfg->n_layers - 1 > 4095 || cfg->n_kv_heads - 1 > 4095 || cfg->head_dim - 1 > 1023 ||
        cfg->n_pages == 0)
        return sl_fail(err, SL_INVALID, "kv: %u layers, %u heads of %u, %u pages", cfg->n_layers,
                       cfg->n_kv_heads, cfg->head_dim, cfg->n_pages);
    struct sl_kv kv = {.cfg = *cfg};
    kv.page_bytes = (2 * kv_half_bytes(cfg) + 63) / 64 * 64;
    if (!sl_size_mul(kv.page_bytes, (size_t)cfg->n_pages + n_extra, &kv.layer_bytes) ||
        !sl_size_mul(kv.layer_bytes, cfg->n_layers, &kv.bytes))
        return sl_fail(err, SL_NO_MEMORY, "kv: %u pages of %u layers overflow", cfg->n_pages,
                       cfg->n_layers);
    *out = kv;
    return SL_OK;
}

uint8_t *sl_kv_page(const struct sl_kv *kv, uint32_t layer, uint32_t page)
{
    sl_assert(layer < kv->cfg.n_layers && page < kv->cfg.n_pages);
    return sl_kv_page_at(kv, layer, page);
}

size_t sl_kv_row_at(const struct sl_kv_config *c, uint32_t half, uint32_t head, uint32_t slot)
{
    size_t row = (size_t)head * c->page_size + slot;
    return half * kv_half_bytes(c) + row * sl_dtype_bytes(c->dtype, c->head_dim);
}

size_t sl_kv_scale_at(const struct sl_kv_config *c, uint32_t half, uint32_t head, uint32_t slot)
{
    size_t rows = (size_t)c->n_kv_heads * c->page_size;
    size_t row = (size_t)head * c->page_size + slot;
    return half * kv_half_bytes(c) + rows * c->head_dim + row * sizeof(float);
}

uint32_t sl_batch_page(const struct sl_batch *b, uint32_t seq, uint32_t pos, uint32_t page_size)
{
    uint32_t i = b->page_start[seq] + pos / page_size;
    sl_assert(i < b->page_start[seq + 1]);
    return b->pages[i];
}

void sl_rope_table(uint32_t n_rot, uint32_t first_pos, uint32_t n_pos, double base, double scale,
                   const float *factors, float *cos_out, float *sin_out)
{
    uint32_t half = n_rot / 2;
    double log_base = sl_log_f64(base);
    for (uint32_t i = 0; i < half; i++) {
        double freq = sl_exp_f64(-2.0 * (double)i / (double)n_rot * log_base);
        if (factors)
            freq /= (double)factors[i];
        for (uint32_t t = 0; t < n_pos; t++) {
            double angle = (double)(first_pos + t) * scale * freq;
            cos_out[(size_t)t * half + i] = (float)sl_cos_f64(angle);
            sin_out[(size_t)t * half + i] = (float)sl_sin_f64(angle);
        }
    }
}
