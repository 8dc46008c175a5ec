/* sluice bench compare: hands over to bench/compare.py of the source tree this program was built in
 * (build folder beside bench/). An installed program has no such script. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* `self` is the program's own path, in build/ or in a folder of it; the script's path is put into
 * `out`, or SL_UNSUPPORTED. */
static enum sl_status find_script(const char *self, struct sl_buf *out, struct sl_err *err)
{
    static const char *const places[] = {"/../bench/compare.py", "/../../bench/compare.py"};
    const char *end = strrchr(self, '/');
    size_t folder = end ? (size_t)(end - self) : 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        sl_buf_clear(out);
        sl_buf_append(out, self, folder);
        sl_buf_puts(out, places[i]);
        if (!out->failed && access(out->data, R_OK) == 0)
            return SL_OK;
    }
    return sl_fail(err, SL_UNSUPPORTED,
                   "bench compare is not implemented in an installed sluice; it needs the source "
                   "tree");
}

static enum sl_status run_script(const char *self, const char *script, int argc, char **argv,
                                 char *const *env, struct sl_err *err)
{
    const char **args = calloc((size_t)argc + 5, sizeof *args);
    if (!args)
        return sl_fail(err, SL_NO_MEMORY, "bench compare: no memory");
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
    return sl_fail(err, SL_FAILED, "bench compare: cannot run python3: %s", strerror(why));
}

int sl_cli_bench_compare(int argc, char **argv, char *const *env)
{
    char self[4096];
    struct sl_buf script = {0};
    struct sl_err err;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    enum sl_status s = find_script(self, &script, &err);
    if (!s)
        s = run_script(self, script.data, argc, argv, env, &err);
    sl_buf_free(&script);
    return s ? sl_cli_fail(&err) : 0;
}
