/* Where code and data of a module are. From an address in code to file and line, by addr2line of
 * binutils, which comes with every compiler here; without it, module and offset. Asked only for
 * reports. */
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "emu/race.h"

enum { KNOWN_MAX = 509 };

/* Our own inlined functions, around which the kernel's line is wanted. */
static bool is_ours(const char *place)
{
    return strstr(place, "/emu/warp_ops.h") || strstr(place, "/emu/device.h") ||
           strstr(place, "/dev.cuh") || place[0] == '?';
}

/* The first line that is a kernel's, else the first. */
static bool choose_line(FILE *f, char *text, size_t max)
{
    char line[512];
    bool any = false, chosen = false;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, " \n")] = 0;
        if (chosen || (any && is_ours(line)) || line[0] == '?')
            continue;
        any = true;
        chosen = !is_ours(line);
        const char *name = strrchr(line, '/');
        size_t n = strnlen(name ? name + 1 : line, max - 1);
        memcpy(text, name ? name + 1 : line, n);
        text[n] = 0;
    }
    return any;
}

static bool ask(const char *module, uintptr_t offset, char *text, size_t max)
{
    char at[32];
    snprintf(at, sizeof at, "0x%zx", (size_t)offset);
    char *argv[] = {"addr2line", "-i", "-e", (char *)(uintptr_t)module, at, NULL};
    char *envp[] = {NULL};
    int pipes[2], status;
    bool ok = false;
    if (pipe2(pipes, O_CLOEXEC))
        return false;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipes[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
    pid_t pid;
    int rc = posix_spawn(&pid, "/usr/bin/addr2line", &actions, NULL, argv, envp);
    posix_spawn_file_actions_destroy(&actions);
    close(pipes[1]);
    FILE *f = fdopen(pipes[0], "r");
    if (f && !rc)
        ok = choose_line(f, text, max);
    if (f)
        fclose(f);
    else
        close(pipes[0]);
    if (!rc)
        waitpid(pid, &status, 0);
    return ok;
}

static void look_up(const void *pc, char *text, size_t max)
{
    Dl_info info;
    uintptr_t at = (uintptr_t)pc - 1; /* in the call, not behind it */
    if (!pc || !dladdr((const void *)at, &info) || !info.dli_fname) {
        snprintf(text, max, "%p", pc);
        return;
    }
    const ElfW(Ehdr) *head = info.dli_fbase;
    uintptr_t offset = head->e_type == ET_DYN ? at - (uintptr_t)info.dli_fbase : at;
    char link[256] = "";
    const char *module = info.dli_fname;
    if (module[0] != '/' && readlink("/proc/self/exe", link, sizeof link - 1) > 0)
        module = link; /* the program, by the name it was started with */
    if (!ask(module, offset, text, max))
        snprintf(text, max, "%s+0x%zx", module, (size_t)offset);
}

/* What was asked before; starting a program takes longer than many a launch. */
void emu_pc_text(const void *pc, char *text, size_t max)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const void *pc;
        char text[120];
    } known[KNOWN_MAX];
    size_t i = ((uintptr_t)pc >> 1) % KNOWN_MAX;
    pthread_mutex_lock(&lock);
    if (known[i].pc != pc) {
        look_up(pc, known[i].text, sizeof known[i].text);
        known[i].pc = pc;
    }
    snprintf(text, max, "%s", known[i].text);
    pthread_mutex_unlock(&lock);
}

/* ---- a module's own data ---- */

struct data_search {
    uintptr_t p, pc, lo, hi;
};

static int search_module(struct dl_phdr_info *info, size_t bytes, void *arg)
{
    (void)bytes;
    struct data_search *s = arg;
    uintptr_t lo = 0, hi = 0;
    bool ours = false;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        uintptr_t at = info->dlpi_addr + h->p_vaddr;
        if (h->p_type != PT_LOAD)
            continue;
        ours = ours || (s->pc >= at && s->pc < at + h->p_memsz);
        if (s->p >= at && s->p < at + h->p_memsz) {
            lo = at;
            hi = at + h->p_memsz;
        }
    }
    s->lo = lo;
    s->hi = hi;
    return ours;
}

bool emu_data_find(const void *p, const void *pc, uintptr_t *lo, uintptr_t *hi)
{
    struct data_search s = {.p = (uintptr_t)p, .pc = (uintptr_t)pc};
    bool found = dl_iterate_phdr(search_module, &s) && s.hi;
    *lo = s.lo;
    *hi = s.hi;
    return found;
}
