/* Key files of a node's folder. Whoever may write there may let peers in, so modes are checked. */
#include "curve_keys.h"

#include <sluice/base/containers.h>
#include <sluice/base/log.h>

#include <zmq.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES_MAX ((size_t)128 << 10)
#define LINE_BYTES_MAX 256
#define SECRET_SUFFIX  "-secret"

unsigned sl_key_role_of(const char *word)
{
    if (!strcmp(word, "router"))
        return SL_KEY_ROUTER;
    return strcmp(word, "worker") == 0 ? SL_KEY_WORKER : 0;
}

/* ---- text ---- */

static bool is_name(const char *s)
{
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n < SL_KEY_NAME_BYTES && s[n] == '\0' && s[0] != '.' && s[0] != '-';
}

static bool is_zero(const uint8_t *b, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= b[i];
    return any == 0;
}

/* "ROLE NAME KEY"; says what is wrong, or NULL. */
static const char *parse_line(char *line, struct curve_key *k)
{
    char *rest = NULL;
    char *role = strtok_r(line, " \t", &rest), *name = strtok_r(NULL, " \t", &rest);
    char *key = strtok_r(NULL, " \t", &rest);
    if (!role || !name || !key || strtok_r(NULL, " \t", &rest))
        return "is not 'ROLE NAME KEY'";
    char *suffix = strstr(role, SECRET_SUFFIX);
    memset(k, 0, sizeof *k);
    k->secret = suffix && !suffix[strlen(SECRET_SUFFIX)];
    if (k->secret)
        *suffix = '\0';
    k->role = sl_key_role_of(role);
    if (!k->role)
        return "begins with neither router nor worker";
    if (!is_name(name))
        return "has a name that is not 1 to 63 of [A-Za-z0-9._-]";
    if (strlen(key) != CURVE_TEXT_BYTES - 1 || !zmq_z85_decode(k->bytes, key) ||
        is_zero(k->bytes, sizeof k->bytes))
        return "has a key that is not 40 characters of Z85";
    snprintf(k->name, sizeof k->name, "%s", name);
    memcpy(k->text, key, sizeof k->text);
    return NULL;
}

/* The next line, NUL-terminated and without its end; its length is 0 for one to be skipped. */
static const char *next_line(const char *at, const char *end, char line[LINE_BYTES_MAX],
                             const char **why)
{
    const char *stop = memchr(at, '\n', (size_t)(end - at));
    size_t len = (size_t)((stop ? stop : end) - at);
    *why = NULL;
    line[0] = '\0';
    if (len >= LINE_BYTES_MAX || memchr(at, '\0', len)) {
        *why = "is too long or not text";
        return NULL;
    }
    memcpy(line, at, len);
    while (len && (line[len - 1] == '\r' || line[len - 1] == ' ' || line[len - 1] == '\t'))
        len--;
    line[len] = '\0';
    if (line[0] == '#')
        line[0] = '\0';
    return stop ? stop + 1 : end;
}

enum sl_status curve_keys_parse(struct sl_str text, const char *file, struct curve_key *keys,
                                uint32_t *n, uint32_t max, struct sl_err *err)
{
    const char *at = text.data, *end = at + text.len, *why = NULL;
    uint32_t before = *n, number = 0;
    char line[LINE_BYTES_MAX];
    while (at && at < end && !why) {
        number++;
        at = next_line(at, end, line, &why);
        if (why || !line[0])
            continue;
        if (*n == max)
            why = "is one key too many";
        else if (!(why = parse_line(line, &keys[*n])))
            (*n)++;
    }
    explicit_bzero(line, sizeof line);
    if (!why)
        return SL_OK;
    *n = before;
    return sl_fail(err, SL_CONFIG, "keys: %s: line %u %s", file, number, why);
}

/* ---- files ---- */

/* Bits that nobody but the owner may have. */
#define SECRET_MASK 077u
#define WRITE_MASK  022u

