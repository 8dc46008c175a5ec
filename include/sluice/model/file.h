/* Model files as such: what of a file's types can be computed with, conversion between types. */
#ifndef SLUICE_MODEL_FILE_H
#define SLUICE_MODEL_FILE_H

#include <sluice/base/err.h>
#include <sluice/files/gguf.h>
#include <sluice/kernels/dtype.h>
#include <sluice/model/model.h>
#include <stdbool.h>
#include <stdint.h>

/* The element type of a file's tensor type number; false when the kernels have none for it. */
bool sl_model_dtype(uint32_t ggml_type, enum sl_dtype *out);
/* The other way; UINT32_MAX for types that no file has. */
uint32_t sl_model_ggml_type(enum sl_dtype dtype);

/* What is in a file: keys, tensors, whether and why not it can be served, memory. As lines for
 * people or as one JSON object; `all` adds the list of tensors and whole strings to the lines (JSON
 * has them always). Long arrays are given by type and length only. */
struct sl_model_describe {
    const char *path; /* as shown */
    bool json, all;
};
void sl_model_describe(const struct sl_gguf *g, const struct sl_model_describe *how,
                       struct sl_buf *out);

/* Writes `in` to `path` with every tensor of two and more dimensions in `dtype`, by way of float32;
 * one-dimensional tensors become float32; keys are copied. A tensor whose rows are not whole blocks
 * of `dtype` becomes float16. `embed` is the type of token_embd.weight and output.weight. */
enum sl_status sl_model_requantize(const struct sl_gguf *in, const char *path, enum sl_dtype dtype,
                                   enum sl_dtype embed, sl_model_progress *progress, void *ctx,
                                   struct sl_err *err);

#endif
