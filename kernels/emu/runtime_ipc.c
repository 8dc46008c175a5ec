/* Device memory of one process in another: a handle names the memfd behind it, which is opened
 * through /proc. A handle may come from anywhere; nothing in it is believed. */
#include "emu/runtime.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x656d7563u /* "cume" */

struct handle {
    uint32_t magic;
    int32_t pid, file, device;
    uint64_t started; /* when the process was: its number may come again */
    uint64_t file_at, bytes;
};
_Static_assert(sizeof(struct handle) <= sizeof(cudaIpcMemHandle_t), "fits");

/* Field 22 of /proc/PID/stat; the name before it may hold anything but is closed by the last ')'.
 */
bool process_started(int pid, uint64_t *when)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return false;
    *when = strtoull(at + 1, NULL, 10);
    return true;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaIpcGetMemHandle))
        return c.error;
    const struct memory *m = memory_at(p);
    if (!out || !m || m->freed || m->kind != MEMORY_DEVICE || m->base != (uintptr_t)p)
        return call_end(&c, cudaErrorInvalidValue);
    struct handle h = {.magic = MAGIC,
                       .pid = getpid(),
                       .file = m->device->file,
                       .device = m->device->index,
                       .file_at = m->file_at,
                       .bytes = m->bytes};
    if (!process_started(h.pid, &h.started))
        return call_end(&c, cudaErrorOperatingSystem);
    memset(out, 0, sizeof *out);
    memcpy(out, &h, sizeof h);
    return call_end(&c, cudaSuccess);
}

/* The file, or -1. */
static int open_file(const struct handle *h)
{
    char path[64];
    struct stat st;
    uint64_t started;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->file);
    if (!process_started(h->pid, &started) || started != h->started)
        return -1;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return -1;
    if (fstat(file, &st) || !S_ISREG(st.st_mode) || h->file_at % 4096 ||
        h->file_at > (uint64_t)st.st_size || h->bytes > (uint64_t)st.st_size - h->file_at) {
        close(file);
        return -1;
    }
    return file;
}

static cudaError_t open_handle(struct call *c, void **p, const struct handle *h)
{
    struct memory *m = memory_of_peer(h->pid, h->started, h->file_at, h->file);
    if (m) {
        m->n_opens++;
        *p = (void *)m->base;
        return cudaSuccess;
    }
    int file = open_file(h);
    if (file < 0)
        return cudaErrorMapBufferObjectFailed;
    m = calloc(1, sizeof *m);
    if (!m) {
        close(file);
        return cudaErrorMemoryAllocation;
    }
    *m = (struct memory){.kind = MEMORY_IPC,
                         .device = c->device,
                         .bytes = h->bytes,
                         .file_at = h->file_at,
                         .peer_file = h->file,
                         .peer_pid = h->pid,
                         .peer_started = h->started,
                         .n_opens = 1,
                         .site = c->site};
    bool ok = memory_map(m, file);
    close(file);
    if (!ok || !memory_insert(m)) {
        if (ok)
            munmap((void *)m->map, m->map_bytes);
        free(m);
        return cudaErrorMapBufferObjectFailed;
    }
    *p = (void *)m->base;
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaIpcOpenMemHandle))
        return c.error;
    struct handle h;
    memcpy(&h, &handle, sizeof h);
    if (!p || flags != cudaIpcMemLazyEnablePeerAccess)
        return call_end(&c, cudaErrorInvalidValue);
    if (h.magic != MAGIC || h.pid <= 0 || h.file < 0 || !h.bytes)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (h.pid == getpid())
        return call_end(&c, cudaErrorDeviceUninitialized); /* as of the exporter's own context */
    if (rt.config.no_peers && h.device != c.device->index)
        return call_end(&c, cudaErrorPeerAccessUnsupported);
    return call_end(&c, open_handle(&c, p, &h));
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaIpcCloseMemHandle))
        return c.error;
    struct memory *m = memory_at(p);
    if (!m || m->freed || m->kind != MEMORY_IPC || m->base != (uintptr_t)p)
        return call_end(&c, cudaErrorInvalidValue);
    if (--m->n_opens == 0) {
        check_unused(m, &c);
        memory_release(m);
    }
    return call_end(&c, cudaSuccess);
}
