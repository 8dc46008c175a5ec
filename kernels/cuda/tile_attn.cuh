/* Geometry of paged attention: where KV rows, tiles and partial results lie, and what a block
 * takes. For host and device, so that tests can count bank conflicts and check that tiles cover the
 * work once. Nothing here reads memory. */
#ifndef SLUICE_KERNELS_CUDA_TILE_ATTN_CUH
#define SLUICE_KERNELS_CUDA_TILE_ATTN_CUH

#include "cuda/dev.cuh"
#include "cuda/launch.h"

#define ATTN_FN __host__ __device__ static inline

enum {
    ATTN_BLOCK = 128,     /* threads */
    ATTN_SHORT = 8,       /* query tokens of a sequence that is cut by segments */
    ATTN_LONG_DIM = 512,  /* widest heads of the other form */
    ATTN_SMEM = 48 << 10, /* what every device gives without being asked */
    /* Floats between the scores of two rows: 8 banks on. */
    ATTN_P_STRIDE = CUDA_ATTN_SEGMENT + 8,
};

ATTN_FN uint32_t attn_elem_bytes(enum sl_dtype t)
{
    return t == SL_F32 ? 4 : t == SL_I8 ? 1 : 2;
}

/* Elements of a row with zeros up to a whole group of 16 lanes. */
ATTN_FN uint32_t attn_padded(uint32_t dim)
{
    return (dim + 15) & ~15u;
}

/* ---- pages (sl_kv_row_at, sl_kv_scale_at) ---- */

struct attn_pages {
    size_t page_bytes, half_bytes;
    uint32_t n_kv_heads, head_dim, page_shift;
    uint32_t aligned; /* every row begins at 16 bytes and has whole units of 16 */
};

ATTN_FN size_t attn_row_at(const struct attn_pages *g, uint32_t elem_bytes, uint32_t half,
                           uint32_t head, uint32_t slot)
{
    uint32_t row = (head << g->page_shift) + slot;
    return half * g->half_bytes + (size_t)row * g->head_dim * elem_bytes;
}

/* int8: behind the rows of its half */
ATTN_FN size_t attn_scale_at(const struct attn_pages *g, uint32_t half, uint32_t head,
                             uint32_t slot)
{
    size_t rows = (size_t)g->n_kv_heads << g->page_shift;
    return half * g->half_bytes + rows * g->head_dim +
           (((size_t)head << g->page_shift) + slot) * sizeof(float);
}

static inline attn_pages attn_pages_of(const struct cuda_kv *kv)
{
    attn_pages g = {};
    uint32_t elem = attn_elem_bytes(kv->dtype), row_bytes = kv->head_dim * elem;
    size_t rows = (size_t)kv->n_kv_heads * kv->page_size;
    g.page_bytes = kv->page_bytes;
    g.half_bytes = rows * (row_bytes + (kv->dtype == SL_I8 ? sizeof(float) : 0));
    g.n_kv_heads = kv->n_kv_heads;
    g.head_dim = kv->head_dim;
    while (1u << g.page_shift < kv->page_size)
        g.page_shift++;
    g.aligned = row_bytes % 16 == 0 && g.half_bytes % 16 == 0 && g.page_bytes % 16 == 0 &&
                (uintptr_t)kv->layer % 16 == 0;
    return g;
}

/* ---- the form for few query tokens: a block takes one segment ---- */

/* Raw rows of K or V in shared memory. An odd number of 16-byte units apart, 8 threads that read
 * the same unit of 8 successive rows meet 8 different groups of banks. */
ATTN_FN uint32_t attn_raw_stride(uint32_t dim, uint32_t elem_bytes)
{
    return (attn_padded(dim) * elem_bytes / 16 | 1) * 16;
}

/* Shared memory: q [rows, padded], o [rows, padded], p [rows, ATTN_P_STRIDE], floats; then max and
 * sum, and positions seen, of each row; then two stages of `chunk` rows and their scales. */
struct attn_short {
    uint32_t rows;  /* query rows of a block, 1 or even */
    uint32_t chunk; /* positions of a stage, a power of two */
    uint32_t stride, stage_bytes, stages_at, smem;
};

ATTN_FN uint32_t attn_short_bytes(struct attn_short *t, uint32_t dim, uint32_t elem_bytes)
{
    uint32_t rows = (t->rows + 1) & ~1u; /* rows are scored in pairs */
    t->stride = attn_raw_stride(dim, elem_bytes);
    t->stage_bytes = (t->chunk * (t->stride + (uint32_t)sizeof(float)) + 15) & ~15u;
    t->stages_at = rows * (2 * attn_padded(dim) + ATTN_P_STRIDE + 4) * (uint32_t)sizeof(float);
    return t->stages_at + 2 * t->stage_bytes;
}

/* For sequences of at most max_rows query rows a KV head. */
ATTN_FN struct attn_short attn_plan_short(uint32_t dim, uint32_t elem_bytes, uint32_t max_rows)
{
    struct attn_short t = {};
    uint32_t rows = 1024 / attn_padded(dim);
    rows = rows < 8 ? rows : 8;
    rows = rows < max_rows ? rows : max_rows + 1;
    t.rows = rows > 1 ? rows & ~1u : 1;
    t.chunk = 64;
    while (t.chunk > 1 && attn_short_bytes(&t, dim, elem_bytes) > ATTN_SMEM)
        t.chunk /= 2;
    t.smem = attn_short_bytes(&t, dim, elem_bytes);
    return t;
}

