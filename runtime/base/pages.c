/* Anonymous pages on 2 MiB borders: the system can back them with huge pages from the first byte.
 */
#include <sluice/base/mem.h>

#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

/* Whole system pages; 0 when size is 0 or the sum would wrap. */
static size_t round_to_pages(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t sum;
    if (!size || !sl_size_add(size, page - 1, &sum))
        return 0;
    return sum & ~(page - 1);
}

static void *map(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void *sl_pages_alloc(size_t size)
{
    size_t len = round_to_pages(size);
    size_t over;
    if (!len || !sl_size_add(len, HUGE_PAGE, &over))
        return NULL;
    if (len < HUGE_PAGE)
        return map(len);
    char *raw = map(over);
    if (!raw)
        return NULL;
    size_t head = (HUGE_PAGE - ((uintptr_t)raw & (HUGE_PAGE - 1))) & (HUGE_PAGE - 1);
    char *p = raw + head;
    if (head)
        munmap(raw, head);
    if (HUGE_PAGE - head)
        munmap(p + len, HUGE_PAGE - head);
    madvise(p, len, MADV_HUGEPAGE); /* advice only: small pages serve as well */
    return p;
}

void sl_pages_free(void *p, size_t size)
{
    size_t len = round_to_pages(size);
    if (p && len)
        munmap(p, len);
}
