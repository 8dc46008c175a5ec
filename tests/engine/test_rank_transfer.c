/* Pages from a model over some ranks to one over others, every rank its part: the answers are those
 * of one engine that computes everything; a rank that has less, or dies, costs a recomputation and
 * no page. Every rank is an engine of its own here, on threads of one process. */
#include "golden/tiny_model.h"

#include <sluice/engine/transfer.h>
#include <sluice/files/gguf.h>
#include <sluice/transport/bulk.h>
#include <sluice/transport/bus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { RANKS_MAX = 6, N_NEW = 8, N_PROMPT = 150, PAGES = (N_PROMPT - 1) / 16, WAIT_MS = 60000 };

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;
static uint32_t prompt[N_PROMPT], expected[N_NEW];
static float expected_logprobs[N_NEW];

/* --- a group ---------------------------------------------------------------------------------- */

struct rig {
    uint32_t tp, pp, n;
    struct sl_buf rendezvous;
    struct sl_engine *e[RANKS_MAX];
    struct sl_export *x[RANKS_MAX];
    struct sl_import *im[RANKS_MAX];
};

static void open_rank(struct rig *r, uint32_t rank)
{
    struct sl_err err;
    struct sl_engine_config cfg = {.gguf = gguf,
                                   .backend = "cpu",
                                   .n_threads = 1,
                                   .max_seqs = 4,
                                   .max_len = 256,
                                   .kv_dtype = SL_I8,
                                   .fixed_chunk = 48,
                                   .prefix_cache = true,
                                   .charter = "hello",
                                   .n_charter = 5};
    if (r->n > 1)
        cfg.place = (struct sl_engine_place){.rank = rank,
                                             .tp = r->tp,
                                             .pp = r->pp,
                                             .rendezvous = r->rendezvous.data,
                                             .op_timeout_ms = 20000}; /* sanitizers are slow */
    if (sl_engine_open(&cfg, &r->e[rank], &err))
        fail_msg("rank %u: %s", rank, err.msg);
}

static void open_rig(struct rig *r, uint32_t tp, uint32_t pp)
{
    struct sl_err err;
    *r = (struct rig){.tp = tp, .pp = pp, .n = tp * pp};
    if (r->n > 1 && sl_bus_ipc_make("/tmp", &r->rendezvous, &err))
        fail_msg("%s", err.msg);
    for (uint32_t i = r->n; i-- > 0;)
        open_rank(r, i);
}

static void close_rig(struct rig *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        sl_engine_close(r->e[i]);
    if (r->n > 1)
        sl_bus_ipc_remove(r->rendezvous.data);
    sl_buf_free(&r->rendezvous);
}

static void nap(void)
{
    nanosleep(&(struct timespec){0, 1000000}, NULL);
}

/* Takes orders of all followers until each has what `want` of it asks for. */
static void take_orders(struct rig *r, enum sl_order_kind want, const char *note)
{
    uint32_t n = 1;
    for (int turn = 0; n < r->n && turn < WAIT_MS; turn++, nap())
        for (uint32_t i = 1; i < r->n; i++) {
            struct sl_order *o = sl_engine_take_order(r->e[i]);
            if (!o)
                continue;
            if (o->kind == SL_ORDER_CHARTER) {
                assert_true(o->n_note == 5 && !memcmp(o->note, "hello", 5));
            } else {
                assert_int_equal(o->kind, want);
                assert_true(o->n_note == strlen(note) && !memcmp(o->note, note, o->n_note));
                r->x[i] = o->x;
                r->im[i] = o->im;
                n++;
            }
            free(o);
        }
    assert_int_equal(n, r->n);
}

static struct sl_engine_request request(void)
{
    struct sl_engine_request q = {
        .seq = {.id = 7, .tokens = prompt, .n_tokens = N_PROMPT, .n_prompt = N_PROMPT}};
    q.sampling = sl_sampling_default();
    q.sampling.max_tokens = q.seq.max_new = N_NEW;
    q.sampling.want_logprob = q.sampling.ignore_eos = true;
    q.sampling.temperature = 1;
    q.sampling.seed = 5;
    return q;
}

