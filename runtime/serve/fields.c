/* Typed reads of JSON members, with errors that name the field and what was found. */
#include "call.h"

#include <stdio.h>

const char *json_kind_name(const struct sl_json *v)
{
    static const char *const names[] = {"null",     "a boolean", "an integer", "a number",
                                        "a string", "an array",  "an object"};
    return names[sl_json_kind(v)];
}

const struct sl_json *field_get(const struct sl_json *o, const char *name)
{
    const struct sl_json *v = sl_json_get(o, name);
    return v && sl_json_kind(v) != SL_JSON_NULL ? v : NULL;
}

enum sl_status field_real(const struct sl_json *o, const char *name, double min, double max,
                          float *out, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, name);
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_REAL && sl_json_kind(v) != SL_JSON_INT)
        return sl_fail_param(err, SL_INVALID, name, "%s must be a number, not %s", name,
                             json_kind_name(v));
    double x = sl_json_real(v);
    if (!(x >= min && x <= max))
        return sl_fail_param(err, SL_INVALID, name, "%s must be in [%g, %g], not %g", name, min,
                             max, x);
    *out = (float)x;
    return SL_OK;
}

enum sl_status field_int(const struct sl_json *o, const char *name, int64_t min, int64_t max,
                         int64_t *out, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, name);
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_INT)
        return sl_fail_param(err, SL_INVALID, name, "%s must be an integer, not %s", name,
                             json_kind_name(v));
    int64_t x = sl_json_int(v);
    if (x < min || x > max)
        return sl_fail_param(err, SL_INVALID, name, "%s must be in [%lld, %lld], not %lld", name,
                             (long long)min, (long long)max, (long long)x);
    *out = x;
    return SL_OK;
}

enum sl_status field_bool(const struct sl_json *o, const char *name, bool *out, struct sl_err *err)
{
    const struct sl_json *v = field_get(o, name);
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_BOOL)
        return sl_fail_param(err, SL_INVALID, name, "%s must be a boolean, not %s", name,
                             json_kind_name(v));
    *out = sl_json_bool(v);
    return SL_OK;
}

enum sl_status field_str(const struct sl_json *o, const char *name, struct sl_str *out,
                         struct sl_err *err)
{
    const struct sl_json *v = field_get(o, name);
    if (!v)
        return SL_OK;
    if (sl_json_kind(v) != SL_JSON_STRING)
        return sl_fail_param(err, SL_INVALID, name, "%s must be a string, not %s", name,
                             json_kind_name(v));
    *out = sl_json_str(v);
    return SL_OK;
}

enum sl_status name_prompt(const char *field, enum sl_status r, struct sl_err *err)
{
    if (r && !err->param[0])
        snprintf(err->param, sizeof err->param, "%s", field);
    return r;
}
