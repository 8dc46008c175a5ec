/* Sampling parameters as a JSON object, complete and exact, and what a stored answer says with it.
 */
#include <sluice/text/chain.h>

#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <string.h>

enum kind { REAL, UINT, INT, BOOL };
static const struct row {
    const char *name;
    enum kind kind;
    size_t at;
} rows[] = {
    {"temperature", REAL, offsetof(struct sl_sampling, temperature)},
    {"top_k", INT, offsetof(struct sl_sampling, top_k)},
    {"top_p", REAL, offsetof(struct sl_sampling, top_p)},
    {"min_p", REAL, offsetof(struct sl_sampling, min_p)},
    {"typical_p", REAL, offsetof(struct sl_sampling, typical_p)},
    {"presence_penalty", REAL, offsetof(struct sl_sampling, presence_penalty)},
    {"frequency_penalty", REAL, offsetof(struct sl_sampling, frequency_penalty)},
    {"repetition_penalty", REAL, offsetof(struct sl_sampling, repetition_penalty)},
    {"min_tokens", UINT, offsetof(struct sl_sampling, min_tokens)},
    {"max_tokens", UINT, offsetof(struct sl_sampling, max_tokens)},
    {"ignore_eos", BOOL, offsetof(struct sl_sampling, ignore_eos)},
};
#define N_ROWS (sizeof rows / sizeof *rows)

static void print_row(struct sl_buf *b, const struct row *row, const struct sl_sampling *s)
{
    const char *at = (const char *)s + row->at;
    float real;
    int32_t whole;
    memcpy(&real, at, sizeof real);
    memcpy(&whole, at, sizeof whole);
    sl_buf_printf(b, "\"%s\":", row->name);
    if (row->kind == REAL)
        sl_buf_json_f32(b, real);
    else if (row->kind == BOOL)
        sl_buf_puts(b, *(const bool *)at ? "true" : "false");
    else if (row->kind == INT)
        sl_buf_printf(b, "%d", whole);
    else
        sl_buf_printf(b, "%u", (uint32_t)whole);
}

void sl_sampling_print(struct sl_buf *b, const struct sl_sampling *s)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        sl_buf_putc(b, i ? ',' : '{');
        print_row(b, &rows[i], s);
    }
    sl_buf_puts(b, ",\"logit_bias\":[");
    for (uint32_t i = 0; i < s->n_bias; i++) {
        sl_buf_printf(b, i ? ",[%u," : "[%u,", s->bias[i].token);
        sl_buf_json_f32(b, s->bias[i].bias);
        sl_buf_putc(b, ']');
    }
    sl_buf_puts(b, "],\"stop_token_ids\":[");
    for (uint32_t i = 0; i < s->n_stop_ids; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", s->stop_ids[i]);
    sl_buf_puts(b, "]}");
}

