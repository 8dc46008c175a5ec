/* The scheduler's life: open, submit, cancel, commit, endings. Planning is in sched_plan.c. */
#include "sched_priv.h"

#include <sluice/base/mem.h>
#include <sluice/base/mutant.h>
#include <stdlib.h>
#include <string.h>

/* --- open, close ------------------------------------------------------------------------------ */

static enum sl_status check_config(const struct sl_sched_config *c, struct sl_err *err)
{
    if (!c->max_seqs || !c->max_batch_tokens || c->max_len < 2)
        return sl_fail(err, SL_INVALID, "scheduler: %u sequences, %u rows, %u positions",
                       c->max_seqs, c->max_batch_tokens, c->max_len);
    if (c->max_seqs > 1u << 20 || c->queue_max > 1u << 20 || c->max_batch_tokens > 1u << 24)
        return sl_fail(err, SL_INVALID, "scheduler: %u sequences, %u waiting, %u rows are too many",
                       c->max_seqs, c->queue_max, c->max_batch_tokens);
    return SL_OK;
}

static bool take_plan_memory(struct sl_sched *s)
{
    size_t seqs = s->cfg.max_seqs, rows = s->cfg.max_batch_tokens, n_pages;
    uint32_t seq_pages = sl_pages_for(s, s->cfg.max_len);
    if (seq_pages > s->cfg.n_pages)
        seq_pages = s->cfg.n_pages;
    if (!sl_size_mul(seqs, seq_pages, &n_pages))
        return false;
    s->tokens = calloc(rows, sizeof *s->tokens);
    s->pos = calloc(rows, sizeof *s->pos);
    s->q_start = calloc(seqs + 1, sizeof *s->q_start);
    s->page_start = calloc(seqs + 1, sizeof *s->page_start);
    s->pages = calloc(n_pages, sizeof *s->pages);
    s->logit_row = calloc(seqs, sizeof *s->logit_row);
    s->logit_seq = calloc(seqs, sizeof *s->logit_seq);
    s->ids = calloc(seqs, sizeof *s->ids);
    s->users = calloc(seqs, sizeof(void *));
    s->step_seqs = calloc(seqs, sizeof(struct sl_seq *));
    if (!s->tokens || !s->pos || !s->q_start || !s->page_start || !s->pages || !s->logit_row ||
        !s->logit_seq || !s->ids || !s->users || !s->step_seqs)
        return false;
    s->plan = (struct sl_plan){.tokens = s->tokens,
                               .pos = s->pos,
                               .q_start = s->q_start,
                               .page_start = s->page_start,
                               .pages = s->pages,
                               .id = s->ids,
                               .user = s->users,
                               .logit_row = s->logit_row,
                               .logit_seq = s->logit_seq};
    return true;
}

static bool deadline_less(const struct sl_heap_node *a, const struct sl_heap_node *b)
{
    const struct sl_seq *x = SL_ENTRY(a, struct sl_seq, by_deadline);
    const struct sl_seq *y = SL_ENTRY(b, struct sl_seq, by_deadline);
    if (x->deadline_ns != y->deadline_ns)
        return x->deadline_ns < y->deadline_ns;
    return x->arrival < y->arrival;
}

static bool take_tables(struct sl_sched *s)
{
    uint32_t n_buckets = 64;
    while (n_buckets < s->cfg.queue_max + s->cfg.max_seqs)
        n_buckets *= 2;
    s->id_buckets = calloc(n_buckets, sizeof(struct sl_hash_node *));
    if (!s->id_buckets)
        return false;
    sl_hash_init(&s->by_id, s->id_buckets, n_buckets);
    sl_heap_init(&s->deadlines, deadline_less);
    sl_list_init(&s->prefills);
    sl_list_init(&s->decodes);
    sl_list_init(&s->ended);
    return sl_queue_init(s);
}

