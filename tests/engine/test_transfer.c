/* Pages computed by one engine and carried to another, all of them, some, or spoiled on the way,
 * give the answers of an engine that computes everything itself; and no page is lost, whoever
 * breaks off. */
#include "golden/tiny_model.h"

#include <sluice/engine/transfer.h>
#include <sluice/files/gguf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { N_REQUESTS = 10, TOKENS_MAX = 24, PROMPT_MAX = 400 };

struct answer {
    uint32_t tokens[TOKENS_MAX];
    float logprobs[TOKENS_MAX];
    uint32_t n, n_cached;
    enum sl_end end;
};

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;
static struct tiny_model tiny;
static struct answer expected[N_REQUESTS];
static uint32_t prompts[N_REQUESTS][PROMPT_MAX];

/* Prompts of 3 to 300 tokens, some with a prefix in common. */
static struct sl_engine_request request(uint32_t i)
{
    uint32_t n = 3 + i * 33;
    for (uint32_t k = 0; k < n; k++)
        prompts[i][k] = k < 70 && i % 2 ? 11 + k % 5 : (i * 31 + k * 17) % 250;
    struct sl_engine_request q = {
        .seq = {.id = i + 1, .tokens = prompts[i], .n_tokens = n, .n_prompt = n}};
    q.sampling = sl_sampling_default();
    q.sampling.max_tokens = 8 + i;
    q.seq.max_new = q.sampling.max_tokens;
    q.sampling.want_logprob = true;
    q.sampling.ignore_eos = true;
    q.sampling.seed = 5 + i;
    q.sampling.temperature = i % 2 ? 0.0f : 1.0f;
    q.seq.salt[0] = (uint8_t)(i % 3);
    return q;
}

static struct sl_engine *open_engine(uint32_t chunk, bool cache, uint64_t kv_bytes)
{
    struct sl_engine_config cfg = {.gguf = gguf,
                                   .backend = "cpu",
                                   .n_threads = 1,
                                   .max_seqs = 8,
                                   .max_len = 512,
                                   .kv_dtype = SL_F16,
                                   .kv_bytes = kv_bytes,
                                   .fixed_chunk = chunk,
                                   .prefix_cache = cache};
    struct sl_engine *e;
    struct sl_err err;
    if (sl_engine_open(&cfg, &e, &err))
        fail_msg("%s", err.msg);
    return e;
}

static struct answer finish(struct sl_engine *e)
{
    struct answer a = {.end = SL_END_NONE};
    while (!a.end) {
        struct sl_engine_step *s = sl_engine_poll(e);
        if (!s) {
            sl_engine_wait(e, 1000);
            continue;
        }
        for (uint32_t i = 0; i < s->n_outs; i++) {
            const struct sl_engine_out *o = &s->outs[i];
            if (o->has_token) {
                assert_true(a.n < TOKENS_MAX);
                a.tokens[a.n] = o->token.token;
                a.logprobs[a.n++] = o->token.logprob;
            }
            a.n_cached += o->n_cached;
            a.end = o->end ? o->end : a.end;
        }
        sl_engine_release(e, s);
    }
    return a;
}

static struct answer run(struct sl_engine *e, uint32_t i)
{
    struct sl_engine_request q = request(i);
    struct sl_err err;
    if (sl_engine_submit(e, &q, &err))
        fail_msg("%s", err.msg);
    return finish(e);
}

static void expect_same(const struct answer *a, uint32_t i, const char *why)
{
    const struct answer *w = &expected[i];
    bool same = a->n == w->n && a->end == w->end &&
                !memcmp(a->tokens, w->tokens, a->n * sizeof *a->tokens) &&
                !memcmp(a->logprobs, w->logprobs, a->n * sizeof *a->logprobs);
    if (!same)
        fail_msg("request %u differs: %s", i, why);
}

