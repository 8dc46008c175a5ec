/* Private: starts a process of the program with clean signals. */
#ifndef SLUICE_SERVE_SPAWN_H
#define SLUICE_SERVE_SPAWN_H

#include <sluice/base/err.h>
#include <sys/types.h>

/* argv ends with NULL. The child sees no blocked signal and default actions, but ignores SIGPIPE as
 * we do. */
enum sl_status spawn_program(const char *exe, const char *const *argv, char *const *env, pid_t *pid,
                             struct sl_err *err);
/* The status that stands for a process's exit code. */
enum sl_status spawn_exit_status(int code);
/* An exit code that a restart cannot mend: usage, configuration, model, memory. */
bool spawn_exit_is_final(int code);

#endif
