/* KServe v2 over gRPC: text in, text out, as gen.h generates it.
 *
 * Sampling comes as request parameters, as a JSON object in the tensor sampling_parameters, or as
 * both; they are put together into one object and read by the very code that reads an OpenAI
 * request, so that both doors know the same fields, ranges and words. The text is a prompt of
 * /v1/completions. Protocol: open inference protocol (kserve/open-inference-protocol). */
#include "call.h"
#include "grpc_door.h"

#include <inttypes.h>
#include <math.h>
#include <sluice/transport/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION         "1"
#define JSON_MAX        65536 /* of sampling_parameters */
#define INLINE_TEXT_MAX 65536 /* longer ones are tokenised on a helper thread */

/* One ModelInfer under way. */
struct ask {
    struct sl_list link;
    struct grpc_door *door; /* NULL: answered while a helper was busy with it */
    struct sl_grpc_call *call;
    struct call fields; /* no HTTP behind it: what the field readers work on */
    struct sl_str text_input, json;
    struct sl_tokens prompt;
    struct gen *gen;
    struct sl_buf text;
    const char *finish_reason;
};

/* --- answers ---------------------------------------------------------------------------------- */

static char answered; /* user of a call that has its answer */

static void answer(struct grpc_door *g, struct sl_grpc_call *call, const struct sl_grpc_answer *a)
{
    call->user = &answered;
    g->ops->answer(call, a);
}

/* A message says which field; fields have this protocol's names. */
static void answer_error(struct grpc_door *g, struct sl_grpc_call *call, const struct sl_err *err)
{
    const char *field = strcmp(err->param, "prompt") == 0 ? "text_input" : err->param;
    char text[sizeof err->msg + sizeof err->param + 2];
    if (*field && !strstr(err->msg, field))
        snprintf(text, sizeof text, "%s: %s", field, err->msg);
    else
        snprintf(text, sizeof text, "%s", err->msg);
    struct sl_grpc_answer a = {.status = err->status, .message = text};
    answer(g, call, &a);
}

static void ask_free(struct ask *k)
{
    sl_list_remove(&k->link);
    if (k->fields.json)
        sl_json_free(k->fields.json);
    sl_arena_free(&k->fields.mem);
    sl_tokens_free(&k->prompt);
    sl_buf_free(&k->text);
    free(k);
}

static void ask_fail(struct ask *k, const struct sl_err *err)
{
    answer_error(k->door, k->call, err);
    ask_free(k);
}

static struct sl_grpc_param int_param(const char *name, uint32_t value)
{
    return (struct sl_grpc_param){.name = sl_str_of(name), .kind = SL_GRPC_INT, .i = value};
}

static void answer_text(struct ask *k, const struct gen_usage *u)
{
    static const int64_t one = 1;
    struct sl_str text = {k->text.data ? k->text.data : "", k->text.len};
    struct sl_grpc_param params[] = {
        {.name = SL_STR("finish_reason"),
         .kind = SL_GRPC_TEXT,
         .s = sl_str_of(k->finish_reason ? k->finish_reason : "stop")},
        int_param("completion_tokens", u->completion_tokens),
        int_param("prompt_tokens", u->prompt_tokens),
    };
    struct sl_grpc_tensor out = {.name = SL_STR("text_output"),
                                 .datatype = SL_STR("BYTES"),
                                 .shape = &one,
                                 .n_shape = 1,
                                 .bytes = &text,
                                 .n_bytes = 1};
    struct sl_grpc_answer a = {.name = sl_str_of(node_model_name(k->door->node)),
                               .version = SL_STR(VERSION),
                               .id = k->call->request.id,
                               .params = params,
                               .n_params = sizeof params / sizeof *params,
                               .outputs = &out,
                               .n_outputs = 1};
    answer(k->door, k->call, &a);
}

/* --- a generation's words --------------------------------------------------------------------- */

static void on_delta(void *ctx, const struct gen_delta *d)
{
    struct ask *k = ctx;
    sl_buf_append(&k->text, d->text.data, d->text.len);
}

