/* `bench serve`: options, requests, run, report. */
#include <sluice/bench/bench.h>

#include "arrivals.h"
#include "dataset.h"
#include "load.h"
#include "result.h"

#include <sluice/base/json.h>
#include <sluice/base/options.h>
#include <sluice/transport/http_client.h>

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define ARENA_BYTES ((size_t)8 << 30) /* a cap, taken only as needed */

struct options {
    const char *base_url, *host, *endpoint, *backend, *model, *api_key;
    int64_t port;
    const char *dataset_name, *dataset_path;
    int64_t n_prompts, input_len, output_len, prefix_len, n_prefixes, vocab_size;
    double range_ratio, temperature;
    const char *rate, *burstiness, *arrival;
    int64_t max_concurrency, n_warmups, seed, timeout_s;
    bool prompt_ids, ignore_eos, disable_progress, save_result;
    const char *goodput, *assertions, *percentile_metrics, *percentiles, *output, *result_filename;
};

#define AT(field) offsetof(struct options, field)
static const struct sl_option table[] = {
    {"base-url", SL_OPT_STRING, AT(base_url), NULL, 0, 0, NULL, "URL",
     "server; default http://HOST:PORT"},
    {"host", SL_OPT_STRING, AT(host), "127.0.0.1", 0, 0, NULL, "HOST", "server's host"},
    {"port", SL_OPT_INT, AT(port), "8080", 1, 65535, NULL, "N", "server's port"},
    {"endpoint", SL_OPT_STRING, AT(endpoint), NULL, 0, 0, NULL, "PATH",
     "default /v1/completions, or /v1/chat/completions for openai-chat"},
    {"backend", SL_OPT_CHOICE, AT(backend), "openai", 0, 0, "openai|openai-chat|vllm", NULL,
     "which requests to send"},
    {"model", SL_OPT_STRING, AT(model), NULL, 0, 0, NULL, "NAME", "default: the server's first"},
    {"api-key", SL_OPT_STRING, AT(api_key), NULL, 0, 0, NULL, "KEY", "bearer token"},
    {"dataset-name", SL_OPT_CHOICE, AT(dataset_name), "random", 0, 0,
     "random|prefix_repetition|custom|sharegpt|timed_trace", NULL,
     "prompts: made up, lines of a file, or a trace"},
    {"dataset-path", SL_OPT_STRING, AT(dataset_path), NULL, 0, 0, NULL, "FILE",
     "file of custom, sharegpt and timed_trace"},
    {"num-prompts", SL_OPT_INT, AT(n_prompts), "100", 1, 10000000, NULL, "N", "requests to send"},
    {"random-input-len", SL_OPT_INT, AT(input_len), "128", 1, 1000000, NULL, "N",
     "prompt length in words (about one token each) or ids"},
    {"random-output-len", SL_OPT_INT, AT(output_len), "64", 1, 1000000, NULL, "N",
     "tokens to generate"},
    {"random-range-ratio", SL_OPT_REAL, AT(range_ratio), "0", 0, 1, NULL, "R",
     "lengths vary by this share to both sides"},
    {"random-prefix-len", SL_OPT_INT, AT(prefix_len), "0", 0, 1000000, NULL, "N",
     "words shared by all prompts, or by those of a group"},
    {"num-prefixes", SL_OPT_INT, AT(n_prefixes), "10", 1, 1000000, NULL, "N",
     "groups of prefix_repetition"},
    {"prompt-ids", SL_OPT_FLAG, AT(prompt_ids), "false", 0, 0, NULL, NULL,
     "send token ids instead of text"},
    {"vocab-size", SL_OPT_INT, AT(vocab_size), "32000", 1, 16777216, NULL, "N",
     "ids are drawn below this"},
    {"request-rate", SL_OPT_STRING, AT(rate), "inf", 0, 0, NULL, "R",
     "requests per second, or inf"},
    {"burstiness", SL_OPT_STRING, AT(burstiness), "1", 0, 0, NULL, "B",
     "shape of the gamma distributed gaps: 1 Poisson, inf constant"},
    {"arrival", SL_OPT_CHOICE, AT(arrival), "gamma", 0, 0, "gamma|poisson|constant", NULL,
     "poisson and constant fix the burstiness"},
    {"max-concurrency", SL_OPT_INT, AT(max_concurrency), "0", 0, 100000, NULL, "N",
     "requests open at once; with an infinite rate a closed loop; 0: no bound"},
    {"num-warmups", SL_OPT_INT, AT(n_warmups), "0", 0, 100000, NULL, "N",
     "requests sent before the clock starts"},
    {"seed", SL_OPT_INT, AT(seed), "0", 0, 9.2e18, NULL, "N", "of lengths, prompts and arrivals"},
    {"temperature", SL_OPT_REAL, AT(temperature), "0", 0, 2, NULL, "T", "of sampling"},
    {"ignore-eos", SL_OPT_FLAG, AT(ignore_eos), "true", 0, 0, NULL, NULL,
     "generate the whole output length; --no-ignore-eos for servers without this extension"},
    {"request-timeout", SL_OPT_INT, AT(timeout_s), "600", 1, 86400, NULL, "S",
     "seconds for one request"},
    {"goodput", SL_OPT_STRING, AT(goodput), NULL, 0, 0, NULL, "SLO",
     "'ttft:500 tpot:50 e2el:3000' in ms: counts requests within all of them"},
    {"assert", SL_OPT_STRING, AT(assertions), NULL, 0, 0, NULL, "CLAIMS",
     "'p99_ttft_ms<500, failed==0': exit 9 when one does not hold"},
    {"percentile-metrics", SL_OPT_STRING, AT(percentile_metrics), "ttft,tpot,itl,e2el", 0, 0, NULL,
     "LIST", "metrics to report"},
    {"metric-percentiles", SL_OPT_STRING, AT(percentiles), "50,90,95,99", 0, 0, NULL, "LIST",
     "percentiles to report"},
    {"output", SL_OPT_STRING, AT(output), NULL, 0, 0, NULL, "FILE", "JSON result, - for stdout"},
    {"save-result", SL_OPT_FLAG, AT(save_result), "false", 0, 0, NULL, NULL,
     "write the JSON result to --result-filename"},
    {"result-filename", SL_OPT_STRING, AT(result_filename), "bench-serve.json", 0, 0, NULL, "FILE",
     "where --save-result writes"},
    {"disable-tqdm", SL_OPT_FLAG, AT(disable_progress), "false", 0, 0, NULL, NULL,
     "no progress bar"},
};
#define N_TABLE (sizeof table / sizeof *table)

