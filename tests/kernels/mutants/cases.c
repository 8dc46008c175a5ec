/* Shapes are the smallest that reach every line of a kernel that has a mutant: several tiles, a
 * last one that is not whole, several slices and segments. Memory ends where nothing may be
 * touched. */
#include "mutants.h"

#include <sluice/kernels/op.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emu/emu.h"

enum { PAGE = 4096, MOST_BUFFERS = 16 };

/* ---- memory ---- */

static struct {
    void *map, *base;
    size_t bytes;
} buffers[MOST_BUFFERS];
static size_t n_buffers;

/* n bytes that end at a page without access, but for what alignment to 16 takes; a copy of `from`
 * or 0xff. */
static void *device_bytes(const char *name, size_t n, const void *from)
{
    size_t used = (n + 15) / 16 * 16, pages = (used + PAGE - 1) / PAGE * PAGE;
    uint8_t *map =
        mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || n_buffers == MOST_BUFFERS)
        abort();
    mprotect(map + pages, PAGE, PROT_NONE);
    uint8_t *base = map + pages - used;
    memset(map, 0xff, pages);
    if (from)
        memcpy(base, from, n);
    emu_memory_add(base, n, name);
    buffers[n_buffers].map = map;
    buffers[n_buffers].bytes = pages + PAGE;
    buffers[n_buffers++].base = base;
    return base;
}

static void free_buffers(void)
{
    while (n_buffers > 0) {
        n_buffers--;
        emu_memory_remove(buffers[n_buffers].base);
        munmap(buffers[n_buffers].map, buffers[n_buffers].bytes);
    }
}

static void fill_random(float *x, size_t n, float scale, uint32_t seed)
{
    uint32_t s = seed * 2654435769u + 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = ((float)(s >> 8) * 0x1p-24f - 0.5f) * scale;
    }
}

static float *device_floats(const char *name, size_t n, float scale, uint32_t seed)
{
    float *x = device_bytes(name, n * sizeof *x, NULL);
    fill_random(x, n, scale, seed);
    return x;
}

static void *device_quants(const char *name, enum sl_dtype type, size_t n, uint32_t seed)
{
    float *x = malloc(n * sizeof *x);
    if (!x)
        abort();
    fill_random(x, n, 2.0f, seed);
    void *to = device_bytes(name, sl_dtype_bytes(type, n), NULL);
    sl_quantize_row(type, x, to, n);
    free(x);
    return to;
}

static void keep(struct output *out, const void *p, size_t n)
{
    out->bytes = realloc(out->bytes, out->n + n);
    if (!out->bytes)
        abort();
    memcpy(out->bytes + out->n, p, n);
    out->n += n;
}

/* ---- rows ---- */

static void run_embed(struct output *out)
{
    enum { ROWS = 16, K = 96, TOK = 4 };
    static const uint32_t ids[TOK] = {7, 0, 3, 7};
    void *table = device_quants("table", SL_Q8_0, ROWS * K, 1);
    uint32_t *at = device_bytes("ids", sizeof ids, ids);
    float *y = device_bytes("out", TOK * K * sizeof *y, NULL);
    cuda_embed(NULL, SL_Q8_0, table, K, at, TOK, y);
    keep(out, y, TOK * K * sizeof *y);
}

static void run_rms_norm(struct output *out)
{
    enum { TOK = 2, DIM = 5003 };
    float *x = device_floats("x", TOK * DIM, 4.0f, 1), *w = device_floats("w", DIM, 1.0f, 2);
    float *y = device_bytes("out", TOK * DIM * sizeof *y, NULL);
    cuda_rms_norm(NULL, x, w, 1e-5f, TOK, DIM, y);
    keep(out, y, TOK * DIM * sizeof *y);
}

static void run_rope(struct output *out)
{
    enum { TOK = 5, HEADS = 2, DIM = 32, N_POS = 64 };
    static const uint32_t pos[TOK] = {1, 6, 11, 16, 21};
    float *x = device_floats("x", TOK * HEADS * DIM, 1.0f, 1);
    float *c = device_floats("cos", N_POS * DIM / 2, 2.0f, 2);
    float *s = device_floats("sin", N_POS * DIM / 2, 2.0f, 3);
    uint32_t *at = device_bytes("pos", sizeof pos, pos);
    cuda_rope(NULL, true, DIM, c, s, x, HEADS * DIM, HEADS, DIM, at, TOK);
    keep(out, x, TOK * HEADS * DIM * sizeof *x);
}

