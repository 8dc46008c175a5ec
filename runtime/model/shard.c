/* What of a model a rank holds, and how partial sums of its group come together. Everything follows
 * from the configuration and the place in the group; nothing from the weights. */
#include "model_priv.h"

#define BLOCK_ELEMS 32u
#define VOCAB_UNIT  16u /* rows of the head that are dealt out together: a packed group */

/* Sliced linears are those a tensor parallel group cuts by their inputs. The attention output is
 * cut on head borders, and on whole blocks where heads are smaller than those. */
struct sl_slices o_slices(const struct sl_model_config *c)
{
    uint32_t unit = c->head_dim;
    while (unit % BLOCK_ELEMS != 0 && unit < q_dim(c))
        unit += c->head_dim;
    if (unit % BLOCK_ELEMS != 0 || q_dim(c) % unit != 0)
        return sl_slices_one(q_dim(c));
    return sl_slices_cut(q_dim(c), unit);
}

struct sl_slices down_slices(const struct sl_model_config *c)
{
    if (c->ffn_dim % BLOCK_ELEMS != 0)
        return sl_slices_one(c->ffn_dim);
    return sl_slices_cut(c->ffn_dim, BLOCK_ELEMS);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t sl_shard_tp_max(const struct sl_model_config *c)
{
    return min_u32(min_u32(o_slices(c).n, down_slices(c).n), c->n_vocab);
}

uint32_t sl_shard_pp_max(const struct sl_model_config *c)
{
    return c->n_layers;
}

static uint32_t degree(uint32_t n)
{
    return n ? n : 1;
}

enum sl_status sl_shard_check(const struct sl_model_config *c, const struct sl_shard *s,
                              struct sl_err *err)
{
    uint32_t tp = degree(s->tp), pp = degree(s->pp);
    if (tp > sl_shard_tp_max(c))
        return sl_fail_param(err, SL_CONFIG, "tensor-parallel-size",
                             "model: tensor parallel degree %u; this model with %u heads of %u and "
                             "%u wide feed-forward admits at most %u",
                             tp, c->n_heads, c->head_dim, c->ffn_dim, sl_shard_tp_max(c));
    if (pp > sl_shard_pp_max(c))
        return sl_fail_param(err, SL_CONFIG, "pipeline-parallel-size",
                             "model: pipeline parallel degree %u; this model with %u layers admits "
                             "at most %u",
                             pp, c->n_layers, sl_shard_pp_max(c));
    if (s->tp_rank >= tp || s->pp_rank >= pp)
        return sl_fail(err, SL_CONFIG, "model: rank %u of %u in stage %u of %u", s->tp_rank, tp,
                       s->pp_rank, pp);
    return SL_OK;
}

/* Part i of [0, n) dealt out in n_parts runs, as equal as can be. */
static struct sl_run deal(uint32_t n, uint32_t i, uint32_t n_parts)
{
    uint32_t first = (uint32_t)((uint64_t)n * i / n_parts);
    return (struct sl_run){first, (uint32_t)((uint64_t)n * (i + 1) / n_parts) - first};
}

static struct sl_run deal_vocab(uint32_t n, uint32_t i, uint32_t n_parts)
{
    uint32_t n_units = n / VOCAB_UNIT;
    if (n_units < n_parts)
        return deal(n, i, n_parts);
    struct sl_run units = deal(n_units, i, n_parts);
    struct sl_run r = {units.first * VOCAB_UNIT, units.n * VOCAB_UNIT};
    if (i == n_parts - 1)
        r.n = n - r.first;
    return r;
}

static struct sl_run deal_slices(uint32_t n, uint32_t i, uint32_t n_parts)
{
    uint32_t first[SL_SLICES_MAX + 1];
    sl_tree_deal(n, n_parts, first);
    return (struct sl_run){first[i], first[i + 1] - first[i]};
}

struct sl_shard_part sl_shard_part(const struct sl_model_config *c, const struct sl_shard *s)
{
    uint32_t tp = degree(s->tp), pp = degree(s->pp), group = c->n_heads / c->n_kv_heads;
    struct sl_slices o = o_slices(c), down = down_slices(c);
    struct sl_shard_part p = {.layers = deal(c->n_layers, s->pp_rank, pp),
                              .o_slices = deal_slices(o.n, s->tp_rank, tp),
                              .ffn_slices = deal_slices(down.n, s->tp_rank, tp)};
    struct sl_run q = {o.border[p.o_slices.first],
                       o.border[p.o_slices.first + p.o_slices.n] - o.border[p.o_slices.first]};
    p.heads = (struct sl_run){q.first / c->head_dim, q.n / c->head_dim};
    p.kv_heads.first = p.heads.first / group;
    p.kv_heads.n = (p.heads.first + p.heads.n - 1) / group + 1 - p.kv_heads.first;
    p.ffn.first = down.border[p.ffn_slices.first];
    p.ffn.n = down.border[p.ffn_slices.first + p.ffn_slices.n] - p.ffn.first;
    if (s->pp_rank == pp - 1)
        p.vocab = deal_vocab(c->n_vocab, s->tp_rank, tp);
    return p;
}

/* Calls of the attention op: the query heads of a KV head that is shared with the rank before,
 * those of whole KV heads, those of one shared with the rank behind. */
static void cut_attention(struct sl_model *m)
{
    uint32_t group = m->cfg.n_heads / m->cfg.n_kv_heads,
             end = m->part.heads.first + m->part.heads.n;
    for (uint32_t h = m->part.heads.first; h < end;) {
        uint32_t n = group - h % group; /* to the end of the KV head's group */
        if (h % group == 0)
            n = end - h >= group ? (end - h) / group * group : end - h;
        n = min_u32(n, end - h);
        m->attn_calls[m->n_attn_calls++] =
            (struct attn_call){.head = h - m->part.heads.first,
                               .n_heads = n,
                               .kv_first = h / group - m->part.kv_heads.first,
                               .n_kv_heads = n < group ? 1 : n / group};
        h += n;
    }
}

static void plan_sum(const struct sl_model *m, uint32_t n_slices, struct group_sum *out)
{
    uint32_t first[SL_SLICES_MAX + 1], tp = m->shard.tp;
    struct sl_tree_node nodes[SL_SLICES_MAX];
    n_slices = m->loose_sums ? tp : n_slices;
    sl_tree_deal(n_slices, tp, first);
    for (uint32_t r = 0; r < tp; r++) {
        out->n_parts[r] = sl_tree_cut(first[r], first[r + 1] - first[r], n_slices, nodes);
        if (r < m->shard.tp_rank)
            out->first_part += out->n_parts[r];
    }
    sl_tree_plan(first, tp, &out->tree);
    /* In units of one [n_tok, dim] message at one rank, times tp: gathering everywhere moves all
     * parts, all to all one row in tp of them and then the sums once more. */
    uint32_t gather = out->tree.n_parts * tp, scatter = out->tree.n_parts + tp;
    out->scatters = tp > 1 && scatter < gather;
}

void shard_place(struct sl_model *m, const struct sl_shard *s)
{
    m->shard = (struct sl_shard){s->tp_rank, degree(s->tp), s->pp_rank, degree(s->pp)};
    m->part = sl_shard_part(&m->cfg, &m->shard);
    m->has_head = m->part.vocab.n > 0;
    cut_attention(m);
    plan_sum(m, o_slices(&m->cfg).n, &m->o_sum);
    plan_sum(m, down_slices(&m->cfg).n, &m->down_sum);
}

static struct sl_slices part_of(const struct sl_model *m, struct sl_slices whole, struct sl_run run)
{
    struct sl_slices part = sl_slices_part(&whole, run.first, run.n);
    if (!m->loose_sums || m->shard.tp == 1)
        return part;
    struct sl_slices one = sl_slices_one(part.border[part.n]);
    one.first = m->shard.tp_rank;
    one.total = m->shard.tp;
    return one;
}

struct sl_slices shard_o_slices(const struct sl_model *m)
{
    return part_of(m, o_slices(&m->cfg), m->part.o_slices);
}

struct sl_slices shard_down_slices(const struct sl_model *m)
{
    return part_of(m, down_slices(&m->cfg), m->part.ffn_slices);
}

struct sl_run shard_vocab(const struct sl_model *m, uint32_t tp_rank)
{
    return deal_vocab(m->cfg.n_vocab, tp_rank, m->shard.tp);
}

struct sl_kv_config sl_model_kv_config(const struct sl_model_config *c, const struct sl_shard *s,
                                       uint32_t page_size, uint32_t n_pages, enum sl_dtype dtype)
{
    const struct sl_shard whole = {0};
    struct sl_shard_part part = sl_shard_part(c, s ? s : &whole);
    return (struct sl_kv_config){.n_layers = part.layers.n,
                                 .n_kv_heads = part.kv_heads.n,
                                 .head_dim = c->head_dim,
                                 .page_size = page_size,
                                 .n_pages = n_pages,
                                 .dtype = dtype};
}

uint64_t sl_model_kv_token_bytes(const struct sl_model_config *c, const struct sl_shard *s,
                                 enum sl_dtype dtype)
{
    struct sl_kv_config kv = sl_model_kv_config(c, s, 1, 1, dtype);
    /* int8 rows carry one float32 scale each. */
    uint64_t row = sl_dtype_bytes(dtype, c->head_dim) + (dtype == SL_I8 ? 4 : 0);
    return 2 * row * kv.n_kv_heads * kv.n_layers;
}
