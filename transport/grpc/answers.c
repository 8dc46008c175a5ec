/* Answers of the gRPC door from plain structs to bytes, with protobuf-c. What is built on the way
 * comes out of the call's arena. */
#include "messages.h"

#include "health.pb-c.h"
#include "inference.pb-c.h"

#include <string.h>

static ProtobufCBinaryData bytes_of(struct sl_str s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)(uintptr_t)s.data};
}

static bool pack(const ProtobufCMessage *m, struct sl_arena *mem, struct sl_str *out)
{
    size_t size = protobuf_c_message_get_packed_size(m);
    uint8_t *data = sl_arena_alloc(mem, size + 1, 1);
    if (!data)
        return false;
    *out = (struct sl_str){(const char *)data, protobuf_c_message_pack(m, data)};
    return true;
}

static ProtobufCBinaryData *list_of(struct sl_arena *mem, const struct sl_str *s, size_t n)
{
    ProtobufCBinaryData *list = SL_ARENA_ARRAY(mem, ProtobufCBinaryData, n + 1);
    for (size_t i = 0; list && i < n; i++)
        list[i] = bytes_of(s[i]);
    return list;
}

static void put_value(Inference__InferParameter *v, const struct sl_grpc_param *p)
{
    switch (p->kind) {
    case SL_GRPC_BOOL:
        v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
        v->bool_param = p->b;
        break;
    case SL_GRPC_INT:
        v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM;
        v->int64_param = p->i;
        break;
    case SL_GRPC_UINT:
        v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM;
        v->uint64_param = p->u;
        break;
    case SL_GRPC_REAL:
        v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM;
        v->double_param = p->d;
        break;
    case SL_GRPC_TEXT:
        v->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
        v->string_param = bytes_of(p->s);
        break;
    case SL_GRPC_NONE:
        break;
    }
}

static Inference__ParameterEntry **params_of(struct sl_arena *mem, const struct sl_grpc_param *p,
                                             size_t n)
{
    Inference__ParameterEntry **list = SL_ARENA_ARRAY(mem, Inference__ParameterEntry *, n + 1);
    for (size_t i = 0; list && i < n; i++) {
        Inference__ParameterEntry *e = SL_ARENA_NEW(mem, Inference__ParameterEntry);
        Inference__InferParameter *v = SL_ARENA_NEW(mem, Inference__InferParameter);
        if (!e || !v)
            return NULL;
        inference__parameter_entry__init(e);
        inference__infer_parameter__init(v);
        put_value(v, &p[i]);
        e->key = bytes_of(p[i].name);
        e->value = v;
        list[i] = e;
    }
    return list;
}

/* Elements as raw contents. */
static bool raw_of(struct sl_arena *mem, const struct sl_grpc_tensor *t, ProtobufCBinaryData *out)
{
    size_t size = 0;
    for (size_t i = 0; i < t->n_bytes; i++)
        size += 4 + t->bytes[i].len;
    uint8_t *data = sl_arena_alloc(mem, size + 1, 1), *p = data;
    if (!data)
        return false;
    for (size_t i = 0; i < t->n_bytes; i++) {
        size_t len = t->bytes[i].len;
        for (unsigned shift = 0; shift < 32; shift += 8)
            *p++ = (uint8_t)(len >> shift);
        memcpy(p, t->bytes[i].data, len);
        p += len;
    }
    *out = (ProtobufCBinaryData){size, data};
    return true;
}

static Inference__InferTensor *tensor_of(struct sl_arena *mem, const struct sl_grpc_tensor *t,
                                         bool is_raw)
{
    Inference__InferTensor *w = SL_ARENA_NEW(mem, Inference__InferTensor);
    Inference__InferTensorContents *c = SL_ARENA_NEW(mem, Inference__InferTensorContents);
    if (!w || !c)
        return NULL;
    inference__infer_tensor__init(w);
    inference__infer_tensor_contents__init(c);
    w->name = bytes_of(t->name);
    w->datatype = bytes_of(t->datatype);
    w->shape = (int64_t *)(uintptr_t)t->shape;
    w->n_shape = t->n_shape;
    if (is_raw)
        return w;
    c->n_bytes_contents = t->n_bytes;
    c->bytes_contents = list_of(mem, t->bytes, t->n_bytes);
    w->contents = c;
    return c->bytes_contents ? w : NULL;
}