static int setup(void **state)
{
    (void)state;
    struct sl_err err;
    struct tiny_model m = tiny = tiny_model_default();
    if (tiny_model_buf(&m, &model_bytes, &err) ||
        sl_gguf_parse(model_bytes.data, model_bytes.len, false, &gguf, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return -1;
    }
    struct sl_engine *e = open_engine(0, false, 0);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        expected[i] = run(e, i);
    sl_engine_close(e);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    sl_gguf_close(gguf);
    sl_buf_free(&model_bytes);
    return 0;
}

/* All pages are to be had again, as soon as the engine's thread has heard of it. */
static void expect_no_leak(struct sl_engine *e)
{
    struct sl_engine_stats s;
    do {
        sl_engine_stats(e, &s);
        sl_engine_cancel(e, UINT64_MAX); /* wakes it */
    } while (s.sched.running || s.sched.waiting || s.sched.pages_held ||
             s.sched.pages_free != s.sched.pages_total);
}

static struct sl_export *begin_export(struct sl_engine *e, uint32_t i)
{
    struct sl_engine_request q = request(i);
    struct sl_export *x;
    struct sl_err err;
    if (sl_export_open(e, &q, NULL, 0, &x, &err))
        fail_msg("%s", err.msg);
    return x;
}

static struct sl_export_reader *begin_reading(struct sl_export *x, uint32_t first)
{
    struct sl_kv_part part = {0, tiny.n_layers, 0, tiny.n_kv_heads};
    struct sl_export_reader *r;
    struct sl_err err;
    if (sl_export_read(x, &part, first, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

/* --- carrying --------------------------------------------------------------------------------- */

enum { ALL = 1000 };

/* Rows of an export into an import; `spoil_page`'s last row loses a bit, and the carrier, who
 * checks, counts only what came before it. Stops after `pages_max`. Returns pages complete. */
static uint32_t carry(struct sl_engine *from, struct sl_engine *to, uint32_t i, uint32_t pages_max,
                      uint32_t spoil_page)
{
    struct sl_engine_request q = request(i);
    struct sl_kv_layout layout;
    struct sl_export *x = begin_export(from, i);
    struct sl_import *im;
    struct sl_err err;
    struct sl_export_unit u;
    uint32_t first, end, n_complete = 0, n_pages = sl_export_n_pages(x), n_rows[64] = {0};
    assert_true(sl_engine_kv_layout(to, &layout));
    assert_int_equal(n_pages, (q.seq.n_tokens - 1) / layout.page_size);
    if (sl_import_open(to, q.seq.salt, q.seq.tokens, n_pages, 20000, &im, &err))
        fail_msg("%s", err.msg);
    first = sl_import_first(im);
    end = sl_import_reserve(im, NULL, 0, 20000);
    assert_memory_equal(sl_import_keys(im), sl_export_key(x, 0), 32 * (size_t)n_pages);
    struct sl_export_reader *r = begin_reading(x, first);
    struct sl_kv_part part = sl_engine_kv_part(to);
    uint32_t most = pages_max < end - first ? pages_max : end - first;
    while (n_complete < most) {
        sl_export_next(r, 1000, &u);
        if (u.kind == SL_EXPORT_END)
            break;
        if (u.kind == SL_EXPORT_ROW) {
            assert_int_equal(u.layer, n_rows[u.page]++);
            if (u.page >= end)
                continue;
            uint8_t *row = sl_import_row(im, u.page, u.layer, &part);
            memcpy(row, u.row, layout.n_heads * layout.head_bytes);
            row[3] ^= u.page == spoil_page && u.layer + 1 == layout.n_layers;
        }
        if (u.kind == SL_EXPORT_PAGE) {
            assert_int_equal(n_rows[u.page], layout.n_layers);
            assert_int_equal(u.page, first + n_complete);
            if (u.page == spoil_page)
                break;
            n_complete++;
        }
    }
    sl_export_read_end(r);
    sl_export_close(x);
    sl_import_close(im, n_complete);
    finish(from); /* the prefill itself */
    return first + n_complete;
}

static void a_carried_prefix_gives_the_same(void **state)
{
    (void)state;
    const uint32_t chunks[] = {0, 7, 48, 512};
    for (uint32_t c = 0; c < 4; c++) {
        struct sl_engine *p = open_engine(chunks[c], true, 0), *d = open_engine(0, true, 0);
        for (uint32_t i = 1; i < N_REQUESTS; i++) {
            uint32_t n = carry(p, d, i, ALL, ALL);
            struct answer a = run(d, i);
            expect_same(&a, i, "carried");
            assert_int_equal(n, (request(i).seq.n_tokens - 1) / 16);
            assert_int_equal(a.n_cached, n * 16);
        }
        struct sl_engine_stats s;
        sl_engine_stats(d, &s);
        assert_true(s.sched.n_prefill_tokens <= N_REQUESTS * 16);
        expect_no_leak(p);
        expect_no_leak(d);
        sl_engine_close(p);
        sl_engine_close(d);
    }
}

/* Twice the same prompt: the second time everything is cached at both ends. */
static void a_cached_prefix_is_exported_as_well(void **state)
{
    (void)state;
    struct sl_engine *p = open_engine(0, true, 0), *d = open_engine(0, true, 0);
    assert_int_equal(carry(p, d, 5, 4, ALL), 4);
    assert_int_equal(carry(p, d, 5, ALL, ALL), 10);
    assert_int_equal(carry(p, d, 5, ALL, ALL), 10);
    struct answer a = run(d, 5);
    expect_same(&a, 5, "carried in two pieces");
    assert_int_equal(a.n_cached, 160);
    expect_no_leak(p);
    expect_no_leak(d);
    sl_engine_close(p);
    sl_engine_close(d);
}

static void what_is_missing_is_computed(void **state)
{
    (void)state;
    for (uint32_t i = 1; i < N_REQUESTS; i++) {
        struct sl_engine *p = open_engine(32, true, 0), *d = open_engine(0, true, 0);
        uint32_t n_pages = (request(i).seq.n_tokens - 1) / 16, part = i % 3 ? n_pages / 2 : 0;
        assert_int_equal(carry(p, d, i, part, ALL), part);
        struct answer a = run(d, i);
        expect_same(&a, i, "carried in part");
        assert_int_equal(a.n_cached, part * 16);
        sl_engine_close(p);
        sl_engine_close(d);
    }
}

static void a_spoiled_page_is_computed(void **state)
{
    (void)state;
    for (uint32_t bad = 0; bad < 4; bad++) {
        struct sl_engine *p = open_engine(32, true, 0), *d = open_engine(0, true, 0);
        assert_int_equal(carry(p, d, 8, ALL, bad), bad);
        struct answer a = run(d, 8);
        expect_same(&a, 8, "spoiled");
        assert_int_equal(a.n_cached, bad * 16);
        expect_no_leak(d);
        sl_engine_close(p);
        sl_engine_close(d);
    }
}

/* --- breaking off ------------------------------------------------------------------------------
 */

static void cancel_and_close_give_pages_back(void **state)
{
    (void)state;
    struct sl_engine *e = open_engine(16, true, 0);
    struct sl_export_unit u;
    for (uint32_t n_units = 0; n_units < 40; n_units += 3) {
        struct sl_export *x = begin_export(e, 9);
        struct sl_export_reader *r = begin_reading(x, 0);
        for (uint32_t k = 0; k < n_units; k++)
            sl_export_next(r, 1000, &u);
        if (n_units % 2) {
            sl_engine_cancel(e, 10);
        } else {
            sl_export_read_end(r);
            sl_export_close(x);
        }
        struct answer a = finish(e);
        if (n_units % 2) {
            assert_true(a.end == SL_END_CANCELLED || a.end == SL_END_LENGTH);
            do
                sl_export_next(r, 1000, &u);
            while (u.kind != SL_EXPORT_END);
            assert_int_equal(u.status, a.end == SL_END_LENGTH ? SL_OK : SL_CANCELLED);
            sl_export_read_end(r);
            sl_export_close(x);
        }
        expect_no_leak(e);
    }
    sl_engine_close(e);
}

/* Readers that never read keep at most half of the pages; the engine goes on with the other half.
 */
static void forgotten_exports_leave_room(void **state)
{
    (void)state;
    struct sl_kv_layout l;
    struct sl_engine *e = open_engine(0, true, 0);
    assert_true(sl_engine_kv_layout(e, &l));
    sl_engine_close(e);
    e = open_engine(0, true, (uint64_t)l.head_bytes * l.n_heads * l.n_layers * 48); /* 48 pages */
    struct sl_export *x[3];
    for (uint32_t i = 0; i < 3; i++) {
        x[i] = begin_export(e, 7 + i);
        struct answer a = finish(e);
        assert_int_equal(a.end, SL_END_LENGTH);
        assert_int_equal(a.n, 0);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        struct answer a = run(e, i);
        expect_same(&a, i, "beside forgotten exports");
    }
    struct sl_export_unit u;
    struct sl_export_reader *r = begin_reading(x[2], 0);
    do
        sl_export_next(r, 1000, &u);
    while (u.kind != SL_EXPORT_END);
    sl_export_read_end(r);
    assert_int_equal(u.status, SL_NO_MEMORY);
    for (uint32_t i = 0; i < 3; i++)
        sl_export_close(x[i]);
    expect_no_leak(e);
    sl_engine_close(e);
}

/* Half of all pages at most are filled from outside at once. Who gets none, or asks and never
 * fills, gives them back. */
static void imports_leave_room(void **state)
{
    (void)state;
    struct sl_kv_layout l;
    struct sl_engine *e = open_engine(0, true, 0);
    assert_true(sl_engine_kv_layout(e, &l));
    sl_engine_close(e);
    e = open_engine(0, true, (uint64_t)l.head_bytes * l.n_heads * l.n_layers * 24); /* 24 pages */
    struct sl_engine_request q = request(9);
    struct sl_import *im[3];
    struct sl_err err;
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(sl_import_open(e, q.seq.salt, q.seq.tokens, 18, 20000, &im[i], &err),
                         SL_OK);
    assert_int_equal(sl_import_reserve(im[0], NULL, 0, 20000), 12);
    assert_int_equal(sl_import_reserve(im[1], NULL, 0, 20000), 0);
    struct answer a = run(e, 4);
    expect_same(&a, 4, "beside imports");
    for (uint32_t i = 0; i < 3; i++)
        sl_import_close(im[i], 0);
    expect_no_leak(e);
    a = run(e, 9);
    expect_same(&a, 9, "after imports without an end");
    sl_engine_close(e);
}

static void refusals(void **state)
{
    (void)state;
    struct sl_engine *e = open_engine(0, true, 0), *plain = open_engine(0, false, 0);
    struct sl_engine_request q = request(3);
    struct sl_export *x;
    struct sl_import *im;
    struct sl_err err;
    assert_int_equal(sl_export_open(plain, &q, NULL, 0, &x, &err), SL_UNSUPPORTED);
    assert_int_equal(sl_import_open(plain, q.seq.salt, q.seq.tokens, 1, 1000, &im, &err),
                     SL_UNSUPPORTED);
    q.seq.n_tokens = q.seq.n_prompt = 16;
    assert_int_equal(sl_export_open(e, &q, NULL, 0, &x, &err), SL_INVALID);
    q.seq.n_tokens = q.seq.n_prompt = 17;
    prompts[3][16] = UINT32_MAX;
    assert_int_equal(sl_export_open(e, &q, NULL, 0, &x, &err), SL_INVALID);
    sl_engine_close(e);
    sl_engine_close(plain);
}

/* The engine closes over open ends that were closed before in its inbox. */
static void close_with_work_inside(void **state)
{
    (void)state;
    struct sl_engine *e = open_engine(16, true, 0);
    struct sl_engine_request q = request(9);
    struct sl_import *im;
    struct sl_err err;
    struct sl_export *x = begin_export(e, 9);
    assert_int_equal(sl_import_open(e, q.seq.salt, q.seq.tokens, 5, 20000, &im, &err), SL_OK);
    assert_int_equal(sl_import_reserve(im, NULL, 0, 20000), 5);
    sl_export_close(x);
    sl_import_close(im, 0);
    sl_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_carried_prefix_gives_the_same),
        cmocka_unit_test(a_cached_prefix_is_exported_as_well),
        cmocka_unit_test(what_is_missing_is_computed),
        cmocka_unit_test(a_spoiled_page_is_computed),
        cmocka_unit_test(cancel_and_close_give_pages_back),
        cmocka_unit_test(forgotten_exports_leave_room),
        cmocka_unit_test(imports_leave_room),
        cmocka_unit_test(refusals),
        cmocka_unit_test(close_with_work_inside),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