enum sl_status sl_sched_open(const struct sl_sched_config *cfg, struct sl_sched **out,
                             struct sl_err *err)
{
    enum sl_status status = check_config(cfg, err);
    if (status)
        return status;
    struct sl_sched *s = calloc(1, sizeof *s);
    if (!s)
        return sl_fail(err, SL_NO_MEMORY, "scheduler: no memory");
    s->cfg = *cfg;
    sl_assert(!cfg->events || cfg->events->page_size == cfg->page_size);
    status = sl_kv_open(&s->kv, cfg->n_pages, cfg->page_size, cfg->prefix_cache, err);
    s->kv.events = cfg->prefix_cache ? cfg->events : NULL;
    if (!status && !(take_tables(s) && take_plan_memory(s)))
        status = sl_fail(err, SL_NO_MEMORY, "scheduler: no memory for %u sequences of %u pages",
                         cfg->max_seqs, cfg->n_pages);
    if (status) {
        sl_sched_close(s);
        return status;
    }
    *out = s;
    return SL_OK;
}

static void free_seqs(struct sl_list *head)
{
    while (head->next && !sl_list_empty(head)) {
        struct sl_seq *q = SL_ENTRY(head->next, struct sl_seq, link);
        sl_list_remove(&q->link);
        free(q);
    }
}

void sl_sched_close(struct sl_sched *s)
{
    if (!s)
        return;
    free_seqs(&s->prefills);
    free_seqs(&s->decodes);
    free_seqs(&s->ended);
    for (struct sl_list *l = s->lanes.next; l && l != &s->lanes; l = l->next)
        free_seqs(&SL_ENTRY(l, struct sl_lane, link)->seqs);
    sl_kv_close(&s->kv);
    free(s->lane_mem);
    free(s->tenant_mem);
    free(s->id_buckets);
    free(s->tenant_buckets);
    free(s->tokens);
    free(s->pos);
    free(s->q_start);
    free(s->page_start);
    free(s->pages);
    free(s->logit_row);
    free(s->logit_seq);
    free(s->ids);
    free(s->users);
    free(s->step_seqs);
    free(s);
}

/* --- submit ----------------------------------------------------------------------------------- */

static uint64_t id_hash(uint64_t id)
{
    return sl_hash64(&id, sizeof id, 0);
}

struct sl_seq *sl_sched_find(const struct sl_sched *s, uint64_t id)
{
    for (struct sl_hash_node *n = sl_hash_first(&s->by_id, id_hash(id)); n; n = sl_hash_next(n)) {
        struct sl_seq *q = SL_ENTRY(n, struct sl_seq, by_id);
        if (q->id == id)
            return q;
    }
    return NULL;
}

/* Tokens the sequence may have in the end. The last one is never computed. */
static uint32_t tokens_max(const struct sl_sched *s, const struct sl_sched_request *r)
{
    uint64_t most = (uint64_t)s->cfg.n_pages * s->cfg.page_size + 1;
    if (r->max_new)
        most = (uint64_t)r->n_prompt + r->max_new;
    return most < s->cfg.max_len ? (uint32_t)most : s->cfg.max_len;
}

static enum sl_status check_request(const struct sl_sched *s, const struct sl_sched_request *r,
                                    struct sl_err *err)
{
    if (!r->n_prompt || r->n_prompt > r->n_tokens)
        return sl_fail_param(err, SL_INVALID, "prompt", "prompt of %u tokens out of %u",
                             r->n_prompt, r->n_tokens);
    if (r->n_tokens >= s->cfg.max_len)
        return sl_fail_param(err, SL_TOO_LONG, "prompt",
                             "%u tokens leave no room in a context of %u", r->n_tokens,
                             s->cfg.max_len);
    if (r->max_new && r->n_tokens - r->n_prompt >= r->max_new)
        return sl_fail_param(err, SL_INVALID, "max_tokens", "%u of %u tokens are there already",
                             r->n_tokens - r->n_prompt, r->max_new);
    uint32_t most = tokens_max(s, r);
    uint32_t need = sl_pages_for(s, (most > r->n_tokens ? most - 1 : r->n_tokens));
    if (need > s->cfg.n_pages)
        return sl_fail_param(err, SL_TOO_LONG, "prompt",
                             "%u tokens need %u pages of the KV cache's %u", most, need,
                             s->cfg.n_pages);
    if (sl_sched_find(s, r->id))
        return sl_fail(err, SL_INVALID, "request id %llu is in use", (unsigned long long)r->id);
    if (s->n_waiting + s->n_ended >= s->cfg.queue_max)
        return sl_fail(err, SL_QUEUE_FULL, "%u requests are waiting", s->n_waiting);
    return SL_OK;
}

