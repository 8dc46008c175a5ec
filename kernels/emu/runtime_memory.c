/* Memory of the emulated devices, and host memory they know of.
 *
 * An allocation of a device is a mapping of the device's file (a memfd, so that other processes can
 * open it) that ends at a page nobody may touch; what is left of its first page and of its last 256
 * bytes is filled and looked at when it is freed. Freed memory is never mapped again, so a late
 * access faults. New memory holds NaNs. */
#include "emu/runtime.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGN      ((size_t)256) /* of every allocation, as on devices */
#define PAGE       ((size_t)4096)
#define POISON_MAX ((size_t)64 << 20)  /* more is not touched before the program does */
#define NUMBERS    ((uint32_t)1 << 26) /* that a kernel is given are smaller */

enum { POISON = 0xff, CANARY = 0xa5, FREED_MAX = 1 << 15 };

static struct memory **table; /* by address */
static size_t n_table, table_max;
static size_t n_freed;

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* ---- the table ---- */

/* First of the table that begins after p. */
static size_t after(uintptr_t p)
{
    size_t low = 0, high = n_table;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (table[mid]->map <= p)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

struct memory *memory_at(const void *p)
{
    size_t i = after((uintptr_t)p);
    if (!i)
        return NULL;
    struct memory *m = table[i - 1];
    return (uintptr_t)p - m->map < m->map_bytes ? m : NULL;
}

bool memory_covers(const struct memory *m, const void *p, size_t n)
{
    uintptr_t at = (uintptr_t)p - m->base;
    return (uintptr_t)p >= m->base && at <= m->bytes && n <= m->bytes - at;
}

bool memory_is_device(const struct memory *m)
{
    return m->kind == MEMORY_DEVICE || m->kind == MEMORY_IPC;
}

struct memory *memory_of_peer(int pid, uint64_t started, uint64_t file_at, int file)
{
    for (size_t i = 0; i < n_table; i++) {
        struct memory *m = table[i];
        if (m->kind == MEMORY_IPC && !m->freed && m->peer_pid == pid && m->peer_file == file &&
            m->peer_started == started && m->file_at == file_at)
            return m;
    }
    return NULL;
}

void memory_describe(const struct memory *m, char *text, size_t max)
{
    static const char *const kinds[] = {"device", "another process's", "pinned", "registered"};
    snprintf(text, max, "%zu bytes of %s memory (made at %s:%d)", m->bytes, kinds[m->kind],
             SITE(m->site));
}

static void memory_forget(size_t i)
{
    struct memory *m = table[i];
    check_forget(m);
    n_freed -= m->freed;
    free(m->users);
    free(m);
    memmove(table + i, table + i + 1, (n_table - i - 1) * sizeof *table);
    n_table--;
}

static void forget_freed(void)
{
    for (size_t i = n_table; i-- > 0;)
        if (table[i]->freed) {
            munmap((void *)table[i]->map, table[i]->map_bytes);
            memory_forget(i);
        }
}

bool memory_insert(struct memory *m)
{
    if (n_table == table_max) {
        size_t max = table_max ? 2 * table_max : 256;
        struct memory **more = realloc(table, max * sizeof *more);
        if (!more)
            return false;
        table = more;
        table_max = max;
    }
    size_t at = after(m->map);
    memmove(table + at + 1, table + at, (n_table - at) * sizeof *table);
    table[at] = m;
    n_table++;
    char text[160];
    memory_describe(m, text, sizeof text);
    emu_memory_add((const void *)m->base, m->bytes, text);
    return true;
}

void memory_used_by(struct memory *m, const struct mark *mark)
{
    uint32_t i = 0;
    while (i < m->n_users && m->users[i].slot != mark->epoch.slot)
        i++;
    if (i == m->users_max) {
        uint32_t max = i ? 2 * i : 4;
        struct epoch *more = realloc(m->users, max * sizeof *more);
        if (!more)
            return; /* blind to this one */
        m->users = more;
        m->users_max = max;
    }
    if (i == m->n_users)
        m->n_users++;
    m->users[i] = mark->epoch;
}

/* ---- mapping ---- */

/* Two small numbers side by side in a kernel's arguments must not look like an address: no memory
 * lies across a multiple of 4 GiB or close above one. What was found there is left unused. */
static void *reserve(size_t bytes)
{
    for (;;) {
        void *map =
            mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        uintptr_t at = (uintptr_t)map, last = at + bytes - 1;
        if (map == MAP_FAILED || bytes > UINT32_MAX / 2 ||
            (at >> 32 == last >> 32 && (uint32_t)at >= NUMBERS))
            return map;
    }
}

/* Pages between two guards, from the file at file_at or anonymous. */
bool memory_map(struct memory *m, int file)
{
    if (m->bytes > SIZE_MAX / 4)
        return false;
    size_t rounded = round_up(m->bytes, ALIGN), pages = round_up(rounded, PAGE);
    m->map_bytes = pages + 2 * PAGE;
    void *map = reserve(m->map_bytes);
    if (map == MAP_FAILED)
        return false;
    m->map = (uintptr_t)map;
    m->base = m->map + PAGE + pages - rounded;
    int flags = MAP_FIXED | (file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    if (mmap((void *)(m->map + PAGE), pages, PROT_READ | PROT_WRITE, flags, file,
             file < 0 ? 0 : (off_t)m->file_at) == MAP_FAILED) {
        munmap(map, m->map_bytes);
        return false;
    }
    return true;
}

static void fill(struct memory *m)
{
    uintptr_t first = m->map + PAGE, end = m->map + m->map_bytes - PAGE;
    memset((void *)first, CANARY, m->base - first);
    memset((void *)(m->base + m->bytes), CANARY, end - m->base - m->bytes);
    memset((void *)m->base, POISON, m->bytes < POISON_MAX ? m->bytes : POISON_MAX);
}

static bool is_filled(uintptr_t from, uintptr_t to)
{
    for (const uint8_t *p = (const uint8_t *)from; p < (const uint8_t *)to; p++)
        if (*p != CANARY)
            return false;
    return true;
}

static void check_edges(const struct memory *m)
{
    char text[160];
    uintptr_t end = m->map + m->map_bytes - PAGE;
    bool before = is_filled(m->map + PAGE, m->base), past = is_filled(m->base + m->bytes, end);
    if (before && past)
        return;
    memory_describe(m, text, sizeof text);
    report(m->device, "written %s the %s of %s", before ? "past" : "before",
           before ? "end" : "begin", text);
}

static void unmap(struct memory *m)
{
    emu_memory_remove((const void *)m->base);
    if (m->kind == MEMORY_REGISTERED)
        return;
    if (m->kind != MEMORY_IPC)
        check_edges(m);
    size_t pages = m->map_bytes - 2 * PAGE;
    mmap((void *)(m->map + PAGE), pages, PROT_NONE,
         MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->kind == MEMORY_DEVICE) {
        fallocate(m->device->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)m->file_at,
                  (off_t)pages);
        m->device->used -= round_up(m->bytes, ALIGN);
    }
}

/* The memory is no more; its address stays known as freed. */
void memory_release(struct memory *m)
{
    unmap(m);
    check_forget(m);
    if (m->kind == MEMORY_REGISTERED) {
        memory_forget(after(m->map) - 1);
        return;
    }
    m->freed = true;
    if (++n_freed > FREED_MAX)
        forget_freed();
}

static bool file_grow(struct device *d, struct memory *m)
{
    if (d->file < 0)
        d->file = memfd_create("sluice-cuda-emu", MFD_CLOEXEC);
    uint64_t end = d->file_end + round_up(m->bytes, PAGE);
    if (d->file < 0 || ftruncate(d->file, (off_t)end))
        return false;
    m->file_at = d->file_end;
    d->file_end = end;
    return true;
}

void memory_left(void (*tell)(const char *))
{
    char text[160];
    for (size_t i = 0; i < n_table; i++) {
        memory_describe(table[i], text, sizeof text);
        if (!table[i]->freed)
            tell(text);
    }
}

uint32_t memory_close(struct device *d, void (*leak)(const char *))
{
    uint32_t n = 0;
    char text[160];
    for (size_t i = n_table; i-- > 0;) {
        struct memory *m = table[i];
        if (m->device != d)
            continue;
        if (!m->freed) {
            memory_describe(m, text, sizeof text);
            if (leak)
                leak(text);
            n++;
            unmap(m);
        }
        if (m->kind != MEMORY_REGISTERED)
            munmap((void *)m->map, m->map_bytes);
        memory_forget(i);
    }
    if (d && d->file >= 0) {
        close(d->file);
        d->file = -1;
        d->file_end = 0;
    }
    return n;
}

/* ---- device memory ---- */

static cudaError_t allocate(struct call *c, void **p, size_t bytes, enum memory_kind kind)
{
    struct device *d = kind == MEMORY_DEVICE ? c->device : NULL;
    if (!p)
        return cudaErrorInvalidValue;
    *p = NULL;
    if (!bytes)
        return cudaSuccess;
    if (d &&
        (bytes > rt.config.memory - d->used || round_up(bytes, ALIGN) > rt.config.memory - d->used))
        return cudaErrorMemoryAllocation;
    struct memory *m = calloc(1, sizeof *m);
    if (!m)
        return cudaErrorMemoryAllocation;
    *m = (struct memory){.kind = kind, .device = d, .bytes = bytes, .site = c->site};
    if ((d && !file_grow(d, m)) || !memory_map(m, d ? d->file : -1)) {
        free(m);
        return cudaErrorMemoryAllocation;
    }
    if (!memory_insert(m)) {
        munmap((void *)m->map, m->map_bytes);
        free(m);
        return cudaErrorMemoryAllocation;
    }
    fill(m);
    if (d)
        d->used += round_up(bytes, ALIGN);
    *p = (void *)m->base;
    return cudaSuccess;
}

static cudaError_t release(struct call *c, void *p, enum memory_kind kind)
{
    if (!p)
        return cudaSuccess;
    struct memory *m = memory_at(p);
    char text[160];
    if (m && m->freed) {
        memory_describe(m, text, sizeof text);
        report(c->device, "%s at %s:%d: of %s: freed before", call_name(c->id), SITE(c->site),
               text);
    }
    if (!m || m->freed || m->kind != kind || m->base != (uintptr_t)p)
        return cudaErrorInvalidValue;
    check_unused(m, c);
    memory_release(m);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMalloc))
        return c.error;
    return call_end(&c, allocate(&c, p, bytes, MEMORY_DEVICE));
}

