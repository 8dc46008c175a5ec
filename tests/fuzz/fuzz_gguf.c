/* Fuzz target: bytes of a model file. What parses lies inside the bytes, its metadata parses alone,
 * and reading a model's configuration from it ends in an answer or a message. */
#include <sluice/files/gguf.h>
#include <sluice/model/file.h>
#include <sluice/model/model.h>

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* keeps the reads of walk() */

static uint64_t walk(const struct sl_gguf *g, size_t size)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        for (uint64_t j = 0; j < k->n; j++) {
            struct sl_str s = sl_gguf_array_str(k, j);
            sum += (uint64_t)sl_gguf_array_int(k, j) + s.len;
            if (s.len > 0)
                sum += (uint8_t)s.data[0] + (uint8_t)s.data[s.len - 1];
        }
    }
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        const uint8_t *p = t->data;
        if (t->n_bytes == 0 || t->offset > size || t->n_bytes > size - t->offset)
            abort();
        sum += (uint64_t)p[0] + p[t->n_bytes - 1];
    }
    return sum;
}

static void check_meta(const struct sl_gguf *g)
{
    struct sl_str bytes = sl_gguf_meta(g);
    struct sl_gguf *meta = NULL;
    struct sl_err err = {0};
    if (sl_gguf_parse(bytes.data, bytes.len, true, &meta, &err))
        abort();
    if (sl_gguf_n_keys(meta) != sl_gguf_n_keys(g))
        abort();
    sl_gguf_close(meta);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    struct sl_model_config config;
    struct sl_buf text = {0};
    enum sl_status status = sl_gguf_parse(data, size, false, &g, &err);
    if (status != SL_OK) {
        if (status != SL_MODEL || g || !err.msg[0])
            abort();
        return 0;
    }
    sink += walk(g, size);
    check_meta(g);
    status = sl_model_read_config(g, &config, &err);
    if (status != SL_OK && status != SL_MODEL)
        abort();
    sl_model_describe(g, &(struct sl_model_describe){.path = "x", .json = true}, &text);
    sl_buf_free(&text);
    sl_gguf_close(g);
    return 0;
}