/* One block: the sequence, its keys, tokens and page table. */
static struct sl_seq *seq_new(const struct sl_sched *s, const struct sl_sched_request *r)
{
    uint32_t n_max = tokens_max(s, r);
    size_t n_pages = sl_pages_for(s, n_max);
    size_t n_keys = s->cfg.prefix_cache && !r->no_prefix_cache ? n_pages : 0;
    struct sl_seq *q = malloc(sizeof *q + n_keys * 32 + (n_max + n_pages) * sizeof(uint32_t));
    if (!q)
        return NULL;
    *q = (struct sl_seq){.id = r->id,
                         .user = r->user,
                         .deadline_ns = r->deadline_ns,
                         .priority = r->priority,
                         .caching = n_keys != 0,
                         .prefill_only = r->prefill_only,
                         .n_tokens = SL_MUTANT(RESUME_FORGETS) ? r->n_prompt : r->n_tokens,
                         .n_prompt = r->n_prompt,
                         .n_max = n_max};
    q->keys = (uint8_t(*)[32])(void *)(q + 1);
    q->tokens = (uint32_t *)(void *)(q->keys + n_keys);
    q->pages = q->tokens + n_max;
    memcpy(q->tokens, r->tokens, r->n_tokens * sizeof *q->tokens);
    memcpy(q->salt, r->salt, sizeof q->salt);
    if (SL_MUTANT(SALT_IGNORED))
        memset(q->salt, 0, sizeof q->salt);
    return q;
}

/* Keys of the first n pages, as far as they are missing. */
static void seq_make_keys(const struct sl_sched *s, struct sl_seq *q, uint32_t n)
{
    for (; q->n_keys < n; q->n_keys++)
        sl_prefix_key(&s->kv, q->n_keys ? q->keys[q->n_keys - 1] : q->salt,
                      q->tokens + (size_t)q->n_keys * s->cfg.page_size, q->keys[q->n_keys]);
}

enum sl_status sl_sched_submit(struct sl_sched *s, const struct sl_sched_request *r,
                               uint64_t now_ns, struct sl_err *err)
{
    enum sl_status status = check_request(s, r, err);
    if (status)
        return status;
    struct sl_seq *q = seq_new(s, r);
    if (!q)
        return sl_fail(err, SL_NO_MEMORY, "no memory for a request of %u tokens", r->n_tokens);
    q->arrival = s->next_arrival++;
    q->submitted_ns = now_ns;
    if (q->caching)
        seq_make_keys(s, q, q->n_tokens / s->cfg.page_size);
    sl_hash_insert(&s->by_id, &q->by_id, id_hash(q->id));
    if (q->deadline_ns)
        sl_heap_insert(&s->deadlines, &q->by_deadline);
    q->tenant = sl_tenant_get(s, r->tenant);
    sl_queue_add(s, q);
    return SL_OK;
}

/* --- endings ---------------------------------------------------------------------------------- */

void sl_seq_release_pages(struct sl_sched *s, struct sl_seq *q)
{
    while (q->n_pages)
        sl_kv_release(&s->kv, q->pages[--q->n_pages]);
    q->n_computed = q->n_indexed = 0;
}

