/* The CPU backend: instruction set chosen once, one thread team, one op table. */
#include <sluice/base/exact.h>
#include <sluice/base/mem.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/cpu.h"
#include "host.h"
#include "num.h"

#define INLINE_ELEMS 16384 /* elementwise work below this is not handed to the team */

bool sl_cpu_has_isa(enum sl_isa isa)
{
    return sl_isa_find(isa) != NULL;
}

#if defined(__x86_64__)
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const struct sl_isa_ops *sl_isa_find(enum sl_isa isa)
{
    if (isa == SL_ISA_SCALAR)
        return &sl_isa_scalar;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (isa == SL_ISA_AVX2 && avx2)
        return &sl_isa_avx2;
    if (isa == SL_ISA_AVX512 && avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return &sl_isa_avx512;
#endif
    return NULL;
}

/* Rows [first, end) of an elementwise op. */
typedef void rows_fn(const void *ctx, uint32_t first, uint32_t end);

struct rows_job {
    rows_fn *fn;
    const void *ctx;
    uint32_t n, step;
};

static void rows_task(void *ctx, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct rows_job *j = ctx;
    j->fn(j->ctx, task * j->step, min_u32((task + 1) * j->step, j->n));
}

static void run_rows(struct cpu_backend *b, uint32_t n, size_t row_elems, rows_fn *fn,
                     const void *ctx)
{
    sl_fp_mode_set();
    b->base.n_op_calls++;
    size_t step = INLINE_ELEMS / (row_elems + 1) + 1;
    struct rows_job job = {fn, ctx, n, (uint32_t)step};
    sl_team_run(b->team, (n + job.step - 1) / job.step, rows_task, &job);
}

static void cpu_close(struct sl_backend *base)
{
    struct cpu_backend *b = cpu_of(base);
    sl_team_close(b->team);
    sl_slab_close(&b->slabs);
    if (b->act.data)
        sl_pages_free(b->act.data, b->act.bytes);
    if (b->attn.data)
        sl_pages_free(b->attn.data, b->attn.bytes);
    free(b);
}

static void *cpu_alloc(struct sl_backend *b, size_t bytes)
{
    (void)b;
    return sl_pages_alloc(bytes);
}

static void cpu_free(struct sl_backend *b, void *p, size_t bytes)
{
    (void)b;
    if (p)
        sl_pages_free(p, bytes);
}

struct embed_args {
    const struct sl_weight_src *table;
    const uint32_t *ids;
    float *out;
};

static void embed_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct embed_args *a = ctx;
    size_t row_bytes = sl_weight_src_row_bytes(a->table);
    for (uint32_t t = first; t < end; t++) {
        sl_assert(a->ids[t] < a->table->n);
        sl_dequantize_row(a->table->dtype, (const uint8_t *)a->table->data + a->ids[t] * row_bytes,
                          a->out + (size_t)t * a->table->k, a->table->k);
    }
}

static void cpu_embed(struct sl_backend *b, const struct sl_weight_src *table, const uint32_t *ids,
                      uint32_t n_tok, float *out)
{
    struct embed_args args = {table, ids, out};
    run_rows(cpu_of(b), n_tok, table->k, embed_rows, &args);
}

struct row_args {
    const struct sl_isa_ops *isa;
    const float *x, *w;
    float eps;
    uint32_t dim;
    float *out;
};

static void norm_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct row_args *a = ctx;
    for (uint32_t t = first; t < end; t++)
        a->isa->rms_norm(a->x + (size_t)t * a->dim, a->w, a->eps, a->dim,
                         a->out + (size_t)t * a->dim);
}

static void cpu_rms_norm(struct sl_backend *b, const float *x, const float *w, float eps,
                         uint32_t n_tok, uint32_t dim, float *out)
{
    struct row_args args = {cpu_of(b)->isa, x, w, eps, dim, out};
    run_rows(cpu_of(b), n_tok, dim, norm_rows, &args);
}

static void silu_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct row_args *a = ctx;
    for (uint32_t t = first; t < end; t++) {
        const float *gate = a->x + (size_t)t * 2 * a->dim;
        a->isa->silu_mul(gate, gate + a->dim, a->dim, a->out + (size_t)t * a->dim);
    }
}

static void cpu_silu_mul(struct sl_backend *b, const float *gu, uint32_t n_tok, uint32_t dim,
                         float *out)
{
    struct row_args args = {.isa = cpu_of(b)->isa, .x = gu, .dim = dim, .out = out};
    run_rows(cpu_of(b), n_tok, (size_t)4 * dim, silu_rows, &args);
}

