/* From an option's text to its field: strict numbers, ranges, choices. */
#include "options_priv.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct value {
    const struct sl_option *row;
    const char *text;
    const struct option_source *source;
    struct sl_err *err;
};

static enum sl_status refuse(const struct value *v, const char *wanted)
{
    return sl_fail_param(v->err, v->source->status, v->row->name, "%s: '%.80s' is not %s",
                         v->source->where, v->text, wanted);
}

static enum sl_status check_range(const struct value *v, double x)
{
    const struct sl_option *row = v->row;
    bool unbounded = !(row->min < 0) && !(row->min > 0) && !(row->max < 0) && !(row->max > 0);
    if (!v->source->ranged || unbounded || (x >= row->min && x <= row->max))
        return SL_OK;
    return sl_fail_param(v->err, v->source->status, row->name,
                         "%s: %.40s is outside the range from %.15g to %.15g", v->source->where,
                         v->text, row->min, row->max);
}

/* Digits with an optional minus; *end is the first byte after them. */
static bool read_int(const char *text, int64_t *out, const char **end)
{
    const char *digits = text + (*text == '-');
    if (!isdigit((unsigned char)*digits))
        return false;
    char *stop;
    errno = 0;
    *out = strtoll(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

static enum sl_status store_int(const struct value *v, int64_t *out)
{
    const char *end;
    int64_t x;
    if (!read_int(v->text, &x, &end) || *end)
        return refuse(v, "a whole number");
    enum sl_status status = check_range(v, (double)x);
    if (status == SL_OK)
        *out = x;
    return status;
}

static enum sl_status store_bytes(const struct value *v, int64_t *out)
{
    static const char suffixes[] = "KMGT";
    const char *end;
    int64_t x;
    if (!read_int(v->text, &x, &end))
        return refuse(v, "a number of bytes, with K, M, G or T after it if wanted");
    const char *hit = *end ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;
    if (hit)
        end++;
    int64_t unit = hit ? (int64_t)1 << (10 * (hit - suffixes + 1)) : 1;
    if (*end || __builtin_mul_overflow(x, unit, &x))
        return refuse(v, "a number of bytes, with K, M, G or T after it if wanted");
    enum sl_status status = check_range(v, (double)x);
    if (status == SL_OK)
        *out = x;
    return status;
}

static enum sl_status store_real(const struct value *v, double *out)
{
    char *end;
    if (!*v->text || v->text[strspn(v->text, "0123456789+-.eE")])
        return refuse(v, "a number");
    double x = strtod(v->text, &end);
    if (*end || end == v->text || !isfinite(x))
        return refuse(v, "a number");
    enum sl_status status = check_range(v, x);
    if (status == SL_OK)
        *out = x;
    return status;
}

static enum sl_status store_flag(const struct value *v, bool *out)
{
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (strcmp(v->text, yes[i]) && strcmp(v->text, no[i]))
            continue;
        *out = strcmp(v->text, yes[i]) == 0;
        return SL_OK;
    }
    return refuse(v, "true or false");
}

static enum sl_status store_string(const struct value *v, struct sl_arena *arena, const char **out)
{
    char *copy = sl_arena_strndup(arena, v->text, strlen(v->text));
    if (!copy)
        return sl_fail_param(v->err, SL_NO_MEMORY, v->row->name, "%s: no room for %zu bytes",
                             v->source->where, strlen(v->text));
    *out = copy;
    return SL_OK;
}

/* Whether `word` is one of the words between the bars. */
static bool is_choice(const char *choices, const char *word)
{
    size_t len = strlen(word);
    if (!len || strchr(word, '|'))
        return false;
    for (const char *p = choices; p; p = strchr(p, '|')) {
        p += *p == '|';
        if (strncmp(p, word, len) == 0 && (p[len] == '|' || !p[len]))
            return true;
    }
    return false;
}

static enum sl_status store_choice(const struct value *v, struct sl_arena *arena, const char **out)
{
    if (!is_choice(v->row->choices, v->text))
        return sl_fail_param(v->err, v->source->status, v->row->name,
                             "%s: '%.60s' is not one of %s", v->source->where, v->text,
                             v->row->choices);
    return store_string(v, arena, out);
}

enum sl_status options_store(const struct sl_option *row, const char *text,
                             const struct option_source *source, struct sl_arena *arena, void *out,
                             struct sl_err *err)
{
    const struct value v = {row, text, source, err};
    void *field = (char *)out + row->offset;
    switch (row->kind) {
    case SL_OPT_FLAG:
        return store_flag(&v, field);
    case SL_OPT_INT:
        return store_int(&v, field);
    case SL_OPT_BYTES:
        return store_bytes(&v, field);
    case SL_OPT_REAL:
        return store_real(&v, field);
    case SL_OPT_STRING:
        return store_string(&v, arena, field);
    case SL_OPT_CHOICE:
        return store_choice(&v, arena, field);
    }
    return sl_fail(err, SL_FAILED, "option '%s' has no kind", row->name);
}