/* Takes a live sequence out of every table. */
static void detach(struct sl_sched *s, struct sl_seq *q)
{
    if (q->state == SEQ_WAITING) {
        sl_queue_remove(s, q);
    } else {
        sl_list_remove(&q->link);
        sl_seq_release_pages(s, q);
        s->n_running--;
        s->n_forced -= q->forced;
        s->blocked = NULL;
    }
    sl_hash_remove(&s->by_id, &q->by_id);
    if (q->deadline_ns)
        sl_heap_remove(&s->deadlines, &q->by_deadline);
    sl_tenant_put(s, q->tenant);
    q->state = SEQ_ENDED;
}

static void end_and_report(struct sl_sched *s, struct sl_seq *q, enum sl_end end)
{
    q->n_pages -= SL_MUTANT(PAGE_LEAKED) && end == SL_END_CANCELLED && q->n_pages;
    detach(s, q);
    q->end = end;
    sl_list_push_back(&s->ended, &q->link);
    s->n_ended++;
}

bool sl_sched_next_ended(struct sl_sched *s, struct sl_ended *out)
{
    if (sl_list_empty(&s->ended))
        return false;
    struct sl_seq *q = SL_ENTRY(s->ended.next, struct sl_seq, link);
    *out = (struct sl_ended){q->id, q->user, q->end};
    sl_list_remove(&q->link);
    s->n_ended--;
    free(q);
    return true;
}

void sl_sched_cancel(struct sl_sched *s, uint64_t id)
{
    struct sl_seq *q = sl_sched_find(s, id);
    if (!q)
        return;
    if (q->in_step)
        q->cancelled = true;
    else
        end_and_report(s, q, SL_END_CANCELLED);
}

/* Never called while a step is in flight. */
void sl_sched_expire(struct sl_sched *s, uint64_t now_ns)
{
    struct sl_heap_node *n;
    while ((n = sl_heap_min(&s->deadlines))) {
        struct sl_seq *q = SL_ENTRY(n, struct sl_seq, by_deadline);
        if (q->deadline_ns > now_ns)
            return;
        end_and_report(s, q, SL_END_DEADLINE);
    }
}

/* --- commit ----------------------------------------------------------------------------------- */

/* Full pages computed by now become shareable; where another sequence was faster, its page takes
 * the place of ours, which holds the same bits. */
static void index_pages(struct sl_sched *s, struct sl_seq *q)
{
    if (!q->caching)
        return;
    uint32_t n_full = q->n_computed / s->cfg.page_size, page;
    seq_make_keys(s, q, n_full);
    for (; q->n_indexed < n_full; q->n_indexed++) {
        uint32_t i = q->n_indexed;
        const uint32_t *tokens = q->tokens + (size_t)i * s->cfg.page_size;
        const uint8_t *parent = i ? q->keys[i - 1] : NULL;
        if (sl_prefix_add(&s->kv, q->pages[i], parent, q->keys[i], tokens))
            continue;
        if (sl_prefix_find(&s->kv, q->keys[i], tokens, &page)) {
            sl_kv_release(&s->kv, q->pages[i]);
            if (!SL_MUTANT(PAGE_FREED_TWICE))
                q->pages[i] = page;
        }
    }
}

static void count_rows(struct sl_sched *s, struct sl_seq *q)
{
    if (q->state == SEQ_DECODE)
        s->stats.n_decode_tokens += q->want;
    else
        s->stats.n_prefill_tokens += q->want;
    q->n_computed += q->want;
    sl_tenant_charge(q, q->n_computed);
    q->want = 0;
    q->in_step = false;
}

static void drop(struct sl_sched *s, struct sl_seq *q)
{
    detach(s, q);
    free(q);
}

/* `sampled` NULL: the sequence is still in its prompt. */
static void commit_seq(struct sl_sched *s, struct sl_seq *q, const struct sl_sampled_token *sampled)
{
    count_rows(s, q);
    enum sl_end end = sampled ? sampled->end : SL_END_NONE;
    if (end != SL_END_ERROR && !q->cancelled)
        index_pages(s, q);
    if (end != SL_END_NONE) {
        drop(s, q);
        return;
    }
    if (q->cancelled) {
        end_and_report(s, q, SL_END_CANCELLED);
        return;
    }
    if (q->prefill_only && q->n_computed == q->n_tokens) {
        end_and_report(s, q, SL_END_LENGTH);
        return;
    }
    if (!sampled)
        return;
    q->tokens[q->n_tokens++] = sampled->token;
    if (q->n_tokens >= q->n_max) {
        end_and_report(s, q, SL_END_LENGTH);
        return;
    }
    if (q->state == SEQ_PREFILL) {
        sl_list_remove(&q->link);
        sl_list_push_back(&s->decodes, &q->link);
        q->state = SEQ_DECODE;
    }
}