cudaError_t cudaFree(void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaFree))
        return c.error;
    return call_end(&c, release(&c, p, MEMORY_DEVICE));
}

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *total)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMemGetInfo))
        return c.error;
    if (!n_free || !total)
        return call_end(&c, cudaErrorInvalidValue);
    *n_free = rt.config.memory - c.device->used;
    *total = rt.config.memory;
    return call_end(&c, cudaSuccess);
}

/* ---- host memory ---- */

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaMallocHost))
        return c.error;
    return call_end(&c, allocate(&c, p, bytes, MEMORY_PINNED));
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaHostAlloc))
        return c.error;
    unsigned known = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (flags & ~known)
        return call_end(&c, cudaErrorInvalidValue);
    cudaError_t error = allocate(&c, p, bytes, MEMORY_PINNED);
    if (!error && *p && (flags & cudaHostAllocMapped))
        memory_at(*p)->mapped = true;
    return call_end(&c, error);
}

cudaError_t cudaFreeHost(void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaFreeHost))
        return c.error;
    return call_end(&c, release(&c, p, MEMORY_PINNED));
}

/* Is every page there, and writable if it must be? */
static bool host_pages_ok(uintptr_t from, size_t bytes, bool write)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    uintptr_t at = from, low, high;
    char rights[8], line[512];
    while (maps && at < from + bytes && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %7s", &low, &high, rights) == 3 && low <= at && at < high &&
            rights[0] == 'r' && (!write || rights[1] == 'w'))
            at = high;
    if (maps)
        fclose(maps);
    return at >= from + bytes;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaHostRegister))
        return c.error;
    unsigned known = cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterReadOnly;
    uintptr_t at = (uintptr_t)p;
    if (!p || !bytes || bytes > UINTPTR_MAX - at || (flags & ~known) ||
        !host_pages_ok(at, bytes, !(flags & cudaHostRegisterReadOnly)))
        return call_end(&c, cudaErrorInvalidValue);
    size_t next = after(at + bytes - 1);
    if (next && table[next - 1]->map + table[next - 1]->map_bytes > at)
        return call_end(&c, cudaErrorHostMemoryAlreadyRegistered);
    struct memory *m = calloc(1, sizeof *m);
    if (!m)
        return call_end(&c, cudaErrorMemoryAllocation);
    *m = (struct memory){.kind = MEMORY_REGISTERED,
                         .base = at,
                         .map = at,
                         .bytes = bytes,
                         .map_bytes = bytes,
                         .site = c.site,
                         .mapped = flags & cudaHostRegisterMapped};
    if (memory_insert(m))
        return call_end(&c, cudaSuccess);
    free(m);
    return call_end(&c, cudaErrorMemoryAllocation);
}

cudaError_t cudaHostUnregister(void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaHostUnregister))
        return c.error;
    struct memory *m = memory_at(p);
    if (!m || m->kind != MEMORY_REGISTERED || m->base != (uintptr_t)p)
        return call_end(&c, cudaErrorHostMemoryNotRegistered);
    check_unused(m, &c);
    memory_release(m);
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaHostGetDevicePointer))
        return c.error;
    struct memory *m = memory_at(host);
    if (!device || flags || !m || m->freed || memory_is_device(m))
        return call_end(&c, cudaErrorInvalidValue);
    m->mapped = true;
    *device = host;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaPointerGetAttributes))
        return c.error;
    if (!a)
        return call_end(&c, cudaErrorInvalidValue);
    struct memory *m = memory_at(p);
    if (m && (m->freed || !memory_covers(m, p, 1)))
        m = NULL;
    *a = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered, .device = -2};
    a->hostPointer = m && memory_is_device(m) ? NULL : (void *)(uintptr_t)p;
    if (!m)
        return call_end(&c, cudaSuccess);
    a->type = memory_is_device(m) ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    a->device = m->device ? m->device->index : c.device->index;
    a->devicePointer = (void *)(uintptr_t)p;
    return call_end(&c, cudaSuccess);
}
