/* One message of every kind with values at their limits, for the codec's and the bus's tests. */
#ifndef SLUICE_TESTS_BUS_SAMPLES_H
#define SLUICE_TESTS_BUS_SAMPLES_H

#include <sluice/base/limits.h>
#include <sluice/transport/bus.h>

#include <float.h>
#include <string.h>

#define N_SAMPLES 13

struct samples {
    struct sl_msg m[N_SAMPLES];
    uint32_t tokens[7], out_tokens[3], top_tokens[6], stop_ids[2];
    float logprobs[3], top_logprobs[6];
    struct sl_msg_bias bias[3];
    struct sl_msg_out outs[3];
    struct sl_msg_rank ranks[2];
    struct sl_msg_kernel kernels[2];
};

static struct sl_msg_load sample_load(void)
{
    return (struct sl_msg_load){.running = 64,
                                .waiting = 65536,
                                .pages_free = UINT32_C(1) << 31,
                                .pages_total = UINT32_C(1) << 31,
                                .steps = UINT64_MAX,
                                .prefill_tokens = UINT64_MAX - 1,
                                .decode_tokens = 3,
                                .preempted = UINT64_C(1) << 63,
                                .prefix_queries = 5,
                                .prefix_hits = 6,
                                .last_step_age_ms = UINT64_MAX,
                                .step_expected_ms = 9,
                                .op_calls = 8,
                                .kv_pages_sent = UINT64_MAX,
                                .kv_pages_received = 2,
                                .kv_bytes_sent = 9,
                                .kv_bad = 10,
                                .kv_fallbacks = 11,
                                .max_seqs = 65536,
                                .busy_ns = UINT64_MAX,
                                .pending_tokens = 9,
                                .kv_batches = 10,
                                .reforming = true};
}

static void sample_hello(struct sl_msg *m)
{
    m->kind = SL_MSG_HELLO;
    m->hello =
        (struct sl_msg_hello){.version = UINT32_MAX,
                              .version_min = 2,
                              .pid = UINT32_MAX,
                              .rank = 0,
                              .tp = 1,
                              .pp = 65536,
                              .threads = SL_LIMIT_threads,
                              .max_seqs = 1,
                              .max_len = UINT32_MAX,
                              .max_batch_tokens = SL_BUS_TOKENS_MAX,
                              .n_vocab = SL_LIMIT_vocab_tokens,
                              .page_size = 16,
                              .queue_max = 256,
                              .weight_bytes = UINT64_MAX,
                              .meta_bytes = SL_LIMIT_model_meta_bytes,
                              .instance = UINT64_MAX,
                              .greeting = 300,
                              .model = SL_STR("mod\xc3\xa8le \xf0\x9f\x8c\x8a"),
                              .site = SL_STR(""),
                              .role = SL_STR("both"),
                              .isa = SL_STR("avx2"),
                              .backend = SL_STR("cpu"),
                              .class_name = SL_STR("cpu/llama/00/kv-f16/s16.16/seg256/r1"),
                              .events_endpoint = SL_STR("ipc:///run/sluice/kv"),
                              .events_replay = SL_STR("tcp://127.0.0.1:65535"),
                              .events_topic = SL_STR("kv@m"),
                              .events_key = SL_STR("rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"),
                              .load = sample_load()};
    memset(m->hello.meta_sha256, 0xa5, 32);
    m->hello.kv_layout = UINT64_MAX - 5;
    m->hello.kv_address = SL_STR("shm:/run/x,tcp:[::1]:7");
    memset(m->hello.kv_key, 0xb6, 32);
}

static void sample_submit(struct samples *s, struct sl_msg *m)
{
    const uint32_t tokens[7] = {0, 1, 127, 128, 16384, SL_LIMIT_vocab_tokens - 1, 5};
    memcpy(s->tokens, tokens, sizeof tokens);
    s->stop_ids[0] = 2;
    s->bias[0] = (struct sl_msg_bias){0, -100.0f};
    s->bias[1] = (struct sl_msg_bias){SL_LIMIT_vocab_tokens - 1, FLT_MAX};
    s->bias[2] = (struct sl_msg_bias){3, -0.0f};
    m->kind = SL_MSG_SUBMIT;
    m->submit = (struct sl_msg_submit){.id = UINT64_MAX,
                                       .epoch = UINT32_MAX,
                                       .n_prompt = 5,
                                       .tokens = s->tokens,
                                       .n_tokens = 7,
                                       .choice = 1023,
                                       .priority = INT32_MIN,
                                       .tenant = UINT64_MAX,
                                       .seed = UINT64_MAX,
                                       .deadline_ms = 604800000,
                                       .temperature = 0.7f,
                                       .top_p = FLT_MIN,
                                       .min_p = -FLT_MAX,
                                       .typical_p = 1.0f,
                                       .presence_penalty = -2.0f,
                                       .frequency_penalty = 2.0f,
                                       .repetition_penalty = 1e-45f,
                                       .top_k = -1,
                                       .n_logprobs = SL_LIMIT_top_logprobs,
                                       .min_tokens = UINT32_MAX,
                                       .max_tokens = UINT32_MAX,
                                       .want_logprob = true,
                                       .ignore_eos = true,
                                       .no_prefix_cache = true,
                                       .bias = s->bias,
                                       .n_bias = 3,
                                       .stop_ids = s->stop_ids,
                                       .n_stop_ids = 2,
                                       .hops = SL_LIMIT_router_hops};
    memset(m->submit.salt, 0x5a, 32);
    m->submit.kv_ticket = UINT64_MAX - 6;
    m->submit.kv_address = SL_STR("tcp:10.0.0.1:65535");
    memset(m->submit.kv_key, 0xc7, 32);
}

