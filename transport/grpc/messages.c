/* Requests of the gRPC door to plain structs, with protobuf-c over a capped arena.
 *
 * The size is bounded by gRPC before a message is here; the arena's cap bounds what a few bytes can
 * claim. Raw contents of a BYTES tensor are elements of a little-endian 32-bit length and that many
 * bytes (open inference protocol, "Raw Data Representation"). Wire format: the Protocol Buffers
 * encoding page (protobuf.dev). */
#include "messages.h"

#include "health.pb-c.h"
#include "inference.pb-c.h"

#include <stdalign.h>
#include <stdio.h>
#include <string.h>

struct decoder {
    ProtobufCAllocator alloc;
    struct sl_arena *mem;
    struct sl_err *err;
    bool full; /* the arena's cap was reached */
};

static void *decoder_alloc(void *data, size_t size)
{
    struct decoder *d = data;
    void *p = sl_arena_alloc(d->mem, size ? size : 1, alignof(max_align_t));
    if (!p)
        d->full = true;
    return p;
}

static void decoder_free(void *data, void *pointer)
{
    (void)data; /* the arena goes as a whole */
    (void)pointer;
}

static enum sl_status refuse_size(struct decoder *d)
{
    return sl_fail(d->err, SL_TOO_LARGE, "the message does not fit into %zu bytes once decoded",
                   d->mem->cap_bytes);
}

static void *unpack(struct decoder *d, const ProtobufCMessageDescriptor *type, const void *data,
                    size_t size)
{
    d->alloc = (ProtobufCAllocator){decoder_alloc, decoder_free, d};
    void *m = protobuf_c_message_unpack(type, &d->alloc, size, data);
    if (!m && d->full)
        refuse_size(d);
    else if (!m)
        sl_fail(d->err, SL_INVALID, "the message is no %s", type->name);
    return m;
}

static struct sl_str str_of(ProtobufCBinaryData b)
{
    return (struct sl_str){b.len ? (const char *)b.data : "", b.len};
}

/* A name as it is quoted in an error. */
struct quoted {
    char text[40];
};
static struct quoted quote(struct sl_str s)
{
    struct quoted q;
    snprintf(q.text, sizeof q.text, "%.*s", (int)(s.len < 39 ? s.len : 39), s.data);
    return q;
}

static enum sl_status check_count(struct decoder *d, const char *what, size_t n, size_t max)
{
    if (n <= max)
        return SL_OK;
    return sl_fail_param(d->err, SL_INVALID, what, "at most %zu %s, not %zu", max, what, n);
}

static void param_of(const Inference__ParameterEntry *w, struct sl_grpc_param *out)
{
    const Inference__InferParameter *v = w->value;
    out->name = str_of(w->key);
    switch (v ? v->parameter_choice_case : INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE__NOT_SET) {
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM:
        out->kind = SL_GRPC_BOOL;
        out->b = v->bool_param != 0;
        return;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM:
        out->kind = SL_GRPC_INT;
        out->i = v->int64_param;
        return;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM:
        out->kind = SL_GRPC_UINT;
        out->u = v->uint64_param;
        return;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM:
        out->kind = SL_GRPC_REAL;
        out->d = v->double_param;
        return;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM:
        out->kind = SL_GRPC_TEXT;
        out->s = str_of(v->string_param);
        return;
    default:
        out->kind = SL_GRPC_NONE;
    }
}

static enum sl_status params_of(struct decoder *d, Inference__ParameterEntry **w, size_t n,
                                const struct sl_grpc_param **out, size_t *n_out)
{
    enum sl_status s = check_count(d, "parameters", n, GRPC_PARAMS_MAX);
    if (s)
        return s;
    struct sl_grpc_param *p = SL_ARENA_ARRAY(d->mem, struct sl_grpc_param, n + 1);
    if (!p)
        return refuse_size(d);
    for (size_t i = 0; i < n; i++)
        param_of(w[i], &p[i]);
    *out = p;
    *n_out = n;
    return SL_OK;
}

static size_t n_numbers(const Inference__InferTensorContents *c)
{
    return c->n_bool_contents + c->n_int_contents + c->n_int64_contents + c->n_uint_contents +
           c->n_uint64_contents + c->n_fp32_contents + c->n_fp64_contents;
}

static enum sl_status contents_of(struct decoder *d, const Inference__InferTensorContents *c,
                                  struct sl_grpc_tensor *out)
{
    struct sl_str *bytes = SL_ARENA_ARRAY(d->mem, struct sl_str, c->n_bytes_contents + 1);
    if (!bytes)
        return refuse_size(d);
    for (size_t i = 0; i < c->n_bytes_contents; i++)
        bytes[i] = str_of(c->bytes_contents[i]);
    out->bytes = bytes;
    out->n_bytes = c->n_bytes_contents;
    out->has_numbers = n_numbers(c) > 0;
    return SL_OK;
}

