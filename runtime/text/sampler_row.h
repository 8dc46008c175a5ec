/* Passes over a whole row of logits. Every variant gives the same bits. */
#ifndef SLUICE_TEXT_SAMPLER_ROW_H
#define SLUICE_TEXT_SAMPLER_ROW_H

#include <stdbool.h>
#include <stdint.h>

#define ROW_LANES      16
#define ROW_THRESHOLDS 8

/* A token with what it is sorted by. */
struct cand {
    float key;
    uint32_t id;
};

struct row_ops {
    /* False when the row has a NaN; -0 counts as 0. */
    bool (*max)(const float *x, uint32_t n, float *max);
    /* w[i] = exp((x[i] - max) / temperature), by sl_exp_f32. Returns their sum in double: partial
     * sums over i mod 16, folded by halves. max is the row's, so that no exponent is positive. */
    double (*weights)(const float *x, uint32_t n, float max, float temperature, float *w);
    /* count[k] = how many x[i] >= at[k] */
    void (*count)(const float *x, uint32_t n, const float at[ROW_THRESHOLDS],
                  uint32_t count[ROW_THRESHOLDS]);
    /* All x[i] >= at, ids ascending, -0 as 0. */
    uint32_t (*gather)(const float *x, uint32_t n, float at, struct cand *out);
};

extern const struct row_ops row_ops_plain;
/* The quickest that this machine has. */
const struct row_ops *row_ops_best(void);

#endif
