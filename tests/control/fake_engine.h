/* A stand-in for the model: the KV entry of a position is a hash of everything before it, read back
 * through the page table. A page shared wrongly, written twice, freed too early or filled by a
 * failed step changes what is sampled, so comparing tokens compares the whole KV. */
#ifndef SL_TESTS_CONTROL_FAKE_ENGINE_H
#define SL_TESTS_CONTROL_FAKE_ENGINE_H

#include <sluice/control/sched.h>
#include <sluice/control/router.h>
#include <stdlib.h>
#include <string.h>

struct rng {
    uint64_t x;
};
/* SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline uint64_t rng_next(struct rng *r)
{
    return mix64(r->x += 0x9e3779b97f4a7c15ull);
}
/* Uniform enough in [0, n). */
static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(rng_next(r) % n);
}
/* Any policy; the one with a large table of its own seldom, as clearing it takes most of the time.
 */
static inline enum sl_route_policy draw_policy(struct rng *r)
{
    static const enum sl_route_policy some[] = {SL_ROUTE_LEAST_LOAD, SL_ROUTE_KV, SL_ROUTE_SESSION,
                                                SL_ROUTE_POWER_OF_TWO};
    return rng_below(r, 16) ? some[rng_below(r, 4)] : SL_ROUTE_PREFIX_AFFINITY;
}
static inline bool rng_chance(struct rng *r, uint32_t one_in)
{
    return rng_below(r, one_in) == 0;
}

enum { FAKE_VOCAB = 97 };

static inline uint64_t fake_entry(uint64_t before, uint32_t token)
{
    return mix64(before * 31 + token + 1);
}
static inline uint32_t fake_sample(uint64_t entry)
{
    return (uint32_t)(mix64(entry ^ 0x5bd1e995u) % FAKE_VOCAB);
}
/* The model's continuation of tokens[n], from nothing but the tokens. */
static inline uint32_t fake_next(uint64_t salt, const uint32_t *tokens, uint32_t n)
{
    uint64_t h = salt;
    for (uint32_t i = 0; i < n; i++)
        h = fake_entry(h, tokens[i]);
    return fake_sample(h);
}

struct fake_kv {
    uint32_t n_pages, page_size;
    uint64_t *entries; /* [n_pages, page_size] */
    uint32_t *writer;  /* [n_pages] sequence of this plan that writes it, + 1 */
};

static inline void fake_kv_open(struct fake_kv *kv, uint32_t n_pages, uint32_t page_size)
{
    kv->n_pages = n_pages;
    kv->page_size = page_size;
    kv->entries = calloc((size_t)n_pages * page_size, sizeof *kv->entries);
    kv->writer = calloc(n_pages, sizeof *kv->writer);
}
static inline void fake_kv_close(struct fake_kv *kv)
{
    free(kv->entries);
    free(kv->writer);
}

/* NULL, or what is wrong with the plan. */
static inline const char *fake_check_plan(struct fake_kv *kv, const struct sl_plan *p,
                                          uint32_t budget)
{
    uint32_t logit = 0;
    memset(kv->writer, 0, kv->n_pages * sizeof *kv->writer);
    if (!p->n_seq || !p->n_tok || p->n_tok > budget || p->q_start[p->n_seq] != p->n_tok)
        return "rows do not fit";
    for (uint32_t s = 0; s < p->n_seq; s++) {
        uint32_t first = p->q_start[s], end = p->q_start[s + 1];
        if (end <= first)
            return "sequence without rows";
        for (uint32_t r = first; r < end; r++)
            if (p->pos[r] != p->pos[first] + (r - first))
                return "positions are not consecutive";
        if (p->page_start[s + 1] - p->page_start[s] != p->pos[end - 1] / kv->page_size + 1)
            return "page table does not end with the last row";
        for (uint32_t i = p->pos[first] / kv->page_size; i <= p->pos[end - 1] / kv->page_size; i++)
            kv->writer[p->pages[p->page_start[s] + i]] = s + 1;
        while (logit < p->n_logits && p->logit_seq[logit] == s)
            if (p->logit_row[logit++] != end - 1)
                return "logits of a row that is not the last";
    }
    if (logit != p->n_logits)
        return "logit rows out of order";
    for (uint32_t s = 0; s < p->n_seq; s++)
        for (uint32_t i = p->page_start[s]; i < p->page_start[s + 1]; i++)
            if (kv->writer[p->pages[i]] && kv->writer[p->pages[i]] != s + 1)
                return "a page that is written is in two page tables";
    return NULL;
}

/* Computes the rows of sequence s; the sampled token of its last row. `poison` spoils what is
 * written, as a failed step does. */
static inline uint32_t fake_compute(struct fake_kv *kv, const struct sl_plan *p, uint32_t s,
                                    uint64_t salt, uint64_t poison)
{
    const uint32_t *pages = p->pages + p->page_start[s];
    uint32_t size = kv->page_size;
    uint64_t entry = 0;
    for (uint32_t r = p->q_start[s]; r < p->q_start[s + 1]; r++) {
        uint32_t pos = p->pos[r];
        uint64_t before =
            pos ? kv->entries[(size_t)pages[(pos - 1) / size] * size + (pos - 1) % size] : salt;
        entry = fake_entry(before, p->tokens[r]) ^ poison;
        kv->entries[(size_t)pages[pos / size] * size + pos % size] = entry;
    }
    return fake_sample(entry);
}

#endif
