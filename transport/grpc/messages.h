/* Private: the door's messages, bytes to plain structs and back. Pure; nothing of gRPC in it. */
#ifndef SLUICE_TRANSPORT_GRPC_MESSAGES_H
#define SLUICE_TRANSPORT_GRPC_MESSAGES_H

#include <sluice/base/limits.h>
#include <sluice/transport/grpc.h>

/* Lists that are walked more than once are short. */
#define GRPC_TENSORS_MAX 16
#define GRPC_PARAMS_MAX  64
#define GRPC_DIMS_MAX    8

/* Cap of what one message may take once decoded: its text, and what points into it. */
#define GRPC_CALL_MEM_MAX ((size_t)4 * SL_LIMIT_http_body_bytes)

enum grpc_serving { GRPC_UNKNOWN, GRPC_SERVING, GRPC_NOT_SERVING, GRPC_SERVICE_UNKNOWN };

/* `out` (method and deadline aside) points into `mem`, not into `data`. SL_INVALID for what is no
 * such message or contradicts itself (err->param names the tensor or field), SL_TOO_LARGE when it
 * does not fit into `mem`. */
enum sl_status grpc_decode(enum sl_grpc_method method, const void *data, size_t size,
                           struct sl_arena *mem, struct sl_grpc_request *out, struct sl_err *err);
/* HealthCheckRequest: the service asked about. */
enum sl_status grpc_decode_health(const void *data, size_t size, struct sl_arena *mem,
                                  struct sl_str *service, struct sl_err *err);

/* The answer's bytes, in `mem`; false when it is full. */
bool grpc_encode(enum sl_grpc_method method, bool is_raw, const struct sl_grpc_answer *a,
                 struct sl_arena *mem, struct sl_str *out);
bool grpc_encode_health(enum grpc_serving status, struct sl_arena *mem, struct sl_str *out);

#endif
