/* The gRPC door: KServe v2 and grpc.health.v1 on the gRPC C core.
 *
 * It lives in a module, libsluice_grpc.so, loaded only when a gRPC port is asked for; all of it is
 * behind one const table, the symbol SL_GRPC_SYMBOL. The door decodes requests and encodes answers;
 * what they mean is its owner's business. Health it answers itself.
 *
 * Threads: the door has one of its own. `allow` and `notify` are called on it, everything in the
 * table is called on the owner's thread. A call belongs to the owner from its first notify until
 * the owner answers it. */
#ifndef SLUICE_TRANSPORT_GRPC_H
#define SLUICE_TRANSPORT_GRPC_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_GRPC_ABI    1
#define SL_GRPC_SYMBOL "sl_grpc_ops"

enum sl_grpc_method {
    SL_GRPC_SERVER_LIVE,
    SL_GRPC_SERVER_READY,
    SL_GRPC_SERVER_METADATA,
    SL_GRPC_MODEL_READY,
    SL_GRPC_MODEL_METADATA,
    SL_GRPC_MODEL_INFER
};

enum sl_grpc_kind {
    SL_GRPC_NONE, /* a parameter without a value */
    SL_GRPC_BOOL,
    SL_GRPC_INT,
    SL_GRPC_UINT,
    SL_GRPC_REAL,
    SL_GRPC_TEXT
};
struct sl_grpc_param {
    struct sl_str name;
    enum sl_grpc_kind kind;
    union {
        bool b;
        int64_t i;
        uint64_t u;
        double d;
        struct sl_str s;
    };
};

struct sl_grpc_tensor {
    struct sl_str name, datatype;
    const int64_t *shape; /* [n_shape] */
    size_t n_shape;
    const struct sl_str *bytes; /* [n_bytes] elements of a BYTES tensor */
    size_t n_bytes;
    bool has_numbers; /* contents of another type, or raw contents of another datatype */
    const struct sl_grpc_param *params;
    size_t n_params;
};

/* Views into the call. */
struct sl_grpc_request {
    enum sl_grpc_method method;
    struct sl_str model, version, id;
    const struct sl_grpc_param *params;
    size_t n_params;
    const struct sl_grpc_tensor *inputs;
    size_t n_inputs;
    const struct sl_grpc_tensor *outputs; /* asked for: name and parameters only */
    size_t n_outputs;
    bool is_raw;          /* inputs came as raw contents; the answer does too */
    uint64_t deadline_ms; /* left when the request was read; 0: none */
};

/* Borrowed during `answer`. Fields a method's answer does not have are not looked at. */
struct sl_grpc_answer {
    enum sl_status status; /* other than SL_OK: only message counts */
    const char *message;
    bool yes; /* live, ready */
    struct sl_str name, version, id, platform;
    const struct sl_str *list; /* versions, or extensions */
    size_t n_list;
    const struct sl_grpc_param *params;
    size_t n_params;
    const struct sl_grpc_tensor *inputs, *outputs;
    size_t n_inputs, n_outputs;
};

struct sl_grpc_door;
struct sl_grpc_call {
    struct sl_grpc_request request;
    void *user; /* the owner's; NULL at first */
};

struct sl_grpc_config {
    const char *host;
    uint16_t port;
    const char *tls_cert_file, *tls_key_file; /* NULL: plain */
    void *ctx;
    /* The door's thread, before a message is read: may who said this go on? `authorization` is the
     * metadata's value, empty when there is none. Health, ServerLive and ServerReady are open. */
    bool (*allow)(void *ctx, struct sl_str authorization);
    /* The door's thread. At most twice a call: it is there; its client is gone (cancelled says
     * which). Each time the owner gets a reference: `answer` consumes the first, `release` the
     * second. */
    void (*notify)(void *ctx, struct sl_grpc_call *call);
    /* A line of the gRPC core's own log, any thread. */
    void (*log)(const char *line);
};

struct sl_grpc_ops {
    uint32_t abi; /* SL_GRPC_ABI */
    /* SL_PORT_IN_USE, SL_CONFIG (TLS files), SL_NO_MEMORY. One door a process. */
    enum sl_status (*open)(const struct sl_grpc_config *cfg, struct sl_grpc_door **out,
                           struct sl_err *err);
    /* What Check and Watch say; a new door is not serving. */
    void (*set_serving)(struct sl_grpc_door *d, bool serving);
    bool (*cancelled)(const struct sl_grpc_call *call);
    /* Exactly once for each call notified; it is the owner's no more. */
    void (*answer)(struct sl_grpc_call *call, const struct sl_grpc_answer *a);
    void (*release)(struct sl_grpc_call *call);
    /* No call is notified any more, new ones are refused, watchers are sent away. */
    void (*stop)(struct sl_grpc_door *d);
    /* After stop, when every call has its answer: waits until the answers are out, a second at
     * most, then cuts off what is left. */
    void (*close)(struct sl_grpc_door *d);
};

#endif
