/* Strict JSON (RFC 8259) over jansson, which only runtime/base/json.c includes.
 *
 * Rejected: depth over the limit (checked before parsing, without recursion), duplicate keys, NUL
 * in strings, lone surrogates, invalid UTF-8, NaN, trailing bytes, a BOM. Values are borrowed from
 * the document and die with it. Thread rule: a document belongs to one thread at a time. */
#ifndef SLUICE_BASE_JSON_H
#define SLUICE_BASE_JSON_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdint.h>

struct sl_json; /* a value; the document is its root */

enum sl_json_kind {
    SL_JSON_NULL,
    SL_JSON_BOOL,
    SL_JSON_INT,  /* fits int64 */
    SL_JSON_REAL, /* finite */
    SL_JSON_STRING,
    SL_JSON_ARRAY,
    SL_JSON_OBJECT
};

#define SL_JSON_DEPTH_MAX 64

/* SL_BAD_JSON with line, column and reason on failure. Free the root with sl_json_free. */
enum sl_status sl_json_parse(const char *data, size_t size, struct sl_json **out,
                             struct sl_err *err);
/* For what models wrote (answers, events): as sl_json_parse, but strings, not keys, may hold NUL,
 * which a model may say. Whoever reads them goes by their lengths. */
enum sl_status sl_json_parse_answer(const char *data, size_t size, struct sl_json **out,
                                    struct sl_err *err);
void sl_json_free(struct sl_json *root);

enum sl_json_kind sl_json_kind(const struct sl_json *v);
bool sl_json_bool(const struct sl_json *v);
int64_t sl_json_int(const struct sl_json *v);
double sl_json_real(const struct sl_json *v); /* of INT or REAL */
struct sl_str sl_json_str(const struct sl_json *v);
size_t sl_json_len(const struct sl_json *v); /* elements of an array, members of an object */
const struct sl_json *sl_json_at(const struct sl_json *array, size_t i);
/* NULL when absent (a member that is null gives a value of kind NULL). */
const struct sl_json *sl_json_get(const struct sl_json *object, const char *key);
/* Members in document order. *iter starts NULL; false at the end. */
bool sl_json_next(const struct sl_json *object, void **iter, struct sl_str *key,
                  const struct sl_json **value);
/* Compact text of a value, keys in document order. */
void sl_json_print(const struct sl_json *v, struct sl_buf *out);

#endif
