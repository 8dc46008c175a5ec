/* What the model's files share: the family table, the tensor map, the opened model or shard. */
#ifndef SLUICE_MODEL_PRIV_H
#define SLUICE_MODEL_PRIV_H

#include <sluice/model/file.h>
#include <sluice/model/model.h>

/* One row per architecture: what differs between decoders of this shape. */
struct family {
    const char *arch;
    enum sl_rope_kind rope_kind; /* how the file's Q and K rows are ordered */
};
const struct family *family_find(struct sl_str arch);
/* "llama, ..." for messages. */
const char *family_names(void);

enum model_slot { T_EMBED, T_OUT_NORM, T_HEAD, T_ROPE_FREQS, N_MODEL_SLOT };
enum layer_slot {
    T_ATTN_NORM,
    T_Q,
    T_K,
    T_V,
    T_O,
    T_Q_BIAS,
    T_K_BIAS,
    T_V_BIAS,
    T_O_BIAS,
    T_FFN_NORM,
    T_GATE,
    T_UP,
    T_DOWN,
    N_LAYER_SLOT
};

/* Where each tensor of the decoder is in the file; NULL for optional ones that are absent. */
struct tensor_map {
    const struct sl_gguf_tensor *model[N_MODEL_SLOT];
    const struct sl_gguf_tensor *(*layers)[N_LAYER_SLOT];
};
/* Checks presence, types and dimensions, and that the file has no tensor besides. */
enum sl_status tensor_map_open(const struct sl_gguf *g, const struct sl_model_config *c,
                               struct tensor_map *out, struct sl_err *err);
void tensor_map_close(struct tensor_map *m);

/* Linears over one input whose outputs lie side by side: one weight with stacked rows when the
 * sources have one type, otherwise one weight each. */
#define GROUP_MAX 3
struct group {
    uint32_t n, n_out;
    struct sl_weight w[GROUP_MAX];
    const float *bias[GROUP_MAX];
    uint32_t at[GROUP_MAX]; /* first output */
};

struct layer {
    const float *attn_norm, *ffn_norm; /* [dim] */
    struct group qkv, o, gate_up, down;
};

/* Floats handed out one run after another from one allocation, in the backend's memory. */
struct slab {
    float *data;
    float *mirror; /* while the host fills them, else NULL */
    size_t n, used;
};

/* One call of the attention op: n_heads query heads from `head` on, counted in the shard, as are
 * the KV heads they read. */
struct attn_call {
    uint32_t head, n_heads, kv_first, n_kv_heads;
};

/* How the ranks' partial sums of one linear come together; the same in every layer. */
struct group_sum {
    struct sl_tree tree;
    uint32_t n_parts[SL_SLICES_MAX]; /* of each rank */
    uint32_t first_part;             /* number of my first one */
    bool scatters;                   /* all to all moves fewer bytes */
};

struct sl_model {
    struct sl_model_config cfg;
    struct sl_backend *b;
    struct sl_shard shard;
    struct sl_shard_part part;
    bool has_head; /* the last stage */
    bool loose_sums;
    uint32_t micro_batches, micro_rows_min, all_to_all_rows;
    struct attn_call attn_calls[3];
    uint32_t n_attn_calls;
    struct group_sum o_sum, down_sum;

    struct sl_weight_src embed; /* in the file's mapping, or on the device: */
    void *embed_copy;
    size_t embed_bytes;
    struct layer *layers; /* [part.layers.n] */
    const float *out_norm;
    struct group head;
    struct sl_rope rope;
    float *rope_tables; /* cos, then sin */
    uint64_t weight_bytes;
    uint32_t max_batch_tokens, max_positions, max_logit_rows, max_seqs, page_size;
    size_t step_bytes; /* the backend's own for steps */
    struct slab vectors; /* norms and biases */
    struct slab scratch; /* what the pointers below and the rope tables point into */
    float *x;            /* [max_batch_tokens, dim], the residual stream */
    float *x_rows;       /* [max_logit_rows, dim], of the rows that go on to logits */
    float *h;            /* [rows, dim], normalised; rows = the larger of both maxima */
    float *qkv;          /* [rows, (heads + 2 kv_heads) * head_dim] of the shard */
    float *attn;         /* [max_batch_tokens, heads * head_dim] */
    float *gate_up;      /* [rows, 2 * ffn] */
    float *act;          /* [rows, ffn] */
    float *parts;        /* partial sums: mine, and everybody's */
    float *logits;       /* [max_logit_rows, vocab], of the shard, on its way to rank 0 */
    float *all_logits;   /* [max_logit_rows, n_vocab], as gathered */
    float *out_logits;   /* the same in order, on its way to stage 0 */
    uint32_t *q_start;   /* [max_batch_tokens + 1], of one micro-batch */
};

/* --- shard.c --- */

/* The slices of the whole model's sliced linears. */
struct sl_slices o_slices(const struct sl_model_config *c);
struct sl_slices down_slices(const struct sl_model_config *c);
/* Fills in what follows from the place in the group. cfg and loose_sums are set; `s` was checked.
 */
void shard_place(struct sl_model *m, const struct sl_shard *s);
struct sl_slices shard_o_slices(const struct sl_model *m);
struct sl_slices shard_down_slices(const struct sl_model *m);
/* Rows of the head at rank `tp_rank` of the last stage. */
struct sl_run shard_vocab(const struct sl_model *m, uint32_t tp_rank);

/* --- weights.c --- */

/* Progress of one opening. */
struct opening {
    const struct sl_gguf *g;
    struct tensor_map map;
    sl_model_progress *progress;
    void *ctx;
    uint64_t done_bytes, total_bytes;
};
/* Floats of norms and biases. */
size_t weights_vector_floats(const struct sl_model *m);
/* Bytes that weights_pack will take; *file_bytes of the file it will read. */
uint64_t weights_bytes(const struct sl_model *m, const struct tensor_map *map,
                       uint64_t *file_bytes);
/* Bytes of the embedding where it is copied, and left in the file: one of them is 0. */
size_t weights_embed_bytes(const struct sl_model *m, const struct tensor_map *map, bool copied);
/* The largest number of inputs of each format. */
void weights_k_max(const struct sl_model *m, const struct tensor_map *map,
                   uint32_t k_max[SL_N_DTYPE]);
/* Packs the shard; m->vectors is there. */
enum sl_status weights_pack(struct sl_model *m, struct opening *o, struct sl_err *err);
void weights_close(struct sl_model *m);

float *slab_take(struct slab *s, size_t n);
/* The host's view of what slab_take gave. */
static inline float *slab_host(const struct slab *s, const float *p)
{
    return s->mirror + (p - s->data);
}
/* A run of floats begins on a cache line. */
static inline size_t padded(uint64_t n)
{
    return (size_t)((n + 15) / 16 * 16);
}

/* A string from the file, fit for a message: clipped, nothing but printable ASCII. */
struct shown {
    char z[64];
};
static inline struct shown show(struct sl_str s)
{
    struct shown out = {{0}};
    for (size_t i = 0; i < s.len && i < sizeof out.z - 1; i++)
        out.z[i] = s.data[i] >= 0x20 && s.data[i] < 0x7f ? s.data[i] : '?';
    return out;
}

static inline uint32_t q_dim(const struct sl_model_config *c)
{
    return c->n_heads * c->head_dim;
}

static inline uint32_t kv_dim(const struct sl_model_config *c)
{
    return c->n_kv_heads * c->head_dim;
}

#endif