static enum sl_status check_mode(const char *path, const struct stat *st, unsigned mask,
                                 struct sl_err *err)
{
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return sl_fail(err, SL_CONFIG, "keys: %s belongs to user %u, not to us", path,
                       (unsigned)st->st_uid);
    if (st->st_mode & mask)
        return sl_fail(err, SL_CONFIG, "keys: %s has mode %03o: others may %s it", path,
                       (unsigned)st->st_mode & 0777u, mask == SECRET_MASK ? "use" : "change");
    return SL_OK;
}

/* *denied: the file's own fault, not the system's. */
static enum sl_status read_file(const char *path, unsigned mask, struct sl_buf *out, bool *denied,
                                struct sl_err *err)
{
    struct stat st;
    char bytes[4096];
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    *denied = fd < 0 && (errno == ENOENT || errno == EACCES || errno == ELOOP);
    if (fd < 0)
        return sl_fail(err, SL_CONFIG, "keys: %s: %s", path, strerror(errno));
    enum sl_status s = fstat(fd, &st) == 0 ? check_mode(path, &st, mask, err)
                                           : sl_fail(err, SL_CONFIG, "keys: %s: no status", path);
    if (s == SL_OK && !S_ISREG(st.st_mode))
        s = sl_fail(err, SL_CONFIG, "keys: %s is not a file", path);
    out->cap_bytes = FILE_BYTES_MAX;
    while (s == SL_OK && (got = read(fd, bytes, sizeof bytes)) > 0)
        sl_buf_append(out, bytes, (size_t)got);
    *denied = s != SL_OK || out->failed;
    if (s == SL_OK && out->failed)
        s = sl_fail(err, SL_CONFIG, "keys: %s has more than %zu bytes", path, FILE_BYTES_MAX);
    if (s == SL_OK && got < 0)
        s = sl_fail(err, SL_CONFIG, "keys: %s: %s", path, strerror(errno));
    explicit_bzero(bytes, sizeof bytes);
    close(fd);
    return s;
}

static void forget(struct sl_buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->alloc);
    sl_buf_free(b);
}

static enum sl_status read_own(const char *dir, struct curve_folder *f, struct sl_err *err)
{
    char path[PATH_MAX];
    struct sl_buf text = {0};
    struct curve_key key[1];
    uint32_t n = 0;
    bool denied;
    snprintf(path, sizeof path, "%s/secret.key", dir);
    enum sl_status s = read_file(path, SECRET_MASK, &text, &denied, err);
    if (s == SL_OK)
        s = curve_keys_parse((struct sl_str){text.data, text.len}, path, key, &n, 1, err);
    if (s == SL_OK && (n != 1 || !key->secret))
        s = sl_fail(err, SL_CONFIG, "keys: %s does not hold one secret key", path);
    if (s == SL_OK && zmq_curve_public(f->own_public, key->text))
        s = sl_fail(err, SL_CONFIG, "keys: %s: %s", path, zmq_strerror(errno));
    if (s == SL_OK)
        f->own = *key;
    explicit_bzero(key, sizeof key);
    forget(&text);
    return s;
}

/* One file of `allowed`. */
static enum sl_status read_allowed_file(const char *path, struct curve_folder *f, bool *denied,
                                        struct sl_err *err)
{
    struct sl_buf text = {0};
    uint32_t before = f->n_keys;
    enum sl_status s = read_file(path, WRITE_MASK, &text, denied, err);
    if (s == SL_OK) {
        s = curve_keys_parse((struct sl_str){text.data, text.len}, path, f->keys, &f->n_keys,
                             SL_LIMIT_curve_keys, err);
        *denied = true; /* what can go wrong from here on is in the file */
    }
    for (uint32_t i = before; i < f->n_keys && s == SL_OK; i++)
        if (f->keys[i].secret)
            s = sl_fail(err, SL_CONFIG, "keys: %s holds a secret key", path);
    if (s != SL_OK)
        f->n_keys = before;
    forget(&text);
    return s;
}

