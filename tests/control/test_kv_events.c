/* A copy of the prefix index kept from events alone is the index: after any sequence of stores and
 * evictions, after overflows of the ring, after a reset, and whenever all pages are told again. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

enum { N_PAGES = 64, PAGE = 2, N_CHAINS = 16, CHAIN = 12 };

struct copy {
    uint8_t keys[N_PAGES * 2][32];
    uint32_t n;
    uint32_t n_orphans; /* stored before their parents */
    uint32_t n_cleared;
};

static int copy_find(const struct copy *c, const uint8_t key[32])
{
    for (uint32_t i = 0; i < c->n; i++)
        if (!memcmp(c->keys[i], key, 32))
            return (int)i;
    return -1;
}

static void copy_apply(struct copy *c, const struct sl_kv_event *e)
{
    int at = copy_find(c, e->key);
    if (e->kind == SL_KV_CLEARED) {
        c->n = 0;
        c->n_cleared++;
    } else if (e->kind == SL_KV_REMOVED && at >= 0) {
        memcpy(c->keys[at], c->keys[--c->n], 32);
    } else if (e->kind == SL_KV_STORED && at < 0) {
        assert_true(c->n < N_PAGES * 2);
        c->n_orphans += e->has_parent && copy_find(c, e->parent) < 0;
        memcpy(c->keys[c->n++], e->key, 32);
    }
}

static void copy_read(struct copy *c, struct sl_kv_events *ev, uint32_t most)
{
    struct sl_kv_event e;
    while (most-- && sl_kv_events_pop(ev, &e))
        copy_apply(c, &e);
}

static void assert_same(const struct copy *c, const struct sl_kv_pool *kv)
{
    assert_int_equal(c->n, kv->n_indexed);
    for (uint32_t i = 0; i < kv->n_pages; i++)
        if (kv->pages[i].indexed)
            assert_true(copy_find(c, kv->pages[i].key) >= 0);
}

static void settle(struct copy *c, struct sl_kv_pool *kv)
{
    bool more = true;
    for (uint32_t i = 0; more || kv->events->n; i++) {
        assert_true(i < 1000);
        copy_read(c, kv->events, UINT32_MAX);
        more = sl_kv_tell(kv, 5);
    }
    assert_same(c, kv);
}

struct rig {
    struct sl_kv_pool kv;
    struct sl_kv_events ev;
    struct copy copy;
    uint8_t keys[N_CHAINS][CHAIN][32];
    uint32_t tokens[N_CHAINS][CHAIN * PAGE];
    struct rng rng;
};

static void rig_open(struct rig *g, uint32_t cap, uint64_t seed)
{
    static const uint8_t no_salt[32];
    memset(g, 0, sizeof *g);
    g->rng.x = seed;
    assert_int_equal(sl_kv_open(&g->kv, N_PAGES, PAGE, true, NULL), SL_OK);
    assert_int_equal(sl_kv_events_open(&g->ev, cap, PAGE, NULL), SL_OK);
    g->kv.events = &g->ev;
    for (uint32_t c = 0; c < N_CHAINS; c++)
        for (uint32_t i = 0; i < CHAIN; i++) {
            g->tokens[c][i * PAGE] = c;
            g->tokens[c][i * PAGE + 1] = i;
            sl_prefix_key(&g->kv, i ? g->keys[c][i - 1] : no_salt, &g->tokens[c][i * PAGE],
                          g->keys[c][i]);
        }
}

static void rig_close(struct rig *g)
{
    sl_kv_events_close(&g->ev);
    sl_kv_close(&g->kv);
}

/* One sequence: takes the pages of a chain from the cache or anew, and gives them back. */
static void run_chain(struct rig *g, uint32_t c, uint32_t n)
{
    uint32_t pages[CHAIN], i;
    for (i = 0; i < n; i++) {
        const uint32_t *tokens = &g->tokens[c][i * PAGE];
        if (sl_prefix_find(&g->kv, g->keys[c][i], tokens, &pages[i]))
            continue;
        assert_true(sl_kv_take(&g->kv, &pages[i]));
        assert_true(
            sl_prefix_add(&g->kv, pages[i], i ? g->keys[c][i - 1] : NULL, g->keys[c][i], tokens));
    }
    while (i-- > 0)
        sl_kv_release(&g->kv, pages[i]);
}

