/* The option reader: defaults, file, environment, command line, in that order, so that what is
 * stored last has precedence. The command line is split first, since it may name the file. */
#include "options_priv.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define TABLE_MAX 256

const struct sl_option *options_find(const struct sl_option *table, size_t n_table,
                                     struct sl_str name)
{
    for (size_t i = 0; i < n_table; i++)
        if (sl_str_eqz(name, table[i].name))
            return &table[i];
    return NULL;
}

void options_hint(const struct sl_option *table, size_t n_table, const char *word,
                  const char *dashes, char *out, size_t out_size)
{
    const char *names[TABLE_MAX + 1];
    for (size_t i = 0; i < n_table; i++)
        names[i] = table[i].name;
    names[n_table] = NULL;
    const char *near = sl_suggest(word, names);
    if (near)
        snprintf(out, out_size, "; did you mean '%s%s'?", dashes, near);
    else
        out[0] = 0;
}

void options_variable(const struct sl_option *row, char name[OPTIONS_VARIABLE_MAX])
{
    snprintf(name, OPTIONS_VARIABLE_MAX, "SLUICE_%s", row->name);
    for (char *p = name; *p; p++)
        *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

/* What the command line says: a value by row (NULL: nothing), and the operands. */
struct command_line {
    const struct sl_option *table;
    size_t n_table;
    int argc;
    char **argv;
    const char *values[TABLE_MAX];
    const char **operands;
    size_t operands_max, n_operands;
    struct sl_err *err;
};

static enum sl_status take_operand(struct command_line *c, const char *text)
{
    if (c->n_operands == c->operands_max)
        return sl_fail(c->err, SL_USAGE, "'%.80s' is operand %zu, at most %zu expected", text,
                       c->n_operands + 1, c->operands_max);
    c->operands[c->n_operands++] = text;
    return SL_OK;
}

static enum sl_status unknown_flag(const struct command_line *c, const char *arg)
{
    char hint[128];
    size_t dashes = strspn(arg, "-");
    char word[80];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(arg + dashes, "="), arg + dashes);
    options_hint(c->table, c->n_table, word, "--", hint, sizeof hint);
    return sl_fail_param(c->err, SL_USAGE, word, "unknown option '%.80s'%s", arg, hint);
}

/* One of --x, --x=V, --x V, --no-x at argv[*at]; *at is left at the last word used. */
static enum sl_status take_flag(struct command_line *c, int *at)
{
    const char *arg = c->argv[*at];
    const char *equals = strchr(arg, '=');
    if (arg[1] != '-')
        return unknown_flag(c, arg);
    struct sl_str name = {arg + 2, equals ? (size_t)(equals - arg - 2) : strlen(arg + 2)};
    const struct sl_option *row = options_find(c->table, c->n_table, name);
    if (!row && !equals && name.len > 3 && memcmp(name.data, "no-", 3) == 0) {
        row = options_find(c->table, c->n_table, sl_str_of(name.data + 3));
        if (!row || row->kind != SL_OPT_FLAG)
            return unknown_flag(c, arg);
        c->values[row - c->table] = "false";
        return SL_OK;
    }
    if (!row)
        return unknown_flag(c, arg);
    const char **value = &c->values[row - c->table];
    if (equals) {
        *value = equals + 1;
    } else if (row->kind == SL_OPT_FLAG) {
        *value = "true";
    } else if (*at + 1 == c->argc || strncmp(c->argv[*at + 1], "--", 2) == 0) {
        return sl_fail_param(c->err, SL_USAGE, row->name,
                             "--%s needs a value (one that starts with -- is written --%s=VALUE)",
                             row->name, row->name);
    } else {
        *value = c->argv[++*at];
    }
    return SL_OK;
}

static enum sl_status split_command_line(struct command_line *c)
{
    bool only_operands = false;
    enum sl_status status = SL_OK;
    for (int i = 1; i < c->argc && status == SL_OK; i++) {
        const char *arg = c->argv[i];
        if (only_operands || arg[0] != '-' || !arg[1])
            status = take_operand(c, arg);
        else if (strcmp(arg, "--") == 0)
            only_operands = true;
        else
            status = take_flag(c, &i);
    }
    return status;
}

