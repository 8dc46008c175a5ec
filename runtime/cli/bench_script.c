/* Benchmarks that drive other programs are scripts: `sluice bench compare` and `bench faults` hand
 * over to bench/NAME.py of the source tree this program was built in (build folder beside bench/).
 * An installed program has no such scripts. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* `self` is the program's own path, in build/ or in a folder of it; the script's path is put into
 * `out`, or SL_UNSUPPORTED. */
static enum sl_status find_script(const char *self, const char *name, struct sl_buf *out,
                                  struct sl_err *err)
{
    static const char *const places[] = {"/../bench", "/../../bench"};
    const char *end = strrchr(self, '/');
    size_t folder = end ? (size_t)(end - self) : 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        sl_buf_clear(out);
        sl_buf_append(out, self, folder);
        sl_buf_printf(out, "%s/%s.py", places[i], name);
        if (!out->failed && access(out->data, R_OK) == 0)
            return SL_OK;
    }
    return sl_fail(err, SL_UNSUPPORTED,
                   "bench %s is not implemented in an installed sluice; it needs the source tree",
                   name);
}

static enum sl_status run_script(const char *self, const char *script, int argc, char **argv,
                                 char *const *env, struct sl_err *err)
{
    const char **args = calloc((size_t)argc + 5, sizeof *args);
    if (!args)
        return sl_fail(err, SL_NO_MEMORY, "bench: no memory");
    int n = 0;
    args[n++] = "python3";
    args[n++] = script;
    args[n++] = "--sluice";
    args[n++] = self;
    for (int i = 1; i < argc; i++)
        args[n++] = argv[i];
    fflush(NULL);
    execvpe("python3", (char *const *)(void *)args, env);
    int why = errno;
    free(args);
    return sl_fail(err, SL_FAILED, "bench: cannot run python3: %s", strerror(why));
}

int sl_cli_bench_script(int argc, char **argv, char *const *env)
{
    char self[4096];
    struct sl_buf script = {0};
    struct sl_err err;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    enum sl_status s = find_script(self, argv[0], &script, &err);
    if (!s)
        s = run_script(self, script.data, argc, argv, env, &err);
    sl_buf_free(&script);
    return s ? sl_cli_fail(&err) : 0;
}