static void sample_step(struct samples *s, struct sl_msg *m)
{
    for (uint32_t i = 0; i < 3; i++) {
        s->out_tokens[i] = i * 50000;
        s->logprobs[i] = -0.5f * (float)i;
    }
    for (uint32_t i = 0; i < 6; i++) {
        s->top_tokens[i] = i;
        s->top_logprobs[i] = -FLT_MAX;
    }
    s->outs[0] = (struct sl_msg_out){.id = UINT64_MAX,
                                     .epoch = 7,
                                     .tokens = s->out_tokens,
                                     .n_tokens = 3,
                                     .logprobs = s->logprobs,
                                     .n_top = 2,
                                     .top_tokens = s->top_tokens,
                                     .top_logprobs = s->top_logprobs,
                                     .n_cached = 1024,
                                     .ordinal = SL_BUS_TOKENS_MAX};
    s->outs[1] = (struct sl_msg_out){.id = 1, .tokens = s->out_tokens, .n_tokens = 1, .end = 2};
    s->outs[2] = (struct sl_msg_out){
        .id = 2, .end = 5, .status = SL_DRAINING, .message = SL_STR("leaving: 3 of 4")};
    m->kind = SL_MSG_STEP;
    m->step = (struct sl_msg_step){
        .step = UINT64_MAX, .outs = s->outs, .n_outs = 3, .load = sample_load()};
}

static void sample_ranks(struct samples *s, struct sl_msg *m)
{
    s->ranks[0] =
        (struct sl_msg_rank){.pid = UINT32_MAX, .threads = SL_LIMIT_threads, .isa = SL_STR("avx2")};
    s->ranks[1] = (struct sl_msg_rank){.rank = SL_LIMIT_ranks - 1,
                                       .weight_bytes = UINT64_MAX,
                                       .kv_bytes = UINT64_MAX - 1,
                                       .comm_bytes = UINT64_MAX - 2,
                                       .steps = UINT64_MAX - 3,
                                       .op_calls = 9,
                                       .isa = SL_STR(""),
                                       .kernels = s->kernels,
                                       .n_kernels = 2};
    s->kernels[0] = (struct sl_msg_kernel){SL_STR("linear<2>"), UINT64_MAX};
    s->kernels[1] = (struct sl_msg_kernel){SL_STR("add"), 0};
    m->kind = SL_MSG_RANKS;
    m->ranks =
        (struct sl_msg_ranks){.ranks = s->ranks, .n_ranks = 2, .tp = SL_LIMIT_ranks, .pp = 1};
}

static void samples_fill(struct samples *s)
{
    const enum sl_msg_kind bare[] = {SL_MSG_PING, SL_MSG_DRAIN, SL_MSG_BYE};
    uint32_t n = 0;
    memset(s, 0, sizeof *s);
    sample_hello(&s->m[n++]);
    s->m[n].kind = SL_MSG_WELCOME;
    s->m[n++].welcome = (struct sl_msg_welcome){
        .version = 1, .status = SL_N_STATUS - 1, .message = SL_STR("another model")};
    sample_submit(s, &s->m[n++]);
    s->m[n].kind = SL_MSG_SUBMIT; /* the least there can be */
    s->m[n++].submit = (struct sl_msg_submit){
        .n_prompt = 1, .tokens = s->tokens, .n_tokens = 1, .prefill_only = true};
    s->m[n].kind = SL_MSG_CANCEL;
    s->m[n++].cancel = (struct sl_msg_cancel){.id = UINT64_MAX, .epoch = UINT32_MAX};
    sample_step(s, &s->m[n++]);
    s->m[n].kind = SL_MSG_META_GET;
    s->m[n++].meta = (struct sl_msg_meta){.offset = SL_LIMIT_model_meta_bytes};
    s->m[n].kind = SL_MSG_META_CHUNK;
    s->m[n++].meta = (struct sl_msg_meta){.offset = 1, .bytes = SL_STR("\0GGUF\xff\xfe\0")};
    s->m[n].kind = SL_MSG_LOAD;
    s->m[n++].load = sample_load();
    sample_ranks(s, &s->m[n++]);
    for (uint32_t i = 0; i < sizeof bare / sizeof *bare; i++)
        s->m[n++].kind = bare[i];
}

#endif
