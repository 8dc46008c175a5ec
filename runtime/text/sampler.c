/* Sampling: one token from one row of logits, the same bits on every machine.
 *
 * Tokens are ordered by logit, highest first, equal ones by id; "the first m" below means in that
 * order. Only as much of the order is worked out as the answer needs: the logits above a threshold
 * are gathered and sorted, and since every such set is a beginning of the order, the threshold
 * cannot show in the result.
 *
 * Weights are w = exp((x - max) / temperature) in float32. Sums are in float64: over the whole row
 * as sampler_row.h says, over a beginning of the order one after the other. A token is drawn by the
 * inverse of the running sum: the first whose sum exceeds u * total, u from
 * sl_random_unit(seed, choice, position, 0).
 *
 * Repetition penalty: Keskar et al. 2019 (CTRL); top-p: Holtzman et al. 2020; typical: Meister et
 * al. 2022; min-p: Nguyen et al. 2024. */
#include <sluice/text/sampler.h>
#include "sampler_row.h"

#include <sluice/base/exact.h>
#include <sluice/base/mem.h>
#include <sluice/base/time.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define IN_PROMPT   0x80000000u /* bit of sl_counts.n_out */
#define DIGIT_BITS  11          /* three digits sort 32 bits */
#define N_DIGITS    3
#define N_BINS      (1u << DIGIT_BITS)
#define FEW         64 /* sorted by insertion */
#define FIRST_REACH 64

struct sl_sampler_scratch {
    const struct row_ops *ops;
    size_t block_bytes;
    uint32_t n_max;
    float *raw;             /* [n_max] logits before bias and penalties */
    float *w;               /* [n_max] weights by id */
    struct cand *a, *b, *c; /* [n_max] the order; the sort's other half; typical's order */
    uint32_t bins[N_DIGITS][N_BINS];
};

struct sl_sampler_scratch *sl_sampler_scratch_new(uint32_t n_vocab)
{
    size_t head = (sizeof(struct sl_sampler_scratch) + 63) & ~(size_t)63, bytes;
    if (!sl_size_mul(n_vocab, 2 * sizeof(float) + 3 * sizeof(struct cand), &bytes) ||
        !sl_size_add(bytes, head, &bytes))
        return NULL;
    struct sl_sampler_scratch *s = sl_pages_alloc(bytes);
    if (!s)
        return NULL;
    s->ops = row_ops_best();
    s->block_bytes = bytes;
    s->n_max = n_vocab;
    s->a = (struct cand *)(void *)((char *)s + head);
    s->b = s->a + n_vocab;
    s->c = s->b + n_vocab;
    s->raw = (float *)(void *)(s->c + n_vocab);
    s->w = s->raw + n_vocab;
    return s;
}

void sl_sampler_scratch_free(struct sl_sampler_scratch *s)
{
    if (s)
        sl_pages_free(s, s->block_bytes);
}

/* ---- token counts ---- */

static uint32_t *count_of(struct sl_counts *c, uint32_t token)
{
    uint32_t mask = c->n_slots - 1, i = token * 0x9e3779b1u;
    for (uint32_t tried = 0; tried < c->n_slots; tried++, i++) {
        uint32_t *key = &c->keys[i & mask];
        if (!*key)
            *key = token + 1;
        if (*key == token + 1)
            return &c->n_out[i & mask];
    }
    return NULL;
}

void sl_counts_add_prompt(struct sl_counts *c, uint32_t token)
{
    uint32_t *n = count_of(c, token);
    sl_assert(n);
    *n |= IN_PROMPT;
}

void sl_counts_add_output(struct sl_counts *c, uint32_t token)
{
    uint32_t *n = count_of(c, token);
    sl_assert(n);
    *n += 1;
}

/* ---- sorting ---- */

/* Ascending as a number where the key is descending as a float; keys are never -0. */
static uint32_t descending(float key)
{
    uint32_t u;
    memcpy(&u, &key, sizeof u);
    return u & 0x80000000u ? u : ~u & 0x7fffffffu;
}

static void sort_few(struct cand *v, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        struct cand c = v[i];
        uint32_t at = i;
        for (; at && v[at - 1].key < c.key; at--)
            v[at] = v[at - 1];
        v[at] = c;
    }
}