struct job {
    struct options o;
    struct sl_arena arena;
    double rate, burstiness;
    bool chat;
    const char *url, *model;
    const char *headers[4];
    struct bench_result_spec spec;
    struct bench_prompt *prompts;
    size_t n;
    struct bench_request *requests;
    struct bench_record *records;
};

static const char *print_arena(struct sl_arena *a, const char *x, const char *y, const char *z)
{
    size_t n = strlen(x) + strlen(y) + strlen(z) + 1;
    char *s = sl_arena_alloc(a, n, 1);
    if (s)
        snprintf(s, n, "%s%s%s", x, y, z);
    return s;
}

static enum sl_status parse_positive(const char *name, const char *text, double *out,
                                     struct sl_err *err)
{
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end || !(*out > 0))
        return sl_fail_param(err, SL_USAGE, name, "--%s: '%.40s' is not a number above 0 or inf",
                             name, text);
    return SL_OK;
}

static enum sl_status check_metrics(const char *list, struct sl_err *err)
{
    for (const char *p = list; *(p += strspn(p, " ,")); p += strcspn(p, " ,")) {
        size_t n = strcspn(p, " ,");
        bool known =
            (n == 4 && (!memcmp(p, "ttft", 4) || !memcmp(p, "tpot", 4) || !memcmp(p, "e2el", 4))) ||
            (n == 3 && !memcmp(p, "itl", 3));
        if (!known)
            return sl_fail_param(err, SL_USAGE, "percentile-metrics",
                                 "--percentile-metrics: '%.*s' is not ttft, tpot, itl or e2el",
                                 n < 40 ? (int)n : 40, p);
    }
    return SL_OK;
}

