/* Writes and reads plans; see plan_wire.h. Pure. */
#include "plan_wire.h"

#include <sluice/base/limits.h>
#include <sluice/base/mem.h>
#include <string.h>

#define KEY_BYTES    32u
#define EXPORT_WORDS (sizeof(struct wire_export) / sizeof(uint32_t))
#define MAGIC        0x50364c53u /* "SL6P" on a little-endian machine */

static uint32_t seq_pages_max(const struct wire_limits *l)
{
    uint32_t n = l->max_len / l->page_size + (l->max_len % l->page_size != 0);
    return n < l->n_pages ? n : l->n_pages;
}

static uint64_t body_words(const struct wire_head *h)
{
    return 2ull * h->n_tok + 2ull * (h->n_seq + 1ull) + h->n_pages + 2ull * h->n_logits +
           EXPORT_WORDS * h->n_exports;
}

size_t sl_wire_body_max(const struct wire_limits *l)
{
    size_t pages, words, bytes;
    if (!sl_size_mul(l->max_seqs, seq_pages_max(l), &pages))
        return SIZE_MAX;
    uint64_t others =
        2ull * l->max_rows + 2ull * (l->max_seqs + 1ull) + (2ull + EXPORT_WORDS) * l->max_seqs;
    size_t transfer = (size_t)seq_pages_max(l) * (KEY_BYTES + 4) + SL_LIMIT_transfer_note_bytes;
    if (!sl_size_add(pages, (size_t)others, &words) ||
        !sl_size_mul(words, sizeof(uint32_t), &bytes))
        return SIZE_MAX;
    return bytes > transfer ? bytes : transfer;
}

struct wire_head sl_wire_head(enum wire_kind kind, uint64_t step)
{
    return (struct wire_head){.magic = MAGIC, .kind = kind, .step = step};
}

static uint32_t *put(uint32_t *to, const uint32_t *from, size_t n)
{
    if (n)
        memcpy(to, from, n * sizeof *to);
    return to + n;
}

size_t sl_wire_plan_put(const struct sl_plan *p, const struct wire_export *exports,
                        uint32_t n_exports, struct wire_head *head, uint32_t *body)
{
    *head = sl_wire_head(WIRE_PLAN, p->step);
    head->n_seq = p->n_seq;
    head->n_tok = p->n_tok;
    head->n_logits = p->n_logits;
    head->n_pages = p->page_start[p->n_seq];
    head->n_exports = n_exports;
    uint32_t *at = put(body, p->tokens, p->n_tok);
    at = put(at, p->pos, p->n_tok);
    at = put(at, p->q_start, p->n_seq + 1u);
    at = put(at, p->page_start, p->n_seq + 1u);
    at = put(at, p->pages, head->n_pages);
    at = put(at, p->logit_row, p->n_logits);
    at = put(at, p->logit_seq, p->n_logits);
    at = put(at, (const uint32_t *)exports, EXPORT_WORDS * n_exports);
    return (size_t)(at - body) * sizeof *at;
}

static enum sl_status transfer_check(const struct wire_head *h, const struct wire_limits *l,
                                     size_t *body_bytes, struct sl_err *err)
{
    bool has_pages = h->kind == WIRE_EXPORT || h->kind == WIRE_IMPORT;
    uint32_t most = has_pages ? seq_pages_max(l) : 0;
    bool has_note = h->kind != WIRE_END;
    if (h->n_pages > most || (has_pages && !h->n_pages) || h->first > most - h->n_pages ||
        h->n_note > (has_note ? SL_LIMIT_transfer_note_bytes : 0) || h->n_exports || h->n_seq ||
        h->n_tok || h->n_logits)
        return sl_fail(err, SL_INVALID, "plan: a transfer of pages %u + %u with a note of %u bytes",
                       h->first, h->n_pages, h->n_note);
    *body_bytes = (size_t)h->n_pages * (KEY_BYTES + (h->kind == WIRE_IMPORT ? 4 : 0)) + h->n_note;
    return SL_OK;
}

enum sl_status sl_wire_head_check(const struct wire_head *h, const struct wire_limits *l,
                                  size_t *body_bytes, struct sl_err *err)
{
    *body_bytes = 0;
    if (h->magic != MAGIC || h->kind < WIRE_PLAN || h->kind > WIRE_CHARTER || h->zero)
        return sl_fail(err, SL_INVALID, "plan: head of kind %u with magic %08x", h->kind, h->magic);
    if (h->kind >= WIRE_EXPORT)
        return transfer_check(h, l, body_bytes, err);
    if (h->kind != WIRE_PLAN)
        return SL_OK;
    if (h->n_exports > h->n_seq || h->first || h->n_note)
        return sl_fail(err, SL_INVALID, "plan: %u exports of %u sequences", h->n_exports, h->n_seq);
    if (!h->n_seq || h->n_seq > l->max_seqs || !h->n_tok || h->n_tok > l->max_rows ||
        h->n_seq > h->n_tok || h->n_logits > h->n_seq)
        return sl_fail(err, SL_INVALID,
                       "plan: %u sequences, %u rows, %u logits; at most %u sequences and %u rows",
                       h->n_seq, h->n_tok, h->n_logits, l->max_seqs, l->max_rows);
    if (h->n_pages < h->n_seq || h->n_pages > (uint64_t)h->n_seq * seq_pages_max(l))
        return sl_fail(err, SL_INVALID, "plan: page tables of %u entries for %u sequences",
                       h->n_pages, h->n_seq);
    *body_bytes = (size_t)body_words(h) * sizeof(uint32_t);
    return SL_OK;
}

