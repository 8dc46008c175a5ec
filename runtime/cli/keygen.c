/* `sluice keygen`: CURVE keys of one node, or of all nodes of a cluster at once. */
#include "cli.h"

#include <sluice/transport/keys.h>

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct keygen_options {
    const char *curve_dir, *name, *role, *nodes;
    bool force, next, promote;
};

#define AT(field) .offset = offsetof(struct keygen_options, field)

static const struct sl_option table[] = {
    {.name = "curve-dir",
     .kind = SL_OPT_STRING,
     AT(curve_dir),
     .meta = "DIR",
     .help = "folder of the keys, made when it is missing"},
    {.name = "role",
     .kind = SL_OPT_CHOICE,
     AT(role),
     .def = "worker",
     .choices = "router|worker",
     .meta = "ROLE",
     .help = "what the node may be"},
    {.name = "name",
     .kind = SL_OPT_STRING,
     AT(name),
     .meta = "NAME",
     .help = "of the node (default: the host's name)"},
    {.name = "nodes",
     .kind = SL_OPT_STRING,
     AT(nodes),
     .meta = "ROLE:NAME[,...]",
     .help = "a whole cluster: DIR/NAME is the folder of each; run again to add nodes"},
    {.name = "force",
     .kind = SL_OPT_FLAG,
     AT(force),
     .def = "false",
     .help = "replace keys that are there"},
    {.name = "next",
     .kind = SL_OPT_FLAG,
     AT(next),
     .def = "false",
     .help = "make the pair that will follow: next.key, next.pub"},
    {.name = "promote",
     .kind = SL_OPT_FLAG,
     AT(promote),
     .def = "false",
     .help = "put that pair in force; a running node follows"}};

const struct sl_verb_doc sl_doc_keygen = {
    .verb = "keygen",
    .operands = "--curve-dir DIR",
    .summary = "CURVE keys for the links of a cluster",
    .text =
        "DIR/secret.key (mode 0600) is the node's own key, DIR/public.key the same for its peers, "
        "and every DIR/allowed/*.pub holds public keys of peers, a line 'ROLE NAME KEY' each. A "
        "router lets in whoever has a key there; a worker connects only to routers whose key is "
        "there; everybody else is refused. The folder is followed while a node runs: a key copied "
        "into allowed counts at once, a key removed cuts its links.\n\n"
        "For a whole cluster: sluice keygen --curve-dir keys --nodes router:r1,worker:w1,worker:w2 "
        "makes keys/r1, keys/w1 and keys/w2, each allowing all of them. Copy each folder to its "
        "machine (and no other) and give it to --curve-dir there. Running it again with further "
        "nodes adds them and keeps the keys that are there; then copy the new allowed/*.pub.\n\n"
        "To change a node's own key without stopping it: keygen --next, copy DIR/next.pub into the "
        "peers' allowed folders under a new name, keygen --promote, then delete the old public key "
        "there. When a router's key changes every link is made anew once and streams go on.",
    .table = table,
    .n_table = sizeof table / sizeof *table};

/* ---- one node ---- */

static enum sl_status own_name(const struct keygen_options *o, char name[SL_KEY_NAME_BYTES],
                               struct sl_err *err)
{
    char host[HOST_NAME_MAX + 1] = "";
    if (o->name && strlen(o->name) >= SL_KEY_NAME_BYTES)
        return sl_fail_param(err, SL_USAGE, "name", "--name has %zu bytes, at most %d",
                             strlen(o->name), SL_KEY_NAME_BYTES - 1);
    if (!o->name && gethostname(host, sizeof host - 1))
        return sl_fail_param(err, SL_USAGE, "name", "--name is missing");
    snprintf(name, SL_KEY_NAME_BYTES, "%.*s", SL_KEY_NAME_BYTES - 1, o->name ? o->name : host);
    return SL_OK;
}

static enum sl_status one_node(const struct keygen_options *o, struct sl_err *err)
{
    char name[SL_KEY_NAME_BYTES];
    enum sl_status s = own_name(o, name, err);
    struct sl_keys_request r = {.dir = o->curve_dir,
                                .name = name,
                                .role = (enum sl_key_role)sl_key_role_of(o->role),
                                .force = o->force,
                                .next = o->next};
    if (s == SL_OK)
        s = sl_keys_make(&r, err);
    if (s == SL_OK)
        printf("%s/%s\n", o->curve_dir, o->next ? "next.pub" : "public.key");
    return s;
}

/* ---- a cluster ---- */

static bool is_node(const char *dir)
{
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/public.key", dir) < PATH_MAX && access(path, R_OK) == 0;
}