/* What the options say as a whole, checked before anything is sent. */
static enum sl_status check_options(struct job *j, struct sl_err *err)
{
    struct options *o = &j->o;
    enum sl_status s = parse_positive("request-rate", o->rate, &j->rate, err);
    if (s == SL_OK)
        s = parse_positive("burstiness", o->burstiness, &j->burstiness, err);
    if (s == SL_OK)
        s = bench_slo_parse(o->goodput, &j->spec.slo, err);
    if (s == SL_OK)
        s = bench_assert(o->assertions, NULL, err);
    if (s == SL_OK)
        s = check_metrics(o->percentile_metrics, err);
    if (s == SL_OK)
        s = bench_percentiles_parse(o->percentiles, &j->spec, err);
    if (s != SL_OK)
        return s;
    j->spec.metrics = o->percentile_metrics;
    if (!strcmp(o->arrival, "poisson"))
        j->burstiness = 1;
    if (!strcmp(o->arrival, "constant"))
        j->burstiness = INFINITY;
    j->chat = o->endpoint ? strstr(o->endpoint, "/chat/completions") != NULL
                          : !strcmp(o->backend, "openai-chat");
    if (j->chat && o->prompt_ids)
        return sl_fail_param(err, SL_USAGE, "prompt-ids",
                             "--prompt-ids: chat requests have no token-id form");
    return SL_OK;
}

/* Base URL, headers and the model's name, asked of the server where not given. */
static enum sl_status find_server(struct job *j, struct sl_err *err)
{
    struct options *o = &j->o;
    char port[24];
    snprintf(port, sizeof port, "%lld", (long long)o->port);
    const char *host = print_arena(&j->arena, "http://", o->host, ":");
    const char *base = o->base_url ? o->base_url
                       : host      ? print_arena(&j->arena, host, port, "")
                                   : "";
    const char *path = o->endpoint ? o->endpoint
                       : j->chat   ? "/v1/chat/completions"
                                   : "/v1/completions";
    size_t n = base ? strlen(base) : 0;
    if (n > 0 && base[n - 1] == '/' && *path == '/')
        path++;
    j->url = base ? print_arena(&j->arena, base, path, "") : NULL;
    j->headers[0] = "Content-Type: application/json";
    j->headers[1] =
        o->api_key ? print_arena(&j->arena, "Authorization: Bearer ", o->api_key, "") : NULL;
    if (!j->url)
        return sl_fail(err, SL_NO_MEMORY, "bench: no memory");
    if (o->model) {
        j->model = o->model;
        return SL_OK;
    }
    struct sl_buf body = {0};
    struct sl_json *v = NULL;
    long http = 0;
    const char *url =
        print_arena(&j->arena, base, n > 0 && base[n - 1] == '/' ? "" : "/", "v1/models");
    enum sl_status s = sl_http_get(url ? url : "", 10000, &http, &body, err);
    if (s == SL_OK && http == 200)
        s = sl_json_parse(body.data ? body.data : "", body.len, &v, err);
    const struct sl_json *data =
        v && sl_json_kind(v) == SL_JSON_OBJECT ? sl_json_get(v, "data") : NULL;
    const struct sl_json *first =
        data && sl_json_kind(data) == SL_JSON_ARRAY && sl_json_len(data) > 0 ? sl_json_at(data, 0)
                                                                             : NULL;
    const struct sl_json *id =
        first && sl_json_kind(first) == SL_JSON_OBJECT ? sl_json_get(first, "id") : NULL;
    if (id && sl_json_kind(id) == SL_JSON_STRING)
        j->model = sl_arena_strndup(&j->arena, sl_json_str(id).data, sl_json_str(id).len);
    else if (s == SL_OK)
        s = sl_fail(err, SL_PEER, "bench: %s names no model (HTTP %ld); give --model", url, http);
    sl_json_free(v);
    sl_buf_free(&body);
    return s;
}

static void put_prompt(struct sl_buf *b, const struct bench_prompt *p, bool chat)
{
    if (chat) {
        sl_buf_puts(b, "\"messages\":[{\"role\":\"user\",\"content\":");
        sl_buf_json_str(b, p->text.data, p->text.len);
        sl_buf_puts(b, "}]");
        return;
    }
    sl_buf_puts(b, "\"prompt\":");
    if (!p->ids) {
        sl_buf_json_str(b, p->text.data, p->text.len);
        return;
    }
    for (size_t i = 0; i < p->n_in; i++)
        sl_buf_printf(b, "%c%u", i > 0 ? ',' : '[', (unsigned)p->ids[i]);
    sl_buf_putc(b, ']');
}

