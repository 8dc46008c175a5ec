/* Strict JSON over jansson. What jansson leaves open is checked here: nesting (it recurses) before
 * parsing, and messages made of its codes, since its own texts quote the input. */
#include <sluice/base/json.h>

#include "number.h"

#include <jansson.h>
#include <string.h>

/* A value is jansson's own; only the name differs. */
static json_t *own(const struct sl_json *v)
{
    return (json_t *)(uintptr_t)v;
}

static struct sl_json *shown(json_t *v)
{
    return (struct sl_json *)(void *)v;
}

struct position {
    size_t line, column; /* from 1, column in bytes */
};

static struct position position_of(const char *data, size_t offset)
{
    struct position p = {1, 1};
    for (size_t i = 0; i < offset; i++) {
        p.column++;
        if (data[i] == '\n')
            p = (struct position){p.line + 1, 1};
    }
    return p;
}

/* The deepest nesting, outside strings; *too_deep_at is where the limit was first passed. A text
 * that is not JSON may be counted wrong, and is refused by the parser. */
static bool depth_is_allowed(const char *data, size_t size, size_t *too_deep_at)
{
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = data[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > SL_JSON_DEPTH_MAX) {
                *too_deep_at = i;
                return false;
            }
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        }
    }
    return true;
}

static const char *reason_of(const json_error_t *e)
{
    switch (json_error_code(e)) {
    case json_error_numeric_overflow:
        return "number out of range";
    case json_error_duplicate_key:
        return "duplicate object key";
    case json_error_null_character:
    case json_error_null_byte_in_key:
        return "NUL character in a string";
    case json_error_invalid_utf8:
        return "invalid UTF-8";
    case json_error_premature_end_of_input:
        return "text ends too early";
    case json_error_end_of_input_expected:
        return "bytes after the end of the value";
    case json_error_stack_overflow:
        return "nested too deeply";
    default:
        return strstr(e->text, "near end of file") ? "text ends too early" : "syntax error";
    }
}

static enum sl_status parse(const char *data, size_t size, size_t flags, struct sl_json **out,
                            struct sl_err *err)
{
    *out = NULL;
    size_t at = 0;
    if (size >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0)
        return sl_fail(err, SL_BAD_JSON, "JSON: line 1, column 1: byte order mark");
    if (!depth_is_allowed(data, size, &at)) {
        struct position p = position_of(data, at);
        return sl_fail(err, SL_BAD_JSON,
                       "JSON: line %zu, column %zu: nested deeper than the limit of %d levels",
                       p.line, p.column, SL_JSON_DEPTH_MAX);
    }
    json_error_t e = {0};
    flags |= JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    json_t *root = json_loadb(size ? data : "", size, flags, &e);
    if (!root && json_error_code(&e) == json_error_out_of_memory)
        return sl_fail(err, SL_NO_MEMORY, "JSON: out of memory for a text of %zu bytes", size);
    if (!root) {
        struct position p = position_of(data, e.position > 0 ? (size_t)e.position : 0);
        return sl_fail(err, SL_BAD_JSON, "JSON: line %zu, column %zu: %s", p.line, p.column,
                       reason_of(&e));
    }
    *out = shown(root);
    return SL_OK;
}

enum sl_status sl_json_parse(const char *data, size_t size, struct sl_json **out,
                             struct sl_err *err)
{
    return parse(data, size, 0, out, err);
}

enum sl_status sl_json_parse_answer(const char *data, size_t size, struct sl_json **out,
                                    struct sl_err *err)
{
    return parse(data, size, JSON_ALLOW_NUL, out, err);
}

void sl_json_free(struct sl_json *root)
{
    json_decref(own(root));
}

enum sl_json_kind sl_json_kind(const struct sl_json *v)
{
    switch (json_typeof(own(v))) {
    case JSON_OBJECT:
        return SL_JSON_OBJECT;
    case JSON_ARRAY:
        return SL_JSON_ARRAY;
    case JSON_STRING:
        return SL_JSON_STRING;
    case JSON_INTEGER:
        return SL_JSON_INT;
    case JSON_REAL:
        return SL_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return SL_JSON_BOOL;
    case JSON_NULL:
        break;
    }
    return SL_JSON_NULL;
}

bool sl_json_bool(const struct sl_json *v)
{
    return json_is_true(own(v));
}

int64_t sl_json_int(const struct sl_json *v)
{
    return json_integer_value(own(v));
}

double sl_json_real(const struct sl_json *v)
{
    return json_number_value(own(v));
}

struct sl_str sl_json_str(const struct sl_json *v)
{
    return (struct sl_str){json_string_value(own(v)), json_string_length(own(v))};
}

size_t sl_json_len(const struct sl_json *v)
{
    return json_is_object(own(v)) ? json_object_size(own(v)) : json_array_size(own(v));
}

const struct sl_json *sl_json_at(const struct sl_json *array, size_t i)
{
    return shown(json_array_get(own(array), i));
}

const struct sl_json *sl_json_get(const struct sl_json *object, const char *key)
{
    return shown(json_object_get(own(object), key));
}

bool sl_json_next(const struct sl_json *object, void **iter, struct sl_str *key,
                  const struct sl_json **value)
{
    json_t *o = own(object);
    *iter = *iter ? json_object_iter_next(o, *iter) : json_object_iter(o);
    if (!*iter)
        return false;
    *key = sl_str_of(json_object_iter_key(*iter)); /* parsed keys hold no NUL */
    *value = shown(json_object_iter_value(*iter));
    return true;
}

static void print_object(const struct sl_json *v, struct sl_buf *out)
{
    void *iter = NULL;
    struct sl_str key;
    const struct sl_json *value;
    bool first = true;
    sl_buf_putc(out, '{');
    while (sl_json_next(v, &iter, &key, &value)) {
        if (!first)
            sl_buf_putc(out, ',');
        first = false;
        sl_buf_json_str(out, key.data, key.len);
        sl_buf_putc(out, ':');
        sl_json_print(value, out);
    }
    sl_buf_putc(out, '}');
}

static void print_array(const struct sl_json *v, struct sl_buf *out)
{
    sl_buf_putc(out, '[');
    for (size_t i = 0; i < sl_json_len(v); i++) {
        if (i)
            sl_buf_putc(out, ',');
        sl_json_print(sl_json_at(v, i), out);
    }
    sl_buf_putc(out, ']');
}

/* Recursion ends at SL_JSON_DEPTH_MAX, which the parser enforced. */
void sl_json_print(const struct sl_json *v, struct sl_buf *out)
{
    char text[NUMBER_TEXT_MAX];
    struct sl_str s;
    switch (sl_json_kind(v)) {
    case SL_JSON_NULL:
        sl_buf_puts(out, "null");
        break;
    case SL_JSON_BOOL:
        sl_buf_puts(out, sl_json_bool(v) ? "true" : "false");
        break;
    case SL_JSON_INT:
        sl_buf_printf(out, "%lld", (long long)sl_json_int(v));
        break;
    case SL_JSON_REAL:
        sl_buf_append(out, text, number_f64(sl_json_real(v), text));
        break;
    case SL_JSON_STRING:
        s = sl_json_str(v);
        sl_buf_json_str(out, s.data, s.len);
        break;
    case SL_JSON_ARRAY:
        print_array(v, out);
        break;
    case SL_JSON_OBJECT:
        print_object(v, out);
        break;
    }
}
