/* Planning a step: rows are given out first (decodes, running prefills, admissions), pages taken
 * and sequences preempted on the way; then the arrays of the plan are written. */
#include "sched_priv.h"

#include <string.h>

/* --- pages and preemption --------------------------------------------------------------------- */

/* Takes pages until `n_positions` fit; false when they ran out on the way. */
static bool seq_grow(struct sl_sched *s, struct sl_seq *q, uint32_t n_positions)
{
    uint32_t need = sl_pages_for(s, n_positions);
    while (q->n_pages < need) {
        if (!sl_kv_take(&s->kv, &q->pages[q->n_pages]))
            return false;
        q->n_pages++;
    }
    return true;
}

static void give_rows(struct sl_sched *s, struct sl_seq *q, uint32_t n)
{
    q->want = n;
    s->rows_left -= n;
    s->rows_planned += n;
}

void sl_seq_requeue(struct sl_sched *s, struct sl_seq *q)
{
    q->want = 0;
    s->n_forced -= q->forced;
    q->forced = false;
    sl_seq_release_pages(s, q);
    sl_list_remove(&q->link);
    s->n_running--;
    s->blocked = NULL;
    sl_queue_add_preempted(s, q);
}

static void preempt(struct sl_sched *s, struct sl_seq *q)
{
    s->rows_left += q->want;
    s->rows_planned -= q->want;
    s->stats.n_preempted++;
    q->shielded |= ++q->n_preempted >= SL_SCHED_SHIELD;
    sl_seq_requeue(s, q);
}

static struct sl_seq *last_in_rank(const struct sl_list *head, struct sl_seq *last)
{
    for (struct sl_list *l = head->next; l != head; l = l->next) {
        struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
        if (!last || sl_seq_before(last, q))
            last = q;
    }
    return last;
}

/* Pages for `n_positions` of q, taken from the last in rank while there are none. False when that
 * was q itself, or q is alone and waits for pages that transfers hold. */
static bool grow_or_preempt(struct sl_sched *s, struct sl_seq *q, uint32_t n_positions)
{
    while (!seq_grow(s, q, n_positions)) {
        struct sl_seq *victim = last_in_rank(&s->prefills, last_in_rank(&s->decodes, NULL));
        if (s->n_running == 1) {
            sl_assert(s->kv.n_held); /* else it fits alone: checked at submit */
            return false;
        }
        preempt(s, victim);
        if (victim == q)
            return false;
    }
    return true;
}

static void preempt_forced(struct sl_sched *s)
{
    struct sl_list *const heads[2] = {&s->prefills, &s->decodes};
    for (uint32_t i = 0; i < 2; i++)
        for (struct sl_list *l = heads[i]->next, *next; s->n_forced && l != heads[i]; l = next) {
            next = l->next;
            struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
            if (q->forced)
                preempt(s, q);
        }
}

/* --- prefix cache ----------------------------------------------------------------------------- */

/* Full pages the cache may serve: at least the last token is computed, for its logits. */
static uint32_t shareable_pages(const struct sl_sched *s, const struct sl_seq *q)
{
    uint32_t n = q->caching ? (q->n_tokens - 1) / s->cfg.page_size : 0;
    return n < q->n_keys ? n : q->n_keys;
}

/* Goes on from the cache as far as it reaches, also for a prompt already begun: another sequence
 * may have been faster. A page begun is given back for the full one. */
static void adopt_cached(struct sl_sched *s, struct sl_seq *q)
{
    uint32_t size = s->cfg.page_size, most = shareable_pages(s, q), page;
    for (uint32_t i = q->n_computed / size; i < most; i++) {
        if (!sl_prefix_find(&s->kv, q->keys[i], q->tokens + (size_t)i * size, &page))
            return;
        if (i < q->n_pages)
            sl_kv_release(&s->kv, q->pages[i]);
        else
            q->n_pages++;
        q->pages[i] = page;
        uint32_t n_found = (i + 1) * size - q->n_computed;
        q->n_computed += n_found;
        q->n_cached += n_found;
        q->n_indexed = i + 1;
        s->stats.prefix_hits += n_found;
        if (q->n_charged < q->n_computed)
            q->n_charged = q->n_computed;
    }
}

