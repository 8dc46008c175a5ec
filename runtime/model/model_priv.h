/* What the model's files share: the family table, the tensor map and the opened model. */
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

/* Floats handed out one run after another from one allocation. */
struct slab {
    float *data;
    size_t n, used;
};

struct sl_model {
    struct sl_model_config cfg;
    struct sl_backend *b;
    struct sl_weight_src embed;
    struct layer *layers;
    const float *out_norm;
    struct group head;
    struct sl_rope rope;
    uint64_t weight_bytes;
    uint32_t max_batch_tokens, max_positions, max_logit_rows;
    struct slab vectors; /* norms and biases */
    struct slab scratch; /* what the pointers below and the rope tables point into */
    float *x;            /* [max_batch_tokens, dim], the residual stream */
    float *x_rows;       /* [max_logit_rows, dim], of the rows that go on to logits */
    float *h;            /* [rows, dim], normalised; rows = the larger of both maxima */
    float *qkv;          /* [rows, (n_heads + 2 n_kv_heads) * head_dim] */
    float *attn;         /* [max_batch_tokens, n_heads * head_dim] */
    float *gate_up;      /* [rows, 2 * ffn_dim] */
    float *act;          /* [rows, ffn_dim] */
};

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
