/* Remembered sums: what was put is got, a changed file is another one, and however many files and
 * processes there are, the folder holds SUMS_MAX of ours and all that is not ours. */
#include "sums.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];

static struct stat file(uint32_t i)
{
    return (struct stat){.st_dev = 1, .st_ino = i, .st_size = 100, .st_mtim = {7, 8}};
}

static void sum(uint32_t i, char hex[65])
{
    snprintf(hex, 65, "%064x", i);
}

static void put(uint32_t i)
{
    const struct stat st = file(i);
    char hex[65];
    sum(i, hex);
    sums_put(dir, &st, hex);
}

static bool has(uint32_t i)
{
    const struct stat st = file(i);
    char want[65], got[65];
    sum(i, want);
    if (!sums_get(dir, &st, got))
        return false;
    assert_string_equal(got, want);
    return true;
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/sluice-sums-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    int fd = open(dir, O_RDONLY | O_DIRECTORY);
    DIR *d = fdopendir(fd);
    for (struct dirent *f; (f = readdir(d));)
        unlinkat(fd, f->d_name, 0);
    closedir(d);
    return rmdir(dir);
}

static uint32_t n_files(const char *prefix)
{
    uint32_t n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f; (f = readdir(d));)
        n += !strncmp(f->d_name, prefix, strlen(prefix));
    closedir(d);
    return n;
}

/* Gives entry i's file a time of last use. */
static void used_at(uint32_t i, time_t at)
{
    char name[128];
    const struct timespec both[2] = {{at, 0}, {at, 0}};
    const struct stat st = file(i);
    snprintf(name, sizeof name, "%s/sha256-%llx-%llx-%llx-7.000000008", dir,
             (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
             (unsigned long long)st.st_size);
    assert_int_equal(utimensat(AT_FDCWD, name, both, 0), 0);
}

static void test_remembers(void **state)
{
    (void)state;
    char hex[65];
    assert_false(has(1));
    put(1);
    assert_true(has(1));
    struct stat changed[4] = {file(1), file(1), file(1), file(1)};
    changed[0].st_size++;
    changed[1].st_mtim.tv_nsec++;
    changed[2].st_mtim.tv_sec++;
    changed[3].st_dev++;
    for (int i = 0; i < 4; i++)
        assert_false(sums_get(dir, &changed[i], hex));
    sums_put("/nowhere/at/all", &changed[0], hex);
    assert_false(sums_get("/nowhere/at/all", &changed[0], hex));
}

static void test_damaged(void **state)
{
    (void)state;
    const struct stat st = file(1);
    static const char *const bad[] = {
        "", "abc", "not hexadecimal ................................................"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char hex[65] = {0};
        snprintf(hex, sizeof hex, "%-64s", bad[i]);
        sums_put(dir, &st, hex);
        assert_false(sums_get(dir, &st, hex));
    }
}

/* Of one more than there is room for, the one that was used longest ago goes: used, not made. */
static void test_bounded(void **state)
{
    (void)state;
    char other[96];
    snprintf(other, sizeof other, "%s/models", dir);
    close(open(other, O_CREAT | O_WRONLY, 0600));
    for (uint32_t i = 0; i < SUMS_MAX; i++) {
        put(i);
        used_at(i, 1000 + i);
    }
    assert_int_equal(n_files("sha256-"), SUMS_MAX);
    assert_true(has(0)); /* now the newest */
    put(SUMS_MAX);
    assert_int_equal(n_files("sha256-"), SUMS_MAX);
    assert_int_equal(n_files("models"), 1);
    for (uint32_t i = 0; i <= SUMS_MAX; i++)
        assert_int_equal(has(i), i != 1);
}

/* What an earlier version or a killed process left is cleared away, too. */
static void test_overfull(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 5 * SUMS_MAX; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s/sha256-%x.%u", dir, i, i);
        close(open(name, O_CREAT | O_WRONLY, 0600));
        const struct timespec both[2] = {{1000 + i, 0}, {1000 + i, 0}};
        assert_int_equal(utimensat(AT_FDCWD, name, both, 0), 0);
    }
    put(1);
    assert_int_equal(n_files("sha256-"), SUMS_MAX);
    assert_true(has(1));
}

static void test_processes(void **state)
{
    (void)state;
    enum { CHILDREN = 4 };
    pid_t pids[CHILDREN];
    for (uint32_t c = 0; c < CHILDREN; c++) {
        pids[c] = fork();
        assert_true(pids[c] >= 0);
        for (uint32_t i = 0; !pids[c] && i < 2 * SUMS_MAX; i++) {
            put(i + (c & 1) * SUMS_MAX);
            has(i);
        }
        if (!pids[c])
            _exit(0);
    }
    for (uint32_t c = 0; c < CHILDREN; c++) {
        int status;
        assert_int_equal(waitpid(pids[c], &status, 0), pids[c]);
        assert_int_equal(status, 0);
    }
    /* Those that look at one moment may each take away one of their own. */
    assert_in_range(n_files("sha256-"), SUMS_MAX - CHILDREN + 1, SUMS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_remembers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overfull, setup, teardown),
        cmocka_unit_test_setup_teardown(test_processes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