/* Whether another prompt of this step completes the very page q would go on with: q then waits for
 * its commit and takes the page from the cache instead of computing it as well. */
static bool is_in_making(const struct sl_sched *s, const struct sl_seq *q)
{
    uint32_t i = q->n_computed / s->cfg.page_size;
    if (i >= shareable_pages(s, q))
        return false;
    for (struct sl_list *l = s->prefills.next; l != &s->prefills; l = l->next) {
        const struct sl_seq *o = SL_ENTRY(l, struct sl_seq, link);
        if (o->want && i < o->n_keys && (o->n_computed + o->want) / s->cfg.page_size > i &&
            !memcmp(o->keys[i], q->keys[i], sizeof q->keys[i]))
            return true;
    }
    return false;
}

/* --- rows ------------------------------------------------------------------------------------- */

/* Served ones go to the back, so that a budget below their number reaches everybody in turn. */
static void plan_decodes(struct sl_sched *s)
{
    while (s->rows_left && !sl_list_empty(&s->decodes)) {
        struct sl_seq *q = SL_ENTRY(s->decodes.next, struct sl_seq, link);
        if (q->want)
            return;
        if (!grow_or_preempt(s, q, q->n_tokens)) {
            if (q->state == SEQ_DECODE)
                return;
            continue;
        }
        give_rows(s, q, 1);
        sl_list_remove(&q->link);
        sl_list_push_back(&s->decodes, &q->link);
    }
}

/* As many rows of the prompt as budget and pages allow. */
static void plan_chunk(struct sl_sched *s, struct sl_seq *q)
{
    if (is_in_making(s, q))
        return;
    uint32_t want = q->n_tokens - q->n_computed;
    if (want > s->rows_left)
        want = s->rows_left;
    if (!seq_grow(s, q, q->n_computed + want))
        want = q->n_pages * s->cfg.page_size - q->n_computed;
    give_rows(s, q, want);
}

static void plan_prefills(struct sl_sched *s)
{
    struct sl_list *l = s->prefills.next;
    for (; s->rows_left && l != &s->prefills; l = l->next) {
        struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
        adopt_cached(s, q);
        plan_chunk(s, q);
    }
    /* A prompt waits for pages while anything else runs; if nothing does, the first takes them. */
    if (s->rows_planned || sl_list_empty(&s->prefills))
        return;
    struct sl_seq *first = SL_ENTRY(s->prefills.next, struct sl_seq, link);
    if (grow_or_preempt(s, first, first->n_computed + 1)) /* first in rank: never the victim */
        plan_chunk(s, first);
}

/* --- admission -------------------------------------------------------------------------------- */

uint32_t sl_sched_promised(const struct sl_sched *s)
{
    uint64_t n = 0;
    for (struct sl_list *l = s->prefills.next; l != &s->prefills; l = l->next) {
        const struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
        n += sl_pages_for(s, q->n_tokens) - q->n_pages;
    }
    return n < s->kv.n_pages ? (uint32_t)n : s->kv.n_pages;
}

/* Available pages that admitting q would use up: what it must take, and hits nobody uses now. */
static uint32_t pages_needed(const struct sl_sched *s, const struct sl_seq *q)
{
    uint32_t need = sl_pages_for(s, q->n_tokens), most = shareable_pages(s, q);
    bool unused;
    for (uint32_t i = 0; i < most; i++) {
        if (!sl_prefix_peek(&s->kv, q->keys[i], q->tokens + (size_t)i * s->cfg.page_size, &unused))
            break;
        need -= !unused;
    }
    return need;
}

