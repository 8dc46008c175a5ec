/* Promised: every deliberate bug of every kernel (cuda/mutant.h) is found, and by the detector that
 * must find it; without one, nothing is. Each runs in processes of its own, under four seeds of
 * scheduling without the race detector and two with it. What found what goes to mutants.json. */
#include "device.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/mutant.h"
#include "mutants.h"

enum {
    WRONG = 1, /* other numbers, or a fault of memory */
    RACE = 2,
    COPY = 4,      /* not waited for */
    UNWRITTEN = 8, /* shared memory read that nobody wrote */
    BOUNDS = 16,
    DIVERGENT = 32,
};
static const char *const detectors[] = {"numbers",   "race",   "copy",
                                        "unwritten", "bounds", "divergence"};

struct mutant {
    const char *kernel, *id, *what;
    unsigned must;
};
static const struct mutant mutants[] = {{"", "NONE", "nothing", 0},
#define X(kernel, id, what, must) {#kernel, #id, what, must},
                                        KERNEL_MUTANT_TABLE(X)
#undef X
};

static int mutant_now;

int kernel_mutant_now(void)
{
    return mutant_now;
}

static const struct mutant_case *case_of(const char *kernel)
{
    for (size_t i = 0; i < n_mutant_cases; i++)
        if (!strcmp(mutant_cases[i].kernel, kernel))
            return &mutant_cases[i];
    fail_msg("no case of %s", kernel);
    return NULL;
}

/* ---- one run ---- */

static unsigned read_report(const char *text)
{
    static const struct {
        const char *part;
        unsigned detector;
    } parts[] = {
        {": race:", RACE},        {"not waited for", COPY}, {"nobody has written", UNWRITTEN},
        {"allocation", BOUNDS},   {"outside its", BOUNDS},  {"local memory", BOUNDS},
        {"misaligned", BOUNDS},   {"not a row", BOUNDS},    {"freed memory", BOUNDS},
        {"divergent", DIVERGENT},
    };
    unsigned found = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(text, parts[i].part))
            found |= parts[i].detector;
    return found;
}

/* In the child. */
static unsigned try_mutant(const struct mutant_case *c, const struct output *right, bool watched)
{
    struct output out = {NULL, 0};
    unsigned found = 0;
    signal(SIGSEGV, SIG_DFL); /* cmocka would go on with the next test */
    signal(SIGBUS, SIG_DFL);
    device_quiet = true;
    device_options.unwatched = !watched;
    for (device_options.seed = 1; device_options.seed <= (watched ? 2 : 4); device_options.seed++) {
        device_report[0] = 0;
        mutant_case_run(c, &out);
        found |= read_report(device_report);
        if (!device_report[0] && (out.n != right->n || memcmp(out.bytes, right->bytes, out.n)))
            found |= WRONG;
    }
    free(out.bytes);
    return found;
}

/* The detectors that found the mutant. One that crashes has given wrong numbers. */
static unsigned find_mutant(int id, const struct mutant_case *c, const struct output *right,
                            bool watched)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        mutant_now = id;
        _exit((int)try_mutant(c, right, watched));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) < 64)
        return (unsigned)WEXITSTATUS(status);
    return WRONG;
}

/* ---- what is told ---- */

static void tell(FILE *json, const struct mutant *m, unsigned found)
{
    char text[128] = "", list[160] = "";
    for (size_t i = 0; i < sizeof detectors / sizeof *detectors; i++)
        if (found >> i & 1) {
            strcat(text, text[0] ? ", " : "");
            strcat(text, detectors[i]);
            strcat(list, list[0] ? ", \"" : "\"");
            strcat(strcat(list, detectors[i]), "\"");
        }
    print_message("%-16s %-24s %-52s %s\n", m->kernel, m->id, m->what, text);
    if (json)
        fprintf(json,
                "%s{\"kernel\": \"%s\", \"mutant\": \"%s\", \"what\": \"%s\", \"found_by\": [%s]}",
                ftell(json) > 2 ? ",\n " : " ", m->kernel, m->id, m->what, list);
}

static void every_mutant_is_found(void **state)
{
    (void)state;
    FILE *json = fopen(SL_MUTANTS_JSON, "w");
    unsigned n_missed = 0;
    if (json)
        fputs("[\n", json);
    for (size_t c = 0; c < n_mutant_cases; c++) {
        struct output right = {NULL, 0};
        device_options.unwatched = true;
        mutant_case_run(&mutant_cases[c], &right);
        for (int id = 1; id < N_KERNEL_MUTANTS; id++) {
            if (strcmp(mutants[id].kernel, mutant_cases[c].kernel) != 0)
                continue;
            unsigned found = find_mutant(id, &mutant_cases[c], &right, false) |
                             find_mutant(id, &mutant_cases[c], &right, true);
            tell(json, &mutants[id], found);
            if ((found & mutants[id].must) != mutants[id].must) {
                print_error("%s is not found as it must\n", mutants[id].id);
                n_missed++;
            }
        }
        free(right.bytes);
    }
    if (json) {
        fputs("\n]\n", json);
        fclose(json);
    }
    assert_int_equal(n_missed, 0);
}

static void without_a_mutant_nothing_is_found(void **state)
{
    (void)state;
    for (size_t c = 0; c < n_mutant_cases; c++) {
        struct output right = {NULL, 0};
        device_options.unwatched = true;
        mutant_case_run(&mutant_cases[c], &right);
        assert_true(right.n > 0);
        assert_int_equal(find_mutant(0, &mutant_cases[c], &right, false), 0);
        assert_int_equal(find_mutant(0, &mutant_cases[c], &right, true), 0);
        free(right.bytes);
    }
}

static void every_mutant_has_a_case(void **state)
{
    (void)state;
    for (int id = 1; id < N_KERNEL_MUTANTS; id++)
        assert_non_null(case_of(mutants[id].kernel));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mutant_has_a_case),
        cmocka_unit_test(without_a_mutant_nothing_is_found),
        cmocka_unit_test(every_mutant_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
