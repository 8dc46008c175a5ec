/* Arguments of followers: the same program and engine options, as `sluice worker`. */
#include "followers.h"

#include <string.h>
#include <unistd.h>

enum sl_status followers_config(const struct engine_options *o, const char *model,
                                const char *log_format, char *const *env, struct sl_arena *arena,
                                struct followers *room, struct sl_ranks_config *out,
                                struct sl_err *err)
{
    struct engine_options each = *o;
    struct sl_engine_config cfg;
    uint32_t n = 0;
    enum sl_status s = engine_options_config(o, 1, &cfg, err);
    if (s || (s = sl_cli_self_path(room->exe, err)))
        return s;
    each.threads = cfg.n_threads;
    room->argv[n++] = "sluice";
    room->argv[n++] = "worker";
    room->argv[n++] = sl_arena_strndup(arena, model, strlen(model));
    if (log_format) {
        room->argv[n++] = "--log-format";
        room->argv[n++] = log_format;
    }
    s = engine_options_args(&each, arena, room->argv, FOLLOWER_ARGS_MAX, &n, err);
    if (!s && !room->argv[2])
        s = sl_fail(err, SL_NO_MEMORY, "no memory for a worker's arguments");
    *out = (struct sl_ranks_config){.exe = room->exe,
                                    .argv = room->argv,
                                    .n_argv = n,
                                    .env = env,
                                    .n_ranks = engine_options_ranks(o),
                                    .restarts_max = (uint32_t)o->rank_restarts,
                                    .run_dir = sl_cli_run_dir(env)};
    return s;
}
