/* Rows leave while the step that computes them runs, layer by layer, and a page counts only after
 * the step was committed. The engine's thread is played by hand, so that what a reader sees after
 * each layer is certain. */
#include "engine.h"
#include "transfer.h"

#include <sluice/base/mem.h>
#include <sluice/control/sched.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { PAGE = 4, N_LAYERS = 3, N_PAGES = 16, ROW = 64, N_TOKENS = 5 * PAGE + 1 };

struct rig {
    struct sl_engine e;
    struct sl_export *step_exports[2], *x;
    const struct sl_plan *plan;
};

static void setup_rig(struct rig *r)
{
    struct sl_sched_config c = {.max_seqs = 2,
                                .max_batch_tokens = 64,
                                .max_len = 64,
                                .n_pages = N_PAGES,
                                .page_size = PAGE,
                                .queue_max = 4,
                                .prefix_cache = true};
    memset(r, 0, sizeof *r);
    struct sl_engine *e = &r->e;
    e->info = (struct sl_engine_info){
        .max_seqs = 2, .max_len = 64, .n_vocab = 100, .page_size = PAGE, .queue_max = 4};
    e->kv.cfg = (struct sl_kv_config){.n_layers = N_LAYERS, .page_size = PAGE, .n_pages = N_PAGES};
    e->kv.page_bytes = ROW;
    e->kv.layer_bytes = (size_t)N_PAGES * ROW;
    e->kv.data = calloc((size_t)N_LAYERS * N_PAGES, ROW);
    e->keeps_prefixes = true;
    e->step_exports = r->step_exports;
    e->inbox = sl_queue_open(16);
    sl_list_init(&e->jobs);
    assert_true(e->kv.data && e->inbox);
    assert_int_equal(sl_sched_open(&c, &e->sched, NULL), SL_OK);
}

/* Takes one command, as the engine's thread does. */
static void take_command(struct rig *r)
{
    struct cmd *c = sl_queue_pop(r->e.inbox);
    assert_non_null(c);
    if (c->kind == CMD_SUBMIT) {
        struct sl_sched_request q = c->job->req.seq;
        q.user = c->job;
        assert_int_equal(sl_sched_submit(r->e.sched, &q, 0, NULL), SL_OK);
    }
    if (c->kind == CMD_EXPORT_CLOSE)
        sl_export_drop(&r->e, c->transfer);
    free(c);
}

