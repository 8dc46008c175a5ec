/* What the compiler calls at each access of code built with -fsanitize=thread, in place of
 * ThreadSanitizer's library: the interface is that of LLVM's tsan_interface.h and
 * tsan_interface_atomic.h, which GCC follows. Linked into programs with watched kernels only. The
 * compilers call a 16-byte access aligned if it is aligned to 8. */
#include <string.h>

#include "emu/block.h"
#include "emu/race.h"

#pragma GCC visibility push(default)

extern const char emu_hooks_linked;
const char emu_hooks_linked = 1;

#define PC __builtin_return_address(0)

static inline __attribute__((always_inline)) void saw(const void *p, size_t n, size_t align,
                                                      unsigned how, const void *pc)
{
    struct worker *w = emu_worker;
    if (!w || !w->race || (size_t)((uintptr_t)p - (uintptr_t)w->stack) < STACK_BYTES)
        return;
    if ((uintptr_t)p % align)
        emu_break_access(w->current, pc, "misaligned access");
    emu_race_access(w, w->current, p, n, how, pc);
}

/* ---- the module ---- */

void __tsan_init(void);
void __tsan_func_entry(void *pc);
void __tsan_func_exit(void);
void __tsan_vptr_update(void **p, void *v);
void __tsan_vptr_read(void **p);

void __tsan_init(void)
{
}
void __tsan_func_entry(void *pc)
{
    (void)pc;
}
void __tsan_func_exit(void)
{
}
void __tsan_vptr_update(void **p, void *v)
{
    (void)p, (void)v;
}
void __tsan_vptr_read(void **p)
{
    (void)p;
}

/* ---- plain accesses ---- */

#define PLAIN(name, n, align, how)                                                                 \
    void __tsan_##name(void *p);                                                                   \
    void __tsan_##name(void *p)                                                                    \
    {                                                                                              \
        saw(p, n, align, how, PC);                                                                 \
    }
#define PLAIN_SIZE(n, align)                                                                       \
    PLAIN(read##n, n, align, 0)                                                                    \
    PLAIN(write##n, n, align, ACCESS_WRITE)                                                        \
    PLAIN(volatile_read##n, n, align, 0)                                                           \
    PLAIN(volatile_write##n, n, align, ACCESS_WRITE)                                               \
    PLAIN(unaligned_read##n, n, 1, 0)                                                              \
    PLAIN(unaligned_write##n, n, 1, ACCESS_WRITE)                                                  \
    PLAIN(unaligned_volatile_read##n, n, 1, 0)                                                     \
    PLAIN(unaligned_volatile_write##n, n, 1, ACCESS_WRITE)
PLAIN_SIZE(1, 1)
PLAIN_SIZE(2, 2)
PLAIN_SIZE(4, 4)
PLAIN_SIZE(8, 8)
PLAIN_SIZE(16, 8)

void __tsan_read_range(void *p, unsigned long n);
void __tsan_write_range(void *p, unsigned long n);

void __tsan_read_range(void *p, unsigned long n)
{
    saw(p, n, 1, 0, PC);
}
void __tsan_write_range(void *p, unsigned long n)
{
    saw(p, n, 1, ACCESS_WRITE, PC);
}

/* ---- atomics: all sequentially consistent ---- */

void __tsan_atomic_thread_fence(int order);
void __tsan_atomic_signal_fence(int order);

void __tsan_atomic_thread_fence(int order)
{
    (void)order;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int order)
{
    (void)order;
}

#define SAW_ATOMIC(p, how) saw((const void *)p, sizeof *p, sizeof *p, ACCESS_ATOMIC | (how), PC)

#define ATOMIC_RMW(T, bits, op)                                                                    \
    T __tsan_atomic##bits##_##op(volatile T *p, T v, int order);                                   \
    T __tsan_atomic##bits##_##op(volatile T *p, T v, int order)                                    \
    {                                                                                              \
        (void)order;                                                                               \
        SAW_ATOMIC(p, ACCESS_WRITE);                                                               \
        return __atomic_##op(p, v, __ATOMIC_SEQ_CST);                                              \
    }
/* The compilers' own name of it has no suffix for a value. */
#define __atomic_exchange __atomic_exchange_n
#define ATOMIC_CAS(T, bits, name)                                                                  \
    int __tsan_atomic##bits##_##name(volatile T *p, T *want, T v, int order, int order_else);      \
    int __tsan_atomic##bits##_##name(volatile T *p, T *want, T v, int order, int order_else)       \
    {                                                                                              \
        (void)order, (void)order_else;                                                             \
        SAW_ATOMIC(p, ACCESS_WRITE);                                                               \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
#define ATOMIC(T, bits)                                                                            \
    T __tsan_atomic##bits##_load(const volatile T *p, int order);                                  \
    T __tsan_atomic##bits##_load(const volatile T *p, int order)                                   \
    {                                                                                              \
        (void)order;                                                                               \
        SAW_ATOMIC(p, 0);                                                                          \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                               \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int order);                               \
    void __tsan_atomic##bits##_store(volatile T *p, T v, int order)                                \
    {                                                                                              \
        (void)order;                                                                               \
        SAW_ATOMIC(p, ACCESS_WRITE);                                                               \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                  \
    }                                                                                              \
    ATOMIC_RMW(T, bits, exchange)                                                                  \
    ATOMIC_RMW(T, bits, fetch_add)                                                                 \
    ATOMIC_RMW(T, bits, fetch_sub)                                                                 \
    ATOMIC_RMW(T, bits, fetch_and)                                                                 \
    ATOMIC_RMW(T, bits, fetch_or)                                                                  \
    ATOMIC_RMW(T, bits, fetch_xor)                                                                 \
    ATOMIC_CAS(T, bits, compare_exchange_strong)                                                   \
    ATOMIC_CAS(T, bits, compare_exchange_weak)                                                     \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *p, T want, T v, int order, int or_);  \
    T __tsan_atomic##bits##_compare_exchange_val(volatile T *p, T want, T v, int order, int or_)   \
    {                                                                                              \
        (void)order, (void)or_;                                                                    \
        SAW_ATOMIC(p, ACCESS_WRITE);                                                               \
        __atomic_compare_exchange_n(p, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
        return want;                                                                               \
    }
ATOMIC(uint8_t, 8)
ATOMIC(uint16_t, 16)
ATOMIC(uint32_t, 32)
ATOMIC(uint64_t, 64)