/* Of the scores a thread has position `i` of a stage, and pairs of rows `first`, + step .. */
struct attn_part {
    uint32_t i, first, step;
};
ATTN_FN struct attn_part attn_score_part(uint32_t thread, uint32_t chunk)
{
    struct attn_part p = {thread % chunk, thread / chunk, ATTN_BLOCK / chunk};
    return p;
}

/* Of the outputs it has elements i, i + 1 of rows `first`, + step ..; none if first >= step. Rows
 * of more than 2 * ATTN_BLOCK elements are walked from i on in steps of that. */
ATTN_FN struct attn_part attn_weigh_part(uint32_t thread, uint32_t padded)
{
    uint32_t pairs = padded / 2;
    struct attn_part p = {thread % pairs * 2, thread / pairs, ATTN_BLOCK / pairs};
    p.step = p.step > 0 ? p.step : 1;
    return p;
}

/* Partial results: (max, sum) of [slots][n_heads][n_seg], then out [slots][n_heads][n_seg][dim].
 * The slots of short sequences follow each other in their order and no two share one: a sequence of
 * n rows moves both of what is compared by at least n. */
ATTN_FN uint32_t attn_slot(uint32_t seq, uint32_t first_row, uint32_t max_tokens)
{
    size_t by_seq = (size_t)seq * max_tokens;
    return by_seq < first_row ? (uint32_t)by_seq : first_row;
}
ATTN_FN size_t attn_slots(uint32_t n_seq, uint32_t n_tok, uint32_t max_tokens)
{
    size_t by_seq = (size_t)n_seq * max_tokens;
    return by_seq < n_tok ? by_seq : n_tok;
}
ATTN_FN size_t attn_partial(uint32_t slot, uint32_t head, uint32_t n_heads, uint32_t seg,
                            uint32_t n_seg)
{
    return ((size_t)slot * n_heads + head) * n_seg + seg;
}

/* ---- the form for many query tokens: a block takes a tile of rows through all segments ---- */

/* Four neighbouring threads share a tile of 4 rows x 4 positions: thread j has lanes j, j + 4, j +
 * 8 and j + 12 of the 16 partial sums, which lie side by side in shared memory: element d of a
 * group of 16 is word attn_lane_word(d). */
ATTN_FN uint32_t attn_lane_word(uint32_t d)
{
    return d % 4 * 4 + d / 4;
}

/* Floats between two rows of Q, K or V. Four rows on, where the next tile begins, are 16 banks on:
 * two tiles' reads of 64 bytes fill all banks. */
ATTN_FN uint32_t attn_long_stride(uint32_t dim)
{
    return attn_padded(dim) + 4;
}

/* Shared memory: q [rows, stride], p [rows, ATTN_P_STRIDE], kv [chunk, stride], floats; then five
 * words a row. A thread weighs 4 rows x 4 elements. */
struct attn_long {
    uint32_t rows;                          /* query rows of a block, a multiple of 4 */
    uint32_t chunk;                         /* positions at a time, a power of two from 16 */
    uint32_t stride, kv_at, words_at, smem; /* in floats, but for smem */
};

ATTN_FN struct attn_long attn_plan_long(uint32_t dim)
{
    struct attn_long t = {};
    uint32_t padded = attn_padded(dim);
    t.rows = padded <= 128 ? 16 : padded <= 256 ? 8 : 4;
    t.chunk = padded <= 64 ? 64 : padded <= 128 ? 32 : 16;
    t.stride = attn_long_stride(dim);
    t.kv_at = t.rows * (t.stride + ATTN_P_STRIDE);
    t.words_at = t.kv_at + t.chunk * t.stride;
    t.smem = (t.words_at + 5 * t.rows) * (uint32_t)sizeof(float);
    return t;
}

/* Where a thread's work is in a tile: a row and an element, or a row and a position. */
struct attn_at {
    uint32_t row, i;
};

/* Group of 16 elements number u of a chunk: threads run over positions first, so that 8 of them
 * store to 8 rows. row: position in the chunk. */
ATTN_FN struct attn_at attn_load_at(uint32_t u, uint32_t chunk)
{
    struct attn_at at = {u % chunk, u / chunk * 16};
    return at;
}

/* Tile u of 4 rows x 4 positions where `across` tiles cover the chunk's positions. */
ATTN_FN struct attn_at attn_score_at(uint32_t u, uint32_t across)
{
    struct attn_at at = {u / across * 4, u % across * 4};
    return at;
}

/* Rows row to row + 3 and elements i to i + 3 are the thread's; none where the plan has no such
 * row.
 */
ATTN_FN struct attn_at attn_weigh_at(uint32_t thread, uint32_t padded)
{
    struct attn_at at = {thread / (padded / 4) * 4, thread % (padded / 4) * 4};
    return at;
}

#endif