static void on_end(void *ctx, const struct gen_end *e)
{
    struct ask *k = ctx;
    k->finish_reason = e->finish_reason;
}

static void on_done(void *ctx, const struct gen_usage *u)
{
    struct ask *k = ctx;
    struct sl_err err;
    k->gen = NULL;
    if (k->text.failed) {
        sl_fail(&err, SL_NO_MEMORY, "no memory for the answer");
        ask_fail(k, &err);
        return;
    }
    answer_text(k, u);
    ask_free(k);
}

static void on_error(void *ctx, const struct sl_err *err, const struct gen_usage *u)
{
    struct ask *k = ctx;
    (void)u;
    k->gen = NULL;
    ask_fail(k, err);
}

static const struct gen_ops ask_ops = {on_delta, on_end, on_done, on_error};

/* --- reading a request ------------------------------------------------------------------------ */

/* A name from the wire as an error's field. */
struct field {
    char text[40];
};
static struct field field_of(struct sl_str name)
{
    struct field f;
    snprintf(f.text, sizeof f.text, "%.*s", (int)(name.len < 39 ? name.len : 39), name.data);
    return f;
}

static enum sl_status check_model(const struct node *n, const struct sl_grpc_request *q,
                                  struct sl_err *err)
{
    if (!sl_str_eqz(q->model, node_model_name(n)))
        return sl_fail_param(
            err, SL_NO_MODEL, "model_name", "the model '%.*s' does not exist; this server has '%s'",
            (int)(q->model.len < 64 ? q->model.len : 64), q->model.data, node_model_name(n));
    if (q->version.len && !sl_str_eqz(q->version, VERSION))
        return sl_fail_param(err, SL_NO_MODEL, "model_version",
                             "the model's only version is " VERSION ", not '%.*s'",
                             (int)(q->version.len < 64 ? q->version.len : 64), q->version.data);
    return SL_OK;
}

/* One element of text: BYTES of shape [1]. */
static enum sl_status read_text(const struct sl_grpc_tensor *t, struct sl_str *out,
                                struct sl_err *err)
{
    struct field f = field_of(t->name);
    if (out->data)
        return sl_fail_param(err, SL_INVALID, f.text, "the input %s is given twice", f.text);
    if (!sl_str_eqz(t->datatype, "BYTES"))
        return sl_fail_param(err, SL_INVALID, f.text, "the datatype of %s must be BYTES, not %.*s",
                             f.text, (int)(t->datatype.len < 16 ? t->datatype.len : 16),
                             t->datatype.data);
    if (t->n_shape != 1 || t->shape[0] != 1)
        return sl_fail_param(err, SL_INVALID, f.text, "the shape of %s must be [1]", f.text);
    if (t->n_params)
        return sl_fail_param(err, SL_INVALID, f.text, "parameters of %s are not supported", f.text);
    if (t->has_numbers || t->n_bytes != 1)
        return sl_fail_param(err, SL_INVALID, f.text,
                             "%s must hold one element of bytes, not %zu%s", f.text, t->n_bytes,
                             t->has_numbers ? " and numbers" : "");
    *out = t->bytes[0];
    return SL_OK;
}

