/* What the backend's calls launch, without running it: shapes SHARED_MAX prints, for a device whose
 * blocks may have that many bytes of shared memory, one line per kernel, block and shared memory:
 * kernel's place relative to main (hex), threads, bytes of dynamic shared memory, blocks, launch
 * name, call. The kernels are those of the emulated plug-in; gates.py looks the places up. */
#include "cuda/launch.h"

#include <sluice/kernels/op.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAUNCHES_MAX = 512 };

static struct launch {
    uintptr_t kernel;
    unsigned threads;
    size_t smem;
} seen[LAUNCHES_MAX];
static size_t n_seen;
static int shared_max;
static char call[128];

int main(int argc, char **argv);

/* ---- the runtime's calls that launching needs; parentheses keep emu_sites.h out ---- */

void dev_count_launch(const char *name);
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem);
void emu_at(const char *file, int line);

void dev_count_launch(const char *name)
{
    (void)name;
}

void emu_at(const char *file, int line)
{
    (void)file;
    (void)line;
}

/* args begins with the kernel (emu/warp_ops.h). */
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                        const void *args, size_t bytes, dim3 grid, dim3 block, size_t smem)
{
    struct launch l = {0, block.x * block.y * block.z, smem};
    (void)stream;
    (void)run;
    (void)bytes;
    memcpy(&l.kernel, args, sizeof l.kernel);
    for (size_t i = 0; i < n_seen; i++)
        if (seen[i].kernel == l.kernel && seen[i].threads == l.threads && seen[i].smem == l.smem)
            return cudaSuccess;
    if (n_seen == LAUNCHES_MAX)
        return cudaErrorInvalidValue;
    seen[n_seen++] = l;
    printf("%" PRIxPTR "\t%u\t%zu\t%" PRIu64 "\t%s\t%s\n", l.kernel - (uintptr_t)&main, l.threads,
           smem, (uint64_t)grid.x * grid.y * grid.z, name, call);
    return cudaSuccess;
}

