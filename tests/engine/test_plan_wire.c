/* A plan arrives as it was sent; whatever bytes come instead are refused or are a plan whose every
 * number lies in range. */
#include "plan_wire.h"

#include <sluice/base/limits.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const struct wire_limits limits = {
    .max_seqs = 4, .max_rows = 16, .max_len = 64, .n_vocab = 100, .n_pages = 20, .page_size = 4};

/* Two decodes at positions 5 and 12, then a chunk of 6 that is not its prompt's end. */
static const uint32_t tokens[] = {7, 99, 1, 2, 3, 4, 5, 6};
static const uint32_t pos[] = {5, 12, 8, 9, 10, 11, 12, 13};
static const uint32_t q_start[] = {0, 1, 2, 8}, page_start[] = {0, 2, 6, 10};
static const uint32_t pages[] = {3, 19, 0, 1, 2, 4, 5, 6, 7, 8};
static const uint32_t logit_row[] = {0, 1}, logit_seq[] = {0, 1};
static const struct sl_plan sample = {.n_seq = 3,
                                      .n_tok = 8,
                                      .n_logits = 2,
                                      .tokens = tokens,
                                      .pos = pos,
                                      .q_start = q_start,
                                      .page_start = page_start,
                                      .pages = pages,
                                      .logit_row = logit_row,
                                      .logit_seq = logit_seq,
                                      .step = 77};

static void arrives_as_sent(void **state)
{
    (void)state;
    uint32_t body[256];
    struct wire_head h;
    struct sl_plan p;
    const struct wire_export *x;
    struct sl_err err;
    size_t expected, n = sl_wire_plan_put(&sample, NULL, 0, &h, body);
    assert_int_equal(sl_wire_head_check(&h, &limits, &expected, &err), SL_OK);
    assert_int_equal(n, expected);
    assert_true(n <= sl_wire_body_max(&limits));
    assert_int_equal(sl_wire_plan_get(&h, &limits, body, &p, &x, &err), SL_OK);
    assert_int_equal(p.step, 77);
    assert_int_equal(p.n_seq, 3);
    assert_int_equal(p.n_logits, 2);
    assert_memory_equal(p.tokens, tokens, sizeof tokens);
    assert_memory_equal(p.pos, pos, sizeof pos);
    assert_memory_equal(p.q_start, q_start, sizeof q_start);
    assert_memory_equal(p.page_start, page_start, sizeof page_start);
    assert_memory_equal(p.pages, pages, sizeof pages);
    assert_memory_equal(p.logit_row, logit_row, sizeof logit_row);
    assert_memory_equal(p.logit_seq, logit_seq, sizeof logit_seq);
}

/* The other kinds have no body. */
static void words_without_a_body(void **state)
{
    (void)state;
    for (uint32_t kind = WIRE_STATUS; kind <= WIRE_STOP; kind++) {
        struct wire_head h = sl_wire_head((enum wire_kind)kind, 3);
        struct sl_err err;
        size_t n = 1;
        assert_int_equal(sl_wire_head_check(&h, &limits, &n, &err), SL_OK);
        assert_int_equal(n, 0);
    }
}

static void heads_out_of_range(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        uint32_t value;
    } t[] = {
        {offsetof(struct wire_head, magic), 0},
        {offsetof(struct wire_head, kind), 0},
        {offsetof(struct wire_head, kind), WIRE_CHARTER + 1},
        {offsetof(struct wire_head, zero), 1},
        {offsetof(struct wire_head, first), 1},
        {offsetof(struct wire_head, n_note), 1},
        {offsetof(struct wire_head, n_exports), 4},
        {offsetof(struct wire_head, n_exports), UINT32_MAX},
        {offsetof(struct wire_head, n_seq), 0},
        {offsetof(struct wire_head, n_seq), 5},
        {offsetof(struct wire_head, n_seq), UINT32_MAX},
        {offsetof(struct wire_head, n_tok), 0},
        {offsetof(struct wire_head, n_tok), 17},
        {offsetof(struct wire_head, n_tok), 2},
        {offsetof(struct wire_head, n_logits), 4},
        {offsetof(struct wire_head, n_pages), 2},
        {offsetof(struct wire_head, n_pages), 49},
        {offsetof(struct wire_head, n_pages), UINT32_MAX},
    };
    uint32_t body[256];
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct wire_head h;
        struct sl_err err;
        size_t n;
        sl_wire_plan_put(&sample, NULL, 0, &h, body);
        memcpy((char *)&h + t[i].offset, &t[i].value, sizeof t[i].value);
        assert_int_equal(sl_wire_head_check(&h, &limits, &n, &err), SL_INVALID);
    }
}

/* Every word of the body, replaced by every sort of wrong number. */
static void bodies_out_of_range(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {100, 64, 20, UINT32_MAX, UINT32_MAX / 4 + 1};
    uint32_t body[256];
    struct wire_head h;
    struct sl_plan p;
    const struct wire_export *x;
    struct sl_err err;
    size_t n = sl_wire_plan_put(&sample, NULL, 0, &h, body) / sizeof *body;
    for (size_t at = 0; at < n; at++)
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
            uint32_t was = body[at];
            bool fits_a_token = at < sample.n_tok && wrong[k] < limits.n_vocab;
            body[at] = wrong[k];
            enum sl_status s = sl_wire_plan_get(&h, &limits, body, &p, &x, &err);
            if (s != (fits_a_token ? SL_OK : SL_INVALID))
                fail_msg("word %zu as %u: %d", at, wrong[k], s);
            body[at] = was;
        }
    assert_int_equal(sl_wire_plan_get(&h, &limits, body, &p, &x, &err), SL_OK);
}

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    struct wire_limits l = {.max_seqs = UINT32_MAX,
                            .max_rows = UINT32_MAX,
                            .max_len = UINT32_MAX,
                            .n_vocab = 1,
                            .n_pages = UINT32_MAX,
                            .page_size = 1};
    assert_int_equal(sl_wire_body_max(&l), SIZE_MAX);
}

