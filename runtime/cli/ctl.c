/* sluice health and sluice ctl: look at a running server and drain it. */
#include "cli.h"

#include <sluice/base/json.h>
#include <sluice/transport/http_client.h>
#include <stdio.h>
#include <string.h>

struct ctl_options {
    const char *url;
    bool json, ready;
};

#define URL_ROW                                                                                    \
    {                                                                                              \
        .name = "url", .kind = SL_OPT_STRING, .offset = offsetof(struct ctl_options, url),         \
        .def = "http://127.0.0.1:8080", .meta = "URL", .help = "the server"                        \
    }
static const struct sl_option health_table[] = {
    URL_ROW,
    {.name = "live",
     .kind = SL_OPT_FLAG,
     .offset = offsetof(struct ctl_options, ready),
     .def = "false",
     .help = "only ask whether the process answers, not whether it is ready"}};
static const struct sl_option ctl_table[] = {URL_ROW,
                                             {.name = "json",
                                              .kind = SL_OPT_FLAG,
                                              .offset = offsetof(struct ctl_options, json),
                                              .def = "false",
                                              .help = "print JSON"}};

static enum sl_status ask(const char *base, const char *path, bool post, struct sl_buf *answer,
                          struct sl_err *err)
{
    struct sl_buf url = {0};
    long status = 0;
    sl_buf_printf(&url, "%s%s", base, path);
    enum sl_status s =
        post ? sl_http_post(url.data, "application/json", "", 0, 3000, &status, answer, err)
             : sl_http_get(url.data, 3000, &status, answer, err);
    if (!s && status != 200)
        s = sl_fail(err, SL_FAILED, "%s answered %ld", url.data, status);
    sl_buf_free(&url);
    return s;
}

const struct sl_verb_doc sl_doc_health = {.verb = "health",
                                          .operands = "",
                                          .summary = "probe a running server",
                                          .table = health_table,
                                          .n_table = sizeof health_table / sizeof *health_table};

int sl_cli_health(int argc, char **argv, char *const *env)
{
    struct ctl_options o = {0};
    struct sl_arena arena;
    struct sl_buf answer = {0};
    struct sl_err err;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("health", "", health_table, sizeof health_table / sizeof *health_table,
                            argc, argv, env, &arena, &o, NULL, 0, &n, &done);
    if (!done && ask(o.url, o.ready ? "/health" : "/ready", false, &answer, &err))
        rc = sl_cli_fail(&err);
    sl_buf_free(&answer);
    sl_arena_free(&arena);
    return rc;
}

static long long number(const struct sl_json *o, const char *name)
{
    const struct sl_json *v = sl_json_get(o, name);
    return v && sl_json_kind(v) == SL_JSON_INT ? (long long)sl_json_int(v) : 0;
}

static struct sl_str text(const struct sl_json *o, const char *name)
{
    const struct sl_json *v = sl_json_get(o, name);
    return v && sl_json_kind(v) == SL_JSON_STRING ? sl_json_str(v) : SL_STR("");
}

static enum sl_status print_table(const struct sl_buf *answer, struct sl_err *err)
{
    struct sl_json *list;
    enum sl_status s = sl_json_parse(answer->data, answer->len, &list, err);
    if (s)
        return s;
    printf("%8s %-7s %-10s %4s %5s %-7s %4s %8s %8s %14s %10s\n", "PID", "ROLE", "SITE", "RANK",
           "TPxPP", "ISA", "THR", "RUNNING", "WAITING", "KV FREE", "STEPS");
    for (size_t i = 0; sl_json_kind(list) == SL_JSON_ARRAY && i < sl_json_len(list); i++) {
        const struct sl_json *p = sl_json_at(list, i);
        struct sl_str role = text(p, "role"), isa = text(p, "isa"), site = text(p, "site");
        printf("%8lld %-7.*s %-10.*s %4lld %2lldx%-2lld ", number(p, "pid"), (int)role.len,
               role.data, (int)site.len, site.data, number(p, "rank"), number(p, "tp"),
               number(p, "pp"));
        printf("%-7.*s %4lld %8lld %8lld %6lld/%-7lld %10lld\n", (int)isa.len, isa.data,
               number(p, "threads"), number(p, "running"), number(p, "waiting"),
               number(p, "kv_pages_free"), number(p, "kv_pages_total"), number(p, "steps"));
    }
    sl_json_free(list);
    return SL_OK;
}

static enum sl_status run_ctl(const struct ctl_options *o, const char *what, struct sl_err *err)
{
    struct sl_buf answer = {0};
    enum sl_status s;
    if (!strcmp(what, "ps")) {
        s = ask(o->url, "/v1/internal/ps", false, &answer, err);
        if (!s && o->json)
            printf("%s\n", answer.data);
        else if (!s)
            s = print_table(&answer, err);
    } else if (!strcmp(what, "drain")) {
        s = ask(o->url, "/v1/internal/drain", true, &answer, err);
    } else {
        s = sl_fail(err, SL_USAGE, "ctl: unknown action '%s' (known: ps, drain)", what);
    }
    sl_buf_free(&answer);
    return s;
}

const struct sl_verb_doc sl_doc_ctl = {.verb = "ctl",
                                       .operands = "ps|drain",
                                       .summary = "look at and drain a running cluster",
                                       .table = ctl_table,
                                       .n_table = sizeof ctl_table / sizeof *ctl_table};

int sl_cli_ctl(int argc, char **argv, char *const *env)
{
    struct ctl_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    const char *what = NULL;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("ctl", "ps|drain ", ctl_table, sizeof ctl_table / sizeof *ctl_table,
                            argc, argv, env, &arena, &o, &what, 1, &n, &done);
    if (!done) {
        enum sl_status s = n ? run_ctl(&o, what, &err)
                             : sl_fail(&err, SL_USAGE, "ctl: what to do is missing (ps, drain)");
        rc = s ? sl_cli_fail(&err) : 0;
    }
    sl_arena_free(&arena);
    return rc;
}