cudaError_t(cudaGetDevice)(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t(cudaDeviceGetAttribute)(int *value, enum cudaDeviceAttr attr, int device)
{
    *value = attr == cudaDevAttrMaxSharedMemoryPerBlockOptin ? shared_max : 1;
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t(cudaFuncSetAttribute)(const void *func, enum cudaFuncAttribute attr, int value)
{
    bool fits = func && attr == cudaFuncAttributeMaxDynamicSharedMemorySize && value <= shared_max;
    return fits ? cudaSuccess : cudaErrorInvalidValue;
}

/* ---- the calls ---- */

static const enum sl_dtype weights[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};
static const enum sl_dtype caches[] = {SL_F32, SL_F16, SL_BF16, SL_I8};
static const uint32_t rows[] = {1, 8, 16, 32, 128, 512};
/* Of a model with 135 million weights and of one with 8 billion: QKV, gate and up, down. */
static const struct {
    uint32_t n, k, unit;
} linears[] = {
    {960, 576, 0}, {576, 1536, 32}, {6144, 4096, 0}, {28672, 4096, 0}, {4096, 14336, 32}};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static void must(cudaError_t e)
{
    if (e == cudaSuccess)
        return;
    fprintf(stderr, "shapes: %s: error %d\n", call, (int)e);
    exit(1);
}

/* Device memory that nothing here reads. */
static void *dev(void)
{
    return (void *)(uintptr_t)0x1000;
}

static void linear_calls(enum sl_dtype type)
{
    for (size_t i = 0; i < COUNT(linears); i++)
        for (size_t r = 0; r < COUNT(rows); r++) {
            uint32_t n = linears[i].n, k = linears[i].k, unit = linears[i].unit;
            struct sl_slices s = unit ? sl_slices_cut(k, unit) : sl_slices_one(k);
            struct cuda_weight w = {type, n, k, dev(), dev(), s.n};
            struct cuda_parts parts = {dev(), 1};
            snprintf(call, sizeof call, "linear %s %ux%u, %u slices, %u rows",
                     sl_dtype_row(type)->text, n, k, s.n, rows[r]);
            must(cuda_pack(NULL, type, n, k, 0, n, dev(), sl_dtype_bytes(type, k), dev()));
            if (type != SL_F32)
                must(cuda_quantize(NULL, type, dev(), k, rows[r], k, dev()));
            must(cuda_linear(NULL, &w, dev(), k, dev(), rows[r], &parts, NULL, false, dev(), n, 0));
        }
}

static void attention_calls(enum sl_dtype type, uint32_t head_dim, uint32_t n_seq, uint32_t n_rows,
                            uint32_t depth)
{
    const uint32_t n_heads = 32, n_kv = 8, page = 32;
    size_t elem = type == SL_F32 ? 4 : type == SL_I8 ? 1 : 2;
    struct cuda_kv kv = {dev(), 2 * n_kv * page * (head_dim * elem + 4), n_kv, head_dim, page,
                         type};
    struct cuda_batch b = {n_seq, n_seq * n_rows, dev(), dev(), dev(), dev(), dev(), depth, n_rows};
    struct cuda_rotary rope = {true, head_dim, dev(), dev()};
    struct cuda_attn a = {n_heads, 0, n_kv, n_heads * head_dim, n_heads * head_dim, 0.125f};
    snprintf(call, sizeof call, "attention %s, head %u, %u x %u rows, depth %u",
             sl_dtype_row(type)->text, head_dim, n_seq, n_rows, depth);
    must(cuda_kv_write(NULL, &kv, &b, dev(), dev(), n_kv * head_dim));
    must(cuda_rope_kv_write(NULL, &rope, &kv, &b, dev(), n_heads, dev(), dev(),
                            (n_heads + 2 * n_kv) * head_dim));
    must(cuda_attention(NULL, &kv, &b, &a, dev(), dev(), dev()));
}

static void row_calls(uint32_t n_tok, uint32_t dim)
{
    const uint32_t vocab = 49152;
    const uint32_t first[] = {0, 4, 8};
    struct sl_tree tree;
    struct cuda_moe moe = {64, 8, true};
    sl_tree_plan(first, 2, &tree);
    snprintf(call, sizeof call, "rows %u x %u", n_tok, dim);
    for (size_t i = 0; i < COUNT(weights); i++)
        must(cuda_embed(NULL, weights[i], dev(), dim, dev(), n_tok, dev()));
    for (size_t i = 1; i < COUNT(weights); i++) {
        must(cuda_norm_quantize(NULL, weights[i], dev(), dev(), 1e-5f, n_tok, dim, dev(), dev()));
        must(cuda_silu_quantize(NULL, weights[i], dev(), n_tok, dim, dev(), dev()));
    }
    must(cuda_tree_sum(NULL, &tree, dev(), n_tok, dim, NULL, false, dev(), dim));
    must(cuda_rms_norm(NULL, dev(), dev(), 1e-5f, n_tok, dim, dev()));
    must(cuda_rope(NULL, true, 64, dev(), dev(), dev(), dim, dim / 64, 64, dev(), n_tok));
    must(cuda_silu_mul(NULL, dev(), n_tok, dim, dev()));
    must(cuda_add(NULL, dev(), dev(), (size_t)n_tok * dim));
    must(cuda_gather_rows(NULL, dev(), dev(), n_tok, dim, dev()));
    must(cuda_logit_stats(NULL, dev(), n_tok, vocab, dev(), dev(), dev()));
    must(cuda_top_k(NULL, dev(), n_tok, vocab, 64, dev(), dev()));
    must(cuda_moe_route(NULL, &moe, dev(), n_tok, dev(), dev()));
    must(cuda_moe_group(NULL, &moe, dev(), n_tok, dev(), dev(), dev()));
    must(cuda_moe_combine(NULL, &moe, dev(), dev(), dev(), n_tok, dim, dev()));
}

int main(int argc, char **argv)
{
    shared_max = argc == 2 ? atoi(argv[1]) : 0;
    if (shared_max < 48 << 10) {
        fprintf(stderr, "usage: shapes SHARED_MAX\n");
        return 2;
    }
    for (size_t i = 0; i < COUNT(weights); i++)
        linear_calls(weights[i]);
    for (size_t i = 0; i < COUNT(caches); i++)
        for (uint32_t head_dim = 64; head_dim <= 256; head_dim *= 2) {
            attention_calls(caches[i], head_dim, 8, 1, 255);
            attention_calls(caches[i], head_dim, 8, 1, 8191);
            attention_calls(caches[i], head_dim, 1, 512, 4095);
        }
    row_calls(1, 576);
    row_calls(512, 4096);
    return 0;
}
