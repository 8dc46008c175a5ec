/* The other ranks of a sharded model, for verbs that start them: worker, complete, chat, bench. */
#ifndef SLUICE_CLI_FOLLOWERS_H
#define SLUICE_CLI_FOLLOWERS_H

#include "cli.h"
#include "engine_options.h"

#include <limits.h>
#include <sluice/serve/ranks.h>

#define FOLLOWER_ARGS_MAX 96

/* What a configuration points to; lives as long as it is used. */
struct followers {
    char exe[PATH_MAX];
    const char *argv[FOLLOWER_ARGS_MAX];
};

static inline uint32_t engine_options_ranks(const struct engine_options *o)
{
    return (uint32_t)(o->tensor_parallel_size * o->pipeline_parallel_size);
}

/* How followers of a process with these options are started. `model` is a file, `log_format` may be
 * NULL; texts live in the arena. */
enum sl_status followers_config(const struct engine_options *o, const char *model,
                                const char *log_format, char *const *env, struct sl_arena *arena,
                                struct followers *room, struct sl_ranks_config *out,
                                struct sl_err *err);

#endif
