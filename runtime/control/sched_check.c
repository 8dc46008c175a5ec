/* The scheduler's invariants, for tests: allocates and takes time in the order of all pages. */
#include "sched_priv.h"

#include <stdlib.h>
#include <string.h>

struct check {
    const struct sl_sched *s;
    uint32_t *refs; /* [n_pages] counted from the page tables */
    uint32_t n_live;
    struct sl_err *err;
};

#define BROKEN(c, ...) sl_fail((c)->err, SL_FAILED, "scheduler: " __VA_ARGS__)

static unsigned long long num(uint64_t x)
{
    return x;
}

/* Counters of a sequence and that the tables know it. */
static enum sl_status check_seq(struct check *c, const struct sl_seq *q)
{
    c->n_live++;
    if (sl_sched_find(c->s, q->id) != q)
        return BROKEN(c, "sequence %llu is not found by its id", num(q->id));
    if (!q->n_prompt || q->n_prompt > q->n_tokens || q->n_tokens >= q->n_max ||
        q->n_computed >= q->n_tokens)
        return BROKEN(c, "sequence %llu has prompt %u, tokens %u of %u, computed %u", num(q->id),
                      q->n_prompt, q->n_tokens, q->n_max, q->n_computed);
    if (!q->tenant->n_live)
        return BROKEN(c, "tenant of sequence %llu counts as idle", num(q->id));
    if (q->cancelled && !q->in_step)
        return BROKEN(c, "sequence %llu is cancelled and stays", num(q->id));
    if (q->in_step && !c->s->in_flight)
        return BROKEN(c, "sequence %llu is in a step that is over", num(q->id));
    return SL_OK;
}

static enum sl_status check_page(struct check *c, const struct sl_seq *q, uint32_t i)
{
    const struct sl_kv_pool *kv = &c->s->kv;
    uint32_t page = q->pages[i], size = kv->page_size;
    if (page >= kv->n_pages)
        return BROKEN(c, "sequence %llu has page %u of %u", num(q->id), page, kv->n_pages);
    const struct sl_kv_page *p = &kv->pages[page];
    c->refs[page]++;
    bool written = i >= q->n_computed / size;
    if (written && (p->refs != 1 || p->indexed))
        return BROKEN(c, "page %u, written by sequence %llu, has %u references%s", page, num(q->id),
                      p->refs, p->indexed ? " and is indexed" : "");
    if (!p->indexed)
        return SL_OK;
    if (!q->caching || i >= q->n_keys || memcmp(p->key, q->keys[i], 32) != 0)
        return BROKEN(c, "page %u of sequence %llu is indexed under another key", page, num(q->id));
    if (memcmp(kv->tokens + (size_t)page * size, q->tokens + (size_t)i * size,
               size * sizeof *q->tokens) != 0)
        return BROKEN(c, "page %u of sequence %llu is indexed with other tokens", page, num(q->id));
    return SL_OK;
}

static enum sl_status check_running(struct check *c, const struct sl_list *head,
                                    enum seq_state state, uint32_t *n)
{
    const struct sl_seq *before = NULL;
    for (const struct sl_list *l = head->next; l != head; l = l->next) {
        const struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
        enum sl_status status = check_seq(c, q);
        if (status)
            return status;
        ++*n;
        if (q->state != state)
            return BROKEN(c, "sequence %llu is on the wrong list", num(q->id));
        if (state == SEQ_PREFILL && before && !sl_seq_before(before, q))
            return BROKEN(c, "prefill %llu is out of rank", num(q->id));
        if (state == SEQ_DECODE && q->n_computed != q->n_tokens - 1)
            return BROKEN(c, "decode %llu has computed %u of %u", num(q->id), q->n_computed,
                          q->n_tokens);
        if (q->n_computed + q->want > q->n_pages * c->s->cfg.page_size)
            return BROKEN(c, "sequence %llu has %u pages for %u positions", num(q->id), q->n_pages,
                          q->n_computed + q->want);
        for (uint32_t i = 0; i < q->n_pages && !status; i++)
            status = check_page(c, q, i);
        if (status)
            return status;
        before = q;
    }
    return SL_OK;
}