/* Offsets [n + 1] that begin with 0, grow and end with `total`. */
static bool starts_ok(const uint32_t *start, uint32_t n, uint32_t total)
{
    for (uint32_t i = 0; i < n; i++)
        if (start[i] >= start[i + 1])
            return false;
    return start[0] == 0 && start[n] == total;
}

/* Rows of one sequence: positions one after the other, with pages for all of them. */
static bool seq_ok(const struct sl_plan *p, uint32_t s, const struct wire_limits *l)
{
    uint32_t first = p->q_start[s], n = p->q_start[s + 1] - first, pos = p->pos[first];
    if (pos >= l->max_len || n > l->max_len - pos)
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (p->pos[first + i] != pos + i || p->tokens[first + i] >= l->n_vocab)
            return false;
    uint32_t end = pos + n;
    uint32_t need = end / l->page_size + (end % l->page_size != 0);
    uint32_t at = p->page_start[s], n_pages = p->page_start[s + 1] - at;
    for (uint32_t i = 0; i < n_pages; i++)
        if (p->pages[at + i] >= l->n_pages)
            return false;
    return n_pages == need;
}

/* The last row of a sequence each, in order. */
static bool logits_ok(const struct sl_plan *p)
{
    for (uint32_t i = 0; i < p->n_logits; i++) {
        uint32_t s = p->logit_seq[i];
        if (s >= p->n_seq || (i && s <= p->logit_seq[i - 1]) ||
            p->logit_row[i] != p->q_start[s + 1] - 1)
            return false;
    }
    return true;
}

/* In order of their sequences, with no more full pages than the step leaves. */
static bool exports_ok(const struct sl_plan *p, const struct wire_export *x, uint32_t n,
                       const struct wire_limits *l)
{
    for (uint32_t i = 0; i < n; i++) {
        if (x[i].seq >= p->n_seq || (i && x[i].seq <= x[i - 1].seq) ||
            x[i].n_pinned > (p->pos[p->q_start[x[i].seq + 1] - 1] + 1) / l->page_size)
            return false;
    }
    return true;
}

enum sl_status sl_wire_plan_get(const struct wire_head *h, const struct wire_limits *l,
                                const uint32_t *body, struct sl_plan *out,
                                const struct wire_export **exports, struct sl_err *err)
{
    struct sl_plan p = {
        .n_seq = h->n_seq, .n_tok = h->n_tok, .n_logits = h->n_logits, .step = h->step};
    p.tokens = body;
    p.pos = p.tokens + p.n_tok;
    p.q_start = p.pos + p.n_tok;
    p.page_start = p.q_start + p.n_seq + 1;
    p.pages = p.page_start + p.n_seq + 1;
    p.logit_row = p.pages + h->n_pages;
    p.logit_seq = p.logit_row + p.n_logits;
    if (!starts_ok(p.q_start, p.n_seq, p.n_tok) || !starts_ok(p.page_start, p.n_seq, h->n_pages))
        return sl_fail(err, SL_INVALID, "plan: offsets of step %llu do not fit its %u rows",
                       (unsigned long long)h->step, h->n_tok);
    for (uint32_t s = 0; s < p.n_seq; s++)
        if (!seq_ok(&p, s, l))
            return sl_fail(
                err, SL_INVALID,
                "plan: sequence %u of step %llu has a token, position or page out of range", s,
                (unsigned long long)h->step);
    if (!logits_ok(&p))
        return sl_fail(err, SL_INVALID, "plan: rows of logits of step %llu are out of range",
                       (unsigned long long)h->step);
    *exports = (const struct wire_export *)(const void *)(p.logit_seq + p.n_logits);
    if (!exports_ok(&p, *exports, h->n_exports, l))
        return sl_fail(err, SL_INVALID, "plan: exports of step %llu are out of range",
                       (unsigned long long)h->step);
    *out = p;
    return SL_OK;
}

/* --- transfers -------------------------------------------------------------------------------- */

size_t sl_wire_transfer_put(const struct wire_head *h, const struct wire_transfer *t,
                            uint32_t *body)
{
    uint8_t *at = (uint8_t *)body;
    size_t pages = h->kind == WIRE_IMPORT ? h->n_pages * sizeof *t->pages : 0;
    if (pages)
        memcpy(at, t->pages, pages);
    at += pages;
    if (h->n_pages)
        memcpy(at, t->keys, (size_t)h->n_pages * KEY_BYTES);
    at += (size_t)h->n_pages * KEY_BYTES;
    if (h->n_note)
        memcpy(at, t->note, h->n_note);
    return (size_t)(at - (uint8_t *)body) + h->n_note;
}

enum sl_status sl_wire_transfer_get(const struct wire_head *h, const struct wire_limits *l,
                                    const uint32_t *body, struct wire_transfer *out,
                                    struct sl_err *err)
{
    const uint8_t *at = (const uint8_t *)body;
    *out = (struct wire_transfer){0};
    if (h->kind == WIRE_IMPORT) {
        out->pages = body;
        at += h->n_pages * sizeof *body;
        for (uint32_t i = 0; i < h->n_pages; i++)
            if (body[i] >= l->n_pages)
                return sl_fail(err, SL_INVALID, "plan: page %u of %u is to be filled", body[i],
                               l->n_pages);
    }
    if (h->n_pages)
        out->keys = (const uint8_t(*)[32])(const void *)at;
    out->note = at + (size_t)h->n_pages * KEY_BYTES;
    return SL_OK;
}