/* All bodies are made before the clock starts: a late request must be the server's doing. */
static enum sl_status make_requests(struct job *j, struct sl_err *err)
{
    struct sl_buf b = {0};
    double *at_s = calloc(j->n, sizeof *at_s);
    j->requests = calloc(j->n, sizeof *j->requests);
    j->records = calloc(j->n, sizeof *j->records);
    bool ok = at_s && j->requests && j->records;
    if (ok)
        bench_arrivals(at_s, j->n, j->rate, j->burstiness, (uint64_t)j->o.seed + 1);
    for (size_t i = 0; ok && i < j->n; i++) {
        const struct bench_prompt *p = &j->prompts[i];
        sl_buf_clear(&b);
        sl_buf_puts(&b, "{\"model\":");
        sl_buf_json_str(&b, j->model, strlen(j->model));
        sl_buf_putc(&b, ',');
        put_prompt(&b, p, j->chat);
        sl_buf_printf(&b, ",\"%s\":%zu,\"temperature\":%g,\"stream\":true",
                      j->chat ? "max_completion_tokens" : "max_tokens", p->n_out, j->o.temperature);
        sl_buf_puts(&b, ",\"stream_options\":{\"include_usage\":true}");
        sl_buf_puts(&b, j->o.ignore_eos ? ",\"ignore_eos\":true}" : "}");
        char *body = b.failed ? NULL : sl_arena_strndup(&j->arena, b.data, b.len);
        j->requests[i] = (struct bench_request){.body = body,
                                                .body_len = b.len,
                                                .at_s = p->at_s >= 0 ? p->at_s : at_s[i],
                                                .n_in = p->n_in,
                                                .n_out = p->n_out};
        ok = body != NULL;
    }
    free(at_s);
    sl_buf_free(&b);
    return ok ? SL_OK : sl_fail(err, SL_NO_MEMORY, "bench: no memory for %zu requests", j->n);
}

static enum sl_status warm_up(struct job *j, struct sl_err *err)
{
    size_t n = (size_t)j->o.n_warmups < j->n ? (size_t)j->o.n_warmups : j->n;
    if (n == 0)
        return SL_OK;
    struct bench_record *r = calloc(n, sizeof *r);
    size_t width = j->o.max_concurrency > 0 ? (size_t)j->o.max_concurrency : 1;
    struct bench_load load = {
        j->url, j->headers, j->requests, n, width, true, (long)j->o.timeout_s * 1000, NULL};
    if (!r)
        return sl_fail(err, SL_NO_MEMORY, "bench: no memory");
    enum sl_status s = bench_load_run(&load, r, err);
    for (size_t i = 0; s == SL_OK && i < n; i++)
        if (!r[i].ok)
            s = sl_fail(err, SL_PEER, "bench: warm-up request %zu failed: %s", i, r[i].error);
    bench_records_free(r, n);
    return s;
}

static enum sl_status write_result(const char *path, const struct sl_buf *text, struct sl_err *err)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "wb") : stdout;
    bool ok = f && !text->failed && fwrite(text->data, 1, text->len, f) == text->len;
    int why = errno;
    if (f && f != stdout)
        ok = fclose(f) == 0 && ok;
    return ok ? SL_OK
              : sl_fail(err, SL_FAILED, "bench: %s cannot be written: %s", path, strerror(why));
}

static const struct bench_record *first_failure(const struct job *j)
{
    for (size_t i = 0; i < j->n; i++)
        if (!j->records[i].ok)
            return &j->records[i];
    return NULL;
}

