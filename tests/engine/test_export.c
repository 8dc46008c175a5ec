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

enum { PAGE = 4, N_LAYERS = 3, N_HEADS = 2, N_PAGES = 16, HALF = 32, N_TOKENS = 5 * PAGE + 1 };
enum { ROW = 2 * N_HEADS * HALF }; /* HALF: K or V of one head: PAGE positions of 4 f16 */

struct rig {
    struct sl_engine e;
    struct sl_export *step_exports[2], *x;
    struct wire_export wire_exports[2];
    struct sl_export_reader *reader;
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
    e->kv.cfg = (struct sl_kv_config){.n_layers = N_LAYERS,
                                      .n_kv_heads = N_HEADS,
                                      .head_dim = 4,
                                      .page_size = PAGE,
                                      .n_pages = N_PAGES,
                                      .dtype = SL_F16};
    e->model_cfg = (struct sl_model_config){.n_layers = N_LAYERS,
                                            .n_heads = N_HEADS,
                                            .n_kv_heads = N_HEADS,
                                            .head_dim = 4,
                                            .ffn_dim = 32,
                                            .n_vocab = 100};
    e->kv_dtype_row_bytes = 8;
    e->kv.page_bytes = ROW;
    e->kv.layer_bytes = (size_t)N_PAGES * ROW;
    e->kv.data = calloc((size_t)N_LAYERS * N_PAGES, ROW);
    e->keeps_prefixes = true;
    e->step_exports = r->step_exports;
    e->wire_exports = r->wire_exports;
    sl_list_init(&e->exports);
    sl_list_init(&e->imports);
    e->inbox = sl_queue_open(16);
    sl_list_init(&e->jobs);
    assert_true(e->kv.data && e->inbox);
    for (size_t i = 0; i < (size_t)N_LAYERS * N_PAGES * ROW; i++)
        ((uint8_t *)e->kv.data)[i] = (uint8_t)(i / HALF * 7 + i / ROW);
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
        sl_export_begin(&r->e, c->job->export);
        assert_int_equal(sl_sched_submit(r->e.sched, &q, 0, NULL), SL_OK);
    }
    if (c->kind == CMD_EXPORT_CLOSE)
        sl_export_closed(&r->e, c->transfer);
    free(c);
}

static struct sl_export_reader *read_part(struct rig *r, struct sl_kv_part part, uint32_t first)
{
    struct sl_export_reader *reader;
    struct sl_err err;
    if (sl_export_read(r->x, &part, first, &reader, &err))
        fail_msg("%s", err.msg);
    return reader;
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
    if (sl_export_open(&r->e, &q, NULL, 0, &r->x, &err))
        fail_msg("%s", err.msg);
    take_command(r);
    r->reader = read_part(r, (struct sl_kv_part){0, N_LAYERS, 0, N_HEADS}, 0);
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
    sl_export_read_end(r->reader);
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
        sl_export_next(r->reader, 0, &u);
        assert_int_equal(u.kind, SL_EXPORT_ROW);
        assert_int_equal(u.page, p);
        assert_int_equal(u.layer, layer);
        assert_true(u.row >= r->e.kv.data);
    }
}

