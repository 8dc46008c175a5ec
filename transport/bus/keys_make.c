/* Makes key folders: fresh pairs, files that appear whole and with the right mode from the first
 * instant, peers admitted by copying their public key. */
#include "curve_keys.h"

#include <sluice/base/time.h>

#include <zmq.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECRET_MODE 0600
#define PUBLIC_MODE 0644

static const char *role_word(enum sl_key_role role)
{
    return role == SL_KEY_ROUTER ? "router" : "worker";
}

static enum sl_status path_of(char out[PATH_MAX], const char *dir, const char *name,
                              struct sl_err *err)
{
    if (snprintf(out, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        return sl_fail(err, SL_CONFIG, "keygen: the path of '%s' is too long", name);
    return SL_OK;
}

static bool write_all(int fd, const char *text)
{
    size_t left = strlen(text);
    while (left) {
        ssize_t n = write(fd, text, left);
        if (n <= 0 && errno != EINTR)
            return false;
        text += n > 0 ? n : 0;
        left -= n > 0 ? (size_t)n : 0;
    }
    return fsync(fd) == 0;
}

/* A new file beside its place, then moved there; `force` replaces what is there. */
static enum sl_status put_file(const char *path, const char *text, mode_t mode, bool force,
                               struct sl_err *err)
{
    char tmp[PATH_MAX];
    if (snprintf(tmp, sizeof tmp, "%s.%016llx", path, (unsigned long long)sl_entropy_u64()) >=
        (int)sizeof tmp)
        return sl_fail(err, SL_CONFIG, "keygen: path '%s' is too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return sl_fail(err, SL_CONFIG, "keygen: %s: %s", tmp, strerror(errno));
    bool ok = fchmod(fd, mode) == 0 && write_all(fd, text);
    close(fd);
    if (ok)
        ok = (force ? rename(tmp, path) : link(tmp, path)) == 0;
    int why = errno;
    unlink(tmp);
    if (ok)
        return SL_OK;
    return sl_fail(err, SL_CONFIG, "keygen: %s: %s%s", path, strerror(why),
                   why == EEXIST ? "; --force replaces it" : "");
}

static enum sl_status make_folder(const char *path, struct sl_err *err)
{
    struct stat st;
    if (mkdir(path, 0700) && errno != EEXIST)
        return sl_fail(err, SL_CONFIG, "keygen: folder %s: %s", path, strerror(errno));
    if (stat(path, &st) || !S_ISDIR(st.st_mode) || (st.st_mode & 022))
        return sl_fail(err, SL_CONFIG, "keygen: %s is no folder that only its owner may change",
                       path);
    return SL_OK;
}

/* "allowed/NAME.pub", or "allowed/NAME.next.pub" for a key that is to come. */
static enum sl_status allow_own(const struct sl_keys_request *r, const char *line,
                                struct sl_err *err)
{
    char path[PATH_MAX], name[SL_KEY_NAME_BYTES + 32];
    snprintf(name, sizeof name, "allowed/%s%s.pub", r->name, r->next ? ".next" : "");
    enum sl_status s = path_of(path, r->dir, name, err);
    return s == SL_OK ? put_file(path, line, PUBLIC_MODE, true, err) : s;
}

static enum sl_status check_request(const struct sl_keys_request *r, struct sl_err *err)
{
    char line[160];
    struct curve_key key[1];
    uint32_t n = 0;
    /* One rule for names: what the reader would take. */
    snprintf(line, sizeof line, "%s %.100s %040d", role_word(r->role), r->name, 1);
    if (!r->name[0] || strlen(r->name) > SL_KEY_NAME_BYTES ||
        curve_keys_parse(sl_str_of(line), "", key, &n, 1, NULL) != SL_OK)
        return sl_fail_param(err, SL_USAGE, "name",
                             "keygen: name '%.70s' is not 1 to 63 of [A-Za-z0-9._-]", r->name);
    return SL_OK;
}

static enum sl_status make_pair(const struct sl_keys_request *r, struct sl_err *err)
{
    char public[CURVE_TEXT_BYTES], secret[CURVE_TEXT_BYTES], line[160], path[PATH_MAX];
    if (zmq_curve_keypair(public, secret))
        return sl_fail(err, SL_FAILED, "keygen: no key pair: %s", zmq_strerror(errno));
    snprintf(line, sizeof line, "%s-secret %s %s\n", role_word(r->role), r->name, secret);
    enum sl_status s = path_of(path, r->dir, r->next ? "next.key" : "secret.key", err);
    if (s == SL_OK)
        s = put_file(path, line, SECRET_MODE, r->force, err);
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(line, sizeof line);
    snprintf(line, sizeof line, "%s %s %s\n", role_word(r->role), r->name, public);
    if (s == SL_OK)
        s = path_of(path, r->dir, r->next ? "next.pub" : "public.key", err);
    if (s == SL_OK)
        s = put_file(path, line, PUBLIC_MODE, true, err);
    return s == SL_OK ? allow_own(r, line, err) : s;
}

enum sl_status sl_keys_make(const struct sl_keys_request *r, struct sl_err *err)
{
    char allowed[PATH_MAX];
    enum sl_status s = check_request(r, err);
    if (s == SL_OK)
        s = make_folder(r->dir, err);
    if (s == SL_OK)
        s = path_of(allowed, r->dir, "allowed", err);
    if (s == SL_OK)
        s = make_folder(allowed, err);
    return s == SL_OK ? make_pair(r, err) : s;
}

/* The one public key of a file, and its line as written. */
static enum sl_status read_public(const char *path, struct curve_key *key, char line[200],
                                  struct sl_err *err)
{
    char text[160];
    uint32_t n = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return sl_fail(err, SL_CONFIG, "keygen: %s: %s", path, strerror(errno));
    size_t len = fread(text, 1, sizeof text, f);
    fclose(f);
    enum sl_status s = curve_keys_parse((struct sl_str){text, len}, path, key, &n, 1, err);
    if (s == SL_OK && (n != 1 || key->secret))
        s = sl_fail(err, SL_CONFIG, "keygen: %s does not hold one public key", path);
    if (s == SL_OK)
        snprintf(line, 200, "%s %s %s\n", role_word((enum sl_key_role)key->role), key->name,
                 key->text);
    explicit_bzero(text, sizeof text);
    return s;
}

enum sl_status sl_keys_admit(const char *dir, const char *peer_dir, struct sl_err *err)
{
    char from[PATH_MAX], to[PATH_MAX], name[SL_KEY_NAME_BYTES + 16], line[200];
    struct curve_key key[1];
    enum sl_status s = path_of(from, peer_dir, "public.key", err);
    if (s == SL_OK)
        s = read_public(from, key, line, err);
    if (s != SL_OK)
        return s;
    snprintf(name, sizeof name, "allowed/%s.pub", key->name);
    s = path_of(to, dir, name, err);
    return s == SL_OK ? put_file(to, line, PUBLIC_MODE, true, err) : s;
}

enum sl_status sl_keys_promote(const char *dir, struct sl_err *err)
{
    static const char *const names[] = {"next.key", "secret.key", "next.pub", "public.key"};
    char paths[4][PATH_MAX], own[PATH_MAX], next[PATH_MAX], line[200];
    char name[SL_KEY_NAME_BYTES + 32];
    struct curve_key key[1];
    enum sl_status s = SL_OK;
    for (int i = 0; i < 4 && s == SL_OK; i++)
        s = path_of(paths[i], dir, names[i], err);
    if (s == SL_OK)
        s = read_public(paths[2], key, line, err);
    if (s != SL_OK)
        return s;
    snprintf(name, sizeof name, "allowed/%s.pub", key->name);
    if ((s = path_of(own, dir, name, err)) != SL_OK)
        return s;
    snprintf(name, sizeof name, "allowed/%s.next.pub", key->name);
    if ((s = path_of(next, dir, name, err)) != SL_OK)
        return s;
    /* The secret last: until then the old pair is in force. */
    s = put_file(own, line, PUBLIC_MODE, true, err);
    if (s == SL_OK && rename(paths[2], paths[3]))
        s = sl_fail(err, SL_CONFIG, "keygen: %s: %s", paths[3], strerror(errno));
    if (s == SL_OK && rename(paths[0], paths[1]))
        s = sl_fail(err, SL_CONFIG, "keygen: %s: %s", paths[1], strerror(errno));
    if (s == SL_OK)
        unlink(next);
    return s;
}