static enum sl_status report(struct job *j, int argc, char **argv, struct sl_err *err)
{
    struct bench_figures *f = calloc(1, sizeof *f);
    struct sl_buf table_text = {0}, json = {.cap_bytes = (size_t)4 << 30};
    const struct options *o = &j->o;
    struct bench_description d = {
        o->backend,        j->url,        j->model, o->dataset_name,
        j->rate,           j->burstiness, j->n,     (size_t)o->max_concurrency,
        (uint64_t)o->seed, argc,          argv};
    enum sl_status s = f ? bench_result_figures(&j->spec, j->records, j->n, f, err)
                         : sl_fail(err, SL_NO_MEMORY, "bench: no memory");
    const char *path = o->output ? o->output : o->save_result ? o->result_filename : NULL;
    if (s == SL_OK && path) {
        bench_result_json(&d, f, j->records, j->n, &json);
        s = write_result(path, &json, err);
    }
    if (s == SL_OK) {
        bench_result_table(&d, &j->spec, f, &table_text);
        fputs(table_text.data ? table_text.data : "", path && !strcmp(path, "-") ? stderr : stdout);
        s = bench_assert(o->assertions, f, err);
    }
    const struct bench_record *bad = first_failure(j);
    if (s == SL_OK && bad && f->at[1].value == 0) /* completed */
        s = sl_fail(err, SL_PEER, "bench: every request failed; the first: %s", bad->error);
    else if (bad)
        fprintf(stderr, "sluice: bench: a request failed: %s\n", bad->error);
    sl_buf_free(&table_text);
    sl_buf_free(&json);
    free(f);
    return s;
}

static enum sl_status run(struct job *j, int argc, char **argv, struct sl_err *err)
{
    const struct options *o = &j->o;
    enum sl_status s = check_options(j, err);
    if (s == SL_OK)
        s = find_server(j, err);
    struct bench_dataset_spec data = {
        .name = o->dataset_name,
        .path = o->dataset_path,
        .n = (size_t)o->n_prompts,
        .input_len = o->input_len,
        .output_len = o->output_len,
        .range_ratio = o->range_ratio,
        .prefix_len = o->prefix_len,
        .n_prefixes = o->n_prefixes,
        .ids = o->prompt_ids,
        .vocab_size = o->vocab_size,
        .seed = (uint64_t)o->seed,
    };
    if (s == SL_OK)
        s = bench_dataset_make(&data, &j->arena, &j->prompts, &j->n, err);
    if (s == SL_OK)
        s = make_requests(j, err);
    if (s == SL_OK)
        s = warm_up(j, err);
    bool bar = !o->disable_progress && isatty(2);
    struct bench_load load = {.url = j->url,
                              .headers = j->headers,
                              .requests = j->requests,
                              .n = j->n,
                              .max_concurrency = (size_t)o->max_concurrency,
                              .closed_loop = isinf(j->rate) && o->max_concurrency > 0 &&
                                             strcmp(o->dataset_name, "timed_trace") != 0,
                              .timeout_ms = (long)o->timeout_s * 1000,
                              .label = bar ? "bench serve" : NULL};
    if (s == SL_OK)
        s = bench_load_run(&load, j->records, err);
    return s == SL_OK ? report(j, argc, argv, err) : s;
}

/* Every open request is a descriptor; the usual soft limit of 1024 is not meant for this. */
static void raise_descriptor_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
    return false;
}

static void print_help(void)
{
    struct sl_buf text = {0};
    sl_options_help(table, N_TABLE, &text);
    printf("usage: sluice bench serve [OPTIONS]\n\n%s", text.data ? text.data : "");
    sl_buf_free(&text);
}

int sl_bench_serve(int argc, char **argv, char *const *env)
{
    struct sl_err err = {0};
    struct job *j = calloc(1, sizeof *j);
    const char *operands[1];
    size_t n_operands = 0;
    if (wants_help(argc, argv)) {
        free(j);
        print_help();
        return 0;
    }
    enum sl_status s = sl_fail(&err, SL_NO_MEMORY, "bench: no memory");
    if (j) {
        raise_descriptor_limit();
        sl_arena_init(&j->arena, ARENA_BYTES);
        s = sl_options_read(table, N_TABLE, argc, argv, env, &j->arena, &j->o, operands, 1,
                            &n_operands, &err);
        if (s == SL_OK && n_operands > 0)
            s = sl_fail(&err, SL_USAGE, "bench serve: unexpected operand '%.60s'", operands[0]);
        if (s == SL_OK)
            s = run(j, argc, argv, &err);
        bench_records_free(j->records, j->n);
        free(j->requests);
        sl_arena_free(&j->arena);
    }
    free(j);
    if (s != SL_OK)
        fprintf(stderr, "sluice: %s\n", err.msg);
    return s == SL_OK ? 0 : sl_status_row(s)->exit_code;
}
