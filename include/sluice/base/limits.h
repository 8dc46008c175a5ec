/* Every named limit, in one table: code, /v1/limits, the manual and the tests derive from it.
 * Reaching one is a clear error and a counter. X(name, value, unit, what it bounds) */
#ifndef SLUICE_BASE_LIMITS_H
#define SLUICE_BASE_LIMITS_H

#include <stddef.h>
#include <stdint.h>

#define SL_LIMIT_TABLE(X)                                                                          \
    X(http_header_bytes, 32768, "bytes", "request line and header fields together (431)")          \
    X(http_line_bytes, 8192, "bytes", "request line, or one header field (431, 414)")              \
    X(http_fields, 100, "fields", "header fields of a request (431)")                              \
    X(http_body_bytes, 8388608, "bytes", "request body (413)")                                     \
    X(http_header_ms, 10000, "ms", "time for a whole request header (408)")                        \
    X(http_body_grace_ms, 5000, "ms", "time before the body rate is checked")                      \
    X(http_body_rate, 1024, "bytes/s", "least body rate after the grace time (408)")               \
    X(http_idle_ms, 75000, "ms", "idle keep-alive connection is closed")                           \
    X(http_write_stall_ms, 30000, "ms", "a reader without progress is cut off")                    \
    X(http_connections, 8192, "connections", "open at once; beyond it accept pauses")              \
    X(http_stream_buffer_bytes, 65536, "bytes", "unsent bytes of a stream before it pauses")       \
    X(json_depth, 64, "levels", "nesting of a JSON request (400)")                                 \
    X(prompt_batch, 64, "prompts", "prompts in one completion request (400)")                      \
    X(n_choices, 16, "choices", "n (400)")                                                         \
    X(resume_choices, 64, "choices", "of a stream whose events carry ids; more have none")         \
    X(stop_strings, 16, "strings", "stop strings of a request (400)")                              \
    X(stop_string_bytes, 1024, "bytes", "one stop string (400)")                                   \
    X(stop_token_ids, 64, "ids", "stop_token_ids of a request (400)")                              \
    X(logit_bias, 1024, "entries", "logit_bias of a request (400)")                                \
    X(top_logprobs, 20, "tokens", "top_logprobs and logprobs (400)")                               \
    X(messages, 4096, "messages", "messages of a chat request (400)")                              \
    X(queue_requests, 1024, "requests", "waiting at a router before 429")                          \
    X(inflight_requests, 4096, "requests", "in flight at a router")                                \
    X(workers, 256, "workers", "registered with one router")                                       \
    X(router_hops, 4, "routers", "a request passes one after the other (sites of sites)")          \
    X(bus_message_bytes, 4194304, "bytes", "one bus message")                                      \
    X(bus_hwm_messages, 4096, "messages", "queued on one bus link")                                \
    X(bulk_connections, 128, "connections", "transfers of KV pages a worker serves, and fetches")   \
    X(bulk_pages, 65536, "pages", "KV pages of one transfer")                                      \
    X(bulk_row_bytes, 16777216, "bytes", "one KV page in one layer on the bulk channel")           \
    X(bulk_window_bytes, 2097152, "bytes", "shared memory of one transfer on one machine")         \
    X(bulk_silence_ms, 1500, "ms", "a transfer without a frame is given up")                       \
    X(bulk_transfer_ms, 20000, "ms", "a transfer takes at most; the rest is computed")             \
    X(bulk_grace_ms, 3000, "ms", "who asks for pages by an unknown ticket waits for it")           \
    X(transfer_note_bytes, 20480, "bytes", "rank 0's word about a transfer to the other ranks")    \
    X(bulk_ticket_ms, 5000, "ms", "computed pages are kept for the worker that asked")            \
    X(bus_connections, 4096, "connections", "open at once on a router's CURVE endpoints")          \
    X(curve_keys, 1024, "keys", "allowed peers of one key folder")                                 \
    X(kv_event_ring, 8192, "events", "of a worker's prefix cache, not yet published")               \
    X(kv_batch_keys, 65536, "pages", "in one batch of KV events")                                  \
    X(kv_replay_batches, 10000, "batches", "of KV events kept for replay")                         \
    X(kv_replay_bytes, 33554432, "bytes", "of them together")                                      \
    X(kv_index_pages, 262144, "pages", "whose whereabouts a router knows")                         \
    X(model_meta_bytes, 67108864, "bytes", "tokenizer and template fetched from a worker")         \
    X(template_steps, 1000000, "steps", "chat template evaluation")                                \
    X(template_output_bytes, 4194304, "bytes", "chat template output")                             \
    X(template_depth, 64, "levels", "chat template nesting and recursion")                         \
    X(template_source_bytes, 1048576, "bytes", "chat template source")                             \
    X(vocab_tokens, 1048576, "tokens", "vocabulary of a model file")                               \
    X(gguf_keys, 65536, "keys", "metadata keys of a model file")                                   \
    X(gguf_tensors, 65536, "tensors", "tensors of a model file")                                   \
    X(gguf_string_bytes, 16777216, "bytes", "one string of a model file")                          \
    X(model_layers, 1024, "layers", "decoder layers")                                              \
    X(threads, 1024, "threads", "compute threads of one worker")                                   \
    X(ranks, 64, "ranks", "processes of one worker group")                                         \
    X(kernels, 48, "kernels", "of one process whose launches are told by name")

enum sl_limit {
#define X(name, value, unit, what) SL_LIMIT_##name = (value),
    SL_LIMIT_TABLE(X)
#undef X
};

struct sl_limit_row {
    const char *name;
    uint64_t value;
    const char *unit;
    const char *what;
};
extern const struct sl_limit_row sl_limits[];
extern const size_t sl_n_limits;

#endif
