/* The system's clocks, and unpredictable bits from the kernel. */
#include <sluice/base/err.h>
#include <sluice/base/time.h>

#include <errno.h>
#include <sys/random.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec t = {0};
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * SL_S_NS + (uint64_t)t.tv_nsec;
}

uint64_t sl_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t sl_unix_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

uint64_t sl_thread_cpu_ns(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t sl_process_cpu_ns(void)
{
    return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}

uint64_t sl_entropy_u64(void)
{
    uint64_t bits = 0;
    ssize_t n;
    do
        n = getrandom(&bits, sizeof bits, 0);
    while (n < 0 && errno == EINTR);
    sl_assert(n == (ssize_t)sizeof bits); /* predictable keys would be worse than stopping */
    return bits;
}
