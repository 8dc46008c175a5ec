/* The configuration file: one YAML mapping of scalars, read by libcyaml against a schema made from
 * the option table. Strictness that libcyaml leaves open is added here: one document only. */
#include "options_priv.h"

#include <cyaml/cyaml.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX ((size_t)1 << 20)

/* What libcyaml says first, and the first line number it names. */
struct complaint {
    char text[160];
    unsigned line;
};

static void keep_complaint(cyaml_log_t level, void *context, const char *fmt, va_list args)
{
    struct complaint *c = context;
    char text[sizeof c->text];
    (void)level;
    vsnprintf(text, sizeof text, fmt, args);
    text[strcspn(text, "\n")] = 0;
    const char *line = strstr(text, "(line: ");
    if (line && !c->line)
        c->line = (unsigned)strtoul(line + strlen("(line: "), NULL, 10);
    else if (!line && !c->text[0] && !strstr(text, "Backtrace"))
        snprintf(c->text, sizeof c->text, "%s", strncmp(text, "Load: ", 6) == 0 ? text + 6 : text);
}

/* `path` as bytes in the arena. */
static enum sl_status load_file(const char *path, struct sl_arena *arena, struct sl_str *text,
                                struct sl_err *err)
{
    size_t len = 0;
    ssize_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return sl_fail(err, SL_CONFIG, "%.120s: %s", path, strerror(errno));
    char *data = malloc(FILE_MAX + 1);
    while (data && len <= FILE_MAX && (n = read(fd, data + len, FILE_MAX + 1 - len)) > 0)
        len += (size_t)n;
    int failure = n < 0 ? errno : 0;
    close(fd);
    char *copy = data && !failure && len <= FILE_MAX ? sl_arena_strndup(arena, data, len) : NULL;
    free(data);
    if (failure)
        return sl_fail(err, SL_CONFIG, "%.120s: %s", path, strerror(failure));
    if (len > FILE_MAX)
        return sl_fail(err, SL_CONFIG, "%.120s: more than the limit of %zu bytes", path, FILE_MAX);
    if (!copy)
        return sl_fail(err, SL_NO_MEMORY, "%.120s: no room for %zu bytes", path, len);
    *text = (struct sl_str){copy, len};
    return SL_OK;
}

static bool next_line(struct sl_str *rest, struct sl_str *line)
{
    if (!rest->len)
        return false;
    const char *end = memchr(rest->data, '\n', rest->len);
    size_t len = end ? (size_t)(end - rest->data) : rest->len;
    *line = (struct sl_str){rest->data, len};
    size_t step = end ? len + 1 : len;
    rest->data += step;
    rest->len -= step;
    return true;
}

/* The line of the last entry for `key` in block style, or `otherwise`: libcyaml names the place of
 * the entry before an unknown key, and none once the file is read. */
static unsigned line_of_key(struct sl_str rest, const char *key, unsigned otherwise)
{
    struct sl_str line;
    size_t n_key = strlen(key);
    unsigned found = 0;
    for (unsigned at = 1; next_line(&rest, &line); at++) {
        size_t i = 0;
        while (i < line.len && strchr(" {'\"", line.data[i]))
            i++;
        if (line.len - i < n_key || memcmp(line.data + i, key, n_key) != 0)
            continue;
        i += n_key;
        while (i < line.len && strchr(" '\"", line.data[i]))
            i++;
        if (i < line.len && line.data[i] == ':')
            found = at;
    }
    return found ? found : otherwise ? otherwise : 1;
}

/* 0, or the line where a second document begins. */
static unsigned second_document(struct sl_str rest)
{
    struct sl_str line;
    bool seen = false;
    for (unsigned at = 1; next_line(&rest, &line); at++) {
        bool marker = line.len >= 3 && memcmp(line.data, "---", 3) == 0;
        if (marker && seen)
            return at;
        seen = seen || marker || (line.len && line.data[0] != '#' && line.data[0] != '\r');
    }
    return 0;
}

