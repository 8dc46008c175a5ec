/* Conversion of a model file to another element type, by way of float32. For benchmarks and tests
 * that need the same model in several types; the whole result is held in memory until written. */
#include "model_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* general.file_type of the format, by element type. */
static uint32_t file_type_of(enum sl_dtype dtype)
{
    switch (dtype) {
    case SL_F16:
        return 1;
    case SL_Q4_0:
        return 2;
    case SL_Q4_1:
        return 3;
    case SL_Q8_0:
        return 7;
    case SL_BF16:
        return 32;
    default:
        return 0;
    }
}

static void put_keys(struct sl_gguf_writer *w, const struct sl_gguf *in, enum sl_dtype dtype)
{
    for (size_t i = 0; i < sl_gguf_n_keys(in); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(in, i);
        if (sl_str_eqz(k->name, "general.file_type"))
            sl_gguf_put_u32(w, "general.file_type", file_type_of(dtype));
        else if (!sl_str_eqz(k->name, "general.alignment")) /* the writer has its own */
            sl_gguf_put_key(w, k);
    }
}

static enum sl_dtype target_of(const struct sl_gguf_tensor *t, enum sl_dtype dtype,
                               enum sl_dtype embed)
{
    if (t->n_dims < 2)
        return SL_F32;
    bool is_embed =
        sl_str_eqz(t->name, "token_embd.weight") || sl_str_eqz(t->name, "output.weight");
    enum sl_dtype want = is_embed ? embed : dtype;
    return t->dims[0] % sl_dtype_row(want)->block_elems == 0 ? want : SL_F16;
}

/* Rows of one tensor from type to type; `row` has room for one of them in float32. */
static void convert(const struct sl_gguf_tensor *t, enum sl_dtype from, enum sl_dtype to,
                    float *row, uint8_t *out)
{
    size_t k = (size_t)t->dims[0];
    size_t in_bytes = sl_dtype_bytes(from, k), out_bytes = sl_dtype_bytes(to, k);
    const uint8_t *src = t->data;
    for (uint64_t n = t->n_elems / t->dims[0]; n > 0; n--) {
        sl_dequantize_row(from, src, row, k);
        sl_quantize_row(to, row, out, k);
        src += in_bytes;
        out += out_bytes;
    }
}

static enum sl_status put_tensor(struct sl_gguf_writer *w, const struct sl_gguf_tensor *t,
                                 enum sl_dtype to, void **data, struct sl_err *err)
{
    enum sl_dtype from;
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
    if (!t->data || !sl_model_dtype(t->ggml_type, &from))
        return sl_fail(err, SL_MODEL, "model: tensor '%s' of type %s cannot be read", name,
                       t->type_name);
    if (from == to) {
        sl_gguf_put_tensor(w, name, t->ggml_type, t->n_dims, t->dims, t->data, t->n_bytes);
        return SL_OK;
    }
    size_t bytes = sl_dtype_bytes(to, (size_t)t->n_elems);
    float *row = malloc((size_t)t->dims[0] * sizeof *row);
    *data = malloc(bytes);
    if (!row || !*data) {
        free(row);
        return sl_fail(err, SL_NO_MEMORY, "model: no memory for tensor '%s'", name);
    }
    convert(t, from, to, row, *data);
    free(row);
    sl_gguf_put_tensor(w, name, sl_model_ggml_type(to), t->n_dims, t->dims, *data, bytes);
    return SL_OK;
}

enum sl_status sl_model_requantize(const struct sl_gguf *in, const char *path, enum sl_dtype dtype,
                                   enum sl_dtype embed, sl_model_progress *progress, void *ctx,
                                   struct sl_err *err)
{
    if (sl_model_ggml_type(dtype) == UINT32_MAX || sl_model_ggml_type(embed) == UINT32_MAX)
        return sl_fail(err, SL_USAGE, "model: no file has tensors of this type");
    size_t n = sl_gguf_n_tensors(in);
    void **data = calloc(n + 1, sizeof *data);
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    uint64_t total = 0, done = 0;
    enum sl_status status = SL_OK;
    if (!data || !w)
        status = sl_fail(err, SL_NO_MEMORY, "model: no memory to convert %zu tensors", n);
    else
        put_keys(w, in, dtype);
    for (size_t i = 0; i < n; i++)
        total += sl_gguf_tensor_at(in, i)->n_bytes;
    for (size_t i = 0; i < n && !status; i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(in, i);
        status = put_tensor(w, t, target_of(t, dtype, embed), &data[i], err);
        done += t->n_bytes;
        if (progress)
            progress(ctx, done, total);
    }
    if (!status)
        status = sl_gguf_writer_finish(w, path, err);
    else if (w)
        sl_gguf_writer_drop(w);
    for (size_t i = 0; data && i < n; i++)
        free(data[i]);
    free(data);
    return status;
}