/* The row's variable, unless it is unset or empty; compose files leave empty ones about. */
static const char *variable_value(char *const *env, const char *name)
{
    size_t len = strlen(name);
    for (; env && *env; env++)
        if (strncmp(*env, name, len) == 0 && (*env)[len] == '=' && (*env)[len + 1])
            return *env + len + 1;
    return NULL;
}

static enum sl_status store_defaults(const struct command_line *c, struct sl_arena *arena,
                                     void *out)
{
    for (size_t i = 0; i < c->n_table; i++) {
        const struct sl_option *row = &c->table[i];
        void *field = (char *)out + row->offset;
        const struct option_source source = {SL_FAILED, row->name, false};
        if (row->def) {
            enum sl_status status = options_store(row, row->def, &source, arena, out, c->err);
            if (status != SL_OK)
                return status;
        } else if (row->kind == SL_OPT_FLAG) {
            memset(field, 0, sizeof(bool));
        } else if (row->kind == SL_OPT_STRING || row->kind == SL_OPT_CHOICE) {
            memcpy(field, &(const char *){NULL}, sizeof(const char *));
        } else {
            memset(field, 0, sizeof(int64_t)); /* +0 of a double too */
        }
    }
    return SL_OK;
}

static enum sl_status store_file(const struct command_line *c, char *const *env,
                                 struct sl_arena *arena, void *out)
{
    const struct sl_option *row = options_find(c->table, c->n_table, SL_STR("config"));
    if (!row)
        return SL_OK;
    const char *path = c->values[row - c->table];
    if (!path)
        path = variable_value(env, "SLUICE_CONFIG");
    if (!path)
        path = row->def;
    return path ? options_read_file(c->table, c->n_table, path, arena, out, c->err) : SL_OK;
}

static enum sl_status store_environment(const struct command_line *c, char *const *env,
                                        struct sl_arena *arena, void *out)
{
    enum sl_status status = SL_OK;
    for (size_t i = 0; i < c->n_table && status == SL_OK; i++) {
        char name[OPTIONS_VARIABLE_MAX];
        options_variable(&c->table[i], name);
        const struct option_source source = {SL_USAGE, name, true};
        const char *text = variable_value(env, name);
        if (text)
            status = options_store(&c->table[i], text, &source, arena, out, c->err);
    }
    return status;
}

static enum sl_status store_command_line(const struct command_line *c, struct sl_arena *arena,
                                         void *out)
{
    enum sl_status status = SL_OK;
    for (size_t i = 0; i < c->n_table && status == SL_OK; i++) {
        char name[OPTIONS_VARIABLE_MAX];
        snprintf(name, sizeof name, "--%s", c->table[i].name);
        const struct option_source source = {SL_USAGE, name, true};
        if (c->values[i])
            status = options_store(&c->table[i], c->values[i], &source, arena, out, c->err);
    }
    for (size_t i = 0; i < c->n_operands && status == SL_OK; i++) {
        const char *text = c->operands[i];
        c->operands[i] = sl_arena_strndup(arena, text, strlen(text));
        if (!c->operands[i])
            status = sl_fail(c->err, SL_NO_MEMORY, "no room for operand %zu of %zu bytes", i + 1,
                             strlen(text));
    }
    return status;
}

enum sl_status sl_options_read(const struct sl_option *table, size_t n_table, int argc, char **argv,
                               char *const *env, struct sl_arena *arena, void *out,
                               const char **operands, size_t operands_max, size_t *n_operands,
                               struct sl_err *err)
{
    struct command_line c = {.table = table,
                             .n_table = n_table,
                             .argc = argc,
                             .argv = argv,
                             .operands = operands,
                             .operands_max = operands_max,
                             .err = err};
    sl_assert(n_table <= TABLE_MAX);
    *n_operands = 0;
    enum sl_status status = split_command_line(&c);
    if (status == SL_OK)
        status = store_defaults(&c, arena, out);
    if (status == SL_OK)
        status = store_file(&c, env, arena, out);
    if (status == SL_OK)
        status = store_environment(&c, env, arena, out);
    if (status == SL_OK)
        status = store_command_line(&c, arena, out);
    if (status == SL_OK)
        *n_operands = c.n_operands;
    return status;
}