static bool encode_infer(const struct sl_grpc_answer *a, bool is_raw, struct sl_arena *mem,
                         struct sl_str *out)
{
    Inference__ModelInferResponse m = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    m.model_name = bytes_of(a->name);
    m.model_version = bytes_of(a->version);
    m.id = bytes_of(a->id);
    m.n_parameters = a->n_params;
    m.parameters = params_of(mem, a->params, a->n_params);
    m.n_outputs = a->n_outputs;
    m.outputs = SL_ARENA_ARRAY(mem, Inference__InferTensor *, a->n_outputs + 1);
    m.n_raw_output_contents = is_raw ? a->n_outputs : 0;
    m.raw_output_contents = SL_ARENA_ARRAY(mem, ProtobufCBinaryData, a->n_outputs + 1);
    if (!m.parameters || !m.outputs || !m.raw_output_contents)
        return false;
    for (size_t i = 0; i < a->n_outputs; i++) {
        m.outputs[i] = tensor_of(mem, &a->outputs[i], is_raw);
        if (!m.outputs[i] || (is_raw && !raw_of(mem, &a->outputs[i], &m.raw_output_contents[i])))
            return false;
    }
    return pack(&m.base, mem, out);
}

static Inference__TensorMetadata **tensors_of(struct sl_arena *mem, const struct sl_grpc_tensor *t,
                                              size_t n)
{
    Inference__TensorMetadata **list = SL_ARENA_ARRAY(mem, Inference__TensorMetadata *, n + 1);
    for (size_t i = 0; list && i < n; i++) {
        Inference__TensorMetadata *w = SL_ARENA_NEW(mem, Inference__TensorMetadata);
        if (!w)
            return NULL;
        inference__tensor_metadata__init(w);
        w->name = bytes_of(t[i].name);
        w->datatype = bytes_of(t[i].datatype);
        w->shape = (int64_t *)(uintptr_t)t[i].shape;
        w->n_shape = t[i].n_shape;
        list[i] = w;
    }
    return list;
}

static bool encode_model(const struct sl_grpc_answer *a, struct sl_arena *mem, struct sl_str *out)
{
    Inference__ModelMetadataResponse m = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    m.name = bytes_of(a->name);
    m.platform = bytes_of(a->platform);
    m.n_versions = a->n_list;
    m.versions = list_of(mem, a->list, a->n_list);
    m.n_inputs = a->n_inputs;
    m.inputs = tensors_of(mem, a->inputs, a->n_inputs);
    m.n_outputs = a->n_outputs;
    m.outputs = tensors_of(mem, a->outputs, a->n_outputs);
    return m.versions && m.inputs && m.outputs && pack(&m.base, mem, out);
}

static bool encode_server(const struct sl_grpc_answer *a, struct sl_arena *mem, struct sl_str *out)
{
    Inference__ServerMetadataResponse m = INFERENCE__SERVER_METADATA_RESPONSE__INIT;
    m.name = bytes_of(a->name);
    m.version = bytes_of(a->version);
    m.n_extensions = a->n_list;
    m.extensions = list_of(mem, a->list, a->n_list);
    return m.extensions && pack(&m.base, mem, out);
}

/* ServerLive, ServerReady and ModelReady answer alike: field 1, a bool. */
static bool encode_yes(bool yes, struct sl_arena *mem, struct sl_str *out)
{
    Inference__ServerLiveResponse m = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    m.live = yes;
    return pack(&m.base, mem, out);
}

bool grpc_encode(enum sl_grpc_method method, bool is_raw, const struct sl_grpc_answer *a,
                 struct sl_arena *mem, struct sl_str *out)
{
    switch (method) {
    case SL_GRPC_MODEL_INFER:
        return encode_infer(a, is_raw, mem, out);
    case SL_GRPC_MODEL_METADATA:
        return encode_model(a, mem, out);
    case SL_GRPC_SERVER_METADATA:
        return encode_server(a, mem, out);
    case SL_GRPC_SERVER_LIVE:
    case SL_GRPC_SERVER_READY:
    case SL_GRPC_MODEL_READY:
        break;
    }
    return encode_yes(a->yes, mem, out);
}

bool grpc_encode_health(enum grpc_serving status, struct sl_arena *mem, struct sl_str *out)
{
    Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    m.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    return pack(&m.base, mem, out);
}