struct rope_args {
    const struct sl_isa_ops *isa;
    const struct sl_rope *rope;
    float *x;
    uint32_t stride, n_heads, head_dim;
    const uint32_t *pos;
};

static void rope_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct rope_args *a = ctx;
    const struct sl_rope *r = a->rope;
    for (uint32_t t = first; t < end; t++) {
        sl_assert(a->pos[t] < r->n_pos);
        size_t at = (size_t)a->pos[t] * (r->n_rot / 2);
        for (uint32_t h = 0; h < a->n_heads; h++)
            a->isa->rope(r->kind, a->x + (size_t)t * a->stride + (size_t)h * a->head_dim, r->n_rot,
                         r->cos + at, r->sin + at);
    }
}

static void cpu_rope(struct sl_backend *b, const struct sl_rope *rope, float *x, uint32_t stride,
                     uint32_t n_heads, uint32_t head_dim, const uint32_t *pos, uint32_t n_tok)
{
    struct rope_args args = {cpu_of(b)->isa, rope, x, stride, n_heads, head_dim, pos};
    sl_assert(rope->n_rot <= head_dim && rope->n_rot % 2 == 0);
    run_rows(cpu_of(b), n_tok, (size_t)n_heads * head_dim, rope_rows, &args);
}

#define ADD_PIECE 16384 /* floats of one piece */

struct add_args {
    const struct sl_isa_ops *isa;
    float *x;
    const float *y;
    size_t n;
};

static void add_pieces(const void *ctx, uint32_t first, uint32_t end)
{
    const struct add_args *a = ctx;
    size_t i = (size_t)first * ADD_PIECE, stop = (size_t)end * ADD_PIECE;
    stop = stop < a->n ? stop : a->n;
    a->isa->add(a->x + i, a->y + i, stop - i);
}

static void cpu_add(struct sl_backend *b, float *x, const float *y, size_t n)
{
    struct add_args args = {cpu_of(b)->isa, x, y, n};
    run_rows(cpu_of(b), (uint32_t)((n + ADD_PIECE - 1) / ADD_PIECE), ADD_PIECE, add_pieces, &args);
}

struct tree_args {
    const struct sl_isa_ops *isa;
    const struct sl_tree *tree;
    const float *parts, *bias;
    uint32_t n_tok, n;
    bool accumulate;
    float *y;
    uint32_t y_stride;
};

static void tree_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct tree_args *a = ctx;
    for (uint32_t t = first; t < end; t++)
        a->isa->tree_sum(a->tree, a->parts + (size_t)t * a->n, (size_t)a->n_tok * a->n, a->n,
                         a->bias, a->accumulate, a->y + (size_t)t * a->y_stride);
}

static void cpu_tree_sum(struct sl_backend *b, const struct sl_tree *tree, const float *parts,
                         uint32_t n_tok, uint32_t n, const float *bias, bool accumulate, float *y,
                         uint32_t y_stride)
{
    struct tree_args args = {cpu_of(b)->isa, tree, parts, bias, n_tok, n, accumulate, y, y_stride};
    run_rows(cpu_of(b), n_tok, (size_t)n * tree->n_parts, tree_rows, &args);
}

static void cpu_gather_rows(struct sl_backend *b, const float *x, const uint32_t *rows,
                            uint32_t n_rows, uint32_t dim, float *out)
{
    b->n_op_calls++;
    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(out + (size_t)i * dim, x + (size_t)rows[i] * dim, dim * sizeof *out);
}

struct copy_args {
    const float *from;
    float *to;
    size_t from_stride, to_stride, bytes;
};

static void copy_some(const void *ctx, uint32_t first, uint32_t end)
{
    const struct copy_args *a = ctx;
    for (uint32_t i = first; i < end; i++)
        memcpy(a->to + i * a->to_stride, a->from + i * a->from_stride, a->bytes);
}

static void cpu_copy_rows(struct sl_backend *b, const float *from, uint32_t from_stride,
                          uint32_t n_rows, uint32_t n, float *to, uint32_t to_stride)
{
    struct copy_args args = {from, to, from_stride, to_stride, n * sizeof *to};
    run_rows(cpu_of(b), n_rows, n, copy_some, &args);
}

