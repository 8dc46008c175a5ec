/* Promise: a key folder is read only when nobody but its owner can have changed it; what is not a
 * key is refused with file and line; files that keygen makes are whole, private and never replaced
 * unasked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "bus/curve_keys.h"
#include "curve_fixture.h"

#include <sluice/base/log.h>
#include <sys/stat.h>

#define KEY  "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
#define KEY2 "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
#define NIL  "0000000000000000000000000000000000000000"

static void lines(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int n; /* keys; -1: refused */
    } rows[] = {
        {"", 0},
        {"\n\n", 0},
        {"# a comment\n", 0},
        {"worker w1 " KEY "\n", 1},
        {"worker w1 " KEY, 1},
        {"worker w1 " KEY "\r\nrouter r " KEY2 "  \n", 2},
        {"\trouter\tr\t" KEY "\n# end\n", 1},
        {"worker-secret w1 " KEY "\n", 1},
        {"worker w1 " KEY " more\n", -1},
        {"worker " KEY "\n", -1},
        {"worker w1\n", -1},
        {"admin w1 " KEY "\n", -1},
        {"worker-secrets w1 " KEY "\n", -1},
        {"worker w/1 " KEY "\n", -1},
        {"worker .w " KEY "\n", -1},
        {"worker -w " KEY "\n", -1},
        {"worker w1 " KEY "x\n", -1},
        {"worker w1 Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{h\n", -1},
        {"worker w1 Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{h~~\n", -1},
        {"worker w1 " NIL "\n", -1},
        {"worker w1 " KEY "\nnonsense\n", -1},
        {"worker wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww " KEY, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct curve_key keys[3];
        struct sl_err err = {0};
        uint32_t n = 0;
        enum sl_status s = curve_keys_parse(sl_str_of(rows[i].text), "file", keys, &n, 3, &err);
        if (s != (rows[i].n < 0 ? SL_CONFIG : SL_OK) ||
            n != (uint32_t)(rows[i].n < 0 ? 0 : rows[i].n))
            fail_msg("row %zu: %s", i, err.msg);
        if (s != SL_OK)
            assert_non_null(strstr(err.msg, "file: line "));
    }
}

static void limits(void **state)
{
    (void)state;
    struct curve_key keys[2];
    struct sl_err err;
    uint32_t n = 0;
    const char text[] = "worker a " KEY "\nworker b " KEY2 "\nworker c " KEY2 "\n";
    assert_int_equal(curve_keys_parse(sl_str_of(text), "f", keys, &n, 2, &err), SL_CONFIG);
    assert_int_equal(n, 0);
    const char nul[] = "worker a " KEY "\n\0";
    assert_int_equal(curve_keys_parse((struct sl_str){nul, sizeof nul - 1}, "f", keys, &n, 2, &err),
                     SL_CONFIG);
    char *long_line = malloc(100000);
    assert_non_null(long_line);
    memset(long_line, 'x', 100000);
    assert_int_equal(curve_keys_parse((struct sl_str){long_line, 100000}, "f", keys, &n, 2, &err),
                     SL_CONFIG);
    free(long_line);
}

/* ---- folders ---- */

static enum sl_status read_folder(const struct keys *k, const char *node, struct sl_err *err)
{
    char dir[PATH_MAX];
    struct curve_folder *f = calloc(1, sizeof *f);
    assert_non_null(f);
    enum sl_status s = curve_folder_read(key_dir(k, node, dir), true, f, err);
    free(f);
    return s;
}

static void modes(void **state)
{
    static const struct {
        const char *file;
        mode_t bad, good;
    } rows[] = {
        {"", 0770, 0700},
        {"", 0702, 0700},
        {"secret.key", 0640, 0600},
        {"secret.key", 0604, 0600},
        {"secret.key", 0620, 0400},
        {"allowed", 0775, 0755},
        {"allowed", 0757, 0700},
        {"allowed/w.pub", 0664, 0644},
        {"allowed/w.pub", 0646, 0444},
    };
    const struct keys *k = *state;
    char path[PATH_MAX];
    struct sl_err err = {0};
    assert_int_equal(read_folder(k, "r", &err), SL_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(path, sizeof path, "%s/r/%s", k->root, rows[i].file);
        assert_int_equal(chmod(path, rows[i].bad), 0);
        if (read_folder(k, "r", &err) != SL_CONFIG)
            fail_msg("row %zu was read", i);
        assert_non_null(strstr(err.msg, "others may"));
        assert_int_equal(chmod(path, rows[i].good), 0);
        if (read_folder(k, "r", &err) != SL_OK)
            fail_msg("row %zu: %s", i, err.msg);
    }
}

