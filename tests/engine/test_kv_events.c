/* A reader of an engine's KV events has a copy of its prefix cache: also one that reads late, so
 * that events were lost, and one that asks to be told everything again. */
#include "golden/tiny_model.h"

#include <sluice/base/limits.h>
#include <sluice/control/kv_events.h>
#include <sluice/control/kv_index.h>
#include <sluice/engine/engine.h>
#include <sluice/files/gguf.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

enum { PAGE = 4, N_PROMPT = 81, PAGES = N_PROMPT / PAGE, AT_ONCE = 256, SETTLED = 2 };

static struct sl_buf model_bytes = {.cap_bytes = (size_t)64 << 20};
static struct sl_gguf *gguf;
static struct sl_engine *e;
static struct sl_kv_index *copy;
static uint64_t next_id;
static uint32_t n_cleared;

static void open_all(void)
{
    struct sl_err err;
    struct tiny_model m = tiny_model_default();
    if (tiny_model_buf(&m, &model_bytes, &err) ||
        sl_gguf_parse(model_bytes.data, model_bytes.len, false, &gguf, &err))
        fail_msg("%s", err.msg);
    struct sl_engine_config cfg = {.gguf = gguf,
                                   .backend = "cpu",
                                   .n_threads = 1,
                                   .max_seqs = 2,
                                   .max_len = 128,
                                   .page_size = PAGE,
                                   .kv_bytes = 400000,
                                   .kv_dtype = SL_F16,
                                   .prefix_cache = true,
                                   .kv_events = true};
    if (sl_engine_open(&cfg, &e, &err) || sl_kv_index_open(1, 1 << 16, &copy, &err))
        fail_msg("%s", err.msg);
    n_cleared = 0;
}

static void close_all(void)
{
    sl_engine_close(e);
    sl_kv_index_close(copy);
    sl_gguf_close(gguf);
    sl_buf_free(&model_bytes);
}

static void make_prompt(uint32_t i, uint32_t tokens[N_PROMPT])
{
    for (uint32_t k = 0; k < N_PROMPT; k++)
        tokens[k] = (i * 7 + k * 13 + (k < 20 ? 0 : i * k)) % 200;
}

/* Waits for the end of the only request; its status, and how many tokens were found cached. */
static enum sl_status wait_for_end(uint32_t *n_cached)
{
    *n_cached = 0;
    for (;;) {
        struct sl_engine_step *s = sl_engine_poll(e);
        if (!s) {
            sl_engine_wait(e, 100);
            continue;
        }
        bool ended = false;
        enum sl_status status = SL_OK;
        for (uint32_t k = 0; k < s->n_outs; k++) {
            *n_cached += s->outs[k].n_cached;
            ended |= s->outs[k].end != SL_END_NONE;
            status = s->outs[k].status;
        }
        sl_engine_release(e, s);
        if (ended)
            return status;
    }
}

static void submit(const uint32_t *tokens)
{
    struct sl_engine_request q = {.seq = {.id = ++next_id,
                                          .tokens = tokens,
                                          .n_tokens = N_PROMPT,
                                          .n_prompt = N_PROMPT,
                                          .max_new = 1}};
    q.sampling = (struct sl_sampling){
        .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .max_tokens = 1, .ignore_eos = true};
    struct sl_err err;
    if (sl_engine_submit(e, &q, &err))
        fail_msg("%s", err.msg);
}

/* Computes prompt i and a token; how many of its tokens were found in the cache. */
static uint32_t run(uint32_t i)
{
    uint32_t tokens[N_PROMPT], n_cached;
    make_prompt(i, tokens);
    submit(tokens);
    assert_int_equal(wait_for_end(&n_cached), SL_OK);
    return n_cached;
}

/* Until the idle engine has said twice that it is there: between the two it has passed on what
 * there was, and gone on once with telling everything again. */
static void barrier(void)
{
    struct sl_engine_stats before, now;
    for (uint32_t i = 0; i < 2; i++) {
        sl_engine_stats(e, &before);
        sl_engine_cancel(e, UINT64_MAX); /* wakes it; no request has this id */
        do {
            sl_engine_wait(e, 1);
            sl_engine_stats(e, &now);
        } while (now.last_progress_ns == before.last_progress_ns);
    }
}

/* Reads what there is; how many events. */
static uint32_t follow(void)
{
    static struct sl_kv_event ev[AT_ONCE];
    static uint32_t tokens[AT_ONCE * PAGE];
    uint32_t n = sl_engine_take_kv_events(e, ev, tokens, AT_ONCE);
    for (uint32_t i = 0; i < n; i++) {
        if (ev[i].kind == SL_KV_STORED) {
            assert_true(ev[i].tokens == tokens + (size_t)i * PAGE);
            sl_kv_index_stored(copy, 0, sl_kv_index_name(ev[i].key));
        } else if (ev[i].kind == SL_KV_REMOVED) {
            sl_kv_index_removed(copy, 0, sl_kv_index_name(ev[i].key));
        } else {
            sl_kv_index_clear(copy, 0, true);
            n_cleared++;
        }
    }
    return n;
}

static void settle(void)
{
    for (uint32_t quiet = 0; quiet < SETTLED;) {
        barrier();
        quiet = follow() ? 0 : quiet + 1;
    }
}

static uint32_t expected(uint32_t i)
{
    static const uint8_t no_salt[32];
    uint32_t tokens[N_PROMPT], n;
    uint64_t chain[PAGES];
    make_prompt(i, tokens);
    sl_kv_index_chain(no_salt, tokens, PAGE, PAGES, chain);
    sl_kv_index_match(copy, chain, PAGES, &n);
    return n * PAGE;
}

/* The copy foretells every hit, for prompts that are there, partly there and gone. */
static void assert_foretells(uint32_t from, uint32_t to)
{
    uint32_t n_hits = 0, n_misses = 0;
    for (uint32_t i = from; i < to; i++) {
        settle();
        uint32_t want = expected(i), got = run(i);
        if (got != want)
            fail_msg("prompt %u: %u tokens were cached, %u foretold", i, got, want);
        n_hits += want > 0;
        n_misses += want < PAGES * PAGE;
    }
    assert_true(n_hits > 0 && n_misses > 0);
}

static void test_events(void **state)
{
    (void)state;
    open_all();
    for (uint32_t i = 0; i < 20; i++)
        run(i);
    assert_foretells(12, 24);
    assert_int_equal(n_cleared, 0);

    /* told everything again */
    sl_kv_index_clear(copy, 0, true);
    sl_engine_retell_kv(e);
    settle();
    assert_int_equal(n_cleared, 1);
    assert_foretells(20, 30);

    /* more than the ring holds, unread */
    uint32_t n_steps = SL_LIMIT_kv_event_ring / PAGES;
    for (uint32_t i = 0; i < n_steps; i++)
        run(100 + i);
    settle();
    assert_true(n_cleared > 1);
    assert_foretells(95 + n_steps, 105 + n_steps);
    close_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_events)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
