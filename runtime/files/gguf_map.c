/* GGUF files on disk: mapped read-only and shared with every process that maps the same file. Only
 * regular files are taken. A file that is cut short while mapped is outside what can be checked. */
#include "gguf_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SHOWN_MAX 100 /* the end of a longer path tells more than its beginning */

static const char *shown_path(const char *path)
{
    size_t len = strlen(path);
    return len > PATH_SHOWN_MAX ? path + len - PATH_SHOWN_MAX : path;
}

static enum sl_status map_file(int fd, const char *path, void **map, size_t *size,
                               struct sl_err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return sl_fail(err, SL_MODEL, "%s: %s", shown_path(path), strerror(errno));
    if (!S_ISREG(st.st_mode))
        return sl_fail(err, SL_MODEL, "%s: not a regular file", shown_path(path));
    if (st.st_size == 0)
        return sl_fail(err, SL_MODEL, "%s: gguf: file is empty", shown_path(path));
    *size = (size_t)st.st_size;
    *map = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (*map == MAP_FAILED)
        return sl_fail(err, SL_NO_MEMORY, "%s: cannot map %zu bytes: %s", shown_path(path), *size,
                       strerror(errno));
    return SL_OK;
}

enum sl_status sl_gguf_open(const char *path, struct sl_gguf **out, struct sl_err *err)
{
    *out = NULL;
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return sl_fail(err, SL_MODEL, "%s: %s", shown_path(path), strerror(errno));
    void *map = NULL;
    size_t size = 0;
    enum sl_status status = map_file(fd, path, &map, &size, err);
    close(fd);
    if (status)
        return status;
    struct sl_err inner = {0};
    status = sl_gguf_parse(map, size, false, out, &inner);
    if (status) {
        munmap(map, size);
        return sl_fail(err, status, "%s: %s", shown_path(path), inner.msg);
    }
    (*out)->mapped = true;
    return SL_OK;
}

void sl_gguf_close(struct sl_gguf *g)
{
    if (!g)
        return;
    if (g->mapped)
        munmap((void *)(uintptr_t)g->data, (size_t)g->size);
    for (size_t i = 0; i < g->n_keys; i++)
        free((void *)(uintptr_t)g->keys[i].str_at);
    free(g->keys);
    free(g->tensors);
    free(g->key_index.slots);
    free(g->tensor_index.slots);
    free(g);
}

void sl_gguf_release(const struct sl_gguf *g, const void *data, size_t bytes)
{
    uintptr_t base = (uintptr_t)g->data, from = (uintptr_t)data;
    if (!g->mapped || from < base || from - base > g->size || bytes > g->size - (from - base))
        return;
    /* Outwards to whole pages: a neighbour's bytes on them come back from the file when read. */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = from & ~(page - 1);
    uintptr_t end = (from + bytes + page - 1) & ~(page - 1);
    madvise((void *)first, end - first, MADV_DONTNEED);
}