static enum sl_status read_tensors(struct ask *k, struct sl_err *err)
{
    const struct sl_grpc_request *q = &k->call->request;
    enum sl_status s = SL_OK;
    for (size_t i = 0; i < q->n_inputs && !s; i++) {
        const struct sl_grpc_tensor *t = &q->inputs[i];
        struct field f = field_of(t->name);
        if (sl_str_eqz(t->name, "text_input"))
            s = read_text(t, &k->text_input, err);
        else if (sl_str_eqz(t->name, "sampling_parameters"))
            s = read_text(t, &k->json, err);
        else
            s = sl_fail_param(err, SL_INVALID, f.text, "unknown input '%s'", f.text);
    }
    if (!s && k->json.len > JSON_MAX)
        s = sl_fail_param(err, SL_INVALID, "sampling_parameters",
                          "sampling_parameters has %zu bytes; at most %d", k->json.len, JSON_MAX);
    if (!s && !k->text_input.data)
        s = sl_fail_param(err, SL_INVALID, "text_input", "the input text_input is required");
    for (size_t i = 0; i < q->n_outputs && !s; i++) {
        struct field f = field_of(q->outputs[i].name);
        if (!sl_str_eqz(q->outputs[i].name, "text_output"))
            s = sl_fail_param(err, SL_INVALID, f.text, "unknown output '%s'", f.text);
        else if (q->outputs[i].n_params)
            s = sl_fail_param(err, SL_INVALID, f.text, "parameters of %s are not supported",
                              f.text);
    }
    return s;
}

/* A real stays one: 5.0 is not an integer. */
static void put_real(struct sl_buf *b, double x)
{
    char text[40];
    snprintf(text, sizeof text, "%.17g", x);
    sl_buf_puts(b, text);
    if (!strpbrk(text, ".e"))
        sl_buf_puts(b, ".0");
}

static enum sl_status put_value(const struct sl_grpc_param *p, struct sl_buf *b, struct sl_err *err)
{
    struct field f = field_of(p->name);
    switch (p->kind) {
    case SL_GRPC_BOOL:
        sl_buf_puts(b, p->b ? "true" : "false");
        return SL_OK;
    case SL_GRPC_INT:
        sl_buf_printf(b, "%" PRId64, p->i);
        return SL_OK;
    case SL_GRPC_UINT:
        if (p->u > INT64_MAX)
            return sl_fail_param(err, SL_INVALID, f.text, "%s must be at most %lld, not %" PRIu64,
                                 f.text, (long long)INT64_MAX, p->u);
        sl_buf_printf(b, "%" PRIu64, p->u);
        return SL_OK;
    case SL_GRPC_REAL:
        if (!isfinite(p->d))
            return sl_fail_param(err, SL_INVALID, f.text, "%s must be finite", f.text);
        put_real(b, p->d);
        return SL_OK;
    case SL_GRPC_TEXT:
        sl_buf_json_str(b, p->s.data, p->s.len);
        return SL_OK;
    case SL_GRPC_NONE:
        break;
    }
    return sl_fail_param(err, SL_INVALID, f.text, "the parameter %s has no value", f.text);
}

static void put_member(struct sl_str name, struct sl_buf *b)
{
    sl_buf_puts(b, b->len ? "," : "{");
    sl_buf_json_str(b, name.data, name.len);
    sl_buf_putc(b, ':');
}

static bool has_param(const struct sl_grpc_request *q, struct sl_str name, size_t end)
{
    for (size_t i = 0; i < end; i++)
        if (sl_str_eq(q->params[i].name, name))
            return true;
    return false;
}

static enum sl_status put_params(const struct sl_grpc_request *q, struct sl_buf *b,
                                 struct sl_err *err)
{
    enum sl_status s = SL_OK;
    for (size_t i = 0; i < q->n_params && !s; i++) {
        struct field f = field_of(q->params[i].name);
        if (has_param(q, q->params[i].name, i))
            return sl_fail_param(err, SL_INVALID, f.text, "%s is given twice", f.text);
        put_member(q->params[i].name, b);
        s = put_value(&q->params[i], b, err);
    }
    return s;
}

static enum sl_status put_json(const struct ask *k, struct sl_buf *b, struct sl_err *err)
{
    const struct sl_grpc_request *q = &k->call->request;
    struct sl_json *o;
    struct sl_str key;
    const struct sl_json *value;
    void *iter = NULL;
    enum sl_status s = sl_json_parse(k->json.data, k->json.len, &o, err);
    if (s)
        return name_prompt("sampling_parameters", s, err);
    if (sl_json_kind(o) != SL_JSON_OBJECT)
        s = sl_fail_param(err, SL_INVALID, "sampling_parameters",
                          "sampling_parameters must be a JSON object, not %s", json_kind_name(o));
    while (!s && sl_json_next(o, &iter, &key, &value)) {
        struct field f = field_of(key);
        if (has_param(q, key, q->n_params))
            s = sl_fail_param(err, SL_INVALID, f.text, "%s is given twice", f.text);
        put_member(key, b);
        sl_json_print(value, b);
    }
    sl_json_free(o);
    return s;
}