void sl_sched_commit(struct sl_sched *s, const struct sl_sampled_token *sampled, uint64_t now_ns)
{
    sl_assert(s->in_flight);
    uint32_t logit = 0;
    for (uint32_t i = 0; i < s->plan.n_seq; i++) {
        bool has_row = logit < s->plan.n_logits && s->logit_seq[logit] == i;
        commit_seq(s, s->step_seqs[i], has_row ? &sampled[logit] : NULL);
        logit += has_row;
    }
    s->in_flight = false;
    sl_sched_expire(s, now_ns);
}

static void forget_all(struct sl_sched *s, struct sl_list *head)
{
    while (!sl_list_empty(head)) {
        struct sl_seq *q = SL_ENTRY(head->next, struct sl_seq, link);
        q->in_step = false;
        q->want = 0;
        if (q->cancelled)
            end_and_report(s, q, SL_END_CANCELLED);
        else
            sl_seq_requeue(s, q);
    }
}

void sl_sched_forget_kv(struct sl_sched *s)
{
    s->in_flight = false;
    forget_all(s, &s->prefills);
    forget_all(s, &s->decodes);
    sl_prefix_reset(&s->kv);
}

/* --- questions -------------------------------------------------------------------------------- */

uint32_t sl_sched_cached_tokens(const struct sl_sched *s, uint64_t id)
{
    const struct sl_seq *q = sl_sched_find(s, id);
    return q ? q->n_cached : 0;
}

static uint64_t pending_tokens(const struct sl_sched *s)
{
    uint64_t n = 0;
    for (const struct sl_list *l = s->arrivals.next; l != &s->arrivals; l = l->next)
        n += SL_ENTRY(l, struct sl_seq, by_arrival)->n_tokens;
    for (const struct sl_list *l = s->prefills.next; l != &s->prefills; l = l->next) {
        const struct sl_seq *q = SL_ENTRY(l, struct sl_seq, link);
        n += q->n_tokens - q->n_computed;
    }
    return n;
}

void sl_sched_stats(const struct sl_sched *s, struct sl_sched_stats *out)
{
    *out = s->stats;
    out->running = s->n_running;
    out->waiting = s->n_waiting;
    out->pages_total = s->kv.n_pages;
    out->pages_free = sl_kv_available(&s->kv);
    out->pages_held = s->kv.n_held;
    out->n_steps = s->plan.step;
    out->pending_tokens = pending_tokens(s);
}

bool sl_sched_idle(const struct sl_sched *s)
{
    return !s->n_running && !s->n_waiting && !s->n_ended;
}

uint64_t sl_sched_next_deadline(const struct sl_sched *s)
{
    struct sl_heap_node *n = sl_heap_min(&s->deadlines);
    return n ? SL_ENTRY(n, struct sl_seq, by_deadline)->deadline_ns : UINT64_MAX;
}

void sl_sched_reset_cache(struct sl_sched *s)
{
    sl_prefix_reset(&s->kv);
}

void sl_sched_retell(struct sl_sched *s)
{
    sl_kv_retell(&s->kv);
}

bool sl_sched_tell(struct sl_sched *s, uint32_t most)
{
    return sl_kv_tell(&s->kv, most);
}

void sl_sched_force_preempt(struct sl_sched *s, uint64_t id)
{
    struct sl_seq *q = sl_sched_find(s, id);
    if (!q || q->state == SEQ_WAITING || q->forced)
        return;
    q->forced = true;
    s->n_forced++;
}