static void expect(struct rig *r, enum sl_export_kind kind, uint32_t page)
{
    struct sl_export_unit u;
    sl_export_next(r->reader, 0, &u);
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
    sl_export_next(r.reader, 0, &u);
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
    sl_export_read_end(r.reader);
    r.reader = read_part(&r, (struct sl_kv_part){0, N_LAYERS, 0, N_HEADS}, 3);
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

/* Each reader has its own pace, layers and heads. */
static void parts_are_read_side_by_side(void **state)
{
    (void)state;
    struct rig r;
    struct sl_export_unit u;
    const struct sl_kv_part bad[] = {{0, 4, 0, 2}, {3, 1, 0, 2}, {0, 3, 1, 2},
                                     {0, 0, 0, 2}, {0, 3, 0, 0}, {1, UINT32_MAX, 0, 1}};
    begin(&r);
    struct sl_export_reader *p = read_part(&r, (struct sl_kv_part){1, 2, 1, 1}, 1), *none;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(sl_export_read(r.x, &bad[i], 0, &none, NULL), SL_INVALID);
    assert_int_equal(sl_export_read(r.x, &(struct sl_kv_part){0, 1, 0, 1}, 6, &none, NULL),
                     SL_INVALID);
    plan(&r, 64);
    sl_exports_layer(&r.e, 0, r.plan->n_tok);
    sl_export_next(p, 0, &u);
    assert_int_equal(u.kind, SL_EXPORT_WAIT); /* nothing of its layers yet */
    for (uint32_t l = 1; l < N_LAYERS; l++) {
        sl_exports_layer(&r.e, l, r.plan->n_tok);
        for (uint32_t page = 1; page < 5; page++) {
            sl_export_next(p, 0, &u);
            assert_true(u.kind == SL_EXPORT_ROW && u.page == page && u.layer == l);
            const uint8_t *row = sl_engine_kv_row(&r.e, r.plan->pages[page], l);
            assert_memory_equal(u.row, row + HALF, HALF); /* K of head 1 */
            assert_memory_equal((const uint8_t *)u.row + HALF, row + 3 * HALF, HALF); /* its V */
        }
    }
    commit(&r, SL_OK);
    for (uint32_t page = 1; page < 5; page++) {
        sl_export_next(p, 0, &u);
        assert_true(u.kind == SL_EXPORT_PAGE && u.page == page);
    }
    sl_export_next(p, 0, &u);
    assert_true(u.kind == SL_EXPORT_END && u.status == SL_OK);
    sl_export_read_end(p);
    for (uint32_t page = 0; page < 5; page++) { /* the other one has not begun */
        for (uint32_t l = 0; l < N_LAYERS; l++)
            expect_rows(&r, l, page, page + 1);
        expect(&r, SL_EXPORT_PAGE, page);
    }
    expect(&r, SL_EXPORT_END, 0);
    end(&r);
}

/* Its group was lost: even what is final goes to nobody any more, and the pages that the prompt
 * gets when it is computed once more are not taken for its first ones. */
static void a_broken_one_gives_nothing(void **state)
{
    (void)state;
    struct rig r;
    begin(&r);
    plan(&r, 2 * PAGE);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        sl_exports_layer(&r.e, l, r.plan->n_tok);
    commit(&r, SL_OK);
    expect_rows(&r, 0, 0, 1);
    assert_true(sl_export_is_read(r.x));
    plan(&r, PAGE);
    r.x->t.id = 1; /* other ranks knew it */
    sl_transfers_lost(&r.e, false);
    sl_sched_forget_kv(r.e.sched);
    expect(&r, SL_EXPORT_END, 0);
    plan(&r, 64);
    assert_int_equal(r.e.n_step_exports, 0);
    commit(&r, SL_OK);
    assert_int_equal(r.x->n_final, 2);
    expect(&r, SL_EXPORT_END, 0);
    end(&r);
}

/* int8 rows carry their scales behind each half. */
static void heads_are_cut_out_and_put_back(void **state)
{
    (void)state;
    enum { HEADS = 5, DIM = 6, BYTES = 2 * HEADS * PAGE * (DIM + 4) };
    const struct sl_kv_config c = {
        .n_kv_heads = HEADS, .head_dim = DIM, .page_size = PAGE, .dtype = SL_I8};
    uint8_t row[BYTES], part[BYTES], back[BYTES];
    for (size_t i = 0; i < BYTES; i++)
        row[i] = (uint8_t)(i * 31 + i / 256);
    for (uint32_t first = 0; first < HEADS; first++)
        for (uint32_t n = 1; n <= HEADS - first; n++) {
            memset(back, 0, sizeof back);
            uint32_t left = HEADS - first - n;
            const uint32_t cut[3][2] = {{0, first}, {first, n}, {first + n, left}};
            for (uint32_t k = 0; k < 3; k++) {
                if (!cut[k][1])
                    continue;
                sl_kv_slice(&c, row, cut[k][0], cut[k][1], part);
                sl_kv_unslice(&c, back, cut[k][0], cut[k][1], part);
            }
            assert_memory_equal(back, row, BYTES);
            sl_kv_slice(&c, row, first, n, part);
            const uint8_t *k = row + (size_t)first * PAGE * DIM;
            const uint8_t *scales = row + (size_t)HEADS * PAGE * DIM + (size_t)first * PAGE * 4;
            const uint8_t *v = k + (size_t)HEADS * PAGE * (DIM + 4);
            assert_memory_equal(part, k, n * PAGE * DIM);
            assert_memory_equal(part + n * PAGE * DIM, scales, n * PAGE * 4);
            assert_memory_equal(part + n * PAGE * (DIM + 4), v, n * PAGE * DIM);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_read_side_by_side),
        cmocka_unit_test(a_broken_one_gives_nothing),
        cmocka_unit_test(heads_are_cut_out_and_put_back),
        cmocka_unit_test(rows_leave_layer_by_layer),
        cmocka_unit_test(a_failed_step_ends_it),
        cmocka_unit_test(skipped_pages_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