static void put(const struct keys *k, const char *file, const char *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", k->root, file);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Strictly, one bad file refuses all; when a running node looks again, it costs its own keys. */
static void bad_files(void **state)
{
    const struct keys *k = *state;
    char dir[PATH_MAX], secret[PATH_MAX];
    struct curve_folder *f = calloc(1, sizeof *f);
    struct sl_err err = {0};
    assert_non_null(f);
    key_dir(k, "r", dir);
    put(k, "r/allowed/note.txt", "not a key");    /* passed over */
    put(k, "r/allowed/.hidden.pub", "not a key"); /* so are files being written */
    assert_int_equal(curve_folder_read(dir, true, f, &err), SL_OK);
    assert_int_equal(f->n_keys, 3);
    put(k, "r/allowed/zz.pub", "worker x " KEY "\nnot a key\n");
    assert_int_equal(curve_folder_read(dir, true, f, &err), SL_CONFIG);
    assert_non_null(strstr(err.msg, "zz.pub: line 2"));
    assert_int_equal(curve_folder_read(dir, false, f, &err), SL_OK);
    assert_int_equal(f->n_keys, 3);
    put(k, "r/allowed/zz.pub", "worker-secret x " KEY "\n");
    assert_int_equal(curve_folder_read(dir, true, f, &err), SL_CONFIG);
    assert_non_null(strstr(err.msg, "secret"));
    assert_null(strstr(err.msg, KEY));
    put(k, "r/allowed/zz.pub", "");
    snprintf(secret, sizeof secret, "%s/r/secret.key", k->root);
    put(k, "r/secret.key", "worker x " KEY "\n"); /* a public key is none */
    assert_int_equal(curve_folder_read(dir, true, f, &err), SL_CONFIG);
    unlink(secret);
    assert_int_equal(curve_folder_read(dir, false, f, &err), SL_CONFIG);
    assert_int_equal(curve_folder_read("/nowhere", true, f, &err), SL_CONFIG);
    assert_int_equal(symlink("/dev/zero", secret), 0);
    assert_int_equal(curve_folder_read(dir, true, f, &err), SL_CONFIG);
    free(f);
}

static void stamps(void **state)
{
    const struct keys *k = *state;
    char dir[PATH_MAX];
    uint64_t before = curve_folder_stamp(key_dir(k, "r", dir));
    assert_true(before == curve_folder_stamp(dir));
    keys_admit(k, "r", "x");
    uint64_t admitted = curve_folder_stamp(dir);
    assert_true(admitted != before);
    keys_expel(k, "r", "x");
    assert_true(curve_folder_stamp(dir) != admitted);
    uint64_t same = curve_folder_stamp(dir);
    put(k, "r/allowed/w.pub", "worker w " KEY "\n");
    assert_true(curve_folder_stamp(dir) != same);
}

static void made_by_keygen(void **state)
{
    const struct keys *k = *state;
    char path[PATH_MAX];
    struct stat st;
    struct sl_err err;
    snprintf(path, sizeof path, "%s/w/secret.key", k->root);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    uint64_t inode = st.st_ino;
    struct sl_keys_request r = {.name = "w", .role = SL_KEY_WORKER};
    char dir[PATH_MAX];
    r.dir = key_dir(k, "w", dir);
    assert_int_equal(sl_keys_make(&r, &err), SL_CONFIG);
    assert_non_null(strstr(err.msg, "--force"));
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_ino == inode);
    r.force = true;
    assert_int_equal(sl_keys_make(&r, &err), SL_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_ino != inode);
    static const char *const names[] = {"", "..", "a/b", "a b", ".a", "-a", "a\nb"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        r.name = names[i];
        assert_int_equal(sl_keys_make(&r, &err), SL_USAGE);
    }
    r.name = "w";
    r.dir = "/nowhere/at/all";
    assert_int_equal(sl_keys_make(&r, &err), SL_CONFIG);
    assert_int_equal(sl_keys_admit(dir, "/nowhere", &err), SL_CONFIG);
}

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, keys_set_up, keys_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines), cmocka_unit_test(limits), WITH_KEYS(modes),
        WITH_KEYS(bad_files),    WITH_KEYS(stamps),        WITH_KEYS(made_by_keygen),
    };
    sl_log_open(SL_LOG_TEXT, (enum sl_log_level)(SL_LOG_ERROR + 1), "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