static void run_silu_mul(struct output *out)
{
    enum { TOK = 3, DIM = 50 };
    float *x = device_floats("gate, up", TOK * 2 * DIM, 4.0f, 1);
    float *y = device_bytes("out", TOK * DIM * sizeof *y, NULL);
    cuda_silu_mul(NULL, x, TOK, DIM, y);
    keep(out, y, TOK * DIM * sizeof *y);
}

static void run_add(struct output *out)
{
    enum { N = 1001 };
    float *x = device_floats("x", N, 4.0f, 1), *y = device_floats("y", N, 4.0f, 2);
    cuda_add(NULL, x, y, N);
    keep(out, x, N * sizeof *x);
}

static void run_gather_rows(struct output *out)
{
    enum { ROWS = 8, DIM = 33, TOK = 5 };
    static const uint32_t rows[TOK] = {3, 0, 4, 4, 1};
    float *x = device_floats("x", ROWS * DIM, 4.0f, 1);
    uint32_t *at = device_bytes("rows", sizeof rows, rows);
    float *y = device_bytes("out", TOK * DIM * sizeof *y, NULL);
    cuda_gather_rows(NULL, x, at, TOK, DIM, y);
    keep(out, y, TOK * DIM * sizeof *y);
}

static void run_logit_stats(struct output *out)
{
    enum { TOK = 2, N = 5003 };
    float *x = device_floats("logits", TOK * N, 4.0f, 1);
    float *max = device_bytes("max", TOK * sizeof *max, NULL);
    float *sum = device_bytes("log_sum", TOK * sizeof *sum, NULL);
    uint32_t *arg = device_bytes("argmax", TOK * sizeof *arg, NULL);
    x[N - 1] = 8.0f; /* in the last group, which is not whole */
    cuda_logit_stats(NULL, x, TOK, N, max, arg, sum);
    keep(out, max, TOK * sizeof *max);
    keep(out, arg, TOK * sizeof *arg);
    keep(out, sum, TOK * sizeof *sum);
}

/* ---- attention ---- */

enum { HEADS = 4, KV_HEADS = 2, PAGE_SIZE = 16, N_PAGES = 48, N_POS = 320 };

struct sequence {
    uint32_t first, n; /* positions */
};

/* Sequences side by side, whose pages lie backwards; n_pages of them. */
static struct cuda_batch make_batch(const struct sequence *s, uint32_t n)
{
    uint32_t q_start[5] = {0}, page_start[5] = {0}, pos[64], seq_of[64], pages[N_PAGES];
    uint32_t n_tok = 0, n_pages = 0;
    struct cuda_batch b = {.n_seq = n};
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < s[i].n; j++, n_tok++) {
            pos[n_tok] = s[i].first + j;
            seq_of[n_tok] = i;
            b.max_pos = pos[n_tok] > b.max_pos ? pos[n_tok] : b.max_pos;
        }
        for (uint32_t p = 0; p <= (s[i].first + s[i].n) / PAGE_SIZE; p++, n_pages++)
            pages[n_pages] = N_PAGES - 1 - n_pages;
        b.max_rows = s[i].n > b.max_rows ? s[i].n : b.max_rows;
        q_start[i + 1] = n_tok;
        page_start[i + 1] = n_pages;
    }
    b.n_tok = n_tok;
    b.q_start = device_bytes("q_start", (n + 1) * sizeof *q_start, q_start);
    b.pos = device_bytes("pos", n_tok * sizeof *pos, pos);
    b.seq_of = device_bytes("seq_of", n_tok * sizeof *seq_of, seq_of);
    b.page_start = device_bytes("page_start", (n + 1) * sizeof *page_start, page_start);
    b.pages = device_bytes("pages", n_pages * sizeof *pages, pages);
    return b;
}