static enum sl_status check_waiting(struct check *c)
{
    const struct sl_sched *s = c->s;
    const struct sl_seq *before = NULL;
    uint32_t n = 0;
    for (const struct sl_list *l = s->arrivals.next; l != &s->arrivals; l = l->next) {
        const struct sl_seq *q = SL_ENTRY(l, struct sl_seq, by_arrival);
        enum sl_status status = check_seq(c, q);
        if (status)
            return status;
        n++;
        if (q->state != SEQ_WAITING || q->n_pages || q->n_computed || q->want)
            return BROKEN(c, "sequence %llu waits with %u pages", num(q->id), q->n_pages);
        if (before && before->arrival >= q->arrival)
            return BROKEN(c, "sequence %llu is out of the order of arrival", num(q->id));
        if (q->lane->priority != q->priority || (q->lane->tenant && q->lane->tenant != q->tenant))
            return BROKEN(c, "sequence %llu waits in the wrong lane", num(q->id));
        before = q;
    }
    if (n != s->n_waiting)
        return BROKEN(c, "%u wait, counted %u", s->n_waiting, n);
    return SL_OK;
}

static enum sl_status check_lanes(struct check *c)
{
    const struct sl_sched *s = c->s;
    const struct sl_lane *before = NULL;
    uint32_t n = 0;
    for (const struct sl_list *l = s->lanes.next; l != &s->lanes; l = l->next) {
        const struct sl_lane *lane = SL_ENTRY(l, struct sl_lane, link);
        if (sl_list_empty(&lane->seqs))
            return BROKEN(c, "an empty lane of priority %d", lane->priority);
        if (before && (before->priority > lane->priority ||
                       (before->priority == lane->priority && !lane->tenant)))
            return BROKEN(c, "lane of priority %d is out of order", lane->priority);
        for (const struct sl_list *q = lane->seqs.next; q != &lane->seqs; q = q->next)
            n++;
        before = lane;
    }
    if (n != s->n_waiting)
        return BROKEN(c, "%u wait, lanes hold %u", s->n_waiting, n);
    return SL_OK;
}

static enum sl_status check_tenants(struct check *c)
{
    const struct sl_sched *s = c->s;
    uint32_t n_live = 0, n_waiting = 0;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        n_live += s->tenant_mem[i].n_live;
        n_waiting += s->tenant_mem[i].n_waiting;
    }
    if (n_live != c->n_live || n_waiting != s->n_waiting || s->by_id.n != c->n_live)
        return BROKEN(c, "%u live and %u waiting; tenants count %u and %u, ids %zu", c->n_live,
                      s->n_waiting, n_live, n_waiting, s->by_id.n);
    return SL_OK;
}

static enum sl_status check_refs(struct check *c)
{
    const struct sl_kv_pool *kv = &c->s->kv;
    for (uint32_t i = 0; i < kv->n_pages; i++)
        if (kv->pages[i].refs != c->refs[i])
            return BROKEN(c, "page %u has %u references, page tables hold %u", i, kv->pages[i].refs,
                          c->refs[i]);
    return sl_kv_check(kv, c->err);
}

static enum sl_status check_all(struct check *c)
{
    const struct sl_sched *s = c->s;
    uint32_t n = 0;
    enum sl_status status = check_running(c, &s->prefills, SEQ_PREFILL, &n);
    if (!status)
        status = check_running(c, &s->decodes, SEQ_DECODE, &n);
    if (!status && (n != s->n_running || n > s->cfg.max_seqs))
        status = BROKEN(c, "%u of %u run, counted %u", s->n_running, s->cfg.max_seqs, n);
    if (!status)
        status = check_waiting(c);
    if (!status)
        status = check_lanes(c);
    if (!status)
        status = check_tenants(c);
    return status ? status : check_refs(c);
}

enum sl_status sl_sched_check(const struct sl_sched *s, struct sl_err *err)
{
    struct check c = {.s = s, .err = err};
    c.refs = calloc(s->kv.n_pages, sizeof *c.refs);
    if (!c.refs)
        return sl_fail(err, SL_NO_MEMORY, "scheduler: no memory to check %u pages", s->kv.n_pages);
    enum sl_status status = check_all(&c);
    free(c.refs);
    return status;
}
