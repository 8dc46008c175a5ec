/* Whatever is submitted, cancelled, preempted, failed or timed out, in whatever order and with
 * whatever budget, and whatever pages are read and filled from outside meanwhile: every request
 * ends once, its tokens are those the model gives from the prompt alone, no page is lost or written
 * by two, a pinned page keeps its bits, and the invariants hold after every event. */
#include "fake_engine.h"

#include <sluice/control/kv.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

enum { N_SEEDS = 2500, N_EVENTS = 250, REQS_MAX = 256, LEN_MAX = 96, PINS_MAX = 32, PAGE_MAX = 8 };

enum fate { UNBORN, LIVE, FINISHED, CANCELLED, EXPIRED, FAILED };

struct request {
    uint32_t tokens[LEN_MAX + 1]; /* prompt, then what was delivered */
    uint32_t n, n_prompt, n_given, max_new;
    uint64_t salt, deadline_ns, id;
    enum fate fate;
    bool cancelled, prefill_only;
};

/* A page that is read (full and computed) or to be filled from outside. */
struct pin {
    uint32_t page;
    bool reserved, has_parent, has_bits; /* has_bits: computed, `bits` must stay */
    uint64_t bits[PAGE_MAX];
    uint8_t parent[32], key[32]; /* of a reserved one, with its tokens and what they compute to */
    uint32_t tokens[PAGE_MAX];
    uint64_t right[PAGE_MAX];
};

struct world {
    uint64_t seed;
    struct rng rng;
    struct sl_sched_config cfg;
    struct sl_sched *s;
    struct fake_kv kv;
    uint64_t now_ns;
    const struct sl_plan *plan;
    struct request reqs[REQS_MAX];
    uint32_t n_reqs, n_live, budget;
    struct pin pins[PINS_MAX];
    uint32_t n_pins;
};

/* What the seeds reached, so that none of the paths below is idle. */
static struct {
    uint64_t preempted, hits, imported, fates[FAILED + 1];
} reached;

#define MUST(w, cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            print_error("seed %llu: ", (unsigned long long)(w)->seed);                             \
            print_error(__VA_ARGS__);                                                              \
            fail_msg(" (%s)", #cond);                                                              \
        }                                                                                          \
    } while (0)

static void check(struct world *w)
{
    struct sl_err err = {0};
    struct sl_sched_stats st;
    MUST(w, sl_sched_check(w->s, &err) == SL_OK, "%s", err.msg);
    sl_sched_stats(w->s, &st);
    MUST(w, st.running + st.waiting == w->n_live, "%u run, %u wait of %u", st.running, st.waiting,
         w->n_live);
    MUST(w, st.pages_free <= st.pages_total && st.prefix_hits <= st.prefix_queries, "figures");
}

static void reap(struct world *w)
{
    struct sl_ended e;
    while (sl_sched_next_ended(w->s, &e)) {
        struct request *q = e.user;
        MUST(w, q->fate == LIVE && q->id == e.id, "request %llu ended twice",
             (unsigned long long)e.id);
        if (e.end == SL_END_CANCELLED)
            MUST(w, q->cancelled, "request %llu cancelled by nobody", (unsigned long long)e.id);
        else if (e.end == SL_END_DEADLINE)
            MUST(w, q->deadline_ns && q->deadline_ns <= w->now_ns, "request %llu expired early",
                 (unsigned long long)e.id);
        else
            MUST(w,
                 e.end == SL_END_LENGTH && (q->prefill_only || q->n - q->n_prompt == q->max_new ||
                                            q->n == w->cfg.max_len),
                 "request %llu ended with %d", (unsigned long long)e.id, e.end);
        q->fate = e.end == SL_END_LENGTH     ? FINISHED
                  : e.end == SL_END_DEADLINE ? EXPIRED
                                             : CANCELLED;
        w->n_live--;
    }
}

/* Prompts share prefixes, as chats do. */
static void draw_prompt(struct world *w, struct request *q)
{
    uint32_t family = rng_below(&w->rng, 3), shared = rng_below(&w->rng, 32);
    q->n_prompt = 1 + rng_below(&w->rng, w->cfg.max_len - 2 < 48 ? w->cfg.max_len - 2 : 48);
    for (uint32_t i = 0; i < q->n_prompt; i++)
        q->tokens[i] =
            i < shared ? (family * 7 + i * 3) % FAKE_VOCAB : rng_below(&w->rng, FAKE_VOCAB);
    q->n = q->n_prompt;
}