void sl_proof_print(struct sl_buf *b, const struct sl_proof *p)
{
    char hex[2 * SL_CHAIN_BYTES + 1];
    sl_hex(p->chain->link, SL_CHAIN_BYTES, hex);
    sl_buf_printf(b, "{\"index\":%u,\"prompt\":%u,\"choice\":%u,\"class\":", p->index, p->prompt,
                  p->choice);
    sl_buf_json_str(b, p->class_name.data ? p->class_name.data : "", p->class_name.len);
    sl_buf_printf(b, ",\"seed\":%lld,\"sampling\":", (long long)p->sampling->seed);
    sl_sampling_print(b, p->sampling);
    sl_buf_puts(b, ",\"tokens\":[");
    for (uint32_t i = 0; i < p->n_tokens; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", p->tokens[i]);
    sl_buf_printf(b, "],\"chain\":\"%s\"}", hex);
}

/* --- reading ---------------------------------------------------------------------------------- */

static bool is_uint(const struct sl_json *v)
{
    return v && sl_json_kind(v) == SL_JSON_INT && sl_json_int(v) >= 0 &&
           sl_json_int(v) <= UINT32_MAX;
}

static bool is_number(const struct sl_json *v)
{
    return v && (sl_json_kind(v) == SL_JSON_INT || sl_json_kind(v) == SL_JSON_REAL);
}

static bool read_row(const struct row *row, const struct sl_json *v, struct sl_sampling *s)
{
    char *at = (char *)s + row->at;
    if (row->kind == REAL) {
        float x = is_number(v) ? (float)sl_json_real(v) : 0;
        memcpy(at, &x, sizeof x);
        return is_number(v);
    }
    if (row->kind == BOOL) {
        bool ok = v && sl_json_kind(v) == SL_JSON_BOOL;
        *(bool *)at = ok && sl_json_bool(v);
        return ok;
    }
    bool ok = is_uint(v);
    if (row->kind == INT)
        ok = v && sl_json_kind(v) == SL_JSON_INT && sl_json_int(v) >= INT32_MIN &&
             sl_json_int(v) <= INT32_MAX;
    uint32_t x = ok ? (uint32_t)sl_json_int(v) : 0;
    memcpy(at, &x, sizeof x);
    return ok;
}

static const struct sl_json *array(const struct sl_json *o, const char *name, size_t max)
{
    const struct sl_json *v = sl_json_get(o, name);
    return v && sl_json_kind(v) == SL_JSON_ARRAY && sl_json_len(v) <= max ? v : NULL;
}

static bool read_bias(const struct sl_json *o, struct sl_arena *arena, struct sl_sampling *s)
{
    const struct sl_json *list = array(o, "logit_bias", SL_LIMIT_logit_bias);
    size_t n = list ? sl_json_len(list) : 0;
    struct sl_logit_bias *bias = SL_ARENA_ARRAY(arena, struct sl_logit_bias, n + 1);
    for (size_t i = 0; bias && i < n; i++) {
        const struct sl_json *pair = sl_json_at(list, i);
        if (sl_json_kind(pair) != SL_JSON_ARRAY || sl_json_len(pair) != 2 ||
            !is_uint(sl_json_at(pair, 0)) || !is_number(sl_json_at(pair, 1)))
            return false;
        bias[i] = (struct sl_logit_bias){(uint32_t)sl_json_int(sl_json_at(pair, 0)),
                                         (float)sl_json_real(sl_json_at(pair, 1))};
    }
    s->bias = bias;
    s->n_bias = (uint32_t)n;
    return list && bias;
}

static bool read_stop_ids(const struct sl_json *o, struct sl_arena *arena, struct sl_sampling *s)
{
    const struct sl_json *list = array(o, "stop_token_ids", SL_LIMIT_stop_token_ids);
    size_t n = list ? sl_json_len(list) : 0;
    uint32_t *ids = SL_ARENA_ARRAY(arena, uint32_t, n + 1);
    for (size_t i = 0; ids && i < n; i++) {
        if (!is_uint(sl_json_at(list, i)))
            return false;
        ids[i] = (uint32_t)sl_json_int(sl_json_at(list, i));
    }
    s->stop_ids = ids;
    s->n_stop_ids = (uint32_t)n;
    return list && ids;
}

enum sl_status sl_sampling_read(const struct sl_json *o, struct sl_arena *arena,
                                struct sl_sampling *out, struct sl_err *err)
{
    *out = sl_sampling_default();
    const char *bad = NULL;
    if (!o || sl_json_kind(o) != SL_JSON_OBJECT)
        return sl_fail_param(err, SL_INVALID, "sampling", "'sampling' is not an object");
    for (size_t i = 0; i < N_ROWS && !bad; i++)
        if (!read_row(&rows[i], sl_json_get(o, rows[i].name), out))
            bad = rows[i].name;
    if (!bad && !read_bias(o, arena, out))
        bad = "logit_bias";
    if (!bad && !read_stop_ids(o, arena, out))
        bad = "stop_token_ids";
    if (bad)
        return sl_fail_param(err, SL_INVALID, bad, "sampling.%s is missing or out of range", bad);
    return SL_OK;
}