/* Elements in raw contents; false when a length does not fit. Fills `out` unless it is NULL. */
static bool split_raw(struct sl_str raw, struct sl_str *out, size_t *n)
{
    const uint8_t *p = (const uint8_t *)raw.data;
    size_t left = raw.len;
    for (*n = 0; left; ++*n) {
        if (left < 4)
            return false;
        size_t len = (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
        if (len > left - 4)
            return false;
        if (out)
            out[*n] = (struct sl_str){(const char *)p + 4, len};
        p += 4 + len;
        left -= 4 + len;
    }
    return true;
}

static enum sl_status raw_of(struct decoder *d, struct sl_str raw, struct sl_grpc_tensor *out)
{
    size_t n;
    out->has_numbers = !sl_str_eqz(out->datatype, "BYTES");
    if (out->has_numbers)
        return SL_OK;
    struct quoted q = quote(out->name);
    if (!split_raw(raw, NULL, &n))
        return sl_fail_param(d->err, SL_INVALID, q.text,
                             "the raw contents of '%s' end inside an element", q.text);
    struct sl_str *bytes = SL_ARENA_ARRAY(d->mem, struct sl_str, n + 1);
    if (!bytes)
        return refuse_size(d);
    split_raw(raw, bytes, &n);
    out->bytes = bytes;
    out->n_bytes = n;
    return SL_OK;
}

static enum sl_status input_of(struct decoder *d, const Inference__InferTensor *w,
                               struct sl_grpc_tensor *out)
{
    struct quoted q = quote(str_of(w->name));
    if (w->n_shape > GRPC_DIMS_MAX)
        return sl_fail_param(d->err, SL_INVALID, q.text, "'%s' has %zu dimensions; at most %d",
                             q.text, w->n_shape, GRPC_DIMS_MAX);
    out->name = str_of(w->name);
    out->datatype = str_of(w->datatype);
    out->shape = w->shape;
    out->n_shape = w->n_shape;
    enum sl_status s = params_of(d, w->parameters, w->n_parameters, &out->params, &out->n_params);
    return s || !w->contents ? s : contents_of(d, w->contents, out);
}

static enum sl_status inputs_of(struct decoder *d, const Inference__ModelInferRequest *w,
                                struct sl_grpc_request *out)
{
    size_t n = w->n_inputs, n_raw = w->n_raw_input_contents;
    enum sl_status s = check_count(d, "inputs", n, GRPC_TENSORS_MAX);
    if (s)
        return s;
    if (n_raw && n_raw != n)
        return sl_fail_param(d->err, SL_INVALID, "raw_input_contents",
                             "raw_input_contents has %zu entries for %zu inputs", n_raw, n);
    struct sl_grpc_tensor *t = SL_ARENA_ARRAY(d->mem, struct sl_grpc_tensor, n + 1);
    if (!t)
        return refuse_size(d);
    for (size_t i = 0; i < n && !s; i++) {
        s = input_of(d, w->inputs[i], &t[i]);
        if (!s && n_raw && (t[i].n_bytes || t[i].has_numbers))
            s = sl_fail_param(d->err, SL_INVALID, "raw_input_contents",
                              "an input has contents although raw_input_contents is used");
        if (!s && n_raw)
            s = raw_of(d, str_of(w->raw_input_contents[i]), &t[i]);
    }
    out->inputs = t;
    out->n_inputs = n;
    out->is_raw = n_raw > 0;
    return s;
}

static enum sl_status outputs_of(struct decoder *d, const Inference__ModelInferRequest *w,
                                 struct sl_grpc_request *out)
{
    size_t n = w->n_outputs;
    enum sl_status s = check_count(d, "outputs", n, GRPC_TENSORS_MAX);
    if (s)
        return s;
    struct sl_grpc_tensor *t = SL_ARENA_ARRAY(d->mem, struct sl_grpc_tensor, n + 1);
    if (!t)
        return refuse_size(d);
    for (size_t i = 0; i < n && !s; i++) {
        t[i].name = str_of(w->outputs[i]->name);
        s = params_of(d, w->outputs[i]->parameters, w->outputs[i]->n_parameters, &t[i].params,
                      &t[i].n_params);
    }
    out->outputs = t;
    out->n_outputs = n;
    return s;
}

static enum sl_status infer_of(struct decoder *d, const Inference__ModelInferRequest *w,
                               struct sl_grpc_request *out)
{
    out->model = str_of(w->model_name);
    out->version = str_of(w->model_version);
    out->id = str_of(w->id);
    enum sl_status s = params_of(d, w->parameters, w->n_parameters, &out->params, &out->n_params);
    if (s || (s = inputs_of(d, w, out)))
        return s;
    return outputs_of(d, w, out);
}

/* ModelReadyRequest and ModelMetadataRequest are alike. */
static enum sl_status name_of(struct decoder *d, const void *data, size_t size,
                              struct sl_grpc_request *out)
{
    Inference__ModelReadyRequest *w =
        unpack(d, &inference__model_ready_request__descriptor, data, size);
    if (!w)
        return d->err->status;
    out->model = str_of(w->name);
    out->version = str_of(w->version);
    return SL_OK;
}

enum sl_status grpc_decode(enum sl_grpc_method method, const void *data, size_t size,
                           struct sl_arena *mem, struct sl_grpc_request *out, struct sl_err *err)
{
    struct decoder d = {.mem = mem, .err = err};
    out->method = method;
    if (method == SL_GRPC_MODEL_READY || method == SL_GRPC_MODEL_METADATA)
        return name_of(&d, data, size, out);
    if (method != SL_GRPC_MODEL_INFER)
        return SL_OK; /* of the others the messages are empty */
    Inference__ModelInferRequest *w =
        unpack(&d, &inference__model_infer_request__descriptor, data, size);
    return w ? infer_of(&d, w, out) : err->status;
}

enum sl_status grpc_decode_health(const void *data, size_t size, struct sl_arena *mem,
                                  struct sl_str *service, struct sl_err *err)
{
    struct decoder d = {.mem = mem, .err = err};
    Grpc__Health__V1__HealthCheckRequest *w =
        unpack(&d, &grpc__health__v1__health_check_request__descriptor, data, size);
    if (!w)
        return err->status;
    *service = str_of(w->service);
    return SL_OK;
}
