/* The end of a step on the backend's side: figures of its logits, one copy to the host, one wait.
 */
#include "engine.h"

/* Each kind of figures begins on a cache line, as do the rows. */
static size_t figures(uint32_t n_rows)
{
    return ((size_t)n_rows + 15) / 16 * 16;
}

static size_t logits_bytes(uint32_t n_rows, uint32_t n_vocab)
{
    return ((size_t)n_rows * n_vocab + 3 * figures(n_rows)) * sizeof(float);
}

static struct logits view(void *at, uint32_t n_rows)
{
    float *max = at;
    size_t n = figures(n_rows);
    return (struct logits){.max = max,
                           .log_sum = max + n,
                           .argmax = (uint32_t *)(void *)(max + 2 * n),
                           .rows = max + 3 * n};
}

bool sl_logits_open(struct sl_backend *b, uint32_t n_rows, uint32_t n_vocab, struct logits *out,
                    struct logits *host)
{
    size_t bytes = logits_bytes(n_rows, n_vocab);
    void *p = b->ops->alloc(b, bytes), *mirror = p ? b->ops->mirror(b, p, bytes) : NULL;
    if (p && !mirror)
        b->ops->free(b, p, bytes);
    if (!mirror)
        return false;
    *out = view(p, n_rows);
    *host = view(mirror, n_rows);
    return true;
}

void sl_logits_close(struct sl_backend *b, uint32_t n_rows, uint32_t n_vocab, struct logits *out,
                     struct logits *host)
{
    size_t bytes = logits_bytes(n_rows, n_vocab);
    if (!out->max)
        return;
    b->ops->mirror_free(b, host->max, out->max, bytes);
    b->ops->free(b, out->max, bytes);
}

enum sl_status sl_logits_read(struct sl_backend *b, uint32_t n, uint32_t n_vocab,
                              const struct logits *out, const struct logits *host,
                              struct sl_err *err)
{
    if (n) {
        size_t floats = (size_t)(out->rows - out->max) + (size_t)n * n_vocab;
        b->ops->logit_stats(b, out->rows, n, n_vocab, out->max, out->argmax, out->log_sum);
        b->ops->read(b, host->max, out->max, floats * sizeof(float));
    }
    return b->ops->finish(b, err);
}