static void event_submit(struct world *w)
{
    if (w->n_reqs == REQS_MAX)
        return;
    struct request *q = &w->reqs[w->n_reqs];
    memset(q, 0, sizeof *q);
    q->id = 1000 + w->n_reqs;
    q->salt = rng_below(&w->rng, 2);
    draw_prompt(w, q);
    q->max_new = 1 + rng_below(&w->rng, 20);
    if (rng_chance(&w->rng, 5)) /* resumed: some were generated elsewhere */
        for (uint32_t i = rng_below(&w->rng, q->max_new); i && q->n + 1 < w->cfg.max_len; i--) {
            uint32_t t = fake_next(q->salt, q->tokens, q->n);
            q->tokens[q->n++] = t;
        }
    q->n_given = q->n;
    q->prefill_only = rng_chance(&w->rng, 6);
    if (rng_chance(&w->rng, 8))
        q->deadline_ns = w->now_ns + 1 + rng_below(&w->rng, 60);
    struct sl_sched_request r = {.id = q->id,
                                 .tokens = q->tokens,
                                 .n_tokens = q->n,
                                 .n_prompt = q->n_prompt,
                                 .max_new = q->max_new,
                                 .priority = (int32_t)rng_below(&w->rng, 3) - 1,
                                 .tenant = rng_below(&w->rng, 4),
                                 .deadline_ns = q->deadline_ns,
                                 .no_prefix_cache = rng_chance(&w->rng, 10),
                                 .prefill_only = q->prefill_only,
                                 .user = q};
    r.salt[0] = (uint8_t)q->salt;
    struct sl_err err;
    enum sl_status status = sl_sched_submit(w->s, &r, w->now_ns, &err);
    if (status) {
        MUST(w, status == SL_QUEUE_FULL || status == SL_TOO_LONG, "submit: %s", err.msg);
        return;
    }
    q->fate = LIVE;
    w->n_reqs++;
    w->n_live++;
}

static struct request *any_live(struct world *w)
{
    if (!w->n_live)
        return NULL;
    uint32_t i = rng_below(&w->rng, w->n_reqs);
    while (w->reqs[i].fate != LIVE)
        i = (i + 1) % w->n_reqs;
    return &w->reqs[i];
}

static void event_cancel(struct world *w)
{
    struct request *q = any_live(w);
    if (!q)
        return;
    q->cancelled = true;
    sl_sched_cancel(w->s, q->id);
}

/* --- transfers -------------------------------------------------------------------------------- */

static void *entries_of(const struct world *w, uint32_t page)
{
    return w->kv.entries + (size_t)page * w->cfg.page_size;
}

/* A full page of the plan, as one that is sent while it is computed. */
static void event_pin(struct world *w)
{
    const struct sl_plan *p = w->plan;
    uint32_t s = rng_below(&w->rng, p->n_seq), size = w->cfg.page_size;
    uint32_t n_full = (p->pos[p->q_start[s + 1] - 1] + 1) / size;
    if (!n_full || w->n_pins == PINS_MAX)
        return;
    uint32_t page = p->pages[p->page_start[s] + rng_below(&w->rng, n_full)];
    if (sl_sched_pin(w->s, page))
        w->pins[w->n_pins++] = (struct pin){.page = page};
}

/* What was pinned during the step is computed now. */
static void pins_note_bits(struct world *w)
{
    for (uint32_t i = 0; i < w->n_pins; i++) {
        struct pin *p = &w->pins[i];
        if (!p->reserved && !p->has_bits)
            memcpy(p->bits, entries_of(w, p->page), w->cfg.page_size * sizeof *p->bits);
        p->has_bits |= !p->reserved;
    }
}

/* Pages of a prompt are to come from elsewhere. */
static void event_reserve(struct world *w)
{
    if (!w->n_reqs || !w->cfg.prefix_cache)
        return;
    const struct request *q = &w->reqs[rng_below(&w->rng, w->n_reqs)];
    uint32_t size = w->cfg.page_size, n = (q->n - 1) / size, pages[LEN_MAX];
    uint8_t salt[32] = {(uint8_t)q->salt}, keys[LEN_MAX][32];
    assert_true(sl_prefix_keys(size, salt, q->tokens, n, keys));
    uint32_t first = sl_sched_n_cached(w->s, (const uint8_t(*)[32])keys, q->tokens, n);
    uint32_t want = n - first < PINS_MAX - w->n_pins ? n - first : PINS_MAX - w->n_pins;
    uint32_t got = sl_sched_reserve(w->s, want, pages);
    MUST(w, got <= want, "%u of %u pages reserved", got, want);
    uint64_t entry = q->salt;
    for (uint32_t i = 0; i < first + got; i++) {
        struct pin *p = i < first ? NULL : &w->pins[w->n_pins++];
        if (p)
            *p = (struct pin){.page = pages[i - first], .reserved = true};
        for (uint32_t k = 0; k < size; k++) {
            entry = fake_entry(entry, q->tokens[i * size + k]);
            if (p)
                p->right[k] = entry, p->tokens[k] = q->tokens[i * size + k];
        }
        if (p)
            memcpy(p->key, keys[i], 32);
        if (p && i)
            memcpy(p->parent, keys[i - 1], 32);
        if (p)
            p->has_parent = i > 0;
    }
}