/* By key, highest first, equal keys in the order given: a radix sort from the lowest digit up. The
 * result is in v. */
static void sort_cands(struct sl_sampler_scratch *s, struct cand *v, uint32_t n)
{
    if (n <= FEW) {
        sort_few(v, n);
        return;
    }
    memset(s->bins, 0, sizeof s->bins);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = descending(v[i].key);
        for (unsigned d = 0; d < N_DIGITS; d++)
            s->bins[d][k >> (DIGIT_BITS * d) & (N_BINS - 1)]++;
    }
    struct cand *from = v, *to = s->b;
    for (unsigned d = 0; d < N_DIGITS; d++) {
        uint32_t *bin = s->bins[d], start = 0;
        for (uint32_t k = 0; k < N_BINS; k++) {
            uint32_t count = bin[k];
            bin[k] = start;
            start += count;
        }
        for (uint32_t i = 0; i < n; i++)
            to[bin[descending(from[i].key) >> (DIGIT_BITS * d) & (N_BINS - 1)]++] = from[i];
        struct cand *t = from;
        from = to;
        to = t;
    }
    memcpy(v, from, n * sizeof *v); /* an odd number of passes ends in s->b */
}

/* ---- the order, as far as it is needed ---- */

struct order {
    struct sl_sampler_scratch *s;
    const float *x;
    uint32_t n;
    float max;
    uint32_t n_sorted; /* s->a[0 .. n_sorted) are the first of the order */
    bool counted;
    uint32_t count[ROW_THRESHOLDS]; /* once counted: logits no farther than far_steps from max */
};

static const float far_steps[ROW_THRESHOLDS] = {0.5f, 1, 2, 4, 8, 16, 32, 64};

static void count_within(const struct order *o, const float far[ROW_THRESHOLDS],
                         uint32_t count[ROW_THRESHOLDS])
{
    float at[ROW_THRESHOLDS];
    for (unsigned k = 0; k < ROW_THRESHOLDS; k++)
        at[k] = o->max - far[k];
    o->s->ops->count(o->x, o->n, at, count);
}

/* A threshold that at least `want` logits reach, and not many more where they differ at all. Looks
 * at distances from the maximum: powers of two first, then eighths of what is left, twice. */
static float threshold(struct order *o, uint32_t want)
{
    float near = 0, far[ROW_THRESHOLDS];
    uint32_t count[ROW_THRESHOLDS];
    if (!o->counted)
        count_within(o, far_steps, o->count);
    o->counted = true;
    memcpy(far, far_steps, sizeof far);
    memcpy(count, o->count, sizeof count);
    for (unsigned round = 0;; round++) {
        unsigned k = 0;
        while (k < ROW_THRESHOLDS && count[k] < want)
            k++;
        if (k == ROW_THRESHOLDS)
            return -INFINITY;
        if (round == 2 || count[k] / 4 <= want + FEW)
            return o->max - far[k];
        near = k ? far[k - 1] : near;
        float width = (far[k] - near) / ROW_THRESHOLDS, end = far[k];
        for (k = 0; k < ROW_THRESHOLDS; k++)
            far[k] = near + width * (float)(k + 1);
        far[ROW_THRESHOLDS - 1] = end; /* whatever the rounding, enough reach this one */
        count_within(o, far, count);
    }
}

/* Sorts at least the first `want`, or all there are. */
static void reach(struct order *o, uint32_t want)
{
    if (o->n_sorted >= want || o->n_sorted == o->n)
        return;
    float at = want >= o->n ? -INFINITY : threshold(o, want);
    o->n_sorted = o->s->ops->gather(o->x, o->n, at, o->s->a);
    sort_cands(o->s, o->s->a, o->n_sorted);
}

/* The token in place i < n. Walking on costs a sort only whenever the place has grown eightfold. */
static const struct cand *order_at(struct order *o, uint32_t i)
{
    if (i >= o->n_sorted) {
        uint32_t want = i < FIRST_REACH / 8 ? FIRST_REACH : i > o->n / 8 ? o->n : i * 8;
        reach(o, want);
    }
    return &o->s->a[i];
}

/* ---- the set that is drawn from ---- */