/* The end of the one request that runs. */
static uint32_t finish(struct sl_engine *e, uint32_t *tokens, float *logprobs, uint32_t *n_cached)
{
    uint32_t n = 0;
    for (bool ended = false; !ended;) {
        struct sl_engine_step *s = sl_engine_poll(e);
        if (!s) {
            sl_engine_wait(e, 1000);
            continue;
        }
        for (uint32_t i = 0; i < s->n_outs; i++) {
            const struct sl_engine_out *o = &s->outs[i];
            if (o->has_token && tokens && n < N_NEW) {
                tokens[n] = o->token.token;
                logprobs[n] = o->token.logprob;
            }
            n += o->has_token;
            if (n_cached)
                *n_cached += o->n_cached;
            ended |= o->end != SL_END_NONE;
        }
        sl_engine_release(e, s);
    }
    return n;
}

/* Whatever came before, the answer is the one; so many of its tokens were there. */
static void expect_answer(struct rig *r, uint32_t pages_cached)
{
    struct sl_engine_request q = request();
    struct sl_err err;
    uint32_t tokens[N_NEW], n_cached = 0;
    float logprobs[N_NEW];
    if (sl_engine_submit(r->e[0], &q, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(finish(r->e[0], tokens, logprobs, &n_cached), N_NEW);
    assert_memory_equal(tokens, expected, sizeof expected);
    assert_memory_equal(logprobs, expected_logprobs, sizeof expected_logprobs);
    assert_int_equal(n_cached, pages_cached * 16);
}

static void expect_no_leak(struct rig *r)
{
    struct sl_engine_stats s;
    for (int i = 0; i < WAIT_MS; i++, nap()) {
        sl_engine_stats(r->e[0], &s);
        if (!s.sched.pages_held && s.sched.pages_free == s.sched.pages_total)
            return;
        sl_engine_cancel(r->e[0], UINT64_MAX); /* wakes it */
    }
    fail_msg("%u pages are held, %u of %u free", s.sched.pages_held, s.sched.pages_free,
             s.sched.pages_total);
}

static uint64_t wait_formed(struct sl_engine *e, uint64_t n_formed)
{
    struct sl_engine_group g;
    for (int i = 0; i < WAIT_MS; i++, nap()) {
        sl_engine_group(e, &g);
        if (g.state == SL_GROUP_UP && g.n_formed >= n_formed)
            return g.n_formed;
    }
    fail_msg("formed %llu times: %s", (unsigned long long)g.n_formed, g.why.msg);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    struct sl_err err;
    struct tiny_model m = tiny_model_three();
    if (tiny_model_buf(&m, &model_bytes, &err) ||
        sl_gguf_parse(model_bytes.data, model_bytes.len, false, &gguf, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return -1;
    }
    for (uint32_t k = 0; k < N_PROMPT; k++)
        prompt[k] = 11 + k * 17 % 230;
    struct rig one;
    struct sl_engine_request q = request();
    open_rig(&one, 1, 1);
    q.seq.no_prefix_cache = true;
    if (sl_engine_submit(one.e[0], &q, &err))
        fail_msg("%s", err.msg);
    finish(one.e[0], expected, expected_logprobs, NULL);
    close_rig(&one);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_gguf_close(gguf);
    sl_buf_free(&model_bytes);
    return 0;
}

/* --- carrying --------------------------------------------------------------------------------- */

static void begin_export(struct rig *from)
{
    struct sl_engine_request q = request();
    struct sl_err err;
    if (sl_export_open(from->e[0], &q, "ticket", 6, &from->x[0], &err))
        fail_msg("%s", err.msg);
    assert_int_equal(sl_export_n_pages(from->x[0]), PAGES);
    take_orders(from, SL_ORDER_EXPORT, "ticket");
}

static void end_export(struct rig *from)
{
    for (uint32_t i = 0; i < from->n; i++)
        sl_export_close(from->x[i]);
    finish(from->e[0], NULL, NULL, NULL); /* the prefill itself */
}

static void begin_import(struct rig *to, uint32_t first)
{
    struct sl_engine_request q = request();
    struct sl_err err;
    if (to->n > 1)
        wait_formed(to->e[0], 1); /* ranks that are not together have no pages to give */
    if (sl_import_open(to->e[0], q.seq.salt, prompt, PAGES, WAIT_MS, &to->im[0], &err))
        fail_msg("%s", err.msg);
    assert_int_equal(sl_import_first(to->im[0]), first);
    assert_int_equal(sl_import_reserve(to->im[0], "where", 5, WAIT_MS), PAGES);
    take_orders(to, SL_ORDER_IMPORT, "where");
    for (uint32_t i = 1; i < to->n; i++) {
        assert_int_equal(sl_import_first(to->im[i]), first);
        assert_int_equal(sl_import_end(to->im[i]), PAGES);
        assert_memory_equal(sl_import_keys(to->im[i]) + first, sl_import_keys(to->im[0]) + first,
                            (PAGES - first) * 32);
    }
}

/* A piece of rank `i`'s part, all pages of it. */
static void carry_piece(const struct rig *from, const struct rig *to, uint32_t i,
                        const struct sl_bulk_piece *p)
{
    const struct sl_kv_part part = {p->part.layer_first, p->part.n_layers, p->part.head_first,
                                    p->part.n_heads};
    struct sl_import *im = to->im[i];
    struct sl_export *x = from->x[p->rank];
    struct sl_export_reader *r;
    struct sl_export_unit u;
    struct sl_kv_layout l;
    struct sl_err err;
    uint32_t n = sl_import_first(im);
    if (sl_export_read(x, &part, n, &r, &err))
        fail_msg("%s", err.msg);
    assert_true(sl_engine_kv_layout(to->e[i], &l));
    for (;;) {
        sl_export_next(r, 1000, &u);
        if (u.kind == SL_EXPORT_END)
            break;
        if (u.kind == SL_EXPORT_ROW) {
            void *row = sl_import_row(im, u.page, u.layer, &part);
            if (row)
                memcpy(row, u.row, (size_t)part.n_heads * l.head_bytes);
            else
                sl_import_put(im, u.page, u.layer, &part, u.row);
        }
        if (u.kind == SL_EXPORT_PAGE) {
            assert_int_equal(u.page, n++);
            assert_memory_equal(sl_export_key(x, u.page), sl_import_keys(im)[u.page], 32);
        }
    }
    assert_int_equal(u.status, SL_OK);
    assert_int_equal(n, PAGES);
    sl_export_read_end(r);
}

static void carry(const struct rig *from, const struct rig *to)
{
    struct sl_kv_part have[SL_LIMIT_ranks], want[SL_LIMIT_ranks];
    struct sl_bulk_rank ranks[RANKS_MAX];
    struct sl_bulk_piece pieces[RANKS_MAX];
    uint32_t n = sl_engine_kv_parts(from->e[0], have);
    assert_int_equal(n, from->n);
    assert_int_equal(sl_engine_kv_parts(to->e[0], want), to->n);
    for (uint32_t i = 0; i < n; i++)
        ranks[i].part = (struct sl_bulk_part){have[i].layer_first, have[i].n_layers,
                                              have[i].head_first, have[i].n_heads};
    for (uint32_t i = 0; i < to->n; i++) {
        const struct sl_bulk_part mine = {want[i].layer_first, want[i].n_layers, want[i].head_first,
                                          want[i].n_heads};
        struct sl_kv_part own = sl_engine_kv_part(to->e[i]);
        assert_memory_equal(&own, &want[i], sizeof own);
        uint32_t k = sl_bulk_cover(&mine, ranks, n, pieces, RANKS_MAX);
        assert_true(k > 0);
        for (uint32_t j = 0; j < k; j++)
            carry_piece(from, to, i, &pieces[j]);
    }
}

/* Followers first, then rank 0; how many pages count. */
static uint32_t end_import(struct rig *to, uint32_t least_at, uint32_t least, uint32_t all)
{
    for (uint32_t i = 1; i < to->n; i++)
        sl_import_close(to->im[i], i == least_at ? least : all);
    uint32_t n = sl_import_settle(to->im[0], least_at ? all : least, WAIT_MS);
    sl_import_close(to->im[0], n);
    return n;
}

static void any_layout_to_any(void **state)
{
    (void)state;
    static const uint32_t t[][4] = {{1, 1, 2, 1}, {2, 1, 1, 1}, {2, 1, 2, 1}, {1, 2, 2, 1},
                                    {3, 1, 2, 1}, {2, 1, 1, 3}, {2, 2, 3, 2}, {1, 3, 2, 2}};
    for (size_t k = 0; k < sizeof t / sizeof *t; k++) {
        struct rig from, to;
        open_rig(&from, t[k][0], t[k][1]);
        open_rig(&to, t[k][2], t[k][3]);
        begin_export(&from);
        begin_import(&to, 0);
        carry(&from, &to);
        assert_int_equal(end_import(&to, 1, PAGES, PAGES), PAGES);
        end_export(&from);
        expect_answer(&to, PAGES);
        expect_answer(&from, PAGES);
        expect_no_leak(&from);
        expect_no_leak(&to);
        close_rig(&from);
        close_rig(&to);
    }
}

/* Twice: what is cached at both ends of all ranks is exported as well, and not fetched again. */
static void a_rank_with_less_decides(void **state)
{
    (void)state;
    struct rig from, to;
    open_rig(&from, 2, 1);
    open_rig(&to, 1, 2);
    const uint32_t n[] = {3, 0, 2, PAGES - 5};
    for (uint32_t i = 0, have = 0; i < 4; have += n[i++]) {
        begin_export(&from);
        begin_import(&to, have);
        carry(&from, &to);
        assert_int_equal(end_import(&to, i % 2, n[i], PAGES - have), n[i]);
        end_export(&from);
        expect_no_leak(&from);
        expect_no_leak(&to);
    }
    expect_answer(&to, PAGES);
    close_rig(&from);
    close_rig(&to);
}

/* --- loss ------------------------------------------------------------------------------------- */

/* A rank of the fetching side dies when all others are done: nothing counts, no page is lost. */
static void a_lost_rank_takes_all(void **state)
{
    (void)state;
    struct rig from, to;
    open_rig(&from, 2, 1);
    open_rig(&to, 3, 1);
    begin_export(&from);
    begin_import(&to, 0);
    carry(&from, &to);
    end_export(&from);
    uint64_t formed = wait_formed(to.e[0], 1);
    sl_import_close(to.im[1], PAGES);
    sl_import_close(to.im[2], 0); /* its owner is gone, and so is it */
    sl_engine_close(to.e[2]);
    assert_int_equal(sl_import_settle(to.im[0], PAGES, WAIT_MS), 0);
    sl_import_close(to.im[0], PAGES); /* too much: it was lost */
    open_rank(&to, 2);
    wait_formed(to.e[0], formed + 1);
    expect_answer(&to, 0);
    expect_no_leak(&to);
    close_rig(&from);
    close_rig(&to);
}

static void wait_forming(struct sl_engine *e)
{
    struct sl_engine_group g;
    for (int i = 0; i < WAIT_MS; i++, nap()) {
        sl_engine_group(e, &g);
        if (g.state == SL_GROUP_FORMING)
            return;
    }
    fail_msg("the group is not lost");
}

/* A rank that still fills pages of a group that was lost is in no group before it lets go. */
static void no_group_before_all_let_go(void **state)
{
    (void)state;
    struct rig from, to;
    open_rig(&from, 1, 1);
    open_rig(&to, 3, 1);
    begin_export(&from);
    begin_import(&to, 0);
    carry(&from, &to);
    end_export(&from);
    uint64_t formed = wait_formed(to.e[0], 1);
    sl_import_close(to.im[2], PAGES);
    sl_engine_close(to.e[2]);
    sl_engine_regroup(to.e[0]);
    while (!atomic_load(sl_import_stop(to.im[1]))) /* bounded by the test's time limit */
        nap();
    for (int i = 0; i < 2; i++)
        wait_forming(to.e[i]);
    open_rank(&to, 2);
    for (int i = 0; i < 300; i++, nap()) { /* it would come up in a few milliseconds */
        struct sl_engine_group g;
        sl_engine_group(to.e[i % 2], &g);
        assert_int_equal(g.state, SL_GROUP_FORMING);
        assert_int_equal(g.n_formed, formed);
    }
    sl_import_close(to.im[1], PAGES);
    wait_formed(to.e[0], formed + 1);
    assert_int_equal(sl_import_settle(to.im[0], PAGES, WAIT_MS), 0);
    sl_import_close(to.im[0], PAGES);
    expect_answer(&to, 0);
    expect_no_leak(&to);
    close_rig(&from);
    close_rig(&to);
}

/* A rank of the serving side dies: readers at all others hear of it, at those pages as well that
 * were complete; the prompt itself is computed once more. */
static void a_lost_source_ends_the_readers(void **state)
{
    (void)state;
    struct rig from;
    struct sl_export_reader *r[2];
    struct sl_export_unit u;
    struct sl_err err;
    open_rig(&from, 3, 1);
    uint64_t formed = wait_formed(from.e[0], 1);
    begin_export(&from);
    for (uint32_t i = 0; i < 2; i++) {
        struct sl_kv_part part = sl_engine_kv_part(from.e[i]);
        if (sl_export_read(from.x[i], &part, 0, &r[i], &err))
            fail_msg("%s", err.msg);
    }
    sl_export_close(from.x[2]);
    sl_engine_close(from.e[2]);
    sl_engine_regroup(from.e[0]);
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t n = 0;
        do {
            sl_export_next(r[i], 1000, &u);
            n += u.kind == SL_EXPORT_PAGE;
        } while (u.kind != SL_EXPORT_END);
        assert_true(u.status == (n == PAGES ? SL_OK : SL_PEER));
        while (!sl_export_is_lost(from.x[i])) /* bounded by the test's time limit */
            nap();
        sl_export_read_end(r[i]);
        sl_export_close(from.x[i]);
    }
    open_rank(&from, 2);
    wait_formed(from.e[0], formed + 1);
    finish(from.e[0], NULL, NULL, NULL);
    expect_no_leak(&from);
    close_rig(&from);
}

/* Engines close over transfers that nobody took or settled. */
static void close_with_work_inside(void **state)
{
    (void)state;
    struct rig r;
    struct sl_engine_request q = request();
    struct sl_err err;
    open_rig(&r, 2, 1);
    wait_formed(r.e[0], 1);
    begin_import(&r, 0);
    if (sl_export_open(r.e[0], &q, "x", 1, &r.x[0], &err))
        fail_msg("%s", err.msg);
    sl_import_close(r.im[1], 0);
    sl_import_close(r.im[0], PAGES); /* not settled */
    sl_export_close(r.x[0]);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_layout_to_any),
        cmocka_unit_test(a_rank_with_less_decides),
        cmocka_unit_test(a_lost_rank_takes_all),
        cmocka_unit_test(no_group_before_all_let_go),
        cmocka_unit_test(a_lost_source_ends_the_readers),
        cmocka_unit_test(close_with_work_inside),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