/* Parameters and sampling_parameters as one object, read as a completion's fields. */
static enum sl_status read_sampling(struct ask *k, struct sl_err *err)
{
    struct sl_buf b = {0};
    enum sl_status s = put_params(&k->call->request, &b, err);
    if (!s && k->json.data)
        s = put_json(k, &b, err);
    sl_buf_puts(&b, b.len ? "}" : "{}");
    if (!s && b.failed)
        s = sl_fail(err, SL_NO_MEMORY, "no memory for the parameters");
    if (!s)
        s = sl_json_parse(b.data, b.len, &k->fields.json, err);
    sl_buf_free(&b);
    return s ? s : openai_parse_sampling(&k->fields, err);
}

/* --- the life of a ModelInfer ----------------------------------------------------------------- */

/* Touches the ask and the immutable model only; on a helper thread when the text is long. */
static void tokenise(void *ctx)
{
    struct ask *k = ctx;
    struct call *c = &k->fields;
    unsigned flags = SL_TOK_SPECIAL | (c->req.add_special_tokens ? SL_TOK_ADD_BOS : 0u);
    c->prepared =
        name_prompt("text_input",
                    sl_tokenize(node_tokenizer(c->node), k->text_input.data, k->text_input.len,
                                flags, node_max_len(c->node), &k->prompt, &c->err),
                    &c->err);
}

/* The sooner of the call's deadline and the request's own. */
static uint64_t sooner(uint64_t a, uint64_t b)
{
    return !a ? b : !b ? a : a < b ? a : b;
}

static void generate(struct ask *k)
{
    struct call *c = &k->fields;
    struct gen_params *p = &c->req.gen;
    enum sl_status s = c->prepared;
    if (!s) {
        p->prompt = k->prompt.ids;
        p->n_prompt = (uint32_t)k->prompt.n;
        p->tenant = c->req.user;
        p->deadline_ms = sooner(p->deadline_ms, k->call->request.deadline_ms);
        s = gen_start(k->door->node, p, &ask_ops, k, &k->gen, &c->err);
    }
    if (s)
        ask_fail(k, &c->err);
}

static void tokenised(void *ctx)
{
    struct ask *k = ctx;
    k->fields.busy = false;
    if (k->door)
        generate(k);
    else
        ask_free(k);
}

/* The helper gets a copy: the call may be gone while it works. */
static bool tokenise_aside(struct ask *k)
{
    char *text = sl_arena_strndup(&k->fields.mem, k->text_input.data, k->text_input.len);
    if (!text)
        return false;
    k->text_input.data = text;
    k->fields.busy = sl_loop_work(node_loop(k->door->node), tokenise, tokenised, k);
    return k->fields.busy;
}

static void infer(struct grpc_door *g, struct sl_grpc_call *call)
{
    struct sl_err err;
    struct ask *k = calloc(1, sizeof *k);
    if (!k) {
        sl_fail(&err, SL_NO_MEMORY, "no memory for a request");
        answer_error(g, call, &err);
        return;
    }
    k->door = g;
    k->call = call;
    k->fields.node = g->node;
    sl_arena_init(&k->fields.mem, CALL_MEM_MAX);
    sl_list_push_back(&g->asks, &k->link);
    call->user = k;
    if (check_model(g->node, &call->request, &err) || read_tensors(k, &err) ||
        read_sampling(k, &err)) {
        ask_fail(k, &err);
        return;
    }
    if (k->text_input.len <= INLINE_TEXT_MAX || !tokenise_aside(k)) {
        tokenise(k);
        generate(k);
    }
}