struct set {
    struct order o;
    uint32_t n;   /* the first n of the order */
    double total; /* of their weights */
    float temperature;
};

static double weight_at(struct set *s, uint32_t i)
{
    return (double)s->o.s->w[order_at(&s->o, i)->id];
}

static void keep_top_k(struct set *s, uint32_t k)
{
    struct sl_sampler_scratch *scratch = s->o.s;
    reach(&s->o, k);
    s->n = k;
    s->total = 0;
    for (uint32_t i = 0; i < k; i++) {
        float w = sl_exp_f32((scratch->a[i].key - s->o.max) / s->temperature);
        scratch->w[scratch->a[i].id] = w;
        s->total += (double)w;
    }
}

/* Log probability over the temperature, up to a constant that is the same for all tokens. */
static double exponent(const struct set *s, uint32_t i)
{
    return (double)((s->o.s->a[i].key - s->o.max) / s->temperature);
}

/* Leaves the first m of the order with those of weight 0 taken out, m <= n. */
static void drop_weightless(struct set *s)
{
    struct sl_sampler_scratch *scratch = s->o.s;
    uint32_t m = 0;
    s->total = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        float w = scratch->w[scratch->a[i].id];
        if (w <= 0)
            continue;
        s->total += (double)w;
        scratch->a[m++] = scratch->a[i];
    }
    s->n = s->o.n = s->o.n_sorted = m;
}

/* Keeps the tokens whose log probability is closest to the mean log probability (the negative
 * entropy), as few as make up `mass`; equally close ones in the order. */
static void keep_typical(struct set *s, float mass)
{
    struct sl_sampler_scratch *scratch = s->o.s;
    reach(&s->o, s->n);
    drop_weightless(s);
    double mean = 0;
    for (uint32_t i = 0; i < s->n; i++)
        mean += weight_at(s, i) * exponent(s, i);
    mean /= s->total;
    for (uint32_t i = 0; i < s->n; i++) {
        float far = (float)(exponent(s, i) - mean);
        scratch->c[i] = (struct cand){far < 0 ? far + 0.0f : 0.0f - far, i};
    }
    sort_cands(scratch, scratch->c, s->n);
    double sum = 0, enough = (double)mass * s->total;
    for (uint32_t k = 0; k < s->n; k++) {
        uint32_t id = scratch->a[scratch->c[k].id].id;
        if (k && sum >= enough)
            scratch->w[id] = 0;
        else
            sum += (double)scratch->w[id];
    }
    drop_weightless(s);
}

static void keep_top_p(struct set *s, float mass)
{
    double sum = 0, enough = (double)mass * s->total;
    uint32_t i = 0;
    while (i < s->n) {
        sum += weight_at(s, i++);
        if (sum >= enough)
            break;
    }
    s->n = i;
    s->total = sum;
}

static void keep_min_p(struct set *s, float share)
{
    double sum = 0, least = (double)share * weight_at(s, 0), w;
    uint32_t i = 0;
    for (; i < s->n && (w = weight_at(s, i)) >= least; i++)
        sum += w;
    s->n = i;
    s->total = sum;
}

static uint32_t draw(struct set *s, float u)
{
    double sum = 0, target = (double)u * s->total;
    uint32_t last = order_at(&s->o, 0)->id;
    for (uint32_t i = 0; i < s->n; i++) {
        double w = weight_at(s, i);
        if (w <= 0)
            break;
        last = order_at(&s->o, i)->id;
        sum += w;
        if (sum > target)
            break;
    }
    return last;
}

static uint32_t choose(const struct sl_sampling *p, const struct order *o, float u)
{
    struct set s = {.o = *o, .n = o->n, .temperature = p->temperature};
    if (p->top_k > 0 && (uint32_t)p->top_k < o->n)
        keep_top_k(&s, (uint32_t)p->top_k);
    else
        s.total = o->s->ops->weights(o->x, o->n, o->max, p->temperature, o->s->w);
    if (p->typical_p < 1)
        keep_typical(&s, p->typical_p);
    if (p->top_p < 1)
        keep_top_p(&s, p->top_p);
    if (p->min_p > 0)
        keep_min_p(&s, p->min_p);
    return draw(&s, u);
}