static enum sl_status refuse(const char *path, struct sl_str text, const struct complaint *c,
                             const struct sl_option *table, size_t n_table, struct sl_err *err)
{
    static const char unknown[] = "Unexpected key: ", twice[] = "Mapping field already seen: ";
    char hint[128];
    if (strncmp(c->text, unknown, sizeof unknown - 1) == 0) {
        const char *key = c->text + sizeof unknown - 1;
        options_hint(table, n_table, key, "", hint, sizeof hint);
        return sl_fail_param(err, SL_CONFIG, key, "%.100s: line %u: unknown key '%.50s'%s", path,
                             line_of_key(text, key, c->line), key, hint);
    }
    if (strncmp(c->text, twice, sizeof twice - 1) == 0) {
        const char *key = c->text + sizeof twice - 1;
        return sl_fail_param(err, SL_CONFIG, key, "%.100s: line %u: key '%.50s' is given twice",
                             path, line_of_key(text, key, c->line), key);
    }
    return sl_fail(err, SL_CONFIG, "%.100s: line %u: %.120s", path, c->line ? c->line : 1,
                   c->text[0] ? c->text : "not a mapping of plain values");
}

/* Each row is an optional string that may be null, at the row's place in an array of pointers. */
static void make_schema(const struct sl_option *table, size_t n_table,
                        struct cyaml_schema_field *fields)
{
    for (size_t i = 0; i < n_table; i++) {
        fields[i] = (struct cyaml_schema_field){
            .key = table[i].name,
            .data_offset = (uint32_t)(i * sizeof(char *)),
            .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER_NULL_STR | CYAML_FLAG_OPTIONAL, char, 0,
                                         CYAML_UNLIMITED)}};
    }
    fields[n_table] = (struct cyaml_schema_field)CYAML_FIELD_END;
}

static enum sl_status store_values(const struct sl_option *table, size_t n_table, const char *path,
                                   struct sl_str text, char *const *values, struct sl_arena *arena,
                                   void *out, struct sl_err *err)
{
    enum sl_status status = SL_OK;
    for (size_t i = 0; i < n_table && status == SL_OK; i++) {
        if (!values[i])
            continue;
        char where[200];
        snprintf(where, sizeof where, "%.100s: line %u: %.60s", path,
                 line_of_key(text, table[i].name, 0), table[i].name);
        const struct option_source source = {SL_CONFIG, where, true};
        status = options_store(&table[i], values[i], &source, arena, out, err);
    }
    return status;
}

enum sl_status options_read_file(const struct sl_option *table, size_t n_table, const char *path,
                                 struct sl_arena *arena, void *out, struct sl_err *err)
{
    struct sl_str text;
    enum sl_status status = load_file(path, arena, &text, err);
    if (status != SL_OK)
        return status;
    unsigned second = second_document(text);
    if (second)
        return sl_fail(err, SL_CONFIG, "%.100s: line %u: a second document begins", path, second);
    struct cyaml_schema_field *fields =
        SL_ARENA_ARRAY(arena, struct cyaml_schema_field, n_table + 1);
    if (!fields)
        return sl_fail(err, SL_NO_MEMORY, "%.100s: no room for %zu rows", path, n_table);
    make_schema(table, n_table, fields);
    const struct cyaml_schema_value top = {.type = CYAML_MAPPING,
                                           .flags = CYAML_FLAG_POINTER,
                                           .data_size = (uint32_t)(n_table * sizeof(char *)),
                                           .mapping = {.fields = fields}};
    struct complaint complaint = {.line = 0};
    const cyaml_config_t config = {.log_fn = keep_complaint,
                                   .log_ctx = &complaint,
                                   .log_level = CYAML_LOG_ERROR,
                                   .mem_fn = cyaml_mem,
                                   .flags = CYAML_CFG_NO_ALIAS};
    char **values = NULL;
    cyaml_err_t failure = cyaml_load_data((const uint8_t *)text.data, text.len, &config, &top,
                                          (cyaml_data_t **)&values, NULL);
    if (failure == CYAML_ERR_ALIAS)
        snprintf(complaint.text, sizeof complaint.text, "aliases are not supported");
    if (failure == CYAML_ERR_OOM)
        return sl_fail(err, SL_NO_MEMORY, "%.100s: out of memory", path);
    if (failure != CYAML_OK)
        return refuse(path, text, &complaint, table, n_table, err);
    if (values) /* NULL for an empty file */
        status = store_values(table, n_table, path, text, values, arena, out, err);
    cyaml_free(&config, &top, values, 0);
    return status;
}
