/* Starts processes by posix_spawn: fork is not safe beside the gRPC library's threads. */
#include "spawn.h"

#include <signal.h>
#include <spawn.h>
#include <string.h>

enum sl_status spawn_program(const char *exe, const char *const *argv, char *const *env, pid_t *pid,
                             struct sl_err *err)
{
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    sigdelset(&all, SIGPIPE);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int rc = posix_spawn(pid, exe, NULL, &attr, (char *const *)(const void *)argv, env);
    posix_spawnattr_destroy(&attr);
    if (!rc)
        return SL_OK;
    *pid = 0;
    return sl_fail(err, SL_FAILED, "cannot start a worker: %s", strerror(rc));
}

enum sl_status spawn_exit_status(int code)
{
    for (int s = 1; s < SL_N_STATUS; s++)
        if (sl_status_row((enum sl_status)s)->exit_code == code)
            return (enum sl_status)s;
    return SL_FAILED;
}

bool spawn_exit_is_final(int code)
{
    return code >= 2 && code <= 5;
}