static enum sl_status make_node(const struct keygen_options *o, char *spec, struct sl_err *err)
{
    char dir[PATH_MAX], *colon = strchr(spec, ':');
    if (colon)
        *colon = '\0';
    struct sl_keys_request r = {.dir = dir,
                                .name = colon ? colon + 1 : "",
                                .role = (enum sl_key_role)sl_key_role_of(spec),
                                .force = o->force};
    if (!r.role || !r.name[0] || r.name[0] == '.' || strchr(r.name, '/'))
        return sl_fail_param(err, SL_USAGE, "nodes", "--nodes: '%.60s' is not ROLE:NAME", spec);
    if (snprintf(dir, sizeof dir, "%s/%s", o->curve_dir, r.name) >= (int)sizeof dir)
        return sl_fail_param(err, SL_USAGE, "nodes", "--nodes: the path of a node is too long");
    if (is_node(dir) && !o->force)
        return SL_OK;
    enum sl_status s = sl_keys_make(&r, err);
    if (s == SL_OK)
        printf("%s\n", dir);
    return s;
}

/* `dir` admits every node below the cluster's folder. */
static enum sl_status admit_all(const char *cluster, const char *dir, struct sl_err *err)
{
    char peer[PATH_MAX];
    DIR *d = opendir(cluster);
    if (!d)
        return sl_fail(err, SL_CONFIG, "keygen: folder %s: %s", cluster, strerror(errno));
    enum sl_status s = SL_OK;
    for (struct dirent *e; s == SL_OK && (e = readdir(d));) {
        int n = snprintf(peer, sizeof peer, "%s/%s", cluster, e->d_name);
        if (e->d_name[0] != '.' && n < (int)sizeof peer && is_node(peer))
            s = sl_keys_admit(dir, peer, err);
    }
    closedir(d);
    return s;
}

static enum sl_status introduce_all(const char *cluster, struct sl_err *err)
{
    char dir[PATH_MAX];
    DIR *d = opendir(cluster);
    if (!d)
        return sl_fail(err, SL_CONFIG, "keygen: folder %s: %s", cluster, strerror(errno));
    enum sl_status s = SL_OK;
    for (struct dirent *e; s == SL_OK && (e = readdir(d));) {
        int n = snprintf(dir, sizeof dir, "%s/%s", cluster, e->d_name);
        if (e->d_name[0] != '.' && n < (int)sizeof dir && is_node(dir))
            s = admit_all(cluster, dir, err);
    }
    closedir(d);
    return s;
}

static enum sl_status cluster(const struct keygen_options *o, struct sl_arena *arena,
                              struct sl_err *err)
{
    char *text = sl_arena_strndup(arena, o->nodes, strlen(o->nodes)), *rest = NULL;
    enum sl_status s = SL_OK;
    if (!text)
        return sl_fail(err, SL_NO_MEMORY, "keygen: no memory");
    if (mkdir(o->curve_dir, 0700) && errno != EEXIST)
        return sl_fail(err, SL_CONFIG, "keygen: folder %s: %s", o->curve_dir, strerror(errno));
    for (char *e = strtok_r(text, ",", &rest); e && s == SL_OK; e = strtok_r(NULL, ",", &rest))
        s = make_node(o, e, err);
    return s == SL_OK ? introduce_all(o->curve_dir, err) : s;
}

static enum sl_status run(const struct keygen_options *o, struct sl_arena *arena,
                          struct sl_err *err)
{
    if (!o->curve_dir)
        return sl_fail_param(err, SL_USAGE, "curve-dir", "--curve-dir is missing: where to write");
    if ((o->nodes != NULL) + o->next + o->promote > 1)
        return sl_fail_param(err, SL_USAGE, "nodes",
                             "--nodes, --next and --promote exclude another");
    if (o->nodes)
        return cluster(o, arena, err);
    return o->promote ? sl_keys_promote(o->curve_dir, err) : one_node(o, err);
}

int sl_cli_keygen(int argc, char **argv, char *const *env)
{
    struct keygen_options o = {0};
    struct sl_arena arena;
    struct sl_err err;
    size_t n = 0;
    bool done;
    sl_arena_init(&arena, 1 << 20);
    int rc = sl_cli_options("keygen", "--curve-dir DIR ", table, sizeof table / sizeof *table, argc,
                            argv, env, &arena, &o, NULL, 0, &n, &done);
    if (done && rc == 0)
        printf("\n%s\n", sl_doc_keygen.text);
    if (!done && run(&o, &arena, &err) != SL_OK)
        rc = sl_cli_fail(&err);
    sl_arena_free(&arena);
    return rc;
}