static void end_pin(struct world *w, uint32_t i)
{
    struct pin p = w->pins[i];
    size_t bytes = w->cfg.page_size * sizeof(uint64_t);
    w->pins[i] = w->pins[--w->n_pins];
    if (p.has_bits)
        MUST(w, !memcmp(p.bits, entries_of(w, p.page), bytes), "pinned page %u changed", p.page);
    if (p.reserved && rng_chance(&w->rng, 3)) { /* broken off half way */
        memset(entries_of(w, p.page), 0xee, bytes);
        sl_sched_unpin(w->s, p.page);
    } else if (p.reserved) {
        memcpy(entries_of(w, p.page), p.right, bytes);
        reached.imported +=
            sl_sched_import(w->s, p.page, p.has_parent ? p.parent : NULL, p.key, p.tokens);
    } else {
        sl_sched_unpin(w->s, p.page);
    }
}

static void event_transfer(struct world *w)
{
    uint32_t what = rng_below(&w->rng, 3);
    if (what == 0 && w->plan)
        event_pin(w);
    else if (what == 1)
        event_reserve(w);
    else if (w->n_pins)
        end_pin(w, rng_below(&w->rng, w->n_pins));
}

static void event_plan(struct world *w)
{
    w->budget = rng_chance(&w->rng, 3) ? 1 + rng_below(&w->rng, 3)
                                       : 1 + rng_below(&w->rng, w->cfg.max_batch_tokens + 8);
    w->plan = sl_sched_plan(w->s, w->budget, w->now_ns);
    reap(w);
    MUST(w, w->plan || !w->n_live || w->n_pins, "%u live and nothing to do", w->n_live);
    if (!w->plan)
        return;
    uint32_t most = w->budget < w->cfg.max_batch_tokens ? w->budget : w->cfg.max_batch_tokens;
    const char *wrong = fake_check_plan(&w->kv, w->plan, most);
    MUST(w, !wrong, "plan: %s", wrong);
}

/* What the engine would do with one sampled token. */
static enum sl_end deliver(struct world *w, struct request *q, uint32_t token)
{
    MUST(w, !q->prefill_only, "request %llu is sampled", (unsigned long long)q->id);
    uint32_t right = fake_next(q->salt, q->tokens, q->n);
    MUST(w, token == right, "request %llu: token %u is %u, not %u", (unsigned long long)q->id, q->n,
         token, right);
    MUST(w, q->n < w->cfg.max_len && q->n - q->n_prompt < q->max_new, "request %llu goes on",
         (unsigned long long)q->id);
    q->tokens[q->n++] = token;
    if (token % 16 == 0)
        return SL_END_STOP;
    bool engine_counts = q->id % 2; /* else the scheduler ends it */
    return engine_counts && (q->n - q->n_prompt == q->max_new || q->n == w->cfg.max_len)
               ? SL_END_LENGTH
               : SL_END_NONE;
}

static bool is_due(const struct world *w, const struct request *q)
{
    return q->deadline_ns && q->deadline_ns <= w->now_ns;
}

static void event_commit(struct world *w)
{
    struct sl_sampled_token out[LEN_MAX];
    const struct sl_plan *p = w->plan;
    bool step_fails = rng_chance(&w->rng, 40);
    uint32_t logit = 0;
    for (uint32_t s = 0; s < p->n_seq; s++) {
        struct request *q = p->user[s];
        MUST(w, q->fate == LIVE && q->id == p->id[s], "a request that ended is in a plan");
        bool fails = step_fails || rng_chance(&w->rng, 100);
        bool has_row = logit < p->n_logits && p->logit_seq[logit] == s;
        uint32_t token = fake_compute(&w->kv, p, s, q->salt, fails ? rng_next(&w->rng) : 0);
        if (fails && !has_row) {
            q->cancelled = true;
            sl_sched_cancel(w->s, q->id);
        }
        if (!has_row)
            continue;
        enum sl_end end = fails ? SL_END_ERROR : deliver(w, q, token);
        out[logit++] = (struct sl_sampled_token){token, end};
        if (end) {
            q->fate = fails ? FAILED : FINISHED;
            w->n_live--;
        }
    }
    w->plan = NULL;
    sl_sched_commit(w->s, out, w->now_ns);
    pins_note_bits(w);
    reap(w);
    for (uint32_t i = 0; i < w->n_reqs; i++) {
        const struct request *q = &w->reqs[i];
        MUST(w, q->fate != LIVE || !(q->cancelled || is_due(w, q)),
             "request %u stays after its end", i);
    }
}