static void test_ring(void **state)
{
    (void)state;
    struct sl_kv_events ev;
    assert_int_equal(sl_kv_events_open(&ev, 1, 4, NULL), SL_INVALID);
    assert_int_equal(sl_kv_events_open(&ev, 4, 0, NULL), SL_INVALID);
    assert_int_equal(sl_kv_events_open(&ev, 3, 2, NULL), SL_OK);
    struct sl_kv_event e = {.kind = SL_KV_STORED}, got;
    assert_false(sl_kv_events_pop(&ev, &got));
    for (uint32_t i = 0; i < 10; i++) { /* around the ring */
        uint32_t tokens[2] = {i, i + 1};
        e.tokens = tokens;
        e.key[0] = (uint8_t)i;
        sl_kv_events_push(&ev, &e);
        tokens[0] = 99; /* the ring has a copy */
        assert_true(sl_kv_events_pop(&ev, &got));
        assert_int_equal(got.key[0], i);
        assert_int_equal(got.tokens[0], i);
    }
    uint32_t tokens[2] = {0};
    e.tokens = tokens;
    for (uint32_t i = 0; i < 4; i++) {
        e.key[0] = (uint8_t)i;
        sl_kv_events_push(&ev, &e);
    }
    assert_true(ev.overflowed);
    assert_int_equal(ev.n_overflows, 1);
    assert_true(sl_kv_events_pop(&ev, &got));
    assert_int_equal(got.kind, SL_KV_CLEARED);
    assert_true(sl_kv_events_pop(&ev, &got));
    assert_int_equal(got.key[0], 3);
    assert_false(sl_kv_events_pop(&ev, &got));
    sl_kv_events_close(&ev);
}

static void random_run(uint32_t cap, uint64_t seed)
{
    static struct rig g;
    rig_open(&g, cap, seed);
    for (uint32_t i = 0; i < 300; i++) {
        run_chain(&g, rng_below(&g.rng, N_CHAINS), 1 + rng_below(&g.rng, CHAIN));
        copy_read(&g.copy, &g.ev, rng_below(&g.rng, 12));
        sl_kv_tell(&g.kv, rng_below(&g.rng, 4));
        if (rng_below(&g.rng, 100) == 0)
            sl_kv_retell(&g.kv);
        if (rng_below(&g.rng, 100) == 0)
            sl_prefix_reset(&g.kv);
        if (i % 37 == 0)
            settle(&g.copy, &g.kv);
        assert_int_equal(sl_kv_check(&g.kv, NULL), SL_OK);
    }
    run_chain(&g, 0, CHAIN);
    settle(&g.copy, &g.kv);
    assert_true(g.copy.n >= CHAIN);
    if (cap < 20)
        assert_true(g.ev.n_overflows > 0);
    rig_close(&g);
}

static void test_copy_is_the_index(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++)
        random_run(seed % 2 ? 8 : 4096, seed);
}

/* A reader that starts with nothing is told all pages, none before its parent, however the pages
 * lie in the pool. */
static void test_retell_parents_first(void **state)
{
    (void)state;
    static struct rig g;
    rig_open(&g, 8, 7);
    for (uint32_t i = 0; i < 40; i++)
        run_chain(&g, rng_below(&g.rng, N_CHAINS), 1 + rng_below(&g.rng, CHAIN));
    sl_kv_retell(&g.kv);
    memset(&g.copy, 0, sizeof g.copy);
    settle(&g.copy, &g.kv);
    assert_int_equal(g.copy.n_cleared, 1);
    assert_int_equal(g.copy.n_orphans, 0);
    assert_false(sl_kv_tell(&g.kv, 100)); /* nothing is left */
    assert_int_equal(g.ev.n, 0);
    rig_close(&g);
}

static void test_reset_says_cleared(void **state)
{
    (void)state;
    static struct rig g;
    struct sl_kv_event e;
    rig_open(&g, 64, 7);
    run_chain(&g, 0, CHAIN);
    sl_prefix_reset(&g.kv);
    assert_true(sl_kv_events_pop(&g.ev, &e));
    assert_int_equal(e.kind, SL_KV_CLEARED);
    assert_false(sl_kv_events_pop(&g.ev, &e));
    assert_false(sl_kv_tell(&g.kv, 100));
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_copy_is_the_index),
        cmocka_unit_test(test_retell_parents_first),
        cmocka_unit_test(test_reset_says_cleared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
