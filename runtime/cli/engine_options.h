/* The engine's options, shared by every verb that opens a model: serve, worker, complete, chat and
 * bench. A verb embeds `struct engine_options` in its own struct and ENGINE_OPTION_ROWS in its
 * table. */
#ifndef SLUICE_CLI_ENGINE_OPTIONS_H
#define SLUICE_CLI_ENGINE_OPTIONS_H

#include <sluice/base/err.h>
#include <sluice/base/limits.h>
#include <sluice/base/mem.h>
#include <sluice/base/options.h>
#include <sluice/engine/engine.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine_options {
    int64_t threads;
    const char *backend, *isa, *cuda_plugin;
    int64_t device, device_turn;
    int64_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int64_t kv_cache_memory_bytes;
    const char *kv_cache_dtype;
    int64_t page_size;
    bool enable_prefix_caching;
    const char *speculation;
    int64_t tensor_parallel_size, pipeline_parallel_size, rank_timeout_ms, rank_restarts;
};

/* X(name, kind, field, default, min, max, choices, meta, help) */
#define ENGINE_OPTION_TABLE(X)                                                                     \
    X("threads", SL_OPT_INT, threads, NULL, 1, SL_LIMIT_threads, NULL, "N",                        \
      "compute threads of each worker process (default: cores / processes)")                       \
    X("backend", SL_OPT_CHOICE, backend, "cpu", 0, 0, "cpu|ref|cuda|cuda-emu", "NAME",             \
      "where the model is computed")                                                               \
    X("isa", SL_OPT_CHOICE, isa, NULL, 0, 0, "scalar|avx2|avx512", "NAME",                         \
      "instruction set of the cpu backend (default: the best this machine has)")                   \
    X("device", SL_OPT_INT, device, "-1", -1, 1023, NULL, "N",                                     \
      "device of the cuda backend (default: workers and ranks take turns)")                                       \
    X("device-turn", SL_OPT_INT, device_turn, NULL, 0, 65535, NULL, "N", "")                       \
    X("cuda-plugin", SL_OPT_STRING, cuda_plugin, NULL, 0, 0, NULL, "FILE",                         \
      "the cuda backend's library (default: the one beside this program)")                         \
    X("max-num-seqs", SL_OPT_INT, max_num_seqs, "64", 1, 4096, NULL, "N",                          \
      "sequences computed at once")                                                                \
    X("max-num-batched-tokens", SL_OPT_INT, max_num_batched_tokens, NULL, 1, 1048576, NULL, "N",   \
      "rows of one step at most (default: chosen by the model's size)")                            \
    X("max-model-len", SL_OPT_INT, max_model_len, NULL, 1, 1048576, NULL, "N",                     \
      "positions of one sequence (default: the model's context)")                                  \
    X("kv-cache-memory-bytes", SL_OPT_BYTES, kv_cache_memory_bytes, NULL, 1, 9e15, NULL, "BYTES",  \
      "memory of the KV cache (default: chosen from sequences and memory)")                        \
    X("kv-cache-dtype", SL_OPT_CHOICE, kv_cache_dtype, "f16", 0, 0, "f16|f32|bf16|int8", "TYPE",   \
      "element type of the KV cache")                                                              \
    X("page-size", SL_OPT_INT, page_size, "16", 1, 256, NULL, "N", "positions of one KV page")     \
    X("enable-prefix-caching", SL_OPT_FLAG, enable_prefix_caching, "true", 0, 0, NULL, NULL,       \
      "reuse the KV pages of equal prompt beginnings")                                             \
    X("speculation", SL_OPT_CHOICE, speculation, "off", 0, 0, "off|ngram", "KIND",                 \
      "guess tokens ahead (changes speed only)")                                                   \
    X("tensor-parallel-size", SL_OPT_INT, tensor_parallel_size, "1", 1, 1024, NULL, "N",           \
      "ranks that share every layer")                                                              \
    X("pipeline-parallel-size", SL_OPT_INT, pipeline_parallel_size, "1", 1, 1024, NULL, "N",       \
      "ranks that share the layers out")                                                           \
    X("rank-timeout-ms", SL_OPT_INT, rank_timeout_ms, "1000", 10, 3600000, NULL, "MS",             \
      "a rank without progress for so long is lost, and its group forms anew")                     \
    X("rank-restarts", SL_OPT_INT, rank_restarts, "5", 1, 1000, NULL, "N",                         \
      "a rank that ended so often before its group formed is done without until it can be started")

/* The rows for a table whose struct `type` holds a struct engine_options as `member`:
 *     #define ROW(...) ENGINE_OPTION_ROW(struct serve_options, engine, __VA_ARGS__)
 *     static const struct sl_option table[] = { ENGINE_OPTION_TABLE(ROW) ... };  */
#define ENGINE_OPTION_ROW(type, member, name_, kind_, field_, def_, min_, max_, choices_, meta_,   \
                          help_)                                                                   \
    {.name = name_,                                                                                \
     .kind = kind_,                                                                                \
     .offset = offsetof(type, member) + offsetof(struct engine_options, field_),                   \
     .def = def_,                                                                                  \
     .min = min_,                                                                                  \
     .max = max_,                                                                                  \
     .choices = choices_,                                                                          \
     .meta = meta_,                                                                                \
     .help = help_},

/* KV events, of worker and serve: a field `kv` of the verb's options. */
struct kv_events_options {
    bool enabled;
    const char *endpoint, *replay_endpoint, *topic, *format;
};
#define KV_EVENTS_OPTION_TABLE(X)                                                                  \
    X("kv-events", SL_OPT_FLAG, kv.enabled, "true", 0, 0, NULL, NULL,                              \
      "tell routers what the prefix cache holds")                                                  \
    X("kv-events-endpoint", SL_OPT_STRING, kv.endpoint, NULL, 0, 0, NULL, "ENDPOINT",              \
      "publish KV events for others there too, in vLLM's format")                                  \
    X("kv-events-replay-endpoint", SL_OPT_STRING, kv.replay_endpoint, NULL, 0, 0, NULL,            \
      "ENDPOINT", "answer requests for missed KV events there")                                    \
    X("kv-events-topic", SL_OPT_STRING, kv.topic, "", 0, 0, NULL, "TOPIC", "topic of KV events")   \
    X("kv-events-format", SL_OPT_CHOICE, kv.format, "vllm", 0, 0, "vllm|vllm-array", "FORMAT",     \
      "events as named fields (vLLM 0.33) or as arrays (before)")

/* Fills what the options decide; the rest of *out is zeroed. `n_processes` groups of ranks share
 * this machine's cores when --threads is not given. SL_UNSUPPORTED for what is not built yet. */
enum sl_status engine_options_config(const struct engine_options *o, uint32_t n_processes,
                                     struct sl_engine_config *out, struct sl_err *err);

/* The same options as flags for a child process, appended to argv[*n]; values live in the arena.
 * SL_NO_MEMORY, or SL_USAGE when argv_max does not suffice. */
enum sl_status engine_options_args(const struct engine_options *o, struct sl_arena *arena,
                                   const char **argv, uint32_t argv_max, uint32_t *n,
                                   struct sl_err *err);

#endif
