/* Parts of the KV cache: which layers and heads a rank holds, and some heads of a row by
 * themselves. A row of the cache is K [n_kv_heads][page_size][head_dim], for int8 its scales
 * [n_kv_heads][page_size], then V and its scales (op.h); a row of a part is the same with fewer
 * heads. */
#include "engine.h"
#include "transfer.h"

#include <string.h>

struct sl_kv_part sl_kv_part_of(const struct sl_engine *e, const struct sl_shard *s)
{
    struct sl_shard_part p = sl_shard_part(&e->model_cfg, s);
    return (struct sl_kv_part){p.layers.first, p.layers.n, p.kv_heads.first, p.kv_heads.n};
}

bool sl_kv_part_within(const struct sl_kv_part *p, const struct sl_kv_part *whole)
{
    return p->n_layers && p->n_heads && p->layer_first >= whole->layer_first &&
           p->head_first >= whole->head_first &&
           p->layer_first - whole->layer_first < whole->n_layers &&
           p->head_first - whole->head_first < whole->n_heads &&
           p->n_layers <= whole->n_layers - (p->layer_first - whole->layer_first) &&
           p->n_heads <= whole->n_heads - (p->head_first - whole->head_first);
}

/* Copies between two rows of n_from and n_to heads: `n` heads, from head `from_at` to `to_at`. */
static void copy_heads(const struct sl_kv_config *c, const uint8_t *from, uint32_t n_from,
                       uint32_t from_at, uint8_t *to, uint32_t n_to, uint32_t to_at, uint32_t n)
{
    const size_t sizes[] = {c->page_size * sl_dtype_bytes(c->dtype, c->head_dim),
                            c->dtype == SL_I8 ? c->page_size * sizeof(float) : 0};
    for (uint32_t block = 0; block < 4; block++) { /* K, scales, V, scales */
        size_t size = sizes[block % 2];
        if (size)
            memcpy(to + to_at * size, from + from_at * size, n * size);
        from += n_from * size;
        to += n_to * size;
    }
}

void sl_kv_slice(const struct sl_kv_config *c, const void *row, uint32_t first, uint32_t n,
                 void *out)
{
    copy_heads(c, row, c->n_kv_heads, first, out, n, 0, n);
}

void sl_kv_unslice(const struct sl_kv_config *c, void *row, uint32_t first, uint32_t n,
                   const void *in)
{
    copy_heads(c, in, n, 0, row, c->n_kv_heads, first, n);
}