/* Pages of random numbers, which only f16 has none but good ones of. */
static struct cuda_kv make_pages(enum sl_dtype type, uint32_t dim)
{
    size_t rows = (size_t)2 * KV_HEADS * PAGE_SIZE;
    size_t page = type == SL_I8 ? rows * (dim + sizeof(float)) : rows * dim * 2;
    struct cuda_kv kv = {.page_bytes = page, .n_kv_heads = KV_HEADS, .head_dim = dim};
    kv.page_size = PAGE_SIZE;
    kv.dtype = type;
    if (type == SL_F16)
        kv.layer = device_quants("pages' data", SL_F16, N_PAGES * page / 2, 7);
    else
        kv.layer = device_bytes("pages' data", N_PAGES * page, NULL);
    return kv;
}

static void write_pages(struct output *out, enum sl_dtype type)
{
    static const struct sequence s[] = {{14, 3}, {30, 2}};
    enum { DIM = 40, STRIDE = KV_HEADS * DIM };
    struct cuda_batch b = make_batch(s, 2);
    struct cuda_kv kv = make_pages(type, DIM);
    memset(kv.layer, 0xff, N_PAGES * kv.page_bytes);
    float *k = device_floats("k", b.n_tok * STRIDE, 2.0f, 1);
    float *v = device_floats("v", b.n_tok * STRIDE, 2.0f, 2);
    cuda_kv_write(NULL, &kv, &b, k, v, STRIDE);
    keep(out, kv.layer, N_PAGES * kv.page_bytes);
}

static void run_kv_write(struct output *out)
{
    write_pages(out, SL_F16);
}

static void run_kv_write_int8(struct output *out)
{
    write_pages(out, SL_I8);
}

static void run_rope_kv_write(struct output *out)
{
    static const struct sequence s[] = {{14, 3}, {30, 2}};
    enum { DIM = 40, STRIDE = (HEADS + 2 * KV_HEADS) * DIM };
    struct cuda_batch b = make_batch(s, 2);
    struct cuda_kv kv = make_pages(SL_F16, DIM);
    memset(kv.layer, 0xff, N_PAGES * kv.page_bytes);
    struct cuda_rotary r = {.neox = true, .n_rot = DIM};
    r.cos = device_floats("cos", 64 * DIM / 2, 2.0f, 2);
    r.sin = device_floats("sin", 64 * DIM / 2, 2.0f, 3);
    float *x = device_floats("q, k, v", b.n_tok * STRIDE, 2.0f, 1);
    /* Rows of all tokens are no whole blocks. */
    cuda_rope_kv_write(NULL, &r, &kv, &b, x, HEADS - 1, x + HEADS * DIM,
                       x + (HEADS + KV_HEADS) * DIM, STRIDE);
    keep(out, x, b.n_tok * STRIDE * sizeof *x);
    keep(out, kv.layer, N_PAGES * kv.page_bytes);
}

static void attend(struct output *out, const struct sequence *s, uint32_t n)
{
    enum { DIM = 64, WIDTH = HEADS * DIM };
    struct cuda_batch b = make_batch(s, n);
    struct cuda_kv kv = make_pages(SL_F16, DIM);
    const struct cuda_attn how = {HEADS, 0, KV_HEADS, WIDTH, WIDTH, 0.125f};
    float *q = device_floats("q", b.n_tok * WIDTH, 3.0f, 3);
    float *y = device_bytes("out", b.n_tok * WIDTH * sizeof *y, NULL);
    size_t scratch = cuda_attention_scratch(b.n_seq, b.n_tok, HEADS, DIM, b.max_pos);
    cuda_attention(NULL, &kv, &b, &how, q, y, device_bytes("scratch", scratch, NULL));
    keep(out, y, b.n_tok * WIDTH * sizeof *y);
}

/* Two segments and one. */
static void run_attention_short(struct output *out)
{
    static const struct sequence s[] = {{299, 1}, {20, 2}};
    attend(out, s, 2);
}

static void run_attention_long(struct output *out)
{
    static const struct sequence s[] = {{260, 37}};
    attend(out, s, 1);
}

/* ---- choices ---- */

/* Two walks to the right bin: many values share their first digits. */
static void run_top_k(struct output *out)
{
    enum { N = 3000, K = 50 };
    float *x = device_floats("logits", N, 0.25f, 1);
    float *values = device_bytes("values", K * sizeof *values, NULL);
    uint32_t *ids = device_bytes("ids", K * sizeof *ids, NULL);
    for (uint32_t i = 0; i < N; i++)
        x[i] += 9.0f;
    cuda_top_k(NULL, x, 1, N, K, values, ids);
    keep(out, values, K * sizeof *values);
    keep(out, ids, K * sizeof *ids);
}

