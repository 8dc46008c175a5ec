/* A kernel's access to memory that is not there, where accesses are not watched: the fault becomes
 * the launch's error, as an illegal address is on a device. Guard pages and freed memory make most
 * such accesses faults. */
#include "emu/runtime.h"

#include <signal.h>
#include <stdio.h>
#include <ucontext.h>

#include "emu/block.h"

#if defined(__SANITIZE_THREAD__)
#define NO_TRAP 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_TRAP 1
#endif
#endif

static struct sigaction former[2];

static const void *pc_of(const void *context)
{
    const ucontext_t *c = context;
#if defined(__x86_64__)
    return (const void *)(uintptr_t)(c->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__aarch64__)
    return (const void *)(uintptr_t)(c->uc_mcontext.pc + 4);
#else
    (void)c;
    return NULL;
#endif
}

/* In a kernel no lock is held, and its stack is left for good. */
static __attribute__((unused)) void trap(int signal, siginfo_t *info, void *context)
{
    char text[400], memory[200] = "in no allocation";
    if (!emu_worker) { /* not ours: comes again, to whoever had it before */
        sigaction(signal, &former[signal == SIGBUS], NULL);
        return;
    }
    pthread_mutex_lock(&rt.lock);
    const struct memory *m = memory_at(info->si_addr);
    if (m)
        memory_describe(m, memory, sizeof memory);
    snprintf(text, sizeof text, "illegal memory access at %p, %s%s", info->si_addr,
             !m         ? ""
             : m->freed ? "freed: "
                        : "beside ",
             memory);
    pthread_mutex_unlock(&rt.lock);
    emu_break_access(emu_worker->current, pc_of(context), text);
}

bool emu_traps_faults(void)
{
#ifdef NO_TRAP
    return false;
#else
    return true;
#endif
}

void trap_install(void)
{
#ifndef NO_TRAP
    static const int signals[] = {SIGSEGV, SIGBUS};
    for (int i = 0; i < 2; i++) {
        struct sigaction now, ours = {.sa_sigaction = trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
        sigemptyset(&ours.sa_mask);
        if (sigaction(signals[i], NULL, &now) ||
            ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == trap))
            continue;
        former[i] = now;
        sigaction(signals[i], &ours, NULL);
    }
#endif
}
