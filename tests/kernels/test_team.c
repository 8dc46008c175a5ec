/* Promised: every task of a job runs exactly once, on a thread of the team, before the job returns;
 * jobs of any size follow each other also when there are more threads than cores. */
#include <sluice/kernels/op.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define TASKS_MAX 1000

struct tally {
    _Atomic uint32_t ran[TASKS_MAX];
    uint32_t plain[TASKS_MAX]; /* written without atomics: a thread checker sees unsafe joins */
};

static void count(void *ctx, uint32_t i)
{
    struct tally *t = ctx;
    atomic_fetch_add(&t->ran[i], 1);
    t->plain[i] = i + 1;
}

static void every_task_runs_once(void **state)
{
    (void)state;
    static const uint32_t threads[] = {1, 2, 3, 7, 16};
    static const uint32_t sizes[] = {0, 1, 2, 3, 17, TASKS_MAX};
    struct tally *t = calloc(1, sizeof *t);
    for (size_t a = 0; a < sizeof threads / sizeof *threads; a++) {
        struct sl_cpu_config cfg = {SL_ISA_SCALAR, threads[a]};
        struct sl_backend *b;
        struct sl_err err;
        assert_int_equal(sl_cpu_open(&cfg, &b, &err), SL_OK);
        for (uint32_t round = 0; round < 300; round++) {
            uint32_t n = sizes[round % (sizeof sizes / sizeof *sizes)];
            memset(t, 0, sizeof *t);
            b->ops->parallel(b, n, count, t);
            for (uint32_t i = 0; i < TASKS_MAX; i++) {
                assert_int_equal(atomic_load(&t->ran[i]), i < n ? 1 : 0);
                assert_int_equal(t->plain[i], i < n ? i + 1 : 0);
            }
        }
        b->ops->close(b);
    }
    free(t);
}

static void a_team_that_never_worked_closes(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct sl_cpu_config cfg = {SL_ISA_SCALAR, 4};
        struct sl_backend *b;
        struct sl_err err;
        assert_int_equal(sl_cpu_open(&cfg, &b, &err), SL_OK);
        b->ops->close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(a_team_that_never_worked_closes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
