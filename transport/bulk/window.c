/* Shared memory of one transfer: made and owned by the side that fetches, written by the other. */
#include "bulk/link.h"

#include <sluice/base/limits.h>

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS_MAX 256u

static uint32_t slots_for(uint32_t row_bytes)
{
    uint32_t n = SL_LIMIT_bulk_window_bytes / row_bytes;
    return n > SLOTS_MAX ? SLOTS_MAX : n < 2 ? 2 : n;
}

static bool map(struct bulk_window *w)
{
    void *p = mmap(NULL, w->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
    w->data = p == MAP_FAILED ? NULL : p;
    return w->data != NULL;
}

bool sl_bulk_window_make(struct bulk_window *w, uint32_t row_bytes)
{
    uint32_t n = slots_for(row_bytes);
    *w = (struct bulk_window){.n_slots = n, .bytes = (size_t)n * row_bytes};
    w->fd = memfd_create("sluice-bulk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (w->fd >= 0 && ftruncate(w->fd, (off_t)w->bytes) == 0 &&
        fcntl(w->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 && map(w))
        return true;
    sl_bulk_window_close(w);
    return false;
}

enum sl_status sl_bulk_window_map(struct bulk_window *w, int fd, uint32_t n_slots,
                                  uint32_t row_bytes, struct sl_err *err)
{
    struct stat st;
    *w = (struct bulk_window){.fd = fd, .n_slots = n_slots, .bytes = (size_t)n_slots * row_bytes};
    int seals = fcntl(fd, F_GET_SEALS); /* unless it cannot shrink, a write may kill us */
    bool ok = n_slots && n_slots <= SLOTS_MAX && seals >= 0 && (seals & F_SEAL_SHRINK) &&
              fstat(fd, &st) == 0 && st.st_size >= 0 && (uint64_t)st.st_size >= w->bytes && map(w);
    if (ok)
        return SL_OK;
    sl_bulk_window_close(w);
    return sl_fail(err, SL_INVALID, "bulk: shared memory of %u slots is not as agreed", n_slots);
}

void sl_bulk_window_close(struct bulk_window *w)
{
    if (w->data)
        munmap(w->data, w->bytes);
    if (w->fd >= 0)
        close(w->fd);
    *w = (struct bulk_window){.fd = -1};
}
