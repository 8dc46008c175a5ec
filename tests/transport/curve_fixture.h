/* Key folders below /tmp for the tests of keyed links. */
#ifndef SLUICE_TESTS_CURVE_FIXTURE_H
#define SLUICE_TESTS_CURVE_FIXTURE_H

#include <sluice/transport/keys.h>

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A folder that holds node folders: "r" a router, "w" and "v" workers, all allowing all; "x" a
 * worker that nobody knows but who knows the router; "evil" a worker that says it is a router. */
struct keys {
    char root[64];
};

static char *key_dir(const struct keys *k, const char *node, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/%s", k->root, node);
    return out;
}

static inline void keys_make(const struct keys *k, const char *node, enum sl_key_role role, bool force)
{
    char dir[PATH_MAX];
    struct sl_err err;
    struct sl_keys_request r = {
        .dir = key_dir(k, node, dir), .name = node, .role = role, .force = force};
    if (sl_keys_make(&r, &err) != SL_OK)
        fail_msg("%s", err.msg);
}

/* `host` allows `guest`. */
static inline void keys_admit(const struct keys *k, const char *host, const char *guest)
{
    char a[PATH_MAX], b[PATH_MAX];
    struct sl_err err;
    if (sl_keys_admit(key_dir(k, host, a), key_dir(k, guest, b), &err) != SL_OK)
        fail_msg("%s", err.msg);
}

static inline void keys_expel(const struct keys *k, const char *host, const char *guest)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s/allowed/%s.pub", k->root, host, guest);
    assert_int_equal(unlink(path), 0);
}

static inline int keys_set_up(void **state)
{
    static const char *const friends[] = {"r", "w", "v"};
    struct keys *k = calloc(1, sizeof *k);
    if (!k)
        return -1;
    snprintf(k->root, sizeof k->root, "/tmp/sluice-keys-XXXXXX");
    if (!mkdtemp(k->root))
        return -1;
    keys_make(k, "r", SL_KEY_ROUTER, false);
    keys_make(k, "w", SL_KEY_WORKER, false);
    keys_make(k, "v", SL_KEY_WORKER, false);
    keys_make(k, "x", SL_KEY_WORKER, false);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            keys_admit(k, friends[i], friends[j]);
    keys_admit(k, "x", "r");
    *state = k;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *f)
{
    (void)st, (void)flag, (void)f;
    return remove(path);
}

static inline int keys_tear_down(void **state)
{
    struct keys *k = *state;
    nftw(k->root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(k);
    return 0;
}

#endif