static bool is_public(const char *name)
{
    const char *dot = strrchr(name, '.');
    return name[0] != '.' && dot && !strcmp(dot, ".pub");
}

/* By open and fdopendir: ThreadSanitizer does not see the descriptor that opendir makes and takes
 * one number's next life for a race with its last. */
static DIR *list_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d && fd >= 0)
        close(fd);
    return d;
}

static enum sl_status open_folder(const char *path, DIR **out, struct sl_err *err)
{
    struct stat st;
    DIR *d = list_folder(path);
    *out = NULL;
    if (!d)
        return sl_fail(err, SL_CONFIG, "keys: folder %s: %s", path, strerror(errno));
    enum sl_status s = fstat(dirfd(d), &st) == 0
                           ? check_mode(path, &st, WRITE_MASK, err)
                           : sl_fail(err, SL_CONFIG, "keys: folder %s: no status", path);
    if (s == SL_OK)
        *out = d;
    else
        closedir(d);
    return s;
}

static enum sl_status read_allowed(const char *dir, bool strict, struct curve_folder *f,
                                   struct sl_err *err)
{
    char folder[PATH_MAX], path[PATH_MAX];
    DIR *d;
    snprintf(folder, sizeof folder, "%s/allowed", dir);
    enum sl_status s = open_folder(folder, &d, err);
    struct dirent *e;
    while (s == SL_OK && (e = readdir(d))) {
        bool denied = false;
        int len = snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (!is_public(e->d_name) || len >= (int)sizeof path)
            continue;
        s = read_allowed_file(path, f, &denied, err);
        if (s == SL_OK || strict || !denied)
            continue;
        sl_log(SL_LOG_ERROR, "%s: its keys are refused", err->msg);
        s = SL_OK;
    }
    if (d)
        closedir(d);
    return s;
}

enum sl_status curve_folder_read(const char *dir, bool strict, struct curve_folder *out,
                                 struct sl_err *err)
{
    DIR *d;
    memset(out, 0, sizeof *out);
    if (strlen(dir) > PATH_MAX / 2)
        return sl_fail(err, SL_CONFIG, "keys: the folder's path has %zu bytes, at most %d",
                       strlen(dir), PATH_MAX / 2);
    enum sl_status s = open_folder(dir, &d, err);
    if (d)
        closedir(d);
    if (s == SL_OK)
        s = read_own(dir, out, err);
    return s == SL_OK ? read_allowed(dir, strict, out, err) : s;
}

/* ---- changes ---- */

/* An exclusive or, since a folder has no order. */
static uint64_t stamp_of(const char *folder, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path || stat(path, &st))
        return 0;
    const uint64_t facts[] = {
        (uint64_t)st.st_dev,          (uint64_t)st.st_ino,         (uint64_t)st.st_size,
        (uint64_t)st.st_mode,         (uint64_t)st.st_uid,         (uint64_t)st.st_mtim.tv_sec,
        (uint64_t)st.st_mtim.tv_nsec, (uint64_t)st.st_ctim.tv_sec, (uint64_t)st.st_ctim.tv_nsec};
    return sl_hash64(facts, sizeof facts, sl_hash64(name, strlen(name), 1));
}

uint64_t curve_folder_stamp(const char *dir)
{
    char folder[PATH_MAX];
    uint64_t stamp = stamp_of(dir, "secret.key") ^ stamp_of(dir, ".");
    snprintf(folder, sizeof folder, "%s/allowed", dir);
    DIR *d = list_folder(folder);
    if (!d)
        return stamp;
    stamp ^= stamp_of(folder, ".");
    struct dirent *e;
    while ((e = readdir(d)))
        if (is_public(e->d_name))
            stamp ^= stamp_of(folder, e->d_name);
    closedir(d);
    return stamp;
}
