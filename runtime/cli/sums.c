/* See sums.h. */
#include "sums.h"

#include <sluice/base/mem.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX    "sha256-"
#define NAME_ROOM 256

static void name_of(const char *dir, const struct stat *st, struct sl_buf *out)
{
    sl_buf_printf(out, "%s/" PREFIX "%llx-%llx-%llx-%llx.%09ld", dir,
                  (unsigned long long)st->st_dev, (unsigned long long)st->st_ino,
                  (unsigned long long)st->st_size, (unsigned long long)st->st_mtim.tv_sec,
                  st->st_mtim.tv_nsec);
}

bool sums_get(const char *dir, const struct stat *st, char hex[65])
{
    struct sl_buf name = {0};
    name_of(dir, st, &name);
    int fd = name.failed ? -1 : open(name.data, O_RDONLY | O_CLOEXEC);
    sl_buf_free(&name);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, hex, 64);
    hex[n > 0 ? n : 0] = 0;
    bool good = n == 64 && strspn(hex, "0123456789abcdef") == 64;
    if (good)
        futimens(fd, NULL);
    close(fd);
    return good;
}

/* --- forgetting ------------------------------------------------------------------------------- */

struct entry {
    struct timespec used;
    char name[NAME_ROOM];
};

static bool is_older(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/* Keeps the newest of those shown, in `e` [SUMS_MAX]; the oldest one leaves the folder. */
static void keep_newest(int dir, struct entry *e, size_t *n, const struct entry *shown)
{
    size_t oldest = 0;
    if (*n < SUMS_MAX) {
        e[(*n)++] = *shown;
        return;
    }
    for (size_t i = 1; i < *n; i++)
        if (is_older(&e[i].used, &e[oldest].used))
            oldest = i;
    if (is_older(&shown->used, &e[oldest].used)) {
        unlinkat(dir, shown->name, 0);
        return;
    }
    unlinkat(dir, e[oldest].name, 0);
    e[oldest] = *shown;
}

static void forget_old(const char *path)
{
    struct entry *kept = calloc(SUMS_MAX, sizeof *kept), shown;
    DIR *d = kept ? opendir(path) : NULL;
    struct stat st;
    size_t n = 0;
    for (struct dirent *f; d && (f = readdir(d));) {
        if (strncmp(f->d_name, PREFIX, strlen(PREFIX)) != 0 || strlen(f->d_name) >= NAME_ROOM ||
            fstatat(dirfd(d), f->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue; /* another's, or gone meanwhile */
        shown.used = st.st_mtim;
        memcpy(shown.name, f->d_name, strlen(f->d_name) + 1);
        keep_newest(dirfd(d), kept, &n, &shown);
    }
    if (d)
        closedir(d);
    free(kept);
}

void sums_put(const char *dir, const struct stat *st, const char hex[65])
{
    struct sl_buf name = {0}, part = {0};
    name_of(dir, st, &name);
    sl_buf_printf(&part, "%s.%ld", name.data, (long)getpid());
    FILE *f = name.failed || part.failed ? NULL : fopen(part.data, "we");
    if (f) {
        bool whole = fwrite(hex, 1, 64, f) == 64;
        if (fclose(f) || !whole || rename(part.data, name.data))
            unlink(part.data);
        forget_old(dir);
    }
    sl_buf_free(&name);
    sl_buf_free(&part);
}