static const struct cuda_moe moe = {.n_experts = 40, .n_used = 3};

static void run_moe_route(struct output *out)
{
    enum { TOK = 9 };
    float *x = device_floats("logits", TOK * moe.n_experts, 4.0f, 1);
    float *gates = device_bytes("gates", TOK * moe.n_used * sizeof *gates, NULL);
    uint32_t *experts = device_bytes("experts", TOK * moe.n_used * sizeof *experts, NULL);
    x[moe.n_experts - 1] = 3.0f;
    cuda_moe_route(NULL, &moe, x, TOK, experts, gates);
    keep(out, gates, TOK * moe.n_used * sizeof *gates);
    keep(out, experts, TOK * moe.n_used * sizeof *experts);
}

static void run_moe_group(struct output *out)
{
    enum { TOK = 200, N = 3 * TOK };
    uint32_t chosen[N];
    for (uint32_t i = 0; i < N; i++)
        chosen[i] = i * 7 % 5;
    uint32_t *experts = device_bytes("experts", sizeof chosen, chosen);
    uint32_t *start = device_bytes("start", (moe.n_experts + 1) * sizeof *start, NULL);
    uint32_t *entry = device_bytes("entry", sizeof chosen, NULL);
    uint32_t *row = device_bytes("row", sizeof chosen, NULL);
    cuda_moe_group(NULL, &moe, experts, TOK, start, entry, row);
    keep(out, start, (moe.n_experts + 1) * sizeof *start);
    keep(out, entry, sizeof chosen);
    keep(out, row, sizeof chosen);
}

static void run_moe_combine(struct output *out)
{
    enum { TOK = 2, DIM = 300, N = 3 * TOK };
    static const uint32_t rows[N] = {5, 1, 3, 0, 2, 4};
    float *y = device_floats("y", N * DIM, 2.0f, 1), *gates = device_floats("gates", N, 1.0f, 2);
    uint32_t *row = device_bytes("row", sizeof rows, rows);
    float *x = device_bytes("out", TOK * DIM * sizeof *x, NULL);
    cuda_moe_combine(NULL, &moe, y, gates, row, TOK, DIM, x);
    keep(out, x, TOK * DIM * sizeof *x);
}

/* ---- linear ---- */

static void *packed(enum sl_dtype type, uint32_t n, uint32_t k, uint32_t seed)
{
    void *src = device_quants("weight", type, (size_t)n * k, seed);
    void *to = device_bytes("packed", cuda_pack_bytes(type, n, k), NULL);
    cuda_pack(NULL, type, n, k, 0, n, src, sl_dtype_bytes(type, k), to);
    return to;
}

static void multiply(struct output *out, enum sl_dtype type, uint32_t n, uint32_t k, uint32_t unit,
                     uint32_t n_tok)
{
    struct sl_slices slices = sl_slices_cut(k, unit);
    struct sl_tree_node all = {0, slices.n};
    struct cuda_parts parts = {device_bytes("parts", sizeof all, &all), 1};
    struct cuda_weight w = {.dtype = type, .n = n, .k = k, .n_slices = slices.n};
    w.data = packed(type, n, k, 5);
    w.border = device_bytes("border", (slices.n + 1) * sizeof *slices.border, slices.border);
    float *x = device_floats("x", (size_t)n_tok * k, 2.0f, 6);
    float *y = device_bytes("out", (size_t)n_tok * n * sizeof *y, NULL);
    void *act = NULL;
    if (type != SL_F32) {
        act = device_bytes("act", cuda_act_bytes(type, n_tok, k), NULL);
        cuda_quantize(NULL, type, x, k, n_tok, k, act);
    }
    cuda_linear(NULL, &w, x, k, act, n_tok, &parts, NULL, false, y, n, 0);
    keep(out, y, (size_t)n_tok * n * sizeof *y);
}

/* Few rows, by groups over slices, and many, by warps side by side. */
static void run_linear_q8_0(struct output *out)
{
    multiply(out, SL_Q8_0, 40, 1024, 128, 3);
    free_buffers();
    multiply(out, SL_Q8_0, 100, 640, 160, 20);
}