struct stats_args {
    const struct sl_isa_ops *isa;
    const float *logits;
    uint32_t n;
    float *max;
    uint32_t *argmax;
    float *log_sum;
};

static bool has_nan(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (x[i] != x[i])
            return true;
    return false;
}

static void stats_rows(const void *ctx, uint32_t first, uint32_t end)
{
    const struct stats_args *a = ctx;
    for (uint32_t r = first; r < end; r++) {
        const float *x = a->logits + (size_t)r * a->n;
        float max = a->isa->max(x, a->n);
        a->log_sum[r] = sl_log_f32(a->isa->exp_sum(x, a->n, max));
        uint32_t i = 0;
        if (a->log_sum[r] != a->log_sum[r] && has_nan(x, a->n))
            max = NAN;
        else
            while (i + 1 < a->n && x[i] != max)
                i++;
        a->max[r] = max;
        a->argmax[r] = i;
    }
}

static void cpu_logit_stats(struct sl_backend *b, const float *logits, uint32_t n_rows, uint32_t n,
                            float *max, uint32_t *argmax, float *log_sum)
{
    struct stats_args args = {cpu_of(b)->isa, logits, n, max, argmax, log_sum};
    run_rows(cpu_of(b), n_rows, n, stats_rows, &args);
}

static void cpu_parallel(struct sl_backend *b, uint32_t n, void (*fn)(void *ctx, uint32_t i),
                         void *ctx)
{
    b->n_op_calls++;
    sl_team_each(cpu_of(b)->team, n, fn, ctx);
}

static const struct sl_backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    SL_HOST_MEMORY_OPS,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .weight_pack = sl_cpu_weight_pack,
    .weight_bytes = sl_cpu_weight_bytes,
    .weight_free = sl_cpu_weight_free,
    .kv_open = sl_cpu_kv_open,
    .kv_close = sl_cpu_kv_close,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .linear = sl_cpu_linear,
    .linear_partial = sl_cpu_linear_partial,
    .tree_sum = cpu_tree_sum,
    .rope = cpu_rope,
    .kv_write = sl_cpu_kv_write,
    .attention = sl_cpu_attention,
    .silu_mul = cpu_silu_mul,
    .add = cpu_add,
    .gather_rows = cpu_gather_rows,
    .copy_rows = cpu_copy_rows,
    .logit_stats = cpu_logit_stats,
    .parallel = cpu_parallel,
};

/* The named instruction set, or the best that is there and computes scalar's bits. */
static enum sl_status choose_isa(enum sl_isa wanted, struct cpu_backend *b, struct sl_err *err)
{
    if (wanted == SL_ISA_SCALAR || wanted >= SL_N_ISA) {
        b->isa = &sl_isa_scalar;
        return SL_OK;
    }
    bool named = wanted != SL_ISA_AUTO;
    b->isa = sl_isa_find(named ? wanted : SL_ISA_AVX512);
    if (named && !b->isa)
        return sl_fail(err, SL_USAGE, "cpu: this machine has no %s", sl_isa_name(wanted));
    if (!b->isa)
        b->isa = sl_isa_find(SL_ISA_AVX2);
    if (!b->isa)
        b->isa = &sl_isa_scalar;
    while (b->isa->isa != SL_ISA_SCALAR && !sl_isa_agrees(b->isa)) {
        const struct sl_isa_ops *next = NULL;
        if (b->isa->isa == SL_ISA_AVX512)
            next = sl_isa_find(SL_ISA_AVX2);
        b->isa = next ? next : &sl_isa_scalar;
        b->base.isa_fell_back = true;
    }
    return SL_OK;
}

enum sl_status sl_cpu_open(const struct sl_cpu_config *cfg, struct sl_backend **out,
                           struct sl_err *err)
{
    *out = NULL;
    struct cpu_backend *b = calloc(1, sizeof *b);
    if (!b)
        return sl_fail(err, SL_NO_MEMORY, "cpu: out of memory");
    sl_fp_mode_set();
    enum sl_status status = choose_isa(cfg->isa, b, err);
    if (status == SL_OK)
        status = sl_team_open(cfg->n_threads, &b->team, err);
    if (status != SL_OK) {
        free(b);
        return status;
    }
    b->base.ops = &cpu_ops;
    b->base.isa = b->isa->isa;
    snprintf(b->base.arch, sizeof b->base.arch, "%s", sl_isa_name(b->base.isa));
    b->base.n_threads = cfg->n_threads;
    *out = &b->base;
    return SL_OK;
}