/* A rank died, in a step or between two: every entry of the KV cache is rubbish from now on. */
static void event_forget(struct world *w)
{
    w->plan = NULL;
    sl_sched_forget_kv(w->s);
    for (size_t i = 0; i < (size_t)w->cfg.n_pages * w->cfg.page_size; i++)
        w->kv.entries[i] = rng_next(&w->rng);
    struct sl_sched_stats st;
    sl_sched_stats(w->s, &st);
    MUST(w, st.running == 0 && st.pages_free + st.pages_held == st.pages_total,
         "%u run with %u of %u pages", st.running, st.pages_total - st.pages_free, st.pages_total);
    for (uint32_t i = 0; i < w->n_pins; i++)
        w->pins[i].has_bits = false; /* nobody reads on after that */
}

static void event(struct world *w)
{
    uint32_t what = rng_below(&w->rng, 100);
    w->now_ns += rng_chance(&w->rng, 50) ? SL_SCHED_AGE_NS / 3 : rng_below(&w->rng, 3);
    if (what < 22) {
        event_submit(w);
    } else if (what < 26) {
        event_cancel(w);
    } else if (what < 30) {
        struct request *q = any_live(w);
        if (q)
            sl_sched_force_preempt(w->s, q->id);
    } else if (what == 30 && !w->plan) {
        sl_sched_reset_cache(w->s);
    } else if (what == 31) {
        event_forget(w);
    } else if (what < 45) {
        event_transfer(w);
    } else if (w->plan) {
        event_commit(w);
    } else {
        event_plan(w);
    }
    reap(w);
}

static void open_world(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.x = seed * 0x2545f4914f6cdd1dull;
    w->cfg = (struct sl_sched_config){.max_seqs = 1 + rng_below(&w->rng, 10),
                                      .max_batch_tokens = 1 + rng_below(&w->rng, 40),
                                      .max_len = 16 + rng_below(&w->rng, LEN_MAX - 16),
                                      .n_pages = 4 + rng_below(&w->rng, 40),
                                      .page_size = 1 + rng_below(&w->rng, PAGE_MAX),
                                      .queue_max = 4 + rng_below(&w->rng, 30),
                                      .prefix_cache = !rng_chance(&w->rng, 5)};
    struct sl_err err;
    MUST(w, sl_sched_open(&w->cfg, &w->s, &err) == SL_OK, "open");
    fake_kv_open(&w->kv, w->cfg.n_pages, w->cfg.page_size);
}

/* Everything ends within a number of steps that the work explains. */
static void run_dry(struct world *w)
{
    uint32_t steps = 0, most = 2000 + w->n_live * LEN_MAX * 20;
    while (w->n_live || w->n_pins) {
        if (w->n_pins && rng_chance(&w->rng, 4))
            end_pin(w, rng_below(&w->rng, w->n_pins));
        else if (w->plan)
            event_commit(w);
        else
            event_plan(w);
        check(w);
        MUST(w, ++steps < most, "%u live after %u steps", w->n_live, steps);
    }
    if (w->plan) {
        struct sl_sampled_token none[LEN_MAX] = {{0}};
        sl_sched_commit(w->s, none, w->now_ns);
        reap(w);
    }
}

static void run_seed(uint64_t seed)
{
    static struct world world;
    struct world *w = &world;
    struct sl_sched_stats st;
    open_world(w, seed);
    for (uint32_t i = 0; i < N_EVENTS; i++) {
        event(w);
        check(w);
    }
    run_dry(w);
    check(w);
    for (uint32_t i = 0; i < w->n_reqs; i++) {
        MUST(w, w->reqs[i].fate > LIVE, "request %u was lost", i);
        reached.fates[w->reqs[i].fate]++;
    }
    sl_sched_stats(w->s, &st);
    reached.preempted += st.n_preempted;
    reached.hits += st.prefix_hits;
    MUST(w, sl_sched_idle(w->s) && st.pages_free == st.pages_total && !st.pages_held,
         "%u of %u pages are free, %u held", st.pages_free, st.pages_total, st.pages_held);
    MUST(w, sl_sched_next_deadline(w->s) == UINT64_MAX, "a deadline was left");
    sl_sched_close(w->s);
    fake_kv_close(&w->kv);
}

static void test_seeds(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++)
        run_seed(seed);
    for (uint32_t fate = FINISHED; fate <= FAILED; fate++)
        assert_true(reached.fates[fate] > N_SEEDS / 10);
    assert_true(reached.preempted > N_SEEDS && reached.hits > N_SEEDS);
    assert_true(reached.imported > N_SEEDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