/* --- the other methods ------------------------------------------------------------------------ */

static void answer_yes(struct grpc_door *g, struct sl_grpc_call *call, bool yes)
{
    struct sl_grpc_answer a = {.yes = yes};
    answer(g, call, &a);
}

static void answer_model(struct grpc_door *g, struct sl_grpc_call *call)
{
    static const int64_t one = 1;
    static const struct sl_str version = {VERSION, sizeof VERSION - 1};
    const struct sl_grpc_tensor inputs[] = {
        {.name = SL_STR("text_input"), .datatype = SL_STR("BYTES"), .shape = &one, .n_shape = 1},
        {.name = SL_STR("sampling_parameters"),
         .datatype = SL_STR("BYTES"),
         .shape = &one,
         .n_shape = 1},
    };
    const struct sl_grpc_tensor output = {
        .name = SL_STR("text_output"), .datatype = SL_STR("BYTES"), .shape = &one, .n_shape = 1};
    struct sl_grpc_answer a = {.name = sl_str_of(node_model_name(g->node)),
                               .platform = SL_STR("sluice"),
                               .list = &version,
                               .n_list = 1,
                               .inputs = inputs,
                               .n_inputs = 2,
                               .outputs = &output,
                               .n_outputs = 1};
    answer(g, call, &a);
}

static void answer_server(struct grpc_door *g, struct sl_grpc_call *call)
{
    struct sl_grpc_answer a = {.name = SL_STR("sluice"), .version = SL_STR(SLUICE_VERSION)};
    answer(g, call, &a);
}

static void of_model(struct grpc_door *g, struct sl_grpc_call *call)
{
    struct sl_err err;
    if (!node_has_model(g->node)) {
        sl_fail(&err, SL_LOADING, "the model is being loaded");
        answer_error(g, call, &err);
    } else if (call->request.method == SL_GRPC_MODEL_INFER) {
        infer(g, call);
    } else if (check_model(g->node, &call->request, &err)) {
        answer_error(g, call, &err);
    } else if (call->request.method == SL_GRPC_MODEL_READY) {
        answer_yes(g, call, node_is_ready(g->node, &err));
    } else {
        answer_model(g, call);
    }
}

void kserve_start(struct grpc_door *g, struct sl_grpc_call *call)
{
    struct sl_err why;
    if (g->ops->cancelled(call)) {
        sl_fail(&why, SL_CANCELLED, "cancelled");
        answer_error(g, call, &why);
        return;
    }
    switch (call->request.method) {
    case SL_GRPC_SERVER_LIVE:
        answer_yes(g, call, true);
        return;
    case SL_GRPC_SERVER_READY:
        answer_yes(g, call, node_is_ready(g->node, &why));
        return;
    case SL_GRPC_SERVER_METADATA:
        answer_server(g, call);
        return;
    case SL_GRPC_MODEL_READY:
    case SL_GRPC_MODEL_METADATA:
    case SL_GRPC_MODEL_INFER:
        of_model(g, call);
    }
}

/* Ends an ask early. One that a helper holds is left to the helper's end. */
static void ask_end(struct ask *k, const struct sl_err *err)
{
    if (k->gen)
        gen_cancel(k->gen);
    k->gen = NULL;
    if (!k->fields.busy) {
        ask_fail(k, err);
        return;
    }
    answer_error(k->door, k->call, err);
    sl_list_remove(&k->link);
    k->door = NULL;
}

void kserve_cancelled(struct sl_grpc_call *call)
{
    struct sl_err err;
    if (call->user == &answered)
        return;
    sl_fail(&err, SL_CANCELLED, "cancelled");
    ask_end(call->user, &err);
}

void kserve_stop(struct grpc_door *g)
{
    struct sl_err err;
    sl_fail(&err, SL_DRAINING, "the server is shutting down");
    while (!sl_list_empty(&g->asks))
        ask_end(SL_ENTRY(g->asks.next, struct ask, link), &err);
}
