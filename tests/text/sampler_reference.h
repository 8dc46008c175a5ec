/* The sampler as its header states it, done plainly: everything sorted, everything summed. With
 * `exact` it uses the same float32 weights and order of sums, and must agree in every draw;
 * without, it computes in double and tells how near to a border it came. */
#ifndef SLUICE_TESTS_TEXT_SAMPLER_REFERENCE_H
#define SLUICE_TESTS_TEXT_SAMPLER_REFERENCE_H

#include <sluice/base/exact.h>
#include <sluice/base/time.h>
#include <sluice/text/sampler.h>

#include <math.h>
#include <stdlib.h>

struct ref_token {
    float x;
    uint32_t id;
    double w, far; /* weight; distance from the mean log probability */
};

struct reference {
    bool exact;
    struct ref_token *v; /* [n] */
    uint32_t n;
    double total;
    double margin; /* least relative distance of a sum from the border it was compared with */
};

static inline int ref_by_logit(const void *a, const void *b)
{
    const struct ref_token *p = a, *q = b;
    if (p->x != q->x)
        return p->x > q->x ? -1 : 1;
    return p->id < q->id ? -1 : 1;
}

static inline int ref_by_far(const void *a, const void *b)
{
    const struct ref_token *p = a, *q = b;
    if (p->far != q->far)
        return p->far < q->far ? -1 : 1;
    return ref_by_logit(a, b);
}

static inline void ref_near(struct reference *r, double sum, double border)
{
    double d = fabs(sum - border) / r->total;
    r->margin = d < r->margin ? d : r->margin;
}

static inline void ref_sum(struct reference *r)
{
    r->total = 0;
    for (uint32_t i = 0; i < r->n; i++)
        r->total += r->v[i].w;
}

static inline void ref_sum_lanes(struct reference *r)
{
    double lane[16] = {0};
    double *by_id = calloc(r->n, sizeof *by_id);
    for (uint32_t i = 0; i < r->n; i++)
        by_id[r->v[i].id] = r->v[i].w;
    for (uint32_t i = 0; i < r->n; i++)
        lane[i % 16] += by_id[i];
    for (unsigned half = 8; half; half /= 2)
        for (unsigned i = 0; i < half; i++)
            lane[i] += lane[i + half];
    r->total = lane[0];
    free(by_id);
}

static inline void ref_typical(struct reference *r, const struct sl_sampling *p, float max)
{
    uint32_t m = 0;
    for (uint32_t i = 0; i < r->n; i++)
        if (r->v[i].w > 0)
            r->v[m++] = r->v[i];
    r->n = m;
    ref_sum(r);
    double mean = 0;
    for (uint32_t i = 0; i < m; i++)
        mean += r->v[i].w * (double)((r->v[i].x - max) / p->temperature);
    mean /= r->total;
    for (uint32_t i = 0; i < m; i++)
        r->v[i].far = fabs((double)(float)((double)((r->v[i].x - max) / p->temperature) - mean));
    qsort(r->v, m, sizeof *r->v, ref_by_far);
    double sum = 0;
    uint32_t keep = 0;
    while (keep < m && (!keep || sum < (double)p->typical_p * r->total)) {
        sum += r->v[keep++].w;
        ref_near(r, sum, (double)p->typical_p * r->total);
    }
    if (keep < m) /* two at the same distance but for rounding */
        r->margin = fmin(r->margin, r->v[keep].far - r->v[keep - 1].far);
    r->n = keep;
    qsort(r->v, keep, sizeof *r->v, ref_by_logit);
    ref_sum(r);
}

/* The token for u, from logits that are already biased, penalised and masked. */
static inline uint32_t ref_choose(struct reference *r, const struct sl_sampling *p, const float *x,
                                  uint32_t n, float u)
{
    r->v = malloc(n * sizeof *r->v);
    r->n = n;
    r->margin = 1;
    for (uint32_t i = 0; i < n; i++)
        r->v[i] = (struct ref_token){.x = x[i], .id = i};
    qsort(r->v, n, sizeof *r->v, ref_by_logit);
    float max = r->v[0].x;
    for (uint32_t i = 0; i < n && p->temperature > 0; i++)
        r->v[i].w = r->exact ? (double)sl_exp_f32((r->v[i].x - max) / p->temperature)
                             : exp(((double)r->v[i].x - (double)max) / (double)p->temperature);
    uint32_t chosen = r->v[0].id;
    if (p->temperature == 0)
        goto out;
    ref_sum_lanes(r);
    if (p->top_k > 0 && (uint32_t)p->top_k < n) {
        r->n = (uint32_t)p->top_k;
        ref_sum(r);
    }
    if (p->typical_p < 1)
        ref_typical(r, p, max);
    if (p->top_p < 1) {
        double sum = 0, enough = (double)p->top_p * r->total;
        uint32_t i = 0;
        while (i < r->n && (!i || sum < enough)) {
            sum += r->v[i++].w;
            ref_near(r, sum, enough);
        }
        r->n = i;
        ref_sum(r);
    }
    if (p->min_p > 0) {
        uint32_t i = 0;
        double least = (double)p->min_p * r->v[0].w;
        while (i < r->n && r->v[i].w >= least)
            i++;
        if (i > 1)
            ref_near(r, r->v[i - 1].w, least);
        if (i < r->n)
            ref_near(r, r->v[i].w, least);
        r->n = i;
        ref_sum(r);
    }
    double sum = 0, target = (double)u * r->total;
    for (uint32_t i = 0; i < r->n && r->v[i].w > 0; i++) {
        chosen = r->v[i].id;
        sum += r->v[i].w;
        if (i + 1 < r->n) /* the last border is no border */
            ref_near(r, sum, target);
        if (sum > target)
            break;
    }
out:
    free(r->v);
    return chosen;
}

#endif