static void begin(struct rig *r)
{
    uint32_t tokens[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = i + 1;
    struct sl_engine_request q = {
        .seq = {.id = 1, .tokens = tokens, .n_tokens = N_TOKENS, .n_prompt = N_TOKENS}};
    q.sampling = sl_sampling_default();
    struct sl_err err;
    setup_rig(r);
    if (sl_export_open(&r->e, &q, &r->x, &err))
        fail_msg("%s", err.msg);
    take_command(r);
}

static void plan(struct rig *r, uint32_t budget)
{
    r->plan = sl_sched_plan(r->e.sched, budget, 0);
    assert_non_null(r->plan);
    sl_exports_plan(&r->e, r->plan);
}

static void commit(struct rig *r, enum sl_status status)
{
    if (status)
        sl_sched_cancel(r->e.sched, 1);
    sl_sched_commit(r->e.sched, NULL, 0);
    sl_exports_commit(&r->e, status);
    struct sl_ended ended;
    while (sl_sched_next_ended(r->e.sched, &ended)) {
        struct job *j = ended.user;
        sl_export_end(&r->e, j->export, status ? status : SL_OK);
        sl_job_free(j);
    }
}

static void end(struct rig *r)
{
    struct sl_sched_stats st;
    sl_export_close(r->x);
    take_command(r);
    sl_sched_stats(r->e.sched, &st);
    assert_int_equal(st.pages_held, 0);
    assert_int_equal(st.pages_free, st.pages_total);
    sl_sched_close(r->e.sched);
    sl_queue_close(r->e.inbox);
    free(r->e.kv.data);
}

/* The next units are rows of `layer` of pages [first, end), in this order. */
static void expect_rows(struct rig *r, uint32_t layer, uint32_t first, uint32_t end_page)
{
    struct sl_export_unit u;
    for (uint32_t p = first; p < end_page; p++) {
        sl_export_next(r->x, 0, &u);
        assert_int_equal(u.kind, SL_EXPORT_ROW);
        assert_int_equal(u.page, p);
        assert_int_equal(u.layer, layer);
        assert_true(u.row >= r->e.kv.data);
    }
}

static void expect(struct rig *r, enum sl_export_kind kind, uint32_t page)
{
    struct sl_export_unit u;
    sl_export_next(r->x, 0, &u);
    assert_int_equal(u.kind, kind);
    if (kind == SL_EXPORT_PAGE)
        assert_int_equal(u.page, page);
}

static void rows_leave_layer_by_layer(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    expect(&r, SL_EXPORT_WAIT, 0);
    plan(&r, 2 * PAGE + 2); /* two full pages and a half */
    expect(&r, SL_EXPORT_WAIT, 0);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        sl_exports_layer(&r.e, l, r.plan->n_tok - 1); /* not all rows: nothing is ready */
        expect(&r, SL_EXPORT_WAIT, 0);
        sl_exports_layer(&r.e, l, r.plan->n_tok);
        expect_rows(&r, l, 0, 2);
        expect(&r, SL_EXPORT_WAIT, 0); /* no page is final within a step */
    }
    commit(&r, SL_OK);
    expect(&r, SL_EXPORT_PAGE, 0);
    expect(&r, SL_EXPORT_PAGE, 1);
    expect(&r, SL_EXPORT_WAIT, 0);
    plan(&r, 64); /* the rest; the reader comes when two layers are done */
    sl_exports_layer(&r.e, 0, r.plan->n_tok);
    sl_exports_layer(&r.e, 1, r.plan->n_tok);
    expect_rows(&r, 0, 2, 5);
    expect_rows(&r, 1, 2, 5);
    commit(&r, SL_OK);
    for (uint32_t p = 2; p < 5; p++) {
        expect_rows(&r, 2, p, p + 1);
        expect(&r, SL_EXPORT_PAGE, p);
    }
    expect(&r, SL_EXPORT_END, 0);
    end(&r);
}

/* What a step computed that failed was sent in vain: no page of it counts. */
static void a_failed_step_ends_it(void **state)
{
    (void)state;
    struct rig r;
    struct sl_export_unit u;
    begin(&r);
    plan(&r, PAGE);
    sl_exports_layer(&r.e, 0, r.plan->n_tok);
    commit(&r, SL_OK);
    plan(&r, 2 * PAGE);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        sl_exports_layer(&r.e, l, r.plan->n_tok);
    commit(&r, SL_FAILED);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        expect_rows(&r, l, 0, 1);
    expect(&r, SL_EXPORT_PAGE, 0);
    sl_export_next(r.x, 0, &u);
    assert_int_equal(u.kind, SL_EXPORT_END);
    assert_int_equal(u.status, SL_FAILED);
    end(&r);
}

/* A reader that has the first pages gets the others only. */
static void skipped_pages_stay(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    sl_export_skip(r.x, 3);
    plan(&r, 64);
    sl_exports_layer(&r.e, 0, r.plan->n_tok);
    expect_rows(&r, 0, 3, 5);
    commit(&r, SL_OK);
    for (uint32_t p = 3; p < 5; p++) {
        expect_rows(&r, 1, p, p + 1);
        expect_rows(&r, 2, p, p + 1);
        expect(&r, SL_EXPORT_PAGE, p);
    }
    expect(&r, SL_EXPORT_END, 0);
    end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_leave_layer_by_layer),
        cmocka_unit_test(a_failed_step_ends_it),
        cmocka_unit_test(skipped_pages_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