/* Its whole prompt must fit beside what is promised, with a page for each runner to grow into. */
static bool fits(struct sl_sched *s, const struct sl_seq *q)
{
    uint32_t available = sl_kv_available(&s->kv);
    if (!s->n_running)
        return true;
    if (s->blocked == q && available <= s->blocked_available)
        return false; /* nothing was given back since it was counted */
    uint64_t need = (uint64_t)pages_needed(s, q) + sl_sched_promised(s) + s->n_running;
    if (need <= available)
        return true;
    s->blocked = q;
    s->blocked_available = available;
    return false;
}

static void insert_prefill(struct sl_sched *s, struct sl_seq *q)
{
    struct sl_list *at = s->prefills.prev;
    while (at != &s->prefills && sl_seq_before(q, SL_ENTRY(at, struct sl_seq, link)))
        at = at->prev;
    sl_list_insert_after(at, &q->link);
}

static void admit(struct sl_sched *s, struct sl_seq *q)
{
    q->state = SEQ_PREFILL;
    q->n_cached = 0;
    s->n_running++;
    insert_prefill(s, q);
    if (q->caching)
        s->stats.prefix_queries += q->n_tokens;
    adopt_cached(s, q);
    sl_tenant_charge(q, q->n_tokens);
    plan_chunk(s, q);
}

static void plan_admissions(struct sl_sched *s, uint64_t now_ns)
{
    while (s->rows_left && s->n_running < s->cfg.max_seqs) {
        bool aged;
        struct sl_seq *q = sl_queue_next(s, now_ns, &aged);
        if (!q || !fits(s, q))
            return;
        sl_queue_admit(s, q, aged);
        admit(s, q);
    }
}

/* --- the arrays ------------------------------------------------------------------------------- */

static void write_seq(struct sl_sched *s, struct sl_seq *q)
{
    struct sl_plan *p = &s->plan;
    uint32_t end = q->n_computed + q->want, row = p->n_tok, at = s->page_start[p->n_seq];
    uint32_t n_pages = sl_pages_for(s, end);
    memcpy(s->tokens + row, q->tokens + q->n_computed, q->want * sizeof *s->tokens);
    for (uint32_t i = 0; i < q->want; i++)
        s->pos[row + i] = q->n_computed + i;
    memcpy(s->pages + at, q->pages, n_pages * sizeof *s->pages);
    if (end == q->n_tokens && !q->prefill_only) {
        s->logit_row[p->n_logits] = row + q->want - 1;
        s->logit_seq[p->n_logits++] = p->n_seq;
    }
    q->in_step = true;
    s->ids[p->n_seq] = q->id;
    s->users[p->n_seq] = q->user;
    s->step_seqs[p->n_seq++] = q;
    p->n_tok = row + q->want;
    s->q_start[p->n_seq] = p->n_tok;
    s->page_start[p->n_seq] = at + n_pages;
}

static void write_plan(struct sl_sched *s)
{
    struct sl_list *const heads[2] = {&s->decodes, &s->prefills};
    s->plan.n_seq = s->plan.n_tok = s->plan.n_logits = 0;
    s->q_start[0] = s->page_start[0] = 0;
    for (uint32_t i = 0; i < 2; i++)
        for (struct sl_list *l = heads[i]->next; l != heads[i]; l = l->next) {
            struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
            if (q->want)
                write_seq(s, q);
        }
    sl_assert(s->plan.n_tok == s->rows_planned);
}

const struct sl_plan *sl_sched_plan(struct sl_sched *s, uint32_t budget, uint64_t now_ns)
{
    sl_assert(!s->in_flight);
    sl_sched_expire(s, now_ns);
    s->rows_planned = 0;
    s->rows_left = budget < s->cfg.max_batch_tokens ? budget : s->cfg.max_batch_tokens;
    s->rows_left += !s->rows_left; /* a budget of 0 could never end */
    preempt_forced(s);
    plan_decodes(s);
    plan_prefills(s);
    plan_admissions(s, now_ns);
    if (!s->rows_planned)
        return NULL;
    write_plan(s);
    s->in_flight = true;
    s->plan.step++;
    return &s->plan;
}