/* Which sequences are read rides behind the plan. */
static void exports_ride_along(void **state)
{
    (void)state;
    const struct wire_export good[] = {{1, 3, 5, 6}, {2, 3, 7, 0}};
    const struct wire_export bad[][2] = {{{2, 3, 5, 6}, {1, 3, 7, 0}},
                                         {{1, 3, 5, 6}, {1, 3, 7, 0}},
                                         {{1, 3, 5, 6}, {3, 3, 7, 0}},
                                         {{1, 4, 5, 6}, {2, 3, 7, 0}},
                                         {{1, 3, 5, 6}, {2, UINT32_MAX, 7, 0}}};
    uint32_t body[256];
    struct wire_head h;
    struct sl_plan p;
    const struct wire_export *x;
    struct sl_err err;
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        size_t expected, n = sl_wire_plan_put(&sample, i ? bad[i - 1] : good, 2, &h, body);
        assert_int_equal(sl_wire_head_check(&h, &limits, &expected, &err), SL_OK);
        assert_int_equal(n, expected);
        assert_int_equal(sl_wire_plan_get(&h, &limits, body, &p, &x, &err), i ? SL_INVALID : SL_OK);
        if (!i)
            assert_memory_equal(x, good, sizeof good);
    }
}

static void transfers_arrive_as_sent(void **state)
{
    (void)state;
    static const uint8_t keys[3][32] = {{1}, {2}, {3}}, note[5] = "note";
    const uint32_t numbers[] = {4, 19, 0};
    const struct wire_transfer in = {.pages = numbers, .keys = keys, .note = note};
    uint32_t body[256];
    struct wire_transfer out;
    struct sl_err err;
    for (uint32_t kind = WIRE_EXPORT; kind <= WIRE_CHARTER; kind++) {
        struct wire_head h = sl_wire_head((enum wire_kind)kind, 9);
        bool has_pages = kind <= WIRE_IMPORT;
        size_t expected;
        h.n_pages = has_pages ? 3 : 0;
        h.first = has_pages ? 2 : 0;
        h.n_note = kind == WIRE_END ? 0 : sizeof note;
        assert_int_equal(sl_wire_head_check(&h, &limits, &expected, &err), SL_OK);
        assert_int_equal(sl_wire_transfer_put(&h, &in, body), expected);
        assert_true(expected <= sl_wire_body_max(&limits));
        assert_int_equal(sl_wire_transfer_get(&h, &limits, body, &out, &err), SL_OK);
        if (has_pages)
            assert_memory_equal(out.keys, keys, sizeof keys);
        if (h.n_note)
            assert_memory_equal(out.note, note, sizeof note);
        if (kind != WIRE_IMPORT)
            continue;
        assert_memory_equal(out.pages, numbers, sizeof numbers);
        body[1] = limits.n_pages;
        assert_int_equal(sl_wire_transfer_get(&h, &limits, body, &out, &err), SL_INVALID);
    }
}

static void transfers_out_of_range(void **state)
{
    (void)state;
    static const struct {
        uint32_t kind, first, n_pages, n_note, n_exports, n_seq;
    } t[] = {
        {WIRE_EXPORT, 0, 0, 0, 0, 0},
        {WIRE_EXPORT, 0, 17, 0, 0, 0}, /* max_len has 16 pages */
        {WIRE_IMPORT, 14, 3, 0, 0, 0},
        {WIRE_IMPORT, UINT32_MAX, 3, 0, 0, 0},
        {WIRE_IMPORT, 0, UINT32_MAX, 0, 0, 0},
        {WIRE_EXPORT, 0, 3, SL_LIMIT_transfer_note_bytes + 1, 0, 0},
        {WIRE_EXPORT, 0, 3, 0, 1, 0},
        {WIRE_EXPORT, 0, 3, 0, 0, 1},
        {WIRE_END, 0, 0, 1, 0, 0},
        {WIRE_END, 0, 1, 0, 0, 0},
        {WIRE_CHARTER, 0, 1, 0, 0, 0},
        {WIRE_CHARTER, 0, 0, UINT32_MAX, 0, 0},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct wire_head h = sl_wire_head((enum wire_kind)t[i].kind, 1);
        size_t n;
        struct sl_err err;
        h.first = t[i].first;
        h.n_pages = t[i].n_pages;
        h.n_note = t[i].n_note;
        h.n_exports = t[i].n_exports;
        h.n_seq = t[i].n_seq;
        if (sl_wire_head_check(&h, &limits, &n, &err) != SL_INVALID)
            fail_msg("row %zu passes", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrives_as_sent),          cmocka_unit_test(words_without_a_body),
        cmocka_unit_test(heads_out_of_range),       cmocka_unit_test(bodies_out_of_range),
        cmocka_unit_test(sizes_do_not_wrap),        cmocka_unit_test(exports_ride_along),
        cmocka_unit_test(transfers_arrive_as_sent), cmocka_unit_test(transfers_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