/* ---- what changes the logits ---- */

static float penalised(const struct sl_sampling *p, float x, uint32_t n_out)
{
    float n = (float)(n_out & ~IN_PROMPT);
    if (p->repetition_penalty != 1)
        x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    if (n > 0) {
        x = x - p->frequency_penalty * n;
        x = x - p->presence_penalty;
    }
    return x > FLT_MAX ? FLT_MAX : x;
}

static void mask(float *logits, uint32_t n_vocab, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < n_vocab)
            logits[ids[i]] = -INFINITY;
}

struct edits {
    bool bias, penalties, model_stops, own_stops;
};

static struct edits edits_of(const struct sl_sampling *p, const struct sl_counts *c,
                             uint32_t n_done, uint32_t n_stops)
{
    bool early = n_done < p->min_tokens;
    bool penalty =
        p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
    return (struct edits){.bias = p->n_bias != 0,
                          .penalties = penalty && c && c->n_slots,
                          .model_stops = n_stops && (early || p->ignore_eos),
                          .own_stops = p->n_stop_ids && early};
}

static void apply(struct edits e, const struct sl_sampling *p, float *logits, uint32_t n_vocab,
                  const struct sl_counts *c)
{
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias[i].token < n_vocab)
            logits[p->bias[i].token] += p->bias[i].bias;
    for (uint32_t i = 0; e.penalties && i < c->n_slots; i++)
        if (c->keys[i] && c->keys[i] <= n_vocab)
            logits[c->keys[i] - 1] = penalised(p, logits[c->keys[i] - 1], c->n_out[i]);
    if (e.own_stops)
        mask(logits, n_vocab, p->stop_ids, p->n_stop_ids);
}

/* ---- the whole ---- */

static uint32_t first_of(const float *x, uint32_t n, float value)
{
    uint32_t i = 0;
    while (i + 1 < n && x[i] != value)
        i++;
    return i;
}

static void fill_top(struct order o, uint32_t n_top, float max, float log_sum,
                     struct sl_sampled *out)
{
    n_top = n_top < SL_LOGPROBS_MAX ? n_top : SL_LOGPROBS_MAX;
    n_top = n_top < o.n ? n_top : o.n;
    reach(&o, n_top);
    out->n_top = n_top;
    for (uint32_t i = 0; i < n_top; i++)
        out->top[i] = (struct sl_token_prob){o.s->a[i].id, o.s->a[i].key - max - log_sum};
}

enum sl_status sl_sample(const struct sl_sampling *p, float *logits, uint32_t n_vocab, float max,
                         float log_sum, const struct sl_counts *counts, uint32_t choice,
                         uint32_t position, uint32_t n_done, const uint32_t *stops,
                         uint32_t n_stops, struct sl_sampler_scratch *scratch,
                         struct sl_sampled *out)
{
    sl_assert(n_vocab && n_vocab <= scratch->n_max);
    out->n_top = 0;
    out->logprob = 0;
    struct order o = {.s = scratch, .x = logits, .n = n_vocab};
    if (!scratch->ops->max(logits, n_vocab, &o.max) || !isfinite(o.max))
        return SL_FAILED;
    if (p->want_logprob && p->n_logprobs)
        fill_top(o, p->n_logprobs, max, log_sum, out);

    struct edits e = edits_of(p, counts, n_done, n_stops);
    const float *raw = logits;
    if (e.bias || e.penalties || e.model_stops || e.own_stops) {
        if (p->want_logprob)
            raw = memcpy(scratch->raw, logits, n_vocab * sizeof *logits);
        apply(e, p, logits, n_vocab, counts);
        if (e.model_stops)
            mask(logits, n_vocab, stops, n_stops);
        if (!scratch->ops->max(logits, n_vocab, &o.max) || !isfinite(o.max))
            return SL_FAILED; /* nothing is left to choose from */
    }
    if (p->temperature == 0)
        out->token = first_of(logits, n_vocab, o.max);
    else
        out->token = choose(p, &o, sl_random_unit(p->seed, choice, position, 0));
    if (p->want_logprob)
        out->logprob = raw[out->token] - max - log_sum;
    return SL_OK;
}
