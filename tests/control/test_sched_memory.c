/* Plan and commit take no memory: not for admissions, chunks, decodes, preemptions or endings. The
 * chain key of a page filled by decoding is hashed by the crypto library, which may take memory of
 * its own: exactly that is allowed for. */
#include "fake_engine.h"

#include <sluice/control/kv.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#endif
#if !defined(OWN_MALLOC) && defined(__GLIBC__)
#define OWN_MALLOC 1
#endif

#if OWN_MALLOC

static _Thread_local uint64_t n_allocations;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

__attribute__((visibility("default"))) void *malloc(size_t size)
{
    n_allocations++;
    return __libc_malloc(size);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t size)
{
    n_allocations++;
    return __libc_calloc(n, size);
}

__attribute__((visibility("default"))) void *realloc(void *p, size_t size)
{
    n_allocations++;
    return __libc_realloc(p, size);
}

enum { PAGE = 4, N_SEQS = 6 };

static uint64_t allocations_of_a_hash(void)
{
    uint8_t page[32 + PAGE * 4] = {0}, key[32];
    sl_sha256(page, sizeof page, key); /* the first one may set things up */
    uint64_t before = n_allocations;
    sl_sha256(page, sizeof page, key);
    return n_allocations - before;
}

static void submit(struct sl_sched *s, uint64_t id)
{
    uint32_t tokens[20];
    for (uint32_t i = 0; i < 20; i++)
        tokens[i] = (uint32_t)(id % 3) * 100 + i;
    struct sl_sched_request r = {
        .id = id, .tokens = tokens, .n_tokens = 20, .n_prompt = 20, .max_new = 30, .tenant = id};
    assert_int_equal(sl_sched_submit(s, &r, 0, NULL), SL_OK);
}

/* Allocations of all plans and commits; *n_filled: pages completed by tokens made here. */
static uint64_t run(bool cache, uint64_t *n_filled, uint64_t *n_preempted)
{
    struct sl_sched_config c = {.max_seqs = N_SEQS,
                                .max_batch_tokens = 16,
                                .max_len = 64,
                                .n_pages = 30,
                                .page_size = PAGE,
                                .queue_max = 20,
                                .prefix_cache = cache};
    struct sl_sched *s;
    assert_int_equal(sl_sched_open(&c, &s, NULL), SL_OK);
    for (uint64_t id = 0; id < 2 * N_SEQS; id++)
        submit(s, id);
    uint64_t n = 0;
    const struct sl_plan *p;
    uint32_t known[2 * N_SEQS] = {0};
    *n_filled = 0;
    for (;;) {
        struct sl_sampled_token out[N_SEQS] = {{0}};
        uint64_t before = n_allocations;
        p = sl_sched_plan(s, 16, 0);
        n += n_allocations - before;
        if (!p)
            break;
        for (uint32_t i = 0; i < p->n_logits; i++) {
            uint64_t id = p->id[p->logit_seq[i]];
            uint32_t n_computed = p->pos[p->logit_row[i]] + 1;
            out[i].token = (uint32_t)id;
            if (n_computed > known[id] && n_computed > 20) { /* keys are kept over a preemption */
                *n_filled += n_computed % PAGE == 0;
                known[id] = n_computed;
            }
        }
        before = n_allocations;
        sl_sched_commit(s, out, 0);
        n += n_allocations - before;
    }
    struct sl_sched_stats st;
    sl_sched_stats(s, &st);
    *n_preempted = st.n_preempted;
    sl_sched_close(s);
    return n;
}

static void test_no_allocation(void **state)
{
    (void)state;
    uint64_t n_filled, n_preempted, per_hash = allocations_of_a_hash();
    assert_int_equal(run(false, &n_filled, &n_preempted), 0);
    assert_true(n_preempted > 0);
    assert_int_equal(run(true, &n_filled, &n_preempted), n_filled * per_hash);
    assert_true(n_preempted > 0 && n_filled > 0);
}

#else

static void test_no_allocation(void **state)
{
    (void)state;
    skip(); /* the sanitizer has its own malloc */
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