static void run_linear_f32(struct output *out)
{
    multiply(out, SL_F32, 40, 300, 64, 3);
}

static void run_tree_sum(struct output *out)
{
    enum { N = 50, TOK = 3, PARTS = 5 };
    static const uint32_t first[PARTS + 1] = {0, 1, 2, 3, 4, 5};
    struct sl_tree tree;
    sl_tree_plan(first, PARTS, &tree);
    float *parts = device_floats("parts", (size_t)tree.n_parts * TOK * N, 2.0f, 1);
    float *y = device_bytes("out", TOK * N * sizeof *y, NULL);
    cuda_tree_sum(NULL, &tree, parts, TOK, N, NULL, false, y, N);
    keep(out, y, TOK * N * sizeof *y);
}

static void run_pack_tiles(struct output *out)
{
    keep(out, packed(SL_Q8_0, 40, 64, 1), cuda_pack_bytes(SL_Q8_0, 40, 64));
}

static void run_pack_f32(struct output *out)
{
    keep(out, packed(SL_F32, 5, 7, 1), cuda_pack_bytes(SL_F32, 5, 7));
}

static void quantize(struct output *out, enum sl_dtype type, uint32_t k)
{
    enum { TOK = 3 };
    float *x = device_floats("x", TOK * k, 2.0f, 1);
    size_t bytes = cuda_act_bytes(type, TOK, k);
    void *act = device_bytes("act", bytes, NULL);
    cuda_quantize(NULL, type, x, k, TOK, k, act);
    keep(out, act, bytes);
}

static void run_quantize_int8(struct output *out)
{
    quantize(out, SL_Q8_0, 96);
}

static void run_round_16(struct output *out)
{
    quantize(out, SL_F16, 35);
}

/* A norm or a silu, and the activations on its way out. */
static void fuse(struct output *out, bool norm)
{
    enum { TOK = 3, K = 96 };
    float *x = device_floats("x", (size_t)TOK * K * 2, 2.0f, 1);
    float *y = device_bytes("out", TOK * K * sizeof *y, NULL);
    size_t bytes = cuda_act_bytes(SL_Q8_0, TOK, K);
    void *act = device_bytes("act", bytes, NULL);
    if (norm)
        cuda_norm_quantize(NULL, SL_Q8_0, x, device_floats("w", K, 1.0f, 2), 1e-5f, TOK, K, y, act);
    else
        cuda_silu_quantize(NULL, SL_Q8_0, x, TOK, K, y, act);
    keep(out, y, TOK * K * sizeof *y);
    keep(out, act, bytes);
}

static void run_norm_quantize(struct output *out)
{
    fuse(out, true);
}

static void run_silu_quantize(struct output *out)
{
    fuse(out, false);
}

const struct mutant_case mutant_cases[] = {
    {"embed", run_embed},
    {"rms_norm", run_rms_norm},
    {"rope", run_rope},
    {"silu_mul", run_silu_mul},
    {"add", run_add},
    {"gather_rows", run_gather_rows},
    {"logit_stats", run_logit_stats},
    {"kv_write", run_kv_write},
    {"kv_write_int8", run_kv_write_int8},
    {"rope_kv_write", run_rope_kv_write},
    {"top_k", run_top_k},
    {"moe_route", run_moe_route},
    {"moe_group", run_moe_group},
    {"moe_combine", run_moe_combine},
    {"attention_short", run_attention_short},
    {"attention_fold", run_attention_short},
    {"attention_long", run_attention_long},
    {"linear_q8_0", run_linear_q8_0},
    {"linear_f32", run_linear_f32},
    {"tree_sum", run_tree_sum},
    {"pack_tiles", run_pack_tiles},
    {"pack_f32", run_pack_f32},
    {"quantize_int8", run_quantize_int8},
    {"round_16", run_round_16},
    {"norm_quantize", run_norm_quantize},
    {"silu_quantize", run_silu_quantize},
};
const size_t n_mutant_cases = sizeof mutant_cases / sizeof *mutant_cases;

void mutant_case_run(const struct mutant_case *c, struct output *out)
{
    out->n = 0;
    c->run(out);
    free_buffers();
}
